"""The one natural order and the join by names, over names nobody would think of."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_nb.core.order import name_number, name_part, natural_key, pair_names

NAMES = st.text(st.sampled_from("aAbB01259_-. ²½٣۴零Ⅷßẞİ🎬") | st.characters(), max_size=12)


@given(st.lists(NAMES, max_size=8), st.randoms())
def test_the_order_is_total_and_does_not_depend_on_the_listing(names, random):
    ordered = sorted(names, key=natural_key)
    mixed = list(names)
    random.shuffle(mixed)
    assert sorted(mixed, key=natural_key) == ordered
    assert all((natural_key(a) == natural_key(b)) == (a == b) for a in names for b in names)


@given(NAMES, NAMES, NAMES)
def test_the_order_is_transitive(a, b, c):
    a, b, c = sorted([a, b, c], key=natural_key)
    assert natural_key(a) <= natural_key(b) <= natural_key(c) and natural_key(a) <= natural_key(c)


@given(
    st.text(st.sampled_from("abXY_-."), max_size=5),
    st.integers(0, 10**30),
    st.integers(0, 10**30),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from(["", "_gt", ".5"]),
)
def test_digit_runs_compare_as_numbers_whatever_their_zeros(prefix, m, n, p, q, suffix):
    a, b = f"{prefix}{'0' * p}{m}{suffix}", f"{prefix}{'0' * q}{n}{suffix}"
    if m != n:
        assert (natural_key(a) < natural_key(b)) == (m < n)
    else:
        assert (natural_key(a) < natural_key(b)) == (a < b)  # ties are decided by the names


@pytest.mark.parametrize("zero", "0٠०０𝟎")
def test_digits_of_every_script_count(zero):
    names = ["".join(chr(ord(zero) + int(d)) for d in str(i)) for i in (12, 2, 1, 10, 11)]
    assert [names.index(n) for n in sorted(names, key=natural_key)] == [2, 1, 3, 4, 0]
    assert name_number("Test" + names[0]) == 12


def test_superscripts_and_endless_numbers_are_no_accident():
    assert sorted(["x²", "x1", "x" + "9" * 6000, "x" + "8" * 6000], key=natural_key)[:3] == [
        "x1",
        "x" + "8" * 6000,
        "x" + "9" * 6000,
    ]
    assert natural_key("²") > natural_key("1") and sorted(["½", "²", "Ⅷ"], key=natural_key) == ["²", "½", "ⅷ".upper()]
    assert name_number("x²") is None and name_number("1" * 6000) is None


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=8, unique=True),
    st.lists(st.integers(301, 400), max_size=4, unique=True),
    st.randoms(),
)
def test_videos_find_their_partner_by_number_whatever_lies_beside_it(numbers, more, random):
    others = [f"test_{i:03d}" for i in numbers + more]
    random.shuffle(others)
    assert pair_names([str(i) for i in numbers], others, "here") == {str(i): f"test_{i:03d}" for i in numbers}
    with pytest.raises(ValueError, match=r"here: nothing in it belongs to video '999'"):
        pair_names([*map(str, numbers), "999"], others, "here")


def test_a_join_by_place_is_never_made():
    with pytest.raises(ValueError, match=r"'left'"):
        pair_names(["right", "left"], ["a", "b"], "here")
    with pytest.raises(ValueError, match=r"'cam1_2'"):  # the last number fits both cameras
        pair_names(["cam1_2", "cam2_2"], ["a_2", "b_2"], "here")
    assert pair_names(["cam1_2", "cam2_2"], ["2_2", "1_2"], "here") == {"cam1_2": "1_2", "cam2_2": "2_2"}
    with pytest.raises(ValueError, match=r"'cam1_2'"):  # another number speaks against it
        pair_names(["cam1_2"], ["cam9_2"], "here")
    assert pair_names(["01", "2"], ["ped2_test_02", "ped2_test_01"], "here") == {
        "01": "ped2_test_01",
        "2": "ped2_test_02",
    }


def test_images_come_in_natural_order_through_every_door(tmp_path):
    "List, index and census of a folder agree, nested folders too."
    from PIL import Image

    from anomaly_nb.core.order import path_key
    from anomaly_nb.data import read_index
    from anomaly_nb.data.census import take_census
    from anomaly_nb.data.headers import list_images

    for folder in ("train/good", "test/kind10", "test/kind9", "test/good"):
        (tmp_path / "part" / folder).mkdir(parents=True)
        for name in ("10", "9", "1", "img2", "IMG10"):
            Image.new("L", (8, 8), len(folder) + len(name)).save(tmp_path / "part" / folder / f"{name}.png")
    names = ["1", "9", "10", "img2", "IMG10"]
    assert [p.stem for p in list_images(tmp_path / "part/train/good")] == names
    for dataset, root in (("mvtec", tmp_path), ("folder", tmp_path / "part")):
        index = read_index(dataset, root, on_missing="keep")
        assert [p.rsplit("/", 1)[1][:-4] for p in index.image_path] == names * 4
        assert index.defect.drop_duplicates().tolist() == ["good", "kind9", "kind10"]
    for name in ("note10.txt", "note9.txt"):
        (tmp_path / "part" / name).write_text("x")
    assert take_census(index, tmp_path / "part")["skipped"]["no image (.txt)"]["first"] == "note9.txt"
    assert sorted(["b/1", "a 2/1", "a/10/x", "a/9/x", "/a"], key=path_key) == ["/a", "a/9/x", "a/10/x", "a 2/1", "b/1"]


def test_a_piece_is_no_whole_and_says_no_number():
    assert [
        name_part(n)
        for n in ("01_part2", "Test_01 PT.2", "01b", "cam1_vol03", "vol03", "part2", "ped2_test", "01_0014", "3_label")
    ] == ["part2", "PT.2", "b", "vol03", None, None, None, None, None]
    assert name_number("01b") is None and name_number("vol03") == 3
    for name, others in (("Test_01_part2", ["01", "02"]), ("01b", ["01"]), ("02", ["Test_01_part2"])):
        with pytest.raises(ValueError, match=rf"'{name}' beyond doubt"):
            pair_names([name], others, "here")
    assert pair_names(["Test_01_part2", "2b"], ["01_pt2", "01_pt1", "x02B"], "here") == {
        "Test_01_part2": "01_pt2",
        "2b": "x02B",
    }


def test_the_last_number_joins_only_where_the_others_say_nothing():
    with pytest.raises(ValueError, match=r"'cam1_2'"):  # 1 or 2?
        pair_names(["cam1_2", "cam2_3"], ["2", "3"], "here")
    with pytest.raises(ValueError, match=r"'Test_02_1'"):  # two cuts of video 2, or videos 1 and 2 of set 2?
        pair_names(["Test_02_1", "Test_02_2"], ["01", "02", "03"], "here")
    assert pair_names(["Test_02_1", "Test_02_2"], ["1", "2"], "here") == {
        "Test_02_1": "1",
        "Test_02_2": "2",
    }  # the whole set
    assert pair_names(["ped9_test_01"], ["01", "02"], "here") == {"ped9_test_01": "01"}  # 9 is nobody


def test_what_says_two_things_is_joined_by_neither():
    assert name_number("cam1_2") is None and name_number("Test003") == 3
    with pytest.raises(ValueError, match="beyond doubt"):  # 1 and 01 are one number and two videos
        pair_names(["1", "01"], ["1", "2"], "here")
    with pytest.raises(ValueError, match="beyond doubt"):  # another camera
        pair_names(["cam1_2"], ["cam9_2"], "here")
