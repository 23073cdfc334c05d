"""Exported graphs against the detectors they came from: recipes, networks, sizes, depths, and a process that cannot
import torch.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
import torch
from PIL import Image

from anomaly_nb.core.errors import DataError
from anomaly_nb.core.order import printable
from anomaly_nb.core.plain import read_json
from anomaly_nb.data import read_index
from anomaly_nb.data.samples import write_samples
from anomaly_nb.scoring import Detector, export, predict_files

SLOW = bool(os.environ.get("ANOMALY_NB_SLOW"))
ALONE = """
import runpy, sys
for name in ("torch", "anomaly_nb", "scipy", "pandas", "PIL"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
assert not any(name.startswith("torch") and module for name, module in sys.modules.items())
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    write_samples(root, n_train=6, n_good=1, n_defect=1, size=80)
    return read_index("mvtec", root, "nut")


def fitted(index, recipe, backbone="timm:resnet18?layers=(2,3)&pool=3", **given):
    weights = "random" if ":" in backbone else ""
    torch.manual_seed(0)
    given = {"image_size": 64, "coreset": 0.5} | given
    return Detector(recipe, backbone, weights, **given).fit(index)


def run(path, images, outputs=("score", "map", "patches")):
    return onnxruntime.InferenceSession(path).run(list(outputs), {"image": images})


@pytest.mark.parametrize(
    "recipe, given",
    [
        ("knn", {"backbone": "filters"}),
        ("placed", {"backbone": "filters"}),
        ("knn-euclidean", {"backbone": "timm:vit_tiny_patch16_224", "k": 3, "aggregation": "mean", "sigma": 0.0}),
        ("patchcore", {}),
        ("padim", {"backbone": "timm:resnet18?layers=(1,2,3)&pool=0"}),
        ("gauss_knn", {"aggregation": "top5%"}),
        pytest.param(
            "subspace",
            {"backbone": "open_clip:ViT-S-32-alt", "image_size": 224},
            marks=pytest.mark.skipif(not SLOW, reason="a large network"),
        ),
    ],
)
def test_scores_are_the_librarys(index, tmp_path, recipe, given):
    """Files of several sizes, one by one: score, patch scores and map to 1e-4 of what `predict` says, relative above
    one.
    """
    detector = fitted(index, recipe, **given)
    path = detector.export(tmp_path)
    rng, session = np.random.default_rng(0), onnxruntime.InferenceSession(path)
    near = lambda a, b: np.abs(a - b) <= 1e-4 * np.maximum(np.abs(b), 1)
    for i, shape in enumerate([(80, 80), (64, 64), (31, 150), (150, 31), (80, 50)]):
        file = tmp_path / f"{i}.png"
        base = np.asarray(Image.open(index.image_path[i]).convert("RGB").resize(shape[::-1]))
        Image.fromarray((base * rng.uniform(0.8, 1)).astype(np.uint8)).save(file)
        plain = next(predict_files(detector, [file]))
        score, heat, patches = session.run(["score", "map", "patches"], {"image": np.asarray(Image.open(file))[None]})
        assert near(score[0], plain.score) and near(patches.reshape(-1), plain.patch_scores).all(), (
            shape,
            score[0],
            plain.score,
        )
        assert heat.shape == (1, *shape) and near(heat[0], detector.heatmaps([file])[0]).all()
    about = read_json(tmp_path / "export.json")
    assert (
        about["differs_by"] <= 1e-4 and about["threshold"] == detector.threshold_.value and len(about["held_out"]) == 6
    )
    print(f"{recipe}, {detector.parts().backbone}: differs by {about['differs_by']:.1e}")


def test_script_runs_where_torch_cannot_be_imported(index, tmp_path):
    detector = fitted(index, "patchcore")
    detector.export(tmp_path / "line")
    for path, plain in zip(index.image_path[-2:], predict_files(detector, index.image_path[-2:]), strict=True):
        np.save(tmp_path / "part.npy", np.asarray(Image.open(path).convert("RGB")))
        words = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "line/predict.py"), str(tmp_path / "part.npy")]
        answer = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
        said = json.loads(answer.stdout)
        assert answer.returncode == (3 if plain.anomalous else 0), answer
        assert abs(said["score"] - plain.score) <= 1e-4 * max(1, plain.score) and said["anomalous"] == bool(
            plain.anomalous
        )
        assert said["p_value"] == pytest.approx(plain.p_value)
        y, x = said["hottest"]
        assert 0 <= y < 80 and 0 <= x < 80
    script = (tmp_path / "line/predict.py").read_text().splitlines()
    assert len(script) - script.index("import numpy as np, onnxruntime") - 1 <= 11  # ten lines beside its imports
    assert max(map(len, script)) <= 120


