/*-------------------------------------------------------------------------
 *
 * http.h
 *	  HTTP requests over libcurl's multi interface, interruptible.
 *
 * A call is started, may stay on the wire while the caller does something
 * else (nobody drives it then), and is waited for.  Connections are kept and
 * reused by all calls of the process.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_HTTP_H
#define HS_HTTP_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* What went wrong before a complete answer had arrived. */
typedef enum HsHttpFailure
{
	HS_HTTP_OK = 0,				/* a complete answer, whatever its status */
	HS_HTTP_NAME_LOOKUP,
	HS_HTTP_CONNECT,
	HS_HTTP_TLS,
	HS_HTTP_TIMEOUT,
	HS_HTTP_RESET,
	HS_HTTP_TRUNCATED,
	HS_HTTP_TOO_LARGE,			/* refused by us: larger than max_body */
	HS_HTTP_OTHER
} HsHttpFailure;

/* Connection settings, the same for all calls of a process. */
typedef struct HsHttpOptions
{
	bool		allow_http;		/* else https only */
	const char *proxy;			/* NULL or empty: none, not even from the
								 * environment */
	const char *ca_file;		/* NULL or empty: the system's certificates */
	int			connect_timeout_ms;
	int			total_timeout_ms;
	int			low_speed_s;	/* give up below 1 byte/s for so long */
	int64		max_body;		/* bytes, after decompression */
} HsHttpOptions;

typedef struct HsHttpRequest
{
	const char *url;
	const char *body;			/* NULL: GET, else POST of JSON */
	const char *method;			/* NULL: as above; a constant otherwise */
	size_t		body_len;
	const char *bearer;			/* NULL: no Authorization header */
	const HsHttpOptions *options;
} HsHttpRequest;

/*
 * How long each phase took: next to nothing where there was none, as when a
 * connection was reused.  Only total_us counts from the start of the call.
 */
typedef struct HsHttpTimings
{
	int64		name_lookup_us;
	int64		connect_us;
	int64		tls_us;
	int64		first_byte_us;
	int64		total_us;
} HsHttpTimings;

/*
 * Everything but `body` is valid until hs_http_finish() or the end of the
 * call's memory context; so is `body`, which libcurl's callbacks allocated
 * with malloc and the call frees.
 */
typedef struct HsHttpResult
{
	HsHttpFailure failure;
	char	   *error;			/* text for people, NULL if failure is OK;
								 * never contains the URL's query or a header */
	long		status;			/* 0 before a status line arrived */
	char	   *body;			/* NUL-terminated; NULL if empty */
	size_t		body_len;
	int64		bytes_received; /* as sent over the wire, body only */
	HsHttpTimings timings;

	/* headers we need; -1, NULL or 0 where absent or unreadable */
	TimestampTz date;			/* 0: absent */
	char		content_type[128];
	char		retry_after[64];	/* raw text, "" if absent */
	long		limit_max;		/* X-HubSpot-RateLimit-Max */
	long		limit_remaining;
	long		limit_interval_ms;
	long		limit_daily;
	long		limit_daily_remaining;
} HsHttpResult;

typedef struct HsHttpCall HsHttpCall;

extern HsHttpCall *hs_http_start(const HsHttpRequest *request);
extern bool hs_http_is_done(HsHttpCall *call);
extern void hs_http_turn(long max_ms);
extern const HsHttpResult *hs_http_result(HsHttpCall *call);
extern void hs_http_finish(HsHttpCall *call);
extern char *hs_http_escape(const char *text);

#endif							/* HS_HTTP_H */
