/* Level or edge: the same happens to two sockets, and after each line two epoll instances are asked
 * for it. One is level-triggered, the other edge-triggered. 1: epoll_wait reports the socket.
 *
 * Build:  cc -std=gnu11 -o levels levels.c ../common/die.c
 * Use:    ./levels
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../common/die.h"

/* A pair of sockets that are connected to each other, and an instance that watches the first. */
struct watched {
    int socket, peer, epoll;
    struct epoll_event asked;
};

static struct watched level, edge;

static void open_watched(struct watched *w, uint32_t mask)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == -1)
        die("socketpair");
    *w = (struct watched){pair[0], pair[1], epoll_create1(0), {.events = mask}};
    if (w->epoll == -1 || epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->socket, &w->asked) == -1)
        die("epoll");
}

/* The peers say something. */
static void say(const char *bytes, size_t length)
{
    if (send(level.peer, bytes, length, 0) == -1 || send(edge.peer, bytes, length, 0) == -1)
        die("send");
}

/* We read so many bytes. */
static void take(size_t length)
{
    char bytes[100];

    if (recv(level.socket, bytes, length, 0) == -1 || recv(edge.socket, bytes, length, 0) == -1)
        die("recv");
}

static void ask_anew(struct watched *w)
{
    if (epoll_ctl(w->epoll, EPOLL_CTL_MOD, w->socket, &w->asked) == -1)
        die("epoll_ctl");
}

static int reported(const struct watched *w)
{
    struct epoll_event event;

    return epoll_wait(w->epoll, &event, 1, 0); /* does not sleep: 0 means that there is nothing */
}

static void report(const char *what)
{
    printf("%-42s %5d %5d\n", what, reported(&level), reported(&edge));
}

int main(void)
{
    open_watched(&level, EPOLLIN | EPOLLRDHUP);
    open_watched(&edge, EPOLLIN | EPOLLRDHUP | EPOLLET);

    say("ab", 2);
    report("two bytes come");
    report("nothing happens");
    take(1);
    report("one of them is read");
    say("c", 1);
    report("a third byte comes");
    ask_anew(&level);
    ask_anew(&edge);
    report("EPOLL_CTL_MOD with the same mask");
    take(2);
    report("the other two are read");
    say("d", 1);
    take(1);
    report("a byte comes and is read before we ask");
    close(level.peer);
    close(edge.peer);
    report("the peer closes");
    take(1);
    report("recv gives 0");
    return EXIT_SUCCESS;
}