def test_script_reads_files_as_predict_does_or_refuses_them(index, tmp_path):
    detector = fitted(index, "patchcore")
    detector.export(tmp_path / "line")
    image, exif = Image.open(index.image_path.iloc[-1]).convert("RGB"), Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    image.crop((0, 0, 80, 50)).save(tmp_path / "rotated.png", exif=exif)
    image.convert("L").save(tmp_path / "grey.png")
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.arange(80, dtype=np.uint8) * 3, (80, 1))))
    clear.save(tmp_path / "rgba.png")
    clear.convert("LA").save(tmp_path / "la.png")
    image.quantize(16).save(tmp_path / "palette.png")
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.save(tmp_path / "film.gif", save_all=True, append_images=[image.rotate(90)])
    image.crop((0, 0, 3, 2)).save(tmp_path / "tiny.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:500])
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((80, 80, 3), 900, np.uint16))
    Image.fromarray(np.full((80, 80), 900, np.uint16)).save(tmp_path / "deep.tif")
    (tmp_path / "text.jpg").write_text("no image")
    script = [sys.executable, str(tmp_path / "line/predict.py")]
    answer = lambda *names: subprocess.run(
        [*script, *(str(tmp_path / n) for n in names)], capture_output=True, text=True, check=False
    )
    for name in ("rotated.png", "grey.png", "rgba.png", "la.png", "palette.png", "cmyk.tif", "film.gif"):
        plain = next(predict_files(detector, [tmp_path / name]))
        assert json.loads(answer(name).stdout)["score"] == pytest.approx(plain.score, rel=1e-4), name
    assert "film.gif: the first of 2 frames is read" in answer("film.gif").stderr
    told = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True)
    assert "python predict.py part.png" in told.stdout and not told.stderr
    assert "highest\npixel of the smoothed map" in told.stdout
    bad = ("deep.tif", "deep.png", "text.jpg", "gone.png", "cut.png", "cut.npy", "tiny.png")
    for name in bad:
        said = answer(name)
        assert said.returncode == 1 and len(said.stderr.strip().splitlines()) == 1, (name, said)
        row = json.loads(said.stdout)
        assert row.keys() == {"image_path", "error"} and f"{tmp_path / name}: {row['error']}\n" == said.stderr, (
            name,
            row,
        )
        assert said.stderr.startswith(f"{tmp_path / name}: ") and "cannot identify" not in said.stderr, said
    said = answer()
    assert said.returncode == 2 and not said.stdout and len(said.stderr.strip().splitlines()) == 1
    assert "python predict.py part.png" in said.stderr


