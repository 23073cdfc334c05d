"""Banks and detectors at the edges: few images, one patch, constant features, other grids, ties, and one search by
every way.
"""

import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from anomaly_nb.banks import (
    CompositionBank,
    FusedBank,
    KNNBank,
    MahalanobisBank,
    MutualBank,
    PositionalBank,
    RetrievalBank,
    SubspaceBank,
    greedy_coreset,
    load_bank,
)
from anomaly_nb.banks.coreset import coreset_count
from anomaly_nb.banks.mutual import rerank_scores
from anomaly_nb.banks.neighbours import NearestRows, nearest
from anomaly_nb.banks.shortlist import Shortlist, robust_centre
from anomaly_nb.banks.shortlist_choice import in_int8
from anomaly_nb.banks.words import WordBank
from anomaly_nb.calibration import leave_one_group_out_distances
from anomaly_nb.calibration.leave_one_out import kth_neighbour_distances
from anomaly_nb.core.device import choose_device
from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.features import FeatureSet
from anomaly_nb.features.words import Words
from anomaly_nb.scoring import RECIPES, Detector, Preparation, conformal_threshold, held_out_scores, make_detector
from anomaly_nb.scoring.fusion import FusionBank
from anomaly_nb.scoring.recipes import WORD_RECIPES

BANKS = [
    KNNBank(),
    KNNBank(2, "euclidean", 0.5),
    KNNBank(metric="sqeuclidean"),
    MahalanobisBank(),
    MahalanobisBank(True, 0.1),
    SubspaceBank(0.9),
    PositionalBank(),
]
BANKS += [MutualBank((1,)), FusedBank((KNNBank(), MahalanobisBank(True, 0.1)))]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bank", BANKS, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_any_float_and_never_negative(bank, dtype, tmp_path):
    train, test = random(6, 9, 5).astype(dtype), random(2, 9, 5, seed=1).astype(dtype)
    scores = bank.fit(train, (3, 3)).score(test)
    assert scores.shape == (2, 9) and scores.dtype == np.float32 and np.isfinite(scores).all() and (scores >= 0).all()
    assert np.array_equal(load_bank(bank.save(tmp_path)).score(test), scores)


@pytest.mark.parametrize("bank", BANKS, ids=str)
def test_wrong_input_is_refused(bank):
    train = random(6, 9, 5)
    bank.fit(train, (3, 3))
    for bad in (random(2, 9), np.full((2, 9, 5), np.nan), np.empty((0, 9, 5))):
        with pytest.raises(DataError):
            bank.score(bad)
    with pytest.raises(DataError, match="does not make 9 patches"):
        bank.fit(train, (2, 4))


@pytest.mark.parametrize("bank", [b for b in BANKS if not isinstance(b, MutualBank)], ids=str)
def test_other_dimensions_are_refused(bank):
    with pytest.raises(DataError, match="4 dimensions, but the bank was fitted on 5"):
        bank.fit(random(6, 9, 5), (3, 3)).score(random(2, 9, 4))


@pytest.mark.parametrize(
    "bank", [KNNBank(), MahalanobisBank(True, 0.1), SubspaceBank(0.9), PositionalBank(), RetrievalBank(3)], ids=str
)
def test_images_of_one_patch(bank):
    train = random(8, 1, 5)
    given = {"cls": random(8, 3)} if isinstance(bank, RetrievalBank) else {}
    bank.fit(train, (1, 1), **given)
    assert bank.score(train[:2], **{k: v[:2] for k, v in given.items()}).shape == (2, 1)


def test_constant_features():
    same = np.full((4, 9, 5), 0.3)
    for bank in (KNNBank(), KNNBank(metric="euclidean", coreset=0.5), PositionalBank(), MutualBank((1, 3))):
        assert np.allclose(bank.fit(same, (3, 3)).score(same), 0, atol=1e-3)
    for bank in (MahalanobisBank(), MahalanobisBank(True), SubspaceBank()):
        with pytest.raises(DataError, match="constant"):
            bank.fit(same, (3, 3))
    assert np.allclose(
        KNNBank().fit(np.zeros((2, 9, 5)), (3, 3)).score(same), 0.5
    )  # zero has no direction: half the squared length of a unit vector
    with pytest.raises(DataError, match="all 4 images are the same, and none can be left out; add images that differ"):
        Detector(preparation=Preparation(True)).fit(same)  # a threshold over copies would promise what it cannot hold
    rng = np.random.default_rng(0).normal(size=(4, 1, 5)) + np.zeros((4, 9, 5))  # each image constant, all different
    assert np.isfinite(Detector(preparation=Preparation(True)).fit(rng).score(rng)).all()


