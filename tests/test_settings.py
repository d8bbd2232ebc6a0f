"""A setting is declared once and reaches every place that names settings; nobody has to add it there."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import autogaze_mllm as am
from autogaze_mllm.app.config import AppConfig
from autogaze_mllm.commands.arguments.options import add_settings, chosen_settings, gaze_options, values_of
from autogaze_mllm.common.fields import Names, Number, PerFrame, Span, WholeSpan, setting, settings, settings_of
from autogaze_mllm.evaluation.config import EvalConfig
from autogaze_mllm.evaluation.reports.published import differences_in_words
from autogaze_mllm.evaluation.sweep import NAMES as SWEPT
from autogaze_mllm.evaluation.sweep import parse_sweep, sweep_variants
from autogaze_mllm.finetuning.config import AdapterConfig, FinetuneConfig, RolloutConfig
from autogaze_mllm.serving.config import ServeConfig
from autogaze_mllm.signvid.dataset import SignVidConfig
from autogaze_mllm.signvid.plan import VideoShape
from autogaze_mllm.training.config import ClipConfig, LabelConfig, SearchConfig, TrainingConfig

from .helpers.programs import run_script

ROOT = Path(am.__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import docs_hooks  # noqa: E402  # a script, not part of the package

OTHER: dict[type, Any] = {int: 7, float: 0.125, bool: False}
CHANGED: dict[type, Any] = {int: 7, float: 0.125, str: "other", tuple: (2, 3)}
SPELLED: dict[type, str] = {tuple: "2:3"}
FIELDS = settings_of(am.VideoSettings)
# Which classes of settings a verb takes besides those of videos, and the page of the manual with their tables.
CLASSES = {
    ClipConfig: ("train-gaze", "gaze-training.md"),
    TrainingConfig: ("train-gaze", "gaze-training.md"),
    SearchConfig: ("train-gaze", "gaze-training.md"),
    LabelConfig: ("label", "gaze-training.md"),
    EvalConfig: ("eval hlvid", "benchmarks.md"),
    FinetuneConfig: ("finetune", "finetuning.md"),
    AdapterConfig: ("finetune", "finetuning.md"),
    RolloutConfig: ("finetune", "finetuning.md"),
    AppConfig: ("app", "app.md"),
    VideoShape: ("make_signvid", "signvid.md"),
    SignVidConfig: ("make_signvid", "signvid.md"),
    ServeConfig: ("serve", "serving.md"),
}
# Fields that have no option of their own, each for a reason.
NO_OPTION = {
    (ClipConfig, "side"),  # that of the published model, which it is trained at
    (LabelConfig, "scales"),  # labels are in the published grid
    (LabelConfig, "patch"),
    (TrainingConfig, "search"),  # fields of its own
    (TrainingConfig, "selections"),  # --only-task chooses by --init
    (FinetuneConfig, "lora"),
    (FinetuneConfig, "rollouts"),
    (FinetuneConfig, "parts"),  # presets, and two options for each part
    (FinetuneConfig, "progress"),  # --json
    (VideoShape, "raster"),  # that of the tower's patches
    (SignVidConfig, "shape"),  # fields of its own
}
# Options of another form than a field has, which the verb adds itself.
BY_HAND = {(FinetuneConfig, name): f"--{name.replace('_', '-')}" for name in ("data", "output", "eval_data", "resume")}
BY_HAND |= {(VideoShape, "width"): "--size", (VideoShape, "height"): "--size"}
BY_HAND |= {(SignVidConfig, "split"): "--dev", (SignVidConfig, "seed"): "--seed"}
BY_HAND |= {(ServeConfig, "allow_folder"): "--allow-folder", (ServeConfig, "allow_domain"): "--allow-domain"}
REQUIRED: dict[type, dict[str, Any]] = {FinetuneConfig: {"data": ("a.json",), "output": "out"}}
VIDEO_VERBS = ("ask", "gaze", "app", "eval hlvid", "finetune", "serve")


def names(kind: type) -> list[str]:
    return list(kind.__dataclass_fields__)  # type: ignore[attr-defined]


def script_help(name: str) -> str:
    """What a script's --help prints."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert run_script(name, "--help") == 0
    return shown.getvalue()


def other(one: Any) -> Any:
    return next(choice for choice in one.choices if choice != one.default) if one.choices else OTHER[one.kind]


def text_of(value: Any) -> str:
    return str(value).lower()


def test_every_field_is_declared():
    assert [one.name for one in FIELDS] == names(am.VideoSettings)
    assert all(one.help and one.option and one.group for one in FIELDS)


