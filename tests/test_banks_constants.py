"""The rules of the banks that a wrong constant, count or seed would break unseen: each against a value by hand, an
independent computation or the same bank on the same images without their copies.
"""

import numpy as np
import pytest

from anomaly_nb.banks import FusedBank, KNNBank, PositionalBank, SubspaceBank, greedy_coreset, knn, mutual_scores
from anomaly_nb.banks.composition import CompositionBank, soft_windows, type_fractions
from anomaly_nb.banks.held_out import held_out_folds
from anomaly_nb.banks.mutual import nearest_in_each, rerank_scores
from anomaly_nb.banks.neighbours import unit_rows
from anomaly_nb.banks.same_images import equal_numbers, same_vectors
from anomaly_nb.banks.words import WordBank
from anomaly_nb.features.words import Words


def normal_numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Compositions


def composition_map(bank, patches, hw, grid):
    "The map of one image, window by window and type by type."
    fractions, windows = type_fractions(patches, bank.centres_, bank.width_), soft_windows(hw, grid)
    where, distances = np.zeros(len(patches)), []
    for mean, precision, unit, weight in zip(bank.mean_, bank.precision_, bank.units_, windows):
        away = weight @ fractions - mean
        parts = away * (precision @ away)
        distances.append(np.sqrt(parts.sum()) / unit)
        blame = np.clip(parts, 0, None)
        blame *= distances[-1] ** 4 / blame.sum()
        for k, blamed in enumerate(blame):  # too much of it, where it is; too little, where it usually is
            lack = np.clip(bank.usual_[:, k] - fractions[:, k], 0, None)
            there = weight * (fractions[:, k] if away[k] > 0 else lack)
            where += blamed * there / there.sum()
    score = max(distances[0] / bank.level_units_[0], max(distances[1:]) / bank.level_units_[1])
    return score * where / where.max()


def test_a_composition_blames_the_types_of_the_strangest_windows():
    bank = CompositionBank(n_types=3, grid=2).fit(normal_numbers(6, 16, 3), (4, 4))
    for image in normal_numbers(5, 16, 3, seed=1):
        (got,) = bank.score(image[None])
        np.testing.assert_allclose(got, composition_map(bank, image, (4, 4), 2), rtol=1e-4, atol=1e-6)
        assert got.min() >= 0


def test_what_is_lacking_is_marked_where_it_usually_lies():
    "Of counts that are all alike the held-out distances are all 0, and a score is finite all the same."
    rng = np.random.default_rng(0)
    both = np.repeat([[0.0], [10.0]], 8, axis=0)  # left of one type, right of the other
    bank = CompositionBank(n_types=2, grid=1).fit((both + rng.normal(0, 0.1, (6, 16, 2))).astype(np.float32), (1, 16))
    (score,) = bank.score(rng.normal(0, 0.1, (1, 16, 2)).astype(np.float32))  # all of it is of the left one
    assert np.isfinite(score).all() and score[8:].min() > 1.1 * score[:8].max() > 1


def test_types_of_patches_are_those_of_their_seed():
    x = normal_numbers(4, 16, 3)
    one, again, two = (CompositionBank(n_types=5, random_state=s).fit(x, (4, 4)).centres_ for s in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, two)


# Coresets and nearest neighbours


def test_a_coreset_leaves_the_features_as_they_are():
    x = normal_numbers(50, 4) + 3
    before = x.copy()
    greedy_coreset(x, 5)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("seed", range(3))
def test_a_coreset_begins_where_its_seed_says(seed):
    assert greedy_coreset(normal_numbers(50, 4), 1, seed)[0] == np.random.default_rng(seed).integers(50)


