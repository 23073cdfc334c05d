"The calibration store under kills, several writers, creep, surges and odd input (ANOMALY_NB_SLOW=1 for full size)."

import json
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing
from hashlib import sha256

import numpy as np
import psutil
import pytest
from scipy.stats import binom

from anomaly_nb.calibration.database import MIGRATIONS, connect, transaction
from anomaly_nb.calibration.jobs import ATTEMPTS, drain_jobs, enqueue_run, job_errors, lease_jobs, rest_seconds
from anomaly_nb.calibration.pull import pack_calibrations, pull_calibrations
from anomaly_nb.calibration.runs import RunInProgress, run_calibration
from anomaly_nb.calibration.sequential import SequentialAlarm
from anomaly_nb.calibration.shifts import METRICS
from anomaly_nb.calibration.store import CalibrationStore, load_calibration
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.files import locked, write_manifest
from anomaly_nb.core.settings import Settings
from tests.commands import run

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
FORK = multiprocessing.get_context("fork")
DEV = Settings(calibrate_heads=True)


def names(prefix, n):
    return [f"{prefix}_{i:05}.png" for i in range(n)]


def rows(store, query, *values):
    with closing(sqlite3.connect(store.root / "calibration.sqlite")) as db:
        return db.execute(query, values).fetchall()


def check_files(store, settled, since=0.0):
    """Every file written `since` parses and is what the database holds; if `settled`, every row has its file and
    references are today's.
    """
    payload = {
        (m, h, v): p
        for m, h, v, p in rows(
            store, "SELECT model_name, head_name, version, payload FROM calibration_runs WHERE payload IS NOT NULL"
        )
    }
    reference = {(m, h): v for m, h, v in rows(store, "SELECT model_name, head_name, reference_version FROM heads")}
    seen = set()
    for path in store.root.glob("*/heads/*-calibration*.json"):
        if path.stat().st_mtime < since:
            continue
        content = json.loads(path.read_text())
        key = content["model_name"], content["head_name"], content["version"]
        assert path.read_text() == payload[key], path
        seen.add((path.parent.parent.name, path.name))
        if settled and "-v" not in path.name:
            assert content["version"] == reference[key[:2]], path
    if settled:
        assert seen == {(m, f"{h}-calibration-v{v}.json") for m, h, v in payload} | {
            (m, f"{h}-calibration.json") for (m, h), v in reference.items() if v
        }
    for (model, head), version in reference.items():
        assert version is None or (model, head, version) in payload, "the reference names no complete run"


def check_versions(store):
    "Versions are 1..n without gaps, and every run holds each head once."
    versions = [v for (v,) in rows(store, "SELECT version FROM runs ORDER BY version")]
    assert versions == list(range(1, len(versions) + 1))
    for version, heads, distinct, report in rows(
        store,
        "SELECT r.version, count(*), count(DISTINCT c.model_name || '/' || c.head_name), r.report FROM runs r JOIN calibration_runs c USING (version) GROUP BY version",
    ):
        assert (
            heads == distinct == json.loads(report)["summary"]["total_heads"]
            and json.loads(report)["version"] == version
        )
    assert len(rows(store, "SELECT DISTINCT version FROM calibration_runs")) == len(versions)
    assert rows(store, "PRAGMA integrity_check") == [("ok",)]
    return len(versions)


def live(root, seed):
    "Everything the store does, over and over, until killed."
    rng = np.random.default_rng(seed)
    store = CalibrationStore(
        root, DEV.model_copy(update={"calibration_policy": "auto", "calibration_drift_min_files": 20})
    )
    turn = 0
    while True:
        for head in ("leather", "grid", "wood"):
            store.tag("net", head, names(f"{seed}_{turn}", 25), rng.gamma(4 + turn % 3, size=25))
        store.run(wait=60)
        store.retag_all()
        store.work(batch=10, lease=0.05)
        turn += 1


