"""Large images: tiles, regions and kept aspect, from fit to report, in another process and in constant memory."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.core.plain import read_json
from anomaly_nb.features import create_backbone, extract_features
from anomaly_nb.reports import run_report
from anomaly_nb.reports.card import write_card
from anomaly_nb.scoring import Detector, predict_files

TILES = {"backbone": "filters", "tile": 96, "overlap": 24, "coreset": 400, "threshold": "quantile:0.9"}
SHAPES = [(150, 220), (180, 200), (150, 220), (200, 150), (150, 220), (128, 128)]


def sheet(path, shape=(150, 220), spot=None, seed=0, noise=6):
    """A woven sheet, with a dark square of 10 pixels at (top, left)."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[: shape[0], : shape[1]]
    grey = 110 + 25 * np.sin(x / 6) + 25 * np.sin(y / 7) + rng.normal(0, noise, shape)
    if spot:
        grey[spot[0] : spot[0] + 10, spot[1] : spot[1] + 10] = 20
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheets")
    return [sheet(folder / f"{i}.png", shape, seed=i) for i, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def tiled(good):
    return Detector(**TILES).fit(good)


def holds(box, spot, most=60):
    """Whether a box holds a defect, and is not much larger."""
    left, top, right, bottom = box
    return (
        left <= spot[1] + 2
        and right >= spot[1] + 8
        and top <= spot[0] + 2
        and bottom >= spot[0] + 8
        and max(right - left, bottom - top) < most
    )


def test_the_same_bits_in_another_process(tiled, good, tmp_path):
    bad = sheet(tmp_path / "bad.png", spot=(40, 60))
    folder = tiled.save(tmp_path / "det")
    code = (
        f"import numpy as np; from anomaly_nb.scoring import Detector; d = Detector.load({str(folder)!r}); r = d.evaluate({[bad, *good[:2]]!r}); "
        f"np.savez({str(tmp_path / 'out.npz')!r}, scores=d.score({[bad, *good[:2]]!r}), cells=r.patch_scores[0], heat=r.maps[0], box=r.box(0), held=d.held_out_)"
    )
    env = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)
    there, here = np.load(tmp_path / "out.npz"), tiled.evaluate([bad, *good[:2]])
    assert np.array_equal(there["scores"], tiled.score([bad, *good[:2]])) and np.array_equal(
        there["scores"], here.scores
    )
    assert (
        np.array_equal(there["cells"], here.patch_scores[0])
        and np.array_equal(there["heat"], here.maps[0])
        and tuple(there["box"]) == here.box(0)
    )
    assert np.array_equal(there["held"], tiled.held_out_) and tiled.threshold_ == Detector.load(folder).threshold_


@pytest.mark.parametrize(
    "spot", [(40, 60), (72, 130), (70, 67), (135, 205)]
)  # within a tile, on a seam, where four tiles meet, in the corner
def test_a_defect_is_found_once_wherever_the_seams_are(tiled, good, tmp_path, spot):
    bad = sheet(tmp_path / "bad.png", spot=spot, seed=9)
    result = tiled.evaluate([bad, *good[:1]])
    assert result.called.tolist() == [True, False] and holds(result.box(0), spot)
    heat = result.maps[0]
    assert heat.shape == (150, 220)
    hot = np.unravel_index(heat.argmax(), heat.shape)
    assert abs(hot[0] - spot[0] - 5) < 14 and abs(hot[1] - spot[1] - 5) < 14
    (done,) = predict_files(tiled, [bad])
    assert (
        done.box == result.box(0)
        and done.score == pytest.approx(result.scores[0], rel=1e-6)
        and done.normal_path == result.explanation["normal_path"][0]
    )


@pytest.mark.parametrize(
    "how",
    [
        {"resize": "pad"},
        {"resize": "short"},
        {"resize": "short", "recipe": "mahalanobis"},
        {"resize": "short", "image_size": 112, "backbone": "timm:test_vit", "weights": "random"},
        {"resize": "pad", "recipe": "retrieval"},
    ],
)
def test_kept_aspect_of_mixed_shapes(good, tmp_path, how):
    torch.manual_seed(0)
    detector = Detector(**({"backbone": "filters", "image_size": 128, "threshold": "quantile:0.8"} | how)).fit(good)
    bad = sheet(tmp_path / "bad.png", (180, 240), spot=(100, 40), seed=9)
    result = detector.evaluate([bad, *good])
    assert (
        len(detector.held_out_) == len(good) and result.scores.argmax() == 0 and (result.called[0] or "weights" in how)
    )
    left, top, right, bottom = result.box(0)
    assert (
        left < 50 and right > 40 and top < 110 and bottom > 100
        if "weights" in how
        else holds(result.box(0), (100, 40), 120)
    )  # random weights: it touches
    assert [m.shape for m in result.maps] == [(180, 240), *SHAPES]
    torch.manual_seed(0)  # random weights are made again
    again = Detector.load(detector.save(tmp_path / "det"))
    assert np.array_equal(again.score([bad]), result.scores[:1])


