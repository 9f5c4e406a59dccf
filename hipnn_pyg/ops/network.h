// The whole network (Fig. 1), forward and backward. Every thread takes molecules of its own through
// all layers and back; it waits for the others only where something is summed over all molecules.

#pragma once

#include "dense.h"
#include "energies.h"
#include "interaction.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace hipnn {

// Pieces of one memory, one after the other; without memory, how much they need.
class Pieces {
    char *const memory;
    Index used = 0;

  public:
    explicit Pieces(void *memory) : memory(static_cast<char *>(memory)) {}
    template <typename U> U *take(Index count) {
        const Index at = used;
        used += (count * Index(sizeof(U)) + 63) / 64 * 64;
        return memory ? reinterpret_cast<U *>(memory + at) : nullptr;
    }
    Index bytes() const { return used; }
};

// One order of the hierarchy: its parameters, and what is kept between forward and backward pass.
template <typename T> struct Order {
    Edges<T> edges;
    const T *V, *w, *b;
    std::vector<Layer<T>> layers;
    Index in, out;
    const T *z = nullptr;                                            // [N, in]
    T *environments = nullptr, *sensitivities = nullptr;             // [N, nu, in], [E, padded]
    T *activations = nullptr, *inputs = nullptr, *result = nullptr;  // as in `through`; [N, out]
    T *turned = nullptr, *turned_V = nullptr;                        // transposed weights
    double *denergy = nullptr;                                       // [N]
    T *dresult = nullptr;                                            // [N, out]
};

struct NetworkSizes {
    Index atoms, molecules, species, out, nu, layers, orders;
};

// Structures as they are given: all pairs inside each molecule are found from `pos`, or, where that
// is null, the edges are in r, row and j.
template <typename T> struct Structures {
    const Index *z, *ptr;
    const T *pos, *r;
    const Index *row, *j;
};

// E_i^0 = e0[place of its species] + bias. The place of an atomic number is place[it, at most last],
// -1 for one that the model does not know.
struct Zeroth {
    const Index *place;
    Index last;
    const double *e0;
    double bias, sigma_e;
};

