#include "image/png.h"

#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <exception>
#include <span>
#include <string>
#include <utility>

#include "aft/error.h"
#include "io/write_file.h"

// libpng reports an error by a jump to where setjmp() was called. Between the two stands no object with a destructor:
// functions that call libpng own nothing, and what they need is in a Job outside.

namespace aft {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSignature = 8;

/// A file that is read or written.
struct Job {
  png_structp png = nullptr;
  png_infop info = nullptr;
  char problem[256] = "";        // libpng's
  std::exception_ptr exception;  // of our own functions that libpng called
  // Reading.
  std::span<const uint8_t> in;
  std::string name;
  // Writing.
  std::vector<uint8_t> out;
};

[[noreturn]] void stop(png_structp png, png_const_charp message) {
  auto* const job = static_cast<Job*>(png_get_error_ptr(png));
  std::snprintf(job->problem, sizeof job->problem, "%s", message);
  png_longjmp(png, 1);
}

void ignore(png_structp /*png*/, png_const_charp /*message*/) {}

/// Calls work(), of our own, from within libpng. No exception may pass through C.
template <typename Work>
void protect(png_structp png, Job& job, const Work& work) {
  try {
    work();
  } catch (...) {
    job.exception = std::current_exception();
  }
  if (job.exception) png_error(png, "");
}

void read_bytes(png_structp png, png_bytep to, size_t count) {
  Job& job = *static_cast<Job*>(png_get_io_ptr(png));
  protect(png, job, [&] {
    if (count > job.in.size()) {
      throw Error(job.name + ": expected a whole PNG file, got a truncated one; get it again");
    }
    std::copy_n(job.in.data(), count, to);
    job.in = job.in.subspan(count);
  });
}

void append_bytes(png_structp png, png_bytep from, size_t count) {
  Job& job = *static_cast<Job*>(png_get_io_ptr(png));
  protect(png, job, [&] { job.out.insert(job.out.end(), from, from + count); });
}

void flush(png_structp /*png*/) {}

/// The job's pointers of libpng, while it lives.
class Pointers {
 public:
  Pointers(Job& job, bool writes) : job_(job), writes_(writes) {
    const auto create = writes ? png_create_write_struct : png_create_read_struct;
    job.png = create(PNG_LIBPNG_VER_STRING, &job, stop, ignore);
    job.info = job.png == nullptr ? nullptr : png_create_info_struct(job.png);
    if (job.info == nullptr) {
      destroy();
      throw std::bad_alloc();
    }
  }
  ~Pointers() { destroy(); }
  Pointers(const Pointers&) = delete;
  Pointers& operator=(const Pointers&) = delete;

 private:
  void destroy() {
    if (writes_) {
      png_destroy_write_struct(&job_.png, &job_.info);
    } else {
      png_destroy_read_struct(&job_.png, &job_.info, nullptr);
    }
  }

  Job& job_;
  bool writes_;
};

// Each returns false where libpng gave up.

/// What stands after the signature and before the pixels.
bool read_header(Job& job) {
  if (setjmp(png_jmpbuf(job.png)) != 0) return false;
  png_set_read_fn(job.png, &job, read_bytes);
  png_set_sig_bytes(job.png, kSignature);
  // Only what decides the pixels is read. Else memory of whatever size a text or a profile says would be taken.
  png_set_keep_unknown_chunks(job.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_read_info(job.png, job.info);
  return true;
}

/// Asks for 8 bits a value, grey or three colours, without alpha.
bool choose_form(Job& job) {
  if (setjmp(png_jmpbuf(job.png)) != 0) return false;
  png_set_expand(job.png);
  png_set_strip_alpha(job.png);
  png_set_scale_16(job.png);
  png_set_interlace_handling(job.png);
  png_read_update_info(job.png, job.info);
  return true;
}

bool read_pixels(Job& job, png_bytepp rows) {
  if (setjmp(png_jmpbuf(job.png)) != 0) return false;
  png_read_image(job.png, rows);
  png_read_end(job.png, nullptr);
  return true;
}

bool write_all(Job& job, const ImageShape& shape, const uint8_t* values) {
  if (setjmp(png_jmpbuf(job.png)) != 0) return false;
  png_set_write_fn(job.png, &job, append_bytes, flush);
  png_set_IHDR(job.png, job.info, static_cast<png_uint_32>(shape.width), static_cast<png_uint_32>(shape.height), 8,
               shape.channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(job.png, job.info);
  for (int64_t y = 0; y < shape.height; ++y) {
    png_write_row(job.png, values + y * shape.width * shape.channels);
  }
  png_write_end(job.png, nullptr);
  return true;
}

/// Throws what made libpng give up reading.
[[noreturn]] void fail(const Job& job) {
  if (job.exception) std::rethrow_exception(job.exception);
  throw Error(job.name + ": expected a PNG file, got one that is corrupt (" + job.problem + "); get it again");
}

std::vector<png_bytep> rows_of(Picture& picture) {
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < picture.shape.height; ++y) {
    rows.push_back(picture.values.data() + y * picture.shape.width * picture.shape.channels);
  }
  return rows;
}

}  // namespace

std::vector<uint8_t> encode_png(const Picture& picture) {
  const ImageShape& shape = picture.shape;
  constexpr int64_t kMostOnASide = 1'000'000;  // libpng's limit
  for (const int64_t side : {shape.height, shape.width}) {
    if (side < 1 || side > kMostOnASide) {
      throw Error("picture: expected 1 to " + std::to_string(kMostOnASide) + " pixels on a side, got " +
                  text_of(shape));
    }
  }
  if ((shape.channels != 1 && shape.channels != 3) || std::ssize(picture.values) != shape.bytes()) {
    throw Error("picture: expected 1 or 3 channels, and a value for each of every pixel, got " + text_of(shape) +
                " in " + std::to_string(picture.values.size()) + " values");
  }
  Job job;
  const Pointers pointers(job, true);
  if (!write_all(job, shape, picture.values.data())) {
    if (job.exception) std::rethrow_exception(job.exception);
    throw SystemError(std::string("picture: cannot be encoded as PNG: ") + job.problem);
  }
  return std::move(job.out);
}

void write_png(const fs::path& path, const Picture& picture) {
  const std::vector<uint8_t> bytes = encode_png(picture);
  write_file_atomically(path, bytes.data(), bytes.size());
}

bool begins_like_png(std::span<const uint8_t> bytes) {
  return bytes.size() >= kSignature && png_sig_cmp(bytes.data(), 0, kSignature) == 0;
}

Picture decode_png(std::span<const uint8_t> bytes, const std::string& name) {
  if (!begins_like_png(bytes)) throw Error(name + ": expected a PNG file, got something else; convert it to PNG");
  Job job;
  job.in = bytes.subspan(kSignature);
  job.name = name;
  const Pointers pointers(job, false);
  if (!read_header(job)) fail(job);
  Picture picture;
  ImageShape& shape = picture.shape;
  shape.height = png_get_image_height(job.png, job.info);
  shape.width = png_get_image_width(job.png, job.info);
  require_few_pixels(name, shape.height, shape.width);
  if (!choose_form(job)) fail(job);
  shape.channels = png_get_channels(job.png, job.info);
  picture.values.resize(static_cast<size_t>(shape.bytes()));
  std::vector<png_bytep> rows = rows_of(picture);
  if (!read_pixels(job, rows.data())) fail(job);
  return picture;
}

}  // namespace aft
