"""Extraction that is killed for good at random moments, watched for memory, and damaged on purpose."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.core.errors import DataError
from anomaly_nb.data import fit_intensity, index_folder
from anomaly_nb.features import (
    FeatureSet,
    cached_features,
    create_backbone,
    extract_features,
    extract_shards,
    load_features,
    load_shards,
    part_cells,
    part_index,
    save_features,
)
from anomaly_nb.features.base import Backbone, BackboneSpec
from anomaly_nb.features.featureset import BOX, read_meta
from anomaly_nb.features.shards import features_key, shard_plan, write_shard

SLOW = """
import sys, time
import pandas as pd
from anomaly_nb.features import create_backbone, extract_shards
backbone = create_backbone("filters", image_size=32)
class Slow(type(backbone)):
    def __call__(self, batch):
        print("batch", flush=True)
        time.sleep(0.02)
        return super().__call__(batch)
extract_shards(pd.read_csv(sys.argv[1], keep_default_na=False), Slow(backbone.spec), sys.argv[2], batch_size=3, shard_size=4)
"""
HUNGRY = """
import resource, sys
import numpy as np, pandas as pd
from anomaly_nb.features.base import Backbone, BackboneSpec
from anomaly_nb.features import extract_shards
class Wide(Backbone):
    def __call__(self, batch):
        return np.ones((len(batch), 256, 512), np.float32), (16, 16), np.ones((len(batch), 4), np.float32)
