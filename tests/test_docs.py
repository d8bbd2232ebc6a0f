"""What README and manual show works as it stands there: examples run, commands exist, tables are those of the results.

Blocks of a page are run in order, in a folder where `clip.mp4` and the models that are named lie (small random ones). A
block whose first line begins with `# Needs` is not run: its python is compiled, and its commands are parsed by the
parsers that they go to, so that a script, verb or option that does not exist fails here.
"""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.common.fields import settings_of
from autogaze_mllm.mllm import families
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.signvid.plan import VideoShape
from autogaze_mllm.vision import adapters

from .helpers.families.models import write_folder
from .helpers.files.published_folders import write_siglip
from .helpers.files.videomae_files import write_vit_mae
from .helpers.tiny_models import tiny_gaze

PACKAGE = Path(am.__file__).resolve().parent
ROOT = PACKAGE.parent
sys.path.insert(0, str(ROOT / "scripts"))
import docs_hooks  # noqa: E402  # a script, not part of the package

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
LANGUAGES = {"python", "bash", "json", "yaml", "text", ""}
NEEDS = "# Needs "


@dataclass(frozen=True)
class Block:
    """place: page and line."""

    place: str
    language: str
    text: str

    @property
    def runs(self) -> bool:
        return not self.text.startswith(NEEDS)

    def commands(self) -> list[list[str]]:
        """The words of each command, lines that are continued put together and comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks(page: str) -> list[Block]:
    text = TEXTS[page]
    found = re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    return [Block(f"{page}:{text[: one.start()].count(chr(10)) + 1}", one[1], one[2]) for one in found]


PAGES_WITH_CODE = [page for page in TEXTS if any(b.language in ("python", "bash") for b in blocks(page))]


@pytest.fixture(scope="module")
def models(clip, tmp_path_factory):
    """A folder in which every file and model that the pages name exists, small and random."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(clip, folder / "clip.mp4")
    base, processor = tiny_model("llava_onevision", image_size=64)
    named = folder / "llava-hf" / "llava-onevision-qwen2-7b-ov-hf"
    base.save_pretrained(named)
    processor.save_pretrained(named)
    write_folder("qwen3_vl", folder / "Qwen" / "Qwen3-VL-8B-Instruct")
    tiny_gaze().save_pretrained(folder / "nvidia" / "AutoGaze")
    write_siglip(folder / "google" / "siglip2-base-patch16-224", 64, 16)
    samples = [b.text for page in TEXTS for b in blocks(page) if b.language == "json"]
    write_vit_mae(folder / "facebook" / "vit-mae-base", image_size=224)
    (folder / "videos.jsonl").write_text("".join(samples), encoding="utf-8")
    return folder


@pytest.fixture
def workplace(models, tmp_path, monkeypatch):
    """A folder of the page's own with all of that in it."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    # What a page registers is gone with it.
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    monkeypatch.setattr(adapters, "ADAPTERS", list(adapters.ADAPTERS))
    return tmp_path


def run_script(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of the repository, in this process."""
    path = ROOT / words[0]
    assert path.is_file(), words[0]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *words[1:]])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            assert not end.code, words


def run_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "autogaze-mllm":
        assert main(words[1:]) == 0, words
    elif words[0] == "python":
        run_script(words[1:], monkeypatch)
    else:
        check_command(words, monkeypatch)


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_the_examples_of_a_page_run_in_order(page, workplace, monkeypatch, capsys):
    for block in blocks(page):
        if not block.runs:
            continue
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), {"__name__": "example"})
        elif block.language == "bash":
            for words in block.commands():
                capsys.readouterr()
                run_command(words, monkeypatch)
                assert words[0] == "make" or capsys.readouterr().out, f"{block.place}: {words} prints nothing"


def test_every_block_says_what_it_is():
    wrong = [block.place for page in TEXTS for block in blocks(page) if block.language not in LANGUAGES]
    assert not wrong
    assert sum(block.runs for page in TEXTS for block in blocks(page) if block.language in ("python", "bash")) >= 30


