// HIP-NN's layers on a CPU, forward and backward, block by block of atoms: what belongs to a pair
// or to an environment lives in a core's cache and is never stored.
//
// Edges are sorted by receiver: row[i] <= x < row[i + 1]. Every thread owns a fixed range of atoms
// and its own sums over atoms, added up in the order of the threads: the same bits every time.
//
//   interact   g[i, a] = sum over x, nu, b  s_nu(r[x]) z[j(x), b] V[nu, b, a]     (Eqs. 8-11)
//   dense      the rest of a block: softplus and residual of the interaction layer, then the
//              on-site layers                                                       (Eqs. 5-9)
//   envsum, sensesum, featsum: the sums alone, see sums.py

#include "energies.h"
#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads() { return 1; }
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace hipnn {

// Rounding and flush-denormal bits belong to a thread. A thread of the pool takes over the caller's
// while it works on a kernel, else a row's last bits would depend on which thread sums it.
class FloatMode {
#if defined(__SSE__)
    const unsigned own = _mm_getcsr();

  public:
    static unsigned callers() { return _mm_getcsr() & ~0x3fu; }
    explicit FloatMode(unsigned mode) { _mm_setcsr(mode); }
    ~FloatMode() { _mm_setcsr(own); }
#else
  public:
    static unsigned callers() { return 0; }
    explicit FloatMode(unsigned) {}
    ~FloatMode() {}
#endif
    FloatMode(const FloatMode &) = delete;
};

constexpr Index kBlock = 60;  // most atoms of a block; a multiple of the 5 rows of a tile

// The atoms of the calling thread, in blocks of nearly equal size.
struct Share {
    Index begin, end, blocks;
    explicit Share(Index atoms) {
        const Index team = omp_get_num_threads(), me = omp_get_thread_num();
        begin = atoms * me / team, end = atoms * (me + 1) / team;
        blocks = (end - begin + kBlock - 1) / kBlock;
    }
    Index first(Index block) const {  // of block `blocks`: the end
        const Index rows = (end - begin + 4) / 5;
        return std::min(end, begin + 5 * (rows * block / blocks));
    }
};

// Memory of the calling thread, kept from call to call: fresh pages cost more than the arithmetic.
// Each USE is another buffer.
enum Use { kSensitivities, kSlopes, kEnvironments, kTurned, kPart, kSmall, kWeights, kSums, kRows };
template <typename T, Use USE> T *scratch(Index size) {
    static thread_local std::vector<T> memory;
    constexpr std::size_t most = (std::size_t(64) << 20) / sizeof(T);  // not kept beyond 64 MB
    if (memory.size() > most && std::size_t(size) <= most) std::vector<T>().swap(memory);
    if (memory.size() < std::size_t(size)) memory.resize(size);
    return memory.data();
}

// to[k] = sum over the team of parts[member * size + k]; call from the whole team.
template <typename T> void gather_parts(const T *parts, Index team, Index size, T *to) {
#pragma omp for schedule(static)
    for (Index k = 0; k < size; ++k) {
        T sum = 0;
        for (Index member = 0; member < team; ++member) sum += parts[member * size + k];
        to[k] = sum;
    }
}

// ---- interaction ------------------------------------------------------------------------------

// The pairs of all atoms and the sensitivity functions of one layer, ready to evaluate.
template <typename T> struct Edges {
    const T *r;
    const Index *row, *j;
    Index nu, padded;  // padded: whole registers, where sigma = 0
    T cutoff;
    std::vector<T> inverse_mu, sigma;

    Edges(const T *r, const Index *row, const Index *j, const T *mu, const T *sigmas, Index nu,
          T cutoff)
        : r(r), row(row), j(j), nu(nu), padded((nu + kWidth<T> - 1) / kWidth<T> * kWidth<T>),
          cutoff(cutoff), inverse_mu(padded, 0), sigma(padded, 0) {
        for (Index n = 0; n < nu; ++n) inverse_mu[n] = 1 / mu[n], sigma[n] = sigmas[n];
    }

    Index degree(Index i) const { return row[i + 1] - row[i]; }
    const Index *senders(Index i) const { return j + row[i]; }
    Index most(Index atoms) const {
        Index found = 0;
        for (Index i = 0; i < atoms; ++i) found = std::max(found, degree(i));
        return found;
    }

    // Eq. 11, cos(pi r / 2 cutoff)^2, and its derivative.
    T envelope(T distance) const {
        const T c = quarter_sine(kQuarter * (1 - distance / cutoff));
        return distance < cutoff ? c * c : T(0);
    }
    T envelope_slope(T distance) const {
        if (!(distance < cutoff)) return 0;
        const T share = distance / cutoff;
        return -2 * kQuarter / cutoff * quarter_sine(kQuarter * share) *
               quarter_sine(kQuarter * (1 - share));
    }
    static constexpr T kQuarter = T(1.57079632679489661923);  // pi / 2

    // The Gaussians of Eq. 10, gauss[x, padded], of the edges of atom i, times phi where PHI; phi[x],
    // Eq. 11, comes after them.
    template <bool PHI> void gaussians(Index i, T *gauss) const {
        const T *im = inverse_mu.data(), *sg = sigma.data(), *distance = r + row[i];
        const Index edges = degree(i);
        T *phi = gauss + edges * padded;
#pragma omp simd
        for (Index x = 0; x < edges; ++x) phi[x] = envelope(distance[x]);
        for (Index x = 0; x < edges; ++x, gauss += padded) {
            const T inverse = 1 / distance[x], factor = PHI ? phi[x] : T(1);
#pragma omp simd
            for (Index n = 0; n < padded; ++n) {
                const T deviation = (inverse - im[n]) * sg[n];
                gauss[n] = exponential(T(-0.5) * deviation * deviation) * factor;
            }
        }
    }

    // From ds[x, nu] of atom i and its Gaussians: adds to dlogmu = dmu mu^2 and dsigma; writes dr.
    void pull_back(Index i, const T *ds, const T *gauss, T *dmu, T *dsigma, T *dr) const {
        const T *im = inverse_mu.data(), *sg = sigma.data(), *envelopes = gauss + degree(i) * padded;
        for (Index x = row[i]; x < row[i + 1]; ++x, ds += nu, gauss += padded) {
            const T phi = *envelopes++, inverse = 1 / r[x];
            const T slope = dr ? envelope_slope(r[x]) : T(0);
            T along = 0;
#pragma omp simd reduction(+ : along)
            for (Index n = 0; n < nu; ++n) {
                const T difference = inverse - im[n], deviation = difference * sg[n];
                const T weighted = gauss[n] * ds[n];
                const T turn = -deviation * weighted * phi;
                dmu[n] += turn * sg[n];
                dsigma[n] += turn * difference;
                along += weighted * slope - turn * sg[n] * inverse * inverse;
            }
            if (dr) dr[x] = along;
        }
    }
};

// e[nu, b] = sum over the atom's edges  s[x, nu] z[j(x), b]; rows of s and e are `lds`, `ld` apart
template <typename T>
inline void environment(Index degree, const Index *j, const T *s, Index lds, const T *z, Index nu,
                        Index width, T *e, Index ld) {
    product<T, false>(
        nu, degree, width, [=](Index n, Index x) { return s[x * lds + n]; },
        [=](Index x) { return z + j[x] * width; }, e, ld);
}

// t[x, nu] = sum over b  g[nu, b] z[j(x), b], with g turned to [b, nu]
template <typename T>
inline void projections(Index degree, const Index *j, const T *turned, const T *z, Index nu,
                        Index width, T *t) {
    product<T, false>(
        degree, width, nu, [=](Index x, Index b) { return z[j[x] * width + b]; },
        [=](Index b) { return turned + b * nu; }, t, nu);
}

// u[j(x), b] += sum over nu  s_nu(r[x]) g[nu, b] of the edges of atom i; rows of g are `ld` apart
template <typename T>
inline void spread(const Edges<T> &edges, Index i, const T *gauss, const T *g, Index ld,
                   Index width, T *part, T *u) {
    const Index degree = edges.degree(i), lds = edges.padded, *j = edges.senders(i);
    product<T, false>(
        degree, edges.nu, width, [=](Index x, Index n) { return gauss[x * lds + n]; },
        [=](Index n) { return g + n * ld; }, part, width);
    const T *phi = gauss + degree * lds;
    for (Index x = 0; x < degree; ++x) {
        T *to = u + j[x] * width;
        for (Index b = 0; b < width; ++b) to[b] += phi[x] * part[x * width + b];
    }
}

// e[nu, atom, b] of `count` atoms from `first` on: a matrix for each nu, `ld` numbers apart.
template <typename T>
inline void environments(const Edges<T> &edges, Index first, Index count, const T *z, Index in,
                         T *s, T *e, Index ld) {
    for (Index a = 0; a < count; ++a) {
        const Index i = first + a;
        edges.template gaussians<true>(i, s);
        environment(edges.degree(i), edges.senders(i), s, edges.padded, z, edges.nu, in, e + a * in,
                    ld);
    }
}

// kept[nu, atoms, in], the environments, is for V's gradient; null if there will be none.
template <typename T>
void interact(const Edges<T> &edges, const T *z, const T *V, T *g, T *kept, Index atoms, Index in,
              Index out) {
    const Index nu = edges.nu, most = edges.most(atoms), ld = (kept ? atoms : kBlock) * in;
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
        T *s = scratch<T, kSensitivities>(most * (edges.padded + 1));
        T *small = scratch<T, kEnvironments>(kept ? 0 : nu * kBlock * in);
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            T *e = kept ? kept + first * in : small;
            environments(edges, first, count, z, in, s, e, ld);
            std::fill(g + first * out, g + (first + count) * out, T(0));
            for (Index n = 0; n < nu; ++n)
                multiply<T, true>(count, out, in, e + n * ld, V + n * in * out, g + first * out);
        }
    }
}

