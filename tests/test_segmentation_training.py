"""A run depends on its configuration alone: not on kills, not on reading processes; and it stops when it has stopped
learning.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import anomaly_nb.segmentation.training as training
from anomaly_nb.core.arrays import load_tensors, save_tensors
from anomaly_nb.core.errors import Notice
from anomaly_nb.segmentation import (
    PixelScorer,
    TrainConfig,
    build_model,
    evaluate,
    load_checkpoint,
    results_table,
    street_samples,
    train,
)

SIZE = (48, 64)
CONFIG = TrainConfig(epochs=3, batch_size=4, lr=3e-3, output=SIZE, patience=9, precision="bfloat16", seed=2)


def data(split, count):
    return street_samples(split, count, size=SIZE)


def start(folder, config=CONFIG, workers=0):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_mobilenetv2", data("train", 1).table.names)
    return train(model, data("train", 8), data("val", 2), folder, config, "cpu", workers)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))


@pytest.fixture(scope="module")
def witness(tmp_path_factory):
    return start(tmp_path_factory.mktemp("run") / "witness")


def test_killed_in_the_middle_of_an_epoch(witness, tmp_path):
    code = f"import tests.test_segmentation_training as t; t.start({str(tmp_path)!r})"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"ANOMALY_NB_PROGRESS": "0"},
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "history.csv").is_file():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(pd.read_csv(tmp_path / "history.csv")) < CONFIG.epochs
    resumed = start(tmp_path)
    assert same(witness, resumed) and resumed.history["val_miou"].equals(witness.history["val_miou"])


def test_reading_processes_change_nothing(witness, tmp_path):
    assert same(witness, start(tmp_path, workers=2))


def test_stops_three_epochs_after_the_best_and_keeps_it(tmp_path, monkeypatch):
    course = iter([0.1, 0.5, 0.4, 0.45, 0.5, 0.9])  # equal is not better
    monkeypatch.setattr(training, "mean_iou", lambda counts: next(course))
    result = start(tmp_path, TrainConfig(epochs=20, batch_size=4, output=SIZE))
    assert len(result.history) == 5 and result.best_epoch == 1 and result.best_miou == 0.5
    assert load_checkpoint(tmp_path / "best.pt")[1]["epoch"] == 1


def test_the_order_of_the_images_changes_no_score(witness):
    scorer = PixelScorer(("max_logit", "sml", "heat", "mahalanobis", "vim", "knn")).fit(witness.model, data("train", 4))
    test = data("test", 6)
    forwards, backwards = (evaluate(witness.model, scorer, test.keep(order)) for order in (range(6), range(5, -1, -1)))
    for method in scorer.methods:
        assert np.array_equal(forwards.histograms[method].counts, backwards.histograms[method].counts), method
    assert np.array_equal(results_table(forwards, 10)["ap"], results_table(backwards, 10)["ap"])


def test_a_scene_of_anomaly_only(witness):
    scorer = PixelScorer(("max_logit",)).fit(witness.model, data("train", 2))
    test = data("test", 4)
    result = evaluate(witness.model, scorer, test)
    pooled, images = results_table(result, 0)["images"]
    key, scores = "whole", scorer.ranked("max_logit", np.zeros(SIZE, np.float32))
    result.update(key, {"max_logit": scores}, np.ones(SIZE, np.uint8))
    assert results_table(result, 0)["images"].tolist() == [pooled + 1, images]


def test_the_moving_average_depends_on_the_order_and_says_so(witness):
    scorer = PixelScorer(("heat",), adapt=0.9).fit(witness.model, data("train", 2))
    test = data("test", 4)
    once, twice, backwards = (
        evaluate(witness.model, scorer, test.keep(order)).histograms["heat"].counts
        for order in (range(4), range(4), range(3, -1, -1))
    )
    assert "transductive, moving average 0.9" in scorer.labels["heat"]
    assert np.array_equal(once, twice) and not np.array_equal(once, backwards)


def test_a_run_of_other_scenes_is_refused(tmp_path):
    scenes = data("train", 10)
    config = replace(CONFIG, epochs=1)
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_mobilenetv2", scenes.table.names)
    train(model, scenes.keep(range(4)), scenes.keep(range(8, 10)), tmp_path, config, "cpu")
    for train_set, val_set in (
        (scenes.keep(range(4, 8)), scenes.keep(range(8, 10))),  # the same split, other scenes
        (street_samples("train", 10, SIZE, random_state=7).keep(range(4)), scenes.keep(range(8, 10))),
        (scenes.keep(range(4)), replace(scenes.keep(range(8, 10)), table=replace(scenes.table, void=frozenset({0, 9})))),
    ):
        torch.manual_seed(0)
        model = build_model("deeplabv3plus_mobilenetv2", scenes.table.names)
        with pytest.raises(ValueError, match=r"last\.pt: belongs to a run with another configuration, model or data"):
            train(model, train_set, val_set, tmp_path, config, "cpu")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("earlier", "kept the names and the size of its scenes alone"),
        ("earlier", "trained with labels that lay up to half their zoom aside"),
        ("shifted", "trained with labels that lay up to half their zoom aside"),
    ],
)
def test_a_run_of_an_earlier_version_goes_on_and_says_what_is_not_known_or_was_otherwise(
    witness, tmp_path, written, words
):
    state = load_tensors(witness.folder / "last.pt")
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_mobilenetv2", data("train", 1).table.names)
    identity = training._run_identity(model, CONFIG, data("train", 8), data("val", 2))
    state["fingerprint"] = getattr(identity, written)
    save_tensors(tmp_path / "last.pt", state)
    (tmp_path / "best.pt").write_bytes((witness.folder / "best.pt").read_bytes())
    with pytest.warns(Notice, match=rf"last\.pt: of an earlier version, which {words}"):
        assert same(start(tmp_path), witness)
