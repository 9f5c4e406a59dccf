// The dense rest of a block (Eqs. 5-9), and its gradients.

#pragma once

#include "threads.h"
#include "tiles.h"

#include <algorithm>
#include <vector>

namespace hipnn {

// One layer: out = Wr softplus(W z + B + received) + M z + Br; M null is the identity.
template <typename T> struct Layer {
    const T *W, *B, *Wr, *Br, *M;
    Index in, out;
    const T *turned_W = nullptr, *turned_Wr = nullptr, *turned_M = nullptr;

    Layer(const T *const *p, Index in, Index out)
        : W(p[0]), B(p[1]), Wr(p[2]), Br(p[3]), M(p[4]), in(in), out(out) {}

    // For the forward pass, to as many numbers as the layer has parameters.
    void turn(T *to) {
        transpose(out, in, W, to), turned_W = to, to += in * out;
        transpose(out, out, Wr, to), turned_Wr = to, to += out * out;
        if (M) transpose(out, in, M, to), turned_M = to;
    }

    void forward(Index atoms, const T *z, const T *received, T *activation, T *result) const {
        for (Index a = 0; a < atoms; ++a)
            for (Index n = 0; n < out; ++n)
                activation[a * out + n] = B[n] + (received ? received[a * out + n] : T(0));
        multiply<T, true>(atoms, out, in, z, turned_W, activation);
#pragma omp simd
        for (Index k = 0; k < atoms * out; ++k) activation[k] = softplus(activation[k]);
        for (Index a = 0; a < atoms; ++a)
            for (Index n = 0; n < out; ++n)
                result[a * out + n] = Br[n] + (M ? T(0) : z[a * out + n]);
        if (M) multiply<T, true>(atoms, out, in, z, turned_M, result);
        multiply<T, true>(atoms, out, out, activation, turned_Wr, result);
    }

    // Softplus' derivative from its value a, 1 - exp(-a), where a is small, too.
    static T rise(T a) {
        const Exponential<T> found(-a);
        return a > T(20) ? T(1) : (1 - found.power) - found.power * found.rest;
    }

    // Writes dh; adds to the gradients of W, B, Wr, Br, M (one after the other in `to`). dz and
    // `to` may be null.
    void backward(Index atoms, const T *z, const T *activation, const T *dresult, T *dh, T *dz,
                  T *to) const {
        multiply<T, false>(atoms, out, out, dresult, Wr, dh);
#pragma omp simd
        for (Index k = 0; k < atoms * out; ++k) dh[k] *= rise(activation[k]);
        if (to) {
            weights(atoms, z, activation, dresult, dh, to);
            biases(atoms, dresult, dh, to);
        }
        if (dz) down(atoms, dresult, dh, dz);
    }

    void down(Index atoms, const T *dresult, const T *dh, T *dz) const {
        if (M)
            multiply<T, false>(atoms, in, out, dresult, M, dz);
        else
            std::copy(dresult, dresult + atoms * out, dz);
        multiply<T, true>(atoms, in, out, dh, W, dz);
    }

    void weights(Index atoms, const T *z, const T *activation, const T *dresult, const T *dh,
                 T *to) const {
        T *dW = to, *dWr = dW + out * in + out, *dM = dWr + out * out + out;
        add_outer(out, out, atoms, dresult, out, activation, dWr);
        if (!z) return;
        add_outer(out, in, atoms, dh, out, z, dW);
        if (M) add_outer(out, in, atoms, dresult, out, z, dM);
    }

    void biases(Index atoms, const T *dresult, const T *dh, T *to) const {
        T *dB = to + out * in, *dBr = dB + out + out * out;
        for (Index a = 0; a < atoms; ++a)
            for (Index n = 0; n < out; ++n) dB[n] += dh[a * out + n], dBr[n] += dresult[a * out + n];
    }

    // The change of the result, and that of the activations, if z and what was received (null: 0)
    // change by z_dot (null: 0) and received_dot.
    void tangent(Index atoms, const T *z_dot, const T *received_dot, const T *activation,
                 T *activation_dot, T *result_dot) const {
        if (received_dot)
            std::copy(received_dot, received_dot + atoms * out, activation_dot);
        else
            std::fill(activation_dot, activation_dot + atoms * out, T(0));
        if (z_dot) multiply<T, true>(atoms, out, in, z_dot, turned_W, activation_dot);
#pragma omp simd
        for (Index k = 0; k < atoms * out; ++k) activation_dot[k] *= rise(activation[k]);
        if (z_dot && M)
            multiply<T, false>(atoms, out, in, z_dot, turned_M, result_dot);
        else if (z_dot)
            std::copy(z_dot, z_dot + atoms * out, result_dot);
        else
            std::fill(result_dot, result_dot + atoms * out, T(0));
        multiply<T, true>(atoms, out, out, activation_dot, turned_Wr, result_dot);
    }

    // backward of a function of the result and its change. Softplus' second derivative is
    // rise (1 - rise).
    void tangent_backward(Index atoms, const T *z, const T *z_dot, const T *activation,
                          const T *activation_dot, const T *dresult, const T *dresult_dot, T *dh,
                          T *dh_dot, T *dz, T *dz_dot, T *to) const {
        multiply<T, false>(atoms, out, out, dresult, Wr, dh);
        multiply<T, false>(atoms, out, out, dresult_dot, Wr, dh_dot);
#pragma omp simd
        for (Index k = 0; k < atoms * out; ++k) {
            const T slope = rise(activation[k]);
            dh[k] = slope * dh[k] + (1 - slope) * activation_dot[k] * dh_dot[k];
            dh_dot[k] *= slope;
        }
        weights(atoms, z, activation, dresult, dh, to);
        weights(atoms, z_dot, activation_dot, dresult_dot, dh_dot, to);
        biases(atoms, dresult, dh, to);
        if (!dz) return;
        down(atoms, dresult, dh, dz);
        down(atoms, dresult_dot, dh_dot, dz_dot);
    }

    Index parameters() const { return out * in + out + out * out + out + (M ? out * in : 0); }
};

template <typename T>
std::vector<Layer<T>> stack(const T *const *weights, Index in, Index out, Index layers) {
    std::vector<Layer<T>> made;
    for (Index l = 0; l < layers; ++l) made.emplace_back(weights + 5 * l, l ? out : in, out);
    return made;
}

// Of the first `count` layers.
template <typename T> Index parameters(const std::vector<Layer<T>> &all, Index count) {
    Index sum = 0;
    for (Index l = 0; l < count; ++l) sum += all[l].parameters();
    return sum;
}

// For the forward pass, to as many numbers as the layers have parameters; call from the whole team.
template <typename T> void turn(std::vector<Layer<T>> &all, T *to) {
    const Index layers = all.size();
#pragma omp for schedule(static)
    for (Index l = 0; l < layers; ++l) all[l].turn(to + parameters(all, l));
}

// All layers for `count` atoms from `first` on, of which received[atom, out] is. activations[layers,
// atoms, out] and inputs[layers - 1, atoms, out] are for the backward pass; null if there will be
// none.
template <typename T>
void through(const std::vector<Layer<T>> &all, Index atoms, Index first, Index count, const T *z,
             const T *received, T *activations, T *inputs, T *result) {
    const Index layers = all.size(), out = all[0].out;
    T *small = scratch<T, kSmall>(3 * kBlock * out);
    const T *from = z + first * all[0].in;
    for (Index l = 0; l < layers; ++l) {
        T *activation = small, *to = result + first * out;
        if (activations) activation = activations + (l * atoms + first) * out;
        if (l + 1 < layers)
            to = inputs ? inputs + (l * atoms + first) * out
                        : small + (1 + l % 2) * kBlock * out;
        all[l].forward(count, from, l ? nullptr : received, activation, to);
        from = to;
    }
}

template <typename T>
void dense(const T *z, const T *received, const T *const *weights, T *activations, T *inputs,
           T *result, Index atoms, Index in, Index out, Index layers) {
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
            through(all, atoms, first, count, z, received + first * out, activations, inputs,
                    result);
        }
    }
}

// Gradients of dense; dz and dweights may be null.
template <typename T>
void dense_backward(const T *z, const T *const *weights, const T *activations, const T *inputs,
                    const T *dresult, T *dreceived, T *dz, T *dweights, Index atoms, Index in,
                    Index out, Index layers) {
    const auto all = stack(weights, in, out, layers);
    const Index size = dweights ? parameters(all, layers) : 0;
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
        gather_parts(parts, size, dweights);
    }
}

}  // namespace hipnn
