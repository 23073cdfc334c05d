"What a stranger typed: a wrong option is refused in one line before any work, and an interrupted command says what is left."

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from anomaly_nb.core.plain import read_json
from anomaly_nb.core.files import write_json
from anomaly_nb.core.runtime import import_torchvision
from anomaly_nb.data.samples import draw_sample
from anomaly_nb.scoring import Detector
from anomaly_nb.scoring.detector_files import write_detector_manifest
from anomaly_nb.scoring.service import BadImage, read_detectors
from tests.commands import FIT, fails, parts, run

FILTERS = ["--backbone", "filters", "--image-size", "48"]


# ---- photographs that are stored sideways


def test_images_with_an_exif_orientation_are_counted_wherever_they_are_read(fitted, tmp_path):
    photos, sideways = tmp_path / "photos", Image.Exif()
    sideways[0x0112] = 6
    photos.mkdir()
    for i in range(10):
        image = Image.fromarray(draw_sample("nut", "good", 40 + i, size=48)[0])
        image.save(photos / f"{i}.jpg", **({"exif": sideways} if i < 2 else {}))
    line = "2 images bear an EXIF orientation, the first 0.jpg: read upright, and pixels are those of the upright image"
    _, said, _ = run("inspect", photos)
    assert "with an EXIF orientation, and read upright" in said and "0.jpg" in said
    code, said, _ = run("fit", photos, "--out", tmp_path / "det", *FILTERS, "--recipe", "knn")
    assert code == 0 and f"note: {line}" in said
    _, said, _ = run("predict", tmp_path / "det", photos, "--out", tmp_path / "p.csv")
    assert f"note: {line}" in said
    _, said, _ = run("predict", tmp_path / "det", photos / "5.jpg", "--out", tmp_path / "p.csv")
    assert "EXIF" not in said
    Image.fromarray(draw_sample("nut", "good", 60, size=48)[0]).save(tmp_path / "late.jpg", exif=sideways)
    code, said, error = run("update", tmp_path / "det", tmp_path / "late.jpg")
    assert code == 0 and "note: 1 image bears an EXIF orientation, the first late.jpg" in said, error


# ---- types of files


def test_files_of_a_type_that_the_detector_never_saw_are_counted(fitted, tmp_path):
    assert Detector.load(fitted / "det").file_types_ == {"PNG RGB": 8}
    (tmp_path / "new").mkdir()
    for i, (form, mode) in enumerate([("png", "RGB"), ("bmp", "RGB"), ("jpg", "RGB"), ("png", "L"), ("tif", "CMYK"), ("png", "P")]):
        Image.fromarray(draw_sample("nut", "good", 20 + i, size=48)[0]).convert(mode).save(tmp_path / f"new/{i}.{form}")
    _, said, _ = run("predict", fitted / "det", tmp_path / "new", "--out", tmp_path / "p.csv")
    (line,) = [line for line in said.splitlines() if "never saw" in line]
    assert line.startswith("note: 4 images are of a type of file that the detector never saw (1 JPEG RGB, 1 PNG L, 1 TIFF CMYK, 1 PNG P")
    assert "it learned from 8 PNG RGB" in line
    notes = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)["note"].tolist()
    assert [bool(n) for n in notes] == [False, False, True, True, True, True] and "JPEG RGB" in notes[2] and "PNG P" in notes[5]
    (served,) = read_detectors(fitted / "det").values()
    answers = [served.predict((tmp_path / f"new/{n}").read_bytes(), "image/x", None, tmp_path) for n in ("0.png", "2.jpg")]
    assert answers[0].note == "" and "never saw" in answers[1].note


def test_an_update_says_which_types_are_new_and_counts_them(fitted, tmp_path):
    Detector.load(fitted / "det").save(tmp_path / "det")
    (tmp_path / "more").mkdir()
    for i in range(2):
        Image.fromarray(draw_sample("nut", "good", 30 + i, size=48)[0]).save(tmp_path / f"more/{i}.jpg", quality=95)
    code, said, _ = run("update", tmp_path / "det", tmp_path / "more")
    assert code == 0 and "2 images are of a type of file that the detector never saw (2 JPEG RGB" in said
    assert Detector.load(tmp_path / "det").file_types_ == {"PNG RGB": 8, "JPEG RGB": 2}
    assert "never saw" not in run("predict", tmp_path / "det", tmp_path / "more", "--out", tmp_path / "p.csv")[1]


