"""What every selector answers, and what is taken to be so of an object that only selects."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from ...common.errors import InputError
from ..grid import DEFAULT_GRID, PatchGrid
from ..ratio import Ratio
from ..selection import GazingInfo
from ..settings import VideoSettings

# Units of losses, besides the names of other reconstruction tasks.
PUBLISHED_LOSS = "videomae"  # what the published gaze model predicts
PIXEL_LOSS = "pixels"  # root mean square error, black to white is 1


class AnySelector(Protocol):
    """The least that a selector has. An object of the user's own may also have a `name` and a `default_loss`; what else
    `Selector` answers is answered for it by `as_selector`."""

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        """As in `Selector`."""
        ...


class Selector:
    """Base class of the selectors. Only `select` has to be written; the other answers hold for any selector.

    `thread_safe` and `identity` are promises of a class about itself: one that derives from it may select otherwise,
    so it does not inherit them.
    """

    name: str = ""
    """In reports and errors; "": the name of the class."""
    default_loss: float | None = None
    """The stop rule used when none is given, in the selector's own unit (None: no stop rule)."""
    loss_unit: str = ""
    """What its losses are measured in: PUBLISHED_LOSS, PIXEL_LOSS, the name of a reconstruction task, or "": else."""
    grid: PatchGrid = DEFAULT_GRID
    """What it selects on where nobody asks for another grid."""
    thread_safe: bool = False
    """Whether `select` may run in several threads at once."""
    after_tower: bool = False
    """Whether the ratio limits the tokens after the tower, and not the patches before it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for promise in ("thread_safe", "identity"):
            if promise not in vars(cls):
                setattr(cls, promise, vars(Selector)[promise])

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        """frames (B, T, 3, H, W) in [0, 1] at the grid's largest scale -> positions on `grid`.

        ratio: share of the patches that a frame may keep, one number or one per frame. loss: stop rule or None.
        A clip's result depends on that clip alone.
        """
        raise NotImplementedError(f"{type(self).__name__} has no select()")

    def check_grid(self, grid: PatchGrid) -> None:
        """Raises InputError for a grid that it cannot select on."""

    def identity(self) -> dict[str, Any] | None:
        """Json values that decide its results, as no other selector has them. None: they are not known, so nothing that
        it selects is cached."""
        return None

    def ending_at(self, gain: float) -> Selector:
        """The selector with another rule beside its loss: a frame ends once no patch would bring more than `gain` that
        can be seen. It stays itself as it is. Raises InputError where it does not know what patches bring."""
        raise InputError(
            f"{selector_name(self)} does not measure what patches bring: gain goes with greedy, and with gaze models "
            "that are guided (reward_guidance), as the bundled one is"
        )

    def moved(self, device: torch.device | str | None, dtype: torch.dtype | None) -> Selector:
        """The selector on this device, with values of this type (None: as they are). It stays itself as it is: somebody
        else may be using it."""
        return self

    def store(self, folder: Path) -> dict[str, Any]:
        """Writes into the folder of a saved model what it takes to have the selector again.

        -> its entry in the settings file: {"name": ...} and what `restored` needs, or {"folder": ...} of a gaze model.
        """
        return {"name": selector_name(self)}

    @classmethod
    def restored(cls, entry: dict[str, Any]) -> Selector:
        """The selector of such an entry; only of one that has a name in the registry."""
        return cls()


class _Foreign(Selector):
    """Answers for an object that only selects."""

    def __init__(self, selector: AnySelector) -> None:
        self._selector = selector
        self.name = selector_name(selector)
        self.default_loss = getattr(selector, "default_loss", None)

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        return self._selector.select(frames, grid, ratio, loss)


def is_selector(found: object) -> bool:
    return not isinstance(found, type) and callable(getattr(found, "select", None))


def as_selector(selector: AnySelector) -> Selector:
    """The selector itself, or what answers for an object that only selects. Raises InputError for anything else."""
    if isinstance(selector, Selector):
        return selector
    if not is_selector(selector):
        raise InputError(f"{selector!r} is not a selector: it has no select()")
    return _Foreign(selector)


def selector_name(selector: AnySelector) -> str:
    return getattr(selector, "name", "") or type(selector).__name__


def ending_at(gain: float | None, selector: AnySelector) -> AnySelector:
    """What settings with this gain select with (None: the selector as it is)."""
    return selector if gain is None else as_selector(selector).ending_at(gain)


def stop_rule(loss: float | None, selector: AnySelector, settings: VideoSettings) -> float | None:
    """The loss in force: `loss`, or the selector's default where it is None and no gain is to end a frame instead.
    Returns None for no stop rule (0)."""
    answers = as_selector(selector)
    if loss is None and settings.gain is not None:
        return None
    default = settings.predicted_loss if answers.loss_unit == PUBLISHED_LOSS else answers.default_loss
    chosen = default if loss is None else loss
    return None if chosen == 0 else chosen
