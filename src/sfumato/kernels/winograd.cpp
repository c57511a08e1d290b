// 3x3 convolutions of stride 1 and padding 1 in float32, channels-last, by the minimal filtering F(4x4, 3x3) of Winograd:
// 36 products of matrices for each 4x4 outputs in place of 144 (Lavin & Gray 2015, arXiv:1509.09308, section 4.3).
// What a thread works on stays in its cache: a slab of tiles is transformed, multiplied and transformed back before the next.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "lanes.h"

namespace {

using at::Tensor;

constexpr int64_t PAD = 48;      // numbers between two matrices, so that the 36 do not share cache sets
constexpr int64_t TILES = 48;    // a slab, more or less: of its matrices the second cache holds the most; whole blocks of rows
constexpr int64_t DEEP = 64;     // the same for the gradient of the weights, where all sums go through the cache once a slab
constexpr int64_t PANEL = 16;    // columns of a product that are computed together
constexpr int WIDE = PANEL / LANES, ROWS = 12 / WIDE;  // rows together: twelve sums are in flight, which hides how long one takes

// d -> Bᵀ d
inline void into(const Lanes* d, Lanes* t) {
  const Lanes even1 = d[4] - 4 * d[2], odd1 = d[3] - 4 * d[1], even2 = d[4] - d[2], odd2 = 2 * (d[3] - d[1]);
  t[0] = 4 * d[0] - 5 * d[2] + d[4];
  t[1] = even1 + odd1;
  t[2] = even1 - odd1;
  t[3] = even2 + odd2;
  t[4] = even2 - odd2;
  t[5] = 4 * d[1] - 5 * d[3] + d[5];
}

// m -> Aᵀ m
inline void outof(const Lanes* m, Lanes* y) {
  const Lanes sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum1 + sum2;
  y[1] = difference1 + 2 * difference2;
  y[2] = sum1 + 4 * sum2;
  y[3] = difference1 + 8 * difference2 + m[5];
}

// g -> A g, the transpose of outof
inline void spread(const Lanes* g, Lanes* m) {
  const Lanes even1 = g[0] + g[2], odd1 = g[1] + g[3], even2 = g[0] + 4 * g[2], odd2 = 2 * g[1] + 8 * g[3];
  m[0] = g[0];
  m[1] = even1 + odd1;
  m[2] = even1 - odd1;
  m[3] = even2 + odd2;
  m[4] = even2 - odd2;
  m[5] = g[3];
}

// w -> G w
inline void lift(const Lanes* w, Lanes* u) {
  const Lanes outer = -(w[0] + w[2]) / 6, inner = w[1] / 6, even = w[0] / 24 + w[2] / 6, odd = w[1] / 12;
  u[0] = w[0] / 4;
  u[1] = outer - inner;
  u[2] = outer + inner;
  u[3] = even + odd;
  u[4] = even - odd;
  u[5] = w[2];
}

// u -> Gᵀ u
inline void lower(const Lanes* u, Lanes* w) {
  const Lanes outer = (u[1] + u[2]) / 6, inner = (u[3] + u[4]) / 24;
  w[0] = u[0] / 4 - outer + inner;
  w[1] = (u[2] - u[1]) / 6 + (u[3] - u[4]) / 12;
  w[2] = 4 * inner - outer + u[5];
}

struct Map {  // [b, h, w, c] in tiles of 4x4
  int64_t b, h, w, c, rows, columns;
  explicit Map(const Tensor& x)
      : b(x.size(0)), h(x.size(1)), w(x.size(2)), c(x.size(3)), rows((h + 3) / 4), columns((w + 3) / 4) {}
  int64_t strips() const { return b * rows; }
};

// The tiles of one strip, SIDE x SIDE from `first` before each tile's corner, by F in both directions, to 36 matrices [tiles, c].
template <int SIDE, void F(const Lanes*, Lanes*)>
void gather(const float* x, const Map& map, int64_t strip, int first, float* to, int64_t stride) {
  const std::vector<float> zeros(map.c);  // what lies outside
  const float* image = x + strip / map.rows * map.h * map.w * map.c;
  const int64_t top = strip % map.rows * 4 + first;
  for (int64_t column = 0; column < map.columns; ++column) {
    const int64_t left = column * 4 + first;
    const float* from[SIDE][SIDE];
    for (int s = 0; s < SIDE; ++s) {
      for (int r = 0; r < SIDE; ++r) {
        const int64_t y = top + r, z = left + s;
        from[s][r] = y >= 0 && y < map.h && z >= 0 && z < map.w ? image + (y * map.w + z) * map.c : zeros.data();
      }
    }
    for (int64_t c = 0; c < map.c; c += LANES) {
      Lanes half[SIDE][6];
#pragma GCC unroll 6
      for (int s = 0; s < SIDE; ++s) {
        Lanes d[SIDE];
#pragma GCC unroll 6
        for (int r = 0; r < SIDE; ++r) d[r] = load(from[s][r] + c);
        F(d, half[s]);
      }
#pragma GCC unroll 6
      for (int r = 0; r < 6; ++r) {
        Lanes d[SIDE], t[6];
        for (int s = 0; s < SIDE; ++s) d[s] = half[s][r];
        F(d, t);
        for (int s = 0; s < 6; ++s) store(to + (6 * r + s) * stride + column * map.c + c, t[s]);
      }
    }
  }
}

// 36 matrices [tiles, c] to the 4x4 outputs of one strip.
void scatter(const float* from, int64_t stride, const float* bias, const float* plus, const Map& map, int64_t strip, float* y) {
  const int64_t image = strip / map.rows * map.h * map.w * map.c;
  const int64_t top = strip % map.rows * 4;
  for (int64_t column = 0; column < map.columns; ++column) {
    const int64_t left = column * 4;
    for (int64_t c = 0; c < map.c; c += LANES) {
      Lanes half[6][4];
      for (int s = 0; s < 6; ++s) {
        Lanes m[6];
        for (int r = 0; r < 6; ++r) m[r] = load(from + (6 * r + s) * stride + column * map.c + c);
        outof(m, half[s]);
      }
      const Lanes shift = bias ? load(bias + c) : Lanes{};
      for (int r = 0; r < 4 && top + r < map.h; ++r) {
        Lanes m[6], out[4];
        for (int s = 0; s < 6; ++s) m[s] = half[s][r];
        outof(m, out);
        for (int s = 0; s < 4 && left + s < map.w; ++s) {
          const int64_t at = image + ((top + r) * map.w + left + s) * map.c + c;
          store(y + at, out[s] + (plus ? shift + load(plus + at) : shift));
        }
      }
    }
  }
}

// R rows and one panel of c = a b: a[r, k] at a + r * row + k * column, b [depth, PANEL]; added to c where ADDS.
template <int R, bool ADDS>
void block(const float* a, int64_t row, int64_t column, const float* b, int64_t depth, float* c, int64_t stride) {
  Lanes sum[R][WIDE] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Lanes panel[WIDE];
    for (int w = 0; w < WIDE; ++w) panel[w] = load(b + k * PANEL + w * LANES);
    for (int r = 0; r < R; ++r) {
      const float factor = a[r * row + k * column];
      for (int w = 0; w < WIDE; ++w) sum[r][w] += factor * panel[w];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < WIDE; ++w) {
      float* at = c + r * stride + w * LANES;
      store(at, ADDS ? load(at) + sum[r][w] : sum[r][w]);
    }
  }
}

