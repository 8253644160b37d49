// The learner's blocks: convolution, batch normalization, max-pool and ReLU. The lanes of a vector are channels.

#include "images.h"

namespace {

#define BLOCK(FIELD) \
    FIELD(const S*, z, "channels_last: n, channels, height, width") \
    FIELD(const N*, gamma, "channels")

// The first block has its convolution's inputs in place of z.
#define FIRST(FIELD) \
    FIELD(int64_t, inputs, "") /* channels of x */ \
    FIELD(const T*, x, "channels_last: n, inputs, height, width") \
    FIELD(const N*, weight, "9*inputs, channels") \
    FIELD(const N*, bias, "channels") \
    FIELD(const N*, gamma, "channels")

#define BLOCK_FORWARD(FIELD) \
    FIELD(double, eps, "") \
    FIELD(const N*, beta, "channels") \
    FIELD(N*, mean, "channels") /* input if given */ \
    FIELD(N*, var, "channels")  /* input if given */ \
    FIELD(N*, rstd, "channels") \
    FIELD(S*, pooled, "channels_last: n, channels, height//pool, width//pool") \
    FIELD(uint8_t*, chosen, "channels_last: n, channels, height//pool, width//pool") \
    FIELD(S*, y, "channels_last: n, channels, height//pool, width//pool")

// What the forward pass saves beside its inputs.
#define SAVED(FIELD) \
    FIELD(const N*, mean, "channels") \
    FIELD(const N*, rstd, "channels") \
    FIELD(const S*, pooled, "channels_last: n, channels, height//pool, width//pool") \
    FIELD(const uint8_t*, chosen, "channels_last: n, channels, height//pool, width//pool")

#define BLOCK_BACKWARD(FIELD) \
    FIELD(const S*, d_y, "channels_last: n, channels, height//pool, width//pool") \
    FIELD(N*, d_mean, "channels") /* input unless given */ \
    FIELD(N*, d_var, "channels")  /* input unless given */ \
    FIELD(N*, d_gamma, "channels") \
    FIELD(N*, d_beta, "channels")

#define D_Z(FIELD) FIELD(S*, d_z, "channels_last: n, channels, height, width")
#define D_WEIGHT(FIELD) FIELD(N*, d_weight, "9*inputs, channels")

#define BLOCK_DOUBLE_BACKWARD(FIELD) \
    FIELD(const S*, d_y, "channels_last: n, channels, height//pool, width//pool") \
    FIELD(const N*, d_var, "channels") \
    FIELD(const S*, v_z, "channels_last: n, channels, height, width") \
    FIELD(const N*, v_gamma, "channels") \
    FIELD(const N*, v_beta, "channels") \
    FIELD(S*, v_y, "channels_last: n, channels, height//pool, width//pool") \
    FIELD(N*, v_mean, "channels") /* not written if given */ \
    FIELD(N*, v_var, "channels")  /* not written if given */ \
    FIELD(S*, g_z, "channels_last: n, channels, height, width") \
    FIELD(N*, g_gamma, "channels")

#define CONVOLVE(FIELD) \
    FIELD(int64_t, n, "") \
    FIELD(int64_t, height, "") \
    FIELD(int64_t, width, "") \
    FIELD(int64_t, inputs, "") /* channels of x */ \
    FIELD(int64_t, channels, "") /* of z */ \
    FIELD(const S*, x, "channels_last: n, inputs, height, width")

#define CONVOLVE_FORWARD(FIELD) \
    FIELD(const N*, weight, "inputs, 3, 3, channels") \
    FIELD(const N*, bias, "channels") \
    FIELD(S*, z, "channels_last: n, channels, height, width")

#define CONVOLVE_WEIGHT(FIELD) \
    FIELD(const S*, d_z, "channels_last: n, channels, height, width") \
    FIELD(N*, d_weight, "inputs, 3, 3, channels")

template <class S> struct BlockForward {
    using N = typename Traits<S>::Number;
    Images images;
    BLOCK(DECLARE)
    BLOCK_FORWARD(DECLARE)
};
template <class S> struct BlockBackward {
    using N = typename Traits<S>::Number;
    Images images;
    BLOCK(DECLARE)
    SAVED(DECLARE)
    BLOCK_BACKWARD(DECLARE)
    D_Z(DECLARE)
};
template <class S> struct BlockDoubleBackward {
    using N = typename Traits<S>::Number;
    Images images;
    BLOCK(DECLARE)
    SAVED(DECLARE)
    BLOCK_DOUBLE_BACKWARD(DECLARE)
};
template <class T> struct FirstForward {
    using S = T;
    using N = T;
    Images images;
    FIRST(DECLARE)
    BLOCK_FORWARD(DECLARE)
};
template <class T> struct FirstBackward {
    using S = T;
    using N = T;
    Images images;
    FIRST(DECLARE)
    SAVED(DECLARE)
    BLOCK_BACKWARD(DECLARE)
    D_WEIGHT(DECLARE)
};
template <class S> struct Convolve {
    using N = typename Traits<S>::Number;
    CONVOLVE(DECLARE)
};
template <class S> struct ConvolveForward {
    using N = typename Traits<S>::Number;
    Convolve<S> images;
    CONVOLVE_FORWARD(DECLARE)
};
template <class S> struct ConvolveWeight {
    using N = typename Traits<S>::Number;
    Convolve<S> images;
    CONVOLVE_WEIGHT(DECLARE)
};

const char ARGUMENTS[] =
    "block_forward\n" IMAGES(DESCRIBE) BLOCK(DESCRIBE) BLOCK_FORWARD(DESCRIBE)
    "block_backward\n" IMAGES(DESCRIBE) BLOCK(DESCRIBE) SAVED(DESCRIBE) BLOCK_BACKWARD(DESCRIBE) D_Z(DESCRIBE)
    "block_double_backward\n" IMAGES(DESCRIBE) BLOCK(DESCRIBE) SAVED(DESCRIBE) BLOCK_DOUBLE_BACKWARD(DESCRIBE)
    "first_forward\n" IMAGES(DESCRIBE) FIRST(DESCRIBE) BLOCK_FORWARD(DESCRIBE)
    "first_backward\n" IMAGES(DESCRIBE) FIRST(DESCRIBE) SAVED(DESCRIBE) BLOCK_BACKWARD(DESCRIBE) D_WEIGHT(DESCRIBE)
    "convolve\n" CONVOLVE(DESCRIBE) CONVOLVE_FORWARD(DESCRIBE)
    "convolve_weight\n" CONVOLVE(DESCRIBE) CONVOLVE_WEIGHT(DESCRIBE);

// calls.py writes every field in 8 bytes.
static_assert(sizeof(BlockForward<float>) == 8 * (0 IMAGES(COUNT) BLOCK(COUNT) BLOCK_FORWARD(COUNT)), "no gaps");
static_assert(
    sizeof(BlockBackward<float>) == 8 * (0 IMAGES(COUNT) BLOCK(COUNT) SAVED(COUNT) BLOCK_BACKWARD(COUNT) D_Z(COUNT)),
    "no gaps"
);
static_assert(
    sizeof(BlockDoubleBackward<float>) == 8 * (0 IMAGES(COUNT) BLOCK(COUNT) SAVED(COUNT) BLOCK_DOUBLE_BACKWARD(COUNT)),
    "no gaps"
);
static_assert(sizeof(FirstForward<float>) == 8 * (0 IMAGES(COUNT) FIRST(COUNT) BLOCK_FORWARD(COUNT)), "no gaps");
static_assert(
    sizeof(FirstBackward<float>)
        == 8 * (0 IMAGES(COUNT) FIRST(COUNT) SAVED(COUNT) BLOCK_BACKWARD(COUNT) D_WEIGHT(COUNT)),
    "no gaps"
);
static_assert(sizeof(ConvolveForward<float>) == 8 * (0 CONVOLVE(COUNT) CONVOLVE_FORWARD(COUNT)), "no gaps");
static_assert(sizeof(ConvolveWeight<float>) == 8 * (0 CONVOLVE(COUNT) CONVOLVE_WEIGHT(COUNT)), "no gaps");

// Batch normalization, max-pool over windows of SIDE x SIDE pixels, ReLU. SIDE is 2, or 1 for no max-pool.
//
// Pooling comes first, (23). `pooled` is the pixel that was chosen of each window, normalized. `chosen` is its number
// in the window, plus DEAD if the ReLU made it 0.

constexpr uint8_t DEAD = 4;

// The chosen pixel of a window, (23), and its number.
template <int SIDE, class S, class V, class I>
inline void choose(const S* z, const int64_t* pixels, V sign, V& taken, I& which) {
    taken = load(z + pixels[0]);
    which = I{};
    for (int k = 1; k < SIDE * SIDE; k++) {
        const V other = load(z + pixels[k]);
        const I more = sign * other > sign * taken;
        taken = more ? other : taken;
        which = more ? I{} + k : which;
    }
}
template <class V> inline V sign_of(V gamma) { return gamma > 0 ? V{} + 1 : gamma < 0 ? V{} - 1 : V{}; }

// (24), for the LANES channels from c on: a function of the offset, the chosen pixels, and their numbers.
template <class V, class I, class Args> auto finish(const Args& args, int64_t c) {
    const V mean = load(args.mean + c), rstd = load(args.rstd + c);
    const V gamma = load(args.gamma + c), beta = load(args.beta + c);
    return [=, &args](int64_t to, V taken, I which) {
        const V pooled = (taken - mean) * rstd, out = gamma * pooled + beta;
        const I dead = out <= 0;
        store(args.y + to, dead ? V{} : out);
        store(args.pooled + to, pooled);
        store(args.chosen + to, __builtin_convertvector(dead ? which + DEAD : which, bytes));
    };
}

template <class Args> void write_rstd(const Args& args) {
    for (int64_t c = 0; c < args.images.channels; c++)
        args.rstd[c] = 1 / std::sqrt(args.var[c] + decltype(*args.rstd + 0)(args.eps));
}

template <int SIDE, class S> void block_forward(const BlockForward<S>& args, int threads) {
    using V = typename Traits<S>::Vector;
    using I = typename Traits<S>::Integers;
    const Images& images = args.images;
    const int64_t C = images.channels, pixels = images.pixels(), rows = images.rows();
    if (!images.given) {
        std::vector<Moments> parts(threads, Moments(C));
        #pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t first = 0; first < pixels; first += CHUNK)
            parts[omp_get_thread_num()].add(args.z + first * C, std::min(CHUNK, pixels - first));
        Moments::join(parts);
        parts[0].write(args.mean, args.var);
    }
    write_rstd(args);
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        visit<SIDE>(images, row, row + 1, [&](int64_t c) {
            return std::make_pair([&, sign = sign_of(load(args.gamma + c)), finished = finish<V, I>(args, c)](
                const int64_t* pixels, int64_t to
            ) {
                V taken;
                I which;
                choose<SIDE>(args.z, pixels, sign, taken, which);
                finished(to, taken, which);
            }, nothing);
        });
}

// d_z = scale d - constant - slope (z - mean), (31)
template <class N> struct Line { std::vector<N> scale, constant, slope; };

// The line, and the gradients that are sums.
template <class S, class Args, class N = typename Traits<S>::Number> Line<N> line_of(const Args& args, int threads) {
    using V = typename Traits<S>::Vector;
    using I = typename Traits<S>::Integers;
    const Images& images = args.images;
    const int64_t C = images.channels, rows = images.rows(), row_size = images.width / images.pool * C;
    const std::vector<double> sums = summed(2 * C, rows, threads, [&](int64_t begin, int64_t end, double* to) {
        for (int64_t row = begin; row < end; row++)
            for (int64_t c = 0; c < C; c += LANES) {
                V total = {}, with_pooled = {};
                for (int64_t at = row * row_size + c; at < (row + 1) * row_size; at += C) {
                    const V d = __builtin_convertvector(load(args.chosen + at), I) < DEAD ? load(args.d_y + at) : V{};
                    total += d;
                    with_pooled += d * load(args.pooled + at);
                }
                add(to + c, total);
                add(to + C + c, with_pooled);
            }
    });
    Line<N> line{std::vector<N>(C), std::vector<N>(C), std::vector<N>(C)};
    for (int64_t c = 0; c < C; c++) {
        const N d = sums[c], d_pooled = sums[C + c], pixels = images.pixels(), scale = args.gamma[c] * args.rstd[c];
        line.scale[c] = scale;
        args.d_beta[c] = d;  // (26)
        args.d_gamma[c] = d_pooled;
        if (images.given) {
            args.d_mean[c] = -scale * d;  // (28)
            args.d_var[c] = -scale * args.rstd[c] * d_pooled / 2;
        } else {
            line.constant[c] = (scale * d - args.d_mean[c]) / pixels;
            line.slope[c] = (scale * args.rstd[c] * d_pooled - 2 * args.d_var[c]) / pixels;
        }
    }
    return line;
}

// d_z of a row of windows, whose pooled pixels begin at `first`; it may be written over z.
template <int SIDE, class Args, class N, class S>
void put_d_z(
    const Args& args, const Line<N>& line, const Images& images, int64_t row, int64_t first, const S* z, S* d_z
) {
    using V = typename Traits<N>::Vector;
    using I = typename Traits<N>::Integers;
    visit<SIDE>(images, row, row + 1, [&](int64_t c) {
        const V mean = load(args.mean + c), scale = load(&line.scale[c]);
        const auto base = [=, slope = load(&line.slope[c]), constant = load(&line.constant[c])](int64_t pixel) {
            return (mean - load(z + pixel)) * slope - constant;
        };
        return std::make_pair([=, &args](const int64_t* pixels, int64_t from) {
            const I which = __builtin_convertvector(load(args.chosen + first + from), I);
            const V d = scale * load(args.d_y + first + from);
            for (int k = 0; k < SIDE * SIDE; k++) store(d_z + pixels[k], base(pixels[k]) + (which == k ? d : V{}));
        }, [=](int64_t pixel) { store(d_z + pixel, base(pixel)); });
    });
}

template <int SIDE, class S> void block_backward(const BlockBackward<S>& args, int threads) {
    const auto line = line_of<S>(args, threads);
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < args.images.rows(); row++)
        put_d_z<SIDE>(args, line, args.images, row, 0, args.z, args.d_z);
}

