"Maps of `predict --maps` read back to the bit, by whatever people open them with."

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from anomaly_nb.core.errors import DataError
from anomaly_nb.scoring.float_tiff import write_float_tiff
from anomaly_nb.scoring.submission import half_tiff, read_half_tiff


def plain_read(path):
    "A TIFF's strips by the specification, with the predictor of Adobe's note undone as it is written there."
    data = path.read_bytes()
    at = struct.unpack("<I", data[4:8])[0]
    assert at % 2 == 0
    tags = {}
    for i in range(struct.unpack_from("<H", data, at)[0]):
        tag, _, n, value = struct.unpack_from("<HHII", data, at + 2 + 12 * i)
        tags[tag] = struct.unpack_from(f"<{n}I", data, value) if n > 1 else (value,)
    assert list(tags) == sorted(tags)
    width, rows = tags[256][0], []
    for offset, size in zip(tags[273], tags[279]):
        strip = np.frombuffer(zlib.decompress(data[offset : offset + size]), np.uint8).reshape(-1, 4 * width)
        summed = np.cumsum(strip, axis=1, dtype=np.uint8).reshape(-1, 4, width)
        rows.append(np.ascontiguousarray(summed.transpose(0, 2, 1)).view(">f4")[..., 0])
    assert all(len(r) == tags[278][0] for r in rows[:-1])
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 7), (1025, 1023), (1500, 1400)])
@pytest.mark.parametrize("what", ["noise", "smooth", "constant", "odd"])
def test_every_reader_gives_the_same_bits(shape, what, tmp_path):
    rng = np.random.default_rng(0)
    heat = rng.normal(size=shape).astype(np.float32)
    if what == "smooth":
        heat = cv2.GaussianBlur(heat, (0, 0), 4).reshape(shape)
    if what == "constant":
        heat[:] = 0.25
    if what == "odd":
        heat.flat[:4] = [-0.0, np.finfo(np.float32).tiny / 8, np.finfo(np.float32).max, -np.inf][: heat.size]
    with open(tmp_path / "a.tiff", "wb") as f:
        write_float_tiff(f, heat)
    for read in (
        np.asarray(Image.open(tmp_path / "a.tiff")),
        cv2.imread(str(tmp_path / "a.tiff"), cv2.IMREAD_UNCHANGED),
        plain_read(tmp_path / "a.tiff"),
    ):
        assert read.dtype == np.float32 and read.shape == shape and read.tobytes() == heat.tobytes()


def test_a_map_is_not_held_again(tmp_path):
    import tracemalloc

    heat = np.random.default_rng(0).random((4000, 3000), np.float32)
    tracemalloc.start()
    with open(tmp_path / "a.tiff", "wb") as f:
        write_float_tiff(f, heat)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < heat.nbytes * 0.75  # some strips of 4 MB


def test_what_is_beyond_a_tiff_is_refused(tmp_path, monkeypatch):
    class Large(bytes):
        def __len__(self):
            return 2**31

    monkeypatch.setattr("anomaly_nb.scoring.float_tiff.zlib.compress", lambda *_: Large())
    with open(tmp_path / "a.tiff", "wb") as f, pytest.raises(DataError, match="a TIFF holds 4 GiB; use smaller images"):
        write_float_tiff(f, np.zeros((4000, 1000), np.float32))


def test_the_submission_stays_as_its_server_reads_it(tmp_path):
    half = np.random.default_rng(0).random((7, 5)).astype(np.float16)
    (tmp_path / "a.tiff").write_bytes(half_tiff(half))
    assert np.array_equal(read_half_tiff(tmp_path / "a.tiff"), half)
