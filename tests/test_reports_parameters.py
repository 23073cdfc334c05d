"""Parameters of reports: the annotation is the type, and whatever is wrong is said before a kernel starts."""

import importlib
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from anomaly_nb.cli.main import app
from anomaly_nb.core.errors import DataError, MissingFileError
from anomaly_nb.core.files import sha256_json
from anomaly_nb.reports import run_report, template_parameters, templates
from anomaly_nb.reports.digests import content_digest, tree_digest
from anomaly_nb.reports.run import prepare
from anomaly_nb.reports.sweep import read_plan
from anomaly_nb.reports.template import annotated_type, check_parameters, type_words

SOURCE = """from typing import Literal
from pathlib import Path
# a remark

y: float = 2  # a float with an int default
n: int = 3
flag: bool = False
many: list[int] = [1, 2]
words: list = ["a"]
about: dict = {"a": 1}
where: Path = ""
colour: Literal["red", "blue"] = "red"
shade = "dark"  # type: Literal["dark","light"] a type comment, as papermill has it
maybe: int | None = None
plain = 5"""


@pytest.fixture
def template(tmp_path):
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(SOURCE, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("print(y)"),
        ]
    )
    nbformat.write(book, tmp_path / "own.ipynb")
    return tmp_path / "own.ipynb"


@pytest.mark.parametrize(("name", "given", "value"), [
    ("y", 0.5, 0.5), ("y", "0.5", 0.5), ("y", 1, 1.0), ("n", "7", 7), ("flag", "yes", True), ("flag", "false", False), ("many", "3,4", [3, 4]),
    ("many", "[3, 4]", [3, 4]), ("many", [5], [5]), ("words", "x, y", ["x", "y"]), ("about", '{"b": [1]}', {"b": [1]}), ("about", {"c": 2}, {"c": 2}),
    ("where", "x/y", "x/y"), ("colour", "blue", "blue"), ("shade", "light", "light"), ("maybe", 4, 4), ("maybe", None, None), ("plain", "6", 6),
])  # fmt: skip
def test_values_take_their_annotated_type(template, name, given, value):
    found = check_parameters(template, {name: given})[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("name", "given"), [
    ("y", "much"), ("y", "nan"), ("y", float("inf")), ("y", True), ("n", 2.5), ("n", "2.5"), ("n", True), ("flag", "maybe"), ("flag", 2),
    ("many", "3,x"), ("many", 3), ("about", "{"), ("about", "[1]"), ("colour", "green"), ("shade", "green"), ("where", 3), ("plain", "six"),
])  # fmt: skip
def test_wrong_values_are_one_sentence(template, name, given):
    with pytest.raises(DataError, match=f"{name}=") as e:
        check_parameters(template, {name: given})
    assert "\n" not in str(e.value)


def test_choices_are_shown():
    about = template_parameters("image_anomaly")
    assert "'knn', 'knn-euclidean', " in type_words(about["recipe"]["type"]) and about["coreset"]["type"] is float
    shown = CliRunner().invoke(app, ["report", "image_anomaly", "--list"]).output
    assert "'raise', 'keep' or 'drop'" in shown and "what a nearest-neighbour bank keeps" in shown


@pytest.mark.parametrize("name", templates())
def test_papermill_reads_the_same_parameters(name):
    import ast

    import papermill

    theirs, ours = papermill.inspect_notebook(str(templates()[name])), template_parameters(name)
    assert list(theirs) == list(ours)
    for parameter, about in ours.items():
        given = theirs[parameter]
        assert ast.literal_eval(given["default"]) == about["default"] and given["help"] == about["help"], parameter
        if given["inferred_type_name"] != "None":
            assert annotated_type(ast.parse(given["inferred_type_name"], mode="eval").body) == about["type"], parameter


