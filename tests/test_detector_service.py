"""The detectors' service against hostile images, a client of its own OpenAPI, odd paths, and many clients at once
(ANOMALY_NB_SLOW=1 for a minute of them).
"""

import io
import multiprocessing
import os
import socket
import struct
import threading
import time
import zlib
from collections import Counter

import numpy as np
import psutil
import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")
import httpx
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, strategies
from hypothesis import settings as hypothesis_settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from anomaly_nb.calibration.keys import new_key
from anomaly_nb.calibration.service import run_app
from anomaly_nb.calibration.store import CalibrationStore
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.settings import Settings
from anomaly_nb.data import read_index
from anomaly_nb.data.samples import write_samples
from anomaly_nb.scoring import Detector, predict_files
from anomaly_nb.scoring.service import create_detector_app, read_detectors, sound_detectors
from tests.services import by_curl, command_line, conforms, every_ending, free_port, mounted, no_answer, places

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
KEY, HASH = new_key()
AUTH = {"Authorization": f"Bearer {KEY}"}
PREDICT = "/v1/detectors/nut/predict"
NOT_IN_A_SCHEMA = [
    positive_data_acceptance
]  # that bytes are an image, and a name one of the detectors', no schema says


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Detectors `nut` and `weave`, and the samples they were made of."
    root = tmp_path_factory.mktemp("served")
    write_samples(root / "samples", n_train=8, n_good=2, n_defect=1, size=64)
    for name in ("nut", "weave"):
        Detector(image_size=64, coreset=0.5).fit(read_index("mvtec", root / "samples", name)).save(
            root / "detectors" / name
        )
    return root


@pytest.fixture(scope="module")
def files(folder):
    return sorted((folder / "samples/nut/test").rglob("*.png"))


@pytest.fixture(scope="module")
def app(folder):
    return create_detector_app(read_detectors(folder / "detectors"), HASH, failures=100_000)


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, headers=AUTH, raise_server_exceptions=False)


def chunk(chunk_type, data):
    return struct.pack(">I", len(data)) + chunk_type + data + struct.pack(">I", zlib.crc32(chunk_type + data))


def png(width, height, rows=b"\0" * 100, *more):
    "A PNG whose header claims a size, whatever its data are."
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def one_sentence(response, *statuses):
    "Whether an answer is a refusal that tells nothing of the inside."
    said = response.json()
    good = (
        response.status_code in statuses
        and said["status"] == response.status_code
        and response.headers["content-type"] == "application/problem+json"
    )
    return (
        good
        and "\n" not in said["detail"]
        and not any(word in response.text for word in ("Traceback", "/tmp", ".py", "tmp"))
    )


def test_bits_are_those_of_predict(client, folder, files):
    model = Detector.load(folder / "detectors/nut")
    for path, plain in zip(files, predict_files(model, files), strict=True):
        for sent in ({"content": path.read_bytes()}, {"files": {"image": (path.name, path.read_bytes())}}):
            said = client.post(PREDICT, **sent).json()
            assert [said[k] for k in ("score", "p_value", "percentile", "distance", "clipped")] == [
                plain.score,
                plain.p_value,
                plain.percentile,
                plain.distance,
                plain.clipped,
            ]
            assert (
                tuple(said["box"].values()) == plain.box
                and said["anomalous"] == bool(plain.anomalous)
                and plain.normal_path.endswith(said["nearest_normal"])
            )
    cards = client.get("/v1/detectors").json()["detectors"]
    assert [c["name"] for c in cards] == ["nut", "weave"] and all(
        len(c["manifest"]) == 64 and c["version"] == 1 and c["normal_images"] == 8 for c in cards
    )
    assert said["manifest"] == cards[0]["manifest"] and said["threshold"] == model.threshold_.value


