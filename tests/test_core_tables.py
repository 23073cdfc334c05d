"""Tables as spreadsheets and scripts leave them: names stay text, numbers are asked for, and what does not fit names
its line.
"""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_nb.atoms.frames import list_frames, read_labels
from anomaly_nb.atoms.pipeline import load_manifest, read_events
from anomaly_nb.calibration.tables import read_scores
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.tables import read_rows, read_table
from anomaly_nb.features import FeatureSet, load_features, save_features
from anomaly_nb.features.featureset import read_meta

NAMES = (
    "01",
    "1",
    "1.0",
    "NA",
    "nan",
    "None",
    "null",
    "1e3",
    "1_000",
    "+1",
    " a ",
    "-0",
    "0x10",
    "True",
    "∞",
    "2026-01-02",
    '"',
    "a,b",
    "two\nlines",
    "",
)


@pytest.fixture
def table(tmp_path):
    def write(content, name="t.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def test_every_name_stays_as_it_is(table):
    path = table(pd.DataFrame({"file": NAMES, "head": NAMES[::-1]}).to_csv(index=False))
    found = read_table(path, ["file", "head"])
    assert found["file"].tolist() == list(NAMES) and found["head"].tolist() == list(NAMES[::-1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=6),
            st.text("01.eE,;NA \n\r\"'", max_size=6),
        ),
        max_size=6,
    )
)
def test_what_was_written_is_read(tmp_path_factory, cells):
    cells = [c for c in cells if "".join(c).strip()]
    path = tmp_path_factory.mktemp("t") / "t.csv"
    out = io.StringIO(newline="")
    pd.DataFrame(cells, columns=["a", "b"]).to_csv(out, index=False, lineterminator="\n", quoting=1)
    path.write_bytes(out.getvalue().encode())
    assert read_table(path)[["a", "b"]].to_numpy().tolist() == [list(c) for c in cells]


@pytest.mark.parametrize(("text", "number_type", "value"), [
    ("1", int, 1), ("1.0", int, 1), (" 7 ", int, 7), ("-3", int, -3), ("1.5", int, None), ("", int, None), ("1e3", int, None), ("9" * 30, int, None),
    ("0.5", float, 0.5), (".5", float, 0.5), ("5.", float, 5.0), ("1e-3", float, 1e-3), ("+2", float, 2.0), ("nan", float, None), ("inf", float, None),
    ("1e999", float, None), ("1_000", float, None), ("0x10", float, None), ("٣", int, None), ("1 000", float, None), ("NA", float, None), ("true", int, None),
])  # fmt: skip
def test_numbers_are_what_digits_say(table, text, number_type, value):
    path = table(f'name,value\na,0\nb,"{text}"\n')
    if value is None:
        with pytest.raises(DataError, match=r"t.csv, line 3: value .* is not a (whole|finite) number; write it"):
            read_table(path, ["value"], {"value": number_type})
    else:
        assert read_table(path, ["value"], {"value": number_type})["value"].tolist() == [0, value]


def test_a_gap_is_missing_only_where_one_is_expected(table):
    path = table("name,value,count\na,,\nb,2,3\n")
    found = read_table(path, types={"value": float, "count": int}, gaps=["value", "count"])
    assert (
        found["value"].isna().tolist() == found["count"].isna().tolist() == [True, False]
        and found["count"].iloc[1] == 3
    )
    assert read_table(path)["value"].tolist() == ["", "2"]
    with pytest.raises(DataError, match="line 2: count ''"):
        read_table(path, types={"value": float, "count": int}, gaps=["value"])


