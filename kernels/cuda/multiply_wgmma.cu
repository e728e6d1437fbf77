// multiply_wgmma.cu - the same products as multiply_mma.cu for compute capability 9.0, whose tensor
// cores are only filled by products that a warpgroup starts and waits for later.
//
// Two warpgroups hold the sums, 64 columns of c each, and do nothing but multiply: rows of b are
// operands in registers, loaded by ldmatrix, rows of a are read from shared memory, so a product
// makes c transposed. The third warpgroup loads, a ring of stages ahead (multiply_tile.h). Each
// place of the ring has a barrier that says it is full, at which each loader arrives, and one that
// says it is empty, at which a lane of each computing warp arrives when the products that read it
// were waited for. One stage's products stay under way while the next one's operands are loaded.

#include "kernels/cuda/gpu_hopper.h"
#include "kernels/cuda/multiply_tile.h"

namespace
{

constexpr unsigned THREADS = 384;
constexpr unsigned COMPUTERS = 256;
constexpr unsigned LOADER_REGISTERS = 56;
constexpr unsigned COMPUTER_REGISTERS = 224;
static_assert(128 * LOADER_REGISTERS + 256 * COMPUTER_REGISTERS <= 65536, "of a multiprocessor");

struct roles {
    static constexpr unsigned LOADERS = THREADS - COMPUTERS;
    static constexpr unsigned SHARED_MAX = 200u << 10;
};

struct counters {
    uint64_t full[gpu::PRODUCT_STAGES_MAX], empty[gpu::PRODUCT_STAGES_MAX];
};

template <class F> struct worker : gpu::product_tile<F> {
    using T = typename F::T;
    static constexpr unsigned COUNT = F::ROWS / 2;  // sums of a thread
    // Stages that a loader has under way. Of the others one is being read, and one has been but
    // stays until the next one's products have begun.
    static constexpr unsigned AHEAD = F::STAGES - 2;
    static_assert(COUNT <= gpu::PRODUCT_SUMS && F::STAGES >= 3, "room for all");
    struct counters &counters;

    __device__ worker(const struct gpu_product_mma &arguments, unsigned char *shared,
                      struct counters &shared_counters)
        : gpu::product_tile<F>(arguments, shared), counters(shared_counters)
    {
    }

    __device__ void prepare() const
    {
        if (threadIdx.x == 0) {
            for (unsigned i = 0; i < F::STAGES; i++) {
                gpu::counter_create(&counters.full[i], F::LOADERS);
                gpu::counter_create(&counters.empty[i], COMPUTERS / 32);
            }
        }
        gpu::fence_async();
        gpu::block_barrier::wait();
    }

    // ---- loaders

    __device__ void bring() const
    {
        for (uint32_t i = 0; i < this->stages + AHEAD; i++) {
            if (i < this->stages) {
                gpu::counter_wait(&counters.empty[i % F::STAGES], (i / F::STAGES + 1) % 2);
                this->load_stage(i, threadIdx.x - COMPUTERS);
            }
            gpu::copy_commit();
            if (i < AHEAD) continue;
            gpu::copy_wait<AHEAD>();
            gpu::fence_async();
            gpu::counter_arrive(&counters.full[(i - AHEAD) % F::STAGES]);
        }
        gpu::copy_wait<0>();  // only empty groups are left
    }

    // ---- computers

    // Rows of b as operands: 16 of each warp, two steps of 16 columns.
    __device__ void load_operands(uint32_t stage, uint32_t x[2][4]) const
    {
        unsigned lane = threadIdx.x % 32;
        uint32_t right = gpu::shared_address(this->right_of(stage));
        uint32_t line = threadIdx.x / 32 * 16 + lane % 16;
        gpu::counter_wait(&counters.full[stage % F::STAGES], stage / F::STAGES % 2);
        gpu::load_matrix4(x[0], right + gpu::unit_offset(line, lane / 16));
        gpu::load_matrix4(x[1], right + gpu::unit_offset(line, 2 + lane / 16));
    }

    __device__ void leave(uint32_t stage) const
    {
        __syncwarp();
        if (threadIdx.x % 32 == 0) gpu::counter_arrive(&counters.empty[stage % F::STAGES]);
    }

    // Starts the products of a stage and waits for those of the one before.
    __device__ void multiply_stage(uint32_t stage, uint32_t x[2][4], float *sums) const
    {
        load_operands(stage, x);
        gpu::group_fence();
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
#pragma unroll
            for (unsigned part = 0; part < F::PARTS; part++) {
                uint32_t left = gpu::shared_address(this->left_of(stage, part));
                gpu::group_multiply<T, F::ROWS>(sums, x[step], gpu::columns_at(left + step * 32));
            }
        }
        gpu::group_commit();
        gpu::group_wait<1>();
        if (stage > 0) leave(stage - 1);
    }

    // Operands of even stages, and of odd ones: those of one stage are read while the next one's
    // are loaded.
    __device__ void add_up(float *total) const
    {
        uint32_t even[2][4];
        uint32_t odd[2][4];
        float sums[COUNT] = {};
        uint32_t stage = 0;
        while (stage < this->stages) {
            uint32_t left = this->stages - stage;
            uint32_t end = left < this->in_slice ? this->stages : stage + this->in_slice;
            gpu::hold_registers<COUNT>(sums);
            for (; stage + 1 < end; stage += 2) {
                multiply_stage(stage, even, sums);
                multiply_stage(stage + 1, odd, sums);
            }
            if (stage < end) multiply_stage(stage++, even, sums);
            gpu::group_wait<0>();
            gpu::hold_registers<COUNT>(sums);
            gpu::end_slice<COUNT>(sums, total);
        }
    }

    // Eight lanes have eight columns of c that lie side by side.
    __device__ void store(const float *total) const
    {
        unsigned lane = threadIdx.x % 32;
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++) {
            uint32_t m = this->row + i / 4 * 8 + lane % 4 * 2 + i % 2;
            uint32_t n = this->column + threadIdx.x / 32 * 16 + i / 2 % 2 * 8 + lane / 4;
            if (m < this->a.m && n < this->a.n) {
                this->target()[static_cast<uint64_t>(m) * this->a.n + n] = total[i];
            }
        }
    }
};

template <class F>
GPU_KERNEL void __launch_bounds__(THREADS, 1) multiply_wgmma(const struct gpu_product_mma a)
{
    GPU_SWIZZLED_SHARED(shared, unsigned char);
    GPU_SHARED(counters, struct counters);
    worker<F> worker(a, shared, counters);
    worker.prepare();
    if (threadIdx.x >= COMPUTERS) {
        gpu::registers_give<LOADER_REGISTERS>();
        worker.bring();
    } else {
        gpu::registers_take<COMPUTER_REGISTERS>();
        float total[worker.COUNT] = {};
        worker.add_up(total);
        worker.store(total);
    }
}

struct launcher {
    struct gpu_stream *stream;
    const struct gpu_product_mma &a;

    template <class T, unsigned ROWS, unsigned PARTS> void launch() const
    {
        using form = gpu::product_form<roles, T, ROWS, PARTS>;
        auto products_wgmma = multiply_wgmma<form>;
        GPU_LAUNCH(stream, products_wgmma, gpu::product_grid(a), THREADS, form::SHARED_BYTES, a);
    }
};

}  // namespace

void gpu_launch_multiply_wgmma(struct gpu_stream *stream, const struct gpu_product_mma *arguments)
{
    gpu::launch_product(launcher{stream, *arguments}, *arguments);
}
