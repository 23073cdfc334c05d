"Several images of one part count once: in threshold, promise, p-values, card, update, service and export."

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from anomaly_nb.scoring import Detector, predict_files
from tests.commands import run

PARTS, EACH = 6, 4


def write(folder, parts, seed):
    "Images of parts, those of one part nearly alike."
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for part in range(parts):
        look = 128 + 60 * gaussian_filter(rng.normal(size=(64, 64, 3)), (3, 3, 0)) / 0.1 * 0.4
        for i in range(EACH):
            image = np.clip(look + rng.normal(0, 2, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / f"part{part:02d}_{i}.png")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    place = tmp_path_factory.mktemp("groups")
    write(place / "parts/good", PARTS, 0)
    write(place / "new", 3, 1)
    words = "--recipe", "knn", "--backbone", "filters", "--image-size", 64, "--groups", "^(part[0-9]+)_"
    code, said, _ = run("fit", place / "parts", "--out", place / "detector", *words)
    assert code == 0, said
    return place, said


def test_fit_says_how_many_groups_promise_what(fitted):
    place, said = fitted
    threshold = Detector.load(place / "detector").decision_threshold()
    assert threshold.parameters["groups"] == PARTS and threshold.n == PARTS * EACH
    assert threshold.rate() == pytest.approx(1 / (PARTS + 1), abs=1e-6)
    assert f"{PARTS * EACH} held-out normal training images in {PARTS} groups" in said
    assert f"{PARTS} groups can promise 14.3 % false alarms at best, not 5.0 %; 19 could" in said
    assert f"in {PARTS} groups" in (place / "detector/detector.html").read_text()
    plain = Detector("knn", backbone="filters", image_size=64).fit(Detector.load(place / "detector").paths_)
    assert plain.decision_threshold().rate() == pytest.approx(1 / (PARTS * EACH + 1), abs=1e-6)


def test_p_values_and_decisions_agree_everywhere(fitted, tmp_path):
    place, _ = fitted
    detector = Detector.load(place / "detector")
    stripes = np.tile(np.uint8([0, 0, 255, 255]), (64, 16))[..., None].repeat(3, axis=2)
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    normal = [*(place / "new").iterdir(), *(place / "parts/good").iterdir()]
    images = sorted(str(p) for p in [*normal, tmp_path / "stripes.png"])
    predictions = list(predict_files(detector, images))
    p, called = np.array([r.p_value for r in predictions]), np.array([r.anomalous for r in predictions])
    assert p.min() == pytest.approx(1 / (PARTS + 1)) and called.any() and not called.all()
    assert (called == (p <= detector.decision_threshold().rate() + 1e-6)).all()
    table = detector.evaluate(pd.DataFrame({"image_path": images})).decisions()
    assert np.allclose(table["p_value"], p) and (table["anomalous"] == called).all()
    assert set(detector.evaluate(images).calibration_scores()["group"]) == {f"part{i:02d}" for i in range(PARTS)}
    pytest.importorskip("onnxruntime")
    detector.export(tmp_path / "line")
    for image, one, decision in [*zip(images, p, called)][::-9]:
        script = [sys.executable, str(tmp_path / "line/predict.py"), image]
        answer = subprocess.run(script, capture_output=True, text=True, check=False)
        said = json.loads(answer.stdout)
        assert said["p_value"] == pytest.approx(one) and said["anomalous"] == bool(decision), answer


def test_service_and_its_calibration_count_groups(fitted, tmp_path):
    pytest.importorskip("fastapi")
    from anomaly_nb.calibration import CalibrationStore
    from anomaly_nb.scoring.service import Served

    place, _ = fitted
    store = CalibrationStore(tmp_path / "store")
    served = Served("part", Detector.load(place / "detector"), store=store)
    assert served.card().false_alarms == pytest.approx(1 / (PARTS + 1), abs=1e-6)


def test_update_keeps_groups_by_the_same_rule(fitted, tmp_path):
    place, _ = fitted
    write(tmp_path / "more", 9, 2)
    for file in (tmp_path / "more").iterdir():
        file.rename(file.with_name("part1" + file.name[4:]))
    detector = Detector.load(place / "detector").update(sorted(str(p) for p in (tmp_path / "more").iterdir()))
    assert detector.decision_threshold().parameters["groups"] == PARTS + 9


def test_fit_points_at_names_of_parts_and_its_advice_works(fitted, tmp_path):
    place, _ = fitted
    words = "--recipe", "knn", "--backbone", "filters", "--image-size", 64
    code, said, _ = run("fit", place / "parts", "--out", tmp_path / "plain", *words)
    assert code == 0 and f"part00_0.png and part00_1.png look like several images of one of {PARTS} parts" in said
    advised = said.partition("--groups '")[2].partition("'")[0]
    code, said, _ = run("fit", place / "parts", "--out", tmp_path / "grouped", *words, "--groups", advised)
    assert code == 0 and "look like several images" not in said
    assert Detector.load(tmp_path / "grouped").decision_threshold().parameters["groups"] == PARTS


def test_update_names_an_image_without_a_group_before_it_computes(fitted, tmp_path):
    place, _ = fitted
    Image.open(next((place / "new").iterdir())).save(tmp_path / "n0.png")
    code, said, error = run("update", place / "detector", tmp_path / "n0.png")
    assert code == 1 and "n0.png does not match; every image needs a group" in str(error), said


def test_all_brackets_name_the_group(fitted, tmp_path):
    "Not the first alone, which would leave out together what was told apart."
    place, _ = fitted
    words = "--recipe", "knn", "--backbone", "filters", "--image-size", 64, "--groups", "^(part[0-9]+)_([0-1])?"
    code, said, _ = run("fit", place / "parts", "--out", tmp_path / "det", *words)
    assert code == 0 and f"in {3 * PARTS} groups" in said  # _0, _1 and the two others together
    labels = set(Detector.load(tmp_path / "det").groups_)
    assert {"part00/0", "part00/1", "part00/"} <= labels and len(labels) == 3 * PARTS
    manifest = json.loads((tmp_path / "det/detector.json").read_text())
    assert sorted(set(manifest["groups"])) == sorted(labels)
