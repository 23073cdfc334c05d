"Atoms on disk: runs without labels, runs and frames that take the place of earlier ones."

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anomaly_nb.atoms.frames import extract_frames, list_frames
from anomaly_nb.atoms.pipeline import load_manifest, load_run, run_pipeline
from anomaly_nb.atoms.presence import PresenceSettings
from anomaly_nb.atoms.segments import SegmentSettings
from anomaly_nb.cli.main import main
from anomaly_nb.core.arrays import load_tensors
from anomaly_nb.core.errors import Notice
from anomaly_nb.core.files import write_text


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def run_on_disk(folder: Path, labels: list[int], labelled: bool) -> None:
    "The files of a run of two atoms and one event."
    folder.mkdir()
    pbar = torch.rand(len(labels), 2)
    torch.save({"pbar": pbar, "labels": torch.tensor(labels)}, folder / "trainpack.pt")
    torch.save(pbar, folder / "presence.pt")
    torch.save(torch.zeros(len(labels)), folder / "boundary.pt")
    rows = {"frame": [f"{folder.name}v/{i}" for i in range(len(labels))], "video": f"{folder.name}v", "label": labels}
    pd.DataFrame(rows).to_csv(folder / "frames.csv", index=False)
    record = {"atoms": ["a", "b"], "events": ["e"], "mask": [[True], [True]], "labelled": labelled}
    (folder / "run.json").write_text(json.dumps(record))


def test_zeros_of_frames_that_nobody_labelled_are_no_labels(tmp_path):
    run_on_disk(tmp_path / "one", [0, 0, 1, 1], True)
    run_on_disk(tmp_path / "two", [0, 0, 0, 0], False)
    write_text(tmp_path / "one.csv", "video_id,e\nonev,1\n")
    write_text(tmp_path / "two.csv", "video_id,e\ntwov,0\n")
    write_text(tmp_path / "manifest.csv", "run_dir,labels_csv\none,one.csv\ntwo,two.csv\n")
    with pytest.raises(ValueError, match=r"frames of run 'two' have no labels.*--labels_csv"):
        load_manifest(tmp_path / "manifest.csv", 2)
    whole = load_manifest(tmp_path / "manifest.csv")
    assert whole.labels.ravel().tolist() == [1, 0] and whole.frame_labels is None
    assert load_run(tmp_path / "one").labelled and not load_run(tmp_path / "two").labelled


@pytest.fixture
def frames(tmp_path):
    "Two videos of three frames, and their labels."
    for v in "ab":
        for t in range(3):
            write_image(tmp_path / "frames" / v / f"{t}.png", np.full((8, 8, 3), 40 * t, np.uint8))
    write_text(tmp_path / "labels.csv", "".join(f"{v}/{t}.png,{int(v == 'b')}\n" for v in "ab" for t in range(3)))
    return tmp_path


def test_a_run_takes_the_place_of_an_earlier_one_whole(frames, monkeypatch):
    out = frames / "runs" / "a"
    run_pipeline(frames / "frames", frames / "labels.csv", out, "walkway", dry_caption=True)
    first = load_tensors(out / "seg_presence.pt")
    for name in ("calibration.pt", "presence_used.pt", "frame_scores.csv"):  # of an earlier run and of its scores
        write_text(out / name, "old")
    with monkeypatch.context() as m:
        m.setattr("anomaly_nb.atoms.pipeline.write_table", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="the disk is full"):
            run_pipeline(
                frames / "frames", frames / "labels.csv", out, "shapes", None, SegmentSettings(0), dry_caption=True
            )
    assert torch.equal(load_tensors(out / "seg_presence.pt"), first) and len(load_run(out).atoms) == first.shape[1]
    write_text(frames / "videos.csv", "video_id,event A\na,0\nb,1\n")
    more = {"dry_caption": True, "events_csv": frames / "videos.csv"}
    run_pipeline(frames / "frames", None, out, "shapes", **more)
    names = {f.name for f in out.iterdir()}
    assert not names & {"calibration.pt", "presence_used.pt", "events.csv", "frame_scores.csv"}, names
    write_text(out / "events.csv", "video_id,event A\na,0\nb,1\n")
    with pytest.raises(ValueError, match=r"events.csv: lies in the folder that the run replaces"):
        run_pipeline(frames / "frames", None, out, "shapes", dry_caption=True, events_csv=out / "events.csv")
    write_text(out / "notes.txt", "mine")
    with pytest.raises(ValueError, match=r"notes.txt: not of a run"):
        run_pipeline(frames / "frames", None, out, "shapes", **more)
    assert (out / "notes.txt").read_text() == "mine"
    (frames / "else").mkdir()
    write_text(frames / "else" / "thesis.md", "mine")
    with pytest.raises(ValueError, match="holds other files"):
        run_pipeline(frames / "frames", None, frames / "else", "shapes", **more)


