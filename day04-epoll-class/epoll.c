#include "epoll.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

int epoll_open(struct epoll *e, int capacity)
{
    /* Beware from here on: events is a pointer now and not an array. sizeof(e->events) is the
     * size of the pointer, and &e->events its address, not the array's. See bzero_pitfall.c. */
    *e = (struct epoll){.fd = -1, .capacity = capacity};
    e->events = calloc((size_t)capacity, sizeof(*e->events));
    if (e->events == NULL)
        return -1;
    e->fd = epoll_create1(0);
    if (e->fd == -1)
        epoll_close(e);
    return e->fd == -1 ? -1 : 0;
}

static int control(struct epoll *e, int operation, int fd, uint32_t mask, void *data)
{
    struct epoll_event event = {.events = mask, .data.ptr = data};

    return epoll_ctl(e->fd, operation, fd, &event);
}

int epoll_add(struct epoll *e, int fd, uint32_t mask, void *data)
{
    return control(e, EPOLL_CTL_ADD, fd, mask, data);
}

int epoll_modify(struct epoll *e, int fd, uint32_t mask, void *data)
{
    return control(e, EPOLL_CTL_MOD, fd, mask, data);
}

void epoll_remove(struct epoll *e, int fd)
{
    control(e, EPOLL_CTL_DEL, fd, 0, NULL);
}

int epoll_sleep(struct epoll *e, int milliseconds)
{
    return epoll_wait(e->fd, e->events, e->capacity, milliseconds);
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
