"""Region, segmentation and uncertainty metrics: equal to plainly written definitions, and unmoved by what must not move
them.
"""

import itertools

import numpy as np
import pytest
from scipy.ndimage import label

from anomaly_nb.core.errors import DataError
from anomaly_nb.metrics import (
    RegionHistogram,
    ScoreHistogram,
    aupimo,
    aupro,
    aupro_bounds,
    average_precision,
    bootstrap_interval,
    component_scores,
    confusion_matrix,
    histogram_differences,
    histogram_intervals,
    mean_iou,
    paired_difference,
    pro_curve,
    roc_auc,
    spro,
    street_metrics,
)
from bench.metrics import full_sort_aupro, images


def small_set(seed, decimals=None, n=4, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(3, 30, 2)) for _ in range(n)]
    masks = [rng.random(s) < rng.choice([0, 0.05, 0.4]) for s in shapes]
    masks[0][0, :2] = True, False
    maps = [rng.normal(size=m.shape) + m for m in masks]
    return masks, [(m if decimals is None else m.round(decimals)).astype(dtype) for m in maps]


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_equals_the_full_sort(decimals, limit):
    for seed in range(12):
        masks, maps = small_set(seed, decimals, dtype=(np.float32, np.float64)[seed % 2])
        assert aupro(masks, maps, limit) == pytest.approx(full_sort_aupro(masks, maps, limit), abs=1e-9, rel=0)
        anomalous = [i for i, m in enumerate(masks) if m.any()]
        expected = full_sort_aupro([masks[i] for i in anomalous], [maps[i] for i in anomalous], limit)
        assert aupro(masks, maps, limit, "anomalous_only") == pytest.approx(expected, abs=1e-9, rel=0)


def test_aupro_in_small_portions_and_on_constant_maps(monkeypatch):
    masks, maps = (list(p) for p in zip(*images(6, (200, 200))))
    whole = aupro(masks, maps)
    assert whole == pytest.approx(full_sort_aupro(masks, maps), abs=1e-9)
    monkeypatch.setattr("anomaly_nb.metrics.regions.PORTION", 1000)
    assert aupro(masks, maps) == pytest.approx(whole, abs=1e-13)
    flat = [np.zeros_like(m) for m in maps]
    assert aupro(masks, flat) == pytest.approx(full_sort_aupro(masks, flat), abs=1e-12) == pytest.approx(0.15)
    assert aupro(masks, maps, protocol="mvtec_ad2") == aupro(masks, maps, 0.05)


def test_metamorphic():
    masks, maps = (list(p) for p in zip(*images(8, (360, 360))))
    value = aupro(masks, maps)
    h = RegionHistogram()
    for m, s in zip(masks, maps):
        h.update(m, s)
    for change in (
        lambda s: 5 * s - 3,
        lambda s: np.exp(s.astype(np.float64)),
        lambda s: s.astype(np.float64) ** 3,
    ):  # monotone maps
        assert aupro(masks, [change(s) for s in maps]) == pytest.approx(value, abs=1e-9)
    assert aupro(masks * 2, maps * 2) == pytest.approx(value, abs=1e-12)  # duplication
    low = np.full((360, 360), min(s.min() for s in maps) - 1, np.float32)
    more = aupro([*masks, np.zeros((360, 360), bool)], [*maps, low])
    assert more >= value  # a low-scoring normal image never lowers it
    assert RegionHistogram().merge(h).update(np.zeros((360, 360), bool), low).aupro() >= h.aupro()
    for place in ((0, 0), (200, 100)):  # one extreme pixel on more than a megapixel
        spiked = [s.copy() for s in maps]
        spiked[0][place] = 30 * max(s.max() for s in maps)
        assert sum(m.size for m in masks) > 1e6 and abs(aupro(masks, spiked) - value) < 1e-4
        assert abs(aupro(masks, spiked, protocol="linspace200") - aupro(masks, maps, protocol="linspace200")) > 0.02


def test_linspace200_equals_its_definition():
    masks, maps = small_set(3)
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    points = []
    for cut in (float(low) + (float(high) - float(low)) / 200 * k for k in range(200)):
        overlap = [
            (s[numbers == r] > cut).mean()
            for m, s in zip(masks, maps)
            for numbers, n in [label(m, np.ones((3, 3)))]
            for r in range(1, n + 1)
        ]
        points.append(
            (sum((s[~m] > cut).sum() for m, s in zip(masks, maps)) / sum((~m).sum() for m in masks), np.mean(overlap))
        )
    x, y = np.array([p for p in points if p[0] < 0.3]).T
    assert aupro(masks, maps, protocol="linspace200") == pytest.approx(-np.trapezoid(y, x / x.max()), abs=1e-12)


