"""Sound parts that are missing, too many or swapped: `python -m bench.logical [seeds]` writes figures/logical.json, one seed after another.

Each seed draws its own bag and kit, 30 normal images to learn from, 16 normal ones and 8 of each kind of defect to test on, at 128 pixels. All recipes
see the same filters. Seeds that are in the file already are not made again.
"""
import sys
import tempfile
from pathlib import Path

from anomaly_nb.core.files import read_json, write_json
from anomaly_nb.data import loco_regions, read_index, write_logical_samples
from anomaly_nb.data.logical import LOGICAL, LOGICAL_DEFECTS
from anomaly_nb.features import create_backbone, extract_features
from anomaly_nb.metrics import roc_auc, spro
from anomaly_nb.scoring import Detector, Evaluation

RECIPES = ("knn", "retrieval", "positional", "placed", "composition", "fusion")
SIZE = 128
FIGURE = Path(__file__).parent.parent / "figures/logical.json"


def numbers(found: Evaluation) -> dict[str, float]:
    "AUROC of each kind of defect against the normal images, and saturated PRO of the logical and of the other ones."
    kinds, row = found.meta["defect"].to_numpy(), {}
    for defect in LOGICAL_DEFECTS:
        some = (kinds == defect) | (kinds == "good")
        row[defect] = roc_auc(kinds[some] != "good", found.scores[some])
    for name, wanted in (("spro_logical", LOGICAL_DEFECTS[:3]), ("spro_cracked", LOGICAL_DEFECTS[3:])):
        at = [i for i, kind in enumerate(kinds) if kind in ("good", *wanted)]
        regions = [loco_regions(found.meta["mask_path"][i]) if kinds[i] != "good" else ([], []) for i in at]
        row[name] = spro([r for r, _ in regions], [s for _, s in regions], [found.heatmap(i) for i in at])
    return row


def one_seed(seed: int) -> list[dict[str, object]]:
    "All recipes on both categories."
    rows, network = [], create_backbone("filters", None, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        write_logical_samples(folder, 30, 16, 8, SIZE, seed)
        for category in LOGICAL:
            index = read_index("mvtec_loco", folder, category)
            features = extract_features(index, network)
            for recipe in RECIPES:
                detector = Detector(recipe, image_size=SIZE, random_state=seed).fit(features)
                weights = detector.choice_.get("fusion", {}).get("weights", [])
                rows.append({"seed": seed, "category": category, "recipe": recipe, "weights": weights} | numbers(detector.evaluate(features)))
    return rows


if __name__ == "__main__":
    known = read_json(FIGURE)["rows"] if FIGURE.is_file() else []
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        if seed not in {row["seed"] for row in known}:
            known += one_seed(seed)
            write_json(FIGURE, {"rows": known})
            print(f"seed {seed} is done", flush=True)
