"What a stranger tried: the first line is the verdict, the exit code says what was found, and nothing is overwritten."

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.calibration.video_config import read_calibration, write_calibration
from anomaly_nb.core.errors import DataError, Notice, number_of
from anomaly_nb.core.files import atomic_folder, atomic_write, staging_folder
from anomaly_nb.core.runtime import import_torchvision
from anomaly_nb.reports.run import prepare
from anomaly_nb.video.plan import plan_for
from tests.commands import FIT, fails, parts, run

ONE = re.compile(r"(?<![\d.,])1 (images|files|heads|videos|frames|scores|scenes|objects|events|runs|jobs|patches)\b")


def test_fit_says_the_verdict_first_in_words(fitted):
    first, where, *_ = (fitted / "said.txt").read_text().splitlines()
    assert first.startswith("learned from 8 normal images by placed on filters") and "false positives expected" in first
    assert "quantile" in first or "the largest of the scores" in first
    assert "bound95" not in first and "promised 0." not in first and where == str(fitted / "det")
    card = (fitted / "det/detector.html").read_text()
    assert "bound95" not in card and "are expected to reach it" in card


def test_a_report_shows_the_settings_of_the_detector_it_tests(fitted, tmp_path, capsys):
    wanted = prepare("image_anomaly", {"detector": str(fitted / "det"), "dataset": "folder", "root": str(fitted)})
    shown = {k: wanted.parameters[k] for k in ("recipe", "image_size", "shots", "seed")}
    assert shown == {"recipe": "placed", "image_size": 48, "shots": 8, "seed": 0}
    with pytest.warns(Notice, match="was fitted with recipe=placed"):
        prepare("image_anomaly", {"detector": str(fitted / "det"), "root": str(fitted), "recipe": "padim"})
    for wrong in (tmp_path / "nowhere", parts(tmp_path / "images", range(1))):
        err = fails(capsys, "evaluate", wrong, fitted, "--figures", tmp_path / "figures")
        assert str(wrong) in err and not (tmp_path / "figures").exists()


def test_all_damaged_images_are_named_whatever_their_damage(tmp_path, capsys):
    folder = parts(tmp_path / "good", range(9))
    (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # its header is damaged
    for i in (3, 5):  # their pixels are
        (folder / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes()[:900])
    err = fails(capsys, "fit", folder, "--out", tmp_path / "det", *FIT)
    assert "3 images cannot be read" in err and "go on without them" in err
    assert all(f"{i}.png" in err for i in (0, 3, 5))


def test_damage_beyond_the_pixels_of_deep_images_too(tmp_path, capsys):
    folder = tmp_path / "good"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 4096, (48, 48)).astype(np.uint16)).save(
            folder / f"{i}.png"
        )
    for i in (1, 4):
        (folder / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes()[:2000])
    err = fails(capsys, "fit", folder, "--out", tmp_path / "det", *FIT)
    assert "2 images cannot be read" in err and "1.png" in err and "4.png" in err


def test_two_data_sets_keep_their_calibrations(tmp_path):
    config = tmp_path / "config.yml"
    config.write_text("calibration:\n  min_vel: 0.0\n  max_vel: 1.0\n  provenance: {dataset: a, k: 2, bank: 1}\n")
    write_calibration(config, {"velocity": (0.0, 9.0)}, {"dataset": "b", "k": 2, "bank": 2})
    a, b = (read_calibration(config, {"bank": n}, d).ranges["velocity"][1] for d, n in (("a", 1), ("b", 2)))
    assert (a, b) == (1.0, 9.0)
    with pytest.raises(DataError, match=r"holds calibrations of b, a, none of c; run  .*--dataset-name c"):
        read_calibration(config, {"bank": 3}, "c")
    config.write_text("calibration: {min_vel: 0.0, max_vel: 1.0}\n")  # of the first versions: nobody knows whose
    with pytest.warns(Notice, match="named no data set is replaced by that of b"):
        write_calibration(config, {"velocity": (0.0, 9.0)}, {"dataset": "b"})


