"""Sweeps under bad luck: killed at any moment, a worker killed, cancelled, run twice at once; nothing twice, nothing
lost, the same bits.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from anomaly_nb.core.errors import DataError
from anomaly_nb.core.files import write_json
from anomaly_nb.core.plain import read_json
from anomaly_nb.reports import Ledger, run_report, sweep
from anomaly_nb.reports.run import prepare

SLOW = os.environ.get("ANOMALY_NB_SLOW") == "1"
RUNS = 60 if SLOW else 4

PARAMETERS = 'a: float = 1.0  # slope\nseed: int = 0\nhow: str = ""  # how to misbehave\nout: str = ""'
IMPORTS = "import csv, os, random, signal, time\nfrom pathlib import Path\nfrom anomaly_nb.core.files import write_text\nfrom anomaly_nb.reports.folder import ReportFolder"
MISBEHAVE = """if how == "raise": raise ValueError("asked to fail")
if how == "die": os.kill(os.getpid(), signal.SIGKILL)
if how == "endless":
    while True: pass
if how == "greedy":
    held = []
    while True: held.append(bytearray(2**22))
if how == "slow": time.sleep(1.5)"""
RESULT = """rng = random.Random(seed)
values = [a * rng.random() for _ in range(1000)]
write_text(Path(out) / "values.csv", "value\\n" + "\\n".join(map(repr, values)) + "\\n")
ReportFolder(out).metrics({"mean": sum(values) / len(values), "largest": max(values)})
print(f"{sum(values):.12f}")"""


def write_template(folder):
    cells = [
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, (IMPORTS, MISBEHAVE, RESULT)),
    ]
    nbformat.write(new_notebook(cells=cells), folder / "tiny.ipynb")


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with the template, to run in."
    write_template(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    "The runs of `plan()` one after the other, in this process: id -> checksums."
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("serial"))
        write_template(folder)
        made = [
            run_report("tiny.ipynb", {"a": a, "seed": s}, "figures", gallery=False)
            for a in (0.5, 2.0)
            for s in range(RUNS // 2)
        ]
    return {r.record["run_id"]: r.record["outputs"] for r in made}


def plan(runs=RUNS, **parameters):
    return {
        "template": "tiny.ipynb",
        "parameters": parameters,
        "grid": {"a": [0.5, 2.0]},
        "seeds": list(range(runs // 2)),
    }


def start(plan, figures="figures", workers=2, **more):
    "A sweep in a process group of its own."
    code = f"from anomaly_nb.reports import sweep; sweep({plan!r}, {figures!r}, workers={workers})"
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **more)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def finished(figures="figures"):
    return sum(r["status"] == "ok" for r in Ledger(figures).records())


def assert_complete(expected, figures="figures"):
    "Every run once, none failed, the bits of the serial ones."
    records = Ledger(figures).records()
    assert len(records) == len(expected) and {r["status"] for r in records} == {"ok"}
    assert {r["run_id"]: r["outputs"] for r in records} == expected
    assert len(list(Path(figures).glob("runs/*"))) == len(expected) and not list(Path(figures).rglob("*.tmp"))
    return records


def test_killed_at_random_moments_and_restarted(place, serial):
    attempts, dice = 0, random.Random()
    kills = 4 if SLOW else 1
    for _ in range(kills):
        before = finished()
        process = start(plan())
        wait_for(lambda: finished() > before)  # noqa: B023 - called at once
        time.sleep(dice.uniform(0, 8 if SLOW else 2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(
            lambda: "running" not in {r["status"] for r in Ledger("figures").records()}
        )  # the children of the group are gone, too
    left = Ledger("figures").records()
    print(f"{kills} kills, {finished()} of {RUNS} finished, {sum(r['status'] == 'crashed' for r in left)} crashed")
    done = sweep(plan(), "figures", workers=2)
    assert len(done.records) == RUNS and sum(done.made) == RUNS - sum(r["status"] == "ok" for r in left)
    records = assert_complete(serial)
    attempts = sum(r["attempts"] for r in records)
    print(f"{attempts} attempts for {RUNS} runs")
    assert not any(sweep(plan(), "figures").made)


def test_dask_worker_killed_in_the_middle(place, serial):
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        killer = subprocess.Popen([sys.executable, "-c", KILL_AFTER, str(victim), "figures", str(3 if SLOW else 1)])
        done = sweep(plan(), "figures", scheduler=client)
        assert killer.wait() == 0
        assert victim not in client.run(os.getpid).values()
        cancel_on(client)
    assert [r["status"] for r in done.records] == ["ok"] * RUNS
    assert_complete(serial)


def test_dask_by_the_address_of_its_scheduler(place, serial):
    "As from the command line, where no client is Dask's default one."
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with pytest.raises(ValueError, match="No clients found"):
            distributed.default_client()
        done = sweep(plan(2), "figures", scheduler=cluster.scheduler_address)
        cancel_on(cluster.scheduler_address)
    assert [r["status"] for r in done.records] == ["ok"] * 2
    assert_complete({r["run_id"]: serial[r["run_id"]] for r in done.records})


def cancel_on(scheduler):
    "What goes on when the caller leaves is ended, and its record says so; what waits is not begun."
    from anomaly_nb.reports.cluster import run_on_cluster
    from anomaly_nb.reports.sweep import _task, read_plan

    checked = read_plan(
        {
            "template": "tiny.ipynb",
            "list": [{"how": "", "seed": 100}, *({"how": "endless", "seed": s} for s in range(3))],
        }
    )
    going = run_on_cluster({i: _task(checked, i, "cancelled") for i in range(4)}, scheduler)
    assert next(going)[1]["status"] == "ok"
    wait_for(lambda: any("kernel" in r for r in Ledger("cancelled").records()))
    going.close()
    records = Ledger("cancelled").records()
    assert {r["status"] for r in records} == {"ok", "failed"} and {r["reason"] for r in records} == {None, "cancelled"}


KILL_AFTER = """
import os, signal, sys, time
from pathlib import Path
from anomaly_nb.core.plain import read_json
victim, figures, count = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
while sum(read_json(p)["status"] == "ok" for p in figures.glob("runs/*/run.json")) < count: time.sleep(0.05)
time.sleep(1)
os.kill(victim, signal.SIGKILL)
"""


def test_two_sweeps_at_once_make_each_run_once(place):
    runs = 4
    one, two = start(plan(runs), workers=1), start(plan(runs), workers=1)
    assert one.wait() == two.wait() == 0
    records = Ledger("figures").records()
    assert len(records) == runs and {(r["status"], r["attempts"]) for r in records} == {("ok", 1)}


def test_two_sweeps_at_once_count_each_run_once(place):
    "The second waits for the runs of the first; it said that it had made them."
    wish, words = plan(2, how="slow"), "two.yml"
    Path(words).write_text(yaml.safe_dump(wish), encoding="utf-8")
    command = [sys.executable, "-m", "anomaly_nb.cli.main", "sweep", words, "--workers", "1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) for _ in range(2)]
    said = [p.communicate(timeout=300)[0] for p in both]
    counts = [tuple(map(int, re.search(r"2 runs \(2 ok\), (\d) made now, (\d) found", t).groups())) for t in said]
    assert [p.returncode for p in both] == [0, 0] and all(a + b == 2 for a, b in counts), said
    assert sum(a for a, _ in counts) == 2 and len(Ledger("figures").records()) == 2, said
    assert not any("was_there" in p.read_text(encoding="utf-8") for p in Path("figures").rglob("run.json"))


# a command line that heeds Ctrl-C even where the tests were started in the background of a shell, which ignores it
HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from anomaly_nb.cli.main import main; "


def test_interrupt_ends_children_and_closes_records(place):
    import psutil

    (place / "plan.yml").write_text(
        "template: tiny.ipynb\nparameters: {how: slow}\ngrid: {a: [0.5, 2.0]}\nseeds: [0, 1]\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", HEED + "main(['sweep', 'plan.yml', '--workers', '2'])"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: finished() >= 1)
    wait_for(lambda: any(r["status"] == "running" and "kernel" in r for r in Ledger("figures").records()))
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    out, err = process.communicate(timeout=30)
    ended = "anomaly-nb: sweep was ended by Ctrl-C; nothing half-written is left; the same command goes on from here\n"
    removed = r"anomaly-nb: note: figures/runs/tiny-\w{12}: removed \d temporary files? or folders? that a killed writer left\n"
    assert process.returncode == 130, (process.returncode, out, err)
    assert re.sub(removed, "", err) == ended, err  # a child may be ended while it writes: that is said
    assert not [p for p in psutil.wait_procs(family, timeout=5)[1] if p.status() != psutil.STATUS_ZOMBIE]
    left = Ledger("figures").records()
    assert {r["status"] for r in left} <= {"ok", "failed"} and {
        r["reason"] for r in left if r["status"] == "failed"
    } == {"cancelled"}
    assert all((place / "figures" / "runs" / r["folder"] / "report.html").exists() for r in left)
    again = sweep("plan.yml", "figures", workers=3)
    assert [r["status"] for r in again.records] == ["ok"] * 4 and len(Ledger("figures")) == 4


def test_interrupt_of_one_report(place):
    import psutil

    process = subprocess.Popen(
        [sys.executable, "-c", HEED + "main(['report', 'tiny.ipynb', '-p', 'how=endless'])"],
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: any("kernel" in r for r in Ledger("figures").records()))
    kernel = Ledger("figures").records()[0]["kernel"]["pid"]
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    for _ in range(100):  # the kernel ends a moment after its parent on a busy machine
        if not psutil.pid_exists(kernel):
            break
        time.sleep(0.1)
    assert process.returncode == 130 and not psutil.pid_exists(kernel)
    assert Ledger("figures").records()[0]["reason"] == "cancelled"


def test_bad_runs_stop_nobody(place):
    how = ["raise", "die", "endless", "greedy", "", ""]
    done = sweep(
        {
            "template": "tiny.ipynb",
            "list": [{"how": h, "seed": i} for i, h in enumerate(how)],
            "limits": {"seconds": 12, "memory_mb": 300},
        },
        "figures",
        workers=2,
    )
    reasons = [r["reason"] for r in done.records]
    assert reasons == ["error", "died", "timeout", "memory", None, None]
    assert [r["status"] for r in done.records] == ["failed"] * 4 + ["ok"] * 2
    for record in done.records:
        kept = read_json(place / "figures" / "runs" / record["folder"] / "run.json")
        assert kept["error"] == record["error"] and kept["peak_memory_mb"]
    text = str(done)
    assert "6 runs (4 failed, 2 ok)" in text and text.count("\n") == 4


def test_retries_are_counted(place):
    done = sweep({"template": "tiny.ipynb", "parameters": {"how": "raise"}, "retries": 1}, "figures", workers=1)
    assert done.records[0]["attempts"] == 2 and done.records[0]["status"] == "failed"
    assert not any(sweep({"template": "tiny.ipynb", "parameters": {"how": "raise"}}, "figures").made)
    assert (
        sweep({"template": "tiny.ipynb", "parameters": {"how": "raise"}}, "figures", retry_failed=True).records[0][
            "attempts"
        ]
        == 3
    )


def test_damaged_records_and_a_folder_that_cannot_be_written(place):
    wanted = [prepare("tiny.ipynb", {"seed": s}) for s in range(3)]
    runs = place / "figures" / "runs"
    (runs / wanted[0].name).mkdir(parents=True)
    (runs / wanted[0].name / "run.json").write_bytes(b'{"run_id": "half')
    (runs / wanted[1].name).write_text("a file where the run's folder should be")
    done = sweep({"template": "tiny.ipynb", "seeds": [0, 1, 2]}, "figures", workers=1)
    assert [r["status"] for r in done.records] == ["ok", "failed", "ok"]
    assert wanted[1].name in done.records[1]["error"]


def test_disk_full_at_the_closing_record(place):
    import errno

    import anomaly_nb.reports.run as module

    def full(path, value):
        if value["status"] != "running":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_json(path, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            run_report("tiny.ipynb", {}, "figures")
    assert Ledger("figures").records()[0]["status"] == "crashed" and not list(place.rglob("*.tmp"))
    assert run_report("tiny.ipynb", {}, "figures").record["attempts"] == 2


def test_a_store_keeps_failures_and_successes(place):
    url = f"file://{place}/store/figures"
    there = {"template": "tiny.ipynb", "list": [{"seed": 1}, {"seed": 2, "how": "raise"}]}
    first = sweep(there, url, workers=1)
    assert [r["status"] for r in Ledger(url)].count("failed") == 1 and all(first.made)
    again = sweep(there, url, workers=1)
    assert not any(again.made) and [r["outputs"] for r in again.records] == [r["outputs"] for r in first.records]
    assert (place / "store" / "figures" / "runs" / again.records[0]["folder"] / "values.csv").exists()


@pytest.mark.parametrize(("text", "words"), [
    ("template: tiny.ipynb\ngrid: {a: [1, two]}", "a='two' is not float"),
    ("template: tiny.ipynb\nseeds: [0, 0.5]", "seeds must be a list of whole numbers"),
    ("template: tiny.ipynb\ngrid: [1]", "grid must be a mapping"),
    ("- template", "must be a mapping"),
    ("template: tiny.ipynb\nlist: [{nope: 1}]", "no parameter 'nope'"),
    ("template: &a [*a]", "nested more than 100 levels deep"),
    ("x: &a [1]\ny: &b [*a, *a]\ntemplate: tiny.ipynb\ngrid: {a: [*b, *b]}", "unknown key 'x'"),
    ("template: tiny.ipynb\ngrid: {how: [[[1]]]}", "how must be a plain value"),
    ("template: tiny.ipynb\nparameters: !!python/name:os.system {}", "could not determine a constructor"),
    ("\0", "not valid YAML"),
])  # fmt: skip
def test_bad_plans_are_one_line_and_run_nothing(place, text, words):
    (place / "plan.yml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", "from anomaly_nb.cli.main import main; main(['sweep', 'plan.yml'])"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
    assert not (place / "figures").exists()


def test_workers_must_be_one_at_least(place):
    with pytest.raises(DataError, match="workers=0"):
        sweep(plan(2), "figures", workers=0)
