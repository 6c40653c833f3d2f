/* A client, from arrival to leaving: day 4's code, in a file of its own. */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "epoll.h"

/* Bytes that a client sent and did not take back yet. */
struct held {
    size_t length; /* of bytes[] */
    size_t sent;   /* how many of them are gone */
    char bytes[];
};

/* A client that is connected. */
struct connection {
    int fd;
    struct in_addr ip; /* the client's address, in network byte order like the port */
    in_port_t port;
    bool open;         /* false: this slot is free */
    uint64_t echoed;   /* bytes that send has taken for this client */
    struct held *held; /* NULL: nothing, and we want to read. Else we want to write */
};

extern struct epoll epoll;
extern int slots;

extern bool shortage;   /* accept failed for want of descriptors or memory, and we said so */
extern time_t tried_at; /* and when that was */

/* Totals: connections, bytes, bytes. Each thread counts its own. */
extern _Thread_local uint64_t clients, received, echoed;
extern _Thread_local unsigned int busy; /* sends and wake-ups since we last let signals in */

/* The slot of a descriptor; NULL, with errno, when there is none. */
struct connection *connection_of(int fd);

/* Who this is, as 127.0.0.1:40123, until the next call. */
const char *peer_name(const struct connection *c);

void drop(struct connection *c, const char *why);
void fail(struct connection *c, const char *call);

/* Accepts until the backlog is empty, or descriptors are: then shortage is set. */
void accept_clients(void);

void send_rest(struct connection *c);
bool echo(struct connection *c);

#endif
