"""A detector used from Python: tables, labels and arrays of one's own, parameters, and what is said of each."""

import importlib
import itertools
import re
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline

from anomaly_nb.banks import KNNBank, SubspaceBank, held_out_scores, load_bank
from anomaly_nb.banks.base import BANKS, Bank
from anomaly_nb.banks.composition import CompositionBank
from anomaly_nb.banks.held_out import held_out_folds
from anomaly_nb.core.errors import DataError, MissingFileError, Notice
from anomaly_nb.data import read_index
from anomaly_nb.data.rows import as_labels, complete_rows, image_rows
from anomaly_nb.features import FeatureSet
from anomaly_nb.scoring import Detector, heatmaps, image_scores, overlay
from anomaly_nb.scoring.decisions import decision_table
from anomaly_nb.scoring.evaluation import class_rate, image_metrics
from anomaly_nb.scoring.preparation import Preparation, near_duplicates
from anomaly_nb.scoring.thresholds import Threshold
from anomaly_nb.scoring.view import ImageView
from tests.commands import fails, run

SMALL = {"backbone": "filters", "image_size": 32}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Twelve normal images and four with a white square."
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    for i in range(16):
        image = rng.integers(90, 160, (40, 40, 3)).astype(np.uint8)
        if i >= 12:
            image[10:20, 10:20] = 255
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return [(folder / f"{i:02}.png").as_posix() for i in range(16)]


@pytest.fixture(scope="module")
def fitted(files):
    return Detector(**SMALL).fit(files[:12])


def own(n=12, side=7, d=16, seed=0, spec=None, paths=None):
    "Features of a network of one's own."
    x = np.random.default_rng(seed).normal(size=(n, side * side, d)).astype(np.float32)
    meta = pd.DataFrame({"image_path": paths} if paths else {"part": range(n)})
    return FeatureSet(x, (side, side), meta, spec=spec or {})


LABELS = {
    "numbers": [0] * 12 + [1] * 4,
    "text": ["0"] * 12 + ["1"] * 4,
    "objects": np.array(["0"] * 12 + ["1"] * 4, object),
    "floats": [0.0] * 12 + [1.0] * 4,
    "truths": [False] * 12 + [True] * 4,
    "gaps": [0.0] * 11 + [np.nan] + [1.0] * 4,
    "None": [0] * 11 + [None] + [1] * 4,
    "nullable": pd.array([0] * 11 + [None] + [1] * 4, dtype="Int64"),
    "pandas' text": ["0.0"] * 12 + ["1.0"] * 4,
}


@pytest.mark.parametrize("label", LABELS)
def test_labels_of_any_type_say_what_is_learned_from(files, fitted, label):
    table = pd.DataFrame({"image_path": files, "label": LABELS[label]})
    detector = Detector(**SMALL).fit(table.assign(split="train"))
    assert detector.paths_ == files[:12] and detector.threshold_ == fitted.threshold_
    result = fitted.evaluate(table)
    known = int((result.labels == 0).sum())
    assert (result.labels == 1).sum() == 4 and known in (11, 12)
    assert result.image_metrics()["recall"] == 1 and "AUROC" in result.verdict() and result.cases()
    assert fitted.evaluate(table, oracle="youden").threshold.oracle


@pytest.mark.parametrize("label", [["good"] * 12 + ["bad"] * 4, [0] * 12 + [2] * 4, [0] * 12 + [0.7] * 4])
def test_what_is_no_label_is_refused_with_its_rows(files, fitted, label):
    table = pd.DataFrame({"image_path": files, "label": label})
    for use in (
        Detector(**SMALL).fit,
        fitted.evaluate,
        clone_of(fitted).update,
        lambda t: Detector(**SMALL).fit(files, t["label"]),
    ):
        with pytest.raises(DataError, match=r"is no label; use 0 \(normal\), 1 \(anomalous\)"):
            use(table)
    with pytest.raises(DataError, match=r"row.* 12"):
        as_labels([0] * 12 + ["x"])


def clone_of(detector):
    "A fitted detector of its own, that a test may change."
    import copy

    return copy.deepcopy(detector)


