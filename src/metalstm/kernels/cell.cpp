// The meta-learner's cell. The lanes of a vector are coordinates of theta.

#include "vectors.h"

namespace {

// e^x with x clamped to -LIMIT..LIMIT; NaN stays NaN. sigmoid(LIMIT) is 1 to the last bit, a product of four
// (1 + e^LIMIT) is finite, and no sigmoid is less than e^-LIMIT.
constexpr float LIMIT_FLOAT = 20;
constexpr double LIMIT_DOUBLE = 45;

inline floats bounded_exp(floats x) {
    const floats limit = floats{} + LIMIT_FLOAT;
    x = limit < x ? limit : x;
    x = -limit > x ? -limit : x;
    const float magic = 12582912;  // 1.5 * 2^23: adding it rounds to an integer and leaves that in the low bits
    const floats shifted = x * 1.44269504f + magic;
    const floats k = shifted - magic;
    const floats r = x - k * 0.693359375f + k * 2.12194440e-4f;
    // Taylor's polynomial; |r| <= ln(2) / 2, where its error is at most 2e-8.
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

// ln x for normal x > 0; NaN if x is NaN or infinite.
inline floats log_of(floats x) {
    const ints bits = cast<ints>(x) - 0x3f3504f3;  // the bits of sqrt(1/2)
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

#define CELL(FIELD) \
    FIELD(int64_t, tasks, "") \
    FIELD(int64_t, n, "") \
    FIELD(int64_t, hidden, "") \
    FIELD(double, scale, "") /* p in (1) */ \
    FIELD(const T*, weight_x, "4*hidden, 4") \
    FIELD(const T*, weight_h, "4*hidden, hidden") \
    FIELD(const T*, bias, "4*hidden") \
    FIELD(const T*, weight_f, "hidden+2") \
    FIELD(const T*, weight_i, "hidden+2") \
    FIELD(const T*, grad, "*tasks, n") \
    FIELD(const T*, loss, "*tasks") \
    FIELD(const T*, theta, "*tasks, n") \
    FIELD(const T*, h, "*tasks, hidden, n") \
    FIELD(const T*, c, "*tasks, hidden, n") \
    FIELD(const T*, f, "*tasks, n") \
    FIELD(const T*, i, "*tasks, n")

#define CELL_FORWARD(FIELD) \
    FIELD(const T*, bias_f, "") \
    FIELD(const T*, bias_i, "") \
    FIELD(T*, new_theta, "*tasks, n") \
    FIELD(T*, new_h, "*tasks, hidden, n") \
    FIELD(T*, new_c, "*tasks, hidden, n") \
    FIELD(T*, new_f, "*tasks, n") \
    FIELD(T*, new_i, "*tasks, n")

// new_f and new_i are outputs of the forward pass, which saves them; new_h and new_c are computed again.
#define CELL_BACKWARD(FIELD) \
    FIELD(const T*, new_f, "*tasks, n") \
    FIELD(const T*, new_i, "*tasks, n") \
    FIELD(const T*, d_new_theta, "*tasks, n") \
    FIELD(const T*, d_new_h, "*tasks, hidden, n") \
    FIELD(const T*, d_new_c, "*tasks, hidden, n") \
    FIELD(const T*, d_new_f, "*tasks, n") \
    FIELD(const T*, d_new_i, "*tasks, n") \
    FIELD(T*, d_weight_x, "4*hidden, 4") \
    FIELD(T*, d_weight_h, "4*hidden, hidden") \
    FIELD(T*, d_bias, "4*hidden") \
    FIELD(T*, d_weight_f, "hidden+2") \
    FIELD(T*, d_weight_i, "hidden+2") \
    FIELD(T*, d_bias_f, "") \
    FIELD(T*, d_bias_i, "") \
    FIELD(T*, d_grad, "*tasks, n") \
    FIELD(T*, d_loss, "*tasks") \
    FIELD(T*, d_theta, "*tasks, n") \
    FIELD(T*, d_h, "*tasks, hidden, n") \
    FIELD(T*, d_c, "*tasks, hidden, n") \
    FIELD(T*, d_f, "*tasks, n") \
    FIELD(T*, d_i, "*tasks, n")

template <class T> struct Cell { CELL(DECLARE) };
template <class T> struct CellForward { Cell<T> cell; CELL_FORWARD(DECLARE) };
template <class T> struct CellBackward { Cell<T> cell; CELL_BACKWARD(DECLARE) };

const char ARGUMENTS[] =
    "cell_forward\n" CELL(DESCRIBE) CELL_FORWARD(DESCRIBE)
    "cell_backward\n" CELL(DESCRIBE) CELL_BACKWARD(DESCRIBE);

// calls.py writes every field in 8 bytes.
static_assert(sizeof(CellForward<float>) == 8 * (0 CELL(COUNT) CELL_FORWARD(COUNT)), "no gaps");
static_assert(sizeof(CellBackward<float>) == 8 * (0 CELL(COUNT) CELL_BACKWARD(COUNT)), "no gaps");

constexpr int WIDTH = 8;              // vectors in a block of coordinates
constexpr int BLOCK = WIDTH * LANES;  // coordinates in it

// out (rows, BLOCK) = a (rows, depth; row stride a_stride) @ b (depth, BLOCK). b and out are arrays of pointers to
// rows. `rows` is a multiple of TILE.
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

// total (rows, columns, LANES) += a (rows, BLOCK) . b (columns, BLOCK), each lane by itself; `rows` and `columns` are
// multiples of TILE.
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

// The work of one thread, on BLOCK coordinates at a time. Whole blocks are read and written in place. If the last block
// of a task is shorter, it goes through a copy padded with zeros.
template <class T> class CellBlock {
    using V = typename Traits<T>::Vector;

    const Cell<T>& cell;
    const int H, depth, columns;  // `depth` inputs of (4): preprocessed gradient, h, and 1; `columns` is depth, padded
    const T p;
    int64_t task = -1, start = 0, count = 0;
    T loss[2], d_loss[2];               // b in (3), the preprocessed loss, and its derivative
    std::vector<T> weight, transposed;  // W in (4): (4 H, columns), (columns, 4 H)
    std::vector<T> in, gate;            // in and s in (4): (columns, BLOCK), (4 H, BLOCK)
    std::vector<T> copies;              // (2 H + 24, BLOCK)
    std::vector<const T*> in_rows;      // the rows of (4); those of h are not copied into `in`
    std::vector<const T*> gate_rows;
    std::vector<T*> gate_places, out_rows;
    size_t copied = 0;
    std::vector<T> d_weight, d_gates;   // a sum per lane, (17) and (12): (4 H, columns, LANES), (2, H + 3, LANES)

    T* copy() { return &copies[copied++ * BLOCK]; }

    // This block's part of a row of n numbers.
    const T* read(const T* array, int64_t row) {
        const T* from = array + row * cell.n + start;
        for (int k = 0; k < BLOCK; k += LANES) __builtin_prefetch(from + BLOCK + k);  // the next one
        if (count == BLOCK) return from;
        T* to = copy();
        std::fill(std::copy_n(from, count, to), to + BLOCK, T(0));
        return to;
    }
    // Where to write that part. Call `finish` when it is written.
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

    // (2) and (4).
    void prepare(const T* grad) {
        for (int w = 0; w < BLOCK; w += LANES) {
            const V x = load(grad + w), size = x < 0 ? -x : x, scaled = x * slope;
            store(&in[w], log_of(size < threshold ? V{} + threshold : size) / p);
            store(&in[BLOCK + w], scaled > 1 ? V{} + 1 : scaled < -1 ? V{} - 1 : scaled);
        }
        for (int q = 0; q < H; q++) in_rows[2 + q] = read(cell.h, task * H + q);
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
        : cell(cell), H(int(cell.hidden)), depth(H + 3), columns(padded(depth)), p(T(cell.scale)),
          weight(4 * H * columns), transposed(columns * 4 * H), in(columns * BLOCK), gate(4 * H * BLOCK),
          copies((2 * H + 24) * BLOCK), in_rows(columns), gate_rows(4 * H), gate_places(4 * H), out_rows(columns),
          d_weight(4 * H * columns * LANES), d_gates(2 * (H + 3) * LANES), threshold(std::exp(-p)),
          slope(std::exp(p)) {
        for (int k = 0; k < columns; k++) in_rows[k] = &in[k * BLOCK];
        for (int k = 0; k < 4 * H; k++) gate_rows[k] = gate_places[k] = &gate[k * BLOCK];
        std::fill_n(&in[(2 + H) * BLOCK], BLOCK, T(1));
    }

    // (3), and the weights of (4).
    void enter(int64_t which) {
        task = which;
        const T x = cell.loss[task], size = std::abs(x);
        const bool large = !(size < threshold);
        loss[0] = large ? std::log(size) / p : T(-1);
        loss[1] = large ? (x > 0 ? T(1) : T(-1)) : x * slope;
        d_loss[0] = large ? 1 / (p * x) : T(0);
        d_loss[1] = large ? T(0) : slope;
        for (int row = 0; row < 4 * H; row++) {
            const T* from = cell.weight_x + row * 4;
            T* to = &weight[row * columns];
            std::copy_n(from, 2, to);
            std::copy_n(cell.weight_h + row * H, H, to + 2);
            to[H + 2] = cell.bias[row] + from[2] * loss[0] + from[3] * loss[1];
            for (int k = 0; k < columns; k++) transposed[k * 4 * H + row] = to[k];
        }
    }

    void forward(int64_t at, const CellForward<T>& args) {
        go_to(at);
        const T *wf = cell.weight_f, *wi = cell.weight_i;
        const T *theta = read(cell.theta, task), *grad = read(cell.grad, task);
        const T *f = read(cell.f, task), *i = read(cell.i, task);
        prepare(grad);
        V new_f[WIDTH], new_i[WIDTH];  // (7)
        for (int w = 0; w < WIDTH; w++) {
            const int j = w * LANES;
            new_f[w] = wf[H] * load(theta + j) + wf[H + 1] * load(f + j) + *args.bias_f;
            new_i[w] = wi[H] * load(theta + j) + wi[H + 1] * load(i + j) + *args.bias_i;
        }
        for (int q = 0; q < H; q++) {
            const T* c = read(cell.c, task * H + q);
            T *out_c = place(args.new_c, task * H + q), *out_h = place(args.new_h, task * H + q);
            const T *input_gate = gate_rows[q], *forget_gate = gate_rows[H + q], *cell_gate = gate_rows[2 * H + q];
            const T* output_gate = gate_rows[3 * H + q];
            for (int j = 0; j < BLOCK; j += LANES) {
                // (5) and (6), with two divisions: (9).
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
            finish(args.new_c, task * H + q, out_c);
            finish(args.new_h, task * H + q, out_h);
            if (count < BLOCK) copied -= 3;
        }
        T *out_theta = place(args.new_theta, task), *out_f = place(args.new_f, task), *out_i = place(args.new_i, task);
        for (int w = 0; w < WIDTH; w++) {  // (8)
            const int j = w * LANES;
            store(out_theta + j, sigmoid(new_f[w]) * load(theta + j) - sigmoid(new_i[w]) * load(grad + j));
            store(out_f + j, new_f[w]);
            store(out_i + j, new_i[w]);
        }
        finish(args.new_theta, task, out_theta);
        finish(args.new_f, task, out_f);
        finish(args.new_i, task, out_i);
    }

    // The gradients of weights and loss are sums over blocks, which `leave` completes.
    void backward(int64_t at, const CellBackward<T>& args) {
        go_to(at);
        const T *wf = cell.weight_f, *wi = cell.weight_i;
        const T *theta = read(cell.theta, task), *grad = read(cell.grad, task);
        const T *f = read(cell.f, task), *i = read(cell.i, task);
        const T *new_f = read(args.new_f, task), *new_i = read(args.new_i, task);
        const T *d_new_theta = read(args.d_new_theta, task);
        const T *d_new_f = read(args.d_new_f, task), *d_new_i = read(args.d_new_i, task);
        T *out_theta = place(args.d_theta, task), *out_grad = place(args.d_grad, task);
        T *out_f = place(args.d_f, task), *out_i = place(args.d_i, task);
        prepare(grad);
        V all_f[WIDTH], all_i[WIDTH];  // (11)
        T *sums_f = d_gates.data(), *sums_i = sums_f + (H + 3) * LANES;
        for (int w = 0; w < WIDTH; w++) {
            const int j = w * LANES;
            const V before = load(theta + j), x = load(grad + j), d_theta = load(d_new_theta + j);
            const V sf = sigmoid(load(new_f + j)), si = sigmoid(load(new_i + j));
            all_f[w] = load(d_new_f + j) + d_theta * before * sf * (1 - sf);
            all_i[w] = load(d_new_i + j) - d_theta * x * si * (1 - si);
            add(sums_f + H * LANES, all_f[w] * before);  // (12)
            add(sums_i + H * LANES, all_i[w] * before);
            add(sums_f + (H + 1) * LANES, all_f[w] * load(f + j));
            add(sums_i + (H + 1) * LANES, all_i[w] * load(i + j));
            add(sums_f + (H + 2) * LANES, all_f[w]);
            add(sums_i + (H + 2) * LANES, all_i[w]);
            // (13)
            store(out_theta + j, d_theta * sf + all_f[w] * wf[H] + all_i[w] * wi[H]);
            store(out_grad + j, -d_theta * si);
            store(out_f + j, all_f[w] * wf[H + 1]);
            store(out_i + j, all_i[w] * wi[H + 1]);
        }
        finish(args.d_theta, task, out_theta);
        finish(args.d_f, task, out_f);
        finish(args.d_i, task, out_i);
        for (int q = 0; q < H; q++) {
            const T* c = read(cell.c, task * H + q);
            const T *d_new_h = read(args.d_new_h, task * H + q), *d_new_c = read(args.d_new_c, task * H + q);
            T* out_c = place(args.d_c, task * H + q);
            T *input_gate = gate_places[q], *forget_gate = gate_places[H + q], *cell_gate = gate_places[2 * H + q];
            T* output_gate = gate_places[3 * H + q];
            V sum_f = {}, sum_i = {};
            for (int w = 0; w < WIDTH; w++) {
                const int j = w * LANES;
                // (10): (5) and (6) again, with two divisions.
                const V of_input = 1 + bounded_exp(-load(input_gate + j)), of_forget = 1 + bounded_exp(-load(forget_gate + j));
                const V e = bounded_exp(-2 * load(cell_gate + j)), of_cell = 1 + e;
                const V of_output = 1 + bounded_exp(-load(output_gate + j));
                const V left = of_input * of_forget, right = of_cell * of_output, inverse = 1 / (left * right);
                const V input = of_forget * right * inverse, forget = of_input * right * inverse;
                const V value = (1 - e) * left * of_output * inverse, output = left * of_cell * inverse;
                const V before = load(c + j), e_c = bounded_exp(-2 * (forget * before + input * value));
                const V tanh_c = (1 - e_c) / (1 + e_c), h = output * tanh_c;
                sum_f += all_f[w] * h;  // (12)
                sum_i += all_i[w] * h;
                const V all_h = load(d_new_h + j) + all_f[w] * wf[q] + all_i[w] * wi[q];     // (14)
                const V all_c = load(d_new_c + j) + all_h * output * (1 - tanh_c * tanh_c);  // (15)
                store(input_gate + j, all_c * value * input * (1 - input));  // (16), in place of s
                store(forget_gate + j, all_c * before * forget * (1 - forget));
                store(cell_gate + j, all_c * input * (1 - value * value));
                store(output_gate + j, all_h * tanh_c * output * (1 - output));
                store(out_c + j, all_c * forget);
            }
            add(sums_f + q * LANES, sum_f);
            add(sums_i + q * LANES, sum_i);
            finish(args.d_c, task * H + q, out_c);
            if (count < BLOCK) copied -= 4;
        }
        outer(4 * H, columns, gate_rows.data(), in_rows.data(), d_weight.data());  // (17)
        T *d_log = copy(), *d_sign = copy(), *unused = copy();
        out_rows[0] = d_log;
        out_rows[1] = d_sign;
        for (int q = 0; q < H; q++) out_rows[2 + q] = place(args.d_h, task * H + q);
        for (int k = H + 2; k < columns; k++) out_rows[k] = unused;
        product(columns, 4 * H, transposed.data(), 4 * H, gate_rows.data(), out_rows.data());  // (18)
        for (int q = 0; q < H; q++) finish(args.d_h, task * H + q, out_rows[2 + q]);
        for (int j = 0; j < BLOCK; j += LANES) {  // (19)
            const V x = load(grad + j), size = x < 0 ? -x : x;
            const V by_log = size >= threshold ? load(d_log + j) / (p * x) : V{};
            const V by_sign = size <= threshold ? load(d_sign + j) * slope : V{};
            store(out_grad + j, load(out_grad + j) + by_log + by_sign);
        }
        finish(args.d_grad, task, out_grad);
    }

    // Add the sums since `enter` to the gradients of weights and loss, (20).
    void leave(const CellBackward<T>& args) {
        auto sum_of = [this](int row, int k) { return sum(load(&d_weight[(row * columns + k) * LANES])); };
        for (int row = 0; row < 4 * H; row++) {
            const T bias = sum_of(row, H + 2), *x = cell.weight_x + row * 4;
            for (int k = 0; k < 2; k++) {
                args.d_weight_x[row * 4 + k] += sum_of(row, k);
                args.d_weight_x[row * 4 + 2 + k] += bias * loss[k];
                args.d_loss[task] += bias * x[2 + k] * d_loss[k];
            }
            for (int q = 0; q < H; q++) args.d_weight_h[row * H + q] += sum_of(row, 2 + q);
            args.d_bias[row] += bias;
        }
        auto gate_sum = [this](int k) { return sum(load(&d_gates[k * LANES])); };
        for (int k = 0; k < H + 2; k++) {
            args.d_weight_f[k] += gate_sum(k);
            args.d_weight_i[k] += gate_sum(H + 3 + k);
        }
        *args.d_bias_f += gate_sum(H + 2);
        *args.d_bias_i += gate_sum(2 * H + 5);
        std::fill(d_weight.begin(), d_weight.end(), T(0));
        std::fill(d_gates.begin(), d_gates.end(), T(0));
    }
};

template <class T> void cell_forward(const CellForward<T>& args, int threads) {
    const int64_t blocks = (args.cell.n + BLOCK - 1) / BLOCK, all = args.cell.tasks * blocks;
    threads = int(std::min<int64_t>(threads, all));
    #pragma omp parallel num_threads(threads)
    {
        CellBlock<T> worker(args.cell);
        int64_t task = -1;
        #pragma omp for schedule(static)
        for (int64_t number = 0; number < all; number++) {
            if (number / blocks != task) worker.enter(task = number / blocks);
            worker.forward(number % blocks * BLOCK, args);
        }
    }
}

template <class T> void cell_backward(const CellBackward<T>& args, int threads) {
    using Args = CellBackward<T>;
    const int64_t blocks = (args.cell.n + BLOCK - 1) / BLOCK, all = args.cell.tasks * blocks, H = args.cell.hidden;
    threads = int(std::min<int64_t>(threads, all));
    // Each thread has its own sums of the gradients of weights and losses. They are added in the order of the threads,
    // so that the result is the same every time.
    struct Sum { T* Args::*place; int64_t size; };
    const Sum sums[] = {
        {&Args::d_weight_x, 16 * H}, {&Args::d_weight_h, 4 * H * H}, {&Args::d_bias, 4 * H},
        {&Args::d_weight_f, H + 2}, {&Args::d_weight_i, H + 2}, {&Args::d_bias_f, 1}, {&Args::d_bias_i, 1},
        {&Args::d_loss, args.cell.tasks},
    };
    int64_t size = 0;
    for (const Sum& sum : sums) size += sum.size;
    std::vector<T> parts(threads * size);
    #pragma omp parallel num_threads(threads)
    {
        CellBlock<T> worker(args.cell);
        Args mine = args;
        T* next = &parts[omp_get_thread_num() * size];
        for (const Sum& sum : sums) {
            mine.*sum.place = next;
            next += sum.size;
        }
        int64_t task = -1;
        #pragma omp for schedule(static)
        for (int64_t number = 0; number < all; number++) {
            if (number / blocks != task) {
                if (task >= 0) worker.leave(mine);
                worker.enter(task = number / blocks);
            }
            worker.backward(number % blocks * BLOCK, mine);
        }
        if (task >= 0) worker.leave(mine);
    }
    const T* next = parts.data();
    for (const Sum& sum : sums) {
        T* place = args.*sum.place;
        for (int64_t j = 0; j < sum.size; j++) {
            place[j] = 0;
            for (int thread = 0; thread < threads; thread++) place[j] += next[thread * size + j];
        }
        next += sum.size;
    }
}

}  // namespace

extern "C" {

const char* metalstm_cell_arguments() { return ARGUMENTS; }

void metalstm_cell_forward(int bytes, const void* fields, int threads) {
    with_numbers<CellForward>(bytes, fields, [&](const auto& arguments) { cell_forward(arguments, threads); });
}
void metalstm_cell_backward(int bytes, const void* fields, int threads) {
    with_numbers<CellBackward>(bytes, fields, [&](const auto& arguments) { cell_backward(arguments, threads); });
}

}  // extern "C"