@pytest.mark.parametrize(("given", "error"), [
    ({"bank": "knnn"}, r"bank='knnn' is not '', "), ({"dataset": "folder", "root": "no/such/folder"}, "root=no/such/folder: no such file or folder"),
    ({"root": "random_parts"}, "root=random_parts: no such file or folder; image_anomaly reads it$"), ({"detector": "hub"}, "detector=hub: no such file"),
    ({"weights": "random_parts"}, "weights=random_parts: no such .* unless it is 'hub' or 'random'$"), ({"weights": "imagenet"}, "weights=imagenet: no such"),
    ({"weights": "lost.pth"}, "weights=lost.pth: no such file"), ({"k": "2.5"}, "k='2.5' is not int"), ({"bnak": "knn"}, "did you mean 'bank'"),
])  # fmt: skip
def test_nothing_wrong_starts_a_kernel(tmp_path, monkeypatch, given, error):
    monkeypatch.setattr("anomaly_nb.reports.run.execute", lambda *a, **k: pytest.fail("a kernel was started"))
    with pytest.raises((DataError, MissingFileError), match=error):
        run_report("image_anomaly", given, figures=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("report", "weights", "taken"),
    [
        ("image_anomaly", "hub", True),
        ("image_anomaly", "random", True),
        ("street_anomaly", "imagenet", True),
        ("street_anomaly", "hub", False),
        ("street_ablation", "imagenet_own.pth", False),
    ],
)
def test_weights_by_word_need_no_file(report, weights, taken):
    if taken:
        assert prepare(report, {"weights": weights}).parameters["weights"] == weights
    else:
        with pytest.raises(MissingFileError, match=f"weights={weights}: .* unless it is 'imagenet'$"):
            prepare(report, {"weights": weights})


def test_a_checksum_of_nothing_is_refused(tmp_path):
    for digest, words in ((tree_digest, "no such folder"), (content_digest, "no such file")):
        with pytest.raises(MissingFileError, match=f"nope: {words}"):
            digest(tmp_path / "nope")
    with pytest.raises(MissingFileError, match="is a folder, not a file"):
        content_digest(tmp_path)
    assert tree_digest(tmp_path) == tree_digest(str(tmp_path))


def test_what_a_link_leads_to_is_digested(tmp_path):
    "Readers enter linked folders, so a change there makes another run."
    for place in ("disk/nut/train/good", "root"):
        (tmp_path / place).mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"disk/nut/train/good/{i}.png").write_text(str(i))
    (tmp_path / "root/nut").symlink_to(tmp_path / "disk/nut")
    (tmp_path / "copy").mkdir()
    shutil.copytree(tmp_path / "disk/nut", tmp_path / "copy/nut")
    whole = tree_digest(tmp_path / "root")
    assert whole == tree_digest(tmp_path / "copy")
    (tmp_path / "disk/nut/train/good/2.png").unlink()
    assert tree_digest(tmp_path / "root") != whole
    before = tree_digest(tmp_path / "root")
    (tmp_path / "disk/nut/back").symlink_to(tmp_path / "root")  # a loop through two links ends
    (tmp_path / "root/nowhere").symlink_to(tmp_path / "gone")
    assert tree_digest(tmp_path / "root") == before


def test_a_plan_reads_what_its_points_share_once(tmp_path, monkeypatch):
    calls = []
    module = importlib.import_module("anomaly_nb.reports.sweep")
    monkeypatch.setattr(module, "tree_digest", lambda p: calls.append(p) or tree_digest(p))
    (tmp_path / "parts").mkdir()
    fixed = {"dataset": "folder", "root": str(tmp_path / "parts")}
    plan = read_plan({"template": "image_anomaly", "parameters": fixed, "grid": {"k": [1, 2, 3]}})
    assert calls == [fixed["root"]] and len({w.run_id for w in plan.wanted}) == 3
    assert plan.wanted[0] == prepare("image_anomaly", fixed | {"k": 1})


