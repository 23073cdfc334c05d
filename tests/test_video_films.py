"""Films as people have them: whole, cut, empty, mislabelled, rotated, of every container; each is right or named, and
the others go on.
"""

import json
import os
import struct
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from anomaly_nb.cli.main import app, main
from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.core.files import write_text
from anomaly_nb.video.clips import make_clip, make_video_dataset
from anomaly_nb.video.boxes import BoxesError
from anomaly_nb.video.extraction import check_extracted, damaged_videos, extract_videos
from anomaly_nb.video.feature_files import load_object_features
from anomaly_nb.video.layouts import FILMS, list_videos, probe_film, read_split
from anomaly_nb.video.pipeline import (
    calibrate_dataset,
    dataset_videos,
    extract_dataset,
    frames_per_second,
    load_decision,
    mark_incomplete,
)
from anomaly_nb.video.plan import VideoPlan, check_boxes, plan_for
from anomaly_nb.video.streams import Extraction

cv2 = pytest.importorskip("cv2")
N = 30  # frames of a whole film


def film(path: Path, codec: str = "mp4v", frames: int = N, seed: int = 0, intruder: str | None = None) -> Path:
    "A drawn clip as a video file."
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (96, 64))
    for image in make_clip(intruder, max(frames, 8), (64, 96), random_state=seed)[0][:frames]:
        writer.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def damaged(path: Path) -> Path:
    "A tenth of its bytes, from 40 % on, are zero."
    content = bytearray(path.read_bytes())
    start, length = len(content) * 4 // 10, len(content) // 10
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return path


def rotated(path: Path) -> Path:
    "As a phone held upright marks it: the header says by how much it is to be rotated."
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 44
    content[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(content)
    return path


def sound(path: Path) -> Path:
    "A film without a frame."
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(8000)
        w.writeframes(bytes(4000))
    return path


def eight(root: Path) -> Path:
    "Two training films and the eight of a person."
    for i in (1, 2):
        film(root / "training" / "videos" / f"{i}.mp4", seed=i)
    folder = root / "testing" / "videos"
    film(folder / "1_good.mp4", seed=3, intruder="cyclist")
    cut = film(folder / "2_cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-2000])
    write_text(folder / "3_text.mp4", "no film\n" * 500)
    sound(folder / "4_sound.mp4")
    damaged(film(folder / "5_damaged.mp4", seed=4))
    rotated(film(folder / "6_phone.mp4", seed=5))
    film(folder / "7_web.webm", "VP80", seed=6)
    film(folder / "8_one.mp4", frames=1)
    return root


def test_eight_films_go_through_score_with_one_line_for_each_that_was_not_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = eight(tmp_path / "data")
    write_text(tmp_path / "config.yml", 'datasets: {clips: {extraction: {backbone: ""}}}\n')  # velocities alone: quick
    result = CliRunner().invoke(
        app, ["score-video", "--dataset-name", "clips", "--root", str(root), "--all", "--out", "out"]
    )
    assert result.exit_code == 3, result.output
    first = result.output.splitlines()[0]
    assert " of 5 videos, 5 of 8 videos not whole; at most " in first and "false events a normal hour" in first
    for line in (
        "5_damaged: is incomplete: ",
        "8_one: has one frame, which shows no motion; too short for a decision on events",
        "2_cut.mp4: was cut off before its index",
        "3_text.mp4: is text and no film",
        "4_sound.mp4: holds sound and no image",
    ):
        assert result.output.count(line) == 1, (line, result.output)
    told = [line for line in result.output.splitlines() if " peak " not in line]  # events apart
    assert not any(f"{name}:" in line for line in told for name in ("1_good", "6_phone", "7_web.webm"))
    frames = pd.read_csv(tmp_path / "out" / "frame_scores.csv", keep_default_na=False)
    counts = frames.groupby("video").size().to_dict()
    read = counts.pop("5_damaged")
    assert counts == {"1_good": N, "6_phone": N, "7_web": N, "8_one": 1} and 0 < read < N - 2
    for table in ("frame_scores.csv", "objects.csv"):
        marked = pd.read_csv(tmp_path / "out" / table, keep_default_na=False)
        assert set(marked.loc[marked["incomplete"] != "", "video"]) <= {"5_damaged", "8_one"}
        assert "5_damaged" in set(marked.loc[marked["incomplete"] != "", "video"])
    assert set(frames.loc[frames["incomplete"] != "", "video"]) == {"5_damaged", "8_one"}
    assert "8_one" not in set(pd.read_csv(tmp_path / "out" / "events.csv")["video"])
    videos = pd.read_csv(tmp_path / "out" / "videos.csv", keep_default_na=False).set_index("video")
    assert (
        list(videos.index[~videos["complete"]]) == ["5_damaged", "8_one", "2_cut.mp4", "3_text.mp4", "4_sound.mp4"]
        and len(videos) == 8
    )
    assert f"{read} frames could be read, its header says {N}" in videos.loc["5_damaged", "note"]


def test_a_film_without_labels_is_drawn_by_the_report_and_the_explorer(tmp_path):
    from anomaly_nb.reports import run_report
    from anomaly_nb.video.view import VideoView

    root = tmp_path / "data"
    for i in range(3):
        film(root / "training" / "videos" / f"{i}.avi", "MJPG", seed=i)
    for name in ("01", "02"):
        whole = film(root / "testing" / "videos" / f"{name}.avi", "MJPG", seed=7, intruder="cyclist")
    (root / "testing" / "test_frame_mask").mkdir()
    for name in ("01", "02"):
        labels = make_clip("cyclist", N, (64, 96), random_state=7)[1].any((1, 2))
        np.save(root / "testing" / "test_frame_mask" / f"{name}.npy", labels.astype(np.uint8))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    plan = plan_for("clips", None, root, None, {"backbone": ""}, tmp_path / "features")
    with pytest.warns(Notice, match="02.avi"):
        view = VideoView(plan)
    assert set(view.labels) == {"01"} and set(view.videos) == {"01", "02"}
    opened = view.state(video="02")
    assert "truly" in view.describe(view.state(video="01")) and "truly" not in view.describe(opened)
    now = view.draw(opened)[1].set_index("metric").now
    assert now["true positives, frames"].endswith(f" of {labels.sum()}")
    parameters = {"dataset": "clips", "root": str(root), "backbone": "", "cache": str(tmp_path / "features")}
    run = run_report("video_calibration", parameters, tmp_path / "figures", gallery=False)
    assert run.status == "ok" and "micro" in dict(run.metrics)


def test_where_no_film_can_be_read_each_is_named_once_and_the_code_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "config.yml", 'datasets: {clips: {fps: 10, extraction: {backbone: ""}}}\n')
    for i in range(4):
        folder = tmp_path / "data" / ("training" if i < 2 else "testing") / "frames" / f"0{i}"
        folder.mkdir(parents=True)
        for n, image in enumerate(make_clip(None, 12, (64, 96), random_state=i)[0]):
            Image.fromarray(image).save(folder / f"{n:03d}.png")
    for image in (tmp_path / "data/testing/frames").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:200])
    write_text(tmp_path / "data/testing/frames/04.mp4", "no film\n" * 500)
    words = ["score-video", "--dataset-name", "clips", "--root", "data", "--out", "out", "--features", "f"]
    for more in (["--all"], []):  # the second time without reading them again
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 1 and result.output.startswith("clips: no video could be read\n"), result.output
        none = "none of its frames can be read, the first: 000.png: damaged"
        for line in (f"02: {none}", f"03: {none}", "04.mp4: is text and no film"):
            assert result.output.count(line) == 1 and "frames/0" not in result.output
        table = pd.read_csv(tmp_path / "out/videos.csv")
        assert len(table) == 3 and not table["scored"].any() and table["note"].notna().all()
    for image in (tmp_path / "data/training/frames").rglob("*.png"):
        image.write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--all", "--features", "g"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count(f"00: {none}") == 1 == err.count(f"01: {none}"), err


