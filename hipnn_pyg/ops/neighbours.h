// An atom's neighbours and the sensitivity functions that reach them (Eqs. 10, 11).
//
// A Gaussian in 1/r reaches few of an atom's neighbours. Sorted by distance, those that it reaches
// lie side by side: what is 0 is neither computed nor multiplied.

#pragma once

#include "threads.h"
#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace hipnn {

// All pairs inside the molecules from .. to - 1, whose first is number x: j, i, r and where each
// receiver's end; i may be null.
template <typename T>
void find_pairs(const T *pos, const Index *ptr, Index from, Index to, Index x, Index *row, Index *j,
                Index *i, T *r) {
    row[ptr[from]] = x;
    for (Index m = from; m < to; ++m) {
        for (Index a = ptr[m]; a < ptr[m + 1]; ++a) {
            for (Index b = ptr[m]; b < ptr[m + 1]; ++b) {
                if (a == b) continue;
                T square = 0;
                for (int k = 0; k < 3; ++k) {
                    const T d = pos[3 * b + k] - pos[3 * a + k];
                    square += d * d;
                }
                if (i) i[x] = a;
                j[x] = b, r[x++] = std::sqrt(square);
            }
            row[a + 1] = x;
        }
    }
}

// The edges of one atom, farthest first up to the width of a shell.
template <typename T> struct Neighbours {
    Index count;
    const Index *edge, *j;  // place in the list (null where it is in this order), sending atom
    const T *r, *inverse;   // r and 1 / r
};

// Of 0 .. count - 1 from the first to the last that `counts`.
template <typename Counts> inline Span trimmed(Index count, Counts counts) {
    Span found{0, count};
    while (found.size() && !counts(found.begin)) ++found.begin;
    while (found.size() && !counts(found.end - 1)) --found.end;
    return found;
}

// The 1 / r of the edges that some functions reach.
template <typename T> struct Reach {
    T low = std::numeric_limits<T>::infinity(), high = -low;

    void add(const Reach &other) {
        low = std::min(low, other.low), high = std::max(high, other.high);
    }
    // Any between `least` and `most`? Yes if they are not numbers.
    bool meets(T least, T most) const { return !(most < low) && !(least > high); }
};

