/*-------------------------------------------------------------------------
 *
 * http.c
 *	  HTTP requests over libcurl's multi interface, interruptible.
 *
 * The only file that knows libcurl.  A process that makes requests has one
 * multi handle, made at the first request: libcurl starts threads for name
 * lookups, and threads do not mix with fork.  It holds the open connections,
 * which all calls share, and tells through callbacks which sockets to watch
 * and when to wake up at the latest.  We wait for both together with the
 * process's latch, so cancellation, termination and barriers are served while
 * a peer hangs.
 *
 * Nothing throws inside libcurl: callbacks note what happened and return.
 * Signals are blocked around the libcurl functions that may start a thread or
 * call back, since PostgreSQL's handlers must run in neither.  libcurl and
 * the callbacks allocate with malloc; all of that hangs on an HsHttpCall,
 * whose memory context frees it when it goes, on errors too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>
#include <signal.h>
#include <time.h>

#include <curl/curl.h>

#include "lib/ilist.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "http.h"

#define MAX_CONNECTIONS 6

/* A connection has a name lookup's socket, or two addresses being tried. */
#define MAX_SOCKETS (4 * MAX_CONNECTIONS)

/* The longest a turn may wait, whatever libcurl's timer says. */
#define MAX_TURN_MS 1000

/* Times a new call may be pushed on before its caller goes on. */
#define MAX_KICKS 8

/* Longer gaps between two turns are not charged to the calls' timeouts. */
#define FORGIVEN_PAUSE_MS 100

#define BODY_INITIAL_SIZE (16 * 1024)

/* The last second that HTTP's dates can tell, in the year 9999. */
#define LATEST_DATE INT64CONST(253402300799)

#define TIMER_OFF (-1)

#define USER_AGENT "hubspot_sync"
#define WAIT_EVENT PG_WAIT_EXTENSION

/* Accept, Authorization, Content-Type, Expect */
#define MAX_REQUEST_HEADERS 4

/* Why the body callback told libcurl to stop. */
typedef enum BodyRefusal
{
	BODY_ACCEPTED,
	BODY_TOO_LARGE,
	BODY_OUT_OF_MEMORY
} BodyRefusal;

struct HsHttpCall
{
	MemoryContext context;		/* holds the call and everything it returns */
	MemoryContextCallback cleanup;
	dlist_node	node;			/* in engine.calls while in_multi */

	CURL	   *easy;			/* NULL once completed */
	bool		in_multi;
	bool		is_finished;	/* libcurl is done with it, code is set */
	bool		is_completed;	/* result is filled in */
	bool		is_sent;		/* the request went out once */
	CURLcode	code;
	char		error_buffer[CURL_ERROR_SIZE];

	bool		is_tls;
	bool		has_proxy;
	char		peer_host[256]; /* of the proxy if there is one */
	char		peer_port[8];

	/* Our own nodes instead of curl_slist_append's, which copies the token. */
	struct curl_slist headers[MAX_REQUEST_HEADERS];
	int			nheaders;
	char	   *authorization;	/* wiped at the end */
	char	   *request_body;	/* wiped at the end */
	size_t		request_body_len;

	int			connect_timeout_ms;
	int			total_timeout_ms;
	int64		forgiven_ms;	/* see forgive_pause() */

	int64		max_body;
	size_t		body_capacity;
	BodyRefusal refusal;
	HsHttpResult result;
};

typedef struct WatchedSocket
{
	curl_socket_t fd;
	uint32		events;			/* WL_SOCKET_*, 0 if libcurl waits for none */
} WatchedSocket;

/* What a process needs for its calls, see prepare_engine(). */
typedef struct HttpEngine
{
	int			pid;			/* the process that made it */
	CURLM	   *multi;			/* NULL: to be made */
	dlist_head	calls;			/* those libcurl knows */
	WatchedSocket sockets[MAX_SOCKETS];
	int			nsockets;
	int64		timer_due_us;	/* or TIMER_OFF */
	int64		driven_us;		/* when we last drove it */
	int			reserved_fds;
	bool		suspect;		/* a call failed: connections may be dead */
} HttpEngine;

typedef enum HeaderKind
{
	HEADER_TEXT,
	HEADER_NUMBER,
	HEADER_DATE
} HeaderKind;

/* Where a response header goes. */
typedef struct HeaderField
{
	const char *name;
	HeaderKind	kind;
	size_t		offset;			/* in HsHttpResult */
	size_t		size;			/* of the field */
} HeaderField;

#define HEADER_FIELD(name, kind, member) \
	{ \
		name, kind, offsetof(HsHttpResult, member), \
			sizeof(((HsHttpResult *) NULL)->member) \
	}

static const HeaderField header_fields[] = {
	HEADER_FIELD("Date", HEADER_DATE, date),
	HEADER_FIELD("Content-Type", HEADER_TEXT, content_type),
	HEADER_FIELD("Retry-After", HEADER_TEXT, retry_after),
	HEADER_FIELD("X-HubSpot-RateLimit-Max", HEADER_NUMBER, limit_max),
	HEADER_FIELD("X-HubSpot-RateLimit-Remaining", HEADER_NUMBER,
				 limit_remaining),
	HEADER_FIELD("X-HubSpot-RateLimit-Interval-Milliseconds", HEADER_NUMBER,
				 limit_interval_ms),
	HEADER_FIELD("X-HubSpot-RateLimit-Daily", HEADER_NUMBER, limit_daily),
	HEADER_FIELD("X-HubSpot-RateLimit-Daily-Remaining", HEADER_NUMBER,
				 limit_daily_remaining),
};

