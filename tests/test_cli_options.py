"Options classes of the commands: --help shows every field, and no function takes a long row of parameters."

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from typer.testing import CliRunner

import anomaly_nb
from anomaly_nb.cli.main import app
from anomaly_nb.cli.options import Needs, NotWith, options_of

PACKAGE = Path(anomaly_nb.__path__[0])


def commands(group, path=()):
    "Every command of the program with the words that call it."
    for name, command in group.commands.items():
        yield from commands(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]


def classes_of(command):
    "The options classes that a command takes."
    own = command.callback
    while hasattr(own, "__wrapped__"):
        own = own.__wrapped__
    return [
        options_class
        for options_class in get_type_hints(own, include_extras=True).values()
        if dataclasses.is_dataclass(options_class)
    ]


TAKE_CLASSES = [(words, command) for words, command in commands(typer.main.get_command(app)) if classes_of(command)]


def test_the_long_commands_take_classes():
    named = {" ".join(words) for words, _ in TAKE_CLASSES}
    assert {"fit", "serve", "atoms run", "street train", "street evaluate", "street ablate", "video score"} <= named


@pytest.mark.parametrize("words, command", TAKE_CLASSES, ids=lambda x: "-".join(x) if isinstance(x, tuple) else "")
def test_help_shows_every_field(words, command):
    said = re.sub(r"\s+", "", CliRunner().invoke(app, [*words, "--help"]).output)
    by_name = {p.name: p for p in command.params}
    for field in (field for options_class in classes_of(command) for field in options_of(options_class)):
        option = by_name[field.name]
        assert option.opts[0] in said and re.sub(r"\s+", "", getattr(option, "help", None) or "") in said, field.name


def test_every_option_says_what_it_is():
    silent = [
        f"{' '.join(words)} {p.opts[0]}"
        for words, command in commands(typer.main.get_command(app))
        for p in command.params
        if not getattr(p, "help", None)
    ]
    assert not silent, silent


def test_no_function_takes_more_than_ten():
    "Parameters that travel together are one value; `Detector` alone has scikit-learn's one for each setting."
    long = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [
                    a.arg
                    for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                    if a.arg not in ("self", "cls")
                ]
                if len(names) > 10 and (path.name, node.name) != ("detector.py", "__init__"):
                    long.append(f"{path.relative_to(PACKAGE)}: {node.name} takes {len(names)}")
    assert not long, "\n".join(long)


def test_marks_name_options_that_are_there():
    "A mark whose option was renamed would refuse nothing, or fail when it is needed."
    for words, command in commands(typer.main.get_command(app)):
        own = command.callback
        parameters = inspect.signature(own).parameters
        marks = [(n, m) for n, p in parameters.items() for m in getattr(p.annotation, "__metadata__", ()) if isinstance(m, Needs | NotWith)]
        assert not marks or hasattr(own, "__wrapped__"), f"{' '.join(words)}: has marks and takes no options by with_options"
        for name, mark in marks:
            if isinstance(mark, Needs):
                assert set(mark.names) <= set(parameters), (words, name, mark.names)
