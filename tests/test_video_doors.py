"""Data sets in the forms in which they are published, made small: every frame label is stated and joined by name."""

import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from anomaly_nb.core.arrays import save_array
from anomaly_nb.core.errors import DataError, MissingExtraError, MissingFileError
from anomaly_nb.core.files import write_text
from anomaly_nb.video.conversion import convert_pickled
from anomaly_nb.video.feature_files import load_object_features
from anomaly_nb.video.ground_truth import frame_labels, ground_truths
from anomaly_nb.video.layouts import list_videos
from anomaly_nb.video.matlab import load_mat
from anomaly_nb.video.plan import plan_for

T = 12  # frames of a video


def anomalous(i: int) -> np.ndarray:
    "Labels of video `i` of 12, different for each: frames `i` (from 1) to `min(i + 2, 12)`; video 7 has none."
    y = np.zeros(T, bool)
    y[i - 1 : i + 2] = i != 7
    return y


def spans(i: int) -> np.ndarray:
    "The same as a table of one event in a column, or none."
    return np.array([[i], [min(i + 2, T)]], float) if i != 7 else np.zeros((0, 0))


def frames(folder, n=T, name="{:03d}.png", value=None):
    "A video: frames that are bright everywhere, so that none of them looks like an empty mask."
    folder.mkdir(parents=True)
    for t in range(1, n + 1):
        a = (
            np.full((6, 8), 200, np.uint8)
            if value is None
            else np.where(np.eye(6, 8), value[t - 1] * 255, 0).astype(np.uint8)
        )
        Image.fromarray(a).save(folder / name.format(t))


def videos(root, names, place="testing/frames", **settings):
    "Frame folders of these names."
    for name in names:
        frames(root / place / name, **settings)
    return list_videos(root, "testing")


def cells(values) -> np.ndarray:
    "A row of MATLAB cells."
    row = np.empty((1, len(values)), object)
    for i, value in enumerate(values):
        row[0, i] = value
    return row


def stated(labels, numbers=None):
    "Labels are those of the videos' numbers."
    numbers = numbers or {n: int("".join(c for c in n if c.isdigit())) for n in labels}
    return {n: y.tolist() for n, y in labels.items()} == {n: anomalous(i).tolist() for n, i in numbers.items()}


def ped2(root, mask="{:03d}.bmp", script=True, count=12):
    "UCSD Ped2 as it is published."
    for i in range(1, count + 1):
        frames(root / "Train" / f"Train{i:03d}", 2, "{:03d}.tif")
        frames(root / "Test" / f"Test{i:03d}", name="{:03d}.tif")
        frames(root / "Test" / f"Test{i:03d}_gt", name=mask, value=anomalous(i))
    if script:
        lines = [
            f"TestVideoFile{{end+1}}.gt_frame = [{', '.join(f'{a:g}:{b:g}' for a, b in spans(i).T)}];"
            for i in range(1, count + 1)
        ]
        write_text(root / "Test" / "UCSDped2.m", "% ground truth\nTestVideoFile = {};\n" + "\n".join(lines) + "\n")
    return root


def test_ped2_as_published(tmp_path):
    root = ped2(tmp_path / "UCSDped2")
    (root / "Test" / "._UCSDped2.m").write_bytes(b"\0\5\x16\7 gt_frame")  # what macOS leaves in archives
    (root / "Test" / "Test001" / "._001.tif").write_bytes(b"\0\5\x16\7")
    assert [v.name for v in list_videos(root, "training")] == [f"Train{i:03d}" for i in range(1, 13)]
    testing = list_videos(root, "testing")
    assert [v.name for v in testing] == [f"Test{i:03d}" for i in range(1, 13)] and all(
        len(v.frames) == T for v in testing
    )
    assert list(ground_truths(root)) == ["masks", "gt_frame"]
    for label_type in (None, "masks", "gt_frame"):
        assert stated(frame_labels(root, testing, label_type)), label_type
    assert stated(frame_labels(root, testing[6:8]))  # some of the videos
    for i in (1, 2, 4, 12):
        shutil.rmtree(root / "Test" / f"Test{i:03d}")  # its masks stay
    assert [v.name for v in list_videos(root, "testing")][:2] == ["Test003", "Test005"] and stated(
        frame_labels(root, list_videos(root, "testing"))
    )


