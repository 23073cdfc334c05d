"""JupyterLab for the tests: a server of its own, a browser that leaves the machine for nothing, and images of both:
`python -m tests.lab`.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCAL = re.compile(r"^(https?|wss?)://127\.0\.0\.1[:/]|^(data|blob|about):")


def free_port():
    "A port nobody listens on."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(folder):
    """JupyterLab over copies of the start page and the exploration notebooks, with the project's configuration; ended
    by its process id.
    """
    folder = Path(folder)
    (folder / "nbs").mkdir(parents=True)
    shutil.copytree(
        ROOT / "nbs" / "explore", folder / "nbs" / "explore", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    for name in ("nbs/start.ipynb", "settings.ini"):
        shutil.copy(ROOT / name, folder / name)
    if (ROOT / "data" / "samples" / "manifest.json").is_file():  # else the notebook draws them
        shutil.copytree(ROOT / "data" / "samples", folder / "data" / "samples")
    home, port, token = folder.parent / "home", free_port(), secrets.token_hex(12)
    home.mkdir(exist_ok=True)
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("JUPYTER", "IPYTHON", "MPLBACKEND", "ANOMALY_NB", "XDG"))
    }
    own = {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_PATH": str(ROOT / ".lab"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
    }
    options = (
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--ServerApp.root_dir=.",
        "--ServerApp.allow_root=True",
    )
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", *options]
    with open(folder.parent / "server.log", "w") as log:
        running = subprocess.Popen(
            command, cwd=folder, env=kept | own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(f"http://127.0.0.1:{port}/api/status?token={token}", running, folder.parent / "server.log")
            yield f"http://127.0.0.1:{port}", token
        finally:
            running.send_signal(signal.SIGTERM)  # the server ends its kernels
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def _wait(url, running, log, seconds=60):
    "Until the server answers."
    end = time.monotonic() + seconds
    while time.monotonic() < end and running.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def browser(width=1500, height=1000):
    "A page, the console's errors, and the addresses beyond this machine it asked for (they are refused)."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        context = chromium.new_context(viewport={"width": width, "height": height})
        page, errors, beyond = context.new_page(), [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))

        def judge(route):
            if LOCAL.match(route.request.url):
                return route.continue_()
            beyond.append(route.request.url)
            return route.abort()

        context.route("**/*", judge)
        try:
            yield page, errors, beyond
        finally:
            chromium.close()


def run_all(page, url, token, notebook):
    "Open a notebook and run all its cells through the menu; returns when the last cell has run."
    page.goto(f"{url}/lab/tree/{notebook}?reset&token={token}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.get_by_text(re.compile(r"\| Idle$")).wait_for(timeout=60_000)  # the kernel, in the status bar
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_text(re.compile(r"\| Busy$")).wait_for(timeout=30_000)
    quiet, end = 0, time.monotonic() + 120
    while quiet < 10 and time.monotonic() < end:  # between two cells the kernel is idle for a moment
        quiet = quiet + 1 if page.get_by_text(re.compile(r"\| Idle$")).count() else 0
        page.wait_for_timeout(200)


def screenshots(figures=ROOT / "figures"):
    "Write `lab_start.png` and `lab_images.png`."
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder) / "project") as (url, token),
        browser(1440, 900) as (page, _, _),
    ):
        for name, notebook in (("lab_start", "nbs/start.ipynb"), ("lab_images", "nbs/explore/images.ipynb")):
            run_all(page, url, token, notebook)
            page.wait_for_selector(
                "img.anomaly-nb-image" if name == "lab_images" else ".jp-OutputArea-output img", timeout=120_000
            )
            page.wait_for_timeout(1500)
            if name == "lab_images":
                page.locator("img.anomaly-nb-image").scroll_into_view_if_needed()
            else:
                page.mouse.move(800, 500)
                page.mouse.wheel(0, -1750)  # from the end, where running leaves it, to the explanations
            page.wait_for_timeout(1500)
            page.screenshot(path=figures / f"{name}.png")
            print(figures / f"{name}.png", (figures / f"{name}.png").stat().st_size // 1000, "kB")


if __name__ == "__main__":
    screenshots()
