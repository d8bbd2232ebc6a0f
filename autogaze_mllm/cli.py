"""The command line, `autogaze-mllm VERB ...`: each verb is a file of `commands/`.

Exit codes: 0 done, 1 done but some videos could not be read (eval), 2 the input is at fault (one line on standard
error), 3 a training diverged, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .commands import ask, cache, eval, finetune, gaze, info, label, merge, train_gaze
from .common.errors import DivergenceError, InputError

VERBS = (ask, gaze, eval, cache, info, finetune, merge, label, train_gaze)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (InputError, DivergenceError) as error:
        print(f"autogaze-mllm: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    except KeyboardInterrupt:
        print("autogaze-mllm: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autogaze-mllm", description="Multimodal LLMs that look only where it matters."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        verb.add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
