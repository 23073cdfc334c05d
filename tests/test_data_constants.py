"""The rules of reading and making images that a wrong constant, side or seed would break unseen: grey levels, masks,
synthetic anomalies and drawn trays, on images of a few pixels.
"""

import struct

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.core.errors import DataError
from anomaly_nb.data import intensity
from anomaly_nb.data.headers import image_info, opened_image
from anomaly_nb.data.intensity import fit_intensity
from anomaly_nb.data.masks import mask_rule, read_ids, read_mask, read_mask_and_rule
from anomaly_nb.data.rows import complete_rows
from anomaly_nb.data.samples import draw_sample
from anomaly_nb.data.shapes import draw_tray
from anomaly_nb.data.synthetic import ANOMALY_TYPES, CONTRASTS, synthetic_anomaly
from anomaly_nb.data.values import read_values


@pytest.fixture
def saved(tmp_path):
    "A function that writes an image of these values, and gives its path."

    def write(name, values, dtype=np.uint8, **options):
        Image.fromarray(np.asarray(values, dtype)).save(tmp_path / name, **options)
        return tmp_path / name

    return write


# Grey levels


def test_an_integer_rule_has_room_for_the_highest_value(saved):
    assert fit_intensity([saved("a.png", np.full((16, 16), 4096), np.uint16)]).text == "14 of 16 bits"  # 13 are needed


def test_floats_may_overshoot_their_customary_range(saved):
    "By interpolation: values up to 1.2 are not those of 0 to 255."
    assert fit_intensity([saved("a.tif", np.linspace(0, 1.2, 256).reshape(16, 16), np.float32)]).high == 1


def test_the_full_range_of_floats_ends_at_1(saved):
    floats = np.linspace(0, 0.9, 256).reshape(16, 16)
    assert fit_intensity([saved("a.tif", floats, np.float32)], "full").high == 1


def test_each_percentile_is_taken_as_it_is_given(saved):
    values = np.arange(256).reshape(16, 16) * 4
    rule = fit_intensity([saved("a.png", values, np.uint16)], "percentile:1,90")
    np.testing.assert_allclose((rule.low, rule.high), np.percentile(values, [1, 90]))


@pytest.mark.parametrize("width", [64, 128])
def test_percentiles_are_of_all_columns(saved, monkeypatch, width):
    "Every n-th value is of one column, or of a few, where n and the width have a factor in common."
    monkeypatch.setattr(intensity, "_SAMPLE", 1 << 9)
    values = np.random.default_rng(0).integers(1000, 4000, (width, width))
    values[:, ::2] = 0
    rule = fit_intensity([saved("a.png", values, np.uint16)], "percentile:1,99")
    assert rule.low == 0 and rule.high > 3900
    values[:, 0] = 5000
    assert fit_intensity([saved("b.png", values, np.uint16)] * 4, "percentile:1,90").high < 4000


@pytest.mark.parametrize(("highest", "proposed"), [(121_000, 130_000), (100_000, 100_000), (195_500, 200_000)])
def test_a_window_that_is_proposed_clips_nothing(saved, highest, proposed):
    with pytest.raises(DataError, match=f"such as window:0,{proposed}$"):
        fit_intensity([saved("a.tif", np.linspace(0, highest, 256).reshape(16, 16), np.float32)])


# Masks


def test_a_mask_of_one_level_above_black_is_all_foreground(saved):
    "From half of the maximum on, and from 1: one of zeros is empty."
    for level in (0, 1):
        assert (read_mask(saved("a.jpg", np.full((16, 16), level), quality=100)) == bool(level)).all()


def test_a_mask_begins_at_its_threshold(saved):
    assert read_mask(saved("a.png", [[99, 100, 101]]), 100).tolist() == [[False, True, True]]


def test_whatever_is_not_quite_transparent_belongs_to_a_mask(saved):
    rgba = np.zeros((1, 3, 4))
    rgba[0, :, 3] = 0, 1, 255
    assert read_mask(saved("a.png", rgba)).tolist() == [[False, True, True]]


