// Register tiles: small matrix products that stay in a core's registers and near caches.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace hipnn {

using Index = std::int64_t;

// Bytes of a vector register, and how many of them across a tile of five rows: as many as leave
// room for a row of the right factor and one number of the left one.
#if defined(__AVX512F__)
constexpr int kBytes = 64, kAcross = 5;  // 32 registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kAcross = 2;  // 16 registers
#elif defined(__aarch64__)
constexpr int kBytes = 16, kAcross = 5;  // 32 registers
#else
constexpr int kBytes = 16, kAcross = 2;
#endif

// W numbers in one register.
template <typename T, int W> struct Lanes {
    typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <typename T> struct Lanes<T, 1> {
    typedef T type;
};
template <typename T, int W> using lanes = typename Lanes<T, W>::type;
template <typename T> constexpr int kWidth = kBytes / sizeof(T);

template <typename V, typename T> inline V load(const T *from) {
    V value;
    std::memcpy(&value, from, sizeof(V));
    return value;
}
template <typename V, typename T> inline void store(T *to, V value) {
    std::memcpy(to, &value, sizeof(V));
}

constexpr Index kTile = 5;  // rows of a tile

// C[r, c] (+)= sum over k < depth of a(r, k) b(k)[c] for R rows and V registers of W columns.
template <typename T, bool ADD, int R, int V, int W, typename A, typename B>
__attribute__((always_inline)) inline void tile(Index depth, A a, B b, T *c, Index ldc) {
    using vec = lanes<T, W>;
    vec sum[R][V] = {};
    for (Index k = 0; k < depth; ++k) {
        const T *row = b(k);
        vec value[V];
        for (int v = 0; v < V; ++v) value[v] = load<vec>(row + v * W);
        for (int r = 0; r < R; ++r) {
            const T factor = a(r, k);
            for (int v = 0; v < V; ++v) sum[r][v] += factor * value[v];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
            T *to = c + r * ldc + v * W;
            store<vec>(to, ADD ? sum[r][v] + load<vec>(to) : sum[r][v]);
        }
}

// C[rows, V W] (+)= sum over k < depth of a(row, k) b(k)[column]: tiles of five rows; the columns of
// b stay in the nearest cache meanwhile. A function of its own: inside others the compiler keeps too
// few of a tile's sums in registers. By reference: a processor waits for a copy that was just written.
template <typename T, bool ADD, int V, int W, typename A, typename B>
__attribute__((noinline)) void panel(Index rows, Index depth, const A &a, const B &b, T *c,
                                     Index ldc) {
    Index r = 0;
    auto from = [&](Index shift) { return [=](Index row, Index k) { return a(row + shift, k); }; };
    for (; r + 5 <= rows; r += 5) tile<T, ADD, 5, V, W>(depth, from(r), b, c + r * ldc, ldc);
    switch (rows - r) {
    case 4: return tile<T, ADD, 4, V, W>(depth, from(r), b, c + r * ldc, ldc);
    case 3: return tile<T, ADD, 3, V, W>(depth, from(r), b, c + r * ldc, ldc);
    case 2: return tile<T, ADD, 2, V, W>(depth, from(r), b, c + r * ldc, ldc);
    case 1: return tile<T, ADD, 1, V, W>(depth, from(r), b, c + r * ldc, ldc);
    }
}

// C[rows, width] (+)= sum over k < depth of a(row, k) b(k)[column]; any a and b.
template <typename T, bool ADD, typename A, typename B>
inline void product(Index rows, Index depth, Index width, A a, B b, T *c, Index ldc) {
    constexpr int W = kWidth<T>;
    Index n = 0;
    auto at = [&](Index shift) { return [=](Index k) { return b(k) + shift; }; };
    for (; n + kAcross * W <= width; n += kAcross * W)
        panel<T, ADD, kAcross, W>(rows, depth, a, at(n), c + n, ldc);
    for (; n + 2 * W <= width; n += 2 * W)
        panel<T, ADD, 2, W>(rows, depth, a, at(n), c + n, ldc);
    for (; n + W <= width; n += W) panel<T, ADD, 1, W>(rows, depth, a, at(n), c + n, ldc);
    for (; n + 4 <= width; n += 4) panel<T, ADD, 1, 4>(rows, depth, a, at(n), c + n, ldc);
    for (; n < width; ++n) panel<T, ADD, 1, 1>(rows, depth, a, at(n), c + n, ldc);
}

// C[m, n] (+)= A[m, k] B[k, n], row-major; rows of C are `ldc` apart if it is given.
template <typename T, bool ADD>
inline void multiply(Index m, Index n, Index k, const T *a, const T *b, T *c, Index ldc = 0) {
    product<T, ADD>(
        m, k, n, [=](Index r, Index x) { return a[r * k + x]; },
        [=](Index x) { return b + x * n; }, c, ldc ? ldc : n);
}

// C[m, n] += A[k, m]^T B[k, n]: a weight's gradient from k atoms; rows of A are `lda` apart.
// They are asked for first: one after the other, each by few numbers, they would be waited for.
template <typename T>
inline void add_outer(Index m, Index n, Index k, const T *a, Index lda, const T *b, T *c) {
    for (Index x = 0; x < k; ++x)
        for (Index r = 0; r < m; r += 64 / sizeof(T)) __builtin_prefetch(a + x * lda + r, 0, 2);
    product<T, true>(
        m, k, n, [=](Index r, Index x) { return a[x * lda + r]; },
        [=](Index x) { return b + x * n; }, c, n);
}

// to[n, ld] = from[m, n]^T; 4 x 4 numbers at a time.
template <typename T> inline void transpose(Index m, Index n, const T *from, T *to, Index ld) {
    Index r = 0;
    for (; r + 4 <= m; r += 4) {
        Index c = 0;
#if defined(__clang__) || __GNUC__ >= 12  // which have the shuffles
        using four = lanes<T, 4>;
        for (; c + 4 <= n; c += 4) {
            const T *at = from + r * n + c;
            const four a = load<four>(at), b = load<four>(at + n);
            const four p = load<four>(at + 2 * n), q = load<four>(at + 3 * n);
            const four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            const four ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
            const four pq = __builtin_shufflevector(p, q, 0, 4, 1, 5);
            const four pq2 = __builtin_shufflevector(p, q, 2, 6, 3, 7);
            T *out = to + c * ld + r;
            store<four>(out, __builtin_shufflevector(ab, pq, 0, 1, 4, 5));
            store<four>(out + ld, __builtin_shufflevector(ab, pq, 2, 3, 6, 7));
            store<four>(out + 2 * ld, __builtin_shufflevector(ab2, pq2, 0, 1, 4, 5));
            store<four>(out + 3 * ld, __builtin_shufflevector(ab2, pq2, 2, 3, 6, 7));
        }
#endif
        for (; c < n; ++c)
            for (Index k = r; k < r + 4; ++k) to[c * ld + k] = from[k * n + c];
    }
    for (; r < m; ++r)
        for (Index c = 0; c < n; ++c) to[c * ld + r] = from[r * n + c];
}

template <typename T> inline void transpose(Index m, Index n, const T *from, T *to) {
    transpose(m, n, from, to, m);
}

// exp(x) = 2^k (1 + rest), with x = k log 2 + f, |f| <= log(2) / 2, and the series rest = exp(f) - 1.
template <typename T> struct Exponential {
    T power, rest;  // 2^k

    explicit Exponential(T x) {
        constexpr bool single = sizeof(T) == 4;
        using Bits = std::conditional_t<single, std::uint32_t, std::uint64_t>;
        constexpr int mantissa = single ? 23 : 52, terms = single ? 7 : 13;
        constexpr T magic = single ? T(12582912.0) : T(6755399441055744.0);
        constexpr T high = single ? T(0.693359375) : T(6.93147180369123816490e-01);
        constexpr T low = single ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
        constexpr double factorial[] = {1,       1,        2,         6,          24,
                                        120,     720,      5040,      40320,      362880,
                                        3628800, 39916800, 479001600, 6227020800};
        const T shifted = x * T(1.4426950408889634074) + magic, k = shifted - magic;
        const T f = (x - k * high) - k * low;
        T series = T(1 / factorial[terms]);
        for (int n = terms - 1; n > 0; --n) series = T(1 / factorial[n]) + f * series;
        rest = f * series;
        Bits bits, exponent;
        std::memcpy(&bits, &shifted, sizeof(T));
        const T one = 1;
        std::memcpy(&exponent, &one, sizeof(T));
        exponent += bits << mantissa;
        std::memcpy(&power, &exponent, sizeof(T));
    }
};

// exp(x) for x <= 0 to rounding, without branches. Below `least` it is 0; by default that is where it
// leaves the normal numbers.
template <typename T>
inline T exponential(T x, T least = sizeof(T) == 4 ? T(-87) : T(-708)) {
    const Exponential<T> found(x < least ? least : x);
    return x < least ? T(0) : found.power * (1 + found.rest);
}

// sin(x) for 0 <= x <= pi / 2 to rounding: its series.
template <typename T> inline T quarter_sine(T x) {
    constexpr int terms = sizeof(T) == 4 ? 6 : 11;
    const T square = x * x;
    T series = 1;
    for (int n = terms; n > 0; --n) series = 1 - square * T(1.0 / (2 * n * (2 * n + 1))) * series;
    return x * series;
}

// softplus(x) = max(x, 0) + log(1 + t), t = exp(-|x|), by log(1 + t) = 2 artanh(t / (2 + t)).
template <typename T> inline T softplus(T x) {
    const T size = x < 0 ? x : -x;
    const T t = exponential(size);
    const T u = t / (2 + t), square = u * u;
    constexpr int terms = sizeof(T) == 4 ? 8 : 17;
    T series = T(1.0 / (2 * terms + 1));
    for (int n = terms - 1; n >= 0; --n) series = T(1.0 / (2 * n + 1)) + square * series;
    const T exact = (x > 0 ? x : T(0)) + 2 * u * series;
    return x > T(20) ? x : exact;  // where PyTorch's softplus is linear
}

}  // namespace hipnn
