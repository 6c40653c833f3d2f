/* An echo server on libevent, the short way: a bufferevent for each client, and what is in its input
 * goes to its output. (So what a client does not read piles up in memory.) */
#define _GNU_SOURCE

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

#include "listener.h"

static void on_read(struct bufferevent *client, void *unused)
{
    (void)unused;
    bufferevent_write_buffer(client, bufferevent_get_input(client));
}

static void on_event(struct bufferevent *client, short events, void *unused)
{
    (void)unused;
    if (events & (BEV_EVENT_EOF | BEV_EVENT_ERROR))
        bufferevent_free(client);
}

static void on_connection(struct evconnlistener *listener, evutil_socket_t fd,
                          struct sockaddr *address, int length, void *unused)
{
    struct event_base *base = evconnlistener_get_base(listener);
    struct bufferevent *client = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);

    (void)address;
    (void)length;
    (void)unused;
    if (client == NULL)
        errx(1, "no memory for a client");
    bufferevent_setcb(client, on_read, NULL, on_event, NULL);
    bufferevent_enable(client, EV_READ | EV_WRITE);
}

int main(int argc, char *argv[])
{
    struct event_base *base = event_base_new();

    (void)argc;
    if (evconnlistener_new(base, on_connection, NULL, LEV_OPT_CLOSE_ON_FREE, -1,
                           open_listener(argv)) == NULL)
        errx(1, "libevent does not take the listener");
    return event_base_dispatch(base);
}
