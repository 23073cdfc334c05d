"The field's words in names and prose: image, metric, ground truth, fraction, true and false positive, resample."

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = set(
    "share shares truth truths replicate replicates draws trial trials rung hit hits miss misses caught turned picture pictures merit spoilt "
    "kind kinds reduce reduces reduction".split()
)
HOLDS_NOTHING = set("about asked found given held kept known own told".split())  # a name says what is in it
NAMES = {  # (name, end of the module's path): why it stays
    ("ground_truth", ""): "the field's word; also the name of a folder",
    ("ground_truths", ""): "forms of ground truth",
    ("GROUND_TRUTHS", ""): "the same",
    ("shares", "metrics/region_histogram.py"): "name of an array in stored histograms",
    ("share", "banks/mutual.py"): "a parameter in banks saved earlier",
    ("pictures", "features/shards.py"): "key of stored plans and manifests; part of their checksum",
    ("pictures", "reports/cluster.py"): "the same key",
    ("rung", ""): "key of alarms in stored calibrations and of the service's answers",
    ("draws", "reports/template.py"): "earlier name of a parameter of reports",
    ("draws", "segmentation/view.py"): "a parameter of runs made earlier",
    ("--draws", "cli/street_options.py"): "earlier name of --resamples",
    ("hits", "reports/gallery.py"): "name of a figure in runs made earlier",
    ("picture", "data/index.py"): "a word that folders of images are called by",
    ("pictures", "data/index.py"): "the same",
    ("replicate", ""): "a padding mode of torch",
    ("kept_", "segmentation/feature_scores.py"): "an attribute in stored scorers",
    ("known_", "calibration/sequential.py"): "an attribute in stored alarms",
    ("about", "segmentation/evaluation_files.py"): "key of stored evaluations",
    ("kind", "calibration/jobs.py"): "a column of the store's table of jobs",
    ("kind", "calibration/pull.py"): "key of manifests",
    ("kind", "scoring/detector_files.py"): "the same key",
    ("kind", "cli/options.py"): "a field of inspect.Parameter",
    ("kinds", "banks/composition.py"): "a parameter in banks saved earlier",
    ("reduce", "scoring/detector_files.py"): "a parameter's name in saved detectors",
    ("reduce", "scoring/fusion.py"): "key of saved fusions",
    ("image_reduce", "scoring/view.py"): "a parameter of the report, in plans and in records of runs",
    ("image_reduce", "image_anomaly.ipynb"): "the same parameter",
    ("reduce", "data/masks.py"): "of NumPy's functions",
    ("__reduce__", "features/convert.py"): "of pickle",
    ("__reduce__", "banks/neighbours.py"): "of pickle",
    ("reduction", "features/networks.py"): "timm's word for a stride",
    ("reduction", "segmentation/training.py"): "a parameter of torch",
    ("allow_bf16_reduced_precision_reduction", "banks/neighbours.py"): "a setting of torch",
}
SEEDS = {  # parameters of functions outside cli: why they stay
    ("seeds", "reports/sweep.py"): "key of a plan",
    ("seed", "benchmark_run.ipynb"): "a column of the table, which names the row",
}
PROSE = [  # nouns that have another word in the field; verbs (two tiles share pixels, a function draws) stay
    (r"\b(the|a|its|their|this|each|of|no|any|highest|small|large|equal) shares?\b(?! (a|an|the|one|its|their|of no)\b)", "fraction"),
    (r"\bshares? of\b", "fraction of"),
    (r"(?<!ground )(?<!ground-)\btruths?\b", "ground truth, labels"),
    (r"\breplicates?\b", "resample"),
    (r"\b(more|fewer|over|of|many|the|these|same|five|\d+) draws\b(?! (a|an|the|them|with|widgets|it|its|for)\b)", "resample, sample, repetition"),
    (r"\btrials?\b", "repetition"),
    (r"\brung\b", "triggered"),
    (r"\b(cache |a |the |no |of |and )?hits?\b", "true positive"),
    (r"\ba miss\b|\b(and|are|is|false alarms,|the|worst|of) misses\b|\bmisses,", "false negative"),
    (r"\bcaught\b", "true positive"),
    (r"\bturned (by|about|upside|round)\b", "rotated"),
    (r"\bpictures?\b", "image"),
    (r"\bfigures? of merit\b", "metric"),
    (r"\bspoil(t|ed)\b", "synthetic anomaly"),
    (r"\b(one|first|second|two|both|single|each) readings?\b", "pass"),
    (r"(?<!any )(?<!own )(?<!same )(?<!of a )(?<!of the )(?<!of that )\bkinds?\b", "type"),
    (r"\breductions?\b", "aggregation"),
]  # fmt: skip
SENTENCES = {  # part of a line: why it stays
    "a picture of {{}}": "a template of prompts for CLIP",
    "a cell that raises is caught in there": "an exception is",
    "when two processes hit it": "a verb",
    "call `fraction` `share`": "names the earlier word",
    "draws that are not valid": "the verb's noun, of one resample",
    r"ground[_\- ]?truth": "a pattern for names of folders",
    "what earlier reports call them": "the same",
    "call `n_types` `kinds`": "names the earlier word",
    "kind TEXT NOT NULL": "a column of the store's table of jobs",
    "ON jobs (kind,": "the same column",
    "INTO jobs (kind,": "the same column",
    "id, kind, file_id": "the same column",
    "WHERE kind = ": "the same column",
    "ORDER BY kind": "the same column",
    "torch raise all kinds": "plain English",
    "at most one reading is in order": "how a file is to be understood",
    "both readings say the same": "the same",
}


