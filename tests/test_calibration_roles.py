"""Normal, unlabelled, defect: nothing is calibrated on a known defect. Production decides by files alone. Old stores
open. Files are never lost (ANOMALY_NB_SLOW=1 for full size).
"""

import json
import os
import sqlite3
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from anomaly_nb.calibration.database import MIGRATIONS, connect, transaction
from anomaly_nb.calibration.exports import load_calibration
from anomaly_nb.calibration.pull import pack_calibrations, pull_calibrations
from anomaly_nb.calibration.schema import COLUMNS
from anomaly_nb.calibration.store import CalibrationStore, tag_by_reference
from anomaly_nb.calibration.tables import read_scores
from anomaly_nb.calibration.thresholds import conformal_threshold
from anomaly_nb.cli.main import main
from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.core.settings import Settings

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
DEV = Settings(calibrate_heads=True)


def names(prefix, n):
    return [f"{prefix}_{i:05}.png" for i in range(n)]


def call(*words):
    with pytest.raises(SystemExit) as e:
        main([str(w) for w in words])
    return e.value.code or 0


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text("calibrate_heads: true\n")
    return tmp_path


def report_folder(folder, defects, n=200, seed=0):
    "What an image report leaves: held-out normal scores, and those of test images with labels."
    rng, folder = np.random.default_rng(seed), folder
    folder.mkdir()
    held_out, good, bad = rng.gamma(4, size=n), rng.gamma(4, size=100), 9 + rng.gamma(4, size=defects)
    pd.DataFrame(
        {
            "image_path": names("train", n),
            "split": "train",
            "label": 0,
            "defect": "good",
            "score": held_out,
            "role": "normal",
            "model": "mobilenet",
        }
    ).to_csv(folder / "calibration_scores.csv", index=False)
    labels = np.repeat([0, 1], [100, defects])
    pd.DataFrame(
        {
            "image_path": names("test", 100 + defects),
            "split": "test",
            "label": labels,
            "defect": "x",
            "score": np.r_[good, bad],
        }
    ).to_csv(folder / "scores.csv", index=False)
    return held_out, good, bad


def test_a_store_of_a_report_decides_as_the_report(here, capsys):
    held_out, good, bad = report_folder(here / "run", 25)
    limit = conformal_threshold(held_out, 0.05).value
    assert call("drift", "run", "--scores", "run", "--head", "leather") == 0
    calibration = load_calibration("data/calibrations", "mobilenet", "leather")  # the model is named in the file
    assert calibration["threshold"] == limit
    assert (
        call(
            "drift",
            "tag",
            "--scores",
            "run/scores.csv",
            "--model",
            "mobilenet",
            "--head",
            "leather",
            "--store",
            "data/calibrations",
            "--out",
            "out.csv",
        )
        == 3
    )
    out = pd.read_csv("out.csv")
    assert list(out) == ["file", "score", "anomalous"] and out.anomalous.tolist() == [
        int(s >= limit) for s in np.r_[good, bad]
    ]
    assert out.anomalous[100:].sum() >= 23 and out.anomalous[:100].mean() <= calibration["false_alarm_bound"]
    store = CalibrationStore("data/calibrations")
    assert store.table("SELECT sum(anomalous) FROM tags").iloc[0, 0] == out.anomalous.sum()
    assert store.table("SELECT role, count(*) AS n FROM scores GROUP BY role").set_index("role").n.to_dict() == {
        "defect": 25,
        "normal": 300,
    }


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
def test_labelled_defects_do_not_move_the_threshold(here, fraction):
    defects = round(100 * fraction / (1 - fraction))
    _, good, _ = report_folder(here / "run", defects)
    (here / "run/calibration_scores.csv").unlink()
    assert call("drift", "run", "--scores", "run", "--model", "net", "--head", "leather") == 0
    made = load_calibration("data/calibrations", "net", "leather")
    assert made["threshold"] == conformal_threshold(good, 0.05).value and made["file_count"] == 100
    head = CalibrationStore("data/calibrations", DEV).run()["heads"]["net/leather"]
    assert head["known_defects"] == defects and head["contamination"] is None


def test_a_table_of_defects_alone_is_refused(here, capsys):
    pd.DataFrame({"file": names("a", 60), "score": np.arange(60.0), "label": 1}).to_csv("bad.csv", index=False)
    assert call("drift", "run", "--scores", "bad.csv", "--model", "net", "--head", "leather") == 2
    err = capsys.readouterr().err
    assert "nothing but 60 known defects" in err and err.count("\n") == 1
    assert len(read_scores("bad.csv", calibrate=False)) == 60


