"""Bad input and bad luck: one clear error that names the file, nothing lost, nothing half-written."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomaly_nb.core.arrays import load_array
from anomaly_nb.core.errors import DataError, UnsafeFileError
from anomaly_nb.core.files import atomic_write, write_json
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import index_mvtec, read_image, write_samples
from anomaly_nb.features import FeatureSet, create_backbone, extract_features, load_features, save_features
from tests.commands import FIT, parts


@pytest.fixture
def samples(tmp_path):
    return write_samples(tmp_path / "samples", n_train=2, n_good=1, n_defect=1, size=64)


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "anomaly_nb.cli.main", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda s: (s / "nut/test/spot/000.png").unlink(), "1 mask without an image"),
    (lambda s: (s / "nut/ground_truth/spot/000_mask.png").unlink(), "1 image without a mask"),
    (lambda s: [p.unlink() for p in (s / "nut/train/good").iterdir()], "holds no images"),
    (lambda s: (s / "nut/test/good/000.png").write_bytes((s / "nut/test/good/000.png").read_bytes()[:500]), "000.png: damaged"),
    (lambda s: (s / "nut/test/good/000.png").write_text("not an image"), "000.png: damaged"),
])  # fmt: skip
def test_one_line_from_the_command_line(samples, tmp_path, spoil, words):
    spoil(samples)
    done = command("extract", samples, "--category", "nut", "--image-size", 64, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
    assert not list(tmp_path.rglob("*.npz")) and not list(tmp_path.rglob("*.tmp"))


def test_going_on_without_partners(samples, tmp_path):
    (samples / "nut/ground_truth/spot/000_mask.png").unlink()
    for switch, images in (("keep", 8), ("drop", 7)):
        done = command(
            "extract",
            samples,
            "--category",
            "nut",
            "--image-size",
            64,
            "--on-missing",
            switch,
            "--out",
            tmp_path / switch,
            cwd=tmp_path,
        )
        assert done.returncode == 0 and f"FeatureSet({images} images" in done.stdout, done.stderr


def test_extract_writes_the_specified_files(samples, tmp_path):
    done = command(
        "extract",
        samples,
        "--category",
        "nut",
        "--image-size",
        64,
        "--name",
        "dino",
        "--out",
        tmp_path / "d",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    names = sorted(p.relative_to(tmp_path / "d").as_posix() for p in (tmp_path / "d").rglob("*.*") if p.is_file())
    assert names == ["featurebanks/dinov2_b14/nut_bank_dinov2_b14.npz", "featurebanks/dinov2_b14/nut_bank_meta.csv",
                     "features_dinov2_b14/nut_dinov2_vitb14.npz", "features_dinov2_b14/nut_meta.csv"]  # fmt: skip


def feature_files(folder):
    index = index_mvtec(write_samples(folder / "s", 2, 1, 1, 64), "nut")
    features = extract_features(index, create_backbone("filters", image_size=64))
    return features, save_features(folder / "f", "nut", features)


@pytest.mark.parametrize(("change", "words"), [
    (lambda a: a.pop("patch_hw"), "no key 'patch_hw'"),
    (lambda a: a.update(patches=a["patches"][:, :5]), "does not make 5 patches"),
    (lambda a: a.update(patches=a["patches"][:3]), "rows for 3 images"),
    (lambda a: a.update(patches=a["patches"].reshape(-1)), "shape (N, P, D)"),
    (lambda a: a.update(patches=np.where(a["patches"] == a["patches"][0, 0, 0], np.nan, a["patches"])), "NaN"),
    (lambda a: a.update(patch_hw=np.array([64])), "patch_hw has shape"),
])  # fmt: skip
def test_bad_feature_files_are_named(tmp_path, change, words):
    _, path = feature_files(tmp_path)
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(DataError) as caught:
        load_features(tmp_path / "f", "nut")
    assert path.name in str(caught.value) and words in str(caught.value)


def test_pickles_are_never_read(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    np.save(tmp_path / "objects.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeFileError, match=r"objects\.npy"):
        load_array(tmp_path / "objects.npy")
    assert not (tmp_path / "executed").exists()


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    features, path = feature_files(tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_features(tmp_path / "f", "nut", FeatureSet(features.patches * 2, features.patch_hw, features.meta))
    assert caught.value.filename and path.read_bytes() == before
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tmp"]


WRITER = """
import itertools, sys
from anomaly_nb.core.files import write_json
for i in itertools.count():
    write_json(sys.argv[1], {"number": i, "filling": "x" * 20000})
"""


def test_killed_writers_leave_whole_files(tmp_path):
    import time

    target = tmp_path / "state.json"
    write_json(target, {"number": -1, "filling": ""})
    for i in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)])
        time.sleep(0.35 + 0.03 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert set(read_json(target)) == {"number", "filling"}


def test_two_writers_of_settings_lose_nothing(tmp_path):
    code = "import sys\nfrom anomaly_nb.core.settings import update_settings\nfor i in range(15): update_settings(sys.argv[1], {sys.argv[2] + str(i): i})"
    config = tmp_path / "config.yml"
    config.write_text("# by hand\n")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(config), name]) for name in "ab"]
    assert [w.wait() for w in writers] == [0, 0]
    text = config.read_text()
    assert all(f"{name}{i}: {i}\n" in text for name in "ab" for i in range(15)) and "# by hand" in text


def test_truncated_jpeg_is_refused(tmp_path):
    from PIL import Image

    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"a\.jpg: damaged"):
        read_image(path)


def test_interrupted_write_in_the_middle_of_a_block(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_write(tmp_path / "x.bin") as f:
            f.write(b"half")
            raise KeyboardInterrupt
    assert list(Path(tmp_path).iterdir()) == []


def test_commands_work_with_a_standard_stream_closed(tmp_path):
    "`2>&-` of a service or a scheduler: everything but the lines of that stream is as it always is."
    parts(tmp_path / "good", range(6))
    parts(tmp_path / "more", range(6, 9))
    words = [sys.executable, "-m", "anomaly_nb.cli.main"]
    for closed, command, start in (
        ("2>&-", ("fit", "good", "--out", "det", *FIT), "learned from 6 normal images"),
        ("2>&-", ("predict", "det", "more"), "3 images: "),
        ("0<&- 2>&-", ("update", "det", "more"), "version 2: learned from 9 normal images"),
        ("1>&-", ("inspect", "good"), ""),
    ):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *words, *command],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"ANOMALY_NB_PROGRESS": ""},
        )
        assert done.returncode in (0, 3) and done.stdout.startswith(start), (closed, done)
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 4
    said = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *words, "inspect", "nowhere"], stdout=subprocess.PIPE)
    assert (said.returncode, said.stdout) == (2, b"")
