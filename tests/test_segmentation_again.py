"""What is fitted, evaluated or trained a second time: the same where nothing changed, said where something did."""

import numpy as np
import pytest
import torch

from anomaly_nb.segmentation import PixelScorer, StreetRun, evaluate, street_samples
from anomaly_nb.segmentation.evaluation import evaluation_identity
from anomaly_nb.segmentation.evaluation_files import find_evaluation, free_folder, save_evaluation
from anomaly_nb.core.arrays import load_tensors, save_tensors
from tests.test_segmentation_fits import Tiny

SIZE = (32, 48)


@pytest.fixture(scope="module")
def sets():
    return {"train": street_samples("train", 4, SIZE), "val": street_samples("val", 3, SIZE)} | {
        "test": street_samples("test", 4, SIZE)
    }


@pytest.fixture(scope="module")
def network(sets):
    return Tiny(sets["train"].table.names)


@pytest.fixture
def run(tmp_path, sets, monkeypatch):
    run = StreetRun(tmp_path / "run")
    run.describe(SIZE, data="samples", root="", held_out=[])
    monkeypatch.setattr(StreetRun, "dataset", lambda self, split, size: sets[split])
    return run


def test_a_refit_has_every_setting_of_the_fit(run, network):
    first = run.fit(network, ("energy", "heat"), SIZE, temperature=3.0, fit_images=2, cells_per_image=64, adapt=0.9)
    again = run.refit(network, SIZE)
    assert again.settings() == first.settings() and again.digest == first.digest
    assert again.settings() == dict(
        methods=("energy", "heat"), temperature=3.0, adapt=0.9, cells_per_image=64, random_state=0, fit_images=2
    )


def test_settings_are_all_arguments_of_the_constructor():
    names = PixelScorer.__init__.__code__.co_varnames[1 : PixelScorer.__init__.__code__.co_argcount]
    assert list(PixelScorer().settings()) == sorted(PixelScorer().settings(), key=names.index) == list(names)


def test_what_test_images_move_is_no_part_of_a_fit(run, network, sets, tmp_path):
    fitted = run.fit(network, ("heat",), SIZE, adapt=0.9)
    digest = PixelScorer(**fitted.settings()).fit(network, sets["train"]).digest
    evaluate(network, fitted, sets["test"])
    scorer, _ = run.fitted(SIZE)
    assert fitted.digest == scorer.digest == digest
    assert scorer.fitted_["heat"].moving_ == scorer.fitted_["heat"].scale_ != fitted.fitted_["heat"].moving_
    result = evaluate(network, scorer, sets["test"])
    folder = save_evaluation(free_folder(tmp_path / "evaluations", result), result)
    identity = evaluation_identity(network, run.fitted(SIZE)[0], sets["test"])
    assert find_evaluation(tmp_path / "evaluations", identity) == folder


def test_a_scorer_whose_file_kept_moved_scales_is_as_it_was_fitted(run, network):
    run.fit(network, ("heat",), SIZE, adapt=0.9)
    packed, digest = load_tensors(run.folder / "scorer.pt"), run.fitted(SIZE)[0].digest
    state = packed["state"]["fitted_"]["heat"]["state"]
    state["moving_"] = {n: (mean + 1, spread * 2) for n, (mean, spread) in state["scale_"].items()}
    save_tensors(run.folder / "scorer.pt", packed)
    scorer, _ = run.fitted(SIZE)
    assert scorer.digest == digest and scorer.fitted_["heat"].moving_ == scorer.fitted_["heat"].scale_
