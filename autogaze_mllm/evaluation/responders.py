"""What answers questions: a wrapped model, or a script for checking the harness itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..common.errors import InputError
from ..common.storage.hashing import fingerprint
from ..common.storage.pinned import commit_of
from ..gaze.autogaze.pretrained import BUNDLED
from ..gaze.gazed_video import GazedVideo
from ..gaze.pipeline import gaze_variants
from ..gaze.selectors.base import AnySelector, as_selector, selector_name, stop_rule
from ..gaze.settings import VideoSettings
from .benchmarks import Question

if TYPE_CHECKING:
    from ..mllm.model import GazedModel

SCRIPTED = "scripted:"
SCRIPTS = ("right", "wrong", "nonsense")
NONSENSE = "no idea"


@dataclass(frozen=True)
class Variant:
    """A way to gaze. gaze: what the selector was asked for by. name: its folder's, where there are several."""

    selector: AnySelector
    settings: VideoSettings
    gaze: str = ""
    name: str = ""


@dataclass
class Reply:
    """tokens, seconds: as in Answer."""

    text: str
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class EncodedVideo(Protocol):
    """A video, ready for questions. stats: frames_lost, patches, patches_total, seconds, as far as they apply."""

    stats: dict[str, Any]

    def ask(self, question: Question, prompt: str, max_new_tokens: int) -> Reply: ...


class Responder(Protocol):
    def facts(self) -> dict[str, Any]:
        """What is answering."""
        ...

    def variant_facts(self, variant: Variant) -> dict[str, Any]:
        """What decides what is seen of a video."""
        ...

    def watch(self, path: Path, variants: Sequence[Variant]) -> Iterator[EncodedVideo]:
        """The video as each variant sees it. Raises InputError when it cannot be read."""
        ...


class ModelAnswerer:
    """A wrapped model; every video is gazed and encoded once for all its questions."""

    def __init__(self, model: GazedModel, name: str | None) -> None:
        self.model, self.name = model, name

    def facts(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "name": self.name or BUNDLED,
            "revision": getattr(config, "_commit_hash", None) or commit_of(getattr(config, "name_or_path", "")),
            "weights": fingerprint(dict(self.model.family.base.named_parameters())),  # what it is, wherever it lies
            "family": self.model.family.title,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "decoding": "greedy",
        }

    def variant_facts(self, variant: Variant) -> dict[str, Any]:
        tower = self.model.tower
        return {
            "gaze": variant.gaze or selector_name(variant.selector),
            "selector": as_selector(variant.selector).identity(),
            "loss_in_force": stop_rule(variant.settings.loss, variant.selector, variant.settings),
            "video": variant.settings.to_dict(),
            "index_rule": "round(linspace(0, n - 1, frames))",
            "tower": {
                "scales": [list(side) for side in tower.grid.scales],
                "patch": tower.grid.patch,
                "attention": tower.attn_type,
                "frame_independent": tower.frame_independent,
            },
        }

    def watch(self, path: Path, variants: Sequence[Variant]) -> Iterator[EncodedVideo]:
        model = self.model
        if len(variants) == 1 and variants[0].selector is model.gaze and variants[0].settings == model.settings:
            yield _Encoded(model, path)  # from the cache, if it is there
            return
        gazed: dict[str, GazedVideo] = {}
        for sampling in dict.fromkeys(variant.settings.sampling() for variant in variants):
            alike = [variant for variant in variants if variant.settings.sampling() == sampling]
            made = gaze_variants(path, [(variant.selector, variant.settings) for variant in alike], **model.video_form)
            gazed |= dict(zip((variant.name for variant in alike), made, strict=True))
        for variant in variants:
            yield _Encoded(model, gazed.pop(variant.name))


class _Encoded:
    """Visual tokens of a video."""

    def __init__(self, model: GazedModel, source: Path | GazedVideo) -> None:
        self._model = model
        self._tokens = model.encode_video(source, share_prompt=model.family.share_prefix)
        self.stats = model.stats
        if isinstance(source, GazedVideo):  # gazed outside of the model, which then does not count it
            self.stats["seconds"] = {**source.stats["seconds"], **self.stats["seconds"]}

    def ask(self, question: Question, prompt: str, max_new_tokens: int) -> Reply:
        text = self._model.ask(self._tokens, prompt, max_new_tokens=max_new_tokens)
        stats = self._model.stats
        tokens = {name: stats[f"{name}_tokens"] for name in ("visual", "prompt", "new")}
        return Reply(text, tokens, stats["seconds"])


class ScriptedAnswerer:
    """Not a model: knows the answers, and gives the right one, a wrong one or none. For checking the harness."""

    def __init__(self, script: str) -> None:
        if script not in SCRIPTS:
            raise InputError(f"no script {script!r}; known: {', '.join(SCRIPTED + known for known in SCRIPTS)}")
        self.script = script
        self.stats: dict[str, Any] = {"seconds": {}}

    def facts(self) -> dict[str, Any]:
        return {"name": SCRIPTED + self.script, "note": "not a model: it looks up the answers"}

    def variant_facts(self, variant: Variant) -> dict[str, Any]:
        return {"gaze": "none", "video": {"frames": variant.settings.frames}}

    def watch(self, path: Path, variants: Sequence[Variant]) -> Iterator[EncodedVideo]:
        for _ in variants:
            yield self

    def ask(self, question: Question, prompt: str, max_new_tokens: int) -> Reply:
        right = question.answer or question.letters[0]
        if self.script == "nonsense":
            return Reply(NONSENSE)
        if self.script == "right":
            return Reply(right)
        return Reply(question.letters[(question.letters.index(right) + 1) % len(question.letters)])
