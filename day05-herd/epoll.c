#define _GNU_SOURCE

#include "epoll.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

int epoll_open(struct epoll *e, int capacity, bool edge_triggered)
{
    *e = (struct epoll){.fd = -1, .capacity = capacity, .edge_triggered = edge_triggered};

    /* Look out from here on: events is a pointer now and no array. sizeof(e->events) is the size of
     * the pointer, and &e->events its address, not the array's. See bzero_pitfall.c. */
    e->events = calloc((size_t)capacity, sizeof(*e->events));
    if (e->events == NULL)
        return -1;
    e->fd = epoll_create1(EPOLL_CLOEXEC);
    if (e->fd == -1)
        epoll_close(e);
    return e->fd == -1 ? -1 : 0;
}

static int change_interest(struct epoll *e, int operation, int fd, uint32_t mask, void *data)
{
    struct epoll_event event = {.events = mask, .data.ptr = data};

    if (e->edge_triggered)
        event.events |= EPOLLET;
    return epoll_ctl(e->fd, operation, fd, &event);
}

/* EPOLLRDHUP tells a close from data. */
int epoll_want_read(struct epoll *e, int fd, void *data)
{
    if (change_interest(e, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP, data) == 0)
        return 0;
    if (errno != EEXIST)
        return -1;
    return change_interest(e, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLRDHUP, data);
}

/* Without EPOLLRDHUP: once true it stays so, and would never let us sleep. */
int epoll_want_write(struct epoll *e, int fd, void *data)
{
    return change_interest(e, EPOLL_CTL_MOD, fd, EPOLLOUT, data);
}

void epoll_forget(struct epoll *e, int fd)
{
    change_interest(e, EPOLL_CTL_DEL, fd, 0, NULL);
}

int epoll_sleep(struct epoll *e, int milliseconds, const sigset_t *mask)
{
    int ready = epoll_pwait(e->fd, e->events, e->capacity, milliseconds, mask);

    return ready == -1 && errno == EINTR ? 0 : ready;
}

void epoll_close(struct epoll *e)
{
    int error = errno;

    if (e->fd != -1)
        close(e->fd);
    free(e->events);
    *e = (struct epoll){.fd = -1};
    errno = error;
}
