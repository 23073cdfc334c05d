"""One network as a callable, a file of three types, a transformers folder and a folder of its logits: one table."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from anomaly_nb.cli.main import app
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.runtime import import_torchvision
from anomaly_nb.segmentation import (
    OwnNetwork,
    PixelScorer,
    StoredLogits,
    evaluate,
    load_network,
    results_table,
    street_samples,
)
from anomaly_nb.segmentation.network import IMAGENET

SIZE = (64, 96)
FIGURES = ["auroc", "ap", "fpr95", "f1_oracle"]


@pytest.fixture(scope="module")
def scenes():
    return street_samples("test", 3, size=SIZE)


def normalised(images):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    return (images.float() / 255 - mean) / std


def tables(networks, scenes, methods=("max_logit", "msp", "energy", "entropy")):
    "The table of every network, with the scale of scores taken from the first."
    scorer = PixelScorer(methods).fit(next(iter(networks.values())), scenes, every_pixel=True)
    return {name: results_table(evaluate(n, scorer, scenes), 0)[FIGURES].to_numpy() for name, n in networks.items()}


def store(network, scenes, folder):
    for scene in scenes:
        path = folder / f"{scene.key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, network.see(scene).logits[0].numpy())
    return StoredLogits(folder, scenes.keys)


def all_equal(networks, scenes):
    found = tables(networks, scenes)
    first = next(iter(found.values()))
    assert np.isfinite(first).all() and first[0, 0] not in (0, 1)
    for name, values in found.items():
        assert np.abs(values - first).max() < 1e-5, name


class LogitsOf(nn.Module):
    "A network of transformers as one from a normalised image to logits."

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values):
        return self.network(pixel_values=pixel_values).logits


def segformer():
    "A SegFormer of transformers with random weights."
    import_torchvision()
    transformers = pytest.importorskip("transformers", reason="needs the extra hf (transformers)")
    torch.manual_seed(0)
    sizes = {
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    }
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=5, **sizes)).eval()
    model.decode_head.classifier.weight.data *= (
        5000  # logits as large as trained ones; fresh ones differ by less than the rounding of an entropy
    )
    return model


def test_a_segformer_of_transformers(scenes, tmp_path):
    model = segformer()
    model.save_pretrained(tmp_path / "segformer")
    own = OwnNetwork("callable", lambda x: model(pixel_values=normalised(x)).logits, module=model)
    networks = {
        "callable": own,
        "hf": load_network(f"hf:{tmp_path / 'segformer'}"),
        "logits": store(own, scenes, tmp_path / "logits"),
    }
    try:
        torch.onnx.export(
            LogitsOf(model).eval(),
            (torch.zeros(1, 3, *SIZE),),
            str(tmp_path / "segformer.onnx"),
            input_names=["images"],
            output_names=["logits"],
            dynamo=False,
        )
        networks["onnx"] = load_network(tmp_path / "segformer.onnx")
    except ImportError:  # the extra export is not installed; the other three are compared
        pass
    all_equal(networks, scenes)
    assert networks["hf"].see(scenes[0]).features.shape[1] == 32 and networks["hf"].classes == ()
    model.config.id2label = dict(enumerate(("road", "sky", "car", "person", "wall")))
    model.save_pretrained(tmp_path / "named")
    assert load_network(f"hf:{tmp_path / 'named'}").classes == ("road", "sky", "car", "person", "wall")


def test_classes_of_another_data_set(tmp_path):
    "The command scores a network that knows other classes, and says that there is no mIoU; names of the data give one."
    model, known = segformer(), street_samples("test", 1, size=SIZE).table.names
    for name, classes in (("other", ("road", "sky", "lake", "sea", "sand")), ("same", known)):
        model.config.id2label, head = dict(enumerate(classes)), model.decode_head.classifier
        model.decode_head.classifier = nn.Conv2d(head.in_channels, len(classes), 1)
        model.save_pretrained(tmp_path / name)
        line = f"street evaluate --model hf:{tmp_path / name} --data samples --height 32 --width 48 --panels 0 --resamples 0 --methods energy --out {tmp_path / 'found'} --name {name}"
        result = CliRunner().invoke(app, line.split(), catch_exceptions=False)
        assert result.exit_code == 0 and ("no mIoU" in result.output) == (name == "other"), result.output


def test_an_onnx_file(scenes, tmp_path):
    pytest.importorskip("onnx", reason="needs the extra export (onnx)")
    pytest.importorskip("onnxruntime", reason="needs the extra export (onnxruntime)")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 6, 1)).eval()
    torch.onnx.export(
        net,
        (torch.zeros(1, 3, *SIZE),),
        str(tmp_path / "net.onnx"),
        input_names=["images"],
        output_names=["logits"],
        dynamo=False,
    )
    own = OwnNetwork("callable", lambda x: net(normalised(x)), module=net)
    all_equal(
        {
            "callable": own,
            "onnx": load_network(tmp_path / "net.onnx"),
            "logits": store(own, scenes, tmp_path / "logits"),
        },
        scenes,
    )


class Given(nn.Module):
    "What `from_pretrained` of a stand-in for transformers gives."

    def __init__(self, masks):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.classes, self.masks = (
            nn.Conv2d(3, 12 if masks else 5, 5, 4, 2),
            nn.Parameter(torch.randn(1, 12, 6)),
            masks,
        )

    def forward(self, pixel_values, output_hidden_states=False):
        found = self.net(pixel_values)
        if self.masks:
            return types.SimpleNamespace(
                class_queries_logits=self.classes.expand(len(found), -1, -1), masks_queries_logits=found
            )
        return types.SimpleNamespace(
            logits=found, hidden_states=(found, found[:, :3]) if output_hidden_states else None
        )


def stand_in(monkeypatch, masks):
    "transformers as far as it is used: two loaders that read a local folder."
    made, module = Given(masks), types.ModuleType("transformers")
    for name in ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"):

        def from_pretrained(folder, local_files_only, name=name):
            assert local_files_only and name == (
                "AutoModelForUniversalSegmentation" if masks else "AutoModelForSemanticSegmentation"
            )
            return made

        setattr(module, name, types.SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", module)
    return made


def folder(tmp_path, architecture, **prepared):
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": [architecture], "id2label": {str(i): f"c{i}" for i in range(5)}})
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))
    return f"hf:{tmp_path}"


def test_what_is_asked_of_transformers(scenes, tmp_path, monkeypatch):
    made = stand_in(monkeypatch, masks=False)
    network = load_network(
        folder(tmp_path, "SegformerForSemanticSegmentation", image_mean=[0.5] * 3, image_std=[0.25] * 3)
    )
    image = torch.from_numpy(np.array(scenes[0].image)).permute(2, 0, 1)[None]
    with torch.no_grad():
        by_hand = made((image.float() / 255 - 0.5) / 0.25, True)
    out = network.see(scenes[0])
    whole = nn.functional.interpolate(by_hand.logits, SIZE, mode="bilinear", align_corners=False)
    assert torch.allclose(out.logits, whole, atol=1e-5) and torch.allclose(
        out.features, by_hand.hidden_states[-1], atol=1e-5
    )
    assert network.classes == tuple(f"c{i}" for i in range(5))
    plain = load_network(folder(tmp_path, "SegformerForSemanticSegmentation", image_mean=[0.5] * 3, do_normalize=False))
    with torch.no_grad():
        assert torch.allclose(
            plain(image).logits,
            nn.functional.interpolate(made(image.float() / 255).logits, SIZE, mode="bilinear"),
            atol=1e-5,
        )


def test_masks_of_transformers(scenes, tmp_path, monkeypatch):
    made = stand_in(monkeypatch, masks=True)
    network = load_network(folder(tmp_path, "Mask2FormerForUniversalSegmentation"))
    assert network.classes == () and network.see(scenes[0]).logits.shape == (1, 5, *SIZE)
    own = OwnNetwork(
        "masks", lambda x: {"pred_logits": made.classes, "pred_masks": made.net(normalised(x))}, module=made
    )
    found = tables({"own": own, "hf": network}, scenes, ("max_logit", "rba", "mask2anomaly", "eam"))
    assert np.abs(found["own"] - found["hf"]).max() < 1e-5
    with pytest.raises(ValueError, match="OneFormer takes a task"):
        load_network(folder(tmp_path, "OneFormerForUniversalSegmentation"))


OWN = """
import numpy as np
import torch

