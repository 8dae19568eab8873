#include "aft/io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "aft/error.h"
#include "temporary_folder.h"

namespace aft {
namespace {

template <typename T>
TensorView view(const std::string& dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
  return {dtype, std::move(shape), reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(T)};
}

/// A file of a given header, padded as writers do, and data; header length as given or right.
std::string file_bytes(std::string header, const std::string& data, uint64_t length = 0) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (length == 0) length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

class Safetensors : public testing::Test {
 protected:
  /// The message that a file of these bytes is refused with, "" if it opens.
  std::string refusal(const std::string& bytes) {
    std::filesystem::remove(folder_ / "file");  // a file cut to nothing and written again is flushed to the disk
    test::write_all(folder_ / "file", bytes);
    try {
      const SafetensorsFile file(folder_ / "file");
      // Whatever opens must be readable to its last byte.
      uint64_t sum = 0;
      for (const auto& [name, tensor] : file.tensors()) {
        std::vector<std::byte> values(tensor.bytes);
        file.read(tensor, values.data());
        for (const std::byte byte : values) sum += static_cast<uint64_t>(byte);
      }
      EXPECT_LE(sum, 255 * bytes.size());
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  void expect_refused(const std::string& bytes, const std::string& part) {
    const std::string message = refusal(bytes);
    EXPECT_NE(message, "") << bytes.substr(8, 200);
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_NE(message.find("file"), std::string::npos) << "names the file: " << message;
  }
  std::string small_file() {
    const std::vector<float> a = {1, 2, 3, 4, 5, 6};
    const std::vector<double> b = {0.5};
    const std::vector<uint8_t> c = {7, 8, 9};
    write_safetensors(folder_ / "small",
                      {{"a", view("F32", {2, 3}, a)}, {"b", view("F64", {}, b)}, {"c", view("U8", {3}, c)}},
                      {{"format", "aft"}, {"config", R"({"layers": 4})"}});
    return test::read_all(folder_ / "small");
  }

  test::TemporaryFolder folder_;
};

TEST_F(Safetensors, WhatIsWrittenIsReadBack) {
  small_file();
  const SafetensorsFile file(folder_ / "small");
  ASSERT_EQ(file.tensors().size(), 3U);
  const TensorEntry& a = file.tensors().at("a");
  EXPECT_EQ(a.dtype, "F32");
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));
  ASSERT_EQ(a.bytes, 24U);
  float six = 0;
  file.read(a, 5 * sizeof(float), sizeof six, &six);
  EXPECT_EQ(six, 6.0F);
  double half = 0;
  file.read(file.tensors().at("b"), &half);
  EXPECT_EQ(half, 0.5);
  EXPECT_TRUE(file.tensors().at("b").shape.empty());
  uint8_t c[3] = {};
  file.read(file.tensors().at("c"), c);
  EXPECT_EQ(c[2], 9);
  EXPECT_EQ(file.metadata().at("config"), R"({"layers": 4})");
}

TEST_F(Safetensors, LayoutIsTheFormats) {
  const std::string bytes = small_file();
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0U);
  EXPECT_EQ(bytes[8], '{');
  EXPECT_EQ(bytes.size(), 8 + length + 24 + 8 + 3);
  // The widest elements come first, so that each tensor is aligned to its own.
  EXPECT_NE(bytes.find(R"("b":{"data_offsets":[0,8],"dtype":"F64","shape":[]})"), std::string::npos) << bytes;
  EXPECT_NE(bytes.find(R"("a":{"data_offsets":[8,32],"dtype":"F32","shape":[2,3]})"), std::string::npos) << bytes;
}

TEST_F(Safetensors, EmptyFilesAndEmptyTensorsAreFine) {
  write_safetensors(folder_ / "none", {}, {});
  EXPECT_TRUE(SafetensorsFile(folder_ / "none").tensors().empty());
  const std::vector<float> nothing;
  write_safetensors(folder_ / "empty", {{"x", view("F32", {3, 0, 2}, nothing)}, {"y", view("F32", {0}, nothing)}}, {});
  EXPECT_EQ(SafetensorsFile(folder_ / "empty").tensors().at("x").bytes, 0U);
}

TEST_F(Safetensors, MoveKeepsTheFileOpen) {
  small_file();
  SafetensorsFile first(folder_ / "small");
  const SafetensorsFile second(std::move(first));
  float one = 0;
  second.read(second.tensors().at("a"), 0, sizeof one, &one);
  EXPECT_EQ(one, 1.0F);
}

TEST_F(Safetensors, AFileThatShrinksWhileItIsReadIsAnError) {
  const std::string bytes = small_file();
  const SafetensorsFile file(folder_ / "small");
  float a[6] = {};
  file.read(file.tensors().at("a"), a);
  std::filesystem::resize_file(folder_ / "small", bytes.size() - 20);  // another process writes over it
  try {
    file.read(file.tensors().at("a"), a);
    FAIL() << "expected an Error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("became shorter"), std::string::npos) << e.what();
  }
}

TEST_F(Safetensors, WriterChecksWhatItIsGiven) {
  const std::vector<float> a = {1, 2};
  const auto write = [&](const std::string& name, const TensorView& tensor) {
    write_safetensors(folder_ / "x", {{name, tensor}}, {});
  };
  EXPECT_THROW(write("a", view("F32", {3}, a)), Error);
  EXPECT_THROW(write("a", view("F31", {2}, a)), Error);
  EXPECT_THROW(write("a", view("F32", {-2}, a)), Error);
  EXPECT_THROW(write("a", view("F32", {int64_t{1} << 62, int64_t{1} << 62}, a)), Error);
  EXPECT_THROW(write("__metadata__", view("F32", {2}, a)), Error);
  EXPECT_THROW(write("\xff\xfe", view("F32", {2}, a)), Error);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x"));
}

TEST_F(Safetensors, AFileCutAnywhereIsRefused) {
  const std::string whole = small_file();
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_NE(refusal(whole.substr(0, length)), "") << "cut to " << length << " of " << whole.size();
  }
  EXPECT_EQ(refusal(whole), "");
  EXPECT_NE(refusal(whole + 'x'), "");
}

