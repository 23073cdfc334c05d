"""A PNG holds the same values whoever decodes it, and is refused in the same words."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from anomaly_nb.core.errors import DataError
from anomaly_nb.data import values
from anomaly_nb.data.images import read_image, read_upright
from anomaly_nb.data.values import read_values

spng_decode = pytest.importorskip("imagecodecs", reason="needs the extra fast (imagecodecs)").spng_decode
NOISE = np.random.default_rng(0).integers(0, 256, (21, 34, 4)).astype(np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    rows: bytes, colour: int = 2, depth: int = 8, interlaced: int = 0, before: bytes = b"", after: bytes = b""
) -> bytes:
    "A PNG of 34 x 21 from filtered rows or a compressed stream."
    header = struct.pack(">IIBBBBB", 34, 21, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", rows) + chunk(b"IEND", b"") + after


def rows(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + line.tobytes() for line in pixels)


def adam7(pixels: np.ndarray) -> bytes:
    steps = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return b"".join(rows(pixels[top::down, left::across]) for top, left, down, across in steps)


RGB = rows(NOISE[..., :3])
PACKED = zlib.compress(RGB)
MADE = {
    "colour": png(PACKED),
    "grey": png(zlib.compress(rows(NOISE[..., 0])), colour=0),
    "transparent": png(zlib.compress(rows(NOISE)), colour=6),
    "grey and alpha": png(zlib.compress(rows(NOISE[..., :2])), colour=4),
    "one colour transparent": png(PACKED, before=chunk(b"tRNS", struct.pack(">HHH", *map(int, NOISE[0, 0, :3])))),
    "grey, one transparent": png(
        zlib.compress(rows(NOISE[..., 0])), colour=0, before=chunk(b"tRNS", struct.pack(">H", int(NOISE[0, 0, 0])))
    ),
    "grey of four bits": png(zlib.compress(rows(NOISE[:, :17, 0])), colour=0, depth=4),
    "grey of one bit": png(zlib.compress(rows(NOISE[:, :5, 0])), colour=0, depth=1),
    "grey of sixteen bits": png(zlib.compress(rows(NOISE[..., :2])), colour=0, depth=16),
    "palette": png(zlib.compress(rows(NOISE[..., 0] % 7)), colour=3, before=chunk(b"PLTE", NOISE[0, :7, :3].tobytes())),
    "interlaced": png(zlib.compress(adam7(NOISE[..., :3])), interlaced=1),
    "with gamma": png(PACKED, before=chunk(b"gAMA", struct.pack(">I", 45455))),
    "rotated": png(PACKED, before=chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")),
    "in two streams": png(PACKED[:500]).replace(chunk(b"IEND", b""), b"")
    + chunk(b"IDAT", PACKED[500:])
    + chunk(b"IEND", b""),
    "bytes after the end": png(PACKED, after=b"more"),
    "more rows than it has": png(zlib.compress(RGB + bytes(5000))),
    "too few rows": png(zlib.compress(RGB[: -2 * 103])),
    "no checksum": png(PACKED[:-4]),
    "unknown filter": png(zlib.compress(b"\7" + RGB[1:])),
    "cut": png(PACKED)[:900],
    "a bit changed": png(PACKED).replace(PACKED[300:310], bytes([PACKED[300] ^ 1]) + PACKED[301:310]),
    "no end": png(PACKED)[:-12],
    "no pixels": png(b""),
}


@pytest.mark.parametrize("name", MADE)
def test_both_decoders_read_and_refuse_alike(tmp_path, monkeypatch, name):
    path = tmp_path / "image.png"
    path.write_bytes(MADE[name])

    def outcome():
        try:
            image, clipped, info = read_upright(path)
            return np.asarray(image), read_values(path), read_image(path), clipped, info
        except DataError as e:
            return str(e)

    monkeypatch.setattr(values, "_png_decoder", lambda: spng_decode)
    fast = outcome()
    monkeypatch.setattr(values, "_png_decoder", lambda: None)
    slow = outcome()
    if isinstance(slow, str):
        assert fast == slow
    else:
        assert not isinstance(fast, str), fast
        assert all(np.array_equal(a, b) for a, b in zip(fast[:3], slow[:3], strict=True)) and fast[3:] == slow[3:]
    if name in ("colour", "with gamma", "interlaced", "in two streams"):
        assert np.array_equal(fast[0], NOISE[..., :3])


def test_plain_files_take_the_fast_decoder(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        values, "_png_decoder", lambda: lambda content: seen.append(len(content)) or np.zeros((21, 34, 3), np.uint8)
    )
    for name in ("colour", "palette", "interlaced", "one colour transparent", "grey of sixteen bits"):
        (tmp_path / "image.png").write_bytes(MADE[name])
        read_image(tmp_path / "image.png")
    assert seen == [len(MADE["colour"])]
    Image.fromarray(NOISE[..., :3]).save(tmp_path / "image.jpg")
    read_image(tmp_path / "image.jpg")
    much = png(PACKED, before=chunk(b"prVt", bytes(2**21)))
    (tmp_path / "image.png").write_bytes(much)  # read piece by piece
    read_image(tmp_path / "image.png")
    assert len(seen) == 1
