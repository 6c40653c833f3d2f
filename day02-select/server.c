/* Day 2: many clients in one thread, with select.
 *
 * New today: sockets that never block, and one place to sleep, pselect, for all of them. There are
 * two sets: whom we want to read from and whom we want to write to. A client is in exactly one of
 * them. Whoever does not take what we hold for it is not read from: that is all of back-pressure.
 *
 * Not yet: more than FD_SETSIZE (1024) descriptors. And each wake-up looks at all of them, up to
 * the highest, even if one alone has something to say. Day 3 mends both.
 *
 * Build:  cc -std=gnu11 -o server server.c ../common/die.c
 * Use:    ./server [-v] [PORT [ADDRESS]]        -v: a line for every wake-up
 */
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
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../common/die.h"

enum {
    BACKLOG = 4096,          /* clients that may wait for accept; the kernel may allow less */
    BUFFER_SIZE = 64 * 1024, /* bytes */
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
static bool verbose;               /* -v */

static volatile sig_atomic_t stop; /* a signal asked us to end */
static sigset_t while_asleep;      /* the signals that stay blocked while we sleep: none of ours */
static int listener = -1;

static fd_set reading, writing; /* whom we want to read from, whom we want to write to */
static int highest = -1;        /* the highest descriptor in either set */

static const int slots = FD_SETSIZE; /* one for each descriptor that an fd_set has room for */
static struct connection connections[FD_SETSIZE];

static bool shortage;   /* accept failed for want of descriptors or memory, and we said so */
static time_t tried_at; /* and when that was */

static uint64_t clients, received, echoed; /* totals: connections, bytes, bytes */
static unsigned int busy;                  /* sends and wake-ups since we last let signals in */

static char buffer[BUFFER_SIZE]; /* one for all: a client that owes us nothing needs none */
static char name[sizeof("255.255.255.255:65535")]; /* what peer_name returns */

/* ---- Options --------------------------------------------------------------------------------- */

static void usage(void)
{
    fprintf(stderr, "usage: server [-v] [PORT [ADDRESS]]\n");
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

    while ((option = getopt(argc, argv, "v")) != -1) {
        if (option == 'v')
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

/* Our signals are blocked, but for the time that we sleep: pselect opens the mask and sleeps in one
 * step. So no signal can come between looking at the flag and sleeping, and be lost there. */
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

/* pselect lets signals in only when it sleeps. Busy, it finds somebody ready each time, and we
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

/* A descriptor past the end of an fd_set would make FD_SET write over whatever lies behind it. We
 * lower our own limit, so that accept says EMFILE before that. */
static void limit_descriptors(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == -1)
        die("getrlimit RLIMIT_NOFILE");
    if (limit.rlim_cur > FD_SETSIZE)
        limit.rlim_cur = FD_SETSIZE;
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

/* Wait until this descriptor can be read from, and no longer until it can be written to. */
static int want_read(int fd)
{
    FD_SET(fd, &reading);
    FD_CLR(fd, &writing);
    if (fd > highest)
        highest = fd;
    return 0; /* cannot fail; day 3's can */
}

/* The other way round. */
static int want_write(int fd)
{
    FD_CLR(fd, &reading);
    FD_SET(fd, &writing);
    return 0;
}

/* Wait for nothing from this descriptor any more. */
static void forget(int fd)
{
    FD_CLR(fd, &reading);
    FD_CLR(fd, &writing);
    while (highest >= 0 && !FD_ISSET(highest, &reading) && !FD_ISSET(highest, &writing))
        highest--;
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

/* The slot of a descriptor; NULL, with errno, when there is none. */
static struct connection *connection_of(int fd)
{
    if (fd >= slots) {
        errno = EMFILE;
        return NULL;
    }
    return &connections[fd];
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

static void print_ready(int ready, const fd_set *readable, const fd_set *writable)
{
    printf("woke up: %d ready", ready);
    for (int fd = 0; fd <= highest; fd++)
        if (FD_ISSET(fd, readable) || FD_ISSET(fd, writable))
            printf(", fd %d %s", fd, FD_ISSET(fd, readable) ? "readable" : "writable");
    printf("\n");
}

/* Sleeps until something is ready, and hands each ready descriptor to its owner. */
static void wait_and_serve(void)
{
    fd_set readable = reading, writable = writing; /* select writes its answer over the question */
    struct timespec second = {.tv_sec = 1};
    int ready =
        pselect(highest + 1, &readable, &writable, NULL, shortage ? &second : NULL, &while_asleep);

    if (ready == -1 && errno == EINTR)
        return;
    if (ready == -1)
        die("pselect");
    if (verbose)
        print_ready(ready, &readable, &writable);

    for (int fd = 0; ready > 0; fd++) {
        if (FD_ISSET(fd, &readable) && fd == listener)
            accept_clients();
        else if (FD_ISSET(fd, &readable))
            echo(connection_of(fd)); /* once: if more is there, select will say so again */
        else if (FD_ISSET(fd, &writable))
            send_rest(connection_of(fd));
        else
            continue;
        ready--;
    }
}

static void serve(void)
{
    start_accepting();
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
