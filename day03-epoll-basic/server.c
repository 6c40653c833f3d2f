/* Day 3: the same server with epoll.
 *
 * New today: the kernel remembers whom we wait for (the interest set, a tree) and lists those that
 * are ready. A wake-up costs as much as there is to do, however many clients are idle, and their
 * number is no longer limited. Level-triggered, or edge-triggered with -e.
 *
 * Not yet: one function has to know everything, from the event's mask to the table of clients
 * (day 4 tidies up). And it is one process on one core (day 5).
 *
 * Build:  cc -std=gnu11 -o server server.c ../common/die.c
 * Use:    ./server [-ev] [PORT [ADDRESS]]       -e: edge-triggered, -v: a line for every wake-up
 */
#ifndef __linux__
#error "This day needs epoll, which only Linux has. Days 1 and 2 do without it."
#endif
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../common/die.h"

enum {
    BACKLOG = 4096,          /* clients that may wait for accept; the kernel may allow less */
    BUFFER_SIZE = 64 * 1024, /* bytes */
    EVENTS = 256,            /* that one epoll_pwait may report; the others follow in the next */
    ROUNDS = 16,             /* edge-triggered: reads from one client before the others' turn */
    BLOCK = 1024,            /* slots that are allocated together */
};

/* Bytes that a client sent and did not take back yet. */
struct held {
    size_t length; /* of bytes[] */
    size_t sent;   /* how many of them are gone */
    char bytes[];
};

/* A client that is connected. */
struct connection {
    int fd;
    struct in_addr ip; /* the client's address, in network byte order like the port */
    in_port_t port;
    bool open;         /* false: this slot is free */
    uint64_t echoed;   /* bytes that send has taken for this client */
    struct held *held; /* NULL: nothing, and we want to read. Else we want to write */
};

static struct sockaddr_in address; /* where to listen */
static bool edge_triggered;        /* -e */
static bool verbose;               /* -v */

static volatile sig_atomic_t stop; /* a signal asked us to end */
static sigset_t while_asleep;      /* the signals that stay blocked while we sleep: none of ours */
static int listener = -1;

static int epoll_fd = -1; /* the epoll instance: the kernel's side of our interest set */
static struct epoll_event events[EVENTS];

static struct connection **blocks; /* of BLOCK slots each */
static int slots;                  /* in all of them; slot 5 belongs to descriptor 5 */

static bool shortage;   /* accept failed for want of descriptors or memory, and we said so */
static time_t tried_at; /* and when that was */

static uint64_t clients, received, echoed; /* totals: connections, bytes, bytes */
static unsigned int busy;                  /* sends and wake-ups since we last let signals in */

static char buffer[BUFFER_SIZE]; /* one for all: a client that owes us nothing needs none */
static char name[sizeof("255.255.255.255:65535")]; /* what peer_name returns */

/* ---- Options --------------------------------------------------------------------------------- */

static void usage(void)
{
    fprintf(stderr, "usage: server [-ev] [PORT [ADDRESS]]\n");
    exit(2);
}

/* htons: the network wants the port's high byte first, most machines keep it last. Without it 8888
 * (0x22b8) would become 47138 (0xb822). */
static in_port_t parse_port(const char *text)
{
    char *end;
    unsigned long port = strtoul(text, &end, 10);

    if (text[0] < '0' || text[0] > '9' || *end != '\0' || port > 65535) {
        fprintf(stderr, "server: port %s: not a number from 0 to 65535\n", text);
        usage();
    }
    return htons((uint16_t)port);
}

static void parse_options(int argc, char *argv[])
{
    int option;

    while ((option = getopt(argc, argv, "ev")) != -1) {
        if (option == 'e')
            edge_triggered = true;
        else if (option == 'v')
            verbose = true;
        else
            usage();
    }
    argv += optind;
    argc -= optind;
    if (argc > 2)
        usage();

    address.sin_family = AF_INET;
    address.sin_port = parse_port(argc > 0 ? argv[0] : "8888");
    if (inet_pton(AF_INET, argc > 1 ? argv[1] : "127.0.0.1", &address.sin_addr) != 1) {
        fprintf(stderr, "server: address %s: not an IPv4 address\n", argv[1]);
        usage();
    }
}

/* ---- Signals --------------------------------------------------------------------------------- */

static void on_signal(int signal_number)
{
    (void)signal_number;
    stop = 1;
}

