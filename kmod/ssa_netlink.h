/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/* Made from netlink_proto/ssa.yaml by netlink_proto/generate.py: do not edit. */

#ifndef _UAPI_SSA_NETLINK_H
#define _UAPI_SSA_NETLINK_H

#define SSA_FAMILY_NAME			"ssa"
#define SSA_FAMILY_VERSION		1

/* Longest value of a TLS option, a file's content included. */
#define SSA_VALUE_MAX			1048576
/* Longest part of a value in one message. */
#define SSA_VALUE_PIECE_MAX		16384
/* Longest sentence for TLS_ERROR, without the terminating NUL. */
#define SSA_TEXT_MAX			511
/* Longest host name (RFC 1035, 2.3.4, in presentation form). */
#define SSA_HOST_NAME_MAX		253
/* Size of struct sockaddr_storage. */
#define SSA_ADDRESS_MAX			128
/* Longest program name (TASK_COMM_LEN without its NUL). */
#define SSA_COMM_MAX			15
/* Longest path (PATH_MAX without its NUL). */
#define SSA_PATH_MAX			4095
/* Longest cipher name. */
#define SSA_CIPHER_MAX			63
/* Longest ALPN protocol name (RFC 7301, 3.1). */
#define SSA_ALPN_MAX			255
/* Longest peer identity. */
#define SSA_IDENTITY_MAX		1023
/* Longest peer certificate chain, as PEM, all its pieces together. */
#define SSA_CHAIN_MAX			131072
/* Longest part of a peer certificate chain in one attribute. */
#define SSA_CHAIN_PIECE_MAX		32768
/* Most session tickets of one connection that the module hands on. */
#define SSA_TICKETS_MAX			4

/**
 * enum ssa_socket_state - Where a TLS socket is in its life.
 * @SSA_SOCKET_STATE_NEW: Made, not connected.
 * @SSA_SOCKET_STATE_CONNECTING: A connect() is under way.
 * @SSA_SOCKET_STATE_CONNECTED: The handshake is done and the transport
 *	attached.
 * @SSA_SOCKET_STATE_LISTENING: Waits for connections.
 * @SSA_SOCKET_STATE_CLOSED: Closed, or torn down by connect(AF_UNSPEC).
 * @SSA_SOCKET_STATE_FAILED: An operation failed; the socket can't be
 *	used again.
 */
enum ssa_socket_state {
	SSA_SOCKET_STATE_NEW,
	SSA_SOCKET_STATE_CONNECTING,
	SSA_SOCKET_STATE_CONNECTED,
	SSA_SOCKET_STATE_LISTENING,
	SSA_SOCKET_STATE_CLOSED,
	SSA_SOCKET_STATE_FAILED,
};

/**
 * enum ssa_transport - What carries a connected program's bytes.
 * @SSA_TRANSPORT_NONE: Not connected.
 * @SSA_TRANSPORT_KTLS: The endpoint itself, with kernel TLS keys
 *	installed.
 * @SSA_TRANSPORT_CHANNEL: One end of a socket pair; the daemon relays
 *	its other end.
 */
enum ssa_transport {
	SSA_TRANSPORT_NONE,
	SSA_TRANSPORT_KTLS,
	SSA_TRANSPORT_CHANNEL,
};

/**
 * enum ssa_event_kind - What a notification tells.
 * @SSA_EVENT_KIND_OPENED: A program made a TLS socket.
 * @SSA_EVENT_KIND_CONNECTED: A connection was made and verified.
 * @SSA_EVENT_KIND_REFUSED: A connection failed, a client's to a
 *	listening socket included; error and text say why.
 * @SSA_EVENT_KIND_CLOSED: A TLS socket is gone.
 * @SSA_EVENT_KIND_LISTENING: A program listens.
 * @SSA_EVENT_KIND_ACCEPTED: A client's connection was made; it waits for
 *	accept().
 */
enum ssa_event_kind {
	SSA_EVENT_KIND_OPENED,
	SSA_EVENT_KIND_CONNECTED,
	SSA_EVENT_KIND_REFUSED,
	SSA_EVENT_KIND_CLOSED,
	SSA_EVENT_KIND_LISTENING,
	SSA_EVENT_KIND_ACCEPTED,
};

