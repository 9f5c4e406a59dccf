// Changes: a dot marks the derivative of a quantity if each distance r[x] moves by along[x]. The
// gradients of a function of values and changes are what a loss on forces needs.

#pragma once

#include "dense.h"
#include "interaction.h"

#include <algorithm>
#include <vector>

namespace hipnn {

// s_dot[x, padded] = along s'(r) from the sensitivities s of an atom's edges.
template <typename T>
void changes(const Edges<T> &edges, const Neighbours<T> &near, const T *along, const T *s,
             T *s_dot) {
    const T *im = edges.inverse_mu.data(), *sg = edges.sigma.data();
    const T *turns = edges.envelope_turns(near);
    const Index padded = edges.padded;
    for (Index x = 0; x < near.count; ++x, s += padded, s_dot += padded) {
        const T inverse = near.inverse[x], square = along[near.edge[x]] * inverse * inverse;
        const T of_envelope = along[near.edge[x]] * turns[x];
#pragma omp simd
        for (Index n = 0; n < padded; ++n)
            s_dot[n] = s[n] * (of_envelope + square * (inverse - im[n]) * sg[n] * sg[n]);
    }
}

// From ds and ds_dot [x, padded] of the edges first .. first + rows - 1 of an atom, and their
// sensitivities, within `window`: adds to dlogmu = dmu mu^2 and dsigma.
template <typename T>
void pull_back(const Edges<T> &edges, const Neighbours<T> &near, Index first, Index rows,
               Span window, const T *along, const T *ds, const T *ds_dot, const T *s,
               const T *s_dot, T *dlogmu, T *dsigma) {
    const T *im = edges.inverse_mu.data(), *sg = edges.sigma.data();
    const Index padded = edges.padded;
    for (Index x = first; x < first + rows; ++x) {
        const T inverse = near.inverse[x], factor = along[near.edge[x]] * inverse * inverse;
#pragma omp simd
        for (Index n = window.begin; n < window.end; ++n) {
            const T difference = inverse - im[n], deviation = difference * sg[n];
            const T turn = -deviation * (ds[n] * s[n] + ds_dot[n] * s_dot[n]);
            const T shift = factor * ds_dot[n] * s[n];
            dlogmu[n] += turn * sg[n] + shift * sg[n] * sg[n];
            dsigma[n] += turn * difference + 2 * shift * deviation;
        }
        ds += padded, ds_dot += padded, s += padded, s_dot += padded;
    }
}

// g_dot of interact and kept_dot, the changes of its environments, from the sensitivities it kept;
// z_dot null: 0.
template <typename T>
void interact_tangent(const Edges<T> &edges, const T *along, const T *z, const T *z_dot, const T *V,
                      const T *kept_s, T *g_dot, T *kept_dot, Index atoms, Index in, Index out) {
    const Index padded = edges.padded, depth = edges.nu * in, most = edges.most(atoms);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
        T *s_dot = scratch<T, kSensitivities>(most * padded);
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            for (Index i = first; i < first + count; ++i) {
                const Neighbours<T> near = edges.neighbours(i);
                T *e = kept_dot + i * depth;
                const T *s = kept_s + edges.row[i] * padded;
                changes(edges, near, along, s, s_dot);
                environment(edges, near, s_dot, z, in, e);
                if (z_dot) environment<true>(edges, near, s, z_dot, in, e);
            }
            multiply<T, false>(count, out, depth, kept_dot + first * depth, V, g_dot + first * out);
        }
    }
}

