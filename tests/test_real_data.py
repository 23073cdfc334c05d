"""Small parts of real data sets, read from the folder named by ANOMALY_NB_DATA; skipped where it is absent."""

import os
from pathlib import Path

import pytest

from anomaly_nb.core.errors import DataError
from anomaly_nb.data import index_magnetic_tile, index_mvtec, read_mask
from anomaly_nb.reports import run_report

ROOT = Path(os.environ.get("ANOMALY_NB_DATA", "")).resolve()
pytestmark = pytest.mark.skipif(
    not (os.environ.get("ANOMALY_NB_DATA") and ROOT.is_dir()), reason="set ANOMALY_NB_DATA to the folder of real data"
)
MOBILENET = "timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5"


def test_leather_has_lone_masks_and_images():
    with pytest.raises(DataError, match=r"images? without a mask.*masks? without an image"):
        index_mvtec(ROOT / "images/mvtec", "leather")
    kept = index_mvtec(ROOT / "images/mvtec", "leather", "keep")
    assert len(kept) == 28 and (kept.query("label == 1").mask_path == "").sum() == 9
    assert len(index_mvtec(ROOT / "images/mvtec", "leather", "drop")) == 19


def test_magnetic_tile_index_and_masks():
    index = index_magnetic_tile(ROOT / "images/magnetic_tile")
    assert index.groupby(["split", "label"]).size().to_dict() == {("train", 0): 300, ("test", 0): 176, ("test", 1): 392}
    empty = [p for p in index.query("defect == 'uneven'").mask_path if not read_mask(p, 128).any()]
    assert len(empty) == 4


def test_leather_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = ROOT / "weights/mobilenetv2_100_imagenet.safetensors"
    given = {"dataset": "mvtec", "root": ROOT / "images/mvtec", "category": "leather", "on_missing": "keep",
             "backbone": MOBILENET, "weights": weights, "image_size": 256, "coreset": 1.0}  # fmt: skip
    run = run_report("image_anomaly", given)
    assert run.metrics["image_auroc"] == 1.0 and run.metrics["aupro"] > 0.95 and run.metrics["images_without_mask"] == 9
