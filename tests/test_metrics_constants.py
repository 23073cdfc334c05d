"""The rules of the metrics that a wrong constant, side or tie would break unseen: each on a handful of scores, by hand
or by an independent computation.
"""

from fractions import Fraction
from math import lgamma

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import t as student
from scipy.stats import wilcoxon

from anomaly_nb.metrics import uncertainty
from anomaly_nb.metrics.histogram import ScoreHistogram, choose_key
from anomaly_nb.metrics.newcombe import auroc_interval, newcombe_interval, or_newcombe
from anomaly_nb.metrics.overlap import component_scores
from anomaly_nb.metrics.ranking import best_f1, threshold_table, youden
from anomaly_nb.metrics.ranks import friedman, tied_groups, wilcoxon_pairs
from anomaly_nb.metrics.region_histogram import RegionHistogram
from anomaly_nb.metrics.regions import aupro, linspace_area, pro_curve
from anomaly_nb.metrics.segmentation import street_metrics
from anomaly_nb.metrics.uncertainty import Interval, clustered_interval, histogram_differences, histogram_intervals

# Ranking


@pytest.mark.parametrize(
    ("y_true", "score", "area"),
    [
        ([0, 1, 1, 0], [3.0, 2.0, 1.0, 0.0], 0 * 0.5 + 0.5 * (0 + 1 / 2) / 2 + 0.5 * (1 / 2 + 2 / 3) / 2),
        ([1, 0, 1], [2.0, 2.0, 1.0], 0.5 * (1 + 1 / 2) / 2 + 0.5 * (1 / 2 + 2 / 3) / 2),
    ],
)
def test_the_trapezoids_of_precision_start_at_recall_0_and_precision_1(y_true, score, area):
    table = threshold_table(np.array(y_true), np.array(score))
    assert table.trapezoid_precision() == pytest.approx(area, abs=1e-12)


def test_of_equal_f1_the_highest_threshold_is_given():
    assert best_f1([1, 0, 0, 1], [4.0, 3.0, 2.0, 1.0]) == (2 / 3, 4.0)  # as much at 1


def test_of_equal_leads_the_highest_threshold_is_given():
    "Counted in whole numbers: differences of rates that are equal may differ in their last bit."
    rng = np.random.default_rng(0)
    for _ in range(400):
        n = int(rng.integers(4, 40))
        y, score = rng.permutation(np.r_[0, 1, rng.integers(0, 2, n - 2)]), np.arange(n, 0, -1.0)
        tp, fp = np.cumsum(y), np.cumsum(1 - y)
        leads = [Fraction(int(t), int(tp[-1])) - Fraction(int(f), int(fp[-1])) for t, f in zip(tp, fp)]
        if max(leads) > 0:
            assert youden(y, score)[1] == score[leads.index(max(leads))], y.tolist()


# Histograms of scores


def test_a_linear_code_is_rounded_to_the_nearest_step():
    step = 1 / 65535
    coding = ScoreHistogram("linear16", (0, 1)).coding
    assert coding.code(np.array([0.6 * step, 1.4 * step], np.float32)).tolist() == [1, 1]


def test_thresholds_of_a_second_pass_fall_strictly():
    y, score = np.array([1, 0, 0, 1]), np.array([3.0, 2.0, 1.0, 0.5], np.float32)
    table = ScoreHistogram("float32").update(y, score).refine().update(y, score).table()
    assert (np.diff(table.threshold) < 0).all()


def test_a_second_pass_counts_for_itself():
    first = ScoreHistogram("float32").update(np.array([0, 1]), np.array([0.1, 0.2]))
    second = first.refine()
    first.update(np.array([0]), np.array([0.3]))
    assert (first.negatives, second.negatives) == (2, 1)


def test_a_key_is_chosen_by_scores_from_all_over_a_map():
    flat_at_first = np.concatenate([np.full(4096, 0.5), np.geomspace(1e-4, 1, 20 * 4096)])
    assert choose_key([flat_at_first])[0] == "float16"


# Regions


def test_a_region_histogram_takes_the_limit_it_is_asked_for():
    mask, score = np.zeros((4, 4), bool), (np.arange(16.0) * 5 % 16).reshape(4, 4)
    mask[0, :2] = True
    histogram = RegionHistogram().update(mask, score)
    for limit in (0.3, 1.0):
        assert histogram.aupro(limit) == pytest.approx(aupro([mask], [score], limit), abs=1e-12)


