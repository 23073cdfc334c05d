"""Component metrics against the counting rules of the SMIYC benchmark, written out pixel set by pixel set."""

import numpy as np
import pytest
from scipy.ndimage import label

from anomaly_nb.metrics import COMPONENT_TRACKS, component_scores, join_components
from anomaly_nb.metrics.overlap import TAUS


def by_the_rules(labels, detected, min_pixels, min_true):
    "sIoU of true components, PPV of detections; sets of pixel numbers, no arithmetic shared with the library."
    rest = set(np.flatnonzero(labels == 255))

    def regions(mask):
        found, n = label(mask, np.ones((3, 3)))
        return [set(np.flatnonzero(found == i)) for i in range(1, n + 1)], set(np.flatnonzero(found == 0))

    true, background = regions(labels == 1)
    seen, _ = regions(detected & (labels != 255))
    seen = [s for s in seen if len(s) >= min_pixels]
    for small in [t for t in true if len(t) < min_true] + ([background] if len(background) < min_true else []):
        rest |= small
    true = [t - rest for t in true if t - rest]
    seen = [s - rest for s in seen if s - rest]
    siou = []
    for t in true:
        touching = set().union(*[s for s in seen if s & t])
        others = set().union(*[o for o in true if o is not t])
        siou.append(len(touching & t) / len((touching | t) - (others & touching)))
    anything = set().union(*true)
    return siou, [len(s & anything) / len(s) for s in seen]


def f1_by_the_rules(siou, ppv, tau):
    tp, fn, fp = sum(s >= tau for s in siou), sum(s < tau for s in siou), sum(p < tau for p in ppv)
    return 2 * tp / (2 * tp + fn + fp) if tp + fn + fp else 1.0


def compare(labels, detected, min_pixels, min_true):
    ours = component_scores(labels == 1, detected, labels == 255, min_pixels, min_true)
    siou, ppv = by_the_rules(labels, detected, min_pixels, min_true)
    assert len(siou) == ours.siou.size and len(ppv) == ours.ppv.size
    assert np.abs(ours.siou - siou).max(initial=0) < 1e-12 and np.abs(ours.ppv - ppv).max(initial=0) < 1e-12
    for tau in TAUS:
        assert abs(ours.f1(tau) - f1_by_the_rules(siou, ppv, tau)) < 1e-12
    return ours


@pytest.mark.parametrize("track", list(COMPONENT_TRACKS))
def test_random_scenes(track):
    least = COMPONENT_TRACKS[track]
    counted = 0
    for seed in range(50):
        rng = np.random.default_rng([seed, len(track)])
        height, width = rng.integers(20, 70, 2)
        big = np.kron(rng.random((8, 8)) < 0.25, np.ones((10, 10), bool))[:height, :width]
        fits = np.zeros((height, width), bool)
        fits[: big.shape[0], : big.shape[1]] = big
        labels = np.where(fits | (rng.random((height, width)) < 0.02), 1, 0).astype(np.uint8)
        labels[rng.random((height, width)) < 0.05] = 255
        detected = np.roll(fits, rng.integers(-6, 7, 2), (0, 1)) & (rng.random((height, width)) < 0.95) | (
            rng.random((height, width)) < 0.03
        )
        counted += compare(labels, detected, least.min_pixels, least.min_true).siou.size
    assert counted > 20


def box(shape, *boxes):
    mask = np.zeros(shape, bool)
    for top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = True
    return mask


LARGE = (60, 60)
CASES = {
    "nothing at all": (box(LARGE), box(LARGE)),
    "found exactly": (box(LARGE, (5, 5, 30, 30)), box(LARGE, (5, 5, 30, 30))),
    "missed": (box(LARGE, (5, 5, 30, 30)), box(LARGE)),
    "a false alarm": (box(LARGE), box(LARGE, (5, 5, 30, 30))),
    "sIoU exactly one half": (box(LARGE, (0, 0, 20, 20)), box(LARGE, (0, 0, 20, 40))),
    "sIoU exactly one quarter": (box(LARGE, (0, 0, 20, 20)), box(LARGE, (0, 0, 40, 40))),
    "half of it found": (box(LARGE, (0, 0, 30, 40)), box(LARGE, (0, 0, 30, 20))),
    "PPV exactly three quarters": (box(LARGE, (0, 0, 30, 30)), box(LARGE, (0, 0, 30, 40))),
    "one detection over two things": (box(LARGE, (0, 0, 20, 20), (0, 30, 20, 20)), box(LARGE, (0, 0, 20, 50))),
    "two detections on one thing": (box(LARGE, (0, 0, 30, 60)), box(LARGE, (0, 0, 30, 20), (0, 40, 30, 20))),
    "a small thing is void": (box(LARGE, (0, 0, 9, 11), (20, 20, 30, 30)), box(LARGE, (20, 20, 30, 30))),
    "a detection on a small thing": (box(LARGE, (0, 0, 9, 11)), box(LARGE, (0, 0, 30, 30))),
    "a detection of a small thing alone": (box(LARGE, (0, 0, 9, 11), (20, 20, 30, 30)), box(LARGE, (0, 0, 9, 11))),
    "a thing of exactly 100 px": (box(LARGE, (0, 0, 10, 10)), box(LARGE, (0, 0, 25, 20))),
    "a detection of 499 px": (box(LARGE, (0, 0, 30, 30)), box(LARGE, (0, 0, 20, 24), (20, 0, 1, 19))),
    "a detection of 500 px": (box(LARGE, (0, 0, 30, 30)), box(LARGE, (0, 0, 20, 25))),
    "a hole in the thing": (box(LARGE, (0, 0, 40, 40)) & ~box(LARGE, (10, 10, 20, 20)), box(LARGE, (0, 0, 40, 40))),
    "a hole in the detection": (box(LARGE, (0, 0, 40, 40)), box(LARGE, (0, 0, 40, 40)) & ~box(LARGE, (10, 10, 20, 20))),
    "corners that touch": (box(LARGE, (0, 0, 20, 20), (20, 20, 20, 20)), box(LARGE, (0, 0, 20, 20), (20, 20, 20, 20))),
    "hardly any background": (box(LARGE, (0, 0, 60, 59)), box(LARGE, (0, 0, 60, 60))),
}


@pytest.mark.parametrize("void", [None, "border"])
@pytest.mark.parametrize("case", list(CASES))
def test_cases_made_by_hand(case, void):
    mask, detected = CASES[case]
    labels = mask.astype(np.uint8)
    if void:
        labels[:3] = labels[:, :3] = 255
    for track in COMPONENT_TRACKS.values():
        compare(labels, detected, track.min_pixels, track.min_true)
    compare(labels, detected, 0, 0)


def test_signs_of_the_thresholds():
    mask, detected = CASES["sIoU exactly one half"]
    half = component_scores(mask, detected, None, 500, 100)
    assert (
        half.siou.tolist() == [0.5]
        and half.ppv.tolist() == [0.5]
        and half.counts(0.5) == (1, 0, 0)
        and half.f1(0.5) == 1.0
    )
    assert half.f1(0.55) == 0.0 and half.f1_star() == pytest.approx(6 / 11)
    both = join_components([half, component_scores(mask, mask, None, 500, 100)])
    assert both.counts(0.75) == (0, 2, 1)  # 400 px: a thing from 100 on, a detection from 500 on
