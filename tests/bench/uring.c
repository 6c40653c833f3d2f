/* An echo server on io_uring. It does not ask which clients are ready, but hands the kernel requests
 * through a ring in shared memory, and finds the results in another; one system call submits all that
 * is new and waits. One request accepts all clients, and one for each client receives all that it
 * sends (both are multishot). For what has come the kernel takes a buffer from a pool, so an idle
 * client has none.
 *
 * What a client does not take at once is copied out of the pool and held, and nothing more is read
 * from that client meanwhile. The kernel may have filled several buffers for it by then, at most all
 * of the pool. It needs Linux 6.1. */
#define _GNU_SOURCE

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "listener.h"

#ifndef IORING_SETUP_DEFER_TASKRUN
#error linux/io_uring.h is older than Linux 6.1
#endif

enum { REQUESTS = 1024, RESULTS = 2 * REQUESTS, BUFFERS = 64 };
enum { NOTHING, ACCEPTED, RECEIVED, SENT }; /* what a result is about */

/* Bytes on their way back, in a buffer of the pool or held. */
struct piece {
    struct piece *next;
    char *bytes;
    size_t length, sent;
};

struct client {
    int fd;
    bool receiving, sending; /* the kernel has such a request */
    bool ended;              /* nothing more will be received */
    struct piece *first, **last;
};

static int ring, listener;
static bool accepting;

static struct io_uring_sqe *requests;
static unsigned *request_tail, to_submit;

static struct io_uring_cqe *results;
static unsigned *result_head, *result_tail;

static struct io_uring_buf_ring *buffers;
static struct piece pool[BUFFERS];

/* ---- The two rings */

static void *map(size_t size, int flags, int fd, off_t offset)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_POPULATE, fd, offset);

    if (memory == MAP_FAILED)
        err(1, "mmap");
    return memory;
}

static void open_ring(void)
{
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    unsigned *order;
    char *rings;

    ring = (int)syscall(SYS_io_uring_setup, REQUESTS, &p);
    if (ring == -1)
        err(1, "io_uring_setup");
    rings = map(p.sq_off.array + REQUESTS * sizeof(*order), MAP_SHARED, ring, IORING_OFF_SQ_RING);
    request_tail = (unsigned *)(rings + p.sq_off.tail);
    result_head = (unsigned *)(rings + p.cq_off.head);
    result_tail = (unsigned *)(rings + p.cq_off.tail);
    results = (struct io_uring_cqe *)(rings + p.cq_off.cqes);
    requests = map(REQUESTS * sizeof(*requests), MAP_SHARED, ring, IORING_OFF_SQES);
    order = (unsigned *)(rings + p.sq_off.array);
    for (unsigned i = 0; i < REQUESTS; i++)
        order[i] = i;
}

/* Submits the new requests, and waits for so many results. */
static void enter(unsigned wait)
{
    long n = syscall(SYS_io_uring_enter, ring, to_submit, wait, IORING_ENTER_GETEVENTS, NULL, 0);

    if (n >= 0)
        to_submit -= (unsigned)n;
    else if (errno != EINTR && errno != EAGAIN && errno != EBUSY)
        err(1, "io_uring_enter");
}

/* A request, which the next enter submits. Its result says what it is about, and which client. */
static struct io_uring_sqe *request(int operation, int fd, struct client *c, unsigned about)
{
    struct io_uring_sqe *r;

    while (to_submit == REQUESTS)
        enter(0);
    r = &requests[*request_tail % REQUESTS];
    memset(r, 0, sizeof(*r));
    r->opcode = (uint8_t)operation;
    r->fd = fd;
    r->user_data = (uintptr_t)c | about; /* malloc's addresses end in zeros */
    __atomic_store_n(request_tail, *request_tail + 1, __ATOMIC_RELEASE);
    to_submit++;
    return r;
}

/* ---- The pool */

static bool is_held(const struct piece *piece)
{
    return piece < pool || piece >= pool + BUFFERS;
}

static void give_back(struct piece *piece)
{
    struct io_uring_buf *buffer = &buffers->bufs[buffers->tail % BUFFERS];

    buffer->addr = (uintptr_t)piece->bytes;
    buffer->len = BUFFER_SIZE;
    buffer->bid = (uint16_t)(piece - pool);
    __atomic_store_n(&buffers->tail, buffers->tail + 1, __ATOMIC_RELEASE);
}

static void open_pool(void)
{
    struct io_uring_buf_reg r = {.ring_entries = BUFFERS};
    char *bytes = map(BUFFERS * BUFFER_SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    buffers = map(BUFFERS * sizeof(struct io_uring_buf), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    r.ring_addr = (uintptr_t)buffers;
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_PBUF_RING, &r, 1) == -1)
        err(1, "io_uring_register");
    for (size_t i = 0; i < BUFFERS; i++) {
        pool[i].bytes = bytes + i * BUFFER_SIZE;
        give_back(&pool[i]);
    }
}

/* ---- Requests */

static void start_accepting(void)
{
    request(IORING_OP_ACCEPT, listener, NULL, ACCEPTED)->ioprio = IORING_ACCEPT_MULTISHOT;
    accepting = true;
}

