// HIP-NN's layers on a CPU, forward and backward, block by block of atoms: what belongs to a pair
// or to an environment lives in a core's cache and is stored only where gradients will need it.
//
// Edges are sorted by receiver: row[i] <= x < row[i + 1]. Every thread owns a fixed range of atoms
// and its own sums over atoms, added up in the order of the threads: the same bits every time.
//
//   interact   g[i, a] = sum over x, nu, b  s_nu(r[x]) z[j(x), b] V[nu, b, a]     (Eqs. 8-11)
//   dense      the rest of a block: softplus and residual of the interaction layer, then the
//              on-site layers                                                       (Eqs. 5-9)
//   ..._tangent: the change of both along a change of the distances
//   learn      the loss of many molecules and its gradient in one call; `adam` makes a step of it
//   gather     a mini-batch
//   envsum, sensesum, featsum: the sums alone, see sums.py

#include "batches.h"
#include "dense.h"
#include "energies.h"
#include "interaction.h"
#include "learning.h"
#include "tangents.h"

#include <cmath>
#include <new>
#include <vector>

namespace hipnn {

// What an export returns: 0, or -1 where memory for the sums of the threads was not to be had.
template <typename Work> Index guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc &) {
        return -1;
    }
}

// ---- all pairs inside each molecule ---------------------------------------------------------------

template <typename T>
void molecule_edges(const T *pos, const Index *ptr, Index *row, Index *j, Index *i, T *r,
                    Index molecules) {
    std::vector<Index> start(molecules + 1, 0);
    for (Index m = 0; m < molecules; ++m) {
        const Index n = ptr[m + 1] - ptr[m];
        start[m + 1] = start[m] + n * (n - 1);
    }
    row[0] = 0;
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
#pragma omp for schedule(static)
        for (Index m = 0; m < molecules; ++m)
            find_pairs(pos, ptr, m, m + 1, start[m], row, j, i, r);
    }
}

// ---- the sums alone -------------------------------------------------------------------------------

template <typename T>
void envsum(const T *s, const T *z, const Index *row, const Index *j, T *e, Index rows, Index nu,
            Index width) {
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
#pragma omp for schedule(dynamic, 8)
        for (Index i = 0; i < rows; ++i) {
            const T *own = s + row[i] * nu;
            const Index *senders = j + row[i];
            product<T, false>(
                nu, row[i + 1] - row[i], width, [=](Index n, Index x) { return own[x * nu + n]; },
                [=](Index x) { return z + senders[x] * width; }, e + i * nu * width, width);
        }
    }
}

template <typename T>
void sensesum(const T *g, const T *z, const Index *row, const Index *j, T *t, Index rows, Index nu,
              Index width) {
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
        std::vector<T> turned(nu * width);
#pragma omp for schedule(dynamic, 8)
        for (Index i = 0; i < rows; ++i) {
            transpose(nu, width, g + i * nu * width, turned.data());
            projections(row[i + 1] - row[i], j + row[i], turned.data(), z, {0, nu}, width,
                        t + row[i] * nu, nu);
        }
    }
}

// `order` lists the edges sorted by sender: x = order[k], column[n] <= k < column[n + 1].
template <typename T>
void featsum(const T *g, const T *s, const Index *column, const Index *order, const Index *i, T *u,
             Index senders, Index nu, Index width) {
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
#pragma omp for schedule(dynamic, 8)
        for (Index n = 0; n < senders; ++n) {
            T *to = u + n * width;
            std::fill(to, to + width, T(0));
            for (Index k = column[n]; k < column[n + 1]; ++k) {
                const T *from = g + i[order[k]] * nu * width, *weight = s + order[k] * nu;
                product<T, true>(
                    1, nu, width, [=](Index, Index m) { return weight[m]; },
                    [=](Index m) { return from + m * width; }, to, width);
            }
        }
    }
}

}  // namespace hipnn

using hipnn::Index;

