"""Video by stage: crops through the network, files of features, a frame out of a film, and all the way from frames to
AUROC.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from anomaly_nb.features import create_backbone
from anomaly_nb.features.vectors import vector_network
from anomaly_nb.video import (
    calibrate_dataset,
    evaluate_dataset,
    extract_dataset,
    make_video_dataset,
    plan_for,
    score_dataset,
)
from anomaly_nb.video.feature_files import load_object_features, save_frame, video_file, write_feature_index
from anomaly_nb.video.layouts import list_videos, quiet_opencv
from bench.metrics import row

NETWORK = "timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5"


def seconds(work: Callable[[], object]) -> float:
    "On the clock, once."
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def crops(n: int) -> dict:
    "Vectors of crops, alone and as the third part of everything the network gives."
    net = create_backbone(NETWORK, weights="random", image_size=224)
    vectors, x = vector_network(net), np.random.default_rng(0).random((n, 3, 224, 224)).astype(np.float32)
    ours, theirs = vectors(x), net(x)[2]  # and everything is loaded
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    return row(
        f"video crops, {n}",
        seconds(lambda: vectors(x)),
        seconds(lambda: net(x)),
        f"vectors of {n} crops of 224 pixels, MobileNetV2",
        "reference: with all its layers",
    )


def files(n: int, folder: Path) -> dict:
    "Features of n frames written and read."
    frames, rng = {"01": tuple(f"{i:06d}" for i in range(n))}, np.random.default_rng(0)
    values, boxes = rng.random((n, 5, 1280)).astype(np.float32), np.zeros((5, 4))

    def ours() -> None:
        with video_file(folder / "ours", "deep", "01") as f:
            for name, v in zip(frames["01"], values):
                f.add(name, v, boxes)
        write_feature_index(folder / "ours", frames, {}, ("deep",))
        load_object_features(folder / "ours", "deep")

    def theirs() -> None:
        for name, v in zip(frames["01"], values):
            save_frame(folder / "theirs", "deep", "01", name, v, boxes)
        write_feature_index(folder / "theirs", frames, {}, ("deep",))
        load_object_features(folder / "theirs", "deep")

    taken = seconds(ours), seconds(theirs)
    assert (
        load_object_features(folder / "ours", "deep").sha256 == load_object_features(folder / "theirs", "deep").sha256
    )
    return row(
        f"video files, {n} frames",
        *taken,
        f"features of {n} frames of 5 objects written and read",
        "reference: a file for every frame",
    )


def access(n: int, folder: Path) -> dict:
    "The last frame of a film."
    cv2 = quiet_opencv()
    writer = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (320, 240))
    image = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    for i in range(n):
        writer.write(np.roll(image, 2 * i, 1))
    writer.release()
    video = list_videos(folder)[0]
    whole = lambda: next(image for name, image in video if name == video.frames[-2])
    assert np.array_equal(video.image(video.frames[-2]), whole())
    return row(
        f"video frame, of {n}",
        seconds(lambda: video.image(video.frames[-2])),
        seconds(whole),
        f"one of the last frames of a film of {n}",
        "reference: decoded from the start",
    )


def stages(folder: Path, small: bool) -> dict:
    "From frames to AUROC: Ped2 where ANOMALY_NB_DATA names it, else drawn clips."
    data = Path(os.environ.get("ANOMALY_NB_DATA") or "nowhere")
    ped2 = not small and (data / "video" / "ped2").is_dir()
    root = data / "video" / "ped2" if ped2 else make_video_dataset(folder / "clips", frames=20 if small else 60)
    deep = {
        "backbone": NETWORK,
        "weights": str(data / "weights" / "mobilenetv2_100_imagenet.safetensors"),
        "image_size": 224,
    }
    plan = plan_for("ped2" if ped2 else "clips", None, root, folder / "features", deep if ped2 else {"image_size": 16})
    start = time.perf_counter()
    parts = extract_dataset(plan).groupby("stage", sort=False)["seconds"].sum().to_dict()
    parts["calibration"] = seconds(lambda: calibrate_dataset(plan, folder / "config.yml"))
    middle = time.perf_counter()
    frames, objects = score_dataset(plan, folder / "config.yml")
    parts["scoring"] = time.perf_counter() - middle
    middle = time.perf_counter()
    found = evaluate_dataset(plan, frames, objects)
    assert found is not None
    parts["evaluation"] = time.perf_counter() - middle
    combined = found[0].set_index("scores").loc["combined"]
    note = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in parts.items())
    metrics = f"AUROC {combined['micro']:.4f}, RBDC {combined['rbdc']:.4f}, TBDC {combined['tbdc']:.4f}"
    return row(
        f"video {'Ped2' if ped2 else 'clips'}, {len(frames)} frames",
        time.perf_counter() - start,
        None,
        f"from frames to AUROC; {metrics}",
        note,
    )


def run(small: bool) -> list[dict]:
    "Ped2 or drawn clips (small: few of them)."
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "film").mkdir()
        parts = (
            crops(8 if small else 64),
            files(100 if small else 2000, Path(folder)),
            access(200 if small else 1500, Path(folder) / "film"),
        )
        return [*parts, stages(Path(folder), small)]
