/* Day 5: the same server, several times at once.
 *
 * New today: a parent forks workers that wait for the same clients, in eleven ways (-m). When one
 * client comes, whom does the kernel wake? The scoreboard counts it, at the end and on SIGUSR1.
 *
 * Not yet: the last chapter says what comes after.
 *
 * Here is the parent: options, the table of modes, fork, supervise, stop. Read on in worker.h, then
 * worker.c (day 4's loop), connection.c (day 4's clients, unchanged), single.c, pool.c, scoreboard.c.
 *
 * Build:  cc -std=gnu11 -pthread -o server *.c ../common/die.c
 * Use:    ./server [-v] [-m MODE] [-w WORKERS] [-d MILLISECONDS] [PORT [ADDRESS]]
 *         ./server -m help
 */
#ifndef __linux__
#error "This day needs epoll, which only Linux has. Days 1 and 2 do without it."
#endif
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../common/die.h"
#include "connection.h"
#include "scoreboard.h"
#include "worker.h"

enum {
    BACKLOG = 4096, /* clients that may wait for accept; the kernel may allow less */
    WORKERS = 4096, /* the most that -w takes */
    REST = 1000,    /* milliseconds between two starts of a worker, at least */
    PATIENCE = 900, /* milliseconds that workers may take to end */
};

/* One row, one way to wait for a newcomer. worker.h says what the columns mean. */
static const struct mode modes[] = {
    {"accept", serve_single, wait_in_accept, .blocking = true,
     .about = "all sleep in accept: one is woken"},
    {"poll", serve_single, wait_in_poll, .about = "all sleep in poll: all are woken"},
    {"epoll", serve_many, .mask = EPOLLIN, .about = "an epoll instance each: all are woken"},
    {"epoll-et", serve_many, .mask = EPOLLIN | EPOLLET,
     .about = "the same, edge-triggered: all are woken"},
    {"shared", serve_single, wait_in_epoll, .mask = EPOLLIN, .shared = true,
     .about = "one epoll instance for all: one wakes the next while there is a newcomer"},
    {"shared-et", serve_single, wait_in_epoll, .mask = EPOLLIN | EPOLLET, .shared = true,
     .about = "the same, edge-triggered: one is woken"},
    {"exclusive", serve_many, .mask = EPOLLIN | EPOLLEXCLUSIVE,
     .about = "an epoll instance each, EPOLLEXCLUSIVE: one is woken (the default)"},
    {"reuseport", serve_many, .mask = EPOLLIN, .own_listener = true,
     .about = "a listener each, SO_REUSEPORT: one is woken; if it dies, so do its newcomers"},
    {"mutex", serve_many, .mask = EPOLLIN, .accept_mutex = true,
     .about = "only who has the lock waits for newcomers: one is woken"},
    {"pool-signal", serve_pool, .mask = EPOLLIN, .wake = pthread_cond_signal,
     .about = "one loop, threads that wait for jobs: one is woken for a job"},
    {"pool-broadcast", serve_pool, .mask = EPOLLIN, .wake = pthread_cond_broadcast,
     .about = "the same: all are woken for a job"},
};

/* What the parent knows of a worker process. */
struct child {
    pid_t pid;       /* 0: it is dead, and not replaced yet */
    int64_t started; /* milliseconds, of now() */
};

const struct mode *mode;
int workers;
int delay;
bool verbose;
int listener = -1;

static struct sockaddr_in address; /* where to listen */

static struct child *children;
static int processes; /* in children */
static sigset_t ours; /* the signals that the parent waits for */

/* ---- Options --------------------------------------------------------------------------------- */