/**
 * enum ssa_a - Attributes of every message.
 * @SSA_A_REQUEST: Id of a request; its completion carries the same.
 *	Never 0.
 * @SSA_A_SOCKET: Id of a TLS socket, as TLS_ID gives it. Never 0.
 * @SSA_A_ERROR: 0, or a positive errno that programs know.
 * @SSA_A_TEXT: A sentence that says why, for TLS_ERROR.
 * @SSA_A_FAMILY: AF_INET, AF_INET6 or AF_HOSTNAME; of an endpoint one of
 *	the first two.
 * @SSA_A_STATE: Where the socket is in its life. &enum ssa_socket_state.
 * @SSA_A_PID: Process that made the socket, as the initial pid namespace
 *	counts.
 * @SSA_A_UID: Effective user, as the initial user namespace counts.
 * @SSA_A_GID: Effective group, as the initial user namespace counts.
 * @SSA_A_NETNS_COOKIE: Network namespace (SO_NETNS_COOKIE).
 * @SSA_A_COMM: Program name.
 * @SSA_A_EXECUTABLE: Path of the program, if it runs in the initial
 *	mount and user namespaces.
 * @SSA_A_LOCAL_ADDRESS: struct sockaddr_in or sockaddr_in6.
 * @SSA_A_REMOTE_ADDRESS: struct sockaddr_in or sockaddr_in6.
 * @SSA_A_HOST_NAME: Host name that the program gave, in presentation
 *	form.
 * @SSA_A_OPTION: Number of a socket option of level IPPROTO_TLS. See
 *	in_tls.h.
 * @SSA_A_VALUE: An option's value, or the piece of it that starts at
 *	value-offset.
 * @SSA_A_VALUE_LENGTH: Length of the whole value.
 * @SSA_A_VALUE_OFFSET: Where this piece starts.
 * @SSA_A_TRANSPORT: What carries the program's bytes. &enum
 *	ssa_transport.
 * @SSA_A_FD: File descriptor in the daemon.
 * @SSA_A_VERSION: TLS version on the wire, 0x0303 or 0x0304.
 * @SSA_A_CIPHER: Cipher suite, OpenSSL's name.
 * @SSA_A_ALPN: Chosen application protocol.
 * @SSA_A_PEER_IDENTITY: Subject of the peer's certificate, RFC 4514.
 * @SSA_A_PEER_CHAIN: The peer's certificates as PEM; the pieces are
 *	concatenated.
 * @SSA_A_RESUMED: 1 if the session was resumed.
 * @SSA_A_BYTES_SENT: Bytes that the program sent.
 * @SSA_A_BYTES_RECEIVED: Bytes that the program received.
 * @SSA_A_EVENT: What happened. &enum ssa_event_kind.
 * @SSA_A_MODULE_VERSION: Version of the kernel module.
 * @SSA_A_SOCKETS: Number of TLS sockets.
 * @SSA_A_PENDING: Number of requests that wait for a completion.
 * @SSA_A_DAEMON: Main process of a daemon, as the initial pid namespace
 *	counts; the same for all its workers.
 * @SSA_A_BACKLOG: How many finished connections may wait for accept().
 * @SSA_A_QUEUED: How many finished connections wait for accept().
 * @SSA_A_ENDPOINT_FD: File descriptor, in the daemon, of the TCP
 *	connection that it accepted.
 * @SSA_A_PORT: Port to connect to, where host-name stands for the
 *	address.
 * @SSA_A_ENDPOINTS: How many endpoints a connect has, to try several
 *	addresses at once.
 * @SSA_A_ENDPOINT: Which of them, from 0; left out for the first.
 * @SSA_A_SWITCHES: What getsockopt gives for options that are 0 or 1:
 *	bit n is the value of option 102 + n.
 * @SSA_A_TICKETS: How many session tickets of a ktls connection the
 *	worker wants to see.
 * @SSA_A_LEAVING: 1 if the worker has said leave.
 */
enum ssa_a {
	SSA_A_REQUEST = 1,
	SSA_A_SOCKET,
	SSA_A_ERROR,
	SSA_A_TEXT,
	SSA_A_FAMILY,
	SSA_A_STATE,
	SSA_A_PID,
	SSA_A_UID,
	SSA_A_GID,
	SSA_A_NETNS_COOKIE,
	SSA_A_COMM,
	SSA_A_EXECUTABLE,
	SSA_A_LOCAL_ADDRESS,
	SSA_A_REMOTE_ADDRESS,
	SSA_A_HOST_NAME,
	SSA_A_OPTION,
	SSA_A_VALUE,
	SSA_A_VALUE_LENGTH,
	SSA_A_VALUE_OFFSET,
	SSA_A_TRANSPORT,
	SSA_A_FD,
	SSA_A_VERSION,
	SSA_A_CIPHER,
	SSA_A_ALPN,
	SSA_A_PEER_IDENTITY,
	SSA_A_PEER_CHAIN,
	SSA_A_RESUMED,
	SSA_A_BYTES_SENT,
	SSA_A_BYTES_RECEIVED,
	SSA_A_EVENT,
	SSA_A_MODULE_VERSION,
	SSA_A_SOCKETS,
	SSA_A_PENDING,
	SSA_A_DAEMON,
	SSA_A_BACKLOG,
	SSA_A_QUEUED,
	SSA_A_ENDPOINT_FD,
	SSA_A_PORT,
	SSA_A_ENDPOINTS,
	SSA_A_ENDPOINT,
	SSA_A_SWITCHES,
	SSA_A_TICKETS,
	SSA_A_LEAVING,