@pytest.mark.parametrize(("content", "told"), [
    ("file,score\na,1\n".encode("utf-16"), r"line 1: not UTF-8 \(it is UTF-16\); save"),
    ("file,score\na,1\n".encode("utf-16-le"), "line 1: holds a NUL character"),
    ("file,score\nä,1\n".encode("latin-1"), "line 2: not UTF-8"),
    ("\ufefffile,score\r\nb,1\r\nä,1\r\n".encode("utf-8")[:-5] + b"\xe4,1\r\n", "line 3: not UTF-8"),
    ("file,score\na,1\n\ufefffile,score\nb,2\n", "line 3: holds a byte order mark"),
    ("file;score\na;0,5\n", "line 1: columns are separated by semicolons; save"),
    ("file\tscore\na\t0.5\n", "line 1: columns are separated by tabs"),
    ("sep=,\nfile,score\na,1\n", "line 1: no column 'file', 'score'"),
    ("sep=;\nfile;score\na;1\n", "line 1: columns are separated by semicolons"),
    ("file,score,score\na,1,2\n", "line 1: 2 columns are called 'score'; rename"),
    ("file,score, score\na,1,2\n", "line 1: 2 columns are called 'score'"),
    ("file,value\na,1\n", "line 1: no column 'score'; it has file, value; add"),
    ("file,score\na,1\n\nb\n", "line 4: has 1 cell for 2 columns"),
    ("file,score\na,1\nb,2,\n", "line 3: has 3 cells for 2 columns"),
    ("file,score\na,b.png,1\n", "line 2: has 3 cells for 2 columns"),
    ('file,score\na,1\n"b,2\n', "line 3: not a row of a CSV"),
    ('file,score\n"two\nlines",1\n"b"c,2\n', "line 4: not a row of a CSV"),
    ("", "line 1: is empty"),
    ("\n \n", "line 1: is empty"),
])  # fmt: skip
def test_what_does_not_fit_names_file_line_and_mend(table, content, told):
    with pytest.raises(DataError, match=f"t.csv, {told}") as e:
        read_table(table(content), ["file", "score"], {"score": float})
    assert "\n" not in str(e.value) and ";" in str(e.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_spreadsheets_may_add_a_mark_empty_lines_spaces_and_columns(table, end):
    path = table(end.join(["\ufeffscore , file,note", "1,a,", "", ",,", " ", "2,b,x", ""]))
    found = read_table(path, ["file", "score"], {"score": float})
    assert found[["file", "score"]].to_numpy().tolist() == [["a", 1.0], ["b", 2.0]] and found.index.tolist() == [2, 6]
    assert read_rows(table('a\n""\n\nb\n')) == [(1, ["a"]), (2, [""]), (4, ["b"])]


def test_heads_of_scores_are_not_joined(table):
    path = table("file,score,head,group\n01,1,01,1\n1,2,1.0,01\n1.0,3,1,1.0\nNA,4,NA,\n")
    found = read_scores(path)
    assert (
        found["head"].tolist() == ["01", "1.0", "1", "NA"]
        and found["file"].tolist() == ["01", "1", "1.0", "NA"]
        and found["group"].tolist() == ["1", "01", "1.0", ""]
    )
    path = table("file,score,split\na,,train\nb,x,test\n")
    with pytest.raises(DataError, match="line 3: score 'x'"):
        read_scores(path, "test")
    with pytest.raises(DataError, match="no row of split"):
        read_scores(path, "1")


def test_a_table_of_images_keeps_all_that_is_text(tmp_path):
    about = {"category": "01", "defect": "NA", "camera": "1.0", "batch": "007", "label": 0, "mask_threshold": 128}
    meta = pd.DataFrame([about | {"image_path": f"{i}.png"} for i in range(2)])
    save_features(tmp_path, "01", FeatureSet(np.zeros((2, 4, 3), np.float32), (2, 2), meta))
    back = load_features(tmp_path, "01").meta
    pd.testing.assert_frame_equal(back, meta, check_dtype=False)
    assert back["label"].dtype == "int64" and back.index.tolist() == [0, 1]
    (tmp_path / "01_meta.csv").write_text("image_path,label\n0.png,0\n1.png,maybe\n")
    with pytest.raises(DataError, match=r"01_meta.csv, line 3: label 'maybe'"):
        read_meta(tmp_path / "01_meta.csv")


def test_videos_and_events_are_read_by_name(table, tmp_path):
    path = table("video_id,fire,smoke\n01,1,0\n1,0,0\n")
    assert read_events(path, ["1", "01"], ["smoke", "fire"]).tolist() == [[0, 0], [0, 1]]
    for content, told in (
        ("01,1,0\n01,0,0", "line 3: each video must have one row"),
        ("01,2,0", "line 2: each video"),
        ("01,,0", "line 2: fire ''"),
    ):
        with pytest.raises(DataError, match=f"t.csv, {told}"):
            read_events(table(f"video_id,fire,smoke\n{content}\n"), ["01"], ["fire", "smoke"])
    with pytest.raises(DataError, match=r"m.csv, line 1: no column 'labels_csv'"):
        load_manifest(table("run_dir\n01\n", "m.csv"))


def test_labels_without_a_header_name_their_line(table):
    assert read_labels(table("\ufeffv/1.png,0\n\nv/2.png,1\n")).label == {"v/1": 0, "v/2": 1}
    for content, told in (
        ("v/1.png,0\n\nv/2.png;1\n", "line 3: must be"),
        ("v/1.png,0\nv/1.jpg,1\n", "line 2: frame"),
        ('v/1.png,0\n"v/2.png,1\n', "line 2: not a row"),
    ):
        with pytest.raises(DataError, match=f"t.csv, {told}"):
            read_labels(table(content))


def test_frames_of_every_suffix_the_library_reads_are_listed(tmp_path):
    from PIL import Image

    (tmp_path / "v").mkdir()
    for name in ("10.png", "9.GIF", "2.jfif", "1.ppm", ".hidden.png", "notes.txt"):
        Image.new("RGB", (4, 4)).save(
            tmp_path / "v" / name,
            {"9.GIF": "GIF", "2.jfif": "JPEG"}.get(name, "PNG" if name.endswith("png") else "PPM"),
        )
    assert list_frames(tmp_path).keys == ("v/1", "v/2", "v/9", "v/10")