def test_kills_at_random_moments(tmp_path):
    kills, rng = (200 if SLOW else 12), np.random.default_rng(0)
    store = CalibrationStore(tmp_path, DEV)
    with closing(
        sqlite3.connect(tmp_path / "calibration.sqlite")
    ) as db:  # a witness of every decision that a job has made
        db.executescript(
            "CREATE TABLE effects (job_id, head_id, file_id); CREATE TRIGGER witness AFTER INSERT ON tags WHEN NEW.job_id IS NOT NULL "
            "BEGIN INSERT INTO effects VALUES (NEW.job_id, NEW.head_id, NEW.file_id); END;"
        )
    unsettled, total = 0, 0
    for i in range(kills):
        child = FORK.Process(target=live, args=(tmp_path, i))
        began = time.time() - 1
        child.start()
        while i == 0 and not rows(store, "SELECT 1 FROM jobs LIMIT 1") and time.time() < began + 120:
            time.sleep(0.05)  # the first life gets as far as a job, on a busy machine too
        spent, life = (
            psutil.Process(child.pid).cpu_times,
            rng.uniform(0.01, 0.15 if i < 12 else 0.3),
        )  # seconds of CPU: a busy machine shortens no life, and a fuller store takes longer
        while sum(spent()[:2]) < life:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.01))  # while it waits for the disk, too
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        check_files(store, settled=False, since=began)
        unsettled += bool(rows(store, "SELECT 1 FROM calibration_runs WHERE exported = 0 AND payload IS NOT NULL"))
        jobs = rows(store, "SELECT count(*) FROM jobs")[0][0]
        assert jobs >= total
        total = jobs
    interrupted = store.repair()["written"]
    time.sleep(0.1)
    store.work(lease=0.05)
    check_files(store, settled=True)
    versions = check_versions(store)
    assert rows(store, "SELECT state, count(*) FROM jobs GROUP BY state") == [("done", total)], (
        f"attempts allowed: {ATTEMPTS}"
    )
    assert rows(store, "SELECT 1 FROM effects GROUP BY job_id, head_id HAVING count(*) > 1") == []
    missing = "SELECT count(*) FROM jobs j JOIN (SELECT DISTINCT head_id, file_id FROM scores) s ON s.file_id = j.file_id LEFT JOIN effects e ON e.job_id = j.id AND e.head_id = s.head_id WHERE j.kind = 'retag' AND e.job_id IS NULL"
    late = rows(store, missing)[0][
        0
    ]  # files whose third head was only scored after the job: at most one batch of each life
    print(
        f"{kills} kills: {versions} runs, {total} jobs all done once; files owing after {unsettled} kills, {len(interrupted)} of them at the end, {late} late heads"
    )
    assert late <= 2 * 25 * kills and versions >= kills / 4
    assert rows(
        store,
        "SELECT count(*) FROM tags t JOIN scores s ON s.head_id = t.head_id AND s.file_id = t.file_id WHERE t.score != s.score",
    ) == [(0,)]


def many_runs(root, who, runs, out):
    rng, got = np.random.default_rng(who), []
    store = CalibrationStore(
        root, DEV.model_copy(update={"calibration_policy": "auto", "calibration_drift_min_files": 20})
    )
    for i in range(runs):
        store.tag("net", f"head_{i % 2}", names(f"{who}_{i}", 25), rng.gamma(4, size=25))
        got.append(store.run(wait=120)["version"])
    out.put(got)


def test_two_processes_make_many_runs(tmp_path):
    runs = 500 if SLOW else 12
    out, started = FORK.Queue(), time.time()
    workers = [FORK.Process(target=many_runs, args=(tmp_path, who, runs, out)) for who in (1, 2)]
    for w in workers:
        w.start()
    got = [out.get(timeout=1200) for _ in workers]
    for w in workers:
        w.join()
        assert w.exitcode == 0
    store = CalibrationStore(tmp_path, DEV)
    versions = check_versions(store)
    assert set(got[0]) | set(got[1]) == set(range(1, versions + 1))
    check_files(store, settled=True)
    assert all(a < b for a, b in zip(got[0], got[0][1:])) and all(a < b for a, b in zip(got[1], got[1][1:]))
    print(f"2 x {runs} runs: {versions} versions in {time.time() - started:.0f} s, files and rows agree")
    assert rows(store, "SELECT count(*) FROM scores") == [(2 * runs * 25,)]


def test_migration_by_many_at_once(tmp_path):
    errors = []

    def start():
        try:
            CalibrationStore(tmp_path, DEV)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=start) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors and rows(CalibrationStore(tmp_path), "PRAGMA user_version") == [(len(MIGRATIONS),)]


def test_twenty_runs_of_small_creep_end_in_an_alarm(tmp_path):
    "0.03 standard deviations a run: no run differs much from the one before, but the reference stays pinned."
    repeats, first = (20 if SLOW else 1), []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        store = CalibrationStore(tmp_path / str(repeat), DEV)
        store.tag("net", "creep", names("r", 500), rng.normal(10, 1, 500))
        store.tag("net", "calm", names("r", 500), rng.normal(10, 1, 500))
        store.run()
        for i in range(1, 21):
            store.tag("net", "creep", names(i, 200), rng.normal(10 + 0.03 * i, 1, 200))
            store.tag("net", "calm", names(i, 200), rng.normal(10, 1, 200))
            report = store.run()
        trend = store.trend("net", "creep")[1:]
        first.append(next((r["version"] for r in trend if r["verdict"] == "unstable" or r["alarm"]["rung"]), 99))
        assert trend[-1]["verdict"] == "unstable" or trend[-1]["alarm"]["rung"]
        assert report["reference_updates"]["net/creep"] == "proposed" and rows(
            store, "SELECT DISTINCT reference_version FROM heads"
        ) == [(1,)]
    print(f"creep of 0.03 sd a run, 200 files a run: alarm in {repeats} of {repeats}, at run {sorted(first)}")


