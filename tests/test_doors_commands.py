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
from anomaly_nb.cli.main import main
from anomaly_nb.core.errors import DataError, Notice, number_of
from anomaly_nb.core.files import atomic_folder, atomic_write, staging_folder
from anomaly_nb.core.runtime import import_torchvision
from anomaly_nb.data.samples import draw_sample
from anomaly_nb.reports.run import prepare
from anomaly_nb.video.plan import plan_for
from tests.commands import FIT, run

ONE = re.compile(r"(?<![\d.,])1 (images|files|heads|videos|frames|scores|scenes|objects|events|runs|jobs|patches)\b")


def fails(capsys, *words):
    "The one line of a command that cannot work."
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    err = capsys.readouterr().err
    assert stop.value.code and err.count("\n") == 1 and err.startswith("anomaly-nb: "), err
    return err


def parts(folder, numbers, defect="good"):
    folder.mkdir(parents=True)
    for i in numbers:
        Image.fromarray(draw_sample("nut", defect, i, size=48)[0]).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    parts(folder / "good", range(8))
    code, said, error = run("fit", folder / "good", "--out", folder / "det", *FIT)
    assert code == 0, (said, error)
    (folder / "said.txt").write_text(said)
    return folder


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
    assert run(*tag, "--scores", "low.csv")[:2] == (0, "1 score: 0 anomalous (version 1) -> out.csv\n")
    assert run(*tag, "--scores", "b.csv")[0] == 3
    for said in (first[1], moved[1], run("drift", "history")[1], run("drift", "worker")[1], run("drift", "repair")[1]):
        assert not ONE.search(said), said


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
