"""Every command of the README, run as it is printed, in order, in one folder with drawn parts; what cannot run here is
named with its reason.

The quick ones always run; those that take minutes with ANOMALY_NB_SLOW=1.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SLOW = os.environ.get("ANOMALY_NB_SLOW") == "1"

# beginning of a command -> why it is not run here, or which test runs it
ELSEWHERE = {
    "git clone": "sets the checkout up, which is there",
    "make ": "sets up and runs what the checks of `make test` and the other tests run",
    "anomaly-nb street train runs/hazards": "tests/test_segmentation_newcomer.py runs the block",
    "anomaly-nb street evaluate runs/hazards": "tests/test_segmentation_newcomer.py runs the block",
    "anomaly-nb street score runs/hazards": "tests/test_segmentation_newcomer.py runs the block",
    "anomaly-nb street ablate studies/heat": "tests/test_segmentation_newcomer.py runs the block",
    "anomaly-nb street compare runs/hazards": "tests/test_segmentation_newcomer.py runs the block",
    "anomaly-nb street evaluate --model": "tests/test_segmentation_own.py runs such networks under every name",
    "anomaly-nb street evaluate --logits": "tests/test_segmentation_own.py runs it",
    "anomaly-nb street evaluate --scores": "tests/test_segmentation_own.py runs it",
    "anomaly-nb atoms ": "tests/test_atoms_commands.py runs these lines, and those of the help",
    "HAZARDS=": "a variable of the block",
    "ROAD=": "a variable of the block",
}
# beginning of a command -> exit codes that are right
QUICK = {
    "anomaly-nb predict detectors/my_part new_images/": {3},  # there are bad ones among them
    "anomaly-nb inspect my_parts": {0},
    "anomaly-nb update detectors/my_part more_good/": {0},
    "anomaly-nb serve detectors/ --new-key": {0},
    "anomaly-nb export detectors/my_part line/": {0},
    "python line/predict.py part.png": {0, 3},  # by what `fit` chose
    "anomaly-nb new my_report": {0},
    "anomaly-nb runs list": {0},
    "anomaly-nb drift run --develop": {0},
    "anomaly-nb drift history": {0},
}
# beginning of a command about films -> exit codes that are right; `cat` writes the settings they share
VIDEO = {
    "cat > yard.yml": {0},
    "anomaly-nb score-video --dataset-name yard": {3},  # a cart among walkers
    "anomaly-nb video render --dataset-name yard": {0},
    "anomaly-nb video watch yard/testing/videos/evening.mp4": {0},
}
LONG = (
    "anomaly-nb fit my_parts --out detectors/", "anomaly-nb evaluate detectors/my_part test_parts/", "anomaly-nb report image_anomaly",
    "anomaly-nb report few_shot", "anomaly-nb serve detectors/ --drift", "curl ", "anomaly-nb sweep plan.yml",
    "anomaly-nb benchmark benchmark.yml", "anomaly-nb runs diff", "anomaly-nb runs verify --all", "cat > ", "python:",
)  # fmt: skip


def commands():
    """Every command of the README in order: shell lines with what continues them, and blocks of Python as `python:` and
    the code.
    """
    found = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", README, re.S | re.M):
        if language == "python":
            found.append("python:\n" + block)
            continue
        for found_line in re.finditer(r"^[^\n]*<<'(\w+)'\n.*?^\1$|^[^\n]+$", block.replace("\\\n", " "), re.S | re.M):
            line = found_line[0] if found_line[1] else re.sub(r"(^|\s+)#.*", "", found_line[0]).strip()
            found += [line] if line else []
    return found


def run_type(command):
    "elsewhere, video, long or quick."
    if any(command.startswith(c) for c in ELSEWHERE):
        return "elsewhere"
    if any(command.startswith(c) for c in VIDEO):
        return "video"
    if any(command.startswith(c) for c in LONG):
        return "long"
    assert any(command.startswith(c) for c in QUICK), f"a new command of the README, say how it is tested: {command}"
    return "quick"


def test_every_command_is_accounted_for():
    run_types = [run_type(c) for c in commands()]
    print({k: run_types.count(k) for k in ("quick", "video", "long", "elsewhere")})
    assert run_types.count("quick") >= 9 and run_types.count("long") >= 18 and len(run_types) == 56
    assert run_types.count("video") == len(VIDEO)
    assert all(any(c.startswith(named) for c in commands()) for named in (*ELSEWHERE, *QUICK, *VIDEO, *LONG)), (
        "named here and not in the README"
    )
    for reason in ELSEWHERE.values():
        for name in re.findall(r"tests/\w+\.py", reason):
            assert (ROOT / name).is_file()


def parts(folder, numbers, defect=""):
    "Drawn parts, good or with a defect, as PNGs."
    from anomaly_nb.data import draw_sample

    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        image = draw_sample("nut", defect or "good", number=i, size=64)[0]
        Image.fromarray(np.asarray(image)).save(folder / f"{defect or 'good'}_{i:03d}.png")


def films(folder):
    "Drawn films of one camera: walkers to learn from, and an evening on which a cart comes by."
    import cv2

    from anomaly_nb.video.clips import make_clip

    clips = {f"training/videos/{day}.mp4": (None, i) for i, day in enumerate(("monday", "tuesday", "wednesday"))}
    for name, (intruder, seed) in (clips | {"testing/videos/evening.mp4": ("cart", 10)}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter_fourcc(*"mp4v"), 10, (240, 144))
        for image in make_clip(intruder, 40, (144, 240), random_state=seed)[0]:
            writer.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
        writer.release()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "The folder a reader works in, with the files that the README's text names."
    folder = tmp_path_factory.mktemp("reader")
    parts(folder / "my_parts" / "good", range(24))
    parts(folder / "my_parts" / "scratch", range(100, 103), "scratch")
    parts(folder / "new_images", range(30, 33))
    parts(folder / "new_images", range(110, 113), "stain")
    parts(folder / "more_good", range(40, 44))
    parts(folder / "test_parts" / "good", range(50, 55))
    parts(folder / "test_parts" / "stain", range(120, 123), "stain")
    shutil.copy(folder / "new_images" / "stain_110.png", folder / "part.png")
    films(folder / "yard")
    (folder / "my_words.yml").write_text(
        "object: nut\nnormal: ['flawless {}']\ndefect: ['damaged {}']\ntemplates: ['a photo of a {}.']\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("HF_HOME", "TORCH_HOME", "HF_HUB_CACHE"):  # a reader's machine has no weights yet
            patch.setenv(name, str(folder / "hub"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("ANOMALY_NB_DATA", raising=False)
        yield folder


def run(command, codes):
    "Run a line of `anomaly-nb`, or of Python; its output."
    from anomaly_nb.cli.main import app

    start = time.perf_counter()
    if command.startswith("python "):
        line = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode in codes, (command, done.returncode, done.stderr)
        return done.stdout
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    print(f"{time.perf_counter() - start:6.1f} s  exit {done.exit_code}  {command}")
    assert done.exit_code in codes, (command, done.exit_code, done.output[-1500:], done.exception)
    return done.output


def test_the_quick_commands(place):
    "On a detector of one recipe: what `fit` chooses takes a minute, and is among the long ones."
    from anomaly_nb.data import read_index
    from anomaly_nb.scoring import Detector

    Detector(image_size=64).fit(read_index("folder", "my_parts")).save("detectors/my_part")
    (place / "figures").mkdir()  # of the reports, which are among the long ones
    ran = 0
    for command in commands():
        if run_type(command) == "quick":
            codes = next(QUICK[c] for c in QUICK if command.startswith(c))
            run(command, codes)
            ran += 1
    print(f"{ran} commands ran")
    assert (place / "predictions.csv").read_text().count("\n") == 7 and len(list((place / "maps").glob("*.tiff"))) == 6
    assert (place / "detectors" / "my_part" / "detector.html").is_file() and (place / "my_report.ipynb").is_file()


def test_the_commands_about_films(place):
    said = {}
    for command in (c for c in commands() if run_type(c) == "video"):
        if command.startswith("cat > "):
            subprocess.run(["bash", "-c", command], cwd=place, check=True)
        else:
            codes = next(codes for named, codes in VIDEO.items() if command.startswith(named))
            said[command.split(" --")[0]] = run(command, codes)
    scored, watched = said["anomaly-nb score-video"], said["anomaly-nb video watch yard/testing/videos/evening.mp4"]
    assert "yard: " in scored and "unlike" not in scored and "events, by the hour" in scored
    assert (place / "yard_scores" / "events.csv").read_text().count("\n") >= 2
    assert list((place / "yard_films").glob("evening.*")) and '"state": "closed"' in watched


def test_the_few_shot_report_in_a_smaller_form(place):
    "The line of the README takes a minute; fewer images, samples and methods of the same take seconds."
    (command,) = (c for c in commands() if c.startswith("anomaly-nb report few_shot"))
    said = run(f"{command} -p shots=0,1 -p seeds=1 -p recipes=winclip,knn", {0})
    assert "Image AUROC" in said and "few_shot-" in said and "best_auroc_1_shots" in said.replace(" ", "_"), said


def random_weights(place):
    "Checkpoints under the names that the README gives, of the networks it names, untrained."
    from anomaly_nb.core.runtime import import_torchvision

    import_torchvision()
    import open_clip
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    torch.save(
        timm.create_model("vit_small_patch14_dinov2", img_size=518, num_classes=0).state_dict(),
        place / "dinov2_s14.pth",
    )
    model = open_clip.create_model("ViT-B-16-plus-240")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, place / "vit_b_16_plus_240.safetensors")


def served(command, place, ask, key):
    "Start the service, ask it once as printed, and end it."
    with socket.socket() as free:
        if free.connect_ex(("127.0.0.1", 8357)) == 0:
            pytest.skip("port 8357, which the README names, is taken")
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "anomaly_nb.cli.main", *shlex.split(command)[1:]],
        cwd=place,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for _ in range(300):
            assert process.poll() is None, process.stdout.read()
            try:
                urllib.request.urlopen("http://localhost:8357/health", timeout=1)
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.2)
        if shutil.which("curl"):
            answer = subprocess.run(
                ["bash", "-c", ask.replace("KEY", key)], cwd=place, capture_output=True, text=True, timeout=60
            ).stdout
        else:
            words = shlex.split(ask.replace("KEY", key))
            request = urllib.request.Request(
                words[-1], (place / "part.png").read_bytes(), dict([words[words.index("-H") + 1].split(": ")])
            )
            answer = urllib.request.urlopen(request, timeout=60).read().decode()
        assert '"score"' in answer and '"anomalous"' in answer, answer
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.skipif(not SLOW, reason="minutes; ANOMALY_NB_SLOW=1 runs it")
def test_all_commands_in_order(place):
    random_weights(place)
    key, serving, ran = "", "", 0
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in commands():
        if run_type(command) == "elsewhere":
            continue
        ran += 1
        if command.startswith("anomaly-nb serve detectors/ --drift"):
            serving = command
        elif command.startswith("curl "):
            served(serving, place, command, key)
        elif command.startswith("cat > "):
            subprocess.run(["bash", "-c", command], cwd=place, check=True)
        elif command.startswith("python:"):
            subprocess.run([sys.executable, "-c", command.removeprefix("python:")], cwd=place, check=True, env=environ)
        else:
            (place / "my_report.ipynb").unlink(missing_ok=True)
            listed = {"quick": QUICK, "video": VIDEO}.get(run_type(command), {})
            said = run(command, next((listed[c] for c in listed if command.startswith(c)), {0}))
            if "--new-key" in command:
                key = re.search(r"\b[\w-]{20,}\b", said)[0]
    print(f"{ran} commands ran, {len(commands()) - ran} elsewhere")
    assert (place / "line" / "predict.py").is_file()