// As many rows as there are.
template <bool ADDS, int R = ROWS>
void rows(int64_t count, const float* a, int64_t row, int64_t column, const float* b, int64_t depth, float* c, int64_t stride) {
  for (; count >= R; count -= R, a += R * row, c += R * stride) block<R, ADDS>(a, row, column, b, depth, c, stride);
  if constexpr (R > 1) {
    if (count > 0) rows<ADDS, R - 1>(count, a, row, column, b, depth, c, stride);
  }
}

struct Buffer {  // 36 matrices of `size` numbers, each a little apart from the next
  Tensor memory;
  int64_t stride;
  Buffer(int64_t size, const Tensor& like) : memory(at::empty({36 * (size + PAD)}, like.options())), stride(size + PAD) {}
  float* data() { return memory.data_ptr<float>(); }
};

int64_t strips_a_slab(const Map& map, int64_t tiles) {
  const int64_t fair = (map.strips() + at::get_num_threads() - 1) / at::get_num_threads();
  return std::max<int64_t>(1, std::min(fair, tiles / map.columns));
}

// Where the nine numbers of a pair of channels lie in weights [o, c, 3, 3], or, turned, in those of the convolution that takes gradients back.
struct Taps {
  int64_t o, c, along_o, along_c, row, column, first;
  Taps(const Tensor& w, bool turned)
      : o(w.size(turned)), c(w.size(!turned)), along_o(w.stride(turned)), along_c(w.stride(!turned)), row(w.stride(2)), column(w.stride(3)) {
    first = turned ? 2 * (row + column) : 0;
    if (turned) row = -row, column = -column;
  }
};

