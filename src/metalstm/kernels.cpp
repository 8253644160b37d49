// The two inner steps that cost most beside the convolutions, each in one pass over memory: the meta-learner's cell, and
// a block's batch normalisation with max-pool and ReLU. kernels.py holds the same functions in PyTorch, compiles this
// file, and calls it. Plain C interface, vectors by the compiler's extensions, threads by OpenMP.
//
// Coordinates of theta are the lanes of the cell's vectors, channels those of the normalisation's. float is what is
// used, double what the tests compare, bfloat16 a way to store activations.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

namespace {

// Vectors of LANES numbers. -------------------------------------------------------------------------------------------

constexpr int LANES = 16;

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
inline void store(bfloat16* p, floats v) {  // to the nearest, ties to even
    words bits = cast<words>(v);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits = v == v ? bits : words{} + 0x7fc0;
    const halves half = __builtin_convertvector(bits, halves);
    std::memcpy(p, &half, sizeof half);
}
inline void store(uint8_t* p, bytes v) { std::memcpy(p, &v, sizeof v); }

template <class V> inline auto sum(V v) {
    auto total = v[0];
    for (int lane = 1; lane < LANES; lane++) total += v[lane];
    return total;
}

// e^x for |x| <= LIMIT, and the bound itself beyond; NaN stays NaN. sigmoid(LIMIT) is 1 to the last bit, and a product
// of four (1 + e^LIMIT) is finite.
constexpr float LIMIT_FLOAT = 20;
constexpr double LIMIT_DOUBLE = 45;

inline floats bounded_exp(floats x) {
    const floats limit = floats{} + LIMIT_FLOAT;
    x = limit < x ? limit : x;
    x = -limit > x ? -limit : x;
    const float magic = 12582912;  // 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold
    const floats shifted = x * 1.44269504f + magic;
    const floats k = shifted - magic;
    const floats r = x - k * 0.693359375f + k * 2.12194440e-4f;
    // Taylor's polynomial; |r| <= ln(2) / 2, where it is exact to 2e-8.
    floats p = r * (1 / 5040.f) + 1 / 720.f;
    p = p * r + 1 / 120.f;
    p = p * r + 1 / 24.f;
    p = p * r + 1 / 6.f;
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
    return p * cast<floats>((cast<ints>(shifted) << 23) + (127 << 23));
}
inline doubles bounded_exp(doubles x) {
    for (int lane = 0; lane < LANES; lane++)
        x[lane] = std::exp(x[lane] > LIMIT_DOUBLE ? LIMIT_DOUBLE : x[lane] < -LIMIT_DOUBLE ? -LIMIT_DOUBLE : x[lane]);
    return x;
}

// ln x for normal x > 0; NaN where x is NaN or infinite.
inline floats log_of(floats x) {
    const ints bits = cast<ints>(x) - 0x3f3504f3;  // of sqrt(1/2)
    const floats exponent = __builtin_convertvector(bits >> 23, floats);
    const floats m = cast<floats>((bits & 0x7fffff) + 0x3f3504f3);  // sqrt(1/2) <= m < sqrt(2)
    const floats s = (m - 1) / (m + 1), q = s * s;
    const floats series = s * 2 * (1 + q * (1 / 3.f + q * (1 / 5.f + q * (1 / 7.f + q * (1 / 9.f)))));
    return series + exponent * 0.69314718f + x * 0;
}
inline doubles log_of(doubles x) {
    for (int lane = 0; lane < LANES; lane++) x[lane] = std::log(x[lane]);
    return x;
}

// The meta-learner's cell. --------------------------------------------------------------------------------------------

constexpr int WIDTH = 8;              // vectors a block
constexpr int BLOCK = WIDTH * LANES;  // coordinates a block
constexpr int TILE = 4;               // rows of the register tiles of the matrix products

inline int padded(int rows) { return (rows + TILE - 1) / TILE * TILE; }

// out (rows, BLOCK) = a (rows, depth; row stride a_stride) @ b (depth, BLOCK); rows a multiple of TILE.
template <class T> void product(int rows, int depth, const T* a, int a_stride, const T* b, T* out) {
    using V = typename Traits<T>::Vector;
    constexpr int HALF = WIDTH / 2;
    for (int row = 0; row < rows; row += TILE)
        for (int half = 0; half < BLOCK; half += HALF * LANES) {
            V total[TILE][HALF] = {};
            for (int k = 0; k < depth; k++) {
                V column[HALF];
                for (int w = 0; w < HALF; w++) column[w] = load(b + k * BLOCK + half + w * LANES);
                for (int r = 0; r < TILE; r++) {
                    const T factor = a[(row + r) * a_stride + k];
                    for (int w = 0; w < HALF; w++) total[r][w] += factor * column[w];
                }
            }
            for (int r = 0; r < TILE; r++)
                for (int w = 0; w < HALF; w++) store(out + (row + r) * BLOCK + half + w * LANES, total[r][w]);
        }
}

// total (rows, columns, LANES) += a (rows, BLOCK) . b (columns, BLOCK), lane by lane; both multiples of TILE.
template <class T> void outer(int rows, int columns, const T* a, const T* b, T* total) {
    using V = typename Traits<T>::Vector;
    for (int row = 0; row < rows; row += TILE)
        for (int column = 0; column < columns; column += TILE) {
            V tile[TILE][TILE];
            for (int r = 0; r < TILE; r++)
                for (int s = 0; s < TILE; s++) tile[r][s] = load(total + ((row + r) * columns + column + s) * LANES);
            for (int w = 0; w < BLOCK; w += LANES) {
                V right[TILE];
                for (int s = 0; s < TILE; s++) right[s] = load(b + (column + s) * BLOCK + w);
                for (int r = 0; r < TILE; r++) {
                    const V left = load(a + (row + r) * BLOCK + w);
                    for (int s = 0; s < TILE; s++) tile[r][s] += left * right[s];
                }
            }
            for (int r = 0; r < TILE; r++)
                for (int s = 0; s < TILE; s++) store(total + ((row + r) * columns + column + s) * LANES, tile[r][s]);
        }
}

// One step for (tasks, n) coordinates; arrays are (tasks, n) or (tasks, hidden, n).
template <class T> struct Cell {
    int64_t tasks, n;
    int hidden;
    T scale;          // p of the preprocessing
    const T* weight;  // (4 hidden, 2 + hidden): the LSTM's, for the preprocessed gradient and h
    const T* bias;    // (tasks, 4 hidden): with the share of the preprocessed loss
    const T* gates;   // (2, hidden + 3): f and i; for h, theta, the previous gate, and the bias
    const T *theta, *grad, *h, *c, *f, *i;
};

template <class T> struct Stepped { T *theta, *h, *c, *f, *i; };

template <class T> struct Cotangents { const T *theta, *h, *c, *f, *i; };

template <class T> struct Gradients { T *weight, *bias, *gates, *theta, *grad, *h, *c, *f, *i; };

// What one thread works with: BLOCK coordinates at a time.
template <class T> class CellBlock {
    using V = typename Traits<T>::Vector;

    const Cell<T>& cell;
    const int H, depth, columns;  // inputs of the LSTM: preprocessed gradient, h, and 1 for the bias; rounded up
    const T *wf, *wi;
    int64_t task = -1, start = 0;
    std::vector<T> weight, transposed;        // (4 H, columns), (columns, 4 H)
    std::vector<T> in, gate, c;               // (columns, BLOCK), (4 H, BLOCK), (H, BLOCK)
    T theta[BLOCK], grad[BLOCK], f[BLOCK], i[BLOCK];
    std::vector<T> d_weight, d_gates;         // sums, one a lane: (4 H, columns, LANES), (2, H + 3, LANES)

    // The block's part of row number `row` of an array of rows of n; zeros beyond the end.
    void read(const T* array, int64_t row, T* to) const {
        const int64_t count = std::min<int64_t>(BLOCK, cell.n - start);
        const T* from = array + row * cell.n + start;
        std::memcpy(to, from, count * sizeof(T));
        for (int64_t k = 0; k < BLOCK; k += LANES) __builtin_prefetch(from + BLOCK + k);  // for the next block
        std::fill(to + count, to + BLOCK, T(0));
    }
    void write(T* array, int64_t row, const T* from) const {
        const int64_t count = std::min<int64_t>(BLOCK, cell.n - start);
        T* to = array + row * cell.n + start;
        std::memcpy(to, from, count * sizeof(T));
        for (int64_t k = 0; k < BLOCK; k += LANES) __builtin_prefetch(to + BLOCK + k, 1);  // for the next block
    }
    static void add(T* lanes, V v) { store(lanes, load(lanes) + v); }
    static V sigmoid(V x) { return 1 / (1 + bounded_exp(-x)); }

    // The inputs of the block, and the LSTM's gates before their nonlinearities.
    void prepare(int64_t at) {
        start = at;
        read(cell.theta, task, theta);
        read(cell.grad, task, grad);
        read(cell.f, task, f);
        read(cell.i, task, i);
        const T threshold = std::exp(-cell.scale), slope = std::exp(cell.scale);
        for (int w = 0; w < BLOCK; w += LANES) {
            const V x = load(grad + w), size = x < 0 ? -x : x, scaled = x * slope;
            store(&in[w], log_of(size < threshold ? V{} + threshold : size) / cell.scale);
            store(&in[BLOCK + w], scaled > 1 ? V{} + 1 : scaled < -1 ? V{} - 1 : scaled);
        }
        for (int q = 0; q < H; q++) {
            read(cell.h, task * H + q, &in[(2 + q) * BLOCK]);
            read(cell.c, task * H + q, &c[q * BLOCK]);
        }
        std::fill_n(&in[(2 + H) * BLOCK], BLOCK, T(1));
        product(4 * H, depth, weight.data(), columns, in.data(), gate.data());
    }

  public:
    explicit CellBlock(const Cell<T>& cell)
        : cell(cell), H(cell.hidden), depth(H + 3), columns(padded(depth)), wf(cell.gates), wi(cell.gates + H + 3),
          weight(4 * H * columns), transposed(columns * 4 * H), in(columns * BLOCK), gate(4 * H * BLOCK), c(H * BLOCK),
          d_weight(4 * H * columns * LANES), d_gates(2 * (H + 3) * LANES) {}

    void enter(int64_t which) {
        task = which;
        for (int row = 0; row < 4 * H; row++) {
            T* to = &weight[row * columns];
            std::copy_n(cell.weight + row * (H + 2), H + 2, to);
            to[H + 2] = cell.bias[task * 4 * H + row];
            for (int k = 0; k < columns; k++) transposed[k * 4 * H + row] = to[k];
        }
    }

    void forward(int64_t at, const Stepped<T>& out) {
        prepare(at);
        V new_f[WIDTH], new_i[WIDTH];
        for (int w = 0; w < WIDTH; w++) {
            const int j = w * LANES;
            new_f[w] = wf[H] * load(theta + j) + wf[H + 1] * load(f + j) + wf[H + 2];
            new_i[w] = wi[H] * load(theta + j) + wi[H + 1] * load(i + j) + wi[H + 2];
        }
        for (int q = 0; q < H; q++)
            for (int w = 0; w < WIDTH; w++) {
                const int j = q * BLOCK + w * LANES;
                // Three divisions for five nonlinearities: sigmoid(x) = 1 / (1 + e^-x), tanh(x) = (1 - e^-2x) / (1 + e^-2x).
                const V input = 1 + bounded_exp(-load(&gate[j])), forget = 1 + bounded_exp(-load(&gate[j + H * BLOCK]));
                const V e = bounded_exp(-2 * load(&gate[j + 2 * H * BLOCK])), both = input * (1 + e);
                const V new_c = (load(&c[j]) * both + (1 - e) * forget) / (forget * both);
                const V output = 1 + bounded_exp(-load(&gate[j + 3 * H * BLOCK])), e_c = bounded_exp(-2 * new_c);
                const V h = (1 - e_c) / ((1 + e_c) * output);
                store(&c[j], new_c);
                store(&in[j + 2 * BLOCK], h);
                new_f[w] += wf[q] * h;
                new_i[w] += wi[q] * h;
            }
        for (int w = 0; w < WIDTH; w++) {
            const int j = w * LANES;
            store(theta + j, sigmoid(new_f[w]) * load(theta + j) - sigmoid(new_i[w]) * load(grad + j));
            store(f + j, new_f[w]);
            store(i + j, new_i[w]);
        }
        write(out.theta, task, theta);
        write(out.f, task, f);
        write(out.i, task, i);
        for (int q = 0; q < H; q++) {
            write(out.h, task * H + q, &in[(2 + q) * BLOCK]);
            write(out.c, task * H + q, &c[q * BLOCK]);
        }
    }

    void backward(int64_t at, const T* new_f, const T* new_i, const Cotangents<T>& given, const Gradients<T>& out) {
        prepare(at);
        T d_h[BLOCK], d_c[BLOCK], gate_f[BLOCK], gate_i[BLOCK], given_theta[BLOCK];
        V d_f[WIDTH], d_i[WIDTH];
        T *sums_f = d_gates.data(), *sums_i = sums_f + (H + 3) * LANES;
        read(given.theta, task, given_theta);
        read(given.f, task, d_h);
        read(given.i, task, d_c);
        read(new_f, task, gate_f);
        read(new_i, task, gate_i);
        for (int w = 0; w < WIDTH; w++) {
            const int j = w * LANES;
            const V before = load(theta + j), x = load(grad + j), d_theta = load(given_theta + j);
            const V sf = sigmoid(load(gate_f + j)), si = sigmoid(load(gate_i + j));
            d_f[w] = load(d_h + j) + d_theta * before * sf * (1 - sf);
            d_i[w] = load(d_c + j) - d_theta * x * si * (1 - si);
            add(sums_f + H * LANES, d_f[w] * before);
            add(sums_i + H * LANES, d_i[w] * before);
            add(sums_f + (H + 1) * LANES, d_f[w] * load(f + j));
            add(sums_i + (H + 1) * LANES, d_i[w] * load(i + j));
            add(sums_f + (H + 2) * LANES, d_f[w]);
            add(sums_i + (H + 2) * LANES, d_i[w]);
            store(theta + j, d_theta * sf + d_f[w] * wf[H] + d_i[w] * wi[H]);
            store(given_theta + j, -d_theta * si);  // the share of grad's gradient that is not by the preprocessing
            store(f + j, d_f[w] * wf[H + 1]);
            store(i + j, d_i[w] * wi[H + 1]);
        }
        for (int q = 0; q < H; q++) {
            read(given.h, task * H + q, d_h);
            read(given.c, task * H + q, d_c);
            V sum_f = {}, sum_i = {};
            for (int w = 0; w < WIDTH; w++) {
                const int j = q * BLOCK + w * LANES;
                const V d_input = 1 + bounded_exp(-load(&gate[j])), d_forget = 1 + bounded_exp(-load(&gate[j + H * BLOCK]));
                const V e = bounded_exp(-2 * load(&gate[j + 2 * H * BLOCK])), d_cell = 1 + e;
                const V d_output = 1 + bounded_exp(-load(&gate[j + 3 * H * BLOCK]));
                const V left = d_input * d_forget, right = d_cell * d_output, inverse = 1 / (left * right);
                const V input = d_forget * right * inverse, forget = d_input * right * inverse;
                const V cell_ = (1 - e) * left * d_output * inverse, output = left * d_cell * inverse;
                const V before = load(&c[j]), e_c = bounded_exp(-2 * (forget * before + input * cell_));
                const V tanh_c = (1 - e_c) / (1 + e_c), h = output * tanh_c;
                sum_f += d_f[w] * h;
                sum_i += d_i[w] * h;
                const V by_h = load(d_h + w * LANES) + d_f[w] * wf[q] + d_i[w] * wi[q];
                const V by_c = load(d_c + w * LANES) + by_h * output * (1 - tanh_c * tanh_c);
                store(&gate[j], by_c * cell_ * input * (1 - input));
                store(&gate[j + H * BLOCK], by_c * before * forget * (1 - forget));
                store(&gate[j + 2 * H * BLOCK], by_c * input * (1 - cell_ * cell_));
                store(&gate[j + 3 * H * BLOCK], by_h * tanh_c * output * (1 - output));
                store(&c[j], by_c * forget);
            }
            add(sums_f + q * LANES, sum_f);
            add(sums_i + q * LANES, sum_i);
        }
        outer(4 * H, columns, gate.data(), in.data(), d_weight.data());
        product(columns, 4 * H, transposed.data(), 4 * H, gate.data(), in.data());
        const T threshold = std::exp(-cell.scale), slope = std::exp(cell.scale);
        for (int w = 0; w < BLOCK; w += LANES) {
            const V x = load(grad + w), size = x < 0 ? -x : x;
            const V by_log = size >= threshold ? load(&in[w]) / (cell.scale * x) : V{};
            const V by_sign = size <= threshold ? load(&in[BLOCK + w]) * slope : V{};
            store(given_theta + w, load(given_theta + w) + by_log + by_sign);
        }
        write(out.theta, task, theta);
        write(out.grad, task, given_theta);
        write(out.f, task, f);
        write(out.i, task, i);
        for (int q = 0; q < H; q++) {
            write(out.h, task * H + q, &in[(2 + q) * BLOCK]);
            write(out.c, task * H + q, &c[q * BLOCK]);
        }
    }

    // Add the sums since `enter` to the gradients.
    void leave(const Gradients<T>& out) {
        for (int row = 0; row < 4 * H; row++) {
            for (int k = 0; k < H + 2; k++) out.weight[row * (H + 2) + k] += sum(load(&d_weight[(row * columns + k) * LANES]));
            out.bias[task * 4 * H + row] += sum(load(&d_weight[(row * columns + H + 2) * LANES]));
        }
        for (int k = 0; k < 2 * (H + 3); k++) out.gates[k] += sum(load(&d_gates[k * LANES]));
        std::fill(d_weight.begin(), d_weight.end(), T(0));
        std::fill(d_gates.begin(), d_gates.end(), T(0));
    }
};

template <class T> void cell_forward(const Cell<T>& cell, const Stepped<T>& out, int threads) {
    const int64_t blocks = (cell.n + BLOCK - 1) / BLOCK, all = cell.tasks * blocks;
    #pragma omp parallel num_threads(threads)
    {
        CellBlock<T> worker(cell);
        int64_t task = -1;
        #pragma omp for schedule(static)
        for (int64_t number = 0; number < all; number++) {
            if (number / blocks != task) worker.enter(task = number / blocks);
            worker.forward(number % blocks * BLOCK, out);
        }
    }
}

template <class T>
void cell_backward(
    const Cell<T>& cell, const T* new_f, const T* new_i, const Cotangents<T>& given, const Gradients<T>& out, int threads
) {
    const int64_t blocks = (cell.n + BLOCK - 1) / BLOCK, all = cell.tasks * blocks;
    const int64_t n_weight = 4 * cell.hidden * (cell.hidden + 2), n_bias = cell.tasks * 4 * cell.hidden;
    const int64_t n_gates = 2 * (cell.hidden + 3), n_sums = n_weight + n_bias + n_gates;
    std::vector<T> sums(threads * n_sums);  // of each thread, added in their order, so that it comes out the same
    #pragma omp parallel num_threads(threads)
    {
        CellBlock<T> worker(cell);
        Gradients<T> mine = out;
        mine.weight = &sums[omp_get_thread_num() * n_sums];
        mine.bias = mine.weight + n_weight;
        mine.gates = mine.bias + n_bias;
        int64_t task = -1;
        #pragma omp for schedule(static)
        for (int64_t number = 0; number < all; number++) {
            if (number / blocks != task) {
                if (task >= 0) worker.leave(mine);
                worker.enter(task = number / blocks);
            }
            worker.backward(number % blocks * BLOCK, new_f, new_i, given, mine);
        }
        if (task >= 0) worker.leave(mine);
    }
    std::fill_n(out.weight, n_weight, T(0));
    std::fill_n(out.bias, n_bias, T(0));
    std::fill_n(out.gates, n_gates, T(0));
    for (int thread = 0; thread < threads; thread++) {
        const T* part = &sums[thread * n_sums];
        for (int64_t k = 0; k < n_weight; k++) out.weight[k] += part[k];
        for (int64_t k = 0; k < n_bias; k++) out.bias[k] += part[n_weight + k];
        for (int64_t k = 0; k < n_gates; k++) out.gates[k] += part[n_weight + n_bias + k];
    }
}

// Batch normalisation, 2x2 max-pool, ReLU. ----------------------------------------------------------------------------

// Channels-last images (n, height, width, channels) stored as S; arithmetic and what each channel has one of are N.
// Pooling comes first: the maximum of what is normalised is the normalised maximum, or minimum where gamma < 0.
template <class S> struct Images {
    using N = typename Traits<S>::Number;
    int64_t n, height, width, channels;
    const S* x;
    const N *gamma, *mean, *rstd;
    const S* pooled;        // (n, height / 2, width / 2, channels): what was taken of each four, normalised
    const uint8_t* chosen;  // the same shape: which of the four it was, and DEAD where the ReLU cut it off

    N pixels() const { return N(n * height * width); }
    int64_t rows() const { return n * (height / 2); }  // of the pooled images
};

constexpr uint8_t DEAD = 4;
constexpr int64_t CHUNK = 128;  // pixels, few enough for the first cache

// window(pixel, stride, pooled, channel) for LANES channels of each four pixels of pooled rows begin..end: the offsets of
// the upper left pixel, to the one below, and of the pooled one; rest(pixel, channel) for those that no window covers.
template <class S, class Window, class Rest>
void visit(const Images<S>& images, int64_t begin, int64_t end, Window window, Rest rest) {
    const int64_t channels = images.channels, width = images.width, stride = width * channels, half = images.height / 2;
    for (int64_t row = begin; row < end; row++) {
        const int64_t top = (row / half * images.height + 2 * (row % half)) * stride;
        for (int64_t column = 0; column < width / 2; column++)
            for (int64_t c = 0; c < channels; c += LANES)
                window(top + 2 * column * channels + c, stride, (row * (width / 2) + column) * channels + c, c);
        const bool last = images.height % 2 && row % half == half - 1;
        for (int64_t c = 0; c < channels && width % 2; c += LANES) {
            rest(top + stride - channels + c, c);
            rest(top + 2 * stride - channels + c, c);
        }
        for (int64_t at = 0; at < stride && last; at += LANES) rest(top + 2 * stride + at, at % channels);
    }
}

// Sums over runs of items, which body(begin, end, sums) adds up for each thread; the same every time.
template <class Body> std::vector<double> summed(int64_t size, int64_t items, int threads, Body body) {
    std::vector<double> all(threads * size);
    #pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        body(items * me / team, items * (me + 1) / team, &all[me * size]);
    }
    for (int64_t k = size; k < threads * size; k++) all[k % size] += all[k];
    return all;
}

