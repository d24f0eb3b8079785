// The functions of CUDA's driver that CuPy calls: modules, and how their kernels are launched.
//
// A module is a shared library, made by what stands in for NVRTC: for each kernel a function run_NAME, and what its
// parameters are. Or it is a cubin, made by NVRTC, whose kernels are launched, and do nothing.
#include <cuda.h>
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "order.hpp"
#include "parameters.hpp"
#include "watching.hpp"

// Of emulation.cpp.
namespace emulation {
void choose_order();
}

using namespace stand_in;

namespace {

constexpr unsigned MOST_THREADS = 1024, MOST_BLOCKS_ASIDE = 65535, MOST_SHARED = 232448;

std::atomic<long> kernel_launches;

using Run = void (*)(const unsigned *shape, void **arguments);
using Parameters = const Parameter *(*)();

struct Kernel {
    std::string name;
    Run run = nullptr;
    // One of no size is behind the last.
    const Parameter *parameters = nullptr;
};

struct Module {
    void *library = nullptr;
    std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

// Section headers are the last of what the linker writes.
std::size_t size_of(const Elf64_Ehdr &header) {
    return header.e_shoff + std::size_t{header.e_shnum} * header.e_shentsize;
}

// Loads a library out of memory. The loader knows a library by its name, and this one has a name of its own.
void *load(const void *image, std::size_t size) {
    const int file = memfd_create("kernels", 0);
    if (file < 0 || write(file, image, size) != static_cast<ssize_t>(size)) return nullptr;
    char path[64];
    std::snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    // The file stays open: another one of its number would be taken for it.
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) std::fprintf(stderr, "stand-in: %s\n", dlerror());
    return library;
}

// What a kernel is given, kept until it has run.
struct Arguments {
    std::vector<std::vector<char>> values;
    std::vector<void *> pointers;

    Arguments(const Kernel &kernel, void **parameters) {
        for (const Parameter *each = kernel.parameters; each->size != 0; ++each, ++parameters) {
            const auto *bytes = static_cast<const char *>(*parameters);
            values.emplace_back(bytes, bytes + each->size);
        }
        for (auto &value : values) pointers.push_back(value.data());
    }
};

// Tells the watcher what a kernel of CuPy's moves at least: each array once, as far as the kernel's loop goes, which
// may be over less than a table that it looks things up in. What an array repeats lies there once. The last is made.
int tell_of(const Kernel &kernel, void **parameters) {
    std::ptrdiff_t steps = 0, bytes = 0;
    std::vector<std::pair<std::ptrdiff_t, std::ptrdiff_t>> arrays;
    std::vector<std::ptrdiff_t> shape;
    for (const Parameter *each = kernel.parameters; each != nullptr && each->size != 0; ++each, ++parameters) {
        const auto *words = static_cast<const std::ptrdiff_t *>(*parameters);
        if (each->kind == Parameter::indexer) steps = std::max(steps, words[0]);
        if (each->kind != Parameter::array) continue;
        // An address and the number of elements, then the shape, and then the steps from one to the next.
        const std::size_t dimensions = (each->size / sizeof *words - 2) / 2;
        shape.assign(words + 2, words + 2 + dimensions);
        std::ptrdiff_t count = 1;
        for (std::size_t i = 0; i < dimensions; ++i) count *= words[2 + dimensions + i] == 0 ? 1 : shape[i];
        arrays.emplace_back(count, each->element_size);
    }
    for (const auto &[count, size] : arrays) bytes += std::min(count, steps) * size;
    return tell(kernel.name.c_str(), static_cast<std::size_t>(bytes), shape);
}

}  // namespace

extern "C" {

long stand_in_kernel_launches() { return kernel_launches; }

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == CUDA_ERROR_NOT_FOUND       ? "CUDA_ERROR_NOT_FOUND"
            : error == CUDA_ERROR_INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE"
            : error == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
                                                : "CUDA_ERROR_OF_THE_RUNTIME";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    static thread_local char number[64];
    std::snprintf(number, sizeof number, "status %d", error);
    *text = error == CUDA_ERROR_NOT_FOUND       ? "named symbol not found"
            : error == CUDA_ERROR_INVALID_IMAGE ? "device kernel image is invalid"
            : error == CUDA_ERROR_INVALID_VALUE ? "invalid argument"
                                                : number;
    return CUDA_SUCCESS;
}

// There is a context, and one is as good as another.

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = reinterpret_cast<CUcontext>(&current_device);
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = current_device;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    Elf64_Ehdr header;
    std::memcpy(&header, image, sizeof header);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return CUDA_ERROR_INVALID_IMAGE;
    auto made = std::make_unique<Module>();
    if (header.e_machine != EM_CUDA && (made->library = load(image, size_of(header))) == nullptr)
        return CUDA_ERROR_INVALID_IMAGE;
    *module = reinterpret_cast<CUmodule>(made.release());
    return CUDA_SUCCESS;
}

// What is under way may use it, or graphs that it is a part of: it stays.
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    auto &own = *reinterpret_cast<Module *>(module);
    auto &kernel = own.kernels[name];
    if (kernel == nullptr) {
        kernel = std::make_unique<Kernel>();
        kernel->name = name;
        if (own.library != nullptr) {
            kernel->run = reinterpret_cast<Run>(dlsym(own.library, ("run_" + kernel->name).c_str()));
            const auto given = reinterpret_cast<Parameters>(dlsym(own.library, ("parameters_" + kernel->name).c_str()));
            if (kernel->run == nullptr || given == nullptr) {
                own.kernels.erase(name);
                return CUDA_ERROR_NOT_FOUND;
            }
            kernel->parameters = given();
        }
    }
    *function = reinterpret_cast<CUfunction>(kernel.get());
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters,
                        void **) {
    const auto &kernel = *reinterpret_cast<const Kernel *>(function);
    Stream *on = stream_at(stream);
    if (on == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    const unsigned threads = block_x * block_y * block_z;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > MOST_BLOCKS_ASIDE || grid_z > MOST_BLOCKS_ASIDE ||
        threads == 0 || threads > MOST_THREADS || shared_bytes > MOST_SHARED)
        return CUDA_ERROR_INVALID_VALUE;
    ++kernel_launches;
    if (is_watched()) return static_cast<CUresult>(tell_of(kernel, parameters));
    emulation::choose_order();
    if (kernel.run == nullptr) return static_cast<CUresult>(submit(on, [] {}));
    const std::vector<unsigned> shape{grid_x, grid_y, grid_z, block_x, block_y, block_z};
    const auto arguments = std::make_shared<Arguments>(kernel, parameters);
    return static_cast<CUresult>(
        submit(on, [run = kernel.run, shape, arguments] { run(shape.data(), arguments->pointers.data()); }));
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? static_cast<int>(MOST_THREADS) : 0;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction, int, std::size_t) {
    *blocks = 1;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction, CUoccupancyB2DSize, std::size_t, int) {
    *grid = 132;
    *block = 256;
    return CUDA_SUCCESS;
}

}  // extern "C"
