"""How much a selection may keep: the settings that a measurement goes through, by their published names."""

from __future__ import annotations

from dataclasses import dataclass

from ...common.errors import InputError

PUBLISHED = "ratio_0.10,ratio_0.25,ratio_0.50,ratio_0.75,ratio_1.00,task_0.70,ratio_0.75_task_0.70"


@dataclass(frozen=True)
class Setting:
    """`ratio_R`, `task_L` or `ratio_R_task_L`: the share of a frame's patches at most, and the loss to stop at.

    ratio: 1 where none was asked for; limited: whether one was.
    """

    name: str
    ratio: float = 1.0
    loss: float | None = None
    limited: bool = True

    @classmethod
    def parse(cls, name: str) -> Setting:
        parts = name.strip().split("_")
        try:
            values = {key: float(value) for key, value in zip(parts[::2], parts[1::2], strict=True)}
        except ValueError:
            values = {}
        known = bool(values) and values.keys() <= {"ratio", "task"} and len(parts) == 2 * len(values)
        if not known or not 0 < values.get("ratio", 1.0) <= 1 or not 0 <= values.get("task", 0.0) < float("inf"):
            raise InputError(f"setting {name!r}: expected ratio_0.25, task_0.70 or ratio_0.75_task_0.70")
        return cls(name.strip(), values.get("ratio", 1.0), values.get("task"), "ratio" in values)

    @property
    def short(self) -> str:
        """Beside a point of a plot: `0.25`, `loss 0.7` or `0.75, loss 0.7`."""
        return self._words("")

    @property
    def words(self) -> str:
        """Where it stands alone: `ratio 0.25`, `loss 0.7` or `ratio 0.75, loss 0.7`."""
        return self._words("ratio ")

    def _words(self, before: str) -> str:
        ratio = f"{self.ratio:.2f}" if round(self.ratio, 2) == self.ratio else f"{self.ratio:g}"
        parts = [f"{before}{ratio}"] if self.limited else []
        return ", ".join(parts if self.loss is None else [*parts, f"loss {self.loss:g}"])


def parse_settings(names: str) -> list[Setting]:
    """Settings with commas between them, each once."""
    return [Setting.parse(name) for name in dict.fromkeys(names.split(","))]
