"""The golden table: samples, leather and magnetic tile through every recipe, so that a change which was not meant is
seen.

    python -m tests.golden_recipes [recipes] [--write]      # prints what differs from golden_recipes.json, and renews it

Real data are read from the folder named by ANOMALY_NB_DATA; without it only the samples are made.

Against the code from before the second version of the filters, on leather and the samples: `filters-1` gives what
`filters` gave to 1e-6 in all nine recipes there were, but for one change that was meant. Held-out scores of a coreset
have its holes filled since, and a coreset of few patches an image is chosen anew without the images it scores, which
moves the thresholds of `patchcore`, so that it calls other images. `filters` is the second version, and differs
everywhere. The lines of magnetic_tile were renewed when images were resized along the rows first again: Pillow 13 had
begun to take the columns first in images as tall as these, which moves grey values by one.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly_nb.core.files import write_json
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import read_index
from anomaly_nb.data.samples import write_samples
from anomaly_nb.features import FeatureSet, create_backbone, extract_features
from anomaly_nb.scoring import RECIPES, make_detector
from anomaly_nb.scoring.recipes import WORD_RECIPES

GOLDEN = Path(__file__).with_name("golden_recipes.json")
DATA = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere")
MOBILENET = "timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5"
SAMPLES, SIZE = ("weave", "wood", "granite", "nut", "capsule"), 64
BACKBONES = {"filters": "", "filters-1": ""}
NAMES = tuple(name for name in RECIPES if name not in WORD_RECIPES)  # words need a model of images and words


def sample_index(name: str, folder: str | Path) -> pd.DataFrame:
    "12 images to learn from, 6 normal and 3 of each defect to test on."
    if not (Path(folder) / name).is_dir():
        write_samples(folder, n_train=12, n_good=6, n_defect=3, size=96)
    return read_index("mvtec", folder, name)


def real_index(name: str) -> pd.DataFrame:
    "All of leather; of the tiles 40 to learn from, 30 normal and 10 of each defect to test on."
    if name == "leather":
        return read_index("mvtec", DATA / "images/mvtec", "leather", "keep")
    index = read_index("magnetic_tile", DATA / "images/magnetic_tile")
    some = {"train": 40, "good": 30}
    parts = [
        g.iloc[np.linspace(0, len(g) - 1, some.get(s if s == "train" else d, 10)).astype(int)]
        for (s, d), g in index.groupby(["split", "defect"])
    ]
    return pd.concat(parts, ignore_index=True)


def features_of(index: pd.DataFrame, backbone: str, weights: str = "") -> FeatureSet:
    "Features of a data set, at 64 pixels a side."
    return extract_features(index, create_backbone(backbone, weights or None, SIZE))


def golden(
    features: FeatureSet, recipes=NAMES, backbone: str = "filters", weights: str = ""
) -> dict[str, dict[str, float]]:
    "What each recipe says: image AUROC, images called anomalous, threshold and mean score."
    rows = {}
    for name in recipes:
        found = make_detector(name, backbone, weights).fit(features).evaluate(features)
        metrics = found.image_metrics()
        rows[name] = {
            "image_auroc": metrics["image_auroc"],
            "called": int(found.called.sum()),
            "threshold": found.threshold.value,
            "mean_score": float(found.scores.mean()),
        }
    return rows


def differences(now: dict[str, dict[str, float]], kept: dict[str, dict[str, float]]) -> list[str]:
    "What is not equal: rankings and decisions to 1e-6, scores to 1e-4 of their size, since products of float32 differ between processors."
    return [
        f"{recipe}: {key} {kept[recipe][key]:.7g} became {value:.7g}"
        for recipe, row in now.items()
        for key, value in row.items()
        if not np.isclose(value, kept[recipe][key], rtol=1e-4 if key in ("threshold", "mean_score") else 0, atol=1e-6)
    ]


def table(recipes=NAMES, keep=lambda rows: None) -> dict[str, dict[str, dict[str, float]]]:
    "Every data set at hand with every backbone."
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        real = ("leather", "magnetic_tile") if DATA.is_dir() else ()
        for name in (*SAMPLES, *real):
            index = real_index(name) if name in real else sample_index(name, folder)
            known = BACKBONES | (
                {MOBILENET: str(DATA / "weights/mobilenetv2_100_imagenet.safetensors")} if name in real else {}
            )
            for backbone, weights in known.items():
                rows[f"{name} {backbone.partition('?')[0]}"] = golden(
                    features_of(index, backbone, weights), recipes, backbone, weights
                )
                print(f"{name} {backbone}", flush=True)
                keep(rows)
    return rows


if __name__ == "__main__":
    named = [a for a in sys.argv[1:] if not a.startswith("-")]
    kept = read_json(GOLDEN) if GOLDEN.is_file() else {}

    def keep(rows):
        if "--write" in sys.argv:
            write_json(GOLDEN, kept | {name: kept.get(name, {}) | some for name, some in rows.items()})

    now = table(named or NAMES, keep)
    for name, rows in now.items():
        print(*(f"{name}: {line}" for line in differences(rows, rows | kept.get(name, {}))), sep="\n")
