/* A worker that serves one client to the end, and then the next: day 1's way.
 *
 * It is all that can be done when the workers share one epoll instance: a client that was put into
 * it would be reported to any of them, and in there its descriptor is another client's, or none.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../common/die.h"
#include "connection.h"
#include "scoreboard.h"
#include "worker.h"

enum {
    BUFFER_SIZE = 64 * 1024, /* bytes */
};

/* ---- Three waits ----------------------------------------------------------------------------- */

/* accept itself waits. */
bool wait_in_accept(void)
{
    return true;
}

bool wait_in_poll(void)
{
    struct pollfd newcomer = {.fd = listener, .events = POLLIN};

    return ppoll(&newcomer, 1, NULL, &while_asleep) == 1;
}

bool wait_in_epoll(void)
{
    return epoll_sleep(&epoll, -1, &while_asleep) == 1;
}

/* ---- A client, from arrival to leaving ------------------------------------------------------- */

/* accept did not give us a client. Why? */
static void accept_failed(void)
{
    switch (errno) {
    case EAGAIN: /* another worker was faster */
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
    int fd = accept(listener, (struct sockaddr *)&peer, &length);

    if (fd == -1) {
        int error = errno;
        if (error != EINTR)
            scoreboard_returned(0, error == EAGAIN);
        accept_failed();
        return false;
    }
    shortage = false;
    scoreboard_returned(1, false);
    *c = (struct connection){.fd = fd, .ip = peer.sin_addr, .port = peer.sin_port, .open = true};
    clients++;
    printf("%s connected\n", peer_name(c));
    return true;
}

/* send may take less than it is given: whatever is left has to be offered again. */
static bool send_all(struct connection *c, const char *bytes, size_t length)
{
    while (length > 0 && !stop) {
        ssize_t n = send(c->fd, bytes, length, 0);
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1) {
            fail(c, "send");
            return false;
        }
        bytes += n;
        length -= (size_t)n;
        c->echoed += (uint64_t)n;
        echoed += (uint64_t)n;
    }
    return true;
}

/* Reads once and gives back what came. Returns whether it is worth to try again at once. */
static bool echo_all(struct connection *c)
{
    static char buffer[BUFFER_SIZE];
    ssize_t n = recv(c->fd, buffer, sizeof(buffer), 0);

    if (n == -1 && errno == EINTR)
        return true;
    if (n == -1) {
        fail(c, "recv");
        return false;
    }
    if (n == 0) {
        drop(c, "closed by the client");
        return false;
    }
    received += (uint64_t)n;
    return send_all(c, buffer, (size_t)n);
}

/* ---- The loop -------------------------------------------------------------------------------- */

/* Edge-triggered, two newcomers at once may be one edge, and whoever hears of it takes but one of
 * them. So we have the kernel look again (EPOLL_CTL_MOD) as soon as that one is ours. */
static bool take_next(struct connection *c)
{
    struct epoll_event event = {.events = mode->mask, .data.ptr = NULL};

    if (!mode->wait())
        return false;
    if (!mode->blocking)
        nap();
    bool taken = accept_client(c);
    if (mode->mask & EPOLLET)
        epoll_ctl(epoll.fd, EPOLL_CTL_MOD, listener, &event);
    if (verbose)
        printf("worker %d woke up: accept gave %s\n", getpid(), taken ? peer_name(c) : "nobody");
    return taken;
}

/* accept, recv and send cannot let signals in for their sleep alone, so they are let in all the
 * time. One that comes after we looked at stop, but before we sleep, is lost: the parent repeats
 * it until we are gone. */
void serve_single(void)
{
    struct connection c;

    sigprocmask(SIG_SETMASK, &while_asleep, NULL);
    while (!stop) {
        if (!take_next(&c))
            continue;
        while (!stop && echo_all(&c))
            scoreboard_publish();
        if (c.open)
            drop(&c, "server stopped");
        scoreboard_publish();
    }
}
