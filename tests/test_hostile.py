"Hostile and unlucky input: archives, files, database pages, full disks, folders nobody may write to. One line each, bounded memory, nothing half-written (ANOMALY_NB_SLOW=1 for full size)."

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from anomaly_nb.calibration.pull import pull_calibrations
from anomaly_nb.calibration.store import CalibrationStore, load_calibration
from anomaly_nb.core.errors import Notice
from anomaly_nb.core.files import write_json
from anomaly_nb.core.settings import Settings, load_settings

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
DEV = Settings(calibrate_heads=True)
GOOD = {"labels": {"anomalous": {"p5": 0.1, "p95": 0.9, "method": "minmax"}}, "threshold": 1.5, "version": 1}
TEXT = json.dumps(GOOD).encode()


def command(*words, cwd, **more):
    return subprocess.run([sys.executable, "-m", "anomaly_nb.cli.main", *map(str, words)], cwd=cwd, capture_output=True, text=True, **more)


def one_line(done, *words):
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert all(w in done.stderr for w in words), done.stderr
    return done.stderr


def tar_header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data):
    return data + b"\0" * (-len(data) % 512)


def zip_of(path, members, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as z:
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
    zip_of(path, [("manifest.json", b'{"files":[' + b"[]," * 690_000 + b"[]]}"), ("net/heads/h-calibration.json", TEXT)])


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


def tar_pax(kind, chained):
    def make(path):
        record = "".join(f"{len(k := f' {i:x}=b') + 3:d}{k}\n" for i in range(0x1000, 0x1500)).encode()
        with bz2.open(path, "wb") if SLOW else gzip.open(path, "wb", 1) as f:
            for i in range(20_000 if SLOW else 500):
                f.write(tar_header("pax", len(record), kind) + padded(record))
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
    path.write_bytes(path.read_bytes().replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00").replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"))


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
from anomaly_nb.calibration.pull import pull_calibrations
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
    "Each attack in turn in one process, whose peak counts; the limit is 300 MB, the interpreter and its libraries included."
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
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".json", ".tmp")] and not list((tmp_path / "line").glob("*/heads/*"))


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
