"""The docs as a stranger finds them: the table of contents answers in one step, its configuration is what Quarto reads,
and no link leads nowhere.
"""

import ast
import json
import re
import shutil
import urllib.parse
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"


def pages():
    """Every notebook of the docs: its path below nbs/, title and subtitle as the sidebar and the head of the page show
    them.
    """
    found = {}
    for path in sorted(NBS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts or path.parent.name.startswith(("_", ".")):
            continue
        cell = next(c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "markdown")
        lines = "".join(cell["source"]).splitlines()
        title = next(line[2:] for line in lines if line.startswith("# "))
        found[path.relative_to(NBS).as_posix()] = (title, " ".join(line[2:] for line in lines if line.startswith("> ")))
    return found


PAGES = pages()
# what a stranger asks -> the words the eye looks for, and what the page must define
QUESTIONS = {
    "where is the coreset chosen": (["coreset"], "greedy_coreset"),
    "where is FPR95 computed": (["FPR95"], "fpr_at_tpr"),
    "where does a threshold come from": (["threshold", "comes from"], "conformal_threshold"),
    "how do I add a bank": (["bank", "add"], "Bank"),
    "where is drift decided": (["drift", "verdict"], "drift_metrics"),
    "how do I bring my own network": (["own", "network"], "load_network"),
    "where are predictions made": (["predictions"], "predict_files"),
    "where are intervals computed": (["intervals", "bootstrap"], "bootstrap_interval"),
    "where do atoms get their roles": (["which atoms argue", "learned"], "fit_roles"),
}


def entries(words):
    "Pages whose title holds all words; where no title does, those whose title and subtitle together do."

    def having(text):
        return [p for p in PAGES if all(w.lower() in text(*PAGES[p]).lower() for w in words)]

    return having(lambda title, below: title) or having(lambda title, below: f"{title} {below}")


def defined(page):
    "Names of functions and classes that a notebook exports."
    cells = json.loads((NBS / page).read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return {
        n.name
        for text in code
        if text.startswith("#| export")
        for n in ast.parse(text).body
        if isinstance(n, ast.FunctionDef | ast.ClassDef)
    }


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_table_of_contents_answers_in_one_step(question):
    words, name = QUESTIONS[question]
    found = entries(words)
    assert 1 <= len(found) <= 2, (question, found)
    assert any(name in defined(page) for page in found), (question, found)


def test_the_door_of_a_new_bank_shows_one():
    (page,) = entries(QUESTIONS["how do I add a bank"][0])
    cells = ["".join(c["source"]) for c in json.loads((NBS / page).read_text())["cells"]]
    assert any(re.search(r"class \w+\(Bank\)", text) for text in cells)


def test_no_two_pages_of_a_room_have_one_title():
    for room in {Path(p).parent for p in PAGES}:
        titles = [t for p, (t, _) in PAGES.items() if Path(p).parent == room]
        assert len(titles) == len(set(titles)), room
    assert all(title and len(title) <= 60 for title, _ in PAGES.values())


def test_docs_configuration(tmp_path, monkeypatch):
    "What `nbdev_docs` does before it calls Quarto: its configuration, and our sidebar, which names every page once."
    quarto = pytest.importorskip("nbdev.quarto")
    from nbdev.config import get_config

    for name in ("settings.ini", "pyproject.toml", "nbs/_quarto.yml", "nbs/sidebar.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "anomaly_nb").mkdir()
    monkeypatch.chdir(tmp_path)
    get_config.cache_clear()
    try:
        quarto.refresh_quarto_yml()
        quarto.nbdev_sidebar.__wrapped__()
    finally:
        monkeypatch.chdir(ROOT)
        get_config.cache_clear()

    def leaves(items):
        for item in items:
            yield from leaves(item["contents"]) if isinstance(item, dict) else [item]

    sidebar = yaml.safe_load((tmp_path / "nbs" / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    assert sorted(leaves(sidebar)) == sorted(PAGES)
    own, made = (yaml.safe_load((tmp_path / "nbs" / n).read_text()) for n in ("_quarto.yml", "nbdev.yml"))
    assert own["metadata-files"] == ["nbdev.yml", "sidebar.yml"] and (NBS / own["format"]["html"]["css"]).is_file()
    assert all(entry["href"] in PAGES for entry in own["website"]["navbar"]["left"])
    assert made["project"]["output-dir"] == "_docs" and made["website"]["title"] == "anomaly_nb"
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text())["jobs"]["docs"]["steps"]
    assert ".venv/bin/nbdev_docs" in [s.get("run") for s in steps] and steps[-1]["with"]["publish_dir"] == "_docs"


def test_pages_of_a_folder_get_names_of_their_own():
    "nbdev calls the page of a notebook by its name without the number."
    made = [re.sub(r"/\d+_", "/", p) for p in PAGES]
    assert len(made) == len(set(made)), sorted(m for m in made if made.count(m) > 1)


def slug(heading):
    "A heading's anchor, as GitHub makes it."
    text = re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path):
    "Anchors of the headings of a notebook or Markdown file."
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return {slug(h) for h in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)}


def broken(text, folder):
    "Links of Markdown to files that are not there, or to headings that they do not have."
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = urllib.parse.unquote(target).partition("#")
        path = folder / name if name else None
        if path is not None and not path.exists():
            yield target
        elif anchor and path is not None and path.suffix in (".ipynb", ".md") and anchor not in anchors(path):
            yield target


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_of_the_documents_lead_somewhere(name):
    assert not list(broken((ROOT / name).read_text(), ROOT))


def test_links_of_the_docs_lead_somewhere():
    """Notebooks name each other below nbs/, where the docs hold them; images and tables of `figures/` are copied by the
    workflow.
    """
    wrong = {}
    for page in PAGES:
        cells = json.loads((NBS / page).read_text())["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        found = list(broken(text, (NBS / page).parent))
        inside = [
            t
            for t in re.findall(r"\]\((\.\.[^)#\s]+)", text)
            if not ((NBS / page).parent / t).resolve().is_relative_to(NBS)
        ]
        found += [t for t in inside if not re.match(r"(\.\./)+figures/[^/]+\.(png|csv|json)$", t)]
        wrong |= {page: found} if found else {}
    assert not wrong
    assert (
        "cp figures/*.png figures/*.csv figures/*.json _docs/figures/"
        in (ROOT / ".github" / "workflows" / "docs.yml").read_text()
    )


def test_no_table_says_that_a_few_images_prove_perfection():
    "The table of `auto` is that of the kept rows, whose perfect AUROC have the interval of their counts."
    from anomaly_nb.core.plain import read_json
    from anomaly_nb.metrics.newcombe import newcombe_interval
    from bench.auto import FIGURE, markdown

    rows, keys = read_json(FIGURE), ("of_chosen", "of_default", "of_best")
    for r in rows.values():  # no interval is narrower than that of the counts
        for value, low, high in (r[key] for key in keys):
            _, lowest, highest = newcombe_interval(value, r["anomalous"], r["normal"])
            assert low <= lowest + 5e-4 and high >= highest - 5e-4  # of rounded values
    perfect = [r[key] for r in rows.values() for key in keys if r[key][0] == 1]
    assert perfect and all(low < 1 for _, low, _ in perfect)
    cells = json.loads((NBS / "benchmarks/00_results.ipynb").read_text())["cells"]
    shown = "".join(line for cell in cells for line in cell["source"])
    assert all(line in shown for line in markdown(rows).splitlines())
