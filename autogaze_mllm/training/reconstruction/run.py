"""Measuring clips, in one process or several, so that a run may be killed at any moment and goes on.

Notable design decisions:
- a row (one clip, one selector, one setting) is written as soon as it is known, after its picture;
- which process measures a clip follows from the clips alone, so a run continues with any number of processes;
- processes meet in the folder only: the first one waits for the rows of all, and makes tables and figures of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...common.compute.distributed import Shard
from ...common.errors import InputError
from ...common.storage.files import output_folder, read_json, write_json
from ...common.storage.hashing import content_hash
from ...common.storage.json_diff import check_same
from ...common.storage.json_lines import JsonLines, read_lines
from ..tasks.mosaic_task import MosaicTask
from .clips import Clip
from .matching import match
from .models import Contender, Models
from .scores import ClipScore, heat_map, score_clip
from .settings import Setting
from .sheets import save_sheet

RUN_FILE, LOG = "run.json", "measured"
PATIENCE = 600.0  # seconds to wait for the first process to write RUN_FILE
POLL_SECONDS = 0.5

Row = dict[str, Any]
Key = tuple[str, str, str]  # selector, clip, setting


@dataclass(frozen=True)
class Evaluation:
    """shown: clips, the first ones, of which pictures are made. matched: whether to count what others keep at the same
    error."""

    out: Path
    models: Models
    settings: Sequence[Setting]
    clips: Sequence[Clip]
    shown: int
    matched: bool
    device: torch.device
    shard: Shard

    def measure(self) -> list[Row]:
        """Measures what this process has to, as far as it is not known yet. -> in the first process the rows of all, in
        their order; in the others nothing."""
        self._begin()
        mine = [part[0] for part in self.shard.part({clip.id: [clip] for clip in self.clips}).values()]
        known = self._known().keys()
        rank = f"-{self.shard.rank:05}"
        with JsonLines(self.out / f"{LOG}{rank}.jsonl", rank, "the same command goes on") as log:
            waiting = [clip for clip in mine if any(key not in known for key in self._keys(clip))]
            if waiting:
                self._warm_up(waiting[0])
            for clip in tqdm(waiting, unit="clip", disable=self.shard.rank > 0):
                for row in self._measure(clip, {key for key in self._keys(clip) if key not in known}):
                    log.append(row)
        return self._gather() if self.shard.rank == 0 else []

    def decides(self) -> Row:
        """All that decides the numbers: another run is not continued."""
        videos = {clip.video: content_hash(clip.path) for clip in self.clips}
        return {
            "videos": videos,
            "clips": {clip.id: list(clip.frames) for clip in self.clips},
            "settings": [setting.name for setting in self.settings],
            "models": self.models.identities(),
            "shown": self.shown,
            "matched": self.matched,
        }

    def _begin(self) -> None:
        path = output_folder(self.out) / RUN_FILE
        if self.shard.rank == 0:
            if path.exists():
                check_same(path, read_json(path), self.decides())
            elif any(self.out.glob(f"{LOG}-*.jsonl")):
                raise InputError(f"{self.out}: holds measurements but no {RUN_FILE}; choose another --out")
            else:
                write_json(path, self.decides())
            return
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            if time.monotonic() > deadline:
                raise InputError(f"{path}: the first process has not written it; do all see the same folder?")
            time.sleep(0.2)
        check_same(path, read_json(path), self.decides())

    def _keys(self, clip: Clip) -> Iterator[Key]:
        for one in self.models.contenders:
            for setting in self.settings:
                yield one.label, clip.id, setting.name

    def _known(self) -> dict[Key, Row]:
        found: dict[Key, Row] = {}
        paths = sorted(self.out.glob(f"{LOG}-*.jsonl"))
        for stored in (line for path in paths for line in read_lines(path)):
            names = [stored.get(name, str) for name in ("selector", "id", "setting")]
            found.setdefault((names[0], names[1], names[2]), dict(stored.values))
        return found

    def _gather(self) -> list[Row]:
        """The rows of all processes. A launcher ends all of them when one fails."""
        wanted = [key for clip in self.clips for key in self._keys(clip)]
        order = {label: number for number, label in enumerate(one.label for one in self.models.contenders)}
        while True:
            known = self._known()
            if all(key in known for key in wanted):
                return [known[key] for key in sorted(wanted, key=lambda key: order[key[0]])]
            time.sleep(POLL_SECONDS)

    def _warm_up(self, clip: Clip) -> None:
        """What a model does once, the first time, is not counted in the seconds of the first clip."""
        for one in self.models.contenders:
            score_clip(clip.read(one.task.grid)[0][:2], one.selector, self.settings[0], one.task, self.device)

    def _measure(self, clip: Clip, wanted: set[Key]) -> Iterator[Row]:
        read: dict[tuple[int, int], tuple[torch.Tensor, list[int]]] = {}
        for one in self.models.contenders:
            side = one.task.grid.scales[-1]
            if side not in read:
                read[side] = clip.read(one.task.grid)
            pixels, numbers = read[side]
            for setting in self.settings:
                if (one.label, clip.id, setting.name) in wanted:
                    score = score_clip(pixels, one.selector, setting, one.task, self.device)
                    yield self._row(clip, one, setting, score, pixels, numbers)

    def _row(
        self, clip: Clip, one: Contender, setting: Setting, score: ClipScore, pixels: torch.Tensor, numbers: list[int]
    ) -> Row:
        row: Row = {
            "id": clip.id,
            "selector": one.label,
            "setting": setting.name,
            "numbers": numbers,
            "frames": [dataclasses.asdict(frame) for frame in score.frames],
            "gaze_seconds": score.gaze_seconds,
            "reconstruction_seconds": score.reconstruction_seconds,
        }
        if clip in self.clips[: self.shown]:
            row["map"] = heat_map([score], one.task.grid).tolist()
            save_sheet(sheet_path(self.out, one, clip, setting), clip, one, score, pixels, numbers)
        if self.matched and isinstance(one.task, MosaicTask) and one.label != "all":
            row["matched"] = dataclasses.asdict(match(pixels, score, one.task, self.device))
        return row


def sheet_path(out: Path, one: Contender, clip: Clip, setting: Setting) -> Path:
    video = clip.video.replace("/", "-")
    return out / "visualizations" / one.file / f"{video}_{clip.name}_{setting.name}.png"
