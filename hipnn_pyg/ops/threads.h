// Who works on which atoms, with which memory and which floating-point mode.

#pragma once

#include "tiles.h"

#include <algorithm>
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
constexpr Index kDepth = 800;  // most atoms in one sum of products, for gradients in weights

// From `begin` to before `end`.
struct Span {
    Index begin, end;
    Index size() const { return end - begin; }
};

// Some atoms, in blocks of nearly equal size.
struct Share {
    Index begin, end, blocks;
    Share(Index begin, Index end)
        : begin(begin), end(end), blocks((end - begin + kBlock - 1) / kBlock) {}
    explicit Share(Index atoms)  // those of the calling thread
        : Share(atoms * omp_get_thread_num() / omp_get_num_threads(),
                atoms * (omp_get_thread_num() + 1) / omp_get_num_threads()) {}
    Index first(Index block) const {  // of block `blocks`: the end
        const Index rows = (end - begin + 4) / 5;
        return std::min(end, begin + 5 * (rows * block / blocks));
    }
};

// Memory of the calling thread, kept from call to call: fresh pages cost more than the arithmetic;
// beyond 64 MB, until less is asked for. Whole cache lines, for registers that cross none. Each USE
// is another buffer.
enum Use {
    kShells, kNeighbours, kInverse, kEnvelopes, kSensitivities, kSlopes, kEnvironments, kTurned,
    kPart, kReceived, kSmall, kWeights, kSums, kRows
};
template <typename T, Use USE> T *scratch(Index size) {
    struct alignas(64) Line {
        T numbers[64 / sizeof(T)];
    };
    static thread_local std::vector<Line> memory;
    constexpr std::size_t most = 1 << 20;  // 64 MB
    const std::size_t lines = (size * sizeof(T) + sizeof(Line) - 1) / sizeof(Line);
    if (memory.size() < lines || (memory.size() > most && lines <= most)) {
        std::vector<Line>().swap(memory);  // the old numbers go first; nobody wants them
        memory.resize(lines);
    }
    return reinterpret_cast<T *>(memory.data());
}

// to[k] = sum over the team of parts[member * size + k]; call from the whole team, which may be
// smaller than was asked for.
template <typename T> void gather_parts(const T *parts, Index size, T *to) {
    const Index team = omp_get_num_threads();
#pragma omp for schedule(static)
    for (Index k = 0; k < size; ++k) {
        T sum = 0;
        for (Index member = 0; member < team; ++member) sum += parts[member * size + k];
        to[k] = sum;
    }
}

}  // namespace hipnn