#define EXPORT(T, NAME)                                                                            \
    extern "C" hipnn::Index whole_registers_##NAME(hipnn::Index nu) {                              \
        return hipnn::Edges<T>::whole_registers(nu);                                               \
    }                                                                                              \
    extern "C" Index interact_##NAME(const T *r, const Index *row, const Index *j, const T *mu,    \
                                     const T *sigma, const T *z, const T *V, T *g, T *kept,        \
                                     T *kept_s, Index atoms, Index nu, Index in, Index out,        \
                                     double cutoff) {                                              \
        return hipnn::guarded([&] {                                                                \
            hipnn::interact<T>({r, row, j, mu, sigma, nu, T(cutoff)}, z, V, g, kept, kept_s,       \
                               atoms, in, out);                                                    \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index interact_backward_##NAME(                                                     \
        const T *r, const Index *row, const Index *j, const T *mu, const T *sigma, const T *z,     \
        const T *V, const T *kept, const T *kept_s, const T *dg, T *dmu, T *dsigma, T *dz, T *dV,  \
        T *dr, Index atoms, Index nu, Index in, Index out, double cutoff) {                        \
        return hipnn::guarded([&] {                                                                \
            hipnn::interact_backward<T>({r, row, j, mu, sigma, nu, T(cutoff)}, z, V, kept, kept_s, \
                                        dg, dmu, dsigma, dz, dV, dr, atoms, in, out);              \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index dense_##NAME(const T *z, const T *received, const T *const *weights,          \
                                  T *activations, T *inputs, T *result, Index atoms, Index in,     \
                                  Index out, Index layers) {                                       \
        return hipnn::guarded([&] {                                                                \
            hipnn::dense<T>(z, received, weights, activations, inputs, result, atoms, in, out,     \
                            layers);                                                               \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index dense_backward_##NAME(                                                        \
        const T *z, const T *const *weights, const T *activations, const T *inputs,                \
        const T *dresult, T *dreceived, T *dz, T *dweights, Index atoms, Index in, Index out,      \
        Index layers) {                                                                            \
        return hipnn::guarded([&] {                                                                \
            hipnn::dense_backward<T>(z, weights, activations, inputs, dresult, dreceived, dz,      \
                                     dweights, atoms, in, out, layers);                            \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index interact_tangent_##NAME(                                                      \
        const T *r, const Index *row, const Index *j, const T *mu, const T *sigma, const T *along, \
        const T *z, const T *z_dot, const T *V, const T *kept_s, T *g_dot, T *kept_dot,            \
        Index atoms, Index nu, Index in, Index out, double cutoff) {                               \
        return hipnn::guarded([&] {                                                                \
            hipnn::interact_tangent<T>({r, row, j, mu, sigma, nu, T(cutoff)}, along, z, z_dot, V,  \
                                       kept_s, g_dot, kept_dot, atoms, in, out);                   \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index interact_tangent_backward_##NAME(                                             \
        const T *r, const Index *row, const Index *j, const T *mu, const T *sigma, const T *along, \
        const T *z, const T *z_dot, const T *V, const T *kept, const T *kept_dot,                  \
        const T *kept_s, const T *dg, const T *dg_dot, T *dmu, T *dsigma, T *dz, T *dz_dot, T *dV, \
        Index atoms, Index nu, Index in, Index out, double cutoff) {                               \
        return hipnn::guarded([&] {                                                                \
            hipnn::interact_tangent_backward<T>({r, row, j, mu, sigma, nu, T(cutoff)}, along, z,   \
                                                z_dot, V, kept, kept_dot, kept_s, dg, dg_dot, dmu, \
                                                dsigma, dz, dz_dot, dV, atoms, in, out);           \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index dense_tangent_##NAME(const T *z_dot, const T *received_dot,                   \
                                          const T *const *weights, const T *activations,           \
                                          T *activations_dot, T *inputs_dot, T *result_dot,        \
                                          Index atoms, Index in, Index out, Index layers) {        \
        return hipnn::guarded([&] {                                                                \
            hipnn::dense_tangent<T>(z_dot, received_dot, weights, activations, activations_dot,    \
                                    inputs_dot, result_dot, atoms, in, out, layers);               \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index dense_tangent_backward_##NAME(                                                \
        const T *z, const T *z_dot, const T *const *weights, const T *activations,                 \
        const T *activations_dot, const T *inputs, const T *inputs_dot, const T *dresult,          \
        const T *dresult_dot, T *dreceived, T *dreceived_dot, T *dz, T *dz_dot, T *dweights,       \
        Index atoms, Index in, Index out, Index layers) {                                          \
        return hipnn::guarded([&] {                                                                \
            hipnn::dense_tangent_backward<T>(z, z_dot, weights, activations, activations_dot,      \
                                             inputs, inputs_dot, dresult, dresult_dot, dreceived,  \
                                             dreceived_dot, dz, dz_dot, dweights, atoms, in, out,  \
                                             layers);                                              \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index molecule_edges_##NAME(const T *pos, const Index *ptr, Index *row, Index *j,   \
                                           Index *i, T *r, Index molecules) {                      \
        return hipnn::guarded([&] {                                                                \
            hipnn::molecule_edges<T>(pos, ptr, row, j, i, r, molecules);                           \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index penalise_##NAME(const T *gradient, const T *vector, const T *penalised,       \
                                     T *total, T *sum, Index size, double factor) {                \
        return hipnn::guarded([&] {                                                                \
            hipnn::penalise<T>(gradient, vector, penalised, total, sum, size, T(factor));          \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index adam_##NAME(T *vector, const T *gradient, T *mean, T *square, float *steps,   \
                                 Index size, double rate, double beta1, double beta2,              \
                                 double epsilon) {                                                 \
        return hipnn::guarded([&] {                                                                \
            hipnn::adam<T>(vector, gradient, mean, square, steps, size, rate, beta1, beta2,        \
                           epsilon);                                                               \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index gather_##NAME(const Index *index, const Index *counts, const Index *start,    \
                                   const Index *z, const T *pos, const double *target, Index *ptr, \
                                   Index *batch, Index *own_z, T *own_pos, double *own_target,     \
                                   Index molecules) {                                              \
        return hipnn::guarded([&] {                                                                \
            hipnn::gather<T>(index, counts, start, z, pos, target, ptr, batch, own_z, own_pos,     \
                             own_target, molecules);                                               \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index readout_##NAME(const T *z, const T *w, const T *b, double *energy,            \
                                    Index atoms, Index width, double scale) {                      \
        return hipnn::guarded([&] {                                                                \
            hipnn::readout<T>(z, w, b, energy, atoms, width, scale);                               \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index readout_backward_##NAME(const T *z, const T *w, const double *denergy, T *dz, \
                                             T *dw, T *db, Index atoms, Index width,               \
                                             double scale) {                                       \
        return hipnn::guarded([&] {                                                                \
            hipnn::readout_pull<false>(w, denergy, dz, atoms, width, scale);                       \
            if (dw) hipnn::readout_weights<T>(z, denergy, dw, db, atoms, width, scale);            \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index envsum_##NAME(const T *s, const T *z, const Index *row, const Index *j, T *e, \
                                   Index rows, Index nu, Index width) {                            \
        return hipnn::guarded([&] {                                                                \
            hipnn::envsum<T>(s, z, row, j, e, rows, nu, width);                                    \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index sensesum_##NAME(const T *g, const T *z, const Index *row, const Index *j,     \
                                     T *t, Index rows, Index nu, Index width) {                    \
        return hipnn::guarded([&] {                                                                \
            hipnn::sensesum<T>(g, z, row, j, t, rows, nu, width);                                  \
        });                                                                                        \
    }                                                                                              \
    extern "C" Index featsum_##NAME(const T *g, const T *s, const Index *column,                   \
                                    const Index *order, const Index *i, T *u, Index senders,       \
                                    Index nu, Index width) {                                       \
        return hipnn::guarded([&] {                                                                \
            hipnn::featsum<T>(g, s, column, order, i, u, senders, nu, width);                      \
        });                                                                                        \
    }
EXPORT(float, float32)
EXPORT(double, float64)
// Bytes of memory that a step needs; where there are fewer, nothing is done.
#define EXPORT_LEARN(T, NAME)                                                                      \
    extern "C" Index learn_##NAME(                                                                 \
        const Index *sizes, const double *cutoffs, const T *const *weights, T *const *slopes,      \
        const Index *z, const Index *ptr, const T *pos, const T *r, const Index *row,              \
        const Index *j, const Index *place, const double *e0, const double *bias,                  \
        const double *sigma_e, const double *target, double *loss, double *mae, double *rmse,      \
        double *l2, double *r_mean, const T *gradient, const T *vector, const T *penalised,        \
        T *total, void *memory, Index bytes, double lambda_l2, double lambda_r) {                  \
        hipnn::Network<T> network(                                                                 \
            {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]}, cutoffs,       \
            weights, {z, ptr, pos, r, row, j}, memory);                                            \
        if (network.bytes() <= bytes)                                                              \
            hipnn::Loss<T>{lambda_l2, lambda_r, gradient, vector, penalised, total, loss, mae,     \
                           rmse, l2, r_mean, sizes[8]}                                             \
                .learn(network, {place, sizes[7], e0, *bias, *sigma_e}, target, sizes[1], slopes); \
        return network.bytes();                                                                    \
    }
EXPORT_LEARN(float, float32)
EXPORT_LEARN(double, float64)
extern "C" Index gather_sizes_float64(const Index *index, const Index *counts, Index *sizes,
                                      Index molecules, Index all) {
    return hipnn::gather_sizes(index, counts, sizes, molecules, all);
}
extern "C" Index error_sums_float64(const double *terms, const Index *ptr, const double *target,
                                    double *error, double *sums, Index molecules, Index top) {
    return hipnn::guarded(
        [&] { hipnn::error_sums(terms, ptr, target, error, sums, molecules, top); });
}
extern "C" Index error_sums_backward_float64(const double *terms, const Index *ptr,
                                             const double *error, const double *dsums,
                                             double *dterms, Index molecules, Index top) {
    return hipnn::guarded(
        [&] { hipnn::error_sums_backward(terms, ptr, error, dsums, dterms, molecules, top); });
}
