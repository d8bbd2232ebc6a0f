"""Teaches an LLM to answer about SignVid by the clock: first from words, then from videos as well.

Every step takes the same questions about the same videos in every way of looking, so that each has been learnt as often
as the others: what is compared afterwards was trained alike. Tower and projector rest, so what they make of a video is
computed once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...common.errors import InputError
from ...common.storage.weights import check_weights, read_weights, shapes, write_weights
from ...mllm.model import GazedModel
from ...signvid.plan import VideoShape
from ...training.on_device.loop import Clock, rate_at
from ...training.run_folder.checkpoints import MetricsFile
from .letters import choices, optimizers_of
from .looks import Look, look_at
from .packs import IGNORED, Pack, Rows, filled
from .shared_prefix import question_states, share_prefix
from .signs import Film, SignSource, Text, VideoJob

SAVE_EVERY, PRINT_EVERY = 30.0, 5.0  # seconds
COLLECTING = 0.3  # share of the time that may go into looking at new videos
NOISES = (0.01, 0.07)  # of the sensor, in every other video


@dataclass(frozen=True)
class Group:
    """Videos of one shape. videos: at most so many; batch: of a step; share: of the steps. looks: how the n-th batch of
    new videos is looked at; together: names of looks that go through the LLM side by side."""

    name: str
    shape: VideoShape
    videos: int
    batch: int
    share: float
    looks: Callable[[int], list[Look]]
    together: Sequence[Sequence[str]]


@dataclass(frozen=True)
class CourseConfig:
    """packs: sets of questions that are made of each video, of `questions` each. texts: videos in words, in all;
    text_batch: of them in a step, text_only: in one without videos. words: share of the time before videos come.
    waiting: batches of a group that are in the making or wait.

    letters: choices of a letter in a step (letters.py), 0 for none; while they are learnt first, for that share of the
    time (`letters_first`), videos weigh `light` only, so that what is new is not drowned in the noise of a few videos.
    verdicts: codes of which is told, for each video, whether they are shown."""

    packs: int = 6
    questions: int = 10
    texts: int = 24_000
    text_chunk: int = 250
    text_batch: int = 48
    text_only: int = 128
    words: float = 0.15
    text_weight: float = 0.5
    lr: float = 1.2e-3
    seed: int = 60
    waiting: int = 6
    letters: int = 0
    letters_first: float = 0.6
    light: float = 0.12
    verdicts: int = 0


@dataclass
class Encoded:
    """A video as the LLM sees it. tokens: by the name of the look, (n, D)."""

    tokens: dict[str, torch.Tensor]
    packs: list[Pack]


@dataclass
class Reel:
    """A group's videos that are ready, and those that are in the making. number: of the next one."""

    group: Group
    ready: list[Encoded] = field(default_factory=list)
    making: deque[Future[Film]] = field(default_factory=deque)
    number: int = 0
    batches: int = 0


