// The functions of NCCL that CuPy calls, between processes of one machine, by shared memory.
//
// A collective is messages between ranks, and what is made of them at the end. Each pair of ranks has a box for each
// direction, through which messages go in pieces, in the order of the calls. No collective keeps the device busy while
// it waits for a rank: it is tried again. A rank that waits asks the others, where a thread of this file then does what
// could be done, as a GPU goes on while its host is elsewhere.
//
// EMULATED_NCCL_ERROR=STATUS:COUNT lets the asynchronous error of a communicator be this status once so many operations
// were started on it.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "memory.hpp"
#include "order.hpp"

using namespace stand_in;

namespace {

enum Status { success = 0, unhandled_cuda_error = 1, system_error = 2, invalid_argument = 4, invalid_usage = 5 };
enum Combination { sum, product, greatest, least, average };
enum Type { int8, uint8, int32, uint32, int64, uint64, float16, float32, float64, bfloat16 };

constexpr int MOST_RANKS = 16;
constexpr std::size_t BOX_BYTES = 32 * 1024;
constexpr std::size_t IDENTITY_BYTES = 128, NAME_BYTES = 32;
constexpr auto BETWEEN_QUESTIONS = std::chrono::microseconds(200);

struct Box {
    std::atomic<std::uint32_t> full;
    std::uint32_t size;
    std::array<char, BOX_BYTES> bytes;
};

// What the ranks share: it begins as zeros.
struct Shared {
    std::atomic<int> joined, left;
    std::array<std::atomic<int>, MOST_RANKS> cards;
    std::array<std::atomic<bool>, MOST_RANKS> asked;
    // From a rank to another one.
    std::array<std::array<Box, MOST_RANKS>, MOST_RANKS> boxes;
};

struct Communicator {
    int rank, size, device;
    Shared *shared;
    std::atomic<bool> is_given_up{false};
    std::atomic<long> started{0};
};

struct Message {
    bool goes_out;
    int peer;
    char *data;
    std::size_t size, done = 0;
};

// What one call asks for.
struct Call {
    Communicator *communicator;
    Stream *stream;
    std::vector<Message> messages;
    // What the others' parts come to, and what is made of them.
    std::shared_ptr<std::vector<char>> parts;
    std::function<void()> finish = [] {};
};

thread_local int groups = 0;
thread_local std::vector<Call> grouped;

// Never destroyed: the thread that answers lives to the end of the process.
std::mutex &guard = *new std::mutex;
std::vector<Communicator *> &communicators = *new std::vector<Communicator *>;

// Moves a piece of a message, if there is one. Returns whether there was.
bool move_piece(Communicator &own, Message &message) {
    auto &boxes = own.shared->boxes;
    const auto rank = static_cast<std::size_t>(own.rank), peer = static_cast<std::size_t>(message.peer);
    Box &box = message.goes_out ? boxes[rank][peer] : boxes[peer][rank];
    if ((box.full.load(std::memory_order_acquire) != 0) == message.goes_out) return false;
    char *at = message.data + message.done;
    if (message.goes_out) {
        box.size = static_cast<std::uint32_t>(std::min(BOX_BYTES, message.size - message.done));
        std::memcpy(box.bytes.data(), at, box.size);
    } else {
        std::memcpy(at, box.bytes.data(), std::min<std::size_t>(box.size, message.size - message.done));
    }
    message.done += box.size;
    box.full.store(message.goes_out ? 1 : 0, std::memory_order_release);
    return true;
}

// Moves what can be moved. Returns whether all has come, and all has gone.
bool exchange(Communicator &own, std::vector<Message> &messages) {
    bool moved = true, all_done = false;
    while (moved && !all_done) {
        moved = false;
        all_done = true;
        std::array<std::array<bool, MOST_RANKS>, 2> waits{};
        for (Message &message : messages) {
            // Between two ranks one message comes after the other.
            bool &others_wait = waits[message.goes_out ? 1 : 0][static_cast<std::size_t>(message.peer)];
            if (message.done >= message.size || others_wait) continue;
            moved |= move_piece(own, message);
            others_wait = message.done < message.size;
            all_done &= !others_wait;
        }
    }
    for (const Message &message : messages)
        if (message.done < message.size) own.shared->asked[static_cast<std::size_t>(message.peer)] = true;
    return all_done;
}

// Starts calls as one operation of their stream.
int start(std::vector<Call> calls) {
    Communicator &own = *calls.front().communicator;
    Stream *stream = calls.front().stream;
    own.started += static_cast<long>(calls.size());
    std::vector<Message> messages;
    for (const Call &call : calls) messages.insert(messages.end(), call.messages.begin(), call.messages.end());
    const auto under_way = std::make_shared<std::vector<Message>>(messages);
    const int status = submit_until_done(stream, [&own, calls, messages, under_way] {
        if (own.is_given_up) return true;
        if (!exchange(own, *under_way)) return false;
        for (const Call &call : calls) call.finish();
        // A graph may do it again.
        *under_way = messages;
        return true;
    });
    return status == 0 ? success : unhandled_cuda_error;
}

int add(Call call) {
    if (call.communicator->is_given_up) return invalid_usage;
    if (groups == 0) return start({std::move(call)});
    grouped.push_back(std::move(call));
    return success;
}

// Numbers of 16 bits are computed with as float.
float widened(std::uint16_t bits) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

std::uint16_t rounded(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7FC0 : static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

template <class Number>
Number combined(Number one, Number other, int how) {
    switch (how) {
        case product: return static_cast<Number>(one * other);
        case greatest: return one < other ? other : one;
        case least: return other < one ? other : one;
        default: return static_cast<Number>(one + other);
    }
}

// Writes what the operation makes of the ranks' parts, in their order, rounded once.
template <class Stored, class Number, class Widen, class Round>
void combine(const char *parts, int ranks, std::size_t count, int how, char *out, Widen widen, Round round) {
    const auto *stored = reinterpret_cast<const Stored *>(parts);
    auto *made = reinterpret_cast<Stored *>(out);
    for (std::size_t i = 0; i < count; ++i) {
        Number total = widen(stored[i]);
        for (std::size_t rank = 1; rank < static_cast<std::size_t>(ranks); ++rank)
            total = combined<Number>(total, widen(stored[rank * count + i]), how);
        made[i] = round(how == average ? static_cast<Number>(total / static_cast<Number>(ranks)) : total);
    }
}

template <class Number>
void combine_as(const char *parts, int ranks, std::size_t count, int how, char *out) {
    const auto same = [](Number x) { return x; };
    combine<Number, Number>(parts, ranks, count, how, out, same, same);
}

bool combine_any(int type, const char *parts, int ranks, std::size_t count, int how, char *out) {
    switch (type) {
        case int8: combine_as<std::int8_t>(parts, ranks, count, how, out); return true;
        case uint8: combine_as<std::uint8_t>(parts, ranks, count, how, out); return true;
        case int32: combine_as<std::int32_t>(parts, ranks, count, how, out); return true;
        case uint32: combine_as<std::uint32_t>(parts, ranks, count, how, out); return true;
        case int64: combine_as<std::int64_t>(parts, ranks, count, how, out); return true;
        case uint64: combine_as<std::uint64_t>(parts, ranks, count, how, out); return true;
        case float32: combine_as<float>(parts, ranks, count, how, out); return true;
        case float64: combine_as<double>(parts, ranks, count, how, out); return true;
        case bfloat16: combine<std::uint16_t, float>(parts, ranks, count, how, out, widened, rounded); return true;
        default: return false;
    }
}

std::size_t size_of(int type) {
    static const std::array<std::size_t, 10> sizes{1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return sizes.at(static_cast<std::size_t>(type));
}

bool is_on_device(const void *data, std::size_t size) {
    return size == 0 || (place_of(data) == Place::device && is_whole(data, size));
}

char *bytes(const void *data) { return static_cast<char *>(const_cast<void *>(data)); }

// A reduction: `from_each` is what each rank sends to those that `takes` says, of each its part of `count` elements.
struct Reduction {
    std::size_t count;
    int type, how;
    bool in_parts;
    int root;
};

constexpr int EVERYBODY = -1;

int reduce(const Reduction &asked, const void *source, void *target, Communicator *own, void *on) {
    const std::size_t part = asked.count * size_of(asked.type);
    const auto ranks = static_cast<std::size_t>(own->size), rank = static_cast<std::size_t>(own->rank);
    const bool takes = asked.root == EVERYBODY || asked.root == own->rank;
    if (!is_on_device(source, asked.in_parts ? part * ranks : part) || (takes && !is_on_device(target, part)))
        return invalid_argument;
    Call call{own, stream_at(on), {}, std::make_shared<std::vector<char>>(takes ? part * ranks : 0)};
    for (int peer = 0; peer < own->size; ++peer) {
        if (peer == own->rank) continue;
        const auto number = static_cast<std::size_t>(peer);
        if (asked.root == EVERYBODY || asked.root == peer)
            call.messages.push_back({true, peer, bytes(source) + (asked.in_parts ? number * part : 0), part});
        if (takes) call.messages.push_back({false, peer, call.parts->data() + number * part, part});
    }
    if (takes) {
        call.finish = [=, ranks = own->size, parts = call.parts, out = bytes(target)] {
            std::memcpy(parts->data() + rank * part, bytes(source) + (asked.in_parts ? rank * part : 0), part);
            if (!combine_any(asked.type, parts->data(), ranks, asked.count, asked.how, out)) std::abort();
        };
    }
    return add(std::move(call));
}

// Does what could be done, when another rank waits for this one.
void answer() {
    while (true) {
        std::this_thread::sleep_for(BETWEEN_QUESTIONS);
        bool asked = false;
        {
            std::lock_guard<std::mutex> held(guard);
            for (Communicator *own : communicators)
                asked |= own->shared->asked[static_cast<std::size_t>(own->rank)].exchange(false);
        }
        if (asked) do_what_can_be_done();
    }
}

Shared *shared_by(const char *identity) {
    char name[NAME_BYTES];
    std::memcpy(name, identity, sizeof name);
    const int file = shm_open(name, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return nullptr;
    void *found = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return found == MAP_FAILED ? nullptr : static_cast<Shared *>(found);
}

// Waits for all ranks, and returns whether each has a GPU of its own.
bool meet(Communicator &own, const char *name) {
    own.shared->cards[static_cast<std::size_t>(own.rank)] = number_in_machine(own.device);
    ++own.shared->joined;
    while (own.shared->joined < own.size) std::this_thread::sleep_for(BETWEEN_QUESTIONS);
    shm_unlink(name);
    for (int one = 0; one < own.size; ++one)
        for (int other = 0; other < one; ++other)
            if (own.shared->cards[static_cast<std::size_t>(one)] == own.shared->cards[static_cast<std::size_t>(other)])
                return false;
    return true;
}

}  // namespace

extern "C" {

struct ncclUniqueId {
    char internal[IDENTITY_BYTES];
};

const char *ncclGetErrorString(int status) {
    return status == success ? "no error" : "the stand-in for NCCL has refused it";
}

int ncclGetVersion(int *version) {
    *version = 22809;
    return success;
}

int ncclGetUniqueId(ncclUniqueId *identity) {
    std::random_device chance;
    std::memset(identity->internal, 0, sizeof identity->internal);
    std::snprintf(identity->internal, NAME_BYTES, "/stand-in-%08x%08x", chance(), chance());
    return success;
}

int ncclCommInitRankConfig(Communicator **communicator, int size, ncclUniqueId identity, int rank, void *) {
    if (size < 1 || size > MOST_RANKS || rank < 0 || rank >= size) return invalid_argument;
    Shared *shared = shared_by(identity.internal);
    if (shared == nullptr) return system_error;
    auto *made = new Communicator{rank, size, current_device, shared};
    if (!meet(*made, identity.internal)) return invalid_usage;
    std::lock_guard<std::mutex> held(guard);
    if (communicators.empty()) std::thread(answer).detach();
    communicators.push_back(made);
    *communicator = made;
    return success;
}

// Nobody asks for these, but CuPy's module cannot be loaded without them.
int ncclCommInitAll(Communicator **, int, const int *) { return invalid_usage; }
int ncclCommSplit(Communicator *, int, int, Communicator **, void *) { return invalid_usage; }

int ncclCommDestroy(Communicator *own) {
    own->is_given_up = true;
    return success;
}

int ncclCommAbort(Communicator *own) {
    own->is_given_up = true;
    return success;
}

int ncclCommGetAsyncError(Communicator *own, int *status) {
    const char *planted = std::getenv("EMULATED_NCCL_ERROR");
    int planted_status = 0;
    long count = 0;
    if (planted != nullptr) std::sscanf(planted, "%d:%ld", &planted_status, &count);
    *status = own->started >= count ? planted_status : 0;
    return success;
}

int ncclCommCuDevice(const Communicator *own, int *device) {
    *device = own->device;
    return success;
}

int ncclCommUserRank(const Communicator *own, int *rank) {
    *rank = own->rank;
    return success;
}

int ncclCommCount(const Communicator *own, int *size) {
    *size = own->size;
    return success;
}

int ncclGroupStart() {
    ++groups;
    return success;
}

int ncclGroupEnd() {
    if (groups == 0) return invalid_usage;
    if (--groups > 0) return success;
    std::map<std::pair<Communicator *, Stream *>, std::vector<Call>> together;
    for (Call &call : grouped) together[{call.communicator, call.stream}].push_back(std::move(call));
    grouped.clear();
    int status = success;
    for (auto &[where, calls] : together) status = std::max(status, start(std::move(calls)));
    return status;
}

int ncclAllReduce(const void *source, void *target, std::size_t count, int type, int how, Communicator *own, void *on) {
    return reduce({count, type, how, false, EVERYBODY}, source, target, own, on);
}

int ncclReduce(const void *source, void *target, std::size_t count, int type, int how, int root, Communicator *own,
               void *on) {
    return reduce({count, type, how, false, root}, source, target, own, on);
}

int ncclReduceScatter(const void *source, void *target, std::size_t count, int type, int how, Communicator *own,
                      void *on) {
    return reduce({count, type, how, true, EVERYBODY}, source, target, own, on);
}

int ncclAllGather(const void *source, void *target, std::size_t count, int type, Communicator *own, void *on) {
    const std::size_t part = count * size_of(type), all = part * static_cast<std::size_t>(own->size);
    if (!is_on_device(source, part) || !is_on_device(target, all)) return invalid_argument;
    Call call{own, stream_at(on), {}, nullptr};
    for (int peer = 0; peer < own->size; ++peer) {
        if (peer == own->rank) continue;
        call.messages.push_back({true, peer, bytes(source), part});
        call.messages.push_back({false, peer, bytes(target) + static_cast<std::size_t>(peer) * part, part});
    }
    call.finish = [=] { std::memmove(bytes(target) + static_cast<std::size_t>(own->rank) * part, source, part); };
    return add(std::move(call));
}

int ncclBroadcast(const void *source, void *target, std::size_t count, int type, int root, Communicator *own, void *on) {
    const std::size_t size = count * size_of(type);
    const bool is_root = own->rank == root;
    if ((is_root && !is_on_device(source, size)) || !is_on_device(target, size)) return invalid_argument;
    Call call{own, stream_at(on), {}, nullptr};
    if (!is_root) call.messages.push_back({false, root, bytes(target), size});
    for (int peer = 0; is_root && peer < own->size; ++peer)
        if (peer != root) call.messages.push_back({true, peer, bytes(source), size});
    if (is_root) call.finish = [=] { std::memmove(target, source, size); };
    return add(std::move(call));
}

int ncclBcast(void *data, std::size_t count, int type, int root, Communicator *own, void *on) {
    return ncclBroadcast(data, data, count, type, root, own, on);
}

int ncclSend(const void *source, std::size_t count, int type, int peer, Communicator *own, void *on) {
    const std::size_t size = count * size_of(type);
    if (!is_on_device(source, size)) return invalid_argument;
    return add({own, stream_at(on), {{true, peer, bytes(source), size}}, nullptr});
}

int ncclRecv(void *target, std::size_t count, int type, int peer, Communicator *own, void *on) {
    const std::size_t size = count * size_of(type);
    if (!is_on_device(target, size)) return invalid_argument;
    return add({own, stream_at(on), {{false, peer, bytes(target), size}}, nullptr});
}

}  // extern "C"