@pytest.mark.parametrize("line", ["x: int[str] = 3", "x: None[0] = 3", "x: Literal[[]] = 3"])
def test_an_annotation_that_is_no_type_is_one_sentence(tmp_path, line):
    cell = nbformat.v4.new_code_cell(line, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "own.ipynb")
    with pytest.raises(DataError, match=r"own\.ipynb: the cell tagged 'parameters' must hold lines"):
        template_parameters(tmp_path / "own.ipynb")


@pytest.mark.parametrize("line, refused", [("str", False), ("Path", True)])
def test_only_a_path_must_be_there_in_a_template_of_ones_own(tmp_path, line, refused):
    source = f'weights: {line} = "uniform"\ndetector: str = "knn"'
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "own.ipynb")
    if refused:
        with pytest.raises(MissingFileError, match="weights=uniform: no such file or folder"):
            prepare(tmp_path / "own.ipynb", {})
    else:
        assert prepare(tmp_path / "own.ipynb", {}).parameters["weights"] == "uniform"
    with pytest.raises(MissingFileError, match="weights=no/such"):
        prepare(tmp_path / "own.ipynb", {"weights": "no/such"})


def test_a_file_of_parameters(template, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("anomaly_nb.reports.run.run_report", lambda t, g, *a: given.update(g) or pytest.skip.Exception)
    (tmp_path / "p.yml").write_text("n: 4\nmany: [1, 2]\n")
    CliRunner().invoke(app, ["report", str(template), "-f", str(tmp_path / "p.yml"), "-p", "n=9"])
    assert given == {"n": "9", "many": [1, 2]}

def old_inputs(values):
    "What any parameter that exists as a path gave to the inputs, as runs of earlier versions have it."
    inputs = {}
    for name, value in values.items():
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
        there = [str(p).partition("::")[0].strip() for p in parts if isinstance(p, str) and name not in ("out", "cache")]
        if digests := [tree_digest(p) for p in there if p and os.path.exists(p)]:
            inputs[name] = digests[0] if len(digests) == 1 else sha256_json(digests)
    return inputs


@pytest.mark.parametrize(
    ("report", "parameters"),
    [
        ("image_anomaly", {}),
        ("image_anomaly", {"dataset": "folder", "root": "parts", "weights": "net.pth::teacher", "region": "mask.png"}),
        ("image_anomaly", {"dataset": "folder", "root": "sub/parts", "prompts": "words.yml"}),
        ("calibration_drift", {"scores": "a.csv, sub/b.csv", "store": "kept"}),
        ("atoms", {"frames_root": "parts", "labels_csv": "a.csv", "ontology": "words.yml", "pretrained": "net.pth"}),
        ("street_anomaly", {"run": "parts"}),
        ("street_ablation", {"runs_folder": "parts"}),
        ("benchmark", {"results": "a.csv", "references": "sub/b.csv"}),
    ],
)
def test_runs_keep_their_ids_whatever_else_lies_here(tmp_path, monkeypatch, report, parameters):
    monkeypatch.chdir(tmp_path)
    for name in ("parts/a.png", "sub/parts/a.png", "kept/x", "a.csv", "sub/b.csv", "net.pth", "mask.png", "words.yml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    wanted = prepare(report, parameters)
    same = {k: v for k, v in wanted.inputs.items() if k not in ("template", "library")}
    assert same == old_inputs(wanted.parameters) and same.keys() == parameters.keys() - {"dataset"}
    for word in ("filters", "knn", "nut", "samples", "folder", "top1%", "raise", "auto", "shapes", "tiny", "openai"):
        Path(word).mkdir()
        Path(word, "junk").write_text("x")
    assert prepare(report, parameters).run_id == wanted.run_id


def test_the_home_folder_is_expanded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").write_text("1")
    first = prepare("image_anomaly", {"root": "~/d", "dataset": "folder"})
    assert first.parameters["root"] == str(tmp_path / "d") and "root" in first.inputs
    (tmp_path / "d" / "a.png").write_text("2222")
    assert prepare("image_anomaly", {"root": "~/d", "dataset": "folder"}).run_id != first.run_id
