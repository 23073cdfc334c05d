"""How often intervals hold the value they are about: the simulation behind `SIMULATED`."""

import os

import numpy as np
import pytest

from anomaly_nb.core.errors import DataError
from anomaly_nb.metrics import ScoreHistogram, auroc_interval, bootstrap_interval, histogram_intervals, roc_auc
from anomaly_nb.metrics.newcombe import delong_interval, interval_words, newcombe_interval
from anomaly_nb.metrics.uncertainty import Interval
from anomaly_nb.metrics.uncertainty import SIMULATED
from anomaly_nb.scoring.evaluation import image_metrics

SIDE = 24
METRICS = ("roc_auc", "average_precision", "fpr_at_tpr")


def counted(rng, images, named=True):
    "Images whose brightness, contrast, anomaly size and separation vary; 15 % hold no anomaly."
    histogram = ScoreHistogram("float16")
    for i in range(images):
        level, scale = rng.normal(0, 0.5), np.exp(rng.normal(0, 0.2))
        scores, labels = scale * rng.normal(size=SIDE**2) + level, np.zeros(SIDE**2, bool)
        if rng.random() > 0.15:
            size = int(np.clip(np.exp(rng.normal(np.log(20), 1)), 1, SIDE**2 // 2))
            labels[:size] = True
            scores[:size] += scale * rng.normal(1.8, 0.6)
        histogram.update(labels, scores, image=f"{i:04}" if named else None)
    return histogram


@pytest.mark.skipif(not os.environ.get("ANOMALY_NB_SLOW"), reason="minutes; set ANOMALY_NB_SLOW=1")
@pytest.mark.parametrize(("images", "sets"), [(10, 300), (30, 300), (100, 100)])
def test_coverage(images, sets):
    whole = counted(np.random.default_rng(999), 8000, named=False)
    value = {
        "roc_auc": whole.roc_auc(),
        "average_precision": whole.average_precision(),
        "fpr_at_tpr": whole.fpr_at_tpr(),
    }
    covered = dict.fromkeys(METRICS, 0)
    for i in range(sets):
        found = histogram_intervals(counted(np.random.default_rng([images, i]), images), 200, random_state=i)
        for name in METRICS:
            covered[name] += found[name].low <= value[name] <= found[name].high
    print(f"\n{images} images:", {name: round(100 * n / sets, 1) for name, n in covered.items()})
    for name in METRICS:
        assert covered[name] / sets > 0.92 - 2 * np.sqrt(0.92 * 0.08 / sets), name
        assert abs(100 * covered[name] / sets - SIMULATED[images][name]) < 4, name


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 30), (4, 4), (30, 2), (200, 100)])
def test_score_intervals_of_an_auroc_solve_their_formula(m, n):
    before = 0.0
    for auroc in np.linspace(0, 1, 41):
        value, low, high = newcombe_interval(float(auroc), m, n)
        mirrored = newcombe_interval(float(1 - auroc), n, m)
        assert 0 <= low <= value <= high <= 1 and low < high and low >= before and np.isclose(mirrored.high, 1 - low)
        for t in (low, high):
            spread = 1 + ((m + n) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
            assert t in (0, 1) or np.isclose(abs(t - auroc), 1.959964 * np.sqrt(t * (1 - t) * spread / (m * n)), atol=1e-6)
        before = low
    assert newcombe_interval(1.0, m, n, 0.8).low > newcombe_interval(1.0, m, n).low > newcombe_interval(1.0, m, n, 0.99).low


@pytest.mark.parametrize("sign", [1, -1])
def test_eight_images_prove_no_perfection(sign):
    y, s = np.repeat([0, 1], 4), sign * np.arange(8.0)
    metrics = image_metrics(y, s, None)
    width = metrics["image_auroc_high"] - metrics["image_auroc_low"]
    assert metrics["image_auroc"] == (sign + 1) / 2 and width > 0.4
    assert auroc_interval(y.tolist(), s.tolist())[1:] == (metrics["image_auroc_low"], metrics["image_auroc_high"])


@pytest.mark.parametrize("scores", [np.ones(8), np.arange(8.0), -np.arange(8.0), np.array([0, 3, 1, 2, 0.5, 2.5, 4, 1.5])])
def test_the_words_name_the_interval_that_the_numbers_are_of(scores):
    """Constant scores have an AUROC of 0.5, and all resamples agree on it as they do on 1."""
    y = np.repeat([0, 1], 4)
    m = image_metrics(y, scores, None)
    numbers = Interval(m["image_auroc"], m["image_auroc_low"], m["image_auroc_high"])
    drawn, newcombe = bootstrap_interval(roc_auc, y, scores), newcombe_interval(numbers.value, 4, 4)
    delong = delong_interval(y, scores)
    assert numbers == (drawn.value, min(newcombe.low, delong.low), max(newcombe.high, delong.high))
    assert "Newcombe" in interval_words(numbers, 4, 4)
    assert ("bootstrap" in interval_words(drawn, 4, 4)) is (drawn.low < drawn.high)  # without width none was ever kept


@pytest.mark.parametrize("wrong", [-1, 2, np.nan, None])
def test_labels_other_than_0_and_1_are_never_anomalous(wrong):
    y, s = [0, 1, 0, 1, 1, wrong], np.array([0, 1, 0.5, 0.6, 0.1, 0.2])
    for interval_of in (auroc_interval, roc_auc, lambda y, s: image_metrics(np.array(y), s, None)):
        with pytest.raises(DataError, match="y_true"):
            interval_of(y, s)


@pytest.mark.parametrize("scale", [1, 1e-9, 1e9])
def test_intervals_of_an_auroc_are_of_ranks_and_mirror(scale):
    rng = np.random.default_rng(3)
    for m, n in ((1, 12), (12, 1), (5, 30), (40, 40)):
        y = np.repeat([1, 0], [m, n])
        s = np.round(rng.normal(size=m + n) + 1.5 * y, 1)
        for interval_of in (auroc_interval, delong_interval):
            value, low, high = interval_of(y, s)
            assert 0 <= low <= value <= high <= 1 and value == roc_auc(y, s)
            assert interval_of(y.tolist(), (scale * s).tolist()) == (value, low, high)
            assert np.allclose(interval_of(1 - y, s), (1 - value, 1 - high, 1 - low), atol=1e-9)
        assert interval_of(y, s, 0.8).low >= low and auroc_interval(y, s).low < auroc_interval(y, s, level=0.8).low
        assert auroc_interval(y, s).low < auroc_interval(y, s).high


def test_high_aurocs_of_further_images_are_held():
    """Percentiles over resamples held 0.96 in 85 %."""
    rng, held = np.random.default_rng(5), []
    for _ in range(1000):
        y = np.repeat([1, 0], [20, 100])
        i = auroc_interval(y, rng.normal(size=120) + 2.4758 * y)  # the normal quantile of 0.96 times the root of 2
        held.append(i.low <= 0.96 <= i.high)
    assert 0.94 < np.mean(held) < 0.995


def test_the_words_tell_intervals_of_older_tables():
    rng = np.random.default_rng(6)
    for _ in range(40):
        m, n = rng.integers(2, 40, 2)
        y = np.repeat([1, 0], [m, n])
        s = rng.normal(size=m + n) + rng.uniform(0, 3) * y
        drawn = bootstrap_interval(roc_auc, y, s, n_resamples=50)
        assert "Newcombe" in interval_words(auroc_interval(y, s), m, n)
        assert drawn.low == drawn.high or "bootstrap" in interval_words(drawn, m, n)
