/* An epoll instance and the array that its events arrive in.
 *
 * struct epoll is ours, one for each loop. struct epoll_event is the system's, one for each
 * descriptor that is ready. The system's functions are epoll_create1, epoll_ctl and epoll_wait; the
 * six below are ours, and only they call those.
 *
 * Each takes an object that epoll_open has filled in. None of them prints or exits: they return -1
 * and leave errno, as system calls do.
 */
#ifndef EPOLL_H
#define EPOLL_H

#include <stdint.h>
#include <sys/epoll.h>

struct epoll {
    int fd;                     /* the instance */
    int capacity;               /* how many events the array has room for */
    struct epoll_event *events; /* the array: ours from epoll_open to epoll_close */
};

/* Makes an instance, with room for so many events at once (at least 1). Errors: EMFILE, ENFILE,
 * ENOMEM. epoll_create1(2) */
int epoll_open(struct epoll *e, int capacity);

/* Wait for what mask says of fd: EPOLLIN, EPOLLOUT, … data comes back as data.ptr of the event; it
 * stays yours. Errors: ENOMEM, ENOSPC (too many watches), EPERM (fd is a regular file).
 * epoll_ctl(2) */
int epoll_add(struct epoll *e, int fd, uint32_t mask, void *data);

/* The same for an fd that epoll_add knows: from now on wait for this, and nothing else. Errors:
 * ENOENT. epoll_ctl(2) */
int epoll_modify(struct epoll *e, int fd, uint32_t mask, void *data);

/* No more events from fd. Does nothing if there were none. epoll_ctl(2) */
void epoll_remove(struct epoll *e, int fd);

/* Sleeps until something is ready, at most so many milliseconds; -1: for as long as it takes.
 * Returns how many of e->events are filled in, until the next call; 0 when the time is up. Errors:
 * EINTR. epoll_wait(2) */
int epoll_sleep(struct epoll *e, int milliseconds);

/* Gives back the instance and the array. */
void epoll_close(struct epoll *e);

#endif
