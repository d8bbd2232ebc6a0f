"""The page in a real Chromium, served by the command line, with the bundled model."""

from __future__ import annotations

import importlib
from urllib.parse import urlsplit

import pytest

from autogaze_mllm.app.examples import write_examples

pytest.importorskip("gradio", reason="the extra `app` is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
picture = importlib.import_module("scripts.app_picture")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(picture.browser_path() is None, reason="no Chromium on this machine"),
]
HARMLESS = "Method not implemented."  # of the browser itself, whatever page is shown
FILMS = "() => [...document.querySelectorAll('#viewer video')].map(film => ({"
FILMS += (
    "width: film.videoWidth, ready: film.readyState, at: film.currentTime, playing: !film.paused, error: film.error}))"
)


@pytest.fixture(scope="module")
def address(own_cache):
    with picture.served() as found:
        yield found


@pytest.fixture
def page(address):
    """With nothing foreign asked for and no error in the console, whatever a test does."""
    hosts, errors = set(), []

    def watch(page):
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))

    with picture.opened(address, watch=watch) as page:
        yield page
        assert hosts - {""} == {urlsplit(address).netloc}
        assert [error for error in errors if HARMLESS not in error] == []


def films(page):
    return page.evaluate(FILMS)


def test_upload_gaze_watch_click_and_ask(page, tmp_path):
    signs = write_examples(tmp_path)[0]
    page.set_input_files("#video input[type=file]", str(signs.path))
    page.wait_for_selector("#video video")
    page.fill("#frames input[type=number]", "12")
    page.press("#frames input[type=number]", "Enter")
    page.click("#go")
    page.wait_for_selector("#viewer video")
    # They play, together, and the chart goes with them.
    page.wait_for_function(
        "() => [...document.querySelectorAll('#viewer video')].every(film => film.currentTime > 0.3)"
    )
    seen = films(page)
    assert len(seen) == 3 and all(film["width"] == 560 and film["ready"] >= 2 and film["playing"] for film in seen)
    assert not any(film["error"] for film in seen)
    page.wait_for_function("() => document.querySelector('.ag-frame').textContent.startsWith('frame 4 of 12')")
    # A click on a bar stops at its frame, in all of them.
    bars = page.locator("#viewer svg:visible g.frame")
    assert bars.count() == 12
    bars.nth(7).click()
    page.wait_for_function("() => !document.querySelector('#viewer video').seeking")
    said = page.text_content(".ag-frame")
    assert said.startswith("frame 8 of 12, ") and " kept (" in said
    assert bars.nth(7).get_attribute("class").split() == ["frame", "ag-here"]
    assert len({round(film["at"], 3) for film in films(page)}) == 1 and not any(film["playing"] for film in films(page))
    page.click("[data-film=rebuilt]")
    assert page.is_visible(".ag-rebuilt") and not page.is_visible(".ag-kept")
    # Both answers, and what was seen is not looked at again.
    page.fill("#question textarea", "What does the purple sign say?")
    page.press("#question textarea", "Enter")
    page.wait_for_function(picture.DONE)
    with_gaze, without = (card.inner_text() for card in page.locator(".ag-answer").all())
    assert with_gaze.startswith("With gaze\n\nF5\n") and without.startswith("Without gaze\n\n")
    assert "visual tokens" in with_gaze and "dense vision" in without
    assert page.is_visible(".ag-rebuilt"), "the viewer is left as it was"
    page.uncheck("#dense input")
    page.fill("#question textarea", "What does the red sign say?")
    page.click("#ask")
    page.wait_for_function("() => document.querySelector('.ag-question').textContent.includes('red')")
    page.wait_for_function(picture.DONE)
    (only,) = (card.inner_text() for card in page.locator(".ag-answer").all())
    assert only.startswith("With gaze\n\nL6\n") and "tower" not in only and "of gazing" in only


def test_a_question_alone_is_enough_and_a_selector_brings_its_loss(page):
    page.get_by_text("a moving scene").first.click()
    page.wait_for_selector("#video video")
    page.click("#selector input")
    page.get_by_role("option", name="bundled").click()
    page.wait_for_function("() => document.querySelector('#loss input[type=number]').value === '0.2'")
    page.fill("#frames input[type=number]", "4")
    page.press("#frames input[type=number]", "Enter")
    page.fill("#question textarea", "What does the red sign say?")
    page.click("#ask")
    page.wait_for_function(picture.DONE)
    assert page.locator("#viewer video").count() == 3 and page.locator("#viewer svg:visible g.frame").count() == 4
    assert "--gaze bundled" in page.text_content(".ag-command")
    assert "reads the signs of SignVid's generated videos and nothing else" in page.text_content("#answers")


def test_what_takes_too_long_is_stopped(page):
    page.get_by_text("five small signs").first.click()
    page.wait_for_selector("#video video")
    page.click("#selector input")
    page.get_by_role("option", name="bundled").click()
    page.click("#go")
    page.wait_for_function("() => document.querySelector('#viewer').innerText.includes('/16 frames')")
    page.click("#stop")
    assert page.wait_for_selector("#viewer .ag-notice").inner_text() == "stopped"


def test_a_file_that_cannot_be_read_is_one_line_and_the_page_goes_on(page, tmp_path):
    broken = tmp_path / "broken clip.mp4"
    broken.write_bytes(b"no video at all" * 100)
    page.set_input_files("#video input[type=file]", str(broken))
    page.wait_for_selector("#video video", state="attached")
    page.click("#go")
    notice = page.wait_for_selector("#viewer .ag-notice").inner_text()
    assert page.get_attribute("#video", "data-unplayable").startswith("Your browser cannot play this file")
    assert notice == "broken clip.mp4: not a readable video (Invalid data found when processing input)"
    page.get_by_text("five small signs").first.click()
    page.wait_for_function("() => (document.querySelector('#video video') || {}).readyState > 0")
    page.click("#go")
    page.wait_for_selector("#viewer video")
    assert not page.locator(".ag-notice").count() and page.get_attribute("#video", "data-unplayable") is None


@pytest.mark.parametrize(("width", "dark"), [(390, True), (760, False)])
def test_nothing_is_cut_off_at_any_width(address, width, dark):
    with picture.opened(address, width, dark) as page:
        picture.use(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        for part in (".ag-number", ".ag-film.ag-frames", ".ag-chart", ".ag-answer", "#ask"):
            box = page.locator(part).first.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 60, part
        background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        shades = [int(shade) for shade in background.removeprefix("rgb(").removesuffix(")").split(",")]
        assert (max(shades) < 60) if dark else (min(shades) > 200)


def test_the_picture_of_the_manual_is_made_by_its_script(address, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr("sys.argv", ["app_picture.py", "--out", str(tmp_path / "page.png"), "--address", address])
    assert picture.main() == 0
    made = Image.open(tmp_path / "page.png")
    shown = Image.open(picture.TARGET)
    assert made.width == shown.width == 1280 and abs(made.height - shown.height) < 60
    assert (tmp_path / "page.png").stat().st_size < 300_000
