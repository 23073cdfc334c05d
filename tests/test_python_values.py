"""Values as they come in Python: columns of sorted tables, labels with gaps, frames and options of another type."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from anomaly_nb.calibration import (
    IsotonicCalibration,
    Sample,
    ScoreSketch,
    SequentialAlarm,
    Threshold,
    conformal_pvalues,
    conformal_threshold,
    drift_metrics,
    leave_one_group_out_distances,
    quantile_threshold,
)
from anomaly_nb.calibration.view import DriftView
from anomaly_nb.core.errors import DataError, Notice, check_file, check_folder, check_number
from anomaly_nb.core.entries import by_place, group_labels
from anomaly_nb.metrics import (
    aupimo,
    aupro,
    best_f1,
    bootstrap_interval,
    paired_difference,
    pro_curve,
    roc_auc,
    spro,
    street_metrics,
)
from anomaly_nb.video import ObjectFeatures, VelocityModel, VideoScorer, frame_auc
from anomaly_nb.video.boxes import BoxTable
from anomaly_nb.video.evaluation import auc_table
from anomaly_nb.video.flow import DISFlow, velocity_histogram
from anomaly_nb.video.objects import changed_pixels, median_background


def shuffled_table(n=12, size=(20, 20)):
    "Masks and maps in a table sorted by name, whose index is the order they were made in."
    rng = np.random.default_rng(0)
    masks = np.zeros((n, *size), bool)
    masks[::2, 4:9, 5:9] = True
    maps = rng.normal(size=masks.shape) + 1.5 * masks + rng.normal(size=(n, 1, 1))
    table = pd.DataFrame({"name": rng.permutation(n), "mask": list(masks), "map": list(maps)})
    return table.sort_values("name")


METRICS = {
    "aupro": aupro,
    "linspace": lambda masks, maps: aupro(masks, maps, protocol="linspace200"),
    "curve": lambda masks, maps: pro_curve(masks, maps).area(0.2),
    "aupimo": lambda masks, maps: aupimo(masks, maps, (1e-2, 1e-1), 5).tolist(),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("sides", ("masks", "maps", "both"))
def test_columns_are_taken_by_place(name, sides):
    table = shuffled_table()
    masks, maps = (table[c] if sides in (f"{c}s", "both") else list(table[c]) for c in ("mask", "map"))
    expected = METRICS[name](list(table["mask"]), list(table["map"]))
    np.testing.assert_equal(METRICS[name](masks, maps), expected)
    table.index = [f"image {i}" for i in table.index]
    np.testing.assert_equal(METRICS[name](table["mask"], table["map"]), expected)


def test_columns_of_regions_and_of_street_labels_are_taken_by_place():
    table = shuffled_table()
    regions = pd.Series([[m] if m.any() else [] for m in table["mask"]], index=table.index)
    saturation = pd.Series([[10] if m.any() else [] for m in table["mask"]], index=table.index)
    lists = list(regions), list(saturation), list(table["map"])
    assert spro(regions, saturation, table["map"]) == spro(*lists) == spro(regions, lists[1], lists[2])
    labels = pd.Series([14 * m.astype(int) for m in table["mask"]], index=table.index)
    assert street_metrics(labels, list(table["map"])) == street_metrics(list(labels), table["map"])
    assert street_metrics(labels, table["map"])["roc_auc"] > 0.7


@pytest.mark.parametrize(
    "wrong, words",
    [
        ((m for m in [np.zeros((2, 2))]), "is a generator; it is read more than once"),
        ({"a": np.zeros((2, 2))}, "is a dict, read by names; pass a list of its values"),
        (None, "is a NoneType"),
        (3, "is a int"),
        (np.float64(3), "is a float64"),
    ],
)
def test_what_has_no_places_is_refused(wrong, words):
    maps = [np.zeros((2, 2))]
    for call in (aupro, aupimo, street_metrics, lambda a, b: bootstrap_interval(roc_auc, a, b)):
        with pytest.raises(DataError, match=words):
            call(wrong, maps)


def test_items_load_when_asked_for():
    class Lazy:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return np.full((4, 4), i)

    lazy = Lazy()
    assert by_place("masks", lazy) is lazy
    torch = pytest.importorskip("torch")
    masks = torch.zeros(3, 8, 8)
    masks[0, :3, :3] = 1
    assert aupro(masks, masks + 0.1) == pytest.approx(1.0)


def test_metrics_are_plain_floats():
    table = shuffled_table()
    for protocol in ("mvtec", "mvtec_ad2", "anomalous_only", "linspace200"):
        assert type(aupro(table["mask"], table["map"], protocol=protocol)) is float
    assert type(pro_curve(table["mask"], table["map"]).area(0.3)) is float
    assert type(pro_curve(table["mask"], table["map"]).area(np.float64(0.25))) is float


def test_resamples_without_a_value_are_repeated():
    y, s = [0, 0, 0, 0, 1], [0.1, 0.4, 0.2, 0.6, 0.5]
    ours = bootstrap_interval(roc_auc, y, s, n_resamples=200)

    def by_nan(y_true, score):
        return roc_auc(y_true, score) if 0 < np.sum(y_true) < len(y_true) else float("nan")

    def by_error(y_true, score):
        if np.all(np.asarray(y_true) == y_true[0]):
            raise ValueError("Only one class present")
        return roc_auc(y_true, score)

    assert bootstrap_interval(by_nan, y, s, n_resamples=200) == ours
    assert bootstrap_interval(by_error, y, s, n_resamples=200) == ours
    with pytest.raises(
        DataError,
        match="resamples have no value \\(the metric gives NaN, which is no value\\); these are too few images",
    ):
        bootstrap_interval(lambda v: 1.0 if len(set(v)) == 12 else np.nan, np.arange(12.0), n_resamples=5)
    with pytest.raises(DataError, match="the metric gives NaN"):
        bootstrap_interval(lambda v: np.nan, y)


def test_an_interval_is_of_one_number():
    y, s = [0, 0, 1, 1, 0], [0.1, 0.4, 0.2, 0.6, 0.5]
    with pytest.raises(DataError, match="best_f1 gives 2 values, where one number is needed: lambda"):
        bootstrap_interval(best_f1, y, s)
    with pytest.raises(DataError, match="best_f1 gives 2 values"):
        paired_difference(best_f1, y, s, s)
    for value in ({"a": 1}, "0.5", None, np.zeros(3)):
        with pytest.raises(DataError, match="the metric gives a "):
            bootstrap_interval(lambda v, value=value: value, y)
    assert bootstrap_interval(lambda *d: best_f1(*d)[0], y, s, n_resamples=20).value > 0


GAPS = {
    "NaN among numbers": [np.nan] * 30 + list(range(30)),
    "NaN among text": [np.nan] * 30 + [f"lot {i}" for i in range(30)],
    "None": [None] * 30 + [f"lot {i}" for i in range(30)],
    "NA": pd.Series([pd.NA] * 30 + list(range(30)), dtype="Int64"),
    "dates": pd.to_datetime([None] * 30 + ["2024-01-01"] * 30),
    "objects": np.array([None] * 30 + list(range(30)), object),
}
GROUPED = {
    "conformal_threshold": lambda groups: conformal_threshold(np.arange(60.0), 0.1, groups=groups),
    "quantile_threshold": lambda groups: quantile_threshold(np.arange(60.0), 0.9, groups=groups),
    "conformal_pvalues": lambda groups: conformal_pvalues(np.arange(60.0), [3.0], groups),
    "Sample": lambda groups: Sample(np.arange(60.0), groups),
    "Sample.of": lambda groups: Sample.of(np.arange(60.0), groups),
    "distances": lambda groups: leave_one_group_out_distances(np.arange(120.0).reshape(60, 2), groups),
}


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("call", GROUPED)
def test_missing_groups_are_refused_by_their_number(call, gaps):
    with pytest.raises(DataError, match=r"^groups: 30 of 60 labels are missing, the first at 0; give each its own"):
        GROUPED[call](GAPS[gaps])


@pytest.mark.parametrize("call", GROUPED)
def test_labels_of_any_type_make_the_same_groups(call):
    numbers = np.arange(60) // 2
    answers = [
        GROUPED[call](groups)
        for groups in (
            numbers,
            [f"lot {i:02}" for i in numbers],
            pd.Series(numbers, index=numbers[::-1]),
            [int(i) if i % 3 else f"lot {i}" for i in numbers],
            pd.Categorical(numbers),
            [i + 0.5 for i in numbers],
        )
    ]
    values = [a.tolist() if isinstance(a, np.ndarray) else getattr(a, "value", str(a)) for a in answers]
    assert values[1:] == values[:-1]


def test_labels_keep_what_can_be_sorted():
    assert group_labels(np.arange(3)).dtype.kind == "i" and group_labels([2, 1]).tolist() == [2, 1]
    assert group_labels([1, 1.0, np.int64(1)]).tolist() == [1, 1, 1]
    assert group_labels([1, "1", None is None]).tolist() == ["1", "1", "True"]
    with pytest.raises(DataError, match="lots: 1 of 1 label are missing"):
        group_labels([None], "lots")


def test_a_threshold_with_a_confidence_says_what_is_expected_and_what_is_sure():
    sure = conformal_threshold(np.arange(99.0), 0.05, confidence=0.95)
    assert sure.parameters["rank"] == 98 and sure.rate() == (99 + 1 - 98) / (99 + 1)
    assert str(sure) == (
        "97, the 98 % quantile of the scores of 99 held-out normal training images; at most 2.0 % false positives "
        "expected (4.7 % with 95 % confidence)"
    )
    assert sure.promise().endswith("at most 2.0 % are expected to reach it, with 95 % confidence at most 4.7 %.")
    assert sure.shortfall() == ""
    rng = np.random.default_rng(0)  # the rate on average, and how often the bound holds
    uniform = rng.random((4000, 99))
    rates = 1 - np.array([conformal_threshold(u, 0.05, 0.95).value for u in uniform[:1000]])
    assert rates.mean() == pytest.approx(sure.rate(), abs=0.002)
    assert np.mean(rates <= sure.parameters["bound95"]) == pytest.approx(0.95, abs=0.02)


def test_another_confidence_is_said_beside_that_of_95_percent():
    for confidence, words in (
        (0.9, "(5.0 % with 90 % confidence, 5.2 % with 95 % confidence)"),
        (0.99, "(5.0 % with 99 % confidence, 3.9 % with 95 % confidence)"),
        (0.5, "(5.0 % with 50 % confidence, 7.8 % with 95 % confidence)"),
    ):
        threshold = conformal_threshold(np.arange(199.0), 0.05, confidence)
        expected = (200 - threshold.parameters["rank"]) / 200
        assert threshold.rate() == expected and words in str(threshold), str(threshold)
        assert f"at most {100 * expected:.1f} % false positives" in str(threshold)


def test_groups_with_a_confidence_promise_what_so_many_groups_do(tmp_path):
    groups = np.repeat(np.arange(99), 3)
    alone, grouped = conformal_threshold(np.arange(99.0), 0.05, 0.95), None
    grouped = conformal_threshold(np.arange(297.0), 0.05, 0.95, groups=groups)
    assert grouped.rate() == pytest.approx(alone.rate(), abs=1e-6)
    assert grouped.promise().partition(": ")[2] == alone.promise().partition(": ")[2]
    older = replace(grouped, parameters={k: v for k, v in grouped.parameters.items() if k != "expected"})
    again = Threshold.load(older.save(tmp_path / "older.json"))  # a file that does not say what is expected
    assert again.rate() == grouped.parameters["bound95"] and "4.7 % with 95 % confidence" in str(again)
    older = replace(alone, parameters={k: v for k, v in alone.parameters.items() if k != "expected"})
    assert Threshold.load(older.save(tmp_path / "older.json")).rate() == alone.rate()


def test_too_few_for_a_confidence_is_a_shortfall():
    few = conformal_threshold(np.arange(10.0), 0.05, 0.95, too_few="largest")
    assert few.rate() == 1 / 11 and ", the largest of the scores of 10 " in str(few)
    assert "at most 9.1 % false positives expected (25.9 % with 95 % confidence)" in str(few)
    assert few.shortfall("image") == (
        "10 images can promise 25.9 % false alarms with 95 % confidence at best, not 5.0 %; 59 could"
    )
    assert conformal_threshold(np.arange(59.0), 0.05, 0.95).shortfall() == ""


@pytest.mark.parametrize(
    "options, words",
    [
        ({"alpha": "0.05"}, "alpha is '0.05'; it must be a finite number"),
        ({"alpha": 0}, "a rate between 0 and 1"),
        ({"resamples": 0}, "resamples is 0; it must be a whole number of at least 1"),
        ({"resamples": None}, "resamples is None"),
        ({"bins": 0}, "bins is 0; it must be a whole number of at least 2"),
        ({"bins": 2.5}, "bins is 2.5"),
        ({"min_files": "50"}, "min_files is '50'"),
        ({"random_state": None}, "random_state=None: give a whole number"),
        ({"random_state": np.random.default_rng(0)}, "random_state=Generator"),
    ],
)
def test_drift_refuses_options_that_are_none(options, words):
    scores = np.random.default_rng(0).random((2, 200))
    with pytest.raises(DataError, match=words):
        drift_metrics(*scores, **options)


def test_drift_counts_scores_that_are_lost_and_refuses_text():
    scores = np.random.default_rng(0).random(200)
    assert drift_metrics(scores, np.r_[scores, np.nan, np.inf]).lost_current == 2
    assert drift_metrics(scores, np.zeros(200)).verdict == "unstable"
    assert drift_metrics(scores, np.zeros(0)).verdict == "insufficient"
    for wrong in ([None, 1.0], ["a"]):
        with pytest.raises(DataError, match="scores: holds"):
            drift_metrics(scores, wrong)


def test_short_words_for_what_is_fitted_or_not():
    rng = np.random.default_rng(0)
    scores = rng.random(100)
    sketch = ScoreSketch(np.linspace(0.1, 0.9, 9))
    assert repr(Sample(scores)) == f"Sample(100 scores, {scores.min():.4g} to {scores.max():.4g})"
    assert repr(sketch) == "ScoreSketch(0 scores in 10 bins)"
    assert repr(sketch.update([0.25, 0.5])) == "ScoreSketch(2 scores in 10 bins, 0.25 to 0.5)"
    assert repr(SequentialAlarm(0.05)) == "SequentialAlarm(alpha=0.05, no reference yet)"
    alarm = SequentialAlarm(0.05).fit(scores).update(scores[:20] + 2)
    assert repr(alarm).startswith("SequentialAlarm(alpha=0.05, 100 reference scores, 20 watched, capital ")
    assert "alarm at" in repr(alarm) and "\n" not in repr(alarm)
    assert repr(IsotonicCalibration()) == "IsotonicCalibration(not fitted)"
    assert " points)" in repr(IsotonicCalibration().fit(scores > 0.5, scores))


def test_the_watch_wants_a_seed_and_a_rate():
    for wrong in (None, np.random.default_rng(0), -1):
        with pytest.raises(DataError, match="random_state="):
            SequentialAlarm(random_state=wrong).fit([1.0, 2.0])
    with pytest.raises(DataError, match=r"alpha is '0\.01'"):
        SequentialAlarm("0.01").fit([1.0, 2.0])


def film(seed=0, size=(24, 32, 3)):
    "Three frames as films give them."
    return np.random.default_rng(seed).integers(0, 256, (3, *size), np.uint8)


FRAME_READERS = {
    "median_background": lambda a, b: median_background([a, b]),
    "changed_pixels": changed_pixels,
    "changed_pixels, reference": lambda a, b: changed_pixels(b, a),
    "DISFlow": lambda a, b: DISFlow()(a, b),
    "DISFlow, current": lambda a, b: DISFlow()(b, a),
}


@pytest.mark.parametrize("reader", FRAME_READERS)
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: f / 255.0, "is float64; frames are uint8: \\(255 \\* .*\\)\\.round\\(\\)"),
        (lambda f: (f / 255.0).astype(np.float32), "is float32; frames are uint8"),
        (lambda f: f.astype(np.uint16) * 257, "is uint16; frames are uint8: \\(.* >> 8\\)"),
        (lambda f: f.astype(np.int64), "is int64; frames are uint8: convert it"),
        (lambda f: f > 100, "is bool; frames are uint8"),
        (lambda f: f[..., 0], "has shape \\(24, 32\\); a frame is .*; a grey one is np\\.repeat"),
        (lambda f: f.transpose(2, 0, 1), "has shape \\(3, 24, 32\\); a frame is"),
        (lambda f: np.concatenate([f, f[..., :1]], 2), "has shape \\(24, 32, 4\\)"),
        (lambda f: f.tolist(), "is a list; give a frame as an array"),
    ],
)
def test_frames_of_another_type_are_refused(reader, change, words):
    pytest.importorskip("cv2")
    a, b, _ = film()
    FRAME_READERS[reader](a, b)
    with pytest.raises(DataError, match=words):
        FRAME_READERS[reader](change(a), b)


def test_motion_is_read_with_channels_last():
    motion = np.random.default_rng(0).normal(size=(6, 8, 2)).astype(np.float32)
    inside = np.zeros((6, 8), bool)
    inside[2:5, 3:6] = True
    expected = velocity_histogram(motion, inside)
    assert (velocity_histogram(motion, inside.astype(np.uint8)) == expected).all()  # numbers do not pick rows
    torch = pytest.importorskip("torch")
    assert (velocity_histogram(torch.from_numpy(motion), torch.from_numpy(inside)) == expected).all()
    for wrong, words in (
        (motion.transpose(2, 0, 1), "channels come last: motion\\.transpose\\(1, 2, 0\\)"),
        (motion[0], "it must be \\(h, w, 2\\)"),
        (motion * np.nan, "motion: 96 of 96 values are NaN or infinite"),
    ):
        with pytest.raises(DataError, match=words):
            velocity_histogram(wrong)
    with pytest.raises(DataError, match="both are of one box"):
        velocity_histogram(motion, inside[:5])
    with pytest.raises(DataError, match="pixels holds 3"):
        velocity_histogram(motion, inside * 3)


def test_videos_may_be_numbers_and_labels_lists():
    rng = np.random.default_rng(0)
    labels = {v: rng.random(40) < 0.4 for v in "abc"}
    frames = pd.DataFrame({"video": np.repeat(list("abc"), 40), "frame": list(range(40)) * 3})
    frames["blind"], frames["sure"] = rng.random(120), np.concatenate(list(labels.values())).astype(float)
    expected = auc_table(frames, labels, n_resamples=50)
    torch = pytest.importorskip("torch")
    number = {v: i for i, v in enumerate("abc")}
    for names, make in (("abc", list), ((0, 1, 2), list), ((0, 1, 2), torch.tensor), ((0, 1, 2), pd.Series)):
        renamed = frames.assign(video=frames["video"].map(dict(zip("abc", names))))
        again = auc_table(renamed, {names[number[v]]: make(labels[v].tolist()) for v in "abc"}, n_resamples=50)
        pd.testing.assert_frame_equal(again, expected)
    assert expected.set_index("scores").loc["sure", "micro_low"] < 1
    scores = {i: frames["blind"][frames["video"] == v].tolist() for i, v in enumerate("abc")}
    ours = frame_auc({i: labels[v].tolist() for i, v in enumerate("abc")}, scores)
    assert ours["micro"] == expected["micro"][0]


def test_videos_that_cannot_be_told_apart_or_ranked_are_refused():
    two = {"a": [0, 1]}
    for labels, scores, words in (
        ({}, {}, "there is no video to rank"),
        ({1: [0, 1], "1": [0, 1]}, two, "labels: two of 2 videos are called alike"),
        ({"a": [[0, 1]]}, two, "labels of video a have shape"),
        ({"a": ["0", "1"]}, two, "labels of video a: holds"),
        (two, {"a": [None, 1.0]}, "scores of video a: holds"),
    ):
        with pytest.raises(DataError, match=words):
            frame_auc(labels, scores)
    with pytest.raises(FileNotFoundError, match="video 2 has labels but no scores"):
        frame_auc({1: [0, 1], 2: [0, 1]}, {"1": [0, 1]})
    frames = pd.DataFrame({"video": ["a", None], "frame": [0, 1], "s": [0.1, 0.2]})
    with pytest.raises(DataError, match="frames: 1 of 2 rows name no video"):
        auc_table(frames, {"a": [0]})


def objects(modality, videos=4, frames=30, seed=0):
    "One object in every frame of some videos."
    rng, width = np.random.default_rng(seed), {"deep": 6, "velocity": 8}[modality]
    names = {f"{v:02}": tuple(f"{t:03}" for t in range(frames)) for v in range(videos)}
    keys = np.array([(v, t) for v, fs in names.items() for t in fs])
    values = rng.normal(size=(len(keys), width)).astype(np.float32)
    return ObjectFeatures(modality, values, np.tile(np.float32([0, 0, 9, 9]), (len(keys), 1)), *keys.T, names, {})


def test_a_loaded_scorer_scores_as_the_one_that_was_saved(tmp_path):
    train = {m: objects(m) for m in ("deep", "velocity")}
    test = {m: objects(m, 2, seed=1) for m in train}
    options = {
        "k": 3,
        "metric": "euclidean",
        "n_components": 2,
        "percentiles": {"deep": (1.0, 98.0)},
        "weights": {"deep": 2.0, "velocity": np.float32(0.5)},
        "sigma": 10.0,
        "track_sigma": 2.0,
        "random_state": np.int64(4),
    }
    scorer = VideoScorer(**options).fit(train)
    scorer.save(tmp_path, tmp_path / "config.yml")
    loaded = VideoScorer.load(tmp_path, tmp_path / "config.yml")
    assert loaded.settings() == scorer.settings() and loaded.score(test).equals(scorer.score(test))
    assert VideoScorer.load(tmp_path, tmp_path / "config.yml", sigma=1.0, device="cpu").sigma == 1.0
    with pytest.raises(DataError, match="calibrated with k=3, not 2"):
        VideoScorer.load(tmp_path, tmp_path / "config.yml", k=2)
    older = json.loads((tmp_path / "scorer.json").read_text())
    (tmp_path / "scorer.json").write_text(json.dumps({"modalities": older["modalities"]}))
    assert VideoScorer.load(tmp_path, tmp_path / "config.yml", k=3, metric="euclidean").sigma == 3.0  # its own default
    (tmp_path / "scorer.json").write_text(json.dumps(older | {"settings": older["settings"] | {"new": 1}}))
    assert VideoScorer.load(tmp_path, tmp_path / "config.yml").settings() == scorer.settings()
    (tmp_path / "scorer.json").write_text(json.dumps(older | {"settings": [1]}))
    with pytest.raises(DataError, match=r"scorer\.json: is not a list of banks \(settings"):
        VideoScorer.load(tmp_path, tmp_path / "config.yml")


WRONG_SETTINGS = {
    "sigma": (np.nan, -1, np.inf, None, "3"),
    "track_sigma": (np.nan, -1, None),
    "weights": ({"deep": np.nan}, {"deep": np.inf}, {"deep": -1.0}, {"deep": "1"}, ["deep"], {"depp": 1.0}),
    "k": (0, 1.5, np.nan, None),
    "metric": ("L2", None),
    "n_components": (0, 1.5, None),
    "percentiles": ({"deep": (0, 101)}, {"deep": (np.nan, 99)}, {"deep": 5}),
    "random_state": (-1, None),
}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in WRONG_SETTINGS.items() for v in values])
def test_a_wrong_setting_of_a_scorer_is_named(name, value):
    train = {m: objects(m) for m in ("deep", "velocity")}
    with pytest.raises(DataError, match=name.partition("_")[0]):
        VideoScorer(**{name: value}).fit(train).score(train)
    if "sigma" in name:  # also where it was changed after the fit
        scorer = VideoScorer().fit(train)
        setattr(scorer, name, value)
        if value is not None or name == "sigma":
            with pytest.raises(DataError, match=name):
                scorer.score(train)


def test_a_scorer_says_what_it_holds():
    scorer = VideoScorer(sigma=2)
    assert repr(scorer) == "VideoScorer(k=2, sqeuclidean, sigma=2: not fitted)"
    scorer.fit({m: objects(m) for m in ("deep", "velocity")})
    assert repr(scorer) == "VideoScorer(k=2, sqeuclidean, sigma=2: 120 objects deep, 120 objects velocity)"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"modality": "colour"}, "modality 'colour' is unknown; use one of deep, keypoints, velocity"),
        ({"frame": np.array(["000"])}, r"frame \(1,\): give values"),
        ({"boxes": np.zeros((120, 3))}, r"boxes \(120, 3\)"),
        ({"values": np.zeros(120)}, r"values \(120,\)"),
        ({"values": [["a"]] * 120}, "values: holds"),
        ({"video": ["00"] * 119 + [None]}, "video: 1 of 120 labels are missing"),
        ({"video": ["00"] * 119 + ["9"]}, "video '9' has objects and no list of frames"),
        ({"frames": ["000"]}, "frames is a list"),
    ],
)
def test_objects_that_do_not_fit_together_are_refused_when_made(change, words):
    with pytest.raises(DataError, match=words):
        replace(objects("deep"), **change)


def test_objects_of_lists_are_those_of_arrays():
    whole = objects("deep")
    lists = replace(
        whole,
        values=whole.values.tolist(),
        boxes=whole.boxes.tolist(),
        video=[int(v) for v in whole.video],
        frames={int(v): list(f) for v, f in whole.frames.items()},
    )
    assert (lists.values == whole.values).all() and lists.video[0] == "0" and lists.frames["0"] == whole.frames["00"]
    assert repr(whole) == "ObjectFeatures(deep, 120 objects of 6 dimensions, 120 frames of 4 videos)"
    assert len(replace(whole, values=np.zeros((0, 0)), boxes=np.zeros((0, 4)), video=[], frame=[])) == 0


def test_velocities_say_in_one_sentence_that_they_are_too_much_alike():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = VelocityModel().fit(np.ones((60, 8)))
    assert [w.category for w in caught] == [Notice]
    assert "60 objects hold 1 different value, too few for 5 components" in str(caught[0].message)
    assert repr(model).startswith("VelocityModel(5 components of 8 bins, 60 objects, scores ")
    assert repr(VelocityModel("bic")) == "VelocityModel(n_components='bic', not fitted)"


def test_velocity_models_take_seeds_and_counts_of_numpy_and_tensors():
    x = objects("velocity").values
    expected = VelocityModel(3).fit(x)
    assert VelocityModel(np.int64(3), np.int32(0)).fit(x).sha256 == expected.sha256
    torch = pytest.importorskip("torch")
    assert VelocityModel(3).fit(torch.from_numpy(x).requires_grad_()).sha256 == expected.sha256
    for wrong in (None, np.random.default_rng(0)):
        with pytest.raises(DataError, match="random_state="):
            VelocityModel(3, wrong).fit(x)
    for wrong in (0, True, 2.5, "aic"):
        with pytest.raises(DataError, match="a count or 'bic'"):
            VelocityModel(wrong).fit(x)


def test_tables_where_paths_or_scores_are_expected():
    table = pd.DataFrame({"video": ["a"], "frame": ["0"]})
    with pytest.raises(DataError, match="DataFrame where a path is expected"):
        BoxTable(table)
    for wrong in (table, np.zeros(3), None, b"file"):
        for check in (check_file, check_folder):
            with pytest.raises(DataError, match="where a path is expected"):
                check(wrong)
    for wrong in ("3", None, [1]):
        with pytest.raises(DataError, match=r"k is .*; it must be a finite number"):
            check_number("k", wrong)
    for wrong, words in (
        ({"h": np.zeros(60)}, r"tables\['h'\] is no table with a column score \(ndarray\)"),
        ({"h": table}, r"a column score \(video, frame\)"),
        ({}, "one at least"),
        (table["video"], "tables is a Series"),
    ):
        with pytest.raises(DataError, match=words):
            DriftView(wrong)
