"""Metrics against scikit-learn and against the full sort, and streams of maps in bounded memory."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from anomaly_nb.metrics import (
    RegionHistogram,
    ScoreHistogram,
    aupro,
    aupro_bounds,
    average_precision,
    histogram_intervals,
    roc_auc,
)


def timed(function, repeat: int = 1):
    "Shortest wall time of `repeat` calls, and the last result."
    best, result = np.inf, None
    for _ in range(repeat):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def row(name: str, ours: float, reference: float | None, work: str, note: str) -> dict:
    "One row of the report."
    return {
        "name": name,
        "ours_s": ours,
        "reference_s": reference,
        "ratio": None if reference is None else reference / ours,
        "work": work,
        "note": note,
    }


def images(n: int, shape: tuple[int, int], random_state: int = 0):
    """Yield n masks and smooth noisy maps, made from eight by shifting: about 1 % anomalous pixels, a quarter of the
    images normal.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(random_state)
    noise = [gaussian_filter(rng.normal(size=shape), 8).astype(np.float32) for _ in range(8)]
    noise = [b / b.std() for b in noise]
    fine = [rng.normal(size=shape).astype(np.float32) * np.float32(0.3) for _ in range(8)]
    for i in range(n):
        mask = np.roll(noise[i % 8], 37 * i, axis=0) > (2.2 if i % 4 else np.inf)
        yield mask, np.roll(noise[(3 * i + 1) % 8], i, axis=1) + fine[i % 8] + np.float32(1.5) * mask


def full_sort_aupro(masks, maps, limit: float = 0.3) -> float:
    "AUPRO by sorting every pixel: the definition, written plainly."
    from scipy.ndimage import label

    fp, fraction, score, regions = [], [], [], 0
    for mask, one in zip(masks, maps):
        numbers, n = label(mask, structure=np.ones((3, 3)))
        size = np.bincount(numbers.ravel())
        fp.append(~mask.ravel())
        fraction.append(np.where(mask, 1 / size[numbers], 0).ravel())
        score.append(one.ravel())
        regions += n
    order = np.argsort(np.concatenate(score), kind="stable")[::-1]
    score_sorted = np.concatenate(score)[order]
    x = np.cumsum(np.concatenate(fp)[order], dtype=np.float64)
    y = np.cumsum(np.concatenate(fraction)[order]) / regions
    last_of_tie = np.append(np.diff(score_sorted) != 0, True)
    x, y = np.append(0, x[last_of_tie] / x[-1]), np.append(0, y[last_of_tie])
    beyond = np.searchsorted(x, limit, side="right")
    area = np.sum(np.diff(x[:beyond]) * (y[1:beyond] + y[: beyond - 1])) / 2
    if x[beyond - 1] < limit:
        end = np.interp(limit, x[beyond - 1 : beyond + 1], y[beyond - 1 : beyond + 1])
        area += (limit - x[beyond - 1]) * (y[beyond - 1] + end) / 2
    return float(area / limit)


def _stream(n: int, shape: tuple[int, int]) -> tuple[float, float, float]:
    """Seconds to count n images and read every metric, AUROC's bracket, and peak memory in MB; run in a process of its
    own.
    """
    histogram, seconds = RegionHistogram(), 0.0
    for mask, score in images(n, shape):
        start = time.perf_counter()
        histogram.update(mask, score)
        seconds += time.perf_counter() - start
    start, scores = time.perf_counter(), histogram.scores
    for metric in (scores.roc_auc, scores.average_precision, scores.fpr_at_tpr, scores.best_f1, scores.youden):
        metric()
    low, high = scores.bounds()["roc_auc"]
    aupro_bounds(histogram.pro_curve())
    histogram.aupro()
    seconds += time.perf_counter() - start
    return seconds, high - low, peak_memory()


