"""Words as detectors: WinCLIP's formulas against loops in float64, detectors of words through files and commands, and
what wrong words do.
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from anomaly_nb.banks import WordBank
from anomaly_nb.cli.main import app
from anomaly_nb.core.arrays import save_arrays, save_tensors
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.files import write_text
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import read_index
from anomaly_nb.data.shapes import write_trays
from anomaly_nb.features import create_backbone
from anomaly_nb.features.words import Words, read_prompts, side_parts
from anomaly_nb.metrics import roc_auc
from anomaly_nb.reports.explore import open_view
from anomaly_nb.scoring import Detector, few_shot
from anomaly_nb.scoring.benchmark import Method, measure


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def winclip_by_loops(windows, tokens, cls, texts, scale, grid, references):
    """WinCLIP of one image as its paper has it, window by window in float64: map and score.

    `windows`: side -> {(row, column): embedding}; `references`: the same of each normal image, with its tokens.
    """
    h, w = grid
    text = lambda x: (
        np.exp(scale * cosine(x, texts[1]))
        / (np.exp(scale * cosine(x, texts[0])) + np.exp(scale * cosine(x, texts[1])))
    )
    covered = lambda side, r, c: [(i, j) for i, j in windows[side] if i <= r < i + side and j <= c < j + side]
    harmonic = lambda values: len(values) / sum(1 / v for v in values)
    maps, near = np.empty(grid), np.empty(grid)
    for r, c in itertools.product(range(h), range(w)):
        scales = [text(cls)] + [harmonic([text(windows[s][at]) for at in covered(s, r, c)]) for s in windows]
        maps[r, c] = harmonic(scales)
        if references:
            far = lambda x, known: min(0.5 * (1 - cosine(x, k)) for k in known)
            parts = [far(tokens[r * w + c], [t for _, seen in references for t in seen])]
            for s in windows:
                known = [v for seen, _ in references for v in seen[s].values()]
                parts.append(harmonic([far(windows[s][at], known) for at in covered(s, r, c)]))
            near[r, c] = np.mean(parts)
    if not references:
        return maps.reshape(-1), text(cls)
    return ((maps + near) / 2).reshape(-1), (text(cls) + near.max()) / 2


@pytest.mark.parametrize("k", [0, 1, 3])
def test_winclip_equals_its_formulas(k):
    rng, grid, wide, width, sides, scale = np.random.default_rng(5), (4, 5), 24, 16, (2, 3), 100.0
    h, w = grid
    packed = (rng.normal(size=(2 + k, h * w, 2 * wide + width)) + 0.6).astype(np.float32)
    cls = (rng.normal(size=(2 + k, wide)) + 0.6).astype(np.float32)
    sentences, defect = [rng.normal(size=(n, wide)) + 0.5 for n in (4, 3, 5)], np.array([False, False, True])
    sentences = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in sentences]
    texts = [np.concatenate(sentences[:2]).mean(0), sentences[2].mean(0)]  # brought to length one by the cosine
    words = Words(side_parts(sentences, defect), defect, ("a", "b", "c"), scale)
    bank = WordBank(sides, words).fit(packed[2:], grid, cls[2:])
    scores, images = bank.score(packed[:2], cls[:2]), bank.image_score(cls[:2], patches=packed[:2])

    def unpacked(one):
        x = one.astype(np.float64)
        begins = lambda s: itertools.product(range(h - s + 1), range(w - s + 1))
        return {
            s: {(i, j): x[i * w + j, n * wide : (n + 1) * wide] for i, j in begins(s)} for n, s in enumerate(sides)
        }, list(x[:, 2 * wide :])

    references = [unpacked(p) for p in packed[2:]]
    for i in range(2):
        wanted, image = winclip_by_loops(
            *unpacked(packed[i]), cls[i].astype(np.float64), texts, scale, grid, references
        )
        assert np.abs(scores[i] - wanted).max() < 1e-6 and abs(images[i] - image) < 1e-6
    if k > 1:  # each normal image by the others
        wanted, image = winclip_by_loops(
            *unpacked(packed[2]), cls[2].astype(np.float64), texts, scale, grid, references[1:]
        )
        assert np.abs(bank.leave_one_image_out(packed[2:])[0] - wanted).max() < 1e-6
        assert abs(bank.image_score(cls[2:], training=True, patches=packed[2:])[0] - image) < 1e-6


def test_windows_are_the_towers_own():
    import torch

    net = create_backbone("open_clip:ViT-S-32-alt?windows=(2,3)", "random", 128)
    x = np.random.default_rng(0).normal(size=(1, 3, 128, 128)).astype(np.float32)
    patches, grid, _ = net(x)
    tower, wide = net.model, net.whole.visual.output_dim
    with torch.inference_mode():
        tokens = tower._embeds(torch.as_tensor(x))
        row = [0] + [1 + r * 4 + c for r in (1, 2) for c in (2, 3)]  # the window that begins at row 1, column 2
        alone = (tower._pool(tower.transformer(tokens[:, row]))[0] @ tower.proj).numpy()
    assert grid == (4, 4) and np.allclose(patches[0, 6, :wide], alone[0], atol=1e-5)
    assert not patches[0, 3, :wide].any() and not patches[0, 8:, wide : 2 * wide].any()  # where none begins


@pytest.fixture(scope="module")
def circles(tmp_path_factory):
    folder = write_trays(tmp_path_factory.mktemp("trays"), n_train=6)
    return read_index("mvtec", folder, "red_circle")


def words_of_trays(index):
    "The prompts that were written beside the images."
    return index["image_path"].iloc[0].split("/red_circle/")[0] + "/prompts_red_circle.yml"


def auroc(detector, index):
    test = index[index["split"] == "test"]
    return roc_auc(test["label"].to_numpy(), detector.score(test))


def test_words_find_foreign_bodies(circles, tmp_path):
    prompts = words_of_trays(circles)
    made = {
        k: Detector("winclip", "open_clip:tiny", prompts=prompts).fit(few_shot(circles, k, 0, "random")) for k in (0, 4)
    }
    none, four = (auroc(d, circles) for d in made.values())
    print(f"winclip: image AUROC {none:.3f} without normal images, {four:.3f} with four")
    assert none > 0.9
    text = Path(prompts).read_text()
    swapped = (
        text.replace("red circle", "x")
        .replace("green square", "red circle")
        .replace("object: x", "object: green square")
    )
    path = write_text(tmp_path / "swapped.yml", swapped)
    assert auroc(Detector("winclip", "open_clip:tiny", prompts=str(path)).fit([]), circles) < 0.1
    assert made[0].threshold_.value == 0.5 and "promise" in made[0].threshold_.parameters
    assert made[4].threshold_.parameters["promised"] == 0.8  # four images can promise no more


@pytest.mark.parametrize("seed", [0, 1])
def test_four_normal_images_help_where_words_alone_are_unsure(tmp_path, seed):
    """Green squares of 0.6 times the parts' size: words alone see them well above chance, with four normal images
    better, with wrong words worse.
    """
    folder = write_trays(tmp_path, n_train=12, n_good=40, n_defect=40, random_state=seed, size=0.6)
    index, prompts = read_index("mvtec", folder, "red_circle"), folder / "prompts_red_circle.yml"
    make = lambda k, words, s=0: Detector("winclip", "open_clip:tiny", prompts=str(words)).fit(
        few_shot(index, k, s, "random")
    )
    none, four = auroc(make(0, prompts), index), [auroc(make(4, prompts, s), index) for s in range(3)]
    swapped = write_text(
        tmp_path / "wrong.yml",
        prompts.read_text()
        .replace("red circle", "@")
        .replace("green square", "red circle")
        .replace("@", "green square"),
    )
    wrong = auroc(make(0, swapped), index)
    print(
        f"winclip, small foreign bodies, seed {seed}: image AUROC {none:.3f} by words alone, {np.round(four, 3).tolist()} with four normal images, {wrong:.3f} by wrong words"
    )
    assert none > 0.7 and min(four) > none + 0.1 and wrong < 0.4


def test_dense_words_give_scores(circles):
    for k in (0, 2):
        made = Detector("clip_text", "open_clip:tiny", prompts=words_of_trays(circles)).fit(
            few_shot(circles, k, 0, "random")
        )
        scores = made.score(circles[circles.split == "test"])
        assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1 and len(set(scores.tolist())) > 10


def test_a_run_of_few_images_is_explored_as_it_was(circles, tmp_path):
    "The view learns from the images that the report learned from, or by words alone from none."
    folder = words_of_trays(circles).rpartition("/")[0]
    named = {"dataset": "mvtec", "root": folder, "category": "red_circle", "recipe": "clip_text", "out": ""}
    named |= {"backbone": "open_clip:tiny", "image_size": 0, "image_reduce": "", "cache": str(tmp_path / "features")}
    for k in (0, 2):
        view = open_view("image_anomaly", **named, prompts=words_of_trays(circles), shots=k)
        made = Detector("clip_text", "open_clip:tiny", prompts=words_of_trays(circles)).fit(
            few_shot(circles, k, 0, "random")
        )
        assert view.detector.paths_ == made.paths_ and len(made.paths_) == k
        assert view.state()["sigma"] == made.smoothing
        assert np.allclose(view.scores(1, view.state()["aggregation"])[0], made.score(circles[circles.split == "test"]))
        assert (view.show()[1]["now"] == view.show()[1]["report"]).all()


def test_files_hold_the_words(circles, tmp_path):
    own = write_text(
        tmp_path / "mine.yml",
        "object: disc\nnormal: ['sound {}']\ndefect: ['damaged {}']\ntemplates: ['a photo of a {}.', '{}']\n",
    )
    for k in (0, 3):
        made = Detector("winclip", "open_clip:tiny", prompts=str(own)).fit(few_shot(circles, k, 1, "random"))
        made.save(tmp_path / f"made{k}")
        again = Detector.load(tmp_path / f"made{k}")
        assert np.array_equal(
            again.score(circles[circles.split == "test"]), made.score(circles[circles.split == "test"])
        )
        assert (
            list(again.bank_.names_) == ["sound disc", "damaged disc"] and read_prompts(again.prompts).object == "disc"
        )
        assert (
            not list((tmp_path / f"made{k}").rglob("*.pkl"))
            and "prompts/mine.yml" in read_json(tmp_path / f"made{k}" / "manifest.json")["files"]
        )
    own.unlink()
    again.update(circles[circles.split == "train"])  # by the prompts of its folder
    assert len(again.paths_) == 6 and again.version_ == 2
    (tmp_path / "made0" / "prompts" / "mine.yml").write_text("object: x")
    with pytest.raises(DataError, match=r"mine\.yml"):
        Detector.load(tmp_path / "made0")


def test_trained_vectors_take_the_place_of_prompts(circles, tmp_path):
    import torch
    from safetensors.torch import save_file

    tiny = create_backbone("open_clip:tiny?windows=(2,3)")
    vectors = {
        side: tiny.encode_texts([f"{word} red circle" for word in words])
        for side, words in (("normal", ("flawless", "perfect")), ("defect", ("damaged",)))
    }
    written = Detector("winclip", "open_clip:tiny", prompts="red circle").fit([])
    save_arrays(tmp_path / "v.npz", vectors)
    save_tensors(tmp_path / "v.pt", {k: torch.as_tensor(v) for k, v in vectors.items()})
    save_file({k: torch.as_tensor(v) for k, v in vectors.items()}, tmp_path / "v.safetensors")
    scores = [
        Detector("winclip", "open_clip:tiny", prompts=str(tmp_path / f"v.{end}")).fit([]).score(circles)
        for end in ("npz", "pt", "safetensors")
    ]
    assert (
        np.array_equal(scores[0], scores[1])
        and np.array_equal(scores[0], scores[2])
        and not np.array_equal(scores[0], written.score(circles))
    )
    save_arrays(tmp_path / "narrow.npz", {"normal": np.ones((1, 8)), "defect": np.eye(8)[:1]})
    with pytest.raises(DataError, match="vectors of 8 dimensions, but"):
        Detector("winclip", "open_clip:tiny", prompts=str(tmp_path / "narrow.npz")).fit([])


@pytest.mark.parametrize(("given", "said"), [
    ({"backbone": "filters"}, "compares images with words, which backbone='filters'"),
    ({"backbone": "open_clip:tiny", "tile": 64, "overlap": 16}, "whole images"),
    ({"backbone": "open_clip:tiny", "prompts": "absent.yml"}, "give a YAML file of prompts"),
    ({"recipe": "knn", "aggregation": "words"}, "compares with none"),
])  # fmt: skip
def test_what_cannot_be_is_said(circles, given, said):
    with pytest.raises((DataError, FileNotFoundError), match=said):
        Detector(**{"recipe": "winclip"} | given).fit(circles)


def test_shots_are_measured(circles, tmp_path):
    with pytest.raises(DataError, match="shots=0: knn learns from normal images"):
        measure(circles, Method("knn"), shots=0, cache=tmp_path)
    done = measure(
        circles,
        Method("winclip", "open_clip:tiny", prompts=words_of_trays(circles)),
        shots=0,
        cache=tmp_path,
        pixels=False,
    )
    assert done.metrics["image_auroc"] > 0.9 and len(done.scores) == (circles.split == "test").sum()
    one = measure(
        circles,
        Method("winclip", "open_clip:tiny", prompts="red circle"),
        shots=1,
        random_state=2,
        cache=tmp_path,
        pixels=False,
        sample="random",
    )
    assert "f1" not in one.metrics  # one image gives no threshold


def test_commands_without_normal_images(circles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = circles["image_path"].iloc[0].split("/red_circle/")[0] + "/red_circle"
    run = lambda *a: CliRunner().invoke(app, list(map(str, a)))
    words = ("--backbone", "open_clip:tiny", "--recipe", "winclip", "--prompts", words_of_trays(circles))
    none = run("fit", f"{root}/train", "--out", "zero", "--shots", "0", *words)
    assert none.exit_code == 0 and "promises none" in none.output and "threshold 0.5 by even odds, without a normal image behind it" in none.output
    assert "promises no false-positive rate" in (tmp_path / "zero" / "detector.html").read_text()
    told = run("predict", "zero", f"{root}/test", "--out", "p.csv", "--maps", "maps")
    rows = pd.read_csv("p.csv")
    assert (
        told.exit_code in (0, 3)
        and rows["error"].isna().all()
        and rows["p_value"].isna().all()
        and len(list((tmp_path / "maps").rglob("*.tiff"))) == len(rows)
    )
    some = run("fit", f"{root}/train", "--out", "four", "--shots", "4", *words)
    assert some.exit_code == 0 and "4 images can promise 20.0 % false alarms at best" in some.output
    refused = run("fit", f"{root}/train", "--out", "knn", "--shots", "0", "--recipe", "knn", "--backbone", "filters")
    assert isinstance(refused.exception, DataError) and "learns from normal images" in str(refused.exception)


def test_a_service_of_words_alone_says_null_as_its_schema_does(circles, tmp_path):
    testing = pytest.importorskip("fastapi.testclient")
    from anomaly_nb.calibration.keys import new_key
    from anomaly_nb.scoring.service import PredictAnswer, create_detector_app, read_detectors

    made = Detector("winclip", "open_clip:tiny", prompts=words_of_trays(circles))
    made.fit(few_shot(circles, 0, 0, "random")).save(tmp_path / "d" / "trays")
    image = Path(circles[circles.split == "test"].image_path.iloc[0])
    key, hashed = new_key()
    served = create_detector_app(read_detectors(tmp_path / "d"), hashed)
    client = testing.TestClient(served, headers={"Authorization": f"Bearer {key}"})
    answer = client.post("/v1/detectors/trays/predict", content=image.read_bytes()).json()
    assert answer["status"] == "ok" and [answer[k] for k in ("p_value", "percentile", "distance")] == [None] * 3
    assert PredictAnswer.model_validate(answer).p_value is None