typedef struct FailureClass
{
	CURLcode	code;
	HsHttpFailure failure;
} FailureClass;

/* What is not listed is HS_HTTP_OTHER. */
static const FailureClass failure_classes[] = {
	{CURLE_OK, HS_HTTP_OK},
	{CURLE_COULDNT_RESOLVE_HOST, HS_HTTP_NAME_LOOKUP},
	{CURLE_COULDNT_RESOLVE_PROXY, HS_HTTP_NAME_LOOKUP},
	{CURLE_COULDNT_CONNECT, HS_HTTP_CONNECT},
	{CURLE_PROXY, HS_HTTP_CONNECT},
	{CURLE_SSL_CONNECT_ERROR, HS_HTTP_TLS},
	{CURLE_PEER_FAILED_VERIFICATION, HS_HTTP_TLS},
	{CURLE_SSL_CACERT_BADFILE, HS_HTTP_TLS},
	{CURLE_SSL_CERTPROBLEM, HS_HTTP_TLS},
	{CURLE_SSL_CIPHER, HS_HTTP_TLS},
	{CURLE_SSL_CRL_BADFILE, HS_HTTP_TLS},
	{CURLE_SSL_ENGINE_INITFAILED, HS_HTTP_TLS},
	{CURLE_SSL_INVALIDCERTSTATUS, HS_HTTP_TLS},
	{CURLE_SSL_ISSUER_ERROR, HS_HTTP_TLS},
	{CURLE_OPERATION_TIMEDOUT, HS_HTTP_TIMEOUT},
	{CURLE_ABORTED_BY_CALLBACK, HS_HTTP_RESET},
	/* before_request() */
	{CURLE_GOT_NOTHING, HS_HTTP_RESET},
	{CURLE_RECV_ERROR, HS_HTTP_RESET},
	{CURLE_SEND_ERROR, HS_HTTP_RESET},
	{CURLE_HTTP2, HS_HTTP_RESET},
	{CURLE_HTTP2_STREAM, HS_HTTP_RESET},
	{CURLE_PARTIAL_FILE, HS_HTTP_TRUNCATED},
	{CURLE_BAD_CONTENT_ENCODING, HS_HTTP_TRUNCATED},
	{CURLE_FILESIZE_EXCEEDED, HS_HTTP_TOO_LARGE},
};

static HttpEngine engine;

/* Throws: an option libcurl refuses is our mistake, or memory ran out. */
#define SET_OPTION(call, option, value) \
	do \
	{ \
		CURLcode	code_ = curl_easy_setopt((call)->easy, option, value); \
		if (code_ != CURLE_OK) \
			throw_option_error(#option, code_); \
	} while (0)

/*
 * Small helpers.
 */

static int64
now_us(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/*
 * Blocks the signals that may arrive from outside, so that a thread started
 * now never gets one.  What a fault of its own raises stays unblocked.
 */
static void
block_signals(sigset_t *saved)
{
	sigset_t	blocked;

	sigfillset(&blocked);
	sigdelset(&blocked, SIGABRT);
	sigdelset(&blocked, SIGBUS);
	sigdelset(&blocked, SIGFPE);
	sigdelset(&blocked, SIGILL);
	sigdelset(&blocked, SIGSEGV);
	sigdelset(&blocked, SIGSYS);
	sigdelset(&blocked, SIGTRAP);
	pthread_sigmask(SIG_SETMASK, &blocked, saved);
}

static void
restore_signals(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* The throw_ functions do not return. */
static void
throw_out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory"),
			 errdetail("libcurl could not allocate memory for an HTTP request.")));
}

static void
throw_option_error(const char *option, CURLcode code)
{
	if (code == CURLE_OUT_OF_MEMORY)
		throw_out_of_memory();
	elog(ERROR, "could not set %s: %s", option, curl_easy_strerror(code));
}

static void
throw_multi_error(CURLMcode code)
{
	if (code == CURLM_OUT_OF_MEMORY)
		throw_out_of_memory();
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_EXCEPTION),
			 errmsg("could not make an HTTP request: %s",
					curl_multi_strerror(code))));
}

/*
 * The engine: the multi handle and what it asked us to watch.
 */

/* CURLMOPT_TIMERFUNCTION: when libcurl wants to be called at the latest. */
static int
timer_callback(CURLM *multi, long timeout_ms, void *arg)
{
	engine.timer_due_us = timeout_ms < 0 ? TIMER_OFF
		: now_us() + (int64) timeout_ms * 1000;
	return 0;
}

/* CURLMOPT_SOCKETFUNCTION: what libcurl waits for on a socket. */
static int
socket_callback(CURL *easy, curl_socket_t fd, int what, void *arg,
				void *socket_arg)
{
	WatchedSocket *sockets = engine.sockets;
	int			i = 0;

	while (i < engine.nsockets && sockets[i].fd != fd)
		i++;

	if (what == CURL_POLL_REMOVE)
	{
		if (i < engine.nsockets)
			sockets[i] = sockets[--engine.nsockets];
		return 0;
	}

	if (i == MAX_SOCKETS)
		return -1;				/* fails all calls */
	if (i == engine.nsockets)
		engine.nsockets++;
	sockets[i].fd = fd;
	sockets[i].events = ((what & CURL_POLL_IN) ? WL_SOCKET_READABLE : 0) |
		((what & CURL_POLL_OUT) ? WL_SOCKET_WRITEABLE : 0);
	return 0;
}

