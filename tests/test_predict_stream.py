"""From files to decisions in threads side by side: the same bits as in one, in order, no further ahead than a few
images, with either engine.
"""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_nb.core.device import choose_precision
from anomaly_nb.core.runtime import cpu_threads, import_torchvision, side_by_side
from anomaly_nb.data import read_index, write_samples
from anomaly_nb.data.images import read_image, read_upright
from anomaly_nb.data.intensity import Intensity
from anomaly_nb.features.base import Backbone, BackboneSpec
from anomaly_nb.scoring import Detector, predict_files

MOBILE = "timm:mobilenetv2_100?layers=(2,3)&pool=3"


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    write_samples(folder, n_train=8, n_good=3, n_defect=3, size=96)
    index = read_index("mvtec", folder, "nut")
    import_torchvision()
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model("mobilenetv2_100", num_classes=0).state_dict(), folder / "weights.pth")
    return index, Detector("patchcore", MOBILE, str(folder / "weights.pth"), 64, threshold="quantile:0.8").fit(index)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def rows(found):
    return [[repr(v) for v in p.row().values()] + [p.patch_scores.tobytes(), p.size] for p in found]


@pytest.mark.parametrize("backbone", ["filters", "network"])
def test_side_by_side_gives_the_bits_of_one_thread(line, two_threads, backbone, tmp_path):
    index, detector = line
    if backbone == "filters":
        detector = Detector("knn", "filters", image_size=64, threshold="quantile:0.8").fit(index)
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [*index["image_path"], str(tmp_path / "bad.png"), *index["image_path"][:3]]
    many = rows(predict_files(detector, files, size=3))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert many == rows(predict_files(detector, files)) and [r[0] for r in many] == [repr(f) for f in files]
    torch.set_num_threads(2)
    assert rows(predict_files(detector, files[:1])) == many[:1]


def test_an_endless_stream_is_read_a_few_images_ahead(line, two_threads):
    index, detector = line
    taken = []
    stream = predict_files(
        detector, (taken.append(path) or path for path in itertools.cycle(index["image_path"])), size=2
    )
    for _ in range(5):
        next(stream)
    stream.close()
    assert len(taken) <= 16 and torch.get_num_threads() == 2


def test_onnxruntime_decides_alike(line, two_threads):
    index, detector = line
    torch_rows, fast = (
        list(predict_files(detector, index["image_path"])),
        list(predict_files(detector, index["image_path"], engine="auto")),
    )
    assert [p.anomalous for p in fast] == [p.anomalous for p in torch_rows] and [p.box for p in fast] == [
        p.box for p in torch_rows
    ]
    assert np.allclose([p.score for p in fast], [p.score for p in torch_rows], rtol=1e-4)
    assert list(detector.network().engines) == [1]  # made once, and kept for the next call
    with pytest.raises(ValueError, match="use torch, onnxruntime or auto"):
        next(predict_files(detector, index["image_path"], engine="openvino"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_pillow_image_and_array_are_the_same_input(tmp_path, suffix):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    nets = [Backbone(BackboneSpec("x", 32, resize, 8, mean=mean, std=std)) for resize in ("square", "short", "pad")]
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        image.save(tmp_path / f"x.{suffix}", **({"tiffinfo": {0x0112: turn}} if suffix == "tif" else {"exif": exif}))
        upright, clipped, info = read_upright(tmp_path / f"x.{suffix}")
        array = read_image(tmp_path / f"x.{suffix}")
        assert np.array_equal(np.asarray(upright), array) and info.size == array.shape[:2] and clipped == 0
        for net in nets:
            assert np.array_equal(net.transform(upright), net.transform(array))
    rows = upright.resize((32, upright.height), Image.Resampling.BICUBIC)  # rows first, whatever Pillow would choose
    fitted = np.asarray(rows.resize((32, 32), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    plain = ((fitted - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)
    assert np.array_equal(nets[0].transform(upright), plain)
    with pytest.raises(ValueError, match="mode RGB, got L"):
        nets[0].transform(image.convert("L"))


def test_a_rule_for_deeper_values_refuses_eight_bits(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="holds uint8 values"):
        read_upright(tmp_path / "x.png", Intensity("12 of 16 bits", 0, 4095, "uint16"))


def test_threads_are_given_back_after_an_error():
    before = cpu_threads()
    with pytest.raises(RuntimeError, match="as it should"), side_by_side(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        raise RuntimeError("as it should")
    assert torch.get_num_threads() == before == cpu_threads()


def test_auto_precision_is_never_the_slower_one(monkeypatch):
    from anomaly_nb.core import device

    here = device.capability("cpu")
    assert (choose_precision("auto", "cpu") == "bfloat16") == (here.bfloat16 >= 1.2 * here.float32)
    slow = device.Capability("cpu", "a test's", ("avx2", "amx"), 1, 100e9, 9e9)
    monkeypatch.setattr(device, "_measured", lambda name: slow)
    device._say_emulated.cache_clear()
    assert choose_precision("auto", "cpu") == "float32"
    with pytest.warns(UserWarning, match=r"emulated on this device: a product takes 11\.1 times as long"):
        assert choose_precision("bfloat16", "cpu") == "bfloat16"
    device._say_emulated.cache_clear()
