"""`autogaze-mllm serve`: an OpenAI-compatible endpoint for a model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.extras import require_extra
from ..common.fields import settings_of
from ..common.storage.json_text import to_json
from ..serving.config import GROUPS, ServeConfig
from .arguments.options import ONLY_SIGNS, add_settings, cache_options, gaze_options, load_model, quiet, values_of

if TYPE_CHECKING:
    from ..mllm.model import GazedModel
    from ..serving.engines.base import Engine

LISTS = {"allow_folder": "FOLDER", "allow_domain": "HOST"}  # options that may be repeated


def add(verbs: argparse._SubParsersAction) -> None:
    serve = verbs.add_parser("serve", help="answer questions about videos over HTTP, as OpenAI's API does")
    serve.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="hub id or folder of the base model, or a saved one (default: the bundled one)",
    )
    for group in GROUPS:
        options = serve.add_argument_group(group)
        add_settings(options, ServeConfig, group)
        for one in settings_of(ServeConfig):
            if one.group == group and one.name in LISTS:
                flag = f"--{one.name.replace('_', '-')}"
                options.add_argument(
                    flag, action="append", metavar=LISTS[one.name], help=f"{one.help}; may be repeated"
                )
    cache_options(serve, "keep nothing that was seen of videos on disk")
    gaze_options(serve, "default: nvidia/AutoGaze with MODEL, otherwise pixel-diff")
    serve.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    config = ServeConfig(**values_of(arguments, ServeConfig), **{name: getattr(arguments, name) for name in LISTS})
    require_extra("serve", "autogaze-mllm serve")
    from ..serving.app import make_app
    from ..serving.gateway import Gateway
    from ..serving.intake.media import MediaPolicy
    from ..serving.server import run_server

    logging.basicConfig(format="autogaze-mllm: %(message)s", level=logging.WARNING)
    MediaPolicy(config)  # folders that are not there are told of before a large model is loaded
    model = load_model(arguments)
    engine = _engine(model, config)
    name = config.name or _model_name(arguments.model)
    gateway = Gateway(model, engine, config, name)

    def ready(url: str) -> None:
        if arguments.json:
            print(to_json({"url": f"{url}/v1", "model": name, "engine": engine.name}), flush=True)
            return
        print(f"{name} answers at {url}/v1 (engine: {engine.name}); Ctrl-C ends it", flush=True)
        if not arguments.model:
            print(f"note: {ONLY_SIGNS}", flush=True)

    if config.api_key is None and config.host not in ("127.0.0.1", "::1", "localhost"):
        logging.getLogger(__name__).warning("anybody who reaches %s may ask: give an --api-key", config.host)
    run_server(make_app(gateway), gateway, ready)
    return 0


def _engine(model: GazedModel, config: ServeConfig) -> Engine:
    from ..serving.engines.local import LocalEngine
    from ..serving.engines.vllm import VllmEngine
    from ..serving.engines.vllm_images import VllmImagesEngine

    if config.engine is None:
        return LocalEngine(model)
    return (VllmEngine if config.engine_input == "prompt" else VllmImagesEngine)(model, config)


def _model_name(source: str | None) -> str:
    """What clients call it: no path of this machine."""
    if source is None:
        return "bundled"
    return Path(source).resolve().name if Path(source).exists() else source
