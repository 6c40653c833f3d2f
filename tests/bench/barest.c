/* The limit: the barest level-triggered loop. It reads once, writes once, and checks nothing, so it
 * loses what a slow reader does not take, and a client that never reads stops it for all others. No
 * correct server can do less for an echo. */
#define _GNU_SOURCE

#include <sys/epoll.h>

#include "listener.h"

enum { EVENTS = 256 };

static char buffer[BUFFER_SIZE];

int main(int argc, char *argv[])
{
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    int epoll = epoll_create1(0), listener = open_listener(argv);

    (void)argc;
    event.data.fd = listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);

        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;

            if (fd == listener) {
                event.data.fd = accept4(listener, NULL, NULL, 0);
                epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
                continue;
            }
            ssize_t n = read(fd, buffer, sizeof(buffer));
            if (n <= 0 || write(fd, buffer, (size_t)n) == -1)
                close(fd);
        }
    }
}
