"A watch that goes on: names of maps, torn lines, other detectors, files judged again, outputs in one another's place."

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from tests.commands import FIT, fails, parts, run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    root = tmp_path_factory.mktemp("watch")
    parts(root / "good", range(8))
    assert run("fit", root / "good", "--out", root / "det", *FIT)[0] == 0
    return root


def watching(detector, new, out, *words, idle=0.25):
    "The words of a watch that ends by itself."
    return ("predict", detector, new, "--out", out, "--watch", "--every", 0.05, "--idle", idle, *words)


def test_maps_of_one_name_stay_apart_whatever_arrives_together(fitted, tmp_path):
    "Below the folder that is watched, each at its own path, and after a restart, too."
    sources = sorted((fitted / "good").iterdir())
    words = watching(fitted / "det", tmp_path / "new", tmp_path / "w.csv", "--maps", tmp_path / "maps")
    (tmp_path / "new").mkdir()
    for source, name in zip(sources, ("a/1.png", "b/1.png", "1.png", "a/1.PNG")):
        (tmp_path / "new" / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / "new" / name)
        assert run(*words)[0] in (0, 3)
    names = sorted(p.relative_to(tmp_path / "maps").as_posix() for p in (tmp_path / "maps").rglob("*.tiff"))
    assert names == ["1.tiff", "a/1.tiff", "a/1_PNG.tiff", "b/1.tiff"]


@pytest.mark.parametrize("torn", [b"", b"/new/2", b"/new/2.png,0.1", b"\0\0\0"])
def test_a_torn_last_line_is_cut_off_and_its_image_judged_again(fitted, tmp_path, torn):
    new, table = parts(tmp_path / "new", range(3)), tmp_path / "w.csv"
    words = watching(fitted / "det", new, table)
    run(*words)
    whole = table.read_bytes()
    lines = whole.splitlines(keepends=True)
    table.write_bytes(b"".join(lines[:-1]) + (torn or lines[-1][:-1]))
    said = run(*words)[1]
    assert "1 image: " in said and said.count(f"note: the last line of {table} was not whole; it is cut off") == 1
    assert table.read_bytes() == whole
    assert "0 images: " in (again := run(*words)[1]) and "not whole" not in again


def test_a_torn_first_line_and_files_of_something_else(fitted, tmp_path, capsys):
    new, table = parts(tmp_path / "new", range(2)), tmp_path / "w.csv"
    table.write_bytes(b"image_path,sco")
    assert run(*watching(fitted / "det", new, table))[0] in (0, 3) and len(pd.read_csv(table)) == 2
    for content, why in ((b"name,price\nbolt,1", "'name'"), (b"my notes", "is no table of decisions")):
        (tmp_path / "other.csv").write_bytes(content)
        assert why in fails(capsys, *watching(fitted / "det", new, tmp_path / "other.csv"))
        assert (tmp_path / "other.csv").read_bytes() == content
        assert not (tmp_path / "other.csv.detector.json").exists()


def test_the_table_of_another_detector_is_refused(fitted, tmp_path, capsys):
    "Of one that was fitted on others, and of one that was updated; the table stays as it is, and a copy goes on."
    new, table = parts(tmp_path / "new", range(2)), tmp_path / "w.csv"
    shutil.copytree(fitted / "det", tmp_path / "det")
    run(*watching(tmp_path / "det", new, table))
    shutil.copytree(fitted / "det", tmp_path / "moved/det")
    assert "0 images: " in run(*watching(tmp_path / "moved/det", new, table))[1]
    parts(tmp_path / "more", range(20, 24))
    assert run("fit", tmp_path / "more", "--out", tmp_path / "second", *FIT)[0] == 0
    assert run("update", tmp_path / "det", tmp_path / "more")[0] == 0
    content = table.read_bytes()
    for detector, name in ((tmp_path / "second", "version 1 of second"), (tmp_path / "det", "version 2 of det")):
        error = fails(capsys, *watching(detector, new, table))
        assert "version 1 of det (" in error and name in error and "name another file" in error
        assert table.read_bytes() == content
    record = json.loads((tmp_path / "w.csv.detector.json").read_text())
    assert record["name"] == "det" and record["version"] == 1 and len(record["sha256"]) == 64
    (tmp_path / "w.csv.detector.json").unlink()
    assert "does not say which detector wrote it" in run(*watching(tmp_path / "second", new, table))[1]
    assert "version 1 of second" in fails(capsys, *watching(fitted / "det", new, table))


