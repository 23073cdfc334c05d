"""The wheel, alone in a fresh environment outside the checkout: imports everything without jupyter or nbdev, and runs a report."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

IMPORT_ALL = """
import importlib, pkgutil, sys, time
start = time.perf_counter()
import anomaly_nb
assert time.perf_counter() - start < 0.3, "import anomaly_nb is slow"
import anomaly_nb.metrics
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
names = [m.name for m in pkgutil.walk_packages(anomaly_nb.__path__, "anomaly_nb.") if not m.name.endswith("_modidx") and "templates" not in m.name]
for name in names:
    importlib.import_module(name)
heavy = {m.split(".")[0] for m in sys.modules} & {"nbdev", "jupyterlab", "jupyter_server", "notebook", "ipykernel", "papermill", "fastcore", "execnb"}
assert not heavy, heavy
from anomaly_nb.reports import templates
assert "image_anomaly" in templates(), templates()
print(len(names), "modules from", anomaly_nb.__file__)
"""


def run(*command, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{command[:4]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def unwanted(name):
    "What runs leave in `data/`, which is no part of the source."
    return ["samples*", "features*", "featurebanks", "calibrations", "scores"] if name == "data" else []


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    "A new environment with nothing but the wheel and what it requires."
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("anomaly_nb", "nbs", "data"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", *unwanted(name), ".ipynb_checkpoints"))
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    wheel = next(folder.glob("anomaly_nb-*.whl"))
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "requirements.lock", wheel)
    return folder, python


def clean_environment():
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def test_wheel_imports_every_module_without_jupyter(fresh):
    folder, python = fresh
    out = run(python, "-I", "-c", IMPORT_ALL, cwd=folder, env=clean_environment())
    assert str(folder / "venv") in out


def test_wheel_runs_a_report(fresh):
    folder, python = fresh
    work = folder / "work"
    work.mkdir()
    out = run(python.parent / "anomaly-nb", "report", "image_anomaly", "-p", "category=wood", "-p", "image_size=96", cwd=work, env=clean_environment())
    assert "image_auroc" in out
    page = work / out.strip().split("\n")[-1]
    assert page.exists() and (work / "figures" / "index.html").exists()


def test_help_is_fast_and_teaches(fresh):
    import time

    folder, python = fresh
    command = [python.parent / "anomaly-nb", "--help"]
    run(*command, cwd=folder, env=clean_environment())
    start = time.perf_counter()
    out = run(*command, cwd=folder, env=clean_environment())
    assert "First steps" in out and "anomaly-nb demo" in out
    assert time.perf_counter() - start < 3  # half a second on a quiet machine
