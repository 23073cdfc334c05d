"""Ranking metrics and score histograms: equal to scikit-learn, exact on stored scores, true inside the bounds, the same
bits in any order.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from anomaly_nb.core.errors import DataError
from anomaly_nb.metrics import (
    RegionHistogram,
    ScoreHistogram,
    average_precision,
    best_f1,
    choose_key,
    fpr_at_tpr,
    histogram_intervals,
    roc_auc,
    threshold_table,
    youden,
)


def sample(seed, n, decimals=None, fraction=0.2, dtype=np.float64):
    rng = np.random.default_rng(seed)
    y_true = rng.random(n) < fraction
    y_true[:2] = False, True
    score = rng.normal(size=n) + y_true
    return y_true, (score if decimals is None else score.round(decimals)).astype(dtype)


CASES = list(itertools.product((2, 3, 17, 1000, 60_000), (None, 2, 0), (np.float32, np.float64)))


@pytest.mark.parametrize("n, decimals, dtype", CASES)
def test_equal_to_scikit_learn(n, decimals, dtype):
    for seed in range(3):
        y_true, score = sample(seed, n, decimals, dtype=dtype)
        assert roc_auc(y_true, score) == pytest.approx(roc_auc_score(y_true, score), abs=1e-12, rel=0)
        assert average_precision(y_true, score) == pytest.approx(
            average_precision_score(y_true, score), abs=1e-12, rel=0
        )
        fpr, tpr, threshold = roc_curve(y_true, score, drop_intermediate=False)
        for rate in (0.5, 0.95, 1.0):
            assert fpr_at_tpr(y_true, score, rate) == fpr[np.argmax(tpr >= rate)]
        j, at = youden(y_true, score)
        assert j == pytest.approx((tpr - fpr).max(), abs=1e-12) and j == pytest.approx(
            (tpr - fpr)[threshold == at][0], abs=1e-12
        )
        precision, recall, cuts = precision_recall_curve(y_true, score)
        with np.errstate(invalid="ignore"):
            f1 = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
        value, at = best_f1(y_true, score)
        assert value == pytest.approx(f1.max(), abs=1e-12) and at == cuts[np.flatnonzero(f1 >= f1.max() - 1e-12)[-1]]


@pytest.mark.parametrize("rule", ["first", "above", "nearest"])
def test_fpr_rules_by_counting_all_thresholds(rule):
    for seed in range(40):
        y_true, score = sample(seed, 60, 1)
        cuts = np.unique(score)[::-1]
        tpr = np.array([(score[y_true] >= c).mean() for c in cuts])
        fpr = np.array([(score[~y_true] >= c).mean() for c in cuts])
        if rule == "nearest":
            distance = np.abs(tpr - 0.9)
            expected = fpr[np.flatnonzero(distance == distance.min())[-1]]
        else:
            expected = fpr[np.argmax(tpr >= 0.9 if rule == "first" else tpr > 0.9)]
        assert fpr_at_tpr(y_true, score, 0.9, rule) == expected


def test_all_zero_one_tie_and_perfect():
    y_true = np.array([0, 1, 0, 1])
    assert roc_auc(y_true, np.zeros(4)) == 0.5 and average_precision(y_true, np.zeros(4)) == 0.5
    assert roc_auc(y_true, y_true) == average_precision(y_true, y_true) == 1 and fpr_at_tpr(y_true, y_true) == 0
    assert roc_auc(y_true, 1 - y_true) == 0
    assert roc_auc(y_true, np.array([-0.0, 0.0, 0.0, -0.0])) == 0.5


def test_only_the_order_matters_and_duplication_changes_nothing():
    y_true, score = sample(5, 4000, 2)
    everything = (roc_auc, average_precision, fpr_at_tpr)
    for metric in everything:
        assert metric(y_true, 3 * score + 7) == pytest.approx(metric(y_true, score), abs=1e-14)
        assert metric(y_true, np.exp(score)) == pytest.approx(metric(y_true, score), abs=1e-14)
        assert metric(np.tile(y_true, 3), np.tile(score, 3)) == pytest.approx(metric(y_true, score), abs=1e-12)
    assert roc_auc(~y_true, -score) == pytest.approx(roc_auc(y_true, score), abs=1e-14)


@pytest.mark.parametrize(
    "y_true, score, words",
    [
        ([0, 0], [1.0, 2.0], "one class only"),
        ([1, 1], [1.0, 2.0], "one class only"),
        ([0, 1], [1.0, np.nan], "NaN or infinite"),
        ([0, 1], [1.0, -np.inf], "NaN or infinite"),
        ([0, 1, 1], [1.0, 2.0], "must be equal"),
        ([0, 2], [1.0, 2.0], "0 \\(normal\\) or 1"),
        ([], [], "empty"),
    ],
)
def test_errors_name_the_cause(y_true, score, words):
    for metric in (roc_auc, average_precision, fpr_at_tpr, best_f1, youden, threshold_table):
        with pytest.raises(DataError, match=words):
            metric(y_true, score)


# ------------------------------------------------------------------ histograms

KEYS = [("float16", None), ("linear16", (-40.0, 40.0))]
SCALES = [(1, 0), (1e-3, 0), (8, 0), (0.01, 30), (0.01, -30)]


def values(t):
    return {
        "roc_auc": t.roc_auc(),
        "average_precision": t.average_precision(),
        "fpr_at_tpr": t.fpr_at_tpr(),
        "best_f1": t.best_f1()[0],
        "youden": t.youden()[0],
    }


@pytest.mark.parametrize("key", KEYS, ids=lambda k: k[0])
@pytest.mark.parametrize("scale, shift", SCALES)
def test_histogram_equals_the_sort_of_stored_scores(key, scale, shift):
    y_true, score = sample(1, 30_000)
    score = (np.clip(score, -4.5, 4.5) * scale + shift).astype(np.float32)
    h = ScoreHistogram(*key).update(y_true[:10_000], score[:10_000]).update(y_true[10_000:], score[10_000:])
    stored = threshold_table(y_true, h.stored(score))
    for name, value in values(h).items():
        assert value == pytest.approx(values(stored)[name], abs=1e-13, rel=0), name
    assert h.best_f1()[1] == stored.best_f1()[1] and h.youden()[1] == stored.youden()[1]
    for cut in (h.best_f1()[1], h.youden()[1]):  # a threshold acts on the float32 scores exactly as it was counted
        assert (
            h.at(cut)["tp"] == (y_true & (score >= cut)).sum() and h.at(cut)["fp"] == (~y_true & (score >= cut)).sum()
        )


@pytest.mark.parametrize("key", [*KEYS, ("float32", None)], ids=lambda k: k[0])
@pytest.mark.parametrize("scale, shift", SCALES)
@pytest.mark.parametrize("fraction", [0.002, 0.5, 0.98])
def test_the_exact_value_is_inside_the_bounds(key, scale, shift, fraction):
    for seed in range(6):
        y_true, score = sample(seed, (40, 500, 6000)[seed % 3], fraction=fraction)
        score = (np.clip(score, -4.5, 4.5) * scale + shift).astype(np.float32)
        bounds = ScoreHistogram(*key).update(y_true, score).bounds()
        for name, value in values(threshold_table(y_true, score)).items():
            low, high = bounds[name]
            assert low <= value <= high, (name, seed)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 40)), min_size=2, max_size=40),
    st.sampled_from([1.0, 2**-14, 2**-11]),
)
def test_bounds_hold_for_crowded_bins(pairs, step):
    y_true = np.array([t for t, _ in pairs])
    if y_true.all() or not y_true.any():
        return
    score = (1 + step * np.array([v for _, v in pairs]) / 7).astype(np.float32)
    for name, value in values(threshold_table(y_true, score)).items():
        low, high = ScoreHistogram().update(y_true, score).bounds()[name]
        assert low <= value <= high, name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(-(2.0**100), 2.0**100, width=32)), min_size=2, max_size=60))
def test_two_passes_are_exact(pairs):
    y_true, score = np.array([t for t, _ in pairs]), np.array([s for _, s in pairs], np.float32)
    if y_true.all() or not y_true.any():
        return
    first = ScoreHistogram("float32")
    parts = np.array_split(np.arange(y_true.size), 3)
    for p in parts:
        if p.size:
            first.update(y_true[p], score[p])
    second = first.refine()
    for p in reversed(parts):
        if p.size:
            second.update(y_true[p], score[p])
    expected = threshold_table(y_true, score)
    for name, value in values(second).items():
        assert value == pytest.approx(values(expected)[name], abs=1e-12, rel=0)
    assert second.best_f1()[1] == expected.best_f1()[1]


def test_a_second_pass_answers_where_it_knows():
    "Normal scores between two anomalous ones are counted together: inside, nobody knows how many are above."
    y_true, score = np.array([1, 1, 0, 0, 0, 0]), np.array([0.2, 0.9, 0.2, 0.5, 0.6, 0.1], np.float32)
    second = ScoreHistogram("float32").update(y_true, score).refine().update(y_true, score)
    above = np.nextafter(np.float32(0.2), np.float32(1))
    for threshold in (2.0, 0.95, *(float(v) for v in (score[1], above, score[0])), 0.05, -3.0):
        at = second.at(threshold)
        assert at["tp"] == (y_true.astype(bool) & (score >= threshold)).sum(), threshold
        assert at["fp"] == (~y_true.astype(bool) & (score >= threshold)).sum(), threshold
    for threshold in (0.3, 0.55, 0.15):
        with pytest.raises(DataError, match="counts normal scores between two anomalous ones together, here from"):
            second.at(threshold)
    second = ScoreHistogram("float32").update(y_true, score - 1).refine().update(y_true, score - 1)
    with pytest.raises(DataError, match="here from"):
        second.at(-0.7)
    lone = ScoreHistogram("float32").update([1, 0, 0], [0.2, 0.5, 0.7]).refine().update([1, 0, 0], [0.2, 0.5, 0.7])
    with pytest.raises(DataError, match=r"here from 0.20000\d+ on; give"):
        lone.at(0.6)


def test_youden_of_more_pairs_than_64_bits_count():
    y_true, score = sample(3, 16, 1)
    h = ScoreHistogram().update(y_true, score)
    few = h.youden()
    for _ in range(29):
        h.merge(ScoreHistogram().merge(h))
    assert h.positives * h.negatives > 2**62 and h.youden() == few
    table = threshold_table(y_true, score)
    assert table._replace(tp=table.tp << 40, fp=table.fp << 40).youden() == table.youden()


@pytest.mark.parametrize("key", [*KEYS, ("float32", None)], ids=lambda k: k[0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_no_score_is_not_stored_as_one(key, bad):
    with pytest.raises(DataError, match="y_score: 1 of 2 values are NaN or infinite"):
        ScoreHistogram(*key).stored([0.0, bad])


@pytest.mark.parametrize("value_range", [(-1, 1), [-1, 1.0], np.float32([-1, 1]), (np.int64(-1), 1), (-1, True)])
def test_equal_ranges_merge_however_they_are_written(value_range, tmp_path):
    h = ScoreHistogram("linear16", value_range).update([0, 1], [0.1, 0.2])
    h.merge(ScoreHistogram.load(h.save(tmp_path / "h.npz"))).merge(ScoreHistogram("linear16", (-1.0, 1.0)))
    assert h.positives == 2
    ScoreHistogram("linear16", (-0.0, 1)).merge(ScoreHistogram("linear16", (0, 1)))


@pytest.mark.parametrize("wrong", [5, ("a", "b"), (1, 2, 3), (1,), (np.nan, 1)])
def test_a_range_is_two_numbers(wrong):
    with pytest.raises(DataError, match=r"value_range is .*; it must be two finite numbers, the first one smaller"):
        ScoreHistogram("linear16", wrong)


def test_scores_are_read_from_a_file_of_regions(tmp_path):
    h = RegionHistogram()
    for i in range(6):
        mask, score = np.zeros((8, 8), bool), np.random.default_rng(i).random((8, 8))
        mask[2:4, 2:4] = i % 2
        h.update(mask, score, image=f"{i}")
    again = ScoreHistogram.load(h.save(tmp_path / "h.npz"))
    assert histogram_intervals(again, 20)["roc_auc"] == histogram_intervals(h.scores, 20)["roc_auc"]
    assert again.save(tmp_path / "a.npz").read_bytes() == h.scores.save(tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("key", [*KEYS, ("float32", None)], ids=lambda k: k[0])
def test_merging_in_any_order_gives_the_same_bits(key, tmp_path):
    y_true, score = sample(2, 6000, 2, dtype=np.float32)
    parts = np.array_split(np.arange(y_true.size), 4)

    def part(i):
        return ScoreHistogram(*key).update(
            y_true[parts[i]], score[parts[i]], image=None if key[0] == "float32" else f"{i}"
        )

    files, seen = set(), set()
    for order in itertools.permutations(range(4)):
        one = part(order[0]).merge(part(order[1]).merge(part(order[2]))).merge(part(order[3]))
        files.add(one.save(tmp_path / "h.npz").read_bytes())
        if key[0] == "float32":
            second = [one.refine().update(y_true[parts[i]], score[parts[i]]) for i in order]
            for other in second[1:]:
                second[0].merge(other)
            one = second[0]
            files.add(one.save(tmp_path / "h.npz").read_bytes())
        seen.add((one.roc_auc(), one.average_precision(), one.best_f1()))
        again = ScoreHistogram.load(tmp_path / "h.npz")
        assert (again.roc_auc(), again.average_precision(), again.best_f1()) in seen and repr(again) == repr(one)
    assert len(seen) == 1 and len(files) == (2 if key[0] == "float32" else 1)


def test_images_are_kept_apart():
    y_true, score = sample(3, 3000, dtype=np.float32)
    h = ScoreHistogram("linear16", (-10, 10))
    for i in range(3):
        h.update(y_true[i::3], score[i::3], image=f"{i}")
    h.update(np.zeros(5), np.zeros(5), image="normal only")
    tables = dict(h.image_tables())
    assert list(tables) == ["0", "1", "2"]
    for i in range(3):
        assert tables[f"{i}"].roc_auc() == pytest.approx(roc_auc(y_true[i::3], h.stored(score[i::3])), abs=1e-13)


def test_scores_out_of_range_are_never_dropped():
    for h, bad in (
        (ScoreHistogram("linear16", (0, 1)), 1.01),
        (ScoreHistogram("linear16", (0, 1)), -0.01),
        (ScoreHistogram(), 1e6),
        (ScoreHistogram(), -65520.0),
    ):
        h.update([0, 1], [0.2, 0.4])
        before = h.counts.copy()
        with pytest.raises(DataError, match=r"outside value_range|beyond the range of float16"):
            h.update([0, 1], [0.5, bad])
        assert (h.counts == before).all()
    h = ScoreHistogram("linear16", (0.1, 0.7)).update(
        [0, 1], [0.1, 0.7]
    )  # the ends belong to the range, whatever their rounding
    assert h.roc_auc() == 1
    with pytest.raises(DataError, match="NaN or infinite"):
        ScoreHistogram("float32").update([0, 1], [0.0, 1e300])


def test_refused_uses(tmp_path):
    for make in (
        lambda: ScoreHistogram("float8"),
        lambda: ScoreHistogram("linear16"),
        lambda: ScoreHistogram("float16", (0, 1)),
        lambda: ScoreHistogram("linear16", (1, 1)),
    ):
        with pytest.raises(DataError):
            make()
    h = ScoreHistogram().update([0, 1], [0.0, 1.0], image="a")
    with pytest.raises(DataError, match="counted already"):
        h.merge(ScoreHistogram().update([0, 1], [0.0, 1.0], image="a"))
    with pytest.raises(DataError, match="must be equal"):
        h.merge(ScoreHistogram("linear16", (0, 1)))
    with pytest.raises(DataError, match="no further pass"):
        h.refine()
    with pytest.raises(DataError, match="keeps no counts per image"):
        ScoreHistogram("float32").update([0, 1], [0.0, 1.0], image="a")
    one, two = (ScoreHistogram("float32").update([0, 1], [0.0, v]).refine() for v in (1.0, 2.0))
    with pytest.raises(DataError, match="same first pass"):
        one.merge(two)
    path = h.save(tmp_path / "h.npz")
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "counts": arrays["counts"][:1]})
    with pytest.raises(DataError, match="do not fit together"):
        ScoreHistogram.load(path)


def test_chosen_key_is_never_the_much_worse_one():
    rng = np.random.default_rng(0)
    n = 20_000
    for scores in (
        rng.normal(500, 5, n),
        -1 + rng.beta(0.3, 8, n),
        np.exp(2 * rng.normal(size=n)),
        rng.normal(size=n),
        rng.random(n) * 1e9,
        np.full(10, 3.0),
    ):
        y_true = rng.random(scores.size) < 0.3
        y_true[:2] = 0, 1
        width = {}
        chosen = choose_key([scores])
        span = (float(np.float32(scores.min())), float(np.float32(scores.max())) + 1)
        for key in (("float16", None), ("linear16", span), chosen):
            if key[0] == "float16" and scores.max() > 65000:
                continue
            low, high = ScoreHistogram(*key).update(y_true, scores).bounds()["roc_auc"]
            width[key] = high - low
        assert width[chosen] <= 1.5 * min(width.values()) + 1e-9


def test_numpy_alone_is_enough():
    import subprocess
    import sys

    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'pandas', 'scipy', 'sklearn', 'matplotlib'))); import anomaly_nb.metrics as m; print(m.roc_auc([0, 1], [0, 1]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == "1.0", out.stderr
