# SPDX-License-Identifier: BSD-3-Clause
"""How many handshakes may be under way, and which one gives way."""

from __future__ import annotations

import asyncio

from ssad.listener import Bound


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def test_below_the_limit_there_is_room() -> None:
    bound = Bound(2)
    task = asyncio.create_task(_for_ever())
    bound.add(task, 0.0)
    assert bound.make_room(100.0) == 0
    await asyncio.sleep(0)
    assert not task.cancelled()
    task.cancel()


async def test_one_that_has_just_begun_does_not_give_way() -> None:
    bound = Bound(1)
    task = asyncio.create_task(_for_ever())
    bound.add(task, 10.0)
    assert bound.make_room(10.25) == 0.75
    await asyncio.sleep(0)
    assert not task.cancelled()
    task.cancel()


async def test_the_oldest_gives_way() -> None:
    bound = Bound(2)
    first, second = (asyncio.create_task(_for_ever()) for _ in range(2))
    bound.add(first, 10.0)
    bound.add(second, 11.0)
    assert bound.make_room(12.0) == 0
    await asyncio.wait([first])
    assert first.cancelled()
    assert bound.tasks() == {second}
    second.cancel()


async def test_one_that_is_over_makes_room() -> None:
    bound = Bound(1)
    task = asyncio.create_task(_for_ever())
    bound.add(task, 10.0)
    bound.remove(task)
    assert bound.make_room(10.0) == 0
    task.cancel()
