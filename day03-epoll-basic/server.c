/* Day 3: the same server with epoll.
 *
 * New today: the kernel remembers what we wait for (the interest set) and keeps a list of what is
 * ready. A wake-up costs as much as there is to do, however many clients are idle, and there may be
 * more than 1024. A signal is one more descriptor. Level-triggered, or edge-triggered: -e.
 *
 * Not yet: a second server in the same program, since all that a server knows stands in variables
 * of the file (day 4). And it is one process on one core (day 5).
 *
 * Build:  cc -std=gnu11 -o server server.c ../common/die.c
 * Use:    ./server [-ev] [PORT [HOST]]          -e: edge-triggered, -v: a line for every wake-up
 */
#define _GNU_SOURCE

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
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../common/die.h"

/* How many clients may wait for accept (the kernel may allow less), and bytes in the buffer. */
enum { BACKLOG = 4096, BUFFER_SIZE = 64 * 1024 };

/* Milliseconds: from one look for a free descriptor to the next, and for the farewell. */
enum { LOOK_AGAIN = 1000, FAREWELL = 500 };

/* How many events one wake-up may bring (the others follow in the next), how many reads a client
 * gets before it is the others' turn (edge-triggered), by how much the table of clients grows. */
enum { EVENTS = 64, ROUNDS = 2, SLOTS = 4096 };

/* An address as text: 127.0.0.1:40123 or [::1]:40123. */
struct name {
    char text[80];
};

/* Bytes that a client sent and has not taken back yet. */
struct held {
    size_t length; /* of bytes[] */
    size_t sent;   /* how many of them have been sent */
    char bytes[];
};

/* A client that is connected. An IPv4 address is smaller than an IPv6 one, and fits in, too. */
struct connection {
    int fd;
    struct sockaddr_in6 address;
    struct held *held; /* NULL: nothing, and we want to read. Otherwise we want to write */
};

static struct sockaddr_in6 address; /* where to listen */
static uint32_t edge;               /* -e: EPOLLET; 0 otherwise */
static bool verbose;                /* -v */

static int listener = -1;
static int signals = -1; /* a descriptor that can be read when a signal has come */
static bool stop;        /* a signal has come: we say goodbye */

static bool shortage;    /* accept failed for lack of descriptors or memory, and we said so */
static int64_t retry_at; /* if so: when to try again, in milliseconds of now() */

static int epoll_fd = -1; /* the epoll instance: the kernel's side of the interest set */
static struct epoll_event events[EVENTS];

static struct connection *connections; /* by descriptor; fd 0: there is none */
static int slots;                      /* how many the table has room for */
static int connected;                  /* how many there are */

static unsigned long long clients, received, echoed; /* totals: connections, bytes, bytes */

static char buffer[BUFFER_SIZE]; /* one for all: a client to which we owe nothing needs none */

/* ---- Options --------------------------------------------------------------------------------- */

static void usage(void)
{
    fprintf(stderr, "usage: server [-ev] [PORT [HOST]]\n");
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

    while ((option = getopt(argc, argv, "ev")) != -1)
        if (option == 'e')
            edge = EPOLLET;
        else if (option == 'v')
            verbose = true;
        else
            usage();

    const char *port = argc > optind ? argv[optind] : "8888";
    const char *host = argc > optind + 1 ? argv[optind + 1] : "127.0.0.1";
    if (argc > optind + 2 || !look_up(port, host))
        usage();
}

/* ---- Before the first client ----------------------------------------------------------------- */

/* If our parent has closed descriptor 0, 1 or 2, the next socket would get that number, and printf
 * would write to a client. */
static void fill_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) == -1)
            open("/dev/null", O_RDWR); /* gets the lowest number that is free: this one */
}

