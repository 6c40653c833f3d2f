/* What a worker is: the mode, the options, and the three ways to serve. */
#ifndef WORKER_H
#define WORKER_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "epoll.h"

/* How the workers wait for newcomers: a row of the table in server.c. What a row does not name is
 * false, 0 or NULL. */
struct mode {
    const char *name;
    void (*serve)(void);           /* what a worker does all day: one of the three below */
    bool (*wait)(void);            /* serve_single: until a newcomer may be there */
    uint32_t mask;                 /* what an epoll instance is asked about the listener */
    bool blocking;                 /* the listener is */
    bool shared;                   /* one epoll instance for all, made before the fork */
    bool own_listener;             /* each worker has a listener of its own (SO_REUSEPORT) */
    bool accept_mutex;             /* who holds it has the listener in its set, nobody else */
    int (*wake)(pthread_cond_t *); /* threads: how they hear of a job. NULL: no threads */
    const char *about;             /* for -m help */
};

extern const struct mode *mode; /* -m */
extern int workers;             /* -w: processes, or threads in a pool */
extern int delay;               /* -d: milliseconds between being woken and accepting */
extern bool verbose;            /* -v */
extern int listener;

extern volatile sig_atomic_t stop; /* a signal asked this worker to end */
extern sigset_t while_asleep;      /* the signals that stay blocked while it sleeps: not SIGTERM */

/* The life of a worker in its process, from its first signal mask to its last client: number is its
 * row of the scoreboard. Returns when SIGTERM came. */
void work(int number);

/* Before the first fork: the lock of mode mutex, in memory that all workers share. */
void open_accept_mutex(void);

/* Before the first fork: what a worker that is out of descriptors wakes the others with. */
void open_nudge(void);

/* Hands a ready descriptor to its owner. */
void handle(const struct epoll_event *event);

/* The two seams to the client code: puts the listener into the epoll instance, in the way of the
 * mode, and takes it out. start_accepting returns -1 with errno if the kernel has no memory. */
int start_accepting(void);
void stop_accepting(void);

/* -d */
void nap(void);

/* Three ways to serve until stop is set. */
void serve_many(void);   /* worker.c: day 4's loop, many clients at a time */
void serve_single(void); /* single.c: day 1's way, one client to the end, then the next */
void serve_pool(void);   /* pool.c: day 4's loop, with threads that do its work */

/* Waits of serve_single. They return whether it is worth to accept; false: a signal came. */
bool wait_in_accept(void);
bool wait_in_poll(void);
bool wait_in_epoll(void);

#endif
