/* A pool of threads that do the work of one loop. */
#ifndef POOL_H
#define POOL_H

#include "epoll.h"

/* Gives the events of clients to the threads as jobs, and returns when all of them are done. How
 * many events are left, at the head of the array, is returned: that of the listener, or none. */
int share_out(struct epoll_event *events, int ready);

#endif
