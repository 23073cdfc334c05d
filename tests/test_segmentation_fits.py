"""Fits that stream: two passes, the batch formula to 1e-9, and the same memory for any number of images."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anomaly_nb.segmentation import (
    HybridEnergyThresholding,
    PixelMahalanobis,
    PixelScorer,
    StandardizedMaxLogit,
    ViM,
    street_samples,
)
from anomaly_nb.segmentation.cells import CellReservoir, ClassMoments
from anomaly_nb.segmentation.feature_scores import VimSubspace
from anomaly_nb.segmentation.heat import TermMoments
from anomaly_nb.segmentation.models import StreetOutput, predict
from anomaly_nb.segmentation import scorer as scorer_module
from anomaly_nb.segmentation.passes import TrainingPasses
from anomaly_nb.segmentation.methods import MASKED, METHODS
from anomaly_nb.segmentation.scores import max_logit_moments

SIZE = (32, 48)
UNMASKED = tuple(m for m in METHODS if m not in MASKED)  # what a network without masks can be asked for


class Tiny(nn.Module):
    "A network of two fixed convolutions with a wide feature layer."

    name = "tiny"

    def __init__(self, classes, width=64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.classes, self.calls = tuple(classes), 0
        self.wide = nn.Parameter(torch.randn(width, 3, 8, 8, generator=generator) * 0.1)
        self.head = nn.Parameter(torch.randn(len(classes), width, generator=generator) * 0.1)
        self.bias = nn.Parameter(torch.randn(len(classes), generator=generator))

    @property
    def last_layer(self):
        return self.head, self.bias

    def see(self, scene, precision="float32"):
        return predict(self, scene.image, precision)

    def forward(self, images):
        self.calls += len(images)
        features = nn.functional.relu(nn.functional.conv2d(images.float() / 64 - 2, self.wide, stride=8))
        logits = nn.functional.conv2d(features, self.head[:, :, None, None], self.bias)
        whole = nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear")
        return StreetOutput(whole, features, features, extent=tuple(images.shape[-2:]))


@pytest.fixture(scope="module")
def scenes():
    return street_samples("train", 7, SIZE)


def close(a, b, tolerance=1e-9):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * max(1, np.abs(np.asarray(b)).max())


def test_two_passes_whatever_is_fitted(scenes, monkeypatch):
    for methods, passes in (
        (UNMASKED, 2),
        (("max_logit", "msp", "energy"), 1),
        (("sml",), 2),
        (("heat", "vim"), 2),
        (("knn",), 2),
    ):
        model = Tiny(scenes.table.names)
        at_once = PixelScorer(methods).fit(model, scenes)
        assert model.calls == len(scenes), methods  # the outputs of all scenes fit into memory
        monkeypatch.setattr(scorer_module, "KEPT_OUTPUTS", 3 * SIZE[0] * SIZE[1] * 4 * len(scenes.table.names))
        some = PixelScorer(methods).fit(model := Tiny(scenes.table.names), scenes)
        assert len(scenes) <= model.calls <= passes * len(scenes) and some.scale_ == at_once.scale_
        monkeypatch.setattr(scorer_module, "KEPT_OUTPUTS", 0)
        again = PixelScorer(methods).fit(model := Tiny(scenes.table.names), scenes)
        assert model.calls == passes * len(scenes) and again.scale_ == at_once.scale_, methods
        monkeypatch.undo()


def test_equal_to_the_batch_formulas(scenes):
    model = Tiny(scenes.table.names)
    scorer = PixelScorer(UNMASKED, cells_per_image=20).fit(model, scenes)
    outs = list(TrainingPasses(model, scenes))
    taken = [scorer.cells(i, out.features, labels, out.extent) for i, (out, labels) in enumerate(outs)]
    x, y = (np.concatenate(part) for part in zip(*taken))
    x = x.astype(np.float64)
    # Mahalanobis and the Gaussian of HEAT: class means and tied covariance in one piece
    kept = np.unique(y)
    means = np.stack([x[y == c].mean(0) for c in kept])
    covariance = sum((x[y == c] - m).T @ (x[y == c] - m) for c, m in zip(kept, means)) / (len(x) - len(kept))
    covariance[np.diag_indices_from(covariance)] += 1e-3 * np.trace(covariance) / len(covariance)
    gaussian = scorer.fitted_["mahalanobis"]
    close(gaussian.mean_, means)
    close(np.linalg.inv(gaussian.whiten_ @ gaussian.whiten_.T), covariance)
    close(scorer.fitted_["heat"].gaussian_.mean_, means)
    # ViM: subspace and scale
    weight, bias = (v.detach().numpy().astype(np.float64) for v in model.last_layer)
    centred = x + np.linalg.pinv(weight) @ bias
    vectors = np.linalg.eigh(centred.T @ centred / len(x))[1][:, : x.shape[1] - x.shape[1] // 2]
    vim = scorer.fitted_["vim"]
    close(vim.residual_ @ vim.residual_.T, vectors @ vectors.T)
    close(vim.alpha_, (x @ weight.T + bias).max(1).mean() / np.linalg.norm(centred @ vectors, axis=1).mean())
    # kNN: fewer cells than it keeps, so all of them
    ours = scorer.fitted_["knn"].cells_
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, unit))
    # SML: mean and unbiased variance of the max logit by predicted class, rare classes as all pixels
    top, predicted = (
        torch.cat([m.reshape(-1) for m in part]).numpy()
        for part in zip(
            *[
                (v[labels != 255].double(), i[labels != 255])
                for (v, i), labels in ((o.logits.max(1), lab) for o, lab in outs)
            ]
        )
    )
    sml = scorer.fitted_["sml"]
    for c in range(len(scenes.table.names)):
        mine = top[predicted == c] if (predicted == c).sum() >= 100 else top
        close([sml.mean_[c], sml.var_[c]], [mine.mean(), mine.var(ddof=1)])
    # the scale of every term of HEAT
    heat = scorer.fitted_["heat"]
    raw = [heat.raw(o.logits, o.features, o.extent) for o, _ in outs]
    for name, (mean, deviation) in heat.scale_.items():
        values = np.concatenate([r[name][labels != 255].double().numpy() for r, (_, labels) in zip(raw, outs)])
        close([mean, deviation], [values.mean(), values.std()])
    # the common scale: as many pixels as there are, so the quantiles of those sampled
    for method, maps in scorer.score(outs[0][0]).items():
        assert np.isfinite(scorer.ranked(method, maps)).all() and abs(np.median(scorer.ranked(method, maps))) < 3, (
            method
        )


def test_every_sum_merges(scenes):
    model = Tiny(scenes.table.names)
    outs = [(predict(model, s.image), torch.from_numpy(np.array(s.labels))[None]) for s in scenes]
    rows = [o.features.permute(0, 2, 3, 1).reshape(-1, 64).numpy() for o, _ in outs]
    labels = [np.arange(len(r)) % 5 for r in rows]
    whole, halves = ClassMoments(), [ClassMoments(), ClassMoments()]
    for i, (r, y) in enumerate(zip(rows, labels)):
        whole.add(r, y)
        halves[i % 2].add(r, y)
    close(
        PixelMahalanobis().fit_moments(halves[0].merge(halves[1])).whiten_,
        PixelMahalanobis().fit(np.concatenate(rows), np.concatenate(labels)).whiten_,
    )
    heat = HybridEnergyThresholding().set_gaussian(None)
    terms, parts, maxima = TermMoments(), [TermMoments(), TermMoments()], [None, None, None]
    for i, (out, y) in enumerate(outs):
        raw = heat.raw(out.logits, None)
        terms.add(raw, y != 255)
        parts[i % 2].add(raw, y != 255)
        for j in (i % 2, 2):
            maxima[j] = max_logit_moments(maxima[j], out.logits, y != 255)
    one, two = (HybridEnergyThresholding().set_gaussian(None).set_scale(t) for t in (terms, parts[0].merge(parts[1])))
    for name in one.scale_:
        close(one.scale_[name], two.scale_[name])
    close(
        StandardizedMaxLogit().fit_moments(maxima[0].merge(maxima[1])).var_,
        StandardizedMaxLogit().fit_moments(maxima[2]).var_,
    )


def test_a_reservoir_is_a_uniform_sample_of_all_images():
    rng = np.random.default_rng(0)
    reservoir = CellReservoir(2000)
    for i in range(400):
        reservoir.add(np.full((50, 1), i, np.float32), rng.random(50))
    rows = reservoir.rows()[:, 0]
    count = np.bincount((rows // 100).astype(int), minlength=4)
    assert len(rows) == 2000 and reservoir.seen == 20_000 and np.abs(count - 500).max() < 4 * np.sqrt(500 * 0.75)


def test_options_for_images_and_cells(scenes):
    model = Tiny(scenes.table.names)
    scorer = PixelScorer(("mahalanobis",), fit_images=3, cells_per_image=4).fit(model, scenes)
    assert model.calls == 3 and scorer.fitted_on_["images"] == 3 and scorer.fitted_on_["cells_per_image"] == 4
    with pytest.raises(ValueError, match="comes twice"):
        PixelScorer(("sml", "sml")).fit(model, scenes)


def test_nothing_labelled(scenes):
    model, blank = Tiny(scenes.table.names), street_samples("train", 2, SIZE)
    blank.table = type(blank.table)(blank.table.names[:1], {250: 0}, void=frozenset(range(20)))
    for methods in (("mahalanobis",), ("knn",), ("vim",), ("heat",), ("sml",), ("energy",)):
        with pytest.raises(ValueError, match="label"):
            PixelScorer(methods).fit(model, blank)


def test_vim_in_two_batches_and_in_one():
    rng = np.random.default_rng(1)
    x, weight, bias = rng.normal(size=(500, 12)), rng.normal(size=(4, 12)), rng.normal(size=4)
    one = ViM().fit(x, weight, bias)
    subspace = VimSubspace(ViM(), weight, bias).add(x[:77]).add(x[77:])
    two = subspace.close().add(x[77:]).add(x[:77]).close()
    close(two.alpha_, one.alpha_)
    close(two.residual_ @ two.residual_.T, one.residual_ @ one.residual_.T)


def fit_many(count):
    "Peak memory in MB of fitting everything on `count` images with 1024 features a cell."
    import resource

    torch.set_num_threads(1)
    scenes = street_samples("train", 8, (128, 192))  # 384 cells an image, more than are kept of one
    scenes = replace(scenes, scenes=[s._replace(key=f"{i}/{s.key}") for i in range(count // 8) for s in scenes.scenes])
    PixelScorer(("sml", "heat", "vim", "mahalanobis", "knn"), cells_per_image=200).fit(
        Tiny(scenes.table.names, 1024), scenes
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    "many",
    [
        pytest.param(
            1600,
            marks=pytest.mark.skipif(
                "not __import__('os').environ.get('ANOMALY_NB_SLOW')", reason="minutes; set ANOMALY_NB_SLOW=1"
            ),
        )
    ],
)
def test_memory_does_not_grow_with_the_images(many):
    code = "import sys, tests.test_segmentation_fits as t; print(t.fit_many(int(sys.argv[1])))"
    few, more = (
        float(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code, str(n)],
                cwd=Path(__file__).parent.parent,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for n in (160, many)
    )
    print(f"\n160 images {few:.0f} MB, {many} images {more:.0f} MB")
    assert more < 1.1 * few and more < 2000
