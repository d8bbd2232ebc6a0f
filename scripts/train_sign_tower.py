"""Teaches the tower of a tiny MLLM to read SignVid's signs, before an LLM listens to it.

Towers of MLLMs are taught before they are put in: SigLIP on captions, this one on what every cell of the raster shows.
A linear head names mark, digit and colour of the sign that a kept patch belongs to (of the other half, too, so that
patches learn to look at their neighbours); it is thrown away afterwards. Only the train split is shown.

    python scripts/train_sign_tower.py untrained tower --minutes 15       # untrained: from make_bundled_mllm.py
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import autogaze_mllm as am
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.pixels import PixelFormat
from autogaze_mllm.common.storage.files import output_folder
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.patches import gather_patches
from autogaze_mllm.signvid.sheets import KINDS, NOTHING, SIDE, SIZES, UNKNOWN, write_sheet
from autogaze_mllm.signvid.signs import COLOURS, DIGITS, MARKS

TILE = 224
BEHIND = 0.1  # weight of patches that show no sign
WORDS = (*MARKS, *DIGITS, *COLOURS)
HELD_OUT = 16  # sheets, the first ones, on which the tower is measured and not trained


def write_sheets(folder: Path, count: int, seed: int, workers: int) -> None:
    """Sheets that are there stay."""
    missing = [n for n in range(count) if not (output_folder(folder) / f"{n:05}-frames.npy").is_file()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_sheet, folder, seed, number) for number in missing]
        for job in tqdm(jobs, desc="sheets", disable=not jobs):
            job.result()


class Tiles:
    """Random tiles of sheets with randomly kept patches."""

    def __init__(self, folder: Path, numbers: range, grid: PatchGrid, pixels: PixelFormat, seed: int) -> None:
        self.frames = [np.load(folder / f"{n:05}-frames.npy", mmap_mode="r") for n in numbers]
        self.labels = [np.load(folder / f"{n:05}-labels.npy") for n in numbers]
        self.grid, self.pixels = grid, pixels
        self.random = np.random.default_rng(seed)

    def draw(self, count: int) -> tuple[GazedVideo, torch.Tensor]:
        """`count` tiles, each a clip of one frame -> its kept patches and their labels (N, 4), NOTHING on the coarser
        scales."""
        pictures, labels = zip(*(self._tile() for _ in range(count)), strict=True)
        fine = self.grid.cells[-1][0] * self.grid.cells[-1][1]
        every = np.full((count, self.grid.size, len(KINDS)), NOTHING, dtype=np.int64)
        every[:, -fine:] = np.stack(labels).reshape(count, fine, len(KINDS))
        kept = self.random.random(every.shape[:2]) < self._chances(every[..., 0] != NOTHING, fine)
        frame, index = (torch.from_numpy(part) for part in kept.nonzero())
        shown = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        patches = self.pixels.normalize_patches(gather_patches(shown, self.grid, frame, index))
        counts = torch.from_numpy(kept.sum(axis=1))
        ones = torch.ones(count, dtype=torch.long)
        gazed = GazedVideo(patches, index, counts, ones, self.grid, torch.zeros(count))
        return gazed, torch.from_numpy(self._without_lost_halves(every, kept))[frame, index]

    def draw_in_any_order(self, count: int) -> tuple[GazedVideo, torch.Tensor]:
        """The same with the patches of each tile in any order, since a selector has one of its own."""
        gazed, labels = self.draw(count)
        starts = [0, *gazed.frame_counts.cumsum(0).tolist()]
        pairs = itertools.pairwise(starts)
        order = torch.cat([torch.from_numpy(self.random.permutation(end - start)) + start for start, end in pairs])
        gazed.patches, gazed.positions = gazed.patches[order], gazed.positions[order]
        return gazed, labels[order]

    def _tile(self) -> tuple[np.ndarray, np.ndarray]:
        number, frame = self.random.integers(len(self.frames)), self.random.integers(2)
        row, column = self.random.integers(SIDE // TILE, size=2)
        cells = TILE // (SIDE // self.labels[number].shape[1])
        picture = self.frames[number][frame, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        label = self.labels[number][frame, row * cells : (row + 1) * cells, column * cells : (column + 1) * cells]
        return np.array(picture), label

    def _chances(self, signs: np.ndarray, fine: int) -> np.ndarray:
        """That a patch is kept: most of those that show signs, and a varying share of the others."""
        count = len(signs)
        chances = np.repeat(self.random.uniform(0, 0.3, (count, 1)), signs.shape[1], axis=1)
        chances[:, :-fine] = self.random.uniform(0, 0.5, (count, 1))
        return np.where(signs, self.random.uniform(0.6, 1, (count, 1)), chances)

    def _without_lost_halves(self, labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """What the other half of a sign shows is unknown where that half is not kept, or lies in another tile."""
        rows, columns = self.grid.cells[-1]
        fine = rows * columns
        there = kept[:, -fine:].reshape(-1, rows, columns)
        own = labels[:, -fine:].reshape(-1, rows, columns, len(KINDS))
        right, left = np.zeros_like(there), np.zeros_like(there)
        right[:, :, :-1], left[:, :, 1:] = there[:, :, 1:], there[:, :, :-1]
        half = own[..., 3]
        own[..., 1] = np.where((half == 0) & ~right, UNKNOWN, own[..., 1])
        own[..., 0] = np.where((half == 1) & ~left, UNKNOWN, own[..., 0])
        return labels


def loss_of(answers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every kind; the last class of each is `nothing`."""
    total = answers.new_zeros(())
    for kind, part in enumerate(answers.split([size + 1 for size in SIZES], dim=1)):
        label = labels[:, kind]
        target = torch.where(label == NOTHING, SIZES[kind], label)
        losses = F.cross_entropy(part, target, ignore_index=UNKNOWN, reduction="none")
        weight = torch.where(label == NOTHING, BEHIND, 1.0) * (label != UNKNOWN)
        total = total + (losses * weight).sum() / weight.sum().clamp(min=1)
    return total


