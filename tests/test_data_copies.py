"Copies of an image on both sides of a split: kept together where the library splits, said where the user did."

import numpy as np
import pytest
from PIL import Image

from anomaly_nb.data import inspect_folder, read_index
from anomaly_nb.data.census import attention_lines, equal_files, same_files
from anomaly_nb.data.index import split_normals
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.validation import artificial_validation
from anomaly_nb.scoring.view import unseen
from tests.commands import run

N = 10


def image(i):
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    "Ten normal images, each as two files of the same bytes and as a BMP; one defect. No split."
    for i in range(N):
        (tmp_path / "parts/good").mkdir(parents=True, exist_ok=True)
        image(i).save(tmp_path / f"parts/good/{i}_a.png")
        image(i).save(tmp_path / f"parts/good/{i}_b.png")
        image(i).save(tmp_path / f"parts/good/{i}_c.bmp")
    (tmp_path / "parts/scratch").mkdir()
    image(99).save(tmp_path / "parts/scratch/0.png")
    return tmp_path / "parts"


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_on_one_side(folder, seed):
    index = read_index("folder", folder, random_state=seed)
    normal = index[index["label"] == 0]
    part = normal["image_path"].str.extract(r"/(\d+)_[abc]\.", expand=False)
    assert (normal.groupby(part)["split"].nunique() == 1).all() and set(normal["split"]) == {"train", "test"}
    assert (normal["split"] == "train").mean() == pytest.approx(0.7, abs=0.1)
    said = attention_lines(index.attrs["census"])
    assert said == ["note: 30 normal images of 30 are the same as another, the first 0_a.png and 0_b.png: copies are on one side of the split"]
    assert not index.attrs["census"]["n_in_train_and_test"]
    whole = read_index("folder", folder, n_train=1.0)
    assert not attention_lines(whole.attrs["census"])  # nothing is divided


def test_a_split_without_copies_is_as_ever():
    keys = [f"{i:02d}" for i in range(20)]
    order = np.random.default_rng(3).permutation(20)[:14]
    assert split_normals(keys, 0.7, 3) == {keys[i] for i in order} == split_normals(keys, 0.7, 3, {k: k for k in keys})
    assert split_normals(keys, 1.0) == set(keys) == split_normals(keys, 20, first=dict.fromkeys(keys, "00"))
    assert len(split_normals(keys, 19, first={k: keys[i // 10 * 10] for i, k in enumerate(keys)})) == 10  # one to test on


def test_copies_are_kept_back_together(folder, tmp_path):
    index = read_index("folder", folder, n_train=1.0)
    samples = artificial_validation(index, tmp_path / "made", most=10)
    plain = samples[samples["label"] == 0]
    part = plain["image_path"].str.extract(r"(\d+)_[abc](?:_plain)?\.", expand=False).str.lstrip("0")
    assert set(plain["split"]) == {"train", "validation"} and (plain.groupby(part)["split"].nunique() == 1).all()


@pytest.mark.parametrize("name", ["0_b.png", "0_c.bmp"])
def test_the_split_of_the_user_is_judged(folder, tmp_path, name):
    "The same bytes, and the same pixels in another format: said by inspect and by every report; evaluate leaves it out."
    root = tmp_path / "own"
    for split in ("train", "test"):
        (root / split / "good").mkdir(parents=True)
    for i in range(4):
        image(i).save(root / f"train/good/{i}.png")
    for path in (folder / "good" / name, folder / "good/7_a.png"):
        (root / "test/good" / path.name).write_bytes(path.read_bytes())
    line = f"WARNING: 1 test image is also in training, the first {name}"
    index = read_index("folder", root)
    assert line in attention_lines(index.attrs["census"])
    assert line in run("inspect", root)[1]
    detector = Detector("knn", backbone="filters", image_size=48).fit(sorted(str(p) for p in (root / "train/good").iterdir()))
    rest, learned = unseen(index, detector)
    assert learned == 5 and [p.rsplit("/", 1)[1] for p in rest["image_path"]] == ["7_a.png"]


def test_only_what_may_be_the_same_is_decoded(folder, monkeypatch):
    from anomaly_nb.data import census

    decoded = []
    monkeypatch.setattr(census, "read_values", lambda p: decoded.append(p) or np.zeros(1))
    some = sorted(map(str, folder.glob("good/*.png")))
    assert len(set(same_files(some).values())) == N and not decoded
    image(3).resize((64, 64)).save(folder / "other.bmp")
    assert len(set(same_files([*some, folder / "other.bmp"]).values())) == N + 1 and not decoded  # of another shape
    assert equal_files(some[:1], some[1:3]) == [(some[0], some[1])]
    assert equal_files(some[:1], some[:1]) == [(some[0], some[0])]
    for name in "ab":
        (folder / f"{name}.png").touch()
    assert not equal_files([folder / "a.png"], [folder / "b.png"])  # what is empty is no image


@pytest.mark.parametrize("template", ["image_anomaly", "method_comparison", "few_shot"])
def test_reports_say_what_the_census_says(template):
    import json
    from pathlib import Path

    cells = json.loads((Path(__file__).parent.parent / f"nbs/reports/{template}.ipynb").read_text())["cells"]
    assert "in attention_lines(index.attrs[" in "".join(line for cell in cells for line in cell["source"])


def test_inspection_sees_the_copies_that_fit_sees(folder):
    twice = inspect_folder(folder)["suspicious"]["the same content twice"]
    assert len(twice) == 2 * N and "good/0_a.png = good/0_c.bmp" in twice
    assert twice == [
        f"{a.removeprefix(str(folder) + '/')} = {p.removeprefix(str(folder) + '/')}"
        for p, a in same_files(sorted(folder.rglob("*.[pb][nm][gp]"))).items()
        if p != a
    ]
