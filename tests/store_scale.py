"""A store of many large heads: seconds to tag each, seconds and peak memory of a run over all, and of the queries.

    python -m tests.store_scale /tmp/large 10 1000000

Each step is a process of its own, so that its peak memory is its own.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

STEPS = ("tag", "run", "tag again", "queries", "retag")


def step(name: str, root: str, heads: int, n: int) -> None:
    "One step, and what it took, as JSON."
    from anomaly_nb.calibration.store import CalibrationStore
    from anomaly_nb.core.settings import Settings

    store, took, rng = CalibrationStore(root, Settings(calibrate_heads=True)), {}, np.random.default_rng(0)

    def timed(what, function):
        began = time.perf_counter()
        function()
        took[what] = round(time.perf_counter() - began, 3)

    if name in ("tag", "tag again"):
        files = [f"{name}/{i:07}.png" for i in range(n)]
        for k in range(heads if name == "tag" else 1):
            timed(f"head {k}", lambda k=k: store.tag("net", f"head_{k}", files, rng.gamma(4, size=n)))  # type: ignore[misc]
    elif name == "run":
        timed("run", store.run)
    elif name == "queries":
        timed("history", lambda: store.history(limit=50))
        timed("history of a head", lambda: store.history("net", "head_0"))
        timed("trend", lambda: store.trend("net", "head_0"))
    else:
        timed("enqueue", store.retag_all)
        timed("5000 jobs", lambda: store.work(limit=5000))
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps({"step": name, "seconds": took, "peak_mb": int(peak) // 1024}))


def main(root: str, heads: int = 10, n: int = 1_000_000) -> None:
    "All steps, one after the other, in a new folder."
    if Path(root).exists():
        raise SystemExit(f"{root}: is there already; name a new folder")
    for name in STEPS:
        subprocess.run([sys.executable, "-m", "tests.store_scale", root, str(heads), str(n), name], check=True)


if __name__ == "__main__":
    root, heads, n = sys.argv[1], *(int(v) for v in sys.argv[2:4])
    step(sys.argv[4], root, heads, n) if len(sys.argv) > 4 else main(root, heads, n)
