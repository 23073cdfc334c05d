"What a stranger found at the doors of a detector: transparent images, damaged detectors, tables and exports."

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.data.datasets import index_csv
from anomaly_nb.data.samples import draw_sample
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.service import read_detectors
from tests.commands import FIT, run


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
