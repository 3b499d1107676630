/* SPDX-License-Identifier: GPL-2.0 */
/*
 * TLS sockets: everything that the files of the module share, grouped by
 * the file that defines it.
 *
 * Locks, outermost first:
 *
 *   ssa_sock.control    mutex: one bind, listen, connect or option call at a
 *                       time on a socket; held while a request is answered
 *   ssa_sock.rx_lock    mutex: one control record of a ktls transport at a time
 *   ssa_sock.lock       mutex: state and what a program may ask for; never held
 *                       while waiting for the daemon or touching a program's
 *                       memory, since the daemon and dumps of others take it.
 *                       So it is not lock_sock(TLS), under which the core reads
 *                       the values of SOL_SOCKET options
 *   ssa_sock.mirror_lock  mutex: one copying of options to an endpoint at a time
 *   lock_sock(endpoint) the kernel's own
 *   xa_lock of the three tables, ssa_worker_lock: spinlocks, innermost
 *
 * Who owns what: a TLS socket owns its endpoint and its transport from the
 * moment each is made until ssa_sock_destroy(), which no call on the file
 * outlasts: such a call needs no lock to follow the pointers, but to an endpoint
 * that may be exchanged for another (endpoint.c). Everybody else
 * (the daemon's commands, dumps, events) has a reference to the struct sock
 * only, and looks under ssa_sock.lock, where a closed socket has neither. A
 * listening socket owns those in its queue until accept() takes them.
 */
#ifndef _SSA_H
#define _SSA_H

#include <linux/file.h>
#include <linux/interrupt.h>
#include <linux/mutex.h>
#include <linux/net.h>
#include <linux/refcount.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>
#include <net/genetlink.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>
#include <net/sock.h>

#include "compat.h"
#include "genl.h"
#include "in_tls.h"
#include "ssa_netlink.h"

#define SSA_VERSION "0.1.0"

struct ssa_notice;
struct ssa_request;
struct ssa_worker;

/* What a connection is known by; written once, before the state. */
struct ssa_facts {
	u32 version;
	u32 resumed;
	char *cipher;
	char *alpn;
	char *peer_identity;
	char *peer_chain;
	u32 peer_chain_len;
};

/* The answer to a request. Its pointers are owned by whoever holds it. */
struct ssa_result {
	int error;		/* 0 or a negative errno */
	bool from_worker;	/* which then knows that it is answered */
	bool has_switches;
	u32 switches;
	char *text;
	void *value;
	u32 value_len;
	enum ssa_transport kind;
	u32 chosen;			/* endpoint of a connect */
	u32 tickets;
	struct file *endpoint;		/* of an accepted connection */
	struct file *channel;
	struct ssa_facts *facts;
	char *host_name;
};

/* An accepted option. */
struct ssa_setting {
	refcount_t ref;
	u32 option;
	u32 len;
	u8 value[] __counted_by(len);
};

/*
 * What was set on a socket, kept for replay and for TLS_CONTEXT. Never changed
 * once a socket has it, so that those that took it over share it.
 */
struct ssa_settings {
	refcount_t ref;
	u32 nr;
	u32 len;		/* of all values */
	struct ssa_setting *set[] __counted_by(nr);
};

/* Whom a socket counts for, NULL: nobody, and as how many (user.c). */
struct ssa_count {
	const struct cred *cred;
	u32 nr;
};

/* The options of SOL_SOCKET, as they were when last copied (mirror.c). */
struct ssa_mirror {
	unsigned long flags;
	long rcvtimeo;
	long sndtimeo;
	unsigned long lingertime;
	unsigned long max_pacing_rate;
	int sndbuf;
	int rcvbuf;
	int bound_dev_if;
	int incoming_cpu;
	u32 mark;
	u32 priority;
	u8 userlocks;
	u8 reuse;
	u8 reuseport;
	u8 txrehash;
};

/*
 * How the peer's stream ended: 0 while it has not. The program gets 0 (end of
 * file) for SSA_RX_CLOSE_NOTIFY and the negative errno otherwise.
 */
#define SSA_RX_CLOSE_NOTIFY 1

struct ssa_sock {
	struct inet_sock inet;		/* must stay first */

