# SPDX-License-Identifier: BSD-3-Clause
"""The worker: takes the module's requests off the netlink socket and completes each one."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ssad import identity
from ssad.address import Address, is_address, own_netns, parse_sockaddr
from ssad.channel import Channel
from ssad.connect import Connector
from ssad.connection import Connection, Establisher
from ssad.context import ServerContexts, TicketContexts, client_context
from ssad.errors import HandshakeError, Refused, printable
from ssad.handshake import Handshake, ServerHandshake
from ssad.link import Link, LinkError, MessagesLost
from ssad.listener import Bound, Listener
from ssad.policy import Policy
from ssad.revocation import Checker
from ssad.sessions import Owner, SessionCache
from ssad.settings import Settings
from ssad.stapling import Stapling
from ssad.state import Socket, Sockets
from ssad.tickets import TicketReader, TicketReaders
from ssad.wire import TEXT_MAX, TICKETS_MAX, Attributes, Command, Transport, WireError, clip

log = logging.getLogger(__name__)

# Messages handled before handshakes under way get their turn.
_BATCH = 64
# Seconds that connects and channels under way may take to finish when the daemon is to stop.
_STOP_TIMEOUT = 2.0
# Seconds between questions whether the module still wants something of a worker that leaves.
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0

_INTERNAL_ERROR = "ssad failed internally; its log says more."
_STOPPING = "ssad is stopping; the next one will do."
_STOPPED = "ssad was stopped, which relayed this connection."


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is made for another policy before it is in force."""

    policy: Policy
    contexts: dict[int, ServerContexts | str]  # by the listening sockets' ids; see _contexts_of()


