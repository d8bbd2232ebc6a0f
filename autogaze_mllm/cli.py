"""The command line, `autogaze-mllm VERB ...`: each verb is a file of `commands/` or `commands/training/`.

Exit codes: 0 done, 1 done but some videos could not be read (eval, index), or a fault of this program (with its
traceback), 2 the input is at fault (one line on standard error), 3 a training diverged, 130 interrupted, 141 whoever
reads the output has had enough.

Nothing is imported before `main` runs, and little before a verb does its work: an interruption is one line from the
start, and --help answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

PROGRAM = "autogaze-mllm"
INTERRUPTED, PIPE_CLOSED = 130, 141  # as shells count these signals


def main(argv: Sequence[str] | None = None) -> int:
    return guarded(PROGRAM, lambda: _verb(argv))


def program_parser(description: str | None) -> argparse.ArgumentParser:
    """Of a program of benchmarks/ or scripts/. description: its docstring, shown as it is."""
    import argparse

    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def run_program(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None]) -> int:
    """Such a program on its command line, with the exit codes and the one-line errors of the verbs. run: -> its exit
    code, or None, which is 0."""
    return guarded(os.path.splitext(parser.prog)[0], lambda: run(parser.parse_args()) or 0)


def guarded(program: str, action: Callable[[], int]) -> int:
    """-> the exit code of `action`, or of what went wrong in it, which is said in a line that begins with `program`."""
    try:
        code = _caught(program, action)
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be written is told of here, not in the interpreter's last breath
        return code
    except KeyboardInterrupt:
        _say(program, "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _silence(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:
        if not _is_about_output(error):
            raise
        _silence(sys.stdout)
        _say(program, f"error: the output cannot be written ({error.strerror})")
        return 2


def _verb(argv: Sequence[str] | None) -> int:
    from .commands.arguments.config_file import parse

    for stream in (sys.stdout, sys.stderr):  # a terminal that has not all characters shows the others' escapes
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = parse(_parser(), argv)
    return arguments.run(arguments)


def _caught(program: str, action: Callable[[], int]) -> int:
    from .common.errors import DivergenceError, InputError, let_first_speak

    try:
        return action()
    except (InputError, DivergenceError) as error:
        let_first_speak()
        _say(program, f"error: {error}")
        return 2 if isinstance(error, InputError) else 3
    except Exception as error:
        if _holds_interrupt(error):
            raise KeyboardInterrupt from error
        from .common.machine_faults import of_the_machine

        if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and _is_about_output(error)):
            raise
        line = of_the_machine(error)
        if line is None:
            return _own_fault(program, error)
        _say(program, f"error: {line}")
        return 2


def _holds_interrupt(error: BaseException | None) -> bool:
    """Whether somebody pressed Ctrl-C while a library was being imported, which makes another error of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _own_fault(program: str, error: Exception) -> int:
    import traceback

    traceback.print_exception(error)
    from . import __version__

    _say(
        program,
        f"error: {type(error).__name__} is a fault of autogaze-mllm {__version__}, not of your input: please report it "
        "with the lines above",
    )
    return 1


def _is_about_output(error: OSError) -> bool:
    """Whether standard output, which has no name, could not be written (/dev/full, say)."""
    import errno

    return error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF)


def _silence(stream: object) -> None:
    """What is left in the stream's buffer goes nowhere, so that the interpreter does not fail on it at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError):  # no real file
        return


def _say(program: str, line: str) -> None:
    """In one line, whatever the names of files in it hold."""
    plain = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
    try:
        print(f"{program}: {plain}", file=sys.stderr, flush=True)
    except OSError:  # nobody listens there either
        _silence(sys.stderr)


def _parser() -> argparse.ArgumentParser:
    import argparse

    from . import __version__
    from .commands import app, ask, cache, eval, export_llm, gaze, index, info, serve
    from .commands.arguments.config_file import add_config
    from .commands.training import finetune, label, merge, train_gaze

    parser = argparse.ArgumentParser(prog=PROGRAM, description="Multimodal LLMs that look only where it matters.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in (ask, gaze, index, app, serve, eval, cache, info, finetune, merge, export_llm, label, train_gaze):
        verb.add(verbs)
    add_config(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
