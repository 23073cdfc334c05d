"""Films whose frames come at no steady rate: every time in seconds is the one that the frame carries; steady ones count
by their rate, to the last bit.
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
from typer.testing import CliRunner

from anomaly_nb.atoms.frames import extract_frames
from anomaly_nb.cli.main import app, main
from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.core.files import write_text
from anomaly_nb.data.films import Clock
from anomaly_nb.video.clips import make_clip
from anomaly_nb.video.detection import false_events
from anomaly_nb.video.layouts import list_videos, probe_film, read_video
from anomaly_nb.video.pipeline import dataset_videos, film_clocks
from anomaly_nb.video.plan import VideoPlan, plan_for
from anomaly_nb.video.render import film_writer
from anomaly_nb.video.streams import Extraction

cv2 = pytest.importorskip("cv2")
N = 60  # frames of a film
PAUSED = np.r_[np.arange(30) * 0.1, 6.0 + np.arange(30) * 0.05]  # s: a pause, and then twice as fast


def film(path: Path, codec: str = "mp4v", seed: int = 0, intruder: str | None = None) -> Path:
    "A drawn clip at ten frames a second."
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (96, 64))
    for image in make_clip(intruder, N, (64, 96), random_state=seed)[0]:
        writer.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def shown_at(path: Path, seconds: np.ndarray) -> Path:
    "The same MP4, whose frames are shown at these times."
    content = bytearray(path.read_bytes().replace(b"edts", b"free"))  # no list that says how long the film is in all
    stts = content.find(b"stts")
    count, ticks = struct.unpack(">II", content[stts + 12 : stts + 20])  # of the only entry: all are as long
    assert count == len(seconds)
    lengths = np.diff(np.append((seconds * 10 * ticks).round(), (seconds[-1] * 10 + 1) * ticks)).astype(int)
    table = struct.pack(">II", 0, count) + b"".join(struct.pack(">II", 1, length) for length in lengths)
    grow, at = len(table) - 16, 0
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        at = content.find(name, at)
        size = struct.unpack(">I", content[at - 4 : at])[0] + grow
        content[at - 4 : at] = struct.pack(">I", size)
    content[stts + 4 : stts + 20] = table
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "The same evening by a phone and by a steady camera, with ground truth, scored by the command."
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("times")
        patch.chdir(home)
        for i in range(3):
            film(home / "yard" / "training" / "videos" / f"{i}.mp4", seed=i)
        labels = make_clip("runner", N, (64, 96), random_state=7)[1].any((1, 2))
        (home / "yard" / "testing" / "test_frame_mask").mkdir(parents=True)
        for name in ("phone", "steady"):
            film(home / "yard" / "testing" / "videos" / f"{name}.mp4", seed=7, intruder="runner")
            np.save(home / "yard" / "testing" / "test_frame_mask" / f"{name}.npy", labels.astype(np.uint8))
        shown_at(home / "yard" / "testing" / "videos" / "phone.mp4", PAUSED)
        extraction = '{backbone: "", min_area: 20, bins: 1, speed: median, flow_scale: 1}'
        settings = f"datasets: {{yard: {{root: yard, n_components: 1, sigma: 2.0, extraction: {extraction}}}}}\n"
        write_text(home / "config.yml", settings)
        result = say("score", "--all", "--out", "out")
        assert result.exit_code == 3, result.output
        yield home, result.output, labels


def say(*args: str):
    "A command of the group."
    rate = ["--false-alarms-per-hour", "900"]
    return CliRunner().invoke(app, ["video", *args, "--dataset-name", "yard", "--config", "config.yml", *rate])


def events_of(home: Path, out: str, video: str) -> pd.DataFrame:
    "The events of a video, frames as numbers."
    table = pd.read_csv(home / out / "events.csv", dtype={"video": str})
    return table[table["video"] == video]


def numbers(events: pd.DataFrame) -> list[list[int]]:
    "First frame, frame after the last, and that of the peak."
    return [[e["first"], e["last"] + 1, e["peak_frame"]] for e in events.astype({"first": int}).to_dict("records")]


def test_a_film_without_a_steady_rate_is_named_and_counts_by_the_times_of_its_frames(tmp_path):
    path = film(tmp_path / "phone.mp4")
    assert not probe_film(path).note and probe_film(path).clock.times is None
    shown_at(path, PAUSED)
    found = probe_film(path)
    mean = (N - 1) / PAUSED[-1]
    np.testing.assert_allclose([found.clock.seconds(i) for i in range(N)], PAUSED, atol=1e-9)
    assert found.complete and found.fps == pytest.approx(mean)
    apart = np.abs(PAUSED - np.arange(N) / mean).max()
    assert f"times are those that its frames carry, up to {apart:.1f} s from those of {mean:.4g} frames" in found.note
    with pytest.warns(Notice, match="phone.mp4: has no steady frame rate"):
        (video,) = list_videos(tmp_path)
    assert video.clock(99.0).seconds(30) == pytest.approx(6.0) and video.at_rate(10.0).clock(99.0).seconds(30) == 3.0


def test_events_and_ground_truth_are_at_the_times_that_a_player_shows(home):
    home, output, labels = home
    events = events_of(home, "out", "phone")
    end = np.append(PAUSED, PAUSED[-1] + PAUSED[-1] / (N - 1))
    assert len(events) and max(events["end"]) > 6
    np.testing.assert_allclose(events[["start", "end", "peak_at"]], end[numbers(events)], atol=1e-9)
    called = events["called_at"].to_numpy()
    assert (np.abs(called[:, None] - PAUSED).min(axis=1) < 1e-9).all()
    delays = pd.read_csv(home / "out" / "delays.csv").set_index("video").loc[["phone"]]
    first, last = np.flatnonzero(labels)[[0, -1]]
    np.testing.assert_allclose(delays[["start", "end"]].to_numpy(), [[PAUSED[first], end[last + 1]]], atol=1e-9)
    begun = max(events["start"].min(), PAUSED[first])
    assert delays["delay"].iloc[0] == pytest.approx(begun - PAUSED[first], abs=1e-9)
    assert f"phone: {events['start'].iloc[0]:.1f} s to {events['end'].iloc[0]:.1f} s" in output
    assert output.count("phone: has no steady frame rate: times are those that its frames carry") == 1


def test_a_steady_film_counts_by_its_rate_to_the_last_bit(home):
    home, output, labels = home
    events = events_of(home, "out", "steady")
    assert len(events) and events[["start", "end", "peak_at"]].values.tolist() == [
        [n / 10 for n in row] for row in numbers(events)
    ]
    delays = pd.read_csv(home / "out" / "delays.csv").set_index("video").loc["steady"]
    first, last = np.flatnonzero(labels)[[0, -1]]
    assert (delays["start"], delays["end"]) == (first / 10, (last + 1) / 10)
    assert "steady: has no" not in output


def test_watch_says_the_times_of_score(home, monkeypatch):
    home, _, _ = home
    monkeypatch.chdir(home)
    for name in ("phone", "steady"):
        result = say("watch", f"yard/testing/videos/{name}.mp4", "--no-clips")
        assert result.exit_code == 0, result.output
        closed = pd.DataFrame([e for e in map(json.loads, result.stdout.splitlines()) if e["state"] == "closed"])
        columns = ["start", "end", "peak_at", "called_at"]
        np.testing.assert_allclose(closed[columns], events_of(home, "out", name)[columns], rtol=1e-9)
        opened = [e for e in map(json.loads, result.stdout.splitlines()) if e["state"] == "open"]
        times = PAUSED if name == "phone" else np.arange(N) / 10
        assert opened and all(np.abs(times - e["now"]).min() < 1e-9 for e in opened)


def test_a_rate_that_is_set_counts_for_all_films(home, monkeypatch):
    home, _, labels = home
    monkeypatch.chdir(home)
    assert say("score", "--out", "set", "--fps", "5").exit_code == 3
    first = np.flatnonzero(labels)[0]
    delays = pd.read_csv(home / "set" / "delays.csv")
    for name in ("phone", "steady"):
        events = events_of(home, "set", name)
        assert len(events) and events[["start", "end", "peak_at"]].values.tolist() == [
            [n / 5 for n in row] for row in numbers(events)
        ]
        row = delays.set_index("video").loc[name]
        assert row["start"] == first / 5 and row["called_delay"] == pytest.approx(
            max(0.0, events["called_at"].min() - first / 5)
        )
    assert pd.read_csv(home / "set" / "videos.csv")["fps"].tolist() == [5, 5]


def test_a_rendered_film_says_how_its_times_relate(home, monkeypatch):
    home, _, _ = home
    monkeypatch.chdir(home)
    result = say("render", "--out", "films")
    assert result.exit_code == 0, result.output
    (phone,) = (line for line in result.output.splitlines() if line.startswith(str(Path("films", "phone"))))
    (steady,) = (line for line in result.output.splitlines() if line.startswith(str(Path("films", "steady"))))
    mean = (N - 1) / PAUSED[-1]
    assert f"plays at {mean:.4g} frames a second, the mean of its own times" in phone and "plays at" not in steady
    drawn = {p.stem: probe_film(p) for p in (home / "films").iterdir() if p.suffix != ".png"}
    assert {name: f.frames for name, f in drawn.items()} == {"phone": N, "steady": N}
    assert drawn["steady"].fps == 10 and drawn["phone"].fps == pytest.approx(mean, rel=1e-3)


def test_hours_of_normal_film_are_as_long_as_its_frames_are_shown(tmp_path):
    video = read_video(shown_at(film(tmp_path / "a.mp4"), PAUSED))
    labels = np.arange(N) >= 30
    nothing = pd.DataFrame(columns=["video", "first", "last"])
    assert false_events({"a": labels}, nothing, [video], 10)[1] == pytest.approx(6.0 / 3600)  # the pause among them
    assert false_events({"a": labels}, nothing, [video.at_rate(10.0)], 10)[1] == 30 / 10 / 3600


def test_frames_whose_times_do_not_rise_count_by_the_rate_and_that_is_said(tmp_path):
    path = film(tmp_path / "yard" / "testing" / "videos" / "a.mpg", "mpg2")
    found = probe_film(path)
    if (np.diff(found.times) > 0).all():
        pytest.skip("this OpenCV reads times from a program stream")
    assert found.note == "does not say when each of its frames is shown, times are by 10 frames a second"
    plan = VideoPlan("yard", tmp_path / "features", tmp_path / "yard", Extraction(backbone=""))
    assert film_clocks(plan) == {"a": Clock(10.0)} and film_clocks(plan)["a"].seconds(25) == 2.5
    assert film_clocks(replace(plan, fps=4.0)) == {}


def test_images_for_atoms_are_those_on_screen(tmp_path):
    for times, expected in ((np.arange(N) / 10, [0, 10, 20, 30, 40, 50]), (PAUSED, [0, 10, 20, 29, 29, 29, 30, 49])):
        path = tmp_path / "grey.mp4"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
        for i in range(N):
            writer.write(np.full((64, 96, 3), 4 * i, np.uint8))
        writer.release()
        written = [cv2.imread(str(p)).mean() for p in extract_frames(shown_at(path, times), tmp_path / "out", 1)]
        grey = [image.mean() for _, image in read_video(path)]  # four levels from each to the next
        assert np.allclose(written, [grey[i] for i in expected], atol=1.5), written


def test_a_film_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, sync, replace_file = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(os.readlink(f"/proc/self/fd/{fd}")) or sync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append((str(a), str(b))) or replace_file(a, b))
    with film_writer(tmp_path, "gate", 10.0, (64, 48)) as (writer, path):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    written = done.index(next(d for d in done if isinstance(d, tuple) and d[1] == str(path)))
    assert done[written - 1] == done[written][0] and str(tmp_path) in done[written:]
    assert probe_film(path).frames == 1 and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_writer_left_is_no_film_and_goes_with_the_next(tmp_path):
    code = """