/* Closes all connections.  There must be no calls.  Does not throw. */
static void
drop_multi(void)
{
	sigset_t	saved;

	Assert(dlist_is_empty(&engine.calls));

	block_signals(&saved);
	curl_multi_cleanup(engine.multi);
	restore_signals(&saved);

	engine.multi = NULL;
	engine.nsockets = 0;
	engine.timer_due_us = TIMER_OFF;
}

static void
make_multi(void)
{
	sigset_t	saved;
	CURLcode	code;
	CURLMcode	mcode = CURLM_OUT_OF_MEMORY;

	block_signals(&saved);
	code = curl_global_init(CURL_GLOBAL_DEFAULT);
	if (code == CURLE_OK)
		engine.multi = curl_multi_init();
	restore_signals(&saved);

	if (engine.multi == NULL)
		throw_multi_error(mcode);

	mcode = curl_multi_setopt(engine.multi, CURLMOPT_SOCKETFUNCTION,
							  socket_callback);
	if (mcode == CURLM_OK)
		mcode = curl_multi_setopt(engine.multi, CURLMOPT_TIMERFUNCTION,
								  timer_callback);
	if (mcode == CURLM_OK)
		mcode = curl_multi_setopt(engine.multi, CURLMOPT_MAXCONNECTS,
								  (long) MAX_CONNECTIONS);
	if (mcode == CURLM_OK)
		mcode = curl_multi_setopt(engine.multi, CURLMOPT_MAX_TOTAL_CONNECTIONS,
								  (long) MAX_CONNECTIONS);
	if (mcode != CURLM_OK)
	{
		drop_multi();
		throw_multi_error(mcode);
	}
}

/*
 * Sees to it that this process has a multi handle, and none whose
 * connections are in doubt unless they are in use.  What a parent process
 * made is left alone: its sockets are the parent's.  Throws.
 */
static void
prepare_engine(void)
{
	if (engine.pid != MyProcPid)
	{
		memset(&engine, 0, sizeof(engine));
		engine.pid = MyProcPid;
		engine.timer_due_us = TIMER_OFF;
		dlist_init(&engine.calls);
	}

	if (engine.suspect && dlist_is_empty(&engine.calls))
	{
		if (engine.multi != NULL)
			drop_multi();
		engine.suspect = false;
	}
	if (engine.multi == NULL)
		make_multi();
}

/*
 * Reserves a descriptor for each connection the calls, with one more, can
 * have.  They stay reserved, as connections stay open.  Throws.
 */
static void
reserve_descriptors(void)
{
	int			needed = 1;
	dlist_iter	iter;

	dlist_foreach(iter, &engine.calls)
		needed++;
	needed = Min(needed, MAX_CONNECTIONS);

	while (engine.reserved_fds < needed)
	{
		if (!AcquireExternalFD())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("could not open a connection for an HTTP request"),
					 errdetail("There are too many open files on the local server."),
					 errhint("Raise the server's max_files_per_process and/or \"ulimit -n\" limits.")));
		engine.reserved_fds++;
	}
}

/*
 * Driving: letting libcurl do what can be done without waiting.
 */

static void
set_timeouts(HsHttpCall *call)
{
	int64		total = call->total_timeout_ms;
	int64		connecting = call->connect_timeout_ms;

	if (total > 0)
		total = Min(total + call->forgiven_ms, INT_MAX);
	if (connecting > 0)
		connecting = Min(connecting + call->forgiven_ms, INT_MAX);
	SET_OPTION(call, CURLOPT_TIMEOUT_MS, (long) total);
	SET_OPTION(call, CURLOPT_CONNECTTIMEOUT_MS, (long) connecting);
}

/*
 * To be called before driving, after the caller may have done other things.
 * libcurl looks at the clock before it looks at the socket: without this an
 * answer that has long been there would be thrown away as late because the
 * caller was busy.  Throws only if libcurl refuses an option.
 */
static void
forgive_pause(void)
{
	int64		now = now_us();
	int64		pause_ms = (now - engine.driven_us) / 1000;
	dlist_iter	iter;

	engine.driven_us = now;
	if (pause_ms < FORGIVEN_PAUSE_MS)
		return;

	dlist_foreach(iter, &engine.calls)
	{
		HsHttpCall *call = dlist_container(HsHttpCall, node, iter.cur);

		call->forgiven_ms += pause_ms;
		set_timeouts(call);
	}
}

/* Notes which calls libcurl is done with. */
static void
note_finished_calls(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(engine.multi, &left)) != NULL)
	{
		HsHttpCall *call = NULL;

		if (message->msg != CURLMSG_DONE ||
			curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &call) !=
				CURLE_OK ||
			call == NULL)
			continue;
		call->is_finished = true;
		call->code = message->data.result;
	}
}

static bool
timer_is_due(void)
{
	return engine.timer_due_us != TIMER_OFF && engine.timer_due_us <= now_us();
}

/*
 * Tells libcurl that its timer has rung.  It rounds times down and takes a
 * ring that is a fraction too early for none, without setting the timer
 * again: so ask it.
 */
static CURLMcode
ring_timer(void)
{
	CURLMcode	code;
	int			running;
	long		timeout_ms = -1;

	engine.timer_due_us = TIMER_OFF;
	code = curl_multi_socket_action(engine.multi, CURL_SOCKET_TIMEOUT, 0,
									&running);
	if (code == CURLM_OK && engine.timer_due_us == TIMER_OFF)
	{
		code = curl_multi_timeout(engine.multi, &timeout_ms);
		timer_callback(engine.multi, timeout_ms, NULL);
	}
	return code;
}

