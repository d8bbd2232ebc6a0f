"""How a run differs, in words, from the one that the published number stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.fields import settings_of
from ...common.storage.json_text import Fields
from ...gaze.autogaze.config import PUBLISHED_TASK
from ...gaze.settings import VideoSettings, preset
from ..benchmarks import BENCHMARKS, Benchmark

MODEL = "nvidia/NVILA-8B-HD-Video"
GAZE = "nvidia/AutoGaze"
PRESET = "nvila-hd"
REMARKS = {"frames": " (the paper also takes up to 1024)"}


def benchmark_of(settings: dict[str, Any]) -> Benchmark:
    """The benchmark that a run was made on; its data need not be there."""
    return BENCHMARKS[settings["benchmark"]](".", settings["split"], settings["subtitles"])  # type: ignore[arg-type]


def check_settings(settings: dict[str, Any], where: Path) -> None:
    """Raises InputError, naming the file, where a run's settings lack something that reports tell about."""
    stored = Fields(settings, f"{where}: settings")
    name = stored.get("benchmark", str)
    if name not in BENCHMARKS:
        raise InputError(f"{where}: {name!r} is not a benchmark; known: {', '.join(BENCHMARKS)}")
    for key, kind in (("split", str), ("subtitles", bool), ("made_up", bool), ("limit", int | None), ("data", str)):
        stored.get(key, kind)
    stored.get("max_new_tokens", int)
    scripted = stored.object("model").get("name", str).startswith("scripted:")
    seen = stored.object("seen")
    seen.get("gaze", str)
    seen.get("video", dict)
    if not scripted:
        seen.get("loss_in_force", float | None)
        seen.object("selector").object("config")


def differences_in_words(settings: dict[str, Any], n: int) -> list[str]:
    """settings: of a run. n: its questions. One sentence for each difference; none when there is none."""
    benchmark = benchmark_of(settings)
    model, seen = settings["model"], settings["seen"]
    said = []
    if settings["made_up"]:
        said.append("The data are made up, so the accuracy means nothing.")
    if model["name"].startswith("scripted:"):
        return [*said, "No model answered: a script looked up the answers, to check the harness."]
    if model["name"] != MODEL:
        said.append(f"The model is {model['name']}; the published one is {MODEL}.")
    if n != benchmark.size:
        limit = f" (--limit {settings['limit']})" if settings["limit"] else ""
        said.append(f"{n} questions were asked{limit}; the published data have {benchmark.size}.")
    if benchmark.name == "egoschema" and benchmark.split == "subset":
        said.append(
            "The published number is that of the full test set, whose answers are withheld; this is the subset."
        )
    if seen["gaze"] != GAZE:
        said.append(f"Patches are picked by {seen['gaze']}; published: {GAZE}.")
    theirs, ours = preset(PRESET).to_dict(), seen["video"]
    for one in settings_of(VideoSettings):
        own, published = (values.get(one.name, one.default) for values in (ours, theirs))
        if one.report and list_of(own) != list_of(published):  # the loss stands below, as it was in force
            words = one.report[0].upper() + one.report[1:] + REMARKS.get(one.name, "")
            said.append(f"{words}: {shown(own)}; published: {shown(published)}.")
    loss = seen["loss_in_force"]
    selector = seen["selector"] or {}
    task = selector.get("config", {}).get("reconstruction_task", PUBLISHED_TASK)
    if "weights" in selector and task == PUBLISHED_TASK and loss != theirs["predicted_loss"]:
        said.append(f"A frame stops at the predicted loss {loss}; published: {theirs['predicted_loss']}.")
    if settings["max_new_tokens"] != benchmark.max_new_tokens:
        said.append(f"Replies have up to {settings['max_new_tokens']} tokens; usual: {benchmark.max_new_tokens}.")
    return said


def list_of(value: Any) -> Any:
    """json has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    """A ratio per frame of a chunk is mostly the same number."""
    if isinstance(value, (list, tuple)) and len(set(value[1:])) == 1:
        return f"{value[0]} for the first frame of a clip, then {value[1]}"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(list_of(value))
