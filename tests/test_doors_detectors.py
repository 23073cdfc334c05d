"What a stranger found at the doors of a detector: transparent images, damaged detectors, tables and exports."

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.data.datasets import index_csv
from anomaly_nb.data.samples import draw_sample
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.service import read_detectors
from tests.commands import FIT, fails, parts, run


def transparent(folder):
    "Five files with alpha, one of which is opaque."
    folder.mkdir(parents=True, exist_ok=True)
    image = np.dstack([draw_sample("nut", "good", 50, size=48)[0], np.full((48, 48), 255, np.uint8)])
    Image.fromarray(image).save(folder / "opaque.png")
    image[10:20, 10:20, 3] = 0
    Image.fromarray(image).save(folder / "rgba.png")
    Image.fromarray(image).convert("LA").save(folder / "la.png")
    Image.fromarray(image[..., :3]).quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(image).save(folder / "web.webp", lossless=True)
    return folder


def test_every_door_says_once_that_images_are_transparent(fitted, tmp_path):
    new = transparent(tmp_path / "new")
    said = "4 images are transparent, the first la.png: what is transparent is read as black"
    Detector.load(fitted / "det").save(tmp_path / "det")
    doors = {
        "fit": ("fit", new, "--out", tmp_path / "other", *FIT),
        "predict": ("predict", tmp_path / "det", new, "--out", tmp_path / "p.csv"),
        "update": ("update", tmp_path / "det", new),
    }
    for door, words in doors.items():
        assert run(*words)[1].count(f"note: {said}") == 1, door
    code, answer, _ = run("inspect", new)
    (line,) = [line for line in answer.splitlines() if "transparent" in line]
    assert code == 0 and line.startswith("transparent, and read as black there: 4, la.png, palette.png")
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False).set_index("image_path")["note"]
    expected = {"opaque.png": False, "rgba.png": True, "la.png": True, "palette.png": True, "web.webp": True}
    assert {p.rpartition("/")[2]: "is transparent: " in n for p, n in table.items()} == expected
    (served,) = read_detectors(fitted / "det").values()
    for name, seen in expected.items():
        answer = served.predict((new / name).read_bytes(), "image/x", None, tmp_path)
        assert ("transparent is read as black" in answer.note) is seen, name


def test_sixteen_bits_of_colour_may_be_transparent_too(tmp_path):
    cv2 = pytest.importorskip("cv2")
    from anomaly_nb.data.values import is_transparent

    values = np.full((9, 9, 4), 65535, np.uint16)
    cv2.imwrite(str(tmp_path / "opaque.png"), values)
    values[3:, :, 3] = 40000
    cv2.imwrite(str(tmp_path / "glass.png"), values)
    (tmp_path / "cut.png").write_bytes((tmp_path / "glass.png").read_bytes()[:60])
    assert [is_transparent(tmp_path / f"{n}.png") for n in ("opaque", "glass", "cut")] == [False, True, False]


FORMULAS = ("=cmd()", "+1", "-1", "@sum", "＝wide", "\tab", "\x1b[31mred", "-", "plain")


