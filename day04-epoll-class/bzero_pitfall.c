/* The bzero pitfall: which of bzero(events, …) and bzero(&events, …) clears the events?
 *
 * As long as events is an array, as on day 3, both do: an array and its address are the same place.
 * That is how the habit starts. When it becomes a pointer, as in struct epoll, bzero(&events, …)
 * clears the pointer itself and whatever follows it, and sizeof(events) is 8.
 *
 * Each call runs in a child of its own, which then waits for an event as a server would and exits
 * with 0 if it got one. Here the pointers go through a void *, so no compiler can warn; NOTES.md
 * shows where compilers do, and where they do not.
 *
 * Build:  cc -std=gnu11 -o bzero_pitfall bzero_pitfall.c ../common/die.c
 * Use:    ./bzero_pitfall
 */
#define _GNU_SOURCE

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/die.h"

enum { MAX = 64, DIRT = 0xff };

/* A pointer and its neighbour. There is room enough for the wrong call to do its damage here, where
 * we can look at it. */
struct object {
    struct epoll_event *events;
    unsigned char neighbour[2 * MAX * sizeof(struct epoll_event)];
};

/* The calls to compare: where to start, how many bytes. */
struct call {
    const char *text;
    void *start;
    size_t length;
};

static size_t zeros(const void *start, size_t length)
{
    const unsigned char *bytes = start;
    size_t count = 0;

    for (size_t i = 0; i < length; i++)
        count += bytes[i] == 0;
    return count;
}

/* An instance with one event to report: a pipe that can be read from. */
static int instance_with_an_event(void)
{
    struct epoll_event interest = {.events = EPOLLIN};
    int ends[2];
    int instance = epoll_create1(0);

    if (instance == -1 || pipe(ends) == -1)
        die("epoll_create1 or pipe");
    if (epoll_ctl(instance, EPOLL_CTL_ADD, ends[0], &interest) == -1 || write(ends[1], "!", 1) != 1)
        die("epoll_ctl or write");
    return instance;
}

static void wait_for_an_event(struct epoll_event *events)
{
    int ready = epoll_wait(instance_with_an_event(), events, MAX, 0);

    printf("    epoll_wait: %s\n", ready == 1 ? "1 event" : strerror(errno));
    exit(ready == 1 ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* events: where they are, whatever becomes of a pointer to them. object: whose pointer leads there;
 * NULL for an array. */
static void try(const struct call *call, struct epoll_event *events, const struct object *object)
{
    const size_t length = MAX * sizeof(*events);

    bzero(call->start, call->length);
    printf("    %zu of %zu bytes cleared", zeros(events, length), length);
    if (object != NULL)
        printf(", the pointer is %s, %zu bytes of its neighbour are lost",
               object->events == NULL ? "NULL" : "as it was",
               zeros(object->neighbour, sizeof(object->neighbour)));
    printf("\n");
    wait_for_an_event(object != NULL ? object->events : events);
}

/* Runs one call in a child, since it may not survive, and says what became of it. */
static void in_a_child(const struct call *call, struct epoll_event *events,
                       const struct object *object)
{
    int status;

    printf("  %s\n", call->text);
    fflush(stdout);
    pid_t child = fork();
    if (child == -1)
        die("fork");
    if (child == 0)
        try(call, events, object);
    if (waitpid(child, &status, 0) == -1)
        die("waitpid");
    if (WIFSIGNALED(status))
        printf("    the child was killed by signal %d\n", WTERMSIG(status));
    else
        printf("    the child exited with %d\n", WEXITSTATUS(status));
}

int main(void)
{
    static struct epoll_event events[MAX];
    struct object *object = malloc(sizeof(*object));
    struct epoll_event *heap = malloc(sizeof(*heap) * MAX);

    if (object == NULL || heap == NULL)
        die("malloc");
    setvbuf(stdout, NULL, _IOLBF, 0);
    memset(events, DIRT, sizeof(events));
    memset(heap, DIRT, sizeof(*heap) * MAX);
    memset(object, DIRT, sizeof(*object));
    object->events = heap;

    const struct call on_array[] = {
        {"bzero(events, sizeof(*events) * MAX)", events, sizeof(*events) * MAX},
        {"bzero(&events, sizeof(*events) * MAX)", &events, sizeof(*events) * MAX},
        {"bzero(events, sizeof(events))", events, sizeof(events)},
    };
    const struct call on_pointer[] = {
        {"bzero(events, sizeof(*events) * MAX)", object->events, sizeof(*object->events) * MAX},
        {"bzero(&events, sizeof(*events) * MAX)", &object->events, sizeof(*object->events) * MAX},
        {"bzero(events, sizeof(events))", object->events, sizeof(object->events)},
    };

    printf("events is an array:\n");
    for (int i = 0; i < 3; i++)
        in_a_child(&on_array[i], events, NULL);
    printf("events is a pointer to as many on the heap:\n");
    for (int i = 0; i < 3; i++)
        in_a_child(&on_pointer[i], heap, object);
    free(heap);
    free(object);
    return EXIT_SUCCESS;
}
