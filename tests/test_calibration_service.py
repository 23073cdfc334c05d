"The calibration service against a client of its own OpenAPI, against many clients at once, and its latency (ANOMALY_NB_SLOW=1 for full size)."

import multiprocessing
import os
import socket
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")
import httpx
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import negative_data_rejection

from anomaly_nb.calibration.service import create_app, new_key, serve
from anomaly_nb.calibration.store import CalibrationStore
from anomaly_nb.core.settings import Settings

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
KEY, HASH = new_key()
AUTH = {"Authorization": f"Bearer {KEY}"}
DEV = Settings(calibrate_heads=True)


def fill(store, rng, k, n=120):
    for head in ("leather", "grid"):
        store.tag("net", head, [f"{k}_{i}" for i in range(n)], rng.gamma(4, size=n))


@pytest.fixture(scope="module")
def small_app(tmp_path_factory):
    store = CalibrationStore(tmp_path_factory.mktemp("store"), DEV)
    rng = np.random.default_rng(0)
    for k in "ab":
        fill(store, rng, k)
        store.run()
    return create_app(store, HASH, failures=100_000)  # schemathesis tries wrong keys all the time


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_own_openapi(small_app, mode):
    "Requests made from the service's own document, valid and invalid: nothing may fail on the server's side, and answers are as documented."
    schema, tried = schemathesis.openapi.from_asgi("/openapi.json", small_app), 0

    def check(case):
        nonlocal tried
        tried += 1
        response = case.call(headers=AUTH)
        assert response.status_code < 500, (case, response.text)
        case.validate_response(response, headers=AUTH, excluded_checks=[negative_data_rejection])  # it counts the key that is sent here as missing

    for operation in (o.ok() for o in schema.get_all_operations()):
        wanted = hypothesis_settings(max_examples=500 if SLOW else 15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        try:
            wanted(given(operation.as_strategy(generation_mode=mode))(check))()
        except Unsatisfiable:  # an operation without parameters has no invalid form
            assert mode == schemathesis.GenerationMode.NEGATIVE and not operation.body and not operation.query
    print(f"schemathesis, {mode.value}: {tried} requests, no 5xx")


@pytest.mark.parametrize("path, method", [("run", "POST"), ("history", "GET"), ("trend?model=a&head=b", "GET"), ("promote", "POST"), ("retag-all", "POST"), ("jobs", "GET")])
def test_every_route_wants_the_key_and_the_mode(tmp_path, path, method):
    off = TestClient(create_app(CalibrationStore(tmp_path), HASH), raise_server_exceptions=False)
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": f"Bearer {HASH}"}):
        r = off.request(method, f"/admin/calibration/{path}", headers=headers, content=b"{not json")
        assert r.status_code == 401 and r.headers["www-authenticate"] == "Bearer" and r.headers["content-type"] == "application/problem+json"
    r = off.request(method, f"/admin/calibration/{path}", headers=AUTH)
    assert r.status_code == 403 and "calibrate_heads" in r.json()["detail"]


def test_bodies_are_those_of_the_specification(small_app):
    client = TestClient(small_app, headers=AUTH)
    run = client.post("/admin/calibration/run").json()
    assert set(run) == {"status", "calibration"} and run["status"] == "ok"
    assert {"version", "library_size", "heads", "saved_files", "reference_updates", "summary"} <= set(run["calibration"])
    head = run["calibration"]["heads"]["net/leather"]
    assert {"model_name", "head_name", "labels", "drift_metrics", "is_stable", "reference_version"} <= set(head)
    assert set(head["drift_metrics"]) == {"apd_p5", "apd_p95", "srd", "jsd", "median_drift", "iqr_drift", "is_stable", "failed_metrics"}
    assert set(run["calibration"]["summary"]) == {"total_heads", "stable_heads", "unstable_heads"}
    history = client.get("/admin/calibration/history", params={"model": "net", "head": "grid"}).json()
    assert history["status"] == "ok" and history["count"] == len(history["runs"]) > 0
    wanted = "id model_name head_name version file_count timestamp p5 p95 range reference_version apd_p5 apd_p95 srd jsd median_drift iqr_drift is_stable".split()
    assert set(wanted) <= set(history["runs"][0]) and isinstance(history["runs"][0]["is_stable"], bool) and history["runs"][0]["timestamp"] > 1.6e12


def test_errors_show_nothing_of_the_inside(small_app, tmp_path):
    client = TestClient(small_app, headers=AUTH, raise_server_exceptions=False)
    for r in (
        client.get("/admin/calibration/trend", params={"model": "x", "head": "y"}),
        client.post("/admin/calibration/promote", content=b"{"),
        client.post("/admin/calibration/promote", content=b'{"model": "\\ud800", "head": 3}'),
        client.get("/admin/calibration/history", params={"model": "'; DROP TABLE runs"}),
        client.get("/admin/calibration/history?head=a&head=b"),
        client.get("/nowhere"),
        client.put("/health"),
    ):
        assert 400 <= r.status_code < 500 and r.json()["status"] == r.status_code and r.headers["content-type"] == "application/problem+json"
        assert not any(word in r.text for word in ("Traceback", "sqlite", ".py", str(tmp_path.parent)))
    store = CalibrationStore(tmp_path, DEV)
    (tmp_path / "calibration.sqlite").write_bytes(b"no database" * 1000)
    broken = TestClient(create_app(store, HASH), headers=AUTH, raise_server_exceptions=False).get("/admin/calibration/history")
    assert broken.status_code == 500 and broken.json()["detail"] == "the server failed; its log says why"


def test_repeated_wrong_keys_have_to_wait(tmp_path):
    client = TestClient(create_app(CalibrationStore(tmp_path, DEV), HASH))
    codes = [client.get("/admin/calibration/jobs", headers={"Authorization": f"Bearer {i}"}).status_code for i in range(15)]
    assert codes[0] == 401 and codes[-1] == 429
    last = client.get("/admin/calibration/jobs")
    assert last.status_code == 429 and 1 <= int(last.headers["retry-after"]) <= 61
    assert client.get("/admin/calibration/jobs", headers=AUTH).status_code == 200


def free_port():
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    "A real server in a process of its own on the loopback address."
    (tmp_path / "config.yml").write_text("calibrate_heads: true\n")
    store, port = CalibrationStore(tmp_path / "store", DEV), free_port()
    fill(store, np.random.default_rng(0), "start")
    given = {"port": port, "store": tmp_path / "store", "config": tmp_path / "config.yml", "api_key": KEY}
    process = multiprocessing.get_context("spawn").Process(target=serve, kwargs=given, daemon=True)
    process.start()
    url = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.1)
    yield url, store
    process.terminate()
    process.join()


