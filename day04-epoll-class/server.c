/* Day 4: the server of day 3 as an object, and nothing outside of it. See server.h.
 *
 * The functions stand in the same order and do the same. What was a variable of the file is a
 * member of struct server, and the connections are a list: an event leads to its connection by a
 * pointer.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../common/die.h"
#include "server.h"

/* How many clients may wait for accept (the kernel may allow less). */
enum { BACKLOG = 4096 };

/* Milliseconds: from one look for a free descriptor to the next, and for the farewell. */
enum { LOOK_AGAIN = 1000, FAREWELL = 500 };

/* How many events one wake-up may bring (the others follow in the next), how many reads a client
 * gets before it is the others' turn (edge-triggered). */
enum { EVENTS = 64, ROUNDS = 2 };

/* Bytes that a client sent and has not taken back yet. */
struct held {
    size_t length; /* of bytes[] */
    size_t sent;   /* how many of them have been sent */
    char bytes[];
};

/* A client that is connected. An IPv4 address is smaller than an IPv6 one, and fits in, too. */
struct connection {
    struct connection *next, *previous;
    struct held *held; /* NULL: nothing, and we want to read. Otherwise we want to write */
    int fd;
    struct sockaddr_in6 address;
};

/* ---- Before the first client ----------------------------------------------------------------- */

bool server_look_up(struct server *s, const char *port, const char *host)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    bool digits = port[0] != '\0' && port[strspn(port, "0123456789")] == '\0';

    if (!digits || strtoul(port, NULL, 10) > 65535) {
        fprintf(stderr, "server: port %s: not a number from 0 to 65535\n", port);
        return false;
    }
    int error = getaddrinfo(host, port, &hints, &found);
    if (error != 0) {
        fprintf(stderr, "server: host %s: %s\n", host, gai_strerror(error));
        return false;
    }
    memcpy(&s->address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return true;
}

