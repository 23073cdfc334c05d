"""Every recipe gives what it gave: golden_recipes.json, which `python -m tests.golden_recipes --write` renews where a
change was meant.
"""

import os

import pytest

from anomaly_nb.core.plain import read_json
from tests import golden_recipes

KEPT = read_json(golden_recipes.GOLDEN)


def test_all_recipes_on_one_sample(tmp_path):
    features = golden_recipes.features_of(golden_recipes.sample_index("capsule", tmp_path), "filters")
    now = golden_recipes.golden(features)
    assert set(now) == set(KEPT["capsule filters"])  # a new recipe needs its line
    assert golden_recipes.differences(now, KEPT["capsule filters"]) == []
    changed = now | {"knn": now["knn"] | {"image_auroc": now["knn"]["image_auroc"] + 2e-6}}
    assert len(golden_recipes.differences(changed, KEPT["capsule filters"])) == 1


@pytest.mark.skipif(
    not os.environ.get("ANOMALY_NB_SLOW"), reason="set ANOMALY_NB_SLOW=1 for all data sets and recipes (minutes)"
)
def test_all_recipes_on_everything_at_hand():
    now = golden_recipes.table()
    assert len(now) >= 2 * len(golden_recipes.SAMPLES)
    assert {
        name: golden_recipes.differences(rows, KEPT[name])
        for name, rows in now.items()
        if golden_recipes.differences(rows, KEPT[name])
    } == {}
