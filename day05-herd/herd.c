/* Day 5, the laboratory: one client comes, and ten workers wait for it. How many does the kernel wake?
 *
 * The workers wait in one of eleven ways (-m) and do nothing else: accept, close, wait again. We
 * connect, one connection after the other, each time when all workers sleep again, and ask the
 * kernel how often they have gone to sleep (voluntary_ctxt_switches in /proc/PID/status). One sleep
 * more is one wake-up. What the workers themselves notice of it is a second count.
 *
 * A way to wait is a row of the table `ways`, and a function of a few lines where it needs one.
 *
 * Not here: an echo, or a parent that replaces a dead worker. Those are in server.c and main.c.
 *
 * Build:  cc -std=gnu11 -pthread -o herd herd.c ../common/die.c
 * Use:    ./herd [-m WAY] [-w WORKERS] [-c CONNECTIONS] [-d MILLISECONDS] [-p PORT]
 *         ./herd -m help
 */
#define _GNU_SOURCE

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../common/die.h"

enum {
    MOST_WORKERS = 1000,
    MOST_CONNECTIONS = 10000,
    LOCK_DELAY = 500, /* milliseconds until a worker asks again for the lock (accept_mutex_delay) */
    PATIENCE = 20,    /* seconds that the workers may take to fall asleep */
};

/* What a worker says of itself. It alone writes its row, while we read it from another process:
 * hence atomic. 32 bits are enough, and 64 would need a lock on some machines. */
struct row {
    atomic_int task;      /* its process, or in a pool its thread: a folder of /proc */
    atomic_bool waiting;  /* it is in its wait, or just before; a sleep elsewhere is a nap */
    atomic_uint returned; /* its wait came back with a newcomer, */
    atomic_uint accepted; /* which it got, */
    atomic_uint nothing;  /* or which another worker had taken before */
    atomic_uint clock;    /* sleeps that no newcomer has ended, but the clock: naps and time-outs */
};

/* In memory that all processes have in common (mmap). After a fork each has its own copy of a
 * variable, and what it writes there the others do not see. */
struct shared {
    struct row rows[MOST_WORKERS];
    atomic_uint accepted_at; /* when the last newcomer was; microseconds of now() */
    atomic_bool locked;      /* the accept mutex, which needs to be no more than this */
};

/* What tells one way from the others. What a row does not name is 0, NULL or false. */
struct way {
    const char *name, *about;
    int (*wait)(void); /* as poll: 1 means a newcomer, 0 a time-out, -1 an error */
    bool blocking;     /* accept waits on the listener; otherwise it says EAGAIN */
    unsigned mask;     /* of the listener in an epoll instance */
    bool shared;       /* one instance, made before the fork; otherwise one each */
    bool own_listener; /* a listening socket each (SO_REUSEPORT); otherwise one for all */
    int (*wake)(pthread_cond_t *); /* the workers are threads of one process, and this wakes them */
};

static int workers = 10, connections, delay, port = -1;
static const struct way *way; /* the one that is being tried */

static struct sockaddr_in address;
static int listener = -1, epoll = -1;
static struct shared *shared;
static _Thread_local struct row *me; /* a worker's own row */
static sigset_t ours;                /* signals that the parent takes when it has time */

/* Microseconds. They start again from 0 every 71 minutes, but differences stay right. */
static unsigned now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (unsigned)time.tv_sec * 1000000 + (unsigned)(time.tv_nsec / 1000);
}

/* ---- Ways to wait: where a worker sleeps. The rest of its life is in work(), below. ---------- */

/* Takes the newcomer. Returns 1, or 0 if another worker was faster.
 *
 * In the way "accept" this is the wait as well. The kernel lines the sleepers up and wakes the first
 * (an exclusive wait); when it comes back it has to queue at the end. Hence the round-robin. */
static int take(void)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd == -1 && errno == EAGAIN)
        return 0;
    if (fd == -1)
        die("accept4");
    shared->accepted_at = now();
    me->accepted++;
    close(fd);
    return 1;
}

/* poll asks for news, not for the newcomer itself. The kernel cannot know which of them will accept,
 * so it wakes them all. */
static int wait_in_poll(void)
{
    struct pollfd newcomer = {.fd = listener, .events = POLLIN};

    return poll(&newcomer, 1, -1);
}