def test_an_alarm_that_rang_stays_whatever_comes_until_a_person_chooses(tmp_path):
    "Images scored again, found to be defects, or next to more heads: none of it takes an alarm back."
    rng = np.random.default_rng(1)
    store = CalibrationStore(tmp_path, DEV)
    store.tag("net", "leather", names("a", 300), rng.normal(size=300))
    store.run()
    shifted = names("b", 300)[100:]
    store.tag("net", "leather", names("b", 300)[:100], rng.normal(size=100))
    store.tag("net", "leather", shifted, rng.normal(size=200) + 2)
    place = lambda report: [report["heads"]["net/leather"]["alarm"].get(k) for k in ("rung", "at", "file", "change_file")]
    first = place(store.run())
    assert first[0] and first[2] == f"b_{first[1]:05}.png" and "b_00090.png" <= first[3] < first[2]
    store.tag("net", "leather", shifted, rng.normal(size=200))
    assert place(store.run()) == first, "scored again"
    store.tag("net", "leather", shifted, rng.normal(size=200), roles="defect")
    for i in range(3):
        store.tag("net", f"h{i}", names("a", 300), rng.normal(size=300))
    report = store.run()
    assert place(report) == first and report["heads"]["net/leather"]["alarm"]["triggered_in"] == 2
    store.tag("net", "leather", names("c", 100), rng.normal(size=100))
    version = store.run()["version"]
    store.promote("net", "leather", version)
    store.tag("net", "leather", names("d", 100), rng.normal(size=100))
    assert place(store.run()) == [False, None, None, None]


@pytest.mark.parametrize("exact_limit", [10**6, 250])
def test_heads_that_are_counted_are_watched_too(tmp_path, exact_limit):
    rng = np.random.default_rng(0)
    store = CalibrationStore(tmp_path, DEV)
    for prefix, n, rise in (("a", 300, 0), ("b", 500, 2)):
        store.tag("net", "leather", names(prefix, n), rng.normal(size=n) + rise)
        report = store.ask(run_calibration, tmp_path, DEV, 0.0, exact_limit)
    alarm = report["heads"]["net/leather"]["alarm"]
    assert alarm["rung"] and alarm["file"] == "b_00006.png" and alarm["watched"] == 500


@pytest.mark.parametrize("policy, after", [("review", 1), ("auto", 2)])
def test_a_surge_of_defects_and_who_moves_the_reference(tmp_path, policy, after):
    rng = np.random.default_rng(1)
    store = CalibrationStore(tmp_path, DEV.model_copy(update={"calibration_policy": policy}))
    store.tag("net", "leather", names("a", 400), rng.gamma(4, size=400))
    store.run()
    before = load_calibration(tmp_path, "net", "leather")
    store.tag("net", "leather", names("b", 400), np.where(rng.random(400) < 0.3, 15, 0) + rng.gamma(4, size=400))
    report = store.run()["heads"]["net/leather"]
    assert report["verdict"] == "unstable" and report["is_stable"] is False
    assert load_calibration(tmp_path, "net", "leather")["version"] == after
    for i in range(5):  # and not by persistence either
        store.tag(
            "net", "leather", names(f"c{i}", 100), np.where(rng.random(100) < 0.3, 15, 0) + rng.gamma(4, size=100)
        )
        now = store.run()
        head = now["heads"]["net/leather"]
        moved = (
            "updated"
            if policy == "auto" and head["verdict"] == "unstable"
            else "proposed"
            if head["verdict"] == "unstable" or head["alarm"]["rung"]
            else "kept"
        )
        assert now["reference_updates"]["net/leather"] == moved and head["alarm"]["rung"], (
            "the alarm counts from the first reference, whoever moves it"
        )
    if policy == "review":
        assert load_calibration(tmp_path, "net", "leather") == before
        assert (
            store.promote("net", "leather")["to_version"] == 7
            and load_calibration(tmp_path, "net", "leather")["version"] == 7
        )
        assert (
            store.promote("net", "leather", 1)["from_version"] == 7
            and load_calibration(tmp_path, "net", "leather") == before
        )


@pytest.mark.parametrize("n", [60, 300])
def test_the_sequential_alarm_ever_rings_at_most_at_its_rate(n):
    streams, length, alpha = (2000, 1000, 0.05) if SLOW else (60, 400, 0.05)
    rng = np.random.default_rng(n)
    triggered = sum(
        SequentialAlarm(alpha, random_state=i).fit(rng.gamma(2, size=n)).update(rng.gamma(2, size=length)).alarm_
        for i in range(streams)
    )
    print(
        f"sequential alarm, reference {n}, {length} scores: rang in {triggered / streams:.2%} of {streams} streams (stated {alpha:.0%})"
    )
    assert triggered <= binom.ppf(0.999, streams, alpha)


