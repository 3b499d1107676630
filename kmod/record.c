// SPDX-License-Identifier: GPL-2.0
/*
 * Records of a ktls transport that are not application data: alerts and
 * handshake messages (RFC 8446, 5.1; RFC 5246, 6.2.1).
 *
 * Kernel TLS refuses to read such a record where no room for its type is
 * given, and keeps it queued. So the program's reads are made without that
 * room, and after a refusal the record is read here. Only one thread at a time
 * does so: a read of data by another can't take a control record, so what a
 * peek finds at the head is still there for the read that follows.
 */

#include <linux/slab.h>
#include <net/tls.h>

#include "ssa.h"

enum {	/* RFC 8446, 5.1 */
	RECORD_ALERT		= 21,
	RECORD_HANDSHAKE	= 22,
	RECORD_DATA		= 23,
};

enum {	/* RFC 8446, 4; RFC 5246, 7.4 */
	MESSAGE_HELLO_REQUEST	= 0,
	MESSAGE_CLIENT_HELLO	= 1,
	MESSAGE_NEW_SESSION_TICKET = 4,
	MESSAGE_KEY_UPDATE	= 24,
};

/**
 * ssa_record_send_alert - send an alert record
 * @transport: a ktls transport
 * @level: of the alert
 * @description: of the alert
 *
 * Does not wait for room, but for a write that another thread is at.
 *
 * Return: 0; -EINTR if that wait was interrupted; another negative errno if the
 * connection is broken, which the next read or write will say as well.
 */
