"""The constants of the calibration's statistics, each against a value by hand, an independent computation or its rate in
a simulation: twice as many files, or a capital of 1.6, would be seen by nothing else.
"""

import numpy as np
import pytest
from scipy import integrate, special, stats
from scipy.optimize import linprog

from anomaly_nb.calibration import contamination, sequential
from anomaly_nb.calibration.ranks import conformal_rank, false_alarm_bound, group_counts_above, grouped_rank
from anomaly_nb.calibration.contamination import (
    DIP_LIMITS,
    dip,
    dip_limit,
    excess_above,
    excess_in_groups,
    has_two_humps,
    spread_ties,
)
from anomaly_nb.calibration.margins import decidable_widths, files_needed
from anomaly_nb.calibration.sample import Sample, ScoreSketch, sketch_edges
from anomaly_nb.calibration.sequential import SequentialAlarm
from anomaly_nb.calibration.shifts import (
    design_effect,
    divergence_chance,
    divergence_evidence,
    jensen_shannon,
    jsd_edges,
    noncentrality,
)
from anomaly_nb.calibration.thresholds import Threshold, conformal_threshold

LN2 = float(np.log(2))


# The dip


def dip_by_programme(scores):
    "The dip as a linear programme for each mode: convex up to it, a jump there, concave from there on."
    values, counts = np.unique(scores, return_counts=True)
    upper = np.cumsum(counts) / counts.sum()
    lower, best = upper - counts / counts.sum(), 1.0
    for k in range(len(values)):
        x = np.insert(values, k, values[k])  # the mode twice: before its jump and after it
        least, most = np.insert(upper, k, lower[k]), np.insert(lower, k + 1, upper[k])
        n, rows, ends = len(x), [], []

        def at_most(terms, end, n=n, rows=rows, ends=ends):
            row = np.zeros(n + 1)
            for i, factor in terms:
                row[i] += factor
            rows.append(row)
            ends.append(end)

        for i in range(n):
            at_most([(i, -1), (n, -1)], -least[i])
            at_most([(i, 1), (n, -1)], most[i])
        for i in range(n - 1):
            at_most([(i, 1), (i + 1, -1)], 0)
        for a in [*range(k - 1), *range(k + 1, n - 2)]:
            sign, (p, q, r) = (1 if a < k else -1), x[a : a + 3]
            at_most([(a, -sign * (r - q)), (a + 1, sign * (r - p)), (a + 2, -sign * (q - p))], 0)
        answer = linprog(np.eye(n + 1)[n], A_ub=rows, b_ub=ends, bounds=[(0, 1)] * n + [(0, None)])
        best = min(best, answer.fun)
    return best


