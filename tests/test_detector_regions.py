"""Images of which a part counts have one score, however they come to the detector."""

import numpy as np
import pandas as pd
import pytest
from fastcore.test import expect_fail
from PIL import Image

from anomaly_nb.core.errors import DataError
from anomaly_nb.features import extract_features
from anomaly_nb.scoring.detector import Detector
from anomaly_nb.scoring.predict import needs_batch, predict_files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    paths = [str(folder / f"{i}.png") for i in range(12)]
    for i, path in enumerate(paths):
        image = (rng.random((96, 128, 3)) * 60 + 100).astype(np.uint8)
        image[20:30, 60:70] = 250 if i > 8 else image[20:30, 60:70]
        Image.fromarray(image).save(path)
    return paths


@pytest.mark.parametrize("recipe", ["knn", "placed", "positional", "spade", "musc"])
@pytest.mark.parametrize("seen", [{"resize": "short"}, {"region": "24,24,72,72"}], ids=["short", "region"])
@pytest.mark.parametrize("aggregation", ["", "top5%", "mean"])
def test_files_features_and_predictions_agree(files, recipe, seen, aggregation):
    detector = Detector(recipe, "filters", image_size=96, aggregation=aggregation, rerank=(), **seen).fit(files[:8])
    assert not detector.layout_.plain
    result = detector.evaluate(files)
    f = extract_features(pd.DataFrame({"image_path": files}), detector.network())
    cells = detector.score_patches(f)
    assert np.array_equal(detector.score(f), result.scores)
    assert np.array_equal(cells, np.stack(list(result.patch_scores)))
    assert np.array_equal(detector.aggregate_patches(cells, f.cls, features=f), result.scores)
    if not detector.bank_.scores_images:
        with expect_fail(DataError, "give what was scored"):
            detector.aggregate_patches(cells, f.cls)
    if not needs_batch(detector):
        assert np.array_equal([p.score for p in predict_files(detector, files)], result.scores)


def test_features_of_a_region_are_not_learned_from(files):
    detector = Detector("knn", "filters", image_size=96, region="24,24,72,72").fit(files[:8])
    f = extract_features(pd.DataFrame({"image_path": files}), detector.network())
    with expect_fail(DataError, "features of tiles or of a region"):
        Detector("knn", "filters", image_size=96, region="24,24,72,72").fit(f)