def test_labels_beside_the_images_are_used_or_refused(files, fitted):
    y = [0] * 12 + [1] * 4
    assert Detector(**SMALL).fit(files, y).paths_ == files[:12]
    assert Detector(**SMALL).fit(pd.Series(files), pd.Series(y)).threshold_ == fitted.threshold_
    assert Detector(**SMALL).fit(files[:12], None).threshold_ == fitted.threshold_
    x = np.concatenate([own(12).patches, 9 + own(4, seed=1).patches])
    assert len(Detector().fit(x, np.array(y)).paths_) == 12
    assert len(make_pipeline(Detector()).fit(x, y)[-1].paths_) == 12
    for X, labels, error in (
        (files, [0, 1], "2 labels for 16 images"),
        (files, [1] * 16, "learns from normal ones"),
        (pd.DataFrame({"image_path": files, "label": 0}), y, r"contradicts the column label in row 12 \(4 such\)"),
    ):
        with pytest.raises(DataError, match=error):
            Detector(**SMALL).fit(X, labels)
    table = pd.DataFrame({"image_path": files})
    for X in (table, table.assign(label=y)):
        assert Detector(**SMALL).fit(X, y).threshold_ == fitted.threshold_
    assert len(Detector().fit(own(16), y).paths_) == 12


def test_labels_are_counted_or_refused_in_tables():
    scores = [0.1, 0.5, 0.4, 0.9]
    threshold = Threshold(0.45, "quantile", "normal images", 9)
    assert decision_table([0, 0, 1, 1], scores, threshold).equals(decision_table(np.array([0, 0, 1, 1]), scores, 0.45))
    assert image_metrics([0, 0, 1, 1], scores, 0.45) == image_metrics([0, 0, 1, 1], scores, threshold)
    for labels in ([0, 2, 0, 1], [0, 0.7, 0, 1]):
        with pytest.raises(DataError, match="is no label"):
            decision_table(labels, scores, 0.45)
        with pytest.raises(DataError, match="labels must be 0"):
            image_metrics(np.array(labels), scores, threshold)
    with pytest.raises(DataError, match="labels must be 0"):
        class_rate([2, 2, 2, 2], scores, threshold)
    with pytest.raises(DataError, match="give a Threshold"):
        image_metrics([0, 0, 1, 1], scores, "0.45")
    with pytest.raises(DataError, match="one of each"):
        decision_table([0, 1], scores, 0.45)


def test_features_of_ones_own_are_not_mixed_with_filters(files, tmp_path):
    for features, said in (
        (own(), "which they do not name"),
        (own(spec={"name": "mynet"}, paths=files[:12]), "'mynet'"),
        (own().patches, "which they do not name"),
    ):
        detector = Detector(image_size=64).fit(features)
        for loaded in (
            detector,
            Detector.load(detector.save(tmp_path / said.strip("'") / str(type(features).__name__))),
        ):
            for use in (loaded.predict, loaded.evaluate, loaded.explain, loaded.heatmaps):
                with pytest.raises(DataError, match=rf"a network of your own, {said}.*a FeatureSet of that network"):
                    use(files)
            with pytest.raises(DataError, match=r"of your own, .*an export holds its network"):
                loaded.export(tmp_path / "graph")
        assert "filters" not in detector._repr_html_().partition("Detector")[2].split("bank")[0]
    named = Detector().fit(own(spec={"name": "mynet"}, paths=files[:12]))
    before = named.threshold_
    with pytest.raises(DataError, match=r"'mynet'.*an update reads image files: fit again"):
        named.update(files[12:13])
    assert named.threshold_ == before and named.spec_ == {"name": "mynet"} and named.patch_hw_ == (7, 7)


def test_features_of_another_network_are_refused(fitted, files):
    detector = Detector().fit(own(spec={"name": "mynet"}))
    with pytest.raises(DataError, match=r"features of another network.*'mynet' became 'othernet'"):
        detector.score(own(spec={"name": "othernet"}))
    assert len(detector.score(own(spec={"name": "mynet"}))) == len(detector.score(own().patches)) == 12
    f = fitted.features(files)
    assert np.array_equal(fitted.score(f), fitted.score(files))
    with pytest.raises(DataError, match="image_size 32 became 64"):
        fitted.score(Detector(backbone="filters", image_size=64).features(files))


CHANGED = {
    "aggregation": "mean",
    "rerank": (2,),
    "object_threshold": 5.0,
    "recipe": "knn-euclidean",
    "threshold": "quantile:0.8",
    "k": 3,
    "coreset": 0.5,
    "similar": 2,
    "angles": (0, 90),
    "bank": KNNBank(k=2),
    "preparation": Preparation(standardise=True),
    "groups": "parent",
    "intensity": "full",
    "image_size": 64,
    "resize": "short",
    "tile": 16,
    "overlap": 8,
    "region": "0,0,20,20",
    "budget_ms": 100.0,
    "budget_mb": 5,
    "prompts": "nut",
    "random_state": 1,
    "backbone": "filters?levels=2",
}