// `send` of a function of g and g_dot, from dg and dg_dot[atom, out]; adds to dz and dz_dot[N, in],
// too, which may be null, together.
template <typename T>
void send_tangent(const Edges<T> &edges, const T *along, Index first, Index count, const T *z,
                  const T *z_dot, const T *turned_V, const T *kept_s, const T *dg, const T *dg_dot,
                  double *dlogmu, double *dsigma, T *dz, T *dz_dot, Index most, Index in,
                  Index out) {
    const Index nu = edges.nu, depth = nu * in, padded = edges.padded, front = edges.front;
    T *s_dot = scratch<T, kSensitivities>(most * padded);
    T *ds = scratch<T, kSlopes>(2 * kTile * padded), *ds_dot = ds + kTile * padded;
    T *turned = scratch<T, kTurned>(2 * in * padded), *turned_dot = turned + in * padded;
    T *e = scratch<T, kEnvironments>(2 * kBlock * depth), *e_dot = e + kBlock * depth;
    T *part = scratch<T, kPart>(kTile * in);
    T *dm = scratch<T, kSmall>(2 * padded), *dsg = dm + padded;
    pull(dg, turned_V, e, count, nu, in, out);
    pull(dg_dot, turned_V, e_dot, count, nu, in, out);
    std::fill(turned, turned + 2 * in * padded, T(0));
    std::fill(dm, dm + 2 * padded, T(0));
    for (Index a = 0; a < count; ++a) {
        const Neighbours<T> near = edges.neighbours(first + a);
        const T *de = e + a * depth, *de_dot = e_dot + a * depth;
        transpose(nu, in, de, turned + front, padded);
        transpose(nu, in, de_dot, turned_dot + front, padded);
        const T *s = kept_s + edges.row[first + a] * padded;
        changes(edges, near, along, s, s_dot);
        for (Index x = 0; x < near.count; x += kTile, s += kTile * padded) {
            const Index rows = std::min(kTile, near.count - x), *j = near.j + x;
            const Span window = edges.registers(near, x, rows);
            const T *dot = s_dot + x * padded;
            projections(rows, j, turned, z, window, in, ds, padded);
            if (z_dot) projections<true>(rows, j, turned_dot, z_dot, window, in, ds, padded);
            projections(rows, j, turned_dot, z, window, in, ds_dot, padded);
            pull_back(edges, near, x, rows, window, along, ds, ds_dot, s, dot, dm, dsg);
            if (!dz) continue;
            const Span reaching = edges.reaching(near, x, rows, edges.of_function);
            if (!reaching.size()) continue;
            spread(rows, s + front, padded, de, reaching, in, part);
            spread<true>(rows, dot + front, padded, de_dot, reaching, in, part);
            send_back(rows, j, part, in, dz);
            spread(rows, s + front, padded, de_dot, reaching, in, part);
            send_back(rows, j, part, in, dz_dot);
        }
    }
    for (Index n = 0; n < nu; ++n) dlogmu[n] += dm[front + n], dsigma[n] += dsg[front + n];
}

// Gradients of a function of g and g_dot; dz and dz_dot may be null, together.
template <typename T>
void interact_tangent_backward(const Edges<T> &edges, const T *along, const T *z, const T *z_dot,
                               const T *V, const T *kept, const T *kept_dot, const T *kept_s,
                               const T *dg, const T *dg_dot, T *dmu, T *dsigma, T *dz, T *dz_dot,
                               T *dV, Index atoms, Index in, Index out) {
    const Index nu = edges.nu, most = edges.most(atoms), features = atoms * in;
    const Index team = omp_get_max_threads();
    T *turned_V = scratch<T, kWeights>(nu * in * out);
    T *parts_z = scratch<T, kRows>(dz ? 2 * team * features : 0);
    T *parts_z_dot = parts_z + team * features;
    std::vector<double> parts_mu(2 * team * nu, 0);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel num_threads(team)
    {
        const FloatMode held(mode);
        const Index me = omp_get_thread_num();
        turn(V, turned_V, nu, in, out);
        T *my_z = dz ? parts_z + me * features : dz;
        T *my_z_dot = dz ? parts_z_dot + me * features : dz;
        if (dz) {
            std::fill(my_z, my_z + features, T(0));
            std::fill(my_z_dot, my_z_dot + features, T(0));
        }
        double *my_mu = parts_mu.data() + 2 * me * nu, *my_sigma = my_mu + nu;
#pragma omp for schedule(static)
        for (Index n = 0; n < nu; n += side_by_side(nu, in)) {
            weight_gradient(kept, dg, dV, n, atoms, nu, in, out);
            weight_gradient<true>(kept_dot, dg_dot, dV, n, atoms, nu, in, out);
        }
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            send_tangent(edges, along, first, count, z, z_dot, turned_V, kept_s, dg + first * out,
                         dg_dot + first * out, my_mu, my_sigma, my_z, my_z_dot, most, in, out);
        }
#pragma omp barrier
        if (dz) {
            gather_parts(parts_z, features, dz);
            gather_parts(parts_z_dot, features, dz_dot);
        }
    }
    sum_parts(edges, parts_mu.data(), team, dmu, dsigma);
}

