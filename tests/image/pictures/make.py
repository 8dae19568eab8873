#!/usr/bin/env python3
"""Writes the JPEG files of this folder anew, by Pillow, and beside each what Pillow decodes it to, as NAME.rgb: the
bytes of convert("RGB"). Needs Pillow; the tests need the files alone. `from_libjpeg` are files that Pillow cannot
write, made once by libjpeg-turbo's encoder: of these only NAME.rgb is written."""

import math
import pathlib

from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
WIDTH, HEIGHT = 19, 13  # no multiple of a block
FROM_LIBJPEG = ("ycck", "two_scans")


def picture(mode):
    """Slopes and waves, with a sharp edge."""
    image = Image.new(mode, (WIDTH, HEIGHT))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            waves = [128 + 100 * math.sin(0.4 * x * (c + 1) + 0.3 * y) for c in range(4)]
            values = tuple(int(value) if x < 12 else 255 - 17 * y for value in waves)
            image.putpixel((x, y), values[: len(image.getbands())] if len(image.getbands()) > 1 else values[0])
    return image


def main():
    colors, grey, inks = picture("RGB"), picture("L"), picture("CMYK")
    files = {
        "grey": (grey, {}),
        "grey_progressive": (grey, {"progressive": True}),
        "444": (colors, {"subsampling": "4:4:4", "quality": 90}),
        "422": (colors, {"subsampling": "4:2:2", "quality": 60}),
        "420": (colors, {"subsampling": "4:2:0"}),
        "progressive": (colors, {"progressive": True}),
        "restarts": (colors, {"restart_marker_blocks": 1}),
        "rgb": (colors, {"keep_rgb": True}),
        "cmyk": (inks, {"quality": 80}),
    }
    for name, (image, options) in files.items():
        image.save(HERE / f"{name}.jpg", **options)
    for name in (*files, *FROM_LIBJPEG):
        with Image.open(HERE / f"{name}.jpg") as image:
            (HERE / f"{name}.rgb").write_bytes(image.convert("RGB").tobytes())


if __name__ == "__main__":
    main()