def test_every_parameter_but_what_acts_later_is_that_of_the_fit():
    assert set(CHANGED) | {"sigma", "weights"} == set(Detector().get_params(deep=False))


@pytest.mark.parametrize("changed", [{name: value} for name, value in CHANGED.items()], ids=CHANGED)
def test_what_the_threshold_rests_on_stays_that_of_the_fit(fitted, files, tmp_path, changed):
    detector = clone_of(fitted).set_params(**changed)
    loaded = Detector.load(fitted.save(tmp_path / "one")).set_params(**changed)
    for one in (detector, loaded):
        for use in (
            one.score,
            one.predict,
            one.evaluate,
            one.explain,
            one.save,
            lambda _, d=one: d.export(tmp_path / "x"),
        ):
            with pytest.raises(DataError, match=f"{next(iter(changed))} was .* in the fit and is .* now.*fit again"):
                use(files)
        one.set_params(**{name: fitted.get_params()[name] for name in changed})
        assert np.array_equal(one.score(files), fitted.score(files))
    if changed.keys() & {"aggregation", "threshold", "k", "coreset", "bank", "angles", "intensity"}:
        assert detector.set_params(**changed).fit(files[:12]).score(files).shape == (16,)  # another fit


def test_the_same_parameter_and_what_acts_later_are_no_change(fitted, files, tmp_path):
    same = {"angles": [0], "groups": None, "region": None, "prompts": None, "k": np.int64(0), "backbone": "filters"}
    again = clone_of(fitted).set_params(**same, sigma=2.0)
    assert np.array_equal(again.score(files), fitted.score(files))
    assert Detector.load(again.save(tmp_path / "d")).region is None
    assert len(Detector().fit(own()).set_params(weights="moved.pt").score(own())) == 12
    own_bank = Detector(**SMALL, bank=KNNBank(k=2), coreset=1.0).fit(files[:12])
    own_bank.set_params(bank=KNNBank(k=2)).score(files)
    with pytest.raises(DataError, match=r"bank was KNNBank\(k=2\) in the fit and is KNNBank\(\) now"):
        own_bank.set_params(bank__k=1).score(files)
    with pytest.raises(DataError, match=r"coreset was 1.0 in the fit and is 1 now"):
        own_bank.set_params(bank__k=2, coreset=1).score(files)


def test_an_update_takes_the_present_parameters_but_for_those_it_keeps(files):
    detector = Detector(**SMALL).fit(files[:10]).set_params(threshold="conformal:0.2")
    assert detector.update(files[10:12]).threshold_.method == "conformal"
    detector.score(files)
    with pytest.raises(DataError, match=r"^intensity was 'auto' in the fit and is 'full' now, and an update keeps"):
        detector.set_params(intensity="full").update(files[12:13])
    sized = Detector(**SMALL, budget_mb=5.0).fit(files[:10]).set_params(budget_mb=1.0)
    with pytest.raises(DataError, match=r"^budget_mb was 5.0 in the fit and is 1.0 now, and an update keeps"):
        sized.update(files[10:12])


def test_features_may_be_joined_by_the_network_they_came_from(fitted, files):
    f = Detector(backbone="filters", image_size=48).features(files[:12])
    detector = Detector().fit(f).set_params(image_size=48)
    assert len(detector.score(files)) == 16
    with pytest.raises(DataError, match="image_size was 0 in the fit and is 64 now"):
        detector.set_params(image_size=64).score(files)


def test_a_column_of_groups_counts_in_a_csv_as_in_a_table(files, tmp_path):
    table = pd.DataFrame(
        {"image_path": files[:12], "split": "train", "label": "0.0", "group": [f"lot {i // 3}" for i in range(12)]}
    )
    table.assign(camera=2).to_csv(tmp_path / "t.csv", index=False)
    index = read_index("csv", tmp_path / "t.csv")
    assert index["group"].tolist() == table["group"].tolist() and (index["label"] == 0).all()
    assert any("column camera of t.csv not read" in note for note in index.attrs["census"]["notes"])
    by_file, by_table = Detector(**SMALL).fit(index), Detector(**SMALL).fit(table)
    assert by_file.threshold_ == by_table.threshold_ and "in 4 groups" in str(by_file.threshold_)
    table.drop(columns="group").to_csv(tmp_path / "plain.csv", index=False)
    assert "group" not in read_index("csv", tmp_path / "plain.csv")