def test_a_detector_that_did_not_look_says_nothing(fitted, tmp_path):
    model = Detector.load(fitted / "det")
    folder = model.save(tmp_path / "det")
    about = read_json(folder / "detector.json")
    del about["file_types"]
    write_json(folder / "detector.json", about)
    write_detector_manifest(model, folder)
    Image.fromarray(draw_sample("nut", "good", 40, size=48)[0]).save(tmp_path / "a.jpg")
    code, said, _ = run("predict", folder, tmp_path / "a.jpg", "--out", tmp_path / "p.csv")
    assert code in (0, 3) and "never saw" not in said


# ---- before any work


@pytest.mark.parametrize(
    "words, says",
    [
        (("--groups", "^(part"), "--groups '^(part': no regular expression"),
        (("--groups", "^(line[0-9])_"), "--groups '^(line[0-9])_': 0.png does not match; every image needs a group"),
        (("--groups", "parent"), "--groups parent: all 8 images are in one group"),
        (("--region", "0,0,500,48"), "--region 0,0,500,48: top 0, left 0, bottom 500, right 48 is no box within"),
        (("--region", "0,0,x,48"), "--region 0,0,x,48: is neither a box"),
        (("--region", "1,2,3"), "give top,left,bottom,right"),
        (("--region", "nowhere.png"), "--region nowhere.png: is neither a box"),
        (("--shots", "500"), "has 8 normal training images; give at most 8, or -1 for all"),
        (("--shots", "1", "--recipe", "padim"), "--shots 1: one normal image gives no threshold; give at least 2"),
        (("--budget-ms", "0.001"), "--budget-ms 0.001: an image takes"),
        (("--budget-mb", "0.0001"), "MB; give at least that"),
        (("--recipe", "padim", "--budget-ms", "9"), "--budget-ms 9: padim has no bank whose size could be chosen"),
        (("--recipe", "padim", "--coreset", "0.5"), "--coreset 0.5: padim has no bank whose size could be chosen"),
        (("--tile", "32"), "--overlap 64: tiles of 32 pixels have an overlap of at most half a tile; give --overlap 16 or less"),
        (("--tile", "32", "--overlap", "16", "--resize", "pad"), "--resize pad: tiles are square; use --resize square"),
        (("--tile", "4096"), "--tile 4096: no image is as large, the largest has 48 pixels a side"),
    ],
)
@pytest.mark.parametrize("recipe", ["auto", "knn"])
def test_fit_refuses_what_cannot_work_before_it_computes(fitted, tmp_path, capsys, monkeypatch, words, says, recipe):
    def compute(*arguments, **options):
        pytest.fail("features of all images were computed")

    monkeypatch.setattr("anomaly_nb.scoring.choice.artificial_validation", compute)
    monkeypatch.setattr("anomaly_nb.scoring.preparation.image_features", compute)
    monkeypatch.setattr("anomaly_nb.scoring.learning.how_seen", compute)
    words = words if "--recipe" in words else (*words, "--recipe", recipe)
    err = fails(capsys, "fit", fitted / "good", "--out", tmp_path / "det", *FILTERS, *words)
    assert says in err and not (tmp_path / "det").exists()


def test_the_advised_overlap_and_budget_are_taken(fitted, tmp_path, capsys):
    base = ("fit", fitted / "good", "--out", tmp_path / "det", *FILTERS[:2], "--recipe", "knn", "--false-alarms", 0.2)
    assert run(*base, "--tile", 32, "--overlap", 16)[0] == 0
    least = re.search(r"an image takes ([\d.]+) ms", fails(capsys, *base, "--budget-ms", 0.001))
    assert least and run(*base, "--budget-ms", 20 * float(least[1]))[0] == 0


def test_a_budget_leaves_only_recipes_that_can_keep_it(fitted, tmp_path):
    code, said, error = run("fit", fitted / "good", "--out", tmp_path / "det", *FILTERS, "--budget-mb", 0.5)
    assert code == 0 and Detector.load(tmp_path / "det").budget_["bank_mb"] <= 0.5, (said, error)
    assert "mahalanobis" not in said


@pytest.mark.parametrize(
    "words, says",
    [
        (("--every", 5), "--every 5: is for --watch only; give --watch as well, or leave it out"),
        (("--idle", 2), "--idle 2: is for --watch only"),
        (("--layout", "mvtec-ad-2"), "--layout mvtec-ad-2: name the folder of the submission with --maps"),
    ],
)
def test_predict_refuses_options_that_it_would_ignore(fitted, tmp_path, capsys, words, says):
    err = fails(capsys, "predict", fitted / "det", fitted / "good", "--out", tmp_path / "p.csv", *words)
    assert says in err and not (tmp_path / "p.csv").exists()


