"""What people bring that nobody planned for: equal scores, labels that contradict, moved images, networks of one's own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.banks import KNNBank, MutualBank, held_out_scores
from anomaly_nb.calibration.thresholds import Threshold, conformal_threshold
from anomaly_nb.core.errors import DataError, MissingFileError, Notice
from anomaly_nb.data import read_index
from anomaly_nb.data.census import census_lines, take_census
from anomaly_nb.features import FeatureSet
from anomaly_nb.reports.card import write_card
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.curves import curve_verdict
from anomaly_nb.scoring.predict import find_images
from anomaly_nb.scoring.validation import artificial_validation
from tests.commands import fails, run


def images(folder, count, random_state=0):
    rng = np.random.default_rng(random_state)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{random_state}{i:02}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(90, 160, (40, 40, 3)).astype(np.uint8)).save(path)
    return paths


def test_a_normal_score_below_the_threshold_is_not_flagged_in_any_precision():
    scores = (np.random.default_rng(0).integers(0, 40, 99) * 0.1).astype(np.float32)
    threshold = conformal_threshold(scores, 0.05)
    for type_ in (np.float16, np.float32, np.float64):
        some = scores.astype(type_)
        assert (threshold.predict(some) == (some.astype(float) >= threshold.value)).all()
    assert threshold.predict(scores).sum() <= 5
    assert not Threshold(0.50012, "conformal", "x", 10).predict(np.array([0.5], np.float16))[0]


def test_equal_scores_keep_the_promise():
    "Counts of events score alike to the bit, so that many scores lie just below the threshold."
    rates = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        train, new = (rng.poisson(2.0, (n, 9, 4)).astype(np.float32) for n in (59, 300))
        detector = Detector("knn", bank=KNNBank(metric="sqeuclidean"), threshold="conformal:0.05").fit(train)
        rates.append(detector.predict(new).mean())
    assert np.mean(rates) < 0.06


@pytest.mark.parametrize("coreset", [12, 0.05])
def test_a_small_coreset_keeps_its_promise(coreset):
    rng = np.random.default_rng(1)
    centres = 3 * rng.normal(size=(12, 16))

    def draw(n):
        return (centres[rng.integers(0, 12, (n, 36))] + rng.normal(size=(n, 36, 16))).astype(np.float32)

    rates = []
    for _ in range(15):
        detector = Detector("knn", bank=KNNBank(metric="euclidean", coreset=coreset), threshold="conformal:0.05")
        rates.append(detector.fit(draw(40)).predict(draw(200)).mean())
    assert np.mean(rates) < 0.05 + 2.5 * np.std(rates) / 15**0.5


def test_a_small_coreset_is_chosen_without_the_image():
    x = np.random.default_rng(0).normal(size=(8, 36, 5)).astype(np.float32)
    bank = KNNBank(metric="euclidean", coreset=0.1).fit(x, (6, 6))
    alone = [
        KNNBank(metric="euclidean", coreset=0.1).fit(np.delete(x, i, 0), (6, 6)).score(x[i : i + 1])[0]
        for i in range(8)
    ]
    assert np.allclose(held_out_scores(bank, x, (6, 6)), alone, rtol=1e-5)


def test_fewer_images_than_the_threshold_is_of():
    x = np.random.default_rng(0).normal(size=(12, 9, 4)).astype(np.float32)
    detector = Detector("knn", bank=MutualBank((1,)), threshold="conformal:0.1").fit(x)
    with pytest.warns(Notice, match="2 images compared with each other, where a threshold is of 12 together"):
        detector.predict(x[:2])
    with pytest.raises(DataError, match="1 image: images are compared with each other; give at least 2 together"):
        detector.predict(x[:1])


def test_labels_that_are_unknown_or_contradict_are_said(tmp_path):
    paths = images(tmp_path / "img", 4)
    rows = [(f"img/{p.name}", "train", -1) for p in paths] + [(f"img/{paths[0].name}", "test", 1)]
    pd.DataFrame(rows, columns=["image_path", "split", "label"]).to_csv(tmp_path / "t.csv", index=False)
    lines = census_lines(take_census(read_index("csv", tmp_path / "t.csv"), tmp_path))
    assert "note: 4 training images of 4 without a known label, taken for normal" in lines
    assert any("1 image learned from as normal and labelled anomalous in test, the first 000.png" in s for s in lines)


def test_paths_from_windows_and_with_spaces(tmp_path):
    images(tmp_path / "img", 2)
    (tmp_path / "t.csv").write_text("image_path,split\nimg\\000.png,train\nimg/001.png,train\n")
    index = read_index("csv", tmp_path / "t.csv")
    assert [p.rpartition("/")[2] for p in index["image_path"]] == ["000.png", "001.png"]
    assert "1 path of t.csv written with backslashes, read as slashes" in index.attrs["census"]["notes"]
    (tmp_path / "t.csv").write_text("image_path,split\n img/000.png,train\n")
    with pytest.raises(MissingFileError, match="begins or ends with a space"):
        read_index("csv", tmp_path / "t.csv")


def test_an_update_names_what_was_moved(tmp_path):
    paths = images(tmp_path / "good", 6)
    detector = Detector("knn", "filters", image_size=32).fit(paths)
    paths[2].rename(tmp_path / "elsewhere.png")
    with pytest.raises(MissingFileError, match=r"good/002.png: no such file \(1 of 6 such\).*say where the images are now"):
        detector.update(images(tmp_path / "more", 2, 7))


def test_a_network_of_ones_own(tmp_path):
    with pytest.raises(DataError, match=r"backbone: a Own, where a name such as 'timm:resnet18'"):
        Detector("knn", type("Own", (), {})()).fit(images(tmp_path / "good", 4))
    x = np.random.default_rng(0).normal(size=(6, 9, 4)).astype(np.float32)
    spec = {"name": "mine", "image_size": 32}
    meta = pd.DataFrame({"image_path": [p.as_posix() for p in images(tmp_path / "good", 6)]})
    detector = Detector("knn").fit(FeatureSet(x, (3, 3), meta, spec=spec))
    with pytest.raises(DataError, match=r"features of a network of your own, 'mine'.*give features of new images"):
        detector.score(images(tmp_path / "new", 2, 5))
    assert detector.score(x).shape == (6,)


def test_a_vector_each_is_needed_to_rerank():
    x = np.random.default_rng(0).normal(size=(6, 9, 4)).astype(np.float32)
    with pytest.raises(DataError, match="rerank compares images by a vector each"):
        Detector("patchcore", rerank=(3,)).fit(x).score(x)


def test_a_tie_has_no_leader():
    rows = [("a", "n", 0, 1.0), ("b", "n", 0, 0.9998), ("c", "n", 0, 0.9)]
    table = pd.DataFrame(rows, columns=["recipe", "backbone", "shots", "mean"]).assign(low=np.nan, high=np.nan)
    assert curve_verdict(table) == "With no normal images a and b are level with 1.000, before c with 0.900."


def test_the_threshold_can_be_recounted_from_the_table(tmp_path):
    detector = Detector("knn", "filters", image_size=32).fit(images(tmp_path / "good", 9))
    detector.save(tmp_path / "detector")
    scores = pd.read_csv(tmp_path / "detector" / "training.csv")["score"]
    assert (scores >= detector.threshold_.value).sum() == (
        detector.held_out_.astype(float) >= detector.threshold_.value
    ).sum()
    assert (scores.to_numpy() == detector.held_out_.astype(float)).all()


def test_masks_of_a_labelled_set_are_no_parts(tmp_path):
    good, bad = images(tmp_path / "good", 2), images(tmp_path / "scratch", 2, 3)
    for path in bad:
        (tmp_path / "masks" / "scratch").mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 40)).save(tmp_path / "masks" / "scratch" / path.name)
    Image.new("1", (40, 40)).save(tmp_path / "scratch" / f"{bad[0].stem}_mask.png")
    parts = [*good, *bad, *images(tmp_path / "masks" / "face", 2, 3)]  # in colour: a product of that name
    Image.new("L", (40, 40)).save(tmp_path / "masks" / "alone.png")  # of no image
    images_found, passed = find_images([tmp_path])
    assert set(images_found) == {p.as_posix() for p in [*parts, tmp_path / "masks" / "alone.png"]}
    assert len(passed) == 3 and set(passed.values()) == {"mask of an image"}


def test_an_update_finds_images_that_were_moved(tmp_path):
    "By their checksums, wherever and whatever they are called now; the checksums outlive a save elsewhere."
    paths, more = images(tmp_path / "good", 6), images(tmp_path / "more", 2, 7)
    Detector("knn", "filters", image_size=32).fit(paths).save(tmp_path / "one")
    whole = Detector.load(tmp_path / "one").update(more)
    (tmp_path / "archive" / "deep").mkdir(parents=True)
    for i, path in enumerate(paths):
        path.rename(tmp_path / "archive" / "deep" / f"{9 - i}.png")
    again = Detector.load(Detector.load(tmp_path / "one").save(tmp_path / "two"))
    with pytest.raises(MissingFileError, match="--earlier"):
        again.update(more)
    assert again.version_ == 1
    again.update(more, tmp_path / "archive")
    np.testing.assert_array_equal(again.held_out_, whole.held_out_)
    assert again.threshold_.value == whole.threshold_.value and again.version_ == 2
    assert [p.rpartition("/")[2] for p in again.paths_[:6]] == [f"{9 - i}.png" for i in range(6)]


def test_an_update_does_not_learn_from_images_that_were_changed(tmp_path):
    paths, more = images(tmp_path / "good", 6), images(tmp_path / "more", 2, 7)
    detector = Detector.load(Detector("knn", "filters", image_size=32).fit(paths).save(tmp_path / "one"))
    paths[3].write_bytes(more[0].read_bytes())
    with pytest.raises(DataError, match=r"003.png: changed since the detector learned from it \(1 of 6 such\)"):
        detector.update(more)


def test_an_update_does_not_lose_groups(tmp_path):
    "Groups of a table's column: new images without one would make the promise one of images."
    paths, more = images(tmp_path / "good", 6), images(tmp_path / "more", 2, 7)
    table = pd.DataFrame({"image_path": [p.as_posix() for p in paths], "group": list("aabbcc"), "split": "train"})
    folder = Detector("knn", "filters", image_size=32).fit(table.assign(label=0)).save(tmp_path / "one")
    with pytest.raises(DataError, match=r"have groups \(a, ...\) and the new ones none"):
        Detector.load(folder).update(more)
    new = pd.DataFrame({"image_path": [p.as_posix() for p in more], "group": "d"})
    assert Detector.load(folder).update(new).groups_ == [*"aabbccdd"]
    alone = Detector("knn", "filters", image_size=32).fit(paths).update(new)
    assert len(set(alone.groups_)) == 7 and alone.threshold_.parameters["groups"] == 7


def test_a_copy_at_the_fit_is_no_group_to_name_at_an_update(tmp_path):
    "Groups that a fit makes of copies are nobody's to name; groups that were given are still asked for."
    paths, more = images(tmp_path / "good", 6), images(tmp_path / "more", 2, 7)
    copy = tmp_path / "good/copy.png"
    copy.write_bytes(paths[2].read_bytes())
    folder = Detector("knn", "filters", image_size=32).fit([*paths, copy]).save(tmp_path / "one")
    again, whole = Detector.load(folder).update(more), Detector("knn", "filters", image_size=32).fit([*paths, copy, *more])
    assert again.groups_ == whole.groups_ and len(set(again.groups_)) == 8
    assert again.threshold_.value == whole.threshold_.value
    table = pd.DataFrame({"image_path": [p.as_posix() for p in [*paths, copy]], "group": list("aabbccd")})
    given = Detector("knn", "filters", image_size=32).fit(table.assign(label=0, split="train"))
    with pytest.raises(DataError, match=r"have groups \(a, ...\) and the new ones none"):
        given.update(more)


def test_an_update_knows_an_image_through_a_link(tmp_path, capsys):
    paths, more = images(tmp_path / "disk", 6), images(tmp_path / "more", 2, 7)
    (tmp_path / "line").symlink_to(tmp_path / "disk")
    by_link = [tmp_path / "line" / p.name for p in paths]
    folder = Detector("knn", "filters", image_size=32).fit(by_link).save(tmp_path / "one")
    for place in ("line", "disk"):
        assert "nothing to add" in fails(capsys, "update", folder, tmp_path / place)
    assert Detector.load(folder).update([*paths, *more]).paths_ == [p.as_posix() for p in (*by_link, *more)]
    (tmp_path / "also").symlink_to(tmp_path / "more")
    assert run("update", folder, tmp_path / "also", tmp_path / "more")[0] == 0
    assert Detector.load(folder).paths_[6:] == [f"{tmp_path}/also/{p.name}" for p in more]


def test_an_update_counts_only_new_images_of_earlier_groups(tmp_path, capsys):
    paths, more = images(tmp_path / "good", 6), images(tmp_path / "good2", 2, 7)
    table = pd.DataFrame({"image_path": [p.as_posix() for p in paths], "group": list("aabbcc"), "split": "train"})
    folder = Detector("knn", "filters", image_size=32).fit(table.assign(label=0)).save(tmp_path / "one")
    code, out, _ = run("update", folder, *paths, *more, "--group", "b")
    assert code == 0 and "note: 2 new images of groups that were learned from before" in out


def test_a_name_as_long_as_can_be_is_no_end_of_a_validation(tmp_path):
    paths = images(tmp_path / "good", 8)
    long = paths[0].rename(paths[0].with_name("p" * 242 + ".png"))
    index = pd.DataFrame({"image_path": [p.as_posix() for p in [long, *paths[1:]]], "split": "train", "label": 0})
    (tmp_path / "made").mkdir()
    samples = artificial_validation(index.assign(defect="good", mask_path=""), tmp_path / "made", fraction=0.8)
    assert any(Path(p).name.startswith("00000_ppp") for p in samples["image_path"])
    assert samples["image_path"].map(lambda p: Path(p).is_file()).all()
    made = samples[samples["label"] == 1]["image_path"]
    assert made.nunique() == len(made)


def test_angles_are_learned_from_rotated_features_alone(tmp_path):
    "Features of images as they are would be cut in two grids, and arrays would be taken as they are."
    files = [p.as_posix() for p in images(tmp_path / "good", 6)]
    rotated = Detector("knn", "filters", image_size=64, angles=(0, 90))
    whole, again = rotated.fit(files).threshold_.value, Detector(**rotated.get_params())
    assert again.fit(again.features(files, fit=True)).threshold_.value == whole
    plain = Detector("knn", "filters", image_size=64).features(files, fit=True)
    for wrong in (plain, plain.patches):
        with pytest.raises(DataError, match=r"angles=\(0, 90\): the features are of images as they are, on a grid of 8 x 8"):
            Detector(**rotated.get_params()).fit(wrong)


def test_a_card_says_what_the_fit_set_and_not_the_recipe(tmp_path):
    files = [p.as_posix() for p in images(tmp_path / "good", 6)]
    for words, said in (({"image_size": 32, "coreset": 0.5}, "backbone=filters, image_size=32, coreset=0.5"), ({}, "")):
        detector = Detector("patchcore" if words else "knn", **({"backbone": "filters"} if words else {}), **words).fit(files)
        page = write_card(detector, detector.save(tmp_path / f"d{len(words)}")).read_text()
        assert ("set at this fit" in page) == bool(said) and said in page


def test_a_refused_fit_or_update_leaves_the_detector_as_it_was(tmp_path):
    "Files and aspect ratios of every kind of pass; the state is that of before to the last bit."
    paths, more = images(tmp_path / "good", 6), images(tmp_path / "more", 2, 7)
    more[1].write_bytes(more[1].read_bytes()[:60])
    for made in ({}, {"tile": 32, "overlap": 8}, {"resize": "short"}, {"recipe": "spade"}):
        detector = Detector(**({"recipe": "knn", "backbone": "filters", "image_size": 32} | made)).fit(paths)
        before, state = detector.score(paths[:2]), dict(vars(detector))
        for refused in (lambda d: d.update(more), lambda d: d.fit(more), lambda d: d.fit([])):
            with pytest.raises(DataError):
                refused(detector)
            assert vars(detector) == state
        np.testing.assert_array_equal(detector.score(paths[:2]), before)