index = pd.read_csv(sys.argv[1], keep_default_na=False)
wide = Wide(BackboneSpec("wide", 32))
extract_shards(index[:16], wide, sys.argv[2] + "/warm", batch_size=4, shard_size=16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
extract_shards(pd.concat([index] * int(sys.argv[3]), ignore_index=True), wide, sys.argv[2] + "/all", batch_size=4, shard_size=16)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.fixture
def index(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(40):  # any mix of sizes
        size = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    table = index_folder(folder, n_train=20)
    table.to_csv(tmp_path / "index.csv", index=False)
    return table


def child(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_killed_again_and_again_nothing_is_lost_or_repeated(tmp_path, index):
    rng, folder, kills = np.random.default_rng(1), tmp_path / "shards", 0
    for _ in range(60):
        process = child(SLOW, tmp_path / "index.csv", folder)
        for _ in range(int(rng.integers(1, 9))):
            if not process.stdout.readline():
                break
        time.sleep(float(rng.uniform(0, 0.04)))
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
        if process.wait() == 0:
            break
        kills += 1
        if not (folder / "manifest.json").is_file():
            with pytest.raises((DataError, FileNotFoundError)):
                load_shards(folder)
    found = load_shards(folder, verify=True)
    whole = extract_features(index, create_backbone("filters", image_size=32), batch_size=3, dtype="float16")
    assert kills >= 3 and np.array_equal(np.asarray(found.patches), whole.patches)
    assert found.meta.image_path.tolist() == index.image_path.tolist()
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".npy") == [
        f"{k}-{i:05d}.npy" for k in ("cls", "patches") for i in range(10)
    ]
    assert not list(folder.glob(".*.tmp"))


def test_two_processes_do_not_mix(tmp_path, index):
    first = child(SLOW, tmp_path / "index.csv", tmp_path / "shards")
    first.stdout.readline()
    second = child(SLOW, tmp_path / "index.csv", tmp_path / "shards")
    first.stdout.read(), second.stdout.read()
    assert first.wait() == 0 and second.wait() == 0  # the second waits, and finds the work done
    load_shards(tmp_path / "shards", verify=True)


def test_memory_is_that_of_one_shard(tmp_path, index):
    process = child(HUNGRY, tmp_path / "index.csv", tmp_path, 10)
    grown = float(process.communicate()[0])
    size = sum(p.stat().st_size for p in (tmp_path / "all").glob("patches-*")) / 2**20
    assert size == pytest.approx(100, abs=1) and grown < 12  # 100 MiB of features, 4 MiB a shard


def test_reading_rows_equals_memory(tmp_path, index):
    backbone = create_backbone("filters", image_size=32)
    whole = extract_features(index, backbone, dtype="float16")
    shards = extract_shards(index, backbone, tmp_path / "s", dtype="float16", shard_size=7)
    rng = np.random.default_rng(2)
    for rows in (3, -2, slice(5, 30, 4), rng.integers(-40, 40, 25), rng.random(40) < 0.3, [], slice(None, None, -1)):
        rows = np.asarray(rows, int) if isinstance(rows, list) else rows
        assert np.array_equal(shards.patches[rows], whole.patches[rows])
    with pytest.raises(IndexError):
        shards.patches[40]
    with pytest.raises(IndexError):
        shards.patches[0, 0]


@pytest.mark.parametrize("damage", ["truncate", "delete", "delete cls", "manifest"])
def test_damage_is_seen_and_mended(tmp_path, index, damage):
    backbone, folder = create_backbone("filters", image_size=32), tmp_path / "s"
    before = np.asarray(extract_shards(index, backbone, folder, shard_size=16).patches)
    victim = folder / {"delete cls": "cls-00001.npy", "manifest": "manifest.json"}.get(damage, "patches-00001.npy")
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size // 2)
    else:
        victim.unlink()
    with pytest.raises((DataError, FileNotFoundError)):
        load_shards(folder)
    assert np.array_equal(np.asarray(extract_shards(index, backbone, folder, shard_size=16).patches), before)


def test_a_folder_of_other_features_is_left_alone(tmp_path, index):
    backbone, folder = create_backbone("filters", image_size=32), tmp_path / "s"
    extract_shards(index, backbone, folder)
    for change in ({"dtype": "float32"}, {"shard_size": 7}):
        with pytest.raises(DataError, match="holds features of another extraction"):
            extract_shards(index, backbone, folder, **change)
    Image.new("RGB", (32, 32)).save(index.image_path[7])
    with pytest.raises(DataError, match=r"holds features of another extraction \(key differ"):
        extract_shards(index, backbone, folder)


def test_values_beyond_float16_are_refused(tmp_path, index):
    class Loud(Backbone):
        def __call__(self, batch):
            return np.full((len(batch), 4, 2), 1e5, np.float32), (2, 2), np.ones((len(batch), 1), np.float32)

    with pytest.raises(DataError, match="patches as float16"):
        extract_shards(index, Loud(BackboneSpec("loud", 32)), tmp_path / "s")
    assert extract_shards(index, Loud(BackboneSpec("loud", 32)), tmp_path / "t", dtype="float32").patches.shape == (
        40,
        4,
        2,
    )


def test_categories_that_look_like_numbers_stay_text(tmp_path, index):
    found = extract_shards(index.assign(category="01"), create_backbone("filters", image_size=32), tmp_path / "s")
    assert set(found.meta.category) == {"01"} and isinstance(found.meta, pd.DataFrame)


def test_features_are_known_by_images_backbone_type_and_rule(tmp_path, index):
    few = index[:3]
    small, large = (create_backbone("filters", image_size=s) for s in (32, 48))
    keys = {
        features_key(few, small),
        features_key(few, large),
        features_key(few, small, "float16"),
        features_key(few[:2], small),
    }
    for i in range(3):
        Image.fromarray(np.full((20, 20), 1000 * (i + 1), np.uint16)).save(tmp_path / f"deep{i}.png")
    deep = few.assign(image_path=[str(tmp_path / f"deep{i}.png") for i in range(3)])
    for low, high in ((0, 4095), (0, 5000)):
        deep.attrs["intensity"] = fit_intensity(deep["image_path"], f"window:{low},{high}").to_dict()
        keys.add(features_key(deep, small))
    assert len(keys) == 6


def test_a_cache_reads_every_image_for_its_checksum_once(tmp_path, monkeypatch, index):
    import anomaly_nb.features.shards as shards

    index, small, seen, sums = index[:6], create_backbone("filters", image_size=32), [], shards.sha256_file
    monkeypatch.setattr(shards, "sha256_file", lambda p: seen.append(str(p)) or sums(p))
    rules, rule_of = [], shards.index_intensity
    monkeypatch.setattr(shards, "index_intensity", lambda i: rules.append(1) or rule_of(i))
    features = shards.cached_features(index, small, tmp_path / "cache", "nut")
    assert sorted(p for p in seen if p in set(index["image_path"])) == sorted(index["image_path"]) and len(rules) == 1
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == f"nut-{features_key(index, small)[:16]}"  # as caches on disk are called
    assert np.array_equal(features.patches, extract_features(index, small).patches)


@pytest.mark.parametrize(
    "cut", [{"tile": 24, "overlap": 0}, {"tile": 24, "overlap": 8, "region": "4,0,20,18"}, {"region": "4,0,20,18"}]
)
def test_tiles_and_regions_are_those_of_features_in_memory(tmp_path, index, cut):
    backbone, few = create_backbone("filters", image_size=32, **cut), index[:9]
    whole = extract_features(few, backbone, dtype="float16")
    boxes = [*BOX, "height", "width"]
    for made in (few, part_index(few, backbone)):
        shards = extract_shards(made, backbone, tmp_path / "s", shard_size=7)
        cached = cached_features(made, backbone, tmp_path / "cache", dtype="float16")
        assert np.array_equal(np.asarray(shards.patches), whole.patches) and np.array_equal(
            cached.patches, whole.patches
        )
        assert shards.meta[boxes].equals(whole.meta[boxes]) and cached.meta[boxes].equals(whole.meta[boxes])
        assert part_cells(shards.meta, backbone).shape == whole.patches.shape[:2]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert features_key(few, backbone) != features_key(few, create_backbone("filters", image_size=32))
    with pytest.raises(DataError, match="pass the table of `part_index`"):
        shard_plan(few, backbone, "float16", 7)
    plan = shard_plan(part_index(few, backbone), backbone, "float16", 7)[0]
    with pytest.raises(DataError, match="boxes: missing, but filters-2 has tiles or a region"):
        write_shard(tmp_path / "s", 0, few.image_path.tolist(), backbone, 4, plan["dtype"], None)


def test_columns_that_are_called_as_boxes_crop_nothing_in_silence(index):
    whole, tiled = (create_backbone("filters", image_size=32, tile=t, overlap=0) for t in (0, 24))
    odd = index.assign(top=2, left=2, bottom=18, right=18)
    text = odd.assign(top="upper", height=20, width=20)
    for backbone in (whole, tiled):
        for table in (odd, odd.assign(height=40, width=40), text):
            with pytest.raises(DataError, match="are not the parts that filters-2 takes of an image; rename them"):
                extract_features(table, backbone)
    with pytest.raises(DataError, match="are not the parts"):
        extract_features(part_index(index, tiled), whole)
    assert len(part_index(index[:2].set_axis([0, 0]), tiled)) == len(part_index(index[:2], tiled))


def test_a_second_run_takes_corrected_labels_and_places_and_extracts_nothing(tmp_path, index, monkeypatch):
    backbone, folder = create_backbone("filters", image_size=32), tmp_path / "s"
    before = np.asarray(extract_shards(index, backbone, folder, shard_size=16).patches)
    corrected = index.assign(label=1 - index.label.abs(), split="test", defect="scratch")
    monkeypatch.setattr(type(backbone), "__call__", None)
    shards = extract_shards(corrected, backbone, folder, shard_size=16)
    assert (
        shards.meta.drop(columns=["sha256", "shard", "row"]).equals(corrected) and (before == shards.patches[:]).all()
    )
    (tmp_path / "parts").rename(tmp_path / "moved")
    moved = index.assign(image_path=index.image_path.str.replace("/parts/", "/moved/"))
    assert extract_shards(moved, backbone, folder, shard_size=16).meta.image_path.equals(moved.image_path)
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    extract_shards(moved, backbone, folder, shard_size=16)  # nothing differs: nothing is written
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp and load_shards(folder, verify=True).meta.shard[
        39
    ] == 2


@pytest.mark.parametrize("labels", [[True, False, True], [1.0, np.nan, 0.0], ["1", "", "0"], [True, None, False]])
def test_labels_of_any_table_come_back(tmp_path, index, labels):
    backbone, few = create_backbone("filters", image_size=32), index[:3].assign(label=labels, mask_threshold=np.nan)
    wanted = [-1 if v is None or v == "" or v != v else int(v) for v in labels]
    for _ in range(2):
        shards = extract_shards(few, backbone, tmp_path / "s")
        assert shards.meta.label.tolist() == wanted and shards.meta.mask_threshold.tolist() == [0, 0, 0]
    save_features(tmp_path, "nut", extract_features(few, backbone))
    few.to_csv(tmp_path / "old_meta.csv", index=False)  # as it was once written
    assert load_features(tmp_path, "nut").meta.label.tolist() == read_meta(tmp_path / "old_meta.csv").label.tolist()
    assert load_features(tmp_path, "nut").meta.label.tolist() == wanted
    with pytest.raises(DataError, match=r"label: 'bad' \(row 0"):
        save_features(tmp_path, "nut", FeatureSet(np.ones((1, 1, 1)), (1, 1), few[:1].assign(label="bad")))


def test_options_that_are_tuples_and_shards_of_no_image(tmp_path, index):
    backbone = create_backbone("filters", image_size=32)
    backbone.spec = replace(backbone.spec, options={"window_size": (7, 7)})
    for _ in range(2):
        assert extract_shards(index, backbone, tmp_path / "s").spec["options"] == {"window_size": [7, 7]}
    for size in (0, -3, 2.5, True):
        with pytest.raises(DataError, match=r"shard_size=.*; give a whole number of at least 1"):
            extract_shards(index, backbone, tmp_path / "t", shard_size=size)