@pytest.mark.parametrize("key", [("float16", None), ("linear16", (-9.0, 9.0))], ids=lambda k: k[0])
def test_region_histogram(key, tmp_path):
    masks, maps = (list(p) for p in zip(*images(8, (120, 160))))
    histograms, files = [], set()
    for order in itertools.islice(itertools.permutations(range(8)), 0, 40_000, 5000):
        parts = []
        for chunk in np.array_split(order, 3):
            parts.append(RegionHistogram(*key))
            for i in chunk:
                parts[-1].update(masks[i], maps[i], image=f"{i}")
        histograms.append(parts[2].merge(parts[0]).merge(parts[1]))
        files.add(histograms[-1].save(tmp_path / "r.npz").read_bytes())
    assert len(files) == 1 and len({h.aupro() for h in histograms}) == 1
    h = RegionHistogram.load(tmp_path / "r.npz")
    stored = [h.scores.stored(s) for s in maps]
    for protocol in ("mvtec", "mvtec_ad2", "anomalous_only"):
        assert h.aupro(protocol=protocol) == pytest.approx(aupro(masks, stored, protocol=protocol), abs=1e-12, rel=0)
    for limit in (0.05, 0.3, 1.0):
        low, high = aupro_bounds(h.pro_curve(), limit)
        assert low <= aupro(masks, maps, limit) <= high and high - low < 5e-3
    plain = ScoreHistogram(*key)
    for m, s in zip(masks, maps):
        plain.update(m, s)
    assert plain.roc_auc() == h.scores.roc_auc() and (plain.counts == h.scores.counts).all()
    with pytest.raises(DataError, match="must be equal"):
        plain.merge(h)


def test_region_errors():
    masks, maps = small_set(0)
    for bad_masks, bad_maps, words in (
        ([255 * m.astype(int) for m in masks], maps, "say which values are anomalous"),
        (masks, maps[:-1], "must be partners"),
        (masks, [s.T[:-1] for s in maps], "resize the map"),
        (masks, [s * np.nan for s in maps], "NaN or infinite"),
        ([m * False for m in masks], maps, "at least one region"),
        ([m | True for m in masks], maps, "false-positive rate"),
        ((m for m in masks), maps, "read more than once"),
        ([m[None] for m in masks], maps, "must be \\(H, W\\)"),
    ):
        with pytest.raises(DataError, match=words):
            aupro(bad_masks, bad_maps)
    with pytest.raises(DataError, match="exact float32"):
        RegionHistogram("float32")
    with pytest.raises(DataError, match="ends at FPR"):
        pro_curve(masks, maps, 0.1).area(0.9)


def test_aupimo_equals_dense_thresholds():
    masks, maps = (np.stack(p) for p in zip(*images(8, (300, 300))))
    bounds, result = (1e-4, 1e-2), aupimo(masks, maps, (1e-4, 1e-2))
    normal = ~masks.any((1, 2))
    cuts = np.unique(maps[normal])[::-1]
    ranked = [np.sort(s.ravel()) for s in maps[normal]]
    fpr = np.mean([1 - np.searchsorted(r, cuts) / r.size for r in ranked], axis=0)
    kept = (fpr >= bounds[0] - 1e-12) & (fpr <= bounds[1] + 1e-12)
    for i in range(len(masks)):
        if normal[i]:
            assert np.isnan(result[i])
            continue
        tpr = 1 - np.searchsorted(np.sort(maps[i][masks[i]]), cuts[kept]) / masks[i].sum()
        x = np.log(fpr[kept])
        assert result[i] == pytest.approx(np.trapezoid(tpr, x) / (x[-1] - x[0]), abs=1e-9)
    lifted = maps.copy()
    lifted[np.argmax(~normal), 0, 0] = 1e6  # a normal pixel of an anomalous image takes no part
    assert np.allclose(aupimo(masks, lifted, bounds), result, equal_nan=True)


def test_saturated_pro_equals_counting():
    rng = np.random.default_rng(0)
    regions = [[rng.random((20, 24)) < 0.2, rng.random((20, 24)) < 0.1], [], [rng.random((20, 24)) < 0.3]]
    saturation = [[30, 1000], [], [12]]
    maps = [(rng.normal(size=(20, 24)) + sum(r, np.zeros((20, 24)))).round(1) for r in regions]
    normal = np.concatenate([s[~np.any(r, axis=0)] if r else s.ravel() for r, s in zip(regions, maps)])
    x, y = [0.0], [0.0]
    for cut in np.unique(np.concatenate([s.ravel() for s in maps]))[::-1]:
        x.append((normal >= cut).mean())
        y.append(
            np.mean(
                [
                    min((s[r] >= cut).sum() / min(k, r.sum()), 1)
                    for rs, ks, s in zip(regions, saturation, maps)
                    for r, k in zip(rs, ks)
                ]
            )
        )
    fine = np.unique(np.append(np.linspace(0, 0.3, 400_001), np.array(x)[np.array(x) <= 0.3]))
    approx = np.trapezoid(np.interp(fine, x, y), fine) / 0.3
    assert spro(regions, saturation, maps, 0.3) == pytest.approx(approx, abs=1e-4)


