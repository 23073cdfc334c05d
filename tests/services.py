"""What the tests of both services share: where somebody may put an application, odd paths, and a client of its own
OpenAPI.
"""

import asyncio
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress

import httpx
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import negative_data_rejection


def mounted(app, prefix="/api/v2"):
    "The service under a path of somebody else's application."
    outer = FastAPI(openapi_url=None)
    outer.mount(prefix, app)
    return outer


def places(app, own_path):
    "The application wherever somebody may put it, one path of its own included: (name, client without a key, prefix)."
    twice = FastAPI(openapi_url=None)
    twice.mount("/b", mounted(app, "/a"))

    async def rewriting(scope, receive, send):
        await app(scope | {"path": scope["path"].removeprefix("/cut"), "root_path": "/cut"}, receive, send)

    on_host = FastAPI(openapi_url=None)
    on_host.host("testserver", app)
    return [
        ("plain", TestClient(app), ""),
        ("mounted", TestClient(mounted(app)), "/api/v2"),
        ("mounted twice", TestClient(twice), "/b/a"),
        ("root path", TestClient(app, root_path="/api"), ""),
        ("root path in the path", TestClient(app, root_path="/api"), "/api"),
        ("rewriting proxy", TestClient(rewriting), "/cut"),
        ("host", TestClient(on_host), ""),
        ("mounted as health", TestClient(mounted(app, "/health")), "/health"),
        ("mounted under a path of its own", TestClient(mounted(app, own_path)), own_path),
    ]


def mangled(path):
    "A path in every way that proxies and attackers know."
    odd = ("{}", "/{}", "//{}", "{}/", "{}//", "/./{}", "/x/../{}", "/%2e%2e{}", "{}%2f", "{}%00", "{};a=b", "{}/.")
    return [
        path.upper(),
        path.replace("/", "%2f"),
        path.replace("/", "%2F"),
        path.replace("/", "//"),
        *(o.format(path) for o in odd),
    ]


def no_answer(app, routes, own_path, verbs=(), **given):
    """Ask every (method, path) without a key, in every place and every way, and by other verbs: how often; never an
    answer.
    """
    asked = 0
    for name, client, prefix in places(app, own_path):
        for method, straight in routes:
            for path in mangled(straight):
                for verb in {method, *verbs}:
                    r = client.request(verb, prefix + path, follow_redirects=False, **given if verb == "POST" else {})
                    asked += 1
                    own = r.headers.get("content-type") == "application/problem+json"
                    assert r.status_code == 401 if own or verb == "HEAD" else r.status_code in (404, 307), (
                        name,
                        verb,
                        prefix + path,
                        r.status_code,
                    )
            assert client.request(method, prefix + straight).status_code == 401, (name, straight)
        assert client.get(f"{prefix}/health").status_code == 200, name
    print(f"{asked} requests without a key in {len(places(app, own_path))} places: none answered")


def conforms(app, document, mode, headers, examples, excluded=()):
    """Requests made from the service's own document, valid or invalid: nothing fails on its side, and answers are as
    documented.
    """
    schema, tried = schemathesis.openapi.from_dict(document), 0
    schema.app = app

    def check(case):
        nonlocal tried
        tried += 1
        response = case.call(headers=headers)
        assert response.status_code < 500, (case, response.text)
        if response.status_code == 404 and response.text == '{"detail":"Not Found"}':
            return  # the app around it: a name with dots and slashes leads out of the mount; the service itself answers in problem+json
        case.validate_response(
            response, headers=headers, excluded_checks=[negative_data_rejection, *excluded]
        )  # it counts the key that is sent here as missing

    for operation in (o.ok() for o in schema.get_all_operations()):
        wanted = hypothesis_settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        try:
            wanted(given(operation.as_strategy(generation_mode=mode))(check))()
        except Unsatisfiable:  # an operation without parameters has no invalid form
            assert mode == schemathesis.GenerationMode.NEGATIVE and not operation.body and not operation.query
    print(f"schemathesis, {mode.value}: {tried} requests, no 5xx")


def free_port():
    "A port that nobody listens on."
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def command_line(*words, key, folder):
    "A service of the command line in a process of its own; its lines come on stdout."
    env = os.environ | {"ANOMALY_NB_API_KEY": key, "PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "anomaly_nb.cli.main", *words]
    process = subprocess.Popen(command, cwd=folder, env=env, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def by_curl(line, key, content=None):
    "The answer to a printed curl line, asked until the service listens."
    words = shlex.split(line.replace("$KEY", key))
    header, url = words[words.index("-H") + 1].split(": "), words[-1]
    for _ in range(300):
        with suppress(httpx.TransportError):
            return httpx.request("POST" if content else "GET", url, content=content, headers=[tuple(header)])
        time.sleep(0.1)
    raise AssertionError(f"nobody answers {url}")


def every_ending(app, key, path, good):
    """Requests that end in every way there is, more of each than have a place: none keeps its place; their statuses.

    `key` is the header of a valid key, `path` a route of `POST`, `good` the body that it answers.
    """
    client = TestClient(app, headers=key, raise_server_exceptions=False)
    whole, statuses = app.state.guard.free, set()
    stem = path.rsplit("/", 1)[0]
    unknown = (f"{stem}/predit", f"{path}/", "/foo", f"{stem}%2f..%2fa", f"{path}?file=a&file=b", f"{path}?what=1")
    for _ in range(whole + 1):
        for verb in ("POST", "PUT", "GET", "HEAD", "OPTIONS"):
            for where in (*unknown, path):
                if (verb, where) != ("POST", path):
                    body = b"x" if verb == "POST" else b""
                    statuses.add(client.request(verb, where, content=body, follow_redirects=False).status_code)
        statuses.add(client.post(path, content=b"no image").status_code)
        statuses.add(client.post(path, content=good, headers={"Authorization": "Bearer no"}).status_code)
        for headers in ([], [(b"content-length", b"999999999999")]):
            asyncio.run(_cut_short(app, path, headers, key))
        assert app.state.guard.free == whole, statuses
    answer = client.post(path, content=good, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 and app.state.guard.free == whole, answer.text
    return statuses


async def _cut_short(app, path, headers, key):
    "Requests whose client goes away: in the body, before the answer, and while it waits."
    own = [(b"authorization", key["Authorization"].encode()), *headers]
    for where in (path, "/nowhere"):
        scope = {"type": "http", "method": "POST", "path": where, "raw_path": where.encode(), "query_string": b""}
        scope |= {"headers": own, "client": ("127.0.0.1", 1), "http_version": "1.1", "scheme": "http"}
        scope |= {"root_path": "", "server": ("testserver", 80)}

        parts = [{"type": "http.request", "body": b"x", "more_body": True}]

        async def leaves(parts=parts):
            return parts.pop() if parts else {"type": "http.disconnect"}

        async def whole():
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def never():
            await asyncio.sleep(60)

        async def send(message):
            return None

        async def broken(message):
            raise OSError("the client is gone")

        await app(dict(scope), leaves, send)
        with suppress(OSError):
            await app(dict(scope), whole, broken)
        waiting = asyncio.ensure_future(app(dict(scope), never, send))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