template <int SIDE, class S> void block_double_backward(const BlockDoubleBackward<S>& args, int threads) {
    using N = typename Traits<S>::Number;
    using V = typename Traits<S>::Vector;
    using I = typename Traits<S>::Integers;
    const Images& images = args.images;
    const int64_t C = images.channels, rows = images.rows();
    auto chosen = [](I which, const V* a) {
        V taken = {};
        for (int k = 0; k < SIDE * SIDE; k++) taken = (which & 3) == k ? a[k] : taken;
        return taken;
    };
    // Sums of d, d * normalized, v_z, v_z * (z - mean), v_z * d, for (34)
    const std::vector<double> sums = summed(5 * C, rows, threads, [&](int64_t begin, int64_t end, double* to) {
        visit<SIDE>(images, begin, end, [&](int64_t c) {
            const V mean = load(args.mean + c);
            return std::make_pair([=, &args](const int64_t* pixels, int64_t from) {
                const I which = __builtin_convertvector(load(args.chosen + from), I);
                const V d = which < DEAD ? load(args.d_y + from) : V{};
                V all[SIDE * SIDE], total = {}, product = {};
                for (int k = 0; k < SIDE * SIDE; k++) {
                    all[k] = load(args.v_z + pixels[k]);
                    total += all[k];
                    product += all[k] * (load(args.z + pixels[k]) - mean);
                }
                add(to + c, d);
                add(to + C + c, d * load(args.pooled + from));
                add(to + 2 * C + c, total);
                add(to + 3 * C + c, product);
                add(to + 4 * C + c, d * chosen(which, all));
            }, [=, &args](int64_t pixel) {
                add(to + 2 * C + c, load(args.v_z + pixel));
                add(to + 3 * C + c, load(args.v_z + pixel) * (load(args.z + pixel) - mean));
            });
        });
    });
    // g_z = constant + slope (z - mean) + by_u v_z + by_d d, and v_y = at_d + scale v_z + at_pooled * pooled
    std::vector<N> constant(C), slope(C), by_u(C), by_d(C), scale(C), at_d(C), at_pooled(C);
    for (int64_t c = 0; c < C; c++) {
        const double M = images.pixels(), r = args.rstd[c], g = args.gamma[c];
        if (images.given) {  // (42) to (44)
            by_d[c] = args.v_gamma[c] * r;
            scale[c] = g * r;
            at_d[c] = args.v_beta[c];
            at_pooled[c] = args.v_gamma[c];
            args.g_gamma[c] = r * sums[4 * C + c];
            continue;
        }
        const double d = sums[c] / M, D = sums[C + c] / M, mean_u = sums[2 * C + c] / M, A = sums[3 * C + c] * r / M;
        const double E = sums[4 * C + c] / M - mean_u * d - A * D;  // (34)
        by_u[c] = 2 * args.d_var[c] / M - g * r * r * D;            // (41)
        by_d[c] = args.v_gamma[c] * r - g * r * r * A;
        constant[c] = -by_u[c] * mean_u - by_d[c] * d;
        slope[c] = r * (g * r * r * (D * A - E) - by_d[c] * D);
        scale[c] = g * r;  // (36)
        at_d[c] = args.v_beta[c] - g * r * mean_u;
        at_pooled[c] = args.v_gamma[c] - g * r * A;
        args.g_gamma[c] = r * M * E;  // (37)
        args.v_mean[c] = mean_u;      // (38)
        args.v_var[c] = 2 * A / r;
    }
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        visit<SIDE>(images, row, row + 1, [&](int64_t c) {
            const V mean = load(args.mean + c), factor = load(&scale[c]), from_d = load(&by_d[c]);
            const V with_d = load(&at_d[c]), with_pooled = load(&at_pooled[c]);
            const auto base = [=, &args, constant = load(&constant[c]), slope = load(&slope[c]), by_u = load(&by_u[c])](
                int64_t pixel, V u
            ) { return constant + (load(args.z + pixel) - mean) * slope + u * by_u; };
            return std::make_pair([=, &args](const int64_t* pixels, int64_t from) {
                const I which = __builtin_convertvector(load(args.chosen + from), I);
                const V d = from_d * load(args.d_y + from);
                V all[SIDE * SIDE];
                for (int k = 0; k < SIDE * SIDE; k++) {
                    all[k] = load(args.v_z + pixels[k]);
                    store(args.g_z + pixels[k], base(pixels[k], all[k]) + (which == k ? d : V{}));
                }
                const V out = with_d + factor * chosen(which, all) + with_pooled * load(args.pooled + from);
                store(args.v_y + from, which < DEAD ? out : V{});
            }, [=, &args](int64_t pixel) { store(args.g_z + pixel, base(pixel, load(args.v_z + pixel))); });
        });
}

