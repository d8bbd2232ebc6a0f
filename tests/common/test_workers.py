"""Clips side by side on the cores, and pictures read ahead: same results, bounded memory, nothing left behind."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.common.compute.workers import CoreWorkers, Prefetch
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

CPU = torch.device("cpu")


@pytest.fixture
def three_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_workers_run_on_one_core_each_and_leave_the_others_alone(three_cores: None) -> None:
    found: list[int] = []
    with CoreWorkers(CPU) as workers:
        assert workers.count == 3
        seen = list(workers.map(lambda n: (n, threading.get_ident(), torch.get_num_threads()), range(30)))
        late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        late.start()
        late.join()
        assert torch.get_num_threads() == 3
    assert [n for n, _, _ in seen] == list(range(30))
    assert {cores for _, _, cores in seen} == {1} and threading.get_ident() not in {who for _, who, _ in seen}
    assert found == [3], "threads of others have all cores"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("core")]


def test_an_error_in_a_worker_reaches_the_caller(three_cores: None) -> None:
    def fail(number: int) -> int:
        if number == 2:
            raise am.InputError("clip 2 is broken")
        return number

    with pytest.raises(am.InputError, match="clip 2"), CoreWorkers(CPU) as workers:
        list(workers.map(fail, range(100)))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("gaze", ["pixel-diff", "random"])
def test_cores_change_no_result(gaze: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving_scene(320, 240, 20), fps=10)
    settings = am.preset("fast").changed(frames=20, max_tiles=6, ratio=0.2, thumbnails=3)
    before, results = torch.get_num_threads(), []
    try:
        for cores in (1, 3):
            torch.set_num_threads(cores)
            results.append(am.gaze_video(tmp_path / "clip.mp4", gaze, settings))
    finally:
        torch.set_num_threads(before)
    one, three = results
    assert torch.equal(one.positions, three.positions) and torch.equal(one.frame_counts, three.frame_counts)
    torch.testing.assert_close(one.patches, three.patches)


def test_a_selector_of_the_users_own_runs_where_it_was_called(three_cores: None, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving_scene(160, 120, 4), fps=10)
    where: set[int] = set()

    class Own(am.PixelDiffSelector):
        def select(self, *arguments, **options):  # type: ignore[no-untyped-def]
            where.add(threading.get_ident())
            return super().select(*arguments, **options)

    class Threads(Own):
        thread_safe = True

    class Plain:  # no base class, and nothing but what it is called for
        def select(self, *arguments, **options):  # type: ignore[no-untyped-def]
            return Own().select(*arguments, **options)

    for selector, alone in ((Own(), True), (Plain(), True), (Threads(), False)):
        where.clear()
        am.gaze_video(tmp_path / "clip.mp4", selector, am.preset("fast").changed(frames=4, max_tiles=4, ratio=0.2))
        assert (where == {threading.get_ident()}) == alone


def test_two_chunks_exist_at_most() -> None:
    class Chunk:
        pass

    alive: weakref.WeakSet[Chunk] = weakref.WeakSet()
    most = 0

    def source():  # type: ignore[no-untyped-def]
        nonlocal most
        for _ in range(8):
            item = Chunk()
            alive.add(item)
            most = max(most, len(alive))
            yield item
            del item

    with Prefetch(source()) as items:
        count = 0
        for item in items:
            count += 1
            time.sleep(0.05)  # long enough for the reader to run ahead, if it would
            del item
    assert count == 8 and most == 2
