#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>
#include <torch/types.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

// How operators are declared and called. What an operator is handed is one struct, its call. A list of the call's
// members, each with its text in the schema, gives the schema and the function that the dispatcher calls.

namespace aft::dispatch {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

/// Text as an argument of a template.
template <size_t n>
struct Text {
  char text[n] = {};
  constexpr Text(const char (&literal)[n]) { std::copy_n(literal, n, text); }  // NOLINT(google-explicit-constructor)
  [[nodiscard]] constexpr std::string_view view() const { return {text, n - 1}; }
};

/// An argument: its text in schemas, and the member of the call that takes it.
template <Text text_, auto member_>
struct Argument {
  static constexpr std::string_view text = text_.view();
  static constexpr std::string_view type = text.substr(0, text.find(' '));
  static constexpr std::string_view name = text.substr(type.size() + 1, text.find('=') - type.size() - 1);
  static constexpr bool is_written = type.find('!') != type.npos;
  static constexpr auto member = member_;

  /// What the dispatcher hands over.
  static constexpr auto parameter() {
    constexpr bool is_tensor = type.starts_with("Tensor");
    if constexpr (type == "Tensor[]?") {
      return std::type_identity<std::optional<TensorList>>();
    } else if constexpr (is_tensor && type.ends_with("[]")) {
      return std::type_identity<TensorList>();
    } else if constexpr (is_tensor && type.ends_with("?")) {
      return std::type_identity<const OptionalTensor&>();
    } else if constexpr (is_tensor) {
      return std::type_identity<const Tensor&>();
    } else if constexpr (type == "SymInt[2]") {
      return std::type_identity<c10::SymIntArrayRef>();
    } else {
      return type_of(member);
    }
  }
  template <typename Call, typename Member>
  static constexpr std::type_identity<Member> type_of(Member Call::*) {
    return {};
  }
};
template <typename A>
using Parameter = typename decltype(A::parameter())::type;

/// Stands before the arguments that are given by name only.
struct ByName {
  static constexpr std::string_view text = "*";
};

/// A list of them. Join<...> makes one of arguments and lists.
template <typename... A>
struct Arguments {};

template <typename... A, typename... B>
constexpr Arguments<A..., B...> operator+(Arguments<A...>, Arguments<B...>) {
  return {};
}
template <typename... A, typename B>
constexpr Arguments<A..., B> operator+(Arguments<A...>, B) {
  return {};
}
template <typename... Parts>
using Join = decltype((Arguments<>() + ... + Parts()));
template <typename... A>
auto without_marks(Arguments<A...>) {
  return (Arguments<>() + ... + std::conditional_t<std::is_same_v<A, ByName>, Arguments<>, Arguments<A>>());
}

/// From what the dispatcher hands over to a member. An absent optional tensor is nullopt.
template <typename T>
void take(T& member, const T& given) {
  member = given;
}
inline void take(OptionalTensor& member, const Tensor& given) { member = given; }
inline void take(OptionalTensor& member, const OptionalTensor& given) {
  if (given.has_value() && given->defined()) member = given;
}
inline void take(TensorList& member, const std::optional<TensorList>& given) { member = given.value_or(TensorList()); }
inline void take(c10::SymDimVector& member, c10::SymIntArrayRef given) { member.assign(given.begin(), given.end()); }

/// From a member to what the dispatcher takes.
template <typename Parameter, typename T>
decltype(auto) give(const T& member) {
  if constexpr (std::is_same_v<T, OptionalTensor> && std::is_same_v<Parameter, const Tensor&>) {
    return *member;
  } else {
    return (member);
  }
}

/// What an operator gives: its type, and its text in the schema.
template <typename T, Text text_>
struct Returns {
  using Type = T;
  static constexpr std::string_view text = text_.view();
};
using ReturnsTensor = Returns<Tensor, "Tensor">;
using ReturnsNothing = Returns<void, "()">;

/// An operator: the struct of its arguments, its name in the schema (with the overload), what it gives, the arguments.
template <typename Call_, Text name_, typename Returns, typename All, typename Taken = decltype(without_marks(All()))>
struct Operator;

template <typename Call_, Text name_, typename Returns, typename... All, typename... A>
struct Operator<Call_, name_, Returns, Arguments<All...>, Arguments<A...>> {
  using Call = Call_;
  using Result = typename Returns::Type;
  using Taken = Arguments<A...>;
  static constexpr std::string_view full_name = name_.view();
  static constexpr std::string_view name = full_name.substr(0, full_name.find('.'));  // as messages say it
  static constexpr bool writes = (A::is_written || ...);

  static std::string schema() {
    std::string text;
    ((text += c10::str(text.empty() ? "" : ", ", All::text)), ...);
    return c10::str(full_name, "(", text, ") -> ", Returns::text);
  }

  /// Calls the dispatcher, which picks autograd, the device or Meta.
  static Result call(Parameter<A>... given) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow(c10::str("aft::", name).c_str(),
                                                  name == full_name ? "" : full_name.data() + name.size() + 1)
                               .template typed<Result(Parameter<A>...)>();
    return op.call(given...);
  }
  static Result call(const Call& c) { return call(give<Parameter<A>>(c.*A::member)...); }

  /// Registers `body(name, call)` under a dispatch key.
  template <auto body>
  static void implement(torch::Library& m, c10::DispatchKey key) {
    m.impl(full_name.data(), torch::dispatch(key, TORCH_FN(flat<body>)));
  }

 private:
  template <auto body>
  static Result flat(Parameter<A>... given) {
    Call c;
    (take(c.*A::member, given), ...);
    return static_cast<Result>(body(name, c));  // of one that writes, none
  }
};

/// Calls visit(tensor) for the tensors of an argument or result, absent ones undefined; never for others.
template <typename T, typename Visit>
void visit_tensors(const T& value, const Visit& visit) {
  if constexpr (std::is_same_v<T, Tensor>) {
    visit(value);
  } else if constexpr (std::is_same_v<T, OptionalTensor>) {
    if (value.has_value()) {
      visit(*value);
    } else {
      visit(Tensor());
    }
  } else if constexpr (std::is_convertible_v<T, TensorList>) {
    for (const Tensor& t : TensorList(value)) visit(t);
  }
}

/// Results of an operator in one list, and back. A list among them is the last.
template <typename... T>
std::vector<Tensor> flat(const std::tuple<T...>& results) {
  std::vector<Tensor> list;
  const auto append = [&](const Tensor& t) { list.push_back(t); };
  std::apply([&](const auto&... result) { (visit_tensors(result, append), ...); }, results);
  return list;
}
inline std::vector<Tensor> flat(const Tensor& result) { return {result}; }
template <typename Result>
Result unflat(TensorList list) {
  if constexpr (std::is_same_v<Result, Tensor>) {
    return list[0];
  } else {
    Result results;
    const auto next = [&]<typename T>(T& result) {
      if constexpr (std::is_same_v<T, Tensor>) {
        result = list[0];
        list = list.slice(1);
      } else {
        result = list.vec();
      }
    };
    std::apply([&](auto&... result) { (next(result), ...); }, results);
    return results;
  }
}

/// The tensors among these arguments of a call, but those that are written.
template <typename... A, typename C>
std::vector<Tensor> tensors_read(Arguments<A...>, const C& c) {
  std::vector<Tensor> list;
  const auto append = [&](const Tensor& t) { list.push_back(t); };
  ((A::is_written ? void() : visit_tensors(c.*A::member, append)), ...);
  return list;
}

}  // namespace aft::dispatch
