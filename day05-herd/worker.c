/* A worker that serves many clients: day 4's loop, several times at once.
 *
 * The workers share a listener, and when a client comes it is ready for all of them. Whom the kernel
 * wakes depends on how the listener was put into their interest sets: see start_accepting and the
 * mask in the table of modes.
 */
#define _GNU_SOURCE

#include "worker.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../common/die.h"
#include "connection.h"
#include "pool.h"
#include "scoreboard.h"

enum {
    EVENTS = 256,     /* that one epoll_sleep may report; the others follow in the next */
    LOCK_DELAY = 500, /* milliseconds until a worker asks again for the accept mutex */
};

volatile sig_atomic_t stop;
sigset_t while_asleep;

/* ---- Signals --------------------------------------------------------------------------------- */

static void on_signal(int signal_number)
{
    (void)signal_number;
    stop = 1;
}

/* The parent has blocked all of its signals before the fork. SIGTERM alone is let in again, while
 * we sleep. Ctrl-C goes to all processes of the terminal, but it is the parent who acts on it, and
 * SIGUSR1 is only its affair: both stay blocked here. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    if (sigaction(SIGTERM, &action, NULL) == -1)
        die("sigaction");
    sigprocmask(SIG_BLOCK, NULL, &while_asleep);
    sigdelset(&while_asleep, SIGTERM);
}

/* epoll_sleep lets signals in only when it sleeps. Busy, it finds somebody ready each time, and we
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

void nap(void)
{
    struct timespec time = {.tv_sec = delay / 1000, .tv_nsec = delay % 1000 * 1000000L};

    if (delay > 0)
        ppoll(NULL, 0, &time, &while_asleep);
}

/* ---- The accept mutex ------------------------------------------------------------------------ */

static pthread_mutex_t *accept_mutex;
static bool holding; /* it is ours at the moment */

/* Robust: if a worker dies with it, the next one is told so (EOWNERDEAD) instead of waiting for
 * ever. What the lock guards is a kernel object, which cannot be half done. */
