// SPDX-License-Identifier: GPL-2.0
/*
 * Operations sent to the daemon, and their one completion.
 *
 * Theory. A request stands in the table of pending requests from before it is
 * sent until somebody takes it out, under the table's lock. Whoever takes it
 * out is the one that completes it: the daemon's answer, the deadline, the
 * death of the worker, a fatal signal of the waiter or the closing of the
 * socket. The others find it gone and do nothing. So every request completes
 * exactly once, and nobody gets another's answer.
 *
 * A connect is completed into its socket (ssa_sock_connected()); nobody needs
 * to wait for it, and a waiting connect() waits for the socket's state. Every
 * other request is completed into ssa_request.result and waited for by the
 * caller that made it.
 */

#include <linux/slab.h>

#include "ssa.h"

/* Pending requests by id; its lock decides who completes one. */
static DEFINE_XARRAY_FLAGS(pending, XA_FLAGS_ALLOC1);
static u32 next_id;

static void connect_deadline(struct work_struct *work);

/**
 * ssa_result_clear - free what a result owns
 * @res: afterwards owns nothing
 */
void ssa_result_clear(struct ssa_result *res)
{
	kfree(res->text);
	kvfree(res->value);
	kfree(res->host_name);
	ssa_facts_free(res->facts);
	if (res->channel)
		fput(res->channel);
	if (res->endpoint)
		fput(res->endpoint);
	memset(res, 0, sizeof(*res));
}

static struct ssa_request *request_new(u8 cmd)
{
	struct ssa_request *req;

	req = kzalloc(sizeof(*req), GFP_KERNEL);
	if (!req)
		return NULL;
	refcount_set(&req->ref, 1);
	req->cmd = cmd;
	init_completion(&req->done);
	INIT_DELAYED_WORK(&req->deadline, connect_deadline);
	return req;
}

void ssa_request_put(struct ssa_request *req)
{
	if (!refcount_dec_and_test(&req->ref))
		return;
	ssa_result_clear(&req->result);
	ssa_worker_put(req->worker);
	while (req->nr_spare)
		fput(req->spare[--req->nr_spare]);
	if (req->ssk)
		sock_put(ssa_to_sk(req->ssk));
	kfree(req);
}

/**
 * ssa_request_get - find a pending request
 * @id: as the daemon was told
 *
 * Return: a reference, or NULL if nothing pending has this id.
 */
struct ssa_request *ssa_request_get(u32 id)
{
	struct ssa_request *req;

	xa_lock(&pending);
	req = xa_load(&pending, id);
	if (req)
		refcount_inc(&req->ref);
	xa_unlock(&pending);
	return req;
}

/**
 * ssa_request_add - put a request into the table, which takes a reference
 * @req: new
 * @ssk: what it is about; its worker is the one that is asked
 *
 * A worker that is dying is not given new ones: unregister() sets dead before
 * it walks the table, so either the walk finds this request or this finds dead.
 * Nor is one made for a listening socket that is being closed, likewise.
 *
 * From here on it can be completed, by the death of the worker for one.
 *
 * Return: 0; -ECANCELED; -ENOMEM.
 */
int ssa_request_add(struct ssa_request *req, struct ssa_sock *ssk)
{
	struct ssa_worker *worker = ssk->worker;
	int err;

	req->socket = ssk->id;
	refcount_inc(&worker->ref);
	req->worker = worker;

	/* Reserved first, since memory can't be had under the lock. */
	err = xa_alloc_cyclic(&pending, &req->id, NULL, xa_limit_32b, &next_id, GFP_KERNEL);
	if (err < 0)
		return err;

	xa_lock(&pending);
	if (READ_ONCE(worker->dead) || READ_ONCE(ssk->closing)) {
		__xa_erase(&pending, req->id);
		xa_unlock(&pending);
		return -ECANCELED;
	}
	refcount_inc(&req->ref);
	/* The entry is reserved: no memory is needed, and this can't fail. */
	__xa_store(&pending, req->id, req, 0);
	atomic_inc(&worker->pending);
	xa_unlock(&pending);
	return 0;
}

/**
 * ssa_request_is_pending - has nobody completed a request yet?
 * @req: referenced by the caller
 */
