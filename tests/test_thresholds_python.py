"""Thresholds given from Python: a number, a rule by its name, or one sentence."""

import numpy as np
import pytest

from anomaly_nb.core.errors import DataError
from anomaly_nb.core.files import write_json
from anomaly_nb.metrics import ScoreHistogram
from anomaly_nb.metrics.ranking import reached
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.decisions import decision_table
from anomaly_nb.scoring.evaluation import class_rate, image_metrics
from anomaly_nb.scoring.thresholds import Threshold, choose_threshold, threshold_value
from anomaly_nb.video.events import runs

Y, S = [0, 0, 1, 1], np.array([0.1, 0.2, 0.8, 0.9])

USES = {
    "image_metrics": lambda t: image_metrics(Y, S, t),
    "class_rate": lambda t: class_rate([1, 1], S[:2], t),
    "decision_table": lambda t: decision_table(Y, S, t),
    "threshold_value": threshold_value,
    "Threshold": lambda t: Threshold(t, "mine", "normal images", 3),
    "reached": lambda t: reached(S, t),
    "runs": lambda t: runs(S, t),
    "histogram": lambda t: ScoreHistogram("float16").update(Y, S).at(t),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("nan", [float("nan"), np.float32("nan"), np.float64("nan")])
def test_a_threshold_of_nan_is_refused(use, nan):
    with pytest.raises(DataError, match=r"^threshold is .*nan.*; give one number"):
        USES[use](nan)
    USES[use](np.inf)


def test_a_stored_threshold_of_nan_is_refused_with_its_file(tmp_path):
    path = Threshold(0.5, "mine", "normal images", 3).save(tmp_path / "t.json")
    path.write_text(path.read_text().replace("0.5", "NaN"))
    with pytest.raises(DataError, match=r"t\.json"):
        Threshold.load(path)
    write_json(path, {"value": "0.5", "method": "mine", "calibrated_on": "normal images", "n": 3})
    with pytest.raises(DataError, match=r"t\.json: not a saved threshold"):
        Threshold.load(path)


RULES = {
    "mine": "no rule; give 'quantile:<q>' or 'conformal:<rate>', .*'youden' or 'best_f1'",
    None: "no rule; give 'quantile:<q>'",
    0.5: "no rule; give 'quantile:<q>'",
    "youden:0.5": "no rule; give 'quantile:<q>'",
    "conformal:0.05:0.9": "'0.05:0.9' is no number; give one, such as 'conformal:0.05'",
    "quantile:95%": "'95%' is no number; give one, such as 'quantile:0.95'",
    "quantile:95": "95 is not between 0 and 1; give such as 'quantile:0.95'",
    "conformal:nan": "nan is not between 0 and 1; give such as 'conformal:0.05'",
}


@pytest.mark.parametrize("method", RULES)
def test_a_rule_that_is_none_is_named_with_those_that_are(method):
    with pytest.raises(DataError, match=rf"^threshold={method!r}: {RULES[method]}"):
        choose_threshold(method, S, Y, S)
    if isinstance(method, str):  # and by a detector, before it looks at an image
        with pytest.raises(DataError, match=rf"^threshold={method!r}(: {RULES[method]}|; a detector sees no labels)"):
            Detector(threshold=method).fit(["no such file.png"])


@pytest.mark.parametrize("method", ["quantile", "quantile:0.5", "conformal", "conformal:0.5", "youden", "best_f1"])
def test_every_rule_that_is_named_works(method):
    assert choose_threshold(method, S, Y, S).method == method.partition(":")[0]