/* Lets libcurl act on these sockets, then on its timer if due.  Throws. */
static void
drive(const WaitEvent *events, int nevents)
{
	CURLMcode	code = CURLM_OK;
	sigset_t	saved;
	int			running;

	block_signals(&saved);
	for (int i = 0; i < nevents && code == CURLM_OK; i++)
	{
		int			what =
			((events[i].events & WL_SOCKET_READABLE) ? CURL_CSELECT_IN : 0) |
			((events[i].events & WL_SOCKET_WRITEABLE) ? CURL_CSELECT_OUT : 0);

		code = curl_multi_socket_action(engine.multi, events[i].fd, what,
										&running);
	}
	if (code == CURLM_OK && timer_is_due())
		code = ring_timer();
	note_finished_calls();
	restore_signals(&saved);

	engine.driven_us = now_us();
	if (code != CURLM_OK)
		throw_multi_error(code);
}

/* Drives all sockets, whatever their state: libcurl looks for itself. */
static void
drive_all(void)
{
	WaitEvent	events[MAX_SOCKETS];
	int			nevents = engine.nsockets;

	memset(events, 0, sizeof(events));
	for (int i = 0; i < nevents; i++)
		events[i].fd = engine.sockets[i].fd;
	drive(events, nevents);
}

/* How long a turn of at most max_ms may wait for sockets. */
static long
turn_timeout_ms(long max_ms)
{
	int64		left_ms;

	max_ms = Max(0, Min(max_ms, MAX_TURN_MS));
	if (engine.timer_due_us == TIMER_OFF)
		return max_ms;
	left_ms = (engine.timer_due_us - now_us() + 999) / 1000;
	return (long) Max(0, Min(left_ms, max_ms));
}

/*
 * Waits until a socket is ready, the timer rings or the latch is set, and
 * returns the ready sockets.  Resets the latch; interrupts are the caller's
 * to check, once the wait event set is gone.  Throws; exits if the postmaster
 * has died.
 */