@pytest.mark.parametrize("verb", VIDEO_VERBS)
def test_every_verb_that_takes_videos_has_every_option(verb):
    text = docs_hooks.help_text(verb)
    for one in FIELDS:
        assert re.search(rf"^  {one.option}\b", text, flags=re.MULTILINE), one.name


@pytest.mark.parametrize("one", [one for one in FIELDS if one.slider], ids=lambda one: one.name)
def test_a_slider_moves_within_the_range_of_its_setting(one):
    least, most, step = one.slider
    for value in (least, most, least + step):
        one.check(value)
    kept = am.VideoSettings().changed(**{one.name: one.kind(most)})
    assert getattr(kept, one.name) == most and least < most and 0 < step <= most - least


def test_no_setting_stands_in_one_place_only():
    """What the command line and a sweep have besides the fields is no setting of videos."""
    parser = argparse.ArgumentParser()
    gaze_options(parser, "")
    options = set(vars(parser.parse_args([]))) - {one.key for one in FIELDS}
    assert options == {"gaze", "revision", "preset", "device", "json"}
    assert sorted(SWEPT) == sorted(["gaze", *names(am.VideoSettings)])


def test_options_become_settings():
    parser = argparse.ArgumentParser()
    gaze_options(parser, "")
    assert chosen_settings(parser.parse_args([])) == am.VideoSettings()
    assert chosen_settings(parser.parse_args(["--preset", "nvila-hd"])) == am.preset("nvila-hd")
    given = [
        word
        for one in FIELDS
        for word in ([f"--no-{one.name}"] if one.kind is bool else [one.option, text_of(other(one))])
    ]
    expected = {one.name: other(one) for one in FIELDS}
    assert chosen_settings(parser.parse_args([*given, "--preset", "fast"])).to_dict() == expected


@pytest.mark.parametrize("one", FIELDS, ids=lambda one: one.name)
def test_every_setting_can_be_swept(one):
    points = parse_sweep(f"{one.name}={text_of(other(one))}")
    variant = sweep_variants(points, am.PixelDiffSelector(), "pixel-diff", am.VideoSettings(), 0)[0]
    assert variant.settings == am.VideoSettings().changed(**{one.name: other(one)})
    if one.kind is bool:
        with pytest.raises(am.InputError, match="is not a list of true and false"):
            parse_sweep(f"{one.name}=maybe")


@pytest.mark.parametrize("one", FIELDS, ids=lambda one: one.name)
def test_reports_say_which_setting_differs_from_the_published_one(one):
    seen = {"gaze": "nvidia/AutoGaze", "selector": {"weights": "..."}, "loss_in_force": 0.6}
    run: dict[str, Any] = {
        "benchmark": "videomme",
        "split": "test",
        "subtitles": False,
        "made_up": False,
        "limit": None,
        "max_new_tokens": 16,
        "model": {"name": "nvidia/NVILA-8B-HD-Video"},
    }
    video = am.preset("nvila-hd").to_dict()
    assert differences_in_words({**run, "seen": {**seen, "video": video}}, 2700) == []
    video[one.name] = other(one)
    if one.name in ("loss", "predicted_loss"):  # which of the two is in force stands in the run
        seen["loss_in_force"] = other(one)
    said = differences_in_words({**run, "seen": {**seen, "video": video}}, 2700)
    assert len(said) == 1 and ("no" if one.kind is bool else str(other(one))) in said[0]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_of_other_settings_has_an_option_and_a_row_in_the_manual(kind):
    verb, page = CLASSES[kind]
    text = script_help(verb) if verb == "make_signvid" else docs_hooks.help_text(verb)
    manual = docs_hooks.on_page_markdown((ROOT / "docs" / page).read_text(encoding="utf-8"))
    declared = {one.name: one for one in settings_of(kind)}
    for name in names(kind):
        if (kind, name) not in NO_OPTION:
            option = declared[name].option or BY_HAND[kind, name]
            assert re.search(rf"^  {option}\b", text, flags=re.MULTILINE), name
        if name in declared:
            assert f"| `{name}`" in manual and (declared[name].manual or declared[name].help), name


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_options_give_the_class_what_they_say(kind):
    """Without options the class is as without arguments, and each option changes its field."""
    parser = argparse.ArgumentParser()
    for group in dict.fromkeys(one.group for one in settings_of(kind)):
        add_settings(parser, kind, group)
    needed = REQUIRED.get(kind, {})
    assert kind(**values_of(parser.parse_args([]), kind), **needed) == kind(**needed)
    for one in settings_of(kind):
        if one.option:
            value = one.choices[-1] if one.choices else CHANGED.get(one.kind)
            value = value if one.default != value else one.choices[0]
            words = [one.option] if one.kind is bool else [one.option, SPELLED.get(one.kind, str(value))]
            found = values_of(parser.parse_args(words), kind)
            expected = not one.default if one.kind is bool else value
            assert found == {**values_of(parser.parse_args([]), kind), one.name: expected}


