"""The calibration service against a client of its own OpenAPI, against many clients at once, and its latency
(ANOMALY_NB_SLOW=1 for full size).
"""

import multiprocessing
import os
import socket
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")
import httpx
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from anomaly_nb.calibration.keys import Keys, add_key, drop_key, keys_of, new_key
from anomaly_nb.calibration.service import create_app, run_service
from anomaly_nb.calibration.store import CalibrationStore
from anomaly_nb.core.errors import DataError, Notice
from anomaly_nb.core.settings import Settings, load_settings, update_settings
from tests.commands import run
from tests.services import conforms, every_ending, free_port, mounted, no_answer, places

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
KEY, HASH = new_key()
AUTH = {"Authorization": f"Bearer {KEY}"}
DEV = Settings(calibrate_heads=True)


def fill(store, rng, k, n=120):
    for head in ("leather", "grid"):
        store.tag("net", head, [f"{k}_{i}" for i in range(n)], rng.gamma(4, size=n))


def made(folder):
    "The service of a store with two runs over two heads."
    store = CalibrationStore(folder, DEV)
    rng = np.random.default_rng(0)
    for k in "ab":
        fill(store, rng, k)
        store.run()
    return create_app(store, HASH, failures=100_000)  # schemathesis tries wrong keys all the time


@pytest.fixture(scope="module")
def small_app(tmp_path_factory):
    return made(tmp_path_factory.mktemp("store"))


def test_unknown_addresses_take_no_place(small_app):
    "As many as there are places, and more: 404 every time, and the store still answers."
    statuses = every_ending(small_app, AUTH, "/admin/calibration/retag-all", b"")
    assert statuses >= {401, 404, 405, 422} and 503 not in statuses


@pytest.mark.parametrize("place", ["plain", "mounted"])
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_own_openapi(small_app, mode, place):
    """Requests made from the service's own document, valid and invalid: nothing may fail on the server's side, and
    answers are as documented.
    """
    app, root = (small_app, "") if place == "plain" else (mounted(small_app), "/api/v2")
    document = TestClient(app, headers=AUTH).get(f"{root}/openapi.json").json()
    assert document.get("servers", [{"url": ""}]) == [{"url": root}]
    conforms(app, document, mode, AUTH, 500 if SLOW else 8)


@pytest.mark.parametrize(
    "path, method",
    [
        ("run", "POST"),
        ("history", "GET"),
        ("trend?model=a&head=b", "GET"),
        ("promote", "POST"),
        ("extend", "POST"),
        ("retag-all", "POST"),
        ("jobs", "GET"),
    ],
)
def test_every_route_wants_the_key_and_the_mode(tmp_path, path, method):
    off = TestClient(create_app(CalibrationStore(tmp_path), HASH), raise_server_exceptions=False)
    for headers in (
        {},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {HASH}"},
    ):
        r = off.request(method, f"/admin/calibration/{path}", headers=headers, content=b"{not json")
        assert (
            r.status_code == 401
            and r.headers["www-authenticate"] == "Bearer"
            and r.headers["content-type"] == "application/problem+json"
        )
    r = off.request(method, f"/admin/calibration/{path}", headers=AUTH)
    assert r.status_code == 403 and "calibrate_heads" in r.json()["detail"]


