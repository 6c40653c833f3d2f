/* An echo server on libuv, the short way: a buffer for each read, handed on to the write, and freed
 * when that is done. (So what a client does not read piles up in memory.) */
#define _GNU_SOURCE

#include <uv.h>

#include "listener.h"

/* A write, and the buffer that it owns. */
struct job {
    uv_write_t request;
    char *bytes;
};

static void on_closed(uv_handle_t *client)
{
    free(client);
}

static void drop(uv_stream_t *client)
{
    if (!uv_is_closing((uv_handle_t *)client))
        uv_close((uv_handle_t *)client, on_closed);
}

static void give_buffer(uv_handle_t *client, size_t suggested, uv_buf_t *buffer)
{
    (void)client;
    *buffer = uv_buf_init(malloc(suggested), (unsigned int)suggested); /* libuv suggests 64 KiB */
}

static void on_written(uv_write_t *request, int status)
{
    struct job *job = (struct job *)request;

    if (status < 0)
        drop(request->handle);
    free(job->bytes);
    free(job);
}

static void on_read(uv_stream_t *client, ssize_t n, const uv_buf_t *buffer)
{
    struct job *job = n > 0 ? malloc(sizeof(*job)) : NULL;

    if (job != NULL) {
        uv_buf_t bytes = uv_buf_init(buffer->base, (unsigned int)n);

        job->bytes = buffer->base;
        uv_write(&job->request, client, &bytes, 1, on_written);
        return;
    }
    free(buffer->base);
    if (n != 0)
        drop(client);
}

static void on_connection(uv_stream_t *listener, int status)
{
    uv_tcp_t *client = status == 0 ? malloc(sizeof(*client)) : NULL;
    uv_stream_t *stream = (uv_stream_t *)client;

    if (client == NULL)
        return;
    uv_tcp_init(listener->loop, client);
    if (uv_accept(listener, stream) != 0) {
        drop(stream);
        return;
    }
    uv_read_start(stream, give_buffer, on_read);
}

int main(int argc, char *argv[])
{
    uv_loop_t *loop = uv_default_loop();
    uv_tcp_t listener;

    (void)argc;
    uv_tcp_init(loop, &listener);
    if (uv_tcp_open(&listener, open_listener(argv)) != 0 ||
        uv_listen((uv_stream_t *)&listener, BACKLOG, on_connection) != 0)
        errx(1, "libuv does not take the listener");
    return uv_run(loop, UV_RUN_DEFAULT);
}
