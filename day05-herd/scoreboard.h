/* What the workers count, in memory that they share with their parent.
 *
 * A row belongs to one worker (a process, or a thread of a pool), and it alone writes there, so no
 * lock is needed; atomic, so that a reader sees a number that was there. A worker that takes the
 * place of a dead one goes on with its row. A pool has one row more, for its loop: it is printed,
 * but not part of the sum.
 *
 * There are two answers to "how many woke up?":
 *
 *   returned  The program's: accept, poll or epoll_wait came back and named the listener; in a pool
 *             pthread_cond_wait came back. Wake-ups for data alone are not in it.
 *   woken     The kernel's: voluntary context switches of the worker since it was ready to work. A
 *             worker that goes back to sleep inside epoll_wait was woken and did not return. All
 *             wake-ups are in it, for data as well.
 */
#ifndef SCOREBOARD_H
#define SCOREBOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct row {
    _Alignas(64) _Atomic pid_t pid; /* a cache line each: neighbours do not slow each other down */
    _Atomic pid_t tid;              /* the thread; pid, if there is but one. 0: it is gone */
    _Atomic uint64_t returned;
    _Atomic uint64_t accepted;  /* connections; in a pool: jobs */
    _Atomic uint64_t nothing;   /* returned, but others had been faster */
    _Atomic uint64_t timed_out; /* returned because the time was up */
    _Atomic uint64_t asleep;    /* switches before the first wake-up */
    _Atomic uint64_t woken;     /* of those that are gone */
    _Atomic uint64_t clients, received, echoed;
};

extern _Thread_local struct row *row; /* ours */

/* Before the first fork. loop: the last row is that of a pool's loop. Exits if there is no memory. */
void scoreboard_open(int rows, bool loop);

/* The caller is worker number (from 0) from now on; clients, received and echoed go on from where
 * its predecessor left them. */
void scoreboard_join(int number);

/* Counts a return from the wait: how many were accepted, and whether nobody was there. */
void scoreboard_returned(uint64_t accepted, bool nothing);

/* Shows the caller's clients, received and echoed to the others. */
void scoreboard_publish(void);

/* A thread ends: while it lives, the kernel knows its switches; then nobody would. */
void scoreboard_leave(void);

/* The parent: keeps the switches of a process that is dead, but not yet waited for. */
void scoreboard_bury(pid_t pid);

/* The totals of all rows, on a line, and the table. proc(5) */
void scoreboard_print_totals(void);
void scoreboard_print(void);

#endif
