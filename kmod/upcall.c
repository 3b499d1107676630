// SPDX-License-Identifier: GPL-2.0
/*
 * Upcalls: sk_state_change, sk_data_ready, sk_write_space and sk_error_report
 * of a TLS socket. The core's serve those that sleep in a call or in poll(),
 * and SIGIO; a user inside the kernel can put its own in their place.
 *
 * A transport wakes us with interrupts off and its wait queue locked. The
 * core's upcalls do nothing but wake others, so they are made there and then.
 * One that was replaced expects what TCP gives it: a softirq with interrupts
 * on, for it takes sk_callback_lock. So it is made by a tasklet, and what
 * happens several times before that runs is told once.
 */

#include "ssa.h"

/* The core's, which are static there. */
static struct {
	void (*state_change)(struct sock *sk);
	void (*data_ready)(struct sock *sk);
	void (*write_space)(struct sock *sk);
	void (*error_report)(struct sock *sk);
} core;

/**
 * ssa_upcall_learn - find out what the core's upcalls are
 * @sk: fresh from the core, seen by nobody else
 */
void ssa_upcall_learn(const struct sock *sk)
{
	/* Always the same values. */
	WRITE_ONCE(core.state_change, sk->sk_state_change);
	WRITE_ONCE(core.data_ready, sk->sk_data_ready);
	WRITE_ONCE(core.write_space, sk->sk_write_space);
	WRITE_ONCE(core.error_report, sk->sk_error_report);
}

/* In the order in which TCP makes them. */
static void run(struct tasklet_struct *tasklet)
{
	struct ssa_sock *ssk = container_of(tasklet, struct ssa_sock, upcall);
	struct sock *sk = ssa_to_sk(ssk);

	if (test_and_clear_bit(SSA_UPCALL_ERROR_REPORT, &ssk->upcalls))
		sk_error_report(sk);
	if (test_and_clear_bit(SSA_UPCALL_STATE_CHANGE, &ssk->upcalls))
		sk->sk_state_change(sk);
	if (test_and_clear_bit(SSA_UPCALL_DATA_READY, &ssk->upcalls))
		sk->sk_data_ready(sk);
	if (test_and_clear_bit(SSA_UPCALL_WRITE_SPACE, &ssk->upcalls))
		sk->sk_write_space(sk);
}

/**
 * ssa_upcall_init - prepare a socket for upcalls
 * @ssk: seen by nobody else
 */
void ssa_upcall_init(struct ssa_sock *ssk)
{
	tasklet_setup(&ssk->upcall, run);
}

static void make(struct ssa_sock *ssk, void (*upcall)(struct sock *sk),
		 void (*of_core)(struct sock *sk), enum ssa_upcall which)
{
	if (likely(upcall == of_core)) {
		upcall(ssa_to_sk(ssk));
		return;
	}
	set_bit(which, &ssk->upcalls);
	tasklet_schedule(&ssk->upcall);
}

/**
 * ssa_upcall - tell a socket's user that something has happened
 * @ssk: the socket; by a call on it, or with its lock held and not closed, or
 *	from the wait queue of its transport: ssa_upcall_stop() comes later
 * @which: what has happened
 *
 * Does not sleep; in any context.
 */
void ssa_upcall(struct ssa_sock *ssk, enum ssa_upcall which)
{
	struct sock *sk = ssa_to_sk(ssk);

	switch (which) {
	case SSA_UPCALL_STATE_CHANGE:
		make(ssk, READ_ONCE(sk->sk_state_change), core.state_change, which);
		break;
	case SSA_UPCALL_DATA_READY:
		make(ssk, READ_ONCE(sk->sk_data_ready), core.data_ready, which);
		break;
	case SSA_UPCALL_WRITE_SPACE:
		make(ssk, READ_ONCE(sk->sk_write_space), core.write_space, which);
		break;
	case SSA_UPCALL_ERROR_REPORT:
		make(ssk, READ_ONCE(sk->sk_error_report), core.error_report, which);
		break;
	}
}

/**
 * ssa_upcall_wake - tell a socket's user what a transport tells those that
 * wait on it
 * @ssk: whose transport it is
 * @events: of its wake-up
 *
 * Does not sleep; in any context.
 */
void ssa_upcall_wake(struct ssa_sock *ssk, __poll_t events)
{
	if (events & EPOLLERR)
		ssa_upcall(ssk, SSA_UPCALL_ERROR_REPORT);
	if (events & EPOLLIN)
		ssa_upcall(ssk, SSA_UPCALL_DATA_READY);
	if (events & EPOLLOUT)
		ssa_upcall(ssk, SSA_UPCALL_WRITE_SPACE);
	if (!(events & (EPOLLERR | EPOLLIN | EPOLLOUT)))
		ssa_upcall(ssk, SSA_UPCALL_STATE_CHANGE);
}

/**
 * ssa_upcall_stop - let no upcall run any more
 * @ssk: being closed: none is made any more
 *
 * Sleeps until one that runs has returned.
 */
void ssa_upcall_stop(struct ssa_sock *ssk)
{
	tasklet_kill(&ssk->upcall);
}
