"Files as strangers have them: hostile names, cut, tiny, animated images, used folders; each is named once in one line."

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.cli.main import main
from anomaly_nb.core.order import printable
from anomaly_nb.data.samples import draw_sample
from tests.commands import FIT, run

HOSTILE = ("two\nlines", "\x1b[2J\x1b[31mred", "\u202egnp.back", "long" + "g" * 200)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]")


def fails(capsys, *words):
    "The one line of a command that cannot work."
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    lines = capsys.readouterr().err.splitlines()  # what was found before comes first
    assert stop.value.code and sum(line.startswith("anomaly-nb: ") for line in lines) == 1, lines
    return lines[-1]


def part(path, i=0, side=48):
    "A drawn part as a file."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_sample("nut", "good", i, size=side)[0]).save(path)
    return path


def cut(path):
    "A file that ends too early."
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def animated(path, n=4):
    "An image of several frames or pages."
    frames = [Image.fromarray(draw_sample("nut", "good", 80 + i, size=48)[0]) for i in range(n)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def test_hostile_names_stay_on_their_line(fitted, tmp_path):
    for i, name in enumerate(HOSTILE):
        cut(part(tmp_path / "bad" / f"{name}.png", i))
        (tmp_path / "bad" / f"{name}.txt").write_text("no image")
        part(tmp_path / "bad" / name[:100] / "x.png", i)
    animated(tmp_path / "bad" / "two\nframes.gif")
    commands = {
        "inspect": ("inspect", tmp_path / "bad"),
        "predict": ("predict", fitted / "det", tmp_path / "bad", "--out", tmp_path / "p.csv"),
        "watch": ("predict", fitted / "det", tmp_path / "bad", "--out", tmp_path / "w.csv", "--watch", "--every", 0.05)
        + ("--idle", 0.2),
    }
    for name, words in commands.items():
        code, said, error = run(*words)
        assert not CONTROL.search(said) and "two\\n" in said, (name, said, error)
        assert max(map(len, said.splitlines())) < 1000
        if name == "inspect":
            assert code == 1 and not any(line.startswith(("lines", "frames.gif")) for line in said.splitlines()), said
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert not table["image_path"].str.contains(CONTROL).any()  # the name as every message has it
    assert {(tmp_path / "bad" / f"{printable(name)}.png").as_posix() for name in HOSTILE} <= set(table["image_path"])


def test_errors_and_notes_with_hostile_names_are_one_line(fitted, tmp_path, capsys):
    cut(part(tmp_path / "good" / "\x1b[31mtwo\nlines.png"))
    part(tmp_path / "good" / "1.png", 1)
    err = fails(capsys, "fit", tmp_path / "good", "--out", tmp_path / "det", *FIT)
    assert not CONTROL.search(err) and "\\x1b[31m" in err


def test_inspect_ends_and_counts_as_the_other_commands(fitted, tmp_path):
    shutil.copytree(fitted / "good", tmp_path / "good")
    assert run("inspect", tmp_path / "good")[0] == 0
    cut(part(tmp_path / "good" / "cut.png", 9, 64))
    code, said, _ = run("inspect", tmp_path / "good")
    assert code == 4 and "9 image files (8 uint8); 1 cannot be read" in said and "64 x 64" not in said, said
    for path in (tmp_path / "good").iterdir():
        path.name == "cut.png" or path.unlink()
    assert run("inspect", tmp_path / "good")[0] == 1
    told = run("inspect", "--help")[1]
    assert "Exit codes: 0" in told and "; 4 some" in told


def test_an_image_too_small_to_show_anything_is_a_row_with_an_error(fitted, tmp_path, capsys):
    part(tmp_path / "new" / "a.png", 70)
    for size in ((1, 1), (2, 3), (8, 7)):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "new" / f"s{size[1]}.png")
    code, said, _ = run("predict", fitted / "det", tmp_path / "new", "--out", tmp_path / "p.csv")
    errors = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)["error"].tolist()
    assert code in (3, 4) and errors[0] == "" and "3 of 4 images could not be read" in said
    assert all(size in e and "at least 8 x 8" in e for size, e in zip(("1 x 1", "2 x 3", "8 x 7"), errors[1:]))
    shutil.copytree(fitted / "good", tmp_path / "good")
    for name in ("x", "y"):
        Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "good" / f"{name}.png")
    err = fails(capsys, "fit", tmp_path / "good", "--out", tmp_path / "det", *FIT)
    assert "2 images cannot be read" in err and "x.png: has 2 x 3 pixels" in err and "y.png: has 2 x 3 pixels" in err
    assert (
        "smaller than 8 x 8 pixels, refused by fit and predict: 2, x.png, y.png" in run("inspect", tmp_path / "good")[1]
    )


