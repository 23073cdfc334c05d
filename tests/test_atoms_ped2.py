"""Real text: descriptions of UCSD Ped2 frames become atoms, roles are learned on some videos and scored on the others."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from anomaly_nb.atoms.captions import captions_from_text, write_captions
from anomaly_nb.atoms.evaluation import METHODS, auroc_within
from anomaly_nb.atoms.frames import list_frames
from anomaly_nb.atoms.ontology import load_ontology
from anomaly_nb.atoms.pipeline import load_run, run_pipeline
from anomaly_nb.atoms.presence import PresenceSettings
from anomaly_nb.atoms.segments import SegmentSettings
from anomaly_nb.cli.main import app
from anomaly_nb.metrics import roc_auc

DATA = Path(os.environ.get("ANOMALY_NB_DATA", "")) / "video"
pytestmark = pytest.mark.skipif(
    not os.environ.get("ANOMALY_NB_DATA") or not (DATA / "ped2_text").is_dir(),
    reason="ANOMALY_NB_DATA/video/ped2_text is not there",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ped2")
    frames = list_frames(DATA / "ped2" / "testing" / "frames")
    write_captions(
        folder / "captions.json",
        captions_from_text(DATA / "ped2_text" / "test_frame_description", frames, load_ontology("walkway")),
    )
    about = run_pipeline(
        DATA / "ped2" / "testing" / "frames",
        DATA / "ped2_text" / "test_frame",
        folder / "run",
        "walkway",
        PresenceSettings(lambda_atoms=1.0, lambda_resemble=0.0),
        SegmentSettings(delta_quantile=0.95),
        folder / "captions.json",
    )
    assert about["frames"] == 2010 and about["videos"] == 12
    return folder


def test_held_out_videos(runs):
    folds = "4"  # of 3 videos each
    result = CliRunner().invoke(
        app,
        ["atoms", "evaluate", "--manifest_csv", str(runs / "manifest.csv"), "--clip_frames", "15", "--folds", folds],
    )
    assert result.exit_code == 0, result.output
    print("\n" + result.output)
    table = pd.read_csv(runs / "evaluation" / "evaluation.csv").set_index(["of", "method"])
    assert (
        set(table.index) == {(of, m) for of in ("frames", "clips") for m in METHODS} and (table["videos"] == 12).all()
    )
    roles = table.loc[("frames", "roles")]
    assert roles["auroc"] > 0.8 and roles["low"] < roles["auroc"] < roles["high"]
    scores = pd.read_csv(runs / "evaluation" / "held_out_scores.csv")
    labels, of_roles = load_run(runs / "run").labels, scores.filter(like="roles").iloc[:, 0].to_numpy()
    assert len(scores) == 2010 and scores["video"].nunique() == 12 and scores["clip"].nunique() > 100
    assert np.isclose(auroc_within(labels, of_roles, scores["part"].to_numpy()), roles["auroc"])


def test_an_atom_is_what_was_said(runs):
    run = load_run(runs / "run")
    bicycle = run.presence[:, run.atoms.index("bicycle")].numpy()
    assert set(np.unique(bicycle)) == {0.0, 1.0}
    assert roc_auc(run.labels, bicycle) > 0.75  # a mention alone says a good deal
