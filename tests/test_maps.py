"Maps of `predict --maps` read back to the bit, by whatever people open them with."

import cv2
import numpy as np
import pytest
from PIL import Image

from anomaly_nb.data import write_samples
from anomaly_nb.scoring import Detector, predict
from anomaly_nb.scoring.submission import half_tiff, read_half_tiff


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = write_samples(tmp_path_factory.mktemp("line"), n_train=6, n_good=1, n_defect=1, size=96) / "nut"
    model = Detector("knn", "filters", image_size=64).fit(sorted((folder / "train/good").glob("*.png")))
    return model, min((folder / "test/good").glob("*.png"))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 7), (1025, 1023), (1500, 1400)])
@pytest.mark.parametrize("what", ["noise", "smooth", "constant", "odd"])
def test_every_reader_gives_the_same_bits(line, shape, what, tmp_path, monkeypatch):
    model, path = line
    rng = np.random.default_rng(0)
    heat = rng.normal(size=shape).astype(np.float32)
    if what == "smooth":
        heat = cv2.GaussianBlur(heat, (0, 0), 4).reshape(shape)
    if what == "constant":
        heat[:] = 0.25
    if what == "odd":
        heat.flat[:3] = [-0.0, np.finfo(np.float32).tiny / 8, np.finfo(np.float32).max][: heat.size]
    monkeypatch.setattr(predict, "prediction_map", lambda detector, prediction: heat)
    monkeypatch.setattr(predict, "overlay", lambda *_: np.zeros((2, 2, 3), np.uint8))
    (prediction,) = predict.predict_files(model, [path])
    tiff, shown = predict.write_maps(model, prediction, tmp_path, "a")
    for read in (np.asarray(Image.open(tiff)), cv2.imread(str(tiff), cv2.IMREAD_UNCHANGED)):
        assert read.dtype == np.float32 and read.shape == shape and read.tobytes() == heat.tobytes()
    assert shown.is_file()


def test_a_map_takes_less_than_its_floats(line, tmp_path):
    model, path = line
    (prediction,) = predict.predict_files(model, [path])
    tiff, _ = predict.write_maps(model, prediction, tmp_path, "a")
    with Image.open(tiff) as image:
        assert image.info["compression"] == "tiff_adobe_deflate" and image.tag_v2[317] == 3
    assert tiff.stat().st_size < 0.9 * 4 * 96 * 96


def test_the_submission_stays_as_its_server_reads_it(tmp_path):
    half = np.random.default_rng(0).random((7, 5)).astype(np.float16)
    (tmp_path / "a.tiff").write_bytes(half_tiff(half))
    assert np.array_equal(read_half_tiff(tmp_path / "a.tiff"), half)