@pytest.mark.parametrize(("threshold", "area"), [(0, 3), (1, 3), (2, 3), (100, 2), (200, 1)])
def test_a_threshold_counts_for_transparent_masks_too(saved, threshold, area):
    path = saved("m.png", np.dstack([np.zeros((2, 2))] * 3 + [np.array([[0, 50], [128, 255]])]))
    mask, rule = read_mask_and_rule(path, threshold)
    assert mask.sum() == area and rule == mask_rule(path, threshold)
    assert rule == (f"alpha from {threshold}" if threshold > 1 else "alpha")


def big_tiff(path, form, bits, values, order="<", orientation=1):
    "A BigTIFF of one row, of values of this form (1 unsigned, 2 signed, 3 floats)."
    data = np.asarray(values, np.dtype(f"{ {1: 'u', 2: 'i', 3: 'f'}[form] }{bits // 8}").newbyteorder(order)).tobytes()
    short = lambda tag, value: struct.pack(order + "HHQHHHH", tag, 3, 1, value, 0, 0, 0)
    tags = [short(256, len(values)), short(257, 1), short(258, bits), short(259, 1), short(262, 1)]
    tags += [struct.pack(order + "HHQQ", 273, 16, 1, 16), short(274, orientation), short(277, 1), short(278, 1)]
    tags += [struct.pack(order + "HHQQ", 279, 16, 1, len(data)), short(339, form)]
    head = (b"II+\0" if order == "<" else b"MM\0+") + struct.pack(order + "HHQ", 8, 0, 16 + len(data))
    path.write_bytes(head + data + struct.pack(order + "Q", len(tags)) + b"".join(tags) + bytes(8))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_big_tiff_is_looked_at_like_any_tiff(tmp_path, order):
    "Offsets of eight bytes change nothing about what can be read."
    for form, bits, name in ((2, 8, "int8"), (1, 64, "uint64"), (3, 64, "float64"), (3, 16, "float16")):
        with pytest.raises(DataError, match=rf"c.tif: holds {name}, which is not read; convert it to"):
            read_values(big_tiff(tmp_path / "c.tif", form, bits, [1, 1, 2, 0], order))


def test_a_big_tiff_is_read_upright_and_its_damage_is_said(tmp_path):
    assert read_values(big_tiff(tmp_path / "a.tif", 1, 16, [1, 2, 3000])).tolist() == [[1, 2, 3000]]
    rotated = big_tiff(tmp_path / "b.tif", 1, 16, [1, 2, 3000], orientation=6)
    assert image_info(rotated).orientation == 6 and read_values(rotated).tolist() == [[1], [2], [3000]]
    whole = (tmp_path / "a.tif").read_bytes()
    for end in (0, 3, 10, 20, 30, 50):  # cut off
        (tmp_path / "d.tif").write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"d.tif: damaged or not an image"):
            read_values(tmp_path / "d.tif")
    (tmp_path / "d.tif").write_bytes(whole[:22] + b"\xff" * 8 + whole[30:])  # a number of tags that no file holds
    assert read_values(tmp_path / "d.tif").tolist() == [[1, 2, 3000]]


@pytest.mark.parametrize("error", [KeyError("grid"), MemoryError(), ValueError("mine"), OSError("disk full")])
def test_what_goes_wrong_beside_an_image_is_not_its_damage(saved, error):
    path = saved("a.png", np.random.default_rng(0).integers(0, 256, (32, 32)))
    with pytest.raises(type(error)) as raised, opened_image(path) as file:
        file.load()
        raise error
    assert raised.value is error
    path.write_bytes(path.read_bytes()[:200])  # what a decoder says in the block is
    with pytest.raises(DataError, match=r"a.png: damaged or not an image"), opened_image(path) as file:
        file.load()


@pytest.mark.parametrize("dtype", ["Int64", "float64", "object", "Int8", "boolean"])
def test_a_label_that_is_missing_is_unknown_in_any_column(dtype):
    labels = [True, False, None] if dtype == "boolean" else [1, 0, None]
    table = pd.DataFrame({"image_path": list("abc"), "label": pd.Series(labels, dtype=dtype)})
    rows = complete_rows(table)
    assert rows["label"].tolist() == [1, 0, -1] and rows["label"].dtype == np.int64
    assert rows["defect"].tolist() == ["anomaly", "good", "unknown"]


