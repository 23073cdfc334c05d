"""A file of every form people have, made here, and the value that must come out of it."""

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anomaly_nb.core.errors import DataError, MissingFileError
from anomaly_nb.data import (
    IMAGE_SUFFIXES,
    Intensity,
    fit_intensity,
    image_info,
    index_folder,
    inspect_folder,
    read_ids,
    read_image,
    read_index,
    read_mask,
)
from anomaly_nb.data.folder import pair_by_name, place_of
from anomaly_nb.data.images import read_counted
from anomaly_nb.data.inspection import inspection_lines
from anomaly_nb.data.intensity import parse_intensity
from anomaly_nb.data.masks import read_mask_and_rule
from anomaly_nb.features import create_backbone, extract_features, load_features, save_features

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (12, 20), dtype=np.uint8)
RGB = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def save(path, array, mode=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    image.save(path, **how)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.TIFF", "a.bmp", "a.webp", "ein Bild ä.PNG", "a.tga", "a.ppm", "a.jp2"])
def test_eight_bit_colour_is_never_changed(tmp_path, name):
    how = {"lossless": True} if name.endswith("webp") else {"irreversible": False} if name.endswith("jp2") else {}
    path = save(tmp_path / name, RGB, **how)
    assert (read_image(path) == RGB).all() and image_info(path).size == (12, 20) and image_info(path).type == "uint8"
    assert (read_image(path, fit_intensity([path])) == RGB).all()


@pytest.mark.parametrize("form", ["png", "tif"])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "1"])
def test_grey_forms(tmp_path, form, mode):
    if (form, mode) == ("tif", "P"):
        pytest.skip("a TIFF palette of 256 greys is an L image to Pillow")
    path = save(tmp_path / f"a.{form}", GREY, mode)
    expected = np.asarray(Image.fromarray(GREY).convert(mode).convert("L"))
    assert (read_image(path) == expected[..., None]).all()


