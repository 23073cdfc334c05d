"""Published layouts, written from random names: what comes back is what was written, and every damage is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_nb.cli.main import LAYOUTS as named_in_help
from anomaly_nb.core.errors import DataError
from anomaly_nb.data import LAYOUTS, headers, loco_regions, read_index, read_mask
from anomaly_nb.metrics import spro

ENDINGS = (".png", ".jpg", ".bmp", ".JPG", ".tiff")
TREES = {  # layout -> normal folders (with their split), anomalous folder, mask folder, mask suffix
    "mvtec": ({"train/good": "train", "test/good": "test"}, "test/crack", "ground_truth/crack", "_mask"),
    "mvtec_ad2": (
        {"train/good": "train", "validation/good": "validation", "test_public/good": "test"},
        "test_public/bad",
        "test_public/ground_truth/bad",
        "_mask",
    ),
    "btad": ({"train/ok": "train", "test/ok": "test"}, "test/ko", "ground_truth/ko", ""),
    "mpdd": ({"train/good": "train", "test/good": "test"}, "test/hole", "ground_truth/hole", "_mask"),
    "visa": ({"1cls/train/good": "train", "1cls/test/good": "test"}, "1cls/test/bad", "1cls/ground_truth/bad", ""),
}


def draw_image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (5, 4), value).save(path)
    return path


def write_tree(root, layout, rng, count=6):
    "A random data set; returns the mask of each anomalous image."
    normal, anomalous, masks, suffix = TREES[layout]
    below = lambda folder: root / folder.replace("1cls/", "1cls/part/") if layout == "visa" else root / "01" / folder
    for folder in normal:
        for i in range(3):
            draw_image(below(folder) / f"{i:03d}{rng.choice(ENDINGS)}")
    stems = [f"{i:03d}" for i in rng.choice(900, count, replace=False)]
    for stem in stems:
        draw_image(below(anomalous) / f"{stem}{rng.choice(ENDINGS)}")
    return {
        stem: draw_image(below(masks) / f"{stem}{suffix}{rng.choice(['.png', '.bmp'])}", int(rng.integers(1, 256)))
        for stem in rng.permutation(stems)
    }


@pytest.mark.parametrize("layout", TREES)
@pytest.mark.parametrize("seed", range(3))
def test_trees_are_paired_by_stem_whatever_the_ending(tmp_path, layout, seed):
    masks = write_tree(tmp_path, layout, np.random.default_rng(seed))
    index = read_index(layout, tmp_path)
    bad = index.query("label == 1")
    assert {Path(i).stem: m for i, m in zip(bad.image_path, bad.mask_path)} == {
        k: p.as_posix() for k, p in masks.items()
    }
    assert all(read_mask(m, t).all() for m, t in zip(bad.mask_path, bad.mask_threshold))
    normal = TREES[layout][0]
    assert index.query("label == 0").split.value_counts().to_dict() == dict.fromkeys(normal.values(), 3)
    assert (index.query("label == 0").mask_path == "").all() and set(index.category) == {
        "part" if layout == "visa" else "01"
    }


@pytest.mark.parametrize("layout", TREES)
def test_trees_name_every_lone_partner(tmp_path, layout):
    masks = list(write_tree(tmp_path, layout, np.random.default_rng(9)).values())
    masks[0].unlink()
    draw_image(masks[1].with_name(f"zzz{masks[1].suffix}"))
    with pytest.raises(DataError, match=r"1 image without a mask.*; 1 mask without an image, first .*zzz"):
        read_index(layout, tmp_path)
    assert (read_index(layout, tmp_path, on_missing="keep").query("label == 1").mask_path == "").sum() == 1
    assert len(read_index(layout, tmp_path, on_missing="drop").query("label == 1")) == 5


@pytest.mark.parametrize("layout", TREES)
def test_two_files_of_one_stem_are_refused(tmp_path, layout):
    mask = next(iter(write_tree(tmp_path, layout, np.random.default_rng(4)).values()))
    draw_image(mask.with_suffix(".webp"))
    with pytest.raises(DataError, match="has the same stem as"):
        read_index(layout, tmp_path)


def test_private_images_of_ad2_are_unknown(tmp_path):
    write_tree(tmp_path, "mvtec_ad2", np.random.default_rng(0))
    for name in ("test_private", "test_private_mixed"):
        draw_image(tmp_path / "01" / name / "000_regular.png")
    unknown = read_index("mvtec_ad2", tmp_path).query("label == -1")
    assert (
        unknown.defect.tolist() == ["test_private", "test_private_mixed"]
        and (unknown.mask_path == "").all()
        and (unknown.split == "test").all()
    )


def test_visa_splits_with_anomalous_training_images(tmp_path):
    lines = ["object,split,label,image,mask"]
    for i, (split, label) in enumerate(
        [("train", "normal"), ("train", "anomaly"), ("test", "normal"), ("test", "anomaly")]
    ):
        image, mask = f"pcb1/Data/Images/{i}.JPG", f"pcb1/Data/Masks/Anomaly/{i}.png" if label == "anomaly" else ""
        draw_image(tmp_path / image)
        if mask:
            draw_image(tmp_path / mask, 3)
        lines.append(f"pcb1,{split},{label},{image},{mask}")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/2cls_fewshot.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    index = LAYOUTS["visa"](tmp_path, split="2cls_fewshot")
    assert index.groupby(["split", "label"]).size().to_dict() == {(s, y): 1 for s in ("train", "test") for y in (0, 1)}
    with pytest.raises(FileNotFoundError, match=r"1cls.csv: no such file"):
        read_index("visa", tmp_path)
    (tmp_path / "split_csv/1cls.csv").write_text("object,image\npcb1,x\n")
    with pytest.raises(DataError, match=r"1cls.csv, line 1: no column .split., .label., .mask."):
        read_index("visa", tmp_path)


def test_realiad_lists(tmp_path):
    table = {"meta": {"prefix": "usb/"}, "train": [], "test": []}
    for split, label, count in (("train", "OK", 3), ("test", "OK", 2), ("test", "HS", 2), ("test", "PS", 1)):
        for i in range(count):
            image = f"{label}/S{i:04d}/usb_{split}_{i}_{label}.jpg"
            mask = None if label == "OK" else image.replace(".jpg", ".png")
            table[split].append({"image_path": image, "mask_path": mask, "anomaly_class": label})
            draw_image(tmp_path / "realiad_512/usb" / image)
            if mask:
                draw_image(tmp_path / "realiad_512/usb" / mask, 1)
    folder = tmp_path / "realiad_jsons/realiad_jsons_sv"
    folder.mkdir(parents=True)
    (folder / "usb.json").write_text(json.dumps(table))
    index = LAYOUTS["realiad"](tmp_path, lists="realiad_jsons_sv")
    assert index.groupby(["split", "defect"]).size().to_dict() == {
        ("train", "good"): 3,
        ("test", "good"): 2,
        ("test", "HS"): 2,
        ("test", "PS"): 1,
    }
    (folder / "usb.json").write_text(json.dumps({"meta": {}, "train": [{"image_path": "a.jpg"}], "test": []}))
    with pytest.raises(DataError, match=r"usb.json: expected meta, train and test"):
        LAYOUTS["realiad"](tmp_path, lists="realiad_jsons_sv")


def unnamed(index):
    "How many images the census says that the layout does not name."
    return index.attrs["census"]["skipped"].get("image that the layout does not name", {"files": 0})["files"]


def big(folder, parts, size=(12, 12)):
    "Write the training and test images of several categories, large enough to be read."
    for part in parts:
        for name in ("train/good/0", "train/good/1", "test/good/2", "test/bad/3", "ground_truth/bad/3_mask"):
            path = folder / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", size, 255).save(path)


@pytest.mark.parametrize("name", ["", "nut"])
def test_a_category_behind_a_link_is_read_whole(tmp_path, name):
    big(tmp_path / "there", ["nut", "bolt"])
    (tmp_path / "link").symlink_to(tmp_path / "there" / "nut")
    index = read_index("mvtec", tmp_path / "link", name)
    assert len(index) == 4 and index.attrs["census"]["skipped"] == {}
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "bolt").symlink_to(tmp_path / "there" / "bolt")
    assert unnamed(read_index("mvtec", tmp_path / "top")) == 0
    big(tmp_path / "there" / "nut", ["more"])
    assert unnamed(read_index("mvtec", tmp_path / "link", name)) == 5  # what is truly left over is still counted
    (tmp_path / "there" / "nut" / "test" / "other.png").symlink_to(
        tmp_path / "there" / "nut" / "test" / "good" / "2.png"
    )
    assert unnamed(read_index("mvtec", tmp_path / "link", name)) == 6  # a link to a file is a file of its own


def test_one_category_of_visa_leaves_the_others_alone(tmp_path):
    big(tmp_path / "1cls", ["candle", "pcb1"])
    assert read_index("visa", tmp_path, "candle").attrs["census"]["skipped"] == {}
    big(tmp_path / "1cls" / "candle", ["more"])
    assert unnamed(read_index("visa", tmp_path, "candle")) == 5


def test_one_category_of_realiad_leaves_the_others_alone(tmp_path):
    for part in ("usb", "toy"):
        table = {"meta": {"prefix": f"{part}/"}, "train": [], "test": []}
        for split, label in (("train", "OK"), ("test", "OK"), ("test", "HS")):
            image, mask = f"{label}/S1/{split}.png", f"{label}/S1/{split}_mask.png" if label != "OK" else None
            table[split].append({"image_path": image, "mask_path": mask, "anomaly_class": label})
            for name in filter(None, (image, mask)):
                path = tmp_path / "realiad_512" / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (12, 12), 255).save(path)
        (tmp_path / "realiad_jsons" / "realiad_jsons").mkdir(parents=True, exist_ok=True)
        (tmp_path / "realiad_jsons" / "realiad_jsons" / f"{part}.json").write_text(json.dumps(table))
    assert unnamed(read_index("realiad", tmp_path, "usb")) == 0


def test_an_oversized_mask_is_named(tmp_path, monkeypatch):
    "What a layout raises gets a hint and stays what it is, whatever its class takes to be made."
    for split in ("train", "test"):
        for name, side in (("10.png", 12), ("10_GT.png", 20)):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.new("L", (side, side), 0).save(tmp_path / split / name)
    monkeypatch.setattr(headers, "MAX_PIXELS", 300)
    with pytest.raises(headers.TooLargeError, match=r"10_GT.png: too large to be opened safely \(0.0 megap") as raised:
        read_index("kolektor_sdd2", tmp_path)
    assert raised.value.pixels == 400


def table_of(folder, lines, images=("a.png", "b.png", "c.png")):
    "A CSV of these lines, beside images."
    for name in images:
        Image.new("L", (12, 12), 3).save(folder / name)
    (folder / "my.csv").write_text("image_path,split,label,defect,mask_path\n" + "\n".join(lines) + "\n")
    return folder / "my.csv"


@pytest.mark.parametrize("word", ["good", "Good", "OK", "normal", "no defect", "defect-free"])
def test_a_defect_that_is_none_is_normal_in_a_table_as_in_a_folder(tmp_path, word):
    path = table_of(tmp_path, [f"a.png,train,,{word},", "b.png,test,,scratch,", "c.png,test,,,"])
    index = read_index("csv", path)
    assert index.set_index(index["image_path"].str[-5])["label"].to_dict() == {"a": 0, "b": 1, "c": -1}
    assert index["defect"].tolist() == ["good", "scratch", "unknown"]
    assert any("taken as normal" in note for note in index.attrs["census"]["notes"]) == (word != "good")


@pytest.mark.parametrize(
    ("line", "words"), [("a.png,test,0,scratch,", "label 0 .normal."), ("a.png,test,1,good,", "label 1 .anomalous.")]
)
def test_a_row_that_contradicts_itself_is_refused(tmp_path, line, words):
    with pytest.raises(
        DataError, match=rf"my.csv, line 3: {words} and defect '\w+' contradict each other; correct one"
    ):
        read_index("csv", table_of(tmp_path, ["b.png,train,0,,", line]))


def test_rows_that_name_one_image_twice(tmp_path):
    index = read_index("csv", table_of(tmp_path, ["a.png,train,0,,", "b.png,test,1,,", "./b.png,test,1,,"]))
    assert len(index) == 3
    assert any(
        "1 row of my.csv names an image that an earlier row names, the first b.png in line 4" in note
        for note in index.attrs["census"]["notes"]
    )
    with pytest.raises(DataError, match=r"my.csv, lines 3 and 4: .*b.png has the labels 1 and 0; keep one of them"):
        read_index("csv", table_of(tmp_path, ["a.png,train,0,,", "b.png,test,1,,", "b.png,test,0,,"]))


def test_a_table_names_a_folder_of_masks(tmp_path):
    (tmp_path / "masks" / "b").mkdir(parents=True)
    for i in range(2):
        mask = np.zeros((12, 12), np.uint8)
        mask[i] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / "b" / f"{i}.png")
    index = read_index(
        "csv", table_of(tmp_path, ["a.png,train,0,,", "b.png,test,1,,masks/b", "c.png,test,1,,masks\\b"])
    )
    assert [int(read_mask(m).sum()) for m in index["mask_path"][1:]] == [24, 24]
    with pytest.raises(FileNotFoundError, match=r"masks: is a folder, not a file; line 2 of my.csv names it"):
        read_index("csv", table_of(tmp_path, ["masks,train,0,,"]))


def test_kolektor_reads_no_pickle(tmp_path):
    for i, value in enumerate((0, 255, 0, 1)):
        draw_image(tmp_path / "train" / f"{i}.png")
        draw_image(tmp_path / "train" / f"{i}_GT.png", value)
    draw_image(tmp_path / "test/9.png"), draw_image(tmp_path / "test/9_GT.png")
    (tmp_path / "split_weakly_0.pyb").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    index = read_index("kolektor_sdd2", tmp_path)
    assert index.label.tolist() == [1, 1, 0, 0, 0] and set(index.category) == {"kolektor_sdd2"}


def test_loco_regions_saturate(tmp_path):
    part = tmp_path / "box"
    for name in ("train/good/000", "validation/good/000", "test/good/000", "test/logical_anomalies/007"):
        draw_image(part / f"{name}.png")
    masks = part / "ground_truth/logical_anomalies/007"
    draw_image(masks / "000.png", 9)
    config = [{"defect_name": "a", "pixel_value": 9, "saturation_threshold": 4, "relative_saturation": False}]
    (part / "defects_config.json").write_text(json.dumps(config))
    row = read_index("mvtec_loco", tmp_path).query("label == 1").iloc[0]
    assert read_mask(row.mask_path, row.mask_threshold, (4, 5)).all()
    regions, saturation = loco_regions(row.mask_path)
    normal = np.full((4, 5), -1.0)
    assert saturation == [4] and np.isclose(
        spro([regions, []], [saturation, []], [np.arange(20.0).reshape(4, 5), normal], fpr_limit=1.0), 1
    )
    (part / "defects_config.json").write_text("{}")
    with pytest.raises(DataError, match="holds the values"):
        loco_regions(row.mask_path)
    (masks / "000.png").unlink()
    with pytest.raises(DataError, match="without a mask"):
        read_index("mvtec_loco", tmp_path)


def test_the_command_line_names_every_layout():
    assert named_in_help.split(", ") == list(LAYOUTS)