def test_is_stable_and_rows_are_as_specified(tmp_path):
    rng = np.random.default_rng(2)
    store = CalibrationStore(tmp_path, DEV.model_copy(update={"calibration_window": "all"}))
    first, more = rng.random(1000), rng.random(1000)
    store.tag("effnet", "mood_happy", names("a", 1000), first)
    one = store.run()
    store.tag("effnet", "mood_happy", names("b", 1000), more)
    two = store.run()
    row = store.history()[0]
    assert list(row)[:17] == [
        "id",
        "model_name",
        "head_name",
        "version",
        "file_count",
        "timestamp",
        "p5",
        "p95",
        "range",
        "reference_version",
        *METRICS,
        "is_stable",
    ]
    both = np.r_[first, more]
    assert (
        row["file_count"] == 2000
        and two["library_size"] == 2000
        and row["reference_version"] == 1
        and isinstance(row["is_stable"], bool)
    )
    assert (row["p5"], row["p95"]) == tuple(np.quantile(both, [0.05, 0.95])) and row["range"] == pytest.approx(
        row["p95"] - row["p5"]
    )
    assert row["apd_p5"] == pytest.approx(abs(np.quantile(both, 0.05) - np.quantile(first, 0.05)), abs=1e-12)
    body = two["heads"]["effnet/mood_happy"]
    assert body["is_stable"] == all(
        body["drift_metrics"][m] < t for m, t in zip(METRICS, [0.01, 0.01, 0.05, 0.1, 0.05, 0.1])
    )
    assert one["heads"]["effnet/mood_happy"]["labels"]["anomalous"]["method"] == "minmax" and one[
        "reference_updates"
    ] == {"effnet/mood_happy": "updated"}
    assert two["saved_files"]["effnet/mood_happy"].endswith("/effnet/heads/mood_happy-calibration-v2.json")


def test_windows(tmp_path):
    rng = np.random.default_rng(3)
    scores = rng.random((4, 100))
    counts = {}
    for window in ("new", "all", 120):
        store = CalibrationStore(tmp_path / str(window), DEV.model_copy(update={"calibration_window": window}))
        for i in range(4):
            store.tag("net", "h", names(i, 100), scores[i])
            store.run()
        counts[window] = [r["file_count"] for r in store.history()][::-1]
    assert counts == {"new": [100, 100, 200, 300], "all": [100, 200, 300, 400], 120: [100, 100, 120, 120]}


def test_heads_that_cannot_be_judged(tmp_path):
    rng = np.random.default_rng(4)
    store = CalibrationStore(tmp_path, DEV)
    store.tag("net", "few", names("a", 10), rng.random(10))
    store.tag("net", "constant", names("a", 200), np.full(200, 0.5))
    store.tag("net", "tied", names("a", 200), rng.random(200).round(1))
    store.tag("net", "good", names("a", 200), rng.random(200))
    one = store.run()
    assert {k: b["verdict"] for k, b in one["heads"].items()} == {
        "net/few": "insufficient",
        "net/constant": "unstable",
        "net/tied": "insufficient",
        "net/good": "unstable",
    }
    assert (
        one["reference_updates"]["net/few"] == one["reference_updates"]["net/constant"] == "none"
        and one["reference_updates"]["net/good"] == "updated"
    )
    assert not any(b["is_stable"] for b in one["heads"].values())
    store.tag("net", "few", names("b", 90), rng.random(90))
    two = store.run()
    assert two["reference_updates"]["net/few"] == "updated"
    assert (
        two["heads"]["net/good"]["verdict"] == "insufficient"
        and "no files since version 1" in two["heads"]["net/good"]["reason"]
    )
    assert not any(b["is_stable"] for b in two["heads"].values())
    check_files(store, settled=True)
    with pytest.raises(ValueError, match="holds no calibration"):
        store.promote("net", "constant", 1)
    with pytest.raises(ValueError, match="nothing is tagged yet"):
        CalibrationStore(tmp_path / "empty", DEV).run()


def test_groups_are_counted_as_groups(tmp_path):
    rng = np.random.default_rng(5)
    videos = lambda k, v: (
        np.repeat(rng.normal(size=v), 50) * 1.5 + rng.normal(size=v * 50),
        [f"{k}{i}" for i in range(v) for _ in range(50)],
    )
    store = CalibrationStore(tmp_path, DEV)
    for k in "ab":
        scores, groups = videos(k, 20)
        store.tag("net", "video", names(k, 1000), scores, groups)
        store.tag("net", "naive", names(k, 1000), scores)
        report = store.run()["heads"]
    assert report["net/naive"]["verdict"] == "unstable" and report["net/video"]["verdict"] in (
        "no evidence of drift",
        "inconclusive",
    )
    assert report["net/video"]["alarm"]["watched"] == 19


