"""The rules of scores, thresholds, decisions, budgets and validation that a wrong constant or seed would break unseen:
each by hand on a few scores or small images.
"""

from pathlib import Path
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from anomaly_nb.banks import KNNBank
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.style import HEATMAP
from anomaly_nb.scoring import budget
from anomaly_nb.scoring.budget import bank_within, fitted_rows, median_seconds
from anomaly_nb.scoring.choice import LearningTime
from anomaly_nb.scoring.decisions import decision_table, plot_decisions
from anomaly_nb.scoring.fusion import mixtures
from anomaly_nb.scoring.maps import colour_range, heatmaps, image_scores, overlay
from anomaly_nb.scoring.new_normals import find_normal_images
from anomaly_nb.scoring.thresholds import choose_threshold, oracle_threshold
from anomaly_nb.scoring.validation import added_wins, artificial_validation, split_apart, synthetic_auroc

# Thresholds


@pytest.mark.parametrize(("method", "argument"), [("quantile", 0.95), ("conformal", 0.05)])
def test_a_threshold_without_a_rate_takes_the_usual_one(method, argument):
    scores = np.arange(200.0)
    assert choose_threshold(method, scores, None, None) == choose_threshold(f"{method}:{argument}", scores, None, None)


def test_each_group_counts_once_for_a_threshold():
    scores, parts = np.arange(60.0), np.arange(60) // 3
    alone, grouped = (choose_threshold("conformal:0.1", scores, None, None, groups) for groups in (None, parts))
    assert alone.value != grouped.value and alone.parameters != grouped.parameters


def test_an_oracle_is_of_the_method_that_was_asked_for():
    meta, scores = pd.DataFrame({"label": [0, 1, 1, -1]}), np.array([0.1, 0.2, 0.3, 0.9])
    assert oracle_threshold(meta, scores, "best_f1").method == "best_f1"


# Decisions


def test_a_table_of_decisions_by_hand():
    "One of two defects, two of three normal images, and one of three without a label are called."
    labels, scores = np.array([1, 1, 0, 0, 0, -1, -1, -1]), np.array([0.9, 0.1, 0.8, 0.7, 0.0, 0.9, 0.1, 0.2])
    table = decision_table(labels, scores, 0.5).set_index("metric")["value"]
    assert (table["precision"], table["F1"], table["unlabelled, called"]) == ("0.333", "0.400", "1 of 3")


def test_a_normal_image_that_is_called_is_marked():
    ax = plt.subplots()[1]
    defects, labels, scores = np.array(["good", "good", "cut"]), np.array([0, 0, 1]), np.array([0.1, 0.9, 0.8])
    plot_decisions(ax, defects, labels, scores, np.zeros(0), 0.5)
    widths = [list(points.get_linewidths()) for points in ax.collections[1:3]]
    plt.close(ax.figure)
    assert widths == [[0, 1.4], [0]]  # of good images, and of cuts


# Validation on synthetic anomalies


def test_at_most_twenty_images_are_set_apart_and_never_all():
    learned, apart = split_apart(200, 0.5, np.random.default_rng(0))
    assert apart.sum() == 20 and learned.sum() == 180
    learned, apart = split_apart(3, 0.99, np.random.default_rng(0))
    assert learned.sum() == 1