@pytest.mark.parametrize(
    "name, codec",
    [
        ("a.mp4", "mp4v"),
        ("a.MP4", "mp4v"),
        ("a.m4v", "mp4v"),
        ("a.mov", "mp4v"),
        ("a.avi", "MJPG"),
        ("a.mkv", "FFV1"),
        ("a.webm", "VP80"),
        ("a.ts", "mpg2"),
        ("a.wmv", "WMV2"),
        ("a.flv", "FLV1"),
    ],
)
def test_every_container_is_found_and_half_of_it_is_no_film_or_an_incomplete_one(tmp_path, name, codec):
    path = film(tmp_path / name, codec)
    if not path.exists():
        pytest.skip(f"this OpenCV cannot write {codec}")
    video = list_videos(tmp_path)[0]
    assert (len(video.frames), video.complete, video.note, video.fps) == (N, True, "", 10.0) and probe_film(
        path
    ).size == (64, 96)
    assert next(iter(video))[1].shape == (64, 96, 3) and Path(name).suffix.lower() in FILMS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    try:
        half = read_split(tmp_path)[0][0]
    except DataError as e:
        assert "was cut off before its index" in str(e)
    else:
        assert len(half.frames) < N and (
            not half.complete or half.note or codec == "mpg2"
        )  # a transport stream has no header to disagree with


@pytest.mark.parametrize(
    "name, codec",
    [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "FFV1"), ("a.webm", "VP80"), ("a.ts", "mpg2"), ("a.wmv", "WMV2")],
)
def test_a_frame_is_found_without_decoding_from_the_start(tmp_path, monkeypatch, name, codec):
    from anomaly_nb.video import layouts

    path = film(tmp_path / name, codec, frames=80, intruder="cyclist")
    if not path.exists():
        pytest.skip(f"this OpenCV cannot write {codec}")
    video, decoded, read = list_videos(tmp_path)[0], [], layouts._read_film
    images = dict(video)
    monkeypatch.setattr(layouts, "_read_film", lambda path, n: decoded.append(n) or read(path, n))
    for number in (0, 5, 17, 33, 34, 60, 79, 78, 40):
        assert np.array_equal(video.image(f"{number:06d}"), images[f"{number:06d}"]), number
    assert [n for n in decoded if n > 17] == [] or codec in ("mpg2", "WMV2")  # they may have no times of their own
    known = probe_film(path)
    monkeypatch.setattr(
        layouts, "probe_film", lambda path: replace(known, times=known.times[::-1])
    )  # times that tell nothing
    assert np.array_equal(video.image("000050"), images["000050"]) and decoded[-1] == 51


