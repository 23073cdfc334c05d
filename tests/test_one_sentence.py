"Values of another type, shape or fit from Python: one sentence that names the argument, where there was a bare error."

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_nb.core.errors import DataError
from anomaly_nb.features import FeatureSet
from anomaly_nb.metrics.newcombe import auroc_interval, delong_interval, newcombe_interval
from anomaly_nb.metrics.uncertainty import bootstrap_interval, interval_of
from anomaly_nb.metrics import roc_auc
from anomaly_nb.scoring.recipes import fused_scores
from anomaly_nb.segmentation import HybridEnergyThresholding, StandardizedMaxLogit, energy, msp
from anomaly_nb.segmentation.heat import spatial_divergence

Y, S = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
LEVELS = {
    "auroc_interval": lambda level: auroc_interval(Y, S, level),
    "delong_interval": lambda level: delong_interval(Y, S, level),
    "newcombe_interval": lambda level: newcombe_interval(0.9, 5, 5, level),
    "interval_of": lambda level: interval_of(0.9, S, level),
    "bootstrap_interval": lambda level: bootstrap_interval(roc_auc, Y, S, level=level),
}


@pytest.mark.parametrize("use", LEVELS)
@pytest.mark.parametrize("level", ["95", None, 95, np.nan, 1.0, [0.9], True])
def test_a_level_is_a_fraction(use, level):
    with pytest.raises(DataError, match=r"^level is .*; it must lie in \(0, 1\), for example 0.95"):
        LEVELS[use](level)
    LEVELS[use](np.float32(0.9))


def logits(classes=19, n=2, seed=0):
    return torch.randn((n, classes, 8, 8), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("score", [energy, msp, spatial_divergence])
@pytest.mark.parametrize("temperature", ["1", None, np.nan, np.inf, 0, -1])
def test_a_temperature_is_a_number_above_zero(score, temperature):
    with pytest.raises(DataError, match=r"^temperature is .*; it must be"):
        score(logits(), temperature)


MASKS = {"places": [1, 2], "one short": [True] * 3, "many": [[True] * 4], "counts": [0, 1, 2, 1], "text": ["a"] * 4}


@pytest.mark.parametrize("keep", MASKS)
def test_images_are_chosen_by_a_mask(keep):
    f = FeatureSet(np.ones((4, 9, 2), np.float32), (3, 3), pd.DataFrame({"part": range(4)}))
    with pytest.raises(DataError, match=r"^keep: "):
        f.where(np.array(MASKS[keep]))
    with pytest.raises(DataError, match=r"of places np.isin\(np.arange\(len\(features\)\), places\)"):
        f.where(np.array([1, 2]))
    for mask in ([True, False, True, False], f.meta["part"] % 2 == 0, torch.tensor([1, 0, 1, 0]), [1.0, 0.0, 1.0, 0.0]):
        assert f.where(mask).meta["part"].tolist() == [0, 2]


def test_batches_of_another_score_are_named():
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    for batch, said in (((logits(), None, labels), "3 parts"), (logits(), "a Tensor"), ((logits(),), "1 parts")):
        with pytest.raises(DataError, match=f"^batches: holds {said}; give pairs of logits and a mask"):
            StandardizedMaxLogit().fit([batch])
    assert len(StandardizedMaxLogit().fit([(logits(), labels != 255)]).mean_) == 19


@pytest.mark.parametrize("features", [None, torch.randn(2, 6, 4, 4)])
@pytest.mark.parametrize("adapt", [None, 0.9])
def test_heat_scores_as_many_classes_as_it_was_fitted_on(features, adapt):
    labels = torch.randint(0, 19, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    heat = HybridEnergyThresholding(adapt=adapt).fit([(logits(), features, labels)])
    assert heat.score(logits(), features).shape == (2, 8, 8)
    with pytest.raises(DataError, match=r"^logits have 7 classes, HEAT was fitted on 19"):
        heat.score(logits(7), features)
    heat.fit([(logits(7), features, labels % 7)])  # another fit
    assert heat.score(logits(7), features).shape == (2, 8, 8)
    older = HybridEnergyThresholding.__new__(HybridEnergyThresholding)  # stored without the number of classes
    vars(older).update({name: value for name, value in vars(heat).items() if name != "classes_"})
    assert torch.equal(older.reset().score(logits(7), features), heat.reset().score(logits(7), features))


def test_fused_scores_name_what_is_nan():
    good, bad = np.ones(3), np.array([1, np.nan, 2])
    with pytest.raises(DataError, match=r"^scores\[1\]: 1 of 3 values are NaN"):
        fused_scores([good, bad], [good, good])
    with pytest.raises(DataError, match=r"^held_out\[0\] has the mean nan"):
        fused_scores([good, good], [bad, good])
