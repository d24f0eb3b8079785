#include "watching.hpp"

#include <cuda_runtime_api.h>

#include <atomic>

namespace stand_in {

namespace {

// Returns whether it could note what it was told.
using Watcher = bool (*)(const char *what, std::size_t bytes, const std::ptrdiff_t *shape, std::size_t dimensions);

std::atomic<Watcher> watcher{nullptr};

}  // namespace

bool is_watched() { return watcher != nullptr; }

int tell(const char *what, std::size_t bytes, const std::vector<std::ptrdiff_t> &shape) {
    return watcher.load()(what, bytes, shape.data(), shape.size()) ? cudaSuccess : cudaErrorUnknown;
}

}  // namespace stand_in

extern "C" {

// Null: nobody watches any more.
void stand_in_watch(stand_in::Watcher function) { stand_in::watcher = function; }

}  // extern "C"