SHAPES = {
    "flat": lambda rng, n: rng.random(n),
    "normal": lambda rng, n: rng.normal(size=n),
    "two": lambda rng, n: np.r_[rng.normal(size=n // 2), 4 + rng.normal(size=n - n // 2)],
    "tied": lambda rng, n: rng.integers(0, 4, n).astype(float),
    "skewed": lambda rng, n: rng.lognormal(0, 2, n),
}


@pytest.mark.parametrize("n", [2, 3, 5, 7, 10, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_dip_is_that_of_a_linear_programme(shape, n):
    rng = np.random.default_rng([n, len(shape)])
    for _ in range(3):
        scores = np.sort(SHAPES[shape](rng, n))
        assert abs(dip(scores) - dip_by_programme(scores)) < 1e-7, scores.tolist()


def test_the_dip_of_scores_of_any_size_is_finite_and_keeps_its_bounds():
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=50))
    for factor in (1e-300, 1.0, 1e308 / np.abs(x).max()):
        assert dip(x * factor) == pytest.approx(dip(x), rel=1e-9)
    assert dip(-x[::-1]) == pytest.approx(dip(x), rel=1e-12) == dip(x + 3)
    assert dip(np.full(9, 5e-324)) == 0 and dip(np.array([-1.7e308, 1.7e308])) == 0.25
    assert all(1 / (2 * n) <= dip(np.sort(rng.random(n))) <= 0.25 for n in (2, 3, 20, 500))


def test_the_limit_is_passed_once_in_a_hundred_times():
    assert list(DIP_LIMITS) == sorted(DIP_LIMITS) and list(DIP_LIMITS.values()) == sorted(DIP_LIMITS.values())
    assert dip_limit(20) == pytest.approx(DIP_LIMITS[20] / 20**0.5) and dip_limit(1000) < dip_limit(100)
    rng, runs = np.random.default_rng(1), 12_000
    for n in (20, 33, 100):
        passed = sum(dip(np.sort(rng.random(n))) > dip_limit(n) for _ in range(runs))
        assert 1e-4 < stats.binom.cdf(passed, runs, 0.01) and stats.binom.sf(passed - 1, runs, 0.01) > 1e-4, (
            n,
            passed,
        )


@pytest.mark.parametrize("decimals", [1, 2])
def test_ties_are_no_humps(monkeypatch, decimals):
    def alarms():
        rng = np.random.default_rng(0)
        return sum(has_two_humps(Sample(np.round(rng.gamma(4, 0.05, size=500), decimals))) for _ in range(20))

    assert alarms() == 0
    monkeypatch.setattr(contamination, "spread_ties", lambda scores: scores)
    assert alarms() == 20 if decimals == 1 else alarms() > 0  # so that the test sees whether it is there
    assert len(np.unique(spread_ties(np.round(np.sort(np.random.default_rng(0).random(50)), 1)))) == 50


def test_twenty_scores_are_the_fewest_that_say_anything():
    heaps = np.r_[np.arange(10) * 1e-3, 5 + np.arange(10) * 1e-3]
    assert has_two_humps(Sample(heaps)) and not has_two_humps(Sample(heaps[1:]))
    lots = Sample(np.repeat(heaps, 3), np.repeat(np.arange(20), 3))
    assert has_two_humps(lots) and not has_two_humps(Sample(np.repeat(heaps[1:], 3), np.repeat(np.arange(19), 3)))


# More above the threshold than was promised


def test_the_binomial_test_at_its_edge():
    assert excess_above(13, 100, 0.05, 0.0015) and not excess_above(13, 100, 0.05, 0.0014)  # P(13 or more) = 0.00146
    assert stats.binom.sf(12, 100, 0.05) == pytest.approx(0.00146, abs=5e-6)


def test_the_t_test_of_groups_by_hand():
    """Fractions 0.2, 0.3, 0.4: mean 0.3, standard error 0.1/sqrt(3). Against 0.1 t = 2*sqrt(3), and with 2 degrees of
    freedom P(T > t) = (1 - t/sqrt(2 + t^2)) / 2 = (1 - sqrt(6/7)) / 2.
    """
    fractions, p = np.array([0.2, 0.3, 0.4]), (1 - (6 / 7) ** 0.5) / 2
    assert excess_in_groups(fractions, 0.1, p * 1.0001) and not excess_in_groups(fractions, 0.1, p * 0.9999)
    assert not excess_in_groups(np.full(5, 0.25), 0.25, 0.6)  # just what was promised
    assert not excess_in_groups(np.array([0.125, 0.375]), 0.25, 0.6) and excess_in_groups(np.full(5, 0.26), 0.25)


# Files that a margin needs


@pytest.mark.parametrize(("df", "limit"), [(9, 0.1), (19, 0.2)])
def test_at_the_files_needed_an_undrifted_head_is_stable_nineteen_times_in_twenty(df, limit):
    n = files_needed(np.zeros(5), np.ones(5), 100, 100, df, limit, 0.05)
    rng, runs = np.random.default_rng(df), 1500
    a, b = rng.multinomial(n, np.full(df + 1, 1 / (df + 1)), size=(2, runs))
    highs = np.array([divergence_evidence(float(j), n, n, df, limit, 0.05)[2] for j in jensen_shannon(a, b)])
    assert abs((highs < limit).mean() - 0.95) < 4 * (0.05 * 0.95 / runs) ** 0.5
    fewer = int(0.8 * n)
    a, b = rng.multinomial(fewer, np.full(df + 1, 1 / (df + 1)), size=(2, runs))
    highs = np.array([divergence_evidence(float(j), fewer, fewer, df, limit, 0.05)[2] for j in jensen_shannon(a, b)])
    assert (highs < limit).mean() < 0.9
    assert decidable_widths(np.zeros(5), n, n, df, 0.05)["jsd"] == pytest.approx(limit, rel=1 / n)


def by_hand():
    """The statistic of two bins stays below z^2 with z = ndtri(0.975) in 95 of 100 runs. Its noncentrality L at which
    that is the 2.5 % quantile solves P(|N(sqrt L, 1)| < z) = 0.025, so sqrt L = 2z but for the far tail, below 1e-7.
    """
    return (2 * 1.959963984540054) ** 2


def test_files_needed_by_hand():
    assert noncentrality(1.959963984540054**2, 1, 0.025) == pytest.approx(by_hand(), rel=1e-6)
    zero, one = np.zeros(5), np.ones(5)
    wanted = 2 * by_hand() / (8 * LN2 * 0.1**2)  # n*n/(n + n) = n/2 on equal sides
    assert files_needed(zero, one, 100, 100, 1, 0.1, 0.05) == int(np.ceil(wanted)) == 555
    assert files_needed(zero, one, 100, 100, 1, 0.1, 0.05, 2.0) == int(np.ceil(2 * wanted)) == 1109
    shifts = 2 * 100 * 300 / 400 * (2 * 1.959963984540054 * 0.02 / 0.01) ** 2
    assert files_needed(one * 0.02, one * 0.01, 100, 300, 1, 1.0, 0.05) == int(np.ceil(shifts)) == 9220


def test_decidable_widths_by_hand():
    widths = decidable_widths(np.array([0.01, 0.02, 0.03, 0.04, 0.05]), 100, 300, 1, 0.05)
    np.testing.assert_allclose(list(widths.values())[:5], 2 * 1.959963984540054 * np.arange(1, 6) / 100, rtol=1e-12)
    assert widths["jsd"] == pytest.approx((by_hand() / (8 * 75 * LN2)) ** 0.5, rel=1e-6)
    assert decidable_widths(np.zeros(5), 100, 300, 1, 0.05, 4.0)["jsd"] == pytest.approx(2 * widths["jsd"], rel=1e-12)


# The noise of the distance


def test_the_chance_of_a_distance_by_hand():
    "With 2 degrees of freedom P(X > x) is exp(-x / 2), and 8 * 120 * ln 2 * 0.01 / 2 is 4.8 * ln 2."
    assert divergence_chance(0.1, 200, 300, 2) == pytest.approx(2**-4.8, rel=1e-12)
    assert divergence_chance(0.1, 200, 300, 2, 3.0) == pytest.approx(2**-1.6, rel=1e-12)
    size = 8 * 120 * LN2
    p, low, high = divergence_evidence(0.3, 200, 300, 5, 0.1, 0.05)
    assert p == pytest.approx(stats.ncx2.sf(size * 0.09, 5, size * 0.01), rel=1e-6)
    for end, tail in ((low, 0.975), (high, 0.025)):
        assert stats.ncx2.cdf(size * 0.09, 5, size * end**2) == pytest.approx(tail, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(400, 400), (2000, 500)])
def test_p_values_of_no_divergence_are_uniform(n, m):
    rng, bins = np.random.default_rng(n), 10
    p, q = (rng.multinomial(size, np.full(bins, 1 / bins), size=1500) for size in (n, m))
    chances = [divergence_chance(float(j), n, m, bins - 1) for j in jensen_shannon(p, q)]
    assert stats.kstest(chances, "uniform").pvalue > 0.01


def test_the_design_effect_of_groups_of_one_is_none():
    """Groups of one score: the mean of the statistic over deals of the pooled scores is that of Pearson's chi-square,
    (bins - 1) N / (N - 1), and nothing is inflated.
    """
    rng = np.random.default_rng(0)
    a, b = (Sample(rng.normal(size=300), np.arange(300)) for _ in range(2))
    edges = jsd_edges(a, 300, 10)
    inflation, df = design_effect(a, b, edges, rng, 6000)
    assert inflation < 1.07 and inflation * df == pytest.approx(9 * 600 / 599, rel=0.03)


def test_groups_of_equal_scores_inflate_by_their_size():
    rng = np.random.default_rng(1)
    lots = [np.repeat(rng.normal(size=200), 8) for _ in range(2)]
    a, b = (Sample(x, np.repeat(np.arange(200), 8)) for x in lots)
    inflation, df = design_effect(a, b, jsd_edges(a, 1600, 10), rng, 6000)
    assert inflation == pytest.approx(8, rel=0.1) and df == pytest.approx(9, rel=0.1)


def test_p_values_of_grouped_scores_are_uniform():
    rng, chances = np.random.default_rng(2), []
    for _ in range(250):
        a, b = (
            Sample((rng.normal(size=(60, 1)) + 0.5 * rng.normal(size=(60, 10))).ravel(), np.repeat(np.arange(60), 10))
            for _ in range(2)
        )
        edges = jsd_edges(Sample(np.r_[a.values, b.values]), 600, 8)
        inflation, df = design_effect(a, b, edges, rng, 400)
        seen = float(jensen_shannon(a.counts(edges), b.counts(edges)))
        chances.append(divergence_chance(seen, a.n, b.n, df, inflation))
    assert stats.kstest(chances, "uniform").pvalue > 0.01


# The capital of the sequential alarm


def test_the_capital_starts_at_one_and_no_bet_changes_it(monkeypatch):
    alarm = SequentialAlarm().fit(np.arange(50.0))
    assert alarm.capital_ == 1 and alarm.reserve_ + sum(alarm.stakes_) == 1
    monkeypatch.setattr(sequential, "_bets", lambda p: (1.0,) * 5)
    alarm.update(np.random.default_rng(0).normal(size=3000))
    np.testing.assert_allclose(alarm.history_, 1, atol=1e-12)
    k = np.arange(1.0, 3001)
    assert alarm.reserve_ == pytest.approx(1 - np.sum(k**-1.1) / SequentialAlarm.ZETA, abs=1e-9)
    assert SequentialAlarm.ZETA == pytest.approx(float(special.zeta(1.1)), rel=1e-14)


def test_the_first_two_steps_of_the_capital_by_hand(monkeypatch):
    alarm = SequentialAlarm(jump=0.1).fit(np.arange(9.0))
    monkeypatch.setattr(alarm, "p_values", lambda scores: scores)
    alarm.update(np.array([0.25, 0.25]))
    bets = np.array([1, 1.25, 0.75, 1, 0.5 / 0.75**0.5])
    first, second = 1 / SequentialAlarm.ZETA, 2**-1.1 / SequentialAlarm.ZETA
    stakes = first / 5 * bets
    assert alarm.history_[0] == pytest.approx(1 - first + stakes.sum(), rel=1e-14)
    stakes = (0.9 * stakes + (0.1 * stakes.sum() + second) / 5) * bets
    assert alarm.history_[1] == pytest.approx(1 - first - second + stakes.sum(), rel=1e-14)


def test_the_capital_stays_one_on_average():
    "The step from any state, integrated over a uniform p: a martingale."

    def after(p):
        alarm = SequentialAlarm().fit(np.arange(9.0))
        alarm.p_values = lambda scores: scores
        return alarm.update(np.array([0.2, 0.9, p])).history_[-1]

    alarm = SequentialAlarm().fit(np.arange(9.0))
    alarm.p_values = lambda scores: scores
    before = alarm.update(np.array([0.2, 0.9])).history_[-1]
    mean, _ = integrate.quad(after, 0, 1, points=[1e-6, 1e-3, 0.999, 1 - 1e-6], limit=400)
    assert mean == pytest.approx(before, abs=2e-4)


# The rank of a threshold


def test_a_rank_with_confidence_at_its_edge():
    for n, rank in ((200, 195), (60, 58)):
        edge = false_alarm_bound(n, rank, 0.9)
        assert conformal_rank(n, edge, 0.9)[0] == rank  # a bound of just the rate is enough
        assert conformal_rank(n, edge * (1 - 1e-9), 0.9)[0] == rank + 1
        assert conformal_rank(n, edge * (1 + 1e-9), 0.9)[0] == rank


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_groups_of_one_have_the_rank_of_scores(confidence):
    for n in (30, 100, 500):
        for rate in (0.02, 0.05, 0.2):
            try:
                rank, promised = conformal_rank(n, rate, confidence)
            except ValueError:
                rank, promised = conformal_rank(n, rate, confidence, "largest")
            assert grouped_rank(np.arange(n), rate, confidence, "largest") == (rank, rank, promised)


def test_a_rank_with_confidence_looks_at_all_ranks_in_few_steps(monkeypatch):
    calls = []
    ppf = stats.beta.ppf
    monkeypatch.setattr(stats.beta, "ppf", lambda *v: calls.append(np.size(v[1])) or ppf(*v))
    n = 1_000_000
    rank, promised = conformal_rank(n, 0.05, 0.95)
    assert promised == 0.05 and sum(calls) < 60 and abs(rank - n * (0.95 + 1.645 * (0.05 * 0.95 / n) ** 0.5)) < 10
    assert false_alarm_bound(n, rank) <= 0.05 < false_alarm_bound(n, rank - 1)
    calls.clear()
    groups = np.arange(100_000) // 10
    at, in_groups, _ = grouped_rank(groups, 0.05, 0.95)
    assert sum(calls) < 60
    above = group_counts_above(groups)[at - 2 : at]
    assert [false_alarm_bound(10_000, 10_000 - float(a)) > 0.05 for a in above] == [True, False]
    assert in_groups == 10_000 - above[-1]


def test_a_threshold_of_groups_keeps_its_rate_with_its_confidence():
    "Groups of equal scores are as many scores: the rate stays below 10 % in nine calibrations of ten, and hardly more."
    rng, n, size = np.random.default_rng(0), 150, 4
    rates = []
    for _ in range(2000):
        values = np.repeat(rng.random(n), size) + 1e-9 * rng.random(n * size)
        threshold = conformal_threshold(values, 0.1, 0.9, groups=np.repeat(np.arange(n), size))
        rates.append(1 - threshold.value)
    assert 0.9 - 4 * (0.09 / 2000) ** 0.5 < np.mean(np.array(rates) <= 0.1) < 0.96


# A sketch's scores


def test_a_sketch_keeps_its_scores_in_their_bins():
    rng = np.random.default_rng(0)
    scores = rng.gamma(4, size=5000)
    sketch = ScoreSketch(sketch_edges(scores[:2000], 50)).update(scores)
    ranks = np.arange(sketch.n)
    values, exact = sketch.at(ranks), np.sort(scores)
    assert (np.diff(values) > 0).all() and sketch.low < values[0] and values[-1] < sketch.high
    bins = np.searchsorted(sketch.edges, exact, side="right")
    assert np.array_equal(np.searchsorted(sketch.edges, values, side="right"), bins)
    width = np.diff(np.r_[sketch.low, sketch.edges, sketch.high])[bins]
    assert (np.abs(values - exact) < width).all()
    assert np.abs(values - exact).mean() < np.abs(values + width / sketch.bins[bins] - exact).mean()
    four = ScoreSketch(np.array([1.0, 2.0])).update(np.array([0.0, 1.2, 1.3, 1.4, 1.5, 3.0]))
    np.testing.assert_allclose(four.at(np.arange(6)), [0.5, 1.125, 1.375, 1.625, 1.875, 2.5])  # the middle of each part


# The label of an oracle


@pytest.mark.parametrize("method", ["youden", "best_f1", "conformal", "quantile"])
def test_an_oracle_says_so_wherever_it_is_shown_and_promises_nothing(method):
    parameters = {"false_alarms": 0.05, "rank": 95, "bound95": 0.08}
    oracle = Threshold(1.0, method, "test images", 100, True, parameters)
    honest = Threshold(1.0, method, "test images", 100, False, parameters)
    assert oracle.rate() is None and "oracle" in oracle.promise() and "promises nothing" in oracle.promise()
    assert "oracle" in str(oracle) and "oracle" in oracle._repr_html_()
    assert "oracle" not in f"{honest}{honest._repr_html_()}{honest.promise()}"
    assert honest.rate() is not None
    assert "oracle" in str(
        Threshold(1.0, method, "test images", 100, True, {"false_alarms_per_hour": 1, "promised": 1})
    )
