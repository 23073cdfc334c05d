"""The specification's workflows as they are typed: development over HTTP to a converged state and new tags, then
production by reference files alone.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

from anomaly_nb.calibration.keys import new_key
from anomaly_nb.calibration.service import create_app
from anomaly_nb.calibration.store import CalibrationStore
from anomaly_nb.cli.main import main
from anomaly_nb.core.settings import load_settings

METRICS = ("apd_p5", "apd_p95", "srd", "jsd", "median_drift", "iqr_drift")
KEY, HASH = new_key()
CONFIG = """# Calibration mode (dev feature)
calibrate_heads: {mode}

# Repository for downloading pre-made calibrations
calibration_repo: "https://github.com/xiaden/nom-cal"

# Drift detection thresholds
calibration_drift_apd: 0.01 # Absolute Percentile Drift
calibration_drift_srd: 0.05 # Scale Range Drift
calibration_drift_jsd: 0.1 # Jensen-Shannon Divergence
calibration_drift_median: 0.05 # Median drift
calibration_drift_iqr: 0.1 # IQR drift
{more}"""


def call(*words, codes=(None, 0, 3)):
    "A command that must end with 0, or with 3 where it found something; tag with 4 where nothing could be decided."
    with pytest.raises(SystemExit) as e:
        main([str(w) for w in words])
    assert e.value.code in codes, words


class Service:
    "`anomaly-nb drift serve --store models --config config/config.yaml` on the loopback address."

    def __init__(self):
        store = CalibrationStore("models", load_settings("config/config.yaml"))
        config = uvicorn.Config(create_app(store, HASH, config="config/config.yaml"), port=0, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.thread.join()

    def curl(self, line):
        "The specification's line with our port and key, by curl where there is one."
        words = [
            "curl",
            "-s",
            "-w",
            "\n%{http_code}",
            *line.replace(":8356", f":{self.port}").split(),
            "-H",
            f"Authorization: Bearer {KEY}",
        ]
        if shutil.which("curl"):
            body, status = subprocess.run(words, capture_output=True, text=True, check=True).stdout.rsplit("\n", 1)
            return int(status), json.loads(body)
        import httpx

        r = httpx.request("POST" if "POST" in line else "GET", words[-3], headers={"Authorization": f"Bearer {KEY}"})
        return r.status_code, r.json()


def configure(mode, more=""):
    Path("config").mkdir(exist_ok=True)
    Path("config/config.yaml").write_text(CONFIG.format(mode=mode, more=more))


def development(heads, more=""):
    """The development workflow until convergence: heads maps (model, head) to a function of the batch's number that
    gives file and score, or file and a column for each label. Reports of all runs.
    """
    configure("true", more)
    at, reports = ["--store", "models", "--config", "config/config.yaml"], []
    with Service() as service:
        for k in range(6):
            for (model, head), batch in heads.items():  # 1. and 3.: tag a batch, and more files
                table = batch(k)
                table.to_csv("batch.csv", index=False)
                labels = [w for c in table if c not in ("file", "score", "role") for w in ("--label", c)]
                call(
                    "drift",
                    "tag",
                    "--scores",
                    "batch.csv",
                    "--model",
                    model,
                    "--head",
                    head,
                    *labels,
                    "--out",
                    "tags.csv",
                    *at,
                    codes=(None, 0, 3) if k else (4,),  # the first batch has no reference
                )
            status, body = service.curl("-X POST http://localhost:8356/admin/calibration/run")  # 2. and 4.
            assert status == 200 and body["status"] == "ok", body
            reports.append(body["calibration"])
            model, head = next(iter(heads))
            status, body = service.curl(
                f"http://localhost:8356/admin/calibration/history?model={model}&head={head}&limit=50"
            )
            assert status == 200 and body["count"] == len(body["runs"]) >= k + 1
            if reports[-1]["summary"]["converged"]:  # 5.
                break
        status, retag = service.curl("-X POST http://localhost:8356/admin/calibration/retag-all")  # 6.
        assert status == 200
    call("drift", "worker", *at)
    return reports, retag


def moods(k, n):
    rng = np.random.default_rng(k)
    happy = rng.beta(4, 8, n)
    return pd.DataFrame(
        {"file": [f"/music/{k}_{i}.mp3" for i in range(n)], "happy": happy, "sad": 1 - happy + rng.normal(0, 0.02, n)}
    )


def dances(k, n):
    rng = np.random.default_rng(100 + k)
    return pd.DataFrame({"file": [f"/music/{k}_{i}.mp3" for i in range(n)], "score": rng.gamma(4, 0.05, size=n)})


def test_development_and_production_as_specified(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    n = 500
    reports, retag = development(
        {("effnet", "mood_happy"): lambda k: moods(k, n), ("effnet", "danceability"): lambda k: dances(k, n)}
    )
    first, second, last, runs = *reports[:2], reports[-1], len(reports)
    assert (
        first["version"] == 1
        and first["library_size"] == n
        and first["summary"]["unstable_heads"] == first["summary"]["total_heads"] == 2
    )
    assert first["reference_updates"] == {"effnet/danceability": "updated", "effnet/mood_happy": "updated"}
    assert first["saved_files"]["effnet/mood_happy"].endswith("models/effnet/heads/mood_happy-calibration-v1.json")
    head = second["heads"]["effnet/mood_happy"]
    assert set(head["labels"]) == {"happy", "sad"} and all(
        set(v) == {"p5", "p95", "method"} and v["method"] == "minmax" for v in head["labels"].values()
    )
    assert {"model_name", "head_name", "drift_metrics", "is_stable", "reference_version"} <= set(head) and set(
        head["by_label"]
    ) == {"happy", "sad"}
    assert set(head["drift_metrics"]) == {*METRICS, "is_stable", "failed_metrics"}
    assert last["summary"]["converged"] and last["library_size"] == runs * n, last["summary"]
    assert retag == {"enqueued": runs * n, "message": f"Enqueued {runs * n} tagged files for re-tagging"}
    heads_folder = Path("models/effnet/heads")
    assert (
        len(list(heads_folder.glob("*-calibration.json"))) == 2
        and len(list(heads_folder.glob("*-calibration-v*.json"))) == 2 * runs
    )
    store = CalibrationStore("models")
    rows = store.table(
        "SELECT model_name, head_name, version, is_stable, apd_p5, apd_p95, srd, jsd FROM calibration_runs ORDER BY version DESC, model_name, head_name"
    )
    assert rows.version.tolist() == [v for v in range(runs, 0, -1) for _ in range(3)]
    tags = store.table("SELECT head_name, anomalous, tags.reference_version FROM tags JOIN heads ON heads.id = head_id")
    assert (
        len(tags) == 3 * runs * n
        and set(tags.reference_version) == {1}
        and tags.groupby("head_name").anomalous.mean().between(0.02, 0.09).all()
    )

    configure("false")  # production: no service for runs, and the files decide alone
    with Service() as service:
        status, body = service.curl("-X POST http://localhost:8356/admin/calibration/run")
    assert status == 403 and "calibrate_heads" in body["detail"]
    Path("line/effnet/heads").mkdir(parents=True)
    for path in heads_folder.glob(
        "*-calibration.json"
    ):  # copied by hand, under the names of the specification's repository
        shutil.copy(path, Path("line/effnet/heads") / path.name.replace("-calibration.json", ".cal.json"))
    moods(1, n).to_csv("today.csv", index=False)
    call(
        "drift",
        "tag",
        "--scores",
        "today.csv",
        "--model",
        "effnet",
        "--head",
        "mood_happy",
        "--store",
        "line",
        "--out",
        "out.csv",
        "--config",
        "config/config.yaml",
    )
    ours = store.table(
        "SELECT file, substr(head_name, 12) AS label, anomalous FROM tags JOIN heads ON heads.id = head_id JOIN files ON files.id = file_id WHERE file LIKE '/music/1_%' AND head_name LIKE 'mood%'"
    )
    both = pd.read_csv("out.csv").merge(ours, on=["file", "label"], suffixes=("", "_dev"))
    assert len(both) == 2 * n and (both.anomalous == both.anomalous_dev).all() and both.anomalous.sum() > 20
    assert not list(Path("line").rglob("*.sqlite*"))


SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
ROOT = Path(os.environ.get("ANOMALY_NB_DATA", "")).resolve()


def decides_as(folder, min_files):
    """A store made of an image report's folder, with what it was told about known defects, against the report's own
    decisions.
    """
    configure("true", f"calibration_drift_min_files: {min_files}\n")
    at = ["--store", "models", "--config", "config/config.yaml"]
    call("drift", "run", "--scores", folder, "--model", "net", "--head", "h", *at)
    call("drift", "tag", "--scores", folder / "scores.csv", "--model", "net", "--head", "h", "--out", "out.csv", *at)
    both = pd.read_csv(folder / "scores.csv").assign(anomalous=pd.read_csv("out.csv").anomalous)
    bad, good = (both[both.label == k] for k in (1, 0))
    made = json.loads(Path("models/net/heads/h-calibration.json").read_text())
    counts = {
        "defects": len(bad),
        "report": int(bad.called.sum()),
        "store": int(bad.anomalous.sum()),
        "good": len(good),
        "false": int(good.anomalous.sum()),
    }
    assert abs(counts["report"] - counts["store"]) <= 2, counts
    assert binom.sf(counts["false"] - 1, len(good), made["false_alarm_bound"]) > 0.01, (
        counts,
        made["false_alarm_bound"],
    )
    return counts | {"bound": made["false_alarm_bound"]}


@pytest.mark.skipif(not SLOW, reason="set ANOMALY_NB_SLOW=1: five image reports")
def test_stores_of_the_demo_reports_decide_as_they_do(tmp_path, monkeypatch):
    from anomaly_nb.cli.demo import CATEGORIES
    from anomaly_nb.reports import run_report

    monkeypatch.chdir(tmp_path)
    for category in CATEGORIES:
        print(
            category, decides_as(run_report("image_anomaly", {"category": category}, tmp_path / "figures").folder, 15)
        )
        shutil.rmtree("models")


def batches(normal, bad, n):
    "Scores in batches of n normal ones by time, and with each half as many known defects."
    normal, bad = np.random.default_rng(0).permutation(normal), np.random.default_rng(1).permutation(bad)
    many = lambda k, role, scores: pd.DataFrame(
        {"file": [f"{role}_{k}_{i}.png" for i in range(len(scores))], "score": scores, "role": role}
    )
    return lambda k: pd.concat(
        [many(k, "normal", normal[k * n : (k + 1) * n]), many(k, "defect", bad[k * n // 2 : (k + 1) * n // 2])]
    )


def images_converge(batch, n):
    """The workflow on the scores of images, in batches of n normal ones and n / 2 defects: converged, decided again,
    defects told from normal.
    """
    reports, retag = development({("net", "tile"): batch})
    head = reports[-1]["heads"]["net/tile"]
    tags = (
        CalibrationStore("models")
        .table(
            "SELECT role, avg(anomalous) AS flagged, count(*) AS n FROM tags t JOIN scores s USING (head_id, file_id) GROUP BY role"
        )
        .set_index("role")
    )
    print([r["heads"]["net/tile"]["verdict"] for r in reports], head["known_defects"], retag, tags.to_dict())
    assert (
        reports[-1]["summary"]["converged"]
        and retag["enqueued"] == 3 * n // 2 * len(reports) == reports[-1]["library_size"]
    )
    assert (
        reports[-1]["heads"]["net/tile"]["known_defects"]
        and tags.flagged["normal"] < 0.12
        and tags.flagged["defect"] > 3 * tags.flagged["normal"]
    )


@pytest.mark.skipif(
    not (SLOW and os.environ.get("ANOMALY_NB_DATA") and ROOT.is_dir()),
    reason="set ANOMALY_NB_SLOW=1, and ANOMALY_NB_DATA to the folder of real data",
)
def test_development_on_magnetic_tiles(tmp_path, monkeypatch):
    from anomaly_nb.reports import run_report

    monkeypatch.chdir(tmp_path)
    given = {"dataset": "magnetic_tile", "root": ROOT / "images/magnetic_tile", "category": "", "image_size": 96}
    folder = run_report("image_anomaly", given, tmp_path / "figures").folder
    held, test = pd.read_csv(folder / "calibration_scores.csv"), pd.read_csv(folder / "scores.csv")
    images_converge(batches(np.r_[held.score, test.score[test.label == 0]], test.score[test.label == 1], 100), 100)


def test_development_on_sample_images(tmp_path, monkeypatch):
    from anomaly_nb.data import read_index
    from anomaly_nb.data.samples import write_samples
    from anomaly_nb.scoring import Detector

    monkeypatch.chdir(tmp_path)
    write_samples("samples", n_train=260, n_good=1, n_defect=24, size=64)
    index = read_index("mvtec", "samples", "nut")
    normal, bad = (
        index.image_path[(index.split == s) & (index.label == y)].tolist() for s, y in (("train", 0), ("test", 1))
    )
    model = Detector(image_size=64, coreset=0.5).fit(normal[:20])
    images_converge(batches(model.score(normal[20:]), model.score(bad), 60), 60)


def test_pulled_heads_of_several_labels_in_a_store(tmp_path, monkeypatch):
    """A set with labels pulled into a folder in use decides there, label by label, until one's own reference is
    promoted again.
    """
    from anomaly_nb.calibration.exports import load_calibration
    from anomaly_nb.calibration.pull import pack_calibrations, pull_calibrations
    from anomaly_nb.core.settings import Settings

    dev, line = (CalibrationStore(tmp_path / name, Settings(calibrate_heads=True)) for name in ("dev", "line"))
    for store, k in ((dev, 0), (line, 1)):
        table = moods(k, 200)
        for label in ("happy", "sad"):
            store.tag(
                "effnet", "mood", table.file.tolist(), table[label].to_numpy() * (1 if store is dev else 3), label=label
            )
        store.run()
    own = load_calibration(line.root, "effnet", "mood")
    pack_calibrations(dev.root, tmp_path / "set.zip")
    pull_calibrations(tmp_path / "set.zip", line.root)
    pulled = load_calibration(line.root, "effnet", "mood")
    assert pulled == load_calibration(dev.root, "effnet", "mood") != own
    line.retag_all(), line.work()
    assert line.table("SELECT avg(anomalous) FROM tags").iloc[0, 0] > 0.5 and line.repair()["written"] == []
    line.promote("effnet", "mood", 1)
    assert load_calibration(line.root, "effnet", "mood") == own
    more = moods(2, 200)
    for label in ("happy", "sad"):
        line.tag("effnet", "mood", more.file.tolist(), more[label].to_numpy() * 3, label=label)
    line.run()
    told = line.extend("effnet", "mood")
    assert set(told) == {"effnet/mood:happy", "effnet/mood:sad"} and all("200 -> 400" in v for v in told.values())
    assert load_calibration(line.root, "effnet", "mood")["version"] == 3 and line.repair()["written"] == []
    assert [{"threshold": None} | json.loads(p.read_text()) for p in line.root.rglob("*.kept-*")] == [pulled]


def test_drift_run_offers_to_write_its_setting(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dances(0, 100).to_csv("a.csv", index=False)
    run = ["drift", "run", "--scores", "a.csv", "--head", "h"]
    with pytest.raises(SystemExit) as e:
        main(run)
    err = capsys.readouterr().err
    assert (
        e.value.code == 2
        and err.count("\n") == 1
        and "let anomaly-nb drift run --develop write it" in err
        and not Path("data").exists()
    )
    Path("config.yml").write_text("# ours\ncalibration_alpha: 0.1\n")
    call(*run, "--develop")
    assert "calibrate_heads: true is written into config.yml" in capsys.readouterr().out
    assert Path("config.yml").read_text() == "# ours\ncalibration_alpha: 0.1\ncalibrate_heads: true\n"
    call(*run, "--develop")
    assert "is written" not in capsys.readouterr().out
    Path("config.yml").unlink()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda question: "Write  calibrate_heads: true  into config.yml?" in question)
    call(*run)
    assert Path("config.yml").read_text() == "calibrate_heads: true\n"