// Convolutions, by Winograd's method: 36 products for 16 pixels of z, where the definition takes 144.
//
// z is made in tiles of 4x4 pixels, each from 6x6 pixels of x. Tiles and weights are evaluated at 6x6 points. At each
// point, convolving is a product of two matrices, tiles by inputs and inputs by channels.

constexpr int POINTS = 36;
constexpr int BATCH = 32;  // tiles at a time, few enough for the second-level cache
#ifdef __AVX512F__
constexpr int WIDEST = 4, TALL = 8;  // vectors in a row, and rows, of the register tiles of the matrix products
// Otherwise GCC loads a vector from memory anew for each use, and loads are the bottleneck.
inline void keep_in_register(floats& v) { asm("" : "+v"(v)); }
#else
constexpr int WIDEST = 2, TALL = TILE;
inline void keep_in_register(floats&) {}
#endif
inline void keep_in_register(doubles&) {}

// Linear maps to and from the points 0, a, -a, b, -b and infinity with a = sqrt(1/2) and b = sqrt(2): (57) and (58).
// FromZ and ToZ are transposes of each other, and so are FromWeight and ToWeight.
constexpr double A = 0.70710678118654752, B = 2 * A;

// The values at a, -a, b and -b.
template <class V> inline void map_pairs(const V& even_a, const V& odd_a, const V& even_b, const V& odd_b, V* at) {
    at[1] = even_a + odd_a;
    at[2] = even_a - odd_a;
    at[3] = even_b + odd_b;
    at[4] = even_b - odd_b;
}