def test_components_equal_their_definition():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mask, seen, void = rng.random((16, 18)) < 0.15, rng.random((16, 18)) < 0.2, rng.random((16, 18)) < 0.05
        scores = component_scores(mask, seen, void)
        y_true, n = label(mask & ~void, np.ones((3, 3)))
        found, d = label(seen & ~void, np.ones((3, 3)))
        for k in range(1, n + 1):
            touching = np.isin(found, [j for j in np.unique(found[y_true == k]) if j])
            union = ((y_true == k) | touching) & ~((y_true != k) & (y_true > 0))
            assert scores.siou[k - 1] == ((y_true == k) & touching).sum() / union.sum()
        assert scores.ppv.tolist() == [(y_true[found == j] > 0).mean() for j in range(1, d + 1)]


def test_confusion_matrix_against_scikit_learn():
    from sklearn.metrics import confusion_matrix as reference
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(0)
    y_true, pred = rng.integers(0, 5, (3, 40, 40)), rng.integers(0, 5, (3, 40, 40))
    total = sum(confusion_matrix(t, p, 6) for t, p in zip(y_true, pred))
    assert (total == reference(y_true.ravel(), pred.ravel(), labels=range(6))).all()
    assert mean_iou(total) == pytest.approx(jaccard_score(y_true.ravel(), pred.ravel(), average="macro"), abs=1e-12)
    assert confusion_matrix(np.full((2, 2), 255), np.zeros((2, 2), int), 2, ignore=255).sum() == 0


def test_street_protocols_equal_their_definitions():
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 14, (8, 30, 30))
    labels[:5, 4:8, 4:9] = 14
    maps = (rng.normal(size=labels.shape) + (labels == 14)).astype(np.float16)  # float16: the histogram is exact
    kept = ~np.isin(labels[:5], (1, 4))
    assert street_metrics(labels, maps)["roc_auc"] == pytest.approx(roc_auc(labels == 14, maps), abs=1e-12)
    assert street_metrics(labels, maps, "mask2anomaly")["average_precision"] == pytest.approx(
        average_precision(labels[:5][kept] == 14, maps[:5][kept]), abs=1e-12
    )
    assert street_metrics(labels, maps, "anomaly_seg")["roc_auc"] == pytest.approx(
        np.mean([roc_auc(y == 14, s) for y, s in zip(labels[:5], maps[:5])]), abs=1e-12
    )


def test_bootstrap_covers_and_is_wider_than_pixels_suggest():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(120):  # the mean of 30 normal numbers, true value 0
        sample = rng.normal(size=30)
        low, high = bootstrap_interval(np.mean, sample, n_resamples=300, random_state=seed)[1:]
        inside += low <= 0 <= high
    assert 0.86 <= inside / 120 <= 1
    h = RegionHistogram()
    for i, (m, s) in enumerate(images(24, (80, 80))):
        h.update(m, s + rng.normal(), image=f"{i}")
    value, low, high = histogram_intervals(h, n_resamples=200)["roc_auc"]
    assert value == pytest.approx(h.scores.roc_auc(), abs=1e-12)
    n_pixels = h.scores.positives
    assert high - low > 10 * np.sqrt(value * (1 - value) / n_pixels)


def test_differences_are_paired_by_name():
    rng = np.random.default_rng(0)
    data = [(m, s + np.float32(3 * rng.normal())) for m, s in images(20, (64, 64))]
    a, b = ScoreHistogram(), ScoreHistogram()
    for i in range(20):
        a.update(*data[i], image=f"{i}")
    for i in reversed(range(20)):  # another order of reading
        m, s = data[i]
        b.update(m, s + np.float32(0.5) * m, image=f"{i}")
    difference = histogram_differences(a, b, n_resamples=300)["roc_auc"]
    single = histogram_intervals(a, n_resamples=300)["roc_auc"]
    assert difference.low > 0 and difference.high - difference.low < (single.high - single.low) / 2
    assert all(v == (0, 0, 0) for v in histogram_differences(a, a, n_resamples=50).values())
    y_true, score = rng.random(40) < 0.5, rng.normal(size=40)
    up = paired_difference(roc_auc, y_true, score, score + y_true)
    down = paired_difference(roc_auc, y_true, score + y_true, score)
    assert up.value == -down.value and up.low == pytest.approx(-down.high)
    with pytest.raises(DataError, match="too few images"):
        bootstrap_interval(_only_whole, np.arange(8), n_resamples=5)


def _only_whole(x):
    if np.array_equal(x, np.arange(8)):
        return 0.0
    raise DataError("one class only")


def test_bench_rows():
    from bench.metrics import bootstrap, pixels, regions, stream

    rows = (
        pixels(20_000) + regions(4, 100) + stream(4, (64, 64)) + bootstrap(8, 20)
    )  # each asserts that the results are equal
    for row in rows:
        assert {"name", "ours_s", "reference_s", "ratio", "work", "note"} <= row.keys() and row["ours_s"] > 0
    assert rows[-2]["peak_mb"] < 200
