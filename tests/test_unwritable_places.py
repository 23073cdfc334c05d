"Where nothing can be written, a command says so before it computes."

import os
from pathlib import Path

import pytest

from anomaly_nb.core.errors import DataError
from anomaly_nb.core.listing import check_writable
from anomaly_nb.scoring import Detector
from tests.commands import FIT, fails, parts, run

PLACES = {  # where it is, and what is said of it
    "file/det": "file is a file, no folder; name another place",
    "/proc/det": "nothing can be written in /proc (",
    "x" * 300: "has a name of more than 255 bytes; give a shorter one",
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    root = tmp_path_factory.mktemp("unwritable")
    parts(root / "good", range(8))
    (root / "file").write_text("mine")
    assert run("fit", root / "good", "--out", root / "det", *FIT)[0] == 0
    return root


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("place, why", PLACES.items(), ids=["file", "no permission", "long name"])
def test_commands_refuse_it_before_they_compute(fitted, monkeypatch, capsys, place, why):
    def compute(*words, **options):
        pytest.fail("it was computed first")

    for name in ("fit", "update", "export", "score_patches", "load"):
        monkeypatch.setattr(Detector, name, compute)
    monkeypatch.chdir(fitted)
    before = sorted(p.name for p in fitted.iterdir())
    for words, option in (
        (("fit", "good", "--out", place, *FIT), "--out"),
        (("update", "det", "good", "--out", place), "--out"),
        (("export", "det", place), "OUT"),
        (("predict", "det", "good", "--out", f"{place}.csv"), "--out"),
        (("predict", "det", "good", "--maps", place), "--maps"),
        (("score-video", "--out", place), "--out"),
        (("extract", "good", "--dataset", "folder", "--out", place), "--out"),
        (("street", "evaluate", "--logits", "good", "--out", place), "--out"),
    ):
        error = fails(capsys, *words)
        assert error.startswith(f"anomaly-nb: {option} {place}") and why in error, (words, error)
    assert sorted(p.name for p in fitted.iterdir()) == before


def test_a_detector_in_a_folder_that_cannot_be_replaced(fitted, tmp_path, monkeypatch, capsys):
    "The folder around it is written in, and a mounted disk is no folder to be replaced."
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(DataError, match="disk: is a mounted disk, which cannot be replaced; name a folder in it"):
        check_writable(tmp_path / "disk", whole=True)
    assert "--out" in (error := fails(capsys, "fit", fitted / "good", "--out", tmp_path / "disk", *FIT)), error
    assert "is a mounted disk" in error
    assert run("fit", fitted / "good", "--out", tmp_path / "disk/det", *FIT)[0] == 0
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["det"]
