"""Banks against their plain forms: greedy selection by the loop, neighbours by a flat FAISS index, leave-one-out by refitting."""

import os
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

from anomaly_nb.banks import KNNBank, MahalanobisBank, greedy_coreset
from anomaly_nb.banks import neighbours as near
from anomaly_nb.banks.neighbours import exact_distances, nearest, unit_rows
from bench.metrics import row, timed

DATA = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere")
TILES = DATA / "images/magnetic_tile"


def patchlike(n: int, d: int, inner: int = 20, seed: int = 0) -> np.ndarray:
    "Vectors of length one that fill `inner` dimensions, in 40 clumps, with a little noise in all: much like patches of a frozen network."
    rng = np.random.default_rng(99)
    basis, clumps = rng.normal(size=(inner, d)).astype(np.float32), rng.normal(size=(40, inner)).astype(np.float32)
    rng = np.random.default_rng(seed)
    inside = clumps[rng.integers(40, size=n)] + rng.normal(size=(n, inner)).astype(np.float32)
    return unit_rows(inside @ basis / np.float32(np.sqrt(d)) + rng.normal(size=(n, d)).astype(np.float32) * np.float32(0.08))


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


def coreset(name: str, x: np.ndarray, n: int) -> dict:
    "The same picks, sooner; where rounding decides between equals, the same cover radius."
    ours, picks = timed(lambda: greedy_coreset(x, n))
    theirs, expected = timed(lambda: plain_loop(x, n))
    common = np.intersect1d(picks, expected).size / n
    cover = [float(nearest(x, np.ascontiguousarray(x[p]))[0].max()) ** 0.5 for p in (picks, expected)]
    assert common > 0.99 and abs(cover[0] / cover[1] - 1) < 1e-3, "both must pick the same up to ties"
    return row(f"greedy_coreset, {name}", ours, theirs, f"{n} of {len(x)} x {x.shape[1]}", f"{common:.2%} of the picks in common, cover radius {cover[0]:.5f} and {cover[1]:.5f}")


def by_turns(ways: list, repeat: int):
    "Median seconds of each way, called in turn so that all meet the same load, and the last result of each."
    seconds, results = [[] for _ in ways], [None] * len(ways)
    for _ in range(repeat):
        for i, function in enumerate(ways):
            once, results[i] = timed(function)
            seconds[i].append(once)
    return [float(np.median(s)) for s in seconds], results


def without_bf16(function):
    "A call as on a processor that has no bf16 instructions (its other instructions stay)."
    with patch.object(near, "fast_bf16", lambda device: False):
        return function()


def neighbours(name: str, queries: np.ndarray, bank: np.ndarray, repeat: int = 3) -> list[dict]:
    "The nearest row of every query, exactly: as this machine does it, and with bf16 switched off."
    import faiss
    import torch

    threads = torch.get_num_threads()
    faiss.omp_set_num_threads(threads)

    def flat():
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank)
        return index.search(queries, 1)

    ours = partial(nearest, queries, bank)
    fast = near.fast_bf16(torch.device("cpu"))
    nearest(queries[:256], bank, method="bf16" if fast else "float32")  # loads kernels
    ways = [flat, partial(without_bf16, ours)] + [ours] * fast
    (theirs, *seconds), ((_, found), *results) = by_turns(ways, repeat)
    expected = exact_distances(queries, bank, found)
    for distance, rows in results:
        assert np.allclose(distance, expected, rtol=1e-5, atol=1e-7) and (distance <= expected * (1 + 1e-6)).all(), "the same distances, or nearer"
        assert np.array_equal(distance, results[0][0]) and np.array_equal(rows, results[0][1]), "the same bits, with and without bf16"
    work, note = f"{len(queries)} queries, {len(bank)} x {bank.shape[1]}", f"equal distances; medians of {repeat} turns, {threads} threads each"
    return [row(f"nearest / IndexFlat, {name}, {kind} bf16", s, theirs, work, note) | {"flop": 2 * len(queries) * bank.size} for kind, s in zip(("without", "with"), seconds)]


def tile_patches(normal: int, asked: int) -> tuple[np.ndarray, np.ndarray]:
    "Unit vectors of images to look up, every other one with a defect, and of normal images: real patches in 128 dimensions."
    from anomaly_nb.data import index_magnetic_tile, read_image
    from anomaly_nb.features import create_backbone

    index = index_magnetic_tile(TILES)
    test = index[index.split == "test"]
    files = [*test[test.label == 1].image_path[:: 392 // asked][: asked // 2], *test[test.label == 0].image_path[: asked // 2], *index[index.split == "train"].image_path[:normal]]
    net = create_backbone("timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5", DATA / "weights/mobilenetv2_100_imagenet.safetensors", 256)
    x = np.concatenate([net.patches(net.transform(read_image(f))[None])[0] for f in files])
    return tuple(unit_rows(part.reshape(-1, x.shape[2])) for part in (x[: asked // 2 * 2], x[asked // 2 * 2 :]))


def leave_one_out(n: int, p: int, d: int) -> list[dict]:
    "Scores of all training images by the others, against one search, and against refitting for each."
    x, rows = patchlike(n * p, d).reshape(n, p, d), []
    side = int(p**0.5)

    def refit(kind, i):
        return kind().fit(np.delete(x, i, 0), (side, side)).score(x[i : i + 1])

    few = 3
    for bank in (KNNBank(), MahalanobisBank()):
        bank.fit(x, (side, side))
        ours, scores = timed(partial(bank.leave_one_image_out, x))
        once, _ = timed(partial(bank.score, x))
        theirs, refitted = timed(partial(lambda kind: np.concatenate([refit(kind, i) for i in range(few)]), type(bank)))
        assert np.allclose(scores[:few], refitted, rtol=1e-3, atol=1e-5), "the scores of a bank refitted without the image"
        note = f"one plain scoring takes {once:.2f} s; the reference is {few} refits times {n / few:.0f}; equal scores"
        rows.append(row(f"leave one image out, {type(bank).__name__}", ours, theirs * n / few, f"{n} images of {p} patches, {d} dimensions", note))
    return rows


def run(small: bool) -> list[dict]:
    "All rows of this module."
    rng = np.random.default_rng(0)
    n, d = (6000, 128) if small else (40_000, 384)
    rows = [coreset("patch-like", patchlike(n, d), n // 10), coreset("isotropic", rng.normal(size=(n, d)).astype(np.float32), n // 10)]
    n, m = (2000, 10_000) if small else (6000, 40_000)
    rows += neighbours("patch-like", patchlike(n, 768, seed=1), patchlike(m, 768))
    rows += neighbours("uniform noise", *(rng.random((k, 768), dtype=np.float32) for k in (n, m)))
    rows += neighbours("uniform noise, small", *(rng.random((k, 64), dtype=np.float32) for k in (2000, 8000)), repeat=15)
    if TILES.is_dir():
        patches = tile_patches(40 if small else 300, 8 if small else 60)
        rows += neighbours("MobileNetV2 patches of magnetic tile", *patches)
    return rows + (leave_one_out(20, 64, 128) if small else leave_one_out(150, 256, 384))
