"""Wrong values end in one sentence that names them, where torch, git or NumPy would answer otherwise or not at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import anomaly_nb
from anomaly_nb.core.device import choose_device
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.files import write_manifest
from anomaly_nb.core.runtime import provenance
from anomaly_nb.features import create_backbone
from anomaly_nb.features.base import network_spec


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(n).index for n in ("cuda", "cuda:0", "cuda:1")] == [None, 0, 1]
    with pytest.raises(ValueError, match=r"'cuda:7' is not available here: the last is 'cuda:1'"):
        choose_device("cuda:7")


def test_an_installed_library_has_no_commit_of_the_checkout_around_it(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    site = tmp_path / "shop" / ".venv" / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / "shop" / "shop.py").write_text("")
    for command in (["init", "-q"], ["add", "shop.py"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path / "shop", check=True)
    shutil.copytree(Path(anomaly_nb.__file__).parent, site / "anomaly_nb")
    code = "import anomaly_nb.core.runtime as r; print(r.__file__, r.provenance()['git'])"
    environment = os.environ | {"PYTHONPATH": str(site)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.split() == [str(site / "anomaly_nb" / "core" / "runtime.py"), "None"], said
    state = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert state.returncode or provenance()["git"]["commit"] == state.stdout.strip()  # of a checkout, its own


def test_a_name_that_is_no_text_is_named_by_a_manifest(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/part\xff.npy")).write_bytes(b"1")
    with pytest.raises(DataError, match=r"part\\xff\.npy: its name is not UTF-8"):
        write_manifest(tmp_path)


@pytest.mark.parametrize("name", ["hubble.pt", "hub-copy.pt", "random.pt"])
def test_weights_are_known_by_their_content_whatever_their_file_is_called(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    spec = network_spec("timm:x", {}, 64, 8, (), 0.5, 0.5, name)
    assert spec.weights == name and len(spec.sha256) == 64
    for tag in ("hub", "hub:openai", "random"):
        assert network_spec("timm:x", {}, 64, 8, (), 0.5, 0.5, tag).sha256 == ""


def test_options_that_a_backbone_does_not_know_are_refused():
    for name in ("filters?siz=512", "open_clip:tiny?layer=3", "filters-1?pool=3"):
        with pytest.raises(DataError, match=r"has no option '\w+'; it has .*size, resize"):
            create_backbone(name)
    for size in (0, -8, 64.0, True, "64"):
        with pytest.raises(DataError, match=r"image_size=.*; give a whole number of at least 1"):
            create_backbone("filters", image_size=size)
    assert create_backbone("filters", image_size=np.int64(64)).spec.to_dict()["image_size"] == 64
