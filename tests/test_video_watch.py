"A film as the camera: the events of `score`, memory and latency that do not grow, an end by Ctrl-C."

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from anomaly_nb.cli.main import app
from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.core.files import write_text
from anomaly_nb.video.clips import make_clip
from anomaly_nb.video.layouts import probe_film
from anomaly_nb.video.plan import plan_for
from anomaly_nb.video.sources import Source, open_source
from anomaly_nb.video.event_clips import Clips
from anomaly_nb.video.watch import Summary, watch

cv2 = pytest.importorskip("cv2")
SIZE = (48, 80)


def film(path, images):
    "A lossless film."
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, SIZE[::-1])
    for image in images:
        writer.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    writer.release()


def hours_of(clips: int, every: int) -> np.ndarray:
    "Walkers, and a runner in one clip of `every`."
    return np.concatenate(
        [
            make_clip("runner" if i % every == every - 1 else None, 30, SIZE, 2, random_state=50 + i)[0]
            for i in range(clips)
        ]
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Films, calibrated and scored by the commands."
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("watch")
        patch.chdir(home)
        for i in range(4):
            film(
                home / "yard" / "training" / "videos" / f"{i}.avi",
                hours_of(2, 99) if i else make_clip(None, 60, SIZE, 2, random_state=7)[0],
            )
        film(home / "yard" / "testing" / "videos" / "door.avi", hours_of(4, 2))
        write_text(
            home / "config.yml",
            'datasets: {yard: {root: yard, n_components: 1, sigma: 2.0, extraction: {backbone: "", min_area: 20, bins: 1, speed: median, flow_scale: 1}}}\n',
        )
        result = CliRunner().invoke(
            app, ["video", "score", "--dataset-name", "yard", "--all", "--out", "out", "--false-alarms-per-hour", "300"]
        )
        assert result.exit_code == 3, result.output  # there are events
        yield home


def test_watching_a_film_gives_the_events_of_score_and_a_clip_of_each(home, monkeypatch):
    monkeypatch.chdir(home)
    result = CliRunner().invoke(
        app,
        [
            "video",
            "watch",
            "yard/testing/videos/door.avi",
            "--dataset-name",
            "yard",
            "--false-alarms-per-hour",
            "300",
            "--out",
            "kept",
        ],
    )
    assert result.exit_code == 0, result.output
    said = [json.loads(line) for line in result.stdout.splitlines()]
    closed = pd.DataFrame([e for e in said if e["state"] == "closed"])
    scored = pd.read_csv(
        home / "out" / "events.csv", dtype={"first": str, "last": str, "peak_frame": str}, keep_default_na=False
    )
    assert len(scored) >= 1 and len(closed) == len(scored) and "120 frames" in result.stderr
    for column in ("video", "why", "first", "last", "peak_frame", "box"):
        assert closed[column].tolist() == [f"{v:06d}" if isinstance(v, int) else v for v in scored[column]], column
    np.testing.assert_allclose(
        closed[["start", "end", "peak", "peak_at"]], scored[["start", "end", "peak", "peak_at"]], rtol=1e-6
    )
    assert [e["first"] for e in said if e["state"] == "open"] == closed["first"].tolist()
    assert all(probe_film(home / "kept" / name).frames > 5 for name in closed["clip"])
    assert all(name.startswith("door_event_") for name in closed["clip"])
    before = {p.name: p.read_bytes() for p in (home / "kept").iterdir()}
    again = CliRunner().invoke(
        app,
        ["video", "watch", "yard/testing/videos/door.avi", "--dataset-name", "yard", "--out", "kept"]
        + ["--false-alarms-per-hour", "300"],
    )
    clips = [e["clip"] for e in map(json.loads, again.stdout.splitlines()) if e["state"] == "closed"]
    assert len(clips) == len(closed) and not set(clips) & set(before)
    assert {p.name: p.read_bytes() for p in (home / "kept").iterdir() if p.name in before} == before


def test_memory_and_latency_do_not_grow_with_the_film(home, monkeypatch, tmp_path):
    "Thirty times the film: what the watch holds stays as it was after the first."
    import tracemalloc

    monkeypatch.chdir(home)
    film(tmp_path / "long.avi", np.tile(hours_of(4, 2), (5 if not os.environ.get("ANOMALY_NB_SLOW") else 50, 1, 1)))
    frames = probe_film(tmp_path / "long.avi").frames
    summary, held, taken, source = Summary(), [], [], open_source(tmp_path / "long.avi")
    events = watch(plan_for("yard", "config.yml"), source, "config.yml", 300, tmp_path / "kept", summary)
    count = summary.count

    def counted(seconds):
        count(seconds)
        taken.append(seconds)
        if summary.frames % 100 == 0:
            held.append(tracemalloc.get_traced_memory()[0])

    monkeypatch.setattr(summary, "count", counted)
    tracemalloc.start()
    closed = [e for e in events if e["state"] == "closed"]
    tracemalloc.stop()
    assert summary.frames == frames and len(closed) >= 5
    if os.environ.get("ANOMALY_NB_SLOW"):
        print(
            f"\n{frames} frames, {summary.say()}; held {max(held[: len(held) // 2])} and {max(held[len(held) // 2 :])} bytes; median {1000 * np.median(taken[50 : frames // 3]):.1f} and {1000 * np.median(taken[-frames // 3 :]):.1f} ms"
        )
    assert max(held[len(held) // 2 :]) < max(held[: len(held) // 2]) + 200_000  # bytes
    first, last = np.median(taken[50 : frames // 3]), np.median(taken[-frames // 3 :])
    assert last < 3 * first


@pytest.mark.parametrize("every", [2, 4])
def test_dropped_frames_shorten_no_clock_and_make_nothing_faster(home, monkeypatch, tmp_path, every):
    monkeypatch.chdir(home)
    door = home / "yard" / "testing" / "videos" / "door.avi"

    class Camera(Source):
        "Has time for some frames only."

        def __iter__(self):
            return (frame for i, frame in enumerate(open_source(door)) if i % every == 0)

    plan = plan_for("yard", "config.yml")
    whole = [e for e in watch(plan, open_source(door), "config.yml", 300) if e["state"] == "closed"]
    camera, summary = Camera(str(door), 10.0, live=True), Summary()
    said = list(watch(plan, camera, "config.yml", 300, tmp_path / "kept", summary))
    some = [e for e in said if e["state"] == "closed"]
    assert summary.frames == 120 // every
    one, other = (max(events, key=lambda e: e["peak"]) for events in (some, whole))
    assert one["start"] < other["peak_at"] < one["end"] <= 12.0 and abs(one["peak_at"] - other["peak_at"]) <= 1.5
    assert max(e["peak"] for e in some) < other["peak"] and int(one["peak_frame"]) == round(10 * one["peak_at"])
    assert probe_film(tmp_path / "kept" / one["clip"]).frames >= 10 * (one["end"] - one["start"])
    lost, again = Camera(str(door), 10.0, live=True, broke="broke off after 120 frames"), []
    with pytest.raises(DataError, match="broke off after 120 frames; look to the camera"):
        for event in watch(plan, lost, "config.yml", 300):
            again.append(event["state"])
    assert again.count("closed") == len(some)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_the_watch_of_a_folder(home):
    (home / "inbox").mkdir()
    command = [
        sys.executable,
        "-m",
        "anomaly_nb.cli.main",
        "video",
        "watch",
        "inbox",
        "--dataset-name",
        "yard",
        "--no-clips",
    ]
    for t, image in enumerate(hours_of(1, 9)[:3]):
        cv2.imwrite(str(home / "inbox" / f"{t:03d}.png"), image)
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None and "watching inbox" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out == "" and process.returncode == 0 and "frames, 0 events, 0 dropped" in err


def test_a_source_that_is_lost_ends_the_command_with_1(home, monkeypatch):
    monkeypatch.chdir(home)
    door = str(home / "yard" / "testing" / "videos" / "door.avi")
    lost = Source(door, 10.0, live=True, broke="broke off after 120 frames")
    monkeypatch.setattr("anomaly_nb.video.sources.open_source", lambda *_: lost)
    ended = CliRunner().invoke(app, ["video", "watch", door, "--dataset-name", "yard", "--config", "config.yml"])
    events = [json.loads(line) for line in ended.stdout.splitlines()]  # how many depends on the frames there was time for
    assert ended.exit_code == 1 and all(event["state"] in ("open", "closed") for event in events)
    assert "broke off after 120 frames; look to the camera, and start the watch again" in ended.stderr
    assert " frames, " in ended.stderr.splitlines()[-1]


def test_an_event_without_room_for_its_clip_is_said(tmp_path):
    clips = Clips(tmp_path, 10.0, video="gate")
    clips.frame(np.zeros((48, 64, 3), np.uint8))
    clips.open("000001")
    clips.frame(np.zeros((46, 64, 3), np.uint8))  # OpenCV leaves it out, as it does where the disk is full
    with pytest.warns(Notice, match=r"^no clip of this event: .*gate_event_000001\.\w+: could not be written whole; make room"):
        assert clips.close() is None
    clips.frame(np.zeros((48, 64, 3), np.uint8))
    clips.open("000003")
    assert [clips.close()] == list(tmp_path.iterdir())
    clips = Clips(tmp_path / "file" / "below", 10.0)
    (tmp_path / "file").write_text("")
    clips.frame(np.zeros((48, 64, 3), np.uint8))
    with pytest.warns(Notice, match="no clip of this event"):
        clips.open("1")
    assert clips.close() is None
