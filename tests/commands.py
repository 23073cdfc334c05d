"Commands as tests call them."

from typer.testing import CliRunner

from anomaly_nb.cli.main import app

FIT = ["--recipe", "placed", "--backbone", "filters", "--image-size", "48"]  # a quick detector


def run(*words):
    "A command's exit code and what it prints."
    result = CliRunner().invoke(app, [str(w) for w in words])
    return result.exit_code, result.output, result.exception
