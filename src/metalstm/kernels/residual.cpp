// What follows the convolutions of a residual network: batch normalization, a sum of two results or one alone, max-pool
// and leaky ReLU. The lanes of a vector are channels. Numbers in parentheses are equations of DERIVATION.md, "The sum".

#include "images.h"

namespace {

#define TERMS(FIELD) \
    FIELD(int64_t, terms, "") /* 1, and `other` is ignored; or 2 */ \
    FIELD(double, eps, "") \
    FIELD(double, slope, "") /* of the leaky ReLU below 0 */ \
    FIELD(const S*, z, "channels_last: n, channels, height, width") \
    FIELD(const S*, other, "channels_last: n, channels, height, width") \
    FIELD(const N*, gamma, "terms, channels") \
    FIELD(const N*, beta, "terms, channels") \
    FIELD(N*, moments, "terms, 2, channels") /* mean and variance; inputs, but of a forward pass without given ones */

#define SUM_FORWARD(FIELD) FIELD(S*, y, "channels_last: n, channels, height//pool, width//pool")

#define SUM_BACKWARD(FIELD) \
    FIELD(const S*, d_y, "channels_last: n, channels, height//pool, width//pool") \
    FIELD(N*, d_moments, "terms, 2, channels") /* inputs unless given */ \
    FIELD(N*, d_gamma, "terms, channels") \
    FIELD(N*, d_beta, "terms, channels") \
    FIELD(S*, d_z, "channels_last: n, channels, height, width") \
    FIELD(S*, d_other, "channels_last: n, channels, height, width")

template <class S> struct SumForward {
    using N = typename Traits<S>::Number;
    Images images;
    TERMS(DECLARE)
    SUM_FORWARD(DECLARE)
};
template <class S> struct SumBackward {
    using N = typename Traits<S>::Number;
    Images images;
    TERMS(DECLARE)
    SUM_BACKWARD(DECLARE)
};

const char ARGUMENTS[] =
    "sum_forward\n" IMAGES(DESCRIBE) TERMS(DESCRIBE) SUM_FORWARD(DESCRIBE)
    "sum_backward\n" IMAGES(DESCRIBE) TERMS(DESCRIBE) SUM_BACKWARD(DESCRIBE);

// calls.py writes every field in 8 bytes.
static_assert(sizeof(SumForward<float>) == 8 * (0 IMAGES(COUNT) TERMS(COUNT) SUM_FORWARD(COUNT)), "no gaps");
static_assert(sizeof(SumBackward<float>) == 8 * (0 IMAGES(COUNT) TERMS(COUNT) SUM_BACKWARD(COUNT)), "no gaps");

// The sum of normalized images, (61): u = scale z + shift, added up over the terms.
template <int TERMS, class S> struct Sum {
    using N = typename Traits<S>::Number;
    using V = typename Traits<S>::Vector;
    using I = typename Traits<S>::Integers;

    const S* z[TERMS];
    const N* mean[TERMS];
    std::vector<N> rstd[TERMS], scale[TERMS], shift;

    template <class Args> explicit Sum(const Args& args) : shift(args.images.channels) {
        const int64_t C = args.images.channels;
        for (int t = 0; t < TERMS; t++) {
            z[t] = t ? args.other : args.z;
            mean[t] = args.moments + 2 * t * C;
            rstd[t].resize(C);
            scale[t].resize(C);
            for (int64_t c = 0; c < C; c++) {
                rstd[t][c] = 1 / std::sqrt(mean[t][C + c] + N(args.eps));
                scale[t][c] = args.gamma[t * C + c] * rstd[t][c];
                shift[c] += args.beta[t * C + c] - mean[t][c] * scale[t][c];
            }
        }
    }
    // A function of the pixels of a window, for LANES channels: the largest u, and the number of its pixel.
    template <int SIDE> auto largest(int64_t c) const {
        struct {
            const S* z[TERMS];
            V scale[TERMS], shift;
            V at(int64_t pixel) const {
                V u = shift;
                for (int t = 0; t < TERMS; t++) u += scale[t] * load(z[t] + pixel);
                return u;
            }
            std::pair<V, I> operator()(const int64_t* pixels) const {
                V most = at(pixels[0]);
                I which = {};
                for (int k = 1; k < SIDE * SIDE; k++) {
                    const V u = at(pixels[k]);
                    const I more = u > most;
                    most = more ? u : most;
                    which = more ? I{} + k : which;
                }
                return {most, which};
            }
        } found;
        found.shift = load(&shift[c]);
        for (int t = 0; t < TERMS; t++) {
            found.z[t] = z[t];
            found.scale[t] = load(&scale[t][c]);
        }
        return found;
    }
};

template <int SIDE, int TERMS, class S> void sum_forward(const SumForward<S>& args, int threads) {
    using N = typename Traits<S>::Number;
    using V = typename Traits<S>::Vector;
    const Images& images = args.images;
    const int64_t C = images.channels, pixels = images.pixels();
    for (int t = 0; t < TERMS && !images.given; t++) {
        const S* z = t ? args.other : args.z;
        std::vector<Moments> parts(threads, Moments(C));
        #pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t first = 0; first < pixels; first += CHUNK)
            parts[omp_get_thread_num()].add(z + first * C, std::min(CHUNK, pixels - first));
        Moments::join(parts);
        parts[0].write(args.moments + 2 * t * C, args.moments + (2 * t + 1) * C);
    }
    const Sum<TERMS, S> sum(args);
    const N slope = args.slope;
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < images.rows(); row++)
        visit<SIDE>(images, row, row + 1, [&](int64_t c) {
            return std::make_pair([&, largest = sum.template largest<SIDE>(c)](const int64_t* pixels, int64_t to) {
                const V u = largest(pixels).first;
                store(args.y + to, u <= 0 ? slope * u : u);  // (62)
            }, nothing);
        });
}

