// SPDX-License-Identifier: GPL-2.0
/*
 * What each call does in each state: the table that tls-socket(7) shows.
 *
 * 0: the call goes ahead, and waits where it has to. Else: its errno. Two
 * things come before: connect() returns once how an attempt ended, and a data
 * call the error that is pending (SO_ERROR). In which states an option can be
 * set or asked for stands in the table of sockopt.c.
 */

#include "ssa.h"

#define CALL(name, ...)			\
	[SSA_CALL_##name] = { __VA_ARGS__ }

static const int errnos[SSA_CALLS][SSA_SOCKET_STATE_FAILED + 1] = {
	/*                NEW        CONNECTING CONNECTED    LISTENING    CLOSED       FAILED */
	CALL(BIND,        0,         -EINVAL,   -EINVAL,     -EINVAL,     -EOPNOTSUPP, -EBADFD),
	CALL(CONNECT,     0,         0,         -EOPNOTSUPP, -EOPNOTSUPP, -EOPNOTSUPP, -EBADFD),
	CALL(DISCONNECT,  0,         0,         0,           0,           0,           0),
	CALL(LISTEN,      0,         -EINVAL,   -EINVAL,     0,           -EOPNOTSUPP, -EBADFD),
	CALL(ACCEPT,      -EINVAL,   -EINVAL,   -EINVAL,     0,           -EINVAL,     -EBADFD),
	CALL(SEND,        -ENOTCONN, 0,         0,           -ENOTCONN,   -ENOTCONN,   -EBADFD),
	CALL(RECV,        -ENOTCONN, 0,         0,           -ENOTCONN,   -ENOTCONN,   -EBADFD),
	CALL(SHUTDOWN,    -ENOTCONN, 0,         0,           0,           -ENOTCONN,   -ENOTCONN),
	CALL(GETSOCKNAME, 0,         0,         0,           0,           0,           0),
	CALL(GETPEERNAME, -ENOTCONN, -ENOTCONN, 0,           -ENOTCONN,   -ENOTCONN,   -ENOTCONN),
	CALL(FIONREAD,    0,         0,         0,           -EINVAL,     0,           0),
};

/**
 * ssa_state_errno - may a call be made?
 * @state: that the socket is in
 * @call: the call
 *
 * Return: 0 or the negative errno of the call.
 */
int ssa_state_errno(enum ssa_socket_state state, enum ssa_call call)
{
	return errnos[call][state];
}
