"""The processes of a run, under `accelerate launch`, `torchrun` or alone.

`Shard`: which part of the work this process does, by what the launcher says. The functions: who this one is and what
they tell each other; until they know each other, each is alone, and all of it is trivial.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from ..errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Process `rank` of `world`; `local_rank` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InputError(f"process {self.rank} of {self.world}: RANK must lie in [0, WORLD_SIZE)")

    @classmethod
    def from_environment(cls) -> Shard:
        """As the launchers tell it."""
        try:
            rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
            return cls(rank, world, int(os.environ.get("LOCAL_RANK", 0)))
        except ValueError as error:
            raise InputError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error})") from error

    def part(self, groups: Mapping[str, Sequence[T]]) -> dict[str, Sequence[T]]:
        """This process's videos: each goes to the process with the fewest questions so far. It depends on the whole
        list alone, so that processes agree without talking, however much is done already."""
        loads = [0] * self.world
        mine = {}
        for video, questions in groups.items():
            chosen = loads.index(min(loads))
            loads[chosen] += len(questions)
            if chosen == self.rank:
                mine[video] = questions
        return mine


@contextmanager
def launched(shard: Shard) -> Iterator[None]:
    """Inside, the processes of `torchrun` or `accelerate launch` know each other; they end together, because the
    launcher ends all when one of them fails. Processes that are only numbered (of a job array, say) stay alone."""
    together = shard.world > 1 and "MASTER_ADDR" in os.environ and not started()
    if together:
        dist.init_process_group("gloo", timeout=timedelta(days=365))  # one may have far more to do than another
    yield
    if together:
        finish()


def started() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if started() else 0


def is_first() -> bool:
    """Whether this process speaks for all, by what its launcher says: true of one process also after the end."""
    return int(os.environ.get("RANK", 0)) == 0


def count() -> int:
    return dist.get_world_size() if started() else 1


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_count() -> int:
    """Processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks. Everyone must call it."""
    if not started() or count() == 1:
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values


def merged(part: dict[Any, Any]) -> dict[Any, Any]:
    """The dictionaries of all processes in one."""
    return {name: value for values in gathered(part) for name, value in values.items()}


def wait() -> None:
    """Until all processes are here."""
    if started() and count() > 1:
        dist.barrier()


def finish() -> None:
    """Ends communication in an orderly way. Leaving it to the interpreter's exit lets a background thread of gloo or
    NCCL meet objects that are already gone, which can abort a process that has done all its work."""
    if started():
        dist.barrier()
        dist.destroy_process_group()
