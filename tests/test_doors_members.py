"""Members of each type that nobody has named yet: folders, names, links, types, tables and detector folders as
strangers bring them.
"""

import json
import os
import re
import shutil
import socket

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from anomaly_nb.cli.main import app, in_command, main
from anomaly_nb.core.errors import DataError, MissingFileError
from anomaly_nb.core.files import MANIFEST, sha256_json, verify_manifest, write_json, write_manifest
from anomaly_nb.core.listing import list_files
from anomaly_nb.core.order import printable
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import (
    draw_sample,
    fit_intensity,
    image_info,
    index_folder,
    inspect_folder,
    one_category,
    read_image,
    read_index,
)
from anomaly_nb.data.images import read_counted
from anomaly_nb.data.index import folder_meaning
from anomaly_nb.data.intensity import Intensity
from anomaly_nb.reports.template import check_parameters
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.predict import count_learned, find_images, predict_files

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def parts(root, *names, array=None):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(GREY, i) if array is None else array).save(path)
    return root


# ---- what a folder's name says


@pytest.mark.parametrize(
    "name",
    ["Pass", "io", "i.O", "GUT", "undamaged", "ok_images", "Good Parts", "not-defective", "no defects", "Intact"],
)
def test_words_for_normal(tmp_path, name):
    assert folder_meaning(name) == "normal"
    parts(tmp_path, *(f"{name}/{i}.png" for i in range(4)), "kratzer/a.png")
    assert index_folder(tmp_path, n_train=1.0).defect.value_counts().to_dict() == {"good": 4, "kratzer": 1}


@pytest.mark.parametrize(
    "name",
    [
        "NOK",
        "n_ok",
        "nogood",
        "no-good",
        "abnormal",
        "ng",
        "fail",
        "Failed parts",
        "defect_3",
        "bad2",
        "n.i.O",
        "not ok",
        "scratch",
        "images_damaged",
    ],
)
def test_nobody_is_told_to_learn_from_defects(tmp_path, name):
    assert folder_meaning(name) == "defect"
    parts(tmp_path, *(f"{name}/{i}.png" for i in range(9)), "zzz/a.png")
    with pytest.raises(DataError, match=r"e\.g\. normal=zzz$"):
        index_folder(tmp_path)
    shutil.rmtree(tmp_path / "zzz")
    with pytest.raises(DataError, match="all of them speak of defects"):
        index_folder(tmp_path)


def test_advice_goes_below_a_parent_that_holds_both(tmp_path):
    parts(tmp_path, "week1/pass/0.png", "week1/fail/0.png")
    with pytest.raises(DataError, match=r"deeper: pass root=.*week1, or normal=week1/pass$"):
        index_folder(tmp_path)
    assert index_folder(tmp_path, n_train=1.0, normal="week1/pass").label.tolist() == [0, 1]
    parts(tmp_path, "a/x/0.png", "a/gt/x/0.png", "b/y/0.png")
    shutil.rmtree(tmp_path / "week1")
    with pytest.raises(DataError, match=r"e\.g\. normal=b$"):
        index_folder(tmp_path, on_missing="keep")


@pytest.mark.parametrize("inside", ["nok", "Bad parts", "defect_1", "abnormal/deep"])
@pytest.mark.parametrize("normal", ["", "line1"])
def test_defects_below_a_normal_folder_are_refused(tmp_path, inside, normal):
    top = normal or "good"
    parts(tmp_path, f"{top}/0.png", f"{top}/cam2/1.png", f"{top}/{inside}/2.png")
    with pytest.raises(DataError, match="speaks of defects but lies in a folder of normal images"):
        index_folder(tmp_path, normal=normal)
    named = f"{top},{top}/{inside.split('/')[0].lower()}"
    assert index_folder(tmp_path, n_train=1.0, normal=named).label.tolist() == [0, 0, 0]


