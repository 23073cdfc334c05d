"""Layouts as their publishers made them, rebuilt in miniature, and the input that breaks other readers."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_nb.segmentation import open_streets, street_samples
from anomaly_nb.segmentation.augment import Augmentation, rotated, zoom_crop, zoom_window
from anomaly_nb.segmentation.datasets import VOID, images_by_key, resized_labels
from anomaly_nb.segmentation.odgt import bdd_anomaly, street_hazards
from anomaly_nb.segmentation.readers import fishyscapes, road_anomaly, smiyc
from anomaly_nb.segmentation.stored_logits import stored_files


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "images" / "training"  # words that a replace on the whole path would trip over


def hazards(root):
    for part, split, raw in (("train", "training", [[1, 2], [4, 8]]), ("test", "test", [[14, 2], [1, 8]])):
        write(root / part / "images" / split / "t5" / "0.png", np.full((2, 2, 4), 9))  # RGBA, as published
        write(root / part / "annotations" / split / "t5" / "0.png", raw)
        entry = {
            "dbName": "StreetHazards",
            "width": 1280,
            "height": 720,
            "fpath_img": f"{part}/images/{split}/t5/0.png",
            "fpath_segm": f"{part}/annotations/{split}/t5/0.png",
        }
        (root / part / f"{part}.odgt").write_text(json.dumps([entry]))


def test_street_hazards_and_its_void_policies(root):
    hazards(root)
    scene = street_hazards(root, "test")[0]
    assert street_hazards(root, "train").table.num_trained_classes == 13
    assert (
        scene.image.shape == (2, 2, 3)
        and scene.labels.tolist() == [[VOID, 1], [0, 7]]
        and scene.anomaly.tolist() == [[1, 0], [0, 0]]
    )
    assert street_hazards(root, "test", "unlabeled_other")[0].anomaly.tolist() == [[1, 0], [VOID, 0]]
    assert street_hazards(root, "train", "other")[0].anomaly.tolist() == [[0, 0], [VOID, 0]]
    with pytest.raises(ValueError, match="choose one of"):
        street_hazards(root, "test", "some")
    (root / "test" / "annotations" / "test" / "t5" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match="is in the list but not below"):
        street_hazards(root, "test")


def test_bdd_anomaly(root):
    write(root / "images" / "a.jpg", np.zeros((1, 4, 3)))
    write(root / "seg" / "a_train_id.png", [[1, 2, 17, 19]])
    (root / "anom.odgt").write_text(json.dumps([{"fpath_img": "images/a.jpg", "fpath_segm": "seg/a_train_id.png"}]))
    scene = bdd_anomaly(root, "test")[0]
    assert scene.labels.tolist() == [[VOID, 0, 15, VOID]] and scene.anomaly.tolist() == [[VOID, 0, 0, 1]]


def test_evaluation_only_sets(root):
    write(root / "smiyc" / "images" / "a.png", np.zeros((2, 2, 3)))
    write(root / "smiyc" / "images" / "hidden.webp", np.zeros((2, 2, 3)))
    write(root / "smiyc" / "labels_masks" / "a_labels_semantic.png", [[0, 1], [255, 0]])
    data = smiyc(root / "smiyc")
    assert data.keys == ["a"] and "1 image without public labels" in data.notes[0]
    assert data[0].anomaly.tolist() == [[0, 1], [VOID, 0]] and (data[0].labels == VOID).all()
    write(root / "ra" / "frames" / "x.jpg", np.zeros((2, 2, 3)))
    write(root / "ra" / "frames" / "x.labels" / "labels_semantic.png", [[0, 2], [0, 0]])
    assert road_anomaly(root / "ra")[0].anomaly.sum() == 1


def test_fishyscapes_overlays_are_added(root):
    write(root / "city" / "frankfurt" / "frankfurt_000000_000294_leftImg8bit.png", np.full((2, 2, 3), 200))
    write(root / "fs" / "0003_frankfurt_000000_000294_labels.png", [[0, 1], [255, 0]])
    np.savez(root / "fs" / "0003_frankfurt_000000_000294_rgb.npz", rgb=np.full((2, 2, 3), 100, np.int16))
    data = fishyscapes(root / "fs", root / "city")
    assert data.name == "fishyscapes_static" and (data[0].image == 255).all() and data[0].anomaly.sum() == 1 + VOID
    assert (pickle.loads(pickle.dumps(data))[0].image == 255).all()  # as processes that read ahead are sent it
    with pytest.raises(FileNotFoundError, match="frankfurt_000000_000294_leftImg8bit"):
        fishyscapes(root / "fs", root / "fs")


def test_fishyscapes_lost_and_found_needs_no_overlay(root):
    write(root / "laf" / "test" / "04_Maurener_Weg_8_000000_000030_leftImg8bit.png", np.full((2, 2, 3), 7))
    write(root / "fs" / "0000_04_Maurener_Weg_8_000000_000030_labels.png", [[0, 1], [255, 0]])
    data = fishyscapes(root / "fs", root / "laf")
    assert (
        data.name == "fishyscapes_lost_and_found"
        and (data[0].image == 7).all()
        and data[0].anomaly.tolist() == [[0, 1], [VOID, 0]]
    )


def test_scenes_come_in_natural_order_and_no_key_has_two_files(root):
    for i in (10, 2, 1):
        write(root / "images" / f"s{i}.png", np.full((2, 2, 3), i))
        write(root / "labels_masks" / f"s{i}_labels_semantic.png", [[0, 1], [0, 0]])
    assert smiyc(root).keys == ["s1", "s2", "s10"] and smiyc(root)[2].image.max() == 10
    write(root / "images" / "s2.bmp", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"s2\.(bmp|png): has the key of s2\.(bmp|png); keep the one that is meant"):
        smiyc(root)


def test_fishyscapes_with_two_images_of_one_name(root):
    for split in ("train", "test"):
        write(root / "laf" / split / "04_x_leftImg8bit.png", np.full((2, 2, 3), 7))
    write(root / "fs" / "0000_04_x_labels.png", [[0, 1], [255, 0]])
    with pytest.raises(ValueError, match=r"0000_04_x_labels\.png: .* may both be its image"):
        fishyscapes(root / "fs", root / "laf")
    assert fishyscapes(root / "fs", root / "laf" / "test")[0].anomaly.tolist() == [[0, 1], [VOID, 0]]


def test_ids_outside_the_table_name_the_file(root):
    hazards(root)
    write(root / "test" / "annotations" / "test" / "t5" / "0.png", [[14, 2], [0, 8]])
    with pytest.raises(ValueError, match=r"0\.png: label ids \[0\] are not in the label table"):
        street_hazards(root, "test")[0]
    write(root / "test" / "annotations" / "test" / "t5" / "0.png", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="one channel"):
        street_hazards(root, "test")[0]


def test_truncated_png(root):
    hazards(root)
    path = root / "test" / "images" / "test" / "t5" / "0.png"
    write(path, np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"0\.png: damaged or not an image"):
        street_hazards(root, "test")[0]


def test_samples_by_name_and_size():
    data = open_streets("samples", split="test", size=(32, 48), held_out=["car"], count=3)
    assert len(data) == 3 and data[0].image.shape == (32, 48, 3) and "car" not in data.table.names
    assert 6 in data.table.anomaly and np.array_equal(data[1].image, street_samples("test", 3, (32, 48))[1].image)


@pytest.mark.parametrize("zoom", [0.6, 0.75, 1.0, 1.3, 1.7, 2.0, 3.0])
def test_a_target_appears_zoom_times_its_size(zoom):
    labels = torch.zeros(900, 1200, dtype=torch.uint8)
    labels[400:480, 560:660] = 1  # 80 high, 100 wide
    _, cut = zoom_crop(torch.zeros(3, 900, 1200, dtype=torch.uint8), labels, (512, 512), zoom)
    assert abs(int(cut.any(0).sum()) - 100 * zoom) <= 2 and abs(int(cut.any(1).sum()) - 80 * zoom) <= 2


def test_windows_of_the_log():
    assert [zoom_window((1280, 2048), (512, 512), zoom) for zoom in (2.0, 1.0, 0.5)] == [
        (256, 256),
        (512, 512),
        (1024, 1024),
    ]
    assert zoom_window((720, 1280), (512, 512), 0.5) == (720, 720)  # no more than there is, and no padding


def test_zoom_is_drawn_over_the_whole_range():
    image, labels = np.zeros((1100, 1100, 3), np.uint8), np.zeros((1100, 1100), np.uint8)
    labels[:, np.arange(1100) % 100 < 10] = 1  # a stripe every 100 pixels: their distance measures the zoom
    found = []
    for seed in range(60):
        _, cut = Augmentation(flip=False, colour=0, blur=0)(image, labels, (512, 512), seed)
        starts = np.flatnonzero(np.diff(cut[200].numpy().astype(int)) > 0)
        if len(starts) > 1:
            found.append(np.diff(starts).mean() / 100)
    assert min(found) < 0.6 and max(found) > 1.7 and 0.8 < np.exp(np.mean(np.log(found))) < 1.25


def test_cityscapes_and_lost_and_found_as_published(root):
    for split, city, frame in (("train", "aachen", "000000"), ("val", "ulm", "000001")):
        name = f"{city}_{frame}_000019"
        write(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", np.zeros((2, 3, 3)))
        write(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", [[7, 33, 0], [26, 4, 23]])
        write(root / "gtFine" / split / city / f"{name}_gtFine_color.png", np.zeros((2, 3, 3)))
        write(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", [[7, 33, 0], [26, 4, 23]])
    data = open_streets("cityscapes", root, "train", ["bicycle"])
    assert data.keys == ["aachen/aachen_000000_000019"] and data[0].labels.tolist() == [[0, VOID, VOID], [13, VOID, 10]]
    assert data[0].anomaly.tolist() == [[0, 1, VOID], [0, VOID, 0]]
    write(root / "gtCoarse" / "val" / "ulm" / "ulm_000001_000019_gtCoarse_labelIds.png", [[0, 1, 1], [2, 40, 255]])
    assert open_streets("lost_and_found", root, "val")[0].anomaly.tolist() == [[VOID, 0, 0], [1, 1, VOID]]
    with pytest.raises(FileNotFoundError, match="gtFine/test"):
        (root / "leftImg8bit" / "test").mkdir()
        open_streets("cityscapes", root, "test")


def test_ids_given_by_hand(root):
    write(root / "images" / "a.png", np.zeros((2, 2, 3)))
    write(root / "labels_masks" / "a.png", [[0, 2], [255, 1]])
    data = open_streets("smiyc", root, anomaly_ids=[2], ignore_ids=[255])
    assert (
        data[0].anomaly.tolist() == [[0, 1], [VOID, 0]]
        and data.identity["labels"] != open_streets("smiyc", root).identity["labels"]
    )
    assert open_streets("road_anomaly", root, ignore_ids=[1, 255])[0].anomaly.tolist() == [[0, 1], [VOID, VOID]]
    with pytest.raises(ValueError, match="two roles"):
        open_streets("smiyc", root, anomaly_ids=[2, 255], ignore_ids=[255])
    with pytest.raises(ValueError, match="all of 0 to 255"):
        open_streets("smiyc", root, anomaly_ids=[300])


def test_classes_of_several_raw_ids(root):
    write(root / "test" / "images" / "a.png", np.zeros((2, 2, 3)))
    write(root / "test" / "labels" / "a.png", [[1, 2], [3, 9]])
    (root / "classes.json").write_text(json.dumps({"classes": {"flat": [1, 2], "car": 3}, "anomaly": [9]}))
    assert open_streets("folder", root)[0].labels.tolist() == [[0, 0], [1, VOID]] and open_streets("folder", root)[
        0
    ].anomaly.tolist() == [[0, 0], [0, 1]]
    (root / "classes.json").write_text(json.dumps({"classes": {}, "anomaly": [9], "normal": [1, 2, 3]}))
    assert open_streets("folder", root)[0].anomaly.tolist() == [[0, 0], [0, 1]]
    with pytest.raises(ValueError, match="are trained classes"):
        (root / "classes.json").write_text(json.dumps({"classes": {"flat": [1, 2], "car": 3}, "anomaly": [9]}))
        open_streets("folder", root, anomaly_ids=[3])


def test_checkpoints_of_jupyter_are_no_images_and_no_logits(tmp_path):
    "A notebook that was open in a folder leaves copies of files there, under a hidden folder."
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "town/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    for name in ("a.png.npy", ".ipynb_checkpoints/a.npy", "town/b.npy"):
        np.save(tmp_path / name, np.zeros((3, 6, 8), np.float32))
    assert list(images_by_key(tmp_path)) == ["a", "town/b"]
    assert list(stored_files(tmp_path, (".npy",))) == ["a", "town/b"]


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("augmentation", [Augmentation(scale=None), Augmentation(scale=(1e-3, 1e-3))])
def test_labels_of_training_lie_on_their_image(factor, augmentation):
    ramp = np.tile(2 * np.arange(120, dtype=np.uint8), (60, 1))  # a pixel's value is twice its column
    plain = replace(augmentation, flip=False, colour=0, blur=0)
    image, labels = plain(np.repeat(ramp[..., None], 3, -1), ramp, (60 // factor, 120 // factor), 0)
    aside = (image[0].float() - labels.float())[:, 2:-2]  # an even factor has no middle pixel: half a pixel
    assert aside.abs().max() <= (0 if factor % 2 else 1)
    assert np.array_equal(labels, resized_labels(ramp, tuple(labels.shape)))  # as an evaluation sees them


@pytest.mark.parametrize("angle", [0, 7, 90, 180])
def test_rotated_labels_lie_on_their_image(angle):
    ramp = torch.arange(200, dtype=torch.uint8).repeat(200, 1)
    image, labels = rotated(ramp.float().repeat(3, 1, 1), ramp, angle)
    aside = (image[0] - labels.float())[60:140, 60:140]
    assert aside.abs().max() <= 0.75 and abs(float(aside.mean())) < 0.02