def test_own_limits_change_one_head_only(tmp_path):
    rng = np.random.default_rng(6)
    wide = {"net/wide": {"apd": 2, "srd": 2, "jsd": 0.9, "median": 2, "iqr": 2}}
    store = CalibrationStore(
        tmp_path, Settings.model_validate({"calibrate_heads": True, "calibration_drift_heads": wide})
    )
    for i, shift in enumerate((0, 0.3)):
        for head in ("wide", "plain"):
            store.tag("net", head, names(i, 300), rng.random(300) + shift)
        report = store.run()["heads"]
    assert report["net/wide"]["verdict"] == "stable" and report["net/plain"]["verdict"] == "unstable"


def test_rescored_files_count_once_and_history_is_kept(tmp_path):
    rng = np.random.default_rng(7)
    store = CalibrationStore(tmp_path, DEV)
    store.tag("net", "h", names("a", 200), rng.random(200))
    assert store.tag("net", "h", names("a", 200), rng.random(200)) == 200
    latest = rng.random(200)
    store.tag("net", "h", names("a", 200)[::-1], latest)  # in another order
    head = store.run()["heads"]["net/h"]
    assert head["file_count"] == 200 and rows(store, "SELECT count(*) FROM scores") == [(600,)]
    assert head["labels"]["anomalous"]["p95"] == np.quantile(latest, 0.95)


def test_large_heads_are_counted_into_sketches(tmp_path):
    rng = np.random.default_rng(8)
    store = CalibrationStore(tmp_path, DEV)
    store.tag("net", "h", names("a", 3000), rng.gamma(4, size=3000))
    store.run()
    store.tag("net", "h", names("b", 3000), rng.gamma(4, size=3000) * 1.15)
    exact = CalibrationStore(tmp_path, DEV)
    other = DEV.model_copy(update={"calibration_drift_alpha": 0.049})
    counted = store.ask(lambda db: run_calibration(db, tmp_path, other, exact_limit=1000))["heads"]["net/h"]
    plain = exact.run()["heads"]["net/h"]
    assert counted["verdict"] == plain["verdict"] == "unstable"
    for m in METRICS:
        assert counted["drift_metrics"][m] == pytest.approx(plain["drift_metrics"][m], abs=0.01)


def test_same_scores_in_two_stores_give_the_same_run(tmp_path):
    reports = []
    for name in ("one", "two"):
        rng = np.random.default_rng(9)
        store = CalibrationStore(tmp_path / name, DEV)
        for k in "abc":
            store.tag("net", "h", names(k, 200), rng.random(200))
            report = store.run()
        reports.append({k: v for k, v in report["heads"]["net/h"].items()})
    assert reports[0] == reports[1]
    keys = [
        rows(CalibrationStore(tmp_path / n), "SELECT content_key FROM runs ORDER BY version") for n in ("one", "two")
    ]
    assert keys[0] == keys[1]


def test_promotion_during_a_run_is_noticed(tmp_path, monkeypatch):
    from anomaly_nb.calibration import runs as module

    rng = np.random.default_rng(10)
    store = CalibrationStore(tmp_path, DEV)
    for k, shift in (("a", 0), ("b", 1)):
        store.tag("net", "h", names(k, 200), rng.random(200) + shift)
        store.run()
    store.tag("net", "h", names("c", 200), rng.random(200) + 1)
    real, calls = module.measure_head, []

    def meddle(*args, **kwargs):
        calls.append(1)
        out = real(*args, **kwargs)
        if len(calls) == 1:
            store.promote("net", "h", 2)
        return out

    monkeypatch.setattr(module, "measure_head", meddle)
    assert store.run()["heads"]["net/h"]["reference_version"] == 2 and len(calls) == 2


@pytest.mark.parametrize("policy", ["review", "auto", "spec"])
def test_a_run_after_another_reference_measures_anew_and_else_is_the_same(tmp_path, policy):
    rng = np.random.default_rng(10)
    store = CalibrationStore(tmp_path / "line", DEV.model_copy(update={"calibration_policy": policy}))
    for k, shift in (("a", 0), ("b", 1)):
        store.tag("net", "h", names(k, 200), rng.random(200) + shift)
        report = store.run()
        assert store.run() == report == store.run(), "nothing has changed"
    if policy == "review":
        assert report["reference_updates"] == {"net/h": "proposed"}
    store.promote("net", "h", 1 if policy != "review" else 2)
    after = store.run()
    assert after["version"] == 3 and after["heads"]["net/h"]["reference_version"] == (1 if policy != "review" else 2)
    assert policy != "review" or (after["heads"]["net/h"]["file_count"], after["summary"]["references"]["proposed"]) == (0, 0)
    assert store.run() == after
    store.promote("net", "h", 2 if policy != "review" else 1)
    again = store.run()
    assert again["heads"]["net/h"]["reference_version"] == (2 if policy != "review" else 1)
    pack_calibrations(tmp_path / "line", tmp_path / "set")
    pull_calibrations(tmp_path / "set", tmp_path / "line")
    pulled = store.run()
    assert pulled["version"] > again["version"] and store.run() == pulled


