"""Large synthetic images, and the peak memory of reports on them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

NETWORK = {"backbone": "timm:mobilenetv3_small_050?layers=(1,2)", "weights": "random", "recipe": "mahalanobis"}
TRAINED = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere") / "weights/mobilenetv2_100_imagenet.safetensors"
# random weights see large defects only; the weak ones need a network that has learned to see
SHARP = {
    "backbone": "timm:mobilenetv2_100?layers=(1,2)&pad_type=same&mean=0.5&std=0.5",
    "weights": str(TRAINED),
    "recipe": "mahalanobis",
}
SPOT = 12  # pixels of a planted defect's side
MEASURE = """
import json, resource, sys
from anomaly_nb.reports import run_report
given, figures = json.loads(sys.argv[1]), sys.argv[2]
run = run_report("image_anomaly", given, figures)
peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
print(json.dumps({"peak_mib": peak, "folder": str(run.page.parent), "metrics": dict(run.metrics)}))
"""


def weave(shape, seed, spot=None):
    """A grey woven sheet (H, W) uint8, with a dark square at (top, left); made by rows and columns, since large ones
    are many.
    """
    rng, (height, width) = np.random.default_rng(seed), shape
    rows, columns = (
        np.sin(np.arange(n) / period) * 25 + rng.normal(0, 3, n) for n, period in ((height, 7), (width, 6))
    )
    grey = (110 + rows[:, None] + columns[None]).astype(np.int16)
    block = rng.integers(-6, 7, (256, 256), np.int16)
    grey += np.tile(block, (height // 256 + 1, width // 256 + 1))[:height, :width]
    if spot:
        grey[spot[0] : spot[0] + SPOT, spot[1] : spot[1] + SPOT] = 30
    return np.clip(grey, 0, 255).astype(np.uint8)


def write_sheets(root, shape, n_train, n_good, n_defect, masks=True):
    """A folder in MVTec's layout, with masks if asked for; the places of the defects."""
    root, spots = Path(root) / "sheet", []
    for part, count in (("train/good", n_train), ("test/good", n_good), ("test/spot", n_defect)):
        (root / part).mkdir(parents=True)
        for i in range(count):
            spot = None
            if part == "test/spot":
                place = np.random.default_rng(1000 + i)
                spot = (
                    int(place.integers(shape[0] // 8, shape[0] - 60)),
                    int(place.integers(shape[1] // 8, shape[1] - 60)),
                )
                spots.append(spot)
                if masks:
                    mask = np.zeros(shape, np.uint8)
                    mask[spot[0] : spot[0] + SPOT, spot[1] : spot[1] + SPOT] = 255
                    (root / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(root / f"ground_truth/spot/{i:03d}_mask.png", compress_level=1)
            seed = {"train/good": 0, "test/good": 10_000, "test/spot": 20_000}[part] + i
            Image.fromarray(weave(shape, seed, spot)).save(root / part / f"{i:03d}.jpg", quality=92)
    return spots


def measure(root, figures, **given):
    """A report in a process of its own: its metrics, folder, seconds and peak memory in MiB."""
    given = {
        "dataset": "mvtec",
        "root": str(root),
        "category": "sheet",
        "on_missing": "keep",
        "image_reduce": "max",
        "cache": str(Path(figures) / "features"),
    } | given
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(given), str(figures)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - start}