def peak_memory() -> float:
    "Largest resident memory of this process so far, MB."
    from pathlib import Path

    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts the parent's memory before exec
        return next(int(line.split()[1]) for line in status.read_text().split("\n") if line.startswith("VmHWM")) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def pixels(n: int) -> list[dict]:
    "AUROC and AP of n pixels: counted, sorted, and by scikit-learn."
    from sklearn.metrics import average_precision_score, roc_auc_score

    from .banks import by_turns  # which takes `timed` and `row` from here

    rng = np.random.default_rng(0)
    y_true = rng.random(n) < 0.02
    score = (rng.normal(size=n) + 1.5 * y_true).astype(np.float32)

    def counted():
        histogram = ScoreHistogram().update(y_true, score)
        return histogram.roc_auc(), histogram.average_precision(), histogram

    def scikit():
        return roc_auc_score(y_true, score), average_precision_score(y_true, score)

    ours, theirs, (_, _, histogram), expected = by_turns(counted, scikit, 3)
    plain, beside_plain, exact, _ = by_turns(
        lambda: (roc_auc(y_true, score), average_precision(y_true, score)), scikit, 2
    )
    assert np.allclose(exact, expected, rtol=0, atol=1e-12), "the sorted metrics must equal scikit-learn's"
    stored = histogram.stored(score)
    assert np.allclose(
        (histogram.roc_auc(), histogram.average_precision()),
        (roc_auc(y_true, stored), average_precision(y_true, stored)),
        rtol=0,
        atol=1e-12,
    )
    bounds = histogram.bounds()
    assert all(low <= v <= high for v, (low, high) in zip(expected, (bounds["roc_auc"], bounds["average_precision"])))
    work = f"AUROC + AP of {n:.0e} pixels"
    return [
        row(
            "ScoreHistogram / scikit-learn",
            ours,
            theirs,
            work,
            f"exact for half floats, AUROC of float32 bracketed to {bounds['roc_auc'][1] - bounds['roc_auc'][0]:.0e}",
        ),
        row("roc_auc, average_precision / same", plain, beside_plain, work, "equal to 1e-12"),
    ]


def regions(n: int, side: int) -> list[dict]:
    "AUPRO of n square maps: in two passes, and by the full sort."
    from .banks import by_turns

    masks, maps = (list(part) for part in zip(*images(n, (side, side))))
    ours, theirs, value, expected = by_turns(lambda: aupro(masks, maps), lambda: full_sort_aupro(masks, maps), 2)
    assert abs(value - expected) < 1e-9, "both must be the same number"
    return [
        row(
            "aupro / full sort",
            ours,
            theirs,
            f"AUPRO of {n} maps {side}x{side}",
            f"differ by {abs(value - expected):.0e}",
        )
    ]


def stream(n: int, shape: tuple[int, int]) -> list[dict]:
    "All metrics of n maps that come one by one, in a process of its own."
    size = f"{shape[0]}x{shape[1]}"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        seconds, width, memory = pool.submit(_stream, n, shape).result()
    note = f"{memory:.0f} MB of memory at most, AUROC known to {width:.0e}"
    return [
        {
            **row(
                f"RegionHistogram, {n} x {size}",
                seconds,
                None,
                f"all metrics and AUPRO of {n} maps {size}, streamed",
                note,
            ),
            "peak_mb": memory,
        }
    ]


def bootstrap(n: int, n_resamples: int) -> list[dict]:
    "Intervals of all pooled metrics from per-image counts."
    histogram = RegionHistogram()
    for i, (mask, score) in enumerate(images(n, (256, 256))):
        histogram.update(mask, score, image=f"{i:04d}")
    ours, _ = timed(lambda: histogram_intervals(histogram, n_resamples=n_resamples))
    return [
        row(
            "histogram_intervals",
            ours,
            None,
            f"{n_resamples} bootstrap resamples of 6 metrics, {n} images",
            "every resample exact",
        )
    ]


def run(small: bool) -> list[dict]:
    "All rows of this module."
    if small:
        return pixels(10**6) + regions(10, 300) + stream(20, (512, 512)) + stream(20, (720, 1280)) + bootstrap(20, 100)
    return (
        pixels(10**7) + regions(83, 900) + stream(1500, (512, 512)) + stream(1500, (720, 1280)) + bootstrap(300, 1000)
    )
