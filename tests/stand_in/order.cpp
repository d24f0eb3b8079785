#include "order.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "memory.hpp"
#include "watching.hpp"

namespace stand_in {

namespace {

// None of these is ever destroyed: a thread may still be at work while the process ends.

// Guards what is below, and all streams, events and operations; held for moments, never while an operation is done.
std::recursive_mutex &guard = *new std::recursive_mutex;
// Held by the thread that does operations: the GPU does one at a time.
std::recursive_mutex &at_work = *new std::recursive_mutex;

std::set<Stream *> &streams = *new std::set<Stream *>;
std::map<int, Stream *> &legacy_streams = *new std::map<int, Stream *>;
// Of streams that were removed: somebody who waits for the device waits for it.
Operations &left_behind = *new Operations;
std::atomic<int> status_for_good{cudaSuccess};

using Held = std::lock_guard<std::recursive_mutex>;

Stream *legacy_stream(int device) {
    Stream *&stream = legacy_streams[device];
    if (stream == nullptr) stream = new Stream{true, device, 0, {}, nullptr, {}};
    return stream;
}

bool is_legacy(const Stream *stream) { return legacy_stream(stream->device) == stream; }

// The legacy stream comes after all blocking streams of its device, and they come after it.
void add_those_it_orders_with(const Stream *stream, Operations &before) {
    if (!stream->is_blocking) return;
    const auto add = [&](const Stream *other) { before.insert(before.end(), other->last.begin(), other->last.end()); };
    if (!is_legacy(stream)) return add(legacy_stream(stream->device));
    for (const Stream *other : streams)
        if (other->is_blocking && other->device == stream->device) add(other);
}

Operations all_before(const Stream *stream) {
    Operations before = stream->last;
    add_those_it_orders_with(stream, before);
    return before;
}

// What draws the order, and whether it does.
std::mt19937 &chance = *new std::mt19937;
std::atomic<bool> is_drawn{false};

std::mt19937 *draws() { return is_drawn ? &chance : nullptr; }

// Begins anew where another seed is given. For threads that ask for something: others could read the environment while
// it changes.
void read_seed() {
    static auto &last = *new std::string;
    const char *given = std::getenv("EMULATED_STREAMS");
    const std::string seed = given == nullptr ? "" : given;
    Held held(guard);
    if (seed != last) chance.seed(static_cast<unsigned>(std::strtoul(seed.c_str(), nullptr, 10)));
    last = seed;
    is_drawn = !seed.empty();
}

// Of the operation that this thread does: what waits for its end.
thread_local bool works_here = false;
thread_local std::vector<std::function<void()>> postponed;

bool done_by(const std::function<bool()> &work) {
    works_here = true;
    const bool done = work();
    works_here = false;
    return done;
}

// Does an operation that nothing undone comes before, unless it has to wait for another rank. Returns whether it is done.
// Within another one nothing is done.
bool do_now(const std::shared_ptr<Operation> &operation) {
    if (operation->done) return true;
    if (works_here) return false;
    if (operation->work && status_for_good == cudaSuccess && !done_by(operation->work)) return false;
    {
        Held held(guard);
        operation->done = true;
        operation->work = nullptr;
        operation->before.clear();
    }
    for (const auto &work : std::exchange(postponed, {})) work();
    return true;
}

// The operations that come before another and are not done yet.
Operations undone(Operations before) {
    Held held(guard);
    before.erase(
        std::remove_if(before.begin(), before.end(), [](const auto &operation) { return operation->done; }), before.end());
    if (draws() != nullptr) std::shuffle(before.begin(), before.end(), *draws());
    return before;
}

Operations those_before(const std::shared_ptr<Operation> &operation) {
    Held held(guard);
    return undone(operation->before);
}

// Other threads may do something in between.
void do_all(Operations waiting) {
    if (works_here) return;
    while (!waiting.empty()) {
        {
            Held held(at_work);
            const auto next = waiting.back();
            const Operations before = those_before(next);
            if (!before.empty()) {
                waiting.insert(waiting.end(), before.begin(), before.end());
                continue;
            }
            if (do_now(next)) {
                waiting.pop_back();
                continue;
            }
        }
        std::this_thread::yield();
    }
}

Operations everything() {
    Held held(guard);
    Operations all = left_behind;
    for (const auto &[device, stream] : legacy_streams) all.insert(all.end(), stream->last.begin(), stream->last.end());
    for (const Stream *stream : streams) all.insert(all.end(), stream->last.begin(), stream->last.end());
    return all;
}

// Those of the undone that nothing undone comes before.
Operations ready(Operations waiting) {
    Operations found;
    std::unordered_set<const Operation *> seen;
    waiting = undone(waiting);
    while (!waiting.empty()) {
        const auto operation = waiting.back();
        waiting.pop_back();
        if (!seen.insert(operation.get()).second) continue;
        const Operations before = those_before(operation);
        if (before.empty()) found.push_back(operation);
        waiting.insert(waiting.end(), before.begin(), before.end());
    }
    return found;
}

// With an order that is drawn, something is done in between, or nothing.
void perhaps_do_something() {
    read_seed();
    if (draws() == nullptr) return;
    std::unique_lock<std::recursive_mutex> held(at_work, std::try_to_lock);
    while (held.owns_lock() && (*draws())() % 3 == 0) {
        const Operations possible = ready(everything());
        if (possible.empty()) return;
        do_now(possible[(*draws())() % possible.size()]);
    }
}

int append(Stream *stream, const std::shared_ptr<Operation> &operation) {
    Held held(guard);
    if (stream->capture != nullptr) {
        if (!stream->capture->is_valid) return cudaErrorStreamCaptureInvalidated;
        operation->before.insert(operation->before.end(), stream->last_captured.begin(), stream->last_captured.end());
        stream->last_captured = {operation};
        stream->capture->operations.push_back(operation);
        return cudaSuccess;
    }
    if (is_legacy(stream)) {
        for (Stream *other : streams)
            if (other->capture != nullptr && other->is_blocking) return spoil(other, cudaErrorStreamCaptureImplicit);
    }
    const Operations before = all_before(stream);
    operation->before.insert(operation->before.end(), before.begin(), before.end());
    stream->last = {operation};
    return cudaSuccess;
}

// All operations that come before some, and these.
std::unordered_set<const Operation *> ancestors(Operations last) {
    std::unordered_set<const Operation *> found;
    while (!last.empty()) {
        const auto operation = last.back();
        last.pop_back();
        if (found.insert(operation.get()).second)
            last.insert(last.end(), operation->before.begin(), operation->before.end());
    }
    return found;
}

bool is_joined(const Capture &capture) {
    const auto joined = ancestors(capture.origin->last_captured);
    return std::all_of(capture.operations.begin(), capture.operations.end(), [&](const auto &operation) {
        return joined.count(operation.get()) == 1;
    });
}

}  // namespace

Stream *stream_at(void *address) {
    Held held(guard);
    if (address == nullptr || address == cudaStreamLegacy) return legacy_stream(current_device);
    const auto found = streams.find(static_cast<Stream *>(address));
    return found == streams.end() ? nullptr : *found;
}

Stream *add_stream(bool is_blocking, int priority) {
    Held held(guard);
    auto *stream = new Stream{is_blocking, current_device, priority, {}, nullptr, {}};
    streams.insert(stream);
    return stream;
}

void remove_stream(Stream *stream) {
    Held held(guard);
    left_behind = undone(left_behind);
    left_behind.insert(left_behind.end(), stream->last.begin(), stream->last.end());
    streams.erase(stream);
    delete stream;
}

int submit(Stream *stream, std::function<void()> work) {
    if (is_watched()) return tell("?", 0);
    return submit_until_done(stream, [work = std::move(work)] {
        work();
        return true;
    });
}

int submit_until_done(Stream *stream, std::function<bool()> work) {
    if (failure() != cudaSuccess) return failure();
    auto operation = std::make_shared<Operation>();
    operation->work = std::move(work);
    const int status = append(stream, operation);
    if (status == cudaSuccess) perhaps_do_something();
    return status;
}

int record(Event &event, Stream *stream) {
    if (event.has_timing && stream->capture == nullptr) {
        auto milliseconds = std::make_shared<double>(0);
        const int status = submit_until_done(stream, [milliseconds] {
            const auto now = std::chrono::steady_clock::now().time_since_epoch();
            *milliseconds = std::chrono::duration<double, std::milli>(now).count();
            return true;
        });
        if (status != cudaSuccess) return status;
        event.milliseconds = milliseconds;
    }
    Held held(guard);
    if (stream->capture != nullptr && !stream->capture->is_valid) return cudaErrorStreamCaptureInvalidated;
    event.was_recorded = true;
    event.capture = stream->capture;
    event.before = stream->capture == nullptr ? all_before(stream) : stream->last_captured;
    return cudaSuccess;
}

int wait(Stream *stream, Event &event) {
    Held held(guard);
    if (!event.was_recorded) return cudaSuccess;
    if (event.capture == nullptr) {
        if (stream->capture != nullptr) return spoil(stream, cudaErrorStreamCaptureIsolation);
        stream->last.insert(stream->last.end(), event.before.begin(), event.before.end());
        return cudaSuccess;
    }
    if (!event.capture->is_open) return spoil(stream, cudaErrorCapturedEvent);
    if (is_legacy(stream)) return spoil(event.capture->origin, cudaErrorStreamCaptureImplicit);
    if (stream->capture == nullptr) {
        stream->capture = event.capture;
        stream->last_captured.clear();
        stream->capture->streams.insert(stream);
    } else if (stream->capture != event.capture) {
        spoil(stream, cudaErrorStreamCaptureMerge);
        return spoil(event.capture->origin, cudaErrorStreamCaptureMerge);
    }
    stream->last_captured.insert(stream->last_captured.end(), event.before.begin(), event.before.end());
    return cudaSuccess;
}

int launch(Graph &graph, Stream *stream) {
    if (failure() != cudaSuccess) return failure();
    auto begin = std::make_shared<Operation>(), end = std::make_shared<Operation>();
    Held held(guard);
    if (graph.launched != nullptr) begin->before.push_back(graph.launched);
    int status = append(stream, begin);
    if (status != cudaSuccess) return status;
    std::unordered_map<const Operation *, std::shared_ptr<Operation>> copies;
    for (const auto &operation : graph.operations) {
        auto copy = std::make_shared<Operation>(Operation{operation->work, {begin}, false});
        for (const auto &before : operation->before) copy->before.push_back(copies.at(before.get()));
        copies[operation.get()] = copy;
        end->before.push_back(copy);
        if (stream->capture != nullptr) stream->capture->operations.push_back(copy);
    }
    if (stream->capture == nullptr) graph.launched = end;
    status = append(stream, end);
    if (status == cudaSuccess) perhaps_do_something();
    return status;
}

int begin_capture(Stream *stream, int mode) {
    Held held(guard);
    if (is_legacy(stream)) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture != nullptr) return cudaErrorIllegalState;
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->capture->streams = {stream};
    stream->last_captured.clear();
    return cudaSuccess;
}

