"""Decoding frames without asking the device anything, in steps that can be captured once and replayed.

Starting the operations of a step of ten tokens takes an accelerator's host far longer than the device needs to run
them. So everything that a step reads or writes lies in buffers that never move, nothing depends on a number of the
host, and rows that have finished stay. On CUDA such a step is recorded as a graph when it comes for the second time,
one for each number of rows (padded to a bucket) and, where masks are made, each upper bound of the slots in use;
compiled it is on demand. In half precision on CUDA there are no masks, see `gpu_decoder.py`.

Shapes: B rows, P prompt tokens per frame, C channels, K ids per evaluation, V ids, id V - 1 = end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from ....common.compute.compiling import Compiled, may_vary
from ....common.compute.varlen import can_run
from ....common.errors import InputError
from ..config import AutoGazeConfig
from ..decoder import GazeDecoder
from ..encoder import ConvState
from .cuda_graphs import Capture, Recorder, default_capture
from .fused_decoder import FusedDecoder
from .guidance import Guidance, Guide, Watched
from .kv_cache import KeyValueCache
from .sampling import Sampling, pick, real_first, unfed_first
from .state import GazeState

if TYPE_CHECKING:
    from .gpu_decoder import GpuDecoder

SLOTS = 256  # the bound of the slots in use moves in steps of this size
KEPT = 2  # engines that a model keeps for later calls, usually those of a full micro-batch and of what remained
PATIENCE = 16  # calls for each engine beyond these
SHARE = 16  # one part in so many of a device's memory is what a kept engine may hold


class DeviceFrames:
    """Buffers of a number of rows and slots, and the three functions that work on them: prefill, step, choose.

    rows: room for so many; capacity: slots of a row; most: patches of a frame at most.
    """

    def __init__(
        self,
        decoder: GazeDecoder,
        config: AutoGazeConfig,
        rows: int,
        capacity: int,
        most: int,
        like: torch.Tensor,
        capture: Capture,
        guidance: Guidance | None = None,
    ) -> None:
        shape, step = config.decoder, config.heads_per_step
        self.config, self.rows, self.capture, self.device = config, rows, capture, like.device
        self.capacity = -(-capacity // SLOTS) * SLOTS
        self.columns = -(-most // step) * step
        self.kernels = _kernels(like.device) if capture != "compile" else None
        packed = self.kernels is not None and can_run(like[..., : shape.head_size])
        self.cache = KeyValueCache(
            shape.num_hidden_layers, rows, self.capacity, shape.kv_heads, shape.head_size, like, slots_first=packed
        )
        self.gpu: GpuDecoder | None = None
        if packed:
            from .gpu_decoder import GpuDecoder

            self.gpu = GpuDecoder(decoder, self.capacity, rows, (step, step + config.num_prompt_tokens))
        self.fused = self.gpu or FusedDecoder(decoder, self.capacity)
        self.slots, self.heads = self._whole(self.capacity).cumsum(0), torch.arange(step, device=like.device)
        self.slots -= 1
        self.vision = like.new_zeros(rows, config.num_prompt_tokens, shape.hidden_size)
        self.readout = like.new_zeros(rows, shape.hidden_size)
        self.loss_threshold = torch.zeros(rows, device=like.device)  # the stop rule's bound, -inf where there is none
        self.left = self._whole(rows)  # the budget of the frame
        self.at = self._whole()  # entries of the frame so far
        self.active = self._whole(rows).bool()
        self.used = self._whole(rows, config.end_id + 1).bool()
        self.entries, self.prompt_end, self.unfed_counts = (self._whole(rows) for _ in range(3))
        self.ids, self.unfed = self._whole(rows, step), self._whole(rows, step)
        self.chosen, self.drawn = self._whole(rows, self.columns), self._whole(rows, self.columns)
        self.guide = None if guidance is None else Guide(guidance, rows, like.device)
        # Of the class: bound to this object they would keep it, and its memory, until the garbage collector comes.
        self.functions: dict[str, Callable[..., None]] = {
            "prefill": DeviceFrames._prefill,
            "step": DeviceFrames._step,
            "choose": DeviceFrames._choose,
        }
        if capture == "compile":
            self.functions = {name: Compiled(function) for name, function in self.functions.items()}
        records = like.device.type == "cuda" and capture != "off"
        self.recorder = Recorder(like.device, self.buffers()) if records else None
        self.lock = threading.Lock()
        self.longest = 0  # upper bound of the row lengths
        self.batch = rows

    def _whole(self, *shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.long, device=self.device)

    def buffers(self) -> list[torch.Tensor]:
        own = [*vars(self).values(), *self.cache.keys, *self.cache.values, self.cache.lengths]
        own += [] if self.guide is None else self.guide.buffers()
        return [part for part in own if isinstance(part, torch.Tensor)]

    def begin(self, batch: int, watched: Watched | None) -> None:
        """Forgets the call before and takes over what the weights are now. batch: rows that are in use."""
        self.batch = batch
        if self.guide is not None and watched is not None:
            self.guide.begin(watched)
        self.fused.refresh()
        if self.gpu is None:
            for part in self.cache.keys + self.cache.values:
                part.zero_()  # what a mask hides has the weight 0, but 0 times NaN is NaN
        self.cache.lengths.zero_()
        self.unfed.fill_(self.config.end_id)
        self.unfed_counts.zero_()
        self.longest = 0

    def restore(self, state: GazeState) -> None:
        self.cache.restore(state.keys, state.values, state.lengths)
        self.unfed[: len(state.unfed)] = state.unfed
        self.unfed_counts[: len(state.unfed)] = state.unfed_counts
        self.longest = state.keys[0].shape[2]

    def frame(
        self,
        vision: torch.Tensor,
        budgets: torch.Tensor,
        loss_threshold: torch.Tensor | None,
        sampling: Sampling | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `HostFrames.frame`; budgets lie on the host. The device is waited for once, and only with a stop rule."""
        batch, step = self.batch, self.config.heads_per_step
        steps = -(-int(budgets.max()) // step)
        self.vision[:batch] = vision
        self.left.zero_()
        self.left[:batch] = budgets.to(self.device, non_blocking=True)
        self.loss_threshold.fill_(-torch.inf)
        if loss_threshold is not None:
            self.loss_threshold[:batch] = loss_threshold
        if self.guide is not None:
            self.guide.next_frame()
        self._run("prefill", step + vision.shape[1])
        for number in range(steps):
            if sampling is not None:
                self._choose(sampling)
                if number < steps - 1:
                    self._feed(self._held(step))
            elif number < steps - 1:
                self._run("step", step)
            else:
                self._run("choose")
        if self.guide is not None:
            self.guide.finish()
        width = int(budgets.max())
        if loss_threshold is not None or self.guide is not None:
            width, self.longest = torch.stack([self.entries.max(), self.cache.lengths[:batch].max()]).tolist()
        return self.chosen[:batch, :width].clone(), self.drawn[:batch, :width].clone(), self.entries[:batch].clone()

    def state(self, conv: ConvState) -> GazeState:
        rows = self.batch
        unfed, canvas = self.unfed[:rows].clone(), None if self.guide is None else self.guide.canvas
        return GazeState(*self.cache.saved(rows), unfed, self.unfed_counts[:rows].clone(), conv, canvas)

    def _held(self, new: int) -> torch.Tensor:
        """The slots that may be in use after `new` more tokens; their number is rounded up, so that few differ."""
        if self.gpu is not None:
            return self.slots  # each row is read up to its own length
        self.longest += new
        held = self.slots[: min(-(-self.longest // SLOTS) * SLOTS, self.capacity)]
        if self.capture == "compile":
            may_vary(held, 0)
        return held

    def _run(self, name: str, new: int = 0) -> None:
        arguments = (self._held(new),) if new else ()
        function = self.functions[name]
        if self.recorder is None:
            function(self, *arguments)
        else:
            self.recorder((name, *map(len, arguments)), lambda: function(self, *arguments))

    def _evaluate(self, x: torch.Tensor, positions: torch.Tensor, readout: torch.Tensor, held: torch.Tensor) -> None:
        """Feeds x (B, q, C) to all rows."""
        if self.gpu is not None:
            self.readout.copy_(self.gpu.feed(x, positions, readout, self.cache))
            return
        slots = self.cache.lengths[:, None] + torch.arange(x.shape[1], device=self.device)
        attend = self.cache.attend_by_slots(slots, readout, held)
        self.readout.copy_(self.fused(x, positions, attend, readout))

    def _prefill(self, held: torch.Tensor) -> None:
        """Feeds the unfed ids and the frame's vision tokens, and starts a frame."""
        source = torch.cat([self.fused.embed(self.unfed), self.vision], dim=1)
        x = unfed_first(source, self.unfed_counts, self.unfed.shape[1])
        positions = self.cache.lengths[:, None] + torch.arange(x.shape[1], device=self.device)
        real = self.unfed_counts + self.vision.shape[1]
        self._evaluate(x, positions, real - 1, held)
        self.cache.lengths.add_(real)
        self.prompt_end.copy_(self.cache.lengths)
        self.used.zero_()
        self.used[:, self.config.end_id] = True  # the end id is never chosen
        self.active.fill_(True)
        self.at.zero_()
        self.entries.zero_()
        self.chosen.fill_(self.config.end_id)
        self.drawn.fill_(self.config.end_id)

    def _step(self, held: torch.Tensor) -> None:
        self._choose()
        self._feed(held)

    def _choose(self, sampling: Sampling | None = None) -> None:
        """Up to K ids of every row from what was read out."""
        step, end = self.config.heads_per_step, self.config.end_id
        if self.kernels is not None and sampling is None and self.guide is None:
            scores = self.fused.lm_head(self.readout).unflatten(-1, (step, -1))
            self.kernels.choose(
                scores,
                self.fused.losses(self.readout),
                self.loss_threshold,
                self.left,
                self.at,
                self.active,
                self.used,
                self.ids,
                self.unfed,
                self.unfed_counts,
                self.entries,
                self.chosen,
                self.drawn,
            )
            self.at.add_(step)
            return
        column = self.at + self.heads
        allowed = self.active[:, None] & (column < self.left[:, None])  # (B, K)
        scores = self.fused.next_ids(self.readout)
        # Every frame keeps at least one patch: its first head does not ask.
        met = (self.fused.losses(self.readout) <= self.loss_threshold[:, None]) & (column > 0)
        if self.guide is None:
            picks = pick(scores, self.used, sampling, on_host=False)
        else:
            measures = self.guide.guidance.measures_loss
            met = torch.zeros_like(met) if measures else met
            threshold = self.loss_threshold if measures else None
            picks, done = self.guide.choose(scores, self.used, allowed & ~met, threshold, self.at > 0)
            met = met | done
        real = allowed & ~met
        finished = (self.at + step >= self.left) | (met & allowed).any(dim=1)
        self.ids.copy_(torch.where(real, picks, end))
        self.chosen.index_copy_(1, column, self.ids)
        self.drawn.index_copy_(1, column, torch.where(allowed, picks, end))
        self.entries.add_(allowed.sum(dim=1))
        stopping = self.active & finished
        self.unfed.copy_(torch.where(stopping[:, None], real_first(self.ids, end), self.unfed))
        self.unfed_counts.copy_(torch.where(stopping, real.sum(dim=1), self.unfed_counts))
        self.active.logical_and_(~finished)
        self.at.add_(step)

    def _feed(self, held: torch.Tensor) -> None:
        """The ids chosen last, to all rows; of a row that has finished they lie behind what it has in use."""
        step = self.config.heads_per_step
        base = self.prompt_end - step if self.config.repeat_step_positions else self.cache.lengths
        readout = torch.full_like(base, step - 1)
        self._evaluate(self.fused.embed(self.ids), base[:, None] + self.heads, readout, held)
        self.cache.lengths.add_(step * self.active)


def _kernels(device: torch.device) -> ModuleType | None:
    """Our own kernels, where they can run."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from . import kernels

    return kernels


class _Engines:
    """The engines that a model keeps for later calls, locked while they are lent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: list[tuple[tuple[object, ...], DeviceFrames]] = []  # the one lent last comes first
        self.refused: set[tuple[object, ...]] = set()  # kinds whose recordings failed
        self.last: tuple[object, ...] | None = None  # what was asked for before
        self.asked = self.built = 0

    def acquire(
        self,
        kind: tuple[object, ...],
        weights: tuple[object, ...],
        size: tuple[int, int],
        fits: Callable[[DeviceFrames], bool],
        build: Callable[[], DeviceFrames],
        stack: contextlib.ExitStack,
    ) -> DeviceFrames | None:
        """One of this kind that works on these weights, until `stack` closes. None: do without.

        What recording costs, many calls must save. So a caller that asks for ever other kinds, moves its weights from
        call to call, or lets its state grow, gets a new engine only once in PATIENCE calls; one who asks for the same
        kind and `size` twice in a row is likely to go on with it.
        """
        with self.lock:
            self.asked += 1
            settled, self.last = self.last == (kind, weights, size), (kind, weights, size)
            engine = next((e for known, e in self.kept if known == (kind, weights) and fits(e)), None)
            if engine is None:
                if kind in self.refused or not (settled or self.built < KEPT or self.asked >= PATIENCE * self.built):
                    return None
                self.built += 1
                self.kept = [(known, other) for known, other in self.kept if known[0] != kind][: KEPT - 1]
                try:
                    engine = build()
                except torch.OutOfMemoryError:
                    return None
            if not engine.lock.acquire(blocking=False):
                return None
            self.kept = [((kind, weights), engine), *(pair for pair in self.kept if pair[1] is not engine)]
            stack.callback(self._take_back, kind, engine)
            return engine

    def _take_back(self, kind: tuple[object, ...], engine: DeviceFrames) -> None:
        with self.lock:
            if engine.recorder is not None and not engine.recorder.works:
                self.refused.add(kind)
                self.kept = [pair for pair in self.kept if pair[1] is not engine]
            engine.lock.release()


_ENGINES: WeakKeyDictionary[GazeDecoder, _Engines] = WeakKeyDictionary()
_ENGINES_LOCK = threading.Lock()


def _bucket(rows: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... rows."""
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if rows <= power * 3 // 4 else power


def _worth_keeping(config: AutoGazeConfig, rows: int, capacity: int, like: torch.Tensor) -> bool:
    """Buffers that outlive a call are memory that others on the device do not have."""
    if like.device.type != "cuda":
        return True
    shape = config.decoder
    numbers = 2 * shape.num_hidden_layers * shape.kv_heads * shape.head_size * rows * capacity
    return numbers * like.itemsize <= torch.cuda.get_device_properties(like.device).total_memory // SHARE


@contextlib.contextmanager
def borrowed(
    decoder: GazeDecoder,
    config: AutoGazeConfig,
    batch: int,
    capacity: int,
    most: int,
    like: torch.Tensor,
    capture: Capture | None,
    watched: Watched | None = None,
) -> Iterator[DeviceFrames]:
    """An engine with room for `batch` rows, for one call: one of the model's, where it captures, else a new one."""
    if capture == "graphs" and like.device.type != "cuda":
        raise InputError(f"capture='graphs' means CUDA graphs, the gaze model is on {like.device}")
    chosen = capture or default_capture(like.device)
    guidance = None if watched is None else watched.guidance

    def build(rows: int, chosen: Capture) -> DeviceFrames:
        return DeviceFrames(decoder, config, rows, capacity, most, like, chosen, guidance)

    # Buffers outlive the call, so they must not be what inference mode makes of tensors.
    with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
        engine, rows = None, _bucket(batch)
        if chosen != "off" and _worth_keeping(config, rows, capacity, like):
            with _ENGINES_LOCK:
                engines = _ENGINES.setdefault(decoder, _Engines())
            stream = torch.cuda.current_stream(like.device) if like.device.type == "cuda" else None
            engine = engines.acquire(
                (rows, chosen, like.device, like.dtype, stream, guidance),
                tuple(weight.data_ptr() for weight in decoder.parameters()),
                (capacity, most),
                lambda engine: engine.capacity >= capacity and engine.columns >= most,
                lambda: build(rows, chosen),
                stack,
            )
        engine = engine or build(batch, "off")
        engine.begin(batch, watched)
        try:
            yield engine
        finally:
            if engine.guide is not None:
                engine.guide.end()