def test_cmyk_and_colour_palette(tmp_path):
    image = Image.fromarray(RGB).convert("CMYK")
    image.save(tmp_path / "a.tif")
    assert (read_image(tmp_path / "a.tif") == np.asarray(image.convert("RGB"))).all()
    palette = Image.fromarray(RGB).quantize(7)
    palette.save(tmp_path / "p.png")
    assert (read_image(tmp_path / "p.png") == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_black(tmp_path, mode):
    alpha = np.zeros((12, 20), np.uint8)
    alpha[3:6] = 255
    base = np.dstack([RGB, alpha]) if mode == "RGBA" else np.dstack([GREY, alpha])
    path = save(tmp_path / "a.png", base)
    found, colour = read_image(path), RGB if mode == "RGBA" else np.repeat(GREY[..., None], 3, 2)
    assert (found[3:6] == colour[3:6]).all() and (found[:3] == 0).all()
    opaque = save(tmp_path / "b.png", np.dstack([RGB, np.full_like(alpha, 255)]))
    assert (read_image(opaque) == RGB).all()


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_upright(tmp_path, form, turn):
    scene = np.zeros((40, 60, 3), np.uint8)
    scene[:20, :30] = (250, 10, 10)
    scene[20:, 30:] = (10, 10, 250)
    undo = {
        1: [],
        2: ["FLIP_LEFT_RIGHT"],
        3: ["ROTATE_180"],
        4: ["FLIP_TOP_BOTTOM"],
        5: ["TRANSPOSE"],
        6: ["ROTATE_90"],
        7: ["TRANSVERSE"],
        8: ["ROTATE_270"],
    }
    stored = Image.fromarray(scene)
    for step in undo[turn]:
        stored = stored.transpose(getattr(Image.Transpose, step))
    exif = Image.Exif()
    exif[0x0112] = turn
    how = {"tiffinfo": {274: turn}} if form == "tif" else {"exif": exif}
    stored.save(tmp_path / f"a.{form}", **how)
    found = read_image(tmp_path / f"a.{form}").astype(int)
    assert image_info(tmp_path / f"a.{form}").size == found.shape[:2] == (40, 60)
    assert np.abs(found - scene).mean() < 6


@pytest.mark.parametrize("turn", range(1, 9))
def test_deep_images_are_upright_too(tmp_path, turn):
    values = np.arange(6 * 4, dtype=np.uint16).reshape(6, 4) * 1000
    undo = {
        1: lambda v: v,
        2: np.fliplr,
        3: lambda v: v[::-1, ::-1],
        4: np.flipud,
        5: lambda v: v.T,
        6: lambda v: np.rot90(v),
        7: lambda v: v[::-1, ::-1].T,
        8: lambda v: np.rot90(v, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.fromarray(np.ascontiguousarray(undo[turn](values)))
    stored.save(tmp_path / "a.png", exif=exif)
    stored.save(tmp_path / "a.tif", tiffinfo={274: turn})
    rule = Intensity("window", 0, 23000, "uint16")
    expected = np.rint(values * (255 / 23000)).astype(np.uint8)
    for name in ("a.png", "a.tif"):
        assert (read_image(tmp_path / name, rule)[..., 0] == expected).all() and image_info(tmp_path / name).size == (
            6,
            4,
        ), name


@pytest.mark.parametrize(("make", "text"), [
    (lambda g: g.astype(np.uint16) * 16, "12 of 16 bits"),
    (lambda g: g.astype(np.uint16) * 257, "16 of 16 bits"),
    (lambda g: g.astype(np.uint16), "8 of 16 bits"),
    (lambda g: g.astype(np.int32) * 257, "16 of 32 bits"),
    (lambda g: g.astype(np.float32) / 255, "float 0..1"),
    (lambda g: g.astype(np.float32), "float 0..255"),
    (lambda g: g.astype(np.float32) * 257, "float 0..65535"),
])  # fmt: skip
def test_depths_are_read_by_one_rule(tmp_path, make, text):
    grey = GREY.copy()
    grey[0, 0] = 255
    path = save(tmp_path / "a.tif", make(grey))
    rule = fit_intensity([path])
    assert rule.text == text
    scale = 4080 / 4095 if text.startswith("12") else 1
    assert (read_image(path, rule)[..., 0] == np.rint(grey * scale)).all()
    assert Intensity.from_dict(rule.to_dict()) == rule


def test_colour_of_16_bits_keeps_its_levels(tmp_path):
    cv2 = pytest.importorskip("cv2")
    deep = rng.integers(0, 4096, (12, 20, 3), dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
        assert image_info(tmp_path / name).type == "uint16"
        rule = fit_intensity([tmp_path / name])
        assert (
            rule.text == "12 of 16 bits" and (read_image(tmp_path / name, rule) == np.rint(deep * (255 / 4095))).all()
        )


def test_unsigned_32_bit_does_not_wrap(tmp_path):
    big = np.array([[0, 2**31 + 5, 2**32 - 1]], np.uint32)
    Image.frombuffer("I", (3, 1), big.tobytes(), "raw", "I", 0, 1).save(tmp_path / "a.tif")
    stored = (tmp_path / "a.tif").read_bytes()
    tag = stored.index(b"\x53\x01\x03\0\x01\0\0\0\x02")  # sample format 2, signed; Pillow writes no other
    (tmp_path / "a.tif").write_bytes(stored[: tag + 8] + b"\x01" + stored[tag + 9 :])
    info = image_info(tmp_path / "a.tif")
    rule = Intensity("full", 0, 2**32 - 1, info.type)
    assert info.type == "uint32" and read_image(tmp_path / "a.tif", rule)[0, :, 0].tolist() == [0, 128, 255]


def test_values_that_mean_nothing_are_refused(tmp_path):
    nan = save(tmp_path / "n.tif", np.array([[0, np.nan]], np.float32))
    low = save(tmp_path / "l.tif", np.array([[-3, 1]], np.float32))
    big = save(tmp_path / "b.tif", np.array([[0, 1e9]], np.float32))
    with pytest.raises(DataError, match=r"n\.tif: 1 NaN or infinite value, the first at \(0, 1\)"):
        fit_intensity([nan])
    with pytest.raises(DataError, match=r"l\.tif: holds negative values"):
        fit_intensity([low])
    with pytest.raises(DataError, match="no customary range"):
        fit_intensity([big])
    plain, deep = save(tmp_path / "8.png", GREY), save(tmp_path / "16.png", GREY.astype(np.uint16) * 9)
    with pytest.raises(
        DataError,
        match=r"16\.png: holds uint16; the training images are of mixed depth \(1 uint16, 2 uint8\), and one rule must read "
        "them all: convert them to one depth, or leave one depth out",
    ):
        fit_intensity([plain, deep, save(tmp_path / "p.png", GREY)])
    for rule in ("window:0,99", "percentile:1,99"):
        with pytest.raises(DataError, match="all training images are 8-bit, which are never changed"):
            fit_intensity([plain], rule)
    assert read_counted(low, fit_intensity([low], "window:0,1"))[1] == 0.5  # -3 is clipped and counted
    assert fit_intensity([big], "percentile:0,100").high == 1e9


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "Auto",
        "window",
        "window:3",
        "window:5,5",
        "window:9,1",
        "window:a,b",
        "percentile:-1,5",
        "percentile:0,101",
        "window:0,inf",
        "full:1,2",
    ],
)
def test_rules_that_are_none(rule):
    with pytest.raises(DataError, match="use auto, full, window"):
        parse_intensity(rule)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n", b"plain text", b"II*\0\xff\xff\xff\xff", b"BM" + b"\0" * 20, b"GIF89a" + b"\xff" * 9],
)
def test_damaged_files_are_one_sentence(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    for reader in (read_image, read_mask, read_ids, image_info):
        with pytest.raises(DataError, match=r"x\.png: damaged or not an image") as e:
            reader(tmp_path / "x.png")
        assert "\n" not in str(e.value)
    with pytest.raises(MissingFileError):
        read_image(tmp_path / "absent.png")


@pytest.mark.parametrize("form", ["png", "jpg", "tif", "bmp", "webp"])
def test_truncated_files_are_refused(tmp_path, form):
    path = save(tmp_path / f"a.{form}", rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match="damaged or not an image"):
        read_image(path)


def test_large_small_linked_and_paged(tmp_path):
    assert read_image(save(tmp_path / "one.png", GREY[:1, :1])).shape == (1, 1, 3)
    assert read_image(save(tmp_path / "large.jpg", np.zeros((4000, 6000, 3), np.uint8))).shape == (4000, 6000, 3)
    (tmp_path / "link.png").symlink_to(tmp_path / "one.png")
    assert read_image(tmp_path / "link.png").shape == (1, 1, 3)
    pages = [Image.fromarray(np.full((5, 5), v, np.uint8)) for v in (10, 20, 30)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "film.gif", save_all=True, append_images=pages[1:])
    for name in ("pages.tif", "film.gif"):
        assert image_info(tmp_path / name).frames == 3 and (read_image(tmp_path / name) == 10).all()
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png: too large to be opened safely"):
        image_info(tmp_path / "bomb.png")


SHAPE = np.zeros((40, 40), bool)
SHAPE[10:20, 10:20] = True
MASKS = {
    "jpeg": ("m.jpg", (SHAPE * 255).astype(np.uint8), {"quality": 50}, "half of the maximum"),
    "grey jpeg": ("m.jpeg", (SHAPE * 128).astype(np.uint8), {"quality": 70}, "half of the maximum"),
    "lossy webp": ("m.webp", (SHAPE * 255).astype(np.uint8), {"quality": 50}, "half of the maximum"),
    "lossless webp": ("l.webp", (SHAPE * 3).astype(np.uint8), {"lossless": True}, "non-zero"),
    "alpha": (
        "a.png",
        np.dstack([np.full(SHAPE.shape, 200, np.uint8)] * 3 + [(SHAPE * 255).astype(np.uint8)]),
        {},
        "alpha",
    ),
    "opaque": (
        "o.png",
        np.dstack([(SHAPE * 9).astype(np.uint8)] * 3 + [np.full(SHAPE.shape, 255, np.uint8)]),
        {},
        "non-zero",
    ),
    "0 and 1": ("z.png", SHAPE.astype(np.uint8), {}, "non-zero"),
    "1 bit": ("b.png", SHAPE, {}, "non-zero"),
    "ids": ("i.png", (SHAPE * 17).astype(np.uint8), {}, "non-zero"),
    "16 bit ids": ("d.png", (SHAPE * 300).astype(np.uint16), {}, "non-zero"),
    "float": ("f.tif", SHAPE.astype(np.float32) * 0.5, {}, "non-zero"),
    "dark blue": (
        "c.png",
        np.dstack([np.zeros(SHAPE.shape, np.uint8)] * 2 + [(SHAPE * 2).astype(np.uint8)]),
        {},
        "non-zero",
    ),
}


@pytest.mark.parametrize("form", MASKS)
def test_masks_of_every_form(tmp_path, form):
    name, array, how, rule = MASKS[form]
    mask, said = read_mask_and_rule(save(tmp_path / name, array, **how), size=(40, 40))
    assert said == rule and mask.sum() == 100 and (mask == SHAPE).all()


def test_deep_values_without_a_rule_are_refused(tmp_path):
    for name, array in {"f.tif": GREY.astype(np.float32), "i.tif": GREY.astype(np.int32) * 300}.items():
        with pytest.raises(DataError, match=f"{name}: holds .*32 values and nothing says what is white"):
            read_image(save(tmp_path / name, array))


@pytest.mark.parametrize(("name", "array"), [("a.jpg", GREY), ("a.png", RGB)])
def test_ids_are_read_from_one_channel_without_loss(tmp_path, name, array):
    with pytest.raises(DataError, match="lossy and blurs ids" if name == "a.jpg" else "one channel of ids"):
        read_ids(save(tmp_path / name, array))


def test_a_mask_of_another_size_is_refused(tmp_path):
    mask = save(tmp_path / "m.png", SHAPE)
    with pytest.raises(DataError, match=r"m\.png: mask is 40 x 40 but its image 40 x 41"):
        read_mask(mask, size=(40, 41))
    with pytest.raises(DataError, match="mask is 40 x 40 but its image 20 x 80"):
        read_mask(mask, size=(20, 80))


def test_inspect_says_what_masks_hold(tmp_path):
    for name, values in {"labels/a.png": [0, 3, 11], "maskannot/b.png": [0, 255], "labels/c.png": [5, 6, 7]}.items():
        save(tmp_path / name, np.array([values, values], np.uint8))
        save(tmp_path / "images" / name.rsplit("/", 1)[1], GREY)
    seen = inspect_folder(tmp_path)
    assert seen["mask_values"] == {"labels": "6 values from 0 to 11", "maskannot": "0, 255"}
    assert {f["folder"]: f["role"] for f in seen["folders"]} == {
        "images": "images",
        "labels": "masks",
        "maskannot": "masks",
    }
    assert "masks in maskannot hold 0, 255" in inspection_lines(seen)


def test_an_empty_lossy_mask_is_empty(tmp_path):
    assert not read_mask(save(tmp_path / "m.jpg", np.zeros((40, 40), np.uint8))).any()


def parts(root, *names):
    for i, name in enumerate(names):
        save(root / name, np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8))


GOOD = [f"good/{i}.png" for i in range(10)]


@pytest.mark.parametrize(
    "masks",
    [
        "masks/bad",
        "ground_truth/bad",
        "labels/bad",
        "bad_masks",
        "bad/masks",
        "masks",
        "Ground Truth/bad",
        "mask_bad",
        "bad/gt",
    ],
)
@pytest.mark.parametrize("stem", ["a", "a_mask", "a-mask", "a_GT"])
def test_mask_folders_are_no_defects(tmp_path, masks, stem):
    parts(tmp_path, *GOOD, "bad/a.png", f"{masks}/{stem}.png")
    index = index_folder(tmp_path)
    assert index.defect.value_counts().to_dict() == {"good": 10, "bad": 1}
    assert index.query("label == 1").mask_path.item() == (tmp_path / masks / f"{stem}.png").as_posix()


def test_nesting_is_kept_and_everything_is_counted(tmp_path):
    parts(
        tmp_path, *GOOD, *(f"good/line2/{i}.png" for i in range(10)), "bad/deep/x.png", "loose.png", "unlabelled/u.png"
    )
    (tmp_path / "readme.md").write_text("-")
    index = read_index("folder", tmp_path)
    assert index.defect.value_counts().to_dict() == {"good": 20, "bad/deep": 1, "unknown": 1}
    skipped = index.attrs["census"]["skipped"]
    assert sum(s["files"] for s in skipped.values()) == 2 and "no image (.md)" in skipped


@pytest.mark.parametrize("name", ["bueno", "bon", "A", "2024-05"])
def test_a_normal_folder_of_unknown_name_is_asked_for(tmp_path, name):
    parts(tmp_path, *(f"{name}/{i}.png" for i in range(4)), "stray.png")
    with pytest.raises(DataError, match=f"no folder is clearly normal among {name.lower()}, \\.; name the folder"):
        index_folder(tmp_path)
    assert index_folder(tmp_path, normal=name).label.tolist() == [0] * 4
    assert index_folder(tmp_path, n_train=1.0, normal=name).split.tolist() == ["train"] * 4


def test_mvtec_trees_are_found_from_either_end(tmp_path):
    parts(
        tmp_path / "all" / "cap",
        "train/good/0.png",
        "test/good/0.png",
        "test/hole/0.png",
        "ground_truth/hole/0_mask.png",
    )
    expected = read_index("mvtec", tmp_path / "all", "cap")
    for found in (read_index("mvtec", tmp_path / "all" / "cap"), read_index("folder", tmp_path / "all" / "cap")):
        assert found.equals(expected)
    parts(tmp_path / "all" / "nut", "train/good/0.png")
    with pytest.raises(DataError, match="use dataset=mvtec, or root="):
        read_index("folder", tmp_path / "all")


def test_the_same_image_in_training_and_test_is_said(tmp_path):
    parts(tmp_path, "train/good/a.png", "train/good/b.png", "test/good/c.png")
    (tmp_path / "test/good/copy.png").write_bytes((tmp_path / "train/good/a.png").read_bytes())
    census = read_index("folder", tmp_path).attrs["census"]
    assert census["n_in_train_and_test"] == 1 and census["in_train_and_test"][0][1].endswith("copy.png")


def test_masks_that_may_belong_to_two_images_and_strays_are_named(tmp_path):
    parts(tmp_path, *GOOD, "crack/0.png", "cut/0.png", "masks/0.png")
    with pytest.raises(
        DataError, match=r"masks.0\.png: may belong to .*crack.0\.png and .*cut.0\.png, which have the same stem"
    ):
        index_folder(tmp_path)
    (tmp_path / "cut/0.png").unlink()
    parts(tmp_path, "loose.png", "ground_truth/0_mask.png")
    with pytest.raises(DataError, match=r"crack.0\.png: has two masks, .*; keep one, or join them"):
        index_folder(tmp_path)
    (tmp_path / "masks/0.png").unlink()
    parts(tmp_path, "masks/lost.png")
    with pytest.raises(DataError, match=r"masks.lost\.png: a mask without an image \(1 such\)"):
        index_folder(tmp_path)
    (tmp_path / "masks/lost.png").unlink()
    parts(tmp_path / "two", "good/0.png", "ok/1.png")
    with pytest.raises(DataError, match="holds good and ok; keep one folder of normal images, or say normal=good,ok"):
        index_folder(tmp_path / "two")
    shutil.rmtree(tmp_path / "two")
    index = read_index("folder", tmp_path)
    assert len(index) == 11 and {why: s["files"] for why, s in index.attrs["census"]["skipped"].items()} == {
        "beside the folders of types; move it into one": 1
    }


@given(
    st.lists(st.text("ab01_ü ", min_size=1, max_size=4).map(str.strip).filter(bool), unique=True, max_size=8),
    st.randoms(),
)
def test_pairing_does_not_depend_on_order(stems, random):
    from pathlib import Path

    root = Path("r")
    images = [place_of(root / "bad" / f"{s}.png", root) for s in stems]
    masks = [place_of(root / "masks" / "bad" / f"{s}.png", root) for s in stems]
    pairs, lone = pair_by_name(images, random.sample(masks, len(masks)))
    assert not lone and {i.stem: m.stem for i, m in pairs.items()} == {s: s for s in stems}


def test_features_keep_their_rule(tmp_path):
    for i in range(4):
        save(tmp_path / "good" / f"{i}.png", rng.integers(0, 4096, (32, 32), dtype=np.uint16))
    index = read_index("folder", tmp_path, n_train=3)
    features = extract_features(index, create_backbone("filters", None, 32))
    assert features.intensity.text == "12 of 16 bits"
    save_features(tmp_path / "f", "part", features)
    assert load_features(tmp_path / "f", "part").intensity == features.intensity


def test_the_same_images_in_three_depths_give_the_same_features(tmp_path):
    grey = rng.integers(0, 256, (5, 32, 32), dtype=np.uint8)
    grey[:, 0, 0] = 255
    found = {}
    for form, make in {
        "png": lambda g: g,
        "tif": lambda g: g.astype(np.uint16) * 257,
        "tiff": lambda g: g.astype(np.float32) / 255,
    }.items():
        for i, g in enumerate(grey):
            save(tmp_path / form / "good" / f"{i}.{form}", make(g))
        found[form] = extract_features(
            read_index("folder", tmp_path / form, n_train=4), create_backbone("filters", None, 32)
        ).patches
    assert (found["png"] == found["tif"]).all() and (found["png"] == found["tiff"]).all()


def test_clipped_values_are_said(tmp_path):
    save(tmp_path / "train/good/a.png", np.full((32, 32), 900, np.uint16))
    save(tmp_path / "test/good/b.png", np.full((32, 32), 3000, np.uint16))
    index = read_index("folder", tmp_path)
    assert index.attrs["intensity"]["text"] == "10 of 16 bits"
    with pytest.warns(
        UserWarning, match=r"1 of 2 images with values outside 10 of 16 bits, clipped; most in .*b\.png, 100\.00 %"
    ):
        extract_features(index, create_backbone("filters", None, 32))


def test_an_image_of_another_depth_is_refused_by_name(tmp_path):
    save(tmp_path / "train/good/a.png", np.full((32, 32), 900, np.uint16))
    save(tmp_path / "test/good/b.png", GREY)
    with pytest.raises(
        DataError, match=r"b\.png: holds uint8 values, but the data set's intensity rule is '10 of 16 bits'"
    ):
        extract_features(read_index("folder", tmp_path), create_backbone("filters", None, 32))


def test_inspect_names_what_pillow_does_not_read(tmp_path):
    parts(tmp_path, *GOOD)
    for name in ("plot.eps", "data.h5", "film.mp4", "mask.npy", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    seen = inspect_folder(tmp_path)
    assert seen["images"] == 10 and sum(s["files"] for s in seen["skipped"].values()) == 5
    assert not {".eps", ".h5", ".mp4"} & IMAGE_SUFFIXES


@pytest.mark.parametrize(("columns", "line", "error"), [
    ("image_path,split,label", "good/0.png,train,0", None),
    ("path,split", "good/0.png,train", "line 1: no column .image_path."),
    ("image_path,split,label", "good/0.png,dev,0", "line 2: split 'dev'"),
    ("image_path,split,label", "good/0.png,train,yes", "line 2: split 'train', label 'yes'"),
])  # fmt: skip
def test_a_table_gives_the_split(tmp_path, columns, line, error):
    parts(tmp_path, *GOOD)
    (tmp_path / "my.csv").write_text(f"{columns}\n{line}\n")
    if error is None:
        assert read_index("csv", tmp_path / "my.csv").split.tolist() == ["train"]
    else:
        with pytest.raises(DataError, match=error):
            read_index("csv", tmp_path / "my.csv")


def test_names_of_a_table_stay_text(tmp_path):
    parts(tmp_path, "01/1.0.png")
    (tmp_path / "my.csv").write_text("image_path,split,label,category,defect\n01/1.0.png,train,0,01,NA\n")
    index = read_index("csv", tmp_path / "my.csv")
    assert isinstance(index, pd.DataFrame) and index.category.item() == "01" and index.defect.item() == "NA"


def test_a_detector_keeps_its_rule(tmp_path):
    from anomaly_nb.scoring import Detector

    for i in range(6):
        save(tmp_path / "good" / f"{i}.tif", rng.uniform(0, 1, (32, 32)).astype(np.float32))
    index = read_index("folder", tmp_path, n_train=1.0)
    fitted = Detector(image_size=32).fit(index)
    loaded = Detector.load(fitted.save(tmp_path / "detector"))
    assert fitted.intensity_.text == loaded.intensity_.text == "float 0..1"
    dark = [save(tmp_path / "new.tif", rng.uniform(0, 0.1, (32, 32)).astype(np.float32)).as_posix()]
    assert fitted.score(dark) == loaded.score(dark) and loaded.score(dark) > fitted.held_out_.max()
    with pytest.raises(DataError, match=r"eight\.png: holds uint8 values"):
        loaded.score([save(tmp_path / "eight.png", GREY).as_posix()])
    fixed = Detector(image_size=32, intensity="window:0,2").fit(index)
    assert fixed.intensity_.text == "window 0..2"


def test_synthetic_anomalies_of_deep_images_are_all_eight_bit(tmp_path):
    from anomaly_nb.scoring import artificial_validation

    for i in range(6):
        save(tmp_path / "good" / f"{i}.png", rng.integers(0, 4096, (32, 32), dtype=np.uint16))
    checks = artificial_validation(read_index("folder", tmp_path, n_train=1.0), tmp_path / "made")
    assert {image_info(p).type for p in checks.image_path} == {"uint8"}


AUROC: dict[str, float] = {}  # of the first depth


@pytest.mark.parametrize("form", ["png8", "png16", "float"])
def test_the_report_gives_the_same_auroc_in_every_depth(tmp_path, form):
    from anomaly_nb.data import draw_sample
    from anomaly_nb.reports import run_report

    make = {
        "png8": lambda a: a,
        "png16": lambda a: a.astype(np.uint16) * 257,
        "float": lambda a: a.astype(np.float32) / 255,
    }[form]
    suffix = {"png8": "png", "png16": "png", "float": "tif"}[form]
    for defect, count in (("good", 16), ("spot", 6), ("crack", 6)):
        for i in range(count):
            grey = np.array(Image.fromarray(draw_sample("granite", defect, i, size=64)[0]).convert("L"))
            grey[0, 0] = 255  # one white pixel, so that 16 bits are seen to be full
            save(tmp_path / "data" / defect / f"{i}.{suffix}", make(grey))
    run = run_report(
        "image_anomaly",
        {
            "dataset": "folder",
            "root": str(tmp_path / "data"),
            "category": "",
            "image_size": 64,
            "cache": str(tmp_path / "c"),
        },
        figures=tmp_path / "f",
        gallery=False,
    )
    assert abs(run.metrics["image_auroc"] - AUROC.setdefault("first", run.metrics["image_auroc"])) < 0.01