def test_other_commands_refuse_options_that_they_would_ignore(fitted, tmp_path, capsys):
    assert "--name line3: is for --new-key only" in fails(capsys, "serve", fitted / "det", "--name", "line3")
    assert "--max-image-count 5: is for --all only" in fails(capsys, "score-video", "--max-image-count", 5)
    assert "--fit-root x: is for --fit-data only" in fails(capsys, "street", "evaluate", "--scores", "s", "--fit-root", "x")
    assert "--normal 'good'" in fails(capsys, "inspect", _table(tmp_path, fitted), "--normal", "good")


IGNORED = {
    "street evaluate r --name x": "--name x: is for --scores, --logits or --model only; give one of them as well, or leave it out",
    "street evaluate r --out x": "--out x: has no effect with RUN; leave out --out or RUN",
    "street evaluate r --temperature 2": "--temperature 2: is for --logits or --model only",
    "street evaluate r --fit-images 4": "--fit-images 4: is for --logits or --model only",
    "street evaluate r --mean 0.5": "--mean 0.5: is for --model only",
    "street evaluate --scores s --panels 3": "--panels 3: has no effect with --scores; leave out --panels or --scores",
    "street evaluate --scores s --methods msp": "--methods msp: has no effect with --scores",
    "street evaluate --scores s --same-classes": "--same-classes: is for --logits or --model only",
    "street evaluate --scores s --fit-data camvid": "--fit-data camvid: is for --logits or --model only",
    "street evaluate --logits l --refit": "--refit: is for RUN only; give RUN as well, or leave it out",
    "street evaluate --logits l --as-stored": "--as-stored: is for RUN only",
    "street evaluate --logits l --other-size": "--other-size: is for RUN only",
    "street evaluate --logits l --average probabilities": "--average probabilities: is for --model only",
    "street evaluate --logits l --root streets": "--data samples: they are drawn, and nothing is read from streets",
    "street evaluate --model m:f --average probabilities": "--average probabilities: is for several networks",
    "street evaluate --model m:f --std 1": "--std 1: is for a network in a file (.pt .pth .ts .pt2 .onnx)",
    "street evaluate --model m:f --input uint8": "--input uint8: is for a network in a file",
    "street evaluate --model m:f --patches filters": "--patches filters: none of max_logit, msp, energy reads features",
    "street evaluate --model m:f --methods max_logit --temperature 2": "--temperature 2: none of max_logit reads it",
    "street train r --methods max_logit --temperature 2": "--temperature 2: none of max_logit reads it",
    "street train r --methods msp --adapt 0.9": "--adapt 0.9: is for heat",
    "street ablate o --split val": "--split val: is for --run only",
    "street ablate o --run r": "--run r: the study augmentation trains its own networks",
    "street ablate o --study heat --run r --epochs 3": "--epochs 3: has no effect with --run; leave out --epochs or --run",
    "street ablate o --study heat --run r --seeds 1": "--seeds 1: has no effect with --run",
    "street ablate o --study promise --run r --methods msp": "--methods msp: the study promise has scores of its own",
    "atoms captions --frames_root f --out o --text_dir t --model m": "--model m: has no effect with --text_dir",
    "atoms captions --frames_root f --out o --text_dir t --dry_caption": "--dry_caption: has no effect with --text_dir",
    "atoms run --frames_root f --out_dir o --dry_caption --lambda_atoms 0.5": "--lambda_atoms 0.5: is for --qwen_json only",
    "atoms run --frames_root f --out_dir o --delta 0.5 --delta_quantile 0.9": "--delta 0.5: has no effect with --delta_quantile",
    "atoms run --frames_root f --out_dir o --calibrate affine --calibration c": "--calibrate affine: has no effect with --calibration",
    "atoms run --frames_root f --out_dir o --model tiny --pretrained p": "--pretrained p: --model tiny brings its own weights",
    "drift run --model m": "--model m: is for --scores only",
    "drift run --label a --label b": "--label a, b: is for --scores only",
    "drift serve --new-key --drop-key k": "--drop-key k: has no effect with --new-key",
    "runs verify a1 --all": "--all: has no effect with RUNS; leave out --all or RUNS",
    "video watch 0 --dataset-name ped2 --features f --until-idle 4": "--until-idle 4: is for a folder that images are written into, and 0 is none",
    "report -p seed=1": "no report is named",
}


@pytest.mark.parametrize("words", IGNORED, ids=lambda w: w.replace(" ", "_"))
def test_an_option_without_effect_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert IGNORED[words] in fails(capsys, *words.split())
    assert not list(tmp_path.iterdir())


def _table(tmp_path, fitted):
    rows = [f"{p},train,0" for p in sorted((fitted / "good").iterdir())]
    (tmp_path / "t.csv").write_text("\n".join(["image_path,split,label", *rows]) + "\n")
    return tmp_path / "t.csv"


