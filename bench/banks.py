"""Banks against their plain forms: greedy selection by the loop, neighbours by a flat FAISS index, leave-one-out by
refitting.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np

from anomaly_nb.banks import KNNBank, MahalanobisBank, greedy_coreset
from anomaly_nb.banks.neighbours import exact_distances, nearest, unit_rows
from bench.metrics import row, timed


def patchlike(n: int, d: int, inner: int = 20, random_state: int = 0) -> np.ndarray:
    """Vectors of length one that fill `inner` dimensions, in 40 clumps, with a little noise in all: much like patches
    of a frozen network.
    """
    rng = np.random.default_rng(99)
    basis, clumps = rng.normal(size=(inner, d)).astype(np.float32), rng.normal(size=(40, inner)).astype(np.float32)
    rng = np.random.default_rng(random_state)
    inside = clumps[rng.integers(40, size=n)] + rng.normal(size=(n, inner)).astype(np.float32)
    return unit_rows(
        inside @ basis / np.float32(np.sqrt(d)) + rng.normal(size=(n, d)).astype(np.float32) * np.float32(0.08)
    )


def plain_loop(x: np.ndarray, n: int) -> np.ndarray:
    "The greedy rule as it is usually written: after each pick, the distance of all points to it."
    squared, picked = np.einsum("nd,nd->n", x, x), np.empty(n, np.int64)
    picked[0] = np.random.default_rng(0).integers(len(x))
    near = np.full(len(x), np.inf, np.float32)
    for i in range(1, n):
        centre = picked[i - 1]
        np.minimum(near, squared + squared[centre] - 2 * (x @ x[centre]), out=near)
        near[centre] = -1
        picked[i] = np.argmax(near)
    return picked


def coreset(name: str, x: np.ndarray, n: int, first: int = 2000) -> dict:
    """The same picks, sooner; where rounding decides between equals, the same cover radius. The plain loop makes its
    `first` picks only: each costs as much as any other.
    """
    first = min(first, n)
    ours, picks = timed(lambda: greedy_coreset(x, n))
    part, expected = timed(lambda: plain_loop(x, first))
    common = np.intersect1d(picks[:first], expected).size / first
    cover = [float(nearest(x, np.ascontiguousarray(x[p]))[0].max()) ** 0.5 for p in (picks[:first], expected)]
    assert common > 0.99 and abs(cover[0] / cover[1] - 1) < 1e-3, "both must pick the same up to ties"
    return row(
        f"greedy_coreset, {name}",
        ours,
        part * n / first,
        f"{n} of {len(x)} x {x.shape[1]}",
        f"the loop's first {first} picks, times {n // first}; {common:.2%} of them in common, cover radius {cover[0]:.5f} "
        f"and {cover[1]:.5f}",
    )


def by_turns(ours, theirs, repeat: int):
    "Median seconds of two ways, called in turn so that both meet the same load, and the last result of each."
    seconds, results = ([], []), [None, None]
    for _ in range(repeat):
        for i, function in enumerate((ours, theirs)):
            once, results[i] = timed(function)
            seconds[i].append(once)
    return *map(np.median, seconds), *results


def neighbours(name: str, queries: np.ndarray, bank: np.ndarray, repeat: int = 3) -> dict:
    "The nearest row of every query, exactly."
    import faiss
    import torch

    faiss.omp_set_num_threads(torch.get_num_threads())

    def flat():
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank)
        return index.search(queries, 1)

    for method in ("axes", "int8"):  # loads kernels
        nearest(queries[:2048], bank, method=method)
    ours, theirs, (distance, _), (_, found) = by_turns(lambda: nearest(queries, bank), flat, repeat)
    expected = exact_distances(queries, bank, found)
    assert np.allclose(distance, expected, rtol=1e-5, atol=1e-7) and (distance <= expected * (1 + 1e-6)).all(), (
        "the same distances, or nearer"
    )
    note = f"equal distances; medians of {repeat} turns, {torch.get_num_threads()} threads each"
    return row(
        f"nearest / IndexFlat, {name}", ours, theirs, f"{len(queries)} queries, {len(bank)} x {bank.shape[1]}", note
    ) | {"flop": 2 * len(queries) * bank.size}


def tile_patches(layers: str, images: int) -> tuple[np.ndarray, np.ndarray] | None:  # queries, bank; None without data
    "Patches of MobileNetV2 of magnetic tiles, from the folder named by ANOMALY_NB_DATA: of the first images, and of 20 others."
    from anomaly_nb.data.images import read_image
    from anomaly_nb.features import create_backbone

    data = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere")
    paths = sorted((data / "images" / "magnetic_tile" / "MT_Free").rglob("*.jpg"))[: images + 20]
    weights = data / "weights" / "mobilenetv2_100_imagenet.safetensors"
    if len(paths) < images + 20 or not weights.exists():
        return None
    network = create_backbone(f"timm:mobilenetv2_100?layers={layers}", str(weights), 256)
    patches = [network.patches(network.transform(read_image(path))[None])[0][0] for path in paths]
    return np.concatenate(patches[images:]), np.concatenate(patches[:images])


def leave_one_out(n: int, p: int, d: int) -> list[dict]:
    "Scores of all training images by the others, against one search, and against refitting for each."
    x, rows = patchlike(n * p, d).reshape(n, p, d), []
    side = int(p**0.5)

    def refit(bank_class, i):
        return bank_class().fit(np.delete(x, i, 0), (side, side)).score(x[i : i + 1])

    few = 3
    for bank in (KNNBank(), MahalanobisBank()):
        bank.fit(x, (side, side))
        ours, scores = timed(partial(bank.leave_one_image_out, x))
        once, _ = timed(partial(bank.score, x))
        theirs, refitted = timed(
            partial(lambda bank_class: np.concatenate([refit(bank_class, i) for i in range(few)]), type(bank))
        )
        assert np.allclose(scores[:few], refitted, rtol=1e-3, atol=1e-5), (
            "the scores of a bank refitted without the image"
        )
        note = f"one plain scoring takes {once:.2f} s; the reference is {few} refits times {n / few:.0f}; equal scores"
        rows.append(
            row(
                f"leave one image out, {type(bank).__name__}",
                ours,
                theirs * n / few,
                f"{n} images of {p} patches, {d} dimensions",
                note,
            )
        )
    return rows


def run(small: bool) -> list[dict]:
    "All rows of this module."
    rng = np.random.default_rng(0)
    n, d = (6000, 128) if small else (100_000, 384)
    rows = [
        coreset("patch-like", patchlike(n, d), n // 10),
        coreset("isotropic", rng.normal(size=(n, d)).astype(np.float32), n // 10),
    ]
    n, m = (2000, 20_000) if small else (20_000, 80_000)
    rows.append(neighbours("patch-like", patchlike(n, 384, random_state=1), patchlike(m, 384)))
    rows.append(neighbours("isotropic", *(rng.normal(size=(k, 384)).astype(np.float32) for k in (n, m))))
    rows.append(neighbours("medium", patchlike(n // 5, 384, random_state=1), patchlike(m // 4, 384), 5))
    rows.append(neighbours("small", patchlike(n // 10, 64, random_state=1), patchlike(m // 10, 64), 15))
    n, m, d = (1000, 10_000, 256) if small else (6000, 40_000, 768)
    rows.append(neighbours("clustered", patchlike(n, d, random_state=1), patchlike(m, d)))
    rows.append(neighbours("uniform noise", *(rng.random((k, d), np.float32) for k in (n, m))))
    for layers in ("(3,)", "(2,3)"):
        if patches := tile_patches(layers, 20 if small else 300):
            rows.append(neighbours(f"magnetic tiles, MobileNetV2 {layers}", *patches))
    return rows + (leave_one_out(20, 64, 128) if small else leave_one_out(150, 256, 384))
