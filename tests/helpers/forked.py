"""The command line in a child of the test's process, where everything is imported already and limits can be set."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401  # here once, or each child that plots would load it

from autogaze_mllm.cli import main


def forked(action: Callable[[], int], *, file_bytes: int | None = None) -> tuple[int, str, str]:
    """-> what `action` returned in the child, and what it wrote to the two streams. file_bytes: no file can become
    larger, as on a full disk."""
    pipes = [os.pipe(), os.pipe()]
    # What other tests left (greenlets of a browser's driver, say) cannot be taken down in a child: it collects only
    # what is its own.
    gc.collect()
    gc.freeze()
    if not (pid := os.fork()):
        code = 70
        try:
            for number, (_, end) in enumerate(pipes, 1):
                os.dup2(end, number)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            if file_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            code = action()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    gc.unfreeze()
    for _, end in pipes:
        os.close(end)

    def read(end: int) -> str:
        with open(end, encoding="utf-8", errors="replace") as stream:
            return stream.read()

    with ThreadPoolExecutor(2) as pool:
        out, err = pool.map(read, [pipe[0] for pipe in pipes])
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out, err


def command(arguments: Sequence[str | Path], *, file_bytes: int | None = None) -> tuple[int, str, str]:
    """`autogaze-mllm ARGUMENTS`."""
    return forked(lambda: main([str(part) for part in arguments]), file_bytes=file_bytes)


def start(arguments: Sequence[str]) -> int:
    """`autogaze-mllm ARGUMENTS` in a child that says nothing -> its id at once: to be killed, say."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    with contextlib.suppress(BaseException):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        code = main(arguments)
    os._exit(code)