def test_a_curve_ends_where_the_limit_is_reached():
    "0.07 * 100 is 7.000000000000001, and seven false positives of 100 pixels reach 0.07."
    mask = np.arange(101) == 0
    assert pro_curve([mask[None]], [np.arange(101.0)[None]], 0.07).fpr[-1] == 0.07


def test_thresholds_of_a_curve_of_regions_fall_strictly():
    curve = pro_curve([np.array([[1, 1, 0, 0, 0]])], [np.array([[5.0, 2.0, 4.0, 3.0, 1.0]])], 1.0)
    assert (np.diff(curve.threshold) < 0).all()


def test_evenly_spaced_thresholds_count_what_lies_strictly_above():
    mask, score = np.arange(8) < 3, np.array([8.0, 4.0, 2.0, 7.0, 6.0, 2.0, 1.0, 0.0])
    rates = [((score[~mask] > t).mean(), (score[mask] > t).mean()) for t in range(7, -1, -1)]
    x, y = np.array([r for r in rates if r[0] < 0.9]).T
    assert linspace_area([mask[None]], [score[None]], 0.9, 8) == pytest.approx(np.trapezoid(y, x) / x[-1], abs=1e-12)


def test_evenly_spaced_thresholds_leave_out_the_point_at_the_limit_itself():
    mask, score = np.array([[1, 1, 0, 0, 0, 0]]), np.array([[8.0, 4.5, 7.0, 5.0, 1.0, 0.0]])
    assert linspace_area([mask], [score], 0.5, 8) == 0.5


# Components


def test_components_of_just_the_least_size_count():
    mask = np.ones((4, 5), bool)
    mask[0] = False  # the ground is five pixels, and five are enough
    scores = component_scores(mask, np.ones((4, 5), bool), min_true=5)
    assert scores.siou[0] == scores.ppv[0] == 15 / 20


def test_a_detection_on_void_alone_is_no_false_positive():
    mask = np.zeros((6, 6), bool)
    mask[:2, :2] = mask[4:, 4] = True  # the second is smaller than three pixels, and void for that
    scores = component_scores(mask, mask, min_true=3)
    assert len(scores.ppv) == 1 and scores.f1(0.5) == 1


# Street protocols


@pytest.mark.parametrize(
    ("protocol", "labels", "scores", "fpr"),
    [  # 19 of 20 is a recall of 0.95, and not above it
        ("densehybrid", [14] * 20 + [0] * 20, [*range(40, 21, -1), 5] + [21.5] * 10 + [0] * 10, 0.5),
        ("anomaly_seg", [14] * 50 + [0] * 20, [9] * 47 + [5] * 13 + [0] * 10, 0),  # 0.94 is nearer to 0.95 than 1 is
    ],
)
def test_each_protocol_has_its_own_point_of_the_curve(protocol, labels, scores, fpr):
    assert street_metrics([np.array([labels])], [np.array([scores], float)], protocol)["fpr_at_tpr"] == fpr


# Ranks of methods


def test_the_f_of_friedman_by_hand():
    got = friedman([[0.9, 0.8, 0.7], [0.9, 0.7, 0.8], [0.8, 0.9, 0.7], [0.9, 0.8, 0.7]])
    assert got.chi2 == pytest.approx(4.5) and got.f == pytest.approx(3 * 4.5 / (4 * 2 - 4.5))


def test_methods_that_stand_alike_everywhere_have_the_least_p_there_is():
    forty = np.tile(np.arange(4.0), (40, 1))  # one of (4!)^39 orders
    assert np.isclose(friedman(forty).p, np.exp(-39 * lgamma(5)), rtol=1e-9, atol=0)
    nine = np.tile(np.arange(9.0), (9, 1))  # no permutation of those that are drawn comes near
    assert friedman(nine).p == 1 / 10_000


def test_methods_at_just_the_critical_difference_are_not_told_apart():
    assert tied_groups([1.0, 2.0, 4.0], 1.0) == [[0, 1]]


def test_data_sets_without_a_difference_count_half_for_each_method():
    "Equal on half of sixty data sets: without those p would be 0.64 in place of 0.34."
    differences = np.r_[np.zeros(30), np.arange(1, 31)] / 100 * np.r_[np.ones(50), -np.ones(10)]
    p = wilcoxon_pairs(np.stack([0.5 + differences, np.full(60, 0.5)], 1), "ab")[0].p
    assert p == pytest.approx(wilcoxon(differences, zero_method="zsplit").pvalue, rel=1e-6)
    assert p < 0.6 * wilcoxon(differences, zero_method="wilcox").pvalue


