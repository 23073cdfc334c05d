"""The README's images of the gallery, made anew: `python -m tests.screenshots [folder]` (ten minutes the first time,
then seconds).

Runs `anomaly-nb demo` and a few runs more into the folder, all on generated samples, and photographs the gallery over
them.
"""

import shutil
import sys
from pathlib import Path

from anomaly_nb.cli.main import main as anomaly_nb
from anomaly_nb.data import write_samples
from anomaly_nb.reports import ReportError, run_report
from anomaly_nb.reports.gallery import read_runs, write_gallery

TARGET = Path(__file__).resolve().parent.parent / "figures"


def more_runs(folder):
    "Runs to compare, and one that fails: an image cut off in the middle."
    for parameters in ({"bank": "mahalanobis"}, {"bank": "padim"}, {"k": 3}, {"image_size": 96}):
        run_report("image_anomaly", {"category": "nut", **parameters}, figures=folder)
    broken = folder / "broken"
    if not broken.exists():
        write_samples(broken, n_train=12, n_good=3, n_defect=3, size=96)
        victim = broken / "wood" / "train" / "good" / "004.png"
        victim.write_bytes(victim.read_bytes()[:900])
    try:
        run_report("image_anomaly", {"dataset": "mvtec", "root": str(broken), "category": "wood"}, figures=folder)
    except ReportError as e:
        print(e)


def photograph(browser, page, name, hash="", width=1280, height=860, scheme="light"):
    "One image, small enough for a README."
    from PIL import Image

    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    tab = context.new_page()
    tab.goto(page + hash)
    while not tab.evaluate(
        "[...document.images].filter((i) => i.checkVisibility() && i.getBoundingClientRect().top < innerHeight).every((i) => i.complete)"
    ):
        tab.wait_for_timeout(50)
    path = TARGET / f"{name}.png"
    tab.screenshot(path=path)
    Image.open(path).convert("RGB").save(path, optimize=True)
    context.close()
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def main(folder="build/gallery"):
    from playwright.sync_api import sync_playwright

    folder = Path(folder)
    try:
        anomaly_nb(["demo", "--figures", str(folder)])
    except SystemExit as done:
        if done.code:
            raise
    more_runs(folder)
    page = write_gallery(folder).resolve().as_uri()
    nuts = {
        r["parameters"]["bank"]: r["folder"]
        for r in read_runs(folder)
        if r["parameters"].get("category") == "nut"
        and r["parameters"].get("k") == 1
        and r["parameters"]["image_size"] == 160
    }
    pair = f"#show={nuts['knn']}&show={nuts['mahalanobis']}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        photograph(browser, page, "gallery", "#metric=image_auroc&pick=" + "&pick=".join(list(nuts.values())[:2]))
        photograph(browser, page, "gallery_compare", pair, height=1480)
        photograph(browser, page, "gallery_phone", width=390, height=844)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