@torch.no_grad()
def measure(tower: Any, head: nn.Module, tiles: Tiles, draws: int = 4) -> dict[str, float]:
    """Share of right answers by kind; own: of the glyph that a patch shows itself, both: its neighbour's as well."""
    right: dict[str, list[torch.Tensor]] = {"own": [], "both": [], "colour": []}
    tower.eval()
    for _ in range(draws):
        gazed, labels = tiles.draw(16)
        parts = head(tower.encode(gazed)).split([size + 1 for size in SIZES], dim=1)
        hits = torch.stack([part.argmax(dim=1) == labels[:, kind] for kind, part in enumerate(parts)], dim=1)
        signs = labels[:, 3] >= 0
        own = torch.where(labels[:, 3] == 0, hits[:, 0], hits[:, 1])
        whole = signs & (labels[:, 0] >= 0) & (labels[:, 1] >= 0)
        right["own"].append(own[signs])
        right["both"].append((hits[:, 0] & hits[:, 1])[whole])
        right["colour"].append(hits[:, 2][signs])
    tower.train()
    return {kind: round(float(torch.cat(found).float().mean()), 4) for kind, found in right.items()}


def shares(start: float, minutes: float, steps: int | None) -> Iterator[tuple[int, float]]:
    """(step, share of the training that is done), until it is."""
    step = 0
    while True:
        done = step / steps if steps else (time.monotonic() - start) / 60 / minutes
        if done >= 1:
            return
        yield step, done
        step += 1


def learning_rate(highest: float, step: int, warm_up: int, done: float) -> float:
    """Rises for `warm_up` steps and falls along a cosine to a fiftieth."""
    return highest * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def words_of(model: Any) -> torch.Tensor:
    """Ids of the words for every mark, digit and colour, as they stand within an answer."""
    tokenizer = model.tokenizer
    return torch.tensor([tokenizer.encode(" " + word, add_special_tokens=False)[-1] for word in WORDS])


