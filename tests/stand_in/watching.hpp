// Somebody who is told what the devices are asked to do. While there is one, nothing of it is done, and what is allocated
// is not touched: it may be far more than the machine has.
#pragma once

#include <cstddef>
#include <vector>

namespace stand_in {

bool is_watched();

// Tells the watcher of something that moves so many bytes, and makes an array of some shape. Returns CUDA's status.
int tell(const char *what, std::size_t bytes, const std::vector<std::ptrdiff_t> &shape = {});

}  // namespace stand_in
