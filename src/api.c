/*-------------------------------------------------------------------------
 *
 * api.c
 *	  HubSpot's endpoints, and what to do about their errors.
 *
 * A call is started and finished.  Starting reserves its place in the rate
 * limit and sends the request if its time has come; finishing waits for that
 * time and for the answer, and repeats the request as the retry table says.
 * Between the two the caller may store something: the request, if sent, is on
 * the wire, and nobody waits for it.
 *
 * Calls are made outside of transactions, except by functions that make one
 * bounded request before they write.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/backend_status.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "api.h"
#include "compat.h"
#include "guc.h"
#include "http.h"
#include "ratelimit.h"
#include "secret.h"

/* Longest URL and search body (facts section 4), less a reserve. */
#define MAX_URL 7500
#define MAX_SEARCH_BODY 3000

/* Longest pause that a run waits out; beyond it ends and is continued. */
#define LONGEST_PAUSE_S 600
#define LONGEST_BACKOFF_MS 60000

/* How much of a remote text goes into messages. */
#define MAX_REMOTE_TEXT 1000

typedef enum Endpoint
{
	EP_LIST,
	EP_SEARCH,
	EP_BATCH_READ,
	EP_FIND,
	EP_OBJECT,
	EP_BATCH_UPDATE,
	EP_OWNERS,
	EP_PIPELINES,
	EP_PROPERTIES,
	EP_PROPERTY,
	EP_GROUPS,
	EP_GROUP,
	EP_ACCOUNT
} Endpoint;

/* Paths by API version and object type (facts section 1). */
static const struct
{
	const char *prefix;			/* before the version */
	const char *suffix;			/* after the object type, NULL: no type */
	HsBucket	bucket;
	bool		lists;			/* an answer has results */
} endpoints[] = {
	[EP_LIST] = {"/crm/objects/", "", HS_BUCKET_BURST, true},
	[EP_SEARCH] = {"/crm/objects/", "/search", HS_BUCKET_SEARCH, true},
	[EP_BATCH_READ] = {"/crm/objects/", "/batch/read", HS_BUCKET_BURST, true},
	[EP_FIND] = {"/crm/objects/", "/batch/read", HS_BUCKET_BURST, true},
	[EP_OBJECT] = {"/crm/objects/", "", HS_BUCKET_BURST, false},
	[EP_BATCH_UPDATE] = {"/crm/objects/", "/batch/update", HS_BUCKET_BURST, false},
	[EP_OWNERS] = {"/crm/owners/", NULL, HS_BUCKET_BURST, true},
	[EP_PIPELINES] = {"/crm/pipelines/", "", HS_BUCKET_BURST, true},
	[EP_PROPERTIES] = {"/crm/properties/", "", HS_BUCKET_BURST, true},
	[EP_PROPERTY] = {"/crm/properties/", "", HS_BUCKET_BURST, false},
	[EP_GROUPS] = {"/crm/properties/", "/groups", HS_BUCKET_BURST, true},
	[EP_GROUP] = {"/crm/properties/", "/groups", HS_BUCKET_BURST, false},
	[EP_ACCOUNT] = {"/account-info/", "/details", HS_BUCKET_BURST, false},
};

typedef enum Action
{
	ACT_DONE,
	ACT_STOP,					/* repeating it would not help */
	ACT_RETRY,					/* after a short pause */
	ACT_RETRY_LOCKED,			/* after at least some seconds */
	ACT_THROTTLED,				/* a rate limit */
	ACT_TOKEN					/* once more: the token may have been rotated */
} Action;

/*
 * Facts section 12; what is not here stops.  477 says when, up to a day later.
 */
static const struct
{
	long		status;
	Action		action;
} retry_table[] = {
	{401, ACT_TOKEN},
	{408, ACT_RETRY},
	{423, ACT_RETRY_LOCKED},
	{429, ACT_THROTTLED},
	{477, ACT_RETRY},
	{500, ACT_RETRY},
	{502, ACT_RETRY},
	{503, ACT_RETRY},
	{504, ACT_RETRY},
	{521, ACT_RETRY},
	{522, ACT_RETRY},
	{523, ACT_RETRY},
	{524, ACT_RETRY},
	{525, ACT_RETRY},
	{526, ACT_RETRY},
};

struct HsApiCall
{
	MemoryContext context;
	Endpoint	endpoint;
	char	   *path;			/* for messages: without the query */
	char	   *url;
	char	   *body;			/* NULL: GET */
	const char *method;			/* NULL: GET or POST */
	TimestampTz due;
	int			attempts;
	bool		token_refused;	/* once already */
	HsHttpCall *http;			/* NULL: not sent yet */
	bool		is_queued;
	dlist_node	node;			/* of HsApi.unsent, if it is queued */
};

/* What came of one attempt. */
typedef struct Attempt
{
	Action		action;
	const HsHttpResult *result;
	const HsJson *root;			/* NULL: no JSON */
	const char *problem;		/* NULL if done */
	const char *policy;			/* of a rate limit, may be NULL */
} Attempt;

/* ------------------------------------------------------------------------
 * Building requests
 * ------------------------------------------------------------------------
 */

/* MemoryContextCallback: the API's context is going. */
static void
wipe_token(void *arg)
{
	HsApi	   *api = (HsApi *) arg;

	if (api->token != NULL)
		explicit_bzero(api->token, strlen(api->token));
}