@pytest.mark.parametrize("suffix", [".gif", ".tif"])
def test_several_frames_are_said_by_all_who_look_at_the_first(fitted, tmp_path, suffix):
    film = animated(tmp_path / f"film{suffix}")
    code, said, _ = run("predict", fitted / "det", film, "--out", tmp_path / "p.csv")
    sentence = f"several pages or frames in 1 image, the first film{suffix}: one of each is read, 3 others passed over"
    assert sentence in said and code in (0, 3)
    (note,) = pd.read_csv(tmp_path / "p.csv")["note"]
    from anomaly_nb.scoring.service import read_detectors

    (served,) = read_detectors(fitted / "det").values()
    answers = [served.predict(p.read_bytes(), "image/x", None, tmp_path) for p in (film, fitted / "good/0.png")]
    palette = "; is GIF P, a type of file that the detector never saw" if suffix == ".gif" else ""
    assert [a.note for a in answers] == [note, ""]
    assert note == f"holds 4 pages or frames: the first was looked at{palette}"
    shutil.copytree(fitted / "det", tmp_path / "det")
    assert sentence in run("update", tmp_path / "det", film)[1]


def test_a_used_folder_of_maps_is_said(fitted, tmp_path):
    words = ("predict", fitted / "det", fitted / "good", "--out", tmp_path / "p.csv", "--maps", tmp_path / "maps")
    assert "this run has not written" not in run(*words)[1]
    (tmp_path / "maps" / "old.tiff").write_bytes(b"x")
    (tmp_path / "maps" / "old.overlay.png").write_bytes(b"x")
    said = run(*words)[1]
    assert "maps holds 2 files that this run has not written, the first old.overlay.png" in said
    assert " of an earlier run are replaced, the first " in said and "give a new folder to keep both" in said


def test_watching_goes_on_in_the_columns_of_an_earlier_table(fitted, tmp_path, capsys):
    words = ("predict", fitted / "det", fitted / "good", "--out", tmp_path / "w.csv", "--watch", "--every", 0.05)
    old = "image_path,score,anomalous,error\n"
    (tmp_path / "w.csv").write_text(old)
    run(*words, "--idle", 0.2)
    table = pd.read_csv(tmp_path / "w.csv")
    assert len(table) == 8 and ",".join(table.columns) + "\n" == old and table["score"].notna().all()
    (tmp_path / "w.csv").write_text("name,price\n")
    assert "'name', so it is no table of decisions" in fails(capsys, *words, "--idle", 0.2)


@pytest.mark.parametrize(
    "words, says",
    [
        (("--recipe", "foo"), "--recipe foo: use auto, one of knn, "),
        (("--recipe", "knn", "--tile", "10"), "--tile 10 is too small for filters; use at least 16"),
        (("--recipe", "knn", "--image-size", "3"), "--image-size 3 is too small for filters; use at least 16"),
        (("--recipe", "knn", "--region", "nowhere"), "--region nowhere: is neither a box"),
        (("--recipe", "padim", "--budget-mb", "5"), "give --budget-ms and --budget-mb with a nearest-neighbour recipe"),
        (("--recipe", "knn", "--prompts", "hex nut"), "--prompts: knn does not compare with words"),
    ],
)
def test_errors_name_the_option_that_was_typed(fitted, tmp_path, capsys, words, says):
    assert says in fails(capsys, "fit", fitted / "good", "--out", tmp_path / "det", "--backbone", "filters", *words)