def test_an_unknown_data_set_is_refused_whatever_else_is_given(tmp_path, capsys):
    with pytest.raises(DataError, match=r"'pedd2' is unknown; known are avenue, clips, ped2, shanghaitech;"):
        plan_for("pedd2", tmp_path / "config.yml", tmp_path, tmp_path)
    err = fails(capsys, "score-video", "--dataset-name", "pedd2", "--root", tmp_path, "--config", tmp_path / "c.yml")
    assert "known are avenue" in err and not (tmp_path / "c.yml").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from anomaly_nb.core.files import atomic_folder, atomic_write
if sys.argv[1] == "folder":
    with atomic_folder(sys.argv[2]) as new:
        (new / "x").write_text("half"); os.kill(os.getpid(), signal.SIGKILL)
with atomic_write(sys.argv[2]) as f:
    f.write(b"half"); f.flush(); os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path, kind):
    target = tmp_path / "det"
    subprocess.run([sys.executable, "-c", KILLED, kind, str(target)])
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    with staging_folder(tmp_path / "deep" / "other") as live:  # in another folder, nobody's business
        assert len(list(tmp_path.glob(".*.tmp"))) == 1
        with pytest.warns(Notice, match="removed 1 temporary file or folder that a killed writer left"):
            with atomic_folder(target) if kind == "folder" else atomic_write(target) as new:
                if kind == "folder":
                    (new / "x").write_text("whole")
                else:
                    new.write(b"whole")
        assert live.is_dir()
    assert not list(tmp_path.rglob(".*.tmp")) and (target / "x" if kind == "folder" else target).read_text() == "whole"


