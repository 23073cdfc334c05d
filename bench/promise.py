"""Are promised false alarms kept, from both sides? `python -m bench.promise` writes figures/promise.json.

`filters` with `knn` at 64 pixels a side, threshold at the 95 % quantile of held-out scores: 5 % of new normal images
are promised to reach it, and not much fewer should. Normal images are split at random, one part sets the threshold, the
other is new. Where images have siblings (frames of one video, squares of one image), whole groups go to one side, and
the detector leaves them out together and counts them once or, for comparison, does not. Few groups promise less than
5 %: what they do promise is in the column `promised`.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly_nb.core.files import write_json
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import read_image, read_index
from anomaly_nb.data.samples import write_samples
from anomaly_nb.features import FeatureSet, create_backbone
from anomaly_nb.scoring import Detector

DATA = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere")
SAMPLES = ("weave", "nut")
SIZE, PROMISED = 64, 0.05
FIGURE = Path(__file__).parent.parent / "figures/promise.json"


def features_of(images: list[np.ndarray], groups: list[str]) -> FeatureSet:
    "Features of normal images."
    network = create_backbone("filters", image_size=SIZE)
    found = [network(network.transform(image)[None]) for image in images]
    return FeatureSet(
        np.concatenate([f[0] for f in found]),
        found[0][1],
        pd.DataFrame({"group": groups}),
        np.concatenate([f[2] for f in found]),
    )


def normal_images(name: str) -> tuple[list[np.ndarray], list[str]]:
    "Normal images and their groups; '' for none."
    if name == "magnetic_tile":
        index = read_index("magnetic_tile", DATA / "images/magnetic_tile", "", "keep")
        paths = list(index["image_path"][index["label"] == 0])
        return [read_image(p) for p in paths], [""] * len(paths)
    if name == "ped2":
        paths = sorted((DATA / "video/ped2").glob("training/frames/*/*.jpg"))[::6]
        return [read_image(p) for p in paths], [p.parent.name for p in paths]
    if name == "leather":
        index = read_index("mvtec", DATA / "images/mvtec", "leather", "keep")
        paths = list(index["image_path"][index["label"] == 0])
        places = [(y, x) for y in range(0, 1024, 256) for x in range(0, 1024, 256)]
        return [i[y : y + 256, x : x + 256] for i in map(read_image, paths) for y, x in places], [
            Path(p).parent.parent.name + Path(p).stem for p in paths for _ in places
        ]
    with tempfile.TemporaryDirectory() as folder:
        write_samples(folder, n_train=160, n_good=1, n_defect=1, size=SIZE)
        index = read_index("mvtec", folder, name)
        paths = index["image_path"][index["split"] == "train"]
        return [read_image(p) for p in paths], [""] * len(paths)


def rates(
    features: FeatureSet, coreset: float, grouped: bool, splits: int
) -> list[tuple[float, float]]:  # what is found and what was promised
    "False alarms among new images, split by split; half of the images, or groups, are new."
    group = features.meta["group"].to_numpy()
    names = np.unique(group) if grouped or group[0] else np.arange(len(group))
    found = []
    for seed in range(splits):
        new = np.isin(
            group if group[0] else np.arange(len(group)),
            np.random.default_rng(seed).permutation(names)[: len(names) // 2],
        )
        train = features.where(~new)
        if not grouped:
            train = FeatureSet(train.patches, train.patch_hw, train.meta.drop(columns="group"), train.cls)
        detector = Detector("knn", coreset=coreset, threshold=f"quantile:{1 - PROMISED}").fit(train)
        found.append((float(detector.predict(features.where(new)).mean()), detector.threshold_.rate()))
    return found


def main() -> None:
    "Every set at hand, or those named."
    parser = argparse.ArgumentParser(
        prog="python -m bench.promise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets", default=",".join((("magnetic_tile", "ped2", "leather") if DATA.is_dir() else ()) + SAMPLES)
    )
    parser.add_argument("--splits", type=int, default=10)
    args = parser.parse_args()
    for name in args.sets.split(","):
        images, groups = normal_images(name)
        features = features_of(images, groups)
        for coreset in (0.01, 0.02, 0.05, 0.1, 0.25, 1.0):
            for grouped in (True, False) if groups[0] else (False,):
                found, promised = np.array(rates(features, coreset, grouped, args.splits)).T
                row = {
                    "images": len(images),
                    "groups": len(set(groups)) if groups[0] else 0,
                    "left out by group": grouped,
                    "coreset": coreset,
                }
                row |= {
                    "promised": round(float(promised.mean()), 4),
                    "mean": round(float(found.mean()), 4),
                    "low": round(float(found.min()), 4),
                    "high": round(float(found.max()), 4),
                    "splits": len(found),
                }
                known = read_json(FIGURE) if FIGURE.is_file() else {}
                write_json(FIGURE, known | {f"{name}, coreset {coreset:.0%}" + (", by group" if grouped else ""): row})
                print(name, row, flush=True)


if __name__ == "__main__":
    main()