def test_ped2_with_masks_called_frame001_and_an_error_where_masks_and_script_differ(tmp_path):
    root = ped2(tmp_path, "frame{:03d}.bmp", count=3)
    testing = list_videos(root, "testing")
    assert stated(frame_labels(root, testing))
    script = root / "Test" / "UCSDped2.m"
    write_text(script, script.read_text().replace("[2:4]", "[2:5, 9]"))
    with pytest.raises(
        DataError,
        match=r"2 ground truths \(masks, gt_frame\), and they differ: in video Test002, 3 frames .* by masks and 5 by gt_frame; name one",
    ):
        frame_labels(root, testing)
    assert frame_labels(root, testing, "gt_frame")["Test002"].nonzero()[0].tolist() == [1, 2, 3, 4, 8]
    write_text(script, script.read_text().replace("[2:5, 9]", "[2:13]"))
    with pytest.raises(DataError, match=r"video Test002: event 2..13 lies outside its 12 frames"):
        frame_labels(root, testing, "gt_frame")


def test_ped1_has_masks_for_some_videos_only(tmp_path):
    root = ped2(tmp_path, count=4)
    shutil.rmtree(root / "Test" / "Test003_gt")
    testing = list_videos(root, "testing")
    with pytest.raises(DataError, match=r"masks cannot be read .*Test003.*; name one"):
        frame_labels(root, testing)
    with pytest.raises(MissingFileError, match=r"no ground truth for video Test003"):
        frame_labels(root, testing, "masks")
    assert stated(frame_labels(root, testing, "gt_frame"))
    (root / "Test" / "Test004_gt" / "005.bmp").unlink()
    with pytest.raises(MissingFileError, match=r"Test004_gt: no ground truth for frame 005"):
        frame_labels(root, [v for v in testing if v.name == "Test004"], "masks")


def test_avenue_volumes_with_two_videos_on_disk(tmp_path):
    testing = videos(tmp_path, ["03", "05"])
    for i in range(1, 22):
        (tmp_path / "testing_label_mask").mkdir(exist_ok=True)
        savemat(
            tmp_path / "testing_label_mask" / f"{i}_label.mat",
            {"volLabel": cells([np.full((3, 4), int(y)) for y in (anomalous(i) if i < 13 else np.ones(T))])},
        )
    assert stated(frame_labels(tmp_path, testing))
    (tmp_path / "testing_label_mask" / "5_label.mat").unlink()
    with pytest.raises(DataError, match=r"testing_label_mask: video 05 is number 5"):
        frame_labels(tmp_path, testing)


@pytest.mark.parametrize("form", ["cells", "variables"])
@pytest.mark.parametrize(
    "names", [[str(i) for i in range(1, 13)], [f"{i:02d}" for i in range(1, 13)], ["03", "05"], ["Test10", "Test9"]]
)
def test_intervals_belong_to_the_number_of_the_video(tmp_path, names, form):
    testing = videos(tmp_path, names)
    savemat(
        tmp_path / "gt.mat",
        {"gt": cells([spans(i) for i in range(1, 13)])}
        if form == "cells"
        else {f"{i:02d}": spans(i) for i in range(1, 13)},
    )
    assert stated(frame_labels(tmp_path, testing)) and [v.name for v in testing] == sorted(
        names, key=lambda n: int(n.removeprefix("Test"))
    )


