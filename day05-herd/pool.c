/* A pool: one loop finds out which clients are ready, threads serve them.
 *
 * The threads wait on a condition variable, and this is a herd without a kernel object in it: the
 * loop wakes one of them for a job (signal) or all of them (broadcast).
 *
 * The loop and the threads take turns. While there are jobs, the loop waits until they are done; it
 * asks epoll and accepts newcomers only when all threads are idle. So no client is reported twice
 * and given to two threads; no number that a thread has just closed belongs to a newcomer while the
 * thread still holds its slot; and day 4's code needs no lock. The threads work side by side.
 */
#define _GNU_SOURCE

#include "pool.h"

#include <errno.h>
#include <stdlib.h>

#include "../common/die.h"
#include "connection.h"
#include "scoreboard.h"
#include "worker.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the four below */
static const struct epoll_event *jobs;                   /* where the present ones begin */
static int posted, taken, done;                          /* how many of them are */
static bool closed;                                      /* there will be no more */

static pthread_cond_t job_posted = PTHREAD_COND_INITIALIZER;
static pthread_cond_t all_done = PTHREAD_COND_INITIALIZER;

/* Waits for a job; NULL: there will be none. "while", not "if": with broadcast, and now and then
 * without, a thread wakes up and the job is gone. Called with the lock. */
static const struct epoll_event *next_job(void)
{
    while (taken == posted && !closed) {
        pthread_cond_wait(&job_posted, &lock);
        if (!closed)
            scoreboard_returned(0, taken == posted);
    }
    return closed ? NULL : &jobs[taken++];
}

static void *work_in_pool(void *number)
{
    const struct epoll_event *job;

    scoreboard_join((int)(intptr_t)number);
    pthread_mutex_lock(&lock);
    while ((job = next_job()) != NULL) {
        pthread_mutex_unlock(&lock);
        handle(job);
        row->accepted++;
        scoreboard_publish();
        pthread_mutex_lock(&lock);
        if (++done == posted)
            pthread_cond_signal(&all_done);
    }
    pthread_mutex_unlock(&lock);
    scoreboard_leave();
    return NULL;
}

/* The wake-up comes after the unlock: a thread that woke up to a lock in our hands would have to
 * sleep once more. */
static void post(void)
{
    pthread_mutex_lock(&lock);
    posted++;
    pthread_mutex_unlock(&lock);
    mode->wake(&job_posted);
}

/* Moves the listener's event, if there is one, to the head. Returns how many there are: 0 or 1. */
static int listener_first(struct epoll_event *events, int ready)
{
    for (int i = 0; i < ready; i++)
        if (events[i].data.ptr == NULL) {
            struct epoll_event event = events[0];
            events[0] = events[i];
            events[i] = event;
            return 1;
        }
    return 0;
}

int share_out(struct epoll_event *events, int ready)
{
    int ours = listener_first(events, ready);

    pthread_mutex_lock(&lock);
    jobs = events + ours;
    posted = taken = done = 0;
    pthread_mutex_unlock(&lock);

    for (int i = ours; i < ready; i++)
        post();

    pthread_mutex_lock(&lock);
    while (done < posted)
        pthread_cond_wait(&all_done, &lock);
    pthread_mutex_unlock(&lock);
    return ours;
}

static void close_pool(void)
{
    pthread_mutex_lock(&lock);
    closed = true;
    pthread_mutex_unlock(&lock);
    pthread_cond_broadcast(&job_posted);
}

void serve_pool(void)
{
    pthread_t *threads = calloc((size_t)workers, sizeof(*threads));

    if (threads == NULL)
        die("calloc");
    for (int i = 0; i < workers; i++) {
        errno = pthread_create(&threads[i], NULL, work_in_pool, (void *)(intptr_t)i);
        if (errno != 0)
            die("pthread_create");
    }
    serve_many();
    close_pool();
    for (int i = 0; i < workers; i++)
        pthread_join(threads[i], NULL);
    free(threads);
}
