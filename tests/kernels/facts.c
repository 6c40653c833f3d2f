/* For make kernels: asks the running kernel what the notes say about kernels, except for the herd.
 * Prints a line for each answer: group, question and answer, with tabs between. It is there to be
 * run, not to be learned from.
 *
 * It needs only libc and /proc, so that it can run on a kernel that has just been booted. As root
 * it has a network of its own: what it sets there is gone when it ends.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../common/die.h"

enum {
    CLIENTS = 40,
    WORKERS = 3,
    ROUNDS = 6,
    PATIENCE = 20,  /* seconds that a child may take to fall asleep */
    ARRIVAL = 50,   /* milliseconds: then what one end has done has reached the other */
    TIME_OUT = 200, /* milliseconds */
};

static struct sockaddr_in address = {.sin_family = AF_INET};

/* strerrorname_np is not in every libc. */
static const char *name_of(int error)
{
    return error == EAGAIN       ? "EAGAIN"
           : error == EINTR      ? "EINTR"
           : error == EINVAL     ? "EINVAL"
           : error == EPERM      ? "EPERM"
           : error == EPIPE      ? "EPIPE"
           : error == ECONNRESET ? "ECONNRESET"
           : error == ENOTCONN   ? "ENOTCONN"
                                 : "another error";
}

static void nap(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};

    nanosleep(&time, NULL);
}

/* A free port the first time, then the same again. */
static int open_listener(int type)
{
    int fd = socket(AF_INET, SOCK_STREAM | type, 0), on = 1;
    socklen_t length = sizeof(address);

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) == -1 || listen(fd, 100) == -1)
        die("listen");
    getsockname(fd, (struct sockaddr *)&address, &length);
    return fd;
}

static int connect_to_it(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == -1)
        die("connect");
    return fd;
}

static void reset(int fd)
{
    struct linger now = {.l_onoff = 1};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(fd);
}

/* ---- Day 3: which events there are ---------------------------------------------------------- */

static void print_masks(int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
    struct timeval at_once = {0};
    int epoll = epoll_create1(0), ready;
    fd_set readable, writable, exceptional;

    nap(ARRIVAL);
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    ready = epoll_wait(epoll, &event, 1, 0);
    close(epoll);
    unsigned mask = ready == 1 ? event.events : 0;
    printf("%s%s%s%s", mask & EPOLLIN ? "IN " : "", mask & EPOLLRDHUP ? "RDHUP " : "",
           mask & EPOLLERR ? "ERR " : "", mask & EPOLLHUP ? "HUP " : "");

    FD_ZERO(&readable);
    FD_SET(fd, &readable);
    writable = exceptional = readable;
    select(fd + 1, &readable, &writable, &exceptional, &at_once);
    printf("/%s%s%s", FD_ISSET(fd, &readable) ? " readable" : "",
           FD_ISSET(fd, &writable) ? " writable" : "",
           FD_ISSET(fd, &exceptional) ? " exceptional" : "");
}

/* What recv gives, until there is no more. */
static void print_recv(int fd)
{
    char byte;
    ssize_t n = 1;

    printf(" /");
    while (n > 0) {
        n = recv(fd, &byte, 1, MSG_DONTWAIT);
        if (n == -1)
            printf(" %s", name_of(errno));
        else
            printf(" %zd", n);
    }
    printf("\n");
}

/* A step is a letter: the peer sends, shuts down its side (w), closes, resets; W: we shut down. */
static void try_masks(void)
{
    static const struct {
        const char *peer, *steps;
    } cases[] = {{"sends", "s"},
                 {"shuts down its sending side", "w"},
                 {"closes", "c"},
                 {"resets", "r"},
                 {"sends a byte, then resets", "sr"},
                 {"resets after it has closed", "wr"},
                 {"closes after we have shut down our side", "Wc"}};
    int listener = open_listener(0), client = connect_to_it(), fd;

    printf("mask\tconnects\t");
    print_masks(listener);
    printf(" / -\n");
    close(client);
    close(accept(listener, NULL, NULL));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        client = connect_to_it();
        fd = accept(listener, NULL, NULL);
        for (const char *step = cases[i].steps; *step != '\0'; step++)
            if (*step == 's')
                send(client, "x", 1, 0);
            else if (*step == 'c')
                close(client);
            else if (*step == 'r')
                reset(client);
            else
                shutdown(*step == 'w' ? client : fd, SHUT_WR);
        printf("mask\t%s\t", cases[i].peer);
        print_masks(fd);
        print_recv(fd);
        close(fd);
    }
    printf("mask\twas never there\t");
    fd = socket(AF_INET, SOCK_STREAM, 0);
    print_masks(fd);
    print_recv(fd);
    close(fd);
    close(listener);
}

