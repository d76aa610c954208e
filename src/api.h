/*-------------------------------------------------------------------------
 *
 * api.h
 *	  HubSpot's endpoints, and what to do about their errors.
 *
 * SQLSTATEs of remote trouble, the same everywhere:
 *	  08001  no connection, or no complete answer, after all attempts
 *	  08P01  an answer that makes no sense
 *	  28000  the token is refused
 *	  42501  the token lacks a scope
 *	  53400  the daily limit is reached, or HubSpot asks for a long pause
 *	  HV000  HubSpot refuses the request for another reason
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_API_H
#define HS_API_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "nodes/pg_list.h"

#include "json.h"

/* Most records in a page of each endpoint (facts sections 4 and 8). */
#define HS_API_LIST_LIMIT 100
#define HS_API_SEARCH_LIMIT 200
#define HS_API_BATCH_LIMIT 100
#define HS_API_OWNERS_LIMIT 500
#define HS_API_HISTORY_LIMIT 50

typedef struct HsApiStats
{
	int			requests;
	int			retries;
	int			throttled;		/* answers with status 429 */
	int64		bytes_received;
	int64		replaced;		/* characters replaced by U+FFFD */
} HsApiStats;

/* Why the last call failed.  Texts live as long as the HsApi. */
typedef struct HsApiFailure
{
	const char *reason;			/* NULL: no call failed; a constant */
	long		status;			/* 0: no answer */
	const char *category;
	const char *message;
	const char *correlation_id;
	const char *scopes;			/* that the token lacks */
} HsApiFailure;

/* For what hs_api_finish() returns NULL instead of throwing. */
typedef enum HsTolerance
{
	HS_TOLERATE_NOTHING,
	HS_TOLERATE_BAD_REQUEST,	/* status 400 */
	HS_TOLERATE_REFUSAL,		/* of what was asked, not of who asks; see
								 * refusal */
	HS_TOLERATE_MISSING_RESULTS,	/* a search with a total but no results */
	HS_TOLERATE_BAD_ANSWER,		/* any answer but about token and limits */
	HS_TOLERATE_NO_ANSWER		/* the same, and none, and that this endpoint is
								 * not for us, or not now */
} HsTolerance;

/* One party's access to the API: a run, or a single function call. */
typedef struct HsApi
{
	MemoryContext context;
	uint64		rate_key;
	const char *label;			/* for pg_stat_activity; NULL: do not report */
	int			max_retries;
	int			total_timeout_ms;
	int			longest_wait_ms;	/* for the rate limit; 0: any */
	HsTolerance tolerates;		/* for the next call only */
	const HsJson *refusal;		/* the answer that was tolerated; NULL: it was
								 * no JSON */
	long		refusal_status;
	const char *refusal_problem;	/* in the memory context of the answer */
	HsApiStats	stats;
	bool		answered;		/* a request has succeeded */
	long		daily_limit;	/* as stated last; 0: not stated */
	TimestampTz first_date;		/* HubSpot's clock in the first successful
								 * answer; 0: it told none */
	dlist_head	unsent;			/* calls whose turn has not come yet */
	char	   *token;			/* last sent, to keep it out of messages */
	MemoryContextCallback cleanup;	/* wipes it */
	HsApiFailure failure;
} HsApi;

typedef struct HsApiCall HsApiCall;

/* A property list, a search: what a page request is about. */
typedef struct HsApiSearch
{
	const char *filter_property;	/* NULL: no filter on time */
	TimestampTz from;			/* 0: open */
	TimestampTz to;				/* 0: open */
	int64		after_id;		/* ids above this one only */
	int64		before_id;		/* ids below this one only; 0: open */
	bool		descending;		/* from the highest id downwards */
	List	   *properties;		/* of char * */
} HsApiSearch;

extern HsApi *hs_api_open(uint64 rate_key, const char *label);
extern uint64 hs_api_rate_key(const char *portal_id, const char *connection);

extern bool hs_api_list_fits(const char *object_type, List *properties);
extern bool hs_api_search_fits(const HsApiSearch *search);
extern HsApiCall *hs_api_list(HsApi *api, const char *object_type,
							  List *properties, bool archived,
							  const char *after);
extern HsApiCall *hs_api_search(HsApi *api, const char *object_type,
								const HsApiSearch *search);
extern HsApiCall *hs_api_batch_read(HsApi *api, const char *object_type,
									List *properties, bool archived,
									const char *const *ids, int n);
extern HsApiCall *hs_api_batch_read_history(HsApi *api,
											const char *object_type,
											const char *property,
											bool archived,
											const char *const *ids, int n);
extern HsApiCall *hs_api_find_by_email(HsApi *api, const char *object_type,
									   List *properties,
									   const char *const *emails, int n);
extern HsApiCall *hs_api_read_by_email(HsApi *api, const char *object_type,
									   List *properties, const char *email);
extern HsApiCall *hs_api_batch_update(HsApi *api, const char *object_type,
									  const char *body);
extern HsApiCall *hs_api_properties(HsApi *api, const char *object_type);
extern HsApiCall *hs_api_create_property(HsApi *api, const char *object_type,
										 const char *body);
extern HsApiCall *hs_api_change_property(HsApi *api, const char *object_type,
										 const char *name, const char *body);
extern HsApiCall *hs_api_groups(HsApi *api, const char *object_type);
extern HsApiCall *hs_api_create_group(HsApi *api, const char *object_type,
									  const char *body);
extern HsApiCall *hs_api_owners(HsApi *api, bool archived, const char *after);
extern HsApiCall *hs_api_pipelines(HsApi *api, const char *object_type);
extern HsApiCall *hs_api_account(HsApi *api);

extern int	hs_api_wait_any(HsApi *api, HsApiCall *const *calls, int n);
extern bool hs_api_try_finish(HsApi *api, HsApiCall *call,
							  const HsJson **root);
extern int64 hs_api_delay_ms(const HsApiCall *call);
extern const HsJson *hs_api_finish(HsApi *api, HsApiCall *call);
extern void hs_api_drop(HsApiCall *call);
extern char *hs_api_refusal_text(const HsApi *api);
extern char *hs_api_safe_text(const HsApi *api, const char *text);
extern void hs_api_report(const HsApi *api, const char *what);

#endif							/* HS_API_H */
