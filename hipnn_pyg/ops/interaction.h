// What the neighbours send to an atom (Eqs. 8-11), and the gradients of it.

#pragma once

#include "neighbours.h"

#include <algorithm>
#include <vector>

namespace hipnn {

// e[nu, b] (+)= sum over an atom's edges  s[x, nu] z[j(x), b], of those that a function reaches; s is
// [edges, padded].
template <bool ADD = false, typename T>
inline void environment(const Edges<T> &edges, const Neighbours<T> &near, const T *s, const T *z,
                        Index width, T *e) {
    const Index lds = edges.padded;
    for (Index n = 0; n < edges.nu; n += kTile) {
        const Span reached = edges.reached(near, n / kTile);
        const T *own = s + reached.begin * lds + edges.front + n;
        const Index *j = near.j + reached.begin;
        product<T, ADD>(
            std::min(kTile, edges.nu - n), reached.size(), width,
            [=](Index m, Index x) { return own[x * lds + m]; },
            [=](Index x) { return z + j[x] * width; }, e + n * width, width);
    }
}

// t[x, nu] (+)= sum over b  g[nu, b] z[j(x), b] of `rows` edges, with g turned to [b, ld], for the
// functions of `window`; rows of t are `ld` apart, too.
template <bool ADD = false, typename T>
inline void projections(Index rows, const Index *j, const T *turned, const T *z, Span window,
                        Index width, T *t, Index ld) {
    const T *from = turned + window.begin;
    product<T, ADD>(
        rows, width, window.size(), [=](Index x, Index b) { return z[j[x] * width + b]; },
        [=](Index b) { return from + b * ld; }, t + window.begin, ld);
}

// part[x, b] (+)= sum over nu  s[x, nu] g[nu, b] of `rows` edges and the functions of `reaching`;
// rows of s are `lds` apart.
template <bool ADD = false, typename T>
inline void spread(Index rows, const T *s, Index lds, const T *g, Span reaching, Index width,
                   T *part) {
    const T *own = s + reaching.begin, *from = g + reaching.begin * width;
    product<T, ADD>(
        rows, reaching.size(), width, [=](Index x, Index n) { return own[x * lds + n]; },
        [=](Index n) { return from + n * width; }, part, width);
}

// u[j(x), b] += part[x, b] of `rows` edges
template <typename T>
inline void send_back(Index rows, const Index *j, const T *part, Index width, T *u) {
    for (Index x = 0; x < rows; ++x)
        for (Index b = 0; b < width; ++b) u[j[x] * width + b] += part[x * width + b];
}

// e[atom, nu, b] of `count` atoms from `first` on. The sensitivities are kept in s[E, padded], or
// only those of one atom.
template <typename T>
inline void environments(const Edges<T> &edges, Index first, Index count, const T *z, Index in,
                         T *s, bool keep, T *e) {
    for (Index a = 0; a < count; ++a) {
        const Neighbours<T> near = edges.neighbours(first + a);
        T *own = keep ? s + edges.row[first + a] * edges.padded : s;
        edges.sensitivities(near, own);
        environment(edges, near, own, z, in, e + a * edges.nu * in);
    }
}

// What `count` atoms from `first` on receive, g[atom, out]; the rest as in `environments`.
template <typename T>
inline void receive(const Edges<T> &edges, Index first, Index count, const T *z, const T *V,
                    Index in, Index out, T *s, bool keep, T *e, T *g) {
    environments(edges, first, count, z, in, s, keep, e);
    multiply<T, false>(count, out, edges.nu * in, e, V, g);
}

// kept[atoms, nu, in], the environments, and kept_s[E, padded], the sensitivities, are for gradients
// in the weights; null, together, if there will be none.
template <typename T>
void interact(const Edges<T> &edges, const T *z, const T *V, T *g, T *kept, T *kept_s, Index atoms,
              Index in, Index out) {
    const Index depth = edges.nu * in, most = edges.most(atoms);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
        T *s = kept_s ? kept_s : scratch<T, kSensitivities>(most * edges.padded);
        T *small = scratch<T, kEnvironments>(kept ? 0 : kBlock * depth);
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            T *e = kept ? kept + first * depth : small;
            receive(edges, first, count, z, V, in, out, s, kept_s, e, g + first * out);
        }
    }
}

// V of several nu side by side where few features come in (the one-hot layer): their gradients then
// fill whole tiles.
inline Index side_by_side(Index nu, Index in) {
    constexpr Index most = 80;  // columns
    return std::max<Index>(1, std::min(nu, most / in));
}

// V[nu, in, out], those side by side turned to [out, nu in]; call from the whole team.
template <typename T> void turn(const T *V, T *turned, Index nu, Index in, Index out) {
    const Index group = side_by_side(nu, in);
#pragma omp for schedule(static)
    for (Index n = 0; n < nu; n += group) {
        const Index at = n * in * out;
        transpose(std::min(group, nu - n) * in, out, V + at, turned + at);
    }
}

// e[atom, nu, b] = sum over a  g[atom, a] V[nu, b, a] of `count` atoms, with V as `turn` gives it.
template <typename T>
void pull(const T *g, const T *turned, T *e, Index count, Index nu, Index in, Index out) {
    const Index group = side_by_side(nu, in);
    for (Index n = 0; n < nu; n += group)
        multiply<T, false>(count, std::min(group, nu - n) * in, out, g, turned + n * in * out,
                           e + n * in, nu * in);
}

