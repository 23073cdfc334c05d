"A bank of one's own: it is read as it was saved, or refused by name; what goes wrong in it is said in one sentence."

import importlib
import json
import shutil
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from anomaly_nb.banks import Bank, FusedBank, KNNBank, MahalanobisBank, load_bank
from anomaly_nb.banks.base import BANKS
from anomaly_nb.banks.held_out import held_out_scores
from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.features import FeatureSet
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.fusion import FusionBank
from anomaly_nb.scoring.preparation import Preparation

N = np.random.default_rng(0).normal(size=(12, 9, 4)).astype(np.float32)
SQUARED = """
from anomaly_nb.banks.knn import KNNBank as Usual

class {name}(Usual):
    def score(self, patches, cls=None):
        return super().score(patches) ** {power}
"""


@pytest.fixture(autouse=True)
def quiet():
    "Classes of one test are unknown to the next; that they are of one's own is said, which is tested in one place."
    before = {name: dict(classes) for name, classes in BANKS.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        yield
    BANKS.clear()
    BANKS.update(before)


def module(folder, monkeypatch, name, power=2, bank="KNNBank"):
    "A module of one's own with a bank, imported."
    (folder / f"{name}.py").write_text(SQUARED.format(name=bank, power=power))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return getattr(importlib.import_module(name), bank)


class Mean(Bank):
    "Distance to the mean patch; `extra` is kept beside it."

    def __init__(self, extra=None):
        self.extra = extra

    def fit(self, patches, patch_hw, cls=None):
        self.mean_, self.patch_hw_ = np.asarray(patches).mean(axis=(0, 1)), tuple(patch_hw)
        if self.extra is not None:
            self.extra_ = self.extra() if callable(self.extra) else self.extra
        return self

    def score(self, patches, cls=None):
        return np.linalg.norm(np.asarray(patches) - self.mean_, axis=2).astype(np.float32)


def fitted(extra):
    "A bank that learned `extra`, with a parameter that can be saved."
    return Mean(extra).fit(N, (3, 3)).set_params(extra=None)


def test_a_bank_is_read_by_the_class_that_was_saved(tmp_path, monkeypatch):
    squared = module(tmp_path, monkeypatch, "squared")
    assert squared.__name__ == "KNNBank" and squared is not KNNBank
    mine, usual = squared().fit(N, (3, 3)), KNNBank().fit(N, (3, 3))
    mine.save(tmp_path / "mine")
    usual.save(tmp_path / "usual")
    assert type(load_bank(tmp_path / "mine")) is squared
    assert type(load_bank(tmp_path / "usual")) is KNNBank  # whatever was imported since
    assert "module" not in json.loads((tmp_path / "usual" / "bank.json").read_text())  # as before modules were named
    BANKS["KNNBank"].pop("squared")
    with pytest.raises(DataError, match=r"'KNNBank' of the module squared .*of anomaly_nb.banks.knn is another.*import"):
        load_bank(tmp_path / "mine")


def test_a_detector_is_read_with_the_bank_that_was_saved(tmp_path, monkeypatch):
    v1, v2 = (module(tmp_path, monkeypatch, f"bank_v{i}", i + 1, "MyBank") for i in (1, 2))
    first, second = (Detector(bank=bank()).fit(N) for bank in (v1, v2))
    first.save(tmp_path / "first")
    assert np.array_equal(Detector.load(tmp_path / "first").score(N), first.score(N))
    assert not np.array_equal(first.score(N + 1), second.score(N + 1))
    BANKS["MyBank"].pop("bank_v1")
    with pytest.raises(DataError, match=r"'MyBank' of the module bank_v1 \(the MyBank of bank_v2 is another\); import ba"):
        Detector.load(tmp_path / "first")


def test_a_bank_of_a_script_is_read_where_a_script_defines_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Mean, "__module__", "__main__")
    with pytest.warns(Notice, match="Mean is defined in a script or notebook.*write it into a module"):
        fitted(None).save(tmp_path / "bank")
    with pytest.raises(DataError, match=r"'Mean' of a script or notebook.*write the class into a module"):
        load_bank(tmp_path / "bank")
    BANKS["Mean"]["__main__"] = Mean
    assert type(load_bank(tmp_path / "bank")) is Mean


def test_a_folder_from_before_modules_were_named_still_opens(tmp_path):
    fitted(None).save(tmp_path / "bank")
    path = tmp_path / "bank" / "bank.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "module"}))
    assert type(load_bank(tmp_path / "bank")) is Mean
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bank": ["Mean"]}))
    with pytest.raises(DataError, match=r"unknown bank.*known are"):
        load_bank(tmp_path / "bank")


