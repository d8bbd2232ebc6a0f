"""Reading the wanted frames of a video file, exactly and without holding more than a chunk of them.

Notable design decisions:
- the file is demuxed once (milliseconds) for the exact timestamps and keyframes; containers that report 0 frames or no
  duration do not matter;
- wanted frames are walked in order, and a seek happens only when it skips more than about one group of pictures;
- packets are decoded one by one, so a damaged one costs its own frames only. What is lost is counted, never replaced;
- slice threading: frame threading with an early exit has hung in the field.
"""

from __future__ import annotations

import bisect
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..common.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameChunk:
    """frames: (n, height, width, 3) uint8 RGB, upright. indices: their numbers in the file. seconds: their times."""

    frames: np.ndarray
    indices: list[int]
    seconds: list[float]


class VideoReader:
    """Frames of the first real video stream of a file.

    len(reader): frames in the file. seconds: (n,) time of each, the first one at 0. lost: frames of the latest `read`
    that could not be decoded. Raises InputError when the file has no frames to give.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path = Path(path)
        self.threads = threads if threads is not None else min(os.cpu_count() or 1, 8)
        self.lost: list[int] = []
        if not os.path.exists(self.path):
            raise InputError(f"{self.path}: no such file")
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a folder, expected a video file")
        container, stream = self._open()
        with container:
            self.codec = stream.codec_context.name
            self._unit = float(stream.time_base) if stream.time_base else 1.0
            rate = stream.average_rate or stream.guessed_rate
            self._index(container, stream)
        self.fps = float(rate) if rate else 0.0
        if not self._times:
            raise InputError(f"{self.path}: the video stream holds no frames")
        if self._timed:
            self.seconds = (np.array(self._times, dtype=np.float64) - self._times[0]) * self._unit
        else:
            self.seconds = np.arange(len(self._times)) / (self.fps or 25.0)

    def __len__(self) -> int:
        return len(self._times)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one, taken to last as long as the average."""
        span = float(self.seconds[-1])
        return span + (span / (len(self) - 1) if len(self) > 1 else 1 / (self.fps or 25.0))

    def read(self, indices: Sequence[int] | None = None, chunk: int = 16) -> Iterator[FrameChunk]:
        """The frames with these numbers (all if None), ascending, in chunks of at most `chunk`.

        A frame that cannot be decoded is left out and counted in `lost`. Raises InputError when none can.
        """
        wanted = list(range(len(self))) if indices is None else sorted({int(i) for i in indices})
        if not wanted:
            raise InputError(f"{self.path}: no frame was asked for")
        if chunk < 1:
            raise InputError(f"a chunk must have at least 1 frame, got {chunk}")
        if wanted[0] < 0 or wanted[-1] >= len(self):
            bad = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise InputError(f"{self.path}: frame {bad} was asked for, the file has {len(self)}")
        self.lost = []
        given = 0
        frames: list[np.ndarray] = []
        numbers: list[int] = []
        for number, frame in self._frames(wanted):
            picture = _upright(frame)
            if frames and picture.shape != frames[0].shape:  # the resolution changes in mid-stream
                given += len(frames)
                yield self._chunk(frames, numbers)
                frames, numbers = [], []
            frames.append(picture)
            numbers.append(number)
            if len(frames) == chunk:
                given += chunk
                yield self._chunk(frames, numbers)
                frames, numbers = [], []
        if frames:
            given += len(frames)
            yield self._chunk(frames, numbers)
        if self.lost:
            if not given:
                raise InputError(f"{self.path}: none of {len(wanted)} frames could be decoded")
            logger.warning("%s: damaged, %d of %d frames could not be decoded", self.path, len(self.lost), len(wanted))

    def _chunk(self, frames: list[np.ndarray], numbers: list[int]) -> FrameChunk:
        return FrameChunk(np.stack(frames), numbers, [float(self.seconds[number]) for number in numbers])

    def _open(self) -> tuple[InputContainer, VideoStream]:
        try:
            container = av.open(str(self.path))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{self.path}: not a readable video ({reason})") from error
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            container.close()
            raise InputError(f"{self.path}: has no video stream (found: {found})")
        stream = streams[0]
        if stream.codec_context is None:
            container.close()
            raise InputError(f"{self.path}: no decoder for its video stream")
        stream.codec_context.thread_type = "SLICE"
        stream.codec_context.thread_count = self.threads
        return container, stream

    def _index(self, container: InputContainer, stream: VideoStream) -> None:
        """Timestamps of all frames in display order, and those of the keyframes."""
        times: list[int] = []
        keys: list[int] = []
        untimed = found = 0
        self._decode_times: dict[int, int] = {}
        try:
            for packet in container.demux(stream):
                found += packet.size > 0 or packet.pts is not None
                if not packet.size or packet.is_discard:
                    continue
                if packet.pts is None:
                    untimed += 1
                    continue
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                    self._decode_times[packet.pts] = packet.pts if packet.dts is None else packet.dts
        except av.error.FFmpegError as error:
            logger.warning("%s: cut off or damaged, what follows is lost (%s)", self.path, error.strerror)
        promised = stream.frames or _promised_frames(stream)
        if found < promised - 1:
            logger.warning("%s: cut off, %d of %d frames are there", self.path, found, promised)
        # AVI has no presentation times: what it reports is wrong where there are B-frames. Frames are counted instead.
        # So are frames whose times repeat: parts that were joined, each with a clock of its own.
        self._timed = untimed == 0 and container.format.name != "avi" and len(set(times)) == len(times)
        self._times = sorted(set(times)) if self._timed else list(range(untimed + len(times)))
        self._keys = sorted(set(keys)) if self._timed else []
        self._number = {time: number for number, time in enumerate(self._times)}

    def _frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decoded frames of `wanted`, in order; those that do not come are appended to `lost`."""
        for run in self._runs(wanted):
            missing = iter(run)
            expected = next(missing)
            done = False
            for number, frame in self._decode(run):
                while not done and expected < number:
                    self.lost.append(expected)
                    expected, done = _advance(missing)
                if done:
                    break
                if expected == number:
                    yield number, frame
                    expected, done = _advance(missing)
                    if done:
                        break
            if not done:
                self.lost += [expected, *missing]

    def _runs(self, wanted: list[int]) -> list[list[int]]:
        """Cuts the wanted frames where a seek pays: more than one average group of pictures is skipped."""
        if len(self._keys) < 2:
            return [wanted]
        group = len(self._times) / len(self._keys)
        runs: list[list[int]] = []
        position = 0
        for number in wanted:
            keyframe = self._keyframe_of(number)
            if not runs or (self._number[keyframe] - position > group):
                runs.append([])
            runs[-1].append(number)
            position = number
        return runs

    def _keyframe_of(self, number: int) -> int:
        return self._keys[max(bisect.bisect_right(self._keys, self._times[number]) - 1, 0)]

    def _decode(self, run: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Numbered frames in display order, starting at or before run[0].

        A seek that lands too late (it can in MPEG-TS) is answered by decoding from the start.
        """
        keyframe = self._keyframe_of(run[0]) if self._keys else None
        if keyframe is not None and self._number[keyframe] > 0:
            frames = self._decode_from(keyframe)
            first = next(frames, None)
            if first is not None and first[0] <= run[0]:
                yield first
                yield from frames
                return
            frames.close()
        yield from self._decode_from(None)

    def _decode_from(self, keyframe: int | None) -> Generator[tuple[int, VideoFrame], None, None]:
        container, stream = self._open()
        with container:
            if keyframe is not None:
                try:
                    # MPEG-TS is searched by decoding times; with B-frames the display time lands too late.
                    late = container.format.name == "mpegts"
                    container.seek(self._decode_times[keyframe] if late else keyframe, stream=stream, backward=True)
                except av.error.FFmpegError:
                    return  # the caller falls back to decoding from the start
            ordinal = 0
            started = keyframe is None
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                except av.error.FFmpegError:  # the file ends in mid-packet
                    packet = None
                if not started and packet is not None and packet.size:
                    if not packet.is_keyframe:
                        continue  # some decoders make a picture of it all the same
                    if packet.pts is None or (keyframe is not None and packet.pts > keyframe):
                        return  # landed too late
                    started = True
                try:
                    # None at the end of the file: what the decoder still holds comes out.
                    frames = packet.decode() if packet is not None else stream.codec_context.decode(None)
                except av.error.FFmpegError:
                    frames = []
                for frame in frames:
                    if not self._timed:
                        if ordinal < len(self._times):
                            yield ordinal, frame
                        ordinal += 1
                    elif frame.pts in self._number:
                        yield self._number[frame.pts], frame
                if packet is None or not packet.size:
                    return


def _promised_frames(stream: VideoStream) -> int:
    """Frames that a Matroska file says it has, by the duration in its tags and the rate; 0 if it does not say."""
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        duration = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0
    # What is there may be unevenly spaced, so only a clear shortage in time counts as frames that are missing.
    return int(duration * float(stream.average_rate or 0) * 0.98)


def _advance(numbers: Iterator[int]) -> tuple[int, bool]:
    """(the next number, False), or (-1, True) when there is none."""
    number = next(numbers, None)
    return (-1, True) if number is None else (number, False)


def _upright(frame: VideoFrame) -> np.ndarray:
    """RGB (height, width, 3) uint8 with the rotation of the display matrix applied."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
