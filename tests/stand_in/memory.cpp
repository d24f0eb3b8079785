#include "memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "watching.hpp"

namespace stand_in {

thread_local int current_device = 0;

namespace {

// cudaMalloc's addresses are multiples of this, as far as what is allocated is.
constexpr std::size_t ALIGNMENT = 512, LEAST_ALIGNMENT = 16;
// As float32 and as bfloat16 these bytes are no numbers, as an integer they are none that would be an index.
constexpr int NO_NUMBER = 0x7F, HIGH_BYTE = 0xFF;

struct Allocation {
    std::size_t size, room_size;
    char *room;
    int device;
};

// None of these is ever destroyed: a thread may still be at work while the process ends.
std::mutex &guard = *new std::mutex;
auto &on_devices = *new std::map<std::uintptr_t, Allocation>, &page_locked = *new std::map<std::uintptr_t, Allocation>;

std::size_t page() {
    static const std::size_t size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return size;
}

std::size_t rounded_up(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

// Bytes 0x7F 0xFF by turns are no number in either byte order of 16 bits, nor in 32 or 64.
void spoil(char *begin, std::size_t size) {
    std::memset(begin, HIGH_BYTE, size);
    for (std::size_t i = 1; i < size; i += 2) begin[i] = NO_NUMBER;
}

// Maps memory whose end is followed by a page that cannot be touched.
void *map(std::map<std::uintptr_t, Allocation> &allocations, std::size_t size) {
    const std::size_t taken = rounded_up(size, size % ALIGNMENT == 0 ? ALIGNMENT : LEAST_ALIGNMENT);
    const std::size_t room_size = rounded_up(taken, page()) + page();
    void *room = mmap(nullptr, room_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return nullptr;
    char *last = static_cast<char *>(room) + room_size - page();
    mprotect(last, page(), PROT_NONE);
    char *begin = last - taken;
    if (!is_watched()) spoil(begin, size);
    std::lock_guard<std::mutex> held(guard);
    allocations[reinterpret_cast<std::uintptr_t>(begin)] = {size, room_size, static_cast<char *>(room), current_device};
    return begin;
}

// Keeps the addresses, which nobody gets again, and gives the memory back.
bool unmap(std::map<std::uintptr_t, Allocation> &allocations, void *begin) {
    std::lock_guard<std::mutex> held(guard);
    const auto found = allocations.find(reinterpret_cast<std::uintptr_t>(begin));
    if (found == allocations.end()) return false;
    const Allocation &freed = found->second;
    madvise(freed.room, freed.room_size, MADV_DONTNEED);
    mprotect(freed.room, freed.room_size, PROT_NONE);
    allocations.erase(found);
    return true;
}

const std::pair<const std::uintptr_t, Allocation> *holder(
    const std::map<std::uintptr_t, Allocation> &allocations, const void *address) {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return nullptr;
    --next;
    return at <= next->first + next->second.size ? &*next : nullptr;
}

const std::vector<int> &devices() {
    static const std::vector<int> visible = [] {
        const char *count = std::getenv("EMULATED_GPUS"), *chosen = std::getenv("CUDA_VISIBLE_DEVICES");
        const int there = count == nullptr ? 1 : std::atoi(count);
        std::vector<int> numbers;
        if (chosen == nullptr) {
            for (int i = 0; i < there; ++i) numbers.push_back(i);
            return numbers;
        }
        std::stringstream list(chosen);
        // As CUDA does, it takes those before the first that is none.
        for (std::string number; std::getline(list, number, ',');) {
            if (number.empty() || number.find_first_not_of("0123456789") != std::string::npos) break;
            if (std::atoi(number.c_str()) >= there) break;
            numbers.push_back(std::atoi(number.c_str()));
        }
        return numbers;
    }();
    return visible;
}

}  // namespace

int visible_devices() { return static_cast<int>(devices().size()); }

int number_in_machine(int device) { return devices().at(static_cast<std::size_t>(device)); }

std::size_t memory_bytes() {
    const char *limit = std::getenv("EMULATED_MEMORY");
    return limit == nullptr ? std::size_t{80} << 30 : std::strtoull(limit, nullptr, 10);
}

std::size_t used_bytes(int device) {
    std::lock_guard<std::mutex> held(guard);
    std::size_t used = 0;
    for (const auto &[begin, allocation] : on_devices) used += allocation.device == device ? allocation.size : 0;
    return used;
}

void *allocate(std::size_t size) {
    return used_bytes(current_device) + size > memory_bytes() ? nullptr : map(on_devices, size);
}

void *allocate_page_locked(std::size_t size) { return map(page_locked, size); }

bool release(void *begin) { return unmap(on_devices, begin); }

bool release_page_locked(void *begin) { return unmap(page_locked, begin); }

Place place_of(const void *address, int *device) {
    std::lock_guard<std::mutex> held(guard);
    if (const auto *found = holder(on_devices, address)) {
        if (device != nullptr) *device = found->second.device;
        return Place::device;
    }
    return holder(page_locked, address) == nullptr ? Place::unknown : Place::page_locked;
}

bool is_whole(const void *begin, std::size_t size) {
    std::lock_guard<std::mutex> held(guard);
    for (const auto *allocations : {&on_devices, &page_locked}) {
        if (const auto *found = holder(*allocations, begin))
            return reinterpret_cast<std::uintptr_t>(begin) + size <= found->first + found->second.size;
    }
    return true;
}

}  // namespace stand_in