bool ssa_request_is_pending(struct ssa_request *req)
{
	bool is;

	xa_lock(&pending);
	is = xa_load(&pending, req->id) == req;
	xa_unlock(&pending);
	return is;
}

/* Takes a request out of the table. True for exactly one caller. */
static bool request_take(struct ssa_request *req)
{
	bool taken;

	xa_lock(&pending);
	taken = xa_load(&pending, req->id) == req;
	if (taken) {
		__xa_erase(&pending, req->id);
		atomic_dec(&req->worker->pending);
	}
	xa_unlock(&pending);
	if (taken)
		ssa_request_put(req);
	return taken;
}

/**
 * ssa_request_finish - complete a request
 * @req: referenced by the caller
 * @res: the answer; what it owns is taken over, also if this returns false
 *
 * May sleep. Return: true if this call completed the request, false if it was
 * completed before.
 */
bool ssa_request_finish(struct ssa_request *req, struct ssa_result *res)
{
	if (!request_take(req)) {
		ssa_result_clear(res);
		return false;
	}
	ssa_window(SSA_WINDOW_COMPLETING);
	if (req->cmd == SSA_CMD_CONNECT) {
		if (cancel_delayed_work(&req->deadline))
			ssa_request_put(req);	/* the work's */
		ssa_sock_connected(req->ssk, req, res);
		ssa_result_clear(res);
	} else {
		if (req->cmd == SSA_CMD_LISTEN && !res->error)
			res->error = ssa_sock_listening(req->ssk);
		req->result = *res;
		memset(res, 0, sizeof(*res));
		complete(&req->done);
	}
	return true;
}

/**
 * ssa_request_cancel - take a request back without an answer
 * @req: referenced by the caller
 *
 * Return: true if nobody completed it and nobody will.
 */
bool ssa_request_cancel(struct ssa_request *req)
{
	if (!request_take(req))
		return false;
	if (cancel_delayed_work(&req->deadline))
		ssa_request_put(req);
	return true;
}

static void request_fail(struct ssa_request *req, int error, const char *text)
{
	struct ssa_result res = { .error = error };

	res.text = kstrdup(text, GFP_KERNEL);	/* NULL: the errno has to do */
	ssa_request_finish(req, &res);
}

/* Walks the table. Return: a reference, or NULL at the end. */
static struct ssa_request *request_next(unsigned long *id)
{
	struct ssa_request *req;

	xa_lock(&pending);
	req = xa_find(&pending, id, ULONG_MAX, XA_PRESENT);
	if (req)
		refcount_inc(&req->ref);
	xa_unlock(&pending);
	return req;
}

/**
 * ssa_request_fail_socket - fail all that was asked about a socket
 * @ssk: marked as closing
 */
void ssa_request_fail_socket(struct ssa_sock *ssk)
{
	struct ssa_request *req;
	unsigned long id;

	for (id = 1; (req = request_next(&id)); id++) {
		if (req->socket == ssk->id)
			request_fail(req, -ECANCELED, "The socket was closed.");
		ssa_request_put(req);
	}
}

/**
 * ssa_request_fail_worker - fail all that a dead worker was asked
 * @worker: marked dead
 */
void ssa_request_fail_worker(struct ssa_worker *worker)
{
	struct ssa_request *req;
	unsigned long id;

	for (id = 1; (req = request_next(&id)); id++) {
		if (req->worker == worker)
			request_fail(req, -ECANCELED,
				     "The TLS daemon stopped before it had answered; see its log.");
		ssa_request_put(req);
	}
}

static void connect_deadline(struct work_struct *work)
{
	struct ssa_request *req = container_of(to_delayed_work(work),
					       struct ssa_request, deadline);

	request_fail(req, -ETIMEDOUT,
		     "The TLS daemon gave no answer to connect() in time; see its log.");
	ssa_request_put(req);
}

