"""Every recipe, from features to image scores, against its formula written out in float64: no code is shared with the
package.
"""

import numpy as np
import pandas as pd
import pytest

from anomaly_nb.banks import (
    FusedBank,
    KNNBank,
    MahalanobisBank,
    MutualBank,
    PositionalBank,
    RetrievalBank,
    SubspaceBank,
    greedy_coreset,
)
from anomaly_nb.features import FeatureSet
from anomaly_nb.scoring import RECIPES, make_detector
from anomaly_nb.scoring.recipes import WORD_RECIPES

H, W, D, N, M = 4, 5, 12, 20, 6
P = H * W


def feature_set(n, seed):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(D, D)) * np.linspace(0.2, 2, D)
    patches = (rng.normal(size=(n, P, D)) @ mix + np.random.default_rng(98).normal(size=(P, D))).astype(np.float32)
    return FeatureSet(
        patches, (H, W), pd.DataFrame({"image_path": [""] * n}), rng.normal(size=(n, 7)).astype(np.float32)
    )


TRAIN, TEST = feature_set(N, 0), feature_set(M, 1)
X, Y, CX, CY = (a.astype(np.float64) for a in (TRAIN.patches, TEST.patches, TRAIN.cls, TEST.cls))


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def squared(a, b):
    return ((a[..., :, None, :] - b[..., None, :, :]) ** 2).sum(-1)


def top(scores, fraction):
    return np.sort(scores, 1)[:, -max(1, int(fraction * scores.shape[1])) :].mean(1)


def brute_coreset(x, n, first):
    picked, near = [first], np.full(len(x), np.inf)
    while len(picked) < n:
        near = np.minimum(near, ((x - x[picked[-1]]) ** 2).sum(1))
        picked.append(int(near.argmax()))
    return picked


def patchcore():
    flat = X.reshape(-1, D)
    first = int(np.random.default_rng(0).integers(len(flat)))
    kept = flat[brute_coreset(flat, round(0.1 * len(flat)), first)]
    return squared(Y.reshape(-1, D), kept).min(1).reshape(M, P).max(1)


def padim():
    out = np.empty((M, P))
    for p in range(P):
        inverse = np.linalg.inv(np.cov(X[:, p].T) + 0.01 * np.eye(D))
        away = Y[:, p] - X[:, p].mean(0)
        out[:, p] = np.sqrt(np.einsum("nd,de,ne->n", away, inverse, away))
    return out.max(1)


def anomalydino():
    return top((1 - unit(Y.reshape(-1, D)) @ unit(X.reshape(-1, D)).T).min(1).reshape(M, P), 0.01)


def subspacead():
    flat = X.reshape(-1, D)
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    count = int(np.argmax(np.cumsum(values) / values.sum() >= 0.99)) + 1
    away = Y.reshape(-1, D) - flat.mean(0)
    return top(((away - away @ vectors[:, :count] @ vectors[:, :count].T) ** 2).sum(1).reshape(M, P), 0.01)


