"""Leather and magnetic tile through `anomaly-nb benchmark`: `python -m bench.small_benchmark FOLDER` writes
figures/small_benchmark.csv.

FOLDER takes the plan, the list of tiles, features and runs; started again, it goes on where it was. Real data are read
from the folder named by
ANOMALY_NB_DATA: of the tiles every third normal one, 100 to learn from and the rest to test on, and every sixth damaged
one. Of leather there are 4 normal images to learn from, so that it has no rows of 8 and 16, and few seeds of 2 and 4.
"""

import os
import sys
from pathlib import Path

import pandas as pd

from anomaly_nb.cli.main import main
from anomaly_nb.core.files import write_text
from anomaly_nb.data.headers import list_images

DATA = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere")
FIGURE = Path(__file__).parent.parent / "figures/small_benchmark.csv"
DEFECTS = ("Blowhole", "Break", "Crack", "Fray", "Uneven")
PLAN = """data:
  - {{dataset: mvtec, root: {data}/images/mvtec, category: leather}}
  - {{dataset: csv, root: {tiles}, category: magnetic_tile}}
backbones:
  - filters
  - {{backbone: "timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5", weights: {data}/weights/mobilenetv2_100_imagenet.safetensors}}
recipes: [knn, patchcore, padim, gauss_knn]
sizes: 128
shots: [1, 2, 4, 8, 16, all]
seeds: [0, 1, 2, 3, 4]
pixels: false
on_missing: keep
cache: {cache}
"""


def tiles(path: Path) -> Path:
    "The list of tiles."

    def some(defect: str, step: int) -> list[str]:
        return [
            p.as_posix() for p in list_images(DATA / f"images/magnetic_tile/MT_{defect}/Imgs") if p.suffix == ".jpg"
        ][::step]

    rows = [(f, "train" if i < 100 else "test", 0, "good") for i, f in enumerate(some("Free", 3))]
    rows += [(f, "test", 1, defect.lower()) for defect in DEFECTS for f in some(defect, 6)]
    table = pd.DataFrame(rows, columns=["image_path", "split", "label", "defect"]).assign(category="magnetic_tile")
    return write_text(path, table.to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    text = PLAN.format(
        data=DATA.as_posix(), tiles=tiles(folder / "tiles.csv").as_posix(), cache=(folder / "cache").as_posix()
    )
    try:
        main(
            [
                "benchmark",
                str(write_text(folder / "small_benchmark.yml", text)),
                "--figures",
                str(folder / "figures"),
                *sys.argv[2:],
            ]
        )
    finally:
        made = folder / "figures/benchmarks/small_benchmark.csv"
        if made.is_file():
            table = pd.read_csv(made, dtype=str, keep_default_na=False).drop(columns=["run_id", "row_s"])
            write_text(FIGURE, table.to_csv(index=False, lineterminator="\n"))