/* The same with an instance each: each of them is in the listener's queue, and has one sleeper. Most
 * of these find nothing and sleep on, inside the call, without our noticing.
 *
 * With one instance for all, it stands in the queue once and wakes one of its sleepers. While the
 * newcomer is still there, that one wakes the next, and so on; not in edge-triggered mode.
 *
 * With EPOLLEXCLUSIVE the instances line up as in accept, but none ever leaves the queue: the first
 * always stays the first. With a listener each, a hash of the addresses chooses the queue. */
static int wait_in_epoll(void)
{
    struct epoll_event event;

    return epoll_wait(epoll, &event, 1, -1);
}

static void watch_listener(int operation, unsigned mask)
{
    struct epoll_event event = {.events = mask};

    if (epoll_ctl(epoll, operation, listener, &event) == -1)
        die("epoll_ctl");
}

/* nginx's accept_mutex: the worker that has the lock watches the listener. It gives the lock back
 * after each newcomer, but asks for it again at once, while the others sleep until their time-out.
 * So it nearly always gets it again. (With a mask of 0 we hear of no newcomer.) */
static int wait_with_mutex(void)
{
    static bool holding;
    struct epoll_event event;

    if (holding)
        shared->locked = false;
    holding = !atomic_exchange(&shared->locked, true);
    watch_listener(EPOLL_CTL_MOD, holding ? way->mask : 0);
    return epoll_wait(epoll, &event, 1, holding ? -1 : LOCK_DELAY);
}

static const struct way ways[] = {
    {"accept", "all sleep in accept: one is woken", take, .blocking = true},
    {"poll", "all sleep in poll: all are woken", wait_in_poll, .blocking = false},
    {"epoll", "an epoll instance each: all", wait_in_epoll, .mask = EPOLLIN},
    {"epoll-et", "the same, edge-triggered: all", wait_in_epoll, .mask = EPOLLIN | EPOLLET},
    {"shared", "one instance for all: one, which wakes another", wait_in_epoll, .mask = EPOLLIN,
     .shared = true},
    {"shared-et", "the same, edge-triggered: one", wait_in_epoll, .mask = EPOLLIN | EPOLLET,
     .shared = true},
    {"exclusive", "EPOLLEXCLUSIVE: one", wait_in_epoll, .mask = EPOLLIN | EPOLLEXCLUSIVE},
    {"reuseport", "SO_REUSEPORT, a listener each: one", wait_in_epoll, .mask = EPOLLIN,
     .own_listener = true},
    {"mutex", "nginx's accept_mutex: the one that has it", wait_with_mutex, .mask = EPOLLIN},
    {"pool-signal", "threads that wait for a job, pthread_cond_signal: one", .blocking = true,
     .wake = pthread_cond_signal},
    {"pool-broadcast", "the same, pthread_cond_broadcast: all", .blocking = true,
     .wake = pthread_cond_broadcast},
};

enum { WAYS = sizeof(ways) / sizeof(ways[0]) };

/* ---- A worker -------------------------------------------------------------------------------- */

static void open_epoll(void)
{
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll == -1)
        die("epoll_create1");
    watch_listener(EPOLL_CTL_ADD, way->mask);
}

/* The nap of -d comes between being woken and accepting. So all that were woken return, and find the
 * newcomer still there, before the first of them takes it: we see what the kernel has done. In the way
 * "accept" there is no such moment, and in a pool there need not be: all return as it is. */
static void work(void)
{
    if (way->mask != 0 && !way->shared)
        open_epoll();
    for (;;) {
        me->waiting = true;
        int told = way->wait();
        me->waiting = false;
        if (told == -1 && errno != EINTR) /* EINTR: it was stopped, and continued */
            die("%s", way->name);
        me->returned += told == 1;
        me->clock += told == 0;
        if (told != 1 || way->blocking) /* blocking: the wait has taken the newcomer already */
            continue;
        me->clock += delay > 0;
        if (delay > 0)
            poll(NULL, 0, delay);
        me->nothing += !take();
        while ((way->mask & EPOLLET) && take())
            ; /* two newcomers may be one edge, and no worker would hear of the second again */
    }
}

/* The herd without a kernel object in it: one loop accepts, and threads wait for jobs. What a job is
 * does not matter here, so it is enough to count them. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t job_posted = PTHREAD_COND_INITIALIZER;
static unsigned jobs; /* guarded by the lock */