@pytest.mark.parametrize("gone", ["drift", "drift/calibration.sqlite"], ids=["folder", "database"])
@pytest.mark.parametrize("settings", [DEV, Settings()], ids=["development", "production"])
def test_a_store_that_is_away_is_said_and_none_is_made_in_its_place(tmp_path, gone, settings):
    "Moved under a running service: 503 until it is back, where an empty store took the scores before."
    app = made(tmp_path / "drift")
    line = create_app(CalibrationStore(tmp_path / "drift", settings), HASH)
    client = TestClient(line, headers=AUTH, raise_server_exceptions=False)
    developer = TestClient(app, headers=AUTH, raise_server_exceptions=False)
    score = {"model": "net", "head": "leather", "items": [{"file": "new.png", "score": 4.0}]}
    asked = [
        (client, "POST", "/tag", score),
        (client, "POST", "/tag", score | {"head": "other", "new_head": True}),
        (client, "GET", "/health", None),
        *((developer, m, f"/admin/calibration/{p}", None) for m, p in (("POST", "run"), ("GET", "history"))),
        *((developer, "POST", f"/admin/calibration/{p}", {}) for p in ("extend", "retag-all")),
    ]
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    for of, method, path, body in asked:
        r = of.request(method, path, json=body)
        assert r.status_code == 503 and "away" in r.json()["detail"] and r.headers["retry-after"], (path, r.text)
        assert not (tmp_path / gone).exists(), path
    (tmp_path / "elsewhere").rename(tmp_path / gone)
    assert client.post("/tag", json=score).json()["decisions"][0]["anomalous"] is not None
    store = CalibrationStore(tmp_path / "drift")
    assert store.table("SELECT count(*) AS n FROM files WHERE file = 'new.png'")["n"].tolist() == [1]
    assert client.get("/health").status_code == 200


def test_bodies_are_those_of_the_specification(tmp_path):
    client = TestClient(made(tmp_path), headers=AUTH)  # of its own: invented scores of other tests would be heads too
    away = client.get("/nowhere")
    assert away.status_code == 404 and away.headers["content-type"] == "application/problem+json"
    run = client.post("/admin/calibration/run").json()
    assert set(run) == {"status", "calibration"} and run["status"] == "ok"
    assert {"version", "library_size", "heads", "saved_files", "reference_updates", "summary"} <= set(
        run["calibration"]
    )
    head = run["calibration"]["heads"]["net/leather"]
    assert {"model_name", "head_name", "labels", "drift_metrics", "is_stable", "reference_version"} <= set(head)
    assert set(head["drift_metrics"]) == {
        "apd_p5",
        "apd_p95",
        "srd",
        "jsd",
        "median_drift",
        "iqr_drift",
        "is_stable",
        "failed_metrics",
    }
    summary = run["calibration"]["summary"]
    assert {"total_heads", "stable_heads", "unstable_heads", "verdicts", "references", "converged"} <= set(summary)
    assert summary["total_heads"] == sum(summary["verdicts"].values()) == sum(summary["references"].values()) == 2
    history = client.get("/admin/calibration/history", params={"model": "net", "head": "grid"}).json()
    assert history["status"] == "ok" and history["count"] == len(history["runs"]) > 0
    wanted = "id model_name head_name version file_count timestamp p5 p95 range reference_version apd_p5 apd_p95 srd jsd median_drift iqr_drift is_stable".split()
    assert (
        set(wanted) <= set(history["runs"][0])
        and isinstance(history["runs"][0]["is_stable"], bool)
        and history["runs"][0]["timestamp"] > 1.6e12
    )