@pytest.mark.parametrize("missing, complete", [(0, True), (2, True), (3, False)])
def test_declared_and_decoded_frames_agree_within_the_tolerance(tmp_path, missing, complete):
    path = film(tmp_path / "a.avi", "MJPG")
    content = bytearray(path.read_bytes())
    for place in (
        content.find(b"avih") + 8 + 16,
        content.find(b"strh") + 8 + 32,
    ):  # number of frames, length of the stream
        content[place : place + 4] = struct.pack("<I", N + missing)
    path.write_bytes(content)
    found = probe_film(path)
    assert (found.frames, found.declared, found.complete) == (N, N + missing, complete)
    assert complete or found.note == f"is incomplete: {N} frames could be read, its header says {N + missing}"


def test_a_turned_film_is_upright_and_seen_against_its_own_background(tmp_path):
    root = tmp_path / "data"
    for i in (1, 2):
        film(root / "training" / "videos" / f"{i}.mp4", seed=i)
    rotated(film(root / "testing" / "videos" / "phone.mp4", seed=3))
    video = list_videos(root, "testing")[0]
    assert (
        probe_film(video.path).size == (96, 64)
        and probe_film(video.path).rotation in (90, 270)
        and next(iter(video))[1].shape == (96, 64, 3)
    )
    report = extract_videos(
        [video], tmp_path / "f", Extraction(min_area=20, backbone=""), background_from=list_videos(root, "training")
    )
    assert report["frames"] == N and not report["failed"] and len(load_object_features(tmp_path / "f", "velocity")) > N


def test_a_folder_of_frames_that_change_their_size_or_are_damaged_is_named_and_the_rest_goes_on(tmp_path):
    from PIL import Image

    for name in ("1", "2", "3"):
        (tmp_path / "v" / name).mkdir(parents=True)
        for t, image in enumerate(make_clip(None, 8, (64, 96), random_state=int(name))[0]):
            Image.fromarray(image).save(tmp_path / "v" / name / f"{t}.png")
    Image.fromarray(np.zeros((32, 96), np.uint8)).save(tmp_path / "v" / "2" / "5.png")
    (tmp_path / "v" / "3" / "6.png").write_bytes(b"\x89PNG")
    videos = list_videos(tmp_path / "v")
    with pytest.warns(Notice) as notes:
        report = extract_videos(videos, tmp_path / "f", Extraction(min_area=20, backbone=""))
    assert report["videos"] == 3 and not report["failed"]
    said = damaged_videos(tmp_path / "f")
    assert set(said) == {"2", "3"} and said["3"].startswith("skipped: 6.png: ")
    assert said["2"].startswith("skipped: 5.png: is 96 x 32 pixels, and the frames beside it are 96 x 64; it keeps")
    assert all("keeps its place in time" in words for words in said.values())
    assert [str(n.message).split(": ")[0] for n in notes] == [str(tmp_path / "v" / "2"), str(tmp_path / "v" / "3")]
    features = load_object_features(tmp_path / "f", "velocity")
    assert check_extracted(tmp_path / "f", videos) == {} and set(features.video) == {"1", "2", "3"}
    for video, name in ((1, "5"), (2, "6")):
        video = videos[video]
        assert features.frames[video.name] == video.frames and name not in features.frame[features.video == video.name]
    for image in (tmp_path / "v" / "3").iterdir():
        image.write_bytes(b"\x89PNG")
    words = "v: holds no video that can be read: 3: none of its frames can be read, the first: 0.png"
    with pytest.raises(DataError, match=words), pytest.warns(Notice):
        extract_videos(videos[2:], tmp_path / "2", Extraction(min_area=20, backbone=""))


@pytest.mark.parametrize("odd", [(0,), (7,), (0, 1, 2)])
def test_frames_of_another_size_than_most_are_skipped_wherever_they_are(tmp_path, odd):
    (tmp_path / "v" / "1").mkdir(parents=True)
    for t, image in enumerate(make_clip("cyclist", 8, (64, 96), random_state=1)[0]):
        Image.fromarray(image[:32] if t in odd else image).save(tmp_path / "v" / "1" / f"{t}.png")
    with pytest.warns(Notice, match=f"{odd[0]}.png: is 96 x 32 pixels, and the frames beside it are 96 x 64"):
        extract_videos(list_videos(tmp_path / "v"), tmp_path / "f", Extraction(min_area=20, backbone=""))
    features = load_object_features(tmp_path / "f", "velocity")
    assert len(features.frames["1"]) == 8 and set(features.frame).isdisjoint(map(str, odd)) and len(features)


