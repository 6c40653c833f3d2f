/* The client for every day: sends what it reads from stdin and prints what comes back.
 *
 * Two blocking loops at once, a thread each. One loop, which sends everything and only then reads,
 * would fail with a big file: the answers fill the buffers on the way, the server stops reading,
 * and both sides sleep in send for ever.
 *
 * Build:  cc -std=gnu11 -pthread -o client client.c ../common/die.c
 * Use:    ./client [PORT [ADDRESS]]             echo hi | ./client; ./client <big >copy
 * Exits with 0 when every byte that was sent came back, with 1 if not.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../common/die.h"

enum { BUFFER_SIZE = 64 * 1024 }; /* bytes */

static struct sockaddr_in address; /* the server's */
static int server;

static _Atomic uint64_t taken; /* bytes from stdin; counted before the server can have them */
static atomic_bool sent_all;   /* stdin is at its end, and we said so to the server */

static void usage(void)
{
    fprintf(stderr, "usage: client [PORT [ADDRESS]]\n");
    exit(2);
}

static void parse_arguments(int argc, char *argv[])
{
    const char *port = argc > 1 ? argv[1] : "8888";
    const char *ip = argc > 2 ? argv[2] : "127.0.0.1";
    char *end;
    unsigned long number = strtoul(port, &end, 10);

    if (argc > 3)
        usage();
    if (port[0] < '0' || port[0] > '9' || *end != '\0' || number > 65535) {
        fprintf(stderr, "client: port %s: not a number from 0 to 65535\n", port);
        usage();
    }
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)number);
    if (inet_pton(AF_INET, ip, &address.sin_addr) != 1) {
        fprintf(stderr, "client: address %s: not an IPv4 address\n", ip);
        usage();
    }
}

static void connect_to_server(void)
{
    server = socket(AF_INET, SOCK_STREAM, 0);
    if (server == -1)
        die("socket");
    if (connect(server, (struct sockaddr *)&address, sizeof(address)) == -1)
        die("connect %s:%d", inet_ntoa(address.sin_addr), ntohs(address.sin_port));
}

/* MSG_NOSIGNAL: a server that is gone shall give an error and not a SIGPIPE. For stdout SIGPIPE is
 * welcome: in client | head it ends us, like any filter. Returns false when the server is gone; the
 * other thread's recv sees that too, and main says so. */
static bool send_all(const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(server, bytes, length, MSG_NOSIGNAL);
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1)
            return false;
        bytes += n;
        length -= (size_t)n;
    }
    return true;
}

/* From stdin to the server. shutdown tells it that no more will come, but we can still read. */
static void *send_stdin(void *unused)
{
    static char buffer[BUFFER_SIZE];
    ssize_t n;

    while ((n = read(STDIN_FILENO, buffer, sizeof(buffer))) != 0) {
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1)
            die("read stdin");
        taken += (uint64_t)n;
        if (!send_all(buffer, (size_t)n))
            return unused;
    }
    sent_all = true;
    shutdown(server, SHUT_WR);
    return unused;
}

static void write_all(const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(STDOUT_FILENO, bytes, length);
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1)
            die("write stdout");
        bytes += n;
        length -= (size_t)n;
    }
}

/* From the server to stdout, until it closes. Returns how many bytes that were. */
static uint64_t print_answers(void)
{
    static char buffer[BUFFER_SIZE];
    uint64_t received = 0;
    ssize_t n;

    while ((n = recv(server, buffer, sizeof(buffer), 0)) != 0) {
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1)
            die("recv");
        write_all(buffer, (size_t)n);
        received += (uint64_t)n;
    }
    return received;
}

int main(int argc, char *argv[])
{
    pthread_t sender;

    parse_arguments(argc, argv);
    connect_to_server();
    errno = pthread_create(&sender, NULL, send_stdin, NULL);
    if (errno != 0)
        die("pthread_create");
    pthread_detach(sender); /* nobody waits for it: it may sleep in read when the server closes */

    uint64_t received = print_answers();
    if (!sent_all || received != taken) {
        fprintf(stderr, "client: the server closed after %" PRIu64 " of %" PRIu64 " bytes\n",
                received, taken);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
