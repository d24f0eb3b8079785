// The functions of CUDA's runtime that CuPy calls. What is illegal has CUDA's status.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "memory.hpp"
#include "order.hpp"
#include "watching.hpp"

using namespace stand_in;

namespace {

thread_local cudaError_t last_error = cudaSuccess;
std::atomic<long> host_waits, graph_launches;

cudaError_t ended(int status) {
    const auto error = static_cast<cudaError_t>(status);
    if (error != cudaSuccess) last_error = error;
    return error;
}

// What a thread may not do while another stream's capture could be broken by it.
cudaError_t ended_unless_it_breaks_a_capture(int status) {
    return ended(breaks_a_capture() ? cudaErrorStreamCaptureUnsupported : status);
}

Event *event_of(cudaEvent_t event) { return reinterpret_cast<Event *>(event); }
Graph *graph_of(void *graph) { return static_cast<Graph *>(graph); }

// An operation that uses memory it has not got ends all that comes after it.
std::function<void()> copying(void *target, const void *source, std::size_t size) {
    return [=] {
        if (!is_whole(target, size) || !is_whole(source, size)) return fail_for_good(cudaErrorIllegalAddress);
        std::memmove(target, source, size);
    };
}

int tell_of_copy(const void *target, const void *source, std::size_t size) {
    if (place_of(target) != Place::device) return tell("copy to the host", size);
    return place_of(source) == Place::device ? tell("copy", 2 * size) : tell("copy from the host", size);
}

cudaError_t set(void *target, int value, std::size_t size, void *stream) {
    Stream *on = stream_at(stream);
    if (on == nullptr) return ended(cudaErrorInvalidResourceHandle);
    if (place_of(target) == Place::unknown || !is_whole(target, size)) return ended(cudaErrorInvalidValue);
    if (is_watched()) return ended(tell("memset", size));
    return ended(submit(on, [=] {
        if (place_of(target) == Place::unknown) return fail_for_good(cudaErrorIllegalAddress);
        std::memset(target, value, size);
    }));
}

cudaError_t waited(int status) {
    ++host_waits;
    return ended(status);
}

struct Name {
    const char *name, *text;
};

const std::map<int, Name> NAMES = {
    {cudaSuccess, {"cudaSuccess", "no error"}},
    {cudaErrorInvalidValue, {"cudaErrorInvalidValue", "invalid argument"}},
    {cudaErrorMemoryAllocation, {"cudaErrorMemoryAllocation", "out of memory"}},
    {cudaErrorNoDevice, {"cudaErrorNoDevice", "no CUDA-capable device is detected"}},
    {cudaErrorInvalidDevice, {"cudaErrorInvalidDevice", "invalid device ordinal"}},
    {cudaErrorInvalidResourceHandle, {"cudaErrorInvalidResourceHandle", "invalid resource handle"}},
    {cudaErrorIllegalState, {"cudaErrorIllegalState", "the operation cannot be performed in the present state"}},
    {cudaErrorNotReady, {"cudaErrorNotReady", "device not ready"}},
    {cudaErrorIllegalAddress, {"cudaErrorIllegalAddress", "an illegal memory access was encountered"}},
    {cudaErrorLaunchFailure, {"cudaErrorLaunchFailure", "unspecified launch failure"}},
    {cudaErrorPeerAccessUnsupported, {"cudaErrorPeerAccessUnsupported", "peer access is not supported"}},
    {cudaErrorStreamCaptureUnsupported,
     {"cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"}},
    {cudaErrorStreamCaptureInvalidated,
     {"cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"}},
    {cudaErrorStreamCaptureMerge,
     {"cudaErrorStreamCaptureMerge", "operation would result in a merge of separate capture sequences"}},
    {cudaErrorStreamCaptureUnmatched,
     {"cudaErrorStreamCaptureUnmatched", "capture was not ended in the same stream as it began"}},
    {cudaErrorStreamCaptureUnjoined,
     {"cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"}},
    {cudaErrorStreamCaptureIsolation,
     {"cudaErrorStreamCaptureIsolation", "dependency created on uncaptured work in another stream"}},
    {cudaErrorStreamCaptureImplicit,
     {"cudaErrorStreamCaptureImplicit",
      "operation would make the legacy stream depend on a capturing blocking stream"}},
    {cudaErrorCapturedEvent, {"cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"}},
};

const Name &name_of(cudaError_t error) {
    static const Name unknown{"cudaErrorUnknown", "an error that the stand-in has no words for"};
    const auto found = NAMES.find(error);
    return found == NAMES.end() ? unknown : found->second;
}

// An H200, as far as anybody asks.
const std::map<int, int> ATTRIBUTES = {
    {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxBlockDimX, 1024},
    {cudaDevAttrMaxBlockDimY, 1024},
    {cudaDevAttrMaxBlockDimZ, 64},
    {cudaDevAttrMaxGridDimX, 2147483647},
    {cudaDevAttrMaxGridDimY, 65535},
    {cudaDevAttrMaxGridDimZ, 65535},
    {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
    {cudaDevAttrWarpSize, 32},
    {cudaDevAttrMultiProcessorCount, 132},
    {cudaDevAttrComputeCapabilityMajor, 9},
    {cudaDevAttrComputeCapabilityMinor, 0},
};

bool is_device(int device) { return device >= 0 && device < visible_devices(); }

}  // namespace

extern "C" {

// How often the host has waited for the device, and how many graphs were launched.
long stand_in_host_waits() { return host_waits; }
long stand_in_graph_launches() { return graph_launches; }

// Work that a library has given to a stream has failed.
void stand_in_fail() { fail_for_good(cudaErrorLaunchFailure); }

// Where a function that CuPy calls, and that is not here, leads to.
void stand_in_lacks(const char *name) {
    std::fprintf(stderr, "stand-in: CuPy has called %s, which the stand-in for CUDA has not\n", name);
    std::abort();
}

// Errors and versions.

const char *cudaGetErrorName(cudaError_t error) { return name_of(error).name; }
const char *cudaGetErrorString(cudaError_t error) { return name_of(error).text; }

cudaError_t cudaGetLastError() {
    const auto error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

// Devices.

cudaError_t cudaGetDeviceCount(int *count) {
    *count = visible_devices();
    return ended(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return ended(visible_devices() == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
    if (!is_device(device)) return ended(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (!is_device(device)) return ended(cudaErrorInvalidDevice);
    const auto found = ATTRIBUTES.find(attribute);
    *value = found == ATTRIBUTES.end() ? 0 : found->second;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (!is_device(device)) return ended(cudaErrorInvalidDevice);
    *properties = {};
    std::strcpy(properties->name, "Emulated GPU");
    std::snprintf(properties->uuid.bytes, sizeof properties->uuid.bytes, "stand-in %d", number_in_machine(device));
    properties->totalGlobalMem = memory_bytes();
    properties->major = ATTRIBUTES.at(cudaDevAttrComputeCapabilityMajor);
    properties->minor = ATTRIBUTES.at(cudaDevAttrComputeCapabilityMinor);
    properties->multiProcessorCount = ATTRIBUTES.at(cudaDevAttrMultiProcessorCount);
    properties->warpSize = ATTRIBUTES.at(cudaDevAttrWarpSize);
    properties->maxThreadsPerBlock = ATTRIBUTES.at(cudaDevAttrMaxThreadsPerBlock);
    properties->sharedMemPerBlock = 49152;
    properties->sharedMemPerBlockOptin = 232448;
    properties->pciBusID = number_in_machine(device) + 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    if (!is_device(device)) return ended(cudaErrorInvalidDevice);
    std::snprintf(id, static_cast<std::size_t>(length), "0000:%02X:00.0", number_in_machine(device) + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return ended(cudaErrorPeerAccessUnsupported); }

cudaError_t cudaDeviceSynchronize() {
    return waited(breaks_any_capture() ? cudaErrorStreamCaptureUnsupported : finish_all());
}

// Memory.

cudaError_t cudaMalloc(void **pointer, std::size_t size) {
    if (breaks_a_capture()) return ended(cudaErrorStreamCaptureUnsupported);
    *pointer = size == 0 ? nullptr : allocate(size);
    return ended(size != 0 && *pointer == nullptr ? cudaErrorMemoryAllocation : failure());
}

cudaError_t cudaFree(void *pointer) {
    if (pointer == nullptr) return ended(failure());
    if (breaks_a_capture()) return ended(cudaErrorStreamCaptureUnsupported);
    if (postpone([pointer] { cudaFree(pointer); })) return ended(failure());
    // The device may still use it.
    const int status = finish_all();
    if (!release(pointer)) {
        std::fprintf(stderr, "stand-in: cudaFree of %p, where nothing is allocated\n", pointer);
        return ended(cudaErrorInvalidValue);
    }
    return ended(status);
}

cudaError_t cudaHostAlloc(void **pointer, std::size_t size, unsigned) {
    *pointer = allocate_page_locked(size);
    return ended_unless_it_breaks_a_capture(*pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaFreeHost(void *pointer) {
    if (pointer == nullptr) return cudaSuccess;
    if (postpone([pointer] { cudaFreeHost(pointer); })) return ended(failure());
    finish_all();
    return ended_unless_it_breaks_a_capture(release_page_locked(pointer) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMemGetInfo(std::size_t *unused, std::size_t *total) {
    *total = memory_bytes();
    *unused = *total - std::min(*total, used_bytes(current_device));
    return ended(failure());
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
    *attributes = {};
    attributes->type = cudaMemoryTypeUnregistered;
    const Place place = place_of(pointer, &attributes->device);
    if (place == Place::unknown) return cudaSuccess;
    attributes->type = place == Place::device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->devicePointer = const_cast<void *>(pointer);
    attributes->hostPointer = place == Place::device ? nullptr : const_cast<void *>(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, std::size_t size, cudaMemcpyKind, cudaStream_t stream) {
    Stream *on = stream_at(stream);
    if (on == nullptr) return ended(cudaErrorInvalidResourceHandle);
    if (!is_whole(target, size) || !is_whole(source, size)) return ended(cudaErrorInvalidValue);
    const bool from_pageable = place_of(source) == Place::unknown, to_pageable = place_of(target) == Place::unknown;
    // A graph would go on using memory that the host may move.
    if (on->capture != nullptr && (from_pageable || to_pageable))
        return ended(spoil(on, cudaErrorStreamCaptureUnsupported));
    if (is_watched()) return ended(tell_of_copy(target, source, size));
    if (from_pageable) {
        // It has been read on return.
        const auto *bytes = static_cast<const char *>(source);
        const auto staged = std::make_shared<std::vector<char>>(bytes, bytes + size);
        return ended(submit(on, [=] { copying(target, staged->data(), staged->size())(); }));
    }
    const int status = submit(on, copying(target, source, size));
    return status == cudaSuccess && to_pageable ? waited(finish(on)) : ended(status);
}

cudaError_t cudaMemcpy(void *target, const void *source, std::size_t size, cudaMemcpyKind) {
    if (breaks_a_capture()) return ended(cudaErrorStreamCaptureUnsupported);
    if (is_watched()) return ended(tell_of_copy(target, source, size));
    Stream *legacy = stream_at(nullptr);
    const int status = submit(legacy, copying(target, source, size));
    return status == cudaSuccess ? waited(finish(legacy)) : ended(status);
}

cudaError_t cudaMemsetAsync(void *target, int value, std::size_t size, cudaStream_t stream) {
    return set(target, value, size, stream);
}

cudaError_t cudaMemset(void *target, int value, std::size_t size) { return set(target, value, size, nullptr); }

// Streams.

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = reinterpret_cast<cudaStream_t>(add_stream((flags & cudaStreamNonBlocking) == 0, priority));
    return ended(failure());
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
    const Stream *on = stream_at(stream);
    if (on == nullptr) return ended(cudaErrorInvalidResourceHandle);
    *flags = on->is_blocking ? cudaStreamDefault : cudaStreamNonBlocking;
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    const Stream *on = stream_at(stream);
    if (on == nullptr) return ended(cudaErrorInvalidResourceHandle);
    *priority = on->priority;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Stream *on = stream_at(stream);
    if (on == nullptr || stream == nullptr) return ended(cudaErrorInvalidResourceHandle);
    remove_stream(on);
    return ended(failure());
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Stream *on = stream_at(stream);
    return on == nullptr ? ended(cudaErrorInvalidResourceHandle) : waited(finish(on));
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Stream *on = stream_at(stream);
    if (on == nullptr) return ended(cudaErrorInvalidResourceHandle);
    if (on->capture != nullptr) return ended(spoil(on, cudaErrorStreamCaptureUnsupported));
    bool done = false;
    const int status = is_done(on->last, &done);
    return status != cudaSuccess ? ended(status) : done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    Stream *on = stream_at(stream);
    return ended(on == nullptr ? static_cast<int>(cudaErrorInvalidResourceHandle) : wait(on, *event_of(event)));
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    Stream *on = stream_at(stream);
    return ended(on == nullptr ? static_cast<int>(cudaErrorInvalidResourceHandle) : submit(on, [=] { function(data); }));
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    Stream *on = stream_at(stream);
    return ended(on == nullptr ? static_cast<int>(cudaErrorInvalidResourceHandle) : begin_capture(on, mode));
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Stream *on = stream_at(stream);
    if (on == nullptr) return ended(cudaErrorInvalidResourceHandle);
    return ended(end_capture(on, reinterpret_cast<Graph **>(graph)));
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    const Stream *on = stream_at(stream);
    if (on == nullptr) return ended(cudaErrorInvalidResourceHandle);
    *status = on->capture == nullptr    ? cudaStreamCaptureStatusNone
              : on->capture->is_valid   ? cudaStreamCaptureStatusActive
                                        : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}

// Events.

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = reinterpret_cast<cudaEvent_t>(new Event{(flags & cudaEventDisableTiming) == 0, false, {}, nullptr, nullptr});
    return ended(failure());
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event_of(event);
    return ended(failure());
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Stream *on = stream_at(stream);
    return ended(on == nullptr ? static_cast<int>(cudaErrorInvalidResourceHandle) : record(*event_of(event), on));
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    Event &asked = *event_of(event);
    if (asked.capture != nullptr) return ended(finish(asked));
    bool done = false;
    const int status = is_done(asked.before, &done);
    return status != cudaSuccess ? ended(status) : done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return waited(finish(*event_of(event))); }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    for (const Event *event : {event_of(start), event_of(end)}) {
        if (event->capture != nullptr) return ended(cudaErrorCapturedEvent);
        if (event->milliseconds == nullptr) return ended(cudaErrorInvalidResourceHandle);
        for (const auto &operation : event->before)
            if (!operation->done) return ended(cudaErrorNotReady);
    }
    *milliseconds = static_cast<float>(*event_of(end)->milliseconds - *event_of(start)->milliseconds);
    return cudaSuccess;
}

// Graphs. What is instantiated is a graph as well.

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*graph_of(graph)));
    return ended(failure());
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return ended(failure()); }

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    Stream *on = stream_at(stream);
    if (on == nullptr) return ended(cudaErrorInvalidResourceHandle);
    ++graph_launches;
    return ended(launch(*graph_of(graph), on));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph_of(graph);
    return ended(failure());
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph_of(graph);
    return ended(failure());
}

}  // extern "C"
