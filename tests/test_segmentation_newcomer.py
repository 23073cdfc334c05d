"""StreetHazards as published, made small: the README's commands alone, and a log file that never falls silent."""

import glob
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anomaly_nb.cli.main import app
from anomaly_nb.core.plain import read_json
from anomaly_nb.reports import Ledger
from anomaly_nb.segmentation.samples import UNKNOWN, draw_street

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SMALL = {"--height 512": "--height 48", "--width 512": "--width 64", "512x512": "48x64", "--epochs 40": "--epochs 2"}
SIZE, COUNTS = (72, 128), {"training": 8, "validation": 2, "test": 4}  # 720 x 1280 of the published scenes


def hazards(root):
    "The folders, file names and lists of the published archives."
    for split, count in COUNTS.items():
        part, town = ("test", "t5") if split == "test" else ("train", "t1-3" if split == "training" else "t4")
        entries = []
        for i in range(1, count + 1):
            image, labels = draw_street(i, {"training": "train", "validation": "val"}.get(split, split), SIZE)
            labels = np.where(labels == UNKNOWN, 14, labels + 1).astype(np.uint8)
            opaque = np.full((*SIZE, 1), 255, np.uint8)
            paths = [f"{part}/{folder}/{split}/{town}/{i}.png" for folder in ("images", "annotations")]
            for path, array in zip(paths, (np.concatenate([image, opaque], 2), labels)):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / path)
            entries.append(
                {
                    "dbName": "StreetHazards",
                    "width": 1280,
                    "height": 720,
                    "fpath_img": paths[0].removeprefix(f"{part}/"),
                    "fpath_segm": paths[1].removeprefix(f"{part}/"),
                }
            )
        (root / part / f"{split}.odgt").write_text(json.dumps(entries))
    (root / "train" / "training.odgt").rename(root / "train" / "train.odgt")


def commands():
    "The README's lines for StreetHazards, its variables filled in and its sizes made small."
    block = next(b for b in re.findall(r"```bash\n(.*?)```", README, re.S) if "--data streethazards" in b)
    variables = dict(re.findall(r'(\w+)="([^"]*)"', block))
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        line = line.partition("    #")[0].strip()
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        for large, small in SMALL.items():
            line = line.replace(large, small)
        if line.startswith("anomaly-nb"):
            found.append(line + (" --resamples 10 --panels 1" if " evaluate " in line else ""))
    return found


def stamped(arguments, place):
    "Run a command as a shell without a terminal does; its log with the seconds at which each line came."
    start, lines = time.monotonic(), []
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "anomaly_nb.cli.main", *arguments], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "ANOMALY_NB_PROGRESS_SECONDS": "0.5", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    for line in process.stdout:
        lines.append((time.monotonic() - start, line.rstrip()))
    assert process.wait() == 0, lines
    return lines


def test_readme_commands(tmp_path, monkeypatch):
    hazards(tmp_path / "streethazards")
    monkeypatch.chdir(tmp_path)
    asked = commands()
    assert [c.split()[2] for c in asked] == ["train", "evaluate", "evaluate", "score", "ablate", "compare"]
    first = shlex.split(asked[0])[1:] + [
        "--model",
        "deeplabv3plus_mobilenetv2",
        "--weights",
        "",
    ]  # no download in a test
    log = stamped(first, tmp_path)
    text = "\n".join(line for _, line in log)
    assert "epoch 1/2: loss" in text and "epoch 2/2: loss" in text and "min left" in text and "statistics" in text, text
    chosen = re.search(r"windows; (float32|bfloat16) on \w+", text)
    assert chosen, text  # what --precision auto chose
    gaps = np.diff([t for t, _ in log])
    assert gaps.max() < 60, (
        gaps.max(),
        text,
    )  # a line a minute; lines come every half second here, so this is a busy machine
    page = (tmp_path / "runs/hazards/report.html").read_text()
    assert "finished" in page and (tmp_path / "runs/hazards/training.png").stat().st_size > 1000
    (record,) = Ledger(tmp_path).records()
    assert record["report"] == "street_train" and record["status"] == "ok" and 0 <= record["metrics"]["miou"] <= 1
    assert record["parameters"]["precision"] == chosen[1]
    for line in asked[1:]:
        arguments = [p for a in shlex.split(line)[1:] for p in (sorted(glob.glob(a)) if "*" in a else [a])]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    evaluations = sorted(p.name for p in (tmp_path / "runs/hazards/evaluations").iterdir())
    assert evaluations == ["streethazards-test-48x64", "streethazards-test-48x64-void_other"], evaluations
    whole = read_json(tmp_path / "runs/hazards/evaluations" / evaluations[0] / "evaluation.json")
    assert whole["about"]["images"] == COUNTS["test"] and whole["about"]["sizes"] == [[48, 64]]
    assert (
        (tmp_path / "scores/scores.csv").is_file()
        and (tmp_path / "studies/heat/results.md").is_file()
        and any((tmp_path / "comparison").glob("*.md"))
    )


def test_a_run_that_dies_is_a_record_too(tmp_path, monkeypatch):
    import anomaly_nb.segmentation.training as training

    hazards(tmp_path / "streethazards")
    monkeypatch.chdir(tmp_path)
    epoch, done = training._train_epoch, []

    def dies(*args):
        if done:
            raise RuntimeError("out of memory")
        done.append(1)
        return epoch(*args)

    monkeypatch.setattr(training, "_train_epoch", dies)
    line = "street train runs/hazards --data streethazards --root streethazards --height 48 --width 64 --model deeplabv3plus_mobilenetv2 --weights= --epochs 2"
    with pytest.raises(RuntimeError, match="out of memory"):
        CliRunner().invoke(app, shlex.split(line), catch_exceptions=False)
    (record,) = Ledger(tmp_path).records()
    assert (
        record["status"] == "failed"
        and record["error"] == "RuntimeError: out of memory"
        and "after epoch 1" in (tmp_path / "runs/hazards/report.html").read_text()
    )


def test_the_folder_and_the_network_of_the_help_work_as_they_stand(tmp_path, monkeypatch):
    "What --help teaches is done to the letter: its classes.json, its places, its module."
    said = CliRunner().invoke(app, ["street", "evaluate", "--help"]).output
    for command in ("train", "ablate"):
        sketch = re.search(r"  Scenes of your own.*?is an error\.", said, re.S)[0]
        assert sketch in CliRunner().invoke(app, ["street", command, "--help"]).output
    classes = re.search(r"ROOT/classes\.json +(\{.*\})\n", said)[1]
    root, rng = tmp_path / "my_streets", np.random.default_rng(0)
    for image, label in re.findall(r"ROOT/(\S+\.jpg)  ROOT/(\S+\.png)", said):
        for path, size in ((image, (32, 48, 3)), (label, (32, 48))):
            path = root / path.replace("train", "test")
            path.parent.mkdir(parents=True)
            Image.fromarray(rng.choice([0, 1, 2, 3, 9], size).astype(np.uint8)).save(path)
    (root / "classes.json").write_text(classes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = textwrap.dedent(re.search(r"    def build\(\):.*?(?=\n\n)", said, re.S)[0])
    (tmp_path / "my_module.py").write_text("import torch\n\n" + code)
    torch.jit.trace(torch.nn.Conv2d(3, 3, 8, 8), torch.zeros(1, 3, 32, 48)).save("net.pt")
    (line,) = [line.strip() for line in said.splitlines() if line.endswith("my_module:build --data folder --root my_streets")]
    words = [*shlex.split(line)[1:], "--panels", "0", "--resamples", "0", "--device", "cpu"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0 and "of my_module:build finds" in result.output, result.output
