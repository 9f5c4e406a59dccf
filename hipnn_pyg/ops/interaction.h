// What the neighbours send to an atom (Eqs. 8-11), and the gradients of it.

#pragma once

#include "threads.h"
#include "tiles.h"

#include <algorithm>
#include <cmath>
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

// The pairs of all atoms and the sensitivity functions of one layer, ready to evaluate.
template <typename T> struct Edges {
    const T *r;
    const Index *row, *j;
    Index nu, padded;  // padded: whole registers, where sigma = 0
    T cutoff;
    std::vector<T> inverse_mu, sigma;

    static Index whole_registers(Index nu) { return (nu + kWidth<T> - 1) / kWidth<T> * kWidth<T>; }

    Edges(const T *r, const Index *row, const Index *j, const T *mu, const T *sigmas, Index nu,
          T cutoff)
        : r(r), row(row), j(j), nu(nu), padded(whole_registers(nu)), cutoff(cutoff), inverse_mu(padded, 0), sigma(padded, 0) {
        for (Index n = 0; n < nu; ++n) inverse_mu[n] = 1 / mu[n], sigma[n] = sigmas[n];
    }

    Index degree(Index i) const { return row[i + 1] - row[i]; }
    const Index *senders(Index i) const { return j + row[i]; }
    Index most(Index atoms) const {
        Index found = 0;
        for (Index i = 0; i < atoms; ++i) found = std::max(found, degree(i));
        return found;
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
    // That of the edges of atom i; valid until the next call.
    const T *envelope_turns(Index i) const {
        T *turns = scratch<T, kEnvelopes>(degree(i));
        const T *distance = r + row[i];
#pragma omp simd
        for (Index x = 0; x < degree(i); ++x) turns[x] = envelope_turn(distance[x]);
        return turns;
    }
    static constexpr T kQuarter = T(1.57079632679489661923);  // pi / 2

    // The sensitivities of Eq. 10, s[x, padded], of the edges of atom i.
    void sensitivities(Index i, T *s) const {
        const T *im = inverse_mu.data(), *sg = sigma.data(), *distance = r + row[i];
        const Index edges = degree(i);
        T *phi = scratch<T, kEnvelopes>(edges);
#pragma omp simd
        for (Index x = 0; x < edges; ++x) phi[x] = envelope(distance[x]);
        for (Index x = 0; x < edges; ++x, s += padded) {
            const T inverse = 1 / distance[x], factor = phi[x];
#pragma omp simd
            for (Index n = 0; n < padded; ++n) {
                const T deviation = (inverse - im[n]) * sg[n];
                s[n] = exponential(T(-0.5) * deviation * deviation) * factor;
            }
        }
    }

    // Those of atom i: kept[E, padded] holds them all, or they are computed, to `small`.
    const T *sensitivities(Index i, const T *kept, T *small) const {
        if (kept) return kept + row[i] * padded;
        sensitivities(i, small);
        return small;
    }

    // From ds[x, nu] of atom i and s: adds to dlogmu = dmu mu^2 and dsigma; writes dr.
    void pull_back(Index i, const T *ds, const T *s, T *dmu, T *dsigma, T *dr) const {
        const T *im = inverse_mu.data(), *sg = sigma.data();
        const T *turns = dr ? envelope_turns(i) : nullptr;
        for (Index x = row[i]; x < row[i + 1]; ++x, ds += nu, s += padded) {
            const T inverse = 1 / r[x], square = inverse * inverse;
            const T of_envelope = dr ? *turns++ : T(0);
            T along = 0;
#pragma omp simd reduction(+ : along)
            for (Index n = 0; n < nu; ++n) {
                const T difference = inverse - im[n], weighted = s[n] * ds[n];
                const T turn = -difference * sg[n] * weighted;
                dmu[n] += turn * sg[n];
                dsigma[n] += turn * difference;
                along += weighted * of_envelope - turn * sg[n] * square;
            }
            if (dr) dr[x] = along;
        }
    }
};

// e[nu, b] (+)= sum over the atom's edges  s[x, nu] z[j(x), b]; rows of s and e are `lds`, `ld` apart
template <bool ADD = false, typename T>
inline void environment(Index degree, const Index *j, const T *s, Index lds, const T *z, Index nu,
                        Index width, T *e, Index ld) {
    product<T, ADD>(
        nu, degree, width, [=](Index n, Index x) { return s[x * lds + n]; },
        [=](Index x) { return z + j[x] * width; }, e, ld);
}

// t[x, nu] (+)= sum over b  g[nu, b] z[j(x), b], with g turned to [b, nu]
template <bool ADD = false, typename T>
inline void projections(Index degree, const Index *j, const T *turned, const T *z, Index nu,
                        Index width, T *t) {
    product<T, ADD>(
        degree, width, nu, [=](Index x, Index b) { return z[j[x] * width + b]; },
        [=](Index b) { return turned + b * nu; }, t, nu);
}

// part[x, b] (+)= sum over nu  s[x, nu] g[nu, b] of `degree` edges; rows of s are `lds` apart
template <bool ADD = false, typename T>
inline void spread(Index degree, const T *s, Index lds, const T *g, Index nu, Index width, T *part) {
    product<T, ADD>(
        degree, nu, width, [=](Index x, Index n) { return s[x * lds + n]; },
        [=](Index n) { return g + n * width; }, part, width);
}

// u[j(x), b] += part[x, b] of the edges of an atom
template <typename T>
inline void send_back(Index degree, const Index *j, const T *part, Index width, T *u) {
    for (Index x = 0; x < degree; ++x)
        for (Index b = 0; b < width; ++b) u[j[x] * width + b] += part[x * width + b];
}

// e[nu, atom, b] of `count` atoms from `first` on: a matrix for each nu, `ld` numbers apart. The
// sensitivities are kept in s[E, padded], or only those of one atom.
template <typename T>
inline void environments(const Edges<T> &edges, Index first, Index count, const T *z, Index in,
                         T *s, bool keep, T *e, Index ld) {
    for (Index a = 0; a < count; ++a) {
        const Index i = first + a;
        T *own = keep ? s + edges.row[i] * edges.padded : s;
        edges.sensitivities(i, own);
        environment(edges.degree(i), edges.senders(i), own, edges.padded, z, edges.nu, in,
                    e + a * in, ld);
    }
}

// What `count` atoms from `first` on receive, g[atom, out]; the rest as in `environments`.
template <typename T>
inline void receive(const Edges<T> &edges, Index first, Index count, const T *z, const T *V,
                    Index in, Index out, T *s, bool keep, T *e, Index ld, T *g) {
    environments(edges, first, count, z, in, s, keep, e, ld);
    std::fill(g, g + count * out, T(0));
    for (Index n = 0; n < edges.nu; ++n)
        multiply<T, true>(count, out, in, e + n * ld, V + n * in * out, g);
}

// kept[nu, atoms, in], the environments, and kept_s[E, padded], the sensitivities, are for gradients
// in the weights; null, together, if there will be none.
template <typename T>
void interact(const Edges<T> &edges, const T *z, const T *V, T *g, T *kept, T *kept_s, Index atoms,
              Index in, Index out) {
    const Index nu = edges.nu, most = edges.most(atoms), ld = (kept ? atoms : kBlock) * in;
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
        T *s = kept_s ? kept_s : scratch<T, kSensitivities>(most * edges.padded);
        T *small = scratch<T, kEnvironments>(kept ? 0 : nu * kBlock * in);
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            T *e = kept ? kept + first * in : small;
            receive(edges, first, count, z, V, in, out, s, kept_s, e, ld, g + first * out);
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

// V's gradient, dV[nu, b, a] (+)= sum over i  e[nu, i, b] dg[i, a], for one nu.
template <bool ADD = false, typename T>
void weight_gradient(const T *e, const T *dg, T *dV, Index atoms, Index in, Index out) {
    if (!ADD) std::fill(dV, dV + in * out, T(0));
    for (Index first = 0; first < atoms; first += kDepth)
        add_outer(in, out, std::min(kDepth, atoms - first), e + first * in, dg + first * out, dV);
}

// Gradients in mu and sigma from each thread's sums of dlogmu = dmu mu^2 and dsigma.
template <typename T>
void sum_parts(const Edges<T> &edges, const double *parts, Index team, T *dmu, T *dsigma) {
    const Index nu = edges.nu;
    for (Index n = 0; n < nu; ++n) {
        double mu = 0, sigma = 0;
        for (Index me = 0; me < team; ++me)
            mu += parts[2 * me * nu + n], sigma += parts[(2 * me + 1) * nu + n];
        dmu[n] = T(mu) * edges.inverse_mu[n] * edges.inverse_mu[n], dsigma[n] = T(sigma);
    }
}

// Gradients of what `count` atoms from `first` on receive, from dg[atom, out] and V turned: adds to
// dlogmu, dsigma and dz[N, in]; writes dr. dz, dr and kept_s may be null.
template <typename T>
void send(const Edges<T> &edges, Index first, Index count, const T *z, const T *turned_V,
          const T *kept_s, const T *dg, double *dlogmu, double *dsigma, T *dz, T *dr, Index most,
          Index in, Index out) {
    const Index nu = edges.nu, depth = nu * in, padded = edges.padded;
    T *small = scratch<T, kSensitivities>(kept_s ? 0 : most * padded);
    T *ds = scratch<T, kSlopes>(most * nu), *part = scratch<T, kPart>(dz ? most * in : 0);
    T *turned = scratch<T, kTurned>(depth), *e = scratch<T, kEnvironments>(nu * kBlock * in);
    T *dm = scratch<T, kSmall>(2 * nu), *dsg = dm + nu;
    pull(dg, turned_V, e, count, nu, in, out);
    std::fill(dm, dm + 2 * nu, T(0));
    for (Index a = 0; a < count; ++a) {
        const Index i = first + a, degree = edges.degree(i), *j = edges.senders(i);
        const T *de = e + a * depth;
        transpose(nu, in, de, turned);
        projections(degree, j, turned, z, nu, in, ds);
        const T *s = edges.sensitivities(i, kept_s, small);
        edges.pull_back(i, ds, s, dm, dsg, dr);
        if (!dz) continue;
        spread(degree, s, padded, de, nu, in, part);
        send_back(degree, j, part, in, dz);
    }
    for (Index n = 0; n < nu; ++n) dlogmu[n] += dm[n], dsigma[n] += dsg[n];
}

// Gradients of interact; dz, dV (which needs kept), dr and kept_s may be null.
template <typename T>
void interact_backward(const Edges<T> &edges, const T *z, const T *V, const T *kept,
                       const T *kept_s, const T *dg, T *dmu, T *dsigma, T *dz, T *dV, T *dr, Index atoms, Index in,
                       Index out) {
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
        for (Index n = 0; n < (dV ? nu : 0); ++n)
            weight_gradient(kept + n * atoms * in, dg, dV + n * in * out, atoms, in, out);
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