import os, sys, numpy as np
from pathlib import Path
from anomaly_nb.video.render import film_writer
with film_writer(Path(sys.argv[1]), "gate", 10.0, (64, 48)) as (writer, path):
    writer.write(np.zeros((48, 64, 3), np.uint8))
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".gate.") and left.suffix == ".tmp"
    with pytest.warns(Notice, match="that a killed writer left"):
        with film_writer(tmp_path, "gate", 10.0, (64, 48)) as (writer, path):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_table_of_videos_has_the_mean_rate_and_the_note(home, monkeypatch):
    home, _, _ = home
    monkeypatch.chdir(home)
    videos = dataset_videos(plan_for("yard", "config.yml")).set_index("video")
    assert videos.loc["phone", "fps"] == pytest.approx((N - 1) / PAUSED[-1]) and videos.loc["steady", "fps"] == 10
    assert "no steady frame rate" in videos.loc["phone", "note"] and videos["complete"].all()


@pytest.mark.parametrize("fps", ["ten", '"25"', ".nan", ".inf", "0", "-5", "true"])
def test_a_rate_that_no_film_can_have_is_refused_with_its_file(tmp_path, fps):
    write_text(tmp_path / "own.yml", f"datasets: {{yard: {{root: yard, fps: {fps}}}}}\n")
    with pytest.raises(DataError, match=r"own\.yml: datasets\.yard: fps is .*; it must be a number above 0"):
        plan_for("yard", tmp_path / "own.yml")