def test_scores_are_tagged_in_both_modes(tmp_path):
    rng, store = np.random.default_rng(0), CalibrationStore(tmp_path, DEV)
    fill(store, rng, "a")
    store.run()
    names, scores = [f"x{i}" for i in range(1000)], rng.gamma(5, size=1000)
    wish = {
        "model": "net",
        "head": "leather",
        "items": [{"file": n, "score": s} for n, s in zip(names, scores.tolist())] + [{"file": "gap", "score": None}],
    }
    answers = []
    for mode in (True, False):
        client = TestClient(create_app(CalibrationStore(tmp_path, Settings(calibrate_heads=mode)), HASH), headers=AUTH)
        answers.append(client.post("/tag", json=wish).json()["decisions"])
        assert client.post("/tag", json=wish, headers={"Authorization": "Bearer no"}).status_code == 401
        r = client.post(
            "/tag", json=wish | {"head": "wood", "new_head": True}
        )  # no reference: kept for its first run, or told which heads there are
        typo = client.post("/tag", json=wish | {"head": "lether"})
        assert typo.status_code == 404 and "net/leather" in typo.json()["detail"]
        if mode:
            assert typo.json()["detail"].endswith('correct the name, or send "new_head": true')
            assert (
                r.status_code == 200
                and r.json()["message"]
                == "1001 new scores kept, none decided: net/wood has no reference yet; there are references of net/grid, "
                "net/leather; make a calibration run, or correct the name"
            )
            assert {d["anomalous"] for d in r.json()["decisions"]} == {None}
        else:
            assert (
                r.status_code == 404
                and r.json()["detail"]
                == "net/wood has no reference here; there are references of net/grid, net/leather; pull calibrations, or make a calibration run"
            )
        assert client.post("/tag", json=wish | {"items": wish["items"][:1] * 2}).status_code == 409
        assert client.post("/tag", json=wish | {"label": "happy"}).status_code == 409
    assert answers[0] == answers[1] and answers[0][-1] == {
        "file": "gap",
        "score": None,
        "anomalous": None,
        "value": None,
    }
    tags = (
        store.table(
            "SELECT file, anomalous FROM tags JOIN files ON files.id = file_id JOIN heads ON heads.id = head_id WHERE file LIKE 'x%' AND head_name = 'leather'"
        )
        .set_index("file")
        .anomalous
    )
    assert len(tags) == 1000 and all(tags[d["file"]] == d["anomalous"] for d in answers[0][:-1])


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
        assert (
            400 <= r.status_code < 500
            and r.json()["status"] == r.status_code
            and r.headers["content-type"] == "application/problem+json"
        )
        assert not any(word in r.text for word in ("Traceback", "sqlite", ".py", str(tmp_path.parent)))
    store = CalibrationStore(tmp_path, DEV)
    (tmp_path / "calibration.sqlite").write_bytes(b"no database" * 1000)
    broken = TestClient(create_app(store, HASH), headers=AUTH, raise_server_exceptions=False).get(
        "/admin/calibration/history"
    )
    assert broken.status_code == 500 and broken.json()["detail"] == "the server failed; its log says why"


def test_repeated_wrong_keys_have_to_wait(tmp_path):
    client = TestClient(create_app(CalibrationStore(tmp_path, DEV), HASH))
    codes = [
        client.get("/admin/calibration/jobs", headers={"Authorization": f"Bearer {i}"}).status_code for i in range(15)
    ]
    assert codes[0] == 401 and codes[-1] == 429
    last = client.get("/admin/calibration/jobs")
    assert last.status_code == 429 and 1 <= int(last.headers["retry-after"]) <= 61
    assert client.get("/admin/calibration/jobs", headers=AUTH).status_code == 200


ROUTES = [
    ("POST", "run"),
    ("GET", "history"),
    ("GET", "trend?model=a&head=b"),
    ("POST", "promote"),
    ("POST", "extend"),
    ("POST", "retag-all"),
    ("GET", "jobs"),
]