def test_a_pull_during_a_run_is_noticed(tmp_path, monkeypatch):
    from anomaly_nb.calibration import runs as module

    rng = np.random.default_rng(11)
    store = CalibrationStore(tmp_path / "line", DEV)
    store.tag("net", "h", names("a", 200), rng.random(200))
    store.run()
    pack_calibrations(tmp_path / "line", tmp_path / "set")
    store.tag("net", "h", names("b", 200), rng.random(200))
    real, calls = module.measure_head, []

    def meddle(*args, **kwargs):
        calls.append(1)
        out = real(*args, **kwargs)
        if len(calls) == 1:
            pull_calibrations(tmp_path / "set", tmp_path / "line")
        return out

    monkeypatch.setattr(module, "measure_head", meddle)
    assert store.run()["version"] == 2 and len(calls) == 2


def test_a_run_that_is_going_is_not_run_twice(tmp_path):
    store = CalibrationStore(tmp_path, DEV)
    store.tag("net", "h", names("a", 100), np.random.default_rng(0).random(100))
    with locked(tmp_path / "run"), pytest.raises(RunInProgress, match="is going on"):
        store.run()
    assert store.run()["version"] == 1


def test_a_damaged_calibration_in_the_database_is_told(tmp_path):
    store = CalibrationStore(tmp_path, DEV)
    store.tag("net", "h", names("a", 100), np.random.default_rng(0).random(100))
    store.run()
    assert all(
        sha256(p.encode()).hexdigest() == s for p, s in rows(store, "SELECT payload, sha256 FROM calibration_runs")
    )
    with closing(sqlite3.connect(tmp_path / "calibration.sqlite")) as db:
        db.execute("UPDATE calibration_runs SET payload = replace(payload, '\"p5\": 0', '\"p5\": 1')")
        db.commit()
    with pytest.raises(ValueError, match="stored calibration is damaged"):
        store.repair()


def test_many_threads_tag_at_once(tmp_path):
    store, errors = CalibrationStore(tmp_path, DEV), []

    def work(k):
        try:
            for i in range(5):
                store.tag("net", f"h{k % 3}", names(f"{k}_{i}", 20), np.random.default_rng(k).random(20))
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors and rows(store, "SELECT count(*) FROM scores") == [(12 * 5 * 20,)]


def test_files_of_the_reference_that_are_scored_again_are_not_compared_with_themselves(tmp_path):
    "500 new files drift; the 500 of the reference, scored again next to them, hide nothing of it, and are counted."
    rng, results = np.random.default_rng(0), []
    old, new = rng.normal(size=500), rng.normal(0.9, 1, 500)
    for folder, again in (("alone", False), ("diluted", True)):
        store = CalibrationStore(tmp_path / folder, DEV)
        store.tag("net", "leather", names("a", 500), old)
        store.run()
        if again:
            store.tag("net", "leather", names("a", 500), old + 9)
            store.tag("net", "leather", names("a", 500), old)  # the very scores of the reference
        store.tag("net", "leather", names("b", 500), new)
        results.append(store.run()["heads"]["net/leather"])
    alone, diluted = results
    assert alone["verdict"] == diluted["verdict"] == "unstable" and alone["drift_metrics"] == diluted["drift_metrics"]
    assert (alone["repeated"], diluted["repeated"], diluted["file_count"]) == (0, 500, 500)
    assert diluted["reason"] == alone["reason"] + "; left out: 500 files of the reference, scored again"
    store.promote("net", "leather", 2)  # the reference is what its calibration was made of
    store.tag("net", "leather", names("c", 500), rng.normal(0.9, 1, 500))
    store.run()
    (detail,) = rows(store, "SELECT detail FROM calibration_runs WHERE version = 3")
    assert json.loads(detail[0])["drift"]["n_reference"] == 500
    if (pooled := store.extend()["net/leather"]).startswith("pooled"):
        assert pooled.endswith("500 -> 1000"), pooled


def test_a_new_model_may_score_the_same_files(tmp_path):
    "Where nothing but files of the reference has come, they are what there is to compare."
    rng, store = np.random.default_rng(0), CalibrationStore(tmp_path, DEV)
    for shift in (0, 2):
        store.tag("net", "leather", names("a", 300), rng.normal(size=300) + shift)
        head = store.run()["heads"]["net/leather"]
    assert (head["verdict"], head["file_count"], head["repeated"]) == ("unstable", 300, 0)


