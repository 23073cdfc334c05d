"""The video room beyond its notebooks: fresh processes, damaged features, a pose network, other forms on disk, real
video.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly_nb.calibration.video_config import read_calibration
from anomaly_nb.core.errors import DataError, MissingFileError, Notice
from anomaly_nb.video.boxes import BoxesError
from anomaly_nb.video.clips import make_video_dataset
from anomaly_nb.video.events import say_decision
from anomaly_nb.video.extraction import damaged_videos, extract_videos
from anomaly_nb.video.conversion import convert_pickled, export_frames
from anomaly_nb.video.feature_files import load_object_features, read_feature_index
from anomaly_nb.video.ground_truth import frame_labels
from anomaly_nb.video.layouts import Video, list_videos
from anomaly_nb.video.objects import PoseModel
from anomaly_nb.video.pipeline import (
    calibrate_dataset,
    evaluate_dataset,
    extract_dataset,
    load_decision,
    score_dataset,
    unlike_training,
)
from anomaly_nb.video.plan import plan_for
from anomaly_nb.video.sources import open_source
from anomaly_nb.video.streams import Extraction
from anomaly_nb.video.velocity import VelocityModel
from anomaly_nb.video.watch import watch
from tests.commands import run

DATA = os.environ.get("ANOMALY_NB_DATA", "")
PED2 = Path(DATA) / "video" / "ped2"
needs_ped2 = pytest.mark.skipif(
    not DATA or not PED2.is_dir(), reason="set ANOMALY_NB_DATA to the folder with video/ped2"
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "Small clips, extracted and calibrated; tests copy what they damage."
    home = tmp_path_factory.mktemp("video")
    root = make_video_dataset(home / "clips", n_train=3, intruders=("cyclist",), frames=20)
    plan = plan_for("clips", None, root, home / "features", {"image_size": 32})
    extract_dataset(plan)
    scorer = calibrate_dataset(plan, home / "config.yml")
    return home, plan, scorer


def test_a_fresh_process_reproduces_ranges_and_scores(done, tmp_path):
    home, plan, scorer = done
    code = """
