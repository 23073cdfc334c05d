"""Reports on large and on many images in bounded memory, small here; at their full sizes with ANOMALY_NB_SLOW=1, which
takes half an hour.
"""

import os
import subprocess
import sys
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_nb.core.runtime import deterministic
from anomaly_nb.data import Intensity, read_image, read_index
from anomaly_nb.scoring import Detector, overlay, plot_cases
from anomaly_nb.scoring.figures import case_panels

from .large_images import NETWORK, SHARP, SPOT, TRAINED, measure, weave, write_sheets

slow = pytest.mark.skipif(not os.environ.get("ANOMALY_NB_SLOW"), reason="half an hour; set ANOMALY_NB_SLOW=1")


def surrounds(box, spot, most):
    """Whether a box holds the middle of a planted defect, and is not much larger."""
    left, top, right, bottom = box
    return (
        left <= spot[1] + SPOT / 2 < right
        and top <= spot[0] + SPOT / 2 < bottom
        and max(right - left, bottom - top) <= most
    )


def peak_mib(work):
    """What `work` allocates at most, in MiB."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    plt.close("all")
    return peak / 2**20


@pytest.mark.parametrize("how", [{"image_size": 64}, {"tile": 192, "overlap": 16, **NETWORK}])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch, how):
    monkeypatch.setattr(
        "anomaly_nb.metrics.regions.PORTION", 1 << 16
    )  # scores that are sorted at a time, 8 million otherwise
    write_sheets(tmp_path, (300, 400), 2, 9, 3)
    index = read_index("mvtec", tmp_path, "sheet")
    detector = Detector(coreset=100, **({"backbone": "filters"} | how)).fit(index)
    test = index[index["split"] == "test"]

    def report(rows):
        result = detector.evaluate(rows, size=4)
        result.pixel_metrics()
        plot_cases(result, [0])

    # the fewer already keep two threads busy
    few, many = (peak_mib(lambda n=n: report(test.iloc[np.arange(n) % len(test)])) for n in (18, 36))
    assert many < few + 1  # maps of eighteen more images are 8 MiB


def test_panels_of_a_large_image_are_made_small(tmp_path):
    Image.new("L", (3000, 3000), 110).save(tmp_path / "huge.png")
    assert (tmp_path / "huge.png").stat().st_size < 20_000
    Image.fromarray(weave((300, 300), 0)).save(tmp_path / "a.png")
    Image.fromarray(weave((300, 300), 1)).save(tmp_path / "b.png")
    detector = Detector(backbone="filters", image_size=64).fit([str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    result = detector.evaluate([str(tmp_path / "huge.png")])
    result.meta = result.meta.assign(label=0, mask_path="", mask_threshold=1)
    panels = case_panels(result, 0, (0.0, 1.0))
    assert max(max(p.shape[:2]) for p in panels) <= 480
    image = 3000 * 3000 * 3 / 2**20
    assert (
        peak_mib(lambda: case_panels(result, 0, (0.0, 1.0))) < 2.2 * image
    )  # the image and its grey values; no map at its size
    assert (
        np.abs(result.heatmap(0, (480, 480)) - result.maps[0][::25, ::25].repeat(4, 0).repeat(4, 1)[:480, :480]).max()
        < 0.05 * np.ptp(result.maps[0]) + 1e-6
    )


PEAK = r"""
import re, sys
from pathlib import Path
from anomaly_nb.data.images import read_image, resize_image
peak = lambda: int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # a child's ru_maxrss is at least its parent's
before = peak()
image = read_image(sys.argv[1])
read = peak() - before
resize_image(image, (160, 160))
print(read, peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's peak of a process")
def test_a_large_image_is_in_memory_once(tmp_path):
    Image.new("L", (8000, 8000), 110).save(tmp_path / "huge.png")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "huge.png")], capture_output=True, text=True, check=True
    )
    read, shrunk = map(float, done.stdout.split())
    assert (
        180 < read < 300 and shrunk < 330
    )  # grey 61 MiB and RGB 183; whole, Pillow's RGB would be 244 more, and its bytes 366