/* ---- Day 2: when a signal comes in ---------------------------------------------------------- */

static volatile sig_atomic_t caught;

static void on_signal(int number)
{
    caught = number;
}

/* A signal is pending, and the call's mask lets it in. What may be ready is a pipe. */
static void try_signal(const char *name, bool ready, int milliseconds)
{
    struct timespec time = {0, milliseconds * 1000000L};
    struct epoll_event event = {.events = EPOLLIN};
    int ends[2], epoll = epoll_create1(0), result;
    sigset_t none, ours;
    fd_set readable;

    sigemptyset(&none);
    sigemptyset(&ours);
    sigaddset(&ours, SIGUSR1);
    sigprocmask(SIG_BLOCK, &ours, NULL);
    signal(SIGUSR1, on_signal);
    if (pipe(ends) == -1 || (ready && write(ends[1], "", 1) != 1))
        die("pipe");
    struct pollfd pollfd = {.fd = ends[0], .events = POLLIN};
    FD_ZERO(&readable);
    FD_SET(ends[0], &readable);
    epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);

    caught = 0;
    kill(getpid(), SIGUSR1);
    if (strcmp(name, "pselect") == 0)
        result = pselect(ends[0] + 1, &readable, NULL, NULL, &time, &none);
    else if (strcmp(name, "ppoll") == 0)
        result = ppoll(&pollfd, 1, &time, &none);
    else
        result = epoll_pwait(epoll, &event, 1, milliseconds, &none);
    printf("signal\t%s, %d ms, %s\t%s, the signal %s\n", name, milliseconds,
           ready ? "ready" : "nothing ready",
           result == -1  ? name_of(errno)
           : result == 1 ? "the descriptor"
                         : "0",
           caught ? "comes in" : "stays out");
    signal(SIGUSR1, SIG_IGN); /* which discards it, if it is still pending */
    close(ends[0]);
    close(ends[1]);
    close(epoll);
}

static void try_signals(void)
{
    static const char *const calls[] = {"pselect", "ppoll", "epoll_pwait"};

    for (int i = 0; i < 3; i++)
        for (int ready = 0; ready < 2; ready++)
            for (int milliseconds = 0; milliseconds <= TIME_OUT; milliseconds += TIME_OUT)
                try_signal(calls[i], ready, milliseconds);
}

/* ---- Children that sleep -------------------------------------------------------------------- */

/* The text of /proc/PID/NAME, until the next call. */
static const char *read_proc(pid_t pid, const char *name)
{
    static char text[1024];
    char path[64];
    int fd;
    ssize_t n = 0;

    snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
    if ((fd = open(path, O_RDONLY)) != -1) {
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    return text;
}

static void await_sleep(pid_t pid)
{
    for (int i = 0; strstr(read_proc(pid, "stat"), ") S ") == NULL; i++) {
        if (i == PATIENCE * 1000) {
            fprintf(stderr, "facts: a child does not sleep\n");
            exit(EXIT_FAILURE);
        }
        nap(1);
    }
}

/* It ends with us. */
static pid_t start(void (*work)(int), int number)
{
    fflush(stdout);
    pid_t pid = fork();

    if (pid == -1)
        die("fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work(number);
        _exit(EXIT_FAILURE);
    }
    await_sleep(pid);
    return pid;
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* ---- Day 5: which one is woken -------------------------------------------------------------- */

static int awaited, instance, report[2];
static unsigned exclusive; /* EPOLLEXCLUSIVE: an instance for each worker; 0: one for all */
static bool in_accept;

static void await_newcomers(int number)
{
    struct epoll_event event = {.events = EPOLLIN | exclusive};

    if (exclusive) {
        instance = epoll_create1(0);
        epoll_ctl(instance, EPOLL_CTL_ADD, awaited, &event);
    }
    for (;;) {
        int fd = in_accept || epoll_wait(instance, &event, 1, -1) == 1 ? accept(awaited, NULL, NULL)
                                                                       : -1;

        if (fd != -1 && write(report[1], &number, sizeof(number)) == -1)
            die("write");
        close(fd);
    }
}

/* The numbers of the workers, in the order in which they get one client after the other. */
static void try_order(const char *name)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    pid_t pids[WORKERS];
    int number;

    in_accept = strcmp(name, "accept") == 0;
    exclusive = strcmp(name, "exclusive") == 0 ? EPOLLEXCLUSIVE : 0;
    awaited = open_listener(in_accept ? 0 : SOCK_NONBLOCK);
    instance = epoll_create1(0);
    epoll_ctl(instance, EPOLL_CTL_ADD, awaited, &event);
    if (pipe(report) == -1)
        die("pipe");
    for (int i = 0; i < WORKERS; i++)
        pids[i] = start(await_newcomers, i + 1);
    printf("order\t%s\t", name);
    for (int round = 0; round < ROUNDS; round++) {
        close(connect_to_it());
        if (read(report[0], &number, sizeof(number)) == -1)
            die("read");
        printf(round == 0 ? "%d" : " %d", number);
        for (int i = 0; i < WORKERS; i++)
            await_sleep(pids[i]);
    }
    printf("\n");
    for (int i = 0; i < WORKERS; i++)
        end(pids[i]);
    close(report[0]);
    close(report[1]);
    close(instance);
    close(awaited);
}

/* ---- A listener with a queue is closed ------------------------------------------------------ */

/* We change a setting, which must not be the machine's own. Returns false if we may not. */
static bool own_network(void)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd;

    if (unshare(CLONE_NEWNET) == -1)
        return false;
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (ioctl(fd, SIOCSIFFLAGS, &lo) == -1)
        die("lo");
    close(fd);
    return true;
}

