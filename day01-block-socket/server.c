/* Day 1: a blocking echo server, one client at a time.
 *
 * New today: socket, bind, listen, accept, recv, send. The process sleeps in accept until a client
 * connects, in recv until the client says something, in send until there is room for the answer.
 *
 * Not yet: a second client. The kernel connects it and keeps it in the backlog, where it waits
 * until the first has left. Day 2 fixes that.
 *
 * Build:  cc -std=gnu11 -o server server.c ../common/die.c
 * Use:    ./server [-v] [PORT [HOST]]           -v: a line for every wake-up. Ctrl-C ends it.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../common/die.h"

/* How many clients may wait for accept (the kernel may allow less), and bytes in the buffer. */
enum { BACKLOG = 4096, BUFFER_SIZE = 64 * 1024 };

/* An address as text: 127.0.0.1:40123 or [::1]:40123. */
struct name {
    char text[80];
};

/* A client that is connected. An IPv4 address is smaller than an IPv6 one, and fits in, too. */
struct connection {
    int fd;
    struct sockaddr_in6 address;
};

static struct sockaddr_in6 address; /* where to listen */
static bool verbose;                /* -v */

static int listener = -1;

static char buffer[BUFFER_SIZE];

/* ---- Options --------------------------------------------------------------------------------- */

static void usage(void)
{
    fprintf(stderr, "usage: server [-v] [PORT [HOST]]\n");
    exit(2);
}

/* Finds out where to listen: the first address that the host has. (getaddrinfo takes port 65537 for
 * port 1, so we check the port ourselves.) Says what is wrong and returns false if it cannot. */
static bool look_up(const char *port, const char *host)
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
    memcpy(&address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return true;
}

static void parse_options(int argc, char *argv[])
{
    int option;

    while ((option = getopt(argc, argv, "v")) == 'v')
        verbose = true;

    const char *port = argc > optind ? argv[optind] : "8888";
    const char *host = argc > optind + 1 ? argv[optind + 1] : "127.0.0.1";
    if (option != -1 || argc > optind + 2 || !look_up(port, host))
        usage();
}

/* ---- The listener ---------------------------------------------------------------------------- */

/* If our parent has closed descriptor 0, 1 or 2, the next socket would get that number, and printf
 * would write to a client. */
static void fill_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) == -1)
            open("/dev/null", O_RDWR); /* gets the lowest number that is free: this one */
}

static struct name name_of(const struct sockaddr_in6 *whose)
{
    struct name name = {"?"};
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (getnameinfo((const struct sockaddr *)whose, sizeof(*whose), host, sizeof(host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(name.text, sizeof(name.text), strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    return name;
}

static void switch_on(int level, int option, const char *name)
{
    int on = 1;

    if (setsockopt(listener, level, option, &on, sizeof(on)) == -1)
        die("setsockopt %s", name);
}

static void open_listener(void)
{
    socklen_t length = sizeof(address);

    listener = socket(address.sin6_family, SOCK_STREAM, 0);
    if (listener == -1)
        die("socket");

    /* The connections of the server before us may still be in TIME_WAIT; bind all the same. */
    switch_on(SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR");
    /* Sockets from accept inherit these: an answer does not wait for the acknowledgement
     * of the last one, a machine that has vanished is noticed, an urgent byte is one like others.
     */
    switch_on(IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY");
    switch_on(SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE");
    switch_on(SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE");

    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) == -1)
        die("bind %s", name_of(&address).text);
    /* From here on the kernel connects clients by itself, and keeps them until accept. */
    if (listen(listener, BACKLOG) == -1)
        die("listen %s", name_of(&address).text);
    /* Port 0 lets the kernel choose: ask what it chose. */
    if (getsockname(listener, (struct sockaddr *)&address, &length) == -1)
        die("getsockname");
}

/* ---- A client, from arrival to leaving ------------------------------------------------------- */

/* Gives back what the client had. Returns false: it is gone. */
static bool drop(struct connection *c, const char *why)
{
    if (verbose)
        printf("fd %d: %s left: %s\n", c->fd, name_of(&c->address).text, why);
    close(c->fd);
    return false;
}

/* One client's trouble costs that client alone: a server never exits here. Returns false. */
static bool fail(struct connection *c, const char *call)
{
    complain("%s %s", call, name_of(&c->address).text);
    return drop(c, strerror(errno));
}

/* Most errors are those of one connection, which was gone before we could get it. But without a
 * free descriptor, or memory, all newcomers have to stay in the backlog for a while. */
static bool accept_failed(void)
{
    bool no_room = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;

    complain(no_room ? "accept: newcomers have to wait" : "accept");
    sleep(no_room ? 1 : 0);
    return false;
}

static bool accept_client(struct connection *c)
{
    socklen_t length = sizeof(c->address);

    c->fd = accept(listener, (struct sockaddr *)&c->address, &length);
    if (c->fd == -1)
        return accept_failed();
    if (verbose)
        printf("woke up: accept gave fd %d: %s connected\n", c->fd, name_of(&c->address).text);
    return true;
}

/* send may take less than it is given: what is left has to be offered again. Returns false if the
 * client is gone. */
static bool send_all(struct connection *c, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(c->fd, bytes, length, 0);
        if (n == -1)
            return fail(c, "send");
        if (verbose)
            printf("woke up: send took %zd of %zu bytes\n", n, length);
        bytes += n;
        length -= (size_t)n;
    }
    return true;
}

/* Reads once and gives back what came: n bytes, never the whole buffer. TCP has no messages: what
 * a client sent in one piece may come in three, and the other way round. 0 bytes mean that it has
 * closed its sending side. Returns false if the client is gone. */
static bool echo(struct connection *c)
{
    ssize_t n = recv(c->fd, buffer, sizeof(buffer), 0);

    if (n == -1)
        return fail(c, "recv");
    if (verbose)
        printf("woke up: recv gave %zd bytes\n", n);
    if (n == 0)
        return drop(c, "closed by the client");
    return send_all(c, buffer, (size_t)n);
}

/* ---- The loop -------------------------------------------------------------------------------- */

static void serve(void)
{
    struct connection c;

    for (;;)
        if (accept_client(&c))
            while (echo(&c))
                ; /* all is done in echo */
}

int main(int argc, char *argv[])
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* line by line, even into a pipe or a file */
    parse_options(argc, argv);
    fill_standard_descriptors();
    signal(SIGPIPE, SIG_IGN); /* sending to a client that is gone is an error, not our end */
    open_listener();
    printf("listening on %s\n", name_of(&address).text);
    serve();
}