def test_videos_counted_from_zero_and_videos_without_numbers_need_the_whole_set(tmp_path):
    savemat(tmp_path / "gt.mat", {"gt": cells([spans(i) for i in (1, 2, 3)])})
    testing = videos(tmp_path, ["00", "01", "02"])
    assert stated(frame_labels(tmp_path, testing), {"00": 1, "01": 2, "02": 3})
    with pytest.raises(DataError, match=r"video 00 is number 0, and there are labels for 1 to 3"):
        frame_labels(tmp_path, testing[:2])
    shutil.rmtree(tmp_path / "testing")
    testing = videos(tmp_path, ["01_0014", "01_002", "10_1"])
    assert stated(
        frame_labels(tmp_path, testing), {"01_002": 1, "01_0014": 2, "10_1": 3}
    )  # natural order of the whole set
    with pytest.raises(DataError, match=r"labels for 3 videos, here are 2, and the name '01_002' does not say which"):
        frame_labels(tmp_path, testing[:2])
    frames(tmp_path / "testing" / "frames" / "entrance")
    with pytest.raises(DataError, match=r"labels for 3 videos, here are 4"):
        frame_labels(tmp_path, list_videos(tmp_path, "testing"))


def test_numbers_beyond_the_cells_are_an_error_though_the_counts_agree(tmp_path):
    testing = videos(tmp_path, ["03", "05"])
    savemat(tmp_path / "gt.mat", {"gt": cells([spans(1), spans(2)])})
    with pytest.raises(DataError, match=r"gt.mat: video 03 is number 3"):
        frame_labels(tmp_path, testing)


def test_tables_of_two_events(tmp_path):
    testing = videos(tmp_path, ["1", "2"])
    right = np.isin(np.arange(T), [1, 2, 3, 7, 8])
    for table in ([[2, 4], [8, 9]], [[2, 8], [4, 9]]):
        savemat(tmp_path / "gt.mat", {"gt": cells([np.array(table), np.zeros((0, 0))])})
        labels = frame_labels(tmp_path, testing)
        assert np.array_equal(labels["1"], right) and not labels["2"].any()
    savemat(
        tmp_path / "gt.mat", {"gt": cells([np.array([[2, 3], [4, 9]]), np.array([[1, 2, 3], [1, 2, 3]])])}
    )  # rows in order, the other table in columns
    with pytest.raises(
        DataError,
        match=r"video 1 has two events, \[\[2, 3\], \[4, 9\]\], in order in rows, and other tables of the file have them in columns",
    ):
        frame_labels(tmp_path, testing)
    assert frame_labels(tmp_path, testing, events="columns")["1"].sum() == 8
    savemat(tmp_path / "gt.mat", {"gt": cells([np.array([[2, 13], [4, 9]]), spans(2)])})
    with pytest.raises(DataError, match=r"video 1 has two events, .* in neither columns nor rows"):
        frame_labels(tmp_path, testing)
    savemat(
        tmp_path / "gt.mat", {"gt": cells([np.array([[2, 4], [6, 7], [9, 9]]), np.array([[5, 6]])])}
    )  # (3, 2) and (1, 2)
    assert {v: y.nonzero()[0].tolist() for v, y in frame_labels(tmp_path, testing).items()} == {
        "1": [1, 2, 3, 5, 6, 8],
        "2": [4, 5],
    }
    with pytest.raises(DataError, match=r"events='both'"):
        frame_labels(tmp_path, testing, events="both")
    savemat(tmp_path / "gt.mat", {"gt": cells([np.array([[2.5], [4]]), spans(2)])})
    with pytest.raises(DataError, match=r"video 1: event 2.5..4"):
        frame_labels(tmp_path, testing)


def test_shanghaitech_arrays_by_name(tmp_path):
    testing = videos(tmp_path, ["01_0014", "01_0015", "02_0014"])
    names = {"01_0014": 1, "01_0015": 2, "02_0014": 3, "12_0149": 4}  # one more than is on disk
    for name, i in names.items():
        save_array(tmp_path / "testing" / "test_frame_mask" / f"{name}.npy", anomalous(i).astype(np.uint8))
    assert stated(frame_labels(tmp_path, testing), {n: i for n, i in names.items() if i < 4})
    (tmp_path / "testing" / "test_frame_mask" / "01_0015.npy").unlink()
    with pytest.raises(MissingFileError, match=r"no ground truth for video 01_0015"):
        frame_labels(tmp_path, testing)
    save_array(tmp_path / "testing" / "test_frame_mask" / "01_0015.npy", np.zeros(11))
    with pytest.raises(DataError, match=r"11 labels for video 01_0015, which has 12 frames"):
        frame_labels(tmp_path, testing)