	u64 id;
	u32 pid;
	kuid_t uid;
	kgid_t gid;
	char comm[TASK_COMM_LEN];
	char *executable;		/* or NULL; never changed */

	struct mutex control;		/* see above */
	struct mutex lock;		/* see above */

	/* Written under lock; read with acquire semantics anywhere. */
	enum ssa_socket_state state;
	struct socket *endpoint;
	struct file *endpoint_file;
	struct socket *transport;
	struct file *channel_file;
	enum ssa_transport kind;
	wait_queue_entry_t wait;
	struct tasklet_struct upcall;
	unsigned long upcalls;		/* enum ssa_upcall that are owed */

	/* Under lock. */
	struct ssa_request *connect;	/* under way, holds a reference */
	bool connect_reported;		/* connect() has no result to return */
	int connect_error;
	char *error_text;
	char *host_name;
	struct ssa_facts *facts;
	struct ssa_count counted;

	/*
	 * Under control; dropped by destroy, under lock. The settings and the
	 * worker are changed under both, so either is enough to read them.
	 */
	struct ssa_settings *settings;	/* NULL: none */
	u64 context;			/* whose they were; 0: its own */
	bool bound;
	bool introduced;		/* worker knows all of the settings */
	struct ssa_worker *worker;	/* that was told of this socket, or NULL */
	struct ssa_notice *close;	/* so that CLOSE needs no memory */
	bool closing;			/* makes no request any more (request.c) */

	/* A listening socket's, under its lock; sk_ack_backlog counts. */
	struct list_head queue;		/* for accept() */
	struct ssa_notice *room;	/* owed to the worker; NULL if none is */
	struct delayed_work adopt;
	/* In a listening socket's queue, and under the lock of that one. */
	struct list_head queued;

	u32 switches;			/* READ_ONCE: SSA_A_SWITCHES, last told */
	bool server;			/* accepted */
	unsigned long flags;
#define SSA_CLOSE_NOTIFY_SENT 0
#define SSA_CLOSE_NOTIFY_LOCK 1

	int error_shown;		/* the transport's that sk_err is a copy of */

	struct mutex rx_lock;		/* see above; and what follows */
	int rx_end;
	int channel_end;		/* what the worker said, not yet read */
	u32 hs_left;			/* bytes of a handshake message to come */
	u8 hs_header[4];
	u8 hs_header_len;
	u32 controls;			/* such records since there was data */
	u32 tickets;			/* that the worker still wants to see */
	u8 *ticket;			/* one that has come in part, or NULL */
	u32 ticket_len;

	struct mutex mirror_lock;	/* for writing; and the records */
	struct ssa_mirror mirror;
	struct list_head records;	/* options of TCP and IP (levels.c) */
	u32 nr_records;			/* that add to each other */
	bool replayed;			/* done to another endpoint, too */
	atomic64_t sent;
	atomic64_t received;
};

struct ssa6_sock {
	struct ssa_sock ssa;
	struct ipv6_pinfo inet6;	/* inet6_sk_generic() looks at the end */
};

static inline struct ssa_sock *ssa_sk(const struct sock *sk)
{
	return (struct ssa_sock *)sk;
}

static inline struct sock *ssa_to_sk(struct ssa_sock *ssk)
{
	return &ssk->inet.sk;
}

static inline void ssa_lock(struct ssa_sock *ssk)
{
	mutex_lock(&ssk->lock);
}

static inline void ssa_unlock(struct ssa_sock *ssk)
{
	mutex_unlock(&ssk->lock);
}

static inline enum ssa_socket_state ssa_state(struct ssa_sock *ssk)
{
	/* Pairs with ssa_sock_set_state(): a state is seen with what it implies. */
	return smp_load_acquire(&ssk->state);
}

/* states.c: what each call does in each state */
enum ssa_call {
	SSA_CALL_BIND,
	SSA_CALL_CONNECT,
	SSA_CALL_DISCONNECT,	/* connect(AF_UNSPEC) */
	SSA_CALL_LISTEN,
	SSA_CALL_ACCEPT,
	SSA_CALL_SEND,		/* and sendfile, splice to the socket */
	SSA_CALL_RECV,		/* and splice from it */
	SSA_CALL_SHUTDOWN,
	SSA_CALL_GETSOCKNAME,
	SSA_CALL_GETPEERNAME,
	SSA_CALL_FIONREAD,
	SSA_CALLS
};