def test_a_known_layout_is_named(tmp_path):
    for category in ("cap", "nut"):
        parts(tmp_path / category, "train/good/0.png", "test/hole/0.png", "ground_truth/hole/0_mask.png")
    with pytest.raises(DataError, match="dataset=mvtec"):
        read_index("folder", tmp_path)
    with pytest.raises(MissingFileError, match="split_csv"):
        read_index("visa", parts(tmp_path / "v", "candle/Data/Images/Normal/0.png"))
    with pytest.raises(MissingFileError, match="no <category>/train/good below it"):
        read_index("mvtec", tmp_path / "v")


@pytest.mark.parametrize("word", ["ok", "OK", "normal", "pass"])
def test_other_words_for_good_in_an_mvtec_tree(tmp_path, word):
    parts(tmp_path / "cap", "train/good/0.png", f"test/{word}/0.png", f"test/{word}/1.png", "test/hole/0.png")
    index = read_index("mvtec", tmp_path, "cap", "keep")
    assert index.query("split == 'test'").label.tolist() == [0, 0, 1]
    assert index.attrs["census"]["notes"] == [f"cap/test/{word} is taken as normal, as its name says"]


# ---- masks


@pytest.mark.parametrize("good", ["good", "gut"])
@pytest.mark.parametrize(
    "masks", ["masks/{}/000.png", "ground_truth/{}/000_mask.png", "{}_masks/000.png", "{}/masks/000.png"]
)
def test_masks_of_normal_images_stay_with_them(tmp_path, good, masks):
    parts(tmp_path, f"{good}/000.png", f"{good}/001.png", "d/000.png", masks.format(good), masks.format("d"))
    index = index_folder(tmp_path, n_train=1.0)
    assert index.query("label == 1").mask_path.item() == (tmp_path / masks.format("d")).as_posix()
    assert list(index.attrs["skipped"].values()) == ["mask of a normal image"]


def test_a_mask_of_another_defect_is_not_the_second_of_an_image(tmp_path):
    parts(tmp_path, "good/1.png", "good/2.png", "d/000.png", "masks/a/000.png", "masks/d/000.png", "masks/e/000.png")
    index = index_folder(tmp_path, on_missing="keep", n_train=1.0)
    assert index.query("label == 1").mask_path.item().endswith("masks/d/000.png")
    assert list(index.attrs["skipped"].values()) == ["mask without an image"] * 2


def test_odd_masks_are_remarked(tmp_path):
    parts(tmp_path, *(f"good/{i}.png" for i in range(4)), "d/0.png", "d/1.png")
    parts(tmp_path, "masks/d/0.png", array=np.full((8, 8), 255, np.uint8) - (GREY == 0) * np.uint8(255))
    parts(tmp_path, "masks/d/1.png", array=np.eye(9, dtype=np.uint8))
    seen = inspect_folder(tmp_path)
    assert "masks/d/0.png" in str([v for k, v in seen["suspicious"].items() if "80 %" in k])
    assert any("another size" in line and "9 x 9" in line for line in seen["reading"])


# ---- names, links, pipes


@pytest.fixture
def odd_folder(tmp_path):
    parts(tmp_path, *(f"good/{i}.png" for i in range(4)), "bad/x.png")
    (tmp_path / "good" / os.fsdecode(b"ma\xdf.png")).write_bytes((tmp_path / "good/0.png").read_bytes())
    deep = tmp_path / os.fsdecode(b"stra\xdfe")
    deep.mkdir()
    (deep / "y.png").write_bytes((tmp_path / "good/0.png").read_bytes())
    (tmp_path / "bad/gone.png").symlink_to("nowhere.png")
    (tmp_path / "bad/a.png").symlink_to("b.png")
    (tmp_path / "bad/b.png").symlink_to("a.png")
    (tmp_path / "again").symlink_to("bad")
    os.mkfifo(tmp_path / "good/pipe.png")
    there = os.getcwd()
    with socket.socket(socket.AF_UNIX) as s:
        os.chdir(tmp_path)  # names of sockets are short
        try:
            s.bind("sock.png")
        finally:
            os.chdir(there)
    return tmp_path


