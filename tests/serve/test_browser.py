"""The page in a real headless Chromium: with a mouse, without one, small, dark, and read aloud.

Needs Debian's chromium (apt-get install chromium) and the package playwright, which drives it.
"""

from __future__ import annotations

import re
import shutil
from http import HTTPStatus

import pytest

from tests.report.test_browser import LOW_CONTRAST

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
PHONE, DESK = 390, 1280
REFUSED = (
    "Failed to load resource: the server responded with a status of "
    f"422 ({HTTPStatus.UNPROCESSABLE_ENTITY.phrase})"  # Python 3.13 has another phrase.
)
"""What Chromium itself says of any request that is answered so."""

DROP = """
([name, text, kind, modality]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type: kind}));
  const place = document.querySelector(`[data-modality=${modality}]`);
  for (const type of ['dragenter', 'dragover', 'drop']) {
    const how = {dataTransfer: transfer, bubbles: true, cancelable: true};
    place.dispatchEvent(new DragEvent(type, how));
  }
}
"""
NAMELESS = """
[...document.querySelectorAll('a, button, input, select, img:not([alt=""]), [role=region]')]
  .filter((e) => e.getClientRects().length)
  .filter((e) => !(e.getAttribute('aria-label') || e.alt || e.textContent.trim()
    || e.labels?.length || e.getAttribute('aria-labelledby')))
  .map((e) => e.outerHTML.slice(0, 90))
"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs a browser: chromium is not on the PATH (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        with driver.chromium.launch(executable_path=program, args=list(FLAGS)) as opened:
            yield opened


@pytest.fixture
def page(browser, address):
    """Opens the page; nothing may go wrong in it, and nothing be asked of any other server."""
    problems, opened = [], []

    def open_page(width: int = DESK, dark: bool = False, allowed: tuple[str, ...] = ()):
        scheme = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        one = context.new_page()
        one.set_default_timeout(60_000)
        one.on("console", lambda said: said.text in allowed or problems.append(said.text))
        one.on("pageerror", lambda error: problems.append(str(error)))
        home = "http://{}:{}/".format(*address)
        one.on(
            "request",
            lambda r: r.url.startswith((home, "data:", "blob:")) or problems.append(r.url),
        )
        one.goto(home)
        opened.append(context)
        return one

    yield open_page
    for context in opened:
        context.close()
    assert problems == []


def give_by_dropping(page, files):
    import base64

    for modality, (name, content, kind) in files.items():
        page.evaluate(DROP, [name, base64.b64encode(content).decode(), kind, modality])


def test_files_are_dropped_and_the_answer_comes_with_its_maps(page, files, tmp_path):
    one = page()
    give_by_dropping(one, files[0])
    assert one.inner_text("#chosen-mri") == "mri.png"
    one.get_by_role("button", name="Answer").click()
    one.wait_for_selector("article.result")
    one.wait_for_selector("#opacity")
    assert re.search(r"Answered: tumour: \w+", one.inner_text("#status"))
    shown = one.locator(".heat:visible")
    assert shown.count() >= 1
    slider = one.get_by_label("Strength of the map")
    slider.focus()
    slider.press("Home")
    assert shown.first.evaluate("e => getComputedStyle(e).opacity") == "0"
    slider.press("ArrowRight")
    assert shown.first.evaluate("e => getComputedStyle(e).opacity") == "0.05"
    before = shown.first.get_attribute("data-task")
    one.get_by_role("radio").nth(1).check()
    assert one.locator(".heat:visible").first.get_attribute("data-task") != before
    with one.expect_download() as download:
        one.get_by_role("button", name="Save as one file").click()
    kept = tmp_path / "kept.html"
    download.value.save_as(kept)
    text = kept.read_text()
    assert "Research use only" in text and "SYNTHETIC" in text and "data:image/png" in text
    assert not re.search(r"<script|<button|src=\"/|https?://", text)


def test_all_of_it_works_without_a_mouse(page, files, tmp_path):
    one = page()
    for modality, (name, content, _) in files[0].items():
        (tmp_path / name).write_bytes(content)
        one.set_input_files(f"#file-{modality}", tmp_path / name)
    reached = []
    for _ in range(12):
        one.keyboard.press("Tab")
        reached.append(
            one.evaluate("document.activeElement.id || document.activeElement.className")
        )
        if reached[-1] == "answer":
            break
    assert reached == ["skip", "file-mri", "remove", "file-ct", "remove", "answer"]
    one.keyboard.press("Enter")
    one.wait_for_selector("#opacity")
    assert one.evaluate("document.activeElement.id") == "result"
    one.focus("#file-mri")
    one.keyboard.press("Tab")
    one.keyboard.press("Enter")
    assert one.inner_text("#chosen-mri").startswith("Drop or choose")


@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (DESK, True)], ids=["phone", "dark"])
def test_it_is_legible_on_a_phone_and_in_the_dark(page, width, dark):
    one = page(width, dark)
    one.get_by_role("button", name="Try a drawn case").click()
    one.wait_for_selector("#opacity")
    assert one.evaluate("document.documentElement.scrollWidth") == width
    found = one.evaluate(LOW_CONTRAST)
    assert found["seen"] > 40 and found["low"] == []
    background = one.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark


def test_everything_has_a_name_that_can_be_read_aloud(page, files):
    one = page()
    give_by_dropping(one, files[0])
    one.get_by_role("button", name="Answer").click()
    one.wait_for_selector("#opacity")
    assert one.evaluate(NAMELESS) == []
    told = one.locator("body").aria_snapshot()
    for words in (
        'heading "One case"',
        'button "Remove mri"',
        'img "mri as it was read"',
        "slider",
    ):
        assert words in told
    assert one.locator("[role=status]").count() == one.locator("[role=alert]").count() == 1


def test_a_problem_is_said_where_it_is_heard_and_the_page_goes_on(page, files):
    one = page(allowed=(REFUSED,))
    give_by_dropping(one, files[0])
    give_by_dropping(one, {"mri": ("script.png", b"#!/bin/sh", "image/png")})
    with one.expect_response(lambda r: "/case" in r.url):
        one.get_by_role("button", name="Answer").click()
    one.wait_for_selector("#problem:visible")
    assert "is not an image" in one.inner_text("[role=alert]")
    give_by_dropping(one, files[1])
    one.get_by_role("button", name="Answer").click()
    one.wait_for_selector("article.result")
    assert one.locator("#problem:visible").count() == 0