def test_other_images_are_set_apart_with_another_seed(tmp_path):
    rng, paths = np.random.default_rng(0), [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(path)
    index = pd.DataFrame(
        {"image_path": list(map(str, paths)), "split": "train", "label": 0, "defect": "good", "mask_path": ""}
    )
    apart = set()
    for seed in range(4):
        made = artificial_validation(index, tmp_path / f"of-{seed}", random_state=seed, most=1)
        apart.add(tuple(sorted(made.query("label == 0 and split == 'validation'")["source"])))
    assert len(apart) > 1


def synthetic_scores():
    "Eight normal images in any order, each with three anomalies, and scores of all."
    rng = np.random.default_rng(0)
    source = rng.permutation(8)
    normal = pd.DataFrame({"label": 0, "source": source, "defect": "good", "strength": 0})
    specks = pd.DataFrame({"label": 1, "source": np.repeat(source, 3), "defect": "speck", "strength": 2})
    scores = rng.normal(size=8)
    added = rng.normal(0.5, 1, 24)
    return pd.concat([normal, specks], ignore_index=True), np.r_[scores, np.repeat(scores, 3) + added], added


def test_an_anomaly_that_adds_nothing_wins_half_the_time():
    assert added_wins(np.zeros(2), np.zeros(1)).mean() == 0.5


def test_anomalies_are_compared_with_the_images_they_were_laid_on():
    meta, scores, added = synthetic_scores()
    got = synthetic_auroc({"m": scores}, meta)["auroc"]["m"]
    assert got == pytest.approx(added_wins(scores[:8], added).mean(), abs=1e-5)


def test_anomalies_that_are_always_seen_tell_nothing():
    meta, scores, _ = synthetic_scores()
    stains = meta[meta["label"] == 1].assign(defect="stain")
    both = np.r_[scores, np.repeat(scores[:8], 3) + 50]
    got = synthetic_auroc({"m": both}, pd.concat([meta, stains], ignore_index=True))["auroc"]["m"]
    assert got == pytest.approx(synthetic_auroc({"m": scores}, meta)["auroc"]["m"])


def test_resamples_of_synthetic_anomalies_are_of_their_seed():
    meta, scores, _ = synthetic_scores()
    assert len({synthetic_auroc({"m": scores}, meta, random_state=seed)["low"]["m"] for seed in (0, 1)}) == 2


# Normal images in folders


def test_of_folders_with_a_split_those_for_training_alone_are_learned_from(tmp_path):
    for place in ("train/good/a.png", "test/good/b.png", "validation/good/c.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / place)
    images, passed = find_normal_images([tmp_path])
    assert [Path(p).name for p in images] == ["a.png"] and len(passed) == 2


# Maps


def test_the_highest_scores_of_a_fraction_are_counted_in_whole_numbers():
    "0.29 * 100 is 28.999999999999996: the mean of 71 to 99 all the same."
    assert image_scores(np.arange(100.0)[None], "top29%")[0] == 85


def test_smoothing_goes_on_at_the_edge_with_the_score_there():
    cells = np.array([[0.0, 0.0, 0.0, 1.0]])
    sharp, smooth = (heatmaps(cells, (1, 4), (1, 16), sigma)[0] for sigma in (0, 4.0))
    np.testing.assert_allclose(smooth, gaussian_filter(sharp, 4.0, mode="nearest"), atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "threshold", "ends"),
    [([1.0, 2.0, 5.0], 1.0, (2.0, 5.0)), ([1.0, 2.0, 5.0], 3.0, (2.0, 4.0)), ([1.0, 2.0, 5.0], None, (2.0, 5.0))],
)
def test_a_threshold_above_the_median_lies_in_the_middle_of_the_colours(scores, threshold, ends):
    assert colour_range([np.array(scores)], threshold) == ends


def test_the_colours_of_a_constant_map_have_an_extent():
    low, high = colour_range([np.full(3, 2.0)])
    assert low < high


def test_an_overlay_is_rounded_and_of_full_strength_from_the_middle_on():
    image = np.full((1, 1, 3), (0, 1, 1), np.uint8)  # its grey is 2/3
    assert overlay(image, np.zeros((1, 1)), (0, 1)).tolist() == [[[1, 1, 1]]]
    (middle,) = overlay(np.zeros((1, 1, 3), np.uint8), np.full((1, 1), 0.5), (0, 1), 1.0)[0]
    np.testing.assert_allclose(middle, np.array(matplotlib.colormaps[HEATMAP](0.5)[:3]) * 255, atol=0.5)


# Mixtures of members


def test_up_to_six_members_are_weighed_in_quarters_and_more_alone():
    assert len(mixtures(6)) == 1 + 126 and len(mixtures(7)) == 1 + 7


# Budgets and times


def test_a_size_between_two_that_were_measured_keeps_the_budget_itself():
    def seconds(rows):  # a step, and no line
        return 1.0 if rows <= 40 else 3.0

    assert fitted_rows(seconds, 64, 2.0) == 32


def test_a_tenth_of_the_whole_budget_is_reserved():
    x = np.random.default_rng(0).normal(size=(1, 64, 4)).astype(np.float32)
    with pytest.raises(DataError, match="budget_ms=1000"):
        bank_within(KNNBank(), x, x[:, :4], features=0.95, budget_ms=1000)


def test_one_slow_call_sets_no_size(monkeypatch):
    ticks = iter([0.0, 0.3, 1.0, 1.0, 2.0, 2.01])
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert median_seconds(lambda: None) == pytest.approx(0.01)


def test_a_megabyte_is_a_million_bytes():
    x = np.random.default_rng(0).normal(size=(1, 1000, 48)).astype(np.float32)
    assert bank_within(KNNBank(), x, x[:, :4], 0.0)["bank_mb"] == 0.2  # 1000 rows of 4 * 48 + 8 bytes


def test_the_time_of_a_fit_by_hand():
    time = LearningTime(features=0.0, whole=4.0, fit=1.0, score=0.1, n=10)
    assert time.expected(20) == (8.0, 16.0)
    assert time.expected(5) == (2.0, 2.0)  # of fewer images the longer of the two is said
    assert time.expected(10, groups=4)[0] == 1.0 * (1 + 4) + 0.1 * 10
    assert time.expected(10, groups=40) == time.expected(10, groups=10)