/* Sends, and waits for room in the worker's buffer until the deadline. */
static int request_send(struct ssa_request *req, struct sk_buff *skb, unsigned long deadline)
{
	struct sk_buff *copy;
	int err;

	for (;;) {
		/* Unicast frees what it can't deliver. */
		copy = skb_clone(skb, GFP_KERNEL);
		if (!copy) {
			err = -ENOMEM;
			break;
		}
		err = ssa_worker_send(req->worker, copy);
		if (err != -EAGAIN)
			break;
		if (!ssa_request_is_pending(req)) {
			err = 0;	/* completed: the worker is gone, say */
			break;
		}
		if (time_after(jiffies, deadline)) {
			err = -ENOBUFS;
			break;
		}
		if (schedule_timeout_killable(msecs_to_jiffies(10)) &&
		    fatal_signal_pending(current)) {
			err = -EINTR;
			break;
		}
	}
	consume_skb(skb);
	return err == -ECONNREFUSED ? -ECANCELED : err;
}

/*
 * Sends a request and waits for its answer. Killable and bounded. On return 0
 * the answer, whatever its error is, is in req->result; otherwise there is none.
 * Consumes skb, keeps the caller's reference to req.
 */
static int request_call(struct ssa_request *req, struct sk_buff *skb)
{
	unsigned long timeout = msecs_to_jiffies(READ_ONCE(ssa_request_timeout_ms));
	long left;
	int err;

	err = request_send(req, skb, jiffies + timeout);
	if (!err) {
		left = wait_for_completion_killable_timeout(&req->done, timeout);
		if (left > 0)
			return 0;
		err = left ? -EINTR : -ECANCELED;
	}
	if (ssa_request_cancel(req))
		return err;
	/* Lost to somebody who is completing it just now. */
	wait_for_completion(&req->done);
	return 0;
}

/* Starts a message about @ssk; completed by @req. */
static struct sk_buff *request_message(struct ssa_request *req, struct ssa_sock *ssk,
				       size_t payload, void **hdr)
{
	struct sk_buff *skb;

	skb = ssa_nl_new(req->cmd, payload + nla_total_size(sizeof(u32)) +
			 nla_total_size(sizeof(u64)), hdr);
	if (!skb)
		return NULL;
	if (nla_put_u32(skb, SSA_A_REQUEST, req->id) ||
	    ssa_nl_put_u64(skb, SSA_A_SOCKET, ssk->id)) {
		nlmsg_free(skb);
		return NULL;
	}
	return skb;
}

/* A request whose completion acts on the socket. */
static struct ssa_request *request_acting(struct ssa_sock *ssk, u8 cmd)
{
	struct ssa_request *req = request_new(cmd);

	if (!req)
		return NULL;
	sock_hold(ssa_to_sk(ssk));
	req->ssk = ssk;
	return req;
}

/* Makes a request to the worker that knows @ssk. */
static struct ssa_request *request_begin(struct ssa_sock *ssk, u8 cmd)
{
	struct ssa_request *req;
	int err;

	req = cmd == SSA_CMD_LISTEN ? request_acting(ssk, cmd) : request_new(cmd);
	if (!req)
		return ERR_PTR(-ENOMEM);
	err = ssa_request_add(req, ssk);
	if (err) {
		ssa_request_put(req);
		return ERR_PTR(err);
	}
	return req;
}

/* Gives up a request whose message could not be made. */
static void request_abort(struct ssa_request *req)
{
	/* Lost: the worker died meanwhile, and that completed it. */
	ssa_request_cancel(req);
	ssa_request_put(req);
}

/* Waits for an answer that is no more than an error, its sentence and switches. */
static int request_simple(struct ssa_request *req, struct ssa_sock *ssk, struct sk_buff *skb,
			  char **text)
{
	int err;

	err = request_call(req, skb);
	if (!err) {
		err = req->result.error;
		if (!err && req->result.has_switches)
			WRITE_ONCE(ssk->switches, req->result.switches);
		if (text)
			swap(*text, req->result.text);
	} else {
		/* Done or not, nobody knows: the worker is told all of it anew. */
		WRITE_ONCE(ssk->introduced, false);
	}
	ssa_request_put(req);
	return err;
}

/**
 * ssa_request_socket - tell the worker about a socket
 * @ssk: its worker is set
 *
 * Sleeps, killable. Return: the daemon's verdict; -ECANCELED if there was no
 * answer; -ENOBUFS if the worker's buffer stayed full; -EINTR; -ENOMEM.
 */
