"""Who comes next in front of a stage."""

from __future__ import annotations

import asyncio

import pytest

from autogaze_mllm.serving.fair_gate import FairGate


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_clients_take_turns_and_each_keeps_its_order():
    order = []

    async def request(gate: FairGate, client: str, name: str) -> None:
        async with gate.turn(client):
            order.append(name)
            await asyncio.sleep(0)

    async def run() -> None:
        gate = FairGate(1)
        async with gate.turn("greedy"):
            names = [("greedy", f"g{n}") for n in range(4)] + [("b", "b0"), ("c", "c0"), ("b", "b1")]
            tasks = [asyncio.create_task(request(gate, *one)) for one in names]
            await settle()
            assert len(gate) == 7
        await asyncio.gather(*tasks)
        assert len(gate) == 0

    asyncio.run(run())
    assert order == ["g0", "b0", "c0", "g1", "b1", "g2", "g3"]


def test_as_many_are_inside_as_there_are_slots_whoever_leaves_early():
    """Requests that are cancelled while they wait, inside, and at the moment when they are let in."""
    inside = most = done = 0

    async def request(gate: FairGate, number: int) -> None:
        nonlocal inside, most, done
        async with gate.turn(str(number % 3)):
            inside += 1
            most = max(most, inside)
            try:
                await asyncio.sleep(0.001 * (number % 4))
            finally:
                inside -= 1
            done += 1

    async def run() -> None:
        gate = FairGate(2)
        tasks = [asyncio.create_task(request(gate, number)) for number in range(60)]
        for number in range(0, 60, 4):
            await asyncio.sleep(0.0005)
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(gate) == 0
        async with gate.turn("x"), gate.turn("x"):  # both slots are there again
            pass

    asyncio.run(asyncio.wait_for(run(), 60))
    assert most == 2 and 45 <= done <= 60


def test_one_that_is_cancelled_as_it_is_let_in_hands_its_slot_on():
    async def run() -> None:
        gate = FairGate(1)
        holder = gate.turn("a")
        await holder.__aenter__()

        async def wait() -> str:
            async with gate.turn("b"):
                return "in"

        first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
        await settle()
        await holder.__aexit__(None, None, None)  # the slot is the first one's now, which does not know it yet
        first.cancel()
        assert await asyncio.wait_for(second, 10) == "in"

    asyncio.run(run())


def test_those_who_wait_can_be_refused():
    async def run() -> None:
        gate = FairGate(1)
        async with gate.turn("a"):

            async def wait() -> None:
                async with gate.turn("b"):
                    pytest.fail("let in")

            waiting = asyncio.create_task(wait())
            await settle()
            gate.refuse(RuntimeError("closing"))
            with pytest.raises(RuntimeError, match="closing"):
                await waiting
        async with gate.turn("c"):
            pass

    asyncio.run(run())