struct FromX {
    static constexpr int IN = 6, OUT = 6;
    template <class T, class V> static void map(const V* x, V* at) {
        const V even_a = x[4] - 2 * x[2], odd_a = T(A) * (x[3] - 2 * x[1]);
        const V even_b = x[4] - x[2] / 2, odd_b = T(B) * (x[3] - x[1] / 2);
        at[0] = x[0] - T(2.5) * x[2] + x[4];
        map_pairs(even_a, odd_a, even_b, odd_b, at);
        at[5] = x[1] - T(2.5) * x[3] + x[5];
    }
};
struct FromZ {
    static constexpr int IN = 4, OUT = 6;
    template <class T, class V> static void map(const V* z, V* at) {
        const V even_a = z[0] + z[2] / 2, odd_a = T(A) * (z[1] + z[3] / 2);
        const V even_b = z[0] + 2 * z[2], odd_b = T(B) * (z[1] + 2 * z[3]);
        at[0] = z[0];
        map_pairs(even_a, odd_a, even_b, odd_b, at);
        at[5] = z[3];
    }
};
struct ToZ {
    static constexpr int IN = 6, OUT = 4;
    template <class T, class V> static void map(const V* at, V* z) {
        const V even_a = at[1] + at[2], odd_a = T(A) * (at[1] - at[2]);
        const V even_b = at[3] + at[4], odd_b = T(B) * (at[3] - at[4]);
        z[0] = at[0] + even_a + even_b;
        z[1] = odd_a + odd_b;
        z[2] = even_a / 2 + 2 * even_b;
        z[3] = odd_a / 2 + 2 * odd_b + at[5];
    }
};
struct FromWeight {
    static constexpr int IN = 3, OUT = 6;
    template <class T, class V> static void map(const V* w, V* at) {
        const V even_a = T(-2 / 3.) * (w[0] + w[2] / 2), odd_a = T(-2 / 3. * A) * w[1];
        const V even_b = T(1 / 6.) * (w[0] + 2 * w[2]), odd_b = T(1 / 6. * B) * w[1];
        at[0] = w[0];
        map_pairs(even_a, odd_a, even_b, odd_b, at);
        at[5] = w[2];
    }
};
struct ToWeight {
    static constexpr int IN = 6, OUT = 3;
    template <class T, class V> static void map(const V* at, V* w) {
        const V even_a = T(-2 / 3.) * (at[1] + at[2]), odd_a = T(-2 / 3. * A) * (at[1] - at[2]);
        const V even_b = T(1 / 6.) * (at[3] + at[4]), odd_b = T(1 / 6. * B) * (at[3] - at[4]);
        w[0] = at[0] + even_a + even_b;
        w[1] = odd_a + odd_b;
        w[2] = even_a / 2 + 2 * even_b + at[5];
    }
};

