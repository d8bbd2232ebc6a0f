"""Writes docs/app.png, the manual's picture of the page: starts `autogaze-mllm app`, takes the first example, gazes and
asks, in a Chromium that nobody sees.

    python scripts/app_picture.py
    python scripts/app_picture.py --out narrow.png --width 390 --dark

Needs the packages of the extra `dev` and a Chromium of the system (apt-get install chromium).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from autogaze_mllm.cli import program_parser, run_program

TARGET = Path(__file__).resolve().parents[1] / "docs" / "app.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
PATIENCE = 180_000  # milliseconds, on a busy machine
FRAME = 9  # of the example: a cut
DONE = "() => document.querySelector('.ag-answer') && !document.querySelector('.ag-waiting')"


def browser_path() -> str | None:
    """The system's Chromium, if it has one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The page, by a process of its own. -> its address."""
    command = [sys.executable, "-m", "autogaze_mllm.cli", "app", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"https?://\S+", process.stdout.readline())
        try:
            if found is None:
                raise SystemExit("the page did not start")
            yield found[0]
        finally:
            process.terminate()


@contextmanager
def opened(
    address: str, width: int = 1280, dark: bool = False, watch: Callable[[Page], None] = lambda page: None
) -> Iterator[Page]:
    """The page in a browser. watch: called before anything is asked for."""
    scheme: Any = "dark" if dark else "light"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), headless=True, args=QUIET)
        try:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.set_default_timeout(PATIENCE)
            watch(page)
            page.goto(address)
            page.wait_for_selector("#go")
            yield page
        finally:
            browser.close()


def use(page: Page) -> None:
    """What a user does first."""
    page.get_by_text("five small signs").first.click()
    page.wait_for_selector("#video video")
    page.click("#go")
    page.wait_for_selector("#viewer video")
    page.locator("#viewer svg:visible g.frame").nth(FRAME).click()
    page.fill("#question textarea", "What does the purple sign say?")
    page.click("#ask")
    page.wait_for_function(DONE)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # the last of what moves


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--width", type=int, default=1280, help="pixels (default 1280)")
    parser.add_argument("--dark", action="store_true", help="as a browser shows it that prefers dark pages")
    parser.add_argument("--address", help="of a page that runs already (default: one is started)")
    return run_program(parser, draw)


def draw(arguments: argparse.Namespace) -> int:
    if browser_path() is None:
        print(f"app_picture: needs one of {', '.join(BROWSERS)} on the PATH", file=sys.stderr)
        return 2
    # A cache of its own: what was seen before would cost no time.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        running = served() if arguments.address is None else nullcontext(arguments.address)
        with running as address, opened(address, arguments.width, arguments.dark) as page:
            use(page)
            picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
