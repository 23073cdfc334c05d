"""Hostile and unlucky input: archives, files, database pages, full disks, folders nobody may write to. One line each,
bounded memory, nothing half-written (ANOMALY_NB_SLOW=1 for full size).
"""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from anomaly_nb.calibration.pull import pack_calibrations, pull_calibrations
from anomaly_nb.calibration.store import CalibrationStore, load_calibration
from anomaly_nb.cli.main import main
from anomaly_nb.core.errors import Notice
from anomaly_nb.core.settings import Settings

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
DEV = Settings(calibrate_heads=True)
GOOD = {"labels": {"anomalous": {"p5": 0.1, "p95": 0.9, "method": "minmax"}}, "threshold": 1.5, "version": 1}
TEXT = json.dumps(GOOD).encode()


def say(capsys, *words):
    "Run a command in this process: its exit code and what it says on stderr. A traceback is an exception here."
    code = 0
    try:
        main([str(w) for w in words])
    except SystemExit as e:
        code = e.code or 0
    return code, capsys.readouterr().err


def one_line(capsys, *words, says=""):
    "A command that must fail in one line."
    code, err = say(capsys, *words)
    assert (
        code in (1, 2) and err.count("\n") == 1 and err.startswith("anomaly-nb: ") and says in err and len(err) < 1000
    ), (words, code, err[-2000:])
    return err


def ok(*words):
    "A command that must succeed."
    with pytest.raises(SystemExit) as e:
        main([str(w) for w in words])
    assert not e.value.code


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANOMALY_NB_PROGRESS", "0")  # a session that has a kernel loaded shows bars
    (tmp_path / "config.yml").write_text("calibrate_heads: true\n")
    return tmp_path


def scores(name, seed, n=100):
    rng = np.random.default_rng(seed)
    Path(name).write_text("file,score\n" + "".join(f"{seed}_{i},{v}\n" for i, v in enumerate(rng.gamma(4, size=n))))
    return name


def tar_header(name, size, member_type=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, member_type
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data):
    return data + b"\0" * (-len(data) % 512)