import sys
from anomaly_nb.video.pipeline import calibrate_dataset, score_dataset
from anomaly_nb.video.plan import plan_for
home, out = sys.argv[1:]
plan = plan_for("clips", None, home + "/clips", home + "/features", {"image_size": 32})
score_dataset(plan, home + "/config.yml")[0].to_csv(out + "/scores.csv", index=False)
import dataclasses, pathlib, shutil
shutil.copytree(home + "/features/training", out + "/again/training")
calibrate_dataset(dataclasses.replace(plan, features=pathlib.Path(out) / "again"), out + "/config.yml")
"""
    subprocess.run([sys.executable, "-c", code, str(home), str(tmp_path)], check=True)
    assert score_dataset(plan, home / "config.yml")[0].to_csv(index=False) == (tmp_path / "scores.csv").read_text()
    ours, theirs = read_calibration(home / "config.yml"), read_calibration(tmp_path / "config.yml")
    assert ours.ranges == theirs.ranges == scorer.ranges_
    assert ours.provenance == theirs.provenance


def test_two_training_videos_are_enough_and_one_is_refused_before_anything_is_computed(tmp_path):
    root = make_video_dataset(tmp_path / "clips", n_train=2, intruders=("cyclist",), frames=20)
    plan = plan_for("clips", None, root, tmp_path / "features", {"image_size": 32})
    extract_dataset(plan)
    calibrate_dataset(plan, tmp_path / "c.yml")
    assert len(score_dataset(plan, tmp_path / "c.yml")[0]) == 20 and load_decision(plan, tmp_path / "c.yml")[1].peaks
    objects = load_object_features(plan.features / "training", "deep")
    left = min(int((objects.video != v).sum()) for v in objects.frames)
    wanted = rf"2 training videos with {len(objects)} objects; without 0\d there are {left} left, and {left + 1} neighb"
    before = (tmp_path / "c.yml").read_bytes()
    with pytest.raises(DataError, match=f"{wanted}.*add normal videos.*, or set  k: {left}  under datasets: clips: in "):
        calibrate_dataset(replace(plan, k=left + 1), tmp_path / "c.yml")
    assert (tmp_path / "c.yml").read_bytes() == before
    second = max((root / "training").glob("*/*"))
    shutil.rmtree(second) if second.is_dir() else second.unlink()
    code, _, error = run(
        "score-video", "--all", "--dataset-name", "clips", "--root", root, "--features", tmp_path / "new", "--config",
        tmp_path / "new.yml", "--out", tmp_path / "scores",
    )  # fmt: skip
    assert code and str(error).startswith(f"{root}: 1 training video, and every one is measured against the others; add")
    assert not any((tmp_path / name).exists() for name in ("new", "new.yml", "scores"))


@pytest.mark.parametrize("wrong", [{"k": 1}, {"metric": "cosine"}])
def test_another_k_or_metric_is_refused(done, wrong):
    home, plan, _ = done
    with pytest.raises(DataError, match="was calibrated with"):
        score_dataset(replace(plan, **wrong), home / "config.yml")


def test_another_bank_is_refused(done, tmp_path):
    home, plan, _ = done
    shutil.copytree(plan.features, tmp_path / "features")
    bank = np.load(tmp_path / "features" / "bank" / "deep.npy")
    bank[0, 0] += 1e-3
    np.save(tmp_path / "features" / "bank" / "deep.npy", bank)
    with pytest.raises(DataError, match="bank_deep"):
        score_dataset(replace(plan, features=tmp_path / "features"), home / "config.yml")


@pytest.mark.parametrize("split", ["training", "testing"])
@pytest.mark.parametrize("folder", ["DEEP_FEATURES", "VELOCITIES"])
@pytest.mark.parametrize("renamed", [True, False])
@pytest.mark.parametrize("form", ["videos", "frames"])
def test_a_lost_file_is_an_error_and_never_a_shift(done, tmp_path, split, folder, renamed, form):
    home, plan, _ = done
    shutil.copytree(plan.features, tmp_path / "features")
    if form == "frames":
        shutil.rmtree(tmp_path / "features" / split)
        export_frames(plan.features / split, tmp_path / "features" / split)
        shutil.copy(plan.features / split / "content.json", tmp_path / "features" / split)
    broken = replace(plan, features=tmp_path / "features")
    victim = tmp_path / "features" / split / folder / ("01.npz" if form == "videos" else "01/007.npz")
    victim.rename(victim.with_name("0071.npz")) if renamed else victim.unlink()
    with pytest.raises(MissingFileError, match=victim.name):
        calibrate_dataset(broken, tmp_path / "c.yml") if split == "training" else score_dataset(
            broken, home / "config.yml"
        )


def test_a_damaged_or_pickled_file_is_named(done, tmp_path):
    _, plan, _ = done
    for form, name in (("videos", "01.npz"), ("frames", "01/003.npz")):
        t = tmp_path / form
        shutil.copytree(plan.features / "training", t) if form == "videos" else export_frames(
            plan.features / "training", t
        )
        victim = t / "VELOCITIES" / name
        victim.write_bytes(victim.read_bytes()[:100])
        with pytest.raises(DataError, match=f"{name}: changed since"):
            load_object_features(t, "velocity")
        index = json.loads((t / "index.json").read_text())
        (t / "index.json").write_text(json.dumps(index | {"checksums": {}}))  # from before checksums were kept
        with pytest.raises(DataError, match=f"{name}: damaged"):
            load_object_features(t, "velocity")
        np.savez(
            victim,
            values=np.array([{}], object),
            boxes=np.zeros((1, 4)),
            frames=np.array([{}], object),
            counts=np.zeros(1),
            of=np.zeros(2),
        )
        with pytest.raises(DataError, match="pickled"):
            load_object_features(t, "velocity")


def test_a_json_file_of_another_shape_is_named_in_one_line(done, tmp_path):
    home, plan, _ = done
    shutil.copytree(plan.features, tmp_path / "features")
    copied = replace(plan, features=tmp_path / "features")

    def read_all():
        score_dataset(copied, home / "config.yml")
        _, decision = load_decision(copied, home / "config.yml")
        decision.event(1.0), say_decision(decision, 1.0), unlike_training(copied)
        load_object_features(copied.features / "training", "velocity")
        damaged_videos(copied.features / "training")

    files = sorted(copied.features.rglob("*.json"))
    assert {"index.json", "content.json", "scorer.json", "decision.json", "films.json"} <= {p.name for p in files}
    for path in files:
        whole = path.read_text()
        record = json.loads(whole)
        others = [[], {}, 3, None, "x", [record]]
        for entry in record:
            others += [{k: v for k, v in record.items() if k != entry}]
            others += [record | {entry: other} for other in ([], [[3]], "x", {"x": []}, None, True)]
        wrong = 0
        for other in others:
            path.write_text(json.dumps(other))
            try:
                read_all()
            except (DataError, MissingFileError) as e:
                wrong += 1
                assert "\n" not in str(e) and ";" in str(e), (path.name, other, str(e))
        assert wrong >= 6, (path, wrong)
        path.write_text("[]")
        with pytest.raises(DataError, match=path.name):
            read_all()
        path.write_text(whole)
    read_all()


def test_features_in_the_specified_form_give_the_same_scores_and_an_extraction_goes_on_beside_them(done, tmp_path):
    home, plan, _ = done
    for split in ("training", "testing"):
        export_frames(plan.features / split, tmp_path / "old" / split)
        shutil.copy(plan.features / split / "content.json", tmp_path / "old" / split)
    shutil.copytree(plan.features / "bank", tmp_path / "old" / "bank")
    old = replace(plan, features=tmp_path / "old")
    scores = score_dataset(plan, home / "config.yml")
    assert all(a.equals(b) for a, b in zip(scores, score_dataset(old, home / "config.yml")))
    assert len(list((tmp_path / "old" / "training" / "VELOCITIES").glob("*/*.npz"))) == 60 and not list(
        (tmp_path / "old").glob("*/VELOCITIES/*.npz")
    )
    assert extract_dataset(old).empty  # nothing to do: they are complete
    content = json.loads((tmp_path / "old" / "testing" / "content.json").read_text())
    content["videos"]["01"]["sha256"] = "0" * 64  # another film now
    (tmp_path / "old" / "testing" / "content.json").write_text(json.dumps(content))
    assert not extract_dataset(old).empty
    assert [p.name for p in (tmp_path / "old" / "testing" / "VELOCITIES").iterdir()] == ["01.npz"]
    assert all(a.equals(b) for a, b in zip(scores, score_dataset(old, home / "config.yml")))


def test_a_split_of_other_settings_is_refused(done, tmp_path):
    home, plan, _ = done
    shutil.copytree(plan.features, tmp_path / "f")
    shutil.rmtree(tmp_path / "f" / "testing")
    other = replace(plan, features=tmp_path / "f", extraction=replace(plan.extraction, threshold=30.0))
    extract_videos(list_videos(plan.root, "testing"), tmp_path / "f" / "testing", other.extraction)
    with pytest.raises(DataError, match="different settings"):
        score_dataset(other, home / "config.yml")


def test_film_and_folder_give_the_same_objects(tmp_path):
    import cv2

    root = make_video_dataset(tmp_path / "clips", n_train=1, intruders=(), frames=12)
    video = list_videos(root, "training")[0]
    (tmp_path / "films").mkdir()
    film = cv2.VideoWriter(
        str(tmp_path / "films" / "01.avi"), cv2.VideoWriter_fourcc(*"FFV1"), 10, (160, 96)
    )  # lossless
    for _, image in video:
        film.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    film.release()
    settings = Extraction(min_area=40, backbone="")
    extract_videos([video], tmp_path / "a", settings)
    extract_videos(list_videos(tmp_path / "films"), tmp_path / "b", settings)
    a, b = load_object_features(tmp_path / "a", "velocity"), load_object_features(tmp_path / "b", "velocity")
    assert len(a) > 0
    np.testing.assert_allclose(a.boxes, b.boxes, atol=2)  # the film format keeps colours in fewer bits


@pytest.mark.parametrize("background", ["split", "video", "none"])
def test_backgrounds(tmp_path, background):
    root = make_video_dataset(tmp_path / "clips", n_train=2, intruders=(), frames=10)
    report = extract_videos(
        list_videos(root, "training"), tmp_path / "f", Extraction(min_area=20, background=background, backbone="")
    )
    assert report["frames"] == 20 and read_feature_index(tmp_path / "f")["modalities"] == ["velocity"]
    assert len(load_object_features(tmp_path / "f", "velocity")) > 5


def test_box_height_scaling_and_bins(tmp_path):
    root = make_video_dataset(tmp_path / "clips", n_train=1, intruders=(), frames=6)
    videos = list_videos(root, "training")
    loaded = []
    for i, scaled in enumerate((False, True)):
        extract_videos(
            videos, tmp_path / str(i), Extraction(min_area=40, backbone="", bins=4, box_height_scaling=scaled)
        )
        loaded.append(load_object_features(tmp_path / str(i), "velocity"))
    heights = loaded[0].boxes[:, 2] - loaded[0].boxes[:, 0]
    assert loaded[0].values.shape[1] == 4
    np.testing.assert_allclose(loaded[1].values, loaded[0].values / heights[:, None], rtol=1e-6)


def _onnx_heatmaps() -> bytes:
    "A one-layer network in ONNX form, byte by byte: joint 0 lights up where red is bright, joint 1 where green is."

    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2]) + varint(len(payload)) + payload

    def number(n: int, value: int) -> bytes:
        return bytes([n << 3]) + varint(value)

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def value_info(name: str, shape: tuple) -> bytes:
        dims = b"".join(field(1, number(1, d)) for d in shape)
        return field(1, name.encode()) + field(2, field(1, number(1, 1) + field(2, dims)))

    kernel = struct.pack("<6f", 1, 0, 0, 0, 1, 0)
    weights = b"".join(number(1, d) for d in (2, 3, 1, 1)) + number(2, 1) + field(8, b"w") + field(9, kernel)
    node = (
        field(1, b"x")
        + field(1, b"w")
        + field(2, b"y")
        + field(4, b"Conv")
        + field(5, field(1, b"kernel_shape") + number(8, 1) + number(8, 1) + b"\xa0\x01\x07")
    )
    graph = (
        field(1, node)
        + field(2, b"g")
        + field(5, weights)
        + field(11, value_info("x", (1, 3, 64, 48)))
        + field(12, value_info("y", (1, 2, 64, 48)))
    )
    return number(1, 8) + field(7, graph) + field(8, number(2, 13))


def test_a_pose_network_in_onnx_form(tmp_path):
    (tmp_path / "pose.onnx").write_bytes(_onnx_heatmaps())
    image = np.zeros((100, 100, 3), np.uint8)
    image[30:34, 40:44, 0] = 255  # red
    image[60:64, 55:59, 1] = 255  # green
    joints = PoseModel(tmp_path / "pose.onnx", size=(64, 48))(image, np.array([[20.0, 30, 80, 70]]))
    np.testing.assert_allclose(joints, [[12 / 40, 12 / 60, 27 / 40, 42 / 60]], atol=0.05)


def test_velocities_do_not_depend_on_the_order_of_files():
    rng = np.random.default_rng(0)
    x = rng.gamma(2, 1, size=(800, 8)).astype(np.float32)
    models = [VelocityModel(4).fit(x[rng.permutation(800)]) for _ in range(3)]
    assert len({m.sha256 for m in models}) == 1


@needs_ped2
def test_ped2_is_read_as_published():
    training, testing = list_videos(PED2, "training"), list_videos(PED2, "testing")
    labels = frame_labels(PED2, testing)
    assert (len(training), sum(len(v.frames) for v in training)) == (16, 2550)
    assert (len(testing), sum(len(y) for y in labels.values())) == (12, 2010)
    assert sum(int(y.sum()) for y in labels.values()) == 1648
    assert sorted(v for v, y in labels.items() if y.all()) == ["08", "09", "10", "11"]


@needs_ped2
def test_a_piece_of_ped2_end_to_end(tmp_path):
    "Velocities of a few frames: the bicycle of test video 01 is faster than anybody in training."
    plan = plan_for("ped2", None, PED2, tmp_path, {"backbone": ""})
    shorten = lambda v, step: Video(v.name, v.path, v.frames[::step])
    training, testing = list_videos(PED2, "training")[:4], list_videos(PED2, "testing")[:1]
    empty = [shorten(v, 10) for v in training]
    parts = (
        [Video(v.name, v.path, v.frames[:12]) for v in training],
        [Video(v.name, v.path, v.frames[:10] + v.frames[120:130]) for v in testing],
    )
    for split, videos in zip(("training", "testing"), parts):
        extract_videos(videos, tmp_path / split, plan.extraction, background_from=empty)
    scorer = replace(plan, sigma=0).scorer().fit({"velocity": load_object_features(tmp_path / "training", "velocity")})
    scores = scorer.score({"velocity": load_object_features(tmp_path / "testing", "velocity")})["combined"].to_numpy()
    assert np.median(scores[11:]) > 2 * scores[:10].max()


@needs_ped2
@pytest.mark.skipif(not os.environ.get("ANOMALY_NB_SLOW"), reason="about twenty minutes; set ANOMALY_NB_SLOW=1")
def test_ped2_auroc(tmp_path):
    weights = Path(DATA) / "weights" / "mobilenetv2_100_imagenet.safetensors"
    plan = plan_for(
        "ped2",
        None,
        PED2,
        tmp_path,
        {"backbone": "timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5", "weights": str(weights), "image_size": 224},
    )
    extract_dataset(plan)
    calibrate_dataset(plan, tmp_path / "config.yml")
    table, _ = evaluate_dataset(plan, score_dataset(plan, tmp_path / "config.yml")[0])
    assert table.set_index("scores").loc["combined", "micro"] >= 0.95


def test_boxes_of_a_table_complete_the_objects(tmp_path):
    "Somebody who stands still is an object where a table says so; another table is another extraction."
    root = make_video_dataset(tmp_path / "clips", n_train=2, intruders=("cyclist",), frames=8)
    videos = list_videos(root, "training")
    corners = "video,frame,x_min,y_min,x_max,y_max\n"
    rows = [f"{v.name},{f},2,3,30,40" for v in videos for f in v.frames]
    table = tmp_path / "boxes.csv"
    table.write_text(corners + "\n".join(rows))
    settings = Extraction(backbone="", detector=str(table))
    extract_videos(videos, tmp_path / "with", settings)
    extract_videos(videos, tmp_path / "without", Extraction(backbone=""))
    more, plain = (load_object_features(tmp_path / name, "velocity") for name in ("with", "without"))
    standing = (more.boxes == [3, 2, 40, 30]).all(1)
    assert standing.sum() == sum(len(v.frames) for v in videos) and not (plain.boxes == [3, 2, 40, 30]).all(1).any()
    assert len(more) >= len(plain)  # what moves and is not covered stays
    table.write_text(corners + "\n".join(r.replace(",30,40", ",31,40") for r in rows))
    with pytest.raises(DataError, match="made with other settings \\(detector"):
        extract_videos(videos, tmp_path / "with", settings)
    table.write_text(corners + "\n".join([*rows, f"{videos[0].name},000999,2,3,30,40"]))
    with pytest.warns(Notice, match="has no frame '000999'"):
        report = extract_videos(videos, tmp_path / "odd", settings)
    assert list(report["failed"]) == [videos[0].name]
    # a table that fits no film is to blame itself, and is looked at again once it is mended
    table.write_text(corners + "\n".join(f"{v.name},x{f},2,3,30,40" for v in videos for f in v.frames))
    with pytest.warns(Notice), pytest.raises(BoxesError, match=r"boxes.csv, line 2: video \w+ has no frame 'x0"):
        extract_videos(videos, tmp_path / "wrong", settings)
    # numbers, as detectors write them, give the same objects as names
    table.write_text(corners + "\n".join(f"{v.name},{int(f)},2,3,30,40" for v in videos for f in v.frames))
    extract_videos(videos, tmp_path / "numbers", settings)
    assert np.array_equal(load_object_features(tmp_path / "numbers", "velocity").boxes, more.boxes)


def test_scores_along_tracks_have_thresholds_of_their_own(done, tmp_path):
    home, plan, _ = done
    along = replace(plan, track_sigma=2.0, bank=tmp_path / "bank")
    calibrate_dataset(along, tmp_path / "config.yml")
    _, objects = score_dataset(along, tmp_path / "config.yml")
    _, plain = score_dataset(plan, home / "config.yml")
    assert "track" in objects and objects["raw"].equals(plain["raw"]) and not objects["score"].equals(plain["score"])
    assert (
        objects.groupby(["modality", "video"])["score"]
        .max()
        .le(plain.groupby(["modality", "video"])["score"].max() + 1e-9)
        .all()
    )
    assert load_decision(along, tmp_path / "config.yml")[1].made_with
    with pytest.raises(DataError, match="was made with other banks, weights or smoothing"):
        load_decision(replace(along, track_sigma=0.0), tmp_path / "config.yml")
    with pytest.raises(DataError, match="track_sigma=2: tracks are smoothed once a film is whole"):
        next(watch(along, open_source(str(list_videos(plan.root, "testing")[0].path)), tmp_path / "config.yml"))


@pytest.mark.parametrize("bins", [1, 2, 8, 9])
def test_velocity_scores_are_the_same_bits_in_any_batch_and_from_disk(tmp_path, bins):
    rng = np.random.default_rng(bins)
    x, y = rng.gamma(2, 0.3, (700, bins)), rng.gamma(2, 0.6, (333, bins))
    model = VelocityModel(4).fit(x)
    whole = model.score(y)
    np.testing.assert_allclose(whole, -model.mixture_.score_samples(y), rtol=1e-11)
    for size in (1, 2, 5, 64, 332):
        assert np.array_equal(model.score(y, size), whole)
    assert np.array_equal(np.concatenate([model.score(row[None]) for row in y]), whole)
    loaded = VelocityModel.load(model.save(tmp_path / "v.npz"))
    assert np.array_equal(loaded.mixture_.precisions_cholesky_, model.mixture_.precisions_cholesky_)
    assert np.array_equal(loaded.score(y), whole) and loaded.sha256 == model.sha256


@pytest.mark.parametrize(
    "box, words",
    [
        ([1, 1, 1, 5.0], "boxes, frame 1: box 1 1 1 5 has no area; give y1 x1 y2 x2 with y1 < y2 and x1 < x2"),
        ([5, 5, 1, 1.0], "boxes, frame 1: box 5 5 1 1 has no area"),
        ([0, 0, 1e200, 1e200], r"boxes, frame 1: box 0 0 1e\+200 1e\+200 has no area"),
        ([0, 0, np.nan, 5.0], "boxes, frame 1: .*NaN"),
        ([0, 0, 1.0], r"boxes, frame 1: has shape \(1, 3\)"),
    ],
)
def test_boxes_without_an_area_are_refused_by_name(box, words):
    from anomaly_nb.video.detection import detection_curve
    from anomaly_nb.video.tracks import SIDES, link_boxes, track_objects

    with pytest.raises(DataError, match=words):
        link_boxes([[[1, 1, 2, 5.0]], [box]])
    if len(box) != 4:
        return
    boxes = pd.DataFrame([[1, 1, 2, 5.0], box], columns=SIDES)
    objects = boxes.assign(modality="deep", video="01", frame=["0", "1"], score=1.0)
    with pytest.raises(DataError, match="deep of video 01: " + words):
        track_objects(objects, {"01": ("0", "1")})
    with pytest.raises(DataError, match="tracks: "):
        detection_curve(boxes.assign(video="01", track="a", frame=["0", "1"]), objects, 2)


@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (2, 6), (8,)])
def test_pickled_objects_with_boxes_of_another_number_are_refused(tmp_path, shape):
    (tmp_path / "d" / "01").mkdir(parents=True)
    entry = {"velocities": np.ones((2, 8)), "boxes": np.ones(shape)}
    np.save(tmp_path / "d" / "01" / "000.npy", entry, allow_pickle=True)
    with pytest.raises(DataError, match=r"d 01/000: 2 objects and boxes of shape .*; give each object its box"):
        convert_pickled(tmp_path / "d", tmp_path / "out", "velocity", trust=True, extractor="net")
