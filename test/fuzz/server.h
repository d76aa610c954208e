/*-------------------------------------------------------------------------
 *
 * server.h
 *	  What a fuzzing harness uses of the stand-in for the server.
 *
 * A harness defines fuzz_input(), which is called for every input in a memory
 * context of its own.  A finding is whatever a sanitizer reports, a REQUIRE
 * that does not hold, and an error that nobody catches.
 *
 * The first lines of a harness name, after "links:", the files of src/ that
 * take part; statics are reached by including their file instead.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_SERVER_H
#define FUZZ_SERVER_H

#include "postgres.h"

extern void fuzz_input(const char *data, size_t size);

/* Calls a function and returns whether it threw an error. */
extern bool server_catches(void (*function)(void *arg), void *arg);

/* The texts of all messages and errors since the input began. */
extern const char *server_messages(void);

/* Whether text is what PostgreSQL can hold in a database of encoding UTF8. */
extern bool server_can_hold(const char *text);

/* Whether text is JSON by PostgreSQL's own parser. */
extern bool server_reads_json(const char *text, size_t len);

#define REQUIRE(condition) \
	((condition) ? (void) 0 : server_finding(#condition, __FILE__, __LINE__))

extern void server_finding(const char *what, const char *file, int line)
	__attribute__((noreturn));

#endif							/* FUZZ_SERVER_H */
