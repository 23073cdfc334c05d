"""Grid, class token and checkpoints of every family, with random weights; MobileNetV2 with its own."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_nb.core.arrays import save_tensors
from anomaly_nb.core.errors import DataError
from anomaly_nb.data import draw_sample
from anomaly_nb.features import create_backbone

IMAGE = draw_sample("weave", "spot", 0)[0]
DATA = os.environ.get("ANOMALY_NB_DATA", "")
FAMILIES = {  # name -> size, patch, has a class token
    "timm:vit_small_patch14_dinov2?depth=2": (112, 14, True),
    "timm:vit_small_patch14_reg4_dinov2?depth=2": (112, 14, True),
    "timm:vit_small_patch16_dinov3?depth=2": (128, 16, True),
    "timm:vit_base_patch16_224.mae?depth=2": (96, 16, True),
    "timm:vit_base_patch16_siglip_224?depth=2": (96, 16, False),
    "timm:eva02_tiny_patch14_224?depth=2": (112, 14, True),
    "timm:swin_tiny_patch4_window7_224": (224, 16, False),
    "timm:hiera_tiny_224": (224, 16, False),
    "timm:resnet18": (128, 16, False),
    "timm:wide_resnet50_2?layers=2,3": (96, 16, False),
    "timm:convnext_atto": (128, 16, False),
    "open_clip:ViT-S-32-alt?layers=1": (128, 32, True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_grid_and_vector(name):
    torch.manual_seed(0)
    size, patch, token = FAMILIES[name]
    net = create_backbone(name, "random", size)
    patches, hw, cls = net(np.stack([net.transform(IMAGE)] * 2))
    assert hw == (size // patch,) * 2 and net.spec.patch == patch and patches.shape[:2] == (2, hw[0] * hw[1])
    assert cls.shape[0] == 2 and np.isfinite(cls).all()
    np.testing.assert_allclose(
        patches[0], patches[1], atol=1e-4
    )  # a matrix product may round two rows of one batch differently
    if name.startswith("timm"):
        assert net.has_class_token == token and net.spec.licence


@pytest.mark.parametrize("name", [n for n in FAMILIES if "patch" in n and "swin" not in n])
def test_the_changed_patch_is_where_the_token_changes(name):
    torch.manual_seed(1)
    size, p, _ = FAMILIES[name]
    net = create_backbone(f"{name}&layers=0&norm=False", "random", size)
    x = net.transform(IMAGE)[None]
    before, (h, w), _ = net(x)
    for row, column in ((0, 0), (h - 1, 0), (2, w - 1), (h // 2, 1)):
        y = x.copy()
        y[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p] *= -1
        assert divmod(int(np.abs(net(y)[0] - before)[0].sum(1).argmax()), w) == (row, column)


@pytest.mark.parametrize(
    "name",
    [
        "timm:vit_small_patch14_reg4_dinov2?depth=2",
        "timm:vit_base_patch16_224.mae?depth=2",
        "open_clip:ViT-S-32-alt?layers=0,2",
    ],
)
def test_positions_are_interpolated_from_the_checkpoint(name, tmp_path):
    "A position embedding that is smooth over the grid stays the same function of place at another size."
    torch.manual_seed(2)
    native = create_backbone(name, "random")
    key = "pos_embed" if name.startswith("timm") else "positional_embedding"
    state = native.model.state_dict()
    extra = (
        1 if (state[key].shape[-2] - 1) ** 0.5 % 1 == 0 else 0
    )  # timm's register models have no position for the class token
    side = round((state[key].shape[-2] - extra) ** 0.5)
    ramp = torch.linspace(-1, 1, side)[None].expand(side, side).reshape(-1, 1)
    state[key][..., extra:, :] = ramp
    save_tensors(tmp_path / "w.pt", state)
    size = native.spec.patch * 5
    moved = create_backbone(name, tmp_path / "w.pt", size)
    found = moved.model.state_dict()[key].reshape(-1, state[key].shape[-1])[extra:].reshape(5, 5, -1)
    assert (
        np.allclose(found.numpy(), found[:1, :, :1].numpy(), atol=1e-4)
        and (np.diff(found[0, :, 0].numpy()) > 0.2).all()
    )
    assert moved(moved.transform(IMAGE)[None])[1] == (5, 5)


def test_proportions_are_kept_on_request():
    wide = np.concatenate([IMAGE, IMAGE], axis=1)
    for name, size, hw in (("timm:vit_small_patch14_dinov2?depth=2&resize=short", 70, (5, 10)), ("timm:vit_small_patch16_dinov3?depth=2&resize=short", 64, (4, 8)),
                           ("timm:resnet18?resize=short", 64, (4, 8)), ("filters?resize=short", 64, (8, 16))):  # fmt: skip
        net = create_backbone(name, None if name.startswith("f") else "random", size)
        assert net(net.transform(wide)[None])[1] == hw and net.spec.resize == "short"
    with pytest.raises(DataError, match="resize='long'"):
        create_backbone("filters?resize=long")
    with pytest.raises(DataError, match="use square, draft, short or pad"):
        create_backbone("open_clip:ViT-S-32-alt?resize=crop", "random")
    clip = create_backbone("open_clip:ViT-S-32-alt?resize=short", "random", 64)
    assert clip(clip.transform(wide)[None])[1] == (2, 4)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_refused(tmp_path, damage):
    name = "timm:vit_tiny_patch16_224?depth=1"
    state = create_backbone(name, "random").model.state_dict()
    if damage == "missing":
        state.pop("norm.weight")
    elif damage == "extra":
        state["blocks.1.norm1.weight"] = torch.zeros(192)
    else:
        state["norm.weight"] = torch.zeros(7)
    save_tensors(tmp_path / "w.pt", state)
    with pytest.raises(DataError, match=r"w.pt: weights do not fit: .*(norm.weight|blocks.1.norm1)"):
        create_backbone(name, tmp_path / "w.pt")


@pytest.mark.skipif(not Path(DATA, "weights").is_dir(), reason="set ANOMALY_NB_DATA to the folder of real data")
def test_mobilenet_with_its_own_weights():
    weights = Path(DATA) / "weights/mobilenetv2_100_imagenet.safetensors"
    net = create_backbone("timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5", weights, 320)
    patches, hw, cls = net(net.transform(IMAGE)[None])
    assert hw == (20, 20) and patches.shape == (1, 400, 128) and cls.shape == (1, 1280) and len(net.spec.sha256) == 64
    assert net.spec.weights == weights.name and net.spec.licence == "apache-2.0"
    with pytest.raises(DataError, match="weights do not fit"):
        create_backbone("timm:mobilenetv2_050", weights)


def test_a_network_is_folded_by_a_small_example_and_works_where_it_cannot_be(monkeypatch):
    from anomaly_nb.features import networks

    sizes = []

    def refuses(model, example):
        sizes.append(tuple(example.shape))
        raise AssertionError("windows of 7")

    monkeypatch.setattr(networks, "fold_batch_norms", refuses)
    large = create_backbone("timm:mobilenetv2_100", "random", 1024)
    small = create_backbone("timm:mobilenetv2_100", "random", 64)
    assert sizes == [(1, 3, 224, 224), (1, 3, 64, 64)]  # all maps of an example are held at once
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in large.model.modules())
    assert small.patches(small.transform(IMAGE)[None])[1] == (4, 4)
