# SPDX-License-Identifier: BSD-3-Clause
"""The worker: takes the module's requests off the netlink socket and completes each one."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from ssad.address import Address, parse_sockaddr
from ssad.channel import Channel
from ssad.connect import Connector
from ssad.connection import Connection, Establisher
from ssad.context import ServerContexts, TicketContexts
from ssad.errors import Refused, printable
from ssad.handshake import ServerHandshake
from ssad.link import Link, LinkError, MessagesLost
from ssad.listener import Bound, Listener
from ssad.policy import Policy
from ssad.state import Socket, Sockets
from ssad.wire import TEXT_MAX, Attributes, Command, Transport, WireError, clip

log = logging.getLogger(__name__)

# Messages handled before handshakes under way get their turn.
_BATCH = 64
# Seconds that connects and channels under way may take to finish when the daemon is to stop.
_STOP_TIMEOUT = 2.0

_INTERNAL_ERROR = "ssad failed internally; its log says more."
_STOPPING = "ssad is stopping; the next one will do."
_STOPPED = "ssad was stopped, which relayed this connection."


class Server:
    """Answers the requests that come in over a link that is registered as the worker."""

    def __init__(self, link: Link, policy: Policy, tickets: TicketContexts) -> None:
        """`tickets` are shared by all workers of the daemon."""
        self._link = link
        self._policy = policy
        self._tickets = tickets
        self._sockets = Sockets()
        self._establisher = Establisher(policy)
        self._connector = Connector(policy, self._establisher)
        self._connects: set[asyncio.Task[None]] = set()
        self._listeners: dict[int, Listener] = {}
        self._accepting = Bound(policy.handshakes_total)
        self._channels: dict[int, tuple[Channel, asyncio.Task[None]]] = {}
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
        }

    def stop(self) -> None:
        """Take no new sockets and end soon; when called once more, at once."""
        if self._stopping.is_set():
            self._end_now.set()
        self._stopping.set()

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

    async def _wind_up(self) -> None:
        under_way = self._connects | {task for _, task in self._channels.values()}
        # TCP's backlog waits in the kernel for the next worker.
        for listener in self._listeners.values():
            under_way |= listener.close()
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
        self._sockets.add(Socket(asked["socket"], asked.get("pid", 0), asked["uid"], comm))
        return {"error": 0}

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
        return {"error": 0}

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
        if socket_id in self._channels:
            channel, _ = self._channels[socket_id]
            channel.close_soon()

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
            lambda: ServerHandshake(contexts),
            self._establisher,
            (Bound(self._policy.handshakes_per_listener), self._accepting),
            lambda remote, found: self._deliver(sock, remote, found),
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
        remote = parse_sockaddr(asked["remote_address"])
        if remote is None:
            raise Refused(errno.EAFNOSUPPORT, "The remote address is neither IPv4 nor IPv6.")
        family = socket.AF_INET if remote.ip.version == 4 else socket.AF_INET6
        reply = self._ask(Command.ENDPOINT, {"request": asked["request"]})
        # The three numbers spare three system calls to find them out.
        endpoint = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, reply["fd"])
        endpoint.settimeout(0)
        return await self._connector.connect(endpoint, remote, sock.settings)

    def _refuse(self, sock: Socket, asked: Attributes, refused: Refused) -> None:
        log.info(
            "%s (process %d) was not connected to %s (%s): %s",
            sock.comm,
            sock.pid,
            parse_sockaddr(asked["remote_address"]),
            sock.settings.host_name or "no host name",
            refused,
        )
        self._complete(asked["request"], _failure(refused.errno, refused.text))

    def _hand_over(self, sock: Socket, request: int, connection: Connection) -> None:
        """Complete a connect that went well, and begin to relay if that is how it goes on."""
        answer: Attributes = {"error": 0, **connection.attributes(sock.settings.host_name)}
        if connection.transport is Transport.KTLS:
            connection.close()  # first, so that the program's is the only one
            self._complete(request, answer)
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
            connection.close()
            del self._channels[socket_id]

    # --- to the module ----------------------------------------------------------------------

    def _ask(self, command: Command, attributes: Attributes) -> Attributes:
        try:
            return self._link.request(command, attributes)
        finally:
            self._read_again()

    def _complete(self, request: int, answer: Attributes) -> bool:
        """Complete a request. False if nobody waits for it any more."""
        return self._tell(Command.COMPLETE, {"request": request, **answer})

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


def _failure(number: int, text: str) -> Attributes:
    return {"error": number, "text": clip(text, TEXT_MAX)}
