/* Day 4: the same server, as two objects.
 *
 * New today: struct epoll (epoll.h), an instance and its events behind six functions, and struct
 * server (server.h), all that a server knows. Nothing else stands in a variable of a file, so one
 * program can run two servers: two_servers.c does.
 *
 * Not yet: a second core. It is still one process (day 5).
 *
 * Here are the options, and what belongs to the process. Read on in server.h, server.c, epoll.c.
 *
 * Build:  cc -std=gnu11 -o server main.c server.c epoll.c ../common/die.c
 * Use:    ./server [-ev] [PORT [HOST]]          -e: edge-triggered, -v: a line for every wake-up
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "server.h"

static void usage(void)
{
    fprintf(stderr, "usage: server [-ev] [PORT [HOST]]\n");
    exit(2);
}

static void parse_options(struct server *s, int argc, char *argv[])
{
    int option;

    while ((option = getopt(argc, argv, "ev")) != -1)
        if (option == 'e')
            s->edge = EPOLLET;
        else if (option == 'v')
            s->verbose = true;
        else
            usage();

    const char *port = argc > optind ? argv[optind] : "8888";
    const char *host = argc > optind + 1 ? argv[optind + 1] : "127.0.0.1";
    if (argc > optind + 2 || !server_look_up(s, port, host))
        usage();
}

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

int main(int argc, char *argv[])
{
    static struct server server;

    setvbuf(stdout, NULL, _IOLBF, 0); /* line by line, even into a pipe or a file */
    parse_options(&server, argc, argv);
    fill_standard_descriptors();
    limit_descriptors();
    signal(SIGPIPE, SIG_IGN); /* sending to a client that is gone is an error, not our end */
    server_bind(&server);
    server_start(&server, server_signals());
    printf("listening on %s\n", name_of(&server.address).text);
    while (!server.stop)
        server_turn(&server);
    server_finish(&server);
    print_totals(&server.totals);
    return EXIT_SUCCESS;
}