// V's gradient, dV[nu, b, a] = sum over i  e[nu, i, b] dg[i, a], for one nu.
template <typename T>
void weight_gradient(const T *e, const T *dg, T *dV, Index atoms, Index in, Index out) {
    std::fill(dV, dV + in * out, T(0));
    for (Index first = 0; first < atoms; first += kBlock)
        add_outer(in, out, std::min(kBlock, atoms - first), e + first * in, dg + first * out, dV);
}

// Gradients of interact; dz, dV (with the environments e) and dr may be null.
template <typename T>
void interact_backward(const Edges<T> &edges, const T *z, const T *V, const T *kept,
                       const T *dg, T *dmu, T *dsigma, T *dz, T *dV, T *dr, Index atoms, Index in,
                       Index out) {
    const Index nu = edges.nu, depth = nu * in, most = edges.most(atoms), padded = edges.padded;
    const Index team = omp_get_max_threads();
    T *turned_V = scratch<T, kWeights>(depth * out);  // [nu, out, in]
    T *parts_z = scratch<T, kRows>(dz ? team * atoms * in : 0);
    std::vector<double> parts_mu(2 * team * nu, 0);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel num_threads(team)
    {
        const FloatMode held(mode);
        const Index me = omp_get_thread_num();
#pragma omp for schedule(static)
        for (Index n = 0; n < nu; ++n)
            transpose(in, out, V + n * in * out, turned_V + n * in * out);
        T *s = scratch<T, kSensitivities>(most * (padded + 1)), *ds = scratch<T, kSlopes>(most * nu);
        T *part = scratch<T, kPart>(most * in), *turned = scratch<T, kTurned>(depth);
        T *e = scratch<T, kEnvironments>(nu * kBlock * in);
        T *dm = scratch<T, kSmall>(2 * nu), *dsg = dm + nu;
        T *my_z = parts_z + me * atoms * in;
        if (dz) std::fill(my_z, my_z + atoms * in, T(0));
        double *my_mu = parts_mu.data() + 2 * me * nu, *my_sigma = my_mu + nu;
        const Share share(atoms);
#pragma omp for schedule(static)
        for (Index n = 0; n < (dV ? nu : 0); ++n)
            weight_gradient(kept + n * atoms * in, dg, dV + n * in * out, atoms, in, out);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            for (Index n = 0; n < nu; ++n)
                multiply<T, false>(count, in, out, dg + first * out, turned_V + n * in * out,
                                   e + n * kBlock * in);
            std::fill(dm, dm + 2 * nu, T(0));
            for (Index a = 0; a < count; ++a) {
                const Index i = first + a, degree = edges.degree(i), *j = edges.senders(i);
                const T *de = e + a * in;
                transpose(nu, in, de, turned, kBlock * in);
                projections(degree, j, turned, z, nu, in, ds);
                edges.template gaussians<false>(i, s);
                edges.pull_back(i, ds, s, dm, dsg, dr);
                if (dz) spread(edges, i, s, de, kBlock * in, in, part, my_z);
            }
            for (Index n = 0; n < nu; ++n) my_mu[n] += dm[n], my_sigma[n] += dsg[n];
        }
#pragma omp barrier
        if (dz) gather_parts(parts_z, team, atoms * in, dz);
    }
    for (Index n = 0; n < nu; ++n) {
        double mu = 0, sigma = 0;
        for (Index me = 0; me < team; ++me)
            mu += parts_mu[2 * me * nu + n], sigma += parts_mu[(2 * me + 1) * nu + n];
        dmu[n] = T(mu) * edges.inverse_mu[n] * edges.inverse_mu[n], dsigma[n] = T(sigma);
    }
}