@pytest.mark.parametrize("charset", ["idna''a%ff", "undefined''a", "punycode''%ff", "''a%00b"])
def test_a_header_in_no_encoding_is_refused(client, files, charset):
    "Names and boundaries may be written in any encoding that Python has, and some of these raise."
    head = f"--x\r\nContent-Disposition: form-data; name=\"image\"; filename*={charset}\r\n\r\n".encode()
    body = head + files[0].read_bytes() + b"\r\n--x--\r\n"
    named = client.post(PREDICT, content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    bound = client.post(PREDICT, content=body, headers={"Content-Type": f"multipart/form-data; boundary*={charset}"})
    assert one_sentence(bound, 422)
    assert named.status_code == 200 if charset.startswith("''") else one_sentence(named, 422)


def test_a_form_of_two_files_is_refused(client, files):
    "Neither is dropped in silence; fields that were left empty are none."
    first, second = (f.read_bytes() for f in files[:2])
    answer = client.post(PREDICT, files=[("f", ("good.png", first)), ("g", ("defect.png", second))])
    assert answer.status_code == 422 and answer.json()["detail"] == (
        "the form holds 2 files, but an answer is about one image; send each in its own request"
    )
    answer = client.post(PREDICT, files=[("f", ("good.png", first)), ("f", ("good.png", first))])
    assert answer.status_code == 422
    left = b'--x\r\nContent-Disposition: form-data; name="a"; filename=""\r\n\r\n\r\n'
    one = b'--x\r\nContent-Disposition: form-data; name="b"; filename="p.png"\r\n\r\n' + first + b"\r\n--x--\r\n"
    answer = client.post(PREDICT, content=left + one, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 200 and answer.json()["file"] == "p.png"


def test_hostile_bodies(client, files):
    "One sentence and a 4xx, in little time and memory, whatever the body claims to be."
    good = files[0].read_bytes()
    bodies = {
        "empty": b"",
        "text": b"score: 0.1",
        "cut": good[: len(good) // 2],
        "html": b"<html>" * 1000,
        "100 megapixels": png(10_000, 10_000, zlib.compress(b"\0" * 1000)),
        "billions of pixels": png(2**31 - 1, 2**31 - 1),
        "bomb: 100 MB of zeros in 100 kB": png(10_000, 3_333 * 4, b"\0" * 10**8),
        "bomb in the text": png(8, 8, b"\0" * 200, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**8))),
        "bomb in the profile": png(8, 8, b"\0" * 10, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 10**8))),
        "no pixels": png(0, 0),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    before = psutil.Process().memory_info().rss
    for name, body in bodies.items():
        began = time.perf_counter()
        for sent in (
            {"content": body},
            {"files": {"image": ("a.png", body)}},
            {"content": body, "headers": {"Content-Type": "application/json"}},
        ):
            r = client.post(PREDICT, **sent)
            assert one_sentence(r, 413, 422), (name, r.status_code, r.text)
        assert time.perf_counter() - began < 10, name
    assert client.post(PREDICT, content=bodies["100 megapixels"]).status_code == 413
    assert psutil.Process().memory_info().rss - before < 300e6
    assert one_sentence(
        client.post(PREDICT, content=b"--x--", headers={"Content-Type": "multipart/form-data; boundary=x"}), 422
    )
    assert one_sentence(client.post(PREDICT, content=b"x", headers={"Content-Type": "multipart/form-data"}), 422)
    # an address that is mistyped is not there, however large the image
    assert one_sentence(client.post("/v1/detector/nut/predict", content=good + bytes(50_000)), 404)
    assert one_sentence(client.post("/v1/detectors/wood/predict", content=good), 404) and one_sentence(
        client.get(PREDICT), 405
    )
    deep = io.BytesIO()
    Image.fromarray(np.full((64, 64), 900, np.uint16)).save(deep, "PNG")
    r = client.post(PREDICT, content=deep.getvalue())
    assert one_sentence(r, 422) and "intensity rule" in r.json()["detail"]
    assert client.post(PREDICT, content=good).status_code == 200


FORMATS = {
    "PNG": "RGB",
    "JPEG": "RGB",
    "TIFF": "RGB",
    "GIF": "P",
    "WEBP": "RGB",
    "BMP": "RGB",
    "DDS": "RGB",
    "TGA": "RGB",
    "ICO": "RGBA",
    "JPEG2000": "RGB",
}