int ssa_state_errno(enum ssa_socket_state state, enum ssa_call call);

/* socket.c: life of a TLS socket */
extern struct workqueue_struct *ssa_wq;
extern struct workqueue_struct *ssa_adopt_wq;
int ssa_sock_init(struct sock *sk);
int ssa_sock_setup(struct ssa_sock *ssk);
void ssa_sock_publish(struct ssa_sock *ssk);
void ssa_sock_destroy(struct sock *sk);
void ssa_sock_set_owner(struct ssa_sock *ssk);
void ssa_sock_set_state(struct ssa_sock *ssk, enum ssa_socket_state state);
void ssa_sock_set_wait_class(struct socket *sock);
int ssa_sock_connect(struct socket *sock, struct sockaddr *addr, int len, int flags);
int ssa_sock_bind(struct socket *sock, struct sockaddr *addr, int len);
int ssa_sock_shutdown(struct socket *sock, int how);
int ssa_getname(struct socket *sock, struct sockaddr *addr, int peer);
int ssa_sock_release(struct socket *sock);
void ssa_sock_connected(struct ssa_sock *ssk, struct ssa_request *req, struct ssa_result *res);
int ssa_sock_introduce(struct ssa_sock *ssk, char **text);
void ssa_sock_follow(struct ssa_sock *ssk, struct ssa_worker *worker);
void ssa_sock_set_text(struct ssa_sock *ssk, const char *text);
void ssa_sock_take_text(struct ssa_sock *ssk, char *text);
struct ssa_sock *ssa_sock_get(u64 id);
struct ssa_sock *ssa_sock_next(unsigned long *id);
u32 ssa_sock_count(void);
u32 ssa_sock_count_busy(struct ssa_worker *worker);
void ssa_facts_free(struct ssa_facts *facts);

/* endpoint.c: the TCP sockets that face the network */
static inline bool ssa_endpoint_is_final(struct ssa_sock *ssk)
{
	enum ssa_socket_state state = ssa_state(ssk);

	return state != SSA_SOCKET_STATE_NEW && state != SSA_SOCKET_STATE_CONNECTING;
}

int ssa_endpoint_init(struct ssa_sock *ssk);
struct file *ssa_endpoint_get(struct ssa_sock *ssk);
int ssa_endpoint_bind(struct ssa_sock *ssk, struct sockaddr *addr, int len);
int ssa_endpoint_spare(struct ssa_sock *ssk, struct ssa_request *req);
struct file *ssa_endpoint_of(struct ssa_sock *ssk, struct ssa_request *req, u32 index);
void ssa_endpoint_choose(struct ssa_sock *ssk, struct ssa_request *req, u32 index);
void ssa_endpoint_abort(struct ssa_sock *ssk, struct ssa_request *req);

/* hostname.c: AF_HOSTNAME */
extern int ssa_hostname_family;
int ssa_hostname_init(void);
void ssa_hostname_uninit(void);
const struct sockaddr_host *ssa_hostname_parse(const struct sockaddr *addr, int len);

/* listen.c: listening sockets and their queues */
int ssa_sock_listen(struct socket *sock, int backlog);
int ssa_sock_listening(struct ssa_sock *ssk);
int ssa_sock_accept(struct socket *sock, struct socket *newsock, int flags);
struct ssa_worker *ssa_listen_worker(struct ssa_sock *ssk, struct sk_buff *skb);
struct ssa_sock *ssa_listen_accepted(struct ssa_sock *ssk, struct ssa_worker *worker,
				     struct ssa_result *res);
int ssa_listen_enqueue(struct ssa_sock *ssk, struct ssa_sock *child, struct sk_buff *reply,
		       void *hdr, struct genl_info *info);
void ssa_listen_adopt_all(void);
void ssa_listen_adopt(struct work_struct *work);
void ssa_listen_close(struct ssa_sock *ssk);
void ssa_listen_stop(struct ssa_sock *ssk);