def test_no_key_no_answer_wherever_it_is_mounted(small_app):
    """Every route but health, mangled in every way that proxies and attackers know: 401, and never an answer; with the
    key the straight path works.
    """
    before = TestClient(small_app, headers=AUTH).get("/admin/calibration/history").json()
    routes = [(method, f"/admin/calibration/{path}") for method, path in ROUTES] + [
        ("POST", "/tag"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
    ]
    no_answer(small_app, routes, "/admin/calibration", ("GET", "POST", "PUT", "HEAD", "OPTIONS") if SLOW else ())
    for name, client, prefix in places(small_app, "/admin/calibration"):
        assert (
            client.get(f"{prefix}/admin/calibration/history", headers=AUTH).status_code
            == client.get(f"{prefix}/openapi.json", headers=AUTH).status_code
            == 200
        ), name
    assert TestClient(small_app, headers=AUTH).get("/admin/calibration/history").json() == before


def walk(routes, prefix=""):
    "Every route of an application with those of the applications mounted in it."
    for route in routes:
        if getattr(route, "routes", None):
            yield from walk(route.routes, prefix + route.path)
        else:
            yield prefix + route.path, route


@pytest.mark.parametrize("place", ["plain", "mounted"])
def test_every_route_has_its_guard(tmp_path, place):
    """Walks all routes there are: each is of a type that asks its guard, each but health refuses without a key, and no
    other can be registered.
    """
    app = create_app(CalibrationStore(tmp_path, DEV), HASH, failures=100)
    outer = app if place == "plain" else mounted(app)
    own = [(path, r) for path, r in walk(outer.routes) if r in app.router.routes]
    assert len(own) == len(app.router.routes) == 10
    assert [path.removeprefix("/api/v2") for path, r in own if not r.needs_key] == ["/health"]
    for path, route in own:
        assert all(
            TestClient(outer).request(m, path).status_code == (401 if route.needs_key else 200) for m in route.methods
        ), path
    plain = APIRouter()
    plain.get("/y")(lambda: 1)
    for register in (
        lambda: app.add_route("/x", lambda r: None),
        lambda: app.mount("/x", FastAPI()),
        lambda: app.host("x", FastAPI()),
        lambda: app.include_router(plain),
        lambda: app.add_api_websocket_route("/x", lambda s: None),
        lambda: app.router.routes.extend(plain.routes),
        lambda: app.router.routes.insert(0, plain.routes[0]),
        lambda: app.router.routes.__setitem__(0, plain.routes[0]),
        lambda: app.router.routes.__iadd__(plain.routes),
    ):
        with pytest.raises(TypeError, match="without a guard"):
            register()
    app.get("/late")(lambda: 1)
    app.add_api_route("/later", lambda: 1)
    assert len(app.router.routes) == 12 and {TestClient(app).get(p).status_code for p in ("/late", "/later")} == {401}
    assert (
        TestClient(create_app(CalibrationStore(tmp_path, DEV), HASH, public_schema=True))
        .get("/openapi.json")
        .status_code
        == 200
    )


def deep(n):
    return b'{"model": ' + b"[" * n + b"]" * n + b"}"


def chunks(*parts):
    yield from parts


BODIES = {
    "deep": (422, deep(5000)), "too deep to be meant": (422, deep(101)), "UTF-16": (422, '{"model": "net", "head": "grid"}'.encode("utf-16")), "no UTF-8": (422, b'{"model": "\xff"}'),
    "no JSON": (422, b"model=net"), "NaN": (422, b'{"model": "net", "head": "grid", "version": NaN}'), "huge number": (422, b'{"model": "net", "head": "grid", "version": ' + b"9" * 5000 + b"}"),
    "half a character": (422, b'{"model": "\\ud800", "head": "grid"}'), "a list": (422, b"[]"), "a number": (422, b"1"), "null": (422, b"null"), "wrong types": (422, b'{"model": {"a": 1}, "head": [1]}'),
    "a bool for a number": (422, b'{"model": "net", "head": "grid", "version": 1.5}'), "empty": (422, b""), "large": (413, b" " * 16_385), "large and chunked": (413, [b" " * 4096] * 5),
    "chunked": (409, [b'{"model": "net", ', b'"head": "grid"}']),
}  # fmt: skip


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "text/plain", "multipart/form-data; boundary=x", "application/json; charset=utf-16", ""],
)
def test_hostile_bodies(small_app, content_type):
    """One sentence and a 4xx for every body, however it is sent and whatever it says it is; its bytes are counted
    before they are parsed.
    """
    for name, (status, body) in BODIES.items():
        for client, root in ((TestClient(small_app), ""), (TestClient(mounted(small_app)), "/api/v2")):
            for path in ("promote", "run") if status == 413 else ("promote",):
                r = client.post(
                    f"{root}/admin/calibration/{path}",
                    content=chunks(*body) if isinstance(body, list) else body,
                    headers=AUTH | ({"Content-Type": content_type} if content_type else {}),
                )
                wanted = status if content_type.startswith("application/json") or status != 409 else 422
                assert (
                    r.status_code == wanted
                    and r.json()["status"] == wanted
                    and "\n" not in r.json()["detail"]
                    and "Traceback" not in r.text
                ), (name, content_type, r.status_code, r.text)
    r = TestClient(small_app).post("/admin/calibration/promote", content=chunks(*[b" " * 4096] * 5))
    assert r.status_code == 401  # before a byte is counted


