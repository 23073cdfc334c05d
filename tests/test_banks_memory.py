"""Peak memory of every bank, in a process of its own, against the features it was given: twice as much when fitting, and half a bank more when searching."""
import os
import subprocess
import sys

import pytest

CHILD = """
import sys
import numpy as np, faiss, torch
from anomaly_nb.banks import *
from anomaly_nb.banks.neighbours import nearest

def features(n):
    "Made picture by picture, so that they are all that is new."
    x = np.empty((n, 256, d), np.float32)
    for i in range(n):
        x[i] = np.random.default_rng(i).normal(size=(256, d)) + np.random.default_rng(d).normal(size=d)
    return x

def resident(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1]) / 1024

bank, n, d = eval(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cls = np.random.default_rng(0).normal(size=(n, 16))
given = lambda m: {"cls": cls[:m]} if getattr(bank, "similar", None) else {}
few = features(4)
bank.fit(few, (16, 16), **given(4)).score(few, **given(4))  # loads every library
nearest(few[0], few[0], method="shortlist")
vars(bank).pop("bank_", None)
del few
before, x = resident("VmRSS"), features(n)
steps = {"fit": lambda: bank.fit(x, (16, 16), **given(n)), "score": lambda: bank.score(x[: n // 4], **given(n // 4))}
if hasattr(bank, "leave_one_image_out"):
    steps["own"] = lambda: bank.leave_one_image_out(x)
for step in sys.argv[4].split(","):
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    steps[step]()
    print((resident("VmHWM") - before) / (x.nbytes / 2**20))
"""
SIZE = 400 if os.environ.get("ANOMALY_NB_SLOW") else 128  # MiB of features
ROOM = 60  # MiB of blocks and results, whatever the features
SEARCH = {"fit": 2.0, "score": 2.5, "own": 2.5}  # the features, the bank, and its half-precision form
TWICE = {"fit": 2.0, "score": 2.0, "own": 2.0}
ONCE = {"fit": 1.0, "score": 1.0, "own": 1.0}
CASES = {  # bank -> dimensions, and the most each step may need, in times of the features, which are among it
    "KNNBank()": (2048, SEARCH),
    "KNNBank(metric='euclidean')": (2048, SEARCH),
    "KNNBank(coreset=0.02)": (2048, TWICE),
    "MahalanobisBank()": (128, ONCE),
    "MahalanobisBank(per_position=True)": (128, TWICE),
    "SubspaceBank(0.9)": (128, {"fit": 1.0, "score": 1.0}),
    "PositionalBank()": (1024, TWICE),
    "PositionalBank(similar=20)": (1024, TWICE),
    "RetrievalBank(5)": (2048, TWICE),
    "MutualBank((1, 3))": (4096, {"fit": 1.0, "own": 2.0}),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("bank", CASES)
def test_peak_memory(bank):
    dimensions, most = CASES[bank]
    n = SIZE * 2**20 // (256 * 4 * dimensions)
    run = subprocess.run([sys.executable, "-c", CHILD, bank, str(n), str(dimensions), ",".join(most)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    peaks = dict(zip(most, map(float, run.stdout.split()[-len(most) :])))
    print(f"{bank}: {SIZE} MiB of features; peaks in times of that: {', '.join(f'{k} {v:.2f}' for k, v in peaks.items())}")
    for step, limit in most.items():
        assert peaks[step] <= limit + ROOM / SIZE
