"""Ctrl-C: one line and exit code 130, also while the libraries are being imported."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def test_interrupting_the_start_up_takes_one_line(clip: Path) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("there is no telling what a process is at")
    command = [sys.executable, "-m", "autogaze_mllm", "gaze", str(clip), "--frames", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )
    # Once torch is being loaded, seconds of imports are still to come.
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "autogaze-mllm: interrupted\n")
