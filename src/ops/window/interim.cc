// Interim: float and double entry points through the reference, until the kernels stand. Replaced by cpu_*.cc.

#include <limits>
#include <vector>

#include "aft/ops/window.h"

namespace aft::ops {
namespace {

using D = double;

struct Copy {
  std::vector<std::vector<D>> keep;
  template <typename T>
  D* dense(const T* data, int64_t n) {
    if (data == nullptr) return nullptr;
    keep.emplace_back(data, data + n);
    return keep.back().data();
  }
  template <typename T>
  Rows<const D> rows(Rows<const T> r, const WindowShape& s, int64_t width) {
    if (r.data == nullptr) return {};
    keep.emplace_back();
    auto& out = keep.back();
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t t = 0; t < s.time; ++t)
        for (int64_t c = 0; c < width; ++c) out.push_back(r.data[b * r.batch_stride + t * r.time_stride + c]);
    return {out.data(), s.time * width, width};
  }
  Rows<D> out(const WindowShape& s, int64_t width) {
    keep.emplace_back(s.batch * s.time * width);
    return {keep.back().data(), s.time * width, width};
  }
  template <typename T>
  Band<const D> band(Band<const T> w, const WindowShape& s) {
    if (!s.has_band || w.data == nullptr) return {};
    const int64_t span = s.left + 1 + s.right;
    const int64_t rows = w.row_stride == 0 ? 1 : w.rows;
    keep.emplace_back();
    auto& o = keep.back();
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t t = 0; t < rows; ++t)
        for (int64_t j = 0; j < span; ++j) o.push_back(w.data[h * w.head_stride + t * w.row_stride + j]);
    return {o.data(), rows * span, w.row_stride == 0 ? 0 : span, w.rows};
  }
  template <typename T>
  State<const D> state(State<const T> st, const WindowShape& s) {
    if (st.position == nullptr) return {};
    State<const D> o;
    o.position = st.position;
    o.max = dense(st.max, s.batch * s.key_channels);
    for (int64_t i = 0; i < s.batch * s.key_channels; ++i)
      if (st.max[i] == std::numeric_limits<T>::lowest()) const_cast<D*>(o.max)[i] = std::numeric_limits<D>::lowest();
    o.den = dense(st.den, s.batch * s.key_channels);
    o.num = dense(st.num, s.batch * s.channels);
    o.ring_key = dense(st.ring_key, s.batch * s.left * s.key_channels);
    o.ring_value = dense(st.ring_value, s.batch * s.left * s.channels);
    return o;
  }
};

template <typename T>
void put(const Rows<D>& from, Rows<T> to, const WindowShape& s, int64_t width) {
  if (to.data == nullptr) return;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t t = 0; t < s.time; ++t)
      for (int64_t c = 0; c < width; ++c)
        to.data[b * to.batch_stride + t * to.time_stride + c] = T(from.data[b * from.batch_stride + t * width + c]);
}
template <typename T>
void put(const D* from, T* to, int64_t n) {
  if (to == nullptr || from == nullptr) return;
  for (int64_t i = 0; i < n; ++i) to[i] = from[i] < std::numeric_limits<T>::lowest() ? std::numeric_limits<T>::lowest() : T(from[i]);
}

}  // namespace

template <typename T>
int64_t window_saved_size(const WindowShape&) { return 0; }

template <typename T>
void window_forward(const WindowForward<T>& p, const ParallelFor&) {
  const WindowShape& s = p.shape;
  Copy c;
  c.keep.reserve(32);
  WindowForward<D> r;
  r.shape = s;
  r.q = c.rows(p.q, s, s.channels);
  r.k = c.rows(p.k, s, s.key_channels);
  r.v = c.rows(p.v, s, s.channels);
  r.y = c.out(s, s.channels);
  r.band = c.band(p.band, s);
  r.initial_state = c.state(p.initial_state, s);
  std::vector<D> m(s.batch * s.key_channels), d(s.batch * s.key_channels), n(s.batch * s.channels),
      rk(s.batch * s.left * s.key_channels), rv(s.batch * s.left * s.channels);
  if (p.final_state.position != nullptr)
    r.final_state = {p.final_state.position, m.data(), d.data(), n.data(), rk.data(), rv.data()};
  window_forward_reference(r);
  put(r.y, p.y, s, s.channels);
  if (p.final_state.position != nullptr) {
    put(m.data(), p.final_state.max, m.size());
    put(d.data(), p.final_state.den, d.size());
    put(n.data(), p.final_state.num, n.size());
    put(rk.data(), p.final_state.ring_key, rk.size());
    put(rv.data(), p.final_state.ring_value, rv.size());
  }
}

