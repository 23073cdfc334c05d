"""What the main objects show in a notebook: their facts, escaped, also before they are fitted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly_nb.banks import KNNBank, MahalanobisBank
from anomaly_nb.calibration import CalibrationRanges, CalibrationStore
from anomaly_nb.calibration.shifts import jensen_shannon
from anomaly_nb.core.display import said
from anomaly_nb.features import FeatureSet
from anomaly_nb.reports import Run
from anomaly_nb.scoring import Detector, quantile_threshold

PATCHES = np.random.default_rng(0).normal(size=(6, 9, 4)).astype(np.float32)
FEATURES = FeatureSet(
    PATCHES, (3, 3), pd.DataFrame({"image_path": ["a.png"] * 6, "defect": ["good"] * 5 + ["<script>"]})
)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (FEATURES, ["6", "3 x 3", "good 5", "&lt;script&gt; 1"]),
        (KNNBank(k=2), ["KNNBank", "not yet"]),
        (KNNBank(k=2).fit(PATCHES, (3, 3)), ["bank_ 54 x 4", "MiB"]),
        (MahalanobisBank().fit(PATCHES, (3, 3)), ["MahalanobisBank", "fitted"]),
        (Detector(image_size=64), ["Detector", "filters", "not fitted yet"]),
        (Detector().fit(FEATURES), ["6 images", "whole images", "the largest of the scores of 6"]),
        (quantile_threshold(np.arange(20.0)), ["Threshold", "20 held-out normal"]),
        (CalibrationRanges(), ["not yet"]),
        (CalibrationRanges().fit(np.arange(101.0)), ["1 stands for", "95", "101"]),
        (CalibrationRanges("minmax").fit(np.arange(3.0)), ["minmax"]),
    ],
)
def test_a_table_of_facts(shown, words):
    bundle = shown._repr_mimebundle_()["text/html"] if hasattr(shown, "_repr_mimebundle_") else shown._repr_html_()
    assert bundle.startswith("<table") and "<script>" not in bundle
    for word in words:
        assert word in bundle, (word, bundle)
    assert len(repr(shown)) < 400


def test_a_run_and_a_store(tmp_path):
    record = {
        "report": "atoms",
        "seconds": 1.5,
        "error": "<b>",
        "parameters": {"k": 3, "out": "x"},
        "metrics": {"auroc": 0.98765},
    }
    shown = Run(Path("figures/runs/x"), "failed", record)._repr_html_()
    assert "&lt;b&gt;" in shown and "0.9877" in shown and "k=3" in shown and "out=" not in shown
    store = CalibrationStore(tmp_path / "store")
    assert "none yet" in store._repr_html_()
    store.tag("parts", "nut", [f"{i}.png" for i in range(60)], np.random.default_rng(0).normal(size=60))
    assert "parts/nut" in store._repr_html_() and "no reference yet" in store._repr_html_()


def test_jsd_is_the_distance_that_its_number_is():
    "The square root of the divergence, so the divergence it is not."
    assert said("jsd") == "Jensen-Shannon distance" and jensen_shannon([3, 1], [1, 3]) > 0.4
    assert jensen_shannon([3, 1], [1, 3]) ** 2 < 0.2
