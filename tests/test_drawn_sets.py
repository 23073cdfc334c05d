"""A drawn set holds what was asked for, whatever was drawn there before."""

import pytest

from anomaly_nb.atoms.samples import planted_clips
from anomaly_nb.core.files import verify_manifest
from anomaly_nb.data.logical import write_logical_samples
from anomaly_nb.data.samples import write_samples
from anomaly_nb.data.shapes import write_trays
from anomaly_nb.segmentation.samples import write_street_samples
from anomaly_nb.video.clips import make_video_dataset

SETS = {
    "samples": lambda folder, n: write_samples(folder, n, n, n, 48),
    "logical": lambda folder, n: write_logical_samples(folder, n, n, n, 64),
    "trays": lambda folder, n: write_trays(folder, ["red circle", "blue square"][: n // 2], "green square", n, n, n),
}


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))


@pytest.mark.parametrize("name", SETS)
def test_a_smaller_set_leaves_nothing_of_a_larger_one(tmp_path, name):
    SETS[name](tmp_path / "a", 4)
    SETS[name](tmp_path / "a", 2)
    SETS[name](tmp_path / "b", 2)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert [p for p in (tmp_path / "a").rglob("*") if p.is_dir() and not any(p.iterdir())] == []
    verify_manifest(tmp_path / "a")


def test_sets_without_a_record_of_their_own_refuse_to_be_mixed(tmp_path):
    write_street_samples(tmp_path / "street", (2, 1, 1), (64, 96))
    with pytest.raises(ValueError, match=r"0001\.png: is not of the set that is written here \(2 such images\)"):
        write_street_samples(tmp_path / "street", (1, 1, 1), (64, 96))
    make_video_dataset(tmp_path / "video", n_train=2, intruders=(), frames=3)
    with pytest.raises(ValueError, match=r"is not of the set that is written here \(3 such images\)"):
        make_video_dataset(tmp_path / "video", n_train=1, intruders=(), frames=3)
    planted_clips(tmp_path / "clips", videos=2, frames=4)
    with pytest.raises(ValueError, match="is not of the set that is written here"):
        planted_clips(tmp_path / "clips", videos=1, frames=4)


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_drawn_into_a_folder_of_somebody(tmp_path, name):
    "A root that is given without `dataset=folder` is a user's own data."
    SETS[name](tmp_path / "a", 2)
    one = min((tmp_path / "a").rglob("*.png"))
    for keep in ("manifest.json", one.relative_to(tmp_path / "a").as_posix(), "notes.txt"):
        mine = tmp_path / f"mine_{len(keep)}" / keep
        mine.parent.mkdir(parents=True)
        mine.write_text('{"mine": true}')
        with pytest.raises(ValueError, match=r"are not drawn among them.*dataset=folder"):
            SETS[name](tmp_path / f"mine_{len(keep)}", 2)
        assert mine.read_text() == '{"mine": true}' and len(list((tmp_path / f"mine_{len(keep)}").rglob("*.*"))) == 1
