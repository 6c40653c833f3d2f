/* Day 4's client code. The bodies of the functions are the same, byte for byte; what is new is above
 * them: what a thread of a pool must not share with the others is its own. */
#define _GNU_SOURCE

#include "connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../common/die.h"
#include "worker.h"

enum {
    BUFFER_SIZE = 64 * 1024, /* bytes */
    BLOCK = 1024,            /* slots that are allocated together */
};

struct epoll epoll = {.fd = -1};

static struct connection **blocks; /* of BLOCK slots each */
int slots;                         /* in all of them; slot 5 belongs to descriptor 5 */

bool shortage;
time_t tried_at;

_Thread_local uint64_t clients, received, echoed;
_Thread_local unsigned int busy;
static _Thread_local char buffer[BUFFER_SIZE]; /* a client that owes us nothing needs none */
static _Thread_local char name[sizeof("255.255.255.255:65535")];

/* ---- A client, from arrival to leaving ------------------------------------------------------- */

/* The slot of a descriptor; NULL, with errno, when there is none. The table grows with the clients,
 * not with the limit: that may be a billion. A block never moves, so pointers into it stay good. */
struct connection *connection_of(int fd)
{
    while (fd >= slots) {
        size_t count = (size_t)(slots / BLOCK);
        struct connection **more = realloc(blocks, (count + 1) * sizeof(*blocks));
        if (more == NULL)
            return NULL;
        blocks = more;
        blocks[count] = calloc(BLOCK, sizeof(**blocks));
        if (blocks[count] == NULL)
            return NULL;
        slots += BLOCK;
    }
    return &blocks[fd / BLOCK][fd % BLOCK];
}

/* Who this is, as 127.0.0.1:40123, until the next call. */
const char *peer_name(const struct connection *c)
{
    char ip[INET_ADDRSTRLEN];

    inet_ntop(AF_INET, &c->ip, ip, sizeof(ip)); /* inet_ntoa is not for threads (day 5) */
    snprintf(name, sizeof(name), "%s:%d", ip, ntohs(c->port));
    return name;
}

/* Says who goes and why, and gives back all that the client had. */
void drop(struct connection *c, const char *why)
{
    printf("%s left after %" PRIu64 " bytes: %s\n", peer_name(c), c->echoed, why);
    epoll_forget(&epoll, c->fd);
    close(c->fd);
    free(c->held);
    c->held = NULL;
    c->open = false;
    if (shortage) /* a descriptor is free again */
        start_accepting();
}

/* One client's trouble costs that client, and nobody else: a server never exits here. */
void fail(struct connection *c, const char *call)
{
    complain("%s %s", call, peer_name(c));
    drop(c, strerror(errno));
}

static void add_connection(int fd, const struct sockaddr_in *peer)
{
    struct connection *c = connection_of(fd);

    if (c == NULL) {
        complain("no room for %s:%d", inet_ntoa(peer->sin_addr), ntohs(peer->sin_port));
        close(fd);
        return;
    }
    /* The name is kept, for a client that is gone has none to ask for: getpeername would fail. */
    *c = (struct connection){.fd = fd, .ip = peer->sin_addr, .port = peer->sin_port, .open = true};
    clients++;
    printf("%s connected\n", peer_name(c));
    if (epoll_want_read(&epoll, fd, c) == -1)
        fail(c, "epoll_want_read");
}

/* accept did not give us a client. Returns whether to ask it for the next one. */
static bool accept_failed(void)
{
    switch (errno) {
    case EAGAIN: /* the backlog is empty */
        shortage = false;
        return false;
    case EINTR:
        return true;
    case ECONNABORTED: /* that client gave up while it was in the backlog */
        complain("accept");
        return true;
    default: /* EMFILE, ENFILE, ENOMEM, ENOBUFS: nobody can be taken, and as long as somebody is in
              * the backlog the listener is readable: waiting for it would not let us sleep. */
        if (!shortage)
            complain("accept: newcomers have to wait");
        shortage = true;
        tried_at = time(NULL);
        stop_accepting();
        return false;
    }
}

/* Takes all that are in the backlog: one wake-up may stand for many newcomers. */
void accept_clients(void)
{
    struct sockaddr_in peer = {0};
    bool more = true;

    while (more) {
        socklen_t length = sizeof(peer);
        int fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK);
        if (fd == -1)
            more = accept_failed();
        else
            add_connection(fd, &peer);
    }
}

/* Sends what the kernel has room for, which may be less than all (a short write) or nothing, and
 * counts it. Returns how many bytes that was, -1 when the client had to be dropped. */
static ssize_t send_some(struct connection *c, const char *bytes, size_t length)
{
    ssize_t n;

    do
        n = send(c->fd, bytes, length, 0);
    while (n == -1 && errno == EINTR);
    if (n == -1 && errno == EAGAIN)
        return 0;
    if (n == -1) {
        fail(c, "send");
        return -1;
    }
    c->echoed += (uint64_t)n;
    echoed += (uint64_t)n;
    busy++;
    return n;
}

/* Keeps what send did not take, and waits for room instead of reading on. */
static void hold(struct connection *c, const char *bytes, size_t length)
{
    struct held *held = malloc(sizeof(*held) + length);

    if (held == NULL) {
        fail(c, "malloc for");
        return;
    }
    held->length = length;
    held->sent = 0;
    memcpy(held->bytes, bytes, length);
    c->held = held;
    if (epoll_want_write(&epoll, c->fd, c) == -1)
        fail(c, "epoll_want_write");
}

/* There is room again: more of what is held goes out. When all of it is gone we read on. */
void send_rest(struct connection *c)
{
    struct held *held = c->held;
    ssize_t n = send_some(c, held->bytes + held->sent, held->length - held->sent);

    if (n == -1)
        return;
    held->sent += (size_t)n;
    if (held->sent < held->length)
        return;
    free(held);
    c->held = NULL;
    if (epoll_want_read(&epoll, c->fd, c) == -1)
        fail(c, "epoll_want_read");
}

/* Reads once and gives back what came: n bytes, never the whole buffer. TCP knows no messages: what
 * a client sent in one piece may come in three, and the other way round. A client that closes its
 * sending side (0 bytes) has had all its answers, since we do not read while something is held.
 * Returns whether it is worth to try again at once. */
bool echo(struct connection *c)
{
    ssize_t n;

    do
        n = recv(c->fd, buffer, sizeof(buffer), 0);
    while (n == -1 && errno == EINTR);
    if (n == -1 && errno == EAGAIN)
        return false;
    if (n == -1) {
        fail(c, "recv");
        return false;
    }
    if (n == 0) {
        drop(c, "closed by the client");
        return false;
    }
    received += (uint64_t)n;

    ssize_t sent = send_some(c, buffer, (size_t)n);
    if (sent != -1 && sent < n)
        hold(c, buffer + sent, (size_t)(n - sent));
    return sent == n;
}
