"""The command line, `autogaze-mllm VERB ...`: each verb is a file of `commands/`.

Exit codes: 0 done, 1 done but some videos could not be read (eval), 2 the input is at fault (one line on standard
error), 3 a training diverged, 130 interrupted.

Nothing is imported before `main` runs, and little before a verb does its work: an interruption is one line from the
start, and --help answers at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("autogaze-mllm: interrupted", file=sys.stderr)
        return 130


def _run(argv: Sequence[str] | None) -> int:
    from .commands.config_file import parse
    from .common.errors import DivergenceError, InputError

    try:
        arguments = parse(_parser(), argv)
        return arguments.run(arguments)
    except (InputError, DivergenceError) as error:
        print(f"autogaze-mllm: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3


def _parser() -> argparse.ArgumentParser:
    import argparse

    from . import __version__
    from .commands import ask, cache, eval, finetune, gaze, info, label, merge, train_gaze
    from .commands.config_file import add_config

    parser = argparse.ArgumentParser(
        prog="autogaze-mllm", description="Multimodal LLMs that look only where it matters."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in (ask, gaze, eval, cache, info, finetune, merge, label, train_gaze):
        verb.add(verbs)
    add_config(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