// Map along columns, then along rows; `read` and `write` take the number of an element, row by row.
template <class Map, class T, class Read, class Write> inline void map_both_ways(Read read, Write write) {
    using V = typename Traits<T>::Vector;
    V half[Map::OUT][Map::IN];
    #pragma GCC unroll 6
    for (int column = 0; column < Map::IN; column++) {
        V from[Map::IN], to[Map::OUT];
        for (int row = 0; row < Map::IN; row++) from[row] = read(row * Map::IN + column);
        Map::template map<T>(from, to);
        for (int row = 0; row < Map::OUT; row++) half[row][column] = to[row];
    }
    #pragma GCC unroll 6
    for (int row = 0; row < Map::OUT; row++) {
        V to[Map::OUT];
        Map::template map<T>(half[row], to);
        for (int column = 0; column < Map::OUT; column++) write(row * Map::OUT + column, to[column]);
    }
}

// c (rows, columns) = start + a (rows, depth) @ b (depth, columns). Rows come in multiples of TILE, columns of LANES.
template <class T> struct Product {
    int64_t rows, columns, depth;
    const T* a;
    const int64_t *a_row, *a_column;  // an element is at a + a_row[r] + a_column[k]
    const T* b;
    int64_t b_row;  // from a row to the next
    T* c;
    int64_t c_row;
    const T* start;  // may be c, or null for zeros
    int64_t start_row;
};

