"Scores of another film: inputs are exchanged under equal names, and every command and the report must notice."

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from anomaly_nb.cli.main import app
from anomaly_nb.core.errors import DataError, MissingFileError
from anomaly_nb.core.files import write_text
from anomaly_nb.video.clips import make_video_dataset
from anomaly_nb.video.extraction import check_extracted, extract_videos
from anomaly_nb.video.feature_files import load_object_features, read_feature_index
from anomaly_nb.video.layouts import list_videos
from anomaly_nb.video.pipeline import calibrate_dataset, extract_dataset, score_dataset
from anomaly_nb.video.plan import located, plan_for
from anomaly_nb.video.streams import Extraction
from anomaly_nb.video.view import plan_of_report

FRAMES = 12


def town(folder: Path, intruder: str | None, seed: int) -> Path:
    """A data set called `videos` in a folder of its own; one with and one without an intruder have the same names and
    lengths.
    """
    root = make_video_dataset(
        folder / "videos", n_train=3, intruders=(intruder or "walker",), frames=FRAMES, random_state=seed
    )
    shutil.rmtree(root / "testing" / "masks")
    return root


def scores(root: Path, home: Path, *more: str) -> np.ndarray:
    "What `score-video` writes."
    out = home / "out"
    result = CliRunner().invoke(
        app,
        [
            "score-video",
            "--dataset-name",
            "clips",
            "--root",
            str(root),
            "--config",
            str(home / "config.yml"),
            "--out",
            str(out),
            "--all",
            *more,
        ],
    )
    assert result.exit_code in (0, 3), result.output
    return pd.read_csv(out / "frame_scores.csv")["combined"].to_numpy()


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A working folder, whose `data/` is the cache."
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "config.yml", 'datasets: {clips: {extraction: {backbone: ""}}}\n')  # velocities alone: quick
    return tmp_path


def exchange(a: Path, b: Path) -> None:
    "Two folders or files under each other's name."
    a.rename(a.with_name("away"))
    b.rename(a)
    a.with_name("away").rename(b)


def test_two_roots_of_equal_names_give_their_own_scores(home):
    north, south = town(home / "north", "cyclist", 1), town(home / "south", None, 2)
    write_text(home / "alone" / "config.yml", (home / "config.yml").read_text())
    first = scores(north, home)
    second = scores(south, home)
    assert not np.array_equal(first, second)
    alone = scores(south, home / "alone", "--features", str(home / "alone" / "features"))  # with a cache of its own
    assert np.array_equal(second, alone) and np.array_equal(scores(north, home), first)
    exchange(north, south)
    assert np.array_equal(scores(north, home), second) and np.array_equal(scores(south, home), first)


def test_a_test_film_replaced_in_place_is_extracted_again_and_alone(home):
    root, other = town(home / "north", "cyclist", 1), town(home / "south", None, 2)
    plan = plan_for("clips", None, root, extraction={"backbone": ""})
    frames = root / "testing" / "frames"
    shutil.copytree(frames / "01", frames / "02")
    extract_dataset(plan)
    calibrate_dataset(plan, home / "c.yml")
    before = score_dataset(plan, home / "c.yml")[0].set_index("video")["combined"]
    assert np.array_equal(before["01"], before["02"])
    exchange(frames / "01", other / "testing" / "frames" / "01")
    with pytest.raises(DataError, match=r"01: is not the video whose features are in .*; extract it again"):
        score_dataset(plan, home / "c.yml")
    extracted = (located(plan).features / "testing" / "VELOCITIES" / "02.npz").stat().st_mtime_ns
    extract_dataset(plan)
    after = score_dataset(plan, home / "c.yml")[0].set_index("video")["combined"]
    assert np.array_equal(after["02"], before["02"]) and not np.array_equal(after["01"], before["01"])
    assert (located(plan).features / "testing" / "VELOCITIES" / "02.npz").stat().st_mtime_ns == extracted
    shutil.rmtree(frames / "02")  # yesterday's film is gone: its features stay, its scores do not
    assert set(score_dataset(plan, home / "c.yml")[0]["video"]) == {"01"}
    for name in ("010", "011"):  # shorter now
        (frames / "01" / f"{name}.png").unlink()
    extract_dataset(plan)
    assert len(score_dataset(plan, home / "c.yml")[0]) == FRAMES - 2
    shutil.copytree(other / "testing" / "frames" / "01", frames / "03")
    with pytest.raises(MissingFileError, match=r"has no features of .*03; extract it first"):
        score_dataset(plan, home / "c.yml")


