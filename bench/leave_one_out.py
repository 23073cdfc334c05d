"""Leave-one-video-out distances against rebuilding a FAISS index for every video, with and without one object of huge
norm.
"""

import time

import numpy as np

from anomaly_nb.calibration.leave_one_out import leave_one_group_out_distances
from bench.banks import patchlike


def rebuild(features: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    "The obvious way: for every group, an exact index over all the others."
    import faiss

    out = np.empty(len(features), np.float32)
    for group in np.unique(groups):
        own = groups == group
        index = faiss.IndexFlatL2(features.shape[1])
        index.add(features[~own])
        out[own] = index.search(features[own], k)[0][:, k - 1]
    return out


def compared(
    features: np.ndarray, groups: np.ndarray, odd: np.ndarray, turns: int = 3
) -> tuple[float, float]:  # medians in seconds
    "Both ways in turn; equal but for the `odd` rows, whose distances FAISS cannot tell."
    ours, reference = [], []
    for _ in range(turns):
        start = time.perf_counter()
        expected = rebuild(features, groups, 2)
        middle = time.perf_counter()
        found = leave_one_group_out_distances(features, groups, 2)
        ours.append(time.perf_counter() - middle)
        reference.append(middle - start)
        np.testing.assert_allclose(found[~odd], expected[~odd], rtol=1e-4)
    return float(np.median(ours)), float(np.median(reference))


def run(small: bool) -> list[dict]:
    "20 000 objects of 512 dimensions in 40 videos (small: 4 000 of 128 in 20)."
    n, dimensions, videos = (4_000, 128, 20) if small else (20_000, 512, 40)
    rng, rows = np.random.default_rng(0), []
    groups = np.repeat(np.arange(videos), n // videos)
    features = (rng.normal(size=(n, dimensions)) + 0.5 * rng.normal(size=(videos, dimensions))[groups]).astype(
        np.float32
    )
    leave_one_group_out_distances(features[:: n // 500], groups[:: n // 500])  # start the thread pools
    strange = features.copy()
    strange[n // 3] *= 1e6 / np.linalg.norm(strange[n // 3])
    odd = np.arange(n) == n // 3
    for name, x, excepted in (
        ("leave-one-video-out distances", features, np.zeros(n, bool)),
        ("leave-one-video-out, one object of norm 1e6", strange, odd),
        ("leave-one-video-out, patch-like features", patchlike(n, dimensions), np.zeros(n, bool)),
    ):
        ours, reference = compared(x, groups, excepted)
        work, note = (
            f"{n} x {dimensions}, {videos} videos, k = 2",
            "reference: FAISS IndexFlatL2 rebuilt per video; equal to 1e-4, ours exact; medians of 3 turns",
        )
        rows.append(
            {
                "name": name,
                "ours_s": ours,
                "reference_s": reference,
                "ratio": reference / ours,
                "work": work,
                "note": note,
            }
        )
    return rows