def encoded(form, mode):
    "A small image in a format, or nothing where this Pillow cannot write it."
    whole = io.BytesIO()
    try:
        Image.fromarray((np.random.default_rng(0).random((24, 20, 3)) * 255).astype(np.uint8)).convert(mode).save(
            whole, form
        )
    except (KeyError, OSError):
        return b""
    return whole.getvalue()


def test_broken_images_never_fail_on_the_servers_side(client):
    "Bytes of images in ten formats changed, cut and doubled at random: 200 or one sentence, never a 5xx."
    wholes, codes = [w for w in (encoded(*pair) for pair in FORMATS.items()) if w], Counter()

    @hypothesis_settings(
        max_examples=3000 if SLOW else 150,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        strategies.sampled_from(wholes),
        strategies.lists(strategies.tuples(strategies.integers(0, 400), strategies.binary(max_size=4)), max_size=6),
        strategies.integers(0, 2000),
    )
    @example(b"DDS " + b"\0" * 124, [], 2000)
    def check(whole, changes, end):
        body = bytearray(whole)
        for at, new in changes:
            body[at : at + len(new)] = new
        r = client.post(PREDICT, content=bytes(body[:end]))
        codes[r.status_code] += 1
        assert r.status_code == 200 or one_sentence(r, 413, 422), (r.status_code, r.text, bytes(body[:end]))

    check()
    print(f"broken images: {dict(codes)}")
    assert codes[200] and codes[422]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_own_openapi(app, mode):
    """Requests made from the service's own document, valid and invalid, where it is mounted: nothing fails on its side,
    and answers are as documented.
    """
    outer = mounted(app)
    document = TestClient(outer, headers=AUTH).get("/api/v2/openapi.json").json()
    content = document["paths"]["/v1/detectors/{name}/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/octet-stream", "image/*", "multipart/form-data"}
    del content["image/*"]  # schemathesis has no way to write one
    conforms(outer, document, mode, AUTH, 500 if SLOW else 10, NOT_IN_A_SCHEMA)


def test_no_key_no_answer_wherever_it_is_mounted(app, files):
    image = files[0].read_bytes()
    no_answer(
        app,
        [("POST", PREDICT), ("GET", "/v1/detectors"), ("GET", "/openapi.json"), ("GET", "/nowhere")],
        "/v1/detectors",
        content=image,
    )
    for name, client, prefix in places(app, "/v1/detectors"):
        assert client.post(prefix + PREDICT, content=image, headers=AUTH).status_code == 200, name


def test_every_route_has_its_guard(app):
    routes = app.router.routes
    assert sorted((r.path, r.needs_key, r.is_file) for r in routes) == [
        ("/health", False, False),
        ("/openapi.json", True, False),
        ("/v1/detectors", True, False),
        ("/v1/detectors/{name}/predict", True, True),
    ]
    with pytest.raises(TypeError, match="without a guard"):
        app.add_route("/x", lambda r: None)


def test_limits_are_told_with_the_time_to_wait(folder, files):
    """Bytes, images per minute, and places: 413, 429 and 503; who is sent away leaves nothing behind, and places come
    free again.
    """
    detectors, image = read_detectors(folder / "detectors/nut"), files[0].read_bytes()
    assert list(detectors) == ["nut"]
    small = TestClient(create_detector_app(detectors, HASH, largest=1000), headers=AUTH)
    assert one_sentence(small.post(PREDICT, content=image), 413)
    assert one_sentence(small.post(PREDICT, content=iter([b"\0" * 400] * 3)), 413)
    slow = TestClient(create_detector_app(detectors, HASH, per_minute=3), headers=AUTH)
    codes = [slow.post(PREDICT, content=image).status_code for _ in range(5)]
    assert codes == [200] * 3 + [429] * 2 and 1 <= int(slow.post(PREDICT, content=image).headers["retry-after"]) <= 61
    assert slow.get("/v1/detectors").status_code == 200
    full = create_detector_app(detectors, HASH, places=2)
    hold, answers = threading.Event(), []
    detectors["nut"].thread.submit(hold.wait, 30)  # the detector is busy
    ask = lambda: answers.append(TestClient(full, headers=AUTH).post(PREDICT, content=image))
    waiting = [threading.Thread(target=ask) for _ in range(2)]
    for t in waiting:
        t.start()
    until = time.time() + 20
    while detectors["nut"].thread._work_queue.qsize() < 2 and time.time() < until:
        time.sleep(0.05)
    late = TestClient(full, headers=AUTH).post(PREDICT, content=image)
    assert one_sentence(late, 503) and late.headers["retry-after"] == "1"
    assert TestClient(full).get("/health").status_code == 200  # it answers while the detector is busy
    hold.set()
    for t in waiting:
        t.join()
    assert [a.status_code for a in answers] == [200, 200] and TestClient(full, headers=AUTH).post(
        PREDICT, content=image
    ).status_code == 200