/* "while", not "if": after a broadcast, and now and then without, a thread wakes up and another has
 * taken the job. */
static void *work_in_pool(void *row)
{
    me = row;
    me->task = (int)syscall(SYS_gettid); /* gettid() in newer libraries */
    pthread_mutex_lock(&lock);
    for (;;) {
        while (jobs == 0) {
            me->waiting = true;
            pthread_cond_wait(&job_posted, &lock);
            me->waiting = false;
            me->returned++;
            me->nothing += jobs == 0;
        }
        jobs--;
        shared->accepted_at = now();
        me->accepted++;
    }
    return NULL;
}

/* The wake-up comes after the unlock. A thread that woke up while we still have the lock would have
 * to sleep once more, for the lock. */
static void run_pool(void)
{
    pthread_t thread;
    int fd;

    for (int i = 0; i < workers; i++)
        if ((errno = pthread_create(&thread, NULL, work_in_pool, &shared->rows[i])) != 0)
            die("pthread_create");
    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) != -1) {
        pthread_mutex_lock(&lock);
        jobs++;
        pthread_mutex_unlock(&lock);
        way->wake(&job_posted);
        close(fd);
    }
    die("accept4");
}

/* ---- The parent ------------------------------------------------------------------------------ */

/* As die, for trouble that has no errno. The workers end with us: see start_process. */
static _Noreturn void give_up(const char *why)
{
    fprintf(stderr, "herd: %s: %s\n", way->name, why);
    exit(EXIT_FAILURE);
}

/* While it is blocked, a signal waits until we take it, whatever we have inherited; except SIGCHLD,
 * which is not even sent to a parent that ignores it. The workers inherit this: Ctrl-C is for us. */
static void block_signals(void)
{
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&ours);
    sigaddset(&ours, SIGCHLD);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigprocmask(SIG_BLOCK, &ours, NULL);
}

/* Sleeps for so long, less than a second. Returns false at Ctrl-C. A worker that has exited has said
 * why; one that was killed could not. */
static bool pause_for(long milliseconds)
{
    struct timespec time = {.tv_nsec = milliseconds * 1000000L};
    int status, number = sigtimedwait(&ours, NULL, &time);

    if (number == SIGCHLD && waitpid(-1, &status, WNOHANG) > 0) {
        if (WIFEXITED(status))
            exit(EXIT_FAILURE);
        give_up("a worker died");
    }
    return number != SIGINT && number != SIGTERM;
}

/* With port 0 the kernel chooses one, which getsockname says; the next listeners of this way then ask
 * for the same. SO_REUSEADDR: we close first, which would block the port. */
static void open_listener(void)
{
    socklen_t length = sizeof(address);
    int on = 1;

    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (way->blocking ? 0 : SOCK_NONBLOCK), 0);
    if (listener == -1)
        die("socket");
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == -1 ||
        (way->own_listener &&
         setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) == -1) ||
        bind(listener, (struct sockaddr *)&address, sizeof(address)) == -1 ||
        listen(listener, SOMAXCONN) == -1 ||
        getsockname(listener, (struct sockaddr *)&address, &length) == -1)
        die("listen on 127.0.0.1:%d", ntohs(address.sin_port));
}

/* However the parent ends, the kernel then kills the worker. (Had it ended before the prctl, getppid
 * would be another.) */
static void start_process(struct row *row)
{
    pid_t parent = getpid(), pid = fork();

    if (pid == -1)
        die("fork");
    if (pid > 0)
        return;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) == -1 || getppid() != parent)
        exit(EXIT_FAILURE);
    me = row;
    me->task = getpid();
    if (way->wake != NULL)
        run_pool();
    work();
}

/* One after the other: so they stand in this order in the kernel's queues, and if none can start,
 * only the first one says why. A listener of its own is then the worker's alone. */
static void start_workers(void)
{
    memset(shared, 0, sizeof(*shared));
    address.sin_port = htons((in_port_t)(port == -1 ? 0 : port));
    for (int i = 0; i < workers; i++) {
        if (i == 0 || way->own_listener)
            open_listener();
        if (i == 0 && way->shared)
            open_epoll();
        if (i == 0 || way->wake == NULL)
            start_process(&shared->rows[i]);
        while (!shared->rows[i].waiting)
            if (!pause_for(1))
                give_up("interrupted");
        if (way->own_listener || i == workers - 1)
            close(listener);
    }
}

