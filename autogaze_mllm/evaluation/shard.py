"""Which part of a run this process does, under `accelerate launch`, `torchrun` or alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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