int end_capture(Stream *stream, Graph **graph) {
    Held held(guard);
    const auto capture = stream->capture;
    *graph = nullptr;
    if (capture == nullptr) return cudaErrorIllegalState;
    if (capture->origin != stream) return spoil(stream, cudaErrorStreamCaptureUnmatched);
    const bool joined = is_joined(*capture);
    capture->is_open = false;
    for (Stream *each : capture->streams) {
        each->capture = nullptr;
        each->last_captured.clear();
    }
    if (!capture->is_valid) return cudaErrorStreamCaptureInvalidated;
    if (!joined) return cudaErrorStreamCaptureUnjoined;
    *graph = new Graph{capture->operations, nullptr};
    return cudaSuccess;
}

int finish(Stream *stream) {
    Operations last;
    {
        Held held(guard);
        if (stream->capture != nullptr) return spoil(stream, cudaErrorStreamCaptureUnsupported);
        if (is_legacy(stream)) {
            for (Stream *other : streams)
                if (other->capture != nullptr && other->is_blocking) return spoil(other, cudaErrorStreamCaptureImplicit);
        }
        last = all_before(stream);
    }
    do_all(last);
    return failure();
}

int finish(Event &event) {
    if (event.capture != nullptr) {
        if (event.capture->is_open) spoil(event.capture->origin, cudaErrorCapturedEvent);
        return cudaErrorCapturedEvent;
    }
    do_all(event.before);
    return failure();
}

