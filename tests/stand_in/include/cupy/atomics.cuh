// In the place of CuPy's header of this name. A thread runs until it waits for others: what it does between is atomic.
#pragma once

namespace emulation {

template <class Number, class Change>
Number exchange(Number *at, Change change) {
    const Number before = *at;
    *at = change(before);
    return before;
}

}  // namespace emulation

template <class Number>
Number atomicAdd(Number *at, Number more) {
    return emulation::exchange(at, [&](Number x) { return static_cast<Number>(x + more); });
}

template <class Number>
Number atomicMax(Number *at, Number other) {
    return emulation::exchange(at, [&](Number x) { return x < other ? other : x; });
}

template <class Number>
Number atomicMin(Number *at, Number other) {
    return emulation::exchange(at, [&](Number x) { return other < x ? other : x; });
}