def test_a_request_gives_its_place_back_however_it_ends(folder, files, monkeypatch):
    """Unknown addresses, other verbs, clients that go away, a detector that fails: places are as many as before."""
    detectors, image = read_detectors(folder / "detectors/nut"), files[0].read_bytes()
    app = create_detector_app(detectors, HASH, failures=100_000, places=2)
    assert every_ending(app, AUTH, PREDICT, image) >= {401, 404, 405, 422}
    monkeypatch.setattr(detectors["nut"], "predict", lambda *arguments: 1 / 0)
    client = TestClient(app, headers=AUTH, raise_server_exceptions=False)
    assert {client.post(PREDICT, content=image).status_code for _ in range(5)} == {500}
    assert app.state.guard.free == 2


def test_scores_go_to_the_store_and_a_lost_store_keeps_nobody_waiting(folder, files, tmp_path):
    store = CalibrationStore(tmp_path / "drift", Settings(calibrate_heads=True))
    client = TestClient(create_detector_app(read_detectors(folder / "detectors/nut", store), HASH), headers=AUTH)
    said = [
        client.post(PREDICT, content=p.read_bytes(), params={"file": p.name + str(i)}).json()
        for i, p in enumerate(files)
    ]
    assert {s["drift"] for s in said} == {"kept"}
    rows = store.table(
        "SELECT file, score, role, head_name FROM scores JOIN files ON files.id = file_id JOIN heads ON heads.id = head_id"
    ).set_index("file")
    assert (
        set(rows.head_name) == {"v1"}
        and (rows.role == "normal").sum() == 8
        and all(rows.score[s["file"]] == s["score"] for s in said)
    )
    (tmp_path / "drift/calibration.sqlite").unlink()
    (tmp_path / "drift/calibration.sqlite").mkdir()
    r = client.post(PREDICT, content=files[0].read_bytes())
    assert r.status_code == 200 and r.json()["drift"] == "missed" and r.json()["score"] == said[0]["score"]
    assert client.get("/v1/detectors").json()["detectors"][0]["drift_missed"] == 1


@pytest.mark.parametrize("gone", ["drift", "drift/calibration.sqlite"], ids=["folder", "database"])
def test_a_store_that_is_away_misses_scores_and_is_not_replaced(folder, files, tmp_path, gone):
    store = CalibrationStore(tmp_path / "drift", Settings(calibrate_heads=True))
    client = TestClient(create_detector_app(read_detectors(folder / "detectors/nut", store), HASH), headers=AUTH)
    rows = store.table("SELECT count(*) AS n FROM scores")["n"].tolist()
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    answers = [client.post(PREDICT, content=files[0].read_bytes()).json()["drift"] for _ in range(2)]
    assert answers == ["missed"] * 2 and not (tmp_path / gone).exists()
    (tmp_path / "elsewhere").rename(tmp_path / gone)
    assert client.post(PREDICT, content=files[0].read_bytes()).json()["drift"] == "kept"
    assert store.table("SELECT count(*) AS n FROM scores")["n"].tolist() == [rows[0] + 1]
    assert client.get("/v1/detectors").json()["detectors"][0]["drift_missed"] == 2