@pytest.mark.parametrize("shape", [(-1,), (1, -1), (-1, 1)])
def test_labels_end_to_end_are_split_in_natural_order(tmp_path, shape):
    testing = videos(tmp_path, [str(i) for i in range(1, 13)])
    values = np.concatenate([anomalous(i) for i in range(1, 13)]).astype(np.int8)
    save_array(tmp_path / "frame_labels_ped2.npy", values.reshape(shape))
    assert stated(frame_labels(tmp_path, testing[::-1]))
    with pytest.raises(DataError, match=r"144 labels for the 132 frames of 11 videos"):
        frame_labels(tmp_path, testing[1:])
    save_array(tmp_path / "testing" / "frame_labels_2.npy", values)
    with pytest.raises(DataError, match=r"frame_labels_ped2.npy, testing/frame_labels_2.npy all may be frame_labels"):
        frame_labels(tmp_path, testing)


def save_hdf5(path, cell_values):
    """What MATLAB's `save('-v7.3')` writes for a row of cells: a header of 512 bytes, transposed arrays, references,
    empties as their size.
    """
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as f:
        refs = np.empty((len(cell_values), 1), h5py.ref_dtype)
        for i, value in enumerate(cell_values):
            empty = value.size == 0
            item = f.create_dataset(f"#refs#/{i}", data=np.array(value.shape, np.uint64) if empty else value.T)
            item.attrs["MATLAB_class"] = np.bytes_("double")
            if empty:
                item.attrs["MATLAB_empty"] = np.uint8(1)
            refs[i, 0] = item.ref
        f.create_dataset("gt", data=refs, dtype=h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_("cell")
        f.create_group("about").attrs["MATLAB_class"] = np.bytes_("struct")
    with open(path, "r+b") as f:
        f.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))


def test_matlab_7_3(tmp_path, monkeypatch):
    testing = videos(tmp_path, ["3", "7", "12"])
    tables = [spans(i) if i != 3 else np.array([[3, 5, 5], [4, 5, 5]], float) for i in range(1, 13)]
    save_hdf5(tmp_path / "gt.mat", tables)
    assert stated(frame_labels(tmp_path, testing))
    savemat(tmp_path / "old.mat", {"gt": cells(tables)})
    new, old = load_mat(tmp_path / "gt.mat")["gt"], load_mat(tmp_path / "old.mat")["gt"]
    assert new.shape == old.shape and all(np.array_equal(a, b) for a, b in zip(new.flat, old.flat))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py.*anomaly_nb\[video\]"):
        load_mat(tmp_path / "gt.mat")