def test_held_out_coresets_are_of_the_banks_seed(monkeypatch):
    x, seeds = normal_numbers(12, 16, 4), []
    bank = KNNBank(coreset=24, random_state=7).fit(x, (4, 4))

    def note(name):
        call = getattr(knn, name)

        def noted(x, n, random_state=0, *values, **more):
            seeds.append((name, random_state))
            return call(x, n, random_state, *values, **more)

        monkeypatch.setattr(knn, name, noted)

    note("held_out_folds")
    note("greedy_coreset")
    bank.leave_one_image_out(x)
    assert set(seeds) == {("held_out_folds", 7), ("greedy_coreset", 7)}


def test_short_vectors_have_a_direction_too():
    np.testing.assert_allclose(unit_rows(np.array([[3e-4, 4e-4], [0, 0]])), [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_there_are_five_parts_of_images_and_ten_of_groups():
    assert held_out_folds(30).max() == 4 and held_out_folds(60, groups=np.arange(60) // 2).max() == 9
    assert not np.array_equal(held_out_folds(30, random_state=0), held_out_folds(30, random_state=1))


# Images of a batch among each other


@pytest.mark.parametrize(
    ("n", "fraction", "nearest"),
    [(4, 0.5, 1), (101, 0.29, 29)],  # half of three others is one; 0.29 * 100 is 28.999999999999996
)
def test_a_fraction_of_the_other_images_is_compared_with(n, fraction, nearest):
    x = normal_numbers(n, 1, 3)
    near = np.sort(nearest_in_each(unit_rows(x), 0), axis=1)
    got = mutual_scores(x, (1, 1), (1,), fraction)[0]
    np.testing.assert_allclose(got, near[:, :nearest].mean(axis=1), rtol=1e-5)


def test_an_image_whose_vector_is_zero_votes_for_itself():
    cls = np.array([[1.0, 0], [0, 1], [0, 0]])
    assert rerank_scores(np.array([1.0, 2, 3]), cls, (1,)).tolist() == [1, 2, 3]


# Copies


def test_numbers_are_equal_relative_to_the_largest():
    assert not equal_numbers(np.array([1e-6]), np.array([2e-6]))
    assert equal_numbers(np.array([1.0, 1e-6]), np.array([1.0, 2e-6]))


def test_a_copy_may_be_rounded_in_all_its_numbers():
    x, sides = np.ones(50, np.float32), np.sign(np.random.default_rng(0).normal(size=50))
    first, second = same_vectors(np.stack([x, x + 9e-6 * sides]), lambda i, j: True)
    assert first == second


def test_units_of_fused_banks_are_those_without_copies():
    x, cls = normal_numbers(4, 4, 3), normal_numbers(4, 5)
    twice = [0, 0, 1, 2, 3]
    units = [
        FusedBank((PositionalBank(similar=2), KNNBank())).fit(x[rows], (2, 2), cls[rows]).units_
        for rows in (twice, twice[1:])
    ]
    np.testing.assert_allclose(*units)


# Subspaces


def test_a_subspace_has_as_many_components_as_were_asked_for():
    assert SubspaceBank(components=2).fit(normal_numbers(4, 16, 5), (4, 4)).components_.shape == (5, 2)


# Words

WORDS = Words(np.eye(2, dtype=np.float32), np.array([False, True]), ("good", "broken"), 1.0)


def test_the_mean_of_what_words_say_of_all_windows_is_harmonic():
    "Whatever is as near to one word as to the other says 1/2, and so does the mean."
    bank = WordBank(sides=(2,), words=WORDS).fit(np.empty((0, 4, 4), np.float32), (2, 2))
    even = bank.text_maps(np.ones((1, 4, 4), np.float32), np.ones((1, 2), np.float32))
    np.testing.assert_allclose(even, 0.5)


def test_windows_at_the_lower_and_right_edge_are_references_too():
    x = np.ones((1, 9, 4), np.float32)
    x[0, 4] = 1, -1, 1, 1  # the window that begins in the middle, and ends in the corner, is another
    bank = WordBank(sides=(2,), words=WORDS).fit(x, (3, 3), np.ones((1, 2), np.float32))
    np.testing.assert_allclose(bank.association_maps(x), 0, atol=1e-6)
