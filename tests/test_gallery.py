"""The gallery and the report pages: as documents, and in a real browser by mouse, by keyboard, on a phone, with a
thousand runs.
"""

import ast
import base64
import hashlib
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from anomaly_nb.core.errors import Notice
from anomaly_nb.core.files import write_json, write_text
from anomaly_nb.core.style import PALETTE
from anomaly_nb.reports.gallery import read_runs, write_gallery
from anomaly_nb.reports.ledger import Ledger, runs_table
from anomaly_nb.reports.page import asset, notebook_page
from anomaly_nb.reports.run import Run, renew_gallery
from anomaly_nb.reports.sweep import Sweep

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = '</script><img src=x onerror="document.title=1"><!--<script>'


def make_run(figures, number, status="ok", figure_names=(), report="image_anomaly", **parameters):
    "A run as `run_report` leaves it, its figures plain colours."
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    folder = figures / "runs" / f"{report}-{number:04d}"
    auroc = 0.6 + 0.39 * ((number * 37) % 101) / 101
    parameters = {
        "dataset": "samples",
        "category": "nut",
        "bank": "knn",
        "backbone": "filters",
        "k": 1,
        "out": folder.as_posix(),
    } | parameters
    metrics = {
        "image_auroc": auroc,
        "image_auroc_low": auroc - 0.05,
        "image_auroc_high": min(1, auroc + 0.03),
        "test_images": 37,
        "recall": 1 - auroc / 2,
    }
    write_json(folder / "run.json", {
        "run_id": f"{number:012x}", "report": report, "parameters": parameters, "status": status, "error": None if status == "ok" else "DataError: 004.png: damaged",
        "started": f"2026-03-{1 + number // 1440 % 28:02d}T{number // 60 % 24:02d}:{number % 60:02d}:00+00:00", "seconds": 10.0 + number,
        "metrics": metrics if status == "ok" else {}, "inputs": {"library": "ab" * 32}, "attempts": 1, "seeds": {"seed": number % 2},
        "provenance": {"git": {"commit": "c0ffee", "dirty": False}, "packages": {"torch": f"2.{number % 2}"}},
    })  # fmt: skip
    for i, name in enumerate(figure_names):
        caption = PngInfo()
        caption.add_text("Description", f"What to see in {name}.")
        path = folder / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (320, 200), PALETTE[(number + i) % 8]).save(path, pnginfo=caption)
    write_text(folder / "report.html", "<!doctype html><title>report</title>")
    write_text(folder / "scores.csv", "image,score\n")
    write_json(
        folder / "verdict.json", {"subject": "nut by knn", "sentences": [f"Image AUROC {auroc:.3f}.", "More of it."]}
    )
    return folder.name


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    "A dozen runs: three reports, two banks, a failure, one under way, one with hostile words."
    folder = tmp_path_factory.mktemp("figures")
    for n in range(6):
        make_run(
            folder,
            n,
            figure_names=(("true_positives", "roc")) if n < 4 else ("roc",),
            bank="padim" if n % 2 else "knn",
            k=n // 2 + 1,
            category=("nut", "wood", "weave")[n % 3],
        )
    make_run(folder, 6, "failed", category="wood")
    make_run(folder, 7, "running")
    make_run(folder, 8, report="video_calibration", dataset="clips", figure_names=("top_frames",))
    make_run(folder, 9, report="method_comparison", recipes="patchcore, padim", bank="")
    make_run(folder, 10, report="image_anomaly", category=HOSTILE)
    make_run(folder, 11, "failed", report="image_anomaly", category="granite")
    record = json.loads((folder / "runs" / "image_anomaly-0011" / "run.json").read_text())
    write_json(folder / "runs" / "image_anomaly-0011" / "run.json", record | {"error": HOSTILE})
    write_gallery(folder)
    return folder


# ---------------------------------------------------------------- the documents, without a browser


class Reader(HTMLParser):
    "Addresses, element ids and the embedded records of a page."

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.tags, self.scripts, self.policy = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "action", "srcset", "data", "poster")]
        self.ids += [found["id"]] if "id" in found else []
        self.policy = found["content"] if found.get("http-equiv") else self.policy
        if tag == "script":
            self.scripts.append([found.get("type", ""), ""])

    def handle_data(self, data):
        if self.tags[-1:] == ["script"]:
            self.scripts[-1][1] += data

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")


