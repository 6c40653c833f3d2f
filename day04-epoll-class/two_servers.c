/* Two servers in one program, in a thread each: the proof that struct server is all that there is.
 *
 * Build:  cc -std=gnu11 -pthread -o two_servers two_servers.c server.c epoll.c ../common/die.c
 * Use:    ./two_servers [PORT [PORT]]           Ctrl-C ends both.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "../common/die.h"
#include "server.h"

static void *run(void *argument)
{
    struct server *s = argument;

    while (!s->stop)
        server_turn(s);
    server_finish(s);
    return NULL;
}

int main(int argc, char *argv[])
{
    static struct server servers[2];
    pthread_t threads[2];
    int signals = server_signals(); /* before the threads, which inherit what we block */

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 2; i++) {
        if (!server_look_up(&servers[i], argc > i + 1 ? argv[i + 1] : "0", "127.0.0.1"))
            exit(2);
        server_bind(&servers[i]);
        server_start(&servers[i], signals); /* both wait for the same signal */
        printf("listening on %s\n", name_of(&servers[i].address).text);
    }
    for (int i = 0; i < 2; i++)
        if ((errno = pthread_create(&threads[i], NULL, run, &servers[i])) != 0)
            die("pthread_create");
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        print_totals(&servers[i].totals);
    }
    return EXIT_SUCCESS;
}
