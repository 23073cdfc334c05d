"Images that are the same count once: the promise of a detector holds on new images, whatever was copied."

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.data import read_index
from anomaly_nb.features import FeatureSet
from anomaly_nb.reports.card import write_card
from anomaly_nb.scoring import RECIPES, Detector
from anomaly_nb.scoring.choice import choose_recipe
from anomaly_nb.scoring.recipes import WORD_RECIPES
from tests.commands import run

N = 24
PLAIN = {"backbone": "filters", "image_size": 64}
SAID = f"{2 * N} images hold {N} different ones"


def image(rng):
    return Image.fromarray(np.clip(128 + rng.normal(0, 20, (64, 64, 3)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The same images once, as copies, in another format and as links; and new ones."
    place, rng = tmp_path_factory.mktemp("copies"), np.random.default_rng(0)
    for name in ("once", "copied", "formats", "linked", "new"):
        (place / name).mkdir()
    for i in range(N):
        one, name = image(rng), f"{i:02d}.png"
        one.save(place / "once" / name)
        for both in ("copied", "formats", "linked"):
            one.save(place / both / f"a{name}")
        one.save(place / "copied" / f"b{name}")
        one.save(place / "formats" / f"b{i:02d}.bmp")
        (place / "linked" / f"b{name}").symlink_to(place / "once" / name)
    for i in range(100):
        image(rng).save(place / "new" / f"{i:03d}.png")
    return place


def files(folder, name):
    return sorted(str(p) for p in (folder / name).iterdir())


@pytest.fixture(scope="module")
def once(folder):
    return Detector("knn", **PLAIN).fit(files(folder, "once"))


@pytest.mark.parametrize("name", ["copied", "formats", "linked"])
def test_copies_promise_what_their_images_do(folder, once, name):
    with pytest.warns(Notice, match=SAID):
        twice = Detector("knn", **PLAIN).fit(files(folder, name))
    threshold, alone = twice.decision_threshold(), once.decision_threshold()
    assert threshold.rate() == pytest.approx(alone.rate(), abs=1e-6) and threshold.parameters["groups"] == N
    assert threshold.value == pytest.approx(alone.value, rel=0.2) and twice.held_out_.min() > 0.3 * alone.value
    assert twice.predict(files(folder, "new")).mean() <= threshold.parameters["bound95"]  # 1.0 where copies are counted
    result = twice.evaluate(files(folder, "new"))
    assert result.decisions()["p_value"].min() >= 1 / (N + 1) - 1e-9
    assert f"Note: {SAID}" in result.sentences()[-1] and len(set(result.training_groups)) == N


@pytest.mark.parametrize("recipe", ["knn", "mahalanobis", "positional", "gauss_knn", "fusion:knn+placed"])
def test_the_promise_holds_on_average(recipe):
    "Over many small training sets, each image copied: new images reach the threshold as often as promised."
    rng, rates, promised = np.random.default_rng(0), [], []
    for _ in range(12):
        normal, new = rng.normal(size=(19, 9, 6)).astype(np.float32), rng.normal(size=(200, 9, 6)).astype(np.float32)
        with pytest.warns(Notice, match="38 images hold 19 different ones"):
            twice = Detector(recipe, backbone="filters", threshold="quantile:0.9").fit(np.concatenate([normal, normal]))
        rates.append(twice.predict(new).mean())
        promised.append(twice.decision_threshold().rate())
    assert np.mean(rates) <= np.mean(promised) + 0.04 and np.mean(promised) <= 0.1 + 1e-9


def test_without_copies_nothing_changes(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        plain = Detector("knn", **PLAIN).fit(files(folder, "once"))
    assert plain.groups_ == [] == plain.notes_ and "groups" not in plain.decision_threshold().parameters


def test_update_is_a_fit_on_all(folder, once, tmp_path):
    once.save(tmp_path / "det")
    with pytest.warns(Notice, match=f"{3 * N} images hold {N} different ones"):
        code, _, _ = run("update", tmp_path / "det", folder / "formats")
    assert code == 0
    updated = Detector.load(tmp_path / "det")
    with pytest.warns(Notice, match="different ones"):
        fitted = Detector("knn", **PLAIN).fit(updated.paths_)
    assert np.array_equal(updated.held_out_, fitted.held_out_) and updated.notes_ == fitted.notes_
    assert updated.decision_threshold() == fitted.decision_threshold() and updated.groups_ == fitted.groups_
    assert updated.decision_threshold().parameters["groups"] == N


def test_fit_says_it_beside_the_promise(folder, tmp_path):
    words = "--recipe", "knn", "--backbone", "filters", "--image-size", 64
    with pytest.warns(Notice, match=rf"{SAID} \(a00.png and b00.png"):
        code, said, _ = run("fit", folder / "copied", "--normal", ".", "--out", tmp_path / "det", *words)
    assert code == 0 and f"in {N} groups" in said and "look like several images" not in said
    card = (tmp_path / "det/detector.html").read_text()
    assert f"Note: {SAID}" in card.partition("</div>")[0]
    assert json.loads((tmp_path / "det/detector.json").read_text())["notes"] == Detector.load(tmp_path / "det").notes_


def test_near_duplicates_are_noted_on_the_card(folder, tmp_path):
    near = np.asarray(Image.open(files(folder, "once")[0])).astype(int)
    Image.fromarray(np.clip(near + np.random.default_rng(0).integers(-2, 3, near.shape), 0, 255).astype(np.uint8)).save(
        tmp_path / "near.png"
    )
    with pytest.warns(Notice, match="nearly the same"):
        model = Detector("knn", **PLAIN).fit([*files(folder, "once"), str(tmp_path / "near.png")])
    assert model.groups_ == [] and len(model.alike_) == 1
    card = write_card(Detector.load(model.save(tmp_path / "det")), tmp_path / "det").read_text()
    said = "training images nearly the same as another (00.png and near.png); if they show one part, give groups"
    assert said in card.partition("</div>")[0] and said in model.evaluate(files(folder, "new")[:2]).sentences()[-1]


def test_groups_that_contradict_the_images_are_joined(folder):
    apart = Detector("knn", **PLAIN, groups="^(.)")  # a00 and b00 are the same image
    with pytest.raises(DataError, match=r"copies join all groups of 48 images \(a00.png of a and b00.png of b"):
        apart.fit(files(folder, "copied"))
    some = [*files(folder, "copied"), *files(folder, "new")[:6]]
    rule = r"^(a0[01]|b0[12]|[0-9]*)"  # the two of 01 are in groups of their own, others by rows
    some = [p for p in some if p.rsplit("/", 1)[1][:3] in ("a00", "a01", "b01", "b02") or "/new/" in p]
    with pytest.warns(Notice, match=r"are the same \(a01.png of a01 and b01.png of b01\): .* leaves 9 of 10"):
        model = Detector("knn", **PLAIN, groups=rule).fit(some)
    assert model.decision_threshold().parameters["groups"] == 9
    together = Detector("knn", **PLAIN, groups=r"^.?(\d+)")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert together.fit(files(folder, "copied")).decision_threshold().parameters["groups"] == N


def test_what_cannot_be_counted_is_refused(folder):
    with pytest.raises(DataError, match=r"all 3 images are the same .*, and none can be left out"):
        Detector("knn", **PLAIN).fit([files(folder, "once")[0], *files(folder, "copied")[:1], files(folder, "linked")[0]])


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in WORD_RECIPES])
def test_every_recipe_counts_copies_once(recipe, tmp_path):
    "Three images, each twice, teach what the three do, in all that is kept of them."
    count = 5 if recipe == "fusion" else 3  # its members are scaled by folds of folds
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)):
        (tmp_path / "once").mkdir(exist_ok=True), (tmp_path / "twice").mkdir(exist_ok=True)
        for place in ("once/{}.png", "twice/{}_a.png", "twice/{}_b.bmp"):
            Image.fromarray(pixels).save(tmp_path / place.format(i))
    settings = {"backbone": "filters", "image_size": 48}
    alone = Detector(recipe, **settings).fit(files(tmp_path, "once"))
    with pytest.warns(Notice, match=f"{2 * count} images hold {count} different ones"):
        both = Detector(recipe, **settings).fit(files(tmp_path, "twice"))
    assert np.allclose(both.held_out_, np.repeat(alone.held_out_, 2), rtol=1e-4, atol=1e-6)
    ours, theirs = both.decision_threshold(), alone.decision_threshold()
    assert ours.value == pytest.approx(theirs.value, rel=1e-4) and ours.rate() == pytest.approx(theirs.rate())
    both = Detector.load(both.save(tmp_path / "det"))
    if not alone.bank_.whole_batch:
        seen = alone.explain(files(tmp_path, "once")), both.explain(files(tmp_path, "once"))
        assert np.allclose(seen[0]["score"], seen[1]["score"], rtol=1e-4, atol=1e-5)
        nearest = [[p.rsplit("/", 1)[1][0] for p in one["normal_path"]] for one in seen]
        assert nearest[0] == nearest[1]  # rows are those of all images


