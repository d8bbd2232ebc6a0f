"""One model, several threads: every call gets what it would get alone, and its own stats."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import autogaze_mllm as am
from autogaze_mllm.mllm.prompts.prompt_cache import PromptPrefix

from ...helpers.families.models import build
from ...helpers.tiny_models import tiny_gaze

QUESTIONS = ("What?", "Who is that?", "Where is the red thing?", "Why?")
OPTIONS: dict[str, Any] = {"max_new_tokens": 4}
Call = Callable[[], am.Answer]


def make(family: str, gaze: Any = "pixel-diff", **options: Any) -> tuple[Any, am.GazedModel]:
    """Of random weights that are large enough for answers to depend on what is seen."""
    base, processor = build(family)
    return base, am.wrap(base, gaze, processor=processor, **{"cache": False, **options})


def numbers(stats: dict[str, Any]) -> dict[str, Any]:
    """The stats that do not depend on the clock."""
    return {name: value for name, value in stats.items() if name != "seconds"} | {"stages": sorted(stats["seconds"])}


def calls(model: am.GazedModel, clip: Any, short_clip: Any) -> dict[str, Call]:
    """Calls of all kinds, by a name."""
    shared = model.encode_video(clip, share_prompt=True)
    plain = model.encode_video(short_clip)
    gazed = model.gaze_video(clip)

    def dense(question: str) -> am.Answer:
        with model.disabled():
            return model.ask(short_clip, question, **OPTIONS)

    def streamed(question: str) -> am.Answer:
        stream = model.stream(gazed, question, **OPTIONS)
        text = "".join(stream).strip()
        return am.Answer(text, stream.stats)

    def chatted(question: str) -> am.Answer:
        parts = [{"type": "video", "video": short_clip}, {"type": "text", "text": question}]
        return model.chat([{"role": "user", "content": parts}], **OPTIONS)

    def ask(video: Any) -> Callable[[str], am.Answer]:
        return lambda question: model.ask(video, question, **OPTIONS)

    kinds = {"path": ask(clip), "shared": ask(shared), "shared again": ask(shared), "encoded": ask(plain)}
    kinds |= {"gazed": ask(gazed), "dense": dense, "streamed": streamed, "chatted": chatted}
    return {f"{kind}, {q}": lambda use=use, q=q: use(q) for kind, use in kinds.items() for q in QUESTIONS}


def check_in_threads(model: am.GazedModel, clip: Any, short_clip: Any, threads: int, count: int) -> None:
    kinds = calls(model, clip, short_clip)
    alone = {name: use() for name, use in kinds.items()}
    alone = {name: use() for name, use in kinds.items()}  # from here on the cache and the shared prompt are warm
    assert len(set(alone.values())) > len(QUESTIONS)
    chosen = random.Random(0).choices(list(kinds), k=count)

    def one(name: str) -> str:
        answer = kinds[name]()
        if answer != alone[name]:
            return f"{name}: {answer!r}, alone {alone[name]!r}"
        if numbers(answer.stats) != numbers(alone[name].stats):
            return f"{name}: {numbers(answer.stats)}, alone {numbers(alone[name].stats)}"
        if "streamed" not in name and numbers(model.stats) != numbers(answer.stats):
            return f"{name}: model.stats are another call's"
        return ""

    with ThreadPoolExecutor(threads) as pool:
        assert [fault for fault in pool.map(one, chosen) if fault] == []


@pytest.mark.parametrize("gaze", ["pixel-diff", "gaze model"])
def test_mixed_calls_of_eight_threads(gaze, clip, short_clip, tmp_path):
    selector = tiny_gaze() if gaze == "gaze model" else gaze
    _, model = make("llava_onevision", selector, frames=3, cache=tmp_path)
    check_in_threads(model, clip, short_clip, threads=8, count=64)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_four_hundred_mixed_calls_of_eight_threads(family, clip, short_clip):
    _, model = make(family, frames=3)
    check_in_threads(model, clip, short_clip, threads=8, count=400)


def test_disabled_is_of_the_thread_that_said_so(clip):
    _, model = make("llava", frames=3)
    gazed = model.ask(clip, "What?", **OPTIONS)
    with model.disabled():
        dense = model.ask(clip, "What?", **OPTIONS)
    assert gazed.stats["visual_tokens"] != dense.stats["visual_tokens"]
    stop = threading.Event()

    def switch() -> None:
        while not stop.is_set():
            with model.disabled():
                time.sleep(0.001)
            time.sleep(0.001)

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        seen = [model.ask(clip, "What?", **OPTIONS).stats["visual_tokens"] for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    assert set(seen) == {gazed.stats["visual_tokens"]}
    with model.disabled(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: model.ask(clip, "What?", **OPTIONS)).result() == gazed
        here = contextvars.copy_context()  # a thread that is to do as this one is told so
        assert pool.submit(here.run, lambda: model.ask(clip, "What?", **OPTIONS)).result() == dense


def test_disabled_holds_for_tasks_and_for_blocks_that_overlap(clip):
    _, model = make("llava", frames=3)
    other = make("llava", frames=3)[1]
    whole = model.family.dense_count(3)

    async def task(off: bool) -> int:
        if not off:
            await asyncio.sleep(0)
            return model.ask(clip, "What?", **OPTIONS).stats["visual_tokens"]
        with model.disabled():
            await asyncio.sleep(0.01)
            return (await asyncio.to_thread(model.ask, clip, "What?", **OPTIONS)).stats["visual_tokens"]

    async def both() -> list[int]:
        return await asyncio.gather(*(task(off) for off in (True, False, True)))

    tokens = asyncio.run(both())
    assert tokens[0] == tokens[2] == whole != tokens[1]

    def blocks(which: am.GazedModel) -> Any:
        with which.disabled():
            yield
        yield

    first, second, third = blocks(model), blocks(model), blocks(other)
    for block in (first, second, third):
        next(block)
    next(first)  # ends before those that began later
    assert model.ask(clip, "What?", **OPTIONS).stats["visual_tokens"] == whole
    next(second)
    assert model.ask(clip, "What?", **OPTIONS).stats["visual_tokens"] == tokens[1]
    assert other.ask(clip, "What?", **OPTIONS).stats["visual_tokens"] == whole
    next(third)
    assert other.ask(clip, "What?", **OPTIONS).stats["visual_tokens"] == tokens[1]


def test_stats_are_those_of_the_call(clip, short_clip):
    """However calls are mixed: prepared here and run there, one inside of another, from plain tensors."""
    _, model = make("llava", frames=3)
    long, short = (model.prepare("<video>\nWhat?", [video]) for video in (clip, short_clip))
    expected = [long.stats["patches"], short.stats["patches"]]
    assert expected[0] != expected[1]
    model.generate(**long, **OPTIONS)
    assert model.stats["patches"] == expected[0] and "llm" in model.stats["seconds"]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: model.stats).result() == {}
        assert (
            pool.submit(lambda: (model.generate(**short, **OPTIONS), model.stats)[1]).result()["patches"] == expected[1]
        )
    assert model.stats["patches"] == expected[0]
    assert "llm" not in long.stats["seconds"]
    again = {name: value for name, value in long.items() if name != "media"}
    model(**again, media=[list(row) for row in long["media"]])  # as collators make them anew
    assert set(model.stats["seconds"]) == {"tower", "projector"}
    model.generate(torch.ones(1, 3, dtype=torch.long), **OPTIONS)
    assert set(model.stats) == {"seconds"}

    class Curious(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            self.inner = model.ask(short_clip, "Why?", **OPTIONS)

        def end(self) -> None:
            pass

    answer = model.ask(clip, "What?", streamer=Curious(), **OPTIONS)
    assert answer.stats["patches"] == model.stats["patches"] == expected[0]


def test_a_shared_prompt_serves_a_question_inside_a_question(clip):
    _, model = make("llava_onevision", frames=3)
    shared = model.encode_video(clip, share_prompt=True)
    expected = {question: model.ask(clip, question, **OPTIONS) for question in QUESTIONS}
    inner = []

    class Curious(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            inner.append(model.ask(shared, QUESTIONS[1], **OPTIONS))

        def end(self) -> None:
            pass

    assert model.ask(shared, QUESTIONS[0], streamer=Curious(), **OPTIONS) == expected[QUESTIONS[0]]
    assert set(inner) == {expected[QUESTIONS[1]]}
    stream = model.stream(shared, QUESTIONS[2], **OPTIONS)
    assert model.ask(shared, QUESTIONS[3], **OPTIONS) == expected[QUESTIONS[3]]  # waits for the stream's thread
    assert "".join(stream).strip() == expected[QUESTIONS[2]]


def test_a_copy_of_a_shared_prompt_begins_anew(clip):
    import copy
    import pickle

    _, model = make("llava_onevision", frames=3)
    shared = model.encode_video(clip, share_prompt=True)
    expected = model.ask(shared, "What?", **OPTIONS)
    for other in (copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))):
        assert isinstance(other.prefix, PromptPrefix) and other.prefix is not shared.prefix
        assert model.ask(other, "What?", **OPTIONS) == expected


def test_a_selector_that_is_not_made_for_threads_runs_in_one_at_a_time(clip):
    class Counting(am.AllSelector):
        name = "counting"
        inside = most = 0

        def select(self, *given: Any) -> Any:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.01)
            found = super().select(*given)
            self.inside -= 1
            return found

    _, model = make("llava", Counting(), frames=3)
    expected = model.ask(clip, "What?", **OPTIONS)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: model.ask(clip, "What?", **OPTIONS), range(12))) == {expected}
    assert model.gaze.most == 1
