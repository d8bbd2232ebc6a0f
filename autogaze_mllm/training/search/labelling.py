"""Labels for many videos: batched, over several processes, resumable.

Finished batches lie as small files in a folder beside the result until all are there. A run that was interrupted goes
on with what is missing; one with other settings is refused.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ...common.errors import InputError
from ...common.storage.files import output_folder, read_fields, read_json, write_json
from ...common.storage.hashing import content_hash
from ...common.storage.json_diff import check_same
from ...common.storage.locks import run_lock
from ...gaze.grid import PatchGrid
from ..config import MOSAIC_LABEL_LOSS, VIDEOMAE_LABEL_LOSS, LabelConfig
from ..data.clips import ClipSource
from ..data.labels import Label, checked_label, key_of, write_labels
from ..tasks.mosaic_task import MosaicTask
from ..tasks.registry import load_task
from ..tasks.videomae.checkpoint import find_checkpoint
from .candidates import search_by_candidates
from .greedy import SearchResult, search_mosaic


@dataclass(frozen=True)
class LabelReport:
    """files: what was written; unreadable: why, for each video without a label; patches: of all labels."""

    files: list[Path]
    labels: int
    patches: int
    unreadable: dict[str, str]


def label_videos(
    videos: list[Path],
    target: Path,
    settings: LabelConfig,
    *,
    workers: int = 1,
    unreadable: float = 0.05,
    shard: int = 20_000,
    device: str = "cpu",
    progress: bool = True,
) -> LabelReport:
    """Writes the labels of `videos` to `target` (a .json file; several when there are more than `shard` videos).

    Raises InputError when more than the share `unreadable` of the videos cannot be read.
    """
    if target.suffix != ".json":
        raise InputError(f"{target}: labels are written to a .json file")
    if not videos:
        raise InputError("there are no videos to label")
    settings = _filled(settings)
    parts = output_folder(target.parent / f".{target.name}.parts")
    with run_lock(parts):
        return _label(videos, target, parts, settings, workers, unreadable, shard, device, progress)


def _label(
    videos: list[Path],
    target: Path,
    parts: Path,
    settings: LabelConfig,
    workers: int,
    unreadable: float,
    shard: int,
    device: str,
    progress: bool,
) -> LabelReport:
    _check_settings(parts, settings)
    done: dict[str, Label] = {}
    failed: dict[str, str] = {}
    for part in sorted(parts.glob("part-*.json")):
        stored = read_fields(part)
        done |= {name: checked_label(label, f"{part}: {name}") for name, label in stored.get("labels", dict).items()}
        failed |= stored.get("failed", dict[str, str])
    known = done.keys() | failed.keys()
    missing = [path for path in videos if str(path) not in known]
    batches = [missing[start : start + settings.batch] for start in range(0, len(missing), settings.batch)]
    next_part = len(list(parts.glob("part-*.json")))
    with tqdm(total=len(videos), initial=len(known), unit="video", desc="labelling", disable=not progress) as bar:
        for number, (found, lost) in enumerate(_results(batches, settings, workers, device), next_part):
            write_json(parts / f"part-{number:06}.json", {"labels": found, "failed": lost})
            done |= found
            failed |= lost
            bar.update(len(found) + len(lost))
            if len(failed) > unreadable * len(videos):
                raise InputError(
                    f"{len(failed)} of {len(videos)} videos cannot be read, {unreadable:.0%} are allowed; the last: "
                    f"{next(reversed(failed.values()))}"
                )
    wanted = {str(path) for path in videos}
    labels = {path: label for path, label in done.items() if path in wanted}
    if not labels:
        raise InputError("none of the videos could be labelled")
    clashes = len(labels) - len({key_of(path) for path in labels})
    if clashes:
        raise InputError(f"{clashes} videos share the last three parts of their path, by which labels are found")
    files = write_labels(target, labels, shard)
    shutil.rmtree(parts)
    patches = sum(len(frame) for label in labels.values() for frame in label["gazing_pos"])
    return LabelReport(files, len(labels), patches, failed)


def _filled(settings: LabelConfig) -> LabelConfig:
    """With the loss that suits the task, and on the grid of a VideoMAE."""
    if settings.task == "mosaic":
        usual, grid = MOSAIC_LABEL_LOSS, settings.grid
    else:
        usual, grid = VIDEOMAE_LABEL_LOSS, find_checkpoint(settings.task, grid=settings.grid).config.grid
    target = usual if settings.target is None else settings.target
    scales = "+".join(str(side) for side, _ in grid.scales)
    return dataclasses.replace(settings, target=target, scales=scales, patch=grid.patch)


def _check_settings(parts: Path, settings: LabelConfig) -> None:
    """Raises InputError where an unfinished run was begun with something else."""
    path, mine = parts / "settings.json", dataclasses.asdict(settings)
    if settings.task != "mosaic":  # what it is, not where it lies
        mine |= {"task": "videomae", "task_weights": content_hash(find_checkpoint(settings.task).weights)}
    if not path.exists():
        write_json(path, mine)
        return
    check_same(f"{parts}: unfinished (go on with it, or remove it)", read_json(path), mine)


Found = tuple[dict[str, Label], dict[str, str]]


def _results(batches: list[list[Path]], settings: LabelConfig, workers: int, device: str) -> Iterator[Found]:
    if workers <= 1 or len(batches) <= 1:
        label = _Labeller(settings, device)
        yield from map(label, batches)
        return
    # Forked processes would inherit torch's threads in an unusable state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(settings, device)) as pool:
        running = [pool.submit(_work, batch) for batch in batches]
        try:
            for job in as_completed(running):
                yield job.result()
        except BrokenProcessPool as error:
            raise InputError("a labelling process was killed (out of memory?); run again to go on") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_work_here: Callable[[list[Path]], Found]


def _start(settings: LabelConfig, device: str) -> None:
    global _work_here
    torch.set_num_threads(1)
    _work_here = _Labeller(settings, device)


def _work(batch: list[Path]) -> Found:
    return _work_here(batch)


class _Labeller:
    """Labels a batch of files; a file that cannot be read is reported, not raised."""

    def __init__(self, settings: LabelConfig, device: str) -> None:
        self.settings, self.device = settings, torch.device(device)
        self.task = load_task(settings.task, settings.grid, device=self.device)

    def __call__(self, batch: list[Path]) -> Found:
        clips: dict[str, torch.Tensor] = {}
        failed: dict[str, str] = {}
        for path in batch:
            try:
                source = ClipSource([path], self.settings.clip, random=False, unreadable=0)
                clips[str(path)] = source.read(path)
            except InputError as error:
                failed[str(path)] = str(error)
        if not clips:
            return {}, failed
        video = self.task.normalize(torch.stack(list(clips.values())).to(self.device).float() / 255)
        budget = max(int(self.settings.max_ratio * self.task.grid.size), 1)
        budgets = torch.full(video.shape[:2], budget)
        assert self.settings.target is not None
        targets = torch.full(video.shape[:2], self.settings.target)
        if isinstance(self.task, MosaicTask):
            found = search_mosaic(self.task, video, targets, budgets)
        else:
            found = search_by_candidates(self.task, video, targets, budgets)
        return dict(zip(clips, labels_of(found, self.task.grid), strict=True)), failed


def labels_of(found: SearchResult, grid: PatchGrid) -> list[Label]:
    """A label for each row."""
    labels = []
    for ids, losses in zip(found.ids.tolist(), found.losses.tolist(), strict=True):
        positions: list[list[int]] = []
        after: list[list[float]] = []
        start = 0
        for frame, count in enumerate(found.counts):
            kept = [(i, loss) for i, loss in zip(ids[start:], losses[start : start + count], strict=False) if i >= 0]
            positions.append([i + frame * grid.size for i, _ in kept])
            after.append([round(loss, 6) for _, loss in kept])
            start += count
        labels.append(Label(gazing_pos=positions, task_losses=after))
    return labels
