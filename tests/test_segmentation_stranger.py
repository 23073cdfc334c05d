"""Scenes, maps and logits of one's own through `street`: what does not fit is named with its mend, and never hidden."""

import contextlib
import io
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_nb.cli.main import main
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.order import path_key
from anomaly_nb.segmentation.promise import promise_study
from anomaly_nb.segmentation.evaluation import StreetEvaluation
from anomaly_nb.segmentation.network import OwnNetwork
from anomaly_nb.segmentation.readers import open_streets
from anomaly_nb.segmentation.methods import run_methods


def street(*arguments):
    "A command's exit code and all that it prints."
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), pytest.raises(SystemExit) as ending:
        main(["street", *map(str, arguments)])
    return ending.value.code or 0, " ".join(text.getvalue().split())


def frames(root, names, peak=1.0):
    "Frames and one score map each."
    for i, name in enumerate(names):
        for part, suffix in (("flat", ".png"), ("fm", ".npy")):
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            path = root / part / f"{name}{suffix}"
            if part == "flat":
                Image.new("RGB", (8, 6), (i, 0, 0)).save(path)
            else:
                np.save(path, np.full((6, 8), peak if i else 1.0, np.float32))


@pytest.mark.parametrize("form", ["smiyc", "fishyscapes"])
def test_frames_of_one_name_do_not_overwrite_each_other(tmp_path, form):
    frames(tmp_path, ["a/0", "b/0"])
    rc, said = street("submit", tmp_path / "fm", tmp_path / "subx", "--images", tmp_path / "flat", "--form", form)
    assert rc == 2 and "a/0 and b/0: two frames of one name" in said and not (tmp_path / "subx").exists()


def test_two_images_of_one_frame_are_named(tmp_path):
    frames(tmp_path, ["0", "1"])
    Image.new("RGB", (8, 6)).save(tmp_path / "flat" / "0.jpg")
    rc, said = street("submit", tmp_path / "fm", tmp_path / "subx", "--images", tmp_path / "flat")
    assert rc == 2 and "0.jpg" in said and "0.png" in said


def test_a_submission_is_whole_or_absent(tmp_path):
    frames(tmp_path, ["a/0", "a/1"], peak=5.88e5)
    out = tmp_path / "subx"
    rc, said = street("submit", tmp_path / "fm", out, "--images", tmp_path / "flat")
    assert rc == 2 and "fm: a/1: scores up to 5.88e+05 do not fit float16" in said and not out.exists()
    frames(tmp_path, ["a/0", "a/1"], peak=2)
    rc, said = street("submit", tmp_path / "fm", out, "--images", tmp_path / "flat")
    written = sorted((p for p in out.rglob("*") if p.is_file()), key=path_key)
    assert rc == 0 and said.startswith("2 maps of smiyc") and [p.name for p in written] == ["0.hdf5", "1.hdf5"]
    before = [p.read_bytes() for p in written]
    rc, said = street("submit", tmp_path / "fm", out, "--images", tmp_path / "flat")
    assert rc == 0 and "2 files of an earlier run are replaced, the first 0.hdf5; give a new folder" in said
    frames(tmp_path, ["a/0", "a/1"], peak=5.88e5)
    assert street("submit", tmp_path / "fm", out, "--images", tmp_path / "flat")[0] == 2
    assert [p.read_bytes() for p in written] == before and len(list(out.rglob("*"))) == 5


def test_names_that_the_server_does_not_take(tmp_path):
    frames(tmp_path, ["0"])
    submit = ["submit", tmp_path / "fm", tmp_path / "subx", "--images", tmp_path / "flat"]
    rc, said = street(*submit, "--dataset", "Foo")
    assert rc == 2 and "'Foo'" in said and "AnomalyTrack-all, AnomalyTrack-test" in said
    rc, said = street(*submit, "--method", "../up")
    assert rc == 2 and "'../up'" in said and not (tmp_path / "subx").exists() and not (tmp_path / "up").exists()


def test_a_submission_never_replaces_the_maps_it_is_made_of(tmp_path):
    frames(tmp_path, ["0"])
    before = (tmp_path / "fm" / "0.npy").read_bytes()
    rc, said = street(
        "submit", tmp_path / "fm", tmp_path / "fm", "--images", tmp_path / "flat", "--form", "fishyscapes"
    )
    assert rc == 2 and "name a folder outside it" in said and (tmp_path / "fm" / "0.npy").read_bytes() == before


