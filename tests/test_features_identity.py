"""Features are known by what made them and by what they hold, never by the name of a file."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_nb.core.arrays import save_tensors
from anomaly_nb.core.errors import DataError, MissingFileError, Notice
from anomaly_nb.core.files import write_json
from anomaly_nb.core.plain import read_json
from anomaly_nb.features import FeatureSet, load_backbone, load_features, save_features
from anomaly_nb.features.convert import convert_pickled as convert_features
from anomaly_nb.video.conversion import convert_pickled
from anomaly_nb.video.feature_files import INDEX, load_object_features, read_feature_index, save_frame, write_feature_index

FRAMES = {"01": ("000", "001"), "02": ("000", "001")}


def old(path, seed, n=4):
    rows = np.empty(n, object)
    for i in range(n):
        rows[i] = np.random.default_rng([seed, i]).normal(size=(2, 8))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows, allow_pickle=True)
    return path


def made(tmp_path, source, target, extractor):
    return convert_pickled(source, tmp_path / target, "keypoints", FRAMES, trust=True, extractor=extractor)["sha256"]


def test_one_extractor_is_one_whatever_its_files_are_called(tmp_path):
    save_tensors(tmp_path / "a/pose.pt", {"w": torch.ones(1)})
    save_tensors(tmp_path / "b/pose.pt", {"w": torch.zeros(1)})
    shutil.copy(tmp_path / "a/pose.pt", tmp_path / "renamed.pt")
    train, test = old(tmp_path / "train.npy", 0), old(tmp_path / "test.npy", 1)
    one, other, size = (
        {"model": "pose", "size": s, "weights": tmp_path / w}
        for w, s in (("a/pose.pt", 64), ("b/pose.pt", 64), ("a/pose.pt", 32))
    )
    first = made(tmp_path, train, "1", one)
    assert (
        first
        == made(tmp_path, test, "2", one)
        == made(tmp_path, test, "3", one | {"weights": str(tmp_path / "renamed.pt")})
    )
    assert (
        len(
            {
                first,
                made(tmp_path, old(tmp_path / "x/pose.npy", 0), "4", other),
                made(tmp_path, old(tmp_path / "y/pose.npy", 0), "5", size),
            }
        )
        == 3
    )
    assert made(tmp_path, train, "6", "pose") == made(tmp_path, test, "7", "pose") != made(tmp_path, test, "8", "other")
    assert read_feature_index(tmp_path / "1")["sources"]["keypoints"]["name"] == "train.npy"


def test_an_unknown_extractor_is_equal_to_itself_only(tmp_path):
    with pytest.warns(Notice, match=r"pose.npy: nothing says what made these features"):
        found = [
            made(tmp_path, old(tmp_path / f"{i}/pose.npy", seed), f"t{i}", None) for i, seed in enumerate((0, 1, 0))
        ]
    assert found[0] != found[1] and found[0] == found[2]


def test_modalities_keep_their_own_makers(tmp_path):
    made(tmp_path, old(tmp_path / "k.npy", 0), "t", "pose")
    for split in ("t", "u"):
        if split == "u":
            made(tmp_path, old(tmp_path / "k2.npy", 5), "u", "pose")
        convert_pickled(old(tmp_path / "v.npy", 1), tmp_path / split, "velocity", FRAMES, trust=True, extractor="flow")
    index = read_feature_index(tmp_path / "t")
    assert (
        index["extractor"] == {"converted": {"keypoints": {"name": "pose"}, "velocity": {"name": "flow"}}}
        and index["sha256"] == read_feature_index(tmp_path / "u")["sha256"]
    )
    convert_pickled(old(tmp_path / "v.npy", 2), tmp_path / "t", "velocity", FRAMES, trust=True, extractor="flow")
    for modality in ("keypoints", "velocity"):
        assert len(load_object_features(tmp_path / "t", modality)) == 8


@pytest.fixture
def split(tmp_path):
    for modality in ("keypoints", "velocity"):
        for i, (video, frames) in enumerate(FRAMES.items()):
            for j, frame in enumerate(frames):
                save_frame(
                    tmp_path,
                    modality,
                    video,
                    frame,
                    np.full((1, 2), 10 * i + j + 100 * (modality == "velocity")),
                    np.zeros((1, 4)),
                )
    write_feature_index(tmp_path, FRAMES, {"flow": "dis"}, ("keypoints", "velocity"))
    return tmp_path


@pytest.mark.parametrize(("a", "b"), [
    ("KEYPOINTS/01/000", "KEYPOINTS/01/001"), ("KEYPOINTS/01/000", "KEYPOINTS/02/000"), ("KEYPOINTS/01/001", "VELOCITIES/01/001"),
])  # fmt: skip
def test_exchanged_files_are_named(split, a, b):
    first, second = split / f"{a}.npz", split / f"{b}.npz"
    content = first.read_bytes(), second.read_bytes()
    assert load_object_features(split, "keypoints").values[:, 0].tolist() == [0, 1, 10, 11]
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    modality = {"KEYPOINTS": "keypoints", "VELOCITIES": "velocity"}[b.split("/")[0]]
    with pytest.raises(
        DataError,
        match=rf"{a}.npz: holds the {modality} features of {b.split('/', 1)[1]}; were the two files exchanged",
    ):
        load_object_features(split, "keypoints")


def test_a_changed_file_or_list_is_noticed_and_old_indexes_open(split):
    save_frame(split, "keypoints", "01", "001", np.full((1, 2), 7), np.zeros((1, 4)))
    with pytest.raises(DataError, match=r"01/001.npz: changed since index.json was written"):
        load_object_features(split, "keypoints")
    sums = read_json(split / "checksums/01.json")
    write_json(split / "checksums/01.json", sums | {"keypoints": {**sums["keypoints"], "001": "0"}})
    with pytest.raises(DataError, match=r"checksums/01.json: changed"):
        load_object_features(split, "velocity")
    (split / "checksums/01.json").unlink()
    with pytest.raises(MissingFileError, match=r"checksums/01.json: no such file"):
        load_object_features(split, "velocity")
    index = read_json(split / INDEX)
    write_json(split / INDEX, {k: index[k] for k in ("videos", "modalities", "extractor", "sha256")})
    assert load_object_features(split, "keypoints").values[1, 0] == 7


def test_an_index_that_grows_reads_new_videos_only(split, monkeypatch):
    from anomaly_nb.video import feature_files

    read = []
    monkeypatch.setattr(feature_files, "sha256_file", lambda p: read.append(p) or "0" * 64)
    for modality in ("keypoints", "velocity"):
        save_frame(split, modality, "03", "000", np.ones((1, 2)), np.zeros((1, 4)))
    before = read_feature_index(split)["checksums"]
    write_feature_index(split, FRAMES | {"03": ("000",)}, {"flow": "dis"}, ("keypoints", "velocity"))
    assert [p.parts[-3:-1] for p in read] == [("KEYPOINTS", "03"), ("VELOCITIES", "03")]
    assert {v: s for v, s in read_feature_index(split)["checksums"].items() if v != "03"} == before


def features(names, spec=None, value=0.0):
    meta = pd.DataFrame(
        {"category": "01", "split": "train", "label": 0, "defect": "good", "image_path": [f"/a/{n}.png" for n in names]}
    )
    return FeatureSet(np.full((len(names), 4, 3), value, np.float32), (2, 2), meta, spec=spec or {})


def test_features_keep_what_made_them(tmp_path):
    spec = {"name": "timm:x", "image_size": 64, "sha256": "ab", "layers": [1, 2]}
    save_features(tmp_path, "01", features("ab", spec))
    assert load_features(tmp_path, "01").spec == spec
    save_features(tmp_path, "02", features("ab"))
    assert load_features(tmp_path, "02").spec == {"name": "dino"}


def test_exchanged_feature_files_are_named(tmp_path):
    for category, names in (("01", "ab"), ("02", "cd")):
        save_features(tmp_path, category, features(names))
    one, two = (tmp_path / f"{c}_dinov2_vitb14.npz" for c in ("01", "02"))
    content = one.read_bytes(), two.read_bytes()
    one.write_bytes(content[1])
    with pytest.raises(
        DataError, match=r"01_dinov2_vitb14.npz: is of other images than 01_meta.csv; was one of the two exchanged"
    ):
        load_features(tmp_path, "01")
    one.write_bytes(content[0])
    table = pd.read_csv(tmp_path / "01_meta.csv", dtype=str)
    table.assign(note="mine", image_path=table.image_path.str.replace("/a/", "/elsewhere/")).to_csv(
        tmp_path / "01_meta.csv", index=False
    )
    assert load_features(tmp_path, "01").meta["note"].tolist() == ["mine"] * 2
    table[::-1].to_csv(tmp_path / "01_meta.csv", index=False)
    with pytest.raises(DataError, match="is of other images"):
        load_features(tmp_path, "01")


def test_a_bank_of_another_extractor_is_refused(tmp_path):
    spec = {"name": "timm:x", "sha256": "ab"}
    for bank_spec, told in (
        (spec, None),
        (spec | {"sha256": "cd"}, "the bank of 01 was made with another sha256 than its features"),
        ({}, None),
    ):
        save_features(tmp_path / "features_dinov2_b14", "01", features("ab", spec))
        save_features(tmp_path / "featurebanks/dinov2_b14", "01", features("ab", bank_spec), bank=True)
        if told:
            with pytest.raises(DataError, match=told):
                load_backbone("dino", tmp_path)
        else:
            assert load_backbone("dino", tmp_path)[0] == ["01"]


def test_converted_features_are_told_by_content(tmp_path):
    import pickle

    save_tensors(tmp_path / "w.pt", {"w": torch.ones(1)})
    held = {"patches": np.zeros((2, 4, 3), np.float32), "patch_hw": (2, 2), "meta": features("ab").meta}
    for name, more in (("train", {}), ("test", {"spec": {"name": "net"}})):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(held | more))
    train, test = (
        convert_features(tmp_path / f"{n}.pkl", trust=True, extractor={"model": "net", "weights": tmp_path / "w.pt"})
        for n in ("train", "test")
    )
    assert train.spec == test.spec and len(train.spec["weights"]) == 64
    assert (
        convert_features(tmp_path / "test.pkl", trust=True).spec == {"name": "net"}
        and convert_features(tmp_path / "train.pkl", trust=True).spec == {}
    )
    assert json.dumps(train.spec)


def test_settings_changed_by_hand_are_noticed(split):
    index = read_json(split / INDEX)
    write_json(split / INDEX, index | {"extractor": {"flow": "another"}})
    with pytest.raises(DataError, match=r"its settings were changed after the extraction"):
        load_object_features(split, "keypoints")