static void start_receiving(struct client *c)
{
    struct io_uring_sqe *r = request(IORING_OP_RECV, c->fd, c, RECEIVED);

    r->ioprio = IORING_RECV_MULTISHOT;
    r->flags = IOSQE_BUFFER_SELECT;
    c->receiving = true;
}

static void stop_receiving(struct client *c)
{
    request(IORING_OP_ASYNC_CANCEL, -1, NULL, NOTHING)->addr = (uintptr_t)c | RECEIVED;
}

/* One piece at a time, or they might get out of order. What is held waits in the kernel until there
 * is room; a buffer of the pool does not. */
static void start_sending(struct client *c)
{
    struct io_uring_sqe *r = request(IORING_OP_SEND, c->fd, c, SENT);

    r->addr = (uintptr_t)(c->first->bytes + c->first->sent);
    r->len = (unsigned)(c->first->length - c->first->sent);
    r->msg_flags = is_held(c->first) ? 0 : MSG_DONTWAIT;
    c->sending = true;
}

static void drop(struct client *c)
{
    request(IORING_OP_CLOSE, c->fd, NULL, NOTHING);
    free(c);
    if (!accepting)
        start_accepting();
}

/* Does what has to be done next for this client, whatever has happened. */
static void proceed(struct client *c)
{
    if (c->sending)
        return;
    if (c->first != NULL)
        start_sending(c);
    else if (!c->receiving && !c->ended)
        start_receiving(c);
    else if (!c->receiving)
        drop(c);
}

/* ---- The pieces that a client has yet to get */

static void append(struct client *c, struct piece *piece)
{
    piece->next = NULL;
    *c->last = piece;
    c->last = &piece->next;
}

static void remove_first(struct client *c)
{
    struct piece *piece = c->first;

    c->first = piece->next;
    if (c->first == NULL)
        c->last = &c->first;
    if (is_held(piece))
        free(piece);
    else
        give_back(piece);
}

/* Makes receiving end, and all sending fail. */
static void give_up(struct client *c)
{
    shutdown(c->fd, SHUT_RDWR);
    c->ended = true;
}

/* Copies this client's pieces out of the pool. */
static void hold(struct client *c)
{
    struct piece **p;

    for (p = &c->first; *p != NULL; p = &(*p)->next) {
        struct piece *lent = *p, *held;

        if (is_held(lent))
            continue;
        held = malloc(sizeof(*held) + lent->length - lent->sent);
        if (held == NULL) {
            give_up(c);
            return;
        }
        *held = (struct piece){lent->next, (char *)(held + 1), lent->length - lent->sent, 0};
        memcpy(held->bytes, lent->bytes + lent->sent, held->length);
        *p = held;
        if (held->next == NULL)
            c->last = &held->next;
        give_back(lent);
    }
}

/* ---- Results: what the system call would return, or -errno */

static void on_accepted(int fd, unsigned flags)
{
    struct client *c = fd >= 0 ? calloc(1, sizeof(*c)) : NULL;

    if (c != NULL) {
        c->fd = fd;
        c->last = &c->first;
        start_receiving(c);
    } else if (fd >= 0)
        close(fd);
    accepting = flags & IORING_CQE_F_MORE;
    if (!accepting && fd != -EMFILE && fd != -ENFILE) /* else drop does, when one is free */
        start_accepting();
}

static void on_received(struct client *c, int n, unsigned flags)
{
    if (flags & IORING_CQE_F_BUFFER) {
        struct piece *piece = &pool[flags >> IORING_CQE_BUFFER_SHIFT];

        if (n > 0 && !c->ended) {
            piece->length = (size_t)n;
            piece->sent = 0;
            append(c, piece);
            if (is_held(c->first))
                hold(c);
        } else
            give_back(piece);
    }
    if (n <= 0 && n != -ENOBUFS && n != -ECANCELED) /* no buffer was free; stop_receiving */
        c->ended = true;
    c->receiving = flags & IORING_CQE_F_MORE;
    proceed(c);
}

static void on_sent(struct client *c, int n)
{
    c->sending = false;
    if (n < 0 && n != -EAGAIN) {
        give_up(c);
        n = (int)(c->first->length - c->first->sent); /* lost with the client */
    }
    if (n > 0)
        c->first->sent += (size_t)n;
    if (c->first->sent == c->first->length)
        remove_first(c);
    else if (!is_held(c->first)) {
        hold(c);
        if (c->receiving)
            stop_receiving(c);
    }
    proceed(c);
}

static void on_result(const struct io_uring_cqe *result)
{
    struct client *c = (struct client *)(uintptr_t)(result->user_data & ~3ULL);
    unsigned about = result->user_data & 3;

    if (about == ACCEPTED)
        on_accepted(result->res, result->flags);
    else if (about == RECEIVED)
        on_received(c, result->res, result->flags);
    else if (about == SENT)
        on_sent(c, result->res);
}

int main(int argc, char *argv[])
{
    (void)argc;
    open_ring();
    open_pool();
    listener = open_listener(argv);
    start_accepting();
    for (;;) {
        enter(1);
        while (*result_head != __atomic_load_n(result_tail, __ATOMIC_ACQUIRE)) {
            on_result(&results[*result_head % RESULTS]);
            __atomic_store_n(result_head, *result_head + 1, __ATOMIC_RELEASE);
        }
    }
}
