"""How well the choice without labels agrees with test labels: `python -m bench.choice` writes figures/choice.json, one
case after another.

A case is a data set, an input size and a backbone; in each, ten recipes are ranked by how well they find synthetic
anomalies in images that were kept
back, and by their true AUROC. Beside the measure of `anomaly_nb.scoring.validation`: the anomalies used before it (a
patch of foreign texture on each
image), and signals that need no anomalies. Real data are read from the folder named by ANOMALY_NB_DATA. Features go to
a folder outside the repository.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from scipy.stats import rankdata, spearmanr
from sklearn.base import clone

from anomaly_nb.banks import held_out_scores
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.files import write_json
from anomaly_nb.data import read_image, read_index
from anomaly_nb.data.samples import smooth_noise, write_samples
from anomaly_nb.data.synthetic import ANOMALY_TYPES, synthetic_anomaly
from anomaly_nb.features import create_backbone
from anomaly_nb.metrics import roc_auc
from anomaly_nb.scoring import image_scores, synthetic_auroc
from anomaly_nb.scoring.recipes import recipe_parts
from anomaly_nb.scoring.validation import STRENGTHS

RECIPES = (
    "knn",
    "knn-euclidean",
    "mahalanobis",
    "placed",
    "subspace",
    "positional",
    "patchcore",
    "padim",
    "whitened-euclidean",
    "gauss_knn",
)
DATA = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere")
MOBILENET = "timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5"
BACKBONES = {
    "filters": ("filters", None),
    "filters-1": ("filters-1", None),
    "mobilenetv2": (MOBILENET, str(DATA / "weights/mobilenetv2_100_imagenet.safetensors")),
}
SAMPLES = ("capsule", "nut", "weave", "wood", "granite")
SETS = ("magnetic_tile", "ped2", "leather", *SAMPLES)
SIDE, TRAIN, APART = 128, 32, 6  # pixels of the longer side; images to learn from; of these kept back
FIGURE = Path(__file__).parent.parent / "figures/choice.json"

Images = list[np.ndarray]  # (H, W, 3) uint8 each


def some(rng: np.random.Generator, items: list, n: int) -> list:
    "At most n of them, drawn."
    return [items[i] for i in rng.permutation(len(items))[:n]]


def small(image: np.ndarray) -> np.ndarray:
    "An image of at most `SIDE` pixels."
    scale = SIDE / max(image.shape[:2])
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    return (
        image
        if scale >= 1
        else np.asarray(
            Image.fromarray(image).resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
        )
    )


def magnetic_tile(rng: np.random.Generator) -> tuple[Images, Images, list[int]]:
    "Magnetic tiles: normal images to learn from, test images, their labels."
    index = read_index("magnetic_tile", DATA / "images/magnetic_tile", "", "keep")
    rows = {k: list(g["image_path"]) for k, g in index.groupby(["split", "defect"])}
    train = sorted(some(rng, rows["train", "good"], TRAIN), key=rows["train", "good"].index)
    parts = [
        (some(rng, paths, 40 if defect == "good" else 10), int(defect != "good"))
        for (split, defect), paths in rows.items()
        if split == "test"
    ]
    return (
        [read_image(p) for p in train],
        [read_image(p) for paths, _ in parts for p in paths],
        [label for paths, label in parts for _ in paths],
    )


def leather(rng: np.random.Generator) -> tuple[Images, Images, list[int]]:
    """Leather in squares of 256 pixels, a square is anomalous with 60 pixels of the mask; test images without a mask
    are left out.
    """
    index, found = read_index("mvtec", DATA / "images/mvtec", "leather", "keep"), {"train": [], "good": [], "bad": []}
    places = [(y, x) for y in range(0, 1024, 256) for x in range(0, 1024, 256)]
    for row in index.itertuples():
        if row.label and not row.mask_path:
            continue
        image = read_image(row.image_path)
        mask = (
            np.asarray(Image.open(row.mask_path).convert("L").resize((1024, 1024))) > 128
            if row.label
            else np.zeros((1024, 1024), bool)
        )
        for y, x in places:
            here = (
                "train"
                if row.split == "train"
                else "bad"
                if mask[y : y + 256, x : x + 256].sum() >= 60
                else ""
                if row.label
                else "good"
            )
            if here:
                found[here].append(image[y : y + 256, x : x + 256])
    train, good, bad = (some(rng, found[k], n) for k, n in (("train", TRAIN), ("good", 40), ("bad", 50)))
    return train, good + bad, [0] * len(good) + [1] * len(bad)


def ped2(rng: np.random.Generator) -> tuple[Images, Images, list[int]]:
    "Frames of UCSD Ped2; a test frame is anomalous where its mask is not empty."
    train = sorted((DATA / "video/ped2").glob("training/frames/*/*.jpg"))
    test = sorted((DATA / "video/ped2").glob("testing/frames/*/*.jpg"))
    label = [int(np.asarray(Image.open(p.parents[2] / "masks" / p.parent.name / f"{p.stem}.png")).any()) for p in test]
    good, bad = (some(rng, [p for p, k in zip(test, label) if k == which], n) for which, n in ((0, 40), (1, 50)))
    return (
        [read_image(train[i]) for i in np.linspace(0, len(train) - 1, TRAIN).astype(int)],
        [read_image(p) for p in good + bad],
        [0] * len(good) + [1] * len(bad),
    )


def sample(name: str) -> Callable[[np.random.Generator], tuple[Images, Images, list[int]]]:
    "A sample line."

    def read(rng: np.random.Generator) -> tuple[Images, Images, list[int]]:
        with tempfile.TemporaryDirectory() as folder:
            write_samples(folder, n_train=TRAIN, n_good=32, n_defect=8, size=SIDE)
            index = read_index("mvtec", folder, name)
            test = index[index["split"] == "test"]
            return (
                [read_image(p) for p in index["image_path"][index["split"] == "train"]],
                [read_image(p) for p in test["image_path"]],
                list(test["label"]),
            )

    return read


READERS = {"magnetic_tile": magnetic_tile, "leather": leather, "ped2": ped2} | {name: sample(name) for name in SAMPLES}


def foreign_patch(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The anomaly used before: an irregular spot of 0.3 to 3 % of the area with the texture of another image, lighter
    or darker.
    """
    height, width = image.shape[:2]
    resized = np.asarray(Image.fromarray(other).resize((width, height)), np.float32)
    noise = smooth_noise(rng, max(height, width), max(height, width) / rng.uniform(15, 40))[:height, :width]
    y, x = rng.uniform(0.15, 0.85, 2) * (height, width)
    rows, columns = np.mgrid[:height, :width]
    reach = min(height, width) * rng.uniform(0.1, 0.25)
    near = noise / max(float(np.abs(noise).max()), 1e-9) - np.hypot(rows - y, columns - x) / reach
    area = max(8, int(rng.uniform(0.003, 0.03) * height * width))
    mask = near >= np.partition(near.reshape(-1), -area)[-area]
    foreign = np.roll(resized, tuple(int(s) for s in rng.integers(1, [height, width])), axis=(0, 1))
    foreign = foreign * rng.uniform(0.7, 1.3) + rng.choice([-1, 1]) * rng.uniform(8, 40)
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.7)[..., None] * rng.uniform(0.5, 1)
    return np.clip(image * (1 - soft) + foreign * soft + 0.5, 0, 255).astype(np.uint8)


