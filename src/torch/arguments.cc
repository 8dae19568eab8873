#include "arguments.h"

#include <ATen/OpMathType.h>

namespace aft::dispatch {

std::string sizes_of(const at::Tensor& t) { return c10::str(t.sym_sizes()); }

void check_floating(std::string_view op, std::string_view name, const at::Tensor& t) {
  if (!t.defined()) fail("aft::", op, ": ", name, " must be a tensor, got none: pass one");
  if (t.scalar_type() != at::kFloat && t.scalar_type() != at::kDouble) {
    fail("aft::", op, ": ", name, " must be float32 or float64, got ", t.scalar_type(), ": convert it with .to()");
  }
}

void check_elements(std::string_view op, std::string_view name, const at::Tensor& t) {
  if (!t.defined()) fail("aft::", op, ": ", name, " must be a tensor, got none: pass one");
  if (t.scalar_type() != at::kFloat && t.scalar_type() != at::kDouble && t.scalar_type() != at::kBFloat16 &&
      t.scalar_type() != at::kHalf) {
    fail("aft::", op, ": ", name, " must be float32, float64, bfloat16 or float16, got ", t.scalar_type(),
         ": convert it with .to()");
  }
}

void check_accumulated(std::string_view op, std::string_view name, const at::Tensor& t, const at::Tensor& v) {
  const at::ScalarType expected = at::toOpMathType(v.scalar_type());
  if (expected == v.scalar_type()) {
    check_dtype_device(op, name, t, "v", v);
    return;
  }
  if (!t.defined()) fail("aft::", op, ": ", name, " must be a tensor, got none: pass one");
  if (t.scalar_type() != expected || t.device() != v.device()) {
    fail("aft::", op, ": ", name, " must be ", expected, " on ", v.device(), ", since v is ", v.scalar_type(), ", got ",
         t.scalar_type(), " on ", t.device(), ": convert it with .to()");
  }
}

void check_dtype_device(std::string_view op, std::string_view name, const at::Tensor& t, std::string_view like_name,
                        const at::Tensor& like) {
  if (!t.defined()) fail("aft::", op, ": ", name, " must be a tensor, got none: pass one");
  if (t.scalar_type() != like.scalar_type()) {
    fail("aft::", op, ": ", name, " must have the dtype of ", like_name, ", ", like.scalar_type(), ", got ",
         t.scalar_type(), ": convert it with .to()");
  }
  if (t.device() != like.device()) {
    fail("aft::", op, ": ", name, " must be on the device of ", like_name, ", ", like.device(), ", got ", t.device(),
         ": move it with .to()");
  }
}

ops::Gate gate_from_name(std::string_view op, std::string_view name) {
  if (name == "sigmoid") return ops::Gate::kSigmoid;
  if (name == "relu") return ops::Gate::kRelu;
  if (name == "none") return ops::Gate::kNone;
  fail("aft::", op, ": gate must be \"sigmoid\", \"relu\" or \"none\", got \"", name, "\": choose one of the three");
}

std::string_view name_of_gate(ops::Gate gate) {
  return gate == ops::Gate::kSigmoid ? "sigmoid" : gate == ops::Gate::kRelu ? "relu" : "none";
}

void check_same(std::string_view op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                const at::Tensor& like) {
  check_dtype_device(op, name, tensor, like_name, like);
  if (tensor.sym_sizes() != like.sym_sizes()) {
    fail("aft::", op, ": ", name, " must have the shape of ", like_name, ", ", sizes_of(like), ", got ",
         sizes_of(tensor), ": reshape it");
  }
}

void check_shape(std::string_view op, std::string_view name, const at::Tensor& tensor, c10::SymIntArrayRef expected,
                 const at::Tensor& v) {
  check_dtype_device(op, name, tensor, "v", v);
  if (tensor.sym_sizes() != expected) {
    fail("aft::", op, ": ", name, " must have shape ", expected, ", got ", sizes_of(tensor),
         ": allocate it with that shape");
  }
}

}  // namespace aft::dispatch
