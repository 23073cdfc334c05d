"""What is fitted, evaluated or trained a second time: the same where nothing changed, said where something did."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch

import anomaly_nb.segmentation.ablation as ablation
from anomaly_nb.core.arrays import load_tensors, save_tensors
from anomaly_nb.metrics import ScoreHistogram
from anomaly_nb.segmentation import PixelScorer, StreetRun, TrainConfig, evaluate, street_samples, subsampling_study
from anomaly_nb.segmentation.ablation import ablation_summary, run_ablation, study_configs
from anomaly_nb.segmentation.evaluation import evaluation_identity
from anomaly_nb.segmentation.evaluation_files import find_evaluation, free_folder, load_evaluation, save_evaluation
from anomaly_nb.segmentation.models import weights_digest
from anomaly_nb.segmentation.score_maps import evaluate_scores, read_map
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


@pytest.mark.parametrize("configs", [2, 7])
def test_studies_in_which_nothing_differs_seldom_report_a_difference(configs):
    rng, reports, studies = np.random.default_rng(configs), 0, 300
    for _ in range(studies):
        rows = [dict(config=c, seed=s, method="m", ap=rng.normal()) for c in range(configs) for s in (0, 1)]
        reports += ablation_summary(pd.DataFrame(rows)).beyond_noise.any()
    assert reports / studies < 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


class Trained:
    best_miou, best_epoch, history = 0.5, 0, [1]

    def __init__(self, model):
        self.model = model


@pytest.fixture
def study(tmp_path, monkeypatch, network):
    monkeypatch.setattr(ablation, "build_model", lambda *args, **options: None)
    monkeypatch.setattr(ablation, "train", lambda *args, **options: Trained(network))

    def run(sets, methods):
        configs = {"none": study_configs("augmentation", TrainConfig())["none"]}
        return run_ablation(configs, sets, tmp_path, (0,), methods=methods)

    return run


def test_a_study_gives_the_results_of_its_own_methods_scenes_and_classes(study, sets):
    first = study(sets, ("max_logit", "msp"))
    assert study(sets, ("msp", "energy")).method.tolist() == ["MSP", "Energy"]
    assert study(sets, ("max_logit", "msp")).equals(first)
    for test in (street_samples("test", 3, (64, 96), random_state=9), sets["test"].hold_out("person")):
        other, again = sets | {"test": test}, {"train": sets["train"], "val": sets["val"], "test": sets["test"]}
        if test.table.names == sets["test"].table.names:
            assert study(other, ("max_logit", "msp")).ap.tolist() != first.ap.tolist()
        else:
            with pytest.raises(ValueError, match="classes"):
                study(other, ("max_logit", "msp"))
        assert study(again, ("max_logit", "msp")).equals(first)


def test_a_study_whose_evaluation_is_there_scores_nothing(study, sets, network):
    first, calls = study(sets, ("max_logit",)), network.calls
    assert study(sets, ("max_logit",)).equals(first) and network.calls == calls


def test_subsamples_of_more_pixels_than_numpy_draws():
    scores = np.array([0.1, 0.9, 0.3, 0.5], np.float32)
    histogram = ScoreHistogram("float16").update(np.array([0, 1, 0, 1]), scores)
    histogram.counts = histogram.counts.copy()
    histogram.counts[0, np.flatnonzero(histogram.counts[0])] = 700_000_000
    table = subsampling_study(histogram, (0.01, 0.999), 3)
    assert table.pixels.tolist() == [14_000_000, 1_398_600_002]
    assert table.repeats.max() <= 3
    assert np.isnan(subsampling_study(histogram, (1e-9,), 1).auroc_mean[0])


def test_one_subsample_has_a_mean():
    y_true = np.r_[np.zeros(50, int), np.ones(50, int)]
    histogram = ScoreHistogram("float16").update(y_true, np.random.default_rng(0).random(100) + y_true)
    table = subsampling_study(histogram, (0.5,), 1)
    assert table.auroc_mean[0] > 0.9 and np.isnan(table.auroc_sd[0])


def test_maps_of_16_bits_are_counted_in_32(tmp_path):
    rng, mask = np.random.default_rng(0), np.zeros((64, 64), np.uint8)
    scores = (np.abs(rng.normal(size=mask.shape)) * 1e-6).astype(np.float16)
    mask[:5, :5], scores[:5, :5] = 1, 0.9
    np.save(tmp_path / "0.npy", scores)
    half, single = (evaluate_scores([s], [mask]).histograms["score"] for s in (scores, scores.astype(np.float32)))
    assert np.array_equal(half.counts, single.counts) and half.roc_auc() == 1.0
    assert read_map(tmp_path / "0.npy").dtype == np.float32
    double = evaluate_scores([scores.astype(np.float64)], [mask]).histograms["score"]
    assert double.roc_auc() == 1.0


def test_a_replaced_evaluation_leaves_no_counts_of_the_one_before(network, sets, tmp_path):
    scorers = [PixelScorer((m,)).fit(network, sets["train"]) for m in ("max_logit", "msp")]
    save_evaluation(tmp_path, evaluate(network, scorers[0], sets["test"], protocol="anomaly_track"))
    (tmp_path / "notes.npz").write_bytes(b"of somebody else")
    for scorer in (scorers[1], scorers[0]):
        save_evaluation(tmp_path, evaluate(network, scorer, sets["test"]), replace=True)
        assert not load_evaluation(tmp_path).components
    assert sorted(p.name for p in tmp_path.glob("*.npz")) == ["confusions.npz", "max_logit.npz", "notes.npz"]


def test_digests_of_weights_that_numpy_cannot_hold():
    layer = torch.nn.Linear(2, 2)
    single, half = weights_digest(layer), weights_digest(layer.bfloat16())
    layer.weight.data[0, 0] += 1
    assert len({single, half, weights_digest(layer)}) == 3


def test_a_digest_of_an_earlier_version_is_the_same():
    state = {"weight": torch.arange(6, dtype=torch.float32).reshape(2, 3).T, "count": torch.tensor(7)}
    before = hashlib.sha256()
    for name, value in state.items():
        before.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    assert weights_digest(type("Network", (), {"state_dict": lambda self: state})()) == before.hexdigest()