static void usage(void)
{
    fprintf(stderr, "usage: server [-v] [-m MODE] [-w WORKERS] [-d MILLISECONDS] "
                    "[PORT [ADDRESS]]\n");
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

static int parse_number(const char *what, const char *text, long least, long most)
{
    char *end;
    long number = strtol(text, &end, 10);

    if (text[0] < '0' || text[0] > '9' || *end != '\0' || number < least || number > most) {
        fprintf(stderr, "server: %s %s: not a number from %ld to %ld\n", what, text, least, most);
        usage();
    }
    return (int)number;
}

static const struct mode *parse_mode(const char *name)
{
    size_t count = sizeof(modes) / sizeof(modes[0]);
    bool help = strcmp(name, "help") == 0;

    for (size_t i = 0; i < count; i++) {
        if (help)
            printf("%-15s %s\n", modes[i].name, modes[i].about);
        else if (strcmp(name, modes[i].name) == 0)
            return &modes[i];
    }
    if (help)
        exit(EXIT_SUCCESS);
    fprintf(stderr, "server: mode %s: there is none of that name (-m help lists them)\n", name);
    usage();
    return NULL;
}

static void parse_options(int argc, char *argv[])
{
    int option;

    while ((option = getopt(argc, argv, "vm:w:d:")) != -1) {
        if (option == 'v')
            verbose = true;
        else if (option == 'm')
            mode = parse_mode(optarg);
        else if (option == 'w')
            workers = parse_number("workers", optarg, 1, WORKERS);
        else if (option == 'd')
            delay = parse_number("delay", optarg, 0, 60000);
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

static void set_defaults(void)
{
    if (mode == NULL)
        mode = parse_mode("exclusive");
    if (workers == 0)
        workers = (int)sysconf(_SC_NPROCESSORS_ONLN);
    processes = mode->wake != NULL ? 1 : workers; /* the threads of a pool are in one process */
}

/* ---- Signals --------------------------------------------------------------------------------- */

/* The parent needs no handler. Its signals stay blocked for good, and it asks for the next one: so
 * none can be lost, however badly it is timed. */
static void catch_signals(void)
{
    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGUSR1);
    sigaddset(&ours, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ours, NULL);

    /* Whoever writes to a client that is gone gets SIGPIPE, which kills. We prefer send's EPIPE. */
    signal(SIGPIPE, SIG_IGN);
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

/* Non-blocking, but for mode accept: where several are woken for one client, accept would put all
 * others to sleep, and they would be deaf to the clients that they have. */
static void open_listener(void)
{
    const char *ip = inet_ntoa(address.sin_addr);
    socklen_t length = sizeof(address);
    int on = 1;

    listener = socket(AF_INET, SOCK_STREAM | (mode->blocking ? 0 : SOCK_NONBLOCK), 0);
    if (listener == -1)
        die("socket");

    /* The connections of the server before us may still be in TIME_WAIT; bind all the same. */
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == -1)
        die("setsockopt SO_REUSEADDR");
    if (mode->own_listener && setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) == -1)
        die("setsockopt SO_REUSEPORT");
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) == -1)
        die("bind %s:%d", ip, ntohs(address.sin_port));

    /* From here on the kernel connects clients by itself, and keeps them until accept. */
    if (listen(listener, BACKLOG) == -1)
        die("listen %s:%d", ip, ntohs(address.sin_port));

    /* Port 0 lets the kernel choose: ask what it chose. */
    if (getsockname(listener, (struct sockaddr *)&address, &length) == -1)
        die("getsockname");
}

/* What has to be there before the first fork, because the workers share it. */
static void prepare(void)
{
    children = calloc((size_t)processes, sizeof(*children));
    if (children == NULL)
        die("calloc");
    scoreboard_open(mode->wake != NULL ? workers + 1 : workers, mode->wake != NULL);
    if (mode->accept_mutex)
        open_accept_mutex();
    open_nudge();
    if (mode->shared && (epoll_open(&epoll, 1, false) == -1 || start_accepting() == -1))
        die("epoll_open");

    printf("listening on %s:%d\n", inet_ntoa(address.sin_addr), ntohs(address.sin_port));
    if (mode->serve == serve_single)
        printf("mode %s: a worker serves one client to the end, as on day 1\n", mode->name);
}

/* ---- The parent ------------------------------------------------------------------------------ */

