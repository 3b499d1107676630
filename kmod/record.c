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
#include <linux/uio.h>
#include <net/tls.h>

#include "ssa.h"

/* In a row. Servers send a few tickets at once; nobody sends thousands. */
#define CONTROLS_MAX 4096

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

	*(u8 *)CMSG_DATA(&control.header) = SSA_RECORD_ALERT;
	ret = kernel_sendmsg(transport, &msg, &vec, 1, sizeof(alert));
	if (ret == -ERESTARTSYS)
		return -EINTR;
	return ret < 0 ? ret : 0;
}

/* Reads from the head, of whatever type. Return: length, or a negative errno. */
static int read_record(struct ssa_sock *ssk, void *buf, size_t len, int flags, u8 *type)
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

	iov_iter_kvec(&msg.msg_iter, ITER_DEST, &vec, 1, len);
	ret = ssa_transport_recvmsg(ssk, &msg, len, flags | MSG_DONTWAIT);
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
	case 90: return "user_canceled";
	case 100: return "no_renegotiation";
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
	ssa_upcall(ssk, SSA_UPCALL_STATE_CHANGE);
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
	if (buf[1] == SSA_ALERT_CLOSE_NOTIFY) {
		end_stream(ssk, SSA_RX_CLOSE_NOTIFY);
		return;
	}
	/*
	 * Only this one does not end a connection of TLS 1.3, whatever its level
	 * (RFC 8446, 6); in TLS 1.2 it is the level that counts (RFC 5246, 7.2).
	 */
	if (ssk->facts->version >= TLS_1_3_VERSION ? buf[1] == SSA_ALERT_USER_CANCELED :
						     buf[0] == SSA_ALERT_WARNING)
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

/**
 * ssa_record_forget - drop what has come of a ticket
 * @ssk: its rx_lock is held, or nobody reads from it any more
 */
void ssa_record_forget(struct ssa_sock *ssk)
{
	/* Who has it, and the secrets, could resume the session. */
	kvfree_sensitive(ssk->ticket, ssk->ticket_len);
	ssk->ticket = NULL;
	ssk->ticket_len = 0;
}

/*
 * A message begins: room for it, if it is a ticket that the worker wants to see.
 * Without room the ticket is lost, and a later connection makes a full handshake.
 */
static void ticket_begin(struct ssa_sock *ssk)
{
	u32 len = sizeof(ssk->hs_header) + ssk->hs_left;

	if (!ssk->tickets || !ssk->hs_left || len > SSA_VALUE_PIECE_MAX ||
	    ssk->hs_header[0] != MESSAGE_NEW_SESSION_TICKET)
		return;
	ssk->ticket = kvmalloc(len, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!ssk->ticket)
		return;
	ssk->ticket_len = len;
	memcpy(ssk->ticket, ssk->hs_header, sizeof(ssk->hs_header));
}

/* A ticket is whole. Never waits: a worker that is busy does without it. */
static void ticket_send(struct ssa_sock *ssk)
{
	struct ssa_worker *worker;
	struct sk_buff *skb;
	void *hdr;

	ssa_lock(ssk);
	worker = ssk->worker;
	if (worker)
		refcount_inc(&worker->ref);
	ssa_unlock(ssk);
	if (!worker)
		return;

	/* Counted even if it gets lost: a peer can send any number. */
	ssk->tickets--;
	skb = ssa_nl_new(SSA_CMD_TICKET, nla_total_size(sizeof(u64)) +
			 nla_total_size(ssk->ticket_len), &hdr);
	if (!skb)
		goto out;
	if (ssa_nl_put_u64(skb, SSA_A_SOCKET, ssk->id) ||
	    nla_put(skb, SSA_A_VALUE, ssk->ticket_len, ssk->ticket)) {
		nlmsg_free(skb);
		goto out;
	}
	genlmsg_end(skb, hdr);
	ssa_worker_send(worker, skb);
out:
	ssa_worker_put(worker);
}

/* More of a message, hs_left of which was to come. */
static void message_body(struct ssa_sock *ssk, const u8 *buf, u32 len)
{
	if (ssk->ticket)
		memcpy(ssk->ticket + ssk->ticket_len - ssk->hs_left, buf, len);
	ssk->hs_left -= len;
	if (ssk->ticket && !ssk->hs_left) {
		ticket_send(ssk);
		ssa_record_forget(ssk);
	}
}

/* Messages can share a record and span several: the header is gathered. */
static void handle_handshake(struct ssa_sock *ssk, const u8 *buf, int len)
{
	u32 part;

	while (len) {
		if (ssk->hs_left) {
			part = min_t(u32, ssk->hs_left, len);
			message_body(ssk, buf, part);
			buf += part;
			len -= part;
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
		ticket_begin(ssk);
	}
}

/*
 * One more that brought no data. While there are such, a read or poll() goes on,
 * even one that is not to wait: the peer must not keep it up for ever.
 */
static void count(struct ssa_sock *ssk)
{
	u32 controls = READ_ONCE(ssk->controls) + 1;

	WRITE_ONCE(ssk->controls, controls);
	if (controls <= CONTROLS_MAX || ssk->rx_end)
		return;
	set_text(ssk, "The peer sent more than %u records without data between.", CONTROLS_MAX);
	ssa_record_fail(ssk, SSA_ALERT_UNEXPECTED_MESSAGE);
}

/**
 * ssa_record_data - the program has read data
 * @ssk: connected by ktls; no lock is held
 */
void ssa_record_data(struct ssa_sock *ssk)
{
	if (unlikely(READ_ONCE(ssk->controls)))
		WRITE_ONCE(ssk->controls, 0);
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
	u8 type = SSA_RECORD_DATA, *buf;
	int ret;

	if (mutex_lock_interruptible(&ssk->rx_lock))
		return -ERESTARTSYS;
	if (READ_ONCE(ssk->rx_end)) {
		ret = 1;
		goto out_unlock;
	}
	buf = kvmalloc(TLS_MAX_PAYLOAD_SIZE, GFP_KERNEL | __GFP_NOWARN);
	if (!buf) {
		ret = -ENOMEM;
		goto out_unlock;
	}

	ret = read_record(ssk, buf, 1, MSG_PEEK, &type);
	if (ret == -EAGAIN || (ret >= 0 && type == SSA_RECORD_DATA)) {
		ret = 0;
		goto out_free;
	}
	if (ret >= 0)
		ret = read_record(ssk, buf, TLS_MAX_PAYLOAD_SIZE, 0, &type);
	if (ret < 0)
		goto out_free;

	switch (type) {
	case SSA_RECORD_ALERT:
		handle_alert(ssk, buf, ret);
		break;
	case SSA_RECORD_HANDSHAKE:
		handle_handshake(ssk, buf, ret);
		break;
	default:
		set_text(ssk, "The peer sent a record of type %u after the handshake.", type);
		ssa_record_fail(ssk, SSA_ALERT_UNEXPECTED_MESSAGE);
		break;
	}
	count(ssk);
	ret = 1;

out_free:
	/* Kernel TLS tells once of what is no record, and that is for a read. */
	if (ssa_transport_broke(ssk, ret))
		cmpxchg(&ssk->transport->sk->sk_err, 0, -ret);
	kvfree(buf);
out_unlock:
	mutex_unlock(&ssk->rx_lock);
	return ret;
}
