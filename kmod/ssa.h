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
 *   ssa_sock.mirror_lock  mutex: one copying of SOL_SOCKET options at a time
 *   lock_sock(endpoint) the kernel's own
 *   xa_lock of the two tables, ssa_worker_lock: spinlocks, innermost
 *
 * Who owns what: a TLS socket owns its endpoint and its transport from the
 * moment each is made until ssa_sock_destroy(), which no call on the file
 * outlasts: such a call needs no lock to follow the pointers. Everybody else
 * (the daemon's commands, dumps, events) has a reference to the struct sock
 * only, and looks under ssa_sock.lock, where a closed socket has neither. A
 * listening socket owns those in its queue until accept() takes them.
 */
#ifndef _SSA_H
#define _SSA_H

#include <linux/file.h>
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
	char *text;
	void *value;
	u32 value_len;
	enum ssa_transport kind;
	struct file *endpoint;		/* of an accepted connection */
	struct file *channel;
	struct ssa_facts *facts;
	char *host_name;
};

/* An accepted option, kept until the socket is connected, for replay. */
struct ssa_setting {
	struct list_head list;
	u32 option;
	u32 len;
	u8 value[] __counted_by(len);
};

/* The options of SOL_SOCKET that were last copied to the endpoint. */
struct ssa_mirror {
	unsigned long flags;
	long rcvtimeo;
	long sndtimeo;
	unsigned long lingertime;
	int rcvlowat;
	int sndbuf;
	int rcvbuf;
	int bound_dev_if;
	u32 mark;
	u32 priority;
	u8 userlocks;
	u8 reuse;
	u8 reuseport;
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

	/* Under lock. */
	struct ssa_request *connect;	/* under way, holds a reference */
	bool connect_reported;		/* connect() has no result to return */
	int connect_error;
	char *error_text;
	char *host_name;
	struct ssa_facts *facts;

	/*
	 * Under control while the state is NEW or LISTENING; then under
	 * lock, and only to be dropped. The worker is changed under both.
	 */
	struct list_head settings;
	u32 nr_settings;
	u32 settings_len;
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

	bool server;			/* accepted */
	unsigned long flags;
#define SSA_CLOSE_NOTIFY_SENT 0

	struct mutex rx_lock;		/* see above; and what follows */
	int rx_end;
	int channel_end;		/* what the worker said, not yet read */
	u32 hs_left;			/* bytes of a handshake message to come */
	u8 hs_header[4];
	u8 hs_header_len;

	struct mutex mirror_lock;	/* for writing */
	struct ssa_mirror mirror;
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

/* socket.c: life of a TLS socket */
extern struct workqueue_struct *ssa_wq;
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
void ssa_sock_set_text(struct ssa_sock *ssk, const char *text);
struct ssa_sock *ssa_sock_get(u64 id);
struct file *ssa_sock_get_endpoint(struct ssa_sock *ssk, struct ssa_request *req);
struct ssa_sock *ssa_sock_next(unsigned long *id);
u32 ssa_sock_count(void);
void ssa_facts_free(struct ssa_facts *facts);

/* listen.c: listening sockets and their queues */
int ssa_sock_listen(struct socket *sock, int backlog);
int ssa_sock_listening(struct ssa_sock *ssk);
int ssa_sock_accept(struct socket *sock, struct socket *newsock, int flags);
struct ssa_sock *ssa_listen_accepted(struct ssa_sock *ssk, struct sk_buff *skb,
				     struct ssa_result *res);
int ssa_listen_enqueue(struct ssa_sock *ssk, struct ssa_sock *child, struct sk_buff *reply,
		       void *hdr, struct genl_info *info);
void ssa_listen_adopt_all(void);
void ssa_listen_adopt(struct work_struct *work);
void ssa_listen_close(struct ssa_sock *ssk);

/* transport.c: what carries the program's bytes */
int ssa_transport_attach(struct ssa_sock *ssk, struct ssa_result *res);
void ssa_transport_close(struct ssa_sock *ssk);
int ssa_transport_shutdown(struct ssa_sock *ssk, int how);
bool ssa_transport_ktls_ready(struct sock *sk);
int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len);
int ssa_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags);
ssize_t ssa_splice_read(struct socket *sock, loff_t *ppos, struct pipe_inode_info *pipe,
			size_t len, unsigned int flags);
void ssa_splice_eof(struct socket *sock);
__poll_t ssa_poll(struct file *file, struct socket *sock, struct poll_table_struct *wait);
int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg);
#ifdef SSA_HAVE_SENDPAGE
ssize_t ssa_sendpage(struct socket *sock, struct page *page, int offset, size_t size, int flags);
#endif

/* record.c: records of a ktls transport that are not application data */
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
int ssa_record_send_alert(struct socket *transport, u8 level, u8 description);
void ssa_record_fail(struct ssa_sock *ssk, u8 description);

/* sockopt.c: setsockopt and getsockopt */
int ssa_setsockopt(struct socket *sock, int level, int name, sockptr_t val, unsigned int len);
int ssa_getsockopt(struct socket *sock, int level, int name, char __user *val, int __user *len);
void ssa_sockopt_mirror(struct ssa_sock *ssk);
void ssa_settings_free(struct ssa_sock *ssk);

/* value.c: an option's value, from the program's memory or from a file */
struct ssa_setting *ssa_value_copy(u32 option, sockptr_t val, unsigned int len);
struct ssa_setting *ssa_value_copy_or_read(u32 option, sockptr_t val, unsigned int len);

/* request.c: operations sent to the daemon, and their one completion */
struct ssa_request {
	refcount_t ref;
	u32 id;
	u8 cmd;
	u64 socket;
	struct ssa_sock *ssk;		/* referenced for connect and listen only */
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
int ssa_request_send_connect(struct ssa_request *req, const struct sockaddr_storage *remote);
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
void ssa_worker_put(struct ssa_worker *worker);
bool ssa_worker_is(struct ssa_worker *worker, struct sk_buff *skb);
int ssa_worker_send(struct ssa_worker *worker, struct sk_buff *skb);
struct ssa_notice *ssa_notice_new(struct ssa_sock *ssk, u8 cmd);
void ssa_worker_notify(struct ssa_worker *worker, struct ssa_notice *notice);

/* netlink.c: the family, commands of the daemon, dumps */
extern struct genl_family ssa_nl_family;
/* Unaligned, as every reader of ours takes it; so there is no padding. */
static inline int ssa_nl_put_u64(struct sk_buff *skb, int attr, u64 value)
{
	return nla_put(skb, attr, sizeof(value), &value);
}

struct sk_buff *ssa_nl_new(u8 cmd, size_t payload, void **hdr);
int ssa_nl_put_socket(struct sk_buff *skb, struct ssa_sock *ssk);
int ssa_nl_put_address(struct sk_buff *skb, int attr, struct ssa_sock *ssk);

/* event.c: what is known and what happens, for those who watch */
int ssa_nl_put_state(struct sk_buff *skb, struct ssa_sock *ssk);
void ssa_event(struct ssa_sock *ssk, enum ssa_event_kind kind);
void ssa_event_refused(struct ssa_sock *ssk, struct genl_info *info);

/* proto.c: registration */
int ssa_proto_init(void);
void ssa_proto_uninit(void);

extern unsigned int ssa_request_timeout_ms;
extern unsigned int ssa_connect_timeout_ms;

#endif