/*
 * Opens access to the API.  It and all its calls belong to the current memory
 * context.  `label` is copied; with NULL nothing is reported to
 * pg_stat_activity.
 */
HsApi *
hs_api_open(uint64 rate_key, const char *label)
{
	HsApi	   *api = palloc0(sizeof(HsApi));

	api->context = CurrentMemoryContext;
	api->cleanup.func = wipe_token;
	api->cleanup.arg = api;
	MemoryContextRegisterResetCallback(api->context, &api->cleanup);
	api->rate_key = rate_key;
	api->label = label ? pstrdup(label) : NULL;
	dlist_init(&api->unsent);
	api->max_retries = hs_max_retries;
	api->total_timeout_ms = hs_request_timeout;
	return api;
}

/*
 * The key under which processes share a budget: the account's number, or,
 * as long as it is not known, this database's connection.
 */
uint64
hs_api_rate_key(const char *portal_id, const char *connection)
{
	if (portal_id != NULL)
		return hash_bytes_extended((const unsigned char *) portal_id,
								   strlen(portal_id), 0);
	return hash_bytes_extended((const unsigned char *) connection,
							   strlen(connection), MyDatabaseId);
}

/* Appends the path of an endpoint. */
static void
append_path(StringInfo out, Endpoint endpoint, const char *object_type)
{
	appendStringInfoString(out, endpoints[endpoint].prefix);
	appendStringInfoString(out, hs_guc_api_version());
	if (object_type != NULL)
		appendStringInfo(out, "/%s", hs_http_escape(object_type));
	if (endpoints[endpoint].suffix != NULL)
		appendStringInfoString(out, endpoints[endpoint].suffix);
}

/* Appends names separated by commas, escaped for a query. */
static void
append_names(StringInfo out, List *names)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoChar(out, ',');
		appendStringInfoString(out, hs_http_escape(lfirst(lc)));
	}
}

/* The query of a list request, "?" included. */
static char *
list_query(List *properties, bool archived, const char *after)
{
	StringInfoData query;

	initStringInfo(&query);
	appendStringInfo(&query, "?limit=%d", HS_API_LIST_LIMIT);
	if (archived)
		appendStringInfoString(&query, "&archived=true");
	if (properties != NIL)
	{
		appendStringInfoString(&query, "&properties=");
		append_names(&query, properties);
	}
	if (after != NULL)
		appendStringInfo(&query, "&after=%s", hs_http_escape(after));
	return query.data;
}

/* Appends a JSON array of strings. */
static void
append_json_names(StringInfo out, List *names)
{
	ListCell   *lc;

	appendStringInfoChar(out, '[');
	foreach(lc, names)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoChar(out, ',');
		hs_json_append_string(out, lfirst(lc));
	}
	appendStringInfoChar(out, ']');
}

/* Appends a filter on the time property, with a comma, unless it is open. */
static void
append_time_filter(StringInfo out, const HsApiSearch *search,
				   const char *operator, TimestampTz bound)
{
	if (bound == 0 || search->filter_property == NULL)
		return;
	appendStringInfoString(out, "{\"propertyName\":");
	hs_json_append_string(out, search->filter_property);
	appendStringInfo(out, ",\"operator\":\"%s\",\"value\":\"" INT64_FORMAT "\"},",
					 operator, hs_json_epoch_ms(bound));
}

/* Appends a filter on the ids, in one direction. */
static void
append_id_filter(StringInfo out, const char *operator, int64 bound)
{
	appendStringInfo(out,
					 "{\"propertyName\":\"hs_object_id\",\"operator\":\"%s\",\"value\":\""
					 INT64_FORMAT "\"}",
					 operator, bound);
}

/*
 * The body of a search: one keyset page, without `after` and, for changes,
 * without an upper bound, since records edited meanwhile would leave the
 * window and shift the others (facts section 4).
 */
static char *
search_body(const HsApiSearch *search)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"filterGroups\":[{\"filters\":[");
	append_time_filter(&body, search, "GTE", search->from);
	append_time_filter(&body, search, "LT", search->to);
	append_id_filter(&body, "GT", search->after_id);
	if (search->before_id != 0)
	{
		appendStringInfoChar(&body, ',');
		append_id_filter(&body, "LT", search->before_id);
	}
	appendStringInfo(&body,
					 "]}],\"sorts\":[{\"propertyName\":\"hs_object_id\",\"direction\":\"%sCENDING\"}],"
					 "\"properties\":",
					 search->descending ? "DES" : "AS");
	append_json_names(&body, search->properties);
	appendStringInfo(&body, ",\"limit\":%d}", HS_API_SEARCH_LIMIT);
	return body.data;
}

/*
 * Whether a list request with these properties stays within the length of a
 * URL.  If not, ids are listed and records are read by batch.
 */
bool
hs_api_list_fits(const char *object_type, List *properties)
{
	StringInfoData url;

	initStringInfo(&url);
	appendStringInfoString(&url, hs_api_url);
	append_path(&url, EP_LIST, object_type);
	appendStringInfoString(&url, list_query(properties, true,
											"18446744073709551615"));
	return url.len <= MAX_URL;
}

/*
 * The same for the body of a search; of one that goes downwards, too, since its
 * second bound is shorter than those on time.
 */
bool
hs_api_search_fits(const HsApiSearch *search)
{
	HsApiSearch longest = *search;

	longest.after_id = PG_INT64_MAX;
	return strlen(search_body(&longest)) <= MAX_SEARCH_BODY;
}