def made(train: Images) -> tuple[np.ndarray, Images, pd.DataFrame]:
    "Rows kept back; copies with synthetic anomalies, then with the anomalies used before; a table of both."
    rng = np.random.default_rng(1)
    apart = np.sort(rng.permutation(len(train))[:APART])
    images, rows = [], []
    for i in apart:
        for anomaly_type in ANOMALY_TYPES:
            for strength in STRENGTHS:
                try:
                    images.append(synthetic_anomaly(train[i], anomaly_type, strength, int(i))[0])
                except DataError:
                    continue
                rows.append((i, anomaly_type, strength))
    others = np.setdiff1d(np.arange(len(train)), apart)
    for i in apart:
        images.append(foreign_patch(train[i], train[rng.choice(others)], rng))
        rows.append((i, "before", 0))
    return apart, images, pd.DataFrame(rows, columns=["source", "defect", "strength"])


def features_of(network, images: Images) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    "Patches, vectors and grid."
    found = [
        network(np.stack([network.transform(image) for image in images[i : i + 16]])) for i in range(0, len(images), 16)
    ]
    return np.concatenate([f[0] for f in found]), np.concatenate([f[2] for f in found]), found[0][1]


def scores_of(
    train: Images, test: Images, backbone: str, size: int, apart: np.ndarray, copies: Images
) -> dict[str, dict[str, np.ndarray]]:
    """Image scores of each recipe: of the images kept back and copies, by banks of the rest, and of each half of it;
    held out; of the test images.
    """
    name, weights = BACKBONES[backbone]
    network = create_backbone(name, weights, size)
    (x, cls, grid), (copied, copied_cls, _), (tested, tested_cls, _) = (
        features_of(network, images) for images in (train, copies, test)
    )
    rest, out = np.setdiff1d(np.arange(len(x)), apart), {}
    asked, asked_cls = np.concatenate([x[apart], copied]), np.concatenate([cls[apart], copied_cls])
    for recipe in RECIPES:
        parts = recipe_parts(recipe, name, size, coreset=0.25)

        def fitted(rows: np.ndarray) -> tuple:
            preparation = clone(parts.preparation).fit(x[rows])
            bank = clone(parts.bank).fit(preparation.transform(x[rows]), grid, cls[rows])
            return (
                preparation,
                bank,
                lambda a, c: image_scores(bank.score(preparation.transform(a), c), parts.aggregation),
            )

        preparation, bank, score = fitted(rest)
        out[recipe] = {"asked": score(asked, asked_cls)} | {
            f"half{k}": fitted(rest[k::2])[2](asked, asked_cls) for k in (0, 1)
        }
        out[recipe]["held_out"] = image_scores(
            held_out_scores(bank, preparation.transform(x[rest]), grid, cls=cls[rest]), parts.aggregation
        )
        out[recipe]["test"] = fitted(np.arange(len(x)))[2](tested, tested_cls)
    return out


