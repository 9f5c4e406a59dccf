// From features to energies and from energies to the sums of a loss. One thread: this is little work.

#pragma once

#include "tiles.h"

#include <algorithm>

namespace hipnn {

// Eq. 4, factorised: energy[i] = scale w . z[i] + b
template <typename T>
void readout(const T *z, const T *w, const T *b, double *energy, Index atoms, Index width,
             double scale) {
    for (Index i = 0; i < atoms; ++i) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (Index a = 0; a < width; ++a) sum += z[i * width + a] * w[a];
        energy[i] = T(scale) * sum + *b;
    }
}

// Gradients of readout in z (+)= and (below) in w and b.
template <bool ADD, typename T>
void readout_pull(const T *w, const double *denergy, T *dz, Index atoms, Index width, double scale) {
    for (Index i = 0; i < atoms; ++i) {
        const T slope = T(denergy[i]) * T(scale);
        for (Index a = 0; a < width; ++a)
            dz[i * width + a] = slope * w[a] + (ADD ? dz[i * width + a] : T(0));
    }
}

template <typename T>
void readout_weights(const T *z, const double *denergy, T *dw, T *db, Index atoms, Index width,
                     double scale) {
    double along = 0;
    std::fill(dw, dw + width, T(0));
    for (Index i = 0; i < atoms; ++i) {
        const T slope = T(denergy[i]) * T(scale);
        along += denergy[i];
        for (Index a = 0; a < width; ++a) dw[a] += slope * z[i * width + a];
    }
    *db = T(along);
}

// The error e = (sum over i, n >= 1 of E_i^n) - (target - E^0) and R (Eq. 18) of a molecule's atoms
// first .. end - 1, from E_i^n in terms[i, n], n <= top.
struct Standing {
    double error, r;
};
inline Standing standing(const double *terms, double target, Index first, Index end, Index top) {
    double zeroth = 0, learned = 0, r = 0;
    for (Index i = first; i < end; ++i) {
        const double *E = terms + i * (top + 1);
        zeroth += E[0];
        for (Index n = 1; n <= top; ++n) {
            const double upper = E[n] * E[n], total = upper + E[n - 1] * E[n - 1];
            learned += E[n];
            r += total > 0 ? upper / total : 0;
        }
    }
    return {learned - (target - zeroth), r};
}

// sums: those of |e|, e^2 and R over molecules.
inline void add_to_sums(double *sums, const Standing &own) {
    sums[0] += own.error < 0 ? -own.error : own.error, sums[1] += own.error * own.error;
    sums[2] += own.r;
}

// Its gradient in the terms, from those of the sums of |e|, e^2 and R.
inline void standing_backward(const double *terms, double error, const double *dsums, double *dterms,
                              Index first, Index end, Index top) {
    const double sign = (error > 0) - (error < 0);
    const double slope = dsums[0] * sign + 2 * dsums[1] * error;
    for (Index i = first; i < end; ++i) {
        const double *E = terms + i * (top + 1);
        double *dE = dterms + i * (top + 1);
        std::fill(dE, dE + top + 1, slope);
        for (Index n = 1; n <= top; ++n) {
            const double upper = E[n] * E[n], lower = E[n - 1] * E[n - 1];
            const double total = upper + lower;
            if (!(total > 0)) continue;
            const double turn = 2 * dsums[2] / (total * total);
            dE[n] += turn * E[n] * lower, dE[n - 1] -= turn * E[n - 1] * upper;
        }
    }
}

// sums = sum |e|, sum e^2, sum R over molecules; the errors are kept.
inline void error_sums(const double *terms, const Index *ptr, const double *target, double *error,
                       double *sums, Index molecules, Index top) {
    std::fill(sums, sums + 3, 0);
    for (Index m = 0; m < molecules; ++m) {
        const Standing own = standing(terms, target[m], ptr[m], ptr[m + 1], top);
        error[m] = own.error, add_to_sums(sums, own);
    }
}

inline void error_sums_backward(const double *terms, const Index *ptr, const double *error,
                                const double *dsums, double *dterms, Index molecules, Index top) {
    for (Index m = 0; m < molecules; ++m)
        standing_backward(terms, error[m], dsums, dterms, ptr[m], ptr[m + 1], top);
}

}  // namespace hipnn