def film(path: Path, n: int, level: int) -> None:
    "A short film of one grey."
    cv2 = pytest.importorskip("cv2")
    path.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for _ in range(n):
        writer.write(np.full((32, 32, 3), level, np.uint8))
    writer.release()


def test_films_that_were_cut_off_or_cannot_be_read_are_said_and_the_others_go_on(tmp_path, capsys):
    film(tmp_path / "v" / "whole.avi", 40, 10)
    content = (tmp_path / "v" / "whole.avi").read_bytes()
    (tmp_path / "v" / "cut.avi").write_bytes(content[: 2 * len(content) // 3])
    (tmp_path / "v" / "noise.avi").write_bytes(b"no film")

    def frames(*names: str) -> tuple[int, str]:
        videos = [word for name in names for word in ("--video", str(tmp_path / "v" / name))]
        with pytest.raises(SystemExit) as end:
            main(["atoms", "frames", *videos, "--out-dir", str(tmp_path / "f")])
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    assert frames("whole.avi")[0] == 0
    code, said = frames("cut.avi")
    assert code == 4 and "cut.avi: is incomplete: " in said and "its header says 40" in said, said
    code, said = frames("noise.avi", "whole.avi")
    assert code == 4 and "left out: " in said and "noise.avi: not a video" in said and "4 frames of whole.avi" in said
    assert frames("noise.avi")[0] == 1
    code, said = frames("whole.avi", "absent.avi")
    assert code == 2 and "absent.avi" in said and "frames of" not in said
    with pytest.warns(Notice, match="cut.avi: is incomplete: "):
        extract_frames(tmp_path / "v" / "cut.avi", tmp_path / "f")


def test_frames_of_another_rate_or_film_do_not_mix(tmp_path, capsys):
    film(tmp_path / "c1" / "clip.avi", 40, 10)
    film(tmp_path / "c2" / "clip.avi", 20, 200)
    assert len(extract_frames(tmp_path / "c1" / "clip.avi", tmp_path / "f", 5)) == 20
    assert len(extract_frames(tmp_path / "c1" / "clip.avi", tmp_path / "f", 1)) == len(list_frames(tmp_path / "f")) == 4
    both = [word for c in ("c1", "c2") for word in ("--video", str(tmp_path / c / "clip.avi"))]
    with pytest.raises(SystemExit) as end:
        main(["atoms", "frames", *both, "--out_dir", str(tmp_path / "g")])
    assert end.value.code == 2 and "both would go to" in capsys.readouterr().err and not (tmp_path / "g").exists()
    with pytest.raises(SystemExit) as end:
        main(["atoms", "frames", *both[2:], "--out_dir", str(tmp_path / "f")])
    assert not end.value.code and "2 frames of clip.avi" in (said := capsys.readouterr().out)
    assert "instead of the 4 that were there" in said and len(list_frames(tmp_path / "f")) == 2
    write_text(tmp_path / "damaged.avi", "no film")
    write_text(tmp_path / "f" / "clip" / "notes.txt", "mine")
    with pytest.raises(ValueError, match=r"notes.txt: not an extracted frame"):
        extract_frames(tmp_path / "c2" / "clip.avi", tmp_path / "f")


def test_labels_in_a_folder_have_the_same_columns(tmp_path):
    for v in "ab":
        write_image(tmp_path / "frames" / v / "0.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "labels").mkdir()
    write_text(tmp_path / "labels" / "a.csv", "frame,label,event A\na/0.png,1,1\n")
    write_text(tmp_path / "labels" / "b.csv", "frame,label\nb/0.png,0\n")
    with pytest.raises(ValueError, match=r"b.csv: event columns differ from those of a.csv, 'event A' is in one alone"):
        run_pipeline(tmp_path / "frames", tmp_path / "labels", tmp_path / "out", "shapes", dry_caption=True)


def test_a_pause_of_a_film_is_filled_with_the_image_on_screen(monkeypatch, tmp_path):
    cv2 = pytest.importorskip("cv2")
    times = [i / 25 for i in range(50)] + [12 + i / 25 for i in range(50)]  # two seconds, a pause of ten, two more

    class Capture:
        "A film of these times, whose images tell their number."

        at = -1

        def isOpened(self):
            return True

        def get(self, what):
            of = {cv2.CAP_PROP_FPS: 25.0, cv2.CAP_PROP_FRAME_COUNT: len(times)}
            return of.get(what, 1000 * times[max(self.at, 0)])

        def read(self):
            self.at += 1
            return self.at < len(times), np.full((8, 8, 3), 2 * self.at, np.uint8)

        def release(self):
            pass

    (tmp_path / "a.avi").touch()
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture())
    frames = extract_frames(tmp_path / "a.avi", tmp_path / "out", 1.0)
    shown = [round(cv2.imread(str(f)).mean() / 2) for f in frames]
    assert shown == [0, 25, *[49] * 10, 50, 75]  # one for each of 14 seconds


def test_a_run_that_has_no_labels_any_more_leaves_the_manifest(frames, monkeypatch):
    monkeypatch.chdir(frames)
    settings = dict(presence=PresenceSettings("tiny", None, calibrate="affine"), ontology="walkway")
    for name in ("other", "demo"):
        record = run_pipeline("frames", "labels.csv", Path("runs") / name, **settings)
    assert record["fitted_here"] == ["calibration"] and load_run("runs/demo").fitted_here == ("calibration",)
    assert load_manifest("runs/manifest.csv").seen_by == ("calibration",)
    with pytest.warns(Notice, match="run 'demo' has no labels now, and is no longer in it"):
        run_pipeline("frames", None, Path("runs/demo"), "walkway", PresenceSettings("tiny", None))
    assert pd.read_csv("runs/manifest.csv")["run_dir"].tolist() == ["other"]
    assert load_manifest("runs/manifest.csv").labels.tolist() == [[0], [1]]
    run_pipeline("frames", "labels.csv", Path("runs/old"), presence=PresenceSettings("tiny", None), ontology="walkway")
    assert load_run("runs/old").fitted_here == ()


def test_the_explorer_measures_again_what_was_changed_in_place(frames, monkeypatch, tmp_path):
    import importlib

    view, made = importlib.import_module("anomaly_nb.atoms.view"), []
    monkeypatch.setattr(view, "run_pipeline", lambda *settings: made.append(settings[2]))
    write_text(tmp_path / "labels.csv", "a,0\n")
    parameters = dict.fromkeys(["captions_json", "pretrained", "calibrate"], "") | {
        "frames_root": str(frames / "frames"), "labels_csv": str(tmp_path / "labels.csv"), "ontology": "walkway", "model": "tiny",
        "lambda_atoms": 0.25, "lambda_resemble": 0.1, "delta_quantile": 0.95, "window": 20, "videos": 0, "random_state": 0,
    }  # fmt: skip
    opened = lambda: view.presences_of_report(parameters, tmp_path / "cache")[0]
    first = opened()
    assert opened() == first
    write_text(tmp_path / "labels.csv", "a,1\n")
    second = opened()
    image = next(iter(list_frames(frames / "frames").paths))
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    assert len({first, second, opened()}) == 3