void open_accept_mutex(void)
{
    pthread_mutexattr_t attributes;

    accept_mutex = mmap(NULL, sizeof(*accept_mutex), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (accept_mutex == MAP_FAILED)
        die("mmap");
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(accept_mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static void end_turn(void)
{
    if (holding)
        pthread_mutex_unlock(accept_mutex);
    holding = false;
}

/* Before each sleep: who gets the lock waits for newcomers too, the others for their own clients,
 * and ask again when they wake up. Who is out of descriptors leaves the lock to the others. */
static void take_turns(void)
{
    int error = shortage ? EBUSY : pthread_mutex_trylock(accept_mutex);

    if (error == EOWNERDEAD)
        error = pthread_mutex_consistent(accept_mutex);
    holding = error == 0;
    if (!holding)
        epoll_forget(&epoll, listener);
    else if (start_accepting() == -1)
        end_turn(); /* no memory in the kernel: somebody else may have more luck */
}

/* ---- The listener ---------------------------------------------------------------------------- */

static struct connection nudge = {.fd = -1}; /* no client: an eventfd that all workers share */

void open_nudge(void)
{
    nudge.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (nudge.fd == -1)
        die("eventfd");
}

/* Edge-triggered, and without EPOLLEXCLUSIVE: each write wakes all, and nobody has to read. */
static int await_nudge(void)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = &nudge};

    return epoll_ctl(epoll.fd, EPOLL_CTL_ADD, nudge.fd, &event);
}

/* Not by epoll_want_read: EPOLLEXCLUSIVE is for EPOLL_CTL_ADD alone, and EINVAL beside EPOLLRDHUP. */
int start_accepting(void)
{
    struct epoll_event event = {.events = mode->mask, .data.ptr = NULL};

    if (mode->accept_mutex && !holding) {
        tried_at = 0; /* without the lock not in our set; but serve_many looks again at once */
        return 0;
    }
    if (epoll_ctl(epoll.fd, EPOLL_CTL_ADD, listener, &event) == 0 || errno == EEXIST)
        return 0;
    return -1;
}

/* Out of descriptors we leave the newcomer to the others. But with EPOLLEXCLUSIVE the kernel has
 * told nobody but us, so we have to pass it on. */
void stop_accepting(void)
{
    epoll_forget(&epoll, listener);
    if (shortage)
        eventfd_write(nudge.fd, 1);
}

/* Perhaps the shortage was the system's, and is over. We ask accept, and not epoll as on day 4: with
 * EPOLLEXCLUSIVE the next newcomer might wake us and nobody else, and if we could not take it, it
 * would wait though the others have room. Who is out of descriptors leaves the queue. */
static void look_again(void)
{
    accept_clients();
    if (!shortage)
        start_accepting();
}

/* ---- The loop -------------------------------------------------------------------------------- */

/* What an event tells. There are four reasons to wake up: a new connection, data, a close and an
 * error. (And a fifth that is ours: a client whose bytes we hold has room again.) */
static const char *reason(const struct epoll_event *event)
{
    if (event->data.ptr == NULL)
        return "new connection";
    if (event->events & (EPOLLERR | EPOLLHUP))
        return "error";
    if (event->events & EPOLLRDHUP)
        return "close";
    return event->events & EPOLLIN ? "data" : "room";
}

static void print_ready(int ready)
{
    printf("worker %d woke up: %d ready", getpid(), ready);
    for (int i = 0; i < ready; i++) {
        const struct connection *c = epoll.events[i].data.ptr;
        uint32_t mask = epoll.events[i].events;
        printf(", fd %d%s%s%s%s%s (%s)", c ? c->fd : listener, mask & EPOLLIN ? " IN" : "",
               mask & EPOLLOUT ? " OUT" : "", mask & EPOLLRDHUP ? " RDHUP" : "",
               mask & EPOLLERR ? " ERR" : "", mask & EPOLLHUP ? " HUP" : "",
               reason(&epoll.events[i]));
    }
    printf("\n");
}

/* We were told of a newcomer. So were others, perhaps, and one of them may have been faster. */
static void welcome(void)
{
    uint64_t before = clients;

    nap();
    accept_clients();
    scoreboard_returned(clients - before, clients == before && !shortage);
}

/* An error comes together with EPOLLIN, and bytes that were sent before it may still be there. So
 * EPOLLERR and EPOLLHUP are not tested first, nor at all: recv gives the bytes, and then 0 for a
 * close or -1 for an error. */
void handle(const struct epoll_event *event)
{
    if (event->data.ptr == NULL || (event->data.ptr == &nudge && !shortage))
        welcome();
    else if (event->data.ptr == &nudge)
        return; /* we cannot take it either */
    else if (event->events & EPOLLOUT)
        send_rest(event->data.ptr);
    else
        echo(event->data.ptr);
}

static int patience(void)
{
    if (mode->accept_mutex && !holding)
        return LOCK_DELAY;
    return shortage ? 1000 : -1;
}

/* Sleeps until something is ready, and hands each ready descriptor to its owner. */
static void wait_and_serve(void)
{
    int ready = epoll_sleep(&epoll, patience(), &while_asleep);

    if (ready == -1)
        die("epoll_sleep");
    if (ready == 0 && !stop)
        row->timed_out++;
    if (verbose)
        print_ready(ready);

    if (mode->wake != NULL)
        ready = share_out(epoll.events, ready); /* the clients go to the threads */
    for (int i = 0; i < ready; i++)
        handle(&epoll.events[i]);
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
    epoll_close(&epoll);
}

void serve_many(void)
{
    if (epoll_open(&epoll, EVENTS, false) == -1)
        die("epoll_open");
    if (start_accepting() == -1 || (mode->wake == NULL && await_nudge() == -1))
        die("epoll_ctl");
    while (!stop) {
        if (mode->accept_mutex)
            take_turns();
        wait_and_serve();
        if (shortage && time(NULL) != tried_at)
            look_again();
        let_signals_in();
        end_turn();
        scoreboard_publish();
    }
    finish();
}

void work(int number)
{
    catch_signals();
    scoreboard_join(number);
    mode->serve();
    scoreboard_publish();
}
