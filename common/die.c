#define _GNU_SOURCE /* strerrorname_np, program_invocation_short_name */
#include "die.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* strerrorname_np turns EACCES into "EACCES". Only glibc has it, since 2.32. */
static const char *errno_name(int error)
{
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 32)
    return strerrorname_np(error);
#else
    (void)error;
    return NULL;
#endif
}

/* One fprintf, so that the lines of several processes do not run into each other. */
static void say(const char *format, va_list arguments)
{
    int error = errno;
    char message[256];
    const char *name = errno_name(error);

    vsnprintf(message, sizeof(message), format, arguments);
    fprintf(stderr, "%s: %s: %s%s%s%s\n", program_invocation_short_name, message, strerror(error),
            name ? " [" : "", name ? name : "", name ? "]" : "");
    errno = error;
}

void die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    exit(EXIT_FAILURE);
}

void complain(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}
