// silu(a x + t) of maps [b, n, c], channels-last in float32, a and t one number a row and channel: a group normalisation, the scale and
// shift of a condition and the activation in one pass over the map, and their gradients in two. The map of one row stays in the cache
// from the pass that measures it to the pass that changes it.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "lanes.h"

namespace {

using at::Tensor;

constexpr int64_t CHUNK = 256;  // positions that are summed in single precision

// 1 / (1 + exp(-z)): 2^k exp(f) with |f| <= ln 2 / 2, the exponential's series to the sixth power; k = 128 makes infinity.
inline Lanes sigmoid(Lanes z) {
  const Lanes lowest = Lanes{} - 87.0f, highest = Lanes{} + 89.0f;
  Lanes x = Lanes{} - z;
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  const Lanes magic = Lanes{} + 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the lowest bits
  const Lanes k = x * 1.44269504f + magic;
  const Lanes whole = k - magic;
  const Lanes f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  Lanes e = Lanes{} + 1.0f / 720;
  e = e * f + 1.0f / 120;
  e = e * f + 1.0f / 24;
  e = e * f + 1.0f / 6;
  e = e * f + 0.5f;
  e = e * f + 1.0f;
  e = e * f + 1.0f;
  const Whole power = ((Whole)k - (Whole)magic + 127) << 23;
  return 1.0f / (1.0f + e * (Lanes)power);
}

template <bool ACTIVATES>
inline Lanes activated(Lanes z) { return ACTIVATES ? z * sigmoid(z) : z; }

// g times the slope of the activation at z.
template <bool ACTIVATES>
inline Lanes behind(Lanes g, Lanes z) {
  if (!ACTIVATES) return g;
  const Lanes s = sigmoid(z);
  return g * s * (1.0f + z * (1.0f - s));
}

// The channels from `first`, `width` of them, of one row: as many as one task has.
struct Part {
  int64_t row, first, width;
};

struct Shape {
  int64_t b, n, c, groups;  // groups = 0: no normalisation
  int64_t parts = 1;        // of the channels: whole groups and whole registers each, so that few rows still keep all threads busy
  explicit Shape(const Tensor& x, int64_t groups) : b(x.size(0)), n(x.size(1)), c(x.size(2)), groups(groups) {
    for (int64_t p = at::get_num_threads(); b < 2 * at::get_num_threads() && p > 1; --p) {
      if (c % (16 * p) == 0 && (groups == 0 || groups % p == 0)) {
        parts = p;
        break;
      }
    }
  }
  int64_t tasks() const { return b * parts; }
  Part part(int64_t task) const { return {task / parts, task % parts * (c / parts), c / parts}; }
};

struct Given {  // what multiplies and shifts; absent ones count as one and zero
  const float *weight, *bias, *scale, *shift, *offset;
};

inline const float* address(const std::optional<Tensor>& tensor) { return tensor ? tensor->data_ptr<float>() : nullptr; }

// a and t of a part from what is given and the mean and inverse deviation of its groups.
void factors(const Shape& shape, const Part& part, const Given& given, const float* mean, const float* rstd, float* a, float* t) {
  for (int64_t i = 0; i < part.width; ++i) {
    const int64_t c = part.first + i, at = part.row * shape.c + c;
    const int64_t g = shape.groups ? part.row * shape.groups + c * shape.groups / shape.c : 0;
    const float m = shape.groups ? mean[g] : 0.0f, r = shape.groups ? rstd[g] : 1.0f;
    const float w = given.weight ? given.weight[c] : 1.0f, bias = given.bias ? given.bias[c] : 0.0f;
    const float scale = given.scale ? 1.0f + given.scale[at] : 1.0f, shift = given.shift ? given.shift[at] : 0.0f;
    const float offset = given.offset ? given.offset[at] : 0.0f;
    a[i] = r * w * scale;
    t[i] = a[i] * (offset - m) + bias * scale + shift;
  }
}

// The sums over positions of the two values that `pair` gives there for the channels from c on.
template <typename Pair>
void sum_both(const Shape& shape, const Part& part, double* firsts, double* seconds, Pair pair) {
  std::vector<float> first(part.width), second(part.width);
  std::fill(firsts, firsts + part.width, 0.0);
  std::fill(seconds, seconds + part.width, 0.0);
  for (int64_t begin = 0; begin < shape.n; begin += CHUNK) {
    const int64_t end = std::min(begin + CHUNK, shape.n);
    std::fill(first.begin(), first.end(), 0.0f);
    std::fill(second.begin(), second.end(), 0.0f);
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t c = 0; c < part.width; c += LANES) {
        Lanes a, b;
        pair(n * shape.c + c, c, a, b);
        store(&first[c], load(&first[c]) + a);
        store(&second[c], load(&second[c]) + b);
      }
    }
    for (int64_t c = 0; c < part.width; ++c) firsts[c] += first[c], seconds[c] += second[c];
  }
}

