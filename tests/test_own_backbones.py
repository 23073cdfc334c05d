"A backbone of one's own: what it gives is brought into form, or refused in one sentence."

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_nb.banks import RetrievalBank
from anomaly_nb.core.errors import DataError
from anomaly_nb.features import BackboneSpec, extract_features, load_features, save_features
from anomaly_nb.features.base import Backbone
from anomaly_nb.features.shards import extract_shards
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.preparation import image_features
from tests.commands import parts


class Own(Backbone):
    "Means over patches of 8 pixels; `give` says in which form."

    def __init__(self, give=lambda patches, grid, cls: (patches, grid, cls)):
        super().__init__(BackboneSpec("own:means", 32))
        self.give = give

    def __call__(self, batch):
        b, c, h, w = batch.shape
        cells = batch.reshape(b, c, h // 8, 8, w // 8, 8).mean(axis=(3, 5))
        patches = cells.reshape(b, c, -1).transpose(0, 2, 1)
        return self.give(patches, (h // 8, w // 8), patches.mean(axis=1))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    "Eight images of parts."
    folder = parts(tmp_path_factory.mktemp("images") / "good", range(8))
    rows = {"image_path": [str(folder / f"{i}.png") for i in range(8)], "split": "train", "label": 0}
    return pd.DataFrame(rows)


tensors = lambda p, g, c: (torch.from_numpy(p.copy()).requires_grad_(), torch.Size(g), torch.from_numpy(c))


def test_tensors_and_lists_are_taken(index):
    usual = extract_features(index, Own())
    for give in (tensors, lambda p, g, c: [p.tolist(), list(g), c.tolist()], lambda p, g, c: (p.astype(float), np.array(g), c)):
        for f in (extract_features(index, Own(give), batch_size=3), image_features(index, Own(give))):
            assert np.allclose(f.patches, usual.patches, atol=1e-6) and np.allclose(f.cls, usual.cls, atol=1e-6)
            assert f.patches.dtype == f.cls.dtype == np.float32 and f.patch_hw == (4, 4)


def test_a_backbone_without_vectors_does_where_none_are_used(index, tmp_path):
    none = Own(lambda p, g, c: (p, g, None))
    features = extract_features(index, none)
    assert features.cls is None and image_features(index, none).cls is None
    save_features(tmp_path, "nut", features, "own")
    assert load_features(tmp_path, "nut", "own").cls is None
    shards = extract_shards(index, none, tmp_path / "shards", shard_size=3)
    assert [part.cls for part in shards] == [None] * 3 and shards.where(np.ones(8, bool)).cls is None
    usual = Detector("knn").fit(extract_features(index, Own()))
    assert np.array_equal(Detector("knn").fit(features).score(features), usual.score(extract_features(index, Own())))
    with pytest.raises(DataError, match="cls"):
        RetrievalBank(3).fit(features.patches, features.patch_hw, features.cls)


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda p, g, c: (p, g), r"Own\.__call__ gives 2 values for 8 images; return three: patches \(B, P, D\)"),
        (lambda p, g, c: p, r"Own\.__call__ gives shape \(8, 16, 3\) for 8 images; return three"),
        (lambda p, g, c: None, r"Own\.__call__ gives NoneType for 8 images; return three"),
        (lambda p, g, c: (p.reshape(-1, 4, 4, 3), g, c), r"patches of shape \(8, 4, 4, 3\) .*maps\.flatten\(2\)"),
        (lambda p, g, c: (p, (32, 32), c), r"the grid \(32, 32\) for 16 patches an image"),
        (lambda p, g, c: (p, g, c[0]), r"vectors of shape \(3,\) for 8 images"),
        (lambda p, g, c: (p[:1], g, c), r"patches of shape \(1, 16, 3\) for 8 images"),
        (lambda p, g, c: p @ np.ones(7), r"Own\.__call__: ValueError: .*test_own_backbones\.py, line \d+\)"),
        (lambda p, g, c: (np.full(p.shape, np.nan), g, c), r"NaN or infinite"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_sentence(index, give, words, monkeypatch):
    monkeypatch.setattr("anomaly_nb.features.extract.backbone_threads", lambda backbone: 1)
    with pytest.raises(DataError, match=words) as caught:
        extract_features(index, Own(give))
    assert "\n" not in str(caught.value)


def test_what_is_no_backbone_is_said(index):
    class Forgetful(Own):
        def __init__(self):
            self.give = None

    for backbone, words in (
        (Own, "backbone: the class Own; give"),
        (lambda batch: batch, "backbone: a function; give"),
        (Forgetful(), r"Forgetful: has no BackboneSpec; begin its __init__ with super\(\)\.__init__"),
    ):
        with pytest.raises(DataError, match=words):
            extract_features(index, backbone)
