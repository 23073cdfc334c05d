"""From files to decisions: `predict` and the exported graph beside anomalib's PatchCore, with the same network, weights
and memory bank.

anomalib gets an environment of its own, `.venv-anomalib`, made once (or the Python that ANOMALY_NB_ANOMALIB names);
where it does not install, our figures stand alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_nb.core.device import choose_precision
from anomaly_nb.core.runtime import import_torchvision
from bench.metrics import row

OURS = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import onnxruntime
from anomaly_nb.core.device import choose_precision
from anomaly_nb.data import read_image
from anomaly_nb.scoring import Detector, predict_files
folder, backbone, size, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
import torch
torch.set_num_threads(threads)
paths = json.load(open(f"{folder}/paths.json"))
def fitted(options):
    return Detector("patchcore", backbone + options, f"{folder}/weights.pth", size, aggregation="max", threshold="quantile:0.9").fit(paths["train"])

model = fitted("")
np.save(f"{folder}/bank.npy", model.bank_.bank_)
others = {}  # fitted and asked in the same way
if choose_precision("auto", "cpu") == "bfloat16":
    others["bfloat16"] = fitted("&precision=bfloat16")
if paths["train"][0].endswith("jpg"):
    others["draft"] = fitted("&resize=draft")
    others["draft"].bank_ = model.bank_  # all have the same memory
if sys.argv[5] == "graph":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # images side by side, as predict takes them: a file is decoded by one thread
    session = onnxruntime.InferenceSession(model.export(f"{folder}/exported"), options)

def predict(files):
    return [p.score for p in predict_files(model, files)]

def fast(files):
    return [p.score for p in predict_files(model, files, engine="onnxruntime")]

def bfloat16(files):
    return [p.score for p in predict_files(others["bfloat16"], files)]

def draft(files):
    return [p.score for p in predict_files(others["draft"], files)]

def fast_draft(files):
    return [p.score for p in predict_files(others["draft"], files, engine="onnxruntime")]

def decided(file):
    return float(session.run(["score", "map"], {"image": read_image(file)[None]})[0][0])

def graph(files):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(decided, files))

ways = {"predict": predict, "onnxruntime": fast, "graph": graph, "bfloat16": bfloat16, "draft": draft, "onnxruntime, draft": fast_draft}
print("ready", flush=True)
"""

ANOMALIB = """
import json, logging, sys, time, warnings
warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
import numpy as np
import torch
for name in ("nms", "qnms"):  # a CPU build of torch beside a torchvision for CUDA lacks them
    try:
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except Exception:
        pass
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from anomalib.models import Patchcore
folder, backbone, size, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
name, _, query = backbone.removeprefix("timm:").partition("?")
stages = __import__("timm").create_model(name, pretrained=False).feature_info
layers = [list(stages)[i]["module"] for i in eval(query.split("layers=")[1].split("&")[0])]
ready = Patchcore.configure_pre_processor(image_size=(size, size))
model = Patchcore(backbone=name, layers=layers, pre_trained=False, num_neighbors=1, pre_processor=ready, post_processor=False, evaluator=False, visualizer=False)
state = torch.load(f"{folder}/weights.pth", weights_only=True)
lacking = [k for k in model.model.feature_extractor.feature_extractor.load_state_dict(state, strict=False).missing_keys if not k.startswith("head.")]
assert not lacking, lacking
model.model.feature_pooler = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)  # theirs counts zeros beyond the border
model.model.memory_bank = torch.from_numpy(np.load(f"{folder}/bank.npy"))
model.eval()
engine = Engine(accelerator="cpu", devices=1, logger=False, barebones=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=f"{folder}/anomalib")

def plain(files):
    "Read, transform and score in a loop, without the engine."
    found = []
    with torch.inference_mode():
        for i in range(0, len(files), 8):
            batch = torch.stack([model.pre_processor.transform(read_image(f, as_tensor=True)) for f in files[i : i + 8]])
            found += model.model(batch).pred_score.reshape(-1).tolist()
    return found

def by_engine(files):
    "As its users do: Engine.predict on a folder."
    found = engine.predict(model=model, data_path=files[0].rsplit("/", 1)[0], return_predictions=True)
    scores = {p: float(s) for b in found for p, s in zip(b.image_path, b.pred_score.reshape(-1))}
    return [scores[f] for f in files]

ways = {"plain loop": plain, "Engine.predict": by_engine}
print("ready", flush=True)
"""

