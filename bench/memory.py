"""Peak memory of banks, each in a process of its own, in times of the features it was given (Linux)."""

import subprocess
import sys

from bench.metrics import row

CHILD = """
import sys, time
import numpy as np, faiss, torch
from anomaly_nb.banks import *
from anomaly_nb.banks.neighbours import nearest

def features(n):
    "Made image by image, so that they are all that is new."
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
nearest(few[0], few[0], method="axes")
vars(bank).pop("bank_", None)
del few
before, x = resident("VmRSS"), features(n)
steps = {"fit": lambda: bank.fit(x, (16, 16), **given(n)), "score": lambda: bank.score(x[: n // 4], **given(n // 4))}
if hasattr(bank, "leave_one_image_out"):
    steps["own"] = lambda: bank.leave_one_image_out(x)
for step in sys.argv[4].split(","):
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    start = time.perf_counter()
    steps[step]()
    print((resident("VmHWM") - before) / (x.nbytes / 2**20), time.perf_counter() - start)
"""


def peaks(bank: str, dimensions: int, steps: list[str], size: int) -> dict[str, tuple[float, float]]:
    "For each step (fit, score, own): the peak in times of `size` MiB of features, which are among it, and seconds."
    n = size * 2**20 // (256 * 4 * dimensions)
    run = subprocess.run(
        [sys.executable, "-c", CHILD, bank, str(n), str(dimensions), ",".join(steps)], capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    numbers = list(map(float, run.stdout.split()[-2 * len(steps) :]))
    return dict(zip(steps, zip(numbers[::2], numbers[1::2])))


def run(small: bool) -> list[dict]:
    "Fitting and scoring; small: 64 MiB of features, else 400."
    size, rows = 64 if small else 400, []
    for bank, dimensions in (
        ("KNNBank()", 2048),
        ("KNNBank(coreset=0.02)", 2048),
        ("MahalanobisBank()", 128),
        ("SubspaceBank(0.9)", 128),
        ("PositionalBank()", 1024),
    ):
        found = peaks(bank, dimensions, ["fit", "score"], size)
        note = ", ".join(f"{step} {peak:.2f} times the features" for step, (peak, _) in found.items())
        rows.append(
            row(f"peak memory, {bank}", found["fit"][1], None, f"{size} MiB of features, {dimensions} dimensions", note)
        )
    return rows