template <class V> void add(double* sums, V v) { store(sums, load(sums) + __builtin_convertvector(v, doubles)); }

template <class S, class N = typename Traits<S>::Number>
void moments(const S* all, int64_t pixels, int64_t C, N* mean, N* var, int threads) {
    using V = typename Traits<S>::Vector;
    // Of every thread: count, then mean and sum of squared deviations of each channel, joined as Chan et al. 1979 do.
    std::vector<double> parts(threads * (1 + 2 * C));
    auto join = [C](double* to, double count, int64_t c, double mean, double squares) {
        const double both = *to + count, delta = mean - to[1 + c];
        to[1 + c] += delta * count / both;
        to[1 + C + c] += squares + delta * delta * *to * count / both;
    };
    #pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads(), chunks = (pixels + CHUNK - 1) / CHUNK;
        double* mine = &parts[me * (1 + 2 * C)];
        for (int64_t chunk = chunks * me / team; chunk < chunks * (me + 1) / team; chunk++) {
            const int64_t first = chunk * CHUNK, count = std::min(CHUNK, pixels - first);
            for (int64_t c = 0; c < C; c += LANES) {
                const S* x = all + first * C + c;
                V total = {}, squares = {};
                for (int64_t p = 0; p < count; p++) total += load(x + p * C);
                const V centre = total / N(count);
                for (int64_t p = 0; p < count; p++) squares += (load(x + p * C) - centre) * (load(x + p * C) - centre);
                for (int lane = 0; lane < LANES; lane++) join(mine, count, c + lane, centre[lane], squares[lane]);
            }
            *mine += count;
        }
    }
    for (int thread = 1; thread < threads; thread++) {
        const double* part = &parts[thread * (1 + 2 * C)];
        if (*part == 0) continue;
        for (int64_t c = 0; c < C; c++) join(&parts[0], *part, c, part[1 + c], part[1 + C + c]);
        parts[0] += *part;
    }
    for (int64_t c = 0; c < C; c++) {
        mean[c] = parts[1 + c];
        var[c] = parts[1 + C + c] / pixels;
    }
}