LOOP = """
for line in sys.stdin:
    way, files = json.loads(line)
    start = time.perf_counter()
    scores = ways[way](files)
    print(json.dumps([time.perf_counter() - start, scores]), flush=True)
"""


class Child:
    "A process that is asked to score files, and says how long it took."

    def __init__(self, python: str, code: str, *words: str):
        self.process = subprocess.Popen(
            [python, "-W", "ignore", "-c", code + LOOP, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.line("ready")

    def line(self, wanted: str = "") -> str:
        "The next line that is ours; libraries print too."
        while line := self.process.stdout.readline():
            if line.startswith(wanted or "["):
                return line
        raise RuntimeError("it ended")

    def ask(self, way: str, files: list[str]) -> tuple[float, list[float]]:
        "Seconds and scores."
        self.process.stdin.write(json.dumps([way, files]) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.line()))

    def close(self) -> None:
        "End it."
        self.process.stdin.close()
        self.process.wait()


def anomalib_python() -> str:
    "A Python that has anomalib 2.7, made where there is none; empty where it does not install."
    given = os.environ.get("ANOMALY_NB_ANOMALIB")
    folder = Path(__file__).parent.parent / ".venv-anomalib"
    python = given or str(folder / "bin/python")
    pins = [f"{p}=={version(p).split('+')[0]}" for p in ("torch", "torchvision")]
    try:
        if not given and not Path(python).exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, "anomalib==2.7.*"], check=True)
        subprocess.run(
            [python, "-c", "import importlib.metadata as m; assert m.version('anomalib').startswith('2.7')"],
            check=True,
            capture_output=True,
        )
    except (subprocess.CalledProcessError, OSError) as e:
        print(f"anomalib is skipped, it does not install here: {e}")
        return ""
    return python


def write_images(folder: Path, count: int, side: int, random_state: int, suffix: str = "png") -> list[str]:
    "Cloudy images with a spot in every third."
    from scipy.ndimage import gaussian_filter

    rng, paths = np.random.default_rng(random_state), []
    folder.mkdir(parents=True)
    clouds = [gaussian_filter(rng.normal(size=(side, side, 3)), (s, s, 0)) for s in (2, 6, 20)]
    base = sum(c / c.std() for c in clouds)
    for i in range(count):
        image = np.roll(base, (37 * i, 91 * i), (0, 1)) * 20 + 128 + rng.normal(0, 4, (side, side, 1))
        if i % 3 == 2:
            image[side // 3 : side // 3 + side // 12, side // 2 : side // 2 + side // 12] -= 60
        paths.append(str(folder / f"{i:03}.{suffix}"))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
            paths[-1], **({"quality": 90} if suffix == "jpg" else {})
        )
    return paths


