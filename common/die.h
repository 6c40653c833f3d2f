/* The one helper that all days share: how a program says that a system call failed.
 *
 * Both functions write one line to stderr,
 *
 *     server: bind 127.0.0.1:80: Permission denied [EACCES]
 *
 * that is the program, your message, strerror(errno) and the name of errno. Where libc does not
 * know the name (musl, glibc before 2.32) it is left out. Call them before anything else can change
 * errno. See errno(3), strerror(3).
 */
#ifndef DIE_H
#define DIE_H

/* For a start that cannot go on: says so and exits with status 1. Does not return. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* For trouble that costs one client at most: says so and returns. Leaves errno as it was. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