# Intervals over images


def histogram_of(rng, images=12, pixels=50):
    histogram = ScoreHistogram("float16")
    for i in range(images):
        y = rng.random(pixels) < 0.3
        histogram.update(y, y + rng.normal(size=pixels), image=str(i))
    return histogram


LEFT_OUT = np.array([0.0, 0.1, 0.2, 0.3])  # a metric without each of four images
FLAT, TWO = np.zeros(4), np.array([0.0, 1.0])


def width(interval):
    return interval.high - interval.low


def test_an_interval_is_that_of_the_resamples_deviation():
    got = clustered_interval(0.0, TWO, FLAT, 4, 4.0, unit=False)
    assert got.high == pytest.approx(student.ppf(0.975, 3) * np.std(TWO, ddof=1) * np.sqrt(4 / 3))


def test_an_interval_is_that_of_the_jackknife_where_it_is_wider():
    got = clustered_interval(0.0, np.zeros(9), LEFT_OUT, 4, 4.0, unit=False)
    squares = ((LEFT_OUT - LEFT_OUT.mean()) ** 2).sum()
    assert got.high == pytest.approx(student.ppf(0.975, 3) * np.sqrt(3 / 4 * squares))


def test_an_interval_is_as_wide_as_its_level_and_degrees_of_freedom_say():
    low, usual = (clustered_interval(0.15, TWO, LEFT_OUT, 4, 4.0, level, False) for level in (0.8, 0.95))
    assert width(low) / width(usual) == pytest.approx(student.ppf(0.9, 3) / student.ppf(0.975, 3))
    few, all_four = (clustered_interval(0.15, TWO, LEFT_OUT, 4, effective, unit=False) for effective in (2.6, 4.0))
    assert width(few) / width(all_four) == pytest.approx(student.ppf(0.975, 1.6) / student.ppf(0.975, 3))


def test_an_interval_near_1_is_not_stretched_by_where_the_scale_ends():
    near = 1 - 1e-5
    got = clustered_interval(1.0, np.array([1.0, 1.0, near]), np.array([1.0, 1.0, 1.0, near]), 4, 4.0)
    assert got.low > 1 - 1e-3


def test_images_carry_what_they_hold_of_the_anomalous_pixels(monkeypatch):
    "Nine pixels in one image, one in another: (9 + 1)^2 / (9^2 + 1^2) images carry them."
    histogram = ScoreHistogram("float16")
    for image, positives in (("a", 9), ("b", 1), ("c", 0)):
        histogram.update(np.arange(10) < positives, np.arange(10.0), image=image)
    seen = []
    monkeypatch.setattr(uncertainty, "clustered_interval", lambda *values, **more: seen.append(values[4]))
    histogram_intervals(histogram, 10)
    assert seen[0] == pytest.approx(100 / 82)


def test_the_interval_of_fpr95_is_stretched_and_that_of_a_difference_too(monkeypatch):
    rng = np.random.default_rng(0)
    a = histogram_of(rng)
    labels = {n: counts.sum(1) for n, (_, counts) in a.images.items()}
    b = ScoreHistogram("float16")
    for name, (normal, anomalous) in labels.items():
        y = np.arange(normal + anomalous) < anomalous
        b.update(y, y + rng.normal(size=y.size), image=name)
    once = histogram_intervals(a, 50)["fpr_at_tpr"], histogram_differences(a, b, 50)["fpr_at_tpr"]
    monkeypatch.setattr(uncertainty, "STRETCH", {"fpr_at_tpr": 2 * uncertainty.STRETCH["fpr_at_tpr"]})
    twice = histogram_intervals(a, 50)["fpr_at_tpr"], histogram_differences(a, b, 50)["fpr_at_tpr"]
    assert logit(twice[0].low) - logit(once[0].value) == pytest.approx(2 * (logit(once[0].low) - logit(once[0].value)))
    assert width(twice[1]) == pytest.approx(2 * width(once[1]))


def test_an_interval_of_separated_classes_keeps_its_level():
    wanted = newcombe_interval(1.0, 5, 9, 0.8)
    assert or_newcombe(Interval(1.0, 1.0, 1.0), 5, 9, 0.8) == wanted != newcombe_interval(1.0, 5, 9)
    assert auroc_interval(np.arange(14) > 8, np.arange(14.0), 0.8).low == wanted.low