def test_two_live_writers_leave_each_other_alone(tmp_path):
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "print('on', flush=True); sys.stdin.readline()")
    other = subprocess.Popen(
        [sys.executable, "-c", code, "folder", str(tmp_path / "det")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.readline()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with atomic_folder(tmp_path / "det") as new:
            (new / "x").write_text("mine")
    assert len(list(tmp_path.glob(".*.tmp"))) == 1 and (tmp_path / "det/x").read_text() == "mine"
    other.communicate(b"\n")
    assert (tmp_path / "det/x").read_text() == "half" and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("megapixels", [4, 400])  # below Pillow's own limit, and above it
def test_images_above_the_limit_of_the_service_are_answered_with_that_limit(fitted, megapixels):
    import struct
    import zlib

    from anomaly_nb.scoring.service import BadImage, read_detectors

    side = int((megapixels * 1e6) ** 0.5)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    (served,) = read_detectors(fitted / "det", largest=1_000_000).values()
    with pytest.raises(BadImage, match=rf"{megapixels}\.0 megapixels; at most 1 are taken \(--max-megapixels\)") as e:
        served.predict(body, "image/png", None, fitted)
    assert e.value.status == 413 and "178" not in str(e.value) and "Pillow" not in str(e.value)


def scores(path, drift=0.0, n=300):
    values = np.random.default_rng(0 if not drift else 1).gamma(4, size=n) + drift
    pd.DataFrame({"image_path": [f"{path}{i}" for i in range(n)], "score": values}).to_csv(path, index=False)
    return path


def test_exit_codes_of_drift(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run("drift", "run", "--develop", "--scores", scores("a.csv"), "--model", "net", "--head", "h")
    assert first[0] == 0 and first[1].startswith("1 head: 1 new, with a reference since this run; ")
    moved = run("drift", "run", "--scores", scores("b.csv", 3), "--model", "net", "--head", "h")
    assert moved[0] == 3 and moved[1].startswith("1 head: 1 unstable; not converged")
    for words in (["run"], ["tag"]):
        told = run("drift", *words, "--help")[1]
        assert "Exit codes: 0" in told and "; 3 " in told
    tag = ["drift", "tag", "--model", "net", "--head", "h", "--store", "data/calibrations", "--out", "out.csv"]
    low = pd.DataFrame({"image_path": ["x"], "score": [0.1]})
    low.to_csv("low.csv", index=False)
    kept = "the scores are kept in the store data/calibrations/, and its next run counts them\n"
    assert run(*tag, "--scores", "low.csv")[:2] == (0, f"1 score: 0 anomalous (version 1) -> out.csv\n{kept}")
    assert run(*tag, "--scores", "b.csv")[0] == 3
    for said in (first[1], moved[1], run("drift", "history")[1], run("drift", "worker")[1], run("drift", "repair")[1]):
        assert not ONE.search(said), said


def test_a_head_without_a_number_is_left_out_by_name_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng, nothing = np.random.default_rng(0), [np.nan] * 59 + [np.inf]
    both = pd.DataFrame({"file": [f"{i}" for i in range(60)] * 2, "head": ["a"] * 60 + ["b"] * 60})
    both["score"] = [*rng.gamma(4, size=60), *nothing]
    both.to_csv("both.csv", index=False)
    code, said, _ = run("drift", "run", "--develop", "--scores", "both.csv", "--model", "net")
    (line,) = [text for text in said.splitlines() if "net/b" in text]
    assert code == 4 and said.startswith("1 head: 1 new") and "net/a" in said
    assert line.startswith("both.csv: net/b is left out: none of its 60 scores is a number") and "score these" in line
    both[both["head"] == "b"].to_csv("b.csv", index=False)
    err = fails(capsys, "drift", "run", "--scores", "b.csv", "--model", "net", "--store", "new")
    assert "b.csv: net/b is left out: none of its 60 scores" in err and "heads" not in run("drift", "history")[1]
    words = ("drift", "tag", "--model", "net", "--head", "a", "--store", "data/calibrations", "--out", "out.csv")
    code, said, _ = run(*words, "--scores", "b.csv")
    assert code == 1 and "60 undecided: without a score" in said  # as `predict` of images that cannot be read


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("file,score\na,1\nb,2\n\na,3\n", "s.csv: lines 2 and 5 both give a score of file a; keep one of them"),
        ("file,score,head\na,1,h\na,2,g\n", "lines 2 and 3 both give a score of file a"),  # --head says it is one
        ("name,score\na,1\n", "s.csv, line 1: no column image_path (or file, or key); it has name, score; rename"),
        ("file,value\na,1\n", "s.csv, line 1: no column score; it has file, value; rename one"),
        ("", "s.csv, line 1: is empty"),
        ("file,score\n", "s.csv: holds no scores, only the names of its columns; write a row for each file"),
        ("file;score\na;0,5\n", "s.csv, line 1: columns are separated by semicolons; save it with commas"),
        ("file,score\n ,1\n", "s.csv, line 2: file is empty; name the file"),
    ],
)
def test_a_table_of_scores_that_cannot_be_used_is_answered_in_one_line(tmp_path, monkeypatch, capsys, content, says):
    monkeypatch.chdir(tmp_path)
    Path("s.csv").write_text(content)
    Path("config.yml").write_text("calibrate_heads: true\n")
    assert says in fails(capsys, "drift", "run", "--scores", "s.csv", "--model", "net", "--head", "h")


def test_settings_that_are_not_there_and_a_table_with_a_mark(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(["\ufeffimage_path,score", *(f"{i}.png,{i / 60}" for i in range(60))])
    Path("marked.csv").write_text(text, encoding="utf-8")
    assert run("drift", "run", "--develop", "--scores", "marked.csv", "--model", "net", "--head", "h")[0] == 0
    for words in (["history"], ["trend", "net", "h"], ["run", "--scores", "marked.csv"], ["repair"]):
        err = fails(capsys, "drift", *words, "--config", "absent.yml")
        assert err.startswith("anomaly-nb: absent.yml: no such file; name a file of settings that exists"), err


def every_command():
    from tests.test_cli_options import commands

    import typer

    from anomaly_nb.cli.main import app

    return [(words, c) for words, c in commands(typer.main.get_command(app)) if any(p.required for p in c.params)]


@pytest.mark.parametrize(("words", "command"), every_command(), ids=lambda x: "-".join(x) if type(x) is tuple else "")
def test_a_missing_argument_is_named_in_one_line_with_an_example(words, command, capsys):
    err = fails(capsys, *words)
    missing, _, example = err.strip().partition("; for example: ")
    assert missing.startswith("anomaly-nb: missing ") and example.startswith(f"anomaly-nb {' '.join(words)} "), err


def test_two_runs_are_compared(tmp_path, capsys):
    from anomaly_nb.core.files import write_json

    for i in range(2):
        err = fails(capsys, "runs", "diff", *["abc"] * i, "--figures", tmp_path)
        assert f"holds {i} run" in err and "two are compared" in err and "anomaly-nb report" in err
        record = {"run_id": f"abc{i}", "report": "mine", "status": "ok", "started": f"2026-01-0{i + 1}", "seconds": 1.0}
        write_json(tmp_path / f"runs/mine-abc{i}/run.json", record | {"parameters": {"x": i}, "metrics": {}})
    assert "abc1: is the newest run itself; name two runs" in fails(capsys, "runs", "diff", "abc1", "--figures", tmp_path)
    assert "parameters.x" in run("runs", "diff", "abc0", "--figures", tmp_path)[1]
    assert "name the runs to verify, or all:" in fails(capsys, "runs", "verify", "--figures", tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "run", "--temperature", 0], "invalid value for '--temperature': "),
        (["train", "run", "--fit-cells", 0], "invalid value for '--fit-cells'"),
        (["train", "run", "--adapt", 2], "invalid value for '--adapt'"),
        (["evaluate", "run", "--resamples", -1], "invalid value for '--resamples'"),
        (["ablate", "study", "--seeds", "0,x"], "--seeds '0,x': give some numbers with commas"),
        (["ablate", "study", "--seeds", "0,1.5"], "--seeds '0,1.5': give whole numbers from 0 on"),
    ],
)
def test_street_commands_refuse_before_they_compute(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert says in fails(capsys, "street", *words) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fit", "x", "--out", "y", "--false-alarms", "abc"), "'--false-alarms': 'abc' is no number; give one such as 0.05"),
        (("samples", "x", "--size", "3.5"), "'--size': '3.5' is no whole number; give one such as 160"),
        (("serve", "x", "--port", "x"), "'--port': 'x' is no whole number; give one such as 8357"),
        (("samples", "x", "--size", "3"), "'--size': "),
        (("serve", "x", "--port", "99999"), ": --port 99999: must be less than or equal to 65535"),
        (("drift", "serve", "--port", "0"), ": --port 0: must be greater than or equal to 1"),
    ],
)
def test_a_number_that_is_none_names_its_option_and_an_example(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    err = fails(capsys, *words)
    assert says in err and "Input" not in err and "parse" not in err


def test_a_wrong_port_of_the_environment_names_the_variable(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ANOMALY_NB_PORT", "99999")
    assert ": ANOMALY_NB_PORT: must be less" in fails(capsys, "drift", "serve")
    assert ": ANOMALY_NB_PORT: must be less" in fails(capsys, "serve", "x")


def test_the_service_of_detectors_takes_its_settings_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_NB_CONFIG", str(tmp_path / "own.yml"))
    monkeypatch.chdir(tmp_path)
    assert run("serve", "x", "--new-key", "--name", "line3")[0] == 0
    assert (tmp_path / "own.yml").is_file() and not (tmp_path / "config.yml").exists()
    assert run("serve", "x", "--new-key", "--config", "given.yml")[0] == 0 and (tmp_path / "given.yml").is_file()


def test_inspect_says_which_folder_is_normal(tmp_path):
    for name in ("good/a", "good/b", "dent/a"):
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (32, 32), np.uint8)).save(
            tmp_path / "parts" / f"{name}.png"
        )
    said = run("inspect", tmp_path / "parts")[1]
    assert re.search(r"good +2 +normal images", said) and re.search(r"dent +1 +anomalous image ", said), said


