// Every operation against what Pillow and torch made of the same pictures: pillow_cases.txt, written by
// write_pillow_cases.py.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "image/augment/affine.h"
#include "image/augment/tones.h"
#include "image/crop.h"
#include "image/resize.h"

namespace aft {
namespace {

template <typename T>
T next(std::istream& words) {
  T word{};
  words >> word;
  EXPECT_FALSE(words.fail());
  return word;
}

Resampling next_method(std::istream& words) {
  const auto name = next<std::string>(words);
  if (name == "nearest") return Resampling::kNearest;
  if (name == "bilinear") return Resampling::kBilinear;
  EXPECT_EQ(name, "bicubic");
  return Resampling::kBicubic;
}

Picture next_picture(std::istream& words) {
  Picture picture;
  words >> picture.shape.height >> picture.shape.width >> picture.shape.channels;
  const auto hex = next<std::string>(words);
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    picture.values.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  EXPECT_EQ(std::ssize(picture.values), picture.shape.bytes());
  return picture;
}

using Operation = std::function<Picture(const Picture&)>;

Operation in_place(const std::function<void(Picture&)>& change) {
  return [change](Picture picture) {
    change(picture);
    return picture;
  };
}

Operation with_number(std::istream& words, void (*change)(Picture&, double)) {
  const auto number = next<double>(words);
  return in_place([=](Picture& picture) { change(picture, number); });
}

Operation with_whole(std::istream& words, void (*change)(Picture&, int64_t)) {
  const auto number = next<int64_t>(words);
  return in_place([=](Picture& picture) { change(picture, number); });
}

Operation moving(std::istream& words, void (*change)(Picture&, double, Resampling, const Color&)) {
  const auto number = next<double>(words);
  const Resampling method = next_method(words);
  return in_place([=](Picture& picture) { change(picture, number, method, {124, 116, 104}); });
}

/// Reads the arguments.
Operation next_operation(const std::string& name, std::istream& words) {
  if (name == "auto_contrast") return in_place(auto_contrast);
  if (name == "equalize") return in_place(equalize);
  if (name == "invert") return in_place(invert);
  if (name == "posterize") return with_whole(words, posterize);
  if (name == "solarize") return with_whole(words, solarize);
  if (name == "solarize_add") return with_whole(words, solarize_add);
  if (name == "adjust_color") return with_number(words, adjust_color);
  if (name == "adjust_contrast") return with_number(words, adjust_contrast);
  if (name == "adjust_brightness") return with_number(words, adjust_brightness);
  if (name == "adjust_sharpness") return with_number(words, adjust_sharpness);
  if (name == "rotate") return moving(words, rotate);
  if (name == "shear_x") return moving(words, shear_x);
  if (name == "shear_y") return moving(words, shear_y);
  if (name == "translate_x") return moving(words, translate_x);
  if (name == "translate_y") return moving(words, translate_y);
  const auto height = next<int64_t>(words);
  const auto width = next<int64_t>(words);
  if (name == "evaluation") {
    const auto fraction = next<double>(words);
    const Resampling method = next_method(words);
    return [=](const Picture& picture) { return fit_for_evaluation(picture, height, width, fraction, method); };
  }
  const Resampling method = next_method(words);
  if (name == "resize") return [=](const Picture& picture) { return resize(picture, height, width, method); };
  EXPECT_EQ(name, "resize_box");
  Box box;
  words >> box.top >> box.left >> box.bottom >> box.right;
  return [=](const Picture& picture) { return resize(picture, height, width, method, box); };
}

int64_t worst_difference(const Picture& a, const Picture& b) {
  int64_t worst = 0;
  for (size_t i = 0; i < a.values.size(); ++i) worst = std::max<int64_t>(worst, std::abs(a.values[i] - b.values[i]));
  return worst;
}

void check_floats(std::istream& words) {
  const Resampling method = next_method(words);
  std::vector<int64_t> size(5);
  for (int64_t& along : size) words >> along;
  std::vector<float> values(static_cast<size_t>(size[0] * size[1] * size[2]));
  for (float& value : values) words >> value;
  const auto results = resize_floats(values, size[0], size[1], size[2], size[3], size[4], method);
  EXPECT_EQ(std::ssize(results), size[3] * size[4] * size[2]);
  // Both round the exact value, of at most 4 here, once: to 24 bits here and nine digits there.
  for (const float result : results) EXPECT_NEAR(result, next<double>(words), 4 * 0x1p-24 + 1e-8);
}

TEST(Pillow, EveryCaseIsWithinOneLevel) {
  std::ifstream file(AFT_PILLOW_CASES);
  ASSERT_TRUE(file) << AFT_PILLOW_CASES;
  std::map<std::string, Picture> pictures;
  std::map<std::string, int> cases;
  std::map<std::string, int> equal;
  for (std::string line; std::getline(file, line);) {
    SCOPED_TRACE(line);
    std::istringstream words(line);
    const auto name = next<std::string>(words);
    if (name == "#") continue;
    ++cases[name];
    if (name == "floats") {
      check_floats(words);
    } else if (name == "picture") {
      const auto of = next<std::string>(words);
      pictures[of] = next_picture(words);
    } else {
      const Operation operation = next_operation(name, words);
      const Picture result = operation(pictures.at(next<std::string>(words)));
      const Picture expected = next_picture(words);
      EXPECT_EQ(result.shape, expected.shape);
      EXPECT_EQ(result.values.size(), expected.values.size());
      if (HasFailure()) return;
      EXPECT_LE(worst_difference(result, expected), 1);
      equal[name] += result.values == expected.values;
    }
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_EQ(cases.size(), 20U);  // none has been left out
  for (const auto& [name, count] : equal) {
    RecordProperty(name, std::to_string(count) + " of " + std::to_string(cases[name]) + " equal bit for bit");
  }
}

}  // namespace
}  // namespace aft