int ssa_record_send_alert(struct socket *transport, u8 level, u8 description)
{
	u8 alert[2] = { level, description };
	struct kvec vec = { .iov_base = alert, .iov_len = sizeof(alert) };
	union {
		struct cmsghdr header;
		u8 room[CMSG_SPACE(sizeof(u8))];
	} control = {
		.header = {
			.cmsg_len = CMSG_LEN(sizeof(u8)),
			.cmsg_level = SOL_TLS,
			.cmsg_type = TLS_SET_RECORD_TYPE,
		},
	};
	struct msghdr msg = {
		.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	int ret;

	*(u8 *)CMSG_DATA(&control.header) = RECORD_ALERT;
	ret = kernel_sendmsg(transport, &msg, &vec, 1, sizeof(alert));
	if (ret == -ERESTARTSYS)
		return -EINTR;
	return ret < 0 ? ret : 0;
}

/* Reads from the head, of whatever type. Return: length, or a negative errno. */
static int read_record(struct socket *transport, void *buf, size_t len, int flags, u8 *type)
{
	struct kvec vec = { .iov_base = buf, .iov_len = len };
	union {
		struct cmsghdr header;
		u8 room[CMSG_SPACE(sizeof(u8))];
	} control = {};
	struct msghdr msg = {
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int ret;

	ret = kernel_recvmsg(transport, &msg, &vec, 1, len, flags | MSG_DONTWAIT);
	if (ret < 0)
		return ret;
	/* No control message: the stream has ended, and there is no record. */
	if (control.header.cmsg_level != SOL_TLS ||
	    control.header.cmsg_type != TLS_GET_RECORD_TYPE)
		return -EAGAIN;
	*type = *(u8 *)CMSG_DATA(&control.header);
	return ret;
}

/* RFC 8446, 6; RFC 5246, 7.2; those that can come after the handshake. */
static const char *alert_name(u8 description)
{
	switch (description) {
	case 10: return "unexpected_message";
	case 20: return "bad_record_mac";
	case 21: return "decryption_failed";
	case 22: return "record_overflow";
	case 40: return "handshake_failure";
	case 42: return "bad_certificate";
	case 43: return "unsupported_certificate";
	case 44: return "certificate_revoked";
	case 45: return "certificate_expired";
	case 46: return "certificate_unknown";
	case 47: return "illegal_parameter";
	case 48: return "unknown_ca";
	case 49: return "access_denied";
	case 50: return "decode_error";
	case 51: return "decrypt_error";
	case 71: return "insufficient_security";
	case 80: return "internal_error";
	case 109: return "missing_extension";
	case 116: return "certificate_required";
	case 120: return "no_application_protocol";
	default: return "of unknown name";
	}
}

static __printf(2, 3) void set_text(struct ssa_sock *ssk, const char *text, ...)
{
	char *sentence;
	va_list args;

	va_start(args, text);
	sentence = kvasprintf(GFP_KERNEL, text, args);
	va_end(args);

	ssa_lock(ssk);
	ssa_sock_set_text(ssk, sentence ?: "");
	ssa_unlock(ssk);
	kfree(sentence);
}

/* Ends the stream, for this thread and for those that wait in a read. */
static void end_stream(struct ssa_sock *ssk, int end)
{
	WRITE_ONCE(ssk->rx_end, end);
	kernel_sock_shutdown(ssk->transport,
			     end == SSA_RX_CLOSE_NOTIFY ? SHUT_RD : SHUT_RDWR);
	ssa_to_sk(ssk)->sk_state_change(ssa_to_sk(ssk));
}

/**
 * ssa_record_fail - the peer broke the protocol, or asks for what can't be done
 * @ssk: connected by ktls, its rx_lock held
 * @description: of the alert that tells the peer
 *
 * Reads return -EPROTO from here on.
 */
void ssa_record_fail(struct ssa_sock *ssk, u8 description)
{
	struct sock *tsk = ssk->transport->sk;

	/*
	 * Called from poll() and from reads that must not wait: while a write
	 * that is stuck has kernel TLS for itself, the peer gets no alert.
	 */
	if (!mutex_is_locked(&tls_get_ctx(tsk)->tx_lock) &&
	    !test_and_set_bit(SSA_CLOSE_NOTIFY_SENT, &ssk->flags))
		ssa_record_send_alert(ssk->transport, SSA_ALERT_FATAL, description);
	end_stream(ssk, -EPROTO);
}

static void handle_alert(struct ssa_sock *ssk, const u8 *buf, int len)
{
	/* One alert a record (RFC 8446, 5.1). */
	if (len != 2) {
		set_text(ssk, "The peer sent an alert of %d bytes; an alert has 2.", len);
		ssa_record_fail(ssk, SSA_ALERT_DECODE_ERROR);
		return;
	}
	switch (buf[1]) {
	case SSA_ALERT_CLOSE_NOTIFY:
		end_stream(ssk, SSA_RX_CLOSE_NOTIFY);
		return;
	case SSA_ALERT_USER_CANCELED:
	case SSA_ALERT_NO_RENEGOTIATION:
		return;	/* nothing follows from these */
	}
	/* In TLS 1.2 a warning need not end the connection (RFC 5246, 7.2). */
	if (ssk->facts->version < TLS_1_3_VERSION && buf[0] == SSA_ALERT_WARNING)
		return;
	set_text(ssk, "The peer ended the connection with the alert %s (%u).",
		 alert_name(buf[1]), buf[1]);
	set_bit(SSA_CLOSE_NOTIFY_SENT, &ssk->flags);	/* nothing may follow */
	end_stream(ssk, -EPROTO);
}

/* True if a message of this type can be passed over. */
static bool message_allowed(struct ssa_sock *ssk, u8 type)
{
	if (ssk->facts->version >= TLS_1_3_VERSION) {
		if (type == MESSAGE_NEW_SESSION_TICKET && !ssk->server)
			return true;
		if (type == MESSAGE_KEY_UPDATE) {
			set_text(ssk, "The peer sent a KeyUpdate; its keys can't be changed.");
			ssa_record_fail(ssk, SSA_ALERT_INTERNAL_ERROR);
			return false;
		}
	} else if (type == MESSAGE_HELLO_REQUEST && !ssk->server) {
		/* Renegotiation: may be ignored (RFC 5246, 7.4.1.1). */
		return true;
	}
	if (ssk->facts->version < TLS_1_3_VERSION && type == MESSAGE_CLIENT_HELLO && ssk->server) {
		set_text(ssk, "The client wants to renegotiate, which is refused.");
		ssa_record_fail(ssk, SSA_ALERT_NO_RENEGOTIATION);
		return false;
	}
	set_text(ssk, "The peer sent handshake message %u after the handshake.", type);
	ssa_record_fail(ssk, SSA_ALERT_UNEXPECTED_MESSAGE);
	return false;
}

/* Messages can share a record and span several: the header is gathered. */
static void handle_handshake(struct ssa_sock *ssk, const u8 *buf, int len)
{
	u32 skip;

	while (len) {
		if (ssk->hs_left) {
			skip = min_t(u32, ssk->hs_left, len);
			ssk->hs_left -= skip;
			buf += skip;
			len -= skip;
			continue;
		}
		ssk->hs_header[ssk->hs_header_len++] = *buf++;
		len--;
		if (ssk->hs_header_len < sizeof(ssk->hs_header))
			continue;
		ssk->hs_header_len = 0;
		if (!message_allowed(ssk, ssk->hs_header[0]))
			return;
		ssk->hs_left = ssk->hs_header[1] << 16 | ssk->hs_header[2] << 8 |
			       ssk->hs_header[3];
	}
}

/**
 * ssa_record_handle - act on the control record at the head, if there is one
 * @ssk: connected by ktls; its lock is not held
 *
 * Sleeps, interruptible. An end of the stream is in ssk->rx_end afterwards.
 *
 * Return: 1 if a record was handled; 0 if none was there; -ERESTARTSYS;
 * -ENOMEM; the error of the transport.
 */
int ssa_record_handle(struct ssa_sock *ssk)
{
	u8 type = RECORD_DATA, *buf;
	int ret;

	if (mutex_lock_interruptible(&ssk->rx_lock))
		return -ERESTARTSYS;
	if (READ_ONCE(ssk->rx_end)) {
		ret = 1;
		goto out_unlock;
	}
	buf = kvmalloc(TLS_MAX_PAYLOAD_SIZE, GFP_KERNEL);
	if (!buf) {
		ret = -ENOMEM;
		goto out_unlock;
	}

	ret = read_record(ssk->transport, buf, 1, MSG_PEEK, &type);
	if (ret == -EAGAIN || (ret >= 0 && type == RECORD_DATA)) {
		ret = 0;
		goto out_free;
	}
	if (ret >= 0)
		ret = read_record(ssk->transport, buf, TLS_MAX_PAYLOAD_SIZE, 0, &type);
	if (ret < 0)
		goto out_free;

	switch (type) {
	case RECORD_ALERT:
		handle_alert(ssk, buf, ret);
		break;
	case RECORD_HANDSHAKE:
		handle_handshake(ssk, buf, ret);
		break;
	default:
		set_text(ssk, "The peer sent a record of type %u after the handshake.", type);
		ssa_record_fail(ssk, SSA_ALERT_UNEXPECTED_MESSAGE);
		break;
	}
	ret = 1;

out_free:
	kvfree(buf);
out_unlock:
	mutex_unlock(&ssk->rx_lock);
	return ret;
}