// Gradient of those V that lie side by side, from number n on: dV[nu, b, a] (+)= sum over i
// e[i, nu, b] dg[i, a].
template <bool ADD = false, typename T>
void weight_gradient(const T *e, const T *dg, T *dV, Index n, Index atoms, Index nu, Index in,
                     Index out) {
    const Index depth = nu * in, rows = std::min(side_by_side(nu, in), nu - n) * in;
    e += n * in, dV += n * in * out;
    if (!ADD) std::fill(dV, dV + rows * out, T(0));
    for (Index first = 0; first < atoms; first += kDepth)
        add_outer(rows, out, std::min(kDepth, atoms - first), e + first * depth, depth,
                  dg + first * out, dV);
}

// Gradients in mu and sigma from each thread's sums of dlogmu = dmu mu^2 and dsigma.
template <typename T>
void sum_parts(const Edges<T> &edges, const double *parts, Index team, T *dmu, T *dsigma) {
    const Index nu = edges.nu;
    for (Index n = 0; n < nu; ++n) {
        double mu = 0, sigma = 0;
        for (Index me = 0; me < team; ++me)
            mu += parts[2 * me * nu + n], sigma += parts[(2 * me + 1) * nu + n];
        const T inverse = edges.inverse_mu[edges.front + n];
        dmu[n] = T(mu) * inverse * inverse, dsigma[n] = T(sigma);
    }
}

// Gradients of what `count` atoms from `first` on receive, from dg[atom, out] and V turned: adds to
// dlogmu, dsigma and dz[N, in]; writes dr. dz, dr and kept_s may be null.
template <typename T>
void send(const Edges<T> &edges, Index first, Index count, const T *z, const T *turned_V,
          const T *kept_s, const T *dg, double *dlogmu, double *dsigma, T *dz, T *dr, Index most,
          Index in, Index out) {
    const Index nu = edges.nu, depth = nu * in, padded = edges.padded, front = edges.front;
    T *small = scratch<T, kSensitivities>(kept_s ? 0 : most * padded);
    T *ds = scratch<T, kSlopes>(kTile * padded), *part = scratch<T, kPart>(kTile * in);
    T *turned = scratch<T, kTurned>(in * padded), *e = scratch<T, kEnvironments>(nu * kBlock * in);
    T *dm = scratch<T, kSmall>(2 * padded), *dsg = dm + padded;
    pull(dg, turned_V, e, count, nu, in, out);
    std::fill(turned, turned + in * padded, T(0));
    std::fill(dm, dm + 2 * padded, T(0));
    for (Index a = 0; a < count; ++a) {
        const Neighbours<T> near = edges.neighbours(first + a);
        const T *de = e + a * depth, *s = edges.sensitivities(first + a, near, kept_s, small);
        const T *turns = dr ? edges.envelope_turns(near) : nullptr;
        transpose(nu, in, de, turned + front, padded);
        for (Index x = 0; x < near.count; x += kTile, s += kTile * padded) {
            const Index rows = std::min(kTile, near.count - x), *j = near.j + x;
            const Span window = edges.registers(near, x, rows);
            projections(rows, j, turned, z, window, in, ds, padded);
            edges.pull_back(near, x, rows, window, ds, s, turns, dm, dsg, dr);
            if (!dz) continue;
            const Span reaching = edges.reaching(near, x, rows, edges.of_function);
            if (!reaching.size()) continue;
            spread(rows, s + front, padded, de, reaching, in, part);
            send_back(rows, j, part, in, dz);
        }
    }
    for (Index n = 0; n < nu; ++n) dlogmu[n] += dm[front + n], dsigma[n] += dsg[front + n];
}

// Gradients of interact; dz, dV (which needs kept), dr and kept_s may be null.
template <typename T>
void interact_backward(const Edges<T> &edges, const T *z, const T *V, const T *kept,
                       const T *kept_s, const T *dg, T *dmu, T *dsigma, T *dz, T *dV, T *dr,
                       Index atoms, Index in, Index out) {
    const Index nu = edges.nu, depth = nu * in, most = edges.most(atoms);
    const Index team = omp_get_max_threads();
    T *turned_V = scratch<T, kWeights>(depth * out);
    T *parts_z = scratch<T, kRows>(dz ? team * atoms * in : 0);
    std::vector<double> parts_mu(2 * team * nu, 0);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel num_threads(team)
    {
        const FloatMode held(mode);
        const Index me = omp_get_thread_num();
        turn(V, turned_V, nu, in, out);
        T *my_z = dz ? parts_z + me * atoms * in : dz;
        if (dz) std::fill(my_z, my_z + atoms * in, T(0));
        double *my_mu = parts_mu.data() + 2 * me * nu, *my_sigma = my_mu + nu;
#pragma omp for schedule(static)
        for (Index n = 0; n < (dV ? nu : 0); n += side_by_side(nu, in))
            weight_gradient(kept, dg, dV, n, atoms, nu, in, out);
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            send(edges, first, count, z, turned_V, kept_s, dg + first * out, my_mu, my_sigma, my_z,
                 dr, most, in, out);
        }
#pragma omp barrier
        if (dz) gather_parts(parts_z, atoms * in, dz);
    }
    sum_parts(edges, parts_mu.data(), team, dmu, dsigma);
}

}  // namespace hipnn
