"""The report in a real headless Chromium: what people with and without sight will meet."""

from __future__ import annotations

import importlib.util
import io
import itertools
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)

PHONE, DESK = 390, 1280

LOW_CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = text => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(parse(getComputedStyle(e).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = rgb => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = []; let seen = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || ['STYLE', 'TITLE', 'STYLE'].includes(element.tagName.toUpperCase())) continue;
    if (!element.getClientRects().length) continue;
    seen++;
    const style = getComputedStyle(element), below = ground(element);
    const ink = element.ownerSVGElement ? style.fill : style.color;
    const [a, b] = [light(over(parse(ink), below)), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return {seen, low};
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = chromium.find_chromium()
    if program is None:
        pytest.skip(
            f"needs a browser: none of {', '.join(chromium.NAMES)} is on the PATH "
            "(Debian: apt-get install chromium)"
        )
    opened = chromium.Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=["evaluation", "comparison"])
def report(request, evaluation_folder, comparison_folder) -> Path:
    folder = evaluation_folder if request.param == "evaluation" else comparison_folder
    return folder / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_renders_without_errors_requests_or_sideways_scrolling(browser, report, width, dark):
    browser.open(report, width=width, dark=dark)
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    broken = browser.evaluate(
        "[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length"
    )
    assert broken == 0
    empty = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].filter("
        "s => s.getBoundingClientRect().width < 100 || !s.querySelector('path')).length"
    )
    assert empty == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_asks_for(browser, report, dark):
    browser.open(report, width=DESK, dark=dark)
    found = browser.evaluate(LOW_CONTRAST)
    assert found["seen"] > 100
    assert found["low"] == []


def test_dark_mode_is_dark_in_figures_too(browser, report):
    light = []
    for dark in (False, True):
        browser.open(report, width=PHONE, dark=dark)
        light.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        ink = browser.evaluate("getComputedStyle(document.querySelector('figure text')).fill")
        light.append(ink)
    assert light[0] == "rgb(244, 245, 247)" and light[2] == "rgb(17, 20, 24)"
    assert light[1] != light[3]


def test_a_screen_reader_meets_headings_in_order_and_names_for_everything(browser, report):
    browser.open(report, width=DESK)
    levels = browser.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    nodes = browser.accessible_nodes()
    roles = [role for role, _ in nodes]
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert landmark in roles
    images = [name for role, name in nodes if role in ("image", "img")]
    assert images and all(len(name) > 5 for name in images)
    tables = [name for role, name in nodes if role == "table"]
    assert tables and all(tables)
    assert browser.evaluate("document.documentElement.lang") == "en"


def test_tables_stay_tables_on_a_phone(browser, evaluation_folder):
    browser.open(evaluation_folder / "report.html", width=PHONE)
    tables = browser.evaluate("document.querySelectorAll('table').length")
    roles = [role for role, _ in browser.accessible_nodes()]
    assert roles.count("table") == tables


def test_the_keyboard_reaches_the_content_the_contents_and_the_wide_tables(browser, report):
    browser.open(report, width=PHONE)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.closest('nav') !== null")
    sideways = browser.evaluate(
        "[...document.querySelectorAll('.scroll')].filter("
        "s => s.scrollWidth > s.clientWidth && s.tabIndex < 0).length"
    )
    assert sideways == 0


def test_every_printed_page_is_stamped_synthetic(browser, report):
    pypdf = pytest.importorskip("pypdf")
    browser.open(report, width=DESK, dark=True)
    pages = pypdf.PdfReader(io.BytesIO(browser.pdf())).pages
    assert len(pages) > 1
    for page in pages:
        assert "SYNTHETIC" in page.extract_text()