/* ------------------------------------------------------------------------
 * Sending
 * ------------------------------------------------------------------------
 */

/*
 * Shows in pg_stat_activity what this process does or waits for.
 */
void
hs_api_report(const HsApi *api, const char *what)
{
	char		activity[160];

	if (api->label == NULL)
		return;
	snprintf(activity, sizeof(activity), "%s: %s", api->label, what);
	pgstat_report_activity(STATE_RUNNING, activity);
}

/*
 * Reads the token.  That is done for each request, so that rotating it needs
 * nothing but a new file.
 */
static const char *
current_token(HsApi *api)
{
	MemoryContext old = MemoryContextSwitchTo(api->context);

	hs_secret_wipe(api->token);
	api->token = NULL;
	api->failure.reason = "token_file";
	api->token = hs_secret_read_token();
	api->failure.reason = NULL;
	MemoryContextSwitchTo(old);
	return api->token;
}

/* Puts the request on the wire. */
static void
send_request(HsApi *api, HsApiCall *call)
{
	MemoryContext old = MemoryContextSwitchTo(call->context);
	HsHttpOptions options = {
		.allow_http = hs_guc_api_is_plain_http(),
		.proxy = hs_proxy,
		.ca_file = hs_ca_file,
		.connect_timeout_ms = Min(hs_connect_timeout, api->total_timeout_ms),
		.total_timeout_ms = api->total_timeout_ms,
		.low_speed_s = hs_low_speed_timeout,
		.max_body = (int64) hs_max_response_size * 1024
	};
	HsHttpRequest request = {
		.url = call->url,
		.body = call->body,
		.body_len = call->body ? strlen(call->body) : 0,
		.method = call->method,
		.options = &options
	};

	request.bearer = current_token(api);
	call->attempts++;
	api->stats.requests++;
	if (call->attempts > 1)
		api->stats.retries++;
	call->http = hs_http_start(&request);
	MemoryContextSwitchTo(old);
}

/*
 * Whether the request may be sent now.  If HubSpot has asked for silence
 * since its place was reserved, it gets another one.
 */
static bool
is_due(const HsApi *api, HsApiCall *call)
{
	HsBucket	bucket = endpoints[call->endpoint].bucket;
	TimestampTz now = GetCurrentTimestamp();

	if (call->due > now)
		return false;
	if (hs_ratelimit_held_until(api->rate_key, bucket) <= now)
		return true;
	call->due = hs_ratelimit_reserve(api->rate_key, bucket);
	return false;
}

/* Has the request sent when its time comes, whoever is waited for then. */
static void
enqueue(HsApi *api, HsApiCall *call)
{
	dlist_push_tail(&api->unsent, &call->node);
	call->is_queued = true;
}

static void
dequeue(HsApiCall *call)
{
	if (call->is_queued)
		dlist_delete(&call->node);
	call->is_queued = false;
}

/*
 * Sends the requests whose time has come.  Returns in how many milliseconds
 * that of the next one comes, PG_INT32_MAX if none is left.
 */
static long
send_due(HsApi *api)
{
	TimestampTz next = DT_NOEND;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &api->unsent)
	{
		HsApiCall  *call = dlist_container(HsApiCall, node, iter.cur);

		if (is_due(api, call))
		{
			dequeue(call);
			send_request(api, call);
		}
		else
			next = Min(next, call->due);
	}
	if (next == DT_NOEND)
		return PG_INT32_MAX;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next);
}

/*
 * Starts a call.  It belongs to the API's memory context; what leads to it
 * may be in a shorter-lived one.  The query is "" or begins with "?", or with
 * "/" for what no message may show.
 */
static HsApiCall *
start_method(HsApi *api, Endpoint endpoint, const char *method,
			 const char *object_type, const char *query, const char *body)
{
	MemoryContext context = AllocSetContextCreate(api->context,
												  "hubspot_sync API call",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	HsApiCall  *call = palloc0(sizeof(HsApiCall));
	StringInfoData path;
	int			base_len;

	call->context = context;
	call->endpoint = endpoint;
	call->method = method;
	initStringInfo(&path);
	append_path(&path, endpoint, object_type);
	call->path = path.data;
	base_len = strlen(hs_api_url);
	if (base_len > 0 && hs_api_url[base_len - 1] == '/')
		base_len--;
	call->url = psprintf("%.*s%s%s", base_len, hs_api_url, path.data, query);
	call->body = body ? pstrdup(body) : NULL;
	call->due = hs_ratelimit_reserve(api->rate_key,
									 endpoints[endpoint].bucket);
	if (is_due(api, call))
		send_request(api, call);
	else
		enqueue(api, call);
	MemoryContextSwitchTo(old);
	return call;
}

/* Starts a GET, or with a body a POST. */
static HsApiCall *
start_call(HsApi *api, Endpoint endpoint, const char *object_type,
		   const char *query, const char *body)
{
	return start_method(api, endpoint, NULL, object_type, query, body);
}

/*
 * A page of records in the order of their ids.  `after` is the cursor of the
 * previous page, NULL for the first; `archived` asks for the recycle bin.
 */
HsApiCall *
hs_api_list(HsApi *api, const char *object_type, List *properties,
			bool archived, const char *after)
{
	return start_call(api, EP_LIST, object_type,
					  list_query(properties, archived, after), NULL);
}

/*
 * A keyset page of a search, in the order of ids, upwards or downwards.
 */
HsApiCall *
hs_api_search(HsApi *api, const char *object_type, const HsApiSearch *search)
{
	return start_call(api, EP_SEARCH, object_type, "", search_body(search));
}

/* The body of a batch read. */
static char *
batch_body(List *properties, List *with_history, const char *const *ids, int n)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"properties\":");
	append_json_names(&body, properties);
	appendStringInfoString(&body, ",\"propertiesWithHistory\":");
	append_json_names(&body, with_history);
	appendStringInfoString(&body, ",\"inputs\":[");
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(&body, i > 0 ? ",{\"id\":" : "{\"id\":");
		hs_json_append_string(&body, ids[i]);
		appendStringInfoChar(&body, '}');
	}
	appendStringInfoString(&body, "]}");
	return body.data;
}

