"""Checkpoints as they are published: wrapped, nested, several networks in one file, with what a pickle may hold beside."""

import argparse
import collections
import pathlib
import types

import numpy as np
import pytest
import torch
from torch import nn

from anomaly_nb.core.arrays import save_tensors
from anomaly_nb.core.errors import DataError, Notice, UnsafeFileError
from anomaly_nb.features import create_backbone
from anomaly_nb.features.weights import load_weights, weights_identity


def net(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Sequential(nn.Conv2d(width, 2, 1)))


A, B = net(1).state_dict(), net(2).state_dict()


def under(prefix, state):
    return {prefix + k: v for k, v in state.items()}


def holds(model, state):
    return all(model.state_dict()[k].equal(v) for k, v in state.items())


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "backbone.",
        "encoder.",
        "_orig_mod.",
        "model.",
        "module.encoder.",
        "_orig_mod.module.backbone.",
        "model.model.",
        "image_encoder.body.",
    ],
)
@pytest.mark.parametrize("container", ["", "state_dict", "model", "net", "model_state_dict", "checkpoint.weights"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_wrapping_is_taken_off(tmp_path, prefix, container, suffix):
    held = under(prefix, A)
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(under(f"{container}." if container else "", held), tmp_path / "w.safetensors")
    else:
        for key in reversed(container.split(".") if container else []):
            held = {
                key: held,
                "epoch": 3,
                "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
            }
        torch.save(held, tmp_path / "w.pth")
    model = net()
    loaded = load_weights(model, tmp_path / f"w{suffix}")
    assert (
        holds(model, A)
        and (loaded.used, loaded.missing, loaded.left) == (9, [], [])
        and loaded.network == ".".join(filter(None, (container, prefix.strip("."))))
    )


@pytest.mark.parametrize(("held", "names"), [
    ({"teacher": under("backbone.", A), "student": under("module.backbone.", B)}, ("teacher", "student")),
    ({"model": A, "model_ema": B}, ("model", "model_ema")),
    ({"state_dict": A, "ema_state_dict": under("module.", B)}, ("state_dict", "ema_state_dict")),
    ({"model": under("teacher.backbone.", A) | under("student.backbone.", B)}, ("teacher", "student")),
    (under("module.encoder_q.", A) | under("module.encoder_k.", B), ("encoder_q", "encoder_k")),
    ({"generator": A, "ema": {"shadow": B}}, ("generator", "ema")),
    (A | under("ema.", B), (".", "ema")),
])  # fmt: skip
def test_of_several_networks_one_is_chosen_by_name(tmp_path, held, names):
    torch.save(held | {"loss": {"center": torch.ones(1, 5)}}, tmp_path / "w.pth")
    model = net()
    with pytest.raises(
        DataError, match=rf"w.pth: holds 2 networks that fit, .*{names[0]}.*; choose one as weights=w.pth::"
    ) as e:
        load_weights(model, tmp_path / "w.pth")
    assert names[1] in str(e.value)
    for name, state in zip(names, (A, B)):
        load_weights(model, f"{tmp_path / 'w.pth'}::{name}")
        assert holds(model, state)
    with pytest.raises(DataError, match=r"holds no network 'mean'; it has .*"):
        load_weights(model, f"{tmp_path / 'w.pth'}::mean")
    assert (
        len({weights_identity(f"{tmp_path / 'w.pth'}::{n}") for n in names} | {weights_identity(tmp_path / "w.pth")})
        == 3
    )


def test_no_choice_is_asked_for_where_there_is_none(tmp_path):
    for held in ({"model": A, "state_dict": {k: v.clone() for k, v in A.items()}}, {"generator": A, "discriminator": net(0, 7).state_dict()},
                 {"student": net(0, 2).state_dict(), "teacher": A}):  # fmt: skip
        torch.save(held, tmp_path / "w.pth")
        model = net()
        load_weights(model, tmp_path / "w.pth")
        assert holds(model, A)
    (tmp_path / "odd::name.pth").write_bytes((tmp_path / "w.pth").read_bytes())
    assert load_weights(net(), tmp_path / "odd::name.pth").source == "odd::name.pth"


class Module(nn.Module):
    pass


class Launch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_settings_beside_the_weights_are_left_out_and_nothing_runs(tmp_path):
    settings = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x")),
        "best": np.float64(0.9),
        "names": collections.defaultdict(list, a=[1]),
        "more": types.SimpleNamespace(a=1),
    }
    for old in (False, True):
        torch.save(
            {"model": A} | (settings if not old else {"args": settings["args"], "best": settings["best"]}),
            tmp_path / "w.pth",
            _use_new_zipfile_serialization=not old,
        )
        model = net()
        load_weights(model, tmp_path / "w.pth")
        assert holds(model, A)
    for thing, named in (
        (Launch(tmp_path / "ran"), "builtins.getattr"),
        (Module(), "test_features_weights.Module"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ):
        torch.save({"model": A, "x": thing}, tmp_path / "w.pth")
        with pytest.raises(UnsafeFileError, match=rf"w.pth: holds objects of .*{named}"):
            load_weights(net(), tmp_path / "w.pth")
        assert not (tmp_path / "ran").exists()
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    with pytest.raises(DataError, match=r"s.pt: is a TorchScript program"):
        load_weights(net(), tmp_path / "s.pt")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut.pth: "):
        load_weights(net(), tmp_path / "cut.pth")
    with pytest.raises(FileNotFoundError, match=r"absent.pth: no such file"):
        load_weights(net(), f"{tmp_path / 'absent.pth'}::teacher")


@pytest.mark.parametrize(("change", "told"), [
    (lambda s: {k: v for k, v in s.items() if k != "2.0.bias"}, "weights do not fit: matches 8 of 9 tensors; the file lacks 2.0.bias"),
    (lambda s: s | {"2.0.bias": torch.ones(7)}, r"matches 8 of 9 tensors; the file has another shape in 2.0.bias \(7,\) for \(2,\)"),
    (lambda s: s | {"2.1.weight": torch.ones(7)}, "matches 9 of 9 tensors; the model does not know 2.1.weight"),
    (lambda s: {k: v for k, v in list(s.items())[:4]}, "matches 4 of 9 tensors; under half, so it is of another network; the file lacks"),
    (lambda s: net(0, 9).state_dict(), "matches 2 of 9 tensors; under half"),
    (lambda s: {"x": torch.ones(1)}, "matches 0 of 9 tensors; under half"),
    (lambda s: {"epoch": 3}, "holds no tensors by name"),
])  # fmt: skip
def test_what_fits_in_part_is_refused_and_counted(tmp_path, change, told):
    save_tensors(tmp_path / "w.pt", {"model": change(dict(A))})
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DataError, match=f"w.pt: .*{told}"):
        load_weights(model, tmp_path / "w.pt")
    assert holds(model, before)


def test_what_is_beside_the_network_is_counted_and_said(tmp_path, recwarn):
    torch.save(A | {"head.weight": torch.ones(2)}, tmp_path / "w.pth")
    loaded = load_weights(net(), tmp_path / "w.pth")
    assert (
        loaded.left == ["head.weight"]
        and not recwarn
        and str(loaded) == "w.pth: 9 tensors used, missing none, left over 1 (head.weight)"
    )
    torch.save({k: v for k, v in A.items() if "num_batches" not in k} | {"queue": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.warns(
        Notice, match=r"w.pth: 8 tensors used, missing 1 \(1.num_batches_tracked\), left over 1 \(queue\)"
    ):
        load_weights(net(), tmp_path / "w.pth")


def test_every_door_takes_wrapped_checkpoints(tmp_path):
    name = "timm:vit_tiny_patch16_224?depth=1"
    tiny, other = (create_backbone(name, "random", 64).model.state_dict() for _ in range(2))
    torch.save(
        {
            "teacher": under("module.backbone.", tiny),
            "student": under("module.backbone.", other),
            "args": argparse.Namespace(),
        },
        tmp_path / "dino.pth",
    )
    with pytest.raises(DataError, match=r"dino.pth: holds 2 networks that fit, teacher, student"):
        create_backbone(name, tmp_path / "dino.pth", 64)
    made = {n: create_backbone(name, f"{tmp_path / 'dino.pth'}::{n}", 64) for n in ("teacher", "student")}
    assert holds(made["teacher"].model, tiny) and holds(made["student"].model, other)
    assert made["teacher"].spec.weights == "dino.pth::teacher" != made[
        "student"
    ].spec.weights and "tensors used" in repr(made["teacher"])

    from anomaly_nb.segmentation.models import build_model

    encoder = build_model("unet:resnet18", ("a", "b")).network.encoder.state_dict()
    torch.save(
        {
            "state_dict": under("model.encoder.", encoder) | {"model.fc.weight": torch.ones(2)},
            "args": argparse.Namespace(),
        },
        tmp_path / "street.ckpt",
    )
    model = build_model("unet:resnet18", ("a", "b"), tmp_path / "street.ckpt")
    assert holds(model.network.encoder, encoder) and model.weights_report["network"] == "state_dict.model.encoder"


def test_clip_reads_wrapped_checkpoints(tmp_path):
    import json

    from anomaly_nb.features.clip import load_clip, tiny_clip_folder
    from anomaly_nb.atoms.tiny_clip import CONFIG
    from anomaly_nb.core.runtime import import_torchvision

    import_torchvision()
    import open_clip

    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG["model_cfg"]))
    open_clip.add_model_config(tmp_path / "tiny.json")
    from safetensors.torch import load_file

    state = load_file(next(tiny_clip_folder().glob("*.safetensors")))
    torch.save({"state_dict": under("module.", state), "args": argparse.Namespace(), "epoch": 1}, tmp_path / "clip.pt")
    assert (
        load_clip("tiny", str(tmp_path / "clip.pt")).sha256
        == load_clip("tiny", str(next(tiny_clip_folder().glob("*.safetensors")))).sha256
    )
    torch.save({"a": torch.ones(1)}, tmp_path / "clip.pt")
    with pytest.raises(DataError, match=r"weights do not fit: matches 0 of"):
        load_clip("tiny", str(tmp_path / "clip.pt"))