def test_fewer_patches_than_neighbours():
    with pytest.raises(DataError, match="k=10, but the bank holds 9"):
        KNNBank(k=10).fit(random(1, 9, 5), (3, 3))
    with pytest.raises(DataError, match="k=9, but the bank holds 0"):
        KNNBank(k=9).fit(random(1, 9, 5), (3, 3)).leave_one_image_out(random(1, 9, 5))
    with pytest.raises(DataError, match="at least 2"):
        held_out_scores(KNNBank(), random(1, 9, 5), (3, 3))
    detector = Detector(bank=RetrievalBank(50))
    with pytest.raises(DataError, match="cls"):
        detector.fit(random(3, 9, 5))


@pytest.mark.parametrize("shape", [(40, 7, 3), (333, 64, 1), (1000, 100, 5), (8200, 66, 2)])
def test_all_ways_to_search_agree(shape):
    m, d, k = shape
    bank, queries = random(m, d) + 3, random(50, d, seed=1) + 3
    skip = np.sort(np.random.default_rng(2).integers(0, m // 2, (50, 2)), axis=1)
    for hide in (None, skip):
        away = ((queries[:, None].astype(float) - bank) ** 2).sum(2)
        if hide is not None:
            for row, (a, b) in zip(away, hide):
                row[a:b] = np.inf
        for method in ("axes", "bfloat16", "int8", "full"):
            distance, rows = nearest(queries, bank, k, hide, method=method, block=17)
            assert np.allclose(distance, np.sort(away, 1)[:, :k], rtol=1e-5)
            assert np.allclose(np.take_along_axis(away, rows, 1), np.sort(away, 1)[:, :k], rtol=1e-6)


def crowded_bank(d):
    "Rows that differ by less than the error of products, and some of them twice."
    x = random(400, d) + 40
    x[:150] = x[0] + 1e-4 * random(150, d, seed=1)
    x[150:200] = x[:50]
    return x


@pytest.mark.parametrize("d", [64, 200])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("hidden", [False, True])
def test_all_ways_to_search_give_the_same_bits(d, k, hidden):
    bank = crowded_bank(d)
    queries = np.concatenate([bank[::7] + 1e-5 * random(58, d, seed=2), random(20, d, seed=3) + 40])
    skip = np.tile([3, 30], (len(queries), 1)) if hidden else None
    expected = nearest(queries, bank, k, skip, method="full")[0]
    exact = np.stack([np.einsum("md,md->m", q - bank, q - bank) for q in queries])
    if hidden:
        exact[:, 3:30] = np.inf
    assert np.array_equal(np.sort(exact, axis=1)[:, :k], expected)
    for method in ("axes", "bfloat16", "int8"):
        assert np.array_equal(nearest(queries, bank, k, skip, method=method)[0], expected)


def flat_patches(n, seed=0):
    "Of 80 dimensions, which fill six."
    plane = random(6, 80) @ np.diag(np.linspace(1, 3, 80))
    return np.ascontiguousarray(random(n, 6, seed=seed) @ plane + 0.1 * random(n, 80, seed=seed + 1), np.float32)


def test_a_bank_that_is_asked_again_gives_what_it_gave(monkeypatch):
    monkeypatch.setattr("anomaly_nb.banks.neighbours.SHORTLIST_FROM", 1e9)
    bank, queries = flat_patches(30_000), flat_patches(3000, seed=7)
    rows, whole = NearestRows(bank), nearest(queries, bank, 2, method="full")
    parts, ready = [], []
    for part in np.split(queries, 30):
        parts.append(rows.search(part, 2))
        ready.append(rows._short is not None)
    assert ready == [False] * 4 + [True] * 26 and rows._work == 3000 * 30_000 * 80
    for i in (0, 1):
        assert np.array_equal(np.concatenate([part[i] for part in parts]), whole[i])
    for copy in (pickle.loads(pickle.dumps(rows)), deepcopy(rows)):
        assert copy._work == 0 and np.array_equal(copy.search(queries[:9], 2)[0], whole[0][:9])


def test_threads_that_ask_one_bank_make_it_ready_once(monkeypatch):
    made, whole = [], Shortlist.__init__
    monkeypatch.setattr(Shortlist, "__init__", lambda self, *a: (made.append(1), whole(self, *a))[1])
    monkeypatch.setattr("anomaly_nb.banks.neighbours.SHORTLIST_FROM", 1e9)
    bank, queries = flat_patches(40_000), flat_patches(6400, seed=7)
    rows, expected = NearestRows(bank), nearest(queries, bank, method="full")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(rows.search, np.split(queries, 8)))
    assert len(made) == 1 and np.array_equal(np.concatenate([f[0] for f in found]), expected[0])


def test_other_queries_make_another_choice(monkeypatch):
    monkeypatch.setattr("anomaly_nb.banks.neighbours.SHORTLIST_FROM", 1e9)
    monkeypatch.setattr("anomaly_nb.banks.shortlist_choice.fast_bf16", lambda device: False)
    monkeypatch.setattr("anomaly_nb.banks.shortlist_choice.int8_largest", lambda device: 0)
    spread = np.exp(-np.arange(80) / 20)
    bank = (random(40_000, 80) * spread).astype(np.float32)
    near, far, foreign = bank[:2000] + 1e-3, (random(2000, 80, seed=4) * spread).astype(np.float32), random(2000, 80, seed=5) * 9
    rows, made = NearestRows(bank), []

    def width(queries, skip=None, times=1):
        for _ in range(times):
            distance, _ = rows.search(queries, 1, skip)
            assert np.array_equal(distance, nearest(queries, bank, 1, skip, method="full")[0])
        made.append(rows._short)
        return rows._short.encoding.width

    hidden = np.tile([39_000, 39_900], (2000, 1))
    nearer = width(near, hidden)  # what is hidden in a fit, and what comes in a prediction
    assert width(near, hidden, times=4) == nearer and made[0] is made[1]  # the same choice makes nothing anew
    assert width(far) == nearer < (farther := width(far)) and width(foreign) == farther < width(foreign)
    assert width(far, times=2) == farther


def test_a_full_search_is_not_for_ever(monkeypatch):
    chosen = []
    monkeypatch.setattr("anomaly_nb.banks.neighbours.SHORTLIST_FROM", 1e9)
    monkeypatch.setattr("anomaly_nb.banks.neighbours.choose_shortlist", lambda *a: chosen.append(1))
    rows, queries = NearestRows(flat_patches(20_000)), flat_patches(1000, seed=7)  # 1.6e9 at a time
    for _ in range(24):
        rows.search(queries)
    assert len(chosen) == 3 and rows._short is None


def test_a_bank_that_is_fitted_again_forgets_the_rows_before():
    bank = KNNBank().fit(random(2, 9, 70), (3, 3))
    first = bank.score(random(1, 9, 70, seed=5))
    bank.fit(random(2, 9, 70, seed=1), (3, 3))
    assert not np.array_equal(bank.score(random(1, 9, 70, seed=5)), first)
    assert (bank.score(random(2, 9, 70, seed=1)) < 1e-6).all()


def test_the_setting_of_faiss_is_put_back():
    before = faiss.cvar.distance_compute_blas_threshold
    seen = []

    def search(seed):
        nearest(random(50, 16, seed=seed), random(2000, 16), method="full")
        seen.append(faiss.cvar.distance_compute_blas_threshold)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(search, range(20)))
    assert faiss.cvar.distance_compute_blas_threshold == before and set(seen) <= {0, before}
    with pytest.raises(DataError, match="method='faiss'; use one of auto, axes, bfloat16, int8, full"):
        nearest(random(3, 4), random(5, 4), method="faiss")