def said_by(labels: torch.Tensor, counts: list[int], merge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """labels (N, 4) of patches, counts of each picture -> for every token of the LLM, which joins `merge` patches, the
    words that it should say (n, words) 0/1, and (n,) whether that is all that it may say."""
    offsets = [0, SIZES[0], SIZES[0] + SIZES[1]]
    said = torch.zeros(len(labels), len(WORDS))
    for kind, offset in enumerate(offsets):
        rows = (labels[:, kind] >= 0).nonzero()[:, 0]
        said[rows, offset + labels[rows, kind]] = 1
    sure = (labels[:, :3] != UNKNOWN).all(dim=1)
    tokens = [
        (part.view(-1, merge, len(WORDS)).amax(dim=1), known.view(-1, merge).all(dim=1))
        for part, known in (
            (_filled(one, merge), _filled(other, merge))
            for one, other in zip(said.split(counts), sure.split(counts), strict=True)
        )
    ]
    return torch.cat([part for part, _ in tokens]), torch.cat([known for _, known in tokens])


def _filled(rows: torch.Tensor, merge: int) -> torch.Tensor:
    """The last row again until their number is a multiple of `merge`, as the projector fills up."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % merge, *rows.shape[1:])]) if len(rows) else rows


def train_projector(model: Any, tiles: Tiles, held: Tiles, arguments: argparse.Namespace) -> None:
    """The projector learns tokens that lie near the words for what they show, among the LLM's own embeddings."""
    projector, tower = model.family.projector, model.tower
    embeddings = model.base.get_input_embeddings().weight.detach()[words_of(model)]
    words = F.normalize(embeddings, dim=1)
    scale = nn.Parameter(torch.tensor(10.0))
    bias = nn.Parameter(torch.tensor(-3.0))
    parameters = [*projector.parameters(), scale, bias]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.projector_lr, betas=(0.9, 0.98), weight_decay=0.0)
    projector.train()
    start = time.monotonic()

    def heard(source: Tiles) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gazed, labels = source.draw_in_any_order(arguments.tiles)
        counts = gazed.frame_counts.tolist()
        with torch.no_grad():
            features = model.family.gazed_features(tower, [gazed])[0]
        tokens = projector(features, counts)
        said, sure = said_by(labels, [count for count in counts if count], projector.merge)
        return F.normalize(tokens, dim=1) @ words.T * scale + bias, said, sure

    for step, done in shares(start, arguments.projector_minutes, arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments.projector_lr, step, 100, done)
        answers, said, sure = heard(tiles)
        weight = said * 5 + (1 - said) * sure[:, None]
        loss = (F.binary_cross_entropy_with_logits(answers, said, reduction="none") * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % arguments.report_every == 0:
            with torch.no_grad():
                answers, said, sure = heard(held)
            right = ((answers > 0) == (said > 0)).all(dim=1)
            shows = (said.sum(dim=1) > 0) & sure
            print(
                to_json(
                    {
                        "projector step": step + 1,
                        "loss": round(loss.item(), 4),
                        "tokens with signs": round(float(right[shows].float().mean()), 4),
                        "without": round(float(right[~shows & sure].float().mean()), 4),
                    }
                ),
                flush=True,
            )
    projector.eval()


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    sheets = arguments.sheets_folder or arguments.output.with_name(arguments.output.name + "-sheets")
    write_sheets(sheets, arguments.sheets + HELD_OUT, arguments.seed, arguments.workers)
    model = am.wrap(str(arguments.model), "all", cache=False, dtype=torch.float32)
    tower: Any = model.tower
    pixels = PixelFormat()
    tiles = Tiles(sheets, range(HELD_OUT, HELD_OUT + arguments.sheets), tower.grid, pixels, arguments.seed)
    held = Tiles(sheets, range(HELD_OUT), tower.grid, pixels, arguments.seed)
    head = nn.Linear(tower.config.hidden_size, sum(SIZES) + len(SIZES))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.01)
    tower.train()
    start, running = time.monotonic(), 0.0
    for step, done in shares(start, arguments.minutes, arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments.lr, step, 200, done)
        gazed, labels = tiles.draw(arguments.tiles)
        loss = loss_of(head(tower.encode(gazed)), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running += (loss.item() - running) / min(step + 1, 100)
        if (step + 1) % arguments.report_every == 0:
            minutes = (time.monotonic() - start) / 60
            line = {"step": step + 1, "minutes": round(minutes, 2), "loss": round(running, 4)}
            print(to_json(line | measure(tower, head, held)), flush=True)
    tower.eval()
    train_projector(model, tiles, held, arguments)
    model.base.save_pretrained(arguments.output)
    model.preprocessing.save_pretrained(arguments.output)
    print(to_json({"held-out": measure(tower, head, held, draws=20), "output": str(arguments.output)}))


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("model", type=Path, help="folder in the VILA layout")
    parser.add_argument("output", type=Path, help="folder of the same model with a tower that reads")
    parser.add_argument("--sheets", type=int, default=1500, help="training sheets, about 100 signs each")
    parser.add_argument("--sheets-folder", type=Path, help="default: beside OUTPUT")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--projector-minutes", type=float, default=5)
    parser.add_argument("--steps", type=int, help="of each, instead of minutes")
    parser.add_argument("--tiles", type=int, default=16, help="of a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="of the tower")
    parser.add_argument("--projector-lr", type=float, default=2e-3)
    parser.add_argument("--report-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--seed", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    return run_program(parser, train)


if __name__ == "__main__":
    sys.exit(main())