// ROWS rows and COLUMNS vectors of c at a time. Inlined, it is slower: the registers are too few.
template <int ROWS, int COLUMNS, class T>
__attribute__((noinline)) void multiply_tiles(const Product<T>& p, int64_t begin, int64_t end, int64_t first) {
    using V = typename Traits<T>::Vector;
    const int64_t depth = p.depth, b_row = p.b_row;
    const int64_t* const a_column = p.a_column;
    for (int64_t row = begin; row < end; row += ROWS) {
        V total[ROWS][COLUMNS];
        const T* a[ROWS];
        for (int r = 0; r < ROWS; r++) {
            a[r] = p.a + p.a_row[row + r];
            for (int w = 0; w < COLUMNS; w++)
                total[r][w] = p.start ? load(p.start + (row + r) * p.start_row + first + w * LANES) : V{};
        }
        const T* b = p.b + first;
        for (int64_t k = 0; k < depth; k++, b += b_row) {
            V right[COLUMNS];
            for (int w = 0; w < COLUMNS; w++) {
                right[w] = load(b + w * LANES);
                keep_in_register(right[w]);
            }
            for (int r = 0; r < ROWS; r++)
                for (int w = 0; w < COLUMNS; w++) total[r][w] += a[r][a_column[k]] * right[w];
        }
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < COLUMNS; w++) store(p.c + (row + r) * p.c_row + first + w * LANES, total[r][w]);
    }
}

template <class T> void multiply(const Product<T>& p) {
    for (int64_t first = 0, wide; first < p.columns; first += wide * LANES) {
        wide = std::min<int64_t>(WIDEST, (p.columns - first) / LANES);
        const int64_t tall = wide > 2 ? 0 : p.rows / TALL * TALL;  // rows in taller tiles, with more work per load
        if (wide == 4) multiply_tiles<TILE, 4>(p, 0, p.rows, first);
        else if (wide == 3) multiply_tiles<TILE, 3>(p, 0, p.rows, first);
        else if (wide == 2) multiply_tiles<TALL, 2>(p, 0, tall, first), multiply_tiles<TILE, 2>(p, tall, p.rows, first);
        else multiply_tiles<TALL, 1>(p, 0, tall, first), multiply_tiles<TILE, 1>(p, tall, p.rows, first);
    }
}

// 0, step, 2 step, ...
inline std::vector<int64_t> multiples(int64_t step, int64_t count) {
    std::vector<int64_t> all(count);
    for (int64_t k = 0; k < count; k++) all[k] = k * step;
    return all;
}

// Numbers, not initialized, at the boundary of a cache line.
template <class T> struct Buffer {
    T* const data;
    explicit Buffer(int64_t size) : data(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64}))) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() { ::operator delete(data, std::align_val_t{64}); }
};

// A batch of tiles at all points: (POINTS, BATCH, channels).
template <class S> class TilesAtPoints {
    using N = typename Traits<S>::Number;
    const int64_t n, height, width, channels;
    const int64_t down = (height + 3) / 4, across = (width + 3) / 4;  // tiles of an image
    const int64_t stride = BATCH * channels + LANES;                  // no multiple of the size of a cache's way
    const std::vector<S> zeros = std::vector<S>(channels);
    Buffer<N> values{POINTS * stride};
    Buffer<S> nowhere{channels};

    // Where the SIDE x SIDE pixels of a tile are; `outside` for those outside of the image.
    template <int SIDE, class P> void pixels(P* images, int64_t tile, P* outside, P** at) const {
        const int64_t image = tile / (down * across), margin = (SIDE - 4) / 2;
        const int64_t top = tile / across % down * 4 - margin, left = tile % across * 4 - margin;
        for (int64_t y = top; y < top + SIDE; y++)
            for (int64_t x = left; x < left + SIDE; x++) {
                const bool inside = y >= 0 && y < height && x >= 0 && x < width;
                *at++ = inside ? images + ((image * height + y) * width + x) * channels : outside;
            }
    }

  public:
    const std::vector<int64_t> tile = multiples(channels, BATCH), channel = multiples(1, channels);

    TilesAtPoints(const Convolve<S>& of, int64_t channels)
        : n(of.n), height(of.height), width(of.width), channels(channels) {}
    int64_t tiles() const { return n * down * across; }
    N* at(int64_t point) const { return values.data + point * stride; }

    // Map is FromX or FromZ.
    template <class Map> void read(const S* images, int64_t first, int64_t count) {
        for (int64_t t = 0; t < count; t++) {
            const S *from[Map::IN * Map::IN], *next[Map::IN * Map::IN];
            pixels<Map::IN>(images, first + t, zeros.data(), from);
            pixels<Map::IN>(images, std::min(first + t + 1, tiles() - 1), zeros.data(), next);
            for (int64_t c = 0; c < channels; c += LANES)
                map_both_ways<Map, N>(
                    [&](int k) {
                        __builtin_prefetch(next[k] + c);
                        return load(from[k] + c);
                    },
                    [&](int k, auto v) { store(at(k) + t * channels + c, v); }
                );
        }
    }
    void write(S* images, const N* bias, int64_t first, int64_t count) const {
        for (int64_t t = 0; t < count; t++) {
            S *to[16], *next[16];
            pixels<4>(images, first + t, nowhere.data, to);
            pixels<4>(images, std::min(first + t + 1, tiles() - 1), nowhere.data, next);
            for (int64_t c = 0; c < channels; c += LANES)
                map_both_ways<ToZ, N>(
                    [&](int k) { return load(at(k) + t * channels + c); },
                    [&](int k, auto v) {
                        __builtin_prefetch(next[k] + c, 1);
                        store(to[k] + c, v + load(bias + c));
                    }
                );
        }
    }
};