// Mean and inverse deviation of each group of a part: sums of the distance from one entry of the channel and of its square, so that
// nothing is lost where the mean is far from zero; groups joined as Chan et al. (1979).
void measure(const float* x, const Shape& shape, const Part& part, const float* offset, double eps, float* mean, float* rstd) {
  std::vector<double> sums(part.width), squares(part.width);
  const float* pivot = x + shape.n / 2 * shape.c;
  sum_both(shape, part, sums.data(), squares.data(), [&](int64_t at, int64_t c, Lanes& distance, Lanes& square) {
    distance = load(x + at) - load(pivot + c);
    square = distance * distance;
  });
  const int64_t members = shape.c / shape.groups;
  for (int64_t g = 0; g < part.width / members; ++g) {
    double total = 0, within = 0, between = 0;
    auto level = [&](int64_t c) { return pivot[c] + sums[c] / shape.n + (offset ? offset[c] : 0.0f); };
    for (int64_t c = g * members; c < (g + 1) * members; ++c) total += level(c);
    const double middle = total / members;
    for (int64_t c = g * members; c < (g + 1) * members; ++c) {
      within += squares[c] - sums[c] * sums[c] / shape.n;
      between += (level(c) - middle) * (level(c) - middle);
    }
    mean[g] = middle;
    rstd[g] = 1 / std::sqrt(std::max(within / (shape.n * members) + between / members, 0.0) + eps);
  }
}

template <bool ACTIVATES>
void apply(const float* x, const Shape& shape, const Part& part, const float* a, const float* t, float* y) {
  for (int64_t n = 0; n < shape.n; ++n) {
    for (int64_t c = 0; c < part.width; c += LANES) {
      const int64_t at = n * shape.c + c;
      store(y + at, activated<ACTIVATES>(load(a + c) * load(x + at) + load(t + c)));
    }
  }
}

// y, and the mean and inverse deviation of each group, [b, groups].
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, int64_t groups, double eps, bool activates, const std::optional<Tensor>& weight,
                                           const std::optional<Tensor>& bias, const std::optional<Tensor>& scale,
                                           const std::optional<Tensor>& shift, const std::optional<Tensor>& offset) {
  const Shape shape(x, groups);
  const Given given{address(weight), address(bias), address(scale), address(shift), address(offset)};
  Tensor y = at::empty_like(x), mean = at::empty({shape.b, groups}, x.options()), rstd = at::empty_like(mean);
  const float* from = x.data_ptr<float>();
  float *to = y.data_ptr<float>(), *means = mean.data_ptr<float>(), *rstds = rstd.data_ptr<float>();
  at::parallel_for(0, shape.tasks(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> a(shape.c), t(shape.c);
    for (int64_t task = begin; task < end; ++task) {
      const Part part = shape.part(task);
      const int64_t start = part.row * shape.n * shape.c + part.first;
      if (groups) {
        const int64_t g = part.row * groups + part.first * groups / shape.c;
        measure(from + start, shape, part, given.offset ? given.offset + part.row * shape.c + part.first : nullptr, eps, means + g, rstds + g);
      }
      factors(shape, part, given, means, rstds, a.data(), t.data());
      (activates ? apply<true> : apply<false>)(from + start, shape, part, a.data(), t.data(), to + start);
    }
  });
  return {y, mean, rstd};
}

