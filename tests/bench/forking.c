/* For make switches: a process for each client, which serves it to the end with calls that block. It
 * is there to be measured, not to be learned from. */
#define _GNU_SOURCE

#include <fcntl.h>
#include <sys/prctl.h>

#include "listener.h"

/* PR_SET_PDEATHSIG: it ends with its parent. */
static void serve(int fd)
{
    static char buffer[BUFFER_SIZE];
    ssize_t n;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0)
        for (ssize_t sent = 0, m; sent < n; sent += m)
            if ((m = send(fd, buffer + sent, (size_t)(n - sent), 0)) == -1)
                exit(1);
    exit(0);
}

int main(int argc, char *argv[])
{
    int fd, listener = open_listener(argv);

    (void)argc;
    signal(SIGCHLD, SIG_IGN); /* the kernel reaps its children */
    if (fcntl(listener, F_SETFL, 0) == -1)
        err(1, "fcntl"); /* not O_NONBLOCK */
    while ((fd = accept(listener, NULL, NULL)) != -1) {
        pid_t pid = fork();
        if (pid == -1)
            err(1, "fork");
        if (pid == 0)
            serve(fd);
        close(fd);
    }
    err(1, "accept");
}