UNKNOWN = {
    "admin/calibration/promote": {"model": "net", "head": "grid", "versoin": 1},
    "admin/calibration/extend": {"modle": "net"},
    "admin/calibration/run": {"model": "net"},
    "admin/calibration/retag-all": {"model": "net"},
    "tag": {"model": "net", "head": "grid", "items": [{"file": "a", "score": 1.0}], "lable": "x"},
}


@pytest.mark.parametrize("path", UNKNOWN)
def test_a_field_or_parameter_that_is_not_known_is_named_and_nothing_is_done(tmp_path, path):
    client = TestClient(made(tmp_path), headers=AUTH)
    before = client.get("/admin/calibration/history").json()
    r = client.post(f"/{path}", json=UNKNOWN[path])
    wrong = list(UNKNOWN[path])[-1]
    assert (r.status_code, r.json()["detail"].partition(",")[0]) == (422, f"body.{wrong}: not a field of this request")
    r = client.post(f"/{path}?versoin=1", json={k: v for k, v in UNKNOWN[path].items() if k != wrong})
    assert (r.status_code, r.json()["detail"]) == (422, "query.versoin: not a parameter of this request")
    assert client.get("/admin/calibration/history").json() == before
    assert client.get("/admin/calibration/history?modle=net").json()["detail"].startswith("query.modle:")
    assert client.get("/admin/calibration/history?mod%65l=net").status_code == 200
    item = {"file": "a", "score": 1.0, "scroe": 2.0}
    r = client.post("/tag", json={"model": "net", "head": "grid", "items": [item]})
    assert (r.status_code, r.json()["detail"]) == (422, "body.items.0.scroe: not a field of this request")


