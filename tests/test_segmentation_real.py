"""CamVid, RoadAnomaly21 and Fishyscapes Static as they lie on disk; skipped where they are not."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_nb.segmentation import (
    HybridEnergyThresholding,
    PixelScorer,
    build_model,
    evaluate,
    open_streets,
    predict,
    results_table,
)
from anomaly_nb.segmentation.datasets import VOID
from anomaly_nb.segmentation.models import architecture
from anomaly_nb.segmentation.training import segmentation_loss
from bench.metrics import peak_memory
from tests.test_segmentation_scores import heat_by_hand

DATA = Path(os.environ.get("ANOMALY_NB_DATA", "nowhere"))
here = pytest.mark.skipif(not (DATA / "street").is_dir(), reason="ANOMALY_NB_DATA does not name a folder with street/")


@here
def test_camvid_with_a_class_held_out():
    train = open_streets("camvid", DATA / "street/camvid", "train", ["Bicyclist"])
    assert len(train) == 367 and train.table.num_trained_classes == 10 and "Bicyclist" not in train.table.names
    scene = next(s for s in (train[i] for i in range(len(train))) if (s.anomaly == 1).any())
    assert (scene.labels[scene.anomaly == 1] == VOID).all() and scene.image.shape == (360, 480, 3)


@here
def test_given_weights_match_the_encoder():
    weights = DATA / "weights/mobilenetv2_100_imagenet.safetensors"
    model = build_model("deeplabv3plus_mobilenetv2", ("a", "b"), weights, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert model.weights_report["used"] == 306 and all(
        n.startswith(("bn2.", "conv_head.")) for n in model.weights_report["left"]
    )
    with pytest.raises(ValueError, match="weights do not fit"):
        build_model("unet:resnet18", ("a", "b"), weights)


@here
def test_heat_of_a_real_image():
    "360 rows are padded to 368: the formula in float64, statistics included, from the network's own output."
    train = open_streets("camvid", DATA / "street/camvid", "train", ["Bicyclist"]).keep([0, 200, 300])
    torch.manual_seed(0)
    weights = DATA / "weights/mobilenetv2_100_imagenet.safetensors"
    model = build_model("deeplabv3plus_mobilenetv2", train.table.names, weights, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    outputs = [predict(model, scene.image) for scene in train]
    assert outputs[0].extent == (368, 480) and outputs[0].features.shape[-2:] == (23, 30)
    batches = [
        (o.logits * 20, o.features, torch.from_numpy(np.array(s.labels))[None], o.extent)
        for o, s in zip(outputs, train)
    ]  # as large as trained logits
    fitted = HybridEnergyThresholding().fit(batches)
    logits, features, _, extent = batches[0]
    ours = fitted.score(logits, features, extent).numpy()
    theirs = heat_by_hand([[v.numpy() for v in b[:3]] for b in batches], logits.numpy(), features.numpy(), extent)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert min(fitted.terms(logits, features, extent).fractions().values()) > 0.05


@here
def test_smiyc_sets_are_scored_whole():
    torch.manual_seed(0)
    train = open_streets("camvid", DATA / "street/camvid", "train", ["Bicyclist"]).keep(range(3))
    model = build_model("deeplabv3plus_mobilenetv2", train.table.names).eval()
    scorer = PixelScorer(("max_logit", "energy")).fit(model, train)
    data = open_streets("smiyc", DATA / "street/road_anomaly/RoadAnomaly21")
    assert len(data) == 10
    result = evaluate(model, scorer, data.keep(range(2)))
    counted = sum(int((data[i].anomaly != VOID).sum()) for i in range(2))
    histogram = result.histograms["energy"]
    assert histogram.positives + histogram.negatives == counted and np.isnan(result.miou())
    assert results_table(result, 0)["auroc"].between(0, 1).all()


@pytest.mark.skipif(not os.environ.get("ANOMALY_NB_SLOW"), reason="large networks; set ANOMALY_NB_SLOW=1")
@pytest.mark.parametrize("name", ["deeplabv3plus_resnet50", "deeplabv3plus_resnet101", "segformer_b5", "upernet_hiera"])
def test_named_architectures(name):
    """Built, one training step, one image of 512x512, HEAT on its feature layer; printed: parameters, seconds of the
    image, memory.
    """
    torch.manual_seed(0)
    model = build_model(name, ("a", "b", "c"))
    images, labels = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8), torch.randint(0, 3, (2, 96, 128))
    out = model(images)
    assert (
        out.logits.shape == (2, 3, 96, 128)
        and out.auxiliary.shape == out.logits.shape
        and architecture(name).feature_stage is not None
    )
    loss = segmentation_loss(out, labels)
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in model.network.encoder.parameters())
    assert model.last_layer[0].shape == (3, out.penultimate.shape[1])
    model.eval()
    start = time.perf_counter()
    whole = predict(model, np.zeros((512, 512, 3), np.uint8))
    seconds = time.perf_counter() - start
    assert whole.logits.shape == (1, 3, 512, 512) and whole.extent == (512, 512)
    heat = HybridEnergyThresholding().fit([(whole.logits, whole.features, torch.zeros(1, 512, 512, dtype=torch.uint8))])
    assert heat.label == "HEAT" and heat.score(whole.logits, whole.features).shape == (1, 512, 512)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"\n{name}: {size:.0f} M parameters, features {tuple(whole.features.shape[1:])}, 512x512 in {seconds:.1f} s, peak {peak_memory():.0f} MB"
    )
