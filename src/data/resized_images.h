#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/images.h"

namespace aft {

/// The images of another set in another size: augmented in their own, then brought to the view's as for evaluation.
class ResizedImages : public ImageSet {
 public:
  /// Throws aft::Error unless both have as many channels.
  ResizedImages(std::unique_ptr<const ImageSet> images, const ImageView& view);

  [[nodiscard]] int64_t size(Split split) const override { return images_->size(split); }
  [[nodiscard]] int64_t bytes(Split split, int64_t index) const override;
  Label read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const override;
  [[nodiscard]] std::vector<std::string> skipped() const override { return images_->skipped(); }
  [[nodiscard]] uint64_t checksum(Split split) const override { return images_->checksum(split); }

 private:
  std::unique_ptr<const ImageSet> images_;
  ImageView view_;
};

}  // namespace aft