/* transport.c: what carries the program's bytes */
int ssa_transport_attach(struct ssa_sock *ssk, struct ssa_result *res);
void ssa_transport_close(struct ssa_sock *ssk);
int ssa_transport_shutdown(struct ssa_sock *ssk, int how);
bool ssa_transport_ktls_ready(struct sock *sk);
bool ssa_transport_has_input(struct ssa_sock *ssk);
struct socket *ssa_transport_of(struct ssa_sock *ssk, enum ssa_call call, int flags,
				long timeout, int *err);
bool ssa_transport_broke(const struct ssa_sock *ssk, int err);
bool ssa_transport_lost(const struct ssa_sock *ssk);
void ssa_transport_forgive(struct ssa_sock *ssk, ssize_t ret);
int ssa_transport_recvmsg(struct ssa_sock *ssk, struct msghdr *msg, size_t len, int flags);
void ssa_transport_forget_error(struct ssa_sock *ssk);
void ssa_transport_error_returned(struct sock *sk, int err);

/* send.c: sendmsg, sendfile and splice to the socket */
int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len);
void ssa_splice_eof(struct socket *sock);
#ifdef SSA_HAVE_SENDPAGE
ssize_t ssa_sendpage(struct socket *sock, struct page *page, int offset, size_t size, int flags);
#endif

/* receive.c: recvmsg and splice from the socket */
int ssa_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags);
ssize_t ssa_splice_read(struct socket *sock, loff_t *ppos, struct pipe_inode_info *pipe,
			size_t len, unsigned int flags);
void ssa_receive_explain(struct ssa_sock *ssk);
bool ssa_receive_gave_up(const struct ssa_sock *ssk);
int ssa_receive_control(struct ssa_sock *ssk, int err, int *idle);

/* readiness.c: poll and ioctl */
__poll_t ssa_poll(struct file *file, struct socket *sock, struct poll_table_struct *wait);
int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg);
int ssa_set_rcvlowat(struct sock *sk, int val);
int ssa_readiness_peek(struct ssa_sock *ssk, size_t len);
__poll_t ssa_readiness_await_room(struct ssa_sock *ssk);
__poll_t ssa_readiness_of_ktls(struct ssa_sock *ssk);

/* upcall.c: telling those who wait */
enum ssa_upcall {
	SSA_UPCALL_STATE_CHANGE,
	SSA_UPCALL_DATA_READY,
	SSA_UPCALL_WRITE_SPACE,
	SSA_UPCALL_ERROR_REPORT,
};

void ssa_upcall_learn(const struct sock *sk);
void ssa_upcall_init(struct ssa_sock *ssk);
void ssa_upcall(struct ssa_sock *ssk, enum ssa_upcall which);
void ssa_upcall_wake(struct ssa_sock *ssk, __poll_t events);
void ssa_upcall_stop(struct ssa_sock *ssk);

/* record.c: records of a ktls transport that are not application data */
enum {	/* RFC 8446, 5.1 */
	SSA_RECORD_ALERT	= 21,
	SSA_RECORD_HANDSHAKE	= 22,
	SSA_RECORD_DATA		= 23,
};

enum {	/* RFC 8446, 6 */
	SSA_ALERT_WARNING	= 1,
	SSA_ALERT_FATAL		= 2,

	SSA_ALERT_CLOSE_NOTIFY	= 0,
	SSA_ALERT_UNEXPECTED_MESSAGE = 10,
	SSA_ALERT_BAD_RECORD_MAC = 20,
	SSA_ALERT_RECORD_OVERFLOW = 22,
	SSA_ALERT_DECODE_ERROR	= 50,
	SSA_ALERT_INTERNAL_ERROR = 80,
	SSA_ALERT_USER_CANCELED	= 90,
	SSA_ALERT_NO_RENEGOTIATION = 100,
};

int ssa_record_handle(struct ssa_sock *ssk);
void ssa_record_data(struct ssa_sock *ssk);
void ssa_record_forget(struct ssa_sock *ssk);
int ssa_record_send_alert(struct socket *transport, u8 level, u8 description);
void ssa_record_fail(struct ssa_sock *ssk, u8 description);