struct name name_of(const struct sockaddr_in6 *whose)
{
    struct name name = {"?"};
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (getnameinfo((const struct sockaddr *)whose, sizeof(*whose), host, sizeof(host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(name.text, sizeof(name.text), strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    return name;
}

static void switch_on(const struct server *s, int level, int option, const char *name)
{
    int on = 1;

    if (setsockopt(s->listener, level, option, &on, sizeof(on)) == -1)
        die("setsockopt %s", name);
}

void server_bind(struct server *s)
{
    socklen_t length = sizeof(s->address);

    s->listener = socket(s->address.sin6_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (s->listener == -1)
        die("socket");

    /* The connections of the server before us may still be in TIME_WAIT; bind all the same. */
    switch_on(s, SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR");
    if (s->reuse_port)
        switch_on(s, SOL_SOCKET, SO_REUSEPORT, "SO_REUSEPORT");
    /* Sockets from accept inherit these: an answer does not wait for the acknowledgement
     * of the last one, a machine that has vanished is noticed, an urgent byte is one like others.
     */
    switch_on(s, IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY");
    switch_on(s, SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE");
    switch_on(s, SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE");

    if (bind(s->listener, (struct sockaddr *)&s->address, sizeof(s->address)) == -1)
        die("bind %s", name_of(&s->address).text);
    /* Port 0 lets the kernel choose: ask what it chose. */
    if (getsockname(s->listener, (struct sockaddr *)&s->address, &length) == -1)
        die("getsockname");
}

/* ---- Signals --------------------------------------------------------------------------------- */

/* Our signals are blocked for good. One that comes stays pending, and then signalfd's descriptor
 * can be read. We never read it, because we only want to know that there is one. */
int server_signals(void)
{
    sigset_t ours;
    int signals;

    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ours, NULL);
    signals = signalfd(-1, &ours, 0);
    if (signals == -1)
        die("signalfd");
    return signals;
}

/* ---- Time ------------------------------------------------------------------------------------ */

int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

int milliseconds_until(int64_t moment)
{
    int64_t left = moment - now();

    return left > 0 ? (int)left : 0;
}

/* ---- The interest set ------------------------------------------------------------------------ */

static bool fail(struct server *s, struct connection *c, const char *call);

/* Wait for bytes from this client, not for room to send to it. In edge-triggered mode the kernel
 * also looks again whether there is something to read. EPOLLRDHUP means a close, not data.
 * The kernel may have no memory for it. Then the client is dropped, and false is returned. */
static bool want_read(struct server *s, struct connection *c)
{
    uint32_t mask = EPOLLIN | EPOLLRDHUP | s->edge;

    return epoll_modify(&s->epoll, c->fd, mask, c) == 0 || fail(s, c, "epoll_ctl for");
}

/* The other way round. EPOLLRDHUP stays set once it is true: with it we would never sleep. */
static bool want_write(struct server *s, struct connection *c)
{
    uint32_t mask = EPOLLOUT | s->edge;

    return epoll_modify(&s->epoll, c->fd, mask, c) == 0 || fail(s, c, "epoll_ctl for");
}

/* The listener is always level-triggered, so that we need not take all newcomers at once. */
bool server_start_accepting(struct server *s)
{
    uint32_t mask = s->exclusive ? EPOLLIN | EPOLLEXCLUSIVE : EPOLLIN;

    s->shortage = epoll_add(&s->epoll, s->listener, mask, &s->listener) == -1;
    s->retry_at = now() + LOOK_AGAIN; /* if the kernel has no memory for it */
    return !s->shortage;
}

void server_stop_accepting(struct server *s)
{
    epoll_remove(&s->epoll, s->listener);
}

/* ---- A client, from arrival to leaving ------------------------------------------------------- */

/* Gives back all that the client had. Returns false: it is gone. */
static bool drop(struct server *s, struct connection *c, const char *why)
{
    if (s->verbose)
        printf("%sfd %d: %s left: %s\n", s->prefix, c->fd, name_of(&c->address).text, why);
    if (c->next != NULL)
        c->next->previous = c->previous;
    if (c->previous != NULL)
        c->previous->next = c->next;
    else
        s->connections = c->next;
    epoll_remove(&s->epoll, c->fd);
    close(c->fd);
    free(c->held);
    free(c);
    s->retry_at = 0; /* a descriptor is free again */
    return false;
}

/* The same for a client that has not taken all that is on its way: what our kernel still has for it
 * was not echoed. (tcp(7) calls this number SIOCOUTQ. An end of file on its way counts as a byte.)
 */
static bool give_up(struct server *s, struct connection *c, const char *why)
{
    int unsent = 0;

    ioctl(c->fd, TIOCOUTQ, &unsent);
    if (unsent > 0)
        s->totals.echoed -= (size_t)unsent - (s->listener == -1);
    return drop(s, c, why);
}

/* One client's trouble costs that client alone: a server never exits here. Returns false. */
static bool fail(struct server *s, struct connection *c, const char *call)
{
    complain("%s %s", call, name_of(&c->address).text);
    return give_up(s, c, strerror(errno));
}

static void add_connection(struct server *s, int fd, const struct sockaddr_in6 *from)
{
    struct connection *c = malloc(sizeof(*c));

    if (c == NULL) {
        complain("no room for %s", name_of(from).text);
        close(fd);
        return;
    }
    *c = (struct connection){.next = s->connections, .fd = fd, .address = *from};
    if (c->next != NULL)
        c->next->previous = c;
    s->connections = c;
    s->totals.clients++;
    if (s->verbose)
        printf("%sfd %d: %s connected\n", s->prefix, fd, name_of(from).text);
    if (epoll_add(&s->epoll, fd, EPOLLIN | EPOLLRDHUP | s->edge, c) == -1)
        fail(s, c, "epoll_ctl for");
}

/* Without a free descriptor or memory no client is accepted, and as long as there are newcomers in
 * the backlog the listener is readable: waiting for it would not let us sleep. So we leave them
 * there, and look again after a while or when a client has left. Other errors are those of one
 * connection, which was gone before we could get it. */
static void accept_failed(struct server *s)
{
    bool no_room = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;

    if (errno == EAGAIN) { /* the backlog is empty, so whatever we were short of is there again */
        if (s->shortage)
            server_start_accepting(s);
        return;
    }
    if (!s->shortage || !no_room)
        complain(no_room ? "accept: newcomers have to wait" : "accept");
    if (no_room) {
        s->shortage = true;
        s->retry_at = now() + LOOK_AGAIN;
        server_stop_accepting(s);
    }
}

void server_accept(struct server *s)
{
    struct sockaddr_in6 from;
    socklen_t length = sizeof(from);
    int fd = accept4(s->listener, (struct sockaddr *)&from, &length, SOCK_NONBLOCK);

    if (fd == -1)
        accept_failed(s);
    else
        add_connection(s, fd, &from);
}

/* Sends what the kernel has room for, which may be less than all (a short write) or nothing, and
 * counts it. Returns how many bytes that was, or -1 if the client had to be dropped. */
static ssize_t send_some(struct server *s, struct connection *c, const char *bytes, size_t length)
{
    ssize_t n = send(c->fd, bytes, length, 0);

    if (n == -1 && errno == EAGAIN)
        return 0;
    if (n == -1)
        fail(s, c, "send");
    else
        s->totals.echoed += (size_t)n;
    return n;
}

/* Keeps what send did not take, and waits for room instead of reading on. */
static void hold(struct server *s, struct connection *c, const char *bytes, size_t length)
{
    struct held *held = malloc(sizeof(*held) + length);

    if (held == NULL) {
        fail(s, c, "malloc for");
        return;
    }
    held->length = length;
    held->sent = 0;
    memcpy(held->bytes, bytes, length);
    c->held = held;
    want_write(s, c);
}

/* There is room again: more of what is held goes out. When all of it is gone we read on. Returns
 * false if the client is gone. */
static bool send_rest(struct server *s, struct connection *c)
{
    struct held *held = c->held;
    ssize_t n = send_some(s, c, held->bytes + held->sent, held->length - held->sent);

    if (n == -1)
        return false;
    held->sent += (size_t)n;
    if (held->sent < held->length)
        return true;
    free(held);
    c->held = NULL;
    return want_read(s, c);
}

/* Reads once and gives back what came: n bytes, never the whole buffer. TCP has no messages: what
 * a client sent in one piece may come in three, and the other way round. A client that closes its
 * sending side (0 bytes) has had all its answers, since we do not read while something is held.
 * Returns whether there may be more to read. */
static bool echo(struct server *s, struct connection *c)
{
    ssize_t n = recv(c->fd, s->buffer, sizeof(s->buffer), 0);

    if (n == -1 && errno == EAGAIN)
        return false;
    if (n == -1)
        return fail(s, c, "recv");
    if (n == 0 && s->listener == -1) /* it closes, perhaps before it has taken all that we sent */
        return give_up(s, c, "closed by the client");
    if (n == 0)
        return drop(s, c, "closed by the client");
    s->totals.received += (size_t)n;
    if (s->listener == -1) /* we have said goodbye: it gets no more answers */
        return true;

    ssize_t sent = send_some(s, c, s->buffer, (size_t)n);
    if (sent != -1 && sent < n)
        hold(s, c, s->buffer + sent, (size_t)(n - sent));
    return sent == n;
}

/* Sends what is held, as far as there is room, and then an end of file. A close at this moment
 * would be a reset if the client has sent more, and a reset destroys what is on its way. So we let
 * the client end the connection, and throw away what it sends until then. */
static void say_goodbye(struct server *s, struct connection *c)
{
    if (c->held != NULL && !send_rest(s, c))
        return;
    free(c->held);
    c->held = NULL;
    shutdown(c->fd, SHUT_WR);
    want_read(s, c);
}

/* ---- The loop -------------------------------------------------------------------------------- */

/* What an event means. There are four reasons to wake up: a new connection, data, a close and an
 * error. (And two that are ours: a client whose bytes we hold has room again; a signal.) */
static const char *reason(const struct server *s, const struct epoll_event *event)
{
    if (event->data.ptr == &s->signals)
        return "signal";
    if (event->data.ptr == &s->listener)
        return "new connection";
    if (event->events & EPOLLERR)
        return "error";
    if (event->events & EPOLLRDHUP)
        return "close";
    return event->events & EPOLLIN ? "data" : "room";
}

static int fd_of(const struct server *s, const struct epoll_event *event)
{
    if (event->data.ptr == &s->signals)
        return s->signals;
    if (event->data.ptr == &s->listener)
        return s->listener;
    return ((const struct connection *)event->data.ptr)->fd;
}

static void print_ready(const struct server *s, int ready)
{
    printf("%swoke up: %d ready", s->prefix, ready);
    for (int i = 0; i < ready; i++) {
        const struct epoll_event *event = &s->epoll.events[i];
        uint32_t mask = event->events;
        printf(", fd %d%s%s%s%s%s (%s)", fd_of(s, event), mask & EPOLLIN ? " IN" : "",
               mask & EPOLLOUT ? " OUT" : "", mask & EPOLLRDHUP ? " RDHUP" : "",
               mask & EPOLLERR ? " ERR" : "", mask & EPOLLHUP ? " HUP" : "", reason(s, event));
    }
    printf("\n");
}

/* In level-triggered mode one read is enough: if there is more, epoll_wait says so again. In
 * edge-triggered mode it says nothing until still more comes, so we read to the end. If there is no
 * end, because the client sends as fast as we read, want_read makes the kernel look again, and the
 * others have their turn. */
static void read_from(struct server *s, struct connection *c)
{
    int rounds = 1;

    while (echo(s, c) && s->edge)
        if (rounds++ == ROUNDS) {
            want_read(s, c);
            return;
        }
}

/* An error comes together with EPOLLIN, and bytes that were sent before it may still be there. So
 * we test neither EPOLLERR nor EPOLLHUP: recv gives the bytes, and then 0 for a close or -1 for an
 * error. */
static void handle(struct server *s, void *data)
{
    struct connection *c = data; /* if it is none of the two others */

    if (data == &s->signals)
        s->stop = true;
    else if (data == &s->listener)
        server_accept(s);
    else if (c->held != NULL)
        send_rest(s, c);
    else
        read_from(s, c);
}

/* Sleeps until something is ready, at most so many milliseconds; -1: for as long as it takes. */
static void wait_and_serve(struct server *s, int milliseconds)
{
    int ready = epoll_sleep(&s->epoll, milliseconds);

    if (ready == -1 && errno != EINTR) {
        complain("epoll_wait");
        usleep(100 * 1000); /* out of memory, perhaps: trying again at once would not help */
    }
    if (ready == -1)
        return;
    if (s->verbose)
        print_ready(s, ready);

    for (int i = 0; i < ready; i++)
        handle(s, s->epoll.events[i].data.ptr);
}

void server_start(struct server *s, int signals)
{
    s->signals = signals;
    /* From here on the kernel connects clients by itself, and keeps them until accept. */
    if (listen(s->listener, BACKLOG) == -1)
        die("listen %s", name_of(&s->address).text);
    if (epoll_open(&s->epoll, EVENTS) == -1)
        die("epoll_open");
    if (!server_start_accepting(s) || epoll_add(&s->epoll, signals, EPOLLIN, &s->signals) == -1)
        die("epoll_ctl");
}

void server_turn(struct server *s)
{
    wait_and_serve(s, s->shortage ? milliseconds_until(s->retry_at) : -1);
    if (s->shortage && milliseconds_until(s->retry_at) == 0)
        server_accept(s);
}

/* Clients that have not ended after FAREWELL are given up. */
void server_finish(struct server *s)
{
    int64_t end = now() + FAREWELL;
    struct connection *c, *next;

    epoll_remove(&s->epoll, s->signals);
    server_stop_accepting(s);
    close(s->listener);
    for (c = s->connections; c != NULL; c = next) {
        next = c->next; /* c may be gone when we come back */
        say_goodbye(s, c);
    }
    s->listener = -1;
    while (s->connections != NULL && milliseconds_until(end) > 0)
        wait_and_serve(s, milliseconds_until(end));
    while (s->connections != NULL)
        give_up(s, s->connections, "server stopped");
    epoll_close(&s->epoll);
}

void print_totals(const struct totals *t)
{
    printf("served %llu client%s: %llu bytes echoed, %llu undelivered\n", t->clients,
           t->clients == 1 ? "" : "s", t->echoed, t->received - t->echoed);
}