def zip_of(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as z:
        for name, content in members:
            z.writestr(name, content)


def many_members(path):
    "The archive of the report: 5 MB for 4000 members of a megabyte each."
    blank = b" " * ((1 << 20) - len(TEXT)) + TEXT
    zip_of(path, ((f"net/heads/h{i}-calibration.json", blank) for i in range(4000 if SLOW else 100)))


def many_in_the_list(path):
    zip_of(path, ((f"{i}", b"") for i in range(300_000 if SLOW else 30_000)), zipfile.ZIP_STORED)


def deep(path):
    zip_of(path, [("net/heads/h-calibration.json", b"[" * 1_000_000)])


def dense(path):
    zip_of(path, [(f"net/heads/h{i}-calibration.json", b'{"a":[' + b"{}," * 340_000 + b"{}]}") for i in range(3)])


def dense_manifest(path):
    zip_of(
        path, [("manifest.json", b'{"files":[' + b"[]," * 690_000 + b"[]]}"), ("net/heads/h-calibration.json", TEXT)]
    )


def xz_inside(path):
    zip_of(path, [("net/heads/h-calibration.json", TEXT)], zipfile.ZIP_LZMA)


def tar_of_zeros(path):
    "A member of 8 GB in front of the one that counts."
    with gzip.open(path, "wb", 1) as f:
        f.write(tar_header("zeros", 8 << 30) + bytes(1 << 20))


def tar_long_name(path):
    with gzip.open(path, "wb", 1) as f:
        f.write(tar_header("././@LongLink", 1 << 30, tarfile.GNUTYPE_LONGNAME))
        for _ in range(1024 if SLOW else 50):
            f.write(b"a" * (1 << 20))


def tar_pax(member_type, chained):
    def make(path):
        record = "".join(f"{len(k := f' {i:x}=b') + 3:d}{k}\n" for i in range(0x1000, 0x1500)).encode()
        with bz2.open(path, "wb") if SLOW else gzip.open(path, "wb", 1) as f:
            for i in range(20_000 if SLOW else 500):
                f.write(tar_header("pax", len(record), member_type) + padded(record))
                if not chained:
                    f.write(tar_header(f"f{i}", 0))
        return record

    return make


def tar_many(path):
    with gzip.open(path, "wb", 1) as f:
        for i in range(100_000 if SLOW else 25_000):
            f.write(tar_header(f"{i}", 0))


def tar_sparse(path):
    with gzip.open(path, "wb") as f:
        f.write(tar_header("net/heads/h-calibration.json", 1 << 40, tarfile.GNUTYPE_SPARSE) + bytes(4096))


def tar_xz(path):
    with lzma.open(path, "wb") as f:
        f.write(tar_header("a", 0))


def cut(path):
    many_members(path)
    path.write_bytes(path.read_bytes()[:-2000])


def locked_zip(path):
    zip_of(path, [("net/heads/h-calibration.json", TEXT)])
    path.write_bytes(
        path.read_bytes()
        .replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00")
        .replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
    )


def wide(path):
    zip_of(path, [("net/heads/h-calibration.json", json.dumps(GOOD).encode("utf-16"))])


def twins(path):
    zip_of(path, [("net/heads/leather-calibration.json", TEXT), ("net/heads/Leather-calibration.json", TEXT)])


def as_text(path):
    zip_of(path, [("net/heads/h-calibration.json", json.dumps(GOOD | {"threshold": "1.5"}))])


ATTACKS = {
    many_members: "more than 32 MiB", many_in_the_list: "", deep: "levels deep", dense: "no calibration", dense_manifest: "manifest.json cannot be read", xz_inside: "holds no calibration",
    tar_of_zeros: "so no set", tar_long_name: "larger than a set", tar_pax(tarfile.XHDTYPE, False): "holds no calibration" if not SLOW else "", tar_pax(tarfile.XGLTYPE, True): "", tar_many: "more than 20000 members",
    tar_sparse: "", tar_xz: "neither a folder nor", cut: "", locked_zip: "encrypted", wide: "it is UTF-16", twins: "differ only by case", as_text: "must be numbers",
}  # fmt: skip
PULL = """
import sys
from anomaly_nb.calibration.pull import pack_calibrations, pull_calibrations
from anomaly_nb.core.errors import DataError
from anomaly_nb.core.files import sha256_file
peak = lambda: next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))  # unlike ru_maxrss not the parent's
before = peak()
for path in sys.argv[2:]:
    try:
        pull_calibrations(path, sys.argv[1], sha256_file(path)); print("taken")
    except DataError as e:
        print(str(e).replace(chr(10), "<newline>"))
print(before, peak())
"""


def test_no_archive_takes_memory_or_writes_anything(tmp_path):
    """Each attack in turn in one process, whose peak counts; the limit is 300 MB, the interpreter and its libraries
    included.
    """
    paths = []
    for i, make in enumerate(ATTACKS):
        paths.append(tmp_path / f"{i:02}-{make.__name__}")
        make(paths[-1])
    done = subprocess.run([sys.executable, "-c", PULL, tmp_path / "line", *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    *said, peak = done.stdout.splitlines()
    before, after = (int(v) / 1024 for v in peak.split())
    for path, words, line in zip(paths, ATTACKS.values(), said, strict=True):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {line.replace(str(tmp_path), '')[:130]}")
        assert line.startswith(str(path)) and words in line and "<newline>" not in line, line
    print(f"{before:.0f} MB before, {after:.0f} MB at the peak of {len(paths)} archives")
    assert after < 300
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".json", ".tmp")] and not list(
        (tmp_path / "line").glob("*/heads/*")
    )


def test_pull_of_random_damage_is_a_line_or_a_whole_set(tmp_path):
    "A good archive with bytes changed at random: taken whole or refused in a line, never half."
    rng = random.Random(0)
    names = [f"net/heads/h{i}-calibration.json" for i in range(3)]
    zip_of(tmp_path / "z", [(n, TEXT) for n in names])
    with tarfile.open(tmp_path / "t", "w:gz") as t, tarfile.open(tmp_path / "p", "w") as p:
        for n in names:
            info = tarfile.TarInfo(n)
            info.size = len(TEXT)
            t.addfile(info, io.BytesIO(TEXT))
            p.addfile(info, io.BytesIO(TEXT))
    taken = 0
    for i in range(3000 if SLOW else 300):
        data = bytearray((tmp_path / "ztp"[i % 3]).read_bytes())
        for _ in range(rng.choice([1, 1, 3, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "x").write_bytes(data[: rng.choice([len(data)] * 3 + [rng.randrange(len(data))])])
        root = tmp_path / "line"
        try:
            taken += len(pull_calibrations(tmp_path / "x", root, sha256((tmp_path / "x").read_bytes()).hexdigest())) > 0
        except ValueError as e:
            assert "\n" not in str(e) and not list(root.rglob("*.json"))
        shutil.rmtree(root, ignore_errors=True)
    assert taken
    print(f"{taken} taken of {3000 if SLOW else 300} damaged archives, the rest refused in a line")


DEEP_YAML, BOMB = (
    "a: " + "[" * 5000,
    "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
)
FILES = {
    "deep": ("[" * 100_000).encode(), "deep in YAML": DEEP_YAML.encode(), "closed and deep": b'{"a":' * 500 + b"1" + b"}" * 500, "UTF-16": '{"a": 1}'.encode("utf-16"), "no UTF-8": b'{"a": "\xff\xfe"}',
    "bomb": BOMB.encode(), "itself": b"a: &a [*a]", "NUL": bytes(1000), "binary": bytes(range(256)) * 8, "no int": b"a: !!int x", "no day": b"a: 2026-13-45", "huge": b"1" * 100_000, "cut": b'{"a": [1, ',
}  # fmt: skip


@pytest.mark.parametrize("file_type", FILES)
def test_hostile_files_in_every_command(here, capsys, file_type):
    """The same bytes as settings, plan, notebook, ontology, scores, calibration set, archive: one line each, and
    nothing is left behind.
    """
    bad = Path("bad")
    scores("good.csv", 0)
    before = {p for p in here.rglob("*")}
    for name in ("bad.yml", "bad.ipynb", "bad.csv", "bad.json", "bad.zip"):
        Path(name).write_bytes(FILES[file_type])
    for folder in ("set", "set2"):
        Path(folder, "net/heads").mkdir(parents=True)
    Path("set/net/heads/h-calibration.json").write_bytes(FILES[file_type])
    Path("set/manifest.json").write_text(
        json.dumps(
            {
                "files": {
                    "net/heads/h-calibration.json": {
                        "sha256": sha256(FILES[file_type]).hexdigest(),
                        "size": len(FILES[file_type]),
                    }
                }
            }
        )
    )
    Path("set2/manifest.json").write_bytes(FILES[file_type])
    given = {p for p in here.rglob("*")}
    for words in (
        ("drift", "run", "--config", "bad.yml", "--scores", "good.csv", "--head", "h"),
        ("drift", "serve", "--config", "bad.yml"),
        ("drift", "serve", "--new-key", "--config", "bad.yml"),
        ("drift", "run", "--scores", "bad.csv", "--head", "h"),
        ("drift", "pull", "set"),
        ("drift", "pull", "set2"),
        ("drift", "pull", "bad.zip"),
        ("drift", "pull", "bad.zip", "--sha256", sha256(FILES[file_type]).hexdigest()),
        ("sweep", "bad.yml"),
        ("report", "bad.ipynb"),
        ("report", "bad.ipynb", "--list"),
        ("new", "mine", "--from", "bad.ipynb"),
    ):
        if (file_type, words[1:3]) == ("itself", ("serve", "--new-key")):  # somebody else's key, kept
            continue
        one_line(capsys, *words)
        left = {p.relative_to(here).as_posix() for p in here.rglob("*")} - {
            p.relative_to(here).as_posix() for p in given
        }
        assert not [
            p
            for p in left
            if not p.endswith(".lock")
            and p not in ("data", "data/calibrations", "data/calibrations/calibration.sqlite")
        ], (words, left)
    assert before < given and not bad.exists()


def test_records_of_runs(here, capsys):
    "A hostile run.json is a run of status damaged, in every command over runs."
    for i, (_, content) in enumerate(FILES.items()):
        Path(f"figures/runs/image_anomaly-{i:012x}").mkdir(parents=True)
        Path(f"figures/runs/image_anomaly-{i:012x}/run.json").write_bytes(content)
    code, err = say(capsys, "runs", "list")
    assert code == 0 and not err
    for words in (("show", f"{0:012x}"), ("diff", f"{0:012x}", f"{1:012x}"), ("verify", f"{0:012x}")):
        code, err = say(capsys, "runs", *words)
        assert err.count("\n") <= 1 and "Traceback" not in err, (words, err)


def test_parameters_that_no_record_can_keep(here, capsys):
    Path("plan.yml").write_text("template: image_anomaly\ngrid:\n  category: [2024-01-01, weave]\n  coreset: [.nan]\n")
    for value in ("nan", "inf", "-inf", "1e999"):
        assert f"coreset={float(value)} is not finite" in one_line(
            capsys, "report", "image_anomaly", "-p", f"coreset={value}"
        )
    one_line(capsys, "sweep", "plan.yml", says="is not finite")


def test_misspelt_settings_and_heads_are_told(here, capsys):
    Path("config.yml").write_text(
        "calibrate_heads: true\ncalibration_drift_apdd: 0.5\ncalibration_drift_heads: {net/lether: {apd: 0.5}}\n"
    )
    code, err = say(capsys, "drift", "run", "--scores", scores("a.csv", 0), "--model", "net", "--head", "leather")
    assert code == 0 and err.splitlines() == [
        "anomaly-nb: note: config.yml: nobody reads 'calibration_drift_apdd'; did you mean 'calibration_drift_apd'?",
        "anomaly-nb: note: calibration_drift_heads: there is no head 'net/lether'; did you mean 'net/leather'?",
    ]
    Path("config.yml").write_text("calibrate_heads: true\n")
    assert "differs from 'leather' only by case" in one_line(
        capsys, "drift", "run", "--scores", "a.csv", "--model", "net", "--head", "Leather"
    )
    assert "differs from 'net' only by case" in one_line(
        capsys, "drift", "run", "--scores", "a.csv", "--model", "NET", "--head", "grid"
    )
    with pytest.warns(Notice, match="net/lether"):
        CalibrationStore(
            "data/calibrations", Settings(calibrate_heads=True, calibration_drift_heads={"net/lether": {"apd": 0.5}})
        ).run()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("calibraton_foo: 3", "nobody reads 'calibraton_foo'; did you mean 'calibration_"),
        ("CALIBRATION_LIMIT: 3", "nobody reads 'CALIBRATION_LIMIT'; the nearest that is read is 'calibration_"),
        ("calibration_zzz: 3", "nobody reads 'calibration_zzz'; did you mean 'calibration"),
        ("calibrations: {ped2: {min_dep: 1}}", "nobody reads 'calibrations.ped2.min_dep'; did you mean "),
        ("logging: {level: debug}", ""),  # somebody else's
    ],
)
def test_a_setting_that_begins_like_one_of_ours_is_named(here, capsys, key, said):
    Path("config.yml").write_text(f"calibrate_heads: true\n{key}\n")
    table = scores("a.csv", 0)
    for words in (
        ("drift", "run", "--scores", table, "--model", "net", "--head", "leather"),
        ("drift", "tag", "--scores", table, "--model", "net", "--head", "leather", "--out", "out.csv"),
        ("drift", "history"),
        ("drift", "repair"),
    ):
        err = say(capsys, *words)[1]
        assert (f"config.yml: {said}" in err and err.count("nobody reads") == 1) if said else "nobody reads" not in err


def test_thresholds_given_as_text(tmp_path):
    root = tmp_path / "net/heads"
    root.mkdir(parents=True)
    for field, value in [
        ("threshold", "1.5"),
        ("p5", "0.1"),
        ("p95", True),
        ("threshold", [1]),
        ("p95", 10**400),
        ("threshold", {}),
    ]:
        bad = json.loads(TEXT)
        (bad if field == "threshold" else bad["labels"]["anomalous"])[field] = value
        (root / "h-calibration.json").write_text(json.dumps(bad))
        with pytest.raises(ValueError, match="must be numbers"):
            load_calibration(tmp_path, "net", "h")


LOOK = [
    ("history",),
    ("trend", "net", "h"),
    ("promote", "net", "h", "--version", "1"),
    ("run",),
    ("worker", "--retag"),
    ("repair",),
]


def test_damaged_pages(here, capsys):
    """Each page of the database in turn lost, torn or full of noise: every command says so in a line, or does not need
    that page.
    """
    for k in range(3):
        ok("drift", "run", "--scores", scores("a.csv", k, 60), "--model", "net", "--head", "h")
    capsys.readouterr()
    path, rng, told, fine = Path("data/calibrations/calibration.sqlite"), random.Random(0), 0, 0
    whole = path.read_bytes()
    pages = len(whole) // 4096
    for page in range(pages) if SLOW else sorted({0, 1, *rng.sample(range(pages), 7)}):
        for damage in (
            bytes(4096),
            rng.randbytes(4096),
            whole[page * 4096 :][:2048] + rng.randbytes(2048),
            bytearray(whole[page * 4096 :][:4096]),
        ):
            if isinstance(damage, bytearray):
                for _ in range(40):
                    damage[rng.randrange(4096)] = rng.randrange(256)
            for words in LOOK if SLOW else rng.sample(LOOK, 2):
                path.write_bytes(whole[: page * 4096] + damage + whole[(page + 1) * 4096 :])
                for extra in ("-wal", "-shm", "-journal"):
                    Path(f"{path}{extra}").unlink(missing_ok=True)
                code, err = say(capsys, "drift", *words)
                failed = code == 1 and words[0] == "worker" and "again in 10 s" in err  # it names the jobs that failed
                assert (code == 0 and not err) or failed or (code == 2 and err.count("\n") == 1), (page, words, err)
                told, fine = told + (code == 2), fine + (code == 0)
    path.write_bytes(whole[: len(whole) // 2])
    one_line(capsys, "drift", "repair")
    print(f"{pages} pages: {told} commands said what is wrong, {fine} did not need the page")
    assert told > 10


UNLUCKY = """
import contextlib, encodings.cp437, encodings.utf_8_sig, io, json, os, resource, signal, sys
import anomaly_nb.calibration.store, anomaly_nb.calibration.insight, anomaly_nb.calibration.pull, anomaly_nb.core.settings, pandas, ruamel.yaml, scipy.stats, filelock
from anomaly_nb.cli.main import main
from anomaly_nb.core.files import sha256_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit, words in json.loads(sys.argv[1]):
    if limit == "readonly":
        if os.geteuid() == 0: os.seteuid(65534)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    said, code = [io.StringIO(), io.StringIO()], 0
    try:
        with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]): main(words)
    except SystemExit as e: code = e.code or 0
    except BaseException as e: code = repr(e)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    state = None
    if limit != "readonly":
        store = anomaly_nb.calibration.store.CalibrationStore("data/calibrations")
        state = [store.table(q).iloc[0, 0] if q[0] == "P" else int(store.table(q).iloc[0, 0]) for q in ("PRAGMA integrity_check", "SELECT count(*) FROM scores", "SELECT count(*) FROM runs")]
    print(json.dumps([code, said[0].getvalue(), said[1].getvalue(), state]), flush=True)
"""


def unlucky(cases):
    """Exit code, stdout, stderr and state of the store after each command, in a process whose files cannot grow or
    which may not write.
    """
    done = subprocess.run([sys.executable, "-c", UNLUCKY, json.dumps(cases)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_full_disk(here):
    "No file can grow beyond so many bytes: one line, and afterwards the store is what it was, or has the whole run."
    run = ["drift", "run", "--scores", "a.csv", "--model", "net", "--head", "h"]
    scores("a.csv", 0, 2000)
    ok(*run)
    pack_calibrations("data/calibrations", "set.zip")
    size = Path("data/calibrations/calibration.sqlite").stat().st_size
    scores("a.csv", 1, 2000)
    limits = [0, 100, 4096, size, size + 4096, size + 40_000] + [size + 4096 * i for i in range(2, 60, 2)] * SLOW
    cases = [[100, ["drift", "pull", "set.zip", "--into", "line"]], *([limit, run] for limit in limits)]
    outcomes = unlucky(cases)
    for (limit, words), (code, _, err, state) in zip(cases, outcomes):
        assert ((code == 2 and err.count("\n") == 1 and "full" in err) or "arge" in err) or (code == 0 and not err), (
            limit,
            words,
            code,
            err,
        )
        assert state in (["ok", 2000, 1], ["ok", 4000, 1], ["ok", 4000, 2]), (limit, state)
        print(limit - size, code, err.strip()[-80:], state)
    assert not [p for p in here.rglob("*") if p.suffix == ".tmp"] and not list(Path("line").rglob("*.json"))
    assert sum(code == 2 for code, *_ in outcomes) >= 4
    ok(*run)
    assert (
        CalibrationStore("data/calibrations").repair()["written"] == []
        and CalibrationStore("data/calibrations").history()[0]["version"] == 2
    )


def test_a_folder_nobody_may_write_to():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "config.yml").write_text("calibrate_heads: true\n")
        a = str(scores(root / "a.csv", 0))
        common = ["--store", f"{root}/store", "--config", f"{root}/config.yml"]
        ok("drift", "run", "--scores", a, "--model", "net", "--head", "h", *common)
        pack_calibrations(root / "store", root / "set.zip")
        for p in [root, *root.rglob("*")]:
            p.chmod(0o555 if p.is_dir() else 0o444)
        refused = [["run", "--scores", a, "--model", "net", "--head", "i", *common], ["promote", "net", "h", "--version", "1", *common], ["repair", *common], ["worker", "--retag", *common], ["serve", "--new-key", *common[2:]],
                   ["run", "--scores", a, "--head", "h", "--store", f"{root}/new", *common[2:]], ["pull", f"{root}/set.zip", "--into", f"{root}/line", *common[2:]]]  # fmt: skip
        try:
            *done, looked = unlucky([["readonly", ["drift", *words]] for words in [*refused, ["history", *common]]])
        finally:
            for p in [root, *root.rglob("*")]:
                p.chmod(0o755)
        for words, (code, _, err, _) in zip(refused, done):
            assert code == 2 and err.count("\n") == 1 and ("rights" in err or "ermission" in err), (words, code, err)
        assert looked[0] == 0 and "net" in looked[1], looked
        assert sorted(p.name for p in root.iterdir()) == ["a.csv", "config.yml", "set.zip", "store"]


def test_leftovers_of_killed_writers(here, capsys):
    ok("drift", "run", "--scores", scores("a.csv", 0), "--model", "net", "--head", "h")
    killed = "import os, signal\nfrom anomaly_nb.core.files import atomic_write\nwith atomic_write('data/calibrations/net/heads/h-calibration.json') as f:\n    f.write(b'{'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", killed])
    assert len(list(Path("data").rglob(".*.tmp"))) == 1
    capsys.readouterr()
    ok("drift", "repair")
    assert "left by a killed writer, removed: net/heads/.h-calibration.json." in capsys.readouterr().out and not list(
        Path("data").rglob(".*.tmp")
    )
    with closing(sqlite3.connect("data/calibrations/calibration.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