template <class S, class N = typename Images<S>::N>
void block_forward(const Images<S>& images, const N* beta, S* y, S* pooled, uint8_t* chosen, int threads) {
    using V = typename Traits<S>::Vector;
    using I = typename Traits<S>::Integers;
    const int64_t rows = images.rows();
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        visit(images, row, row + 1, [&](int64_t pixel, int64_t stride, int64_t to, int64_t c) {
            const V gamma = load(images.gamma + c), sign = gamma > 0 ? V{} + 1 : gamma < 0 ? V{} - 1 : V{};
            const int64_t at[4] = {pixel, pixel + images.channels, pixel + stride, pixel + stride + images.channels};
            V taken = load(images.x + at[0]);
            I which = {};
            for (int k = 1; k < 4; k++) {
                const V x = load(images.x + at[k]);
                const I more = sign * x > sign * taken;
                taken = more ? x : taken;
                which = more ? I{} + k : which;
            }
            taken = (taken - load(images.mean + c)) * load(images.rstd + c);
            const V out = gamma * taken + load(beta + c);
            const I dead = out <= 0;
            store(y + to, dead ? V{} : out);
            store(pooled + to, taken);
            store(chosen + to, __builtin_convertvector(dead ? which + DEAD : which, bytes));
        }, [](int64_t, int64_t) {});
}