// ---- the dense rest of a block ------------------------------------------------------------------

// One layer: out = Wr softplus(W z + B + received) + M z + Br; M null is the identity.
template <typename T> struct Layer {
    const T *W, *B, *Wr, *Br, *M;
    Index in, out;
    std::vector<T> turned_W, turned_Wr, turned_M;

    Layer(const T *const *p, Index in, Index out)
        : W(p[0]), B(p[1]), Wr(p[2]), Br(p[3]), M(p[4]), in(in), out(out) {}

    void turn() {  // for the forward pass
        turned_W.resize(in * out), turned_Wr.resize(out * out), turned_M.resize(M ? in * out : 0);
        transpose(out, in, W, turned_W.data());
        transpose(out, out, Wr, turned_Wr.data());
        if (M) transpose(out, in, M, turned_M.data());
    }

    void forward(Index atoms, const T *z, const T *received, T *activation, T *result) const {
        for (Index a = 0; a < atoms; ++a)
            for (Index n = 0; n < out; ++n)
                activation[a * out + n] = B[n] + (received ? received[a * out + n] : T(0));
        multiply<T, true>(atoms, out, in, z, turned_W.data(), activation);
#pragma omp simd
        for (Index k = 0; k < atoms * out; ++k) activation[k] = softplus(activation[k]);
        for (Index a = 0; a < atoms; ++a)
            for (Index n = 0; n < out; ++n)
                result[a * out + n] = Br[n] + (M ? T(0) : z[a * out + n]);
        if (M) multiply<T, true>(atoms, out, in, z, turned_M.data(), result);
        multiply<T, true>(atoms, out, out, activation, turned_Wr.data(), result);
    }

    // Writes dh; adds to the gradients of W, B, Wr, Br, M (one after the other in `to`). dz and
    // `to` may be null.
    void backward(Index atoms, const T *z, const T *activation, const T *dresult, T *dh, T *dz,
                  T *to) const {
        multiply<T, false>(atoms, out, out, dresult, Wr, dh);
#pragma omp simd
        for (Index k = 0; k < atoms * out; ++k)
            dh[k] *= activation[k] > T(20) ? T(1) : 1 - exponential(-activation[k]);
        if (to) weights(atoms, z, activation, dresult, dh, to);
        if (!dz) return;
        if (M)
            multiply<T, false>(atoms, in, out, dresult, M, dz);
        else
            std::copy(dresult, dresult + atoms * out, dz);
        multiply<T, true>(atoms, in, out, dh, W, dz);
    }

    void weights(Index atoms, const T *z, const T *activation, const T *dresult, const T *dh,
                 T *to) const {
        T *dW = to, *dB = dW + out * in, *dWr = dB + out, *dBr = dWr + out * out, *dM = dBr + out;
        add_outer<T>(out, out, atoms, dresult, activation, dWr);
        add_outer<T>(out, in, atoms, dh, z, dW);
        for (Index a = 0; a < atoms; ++a)
            for (Index n = 0; n < out; ++n) dB[n] += dh[a * out + n], dBr[n] += dresult[a * out + n];
        if (M) add_outer<T>(out, in, atoms, dresult, z, dM);
    }

    Index parameters() const { return out * in + out + out * out + out + (M ? out * in : 0); }
};

