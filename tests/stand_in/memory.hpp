// Memory of GPUs that are not there, and page-locked memory: both are the machine's own.
#pragma once

#include <cstddef>

namespace stand_in {

// How many GPUs the machine has (EMULATED_GPUS, 1 by default), those of them that this process sees
// (CUDA_VISIBLE_DEVICES), and the number in the machine of one of these.
int visible_devices();
int number_in_machine(int device);

// The thread's current device.
extern thread_local int current_device;

// What a device has (EMULATED_MEMORY bytes, 80 GiB by default) and what of it is in use.
std::size_t memory_bytes();
std::size_t used_bytes(int device);

// Returns null if there is no room. What is allocated holds no numbers; behind its end nothing can be touched.
void *allocate(std::size_t size);
void *allocate_page_locked(std::size_t size);

// Returns whether it was allocated, and had not been freed. Nothing that was freed can be touched, or is given out again.
bool release(void *begin);
bool release_page_locked(void *begin);

enum class Place { unknown, device, page_locked };

// Where an address lies, and, if on a device, on which.
Place place_of(const void *address, int *device = nullptr);

// Whether all of these bytes lie in one allocation on a device, or in page-locked memory, or in neither: in the host's.
bool is_whole(const void *begin, std::size_t size);

}  // namespace stand_in