@pytest.mark.parametrize("damage", [(0,), (9,), (14,), (4, 5, 9, 29)])
@pytest.mark.parametrize("backbone", ["", "filters"])
def test_a_damaged_image_changes_no_other_frame_than_its_neighbours(tmp_path, damage, backbone):
    "Neither places nor velocities: no motion is measured across the gap."
    images = make_clip("cyclist", N, (64, 96), random_state=2)[0]
    for name in ("whole", "damaged"):
        (tmp_path / "v" / name).mkdir(parents=True)
        for t, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "v" / name / f"{t:02d}.png")
    for t in damage:
        (tmp_path / "v" / "damaged" / f"{t:02d}.png").write_bytes(b"")
    settings = Extraction(min_area=20, backbone=backbone, background="none" if not backbone else "split", bins=1)
    with pytest.warns(Notice, match=r"skipped"):
        extract_videos(list_videos(tmp_path / "v"), tmp_path / "f", settings)
    for modality in settings.modalities:
        f = load_object_features(tmp_path / "f", modality)
        assert f.frames["whole"] == f.frames["damaged"]
        for t, name in enumerate(f.frames["whole"]):
            a, b = (f.values[(f.video == v) & (f.frame == name)] for v in ("whole", "damaged"))
            if t in damage:
                assert len(b) == 0
            elif t - 1 not in damage or (modality == "deep" and backbone):
                assert np.array_equal(a, b), (modality, name)
            else:
                assert not len(b) or b.max() < 2 * max(a.max() if len(a) else 0, 2.0), (modality, name)


def test_a_damaged_image_costs_no_film_of_score_and_no_end_of_a_watch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video_dataset(tmp_path / "clips", n_train=3, intruders=("runner", None), frames=N)
    write_text(tmp_path / "config.yml", 'datasets: {clips: {extraction: {backbone: ""}}}\n')
    (tmp_path / "clips/testing/frames/01/012.png").write_bytes(b"\x89PNG")
    (tmp_path / "clips/training/frames/02/003.png").write_bytes(b"")
    for image in (tmp_path / "clips/testing/frames/01").iterdir():
        os.utime(image, (1, 1))  # nobody writes them any more
    say = lambda *words: CliRunner().invoke(app, ["video", *words, "--dataset-name", "clips", "--root", "clips"])
    result = say("score", "--all", "--out", "out", "--false-alarms-per-hour", "400")
    assert result.exit_code in (3, 4), result.output
    for name in ("01: skipped: 012.png", "02: skipped: 003.png"):
        assert result.output.count(name) == 1, result.output
    assert "1 of 2 videos not whole" in result.output
    scores = pd.read_csv(tmp_path / "out" / "frame_scores.csv", dtype=str, keep_default_na=False)
    incomplete = scores.groupby("video")["incomplete"].first() != ""
    assert (scores["video"] == "01").sum() == N and incomplete.tolist() == [True, False]
    result = say("render", "--out", "films", "--false-alarms-per-hour", "400")
    assert result.exit_code == 0 and probe_film(next((tmp_path / "films").glob("01.*"))).frames == N, result.output
    source = "clips/testing/frames/01"
    with pytest.warns(Notice, match=r"012.png: skipped: .*it keeps its place in time"):
        result = say("watch", source, "--until-idle", "0.5", "--no-clips", "--false-alarms-per-hour", "400")
    assert result.exit_code == 0 and f"{N} frames" in result.stderr and "1 damaged" in result.stderr, result.output
    events = pd.read_csv(tmp_path / "out" / "events.csv", dtype={"video": str, "first": str})
    closed = [e for e in map(json.loads, result.stdout.splitlines()) if e["state"] == "closed"]
    here = events[events["video"] == "01"]
    assert len(here) and [(e["first"], e["start"]) for e in closed] == list(zip(here["first"], here["start"]))


@pytest.mark.parametrize("first", ["quiet_opencv()", 'require("cv2", "video")'])
def test_ffmpeg_is_silent_also_where_something_else_uses_it_first(tmp_path, first):
    write_text(tmp_path / "bad.mp4", "no film\n" * 200)
    code = f"""
import sys
from anomaly_nb.core.errors import require
from anomaly_nb.video.layouts import open_film, quiet_opencv
cv2 = {first}
cv2.VideoWriter(sys.argv[1] + "/x.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32)).release()
open_film(sys.argv[1] + "/bad.mp4").read()
from pathlib import Path
from anomaly_nb.video.render import film_writer
with film_writer(Path(sys.argv[1]), "clip", 10, (32, 32)):
    pass
"""
    variables = {name: value for name, value in os.environ.items() if name != "OPENCV_FFMPEG_LOGLEVEL"}
    result = subprocess.run([sys.executable, "-c", code, tmp_path], env=variables, capture_output=True, text=True)
    assert result.stderr == "", result.stderr