WEIGHT = torch.nn.Parameter(torch.ones(1, 3, 1, 1))


def trained():
    def call(images):
        torch.set_grad_enabled(True)
        return (images.float() * WEIGHT, images.float() * WEIGHT)
    return call


def wants(classes):
    return trained()


def broken():
    def call(images):
        raise RuntimeError("boom\\nand more")
    return call


def broken_at_once():
    return {}["weights"]


def arrays():
    return lambda images: np.zeros((1, 3, 8, 8), np.float32)


def odd_features():
    return lambda images: (images.float(), [1, 2])


number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(OWN)
    (tmp_path / "half_written.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("my_nets", "half_written"):
        sys.modules.pop(name, None)


FAULTS = {
    "my_nets:wants": "my_nets:wants: TypeError: wants() missing 1 required positional argument: 'classes'; name a "
    "function that returns the network, and needs no arguments",
    "my_nets:broken": "test/0000: my_nets:broken: RuntimeError: boom (my_nets.py, line 21)",
    "my_nets:broken_at_once": "my_nets:broken_at_once: KeyError: 'weights' (my_nets.py, line 26)",
    "my_nets:arrays": "it must give logits as a torch tensor (B, C, h, w) of at least 2 classes",
    "my_nets:odd_features": "my_nets:odd_features: features are list; they must be a torch tensor (B, D, h, w)",
    "my_nets:number": "my_nets:number: TypeError: 'int' object is not callable; name a function",
    "half_written:build": "half_written:build: SyntaxError: invalid syntax (half_written.py, line 1)",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_ones_own_code_is_one_line_with_its_type_and_place(own_module, name):
    result = CliRunner().invoke(app, ["street", "evaluate", "--model", name, "--data", "samples", "--panels", "0"])
    assert isinstance(result.exception, DataError), result.exception
    assert FAULTS[name] in str(result.exception) and "\n" not in str(result.exception)


def test_a_network_that_keeps_gradients_is_scored(own_module, scenes):
    network = load_network("my_nets:trained")
    out = network.see(scenes[0])
    assert not out.logits.requires_grad and not out.features.requires_grad
    scorer = PixelScorer(("max_logit", "msp")).fit(network, scenes, every_pixel=True)
    assert set(scorer.score(out)) == {"max_logit", "msp"}
    out = out._replace(logits=out.logits.requires_grad_())  # of somebody's own `see`
    assert scorer.score_one("max_logit", out).ndim == 3