@pytest.mark.parametrize("missing", [None, np.nan, "", pd.NA])
def test_a_group_that_is_missing_is_named(files, missing):
    table = pd.DataFrame({"image_path": files[:4], "group": np.array(["a", "b", missing, "a"], object)})
    with pytest.raises(DataError, match=r"group: .*02.png has none \(1 of 4 training images such\)"):
        Detector(**SMALL).fit(table)
    Detector(**SMALL).fit(table.assign(group=np.array([missing] * 4, object)))  # nobody said anything
    if not isinstance(missing, str):
        with pytest.raises(DataError, match=r"groups: 1 of .* labels? .*missing, the first at 2"):
            held_out_folds(4, groups=table["group"])
    assert len(set(held_out_folds(4, groups=np.array([1, "a", 1, "b"], object)).tolist())) == 3


@pytest.mark.parametrize("missing", [None, np.nan, 3])
def test_a_missing_path_is_named_with_its_row(files, fitted, missing):
    table = pd.DataFrame({"image_path": np.array([*files[:3], missing], object)})
    for use in (Detector(**SMALL).fit, fitted.score, fitted.evaluate, clone_of(fitted).update):
        with pytest.raises(DataError, match=r"image_path: .* in row 3 \(1 such of 4 rows"):
            use(table)
        with pytest.raises(DataError, match=r"a list that holds .* at 3 \(counted from 0\)"):
            use(table["image_path"].tolist())


def test_a_table_of_ones_own_has_pixel_metrics_and_an_explorer(files, fitted, tmp_path):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    table = pd.DataFrame(
        {"image_path": files, "label": LABELS["None"], "mask_path": [None] * 12 + [str(tmp_path / "mask.png")] * 4}
    )
    result = fitted.evaluate(table)
    assert result.pixel_metrics()["pixel_auroc"] > 0.9 and result.image_metrics()["image_auroc"] == 1
    view = ImageView(fitted, None, table)
    assert len(view.labels) == 16 and view.draw(view.state())[1] is not None
    bare = ImageView(fitted, None, fitted.features(files))
    assert set(bare.defects) == {"unknown"} and bare.draw(bare.state())
    whole = complete_rows(table)
    assert image_rows(whole) is whole and whole["mask_threshold"].tolist() == [0] * 16


SOURCES = {
    "one path": (lambda p: p[0], r"one path; pass a list: \['.*00.png'\]"),
    "a folder": (lambda p: p[0].rpartition("/")[0], r"one folder; pass read_index\('folder', "),
    "a generator": (lambda p: (x for x in p), r"a generator, which can be read once; pass list\(X\)"),
    "Pillow's": (lambda p: [Image.open(p[0])], "a list that holds PngImageFile at 0 "),
    "arrays": (lambda p: [np.zeros((40, 40, 3), np.uint8)], "a list that holds ndarray at 0 "),
    "pixels": (lambda p: np.zeros((4, 40, 40, 3), np.uint8), "looks like the pixels of images; write them to files"),
    "pixels in a tensor": (lambda p: torch.zeros(4, 3, 40, 40), "looks like the pixels of images; write them to files"),
    "a grid": (lambda p: np.zeros((4, 7, 5, 16), np.float32), r"FeatureSet\(X.reshape\(4, 35, 16\), \(7, 5\), table\)"),
    "vectors": (lambda p: np.zeros((4, 16), np.float32), r"one patch an image: X\[:, None\]"),
    "whole numbers": (lambda p: np.zeros((4, 49, 16), int), r"X.astype\('float32'\)"),
    "no images": (lambda p: np.zeros((0, 49, 16)), "no images: an array of 0 x 49 x 16; give at least one"),
    "no table": (lambda p: pd.DataFrame({"file": p}), r"without a column image_path \(it has file\)"),
    "nothing": (lambda p: None, "of type NoneType"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_what_was_passed_is_named_with_the_mend(files, fitted, source):
    make, error = SOURCES[source]
    for use in (
        Detector(**SMALL).fit,
        fitted.score,
        fitted.predict,
        fitted.evaluate,
        fitted.explain,
        clone_of(fitted).update,
    ):
        with pytest.raises(DataError, match=f"^X: .*{error}"):
            use(make(files))


def test_tensors_and_columns_are_taken(files, fitted):
    x = own().patches
    detector = Detector().fit(x)
    for tensor in (torch.from_numpy(x), torch.from_numpy(x).requires_grad_(), torch.nn.Parameter(torch.from_numpy(x))):
        assert np.array_equal(detector.score(tensor), detector.score(x))
        assert Detector().fit(tensor).threshold_ == detector.threshold_
    assert np.array_equal(fitted.score(pd.Series(files[::-1], index=range(16))[::-1]), fitted.score(files))
    assert np.array_equal(fitted.score(np.array(files)), fitted.score(files))


def test_a_folder_among_files_is_named(files, fitted):
    folder = files[0].rpartition("/")[0]
    with pytest.raises((DataError, MissingFileError), match="is a folder"):
        fitted.score([files[0], folder])


def test_heatmaps_need_files(fitted):
    detector = Detector().fit(own())
    for X in (own().patches, own()):
        with pytest.raises(DataError, match="features without image files, whose size the heatmaps would have"):
            detector.heatmaps(X)
    explained = detector.explain(own())  # an array has no files to name, so its images are counted
    assert explained["normal_image"].tolist() == list(range(12)) and set(explained["normal_path"]) == {""}


WRONG = {
    "threshold": 0.5,
    "bank": KNNBank,
    "groups": ["a", "b"],
    "rerank": 3,
    "object_threshold": "10",
    "recipe": None,
    "angles": (90,),
    "random_state": None,
    "aggregation": np.median,
    "k": "3",
    "coreset": "10%",
    "sigma": "4",
    "budget_ms": None,
    "preparation": KNNBank(),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_parameter_is_named_in_one_line(name):
    with pytest.raises(DataError, match=rf"^{name}(=|: the class).*give ") as error:
        Detector(**{name: WRONG[name]}).fit(own().patches)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"bank": LocalOutlierFactor()}, {"angles": ()}, {"groups": len}, {"random_state": np.random.default_rng(0)}],
)
def test_others_parts_are_refused(wrong):
    with pytest.raises(DataError, match="give "):
        Detector(**wrong).fit(own().patches)


