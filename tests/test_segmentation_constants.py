"""The rules of street scenes that a wrong constant, side or seed would break unseen: pixel scores and their statistics,
score maps, components, promises, samples of pixels, and the loss and the end of a training.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anomaly_nb.calibration.thresholds import counted_threshold
from anomaly_nb.metrics.histogram import ScoreHistogram
from anomaly_nb.segmentation import subsampling, training
from anomaly_nb.segmentation.evaluation import COMPARED, StreetEvaluation, count_components
from anomaly_nb.segmentation.heat import HybridEnergyThresholding, spatial_divergence
from anomaly_nb.segmentation.promise import left_out_rates, promise_study
from anomaly_nb.segmentation.score_maps import evaluate_scores, read_map, write_submission
from anomaly_nb.segmentation.scores import GroupMoments, StandardizedMaxLogit, boundary_suppression, dilated_smoothing
from anomaly_nb.segmentation.subsampling import subsample, subsampling_study
from anomaly_nb.segmentation.training import TrainConfig, best_epoch, segmentation_loss

# Standardised logits


def test_a_class_of_just_the_least_pixels_has_its_own_statistics():
    moments = GroupMoments(2).add(np.arange(300.0), np.repeat([0, 1], [100, 200]))
    assert StandardizedMaxLogit(min_pixels=100).fit_moments(moments).unseen_.tolist() == []


@pytest.mark.parametrize("dilation", [1, 2, 6])
def test_smoothing_keeps_the_size_of_a_map(dilation):
    assert dilated_smoothing(torch.zeros(1, 20, 20), dilation=dilation).shape == (1, 20, 20)


def test_boundaries_are_suppressed_four_pixels_wide():
    rng = torch.Generator().manual_seed(0)
    logits = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    for part, columns in enumerate((slice(16), slice(16, 32))):  # two classes, side by side
        logits[:, part, :, columns] = 5 + torch.randn(32, 16, generator=rng, dtype=torch.float64)
    plain, suppressed = (StandardizedMaxLogit(suppress=s).fit([(logits, None)]).score(logits) for s in (False, True))
    assert torch.equal(suppressed, boundary_suppression(plain, logits.argmax(1), 4))
    assert not torch.equal(suppressed, boundary_suppression(plain, logits.argmax(1), 3))


# HEAT


@pytest.fixture
def street():
    "Logits, features and labels of two images."
    rng = torch.Generator().manual_seed(0)
    logits, features = (torch.randn(2, n, 8, 8, generator=rng) for n in (3, 4))
    return 3 * logits, features, torch.randint(0, 3, (2, 8, 8), generator=rng)


def test_all_terms_of_heat_have_its_temperature(street):
    logits, features, _ = street
    heat = HybridEnergyThresholding(temperature=2.0).fit([street])
    assert torch.equal(heat.raw(logits, features)["spatial"], spatial_divergence(logits, 2.0))


def test_cells_of_heat_are_drawn_by_its_seed(street):
    one, two = (
        HybridEnergyThresholding(cells_per_batch=20, random_state=seed).fit([street]).score(*street[:2])
        for seed in (0, 1)
    )
    assert not torch.equal(one, two)


def test_heat_that_keeps_nothing_takes_mean_and_deviation_of_the_last_image(street):
    logits, features = (x[:1] for x in street[:2])
    heat = HybridEnergyThresholding(adapt=0.0).fit([street])
    heat.score(logits, features)
    energy = heat.raw(logits, features)["energy"]
    assert heat.moving_["energy"] == pytest.approx((float(energy.mean()), float(energy.std())))


# Evaluation


def test_evaluations_of_two_protocols_stand_in_no_one_table():
    assert "protocol" in COMPARED


def components_of(maps, anomaly):
    evaluation = StreetEvaluation({"m": "M"})
    evaluation.update("a", {"m": maps}, anomaly)
    counted = count_components(evaluation, [("a", {"m": maps}, anomaly)], "obstacle").components["m"]["a"]
    return counted.siou.tolist(), counted.ppv.tolist()


def test_what_is_void_is_no_false_detection():
    anomaly = np.zeros((40, 40), np.uint8)
    anomaly[:20, :20], anomaly[20:] = 1, 255
    assert components_of(np.where(anomaly == 0, np.float32(0), np.float32(1)), anomaly) == ([1.0], [1.0])


def test_an_obstacle_may_be_smaller_than_a_detection():
    anomaly = np.zeros((40, 40), np.uint8)
    anomaly[:5, :5] = 1  # 25 pixels: enough for an obstacle, and too few for a detection
    assert components_of(anomaly.astype(np.float32), anomaly) == ([0.0], [])


# Promises


def test_a_pixel_at_the_threshold_of_the_others_is_above_it():
    scores = np.arange(1024.0, 1124)  # a code each, one after the other
    histogram = ScoreHistogram("float16")
    for image in "ab":
        histogram.update(np.zeros(100, bool), scores, image=image)
    limit = counted_threshold(histogram.counts[0] // 2, 0.1)
    assert left_out_rates(histogram, [["a"]], 0.1)[0] == (histogram.images["a"][0] >= limit).mean()


def normal_images(*sides, anomalous=()):
    "An evaluation of square images with scores around their number; those named are anomalous all over."
    evaluation, rng = StreetEvaluation({"m": "M"}), np.random.default_rng(0)
    for i, side in enumerate(sides):
        scores = rng.normal(i, 1, (side, side)).astype(np.float32)
        evaluation.update(str(i), {"m": scores}, np.full((side, side), i in anomalous, np.uint8))
    return evaluation


def test_parts_are_dealt_by_their_seed():
    evaluation = normal_images(*[10] * 6)
    one, two = (promise_study(evaluation, 0.1, 2, seed).iloc[0]["together"] for seed in (0, 1))
    assert one != two


def test_rates_of_parts_are_averaged_over_pixels():
    evaluation = normal_images(10, 50)
    a, b = left_out_rates(evaluation.histograms["m"], [["0"], ["1"]], 0.1)
    together = promise_study(evaluation, 0.1, 2).iloc[1]["together"]
    assert together == pytest.approx((100 * a + 2500 * b) / 2600, abs=1e-12)


def test_a_part_without_a_normal_pixel_has_no_rate():
    assert np.isfinite(promise_study(normal_images(10, 10, 10, anomalous=[2]), 0.1, 3)["lowest"]).all()


# Score maps


def test_a_submitted_map_is_enlarged_between_the_centres_of_pixels(tmp_path):
    write_submission(tmp_path, {"a": np.array([[0.0, 1.0]])}, ["a"], "fishyscapes", sizes={"a": (1, 4)})
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), [[0, 0.25, 0.75, 1]])


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        (np.arange(101.0).reshape(1, 101), [50, 50]),  # median and interquartile range
        (np.r_[np.zeros(99), 5.0].reshape(10, 10), [0, 5]),  # the whole range, where most scores are equal
    ],
)
def test_the_scale_of_score_maps_is_that_of_most_scores(scores, scale):
    mask = (scores == scores.max()).astype(np.uint8)
    assert evaluate_scores([scores], [mask]).metadata["scale"]["score"] == scale


def test_a_map_of_truth_values_ends_at_1(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[True, False]]))
    assert read_map(tmp_path / "a.npy", (0.0, 1.0)).tolist() == [[1, 0]]


# Samples of pixels


@pytest.mark.parametrize("seed", range(10))
def test_pixels_are_drawn_from_where_there_are_some(seed):
    counts = np.array([0, 3, 0, 2, 5])
    for n in range(11):
        drawn = subsample(counts, n, np.random.default_rng(seed))
        assert drawn.sum() == n and (drawn <= counts).all() and (drawn >= 0).all()


def test_samples_are_of_their_seed_and_their_deviation_is_that_of_a_sample(monkeypatch):
    rng = np.random.default_rng(0)
    y = rng.random(4000) < 0.1
    histogram = ScoreHistogram("float16").update(y, y + rng.normal(size=4000))
    one, two = (subsampling_study(histogram, (0.1,), random_state=seed)["auroc_mean"][0] for seed in (0, 1))
    assert one != two
    metrics, measure = [], subsampling._sample_metrics
    monkeypatch.setattr(subsampling, "_sample_metrics", lambda drawn: metrics.append(measure(drawn)) or metrics[-1])
    study = subsampling_study(histogram, (0.5,), 2)
    assert study["auroc_sd"][0] == pytest.approx(np.std([m[0] for m in metrics], ddof=1))


# Training


def test_the_best_epoch_is_the_first_of_the_highest_value():
    assert best_epoch([float("nan"), 0.2, 0.3]) == 2
    assert best_epoch([0.301, 0.304]) == 1 and best_epoch([0.3, 0.3]) == 0


def test_a_training_ends_after_as_many_epochs_without_gain_as_its_patience():
    run = training._Run.__new__(training._Run)  # a network and data are beside the point
    run.config = TrainConfig(patience=2)
    for values, finished in (((0.5, 0.4), False), ((0.5, 0.4, 0.3), True), ((0.5, 0.4, 0.6), False)):
        run.history = [{"val_miou": v} for v in values]
        assert run.finished == finished
    with pytest.raises(ValueError, match="patience is 0; it must be at least 1"):  # it ended every run after one epoch
        TrainConfig(patience=0)


def test_the_loss_by_hand():
    "Two equal logits are log 2 of a pixel, and of void there is nothing."
    log2, even = np.log(2), torch.zeros(1, 2, 1, 1)
    both, alone = SimpleNamespace(logits=even, auxiliary=even), SimpleNamespace(logits=even, auxiliary=None)
    labels, void = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 255)
    assert float(segmentation_loss(both, labels)) == pytest.approx(1.4 * log2)
    assert float(segmentation_loss(both, labels, 1.0)) == pytest.approx(2 * log2)
    assert float(segmentation_loss(alone, labels)) == pytest.approx(log2)
    assert float(segmentation_loss(alone, void)) == 0