// A flipped bit may leave a valid file (a letter of a name); it may never crash, and what opens is in bounds.
TEST_F(Safetensors, AFlippedBitOfTheHeaderNeverCrashes) {
  const std::string whole = small_file();
  uint64_t length = 0;
  std::memcpy(&length, whole.data(), 8);
  int64_t refused = 0;
  for (size_t byte = 0; byte < 8 + length; ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string broken = whole;
      broken[byte] = static_cast<char>(broken[byte] ^ (1 << bit));
      refused += refusal(broken).empty() ? 0 : 1;
    }
  }
  EXPECT_GT(refused, 500);
}

TEST_F(Safetensors, HeaderLengthIsChecked) {
  expect_refused("", "bytes");
  expect_refused("1234567", "bytes");
  expect_refused(file_bytes("", ""), "not a safetensors file");
  expect_refused(file_bytes("{}", "", 9), "truncated");
  expect_refused(file_bytes("{}", "", 90'000'000), "truncated");
  expect_refused(file_bytes("{}", "", 200'000'000), "not a safetensors file");
  expect_refused(file_bytes("{}", "", std::numeric_limits<uint64_t>::max()), "not a safetensors file");
  expect_refused(std::string(8, '\xff') + "{}", "not a safetensors file");
  expect_refused("PK\3\4 a zip archive, for example", "not a safetensors file");
  EXPECT_EQ(refusal(file_bytes("{}", "")), "");
}

