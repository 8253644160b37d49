// What the kernels share: vectors, and the way in which they declare their arguments.
//
// DERIVATION.md derives every formula; numbers in parentheses, such as (12), are its equations. The interface is plain
// C, the vectors are extensions of the compiler, and the threads are OpenMP's. Training uses float. The tests compare in
// double. bfloat16 is a format in which images are stored.
//
// The .cpp files are compiled apart: GCC inlines less in a large file, which made the cell 1.2 times as slow.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

namespace {

// Vectors of LANES numbers: as many floats as a register holds. Longer vectors are many times slower.

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef double doubles __attribute__((vector_size(8 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef int64_t longs __attribute__((vector_size(8 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

struct bfloat16 { uint16_t bits; };

template <class T> struct Traits;
template <> struct Traits<float> { using Number = float; using Vector = floats; using Integers = ints; };
template <> struct Traits<double> { using Number = double; using Vector = doubles; using Integers = longs; };
template <> struct Traits<bfloat16> { using Number = float; using Vector = floats; using Integers = ints; };

template <class V, class T> inline V cast(const T& from) {
    V to;
    static_assert(sizeof to == sizeof from, "same size");
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline floats load(const float* p) { floats v; std::memcpy(&v, p, sizeof v); return v; }
inline doubles load(const double* p) { doubles v; std::memcpy(&v, p, sizeof v); return v; }
inline floats load(const bfloat16* p) {
    halves v;
    std::memcpy(&v, p, sizeof v);
    return cast<floats>(__builtin_convertvector(v, words) << 16);
}
inline bytes load(const uint8_t* p) { bytes v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, floats v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, doubles v) { std::memcpy(p, &v, sizeof v); }
inline void store(bfloat16* p, floats v) {  // rounds to the nearest, ties to even
#ifdef __AVX512BF16__
    const __m256bh half = _mm512_cvtneps_pbh(cast<__m512>(v));
#else
    words bits = cast<words>(v);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits = v == v ? bits : words{} + 0x7fc0;
    const halves half = __builtin_convertvector(bits, halves);
#endif
    std::memcpy(p, &half, sizeof half);
}
inline void store(uint8_t* p, bytes v) { std::memcpy(p, &v, sizeof v); }

template <class V> inline auto sum(V v) {
    auto total = v[0];
    for (int lane = 1; lane < LANES; lane++) total += v[lane];
    return total;
}

constexpr int TILE = 4;  // rows of the register tiles of matrix products

template <class Int> inline Int padded(Int rows) { return (rows + TILE - 1) / TILE * TILE; }

// Arguments.
//
// Each kernel declares its arguments once, in a list of fields: type, name, shape. The list becomes a struct, whose
// fields the code below uses by name, and a text, which calls.py reads. calls.py takes the arguments by name, checks
// the type, shape and memory layout of each array, and fills the struct.
//
// T is the type of the numbers of the cell and of the first block: float or double. S is the type in which images are
// stored, also bfloat16, and N that of their arithmetic. `const T*` is an input. `T*` is an output, or an input where a
// comment says so. The names in a shape are sizes, which are fields too; `tasks` stands for any number of dimensions.
// Arrays are contiguous. Images are so in the order n, height, width, channels, which PyTorch calls channels-last.

#define DECLARE(type, name, shape) type name;
#define DESCRIBE(type, name, shape) #type ";" #name ";" shape "\n"
#define COUNT(type, name, shape) +1

// What calls.py calls: metalstm_cell_arguments, and so for each file, for the lists; then a kernel, with `bytes`
// per number (of T or S) and the struct of its arguments.

template <class Arguments> Arguments copy_of(const void* fields) {
    Arguments arguments;
    std::memcpy(&arguments, fields, sizeof arguments);
    return arguments;
}
template <template <class> class Arguments, class Run> void with_numbers(int bytes, const void* fields, Run run) {
    if (bytes == 4) run(copy_of<Arguments<float>>(fields));
    else run(copy_of<Arguments<double>>(fields));
}
template <template <class> class Arguments, class Run> void with_images(int bytes, const void* fields, Run run) {
    if (bytes == 2) run(copy_of<Arguments<bfloat16>>(fields));
    else with_numbers<Arguments>(bytes, fields, run);
}

}  // namespace
