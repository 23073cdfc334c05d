"What makes the numbers of an evaluation doubtful stands beside them, in the page and in the command's output."

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from anomaly_nb.core.errors import DataError
from anomaly_nb.data import inspect_folder, read_index
from anomaly_nb.data.inspection import inspection_lines
from anomaly_nb.data.samples import draw_sample
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.view import unseen
from tests.commands import FIT, fails, parts, run

CHANGES = {
    "inverted": (lambda m: 255 - m, "4 masks of 4 cover more than 80 % of their image, the first 0.png"),
    "labels": (lambda m: np.where(m > 0, 2, 1).astype(np.uint8), "4 masks of 4 cover more than 80 %"),
    "empty": (lambda m: m * 0, "4 masks of 4 are empty, the first 0.png: there are no pixel metrics"),
    "sound": (lambda m: m, ""),
}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    parts(folder / "parts/good", range(20, 40))
    assert run("fit", folder / "parts", "--out", folder / "det", *FIT)[0] == 0
    return folder / "det"


@pytest.fixture
def tested(tmp_path):
    "Four normal and four anomalous images, with masks."
    folder = tmp_path / "tested"
    parts(folder / "good", range(4))
    for sub in ("scratch", "masks/scratch"):
        (folder / sub).mkdir(parents=True)
    for i in range(4):
        image, mask = draw_sample("nut", "scratch", i, size=48)
        Image.fromarray(image).save(folder / f"scratch/{i}.png")
        Image.fromarray((mask > 0).astype(np.uint8) * 255).save(folder / f"masks/scratch/{i}.png")
    return folder


def change_masks(folder, change):
    for path in (folder / "masks/scratch").iterdir():
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


@pytest.mark.parametrize("name", CHANGES)
def test_masks_that_are_read_and_mean_nothing(detector, tested, name):
    change, words = CHANGES[name]
    change_masks(tested, change)
    result = Detector.load(detector).evaluate(read_index("folder", tested, n_train=1.0))
    assert (words in result.verdict() and bool(result.mask_notes)) == bool(words), result.verdict()
    if "80 %" in words:  # in the words of the inspection
        assert result.mask_notes[0].partition("(")[2].partition(")")[0] in str(inspect_folder(tested)["suspicious"])


def test_evaluate_says_them_in_its_output_and_page(detector, tested, tmp_path):
    change_masks(tested, CHANGES["inverted"][0])
    shutil.copy(tested / "masks/scratch/0.png", tested / "masks/scratch/lone.png")
    (tested / "stray.png").write_bytes((tested / "good/0.png").read_bytes())
    code, said, _ = run("evaluate", detector, tested, "--figures", tmp_path / "fig")
    lines = CHANGES["inverted"][1], "skipped 1: mask without an image, first masks/scratch/lone.png", "skipped 1: beside"
    page = next((tmp_path / "fig").rglob("report.html")).read_text()
    assert code == 0 and all(line in said and line in page for line in lines), said


def test_masks_of_another_size(detector, tested, tmp_path, capsys):
    change_masks(tested, lambda m: np.kron(m, np.ones((2, 2), np.uint8)))
    with pytest.raises(DataError, match=r"masks/scratch/0.png: of another size .*: 4 masks, .*on_missing=keep"):
        read_index("folder", tested)
    assert len(read_index("folder", tested, on_missing="drop")) == 4
    model = Detector.load(detector)
    result = model.evaluate(unseen(read_index("folder", tested, on_missing="keep"), model)[0])
    assert len(result) == 8 and "image_auroc" in result.image_metrics() and result.pixel_metrics() == {}
    code, said, _ = run("evaluate", detector, tested, "--figures", tmp_path / "fig")
    line = "of another size than their image: 4 masks, the first 0.png 96 x 96 for 0.png 48 x 48"
    assert code == 0 and line in said and "image_auroc" in said and "pixel_auroc" not in said
    assert "--on-missing keep" in fails(capsys, "evaluate", detector, tested, "--on-missing", "raise")
    assert any(line in each for each in inspect_folder(tested)["reading"])


