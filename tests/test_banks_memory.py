"""Peak memory of every bank, in a process of its own, against the features it was given: twice as much when fitting,
and half a bank more when searching.
"""

import os

import pytest

from bench.memory import peaks

SIZE = 400 if os.environ.get("ANOMALY_NB_SLOW") else 128  # MiB of features
ROOM = 112  # MiB of blocks and results at any size (50 to 85 seen); less than one more copy of the features
SEARCH = {"fit": 2.0, "score": 2.5, "own": 2.5}  # the features, the bank, and its half-precision form
TWICE = {"fit": 2.0, "score": 2.0, "own": 2.0}
ONCE = {"fit": 1.0, "score": 1.0, "own": 1.0}
CASES = {  # bank -> dimensions (many, so that few patches are searched), and the most each step may need, in times of the features, which are among it
    "KNNBank()": (4096, SEARCH),
    "KNNBank(metric='euclidean')": (4096, SEARCH),
    "KNNBank(coreset=0.02)": (2048, TWICE),
    "MahalanobisBank()": (128, ONCE),
    "MahalanobisBank(per_position=True)": (128, TWICE),
    "SubspaceBank(0.9)": (128, {"fit": 1.0, "score": 1.0}),
    "PositionalBank()": (1024, TWICE),
    "PositionalBank(similar=20)": (1024, TWICE),
    "RetrievalBank(5)": (2048, TWICE),
    "MutualBank((1, 3))": (16384, {"fit": 1.0, "own": 2.0}),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("bank", CASES)
def test_peak_memory(bank):
    dimensions, most = CASES[bank]
    found = {step: peak for step, (peak, _) in peaks(bank, dimensions, list(most), SIZE).items()}
    print(
        f"{bank}: {SIZE} MiB of features; peaks in times of that: {', '.join(f'{k} {v:.2f}' for k, v in found.items())}"
    )
    for step, limit in most.items():
        assert found[step] <= limit + ROOM / SIZE