def test_gallery_is_one_document_that_loads_nothing(figures):
    text = (figures / "index.html").read_text()
    page = Reader(text)
    assert all(a.startswith(("#", "runs/")) for a in page.addresses), page.addresses
    assert not re.search(
        r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(|eval\(|innerHTML|insertAdjacentHTML|document\.write",
        text,
    )
    assert "default-src 'none'" in page.policy and "http" not in page.policy
    assert len(page.ids) == len(set(page.ids)) and {"link", "iframe", "object"}.isdisjoint(page.tags)
    assert [script_type for script_type, _ in page.scripts] == ["application/json", ""]
    runs = json.loads(page.scripts[0][1])["runs"]
    assert [r["folder"] for r in runs] == [r["folder"] for r in read_runs(figures)] and len(runs) == 12
    assert next(r for r in runs if r["folder"].endswith("10"))["parameters"]["category"] == HOSTILE
    assert not any("out" in r["parameters"] for r in runs)
    assert {r["verdict"][:24] for r in runs} == {"nut by knn: Image AUROC "} and json.loads(page.scripts[0][1])[
        "words"
    ]["image_auroc"] == ["image AUROC", "higher is better"]
    assert f'href="runs/{runs[0]["folder"]}' in text[text.index("<noscript>") :]


def test_gallery_script_is_the_one_its_policy_allows(figures):
    page = Reader((figures / "index.html").read_text())
    digest = base64.b64encode(hashlib.sha256(page.scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy and "onclick=" not in page.rawdata


def test_failures_first_and_damaged_records_are_shown(figures, tmp_path):
    shutil.copytree(figures / "runs", tmp_path / "runs")
    write_text(tmp_path / "runs" / "cut" / "run.json", '{"run_id": "1')
    write_text(
        tmp_path / "runs" / "odd" / "run.json",
        '{"run_id": "3", "report": "mine", "status": "ok", "parameters": {}, "metrics": [1]}',
    )
    write_text(
        tmp_path / "runs" / "nan" / "run.json",
        '{"run_id": "2", "report": "mine", "status": "ok", "parameters": {}, "metrics": {"x": NaN, "y": Infinity, "z": 1}}',
    )
    (tmp_path / "runs" / "image_anomaly-0000" / "figures" / "true_positives.png").write_bytes(b"no image")
    statuses = {r["folder"]: r["status"] for r in read_runs(tmp_path)}
    assert statuses["cut"] == statuses["odd"] == statuses["nan"] == "damaged"
    assert list(statuses.values()).index("ok") == sum(s != "ok" for s in statuses.values())
    runs = {r["folder"]: r for r in json.loads(Reader(write_gallery(tmp_path).read_text()).scripts[0][1])["runs"]}
    assert (
        runs["nan"]["metrics"] == {}
        and "NaN is not JSON" in runs["nan"]["error"]
        and "not valid JSON" in runs["cut"]["error"]
    )
    assert [f["name"] for f in runs["image_anomaly-0000"]["figures"]] == ["roc"]


def test_gallery_is_written_to_the_same_bits_and_follows_its_runs(figures, tmp_path):
    shutil.copytree(figures / "runs", tmp_path / "runs")
    first = write_gallery(tmp_path).read_bytes()
    thumb = tmp_path / "thumbs" / "image_anomaly-0001.jpg"
    image = thumb.read_bytes()
    thumb.unlink()
    assert write_gallery(tmp_path).read_bytes() == first and thumb.read_bytes() == image and len(image) < 15_000
    assert not list(tmp_path.glob("runs/**/*.jpg")), "a run's folder holds only what the run made"
    shutil.rmtree(tmp_path / "runs" / "image_anomaly-0001")
    assert b"image_anomaly-0001" not in write_gallery(tmp_path).read_bytes()


def leaves(value, path=()):
    "The places of a record that hold text, and the keys that a reader shows."
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in [(*path, k, None), *leaves(v, (*path, k))]]
    return [path] if isinstance(value, str) else []


def spoiled(record, path):
    "A record with hostile words at a place; a path that ends with None means the key."
    *above, last = path[:-1] if path[-1] is None else path
    copy = json.loads(json.dumps(record))
    place = copy
    for key in above:
        place = place[key]
    if path[-1] is None:
        place[HOSTILE] = place.pop(last)
    else:
        place[last] = HOSTILE
    return copy


def test_hostile_words_in_every_field_of_a_record_stay_words(tmp_path):
    name = make_run(tmp_path, 1, "failed", ("roc",))
    record = json.loads((tmp_path / "runs" / name / "run.json").read_text())
    record |= {"metrics": {"image_auroc": 0.9}, "reason": "error", "template": "image_anomaly", "folder": name}
    record |= {"outputs": {"scores.csv": "ab"}, "peak_memory_mb": 1.0}
    places = leaves(record)
    assert len(places) > 40
    for place in places:
        odd, pages = {"metrics": {}, "error": None} | spoiled(record, place), []
        if {"run_id", "report", "status", "parameters", "started", "seconds"} <= odd.keys():  # whoever made the record
            pages += [runs_table([odd, record]), Run(tmp_path, odd["status"], odd)._repr_html_()]
            pages += [Sweep("x", "figures", [odd, record], [True, False])._repr_html_()]
            pages += [notebook_page(tmp_path / "absent.ipynb", odd)]
        write_json(tmp_path / "runs" / name / "run.json", spoiled(record, place))
        pages += [write_gallery(tmp_path).read_text(), Ledger(tmp_path)._repr_html_()]
        for page in pages:
            assert "<img" not in page and "<!--<script>" not in page, (place, page[page.find("<img") - 200 :][:400])
        if place[0] == "status" and place[-1] is not None:
            assert Ledger(tmp_path).records()[0]["status"] == "damaged"


def test_a_figure_that_is_cut_off_costs_its_run_the_cover_alone(tmp_path):
    names = [make_run(tmp_path, n, figure_names=("cover",)) for n in range(2)]
    figure = tmp_path / "runs" / names[0] / "figures" / "cover.png"
    figure.write_bytes(figure.read_bytes()[:120])
    with pytest.warns(Notice, match=r"cover\.png: cannot be read .*; the gallery shows the run without it"):
        renew_gallery(tmp_path)
    runs = {r["folder"]: r for r in json.loads(Reader((tmp_path / "index.html").read_text()).scripts[0][1])["runs"]}
    assert runs[names[0]]["cover"] is None and runs[names[1]]["cover"] == "What to see in cover."


def report_with(folder, *outputs):
    "The page of a report whose one code cell left these outputs."
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Report"), new_code_cell("", outputs=list(outputs))]),
        folder / "notebook.ipynb",
    )
    record = {
        "run_id": "1",
        "report": "mine",
        "status": "ok",
        "error": None,
        "started": "2026-01-01T00:00:00",
        "seconds": 2.0,
        "parameters": {"k": 1},
    }
    return write_text(folder / "report.html", notebook_page(folder / "notebook.ipynb", record))


def test_report_page_has_its_captions_contents_and_one_script(tmp_path):
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
    import nbformat

    png = (ROOT / "figures" / "bench.png").read_bytes()
    outputs = [
        new_output("display_data", data={"image/png": base64.b64encode(png).decode()}),
        new_output("display_data", data={"text/markdown": "*The caption.*"}),
        new_output("display_data", data={"text/html": '<script src="https://example.org/x.js"></script><b>widget</b>'}),
        new_output("error", ename="ValueError", evalue=HOSTILE, traceback=[f"\x1b[31m{HOSTILE}\x1b[0m"]),
    ]
    cells = [
        new_markdown_cell("papermill says so too", metadata={"tags": ["papermill-error-cell-tag"]}),
        new_markdown_cell("# Title\n> subtitle"),
        *[new_markdown_cell(f"## Part {i}\n$x^2$") for i in range(4)],
        new_code_cell("hidden_source()", outputs=outputs),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebook.ipynb")
    record = {
        "run_id": "1",
        "report": HOSTILE,
        "status": "failed",
        "error": HOSTILE,
        "started": "2026-01-01T00:00:00",
        "seconds": 2.0,
        "parameters": {"category": HOSTILE},
    }
    text = notebook_page(tmp_path / "notebook.ipynb", record)
    page = Reader(text)
    digest = base64.b64encode(hashlib.sha256(asset("sort.js").encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page.policy and "default-src 'none'" in page.policy
    assert page.scripts[-1] == ["", asset("sort.js")], "the last script, and the only one the policy allows"
    assert (
        re.search(
            r'<figure><div class="wide" tabindex="0" role="region"[^>]*--width: \d+px">'
            r'<img [^>]*alt="The caption\."[^>]*></div><figcaption>',
            text,
        )
        and "hidden_source" not in text
        and "papermill says" not in text
    )
    assert {"#Part-0", "#Part-3", "#How-it-was-made", "../../index.html"} <= set(page.addresses) and {
        "Part-0",
        "Part-3",
        "How-it-was-made",
    } <= set(page.ids)
    assert not re.search("mathjax|require(\\.min)?\\.js|mermaid", text, re.I)
    assert page.tags.count("img") == 1, "the hostile words became an element"


def test_all_figures_are_drawn_in_the_house_style():
    "Every figure of the package and of the report templates is made inside `figure_style`, in its colours or greys."
    sources = {
        p: p.read_text() for p in (ROOT / "anomaly_nb").rglob("*.py") if p.name not in ("_modidx.py", "style.py")
    }
    for path in (ROOT / "nbs" / "reports").glob("*.ipynb"):
        cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        sources[path] = "\n".join(cells)
    allowed, drawn, seen = {c.lower() for c in PALETTE}, 0, []
    for path, source in sources.items():
        tree = ast.parse(source)
        styled = [n for n in ast.walk(tree) if isinstance(n, ast.With) and "figure_style" in ast.unparse(n.items[0])]
        styled += [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.FunctionDef) and any("figure_style" in ast.unparse(d) for d in n.decorator_list)
        ]
        inside = {id(n) for block in styled for n in ast.walk(block)}
        called = {
            n.func.id
            for block in styled
            for n in ast.walk(block)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        inside |= {
            id(n)
            for f in ast.walk(tree)
            if isinstance(f, ast.FunctionDef) and f.name.startswith("_") and f.name in called
            for n in ast.walk(f)
        }
        makes = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and ast.unparse(n.func) in ("plt.subplots", "plt.figure", "Figure")
        ]
        drawn += len(makes)
        assert all(id(n) in inside for n in makes), f"{path}: a figure outside figure_style()"
        if makes:
            colours = set(
                re.findall(
                    r"#[0-9a-f]{6}\b",
                    "\n".join(line for line in source.lower().splitlines() if not line.startswith("# %%")),
                )
            )
            grey = {c for c in colours if c[1:3] == c[3:5] == c[5:7]}
            seen += [(path.name, c) for c in colours - allowed - grey]
    assert drawn > 15
    assert {name for name, _ in seen} <= {"panels.py"}, (
        seen
    )  # street scenes keep the colours their classes have everywhere


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    "Open a page; at the end, fail on any console message, script error or request that would leave the machine."
    contexts, complaints = [], []

    def opens(path, hash="", width=1280, height=800, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda m: complaints.append(f"console {m.type}: {m.text}"))
        tab.on("pageerror", lambda e: complaints.append(f"error: {e}"))
        tab.on(
            "request",
            lambda r: None if r.url.startswith(("file://", "data:")) else complaints.append(f"request: {r.url}"),
        )
        tab.on("requestfailed", lambda r: complaints.append(f"not found: {r.url}"))
        tab.goto(Path(path).resolve().as_uri() + hash)
        return tab

    yield opens
    for context in contexts:
        context.close()
    assert not complaints


def until(tab, expression, seconds=20):
    "Wait until `expression` holds. (Playwright's own way evaluates text inside the page, which the page forbids.)"
    end = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < end, f"never came true: {expression}"
        tab.wait_for_timeout(20)


def shown(tab):
    "Numbers of the runs in the table, in their order."
    return [
        int(re.search(r"-(\d{4})/", a)[1])
        for a in tab.eval_on_selector_all(".runs tbody .name a", "links => links.map(a => a.getAttribute('href'))")
    ]


def test_search_filters_and_order(figures, visit):
    tab = visit(figures / "index.html")
    assert tab.inner_text("#count") == "All 12 runs, 3 failed" and shown(tab)[:3] == [
        11,
        7,
        6,
    ]  # 7 says running, but nobody is at work
    errors = tab.locator(".runs tr.failed .error")
    assert any("004.png: damaged" in text for text in errors.all_inner_texts()) and errors.first.is_visible()
    tab.fill("#q", "bank=padim K=2")
    assert shown(tab) == [3] and tab.inner_text("#count") == "1 of 12 runs"
    tab.fill("#q", "damaged")
    assert shown(tab) == [6]
    tab.click("#reset")
    assert len(shown(tab)) == 12
    tab.select_option("#method", "recipe:patchcore")
    assert shown(tab) == [9]
    tab.select_option("#method", "bank:padim")
    tab.select_option("#data", "category:wood")
    assert shown(tab) == [1]
    assert tab.inner_text("#data option:checked") == "wood (1)" and "knn (2)" in tab.inner_text("#method")
    tab.click("#reset")
    tab.select_option("#report", "video_calibration")
    assert shown(tab) == [8]
    tab.click("#reset")
    tab.select_option("#metric", "image_auroc")
    tab.fill("#limit", "0.9")
    good = shown(tab)
    assert good and all(0.6 + 0.39 * ((n * 37) % 101) / 101 >= 0.9 for n in good)
    tab.select_option("#side", "max")
    assert set(good).isdisjoint(shown(tab))
    assert tab.locator("[aria-sort]").count() == 0
    tab.fill("#limit", "")
    heads = tab.locator(".runs thead")
    heads.get_by_role("button", name="image AUROC").click()
    values = [float(v) for v in tab.locator(".runs .value .number").all_inner_texts()]
    assert values == sorted(values, reverse=True) and tab.get_attribute("[aria-sort]", "aria-sort") == "descending"
    assert shown(tab)[-3:] == [11, 7, 6], "runs without the metric come last"
    heads.get_by_role("button", name="image AUROC").click()
    values = [float(v) for v in tab.locator(".runs .value .number").all_inner_texts()]
    assert values == sorted(values) and tab.get_attribute("[aria-sort]", "aria-sort") == "ascending"
    tab.select_option("#sort", "seconds")
    assert shown(tab) == sorted(shown(tab), reverse=True)
    tab.fill("#q", "no such words")
    assert tab.inner_text("#results") == "No run matches."


def test_address_restores_the_view_and_back_leaves_the_comparison(figures, visit):
    tab = visit(figures / "index.html")
    tab.select_option("#data", "category:nut")
    tab.select_option("#metric", "recall")
    tab.fill("#q", "k=1 nut")
    tab.select_option("#sort", "started")
    tab.click("#turn")
    for n in (0, 9):
        tab.check(f"input[aria-label$='{n:012x}']")
    before = shown(tab)
    again = visit(figures / "index.html", "#" + tab.url.split("#")[1])
    assert (
        shown(again) == before
        and len(before) > 2
        and again.input_value("#q") == "k=1 nut"
        and again.input_value("#metric") == "recall"
    )
    assert again.inner_text("#chosen-text") == "2 runs chosen" and again.locator("tr.picked").count() == 2
    again.click("#open")
    compared = again.url
    assert again.locator("#compare h2").first.inner_text() == "2 runs side by side"
    again.go_back()
    assert (
        again.locator("#browse").is_visible() and not again.locator("#compare").is_visible() and shown(again) == before
    )
    third = visit(figures / "index.html", "#" + compared.split("#")[1])
    assert third.locator("#compare .side").count() == 2
    assert (
        visit(figures / "index.html", "#show=absent&sort=toString&limit=x&metric=none&q=%3Cb%3E").inner_text("#count")
        == "0 of 12 runs"
    )


def test_comparison_shows_what_differs(figures, visit):
    tab = visit(figures / "index.html", "#pick=image_anomaly-0000&pick=image_anomaly-0003")
    tab.click("#open")
    view = tab.locator("#compare")
    rows = lambda: [r.split("\t") for r in view.locator(".facing").first.inner_text().split("\n") if "\t" in r]
    assert [r[:3] for r in rows() if r[0] in ("bank", "k", "backbone", "category")] == [
        ["bank", "knn", "padim"],
        ["k", "1", "2"],
    ]
    tab.check("text=Show also what is the same")
    assert ["backbone", "filters", "filters"] in [r[:3] for r in rows()]
    assert re.search(r"packages torch\s+2\.0\s+2\.1", view.locator(".facing").last.inner_text()) and re.search(
        r"seeds seed\s+0\s+1", view.locator(".facing").last.inner_text()
    )
    metrics = view.locator(".facing.gapped")
    line = metrics.locator("tr", has_text="image AUROC").inner_text()
    a, b = (0.6 + 0.39 * ((n * 37) % 101) / 101 for n in (0, 3))
    assert (
        f"{a:.4f}" in line
        and f"{a - 0.05:.3f} – {a + 0.03:.3f}" in line.replace("\n", "")
        and f"+{b - a:.4f}".replace("+-", "−") in line
    )
    names = view.locator(".figures h3").all_inner_texts()
    assert names == ["Roc", "True positives"]
    images = view.locator(".figures img")
    assert [images.nth(i).get_attribute("src") for i in (2, 3)] == [
        f"runs/image_anomaly-000{n}/figures/true_positives.png" for n in (0, 3)
    ]
    assert (
        images.nth(2).get_attribute("alt") == "What to see in true_positives."
        and "What to see in roc." in view.inner_text()
    )
    links = set(view.locator(".side a").evaluate_all("links => links.map(a => a.getAttribute('href'))"))
    assert {
        "runs/image_anomaly-0003/report.html",
        "runs/image_anomaly-0003/run.json",
        "runs/image_anomaly-0000/scores.csv",
    } <= links
    for i in range(images.count()):
        images.nth(i).scroll_into_view_if_needed()
    until(tab, "[...document.querySelectorAll('#compare img')].every(i => i.naturalWidth === 320)")
    lonely = visit(figures / "index.html", "#show=image_anomaly-0000&show=image_anomaly-0004")
    assert "This run has no such figure." in lonely.inner_text("#compare")
    single = visit(figures / "index.html")
    single.locator("tr", has_text="damaged").first.get_by_role("button", name="Details").click()
    assert (
        "DataError: 004.png: damaged" in single.inner_text("#compare")
        and single.inner_text("#compare .facing")
        and "attempts" in single.inner_text("#compare")
        and "torch" not in single.inner_text("#compare")
    )


def test_by_keyboard_alone(figures, visit):
    tab = visit(figures / "index.html", "#report=image_anomaly&status=ok")
    focus = lambda: tab.evaluate(
        "document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
    )
    tab.keyboard.press("Tab")
    assert focus() == "Skip to the runs" and tab.locator(".skip").bounding_box()["y"] >= 0
    tab.keyboard.press("Enter")
    assert focus() == "results"
    tab.keyboard.press("/")
    assert focus() == "q"
    tab.keyboard.type("padim")
    assert shown(tab) == [5, 3, 1]
    reached = []
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.append(focus())
        if str(reached[-1]).startswith("Compare"):
            break
    assert {"report", "data", "method", "status", "metric", "side", "limit", "sort", "turn", "reset"} <= set(reached)
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is not to be seen"
    tab.keyboard.press("Space")
    while not focus().startswith("Compare") or "0003" not in focus():
        tab.keyboard.press("Tab")
    tab.keyboard.press("Space")
    assert tab.inner_text("#chosen-text") == "2 runs chosen" and tab.get_attribute("#chosen-text", "role") == "status"
    while focus() != "open":
        tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert focus() == "2 runs side by side"
    tab.keyboard.press("Escape")
    assert focus() == "open" and tab.locator("#browse").is_visible()
    sort = tab.locator("thead button", has_text="Run")
    sort.focus()
    tab.keyboard.press("Enter")
    assert tab.get_attribute("[aria-sort]", "aria-sort") == "ascending" and focus().startswith("Run"), (
        "sorting lost the focus"
    )


def test_four_runs_at_most(figures, visit):
    tab = visit(figures / "index.html", "#" + "&".join(f"pick=image_anomaly-000{n}" for n in range(4)))
    assert "the most" in tab.inner_text("#chosen-text")
    assert (
        tab.locator("input[aria-label$='000000000005']").is_disabled()
        and tab.locator("input[aria-label$='000000000003']").is_enabled()
    )
    tab.click("#open")
    assert tab.locator("#compare .side").count() == 4 and tab.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
    )


def test_hostile_words_stay_words(figures, visit):
    tab = visit(figures / "index.html")
    assert tab.title() == "anomaly_nb: runs" and tab.locator("img[src='x']").count() == 0
    assert HOSTILE in tab.locator(".data", has_text="onerror").inner_text()
    assert HOSTILE in tab.locator(".error").first.inner_text()
    tab.select_option("#data", f"category:{HOSTILE}")
    assert shown(tab) == [10]
    tab.goto((figures / "index.html").resolve().as_uri() + "#show=image_anomaly-0010&show=image_anomaly-0011&x=1")
    tab.reload()
    assert HOSTILE in tab.inner_text("#compare .facing") and tab.locator("img[src='x']").count() == 0


@pytest.mark.parametrize(
    "hash",
    [
        "",
        "#metric=image_auroc&pick=image_anomaly-0001&pick=image_anomaly-0002",
        "#show=image_anomaly-0001&show=image_anomaly-0010",
        "#show=image_anomaly-0006",
    ],
)
@pytest.mark.parametrize("width", [320, 375, 800])
def test_nothing_scrolls_sideways(figures, visit, width, hash):
    tab = visit(figures / "index.html", hash, width=width, height=700)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    if width < 700 and "show" not in hash:
        tab.click("#more")
        assert tab.get_attribute("#more", "aria-expanded") == "true" and tab.locator("#report").is_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


AUDIT = """() => {
  const seen = (e) => e.checkVisibility();
  const named = (e) => (e.querySelector('img') || {}).alt || (e.labels && e.labels.length && e.labels[0].textContent.trim()) || e.getAttribute('aria-label') || (e.tagName !== 'INPUT' && e.tagName !== 'SELECT' && e.textContent.trim());
  const bad = [];
  for (const e of document.querySelectorAll('input, select, button, a[href], [role=region], nav')) if (seen(e) && !named(e)) bad.push('no name: ' + e.outerHTML.slice(0, 120));
  for (const e of document.images) if (!e.alt) bad.push('no alt: ' + e.src.slice(-60));
  const levels = [...document.querySelectorAll('h1, h2, h3, h4')].filter(seen).map((h) => +h.tagName[1]);
  if (levels[0] !== 1 || levels.some((l, i) => i && l > levels[i - 1] + 1)) bad.push('headings ' + levels);
  if (document.querySelectorAll('main').length !== 1 || !document.documentElement.lang || !document.title) bad.push('landmarks');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  if (new Set(ids).size !== ids.length) bad.push('ids twice');
  for (const t of document.querySelectorAll('table')) if (seen(t) && !t.querySelector('th')) bad.push('table without heads');
  const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (c.startsWith('rgb(')) return c; } return 'rgb(255, 255, 255)'; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const lowest = { ratio: 99, text: '' };
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !seen(e) || /SCRIPT|STYLE|NOSCRIPT|OPTION|OPTGROUP/.test(e.tagName) || e.closest(':disabled') || getComputedStyle(e).opacity < 1) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < lowest.ratio) Object.assign(lowest, { ratio, text: e.outerHTML.slice(0, 100) });
  }
  if (lowest.ratio < 4.5) bad.push('contrast ' + JSON.stringify(lowest));
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "hash",
    [
        "",
        "#pick=image_anomaly-0001&metric=recall",
        "#show=image_anomaly-0001&show=image_anomaly-0002",
        "#show=image_anomaly-0006",
    ],
)
def test_accessible(figures, visit, scheme, hash):
    tab = visit(figures / "index.html", hash, color_scheme=scheme)
    assert tab.evaluate(AUDIT) == []
    if not hash:
        assert (
            tab.get_by_role("row").count() == 13
            and tab.get_by_role("search").count() == 1
            and tab.get_by_role("main").count() == 1
        )
        narrow = visit(figures / "index.html", width=375, color_scheme=scheme)
        assert narrow.evaluate(AUDIT) == [] and narrow.get_by_role("row").count() == 12, "cards lost what they are"


def test_a_thousand_runs(tmp_path, visit):
    from PIL import Image

    make_run(tmp_path, 0, figure_names=("true_positives", "false_negatives", "roc", "pro", "examples"))
    first = json.loads((tmp_path / "runs" / "image_anomaly-0000" / "run.json").read_text())
    noise = np.random.default_rng(0).integers(0, 255, (15, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((240, 150)).save(tmp_path / "thumb.jpg")
    (tmp_path / "thumbs").mkdir()
    for n in range(1, 1000):
        folder = tmp_path / "runs" / f"image_anomaly-{n:04d}"
        shutil.copytree(tmp_path / "runs" / "image_anomaly-0000", folder)
        parameters = first["parameters"] | {
            "bank": ("knn", "padim", "mahalanobis")[n % 3],
            "category": f"part{n % 15}",
            "k": n % 7,
        }
        about = {
            "run_id": f"{n:012x}",
            "parameters": parameters,
            "metrics": first["metrics"] | {"image_auroc": n / 1000 + 1e-6},
            "error": None,
        }
        about |= {"status": "failed", "error": "DataError: 004.png: damaged"} if n % 97 == 0 else {}
        (folder / "run.json").write_text(json.dumps(first | about))
        shutil.copy(tmp_path / "thumb.jpg", tmp_path / "thumbs" / f"{folder.name}.jpg")
    start = time.perf_counter()
    page = write_gallery(tmp_path)
    written = time.perf_counter() - start
    tab = visit(page)
    loaded = tab.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart")
    assert tab.inner_text("#count") == "All 1000 runs, 10 failed"
    timed = "new Promise((done) => {{ const start = performance.now(); {}; document.body.offsetHeight; requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))); }})"
    search = tab.evaluate(
        timed.format(
            "document.getElementById('q').value = 'part3 k=2'; document.getElementById('q').dispatchEvent(new Event('input'))"
        )
    )
    assert 0 < len(shown(tab)) < 20
    clear = tab.evaluate(timed.format("document.getElementById('reset').click()"))
    order = tab.evaluate(timed.format("document.querySelector('[data-sort=metric]').click()"))
    until(tab, "document.querySelectorAll('.runs tbody tr').length === 1000")
    assert shown(tab)[:3] == [999, 998, 997] and set(shown(tab)) == set(range(1000))
    images = tab.evaluate("[...document.images].filter((i) => i.naturalWidth).length")
    print(
        f"1000 runs: {page.stat().st_size / 1e6:.2f} MB written in {written:.2f} s, shown in {loaded / 1000:.2f} s, search {search:.0f} ms, clear {clear:.0f} ms, sort {order:.0f} ms, {images} images loaded"
    )
    assert (
        written < 15
        and loaded < 5000
        and max(search, clear, order) < 1500
        and 5 < images < 300
        and page.stat().st_size < 4e6
    )


def test_report_page_on_paper_and_phone(tmp_path, visit):
    import nbformat
    import pandas as pd
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    from anomaly_nb.core.style import figure_style
    from anomaly_nb.reports.folder import figure_png
    import matplotlib.pyplot as plt

    with figure_style():
        fig, _ = plt.subplots(figsize=(9, 3))
        plt.close(fig)
    wide = pd.DataFrame({f"column_{i}": [0.123456] * 3 for i in range(30)}).to_html(index=False, classes="table")
    outputs = [
        new_output("display_data", data={"image/png": base64.b64encode(figure_png(fig)).decode()}), new_output("display_data", data={"text/markdown": "*Caption.*"}),
        new_output("display_data", data={"text/html": wide}), new_output("stream", text="x" * 400 + "\n"),
        new_output("error", ename="E", evalue="v", traceback=["\x1b[38;5;167;01mE\x1b[39;00m: v\n\x1b[38;5;129min\x1b[39m \x1b[33mhere\x1b[0m"]),
    ]  # fmt: skip
    cells = [
        new_markdown_cell("# Report\n> about"),
        *[new_markdown_cell(f"## Part {i}\n\n### Detail\n\n" + "words " * 60) for i in range(5)],
        new_code_cell("", outputs=outputs),
    ]
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), folder / "notebook.ipynb")
    record = {
        "run_id": "1",
        "report": "mine",
        "status": "failed",
        "error": "DataError: " + "x" * 300,
        "started": "2026-01-01T00:00:00",
        "seconds": 2.0,
        "parameters": {"root": "/a/long/path" * 20},
    }
    page = write_text(folder / "report.html", notebook_page(folder / "notebook.ipynb", record))
    write_json(folder / "run.json", record)
    write_gallery(tmp_path)
    for width in (320, 375, 800, 1280):
        tab = visit(page, width=width, height=700)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        inner = tab.locator(".scroll", has_text="column_29")
        assert inner.evaluate("e => e.scrollWidth > e.clientWidth && e.tabIndex === 0")
    for scheme in ("light", "dark"):
        assert visit(page, color_scheme=scheme).evaluate(AUDIT) == []
    tab.click(".toc a >> text=Part 4")
    assert tab.evaluate("location.hash") == "#Part-4"
    assert tab.pdf(format="A4").startswith(b"%PDF") and (
        tab.emulate_media(media="print") or not tab.locator(".toc").is_visible()
    )
    tab.emulate_media(media="screen")
    tab.click("text=All runs")
    tab.wait_for_selector(".runs")
    assert tab.inner_text("#count") == "All 1 run, 1 failed"


def column_of(tab, number):
    "Texts of a column of the first table."
    return tab.eval_on_selector_all(f"table.table tbody td:nth-child({number})", "cells => cells.map(c => c.textContent)")


def test_few_rows_of_many_columns_are_stacked_on_a_phone(tmp_path, visit):
    import pandas as pd
    from nbformat.v4 import new_output

    from anomaly_nb.core.display import table_html

    frame = pd.DataFrame({f"name_of_column_{i}": [0.1, 0.2] for i in range(12)})
    page = report_with(tmp_path, new_output("display_data", data={"text/html": table_html(frame)}))
    for width, display in ((390, "block"), (1280, "table-cell")):
        tab = visit(page, width=width, height=700)
        cell = tab.locator(".stacked td").first
        assert cell.evaluate("e => getComputedStyle(e).display") == display
        shown = cell.evaluate("e => getComputedStyle(e, '::before').content")
        assert ("name of column 0" in shown) == (width == 390), shown
        moved = tab.locator(".scroll", has=tab.locator(".stacked")).evaluate("e => e.scrollWidth > e.clientWidth")
        assert moved == (width != 390)


@pytest.mark.parametrize("width", [320, 390])
def test_the_first_column_of_many_stays_on_a_phone(tmp_path, visit, width):
    import pandas as pd
    from nbformat.v4 import new_output

    from anomaly_nb.core.display import table_html

    rows = 9
    frame = pd.DataFrame({"image_path": [f"test/cut/an_image_of_a_long_name_{i:04d}.png" for i in range(rows)]})
    metrics = {f"metric_{i}": 0.5 for i in range(9)}
    frame = frame.assign(**metrics, why="a reason of more words than a line of a cell takes")
    page = report_with(tmp_path, new_output("display_data", data={"text/html": table_html(frame)}))
    tab = visit(page, width=width, height=700)
    box = tab.locator(".scroll", has=tab.locator("table.table"))
    place = "e => e.getBoundingClientRect().left - e.closest('.scroll').getBoundingClientRect().left"
    names, last = tab.locator("table.table tr > :first-child"), tab.locator("table.table tr > :last-child").first
    assert names.count() == rows + 1 and [names.nth(i).evaluate(place) for i in (0, rows)] == [0, 0]
    assert last.evaluate(place) > width, "more than the screen shows"
    box.evaluate("e => e.scrollLeft = e.scrollWidth")
    assert [names.nth(i).evaluate(place) for i in (0, rows)] == [0, 0]
    assert all(names.nth(i).evaluate("e => e.scrollWidth <= e.offsetWidth") for i in (0, rows)), "no name is cut off"
    seen = "e => { const [c, s] = [e, e.closest('.scroll')].map((x) => x.getBoundingClientRect()); return c.right <= s.right + 1; }"
    assert last.evaluate(seen) and names.first.evaluate("e => e.offsetWidth < e.closest('.scroll').clientWidth / 2")
    shade = names.nth(1).evaluate("e => getComputedStyle(e).backgroundColor")
    assert shade == tab.evaluate("getComputedStyle(document.body).backgroundColor"), "what moves under it shows through"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = visit(page, width=1280, height=700).locator("table.table td").first
    assert wide.evaluate("e => getComputedStyle(e).position") == "static"


def test_tables_of_a_report_sort(tmp_path, visit):
    import pandas as pd
    from nbformat.v4 import new_output

    from anomaly_nb.core.display import table_html

    frame = pd.DataFrame(
        {
            "video": ["v10", "v9", "V1", "v2"],
            "auroc": [0.9, 0.95, 0.0951, None],
            "interval": ["0.93 [0.90, 0.95]", "-0.50 [-0.60, -0.40]", "–", "10.00 [9.00, 11.00]"],
        }
    )
    page = report_with(tmp_path, new_output("display_data", data={"text/html": table_html(frame)}))
    tab = visit(page)
    as_written = column_of(tab, 1)
    assert as_written == ["v10", "v9", "V1", "v2"] and tab.locator("[aria-sort]").count() == 0
    assert tab.locator("th", has_text="AUROC").inner_text() == "AUROC\N{NO-BREAK SPACE}↑"
    tab.get_by_role("button", name="interval").click()
    assert column_of(tab, 3) == ["-0.50 [-0.60, -0.40]", "0.93 [0.90, 0.95]", "10.00 [9.00, 11.00]", "–"]
    assert tab.locator("th[aria-sort=ascending]").inner_text().startswith("interval")
    tab.get_by_role("button", name="interval").click()
    assert column_of(tab, 3) == ["10.00 [9.00, 11.00]", "0.93 [0.90, 0.95]", "-0.50 [-0.60, -0.40]", "–"]
    assert column_of(tab, 1) == ["v2", "v10", "v9", "V1"], "rows stay whole"
    tab.get_by_role("button", name="AUROC").focus()
    tab.keyboard.press("Enter")
    assert column_of(tab, 2) == ["0.095", "0.900", "0.950", "–"] and tab.locator("[aria-sort]").count() == 1
    tab.get_by_role("button", name="video").click()
    assert column_of(tab, 1) == ["V1", "v2", "v9", "v10"]
    tab.get_by_role("button", name="video").click(click_count=2, delay=50)
    assert column_of(tab, 1) == as_written and tab.locator("[aria-sort]").count() == 0
    for scheme in ("light", "dark"):
        assert visit(page, color_scheme=scheme).evaluate(AUDIT) == []
    without = visit(page, java_script_enabled=False)
    assert without.locator("th button").count() == 0 and without.locator("table.table tbody tr").count() == 4


def test_an_injected_script_does_not_run(tmp_path, browser):
    from nbformat.v4 import new_output

    evil = "document.documentElement.dataset.owned = 1"
    hostile = (
        f"<script>{evil}</script><img src=x onerror='{evil}'><svg onload='{evil}'></svg>"
        f"<a id=jump href='javascript:{evil}'>a</a><table class='table'><thead><tr><th>a<script>{evil}</script></th></tr>"
        f"</thead><tbody><tr><td onclick='{evil}'>2</td></tr><tr><td>1</td></tr></tbody></table>"
    )
    page = report_with(
        tmp_path,
        new_output("display_data", data={"text/html": hostile}),
        new_output("display_data", data={"text/markdown": f"*<script>{evil}</script>*"}),
    )
    assert page.read_text().count(f"<script>{evil}") == 2, "the scripts must be there, or this shows nothing"
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.click("#jump")
    tab.click("td >> text=2")
    tab.locator("th button").click()
    assert tab.locator("td").all_inner_texts()[:2] == ["1", "2"], "ours does run"
    assert not tab.evaluate("document.documentElement.dataset.owned")
    allowed = write_text(tmp_path / "open.html", re.sub("<meta http-equiv[^>]*>", "", page.read_text()))
    tab.goto(allowed.as_uri())
    assert tab.evaluate("document.documentElement.dataset.owned"), "without the policy it would have"
    context.close()
