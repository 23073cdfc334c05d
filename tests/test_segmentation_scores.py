"""Scores against independent float64 formulas, written from the papers with plain NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import logsumexp, softmax

from anomaly_nb.segmentation import (
    HybridEnergyThresholding,
    PixelMahalanobis,
    StandardizedMaxLogit,
    boundary_suppression,
    dilated_smoothing,
    energy,
    max_logit,
    msp,
)
from anomaly_nb.segmentation.feature_scores import PixelKNN, ReAct
from anomaly_nb.segmentation.heat import entropy, local_variance, spatial_divergence
from anomaly_nb.segmentation.mask_scores import eam, mask2anomaly, mask_class_logits, rba


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
    border = ndimage.grey_dilation(prediction, footprint=cross, mode="nearest") != ndimage.grey_erosion(
        prediction, footprint=square, mode="nearest"
    )
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


def stretched(maps, size):
    "Bilinear interpolation of the last two axes, pixel centres on pixel centres, as `align_corners=False`."
    for axis, n in zip((-2, -1), size):
        m = maps.shape[axis]
        places = (np.arange(n) + 0.5) * m / n - 0.5
        maps = np.apply_along_axis(lambda line, at=places, m=m: np.interp(at, np.arange(m), line), axis, maps)
    return maps


def heat_raw(logits, features, gaussian, extent):
    "Raw terms, entropy and variance in float64; `gaussian` is class means and inverse covariance."
    z, f = logits.astype(np.float64), features.astype(np.float64)
    h, w = z.shape[-2:]
    p, free = softmax(z, axis=1), -logsumexp(z, axis=1)
    pad = np.pad(p, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    around = sum(pad[..., i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
    framed = np.pad(free, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    log_p = np.log(np.maximum(p, 1e-300))
    squared = np.stack(
        [np.einsum("bdhw,de,behw->bhw", f - m[:, None, None], gaussian[1], f - m[:, None, None]) for m in gaussian[0]]
    ).min(0)
    return {
        "energy": free,
        "spatial": (p * (log_p - np.log(around))).sum(1),
        "mahalanobis": np.sqrt(stretched(squared, extent)[..., :h, :w]),
        "entropy": -(p * log_p).sum(1),
        "variance": np.stack([framed[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]).var(0),
    }


def heat_by_hand(train, logits, features, extent):
    """HEAT from its definition in the notebook, statistics included; shares nothing with the tested code. `train`:
    (logits, features, labels) whose cells all count.
    """
    h, w = logits.shape[-2:]
    rows, classes = [], []
    for _, f, labels in train:
        n = [int(np.floor((i + 0.5) * e / c)) for e, c in zip(extent, f.shape[-2:]) for i in range(c)]
        at = np.ix_(n[: f.shape[-2]], n[f.shape[-2] :])
        rows.append(f[0].reshape(f.shape[1], -1).T.astype(np.float64))
        classes.append(np.pad(labels[0], ((0, extent[0] - h), (0, extent[1] - w)), constant_values=255)[at].ravel())
    x, y = np.concatenate(rows), np.concatenate(classes)
    x, y = x[y != 255], y[y != 255]
    names = np.unique(y)
    means = np.stack([x[y == c].mean(0) for c in names])
    covariance = sum((x[y == c] - m).T @ (x[y == c] - m) for c, m in zip(names, means)) / (len(x) - len(names))
    gaussian = (
        means,
        np.linalg.inv(covariance + 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))),
    )
    pixels = [{n: v[labels != 255] for n, v in heat_raw(z, f, gaussian, extent).items()} for z, f, labels in train]
    every = {n: np.concatenate([one[n] for one in pixels]) for n in pixels[0]}
    raw = heat_raw(logits, features, gaussian, extent)
    trust = {
        "energy": 1 / (1 + raw["entropy"] / every["entropy"].mean()),
        "mahalanobis": 1.0,
        "spatial": 1 / (1 + raw["variance"] / every["variance"].mean()),
    }
    return sum(t * (raw[n] - every[n].mean()) / every[n].std() for n, t in trust.items()) / sum(trust.values())


@pytest.mark.parametrize("extent", [None, (24, 32)])
def test_heat(logits, extent):
    rng = np.random.default_rng(5)
    features = rng.normal(size=(2, 5, 6, 8)).astype(np.float32)
    labels = logits.argmax(1).astype(np.uint8)
    labels[:, :3, :5] = 255
    train = [(logits[i : i + 1], features[i : i + 1], labels[i : i + 1]) for i in range(2)]
    fitted = HybridEnergyThresholding().fit([(*map(t, one), extent) for one in train])
    close(
        fitted.score(t(logits), t(features), extent), heat_by_hand(train, logits, features, extent or logits.shape[-2:])
    )
    assert min(fitted.terms(t(logits), t(features)).fractions().values()) > 0.05
    assert (
        np.corrcoef(fitted.score(t(logits), t(features)).numpy().ravel(), energy(t(logits)).numpy().ravel())[0, 1]
        < 0.999
    )


def test_mahalanobis_with_a_class_that_has_no_cell():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(200, 4)), rng.choice([0, 3], 200)
    fitted = PixelMahalanobis().fit(features, labels)
    assert fitted.classes_.tolist() == [0, 3] and torch.isfinite(fitted.score(torch.randn(1, 4, 3, 3))).all()


def zoomed(maps, size):
    "Bilinear, pixel centres aligned, borders replicated: (..., h, w) to (..., H, W), in float64."
    for axis, wanted in ((-2, size[0]), (-1, size[1])):
        have = maps.shape[axis]
        at = np.clip((np.arange(wanted) + 0.5) * have / wanted - 0.5, 0, have - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, have - 1), at - low
        shape = [1] * maps.ndim
        shape[axis] = wanted
        part = part.reshape(shape)
        maps = np.take(maps, low, axis) * (1 - part) + np.take(maps, high, axis) * part
    return maps


@pytest.mark.parametrize("size", [None, (21, 34)])
@pytest.mark.parametrize("queries", [3, 40])
def test_scores_of_masks(size, queries):
    rng = np.random.default_rng(queries)
    classes, masks = rng.normal(size=(2, queries, 7)) * 2, rng.normal(size=(2, queries, 9, 12)) * 3
    known = softmax(classes, axis=2)[:, :, :6]  # the last class is no object
    pixel = 1 / (1 + np.exp(-(zoomed(masks, size) if size else masks)))
    maps = (known[:, :, :, None, None] * pixel[:, :, None]).sum(1)
    ours = mask_class_logits(t(classes), t(masks), size)
    close(ours, maps, 1e-9)
    close(rba(ours), -np.tanh(maps).sum(1), 1e-9)
    close(mask2anomaly(ours), 1 - maps.max(1), 1e-9)
    close(eam(t(classes), t(masks), size), 1 - (known.max(2)[:, :, None, None] * pixel).sum(1), 1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("size", [None, (17, 22)])
def test_react(size, temperature):
    rng = np.random.default_rng(4)
    training, features = rng.gamma(2.0, size=(500, 9)), rng.gamma(2.0, size=(2, 9, 5, 6))
    weight, bias = rng.normal(size=(6, 9)), rng.normal(size=6)
    clip = np.quantile(training, 0.9)
    logits = np.einsum("cd,bdhw->bchw", weight, np.minimum(features, clip)) + bias[None, :, None, None]
    logits = zoomed(logits, size) if size else logits
    react = ReAct(weight, bias, temperature=temperature).fit(training)
    close(react.score(t(features), size), -temperature * logsumexp(logits / temperature, axis=1), 1e-9)
    assert (features > clip).any()


def test_entropy_at_a_temperature(logits):
    for temperature in (0.5, 1.0, 4.0):
        p = softmax(logits.astype(np.float64) / temperature, axis=1)
        close(entropy(t(logits) / temperature), -(p * np.log(np.maximum(p, 1e-300))).sum(1))


def test_nearest_cells():
    rng = np.random.default_rng(5)
    training, features = rng.normal(size=(300, 11)), rng.normal(size=(1, 11, 4, 6))
    unit = training / np.linalg.norm(training, axis=1, keepdims=True)
    rows = features[0].reshape(11, -1).T
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = np.sort(np.linalg.norm(rows[:, None] - unit[None], axis=2), axis=1)
    for k in (1, 3, 10):
        close(PixelKNN(k).fit(training).score(t(features)), distances[:, k - 1].reshape(1, 4, 6), 1e-4)
