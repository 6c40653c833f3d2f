#define _GNU_SOURCE

#include "scoreboard.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../common/die.h"
#include "connection.h"

_Thread_local struct row *row;

static struct row *rows;
static int count;
static bool has_loop;

void scoreboard_open(int wanted, bool loop)
{
    count = wanted;
    has_loop = loop;
    rows = mmap(NULL, (size_t)count * sizeof(*rows), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (rows == MAP_FAILED)
        die("mmap");
}

/* ---- The worker's side ----------------------------------------------------------------------- */

static uint64_t own_switches(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return (uint64_t)usage.ru_nvcsw;
}

/* The kernel counts when a worker goes to sleep. It is about to do so for the first time, and that
 * is no wake-up yet: hence the 1. */
void scoreboard_join(int number)
{
    row = &rows[number];
    row->pid = getpid();
    row->tid = gettid();
    row->asleep = own_switches() + 1;
    clients = row->clients;
    received = row->received;
    echoed = row->echoed;
}

void scoreboard_returned(uint64_t accepted, bool nothing)
{
    row->returned++;
    row->accepted += accepted;
    row->nothing += nothing;
}

/* Nobody waits for these, so they need no order among each other. */
void scoreboard_publish(void)
{
    atomic_store_explicit(&row->clients, clients, memory_order_relaxed);
    atomic_store_explicit(&row->received, received, memory_order_relaxed);
    atomic_store_explicit(&row->echoed, echoed, memory_order_relaxed);
}

static void keep_switches(struct row *r, uint64_t switches)
{
    if (switches > r->asleep)
        r->woken += switches - r->asleep;
    r->tid = 0;
}

void scoreboard_leave(void)
{
    scoreboard_publish();
    keep_switches(row, own_switches());
}

/* ---- The parent's side ----------------------------------------------------------------------- */

/* How often the worker of a row gave up the processor to sleep, as the kernel has it; 0 if there is
 * no such worker any more. */
static uint64_t switches_of(const struct row *r)
{
    char path[64], line[128];
    uint64_t switches = 0;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/status", r->pid, r->tid);
    FILE *status = fopen(path, "r");
    if (status == NULL)
        return 0;
    while (fgets(line, sizeof(line), status) != NULL)
        if (sscanf(line, "voluntary_ctxt_switches: %" SCNu64, &switches) == 1)
            break;
    fclose(status);
    return switches;
}

void scoreboard_bury(pid_t pid)
{
    for (int i = 0; i < count; i++)
        if (rows[i].pid == pid && rows[i].tid != 0) {
            rows[i].asleep++; /* its last switch, into death, was none to sleep */
            keep_switches(&rows[i], switches_of(&rows[i]));
        }
}

static uint64_t woken(const struct row *r)
{
    uint64_t switches = r->tid == 0 ? 0 : switches_of(r);

    return r->woken + (switches > r->asleep ? switches - r->asleep : 0);
}

void scoreboard_print_totals(void)
{
    uint64_t all_clients = 0, all_received = 0, all_echoed = 0;

    for (int i = 0; i < count; i++) {
        all_clients += rows[i].clients;
        all_received += rows[i].received;
        all_echoed += rows[i].echoed;
    }
    printf("served %" PRIu64 " clients: %" PRIu64 " bytes echoed, %" PRIu64 " undelivered\n",
           all_clients, all_echoed, all_received - all_echoed);
}

static void print_row(const char *name, const struct row *r, uint64_t wakeups)
{
    printf("%-6s %8d %9" PRIu64 " %9" PRIu64 " %9" PRIu64 " %9" PRIu64 " %9" PRIu64
           " %7.2f %12" PRIu64 "\n",
           name, r->pid, r->returned, r->accepted, r->nothing, r->timed_out, wakeups,
           r->accepted > 0 ? (double)wakeups / (double)r->accepted : 0.0, r->echoed);
}

void scoreboard_print(void)
{
    struct row sum = {.pid = getpid()};
    uint64_t sum_woken = 0;
    char name[16];

    printf("worker      pid  returned  accepted   nothing timed-out     woken    each"
           "       echoed\n");
    for (int i = 0; i < count; i++) {
        struct row *r = &rows[i];
        uint64_t wakeups = woken(r);
        bool loop = has_loop && i == count - 1;
        snprintf(name, sizeof(name), loop ? "loop" : "%d", i + 1);
        print_row(name, r, wakeups);
        if (loop)
            continue;
        sum.returned += r->returned;
        sum.accepted += r->accepted;
        sum.nothing += r->nothing;
        sum.timed_out += r->timed_out;
        sum.echoed += r->echoed;
        sum_woken += wakeups;
    }
    print_row("sum", &sum, sum_woken);
}
