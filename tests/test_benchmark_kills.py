"""A benchmark of 120 rows, killed at random moments and started again, ends complete, its table the same to the bit
(ANOMALY_NB_SLOW=1, minutes).
"""

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from anomaly_nb.data.samples import write_samples
from anomaly_nb.reports import Ledger

KILLS = 4
MEASURED = ["fit_s", "score_ms", "row_s"]  # seconds, other at every run
PLAN = """data:
  - {dataset: mvtec, root: ../samples, categories: [nut, weave]}
recipes: [knn, mahalanobis, placed]
sizes: 32
shots: [1, 2, 8, all]
seeds: [0, 1, 2, 3, 4]
cache: cache
"""


def start(place):
    "The command, in a process group of its own."
    place.mkdir(exist_ok=True)
    (place / "plan.yml").write_text(PLAN)
    call = "from anomaly_nb.cli.main import main; main(['benchmark', 'plan.yml', '--workers', '2'])"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, "-c", call],
        cwd=place,
        start_new_session=True,
        env=os.environ | {"ANOMALY_NB_PROGRESS": "0"},
        **quiet,
    )


def rows(place):
    return len(list(place.glob("cache/rows/*.json")))


def table(place):
    return pd.read_csv(place / "figures/benchmarks/plan.csv", dtype=str, keep_default_na=False).drop(columns=MEASURED)


@pytest.mark.skipif(
    not os.environ.get("ANOMALY_NB_SLOW"),
    reason="set ANOMALY_NB_SLOW=1 for a benchmark of 120 rows, made twice (minutes)",
)
def test_killed_at_random_and_started_again(tmp_path):
    write_samples(tmp_path / "samples", n_train=20, n_good=4, n_defect=1, size=48)
    whole, killed, dice, seen = tmp_path / "whole", tmp_path / "killed", random.Random(), []
    began = time.monotonic()
    assert start(whole).wait(900) == 0
    took = time.monotonic() - began
    for _ in range(KILLS):
        process, before = start(killed), rows(killed)
        time.sleep(dice.uniform(0.15, 0.5) * took)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 60
        while (
            "running"
            in {r["status"] for r in (Ledger(killed / "figures").records() if (killed / "figures").is_dir() else [])}
            and time.monotonic() < end
        ):
            time.sleep(0.2)  # the children of the group are gone, too
        seen.append(rows(killed) - before)
    assert start(killed).wait(900) == 0
    expected, found = table(whole), table(killed)
    print(
        f"{KILLS} kills in {took:.0f} s of work, {seen} rows made between them; {len(found)} rows, {(found['status'] == 'ok').sum()} with a number"
    )
    few, alone = (
        found["error"].str.contains(words).sum() for words in ("the index has 20 normal training images", "has no covariance")
    )
    assert len(found) == 120 and (found["status"] == "ok").sum() == 82 and (few, alone) == (18, 20)
    pd.testing.assert_frame_equal(found, expected)
    statuses = [r["status"] for r in Ledger(killed / "figures").records() if r["report"] == "benchmark_run"]
    assert statuses == ["ok"] * 6 and rows(killed) == rows(whole) == 82 and not list(killed.rglob("*.tmp"))