def own_scenes(root, scale=1.0):
    "Two scenes of one's own with logits (3, H, W) that separate their classes."
    rng = np.random.default_rng(0)
    (root / "mine").mkdir(exist_ok=True)
    table = {"classes": {"road": 1, "car": [2, 3]}, "anomaly": [9], "normal": [], "void": [0]}
    (root / "mine" / "classes.json").write_text(json.dumps(table))
    for i in range(2):
        labels = rng.choice([1, 2, 3, 9, 0], (24, 32), p=[0.5, 0.2, 0.2, 0.05, 0.05]).astype(np.uint8)
        logits = rng.normal(0, 1, (3, 24, 32)) + (labels == 9) * rng.normal(0, 2, (3, 24, 32))
        logits += 6 * np.stack([labels == 1, (labels == 2) | (labels == 3), labels == 0])
        for part, pixels in (("images", rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)), ("labels", labels)):
            path = root / "mine" / "test" / part / "a b" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        (root / "logits" / "a b").mkdir(parents=True, exist_ok=True)
        np.save(root / "logits" / "a b" / f"{i:03}.npy", (scale * logits).astype(np.float32))
    scenes = ["--data", "folder", "--root", root / "mine", "--resamples", 0]
    return ["evaluate", "--logits", root / "logits", *scenes, "--out", root / "out"]


def test_figures_have_the_digits_that_sixteen_bits_leave(tmp_path):
    evaluate = own_scenes(tmp_path, scale=5.0)  # MSP is near -1 in most pixels
    rc, said = street(*evaluate, "--methods", "max_logit,msp")
    written = next((tmp_path / "out").rglob("results.md"))
    page, rows = written.read_text(), json.loads(written.with_suffix(".json").read_text())
    assert rc == 0 and " ".join(page.split()) in said and "Exact for scores rounded to 16 bits" in page
    for row, line in zip(rows, [x for x in page.splitlines() if x.startswith("| ")][1:], strict=True):
        for name, cell in zip(("auroc", "ap", "fpr95", "f1_oracle"), [c.strip() for c in line.split("|")][6:10]):
            error, (whole, _, digits) = 100 * row[f"{name}_exact_to"], cell.partition(".")
            assert error <= 10.0 ** -len(digits) or (whole.startswith("~") and not digits), (row, line)
    assert any("~" in line for line in page.splitlines() if "| MSP |" in line)


@pytest.mark.parametrize("more", [[], ["--resize-logits"]])
def test_classes_that_stand_last_are_no_rows(tmp_path, more):
    evaluate = own_scenes(tmp_path)
    for path in (tmp_path / "logits").rglob("*.npy"):
        np.save(path, np.load(path).transpose(1, 2, 0))
    rc, said = street(*evaluate, *more)
    assert rc == 2 and "000.npy: (24, 32, 3) looks like (H, W, C)" in said and "transpose to (C, H, W)" in said


def test_a_network_whose_classes_stand_last_is_named():
    def flat(images):
        return torch.zeros(len(images), *images.shape[-2:], 3)

    with pytest.raises(DataError, match=r"\(24, 32, 3\) looks like \(H, W, C\)"):
        OwnNetwork("flat", flat)(torch.zeros(1, 3, 24, 32, dtype=torch.uint8))


def test_whole_logits_name_their_mend(tmp_path):
    evaluate = own_scenes(tmp_path)
    for path in (tmp_path / "logits").rglob("*.npy"):
        np.save(path, np.load(path).astype(np.int64))
    rc, said = street(*evaluate)
    assert rc == 2 and "holds (3, 24, 32) int64" in said and "save them as float32" in said


def test_a_file_of_no_scene_is_named_with_its_folder(tmp_path):
    evaluate = own_scenes(tmp_path)
    np.save(tmp_path / "logits" / "a b" / "004.npy", np.zeros((3, 24, 32), np.float32))
    rc, said = street(*evaluate)
    assert rc == 2 and "logits: 1 file without a scene, the first is 'a b/004.npy'; name each file" in said


@pytest.mark.parametrize(
    "change, said",
    [
        ({"viod": [0]}, "has no key 'viod'; did you mean 'void'?"),
        ({"anomaly": [3, 9]}, "id 3 stands under class 'car' and under anomaly; leave it under one"),
        ({"classes": {"road": 1, "car": [1, 2]}}, "id 1 stands under class 'road' and under class 'car'"),
        ({"classes": {"road": 1, "car": []}}, "class 'car' has no raw id"),
        ({"void": ["x"]}, "void is ['x']; give a raw id of 0 to 255"),
        ({"void": [300]}, "void is [300]; give a raw id of 0 to 255"),
        ({"anomaly": [-1]}, "anomaly is [-1]; give a raw id of 0 to 255"),
        ({"classes": ["road"]}, "needs a mapping 'classes'"),
    ],
)
def test_a_table_that_does_not_fit_names_file_and_mend(tmp_path, change, said):
    evaluate, path = own_scenes(tmp_path), tmp_path / "mine" / "classes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    rc, answer = street(*evaluate)
    assert rc == 2 and "mine/classes.json: " in answer and said in answer