/*
 * At most HS_API_BATCH_LIMIT records by id.  Missing ones are missing from
 * the results, which come in any order (facts section 4).
 */
HsApiCall *
hs_api_batch_read(HsApi *api, const char *object_type, List *properties,
				  bool archived, const char *const *ids, int n)
{
	Assert(n <= HS_API_BATCH_LIMIT);
	return start_call(api, EP_BATCH_READ, object_type,
					  archived ? "?archived=true" : "",
					  batch_body(properties, NIL, ids, n));
}

/*
 * At most HS_API_HISTORY_LIMIT records by id with one property and all the
 * values it has had.  The limit is stated for lists (facts section 4); that
 * it holds for batches too is unverified.
 */
HsApiCall *
hs_api_batch_read_history(HsApi *api, const char *object_type,
						  const char *property, bool archived,
						  const char *const *ids, int n)
{
	List	   *names = list_make1(unconstify(char *, property));

	Assert(n <= HS_API_HISTORY_LIMIT);
	return start_call(api, EP_BATCH_READ, object_type,
					  archived ? "?archived=true" : "",
					  batch_body(names, names, ids, n));
}

/*
 * At most HS_API_BATCH_LIMIT records by e-mail address.  Addresses that lead
 * nowhere are named in the errors; two that lead to one record bring it once
 * (facts section 4).
 */
HsApiCall *
hs_api_find_by_email(HsApi *api, const char *object_type, List *properties,
					 const char *const *emails, int n)
{
	StringInfoData body;

	Assert(n <= HS_API_BATCH_LIMIT);
	initStringInfo(&body);
	appendStringInfoString(&body, "{\"idProperty\":\"email\",");
	appendStringInfoString(&body, batch_body(properties, NIL, emails, n) + 1);
	return start_call(api, EP_FIND, object_type, "", body.data);
}

/*
 * One record by e-mail address; status 404 if there is none.
 */
HsApiCall *
hs_api_read_by_email(HsApi *api, const char *object_type, List *properties,
					 const char *email)
{
	StringInfoData query;

	initStringInfo(&query);
	appendStringInfo(&query, "/%s?idProperty=email&properties=",
					 hs_http_escape(email));
	append_names(&query, properties);
	return start_call(api, EP_OBJECT, object_type, query.data, NULL);
}

/*
 * Changes records; the body is made by who knows them.  Repeating it after an
 * answer that got lost changes nothing more.
 */
HsApiCall *
hs_api_batch_update(HsApi *api, const char *object_type, const char *body)
{
	return start_call(api, EP_BATCH_UPDATE, object_type, "", body);
}

/*
 * Creates a property, or restores an archived one (facts section 9).
 */
HsApiCall *
hs_api_create_property(HsApi *api, const char *object_type, const char *body)
{
	return start_call(api, EP_PROPERTY, object_type, "", body);
}

/*
 * Changes the definition of a property.
 */
HsApiCall *
hs_api_change_property(HsApi *api, const char *object_type, const char *name,
					   const char *body)
{
	return start_method(api, EP_PROPERTY, "PATCH", object_type,
						psprintf("/%s", hs_http_escape(name)), body);
}

/*
 * All groups of properties.
 */
HsApiCall *
hs_api_groups(HsApi *api, const char *object_type)
{
	return start_call(api, EP_GROUPS, object_type, "", NULL);
}

/*
 * Creates a group of properties; status 409 if there is one of that name.
 */
HsApiCall *
hs_api_create_group(HsApi *api, const char *object_type, const char *body)
{
	return start_call(api, EP_GROUP, object_type, "", body);
}

/*
 * The definitions of all properties of an object type.
 */
HsApiCall *
hs_api_properties(HsApi *api, const char *object_type)
{
	return start_call(api, EP_PROPERTIES, object_type, "", NULL);
}

/*
 * A page of owners, active or archived ones.
 */
HsApiCall *
hs_api_owners(HsApi *api, bool archived, const char *after)
{
	StringInfoData query;

	initStringInfo(&query);
	appendStringInfo(&query, "?limit=%d", HS_API_OWNERS_LIMIT);
	if (archived)
		appendStringInfoString(&query, "&archived=true");
	if (after != NULL)
		appendStringInfo(&query, "&after=%s", hs_http_escape(after));
	return start_call(api, EP_OWNERS, NULL, query.data, NULL);
}

/*
 * All pipelines of an object type with their stages.
 */
HsApiCall *
hs_api_pipelines(HsApi *api, const char *object_type)
{
	return start_call(api, EP_PIPELINES, object_type, "", NULL);
}

