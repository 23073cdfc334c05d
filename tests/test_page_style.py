"The style of report pages as rules: what stays together on paper, and what is stacked on a phone."

import re

import pytest

from anomaly_nb.reports.page import asset


def media(css, words):
    "The rules below one @media: selector -> declarations, each rule as often as it stands there."
    start = css.index(f"@media {words} {{")
    depth, end = 0, start
    for end in range(css.index("{", start), len(css)):
        depth += {"{": 1, "}": -1}.get(css[end], 0)
        if not depth:
            break
    inner = re.sub(r"/\*.*?\*/", "", css[css.index("{", start) + 1 : end], flags=re.S)
    rules = {}
    for selectors, declarations in re.findall(r"([^{}]+)\{([^{}]*)\}", inner):
        for selector in re.split(r",(?![^()]*\))", selectors):
            rules.setdefault(" ".join(selector.split()), []).append(" ".join(declarations.split()))
    return {selector: " ".join(parts) for selector, parts in rules.items()}


CSS = asset("page.css")


@pytest.mark.parametrize(
    ("selector", "declaration"),
    [
        ("h1", "break-after: avoid"),
        ("h2", "break-after: avoid"),
        ("h3", "break-after: avoid"),
        ("figure", "break-inside: avoid"),
        ("tr", "break-inside: avoid"),
        ("figcaption", "break-inside: avoid"),
        ("figcaption", "break-before: avoid"),
        ("thead", "display: table-header-group"),
        ("tbody tr:nth-child(-n + 2)", "break-after: avoid"),
        ("thead", "break-inside: avoid"),  # or it is not repeated
        (":is(h1, h2, h3) + p", "break-after: avoid"),  # the words below a heading stay with the figure below them
        ("figure:has(tbody tr:nth-child(20))", "break-inside: auto"),  # longer than a page, it would leave them behind
        ("figure img", "max-height: 200mm"),  # a figure fits on a page, below its heading
    ],
)
def test_on_paper_a_heading_stays_with_what_it_names(selector, declaration):
    assert f"{declaration};" in media(CSS, "print")[selector]


def test_on_a_phone_few_rows_of_many_columns_are_stacked():
    narrow = media(CSS, "screen and (max-width: 43.75rem)")
    assert "content: attr(data-label)" in narrow[".report main .stacked td::before"]
    assert "display: none" in narrow[".report main .stacked thead"]
    assert ".stacked" not in CSS.partition("@media screen and (max-width")[0]


def test_on_a_phone_the_first_column_of_many_stays():
    narrow = media(CSS, "screen and (max-width: 43.75rem)")
    first = narrow[".report main .table:not(.stacked) :is(th, td):first-child"]
    assert "position: sticky; left: 0; background: var(--paper);" in first
    # collapsed, the lines of a row would move away from under the first column
    assert "border-collapse: separate" in narrow[".report main .table:not(.stacked)"]
    assert "sticky" not in CSS[CSS.index("@media print") :]