OUTLIERS = {  # scikit-learn's labels: 1 is an inlier, -1 an outlier
    "numbers": lambda y: y,
    "floats": lambda y: y.astype(float),
    "text": lambda y: y.astype(str).tolist(),
    "series": lambda y: pd.Series(y, index=range(7, 7 + len(y))),
    "tensor": torch.tensor,
}


@pytest.mark.parametrize("form", OUTLIERS)
def test_labels_of_outlier_detectors_are_refused(form, files):
    x = own(16).patches
    y = OUTLIERS[form](np.repeat([1, -1], [12, 4]))
    for some in (x, files, pd.DataFrame({"image_path": files}), own(16)):
        with pytest.raises(DataError, match=r"^y: holds 1 and -1 alone.*give \(y == -1\).astype\(int\)"):
            Detector(**SMALL).fit(some, y)
    if form != "tensor":
        with pytest.raises(DataError, match=r"^label: holds 1 and -1 alone"):
            Detector(**SMALL).fit(pd.DataFrame({"image_path": files, "label": np.asarray(y)}))
    as_here = (np.asarray(y).astype(float) == -1).astype(int)
    assert Detector(**SMALL).fit(x, as_here).paths_ == [""] * 12


@pytest.mark.parametrize("y", [[0] * 9 + [-1] * 3, [-1] * 12, [0] * 8 + [1] + [None] * 3])
def test_images_of_unknown_label_are_learned_from_and_said(y):
    unknown = sum(label in (-1, None) for label in y)
    with pytest.warns(Notice, match=f"^y: {unknown} images of 12 of unknown label .* are learned from"):
        assert len(Detector(**SMALL).fit(own().patches, y).paths_) == 12 - y.count(1)


def test_a_table_without_any_label_is_as_a_list(files):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        Detector(**SMALL).fit(pd.DataFrame({"image_path": files[:12], "label": -1}))
        Detector(**SMALL).fit(pd.DataFrame({"image_path": files, "label": [0] * 12 + [1] * 4}))
    with pytest.warns(Notice, match="^label: 2 images of 16 of unknown label"):
        Detector(**SMALL).fit(pd.DataFrame({"image_path": files, "label": [0] * 10 + [-1] * 2 + [1] * 4}))


def test_numpys_numbers_are_parameters(files):
    Detector("knn", k=np.int64(2), image_size=np.int64(32), coreset=np.float32(0.5), angles=[0, 90]).fit(files[:4])


def test_features_are_taken_or_named():
    x = torch.randn(4, 9, 8)
    table = pd.DataFrame({"image_path": list("abcd")})
    for some in (x.bfloat16(), x.clone().requires_grad_(), x.half(), x):
        f = FeatureSet(some, (3, 3), table, cls=some[:, 0])
        assert f.patches.shape == (4, 9, 8) and f.patches.dtype.kind == "f" and isinstance(f.cls, np.ndarray)
    for meta in (None, list("abcd"), {"image_path": list("abcd")}):
        with pytest.raises(DataError, match=r"meta: of type .*give a table"):
            FeatureSet(x, (3, 3), meta)


