"""What `anomaly-nb drift` says to somebody who has mistyped a name, corrected a score, or named the wrong file; and that
a command that fails has changed nothing.
"""

import re
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly_nb.calibration import CalibrationStore, verdict_table
from anomaly_nb.calibration.drift import drift_metrics, judge_heads
from anomaly_nb.calibration.insight import EVIDENCE, grade, plot_trend
from anomaly_nb.calibration.shifts import METRICS, Thresholds
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.settings import Settings
from tests.commands import run


def write(name, seed=0, n=80, **more):
    "A CSV of scores."
    scores = np.random.default_rng(seed).gamma(4, size=n)
    pd.DataFrame({"image_path": [f"{i}.png" for i in range(n)], "score": scores} | more).to_csv(name, index=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with a store that has a reference of net/leather."
    monkeypatch.chdir(tmp_path)
    write("january.csv")
    code, text, _ = run("drift", "run", "--develop", "--scores", "january.csv", "--model", "net", "--head", "leather")
    assert code == 0, text
    return tmp_path


STORE = ("--store", "data/calibrations")


@pytest.mark.parametrize(("model", "head"), [("net", "lether"), ("nte", "leather")])
def test_a_mistyped_head_is_seen_when_its_scores_are_kept(place, model, head):
    write("february.csv", 1)
    words = "--scores", "february.csv", "--model", model, "--head", head
    code, text, _ = run("drift", "tag", *words, "--out", "out.csv", *STORE)
    assert code == 4 and "80 new scores kept, none decided" in text
    assert text.startswith(f"{model}/{head} is a new head in this store, which held scores of net/leather"), text
    assert f"{model}/{head} has no reference yet; there are references of net/leather" in text
    assert "or correct the name" in text


def test_a_new_head_is_named_beside_those_the_store_held(place):
    write("february.csv", 1)
    _, text, _ = run("drift", "run", "--scores", "february.csv", "--model", "net", "--head", "lether")
    assert "net/lether is a new head in this store, which held scores of net/leather" in text
    _, text, _ = run("drift", "run", "--scores", "february.csv", "--model", "net", "--head", "leather")
    assert "is a new head" not in text


def test_the_first_heads_of_a_store_are_no_surprise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("all.csv", head=["a", "b"] * 40)
    code, text, _ = run("drift", "run", "--develop", "--scores", "all.csv", "--model", "net")
    assert code in (0, 2) and "is a new head" not in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("history", "--head", "lether"), "no head lether in this store; it holds net/leather"),
        (("history", "--model", "nett"), "no model nett in this store; it holds net/leather"),
        (("trend", "net", "lether"), "no head net/lether in this store; it holds net/leather"),
        (("promote", "net", "lether"), "no head net/lether in this store; it holds net/leather"),
        (("extend", "net", "lether"), "no head net/lether in this store; it holds net/leather"),
        (("extend", "nett"), "no model nett in this store; it holds net/leather"),
    ],
)
def test_commands_that_take_a_head_name_those_there_are(place, words, says):
    code, _, error = run("drift", *words)
    assert code != 0 and says in str(error)


def test_the_nearest_names_come_first(tmp_path):
    store = CalibrationStore(tmp_path, Settings(calibrate_heads=True))
    for name in "bottle cable capsule carpet grid hazelnut leather".split():
        store.tag("net", name, ["a"], [1.0])
    with pytest.raises(ValueError, match=r"it holds net/leather, .* and 2 more"):
        store.trend("net", "lether")


def test_a_head_without_a_run_has_no_trend_yet(place):
    write("february.csv", 1)
    run("drift", "tag", "--scores", "february.csv", "--model", "net", "--head", "wood", "--out", "out.csv", *STORE)
    code, text, error = run("drift", "trend", "net", "wood")
    assert code == 0 and "net/wood: no runs yet" in text, error
    code, _, error = run("drift", "trend", "net", "wood", "--plot", "plots/wood.png")
    assert "there is no trend to draw" in str(error) and not (place / "plots").exists()


