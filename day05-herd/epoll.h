/* An epoll instance and the array that its events arrive in.
 *
 * struct epoll is ours, one for each loop. struct epoll_event is the system's, one for each
 * descriptor that is ready. The system's functions are epoll_create1, epoll_ctl and epoll_pwait;
 * the six below are ours, and they alone call those.
 *
 * Each takes an object that epoll_open has filled in. None of them prints or exits: they return -1
 * and leave errno, as system calls do.
 */
#ifndef EPOLL_H
#define EPOLL_H

#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>

struct epoll {
    int fd;                     /* the instance */
    bool edge_triggered;        /* level-triggered otherwise */
    int capacity;               /* how many events the array has room for */
    struct epoll_event *events; /* the array: ours from epoll_open to epoll_close */
};

/* Makes an instance, with room for so many events at once (at least 1). Errors: EMFILE, ENFILE,
 * ENOMEM. epoll_create1(2) */
int epoll_open(struct epoll *e, int capacity, bool edge_triggered);

/* Wait until fd can be read from, and no longer until it can be written to. data comes back as
 * data.ptr of the event; it stays yours. Errors: ENOMEM, ENOSPC (too many watches), EPERM (fd is a
 * regular file). epoll_ctl(2) */
int epoll_want_read(struct epoll *e, int fd, void *data);

/* The other way round, for an fd that epoll_want_read knows. Errors: ENOENT. epoll_ctl(2) */
int epoll_want_write(struct epoll *e, int fd, void *data);

/* Wait for nothing from fd any more. Nothing happens if we did not. epoll_ctl(2) */
void epoll_forget(struct epoll *e, int fd);

/* Sleeps until something is ready, at most so many milliseconds (-1: for ever), with the signals of
 * mask blocked and all others let in. Returns how many of e->events are filled in, until the next
 * call; 0 when the time was up or a signal came. epoll_pwait(2) */
int epoll_sleep(struct epoll *e, int milliseconds, const sigset_t *mask);

/* Gives back the instance and the array. */
void epoll_close(struct epoll *e);

#endif