def test_held_out_scores_take_lists():
    x = own(6).patches
    for bank in (KNNBank(), SubspaceBank(components=3), CompositionBank()):
        expected = held_out_scores(clone(bank), x, (7, 7))
        assert np.array_equal(held_out_scores(clone(bank), list(x), (7, 7)), expected)


def test_a_notice_of_a_bank_is_said_once():
    x = own(20, side=3, d=5).patches
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Detector("knn", bank=SubspaceBank(variance=0.999)).fit(x)
    assert len([w for w in caught if "leave no residual" in str(w.message)]) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        held_out_scores(SubspaceBank(variance=0.999), x, (3, 3))
    assert len([w for w in caught if "leave no residual" in str(w.message)]) == 1


def test_a_bank_of_ones_own_says_where_it_is_defined(tmp_path):
    class MeanBank(Bank):
        "Distance to the mean patch."

        def fit(self, patches, patch_hw, cls=None):
            self.mean_, self.patch_hw_ = np.asarray(patches).mean(axis=(0, 1)), tuple(patch_hw)
            return self

        def score(self, patches, cls=None):
            return np.linalg.norm(np.asarray(patches) - self.mean_, axis=2).astype(np.float32)

    detector = Detector(bank=MeanBank()).fit(own().patches)
    with pytest.warns(Notice, match=rf"MeanBank is of your own; import {__name__} before"):
        detector.save(tmp_path / "mine")
    assert np.array_equal(Detector.load(tmp_path / "mine").score(own()), detector.score(own()))
    BANKS.pop("MeanBank")
    with pytest.raises(DataError, match=rf"unknown bank 'MeanBank' of the module {__name__}; import {__name__} before"):
        load_bank(tmp_path / "mine" / "bank")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Detector().fit(own().patches).save(tmp_path / "usual")