	/* private: */
	__SSA_A_MAX,
	SSA_A_MAX = (__SSA_A_MAX - 1)
};

/**
 * enum ssa_cmd - Commands.
 * @SSA_CMD_REGISTER: Become a worker that answers requests. Refused with
 *	EBUSY while a worker of another daemon is registered. The worker is
 *	gone when the netlink socket that sent this is closed.
 * @SSA_CMD_ENDPOINT: Get a file descriptor of an endpoint of a connect
 *	or listen request. It is the TCP socket itself, and nonblocking.
 * @SSA_CMD_COMPLETE: The one answer to a request. With error 0 a connect
 *	carries the transport and what was negotiated (fd: the program's end
 *	of the channel; the module takes its own reference; endpoint: the one
 *	that is connected, the others are closed), a getsockopt the value; and
 *	when a listen has been completed so, the endpoint listens. A socket
 *	and a setsockopt carry the switches, as they are from then on.
 * @SSA_CMD_END_OF_STREAM: The peer's stream on a channel has ended.
 *	Error 0: with close_notify. Otherwise the program gets the error
 *	instead of end of file. To be sent before the channel is shut down.
 * @SSA_CMD_MODULE_GET: The module and how busy it is.
 * @SSA_CMD_WORKER_GET: The registered workers.
 * @SSA_CMD_SOCKET_GET: The TLS sockets; without CAP_NET_ADMIN only those
 *	of the caller's user.
 * @SSA_CMD_SOCKET: A program made a TLS socket, or (after a worker's
 *	death) uses one that this worker does not know yet.
 * @SSA_CMD_SETSOCKOPT: A program set an option. A value longer than
 *	value-piece-max comes in several requests, in order; each is to be
 *	completed.
 * @SSA_CMD_GETSOCKOPT: A program asks for an option that the module does
 *	not know itself.
 * @SSA_CMD_BIND: The endpoint was bound.
 * @SSA_CMD_CONNECT: The endpoint's TCP connection is under way to
 *	remote-address: wait for it, do the handshake, complete. With
 *	host-name instead: resolve it, connect one of the endpoints to port
 *	there (RFC 8305), and go on as before; host-name is the name to
 *	verify.
 * @SSA_CMD_CLOSE: The TLS socket is gone; forget it and whatever is
 *	under way for it. Has no completion.
 * @SSA_CMD_NOTIFY: Something happened to a TLS socket.
 * @SSA_CMD_ACCEPTED: A handshake on a listening socket is over. With
 *	error 0 the connection goes into the queue of accept(), and the reply
 *	has the number of its socket and how full the queue is; above backlog
 *	the worker is to accept no more until it is told room. Otherwise it
 *	failed, and those who watch hear of it.
 * @SSA_CMD_LISTEN: A program wants to listen, or (after a worker's
 *	death) its socket does and has no worker. Once this is completed with
 *	error 0: accept from the endpoint, do the handshakes, and send
 *	accepted for each.
 * @SSA_CMD_ROOM: A queue that was full has room again.
 * @SSA_CMD_TICKET: A NewSessionTicket of TLS 1.3 came on a ktls
 *	connection whose completion asked for tickets; value is the whole
 *	handshake message. Can be lost, and is when it is longer than
 *	value-piece-max or the worker has no room.
 * @SSA_CMD_LEAVE: The worker is about to go: the module gives it no new
 *	sockets, moves its listening sockets to other workers, and others as
 *	they are used next. The worker accepts no more, brings what it has
 *	accepted, and completes what it is asked. pending is what it may still
 *	be asked; to be sent again until that is 0. Refused with EBUSY if
 *	there is no other worker.
 */
enum ssa_cmd {
	SSA_CMD_REGISTER = 1,
	SSA_CMD_ENDPOINT,
	SSA_CMD_COMPLETE,
	SSA_CMD_END_OF_STREAM,
	SSA_CMD_MODULE_GET,
	SSA_CMD_WORKER_GET,
	SSA_CMD_SOCKET_GET,
	SSA_CMD_SOCKET,
	SSA_CMD_SETSOCKOPT,
	SSA_CMD_GETSOCKOPT,
	SSA_CMD_BIND,
	SSA_CMD_CONNECT,
	SSA_CMD_CLOSE,
	SSA_CMD_NOTIFY,
	SSA_CMD_ACCEPTED,
	SSA_CMD_LISTEN,
	SSA_CMD_ROOM,
	SSA_CMD_TICKET,
	SSA_CMD_LEAVE,

	/* private: */
	__SSA_CMD_MAX,
	SSA_CMD_MAX = (__SSA_CMD_MAX - 1)
};

#define SSA_MCGRP_EVENTS		"events"

#endif /* _UAPI_SSA_NETLINK_H */