template <typename T>
std::vector<Layer<T>> stack(const T *const *weights, Index in, Index out, Index layers) {
    std::vector<Layer<T>> made;
    for (Index l = 0; l < layers; ++l) made.emplace_back(weights + 5 * l, l ? out : in, out);
    return made;
}

// activations[layers, atoms, out] and inputs[layers - 1, atoms, out] are for the backward pass; null
// if there will be none.
template <typename T>
void dense(const T *z, const T *received, const T *const *weights, T *activations, T *inputs,
           T *result, Index atoms, Index in, Index out, Index layers) {
    auto all = stack(weights, in, out, layers);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel
    {
        const FloatMode held(mode);
#pragma omp for schedule(static)
        for (Index l = 0; l < layers; ++l) all[l].turn();
        T *small = scratch<T, kSmall>(3 * kBlock * out);
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            const T *from = z + first * in;
            for (Index l = 0; l < layers; ++l) {
                T *activation = small, *to = result + first * out;
                if (activations) activation = activations + (l * atoms + first) * out;
                if (l + 1 < layers)
                    to = inputs ? inputs + (l * atoms + first) * out
                                : small + (1 + l % 2) * kBlock * out;
                all[l].forward(count, from, l ? nullptr : received + first * out, activation, to);
                from = to;
            }
        }
    }
}

