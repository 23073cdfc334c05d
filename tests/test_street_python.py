"What callers of the street scores give from Python: names, layouts, masks and networks that are none."

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch.nn import functional as F

from anomaly_nb.core.errors import DataError
from anomaly_nb.metrics import STREET_PROTOCOLS, street_metrics
from anomaly_nb.segmentation import (
    HybridEnergyThresholding,
    OwnNetwork,
    PixelScorer,
    StandardizedMaxLogit,
    StoredLogits,
    evaluate,
    load_network,
    street_samples,
)
from anomaly_nb.segmentation.feature_scores import PixelKNN, PixelMahalanobis, ReAct, ViM
from anomaly_nb.segmentation.methods import MASKED, METHODS, UNFITTED
from anomaly_nb.segmentation.scores import check_layout
from anomaly_nb.segmentation.together import NetworkEnsemble

SIZE = (64, 96)


@pytest.fixture(scope="module")
def scenes():
    return street_samples("test", 2, size=SIZE)


def plain(images):
    "Logits (B, 5, H, W) of the colours themselves."
    x = images.float() / 32
    return torch.cat([x, -x[:, :1] + x[:, 1:2], x.mean(1, keepdim=True)], 1)


@pytest.fixture(scope="module")
def network():
    return OwnNetwork("plain", plain)


# --- names of methods


@pytest.fixture(scope="module")
def fitted(network, scenes):
    return PixelScorer(("max_logit", "energy")).fit(network, scenes, every_pixel=True)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(UNFITTED)))
def test_what_was_not_fitted_is_no_energy(fitted, network, scenes, method):
    out = network.see(scenes[0])
    with pytest.raises(NotFittedError, match=f"'{method}' was not fitted, max_logit, energy were"):
        fitted.score_one(method, out)
    with pytest.raises(NotFittedError, match="fit PixelScorer on training images first"):
        PixelScorer((method,)).score(out)
    for call in (lambda: fitted.ranked(method, np.zeros(3)), lambda: fitted.unranked(method, 0.0)):
        with pytest.raises(NotFittedError, match=f"'{method}': fit PixelScorer"):
            call()


def test_what_learns_nothing_needs_no_fit(fitted, network, scenes):
    out = network.see(scenes[0])
    for method in sorted(set(UNFITTED) - set(MASKED)):
        assert np.array_equal(fitted.score_one(method, out), PixelScorer((method,)).score(out)[method])


@pytest.mark.parametrize(
    "methods, words",
    [
        (("maxlogit",), "methods 'maxlogit': choose from max_logit"),
        ("max_logit", "methods: is one text, 'max_logit'; give a list of them"),
        ((), r"methods \(\): choose from"),
        (("sml", "sml"), "one comes twice"),
        ({"sml": 1}, "dict is no list"),
    ],
)
def test_methods_are_checked_when_the_scorer_is_made(methods, words):
    with pytest.raises(DataError, match=words):
        PixelScorer(methods)


def test_a_misspelt_method_is_no_score(fitted, network, scenes):
    with pytest.raises(DataError, match="methods 'maxlogit': choose from"):
        fitted.score_one("maxlogit", network.see(scenes[0]))


def test_a_scorer_without_a_fit_says_so(network, scenes, tmp_path):
    for call in (
        lambda s: evaluate(network, s, scenes),
        lambda s: s.reset(),
        lambda s: s.save(tmp_path / "scorer.pt"),
    ):
        with pytest.raises(NotFittedError, match=r"fit PixelScorer on training images first; .*every_pixel=True"):
            call(PixelScorer(("max_logit",)))
    assert not list(tmp_path.iterdir())


# --- networks


class Pixels(torch.nn.Module):
    def forward(self, images):
        return plain(images)


@pytest.mark.parametrize("what", [plain, Pixels(), None, "plain"])
def test_what_sees_no_scenes_is_named(fitted, network, scenes, what):
    for call in (
        lambda: evaluate(what, fitted, scenes),
        lambda: PixelScorer(("energy",)).fit(what, scenes, every_pixel=True),
        lambda: NetworkEnsemble([network, what]),
    ):
        with pytest.raises(DataError, match=f"a {type(what).__name__} is no network of scenes; wrap it: OwnNetwork"):
            call()