class Course:
    def __init__(
        self,
        model: GazedModel,
        source: SignSource,
        groups: Sequence[Group],
        settings: CourseConfig,
        out: Path,
        clock: Clock,
    ) -> None:
        self.model, self.source, self.settings, self.out, self.clock = model, source, settings, out, clock
        self.device = model.device
        base: Any = model.base
        self.llm = share_prefix(base.llm.float().train())
        self.parameters = list(self.llm.parameters())
        self.optimizers = optimizers_of(self.llm, settings.lr, muon=settings.letters > 0)
        self.random = np.random.default_rng(settings.seed)
        self.turns = source.speech.turns()
        self.before = self.turns.prefix()
        self.reels = [Reel(group) for group in groups]
        self.texts: list[Text] = []
        self.text_jobs: deque[Future[list[Text]]] = deque()
        self.texts_asked = 0
        self.collecting = 0.0
        self.most = max(group.batch for group in groups) if groups else 1  # videos of a step

    # -- the run -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Until the time is up. Weights and metrics are written as it goes: it may be ended at any moment."""
        metrics = MetricsFile(self.out / "metrics.jsonl", 0)
        saved = printed = time.monotonic()
        for values in self._steps():
            metrics.write(self.clock.step, values)
            self.clock.step += 1
            now = time.monotonic()
            if now - printed > PRINT_EVERY:
                printed = now
                print(f"{self.clock.spent:6.1f} s  step {self.clock.step:5}  {_line(values)}", flush=True)
            if now - saved > SAVE_EVERY:
                saved = now
                self.save()
        metrics.close()
        self.save()

    def save(self) -> None:
        save_llm(self.llm, self.out / "llm.safetensors")

    def _steps(self) -> Iterator[dict[str, Any]]:
        last = 0.0
        while not self.clock.over(last):
            self._order()
            start = time.monotonic()
            try:
                self._collect()
                start = time.monotonic()
                reel = self._next_reel()
                if not self.texts and reel is None and not self.settings.letters:
                    time.sleep(0.02)
                    continue
                losses = self._step(reel)
            except torch.OutOfMemoryError as error:
                if self.most == 1:
                    raise InputError("the device has too little memory for one video") from error
                self.most = max(self.most // 2, 1)
                print(f"too little memory; {self.most} videos of a step from now on", flush=True)
                torch.cuda.empty_cache()
                continue
            last = time.monotonic() - start
            videos = {reel.group.name: len(reel.ready) for reel in self.reels}
            yield {**losses, "seconds": last, "texts": len(self.texts), "videos": videos, "collecting": self.collecting}

    def _next_reel(self) -> Reel | None:
        """The group whose videos come next; None while only words are learnt."""
        ready = [reel for reel in self.reels if len(reel.ready) >= min(reel.group.batch, self.most)]
        if not ready or (self.clock.progress < self.settings.words and self.texts):
            return None
        shares = np.array([reel.group.share for reel in ready])
        return ready[int(self.random.choice(len(ready), p=shares / shares.sum()))]

    # -- what is learnt from -------------------------------------------------------------------------------------

    def _order(self) -> None:
        """Asks for more texts and videos, words first."""
        settings, source = self.settings, self.source
        while self.texts_asked < settings.texts and len(self.text_jobs) < (24 if not self.texts else 2):
            numbers = range(self.texts_asked, self.texts_asked + settings.text_chunk)
            self.text_jobs.append(source.texts(settings.seed, numbers, settings.questions))
            self.texts_asked += settings.text_chunk
        for number, reel in enumerate(self.reels):
            while reel.number < reel.group.videos and len(reel.making) < settings.waiting * reel.group.batch:
                shape = reel.group.shape
                if reel.number % 2:
                    shape = replace(shape, noise=round(float(self.random.uniform(*NOISES)), 4))
                seed, packs, questions = settings.seed + number, settings.packs, settings.questions
                job = VideoJob(shape, seed, reel.number, packs, questions, verdicts=settings.verdicts)
                reel.making.append(source.film(job))
                reel.number += 1

    def _collect(self) -> None:
        """Takes in texts that are done, and at most one batch of videos."""
        while self.text_jobs and self.text_jobs[0].done():
            self.texts += self.text_jobs.popleft().result()
        if self.texts and self.collecting > COLLECTING * self.clock.spent:
            return
        for reel in sorted(self.reels, key=lambda reel: len(reel.ready) / reel.group.share):
            batch = min(reel.group.batch, self.most)
            first = list(reel.making)[:batch]
            if len(first) == batch and all(future.done() for future in first):
                start = time.monotonic()
                films = [reel.making.popleft().result() for _ in first]
                reel.ready += encode(self.model, films, reel.group.looks(reel.batches))
                reel.batches += 1
                self.collecting += time.monotonic() - start
                return

    # -- a step --------------------------------------------------------------------------------------------------

    def _step(self, reel: Reel | None) -> dict[str, Any]:
        progress, settings = self.clock.progress, self.settings
        rate = rate_at(progress, settings.lr)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
        losses: dict[str, torch.Tensor] = {}
        if reel is not None:
            light = settings.letters and progress < settings.letters_first
            self._videos(reel, losses, settings.light if light else 1.0)
        if settings.letters:
            loss = self._text_loss(choices(self.turns, settings.letters, self.random))
            loss.backward()
            losses["letters"] = loss.detach()
        if self.texts:
            count = self.settings.text_only if reel is None else self.settings.text_batch
            chosen = [self.texts[int(n)] for n in self.random.integers(len(self.texts), size=count)]
            loss = self._text_loss(chosen)
            (loss * (1.0 if reel is None else self.settings.text_weight)).backward()
            losses["words"] = loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        names = [*losses, "grad_norm"]
        values = dict(zip(names, torch.stack([*losses.values(), norm]).tolist(), strict=True))
        if np.isfinite(values["grad_norm"]):
            for optimizer in self.optimizers:
                optimizer.step()
        return {"group": "words" if reel is None else reel.group.name, "lr": rate, **values}

    def _videos(self, reel: Reel, losses: dict[str, torch.Tensor], weight: float) -> None:
        """The same questions about the same videos, in every way of looking. weight: of their loss."""
        group = reel.group
        count = min(group.batch, self.most)
        chosen = [reel.ready[int(n)] for n in self.random.permutation(len(reel.ready))[:count]]
        packs = [video.packs[int(self.random.integers(len(video.packs)))] for video in chosen]
        looks = sum(len(names) for names in group.together)
        for names in group.together:
            tokens = [video.tokens[name] for name in names for video in chosen]
            states, rows = self.states(tokens, packs * len(names))
            each = self._losses(states, rows).unflatten(0, (len(names), -1)).mean(dim=1)
            (weight * each.sum() / looks).backward()
            losses |= {f"{group.name} {name}": loss for name, loss in zip(names, each.detach(), strict=True)}

    def states(self, tokens: Sequence[torch.Tensor], packs: Sequence[Pack]) -> tuple[torch.Tensor, Rows]:
        """(B, T, D) of the questions about videos of these visual tokens."""
        rows = Rows.of(packs, self.device)
        with self._autocast():
            start = self.llm.model.embed_tokens(torch.tensor(self.before, device=self.device))
            whole = [torch.cat([start, part.to(start.dtype)]) for part in tokens]
            lengths = torch.tensor([len(part) for part in whole], device=self.device)
            prefix = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)
            return question_states(self.llm, prefix, lengths, rows.ids, rows.question), rows

    def _text_loss(self, texts: Sequence[Text]) -> torch.Tensor:
        ids, lengths = filled([text.prefix for text in texts], 0, self.device)
        rows = Rows.of([text.pack for text in texts], self.device)
        with self._autocast():
            prefix = self.llm.model.embed_tokens(ids)
            states = question_states(self.llm, prefix, lengths, rows.ids, rows.question)
        return self._losses(states, rows).mean()

    def _losses(self, states: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Mean cross-entropy of the tokens that are learnt, of each row (B,)."""
        learnt = rows.labels != IGNORED
        with self._autocast():
            logits = self.llm.lm_head(states[learnt])
        each = F.cross_entropy(logits.float(), rows.labels[learnt], reduction="none")
        row = learnt.nonzero()[:, 0]
        total = each.new_zeros(len(states)).index_add(0, row, each)
        return total / learnt.sum(dim=1).clamp(min=1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    # -- how well it answers -------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, videos: Sequence[Encoded]) -> dict[str, dict[str, float]]:
        """Of each look, the share of questions whose answer is right to the last token, by kind."""
        self.llm.eval()
        found = {}
        for name in videos[0].tokens:
            right: dict[str, list[bool]] = {}
            for video in videos:
                states, rows = self.states([video.tokens[name]], video.packs[:1])
                learnt = rows.labels != IGNORED
                with self._autocast():
                    hits = self.llm.lm_head(states[learnt]).argmax(dim=1) == rows.labels[learnt]
                questions = rows.question[learnt].tolist()
                wrong = {question for question, hit in zip(questions, hits.tolist(), strict=True) if not hit}
                for number, kind in enumerate(video.packs[0].kinds):
                    right.setdefault(kind, []).append(number not in wrong)
            shares = {kind: float(np.mean(hits)) for kind, hits in right.items()}
            found[name] = {**shares, "tokens": float(np.mean([len(video.tokens[name]) for video in videos]))}
        self.llm.train()
        return found


def encode(model: GazedModel, films: Sequence[Film], looks: Sequence[Look]) -> list[Encoded]:
    """What each film is in every look. Its frames are deleted."""
    frames = [np.load(film.frames) for film in films]
    for film in films:
        film.frames.unlink()
    seen = look_at(model, frames, looks)
    return [Encoded(tokens, film.packs) for tokens, film in zip(seen, films, strict=True)]


def save_llm(llm: Any, path: Path) -> None:
    """The LLM's weights in bf16; a head that is its embedding is left out."""
    weights = {name: tensor.detach() for name, tensor in llm.state_dict().items()}
    if llm.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    write_weights(path, {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in weights.items()})


def load_llm(llm: Any, path: Path) -> None:
    """What `save_llm` wrote in place of the LLM's own weights. Raises InputError where it does not fit."""
    weights = read_weights(path)
    check_weights(path, shapes(dict(llm.named_parameters())), shapes(weights), against="this model's LLM")
    llm.load_state_dict(weights, strict=False)


def _line(values: dict[str, Any]) -> str:
    shown = " ".join(f"{name} {value:.3f}" for name, value in values.items() if isinstance(value, float))
    return f"{values['group']}: {shown}  videos {values['videos']}"
