"""The image detector from fit to predict: one pipeline everywhere, files that belong together, damaged and foreign
input.
"""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from anomaly_nb.banks import KNNBank
from anomaly_nb.cli.main import app, main
from anomaly_nb.core.errors import DataError, MissingFileError
from anomaly_nb.core.arrays import save_arrays
from anomaly_nb.core.files import write_json, write_manifest
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import read_index, write_samples
from anomaly_nb.features import FeatureSet, create_backbone, extract_features
from anomaly_nb.scoring import RECIPES, Detector, predict_files
from anomaly_nb.scoring.recipes import WORD_RECIPES
from anomaly_nb.reports.card import write_card
from anomaly_nb.scoring.detector_files import check_backbone, detector_identity
from anomaly_nb.scoring.view import ImageView, report_detector

PLAIN = ("knn", "knn-euclidean", "mahalanobis", "placed", "subspace", "positional", "retrieval")
PARAMETERS = {
    "backbone": "filters",
    "weights": "",
    "bank": "",
    "k": 1,
    "similar": 0,
    "coreset": 1.0,
    "image_size": 64,
    "threshold": "quantile:0.9",
    "seed": 0,
}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    write_samples(folder, n_train=12, n_good=3, n_defect=2, size=64)
    index = read_index("mvtec", folder, "nut")
    return folder, index, extract_features(index, create_backbone("filters", image_size=64))


@pytest.mark.parametrize(
    ("recipe", "aggregation"),
    [*itertools.product(PLAIN, ("max", "top1%", "mean")), ("retrieval", "retrieval"), ("spade", "retrieval")],
)
def test_report_detector_explorer_and_command_agree(line, recipe, aggregation):
    _, index, features = line
    test = features.where(index.split == "test")
    wired = report_detector(PARAMETERS | {"recipe": recipe, "image_reduce": aggregation}).fit(features)
    plain = Detector(
        recipe, backbone="filters", image_size=64, aggregation=aggregation, k=1, coreset=1.0, threshold="quantile:0.9"
    ).fit(index)
    result, shown = (
        wired.evaluate(features),
        ImageView(wired, features.where(index.split == "train"), test, "quantile:0.9"),
    )
    assert (
        np.array_equal(result.scores, plain.score(index[index.split == "test"]))
        and wired.threshold_ == plain.threshold_
    )
    scores, held_out = shown.scores(wired.bank_.k if isinstance(wired.bank_, KNNBank) else 1, aggregation)
    assert np.array_equal(scores, result.scores) and np.allclose(held_out, wired.held_out_)
    files = list(predict_files(plain, index["image_path"][index.split == "test"]))
    assert (
        np.allclose([p.score for p in files], result.scores, rtol=1e-5, atol=1e-7)
        and [p.normal_path for p in files] == result.explanation["normal_path"].tolist()
    )


def test_two_training_images_and_one_similar_image(line):
    _, index, features = line
    few = features.where((index.split == "test") | (np.arange(len(index)) < 2))
    with pytest.raises(
        DataError, match="no covariance; add normal"
    ):  # a Gaussian at each place needs two images, and one is left out
        Detector("placed", image_size=64).fit(few)
    for recipe in set(PLAIN) - {"placed"}:
        detector = Detector(recipe, image_size=64, similar=1).fit(few)
        assert len(detector.held_out_) == 2 and np.isfinite(detector.evaluate(few).scores).all(), recipe


def test_files_that_do_not_belong_together_are_refused_by_name(line, tmp_path):
    _, _index, features = line
    detector = Detector("placed", image_size=64).fit(features)
    detector.save(tmp_path / "good")
    for file in (
        "bank/bank.npz",
        "bank/bank.json",
        "preparation.npz",
        "threshold.json",
        "detector.json",
        "training.csv",
    ):
        for damage in ("cut", "swapped", "gone"):
            shutil.rmtree(tmp_path / "bad", ignore_errors=True)
            shutil.copytree(tmp_path / "good", tmp_path / "bad")
            path = tmp_path / "bad" / file
            if damage == "cut":
                path.write_bytes(path.read_bytes()[:-5])
            elif damage == "swapped":
                path.write_bytes((tmp_path / "good/manifest.json").read_bytes())
            else:
                path.unlink()
            with pytest.raises((DataError, MissingFileError), match=path.name.replace(".", r"\.")):
                Detector.load(tmp_path / "bad")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/photo.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="holds other files"):
        detector.save(tmp_path / "other")
    assert (tmp_path / "other/photo.jpg").read_bytes() == b"mine"
    with pytest.raises(MissingFileError, match=r"detector\.json"):
        Detector.load(tmp_path / "other")


