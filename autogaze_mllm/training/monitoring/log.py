"""`train.log` in a run's folder: what was started with which versions, numbers, checkpoints, warnings, how it ended."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import accelerate
import torch

from ... import __version__
from ...common.storage.files import writing

LOG = "train.log"
EVERY = 10  # steps between lines of numbers

of_run = logging.getLogger("autogaze_mllm.run")
"""What is for the log alone, whatever the caller has set up for the screen."""
of_run.propagate = False
of_run.setLevel(logging.INFO)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told of where the run itself meets it, in one line, and not in a traceback for each line."""


@contextmanager
def run_log(folder: Path | None) -> Iterator[None]:
    """While it is entered, what `of_run` is given and the package's warnings are added to the folder's log. None:
    nowhere, for processes besides the main one."""
    if folder is None:
        yield
        return
    package = logging.getLogger("autogaze_mllm")
    with writing(folder / LOG):
        handler = _LogFile(folder / LOG, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # Where nobody handles them, warnings go to the screen by Python's last resort, which a handler would put an end to.
    screen = [] if package.hasHandlers() or logging.lastResort is None else [logging.lastResort]
    for one in (handler, *screen):
        package.addHandler(one)
    of_run.addHandler(handler)
    versions = f"autogaze-mllm {__version__}, torch {torch.__version__}, accelerate {accelerate.__version__}"
    try:
        of_run.info("%s: %s", versions, " ".join(sys.argv))
        yield
        of_run.info("done")
    except BaseException as error:
        of_run.error("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        for one in (handler, *screen):
            package.removeHandler(one)
        of_run.removeHandler(handler)
        handler.close()


def in_words(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