def test_what_is_no_video_is_named(tmp_path):
    film(tmp_path / "1.mp4")
    film(tmp_path / "clip.rmvb.mp4", frames=8)
    (tmp_path / "clip.rmvb.mp4").rename(tmp_path / "2.rmvb")
    (tmp_path / "3").mkdir()
    (tmp_path / "4" / "01").mkdir(parents=True)
    (tmp_path / "5.png").touch()
    write_text(tmp_path / "labels.csv", "a")
    (tmp_path / ".hidden.mp4").touch()
    (tmp_path / "6.mp4").touch()
    with pytest.warns(Notice) as notes:
        assert [v.name for v in list_videos(tmp_path)] == ["1"]
    said = {str(n.message).split(": ")[0].rsplit("/", 1)[1]: str(n.message).split(": ", 1)[1] for n in notes}
    assert list(said) == ["2.rmvb", "3", "4", "5.png", "6.mp4"]
    assert (
        "no film of a known type" in said["2.rmvb"]
        and "no frames" in said["3"]
        and "holds folders" in said["4"]
        and "image in no video" in said["5.png"]
        and "is empty" in said["6.mp4"]
    )


def test_films_in_folders_of_the_videos_folder_are_said_to_be_films(tmp_path):
    film(tmp_path / "videos" / "good.mp4")
    film(tmp_path / "videos" / "a" / "x.mp4")
    film(tmp_path / "videos" / "a" / "y.mp4")
    (tmp_path / "videos" / "b").mkdir()
    videos, skipped = read_split(tmp_path / "videos")
    said = {p.name: why for p, why in skipped.items()}
    assert [v.name for v in videos] == ["good"] and said["b"] == "holds no frames"
    assert said["a"].startswith(f"holds 2 films, the first x.mp4; put films directly into videos{os.sep}, ")


def test_two_forms_of_a_split_must_hold_the_same_videos(tmp_path):
    film(tmp_path / "testing" / "videos" / "1.mp4", frames=4)
    film(tmp_path / "testing_videos" / "1.avi", "MJPG", frames=4)
    assert len(list_videos(tmp_path, "testing")) == 1
    film(tmp_path / "testing_videos" / "2.avi", "MJPG", frames=4)
    with pytest.raises(DataError, match=r"do not hold the same videos \(2 is in one alone\)"):
        list_videos(tmp_path, "testing")


def test_incomplete_rows_are_marked_by_video():
    videos = pd.DataFrame({"video": ["01", "1"], "complete": [True, False], "note": ["one frame", "cut"]})
    assert mark_incomplete(pd.DataFrame({"video": ["01", "1", "01"]}), videos)["incomplete"].tolist() == ["", "cut", ""]
    assert dataset_videos(plan_for("clips", None, features="x")).empty


