"""Values as they come in Python: columns of sorted tables, labels with gaps, frames and options of another type."""

import numpy as np
import pandas as pd
import pytest

from anomaly_nb.core.errors import DataError
from anomaly_nb.core.items import by_place, group_labels
from anomaly_nb.metrics import (
    aupimo,
    aupro,
    best_f1,
    bootstrap_interval,
    paired_difference,
    pro_curve,
    roc_auc,
    spro,
    street_metrics,
)


def shuffled_table(n=12, size=(20, 20)):
    "Masks and maps in a table sorted by name, whose index is the order they were made in."
    rng = np.random.default_rng(0)
    masks = np.zeros((n, *size), bool)
    masks[::2, 4:9, 5:9] = True
    maps = rng.normal(size=masks.shape) + 1.5 * masks + rng.normal(size=(n, 1, 1))
    table = pd.DataFrame({"name": rng.permutation(n), "mask": list(masks), "map": list(maps)})
    return table.sort_values("name")


METRICS = {
    "aupro": aupro,
    "linspace": lambda masks, maps: aupro(masks, maps, protocol="linspace200"),
    "curve": lambda masks, maps: pro_curve(masks, maps).area(0.2),
    "aupimo": lambda masks, maps: aupimo(masks, maps, (1e-2, 1e-1), 5).tolist(),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("sides", ("masks", "maps", "both"))
def test_columns_are_taken_by_place(name, sides):
    table = shuffled_table()
    masks, maps = (table[c] if sides in (f"{c}s", "both") else list(table[c]) for c in ("mask", "map"))
    expected = METRICS[name](list(table["mask"]), list(table["map"]))
    np.testing.assert_equal(METRICS[name](masks, maps), expected)
    table.index = [f"image {i}" for i in table.index]
    np.testing.assert_equal(METRICS[name](table["mask"], table["map"]), expected)


def test_columns_of_regions_and_of_street_labels_are_taken_by_place():
    table = shuffled_table()
    regions = pd.Series([[m] if m.any() else [] for m in table["mask"]], index=table.index)
    saturation = pd.Series([[10] if m.any() else [] for m in table["mask"]], index=table.index)
    lists = list(regions), list(saturation), list(table["map"])
    assert spro(regions, saturation, table["map"]) == spro(*lists) == spro(regions, lists[1], lists[2])
    labels = pd.Series([14 * m.astype(int) for m in table["mask"]], index=table.index)
    assert street_metrics(labels, list(table["map"])) == street_metrics(list(labels), table["map"])
    assert street_metrics(labels, table["map"])["roc_auc"] > 0.7


@pytest.mark.parametrize(
    "wrong, words",
    [
        ((m for m in [np.zeros((2, 2))]), "is a generator; it is read more than once"),
        ({"a": np.zeros((2, 2))}, "is a dict, read by names; pass a list of its values"),
        (None, "is a NoneType"),
        (3, "is a int"),
        (np.float64(3), "is a float64"),
    ],
)
def test_what_has_no_places_is_refused(wrong, words):
    maps = [np.zeros((2, 2))]
    for call in (aupro, aupimo, street_metrics, lambda a, b: bootstrap_interval(roc_auc, a, b)):
        with pytest.raises(DataError, match=words):
            call(wrong, maps)


def test_items_load_when_asked_for():
    class Lazy:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return np.full((4, 4), i)

    lazy = Lazy()
    assert by_place("masks", lazy) is lazy
    torch = pytest.importorskip("torch")
    masks = torch.zeros(3, 8, 8)
    masks[0, :3, :3] = 1
    assert aupro(masks, masks + 0.1) == pytest.approx(1.0)


def test_metrics_are_plain_floats():
    table = shuffled_table()
    for protocol in ("mvtec", "mvtec_ad2", "anomalous_only", "linspace200"):
        assert type(aupro(table["mask"], table["map"], protocol=protocol)) is float
    assert type(pro_curve(table["mask"], table["map"]).area(0.3)) is float
    assert type(pro_curve(table["mask"], table["map"]).area(np.float64(0.25))) is float


def test_resamples_without_a_value_are_repeated():
    y, s = [0, 0, 0, 0, 1], [0.1, 0.4, 0.2, 0.6, 0.5]
    ours = bootstrap_interval(roc_auc, y, s, n_resamples=200)

    def by_nan(y_true, score):
        return roc_auc(y_true, score) if 0 < np.sum(y_true) < len(y_true) else float("nan")

    def by_error(y_true, score):
        if np.all(np.asarray(y_true) == y_true[0]):
            raise ValueError("Only one class present")
        return roc_auc(y_true, score)

    assert bootstrap_interval(by_nan, y, s, n_resamples=200) == ours
    assert bootstrap_interval(by_error, y, s, n_resamples=200) == ours
    with pytest.raises(DataError, match="resamples have no value \\(NaN\\); these are too few images"):
        bootstrap_interval(lambda v: 1.0 if len(set(v)) == 12 else np.nan, np.arange(12.0), n_resamples=5)
    with pytest.raises(DataError, match="NaN on all images"):
        bootstrap_interval(lambda v: np.nan, y)


def test_an_interval_is_of_one_number():
    y, s = [0, 0, 1, 1, 0], [0.1, 0.4, 0.2, 0.6, 0.5]
    with pytest.raises(DataError, match="best_f1 gives 2 values; an interval is of one number: lambda"):
        bootstrap_interval(best_f1, y, s)
    with pytest.raises(DataError, match="best_f1 gives 2 values"):
        paired_difference(best_f1, y, s, s)
    for value in ({"a": 1}, "0.5", None, np.zeros(3)):
        with pytest.raises(DataError, match="metric gives a "):
            bootstrap_interval(lambda v, value=value: value, y)
    assert bootstrap_interval(lambda *d: best_f1(*d)[0], y, s, n_resamples=20).value > 0
