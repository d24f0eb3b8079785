// What a GPU is given to do, and in what order it may be done.
//
// An operation knows which others come before it. None is done before the host waits for it, or for one that comes
// after it: as late as the order allows. With EMULATED_STREAMS=SEED others that could be done by then are done as well,
// drawn by that seed: no two operations that nothing orders may count on one order.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <vector>

namespace stand_in {

struct Operation;
using Operations = std::vector<std::shared_ptr<Operation>>;

struct Operation {
    // Returns whether it is done: if not, it waits for another process, and is called again.
    std::function<bool()> work;
    Operations before;
    bool done = false;
};

struct Stream;

// What is recorded between the beginning of a capture and its end, by the first stream and by those that join it.
struct Capture {
    Stream *origin;
    int mode;
    bool is_valid = true, is_open = true;
    Operations operations;
    std::set<Stream *> streams;
};

struct Stream {
    bool is_blocking;
    int device, priority = 0;
    // All that was submitted comes before these, or is one of them; what comes next comes after them.
    Operations last;
    // While it captures: the capture, and the same of what it has recorded.
    std::shared_ptr<Capture> capture;
    Operations last_captured;
};

struct Event {
    bool has_timing, was_recorded = false;
    Operations before;
    std::shared_ptr<Capture> capture;
    std::shared_ptr<double> milliseconds;
};

// What a graph does, each operation after those before it.
struct Graph {
    Operations operations;
    // The end of the last launch: a graph is launched after it.
    std::shared_ptr<Operation> launched;
};

// The current device's stream of an address, as CUDA has it: null stands for the legacy one. Null if there is none.
Stream *stream_at(void *address);
Stream *add_stream(bool is_blocking, int priority);
// What it was given will be done.
void remove_stream(Stream *stream);

// Adds an operation to a stream, or to what it captures. Returns CUDA's status.
int submit(Stream *stream, std::function<void()> work);
// The same with an operation that is called again until it is done.
int submit_until_done(Stream *stream, std::function<bool()> work);

// Each returns CUDA's status.
int record(Event &event, Stream *stream);
int wait(Stream *stream, Event &event);
int launch(Graph &graph, Stream *stream);
int begin_capture(Stream *stream, int mode);
int end_capture(Stream *stream, Graph **graph);

// Does all that comes before what comes next in a stream, for an event, or on all devices. Returns CUDA's status: where
// an operation could not be done, all that follow return what it was.
int finish(Stream *stream);
int finish(Event &event);
int finish_all();

// If this thread is doing an operation, lets some work wait for its end, and returns true: an operation that calls
// Python may collect garbage, and so give memory back. Meanwhile the thread neither does other operations nor waits.
bool postpone(std::function<void()> work);

// Does all that can be done without waiting for another process.
void do_what_can_be_done();

// Whether it is done. Without one that waits, something is done at each question, so that whoever asks on and on gets
// an end.
int is_done(const Operations &last, bool *done);

// Whether any stream captures in a way that forbids this thread what might break a capture; if so, it is broken.
bool breaks_a_capture();
// Whether any stream captures at all: who waits for the device then breaks it.
bool breaks_any_capture();
// Marks a capture as failed, and returns the status given.
int spoil(Stream *stream, int status);

// An operation could not be done: from now on this is every call's status.
void fail_for_good(int status);
int failure();

}  // namespace stand_in
