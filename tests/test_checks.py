"""The checks of `make test`: what they leave out is said, and the quick mode is quick."""

import ast
import importlib

import pytest

import bench
import bench.__main__ as bench_main
from tests import checks


@pytest.fixture
def quick(tmp_path, monkeypatch):
    "The checks with FAST=1, away from what they keep; gives the calls of git's answer."
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(checks, "FAST", True)
    monkeypatch.setattr(checks, "TAKEN", tmp_path / "seconds.json")
    named = sorted((checks.ROOT / "nbs/01_metrics").glob("*.ipynb"))[:2]
    monkeypatch.setattr(checks, "changed", lambda: calls.append(1) or named)
    return calls


def test_git_is_asked_once_for_all_notebooks(quick, monkeypatch):
    monkeypatch.setitem(checks.LONGEST, "notebooks", -1)
    checks.notebooks()
    assert len(quick) == 1


def test_the_last_line_says_what_was_not_run(quick, monkeypatch, capsys):
    monkeypatch.setitem(checks.LONGEST, "notebooks", -1)
    checks.main(["notebooks"])
    last = capsys.readouterr().out.strip().split("\n")[-1]
    assert "not run, the time of FAST=1 was up: 01_metrics/" in last and last.count("01_metrics/") == 2


def test_every_benchmark_has_the_shape_that_the_package_promises():
    shapes = {}
    for path in (checks.ROOT / "bench").glob("[!_]*.py"):
        names = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
        shapes[path.stem] = "run" if "run" in names else "command" if "__main__" in path.read_text() else "nothing"
    studies = {name for name, shape in shapes.items() if shape == "command"}
    assert {shapes[name] for name in bench_main.MODULES} == {"run"} and "nothing" not in shapes.values()
    assert studies == {name for name in shapes if f"`{name}`" in bench.__doc__.split("\n\n")[1]}


def test_a_name_of_a_door_is_followed_to_its_module_however_the_door_imports_it(tmp_path, monkeypatch):
    written = {
        "anomaly_nb/inner/__init__.py": "from anomaly_nb.inner.far import (\n    one,\n)\nfrom .near import two\n",
        "anomaly_nb/outer/__init__.py": "from ..inner import one as first, one\nimport os\nfrom pathlib import Path\n",
        "tests/test_one.py": "from anomaly_nb.inner import one\n",
        "tests/test_outer.py": "from anomaly_nb.outer import one\n",
        "tests/test_two.py": "from anomaly_nb.inner import two\n",
    }
    for name, source in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    for module, expected in {"far": ["test_one", "test_outer"], "near": ["test_two"]}.items():
        assert [t.stem for t in checks.tests_of([tmp_path / f"anomaly_nb/inner/{module}.py"])] == expected


def test_every_name_of_a_door_has_a_module():
    doors = checks.doors()
    assert all(set(importlib.import_module(room).__all__) <= set(names) for room, names in doors.items() if names)
    assert {room for room, names in doors.items() if not names} == {"anomaly_nb.cli", "anomaly_nb.core"}
    assert doors["anomaly_nb.segmentation"]["results_table"] == "anomaly_nb.segmentation.tables"