// dx = g * slope first, and its sums over positions, alone and times x.
template <bool ACTIVATES>
void inner(const float* x, const float* g, const Shape& shape, const Part& part, const float* a, const float* t, float* dx, double* sums,
           double* products) {
  sum_both(shape, part, sums, products, [&](int64_t at, int64_t c, Lanes& gradient, Lanes& product) {
    const Lanes here = load(x + at);
    gradient = behind<ACTIVATES>(load(g + at), load(a + c) * here + load(t + c));
    product = gradient * here;
    store(dx + at, gradient);
  });
}

// The gradient of x, and per row and channel the sums of the inner gradient alone and times the normalised map, [b, c].
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& g, const Tensor& mean, const Tensor& rstd, int64_t groups,
                                            bool activates, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                            const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                            const std::optional<Tensor>& offset) {
  const Shape shape(x, groups);
  const Given given{address(weight), address(bias), address(scale), address(shift), address(offset)};
  Tensor dx = at::empty_like(x), ones = at::empty({shape.b, shape.c}, x.options()), normals = at::empty_like(ones);
  const float *from = x.data_ptr<float>(), *after = g.data_ptr<float>(), *means = mean.data_ptr<float>(), *rstds = rstd.data_ptr<float>();
  float *to = dx.data_ptr<float>(), *one = ones.data_ptr<float>(), *normal = normals.data_ptr<float>();
  at::parallel_for(0, shape.tasks(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> a(shape.c), t(shape.c), along(shape.c), level(shape.c);
    std::vector<double> sums(shape.c), products(shape.c);
    for (int64_t task = begin; task < end; ++task) {
      const Part part = shape.part(task);
      const int64_t start = part.row * shape.n * shape.c + part.first, at = part.row * shape.c + part.first;
      factors(shape, part, given, means, rstds, a.data(), t.data());
      (activates ? inner<true> : inner<false>)(from + start, after + start, shape, part, a.data(), t.data(), to + start, sums.data(), products.data());
      const int64_t members = groups ? shape.c / groups : 1;
      for (int64_t first = 0; first < part.width; first += members) {
        const int64_t group = groups ? part.row * groups + (part.first + first) / members : 0;
        const double m = groups ? means[group] : 0.0, r = groups ? rstds[group] : 1.0;
        double plain = 0, weighted = 0;  // the sums over the group, times what multiplies each channel
        for (int64_t c = first; c < first + members; ++c) {
          const double moved = given.offset ? given.offset[at + c] : 0.0f;
          const double normalised = r * (products[c] + (moved - m) * sums[c]);
          one[at + c] = sums[c];
          normal[at + c] = normalised;
          const double factor = (given.weight ? given.weight[part.first + c] : 1.0f) * (given.scale ? 1.0f + given.scale[at + c] : 1.0f);
          plain += factor * sums[c];
          weighted += factor * normalised;
        }
        for (int64_t c = first; c < first + members; ++c) {
          const double moved = given.offset ? given.offset[at + c] : 0.0f, size = shape.n * members;
          along[c] = groups ? -r * r * weighted / size : 0.0;
          level[c] = groups ? -r * plain / size + r * r * weighted / size * (m - moved) : 0.0;
        }
      }
      for (int64_t n = 0; n < shape.n; ++n) {
        for (int64_t c = 0; c < part.width; c += LANES) {
          const int64_t i = start + n * shape.c + c;
          store(to + i, load(&a[c]) * load(to + i) + (load(&along[c]) * load(from + i) + load(&level[c])));
        }
      }
    }
  });
  return {dx, ones, normals};
}

TORCH_LIBRARY(sfumato_norm, library) {
  library.def(
      "forward(Tensor x, int groups, float eps, bool activates, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? offset)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "backward(Tensor x, Tensor g, Tensor mean, Tensor rstd, int groups, bool activates, Tensor? weight, Tensor? bias, Tensor? scale,"
      " Tensor? shift, Tensor? offset) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(sfumato_norm, CPU, library) {
  library.impl("forward", forward);
  library.impl("backward", backward);
}

}  // namespace