def test_a_table_of_decisions_holds_no_formula_and_no_control_character(fitted, tmp_path, monkeypatch):
    """A path that a spreadsheet would run is written so that it is text there, and the same file everywhere else."""
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    for i, name in enumerate(FORMULAS):
        Image.fromarray(draw_sample("nut", "good", 30 + i, size=48)[0]).save(f"./{name}.png")
    (tmp_path / "new/=cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    table = tmp_path / "p.csv"
    code, said, _ = run("predict", fitted / "det", ".", "--out", table)
    assert code in (3, 4) and "10 images" in said
    text = table.read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    rows = pd.read_csv(table, keep_default_na=False)
    for column in ("image_path", "normal_path", "error", "note"):
        assert not rows[column].str.match(r"[=+\-@＝＋－＠\t\r]").any(), column
    assert rows["error"].str.startswith("./=cut.png: ").sum() == 1
    assert {"./=cmd().png", "./-1.png", "./＝wide.png", "\\tab.png", "\\x1b[31mred.png", "plain.png"} <= set(rows["image_path"])
    there = rows[~rows["image_path"].str.contains("\\", regex=False) & (rows["error"] == "")]
    (tmp_path / "new/index.csv").write_text("image_path,split,label\n" + "".join(f"{p},test,0\n" for p in there["image_path"]))
    assert len(index_csv(tmp_path / "new/index.csv")) == len(there) == 7  # every one is found again
    words = ("predict", fitted / "det", ".", "--out", table, "--watch", "--every", 0.05, "--idle", 0.3)
    assert "0 images" in run(*words)[1] and table.read_text(encoding="utf-8") == text  # none is taken for new


def floats(folder, high, change=None, low=0.0):
    "Four images of 32-bit floats from `low` to `high`."
    (folder / "good").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        values = (low + (high - low) * rng.random((48, 48))).astype(np.float32)
        if change is not None:
            values[0, i] = change
        Image.fromarray(values).save(folder / f"good/{i}.tif")
    return folder


@pytest.mark.parametrize(
    "high, low, change, code, verdict, warning",
    [
        (1, 0, None, 0, "fit can learn from 4 normal images", ""),
        (4000, 0, None, 0, "fit can learn from 4", "65535 is taken for white: 17 of 256 grey levels are used"),
        (0.001, 0, None, 0, "fit can learn from 4", "1 is taken for white: 1 of 256 grey levels is used"),
        (1.4, 0, None, 0, "fit can learn from 4", "higher ones are read as white too; give --intensity window:0,1.4"),
        (1, 0, np.nan, 1, "fit refuses it as it stands: 4 of 4 normal training images cannot be read", ""),
        (1, -1, None, 1, "fit refuses it as it stands: {root}/good/", ""),
        (1e7, 0, None, 1, "fit refuses it as it stands: {root}/good/", ""),
    ],
)
def test_inspect_says_what_becomes_of_floats(tmp_path, high, low, change, code, verdict, warning):
    """Values that a customary range makes black, or cuts off, are said; values without one are no wrong folder."""
    root = floats(tmp_path / "parts", high, change, low)
    ended, said, _ = run("inspect", root)
    assert ended == code and said.startswith(f"{root}: {verdict.format(root=root)}"), said
    (line,) = [x for x in said.splitlines() if x.startswith("WARNING")] or [""]
    assert (warning in line) if warning else not line
    assert "no image data set" not in said and "not an image data set" not in said and "intensity=" not in said
    if code == 0:
        fitted = run("fit", root, "--out", tmp_path / "det", *FIT)
        assert fitted[0] == (high == 0.001) and "intensity=" not in fitted[1], fitted  # all black: refused, with the reason
        assert line in fitted[1] if line else "WARNING" not in fitted[1]
    if change is not None:
        assert "1 NaN or infinite value, the first at (0, 1), row and column from 0" in said


def test_the_time_of_a_choice_is_measured_and_corrected(tmp_path, monkeypatch, capfd):
    """What is not measured is not claimed; the fit after the choice is expected by its own recipe, folds counted in."""
    monkeypatch.setenv("ANOMALY_NB_PROGRESS", "")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # of another test: a notebook is told nothing
    (tmp_path / "good").mkdir()
    for i in range(12):  # two nearly alike of each part
        image = draw_sample("nut", "good", i // 2, size=48)[0] ^ (np.random.default_rng(i).random((48, 48, 3)) < 0.5)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"good/part{i // 2}_{i % 2}.png")
    words = ("fit", tmp_path / "good", "--out", tmp_path / "det", "--backbone", "filters", "--image-size", "32")
    code, said, error = run(*words, "--groups", "^(part[0-9]+)_")
    said += capfd.readouterr().err
    assert code == 0, (said, error)
    assert re.search(r"features and copies with anomalies take about \S+ s; what recipes take is said after the first", said)
    assert re.search(r"the first of 8 recipes took \S+ s: 7 others take about \S+ (s|min) if each takes as long", said)
    assert re.search(r"learning by \S+ from 12 images in 6 groups, left out in 6 folds, takes about ", said)
    assert " s in all" not in said and "nearly the same" not in said  # parts of one group are alike, which is meant


def test_a_detector_is_no_folder_of_images(fitted, tmp_path, capsys):
    for words in (("inspect", fitted / "det"), ("fit", fitted / "det", "--out", tmp_path / "d", *FIT)):
        said = fails(capsys, *words)
        assert f"{fitted / 'det'}: is a detector of `anomaly-nb fit`" in said and "good" not in said


def test_a_refused_update_says_nothing_is_learned(fitted, tmp_path, capsys):
    """Images that cannot be read keep all from being learned, those too that the detector calls anomalous."""
    Detector.load(fitted / "det").save(tmp_path / "det")
    (tmp_path / "new").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(tmp_path / "new/odd.png")
    (tmp_path / "new/text.png").write_text("no image")
    said = fails(capsys, "update", tmp_path / "det", tmp_path / "new")
    assert said.endswith("text.png: damaged or not an image; restore or remove it\n") and "learned as normal" not in said
    (tmp_path / "new/text.png").unlink()
    assert "odd.png first); it is learned as normal" in run("update", tmp_path / "det", tmp_path / "new")[1]


def test_evaluate_takes_the_folder_of_normal_images(fitted, tmp_path, capsys):
    parts(tmp_path / "test/a", range(60, 62)), parts(tmp_path / "test/b", range(70, 72))
    words = ("evaluate", fitted / "det", tmp_path / "test", "--figures", tmp_path / "figures")
    assert "--normal" in fails(capsys, *words)
    missing = fails(capsys, *words, "--normal", "c")
    assert "no folder is clearly normal" not in missing and "c" in missing


def test_what_an_update_adds_has_its_role(fitted, tmp_path):
    Detector.load(fitted / "det").save(tmp_path / "det")
    assert run("update", tmp_path / "det", parts(tmp_path / "more", range(90, 92)))[0] == 0
    table = pd.read_csv(tmp_path / "det/training.csv", keep_default_na=False)
    assert table["role"].tolist() == ["normal"] * 10 and (table["sha256"] != "").all()
    folders = json.loads(run("inspect", tmp_path / "more", "--json")[1])["folders"]
    assert [f["role"] for f in folders] == ["normal images"]
