"Composition and fusion from the command line to the card, on the logical samples."

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from anomaly_nb.cli.main import app
from anomaly_nb.data import read_index, write_logical_samples
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.benchmark import Method, measure


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return write_logical_samples(tmp_path_factory.mktemp("logical"), n_train=16, n_good=8, n_defect=4, size=96)


def test_composition_finds_what_patches_do_not(kit, tmp_path):
    index = read_index("mvtec_loco", kit, "bag")
    found = {r: measure(index, Method(r, "filters", image_size=96), cache=tmp_path) for r in ("knn", "composition")}
    logical = {}
    for recipe, measured in found.items():
        some = measured.scores[measured.scores["defect"] != "cracked"]
        good, bad = (some.loc[some["label"] == label, "score"].to_numpy() for label in (0, 1))
        logical[recipe] = float((bad[:, None] > good).mean())
        assert 0 <= measured.metrics["spro"] <= 1
    print(logical, {r: round(m.metrics["spro"], 3) for r, m in found.items()})
    assert logical["composition"] > logical["knn"] + 0.15 and logical["composition"] > 0.8


def test_a_fusion_is_fitted_by_command_saved_and_explained(kit, tmp_path):
    fit = [
        "fit",
        str(kit / "kit/train/good"),
        "--out",
        str(tmp_path / "det"),
        "--recipe",
        "fusion:knn+composition",
        "--backbone",
        "filters",
        "--image-size",
        "96",
    ]
    done = CliRunner().invoke(app, fit)
    assert done.exit_code == 0, done.output
    detector = Detector.load(tmp_path / "det")
    mixed = detector.choice_["fusion"]
    assert mixed["members"] == ["knn", "composition"] and abs(sum(mixed["weights"]) - 1) < 1e-9
    assert (
        np.allclose(detector.bank_.weights_, mixed["weights"]) and f"weights knn {mixed['weights'][0]:g}" in done.output
    )
    card = (tmp_path / "det/detector.html").read_text()
    assert "Weights of the members: knn" in card and "equal weights" in card
    out = tmp_path / "predictions.csv"
    CliRunner().invoke(app, ["predict", str(tmp_path / "det"), str(kit / "kit/test/swapped"), "--out", str(out)])
    scores = pd.read_csv(out)["score"].to_numpy()
    paths = sorted(str(p) for p in (kit / "kit/test/swapped").glob("*.png"))
    np.testing.assert_allclose(scores, detector.score(paths), rtol=1e-4, atol=1e-4)


def test_few_images_have_no_composition(kit, tmp_path):
    index = read_index("mvtec_loco", kit, "kit")
    with pytest.raises(ValueError, match="at least 2 normal images, not 1"):
        measure(index, Method("composition", "filters", image_size=96), shots=2, cache=tmp_path)
    few = measure(index, Method("fusion:knn+placed", "filters", image_size=96), shots=4, cache=tmp_path)
    assert np.isfinite(few.scores["score"]).all()