# ---- inspect and evaluate


def test_inspect_says_first_what_fit_would_do(fitted, tmp_path, capsys):
    code, said, _ = run("inspect", fitted / "good")
    assert code == 0 and said.splitlines()[0] == f"{(fitted / 'good').as_posix()}: fit can learn from 8 normal images"
    err = fails(capsys, "inspect", fitted, "--normal", "nix")
    refused = fails(capsys, "fit", fitted, "--out", tmp_path / "d", "--normal", "nix", *FIT)
    assert err == refused and "--normal nix is not among good" in err
    for name, numbers, why in (("one", [0], "one normal image gives no threshold"), ("two", [0, 1], "")):
        parts(tmp_path / name / "good", numbers)
        code, said, _ = run("inspect", tmp_path / name)
        assert code == 0 and (why in said.splitlines()[0] if why else "fit can learn from 2" in said.splitlines()[0])
        if why:
            assert why in fails(capsys, "fit", tmp_path / name, "--out", tmp_path / "d", *FIT)
    for defect in ("a", "b"):
        parts(tmp_path / "unclear" / defect, [0, 1])
    code, said, _ = run("inspect", tmp_path / "unclear")
    first = said.splitlines()[0]
    assert code == 1 and "no folder is clearly normal among a, b" in first and said.count("no folder is clearly normal") == 1
    refused = fails(capsys, "fit", tmp_path / "unclear", "--out", tmp_path / "d", *FIT)
    assert refused.removeprefix(f"anomaly-nb: {tmp_path / 'unclear'}: ").strip() in first


def test_evaluate_refuses_images_that_were_learned_from_before_a_run_begins(fitted, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        from anomaly_nb.cli.main import main

        main(["evaluate", str(fitted / "det"), str(fitted / "good"), "--figures", str(tmp_path / "figures")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err == "anomaly-nb: the detector learned from all of 8 images; test it on others\n"
    assert not (tmp_path / "figures").exists()


# ---- the service


@pytest.mark.parametrize("body", [b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(40), b""])
def test_the_service_says_what_it_wants(fitted, tmp_path, body):
    (served,) = read_detectors(fitted / "det").values()
    with pytest.raises(BadImage) as wrong:
        served.predict(body, "application/octet-stream", None, tmp_path)
    said = str(wrong.value)
    assert "send one whole image file" in said and "remove" not in said and str(tmp_path) not in said and "\n" not in said


# ---- weights


def test_winclip_without_its_weights_names_where_it_looked_and_the_option(fitted, tmp_path, capsys, monkeypatch):
    import_torchvision()
    open_clip = pytest.importorskip("open_clip")

    def offline(*arguments, **options):
        raise OSError("an error of many lines\n" * 40)

    monkeypatch.setattr(open_clip, "create_model", offline)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    err = fails(capsys, "fit", fitted / "good", "--out", tmp_path / "d", "--recipe", "winclip", "--prompts", "hex nut")
    assert "open_clip:ViT-B-16-plus-240: no weights laion400m_e31 in " in err and "give a downloaded checkpoint as --weights <file>" in err
    assert str(tmp_path / "hub") in err and "many lines" not in err and len(err) < 400


# ---- interrupts


HEED = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
SLOW = """
import time, anomaly_nb.features.backbones as b, anomaly_nb.scoring.predict as p
call, n = b.FilterBackbone.__call__, 0
def slow(self, batch):
    global n
    n += 1
    if n > {after}:
        print("working", flush=True)
        time.sleep(1)
    return call(self, batch)
b.FilterBackbone.__call__ = slow
from anomaly_nb.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("sent, code, how", [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_an_interrupted_command_says_what_is_left(fitted, tmp_path, command, sent, code, how):
    words = {
        "fit": ("fit", fitted / "good", "--out", tmp_path / "det", *FIT),
        "predict": ("predict", fitted / "det", fitted / "good", "--out", tmp_path / "p.csv"),
    }[command]
    process = subprocess.Popen(
        [sys.executable, "-c", HEED + SLOW.format(after=0), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ANOMALY_NB_PROGRESS": "0"},
    )
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    time.sleep(0.2)
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    left = {"fit": f"{tmp_path / 'det'} is as it was: no detector is written", "predict": f"{tmp_path / 'p.csv'} is as it was"}[command]
    assert process.returncode == code and err.count("\n") == 1, (process.returncode, err)
    assert err.startswith(f"anomaly-nb: {command} was ended by {how}; nothing half-written is left") and left in err
    assert not [p for p in Path(tmp_path).iterdir()], list(tmp_path.iterdir())