def test_a_network_at_hand_is_no_name(scenes):
    for what in (Pixels(), plain, None):
        with pytest.raises(DataError, match=rf"a {type(what).__name__} is no name of a network; .*OwnNetwork"):
            load_network(what)
    for empty, name in (((), "tuple"), ([], "list"), ({}, "NoneType"), (None, "NoneType")):
        with pytest.raises(DataError, match=f"odd: gives {name} for images"):
            OwnNetwork("odd", lambda images, empty=empty: empty).see(scenes[0])


# --- layouts


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 14, 16, 32])
def test_every_stride_of_every_size_passes(stride):
    rng = np.random.default_rng(stride)
    for _ in range(300):
        size = tuple(int(n) for n in rng.integers(max(stride, 48), 1200, 2))
        for rounded in (np.floor, np.ceil, np.round):
            h, w = (max(int(rounded(n / stride)), 1) for n in size)
            check_layout("net", (19, h, w), size, 19)
            check_layout("net", (19, h, w), size)


@pytest.mark.parametrize("stride", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("size", [(480, 640), (375, 1242), (513, 1025), (1024, 2048), (224, 224), (101, 67)])
def test_classes_in_another_place_are_refused(stride, size):
    h, w = (-(-n // stride) for n in size)
    for n_classes in (0, 19):
        if n_classes or min(h, w) > 40:
            with pytest.raises(DataError, match=r"looks like \(H, W, C\).*transpose\(logits, \(2, 0, 1\)\)"):
                check_layout("net", (h, w, 19), size, n_classes)
            if h != w:
                with pytest.raises(DataError, match=r"looks like \(C, W, H\).*permute\(0, 1, 3, 2\)"):
                    check_layout("net", (19, w, h), size, n_classes)
                with pytest.raises(DataError, match=r"looks like \(W, H, C\)"):
                    check_layout("net", (w, h, 19), size, n_classes)


@pytest.mark.parametrize(
    "shape, size",
    [
        ((19, 64, 64), (480, 640)),  # resized to a square, whatever the image
        ((150, 128, 128), (480, 640)),
        ((21, 65, 65), (375, 500)),
        ((19, 136, 264), (513, 1025)),  # padded to a multiple of 32
        ((19, 60, 104), (513, 895)),  # a border lost
        ((2, 3, 4), (24, 32)),
        ((19, 480, 640), (480, 640)),
        ((7, 7, 7), (56, 56)),  # nothing can tell; as documented
    ],
)
def test_networks_of_other_sizes_pass(shape, size):
    check_layout("net", shape, size)


def test_names_of_classes_decide_where_both_orders_fit():
    check_layout("net", (8, 16, 32), (32, 64))  # as the field has it
    with pytest.raises(DataError, match=r"may be \(C, H, W\) or \(H, W, C\).*if its 7 classes stand first, name them"):
        check_layout("net", (7, 9, 11), (480, 640))  # a stride that no network has, or one that some have
    check_layout("net", (7, 9, 11), (480, 640), 7)
    check_layout("net", (8, 16, 32), (32, 64), 8)
    with pytest.raises(DataError, match=r"looks like \(H, W, C\)"):
        check_layout("net", (8, 16, 32), (32, 64), 32)
    check_layout("net", (8, 16, 32), (32, 64), 5)  # another number of classes is said elsewhere


def test_own_networks_and_stored_logits_refuse_classes_last(scenes, tmp_path):
    def small(images):
        return F.avg_pool2d(plain(images), 16)

    for names in ((), tuple("abcde")):
        own = OwnNetwork("last", lambda images: small(images).permute(0, 2, 3, 1), names)
        with pytest.raises(DataError, match=r"last: \(4, 6, 5\) looks like \(H, W, C\) for an image of 64x96"):
            own.see(scenes[0])
    for axes, said in (((1, 2, 0), r"\(H, W, C\)"), ((0, 2, 1), r"\(C, W, H\)")):
        for scene in scenes:
            path = tmp_path / f"{scene.key}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, OwnNetwork("all", small)(images_of(scene)).logits[0].numpy()[:, ::16, ::16].transpose(axes))
        for names in ((), tuple("abcde")):
            with pytest.raises(DataError, match=f"looks like {said}"):
                StoredLogits(tmp_path, scenes.keys, names, resize=True).see(scenes[0])


def images_of(scene):
    return torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None]


# --- masks and labels


def test_masks_of_any_type_count_the_same_pixels():
    logits = torch.randn(2, 4, 9, 11, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(1)) > 0.4
    wanted = StandardizedMaxLogit(min_pixels=2).fit([(logits, valid)]).mean_
    for mask in (valid.long(), valid.to(torch.uint8), valid.float(), valid.numpy(), valid.numpy().astype(float)):
        assert np.array_equal(StandardizedMaxLogit(min_pixels=2).fit([(logits, mask)]).mean_, wanted)
    for mask in (valid[0], valid[:, None], valid[:, :5], torch.ones(2, 4, 9, 11)):
        with pytest.raises(DataError, match=r"valid: has shape .*; it must be \(B, H, W\) = \(2, 9, 11\)"):
            StandardizedMaxLogit().fit([(logits, mask)])
    for mask, odd in ((valid.long() * 255, "255"), (valid.float() * 0.5, "0.5"), (valid.float() * np.nan, "nan")):
        with pytest.raises(DataError, match=f"valid: holds {odd}; a mask is of bool"):
            StandardizedMaxLogit().fit([(logits, mask)])


@pytest.mark.parametrize("featured", [False, True])
def test_labels_of_heat_are_classes_or_void(featured):
    g = torch.Generator().manual_seed(0)
    logits, features = torch.randn(1, 4, 16, 16, generator=g), torch.randn(1, 6, 4, 4, generator=g)
    labels = torch.randint(0, 4, (1, 16, 16), generator=g)

    def scale(y):
        return HybridEnergyThresholding().fit([(logits, features if featured else None, y)]).scale_

    wanted = scale(labels)
    for y in (labels.to(torch.uint8), labels.float(), labels.numpy()):
        assert scale(y) == wanted
    for y, odd in ((labels - 1, "-1"), (labels + 0.5, r"\d.5"), (labels * np.nan, "nan")):
        with pytest.raises(
            DataError, match=f"labels: hold {odd}; classes are whole numbers from 0 on, and 255 is void"
        ):
            scale(y)
    with pytest.raises(DataError, match=r"it must be \(B, H, W\)"):
        scale(labels[:, :8])


def test_seeds_are_whole_numbers(network, scenes):
    for call in (
        lambda: HybridEnergyThresholding(random_state=None).fit([]),
        lambda: PixelKNN(random_state=None).fit(np.zeros((20, 3))),
        lambda: PixelScorer(("energy",), random_state=None).fit(network, scenes, every_pixel=True),
    ):
        with pytest.raises(DataError, match="random_state=None: give a whole number"):
            call()


# --- metrics of masks


@pytest.mark.parametrize("protocol", STREET_PROTOCOLS)
def test_masks_need_no_id(protocol):
    rng = np.random.default_rng(0)
    masks, maps = rng.random((4, 12, 12)) > 0.8, rng.normal(size=(4, 12, 12))
    anomaly = STREET_PROTOCOLS[protocol].anomalous[0]
    assert street_metrics(masks, maps, protocol) == street_metrics(np.where(masks, anomaly, 0), maps, protocol)
    with pytest.raises(DataError, match=rf"id {anomaly}\b"):
        street_metrics(np.where(masks, 7, 0), maps, protocol)


# --- text


def test_every_object_says_what_it_is(fitted, network, scenes):
    weight = np.zeros((5, 3))
    objects = (StandardizedMaxLogit(), HybridEnergyThresholding(), PixelMahalanobis(), ViM(), PixelKNN())
    for one in (*objects, ReAct(weight, weight[:, 0]), PixelScorer()):
        assert " at 0x" not in repr(one) and "not fitted yet" in repr(one) and "\n" not in repr(one)
    assert repr(fitted).endswith("fitted on 2 images)") and "methods=('max_logit', 'energy')" in repr(fitted)
    result = evaluate(network, fitted, scenes)
    assert repr(result).startswith("StreetEvaluation(Max logit, Energy of 2 images; ")
    assert repr(network) == "OwnNetwork(plain: function, classes not named)"
    assert repr(OwnNetwork("own", Pixels(), tuple("abcde"))) == "OwnNetwork(own: Pixels, 5 classes)"