def rad():
    out = np.empty((M, P))
    for n, p in np.ndindex(M, P):
        near = [q for q in range(P) if abs(q // W - p // W) <= 1 and abs(q % W - p % W) <= 1]
        out[n, p] = (
            1 - unit(X[:, near].reshape(-1, D)) @ unit(Y[n, p])
        ).min()  # all twenty images: there are fewer than 150
    return top(out, 0.01)


def musc():
    scores = np.zeros((M, P))
    for r in (0, 1, 2):
        mean = np.stack(
            [
                Y[:, [q for q in range(P) if max(abs(q // W - p // W), abs(q % W - p % W)) <= r]].mean(1)
                for p in range(P)
            ],
            1,
        )
        z = unit(mean)
        for n, p in np.ndindex(M, P):
            near = np.sort([np.linalg.norm(z[m] - z[n, p], axis=1).min() for m in range(M) if m != n])
            scores[n, p] += near[: max(1, int(0.3 * (M - 1)))].mean() / 3
    image, alike, voted = scores.max(1), unit(CY) @ unit(CY).T, np.zeros(M)
    for k in (1, 2, 3):
        for n in range(M):
            who = np.argsort(-alike[n])[:k]
            voted[n] += np.average(image[who], weights=np.maximum(alike[n, who], 1e-12)) / 3
    return voted


def spade():
    return np.sqrt(squared(CY, CX)).mean(1)  # all twenty images: there are fewer than 50


def white_patches():
    flat = X.reshape(-1, D)
    mean, spread = flat.mean(0), flat.std(0)
    z = (flat - mean) / spread
    c = np.cov(z.T)
    values, vectors = np.linalg.eigh(0.9 * c + 0.1 * np.trace(c) / D * np.eye(D))
    white = vectors / np.sqrt(values)  # any root of the inverse gives the same cosines and distances
    return ((Y.reshape(-1, D) - mean) / spread) @ white, z @ white


def whitened():
    a, b = map(unit, white_patches())
    return top((1 - a @ b.T).min(1).reshape(M, P), 0.05)


def whitened_euclidean():
    return top(np.sqrt(squared(*white_patches()).min(1)).reshape(M, P), 0.05)


def gauss_knn():
    flat = X.reshape(-1, D)
    mean, spread = flat.mean(0), flat.std(0)
    z = (flat - mean) / spread
    c = np.cov(z.T)
    root = np.linalg.inv(np.linalg.cholesky(0.9 * c + 0.1 * np.trace(c) / D * np.eye(D))).T
    x, y = (z @ root).reshape(N, P, D), ((Y - mean) / spread) @ root

    def gauss(train, asked):
        out = np.empty(asked.shape[:2])
        for p in range(P):
            c = np.cov(train[:, p].T)
            away = asked[:, p] - train[:, p].mean(0)
            out[:, p] = np.sqrt(
                np.einsum("nd,de,ne->n", away, np.linalg.inv(0.9 * c + 0.1 * np.trace(c) / D * np.eye(D)), away)
            )
        return out

    def nearest(train, asked):
        return (1 - unit(asked.reshape(-1, D)) @ unit(train.reshape(-1, D)).T).min(1).reshape(-1, P)

    total = np.zeros((M, P))
    for bank in (gauss, nearest):
        held_out = np.concatenate([bank(np.delete(x, i, 0), x[i : i + 1]) for i in range(N)])
        total += bank(x, y) / held_out.mean() / 2
    return total.max(1)


def euclidean():
    return top(np.sqrt(squared(Y.reshape(-1, D), X.reshape(-1, D)).min(1)).reshape(M, P), 0.01)


def gaussian(x, y):
    c = np.cov(x.T)
    away = y - x.mean(0)
    return np.sqrt(np.einsum("nd,de,ne->n", away, np.linalg.inv(0.99 * c + 0.01 * np.trace(c) / D * np.eye(D)), away))


def mahalanobis():
    return top(gaussian(X.reshape(-1, D), Y.reshape(-1, D)).reshape(M, P), 0.01)


def placed():
    return top(np.stack([gaussian(X[:, p], Y[:, p]) for p in range(P)], 1), 0.01)


def composition():
    flat = X.reshape(-1, D)
    mean, spread = flat.mean(0), flat.std(0)
    x, y = (((a - mean) / spread).astype(np.float32).astype(np.float64) for a in (X, Y))
    rng, rows = np.random.default_rng(0), x.reshape(-1, D)
    rows = rows[np.sort(rng.permutation(len(rows)))]
    centres = rows[[rng.integers(len(rows))]]
    while len(centres) < 12:
        near = squared(rows, centres).min(1)
        centres = np.vstack([centres, rows[np.searchsorted(np.cumsum(near), rng.random() * near.sum(), side="right")]])
    for _ in range(30):
        own = squared(rows, centres).argmin(1)
        centres = np.stack([rows[own == c].mean(0) for c in range(12)])
    width = squared(rows[:1000], centres).min(1).mean()

    def counts(images):
        weights = np.exp(-squared(images.reshape(-1, D), centres) / width)
        fractions = (weights / weights.sum(1, keepdims=True)).reshape(-1, H, W, 12)
        tent = {}
        for cells in (H, W):
            place = np.clip((np.arange(cells) + 0.5) * 3 / cells - 0.5, 0, 2)
            tent[cells] = np.maximum(1 - np.abs(place[None] - np.arange(3)[:, None]), 0)
        return [
            fractions.sum((1, 2)),
            *(np.einsum("h,w,nhwk->nk", tent[H][i], tent[W][j], fractions) for i in range(3) for j in range(3)),
        ]

    def distance(normal, asked):
        c, away = np.cov(normal.T), asked - normal.mean(0)
        inverse = np.linalg.inv(0.8 * c + (0.2 * np.trace(c) / 12 + 1e-3) * np.eye(12))
        return np.sqrt(np.einsum("nd,de,ne->n", away, inverse, away))

    own, asked = [], []
    for normal, new in zip(counts(x), counts(y)):
        held_out = np.array([distance(np.delete(normal, i, 0), normal[i : i + 1])[0] for i in range(N)])
        own.append(held_out / held_out.mean())
        asked.append(distance(normal, new) / held_out.mean())
    own, asked = np.stack(own), np.stack(asked)
    return np.maximum(asked[0] / own[0].mean(), asked[1:].max(0) / own[1:].max(0).mean())


def fusion():
    found = [make_detector(name, "filters").fit(TRAIN) for name in ("knn", "placed", "spade", "composition")]
    return np.mean(
        [
            (d.score(TEST).astype(float) - d.held_out_.astype(float).mean()) / d.held_out_.astype(float).std()
            for d in found
        ],
        axis=0,
    )


# with all of the few images similar, plain retrieval is plain nearest neighbours
FORMULAS = {
    "knn": anomalydino,
    "knn-euclidean": euclidean,
    "subspace": subspacead,
    "positional": rad,
    "retrieval": euclidean,
}
FORMULAS |= {
    f.__name__: f
    for f in (
        mahalanobis,
        placed,
        patchcore,
        padim,
        anomalydino,
        subspacead,
        rad,
        musc,
        spade,
        whitened,
        gauss_knn,
        composition,
        fusion,
    )
} | {"whitened-euclidean": whitened_euclidean}


def test_every_recipe_has_a_formula():
    assert set(FORMULAS) | set(WORD_RECIPES) == set(RECIPES)  # those of words: test_words.py


@pytest.mark.parametrize("name", FORMULAS)
def test_recipe_is_its_formula(name):
    detector = make_detector(name, "filters")
    scores = detector.fit(TRAIN).score(TEST)
    np.testing.assert_allclose(scores, FORMULAS[name](), rtol=1e-5, atol=1e-5)
    assert name == "fusion" or (
        (detector.score_patches(TEST) >= 0).all() and (detector.score_patches(TRAIN) >= 0).all()
    )


def test_the_coreset_of_patchcore_is_the_plain_greedy_one():
    flat = TRAIN.patches.reshape(-1, D)
    picked = greedy_coreset(flat, 18)
    assert picked.tolist() == brute_coreset(flat.astype(float), 18, int(picked[0]))


BANKS = [
    FusedBank((KNNBank(), MahalanobisBank())),
    KNNBank(3),
    KNNBank(2, "euclidean"),
    KNNBank(1, "sqeuclidean"),
    MahalanobisBank(),
    MahalanobisBank(True, 0.1),
    SubspaceBank(0.9),
]
BANKS += [
    PositionalBank(),
    PositionalBank(0, 4, 2),
    RetrievalBank(3, 2),
    RetrievalBank(4, 1, "cosine"),
    MutualBank((1, 3), 0.3, 3),
]


@pytest.mark.parametrize("bank", BANKS, ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_no_distance_is_negative(bank, scale):
    bank.fit(X * scale, (H, W), CX)
    for patches, cls in ((X, CX), (Y, CY)):
        scores = bank.score(patches * scale, cls)
        assert np.isfinite(scores).all() and (scores >= 0).all()
    assert not bank.leaves_one_out or (bank.leave_one_image_out(X * scale) >= 0).all()


def test_half_the_squared_distance_of_unit_vectors_is_one_minus_cosine():
    a, b = unit(X), unit(Y)
    cosine, square = KNNBank(2).fit(a, (H, W)).score(b), KNNBank(2, "sqeuclidean").fit(a, (H, W)).score(b)
    expected = np.sort(1 - b.reshape(-1, D) @ a.reshape(-1, D).T, 1)[:, :2].mean(1).reshape(M, P)
    np.testing.assert_allclose(cosine, expected, atol=1e-6)
    np.testing.assert_allclose(square / 2, cosine, rtol=1e-6)
    retrieved = [RetrievalBank(4, 1, m).fit(a, (H, W), CX).score(b, CY) for m in ("cosine", "sqeuclidean", "euclidean")]
    np.testing.assert_allclose(retrieved[1] / 2, retrieved[0], rtol=1e-6)
    np.testing.assert_allclose(retrieved[2] ** 2 / 2, retrieved[0], rtol=1e-5)