// weights: mu, sigma, V, w, b and the dense weights (as in dense.h) of each order.
template <typename T> class Network {
    const NetworkSizes size;
    const Structures<T> given;
    const Index *const ptr;
    T *found_r, *r;  // r, row, j of the pairs found here; r, j sorted
    Index *found_row, *found_j, *j;
    std::vector<Order<T>> orders;
    T *one_hot;              // [N, species]
    T *dinputs, *dh;         // gradients inside the layers of one order, of a group of molecules
    double *terms, *dterms;  // E_i^n, [N, orders + 1]
    Standing *standings;     // [G]
    Index most_edges = 0, most_atoms = 0, needed;

    static constexpr Index kGroup = 800;  // atoms

  public:
    Network(const NetworkSizes &size, const double *cutoffs, const T *const *weights,
            const Structures<T> &given, void *memory)
        : size(size), given(given), ptr(given.ptr) {
        const Index out = size.out, nu = size.nu, atoms = size.atoms;
        for (Index group = 0; group < groups(); ++group)
            most_atoms = std::max(most_atoms, ptr[start(group + 1)] - ptr[start(group)]);
        Pieces pieces(memory);
        const Index edges = given.pos ? pairs_before(size.molecules) : given.row[atoms];
        found_row = pieces.take<Index>(given.pos ? atoms + 1 : 0);
        found_j = pieces.take<Index>(given.pos ? edges : 0);
        found_r = pieces.take<T>(given.pos ? edges : 0);
        j = pieces.take<Index>(edges), r = pieces.take<T>(edges);
        const Index *row = given.pos ? found_row : given.row;
        for (Index n = 0; n < size.orders; ++n) {
            const T *const *own = weights + n * (5 + 5 * size.layers);
            const Index in = n ? out : size.species;
            orders.push_back({{r, row, j, own[0], own[1], nu, T(cutoffs[n]), true}, own[2], own[3],
                              own[4], stack(own + 5, in, out, size.layers), in, out});
        }
        if (!given.pos) most_edges = orders[0].edges.most(atoms);
        for (Index m = 0; m < (given.pos ? size.molecules : 0); ++m)
            most_edges = std::max(most_edges, ptr[m + 1] - ptr[m] - 1);
        one_hot = pieces.take<T>(atoms * size.species);
        terms = pieces.take<double>(atoms * (size.orders + 1));
        dterms = pieces.take<double>(atoms * (size.orders + 1));
        standings = pieces.take<Standing>(size.molecules);
        const T *z = one_hot;
        for (auto &own : orders) {
            own.z = z;
            own.environments = pieces.take<T>(nu * atoms * own.in);
            own.sensitivities = pieces.take<T>(edges * own.edges.padded);
            own.activations = pieces.take<T>(size.layers * atoms * out);
            own.inputs = pieces.take<T>((size.layers - 1) * atoms * out);
            z = own.result = pieces.take<T>(atoms * out);
            own.turned = pieces.take<T>(parameters(own.layers, size.layers));
            own.turned_V = pieces.take<T>(nu * own.in * out);
            own.denergy = pieces.take<double>(atoms);
            own.dresult = pieces.take<T>(atoms * out);
        }
        dinputs = pieces.take<T>((size.layers - 1) * most_atoms * out);
        dh = pieces.take<T>(size.layers * most_atoms * out);
        needed = pieces.bytes();
    }

    Index bytes() const { return needed; }

    // The sums of |e|, e^2 and R over molecules.
    std::array<double, 3> forward(const Zeroth &zeroth, const double *target) {
        const unsigned mode = FloatMode::callers();
#pragma omp parallel
        {
            const FloatMode held(mode);
            for (auto &own : orders) {
                turn(own.layers, own.turned);
                turn(own.V, own.turned_V, size.nu, own.in, size.out);
            }
            const Span own = mine(0, size.molecules);
            sort_pairs(own);
            for (Index i = ptr[own.begin]; i < ptr[own.end]; ++i) {
                const Index place = zeroth.place[std::clamp<Index>(given.z[i], 0, zeroth.last)];
                for (Index n = 0; n < size.species; ++n)
                    one_hot[i * size.species + n] = n == place;
                terms[i * (size.orders + 1)] = place < 0 ? NAN : zeroth.e0[place] + zeroth.bias;
            }
            for (Index n = 0; n < size.orders; ++n)
                up(n, {ptr[own.begin], ptr[own.end]}, zeroth.sigma_e);
            for (Index m = own.begin; m < own.end; ++m) {
                standings[m] = standing(terms, target[m], ptr[m], ptr[m + 1], size.orders);
            }
        }
        std::array<double, 3> sums{};
        for (Index m = 0; m < size.molecules; ++m) add_to_sums(sums.data(), standings[m]);
        return sums;
    }

    // Gradients in mu, sigma, V, the dense weights, w, b of each order, to slopes[orders, 6], from
    // those of the sums; w and b may be null, together.
    void backward(const std::array<double, 3> &dsums, double sigma_e, T *const *slopes) {
        const Index team = omp_get_max_threads(), each = 2 * size.nu;
        std::vector<double> parts(size.orders * team * each, 0);
        const unsigned mode = FloatMode::callers();
#pragma omp parallel num_threads(team)
        {
            const FloatMode held(mode);
            for (Index group = 0; group < groups(); ++group) {
                const Index from = start(group), to = start(group + 1);
                const Span own = mine(from, to);
                for (Index m = own.begin; m < own.end; ++m)
                    standing_backward(terms, standings[m].error, dsums.data(), dterms, ptr[m],
                                      ptr[m + 1], size.orders);
                for (Index n = size.orders - 1; n >= 0; --n) {
                    down(n, {ptr[own.begin], ptr[own.end]}, ptr[from], sigma_e,
                         parts.data() + (n * team + omp_get_thread_num()) * each);
#pragma omp barrier
                    sum_weights(n, {ptr[from], ptr[to]}, group == 0, slopes + 6 * n);
                }
            }
#pragma omp for schedule(static)
            for (Index n = 0; n < size.orders; ++n)
                if (T *dw = slopes[6 * n + 4])
                    readout_weights(orders[n].result, orders[n].denergy, dw, slopes[6 * n + 5],
                                    size.atoms, size.out, sigma_e);
        }
        for (Index n = 0; n < size.orders; ++n)
            sum_parts(orders[n].edges, parts.data() + n * team * each, team, slopes[6 * n],
                      slopes[6 * n + 1]);
    }

  private:
    // The pairs of some molecules, once for all orders.
    void sort_pairs(Span molecules) {
        if (given.pos)
            find_pairs(given.pos, ptr, molecules.begin, molecules.end,
                       pairs_before(molecules.begin), found_row, found_j, (Index *)nullptr,
                       found_r);
        const Index *listed = given.pos ? found_j : given.j;
        const T *distances = given.pos ? found_r : given.r;
        const Edges<T> &edges = orders[0].edges;
        for (Index i = ptr[molecules.begin]; i < ptr[molecules.end]; ++i) {
            const Index first = edges.row[i], count = edges.degree(i);
            Edges<T>::sort(distances, first, count, edges.cutoff, [=](Index place, Index x) {
                j[first + place] = listed[x], r[first + place] = distances[x];
            });
        }
    }

    Index pairs_before(Index molecule) const {
        Index sum = 0;
        for (Index m = 0; m < molecule; ++m) sum += (ptr[m + 1] - ptr[m]) * (ptr[m + 1] - ptr[m] - 1);
        return sum;
    }

    // The molecule whose first atom is nearest to `atom`, in from .. to.
    Index nearest(Index atom, Index from, Index to) const {
        const Index m = std::lower_bound(ptr + from, ptr + to, atom) - ptr;
        return m > from && ptr[m] - atom > atom - ptr[m - 1] ? m - 1 : m;
    }

    // Molecules of the calling thread among from .. to - 1.
    Span mine(Index from, Index to) const {
        const Index team = omp_get_num_threads(), me = omp_get_thread_num();
        const auto border = [=](Index k) {
            const Index atoms = ptr[to] - ptr[from];
            return k == team ? to : nearest(ptr[from] + atoms * k / team, from, to);
        };
        return {border(me), border(me + 1)};
    }

    // The backward pass works on groups of molecules, whose gradients stay in a cache.
    Index groups() const { return std::max<Index>(1, (size.atoms + kGroup - 1) / kGroup); }
    Index start(Index group) const {
        if (group == groups()) return size.molecules;
        return nearest(size.atoms * group / groups(), 0, size.molecules);
    }

    // Order n, forward, for the calling thread's atoms.
    void up(Index n, Span atoms, double sigma_e) {
        Order<T> &own = orders[n];
        const Index in = own.in, out = size.out, width = size.orders + 1;
        T *received = scratch<T, kReceived>(kBlock * out);
        double energy[kBlock];
        const Share share(atoms.begin, atoms.end);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            receive(own.edges, first, count, own.z, own.V, in, out, own.sensitivities, true,
                    own.environments + first * size.nu * in, received);
            through(own.layers, size.atoms, first, count, own.z, received, own.activations,
                    own.inputs, own.result);
            readout(own.result + first * out, own.w, own.b, energy, count, out, sigma_e);
            for (Index a = 0; a < count; ++a) terms[(first + a) * width + n + 1] = energy[a];
        }
    }

    // Order n, backward: gradients in its features and inside its layers, and the thread's parts of
    // dlogmu and dsigma.
    void down(Index n, Span atoms, Index origin, double sigma_e, double *parts) {
        Order<T> &own = orders[n];
        const Index in = own.in, out = size.out, width = size.orders + 1;
        T *dz = n ? orders[n - 1].dresult : nullptr;
        const Share share(atoms.begin, atoms.end);
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            T *dresult = own.dresult + first * out;
            for (Index a = 0; a < count; ++a)
                own.denergy[first + a] = dterms[(first + a) * width + n + 1];
            if (n + 1 == size.orders) std::fill(dresult, dresult + count * out, T(0));
            readout_pull<true>(own.w, own.denergy + first, dresult, count, out, sigma_e);
            for (Index l = size.layers - 1; l >= 0; --l) {
                T *up = l ? dinputs + ((l - 1) * most_atoms + first - origin) * out
                          : dz ? dz + first * in : dz;
                own.layers[l].backward(count, nullptr,
                                       own.activations + (l * size.atoms + first) * out, dresult,
                                       dh + (l * most_atoms + first - origin) * out, up, nullptr);
                dresult = up;
            }
        }
        for (Index block = 0; block < share.blocks; ++block) {
            const Index first = share.first(block), count = share.first(block + 1) - first;
            send(own.edges, first, count, own.z, own.turned_V, own.sensitivities,
                 dh + (first - origin) * out, parts, parts + size.nu, dz, (T *)nullptr, most_edges,
                 in, out);
        }
    }

    // Gradients in V and the dense weights of order n, added up over a group of molecules while what
    // `down` found is near; the team shares the matrices.
    void sum_weights(Index n, Span atoms, bool first, T *const *slopes) const {
        const Order<T> &own = orders[n];
        const Index nu = size.nu, in = own.in, out = size.out, at = atoms.begin;
        const Index count = atoms.size(), group = side_by_side(nu, in), last = size.layers - 1;
#pragma omp for schedule(dynamic)
        for (Index task = 0; task < size.layers + (nu + group - 1) / group; ++task) {
            if (task > last) {
                const T *e = own.environments + at * nu * in;
                const Index m = (task - size.layers) * group;
                if (first)
                    weight_gradient(e, dh, slopes[2], m, count, nu, in, out);
                else
                    weight_gradient<true>(e, dh, slopes[2], m, count, nu, in, out);
                continue;
            }
            const Layer<T> &layer = own.layers[task];
            T *to = slopes[3] + parameters(own.layers, task);
            if (first) std::fill(to, to + layer.parameters(), T(0));
            const T *z = own.z + at * in;
            if (task) z = own.inputs + ((task - 1) * size.atoms + at) * out;
            const T *dresult = own.dresult + at * out, *own_dh = dh + task * most_atoms * out;
            if (task < last) dresult = dinputs + task * most_atoms * out;
            const T *activation = own.activations + (task * size.atoms + at) * out;
            layer.weights(count, z, activation, dresult, own_dh, to);
            layer.biases(count, dresult, own_dh, to);
        }
    }
};

}  // namespace hipnn
