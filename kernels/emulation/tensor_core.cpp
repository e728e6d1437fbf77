// tensor_core.cpp - what a warp computes together: shuffles, ballots, ldmatrix, mma.
//
// Fragments, with g = lane / 4 and t = lane % 4, as the PTX manual and CUTLASS's layouts agree:
//
//     A 16x16: register r holds row g + 8 (r & 1), columns 2t + 8 (r >> 1) and the next
//     B 16x8:  register r holds rows 2t + 8 r and the next, column g
//     C 16x8:  register r holds row g + 8 (r >> 1), column 2t + (r & 1)

#include <cmath>

#include "kernels/emulation/fiber.h"

namespace emulation
{

namespace
{

int source_lane(const shuffle_part &part, int lane)
{
    int first = lane & ~(part.width - 1);
    int end = first + part.width;
    int source = lane ^ part.source;
    if (part.kind == shuffle_kind::index) source = first + (part.source & (part.width - 1));
    if (part.kind == shuffle_kind::up) source = lane - part.source;
    if (part.kind == shuffle_kind::down) source = lane + part.source;
    return source < first || source >= end ? lane : source;
}

void execute_shuffle(void **arguments, uint32_t mask)
{
    for (int lane = 0; lane < 32; lane++) {
        if ((mask >> lane & 1) == 0) continue;
        auto *part = static_cast<shuffle_part *>(arguments[lane]);
        int source = source_lane(*part, lane);
        bool takes_part = (mask >> source & 1) != 0;
        part->result =
            takes_part ? static_cast<shuffle_part *>(arguments[source])->value : UINT64_MAX;
    }
}

struct ballot_part {
    bool predicate;
    uint32_t result;
};

}  // namespace

void shuffle(const char *name, uint32_t mask, shuffle_part *part, site at)
{
    meet(name, mask, part, at, execute_shuffle);
}

uint32_t ballot(uint32_t mask, bool predicate, const char *site_file, int site_line)
{
    ballot_part part{predicate, 0};
    meet("__ballot_sync", mask, &part, site{site_file, site_line},
         [](void **arguments, uint32_t lanes) {
             uint32_t result = 0;
             for (int lane = 0; lane < 32; lane++) {
                 if ((lanes >> lane & 1) == 0) continue;
                 if (static_cast<ballot_part *>(arguments[lane])->predicate) result |= 1u << lane;
             }
             for (int lane = 0; lane < 32; lane++) {
                 if ((lanes >> lane & 1) == 0) continue;
                 static_cast<ballot_part *>(arguments[lane])->result = result;
             }
         });
    return part.result;
}

// ---------------------------------------------------------------------------------------------
// ldmatrix

namespace
{

struct matrix_part {
    uint32_t *registers;
    uint32_t address;
    unsigned matrices;
    bool transposed;
    site at;
};

// Eight rows of 16 bytes are read in one turn when each comes from other banks.
void read_matrix(void **arguments, unsigned matrix, uint16_t elements[8][8])
{
    unsigned hits[8] = {};
    unsigned turns = 0;
    for (unsigned i = 0; i < 8; i++) {
        unsigned lane = matrix * 8 + i;
        auto *part = static_cast<matrix_part *>(arguments[lane]);
        const char *row = shared_memory(part->address, 16, "ldmatrix", part->at);
        if (races().access != nullptr) {
            fiber *who = &current->owner->fibers[current->warp * 32 + lane];
            races().access(who, part->address - SHARED_BASE, 16, false, part->at);
        }
        memcpy(elements[i], row, 16);
        unsigned turn = ++hits[part->address >> 4 & 7];
        if (turn > turns) turns = turn;
    }
    counts().matrix_phases++;
    counts().bank_conflicts += turns - 1;
}

void execute_load_matrix(void **arguments, uint32_t mask)
{
    static_cast<void>(mask);
    current->owner->warps[current->warp].is_fenced = false;
    unsigned matrices = static_cast<matrix_part *>(arguments[0])->matrices;
    bool transposed = static_cast<matrix_part *>(arguments[0])->transposed;
    for (unsigned matrix = 0; matrix < matrices; matrix++) {
        uint16_t elements[8][8];
        read_matrix(arguments, matrix, elements);
        for (unsigned lane = 0; lane < 32; lane++) {
            unsigned g = lane >> 2;
            unsigned t = (lane & 3) * 2;
            uint32_t low = transposed ? elements[t][g] : elements[g][t];
            uint32_t high = transposed ? elements[t + 1][g] : elements[g][t + 1];
            static_cast<matrix_part *>(arguments[lane])->registers[matrix] = low | high << 16;
        }
    }
}

}  // namespace

void load_matrix(unsigned matrices, bool transposed, uint32_t *registers, uint32_t address,
                 const char *site_file, int site_line)
{
    matrix_part part{registers, address, matrices, transposed, {site_file, site_line}};
    meet(transposed ? "ldmatrix.trans" : "ldmatrix", ~0u, &part, part.at, execute_load_matrix);
}

// ---------------------------------------------------------------------------------------------
// mma

namespace
{

struct multiply_part {
    float *d;
    const uint32_t *a, *b;
};

typedef float eight __attribute__((vector_size(32)));

template <bool BF16> float widen(uint32_t bits)
{
    if (BF16) return __bfloat162float({static_cast<uint16_t>(bits)});
    return __half2float({static_cast<uint16_t>(bits)});
}

template <bool BF16> void execute_multiply(void **arguments, uint32_t mask)
{
    static_cast<void>(mask);
    float a[16][16];
    union {
        eight row;
        float column[8];
    } b[16], c[16];
    counts().multiplications++;
    for (unsigned lane = 0; lane < 32; lane++) {
        const auto *part = static_cast<multiply_part *>(arguments[lane]);
        unsigned g = lane >> 2;
        unsigned t = (lane & 3) * 2;
        for (unsigned r = 0; r < 4; r++) {
            float *at = &a[g + 8 * (r & 1)][t + 8 * (r >> 1)];
            at[0] = widen<BF16>(part->a[r] & 0xffff);
            at[1] = widen<BF16>(part->a[r] >> 16);
            c[g + 8 * (r >> 1)].column[t + (r & 1)] = part->d[r];
        }
        for (unsigned r = 0; r < 2; r++) {
            b[t + 8 * r].column[g] = widen<BF16>(part->b[r] & 0xffff);
            b[t + 8 * r + 1].column[g] = widen<BF16>(part->b[r] >> 16);
        }
    }
    for (unsigned m = 0; m < 16; m++) {
        eight sum = c[m].row;
        for (unsigned k = 0; k < 16; k++) sum += a[m][k] * b[k].row;
        c[m].row = sum;
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        float *d = static_cast<multiply_part *>(arguments[lane])->d;
        unsigned g = lane >> 2;
        unsigned t = (lane & 3) * 2;
        for (unsigned r = 0; r < 4; r++) d[r] = c[g + 8 * (r >> 1)].column[t + (r & 1)];
    }
}

}  // namespace

void multiply_bf16(float *d, const uint32_t *a, const uint32_t *b, const char *site_file,
                   int site_line)
{
    multiply_part part{d, a, b};
    meet("mma.bf16", ~0u, &part, site{site_file, site_line}, execute_multiply<true>);
}

void multiply_f16(float *d, const uint32_t *a, const uint32_t *b, const char *site_file,
                  int site_line)
{
    multiply_part part{d, a, b};
    meet("mma.f16", ~0u, &part, site{site_file, site_line}, execute_multiply<false>);
}

float approximate(float exact, float bound)
{
    if (!settings().worst_approximation || exact == 0 || !std::isfinite(exact)) return exact;
    uint32_t bits;
    memcpy(&bits, &exact, sizeof bits);
    bool up = (bits * 2654435761u) >> 31 != 0;
    return exact * (1 + (up ? bound : -bound));
}

}  // namespace emulation