def test_many_clients_lose_nothing(server):
    url, store = server
    clients, seconds = (64, 60) if SLOW else (16, 3)
    stop, codes, acknowledged, errors, times = time.time() + seconds, Counter(), Counter(), [], []

    def client(k):
        rng = np.random.default_rng(k)
        with httpx.Client(base_url=url, headers=AUTH, timeout=60) as http:
            while time.time() < stop:
                what = str(rng.choice(["history", "trend", "run", "promote", "retag", "jobs", "health"], p=[0.35, 0.15, 0.1, 0.1, 0.05, 0.15, 0.1]))
                began = time.perf_counter()
                try:
                    if what == "history":
                        r = http.get("/admin/calibration/history", params={"model": "net", "limit": 20})
                    elif what == "trend":
                        r = http.get("/admin/calibration/trend", params={"model": "net", "head": "leather"})
                    elif what == "run":
                        r = http.post("/admin/calibration/run")
                    elif what == "promote":
                        r = http.post("/admin/calibration/promote", json={"model": "net", "head": "grid", "version": int(rng.integers(1, 4)), "reason": f"client {k}"})
                    elif what == "retag":
                        r = http.post("/admin/calibration/retag-all")
                    else:
                        r = http.get("/admin/calibration/jobs" if what == "jobs" else "/health")
                except Exception as e:
                    errors.append(repr(e))
                    continue
                times.append((what, time.perf_counter() - began))
                codes[what, r.status_code] += 1
                if r.status_code == 200 and what == "run":
                    acknowledged["version", r.json()["calibration"]["version"]] += 1
                if r.status_code == 200 and what == "retag":
                    acknowledged["jobs"] += r.json()["enqueued"]
                if r.status_code == 200 and what == "promote":
                    acknowledged["moves"] += r.json()["from_version"] != r.json()["to_version"]

    def tagger():
        rng, k = np.random.default_rng(99), 0
        while time.time() < stop:
            fill(store, rng, f"t{k}", 60)
            k += 1
            time.sleep(0.5)
        acknowledged["files"] = 120 + 60 * k

    threads = [threading.Thread(target=client, args=(k,)) for k in range(clients)] + [threading.Thread(target=tagger)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with closing(sqlite3.connect(store.root / "calibration.sqlite")) as db:
        count = lambda query: db.execute(query).fetchone()[0]
        versions = {v for (v,) in db.execute("SELECT version FROM runs")}
        moves, jobs, files = count("SELECT count(*) FROM reference_moves WHERE by = 'service'"), count("SELECT count(*) FROM jobs"), count("SELECT count(*) FROM files")
    slowest = {w: f"{np.percentile([s for v, s in times if v == w], 95) * 1000:.0f} ms" for w in sorted({v for v, _ in times})}
    print(f"{clients} clients, {seconds} s: {sum(codes.values())} answers {dict(Counter(c for _, c in codes.elements()))}, {len(versions)} versions, {moves} moves, {jobs} jobs; 95th percentiles {slowest}")
    assert not errors and not [c for _, c in codes if c >= 500], (errors[:3], codes)
    assert {c for _, c in codes} <= {200, 404, 409}
    assert {k[1] for k in acknowledged if k[0] == "version"} <= versions == set(range(1, len(versions) + 1))
    assert (moves, jobs, files) == (acknowledged["moves"], acknowledged["jobs"], acknowledged["files"])
    assert store.repair()["written"] == []


def test_history_over_many_rows(server):
    url, store = server
    rows = 100_000 if SLOW else 20_000
    heads = [f"head_{i}" for i in range(20)]
    with closing(sqlite3.connect(store.root / "calibration.sqlite")) as db:
        versions = rows // 20
        db.executemany("INSERT INTO runs VALUES (?, ?, 0, 1, 0, '{}', '{}')", [(v, str(v)) for v in range(1, versions + 1)])
        db.executemany(
            "INSERT INTO calibration_runs (model_name, head_name, version, file_count, timestamp, p5, p95, range, reference_version, apd_p5, apd_p95, srd, jsd, median_drift, iqr_drift,"
            " is_stable, verdict, reason, proposed, first_score, last_score, detail) VALUES ('net', ?, ?, 1000, 0, .1, .9, .8, 1, .01, .01, .01, .01, .01, .01, 1, 'stable', '', 0, 0, 0, '{}')",
            [(h, v) for v in range(1, versions + 1) for h in heads],
        )
        db.commit()
    with httpx.Client(base_url=url, headers=AUTH) as http:
        for params in ({}, {"model": "net"}, {"head": "head_7"}, {"model": "net", "head": "head_7"}, {"model": "none"}):
            spans = []
            for _ in range(200 if SLOW else 30):
                began = time.perf_counter()
                r = http.get("/admin/calibration/history", params=params)
                spans.append(time.perf_counter() - began)
                assert r.status_code == 200 and r.json()["count"] == (0 if params.get("model") == "none" else 50)
            print(f"history over {rows} rows, {params or 'no filter'}: median {np.median(spans) * 1000:.1f} ms, 95 % {np.percentile(spans, 95) * 1000:.1f} ms")
            assert np.median(spans) < 0.25