def test_scenes_without_an_anomaly_are_refused_before_they_are_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            Path("scenes", split, kind).mkdir(parents=True)
            Image.fromarray(np.zeros((32, 48), np.uint8)).save(Path("scenes", split, kind, "a.png"))
    Path("scenes/classes.json").write_text('{"classes": {"road": 0, "car": 1}}')
    words = ["--data", "folder", "--root", "scenes", "--height", 32, "--width", 48]
    err = fails(capsys, "street", "ablate", "study", *words)
    assert "none of its classes is the anomaly" in err and "with --held-out, such as car" in err
    assert not Path("study").exists()


def test_weights_that_are_not_at_hand_name_the_mend(capsys, monkeypatch):
    import_torchvision()
    smp = pytest.importorskip("segmentation_models_pytorch")
    whole = smp.DeepLabV3Plus

    def offline(*args, encoder_weights=None, **options):
        if encoder_weights:
            raise OSError("Network is unreachable")
        return whole(*args, encoder_weights=None, **options)

    monkeypatch.setattr(smp, "DeepLabV3Plus", offline)
    words = ["--data", "samples", "--model", "deeplabv3plus_mobilenetv2", "--height", "32", "--width", "48"]
    err = fails(capsys, "street", "train", "unused", *words)
    assert "could not be downloaded" in err and "--weights <file>, or --weights '' to start from random ones" in err
    assert not Path("unused").exists()