@pytest.mark.parametrize("method", ["bfloat16", "int8", "axes"])
def test_vectors_too_short_for_squares_are_searched_in_full(method):
    x = (random(300, 80) * 1e-20).astype(np.float32)
    assert np.array_equal(nearest(x[:40], x, 2, method=method)[0], nearest(x[:40], x, 2, method="full")[0])


@pytest.mark.parametrize("method", ["bfloat16", "int8"])
def test_shortlist_with_ties_offsets_and_scales(method):
    base = np.repeat(random(64, 80), 5, axis=0)
    for scale, offset in ((1, 0), (1e-4, 0), (1e4, 0), (1, 1e3)):
        x = (base * scale + offset).astype(np.float32)
        distance, rows = nearest(x, x, 5, method=method)
        assert (distance == 0).all() and (rows == np.arange(320)[:, None] // 5 * 5 + np.arange(5)).all()


@pytest.mark.parametrize("largest", [127, 79])
@pytest.mark.parametrize("odd", ["none", "a long row", "a long query", "both", "one number", "short queries", "zeros"])
@pytest.mark.parametrize("d", [3, 64, 300])
def test_whole_numbers_never_lose_a_neighbour(odd, largest, d):
    "Each of the five nearest rows is on the list of every query that is not handed to a full search."
    rng = np.random.default_rng(d)
    bank, queries = rng.normal(size=(700, d)).astype(np.float32), rng.normal(size=(60, d)).astype(np.float32)
    bank[:, 0] *= 5
    if odd in ("a long row", "both"):
        bank[5] *= 1e5
    bank[300:330] *= np.linspace(1, 12, 30, dtype=np.float32)[:, None]  # some of them cut off, some of them far
    queries[3] *= 300 if odd in ("a long query", "both") else 1
    queries *= 1e-2 if odd == "short queries" else 1
    if odd == "one number":
        bank[:, 1] *= 1e3
    if odd == "zeros":
        bank[100:400], queries[:9] = 0, 0
    squared = ((queries[:, None].astype(float) - bank.astype(float)) ** 2).sum(-1)
    hide = np.stack([np.arange(60) * 10, np.arange(60) * 10 + 25], axis=1)
    denied = squared.copy()
    for line, (first, end) in zip(denied, hide):
        line[first:end] = np.inf
    centre = robust_centre(bank).astype(np.float32)
    for skip, truth in ((None, squared), (hide, denied)):
        short = Shortlist(bank, torch.device("cpu"), in_int8(bank, centre, largest))
        query, row, crowded = short.candidates(torch.from_numpy(queries), 5, skip, np.inf)
        listed = np.zeros(squared.shape, bool)
        listed[query.numpy(), row.numpy()] = True
        limit = np.sort(truth, axis=1)[:, 4:5] * (1 - 1e-5)
        assert listed[~crowded.numpy()][(truth < limit)[~crowded.numpy()]].all()
    assert crowded.sum() < 10 and not short.overflow


CLOUDS = {
    "flat": random(500, 3),
    "deep": random(500, 60),
    "copies": np.repeat(random(50, 4), 10, 0),
    "grid": np.round(random(500, 2)),
    "zero": np.zeros((20, 3)),
}


@pytest.mark.parametrize("x", CLOUDS.values(), ids=CLOUDS)
def test_coreset_covers_as_the_plain_rule(x):
    n = len(x) // 3
    picked = greedy_coreset(x, n, random_state=3, width=32)
    assert len(set(picked.tolist())) == n
    near, cover = np.full(len(x), np.inf), []
    for p in picked:
        assert near[p] >= near.max() - 1e-4  # each pick is a farthest point
        near = np.minimum(near, ((x.astype(float) - x[p]) ** 2).sum(1))
        cover.append(near.max())
    assert cover == sorted(cover, reverse=True)


def test_conformal_needs_enough_scores():
    for n in range(1, 200):
        try:
            t = conformal_threshold(np.arange(float(n)), 0.05, 0.9)
        except DataError as e:
            assert n < 45 and "it takes 45" in str(e)
        else:
            assert n >= 45 and t.parameters["bound95"] < 0.12 and not t.predict(np.arange(t.parameters["rank"])).any()


def test_detector_of_one_image_scores_but_does_not_decide(tmp_path):
    from anomaly_nb.data import read_index
    from anomaly_nb.data.samples import write_samples
    from anomaly_nb.scoring import few_shot

    write_samples(tmp_path / "data", n_train=3, n_good=1, n_defect=1, size=64)
    index = few_shot(read_index("mvtec", tmp_path / "data", "nut"), 1, random_state=2)
    detector = make_detector("anomalydino", "filters", image_size=64, shots=1).fit(index)
    assert detector.threshold_ is None and len(detector.bank_.bank_) == 8 * 64
    test = index[index.split == "test"]
    again = Detector.load(detector.save(tmp_path / "saved"))
    assert np.array_equal(again.score(test), detector.score(test)) and again.explain(test).equals(
        detector.explain(test)
    )
    with pytest.raises(DataError, match="no threshold"):
        again.predict(test)
    with pytest.raises(DataError, match="expected a FeatureSet"):
        Detector(image_size=64).fit("somewhere")


GRIDS = [PositionalBank(), MahalanobisBank(True, 0.1), MutualBank((1,))]


@pytest.mark.parametrize("bank", GRIDS, ids=str)
def test_another_grid_is_refused_where_places_count(bank):
    bank.fit(random(6, 9, 5), (3, 3))
    with pytest.raises(DataError, match="grid 3 x 3 does not make 16 patches"):
        bank.score(random(2, 16, 5))


def test_another_grid_is_refused_by_a_detector():
    detector = Detector(bank=KNNBank()).fit(random(6, 9, 5))
    for other in (random(2, 16, 5), FeatureSet(random(2, 9, 5), (1, 9), pd.DataFrame(index=range(2)))):
        with pytest.raises(DataError, match="but the detector was fitted on 3 x 3; use the same input size"):
            detector.score(other)
    with pytest.raises(DataError, match="make no square grid"):
        detector.score(random(2, 8, 5))
    with pytest.raises(DataError, match="4 dimensions, but the detector was fitted on 5"):
        detector.score(random(2, 9, 4))


@pytest.mark.parametrize("name", ["retrieval", "positional"])
def test_similar_images_need_vectors(name):
    train, vectors = random(6, 9, 5), random(6, 3)
    bank = {"retrieval": RetrievalBank(4), "positional": PositionalBank(similar=4)}[name]
    for missing in (None, vectors[:5], vectors[:, 0]):
        with pytest.raises(DataError, match="one vector for each image"):
            bank.fit(train, (3, 3), cls=missing)
    bank.fit(train, (3, 3), cls=vectors)
    for missing in (None, vectors, random(2, 4)):
        with pytest.raises(DataError, match="one vector for each image"):
            bank.score(train[:2], missing)
    assert bank.score(train[:2], vectors[:2]).max() < 1e-6


def test_detector_is_an_estimator():
    normal, test = random(20, 9, 5), random(6, 9, 5, seed=1)
    test[3:, 4] += 9
    detector = Detector(bank=KNNBank(2, "euclidean"), preparation=Preparation(True), aggregation="max")
    detector.fit(normal)
    fresh = clone(detector)
    assert not hasattr(fresh, "bank_") and fresh.get_params()["bank__k"] == 2
    with pytest.raises(NotFittedError):
        fresh.predict(test)
    assert np.array_equal(fresh.fit(normal).score(test), detector.score(test))
    assert fresh.set_params(bank__k=1).fit(normal).bank_.k == 1 and detector.bank_.k == 2

    piped = Pipeline(
        [("prepare", Preparation(True)), ("detect", Detector(bank=KNNBank(2, "euclidean"), aggregation="max"))]
    ).fit(normal)
    np.testing.assert_allclose(piped.score(test), detector.score(test), rtol=1e-5)
    assert piped.predict(test).tolist() == detector.predict(test).tolist() and piped.predict(test)[3:].all()
    assert clone(piped).set_params(detect__bank__metric="cosine").get_params()["detect__bank"].metric == "cosine"


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in WORD_RECIPES])
def test_detectors_come_back_from_disk(name, tmp_path):
    train, test = (
        FeatureSet(random(n, 9, 8, seed=n), (3, 3), pd.DataFrame({"image_path": ["p"] * n}), random(n, 4, seed=n))
        for n in (12, 5)
    )
    detector = make_detector(name, "filters")
    detector.fit(train)
    again = Detector.load(detector.save(tmp_path / "saved"))
    assert np.array_equal(again.score(test), detector.score(test)) and again.threshold_ == detector.threshold_
    assert again.get_params().keys() == detector.get_params().keys() and str(clone(again)) == str(clone(detector))
    assert again.explain(test).equals(detector.explain(test))
    assert not list(tmp_path.rglob("*.pkl")) and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("wrong", [1.5, 0.0, -0.1, 0, -1, True, "all"])