static void end_workers(void)
{
    for (int i = 0; i < workers; i++)
        kill(shared->rows[i].task, SIGKILL);
    while (wait(NULL) > 0)
        ;
    if (way->shared)
        close(epoll);
}

/* ---- Asking the kernel ----------------------------------------------------------------------- */

static struct sum {
    unsigned returned, accepted, nothing; /* what the workers say, */
    unsigned woken; /* and what the kernel says: how often newcomers woke them, */
    double ran;     /* and how many microseconds they have run */
} sum;

/* The text of /proc/TASK/NAME, until the next call; of a task that is no more, none. A status has
 * some 1500 bytes. */
static const char *read_proc(int task, const char *name)
{
    static char text[4096];
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/%s", task, name);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return "";
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    return text;
}

/* Adds up once. Returns false if a worker is not asleep (S) in its wait.
 *
 * voluntary_ctxt_switches counts how often it has gone to sleep, of its own will. A worker that sleeps
 * now as it did before has been woken just as often. schedstat begins with nanoseconds on a processor. */
static bool look(void)
{
    memset(&sum, 0, sizeof(sum));
    for (int i = 0; i < workers; i++) {
        const struct row *row = &shared->rows[i];
        const char *status = row->waiting ? read_proc(row->task, "status") : "";
        const char *switches = strstr(status, "\nvoluntary_ctxt_switches:");
        if (switches == NULL || strstr(status, "\nState:\tS") == NULL)
            return false;
        sum.woken += (unsigned)atol(strchr(switches, ':') + 1) - row->clock;
        sum.ran += atof(read_proc(row->task, "schedstat")) / 1000;
        sum.returned += row->returned;
        sum.accepted += row->accepted;
        sum.nothing += row->nothing;
    }
    return true;
}

/* Waits until so many connections are accepted and all is quiet. One look is not enough: a worker
 * may wake another at which we have looked already. So the sum must not have moved over three. */
static void settle(unsigned made)
{
    unsigned start = now(), limit = (PATIENCE * 1000 + (unsigned)delay) * 1000;

    for (int calm = 0; calm < 3;) {
        unsigned woken = sum.woken;
        if (!look() || sum.accepted < made)
            calm = 0;
        else
            calm = sum.woken == woken ? calm + 1 : 1;
        if (now() - start > limit)
            give_up("the workers do not come to rest");
        if (!pause_for(2))
            give_up("interrupted");
    }
}

/* ---- The table ------------------------------------------------------------------------------- */

static void print_head(void)
{
    printf("%-14s connections returned nothing  woken  each  %-25s     cpu   delay  got\n", "way",
           "woken for one connection");
}

static int descending(const void *a, const void *b)
{
    unsigned left = *(const unsigned *)a, right = *(const unsigned *)b;

    return (left < right) - (left > right);
}

/* Ends a row: how many connections each worker got, the busiest first. */
static void print_got(void)
{
    unsigned got[MOST_WORKERS + 1] = {0}; /* the last stays 0 and ends the others */
    int busy = 0;

    for (int i = 0; i < workers; i++)
        got[i] = shared->rows[i].accepted;
    qsort(got, (size_t)workers, sizeof(got[0]), descending);
    while (got[busy] > 0)
        busy++;
    if (busy == 1)
        printf("%u: all to one", got[0]);
    else if (busy > 1 && got[0] == got[busy - 1])
        printf("%d x %u", busy, got[0]);
    else
        for (int i = 0; i < busy; i++)
            printf(i == 0 ? "%u" : " %u", got[i]);
    printf("\n");
}

static void print_row(unsigned woken, double ran, unsigned delayed)
{
    double made = sum.accepted == 0 ? 1 : sum.accepted;
    int bar = woken == 0 ? 0 : 1 + (int)(24.5 * woken / made / workers); /* 25: all are woken */

    printf("%-14s %11u %8u %7u %6u %5.1f  %-25.*s %7.1f ", way->name, sum.accepted, sum.returned,
           sum.nothing, woken, woken / made, bar, "#########################", ran / made);
    if (port == -1)
        printf("%7u  ", delayed);
    else
        printf("%7s  ", "-");
    print_got();
}