@pytest.mark.parametrize(
    "value", [(1, 2), ["a", "b"], {"a": [1, 2.5, None]}, np.float64(0.1), np.float32(0.1), np.arange(3), "text", True]
)
def test_a_bank_comes_back_as_it_was(tmp_path, value):
    Mean(value).fit(N, (3, 3)).save(tmp_path / "bank")
    again = load_bank(tmp_path / "bank")
    assert type(again.extra_) is type(value) and np.array_equal(again.extra_, value)
    assert np.array_equal(again.extra, value) and isinstance(again.extra, np.ndarray) == isinstance(value, np.ndarray)
    assert again.patch_hw_ == (3, 3) and np.array_equal(again.score(N), fitted(None).score(N))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1: 2}, r"extra_ has a key that is no text, 1, which"),
        ({"a": 1, 2: 3}, r"extra_ has a key that is no text, 2, which"),
        ([(1, 2), (3, 4)], r"extra_\[0\] is a tuple in a list or dict, which"),
        ({"a": np.ones(2)}, r"extra_\['a'\] is an array in a list or dict, which"),
        (float("nan"), r"extra_ is nan, which"),
        ([1.0, float("inf")], r"extra_\[1\] is inf, which"),
        ({"a", "b"}, r"extra_ is a set, which"),
        (NearestNeighbors, r"extra_ is a NearestNeighbors, which"),
        (np.array([None, 1]), r"extra_ is an array of objects, which"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), r"extra_ is a MaskedArray, which"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused_and_changes_no_file(tmp_path, value, words):
    fitted(None).save(tmp_path / "bank")
    before = {p.name: p.read_bytes() for p in (tmp_path / "bank").iterdir()}
    with pytest.raises(DataError, match=rf"^Mean\.{words} a saved bank cannot hold; keep arrays, finite numbers"):
        fitted(value).save(tmp_path / "bank")
    assert {p.name: p.read_bytes() for p in (tmp_path / "bank").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bank"]
    with pytest.raises(DataError, match=rf"^Mean\.{words.replace('extra_', 'extra')} a saved bank cannot hold"):
        bank = Mean().fit(N, (3, 3))
        bank.extra = NearestNeighbors() if value is NearestNeighbors else value
        bank.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_fused_bank_is_saved_whole_or_not_at_all(tmp_path):
    banks = KNNBank(), MahalanobisBank()
    FusedBank(banks).fit(N, (3, 3)).save(tmp_path / "bank")
    files = lambda: {str(p): p.read_bytes() for p in sorted((tmp_path / "bank").rglob("*.*"))}
    before, other = files(), FusedBank(banks).fit(N + 1, (3, 3))
    other.limit_ = float("nan")
    with pytest.raises(DataError, match="limit_ is nan"):
        other.save(tmp_path / "bank")
    assert len(before) == 6 and files() == before


def test_a_fused_bank_opens_with_its_own_banks_alone(tmp_path):
    one, other = (FusedBank((KNNBank(), MahalanobisBank())).fit(x, (3, 3)) for x in (N, N + 1))
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    shutil.rmtree(tmp_path / "one" / "bank-0")
    with pytest.raises(DataError, match=r"bank-0/bank\.json: not the file that .*one/bank\.json was saved with"):
        load_bank(tmp_path / "one")
    shutil.copytree(tmp_path / "other" / "bank-0", tmp_path / "one" / "bank-0")  # whole, but another's
    with pytest.raises(DataError, match=r"bank-0/bank\.json: not the file that .*one/bank\.json was saved with"):
        load_bank(tmp_path / "one")
    written = tmp_path / "one" / "bank.json"  # as older versions wrote it, without the names of its banks' files
    written.write_text(json.dumps({k: v for k, v in json.loads(written.read_text()).items() if k != "files"}))
    assert load_bank(tmp_path / "one").units_.tolist() == one.units_.tolist()


def test_a_parameter_that_ends_in_an_underscore_is_a_parameter(tmp_path):
    class Ridge(Mean):
        def __init__(self, lambda_=0.5):
            self.lambda_, self.extra = lambda_, None

    assert not Ridge().is_fitted and Ridge().fit(N, (3, 3)).is_fitted
    Ridge(np.float64(2)).fit(N, (3, 3)).save(tmp_path / "bank")
    assert load_bank(tmp_path / "bank").lambda_ == 2


def test_a_preparation_of_ones_own_is_not_saved_as_the_usual_one(tmp_path):
    class Root(Preparation):
        def transform(self, X):
            return np.sqrt(np.abs(super().transform(X)))

    for recipe in ("knn", "fusion:knn+placed"):
        detector = Detector(recipe, preparation=Root()) if recipe == "knn" else Detector(recipe)
        detector.fit(N)
        if recipe != "knn":
            detector.bank_.prepared_[1] = Root().fit(N)
        with pytest.raises(DataError, match="Root is a class of your own, which a saved detector cannot hold"):
            detector.save(tmp_path / "one")
        assert not (tmp_path / "one").exists()


def gives(scores=None, **members):
    "A bank whose `score` gives what a function makes of the patches, with other members in the place of its own."
    return type("Careless", (Mean,), {"score": lambda self, patches, cls=None: scores(patches), **members})()


@pytest.mark.parametrize(
    ("bank", "words"),
    [
        (gives(lambda p: p.sum((1, 2))), r"Careless\.score gives shape \(3,\) for 3 images of 9 patches; return \(3, 9\)"),
        (gives(lambda p: p.sum(2).reshape(-1, 3, 3)), r"Careless\.score gives shape \(3, 3, 3\) for 3 images of 9"),
        (gives(lambda p: None), r"Careless\.score gives None for 3 images of 9 patches; return"),
        (gives(lambda p: [["a"] * 9] * len(p)), r"Careless\.score gives a list for .* is no array of numbers"),
        (gives(lambda p: p.sum(2) * np.nan), r"Careless\.score gives: .* NaN or infinite"),
        (gives(lambda p: p.sum(2).astype(float) * 1e300), r"Careless\.score gives: .* NaN or infinite"),
        (gives(lambda p: p @ np.ones(5)), r"Careless\.score: ValueError: .*test_own_banks\.py, line \d+\)"),
        (gives(fit=lambda self, patches, patch_hw, cls=None: None), r"Careless\.fit gives None; end it with `return self`"),
        (gives(fit=lambda self, patches, patch_hw, cls=None: self), r"Careless\.fit keeps nothing .*such as self\.mean_"),
        (gives(fit=lambda self, patches, patch_hw: self), r"fit: TypeError: .*; it is called as fit\(patches, patch_hw, cls"),
        (gives(leaves_one_out=True), r"Careless\.leave_one_image_out: .*it is called as leave_one_image_out\(patches\)"),
        (gives(uses_vectors=True), r"cls: Careless uses the images' vectors .* give cls"),
        (gives(__init__=lambda self, power=1: None), r"Careless\.__init__: store each parameter under its own name"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_a_bank_of_ones_own_is_one_sentence(bank, words):
    with pytest.raises(DataError, match=words) as caught:
        Detector(bank=bank).fit(N)
    assert "\n" not in str(caught.value)


def test_scores_of_a_bank_of_ones_own_are_brought_into_form():
    for scores in (lambda p: np.linalg.norm(p, axis=2).astype(np.float64), lambda p: np.linalg.norm(p, axis=2).tolist()):
        assert Detector(bank=gives(scores)).fit(N).score(N).dtype == np.float32


def test_a_fusion_and_a_fused_bank_say_whose_mistake_it_is():
    bank = gives(lambda p: p.sum((1, 2)), leaves_one_out=True, leave_one_image_out=lambda self, patches: patches.sum(2)[0])
    with pytest.raises(DataError, match=r"Careless\.leave_one_image_out gives shape \(9,\) for 12 images of 9 patches"):
        FusedBank((KNNBank(), bank)).fit(N, (3, 3))
    with pytest.raises(DataError, match=r"Careless\.score gives shape"):
        bank = gives(lambda p: p.sum((1, 2)))
        FusionBank(("mine",), ((Preparation(), bank, "max"),)).fit(N, (3, 3))


def test_a_bank_that_cannot_be_made_again_says_so_wherever_a_copy_is_made():
    bank = gives(lambda p: p.sum(2), __init__=lambda self, power=1: None)
    bank.leaves_one_out = True
    for call in (
        lambda: held_out_scores(bank, N, (3, 3), folds=2),
        lambda: held_out_scores(bank, N, (3, 3)),
        lambda: FusedBank((KNNBank(), bank)).fit(N, (3, 3)),
    ):
        with pytest.raises(DataError, match=r"Careless\.__init__: store each parameter under its own name"):
            call()


def test_an_image_score_of_ones_own_has_one_number_an_image():
    bank = gives(lambda p: p.sum(2), scores_images=True, image_score=lambda self, cls, training=False: cls)
    features = FeatureSet(N, (3, 3), pd.DataFrame({"image_path": [""] * 12}), N.mean(1))
    with pytest.raises(DataError, match=r"Careless\.image_score gives shape \(12, 4\) for 12 images; return \(12,\)"):
        Detector(bank=bank, aggregation="retrieval").fit(features)


class Configured(Bank):
    "A bank with a parameter of any type."

    def __init__(self, how=None):
        self.how = how

    def fit(self, patches, patch_hw, cls=None):
        self.mean_ = patches.mean((0, 1))
        return self

    def score(self, patches, cls=None):
        return np.linalg.norm(patches - self.mean_, axis=2)


class Odd:
    "A value that is equal to itself alone."


VALUES = {
    "dict of arrays": lambda: {"a": np.ones(2)},
    "table": lambda: pd.DataFrame({"a": [1, 2]}),
    "tensor": lambda: torch.ones(3),
    "nan": lambda: float("nan"),
    "array of nan": lambda: np.array([np.nan]),
    "module": lambda: torch.nn.Linear(2, 2),
    "object": Odd,
    "generator": lambda: np.random.default_rng(0),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_parameter_of_any_type_is_not_taken_for_changed(value):
    detector = Detector(bank=Configured(value())).fit(N)
    assert np.isfinite(detector.score(N)).all()
    detector.set_params(bank=Configured("another"))
    with pytest.raises(DataError, match="the threshold is that of the fit"):
        detector.score(N)
