"Commands as tests call them."

import pytest
from PIL import Image
from typer.testing import CliRunner

from anomaly_nb.cli.main import app, main
from anomaly_nb.data.samples import draw_sample

FIT = ["--recipe", "placed", "--backbone", "filters", "--image-size", "48"]  # a quick detector


def run(*words):
    "A command's exit code and what it prints."
    result = CliRunner().invoke(app, [str(w) for w in words])
    return result.exit_code, result.output, result.exception


def fails(capsys, *words):
    "The one line of a command that cannot work."
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    err = capsys.readouterr().err
    assert stop.value.code and err.count("\n") == 1 and err.startswith("anomaly-nb: "), err
    return err


def parts(folder, numbers, defect="good"):
    "A folder of drawn parts, 0.png and on."
    folder.mkdir(parents=True)
    for i in numbers:
        Image.fromarray(draw_sample("nut", defect, i, size=48)[0]).save(folder / f"{i}.png")
    return folder