def test_the_manual_has_a_table_of_all_settings():
    page = (ROOT / "docs" / "large-videos.md").read_text(encoding="utf-8")
    rows = docs_hooks.on_page_markdown(page)
    for one in FIELDS:
        assert f"| `{one.name}`, `--" in rows and one.option.removeprefix("--") in rows
    assert "| 0.75 |" in rows and "| the selector's own |" in rows and "`--[no-]enlarge`" in rows


# -- what declarations do ----------------------------------------------------------------------------------------------


@settings("paint: ")
class Paint:
    coats: int = setting("layers", default=2, at_least=1)
    tint: Number = setting("how dark", default=0.5, above=0, below=1, usual=False)
    dry: bool = setting("wait in between", default=False)
    wet: bool = setting("begin on wet ground", default=True, off="--no-water")
    width: Span = setting("of a stroke", default=(1, 2.5))
    press: PerFrame = setting("of the hand", default=1, at_least=0, refusal="the hand presses with at least 0")

    def __post_init__(self) -> None:
        if self.coats > 5:
            raise am.InputError("more coats than 5 crack")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coats": 0}, "paint: coats must be at least 1, got 0"),
        ({"coats": True}, "paint: coats must be a whole number, got True"),
        ({"coats": 6}, "paint: more coats than 5 crack"),
        ({"tint": 1}, "paint: tint must lie in (0, 1), got 1"),
        ({"tint": float("nan")}, "paint: tint must lie in (0, 1), got nan"),
        ({"tint": "dark"}, "paint: tint must be a number, got 'dark'"),
        ({"dry": 1}, "paint: dry must be true or false, got 1"),
        ({"width": (1, 2, 3)}, "paint: width must be two numbers, got (1, 2, 3)"),
        ({"press": (1, -1)}, "paint: the hand presses with at least 0, got -1"),
        ({"brush": 3}, "paint: unknown setting 'brush'; known: coats, dry, press, tint, wet, width"),
    ],
    ids=str,
)
def test_what_is_refused_is_refused_in_one_line(given, message):
    with pytest.raises(am.InputError, match=f"^{re.escape(message)}$"):
        Paint(**given)


def test_values_stay_what_they_were_given_as():
    paint = Paint(tint=0.25, width=[1, 2], press=[0, 1])  # type: ignore[arg-type]
    assert (paint.width, paint.press) == ((1, 2), (0, 1)) and isinstance(paint.press[0], int)  # type: ignore[index]


def test_help_says_defaults_as_declared():
    parser = argparse.ArgumentParser()
    add_settings(parser, Paint)
    text = " ".join(parser.format_help().split())
    for words in (
        "layers (default 2)",
        "--tint TINT how dark --dry",
        "--dry wait in between",
        "--no-water begin on wet",
    ):
        assert words in text
    given = parser.parse_args(["--no-water", "--coats", "3"])
    assert given.no_water and given.coats == 3 and given.dry is False


def test_one_name_in_place_of_a_list_of_files_is_told_so():
    for given in ({"data": "a.json"}, {"data": ("a.json",), "eval_data": "b.json"}):
        with pytest.raises(am.InputError, match=r"data must be a list of file names, got '[ab]\.json'"):
            FinetuneConfig(output="out", **given)


@settings()
class Shelf:
    holds: Names = setting("what stands there", default=())
    boards: WholeSpan = setting("from the first to the last", default=(1, 2))


def test_errors_say_of_what_a_list_is():
    for given in ("a", 5, ("a", 5), {"a": 1}):
        with pytest.raises(am.InputError, match=r"^holds must be a list of texts, got "):
            Shelf(holds=given)  # type: ignore[arg-type]
    for other in ((1, 2.5), (1,), "1:2"):
        with pytest.raises(am.InputError, match=r"^boards must be two whole numbers, got "):
            Shelf(boards=other)  # type: ignore[arg-type]
    with pytest.raises(am.InputError, match=r"^allow_domain must be a list of texts, got 'example.org'"):
        ServeConfig(allow_domain="example.org")  # type: ignore[arg-type]


def test_lists_and_paths_are_names():
    given: Any = ["a", Path("b")]
    assert Shelf(holds=given).holds == ("a", "b") and Shelf(holds=None).holds == ()  # type: ignore[arg-type]
    assert FinetuneConfig(data=given, output="out").data == ("a", "b")