/* The usual limit, 1024, is there for the sake of select. We may raise it to the hard one. */
static void limit_descriptors(void)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit); /* asking for no more than the hard limit cannot fail */
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

    listener = socket(address.sin6_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
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

/* ---- Signals --------------------------------------------------------------------------------- */

/* Our signals are blocked for good. One that comes stays pending, and then signalfd's descriptor
 * can be read. We never read it, because we only want to know that there is one. */
static void catch_signals(void)
{
    sigset_t ours;

    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigprocmask(SIG_BLOCK, &ours, NULL);
    signals = signalfd(-1, &ours, 0);
    if (signals == -1)
        die("signalfd");
}

/* ---- Time ------------------------------------------------------------------------------------ */

/* Milliseconds since some moment in the past, by a clock that cannot be set. */
static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static int milliseconds_until(int64_t moment)
{
    int64_t left = moment - now();

    return left > 0 ? (int)left : 0;
}

/* ---- The interest set ------------------------------------------------------------------------ */

static bool change_interest(int operation, int fd, uint32_t mask)
{
    struct epoll_event event = {.events = mask, .data.fd = fd};

    return epoll_ctl(epoll_fd, operation, fd, &event) == 0;
}

static bool fail(struct connection *c, const char *call);

/* The kernel may have no memory for it. Then the client is dropped, and false is returned. */
static bool want(struct connection *c, int operation, uint32_t mask)
{
    return change_interest(operation, c->fd, mask | edge) || fail(c, "epoll_ctl for");
}

/* Wait for bytes from this client, not for room to send to it. In edge-triggered mode the kernel
 * also looks again whether there is something to read. EPOLLRDHUP means a close, not data. */
static bool want_read(struct connection *c)
{
    return want(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP);
}

/* The other way round. EPOLLRDHUP stays set once it is true: with it we would never sleep. */
static bool want_write(struct connection *c)
{
    return want(c, EPOLL_CTL_MOD, EPOLLOUT);
}

/* No more events from this descriptor. */
static void forget(int fd)
{
    change_interest(EPOLL_CTL_DEL, fd, 0);
}

/* The listener is always level-triggered, so that we need not take all newcomers at once. */
static bool start_accepting(void)
{
    shortage = !change_interest(EPOLL_CTL_ADD, listener, EPOLLIN);
    retry_at = now() + LOOK_AGAIN; /* if the kernel has no memory for it */
    return !shortage;
}

/* ---- A client, from arrival to leaving ------------------------------------------------------- */

/* Gives back all that the client had. Returns false: it is gone. */
static bool drop(struct connection *c, const char *why)
{
    if (verbose)
        printf("fd %d: %s left: %s\n", c->fd, name_of(&c->address).text, why);
    forget(c->fd);
    close(c->fd);
    free(c->held);
    *c = (struct connection){0};
    connected--;
    retry_at = 0; /* a descriptor is free again */
    return false;
}

/* The same for a client that has not taken all that is on its way: what our kernel still has for it
 * was not echoed. (tcp(7) calls this number SIOCOUTQ. An end of file on its way counts as a byte.)
 */
static bool give_up(struct connection *c, const char *why)
{
    int unsent = 0;

    ioctl(c->fd, TIOCOUTQ, &unsent);
    if (unsent > 0)
        echoed -= (size_t)unsent - (listener == -1);
    return drop(c, why);
}

/* One client's trouble costs that client alone: a server never exits here. Returns false. */
static bool fail(struct connection *c, const char *call)
{
    complain("%s %s", call, name_of(&c->address).text);
    return give_up(c, strerror(errno));
}

/* The table grows with the clients, and not with the limit, which may be a billion. It may move:
 * keep no pointer into it from one event to the next. Returns false if there is no memory. */
static bool make_room(int fd)
{
    if (fd < slots)
        return true;

    int more = fd + SLOTS;
    struct connection *table = realloc(connections, (size_t)more * sizeof(*table));
    if (table == NULL)
        return false;
    memset(table + slots, 0, (size_t)(more - slots) * sizeof(*table));
    connections = table;
    slots = more;
    return true;
}

static void add_connection(int fd, const struct sockaddr_in6 *from)
{
    if (!make_room(fd)) {
        complain("no room for %s", name_of(from).text);
        close(fd);
        return;
    }
    connections[fd] = (struct connection){.fd = fd, .address = *from};
    connected++;
    clients++;
    if (verbose)
        printf("fd %d: %s connected\n", fd, name_of(from).text);
    want(&connections[fd], EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP); /* want_read, the first time */
}

/* Without a free descriptor or memory no client is accepted, and as long as there are newcomers in
 * the backlog the listener is readable: waiting for it would not let us sleep. So we leave them
 * there, and look again after a while or when a client has left. Other errors are those of one
 * connection, which was gone before we could get it. */
static void accept_failed(void)
{
    bool no_room = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;

    if (errno == EAGAIN) { /* the backlog is empty, so whatever we were short of is there again */
        if (shortage)
            start_accepting();
        return;
    }
    if (!shortage || !no_room)
        complain(no_room ? "accept: newcomers have to wait" : "accept");
    if (no_room) {
        shortage = true;
        retry_at = now() + LOOK_AGAIN;
        forget(listener);
    }
}

/* Takes one newcomer. If there are more, the listener stays readable, and the clients that we have
 * get their turn first. */
static void accept_client(void)
{
    struct sockaddr_in6 from;
    socklen_t length = sizeof(from);
    int fd = accept4(listener, (struct sockaddr *)&from, &length, SOCK_NONBLOCK);

    if (fd == -1)
        accept_failed();
    else
        add_connection(fd, &from);
}

/* Sends what the kernel has room for, which may be less than all (a short write) or nothing, and
 * counts it. Returns how many bytes that was, or -1 if the client had to be dropped. */
static ssize_t send_some(struct connection *c, const char *bytes, size_t length)
{
    ssize_t n = send(c->fd, bytes, length, 0);

    if (n == -1 && errno == EAGAIN)
        return 0;
    if (n == -1)
        fail(c, "send");
    else
        echoed += (size_t)n;
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
    want_write(c);
}

/* There is room again: more of what is held goes out. When all of it is gone we read on. Returns
 * false if the client is gone. */
static bool send_rest(struct connection *c)
{
    struct held *held = c->held;
    ssize_t n = send_some(c, held->bytes + held->sent, held->length - held->sent);

    if (n == -1)
        return false;
    held->sent += (size_t)n;
    if (held->sent < held->length)
        return true;
    free(held);
    c->held = NULL;
    return want_read(c);
}

/* Reads once and gives back what came: n bytes, never the whole buffer. TCP has no messages: what
 * a client sent in one piece may come in three, and the other way round. A client that closes its
 * sending side (0 bytes) has had all its answers, since we do not read while something is held.
 * Returns whether there may be more to read. */
static bool echo(struct connection *c)
{
    ssize_t n = recv(c->fd, buffer, sizeof(buffer), 0);

    if (n == -1 && errno == EAGAIN)
        return false;
    if (n == -1)
        return fail(c, "recv");
    if (n == 0 && listener == -1) /* it closes, perhaps before it has taken all that we sent */
        return give_up(c, "closed by the client");
    if (n == 0)
        return drop(c, "closed by the client");
    received += (size_t)n;
    if (listener == -1) /* we have said goodbye: it gets no more answers */
        return true;

    ssize_t sent = send_some(c, buffer, (size_t)n);
    if (sent != -1 && sent < n)
        hold(c, buffer + sent, (size_t)(n - sent));
    return sent == n;
}

/* Sends what is held, as far as there is room, and then an end of file. A close at this moment
 * would be a reset if the client has sent more, and a reset destroys what is on its way. So we let
 * the client end the connection, and throw away what it sends until then. */
static void say_goodbye(struct connection *c)
{
    if (c->held != NULL && !send_rest(c))
        return;
    free(c->held);
    c->held = NULL;
    shutdown(c->fd, SHUT_WR);
    want_read(c);
}

/* ---- The loop -------------------------------------------------------------------------------- */

/* What an event means. There are four reasons to wake up: a new connection, data, a close and an
 * error. (And two that are ours: a client whose bytes we hold has room again; a signal.) */
static const char *reason(const struct epoll_event *event)
{
    if (event->data.fd == signals)
        return "signal";
    if (event->data.fd == listener)
        return "new connection";
    if (event->events & EPOLLERR)
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

/* In level-triggered mode one read is enough: if there is more, epoll_wait says so again. In
 * edge-triggered mode it says nothing until still more comes, so we read to the end. If there is no
 * end, because the client sends as fast as we read, want_read makes the kernel look again, and the
 * others have their turn. */
static void read_from(struct connection *c)
{
    int rounds = 1;

    while (echo(c) && edge)
        if (rounds++ == ROUNDS) {
            want_read(c);
            return;
        }
}

/* An error comes together with EPOLLIN, and bytes that were sent before it may still be there. So
 * we test neither EPOLLERR nor EPOLLHUP: recv gives the bytes, and then 0 for a close or -1 for an
 * error. */
static void handle(int fd)
{
    if (fd == signals)
        stop = true;
    else if (fd == listener)
        accept_client();
    else if (connections[fd].held != NULL)
        send_rest(&connections[fd]);
    else
        read_from(&connections[fd]);
}

/* Sleeps until something is ready, at most so many milliseconds; -1: for as long as it takes. */
static void wait_and_serve(int milliseconds)
{
    int ready = epoll_wait(epoll_fd, events, EVENTS, milliseconds);

    if (ready == -1 && errno != EINTR) {
        complain("epoll_wait");
        usleep(100 * 1000); /* out of memory, perhaps: trying again at once would not help */
    }
    if (ready == -1)
        return;
    if (verbose)
        print_ready(ready);

    for (int i = 0; i < ready; i++)
        handle(events[i].data.fd);
}

static void serve(void)
{
    while (!stop) {
        wait_and_serve(shortage ? milliseconds_until(retry_at) : -1);
        if (shortage && milliseconds_until(retry_at) == 0)
            accept_client();
    }
}

/* Stops accepting and says goodbye. Clients that have not ended after FAREWELL are given up. */
static void finish(void)
{
    int64_t end = now() + FAREWELL;

    forget(signals);
    forget(listener);
    close(listener);
    for (int fd = 0; fd < slots; fd++)
        if (connections[fd].fd != 0)
            say_goodbye(&connections[fd]);
    listener = -1;
    while (connected > 0 && milliseconds_until(end) > 0)
        wait_and_serve(milliseconds_until(end));
    for (int fd = 0; fd < slots; fd++)
        if (connections[fd].fd != 0)
            give_up(&connections[fd], "server stopped");
    printf("served %llu client%s: %llu bytes echoed, %llu undelivered\n", clients,
           clients == 1 ? "" : "s", echoed, received - echoed);
}

int main(int argc, char *argv[])
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* line by line, even into a pipe or a file */
    parse_options(argc, argv);
    fill_standard_descriptors();
    limit_descriptors();
    signal(SIGPIPE, SIG_IGN); /* sending to a client that is gone is an error, not our end */
    open_listener();
    catch_signals();
    epoll_fd = epoll_create1(0);
    if (epoll_fd == -1)
        die("epoll_create1");
    if (!start_accepting() || !change_interest(EPOLL_CTL_ADD, signals, EPOLLIN))
        die("epoll_ctl");
    printf("listening on %s\n", name_of(&address).text);
    serve();
    finish();
    free(connections);
    return EXIT_SUCCESS;
}
