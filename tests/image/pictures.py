"""PNG files by the standard's text, without libpng, and the images in a grid: for the tests of programs."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, channels, values):
    """A PNG file, 8 bits a value, each row as it is."""
    row = width * channels
    rows = b"".join(b"\0" + values[y * row:(y + 1) * row] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def paeth(left, up, corner):
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


def pixels(data):
    """(width, height, channels, values) of a PNG file of 8 bits a value."""
    assert data[:8] == SIGNATURE
    at, packed, header, last = 8, b"", None, None
    while at < len(data):
        (size,) = struct.unpack(">I", data[at:at + 4])
        last, body = data[at + 4:at + 8], data[at + 8:at + 8 + size]
        assert data[at:at + 12 + size] == chunk(last, body)
        if last == b"IHDR":
            header = struct.unpack(">IIBBBBB", body)
        packed += body if last == b"IDAT" else b""
        at += 12 + size
    assert last == b"IEND"
    width, height, *rest = header
    assert rest[0] == 8 and rest[2:] == [0, 0, 0]
    channels = {0: 1, 2: 3}[rest[1]]
    stride = width * channels
    raw = zlib.decompress(packed)
    assert len(raw) == height * (stride + 1)
    above, values = bytearray(stride), b""
    for y in range(height):
        kind, row = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for i in range(stride):
            left, corner = (row[i - channels], above[i - channels]) if i >= channels else (0, 0)
            guess = (0, left, above[i], (left + above[i]) // 2, paeth(left, above[i], corner))[kind]
            row[i] = (row[i] + guess) % 256
        above, values = row, values + bytes(row)
    return width, height, channels, values


def cells(data, rows, columns):
    """The images of `rows` x `columns` pixels in a grid, row by row, each as its values; all lines must be white."""
    width, height, channels, values = pixels(data)
    across, down = (width - 1) // (columns + 1), (height - 1) // (rows + 1)
    assert (width, height) == (across * (columns + 1) + 1, down * (rows + 1) + 1)
    for y in range(height):
        for x in range(width):
            if x % (columns + 1) == 0 or y % (rows + 1) == 0:
                at = (y * width + x) * channels
                assert values[at:at + channels] == b"\xff" * channels

    def cell(row, column):
        out = b""
        for y in range(rows):
            at = ((1 + row * (rows + 1) + y) * width + 1 + column * (columns + 1)) * channels
            out += values[at:at + columns * channels]
        return out

    return [[cell(row, column) for column in range(across)] for row in range(down)]