def test_unlabelled_defects_are_told():
    rng = np.random.default_rng(0)
    mixed = lambda n, f: np.where(rng.random(n) < f, 12, 0) + rng.gamma(4, size=n)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = CalibrationStore(folder, DEV)
        store.tag("net", "mixed", names("a", 300), mixed(300, 0.3))
        store.tag("net", "clean", names("a", 300), mixed(300, 0))
        first = store.run()["heads"]
        store.tag("net", "clean", names("b", 300), mixed(300, 0.15))
        second = store.run()["heads"]
    assert "two groups" in first["net/mixed"]["contamination"] and first["net/clean"]["contamination"] is None
    assert "at or above the reference's threshold" in second["net/clean"]["contamination"]


def test_production_on_a_second_machine(tmp_path, monkeypatch):
    "Pull, tag 1000 scores, pull a newer set, tag again: the decisions of the development store, and no database."
    rng, dev = np.random.default_rng(0), CalibrationStore(tmp_path / "dev", DEV)
    dev.tag("net", "leather", names("a", 500), rng.gamma(4, size=500))
    dev.run()
    monkeypatch.chdir(tmp_path)
    scores = rng.gamma(5, size=1000)
    pd.DataFrame({"file": names("x", 1000), "score": scores}).to_csv("today.csv", index=False)
    for turn in (1, 2):
        pack_calibrations(dev.root, f"set{turn}.zip")
        assert call("drift", "pull", f"set{turn}.zip", "--into", "line") == 0
        assert (
            call(
                "drift",
                "tag",
                "--scores",
                "today.csv",
                "--model",
                "net",
                "--head",
                "leather",
                "--store",
                "line",
                "--out",
                "out.csv",
            )
            == 3
        )
        dev.tag("net", "leather", [f"{turn}_{n}" for n in names("x", 1000)], scores)
        ours = dev.table(
            "SELECT anomalous FROM tags JOIN files ON files.id = file_id WHERE file LIKE ? ORDER BY tags.file_id",
            [f"{turn}_%"],
        ).anomalous
        assert pd.read_csv("out.csv").anomalous.tolist() == ours.tolist() and 0 < ours.sum() < 1000
        assert not list((tmp_path / "line").glob("*.sqlite*"))
        dev.run()
        dev.promote("net", "leather", 2)
    assert (
        call("drift", "run", "--scores", "today.csv", "--head", "leather", "--store", "line") == 2
    )  # production: refused before anything is written
    assert not list((tmp_path / "line").glob("*.sqlite*"))


def test_pull_into_a_folder_in_use(tmp_path, monkeypatch):
    rng, dev, line = (
        np.random.default_rng(0),
        CalibrationStore(tmp_path / "dev", DEV),
        CalibrationStore(tmp_path / "line", DEV),
    )
    for store, wide in ((dev, 3), (line, 1)):
        store.tag("net", "leather", names("a", 200), wide * rng.gamma(4, size=200))
        store.run()
    pack_calibrations(dev.root, tmp_path / "set.zip")
    told = []
    pull_calibrations(tmp_path / "set.zip", line.root, say=told.append)
    assert told == ["net/leather: version 1 -> version 1; decide again about old files"]
    pulled, own = load_calibration(line.root, "net", "leather"), load_calibration(line.root, "net", "leather", 1)
    assert pulled == load_calibration(dev.root, "net", "leather") != own
    line.retag_all(), line.work()
    assert line.table("SELECT count(*) FROM tags WHERE anomalous").iloc[0, 0] < 10 and line.repair()["written"] == []
    line.tag("net", "leather", names("b", 200), rng.gamma(4, size=200))
    line.run()
    (
        line.promote("net", "leather", 1),
        line.promote("net", "leather", 2),
    )  # one's own again: what was pulled is kept aside
    assert load_calibration(line.root, "net", "leather")["version"] == 2
    assert [json.loads(p.read_text()) for p in line.root.glob("net/heads/*.kept-*.json")] == [pulled]


def test_heads_of_several_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models/effnet/heads"
    folder.mkdir(parents=True)
    labels = {
        "happy": {"p5": 0.1, "p95": 0.9, "method": "minmax"},
        "sad": {"p5": 0.2, "p95": 0.8, "method": "minmax", "threshold": 0.7},
    }
    (folder / "mood.cal.json").write_text(json.dumps({"labels": labels}))  # copied by hand, as the specification does
    pd.DataFrame({"file": ["a", "b"], "happy": [0.5, 0.9], "sad": [0.2, 0.75]}).to_csv("scores.csv", index=False)
    assert (
        call(
            "drift",
            "tag",
            "--scores",
            "scores.csv",
            "--model",
            "effnet",
            "--head",
            "mood",
            "--store",
            "models",
            "--out",
            "out.csv",
        )
        == 3
    )
    out = pd.read_csv("out.csv").set_index(["file", "label"])
    assert out.loc[("a", "happy"), "value"] == pytest.approx(0.5) and np.isnan(out.loc[("a", "happy"), "anomalous"])
    assert out.anomalous.xs("sad", level="label").tolist() == [0, 1]
    with pytest.raises(DataError, match="has the labels happy, sad"):
        tag_by_reference("models", "effnet", "mood", ["a"], np.array([0.5]))
    pack = tmp_path / "set/effnet"
    pack.mkdir(parents=True)
    (pack / "mood.cal.json").write_text((folder / "mood.cal.json").read_text())
    from anomaly_nb.core.files import write_manifest

    write_manifest(tmp_path / "set")
    pull_calibrations(tmp_path / "set", tmp_path / "pulled")
    assert load_calibration(tmp_path / "pulled", "effnet", "mood")["labels"] == labels


