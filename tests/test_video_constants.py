"""The rules of films that a wrong constant, side or seed would break unseen: boxes, events, speeds, the scores of
frames and what is promised of them, on a few frames.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat
from scipy.ndimage import gaussian_filter1d
from sklearn.mixture import GaussianMixture

from anomaly_nb.calibration.leave_one_out import leave_one_group_out_distances
from anomaly_nb.calibration.ranks import false_alarm_bound
from anomaly_nb.core.errors import DataError
from anomaly_nb.video import boxes
from anomaly_nb.video.boxes import BoxTable, OnnxDetector, inside_fraction, read_outputs
from anomaly_nb.video.evaluation import auc_table, frame_auc
from anomaly_nb.video.ground_truth import frame_labels
from anomaly_nb.video.layouts import Video
from anomaly_nb.video.left_out import alarm_scales, film_threshold, held_out_frames
from anomaly_nb.video.object_features import ObjectFeatures, of_videos
from anomaly_nb.video.scoring import VideoScorer, frame_scores, held_out_check, responsible_objects
from anomaly_nb.video.velocity import VelocityModel


def four_films(values, modality="deep"):
    "One object a frame, as many frames in each of the films a to d."
    values = np.asarray(values, np.float32).reshape(len(values), -1)
    frames = tuple(map(str, range(len(values) // 4)))
    corners = np.tile(np.float32([0, 0, 9, 9]), (len(values), 1))
    films = np.repeat(list("abcd"), len(frames))
    return {
        modality: ObjectFeatures(modality, values, corners, films, np.tile(frames, 4), {v: frames for v in "abcd"}, {})
    }


FORTY = np.random.default_rng(0).random((40, 4)).astype(np.float32)


# Scores of frames


@pytest.mark.parametrize(("names", "words"), [((), "video 'e' has no frame"), (("0", "1", "0"), "has frame '0' twice")])
def test_a_video_without_frames_or_with_one_twice_is_refused(names, words):
    part = four_films(FORTY)["deep"]
    with pytest.raises(DataError, match=words):
        replace(part, frames=part.frames | {"e": names})
    objects = pd.DataFrame([("deep", "a", "0", 2.0)], columns=["modality", "video", "frame", "score"])
    if names:
        with pytest.raises(DataError, match="frames: e/0 is listed twice"):
            frame_scores(objects, {"a": ("0", "1"), "e": names})
    else:
        assert frame_scores(objects, {"a": ("0", "1"), "e": names})["video"].tolist() == ["a", "a"]


def test_smoothing_mirrors_a_film_at_its_ends():
    raw = np.array([5.0, 0, 0, 1])
    objects = pd.DataFrame({"modality": "deep", "video": "v", "frame": list("0123"), "score": raw})
    smooth = frame_scores(objects, {"v": tuple("0123")}, sigma=3.0)["deep"]
    np.testing.assert_allclose(smooth, gaussian_filter1d(raw, 3.0, mode="reflect"))


@pytest.mark.parametrize(
    ("scores", "more"),
    [
        ((1.0, 0.9), {"weights": {"deep": 1, "velocity": 2}}),
        ((3.0, 2.0), {"scales": {"deep": (0.0, 3.0), "velocity": (0.0, 1.0)}}),
    ],
)
def test_an_object_is_responsible_by_what_it_brings_to_the_score(scores, more):
    objects = pd.DataFrame({"modality": ["deep", "velocity"], "video": "v", "frame": "0", "score": scores})
    objects = objects.assign(y1=0, x1=0, y2=1, x2=1)
    assert responsible_objects(objects, **more)["modality"].tolist() == ["velocity"]


def test_a_calibration_measures_as_many_neighbours_as_a_score():
    features = four_films(FORTY)
    wanted = leave_one_group_out_distances(FORTY, features["deep"].video, 3, "sqeuclidean")
    assert np.array_equal(VideoScorer(k=3).fit(features).calibration_scores_["deep"], wanted)


def test_an_object_at_the_bound_is_not_above_it():
    features = four_films([0, 10, 0, 12, 0, 14, 0, 16])
    assert held_out_check(features, VideoScorer(k=1))["held_out"][0] == 0


def test_the_seed_of_a_scorer_is_that_of_its_speeds():
    assert VideoScorer(random_state=7).fit(four_films(FORTY, "velocity")).velocity_.random_state == 7


# Held-out films


def test_held_out_frames_are_on_the_scale_of_all_films():
    "On which none lies above its own range, the object that sets it included."
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[0] += 20
    features = four_films(x)
    scorer = VideoScorer(k=1, sigma=0).fit(features)
    scores = held_out_frames(scorer, features, lambda v: {m: of_videos(f, {v}) for m, f in features.items()})
    assert scores["deep"].max() <= 1


def test_the_scale_of_an_alarm_begins_at_the_median():
    assert alarm_scales({"deep": np.array([0.0, 0, 0, 1, 9])}, 0.5)["deep"][0] == 0


def test_the_bound_of_a_new_film_counts_films():
    "Of four films the frames of one reach the threshold, 39 of its 100: 0.39 of four films."
    threshold = film_threshold(np.arange(400.0), np.repeat(list("abcd"), 100), 0.9)
    assert threshold.parameters["bound95"] == round(false_alarm_bound(4, 4 - 0.39), 6) < 0.7


# Speeds


@pytest.mark.parametrize("seed", range(3))
def test_the_number_of_components_is_that_of_the_lowest_bic(seed):
    x = np.random.default_rng(seed).normal(size=(60, 3))
    ordered = x[np.lexsort(x.T[::-1])]
    fits = [GaussianMixture(n, random_state=0, max_iter=300, n_init=5).fit(ordered) for n in range(1, 9)]
    assert len(VelocityModel("bic").fit(x).mixture_.weights_) == 1 + int(np.argmin([m.bic(ordered) for m in fits]))


def test_a_velocity_model_is_fitted_with_its_own_settings():
    one, two = (VelocityModel(5, random_state=seed, starts=1).fit(FORTY).sha256 for seed in (0, 1))
    assert one != two
    assert VelocityModel(5, starts=7).fit(FORTY).mixture_.n_init == 7
    (covariance,) = VelocityModel(1, reg_covar=0.5).fit(FORTY).mixture_.covariances_
    assert covariance.diagonal().min() > 0.5


# Evaluation


def test_one_film_of_both_classes_is_a_mean_over_films():
    truth, scores = {"a": [0, 1, 1], "b": [0, 0]}, {"a": [0.1, 0.2, 0.3], "b": [0.0, 0.0]}
    assert frame_auc(truth, scores)["macro"] == 1


def test_intervals_of_an_evaluation_are_of_their_seed():
    rng = np.random.default_rng(0)
    labels = {v: rng.random(20) > 0.5 for v in "abcdef"}
    rows = [(v, i, y + 2 * rng.normal()) for v, ys in labels.items() for i, y in enumerate(ys)]
    frames = pd.DataFrame(rows, columns=["video", "frame", "score"])
    one, two = (auc_table(frames, labels, 20, seed)["micro_low"][0] for seed in (0, 1))
    assert one != two


# Ground truth


@pytest.mark.parametrize(
    ("table", "anomalous"),
    [
        ([[3, 5], [3, 9]], [3, *range(5, 10)]),  # an event of one frame, and one that ends with the film; in columns
        ([[1, 5], [3, 8]], [1, 2, 3, *range(5, 9)]),  # in columns: in rows the second would begin within the first
        ([[1, 3], [3, 7]], range(1, 8)),  # in columns and in rows the same; two events may share a frame
    ],
)
def test_two_events_are_read_in_the_one_way_that_is_in_order(tmp_path, table, anomalous):
    savemat(tmp_path / "gt.mat", {"v": np.array(table)})
    video = Video("v", tmp_path / "v", tuple(map(str, range(9))))
    assert (frame_labels(tmp_path, [video])["v"].nonzero()[0] + 1).tolist() == list(anomalous)


# Boxes

IMAGE = np.zeros((40, 60, 3), np.uint8)


@pytest.mark.parametrize(
    ("row", "count"),
    [
        ("1,1,21,21,0.5", 1),  # of just the least score
        ("0,0,10,10,0.9", 1),  # of just 100 pixels
        ("70,1,90,21,0.9", 0),  # right of the image
    ],
)
def test_which_boxes_of_a_table_are_used(tmp_path, row, count):
    (tmp_path / "boxes.csv").write_text(f"video,frame,x_min,y_min,x_max,y_max,score\nv,0,{row}\n")
    table = BoxTable(tmp_path / "boxes.csv")
    table.begin("v", ("0",))
    assert len(table(IMAGE, "0")) == count


def test_what_of_a_box_lies_in_the_image():
    rows = pd.DataFrame({"x_min": [-10.0, 50], "y_min": [0.0, 30], "x_max": [10.0, 70], "y_max": [10.0, 50]})
    assert inside_fraction(rows, (40, 60)).tolist() == [0.5, 0.25]


def test_a_box_of_just_the_least_score_counts():
    assert len(read_outputs([np.array([[[1, 1, 9, 9, 0.5, 0]]], np.float32)], 0.5)) == 1


def test_boxes_overlap_as_much_as_they_are_allowed_to():
    "Two of 20 x 20 pixels, six columns apart, share 14 of 26 columns."
    rows = np.zeros((1, 1010, 6), np.float32)
    rows[0, :2] = [[50, 50, 20, 20, 1, 0.9], [56, 50, 20, 20, 1, 0.8]]
    assert len(read_outputs([rows], 0.5)) == 2 and len(read_outputs([rows], 0.5, 0.5)) == 1


@pytest.fixture
def detect(tmp_path, monkeypatch):
    "A function: what a detector with 20 x 20 pixels of input makes of these rows, and what it was shown."
    (tmp_path / "detector.onnx").write_bytes(b"a network")
    require = boxes.require

    def made(rows, **settings):
        shown = {}

        class Session:
            def __init__(self, *values, **more):
                pass

            def get_inputs(self):
                return [SimpleNamespace(name="x", shape=[1, 3, 20, 20], type="tensor(float)")]

            def run(self, names, inputs):
                shown.update(inputs)
                return [np.array(rows, np.float32).reshape(1, -1, 6)]

        runtime = SimpleNamespace(InferenceSession=Session)
        monkeypatch.setattr(boxes, "require", lambda name, *e: runtime if name == "onnxruntime" else require(name, *e))
        return OnnxDetector(tmp_path / "detector.onnx", **settings)(IMAGE).tolist(), shown["x"]

    return made


@pytest.mark.parametrize(
    ("rows", "settings", "wanted"),
    [  # x1, y1, x2, y2, score and class in a third of the image's pixels
        ([[0, 0, 3, 3, 0.9, 0], [0, 0, 10, 10, 0.8, 0]], {}, [[0, 0, 30, 30]]),  # 81 pixels are too few
        ([[0, 0, 9, 9, 0.9, 0], [0, 0, 10, 10, 0.8, 0]], {"confidence": 0.85}, [[0, 0, 27, 27]]),
        ([[10, 5, 25, 18, 0.9, 0]], {}, [[15, 30, 40, 60]]),  # cut off where the image ends
    ],
)
def test_which_boxes_of_a_network_are_used(detect, rows, settings, wanted):
    assert detect(rows, **settings)[0] == wanted


def test_beside_the_image_is_the_grey_that_detectors_are_trained_with(detect):
    assert detect([])[1][0, 0, -1, 0] == pytest.approx(114 / 255)
