// driver_emulated_loan.cpp - driver_loan.h without a card: a loan is memory that has no name, and
// its handle says whose descriptor it is. Whoever may read that process's descriptors can open it:
//
//     bytes 0..7   "luna-emu"        16..23  number of the descriptor
//           8..15  process           24..31  the memory's inode, so that another one is not taken
//           for it
//                                    32..39  its size; the rest is zero
//
// Kernels never see a loan, only copies do: it needs none of the emulator's checks. What is taken
// back is filled first: CUDA says that who has it open still may see anything, and here he does.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "kernels/cuda/driver_emulated.h"
#include "kernels/cuda/driver_loan.h"

namespace
{

struct handle_words {
    char magic[8];
    uint64_t process;
    uint64_t descriptor;
    uint64_t inode;
    uint64_t bytes;
    uint64_t zero[3];
};
static_assert(sizeof(struct handle_words) == GPU_HANDLE_BYTES, "a handle is as long as CUDA's");

// Maps new memory and fills the handle; NULL when the system has none.
void *map_memory(uint64_t bytes, struct handle_words *handle)
{
    struct stat facts = {};
    int descriptor = memfd_create("luna-emulated-loan", MFD_CLOEXEC);
    if (descriptor < 0) return nullptr;
    void *memory = MAP_FAILED;
    if (ftruncate(descriptor, static_cast<off_t>(bytes)) == 0 && fstat(descriptor, &facts) == 0) {
        memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    }
    if (memory == MAP_FAILED) {
        close(descriptor);
        return nullptr;
    }
    *handle = {{'l', 'u', 'n', 'a', '-', 'e', 'm', 'u'},
               static_cast<uint64_t>(getpid()),
               static_cast<uint64_t>(descriptor),
               facts.st_ino,
               bytes,
               {}};
    return memory;
}

}  // namespace

extern "C" {

enum status gpu_lend(struct gpu_card *self, uint64_t bytes, void **memory,
                     uint8_t handle[GPU_HANDLE_BYTES], struct error *error)
{
    struct handle_words words = {};
    enum status status = gpu_emulated_take(self, bytes, error);
    if (status != STATUS_OK) return status;
    void *lent = map_memory(bytes, &words);
    if (lent == nullptr) {
        gpu_emulated_give(self, bytes);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a loan of %llu bytes",
                         static_cast<unsigned long long>(bytes));
    }
    memcpy(handle, &words, sizeof words);
    *memory = lent;
    return STATUS_OK;
}

void gpu_take_back(struct gpu_card *self, void *memory, uint64_t bytes,
                   const uint8_t handle[GPU_HANDLE_BYTES])
{
    struct handle_words words = {};
    memcpy(&words, handle, sizeof words);
    memset(memory, 0xDB, bytes);
    munmap(memory, bytes);
    close(static_cast<int>(words.descriptor));
    gpu_emulated_give(self, bytes);
}

}  // extern "C"