def test_the_explorer_counts_copies_once(folder):
    from anomaly_nb.scoring.view_scores import GridScores

    once, both = (Detector("knn", **PLAIN) for _ in range(2))
    with pytest.warns(Notice, match=SAID):
        seen = [
            GridScores(model.fit(files(folder, name)), model.features(files(folder, name)), model.features(files(folder, "new")))
            for model, name in ((once, "once"), (both, "copied"))
        ]
    for k in (1, 3):
        (test, held_out), (test_of_copies, held_out_of_copies) = (source.scores(k, "max") for source in seen)
        assert np.allclose(test, test_of_copies, atol=1e-5) and len(held_out_of_copies) == 2 * N
        assert np.allclose(np.sort(np.repeat(held_out, 2)), np.sort(held_out_of_copies), atol=1e-5)


def test_the_time_is_that_of_images_that_differ(folder, monkeypatch):
    from anomaly_nb.scoring import choice

    index = read_index("folder", folder / "copied", normal=".", n_train=1.0)
    assert choice.counted_images(index) == (N, 0) and choice.counted_images(index, "^(a|b)") == (N, 1)
    by_pixels = read_index("folder", folder / "formats", normal=".", n_train=1.0)
    assert choice.counted_images(by_pixels) == (2 * N, 0)  # by their bytes; the choice looks at pixels
    chosen = choose_recipe(by_pixels, image_size=64, recipes=("knn", "mahalanobis"))[1]
    assert chosen.attrs["counted"] == [2 * N, N, 0]
    least, most = chosen.attrs["learning"].expected(2 * N, 0, N)
    assert most < chosen.attrs["learning"].expected(2 * N)[1] and least > chosen.attrs["learning"].features * 2 * N
    clock = iter([0.0, 1.0] * 99)
    monkeypatch.setattr(choice, "median_seconds", lambda *_: 1.0)
    monkeypatch.setattr(choice.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(choice, "synthetic_anomaly", lambda *_, **__: None)
    once = choice.expected_seconds(read_index("folder", folder / "once", normal=".", n_train=1.0), image_size=64)
    clock = iter([0.0, 1.0] * 99)
    more = choice.expected_seconds(index, image_size=64) - once
    assert 0 < more <= N  # the features of the copies alone


def test_features_and_tiles_are_counted_alike(folder, once):
    features = Detector("knn", **PLAIN).features(files(folder, "copied"))
    without_names = FeatureSet(features.patches, features.patch_hw, features.meta.assign(image_path=""))
    with pytest.warns(Notice, match=f"{SAID}: copies"):
        model = Detector("knn", **PLAIN).fit(without_names)
    assert model.decision_threshold().parameters["groups"] == N
    for changed in ({"tile": 48, "overlap": 8, "coreset": 200}, {"region": "0.1,0.1,0.9,0.9"}):
        tiles = Detector("knn", backbone="filters", **changed)
        with pytest.warns(Notice, match=SAID):
            tiles.fit(files(folder, "formats"))
        assert tiles.decision_threshold().parameters["groups"] == N
        assert tiles.predict(files(folder, "new")[:20]).mean() <= tiles.decision_threshold().parameters["bound95"]


def test_recipes_are_compared_on_images_that_differ(folder):
    index = read_index("folder", folder / "formats", normal=".", n_train=1.0)
    some = ("knn", "mahalanobis")
    copied = choose_recipe(index, image_size=64, recipes=some)[1]
    assert f"left out: {N} images that are copies of another" in copied.attrs["compared_on"] and "16 images to learn from" in copied.attrs["compared_on"]


def test_rates_are_numbers_that_people_write():
    from anomaly_nb.scoring import quantile_threshold

    scores = np.random.default_rng(0).random(24)
    assert quantile_threshold(scores, 0.9).rate() == 0.08 and quantile_threshold(scores, 0.96).rate() == 0.04
    rates = [quantile_threshold(np.arange(n), 0.9, too_few="largest").rate() for n in range(1, 200)]
    assert all(len(repr(rate)) <= 8 for rate in rates), rates


def test_a_detector_among_its_images_is_noted(folder, tmp_path):
    for i, path in enumerate(files(folder, "new")[:6]):
        (tmp_path / "good").mkdir(exist_ok=True)
        Image.open(path).save(tmp_path / f"good/{i}.png")
    words = "--recipe", "knn", "--backbone", "filters", "--image-size", 64
    code, said, _ = run("fit", tmp_path / "good", "--out", tmp_path / "good/det", *words)
    assert code == 0 and "good/det lies in the folder of images" in said and "give --out a folder beside it" in said
    code, said, _ = run("fit", tmp_path / "good", "--out", tmp_path / "goodness", *words)
    assert code == 0 and "lies in the folder" not in said
    (tmp_path / "goodness/detector.html").write_text("changed")
    with pytest.raises(DataError, match=r"detector.html: changed since manifest.json was written; restore it, or fit again$"):
        Detector.load(tmp_path / "goodness")
    (tmp_path / "goodness/detector.html").unlink()
    with pytest.raises(FileNotFoundError, match=r"not there; restore it, or fit again$"):
        Detector.load(tmp_path / "goodness")
