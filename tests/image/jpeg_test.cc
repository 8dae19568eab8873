#include "image/jpeg.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "../data/message.h"
#include "../io/temporary_folder.h"
#include "aft/error.h"

namespace aft {
namespace {

using Values = std::vector<uint8_t>;

/// pictures/make.py says where the files are from, and what Pillow makes of them.
std::string file(const std::string& name) { return test::read_all(std::filesystem::path(AFT_PICTURES) / name); }

Picture decode(const std::string& bytes) {
  return decode_jpeg({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "a.jpg");
}

std::string refusal(const std::string& bytes) {
  std::string text = message([&] { static_cast<void>(decode(bytes)); });
  EXPECT_TRUE(text.empty() || text.starts_with("a.jpg: ")) << text;
  return text;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Where the segment of a marker begins, at its 0xff.
size_t find_segment(const std::string& bytes, char marker) {
  const size_t at = bytes.find(std::string{'\xff', marker});
  EXPECT_NE(at, std::string::npos);
  return at;
}

TEST(Jpeg, EqualsPillowBitForBit) {
  for (const char* name : {"grey", "grey_progressive", "444", "422", "420", "progressive", "restarts", "rgb", "cmyk",
                           "ycck", "two_scans"}) {
    SCOPED_TRACE(name);
    const std::string bytes = file(std::string(name) + ".jpg");
    const Picture picture = decode(bytes);
    const bool grey = std::string(name).starts_with("grey") || std::string(name) == "two_scans";
    EXPECT_EQ(picture.shape, (ImageShape{13, 19, grey ? 1 : 3}));
    const std::string pillow = file(std::string(name) + ".rgb");
    EXPECT_EQ(with_channels(picture, 3).values, Values(pillow.begin(), pillow.end()));
    EXPECT_EQ(decode(bytes + "what follows is no matter").values, picture.values);
  }
}

TEST(Jpeg, RefusesWhatIsCutShort) {
  for (const char* name : {"420.jpg", "progressive.jpg", "cmyk.jpg"}) {
    const std::string good = file(name);
    for (size_t length = 3; length < good.size(); ++length) {
      EXPECT_TRUE(contains(refusal(good.substr(0, length)), "truncated")) << name << " " << length;
    }
  }
}

TEST(Jpeg, RefusesWhatIsCorrupt) {
  const std::string good = file("420.jpg");
  const size_t pixels = find_segment(good, '\xda') + 14;
  // A marker in the middle of the pixels: libjpeg alone would warn and go on with grey.
  std::string bad = good;
  bad.replace(pixels + 10, 2, "\xff\xd9");
  EXPECT_TRUE(contains(refusal(bad), "corrupt"));
  bad = good;
  bad[find_segment(good, '\xc0') + 4] = 12;  // bits a value
  EXPECT_TRUE(contains(refusal(bad), "expected a JPEG file of 8 bits a value"));
  bad.replace(find_segment(good, '\xc4'), 2, "\xff\xe4");  // no Huffman table
  EXPECT_TRUE(contains(refusal(bad), "a.jpg: "));
  for (size_t i = 0; i < good.size(); ++i) {  // a picture of some size or an error, never anything else
    bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x24);
    try {
      const Picture picture = decode(bad);
      EXPECT_EQ(std::ssize(picture.values), picture.shape.bytes()) << i;
    } catch (const Error&) {
    }
  }
}

TEST(Jpeg, RefusesHugeSizesBeforeTakingMemory) {
  std::string huge = file("progressive.jpg");
  huge.replace(find_segment(huge, '\xc2') + 5, 4, "\xff\xdc\xff\xdc");  // 65,500 x 65,500, libjpeg's most
  EXPECT_TRUE(contains(refusal(huge), "expected at most 16777216 pixels, got 65500 x 65500"));
  huge.replace(find_segment(huge, '\xc2') + 5, 4, "\xff\xff\xff\xff");
  EXPECT_TRUE(contains(refusal(huge), "a.jpg: "));
  huge.replace(find_segment(huge, '\xc2') + 5, 4, std::string(4, '\0'));
  EXPECT_TRUE(contains(refusal(huge), "a.jpg: "));
}

TEST(Jpeg, RefusesEndlessScans) {
  const std::string good = file("two_scans.jpg");
  const std::string last = good.substr(good.rfind("\xff\xc4"), good.size() - 2 - good.rfind("\xff\xc4"));
  const std::string begin = good.substr(0, good.size() - 2);
  const auto with_scans = [&](int more) {
    std::string bytes = begin;
    for (int i = 0; i < more; ++i) bytes += last;
    return bytes + "\xff\xd9";
  };
  EXPECT_EQ(decode(with_scans(98)).values, decode(good).values);
  EXPECT_TRUE(contains(refusal(with_scans(99)), "expected at most 100 scans, got more"));
  EXPECT_TRUE(contains(refusal(with_scans(5000)), "expected at most 100 scans, got more"));
}

TEST(Jpeg, RefusesWhatIsNoJpeg) {
  for (const std::string& other : {std::string(), std::string("\xff\xd8"), std::string("GIF89a")}) {
    EXPECT_TRUE(contains(refusal(other), "expected a JPEG file, got something else")) << other;
  }
  // The first two of the three components alone: in the frame, and in the scan.
  std::string two = file("420.jpg");
  const std::string frame = two.substr(find_segment(two, '\xc0'), 19);
  two.replace(find_segment(two, '\xc0'), 19,
              frame.substr(0, 3) + "\x0e" + frame.substr(4, 5) + "\x02" + frame.substr(10, 6));
  const std::string scan = two.substr(find_segment(two, '\xda'), 14);
  two.replace(find_segment(two, '\xda'), 14, scan.substr(0, 3) + "\x0a\x02" + scan.substr(5, 4) + scan.substr(11, 3));
  EXPECT_TRUE(contains(refusal(two), "expected 1, 3 or 4 values a pixel, got 2"));
}

}  // namespace
}  // namespace aft
