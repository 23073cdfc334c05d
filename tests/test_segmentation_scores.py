"""Scores against independent float64 formulas, written from the papers with plain NumPy and SciPy."""
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import logsumexp, softmax

from anomaly_nb.segmentation import HybridEnergyThresholding, PixelMahalanobis, StandardizedMaxLogit, boundary_suppression, dilated_smoothing, energy, max_logit, msp
from anomaly_nb.segmentation.heat import entropy, local_variance, spatial_divergence


@pytest.fixture(scope="module", params=[0, 1, 2])
def logits(request):
    rng = np.random.default_rng(request.param)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, 6, 23, 31)), (0, 0, 2, 2)) * 30
    return (smooth + rng.normal(size=smooth.shape) * 0.5).astype(np.float32)


def t(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def close(ours, theirs, tolerance=1e-5):
    assert np.abs(ours.numpy() - theirs).max() <= tolerance * max(1, np.abs(theirs).max())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_plain_scores(logits, temperature):
    z = logits.astype(np.float64)
    close(max_logit(t(logits)), -z.max(1))
    close(msp(t(logits), temperature), -softmax(z / temperature, axis=1).max(1))
    close(energy(t(logits), temperature), -temperature * logsumexp(z / temperature, axis=1))


def test_energy_limits(logits):
    z = t(logits.astype(np.float64))
    high = 1e7
    close(energy(z, high) + high * np.log(6), -logits.astype(np.float64).mean(1), 1e-4)
    close(energy(z, 1e-3), -logits.astype(np.float64).max(1), 1e-3)
    close(energy(z + 3), energy(z).numpy() - 3)


@pytest.mark.parametrize("axis", [-1, -2])
def test_flips(logits, axis):
    z = t(logits)
    sml = StandardizedMaxLogit(True, True, min_pixels=2).fit([(z, None)])
    for score in (max_logit, msp, energy, spatial_divergence, entropy, sml.score, lambda x: local_variance(energy(x))):
        assert torch.allclose(score(z.flip(axis)), score(z).flip(axis), atol=1e-4)


def test_standardized_max_logit(logits):
    z = logits.astype(np.float64)
    top, predicted = z.max(1), z.argmax(1)
    fitted = StandardizedMaxLogit(min_pixels=2).fit([(t(logits[:1]), None), (t(logits[1:]), None)])
    expected = np.zeros_like(top)
    for c in np.unique(predicted):
        here = top[predicted == c]
        expected[predicted == c] = -(here - here.mean()) / here.std(ddof=1)
    close(fitted.score(t(logits)), expected)


def boundary_by_hand(scores, prediction, width=4):
    "Written with SciPy's morphology; shares nothing with the tested code."
    cross, square = ndimage.generate_binary_structure(2, 1), np.ones((3, 3), bool)
    border = ndimage.grey_dilation(prediction, footprint=cross, mode="nearest") != ndimage.grey_erosion(prediction, footprint=square, mode="nearest")
    for turn in range(width):
        r = width - 1 - turn
        rows, columns = np.mgrid[-r : r + 1, -r : r + 1]
        wide = ndimage.binary_dilation(border, np.abs(rows) + np.abs(columns) <= r) if r else border
        padded, free = np.pad(scores, 1, mode="edge"), np.pad(~wide, 1, mode="edge")
        new = scores.copy()
        for i, j in zip(*np.nonzero(wide)):
            window, keep = padded[i : i + 3, j : j + 3], free[i : i + 3, j : j + 3]
            if keep.any():
                new[i, j] = window[keep].mean()
        scores = new
    return scores


def test_boundary_suppression(logits):
    smooth = ndimage.gaussian_filter(logits, (0, 0, 1.5, 1.5))
    scores, prediction = -smooth.max(1).astype(np.float64), smooth.argmax(1)
    ours = boundary_suppression(t(scores), t(prediction))
    for i in range(2):
        close(ours[i], boundary_by_hand(scores[i], prediction[i]))
    constant = torch.full((2, 23, 31), 2.5, dtype=torch.float64)
    assert torch.allclose(boundary_suppression(constant, t(prediction)), constant)


def test_dilated_smoothing(logits):
    scores = logits[:, 0].astype(np.float64)
    taps = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    kernel = np.zeros((37, 37))
    kernel[::6, ::6] = np.outer(taps, taps) / taps.sum() ** 2
    for ours, one in zip(dilated_smoothing(t(scores)), scores):
        close(ours, ndimage.correlate(one, kernel, mode="nearest"))


def heat_by_hand(fitted, logits, features):
    "The definition of the notebook's table, in float64."
    z = logits.astype(np.float64)
    p = softmax(z, axis=1)
    free = -logsumexp(z, axis=1)
    pad = np.pad(p, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    h, w = z.shape[-2:]
    around = sum(pad[..., i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
    framed = np.pad(free, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    variance = np.stack([framed[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]).var(0)
    uncertainty = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
    distance = fitted.gaussian_.score(t(features), (h, w)).sqrt().numpy().astype(np.float64)
    terms = {"energy": free, "mahalanobis": distance, "spatial": (p * (np.log(np.maximum(p, 1e-300)) - np.log(around))).sum(1)}
    weights = {"energy": 1 / (1 + uncertainty / fitted.reference_["entropy"]), "mahalanobis": 1.0, "spatial": 1 / (1 + variance / fitted.reference_["variance"])}
    total = sum(weights.values())
    return sum(weights[n] / total * (terms[n] - fitted.scale_[n][0]) / fitted.scale_[n][1] for n in terms)


def test_heat(logits):
    features = np.random.default_rng(5).normal(size=(2, 5, 6, 8)).astype(np.float32)
    labels = t(logits.argmax(1).astype(np.uint8))
    batches = [(t(logits[i : i + 1]), t(features[i : i + 1]), labels[i : i + 1]) for i in range(2)]
    fitted = HybridEnergyThresholding().fit(batches)
    close(fitted.score(t(logits), t(features)), heat_by_hand(fitted, logits, features))
    assert min(fitted.terms(t(logits), t(features)).shares().values()) > 0.05
    assert np.corrcoef(fitted.score(t(logits), t(features)).numpy().ravel(), energy(t(logits)).numpy().ravel())[0, 1] < 0.999


def test_mahalanobis_with_a_class_that_has_no_cell():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(200, 4)), rng.choice([0, 3], 200)
    fitted = PixelMahalanobis().fit(features, labels)
    assert fitted.classes_.tolist() == [0, 3] and torch.isfinite(fitted.score(torch.randn(1, 4, 3, 3))).all()