class Server:
    """Answers the requests that come in over a link that is registered as the worker."""

    def __init__(self, link: Link, policy: Policy, tickets: TicketContexts) -> None:
        """`tickets` are shared by all workers of the daemon."""
        self._link = link
        self._policy = policy
        self._tickets = tickets
        self._sockets = Sockets()
        self._checker = Checker(policy)
        self._establisher = Establisher(policy, self._checker)
        self._connector = Connector(policy, self._establisher)
        self._connects: set[asyncio.Task[None]] = set()
        self._listeners: dict[int, Listener] = {}
        self._stapling: dict[int, Stapling] = {}
        self._accepting = Bound(policy.handshakes_total)
        self._channels: dict[int, tuple[Channel, asyncio.Task[None]]] = {}
        self._sessions = SessionCache(policy.client_sessions_max)
        self._ticket_readers = TicketReaders()
        self._netns = own_netns()
        self._leaving: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._end_now = asyncio.Event()
        self._handlers: dict[Command, Callable[[Attributes], Attributes | None]] = {
            Command.SOCKET: self._on_socket,
            Command.BIND: self._on_bind,
            Command.SETSOCKOPT: self._on_setsockopt,
            Command.GETSOCKOPT: self._on_getsockopt,
            Command.CONNECT: self._on_connect,
            Command.LISTEN: self._on_listen,
            Command.ROOM: self._on_room,
            Command.CLOSE: self._on_close,
            Command.TICKET: self._on_ticket,
        }

    def stop(self) -> None:
        """Take no new sockets and end soon; when called once more, at once."""
        if self._stopping.is_set():
            self._end_now.set()
        self._stopping.set()

    def leave(self, patience: float) -> None:
        """Make way for other workers: take on nothing, finish what has begun, and end. What is not
        finished after `patience` seconds ends as with stop()."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(patience))

    async def _leave(self, patience: float) -> None:
        log.info("Others take over; what is under way here has %g s to end.", patience)
        try:
            async with asyncio.timeout(patience):
                await self._hand_on()
                while under_way := self._under_way():
                    await asyncio.wait(under_way)
        except TimeoutError:
            log.warning("What was under way did not end within %g s.", patience)
        except Exception:
            log.exception("Others could not take over as they should.")
        self.stop()

    async def _hand_on(self) -> None:
        """Have the module ask others, and wait until it wants nothing of this worker any more."""
        pause = _FIRST_PAUSE
        while True:
            try:
                owed = self._ask(Command.LEAVE, {})["pending"]
            except LinkError as error:
                # EBUSY: there is none who could take over, for the moment.
                if error.errno != errno.EBUSY:
                    raise
            else:
                for listener in self._listeners.values():
                    listener.close()
                if owed == 0:
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def prepare(self, policy: Policy) -> Prepared:
        """Make what another policy needs, for adopt(). Raises Refused if it can't be used."""
        client_context(Settings(), policy)
        found = {number: self._contexts_of(number, policy) for number in self._listeners}
        return Prepared(policy, found)

    def adopt(self, prepared: Prepared) -> None:
        """Go by another policy with all that begins from now on; what is there stays."""
        policy = self._policy = prepared.policy
        self._tickets.apply(policy)
        self._establisher.adopt(policy)
        self._connector.adopt(policy)
        self._checker.adopt(policy)
        self._sessions.set_limit(policy.client_sessions_max)
        self._accepting.set_limit(policy.handshakes_total)
        for number, listener in self._listeners.items():
            contexts = prepared.contexts.get(number) or self._contexts_of(number, policy)
            listener.change(_beginning(contexts), policy.handshakes_per_listener)
            self._staple(number, contexts)

    def _contexts_of(self, socket_id: int, policy: Policy) -> ServerContexts | str:
        """Return the contexts of a listener; if the policy has changed so that there can be none,
        the sentence that says so."""
        sock = self._sockets.get(socket_id)
        try:
            return ServerContexts(sock.settings, policy, self._tickets, sock.uid)
        except Refused as refused:
            text = f"The policy has changed, and this socket can't serve under it: {refused}"
            log.warning("%s (process %d) listens: %s", sock.comm, sock.pid, text)
            return text

    def _staple(self, socket_id: int, contexts: ServerContexts | str) -> None:
        """Have a listener staple what its contexts are for, if it does."""
        if socket_id in self._stapling:
            self._stapling.pop(socket_id).close()
        sock = self._sockets.get(socket_id)
        if not isinstance(contexts, str) and sock.settings.checks.staples(contexts.policy):
            self._stapling[socket_id] = Stapling(contexts, self._checker, sock.uid)

    async def run(self) -> None:
        """Work until stop() is called."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link.fileno(), self._read)
        # Listening sockets that waited for a worker came together with the answer to REGISTER.
        self._read_again()
        try:
            await self._stopping.wait()
            await self._wind_up()
        finally:
            loop.remove_reader(self._link.fileno())

    def _under_way(self) -> set[asyncio.Task[None]]:
        """Accept no more. Returns what has to end before this worker can."""
        under_way = self._connects | {task for _, task in self._channels.values()}
        # TCP's backlog waits in the kernel for the next worker.
        for listener in self._listeners.values():
            under_way |= listener.close()
        return under_way

    async def _wind_up(self) -> None:
        under_way = self._under_way()
        for stapling in self._stapling.values():
            stapling.close()
        if under_way:
            log.info("Stopping; %d connections have %g s to end.", len(under_way), _STOP_TIMEOUT)
            hurry = asyncio.create_task(self._end_now.wait())
            finish = asyncio.create_task(asyncio.wait(under_way))
            await asyncio.wait(
                {hurry, finish}, timeout=_STOP_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
            )
            rest = under_way | {hurry, finish}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    # --- requests ---------------------------------------------------------------------------

    def _read(self) -> None:
        for _ in range(_BATCH):
            try:
                message = self._link.receive(wait=False)
            except MessagesLost:
                log.warning("Requests were lost, more came than the netlink socket could hold.")
                continue
            except WireError as error:
                log.error("The module sent what the contract does not allow: %s.", error)
                continue
            except OSError:
                log.exception("The netlink socket failed; without it there is nothing to do.")
                self.stop()
                return
            if message is None:
                return
            self._handle(message.command, message.attributes)
        self._read_again()

    def _read_again(self) -> None:
        if self._link.has_messages:
            asyncio.get_running_loop().call_soon(self._read)

    def _handle(self, command: Command, attributes: Attributes) -> None:
        request = attributes.get("request", 0)
        try:
            handler = self._handlers.get(command)
            if handler is None:
                raise Refused(errno.EOPNOTSUPP, f"ssad does not know the request {command.name}.")
            answer = handler(attributes)
        except Refused as refused:
            answer = _failure(refused.errno, refused.text)
        except LinkError as error:
            if error.errno == errno.ENOENT:
                return  # the program has given up
            log.error("The module refused a part of %s: %s.", command.name, error.strerror)
            answer = _failure(errno.ECANCELED, _INTERNAL_ERROR)
        except Exception:
            log.exception("Request %s failed.", command.name)
            answer = _failure(errno.ECANCELED, _INTERNAL_ERROR)
        if answer is not None and request:
            self._complete(request, answer)

    def _on_socket(self, asked: Attributes) -> Attributes:
        if self._stopping.is_set():
            raise Refused(errno.ECANCELED, _STOPPING)
        comm = printable(asked.get("comm", ""))
        netns = asked.get("netns_cookie", 0)
        sock = Socket(asked["socket"], asked.get("pid", 0), asked["uid"], comm, netns=netns)
        self._sockets.add(sock)
        return {"error": 0, "switches": sock.settings.checks.switches(self._policy)}

    def _on_bind(self, asked: Attributes) -> Attributes:
        self._sockets.get(asked["socket"])
        return {"error": 0}

    def _on_setsockopt(self, asked: Attributes) -> Attributes:
        sock = self._sockets.get(asked["socket"])
        option = asked["option"]
        piece = asked.get("value", b"")
        value = sock.receive_piece(
            option, asked.get("value_length", len(piece)), asked.get("value_offset", 0), piece
        )
        if value is not None:
            sock.settings.set(option, value, self._policy)
        return {"error": 0, "switches": sock.settings.checks.switches(self._policy)}

    def _on_getsockopt(self, asked: Attributes) -> Attributes:
        sock = self._sockets.get(asked["socket"])
        return {"error": 0, "value": sock.settings.get(asked["option"], self._policy)}

    def _on_connect(self, asked: Attributes) -> None:
        sock = self._sockets.get(asked["socket"])
        if self._stopping.is_set():
            raise Refused(errno.ECANCELED, _STOPPING)
        if sock.connecting is not None:
            raise Refused(errno.EALREADY, "A connect of this socket is under way.")
        sock.settings.check(self._policy)
        task = asyncio.create_task(self._connect(sock, asked))
        sock.connecting = task
        self._connects.add(task)
        task.add_done_callback(self._connects.discard)

    def _on_close(self, asked: Attributes) -> None:
        socket_id = asked["socket"]
        sock = self._sockets.forget(socket_id)
        if sock is not None and sock.connecting is not None:
            sock.connecting.cancel()
        if socket_id in self._listeners:
            for task in self._listeners.pop(socket_id).close():
                task.cancel()
        if socket_id in self._stapling:
            self._stapling.pop(socket_id).close()
        if socket_id in self._channels:
            channel, _ = self._channels[socket_id]
            channel.close_soon()
        self._ticket_readers.drop(socket_id)

    def _on_ticket(self, asked: Attributes) -> None:
        self._ticket_readers.receive(asked["socket"], asked["value"])

    # --- listening --------------------------------------------------------------------------

    def _on_listen(self, asked: Attributes) -> None:
        sock = self._sockets.get(asked["socket"])
        if self._stopping.is_set():
            raise Refused(errno.ECANCELED, _STOPPING)
        if sock.id in self._listeners:
            raise Refused(errno.EALREADY, "This socket listens already.")
        sock.settings.check_listen(self._policy)
        contexts = ServerContexts(sock.settings, self._policy, self._tickets, sock.uid)
        reply = self._ask(Command.ENDPOINT, {"request": asked["request"]})
        endpoint = socket.socket(fileno=reply["fd"])
        listener = Listener(
            endpoint,
            _beginning(contexts),
            self._establisher,
            (Bound(self._policy.handshakes_per_listener), self._accepting),
            lambda remote, found: self._deliver(sock, remote, found),
            sock.uid,
        )
        warnings = sock.settings.listen_warnings()
        for warning in warnings:
            log.warning("%s (process %d) listens: %s", sock.comm, sock.pid, warning)
        answer: Attributes = {"error": 0}
        if warnings:
            answer["text"] = clip(" ".join(warnings), TEXT_MAX)
        # The endpoint listens once the module has taken this.
        if not self._complete(asked["request"], answer):
            listener.close()
            return
        self._listeners[sock.id] = listener
        listener.start()
        self._staple(sock.id, contexts)

    def _on_room(self, asked: Attributes) -> None:
        if asked["socket"] in self._listeners:
            self._listeners[asked["socket"]].set_full(False)

    def _deliver(self, sock: Socket, remote: Address, found: Connection | Refused) -> None:
        """Tell the module how a handshake ended, and hand a connection over."""
        if isinstance(found, Refused):
            log.debug("%s (process %d) did not get %s: %s", sock.comm, sock.pid, remote, found)
            why = _failure(found.errno, found.text)
            why |= {"socket": sock.id, "remote_address": remote.as_sockaddr()}
            self._tell(Command.ACCEPTED, why)
            return
        taken = self._offer(sock, found)
        if not taken:
            found.close()
            return
        if sock.id in self._listeners:
            self._listeners[sock.id].set_full(taken["queued"] > taken["backlog"])
        self._carry(taken["socket"], found)

    def _offer(self, sock: Socket, connection: Connection) -> Attributes | None:
        """Bring a connection to the module. Returns its answer, if it took it."""
        answer: Attributes = {
            "socket": sock.id,
            "error": 0,
            "endpoint_fd": connection.endpoint.fileno(),
            **connection.attributes(connection.result.server_name),
        }
        try:
            return self._ask(Command.ACCEPTED, answer)
        except LinkError as error:
            # ENOENT: the program has closed its listening socket.
            if error.errno != errno.ENOENT:
                log.error("The module did not take a connection: %s.", error.strerror)
            return None

    # --- connecting -------------------------------------------------------------------------

    async def _connect(self, sock: Socket, asked: Attributes) -> None:
        """Carry out one connect request and complete it."""
        request = asked["request"]
        try:
            connection = await self._connection(sock, asked)
        except Refused as refused:
            self._refuse(sock, asked, refused)
        except LinkError as error:
            # ENOENT: the program has given up before the endpoint was asked for.
            if error.errno != errno.ENOENT:
                log.error("The module gave no endpoint: %s.", error.strerror)
                self._complete(request, _failure(errno.ECANCELED, _INTERNAL_ERROR))
        except Exception:
            log.exception("Connect of socket %d failed.", sock.id)
            self._complete(request, _failure(errno.ECANCELED, _INTERNAL_ERROR))
        else:
            self._hand_over(sock, request, connection)
        finally:
            self._sockets.forget(sock.id)

    async def _connection(self, sock: Socket, asked: Attributes) -> Connection:
        settings, owner = sock.settings, Owner(sock.uid, sock.netns)
        endpoints = _Endpoints(self._ask, asked)
        if "host_name" in asked:
            name, port = asked["host_name"], asked["port"]
            settings.connect_to(name)
            self._check_resolvable(sock)
            peer = str(settings.host_name)
            return await self._connector.connect_to_name(
                endpoints,
                name,
                port,
                settings,
                sock.uid,
                lambda policy: self._sessions.visit(owner, settings, policy, peer, port),
            )
        remote = parse_sockaddr(asked["remote_address"])
        if remote is None:
            raise Refused(errno.EAFNOSUPPORT, "The remote address is neither IPv4 nor IPv6.")
        peer = str(identity.wanted(settings.host_name, remote.ip))
        return await self._connector.connect(
            endpoints,
            remote,
            settings,
            sock.uid,
            lambda policy: self._sessions.visit(owner, settings, policy, peer, remote.port),
        )

    def _check_resolvable(self, sock: Socket) -> None:
        """A host name is resolved with the daemon's traffic, which is not that of a program in
        another network namespace. Raises Refused with ECONNABORTED."""
        host_name = sock.settings.host_name or ""
        if sock.netns == self._netns or is_address(host_name):
            return
        raise Refused(
            errno.ECONNABORTED,
            f"{host_name} can't be resolved for a program in another network namespace than "
            "ssad's; resolve it there, and connect to an address.",
        )

    def _refuse(self, sock: Socket, asked: Attributes, refused: Refused) -> None:
        log.info(
            "%s (process %d) was not connected to %s (%s): %s",
            sock.comm,
            sock.pid,
            _target(asked),
            sock.settings.host_name or "no host name",
            refused,
        )
        self._complete(asked["request"], _failure(refused.errno, refused.text))

    def _hand_over(self, sock: Socket, request: int, connection: Connection) -> None:
        """Complete a connect that went well, and begin to relay if that is how it goes on."""
        answer: Attributes = {"error": 0, **connection.attributes(sock.settings.host_name)}
        if connection.transport is Transport.KTLS:
            connection.close()  # first, so that the program's is the only one
            visit = connection.visit
            reader = None if visit is None else TicketReader.of(connection.result, visit)
            if reader is not None:
                answer["tickets"] = TICKETS_MAX
            if self._complete(request, answer) and reader is not None:
                self._ticket_readers.add(sock.id, reader)
        elif self._complete(request, answer):
            self._carry(sock.id, connection)
        else:
            connection.close()

    def _carry(self, socket_id: int, connection: Connection) -> None:
        """The module has taken a connection: let go of it, or relay for it."""
        if connection.program is None or connection.relay is None:
            connection.close()
            return
        connection.program.close()

        async def on_end(number: int, text: str) -> None:
            self._end_stream(socket_id, number, text)

        channel = Channel(
            connection.result.connection,
            connection.endpoint,
            connection.relay,
            on_end,
            self._policy.close_timeout,
            _looking(connection),
        )
        task = asyncio.create_task(self._relay(socket_id, channel, connection))
        self._channels[socket_id] = channel, task

    async def _relay(self, socket_id: int, channel: Channel, connection: Connection) -> None:
        try:
            await channel.run()
        except asyncio.CancelledError:
            self._end_stream(socket_id, errno.ECONNRESET, _STOPPED)
            raise
        except Exception:
            log.exception("The channel of socket %d failed.", socket_id)
            self._end_stream(socket_id, errno.ECONNRESET, _INTERNAL_ERROR)
        finally:
            channel.close()
            connection.close()
            del self._channels[socket_id]

    # --- to the module ----------------------------------------------------------------------

    def _ask(self, command: Command, attributes: Attributes) -> Attributes:
        try:
            return self._link.request(command, attributes)
        finally:
            self._read_again()

    def _complete(self, request: int, answer: Attributes) -> bool:
        """Complete a request. False if nobody waits for it any more, or the module did not take
        the answer; then it gets one that it can't object to, so that the program is not kept
        waiting."""
        try:
            self._ask(Command.COMPLETE, {"request": request, **answer})
        except LinkError as error:
            if error.errno != errno.ENOENT:
                log.error("The module refused an answer: %s.", error.strerror)
                failure = _failure(errno.ECANCELED, _INTERNAL_ERROR)
                self._tell(Command.COMPLETE, {"request": request, **failure})
            return False
        return True

    def _end_stream(self, socket_id: int, number: int, text: str) -> None:
        self._tell(
            Command.END_OF_STREAM,
            {"socket": socket_id, "error": number, "text": clip(text, TEXT_MAX)},
        )

    def _tell(self, command: Command, attributes: Attributes) -> bool:
        try:
            self._ask(command, attributes)
        except LinkError as error:
            # ENOENT: the program has given up waiting, or closed its socket.
            if error.errno != errno.ENOENT:
                log.error("The module refused %s: %s.", command.name, error.strerror)
            return False
        return True


class _Endpoints:
    """The endpoints of a connect request, out of the module."""

    def __init__(self, ask: Callable[[Command, Attributes], Attributes], asked: Attributes) -> None:
        self._ask = ask
        self._request = asked["request"]
        self._count = asked.get("endpoints", 1)

    def __len__(self) -> int:
        return self._count

    def open(self, index: int) -> socket.socket:
        """Return a new, nonblocking descriptor of an endpoint. Raises LinkError."""
        asked: Attributes = {"request": self._request}
        if index:
            asked["endpoint"] = index
        reply = self._ask(Command.ENDPOINT, asked)
        # The three numbers spare three system calls to find them out.
        endpoint = socket.socket(
            reply["family"], socket.SOCK_STREAM, socket.IPPROTO_TCP, reply["fd"]
        )
        endpoint.settimeout(0)
        return endpoint


def _looking(connection: Connection) -> Callable[[], None] | None:
    """Return what is to be called when a connection has read something that may be a ticket."""
    visit = connection.visit
    return None if visit is None else lambda: visit.look(connection.result.connection)


def _target(asked: Attributes) -> str:
    """Say where a connect request is to go."""
    if "host_name" in asked:
        return f"{printable(asked['host_name'])} port {asked['port']}"
    return str(parse_sockaddr(asked["remote_address"]))


def _beginning(contexts: ServerContexts | str) -> Callable[[], Handshake]:
    """Return what begins a handshake, or refuses it with a sentence."""

    def begin() -> Handshake:
        if isinstance(contexts, str):
            raise HandshakeError(errno.EPROTO, contexts)
        return ServerHandshake(contexts)

    return begin


def _failure(number: int, text: str) -> Attributes:
    return {"error": number, "text": clip(text, TEXT_MAX)}