def test_what_is_no_file_is_counted_with_its_reason(odd_folder):
    files, odd = list_files(odd_folder)
    counts = pd.Series(list(odd.values())).value_counts().to_dict()
    assert len(files) == 5
    assert counts == {
        "name that is not UTF-8, rename it": 2,
        "link in a loop": 2,
        "link that leads nowhere": 1,
        "link to a folder, not entered": 1,
        "named pipe": 1,
        "socket": 1,
    }
    index = read_index("folder", odd_folder, n_train=1.0)
    assert len(index) == 5 and sum(s["files"] for s in index.attrs["census"]["skipped"].values()) == 8
    done = CliRunner().invoke(app, ["inspect", str(odd_folder), "--json"])
    assert json.loads(done.stdout_bytes.decode("utf-8"))["skipped"]["name that is not UTF-8, rename it"]["files"] == 2
    with pytest.raises(DataError, match="not UTF-8"):
        read_index("folder", next(p for p in odd_folder.iterdir() if printable(p) != str(p)))
    found, passed = find_images([odd_folder])
    assert len(found) == 7 and sorted(set(passed.values())) == [
        "link in a loop",
        "link that leads nowhere",
        "link to a folder, not entered",
        "named pipe",
        "socket",
    ]


# ---- types and values


def tiff(path, bits, form, samples=1, content=b""):
    "A TIFF of one strip, written by hand: types that Pillow does not write."
    size = 8 * 8 * samples * bits // 8
    tags = [
        (256, 8),
        (257, 8),
        (258, bits),
        (259, 1),
        (262, 2 if samples == 3 else 1),
        (273, 8),
        (277, samples),
        (278, 8),
        (279, size),
        (339, form),
    ]
    data, at = content.ljust(size, b"\0"), 8 + size
    extra, entries = b"", b""
    for tag, value in tags:
        if tag in (258, 339) and samples > 2:
            entries += (
                np.array([tag, 3], "<u2").tobytes()
                + np.array([samples, at + 2 + 12 * len(tags) + 4 + len(extra)], "<u4").tobytes()
            )
            extra += np.full(samples, value, "<u2").tobytes()
        else:
            entries += (
                np.array([tag, 3], "<u2").tobytes()
                + np.array([1], "<u4").tobytes()
                + np.array([value, 0], "<u2").tobytes()
            )
    path.write_bytes(
        b"II*\0"
        + np.array([at], "<u4").tobytes()
        + data
        + np.array([len(tags)], "<u2").tobytes()
        + entries
        + b"\0\0\0\0"
        + extra
    )
    return path


@pytest.mark.parametrize(("bits", "form", "samples", "said"), [
    (8, 2, 1, "holds int8, .* unsigned 8-bit"), (8, 2, 3, "holds int8 in 3 channels"), (64, 3, 1, "holds float64, .* 32-bit float"), (16, 3, 1, "holds float16, .* 32-bit float"),
    (32, 3, 3, "holds float32 in 3 channels, .* one channel of 32-bit float"), (64, 1, 1, "holds uint64"), (64, 2, 1, "holds int64"), (64, 6, 1, "holds complex64"), (32, 1, 3, "holds uint32 in 3 channels"),
])  # fmt: skip
def test_types_that_are_not_read_are_named(tmp_path, bits, form, samples, said):
    path = tiff(tmp_path / "a.tif", bits, form, samples)
    for reader in (image_info, read_image):
        with pytest.raises(DataError, match=said):
            reader(path)


def test_types_that_are_read_still_are(tmp_path):
    for bits, form, samples, name in (
        (8, 1, 1, "uint8"),
        (8, 1, 3, "uint8"),
        (16, 1, 1, "uint16"),
        (32, 3, 1, "float32"),
        (16, 2, 1, "int32"),
    ):
        assert image_info(tiff(tmp_path / "a.tif", bits, form, samples)).type == name