int ssa_request_socket(struct ssa_sock *ssk)
{
	size_t executable = ssk->executable ? strlen(ssk->executable) + 1 : 0;
	struct ssa_request *req;
	struct sk_buff *skb;
	void *hdr;

	req = request_begin(ssk, SSA_CMD_SOCKET);
	if (IS_ERR(req))
		return PTR_ERR(req);
	skb = request_message(req, ssk, SSA_NL_SOCKET_SIZE + nla_total_size(executable), &hdr);
	if (!skb || ssa_nl_put_socket(skb, ssk) ||
	    (ssk->executable && nla_put_string(skb, SSA_A_EXECUTABLE, ssk->executable))) {
		nlmsg_free(skb);
		request_abort(req);
		return -ENOMEM;
	}
	genlmsg_end(skb, hdr);
	return request_simple(req, ssk, skb, NULL);
}

static int request_piece(struct ssa_sock *ssk, const struct ssa_setting *set,
			 u32 offset, u32 len, char **text)
{
	struct ssa_request *req;
	struct sk_buff *skb;
	void *hdr;

	req = request_begin(ssk, SSA_CMD_SETSOCKOPT);
	if (IS_ERR(req))
		return PTR_ERR(req);
	skb = request_message(req, ssk, nla_total_size(len) + 3 * nla_total_size(sizeof(u32)),
			      &hdr);
	if (!skb || nla_put_u32(skb, SSA_A_OPTION, set->option) ||
	    nla_put(skb, SSA_A_VALUE, len, set->value + offset) ||
	    nla_put_u32(skb, SSA_A_VALUE_LENGTH, set->len) ||
	    nla_put_u32(skb, SSA_A_VALUE_OFFSET, offset)) {
		nlmsg_free(skb);
		request_abort(req);
		return -ENOMEM;
	}
	genlmsg_end(skb, hdr);
	return request_simple(req, ssk, skb, text);
}

/**
 * ssa_request_setting - hand an option's value to the worker, in pieces
 * @ssk: known to its worker; its control lock is held
 * @set: the option
 * @text: gets the daemon's sentence, or NULL; to be freed
 *
 * Return: the daemon's verdict, or an error as ssa_request_socket().
 */
int ssa_request_setting(struct ssa_sock *ssk, const struct ssa_setting *set, char **text)
{
	u32 offset = 0, len;
	int err;

	do {
		len = min_t(u32, set->len - offset, SSA_VALUE_PIECE_MAX);
		err = request_piece(ssk, set, offset, len, text);
		offset += len;
	} while (!err && offset < set->len);
	return err;
}

/**
 * ssa_request_getsockopt - ask the worker for an option
 * @ssk: known to its worker; its control lock is held
 * @option: the option
 * @res: gets the answer; to be cleared by the caller if this returns 0
 *
 * Return: 0 if there is an answer, which can be an error; else as
 * ssa_request_socket().
 */
int ssa_request_getsockopt(struct ssa_sock *ssk, u32 option, struct ssa_result *res)
{
	struct ssa_request *req;
	struct sk_buff *skb;
	void *hdr;
	int err;

	req = request_begin(ssk, SSA_CMD_GETSOCKOPT);
	if (IS_ERR(req))
		return PTR_ERR(req);
	skb = request_message(req, ssk, nla_total_size(sizeof(u32)), &hdr);
	if (!skb || nla_put_u32(skb, SSA_A_OPTION, option)) {
		nlmsg_free(skb);
		request_abort(req);
		return -ENOMEM;
	}
	genlmsg_end(skb, hdr);
	err = request_call(req, skb);
	if (!err)
		swap(*res, req->result);
	ssa_request_put(req);
	return err;
}

/**
 * ssa_request_bind - tell the worker the address of an endpoint
 * @ssk: known to its worker; its control lock is held
 *
 * Return: as ssa_request_socket().
 */
int ssa_request_bind(struct ssa_sock *ssk)
{
	struct ssa_request *req;
	struct sk_buff *skb;
	void *hdr;

	req = request_begin(ssk, SSA_CMD_BIND);
	if (IS_ERR(req))
		return PTR_ERR(req);
	skb = request_message(req, ssk, nla_total_size(SSA_ADDRESS_MAX), &hdr);
	if (!skb || ssa_nl_put_address(skb, SSA_A_LOCAL_ADDRESS, ssk)) {
		nlmsg_free(skb);
		request_abort(req);
		return -ENOMEM;
	}
	genlmsg_end(skb, hdr);
	return request_simple(req, ssk, skb, NULL);
}