def compare(
    folder: Path,
    name: str,
    backbone: str,
    size: int,
    files: dict[str, list[str]],  # "train", "same" of the input's size, "test"
    turns: int,
    python: str,
) -> list[dict]:
    "Rows of `predict` with both engines, of the graph on PNGs, of drafts on JPEGs, and in bfloat16 where there is it."
    import torch

    import_torchvision()
    import timm

    torch.manual_seed(0)
    model, sized = backbone.removeprefix("timm:").partition("?")[0], {"img_size": size} if "vit" in backbone else {}
    torch.save(timm.create_model(model, num_classes=0, **sized).state_dict(), folder / "weights.pth")
    same, test, suffix, side = (
        files["same"],
        files["test"],
        Path(files["test"][0]).suffix[1:],
        Image.open(files["test"][0]).width,
    )
    (folder / "paths.json").write_text(json.dumps({"train": files["train"]}))
    words = (str(folder), backbone, str(size), str(os.cpu_count()), "graph" if suffix == "png" else "")
    ours = Child(sys.executable, OURS, *words)
    try:
        other = Child(python, ANOMALIB, *words) if python else None
    except RuntimeError:
        print("anomalib is skipped, it does not start here")
        other = None
    names = (
        ["predict", "onnxruntime"]
        + ["graph"] * (suffix == "png")
        + ["draft", "onnxruntime, draft"] * (suffix == "jpg")
        + ["bfloat16"] * ("vit" in backbone and choose_precision("auto", "cpu") == "bfloat16")
    )
    ways = [(ours, name) for name in names]
    ways += [(other, "plain loop"), (other, "Engine.predict")] if other else []
    checked = {way: np.array(child.ask(way, same)[1]) for child, way in ways}  # at the input's own size nobody resizes
    squared = {way: s if child is ours else s**2 for (child, way), s in zip(ways, checked.values(), strict=True)}
    for way, scores in squared.items():
        rtol = 2e-2 if way == "bfloat16" else 2e-3
        assert np.allclose(scores, squared["predict"], rtol=rtol), (way, scores, squared["predict"])
    seconds = {way: [] for _, way in ways}
    for child, way in ways:
        child.ask(way, test[:8])
    for _ in range(turns):
        for child, way in ways:
            seconds[way].append(child.ask(way, test)[0] / len(test))
    for child in {id(c): c for c, _ in ways}.values():
        child.close()
    median = {way: float(np.median(s)) for way, s in seconds.items()}
    rows = np.load(folder / "bank.npy").shape
    theirs = min((median[w] for w in ("plain loop", "Engine.predict") if w in median), default=None)
    rates = ", ".join(f"{way} {1 / s:.1f}" for way, s in median.items())
    learned = f"{len(files['train'])} images learned from, the same weights and coreset of {rows[0]} x {rows[1]}"
    work = f"{len(test)} {suffix.upper()} of {side} x {side} at {size}, {learned}, scores of both equal"
    note = f"images per second: {rates}" + ("; the faster way of anomalib" if other else "; anomalib did not install")
    return [
        row(f"{what}, {name}", median[way], theirs, work, note)
        for what, way in (
            ("predict", "predict"),
            ("predict --engine onnxruntime", "onnxruntime"),
            ("ONNX graph", "graph"),
            ("predict, fitted in bfloat16", "bfloat16"),
            ("predict, fitted with --resize draft", "draft"),
            ("predict --engine onnxruntime, fitted with --resize draft", "onnxruntime, draft"),
        )
        if way in median
    ]


SCALED = "&mean=(0.485,0.456,0.406)&std=(0.229,0.224,0.225)"  # as anomalib does for every network
# name -> backbone, input size, the images' side and format; one layer, since several are fused on another grid there
CASES = {
    "ResNet-18, layer 2, PNG": ("timm:resnet18?layers=(2,)&pool=3", 256, 1024, "png"),
    "MobileNetV2, layer 3, JPEG": (f"timm:mobilenetv2_100?layers=(3,)&pool=3{SCALED}", 256, 1024, "jpg"),
    "MobileNetV2, layer 3, PNG": (f"timm:mobilenetv2_100?layers=(3,)&pool=3{SCALED}", 256, 1024, "png"),
    "ViT-S, JPEG": (f"timm:vit_small_patch16_224?layers=(8,)&pool=3{SCALED}", 224, 1024, "jpg"),
}


def run(small: bool = False) -> list[dict]:
    "All rows."
    python, rows = anomalib_python(), []
    learned, asked, turns = (6, 8, 1) if small else (300, 24, 5)
    with tempfile.TemporaryDirectory() as images:
        written: dict[tuple, list[str]] = {}

        def files(what: str, count: int, side: int, random_state: int, suffix: str) -> list[str]:
            "Images that cases share."
            key = (what, side, suffix)
            if key not in written:
                written[key] = write_images(Path(images, f"{what}_{side}_{suffix}"), count, side, random_state, suffix)
            return written[key]

        for name, (backbone, size, side, suffix) in list(CASES.items())[: 1 if small else None]:
            side = 300 if small else side
            sets = {
                "train": files("train", learned, side, 0, suffix),
                "same": files("same", 6, size, 1, suffix),
                "test": files("test", asked, side, 2, suffix),
            }
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                rows += compare(Path(folder), name, backbone, size, sets, turns, python)
                print(f"{name}: {time.perf_counter() - start:.0f} s")
    return rows
