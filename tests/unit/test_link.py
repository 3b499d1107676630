# SPDX-License-Identifier: BSD-3-Clause
"""The netlink shell, against real messages."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from ssad.link import FamilyMissing, LinkError, Message
from ssad.wire import Attributes, Command, WireError
from tests.unit.kernel import Kernel, Refusal


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


def test_a_missing_family_is_told_apart_from_other_failures() -> None:
    with Kernel(has_family=False) as kernel, pytest.raises(FamilyMissing):
        kernel.link()


def test_a_request_returns_the_attributes_of_its_reply(kernel: Kernel) -> None:
    kernel.handlers[Command.MODULE_GET] = lambda _: {"module_version": "1.0", "sockets": 3}
    assert kernel.link().request(Command.MODULE_GET) == {"module_version": "1.0", "sockets": 3}


def test_a_request_without_a_reply_returns_once_it_is_acknowledged(kernel: Kernel) -> None:
    assert kernel.link().request(Command.COMPLETE, {"request": 7, "error": 0}) == {}
    assert kernel.next() == (Command.COMPLETE, {"request": 7, "error": 0})


@pytest.mark.parametrize("text", ["Worker 12 is registered already.", ""])
def test_a_refusal_carries_errno_and_text(kernel: Kernel, text: str) -> None:
    def refuse(_: Attributes) -> Attributes:
        raise Refusal(errno.EBUSY, text)

    kernel.handlers[Command.REGISTER] = refuse
    link = kernel.link()
    with pytest.raises(LinkError) as caught:
        link.request(Command.REGISTER)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.text == text
    assert caught.value.strerror == (text or "Device or resource busy")
    assert link.request(Command.MODULE_GET) == {}  # and the link is as good as before


def test_a_dump_returns_all_objects(kernel: Kernel) -> None:
    workers: list[Attributes] = [{"pid": 1, "pending": 0}, {"pid": 2, "pending": 9}]
    kernel.dumps[Command.WORKER_GET] = workers
    link = kernel.link()
    assert link.dump(Command.WORKER_GET) == workers
    assert link.dump(Command.SOCKET_GET) == []


def test_messages_that_come_unasked_are_received_in_order(kernel: Kernel) -> None:
    link = kernel.link()
    kernel.tell(Command.CLOSE, {"socket": 1})
    kernel.tell(Command.CLOSE, {"socket": 2})
    assert link.receive(wait=True) == Message(Command.CLOSE, {"socket": 1})
    assert link.receive(wait=True) == Message(Command.CLOSE, {"socket": 2})
    assert link.receive(wait=False) is None


def test_a_message_that_comes_before_an_answer_is_kept(kernel: Kernel) -> None:
    def overtaken(_: Attributes) -> Attributes:
        kernel.tell(Command.CLOSE, {"socket": 5})
        return {"module_version": "1.0"}

    kernel.handlers[Command.MODULE_GET] = overtaken
    link = kernel.link()
    assert link.request(Command.MODULE_GET) == {"module_version": "1.0"}
    assert link.has_messages
    assert link.receive(wait=False) == Message(Command.CLOSE, {"socket": 5})


def test_a_message_against_the_contract_meets_who_receives_it(kernel: Kernel) -> None:
    def overtaken(_: Attributes) -> Attributes:
        kernel.tell_raw(b"\xff\x01\0\0")
        return {}

    kernel.handlers[Command.MODULE_GET] = overtaken
    link = kernel.link()
    assert link.request(Command.MODULE_GET) == {}
    with pytest.raises(WireError):
        link.receive(wait=False)


def test_the_other_end_going_away_is_an_error(kernel: Kernel) -> None:
    link = kernel.link()
    kernel.hang_up()
    with pytest.raises(LinkError) as caught:
        link.receive(wait=True)
    assert caught.value.errno == errno.ECONNRESET