# ------------------------------------------------------------------------------------------------- corrected scores
def test_a_corrected_score_is_counted(place):
    table = pd.read_csv("january.csv")
    table.loc[[3, 7], "score"] += 1
    table.to_csv("corrected.csv", index=False)
    words = "--model", "net", "--head", "leather"
    _, text, _ = run("drift", "tag", "--scores", "corrected.csv", *words, "--out", "out.csv", *STORE)
    assert "2 scores replace earlier ones of the same files, and 2 of them are of the reference, which stays" in text
    _, text, _ = run("drift", "tag", "--scores", "corrected.csv", *words, "--out", "again.csv", *STORE)
    assert "replace" not in text  # the same once more changes nothing
    _, text, _ = run("drift", "run", "--scores", "january.csv", *words)
    assert "2 new scores of net/leather; 2 scores replace earlier ones of the same files" in text


def test_one_corrected_score_of_a_head_without_reference(place):
    for score in ("1.0", "2.0"):
        (place / "one.csv").write_text(f"file,score\na.png,{score}\n")
        words = "--scores", "one.csv", "--model", "net", "--head", "wood", "--out", "out.csv", *STORE
        _, text, _ = run("drift", "tag", *words)
    assert "1 score replaces an earlier one of the same file" in text


# --------------------------------------------------------------------------------------- what fails changes nothing
BAD = {
    "nan.csv": "image_path,score\na.png,nan\nb.png,\n",
    "columns.csv": "image_path,scoer\na.png,1\n",
    "words.csv": "image_path,score\na.png,1\nb.png,high\n",
    "twice.csv": "image_path,score\na.png,1\na.png,2\n",
    "empty.csv": "",
}


@pytest.mark.parametrize("bad", [*BAD, "absent.csv"])
@pytest.mark.parametrize("after_a_good_one", [False, True])
def test_a_run_that_fails_writes_nothing(tmp_path, monkeypatch, bad, after_a_good_one):
    monkeypatch.chdir(tmp_path)
    write("good.csv")
    for name, text in BAD.items():
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    good = ("--scores", "good.csv") if after_a_good_one and bad != "nan.csv" else ()
    code, _, error = run("drift", "run", "--develop", *good, "--scores", bad, "--model", "net", "--head", "leather")
    assert code != 0 and bad in str(error)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [("--head", "a/b", "--model", "net"), ("--head", "a", "--model", "n t"), ()])