# ---------------------------------------------------------------------------------- films unlike those of the calibration
def resized(path: Path, size: tuple[int, int], fps: float = 10, codec: str = "mp4v") -> Path:
    "The same clip in another frame size (width, height), at another rate or by another codec."
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size)
    for image in make_clip(None, N, (64, 96), random_state=7)[0]:
        writer.write(cv2.cvtColor(cv2.resize(image, size), cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    "Two normal films of 96 x 64 pixels, 10 frames a second, and a calibration made on them."
    home = tmp_path_factory.mktemp("yard")
    for i in range(2):
        film(home / "yard" / "training" / "videos" / f"{i}.mp4", seed=i)
    film(home / "yard" / "testing" / "videos" / "same.mp4", seed=5)
    config = "datasets:\n  yard: {root: yard, extraction: {image_size: 32, min_area: 20}}\n"
    write_text(home / "config.yml", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        first = CliRunner().invoke(app, ["score-video", "--dataset-name", "yard", "--all", "--out", "first"])
        assert first.exit_code in (0, 3), first.output
        yield home, first.output


def score(home: Path, *films: Path) -> str:
    "What `score-video` says of one more film."
    result = CliRunner().invoke(app, ["score-video", "--dataset-name", "yard", "--all", "--out", "next"])
    for path in films:
        path.unlink()
    assert result.exit_code in (0, 3, 4), (result.output, result.exception)
    return result.output


def test_films_like_the_normal_ones_are_not_noted(calibrated):
    assert "unlike" not in calibrated[1]


@pytest.mark.parametrize(
    ("size", "fps", "codec", "says"),
    [
        ((128, 96), 10, "mp4v", "frame size 128 x 96 (1), calibrated on 96 x 64 (2)"),
        ((64, 96), 10, "mp4v", "frame size 64 x 96 (1), calibrated on 96 x 64 (2)"),
        ((96, 64), 25, "mp4v", "frames a second 25 (1), calibrated on 10 (2)"),
        ((96, 64), 1, "mp4v", "frames a second 1 (1), calibrated on 10 (2)"),
        ((96, 64), 10, "MJPG", "codec MJPG (1), calibrated on FMP4 (2)"),
    ],
)
def test_a_film_unlike_the_normal_ones_is_noted_in_one_line(calibrated, size, fps, codec, says):
    home, _ = calibrated
    odd = resized(home / "yard" / "testing" / "videos" / f"odd.{'avi' if codec == 'MJPG' else 'mp4'}", size, fps, codec)
    lines = [line for line in score(home, odd).splitlines() if "unlike" in line]
    assert len(lines) == 1 and lines[0].startswith("note: 1 video is unlike all that it was calibrated on, odd (")
    assert says in lines[0]


def test_hours_of_normal_film_are_those_of_each_film_by_its_own_clock(tmp_path):
    for i, fps in enumerate((10, 40, 40)):
        resized(tmp_path / "yard" / "training" / "videos" / f"{i}.mp4", (96, 64), fps)
    film(tmp_path / "yard" / "testing" / "videos" / "same.mp4")
    plan = VideoPlan("yard", tmp_path / "features", tmp_path / "yard", Extraction(backbone="", min_area=20))
    extract_dataset(plan)
    calibrate_dataset(plan, tmp_path / "config.yml")
    _, decision = load_decision(plan, tmp_path / "config.yml")
    seconds = [3600 * hours for hours in (decision.hours, *(f.hours for f in decision.films))]
    assert decision.fps == 40 and seconds == pytest.approx([N / 10 + 2 * N / 40, N / 10, N / 40, N / 40])


def test_several_films_are_counted_in_one_line(calibrated):
    home, _ = calibrated
    folder = home / "yard" / "testing" / "videos"
    odd = [resized(folder / f"x{i}.mp4", (128, 96), 10 * i) for i in (1, 2, 3)]
    (line,) = (line for line in score(home, *odd).splitlines() if "unlike" in line)
    assert "3 videos are unlike all that it was calibrated on (frame size 128 x 96 (3)" in line
    assert "), the first x1; scores may show the film" in line  # the bracket describes all of them
    assert "frames a second 20 (1), 30 (1), calibrated on 10 (2)" in line


def test_a_source_that_is_watched_is_compared_too(calibrated):
    from anomaly_nb.video.sources import open_source
    from anomaly_nb.video.watch import watch

    home, _ = calibrated
    plan = plan_for("yard", home / "config.yml")
    odd = resized(home / "camera.mp4", (128, 96), 25)
    with pytest.warns(Notice, match=r"frame size 128 x 96 \(1\), calibrated on 96 x 64 \(2\); frames a second 25"):
        list(watch(plan, open_source(str(odd)), home / "config.yml"))


def test_a_calibration_from_before_this_was_kept_notes_nothing(calibrated):
    from anomaly_nb.video.pipeline import FILMS, unlike_training

    home, _ = calibrated
    odd = resized(home / "yard" / "testing" / "videos" / "odd.mp4", (128, 96))
    plan = plan_for("yard", home / "config.yml")
    assert "frame size" in unlike_training(plan)
    (record,) = (home / "data").rglob(FILMS)
    content = record.read_bytes()
    record.unlink()
    assert unlike_training(plan) == ""
    record.write_bytes(content)
    odd.unlink()


def test_a_film_that_was_cut_off_is_said_by_watch_as_by_score(calibrated, tmp_path):
    cut = tmp_path / "cut.avi"
    resized(cut, (96, 64), codec="MJPG")
    whole = probe_film(cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    result = CliRunner().invoke(app, ["video", "watch", str(cut), "--dataset-name", "yard", "--no-clips"])
    assert result.exit_code == 4 and f"is incomplete: {probe_film(cut).frames} frames" in result.stderr, result.output
    assert probe_film(cut).frames < whole.frames
    assert "4 the film was not whole" in CliRunner().invoke(app, ["video", "watch", "--help"]).output


def test_a_raw_stream_says_no_rate_and_the_one_of_the_config_is_in_the_table(tmp_path):
    cv2 = pytest.importorskip("cv2")
    images = [cv2.imencode(".jpg", np.full((64, 96, 3), 9 * i, np.uint8))[1].tobytes() for i in range(12)]
    for split in ("training", "testing"):
        (tmp_path / split / "videos").mkdir(parents=True)
        (tmp_path / split / "videos" / "raw.mjpeg").write_bytes(b"".join(images))
    film_read = list_videos(tmp_path, "testing")[0]
    assert film_read.fps is None and "says no frame rate: fps of the config" in film_read.note
    plan = VideoPlan("own", tmp_path / "features", tmp_path, Extraction(backbone=""), fps=25)
    assert frames_per_second(VideoPlan("own", root=tmp_path)) is None
    extract_videos(list_videos(tmp_path, "testing"), tmp_path / "features" / "testing", plan.extraction)
    assert dataset_videos(plan)["fps"].tolist() == [25]


def test_an_unknown_setting_is_named_with_its_file_and_as_the_file_writes_it(tmp_path, capsys):
    write_text(tmp_path / "own.yml", "datasets: {yard: {root: yard, extraction: {detectr: boxes.csv}}}\n")
    with pytest.raises(SystemExit) as end:
        main(["video", "score", "--dataset-name", "yard", "--config", str(tmp_path / "own.yml")])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "own.yml: datasets.yard.extraction: unknown setting 'detectr'" in said
    assert " image_size," in said and "--image-size" not in said, said


def test_labels_and_captions_are_not_cut_at_the_edges():
    from anomaly_nb.video.render import write_line

    lines = ((480, "velocity 984.3", (470, 12)), (360, "x" * 90, (4, 29)), (120, "velocity 98434.3", (90, 12)))
    for width, line, at in lines:
        canvas = np.zeros((40, width, 3), np.uint8)
        start, end = write_line(canvas, line, at, 0.4, (255, 255, 255))
        assert 0 <= start < end <= width and canvas[:, -2:].max() == 0 and canvas[-1].max() == 0 and canvas.any()


def test_files_beside_the_films_are_said_with_a_count(calibrated):
    home, _ = calibrated
    notes = [home / "yard" / "testing" / "videos" / name for name in ("notes.txt", "a.md")]
    for path in notes:
        write_text(path, "rain from nine on\n")
    assert "passed over: 2, no video (testing), the first videos/a.md" in score(home, *notes)
    assert "passed over" not in score(home)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"flow_scale": 0}, "flow_scale is 0; it must be a whole number of at least 1"),
        ({"bins": 2.5}, "bins is 2.5; it must be a whole number"),
        ({"piece": 40}, "piece is 40; it must be height and width"),
        ({"piece": [40]}, "piece is (40,); it must be height and width"),
        ({"norm": "l3"}, "norm is 'l3'; it must be one of l1, l2"),
        ({"speed": "max"}, "speed is 'max'"),
        ({"background": "frame"}, "background is 'frame'"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"min_area": "many"}, "min_area is 'many'"),
        ({"confidence": 50}, "confidence is 50; it must be a finite number of at least 0 and at most 1"),
        ({"whole_box": "no"}, "whole_box"),
    ],
)
def test_a_setting_of_extraction_out_of_its_range_is_to_blame_and_no_film(settings, words):
    with pytest.raises(DataError) as error:
        Extraction.from_settings(settings, "own.yml: datasets.yard.extraction")
    assert str(error.value).startswith(f"own.yml: datasets.yard.extraction: {words}"), error.value