// Gradients of dense; dz and dweights may be null.
template <typename T>
void dense_backward(const T *z, const T *const *weights, const T *activations, const T *inputs,
                    const T *dresult, T *dreceived, T *dz, T *dweights, Index atoms, Index in,
                    Index out, Index layers) {
    const auto all = stack(weights, in, out, layers);
    Index size = 0;
    for (const auto &layer : all) size += dweights ? layer.parameters() : 0;
    const Index team = omp_get_max_threads();
    T *parts = scratch<T, kSums>(team * size);
    const unsigned mode = FloatMode::callers();
#pragma omp parallel num_threads(team)
    {
        const FloatMode held(mode);
        T *small = scratch<T, kSmall>(3 * kBlock * out);
        T *mine = parts + omp_get_thread_num() * size;
        std::fill(mine, mine + size, T(0));
        const Share share(atoms);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            const T *down = dresult + first * out;
            T *to = mine + size;
            for (Index l = layers - 1; l >= 0; --l) {
                to -= dweights ? all[l].parameters() : 0;
                const T *activation = activations + (l * atoms + first) * out;
                const T *from = l ? inputs + ((l - 1) * atoms + first) * out : z + first * in;
                T *dh = l ? small : dreceived + first * out;
                T *up = l ? small + (1 + l % 2) * kBlock * out : (dz ? dz + first * in : dz);
                all[l].backward(count, from, activation, down, dh, up, dweights ? to : nullptr);
                down = up;
            }
        }
#pragma omp barrier
        gather_parts(parts, team, size, dweights);
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
        for (Index m = 0; m < molecules; ++m) {
            Index x = start[m];
            for (Index a = ptr[m]; a < ptr[m + 1]; ++a) {
                for (Index b = ptr[m]; b < ptr[m + 1]; ++b) {
                    if (a == b) continue;
                    T square = 0;
                    for (int k = 0; k < 3; ++k) {
                        const T d = pos[3 * b + k] - pos[3 * a + k];
                        square += d * d;
                    }
                    i[x] = a, j[x] = b, r[x++] = std::sqrt(square);
                }
                row[a + 1] = x;
            }
        }
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
        for (Index i = 0; i < rows; ++i)
            environment(row[i + 1] - row[i], j + row[i], s + row[i] * nu, nu, z, nu, width,
                        e + i * nu * width, width);
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
            projections(row[i + 1] - row[i], j + row[i], turned.data(), z, nu, width,
                        t + row[i] * nu);
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

using hipnn::Edges;
using hipnn::Index;

#define EXPORT(T, NAME)                                                                            \
    extern "C" void interact_##NAME(const T *r, const Index *row, const Index *j, const T *mu,     \
                                    const T *sigma, const T *z, const T *V, T *g, T *kept,         \
                                    Index atoms, Index nu, Index in, Index out, double cutoff) {   \
        hipnn::interact<T>({r, row, j, mu, sigma, nu, T(cutoff)}, z, V, g, kept, atoms, in, out);  \
    }                                                                                              \
    extern "C" void interact_backward_##NAME(                                                      \
        const T *r, const Index *row, const Index *j, const T *mu, const T *sigma, const T *z,     \
        const T *V, const T *kept, const T *dg, T *dmu, T *dsigma, T *dz, T *dV, T *dr,            \
        Index atoms, Index nu, Index in, Index out, double cutoff) {                               \
        hipnn::interact_backward<T>({r, row, j, mu, sigma, nu, T(cutoff)}, z, V, kept, dg, dmu,    \
                                    dsigma, dz, dV, dr, atoms, in, out);                           \
    }                                                                                              \
    extern "C" void dense_##NAME(const T *z, const T *received, const T *const *weights,           \
                                 T *activations, T *inputs, T *result, Index atoms, Index in,      \
                                 Index out, Index layers) {                                        \
        hipnn::dense<T>(z, received, weights, activations, inputs, result, atoms, in, out,         \
                        layers);                                                                   \
    }                                                                                              \
    extern "C" void dense_backward_##NAME(const T *z, const T *const *weights,                     \
                                          const T *activations, const T *inputs, const T *dresult, \
                                          T *dreceived, T *dz, T *dweights, Index atoms, Index in, \
                                          Index out, Index layers) {                               \
        hipnn::dense_backward<T>(z, weights, activations, inputs, dresult, dreceived, dz,          \
                                 dweights, atoms, in, out, layers);                                \
    }                                                                                              \
    extern "C" void molecule_edges_##NAME(const T *pos, const Index *ptr, Index *row, Index *j,    \
                                          Index *i, T *r, Index molecules) {                       \
        hipnn::molecule_edges<T>(pos, ptr, row, j, i, r, molecules);                               \
    }                                                                                              \
    extern "C" void readout_##NAME(const T *z, const T *w, const T *b, double *energy,             \
                                   Index atoms, Index width, double scale) {                       \
        hipnn::readout<T>(z, w, b, energy, atoms, width, scale);                                   \
    }                                                                                              \
    extern "C" void readout_backward_##NAME(const T *z, const T *w, const double *denergy, T *dz,  \
                                            T *dw, T *db, Index atoms, Index width,                \
                                            double scale) {                                        \
        hipnn::readout_backward<T>(z, w, denergy, dz, dw, db, atoms, width, scale);                \
    }                                                                                              \
    extern "C" void envsum_##NAME(const T *s, const T *z, const Index *row, const Index *j, T *e,  \
                                  Index rows, Index nu, Index width) {                             \
        hipnn::envsum<T>(s, z, row, j, e, rows, nu, width);                                        \
    }                                                                                              \
    extern "C" void sensesum_##NAME(const T *g, const T *z, const Index *row, const Index *j,      \
                                    T *t, Index rows, Index nu, Index width) {                     \
        hipnn::sensesum<T>(g, z, row, j, t, rows, nu, width);                                      \
    }                                                                                              \
    extern "C" void featsum_##NAME(const T *g, const T *s, const Index *column,                    \
                                   const Index *order, const Index *i, T *u, Index senders,        \
                                   Index nu, Index width) {                                        \
        hipnn::featsum<T>(g, s, column, order, i, u, senders, nu, width);                          \
    }
EXPORT(float, float32)
EXPORT(double, float64)
extern "C" void error_sums_float64(const double *terms, const Index *ptr, const double *target,
                                   double *error, double *sums, Index molecules, Index top) {
    hipnn::error_sums(terms, ptr, target, error, sums, molecules, top);
}
extern "C" void error_sums_backward_float64(const double *terms, const Index *ptr,
                                            const double *error, const double *dsums,
                                            double *dterms, Index molecules, Index top) {
    hipnn::error_sums_backward(terms, ptr, error, dsums, dterms, molecules, top);
}