// G w Gᵀ of each pair of channels: [36, o / PANEL, c, PANEL].
Tensor transform(const Tensor& w, bool turned) {
  const Taps taps(w, turned);
  Tensor u = at::empty({36, taps.o / PANEL, taps.c, PANEL}, w.options());
  const float* from = w.data_ptr<float>() + taps.first;
  float* to = u.data_ptr<float>();
  at::parallel_for(0, taps.o / PANEL, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin * PANEL; p < end * PANEL; p += PANEL) {
      for (int64_t c = 0; c < taps.c; ++c) {
        float near[9][PANEL];
        for (int64_t k = 0; k < PANEL; ++k) {
          const float* at = from + (p + k) * taps.along_o + c * taps.along_c;
          for (int t = 0; t < 9; ++t) near[t][k] = at[t / 3 * taps.row + t % 3 * taps.column];
        }
        for (int64_t k = 0; k < PANEL; k += LANES) {
          Lanes half[3][6];
          for (int s = 0; s < 3; ++s) {
            const Lanes d[3] = {load(&near[s][k]), load(&near[3 + s][k]), load(&near[6 + s][k])};
            lift(d, half[s]);
          }
          for (int r = 0; r < 6; ++r) {
            const Lanes d[3] = {half[0][r], half[1][r], half[2][r]};
            Lanes out[6];
            lift(d, out);
            for (int s = 0; s < 6; ++s) store(to + ((6 * r + s) * taps.o + p) * taps.c + c * PANEL + k, out[s]);
          }
        }
      }
    }
  });
  return u;
}

// Gᵀ u G, laid out as the weights `like`.
Tensor transform_back(const Tensor& u, const Tensor& like) {
  Tensor w = at::empty_like(like);
  const Taps taps(w, false);
  const float* from = u.data_ptr<float>();
  float* to = w.data_ptr<float>();
  at::parallel_for(0, taps.o / PANEL, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin * PANEL; p < end * PANEL; p += PANEL) {
      for (int64_t c = 0; c < taps.c; ++c) {
        float near[9][PANEL];
        for (int64_t k = 0; k < PANEL; k += LANES) {
          Lanes half[6][3];
          for (int s = 0; s < 6; ++s) {
            Lanes d[6];
            for (int r = 0; r < 6; ++r) d[r] = load(from + ((6 * r + s) * taps.o + p) * taps.c + c * PANEL + k);
            lower(d, half[s]);
          }
          for (int r = 0; r < 3; ++r) {
            Lanes d[6], out[3];
            for (int s = 0; s < 6; ++s) d[s] = half[s][r];
            lower(d, out);
            for (int s = 0; s < 3; ++s) store(&near[3 * r + s][k], out[s]);
          }
        }
        for (int64_t k = 0; k < PANEL; ++k) {
          float* at = to + (p + k) * taps.along_o + c * taps.along_c;
          for (int t = 0; t < 9; ++t) at[t / 3 * taps.row + t % 3 * taps.column] = near[t][k];
        }
      }
    }
  });
  return w;
}

