// A mini-batch of packed molecules: those of some numbers, one after the other.

#pragma once

#include "tiles.h"

#include <algorithm>

namespace hipnn {

// sizes = atoms, atoms of the largest molecule, pairs of the molecules of `index`; whether all of
// these are below `all`.
inline bool gather_sizes(const Index *index, const Index *counts, Index *sizes, Index molecules,
                         Index all) {
    std::fill(sizes, sizes + 3, 0);
    for (Index m = 0; m < molecules; ++m) {
        if (index[m] < 0 || index[m] >= all) return false;
        const Index n = counts[index[m]];
        sizes[0] += n, sizes[1] = std::max(sizes[1], n), sizes[2] += n * (n - 1);
    }
    return true;
}

// Their atoms, and where each molecule begins.
template <typename T>
void gather(const Index *index, const Index *counts, const Index *start, const Index *z,
            const T *pos, const double *target, Index *ptr, Index *batch, Index *own_z, T *own_pos,
            double *own_target, Index molecules) {
    ptr[0] = 0;
    for (Index m = 0; m < molecules; ++m) ptr[m + 1] = ptr[m] + counts[index[m]];
#pragma omp parallel for schedule(static)
    for (Index m = 0; m < molecules; ++m) {
        const Index from = start[index[m]], count = ptr[m + 1] - ptr[m];
        std::fill(batch + ptr[m], batch + ptr[m + 1], m);
        std::copy(z + from, z + from + count, own_z + ptr[m]);
        std::copy(pos + 3 * from, pos + 3 * (from + count), own_pos + 3 * ptr[m]);
        own_target[m] = target[index[m]];
    }
}

}  // namespace hipnn