/*
 * The account's details: the cheapest way to try a token (facts section 2).
 */
HsApiCall *
hs_api_account(HsApi *api)
{
	return start_call(api, EP_ACCOUNT, NULL, "", NULL);
}

/* ------------------------------------------------------------------------
 * Judging answers
 * ------------------------------------------------------------------------
 */

/*
 * A copy of a remote text in the current memory context, of bounded length and
 * without the token, which a remote may repeat to us.
 */
char *
hs_api_safe_text(const HsApi *api, const char *text)
{
	StringInfoData safe;
	const char *found;

	initStringInfo(&safe);
	while (api->token != NULL && (found = strstr(text, api->token)) != NULL)
	{
		appendBinaryStringInfo(&safe, text, found - text);
		appendStringInfoString(&safe, "<token>");
		text = found + strlen(api->token);
	}
	appendStringInfoString(&safe, text);
	return hs_json_clip(safe.data, MAX_REMOTE_TEXT);
}

/*
 * What HubSpot said when it refused what was tolerated, or what else was wrong
 * with its answer, in the current memory context.
 */
char *
hs_api_refusal_text(const HsApi *api)
{
	const char *message = hs_json_text(hs_json_member(api->refusal, "message"));

	return hs_api_safe_text(api, message ? message : api->refusal_problem);
}

/* The same in the API's memory. */
static const char *
safe_text(const HsApi *api, const char *text)
{
	return MemoryContextStrdup(api->context, hs_api_safe_text(api, text));
}

/* The same of a JSON value, NULL for none. */
static const char *
remote_text(const HsApi *api, const HsJson *value)
{
	const char *text = hs_json_text(value);

	return text == NULL || text[0] == '\0' ? NULL : safe_text(api, text);
}

/*
 * The scopes an answer asks for, separated by commas, NULL if it names none
 * (facts section 2).
 */
static const char *
missing_scopes(const HsApi *api, const HsJson *root)
{
	const HsJson *errors = hs_json_member(root, "errors");
	StringInfoData scopes;

	initStringInfo(&scopes);
	for (int i = 0; i < hs_json_length(errors); i++)
	{
		const HsJson *names = hs_json_path(hs_json_element(errors, i),
										   "context",
										   "requiredGranularScopes");

		for (int j = 0; j < hs_json_length(names) && scopes.len < MAX_REMOTE_TEXT; j++)
		{
			const char *name = hs_json_text(hs_json_element(names, j));

			if (name != NULL)
				appendStringInfo(&scopes, "%s%s", scopes.len ? ", " : "", name);
		}
	}
	return scopes.len ? safe_text(api, scopes.data) : NULL;
}

/* Keeps what an error's body says, for messages and the run's log. */
static void
keep_failure(HsApi *api, const Attempt *attempt)
{
	HsApiFailure *f = &api->failure;

	memset(f, 0, sizeof(HsApiFailure));
	f->status = attempt->result->status;
	f->category = remote_text(api, hs_json_member(attempt->root, "category"));
	if (f->category == NULL)
		f->category = remote_text(api, hs_json_member(attempt->root,
													  "errorType"));
	f->message = remote_text(api, hs_json_member(attempt->root, "message"));
	f->correlation_id = remote_text(api, hs_json_member(attempt->root,
														"correlationId"));
	f->scopes = missing_scopes(api, attempt->root);
	if (f->message == NULL)
		f->message = safe_text(api, attempt->problem);
}

/* The action for a status that is no success. */
static Action
action_for(long status)
{
	for (size_t i = 0; i < lengthof(retry_table); i++)
	{
		if (retry_table[i].status == status)
			return retry_table[i].action;
	}
	return status >= 500 ? ACT_RETRY : ACT_STOP;
}

/* The action for a request that got no complete answer. */
static Action
action_for_failure(HsHttpFailure failure)
{
	return failure == HS_HTTP_TOO_LARGE ? ACT_STOP : ACT_RETRY;
}

/* A search that announces records and brings none. */
static const char *const missing_results =
	"the answer has no results but a total";

/* Whether a batch's errors are about nothing but records that are not there. */
static bool
only_missing_records(const HsJson *root)
{
	const HsJson *errors = hs_json_member(root, "errors");

	for (int i = 0; i < hs_json_length(errors); i++)
	{
		const char *category =
			hs_json_text(hs_json_member(hs_json_element(errors, i), "category"));

		if (category == NULL || strcmp(category, "OBJECT_NOT_FOUND") != 0)
			return false;
	}
	return true;
}

/*
 * What is wrong with an answer of status 2xx, NULL if it makes sense.  An
 * answer that forgets its results must not pass for an empty page: the walk
 * would end there.
 */
static const char *
find_problem(const HsApiCall *call, const HsHttpResult *r,
			 const HsJsonParse *parse)
{
	const HsJson *results = hs_json_member(parse->root, "results");
	int64		total;

	if (r->body_len == 0)
		return "the answer is empty";
	if (parse->error != NULL)
		return psprintf("the answer is not valid JSON: %s", parse->error);
	if (parse->root == NULL)
		return psprintf("the answer has content type \"%s\"", r->content_type);
	if (hs_json_type(parse->root) != HS_JSON_OBJECT)
		return "the answer is not a JSON object";
	if (!endpoints[call->endpoint].lists)
		return NULL;
	if (!hs_json_has(parse->root, "results") ||
		(hs_json_type(results) != HS_JSON_ARRAY &&
		 hs_json_type(results) != HS_JSON_NULL))
		return "the answer has no results";
	if (call->endpoint == EP_SEARCH && hs_json_length(results) == 0 &&
		hs_json_int64(hs_json_member(parse->root, "total"), &total) && total > 0)
		return missing_results;
	if (call->endpoint == EP_BATCH_READ && !only_missing_records(parse->root))
		return "the answer has errors for some records";
	return NULL;
}

