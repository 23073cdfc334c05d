"""The score of an image does not follow from the images beside it, to the last bit: for every recipe, alone, in twos
and in a folder of nine, from features and from files.
"""

from itertools import pairwise

import numpy as np
import pytest

from anomaly_nb.banks import WordBank
from anomaly_nb.features.words import Words
from anomaly_nb.scoring import Detector, make_detector, predict_files
from tests import golden_recipes


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return golden_recipes.sample_index("capsule", tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def features(index):
    return golden_recipes.features_of(index, "filters")


@pytest.mark.parametrize("name", golden_recipes.NAMES)
def test_each_recipe(name, features):
    detector = make_detector(name, "filters").fit(features)
    if detector.bank_.whole_batch:
        pytest.skip("compares a batch with itself, and says so")
    nine = features.where(np.isin(np.arange(len(features)), np.flatnonzero(features.meta["split"] == "test")[:9]))
    patches = detector.score_patches(nine)
    scores = detector.scorer().alone(nine, patches)
    for first in range(9):
        for some in ([first], sorted({first, (first + 1) % 9})):
            few = nine.where(np.isin(np.arange(9), some))
            again = detector.score_patches(few)
            assert np.array_equal(again, patches[some]), (name, some)
            assert np.array_equal(detector.scorer().alone(few, again), scores[some]), (name, some)


@pytest.mark.parametrize(
    "options",
    [{"recipe": "positional"}, {"recipe": "placed"}, {"recipe": "knn"}, {"recipe": "positional", "resize": "pad"}],
)
def test_files(options, index):
    detector = Detector(**options, image_size=64).fit(index)
    paths = index.loc[index["split"] == "test", "image_path"].tolist()[:9]
    nine = [p.score for p in predict_files(detector, paths)]
    assert [next(iter(predict_files(detector, [p]))).score for p in paths] == nine
    assert [p.score for pair in pairwise(paths) for p in predict_files(detector, pair)][::2] == nine[:8]
    assert detector.score(paths).tolist() == nine == [float(detector.score([p])[0]) for p in paths]


def test_words():
    rng = np.random.default_rng(0)
    unit = lambda *shape: (lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True))(rng.normal(size=shape))
    words = Words(unit(4, 96).astype(np.float32), np.array([False, False, True, True]), ("a", "b", "c", "d"), 100.0)
    patches, cls = rng.normal(size=(9, 16, 96)).astype(np.float32), rng.normal(size=(9, 96)).astype(np.float32)
    bank = WordBank((), words).fit(rng.normal(size=(3, 16, 96)).astype(np.float32), (4, 4), cls[:3])
    together = bank.text_scores(cls, 9), bank.score(patches, cls), bank.image_score(cls, patches=patches)
    for i in range(9):
        one = slice(i, i + 1)
        assert bank.text_scores(cls[one], 1)[0] == together[0][i]
        assert np.array_equal(bank.score(patches[one], cls[one])[0], together[1][i])
        assert bank.image_score(cls[one], patches=patches[one])[0] == together[2][i]