static int
wait_for_sockets(WaitEvent *ready, long max_ms)
{
	WaitEvent	occurred[MAX_SOCKETS + 2];
	WaitEventSet *volatile set = hs_create_wait_event_set(MAX_SOCKETS + 2);
	volatile int noccurred = 0;
	int			nready = 0;

	PG_TRY();
	{
		AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		if (IsUnderPostmaster)
			AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL,
							  NULL);
		for (int i = 0; i < engine.nsockets; i++)
		{
			if (engine.sockets[i].events != 0)
				AddWaitEventToSet(set, engine.sockets[i].events,
								  engine.sockets[i].fd, NULL, NULL);
		}
		noccurred = WaitEventSetWait(set, turn_timeout_ms(max_ms), occurred,
									 lengthof(occurred), WAIT_EVENT);
	}
	PG_FINALLY();
	{
		FreeWaitEventSet(set);
	}
	PG_END_TRY();

	for (int i = 0; i < noccurred; i++)
	{
		if (occurred[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		else if (occurred[i].events & WL_SOCKET_MASK)
			ready[nready++] = occurred[i];
	}
	return nready;
}

/* One turn of a wait loop.  Throws. */
static void
wait_turn(long max_ms)
{
	WaitEvent	ready[MAX_SOCKETS + 2];
	int			nready = wait_for_sockets(ready, max_ms);

	/*
	 * A quiet turn drives all sockets: libcurl's timers may have rung before
	 * timeouts were extended, and would not ring again.
	 */
	if (nready > 0)
		drive(ready, nready);
	else
		drive_all();
}

/*
 * Callbacks that receive the answer.  They must not throw.
 */

/* Text from outside, made printable ASCII: libcurl quotes what peers sent. */
static void
copy_printable(char *target, size_t size, const char *source, size_t len)
{
	size_t		i;

	len = Min(len, size - 1);
	for (i = 0; i < len; i++)
		target[i] = source[i] >= ' ' && source[i] <= '~' ? source[i] : '?';
	target[i] = '\0';
}

static void
reset_headers(HsHttpResult *result)
{
	result->date = 0;
	result->content_type[0] = '\0';
	result->retry_after[0] = '\0';
	result->limit_max = -1;
	result->limit_remaining = -1;
	result->limit_interval_ms = -1;
	result->limit_daily = -1;
	result->limit_daily_remaining = -1;
}

static void
store_number(long *target, const char *value)
{
	char	   *end;
	long		number;

	errno = 0;
	number = strtol(value, &end, 10);
	if (errno == 0 && end != value && *end == '\0' && number >= 0)
		*target = number;
}

static void
store_header(HsHttpResult *result, const HeaderField *field, const char *value,
			 size_t len)
{
	void	   *target = (char *) result + field->offset;
	char		text[128];
	time_t		date;

	copy_printable(text, sizeof(text), value, len);
	switch (field->kind)
	{
		case HEADER_TEXT:
			strlcpy(target, text, field->size);
			break;
		case HEADER_NUMBER:
			store_number(target, text);
			break;
		case HEADER_DATE:
			date = curl_getdate(text, NULL);
			if (date >= 0 && date <= LATEST_DATE)
				*(TimestampTz *) target = time_t_to_timestamptz(date);
			break;
	}
}

/* CURLOPT_HEADERFUNCTION: gets one line at a time, the status line too. */
static size_t
header_callback(char *line, size_t size, size_t nitems, void *arg)
{
	HsHttpResult *result = &((HsHttpCall *) arg)->result;
	size_t		len = size * nitems;
	char	   *colon = memchr(line, ':', len);
	const char *value;
	const char *end = line + len;

	if (len >= 5 && memcmp(line, "HTTP/", 5) == 0)
	{
		/* There may have been an interim answer before. */
		reset_headers(result);
		return len;
	}
	if (colon == NULL)
		return len;

	value = colon + 1;
	while (value < end && (*value == ' ' || *value == '\t'))
		value++;
	while (end > value && isspace((unsigned char) end[-1]))
		end--;

	for (size_t i = 0; i < lengthof(header_fields); i++)
	{
		const HeaderField *field = &header_fields[i];

		if (strlen(field->name) == (size_t) (colon - line) &&
			pg_strncasecmp(line, field->name, colon - line) == 0)
			store_header(result, field, value, end - value);
	}
	return len;
}

/*
 * CURLOPT_PREREQFUNCTION: about to send.  libcurl would send again by itself
 * where a connection it reused turns out to be dead; that is our caller's
 * decision, who counts requests and keeps to limits.
 */
static int
before_request(void *arg, char *peer_ip, char *local_ip, int peer_port,
			   int local_port)
{
	HsHttpCall *call = (HsHttpCall *) arg;

	if (call->is_sent)
		return HS_CURL_PREREQ_ABORT;
	call->is_sent = true;
	return HS_CURL_PREREQ_OK;
}

/* Makes room for `needed` bytes, doubling, or exactly that many. */
static bool
enlarge_body(HsHttpCall *call, size_t needed)
{
	size_t		capacity = Max(call->body_capacity, BODY_INITIAL_SIZE / 2) * 2;
	char	   *body;

	if (needed <= call->body_capacity)
		return true;

	capacity = Max(capacity, needed);
	body = realloc(call->result.body, capacity);
	if (body == NULL)
	{
		capacity = needed;
		body = realloc(call->result.body, capacity);
	}
	if (body == NULL)
		return false;

	call->result.body = body;
	call->body_capacity = capacity;
	return true;
}

/* CURLOPT_WRITEFUNCTION: gets pieces of the decompressed body. */
static size_t
body_callback(char *data, size_t size, size_t nmemb, void *arg)
{
	HsHttpCall *call = (HsHttpCall *) arg;
	HsHttpResult *result = &call->result;
	size_t		len = size * nmemb;

	if (len > (size_t) call->max_body - result->body_len)
		call->refusal = BODY_TOO_LARGE;
	else if (len > 0 && !enlarge_body(call, result->body_len + len + 1))
		call->refusal = BODY_OUT_OF_MEMORY;
	if (call->refusal != BODY_ACCEPTED || len == 0)
		return 0;

	memcpy(result->body + result->body_len, data, len);
	result->body_len += len;
	result->body[result->body_len] = '\0';
	return len;
}

/*
 * The end of a call.
 */

/*
 * Takes the call from libcurl, which closes its connection if it is not
 * finished, and wipes its secrets.  May be called again.  Does not throw.
 */
static void
detach_call(HsHttpCall *call)
{
	sigset_t	saved;

	if (call->easy == NULL)
		return;

	block_signals(&saved);
	if (call->in_multi)
	{
		if (!call->is_finished)
		{
			curl_easy_setopt(call->easy, CURLOPT_FORBID_REUSE, 1L);
			engine.suspect = true;
		}
		curl_multi_remove_handle(engine.multi, call->easy);
		dlist_delete(&call->node);
		call->in_multi = false;
	}
	curl_easy_cleanup(call->easy);
	restore_signals(&saved);
	call->easy = NULL;

	if (call->authorization != NULL)
		explicit_bzero(call->authorization, strlen(call->authorization));
	if (call->request_body != NULL)
		explicit_bzero(call->request_body, call->request_body_len);
}

/* MemoryContextCallback: the call's context is going. */
static void
release_call(void *arg)
{
	HsHttpCall *call = (HsHttpCall *) arg;

	if (engine.pid == MyProcPid)
		detach_call(call);
	free(call->result.body);
}

static HsHttpFailure
classify_failure(HsHttpCall *call)
{
	if (call->refusal == BODY_TOO_LARGE)
		return HS_HTTP_TOO_LARGE;
	if (call->refusal == BODY_OUT_OF_MEMORY)
		return HS_HTTP_OTHER;

	/* A peer that went away during the handshake: worth another try. */
	if (call->code == CURLE_SSL_CONNECT_ERROR &&
		(strstr(call->error_buffer, "SSL_ERROR_SYSCALL") != NULL ||
		 strstr(call->error_buffer, "unexpected eof") != NULL ||
		 strstr(call->error_buffer, strerror(ECONNRESET)) != NULL))
		return HS_HTTP_RESET;

	/* A stream of HTTP/2 that ended before the answer began. */
	if (call->code == CURLE_PARTIAL_FILE && call->result.status == 0)
		return HS_HTTP_RESET;

	for (size_t i = 0; i < lengthof(failure_classes); i++)
	{
		if (failure_classes[i].code == call->code)
			return failure_classes[i].failure;
	}
	return HS_HTTP_OTHER;
}

static int64
get_time_us(HsHttpCall *call, CURLINFO info)
{
	curl_off_t	time = 0;

	curl_easy_getinfo(call->easy, info, &time);
	return (int64) time;
}

/* libcurl's times count from the start; a phase it skipped takes none. */
static void
collect_timings(HsHttpCall *call)
{
	HsHttpTimings *timings = &call->result.timings;
	int64		looked_up = get_time_us(call, CURLINFO_NAMELOOKUP_TIME_T);
	int64		connected = get_time_us(call, CURLINFO_CONNECT_TIME_T);
	int64		secured = get_time_us(call, CURLINFO_APPCONNECT_TIME_T);
	int64		prepared = get_time_us(call, CURLINFO_PRETRANSFER_TIME_T);
	int64		answered = get_time_us(call, CURLINFO_STARTTRANSFER_TIME_T);

	timings->name_lookup_us = looked_up;
	timings->connect_us = Max(0, connected - looked_up);
	timings->tls_us = Max(0, secured - connected);
	timings->first_byte_us = Max(0, answered - prepared);
	timings->total_us = get_time_us(call, CURLINFO_TOTAL_TIME_T);
}

/*
 * What a call was at when its time ran out.  libcurl 8.22 states a time before
 * the transfer for what was never sent, too.
 */
static const char *
timeout_phase(HsHttpCall *call)
{
	bool		is_sent = HS_CURL_TELLS_SENDING ? call->is_sent
		: get_time_us(call, CURLINFO_PRETRANSFER_TIME_T) > 0;

	if (call->result.status != 0)
		return "receiving the answer";
	if (is_sent)
		return "waiting for the answer";
	if (get_time_us(call, CURLINFO_NAMELOOKUP_TIME_T) == 0)
		return "looking up the host name";
	if (get_time_us(call, CURLINFO_CONNECT_TIME_T) == 0 || !call->is_tls)
		return "connecting";
	return "negotiating TLS";
}

static char *
describe_connect_failure(HsHttpCall *call)
{
	long		proxy_status = 0;
	long		os_error = 0;

	curl_easy_getinfo(call->easy, CURLINFO_HTTP_CONNECTCODE, &proxy_status);
	curl_easy_getinfo(call->easy, CURLINFO_OS_ERRNO, &os_error);

	if (call->has_proxy && proxy_status != 0)
		return psprintf("proxy \"%s:%s\" refused to connect with status %ld",
						call->peer_host, call->peer_port, proxy_status);
	if (os_error != 0)
		return psprintf("could not connect to \"%s:%s\": %s", call->peer_host,
						call->peer_port, strerror((int) os_error));
	return psprintf("could not connect to \"%s:%s\"", call->peer_host,
					call->peer_port);
}

/* The text for people; `detail` is what libcurl says. */
static char *
describe_failure(HsHttpCall *call, const char *detail)
{
	HsHttpResult *result = &call->result;

	switch (result->failure)
	{
		case HS_HTTP_OK:
			return NULL;
		case HS_HTTP_NAME_LOOKUP:
			return psprintf("could not resolve host name \"%s\"",
							call->peer_host);
		case HS_HTTP_CONNECT:
			return describe_connect_failure(call);
		case HS_HTTP_TLS:
			return psprintf("TLS connection to \"%s:%s\" failed: %s",
							call->peer_host, call->peer_port, detail);
		case HS_HTTP_TIMEOUT:
			return psprintf("timeout after %.1f s while %s",
							result->timings.total_us / 1e6,
							timeout_phase(call));
		case HS_HTTP_RESET:
			return psprintf("connection to \"%s:%s\" was closed %s: %s",
							call->peer_host, call->peer_port,
							result->status == 0 ? "before the answer"
							: "during the answer",
							detail);
		case HS_HTTP_TRUNCATED:
			return psprintf("the answer is incomplete or damaged: %s", detail);
		case HS_HTTP_TOO_LARGE:
			return psprintf("the answer is larger than " INT64_FORMAT " bytes",
							call->max_body);
		case HS_HTTP_OTHER:
			break;
	}
	if (call->refusal == BODY_OUT_OF_MEMORY)
		return pstrdup("out of memory while receiving the answer");
	return psprintf("HTTP request failed: %s", detail);
}

/* Sets failure and error.  libcurl's own text is the better one, if any. */
static void
report_failure(HsHttpCall *call)
{
	HsHttpResult *result = &call->result;
	const char *text = call->error_buffer;
	char		detail[CURL_ERROR_SIZE];
	long		proxy_status = 0;

	result->failure = classify_failure(call);
	if (result->failure == HS_HTTP_OK)
		return;

	/* libcurl calls a proxy's refusal a receive error. */
	curl_easy_getinfo(call->easy, CURLINFO_HTTP_CONNECTCODE, &proxy_status);
	if (call->has_proxy && proxy_status != 0 && proxy_status / 100 != 2)
		result->failure = HS_HTTP_CONNECT;

	if (text[0] == '\0')
		text = curl_easy_strerror(call->code);
	copy_printable(detail, sizeof(detail), text, strlen(text));
	result->error = describe_failure(call, detail);
	engine.suspect = true;
}

/* Fills in the result of a finished call and lets go of libcurl's part. */
static void
complete_call(HsHttpCall *call)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(call->context);
	curl_off_t	received = 0;

	curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &call->result.status);
	curl_easy_getinfo(call->easy, CURLINFO_SIZE_DOWNLOAD_T, &received);
	call->result.bytes_received = (int64) received;
	collect_timings(call);
	report_failure(call);
	MemoryContextSwitchTo(oldcontext);

	detach_call(call);
	call->is_completed = true;
}