@pytest.mark.parametrize(("few", "many", "said"), [
    (np.uint16(65535), np.uint16(4095), "1 of 12 images reaches 65535, the others at most 4095; .*odd.tif.* intensity=window:0,4095"),
    (np.int32(70000), np.int32(255), "reaches 70000, the others at most 255"),
    (np.float32(255), np.float32(0.9), r"reaches 255, the others at most 0\.9.*window:0,1$"),
])  # fmt: skip
def test_one_image_that_sets_the_window_is_said(tmp_path, few, many, said):
    for i in range(11):
        parts(tmp_path, f"good/{i}.tif", array=np.full((8, 8), many))
    parts(tmp_path, "good/odd.tif", array=np.full((8, 8), few))
    assert re.search(said, fit_intensity(sorted((tmp_path / "good").iterdir())).note)
    seen = inspect_folder(tmp_path)
    assert any(line.startswith("WARNING: intensity: 1 of 12") for line in seen["reading"])
    assert not fit_intensity(sorted((tmp_path / "good").glob("[0-9]*"))).note


@pytest.mark.parametrize(
    ("text", "high", "type", "value"), [("float 0..1", 1, "float32", -0.5), ("16 of 32 bits", 65535, "int32", -1)]
)
def test_negative_values_at_prediction_are_refused_as_at_fit(tmp_path, text, high, type, value):
    path = tmp_path / "a.tif"
    parts(tmp_path, "a.tif", array=np.full((8, 8), value, type))
    with pytest.raises(DataError, match="holds negative values"):
        read_counted(path, Intensity(text, 0, high, type))
    assert read_counted(path, Intensity("window -2..2", -2, 2, type))[1] == 0


def test_all_damaged_images_are_named_at_once(tmp_path):
    parts(tmp_path, *(f"good/{i}.png" for i in range(9)))
    for i in range(7):
        (tmp_path / f"good/{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"7 images cannot be read; mend .*: .*0\.png.* \| .*4\.png.* \| and 2 more$"):
        read_index("folder", tmp_path, n_train=1.0)
    seen = inspect_folder(tmp_path)
    assert seen["images"] == 9 and len(seen["damaged"]) == 7 and seen["usable"]


def test_damage_deep_in_files_is_named_at_once(tmp_path, capsys):
    parts(
        tmp_path,
        *(f"good/{i}.png" for i in range(9)),
        array=np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8),
    )
    for i in range(3):
        path = tmp_path / f"good/{i}.png"
        path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                str(tmp_path),
                "--out",
                str(tmp_path / "d"),
                "--recipe",
                "placed",
                "--backbone",
                "filters",
                "--image-size",
                "48",
            ]
        )
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "3 images cannot be read" in said and said.count("truncated") == 3


def test_pages_that_nobody_reads_are_said(tmp_path):
    parts(tmp_path, *(f"good/{i}.png" for i in range(4)))
    frames = [Image.fromarray(np.roll(GREY, i)) for i in range(5)]
    for name in ("a.tif", "b.gif", "c.webp", "d.png"):
        frames[0].save(tmp_path / "good" / name, save_all=True, append_images=frames[1:])
    notes = read_index("folder", tmp_path, n_train=1.0).attrs["census"]["notes"]
    assert notes == ["several pages or frames in 4 images, the first a.tif: one of each is read, 16 others passed over"]


# ---- tables


