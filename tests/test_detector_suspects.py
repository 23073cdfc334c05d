"A defective image among the normal ones is named, wherever a detector learns."

import shutil
import warnings

import pytest

from anomaly_nb.core.errors import Notice
from anomaly_nb.data import write_samples
from anomaly_nb.scoring import Detector
from tests.commands import run


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    root = write_samples(tmp_path_factory.mktemp("line"), n_train=24, n_good=3, n_defect=6, size=96) / "nut"
    wrong = root / "wrong"
    shutil.copytree(root / "train/good", wrong)
    shutil.copy(max(root.glob("test/stain/*.png")), wrong / "zz_stained.png")
    return root, wrong


@pytest.mark.parametrize("recipe", ["knn", "padim", "positional", "mahalanobis"])
def test_it_is_named_and_nothing_is_where_all_are_good(line, recipe):
    root, wrong = line
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        good = Detector(recipe, "filters", image_size=96).fit(sorted((root / "train/good").glob("*.png")))
    assert good.notes_ == []
    with pytest.warns(Notice, match=r"1 of 25 normal images scores far above the others.*zz_stained.png"):
        bad = Detector(recipe, "filters", image_size=96).fit(sorted(wrong.glob("*.png")))
    assert "it sets the threshold" in bad.notes_[0] and bad.threshold_.value == bad.held_out_.max()


def test_commands_and_card_say_it_and_it_stays_with_the_detector(line, tmp_path):
    root, wrong = line
    fit = ["fit", wrong, "--recipe", "padim", "--backbone", "filters", "--image-size", 96, "--out", tmp_path / "det"]
    with pytest.warns(Notice, match="zz_stained.png"):
        assert run(*fit)[0] == 0
    assert "zz_stained.png" in (tmp_path / "det/detector.html").read_text()
    assert "zz_stained.png" in Detector.load(tmp_path / "det").notes_[0]
    with pytest.warns(Notice, match="1 of 28 normal images scores far above"):
        assert run("update", tmp_path / "det", *sorted((root / "test/good").glob("*.png")))[0] == 0