def test_cells_of_the_padding_do_not_count(good, tmp_path):
    detector = Detector(backbone="filters", image_size=128, resize="pad", aggregation="mean").fit(good)
    flat = tmp_path / "strip.png"
    Image.fromarray(np.full((20, 128), 130, np.uint8)).save(flat)
    result, cells = detector.evaluate([str(flat)]), detector.layout_.of((20, 128))
    assert cells.count.mean() < 0.2 and result.scores[0] == pytest.approx(
        result.patch_scores[0][cells.count].mean(), rel=1e-5
    )
    assert result.patch_scores[0][~cells.count].max() <= result.patch_scores[0][cells.count].min()


def test_what_lies_off_the_region_is_not_seen(tmp_path):
    same = [sheet(tmp_path / f"{i}.png", seed=i) for i in range(5)]
    mask = np.zeros((150, 220), np.uint8)
    mask[:, :110] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    off, on = sheet(tmp_path / "off.png", spot=(60, 150), seed=9), sheet(tmp_path / "on.png", spot=(60, 50), seed=9)
    for region in (str(tmp_path / "left.png"), "0,0,150,110"):
        for how in ({"tile": 96, "overlap": 24}, {"image_size": 96}):
            detector = Detector(backbone="filters", region=region, threshold="quantile:0.8", **how).fit(same)
            result = detector.evaluate([off, on])
            assert (
                result.scores[1] > 3 * result.scores[0]
                and result.called[1]
                and holds(result.box(1), (60, 50), 80)
                and result.box(0)[2] <= 128
            )
            assert (
                np.ptp(result.maps[1][:, 115:]) == 0 and result.maps[1][:, 115:].max() <= result.maps[1][:, :110].min()
            )
    folder = detector.save(tmp_path / "box")
    masked = Detector(backbone="filters", region=str(tmp_path / "left.png"), image_size=96).fit(same)
    scores, folder = masked.score([off, on]), masked.save(tmp_path / "masked")
    (tmp_path / "left.png").rename(tmp_path / "moved.png")  # the mask is stored with the detector
    again = Detector.load(folder)
    assert (
        np.array_equal(again.score([off, on]), scores)
        and again.save(folder) == folder
        and np.array_equal(Detector.load(folder).score([off, on]), scores)
    )
    with pytest.raises(DataError, match="gone or was changed"):
        masked.save(tmp_path / "other")


def test_update_equals_a_fit_on_all(tiled, good, tmp_path):
    more = [sheet(tmp_path / f"m{i}.png", seed=20 + i) for i in range(2)]
    bad = sheet(tmp_path / "bad.png", spot=(40, 60))
    grown = Detector.load(tiled.save(tmp_path / "det")).update(more)
    whole = Detector(**TILES).fit(good + more)
    assert (
        grown.version_ == 2
        and np.allclose(grown.score([bad, *good]), whole.score([bad, *good]), atol=1e-6)
        and grown.threshold_ == whole.threshold_
    )


