"""The wheel in a fresh environment outside the checkout, with what it requires and nothing else: imports everything,
runs a report.

The packages it requires are linked from this environment; ANOMALY_NB_SLOW=1 has pip download and install them.
"""

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SLOW = os.environ.get("ANOMALY_NB_SLOW") == "1"
ROOT = Path(__file__).resolve().parent.parent

IMPORT_ALL = """
import importlib.util, pkgutil, sys, time
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
assert not [n for n in ("nbdev", "jupyterlab", "fastapi", "dask") if importlib.util.find_spec(n)], "more is installed than the wheel requires"
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


def required(wheel):
    "Distributions of this environment that the wheel requires, and what those require, without its extras."
    wanted, found = list(next(iter(metadata.distributions(path=[str(wheel)]))).requires), {}
    for text in wanted:  # grows
        need = Requirement(text)
        key = canonicalize_name(need.name), *sorted(need.extras)
        if key not in found and (
            need.marker is None or any(need.marker.evaluate({"extra": e}) for e in need.extras or [""])
        ):
            found[key] = metadata.distribution(need.name)
            assert need.specifier.contains(found[key].version, prereleases=True), (
                f"{text}: {found[key].version} is installed"
            )
            for inner in map(Requirement, found[key].requires or []):
                if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ["", *need.extras]):
                    inner.marker = None
                    wanted.append(str(inner))
    return list(found.values())


def link(distribution, site):
    "Link what belongs to an installed distribution into another environment."
    for file in distribution.files:
        parts = file.parts if file.parts[0] == ".." else file.parts[:1]  # a package as one link; data files one by one
        if "bin" not in parts and "__pycache__" not in parts:
            target = site.joinpath(*parts)
            target = Path(os.path.normpath(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(os.path.normpath(distribution.locate_file(Path(*parts))))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    "A new environment with nothing but the wheel and what it requires."
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("anomaly_nb", "nbs", "data"):
        shutil.copytree(
            ROOT / name,
            source / name,
            ignore=shutil.ignore_patterns("__pycache__", *unwanted(name), ".ipynb_checkpoints"),
        )
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        source,
    )
    wheel = next(folder.glob("anomaly_nb-*.whl"))
    run(sys.executable, "-m", "venv", *([] if SLOW else ["--without-pip"]), folder / "venv")
    python = folder / "venv" / "bin" / "python"
    if SLOW:
        run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "requirements.lock", wheel)
    else:
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
        site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
        for distribution in required(wheel):
            link(distribution, site)
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
    run(
        python,
        "-I",
        "-c",
        "from anomaly_nb.data import write_samples; write_samples('parts', n_train=6, n_good=3, n_defect=1, size=64)",
        cwd=work,
        env=clean_environment(),
    )
    words = [x for p in ("dataset=mvtec", "root=parts", "category=wood", "image_size=64") for x in ("-p", p)]
    out = run(python.parent / "anomaly-nb", "report", "image_anomaly", *words, cwd=work, env=clean_environment())
    assert "image_auroc" in out
    page = work / next(line for line in out.splitlines() if line.endswith(".html"))
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


def test_the_page_on_a_package_index_needs_nothing_beside_it():
    about = run(sys.executable, "setup.py", "--long-description", "--classifiers", "--version", cwd=ROOT)
    places = re.findall(r"\]\(([^)\s]+)\)", about)
    assert len(places) > 10 and not [p for p in places if not p.startswith(("https://", "#"))], places
    assert "Framework :: Jupyter" in about and metadata.version("anomaly_nb") in about
    changes, citation = (ROOT / "CHANGELOG.md").read_text(), (ROOT / "CITATION.cff").read_text()
    assert (
        f"## {metadata.version('anomaly_nb')}" in changes and f"version: {metadata.version('anomaly_nb')}" in citation
    )