def test_a_training_film_replaced_in_place_changes_the_place_of_the_features(home):
    root, other = town(home / "north", "cyclist", 1), town(home / "south", None, 2)
    plan = plan_for("clips", None, root, extraction={"backbone": ""})
    extract_dataset(plan)
    calibrate_dataset(plan, home / "c.yml")
    place = located(plan).features
    exchange(root / "training" / "frames" / "02", other / "training" / "frames" / "02")
    assert located(plan).features != place
    with pytest.raises(MissingFileError, match="extract the features of this split first"):
        calibrate_dataset(plan, home / "c.yml")
    named = replace(plan, features=place)  # a folder named by hand is checked all the same
    with pytest.raises(DataError, match=r"02: is not the video whose features are in"):
        calibrate_dataset(named, home / "c.yml")
    exchange(root / "training" / "frames" / "02", other / "training" / "frames" / "02")
    assert located(plan).features == place and score_dataset(plan, home / "c.yml")[0]["video"].nunique() == 1


def test_content_of_equal_length_is_other_content(tmp_path):
    from anomaly_nb.core.cache import content_of

    one, other = tmp_path / "1", tmp_path / "2"
    one.write_bytes(bytes(100))
    other.write_bytes(bytes(99) + b"1")
    assert content_of({"a": one}).sha256 != content_of({"a": other}).sha256
    assert content_of({"a": one, "b": other}).sha256 != content_of({"a": other, "b": one}).sha256
    assert content_of({"a": one}).sha256 != content_of({"c": one}).sha256


def test_a_film_file_replaced_by_one_of_equal_name_length_and_size(tmp_path):
    import cv2

    def film(path: Path, shift: int) -> None:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, (64, 48))
        for t in range(6):
            image = np.zeros((48, 64, 3), np.uint8)
            image[10:30, 5 + t * shift : 20 + t * shift] = 200
            writer.write(image)
        writer.release()

    (tmp_path / "films").mkdir()
    settings, path, values = Extraction(min_area=20, backbone="", background="none"), tmp_path / "films" / "01.avi", []
    for shift in (1, 4):
        film(path, shift)
        extract_videos(list_videos(tmp_path / "films"), tmp_path / "features", settings)
        values.append(load_object_features(tmp_path / "features", "velocity").values)
    film(path, 1)
    with pytest.raises(DataError, match=r"01.avi: is not the video"):
        check_extracted(tmp_path / "features", list_videos(tmp_path / "films"))
    assert values[0].shape != values[1].shape or not np.allclose(values[0], values[1])


def test_the_report_and_the_commands_share_one_cache(home):
    root = town(home / "north", "cyclist", 1)
    result = CliRunner().invoke(
        app,
        ["extract-video", "--dataset-name", "clips", "--root", str(root), "--config", "none.yml", "--image-size", "16"],
    )
    assert result.exit_code in (0, 3), result.output
    given = dict(
        dataset="clips",
        root=str(root),
        backbone="filters",
        weights="",
        image_size=16,
        k=1,
        metric="euclidean",
        ground_truth="",
        events="",
        seed=3,
        cache="data/features/video",
    )
    plan = plan_of_report(given)
    assert (
        extract_dataset(plan).empty
        and plan.features == located(plan_for("clips", None, root, extraction={"image_size": 16})).features
    )
    shutil.copytree(root, home / "elsewhere")
    assert (
        plan_of_report(given | {"root": str(home / "elsewhere")}).features == plan.features
    )  # a data set that was moved


def test_features_from_before_contents_were_kept_are_read_and_made_again_when_extracted(tmp_path):
    root = town(tmp_path, "runner", 1)
    plan = plan_for("clips", None, root, tmp_path / "features", {"backbone": ""})
    extract_dataset(plan)
    calibrate_dataset(plan, tmp_path / "c.yml")
    frames = score_dataset(plan, tmp_path / "c.yml")[0]
    for split in ("training", "testing"):
        (tmp_path / "features" / split / "content.json").unlink()
    assert score_dataset(plan, tmp_path / "c.yml")[0].equals(frames)
    assert not extract_dataset(plan).empty and score_dataset(plan, tmp_path / "c.yml")[0].equals(frames)
    known = json.loads((tmp_path / "features" / "testing" / "content.json").read_text())
    assert (
        known["videos"]["01"]["by"] == "sha256"
        and known["videos"]["01"]["files"] == FRAMES
        and list(read_feature_index(tmp_path / "features" / "testing")["videos"]) == ["01"]
    )
    (tmp_path / "features" / "testing" / "content.json").write_text("[]")
    with pytest.raises(DataError, match="is not a record of contents"):
        score_dataset(plan, tmp_path / "c.yml")