def test_a_save_that_fails_leaves_the_old_detector(line, tmp_path, monkeypatch):
    _, _index, features = line
    first = Detector("placed", image_size=64).fit(features)
    first.save(tmp_path / "det")
    before = {p.name: p.read_bytes() for p in (tmp_path / "det").glob("*.*")}
    monkeypatch.setattr(
        "anomaly_nb.scoring.detector_files.write_manifest",
        lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(OSError, match="No space left"):
        Detector("knn", image_size=64).fit(features).save(tmp_path / "det")
    assert {p.name: p.read_bytes() for p in (tmp_path / "det").glob("*.*")} == before and not list(tmp_path.glob(".*"))


def test_detectors_of_older_days_open(line, tmp_path):
    """As written before recipes had a parameter, checksums a manifest, and patches a held-out file."""
    _, index, features = line
    detector = Detector(backbone="filters-1", image_size=64, coreset=0.5).fit(index)
    features = extract_features(index, create_backbone("filters-1", image_size=64))
    folder = detector.save(tmp_path / "det")
    for name in ("manifest.json", "training.csv"):
        (folder / name).unlink()
    about = read_json(folder / "detector.json")
    old = {
        "backbone": "filters",
        "weights": "",
        "image_size": 64,
        "angles": [0.0],
        "object_threshold": None,
        "reduce": "top1%",
        "rerank": [],
        "sigma": 4.0,
    }
    old |= {"threshold": "quantile:0.95", "random_state": 0, "intensity": "auto"}
    kept = {k: about[k] for k in ("patch_hw", "dimensions", "paths", "spec", "preparation")}
    write_json(
        folder / "detector.json", kept | {"params": old, "bank": True, "cells": 64, "intensity": about["intensity"]}
    )
    arrays = {name: getattr(detector.preparation_, name) for name in ("channel_", "mean_", "scale_", "white_")}
    save_arrays(folder / "preparation.npz", arrays | {"held_out_": detector.held_out_})
    again = Detector.load(folder)
    assert (
        np.array_equal(again.score(features), detector.score(features))
        and np.array_equal(again.score(index), detector.score(features))
        and again.threshold_ == detector.threshold_
    )
    assert again.evaluate(features).patch_limit == float("inf") and next(predict_files(again, index["image_path"])).box


def test_another_backbone_is_refused(line, tmp_path):
    _, _index, features = line
    folder = Detector("placed", image_size=64).fit(features).save(tmp_path / "det")
    about = read_json(folder / "detector.json")
    about["spec"]["patch"] = 16
    write_json(folder / "detector.json", about)
    write_manifest(folder, kind="detector")
    with pytest.raises(DataError, match=r"fitted with another backbone .patch 16 became 8"):
        check_backbone(Detector.load(folder))


def test_commands_end_in_one_line(line, tmp_path, capsys):
    folder, index, features = line
    detector = Detector("placed", image_size=64).fit(features).save(tmp_path / "det")
    (tmp_path / "empty").mkdir()
    (tmp_path / "huge.png").write_bytes(b"")
    (tmp_path / "one").mkdir()
    shutil.copy(index["image_path"][0], tmp_path / "one/a.png")
    good = folder / "nut/train/good"
    for words, error in [
        (["fit", tmp_path / "none", "--out", tmp_path / "d"], "none"),
        (["fit", tmp_path / "empty", "--out", tmp_path / "d"], "empty"),
        (["fit", good, "--out", tmp_path / "d", "--false-alarms", "2"], "fraction between 0 and 1"),
        (["fit", good, "--out", tmp_path / "d", "--recipe", "best"], "use auto, one of knn"),
        (["fit", good, "--out", tmp_path / "d", "--weights", "lost.pth", "--backbone", "timm:resnet18"], "lost.pth"),
        (["fit", tmp_path / "one", "--out", tmp_path / "d", "--recipe", "knn"], "one normal image gives no threshold"),
        (["predict", detector, tmp_path / "empty"], "no image is there"),
        (["predict", tmp_path / "empty", good], "detector.json"),
        (["predict", detector, tmp_path / "gone.png"], "gone.png"),
        (["update", detector, good], "nothing to add"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main([str(w) for w in words])
        said = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and said[-1].startswith("anomaly-nb: ") and error in said[-1], (words, said)
    assert not (tmp_path / "d").exists()


def test_an_update_names_what_it_would_have_called(line, tmp_path, capsys):
    _folder, index, features = line
    detector = Detector("placed", image_size=64).fit(features).save(tmp_path / "det")
    good, bad = index["image_path"].iloc[-1], tmp_path / "more/black.png"
    bad.parent.mkdir()
    Image.new("RGB", Image.open(good).size).save(bad)
    assert next(predict_files(Detector.load(detector), [bad])).anomalous == 1
    with pytest.raises(SystemExit) as stop:
        main(["update", str(detector), str(bad.parent)])
    said = capsys.readouterr()
    assert stop.value.code == 0 and "version 1 called 1 of 1 new image anomalous (black.png first); it is learned as normal" in said.err
    assert "version 2" in said.out


def test_files_of_one_name_and_odd_names(line, tmp_path):
    _folder, index, features = line
    detector = Detector("placed", image_size=64).fit(features).save(tmp_path / "det")
    source = Image.open(index["image_path"].iloc[-1])
    for name in ("a/x.png", "b/x.png", "b/x.bmp", "mit Umlaut ä/Ünder score.PNG", "c/{}'\".png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        source.save(path)
    (tmp_path / "in/b/cut.png").write_bytes((tmp_path / "in/b/x.png").read_bytes()[:300])
    done = CliRunner().invoke(
        app,
        [
            "predict",
            str(detector),
            str(tmp_path / "in"),
            "--out",
            str(tmp_path / "p.csv"),
            "--maps",
            str(tmp_path / "maps"),
        ],
    )
    table = pd.read_csv(tmp_path / "p.csv")
    assert (
        len(table) == 6 and table["error"].notna().sum() == 1 and len(list((tmp_path / "maps").rglob("*.tiff"))) == 5
    ), done.output
    assert table["score"].nunique() == 1 and done.exit_code in (0, 3)


def _normal_line(look, n, seed):
    rng = np.random.default_rng(seed)
    return (look + rng.normal(size=(n, 16, 8)) * rng.gamma(4, 0.25, size=(n, 1, 1))).astype(np.float32)


def test_a_false_alarm_rate_that_holds():
    """Over random splits, the held-out quantile keeps its promise on new images of the same line."""
    rng = np.random.default_rng(0)
    look = rng.normal(size=(1, 16, 8))
    rates = []
    for seed in range(30):
        train, new = (_normal_line(look, n, 2 * seed + i) for i, n in enumerate((49, 300)))
        detector = Detector("knn-euclidean", aggregation="max", coreset=0.1, threshold="quantile:0.9").fit(train)
        rates.append(detector.predict(new).mean())
    assert 0.07 < np.mean(rates) < 0.12, np.mean(rates)


def test_what_was_chosen_is_kept(line, tmp_path, monkeypatch):
    folder, index, _ = line
    for name in ("HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "no weights"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    done = CliRunner().invoke(
        app, ["fit", str(folder / "nut/train/good"), "--out", str(tmp_path / "det"), "--image-size", "32"]
    )
    assert done.exit_code == 0 and "filters need none" in done.output, done.output
    detector = Detector.load(tmp_path / "det")
    compared = pd.DataFrame(detector.choice_["recipes"])
    assert (
        detector.recipe == compared["recipe"][0]
        and compared["auroc"].is_monotonic_decreasing
        and detector.backbone == "filters"
    )
    assert (
        "kept back" in (tmp_path / "det/detector.html").read_text() and "no weights in" in detector.choice_["backbone"]
    )
    again = Detector.load(detector.update([index["image_path"].iloc[-1]]).save(tmp_path / "det"))
    assert again.choice_ == detector.choice_ and again.version_ == 2
    written = (
        Detector(backbone="auto", image_size=32).fit(index[index["split"] == "train"].head(3)).save(tmp_path / "auto")
    )
    assert read_json(written / "detector.json")["params"]["backbone"] == "filters"  # another machine may have weights
    with pytest.raises(MissingFileError, match="no such file or folder of weights"):
        Detector(backbone="auto", weights=str(tmp_path / "lost.pth")).parts()


def test_fit_here_predict_there(line, tmp_path):
    folder, _index, _ = line
    assert (
        CliRunner()
        .invoke(
            app,
            [
                "fit",
                str(folder / "nut/train/good"),
                "--out",
                str(tmp_path / "det"),
                "--recipe",
                "placed",
                "--image-size",
                "64",
            ],
        )
        .exit_code
        == 0
    )
    (tmp_path / "home").mkdir()
    code = "import sys; from anomaly_nb.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, "predict", "../det", str(folder / "nut/test"), "--out", "p.csv"], cwd=tmp_path / "home", capture_output=True, text=True,
                          env={"HOME": str(tmp_path / "home"), "PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p)})  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    here = Detector.load(tmp_path / "det")
    table = pd.read_csv(tmp_path / "home/p.csv")
    assert table["score"].tolist() == [p.score for p in predict_files(here, table["image_path"])]
    assert json.loads((tmp_path / "det/detector.json").read_text())["version"] == 1


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in WORD_RECIPES])
def test_every_recipe_learns_from_the_normal_training_images_only(line, recipe):
    _, index, features = line
    train = features.where(index.split == "train")
    assert Detector(recipe, backbone="filters", image_size=64).fit(features).paths_ == train.meta["image_path"].tolist()
    with pytest.raises(DataError, match="no normal training image"):
        Detector(recipe, backbone="filters", image_size=64).fit(features.where(index.label == 1))


def test_features_without_files_cannot_be_updated():
    patches = np.random.default_rng(0).normal(size=(6, 9, 4)).astype(np.float32)
    detector = Detector().fit(FeatureSet(patches, (3, 3), pd.DataFrame({"image_path": [""] * 6})))
    with pytest.raises(DataError, match="fitted on arrays"):
        detector.update(["x.png"])


@pytest.mark.parametrize("recipe", ["knn", "placed", "patchcore"])
def test_an_update_is_a_fit_in_its_order(recipe, tmp_path):
    """Whatever the names: the earlier images first, then the new ones, as the help says."""
    paths = []
    for i in range(12):
        name = tmp_path / ("z" if i < 8 else "a") / f"{i}.png"  # the new ones sort first
        name.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(i).normal(128, 20, (64, 64, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(name)
        paths.append(name.as_posix())
    made = {"recipe": recipe, "backbone": "filters", "image_size": 64, "coreset": 0.2 if recipe != "placed" else None}
    grown = Detector(**made).fit(paths[:8]).update(sorted(paths[8:]))
    whole = Detector(**made).fit(paths[:8] + sorted(paths[8:]))
    assert grown.threshold_ == whole.threshold_ and grown.paths_ == whole.paths_
    assert np.array_equal(grown.held_out_, whole.held_out_)
    assert np.array_equal(grown.score(paths), whole.score(paths))
    assert "the earlier images first" in Detector.update.__doc__


def test_the_same_fit_has_the_same_identity(tmp_path):
    "Whatever an image took to be scored, which the card and a budget say; anything that decides changes it."
    paths = []
    for i in range(6):
        noise = np.random.default_rng(i).normal(128, 20, (64, 64, 3)).clip(0, 255)
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{i}.png")
        paths.append((tmp_path / f"{i}.png").as_posix())
    sums = []
    for name, seconds, milliseconds in (("a", 0.01, 3.8), ("b", 0.02, 3.9)):
        model = Detector("knn", "filters", image_size=64, coreset=0.5).fit(paths)
        model.budget_ = {"budget_ms": 5.0, "budget_mb": 0.0, "coreset": 160, "k": 1, "of": 640, "bank_mb": 0.03}
        model.budget_ |= {"features_ms": milliseconds, "bank_ms": 0.1, "machine": "x86_64"}
        write_card(model, model.save(tmp_path / name / "part"), seconds=seconds)
        sums.append(detector_identity(tmp_path / name / "part"))
    cards = [(tmp_path / name / "part/detector.html").read_text("utf-8") for name in "ab"]
    assert cards[0] != cards[1] and sums[0] == sums[1] and len(sums[0]) == 64
    other = Detector("knn", "filters", image_size=64, coreset=0.5, threshold="quantile:0.8").fit(paths)
    write_card(other, other.save(tmp_path / "c/part"))
    assert detector_identity(tmp_path / "c/part") != sums[0]
    (tmp_path / "b/part/detector.html").write_text("changed", "utf-8")  # the card is checked as before
    with pytest.raises(DataError, match=r"detector\.html: changed"):
        Detector.load(tmp_path / "b/part")
    (tmp_path / "a/part/manifest.json").unlink()
    assert detector_identity(tmp_path / "a/part") == ""