/* sockopt.c: setsockopt and getsockopt */
int ssa_setsockopt(struct socket *sock, int level, int name, sockptr_t val, unsigned int len);
int ssa_getsockopt(struct socket *sock, int level, int name, char __user *val, int __user *len);

/* context.c: what was set on a socket, and who shares it */
void ssa_setting_put(struct ssa_setting *set);
void ssa_settings_put(struct ssa_settings *settings);
struct ssa_settings *ssa_settings_with(const struct ssa_settings *old, struct ssa_setting *set,
				       bool repeatable);
u32 ssa_settings_u32(const struct ssa_settings *settings, u32 option);
u32 ssa_settings_len(const struct ssa_settings *settings);
int ssa_context_take(struct ssa_sock *ssk, u64 id, char **text);

/* levels.c: options of TCP and IP */
int ssa_levels_set(struct ssa_sock *ssk, int level, int name, sockptr_t val, unsigned int len);
int ssa_levels_get(struct ssa_sock *ssk, int level, int name, char __user *val, int __user *len);
int ssa_levels_replay(struct ssa_sock *ssk, struct socket *endpoint);
void ssa_levels_catch_up(struct ssa_sock *ssk, struct socket *endpoint);
void ssa_levels_free(struct ssa_sock *ssk);

/* mirror.c: options of SOL_SOCKET */
void ssa_sockopt_mirror(struct ssa_sock *ssk);
void ssa_mirror_init(struct ssa_sock *ssk);
void ssa_mirror_copy(struct ssa_sock *ssk, struct socket *endpoint);

/* value.c: an option's value, from the program's memory or from a file */
struct ssa_setting *ssa_value_copy(u32 option, sockptr_t val, unsigned int len);
struct ssa_setting *ssa_value_copy_or_read(u32 option, sockptr_t val, unsigned int len);

/* request.c: operations sent to the daemon, and their one completion */
#define SSA_SPARE_MAX	3	/* one more of a family, and two of another */

struct ssa_request {
	refcount_t ref;
	u32 id;
	u8 cmd;
	u64 socket;
	struct ssa_sock *ssk;		/* referenced for connect and listen only */
	struct file *spare[SSA_SPARE_MAX];	/* endpoints of a connect */
	u32 nr_spare;
	struct ssa_worker *worker;
	struct completion done;
	struct delayed_work deadline;
	struct ssa_result result;	/* valid once done */
};

int ssa_request_socket(struct ssa_sock *ssk);
int ssa_request_setting(struct ssa_sock *ssk, const struct ssa_setting *set, char **text);
int ssa_request_getsockopt(struct ssa_sock *ssk, u32 option, struct ssa_result *res);
int ssa_request_bind(struct ssa_sock *ssk);
int ssa_request_listen(struct ssa_sock *ssk, char **text);
struct ssa_request *ssa_request_connect(struct ssa_sock *ssk);
int ssa_request_add(struct ssa_request *req, struct ssa_sock *ssk);
int ssa_request_send_connect(struct ssa_request *req, const struct sockaddr *remote);
struct ssa_request *ssa_request_get(u32 id);
void ssa_request_put(struct ssa_request *req);
bool ssa_request_finish(struct ssa_request *req, struct ssa_result *res);
bool ssa_request_cancel(struct ssa_request *req);
bool ssa_request_is_pending(struct ssa_request *req);
void ssa_request_fail_worker(struct ssa_worker *worker);
void ssa_request_fail_socket(struct ssa_sock *ssk);
void ssa_result_clear(struct ssa_result *res);

/* worker.c: daemon processes that answer */
struct ssa_worker {
	struct list_head list;		/* under ssa_worker_lock */
	refcount_t ref;
	struct sock *netlink;		/* that registered, referenced */
	u32 portid;
	u32 pid;
	u32 daemon;			/* its main process */
	bool dead;			/* under ssa_worker_lock */
	bool leaving;			/* likewise */
	atomic_t pending;
	atomic_t sockets;
	struct list_head notices;	/* under ssa_worker_lock */
	struct delayed_work notice_work;
};

/* A message about a socket that has no completion and must not be lost. */
struct ssa_notice {
	struct list_head list;
	u64 socket;
	u8 cmd;
};