def signals(scores: dict[str, dict[str, np.ndarray]], apart: np.ndarray, table: pd.DataFrame) -> dict[str, np.ndarray]:
    "Each way of ranking recipes without labels, high = better."
    before = (table["defect"] == "before").to_numpy()
    plain = pd.DataFrame({"source": apart, "defect": "good", "strength": 0, "label": 0})
    meta = pd.concat([plain, table[~before].assign(label=1)], ignore_index=True)
    of = {
        r: {
            "plain": s["asked"][: len(apart)],
            "copies": s["asked"][len(apart) :][~before],
            "before": s["asked"][len(apart) :][before],
        }
        for r, s in scores.items()
    }
    asked = {r: np.r_[o["plain"], o["copies"]] for r, o in of.items()}
    ranks = np.array([rankdata(a) for a in asked.values()])
    found = {
        "before": [
            roc_auc(np.repeat([0, 1], [len(o["plain"]), len(o["before"])]), np.r_[o["plain"], o["before"]])
            for o in of.values()
        ]
    }
    found["now"] = synthetic_auroc(asked, meta, {r: s["held_out"] for r, s in scores.items()}, 1)["auroc"].to_list()
    tests = meta["defect"][meta["label"] == 1].to_numpy()
    found["plain mean of AUROC"] = [
        np.mean(
            [
                roc_auc(np.repeat([0, 1], [len(apart), (tests == k).sum()]), np.r_[o["plain"], o["copies"][tests == k]])
                for k in np.unique(tests)
            ]
        )
        for o in of.values()
    ]
    found["narrow held-out scores"] = [-s["held_out"].std() / s["held_out"].mean() for s in scores.values()]
    found["agreement of two halves"] = [
        spearmanr(*(s[f"half{k}"][: len(apart) + (~before).sum()] for k in (0, 1)))[0] for s in scores.values()
    ]
    found["agreement with the others"] = [spearmanr(r, ranks.sum(axis=0) - r)[0] for r in ranks]
    return {k: np.asarray(v, float) for k, v in found.items()}


def judged(scores: dict[str, dict[str, np.ndarray]], apart: np.ndarray, table: pd.DataFrame, labels: list[int]) -> dict:
    """A case: the true AUROC of each recipe, and of each signal the rank correlation with it and the true AUROC of its
    choice.
    """
    true = np.array([roc_auc(labels, s["test"]) for s in scores.values()])
    row: dict = {"true": dict(zip(scores, true.round(4).tolist())), "rank_correlation": {}, "chosen": {}}
    for name, value in signals(scores, apart, table).items():
        row["rank_correlation"][name] = round(
            float(spearmanr(value, true)[0]) if np.ptp(value) > 0 and np.ptp(true) > 0 else 0.0, 4
        )
        row["chosen"][name] = list(scores)[int(np.argmax(value))]
    return row


def main() -> None:
    "Every case of the data at hand."
    parser = argparse.ArgumentParser(
        prog="python -m bench.choice", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS if DATA.is_dir() else SAMPLES))
    parser.add_argument("--sizes", default="96,128")
    parser.add_argument("--small", action="store_true", help="one case; prints, writes nothing")
    args, cases = parser.parse_args(), {}
    for name in args.sets.split(",")[: 1 if args.small else None]:
        train, test, labels = READERS[name](np.random.default_rng(5))
        train, test = [small(i) for i in train], [small(i) for i in test]
        apart, copies, table = made(train)
        for size in map(int, args.sizes.split(",")[: 1 if args.small else None]):
            for backbone in [b for b in BACKBONES if DATA.is_dir() or b.startswith("filters")][
                : 1 if args.small else None
            ]:
                cases[f"{name} {size} {backbone}"] = judged(
                    scores_of(train, test, backbone, size, apart, copies), apart, table, labels
                )
                print(name, size, backbone, cases[f"{name} {size} {backbone}"], flush=True)
    if not args.small:
        write_json(FIGURE, {"recipes": RECIPES, "cases": cases})


if __name__ == "__main__":
    main()