/* Our signals are blocked, but for the time that we sleep: epoll_pwait opens the mask and sleeps in
 * one step. So no signal can come between looking at the flag and sleeping, and be lost there. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t ours;

    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigprocmask(SIG_BLOCK, &ours, &while_asleep);
    sigdelset(&while_asleep, SIGINT);
    sigdelset(&while_asleep, SIGTERM);
    if (sigaction(SIGINT, &action, NULL) == -1 || sigaction(SIGTERM, &action, NULL) == -1)
        die("sigaction");

    /* Whoever writes to a client that is gone gets SIGPIPE, which kills. We prefer send's EPIPE. */
    signal(SIGPIPE, SIG_IGN);
}

/* epoll_pwait lets signals in only when it sleeps. Busy, it finds somebody ready each time, and we
 * would never hear that we are to end: so we let them in ourselves after some work. */
static void let_signals_in(void)
{
    sigset_t ours;

    if (++busy < 64)
        return;
    busy = 0;
    sigprocmask(SIG_SETMASK, &while_asleep, &ours);
    sigprocmask(SIG_SETMASK, &ours, NULL);
}

/* ---- The listener ---------------------------------------------------------------------------- */

/* The usual limit, 1024, is there for the sake of select. We may go up to the hard one. */
static void limit_descriptors(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == -1)
        die("getrlimit RLIMIT_NOFILE");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) == -1)
        die("setrlimit RLIMIT_NOFILE");
}

static void open_listener(void)
{
    const char *ip = inet_ntoa(address.sin_addr);
    socklen_t length = sizeof(address);
    int on = 1;

    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listener == -1)
        die("socket");

    /* The connections of the server before us may still be in TIME_WAIT; bind all the same. */
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == -1)
        die("setsockopt SO_REUSEADDR");
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) == -1)
        die("bind %s:%d", ip, ntohs(address.sin_port));

    /* From here on the kernel connects clients by itself, and keeps them until accept. */
    if (listen(listener, BACKLOG) == -1)
        die("listen %s:%d", ip, ntohs(address.sin_port));

    /* Port 0 lets the kernel choose: ask what it chose. */
    if (getsockname(listener, (struct sockaddr *)&address, &length) == -1)
        die("getsockname");
    printf("listening on %s:%d\n", inet_ntoa(address.sin_addr), ntohs(address.sin_port));
}

/* ---- Three verbs: want to read, want to write, forget ---------------------------------------- */

static int change_interest(int operation, int fd, uint32_t mask)
{
    struct epoll_event event = {.events = mask, .data.fd = fd};

    if (edge_triggered)
        event.events |= EPOLLET;
    return epoll_ctl(epoll_fd, operation, fd, &event);
}

/* Wait until this descriptor can be read from, and no longer until it can be written to. EPOLLRDHUP
 * tells a close from data. Returns -1 with errno if the kernel has no memory for it. */
static int want_read(int fd)
{
    if (change_interest(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP) == 0)
        return 0;
    return errno == EEXIST ? change_interest(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLRDHUP) : -1;
}

/* The other way round. Without EPOLLRDHUP: once true it stays so, and would never let us sleep. */
static int want_write(int fd)
{
    return change_interest(EPOLL_CTL_MOD, fd, EPOLLOUT);
}

/* Wait for nothing from this descriptor any more. */
static void forget(int fd)
{
    change_interest(EPOLL_CTL_DEL, fd, 0);
}

/* The listener is one more descriptor to read from: readable when accept has somebody to give.
 * Out of descriptors we forget it, which leaves the newcomers in the backlog. */
static int start_accepting(void)
{
    return want_read(listener);
}

static void stop_accepting(void)
{
    forget(listener);
}

/* ---- A client, from arrival to leaving ------------------------------------------------------- */

/* The slot of a descriptor; NULL, with errno, when there is none. The table grows with the clients,
 * not with the limit: that may be a billion. A block never moves, so pointers into it stay good. */
static struct connection *connection_of(int fd)
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
static const char *peer_name(const struct connection *c)
{
    char ip[INET_ADDRSTRLEN];

    inet_ntop(AF_INET, &c->ip, ip, sizeof(ip)); /* inet_ntoa is not for threads (day 5) */
    snprintf(name, sizeof(name), "%s:%d", ip, ntohs(c->port));
    return name;
}

/* Says who goes and why, and gives back all that the client had. */
static void drop(struct connection *c, const char *why)
{
    printf("%s left after %" PRIu64 " bytes: %s\n", peer_name(c), c->echoed, why);
    forget(c->fd);
    close(c->fd);
    free(c->held);
    c->held = NULL;
    c->open = false;
    if (shortage) /* a descriptor is free again */
        start_accepting();
}