/* Two listeners have a port in common, and clients wait at both. One is closed. */
static void try_queue(const char *migrate, bool own)
{
    int setting = own ? open("/proc/sys/net/ipv4/tcp_migrate_req", O_WRONLY) : -1, lost = 0;
    int listeners[2], clients[CLIENTS];
    char byte;

    printf("queue\ttcp_migrate_req %s\t", migrate);
    if (!own || (write(setting, migrate, 1) != 1 && strcmp(migrate, "1") == 0)) {
        printf(own ? "no such setting\n" : "not tried, without a network of our own\n");
        return;
    }
    close(setting);
    for (int i = 0; i < 2; i++)
        listeners[i] = open_listener(0);
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = connect_to_it();
    close(listeners[0]);
    nap(ARRIVAL);
    for (int i = 0; i < CLIENTS; i++) {
        lost += recv(clients[i], &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET;
        close(clients[i]);
    }
    close(listeners[1]);
    printf("%s\n", lost > 0 ? "some are reset" : "none is reset");
}

/* ---- Names in /proc/PID/wchan --------------------------------------------------------------- */

static const char *const sleeps[] = {"accept", "recv",       "send",         "select",
                                     "poll",   "epoll_wait", "sigtimedwait", "nanosleep"};

static void sleep_in(int number)
{
    static char megabyte[1 << 20];
    const char *call = sleeps[number];
    int fd = strcmp(call, "accept") == 0 ? open_listener(0) : connect_to_it();
    struct epoll_event event = {.events = EPOLLIN};
    struct pollfd pollfd = {.fd = fd, .events = POLLIN};
    struct timespec minute = {60, 0};
    int set = epoll_create1(0);
    sigset_t ours;
    fd_set readable;

    sigemptyset(&ours);
    sigaddset(&ours, SIGUSR2);
    FD_ZERO(&readable);
    FD_SET(fd, &readable);
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    if (strcmp(call, "accept") == 0)
        accept(fd, NULL, NULL);
    else if (strcmp(call, "recv") == 0)
        recv(fd, megabyte, sizeof(megabyte), 0);
    else if (strcmp(call, "send") == 0)
        while (send(fd, megabyte, sizeof(megabyte), 0) > 0)
            ;
    else if (strcmp(call, "select") == 0)
        select(fd + 1, &readable, NULL, NULL, NULL);
    else if (strcmp(call, "poll") == 0)
        poll(&pollfd, 1, -1);
    else if (strcmp(call, "epoll_wait") == 0)
        epoll_wait(set, &event, 1, -1);
    else if (strcmp(call, "sigtimedwait") == 0)
        sigtimedwait(&ours, NULL, &minute);
    else
        nanosleep(&minute, NULL);
}

/* A child may sleep for something else on its way there: hence the second look, after a while. */
static void try_wchan(int number)
{
    int quiet = open_listener(0);
    pid_t pid = start(sleep_in, number);

    nap(ARRIVAL);
    await_sleep(pid);
    printf("wchan\t%s\t%s\n", sleeps[number], read_proc(pid, "wchan"));
    end(pid);
    close(quiet);
}

int main(void)
{
    bool own;

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    own = own_network();
    try_masks();
    try_signals();
    try_order("accept");
    try_order("exclusive");
    try_order("shared-et");
    try_queue("0", own);
    try_queue("1", own);
    for (int i = 0; i < (int)(sizeof(sleeps) / sizeof(sleeps[0])); i++)
        try_wchan(i);
    return EXIT_SUCCESS;
}