def test_a_table_that_is_written_anew_is_of_nobody_before(fitted, tmp_path, capsys):
    "`predict` without `--watch` replaces the table; what stood beside it is of the earlier one."
    new, table = parts(tmp_path / "new", range(2)), tmp_path / "w.csv"
    assert run("fit", parts(tmp_path / "more", range(20, 24)), "--out", tmp_path / "second", *FIT)[0] == 0
    run(*watching(fitted / "det", new, table))
    assert run("predict", tmp_path / "second", new, "--out", table)[0] in (0, 3)
    assert "version 1 of det" not in run(*watching(tmp_path / "second", new, table))[1]
    assert "version 1 of second" in fails(capsys, *watching(fitted / "det", new, table))


def test_files_are_counted_by_their_last_row(fitted, tmp_path):
    new, table = parts(tmp_path / "new", range(3)), tmp_path / "w.csv"
    whole = (new / "0.png").read_bytes()
    (new / "0.png").write_bytes(whole[:200])
    mend = threading.Timer(1.0, (new / "0.png").write_bytes, [whole])
    mend.start()
    code, said, _ = run(*watching(fitted / "det", new, table, idle=2))
    mend.join()
    assert len(pd.read_csv(table)) == 4
    assert "3 images: " in said and f"0 could not be read, 1 judged again -> {table}" in said and code in (0, 3)


@pytest.mark.parametrize(
    "out, maps, why",
    [
        ("q.csv", "q.csv", "are one path"),
        ("q.csv", "x/../q.csv", "are one path"),
        ("q.csv", "q.csv/maps", "lie in each other"),
        ("maps/q.csv", "maps", "lie in each other"),
    ],
)
@pytest.mark.parametrize("watch", [(), ("--watch", "--idle", 0.1)])
def test_outputs_that_replace_one_another_are_refused(fitted, tmp_path, monkeypatch, capsys, out, maps, why, watch):
    monkeypatch.chdir(tmp_path)
    error = fails(capsys, "predict", fitted / "det", fitted / "good", "--out", out, "--maps", maps, *watch)
    assert f"--out {out}" in error and f"--maps {maps}" in error and why in error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files")
def test_a_table_that_cannot_grow_is_named_and_whole_after_a_restart(fitted, tmp_path):
    new, table = parts(tmp_path / "new", range(6)), tmp_path / "w.csv"
    words = [str(w) for w in watching(fitted / "det", new, table)]
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))\n"
        f"from anomaly_nb.cli.main import main; main({words!r})"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode and done.stderr == f"anomaly-nb: {table}: File too large\n", done.stderr
    time.sleep(0.02)
    assert "was not whole; it is cut off" in run(*words)[1]
    assert pd.read_csv(table)["image_path"].tolist() == [(new / f"{i}.png").as_posix() for i in range(6)]


def test_hidden_folders_are_counted(fitted, tmp_path):
    new = parts(tmp_path / "new", range(2))
    parts(new / ".thumbs", range(2))
    parts(new / "a/.old", range(1))
    for words in (("predict", fitted / "det", new, "--out", tmp_path / "p.csv"), ("inspect", new)):
        said = run(*words)[1]
        assert "hidden folder, not entered" in said and ".thumbs" in said and "2" in said, said
    assert len(pd.read_csv(tmp_path / "p.csv")) == 2


def test_what_was_not_measured_is_not_shown(fitted, tmp_path):
    words = ("--recipe", "knn", "--backbone", "filters", "--image-size", 48, "--budget-mb", 1)
    code, said, _ = run("fit", fitted / "good", "--out", tmp_path / "det", *words)
    assert code == 0 and "measured here: search " in said and "0.0 ms, search" not in said and "features" not in said
    assert "features 0.0 ms" not in (tmp_path / "det/detector.html").read_text()
    said = run("fit", fitted / "good", "--out", tmp_path / "det", *words[:-2], "--budget-ms", 2000)[1]
    assert "measured here: features " in said