def test_large_images_band_by_band_keep_their_bits(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (1600, 3001, 4), np.uint8)
    values[700:, :, 3] = 255  # bands with and without transparency
    for mode, made in {"L": values[..., 0], "RGB": values[..., :3], "RGBA": values, "LA": values[..., [0, 3]]}.items():
        Image.fromarray(made).save(tmp_path / f"{mode}.png", compress_level=1)
    Image.fromarray(values[..., :3]).quantize(64).save(tmp_path / "P.png", transparency=3, compress_level=1)
    for name in ("L", "RGB", "RGBA", "LA", "P"):
        file = Image.open(tmp_path / f"{name}.png")
        full = file.convert("RGBA")
        assert np.array_equal(
            read_image(tmp_path / f"{name}.png"),
            np.asarray(Image.alpha_composite(Image.new("RGBA", full.size, (0, 0, 0, 255)), full).convert("RGB")),
        ), name
    deep = rng.integers(0, 4096, (1600, 3001), np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png", compress_level=1)
    rule = Intensity("window 100..3000", 100.0, 3000.0, "uint16")
    made, clipped = rule.apply(deep)
    assert (
        np.array_equal(made, np.rint(np.clip((deep - 100.0) * (255 / 2900), 0, 255)).astype(np.uint8))
        and clipped == ((deep < 100) | (deep > 3000)).sum()
    )
    assert np.array_equal(read_image(tmp_path / "deep.png", rule)[..., 1], made)
    heat = rng.random((1600, 3001), np.float32)
    image, halves = read_image(tmp_path / "RGB.png"), (slice(0, 700), slice(700, 1600))
    assert np.array_equal(
        overlay(image, heat, (0.1, 0.8)), np.concatenate([overlay(image[h], heat[h], (0.1, 0.8)) for h in halves])
    )


def test_tiles_find_what_squeezing_misses(tmp_path):
    torch.manual_seed(0)
    spots = write_sheets(tmp_path, (768, 1024), 5, 2, 2)
    index = read_index("mvtec", tmp_path, "sheet")
    tiled = Detector(tile=256, overlap=32, aggregation="max", threshold="quantile:0.8", **NETWORK).fit(index)
    result = tiled.evaluate(index)
    assert result.called.tolist() == (result.labels == 1).tolist()
    for i, spot in zip(np.flatnonzero(result.labels == 1), spots, strict=True):
        assert surrounds(result.box(i), spot, 64) and result.maps[i].shape == (768, 1024)
    squeezed = (
        Detector(image_size=160, aggregation="max", threshold="quantile:0.8", **NETWORK).fit(index).evaluate(index)
    )
    assert squeezed.image_metrics()["image_auroc"] < 1 and not any(
        surrounds(squeezed.box(i), s, 64) for i, s in zip(np.flatnonzero(squeezed.labels == 1), spots, strict=True)
    )


@slow
def test_four_hundred_images_and_one_of_12000_pixels(tmp_path):
    write_sheets(tmp_path, (1500, 2000), 340, 40, 20)
    assert measure(tmp_path, tmp_path / "figures", backbone="filters", image_size=160, coreset=1000)["peak_mib"] < 1500
    Image.new("L", (12000, 12000), 110).save(tmp_path / "sheet/test/good/999.png")
    assert measure(tmp_path, tmp_path / "figures", backbone="filters", image_size=160, coreset=1000)["peak_mib"] < 1500


@slow
@pytest.mark.skipif(not TRAINED.is_file(), reason="needs trained weights in ANOMALY_NB_DATA")
def test_fifty_images_of_24_megapixels(tmp_path):
    spots = write_sheets(tmp_path, (4000, 6000), 8, 38, 4, masks=False)
    squeezed = measure(tmp_path, tmp_path / "figures", image_size=320, **SHARP)
    tiled = measure(tmp_path, tmp_path / "figures", image_size=0, tile=512, overlap=64, **SHARP)
    print(squeezed, tiled)
    assert (
        tiled["peak_mib"] < 2000
        and tiled["metrics"]["recall"] == 1
        and squeezed["metrics"]["image_auroc"] < tiled["metrics"]["image_auroc"] == 1
    )
    deterministic(0)
    detector, paths = Detector.load(f"{tiled['folder']}/detector"), sorted((tmp_path / "sheet/test/spot").iterdir())
    result = detector.evaluate([str(p) for p in paths])
    assert result.called.all() and all(surrounds(result.box(i), spots[i], 96) for i in range(4))