# -- what is not run ---------------------------------------------------------------------------------------------


class Parsed(BaseException):
    """The command line was accepted."""


def parses(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """run() comes to the end of its argument parser, where it is stopped."""
    real = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        real(parser, args, namespace)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            run()


def check_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command exists and takes these options."""
    words = list(words)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of a shell script
        words.pop(0)
    name, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if name == "autogaze-mllm":
        parses(lambda: main(rest), monkeypatch)
    elif name == "python" and rest[0] == "-m":
        check_module(rest[1], rest[2:], monkeypatch)
    elif name == "python":
        parses(lambda: run_script(rest, monkeypatch), monkeypatch)
    elif name in ("torchrun", "accelerate"):
        check_launch(name, rest, monkeypatch)
    elif name.endswith(".sh"):
        check_shell_script(name, rest, monkeypatch)
    elif name == "make":
        assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text(), words
    elif name == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = re.findall(r"[\w-]+", rest[-1].partition("[")[2])
        assert rest[0] == "install" and set(extras) <= project["optional-dependencies"].keys(), words
    elif name == "lmms-eval":
        check_lmms(rest)
    else:
        pytest.fail(f"{name}: nothing here knows how to check it")


def check_module(name: str, rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "autogaze_mllm.cli":
        parses(lambda: main(rest), monkeypatch)
    else:
        assert name in ("pytest", "vllm.entrypoints.openai.api_server")  # other programs, with options of their own


def check_launch(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "torchrun":
        from torch.distributed.run import get_args_parser

        told = get_args_parser().parse_args(words)
    else:
        from accelerate.commands.launch import launch_command_parser

        assert words.pop(0) == "launch"
        told = launch_command_parser().parse_args(words)
        assert (ROOT / told.config_file).is_file()
    if told.module:
        check_module(told.training_script, told.training_script_args, monkeypatch)
    else:
        parses(lambda: run_script([told.training_script, *told.training_script_args], monkeypatch), monkeypatch)


def check_shell_script(name: str, rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    if "finetune.sh" in name:  # its options are those of the verb
        given = ["--data", "DATA", "--output", "OUTPUT", "--model", "MODEL"]
        parses(lambda: main(["finetune", *given, *rest]), monkeypatch)
    elif "train_gaze_" in name:
        parses(lambda: main(["train-gaze", "VIDEOS", "--out", "OUT", *rest]), monkeypatch)
    else:
        if name == "scripts/gpu_check.sh":  # hands its options on
            text = (ROOT / "benchmarks" / "gpu.py").read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in rest if word.startswith("--")), (name, rest)


def check_lmms(rest: list[str]) -> None:
    told = dict(zip(rest[::2], rest[1::2], strict=False))
    settings = dict(part.split("=") for part in told["--model_args"].split(","))
    own = {"pretrained", "gaze", "preset", "device", "dtype", "cache"}
    am.preset(settings["preset"]).changed(**{key: value for key, value in settings.items() if key not in own})
    from autogaze_mllm.evaluation import lmms

    assert (lmms.TASKS / told["--tasks"]).is_dir()


@pytest.mark.parametrize("page", [page for page in TEXTS if any(not block.runs for block in blocks(page))])
def test_what_needs_more_than_a_test_has_names_what_exists(page, monkeypatch, workplace):
    for block in blocks(page):
        if block.runs:
            continue
        if block.language == "python":
            compile(block.text, block.place, "exec")
        else:
            for words in block.commands():
                check_command(words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "autogaze-mllm ask clip.mp4 What? --modle x",
        "autogaze-mllm look clip.mp4",
        "python benchmarks/latency.py --sizes base",
        "python benchmarks/hlvid.py --out x --preset-name y",
        "python scripts/make_nothing.py x",
        "torchrun --nproc-per-node 2 -m autogaze_mllm.cli finetune --data x --zero 3",
        "MODEL=m DATA=d OUTPUT=o scripts/finetune.sh --train lorra",
        "scripts/train_bundled_gaze.sh --fast",
        "make tea",
        "pip install -e .[everything]",
        "frobnicate",
    ],
)
def test_commands_that_do_not_exist_are_found(line, monkeypatch, capsys):
    with pytest.raises((AssertionError, SystemExit, pytest.fail.Exception)):
        check_command(shlex.split(line), monkeypatch)


def test_options_in_the_text_exist():
    """Of prose and tables: every `--option` is one of a verb, or stands in a script."""
    known = {setting.option for setting in settings_of(VideoShape)}  # of make_signvid.py, which names none of these
    for verb in verbs():
        known |= set(re.findall(r"--[a-z][\w-]*", docs_hooks.help_text(verb)))
    for folder in ("scripts", "benchmarks", "examples"):
        for path in (ROOT / folder).glob("*.*"):
            if path.suffix in (".py", ".sh"):
                known |= set(re.findall(r"""["'](--[a-z][\w-]*)["']""", path.read_text(encoding="utf-8")))
    known |= {"--include_path", "--enable-prompt-embeds"}  # of lmms-eval, and of vLLM
    known |= {"--config-name", "--video", "--output-dir", "--attn-mode"}  # of the published code and its fork
    known |= {"--logdir", "--project"}  # of tensorboard and trackio
    for page, text in TEXTS.items():
        prose = re.sub(r"^```.*\n(?:.*\n)*?```$", "", text, flags=re.MULTILINE)
        named = {option for code in re.findall(r"`([^`]+)`", prose) for option in re.findall(r"--[a-z][\w-]*", code)}
        assert named <= known, (page, named - known)


# -- the pages themselves ----------------------------------------------------------------------------------------


def verbs() -> list[str]:
    found = re.findall(r"^    ([a-z][\w-]*)", docs_hooks.help_text(""), flags=re.MULTILINE)
    assert {"ask", "gaze", "eval"} <= set(found)
    return [*found, "eval hlvid", "eval compare", "eval report"]


def test_every_verb_has_its_place_in_the_command_line_reference():
    page = TEXTS["docs/commands.md"]
    places = re.findall(r"<!-- help: (.+) -->", page)
    assert set(places) == set(verbs())
    filled = docs_hooks.on_page_markdown(page)
    assert "<!-- help" not in filled
    assert all(f"usage: autogaze-mllm {verb}" in filled for verb in places)


def test_every_public_name_has_its_place_in_the_api_reference():
    assert set(re.findall(r"^::: autogaze_mllm\.(\w+)$", TEXTS["docs/api.md"], flags=re.MULTILINE)) == set(am.__all__)


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_every_page_is_in_the_navigation():
    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(nav) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_links_to_files_lead_somewhere():
    for page, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not link.startswith("https://"):
                assert (ROOT / page).parent.joinpath(link).is_file(), (page, link)


def test_modules_that_are_named_exist():
    for page in ("docs/architecture.md", "docs/integrating.md"):
        for piece in re.split(r"\n\n|\n(?=\|)", TEXTS[page]):  # paragraphs and rows of tables
            found = re.search(r"`(autogaze_mllm/[\w/]*?)(?:\w+\.py)?`", piece)
            for name in re.findall(r"`([\w/]+\.py)`", piece) if found else ():
                path = ROOT / name if name.startswith("autogaze_mllm/") else ROOT / found[1] / name
                assert path.is_file(), (page, piece, name)
    rooms = re.findall(r"^\| `(\w+)/`", TEXTS["CONTRIBUTING.md"], flags=re.MULTILINE)
    assert len(rooms) > 8 and all((PACKAGE / room).is_dir() for room in rooms)


def test_names_of_the_package_in_python_blocks_exist():
    for page in TEXTS:
        for block in blocks(page):
            if block.language == "python":
                for node in ast.walk(ast.parse(block.text)):
                    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "am":
                        assert hasattr(am, node.attr), (block.place, node.attr)