// y = conv(x): x [b, h, w, c], u [36, o / PANEL, c, PANEL] the transformed weights; plus [b, h, w, o] is added.
Tensor forward(const Tensor& x, const Tensor& u, const std::optional<Tensor>& bias, const std::optional<Tensor>& plus) {
  const Map in(x);
  Tensor y = at::empty({in.b, in.h, in.w, u.size(1) * PANEL}, x.options());
  const Map out(y);
  const float *from = x.data_ptr<float>(), *weights = u.data_ptr<float>();
  const float *shift = bias ? bias->data_ptr<float>() : nullptr, *other = plus ? plus->data_ptr<float>() : nullptr;
  float* to = y.data_ptr<float>();
  const int64_t slab = strips_a_slab(in, TILES), slabs = (in.strips() + slab - 1) / slab;
  std::atomic<int64_t> taken{0};  // a thread that is held up by something else on its core leaves the rest to the others
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), slabs), 1, [&](int64_t, int64_t) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Buffer v(slab * in.columns * in.c, u), m(slab * in.columns * out.c, u);
    for (int64_t i = taken++; i < slabs; i = taken++) {
      const int64_t first = i * slab, last = std::min(first + slab, in.strips()), used = (last - first) * in.columns;
      for (int64_t s = first; s < last; ++s) gather<6, into>(from, in, s, -1, v.data() + (s - first) * in.columns * in.c, v.stride);
      for (int64_t k = 0; k < 36; ++k) {
        for (int64_t d = 0; d < out.c; d += PANEL) {
          rows<false>(used, v.data() + k * v.stride, in.c, 1, weights + (k * out.c + d) * in.c, in.c, m.data() + k * m.stride + d, out.c);
        }
      }
      for (int64_t s = first; s < last; ++s) scatter(m.data() + (s - first) * in.columns * out.c, m.stride, shift, other, out, s, to);
    }
  });
  return y;
}

// The gradient of u from x [b, h, w, c] and that of y [b, h, w, o].
Tensor backward(const Tensor& x, const Tensor& g) {
  const Map in(x), out(g);
  const float *from = x.data_ptr<float>(), *behind = g.data_ptr<float>();
  const int64_t slab = strips_a_slab(in, DEEP), slabs = (in.strips() + slab - 1) / slab;
  const int64_t shares = std::min<int64_t>(at::get_num_threads(), slabs);
  std::vector<Tensor> sums(shares);
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t share = begin; share < end; ++share) {
      const int64_t size = slab * in.columns;
      Buffer v(size * in.c, x), m(size * out.c, x);
      std::vector<float> panel(size * PANEL);
      Tensor sum = at::empty({36, out.c / PANEL, in.c, PANEL}, x.options());
      const int64_t start = share * slabs / shares;
      for (int64_t i = start; i < (share + 1) * slabs / shares; ++i) {
        const int64_t first = i * slab, last = std::min(first + slab, in.strips()), used = (last - first) * in.columns;
        for (int64_t s = first; s < last; ++s) {
          gather<6, into>(from, in, s, -1, v.data() + (s - first) * in.columns * in.c, v.stride);
          gather<4, spread>(behind, out, s, 0, m.data() + (s - first) * in.columns * out.c, m.stride);
        }
        for (int64_t k = 0; k < 36; ++k) {
          for (int64_t d = 0; d < out.c; d += PANEL) {
            for (int64_t t = 0; t < used; ++t) std::copy_n(m.data() + k * m.stride + t * out.c + d, PANEL, &panel[t * PANEL]);
            (i == start ? rows<false> : rows<true>)(in.c, v.data() + k * v.stride, 1, in.c, panel.data(), used, sum.data_ptr<float>() + (k * out.c + d) * in.c, PANEL);
          }
        }
      }
      sums[share] = sum;
    }
  });
  Tensor total = sums[0];
  for (int64_t share = 1; share < shares; ++share) total.add_(sums[share]);
  return total;
}

TORCH_LIBRARY(sfumato_winograd, library) {
  library.def("forward(Tensor x, Tensor u, Tensor? bias, Tensor? plus) -> Tensor");
  library.def("backward(Tensor x, Tensor g) -> Tensor");
  library.def("transform(Tensor w, bool turned) -> Tensor");
  library.def("transform_back(Tensor u, Tensor like) -> Tensor");
}

TORCH_LIBRARY_IMPL(sfumato_winograd, CPU, library) {
  library.impl("forward", forward);
  library.impl("backward", backward);
  library.impl("transform", transform);
  library.impl("transform_back", transform_back);
}

}  // namespace
