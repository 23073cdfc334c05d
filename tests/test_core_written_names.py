"Names from outside in every CSV that is written: whatever is in them, they read back the same."

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import anomaly_nb
from anomaly_nb.core.tables import read_table, write_table
from anomaly_nb.reports.folder import ReportFolder
from tests.commands import run

HOSTILE = [
    "=1+1", "+a", "-b", "@c", "a,b", 'q"uo"te', '"', "line\nbreak", "carriage\rreturn", "both\r\nof them", "\r", " lead",
    "trail ", "001", "1e5", "NA", "nan", "'x", "a;b", "tab\tx", "#x", "\u2028", "\x1b[31m", "ünï 名",
]  # fmt: skip


def test_a_table_gives_every_text_back(tmp_path):
    table = pd.DataFrame({"file": HOSTILE, "score": np.linspace(0, 1, len(HOSTILE))})
    back = read_table(write_table(tmp_path / "t.csv", table), types={"score": float})
    assert back["file"].tolist() == HOSTILE and np.array_equal(back["score"], table["score"])
    assert pd.read_csv(tmp_path / "t.csv", keep_default_na=False, dtype=str)["file"].tolist() == HOSTILE


@pytest.mark.parametrize("name", HOSTILE)
def test_a_single_hostile_name_is_a_whole_table(tmp_path, name):
    back = read_table(write_table(tmp_path / "t.csv", pd.DataFrame({"file": [name], "n": 1})))
    assert back["file"].tolist() == [name]


def test_there_is_one_writer_of_tables():
    "Rows that are joined by hand, or by pandas with line feeds, leave a name with a comma or a carriage return unquoted."
    other = []
    for path in Path(anomaly_nb.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "to_csv":
                other.append(f"{path.name}:{node.lineno}")
    assert [o.partition(":")[0] for o in other] == ["tables.py"], other


@pytest.mark.parametrize("name", ["=1+1", "a,b", 'q"uo"te', "line\nbreak", "carriage\rreturn", "both\r\nof them", "-b"])
def test_frames_of_any_name_are_read_back_by_the_next_command(tmp_path, name):
    for i in range(3):
        path = tmp_path / "frames" / name / f"{i},{name[:2]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    code, said, error = run(
        "atoms", "run", "--frames_root", tmp_path / "frames", "--out_dir", tmp_path / "out", "--model", "tiny",
        "--ontology", "shapes", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, (said, error)
    table = read_table(tmp_path / "out" / "frames.csv")
    assert table["video"].tolist() == [name] * 3 and table["frame"].str.startswith(name).all()


def test_drift_tag_gives_back_the_files_it_was_asked_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [f"{n}.png" for n in HOSTILE if n.isprintable() and n.strip() == n]
    files += [f"{i}.png" for i in range(40)]
    scores = np.random.default_rng(0).normal(size=len(files))
    write_table(Path("scores.csv"), pd.DataFrame({"file": files, "score": scores}))
    words = ("--scores", "scores.csv", "--model", "m", "--head", "h", "--store", "store")
    code, said, error = run("drift", "run", "--develop", *words)
    assert code == 0, (said, error)
    code, said, error = run("drift", "tag", *words, "--out", "out.csv")
    assert Path("out.csv").is_file(), (code, said, error)
    assert sorted(read_table("out.csv")["file"]) == sorted(files)


def test_tables_of_reports_keep_names(tmp_path):
    ReportFolder(tmp_path).table(pd.DataFrame({"image_path": HOSTILE, "score": 0.5}), "scores")
    assert read_table(tmp_path / "scores.csv")["image_path"].tolist() == HOSTILE
