/* An echo server on libev: a watcher for each client. What send does not take is kept until there is
 * room, and nothing more is read from that client meanwhile, as in our servers. */
#define _GNU_SOURCE

#include <ev.h>

#include "listener.h"

struct client {
    ev_io watcher; /* first, so that a pointer to it is a pointer to the client */
    char *held;
    size_t length, sent;
};

static char buffer[BUFFER_SIZE];

static void drop(struct ev_loop *loop, struct client *c)
{
    ev_io_stop(loop, &c->watcher);
    close(c->watcher.fd);
    free(c->held);
    free(c);
}

static void want(struct ev_loop *loop, struct client *c, int events)
{
    ev_io_stop(loop, &c->watcher);
    ev_io_set(&c->watcher, c->watcher.fd, events);
    ev_io_start(loop, &c->watcher);
}

static void send_rest(struct ev_loop *loop, struct client *c)
{
    ssize_t n = send(c->watcher.fd, c->held + c->sent, c->length - c->sent, 0);

    if (n == -1 && errno != EAGAIN) {
        drop(loop, c);
        return;
    }
    c->sent += n == -1 ? 0 : (size_t)n;
    if (c->sent < c->length)
        return;
    free(c->held);
    c->held = NULL;
    want(loop, c, EV_READ);
}

static void echo(struct ev_loop *loop, struct client *c)
{
    ssize_t sent, n = recv(c->watcher.fd, buffer, sizeof(buffer), 0);

    if (n == -1 && errno == EAGAIN)
        return;
    if (n <= 0) {
        drop(loop, c);
        return;
    }
    sent = send(c->watcher.fd, buffer, (size_t)n, 0);
    if (sent == -1 && errno != EAGAIN) {
        drop(loop, c);
        return;
    }
    sent = sent == -1 ? 0 : sent;
    if (sent == n)
        return;
    c->length = (size_t)(n - sent);
    c->sent = 0;
    c->held = malloc(c->length);
    if (c->held == NULL) {
        drop(loop, c);
        return;
    }
    memcpy(c->held, buffer + sent, c->length);
    want(loop, c, EV_WRITE);
}

static void on_client(struct ev_loop *loop, ev_io *watcher, int events)
{
    if (events & EV_WRITE)
        send_rest(loop, (struct client *)watcher);
    else
        echo(loop, (struct client *)watcher);
}

static void on_listener(struct ev_loop *loop, ev_io *watcher, int events)
{
    int fd;

    (void)events;
    while ((fd = accept4(watcher->fd, NULL, NULL, SOCK_NONBLOCK)) != -1) {
        struct client *c = calloc(1, sizeof(*c));
        if (c == NULL) {
            close(fd);
            continue;
        }
        ev_io_init(&c->watcher, on_client, fd, EV_READ);
        ev_io_start(loop, &c->watcher);
    }
}

int main(int argc, char *argv[])
{
    struct ev_loop *loop = ev_default_loop(EVBACKEND_EPOLL);
    ev_io listener;

    (void)argc;
    ev_io_init(&listener, on_listener, open_listener(argv), EV_READ);
    ev_io_start(loop, &listener);
    return !ev_run(loop, 0);
}