def test_a_coreset_is_a_fraction_or_a_count(wrong):
    with pytest.raises(
        DataError, match=r"a fraction as a float in \(0, 1\], a count as an int from 1, or None for all"
    ):
        coreset_count(wrong, 10)
    with pytest.warns(Notice, match=r"coreset=1 keeps one patch; write 1\.0 for all patches"):
        assert [coreset_count(c, 10) for c in (1.0, 1, 0.25, 3, 99, None)] == [10, 1, 2, 3, 10, 10]


def test_a_mutual_bank_saved_with_an_earlier_name_opens(tmp_path):
    x = np.random.default_rng(0).random((4, 9, 6)).astype(np.float32)
    bank = MutualBank((1,), 0.5).fit(x, (3, 3))
    path = bank.save(tmp_path / "bank") / "bank.json"
    path.write_text(path.read_text().replace('"fraction"', '"share"'))
    again = load_bank(tmp_path / "bank")
    assert again.fraction == 0.5 and np.array_equal(again.score(x), bank.score(x))


@pytest.mark.parametrize("bank", BANKS, ids=lambda b: type(b).__name__)
def test_a_tensor_with_gradients_is_taken_as_its_values_are(bank):
    torch = pytest.importorskip("torch")
    patches = np.random.default_rng(0).normal(size=(8, 9, 6)).astype(np.float32)
    tensor = torch.from_numpy(patches).requires_grad_()
    expected = clone(bank).fit(patches, (3, 3)).score(patches)
    for values in (tensor, tensor.double(), patches.tolist()):
        np.testing.assert_allclose(clone(bank).fit(values, (3, 3)).score(values), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="patches: expected"):
        clone(bank).fit(tensor[0], (3, 3))


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_k_that_is_no_number_of_neighbours_is_said_so(k):
    patches = np.random.default_rng(0).normal(size=(8, 9, 6))
    says = f"k={k}: give a whole number of neighbours, 1 or more"
    with pytest.raises(DataError, match=says):
        KNNBank(k).fit(patches, (3, 3))
    with pytest.raises(DataError, match=says):
        nearest(patches[0], patches[1], k)
    with pytest.raises(DataError, match="k=73, but the bank holds 72 patches; add normal images or lower k"):
        KNNBank(73).fit(patches, (3, 3))