// The changes of dense: of its result and, for the backward pass, of activations and inputs.
template <typename T>
void dense_tangent(const T *z_dot, const T *received_dot, const T *const *weights,
                   const T *activations, T *activations_dot, T *inputs_dot, T *result_dot,
                   Index atoms, Index in, Index out, Index layers) {
    auto all = stack(weights, in, out, layers);
    T *turned = scratch<T, kWeights>(parameters(all, layers));
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
        turn(all, turned);
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            const T *from = z_dot ? z_dot + first * in : z_dot;
            for (Index l = 0; l < layers; ++l) {
                const Index at = (l * atoms + first) * out;
                T *to = l + 1 < layers ? inputs_dot + at : result_dot + first * out;
                all[l].tangent(count, from, l ? nullptr : received_dot + first * out,
                               activations + at, activations_dot + at, to);
                from = to;
            }
        }
    }
}

// Gradients of a function of dense's result and its change; dz and dz_dot may be null, together.
template <typename T>
void dense_tangent_backward(const T *z, const T *z_dot, const T *const *weights,
                            const T *activations, const T *activations_dot, const T *inputs,
                            const T *inputs_dot, const T *dresult, const T *dresult_dot,
                            T *dreceived, T *dreceived_dot, T *dz, T *dz_dot, T *dweights,
                            Index atoms, Index in, Index out, Index layers) {
    const auto all = stack(weights, in, out, layers);
    const Index size = parameters(all, layers);
    const Index team = omp_get_max_threads(), rows = kBlock * out;
    T *parts = scratch<T, kSums>(team * size);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel num_threads(team)
    {
        const FloatMode held(mode);
        T *small = scratch<T, kSmall>(6 * rows);
        T *mine = parts + omp_get_thread_num() * size;
        std::fill(mine, mine + size, T(0));
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            const T *down = dresult + first * out, *down_dot = dresult_dot + first * out;
            T *to = mine + size;
            for (Index l = layers - 1; l >= 0; --l) {
                to -= all[l].parameters();
                const Index at = (l * atoms + first) * out, below = at - atoms * out;
                const T *from_dot = z_dot ? z_dot + first * in : z_dot;
                T *dh = small, *dh_dot = small + rows;
                T *up = small + (2 + l % 2) * rows, *up_dot = small + (4 + l % 2) * rows;
                if (!l) {
                    dh = dreceived + first * out, dh_dot = dreceived_dot + first * out;
                    up = dz ? dz + first * in : dz, up_dot = dz ? dz_dot + first * in : dz;
                }
                all[l].tangent_backward(count, l ? inputs + below : z + first * in,
                                        l ? inputs_dot + below : from_dot, activations + at,
                                        activations_dot + at, down, down_dot, dh, dh_dot, up, up_dot,
                                        to);
                down = up, down_dot = up_dot;
            }
        }
#pragma omp barrier
        gather_parts(parts, size, dweights);
    }
}

}  // namespace hipnn