def latest(table):
    "The last row of each image, by its name."
    rows = pd.read_csv(table)
    rows["name"] = [os.path.basename(p) for p in rows["image_path"]]
    return rows.drop_duplicates("name", keep="last").set_index("name")


def test_a_file_that_was_replaced_by_an_older_one_is_judged_again_after_a_restart(fitted, tmp_path):
    new, table = parts(tmp_path / "new", range(3)), tmp_path / "w.csv"
    other = parts(tmp_path / "other", [40], "scratch") / "40.png"
    words = watching(fitted / "det", new, table)
    run(*words)
    before = latest(table)
    early = time.time() - 86400
    os.utime(other, (early, early))
    os.replace(other, new / "1.png")
    assert "1 image: " in run(*words)[1] and "0 images: " in run(*words)[1]
    after = latest(table)
    assert after.score["1.png"] != before.score["1.png"] and after.score["0.png"] == before.score["0.png"]
    assert len(pd.read_csv(table)) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs kill")
def test_what_a_killed_watch_had_not_judged_is_judged_after_a_restart(fitted, tmp_path):
    "In the middle of a batch of files that were all written over: none keeps its earlier row as its last."
    new, table = parts(tmp_path / "new", range(12)), tmp_path / "w.csv"
    words = [str(w) for w in watching(fitted / "det", new, table)]
    run(*words)
    stale = latest(table).score
    for i, path in enumerate(sorted(new.iterdir(), key=lambda p: int(p.stem))):
        shutil.copy(parts(tmp_path / f"other{i}", [80 + i], "scratch") / f"{80 + i}.png", path)
    code = (
        "import os; from anomaly_nb.cli import watching\n"
        "add, n = watching.Judged.add, []\n"
        "def ends(judged, *words):\n    n.append(1); len(n) == 5 and os.kill(os.getpid(), 9); add(judged, *words)\n"
        f"watching.Judged.add = ends\nfrom anomaly_nb.cli.main import main; main({words!r})"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    assert subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL).returncode == -9
    assert len(pd.read_csv(table)) == 17  # the fifth row stands, and what it was judged on does not
    with open(f"{table}.judged.jsonl", "a") as file:
        file.write('["half a li')
    assert "8 images: " in run(*words)[1]
    assert (latest(table).score != stale).all() and "0 images: " in run(*words)[1]


def test_a_table_of_earlier_days_goes_on_by_dates_and_says_so(fitted, tmp_path):
    new, table = parts(tmp_path / "new", range(3)), tmp_path / "w.csv"
    words, note = watching(fitted / "det", new, table), "does not say what its images were when they were judged"
    assert note not in run(*words)[1]
    (tmp_path / "w.csv.judged.jsonl").unlink()
    late = time.time() + 60
    os.utime(new / "2.png", (late, late))
    said = run(*words)[1]
    assert said.count(f"note: {table} {note}") == 1 and "1 image: " in said
    said = run(*words)[1]
    assert note not in said and "0 images: " in said
    run("predict", fitted / "det", new, "--out", table)  # written anew, by nobody who watches
    assert note in run(*words)[1]


