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

// e^x for |x| <= LIMIT, and that of the bound beyond; NaN stays NaN. sigmoid(LIMIT) is 1 to the last bit, a product of
// four (1 + e^LIMIT) is finite, and no sigmoid is less than e^-LIMIT.
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

// out (rows, BLOCK) = a (rows, depth; row stride a_stride) @ b (depth, BLOCK), given by their rows; rows a multiple of TILE.
template <class T> void product(int rows, int depth, const T* a, int a_stride, const T* const* b, T* const* out) {
    using V = typename Traits<T>::Vector;
    constexpr int HALF = WIDTH / 2;
    for (int row = 0; row < rows; row += TILE)
        for (int half = 0; half < BLOCK; half += HALF * LANES) {
            V total[TILE][HALF] = {};
            for (int k = 0; k < depth; k++) {
                V column[HALF];
                for (int w = 0; w < HALF; w++) column[w] = load(b[k] + half + w * LANES);
                for (int r = 0; r < TILE; r++) {
                    const T factor = a[(row + r) * a_stride + k];
                    for (int w = 0; w < HALF; w++) total[r][w] += factor * column[w];
                }
            }
            for (int r = 0; r < TILE; r++)
                for (int w = 0; w < HALF; w++) store(out[row + r] + half + w * LANES, total[r][w]);
        }
}

// total (rows, columns, LANES) += a (rows, BLOCK) . b (columns, BLOCK), lane by lane; both multiples of TILE.
template <class T> void outer(int rows, int columns, const T* const* a, const T* const* b, T* total) {
    using V = typename Traits<T>::Vector;
    for (int row = 0; row < rows; row += TILE)
        for (int column = 0; column < columns; column += TILE) {
            V tile[TILE][TILE];
            for (int r = 0; r < TILE; r++)
                for (int s = 0; s < TILE; s++) tile[r][s] = load(total + ((row + r) * columns + column + s) * LANES);
            for (int w = 0; w < BLOCK; w += LANES) {
                V right[TILE];
                for (int s = 0; s < TILE; s++) right[s] = load(b[column + s] + w);
                for (int r = 0; r < TILE; r++) {
                    const V left = load(a[row + r] + w);
                    for (int s = 0; s < TILE; s++) tile[r][s] += left * right[s];
                }
            }
            for (int r = 0; r < TILE; r++)
                for (int s = 0; s < TILE; s++) store(total + ((row + r) * columns + column + s) * LANES, tile[r][s]);
        }
}

// The weights, as in MetaLSTM, or their gradients.
template <class P> struct Weights {
    P x;           // (4 hidden, 4): the LSTM's, for the preprocessed gradient and loss
    P h;           // (4 hidden, hidden)
    P bias;        // (4 hidden)
    P f, i;        // (hidden + 2): the gates', for h, theta and the previous gate
    P bias_f, bias_i;
};

// What goes into a step or comes out of it: (tasks, n), or (tasks, hidden, n) for h and c.
template <class P> struct State { P theta, h, c, f, i; };

template <class T> struct Cell {
    int64_t tasks, n;
    int hidden;
    T scale;  // p of the preprocessing
    Weights<const T*> weights;
    const T *grad, *loss;  // (tasks, n), (tasks)
    State<const T*> state;
};

template <class T> struct Gradients {
    Weights<T*> weights;
    T *grad, *loss;
    State<T*> state;
};