def test_one_mask_of_another_size_leaves_the_others(detector, tested):
    Image.fromarray(np.ones((9, 9), np.uint8)).save(tested / "masks/scratch/0.png")
    metrics = Detector.load(detector).evaluate(read_index("folder", tested, on_missing="keep", n_train=1.0)).pixel_metrics()
    assert metrics["images_without_mask"] == 1 and metrics["pixel_auroc"] > 0.5


def test_a_leaky_split_is_said_with_the_numbers(tmp_path):
    parts(tmp_path / "sp/train/good", range(20, 32))
    parts(tmp_path / "sp/test/good", range(4))
    parts(tmp_path / "sp/test/scratch", range(4), "scratch")
    for i in (20, 21):
        shutil.copy(tmp_path / f"sp/train/good/{i}.png", tmp_path / f"sp/test/good/{i}.png")
    values = {"dataset": "folder", "root": tmp_path / "sp", "on_missing": "keep", "image_size": 48, "recipe": "placed"}
    words = [w for k, v in values.items() for w in ("-p", f"{k}={v}")]
    code, said, _ = run("report", "image_anomaly", *words, "-p", f"cache={tmp_path}/cache", "--figures", tmp_path / "fig")
    assert code == 0 and "WARNING: 2 test images are also in training, the first 20.png" in said
    stored = json.loads(next((tmp_path / "fig").rglob("verdict.json")).read_text())
    assert any(s.startswith("WARNING: 2 test images") for s in stored["sentences"])


def test_an_inspection_by_a_brief_name_skips_nothing(tmp_path, monkeypatch):
    parts(tmp_path / "sp/train/good", range(4))
    parts(tmp_path / "sp/test/dent", range(2))
    monkeypatch.chdir(tmp_path)
    for name in ("sp", "./sp/", tmp_path / "sp"):
        lines = inspection_lines(inspect_folder(name))
        assert "nothing skipped" in lines and not any(line.startswith("skipped") for line in lines), lines


def test_defects_alone_are_tested(detector, tested, tmp_path, capsys):
    "Recall at a threshold that stands needs no normal images; a folder of them is asked for where one is learned from."
    shutil.rmtree(tested / "good")
    code, said, _ = run("evaluate", detector, tested, "--figures", tmp_path / "fig")
    assert code == 0 and "recall: " in said and "pixel_auroc" in said, said
    assert "All labelled images are anomalous, so there is no AUROC, and no rate of false positives." in said
    assert "image_auroc" not in said and "false_alarm_rate" not in said
    assert "put images of normal parts into" in fails(capsys, "fit", tested, "--out", tmp_path / "det", *FIT)
    (tested / "scratch").rename(tested / "batch7")  # which may be normal ones
    assert "no folder is clearly normal" in fails(capsys, "evaluate", detector, tested, "--on-missing", "keep")


def test_normal_images_alone_are_tested(detector, tested, tmp_path):
    shutil.rmtree(tested / "scratch")
    shutil.rmtree(tested / "masks")
    code, said, _ = run("evaluate", detector, tested, "--figures", tmp_path / "fig")
    assert code == 0 and "false_alarm_rate: " in said and "recall: " not in said, said
    assert "All labelled images are normal, so there is no AUROC, and no recall." in said


@pytest.mark.parametrize("command", ["fit", "evaluate", "report"])
def test_a_table_in_place_of_a_folder(detector, tested, tmp_path, capsys, command):
    table = tmp_path / "t.csv"
    table.write_text("image_path,split,label\ntested/good/0.png,train,0\n")
    words = {
        "fit": ["fit", table, "--out", tmp_path / "det", *FIT],
        "evaluate": ["evaluate", detector, table],
        "report": ["report", "image_anomaly", "-p", "dataset=folder", "-p", f"root={table}", "--figures", tmp_path / "f"],
    }[command]
    mend = "-p dataset=csv takes" if command == "report" else "--dataset csv takes a table of images"
    assert mend in fails(capsys, *words)