/*
 * Judges the answer to one attempt, and learns from its headers.  The JSON
 * belongs to the current memory context.
 */
static Attempt
judge(HsApi *api, HsApiCall *call)
{
	const HsHttpResult *r = hs_http_result(call->http);
	Attempt		attempt = {.result = r};
	HsJsonParse parse = {0};

	api->stats.bytes_received += r->bytes_received;
	hs_ratelimit_learn(api->rate_key, r->limit_max, r->limit_interval_ms,
					   r->limit_remaining);
	if (r->limit_daily > 0)
		api->daily_limit = r->limit_daily;
	if (r->failure != HS_HTTP_OK)
	{
		attempt.action = action_for_failure(r->failure);
		attempt.problem = r->error;
		return attempt;
	}
	if (r->body_len > 0 && (r->content_type[0] == '\0' ||
							strcasestr(r->content_type, "json") != NULL))
		parse = hs_json_parse(r->body, r->body_len);
	attempt.root = parse.root;
	api->stats.replaced += parse.replaced;
	attempt.policy = hs_json_text(hs_json_member(parse.root, "policyName"));
	if (r->status >= 200 && r->status < 300)
	{
		attempt.problem = find_problem(call, r, &parse);
		if (attempt.problem != NULL)
			attempt.action = ACT_RETRY;
		else if (!api->answered)
		{
			api->answered = true;
			api->first_date = r->date;
		}
		return attempt;
	}
	attempt.action = action_for(r->status);
	attempt.problem = psprintf("the answer has status %ld", r->status);
	return attempt;
}

/*
 * Seconds that Retry-After asks for, -1 if it is absent or unreadable.
 * HubSpot uses seconds in one place and milliseconds in another; more than
 * ten minutes are taken for milliseconds (facts section 3), except for
 * status 477, whose seconds are documented.
 */
static double
retry_after_s(const HsHttpResult *r)
{
	char	   *end;
	double		value = strtod(r->retry_after, &end);

	if (end == r->retry_after || *end != '\0' || !isfinite(value) || value < 0)
		return -1;
	if (value > LONGEST_PAUSE_S && r->status != 477)
		value /= 1000;
	return value;
}

/* Whether a rate limit is that of the day, which waiting does not lift. */
static bool
is_daily_limit(const Attempt *attempt)
{
	const char *message;

	if (attempt->policy != NULL)
		return strcmp(attempt->policy, "DAILY") == 0;
	/* Older answers name no policy; their message is all there is. */
	message = hs_json_text(hs_json_member(attempt->root, "message"));
	return message != NULL && strstr(message, "daily") != NULL;
}

/* Exponential back-off with full jitter, in milliseconds. */
static double
backoff_ms(double base_ms, int attempts)
{
	double		ceiling = base_ms * pow(2, Min(attempts - 1, 20));

	return Min(ceiling, LONGEST_BACKOFF_MS) *
		pg_prng_double(&pg_global_prng_state);
}

/* How long to wait before the next attempt, in milliseconds. */
static double
delay_ms(const HsApiCall *call, const Attempt *attempt)
{
	double		after = retry_after_s(attempt->result);
	bool		search = endpoints[call->endpoint].bucket == HS_BUCKET_SEARCH;

	if (attempt->action == ACT_TOKEN)
		return 0;
	if (after >= 0)
		return Min(after, LONGEST_PAUSE_S) * 1000;
	if (attempt->action == ACT_THROTTLED)
	{
		bool		secondly = attempt->policy != NULL
			? strcmp(attempt->policy, "SECONDLY") == 0 : search;

		return backoff_ms(hs_retry_delay * (secondly ? 2.0 : 20.0),
						  call->attempts);
	}
	if (attempt->action == ACT_RETRY_LOCKED)
		return hs_retry_delay * 4.0 + backoff_ms(hs_retry_delay, call->attempts);
	return backoff_ms(hs_retry_delay, call->attempts);
}

/* Whether HubSpot asks for a pause that no run waits out. */
static bool
is_long_pause(const Attempt *attempt)
{
	return retry_after_s(attempt->result) > LONGEST_PAUSE_S;
}

/*
 * Whether another attempt is to be made.
 */
static bool
may_retry(const HsApi *api, const HsApiCall *call, const Attempt *attempt)
{
	if (call->attempts > api->max_retries)
		return false;
	switch (attempt->action)
	{
		case ACT_STOP:
			return false;
		case ACT_TOKEN:
			return !call->token_refused;
		case ACT_THROTTLED:
			return !is_daily_limit(attempt) && !is_long_pause(attempt);
		default:
			return !is_long_pause(attempt);
	}
}

/* ------------------------------------------------------------------------
 * Giving up
 * ------------------------------------------------------------------------
 */