static void print_legend(void)
{
    printf("\n"
           "returned  to the program: the wait came back with a newcomer (pools: with a job)\n"
           "nothing   ... which another worker had taken\n"
           "woken     by the kernel; those that did not return found nothing and slept on, inside\n"
           "          the call (the ends of naps and time-outs are not counted)\n"
           "cpu       microseconds that the workers ran for one connection, all together\n"
           "delay     microseconds from connect to accept, the median\n"
           "got       how many connections each worker got, the busiest first\n");
}

/* ---- One way after the other ----------------------------------------------------------------- */

/* Returns the median of the microseconds between connect and accept. */
static unsigned connect_all(void)
{
    static unsigned delays[MOST_CONNECTIONS];

    for (int i = 0; i < connections; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        unsigned start = now();
        if (fd == -1 || connect(fd, (struct sockaddr *)&address, sizeof(address)) == -1)
            die("connect to 127.0.0.1:%d", ntohs(address.sin_port));
        settle((unsigned)i + 1);
        delays[i] = shared->accepted_at - start;
        close(fd);
    }
    qsort(delays, (size_t)connections, sizeof(delays[0]), descending);
    return delays[connections / 2];
}

/* With -p you connect, and we do not know when. */
static void wait_for_ctrl_c(void)
{
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    while (pause_for(500))
        ;
    settle(0);
    print_head();
}

/* Between two connections all workers sleep, so what we count from the first to the last is the
 * connections' alone. */
static void try_it(void)
{
    start_workers();
    settle(0);
    unsigned woken = sum.woken, delayed = 0;
    double ran = sum.ran;
    if (port == -1)
        delayed = connect_all();
    else
        wait_for_ctrl_c();
    print_row(sum.woken - woken, sum.ran - ran, delayed);
    end_workers();
}

/* ---- Options --------------------------------------------------------------------------------- */

static _Noreturn void usage(void)
{
    fprintf(stderr,
            "usage: herd [-m WAY] [-w WORKERS] [-c CONNECTIONS] [-d MILLISECONDS] [-p PORT]\n");
    exit(2);
}

static int parse_number(const char *what, const char *text, long least, long most)
{
    char *end;
    long number = strtol(text, &end, 10);

    if (text[0] >= '0' && text[0] <= '9' && *end == '\0' && number >= least && number <= most)
        return (int)number;
    fprintf(stderr, "herd: %s %s: not a number from %ld to %ld\n", what, text, least, most);
    usage();
}

static const struct way *parse_way(const char *name)
{
    bool help = strcmp(name, "help") == 0;

    for (int i = 0; i < WAYS; i++)
        if (help)
            printf("%-15s %s\n", ways[i].name, ways[i].about);
        else if (strcmp(name, ways[i].name) == 0)
            return &ways[i];
    if (help)
        exit(EXIT_SUCCESS);
    fprintf(stderr, "herd: way %s: no such way (-m help lists them)\n", name);
    usage();
}

static void parse_options(int argc, char *argv[])
{
    int option;

    while ((option = getopt(argc, argv, "m:w:c:d:p:")) != -1)
        if (option == 'm')
            way = parse_way(optarg);
        else if (option == 'w')
            workers = parse_number("workers", optarg, 1, MOST_WORKERS);
        else if (option == 'c')
            connections = parse_number("connections", optarg, 1, MOST_CONNECTIONS);
        else if (option == 'd')
            delay = parse_number("delay", optarg, 0, 60000);
        else if (option == 'p')
            port = parse_number("port", optarg, 0, 65535);
        else
            usage();
    if (port != -1 && way == NULL)
        fprintf(stderr, "herd: -p needs -m: by hand you can try one way at a time\n");
    if (optind < argc || (port != -1 && way == NULL))
        usage();
    if (connections == 0) /* with a nap so few that it takes seconds, not minutes */
        connections = delay < 20 ? 100 : delay < 2000 ? 2000 / delay : 1;
}

int main(int argc, char *argv[])
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    parse_options(argc, argv);
    block_signals();
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        die("mmap");

    if (port == -1) {
        printf("workers: %d, delay: %d ms, one connection after the other\n\n", workers, delay);
        print_head();
    }
    if (way != NULL)
        try_it();
    else
        for (way = ways; way < ways + WAYS; way++)
            try_it();
    print_legend();
    return EXIT_SUCCESS;
}