TEST_F(Safetensors, JsonIsChecked) {
  expect_refused(file_bytes("{]", ""), "not JSON");
  expect_refused(file_bytes(R"({"a)", ""), "not JSON");
  expect_refused(file_bytes("{} {}", ""), "not JSON");
  expect_refused(file_bytes("{\"\xff\": 1}", ""), "not JSON");
  expect_refused(file_bytes("{\"a\":" + std::string(1'000'000, '['), ""), "nests deeper");
  std::string objects = "{";
  for (int i = 0; i < 100'000; ++i) objects += R"("a":{)";
  expect_refused(file_bytes(objects, ""), "nests deeper");
  expect_refused(file_bytes(R"({"a": 3})", ""), "expected an object");
  expect_refused(file_bytes(R"({"__metadata__": []})", ""), "__metadata__");
  expect_refused(file_bytes(R"({"__metadata__": {"x": 1}})", ""), "not a string");
}

TEST_F(Safetensors, FieldsAreChecked) {
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"a": {"dtype": )" + dtype + R"(, "shape": )" + shape + R"(, "data_offsets": )" + offsets + "}}";
  };
  const std::string data(8, '\1');
  EXPECT_EQ(refusal(file_bytes(entry(R"("F32")", "[2]", "[0, 8]"), data)), "");
  expect_refused(file_bytes(entry(R"("F33")", "[2]", "[0, 8]"), data), "unknown dtype");
  expect_refused(file_bytes(entry("32", "[2]", "[0, 8]"), data), "dtype: expected a string");
  expect_refused(file_bytes(entry(R"("F32")", "2", "[0, 8]"), data), "shape: expected an array");
  expect_refused(file_bytes(entry(R"("F32")", "[-2]", "[0, 8]"), data), "whole numbers");
  expect_refused(file_bytes(entry(R"("F32")", "[2.0]", "[0, 8]"), data), "whole numbers");
  expect_refused(file_bytes(entry(R"("F32")", "[[2]]", "[0, 8]"), data), "");
  expect_refused(file_bytes(entry(R"("F32")", "[9223372036854775808, 0]", "[0, 0]"), data), "whole numbers");
  expect_refused(file_bytes(entry(R"("F32")", "[99999999999999999999]", "[0, 8]"), data), "whole numbers");
  expect_refused(file_bytes(entry(R"("F32")", "[4294967296, 4294967296]", "[0, 0]"), data), "overflows");
  expect_refused(file_bytes(entry(R"("F32")", "[4611686018427387906]", "[0, 8]"), data), "overflows");
  expect_refused(file_bytes(entry(R"("F32")", "[3]", "[0, 8]"), data), "takes 12 bytes");
  expect_refused(file_bytes(entry(R"("F32")", "[2]", "[0]"), data), "two whole numbers");
  expect_refused(file_bytes(entry(R"("F32")", "[2]", "[0, -8]"), data), "two whole numbers");
  expect_refused(file_bytes(entry(R"("F32")", "[2]", "[8, 0]"), data), "do not lie inside");
  expect_refused(file_bytes(entry(R"("F32")", "[2]", "[8, 16]"), data), "do not lie inside");
  expect_refused(file_bytes(entry(R"("F32")", "[2]", "[18446744073709551608, 18446744073709551615]"), data),
                 "do not lie inside");
  expect_refused(file_bytes(R"({"a": {"dtype": "F32", "shape": [2]}})", data), "\"data_offsets\" is missing");
  expect_refused(file_bytes(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "x": 1}})", data),
                 "unknown key");
  expect_refused(file_bytes(R"({"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", data),
                 "twice");
}

TEST_F(Safetensors, OverlapsHolesAndDuplicatesAreRefused) {
  const auto u8 = [](const std::string& name, int begin, int end) {
    return '"' + name + R"(": {"dtype": "U8", "shape": [)" + std::to_string(end - begin) + R"(], "data_offsets": [)" +
           std::to_string(begin) + ", " + std::to_string(end) + "]}";
  };
  const std::string data(8, '\1');
  EXPECT_EQ(refusal(file_bytes("{" + u8("a", 4, 8) + "," + u8("b", 0, 4) + "}", data)), "");
  expect_refused(file_bytes("{" + u8("a", 0, 5) + "," + u8("b", 4, 8) + "}", data), "overlaps");
  expect_refused(file_bytes("{" + u8("a", 0, 8) + "," + u8("b", 0, 8) + "}", data), "overlaps");
  expect_refused(file_bytes("{" + u8("a", 0, 8) + "," + u8("b", 3, 5) + "}", data), "overlaps");
  expect_refused(file_bytes("{" + u8("a", 0, 3) + "," + u8("b", 4, 8) + "}", data), "hole");
  expect_refused(file_bytes("{" + u8("a", 1, 8) + "}", data), "hole");
  expect_refused(file_bytes("{" + u8("a", 0, 7) + "}", data), "8 follow the header");
  expect_refused(file_bytes("{" + u8("a", 0, 4) + "," + u8("a", 4, 8) + "}", data), "twice");
}

TEST_F(Safetensors, UnalignedTensorsAreRefused) {
  // One byte before the floats: no writer does this since the format asks for alignment, but the header allows it.
  const std::string header =
      R"({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}})";
  expect_refused(file_bytes(header, "12345"), "multiple of its element size");
}

TEST_F(Safetensors, WhatIsNotAFileIsRefused) {
  EXPECT_THROW(SafetensorsFile(folder_ / "missing"), Error);
  EXPECT_THROW(SafetensorsFile{folder_.path()}, Error);
  EXPECT_THROW(SafetensorsFile("/dev/null"), Error);
}

}  // namespace
}  // namespace aft
