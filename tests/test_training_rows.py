"""What is learned from is chosen by one rule everywhere: training images that are not anomalous."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.data import inspect_folder, read_index
from anomaly_nb.data.census import census_lines
from anomaly_nb.data.rows import normal_training
from anomaly_nb.features.extract import index_intensity
from anomaly_nb.scoring import few_shot
from anomaly_nb.scoring.choice import choose_recipe


@pytest.fixture
def deep(tmp_path):
    "Ten training images of 10 bits and a bright test image, as a table without labels."
    rng = np.random.default_rng(0)
    for i in range(11):
        values = rng.integers(0, 65000 if i == 10 else 1000, (24, 24)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{i:02d}.png")
    rows = [f"{i:02d}.png,{'test' if i == 10 else 'train'}" for i in range(11)]
    (tmp_path / "t.csv").write_text("\n".join(["image_path,split", *rows]) + "\n")
    return tmp_path


def test_the_intensity_rule_is_that_of_training_images_labelled_or_not(deep):
    index = read_index("csv", deep / "t.csv")
    assert (index["label"] == -1).all() and index.attrs["intensity"]["text"] == "10 of 16 bits"
    index.attrs = {}
    assert index_intensity(index).text == "10 of 16 bits"
    assert index_intensity(index.drop(columns="label")).text == "10 of 16 bits"


def test_tests_alone_never_decide_the_rule(deep):
    tests = read_index("csv", deep / "t.csv").query("split == 'test'")
    tests.attrs = {}
    rule = index_intensity(tests)
    assert (rule.text, rule.automatic) == ("full range of uint16", False) and "no normal training image" in rule.note
    rows = ["image_path,split", "10.png,test"]
    (deep / "tests.csv").write_text("\n".join(rows) + "\n")
    index = read_index("csv", deep / "tests.csv")
    said = census_lines(index.attrs["census"], index.attrs["intensity"])
    assert any(line.startswith("WARNING: intensity: no normal training image") for line in said)
    with pytest.raises(ValueError, match="no normal training image to take percentiles of"):
        read_index("csv", deep / "tests.csv", intensity="percentile:1,99")


def test_a_recipe_is_chosen_on_images_without_labels_as_on_labelled_ones(deep):
    index = read_index("csv", deep / "t.csv")
    chosen, table = choose_recipe(index, image_size=32, recipes=["knn", "mahalanobis"])
    labelled = index.assign(label=0)
    labelled.attrs = index.attrs
    again, same = choose_recipe(labelled, image_size=32, recipes=["knn", "mahalanobis"])
    assert table is not None and chosen == again and table["auroc"].tolist() == same["auroc"].tolist()


def test_inspection_counts_what_fit_learns_from(deep):
    (deep / "train").mkdir()
    for i in range(10):
        (deep / f"{i:02d}.png").rename(deep / "train" / f"{i:02d}.png")
    index = read_index("folder", deep / "train", n_train=1.0)
    seen = inspect_folder(deep / "train")
    assert f"fit can learn from {normal_training(index).sum()} normal images" in seen["verdict"]


def test_shots_are_normal_images():
    index = pd.DataFrame({"image_path": [f"{i}.png" for i in range(6)], "split": ["train"] * 5 + ["test"]})
    index["label"] = [1, 0, 1, -1, 0, 1]
    assert few_shot(index, 3)["image_path"].tolist() == ["1.png", "3.png", "4.png", "5.png"]
    assert few_shot(index, 0)["image_path"].tolist() == ["5.png"]
    with pytest.raises(ValueError, match="the index has 3 normal training images"):
        few_shot(index, 4)
