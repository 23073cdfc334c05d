"Modules of one's own, imported before a command: in it, and in the kernels and workers that it starts."

import os
import shutil
import sys
import warnings

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from anomaly_nb.banks.base import BANKS
from anomaly_nb.core.errors import Notice
from anomaly_nb.core.imports import IMPORTED
from anomaly_nb.core.plain import read_json
from anomaly_nb.core.tables import read_table
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.recipes import RECIPES
from tests.commands import FIT, fails, parts, run

MODULE = """
from dataclasses import replace

import numpy as np

from anomaly_nb.banks import Bank
from anomaly_nb.scoring.recipes import RECIPES

class Average(Bank):
    def fit(self, patches, patch_hw, cls=None):
        self.mean_, self.patch_hw_ = patches.mean(axis=(0, 1)), tuple(patch_hw)
        return self

    def score(self, patches, cls=None):
        return np.linalg.norm(patches - self.mean_, axis=2)

RECIPES["mine"] = replace(RECIPES["knn"], bank=Average())
"""


def forget():
    "The module is unknown again, as it is to another process."
    sys.modules.pop("mybank", None)
    RECIPES.pop("mine", None)
    BANKS.pop("Average", None)


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with the module, a detector and images, to run in; the module is not imported."
    (tmp_path / "mybank.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(IMPORTED, raising=False)
    parts(tmp_path / "good", range(6))
    parts(tmp_path / "new", range(6, 9))
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def detector(place):
    "A saved detector with the bank."
    from mybank import Average

    fitted = Detector("placed", "filters", image_size=48, bank=Average()).fit(sorted((place / "good").glob("*.png")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        fitted.save("mine")
    forget()
    return fitted


def test_a_command_uses_a_detector_with_a_bank_of_ones_own(detector, capsys):
    said = fails(capsys, "predict", "mine", "new", "--out", "scores.csv")
    assert "unknown bank 'Average' of the module mybank; import mybank before (commands: anomaly-nb --import mybank" in said
    code, out, _ = run("--import", "mybank", "predict", "mine", "new", "--out", "scores.csv")
    assert code in (0, 3), out
    images = sorted(os.path.join("new", name) for name in os.listdir("new"))
    assert read_table("scores.csv")["score"].astype(float).to_numpy() == pytest.approx(detector.score(images), rel=1e-6)
    assert IMPORTED not in os.environ  # as it was


def test_a_recipe_of_ones_own_is_fitted_by_a_command(place, capsys):
    assert "recipe" in fails(capsys, "fit", "good", "--out", "one", *FIT[2:], "--recipe", "mine")
    code, out, _ = run("--import", "mybank", "fit", "good", "--out", "one", *FIT[2:], "--recipe", "mine")
    assert code == 0 and read_json("one/bank/bank.json")["module"] == "mybank", out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not_there", "import not_there: no such module here (/"),
        ("mybank.py", "import mybank.py: is no name of a module; write mybank"),
        ("sub/mybank.py", "is no name of a module; write mybank, in the folder sub"),
        ("broken", "import broken: ZeroDivisionError: division by zero (broken.py, line 1)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(place, capsys, name, words):
    (place / "broken.py").write_text("1 / 0\n")
    assert words in fails(capsys, "--import", name, "predict", "mine", "new", "--out", "scores.csv")


def test_advice_is_in_the_words_of_the_command_behind_the_option(place, capsys):
    plain = fails(capsys, "fit", "good", "--out", "one", "--tile", "9999")
    assert "--tile" in plain and fails(capsys, "--import", "mybank", "fit", "good", "--out", "one", "--tile", "9999") == plain


def test_help_says_how():
    assert "--import MODULE" in run("--help")[1] and "kernels and workers" in " ".join(run("--help")[1].lower().split())


def test_kernels_and_workers_import_it_too(place):
    cells = [
        new_code_cell('a: int = 1\nout: str = ""', metadata={"tags": ["parameters"]}),
        new_code_cell(
            "import sys\nfrom anomaly_nb.banks.base import BANKS\nfrom anomaly_nb.reports.folder import ReportFolder\n"
            'ReportFolder(out).metrics({"there": float("Average" in BANKS and "mybank" in sys.modules)})'
        ),
    ]
    nbformat.write(new_notebook(cells=cells), "tiny.ipynb")
    (place / "plan.yml").write_text("template: tiny.ipynb\nlist:\n  - {a: 2}\n")
    records = {}
    for options in ([], ["--import", "mybank"]):
        assert run(*options, "report", "tiny.ipynb")[0] == 0 and run(*options, "sweep", "plan.yml", "--workers", "1")[0] == 0
        records |= {p.name: read_json(p / "run.json") for p in (place / "figures" / "runs").iterdir()}
        forget()
    there = sorted((r["parameters"]["a"], r["metrics"]["there"], "import mybank" in r["inputs"]) for r in records.values())
    assert there == [(1, 0.0, False), (1, 1.0, True), (2, 0.0, False), (2, 1.0, True)]
    (place / "mybank.py").write_text(MODULE + "\n# changed\n")
    assert run("--import", "mybank", "report", "tiny.ipynb")[0] == 0
    assert len(list((place / "figures" / "runs").iterdir())) == 5  # other code is another run
    shutil.rmtree(place / "figures")