def test_a_job_that_fails_is_tried_once_a_call_and_rests(tmp_path):
    store, calls = CalibrationStore(tmp_path, DEV), []

    def failing():
        calls.append(time.time())
        raise RunInProgress("another run is going on")

    with closing(connect(tmp_path / "calibration.sqlite")) as db:
        enqueue_run(db)
        for k in range(1, ATTEMPTS + 1):
            left = {"done": 0, "failed": k // ATTEMPTS, "waiting": 1 - k // ATTEMPTS}
            assert drain_jobs(db, failing) == left and len(calls) == k
            assert drain_jobs(db, failing) == left and len(calls) == k  # it rests
            job = dict(db.execute("SELECT * FROM jobs").fetchone())
            assert job["attempts"] == k and job["owner"] is None and "RunInProgress" in job["error"]
            assert (job["state"], job["finished_at"] is None) == (("failed", False) if k == ATTEMPTS else ("queued", True))
            if k < ATTEMPTS:
                assert -1 < job["lease_until"] - rest_seconds(k) - calls[-1] < 5
                assert "1 calibration run: RunInProgress: another run is going on; tried again in" in job_errors(db)[0]
                with transaction(db):  # as much later
                    db.execute("UPDATE jobs SET lease_until = ?", (time.time() - 1,))
        assert [rest_seconds(k) for k in (1, 2, 3, 9, 10)] == [10, 20, 40, 2560, 3600]
        assert enqueue_run(db) and drain_jobs(db, lambda: None) == {"done": 1, "failed": 0, "waiting": 0}  # asked anew
    assert store.jobs()["done"] == 1


def test_an_error_that_no_repetition_mends_ends_a_job_at_once(tmp_path):
    store = CalibrationStore(tmp_path, DEV)
    store.ask(enqueue_run)  # of nothing
    assert store.work() == {"done": 0, "failed": 1, "waiting": 0}
    job = rows(store, "SELECT attempts, finished_at IS NULL, error FROM jobs")[0]
    assert job[:2] == (1, 0) and job[2].startswith("NotNow: ") and "nothing is tagged yet" in job[2]
    assert store.ask(job_errors)[0].endswith("; set aside")


def test_what_failed_is_not_taken_again_in_the_same_call_however_long_it_is(tmp_path, monkeypatch):
    store = CalibrationStore(tmp_path, DEV)
    store.tag("net", "grid", [f"{i}.png" for i in range(6)], np.arange(6.0))
    store.retag_all()
    tried = []

    def never(db, owner, jobs):
        tried.append([j["file_id"] for j in jobs])
        time.sleep(0.005)  # every rest is over before the next lease
        raise OSError("no space left")

    monkeypatch.setattr("anomaly_nb.calibration.jobs.retag_files", never)
    monkeypatch.setattr("anomaly_nb.calibration.jobs.rest_seconds", lambda attempts: 0.001)
    assert store.work(batch=2) == {"done": 0, "failed": 0, "waiting": 6}
    assert [len(t) for t in tried] == [2, 2, 2] and len({f for t in tried for f in t}) == 6
    tried.clear()
    time.sleep(0.01)
    assert store.work(batch=4, limit=5) == {"done": 0, "failed": 0, "waiting": 6}  # the limit counts attempts
    assert [len(t) for t in tried] == [4, 1]
    monkeypatch.undo()
    assert store.retag_all() == (0, 6) and store.work() == {"done": 6, "failed": 0, "waiting": 0}  # asked anew, at once


def test_a_job_whose_workers_never_come_back_says_so(tmp_path):
    store = CalibrationStore(tmp_path, DEV)
    store.ask(enqueue_run)
    for k in range(ATTEMPTS):
        assert len(store.ask(lease_jobs, f"w{k}", 1, 0.0)) == 1
        time.sleep(0.002)
    assert store.ask(lease_jobs, "last", 1) == []
    job = rows(store, "SELECT state, attempts, owner, finished_at > 0, error FROM jobs")[0]
    assert job == ("failed", ATTEMPTS, None, 1, "the last worker did not come back")


def test_a_worker_names_the_errors_of_its_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = CalibrationStore("data/calibrations", DEV)
    store.ask(enqueue_run)
    (tmp_path / "config.yml").write_text("calibrate_heads: false\n")
    code, text, err = run("drift", "worker")
    assert code == 1 and "0 jobs done, 1 failed, 0 waiting" in text
    assert "1 calibration run: DataError: calibration runs are for development" in text + str(err)


def test_no_score_is_pooled_that_no_run_has_compared(tmp_path):
    "What came before the window of a run stays out of the reference; so do new scores of files of the reference."
    settings, rng = Settings(calibrate_heads=True, calibration_window=300), np.random.default_rng(0)
    store = CalibrationStore(tmp_path, settings)
    store.tag("net", "leather", names("a", 300), rng.normal(size=300))
    store.run()
    between = rng.normal(size=400)
    between[40::60] = 50.0
    store.tag("net", "leather", names("b", 400), between)  # no run looks at these
    store.tag("net", "leather", names("a", 2), [60.0, 60.0])  # left out of the run
    store.tag("net", "leather", names("c", 300), rng.normal(size=300))
    head = store.run()["heads"]["net/leather"]
    assert (head["verdict"], head["file_count"]) == ("no evidence of drift", 300)
    assert store.extend() == {"net/leather": "pooled with the files of version 2: 300 -> 600"}
    (payload,) = rows(store, "SELECT payload FROM calibration_runs WHERE version = 3")
    assert json.loads(payload[0])["threshold"] < 10
    store.tag("net", "leather", names("b", 10), rng.normal(size=10))  # not of the reference: these are new files
    store.tag("net", "leather", names("a", 3), [1.0, 2.0, 3.0], roles="defect")  # found to be defects
    store.tag("net", "leather", names("d", 290), rng.normal(size=290))
    head = store.run()["heads"]["net/leather"]
    assert (head["verdict"], head["file_count"], head["repeated"]) == ("no evidence of drift", 300, 0)
    (detail,) = rows(store, "SELECT detail FROM calibration_runs WHERE version = 4")
    assert json.loads(detail[0])["drift"]["n_reference"] == 600
    assert store.extend() == {"net/leather": "pooled with the files of version 4: 600 -> 897"}


def counted_run(store, settings, exact_limit=100):
    return store.ask(lambda db: run_calibration(db, store.root, settings, exact_limit=exact_limit))["heads"]


@pytest.mark.parametrize("odd", [[], [0.75]])
def test_a_constant_head_that_is_counted_is_said_to_be_constant_and_stops_no_run(tmp_path, odd):
    store, rng = CalibrationStore(tmp_path, DEV), np.random.default_rng(0)
    stuck = np.r_[np.full(3000, 0.25), odd]
    store.tag("net", "stuck", names("a", stuck.size), stuck)
    store.tag("net", "fine", names("a", 300), rng.normal(size=300))
    heads = counted_run(store, DEV)
    assert heads["net/stuck"]["verdict"] == "unstable" and heads["net/fine"]["labels"]
    assert heads["net/stuck"]["reason"] == "every score is 0.25: the head has collapsed to a constant" if not odd else (
        "0.25: the head has collapsed to a constant" in heads["net/stuck"]["reason"]
    )
    store.tag("net", "fine", names("b", 300), np.full(300, 1.5))
    assert counted_run(store, DEV)["net/fine"]["reason"] == "every score is 1.5: the head has collapsed to a constant"


def test_a_counted_window_is_held_against_the_threshold_exactly(tmp_path):
    "A threshold within a bin of the sketch counted all of the bin as above it."
    store, rng = CalibrationStore(tmp_path, DEV.model_copy(update={"calibration_alpha": 0.001})), np.random.default_rng(1)
    store.tag("net", "h", names("a", 4000), rng.gamma(4, size=4000))
    store.run()
    store.tag("net", "h", names("b", 60_000), rng.gamma(4, size=60_000))
    threshold = load_calibration(tmp_path, "net", "h")["threshold"]
    assert counted_run(store, store.settings, 5000)["net/h"]["contamination"] is None
    surge = np.r_[rng.gamma(4, size=59_000), np.full(1000, threshold)]
    store.tag("net", "h", names("c", 60_000), surge)
    latest = store.settings.model_copy(update={"calibration_window": 60_000})
    said = counted_run(store, latest, 5000)["net/h"]["contamination"]
    assert said.startswith(f"{int((surge >= threshold).sum())} of 60000 scores")


def test_every_reference_that_decides_is_packed_and_pulled_and_none_is_chosen_in_silence(tmp_path):
    store, rng = CalibrationStore(tmp_path / "store", DEV), np.random.default_rng(0)
    for model, head in (("heads", "x"), ("net", "x")):
        store.tag(model, head, names("a", 200), rng.gamma(4, size=200))
    store.run()
    own, other = (store.root / model / "heads/x-calibration.json" for model in ("net", "heads"))
    for name, text in (("x", other.read_text()), ("y", own.read_text())):  # x.cal.json beside one of the store is passed over
        (store.root / f"net/heads/{name}.cal.json").write_text(text)
    packed = pack_calibrations(store.root, tmp_path / "set")["files"]
    assert sorted(packed) == ["heads/heads/x-calibration.json", "net/heads/x-calibration.json", "net/heads/y.cal.json"]
    pull_calibrations(tmp_path / "set", tmp_path / "line")
    for model, head in (("heads", "x"), ("net", "x"), ("net", "y")):
        assert load_calibration(tmp_path / "line", model, head) == load_calibration(store.root, model, head)
    pack_calibrations(store.root, tmp_path / "set")  # the same heads again
    (store.root / "net/heads/y.cal.json").unlink()
    with pytest.raises(DataError, match=r"set: holds net/heads/y\.cal\.json of another set; give a new folder"):
        pack_calibrations(store.root, tmp_path / "set")
    (tmp_path / "set/net/heads/x.cal.json").write_text(other.read_text())
    write_manifest(tmp_path / "set", kind="anomaly_nb calibrations")
    with pytest.raises(DataError, match=r"x[a-z.-]*\.json and .*x[a-z.-]*\.json are both of net/x, and differ; remove one"):
        pull_calibrations(tmp_path / "set", tmp_path / "new")