// What one thread works with: BLOCK coordinates at a time. Whole blocks are read and written where they lie, the last
// one of a task, if it is shorter, by way of a copy filled up with zeros.
template <class T> class CellBlock {
    using V = typename Traits<T>::Vector;

    const Cell<T>& cell;
    const Weights<const T*>& weights;
    const int H, depth, columns;  // the LSTM's inputs: preprocessed gradient, h, and 1 for the bias; rounded up
    int64_t task = -1, start = 0, count = 0;
    T loss[2], d_loss[2];               // the preprocessed loss, and its derivative
    std::vector<T> weight, transposed;  // (4 H, columns), (columns, 4 H)
    std::vector<T> in, gate;            // (columns, BLOCK), (4 H, BLOCK)
    std::vector<T> copies;              // (2 H + 24, BLOCK)
    std::vector<const T*> in_rows;      // of the LSTM's inputs; those of h are not in `in`
    std::vector<const T*> gate_rows;
    std::vector<T*> gate_places, out_rows;
    size_t copied = 0;
    std::vector<T> d_weight, d_gates;  // sums, one a lane: (4 H, columns, LANES), (2, H + 3, LANES)

    T* copy() { return &copies[copied++ * BLOCK]; }

    // The block's part of a row of n.
    const T* read(const T* array, int64_t row) {
        const T* from = array + row * cell.n + start;
        for (int k = 0; k < BLOCK; k += LANES) __builtin_prefetch(from + BLOCK + k);  // the next one
        if (count == BLOCK) return from;
        T* to = copy();
        std::fill(std::copy_n(from, count, to), to + BLOCK, T(0));
        return to;
    }
    // Where to write it; `finish` when it is written.
    T* place(T* array, int64_t row) {
        T* to = array + row * cell.n + start;
        for (int k = 0; k < BLOCK; k += LANES) __builtin_prefetch(to + BLOCK + k, 1);
        return count == BLOCK ? to : copy();
    }
    void finish(T* array, int64_t row, const T* written) const {
        if (count < BLOCK) std::copy_n(written, count, array + row * cell.n + start);
    }

    static void add(T* lanes, V v) { store(lanes, load(lanes) + v); }
    static V sigmoid(V x) { return 1 / (1 + bounded_exp(-x)); }

    // The LSTM's inputs and its gates before their nonlinearities.
    void prepare(const T* grad) {
        for (int w = 0; w < BLOCK; w += LANES) {
            const V x = load(grad + w), size = x < 0 ? -x : x, scaled = x * slope;
            store(&in[w], log_of(size < threshold ? V{} + threshold : size) / cell.scale);
            store(&in[BLOCK + w], scaled > 1 ? V{} + 1 : scaled < -1 ? V{} - 1 : scaled);
        }
        for (int q = 0; q < H; q++) in_rows[2 + q] = read(cell.state.h, task * H + q);
        product(4 * H, depth, weight.data(), columns, in_rows.data(), gate_places.data());
    }

    void go_to(int64_t at) {
        start = at;
        count = std::min<int64_t>(BLOCK, cell.n - start);
        copied = 0;
    }

    const T threshold, slope;

  public:
    explicit CellBlock(const Cell<T>& cell)
        : cell(cell), weights(cell.weights), H(cell.hidden), depth(H + 3), columns(padded(depth)),
          weight(4 * H * columns), transposed(columns * 4 * H), in(columns * BLOCK), gate(4 * H * BLOCK),
          copies((2 * H + 24) * BLOCK), in_rows(columns), gate_rows(4 * H), gate_places(4 * H), out_rows(columns),
          d_weight(4 * H * columns * LANES), d_gates(2 * (H + 3) * LANES), threshold(std::exp(-cell.scale)),
          slope(std::exp(cell.scale)) {
        for (int k = 0; k < columns; k++) in_rows[k] = &in[k * BLOCK];
        for (int k = 0; k < 4 * H; k++) gate_rows[k] = gate_places[k] = &gate[k * BLOCK];
        std::fill_n(&in[(2 + H) * BLOCK], BLOCK, T(1));
    }

    void enter(int64_t which) {
        task = which;
        const T x = cell.loss[task], size = std::abs(x);
        const bool large = !(size < threshold);
        loss[0] = large ? std::log(size) / cell.scale : T(-1);
        loss[1] = large ? (x > 0 ? T(1) : T(-1)) : x * slope;
        d_loss[0] = large ? 1 / (cell.scale * x) : T(0);
        d_loss[1] = large ? T(0) : slope;
        for (int row = 0; row < 4 * H; row++) {
            const T* from = weights.x + row * 4;
            T* to = &weight[row * columns];
            std::copy_n(from, 2, to);
            std::copy_n(weights.h + row * H, H, to + 2);
            to[H + 2] = weights.bias[row] + from[2] * loss[0] + from[3] * loss[1];
            for (int k = 0; k < columns; k++) transposed[k * 4 * H + row] = to[k];
        }
    }

    void forward(int64_t at, const State<T*>& out) {
        go_to(at);
        const T *wf = weights.f, *wi = weights.i;
        const T *theta = read(cell.state.theta, task), *grad = read(cell.grad, task);
        const T *f = read(cell.state.f, task), *i = read(cell.state.i, task);
        prepare(grad);
        V new_f[WIDTH], new_i[WIDTH];
        for (int w = 0; w < WIDTH; w++) {
            const int j = w * LANES;
            new_f[w] = wf[H] * load(theta + j) + wf[H + 1] * load(f + j) + *weights.bias_f;
            new_i[w] = wi[H] * load(theta + j) + wi[H + 1] * load(i + j) + *weights.bias_i;
        }
        for (int q = 0; q < H; q++) {
            const T* c = read(cell.state.c, task * H + q);
            T *out_c = place(out.c, task * H + q), *out_h = place(out.h, task * H + q);
            const T *input_gate = gate_rows[q], *forget_gate = gate_rows[H + q], *cell_gate = gate_rows[2 * H + q];
            const T* output_gate = gate_rows[3 * H + q];
            for (int j = 0; j < BLOCK; j += LANES) {
                // Three divisions for five nonlinearities: sigmoid(x) = 1 / (1 + e^-x), tanh(x) = (1 - e^-2x) / (1 + e^-2x).
                const V input = 1 + bounded_exp(-load(input_gate + j)), forget = 1 + bounded_exp(-load(forget_gate + j));
                const V e = bounded_exp(-2 * load(cell_gate + j)), both = input * (1 + e);
                const V new_c = (load(c + j) * both + (1 - e) * forget) / (forget * both);
                const V output = 1 + bounded_exp(-load(output_gate + j)), e_c = bounded_exp(-2 * new_c);
                const V h = (1 - e_c) / ((1 + e_c) * output);
                store(out_c + j, new_c);
                store(out_h + j, h);
                new_f[j / LANES] += wf[q] * h;
                new_i[j / LANES] += wi[q] * h;
            }
            finish(out.c, task * H + q, out_c);
            finish(out.h, task * H + q, out_h);
            if (count < BLOCK) copied -= 3;
        }
        T *out_theta = place(out.theta, task), *out_f = place(out.f, task), *out_i = place(out.i, task);
        for (int w = 0; w < WIDTH; w++) {
            const int j = w * LANES;
            store(out_theta + j, sigmoid(new_f[w]) * load(theta + j) - sigmoid(new_i[w]) * load(grad + j));
            store(out_f + j, new_f[w]);
            store(out_i + j, new_i[w]);
        }
        finish(out.theta, task, out_theta);
        finish(out.f, task, out_f);
        finish(out.i, task, out_i);
    }

    // `given` are the cotangents of what `forward` gave, new_f and new_i two of those.
    void backward(int64_t at, const T* new_f, const T* new_i, const State<const T*>& given, const Gradients<T>& out) {
        go_to(at);
        const T *wf = weights.f, *wi = weights.i;
        const T *theta = read(cell.state.theta, task), *grad = read(cell.grad, task);
        const T *f = read(cell.state.f, task), *i = read(cell.state.i, task);
        const T *gate_f = read(new_f, task), *gate_i = read(new_i, task);
        const T *by_theta = read(given.theta, task), *by_f = read(given.f, task), *by_i = read(given.i, task);
        T *out_theta = place(out.state.theta, task), *out_grad = place(out.grad, task);
        T *out_f = place(out.state.f, task), *out_i = place(out.state.i, task);
        prepare(grad);
        V d_f[WIDTH], d_i[WIDTH];
        T *sums_f = d_gates.data(), *sums_i = sums_f + (H + 3) * LANES;
        for (int w = 0; w < WIDTH; w++) {
            const int j = w * LANES;
            const V before = load(theta + j), x = load(grad + j), d_theta = load(by_theta + j);
            const V sf = sigmoid(load(gate_f + j)), si = sigmoid(load(gate_i + j));
            d_f[w] = load(by_f + j) + d_theta * before * sf * (1 - sf);
            d_i[w] = load(by_i + j) - d_theta * x * si * (1 - si);
            add(sums_f + H * LANES, d_f[w] * before);
            add(sums_i + H * LANES, d_i[w] * before);
            add(sums_f + (H + 1) * LANES, d_f[w] * load(f + j));
            add(sums_i + (H + 1) * LANES, d_i[w] * load(i + j));
            add(sums_f + (H + 2) * LANES, d_f[w]);
            add(sums_i + (H + 2) * LANES, d_i[w]);
            store(out_theta + j, d_theta * sf + d_f[w] * wf[H] + d_i[w] * wi[H]);
            store(out_grad + j, -d_theta * si);
            store(out_f + j, d_f[w] * wf[H + 1]);
            store(out_i + j, d_i[w] * wi[H + 1]);
        }
        finish(out.state.theta, task, out_theta);
        finish(out.state.f, task, out_f);
        finish(out.state.i, task, out_i);
        for (int q = 0; q < H; q++) {
            const T* c = read(cell.state.c, task * H + q);
            const T *d_h = read(given.h, task * H + q), *d_c = read(given.c, task * H + q);
            T* out_c = place(out.state.c, task * H + q);
            T *input_gate = gate_places[q], *forget_gate = gate_places[H + q], *cell_gate = gate_places[2 * H + q];
            T* output_gate = gate_places[3 * H + q];
            V sum_f = {}, sum_i = {};
            for (int w = 0; w < WIDTH; w++) {
                const int j = w * LANES;
                // Two divisions for all: of the product of four, and of the last tanh.
                const V of_input = 1 + bounded_exp(-load(input_gate + j)), of_forget = 1 + bounded_exp(-load(forget_gate + j));
                const V e = bounded_exp(-2 * load(cell_gate + j)), of_cell = 1 + e;
                const V of_output = 1 + bounded_exp(-load(output_gate + j));
                const V left = of_input * of_forget, right = of_cell * of_output, inverse = 1 / (left * right);
                const V input = of_forget * right * inverse, forget = of_input * right * inverse;
                const V value = (1 - e) * left * of_output * inverse, output = left * of_cell * inverse;
                const V before = load(c + j), e_c = bounded_exp(-2 * (forget * before + input * value));
                const V tanh_c = (1 - e_c) / (1 + e_c), h = output * tanh_c;
                sum_f += d_f[w] * h;
                sum_i += d_i[w] * h;
                const V by_h = load(d_h + j) + d_f[w] * wf[q] + d_i[w] * wi[q];
                const V by_c = load(d_c + j) + by_h * output * (1 - tanh_c * tanh_c);
                store(input_gate + j, by_c * value * input * (1 - input));
                store(forget_gate + j, by_c * before * forget * (1 - forget));
                store(cell_gate + j, by_c * input * (1 - value * value));
                store(output_gate + j, by_h * tanh_c * output * (1 - output));
                store(out_c + j, by_c * forget);
            }
            add(sums_f + q * LANES, sum_f);
            add(sums_i + q * LANES, sum_i);
            finish(out.state.c, task * H + q, out_c);
            if (count < BLOCK) copied -= 4;
        }
        outer(4 * H, columns, gate_rows.data(), in_rows.data(), d_weight.data());
        T *d_log = copy(), *d_sign = copy(), *unused = copy();
        out_rows[0] = d_log;
        out_rows[1] = d_sign;
        for (int q = 0; q < H; q++) out_rows[2 + q] = place(out.state.h, task * H + q);
        for (int k = H + 2; k < columns; k++) out_rows[k] = unused;
        product(columns, 4 * H, transposed.data(), 4 * H, gate_rows.data(), out_rows.data());
        for (int q = 0; q < H; q++) finish(out.state.h, task * H + q, out_rows[2 + q]);
        for (int j = 0; j < BLOCK; j += LANES) {
            const V x = load(grad + j), size = x < 0 ? -x : x;
            const V by_log = size >= threshold ? load(d_log + j) / (cell.scale * x) : V{};
            const V by_sign = size <= threshold ? load(d_sign + j) * slope : V{};
            store(out_grad + j, load(out_grad + j) + by_log + by_sign);
        }
        finish(out.grad, task, out_grad);
    }

    // Add the sums since `enter` to the gradients of weights and loss.
    void leave(const Gradients<T>& out) {
        auto sum_of = [this](int row, int k) { return sum(load(&d_weight[(row * columns + k) * LANES])); };
        for (int row = 0; row < 4 * H; row++) {
            const T bias = sum_of(row, H + 2), *x = weights.x + row * 4;
            for (int k = 0; k < 2; k++) {
                out.weights.x[row * 4 + k] += sum_of(row, k);
                out.weights.x[row * 4 + 2 + k] += bias * loss[k];
                out.loss[task] += bias * x[2 + k] * d_loss[k];
            }
            for (int q = 0; q < H; q++) out.weights.h[row * H + q] += sum_of(row, 2 + q);
            out.weights.bias[row] += bias;
        }
        auto gate_sum = [this](int k) { return sum(load(&d_gates[k * LANES])); };
        for (int k = 0; k < H + 2; k++) {
            out.weights.f[k] += gate_sum(k);
            out.weights.i[k] += gate_sum(H + 3 + k);
        }
        *out.weights.bias_f += gate_sum(H + 2);
        *out.weights.bias_i += gate_sum(2 * H + 5);
        std::fill(d_weight.begin(), d_weight.end(), T(0));
        std::fill(d_gates.begin(), d_gates.end(), T(0));
    }
};