def test_two_detectors_of_one_name_and_version_share_no_head(folder, files, tmp_path):
    "Their scores have nothing in common, and one reference would decide about both."
    store = CalibrationStore(tmp_path / "drift", Settings(calibrate_heads=True))
    Detector(image_size=64, coreset=0.25).fit(read_index("mvtec", folder / "samples", "nut")).save(tmp_path / "a/nut")
    for _ in range(2):  # the same one, at the next start too
        client = TestClient(create_detector_app(read_detectors(folder / "detectors/nut", store), HASH), headers=AUTH)
        answer = client.post(PREDICT, params={"file": "held_out/x.png"}, content=files[0].read_bytes())
        assert answer.json()["drift"] == "kept"  # a client's name of a file makes no difference
    before = store.table("SELECT count(*) AS n FROM scores")["n"].tolist()
    with pytest.raises(DataError, match="its head nut/v1 is of another detector with this name and version"):
        read_detectors(tmp_path / "a", store)
    assert store.table("SELECT count(*) AS n FROM scores")["n"].tolist() == before
    (tmp_path / "a/nut").rename(tmp_path / "a/nut_2")
    assert list(read_detectors(tmp_path / "a", store)) == ["nut_2"]
    old = CalibrationStore(tmp_path / "old", Settings(calibrate_heads=True))
    old.tag("nut", "v1", ["a.png"], np.array([1.0]))  # of nothing is known whose it is
    assert list(read_detectors(folder / "detectors/nut", old)) == ["nut"]


@pytest.mark.parametrize("name", ["held-out/{}", "Held-Out/{}", " held-out/{}"])
def test_no_client_writes_into_the_reference(folder, files, tmp_path, name):
    "The names of the training images' scores are theirs, by the query and by a form alike."
    store = CalibrationStore(tmp_path / "drift", Settings(calibrate_heads=True))
    client = TestClient(create_detector_app(read_detectors(folder / "detectors/nut", store), HASH), headers=AUTH)
    query = "SELECT file, score, role FROM scores JOIN files ON files.id = file_id ORDER BY file"
    before = store.table(query)
    name = name.format(before["file"][0].removeprefix("held-out/"))
    body = files[-1].read_bytes()
    for answer in (
        client.post(PREDICT, params={"file": name}, content=body),
        client.post(PREDICT, files={"image": (name, body)}),
    ):
        assert one_sentence(answer, 422) and "training images" in answer.json()["detail"]
    assert store.table(query).equals(before)
    assert list(read_detectors(folder / "detectors/nut", store)) == ["nut"]


def test_links_of_one_version_name_are_detectors_of_their_own(folder, tmp_path):
    "A release folder of `part -> somewhere/v3` serves each part under its own name."
    from shutil import copytree

    for release, name in (("rel1", "nut"), ("rel2", "weave")):
        copytree(folder / "detectors" / name, tmp_path / release / "v3")
        (tmp_path / "served").mkdir(exist_ok=True)
        (tmp_path / "served" / name).symlink_to(tmp_path / release / "v3")
    served, refused = sound_detectors(tmp_path / "served")
    assert {n: d.card().name for n, d in served.items()} == {"nut": "nut", "weave": "weave"} and not refused
    assert served["nut"].manifest != served["weave"].manifest
    assert list(read_detectors(tmp_path / "served")) == ["nut", "weave"]


