"""Sound parts that are missing, too many or swapped: `python -m bench.logical [seeds]` writes figures/logical.json, row
by row.

Each seed draws its own bag and kit, 24 normal images to learn from, 12 normal ones and 6 of each type of defect to test
on, at 96 pixels. All recipes
see the same filters. Rows that are in the file already are not made again.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomaly_nb.core.files import write_json
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import loco_regions, read_index, write_logical_samples
from anomaly_nb.data.logical import LOGICAL, LOGICAL_DEFECTS
from anomaly_nb.features import create_backbone, extract_features
from anomaly_nb.metrics import roc_auc, spro
from anomaly_nb.scoring import Detector, Evaluation

RECIPES = ("knn", "composition", "placed", "fusion")
SIZE = 96
FIGURE = Path(__file__).parent.parent / "figures/logical.json"


def numbers(found: Evaluation) -> dict[str, float]:
    "AUROC of each type of defect against the normal images, and saturated PRO of the logical and of the other ones."
    defects, row = found.meta["defect"].to_numpy(), {}
    for defect in LOGICAL_DEFECTS:
        some = (defects == defect) | (defects == "good")
        row[defect] = roc_auc(defects[some] != "good", found.scores[some])
    for name, wanted in (("spro_logical", LOGICAL_DEFECTS[:3]), ("spro_cracked", LOGICAL_DEFECTS[3:])):
        at = [i for i, defect in enumerate(defects) if defect in ("good", *wanted)]
        regions = [loco_regions(found.meta["mask_path"][i]) if defects[i] != "good" else ([], []) for i in at]
        row[name] = spro([r for r, _ in regions], [s for _, s in regions], [found.heatmap(i) for i in at])
    return row


def missing_rows(seed: int, recipes: tuple[str, ...], known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    "The rows of a seed that are not known yet, on both categories."
    wanted = [
        (c, r)
        for c in LOGICAL
        for r in recipes
        if (seed, c, r) not in {(k["seed"], k["category"], k["recipe"]) for k in known}
    ]
    if not wanted:
        return
    network = create_backbone("filters", None, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        write_logical_samples(folder, 24, 12, 6, SIZE, seed)
        for category in {c: None for c, _ in wanted}:
            index = read_index("mvtec_loco", folder, category)
            features = extract_features(index, network)
            for recipe in [r for c, r in wanted if c == category]:
                detector = Detector(recipe, image_size=SIZE, random_state=seed).fit(features)
                weights = detector.choice_.get("fusion", {}).get("weights", [])
                yield {"seed": seed, "category": category, "recipe": recipe, "weights": weights} | numbers(
                    detector.evaluate(features)
                )


if __name__ == "__main__":
    known = read_json(FIGURE)["rows"] if FIGURE.is_file() else []
    for recipes in (RECIPES[:-1], RECIPES[-1:]):
        for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
            for row in missing_rows(seed, recipes, known):
                known.append(row)
                write_json(FIGURE, {"rows": known})
            print(f"seed {seed}: {', '.join(recipes)} done", flush=True)