def test_an_image_in_both_splits_of_a_table_is_said(tmp_path):
    parts(tmp_path, "a.png", "b.png", "c.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    (tmp_path / "t.csv").write_text(
        "image_path,split,label\na.png,train,0\nb.png,train,0\nb.png,test,0\ncopy.png,test,1\nc.png,validation,0\n"
    )
    assert read_index("csv", tmp_path / "t.csv").attrs["census"]["n_in_train_and_test"] == 2
    assert any("2 test images are also in training" in line for line in inspect_folder(tmp_path / "t.csv")["reading"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image_path,split\n", "a header and no rows"),
        ("", "line 1: is empty"),
        ("image_path,split\na.png,train\n", None),
    ],
)
def test_tables_that_hold_nothing(tmp_path, content, said):
    parts(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text(content)
    if said:
        with pytest.raises(DataError, match=said):
            read_index("csv", tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"is a folder; dataset=csv takes the table itself, e\.g\. root=.*t\.csv"):
        read_index("csv", tmp_path)
    with pytest.raises(MissingFileError, match="write a table with columns"):
        read_index("csv", tmp_path / "absent.csv")


def test_categories_of_a_table_and_of_none(tmp_path):
    parts(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("image_path,split,category\na.png,train,x\nb.png,train,y\n")
    assert len(read_index("csv", tmp_path / "t.csv", "x")) == 1
    assert "2 categories taken as one" in str(read_index("csv", tmp_path / "t.csv").attrs["census"]["notes"])
    with pytest.raises(MissingFileError, match="no category 'z'; there are x, y"):
        read_index("csv", tmp_path / "t.csv", "z")
    with pytest.raises(DataError, match="the layout folder has no categories"):
        read_index("folder", tmp_path, "x")
    assert [one_category(*pair) for pair in (("samples", ""), ("samples", "weave"), ("mvtec", ""), ("folder", ""))] == [
        "nut",
        "weave",
        "",
        "",
    ]
    with pytest.warns(UserWarning, match="left out: the layout folder has no categories"):
        assert one_category("folder", "nut") == ""


def test_twins_of_two_formats_are_images(tmp_path):
    parts(tmp_path, "good/a.jpg", "good/a.png", "good/b.jpg")
    seen = inspect_folder(tmp_path)
    assert (
        [f["role"] for f in seen["folders"]] == ["normal images"]
        and "no split there" in seen["reading"][-1]
        and "3 images: 3 good" in " ".join(seen["reading"])
    )


# ---- commands


def test_advice_is_in_the_words_of_the_command():
    said = "name it, e.g. normal=line1; or give intensity=window:0,1, root=/x or -p recipe=knn, on_missing=keep"
    assert in_command(
        "fit", said
    ) == "name it, e.g. --normal line1; or give --intensity window:0,1, /x or -p recipe=knn, on_missing=keep".replace(
        "-p recipe=knn", "-p --recipe knn"
    )
    assert (
        in_command("report", said)
        == "name it, e.g. -p normal=line1; or give -p intensity=window:0,1, -p root=/x or -p recipe=knn, -p on_missing=keep"
    )
    assert in_command("no-such", said) == said


def test_commands_refuse_numbers_out_of_range(tmp_path, capsys):
    parts(tmp_path, "good/a.png", "good/b.png")
    for option, value in (
        ("--seed", "-1"),
        ("--seed", str(2**40)),
        ("--image-size", "-3"),
        ("--tile", "-1"),
        ("--overlap", "-9"),
        ("--coreset", "0"),
        ("--coreset", "-2"),
        ("--false-alarms", "1.5"),
    ):
        done = CliRunner().invoke(
            app, ["fit", str(tmp_path), "--out", str(tmp_path / "d"), option, value, "--backbone", "filters"]
        )
        assert done.exit_code and (option in done.output or option in str(done.exception)), (option, value, done.output)
    with pytest.raises(DataError, match="seed=-1"):
        check_parameters("image_anomaly", {"seed": "-1"})
    with pytest.raises(DataError, match="random_state=-5"):
        read_index("folder", tmp_path, random_state=-5)
    with pytest.raises(SystemExit) as ended:
        main(["report", "image_anomaly", "-p", "=3"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "anomaly-nb: -p '=3': write name=value; the names: anomaly-nb report image_anomaly --list\n"
    )
    assert CliRunner().invoke(app, ["inspect", str(parts(tmp_path / "q", "a/0.png", "b/0.png"))]).exit_code == 1
    assert CliRunner().invoke(app, ["inspect", str(tmp_path / "q"), "--normal", "a"]).exit_code == 0


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    for i in range(8):
        parts(folder, f"good/{i}.png", array=draw_sample("nut", "good", i, size=48)[0])
    model = Detector("placed", backbone="filters", image_size=48).fit(read_index("folder", folder, n_train=1.0))
    model.save(folder / "det")
    return folder


def predicted(fitted, *paths):
    return CliRunner().invoke(app, ["predict", str(fitted / "det"), *map(str, paths), "--out", str(fitted / "p.csv")])


def test_exit_codes_of_predict(fitted, tmp_path):
    fine = parts(tmp_path / "fine", "a.png", array=draw_sample("nut", "good", 3, size=48)[0])
    assert predicted(fitted, fine).exit_code == 0
    parts(tmp_path / "odd", "b.png", array=np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    assert predicted(fitted, fine, tmp_path / "odd").exit_code == 3
    (fine / os.fsdecode(b"\xff.png")).write_bytes((fine / "a.png").read_bytes())
    (fine / "cut.png").write_bytes(b"\x89PNG")
    done = predicted(fitted, fine)
    table = pd.read_csv(fitted / "p.csv")
    assert (
        done.exit_code == 4
        and len(table) == 3
        and table.error.notna().sum() == 2
        and "2 of 3 images could not be read" in done.output
    )
    assert predicted(fitted, fine, tmp_path / "odd").exit_code == 3
    done = predicted(fitted, fine / "cut.png")
    assert done.exit_code == 1 and "no image could be read" in done.output
    assert "3 some called anomalous; 4 none" in CliRunner().invoke(app, ["predict", "--help"]).output


def test_predict_says_what_it_learned_from_and_what_it_did_not_look_at(fitted, tmp_path):
    parts(tmp_path, "new.png", array=draw_sample("nut", "good", 77, size=48)[0])
    shutil.copy(fitted / "good/1.png", tmp_path / "1.png")
    parts(tmp_path, "2.png", array=draw_sample("nut", "good", 78, size=48)[0])
    model = Detector.load(fitted / "det")
    assert count_learned(model, find_images([tmp_path, fitted / "good"])[0]) == 9
    frames = [Image.fromarray(draw_sample("nut", "good", 80 + i, size=48)[0]) for i in range(4)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert [p.frames for p in predict_files(model, [tmp_path / "film.gif", tmp_path / "new.png"])] == [4, 1]
    done = predicted(fitted, tmp_path)
    assert (
        "the detector learned from 1 of 4 images" in done.output
        and "in 1 image, the first film.gif: one of each is read, 3 others passed over" in done.output
    )


def test_update_says_what_it_does_not_take(fitted, tmp_path):
    shutil.copytree(fitted / "det", tmp_path / "det")
    parts(tmp_path / "more", "a.png", array=draw_sample("nut", "good", 91, size=48)[0])
    (tmp_path / "more" / os.fsdecode(b"\xfe.png")).write_bytes((tmp_path / "more/a.png").read_bytes())
    os.mkfifo(tmp_path / "more/p.png")
    done = CliRunner().invoke(app, ["update", str(tmp_path / "det"), str(tmp_path / "more")])
    assert done.exit_code and "not UTF-8" in str(done.exception)
    os.unlink(os.fsencode(tmp_path / "more") + b"/\xfe.png")
    done = CliRunner().invoke(app, ["update", str(tmp_path / "det"), str(tmp_path / "more")])
    assert done.exit_code == 0 and "passed over: 1, named pipe" in done.output and "9 normal images" in done.output


def test_clipped_images_are_counted(tmp_path):
    for i in range(6):
        parts(
            tmp_path, f"good/{i}.tif", array=draw_sample("nut", "good", i, size=48)[0][..., 0].astype(np.float32) / 255
        )
    Detector("placed", backbone="filters", image_size=48).fit(read_index("folder", tmp_path, n_train=1.0)).save(
        tmp_path / "det"
    )
    parts(tmp_path, "new/a.tif", array=np.full((48, 48), 7, np.float32))
    parts(tmp_path, "new/b.tif", array=np.full((48, 48), -7, np.float32))
    done = predicted(tmp_path, tmp_path / "new")
    assert "1 image clipped by more than 1 %: values lie outside float 0..1" in done.output
    assert "holds negative values" in pd.read_csv(tmp_path / "p.csv").error.dropna().item()


# ---- detector folders


def forge(folder, name, change):
    "A file of a detector changed together with the manifest, as a later or foreign writer would."
    about = read_json(folder / name)
    write_json(folder / name, change(about))
    write_manifest(folder, kind="detector")


FORGED = {
    "a list": ("detector.json", lambda a: [a], "not a saved detector"),
    "later": (
        "detector.json",
        lambda a: a | {"format": 9},
        "is of format 9, this version of the library reads up to 1",
    ),
    "no spec": ("detector.json", lambda a: {k: v for k, v in a.items() if k != "spec"}, "not a saved detector"),
    "paths": ("detector.json", lambda a: a | {"patch_hw": 3}, "not a saved detector"),
    "params": ("detector.json", lambda a: a | {"params": "x"}, "not a saved detector"),
    "text": ("threshold.json", lambda a: a | {"value": "12"}, "not a saved threshold"),
    "true": ("threshold.json", lambda a: a | {"value": True}, "not a saved threshold"),
    "none": ("threshold.json", lambda a: {}, "not a saved threshold"),
    "parameters": ("threshold.json", lambda a: a | {"parameters": []}, "not a saved threshold"),
}


@pytest.mark.parametrize("form", FORGED)
def test_forged_detectors_are_refused_in_one_sentence(fitted, tmp_path, form):
    name, change, said = FORGED[form]
    shutil.copytree(fitted / "det", tmp_path / "det")
    forge(tmp_path / "det", name, change)
    with pytest.raises(DataError, match=said) as e:
        Detector.load(tmp_path / "det")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("content", "said"), [
    (None, "manifest.json: no such file, so nothing says whether the others are whole"), ("", "not valid JSON"), ("{}", "names no files"), ("[]", "names no files"), ('{"files": {}}', "names no files"),
    ('{"files": {"detector.json": 3}}', "names no files"), ('{"files": "x"}', "names no files"),
])  # fmt: skip
def test_manifests_that_say_nothing_are_refused(fitted, tmp_path, content, said):
    folder = tmp_path / "det"
    shutil.copytree(fitted / "det", folder)
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_text(content)
    with pytest.raises((DataError, MissingFileError), match=said):
        Detector.load(folder)


def test_a_file_the_manifest_does_not_name_is_refused_and_old_folders_are_said(fitted, tmp_path):
    folder = tmp_path / "det"
    shutil.copytree(fitted / "det", folder)
    listed = read_json(folder / MANIFEST)
    del listed["files"]["threshold.json"]
    write_json(folder / MANIFEST, listed)
    with pytest.raises(DataError, match=r"manifest\.json: its list of files was changed; restore it, or fit again"):
        Detector.load(folder)
    write_json(folder / MANIFEST, listed | {"sha256": sha256_json(listed["files"])})
    with pytest.raises(DataError, match=r"threshold\.json: is not named in manifest\.json"):
        Detector.load(folder)
    forge(folder, "detector.json", lambda a: {k: v for k, v in a.items() if k != "format"})
    assert verify_manifest(folder) and Detector.load(folder).threshold_
    (folder / MANIFEST).unlink()
    with pytest.warns(UserWarning, match=r"has no manifest\.json, as the first detectors"):
        assert Detector.load(folder).threshold_
