"""Real text: descriptions of UCSD Ped2 frames become atoms, roles are learned on some videos and scored on the others."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_nb.atoms.captions import captions_from_text, write_captions
from anomaly_nb.atoms.frames import list_frames
from anomaly_nb.atoms.ontology import load_ontology
from anomaly_nb.atoms.pipeline import load_manifest, load_run, run_pipeline, select_videos
from anomaly_nb.atoms.roles import fit_roles
from anomaly_nb.metrics import bootstrap_interval, roc_auc

DATA = Path(os.environ.get("ANOMALY_NB_DATA", "")) / "video"
pytestmark = pytest.mark.skipif(not os.environ.get("ANOMALY_NB_DATA") or not (DATA / "ped2_text").is_dir(), reason="ANOMALY_NB_DATA/video/ped2_text is not there")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ped2")
    frames = list_frames(DATA / "ped2" / "testing" / "frames")
    write_captions(folder / "captions.json", captions_from_text(DATA / "ped2_text" / "test_frame_description", frames, load_ontology("walkway")))
    about = run_pipeline(
        DATA / "ped2" / "testing" / "frames", DATA / "ped2_text" / "test_frame", folder / "run", ontology="walkway",
        qwen_json=folder / "captions.json", lambda_atoms=1.0, lambda_resemble=0.0, delta_quantile=0.95,
    )
    assert about["frames"] == 2010 and about["videos"] == 12
    return folder


def test_held_out_videos(runs):
    run, data = load_run(runs / "run"), load_manifest(runs / "manifest.csv", clip_frames=15)
    names, score = list(dict.fromkeys(run.video.tolist())), np.zeros(len(run.video))
    for turn in range(4):
        part = select_videos(data, [n for i, n in enumerate(names) if i % 4 != turn])
        held = np.isin(run.video, names[turn::4])
        score[held] = fit_roles(part.pbar, part.video, part.labels, part.atoms, part.events, part.mask, seeds=2).score_frames(run.pbar[torch.from_numpy(held)])[:, 0]
    groups = [np.flatnonzero(run.video == n) for n in names]
    around = bootstrap_interval(lambda g: roc_auc(np.concatenate([run.labels[i] for i in g]), np.concatenate([score[i] for i in g])), groups, n=300)
    print(f"\nPed2 text, frame AUROC on held-out videos: {around}")
    assert around.value > 0.8


def test_an_atom_is_what_was_said(runs):
    run = load_run(runs / "run")
    bicycle = run.presence[:, run.atoms.index("bicycle")].numpy()
    assert set(np.unique(bicycle)) == {0.0, 1.0}
    assert roc_auc(run.labels, bicycle) > 0.75  # a mention alone says a good deal