def test_street_score_goes_on_after_a_damaged_image(tmp_path):
    import_torchvision()
    pytest.importorskip("segmentation_models_pytorch")
    size = ["--height", "32", "--width", "48", "--device", "cpu"]
    made = run(
        "street", "train", tmp_path / "run", "--data", "samples", "--model", "deeplabv3plus_mobilenetv2", "--weights", "",
        "--epochs", 1, "--epoch-images", 2, "--batch-size", 2, "--methods", "max_logit", *size,
    )  # fmt: skip
    assert made[0] == 0, made
    folder = tmp_path / "images"
    parts(folder, range(2))
    (folder / "0a.png").write_bytes(b"no image")
    code, said, error = run("street", "score", tmp_path / "run", folder, "--out", tmp_path / "s", "--device", "cpu")
    table = pd.read_csv(tmp_path / "s/scores.csv", keep_default_na=False)
    assert code == 4 and said.startswith("2 images scored with ") and "1 of 3 images could not be read" in said, error
    assert table["error"].ne("").tolist() == [False, True, False] and "damaged" in table["error"][1]
    for i in range(2):
        (folder / f"{i}.png").unlink()
    assert run("street", "score", tmp_path / "run", folder, "--out", tmp_path / "s", "--device", "cpu")[0] == 1


def test_numbers_and_their_nouns():
    assert [number_of(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    said = [number_of(1, "category"), number_of(3, "category"), number_of(2, "anomalous stretch")]
    assert said == ["1 category", "3 categories", "2 anomalous stretches"]


def test_predict_of_one_image(fitted, tmp_path):
    shutil.copy(fitted / "good/0.png", tmp_path / "0.png")
    code, said, _ = run("predict", fitted / "det", tmp_path / "0.png", "--out", tmp_path / "p.csv")
    first, note = said.splitlines()
    assert (
        first.startswith("1 image: ")
        and note.startswith("note: the detector learned from 1 of 1 image;")
        and code in (0, 3)
    )
    assert not ONE.search(said) and os.path.isfile(tmp_path / "p.csv")


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "", "/tmp/evil", "a\\b", ".ipynb"])
def test_a_report_of_ones_own_stays_in_its_folder(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, said, error = run("new", name, "--to", "mine")
    assert code != 0 and "a name holds no path; name the folder with --to" in f"{said}{error}"
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".ipynb"]


def test_the_command_that_a_new_report_suggests_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said, _ = run("new", "my report", "--to", "of mine")
    assert code == 0 and "run it:  anomaly-nb report 'of mine/my report.ipynb'" in said
