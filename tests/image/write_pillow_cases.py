#!/usr/bin/env python3
"""Writes pillow_cases.txt, what Pillow and torch make of small pictures: the truth of pillow_test.cc.

    python3 tests/image/write_pillow_cases.py

For a Python that has Pillow 12, numpy and torch, which the tests do not ask for. (Pillow 13 filters the columns of some
pictures ahead of the rows, which rounds otherwise, and refuses to posterize to 0 bits.) The file's first line has the
versions.
Each line is a case, words with blanks between them; values are hexadecimal, [height, width, channels]:

    picture NAME HEIGHT WIDTH CHANNELS VALUES
    OPERATION ARGUMENTS ... NAME HEIGHT WIDTH CHANNELS VALUES       what it makes of the picture
    floats METHOD HEIGHT WIDTH CHANNELS NEW_HEIGHT NEW_WIDTH INPUTS ... RESULTS ...
"""

import math
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageEnhance, ImageOps

FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
           "bicubic": Image.Resampling.BICUBIC}
MOVING = ("bilinear", "bicubic")
FILL = (124, 116, 104)
SHAPES = {"dot": (1, 1, 3), "grey_dot": (1, 1, 1), "line": (1, 6, 3), "column": (5, 1, 1), "small": (3, 2, 3),
          "grey": (9, 16, 1), "color": (8, 11, 3)}
LARGE = {"large_grey": (18, 25, 1), "large": (20, 24, 3)}  # equalize changes nothing below 256 pixels


def smooth(rng, shape):
    """Values with edges, slopes and noise, not of the whole range, so that every operation has something to do."""
    height, width, channels = shape
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    values = 90 + 9 * x - 7 * y + 25 * c + np.where((x + 2 * y) % 7 < 3, 40, 0) + rng.integers(-25, 26, shape)
    return np.clip(values, 20, 240).astype(np.uint8)


def image_of(values):
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def words_of(values):
    values = np.asarray(values)
    values = values.reshape(values.shape[0], values.shape[1], -1)
    return f"{values.shape[0]} {values.shape[1]} {values.shape[2]} {values.tobytes().hex()}"


def fill_of(image):
    return FILL if image.mode == "RGB" else Image.new("RGB", (1, 1), FILL).convert("L").getpixel((0, 0))


def solarize_add(image, amount):
    return image.point([min(255, i + amount) if i < 128 else i for i in range(256)] * len(image.getbands()))


def moved(matrix_of):
    """Image.transform() by the matrix of (argument, width, height)."""

    def operation(image, argument, method):
        matrix = matrix_of(float(argument), *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, FILTERS[method], fillcolor=fill_of(image))

    return operation


def evaluation(image, height, width, fraction, method):
    """timm's for a square, as torchvision carries it out."""
    assert height == width
    size = math.floor(height / fraction)
    shorter = min(image.size)
    image = image.resize((size * image.width // shorter, size * image.height // shorter), FILTERS[method])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


OPERATIONS = [  # name, arguments, function
    ("auto_contrast", [()], ImageOps.autocontrast),
    ("equalize", [()], ImageOps.equalize),
    ("invert", [()], ImageOps.invert),
    ("posterize", [(0,), (1,), (4,), (7,), (8,)], ImageOps.posterize),
    ("solarize", [(0,), (26,), (128,), (256,)], ImageOps.solarize),
    ("solarize_add", [(0,), (99,), (110,)], solarize_add),
    ("adjust_color", [(0.1,), (0.19,), (1.0,), (1.81,)], lambda image, f: ImageEnhance.Color(image).enhance(f)),
    ("adjust_contrast", [(0.1,), (0.19,), (1.81,)], lambda image, f: ImageEnhance.Contrast(image).enhance(f)),
    ("adjust_brightness", [(0.1,), (0.19,), (1.81,)], lambda image, f: ImageEnhance.Brightness(image).enhance(f)),
    ("adjust_sharpness", [(0.1,), (0.19,), (1.0,), (1.9,)], lambda image, f: ImageEnhance.Sharpness(image).enhance(f)),
    ("rotate", [(d, m) for d in (0, 27.3, -30, 90, 123) for m in MOVING],
     lambda image, d, m: image.rotate(d, FILTERS[m], fillcolor=fill_of(image))),
    ("shear_x", [(f, m) for f in (0.27, -0.3) for m in MOVING], moved(lambda f, w, h: (1, f, 0, 0, 1, 0))),
    ("shear_y", [(f, m) for f in (0.27, -0.3) for m in MOVING], moved(lambda f, w, h: (1, 0, 0, f, 1, 0))),
    ("translate_x", [(f, m) for f in (0.405, -0.25) for m in MOVING], moved(lambda f, w, h: (1, 0, f * w, 0, 1, 0))),
    ("translate_y", [(f, m) for f in (0.405, -0.25) for m in MOVING], moved(lambda f, w, h: (1, 0, 0, 0, 1, f * h))),
    ("resize", [(h, w, m) for h, w in ((1, 1), (4, 7), (8, 11), (13, 5)) for m in FILTERS],
     lambda image, h, w, m: image.resize((w, h), FILTERS[m])),
    ("evaluation", [(5, 5, 1.0, "bicubic"), (4, 4, 0.875, "bilinear"), (7, 7, 0.9, "bicubic")], evaluation),
]
BOXES = [(0, 0, 5, 7), (1, 2, 8, 11), (0.5, 1.25, 7.75, 10), (3.1, 0.2, 3.4, 9.9)]  # top, left, bottom, right
FLOATS = [((7, 5, 2), (3, 4)), ((7, 5, 1), (15, 11)), ((4, 6, 3), (9, 2)), ((1, 1, 2), (3, 2)), ((14, 14, 1), (24, 24))]


def main():
    rng = np.random.default_rng(7)
    lines = [f"# written by write_pillow_cases.py: Pillow {PIL.__version__}, torch {torch.__version__.split('+')[0]}"]
    pictures = {name: smooth(rng, shape) for name, shape in (SHAPES | LARGE).items()}
    lines += [f"picture {name} {words_of(values)}" for name, values in pictures.items()]
    for operation, all_arguments, function in OPERATIONS:
        for arguments in all_arguments:
            for name in SHAPES | LARGE if operation in ("auto_contrast", "equalize") else SHAPES:
                result = function(image_of(pictures[name]), *arguments)
                lines.append(" ".join(map(str, (operation, *arguments, name, words_of(result)))))
    for top, left, bottom, right in BOXES:
        for method, resampling in FILTERS.items():
            result = image_of(pictures["color"]).resize((6, 9), resampling, (left, top, right, bottom))
            lines.append(f"resize_box 9 6 {method} {top} {left} {bottom} {right} color {words_of(result)}")
    for shape, size in FLOATS:
        values = rng.standard_normal(shape).astype(np.float32)
        planes = torch.from_numpy(values).permute(2, 0, 1)[None].double()
        for method in MOVING:
            result = torch.nn.functional.interpolate(planes, size, mode=method, antialias=True, align_corners=False)
            numbers = [*values.ravel(), *result[0].permute(1, 2, 0).ravel().tolist()]
            lines.append(" ".join(map(str, ("floats", method, *shape, *size, *(f"{x:.9g}" for x in numbers)))))
    (Path(__file__).parent / "pillow_cases.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
