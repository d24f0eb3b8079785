// What the driver knows of a kernel's parameters, as the kernel's own library says it.
#pragma once

#include <cstddef>

namespace stand_in {

struct Parameter {
    enum Kind { ordinary, array, indexer };
    // `element_size` is that of an array's elements.
    std::size_t size, element_size;
    Kind kind;
};

// Any type but those of CuPy's that kernels get arrays and loops as, which have template parameters of these kinds.
template <class Given>
struct Described {
    static constexpr Parameter value{sizeof(Given), 0, Parameter::ordinary};
};

template <template <class, int, bool, bool> class Array, class Element, int dimensions, bool ordered, bool is_small>
struct Described<Array<Element, dimensions, ordered, is_small>> {
    static constexpr Parameter value{sizeof(Array<Element, dimensions, ordered, is_small>), sizeof(Element), Parameter::array};
};

template <template <int, bool> class Indexer, int dimensions, bool is_small>
struct Described<Indexer<dimensions, is_small>> {
    static constexpr Parameter value{sizeof(Indexer<dimensions, is_small>), 0, Parameter::indexer};
};

}  // namespace stand_in