static bool
complete_if_finished(HsHttpCall *call)
{
	if (!call->is_completed && call->is_finished)
		complete_call(call);
	return call->is_completed;
}

/*
 * The start of a call.
 */

/* Splits the URL of the server, or of the proxy, for messages. */
static void
note_peer(HsHttpCall *call, const char *url, const char *default_port)
{
	CURLU	   *parts = curl_url();
	char	   *host = NULL;
	char	   *port = NULL;

	if (parts == NULL)
		throw_out_of_memory();
	if (curl_url_set(parts, CURLUPART_URL, url,
					 CURLU_DEFAULT_SCHEME | CURLU_NON_SUPPORT_SCHEME) ==
		CURLUE_OK)
	{
		curl_url_get(parts, CURLUPART_HOST, &host, 0);
		curl_url_get(parts, CURLUPART_PORT, &port, 0);
	}
	if (host != NULL)
		copy_printable(call->peer_host, sizeof(call->peer_host), host,
					   strlen(host));
	strlcpy(call->peer_port, port != NULL ? port : default_port,
			sizeof(call->peer_port));
	curl_free(host);
	curl_free(port);
	curl_url_cleanup(parts);
}

/* A call without options, in a memory context of its own.  Throws. */
static HsHttpCall *
make_call(void)
{
	MemoryContext context;
	HsHttpCall *call;

	context = AllocSetContextCreate(CurrentMemoryContext,
									"hubspot_sync HTTP call",
									ALLOCSET_SMALL_SIZES);
	call = MemoryContextAllocZero(context, sizeof(HsHttpCall));
	call->context = context;
	call->cleanup.func = release_call;
	call->cleanup.arg = call;
	MemoryContextRegisterResetCallback(context, &call->cleanup);
	reset_headers(&call->result);

	call->easy = curl_easy_init();
	if (call->easy == NULL)
		throw_out_of_memory();
	return call;
}