def test_wrong_words_are_refused_before_anything_is_looked_at(fitted, tmp_path, capsys):
    assert "--on-missing 'foo'; use raise, keep or drop" in fails(
        capsys, "extract", fitted / "good", "--dataset", "folder", "--on-missing", "foo", "--out", tmp_path
    )
    assert "--intensity 'foo'; use auto" in fails(capsys, "inspect", fitted / "good", "--intensity", "foo")
    assert "--split foo: use training, testing or both" in fails(
        capsys, "video", "extract", "--dataset-name", "clips", "--root", tmp_path, "--split", "foo"
    )
    for words in (("samples", tmp_path / "s", "--size", 3), ("score-video", "--fps", -1)):
        code, said, _ = run(*words)
        assert code == 2 and "Invalid value" in said


def test_images_of_one_name_are_told_apart(tmp_path):
    for i in range(4):
        part(tmp_path / "parts/good" / f"line{i // 2}" / f"{i % 2}.png", i)
    part(tmp_path / "parts/good/line1/alone.png", 5)
    part(tmp_path / "parts/good/line0/0_copy.png", 0)
    code, said, error = run("fit", tmp_path / "parts", "--out", tmp_path / "det", *FIT)
    card = (tmp_path / "det/detector.html").read_text()
    assert code == 0 and "<li>line0/0.png</li>" in card and "<li>line1/0.png</li>" in card, (said, error)
    assert "<li>alone.png</li>" in card and "differs from it in" not in card and "by quantile" not in card
    assert "of the scores of 6 held-out normal training images" in card and "the recipe is the same" in card


def test_a_first_run_is_new_and_small_scores_keep_their_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, more in (("a", 0), ("b", 3)):
        scores = pd.DataFrame({"image_path": [f"{name}{i}" for i in range(60)], "score": rng.gamma(4, size=60) + more})
        scores.assign(score=scores["score"] * 1e-5).to_csv(f"{name}.csv", index=False)
    words = ("drift", "run", "--model", "net", "--head", "h", "--scores")
    code, said, _ = run(*words, "a.csv", "--develop")
    assert code == 0 and "unstable" not in said and "net/h, by 60 files: new: first run of this head" in said
    assert "version 1; the store holds scores of 60 files" in said
    code, said, _ = run(*words, "b.csv")
    assert code == 3 and said.startswith("1 head: 1 unstable") and "by 60 files: unstable" in said
    (moved,) = re.findall(r"median_drift +(\S+)", said)
    assert 0 < float(moved) < 1e-3
    history = run("drift", "history")[1]
    assert " new " in history and "is_stable" not in history
    assert "v1 (60 files, no reference yet) new: " in run("drift", "trend", "net", "h")[1]


def content(folder):
    "Every file below a folder with its bytes."
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_predict_writes_over_nothing_that_it_reads(fitted, tmp_path, capsys):
    "An image, a file of the detector, a device, a foreign table: each is refused before any work, and stays as it is."
    shutil.copytree(fitted / "det", tmp_path / "det")
    (tmp_path / "new").mkdir()
    for i, path in enumerate(sorted((fitted / "good").iterdir())[:2]):
        Image.open(path).save(tmp_path / "new" / f"{i}.tiff")
    (tmp_path / "notes.csv").write_text("important\n")
    before, new = content(tmp_path), tmp_path / "new"
    for out, words in (
        (new / "0.tiff", "is the file that is read, and would be lost"),
        (tmp_path / "det" / "training.csv", "lies in the detector det"),
        (tmp_path / "notes.csv", "holds something else than an earlier table"),
        (Path(os.devnull), "is a device or a pipe"),
    ):
        assert words in fails(capsys, "predict", tmp_path / "det", new, "--out", out)
    for maps, words in (
        (new, "where images are read"),
        (new / "maps", "where images are read"),
        (tmp_path / "det" / "m", "lies in the detector det"),
    ):
        out = tmp_path / "p.csv"
        assert words in fails(capsys, "predict", tmp_path / "det", new, "--out", out, "--maps", maps)
        assert words in fails(capsys, "predict", tmp_path / "det", new, "--out", out, "--maps", maps, "--watch")
    assert "where images are read" in fails(capsys, "predict", tmp_path / "det", new / "0.tiff", "--maps", new)
    assert content(tmp_path) == before and not Path(os.devnull).is_file()
    words = ("predict", tmp_path / "det", new, "--out", tmp_path / "p.csv", "--maps", tmp_path / "maps")
    assert run(*words)[0] in (0, 3) and run(*words)[0] in (0, 3)  # its own earlier table and maps are no obstacle
    assert all(content(tmp_path)[path] == data for path, data in before.items())