/* One client's trouble costs that client, and nobody else: a server never exits here. */
static void fail(struct connection *c, const char *call)
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
    if (want_read(fd) == -1)
        fail(c, "want_read");
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
static void accept_clients(void)
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
    if (want_write(c->fd) == -1)
        fail(c, "want_write");
}

/* There is room again: more of what is held goes out. When all of it is gone we read on. */
static void send_rest(struct connection *c)
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
    if (want_read(c->fd) == -1)
        fail(c, "want_read");
}

/* Reads once and gives back what came: n bytes, never the whole buffer. TCP knows no messages: what
 * a client sent in one piece may come in three, and the other way round. A client that closes its
 * sending side (0 bytes) has had all its answers, since we do not read while something is held.
 * Returns whether it is worth to try again at once. */
static bool echo(struct connection *c)
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

/* ---- The loop -------------------------------------------------------------------------------- */

/* What an event tells. There are four reasons to wake up: a new connection, data, a close and an
 * error. (And a fifth that is ours: a client whose bytes we hold has room again.) */
static const char *reason(const struct epoll_event *event)
{
    if (event->data.fd == listener)
        return "new connection";
    if (event->events & (EPOLLERR | EPOLLHUP))
        return "error";
    if (event->events & EPOLLRDHUP)
        return "close";
    return event->events & EPOLLIN ? "data" : "room";
}

static void print_ready(int ready)
{
    printf("woke up: %d ready", ready);
    for (int i = 0; i < ready; i++) {
        uint32_t mask = events[i].events;
        printf(", fd %d%s%s%s%s%s (%s)", events[i].data.fd, mask & EPOLLIN ? " IN" : "",
               mask & EPOLLOUT ? " OUT" : "", mask & EPOLLRDHUP ? " RDHUP" : "",
               mask & EPOLLERR ? " ERR" : "", mask & EPOLLHUP ? " HUP" : "", reason(&events[i]));
    }
    printf("\n");
}

/* Level-triggered we read once: if more is there, epoll_pwait will say so again. Edge-triggered it
 * will not, until still more comes, so we read to the end. If there is no end, because the client
 * sends as fast as we read, we want to read anew: EPOLL_CTL_MOD has the kernel look again, and the
 * client comes behind the others. */
static void read_from(struct connection *c)
{
    int rounds = 0;

    while (echo(c) && edge_triggered)
        if (++rounds == ROUNDS) {
            if (want_read(c->fd) == -1)
                fail(c, "want_read");
            return;
        }
}

/* An error comes together with EPOLLIN, and bytes that were sent before it may still be there. So
 * EPOLLERR and EPOLLHUP are not tested first, nor at all: recv gives the bytes, and then 0 for a
 * close or -1 for an error. */
static void handle(const struct epoll_event *event)
{
    if (event->data.fd == listener)
        accept_clients();
    else if (event->events & EPOLLOUT)
        send_rest(connection_of(event->data.fd));
    else
        read_from(connection_of(event->data.fd));
}

/* Sleeps until something is ready, and hands each ready descriptor to its owner. */
static void wait_and_serve(void)
{
    int ready = epoll_pwait(epoll_fd, events, EVENTS, shortage ? 1000 : -1, &while_asleep);

    if (ready == -1 && errno == EINTR)
        return;
    if (ready == -1)
        die("epoll_pwait");
    if (verbose)
        print_ready(ready);

    for (int i = 0; i < ready; i++)
        handle(&events[i]);
}

static void serve(void)
{
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd == -1)
        die("epoll_create1");
    if (start_accepting() == -1)
        die("epoll_ctl");
    while (!stop) {
        wait_and_serve();
        if (shortage && time(NULL) != tried_at)
            start_accepting(); /* perhaps it was the system's, and is over */
        let_signals_in();
    }
}

/* Stops to accept, gives what is held one more chance, and does not wait: who has not read until
 * now could keep us for ever. */
static void finish(void)
{
    stop_accepting();
    close(listener);
    shortage = false;
    for (int fd = 0; fd < slots; fd++) {
        struct connection *c = connection_of(fd);
        if (c->open && c->held != NULL)
            send_rest(c);
        if (c->open)
            drop(c, "server stopped");
    }
    printf("served %" PRIu64 " clients: %" PRIu64 " bytes echoed, %" PRIu64 " undelivered\n",
           clients, echoed, received - echoed);
}

int main(int argc, char *argv[])
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* line by line, also into a pipe or a file */
    parse_options(argc, argv);
    catch_signals();
    limit_descriptors();
    open_listener();
    serve();
    finish();
    return EXIT_SUCCESS;
}
