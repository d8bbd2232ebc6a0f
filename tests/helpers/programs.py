"""Programs of the repository in the test's own process, where everything is imported already."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


def run_script(name: str, *arguments: str | Path, room: str = "scripts") -> int:
    """`python ROOM/NAME.py ARGUMENTS` -> its exit code. Imported by its name, so that processes which it starts find
    its functions."""
    main = importlib.import_module(f"{room}.{name}").main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        try:
            return main() or 0
        except SystemExit as end:
            return int(end.code or 0)
