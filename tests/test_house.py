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
