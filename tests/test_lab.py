"""JupyterLab in a real browser: the exploration notebook runs, the slider moves image and numbers, and nothing leaves
the machine.
"""

import shutil

import pytest

pytest.importorskip("playwright", reason="needs playwright")
pytest.importorskip("jupyterlab", reason="needs jupyterlab")
if shutil.which("chromium") is None:
    pytest.skip("needs chromium on the path", allow_module_level=True)

from tests.lab import browser, run_all, server


def slider(page, label):
    "The handle of the slider below a label."
    return page.locator(f'.widget-vbox:has(> .widget-label:text-is("{label}")) .noUi-handle')


def test_the_slider_moves_image_and_numbers(tmp_path):
    with server(tmp_path / "project") as (url, token), browser() as (page, errors, beyond):
        run_all(page, url, token, "nbs/explore/images.ipynb")
        image, numbers = page.locator("img.anomaly-nb-image"), page.locator("table.anomaly-nb-numbers").first
        image.wait_for(timeout=120_000)
        before, said, alt = image.get_attribute("src"), numbers.inner_text(), image.get_attribute("alt")
        assert before.startswith("data:image/png;base64,") and len(before) > 20_000 and "threshold" in alt

        handle = slider(page, "threshold")
        handle.focus()
        for _ in range(3):
            handle.press("ArrowRight")
        page.wait_for_function(
            "before => document.querySelector('img.anomaly-nb-image').src !== before", arg=before, timeout=30_000
        )
        page.wait_for_function(
            "said => document.querySelector('table.anomaly-nb-numbers').innerText !== said", arg=said, timeout=30_000
        )
        assert "threshold" in image.get_attribute("alt") and image.get_attribute("alt") != alt
        assert numbers.locator("td[style*='700']").count() >= 1  # what differs from the report is bold

        moved = image.get_attribute("src")
        page.locator('.widget-checkbox:has-text("errors only") input').click()
        listed = page.locator(".widget-select select").first.locator("option")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.widget-select select option')].every(o => /FALSE.(NEGATIVE|POSITIVE)|no.errors/.test(o.text))",
            timeout=30_000,
        )
        assert listed.count() >= 1
        moved = image.get_attribute("src")
        heat = slider(page, "heat")
        heat.focus()
        heat.press("Home")
        page.wait_for_function(
            "before => document.querySelector('img.anomaly-nb-image').src !== before", arg=moved, timeout=30_000
        )

        assert (
            page.locator(
                ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'], .jp-OutputArea-output .jp-mod-error"
            ).count()
            == 0
        )
        assert not beyond, beyond
        assert not errors, errors
