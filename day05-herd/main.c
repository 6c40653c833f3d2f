/* Day 5: the same server, in several processes at once.
 *
 * New today: a parent binds the listener and forks workers. Each of them is day 4's server, to the
 * byte: server.c and epoll.c have not changed. The parent starts them, replaces those that die, and
 * ends them. There are three ways to wait at one port (-m); herd.c, the laboratory, has more.
 *
 * Here is the parent, top to bottom.
 *
 * Build:  cc -std=gnu11 -o server main.c server.c epoll.c ../common/die.c
 * Use:    ./server [-v] [-m MODE] [-w WORKERS] [PORT [HOST]]    -m help: the modes
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/die.h"
#include "server.h"

/* How many workers there may be. Milliseconds: from one start of a worker to the next, and for the
 * workers to end. */
enum { MOST = 4096, REST = 1000, PATIENCE = 900 };

/* A way to wait at one port: what is true of each worker. */
struct mode {
    const char *name;
    bool exclusive, reuse_port; /* as in struct server */
    const char *about;
};

static const struct mode modes[] = {
    {"epoll", .about = "one listener for all: each newcomer wakes all idle workers"},
    {"exclusive", .exclusive = true, .about = "the same, but it wakes one of them (the default)"},
    {"reuseport", .reuse_port = true,
     .about = "a listener each: the kernel deals the newcomers out"},
};

/* A worker as its parent sees it. */
struct child {
    pid_t pid;       /* 0: there is none */
    int64_t started; /* in milliseconds of now() */
};

static const struct mode *mode = &modes[1]; /* -m */
static int workers;                         /* -w */
static struct server server;                /* the workers get a copy of it */
static struct child *children;
static struct totals *scoreboard; /* a row for each worker, in memory that they share with us */
static sigset_t ours;             /* the signals that we wait for */

/* ---- Options --------------------------------------------------------------------------------- */

static void usage(void)
{
    fprintf(stderr, "usage: server [-v] [-m MODE] [-w WORKERS] [PORT [HOST]]\n");
    exit(2);
}

static void choose_mode(const char *name)
{
    const size_t count = sizeof(modes) / sizeof(*modes);

    for (size_t i = 0; i < count; i++)
        if (strcmp(modes[i].name, name) == 0) {
            mode = &modes[i];
            return;
        }
    for (size_t i = 0; i < count && strcmp(name, "help") == 0; i++)
        printf("%-10s %s\n", modes[i].name, modes[i].about);
    if (strcmp(name, "help") == 0)
        exit(EXIT_SUCCESS);
    fprintf(stderr, "server: mode %s: no such mode (-m help lists them)\n", name);
    usage();
}

static void choose_workers(const char *text)
{
    unsigned long number = strtoul(text, NULL, 10);

    if (text[strspn(text, "0123456789")] != '\0' || number < 1 || number > MOST) {
        fprintf(stderr, "server: workers %s: not a number from 1 to %d\n", text, MOST);
        usage();
    }
    workers = (int)number;
}

static void parse_options(struct server *s, int argc, char *argv[])
{
    int option;

    workers = (int)sysconf(_SC_NPROCESSORS_ONLN); /* one for each core */
    while ((option = getopt(argc, argv, "vm:w:")) != -1)
        if (option == 'v')
            s->verbose = true;
        else if (option == 'm')
            choose_mode(optarg);
        else if (option == 'w')
            choose_workers(optarg);
        else
            usage();

    const char *port = argc > optind ? argv[optind] : "8888";
    const char *host = argc > optind + 1 ? argv[optind + 1] : "127.0.0.1";
    if (argc > optind + 2 || !server_look_up(s, port, host))
        usage();
}

/* ---- Before the first worker ----------------------------------------------------------------- */

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

/* The parent's signals stay blocked for good, and it asks for the next one. If our own parent
 * ignores SIGCHLD, we would inherit that, and the kernel would not report the dead to us. */
static void catch_signals(void)
{
    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGCHLD); /* a worker has died */
    sigaddset(&ours, SIGUSR1); /* a worker is ready */
    sigprocmask(SIG_BLOCK, &ours, NULL);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGPIPE, SIG_IGN); /* sending to a client that is gone is an error, not our end */
}

/* Binds the listener of all workers. If each is to have one of its own, ours is there to have the
 * port, and to fail if another program has it. Only then may others share it. */
static void take_port(void)
{
    int on = 1;

    server_bind(&server);
    if (mode->reuse_port &&
        setsockopt(server.listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) == -1)
        die("setsockopt SO_REUSEPORT");
}

static void make_room(void)
{
    children = calloc((size_t)workers, sizeof(*children));
    if (children == NULL)
        die("calloc");
    scoreboard = mmap(NULL, (size_t)workers * sizeof(*scoreboard), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (scoreboard == MAP_FAILED)
        die("mmap");
}

/* ---- A worker -------------------------------------------------------------------------------- */

/* If the parent ends, so do we. If it has ended before we asked for that, another process is our
 * parent now. */
static void end_with(pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) == -1)
        die("prctl PR_SET_PDEATHSIG");
    if (getppid() != parent)
        exit(EXIT_FAILURE);
}

/* EPOLLEXCLUSIVE asks the workers in the order in which they came to the listener, so all newcomers
 * that come one by one would go to the first. So we go to the end of the queue after each of them.
 * And we leave the queue while we have no descriptor for the next: the kernel would wake us, and
 * tell none of the others. */
