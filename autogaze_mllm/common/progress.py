"""How far a video is gazed, told in frames."""

from __future__ import annotations

from collections.abc import Callable

from tqdm.auto import tqdm

Advance = Callable[[int, int], None]
"""Called with how many frames are done, and of how many."""


class FrameProgress:
    """Frames that are done, for a bar and for `advance`. Where only some tiles of several frames are done, or some of
    several variants, they count as their share: one chunk of a large video takes minutes."""

    def __init__(self, bar: tqdm, total: int, variants: int, advance: Advance | None) -> None:
        self.bar, self.total, self.variants, self.advance = bar, total, variants, advance
        self.exact, self.shown = 0.0, 0

    def add(self, frames: float) -> None:
        """Of one of the variants."""
        self.exact += frames / self.variants
        whole = min(int(self.exact + 1e-6), self.total)
        if whole > self.shown:
            self.bar.update(whole - self.shown)
            self.shown = whole
            if self.advance is not None:
                self.advance(whole, self.total)
