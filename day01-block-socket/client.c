/* The client for every day: sends what it reads from stdin and prints what comes back.
 *
 * It sends and receives at the same time, in a thread each. One loop that first sends all and then
 * receives would fail with a big file: the answers fill the buffers on the way, the server can send
 * no more and stops reading, and both sides sleep in send for ever.
 *
 * Build:  cc -std=gnu11 -pthread -o client client.c ../common/die.c
 * Use:    ./client [PORT [HOST]]                echo hi | ./client; ./client <big >copy
 * Exits with 0 when as many bytes came back as were sent, with 1 if not.
 */
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../common/die.h"

enum { BUFFER_SIZE = 64 * 1024 }; /* bytes */

static int server;
static atomic_size_t taken;  /* bytes from stdin, counted before the server can have them */
static atomic_bool sent_all; /* stdin is at its end, and we have told the server */

static void usage(const char *what, const char *value, const char *why)
{
    fprintf(stderr, "client: %s %s: %s\nusage: client [PORT [HOST]]\n", what, value, why);
    exit(2);
}

/* A host may have several addresses, and the server need not listen on all of them. */
static void connect_to_server(const char *port, const char *host)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *at;
    bool digits = port[0] != '\0' && port[strspn(port, "0123456789")] == '\0';

    if (!digits || strtoul(port, NULL, 10) > 65535)
        usage("port", port, "not a number from 0 to 65535");
    int error = getaddrinfo(host, port, &hints, &found);
    if (error != 0)
        usage("host", host, gai_strerror(error));
    for (at = found; at != NULL; at = at->ai_next) {
        server = socket(at->ai_family, SOCK_STREAM, 0);
        if (server != -1 && connect(server, at->ai_addr, at->ai_addrlen) == 0)
            break;
        if (at->ai_next == NULL)
            die("connect to %s port %s", host, port);
        close(server);
    }
    freeaddrinfo(found);
}

/* send may take less than it is given, after Ctrl-Z for one. MSG_NOSIGNAL: a server that is gone is
 * an error, not SIGPIPE. (From stdout SIGPIPE is welcome: it ends client | head, as any filter.) */
static bool send_all(const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(server, bytes, length, MSG_NOSIGNAL);
        if (n == -1)
            return false;
        bytes += n;
        length -= (size_t)n;
    }
    return true;
}

/* From stdin to the server. If that is gone, main learns it from recv. shutdown says that no more
 * will come, and leaves the other direction as it is. */
static void *send_stdin(void *unused)
{
    static char buffer[BUFFER_SIZE];
    ssize_t n;

    while ((n = read(STDIN_FILENO, buffer, sizeof(buffer))) > 0) {
        taken += (size_t)n;
        if (!send_all(buffer, (size_t)n))
            return unused;
    }
    if (n == -1)
        die("read stdin");
    sent_all = true;
    shutdown(server, SHUT_WR);
    return unused;
}

int main(int argc, char *argv[])
{
    static char buffer[BUFFER_SIZE];
    pthread_t sender;
    size_t received = 0;
    ssize_t n;

    if (argc > 3)
        usage("argument", argv[3], "one too many");
    connect_to_server(argc > 1 ? argv[1] : "8888", argc > 2 ? argv[2] : "127.0.0.1");
    errno = pthread_create(&sender, NULL, send_stdin, NULL);
    if (errno != 0)
        die("pthread_create");

    while ((n = recv(server, buffer, sizeof(buffer), 0)) > 0) {
        received += (size_t)n;
        if (fwrite(buffer, 1, (size_t)n, stdout) != (size_t)n || fflush(stdout) != 0)
            die("write stdout");
    }
    if (n == -1)
        die("recv");
    if (sent_all && received == taken)
        return EXIT_SUCCESS;
    fprintf(stderr, "client: the server closed after %zu of %zu bytes\n", received, (size_t)taken);
    return EXIT_FAILURE;
}