template <class S> void convolve(const ConvolveForward<S>& args, int threads) {
    using N = typename Traits<S>::Number;
    const Convolve<S>& images = args.images;
    const int64_t in = images.inputs, out = images.channels;
    Buffer<N> weight(POINTS * in * out);
    for (int64_t i = 0; i < in; i++)
        for (int64_t c = 0; c < out; c += LANES)
            map_both_ways<FromWeight, N>(
                [&](int k) { return load(args.weight + (i * 9 + k) * out + c); },
                [&](int k, auto v) { store(weight.data + (k * in + i) * out + c, v); }
            );
    #pragma omp parallel num_threads(threads)
    {
        TilesAtPoints<S> x(images, in), z(images, out);
        #pragma omp for schedule(static)
        for (int64_t first = 0; first < x.tiles(); first += BATCH) {
            const int64_t count = std::min<int64_t>(BATCH, x.tiles() - first);
            x.template read<FromX>(images.x, first, count);
            for (int64_t k = 0; k < POINTS; k++)  // (59)
                multiply<N>({padded(count), out, in, x.at(k), x.tile.data(), x.channel.data(),
                             weight.data + k * in * out, out, z.at(k), out, nullptr, 0});
            z.write(args.z, args.bias, first, count);
        }
    }
}

template <class S> void convolve_weight(const ConvolveWeight<S>& args, int threads) {
    using N = typename Traits<S>::Number;
    const Convolve<S>& images = args.images;
    const int64_t in = images.inputs, out = images.channels, size = POINTS * in * out;
    Buffer<N> parts(threads * size);
    std::fill_n(parts.data, threads * size, N(0));
    #pragma omp parallel num_threads(threads)
    {
        N* mine = parts.data + omp_get_thread_num() * size;
        TilesAtPoints<S> x(images, in), z(images, out);
        #pragma omp for schedule(static)
        for (int64_t first = 0; first < x.tiles(); first += BATCH) {
            const int64_t count = std::min<int64_t>(BATCH, x.tiles() - first);
            x.template read<FromX>(images.x, first, count);
            z.template read<FromZ>(args.d_z, first, count);
            for (int64_t k = 0; k < POINTS; k++)  // (60)
                multiply<N>({in, out, count, x.at(k), x.channel.data(), x.tile.data(), z.at(k), out,
                             mine + k * in * out, out, mine + k * in * out, out});
        }
    }
    for (int64_t i = 0; i < in; i++)
        for (int64_t c = 0; c < out; c += LANES)
            map_both_ways<ToWeight, N>(
                [&](int k) {
                    typename Traits<N>::Vector total = {};
                    for (int thread = 0; thread < threads; thread++)
                        total += load(parts.data + thread * size + (k * in + i) * out + c);
                    return total;
                },
                [&](int k, auto v) { store(args.d_weight + (i * 9 + k) * out + c, v); }
            );
}

// The first block, whose images have few channels: its convolution is part of its kernels, one row of windows at a
// time. z is large and cheap to compute. So it is computed again in the backward pass, and neither z nor d_z leave the
// cache.

// A row of windows: two rows of pixels, and the last odd one. A pixel of z is the product of a patch, 3x3 pixels of x,
// with the weight, plus the bias.
template <class T> class Strip {
    const T* const x;
    const T *const weight, *const bias;
    const int64_t inputs, height, width, patch = 9 * inputs, size = (width + 2) * inputs;  // of a patch and of a line
    Buffer<T> lines{5 * size + TILE * inputs};  // rows of x with a zero at each end
    std::vector<int64_t> pixel = multiples(inputs, padded(width)), place = multiples(1, padded(patch));  // of a patch

  public:
    Images images;  // the strip alone
    Buffer<T> z;

    template <class Args> explicit Strip(const Args& args)
        : x(args.x), weight(args.weight), bias(args.bias), inputs(args.inputs), height(args.images.height),
          width(args.images.width), images(args.images), z((3 * width + TILE) * images.channels) {
        images.n = 1;
        for (int64_t k = 0; k < padded(patch); k++)
            place[k] = k < patch ? k / (3 * inputs) * size + k % (3 * inputs) : 0;
    }
    int64_t pixels() const { return images.height * width; }

    // z of a row of the pooled images.
    void convolve(int64_t row) {
        const int64_t down = height / images.pool, top = row % down * images.pool;
        const T* image = x + row / down * height * width * inputs;
        images.height = row % down == down - 1 ? height - top : images.pool;
        std::fill_n(lines.data, 5 * size, T(0));
        for (int64_t y = std::max<int64_t>(top - 1, 0); y < std::min(top + images.height + 1, height); y++)
            std::copy_n(image + y * width * inputs, width * inputs, lines.data + (y - top + 1) * size + inputs);
        for (int64_t y = 0; y < images.height; y++)  // what is written too much is overwritten
            multiply<T>({padded(width), images.channels, patch, lines.data + y * size, pixel.data(), place.data(),
                         weight, images.channels, z.data + y * width * images.channels, images.channels, bias, 0});
    }
    // d_weight (padded patch, channels) += patches^T d_z; d_z is in z.
    void add_to_weight(T* d_weight) const {
        for (int64_t y = 0; y < images.height; y++)
            multiply<T>({padded(patch), images.channels, width, lines.data + y * size, place.data(), pixel.data(),
                         z.data + y * width * images.channels, images.channels, d_weight, images.channels, d_weight,
                         images.channels});
    }
};

