"""A small set of images in the IDX format, and the recipes that learn from it, for the tests of this folder."""

import random
import struct

HEIGHT, WIDTH = 4, 6

RECIPE = """
[model]
model = "{model}"
height = 4
width = 6
colors = 1
layers = 2
channels = 16
mlp_channels = 32
{options}

[mixer]
name = "{mixer}"

[data]
format = "idx"
path = "images"
holdout = 10
flip = true
jitter = 10

[train]
steps = 20
batch = 3
lr = 1e-2
warmup = 4
eval_every = 8
checkpoint_every = 5
log_every = 1
threads = 1
"""

PIXELS = RECIPE.format(model="pixel_lm", options="", mixer="aft_simple")
CLASSES = RECIPE.format(model="classifier", options="patch = 2\nclasses = 3", mixer="aft_full")


def example(generator):
    """An image of vertical stripes that its label, 0 to 2, makes wide or narrow, and the label."""
    label = generator.randrange(3)
    bright = generator.randrange(100, 200)
    return [bright if column // (label + 1) % 2 else 20 for _ in range(HEIGHT) for column in range(WIDTH)], label


def write_images(folder, train=50, test=11):
    folder.mkdir()
    generator = random.Random(2)
    for name, count in (("train", train), ("t10k", test)):
        examples = [example(generator) for _ in range(count)]
        pixels = bytes(value for image, _ in examples for value in image)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, HEIGHT, WIDTH) + pixels)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 0x801, count) + bytes(label for _, label in examples))
