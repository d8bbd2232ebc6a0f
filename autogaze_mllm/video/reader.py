"""Reading the wanted frames of a video file, exactly and without holding more than a chunk of them.

Notable design decisions:
- the file is demuxed once (milliseconds) for the exact timestamps and keyframes; containers that report 0 frames or no
  duration do not matter;
- wanted frames are walked in order, and a seek happens only when it skips more than about one group of pictures;
- packets are decoded one by one, so a damaged one costs its own frames only. What is lost is counted, never replaced;
- slice threading: frame threading with an early exit has hung in the field.
"""

from __future__ import annotations

import abc
import bisect
import contextlib
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..common.compute.cancelling import check_cancelled
from ..common.errors import InputError
from .container import FileSource, VideoFile
from .sampling import sample_part
from .shown import Screen

logger = logging.getLogger(__name__)

MOST_PIXELS = 178_956_970  # of a frame, as Pillow has it for pictures; 16K has 133 million
NOT_CODED = 19  # bytes at most of an MPEG-4 picture that says nothing but that it is not coded
USUAL_FPS = 25.0  # of what says nothing about its times
Pixels = TypeVar("Pixels", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class FrameChunk(Generic[Pixels]):
    """frames: (n, height, width, 3) uint8 RGB, upright, of square pixels. indices: their numbers in the video.
    seconds: their times."""

    frames: Pixels
    indices: list[int]
    seconds: list[float]


class FrameReader(abc.ABC, Generic[Pixels]):
    """Frames of a video, by their numbers.

    name: what errors call the video. decoder: what else than PyAV or Pillow decodes it. len(reader): its frames.
    seconds: (n,) time of each, ascending. last: seconds that the last one lasts, where that is known. fps: frames a
    second on average, 0 where it is not known. lost: frames of the latest `read` that could not be decoded.
    """

    name: str
    decoder: str = ""
    seconds: np.ndarray
    last: float | None = None
    fps: float = 0.0

    def __init__(self) -> None:
        self.lost: list[int] = []

    def __len__(self) -> int:
        return len(self.seconds)

    @abc.abstractmethod
    def _pictures(self, wanted: list[int]) -> Iterator[tuple[int, Pixels]]:
        """Numbers and frames (height, width, 3) uint8 of `wanted`, in order; what does not come goes to `lost`."""

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one, which is taken to last as long as the average where
        nothing is known about it."""
        span = float(self.seconds[-1] - self.seconds[0])
        if self.last is not None:
            return span + self.last
        return span + (span / (len(self) - 1) if len(self) > 1 else 1 / (self.fps or USUAL_FPS))

    def sample(
        self, frames: int, fps: float | None = None, start: float | None = None, end: float | None = None
    ) -> list[int]:
        """Numbers of the frames to look at, see `sample_part`."""
        try:
            return sample_part(self.seconds, float(self.seconds[0]) + self.duration, frames, fps, start, end)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None

    def read(self, indices: Sequence[int] | None = None, chunk: int = 16) -> Iterator[FrameChunk[Pixels]]:
        """The frames with these numbers (all if None), ascending, in chunks of at most `chunk`.

        A frame that cannot be decoded is left out and counted in `lost`. Raises InputError when none can.
        """
        wanted = list(range(len(self))) if indices is None else sorted({int(i) for i in indices})
        if not wanted:
            raise InputError(f"{self.name}: no frame was asked for")
        if chunk < 1:
            raise InputError(f"a chunk must have at least 1 frame, got {chunk}")
        if wanted[0] < 0 or wanted[-1] >= len(self):
            bad = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise InputError(f"{self.name}: frame {bad} was asked for, the file has {len(self)}")
        self.lost = []
        given = 0
        frames: list[Pixels] = []
        numbers: list[int] = []
        for number, picture in self._pictures(wanted):
            check_cancelled()
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
                raise InputError(f"{self.name}: none of {len(wanted)} frames could be decoded")
            logger.warning("%s: damaged, %d of %d frames could not be decoded", self.name, len(self.lost), len(wanted))

    def _chunk(self, frames: list[Pixels], numbers: list[int]) -> FrameChunk[Pixels]:
        joined = np.stack(frames) if isinstance(frames[0], np.ndarray) else torch.stack(frames)
        return FrameChunk(joined, numbers, [float(self.seconds[number]) for number in numbers])


class VideoReader(FrameReader[np.ndarray]):
    """Frames of the video stream of a file that a player would show.

    source: a path, the file's bytes, or an open binary file. seconds: the first is 0. codec: the decoder's name.
    container: the names of its format, with commas. stream: the number of its stream, among all. is_picture: whether
    the file is a single picture, no video. Raises InputError when there are no frames to give.

    times: of all frames, in units of `unit` seconds, ascending; counted where they have none of their own, which timed
    says. keys: the times of keyframes. number_of: time -> number. stays: whether frames may be there that say nothing
    but that the picture stays.
    """

    def __init__(self, source: FileSource | VideoFile, threads: int | None = None) -> None:
        super().__init__()
        self.file = source if isinstance(source, VideoFile) else VideoFile(source)
        self.name = self.file.name
        self.threads = threads if threads is not None else min(os.cpu_count() or 1, 8)
        container, stream = self._open()
        with container:
            self.codec, self.container, self.stream = stream.codec_context.name, container.format.name, stream.index
            self.pixel_aspect = stream.sample_aspect_ratio
            self.unit = float(stream.time_base) if stream.time_base else 1.0
            self.stays = False
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else 0.0
            self._index(container, stream)
        alone = self.container == "image2" or self.container.endswith("_pipe")
        self.is_picture = len(self) == 1 and alone

    def _pictures(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        screen = Screen(self.pixel_aspect)
        for number, frame in self._frames(wanted):
            yield number, screen.picture(frame)

    def first(self) -> tuple[int, VideoFrame]:
        """Number of the first frame that decodes, and the frame."""
        for number, frame in self._decode_from(None):
            return number, frame
        raise InputError(f"{self.name}: none of {len(self)} frames could be decoded")

    def _open(self) -> tuple[InputContainer, VideoStream]:
        container, stream = self.file.open()
        context = stream.codec_context
        if (context.width or 0) * (context.height or 0) > MOST_PIXELS:
            container.close()
            size = f"{context.width}x{context.height}"
            raise InputError(
                f"{self.name}: frames of {size} pixels are more than memory is spent on; make them smaller"
            )
        context.options = {"max_pixels": str(MOST_PIXELS)}  # of frames that turn out to be larger in mid-stream
        stream.codec_context.thread_type = "SLICE"
        stream.codec_context.thread_count = self.threads
        return container, stream

    def _index(self, container: InputContainer, stream: VideoStream) -> None:
        """Times of all frames in display order, and of the keyframes."""
        found: list[tuple[int | None, int | None]] = []  # when each is shown, and when it is decoded
        keys: list[int] = []
        slots = 0
        self._decode_times: dict[int, int] = {}
        try:
            for packet in container.demux(stream):
                slots += packet.size > 0 or packet.pts is not None
                if not packet.size or packet.is_discard:
                    continue
                found.append((packet.pts, packet.dts))
                self.stays |= self.codec == "mpeg4" and packet.size <= NOT_CODED
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
                    self._decode_times[packet.pts] = packet.pts if packet.dts is None else packet.dts
        except av.error.FFmpegError as error:
            logger.warning("%s: cut off or damaged, what follows is lost (%s)", self.name, error.strerror)
        if not found:
            raise InputError(f"{self.name}: the video stream holds no frames")
        shown = [time for time, _ in found if time is not None]
        decoded = [time for _, time in found if time is not None]
        in_slots = container.format.name == "avi"  # where a recorder that dropped frames leaves their slots empty
        if in_slots and len(decoded) > 1:
            slots = max(slots, max(decoded) + (max(decoded) - min(decoded)) // (len(decoded) - 1))
        self._compare_with_promise(stream, slots, max(shown, default=0) * self.unit)
        # AVI has no times of presentation: where there are B-frames, those reported of frames are made up. There,
        # and where times repeat (parts were joined, each with a clock of its own), frames are counted.
        self.timed = len(set(shown)) == len(found) and not (in_slots and shown != decoded)
        self.times = sorted(shown) if self.timed else list(range(len(found)))
        self.keys = sorted(set(keys)) if self.timed else []
        self.number_of = {time: number for number, time in enumerate(self.times)}
        clock = self.times if self.timed else self._counted_times(shown, decoded) if in_slots else None
        if clock is None:
            self.seconds = np.arange(len(found)) / (self.fps or USUAL_FPS)
        else:
            self.seconds = (np.array(clock, dtype=np.float64) - clock[0]) * self.unit
            self.last = self.unit if in_slots else None

    def _counted_times(self, shown: list[int], decoded: list[int]) -> list[int] | None:
        """When the frames of an AVI are shown that are counted, ascending; None where that cannot be told."""
        count = len(self.times)
        if self.codec == "mpeg4" and len(set(shown)) == count:
            return sorted(shown)  # right as a whole
        if len(set(decoded)) < count:
            return None
        # Each lies in the slot in which the recorder's encoder let go of it.
        late = min(self._frames_held(), count - 1)
        slots = sorted(decoded)
        return slots[late:] + [slots[-1] + number for number in range(1, late + 1)]

    def _frames_held(self) -> int:
        """How many frames the decoder holds back, as the encoder did, to bring them into the order of display."""
        container, stream = self._open()
        with container, contextlib.suppress(av.error.FFmpegError):
            coded = (packet for packet in container.demux(stream) if packet.size)
            return next((number for number, packet in enumerate(coded) if packet.decode()), 0)
        return 0

    def _compare_with_promise(self, stream: VideoStream, frames: int, until: float) -> None:
        """Warns where the file says that there should be more. until: seconds of the last frame that is there."""
        duration = _promised_duration(stream)
        if frames < stream.frames - 1:
            logger.warning("%s: cut off, %d of %d frames are there", self.name, frames, stream.frames)
        elif not stream.frames and until < duration - max(0.02 * duration, 2 / (self.fps or USUAL_FPS)):
            logger.warning("%s: cut off, %.1f of %.1f seconds are there", self.name, until, duration)

    def _frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decoded frames of `wanted`, in order; those that do not come are appended to `lost`."""
        for run in self._runs(wanted):
            missing = iter(run)
            expected = next(missing)
            done = False
            for number, frame in self._decode(run):
                check_cancelled()  # many may lie between two that are wanted
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
        if len(self.keys) < 2:
            return [wanted]
        group = len(self.times) / len(self.keys)
        runs: list[list[int]] = []
        position = 0
        for number in wanted:
            keyframe = self._keyframe_of(number)
            if not runs or (self.number_of[keyframe] - position > group):
                runs.append([])
            runs[-1].append(number)
            position = number
        return runs

    def _keyframe_of(self, number: int) -> int:
        return self.keys[max(bisect.bisect_right(self.keys, self.times[number]) - 1, 0)]

    def _decode(self, run: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Numbered frames in display order, starting at or before run[0].

        A seek that lands too late (it can in MPEG-TS) is answered by decoding from the start.
        """
        keyframe = self._keyframe_of(run[0]) if self.keys else None
        if keyframe is not None and self.number_of[keyframe] > 0:
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
            latest: tuple[int, VideoFrame] | None = None
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
                else:
                    if packet is not None and not frames and self._says_as_before(packet, latest):
                        assert latest is not None
                        latest = latest[0] + 1, latest[1]
                        yield latest
                for frame in frames:
                    if not self.timed:
                        if ordinal < len(self.times):
                            yield ordinal, frame
                        ordinal += 1
                    elif frame.pts in self.number_of:
                        latest = self.number_of[frame.pts], frame
                        yield latest
                if packet is None or not packet.size:
                    return

    def _says_as_before(self, packet: Packet, latest: tuple[int, VideoFrame] | None) -> bool:
        """Whether a packet that decoded to nothing is the next one of MPEG-4 and says only that the picture stays."""
        if latest is None or packet.pts is None or not self.timed or self.codec != "mpeg4":
            return False
        return packet.size <= NOT_CODED and self.number_of.get(packet.pts) == latest[0] + 1


def _promised_duration(stream: VideoStream) -> float:
    """Seconds that a Matroska stream says it lasts, in its tags; 0 if it does not say."""
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def _advance(numbers: Iterator[int]) -> tuple[int, bool]:
    """(the next number, False), or (-1, True) when there is none."""
    number = next(numbers, None)
    return (-1, True) if number is None else (number, False)