def test_what_cannot_be_served_stops_the_start_by_name(folder, tmp_path):
    from shutil import copytree

    copytree(folder / "detectors", tmp_path / "d")
    (tmp_path / "d/weave/threshold.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"threshold\.json"):
        read_detectors(tmp_path / "d")
    (tmp_path / "d/weave/threshold.json").write_text("{}")
    with pytest.raises(ValueError, match=r"threshold\.json"):
        read_detectors(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="holds no detector"):
        read_detectors(folder / "samples")
    with pytest.raises(ValueError, match="needs a key"):
        create_detector_app({})


def test_sound_detectors_are_served_beside_damaged_ones(folder, files, tmp_path):
    from shutil import copytree

    for name in ("nut", "cut", "bare", "lost"):
        copytree(folder / "detectors/nut", tmp_path / "d" / name)
    (tmp_path / "d/cut/bank/bank.npz").write_bytes(b"PK")
    (tmp_path / "d/bare/threshold.json").unlink()
    (tmp_path / "d/lost/detector.json").unlink()
    served, refused = sound_detectors(tmp_path / "d")
    assert list(served) == ["nut"] and sorted(refused) == ["bare", "cut", "lost"]
    assert "bank.npz" in refused["cut"] and "threshold.json" in refused["bare"] and "detector.json" in refused["lost"]
    app = create_detector_app(served, HASH, refused=refused)
    client = TestClient(app, headers=AUTH, raise_server_exceptions=False)
    health, cards = TestClient(app).get("/health").json(), client.get("/v1/detectors").json()
    assert health["detectors"] == 1 == cards["count"] and health["refused"] == len(refused) == 3
    assert sorted(cards["refused"]) == sorted(refused) and "tmp" not in str(cards["refused"])
    assert "bank.npz" in cards["refused"]["cut"] and not any("\n" in why for why in cards["refused"].values())
    body = files[0].read_bytes()
    answer = client.post("/v1/detectors/cut/predict", content=body)
    assert one_sentence(answer, 503) and answer.json()["detail"].startswith("the detector cut is not served: ")
    assert client.post(PREDICT, content=body).status_code == 200
    assert client.post("/v1/detectors/wood/predict", content=body).status_code == 404
    assert TestClient(app).post("/v1/detectors/cut/predict", content=body).status_code == 401
    (tmp_path / "d/nut/preparation.npz").unlink()
    with pytest.raises(ValueError, match=r"none of 4 detectors can be served: .*threshold\.json") as none:
        sound_detectors(tmp_path / "d")
    assert "\n" not in str(none.value)


def test_the_start_says_how_to_ask_and_what_is_refused(folder, files, tmp_path):
    """The printed line, with the key in its variable, is a request that is answered."""
    from shutil import copytree

    copytree(folder / "detectors", tmp_path / "d")
    (tmp_path / "d/weave/threshold.json").unlink()
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with command_line("serve", str(tmp_path / "d"), "--port", str(port), key=KEY, folder=tmp_path) as process:
        lines = [process.stdout.readline().strip() for _ in range(5)]
        assert lines[0].startswith("nut: version 1, 8 normal images"), lines
        assert lines[1].startswith("refused: weave: ") and "threshold.json" in lines[1]
        assert lines[2] == f"serving 1 detector at {base}; end with Ctrl-C"
        assert lines[3] == f"health: {base}/health; OpenAPI: {base}/openapi.json, with the key"
        assert '"Authorization: Bearer $KEY"' in lines[4] and KEY not in "".join(lines)
        with socket.create_connection(("127.0.0.1", port)):  # it listens when it says so
            pass
        answer = by_curl(lines[4], KEY, files[0].read_bytes())
        assert answer.status_code == 200 and answer.json()["detector"] == "nut"


@pytest.mark.parametrize("words", [("serve", "d"), ("drift", "serve")], ids=["serve", "drift serve"])
def test_a_port_in_use_is_one_sentence_and_nothing_is_served(folder, tmp_path, words):
    from shutil import copytree

    copytree(folder / "detectors/nut", tmp_path / "d/nut")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        more = ("--port", str(port), *(("--drift", "store") if words[0] == "serve" else ("--store", "store")))
        with command_line(*words, *more, key=KEY, folder=tmp_path) as process:
            lines = process.stdout.read().splitlines()
            assert process.wait(timeout=60) == 2, lines
    said = f"anomaly-nb: port {port} of 127.0.0.1 is in use by another program; end that, or choose another --port"
    assert lines == [said] and not (tmp_path / "store").exists()


def start(folder, port, hashed):
    "The service in a process of its own."
    run_app(
        create_detector_app(read_detectors(folder / "detectors"), hashed, seconds=1.0, places=16),
        "127.0.0.1",
        port,
        1.0,
    )


@pytest.fixture(scope="module")
def server(folder):
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=start, args=(folder, port, HASH), daemon=True)
    process.start()
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    process.terminate()
    process.join()


def test_half_sent_images_are_dropped(server):
    url, _ = server
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20) as s:
        s.sendall(head + b"\x89PNG")
        began, said = time.monotonic(), s.recv(65536)
    assert said.split(b" ")[1] == b"408" and time.monotonic() - began < 8