static void queue_again(void)
{
    int spare = dup(server.listener);

    if (spare == -1) {
        server_accept(&server); /* fails, and so stops accepting until there is one again */
        return;
    }
    close(spare);
    server_stop_accepting(&server);
    server_start_accepting(&server);
}

/* Counts go on from where the worker before us left them. */
static void work(int number)
{
    snprintf(server.prefix, sizeof(server.prefix), "worker %d ", number + 1);
    server.exclusive = mode->exclusive;
    server.reuse_port = mode->reuse_port;
    server.totals = scoreboard[number];
    if (mode->reuse_port) {
        close(server.listener);
        server_bind(&server);
    }
    server_start(&server, server_signals());
    kill(getppid(), SIGUSR1); /* clients can come */

    while (!server.stop) {
        server_turn(&server);
        if (mode->exclusive && !server.shortage &&
            server.totals.clients != scoreboard[number].clients)
            queue_again();
        scoreboard[number] = server.totals;
    }
    server_finish(&server);
    scoreboard[number] = server.totals;
    exit(EXIT_SUCCESS);
}

/* ---- The parent ------------------------------------------------------------------------------ */

/* Returns false, with errno, if there cannot be another process. */
static bool start_worker(int number)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    if (pid == 0) {
        end_with(parent);
        work(number);
    }
    children[number] = (struct child){.pid = pid == -1 ? 0 : pid, .started = now()};
    return pid != -1;
}

/* One after the other, and we wait until it is ready: when we say that we listen, all of them do.
 * If it dies, it has said why, and the others end with us. */
static void start_workers(void)
{
    sigset_t news;
    int signal_number;

    sigemptyset(&news); /* the other signals can wait */
    sigaddset(&news, SIGUSR1);
    sigaddset(&news, SIGCHLD);
    for (int i = 0; i < workers; i++) {
        if (!start_worker(i))
            die("fork");
        sigwait(&news, &signal_number);
        if (signal_number == SIGCHLD)
            exit(EXIT_FAILURE);
    }
}

/* Starts a worker where there is none, but not twice within a second: one that dies at once would
 * keep us busy. Returns whether one is still missing. */
static bool replace_the_dead(void)
{
    bool missing = false;

    for (int i = 0; i < workers; i++) {
        if (children[i].pid != 0)
            continue;
        if (milliseconds_until(children[i].started + REST) > 0)
            missing = true;
        else if (!start_worker(i)) {
            complain("fork");
            for (i++; i < workers; i++) /* nor could the others be started now */
                children[i].started = now();
            return true;
        }
    }
    return missing;
}

static void report(int number, pid_t pid, int status)
{
    if (WIFSIGNALED(status))
        fprintf(stderr, "server: worker %d (pid %d) was killed by signal %d (%s)\n", number + 1,
                pid, WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        fprintf(stderr, "server: worker %d (pid %d) ended with status %d\n", number + 1, pid,
                WEXITSTATUS(status));
}

/* Takes note of all that have died. One that ended as it was told to is not worth a word. */
static void reap_the_dead(bool told)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < workers; i++)
            if (children[i].pid == pid) {
                children[i].pid = 0;
                if (!told || status != 0)
                    report(i, pid, status);
            }
}

static void supervise(void)
{
    const struct timespec soon = {.tv_nsec = 100 * 1000 * 1000};
    int signal_number;

    do {
        bool missing = replace_the_dead();
        signal_number = sigtimedwait(&ours, NULL, missing ? &soon : NULL);
        reap_the_dead(signal_number == SIGINT || signal_number == SIGTERM);
    } while (signal_number != SIGINT && signal_number != SIGTERM);
}

/* Returns to how many workers it was sent. */
static int send_to_workers(int signal_number)
{
    int sent = 0;

    for (int i = 0; i < workers; i++)
        if (children[i].pid != 0 && kill(children[i].pid, signal_number) == 0)
            sent++;
    return sent;
}

static void stop_workers(void)
{
    const struct timespec moment = {.tv_nsec = 10 * 1000 * 1000};
    int64_t end = now() + PATIENCE;

    close(server.listener);
    while (send_to_workers(milliseconds_until(end) > 0 ? SIGTERM : SIGKILL) > 0) {
        sigtimedwait(&ours, NULL, &moment); /* until one has died, or another look is due */
        reap_the_dead(true);
    }
}

static void print_scoreboard(void)
{
    struct totals sum = {0};

    for (int i = 0; i < workers; i++) {
        sum.clients += scoreboard[i].clients;
        sum.received += scoreboard[i].received;
        sum.echoed += scoreboard[i].echoed;
        if (server.verbose) {
            printf("worker %d ", i + 1);
            print_totals(&scoreboard[i]);
        }
    }
    print_totals(&sum);
}

int main(int argc, char *argv[])
{
    static char line[8192];

    setvbuf(stdout, line, _IOLBF, sizeof(line)); /* a line is one write: those of several processes
                                                    do not run into each other */
    parse_options(&server, argc, argv);
    fill_standard_descriptors();
    limit_descriptors();
    catch_signals();
    take_port();
    make_room();
    start_workers();
    printf("listening on %s\n", name_of(&server.address).text);
    supervise();
    stop_workers();
    print_scoreboard();
    return EXIT_SUCCESS;
}