/* How each reason is reported. */
static const struct
{
	const char *reason;
	int			sqlstate;
	const char *message;
	const char *hint;
} reports[] = {
	{"auth", ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
	 "HubSpot refuses the access token",
	 "Create a new token in HubSpot and write it into the file named by \"hubspot_sync.access_token_file\"."},
	{"scopes", ERRCODE_INSUFFICIENT_PRIVILEGE,
	 "the HubSpot access token lacks a scope",
	 "Add the missing scopes to the service key or private app in HubSpot."},
	{"daily_limit", ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
	 "HubSpot's daily request limit is reached",
	 "The next run continues where this one stopped; the limit is lifted at midnight of the HubSpot account's time zone."},
	{"retry_later", ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
	 "HubSpot asks for a longer pause",
	 "The next run continues where this one stopped."},
	{"redirect", ERRCODE_FDW_ERROR,
	 "HubSpot answered with a redirect, which is not followed",
	 "A redirect would carry the token to another place. Check \"hubspot_sync.api_url\"."},
	{"too_large", ERRCODE_FDW_ERROR,
	 "HubSpot's answer is too large",
	 "Raise \"hubspot_sync.max_response_size\" or ask for fewer properties."},
	{"refused", ERRCODE_FDW_ERROR, "HubSpot refuses the request", NULL},
	{"gave_up", ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
	 "gave up on a request to HubSpot",
	 "The next run continues where this one stopped."},
};

/* Whether HubSpot refuses a request for want of scopes (facts section 2). */
static bool
is_about_scopes(const Attempt *attempt)
{
	const char *category = hs_json_text(hs_json_member(attempt->root,
													   "category"));

	return attempt->result->status == 403 && category != NULL &&
		strcmp(category, "MISSING_SCOPES") == 0;
}

/* The reason that fits the last attempt; see the table above. */
static const char *
reason_for(const Attempt *attempt)
{
	const HsHttpResult *r = attempt->result;

	if (r->failure == HS_HTTP_TOO_LARGE)
		return "too_large";
	if (r->failure == HS_HTTP_OK && r->status >= 300 && r->status < 400)
		return "redirect";
	if (attempt->action == ACT_TOKEN)
		return "auth";
	if (attempt->action == ACT_THROTTLED && is_daily_limit(attempt))
		return "daily_limit";
	if (attempt->action == ACT_STOP)
		return is_about_scopes(attempt) ? "scopes" : "refused";
	return is_long_pause(attempt) ? "retry_later" : "gave_up";
}

static const char *
method_name(const HsApiCall *call)
{
	if (call->method != NULL)
		return call->method;
	return call->body ? "POST" : "GET";
}

/*
 * Throws the error for a call whose last attempt failed, after keeping what
 * is known about it in api->failure.
 */
pg_noreturn static void
give_up(HsApi *api, const HsApiCall *call, const Attempt *attempt)
{
	HsApiFailure *f = &api->failure;
	const char *reason = reason_for(attempt);
	size_t		i = 0;

	keep_failure(api, attempt);
	f->reason = reason;
	while (strcmp(reports[i].reason, reason) != 0)
		i++;
	ereport(ERROR,
			(errcode(reports[i].sqlstate),
			 f->scopes != NULL
			 ? errmsg("%s: %s", reports[i].message, f->scopes)
			 : errmsg("%s: %s", reports[i].message, f->message),
			 errdetail_internal("%s %s: %s; status %ld, category %s, correlation id %s; attempts: %d.",
								method_name(call), call->path,
								f->message, f->status,
								f->category ? f->category : "none",
								f->correlation_id ? f->correlation_id : "none",
								call->attempts),
			 reports[i].hint ? errhint("%s", reports[i].hint) : 0));
}

/*
 * Publishes that the rate limit demands a pause, in milliseconds: others have
 * to keep it, whether this call is repeated or not.  No pause helps against
 * the limit of the day.
 */
static void
note_throttle(HsApi *api, const HsApiCall *call, const Attempt *attempt,
			  double delay)
{
	api->stats.throttled++;
	if (!is_daily_limit(attempt))
		hs_ratelimit_hold(api->rate_key, endpoints[call->endpoint].bucket,
						  (int64) delay);
}

/* Tells the log of an attempt that is to be repeated. */
static void
report_retry(const HsApi *api, const HsApiCall *call, const Attempt *attempt,
			 double delay)
{
	ereport(DEBUG1,
			(errmsg_internal("hubspot_sync: %s: %s, next attempt in %.0f ms",
							 call->path, hs_api_safe_text(api, attempt->problem),
							 delay)));
}

/*
 * Queues the next attempt, after a delay in milliseconds.
 */
static void
schedule_retry(HsApi *api, HsApiCall *call, const Attempt *attempt,
			   double delay)
{
	TimestampTz reserved =
		hs_ratelimit_reserve(api->rate_key, endpoints[call->endpoint].bucket);

	call->token_refused |= attempt->action == ACT_TOKEN;
	call->due = Max(reserved,
					GetCurrentTimestamp() + (int64) (delay * 1000));
	report_retry(api, call, attempt, delay);
	hs_http_finish(call->http);
	call->http = NULL;
	enqueue(api, call);
}

/* Throws if the rate limit would keep a hurried caller for too long. */
static void
check_patience(HsApi *api, TimestampTz due)
{
	TimestampTz limit = GetCurrentTimestamp() +
		(int64) api->longest_wait_ms * 1000;

	if (api->longest_wait_ms == 0 || due <= limit)
		return;
	api->failure.reason = "rate_limit";
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("the account's request budget is used up"),
			 errhint("Try again in a moment.")));
}

