"Leave-one-group-out distances against a float64 brute force, over sizes, groups, metrics and hard values."

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_nb.calibration.leave_one_out import kth_neighbour_distances, leave_one_group_out_distances
from anomaly_nb.core.errors import DataError


def brute_force(features, groups, k, metric="sqeuclidean"):
    x = np.asarray(features, np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    out = np.empty(len(x))
    for i, row in enumerate(x):
        foreign = ((x[groups != groups[i]] - row) ** 2).sum(1)
        out[i] = np.sort(foreign)[k - 1]
    return np.sqrt(out) if metric == "euclidean" else out / 2 if metric == "cosine" else out


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    k=st.integers(1, 4),
    dimensions=st.integers(1, 40),
    metric=st.sampled_from(["sqeuclidean", "euclidean", "cosine"]),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    seed=st.integers(0, 10**6),
)
def test_ragged_groups(sizes, k, dimensions, metric, offset, seed):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = (rng.normal(size=(len(groups), dimensions)) + offset).astype(np.float32)
    if len(groups) - max(sizes) < k:
        with pytest.raises(DataError, match="objects outside it"):
            leave_one_group_out_distances(features, groups, k, metric)
        return
    found = leave_one_group_out_distances(features, groups, k, metric)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, brute_force(features, groups, k, metric), rtol=1e-5, atol=1e-12 if metric != "euclidean" else 1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_many_blocks_and_duplicates(scale):
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 23, 5000)
    features = (rng.normal(size=(5000, 24)) * scale + 5 * scale).astype(np.float32)
    features[1000:2000] = features[:1000]  # exact copies in other videos
    features[2000:2500] = features[:500] + 1e-5 * scale
    found = leave_one_group_out_distances(features, groups, 2)
    np.testing.assert_allclose(found, brute_force(features, groups, 2), rtol=1e-6)


@pytest.mark.parametrize(
    "shape",
    ["spread", "clusters", "copies", "three far off", "tiny", "huge", "off centre", "a third zeros", "heavy tails"],
)
def test_objects_of_every_shape(shape, monkeypatch):
    "By every encoding that the machine has, which a search of this size would not look for."
    monkeypatch.setattr("anomaly_nb.calibration.leave_one_out.SHORTLIST_FROM", 1e6)
    rng = np.random.default_rng(len(shape))
    for d in (3, 70, 230):
        n, k = int(rng.integers(300, 1200)), int(rng.integers(1, 9))
        x, groups = rng.normal(size=(n, d)), rng.integers(0, 12, n)
        match shape:
            case "clusters":
                x = 100 * x[rng.integers(0, 5, n)] + 0.01 * x
            case "copies":
                x = x[rng.integers(0, n // 3, n)]
            case "three far off":
                x[rng.integers(0, n, 3)] *= 10.0 ** rng.uniform(1, 12)
            case "tiny" | "huge":
                x *= 1e-8 if shape == "tiny" else 1e8
            case "off centre":
                x += 1e3 * rng.normal(size=d)
            case "a third zeros":
                x[rng.random(n) < 0.3] = 0
            case "heavy tails":
                x *= np.exp(1.5 * rng.normal(size=(n, 1)))
        x = x.astype(np.float32)
        expected = brute_force(x, groups, k)
        np.testing.assert_allclose(leave_one_group_out_distances(x, groups, k), expected, rtol=3e-6, err_msg=f"{n} x {d}")


def test_all_the_same_and_one_object_groups():
    same = np.full((300, 8), 7.5, np.float32)
    assert (leave_one_group_out_distances(same, np.arange(300) % 3) == 0).all()
    x = np.random.default_rng(0).normal(size=(50, 6))
    np.testing.assert_allclose(
        leave_one_group_out_distances(x, np.arange(50), 3), brute_force(x, np.arange(50), 3), rtol=1e-6
    )


def test_names_as_groups_and_float64_kept():
    x = np.random.default_rng(0).normal(size=(60, 5)) * 1e-9 + 1e3  # lost in single precision
    names = np.repeat(["a", "b", "c"], 20)
    np.testing.assert_allclose(leave_one_group_out_distances(x, names, 2), brute_force(x, names, 2), rtol=1e-5)


def test_empty_and_single_group():
    assert leave_one_group_out_distances(np.zeros((0, 4)), np.zeros(0, int)).shape == (0,)
    with pytest.raises(DataError, match="group one: 0 objects outside it"):
        leave_one_group_out_distances(np.zeros((5, 4)), np.array(["one"] * 5))


@pytest.mark.parametrize(
    "bad, words", [(np.full((4, 2), np.nan), "NaN"), (np.zeros(4), "must be"), (np.zeros((4, 2)), "all zeros")]
)
def test_bad_values(bad, words):
    with pytest.raises(DataError, match=words):
        leave_one_group_out_distances(bad, np.array([0, 0, 1, 1]), 1, "cosine")


def test_queries_and_groups_agree():
    rng = np.random.default_rng(2)
    x, groups = rng.normal(size=(700, 33)).astype(np.float32), np.repeat(np.arange(7), 100)
    whole = leave_one_group_out_distances(x, groups)
    for g in range(7):
        np.testing.assert_array_equal(whole[groups == g], kth_neighbour_distances(x[groups == g], x[groups != g]))


@pytest.mark.parametrize("scale", [1e15, 3e18, 1e20])
def test_lengths_beyond_single_precision(scale):
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(6), 20)
    features = rng.normal(size=(120, 8)) * scale  # squared norms leave float32 for some or all
    expected = brute_force(features, groups, 2)
    if scale < 1e18:
        np.testing.assert_allclose(leave_one_group_out_distances(features, groups, 2), expected, rtol=1e-5)
    else:
        with pytest.raises(DataError, match=r"features: values up to .*, but float32 squares no distance of 8 dimensions"):
            leave_one_group_out_distances(features, groups, 2)
    roots = leave_one_group_out_distances(features, groups, 2, "euclidean")
    np.testing.assert_allclose(roots, np.sqrt(expected), rtol=1e-5)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-10, 1e10, 1e18, 1e20, 1e30, 1e37, 1e39, 1e200])
def test_distances_are_right_or_refused_and_never_infinite(metric, dtype, scale):
    "The bound is the one of float32, in which results are; on either side of it nothing warns."
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(3), 10)
    with np.errstate(over="ignore", under="ignore"):
        features = (rng.normal(size=(30, 4)) * scale).astype(dtype)
    if not np.isfinite(features).all():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = leave_one_group_out_distances(features, groups, 2, metric)
            mixed = kth_neighbour_distances(features.astype(np.float64), features[:20], 2, metric)
        except DataError as e:
            assert scale > 1e17 or not features.any() or (metric == "cosine" and scale < 1e-100)
            assert "float32" in str(e) or "has no direction" in str(e)
            return
    assert np.isfinite(found).all() and np.isfinite(mixed).all()
    assert scale < 1e19 or metric == "cosine" or (metric == "euclidean" and dtype == np.float64)
    exact = features.astype(np.longdouble)
    if metric == "cosine":
        exact /= np.sqrt((exact**2).sum(1, keepdims=True))
    gaps = ((exact[:, None] - exact) ** 2).sum(-1)
    gaps[groups[:, None] == groups] = np.inf
    expected = np.sort(gaps, 1)[:, 1]
    expected = np.sqrt(expected) if metric == "euclidean" else expected / 2 if metric == "cosine" else expected
    if 1e-18 < scale:  # below, squares leave float32 for zero
        np.testing.assert_allclose(found, expected.astype(float), rtol=1e-5)