template <typename T>
void window_backward(const WindowBackward<T>& p, const ParallelFor&) {
  const WindowShape& s = p.shape;
  Copy c;
  c.keep.reserve(40);
  WindowBackward<D> r;
  r.shape = s;
  r.q = c.rows(p.q, s, s.channels);
  r.k = c.rows(p.k, s, s.key_channels);
  r.v = c.rows(p.v, s, s.channels);
  r.grad_y = c.rows(p.grad_y, s, s.channels);
  r.grad_q = c.out(s, s.channels);
  r.grad_k = c.out(s, s.key_channels);
  r.grad_v = c.out(s, s.channels);
  r.band = c.band(p.band, s);
  const int64_t span = s.left + 1 + s.right;
  std::vector<D> gb;
  if (p.grad_band.data != nullptr) {
    const int64_t rows = p.grad_band.row_stride == 0 ? 1 : p.grad_band.rows;
    gb.resize(s.heads * rows * span);
    r.grad_band = {gb.data(), rows * span, p.grad_band.row_stride == 0 ? 0 : span, rows};
  }
  r.initial_state = c.state(p.initial_state, s);
  r.grad_final_state = {c.dense(p.grad_final_state.den, s.batch * s.key_channels),
                        c.dense(p.grad_final_state.num, s.batch * s.channels),
                        c.dense(p.grad_final_state.ring_key, s.batch * s.left * s.key_channels),
                        c.dense(p.grad_final_state.ring_value, s.batch * s.left * s.channels)};
  std::vector<D> d(s.batch * s.key_channels), n(s.batch * s.channels), rk(s.batch * s.left * s.key_channels),
      rv(s.batch * s.left * s.channels);
  r.grad_initial_state = {d.data(), n.data(), rk.data(), rv.data()};
  window_backward_reference(r);
  put(r.grad_q, p.grad_q, s, s.channels);
  put(r.grad_k, p.grad_k, s, s.key_channels);
  put(r.grad_v, p.grad_v, s, s.channels);
  put(d.data(), p.grad_initial_state.den, d.size());
  put(n.data(), p.grad_initial_state.num, n.size());
  put(rk.data(), p.grad_initial_state.ring_key, rk.size());
  put(rv.data(), p.grad_initial_state.ring_value, rv.size());
  if (p.grad_band.data != nullptr) {
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t t = 0; t < r.grad_band.rows; ++t)
        for (int64_t j = 0; j < span; ++j)
          p.grad_band.data[h * p.grad_band.head_stride + t * p.grad_band.row_stride + j] =
              T(r.grad_band.data[(h * r.grad_band.rows + t) * span + j]);
  }
}

template <typename T>
void window_step(const WindowStep<T>& p, const ParallelFor& parallel) {
  WindowForward<T> f;
  f.shape = p.shape;
  f.shape.time = 1;
  f.q = p.q;
  f.k = p.k;
  f.v = p.v;
  f.y = p.y;
  f.band = p.band;
  f.initial_state = {p.state.position, p.state.max, p.state.den, p.state.num, p.state.ring_key, p.state.ring_value};
  f.final_state = p.state;
  window_forward(f, parallel);
}

template <typename T>
void window_state_init(const WindowShape& s, State<T> st) {
  for (int64_t b = 0; b < s.batch; ++b) st.position[b] = 0;
  for (int64_t i = 0; i < s.batch * s.key_channels; ++i) st.max[i] = std::numeric_limits<T>::lowest(), st.den[i] = 0;
  for (int64_t i = 0; i < s.batch * s.channels; ++i) st.num[i] = 0;
  for (int64_t i = 0; i < s.batch * s.left * s.key_channels; ++i) st.ring_key[i] = 0;
  for (int64_t i = 0; i < s.batch * s.left * s.channels; ++i) st.ring_value[i] = 0;
}
RedoCount window_redo_count() { return {}; }
void window_set_redo(bool) {}

#define AFT_INSTANTIATE(T)                                                        \
  template int64_t window_saved_size<T>(const WindowShape&);                      \
  template void window_forward<T>(const WindowForward<T>&, const ParallelFor&);   \
  template void window_backward<T>(const WindowBackward<T>&, const ParallelFor&); \
  template void window_step<T>(const WindowStep<T>&, const ParallelFor&);         \
  template void window_state_init<T>(const WindowShape&, State<T>);
AFT_INSTANTIATE(float)
AFT_INSTANTIATE(double)

}  // namespace aft::ops
