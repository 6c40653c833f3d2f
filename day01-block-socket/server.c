/* Day 1: a blocking echo server, one client at a time.
 *
 * New today: socket, bind, listen, accept, recv, send. The process sleeps in accept until somebody
 * connects, in recv until they say something, in send until there is room for the answer.
 *
 * Not yet: a second client. The kernel connects it and keeps it in the backlog, where it waits
 * until the first has left. Day 2 mends that.
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
#include <sys/socket.h>
#include <unistd.h>

#include "../common/die.h"

enum {
    BACKLOG = 4096,          /* clients that may wait for accept; the kernel may allow less */
    BUFFER_SIZE = 64 * 1024, /* bytes */
};

/* A client that is connected. */
struct connection {
    int fd;
    struct in_addr ip; /* the client's address, in network byte order like the port */
    in_port_t port;
    uint64_t echoed; /* bytes that send has taken for this client */
};

static struct sockaddr_in address; /* where to listen */
static bool verbose;               /* -v */

static volatile sig_atomic_t stop; /* a signal asked us to end */
static volatile sig_atomic_t listener = -1;
static volatile sig_atomic_t current = -1; /* the client that we serve */

static bool shortage; /* accept failed for want of descriptors or memory, and we said so */

static uint64_t clients, received, echoed; /* totals: connections, bytes, bytes */

static char buffer[BUFFER_SIZE];
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

/* A flag alone would not do: a signal that comes after we looked at it, but before we sleep, would
 * leave us asleep. So the handler also shuts both sockets down, and from then on accept, recv and
 * send return at once, whether they had begun or not; with an error, perhaps, which is nobody's
 * trouble any more. (shutdown is among the few functions that a handler may call:
 * signal-safety(7). Day 2 has a better way.) */
static void on_signal(int signal_number)
{
    int error = errno;

    (void)signal_number;
    stop = 1;
    shutdown(listener, SHUT_RDWR);
    shutdown(current, SHUT_RDWR);
    errno = error;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    if (sigaction(SIGINT, &action, NULL) == -1 || sigaction(SIGTERM, &action, NULL) == -1)
        die("sigaction");

    /* Whoever writes to a client that is gone gets SIGPIPE, which kills. We prefer send's EPIPE. */
    signal(SIGPIPE, SIG_IGN);
}

/* ---- The listener ---------------------------------------------------------------------------- */

static void open_listener(void)
{
    const char *ip = inet_ntoa(address.sin_addr);
    socklen_t length = sizeof(address);
    int on = 1;

    listener = socket(AF_INET, SOCK_STREAM, 0);
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

/* ---- A client, from arrival to leaving ------------------------------------------------------- */

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
    current = -1; /* before close: the handler must not shut down a number that is no longer ours */
    close(c->fd);
}

/* One client's trouble costs that client, and nobody else: a server never exits here. */
static void fail(struct connection *c, const char *call)
{
    complain("%s %s", call, peer_name(c));
    drop(c, strerror(errno));
}

static void add_connection(struct connection *c, int fd, const struct sockaddr_in *peer)
{
    *c = (struct connection){.fd = fd, .ip = peer->sin_addr, .port = peer->sin_port};
    clients++;
    printf("%s connected\n", peer_name(c));
}

/* accept did not give us a client. Why? */
static void accept_failed(void)
{
    switch (errno) {
    case EINTR:
        return;
    case ECONNABORTED: /* that client gave up while it was in the backlog */
        complain("accept");
        return;
    default: /* EMFILE, ENFILE, ENOMEM, ENOBUFS: the newcomers stay in the backlog for a second */
        if (!shortage)
            complain("accept: newcomers have to wait");
        shortage = true;
        sleep(1);
    }
}

static bool accept_client(struct connection *c)
{
    struct sockaddr_in peer = {0};
    socklen_t length = sizeof(peer);

    current = accept(listener, (struct sockaddr *)&peer, &length);
    if (current == -1) {
        if (!stop)
            accept_failed();
        return false;
    }
    if (verbose)
        printf("woke up: accept gave fd %d\n", current);
    shortage = false;
    add_connection(c, current, &peer);
    return true;
}

/* send may take less than it is given: whatever is left has to be offered again. */
static bool send_all(struct connection *c, const char *bytes, size_t length)
{
    while (length > 0 && !stop) {
        ssize_t n = send(c->fd, bytes, length, 0);
        if (n == -1 && (errno == EINTR || stop))
            continue;
        if (n == -1) {
            fail(c, "send");
            return false;
        }
        if (verbose)
            printf("woke up: send took %zd of %zu bytes\n", n, length);
        bytes += n;
        length -= (size_t)n;
        c->echoed += (uint64_t)n;
        echoed += (uint64_t)n;
    }
    return true;
}

/* Reads once and gives back what came: n bytes, never the whole buffer. TCP knows no messages: what
 * a client sent in one piece may come in three, and the other way round. 0 bytes mean that it
 * has closed its sending side. Returns whether it is worth to try again at once. */
static bool echo(struct connection *c)
{
    ssize_t n = recv(c->fd, buffer, sizeof(buffer), 0);

    if (n == -1 && (errno == EINTR || stop))
        return true;
    if (n == -1) {
        fail(c, "recv");
        return false;
    }
    if (verbose)
        printf("woke up: recv gave %zd bytes\n", n);
    if (n == 0) {
        drop(c, stop ? "server stopped" : "closed by the client");
        return false;
    }
    received += (uint64_t)n;
    return send_all(c, buffer, (size_t)n);
}

/* ---- The loop -------------------------------------------------------------------------------- */

static void serve(void)
{
    struct connection c;

    while (!stop) {
        if (!accept_client(&c))
            continue;
        while (!stop && echo(&c))
            ; /* all is done in echo */
        if (current != -1)
            drop(&c, "server stopped");
    }
}

static void finish(void)
{
    close(listener);
    printf("served %" PRIu64 " clients: %" PRIu64 " bytes echoed, %" PRIu64 " undelivered\n",
           clients, echoed, received - echoed);
}

int main(int argc, char *argv[])
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* line by line, also into a pipe or a file */
    parse_options(argc, argv);
    catch_signals();
    open_listener();
    serve();
    finish();
    return EXIT_SUCCESS;
}