// With `given` moments they are inputs: d_mean and d_var come out. Else gradients flow through them: they go in.
template <class S, class N = typename Images<S>::N>
void block_backward(
    const Images<S>& images, bool given, const S* d_y, S* d_x, N* d_gamma, N* d_beta, N* d_mean, N* d_var, int threads
) {
    using V = typename Traits<S>::Vector;
    using I = typename Traits<S>::Integers;
    const int64_t C = images.channels, rows = images.rows(), row_size = images.width / 2 * C;
    const std::vector<double> sums = summed(2 * C, rows, threads, [&](int64_t begin, int64_t end, double* to) {
        for (int64_t at = begin * row_size, c = 0; at < end * row_size; at += LANES, c = c + LANES == C ? 0 : c + LANES) {
            const V d = __builtin_convertvector(load(images.chosen + at), I) < DEAD ? load(d_y + at) : V{};
            add(to + c, d);
            add(to + C + c, d * load(images.pooled + at));
        }
    });
    std::vector<N> scale(C), constant(C), slope(C);  // d_x = scale * d - constant - slope * (x - mean)
    for (int64_t c = 0; c < C; c++) {
        const N d = sums[c], d_pooled = sums[C + c];
        scale[c] = images.gamma[c] * images.rstd[c];
        d_beta[c] = d;
        d_gamma[c] = d_pooled;
        if (given) {
            d_mean[c] = -scale[c] * d;
            d_var[c] = -scale[c] * images.rstd[c] * d_pooled / 2;
        } else {
            constant[c] = (scale[c] * d - d_mean[c]) / images.pixels();
            slope[c] = (scale[c] * images.rstd[c] * d_pooled - 2 * d_var[c]) / images.pixels();
        }
    }
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        auto base = [&](int64_t at, int64_t c) {
            return (load(images.mean + c) - load(images.x + at)) * load(&slope[c]) - load(&constant[c]);
        };
        visit(images, row, row + 1, [&](int64_t pixel, int64_t stride, int64_t from, int64_t c) {
            const I which = __builtin_convertvector(load(images.chosen + from), I);
            const V d = load(&scale[c]) * load(d_y + from);
            const int64_t at[4] = {pixel, pixel + C, pixel + stride, pixel + stride + C};
            for (int k = 0; k < 4; k++) store(d_x + at[k], base(at[k], c) + (which == k ? d : V{}));
        }, [&](int64_t at, int64_t c) { store(d_x + at, base(at, c)); });
    }
}