def modules():
    return sorted(p for p in (ROOT / "anomaly_nb").rglob("*.py") if p.name != "_modidx.py")


def cells(path):
    for cell in json.loads(path.read_text())["cells"]:
        yield cell["cell_type"], "".join(cell["source"])


def parts(name):
    return set(re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))


def foreign(node):
    "Whether a `kind` is NumPy's: of a dtype, or the way to sort."
    if isinstance(node, ast.keyword):
        return node.arg == "kind" and isinstance(node.value, ast.Constant) and node.value.value == "stable"
    return isinstance(node, ast.Attribute) and bool(re.search(r"dtype(\(.*\))?\.kind$", ast.unparse(node)))


def names(source):
    """Every name of a source: (name, line, whether it is made there: a definition, parameter, field, attribute or
    variable).
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno, True
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno, True
        elif foreign(node):
            continue
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value.lineno, False
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno, isinstance(node.ctx, ast.Store)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.lineno, True
        elif isinstance(node, ast.Name):
            yield node.id, node.lineno, isinstance(node.ctx, ast.Store)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"[\w.\-]{1,40}", node.value)
        ):
            yield node.value, node.lineno, False  # keys, columns, options


def bad_names(source, path):
    allowed = lambda name: any(name == n and str(path).endswith(end) for n, end in NAMES)
    return [
        f"{path}:{line}: {name}"
        for name, line, seen in names(source)
        if (parts(name) & WORDS or (seen and name.strip("_") in HOLDS_NOTHING)) and not allowed(name)
    ]


def bad_seeds(source, path):
    "Parameters called seed: what decides a function's draws is its `random_state`."
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.arguments))
    parameters = [a for f in functions for a in (*f.posonlyargs, *f.args, *f.kwonlyargs)]
    allowed = lambda name: any(name == n and str(path).endswith(end) for n, end in SEEDS)
    return [f"{path}:{a.lineno}: {a.arg}" for a in parameters if a.arg in ("seed", "seeds") and not allowed(a.arg)]


def bad_lines(text, where):
    return [
        f"{where}: {line.strip()[:140]} (say {word})"
        for line in text.splitlines()
        for pattern, word in PROSE
        if re.search(pattern, line, re.IGNORECASE) and not any(s in line for s in SENTENCES)
    ]


def prose(source):
    "Comments and texts with spaces of a source."
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.start[0], token.string


def test_names_of_modules():
    bad = [b for p in modules() for b in bad_names(p.read_text(), p.relative_to(ROOT))]
    assert not bad, "\n".join(bad)


def test_seeds_of_commands_alone():
    bad = [b for p in modules() if p.parent.name != "cli" for b in bad_seeds(p.read_text(), p.relative_to(ROOT))]
    assert not bad, "\n".join(bad)


def test_prose_of_modules():
    bad = [
        b for p in modules() for n, text in prose(p.read_text()) for b in bad_lines(text, f"{p.relative_to(ROOT)}:{n}")
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "reports").glob("*.ipynb")), ids=lambda p: p.stem)
def test_templates(path):
    bad = []
    for cell_type, source in cells(path):
        if cell_type == "markdown":
            bad += bad_lines(source, path.name)
            continue
        source = "\n".join("" if re.match(r"\s*[%!]", line) else line for line in source.split("\n"))
        bad += (
            [b for _, text in prose(source) for b in bad_lines(text, path.name)]
            + bad_names(source, path.name)
            + bad_seeds(source, path.name)
        )
    assert not bad, "\n".join(bad)


def test_pages():
    "README, and the prose of all notebooks, from which the site is made."
    bad = bad_lines((ROOT / "README.md").read_text(), "README.md")
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        bad += [
            b
            for cell_type, source in cells(path)
            if cell_type == "markdown"
            for b in bad_lines(source, path.relative_to(ROOT))
        ]
    assert not bad, "\n".join(bad)


def test_the_check_finds_what_it_should():
    source = "def f(draws, *, truth):\n    self.kept = {'hits': 1}  # of all trials\n    found = kept\n"
    assert [b.split(": ")[1] for b in bad_names(source, "x.py")] == ["draws", "truth", "kept", "found", "hits"]
    assert len(bad_lines("the share of pictures, and the truth", "x")) == 4 and not bad_lines(
        "two tiles share pixels of the ground truth", "x"
    )
    source = (
        "def f(kind, *, reduce):\n    self.kinds = a.argsort(kind='stable')\n    return a.dtype.kind, sort(kind='x')\n"
    )
    assert [b.split(": ")[1] for b in bad_names(source, "x.py")] == ["kind", "reduce", "kinds", "kind"]
    assert (
        len(bad_seeds("def f(seed, *, seeds=1): g = lambda seed: config.seed\ndef g(random_state): f(seed=1)", "x.py"))
        == 3
    )
    assert (
        len(bad_lines("the kinds of defects in two readings, and the reduction\na second reading of every kind", "x"))
        == 5
    )
    assert not bad_lines("a histogram of any kind is read in one pass; reading it again, nothing of the kind", "x")
