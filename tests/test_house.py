"The house's own rules that a program can count: short modules, whole classes."

import ast
import importlib
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path

import anomaly_nb

MODULES = [p for p in sorted(Path(anomaly_nb.__path__[0]).rglob("*.py")) if p.name != "_modidx.py"]


def alone(sources):
    "Base classes with a single child among the classes of these sources."
    classes = [n for source in sources for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)]
    children = Counter(ast.unparse(base).split(".")[-1] for c in classes for base in c.bases)
    return {c.name for c in classes if children[c.name] == 1}


def test_no_module_is_longer_than_400_lines():
    lengths = {p: len(p.read_text().splitlines()) for p in MODULES}
    assert not {str(p): n for p, n in lengths.items() if n > 400}


def test_no_base_class_has_a_single_child():
    assert not alone(p.read_text() for p in MODULES)
    assert alone(["class A: pass", "class B(A): pass\nclass C: pass\nclass D(C): pass\nclass E(x.C): pass"]) == {"A"}


def test_no_line_is_longer_than_120():
    long = []
    for path in MODULES:
        source = path.read_text()
        names = [n for n in ast.parse(source).body if isinstance(n, ast.Assign) and ast.unparse(n.targets) == "__all__"]
        generated = {line for n in names for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}  # by nbdev
        lines = enumerate(source.splitlines(), 1)
        long += [f"{path}:{i}" for i, line in lines if len(line) > 120 and i not in generated]
    assert not long


def test_a_class_name_means_one_thing():
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_no_module_takes_private_names_of_another():
    private = [
        f"{path}:{node.lineno} {alias.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("anomaly_nb"))
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not private


def test_what_tests_and_benchmarks_import_is_there():
    "Also where an import waits in a function that rarely runs."
    root, missing = Path(__file__).resolve().parent.parent, []
    for path in [*root.glob("tests/*.py"), *root.glob("bench/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anomaly_nb")):
                continue
            module = importlib.import_module(node.module)
            names = {a.name for a in node.names if not hasattr(module, a.name)}
            missing += [f"{path.name}: {node.module}.{n}" for n in names if not find_spec(f"{node.module}.{n}")]
    assert not missing


CLOSED = ("metric", "precision", "device", "protocol", "correction", "dtype", "scale", "aggregation", "resize", "rule")


def test_parameters_of_a_closed_set_name_their_values():
    "In the comment beside the parameter, or in the docstring: whoever calls it should not have to provoke the error."
    silent = []
    for room in ("banks", "scoring", "calibration", "segmentation", "metrics"):
        for path in sorted((Path(anomaly_nb.__path__[0]) / room).glob("*.py")):
            source = path.read_text()
            lines, tree = source.splitlines(), ast.parse(source)
            classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
            made = [(f, c) for c in classes for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
            plain = [(f, f) for f in tree.body if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")]
            for function, documented in [*made, *plain]:
                for arg in (*function.args.args, *function.args.kwonlyargs):
                    text = arg.annotation is not None and ast.unparse(arg.annotation) == "str"
                    beside = lines[arg.lineno - 1].partition("#")[2] + lines[arg.lineno - 2].partition("#")[2]
                    said = f"{beside} {ast.get_docstring(documented)}"
                    if text and arg.arg in CLOSED and not any(mark in said for mark in ('"', "`", "of METRICS")):
                        silent.append(f"{room}/{path.name}:{arg.lineno} {function.name}({arg.arg})")
    assert not silent, "\n".join(silent)