// The gradients of block_backward's outputs, without given moments: of d_x (u), d_gamma and d_beta, to its inputs d_y, x
// and gamma, and to d_mean and d_var. With Q(v) = v - mean(v) - normalised * mean(v * normalised), linear and symmetric,
// d_x = gamma rstd Q(d) + ..., and normalised itself has the derivative rstd Q in x.
template <class S, class N = typename Images<S>::N>
void block_double_backward(
    const Images<S>& images, const S* d_y, const N* d_var, const S* u, const N* by_gamma, const N* by_beta, S* out_d_y,
    S* out_x, N* out_gamma, N* out_mean, N* out_var, int threads
) {
    using V = typename Traits<S>::Vector;
    using I = typename Traits<S>::Integers;
    const int64_t C = images.channels, rows = images.rows();
    auto chosen = [](I which, V a[4]) {
        V taken = {};
        for (int k = 0; k < 4; k++) taken = (which & 3) == k ? a[k] : taken;
        return taken;
    };
    // d, d * normalised, u, u * (x - mean), u * d
    const std::vector<double> sums = summed(5 * C, rows, threads, [&](int64_t begin, int64_t end, double* to) {
        visit(images, begin, end, [&](int64_t pixel, int64_t stride, int64_t from, int64_t c) {
            const I which = __builtin_convertvector(load(images.chosen + from), I);
            const V d = which < DEAD ? load(d_y + from) : V{}, mean = load(images.mean + c);
            const int64_t at[4] = {pixel, pixel + C, pixel + stride, pixel + stride + C};
            V all[4], total = {}, product = {};
            for (int k = 0; k < 4; k++) {
                all[k] = load(u + at[k]);
                total += all[k];
                product += all[k] * (load(images.x + at[k]) - mean);
            }
            add(to + c, d);
            add(to + C + c, d * load(images.pooled + from));
            add(to + 2 * C + c, total);
            add(to + 3 * C + c, product);
            add(to + 4 * C + c, d * chosen(which, all));
        }, [&](int64_t at, int64_t c) {
            add(to + 2 * C + c, load(u + at));
            add(to + 3 * C + c, load(u + at) * (load(images.x + at) - load(images.mean + c)));
        });
    });
    // out_x = constant + slope (x - mean) + by_u u + by_d d, out_d_y = at_d + scale u + at_pooled * normalised
    std::vector<N> constant(C), slope(C), by_u(C), by_d(C), scale(C), at_d(C), at_pooled(C);
    for (int64_t c = 0; c < C; c++) {
        const double M = images.pixels(), r = images.rstd[c], g = images.gamma[c];
        const double d = sums[c] / M, D = sums[C + c] / M, mean_u = sums[2 * C + c] / M, A = sums[3 * C + c] * r / M;
        const double E = sums[4 * C + c] / M - mean_u * d - A * D;  // mean(u Q(d))
        by_u[c] = 2 * d_var[c] / M - g * r * r * D;
        by_d[c] = by_gamma[c] * r - g * r * r * A;
        constant[c] = -by_u[c] * mean_u - by_d[c] * d;
        slope[c] = r * (g * r * r * (D * A - E) - by_d[c] * D);
        scale[c] = g * r;
        at_d[c] = by_beta[c] - g * r * mean_u;
        at_pooled[c] = by_gamma[c] - g * r * A;
        out_gamma[c] = r * M * E;
        out_mean[c] = mean_u;
        out_var[c] = 2 * A / r;
    }
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        auto base = [&](int64_t at, int64_t c, V u) {
            return load(&constant[c]) + (load(images.x + at) - load(images.mean + c)) * load(&slope[c]) + u * load(&by_u[c]);
        };
        visit(images, row, row + 1, [&](int64_t pixel, int64_t stride, int64_t from, int64_t c) {
            const I which = __builtin_convertvector(load(images.chosen + from), I);
            const V d = load(&by_d[c]) * load(d_y + from);
            const int64_t at[4] = {pixel, pixel + C, pixel + stride, pixel + stride + C};
            V all[4];
            for (int k = 0; k < 4; k++) {
                all[k] = load(u + at[k]);
                store(out_x + at[k], base(at[k], c, all[k]) + (which == k ? d : V{}));
            }
            const V out = load(&at_d[c]) + load(&scale[c]) * chosen(which, all) + load(&at_pooled[c]) * load(images.pooled + from);
            store(out_d_y + from, which < DEAD ? out : V{});
        }, [&](int64_t at, int64_t c) { store(out_x + at, base(at, c, load(u + at))); });
    }
}

