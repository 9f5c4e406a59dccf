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

// dw and db may be null, together.
template <typename T>
void readout_backward(const T *z, const T *w, const double *denergy, T *dz, T *dw, T *db,
                      Index atoms, Index width, double scale) {
    for (Index i = 0; i < atoms; ++i) {
        const T slope = T(denergy[i]) * T(scale);
        for (Index a = 0; a < width; ++a) dz[i * width + a] = slope * w[a];
    }
    if (!dw) return;
    double along = 0;
    std::fill(dw, dw + width, T(0));
    for (Index i = 0; i < atoms; ++i) {
        const T slope = T(denergy[i]) * T(scale);
        along += denergy[i];
        for (Index a = 0; a < width; ++a) dw[a] += slope * z[i * width + a];
    }
    *db = T(along);
}

// sums = sum |e|, sum e^2, sum R over molecules, from E_i^n in terms[i, n], n <= top. The error
// e = (sum over i, n >= 1 of E_i^n) - (target - E^0) is kept; R is Eq. 18.
inline void error_sums(const double *terms, const Index *ptr, const double *target, double *error,
                       double *sums, Index molecules, Index top) {
    std::fill(sums, sums + 3, 0);
    for (Index m = 0; m < molecules; ++m) {
        double zeroth = 0, learned = 0;
        for (Index i = ptr[m]; i < ptr[m + 1]; ++i) {
            const double *E = terms + i * (top + 1);
            zeroth += E[0];
            for (Index n = 1; n <= top; ++n) {
                const double upper = E[n] * E[n], total = upper + E[n - 1] * E[n - 1];
                learned += E[n];
                sums[2] += total > 0 ? upper / total : 0;
            }
        }
        const double e = error[m] = learned - (target[m] - zeroth);
        sums[0] += e < 0 ? -e : e, sums[1] += e * e;
    }
}

inline void error_sums_backward(const double *terms, const Index *ptr, const double *error,
                                const double *dsums, double *dterms, Index molecules, Index top) {
    for (Index m = 0; m < molecules; ++m) {
        const double sign = (error[m] > 0) - (error[m] < 0);
        const double slope = dsums[0] * sign + 2 * dsums[1] * error[m];
        for (Index i = ptr[m]; i < ptr[m + 1]; ++i) {
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
}

}  // namespace hipnn