def test_a_confidence_that_is_usual_changes_no_features_and_another_one_does():
    usual = Extraction(backbone="").describe()
    assert "confidence" not in usual and Extraction(backbone="", confidence=0.3).describe() == usual | {"confidence": 0.3}


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    "Three films of one size, and a way to give them a table of boxes."
    home = tmp_path_factory.mktemp("boxed")
    for split, name in (("training", "n0"), ("training", "n1"), ("testing", "evening")):
        film(home / "yard" / split / "videos" / f"{name}.mp4", frames=8)

    def plan(*rows: str) -> VideoPlan:
        table = write_text(home / "b.csv", "\n".join(("video,frame,x_min,y_min,x_max,y_max", *rows)))
        return VideoPlan("yard", home / "features", home / "yard", Extraction(backbone="", detector=str(table)))

    return home, plan


ROWS = tuple(f"{name},{t},5,5,30,30" for name in ("n0", "n1", "evening") for t in range(8))


@pytest.mark.parametrize(
    "rows, words",
    [
        (("nope,1,5,5,20,20",), r"b.csv, line 2: all its rows are rows of video 'nope', and there is no such video"),
        ((*ROWS, "evening,8,5,5,30,30"), r"b.csv, line 26: video evening has no frame '8'"),
        ((*ROWS, "n0,0,100,5,140,30"), "line 26: a box of video n0 lies outside the image of 96 x 64 pixels"),
        (("n0,0,-50,5,2000,20",), r"1 of 1 box lies mostly outside the image \(the first in line 2, n0, the image of 96"),
        (("n0,0,0.1,0.1,0.5,0.5",), "give pixels, not fractions of the image"),
    ],
)
def test_a_table_of_boxes_that_belongs_to_other_films_is_refused_before_one_is_read(boxed, rows, words):
    home, plan = boxed
    with pytest.raises(BoxesError, match=words):
        extract_dataset(plan(*rows), ("training",))
    assert not (home / "features" / "training").exists()


@pytest.mark.parametrize(
    "rows, words",
    [
        ((*ROWS, "nope,1,5,5,30,30"), "line 26: rows of video 'nope', and there is no such video; there are n0, n1, ev"),
        (ROWS[:16], r"has no row of 1 of 1 testing video \(evening\), only motion finds objects there"),
        (ROWS[16:], "has boxes of test videos and of no training video, so objects that it adds are measured against"),
        ((*ROWS, "n0,0,-5,5,30,30"), r"1 of 25 boxes reaches outside the image and is cut at its edge"),
        (("n0,1,5,5,7,7",), "none of its 1 box is used, each has a score below 0.5 or fewer than 100 pixels"),
    ],
)
def test_what_is_odd_about_a_table_of_boxes_is_said(boxed, rows, words):
    with pytest.warns(Notice, match=words):
        check_boxes(boxed[1](*rows))