template <int SIDE, int TERMS, class S> void sum_backward(const SumBackward<S>& args, int threads) {
    using N = typename Traits<S>::Number;
    using V = typename Traits<S>::Vector;
    const Images& images = args.images;
    const int64_t C = images.channels, rows = images.rows();
    const Sum<TERMS, S> sum(args);
    const N slope = args.slope;
    // Sums of d, the gradient in the largest u of each window, and of d (z - mean) of each term
    const std::vector<double> sums = summed((1 + TERMS) * C, rows, threads, [&](int64_t begin, int64_t end, double* to) {
        std::vector<N> part((1 + TERMS) * C);
        for (int64_t row = begin; row < end; row++) {
            std::fill(part.begin(), part.end(), N(0));
            visit<SIDE>(images, row, row + 1, [&](int64_t c) {
                const auto largest = sum.template largest<SIDE>(c);
                V mean[TERMS];
                for (int t = 0; t < TERMS; t++) mean[t] = load(sum.mean[t] + c);
                return std::make_pair([=, &args, mine = &part[c]](const int64_t* pixels, int64_t from) {
                    const auto [u, which] = largest(pixels);
                    const V d_y = load(args.d_y + from), d = u <= 0 ? slope * d_y : d_y;
                    store(mine, load(mine) + d);
                    for (int t = 0; t < TERMS; t++) {
                        V taken = load(largest.z[t] + pixels[0]);
                        for (int k = 1; k < SIDE * SIDE; k++)
                            taken = which == k ? load(largest.z[t] + pixels[k]) : taken;
                        N* const with_z = mine + (1 + t) * C;
                        store(with_z, load(with_z) + d * (taken - mean[t]));
                    }
                }, nothing);
            });
            for (int64_t k = 0; k < (1 + TERMS) * C; k += LANES) add(to + k, load(&part[k]));
        }
    });
    // d_z = scale d - constant - steep (z - mean), (64)
    std::vector<N> constant[TERMS], steep[TERMS];
    for (int t = 0; t < TERMS; t++) {
        constant[t].resize(C);
        steep[t].resize(C);
        for (int64_t c = 0; c < C; c++) {
            const N scale = sum.scale[t][c], rstd = sum.rstd[t][c];
            const N d = sums[c], d_normalized = sums[(1 + t) * C + c] * rstd, pixels = images.pixels();
            N *const d_mean = args.d_moments + 2 * t * C + c, *const d_var = d_mean + C;
            args.d_beta[t * C + c] = d;  // (63)
            args.d_gamma[t * C + c] = d_normalized;
            if (images.given) {
                *d_mean = -scale * d;
                *d_var = -scale * rstd * d_normalized / 2;
            } else {
                constant[t][c] = (scale * d - *d_mean) / pixels;
                steep[t][c] = (scale * rstd * d_normalized - 2 * *d_var) / pixels;
            }
        }
    }
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        visit<SIDE>(images, row, row + 1, [&](int64_t c) {
            struct {
                const S* z[TERMS];
                S* d_z[TERMS];
                V slope[TERMS], start[TERMS];
                V at(int t, int64_t pixel) const { return start[t] - slope[t] * load(z[t] + pixel); }
            } line;
            for (int t = 0; t < TERMS; t++) {
                line.z[t] = sum.z[t];
                line.d_z[t] = t ? args.d_other : args.d_z;
                line.slope[t] = load(&steep[t][c]);
                line.start[t] = load(sum.mean[t] + c) * line.slope[t] - load(&constant[t][c]);
            }
            const auto largest = sum.template largest<SIDE>(c);
            return std::make_pair([=, &args](const int64_t* pixels, int64_t from) {
                const auto [u, which] = largest(pixels);
                const V d_y = load(args.d_y + from), d = u <= 0 ? slope * d_y : d_y;
                for (int t = 0; t < TERMS; t++) {
                    const V scaled = largest.scale[t] * d;
                    for (int k = 0; k < SIDE * SIDE; k++)
                        store(line.d_z[t] + pixels[k], line.at(t, pixels[k]) + (which == k ? scaled : V{}));
                }
            }, [=](int64_t pixel) {
                for (int t = 0; t < TERMS; t++) store(line.d_z[t] + pixel, line.at(t, pixel));
            });
        });
}

// Calls run<SIDE, TERMS>.
template <template <class> class Arguments, class Run> void with_sizes(int bytes, const void* fields, Run run) {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    with_images<Arguments>(bytes, fields, [&](const auto& arguments) {
        const bool pools = arguments.images.pool == 2, adds = arguments.terms == 2;
        if (pools && adds) run(arguments, Two(), Two());
        else if (pools) run(arguments, Two(), One());
        else if (adds) run(arguments, One(), Two());
        else run(arguments, One(), One());
    });
}

}  // namespace

extern "C" {

const char* metalstm_residual_arguments() { return ARGUMENTS; }

void metalstm_sum_forward(int bytes, const void* fields, int threads) {
    with_sizes<SumForward>(bytes, fields, [&](const auto& arguments, auto side, auto terms) {
        sum_forward<side, terms>(arguments, threads);
    });
}
void metalstm_sum_backward(int bytes, const void* fields, int threads) {
    with_sizes<SumBackward>(bytes, fields, [&](const auto& arguments, auto side, auto terms) {
        sum_backward<side, terms>(arguments, threads);
    });
}

}  // extern "C"