/*
 * A redirect would carry our token elsewhere, and the server process's
 * environment, home directory and netrc are nobody's intention: all off.
 */
static void
set_security_options(HsHttpCall *call, const HsHttpOptions *options)
{
	CURLcode	code = hs_curl_limit_protocols(call->easy, options->allow_http);
	const char *proxy = options->proxy != NULL ? options->proxy : "";

	if (code != CURLE_OK)
		throw_option_error("CURLOPT_PROTOCOLS", code);
	SET_OPTION(call, CURLOPT_FOLLOWLOCATION, 0L);
	SET_OPTION(call, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	SET_OPTION(call, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SET_OPTION(call, CURLOPT_SSL_VERIFYPEER, 1L);
	SET_OPTION(call, CURLOPT_SSL_VERIFYHOST, 2L);
	SET_OPTION(call, CURLOPT_PROXY, proxy);
	SET_OPTION(call, CURLOPT_NOPROXY, "");
	SET_OPTION(call, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	if (options->ca_file != NULL && options->ca_file[0] != '\0')
	{
		SET_OPTION(call, CURLOPT_CAINFO, options->ca_file);
		SET_OPTION(call, CURLOPT_PROXY_CAINFO, options->ca_file);
	}
	call->has_proxy = proxy[0] != '\0';
}

static void
set_limits(HsHttpCall *call, const HsHttpOptions *options)
{
	CURLcode	code = hs_curl_quick_exit(call->easy);

	if (code != CURLE_OK)
		throw_option_error("CURLOPT_QUICK_EXIT", code);
	call->connect_timeout_ms = options->connect_timeout_ms;
	call->total_timeout_ms = options->total_timeout_ms;
	call->max_body = options->max_body;
	set_timeouts(call);
	SET_OPTION(call, CURLOPT_NOSIGNAL, 1L);
	SET_OPTION(call, CURLOPT_LOW_SPEED_LIMIT, 1L);
	SET_OPTION(call, CURLOPT_LOW_SPEED_TIME, (long) options->low_speed_s);
	SET_OPTION(call, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t) options->max_body);
	SET_OPTION(call, CURLOPT_TCP_KEEPALIVE, 1L);

	/* Other calls still use connections that are in doubt. */
	if (engine.suspect)
		SET_OPTION(call, CURLOPT_FRESH_CONNECT, 1L);
}

static void
set_callbacks(HsHttpCall *call)
{
	SET_OPTION(call, CURLOPT_PRIVATE, call);
	SET_OPTION(call, CURLOPT_ERRORBUFFER, call->error_buffer);
	SET_OPTION(call, CURLOPT_HEADERFUNCTION, header_callback);
	SET_OPTION(call, CURLOPT_HEADERDATA, call);
	SET_OPTION(call, CURLOPT_WRITEFUNCTION, body_callback);
	SET_OPTION(call, CURLOPT_WRITEDATA, call);
	hs_curl_set_prereq(call->easy, before_request, call);
}

static void
add_header(HsHttpCall *call, const char *line)
{
	struct curl_slist *header = &call->headers[call->nheaders];

	Assert(call->nheaders < MAX_REQUEST_HEADERS);
	header->data = unconstify(char *, line);
	if (call->nheaders > 0)
		header[-1].next = header;
	call->nheaders++;
}

/* A token with a line break would smuggle in headers. */
static void
check_bearer(const char *bearer)
{
	for (const char *p = bearer; *p != '\0'; p++)
	{
		if (*p <= ' ' || *p > '~')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("access token contains a character that cannot be sent in an HTTP header")));
	}
}