/* Milliseconds since some moment: no clock that can be set. */
static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* If the parent dies, so do we. It may have died before we asked for that: then somebody else is
 * our parent now. */
static void live_and_die_with(pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) == -1)
        die("prctl PR_SET_PDEATHSIG");
    if (getppid() != parent)
        exit(EXIT_FAILURE);
}

static void start_worker(int number)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    if (pid == -1)
        complain("fork");
    if (pid == 0) {
        live_and_die_with(parent);
        if (listener == -1)
            open_listener();
        work(mode->wake != NULL ? workers : number);
        exit(EXIT_SUCCESS);
    }
    children[number] = (struct child){.pid = pid == -1 ? 0 : pid, .started = now()};

    /* With a listener each, the first worker has ours, and all others open their own. We keep none:
     * the kernel would give it a share of the newcomers. So what waits at a listener is lost when
     * its worker dies, and has to wait while its worker is out of descriptors. */
    if (mode->own_listener && listener != -1) {
        close(listener);
        listener = -1;
    }
}

/* Starts a worker where there is none, but not twice within a second: one that dies at once would
 * keep us busy. Returns whether somebody has to wait for that. */
static bool start_workers(void)
{
    bool waiting = false;

    for (int i = 0; i < processes; i++) {
        if (children[i].pid != 0)
            continue;
        if (children[i].started == 0 || now() - children[i].started >= REST)
            start_worker(i);
        waiting = waiting || children[i].pid == 0;
    }
    return waiting;
}

static void report(int number, const siginfo_t *death)
{
    if (death->si_code == CLD_EXITED)
        fprintf(stderr, "server: worker %d (pid %d) ended with status %d\n", number + 1,
                death->si_pid, death->si_status);
    else
        fprintf(stderr, "server: worker %d (pid %d) was killed by signal %d (%s)\n", number + 1,
                death->si_pid, death->si_status, strsignal(death->si_status));
}

/* Takes note of all that have died. Dead is not gone: until we wait for it, the kernel keeps what it
 * knows of a child, and the scoreboard asks for it. */
static void bury_the_dead(bool expected)
{
    for (;;) {
        siginfo_t death = {.si_pid = 0};
        if (waitid(P_ALL, 0, &death, WEXITED | WNOHANG | WNOWAIT) == -1 || death.si_pid == 0)
            return;
        scoreboard_bury(death.si_pid);
        waitpid(death.si_pid, NULL, 0);
        for (int i = 0; i < processes; i++)
            if (children[i].pid == death.si_pid) {
                children[i].pid = 0;
                if (!expected)
                    report(i, &death);
            }
    }
}

static void supervise(void)
{
    const struct timespec soon = {.tv_nsec = 100 * 1000 * 1000};
    int signal_number = 0;

    while (signal_number != SIGINT && signal_number != SIGTERM) {
        bool waiting = start_workers();
        signal_number = sigtimedwait(&ours, NULL, waiting ? &soon : NULL);
        if (signal_number == SIGUSR1)
            scoreboard_print();
        bury_the_dead(signal_number == SIGINT || signal_number == SIGTERM);
    }
}

static int tell_workers(int signal_number)
{
    int told = 0;

    for (int i = 0; i < processes; i++)
        if (children[i].pid != 0) {
            kill(children[i].pid, signal_number);
            told++;
        }
    return told;
}

/* Once would be enough for all but serve_single, see there. */
static void stop_workers(void)
{
    const struct timespec moment = {.tv_nsec = 10 * 1000 * 1000};
    int64_t deadline = now() + PATIENCE;

    while (tell_workers(now() < deadline ? SIGTERM : SIGKILL) > 0) {
        nanosleep(&moment, NULL);
        bury_the_dead(true);
    }
}

int main(int argc, char *argv[])
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* line by line: those of several processes do not mix */
    parse_options(argc, argv);
    set_defaults();
    catch_signals();
    limit_descriptors();
    open_listener();
    prepare();
    supervise();
    stop_workers();
    scoreboard_print_totals();
    scoreboard_print();
    return EXIT_SUCCESS;
}