@pytest.mark.parametrize("bank", BANKS, ids=str)
@pytest.mark.parametrize("wide", [np.float32(1e30), 1e200, -1e30])
def test_values_that_float32_cannot_square_are_refused(bank, wide):
    patches = random(6, 9, 5).astype(type(wide) if isinstance(wide, np.float32) else np.float64)
    far = patches.copy()
    far[2, 3, 1] = wide
    words = r"patches: values up to 1e\+\d+, but float32 squares no distance of 5 dimensions above 4.12e\+18; divide"
    with pytest.raises(DataError, match=words):
        clone(bank).fit(far, (3, 3))
    with pytest.raises(DataError, match=words):
        clone(bank).fit(patches, (3, 3)).score(far)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "sqeuclidean"])
def test_the_largest_values_that_are_taken_have_finite_scores(metric):
    patches = np.sign(random(6, 9, 5)) * np.float32(4.1e18)
    scores = KNNBank(metric=metric).fit(patches, (3, 3)).score(-patches[:1])
    assert np.isfinite(scores).all()


def test_a_patch_of_zeros_has_no_direction():
    patches = random(4, 9, 5)
    black = patches[:1].copy()
    black[0, 4] = 0
    assert np.isclose(KNNBank().fit(patches, (3, 3)).score(black)[0, 4], 0.5, atol=1e-6)
    patches[1, 0] = 0
    assert KNNBank().fit(patches, (3, 3)).score(black)[0, 4] == 0
    with pytest.raises(DataError, match="features: row 9 is all zeros and has no direction"):
        leave_one_group_out_distances(patches.reshape(36, 5), np.arange(36) // 9, metric="cosine")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: greedy_coreset(x, 5.0), r"n=5.0 of features \(60, 5\); .*whole number"),
        (lambda x: greedy_coreset(x, True), "n=True of features"),
        (lambda x: greedy_coreset(x[0], 1), r"n=1 of features \(5,\)"),
        (lambda x: greedy_coreset(x, 5, random_state=-1), "random_state=-1"),
        (lambda x: greedy_coreset(x, 5, width=0), "width=0; give a whole number"),
        (lambda x: greedy_coreset(x * np.float32(1e30), 5), "features: values up to"),
        (lambda x: leave_one_group_out_distances(x, np.arange(60) // 9, device="foo"), "device 'foo' is unknown; use"),
        (lambda x: leave_one_group_out_distances(x, np.arange(60) // 9, k=1.5), "k is 1.5; it must be at least 1"),
        (lambda x: leave_one_group_out_distances(x.astype(str), np.arange(60) // 9), "features: holds .*real numbers"),
        (lambda x: kth_neighbour_distances(x, x, 1.5), "k=1.5 neighbours are asked for"),
        (lambda x: choose_device("meta"), "device 'meta' is unknown"),
        (lambda x: choose_device("cuda:x"), "device 'cuda:x' is unknown; number one"),
    ],
)
def test_foreign_errors_are_in_one_sentence_of_the_house(call, words):
    with pytest.raises(DataError, match=words) as e:
        call(random(60, 5))
    assert "\n" not in str(e.value)


NAN, INFINITE = float("nan"), float("inf")
BAD = [
    (MahalanobisBank, "shrinkage", (2.0, -1, NAN, INFINITE, "a", None, (1, 2))),
    (MahalanobisBank, "ridge", (-1, NAN, INFINITE, "a", None)),
    (MahalanobisBank, "per_position", ("a", None, 0.5, NAN)),
    (SubspaceBank, "components", (2.0, 0.5, "a", (1, 2), -1, 0)),
    (SubspaceBank, "variance", (NAN, INFINITE, -1, 2.0, "a", None)),
    (PositionalBank, "radius", (NAN, INFINITE, -1, 0.5, 2.0, "a", None)),
    (PositionalBank, "parts", (NAN, 0, 2.0, "a", None)),
    (PositionalBank, "similar", (NAN, INFINITE, 0, 2.0, "a", (1, 2))),
    (RetrievalBank, "similar", (NAN, INFINITE, 0, 2.0, "a")),
    (MutualBank, "radii", ((), 3, NAN, "a", None, (1.5,), ("a",), (2,))),
    (MutualBank, "fraction", (NAN, 0, -1, 2.0, "a", None)),
    (MutualBank, "parts", (NAN, 0, 2.0, "a", None)),
    (CompositionBank, "n_types", (NAN, INFINITE, 1, 2.0, "a", None)),
    (CompositionBank, "grid", (NAN, INFINITE, 0, 2.0, "a", None, 10**6)),
    (CompositionBank, "softness", (NAN, INFINITE, 0, "a", None)),
    (CompositionBank, "shrinkage", (NAN, 0, 2.0, "a", None)),
    (CompositionBank, "random_state", (NAN, -1, 0.5, "a", None)),
    (Preparation, "standardise", (NAN, "a", 0.5, None)),
    (Preparation, "whiten", (NAN, INFINITE, -1, 2.0, "a")),
    (Preparation, "channels", (NAN, INFINITE, -1, 2.0, "a", None)),
    (Preparation, "average", (NAN, INFINITE, 0, 2.0, "a", None)),
    (Preparation, "random_state", (NAN, -1, 0.5, "a", None)),
]


@pytest.mark.parametrize(("made", "name", "values"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_a_parameter_out_of_its_range_is_named(made, name, values):
    x = np.random.default_rng(0).normal(size=(8, 9, 4)).astype(np.float32)
    for value in values:
        other = {"n_types": 3} if made is CompositionBank and name != "n_types" else {}
        part = made(**{name: value} | other)
        with pytest.raises(DataError, match=name if made is not MutualBank or name != "radii" else "radii|odd side"):
            if made is Preparation:
                part.fit(x)
            else:
                part.fit(x, (3, 3), x.mean(1)).score(x, x.mean(1))


def test_weights_of_a_fusion_are_finite():
    x = np.random.default_rng(0).normal(size=(8, 9, 4)).astype(np.float32)
    parts = ((Preparation(), KNNBank(), "max"), (Preparation(), MahalanobisBank(), "max"))
    for weights in ((NAN, 1.0), ("a", 1.0), 1.0, (0.5, 0.6)):
        with pytest.raises(DataError, match="weights"):
            FusionBank(("a", "b"), parts, weights).fit(x, (3, 3))


def with_zeros(*shape, seed=0):
    "Images whose first patch is of zeros, as of a black border, and one with another such patch."
    x = random(*shape, seed=seed).astype(np.float32)
    x[:, 0] = x[0, 3] = 0
    return x


def test_patches_of_zeros_mean_the_same_to_all_banks_of_cosines():
    normal, test = with_zeros(6, 9, 4), with_zeros(4, 9, 4, seed=1)
    by_search, by_place = (bank.fit(normal, (3, 3)).score(test) for bank in (KNNBank(), PositionalBank(radius=2)))
    assert np.allclose(by_search, by_place, atol=1e-6) and not by_place[:, 0].any() and by_place.max() <= 0.5
    clean = normal[:, 1:5]
    clean[0, 2] = 1
    far = PositionalBank(radius=1).fit(clean, (2, 2)).score(np.zeros((1, 4, 4)))
    assert np.allclose(far, 0.5) and np.allclose(KNNBank().fit(clean, (2, 2)).score(np.zeros((1, 4, 4))), 0.5)
    unit = test / np.maximum(np.linalg.norm(test, axis=2, keepdims=True), 1e-30)
    distance = np.sqrt(((unit[:, :, None, None] - unit[None, None]) ** 2).sum(axis=4)).min(axis=3)
    expected = [np.delete(distance[i], i, axis=1).mean(axis=1) for i in range(4)]
    assert np.allclose(MutualBank((1,), 1.0).fit(test, (3, 3)).score(test), expected, atol=1e-6)


def test_zeros_that_cap_all_scores_are_said():
    x = with_zeros(12, 9, 4)
    with pytest.warns(Notice, match="13 patches of 108 in the bank are all zero.*no patch scores above 0.5"):
        detector = Detector("knn").fit(x)
    assert sum("all zero" in note for note in detector.notes_) == 1
    for quiet, some in (("knn-euclidean", x), ("mahalanobis", x), ("knn", random(12, 9, 4))):
        assert not any("all zero" in note for note in Detector(quiet).fit(some).notes_)


@pytest.mark.parametrize("bank", [PositionalBank(), RetrievalBank(3), PositionalBank(similar=2)], ids=repr)
def test_images_that_change_places_are_refused_when_each_is_left_out(bank):
    "An image that stands in another's place would meet its own copy."
    rng = np.random.default_rng(0)
    x, cls = rng.normal(size=(6, 4, 8)).astype(np.float32), rng.normal(size=(6, 5))
    bank = clone(bank).fit(x, (2, 2), cls)
    bank.leave_one_image_out(x)
    for order in ([0, 2, 1, 3, 4, 5], [0, 1, 2, 3, 5, 4]):
        with pytest.raises(DataError, match="pass all of its training images, in their order"):
            bank.leave_one_image_out(x[order])


def test_words_are_left_out_by_their_own_images():
    rng = np.random.default_rng(0)
    unit = lambda v: (v / np.linalg.norm(v, axis=-1, keepdims=True)).astype(np.float32)
    parts = unit(rng.normal(size=(2, 8)))
    words = Words(parts, np.array([False, True]), ("a", "b"), 10.0)
    x, cls = rng.normal(size=(4, 6, 8)).astype(np.float32), unit(rng.normal(size=(4, 8)))
    bank = WordBank((), words).fit(x, (2, 3), cls)
    bank.leave_one_image_out(x)
    with pytest.raises(DataError, match="in their order"):
        bank.leave_one_image_out(x[[0, 2, 1, 3]])
    with pytest.raises(DataError, match="in their order"):
        bank.image_score(cls, True, x + 1)


@pytest.mark.parametrize("folds", [-3, 0, 1, True, 2.5, "2"])
def test_folds_are_two_at_least(folds):
    with pytest.raises(DataError, match=r"folds=.*; give a whole number of at least 2"):
        held_out_scores(KNNBank(), np.random.default_rng(0).normal(size=(6, 4, 3)), (2, 2), folds=folds)


def test_a_bank_that_compares_all_images_says_so_where_vectors_are_asked_for():
    x, cls = np.random.default_rng(0).normal(size=(4, 4, 3)), np.eye(4)
    bank = RetrievalBank(None).fit(x, (2, 2))
    assert bank.score(x).shape == (4, 4)
    with pytest.raises(DataError, match="similar=None: this bank compares patches with all images, by no vector"):
        bank.image_score(cls)
    with pytest.raises(DataError, match="k=0: give a whole number of neighbours"):
        RetrievalBank(2, 0).fit(x, (2, 2), cls)


@pytest.mark.parametrize(
    "wrong", [[], "KNNBank", 3, {}, {"sha256": None}, {"params": []}, {"state": None}, {"lists": 3}]
)
def test_a_description_that_is_none_of_a_saved_bank_is_refused(tmp_path, wrong):
    folder = KNNBank().fit(np.random.default_rng(0).normal(size=(2, 4, 3)), (2, 2)).save(tmp_path / "bank")
    whole = json.loads((folder / "bank.json").read_text())
    changed = wrong if not isinstance(wrong, dict) else {k: v for k, v in (whole | wrong).items() if v is not None}
    (folder / "bank.json").write_text(json.dumps(changed if wrong != {} else whole | {"params": {"neighbours": 3}}))
    with pytest.raises(DataError, match=r"bank.json: .*; save the bank again"):
        load_bank(folder)


def test_one_kept_patch_of_an_image_is_no_coreset_of_one():
    x = np.random.default_rng(0).normal(size=(30, 64, 4)).astype(np.float32)
    x[0], x[1:, 0] = 10 + np.arange(64)[:, None] * 1e-4, 9.99  # one patch stands for this image, and some of others
    bank = KNNBank(metric="euclidean", coreset=0.3).fit(x, (8, 8))
    assert (bank.rows_ < 64).sum() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank.leave_one_image_out(x)


def test_a_rerank_needs_a_number_of_images():
    with pytest.raises(DataError, match="ks, one at least, lie between 1 and their number"):
        rerank_scores(np.ones(3), np.eye(3), ())