extern spinlock_t ssa_worker_lock;
int ssa_worker_init(void);
void ssa_worker_uninit(void);
int ssa_worker_register(struct sk_buff *skb, u32 daemon, struct netlink_ext_ack *extack);
struct ssa_worker *ssa_worker_get(void);
struct ssa_worker *ssa_worker_nth(unsigned long n);
bool ssa_worker_any(void);
bool ssa_worker_is_gone(struct ssa_worker *worker);
bool ssa_worker_is_leaving(struct ssa_worker *worker);
struct ssa_worker *ssa_worker_of(struct sk_buff *skb);
int ssa_worker_leave(struct ssa_worker *worker);
u32 ssa_worker_owed(struct ssa_worker *worker);
void ssa_worker_put(struct ssa_worker *worker);
bool ssa_worker_is(struct ssa_worker *worker, struct sk_buff *skb);
int ssa_worker_send(struct ssa_worker *worker, struct sk_buff *skb);
struct ssa_notice *ssa_notice_new(struct ssa_sock *ssk, u8 cmd);
void ssa_worker_notify(struct ssa_worker *worker, struct ssa_notice *notice);
int ssa_worker_close(struct ssa_worker *worker, struct ssa_sock *ssk);
void ssa_worker_forget(struct ssa_worker *worker, struct ssa_notice *close);

/* user.c: how many sockets a user may have */
int ssa_user_count(struct ssa_sock *ssk, const struct cred *cred);
int ssa_user_recount(struct ssa_sock *ssk, u32 len, char **text);
void ssa_user_uncount(struct ssa_count counted);

/* window.c: places where a test can have a call wait */
enum ssa_window {
	SSA_WINDOW_NONE,
	SSA_WINDOW_ACCEPTING,	/* accept() has a connection */
	SSA_WINDOW_BRINGING,	/* the worker's is about to be put into the queue */
	SSA_WINDOW_CLOSING,	/* the last close() is nearly done */
	SSA_WINDOW_COMPLETING,	/* a request is taken, but not acted on */
	SSA_WINDOW_LEAVING,	/* a worker that has ended still holds the module */
	SSA_WINDOW_NOTIFYING,	/* shutdown() or close() is about to send close_notify */
	SSA_WINDOW_OPENING,	/* socket() has made the endpoint */
	SSA_WINDOW_RECEIVING,	/* recv() has the transport */
	SSA_WINDOW_REGISTERING,	/* a worker is about to be one */
	SSA_WINDOW_SHUTTING,	/* shutdown() has said that nothing is sent any more */
};

#ifdef SSA_DEBUG
void ssa_window(enum ssa_window here);
#else
static inline void ssa_window(enum ssa_window here)
{
}
#endif

/* netlink.c: the family, commands of the daemon, dumps */
extern struct genl_family ssa_nl_family;
/* Unaligned, as every reader of ours takes it; so there is no padding. */
static inline int ssa_nl_put_u64(struct sk_buff *skb, int attr, u64 value)
{
	return nla_put(skb, attr, sizeof(value), &value);
}

struct sk_buff *ssa_nl_new(u8 cmd, size_t payload, void **hdr);
/* Room for what ssa_nl_put_socket() puts. */
#define SSA_NL_SOCKET_SIZE \
	(4 * nla_total_size(sizeof(u32)) + nla_total_size(sizeof(u64)) + \
	 nla_total_size(TASK_COMM_LEN))
int ssa_nl_put_socket(struct sk_buff *skb, struct ssa_sock *ssk);
int ssa_nl_put_address(struct sk_buff *skb, int attr, struct ssa_sock *ssk);

/* event.c: what is known and what happens, for those who watch */
int ssa_nl_put_state(struct sk_buff *skb, struct ssa_sock *ssk);
void ssa_event(struct ssa_sock *ssk, enum ssa_event_kind kind);
void ssa_event_refused(struct ssa_sock *ssk, struct genl_info *info);

/* proto.c: registration */
extern struct proto ssa_prot;
extern const struct proto_ops ssa_host_stream_ops;
int ssa_proto_init(void);
void ssa_proto_uninit(void);

extern unsigned int ssa_request_timeout_ms;
extern unsigned int ssa_connect_timeout_ms;

#endif