@pytest.mark.parametrize(
    "content", [b"", b"MATLAB 5.0 MAT-file".ljust(200), b"\x89HDF\r\n\x1a\n" + bytes(40), b"gt = 1"]
)
def test_damaged_mat_files_name_the_file(tmp_path, content):
    (tmp_path / "gt.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"gt.mat: cannot be read as a MATLAB file"):
        load_mat(tmp_path / "gt.mat")


# members of the family that nobody named


def test_unpadded_frames_and_masks(tmp_path):
    testing = videos(tmp_path, ["1"], name="frame_{}.png")
    frames(tmp_path / "testing" / "masks" / "1", name="frame_{}.png", value=anomalous(9))
    assert testing[0].frames == tuple(f"frame_{t}" for t in range(1, 13))
    assert np.array_equal(
        frame_labels(tmp_path, testing)["1"], anomalous(9)
    )  # frames 9, 10, 11, not frame_9, frame_1, frame_10


def test_masks_of_videos_named_otherwise_and_lossy_masks(tmp_path):
    testing = videos(tmp_path, ["2", "10", "11"])
    for i in (10, 11, 2):
        frames(tmp_path / "testing" / "masks" / f"mask_{i:02d}", name="{}.jpg", value=anomalous(i))
    assert stated(frame_labels(tmp_path, testing))
    (tmp_path / "testing" / "masks" / "mask_02").rename(tmp_path / "testing" / "masks" / "mask_03")
    with pytest.raises(DataError, match=r"masks: nothing in it belongs to video '2'"):
        frame_labels(tmp_path, testing)


def test_a_film_and_a_folder_of_one_name_are_not_one_video(tmp_path):
    cv2 = pytest.importorskip("cv2")
    frames(tmp_path / "01", 2)
    film = cv2.VideoWriter(str(tmp_path / "01.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    film.write(np.zeros((32, 32, 3), np.uint8))
    film.release()
    with pytest.raises(DataError, match=r"are both video 01"):
        list_videos(tmp_path)


def test_a_video_called_gt_is_a_video(tmp_path):
    for name in ("ferrari_gt", "other", "other_gt"):
        frames(tmp_path / "cars" / name, 2)
    assert [v.name for v in list_videos(tmp_path / "cars")] == ["ferrari_gt", "other"]


def test_converted_frames_keep_the_order_of_time(tmp_path):
    for video, frame in ((10, 1), (9, 10), (9, 9), (9, 100)):
        save_array(tmp_path / "old" / str(video) / f"{frame}.npy", np.full((1, 2), frame))
    convert_pickled(tmp_path / "old", tmp_path / "new", "velocity", trust=True, extractor="flow net")
    found = load_object_features(tmp_path / "new", "velocity")
    assert found.frames == {"9": ("9", "10", "100"), "10": ("1",)} and list(found.frames) == ["9", "10"]
    assert found.values[:, 0].tolist() == [9, 10, 100, 1]


def test_names_of_three_cameras_with_masks_numbered_alike_are_not_joined(tmp_path):
    testing = videos(tmp_path, ["cam1_1", "cam2_1", "cam3_1"])
    for letter in "abc":
        frames(tmp_path / "testing" / "masks" / f"{letter}_1", value=anomalous(1))
    with pytest.raises(DataError, match=r"nothing in it belongs to video 'cam1_1'"):
        frame_labels(tmp_path, testing)


# what must not be guessed


@pytest.mark.parametrize("ending", ["_gt", "_GT", "-Gt", "_mask", "_ground_truth"])
def test_mask_folders_in_any_case_are_no_videos_and_agree_with_the_script(tmp_path, ending):
    root = ped2(tmp_path, count=3)
    for i in (1, 2, 3):
        (root / "Test" / f"Test{i:03d}_gt").rename(root / "Test" / f"Test{i:03d}{ending}")
    testing = list_videos(root, "testing")
    assert [v.name for v in testing] == ["Test001", "Test002", "Test003"] and list(ground_truths(root)) == [
        "masks",
        "gt_frame",
    ]
    assert stated(frame_labels(root, testing))  # two types that agree: nothing to choose
    frames(root / "Test" / "Test001_gT", value=anomalous(2))
    with pytest.raises(DataError, match=r"are both the masks of video Test001; keep one"):
        frame_labels(root, testing, "masks")


def test_what_systems_leave_behind_is_nobody_s_file(tmp_path):
    testing = videos(tmp_path, ["03", "05"])
    for folder in ("testing/frames", "testing/frames/03", "testing/masks", "testing_label_mask", "."):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in (
            "._Test001.mat",
            ".DS_Store",
            "Thumbs.db",
            "._001.png",
            "._3_label.mat",
            "._frame_labels.npy",
            "._a.m",
        ):
            (tmp_path / folder / name).write_bytes(b"\0\5\x16\7 gt_frame")
    (tmp_path / "testing" / "frames" / "__MACOSX").mkdir()
    frames(tmp_path / "testing" / "frames" / "__MACOSX" / "03")
    frames(tmp_path / "testing" / "masks" / "__MACOSX")  # would be a partner without a number
    for i in (3, 5):
        frames(tmp_path / "testing" / "masks" / f"mask{i}", value=anomalous(i))
        (tmp_path / "testing" / "masks" / f"mask{i}" / "._001.png").write_bytes(b"\0\5\x16\7")
        savemat(
            tmp_path / "testing_label_mask" / f"{i}_label.mat",
            {"volLabel": cells([np.full((3, 4), int(y)) for y in anomalous(i)])},
        )
    again = list_videos(tmp_path, "testing")
    assert again == testing and list(ground_truths(tmp_path)) == ["masks", "volumes"]
    assert stated(frame_labels(tmp_path, again)) and stated(frame_labels(tmp_path, again, "masks"))


@pytest.mark.parametrize("label_type", ["gt.mat", "masks", "testing_label_mask"])
@pytest.mark.parametrize(
    "names", [["Test_01_part1", "Test_01_part2"], ["Test_01_part2"], ["01a", "01b"], ["01_vol1", "02"], ["1 pt 1", "2"]]
)
def test_a_piece_of_a_video_does_not_get_the_labels_of_a_whole_one(tmp_path, names, label_type):
    testing = videos(tmp_path, names)
    savemat(tmp_path / "gt.mat", {"gt": cells([spans(1), spans(2)])})
    for i in (1, 2):
        frames(tmp_path / "testing" / "masks" / f"{i:02d}", value=anomalous(i))
        (tmp_path / "testing_label_mask").mkdir(exist_ok=True)
        savemat(
            tmp_path / "testing_label_mask" / f"{i}_label.mat",
            {"volLabel": cells([np.full((3, 4), int(y)) for y in anomalous(i)])},
        )
    with pytest.raises((DataError, MissingFileError), match=rf"video '?{testing[0].name}"):
        frame_labels(
            tmp_path, testing, {"gt.mat": "intervals", "testing_label_mask": "volumes"}.get(label_type, label_type)
        )


def test_a_number_in_front_of_all_names_is_no_number_of_a_video(tmp_path):
    savemat(tmp_path / "gt.mat", {"gt": cells([spans(i) for i in range(1, 13)])})
    named = {f"ped2_test_{i:02d}": i for i in range(1, 13)}
    assert stated(frame_labels(tmp_path, videos(tmp_path, named)), named)
    for some in (
        ["ped2_test_03", "ped2_test_05"],
        ["01_0002", "01_0003"],
        ["ped2_test_03"],
    ):  # of video 2? of scene 1? labels of 1 to 12 say neither
        shutil.rmtree(tmp_path / "testing")
        with pytest.raises(DataError, match=rf"the name '{some[0]}' does not say which"):
            frame_labels(tmp_path, videos(tmp_path, some))
    shutil.rmtree(tmp_path / "testing")
    assert stated(
        frame_labels(tmp_path, videos(tmp_path, ["cam77_3", "cam77_5"])), {"cam77_3": 3, "cam77_5": 5}
    )  # 77 is no video


@pytest.mark.parametrize("names", [["02", "entrance"], ["Test1", "cam1"], ["1", "01"], ["2", "walk"]])
def test_a_whole_set_is_not_counted_off_against_what_its_names_say(tmp_path, names):
    savemat(tmp_path / "gt.mat", {"gt": cells([spans(1), spans(2)])})
    with pytest.raises(DataError, match=r"is number \d in order and \d by its name"):
        frame_labels(tmp_path, videos(tmp_path, names))


def test_numbers_with_a_gap_are_not_counted_from_zero(tmp_path):
    testing = videos(tmp_path, ["00", "01", "02"])
    (tmp_path / "testing_label_mask").mkdir()
    for i in (1, 2, 4):
        savemat(
            tmp_path / "testing_label_mask" / f"{i}_label.mat",
            {"volLabel": cells([np.full((3, 4), int(y)) for y in anomalous(i)])},
        )
    with pytest.raises(DataError, match=r"video 00 is number 0, and there are labels for 1, 2, 4"):
        frame_labels(tmp_path, testing)


@pytest.mark.parametrize(
    "table, words",
    [
        ([[2, np.nan], [4, np.nan], [6, 7]], r"event 2..nan is no pair of numbers"),
        ([[2, -3], [4, 9], [6, 9]], r"event 2..-3 ends before it starts"),
        ([[-2], [4]], r"event -2..4 lies outside its 12 frames, which count from 1"),
        ([[0], [4]], r"event 0..4 lies outside"),
        ([[9], [4]], r"event 9..4 ends before it starts"),
        ([[2, 4, 6], [3, np.inf, 7]], r"event 4..inf is no pair of numbers"),
        ([[2, np.nan], [4, np.nan]], r"has two events, \[\[2, nan\], \[4, nan\]\], in order in neither"),
        ([[2, 4, 6, 8]], r"has labels of shape \(1, 4\)"),
    ],
)
def test_wrong_rows_of_event_tables_name_the_video(tmp_path, table, words):
    testing = videos(tmp_path, ["1", "2"])
    savemat(tmp_path / "gt.mat", {"gt": cells([spans(1), np.array(table, float)])})
    with pytest.raises(DataError, match=r"gt.mat: video 2:? " + words):
        frame_labels(tmp_path, testing)


def test_two_ones_for_two_frames_may_mean_two_things(tmp_path):
    testing = videos(tmp_path, ["1"], n=2)
    savemat(tmp_path / "gt.mat", {"gt": cells([np.array([[1], [1]])])})
    with pytest.raises(DataError, match=r"video 1 has two frames and labels \[1, 1\]"):
        frame_labels(tmp_path, testing)
    savemat(tmp_path / "gt.mat", {"gt": cells([np.array([[0], [1]])])})
    assert frame_labels(tmp_path, testing)["1"].tolist() == [False, True]


def test_masks_of_a_volume_that_are_no_numbers_name_the_video(tmp_path):
    testing = videos(tmp_path, ["1"])
    (tmp_path / "testing_label_mask").mkdir()
    savemat(
        tmp_path / "testing_label_mask" / "1_label.mat",
        {"volLabel": cells([np.full((3, 4), np.nan) for _ in range(T)])},
    )
    with pytest.raises(DataError, match=r"1_label.mat: the masks of video 1 hold values that are no numbers"):
        frame_labels(tmp_path, testing)


def test_labels_and_events_can_be_chosen_in_the_config(tmp_path):
    testing = videos(tmp_path / "data", ["1", "2"])
    two = np.array([[2, 3], [4, 9]])
    savemat(tmp_path / "data" / "gt.mat", {"gt": cells([two, np.array([[5], [6]])])})
    config = lambda **own: write_text(
        tmp_path / "config.yml",
        "datasets:\n  mine:\n    root: "
        + str(tmp_path / "data")
        + "".join(f"\n    {k}: {v}" for k, v in own.items())
        + "\n",
    )
    labels = lambda plan: {
        v: y.nonzero()[0].tolist() for v, y in frame_labels(plan.root, testing, plan.ground_truth, plan.events).items()
    }
    plan = lambda: plan_for("mine", tmp_path / "config.yml")
    config()
    with pytest.raises(DataError, match=r"video 1 has two events"):
        labels(plan())
    config(events="columns", ground_truth="intervals")
    assert labels(plan()) == {"1": [1, 2, 3, 4, 5, 6, 7, 8], "2": [4, 5]}  # 2..4 and 3..9
    config(events="sideways")
    with pytest.raises(DataError, match=r"datasets.mine: events='sideways'; use one of columns, rows"):
        plan()
    config(ground_truth="mask")
    with pytest.raises(DataError, match=r"datasets.mine: ground_truth='mask'; use one of masks, gt_frame"):
        plan()


def test_two_events_are_read_as_they_are_said_to_be(tmp_path):
    testing = videos(tmp_path, ["1"])
    savemat(tmp_path / "gt.mat", {"gt": cells([np.array([[1, 2], [8, 9]])])})
    assert [frame_labels(tmp_path, testing, events=e)["1"].sum() for e in ("rows", "columns")] == [4, 9]


def test_a_script_with_a_gap_is_no_ground_truth(tmp_path):
    root = ped2(tmp_path, count=2)
    for gone in (root / "Test").glob("*_gt"):
        shutil.rmtree(gone)
    script = root / "Test" / "UCSDped2.m"
    write_text(
        script,
        script.read_text()
        .replace("TestVideoFile{end+1}", "TestVideoFile{3}", 1)
        .replace("TestVideoFile{end+1}", "TestVideoFile{1}"),
    )
    with pytest.raises(
        DataError, match=r"UCSDped2.m: gives frames for videos .*; the numbers must run from 1 without a gap"
    ):
        frame_labels(root, list_videos(root, "testing"))
