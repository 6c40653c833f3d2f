/* An echo server as an object: all that it knows stands in struct server, so that a program can
 * have several, in as many threads. struct connection is the server's own; see server.c.
 *
 *     struct server s = {.verbose = true};
 *
 *     server_look_up(&s, "8888", "localhost");
 *     server_bind(&s);
 *     server_start(&s, server_signals());
 *     while (!s.stop)
 *         server_turn(&s);
 *     server_finish(&s);
 */
#ifndef SERVER_H
#define SERVER_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "epoll.h"

enum { BUFFER_SIZE = 64 * 1024 }; /* bytes */

/* An address as text: 127.0.0.1:40123 or [::1]:40123. */
struct name {
    char text[80];
};

/* Connections, bytes, bytes. */
struct totals {
    unsigned long long clients, received, echoed;
};

struct server {
    /* Yours, before server_bind: */
    bool verbose;    /* print a line for every wake-up, */
    char prefix[24]; /* with this in front of it */
    bool exclusive;  /* several processes wait at the listener: EPOLLEXCLUSIVE */
    bool reuse_port; /* several listeners share the port: SO_REUSEPORT */
    uint32_t edge;   /* EPOLLET: edge-triggered; 0 otherwise */

    /* Yours to read: */
    struct sockaddr_in6 address; /* where it listens */
    bool stop;                   /* a signal has come: call server_finish */
    struct totals totals;

    /* The server's: */
    int listener;                   /* -1: it has said goodbye */
    int signals;                    /* a descriptor that can be read when a signal has come */
    struct epoll epoll;             /* all that it waits for */
    bool shortage;                  /* accept failed for lack of descriptors or memory */
    int64_t retry_at;               /* if so: when to try again, in milliseconds of now() */
    struct connection *connections; /* the first of the list */
    char buffer[BUFFER_SIZE];       /* one for all: a client to which we owe nothing needs none */
};

struct name name_of(const struct sockaddr_in6 *whose);

/* Blocks SIGINT and SIGTERM in the calling thread, and in those that it starts. Returns a
 * descriptor for server_start that can be read as soon as one of the two has come. Exits if there
 * is none to be had. signalfd(2) */
int server_signals(void);

/* Finds out where to listen: the first address that host has. (getaddrinfo takes port 65537 for
 * port 1, so we check the port ourselves.) Says what is wrong and returns false if it cannot.
 * getaddrinfo(3) */
bool server_look_up(struct server *s, const char *port, const char *host);

/* Opens the listener, to which no client can connect yet. Port 0 becomes one that is free. A start
 * that fails exits with status 1, here and in server_start. bind(2) */
void server_bind(struct server *s);

/* From here on clients can connect. Several processes may start with one listener, bound before the
 * fork. signals stays yours; several servers may have the same. listen(2) */
void server_start(struct server *s, int signals);

/* Sleeps until something is ready, and does what there is to do. */
void server_turn(struct server *s);

/* The three that server_turn calls as there is need. Take one newcomer: if there are more, the
 * listener stays readable, and the clients that we have get their turn first. Wait for newcomers
 * (false: the kernel has no memory for it), or leave them in the backlog. accept(2), epoll_ctl(2)
 */
void server_accept(struct server *s);
bool server_start_accepting(struct server *s);
void server_stop_accepting(struct server *s);

/* Stops accepting, says goodbye to all clients, and gives back all that the server has. Takes half
 * a second at most. */
void server_finish(struct server *s);

/* Milliseconds since some moment in the past, by a clock that cannot be set. clock_gettime(2) */
int64_t now(void);
int milliseconds_until(int64_t moment); /* 0 if it is past */

void print_totals(const struct totals *t);

#endif