int finish_all() {
    do_all(everything());
    return failure();
}

void do_what_can_be_done() {
    for (bool did_something = true; did_something;) {
        did_something = false;
        Held held(at_work);
        for (const auto &operation : ready(everything())) did_something |= do_now(operation);
    }
}

int is_done(const Operations &last, bool *done) {
    std::unique_lock<std::recursive_mutex> held(at_work, std::try_to_lock);
    const Operations possible = held.owns_lock() ? ready(last) : Operations{};
    if (!possible.empty()) do_now(possible.front());
    *done = undone(last).empty();
    return failure();
}

bool breaks_a_capture() {
    Held held(guard);
    bool broken = false;
    for (Stream *stream : streams) {
        if (stream->capture == nullptr || stream->capture->mode == cudaStreamCaptureModeRelaxed) continue;
        spoil(stream, cudaErrorStreamCaptureUnsupported);
        broken = true;
    }
    return broken;
}

bool breaks_any_capture() {
    Held held(guard);
    bool broken = false;
    for (Stream *stream : streams) {
        broken |= stream->capture != nullptr;
        spoil(stream, cudaErrorStreamCaptureUnsupported);
    }
    return broken;
}

bool postpone(std::function<void()> work) {
    if (works_here) postponed.push_back(std::move(work));
    return works_here;
}

int spoil(Stream *stream, int status) {
    Held held(guard);
    if (stream->capture != nullptr) stream->capture->is_valid = false;
    return status;
}

void fail_for_good(int status) { status_for_good = status; }

int failure() { return status_for_good; }

}  // namespace stand_in
