"""Drift verdicts: SciPy's figures, every broken input, and the stated error rates by simulation (ANOMALY_NB_SLOW=1 for
2000 runs each).
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import beta, binom

from anomaly_nb.calibration.drift import VERDICTS, adjust_p_values, drift_metrics, judge_heads
from anomaly_nb.calibration.shifts import METRICS, Thresholds
from anomaly_nb.calibration.view import DriftView
from anomaly_nb.core.errors import DataError
from anomaly_nb.reports.run import ReportError, run_report, tree_digest
from anomaly_nb.reports.verify import verify
from anomaly_nb.calibration.sample import (
    Sample,
    ScoreSketch,
    bootstrap_quantiles,
    quantiles,
    sketch_edges,
    weighted_quantiles,
)

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
RUNS = 2000 if SLOW else 80
ALPHA = 0.05
SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "beta": lambda rng, n: rng.beta(4, 8, n),
    "gamma": lambda rng, n: rng.gamma(1.5, size=n),
    "heavy tail": lambda rng, n: rng.standard_t(3, n),
}


def allowed(runs, rate=ALPHA):
    "The most alarms in `runs` that a true `rate` yields in 999 of 1000 experiments."
    return binom.ppf(0.999, runs, rate)


@pytest.mark.parametrize("bins", [None, 5, 20, 50])
@pytest.mark.parametrize("seed", range(5))
def test_divergence_is_scipys(bins, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.gamma(2, size=700), rng.gamma(2.4, size=350)
    r = drift_metrics(a, b, bins=bins, resamples=50)
    p, q = (np.histogram(x, [-np.inf, *r.bin_edges, np.inf])[0] for x in (a, b))
    assert r.jsd == pytest.approx(jensenshannon(p, q, base=2), abs=1e-12)
    assert r.percentile_method == "linear"


@pytest.mark.parametrize("seed", range(5))
def test_shifts_by_hand(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(400), rng.random(300) ** 2
    r = drift_metrics(a, b, resamples=50)
    (a5, a25, a50, a75, a95), (b5, b25, b50, b75, b95) = (
        np.quantile(x, [0.05, 0.25, 0.5, 0.75, 0.95], method="linear") for x in (a, b)
    )
    assert r.scale == "unit"
    assert (r.apd_p5, r.apd_p95, r.median_drift) == pytest.approx(
        (abs(b5 - a5), abs(b95 - a95), abs(b50 - a50)), abs=1e-12
    )
    assert r.srd == pytest.approx(abs((b95 - b5) - (a95 - a5)) / (a95 - a5), abs=1e-12)
    assert r.iqr_drift == pytest.approx(abs((b75 - b25) - (a75 - a25)) / (a75 - a25), abs=1e-12)
    far = drift_metrics(a * 50 - 7, b * 50 - 7, resamples=50)
    assert far.scale == "reference" and far.apd_p5 == pytest.approx(r.apd_p5 / (a95 - a5), abs=1e-9)
    assert far.jsd == pytest.approx(r.jsd, abs=1e-9) and far.srd == pytest.approx(r.srd, abs=1e-9)


def test_identical_data_gives_zeros():
    scores = np.random.default_rng(0).random(5000)
    r = drift_metrics(scores, scores)
    assert [getattr(r, m) for m in METRICS] == [0.0] * 6 and r.is_stable and not r.failed_metrics


BASE = np.random.default_rng(1).beta(4, 8, 60_000)
BROKEN = {
    "every tenth NaN": np.where(np.arange(BASE.size) % 10, BASE, np.nan),
    "all NaN": np.full(100, np.nan),
    "constant": np.full(60_000, 0.3),
    "empty": np.array([]),
    "few": BASE[:49],
    "rounded": np.round(BASE, 1),
    "mostly one value": np.where(np.arange(BASE.size) % 10 < 6, 0.25, BASE),
    "clamped high": np.minimum(BASE, 0.4),
    "two values": np.where(BASE > 0.3, 1.0, 0.0),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("grouped", [False, True])
def test_broken_scores_are_never_stable(name, grouped):
    scores = BROKEN[name]
    for a, b in [(BASE, scores), (scores, BASE), (scores, scores), (scores, scores.copy()[::-1])]:
        sides = (Sample.of(x, np.arange(x.size) % 20 if grouped else None) for x in (a, b))
        r = drift_metrics(*sides, resamples=100, thresholds=Thresholds(10, 10, 0.99, 10, 10))
        if name != "every tenth NaN" or a is BASE:
            assert r.verdict in ("insufficient", "unstable") and r.is_stable is False, (name, r.reason)
        assert r.as_dict()["verdict"] == r.verdict
    assert name == "every tenth NaN" or drift_metrics(scores, scores, resamples=100).verdict == "insufficient"


@pytest.mark.parametrize("gap", [np.nan, np.inf, -np.inf])
def test_one_gap_is_counted_and_told(gap):
    rng = np.random.default_rng(1)
    a, b = rng.gamma(4, size=500), rng.gamma(4, size=500)
    r = drift_metrics(a, np.r_[b, gap])
    assert (
        r.lost_current == 1
        and "left out as no number: 1 new score" in r.reason
        and r.verdict == drift_metrics(a, b).verdict == "no evidence of drift"
    )


def test_a_head_that_stops_working_is_unstable_for_that_reason():
    a = np.random.default_rng(0).gamma(4, size=500)
    for now, says in (
        (np.full(500, 0.5), "every score is 0.5"),
        (np.full(500, np.nan), "500 of 500 scores missing, NaN or infinite: the head has stopped giving scores"),
        (np.r_[a[:10], np.full(490, np.nan)], "490 of 500 scores missing, NaN or infinite: the head has stopped"),
        (np.r_[a[:56], np.full(4, np.nan)], "4 of 60 scores missing, NaN or infinite; at most 5.0 % may be"),
        (np.r_[a[:100], np.full(400, 2.0)], "half of the scores are 2"),
    ):
        r = drift_metrics(a, now)
        assert r.verdict == "unstable" and not r.is_stable and says in r.reason
        assert ("stopped" in r.reason) == ("stopped" in says)


SIZES = (60, 200, 1000, 3500, 10_000)


def verdict_table(runs, sizes=SIZES):
    """n, shift in margins of the outer percentiles (0.05 of the range, or what n can decide where that is more) ->
    fraction of each verdict.
    """
    out, spread = {}, float(np.ptp(beta.ppf([0.05, 0.95], 4, 8)))
    for n in sizes:
        for times in (0.0, 0.5, 2.0):
            rng, seen = np.random.default_rng(n), []
            shift = times * max(0.05, 3.92 * 0.75 * np.sqrt(2 / n)) * spread
            for i in range(runs):
                seen.append(
                    drift_metrics(
                        rng.beta(4, 8, n), rng.beta(4, 8, n) + shift, scale="reference", resamples=400, random_state=i
                    ).verdict
                )
            out[n, times] = {v: seen.count(v) / runs for v in VERDICTS}
    return out


def test_verdicts_over_sizes():
    found = verdict_table(200 if SLOW else 20, SIZES if SLOW else (60, 1000, 10_000))
    for (n, times), row in found.items():
        print(f"n {n:6}, drift of {times} margins: " + ", ".join(f"{v} {f:.3f}" for v, f in row.items() if f))
        if times == 0:
            assert row["stable"] + row["no evidence of drift"] >= 0.8 and row["unstable"] <= 0.15
            assert row["stable"] >= {3500: 0.3, 10_000: 0.6}.get(n, 0)
        if times == 2:
            assert row["unstable"] >= 0.85 and row["stable"] == 0


@pytest.mark.parametrize("n", [3500, 10_000])
def test_drift_at_the_margin_is_rarely_called_stable(n):
    """A shift of exactly 0.05 of the range, the widest margin: stable in at most half of alpha, whatever grade the
    files can decide.
    """
    rng, said, runs, spread = (
        np.random.default_rng(n),
        0,
        RUNS if SLOW else 60,
        float(np.ptp(beta.ppf([0.05, 0.95], 4, 8))),
    )
    for i in range(runs):
        r = drift_metrics(
            rng.beta(4, 8, n), rng.beta(4, 8, n) + 0.05 * spread, scale="reference", resamples=400, random_state=i
        )
        said += r.verdict == "stable"
        assert set(r.margins) == set(r.widths) == set(METRICS) and 0.01 <= r.margins["apd_p5"] <= 0.05
    print(f"shift at the margin, n={n}: called stable in {said / runs:.2%}")
    assert said <= allowed(runs, ALPHA / 2)


def test_only_the_thresholds_themselves_where_asked():
    rng = np.random.default_rng(0)
    a, b = rng.beta(4, 8, 10_000), rng.beta(4, 8, 10_000)
    wide, narrow = drift_metrics(a, b), drift_metrics(a, b, widest="excellent")
    assert wide.verdict == "stable" and wide.margins["apd_p95"] == pytest.approx(0.02)  # on the unit scale
    assert wide.margins["srd"] == Thresholds().srd and wide.reason.startswith("every metric is below its margin: the ")
    assert narrow.verdict == "no evidence of drift" and narrow.margins == {m: Thresholds().of(m) for m in METRICS}
    assert wide.n_needed is None and narrow.n_needed > 30_000 and " may be up to " in narrow.reason
    with pytest.raises(ValueError, match="use excellent, good, acceptable"):
        drift_metrics(a, b, widest="perfect")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [(60, 60), (1000, 60), (300, 300), (60, 1000), (3000, 3000), (10_000, 10_000)])
def test_unstable_without_drift_at_most_the_stated_rate(shape, sizes):
    rng = np.random.default_rng([*map(ord, shape), *sizes])
    draw, runs = SHAPES[shape], RUNS if SLOW or max(sizes) <= 1000 else 20
    alarms = sum(
        drift_metrics(draw(rng, sizes[0]), draw(rng, sizes[1]), alpha=ALPHA, random_state=i).verdict == "unstable"
        for i in range(runs)
    )
    print(f"no drift, {shape}, {sizes[0]} against {sizes[1]}: {alarms} of {runs} unstable ({alarms / runs:.2%})")
    assert alarms <= allowed(runs)


def test_a_drift_just_at_the_threshold_between_unequal_sizes_is_called_at_most_at_the_rate():
    "The few new scores spread more than the many old ones, by as much as is allowed: the pool alone has too little noise."
    rng, runs, times = np.random.default_rng(0), 5 * RUNS, 1.8
    tail = (times - 1) / 2  # of a symmetric range, by which each end moves
    limits = Thresholds(apd=tail, srd=times - 1, jsd=0.95, median=0.5, iqr=times - 1)
    alarms = 0
    for i in range(runs):
        old, new = rng.normal(size=1000), times * rng.normal(size=60)
        result = drift_metrics(old, new, limits, "reference", random_state=i, resamples=300)
        alarms += result.verdict == "unstable"
    assert alarms <= allowed(runs)


@pytest.mark.parametrize("shape", ["normal", "gamma"])
@pytest.mark.parametrize("n", [60, 1000])
def test_rate_without_any_tolerance(shape, n):
    "Thresholds near zero leave nothing but the test itself: its level must still hold."
    rng = np.random.default_rng([*map(ord, shape), n, 7])
    draw, none = SHAPES[shape], Thresholds(1e-9, 1e-9, 1e-9, 1e-9, 1e-9)
    alarms = sum(
        drift_metrics(draw(rng, n), draw(rng, n), none, alpha=ALPHA, random_state=i).verdict == "unstable"
        for i in range(RUNS)
    )
    print(f"no drift, no tolerance, {shape}, n={n}: {alarms / RUNS:.2%}")
    assert alarms <= allowed(RUNS)


@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_rate_with_correlated_groups(spread):
    """20 against 20 videos of 30 frames that resemble each other: counted as frames they raise alarms, as videos they
    do not.
    """
    rng, alarms, naive = np.random.default_rng(int(spread * 10)), 0, 0
    runs = RUNS if SLOW else 40
    groups = np.repeat(np.arange(20), 30)
    for i in range(runs):
        a, b = ((rng.normal(size=(20, 30)) + spread * rng.normal(size=(20, 1))).ravel() for _ in range(2))
        alarms += (
            drift_metrics(Sample(a, groups), Sample(b, groups), resamples=200, random_state=i).verdict == "unstable"
        )
        naive += drift_metrics(a, b, resamples=200, random_state=i).verdict == "unstable"
    print(
        f"groups, spread {spread}: {alarms / runs:.2%} unstable by group, {naive / runs:.2%} if frames were independent"
    )
    assert alarms <= allowed(runs) and naive > 4 * max(alarms, 1)


@pytest.mark.parametrize("correction", ["bh", "bonferroni"])
def test_rate_over_twenty_heads(correction):
    rng, any_alarm = np.random.default_rng(3), 0
    runs = RUNS if SLOW else 30
    for _ in range(runs):
        heads = {
            str(h): drift_metrics(rng.gamma(2, size=200), rng.gamma(2, size=200), random_state=h) for h in range(20)
        }
        any_alarm += any(r.verdict == "unstable" for r in judge_heads(heads, correction).values())
    print(f"20 heads, {correction}: {any_alarm / runs:.2%} of runs with any alarm")
    assert any_alarm <= allowed(runs)


@pytest.mark.parametrize("n, shift, power", [(60, 1.5, 0.9), (300, 0.6, 0.9), (1000, 0.4, 0.9), (10_000, 0.2, 0.95)])
def test_planted_shift_is_found(n, shift, power):
    rng, runs = np.random.default_rng(n), RUNS if SLOW else 40
    found = sum(
        drift_metrics(rng.normal(size=n), rng.normal(shift, size=n), random_state=i).verdict == "unstable"
        for i in range(runs)
    )
    print(f"shift of {shift} sd, n={n}: found in {found / runs:.1%}")
    assert found >= power * runs - 3 * np.sqrt(runs * power * (1 - power))


@pytest.mark.parametrize("n, fraction", [(300, 0.1), (1000, 0.05), (3000, 0.03)])
def test_planted_defects_are_found(n, fraction):
    rng, found, runs = np.random.default_rng(n), 0, RUNS if SLOW else 40
    for i in range(runs):
        now = np.where(rng.random(n) < fraction, rng.normal(6, 1, n), rng.normal(size=n))
        found += drift_metrics(rng.normal(size=n), now, random_state=i).verdict == "unstable"
    print(f"{fraction:.0%} defects, n={n}: found in {found / runs:.1%}")
    assert found >= 0.8 * runs


@pytest.mark.parametrize("shape", ["normal", "gamma"])
def test_planned_sample_size_decides(shape):
    rng, draw = np.random.default_rng(5), SHAPES[shape]
    runs = 200 if SLOW else 25
    wide = Thresholds(0.05, 0.1, 0.15, 0.1, 0.15)
    of = {"widest": "excellent"}  # by the thresholds themselves, whatever n can decide
    plans = [drift_metrics(draw(rng, 400), draw(rng, 400), wide, random_state=i, **of).n_needed for i in range(25)]
    n = int(np.median([p for p in plans if p]))
    stable = sum(
        drift_metrics(draw(rng, n), draw(rng, n), wide, random_state=i, **of).verdict == "stable" for i in range(runs)
    )
    print(f"{shape}: planned {n} on each side, stable in {stable / runs:.1%}")
    assert stable >= 0.7 * runs


def test_stable_is_rarely_said_of_drift_at_the_threshold():
    rng, said, runs = np.random.default_rng(8), 0, RUNS if SLOW else 60
    wide = Thresholds(0.1, 0.5, 0.5, 0.5, 0.5)
    for i in range(runs):
        a = rng.normal(size=3000)
        b = rng.normal(0.1 * 2 * 1.6449, size=3000)  # exactly 0.1 on the reference's scale
        said += drift_metrics(a, b, wide, scale="reference", random_state=i).verdict == "stable"
    print(f"shift at the threshold: called stable in {said / runs:.2%}")
    assert said <= allowed(runs)


def test_sketches_in_parts_give_the_whole():
    rng = np.random.default_rng(0)
    a, b = rng.gamma(3, size=200_000), rng.gamma(3, 1.03, size=150_000)
    edges = sketch_edges(a[:50_000])
    ref = ScoreSketch(edges).update(a)
    parts = [ScoreSketch(edges).update(p) for p in np.array_split(rng.permutation(b), 9)]
    for p in parts[1:]:
        parts[0].merge(p)
    whole, in_parts = drift_metrics(ref, ScoreSketch(edges).update(b)), drift_metrics(ref, parts[0])
    assert whole == in_parts
    exact = drift_metrics(a, b)
    assert whole.verdict == exact.verdict and all(abs(getattr(whole, m) - getattr(exact, m)) < 2e-3 for m in METRICS)


def test_bootstrap_shortcuts_equal_resampling():
    rng = np.random.default_rng(2)
    for n in (5, 60, 61, 500):
        s = Sample(rng.exponential(size=n))
        quick = bootstrap_quantiles(s, rng, 8000)
        slow = np.quantile(rng.choice(s.values, (8000, n)), [0.05, 0.25, 0.5, 0.75, 0.95], axis=1).T
        assert np.allclose(quick.mean(0), slow.mean(0), atol=5 * slow.std(0) / np.sqrt(4000)) and np.allclose(
            quick.std(0), slow.std(0), rtol=0.08
        )
    w = rng.integers(0, 3, (10, s.n))
    assert np.allclose(
        weighted_quantiles(s.values, w),
        [np.quantile(np.repeat(s.values, row), [0.05, 0.25, 0.5, 0.75, 0.95]) for row in w],
    )
    assert np.allclose(quantiles(s), np.quantile(s.values, [0.05, 0.25, 0.5, 0.75, 0.95]))


def test_the_same_call_gives_the_same_bits():
    rng = np.random.default_rng(4)
    a, b = rng.random(500), rng.random(500)
    assert drift_metrics(a, b, random_state=3) == drift_metrics(a, b, random_state=3)
    assert drift_metrics(a, rng.permutation(b), random_state=3) == drift_metrics(a, b, random_state=3)


def test_adjusting_keeps_order_and_range():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(rng.integers(1, 30))
        for how in ("bh", "bonferroni", "none"):
            q = adjust_p_values(p, how)
            assert (q >= p - 1e-15).all() and (q <= 1).all() and (np.diff(q[np.argsort(p)]) >= -1e-15).all()


def test_groups_are_given_for_both_sides_or_none():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=200), rng.normal(size=200)
    with pytest.raises(ValueError, match="one side only"):
        drift_metrics(Sample(a, np.arange(200) % 20), b)
    assert (
        "7 groups only; at least 8"
        in drift_metrics(Sample(a, np.arange(200) % 7), Sample(b, np.arange(200) % 20)).reason
    )


MARGIN = r"its margin [\d.]+( for \d+ (new|reference) files \(threshold [\d.]+\))?"
SHORT = {
    "unstable": r"the [a-z ]+ ha(s|ve) moved beyond chance: \w+ is [\d.e+-]+, its threshold [\d.]+(; also (\w+, )*\w+)?",
    "stable": rf"every metric is below its margin: the nearest, \w+, is at most [\d.e-]+, (its threshold [\d.]+|{MARGIN})",
    "no evidence of drift": rf"nothing has moved beyond chance, but \w+ may be up to [\d.e-]+, {MARGIN}",
    "inconclusive": rf"something has moved, but \w+ may lie from [\d.e-]+ to [\d.e-]+, {MARGIN}",
}


def test_a_reason_is_one_short_sentence_with_a_number_and_its_limit():
    rng, seen = np.random.default_rng(0), set()
    for n in (60, 600, 20_000):
        for shift in (0, 0.01, 0.03, 0.2):
            r = drift_metrics(rng.beta(4, 8, n), rng.beta(4, 8, n) + shift, resamples=400)
            assert re.fullmatch(SHORT[r.verdict], r.reason) and len(r.reason) < 125, r.reason
            named = next(m for m in METRICS if re.search(rf"\b{m}\b", r.reason))
            narrow = r.margins[named] > r.thresholds.of(named) > r.intervals[named][1]  # would do as well
            named_limit = "threshold" if r.verdict == "unstable" or narrow else "margin"
            shown = r.thresholds.of(named) if named_limit == "threshold" else r.margins[named]
            assert f"its {named_limit} {shown:.2g}" in r.reason
            seen.add(r.verdict)
    assert seen == set(SHORT), seen


def test_a_wide_margin_is_named_only_where_it_matters_and_with_the_number_of_files():
    rng = np.random.default_rng(1)
    scores = {"reference": rng.beta(4, 8, 400), "now": rng.beta(4, 8, 300)}
    few = drift_metrics(*scores.values())
    assert few.reason.endswith(", its margin 0.05 for 300 new files (threshold 0.01)"), few.reason
    few = drift_metrics(scores["now"], np.r_[scores["now"], rng.beta(4, 8, 3000)])
    assert few.reason.endswith(" for 300 reference files (threshold 0.01)"), few.reason
    wide = replace(few, margins={m: 4 * few.thresholds.of(m) for m in METRICS}, p_values={m: 1.0 for m in METRICS})
    wide = replace(wide, intervals={m: (0.0, few.thresholds.of(m) / 2) for m in METRICS}, p_value=1.0)
    judged = judge_heads({"h": wide}, "none")["h"]
    assert judged.verdict == "stable" and re.search(r"is at most [\d.]+, its threshold [\d.]+$", judged.reason)


def test_a_report_of_two_files_of_one_folder_name_is_refused_by_page_and_view(tmp_path):
    for month in ("jan", "feb"):
        (tmp_path / month / "line1").mkdir(parents=True)
        (tmp_path / month / "line1" / "scores.csv").write_text("file,score\na.png,1\nb.png,2\n")
    scores = ",".join(f"{tmp_path}/{month}/line1/scores.csv" for month in ("jan", "feb"))
    p = {"split": "", "shuffle": False, "seed": 0, "batches": 2, "alpha": 0.05, "min_files": 50}
    words = "are both of head line1; give heads, a name of its own for each file"
    with pytest.raises(DataError, match=words):
        DriftView.from_report(p | {"scores": scores, "heads": ""})
    with pytest.raises(ReportError, match=words):
        run_report("calibration_drift", {"scores": scores}, tmp_path / "figures", gallery=False)
    assert [*DriftView.from_report(p | {"scores": scores, "heads": "jan, feb"}).scores] == ["jan", "feb"]


def test_a_report_that_keeps_its_store_says_the_same_again_and_changes_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i}.png,{x}\n" for i, x in enumerate(np.random.default_rng(0).normal(size=160)))
    Path("scores.csv").write_text(f"file,score\n{rows}")
    parameters = {"scores": "scores.csv", "heads": "h", "batches": 2, "store": "kept"}
    done = run_report("calibration_drift", parameters, gallery=False)
    before = tree_digest("kept")
    again = verify(done)
    assert again.same, str(again)
    assert tree_digest("kept") == before
    with pytest.raises(ReportError, match="kept: holds another store, which no report changes; name a new folder"):
        run_report("calibration_drift", parameters | {"batches": 1}, gallery=False)
    assert tree_digest("kept") == before