def test_names_are_checked_before_the_settings_are_written(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    write("good.csv")
    code, _, error = run("drift", "run", "--develop", "--scores", "good.csv", *words)
    assert code != 0 and ("cannot be part of a file name" if words else "say which head") in str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["good.csv"]


def test_without_scores_and_store_the_settings_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run("drift", "run", "--develop")
    assert code != 0 and "feed it scores first" in str(error) and not list(tmp_path.iterdir())


def test_a_name_that_differs_by_case_is_refused_before_any_score_is_kept(place):
    write("two.csv", 1, head=["wood", "Leather"] * 40)
    code, _, error = run("drift", "run", "--scores", "two.csv", "--model", "net")
    assert code != 0 and "only by case" in str(error)
    with sqlite3.connect("data/calibrations/calibration.sqlite") as db:
        assert db.execute("SELECT count(*) FROM scores").fetchone()[0] == 80


def test_all_labels_are_read_before_one_is_kept(place):
    write("mood.csv", 1, happy=0.5, sad="low")
    words = "--model", "net", "--head", "mood", "--label", "happy", "--label", "sad", "--out", "out.csv", *STORE
    code, _, error = run("drift", "tag", "--scores", "mood.csv", *words)
    assert code != 0 and "not a number" in str(error)
    with sqlite3.connect("data/calibrations/calibration.sqlite") as db:
        assert db.execute("SELECT count(*) FROM heads").fetchone()[0] == 1


@pytest.mark.parametrize("label", [(), ("--label", "anomalous")])
def test_scores_of_a_table_of_predict_are_its_scores_and_not_its_decisions(place, label):
    "The label of a head with one score is `anomalous`, as the column of 0 and 1 in a table of `predict` is called."
    scores = np.r_[np.linspace(3, 4, 30), np.linspace(90, 99, 10)]
    table = pd.DataFrame({"image_path": [f"new/{i}.png" for i in range(40)], "score": scores})
    table.assign(anomalous=[0, 1] * 20, p_value=0.5).to_csv("today.csv", index=False)
    words = "--scores", "today.csv", "--model", "net", "--head", "leather", *STORE
    code, text, _ = run("drift", "tag", *words, *label, "--out", "out.csv")
    decided = pd.read_csv("out.csv")
    assert code == 3 and decided["score"].tolist() == pytest.approx(scores)
    assert decided["anomalous"].tolist() == [0] * 30 + [1] * 10, text
    with sqlite3.connect("data/calibrations/calibration.sqlite") as db:
        query = "SELECT score FROM scores JOIN files ON files.id = file_id WHERE file LIKE 'new/%' ORDER BY scores.id"
        assert [r[0] for r in db.execute(query)] == pytest.approx(scores)
    code, text, _ = run("drift", "run", *words, *label)  # reads the table the same way: these are known
    assert ("all 40 scores of net/leather are known already" in text) is (not label), text
    with sqlite3.connect("data/calibrations/calibration.sqlite") as db:
        assert not {0.0, 1.0} & {r[0] for r in db.execute("SELECT score FROM scores")}


def test_decisions_alone_are_no_scores(place):
    pd.DataFrame({"file": ["a", "b"], "anomalous": [0, 1]}).to_csv("decided.csv", index=False)
    code, _, error = run(
        "drift", "tag", "--scores", "decided.csv", "--model", "net", "--head", "leather", "--out", "out.csv", *STORE
    )
    assert code != 0 and "column anomalous holds decisions (0, 1), not scores" in str(error)


def test_several_labels_are_never_decided_on_one_score(place):
    "A label without a column took `score`, and so did the next."
    write("mood.csv", 1, happy=np.linspace(1, 2, 80), sad=np.linspace(5, 6, 80))
    words = "--model", "net", "--head", "mood"
    run("drift", "run", "--scores", "mood.csv", *words, "--label", "happy", "--label", "sad")
    write("one.csv", 2)
    code, _, error = run("drift", "tag", "--scores", "one.csv", *words, "--out", "out.csv", *STORE)
    assert code != 0 and "no column happy" in str(error)
    code, _, error = run("drift", "tag", "--scores", "one.csv", *words, "--label", "sad", "--out", "out.csv", *STORE)
    assert code in (0, 3), error  # one label alone may be in `score`, as the help says


# ------------------------------------------------------------------------------------------------ grade and evidence
def test_evidence_agrees_with_the_verdict_where_the_grade_does_not(tmp_path):
    "Twenty heads without drift and few files: many values are graded unstable by chance, and no evidence says so."
    rng, store = np.random.default_rng(0), CalibrationStore(tmp_path, Settings(calibrate_heads=True))
    for batch in range(2):
        for head in range(20):
            drift = 3.0 if head == 7 and batch else 0.0
            store.tag("net", f"h{head:02}", [f"{batch}_{i}" for i in range(60)], rng.gamma(4, size=60) + drift)
        report = store.run()
    table = verdict_table(report)
    moved = set(table["head"][table["evidence"] == "moved beyond chance"])
    assert moved == {name for name, head in report["heads"].items() if head["verdict"] == "unstable"} == {"net/h07"}
    by_chance = table[(table["grade"] == "unstable") & ~table["head"].isin(moved)]
    assert len(by_chance) > 5 and set(by_chance["evidence"]) <= {"within chance", "below its margin"}
    below = table[table["evidence"] == "below its margin"]
    assert (below["high"] < below["margin"]).all() and set(table["evidence"]) <= set(EVIDENCE)


def test_threshold_and_margin_are_named_and_explained(place, monkeypatch):
    "A value above its threshold beside a verdict without drift, and a jsd above its own interval, are no riddle."
    import matplotlib.pyplot as plt

    write("february.csv", 28, image_path=[f"f{i}.png" for i in range(80)])
    code, text, _ = run("drift", "run", "--scores", "february.csv", "--model", "net", "--head", "leather")
    lines = text.splitlines()
    header = next(line for line in lines if line.split()[:2] == ["head", "metric"])
    assert code == 0 and header.split()[-4:] == ["threshold", "margin", "grade", "evidence"]
    jsd = next(line for line in lines if " jsd " in line).split()
    assert float(jsd[2]) > float(jsd[4]) and any("jsd is what the files show, its interval" in line for line in lines)
    assert sum("wider for fewer" in line for line in lines) == 1 and "limit" not in text
    fig = plot_trend(CalibrationStore("data/calibrations").trend("net", "leather"))
    words = " ".join(t.get_text() for legend in fig.legends for t in legend.get_texts())
    assert "threshold (unstable" in words and "margin of its files (stable" in words and "of jsd: what is left" in words
    assert "limit" not in words + fig.get_supylabel()
    plt.close("all")


def test_one_correction_drives_verdict_and_drifted_metrics():
    rng = np.random.default_rng(1)
    pairs = {f"h{i}": (rng.gamma(4, size=100), rng.gamma(4, size=100) + 0.35 * (i < 6)) for i in range(40)}
    alone = {k: drift_metrics(a, b) for k, (a, b) in pairs.items()}
    for result in judge_heads(alone, "bonferroni").values():
        assert bool(result.drifted_metrics) == (result.verdict == "unstable")


def test_a_head_with_its_own_thresholds_is_graded_by_them():
    for metric in METRICS:
        strict, loose = Thresholds(), Thresholds(0.1, 0.5, 0.4, 0.5, 1.0)
        value = 1.5 * strict.of(metric)
        assert grade(metric, value) == grade(metric, value, strict) == "good"
        assert grade(metric, value, loose) == "excellent"


# ------------------------------------------------------------------------------------------------- where results go
@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("january.csv", "is the file that is read, and would be lost"),
        (".", "is a folder; name a file"),
        ("january.csv/out.csv", "january.csv is a file, no folder"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_before_a_score_is_kept(place, out, says):
    before = (place / "january.csv").read_bytes()
    code, _, error = run(
        "drift", "tag", "--scores", "january.csv", "--model", "net", "--head", "wood", "--out", out, *STORE
    )
    assert code != 0 and says in str(error)
    with sqlite3.connect("data/calibrations/calibration.sqlite") as db:
        assert db.execute("SELECT count(*) FROM heads").fetchone()[0] == 1
    assert (place / "january.csv").read_bytes() == before


@pytest.mark.parametrize("plot", ["trend.xyz", "trend", "trend.pdf"])
def test_a_figure_has_the_ending_of_what_is_written(place, plot):
    code, _, error = run("drift", "trend", "net", "leather", "--plot", plot)
    assert code != 0 and "give it the ending .png" in str(error) and not (place / plot).exists()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_huge_score_is_anomalous_without_a_warning(place):
    (place / "huge.csv").write_text("file,score\na.png,1e308\n")
    words = "--scores", "huge.csv", "--model", "net", "--head", "leather", "--out", "out.csv", *STORE
    assert run("drift", "tag", *words)[0] == 3


def test_the_service_of_a_store_says_how_to_ask(tmp_path):
    pytest.importorskip("schemathesis")
    from tests.services import by_curl, command_line, free_port

    port, key = free_port(), "k" * 32
    base = f"http://127.0.0.1:{port}"
    with command_line("drift", "serve", "--port", str(port), key=key, folder=tmp_path) as process:
        assert process.stdout.readline() == "a new store is made in data/calibrations/\n"
        lines = [process.stdout.readline().strip() for _ in range(3)]
        assert lines[0] == f"serving the store data/calibrations at {base}; end with Ctrl-C", lines
        assert lines[1] == f"health: {base}/health; OpenAPI: {base}/openapi.json, with the key"
        answer = by_curl(lines[2], key)
        assert answer.status_code == 200 and "/tag" in str(answer.json()["paths"].keys()) and key not in "".join(lines)


def test_a_service_without_a_key_does_not_say_that_it_serves(place):
    code, text, error = run("drift", "serve", "--store", "other")
    assert code != 0 and "the service needs a key" in str(error) + text and "serving" not in text
    assert not (place / "other").exists()  # nor makes a store


def test_the_help_of_tag_names_every_column(place):
    text = " ".join(run("drift", "tag", "--help")[1].split())
    assert "file, score, anomalous; also label" in text and "value, where some are undecided" in text


def test_an_alarm_is_in_the_headline_the_history_and_the_trend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    drawn = {"a": rng.normal(size=5000), "b": rng.normal(size=5000), "c": rng.normal(0.75, 1, size=100)}
    for name, scores in drawn.items():
        files = [f"{name}{i}.png" for i in range(len(scores))]
        pd.DataFrame({"image_path": files, "score": scores}).to_csv(f"{name}.csv", index=False)
    words = "--model", "net", "--head", "leather"
    assert run("drift", "run", "--develop", "--scores", "a.csv", *words)[0] == 0
    code, quiet, _ = run("drift", "run", "--scores", "b.csv", *words)
    assert code == 0 and "alarm rang" not in quiet
    code, text, _ = run("drift", "run", "--scores", "c.csv", *words)
    assert code == 3 and text.startswith("1 head: 1 alarm rang (stable); not converged"), text
    place = r"(c(\d+)\.png), number (\d+) of the stream"
    begins = re.search(rf"look at the scores since {place}, where the change seems to begin: the sequential alarm", text)
    at = re.search(rf"the sequential alarm rang at {place}", text)
    assert int(at[3]) == 5000 + int(at[2]) + 1  # counted from 1, behind the 5000 of b
    assert int(begins[3]) == 5000 + int(begins[2]) + 1 and int(begins[2]) < 20 < int(at[2]), (begins, at)
    words_of_alarm = (
        f"rang at {at[1]}, number {at[3]} of the stream; the change seems to begin at {begins[1]}, number {begins[3]} "
        "of the stream"
    )
    assert "net/leather, by 5100 files: alarm rang (stable): " in text
    table = run("drift", "history")[1].splitlines()
    assert f" rang at {at[3]}, change from {begins[3]} " in table[1]  # a line of a table has no room for names
    assert " quiet " in table[2] and "rang" not in table[2] + table[3]
    lines = run("drift", "trend", "net", "leather")[1].splitlines()
    assert lines[0] == "net/leather: alarm rang (stable) in version 3, the newest of 3"
    assert "alarm rang (stable): " in lines[3] and "alarm" not in lines[1] + lines[2]
    assert f"; the alarm {words_of_alarm} (" in lines[3]


def test_an_alarm_of_groups_names_the_group(tmp_path):
    rng, store = np.random.default_rng(0), CalibrationStore(tmp_path, Settings(calibrate_heads=True))
    for part, shift in (("a", 0.0), ("b", 4.0)):
        lots = [f"{part}-lot{i // 4}" for i in range(400)]
        store.tag("net", "h", [f"{part}{i}.png" for i in range(400)], rng.normal(size=400) + shift, lots)
        report = store.run()
    alarm = report["heads"]["net/h"]["alarm"]
    assert alarm["rung"] and alarm["group"] == f"b-lot{alarm['at']}" and alarm["file"] == f"b{4 * alarm['at']}.png"
    assert alarm["change_at"] < 3 and alarm["change_group"] == f"b-lot{alarm['change_at']}"
    assert alarm["change_file"] == f"b{4 * alarm['change_at']}.png"


def test_an_earlier_drift_of_another_head_does_not_take_over(place):
    "Its own call ends with 3; from then on it is named, and the heads whose scores are given decide."
    for name in ("february", "march"):
        write(f"{name}.csv", 1, image_path=[f"{name}{i}.png" for i in range(80)])
    drifted = pd.read_csv("february.csv").assign(score=lambda t: t["score"] + 30)
    drifted.to_csv("drifted.csv", index=False)
    call = lambda name, head: run("drift", "run", "--scores", f"{name}.csv", "--model", "net", "--head", head)
    assert call("drifted", "leather")[0] == 3
    code, text, _ = call("march", "nan")
    lines = text.splitlines()
    assert code == 0 and lines[0].startswith("1 of 2 heads: 1 new, ")
    assert "; also unstable since before: net/leather; not converged" in lines[0]
    at = [next(i for i, line in enumerate(lines) if line.startswith(f"net/{h}, by")) for h in ("nan", "leather")]
    assert at[0] < at[1]
    assert run("drift", "run")[0] == 3  # all heads count
    write("april.csv", 2, image_path=[f"april{i}.png" for i in range(80)])
    code, text, _ = call("april", "nan")
    rows = [line.split()[0] for line in text.splitlines() if " jsd " in line]
    assert code == 0 and rows == ["net/nan"] and "since before: net/leather" in text.splitlines()[0]


def test_a_head_that_drifts_for_the_first_time_counts_though_its_scores_came_by_tag(place):
    write("february.csv", 1, image_path=[f"f{i}.png" for i in range(80)])
    drifted = pd.read_csv("february.csv").assign(score=lambda t: t["score"] + 30)
    drifted.to_csv("drifted.csv", index=False)
    words = "--model", "net", "--head", "leather", "--out", "out.csv", *STORE
    assert run("drift", "tag", "--scores", "drifted.csv", *words)[0] == 3
    code, text, _ = run("drift", "run", "--scores", "february.csv", "--model", "net", "--head", "nan")
    assert code == 3 and text.startswith("2 heads: ") and "since before" not in text


def test_the_same_file_again_is_known(place):
    words = "--model", "net", "--head", "leather"
    _, text, _ = run("drift", "run", "--scores", "january.csv", *words)
    assert "january.csv: all 80 scores of net/leather are known already" in text and "0 new" not in text
    write("more.csv", 0, n=90)
    _, text, _ = run("drift", "run", "--scores", "more.csv", *words)
    assert "more.csv: 10 new scores of net/leather; 80 are known already" in text


def test_a_history_has_no_none(place):
    for _ in range(2):
        text = run("drift", "history")[1]
        assert "None" not in text and "nan" not in text.lower() and " - " in text
        assert all(line == line.rstrip() for line in text.splitlines())  # nor an empty last cell
        write("february.csv", 1, image_path=[f"f{i}.png" for i in range(80)])
        run("drift", "run", "--scores", "february.csv", "--model", "net", "--head", "leather")


def test_a_new_store_of_tag_is_said_first_and_nothing_decided_is_4(place):
    words = "--scores", "january.csv", "--model", "net", "--head", "leather", "--out", "out.csv"
    code, text, _ = run("drift", "tag", *words, "--store", "pulled")
    assert code == 4 and text.splitlines()[0] == "a new store is made in pulled/", text
    code, text, _ = run("drift", "tag", *words, "--store", "pulled")
    assert code == 4 and "a new store" not in text and "0 new scores kept (80 known already), none decided" in text
    code, _, error = run("drift", "tag", *words[:4], "--head", "a/b", *words[6:], "--store", "other")
    assert code != 0 and "cannot be part of a file name" in str(error) and not (place / "other").exists()
    (place / "config.yml").write_text("calibrate_heads: false\n")
    code, _, error = run("drift", "tag", *words, "--store", "pulld")
    assert code != 0 and "no such file; there are no references" in str(error) and not (place / "pulld").exists()


def test_a_packed_set_is_pulled_by_the_line_that_pack_prints(place):
    code, text, _ = run("drift", "pack", "data/calibrations", "SET.ZIP")
    assert code == 0 and (place / "SET.ZIP").is_file() and text.startswith("1 reference file of data/calibrations")
    line = next(line for line in text.splitlines() if "drift pull" in line).split("anomaly-nb ")[1].split()
    assert run(*line, "--into", "pulled")[0] == 0 and list((place / "pulled").rglob("leather-calibration.json"))
    (place / "bare/net/heads").mkdir(parents=True)
    source = place / "pulled/net/heads/leather-calibration.json"
    (place / "bare/net/heads/leather-calibration.json").write_bytes(source.read_bytes())
    assert "anomaly-nb drift pack STORE OUT.zip" in str(run("drift", "pull", "bare")[2])


def test_extend_says_by_its_exit_code_whether_anything_was_pooled(place):
    code, text, _ = run("drift", "extend")
    assert code == 4 and text.startswith("net/leather: not pooled: "), text
    write("february.csv", 1, image_path=[f"february{i}.png" for i in range(80)])
    assert run("drift", "run", "--scores", "february.csv", "--model", "net", "--head", "leather")[0] == 0
    code, text, _ = run("drift", "extend")
    assert code == 0 and "net/leather: pooled with the files of version 2: 80 -> 160" in text, text
    assert run("drift", "extend")[0] == 4
    text = run("drift", "extend", "--help")[1]
    assert "4 none was" in " ".join(text.split())


def test_tag_says_that_the_scores_are_kept_and_what_it_writes_over(place):
    write("today.csv", 1, image_path=[f"today{i}.png" for i in range(80)])
    call = "drift", "tag", "--scores", "today.csv", "--model", "net", "--head", "leather", "--out", "decided.csv"
    first, second = run(*call, *STORE)[1], run(*call, *STORE)[1]
    kept = "the scores are kept in the store data/calibrations/, and its next run counts them"
    assert kept in first and kept in second and "is replaced" not in first
    assert "note: decided.csv was there before, and is replaced" in second
    assert "counts them" in " ".join(run("drift", "tag", "--help")[1].split())
    run("drift", "run")
    trend, pack = ("trend", "net", "leather", "--plot"), ("pack", "data/calibrations")
    for place_of, words in (("trend.png", trend), ("set.zip", pack)):
        outputs = [run("drift", *words, place_of)[1] for _ in range(2)]
        assert ["is replaced" in text for text in outputs] == [False, True], outputs


def test_promote_moves_nothing_in_production_and_says_where_nothing_moves(place):
    words = "drift", "promote", "net", "leather", "--version", "1"
    assert run(*words)[:2] == (0, "net/leather: v1 is the reference already; nothing has moved\n")
    write("february.csv", 1, image_path=[f"february{i}.png" for i in range(80)])
    run("drift", "run", "--scores", "february.csv", "--model", "net", "--head", "leather")
    settings = Path("config.yml").read_text()
    Path("config.yml").write_text(settings.replace("calibrate_heads: true", "calibrate_heads: false"))
    code, _, error = run("drift", "promote", "net", "leather", "--version", "2")
    assert code and str(error).startswith("calibration runs are for development: set calibrate_heads: true in config.yml")
    store = CalibrationStore("data/calibrations", Settings())
    with pytest.raises(DataError, match="references move in development: set calibrate_heads: true"):
        store.promote("net", "leather", 2)
    Path("config.yml").write_text(settings)
    code, text, _ = run("drift", "promote", "net", "leather", "--version", "2")
    assert code == 0 and text.startswith("net/leather: reference v1 -> v2. Decide again about old files with")


def test_a_head_that_was_pulled_alone_can_be_forgotten(place):
    write("february.csv", 1)
    words = "--scores", "february.csv", "--model", "net", "--head", "leather"
    assert run("drift", "pack", "data/calibrations", "set.zip")[0] == 0
    run("drift", "run", "--develop", *words[:-1], "wood", "--store", "line")
    assert run("drift", "pull", "set.zip", "--into", "line")[0] == 0
    file = place / "line/net/heads/leather-calibration.json"
    assert file.is_file() and run("drift", "tag", *words, "--out", "out.csv", "--store", "line")[0] in (0, 3)
    with sqlite3.connect("line/calibration.sqlite") as db:
        db.execute("DELETE FROM tags WHERE head_id = 2"), db.execute("DELETE FROM scores WHERE head_id = 2")
        db.execute("UPDATE heads SET digest = '' WHERE id = 2")  # as right after it was pulled
    code, text, error = run("drift", "forget", "net", "leather", "--store", "line", "--yes")
    assert code == 0, (text, error)
    assert not file.exists() and (place / "line/net/heads/wood-calibration.json").is_file()
    assert run("drift", "tag", *words, "--out", "out.csv", "--store", "line")[0] == 4  # kept, and not decided
    assert "no head net/wod in this store" in str(run("drift", "forget", "net", "wod", "--store", "line", "--yes")[2])