def test_another_detector_that_is_replaced_is_said(files, tmp_path):
    first, other = (Detector(**SMALL).fit(some) for some in (files[:6], files[6:12]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        first.save(tmp_path / "one")
        first.save(tmp_path / "one")  # the same
        Detector.load(tmp_path / "one").update(files[6:8]).save(tmp_path / "one")  # its own update
    with pytest.warns(Notice, match="one: another detector was there, and is replaced; give a new folder"):
        other.save(tmp_path / "one")
    assert Detector.load(tmp_path / "one").paths_ == files[6:12]


def test_of_two_updates_at_once_none_is_lost(files, tmp_path):
    "The one that ends last is refused, also where both write at the same moment; what it read it may save elsewhere."
    place, changed = tmp_path / "one", "one: another detector is there than the one that was read"
    Detector(**SMALL).fit(files[:6]).save(place)
    first, second = (Detector.load(place).update(some) for some in (files[6:8], files[8:10]))
    first.save(place)
    with pytest.raises(DataError, match=changed):
        second.save(place)
    assert Detector.load(place).paths_ == files[:8] and second.save(tmp_path / "two").is_dir()
    first.update(files[8:9]).save(place)  # its own versions go on
    again, barrier = [Detector.load(place).update(some) for some in (files[9:10], files[10:11])], threading.Barrier(2)

    def save(detector):
        barrier.wait()
        try:
            return detector.save(place) and ""
        except DataError as e:
            return str(e)

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(save, again))
    assert said[0] == "" and changed in said[1], said
    assert Detector.load(place).version_ == 4 and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("step", ["verify_manifest", "load_bank", "Threshold.load"])
def test_a_detector_that_is_replaced_while_it_is_read_is_never_mixed(files, tmp_path, monkeypatch, step):
    "What comes back is the one before or the one after, whole; one that is replaced each time is refused."
    module, place = importlib.import_module("anomaly_nb.scoring.detector_files"), tmp_path / "one"
    parts = [Detector(**SMALL).fit(files[:6]).save(tmp_path / "a"), Detector(**SMALL).fit(files[6:12]).save(tmp_path / "b")]
    wanted = [Detector.load(p) for p in parts]
    shutil.copytree(parts[0], place)
    times = [1]

    def replaced(made, *words, **named):
        "A step before which another writer puts the other detector there."
        if times[0]:
            times[0] -= 1
            shutil.rmtree(place)
            shutil.copytree(parts[1], place)
        return made(*words, **named)

    holder, name = (module.Threshold, "load") if "." in step else (module, step)
    monkeypatch.setattr(holder, name, partial(replaced, getattr(holder, name)))
    detector = Detector.load(place)
    assert detector.paths_ == files[6:12] and detector.threshold_ == wanted[1].threshold_
    assert np.array_equal(detector.score(files[12:]), wanted[1].score(files[12:]))
    assert detector.stored_ == (str(place), module.detector_identity(place))


def test_a_detector_that_never_rests_is_refused(files, tmp_path, monkeypatch):
    module, place, names = importlib.import_module("anomaly_nb.scoring.detector_files"), tmp_path / "one", itertools.count()
    Detector(**SMALL).fit(files[:6]).save(place)
    monkeypatch.setattr(module, "identity_there", lambda folder: str(next(names)))
    with pytest.raises(DataError, match="one: was replaced by another detector each time it was read"):
        Detector.load(place)


def test_commands_say_that_a_detector_changed_meanwhile(files, tmp_path, monkeypatch, capsys):
    place = tmp_path / "one"
    Detector(**SMALL).fit(files[:6]).save(place)
    learn, others = Detector.update, [files[6:8]]

    def slow(detector, *words):
        "An update during which another one begins and ends."
        if others:
            learn(Detector.load(place), others.pop()).save(place)
        return learn(detector, *words)

    monkeypatch.setattr(Detector, "update", slow)
    error = fails(capsys, "update", place, files[8])
    assert error.startswith(f"anomaly-nb: {place}: another detector is there than the one that was read"), error
    assert Detector.load(place).paths_ == files[:8]
    assert run("update", place, files[8])[0] == 0 and Detector.load(place).paths_ == files[:9]
    fit, more = Detector.fit, (tmp_path / "more.png").as_posix()
    Image.fromarray(np.random.default_rng(1).integers(90, 160, (40, 40, 3)).astype(np.uint8)).save(more)

    def slower(detector, *words):
        learn(Detector.load(place), [more]).save(place)
        return fit(detector, *words)

    words = ("fit", Path(files[0]).parent, "--out", place, "--recipe", "knn", "--image-size", 32, "--backbone", "filters")
    assert f"note: {place} held an earlier detector; this one has taken its place" in run(*words)[1]
    monkeypatch.setattr(Detector, "fit", slower)
    done = run(*words)
    assert f"note: {place} held a detector that was written while this one learned; this one has" in done[1], done


def test_images_that_were_learned_from_are_said_where_they_are_evaluated(files, fitted):
    seen = fitted.evaluate(pd.DataFrame({"image_path": files, "label": LABELS["numbers"]}))
    assert "the detector learned from 12 images of these 16, the first 00.png" in seen.verdict()
    assert not fitted.evaluate(files[12:]).notes


def test_an_oracle_needs_labels(files, fitted):
    with pytest.raises(DataError, match="oracle='youden': needs labels, and none of 16 images has one"):
        fitted.evaluate(files, oracle="youden")


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((8, 8, 3), np.uint16), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)],
)
def test_an_overlay_takes_colours_of_eight_bits(image):
    with pytest.raises(DataError, match="an overlay takes uint8"):
        overlay(image, np.zeros((8, 8)), (0, 1))


def test_an_overlay_needs_a_scale_and_numbers():
    image, heat = np.full((8, 8, 3), 90, np.uint8), np.linspace(0, 1, 64).reshape(8, 8)
    for scale in ((1, 1), (0, np.nan), (2, 1), (0, np.inf)):
        with pytest.raises(DataError, match="a lower and a higher score"):
            overlay(image, heat, scale)
    with pytest.raises(DataError, match="NaN or infinite"):
        overlay(image, heat * np.nan, (0, 1))
    assert np.array_equal(overlay(Image.fromarray(image), torch.from_numpy(heat), (0, 1)), overlay(image, heat, (0, 1)))


def test_calls_that_end_in_one_line():
    for call, error in (
        (lambda: heatmaps(np.zeros((1, 4)), (2, 2), 32), r"sizes=32; give \(H, W\)"),
        (lambda: image_scores(np.zeros((1, 4)), np.median), "use 'max', 'mean' or a fraction"),
        (
            lambda: read_index("csv", pd.DataFrame({"image_path": ["a.png"]})),
            "a table in memory.*a detector takes such a table",
        ),
    ):
        with pytest.raises(DataError, match=error):
            call()


def test_what_is_shown_is_short_and_names_the_threshold(files, fitted):
    assert repr(fitted).endswith(f", fitted on 12 images, threshold {fitted.threshold_.value:.6g}")
    assert repr(Detector(k=3)) == "Detector(k=3)" and len(repr(fitted.evaluate(files))) < 200
    table = pd.DataFrame({"image_path": files, "label": LABELS["numbers"]})
    assert "12 labelled normal, 4 labelled anomalous" in repr(fitted.evaluate(table))
    assert all(a == b for a, b in pairwise([repr(clone(fitted)), repr(Detector(**SMALL))]))