def test_two_watches_of_one_table_are_refused(fitted, tmp_path, capsys):
    "Whoever comes second ends with one sentence; a table that a watch writes is not replaced either."
    new, table = parts(tmp_path / "new", range(2)), tmp_path / "w.csv"
    words = [str(w) for w in watching(fitted / "det", new, table, idle=0)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    first = subprocess.Popen([sys.executable, "-m", "anomaly_nb.cli.main", *words], env=environment)
    try:
        for _ in range(600):
            if table.is_file() and table.read_text().count("\n") == 3:
                break
            time.sleep(0.05)
        why = f"anomaly-nb: --out {table}: another watch writes it; end that one, or name another file\n"
        (tmp_path / "link.csv").symlink_to(table)
        assert fails(capsys, *watching(fitted / "det", new, table)) == why
        assert "another watch writes it" in fails(capsys, *watching(fitted / "det", new, tmp_path / "link.csv"))
        assert fails(capsys, "predict", fitted / "det", new, "--out", table) == why
    finally:
        first.kill()  # which frees the lock
        first.wait()
    assert len(pd.read_csv(table)) == 2
    assert "0 images: " in run(*watching(fitted / "det", new, table))[1]
    assert run("predict", fitted / "det", new, "--out", table)[0] in (0, 3)


def test_a_watched_folder_that_goes_for_a_moment_is_waited_for(fitted, tmp_path):
    new, table = parts(tmp_path / "new", range(2)), tmp_path / "w.csv"
    parts(tmp_path / "more", [90, 91], "scratch")

    def steps():
        time.sleep(0.8)
        new.rename(tmp_path / "away")
        time.sleep(0.8)
        (tmp_path / "more/90.png").rename(tmp_path / "away/90.png")
        (tmp_path / "away").rename(new)

    thread = threading.Thread(target=steps)
    thread.start()
    code, said, error = run(*watching(fitted / "det", new, table, idle=4))
    thread.join()
    assert code in (0, 3) and "3 images: " in said, (said, error)
    assert code == (3 if latest(table).anomalous.any() else 0)
    for line in (f"note: {new} is not there now; it is waited for", f"note: {new} is there again"):
        assert said.splitlines().count(line) == 1, said
    new.rename(tmp_path / "gone")
    assert "no such file or folder" in str(run(*watching(fitted / "det", new, table))[2])  # not there from the start


def test_what_arrives_and_is_passed_over_is_named(fitted, tmp_path):
    "Each reason once, when it is seen first; all are counted at the end, as by predict without --watch."
    new, table = parts(tmp_path / "new", range(2)), tmp_path / "w.csv"
    (tmp_path / "folder").mkdir()

    def steps():
        time.sleep(1)
        for name in ("noext", "d.jpg_", "e.txt"):
            (new / name).write_text("no image")
        shutil.copy(new / "0.png", new / ".h.png")
        (new / "link").symlink_to(tmp_path / "folder")

    thread = threading.Thread(target=steps)
    thread.start()
    said = run(*watching(fitted / "det", new, table, idle=2.5))[1]
    thread.join()
    plain = run("predict", fitted / "det", new, "--out", tmp_path / "p.csv")[1]
    counted = [line for line in plain.splitlines() if line.startswith("passed over: ")]
    lines = [line for line in said.splitlines() if line.startswith("passed over: ")]
    assert len(counted) >= 3 and sorted(lines) == sorted(counted), (lines, counted)
    (new / "f.txt").write_text("no image")
    (tmp_path / "w.csv").unlink()
    late = threading.Timer(1, (new / "g.txt").write_text, ["no image"])
    late.start()
    again = run(*watching(fitted / "det", new, table, idle=2.5))[1].splitlines()
    late.join()
    numbers = [line.split()[2] for line in again if line.startswith("passed over: ") and "txt" in line]
    assert numbers == ["2,", "3,"], again  # at first, and in the end
    assert said.index(lines[0]) < said.index(" images: ")


def test_a_table_that_is_moved_under_a_watch_begins_anew(fitted, tmp_path):
    "As a rotated log: later rows would go where nobody looks."
    new, table = parts(tmp_path / "new", range(2)), tmp_path / "w.csv"
    late = parts(tmp_path / "late", [90]) / "90.png"

    def steps():
        time.sleep(1)
        table.rename(tmp_path / "yesterday.csv")
        late.rename(new / "90.png")

    thread = threading.Thread(target=steps)
    thread.start()
    said = run(*watching(fitted / "det", new, table, idle=2.5))[1]
    thread.join()
    assert said.count(f"note: {table} was moved or removed; a new table begins") == 1 and "3 images: " in said
    assert len(pd.read_csv(tmp_path / "yesterday.csv")) == 2 and latest(table).index.tolist() == ["90.png"]