def test_many_clients(server, files):
    """32 clients at once: only decisions, or 503 with the time to wait; the same image has the same bits whoever sends
    it, and memory stays.
    """
    url, process = server
    clients, seconds = 32, 60 if SLOW else 3
    images = [p.read_bytes() for p in files]
    codes, times, scores, errors, ready = Counter(), [], {}, [], threading.Barrier(clients)

    def one(k):
        with httpx.Client(base_url=url, headers=AUTH, timeout=60, verify=False) as http:
            ready.wait()
            stop, i = time.time() + seconds, k
            while time.time() < stop:
                i += 1
                began = time.perf_counter()
                try:
                    r = http.post(
                        ("/v1/detectors/nut/predict", "/v1/detectors/weave/predict")[i % 2],
                        content=images[i % len(images)],
                    )
                except httpx.TransportError as e:
                    errors.append(repr(e))
                    continue
                codes[r.status_code] += 1
                if r.status_code == 200:
                    times.append(time.perf_counter() - began)
                    scores.setdefault((i % 2, i % len(images)), set()).add(r.json()["score"])
                elif r.status_code == 503:
                    assert r.headers["retry-after"] == "1"
                    time.sleep(0.02)

    before = process.memory_info().rss
    threads = [threading.Thread(target=one, args=(k,)) for k in range(clients)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    after = process.memory_info().rss
    p50, p95 = np.percentile(times, [50, 95]) * 1000
    print(
        f"{clients} clients, {seconds} s: {codes[200] / seconds:.0f} decisions a second, p50 {p50:.0f} ms, p95 {p95:.0f} ms, {dict(codes)}; memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB"
    )
    assert (
        not errors and set(codes) <= {200, 503} and codes[200] > seconds and all(len(s) == 1 for s in scores.values())
    )
    assert after - before < 200e6


def test_health_says_when_nobody_can_be_served(folder, files, tmp_path):
    "A settings file that cannot be read shuts every key out: whoever watches the service has to see it, without why."
    config = tmp_path / "config.yml"
    config.write_text(f"calibration_api_key_sha256: {HASH}\n")
    app = create_detector_app(read_detectors(folder / "detectors/nut"), config=config)
    anyone, client = TestClient(app), TestClient(app, headers=AUTH)
    assert anyone.get("/health").json()["status"] == "ok" == client.post(PREDICT, content=files[0].read_bytes()).json()["status"]
    for text in ("calibration_api_key_sha256: [\n", "scoring: nonsense\n", "calibration_api_keys: {line3: }\n"):
        config.write_text(text)
        answer = anyone.get("/health")
        assert one_sentence(answer, 503) and answer.json()["detail"].startswith("degraded: "), text
        assert "config" not in answer.text and str(tmp_path) not in answer.text
    config.write_text(f"calibration_api_key_sha256: {HASH}\n")
    assert anyone.get("/health").json()["status"] == "ok"


def test_what_is_no_image_counts_too(folder, files):
    "The limit of a key is on what it sends, as the option's help says: refused files are read and cost as well."
    from tests.commands import run

    client = TestClient(create_detector_app(read_detectors(folder / "detectors/nut"), HASH, per_minute=3), headers=AUTH)
    codes = [client.post(PREDICT, content=body).status_code for body in (b"nothing", files[0].read_bytes()) * 2]
    assert codes == [422, 200, 422, 429]
    words = " ".join(run("serve", "--help")[1].split())
    assert "Files that a key may send in a minute, those that are refused too" in words


@pytest.mark.parametrize("command", [("serve", "detectors"), ("drift", "serve")])
def test_a_key_in_use_is_replaced_only_on_request(tmp_path, capsys, command):
    from tests.commands import fails, run

    config = tmp_path / "config.yml"
    for name in ([], ["--name", "line3"]):
        make = [*command, "--config", config, "--new-key", *name]
        assert run(*make)[0] == 0
        before = config.read_text()
        said = fails(capsys, *make)
        assert f"holds a key {(name or ['', 'default'])[-1]} already" in said and "--replace" in said
        assert config.read_text() == before
        code, said, _ = run(*make, "--replace")
        assert code == 0 and "is no longer valid" in said and config.read_text() != before
    assert "--replace" in fails(capsys, *command, "--config", config, "--replace")