def test_masks_and_labels_are_brought_upright(saved):
    rotated = Image.Exif()
    rotated[0x0112] = 6  # a quarter to the right
    mask, ids = np.array([[0, 0, 1], [0, 1, 1]]), np.array([[1, 2, 3], [4, 5, 6]])
    assert np.array_equal(read_mask(saved("mask.png", mask * 255, exif=rotated)), np.rot90(mask, -1) == 1)
    assert np.array_equal(read_ids(saved("ids.png", ids, exif=rotated)), np.rot90(ids, -1))


# Synthetic anomalies

IMAGE = np.random.default_rng(0).integers(60, 190, (64, 64, 3)).astype(np.uint8)


def test_a_synthetic_anomaly_is_rounded_to_the_nearest_grey_level(monkeypatch):
    monkeypatch.setitem(ANOMALY_TYPES, "speck", lambda rng, image, y, x, s: image + 9.75)
    assert (synthetic_anomaly(IMAGE, "speck", 3)[0] == IMAGE + 10).all()


def test_a_place_is_tried_at_the_ends_and_drawn_at_the_strength(monkeypatch):
    strengths = []
    monkeypatch.setitem(ANOMALY_TYPES, "speck", lambda rng, image, y, x, s: strengths.append(s) or image + 9)
    synthetic_anomaly(IMAGE, "speck", 3)
    assert strengths == [0, 4, 2]


def test_each_type_of_anomaly_lies_elsewhere():
    types = ("speck", "missing", "patch", "blur")
    places = [np.argwhere(synthetic_anomaly(IMAGE, name, 5, 3)[1]).mean(axis=0) for name in types]
    assert np.ptp(places, axis=0).max() > 8


def test_a_missing_piece_is_filled_with_what_lies_around_it():
    dark = np.full((64, 64, 3), 200, np.float32)
    dark[28:36, 28:36] = 20
    assert ANOMALY_TYPES["missing"](np.random.default_rng(0), dark, 32, 32, 4)[32, 32, 0] > 150


@pytest.mark.parametrize("seed", range(6))
def test_a_piece_of_another_place_is_mirrored_at_the_border(seed):
    "Levels that rise by one a column rise or fall by one a column in the piece too, and are not all alike."
    ramp = np.tile(np.arange(64, dtype=np.float32)[None, :, None], (64, 1, 3))
    piece = ANOMALY_TYPES["patch"](np.random.default_rng(seed), ramp, 32, 6, 4)[32, 5:8, 0]
    np.testing.assert_allclose(np.abs(np.diff(piece)), 1)


def test_a_stain_is_as_strong_as_its_strength_whatever_its_colour():
    grey = np.full((128, 128, 3), 128, np.float32)
    most = [np.abs(ANOMALY_TYPES["stain"](np.random.default_rng(s), grey, 64, 64, 4) - 128).max() for s in range(10)]
    assert min(most) > 0.8 * 0.8 * CONTRASTS[4]


# Drawn trays


@pytest.mark.parametrize("other", [{"split": "test"}, {"random_state": 1}, {"foreign": "green square"}])
def test_trays_differ_by_split_seed_and_type(other):
    "A tray with a foreign part is another tray, and not a good one with one part exchanged."
    one, two = (draw_tray(**({"split": "train"} | values))[0] for values in ({}, other))
    assert (one != two).any(axis=2).mean() > 0.5


@pytest.mark.parametrize("number", range(10))
def test_the_mask_of_a_foreign_part_lies_on_it(number):
    image, mask = draw_tray("red circle", "green square", number)
    green = image[..., 1].astype(int) - image[..., 0] > 60
    for part, wanted in zip(np.nonzero(green), np.nonzero(mask)):
        assert abs(part.min() + part.max() - wanted.min() - wanted.max()) <= 1


@pytest.mark.parametrize(("name", "value"), [("category", "xyz"), ("defect", "dent"), ("split", "validation")])
def test_a_sample_that_is_none_is_named(name, value):
    with pytest.raises(DataError, match=f"{name}='{value}'; use one of "):
        draw_sample(**({"category": "nut"} | {name: value}))
    if name == "split":
        with pytest.raises(DataError, match="split='validation'; use one of train, test"):
            draw_tray(split=value)
