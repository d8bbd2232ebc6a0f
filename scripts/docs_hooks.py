"""Hooks of mkdocs, see mkdocs.yml: what the built manual has and its Markdown only names.

`<!-- help: VERB -->` becomes what `autogaze-mllm VERB --help` prints, `<!-- settings: ROOM.MODULE:CLASS -->` a table
of the fields that a class declares, `<!-- engines -->` one of what each family can send to an engine. Links to
`../benchmarks/results/` lead to copies of these files in the site, so that plots are shown and every figure can be
looked up.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
WIDTH = 100  # columns of a help text


def help_text(command: str) -> str:
    """What `autogaze-mllm COMMAND --help` prints."""
    from autogaze_mllm.cli import main

    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), str(WIDTH)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return printed.getvalue()


def settings_table(target: str) -> str:
    """The fields of a class ("gaze.settings:VideoSettings"): option, default and meaning."""
    from autogaze_mllm.common.fields import settings_of

    module, _, name = target.partition(":")
    rows = ["| field, option | default | meaning |", "|---|---|---|"]
    for one in settings_of(getattr(importlib.import_module(f"autogaze_mllm.{module}"), name)):
        option = one.option.replace("--", "--[no-]", 1) if one.paired else one.option
        names = f"`{one.name}`, `{option}`" if option else f"`{one.name}`"
        rows.append(f"| {names} | {one.shown_default} | {one.manual or one.help} |")
    return "\n".join(rows)


def engines_table() -> str:
    """What each family can send to an engine, as the families themselves tell it."""
    from autogaze_mllm.serving.engines.ways import rows

    lines = [f"| {title} | {prompt} | {images} |" for title, prompt, images in rows()]
    return "\n".join(["| family | prompt embeddings | image embeddings |", "|---|---|---|", *lines])


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File  # the tests use `help_text` without mkdocs

    for path in sorted(path for path in RESULTS.rglob("*") if path.is_file()):
        name = f"results/{path.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = markdown.replace("](../benchmarks/results/", "](results/")
    markdown = re.sub(r"<!-- settings: ([\w.:]+) -->", lambda found: settings_table(found[1]), markdown)
    markdown = re.sub(r"<!-- engines -->", lambda _: engines_table(), markdown)
    return re.sub(r"<!-- help: ([\w -]+?) -->", lambda found: f"```text\n{help_text(found[1])}```", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A number and its sign, and the ends of an interval, stay on one line."""
    return re.sub(r"(\d) to (?=\d)", r"\1&nbsp;to&nbsp;", re.sub(r"(\d) %", r"\1&nbsp;%", html))