// What kernels.py calls: sizes, and the addresses of the arrays in the order in which they are taken here. --------------

struct Arrays {
    void** next;
    template <class P> operator P*() { return static_cast<P*>(*next++); }
};

template <class T> Cell<T> cell_of(const int64_t* sizes, double scale, Arrays& from) {
    return {sizes[0], sizes[1], int(sizes[2]), T(scale), from, from, from, from, from, from, from, from, from};
}

template <class S> Images<S> images_of(const int64_t* sizes, Arrays& from) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], from, from, from, from, from, from};
}

}  // namespace

// run(T()) with the T that takes this many bytes.
template <class Run> void with_type(int bytes, Run run) {
    if (bytes == 2) run(bfloat16());
    else if (bytes == 4) run(float());
    else run(double());
}
template <class Run> void with_number(int bytes, Run run) {
    if (bytes == 4) run(float());
    else run(double());
}

extern "C" {

void metalstm_cell_forward(int bytes, const int64_t* sizes, double scale, void** arrays, int threads) {
    with_number(bytes, [&](auto zero) {
        using T = decltype(zero);
        Arrays from{arrays};
        const Cell<T> cell = cell_of<T>(sizes, scale, from);
        cell_forward(cell, Stepped<T>{from, from, from, from, from}, threads);
    });
}

void metalstm_cell_backward(int bytes, const int64_t* sizes, double scale, void** arrays, int threads) {
    with_number(bytes, [&](auto zero) {
        using T = decltype(zero);
        Arrays from{arrays};
        const Cell<T> cell = cell_of<T>(sizes, scale, from);
        const T* new_f = from;
        const T* new_i = from;
        const Cotangents<T> given{from, from, from, from, from};
        cell_backward(cell, new_f, new_i, given, Gradients<T>{from, from, from, from, from, from, from, from, from}, threads);
    });
}

void metalstm_block_forward(int bytes, const int64_t* sizes, int given, double eps, void** arrays, int threads) {
    with_type(bytes, [&](auto zero) {
        using S = decltype(zero);
        using N = typename Images<S>::N;
        Arrays from{arrays};
        const Images<S> images = images_of<S>(sizes, from);
        const N* beta = from;
        S* y = from;
        N *var = from, *mean = const_cast<N*>(images.mean), *rstd = const_cast<N*>(images.rstd);
        const int64_t C = images.channels;
        if (!given) moments(images.x, images.n * images.height * images.width, C, mean, var, threads);
        for (int64_t c = 0; c < C; c++) rstd[c] = 1 / std::sqrt(var[c] + N(eps));
        block_forward(images, beta, y, const_cast<S*>(images.pooled), const_cast<uint8_t*>(images.chosen), threads);
    });
}

void metalstm_block_backward(int bytes, const int64_t* sizes, int given, void** arrays, int threads) {
    with_type(bytes, [&](auto zero) {
        using S = decltype(zero);
        using N = typename Images<S>::N;
        Arrays from{arrays};
        const Images<S> images = images_of<S>(sizes, from);
        const S* d_y = from;
        S* d_x = from;
        N *d_gamma = from, *d_beta = from, *d_mean = from, *d_var = from;
        block_backward(images, given != 0, d_y, d_x, d_gamma, d_beta, d_mean, d_var, threads);
    });
}

void metalstm_block_double_backward(int bytes, const int64_t* sizes, void** arrays, int threads) {
    with_type(bytes, [&](auto zero) {
        using S = decltype(zero);
        using N = typename Images<S>::N;
        Arrays from{arrays};
        const Images<S> images = images_of<S>(sizes, from);
        const S* d_y = from;
        const N* d_var = from;
        const S* u = from;
        const N *by_gamma = from, *by_beta = from;
        S *out_d_y = from, *out_x = from;
        N *out_gamma = from, *out_mean = from, *out_var = from;
        block_double_backward(
            images, d_y, d_var, u, by_gamma, by_beta, out_d_y, out_x, out_gamma, out_mean, out_var, threads
        );
    });
}

}  // extern "C"
