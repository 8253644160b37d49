// What kernels of images share: a walk over the windows of a max-pool, sums, and moments.

#pragma once

#include "vectors.h"

namespace {

#define IMAGES(FIELD) \
    FIELD(int64_t, n, "") \
    FIELD(int64_t, height, "") \
    FIELD(int64_t, width, "") \
    FIELD(int64_t, channels, "") \
    FIELD(int64_t, pool, "") /* side of the windows of the max-pool, 1 or 2 */ \
    FIELD(int64_t, given, "") /* whether the moments are inputs of the forward pass */

struct Images {
    IMAGES(DECLARE)
    int64_t pixels() const { return n * height * width; }
    int64_t rows() const { return n * (height / pool); }  // of the pooled images
};
constexpr int64_t CHUNK = 128;  // pixels, few enough for the first-level cache

// Visits the pixels of pooled rows begin..end, LANES channels at a time. at(channel) returns two functions for the
// LANES channels from this one: window(pixels, pooled) is called for each window, with the offsets of its pixels and of
// the pooled pixel, and rest(pixel) for pixels that no window covers.
template <int SIDE, class At> void visit(const Images& images, int64_t begin, int64_t end, At at) {
    const int64_t channels = images.channels, width = images.width, stride = width * channels;
    const int64_t down = images.height / SIDE, across = width / SIDE;
    for (int64_t row = begin; row < end; row++) {
        const int64_t top = (row / down * images.height + SIDE * (row % down)) * stride;
        for (int64_t c = 0; c < channels; c += LANES) {
            const auto [window, rest] = at(c);
            for (int64_t column = 0; column < across; column++) {
                int64_t pixels[SIDE * SIDE];
                for (int k = 0; k < SIDE * SIDE; k++)
                    pixels[k] = top + k / SIDE * stride + (SIDE * column + k % SIDE) * channels + c;
                window(pixels, (row * across + column) * channels + c);
            }
            for (int k = 1; k <= SIDE && width % SIDE; k++) rest(top + k * stride - channels + c);
            if (images.height % SIDE && row % down == down - 1)
                for (int64_t pixel = 0; pixel < stride; pixel += channels) rest(top + SIDE * stride + pixel + c);
        }
    }
}

// Sums over items. body(begin, end, sums) adds up those of one thread. The result is the same every time.
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

// Of each channel, the mean and the sum of squared deviations, (21); of parts that (22) joins.
class Moments {
    double count = 0;
    std::vector<double> mean, squares;

    void join(int64_t c, double more, doubles more_mean, doubles more_squares) {
        const double both = count + more;
        const doubles delta = more_mean - load(&mean[c]);
        store(&mean[c], load(&mean[c]) + delta * (more / both));
        store(&squares[c], load(&squares[c]) + more_squares + delta * delta * (count * more / both));
    }

  public:
    explicit Moments(int64_t channels) : mean(channels), squares(channels) {}

    template <class S> void add(const S* pixels, int64_t n) {
        using N = typename Traits<S>::Number;
        using V = typename Traits<S>::Vector;
        const int64_t channels = int64_t(mean.size());
        for (int64_t c = 0; c < channels; c += LANES) {
            V total = {}, deviations = {};
            for (int64_t p = 0; p < n; p++) total += load(pixels + p * channels + c);
            const V center = total / N(n);
            for (int64_t p = 0; p < n; p++) {
                const V deviation = load(pixels + p * channels + c) - center;
                deviations += deviation * deviation;
            }
            join(c, double(n), __builtin_convertvector(center, doubles), __builtin_convertvector(deviations, doubles));
        }
        count += double(n);
    }
    // Those of all threads, in parts[0].
    static void join(std::vector<Moments>& parts) {
        for (size_t k = 1; k < parts.size(); k++) {
            if (parts[k].count == 0) continue;
            for (size_t c = 0; c < parts[k].mean.size(); c += LANES)
                parts[0].join(int64_t(c), parts[k].count, load(&parts[k].mean[c]), load(&parts[k].squares[c]));
            parts[0].count += parts[k].count;
        }
    }
    template <class N> void write(N* to_mean, N* to_var) const {
        for (size_t c = 0; c < mean.size(); c++) {
            to_mean[c] = N(mean[c]);
            to_var[c] = N(squares[c] / count);
        }
    }
};

const auto nothing = [](int64_t) {};

}  // namespace
