"Extraction on a Dask cluster by the command: the files of one machine, and one line where it cannot be."

import os
import shutil

import pytest
from typer.testing import CliRunner

from anomaly_nb.cli.main import app
from anomaly_nb.core.errors import DataError
from anomaly_nb.data import write_samples

distributed = pytest.importorskip("dask.distributed")


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


def extract(samples, out, *options):
    "The command on two categories of more images than a shard holds, and its files with their bytes."
    words = ["extract", samples, "--image-size", 32, "--out", out, "--shards", *options]
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    files = sorted(p for p in out.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    return done.output.replace(str(out), "out"), {p.relative_to(out).as_posix(): p.read_bytes() for p in files}


def test_the_command_writes_the_files_of_one_machine(cluster, tmp_path):
    samples = write_samples(tmp_path / "samples", n_train=130, n_good=2, n_defect=1, size=32)
    for category in sorted(p for p in samples.iterdir() if p.is_dir())[2:]:
        shutil.rmtree(category)
    said, files = extract(samples, tmp_path / "alone")
    said_there, files_there = extract(samples, tmp_path / "spread", "--scheduler", cluster.scheduler_address)
    assert sum("patches-" in name for name in files) == 4
    assert list(files) == list(files_there)
    assert not [name for name in files if files[name] != files_there[name]]
    assert said == said_there and said.count(" -> out/") == 2


def test_a_folder_begun_here_is_finished_there(cluster, tmp_path):
    samples = write_samples(tmp_path / "samples", n_train=130, n_good=2, n_defect=1, size=32)
    said, files = extract(samples, tmp_path / "out", "--category", "nut")
    for path in [*(tmp_path / "out").rglob("patches-00001.npy"), *(tmp_path / "out").rglob("manifest.json")]:
        path.unlink()
    again = extract(samples, tmp_path / "out", "--category", "nut", "--scheduler", cluster.scheduler_address)
    assert again == (said, files)


def test_nobody_answers(tmp_path):
    samples = write_samples(tmp_path / "samples", n_train=1, n_good=1, n_defect=1, size=32)
    with pytest.raises(DataError, match=r"^scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        extract(samples, tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9")
    assert not (tmp_path / "out").exists()


def test_a_task_that_ends_its_workers_is_one_line(cluster):
    from anomaly_nb.reports.cluster import gathered

    cluster.scheduler.allowed_failures = 0
    with distributed.Client(cluster) as client:
        with pytest.raises(DataError, match=r"^shards: 1 worker died of the same task, the last of them at tcp://"):
            gathered(client, [client.submit(os._exit, 1, pure=False)], "shards")
