"""What looks like numbers and is not, at every public metric: refused in one sentence, or honoured; never converted
quietly.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_nb.calibration import (
    CalibrationRanges,
    conformal_bound,
    conformal_pvalues,
    conformal_threshold,
    drift_metrics,
    false_alarm_bound,
)
from anomaly_nb.calibration.ranges import score_range
from anomaly_nb.core.errors import DataError
from anomaly_nb.metrics import (
    ScoreHistogram,
    aupimo,
    aupro,
    average_precision,
    best_f1,
    bootstrap_interval,
    class_iou,
    confusion_matrix,
    fpr_at_tpr,
    histogram_intervals,
    mean_iou,
    roc_auc,
    youden,
)
from anomaly_nb.scoring import heatmaps, image_scores, quantile_threshold
from anomaly_nb.scoring.maps import colour_range
from anomaly_nb.scoring.recipes import fused_scores

rng = np.random.default_rng(0)
Y, S = np.repeat([0, 1], 40), rng.permutation(80) / 64  # exact in every precision but bfloat16's
MASKS, MAPS = np.zeros((3, 16, 16), bool), rng.integers(0, 100, (3, 16, 16)) / 128
MASKS[1:, 4:8, 4:8] = True

ON_SCORES = {
    "roc_auc": lambda s: roc_auc(Y, s),
    "average_precision": lambda s: average_precision(Y, s),
    "fpr_at_tpr": lambda s: fpr_at_tpr(Y, s, 0.9),
    "best_f1": lambda s: best_f1(Y, s),
    "youden": lambda s: youden(Y, s),
    "ScoreHistogram": lambda s: ScoreHistogram("float16").update(Y, s).roc_auc(),
    "quantile_threshold": lambda s: quantile_threshold(s, q=0.9).value,
    "CalibrationRanges": lambda s: CalibrationRanges().fit(s).low_,
    "conformal_pvalues": lambda s: conformal_pvalues(s, S[:3]).tolist(),
    "drift_metrics": lambda s: drift_metrics(S, s).srd,
    "confusion_matrix": lambda s: confusion_matrix(Y, s, 2),
    "image_scores": lambda s: image_scores(
        s.reshape(8, 10) if isinstance(s, np.ndarray | torch.Tensor) else s, "mean"
    ).tolist(),
}
ON_MAPS = {
    "aupro": lambda m: aupro(MASKS, m),
    "aupimo": lambda m: aupimo(MASKS, m, fpr_bounds=(0.02, 0.9)),
    "heatmaps": lambda m: np.asarray(heatmaps(m.reshape(3, 256), (16, 16), (16, 16), 0)).tolist(),
}


def masked(values):
    return np.ma.masked_array(values, np.arange(values.size).reshape(values.shape) == 3)


WRONG = {
    "masked": (masked, "masked"),
    "complex": (lambda v: v + 1j, "complex"),
    "text": (lambda v: v.astype(str), "pass real numbers"),
    "gaps": (lambda v: np.where(np.arange(v.size).reshape(v.shape) == 3, None, v), "pass real numbers"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", [*ON_SCORES, *ON_MAPS])
def test_what_is_no_number_is_refused(name, wrong):
    make, words = WRONG[wrong]
    with pytest.raises(DataError, match=words) as e:
        (ON_SCORES | ON_MAPS)[name](make(S if name in ON_SCORES else MAPS))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", [n for n in [*ON_SCORES, *ON_MAPS] if n != "confusion_matrix"])
def test_tensors_are_honoured(name):
    call, values = (ON_SCORES | ON_MAPS)[name], S if name in ON_SCORES else MAPS
    exact = torch.from_numpy(values).to(torch.float16).double().numpy()
    expected = call(exact)
    for tensor in (torch.from_numpy(exact).half(), torch.from_numpy(exact).requires_grad_()):
        assert np.allclose(call(tensor), expected, rtol=1e-6, equal_nan=True)
    rounded = torch.from_numpy(exact).to(torch.bfloat16)
    assert np.allclose(call(rounded), call(rounded.double().numpy()), rtol=1e-6, equal_nan=True)


def test_labels_too():
    with pytest.raises(DataError, match="y_true: masked entries: 1"):
        roc_auc(masked(Y), S)
    with pytest.raises(DataError, match=r"y_true holds .*nan"):
        roc_auc(pd.array([None, *Y[1:]], dtype="Int64"), S)
    assert (
        roc_auc(pd.Series(Y, dtype="Int64"), S)
        == roc_auc(Y.astype(object), S)
        == roc_auc(torch.from_numpy(Y), S)
        == roc_auc(Y, S)
    )


def failing(part):
    "A metric without a value in this part of the draws of 100 images, the first of which is image 0 to 99."

    def metric(first):
        if first[0] % 100 < 100 * part and not np.array_equal(first, np.arange(100)):
            raise DataError("one class only")
        return float(first.mean())

    return metric


def test_an_interval_of_few_of_the_draws_is_refused():
    with pytest.raises(DataError, match=r"resamples have no value .*one class only.*too few images.*add images"):
        bootstrap_interval(failing(0.97), np.arange(100), n_resamples=200)
    assert bootstrap_interval(failing(0.67), np.arange(100), n_resamples=200).value == 49.5
    two = bootstrap_interval(roc_auc, [0, 1], [0.1, 0.9])  # half of the draws hold one class
    assert (two.low, two.high) == (1, 1)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many"])
def test_resamples_are_a_whole_number(wrong):
    histogram = ScoreHistogram("float16").update([0, 1], [1, 2], image="a").update([0, 1], [2, 1], image="b")
    for call in (
        lambda: bootstrap_interval(roc_auc, Y, S, n_resamples=wrong),
        lambda: histogram_intervals(histogram, n_resamples=wrong),
    ):
        with pytest.raises(DataError, match=r"n_resamples=.*whole number from 1"):
            call()


def test_what_is_resampled_is_looked_at_by_place():
    expected = bootstrap_interval(roc_auc, Y, S, n_resamples=20)
    odd = pd.Series(S, index=np.arange(80) + 7)  # no 0 in its index
    for labels, scores in ((Y.tolist(), S.tolist()), (pd.Series(Y), odd), (torch.from_numpy(Y), torch.from_numpy(S))):
        assert bootstrap_interval(roc_auc, labels, scores, n_resamples=20) == expected
    for wrong, words in ((([], []), "data are empty"), ((3.0, 4.0), "one item per image")):
        with pytest.raises(DataError, match=words):
            bootstrap_interval(roc_auc, *wrong)
    with pytest.raises(DataError, match="masked entries"):
        bootstrap_interval(roc_auc, Y, masked(S))
    with pytest.raises(DataError, match="random_state=-1"):
        bootstrap_interval(roc_auc, Y, S, random_state=-1)


def test_a_confusion_matrix_is_square_and_counts():
    assert np.allclose(class_iou([[1, 0], [0, 0]]), [1, np.nan], equal_nan=True)
    counts = np.array([[2, 1], [1, 6]])
    assert np.allclose(class_iou(counts / counts.sum()), class_iou(counts)) and mean_iou(counts, [1]) == 0.75
    for wrong, words in (
        ([[1, 2, 3], [4, 5, 6]], r"matrix has shape \(2, 3\)"),
        ([1, 2], r"matrix has shape \(2,\)"),
        ([[1, -1], [0, 2]], "matrix holds -1"),
        ([[1, np.nan], [0, 2]], "matrix: 1 of 4 values are NaN"),
    ):
        with pytest.raises(DataError, match=words):
            class_iou(wrong)
        with pytest.raises(DataError, match=words):
            mean_iou(wrong)
    for c in (5, -1, 0.5):
        with pytest.raises(DataError, match=f"classes holds {c}; the matrix has classes 0 to 1"):
            mean_iou(counts, [c])
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]
    for n in (0, 2.5, True):
        with pytest.raises(DataError, match=r"n_classes=.*whole number"):
            confusion_matrix([0], [0], n)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((99, 1), "percentiles: 99 and 1; give percentiles with 0 <= low < high <= 100"),
        ((0, 120), "percentiles: 0 and 120;"),
        ((np.nan, 95), "percentiles: nan and 95;"),
        (("a", 95), "percentiles: 'a' and 95;"),
        ((5,), r"percentiles=\(5,\); give two"),
        (5, "percentiles=5; give two"),
    ],
)
def test_a_range_is_between_two_percentiles(wrong, words):
    with pytest.raises(DataError, match=words):
        score_range(S, wrong)
    if np.shape(wrong) == (2,):
        with pytest.raises(DataError, match=words.replace("percentiles:", "low and high:")):
            CalibrationRanges("percentile", *wrong).fit(S)
    with pytest.raises(DataError, match=r"^method='iqr'; use 'percentile' or 'minmax'$"):
        CalibrationRanges("iqr").fit(S)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: false_alarm_bound(100, 5, 95), r"^confidence=95; it must lie in \(0, 1\), for example 0.95$"),
        (lambda: false_alarm_bound(0, 1), "^n=0; a bound needs"),
        (lambda: false_alarm_bound(100, 0), "^rank=0 of n=100 scores; it counts from the smallest score"),
        (lambda: false_alarm_bound(100, 101), "^rank=101 of n=100 scores"),
        (lambda: conformal_bound(0, 0.05), "^0 normal scores: a threshold needs at least one"),
        (lambda: conformal_bound(99, 5), "^alpha=5; it must lie in"),
        (lambda: quantile_threshold(S, q=0.95, too_few="foo"), "^too_few='foo'; use 'error' or 'largest'$"),
        (lambda: quantile_threshold(S, q=95), "^q=95; use 0 < q < 1"),
        (lambda: quantile_threshold([], q=0.95), "^0 normal scores: a threshold needs at least one"),
        (lambda: conformal_threshold(S, 5), "^false_alarms=5; it must lie in"),
        (lambda: conformal_threshold(S, 0.05, 95), "^confidence=95; it must lie in"),
        (lambda: conformal_threshold(S, 0.05, groups=Y, too_few="foo"), "^too_few='foo'; use"),
    ],
)
def test_the_wrong_argument_of_a_threshold_is_named_alone(call, words):
    with pytest.raises(DataError, match=words):
        call()


def test_a_higher_rank_has_a_lower_bound():
    assert false_alarm_bound(100, 100) < false_alarm_bound(100, 95) < false_alarm_bound(100, 5) < 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"patch_scores": np.where(np.arange(256) == 3, np.nan, MAPS.reshape(3, 256))}, "patch_scores: 3 of 768 values"),
        ({"sigma": -1}, "sigma=-1; give the pixels of smoothing, 0 for none"),
        ({"sigma": np.nan}, "sigma=nan; give"),
        ({"sigma": "4"}, "sigma='4'; give"),
        ({"sizes": (0, 16)}, r"sizes holds \(0, 16\); give \(H, W\) in whole pixels"),
        ({"sizes": [(8, 8), (8, 0), (8, 8)]}, r"sizes holds \(8, 0\)"),
        ({"sizes": (8.5, 8)}, r"sizes holds \(8.5, 8\)"),
        ({"patch_hw": (0, 16)}, "patch_hw=0 x 16"),
    ],
)
def test_heatmaps_say_what_is_wrong(wrong, words):
    with pytest.raises(DataError, match=words):
        heatmaps(
            **{"patch_scores": MAPS.reshape(3, 256), "patch_hw": (16, 16), "sizes": (16, 16), "sigma": 0.0} | wrong
        )


def test_no_images_have_no_heatmaps():
    none = heatmaps(np.zeros((0, 256)), (16, 16), (32, 24))
    assert none.shape == (0, 32, 24) and none.dtype == np.float32
    with pytest.raises(DataError, match="maps is empty"):
        colour_range(none)


@pytest.mark.parametrize("wrong", ["a", 0, 1.5, 95, np.nan, True])
def test_a_rate_is_a_number_from_zero_to_one(wrong):
    histogram = ScoreHistogram("float16").update([0, 1], [1, 2], image="a").update([0, 1], [2, 1], image="b")
    for call in (
        lambda: fpr_at_tpr(Y, S, tpr=wrong),
        lambda: histogram.fpr_at_tpr(wrong),
        lambda: histogram_intervals(histogram, n_resamples=5, tpr=wrong),
    ):
        with pytest.raises(DataError, match=r"tpr is .*it must lie in"):
            call()


def test_whole_numbers_that_floats_round_are_refused():
    near = 2**60 + np.arange(80)  # as floats all are equal, and the AUROC would be 0.5
    for name in ("roc_auc", "average_precision", "fpr_at_tpr", "best_f1", "youden", "quantile_threshold"):
        for scores in (near, -near, near.astype(np.uint64)):
            with pytest.raises(DataError, match=r"whole numbers up to -?11529\d+, which floats .* round; subtract"):
                ON_SCORES[name](scores)
        ON_SCORES[name](near - 2**60)
    assert roc_auc(Y, near - 2**60) == 1


@pytest.mark.parametrize(
    ("scores", "held_out", "words"),
    [
        ([[1.0]], [[0.0, 0.0]], r"^held_out\[0\] has the mean 0; .* above zero: leave this method out$"),
        ([[1.0], [2.0]], [[1.0], []], r"^held_out\[1\] is empty"),
        ([[1.0]], [[np.nan]], r"^held_out\[0\] has the mean nan"),
        ([[1.0]], [], "^1 method, 0 sets of held-out scores; fusing needs both of each method$"),
        ([], [], "^0 methods, 0 sets"),
        ([[1.0], [1.0, 2.0]], [[1.0], [1.0]], r"^scores have shapes \[\(1,\), \(2,\)\]"),
    ],
)
def test_fusing_says_which_method_has_no_scale(scores, held_out, words):
    with pytest.raises(DataError, match=words):
        fused_scores(scores, held_out)