/**
 * ssa_request_listen - ask the worker to serve a socket
 * @ssk: known to its worker; its control lock is held
 * @text: gets the daemon's sentence, or NULL; to be freed
 *
 * When this returns 0, the endpoint listens (ssa_sock_listening()).
 *
 * Return: as ssa_request_socket(); the error of TCP's listen().
 */
int ssa_request_listen(struct ssa_sock *ssk, char **text)
{
	struct ssa_request *req;
	struct sk_buff *skb;
	void *hdr;

	req = request_begin(ssk, SSA_CMD_LISTEN);
	if (IS_ERR(req))
		return PTR_ERR(req);
	skb = request_message(req, ssk, nla_total_size(SSA_ADDRESS_MAX) +
			      nla_total_size(sizeof(u32)), &hdr);
	if (!skb || ssa_nl_put_address(skb, SSA_A_LOCAL_ADDRESS, ssk) ||
	    nla_put_u32(skb, SSA_A_BACKLOG, READ_ONCE(ssa_to_sk(ssk)->sk_max_ack_backlog))) {
		nlmsg_free(skb);
		request_abort(req);
		return -ENOMEM;
	}
	genlmsg_end(skb, hdr);
	return request_simple(req, ssk, skb, text);
}

/**
 * ssa_request_connect - make the request of a connect
 * @ssk: known to its worker; its control lock is held
 *
 * Return: a reference, for ssa_request_add(); or ERR_PTR(-ENOMEM).
 */
struct ssa_request *ssa_request_connect(struct ssa_sock *ssk)
{
	return request_acting(ssk, SSA_CMD_CONNECT) ?: ERR_PTR(-ENOMEM);
}

/* Where to connect to: an address, or a name that the worker is to resolve. */
static int put_remote(struct sk_buff *skb, struct ssa_request *req, const struct sockaddr *remote)
{
	const struct sockaddr_host *host = (const struct sockaddr_host *)remote;

	if (remote->sa_family == ssa_hostname_family)
		return nla_put_string(skb, SSA_A_HOST_NAME, host->sh_addr.name) ?:
		       nla_put_u32(skb, SSA_A_PORT, ntohs(host->sh_port)) ?:
		       nla_put_u32(skb, SSA_A_ENDPOINTS, 1 + req->nr_spare);
	if (remote->sa_family == AF_INET6)
		return nla_put(skb, SSA_A_REMOTE_ADDRESS, sizeof(struct sockaddr_in6), remote);
	return nla_put(skb, SSA_A_REMOTE_ADDRESS, sizeof(struct sockaddr_in), remote);
}

/**
 * ssa_request_send_connect - send it, and let its deadline run
 * @req: of ssa_request_connect(), added
 * @remote: where the endpoint connects to: AF_INET, AF_INET6 or AF_HOSTNAME
 *
 * Return: 0, or an error as ssa_request_socket(); then the request is still
 * pending, and the caller's to cancel.
 */
int ssa_request_send_connect(struct ssa_request *req, const struct sockaddr *remote)
{
	unsigned long deadline = jiffies + msecs_to_jiffies(READ_ONCE(ssa_request_timeout_ms));
	struct sk_buff *skb;
	void *hdr;

	skb = request_message(req, req->ssk, 2 * nla_total_size(SSA_ADDRESS_MAX) +
			      2 * nla_total_size(sizeof(u32)), &hdr);
	if (!skb || ssa_nl_put_address(skb, SSA_A_LOCAL_ADDRESS, req->ssk) ||
	    put_remote(skb, req, remote)) {
		nlmsg_free(skb);
		return -ENOMEM;
	}
	genlmsg_end(skb, hdr);

	refcount_inc(&req->ref);	/* the work's */
	queue_delayed_work(ssa_wq, &req->deadline,
			   msecs_to_jiffies(READ_ONCE(ssa_connect_timeout_ms)));
	/*
	 * Completed before the deadline was queued: whoever did it had nothing
	 * to cancel, so that falls to us, or the socket would be held until
	 * then.
	 */
	if (!ssa_request_is_pending(req) && cancel_delayed_work(&req->deadline))
		ssa_request_put(req);
	return request_send(req, skb, deadline);
}