/* Whether a reason for giving up says that one answer is of no use. */
static bool
is_about_answer(const char *reason)
{
	return strcmp(reason, "refused") == 0 || strcmp(reason, "gave_up") == 0 ||
		strcmp(reason, "redirect") == 0 || strcmp(reason, "too_large") == 0;
}

/* Whether the caller goes on without this answer. */
static bool
is_tolerated(HsTolerance tolerates, const Attempt *attempt)
{
	const char *reason = reason_for(attempt);

	switch (tolerates)
	{
		case HS_TOLERATE_BAD_REQUEST:
			return attempt->result->status == 400;
		case HS_TOLERATE_REFUSAL:
			return strcmp(reason, "refused") == 0 &&
				attempt->result->status != 403;
		case HS_TOLERATE_MISSING_RESULTS:
			return attempt->problem == missing_results;
		case HS_TOLERATE_BAD_ANSWER:
			return attempt->result->status != 0 && is_about_answer(reason);
		case HS_TOLERATE_NO_ANSWER:
			return is_about_answer(reason) ||
				strcmp(reason, "retry_later") == 0 ||
				strcmp(reason, "scopes") == 0;
		case HS_TOLERATE_NOTHING:
			break;
	}
	return false;
}

/* What a process that waits for a call waits for. */
static const char *
waits_for(const HsApiCall *call)
{
	if (call->http != NULL)
		return "waiting for HubSpot";
	return call->attempts > 0
		? "waiting to repeat a request" : "waiting for the rate limit";
}

/* Whether the call's present attempt was made and has come to its end. */
static bool
is_answered(HsApiCall *call)
{
	return call->http != NULL && hs_http_is_done(call->http);
}

/*
 * Waits until the call's present attempt is answered.  Meanwhile all others
 * go on, too, and are sent when their time comes.
 */
static void
perform(HsApi *api, HsApiCall *call)
{
	const char *shown = NULL;

	for (;;)
	{
		long		ms = send_due(api);

		if (is_answered(call))
			return;
		if (call->http == NULL)
			check_patience(api, call->due);
		if (shown != waits_for(call))
			hs_api_report(api, shown = waits_for(call));
		hs_http_turn(ms);
	}
}

/*
 * Waits until one of the calls, some of which may be NULL, is answered for
 * the moment, and returns its place; the first one where there are several.
 * It is to be finished then, which may mean repeating it:
 * hs_api_try_finish() does not wait for that.
 */
int
hs_api_wait_any(HsApi *api, HsApiCall *const *calls, int n)
{
	hs_api_report(api, "waiting for HubSpot");
	for (;;)
	{
		long		ms = send_due(api);

		for (int i = 0; i < n; i++)
		{
			if (calls[i] != NULL && is_answered(calls[i]))
				return i;
		}
		hs_http_turn(ms);
	}
}

/*
 * Finishes a call whose present attempt is answered, as hs_api_wait_any() has
 * said, without waiting.  Returns false if the request is to be repeated when
 * its time comes, for which the caller may wait as before.  Else sets the
 * answer, as hs_api_finish() returns it, and the call is freed.  Throws as that
 * does.  Clears api->tolerates in any case.
 */
bool
hs_api_try_finish(HsApi *api, HsApiCall *call, const HsJson **root)
{
	HsTolerance tolerates = api->tolerates;
	Attempt		attempt = judge(api, call);

	*root = attempt.root;
	api->tolerates = HS_TOLERATE_NOTHING;
	api->refusal = NULL;
	api->refusal_status = 0;
	if (attempt.action != ACT_DONE)
	{
		double		delay = delay_ms(call, &attempt);

		if (attempt.action == ACT_THROTTLED)
			note_throttle(api, call, &attempt, delay);
		if (may_retry(api, call, &attempt))
		{
			schedule_retry(api, call, &attempt, delay);
			return false;
		}
		if (!is_tolerated(tolerates, &attempt))
			give_up(api, call, &attempt);
		api->refusal = attempt.root;
		api->refusal_status = attempt.result->status;
		api->refusal_problem = hs_api_safe_text(api, attempt.problem);
		*root = NULL;
	}
	hs_api_drop(call);
	hs_api_report(api, "storing");
	return true;
}

/*
 * How long it will be until a call that is to be repeated may be sent, in
 * milliseconds, by what is known of the rate limit since that was decided.
 */
int64
hs_api_delay_ms(const HsApiCall *call)
{
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), call->due);
}

/*
 * Waits for a call's answer, repeating the request where that may help, and
 * returns the answer, a JSON object that belongs to the current memory
 * context.  The call is freed.  Throws with api->failure set if HubSpot
 * refuses the request or does not answer it; see the SQLSTATEs in api.h.
 * With api->tolerates, which is cleared, returns NULL for what it says, and
 * leaves the answer in api->refusal.
 */
const HsJson *
hs_api_finish(HsApi *api, HsApiCall *call)
{
	HsTolerance tolerates = api->tolerates;
	const HsJson *root;

	do
	{
		perform(api, call);
		api->tolerates = tolerates;
	} while (!hs_api_try_finish(api, call, &root));
	return root;
}

/*
 * Frees a call, whether it was answered or not.  One that is on the wire
 * loses its connection.
 */
void
hs_api_drop(HsApiCall *call)
{
	dequeue(call);
	MemoryContextDelete(call->context);
}