class DoubleBank(Bank):
    "Distance to the mean patch, in floats of 64 bits, the type of NumPy."

    def fit(self, patches, patch_hw, cls=None):
        self.mean_, self.patch_hw_ = np.asarray(patches, np.float64).mean(axis=(0, 1)), tuple(patch_hw)
        return self

    def score(self, patches, cls=None):
        return np.linalg.norm(np.asarray(patches, np.float64) - self.mean_, axis=2)


@pytest.mark.parametrize(
    "more", [{}, {"aggregation": "mean"}, {"rerank": (2,)}, {"object_threshold": 0.1}, {"tile": 20, "overlap": 4}]
)
def test_scores_have_32_bits_whatever_the_banks_have(files, more):
    detector = Detector(**SMALL, bank=DoubleBank(), **more).fit(files[:12])
    scores, result = detector.score(files), detector.evaluate(files)
    assert {a.dtype for a in (scores, detector.held_out_, detector.held_out_patches_)} == {np.dtype("f4")}
    assert result.scores.dtype == np.float32 and np.array_equal(result.scores, scores)
    assert detector.bank_.score(np.zeros((1, 4, detector.preparation_.dimensions_))).dtype == np.float64
    if not more:
        assert detector.score_patches(files).dtype == np.float32


def test_the_decision_function_is_the_distance_from_the_threshold(fitted, files):
    margins = fitted.decision_function(files)
    assert margins.dtype == np.float32 and margins.shape == (16,)
    assert np.array_equal(margins >= 0, fitted.predict(files) == 1) and (margins[12:] > 0).all()
    assert np.allclose(margins, fitted.score(files) - fitted.threshold_.value)
    at = clone_of(fitted)
    for value, anomalous in (
        (float(fitted.score(files[:1])[0]), True),
        (np.nextafter(fitted.score(files[:1])[0], 1), False),
    ):
        at.threshold_ = Threshold(float(value), "quantile", "normal images", 12)
        assert (at.decision_function(files[:1])[0] >= 0) == anomalous == bool(at.predict(files[:1])[0])
    with pytest.raises(NotFittedError):
        Detector().decision_function(files)
    with pytest.raises(DataError, match="has no threshold"):
        Detector(**SMALL).fit(files[:1]).decision_function(files)


def test_the_tools_of_scikit_learn_choose_by_labels(files):
    y = [0] * 12 + [1] * 4  # sorted, as folders give them: every part has both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # folds are small
        search = GridSearchCV(Detector(**SMALL), {"k": [1, 2]}, scoring="roc_auc", cv=3).fit(files, y)
        margins = cross_val_predict(Detector(**SMALL), files, y, cv=3, method="decision_function")
    assert (search.cv_results_["mean_test_score"] == 1).all() and search.classes_.tolist() == [0, 1]
    assert margins[12:].min() > margins[:12].max()
    assert roc_auc_score(y, search.decision_function(files)) == 1
    piped = make_pipeline(Detector(**SMALL)).fit(files, y)
    assert np.array_equal(piped.decision_function(files), Detector(**SMALL).fit(files, y).decision_function(files))


SCALED = [*itertools.product(["knn", "knn-euclidean", "mahalanobis", "subspace"], [1e18, 1e30, 1e40, 1e300, np.inf])]


@pytest.mark.parametrize(("recipe", "scale"), SCALED)
def test_large_features_are_taken_or_refused_in_one_sentence(recipe, scale):
    x = np.abs(own().patches.astype(np.float64)) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for preparation in (None, Preparation(standardise=True), Preparation(whiten=0.1)):
            try:
                detector = Detector(recipe, preparation=preparation).fit(x * scale)
            except DataError as error:
                assert "\n" not in str(error)
                assert scale < 1e38 or re.match("patches: (values up to .* more than float32 holds|.*infinite)", str(error))
            else:
                assert scale < 1e38 and np.ptp(detector.held_out_) > 0  # not all alike, by a spread without end
        usual = Detector(recipe).fit(x)
        with pytest.raises(DataError, match=r"^patches: "):
            usual.score(x * 1e40)


def test_near_duplicates_are_the_same_at_every_scale():
    x = own(20).patches.reshape(20, -1)
    x[7] = x[3] + 0.01
    assert near_duplicates(x) == near_duplicates(x * np.float32(2.0**100)) == [(3, 7)]