def test_a_bank_of_many_tiles_learns_from_a_part_and_is_judged_on_all(good, tmp_path, monkeypatch):
    monkeypatch.setattr("anomaly_nb.scoring.learning.TILED_CELLS", 900)
    part = Detector(**TILES).fit(good)
    assert part.learned_["cells"] == 900 < part.learned_["of"] and len(part.bank_.bank_) == 400
    assert (
        part.held_out_patches_.size == part.learned_["of"]
    )  # held-out scores are those of all cells, as a new image's are
    again = Detector(**TILES).fit(good)
    assert np.array_equal(part.bank_.bank_, again.bank_.bank_) and np.array_equal(part.held_out_, again.held_out_)
    assert Detector.load(part.save(tmp_path / "det")).learned_ == part.learned_


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            {"tile": 96, "overlap": 24, "recipe": "placed"},
            r"recipe='placed' with tile=96: a MahalanobisBank .* needs one grid",
        ),
        ({"resize": "short", "recipe": "retrieval"}, r"several shapes: a RetrievalBank .* needs one grid"),
        ({"tile": 96}, "an overlap of at most half a tile"),
        ({"tile": 96, "overlap": 24, "resize": "pad"}, "tiles are square"),
        ({"backbone": "filters?tile=96"}, "give tile as the detector's own"),
        ({"region": "0,0,140,210"}, "no box within an image of 180 x 200"),
        ({"region": "1,2,3"}, "top,left,bottom,right"),
        ({"tile": 96, "overlap": 24, "angles": (0.0, 90.0)}, "angles: rotated reference"),
        ({"tile": 96, "overlap": 24, "object_threshold": 10.0}, "the object is found in a whole image"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(good, monkeypatch, how, said):
    monkeypatch.setattr("anomaly_nb.features.extract.read_counted", lambda *a: pytest.fail("an image was read"))
    with pytest.raises(DataError, match=said):
        Detector(**({"backbone": "filters"} | how)).fit(good)


def test_other_grids_and_features_of_tiles_are_refused(tiled, good, tmp_path):
    index = pd.DataFrame({"image_path": good})
    with pytest.raises(DataError, match="pass the images' index"):
        tiled.score(extract_features(index, create_backbone("filters", tile=96, overlap=24)))
    short = Detector("placed", "filters", image_size=96, resize="short").fit([good[0], good[2], good[4]])
    with pytest.raises(DataError, match="needs images of one shape"):
        short.score([good[3]])
    found = list(predict_files(short, [good[2], good[3]]))
    assert not found[0].error and "needs images of one shape" in found[1].error


def test_a_report_in_tiles(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, path in enumerate(good):
        os.makedirs("data/good", exist_ok=True)
        os.link(path, f"data/good/{i}.png")
    for i, spot in enumerate([(40, 60), (72, 130), (100, 150)]):
        sheet(tmp_path / f"data/hole/{i}.png", spot=spot, seed=30 + i)
    given = {
        "dataset": "folder",
        "root": "data",
        "category": "",
        "train_fraction": 0.7,
        "tile": 96,
        "overlap": 24,
        "coreset": 300,
        "threshold": "quantile:0.75",
        "on_missing": "keep",
    }
    run = run_report("image_anomaly", given, tmp_path / "figures")
    assert run.metrics["recall"] == 1 and run.metrics["image_auroc"] == 1
    model = Detector.load(run.page.parent / "detector")
    assert model.layout_.said() == "tiles of 96 pixels, overlapping by at least 24"


def test_siblings_are_pointed_out_when_no_groups_are_given(tmp_path):
    parts = [sheet(tmp_path / f"part{i}_a.png", seed=i, noise=20) for i in range(7)]
    parts.append(sheet(tmp_path / "part3_b.png", seed=3, noise=21))
    plain = {"backbone": "filters", "image_size": 96, "threshold": "quantile:0.8"}
    with pytest.warns(
        Notice,
        match=r"2 of 8 training images nearly the same as another \(part3_a.png and part3_b.png\); .* give groups",
    ):
        found = Detector(**plain).fit(parts)
    assert found.alike_ == [(parts[3], parts[7])]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert (
            Detector(**plain, groups="^(part[0-9]+)_").fit(parts).alike_
            == []
            == Detector(**plain).fit(parts[:7]).alike_
        )


def test_a_bank_for_a_budget(good, tmp_path):
    plain = {"backbone": "filters", "image_size": 96, "threshold": "quantile:0.8"}
    small = Detector(**plain, budget_mb=0.05).fit(good)
    kept = small.budget_["coreset"]
    assert small.bank_.bank_.nbytes + small.bank_.rows_.nbytes <= 50_000 and len(
        small.bank_.bank_
    ) == kept == 50_000 // (4 * 49 + 8)
    folder = small.save(tmp_path / "det")
    write_card(small, folder)
    assert (
        read_json(folder / "manifest.json")["budget"] == small.budget_
        and f"{kept} of 864 patches are kept" in (folder / "detector.html").read_text()
    )
    grown = Detector.load(folder).update([sheet(tmp_path / "more.png", seed=40)])
    assert grown.budget_ == small.budget_ and len(grown.bank_.bank_) == kept  # the choice is made once
    timed = Detector(**(TILES | {"coreset": None}), budget_ms=60_000).fit(good[:3])
    assert (
        timed.budget_["coreset"] == timed.budget_["of"] == len(timed.bank_.bank_)
        and timed.budget_["features_ms"] > 0
        and timed.budget_["bank_ms"] > 0
    )
    with pytest.raises(DataError, match="with the smallest bank; give at least that"):
        Detector(**plain, budget_ms=0.01).fit(good)
    with pytest.raises(DataError, match="a SubspaceBank has no size to choose"):
        Detector("subspace", budget_mb=1, **plain).fit(good)
    with pytest.raises(DataError, match="given arrays, and the time"):
        Detector(budget_ms=5).fit(np.random.default_rng(0).normal(size=(4, 25, 8)))
