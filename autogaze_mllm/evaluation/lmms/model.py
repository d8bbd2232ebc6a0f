"""A wrapped model as lmms-eval wants it. Needs lmms-eval; imported by it alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms
from tqdm.auto import tqdm

from ...common.compute.distributed import Shard
from ...common.errors import InputError
from ...gaze.settings import preset as preset_named
from ...mllm.loading import load_or_wrap
from ...mllm.media import Media
from ...mllm.model import GazedModel

Request = Any  # lmms_eval.api.instance.Instance


class AutoGazeMllm(lmms):
    """One request at a time; those about the same video follow one another, so that it is gazed and encoded once.

    pretrained: hub id or folder of the base model. gaze, preset, and every field of VideoSettings (frames, ratio, loss,
    max_tiles, thumbnails, ...) as for `autogaze_mllm.wrap`. All of them are model_args, by which lmms-eval keeps its
    response cache apart.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        gaze: str | None = None,
        preset: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        cache: bool = True,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            raise InputError(f"batch_size must be 1, got {batch_size}: videos are of all lengths, nothing is padded")
        shard = Shard.from_environment()
        self._rank, self._world_size = shard.rank, shard.world
        if device is None and torch.cuda.is_available():
            device = f"cuda:{shard.local_rank}"
        chosen = preset_named(preset) if preset else None
        self.model = load_or_wrap(
            pretrained, gaze, settings=chosen, device=device, dtype=dtype, cache=cache, **settings
        )
        self._seen: tuple[str, Media] | None = None  # the video of the last request

    @property
    def device(self) -> torch.device:
        return self.model.device

    # -- what lmms-eval calls --------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Request]) -> list[str]:
        replies = [""] * len(requests)
        for index in self._by_video(requests):
            context, options, doc_to_visual, doc_id, task, split = requests[index].args
            videos, images = self._media(doc_to_visual(self.task_dict[task][split][doc_id]))
            reply = self.model.ask(videos or None, context, images=images, **generation_options(options))
            for stop in _stops(options):
                reply = reply.split(stop)[0]
            replies[index] = reply.strip()
            self.cache_hook.add_partial("generate_until", (context, options), replies[index])
        return replies

    def loglikelihood(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """Mean negative log-likelihood of each target (lmms-eval takes the smallest); whether it is the greedy one."""
        found = [(0.0, False)] * len(requests)
        for index in self._by_video(requests):
            context, target, doc_to_visual, doc_id, task, split = requests[index].args
            doc = self.task_dict[task][split][doc_id]
            videos, images = self._media(doc_to_visual(doc))
            found[index] = self._likelihood(context, target if isinstance(target, str) else target(doc), videos, images)
        return found

    def generate_until_multi_round(self, requests: list[Request]) -> list[str]:
        raise NotImplementedError("autogaze_mllm answers single questions: leave out tasks of several rounds")

    # -- how -------------------------------------------------------------------------------------------------------

    def _by_video(self, requests: Sequence[Request]) -> Any:
        """Numbers of the requests, those about one video together."""

        def key(index: int) -> str:
            *_, doc_to_visual, doc_id, task, split = requests[index].args
            return str(doc_to_visual(self.task_dict[task][split][doc_id]))

        order = sorted(range(len(requests)), key=key)
        return tqdm(order, desc="autogaze_mllm", unit="question", disable=self.rank != 0)

    def _media(self, visuals: Any) -> tuple[list[Any], list[Any]]:
        """What a document shows -> videos (encoded) and images."""
        shown = visuals if isinstance(visuals, (list, tuple)) else [visuals] if visuals is not None else []
        paths = [visual for visual in shown if isinstance(visual, (str, Path))]
        images = [visual for visual in shown if not isinstance(visual, (str, Path))]
        return [self._encoded(str(path)) for path in paths], images

    def _encoded(self, path: str) -> Media:
        if self._seen is None or self._seen[0] != path:
            self._seen = (path, self.model.encode_video(path))
        return self._seen[1]

    @torch.no_grad()
    def _likelihood(self, context: str, target: str, videos: list[Any], images: list[Any]) -> tuple[float, bool]:
        model: GazedModel = self.model
        tags = "<video>\n" * len(videos) + "<image>\n" * len(images)
        inputs = model.prepare(tags + context, videos, images)
        ids = model.tokenizer(target, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
        whole = torch.cat([inputs["input_ids"], ids], dim=1)
        logits = model(whole, inputs["media"], attention_mask=torch.ones_like(whole)).logits
        logits = logits[0, -ids.shape[1] - 1 : -1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[0])
        return float(loss), bool((logits.argmax(-1) == ids[0]).all())


def generation_options(options: dict[str, Any]) -> dict[str, Any]:
    """lmms-eval's generation_kwargs as transformers wants them: greedy unless there is a temperature."""
    chosen: dict[str, Any] = {"max_new_tokens": int(options.get("max_new_tokens", 1024))}
    if options.get("num_beams", 1) not in (1, None):
        chosen["num_beams"] = options["num_beams"]
    if options.get("do_sample", True) and options.get("temperature", 0):
        chosen |= {"do_sample": True, "temperature": options["temperature"]}
        if options.get("top_p") is not None:
            chosen["top_p"] = options["top_p"]
    return chosen


def _stops(options: dict[str, Any]) -> list[str]:
    until = options.get("until") or []
    return [until] if isinstance(until, str) else list(until)