def test_slivers_cost_no_film_and_low_scores_are_counted(boxed, tmp_path):
    home, _ = boxed
    rows = ["evening,000003,10,5,60,50,0.9", "evening,000003,10,-40,60,0.3,0.9", "evening,000004,10,5,60,50,0.4"]
    rows += [f"{v},000003,10,5,60,50,0.8" for v in ("n0", "n1")]
    table = write_text(home / "scores.csv", "\n".join(("video,frame,x_min,y_min,x_max,y_max,score", *rows)))
    settings = Extraction(backbone="", detector=str(table))
    with pytest.warns(Notice) as said:
        check_boxes(VideoPlan("yard", home / "features", home / "yard", settings))
    lines = [str(w.message) for w in said]
    assert any("1 of 4 boxes is less than a pixel wide or high within the image, and left out" in x for x in lines), lines
    assert any("1 of 5 boxes has a score below 0.5 (extraction.confidence) and is left out" in x for x in lines), lines
    for confidence, count in ((0.5, 1), (0.3, 2)):
        videos, folder = list_videos(home / "yard", "testing"), tmp_path / str(confidence)
        extract_videos(videos, folder, replace(settings, confidence=confidence, min_area=100))
        assert not check_extracted(folder, videos)
        boxes = load_object_features(folder, "velocity").boxes.tolist()
        assert boxes.count([5, 10, 50, 60]) == count, boxes


def test_a_table_that_fits_is_not_spoken_of(boxed, recwarn):
    check_boxes(boxed[1](*ROWS))
    assert not recwarn.list


def test_a_film_and_its_namesake_of_the_other_split_have_boxes_of_their_own(tmp_path):
    for split in ("training", "testing"):
        film(tmp_path / split / "videos" / "01.mp4", frames=8)
    table = tmp_path / "b.csv"
    plan = VideoPlan("yard", tmp_path / "f", tmp_path, Extraction(backbone="", detector=str(table)))
    write_text(table, "video,frame,x_min,y_min,x_max,y_max\n01,1,5,5,30,30\n")
    with pytest.raises(BoxesError, match="line 2: 01 is a training and a test video; write training/01 or testing/01"):
        check_boxes(plan)
    write_text(table, "video,frame,x_min,y_min,x_max,y_max\ntraining/01,1,5,5,30,30\ntesting/01,1,6,6,31,31\n")
    extract_dataset(plan)
    for split, box in (("training", [5, 5, 30, 30]), ("testing", [6, 6, 31, 31])):
        boxes = load_object_features(tmp_path / "f" / split, "velocity").boxes
        assert [list(b) for b in boxes if list(b) in ([5, 5, 30, 30], [6, 6, 31, 31])] == [box]


def test_the_command_refuses_and_notes_boxes_before_it_computes(boxed, capsys):
    home, plan = boxed
    write_text(home / "own.yml", f"datasets: {{yard: {{root: {home}/yard, extraction: {{detector: {home}/b.csv}}}}}}\n")
    call = ["score-video", "--dataset-name", "yard", "--config", str(home / "own.yml"), "--all"]
    call += ["--out", str(home / "scores"), "--features", str(home / "made")]
    plan("nope,1,5,5,20,20")
    with pytest.raises(SystemExit) as end:
        main(call)
    assert end.value.code == 2 and "there is no such video" in capsys.readouterr().err and not (home / "made").exists()
    plan(*ROWS[16:])
    with pytest.raises(SystemExit):
        main(call)
    assert capsys.readouterr().err.count("has boxes of test videos and of no training video") == 1


def test_nothing_is_decided_on_a_film_of_one_frame_and_a_short_one_is_said(tmp_path, monkeypatch):
    from anomaly_nb.video.plan import length_note, short_videos

    assert list(short_videos({"one": 1, "two": 2})) == ["one"]
    assert length_note(VideoPlan("yard"), 12).startswith("has 12 frames, fewer than the 13 that a score is smoothed")
    assert not length_note(VideoPlan("yard"), 13)
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        film(tmp_path / "yard/training/videos" / f"n{i}.mp4", seed=i)
    film(tmp_path / "yard/testing/videos/one.mp4", frames=1, seed=7, intruder="runner")
    write_text(tmp_path / "own.yml", 'datasets: {yard: {root: yard, extraction: {backbone: "", min_area: 20}}}\n')
    options = ["--dataset-name", "yard", "--config", "own.yml", "--false-alarms-per-hour", "9000"]
    done = CliRunner().invoke(app, ["score-video", *options, "--all", "--out", "out"])
    assert done.exit_code == 4 and "one: has one frame, which shows no motion; too short for a decision" in done.output
    assert not len(pd.read_csv(tmp_path / "out/events.csv"))
    assert pd.read_csv(tmp_path / "out/frame_scores.csv")["alarm"].isna().all()
    with pytest.warns(Notice, match="one.mp4: has one frame, which shows no motion; too short for a decision on events"):
        done = CliRunner().invoke(app, ["video", "watch", "yard/testing/videos/one.mp4", *options, "--no-clips"])
    assert done.exit_code == 4 and not done.stdout, done.output