// The pairs of all atoms and the sensitivity functions of one layer, ready to evaluate. Sensitivities
// fill whole registers, the functions at their end: far neighbours then need the last one only.
template <typename T> struct Edges {
    const T *r;
    const Index *row, *j;
    Index nu, padded, front;  // front: unused places, where sigma = 0
    T cutoff;
    bool sorted;  // as `neighbours` does it
    std::vector<T> inverse_mu, sigma;                       // [padded]
    std::vector<Reach<T>> of_function, of_tile, of_register;

    static constexpr Index kLanes = kWidth<T>;
    static constexpr T kQuarter = T(1.57079632679489661923);  // pi / 2
    // Gaussians below the square of the rounding error are 0: nothing they are added to would change.
    static constexpr T kReach = sizeof(T) == 4 ? 8 : 12;  // deviations
    static Index whole_registers(Index nu) { return (nu + kLanes - 1) / kLanes * kLanes; }

    Edges(const T *r, const Index *row, const Index *j, const T *mu, const T *sigmas, Index nu,
          T cutoff, bool sorted = false)
        : r(r), row(row), j(j), nu(nu), padded(whole_registers(nu)), front(padded - nu),
          cutoff(cutoff), sorted(sorted), inverse_mu(padded, 0), sigma(padded, 0), of_function(nu),
          of_tile((nu + kTile - 1) / kTile), of_register(padded / kLanes) {
        for (Index n = 0; n < nu; ++n) {
            const T center = inverse_mu[front + n] = 1 / mu[n];
            const T width = T(1.001) * kReach / std::abs(sigma[front + n] = sigmas[n]);
            const T infinite = std::numeric_limits<T>::infinity();
            const bool bounded = width < infinite && center == center;  // else they are no numbers
            Reach<T> &own = of_function[n];
            own.low = bounded ? center - width : -infinite;
            own.high = bounded ? center + width : infinite;
            of_tile[n / kTile].add(own), of_register[(front + n) / kLanes].add(own);
        }
    }

    Index degree(Index i) const { return row[i + 1] - row[i]; }
    Index most(Index atoms) const {
        Index found = 0;
        for (Index i = 0; i < atoms; ++i) found = std::max(found, degree(i));
        return found;
    }

    // The neighbours of atom i; valid until the next call.
    Neighbours<T> neighbours(Index i) const {
        const Index count = degree(i), first = row[i];
        T *inverse = scratch<T, kInverse>(count);
        if (sorted) {
            invert(count, r + first, inverse);
            return {count, nullptr, j + first, r + first, inverse};
        }
        Index *edge = scratch<Index, kNeighbours>(2 * count), *sender = edge + count;
        T *distance = scratch<T, kNeighbours>(count);
        sort(r, first, count, cutoff, [=](Index place, Index x) {
            edge[place] = x, sender[place] = j[x], distance[place] = r[x];
        });
        invert(count, distance, inverse);
        return {count, edge, sender, distance, inverse};
    }

    // The `count` edges x from `first` on to their places, put(place, x), in shells of equal width in
    // 1 / r, the farthest one first.
    template <typename Put>
    static void sort(const T *r, Index first, Index count, T cutoff, Put put) {
        constexpr std::int32_t shells = 32;
        std::int32_t *shell = scratch<std::int32_t, kShells>(count), start[shells + 1] = {};
        const T *listed = r + first;
#pragma omp simd
        for (Index x = 0; x < count; ++x) {
            const T share = 4 * (cutoff / listed[x] - 1);
            shell[x] = std::int32_t(share > 0 ? std::min(share, T(shells - 1)) : T(0));
        }
        for (Index x = 0; x < count; ++x) ++start[shell[x] + 1];
        for (std::int32_t n = 0; n < shells; ++n) start[n + 1] += start[n];
        for (Index x = 0; x < count; ++x) put(start[shell[x]]++, first + x);
    }

    static void invert(Index count, const T *from, T *to) {
#pragma omp simd
        for (Index x = 0; x < count; ++x) to[x] = 1 / from[x];
    }

    // Which neighbours a tile of functions reaches: from the first to the last of them.
    Span reached(const Neighbours<T> &near, Index tile) const {
        const Reach<T> own = of_tile[tile];
        return trimmed(near.count,
                       [&](Index x) { return own.meets(near.inverse[x], near.inverse[x]); });
    }

    // Which of `reaches` meet the neighbours first .. first + rows - 1: from the first to the last.
    Span reaching(const Neighbours<T> &near, Index first, Index rows,
                  const std::vector<Reach<T>> &reaches) const {
        T least = near.inverse[first], most = least;
        for (Index x = first + 1; x < first + rows; ++x) {
            const T inverse = near.inverse[x];
            least = inverse < least ? inverse : least, most = inverse > most ? inverse : most;
        }
        return trimmed(reaches.size(), [&](Index n) { return reaches[n].meets(least, most); });
    }
    Span registers(const Neighbours<T> &near, Index first, Index rows) const {
        const Span own = reaching(near, first, rows, of_register);
        return {own.begin * kLanes, own.end * kLanes};
    }

    // Eq. 11, cos(pi r / 2 cutoff)^2, and the derivative of its logarithm.
    T envelope(T distance) const {
        const T c = quarter_sine(kQuarter * (1 - distance / cutoff));
        return distance < cutoff ? c * c : T(0);
    }
    T envelope_turn(T distance) const {
        const T share = distance / cutoff, factor = -2 * kQuarter / cutoff;
        const T turn = quarter_sine(kQuarter * share) / quarter_sine(kQuarter * (1 - share));
        return distance < cutoff ? factor * turn : T(0);
    }
    // That of an atom's edges; valid until the next call.
    const T *envelope_turns(const Neighbours<T> &near) const {
        T *turns = scratch<T, kEnvelopes>(near.count);
#pragma omp simd
        for (Index x = 0; x < near.count; ++x) turns[x] = envelope_turn(near.r[x]);
        return turns;
    }

    // The sensitivities of Eq. 10, s[x, padded], of an atom's edges.
    void sensitivities(const Neighbours<T> &near, T *s) const {
        constexpr T least = T(-0.5) * kReach * kReach;
        T *phi = scratch<T, kEnvelopes>(near.count);
#pragma omp simd
        for (Index x = 0; x < near.count; ++x) phi[x] = envelope(near.r[x]);
        for (Index x = 0; x < near.count; ++x) {
            const T inverse = near.inverse[x], factor = phi[x];
            for (Index own = 0; own < padded; own += kLanes, s += kLanes) {
                if (!of_register[own / kLanes].meets(inverse, inverse)) {
                    std::fill(s, s + kLanes, T(0));
                    continue;
                }
                const T *im = inverse_mu.data() + own, *sg = sigma.data() + own;
#pragma omp simd
                for (Index n = 0; n < kLanes; ++n) {
                    const T deviation = (inverse - im[n]) * sg[n];
                    s[n] = exponential(T(-0.5) * deviation * deviation, least) * factor;
                }
            }
        }
    }

    // Those of atom i: kept[E, padded] holds them all, or they are computed, to `small`.
    const T *sensitivities(Index i, const Neighbours<T> &near, const T *kept, T *small) const {
        if (kept) return kept + row[i] * padded;
        sensitivities(near, small);
        return small;
    }

    // From ds[x, padded] and s of the edges first .. first + rows - 1 of an atom, within `window`:
    // adds to dlogmu = dmu mu^2 and dsigma, [padded]; writes dr. turns and dr may be null.
    void pull_back(const Neighbours<T> &near, Index first, Index rows, Span window, const T *ds,
                   const T *s, const T *turns, T *dlogmu, T *dsigma, T *dr) const {
        const T *im = inverse_mu.data(), *sg = sigma.data();
        for (Index x = first; x < first + rows; ++x, ds += padded, s += padded) {
            const T inverse = near.inverse[x], square = inverse * inverse;
            const T of_envelope = turns ? turns[x] : T(0);
            T along = 0;
            for (Index own = window.begin; own < window.end; own += kLanes) {
#pragma omp simd reduction(+ : along)
                for (Index n = own; n < own + kLanes; ++n) {
                    const T difference = inverse - im[n], weighted = s[n] * ds[n];
                    const T turn = -difference * sg[n] * weighted;
                    dlogmu[n] += turn * sg[n];
                    dsigma[n] += turn * difference;
                    along += weighted * of_envelope - turn * sg[n] * square;
                }
            }
            if (dr) dr[near.edge[x]] = along;
        }
    }
};

}  // namespace hipnn