def test_an_endless_rate_on_the_command_line_is_one_sentence(home, monkeypatch, capsys):
    home, _, _ = home
    monkeypatch.chdir(home)
    words = ["--dataset-name", "yard", "--config", "config.yml", "--fps", "inf"]
    for command in (["video", "score", "--out", "inf"], ["video", "watch", "yard/testing/videos/steady.mp4"]):
        with pytest.raises(SystemExit) as end:
            main([*command, *words])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.splitlines()[-1].startswith("anomaly-nb: fps is inf; it must be"), said


def test_a_video_that_is_named_twice_is_rendered_once(home, monkeypatch):
    home, _, _ = home
    monkeypatch.chdir(home)
    result = say("render", "--out", "twice", "--video", "steady", "--video", "steady")
    assert result.output.count("steady.") == 1 and result.output.startswith("1 film with"), result.output


def test_names_as_long_as_file_systems_allow_stop_no_other_film(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        film(tmp_path / "yard" / "training" / "videos" / f"{name}.mp4", seed=ord(name))
    for name in ("x" * 251, "y" * 250, "z"):
        path = film(tmp_path / "yard" / "testing" / "videos" / "z.mp4", seed=5, intruder="runner")
        path.rename(path.with_name(f"{name}.mp4"))
    write_text(tmp_path / "config.yml", 'datasets: {yard: {root: yard, extraction: {backbone: "", min_area: 20}}}\n')
    result = say("score", "--all", "--out", "out")
    assert result.exit_code in (3, 4), result.output
    assert result.output.count("has a name too long for the files that are made of it; rename it") == 1
    videos = pd.read_csv(tmp_path / "out" / "videos.csv").set_index("video")
    assert videos["scored"].to_dict() == {"y" * 250: True, "z": True, "x" * 251 + ".mp4": False}
    assert say("render", "--out", "films").exit_code == 0
    assert len([p for p in (tmp_path / "films").iterdir() if p.suffix != ".png"]) == 2


def test_a_name_of_two_lines_is_said_in_one(home, monkeypatch):
    home, _, _ = home
    monkeypatch.chdir(home)
    path = film(home / "plain.mp4").rename(home / "two\nlines.mp4")
    result = say("watch", str(path), "--no-clips")
    first = [line.split()[0] for line in result.output.splitlines()]
    assert result.exit_code == 0 and set(first) <= {"watching", '{"state":', f"{home / 'two'}\\nlines.mp4:"}, first


def test_clips_of_a_film_with_a_long_name_are_written(home, monkeypatch, tmp_path):
    home, _, _ = home
    monkeypatch.chdir(home)
    long = shutil.copy("yard/testing/videos/steady.mp4", tmp_path / f"{'y' * 250}.mp4")
    result = say("watch", str(long), "--out", str(tmp_path / "clips"))
    closed = [e for e in map(json.loads, result.stdout.splitlines()) if e["state"] == "closed"]
    assert result.exit_code == 0 and closed and all((tmp_path / "clips" / e["clip"]).is_file() for e in closed)