def test_a_training_says_what_removed_its_scenes(tmp_path):
    own_scenes(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "mine" / split).symlink_to(tmp_path / "mine" / "test")
    train = ["train", tmp_path / "run", "--data", "folder", "--root", tmp_path / "mine", "--epochs", 1]
    rc, said = street(*train, "--exclude-scenes")
    assert rc == 2 and "each of the 2 train scenes holds the anomaly" in said and "without --exclude-scenes" in said
    assert "--split" not in said
    rc, said = street(*train, "--methods", "rba")
    assert rc == 2 and "methods 'rba': choose from max_logit" in said and "eam" not in said
    assert not (tmp_path / "run").exists() and run_methods("max_logit,heat") == ("max_logit", "heat")
    rc, said = street(*train, "--methods", "", "--exclude-scenes")  # '' is the default, as of evaluate
    assert rc == 2 and "each of the 2 train scenes" in said


def test_the_promise_of_a_few_images_names_its_mend():
    few = StreetEvaluation({"msp": "MSP"})
    for key in "abcd":
        few.update(key, {"msp": np.zeros((2, 2), np.float32)}, np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"has 4 validation images.*train with at least 5 validation images"):
        promise_study(few)


@pytest.mark.parametrize("option", ["--anomaly-ids", "--ignore-ids"])
@pytest.mark.parametrize("ids", ["-1", "256", "9,999", "2.5", "nan"])
def test_an_id_that_no_label_image_holds_is_refused(tmp_path, option, ids):
    evaluate, last = own_scenes(tmp_path), ids.split(",")[-1]
    refused = f"{option} {ids}: {last} is no raw id; give whole numbers of 0 to 255"
    for command in (evaluate, ["classes", "--data", "folder", "--root", tmp_path / "mine", "--split", "test"]):
        rc, said = street(*command, f"{option}={ids}")
        assert rc == 2 and refused in said
    name = option[2:].replace("-", "_")
    value = int(last) if last.lstrip("-").isdecimal() else float(last)
    with pytest.raises(DataError, match="of 0 to 255"):
        open_streets("folder", tmp_path / "mine", "test", **{name: [value]})


def test_components_too_small_for_the_track_are_said(tmp_path):
    evaluate = own_scenes(tmp_path)
    path = next((tmp_path / "mine" / "test" / "labels").rglob("000.png"))
    labels = np.asarray(Image.open(path)).copy()
    labels[2:12, 2:14] = 9  # 120 pixels: a true component of the track, and too small for a detection
    Image.fromarray(labels).save(path)
    logits = np.load(tmp_path / "logits" / "a b" / "000.npy")
    logits[:, 2:12, 2:14] = -20
    np.save(tmp_path / "logits" / "a b" / "000.npy", logits)
    rc, said = street(*evaluate, "--methods", "max_logit", "--protocol", "anomaly_track")
    assert rc == 0 and "Components: no detection has the 500 pixels that anomaly_track asks for" in said
    page = next((tmp_path / "out").rglob("results.md")).read_text().splitlines()
    assert [line.endswith("| - | - | - |") for line in page if "| pooled |" in line] == [True]
    rc, said = street(*evaluate, "--methods", "max_logit", "--protocol", "obstacle_track")
    assert rc == 0 and "Components: " not in said and "~" not in said.partition("Exact for")[2]


def test_a_foreign_file_is_refused_in_one_line(tmp_path):
    scenes = [*own_scenes(tmp_path)[3:], "--model"]
    torch.save(torch.nn.Conv2d(3, 3, 1), tmp_path / "whole.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(print, protocol=4))
    (tmp_path / "odd.onnx").write_text("no protobuf")
    mend = "a pickled module is not opened, since that would run its code; save it with torch.jit.trace(...).save or "
    for name, said in (("whole.pt", mend), ("old.pt", mend), ("odd.onnx", "no ONNX file, or damaged (")):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # torch's advice to report the file is no part of the answer
            rc, answer = street("evaluate", *scenes, tmp_path / name)
        assert rc == 2 and f"{name}: {said}" in answer
