"Names of files that are as long as file systems allow: in 8-bit letters and in others."

import shutil

import pandas as pd
import pytest

from anomaly_nb.core.files import atomic_folder, atomic_write, clear_stale
from anomaly_nb.data.samples import write_samples
from anomaly_nb.scoring.predict import map_names
from tests.commands import run

NAMES = ["漢" * 83 + ".png", "x" * 251 + ".png", "y" * 230 + ".png"]


@pytest.mark.parametrize("name", NAMES, ids=("other letters", "longest", "long"))
def test_a_file_or_folder_of_a_long_name_is_written(tmp_path, name):
    with atomic_write(tmp_path / name) as f:
        f.write(b"1")
    with atomic_folder(tmp_path / "folders" / name) as staged:
        (staged / "a").write_text("1")
    assert [p.name for p in tmp_path.glob("*.png")] == [name] and (tmp_path / "folders" / name / "a").is_file()
    assert not clear_stale(tmp_path)


def test_maps_of_images_with_long_names(tmp_path):
    "Maps are written beside rows, once and while a folder is watched, and no two share a name."
    write_samples(tmp_path / "samples", n_train=8, n_good=2, n_defect=1, size=48)
    good = tmp_path / "samples/nut/train/good"
    fit = ("fit", good, "--out", tmp_path / "det", "--recipe", "knn", "--image-size", "48")
    assert run(*fit, "--backbone", "filters")[0] == 0
    new = tmp_path / "new"
    new.mkdir()
    for name in [*NAMES, "x" * 250 + "z.png"]:
        shutil.copy(sorted(good.glob("*.png"))[0], new / name)
    code, _, said = run("predict", tmp_path / "det", new, "--out", tmp_path / "p.csv", "--maps", tmp_path / "maps")
    rows = pd.read_csv(tmp_path / "p.csv")
    assert code in (0, 3) and len(rows) == 4 and rows["error"].isna().all(), said
    assert len(list((tmp_path / "maps").glob("*.tiff"))) == len(list((tmp_path / "maps").glob("*.overlay.png"))) == 4
    watch = ("--watch", "--every", "0.1", "--idle", "0.5")
    code, _, said = run(
        "predict", tmp_path / "det", new, "--out", tmp_path / "w.csv", "--maps", tmp_path / "maps2", *watch
    )
    assert code in (0, 3) and len(pd.read_csv(tmp_path / "w.csv")) == 4, said
    assert len(list((tmp_path / "maps2").glob("*.tiff"))) == 4


def test_names_of_maps_stay_apart():
    names = map_names([f"/d/{'x' * 245}{c}.{e}" for c in "ab" for e in ("png", "jpg")])
    assert len(set(names.values())) == 4 and all(len(n + ".overlay.png") <= 255 for n in names.values())
    assert map_names(["/d/a.png", "/d/b.png"]) == {"/d/a.png": "a", "/d/b.png": "b"}
