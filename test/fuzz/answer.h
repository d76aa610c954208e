/*-------------------------------------------------------------------------
 *
 * answer.h
 *	  For harnesses whose input is an HTTP answer: http.c and api.c
 *	  themselves, with libcurl's part played.
 *
 * The input is what a server sends: a status line, headers, an empty line, a
 * body.  libcurl hands http.c one line at a time and the body in pieces.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_ANSWER_H
#define FUZZ_ANSWER_H

#include "server.h"

#include "../../src/http.c"
/* Both files have some of the same names. */
#include "../../src/api.c"

#define FUZZ_TOKEN "pat-na1-secret"
#define MAX_BODY 3000
#define PIECE 700

/* Of settings, as guc.c would have them. */
int			hs_retry_delay = 1000;
int			hs_max_retries = 5;
int			hs_request_timeout = 60000;
int			hs_connect_timeout = 10000;
int			hs_low_speed_timeout = 30;
int			hs_max_response_size = 1024;
char	   *hs_api_url = "https://api.hubapi.com";
char	   *hs_proxy = "";
char	   *hs_ca_file = "";

/* The rate limit's part: it must not be told nonsense. */
void
hs_ratelimit_learn(uint64 key, long max, long interval_ms, long remaining)
{
	REQUIRE(max >= -1 && interval_ms >= -1 && remaining >= -1);
}

void
hs_ratelimit_hold(uint64 key, HsBucket bucket, int64 ms)
{
	REQUIRE(ms >= 0 && ms <= LONGEST_PAUSE_S * INT64CONST(1000));
}

TimestampTz
hs_ratelimit_reserve(uint64 key, HsBucket bucket)
{
	return GetCurrentTimestamp();
}

const char *
hs_guc_api_version(void)
{
	return "2026-09";
}

/* The end of the line at `p`, after its line feed. */
static const char *
line_end(const char *p, const char *end)
{
	const char *feed = memchr(p, '\n', end - p);

	return feed == NULL ? end : feed + 1;
}

/* A line as libcurl hands it over: a copy without a NUL at its end. */
static void
receive_line(HsHttpCall *call, const char *line, size_t len)
{
	char	   *copy = palloc(len);

	memcpy(copy, line, len);
	REQUIRE(header_callback(copy, 1, len, call) == len);
	if (len > 9 && strncmp(line, "HTTP/1.1 ", 9) == 0)
		call->result.status = strtol(pnstrdup(line + 9, len - 9), NULL, 10) % 1000;
	pfree(copy);
}

/* Receives what is left as body; libcurl stops where it is refused. */
static void
receive_body(HsHttpCall *call, const char *body, const char *end)
{
	while (body < end)
	{
		size_t		len = Min(PIECE, end - body);
		char	   *copy = palloc(len);

		memcpy(copy, body, len);
		if (body_callback(copy, 1, len, call) != len)
		{
			call->code = CURLE_WRITE_ERROR;
			break;
		}
		pfree(copy);
		body += len;
	}
}

/* MemoryContextCallback: the body belongs to malloc. */
static void
free_body(void *arg)
{
	free(((HsHttpCall *) arg)->result.body);
}

/* The call that has received an answer. */
static HsHttpCall *
receive(const char *data, size_t size)
{
	const char *end = data + size;
	HsHttpCall *call = palloc0(sizeof(HsHttpCall));

	call->max_body = MAX_BODY;
	call->cleanup.func = free_body;
	call->cleanup.arg = call;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &call->cleanup);
	reset_headers(&call->result);
	while (data < end)
	{
		const char *next = line_end(data, end);
		bool		is_empty = next - data <= 2 && (*data == '\r' || *data == '\n');

		receive_line(call, data, next - data);
		data = next;
		if (is_empty)
			break;
	}
	receive_body(call, data, end);
	call->result.failure = classify_failure(call);
	call->result.bytes_received = end - data;
	if (call->result.failure != HS_HTTP_OK)
		call->result.error = describe_failure(call, "refused");
	call->is_completed = true;
	return call;
}

/* Text that went through copy_printable(). */
static bool
is_printable(const char *text)
{
	for (; *text != '\0'; text++)
	{
		if (*text < ' ' || *text > '~')
			return false;
	}
	return true;
}

#endif							/* FUZZ_ANSWER_H */
