// A training step: the loss (Eq. 14) and its gradient, and what Adam makes of it.

#pragma once

#include "network.h"
#include "threads.h"

#include <cmath>
#include <numeric>
#include <vector>

namespace hipnn {

// total = gradient + factor w, with w = penalised vector, whose squares add up to `sum`, in the same
// order with any threads.
template <typename T>
void penalise(const T *gradient, const T *vector, const T *penalised, T *total, T *sum, Index size,
              T factor) {
    constexpr Index piece = 4096;
    std::vector<double> sums((size + piece - 1) / piece);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
#pragma omp for schedule(static)
        for (Index n = 0; n < Index(sums.size()); ++n) {
            T own = 0;
#pragma omp simd reduction(+ : own)
            for (Index k = n * piece; k < std::min(size, (n + 1) * piece); ++k) {
                const T weight = penalised[k] * vector[k];
                own += weight * weight;
                total[k] = gradient[k] + factor * weight;
            }
            sums[n] = own;
        }
    }
    *sum = T(std::accumulate(sums.begin(), sums.end(), 0.0));
}

// The loss (Eq. 14) and its parts: MAE, RMSE, L2 term, mean R; its gradient to `total`.
// The slopes of `weights` are parts of `gradient`, which lacks the L2 term's.
template <typename T> struct Loss {
    double lambda_l2, lambda_r;
    const T *gradient, *vector, *penalised;
    T *total;
    double *loss, *mae, *rmse, *l2, *r;
    Index parameters;

    void learn(Network<T> &network, const Zeroth &zeroth, const double *target, Index molecules,
               T *const *slopes) const {
        const auto sums = network.forward(zeroth, target);
        *mae = sums[0] / molecules, *rmse = std::sqrt(sums[1] / molecules), *r = sums[2] / molecules;
        const double scale = molecules * zeroth.sigma_e;
        network.backward({1 / scale, *rmse ? 0.5 / (*rmse * scale) : 0, lambda_r / molecules},
                         zeroth.sigma_e, slopes);
        T sum;
        penalise(gradient, vector, penalised, total, &sum, parameters, T(2 * lambda_l2));
        *l2 = sum;
        *loss = (*mae + *rmse) / zeroth.sigma_e + lambda_l2 * *l2 + lambda_r * *r;
    }
};

template <typename T>
void adam(T *vector, const T *gradient, T *mean, T *square, float *steps, Index size, double rate,
          double beta1, double beta2, double epsilon) {
    const double step = *steps += 1;
    const T along = T(rate / (1 - std::pow(beta1, step)));
    const T root = T(1 / std::sqrt(1 - std::pow(beta2, step))), least = T(epsilon);
    const T kept = T(beta1), kept_square = T(beta2), part = T(1 - beta1), part_square = T(1 - beta2);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
#pragma omp for simd schedule(static)
        for (Index k = 0; k < size; ++k) {
            const T slope = gradient[k];
            const T m = kept * mean[k] + part * slope;
            const T v = kept_square * square[k] + part_square * slope * slope;
            mean[k] = m, square[k] = v;
            vector[k] -= along * m / (std::sqrt(v) * root + least);
        }
    }
}

}  // namespace hipnn
