"""The package as a whole: its face, what it imports and when, and that a wheel of it runs."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import autogaze_mllm as am

from .helpers.paths import ROOT

HEAVY = {"torch", "transformers", "numpy", "av", "peft", "accelerate"}
VERBS = ["ask", "gaze", "eval", "cache", "info", "finetune", "index", "merge", "label", "train-gaze"]


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]


def test_every_public_name_is_there_and_of_the_type_that_is_promised() -> None:
    """What type checkers read, what `dir` shows and what is imported at first use are one list."""
    tree = ast.parse(Path(am.__file__).read_text())
    promised = {
        (f".{node.module}", alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert promised == {(module, name) for name, module in am._HOME.items()}
    assert sorted(am._HOME) == sorted(am.__all__)
    assert set(am.__all__) <= set(dir(am))
    assert all(getattr(am, name).__name__ == name for name in am.__all__)
    with pytest.raises(AttributeError, match="no attribute 'gaze_vidoe'"):
        am.gaze_vidoe  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, autogaze_mllm; dir(autogaze_mllm); print(*{name.split('.')[0] for name in sys.modules})"
    done = run(sys.executable, "-c", code)
    assert "autogaze_mllm" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("verb", ["", *VERBS, "eval hlvid", "eval compare", "eval report"])
def test_help_answers_without_torch(verb: str) -> None:
    done = run(sys.executable, "-X", "importtime", "-m", "autogaze_mllm", *verb.split(), "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: autogaze-mllm {verb}".rstrip())
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported and not HEAVY & imported
    if not verb:
        assert all(f"\n    {name}" in done.stdout for name in VERBS)


def test_one_version() -> None:
    done = run(sys.executable, "-m", "autogaze_mllm", "--version")
    assert done.stdout == f"autogaze-mllm {am.__version__}\n"


def test_all_that_is_needed_is_pinned_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for needed in map(Requirement, project["dependencies"]):
        assert needed.specifier.contains(pins[canonicalize_name(needed.name)]), needed


def test_nothing_is_imported_that_linux_alone_has() -> None:
    """Every module of the package, with the modules hidden from it that Windows lacks; extras may be missing."""
    code = """
import builtins, importlib, pkgutil, autogaze_mllm
real, missing = builtins.__import__, {"fcntl", "resource", "termios", "pwd", "grp"}

def without(name, globals=None, *rest, **named):
    if name.partition(".")[0] in missing and (globals or {}).get("__name__", "").startswith("autogaze_mllm"):
        raise ModuleNotFoundError(name)
    return real(name, globals, *rest, **named)

builtins.__import__ = without
for module in pkgutil.walk_packages(autogaze_mllm.__path__, "autogaze_mllm."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert error.name in ("lmms_eval", "triton"), (module.name, error)
print("all")
"""
    done = run(sys.executable, "-c", code)
    assert done.stdout == "all\n", done.stderr


def test_what_docstrings_cite_of_the_specification_is_there() -> None:
    headings = set(re.findall(r"^## (.+)$", (ROOT / "docs" / "specification.md").read_text(encoding="utf-8"), re.M))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "autogaze_mllm").rglob("*.py")]
    cited = [name for text in sources for name in re.findall(r'docs/specification\.md,\s+"([^"]+)"', text)]
    assert len(cited) >= 10 and set(cited) <= headings


@pytest.mark.slow
def test_a_wheel_runs_away_from_the_checkout(clip: Path, tmp_path: Path) -> None:
    tree, wheels, site = tmp_path / "tree", tmp_path / "wheels", tmp_path / "site"
    shutil.copytree(ROOT / "autogaze_mllm", tree / "autogaze_mllm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, tree)
    assert built.returncode == 0, built.stderr
    installed = run(*pip, "install", "--no-deps", "--no-index", "--target", site, *wheels.glob("*.whl"))
    assert installed.returncode == 0, installed.stderr
    assert (site / "autogaze_mllm" / "py.typed").exists() and (site / "autogaze_mllm/app/static/page.js").exists()

    def command(*arguments: str | Path) -> str:
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        done = run(sys.executable, *arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert command("-c", "import autogaze_mllm; print(autogaze_mllm.__file__)").startswith(str(site))
    assert '"autogaze_mllm": ' in command("-m", "autogaze_mllm", "info", "--json")
    script = next((site / "bin").glob("autogaze-mllm*"))
    assert '"patches"' in command(script, "gaze", clip, "--frames", "2", "--json")
    assert '"reply"' in command(script, "ask", clip, "Is there a sign?", "--frames", "2", "--json", "--no-cache")
