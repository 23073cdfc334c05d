"""`recipe=auto` beside the default and the best in hindsight: `python -m bench.auto` writes figures/auto.json, the
table of the results page.

Magnetic tile and leather of the folder named by ANOMALY_NB_DATA, and the five samples, at 96 pixels a side. The choice
sees normal training images alone.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import pandas as pd

from anomaly_nb.core.files import write_json
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import read_index
from anomaly_nb.data.samples import write_samples
from anomaly_nb.features import create_backbone, extract_features
from anomaly_nb.metrics import auroc_interval, paired_difference, roc_auc
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.choice import CANDIDATES, choose_recipe

DATA = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere")
SAMPLES = ("weave", "wood", "granite", "nut", "capsule")
BACKBONES = {
    "filters": ("filters", ""),
    "mobilenetv2": (
        "timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5",
        str(DATA / "weights/mobilenetv2_100_imagenet.safetensors"),
    ),
}
SIZE, CORESET = 96, 0.25
FIGURE = Path(__file__).parent.parent / "figures/auto.json"


def index_of(name: str, folder: str, every: int = 1) -> pd.DataFrame:
    """Leather as published; of the tiles every so many-th of each type; of a sample 40 images to learn from, 20 normal
    and 8 of each defect to test on.
    """
    if name == "leather":
        return read_index("mvtec", DATA / "images/mvtec", "leather", "keep")
    if name == "magnetic_tile":
        index = read_index("magnetic_tile", DATA / "images/magnetic_tile", "", "keep")
        return pd.concat([g.iloc[::every] for _, g in index.groupby(["split", "defect"])], ignore_index=True)
    write_samples(folder, n_train=40, n_good=20, n_defect=8, size=128)
    return read_index("mvtec", folder, name)


def compared(index: pd.DataFrame, backbone: str, weights: str) -> dict:
    "The choice, the default and the best in hindsight on one data set."
    given = {"backbone": backbone, "weights": weights, "image_size": SIZE, "coreset": CORESET}
    start = time.perf_counter()
    chosen, table = choose_recipe(index, **given)
    seconds = time.perf_counter() - start
    features = extract_features(index, create_backbone(backbone, weights or None, SIZE))
    tested = features.where((features.meta["split"] == "test").to_numpy())
    labels = tested.meta["label"].to_numpy()
    scores = {r: Detector(r, **given).fit(features).score(tested) for r in CANDIDATES}
    auroc = {r: roc_auc(labels, s) for r, s in scores.items()}
    best = max(CANDIDATES, key=lambda r: auroc[r])
    row = {
        "train": int((features.meta["split"] == "train").sum()),
        "normal": int((labels == 0).sum()),
        "anomalous": int((labels == 1).sum()),
    }
    row |= {
        "seconds": round(seconds, 1),
        "chosen": chosen,
        "best": best,
        "auroc": {r: round(a, 4) for r, a in auroc.items()},
    }
    row |= {"synthetic": None if table is None else {r: round(a, 4) for r, a in zip(table["recipe"], table["auroc"])}}
    for key, recipe in (("of_chosen", chosen), ("of_default", "knn"), ("of_best", best)):
        row[key] = [round(v, 4) for v in auroc_interval(labels, scores[recipe])]
    for key, recipe in (("best_minus_chosen", best), ("default_minus_chosen", "knn")):
        row[key] = [round(v, 4) for v in paired_difference(roc_auc, labels, scores[chosen], scores[recipe])]
    return row


def markdown(rows: dict[str, dict]) -> str:
    "The table of the results page."
    lines = [
        "| data, backbone | normal training images | auto | AUROC of auto | default (`knn`) | best in hindsight | best minus auto |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        value = {
            k: "{:.3f} [{:.3f}, {:.3f}]".format(*r[k])
            for k in ("of_chosen", "of_default", "of_best", "best_minus_chosen")
        }
        said = r["chosen"] + ("" if r["synthetic"] else " (too few to choose)")
        lines.append(
            f"| {name} | {r['train']} | {said} | {value['of_chosen']} | {value['of_default']} | {r['best']} {value['of_best']} | {value['best_minus_chosen']} |"
        )
    return "\n".join(lines)


def main() -> None:
    "Every data set at hand, or those named."
    parser = argparse.ArgumentParser(
        prog="python -m bench.auto", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join((("magnetic_tile", "leather") if DATA.is_dir() else ()) + SAMPLES))
    parser.add_argument("--backbones", default="filters,mobilenetv2" if DATA.is_dir() else "filters")
    parser.add_argument("--every", type=int, default=1, help="of the tiles take every so many-th image")
    args = parser.parse_args()
    rows: dict[str, dict] = {}
    for name in args.sets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            index = index_of(name, folder, args.every)
            for backbone in args.backbones.split(","):
                rows[f"{name}, {backbone}"] = compared(index, *BACKBONES[backbone])
                print(name, backbone, rows[f"{name}, {backbone}"], flush=True)
                known = read_json(FIGURE) if FIGURE.is_file() else {}
                write_json(FIGURE, known | rows)
    print(markdown(read_json(FIGURE)))


if __name__ == "__main__":
    main()