def test_script_goes_on_after_a_damaged_image(index, tmp_path):
    "A line of JSON for each image, with the error of what cannot be judged, which stderr names, and predict's exit codes."
    detector = fitted(index, "patchcore")
    detector.export(tmp_path / "line")
    judged = list(predict_files(detector, index.image_path))
    good = next(p.image_path for p in judged if not p.anomalous)
    bad = next(p.image_path for p in judged if p.anomalous)
    (tmp_path / "two\nlines.png").write_text("no image")
    for name, content in (("cut.png", Path(good).read_bytes()[:300]), ("empty.jpg", b""), ("text.npy", b"no array")):
        (tmp_path / name).write_bytes(content)
    np.save(
        tmp_path / "unit.npy", np.random.default_rng(0).random((40, 40, 3), np.float32)
    )  # uint8 would make it black
    glass = Image.open(good).convert("RGBA")
    glass.putalpha(100)
    glass.save(tmp_path / "glass.png")
    broken = [str(tmp_path / n) for n in ("cut.png", "empty.jpg", "text.npy", "unit.npy", "two\nlines.png")] + [
        str(tmp_path)
    ]
    script = [sys.executable, str(tmp_path / "line/predict.py")]
    for names, code in (((broken[0], good, *broken[1:]), 4), ((*broken, bad, good), 3), ((good, good), 0), (broken, 1)):
        said = subprocess.run([*script, *names], capture_output=True, text=True, check=False)
        lines = said.stderr.splitlines()
        assert said.returncode == code, said
        rows = [json.loads(line) for line in said.stdout.splitlines()]
        assert [row["image_path"] for row in rows] == [*names]
        assert all(("error" in row) == (row["image_path"] in broken) == ("score" not in row) for row in rows), rows
        assert len(lines) == sum(n in broken for n in names) and "Traceback" not in said.stderr, lines
        assert all(any(line.startswith(f"{printable(n)}: ") for line in lines) for n in names if n in broken), lines
        assert not any(word in said.stderr for word in ("cannot identify", "Warning", "truncated", "PIL")), said.stderr
    said = subprocess.run([*script, str(tmp_path / "glass.png")], capture_output=True, text=True, check=False)
    assert said.stderr == f"{tmp_path / 'glass.png'}: what is transparent is read as black\n"


def test_a_folder_of_other_files_is_refused(index, tmp_path):
    "What a person wrote there is not written over; an earlier export is."
    detector = fitted(index, "patchcore")
    (tmp_path / "line").mkdir()
    (tmp_path / "line/predict.py").write_text("mine")
    with pytest.raises(DataError, match="line: holds other files; give it its own folder"):
        detector.export(tmp_path / "line")
    with pytest.raises(DataError, match=r"predict\.py: a file; give it its own folder"):
        detector.export(tmp_path / "line/predict.py")
    assert [p.name for p in (tmp_path / "line").iterdir()] == ["predict.py"]
    assert (tmp_path / "line/predict.py").read_text() == "mine"
    first = detector.export(tmp_path / "own").read_bytes()
    assert detector.export(tmp_path / "own").read_bytes() == first
    with pytest.raises(DataError, match="holds other files"):
        detector.save(tmp_path / "own")


def test_an_export_over_another_leaves_nothing_of_it(index, tmp_path, monkeypatch):
    "A graph never runs with the threshold of another: not of another format, and not where the export was killed."
    first, second = fitted(index, "knn", "filters"), fitted(index, "knn", "filters", image_size=48)
    line, files = tmp_path / "line", ["detector.onnx", "export.json", "image_file.py", "predict.py"]
    names = lambda: sorted(p.name for p in line.iterdir())
    asked = lambda: subprocess.run(
        [sys.executable, str(line / "predict.py"), index.image_path.iloc[0]],
        capture_output=True,
        text=True,
        check=False,
    )
    first.export(line)
    (line / "mine.txt").write_text("kept")
    second.export(line, "torchscript")
    assert names() == ["detector.pt", "export.json", "mine.txt"]
    first.export(line)
    assert names() == [*files[:3], "mine.txt", files[3]] and asked().returncode in (0, 3)
    whole = {name: (line / name).read_bytes() for name in files}
    replace, moved = os.replace, []

    def ends(source, target, stop=9):
        if Path(source).parent.name.endswith(".tmp") and "export-" not in str(source) and Path(source).name.isdigit():
            if len(moved) == stop:
                raise KeyboardInterrupt
            moved.append(Path(target).name)
        replace(source, target)

    with monkeypatch.context() as m:
        m.setattr(os, "replace", ends)
        second.export(tmp_path / "other")
        order = [*moved]  # in which files get their names
        assert sorted(order) == sorted(files)
        graph = (tmp_path / "other" / "detector.onnx").read_bytes()
        m.setattr(export, "_onnx", lambda *_: graph)  # its conversion, of seconds, gives this again
        for stop in range(4):  # interrupted: all is as it was
            moved.clear()
            m.setattr(os, "replace", partial(ends, stop=stop))
            with pytest.raises(KeyboardInterrupt):
                second.export(line)
            assert {name: (line / name).read_bytes() for name in files} == whole
    for after in range(4):  # killed before the file of this number is in its place
        for i, name in enumerate(order):
            (line / name).write_bytes((tmp_path / "other" / name).read_bytes() if i < after else whole[name])
        said = asked()
        mixed = (line / "detector.onnx").read_bytes() != whole["detector.onnx"]
        assert (said.returncode in (0, 3)) != mixed and mixed == (after == 3), (after, said)
        if mixed:
            assert (
                said.returncode == 2
                and not said.stdout
                and said.stderr
                == (
                    f"{line}: detector.onnx is not the graph that export.json was written for; export the detector again\n"
                )
            )
    (line / "detector.onnx").unlink()
    said = asked()
    assert said.returncode == 2 and said.stderr.startswith(
        f"{line}: detector.onnx or export.json cannot be read (FileN"
    )
    assert said.stderr.count("\n") == 1