template <class T> void cell_forward(const Cell<T>& cell, const State<T*>& out, int threads) {
    const int64_t blocks = (cell.n + BLOCK - 1) / BLOCK, all = cell.tasks * blocks;
    threads = int(std::min<int64_t>(threads, all));
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
    const Cell<T>& cell, const T* new_f, const T* new_i, const State<const T*>& given, const Gradients<T>& out, int threads
) {
    const int64_t blocks = (cell.n + BLOCK - 1) / BLOCK, all = cell.tasks * blocks;
    const int H = cell.hidden;
    threads = int(std::min<int64_t>(threads, all));
    // Of weights and losses each thread has sums of its own, added in the threads' order, so that they come out the same.
    T* const places[] = {out.weights.x, out.weights.h, out.weights.bias, out.weights.f, out.weights.i,
                         out.weights.bias_f, out.weights.bias_i, out.loss};
    const int64_t sizes[] = {16 * H, 4 * H * H, 4 * H, H + 2, H + 2, 1, 1, cell.tasks};
    int64_t size = 0;
    for (int64_t each : sizes) size += each;
    std::vector<T> sums(threads * size);
    #pragma omp parallel num_threads(threads)
    {
        CellBlock<T> worker(cell);
        T *parts[8], *next = &sums[omp_get_thread_num() * size];
        for (int k = 0; k < 8; next += sizes[k++]) parts[k] = next;
        const Gradients<T> mine{
            {parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6]}, out.grad, parts[7], out.state};
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
    const T* next = sums.data();
    for (int k = 0; k < 8; next += sizes[k++])
        for (int64_t j = 0; j < sizes[k]; j++) {
            places[k][j] = 0;
            for (int thread = 0; thread < threads; thread++) places[k][j] += next[thread * size + j];
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

// The gradients of block_backward's outputs: of d_x (u), d_gamma and d_beta, to its inputs d_y, x and gamma, and without
// given moments to d_mean and d_var. With Q(v) = v - mean(v) - normalised * mean(v * normalised), linear and symmetric,
// d_x = gamma rstd Q(d) + ..., and normalised itself has the derivative rstd Q in x.
template <class S, class N = typename Images<S>::N>
void block_double_backward(
    const Images<S>& images, bool given, const S* d_y, const N* d_var, const S* u, const N* by_gamma, const N* by_beta,
    S* out_d_y, S* out_x, N* out_gamma, N* out_mean, N* out_var, int threads
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
        if (given) {  // constants: d_x = gamma rstd d
            by_d[c] = by_gamma[c] * r;
            scale[c] = g * r;
            at_d[c] = by_beta[c];
            at_pooled[c] = by_gamma[c];
            out_gamma[c] = r * sums[4 * C + c];
            continue;
        }
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
    return {sizes[0],
            sizes[1],
            int(sizes[2]),
            T(scale),
            {from, from, from, from, from, from, from},
            from,
            from,
            {from, from, from, from, from}};
}

}  // namespace

// run(T()) with the T that takes this many bytes, for images run(the images, the rest of the arrays, S()).
template <class Run> void with_number(int bytes, Run run) {
    if (bytes == 4) run(float());
    else run(double());
}
template <class Run> void with_images(int bytes, const int64_t* sizes, void** arrays, Run run) {
    auto typed = [&](auto zero) {
        Arrays from{arrays};
        using S = decltype(zero);
        run(Images<S>{sizes[0], sizes[1], sizes[2], sizes[3], from, from, from, from, from, from}, from, zero);
    };
    if (bytes == 2) typed(bfloat16());
    else with_number(bytes, typed);
}

extern "C" {

void metalstm_cell_forward(int bytes, const int64_t* sizes, double scale, void** arrays, int threads) {
    with_number(bytes, [&](auto zero) {
        using T = decltype(zero);
        Arrays from{arrays};
        const Cell<T> cell = cell_of<T>(sizes, scale, from);
        cell_forward(cell, State<T*>{from, from, from, from, from}, threads);
    });
}

void metalstm_cell_backward(int bytes, const int64_t* sizes, double scale, void** arrays, int threads) {
    with_number(bytes, [&](auto zero) {
        using T = decltype(zero);
        Arrays from{arrays};
        const Cell<T> cell = cell_of<T>(sizes, scale, from);
        const T* new_f = from;
        const T* new_i = from;
        const State<const T*> given{from, from, from, from, from};
        const Gradients<T> out{
            {from, from, from, from, from, from, from}, from, from, {from, from, from, from, from}};
        cell_backward(cell, new_f, new_i, given, out, threads);
    });
}

void metalstm_block_forward(int bytes, const int64_t* sizes, int given, double eps, void** arrays, int threads) {
    with_images(bytes, sizes, arrays, [&](const auto& images, Arrays& from, auto zero) {
        using S = decltype(zero);
        using N = typename Images<S>::N;
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
    with_images(bytes, sizes, arrays, [&](const auto& images, Arrays& from, auto zero) {
        using S = decltype(zero);
        using N = typename Images<S>::N;
        const S* d_y = from;
        S* d_x = from;
        N *d_gamma = from, *d_beta = from, *d_mean = from, *d_var = from;
        block_backward(images, given != 0, d_y, d_x, d_gamma, d_beta, d_mean, d_var, threads);
    });
}

void metalstm_block_double_backward(int bytes, const int64_t* sizes, int given, void** arrays, int threads) {
    with_images(bytes, sizes, arrays, [&](const auto& images, Arrays& from, auto zero) {
        using S = decltype(zero);
        using N = typename Images<S>::N;
        const S* d_y = from;
        const N* d_var = from;
        const S* u = from;
        const N *by_gamma = from, *by_beta = from;
        S *out_d_y = from, *out_x = from;
        N *out_gamma = from, *out_mean = from, *out_var = from;
        block_double_backward(
            images, given, d_y, d_var, u, by_gamma, by_beta, out_d_y, out_x, out_gamma, out_mean, out_var, threads
        );
    });
}

}  // extern "C"
