/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Every difference between versions of PostgreSQL and of libcurl.
 *
 * The other files are written against the newest interface; this one maps it
 * onto older versions.  PG_VERSION_NUM and LIBCURL_VERSION_NUM appear nowhere
 * else.  The libcurl part takes effect only in the file that includes curl.h
 * before this header.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_COMPAT_H
#define HS_COMPAT_H

#include "postgres.h"

#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/resowner.h"

#if PG_VERSION_NUM < 150000
#error "hubspot_sync needs PostgreSQL 15 or later"
#endif

/* 17 lets a worker's role lack LOGIN; before, that must be checked. */
#if PG_VERSION_NUM >= 170000
#include "postmaster/bgworker.h"
#define HS_OWNER_NEEDS_LOGIN false
#define HS_WORKER_FLAGS BGWORKER_BYPASS_ROLELOGINCHECK
#else
#define HS_OWNER_NEEDS_LOGIN true
#define HS_WORKER_FLAGS 0
#endif

/* 18 wants it first in a declaration, under this name. */
#ifndef pg_noreturn
#define pg_noreturn pg_attribute_noreturn()
#endif

/*
 * Whether a role may act as another.  16 tells that from inheriting and
 * administering.
 */
#if PG_VERSION_NUM >= 160000
#define hs_may_act_as(member, role) member_can_set_role((member), (role))
#else
#define hs_may_act_as(member, role) is_member_of_role((member), (role))
#endif

/* 19 can be told that a worker may be terminated for DROP DATABASE. */
#ifdef BGWORKER_INTERRUPTIBLE
#define HS_WORKER_INTERRUPTIBLE BGWORKER_INTERRUPTIBLE
#else
#define HS_WORKER_INTERRUPTIBLE 0
#endif

/* 17 ties wait event sets to a resource owner; ours never outlive a call. */
#if PG_VERSION_NUM >= 170000
#define hs_create_wait_event_set(n) CreateWaitEventSet(NULL, (n))
#else
#define hs_create_wait_event_set(n) CreateWaitEventSet(CurrentMemoryContext, (n))
#endif

/* 17 asks whether a stronger lock would do as well. */
#if PG_VERSION_NUM >= 170000
#define hs_lock_held_by_me(tag, mode) LockHeldByMe((tag), (mode), false)
#else
#define hs_lock_held_by_me(tag, mode) LockHeldByMe((tag), (mode))
#endif

/*
 * Of libpq/libpq.h, which cannot be included where the server was built with
 * GSSAPI and its headers are not installed.
 */
extern bool pq_check_connection(void);

#ifdef LIBCURL_VERSION_NUM

/* 7.85 replaced the bit mask of protocols by a list of names. */
#if LIBCURL_VERSION_NUM >= 0x075500
#define hs_curl_limit_protocols(easy, allow_http) \
	curl_easy_setopt((easy), CURLOPT_PROTOCOLS_STR, \
					 (allow_http) ? "http,https" : "https")
#else
#define hs_curl_limit_protocols(easy, allow_http) \
	curl_easy_setopt((easy), CURLOPT_PROTOCOLS, \
					 (long) ((allow_http) ? (CURLPROTO_HTTP | CURLPROTO_HTTPS) \
							 : CURLPROTO_HTTPS))
#endif

/* 7.87 can leave a name lookup's thread behind instead of joining it. */
#if LIBCURL_VERSION_NUM >= 0x075700
#define hs_curl_quick_exit(easy) \
	curl_easy_setopt((easy), CURLOPT_QUICK_EXIT, 1L)
#else
#define hs_curl_quick_exit(easy) CURLE_OK
#endif

/* 7.80 says when it is about to send a request. */
#if LIBCURL_VERSION_NUM >= 0x075000
#define HS_CURL_TELLS_SENDING true
#define HS_CURL_PREREQ_OK CURL_PREREQFUNC_OK
#define HS_CURL_PREREQ_ABORT CURL_PREREQFUNC_ABORT
#define hs_curl_set_prereq(easy, function, arg) \
	do { \
		curl_easy_setopt((easy), CURLOPT_PREREQFUNCTION, (function)); \
		curl_easy_setopt((easy), CURLOPT_PREREQDATA, (arg)); \
	} while (0)
#else
#define HS_CURL_TELLS_SENDING false
#define HS_CURL_PREREQ_OK 0
#define HS_CURL_PREREQ_ABORT 1
#define hs_curl_set_prereq(easy, function, arg) ((void) (function))
#endif

#endif							/* LIBCURL_VERSION_NUM */

#endif							/* HS_COMPAT_H */