static void
set_request(HsHttpCall *call, const HsHttpRequest *request)
{
	SET_OPTION(call, CURLOPT_URL, request->url);
	SET_OPTION(call, CURLOPT_USERAGENT, USER_AGENT);
	SET_OPTION(call, CURLOPT_ACCEPT_ENCODING, "gzip, deflate");

	add_header(call, "Accept: application/json");
	if (request->bearer != NULL)
	{
		check_bearer(request->bearer);
		call->authorization =
			psprintf("Authorization: Bearer %s", request->bearer);
		add_header(call, call->authorization);
	}
	if (request->body != NULL)
	{
		/* libcurl does not copy it. */
		call->request_body = palloc(Max(request->body_len, 1));
		memcpy(call->request_body, request->body, request->body_len);
		call->request_body_len = request->body_len;
		SET_OPTION(call, CURLOPT_POST, 1L);
		if (request->method != NULL)
			SET_OPTION(call, CURLOPT_CUSTOMREQUEST, request->method);
		SET_OPTION(call, CURLOPT_POSTFIELDSIZE_LARGE,
				   (curl_off_t) request->body_len);
		SET_OPTION(call, CURLOPT_POSTFIELDS, call->request_body);
		add_header(call, "Content-Type: application/json");
		add_header(call, "Expect:");
	}
	SET_OPTION(call, CURLOPT_HTTPHEADER, call->headers);
}

/* Hands the call to libcurl and lets it go as far as it can now.  Throws. */
static void
launch_call(HsHttpCall *call)
{
	sigset_t	saved;
	CURLMcode	code;

	block_signals(&saved);
	code = curl_multi_add_handle(engine.multi, call->easy);
	if (code == CURLM_OK)
	{
		call->in_multi = true;
		dlist_push_tail(&engine.calls, &call->node);
	}
	restore_signals(&saved);
	if (code != CURLM_OK)
		throw_multi_error(code);

	for (int i = 0; i < MAX_KICKS && timer_is_due(); i++)
		drive(NULL, 0);
}

/*
 * Public functions.
 */

/*
 * Starts a request and returns without waiting for anything; if a connection
 * is open the request is on the wire.  Everything is copied, nothing of
 * *request needs to live on.  The call lives in a child of
 * CurrentMemoryContext until hs_http_finish(), or goes with it.
 *
 * Throws for local reasons only: no memory, no descriptors, a token that is
 * no header value.  Whatever the network does is in the result.
 */
HsHttpCall *
hs_http_start(const HsHttpRequest *request)
{
	const HsHttpOptions *options = request->options;
	MemoryContext oldcontext;
	HsHttpCall *call;

	prepare_engine();
	forgive_pause();
	reserve_descriptors();

	call = make_call();
	oldcontext = MemoryContextSwitchTo(call->context);
	set_callbacks(call);
	set_security_options(call, options);
	set_limits(call, options);
	set_request(call, request);
	call->is_tls = pg_strncasecmp(request->url, "https:", 6) == 0;
	if (call->has_proxy)
		note_peer(call, options->proxy, "1080");
	else
		note_peer(call, request->url, call->is_tls ? "443" : "80");
	MemoryContextSwitchTo(oldcontext);

	launch_call(call);
	return call;
}

/*
 * Whether the call is done, as far as hs_http_turn() has brought it.  Does not
 * wait.  Its timeouts see to it that it gets done.
 */
bool
hs_http_is_done(HsHttpCall *call)
{
	return complete_if_finished(call);
}

/*
 * Brings all calls of the process forward: waits until something happens to
 * one of them or the latch is set, at most max_ms and never longer than a
 * second.  The time in which nobody drove them does not count for their
 * timeouts.  Serves interrupts, and so throws when cancelled; calls can then
 * only be finished.  Resets the process's latch.
 */
void
hs_http_turn(long max_ms)
{
	CHECK_FOR_INTERRUPTS();
	prepare_engine();
	forgive_pause();
	wait_turn(max_ms);
	CHECK_FOR_INTERRUPTS();
}

/* The result of a call that is done; it lives as long as the call. */
const HsHttpResult *
hs_http_result(HsHttpCall *call)
{
	Assert(call->is_completed);
	return &call->result;
}

/*
 * Ends a call, done or not, and frees everything that belongs to it.  One
 * that is not done loses its connection.  Does not throw and does not wait.
 */
void
hs_http_finish(HsHttpCall *call)
{
	MemoryContextDelete(call->context);
}

/*
 * Percent-encodes everything but RFC 3986's unreserved characters, for use
 * in a URL's path or query.  The copy is palloc'd in CurrentMemoryContext.
 */
char *
hs_http_escape(const char *text)
{
	static const char hex[] = "0123456789ABCDEF";
	char	   *escaped = palloc(strlen(text) * 3 + 1);
	char	   *out = escaped;

	for (const unsigned char *p = (const unsigned char *) text; *p != '\0'; p++)
	{
		if ((*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z') ||
			(*p >= '0' && *p <= '9') || *p == '-' || *p == '.' || *p == '_' ||
			*p == '~')
			*out++ = *p;
		else
		{
			*out++ = '%';
			*out++ = hex[*p >> 4];
			*out++ = hex[*p & 0xF];
		}
	}
	*out = '\0';
	return escaped;
}
