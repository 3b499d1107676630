# SPDX-License-Identifier: BSD-3-Clause
"""Turns: bounded in all and for each user, fair among users."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from hypothesis import given
from hypothesis import strategies as st

from ssad.turns import Turns


class Queue:
    """Tasks that want turns, and the order in which they got them."""

    def __init__(self, total: int, each: int) -> None:
        self.turns = Turns(total, each)
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def want(self, *names: str) -> None:
        """Let tasks ask for a turn; the first letter names the user."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._take(name))
        await settle()

    async def end(self, *names: str) -> None:
        """Let those who have a turn give it back."""
        for name in names:
            self._ends[name].set()
            await settle()

    async def _take(self, name: str) -> None:
        async with self.turns.one(ord(name[0])):
            self.served.append(name)
            await self._ends[name].wait()

    async def cancel(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_user_can_not_take_all_turns() -> None:
    queue = Queue(4, 2)
    await queue.want("a1", "a2", "a3", "a4", "b1")
    assert queue.served == ["a1", "a2", "b1"]
    await queue.end("b1")
    assert queue.served == ["a1", "a2", "b1"]
    await queue.end("a1")
    assert queue.served == ["a1", "a2", "b1", "a3"]
    await queue.cancel()


async def test_when_all_are_taken_users_take_turns() -> None:
    queue = Queue(2, 2)
    await queue.want("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    for name in ("a1", "a2", "a3", "b1", "c1"):
        await queue.end(name)
    assert queue.served == ["a1", "a2", "a3", "b1", "c1", "a4", "b2"]
    await queue.cancel()


async def test_who_gives_up_waiting_is_passed_over() -> None:
    queue = Queue(1, 1)
    await queue.want("a1", "a2", "a3", "b1")
    queue.tasks["a2"].cancel()
    await queue.end("a1")
    assert queue.served == ["a1", "a3"]
    await queue.end("a3")
    assert queue.served == ["a1", "a3", "b1"]
    await queue.cancel()


async def test_a_turn_that_came_too_late_goes_to_the_next() -> None:
    queue = Queue(1, 1)
    await queue.want("a1", "a2", "b1")
    # Granted and cancelled in the same turn of the event loop.
    queue._ends["a1"].set()
    await asyncio.sleep(0)
    queue.tasks["a2"].cancel()
    await settle()
    assert queue.served[-1] == "b1"
    await queue.cancel()


async def test_other_limits_hold_at_once() -> None:
    queue = Queue(1, 1)
    await queue.want("a1", "a2", "a3", "b1")
    queue.turns.set_limits(3, 2)
    await settle()
    assert queue.served == ["a1", "a2", "b1"]
    queue.turns.set_limits(1, 1)
    await queue.end("a1", "a2")
    assert queue.served == ["a1", "a2", "b1"]
    await queue.end("b1")
    assert queue.served == ["a1", "a2", "b1", "a3"]
    await queue.cancel()


_STEPS = st.lists(
    st.tuples(st.sampled_from(["want", "end", "cancel"]), st.integers(0, 3), st.integers(0, 30))
)


@given(st.integers(1, 4), st.integers(1, 4), _STEPS)
def test_limits_hold_and_none_waits_for_a_free_turn(
    total: int, each: int, steps: list[tuple[str, int, int]]
) -> None:
    async def play() -> None:
        queue = Queue(total, each)
        wanted: list[str] = []
        for step, user, number in steps:
            if step == "want":
                wanted.append(f"{'abcd'[user]}{len(wanted)}")
                await queue.want(wanted[-1])
            elif wanted:
                name = wanted[number % len(wanted)]
                if step == "cancel":
                    queue.tasks[name].cancel()
                else:
                    queue._ends[name].set()
                await settle()
            alive = [name for name in wanted if not queue.tasks[name].done()]
            have = [name for name in alive if name in queue.served]
            users = {user: sum(name[0] == user for name in have) for user in "abcd"}
            assert len(have) <= total
            assert max(users.values()) <= each
            for name in alive:
                if name not in have:
                    # Its own end may have been asked for already: then it has its turn and is over.
                    assert len(have) == total or users[name[0]] == each
        async with AsyncExitStack() as stack:
            stack.push_async_callback(queue.cancel)
        assert not queue.turns._waiting
        assert not queue.turns._taken

    asyncio.run(play())