def test_a_lost_database_does_not_overwrite_versions(tmp_path):
    rng, store = np.random.default_rng(0), CalibrationStore(tmp_path, DEV)
    for k in "ab":
        store.tag("net", "h", names(k, 100), rng.random(100))
        store.run()
    before = {p.name: p.read_text() for p in tmp_path.glob("net/heads/*-v*.json")}
    (tmp_path / "calibration.sqlite").unlink()
    again = CalibrationStore(tmp_path, DEV)
    again.tag("net", "h", names("c", 100), rng.random(100))
    with pytest.warns(Notice, match="up to version 2"):
        assert again.run()["version"] == 3
    assert {n: (tmp_path / "net/heads" / n).read_text() for n in before} == before and load_calibration(
        tmp_path, "net", "h"
    )["version"] == 3


@pytest.mark.parametrize("policy", ["auto", "spec"])
def test_policies_without_drift_and_with_creep(tmp_path, policy):
    "`auto` moves on evidence only, and its alarm survives the moves; `spec` moves by the plain rule."
    moved, triggered = [], []
    for seed in range(10 if SLOW else 2):
        rng = np.random.default_rng(seed)
        store = CalibrationStore(
            tmp_path / str(seed), Settings(calibrate_heads=True, calibration_policy=policy, calibration_window="new")
        )
        for k in range(12 if SLOW else 6):
            store.tag("net", "calm", names(k, 300), rng.beta(4, 8, 300))
            store.tag("net", "creep", names(k, 300), rng.beta(4, 8, 300) + 0.02 * k)
            report = store.run()
        moved.append(
            len(
                store.table(
                    "SELECT 1 FROM reference_moves m JOIN heads h ON h.id = m.head_id WHERE head_name = 'calm' AND from_version IS NOT NULL"
                )
            )
        )
        triggered.append(report["heads"]["net/creep"]["alarm"]["rung"])
    assert np.mean(moved) <= 0.3 if policy == "auto" else np.mean(moved) >= 1
    assert all(triggered)


def year(folder, creep, weeks, seed, per_week=100):
    "Weekly batches, with the reference pooled after each: the summary of each week."
    rng, store, out = np.random.default_rng(seed), CalibrationStore(folder, DEV), []
    for week in range(weeks):
        store.tag("net", "h", names(week, per_week), rng.beta(4, 8, per_week) + creep * week)
        report = store.run()
        out.append(
            (report["summary"]["converged"], report["heads"]["net/h"]["verdict"], report["heads"]["net/h"]["alarm"])
        )
        store.extend()
    return store, out


def test_a_year_of_pooling_converges_and_creep_does_not(tmp_path):
    weeks, repeats = (52, 10) if SLOW else (8, 1)
    calm = [year(tmp_path / f"calm{i}", 0.0, weeks, i) for i in range(repeats)]
    assert np.mean([out[-1][0] for _, out in calm]) >= 0.7
    store = calm[0][0]
    assert store.table("SELECT max(file_count) FROM calibration_runs").iloc[0, 0] >= 100 * (weeks - 2)
    crept = [year(tmp_path / f"creep{i}", 0.01, 20, i) for i in range(repeats if SLOW else 1)]
    assert not any(out[-1][0] for _, out in crept)
    print(
        [out[-1][:2] for _, out in calm],
        [next((w for w, o in enumerate(out) if o[2] and o[2]["rung"]), None) for _, out in crept],
    )


