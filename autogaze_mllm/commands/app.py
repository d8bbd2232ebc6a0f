"""`autogaze-mllm app`: a page to look at videos and to ask about them."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..app.config import AppConfig
from ..app.ports import free_port
from ..common.extras import require_extra
from ..common.fields import settings_of
from ..gaze.settings import VideoSettings
from .arguments.options import BUNDLED_READS, add_settings, cache_options, gaze_options, load_model, quiet, values_of

if TYPE_CHECKING:
    from ..mllm.model import GazedModel

NOTE = f"{BUNDLED_READS}. Start the page with a model of your own: autogaze-mllm app MODEL"
EXTRA = "app"


def add(verbs: argparse._SubParsersAction) -> None:
    app = verbs.add_parser("app", help="a page to look at videos and to ask about them")
    app.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="hub id or folder of the base model (default: the bundled one, which reads SignVid's signs)",
    )
    cache_options(app, "do not keep what was seen of a video on the disk")
    add_settings(app.add_argument_group("the page"), AppConfig)
    gaze_options(
        app.add_argument_group("where the sliders stand at first"),
        "default: nvidia/AutoGaze with MODEL, otherwise pixel-diff",
        json=False,
    )
    app.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    require_extra(EXTRA, "autogaze-mllm app")
    quiet()
    config = AppConfig(**values_of(arguments, AppConfig))
    port = free_port(config.host, config.port)
    model = load_model(arguments)
    with tempfile.TemporaryDirectory(prefix="autogaze-mllm-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")  # gone with the page, as all that it made
        return _serve(arguments, config, port, model, Path(folder))


def options_of(arguments: argparse.Namespace) -> list[str]:
    """What was said of model and gaze, as `ask` takes it."""
    named = {"--model": arguments.model, "--gaze": arguments.gaze, "--preset": arguments.preset}
    words = [word for option, value in named.items() if value is not None for word in (option, str(value))]
    words += [word for one in arguments.revision or () for word in ("--revision", one)]
    for one in settings_of(VideoSettings):
        value = getattr(arguments, one.key)
        if value is True or value is False:
            words.append(one.option if value else one.option.replace("--", "--no-", 1))
        elif value is not None:
            words += [one.option, value if isinstance(value, str) else f"{value:g}"]
    return words


def _serve(arguments: argparse.Namespace, config: AppConfig, port: int, model: GazedModel, folder: Path) -> int:
    from ..app.examples import write_examples
    from ..app.looker import Looker
    from ..app.page import Page, launch

    made = folder / "made"
    made.mkdir()
    note = NOTE[0].upper() + NOTE[1:] if arguments.model is None else ""
    looker = Looker(model, made, config, arguments.gaze, options_of(arguments))
    page = Page(looker, write_examples(made), note, "AutoGaze")
    ended = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: ended.set())
    blocks, address = launch(page, config, port, made)
    print(f"The page is at {address} (Ctrl-C ends it)", flush=True)
    ended.wait()
    blocks.close(verbose=False)
    return 0
