"""Verification in fresh processes: the same bits, and the cause where a package, a thread count or a data file was
changed; the ledger at speed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from anomaly_nb.core.errors import DataError
from anomaly_nb.core.files import write_json
from anomaly_nb.data.samples import write_samples
from anomaly_nb.reports import Ledger, run_report, verify

SLOW = os.environ.get("ANOMALY_NB_SLOW") == "1"
TEMPLATE = ('scores: str = "scores.txt"  # a file\nout: str = ""',
            "import os, torch, shelf_of_weights\nfrom anomaly_nb.reports.folder import ReportFolder",
            "values = [float(v) * shelf_of_weights.FACTOR for v in open(scores).read().split()]\nprint(torch.get_num_threads(), 'threads')",
            "ReportFolder(out).metrics({'mean': sum(values) / len(values)})")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A run of a template that depends on a file, on a package and on the number of threads."
    folder = tmp_path_factory.mktemp("verify")
    cells = [new_code_cell(TEMPLATE[0], metadata={"tags": ["parameters"]}), *map(new_code_cell, TEMPLATE[1:])]
    nbformat.write(new_notebook(cells=cells), folder / "mean.ipynb")
    (folder / "scores.txt").write_text("0.25 0.5 0.75")
    install(folder, "1.0", 1)
    done = call(folder, "report", "mean.ipynb")
    assert done.returncode == 0, done.stderr
    return folder


def install(folder, version, factor):
    "A package of one module, as pip would leave it."
    site = folder / "site"
    for old in site.glob("*.dist-info"):
        (old / "METADATA").unlink()
        old.rmdir()
    (site / f"shelf_of_weights-{version}.dist-info").mkdir(parents=True)
    (site / f"shelf_of_weights-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: shelf-of-weights\nVersion: {version}\n"
    )
    (site / "shelf_of_weights.py").write_text(f"FACTOR = {factor}\n")


def call(folder, *arguments, threads=2):
    "The command line in a fresh process."
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {
        k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")
    }  # a Dask cluster of an earlier test sets some of them
    env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", "from anomaly_nb.cli.main import main; main()", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )


def test_the_same_bits(place):
    done = call(place, "runs", "verify", "--all")
    assert done.returncode == 0 and done.stdout.startswith("1 of 1 run gave the same bits\n") and "the same bits (2 outputs)" in done.stdout, (
        done.stdout + done.stderr
    )


def test_a_detector_counts_where_the_run_named_one(place, monkeypatch):
    run = Ledger(place / "figures").runs()[0]
    outputs = run.record["outputs"] | {"detector": "2" * 64}
    monkeypatch.chdir(place)
    again = replace(run, record=run.record | {"outputs": outputs})
    monkeypatch.setattr(sys.modules["anomaly_nb.reports.verify"], "run_report", lambda *a, **k: again)
    assert verify(run).same  # of a version that named none
    run = replace(run, record=run.record | {"outputs": outputs | {"detector": "1" * 64}})
    assert verify(run).differs == ["detector"]


def test_another_thread_count_is_named(place):
    done = call(place, "runs", "verify", "--all", threads=1)
    assert (
        done.returncode == 1
        and "differs in notebook" in done.stdout
        and "'2 threads' was, '1 threads' is now" in done.stdout
    ), done.stdout
    assert "cause: threads: OMP_NUM_THREADS 2, torch 2 was, OMP_NUM_THREADS 1, torch 1 is now" in done.stdout


def test_another_package_version_is_named(place):
    install(place, "1.1", 2)
    done = call(place, "runs", "verify", "--all")
    install(place, "1.0", 1)
    assert done.returncode == 1 and "differs in metrics.json" in done.stdout, done.stdout
    assert "cause: package shelf-of-weights: 1.0 was, 1.1 is now\n" in done.stdout


def test_a_changed_data_file_is_named(place):
    (place / "scores.txt").write_text("0.25 0.5 0.76")
    done = call(place, "runs", "verify", "--all")
    (place / "scores.txt").unlink()
    gone = call(place, "runs", "verify", "--all")
    (place / "scores.txt").write_text("0.25 0.5 0.75")
    assert done.returncode == 1 and "cause: data: what scores=scores.txt names has other content" in done.stdout, (
        done.stdout
    )
    assert (
        gone.returncode == 1 and "now fails: FileNotFoundError" in gone.stdout and "is no longer there" in gone.stdout
    ), gone.stdout


def test_a_change_without_effect_is_no_difference(place):
    install(place, "1.0.post1", 1)
    done = call(place, "runs", "verify", "--all")
    install(place, "1.0", 1)
    assert (
        done.returncode == 0
        and "the same bits (2 outputs), although package shelf-of-weights: 1.0 was, 1.0.post1 is now" in done.stdout
    )


def test_record_names_no_machine(place):
    import platform

    record = Ledger(place / "figures").records()[0]
    about = record["provenance"]
    assert (
        about["packages"]["shelf-of-weights"] == "1.0"
        and about["threads"]["torch"] == 2
        and about["machine"]["cores"] == os.cpu_count()
    )
    assert record["peak_memory_mb"] > 100 and record["attempts"] == 1 and record["template"] == "mean.ipynb"
    text = (place / "figures" / "runs" / record["folder"] / "run.json").read_text()
    assert platform.node() not in text and str(place) not in text and os.path.expanduser("~") not in text


def test_two_hundred_records_are_listed_in_half_a_second(tmp_path):
    packages = {f"package-{n}": "1.2.3" for n in range(200)}
    for i in range(200):
        record = {
            "run_id": f"{i:012x}",
            "report": "image_anomaly",
            "status": "ok" if i % 7 else "running",
            "started": f"2026-01-01T00:{i // 60:02}:{i % 60:02}",
        }
        record |= {
            "seconds": 1.0,
            "parameters": {"k": i},
            "metrics": {"auroc": i / 200},
            "provenance": {"packages": packages},
        }
        write_json(tmp_path / "runs" / f"image_anomaly-{i:012x}" / "run.json", record)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        records = Ledger(tmp_path).records()
        taken.append(time.perf_counter() - start)
    assert len(records) == 200 and sum(r["status"] == "crashed" for r in records) == 29 and min(taken) < 0.5, taken
    assert len(Ledger(tmp_path).to_frame()) == 200


def test_own_report_from_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = call(tmp_path, "new", "mine", "--from", "atoms", "--to", "reports")
    assert made.returncode == 0 and (tmp_path / "reports" / "mine.ipynb").exists(), made.stderr
    refused = call(tmp_path, "new", "mine", "--to", "reports")
    assert refused.returncode == 2 and "is there already" in refused.stderr and refused.stderr.count("\n") == 1
    unknown = call(tmp_path, "new", "other", "--from", "nothing")
    assert unknown.returncode == 2 and "no report 'nothing'" in unknown.stderr
    listed = call(tmp_path, "report", "reports/mine.ipynb", "--list")
    assert "videos: int" in listed.stdout


@pytest.mark.skipif(not SLOW, reason="minutes: set ANOMALY_NB_SLOW=1")
def test_every_report_of_the_demo_verifies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(tmp_path, "demo").returncode == 0
    done = call(tmp_path, "runs", "verify", "--all")
    print(done.stdout)
    assert done.returncode == 0 and "11 of 11 gave the same bits" in done.stdout, done.stdout


def test_measured_columns_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import random, pandas as pd; from anomaly_nb.reports.folder import ReportFolder; report, t = ReportFolder(out), random.SystemRandom().random()"
    tables = "report.table(pd.DataFrame({'m': ['a'], 'seconds': [t]}), 'speed', 'Speed.', measured=['seconds']); report.metrics({'fps': t, 'k': 1}, measured=['fps'])"
    nbformat.write(
        new_notebook(
            cells=[
                new_code_cell("out: str = ''", metadata={"tags": ["parameters"]}),
                new_code_cell(code),
                new_code_cell(tables),
            ]
        ),
        "timed.ipynb",
    )
    run = run_report("timed.ipynb")
    again = verify(run)
    assert again.same and again.compared == 3 and "speed.csv" in run.record["outputs"]


def test_rows_that_were_kept_are_measured_again(tmp_path, monkeypatch):
    "A run that took a row from its cache is verified by measuring it, and nothing of the cache is taken."
    monkeypatch.chdir(tmp_path)
    write_samples("few", n_train=6, n_good=4, n_defect=1, size=48)
    parameters = {"dataset": "mvtec", "root": "few", "recipe": "knn", "image_size": 32, "coreset": 0.1}
    parameters |= {"pixels": False, "cache": "kept"}
    verified = verify(run_report("benchmark_run", parameters, "figures", gallery=False))
    assert verified.same and "rows.csv" not in verified.differs, verified
    before = {p: p.read_bytes() for p in Path("kept").rglob("*") if p.is_file()}
    row = next(Path("kept/rows").glob("*.json"))
    row.write_text(json.dumps(json.loads(row.read_text()) | {"image_auroc": 0.999}))
    forged = verify(run_report("benchmark_run", parameters, "figures", gallery=False, force=True))
    assert not forged.same and "rows.csv" in forged.differs and "0.999" in forged.first, forged
    assert {p for p in Path("kept").rglob("*") if p.is_file()} == set(before)


def test_a_notebook_that_came_with_a_run_is_not_executed(tmp_path, monkeypatch):
    "Runs may come from somebody else's store: what lies among them may be anybody's code."
    monkeypatch.chdir(tmp_path)
    code = "from pathlib import Path; from anomaly_nb.reports.folder import ReportFolder; Path('executed').touch(); ReportFolder(out).metrics({'m': 1})"
    cells = [new_code_cell("out: str = ''", metadata={"tags": ["parameters"]}), new_code_cell(code)]
    nbformat.write(new_notebook(cells=cells), "own.ipynb")
    run = run_report("own.ipynb")
    Path("executed").unlink()
    assert verify(run).same and Path("executed").exists()  # a template of one's own, where it was
    Path("executed").unlink()
    hidden = run.folder.parent / "own.ipynb"
    Path("own.ipynb").rename(hidden)
    for template in ("own.ipynb", str(hidden), f"figures/runs/../runs/{hidden.name}"):
        foreign = replace(run, record=run.record | {"template": template})
        with pytest.raises(DataError, match=r"would execute whatever it holds; read .*notebook\.ipynb, then give --trust"):
            verify(foreign)
    for words in (["rerun", run.record["run_id"]], ["verify", run.record["run_id"]], ["verify", "--all"]):
        assert call(tmp_path, "runs", *words).returncode in (1, 2) and not Path("executed").exists(), words
    assert call(tmp_path, "runs", "verify", "--all", "--trust").returncode == 0


def test_a_long_temporary_folder(tmp_path, monkeypatch):
    "Paths of sockets are short; the temporary folders of clusters are not."
    long = tmp_path / ("t" * 110)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.chdir(tmp_path)
    cells = [
        new_code_cell("out: str = ''", metadata={"tags": ["parameters"]}),
        new_code_cell("from anomaly_nb.reports.folder import ReportFolder; ReportFolder(out).metrics({'m': 1})"),
    ]
    nbformat.write(new_notebook(cells=cells), "own.ipynb")
    assert run_report("own.ipynb").record["metrics"] == {"m": 1}