template <class T> void first_forward(const FirstForward<T>& args, int threads) {
    using V = typename Traits<T>::Vector;
    using I = typename Traits<T>::Integers;
    const Images& images = args.images;
    const int64_t C = images.channels, rows = images.rows(), row_size = images.width / 2 * C;
    std::vector<Moments> parts(threads, Moments(C));
    #pragma omp parallel num_threads(threads)
    {
        Strip<T> strip(args);
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            strip.convolve(row);
            if (!images.given) parts[omp_get_thread_num()].add(strip.z.data, strip.pixels());
            visit<2>(strip.images, 0, 1, [&](int64_t c) {
                const V sign = sign_of(load(args.gamma + c));
                return std::make_pair([=, &args, z = strip.z.data](const int64_t* pixels, int64_t to) {
                    V taken;
                    I which;
                    choose<2>(z, pixels, sign, taken, which);
                    store(args.pooled + row * row_size + to, taken);
                    store(args.chosen + row * row_size + to, __builtin_convertvector(which, bytes));
                }, nothing);
            });
        }
    }
    if (!images.given) {
        Moments::join(parts);
        parts[0].write(args.mean, args.var);
    }
    write_rstd(args);
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < C; c += LANES) {
            const auto finished = finish<V, I>(args, c);
            for (int64_t at = row * row_size + c; at < (row + 1) * row_size; at += C)
                finished(at, load(args.pooled + at), __builtin_convertvector(load(args.chosen + at), I));
        }
}

template <class T> void first_backward(const FirstBackward<T>& args, int threads) {
    const int64_t C = args.images.channels, row_size = args.images.width / 2 * C;
    const int64_t size = 9 * args.inputs * C, padded_size = padded(9 * args.inputs) * C;
    const auto line = line_of<T>(args, threads);
    Buffer<T> parts(threads * padded_size);
    std::fill_n(parts.data, threads * padded_size, T(0));
    #pragma omp parallel num_threads(threads)
    {
        Strip<T> strip(args);
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < args.images.rows(); row++) {
            strip.convolve(row);
            put_d_z<2>(args, line, strip.images, 0, row * row_size, strip.z.data, strip.z.data);
            strip.add_to_weight(parts.data + omp_get_thread_num() * padded_size);
        }
    }
    std::copy_n(parts.data, size, args.d_weight);
    for (int thread = 1; thread < threads; thread++)
        for (int64_t k = 0; k < size; k++) args.d_weight[k] += parts.data[thread * padded_size + k];
}

}  // namespace

extern "C" {

const char* metalstm_blocks_arguments() { return ARGUMENTS; }

void metalstm_block_forward(int bytes, const void* fields, int threads) {
    with_images<BlockForward>(bytes, fields, [&](const auto& arguments) {
        if (arguments.images.pool == 2) block_forward<2>(arguments, threads);
        else block_forward<1>(arguments, threads);
    });
}
void metalstm_block_backward(int bytes, const void* fields, int threads) {
    with_images<BlockBackward>(bytes, fields, [&](const auto& arguments) {
        if (arguments.images.pool == 2) block_backward<2>(arguments, threads);
        else block_backward<1>(arguments, threads);
    });
}
void metalstm_block_double_backward(int bytes, const void* fields, int threads) {
    with_images<BlockDoubleBackward>(bytes, fields, [&](const auto& arguments) {
        if (arguments.images.pool == 2) block_double_backward<2>(arguments, threads);
        else block_double_backward<1>(arguments, threads);
    });
}
void metalstm_first_forward(int bytes, const void* fields, int threads) {
    with_numbers<FirstForward>(bytes, fields, [&](const auto& arguments) { first_forward(arguments, threads); });
}
void metalstm_first_backward(int bytes, const void* fields, int threads) {
    with_numbers<FirstBackward>(bytes, fields, [&](const auto& arguments) { first_backward(arguments, threads); });
}
void metalstm_convolve(int bytes, const void* fields, int threads) {
    with_images<ConvolveForward>(bytes, fields, [&](const auto& arguments) { convolve(arguments, threads); });
}
void metalstm_convolve_weight(int bytes, const void* fields, int threads) {
    with_images<ConvolveWeight>(bytes, fields, [&](const auto& arguments) { convolve_weight(arguments, threads); });
}

}  // extern "C"