OLD = [  # what the tables held after two runs, a promotion and `retag_all` under schema 1
    "INSERT INTO files VALUES (1, 'a0.png'), (2, 'a1.png'), (3, 'b0.png'), (4, 'b1.png')",
    "INSERT INTO heads VALUES (1, 'net', 'leather', 2, 2, '0d1e')",
    "INSERT INTO scores VALUES (1, 1, 1, 0.25, NULL, 10), (2, 1, 2, 0.5, NULL, 10), (3, 1, 3, 2.5, 'lot1', 20), (4, 1, 4, 2.75, 'lot2', 20)",
    "INSERT INTO runs VALUES (1, 'k1', 11, 2, 2, '{}', '{\"version\": 1}'), (2, 'k2', 21, 4, 4, '{}', '{\"version\": 2}')",
    "INSERT INTO reference_moves VALUES (1, 1, NULL, 1, 11, 'review', 'first run of this head'), (2, 1, 1, 2, 30, 'anna', 'new supplier')",
    "INSERT INTO tags VALUES (1, 1, 0.25, -7.0, 0, 2, 1, 31), (1, 3, 2.5, 0.0, 0, 2, NULL, 20)",
    "INSERT INTO jobs VALUES (1, 'retag', 1, 'done', 1, NULL, NULL, NULL, 30, 31), (2, 'retag', 2, 'queued', 0, NULL, NULL, NULL, 30, NULL)",
]
OLD_RUN = (
    "INSERT INTO calibration_runs (model_name, head_name, version, file_count, timestamp, p5, p95, range, reference_version, apd_p5, apd_p95, srd, jsd, median_drift, iqr_drift, is_stable, "
    "verdict, reason, proposed, first_score, last_score, detail, payload, sha256, exported) VALUES ('net', 'leather', ?, 2, ?, ?, ?, 0.25, ?, NULL, NULL, NULL, NULL, NULL, NULL, 0, 'unstable', "
    "'first run of this head', 0, ?, ?, ?, ?, ?, 1)"
)


def old_store(root):
    "A store as schema 1 left it."
    from hashlib import sha256

    drift = {
        "intervals": {},
        "p_value": 1.0,
        "n_needed": None,
        "scale": "unit",
        "thresholds": {"apd": 0.01, "srd": 0.05, "jsd": 0.1, "median": 0.05, "iqr": 0.1},
        "failed_metrics": [],
    }
    with closing(connect(root / "calibration.sqlite", MIGRATIONS[:1])) as db, transaction(db):
        for query in OLD:
            db.execute(query)
        for version, low in ((1, 0.25), (2, 2.5)):
            payload = {
                "model_name": "net",
                "head_name": "leather",
                "version": version,
                "file_count": 2,
                "timestamp": 11,
                "labels": {"anomalous": {"p5": low, "p95": low + 0.25, "method": "minmax"}},
            }
            text = json.dumps(
                payload
                | {
                    "quartiles": [low] * 3,
                    "percentile_method": "linear",
                    "threshold": low + 1,
                    "alpha": 0.05,
                    "false_alarms_90": 0.1,
                    "exact": True,
                }
            )
            detail = json.dumps({"drift": drift, "alarm": None})
            db.execute(
                OLD_RUN,
                (
                    version,
                    11,
                    low,
                    low + 0.25,
                    version - 1 or None,
                    2 * version - 2,
                    2 * version,
                    detail,
                    text,
                    sha256(text.encode()).hexdigest(),
                ),
            )


def test_a_store_of_the_first_schema_opens(tmp_path):
    old_store(tmp_path)
    store = CalibrationStore(tmp_path, Settings(calibrate_heads=True, calibration_drift_min_files=10))
    assert (tmp_path / "calibration.sqlite.v1.bak").exists()
    assert [r["version"] for r in store.history()] == [2, 1] and store.history()[0]["moves"][0]["by"] == "anna"
    assert store.trend("net", "leather")[1]["p_value"] == 1.0 and store.repair()["checked"] == 3
    assert store.table("SELECT role, count(*) AS n FROM scores GROUP BY role").values.tolist() == [["unlabelled", 4]]
    assert store.work() == {"done": 1, "failed": 0, "waiting": 0}
    assert store.table("SELECT anomalous FROM tags ORDER BY file_id").anomalous.tolist() == [0, 0, 0]
    rng = np.random.default_rng(0)
    store.tag("net", "leather", names("c", 40), 2.5 + rng.random(40))
    report = store.run()
    assert report["version"] == 3 and report["heads"]["net/leather"]["alarm"]["since_version"] == 2
    with closing(sqlite3.connect(tmp_path / "calibration.sqlite")) as db:
        assert tuple(r[1] for r in db.execute("PRAGMA table_info(calibration_runs)")) == COLUMNS
        assert (
            db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            and db.execute("PRAGMA foreign_key_check").fetchall() == []
        )


def test_many_scores_are_tagged_without_a_query_each(tmp_path):
    "The statements that SQLite runs do not grow with the number of files (1 000 000 of them with ANOMALY_NB_SLOW=1)."
    from anomaly_nb.calibration import tagging

    counts = []
    for n in (1000, 4000):
        with closing(connect(tmp_path / f"{n}.sqlite")) as db:
            seen: list[str] = []
            db.set_trace_callback(seen.append)
            tagging.tag_scores(db, "net", "h", names("a", n), np.arange(n) / n)
            counts.append(sum(s.startswith("SELECT") for s in seen))
    assert counts[0] == counts[1] < 20