def test_torchscript_and_batches(index, tmp_path):
    "TorchScript gives what ONNX gives, and several images at once what each gives alone."
    detector = fitted(index, "patchcore")
    script, graph = torch.jit.load(detector.export(tmp_path / "a", "torchscript")), detector.export(tmp_path / "b")
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
    whole = run(graph, images)
    for i in range(3):
        for a, b, c in zip(
            run(graph, images[i : i + 1]), whole, script(torch.from_numpy(images[i : i + 1])), strict=True
        ):
            np.testing.assert_allclose(a[0], b[i], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(a[0], c[0].numpy(), rtol=1e-4, atol=1e-4)


def test_deep_cameras(tmp_path):
    "Values of 12 bits go in as they are; the rule is in the graph."
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray((rng.random((70, 90)) * 900 + 2000).astype(np.uint16)).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    detector = Detector("knn", image_size=64).fit(paths)
    assert not detector.intensity_.eight_bit
    path = detector.export(tmp_path / "out")
    values = np.repeat(np.asarray(Image.open(paths[3])).astype(np.float32)[None, ..., None], 3, axis=3)
    assert run(path, values, ["score"])[0][0] == pytest.approx(
        next(predict_files(detector, paths[3:4])).score, abs=1e-4
    )
    assert read_json(tmp_path / "out/export.json")["input"] == "float32"
    grey = np.asarray(Image.open(paths[3]))
    arrays = {
        "grey": grey,
        "rgb": np.repeat(grey[..., None], 3, 2),
        "unit": grey / 65535,
        "eight": (grey >> 8).astype("u1"),
    }
    for name, array in (arrays | {"one": grey[..., None]}).items():
        np.save(tmp_path / f"{name}.npy", array)
    script = [sys.executable, str(tmp_path / "out/predict.py")]
    asked = lambda name: subprocess.run([*script, str(tmp_path / name)], capture_output=True, text=True, check=False)
    for name in ("grey.npy", "rgb.npy"):
        said = asked(name)
        score = next(predict_files(detector, paths[3:4])).score
        assert said.returncode in (0, 3) and json.loads(said.stdout)["score"] == pytest.approx(score, abs=1e-4), said
    for name, why in (
        ("unit.npy", "holds float64 values, and the detector learned from uint16; convert it"),
        ("eight.npy", "holds uint8 values, and the detector learned from uint16; convert it"),
        ("one.npy", "holds (70, 90, 1), not (height, width) or (height, width, 3) of at least 8 x 8 pixels"),
        ("3.png", "give a .npy of uint16, (height, width) or (height, width, 3), or use anomaly-nb predict"),
    ):
        said = asked(name)
        assert said.returncode == 1 and said.stderr.endswith(f"{why}\n") and said.stderr.count("\n") == 1, said


@pytest.mark.parametrize(
    "recipe, given, what",
    [
        ("positional", {"backbone": "filters"}, "PositionalBank is not exported"),
        ("retrieval", {"backbone": "filters"}, "RetrievalBank is not exported"),
        ("musc", {"backbone": "filters"}, "re-ranking is not exported"),
        ("spade", {"backbone": "filters"}, "aggregation='retrieval' is not exported"),
        ("knn", {"backbone": "filters", "object_threshold": 1.0}, "mask"),
        ("knn", {"backbone": "filters?resize=short"}, "resize='short' is not exported"),
        ("knn", {"backbone": "filters-1"}, "is not exported"),
    ],
)
def test_what_cannot_be_exported_is_said_before_work(index, tmp_path, recipe, given, what):
    detector = fitted(index, recipe, **given)
    with pytest.raises(ValueError, match=what):
        detector.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(index, tmp_path, capsys):
    "Writes what the method writes, and refuses in one line what the method refuses."
    from anomaly_nb.cli.main import main

    def typed(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(w) for w in words])
        return ended.value.code, *capsys.readouterr()

    model = fitted(index, "knn", "filters")
    model.save(tmp_path / "part")
    code, said, error = typed("export", tmp_path / "part", tmp_path / "line")
    assert (
        code == 0
        and not error
        and said.splitlines()[1:]
        == [
            str(tmp_path / "line/detector.onnx"),
            f"run it: python {tmp_path / 'line/predict.py'} part.png",
        ]
    )
    np.save(tmp_path / "grey.npy", np.full((40, 40), 9, np.uint8))
    words = [sys.executable, str(tmp_path / "line/predict.py"), str(tmp_path / "grey.npy")]
    assert subprocess.run(words, capture_output=True, check=False).returncode in (0, 3)
    model.export(tmp_path / "method")
    assert (tmp_path / "line/detector.onnx").read_bytes() == (tmp_path / "method/detector.onnx").read_bytes()
    assert typed("export", tmp_path / "part", tmp_path / "line", "--format", "torchscript")[0] == 0  # an earlier export
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 4000, (64, 64), np.uint16)).save(tmp_path / f"{i}.png")
    deep = Detector("knn", "filters", image_size=64, coreset=0.5).fit([str(tmp_path / f"{i}.png") for i in range(4)])
    deep.save(tmp_path / "deep")
    assert typed("export", tmp_path / "deep", tmp_path / "camera")[1].splitlines()[2:] == [
        f"run it: python {tmp_path / 'camera/predict.py'} part.npy",
        "it takes .npy files of uint16, (height, width) or (height, width, 3): image files are read of 8 bits alone",
    ]
    fitted(index, "retrieval", "filters").save(tmp_path / "other")
    for words, sentence in (
        ((tmp_path / "other", tmp_path / "new"), "a RetrievalBank is not exported; fit with one of knn, "),
        ((tmp_path / "part", tmp_path), "holds other files"),
        ((tmp_path / "part", tmp_path / "part"), "lies in the detector part"),
        ((tmp_path / "nowhere", tmp_path / "new"), "no such file"),
        ((tmp_path / "part", tmp_path / "new", "--format", "tflite"), "--format tflite: use onnx or torchscript"),
    ):
        code, said, error = typed("export", *words)
        assert code == 2 and not said and error.count("\n") == 1 and sentence in error, error
        assert not (tmp_path / "new").exists()


def test_script_without_a_reader_and_without_standard_error(index, tmp_path):
    "`| head -1` ends it without a word; with `2>&-` the lines of errors are not among those of results."
    fitted(index, "knn", "filters").export(tmp_path / "line")
    (tmp_path / "cut.png").write_bytes(b"no image")
    script = [sys.executable, str(tmp_path / "line/predict.py")]
    files = [index.image_path.iloc[0]] * 40
    for after in (1, 0):  # lines that are read
        process = subprocess.Popen([*script, *files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert all("score" in json.loads(process.stdout.readline()) for _ in range(after))
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)
        process.stderr.close()
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh"]
    said = subprocess.run([*closed, *script, tmp_path / "cut.png", files[0]], stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert said.returncode == 4 and ["error" in row for row in rows] == [True, False], said
    said = subprocess.run([*closed, *script], stdout=subprocess.PIPE, text=True)
    assert said.returncode == 2 and not said.stdout, said