def test_a_watched_file_that_changes_is_judged_again(fitted, tmp_path):
    "A station that uses a name again, and a file that was looked at before it was whole."
    (tmp_path / "new").mkdir()
    good = sorted((fitted / "good").iterdir())[0].read_bytes()
    (tmp_path / "new" / "a.png").write_bytes(good)
    (tmp_path / "new" / "b.png").write_bytes(good[:200])
    words = ("predict", fitted / "det", tmp_path / "new", "--out", tmp_path / "w.csv", "--watch", "--every", 0.05)
    run(*words, "--idle", 0.3)
    assert "0 images" in run(*words, "--idle", 0.3)[1]  # nothing has changed
    time.sleep(0.02)
    (tmp_path / "new" / "b.png").write_bytes(good)
    run(*words, "--idle", 0.3)
    table = pd.read_csv(tmp_path / "w.csv")
    names = table["image_path"].str[-5:].tolist()
    assert names == ["a.png", "b.png", "b.png"] and table["error"].notna().tolist() == [False, True, False]
    changed = threading.Timer(0.6, (tmp_path / "new" / "a.png").write_bytes, [good + b"more"])
    changed.start()
    run(*words, "--idle", 1.5)
    assert pd.read_csv(tmp_path / "w.csv")["image_path"].str[-5:].tolist() == [*names, "a.png"]


def test_images_of_another_shape_are_said(fitted, tmp_path):
    Image.new("RGB", (96, 40), (120, 130, 140)).save(tmp_path / "wide.png")
    code, said, _ = run("predict", fitted / "det", tmp_path / "wide.png", "--out", tmp_path / "p.csv")
    assert code in (0, 3) and "1 image has a shape that the detector never saw, the first wide.png" in said
    assert pd.read_csv(tmp_path / "p.csv")["note"].tolist() == ["has a shape that the detector never saw"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files")
@pytest.mark.parametrize("form", ["TIFF", "JPEG", "PNG", "BMP"])
def test_what_a_full_disk_cuts_off_is_an_error(tmp_path, form):
    "Pillow takes a short last write for a whole one; the file must not be taken for written."
    code = f"""
import resource, signal
import numpy as np
from PIL import Image
from anomaly_nb.core.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20480, resource.RLIM_INFINITY))
noise = np.random.default_rng(0)
image = noise.random((100, 128)).astype(np.float32) if {form!r} == "TIFF" else noise.integers(0, 255, (300, 300, 3)).astype(np.uint8)
with atomic_write("image") as f: Image.fromarray(image).save(f, format={form!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode and "File too large" in done.stderr and not list(tmp_path.iterdir())


def test_an_interrupted_predict_keeps_the_rows_it_has(fitted, tmp_path, monkeypatch):
    from anomaly_nb.scoring import predict as module

    def three(*words, whole=module.predict_files, **options):
        for i, prediction in enumerate(whole(*words, **options)):
            if i == 3:
                raise KeyboardInterrupt
            yield prediction

    monkeypatch.setattr(module, "predict_files", three)
    (tmp_path / "p.csv").write_text("image_path,score\nold.png,1\n")
    code, said, _ = run("predict", fitted / "det", fitted / "good", "--out", tmp_path / "p.csv")
    part = pd.read_csv(tmp_path / "p.partial.csv")
    assert code == 130 and len(part) == 3 and part["score"].notna().all()
    assert f"3 of 8 images were judged: their rows are in {tmp_path / 'p.partial.csv'}" in said
    assert (tmp_path / "p.csv").read_text() == "image_path,score\nold.png,1\n" and len(list(tmp_path.iterdir())) == 2
