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
from bench.metrics import peak_memory

def features(n):
    "Made picture by picture, so that they are all that is new."
    x = np.empty((n, 256, d), np.float32)
    for i in range(n):
        x[i] = np.random.default_rng(i).normal(size=(256, d)) + np.random.default_rng(d).normal(size=d)
    return x

bank, n, d = eval(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cls = np.random.default_rng(0).normal(size=(n, 16))
given = lambda m: {"cls": cls[:m]} if getattr(bank, "similar", None) else {}
few = features(6)
for step in (lambda: bank.fit(few, (16, 16), **given(6)), lambda: bank.score(few, **given(6)), lambda: bank.leave_one_image_out(few)):
    step()  # loads every library
nearest(few[0], few[0], method="shortlist")
del few, bank.__dict__["patch_hw_"]
before = peak_memory()
x = features(n)
size = x.nbytes / 2**20
assert peak_memory() - before > 0.9 * size, "the peak before was that of libraries alone"
bank.fit(x, (16, 16), **given(n))
fitted = peak_memory() - before
bank.score(x[: n // 4], **given(n // 4))
scored = peak_memory() - before
bank.leave_one_image_out(x) if sys.argv[4] == "own" else None
print(size, fitted, scored, peak_memory() - before)
"""
SIZE = 400 if os.environ.get("ANOMALY_NB_SLOW") else 100  # MiB of features
ROOM = 70  # MiB of blocks and results, whatever the features
CASES = {  # bank -> dimensions, and the most it may need in times of the features when fitting, scoring, leaving one picture out
    "KNNBank()": (2048, 2.0, 2.5, 2.5),
    "KNNBank(metric='euclidean')": (2048, 2.0, 2.5, 2.5),
    "KNNBank(coreset=0.02)": (2048, 2.1, 2.1, 2.1),
    "MahalanobisBank()": (512, 1.1, 1.1, 1.1),
    "MahalanobisBank(per_position=True)": (96, 2.0, 2.0, 2.0),
    "SubspaceBank(0.9)": (512, 1.1, 1.1, None),
    "PositionalBank()": (512, 2.0, 2.0, 2.0),
    "PositionalBank(similar=20)": (512, 2.0, 2.0, 2.0),
    "RetrievalBank(5)": (2048, 2.0, 2.0, 2.0),
    "MutualBank((1, 3))": (1536, 1.1, 2.0, None),
}


@pytest.mark.parametrize("bank", CASES)
def test_peak_memory(bank):
    dimensions, *most = CASES[bank]
    n = SIZE * 2**20 // (256 * 4 * dimensions)
    run = subprocess.run([sys.executable, "-c", CHILD, bank, str(n), str(dimensions), "own" if most[2] else ""], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    size, *peaks = map(float, run.stdout.split()[-4:])
    print(f"{bank}: {size:.0f} MiB of features; peaks {', '.join(f'{p / size:.2f}' for p in peaks)} times that")
    for peak, limit in zip(peaks, most):
        assert limit is None or peak <= limit * size + ROOM
