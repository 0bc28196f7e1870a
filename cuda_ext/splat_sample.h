// The rule of a sample: whether it counts, and for how much. V is a number or a vector of them.
//
// There is no include guard. splat_math.h includes this file for numbers and splat_simd.h once more
// for every instruction set: GCC splits a vector operation that stands in a function compiled for a
// narrower set than its caller.

// Whether a sample lies in the support. `value` is exp(-sigma) and `rim` its smallest value there, or
// both are logarithms.
template <typename V>
SPLAT_HD auto inside(V value, V rim) {
    return value >= rim;
}

// A saturating weight is at most `limit`: 1, or 0 where the weight is given by its logarithm.
template <typename V>
SPLAT_HD V clamped(V weight, V limit) {
    return weight < limit ? weight : limit;
}

// Whether the clamp holds a weight, which then passes no gradient to the geometry and the opacity.
template <typename V>
SPLAT_HD auto held(V weight, V limit) {
    return weight > limit;
}