@pytest.mark.parametrize("sent", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_under_another_content_type_is_told_which_to_send(small_app, sent):
    r = TestClient(small_app, headers=AUTH | ({"Content-Type": sent} if sent else {})).post(
        "/admin/calibration/promote", content=b'{"model": "net", "head": "grid"}'
    )
    assert r.status_code == 422 and r.json()["detail"] == (
        f"{f'Content-Type is {sent}' if sent else 'there is no Content-Type'}; send the JSON with  Content-Type: "
        "application/json"
    )


def test_keys_are_named_rotated_and_revoked_while_it_runs(tmp_path):
    store, config = CalibrationStore(tmp_path / "store", DEV), tmp_path / "config.yml"
    fill(store, np.random.default_rng(0), "a")
    store.run()
    fill(store, np.random.default_rng(1), "b")
    store.run()
    (one, one_hash), (two, two_hash) = new_key(), new_key()
    update_settings(config, {"calibrate_heads": True, "calibration_api_keys": {"line3": one_hash}})
    client = TestClient(create_app(store, config=config))
    status = lambda key: client.get("/admin/calibration/jobs", headers={"Authorization": f"Bearer {key}"}).status_code
    assert (status(one), status(two)) == (200, 401)
    update_settings(config, {"calibration_api_keys": {"anna": two_hash}})
    assert (status(one), status(two)) == (200, 200)
    moved = client.post(
        "/admin/calibration/promote",
        json={"model": "net", "head": "grid", "version": 2, "reason": "new lamp"},
        headers={"Authorization": f"Bearer {two}"},
    )
    assert moved.status_code == 200
    update_settings(config, {"calibration_api_keys": {"anna": None}})
    assert (status(one), status(two)) == (200, 401) and client.get("/health").status_code == 200
    rows = client.get(
        "/admin/calibration/history", params={"head": "grid"}, headers={"Authorization": f"Bearer {one}"}
    ).json()["runs"]
    assert [[m["by"] for m in r["moves"]] for r in rows] == [["service: anna"], ["review"]] and rows[0]["moves"][0][
        "reason"
    ] == "new lamp"
    assert abs(rows[0]["moves"][0]["timestamp"] / 1000 - time.time()) < 60
    assert store.table("SELECT by FROM reference_moves ORDER BY id DESC LIMIT 1").by[0] == "service: anna"
    text = config.read_text()
    config.write_text("calibration_api_keys: [")  # nobody is admitted while it cannot be read
    assert (status(one), status(two)) == (503, 503)
    watched = client.get("/health")  # whoever watches the service sees it, without why
    assert watched.status_code == 503 and watched.json()["detail"] == "degraded: no key can be read, so nobody is served"
    config.write_text(text)
    assert status(one) == 200
    config.unlink()
    assert status(one) == 401 and client.get("/health").status_code == 503
    assert one not in text and one_hash in text


@pytest.mark.parametrize("where", ["field", "mapping", "both", "revoked once by an earlier version"])
def test_a_key_named_default_is_one_key_wherever_it_stands(tmp_path, where):
    config, (key, hashed), (other, other_hash) = tmp_path / "config.yml", new_key(), new_key()
    field, entry = {"calibration_api_key_sha256": hashed}, {"calibration_api_keys": {"default": hashed}}
    text = {"field": field, "mapping": entry, "both": field | entry}
    revoked = {"calibration_api_key_sha256": None} | entry  # what a revocation of the entry left behind
    update_settings(config, {"calibrate_heads": True} | text.get(where, revoked))
    keys = Keys({"elsewhere": other_hash}, config)
    if where not in text:  # it stays revoked
        with pytest.warns(Notice, match="calibration_api_keys: default is not in force"):
            assert keys.name_of(f"Bearer {key}") is None
        return
    assert keys.name_of(f"Bearer {key}") == "default" and keys.name_of(f"Bearer {other}") == "elsewhere"
    drop_key(config, "default")
    assert keys.name_of(f"Bearer {key}") is None and keys_of(load_settings(config)) == {}
    with pytest.raises(DataError, match="holds no key 'default'"):
        drop_key(config, "default")
    new = add_key(config)
    assert (keys.name_of(f"Bearer {new}"), keys.name_of(f"Bearer {key}")) == ("default", None)


def test_the_key_of_the_environment_shuts_out_no_key_of_the_file_and_stays_when_that_is_revoked(tmp_path, monkeypatch):
    config, (fixed, fixed_hash) = tmp_path / "config.yml", new_key()
    monkeypatch.setenv("ANOMALY_NB_API_KEY", fixed)
    stays = "the key in ANOMALY_NB_API_KEY is valid as default too, until a service is started without that variable"
    code, text, _ = run("drift", "serve", "--new-key", "--config", config)
    key = text.split()[5]
    keys = Keys({"default": fixed_hash}, config)
    assert (code, text.splitlines()[1]) == (0, f"its hash is in {config}; {stays}")
    assert keys.name_of(f"Bearer {key}") == keys.name_of(f"Bearer {fixed}") == "default"
    code, text, _ = run("drift", "serve", "--drop-key", "default", "--config", config)
    assert (code, text) == (0, f"the key default is revoked in {config}; {stays}\n")
    assert keys.name_of(f"Bearer {key}") is None and keys.name_of(f"Bearer {fixed}") == "default"
    assert stays not in run("drift", "serve", "--new-key", "--name", "line3", "--config", config)[1]


def test_the_service_takes_store_and_settings_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANOMALY_NB_STORE", "kept")
    monkeypatch.setenv("ANOMALY_NB_CONFIG", "line.yml")
    assert run("drift", "serve", "--new-key")[1].splitlines()[1] == "its hash is in line.yml"
    seen = []
    monkeypatch.setattr("anomaly_nb.calibration.service.settings_app", lambda s: seen.append((s.store, s.config)))
    monkeypatch.setattr("anomaly_nb.calibration.service.run_app", lambda *_: None)
    assert run("drift", "serve", "--port", str(free_port()))[0] == 0
    assert run("drift", "serve", "--port", str(free_port()), "--store", "other", "--config", "line.yml")[0] == 0
    assert seen == [(Path("kept"), Path("line.yml")), (Path("other"), Path("line.yml"))]


def test_a_second_default_is_pointed_out_and_replaces_nothing(tmp_path):
    config, (key, hashed), (other, other_hash) = tmp_path / "config.yml", new_key(), new_key()
    both = {"calibration_api_key_sha256": hashed, "calibration_api_keys": {"default": other_hash, "anna": other_hash}}
    update_settings(config, both)
    keys = Keys({}, config)
    with pytest.warns(Notice, match="default is not in force beside calibration_api_key_sha256; remove it, or give"):
        assert keys.name_of(f"Bearer {key}") == "default" and keys.name_of(f"Bearer {other}") == "anna"
    newest = add_key(config, "default")
    assert {name for name, _ in keys.now()} == {"default", "anna"} and keys.name_of(f"Bearer {newest}") == "default"
    assert load_settings(config).calibration_api_keys["default"] is None


def test_extend_pools_and_says_who_asked(tmp_path):
    store, rng = CalibrationStore(tmp_path, DEV), np.random.default_rng(0)
    client = TestClient(create_app(store, HASH), headers=AUTH)
    assert client.post("/admin/calibration/extend").json() == {"status": "ok", "heads": {}}
    for k in "ab":
        fill(store, rng, k)
        store.run()
    told = client.post("/admin/calibration/extend", json={"model": "net", "head": "grid"}).json()["heads"]
    assert told == {"net/grid": "pooled with the files of version 2: 120 -> 240"}
    row = client.get("/admin/calibration/history", params={"head": "grid", "limit": 1}).json()["runs"][0]
    assert row["version"] == 3 and row["file_count"] == 240
    assert [(m["by"], m["from_version"], m["reason"]) for m in row["moves"]] == [
        ("service: default", 1, told["net/grid"])
    ]
    assert set(client.post("/admin/calibration/extend").json()["heads"]) == {"net/grid", "net/leather"}
    assert client.post("/admin/calibration/extend", json={"model": "net", "head": "wood"}).status_code == 404
    off = TestClient(create_app(CalibrationStore(tmp_path), HASH))
    assert (
        off.post("/admin/calibration/extend").status_code == 401
        and off.post("/admin/calibration/extend", headers=AUTH).status_code == 403
    )


@pytest.fixture
def server(tmp_path):
    "A real server in a process of its own on the loopback address."
    (tmp_path / "config.yml").write_text("calibrate_heads: true\n")
    store, port = CalibrationStore(tmp_path / "store", DEV), free_port()
    fill(store, np.random.default_rng(0), "start")
    given = {
        "port": port,
        "store": tmp_path / "store",
        "config": tmp_path / "config.yml",
        "api_key": KEY,
        "request_seconds": 1.0,
    }
    process = multiprocessing.get_context("spawn").Process(target=run_service, kwargs=given, daemon=True)
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


HALVES = {
    "nothing": b"",
    "half a header": b"POST /admin/calibration/promote HTTP/1.1\r\nHost: x\r\nAuth",
    "half a body": f"POST /admin/calibration/promote HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n{{".encode(),
    "half a chunk": f"POST /admin/calibration/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{{".encode(),
    "half a body without a key": b"POST /admin/calibration/promote HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    "half a body of health": b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    "half a second request": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea",
    "endless chunks": f"POST /admin/calibration/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"1000\r\n" + b" " * 4096 + b"\r\n" + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 50,
}  # fmt: skip


def test_half_sent_requests_are_dropped(server):
    """Over a real socket, all at once: after the stated second the connection is closed, and meanwhile others are
    served.
    """
    url, _ = server
    port, began, closed, answers = int(url.rsplit(":", 1)[1]), time.monotonic(), {}, {}

    def send(name, data):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
            said = b""
            try:
                s.sendall(data)
                while part := s.recv(65536):
                    said += part
            except ConnectionError:
                pass
            closed[name], answers[name] = time.monotonic() - began, said

    def drip():
        "A header line every tenth of a second, for ever."
        with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
            s.settimeout(0.1)
            s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            with suppress(ConnectionError):
                while True:
                    s.sendall(b"X-Slow: 1\r\n")
                    try:
                        if not s.recv(10):
                            break
                    except TimeoutError:
                        pass
            closed["drip"] = time.monotonic() - began

    threads = [threading.Thread(target=send, args=pair) for pair in HALVES.items()] + [threading.Thread(target=drip)]
    for t in threads:
        t.start()
    assert (
        httpx.get(f"{url}/health").status_code == 200
        and httpx.post(f"{url}/admin/calibration/run", headers=AUTH).status_code == 200
    )
    for t in threads:
        t.join()
    code = {k: int(v.split(b" ")[1]) if v else None for k, v in answers.items()}
    print({k: (round(s, 1), code.get(k)) for k, s in closed.items()})
    assert max(closed.values()) < 8 and len(closed) == len(HALVES) + 1
    assert code == {
        "nothing": None,
        "half a header": None,
        "half a body": 408,
        "half a chunk": 408,
        "half a body without a key": 401,
        "half a body of health": 408,
        "half a second request": 200,
        "endless chunks": 413,
    }


def test_many_clients_lose_nothing(server):
    url, store = server
    clients, seconds = (64, 60) if SLOW else (16, 3)
    stop, codes, acknowledged, errors, times = time.time() + seconds, Counter(), Counter(), [], []

    def client(k):
        rng = np.random.default_rng(k)
        with httpx.Client(base_url=url, headers=AUTH, timeout=60, verify=False) as http:
            for asked in count():
                if asked >= 10 and time.time() > stop:
                    return
                what = str(
                    rng.choice(
                        ["history", "trend", "run", "promote", "retag", "jobs", "health"],
                        p=[0.35, 0.15, 0.1, 0.1, 0.05, 0.15, 0.1],
                    )
                )
                began = time.perf_counter()
                try:
                    if what == "history":
                        r = http.get("/admin/calibration/history", params={"model": "net", "limit": 20})
                    elif what == "trend":
                        r = http.get("/admin/calibration/trend", params={"model": "net", "head": "leather"})
                    elif what == "run":
                        r = http.post("/admin/calibration/run")
                    elif what == "promote":
                        r = http.post(
                            "/admin/calibration/promote",
                            json={
                                "model": "net",
                                "head": "grid",
                                "version": int(rng.integers(1, 4)),
                                "reason": f"client {k}",
                            },
                        )
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
        number = lambda query: db.execute(query).fetchone()[0]
        versions = {v for (v,) in db.execute("SELECT version FROM runs")}
        moves = number("SELECT count(*) FROM reference_moves WHERE by = 'service: default'")
        jobs, files = number("SELECT count(*) FROM jobs"), number("SELECT count(*) FROM files")
    slowest = {
        w: f"{np.percentile([s for v, s in times if v == w], 95) * 1000:.0f} ms" for w in sorted({v for v, _ in times})
    }
    print(
        f"{clients} clients, {seconds} s: {sum(codes.values())} answers {dict(Counter(c for _, c in codes.elements()))}, {len(versions)} versions, {moves} moves, {jobs} jobs; 95th percentiles {slowest}"
    )
    assert not errors and not [c for _, c in codes if c >= 500], (errors[:3], codes)
    assert sum(codes.values()) >= 10 * clients
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
        db.executemany(
            "INSERT INTO runs VALUES (?, ?, 0, 1, 0, '{}', '{}')", [(v, str(v)) for v in range(1, versions + 1)]
        )
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
            print(
                f"history over {rows} rows, {params or 'no filter'}: median {np.median(spans) * 1000:.1f} ms, 95 % {np.percentile(spans, 95) * 1000:.1f} ms"
            )
            assert np.median(spans) < 0.25
