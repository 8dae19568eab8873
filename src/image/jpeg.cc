#include "image/jpeg.h"

#include <csetjmp>
#include <cstddef>
#include <cstdio>
// These two need what <cstdio> declares.
#include <jerror.h>
#include <jpeglib.h>

#include "aft/error.h"

// libjpeg reports an error by calling stop(), which jumps to where setjmp() was called. Between the two stands no
// object with a destructor: functions that call libjpeg own nothing, and what they need is in a Job outside.

namespace aft {
namespace {

constexpr int kMostScans = 100;  // what programs write has a dozen; each walks over the whole picture

/// A file that is read.
struct Job {
  Job() = default;
  ~Job() { jpeg_destroy_decompress(&jpeg); }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  jmp_buf back{};
  bool too_many_scans = false;
  char problem[JMSG_LENGTH_MAX] = "";  // libjpeg's
};

Job& job_of(j_common_ptr jpeg) { return *static_cast<Job*>(jpeg->client_data); }

[[noreturn]] void stop(j_common_ptr jpeg) {
  Job& job = job_of(jpeg);
  jpeg->err->format_message(jpeg, job.problem);
  std::longjmp(job.back, 1);
}

/// A level below 0 is a warning: of corrupt data, but for some that say nothing of the pixels.
void hear(j_common_ptr jpeg, int level) {
  if (level >= 0) return;
  switch (jpeg->err->msg_code) {
    case JWRN_ADOBE_XFORM:
    case JWRN_BOGUS_ICC:
    case JWRN_JFIF_MAJOR:
      return;
    default:
      stop(jpeg);
  }
}

void ignore(j_common_ptr /*jpeg*/) {}

void count_scans(j_common_ptr jpeg) {
  Job& job = job_of(jpeg);
  if (job.jpeg.input_scan_number <= kMostScans) return;
  job.too_many_scans = true;
  std::longjmp(job.back, 1);
}

// Each returns false where libjpeg gave up.

/// What stands before the pixels.
bool read_header(Job& job, const uint8_t* bytes, size_t count) {
  job.jpeg.err = jpeg_std_error(&job.errors);
  job.jpeg.client_data = &job;
  job.errors.error_exit = stop;
  job.errors.emit_message = hear;
  job.errors.output_message = ignore;
  job.progress.progress_monitor = count_scans;
  if (setjmp(job.back) != 0) return false;
  jpeg_create_decompress(&job.jpeg);
  job.jpeg.progress = &job.progress;
  jpeg_mem_src(&job.jpeg, bytes, static_cast<unsigned long>(count));
  jpeg_read_header(&job.jpeg, TRUE);
  return true;
}

bool read_pixels(Job& job, uint8_t* values) {
  if (setjmp(job.back) != 0) return false;
  jpeg_start_decompress(&job.jpeg);
  const size_t row_values =
      static_cast<size_t>(job.jpeg.output_width) * static_cast<size_t>(job.jpeg.out_color_components);
  while (job.jpeg.output_scanline < job.jpeg.output_height) {
    JSAMPROW row = values + job.jpeg.output_scanline * row_values;
    jpeg_read_scanlines(&job.jpeg, &row, 1);
  }
  jpeg_finish_decompress(&job.jpeg);
  return true;
}

/// Throws what made libjpeg give up.
[[noreturn]] void fail(const Job& job, const std::string& name) {
  if (job.too_many_scans) {
    throw Error(name + ": expected at most " + std::to_string(kMostScans) + " scans, got more; save it anew");
  }
  switch (job.errors.msg_code) {
    case JERR_OUT_OF_MEMORY:
      throw SystemError(name + ": cannot be read: not enough memory to decode it");
    case JWRN_JPEG_EOF:
    case JERR_INPUT_EMPTY:
      throw Error(name + ": expected a whole JPEG file, got a truncated one; get it again");
    default:
      throw Error(name + ": expected a JPEG file of 8 bits a value, got one that is corrupt or of another kind (" +
                  job.problem + "); get it again, or save it anew");
  }
}

/// 4 values a pixel, 255 for no ink, become 3.
void to_rgb(std::vector<uint8_t>& values) {
  const size_t pixels = values.size() / 4;
  for (size_t i = 0; i < pixels; ++i) {
    const int black = values[4 * i + 3];
    for (size_t c = 0; c < 3; ++c) {  // to the nearest
      values[3 * i + c] = static_cast<uint8_t>((2 * values[4 * i + c] * black + 255) / 510);
    }
  }
  values.resize(3 * pixels);
}

}  // namespace

bool begins_like_jpeg(std::span<const uint8_t> bytes) {
  return bytes.size() >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff;
}

Picture decode_jpeg(std::span<const uint8_t> bytes, const std::string& name) {
  if (!begins_like_jpeg(bytes)) throw Error(name + ": expected a JPEG file, got something else; convert it to JPEG");
  Job job;
  if (!read_header(job, bytes.data(), bytes.size())) fail(job, name);
  jpeg_decompress_struct& jpeg = job.jpeg;
  require_few_pixels(name, jpeg.image_height, jpeg.image_width);
  const int components = jpeg.num_components;
  if (components != 1 && components != 3 && components != 4) {
    throw Error(name + ": expected 1, 3 or 4 values a pixel, got " + std::to_string(components) +
                "; save it as grey or in colours");
  }
  // Of what libjpeg cannot name, it refuses the conversion.
  jpeg.out_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
  Picture picture;
  picture.shape = {jpeg.image_height, jpeg.image_width, components};
  picture.values.resize(static_cast<size_t>(picture.shape.bytes()));
  if (!read_pixels(job, picture.values.data())) fail(job, name);
  if (components == 4) {
    to_rgb(picture.values);
    picture.shape.channels = 3;
  }
  return picture;
}

}  // namespace aft
