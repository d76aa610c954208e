/*-------------------------------------------------------------------------
 *
 * pull.c
 *	  HubSpot's records into tables: the walk.
 *
 * A run resolves its mode, continues an earlier one's checkpoint where there
 * is one, and walks through phases:
 *
 *	  retry		records that failed before, by batch read
 *	  live		all records by list, or the changed ones by search
 *	  archived	the recycle bin, after a full walk
 *
 * Each phase is a sequence of pages.  A page is fetched without a
 * transaction; the request for the next one is sent as soon as its cursor is
 * known; then the page is stored, with its dead letters, counters and the
 * checkpoint, in one transaction.  So a crash loses at most the page in hand,
 * and storing it again changes nothing.
 *
 * The watermark is HubSpot's clock at the first answer of the first attempt.
 * A search page is a keyset query of its own, by id, so that records edited
 * while the run is under way, or any number of records with one timestamp,
 * are neither skipped nor repeated.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "pull.h"
#include "store.h"

/* Errors re-read at the start of a run, and how often each. */
#define RETRY_RECORDS HS_API_BATCH_LIMIT
#define RETRY_ATTEMPTS 10

/* How much of a cursor a message shows. */
#define MAX_SHOWN 100

/* HubSpot's servers may differ by so much without being wrong. */
#define CLOCK_TOLERANCE_US (5 * USECS_PER_MINUTE)

typedef enum Phase
{
	PHASE_LIVE,
	PHASE_ARCHIVED,
	PHASE_DONE
} Phase;

static const char *const no_date_remark =
	"HubSpot's answer had no usable Date header, so the time from which changes are looked for did not move";

static const char *const phase_names[] = {"live", "archived", "done"};

typedef struct Pull
{
	HsRun	   *run;
	HsStore		store;
	HsSyncState state;
	const char *mode;			/* full, incremental or timeframe */
	bool		by_search;
	bool		deep;			/* reaches back by the deep overlap */
	bool		completes_full; /* may count as the full run */
	bool		wide;			/* ids are listed, records read by batch */
	bool		continues;
	bool		incomplete;		/* something is left for the next run */
	List	   *retry_ids;		/* of char * */
	TimestampTz attempt_start;	/* our clock, first attempt of this walk */

	/* where the walk is; what the checkpoint holds */
	Phase		phase;
	TimestampTz since;			/* 0: from the beginning */
	bool		has_t0;			/* the first attempt's first answer was read */
	TimestampTz t0;				/* HubSpot's clock then; 0: it told none */
	char	   *after;			/* list cursor of the next page, NULL: first */
	int64		last_id;		/* search: ids up to here are stored */

	HTAB	   *cursors;		/* list cursors followed in this phase */
	MemoryContext page_context;
} Pull;

/* ------------------------------------------------------------------------
 * Checkpoints
 * ------------------------------------------------------------------------
 */

/* The age at which a full run is due again, at most some lifetimes. */
static int64
full_every(const HsSyncType *type)
{
	double		longest = 36500.0 * SECS_PER_DAY;

	return (int64) (Min(type->full_every_s, longest) * USECS_PER_SEC);
}

/* Milliseconds since 1970; a time of 0, which is none, stays 0. */
static int64
to_epoch_ms(TimestampTz t)
{
	return t == 0 ? 0 : hs_json_epoch_ms(t);
}

/*
 * Where the walk stands, as JSON.
 */
static char *
checkpoint_text(const Pull *pull)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json,
					 "{\"phase\": \"%s\", \"since_ms\": " INT64_FORMAT
					 ", \"t0_ms\": " INT64_FORMAT ", \"last_id\": \"" INT64_FORMAT
					 "\", \"started_ms\": " INT64_FORMAT ", \"after\": ",
					 phase_names[pull->phase], to_epoch_ms(pull->since),
					 to_epoch_ms(pull->t0), pull->last_id,
					 to_epoch_ms(pull->attempt_start));
	if (pull->after != NULL)
		hs_json_append_string(&json, pull->after);
	else
		appendStringInfoString(&json, "null");
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* A time of a checkpoint, 0 for none. */
static TimestampTz
checkpoint_time(const HsJson *checkpoint, const char *name)
{
	const HsJson *value = hs_json_member(checkpoint, name);
	int64		ms;
	TimestampTz t;

	if (!hs_json_int64(value, &ms) || ms == 0 || !hs_json_timestamp(value, &t))
		return 0;
	return t;
}

/*
 * Whether a checkpoint is too old to be continued.  Pages it has passed are
 * not read again: what changed on them since comes with the next incremental
 * run, or, for types that have none, not before the next full one.
 */
static bool
is_stale(const Pull *pull, TimestampTz started, TimestampTz t0)
{
	int64		age = GetCurrentTimestamp() - started;
	bool		scoped = pull->run->request.scope[0] != '\0';

	if (pull->by_search && !scoped && t0 != 0)
		return t0 < pull->state.synced_until;
	if (pull->by_search || pull->store.type->modified_property == NULL)
		return age > USECS_PER_DAY;
	return age > Max(full_every(pull->store.type), USECS_PER_DAY);
}

/*
 * Takes over where an earlier run stopped.
 */
static void
restore_checkpoint(Pull *pull, const char *text)
{
	HsJsonParse parse = hs_json_parse(text, strlen(text));
	const char *phase = hs_json_text(hs_json_member(parse.root, "phase"));
	const char *after = hs_json_text(hs_json_member(parse.root, "after"));

	TimestampTz started = checkpoint_time(parse.root, "started_ms");
	TimestampTz t0 = checkpoint_time(parse.root, "t0_ms");

	if (phase == NULL || is_stale(pull, started, t0))
		return;
	pull->continues = true;
	pull->has_t0 = true;
	if (t0 == 0)
		pull->run->remark = no_date_remark;
	pull->deep = pull->completes_full;	/* how far another reached is unknown */
	for (size_t i = 0; i < lengthof(phase_names); i++)
	{
		if (strcmp(phase, phase_names[i]) == 0)
			pull->phase = (Phase) i;
	}
	pull->since = checkpoint_time(parse.root, "since_ms");
	pull->t0 = t0;
	pull->attempt_start = started;
	pull->after = after ? pstrdup(after) : NULL;
	if (!hs_json_int64(hs_json_member(parse.root, "last_id"), &pull->last_id))
		pull->last_id = 0;
}

/* ------------------------------------------------------------------------
 * Preparing a run
 * ------------------------------------------------------------------------
 */

/*
 * Resolves mode auto: incremental once a full run with this mapping has
 * succeeded that is not too old.
 */
static const char *
resolve_mode(const Pull *pull)
{
	const HsRunRequest *request = &pull->run->request;
	const HsSyncType *type = pull->store.type;
	const HsSyncState *state = &pull->state;

	if (request->timeframe != NULL)
		return "timeframe";
	if (pull->store.mapping->is_owners || type->modified_property == NULL)
		return "full";
	if (strcmp(request->mode, "auto") != 0)
		return request->mode;
	if (state->last_full_at == 0 || state->last_full_mapping == NULL ||
		strcmp(state->last_full_mapping, pull->store.mapping->fingerprint) != 0)
		return "full";
	return state->last_full_at + full_every(type) <= GetCurrentTimestamp() ? "full" : "incremental";
}

/*
 * Sets where an incremental run begins: at the watermark less the overlap.
 * Once an hour it reaches back to where the last run that did so, or the last
 * full one, began, less the deep overlap: so a change is found even if the
 * search index shows it that much too late.
 */
static void
set_since(Pull *pull)
{
	const HsSyncState *state = &pull->state;

	if (state->synced_until == 0)
		return;
	pull->since = state->synced_until - hs_overlap * USECS_PER_SEC;
	pull->deep = state->last_deep_at == 0 ||
		GetCurrentTimestamp() - state->last_deep_at > USECS_PER_HOUR;
	if (pull->deep && state->deep_until != 0)
		pull->since = Min(pull->since, state->deep_until -
							  hs_deep_overlap * USECS_PER_SEC);
}

/* Sets up what follows from the mode. */
static void
apply_mode(Pull *pull)
{
	bool		scoped = pull->run->request.scope[0] != '\0';

	pull->by_search = strcmp(pull->mode, "full") != 0;
	pull->completes_full = !pull->by_search && !scoped;
	pull->deep = pull->completes_full;
	if (strcmp(pull->mode, "incremental") == 0)
		set_since(pull);
}

/*
 * Whether pages can carry the properties themselves; if not, they list ids
 * and the records are read by batch.
 */
static bool
is_wide(const Pull *pull)
{
	const HsSyncType *type = pull->store.type;
	List	   *properties = pull->store.mapping->properties;
	bool		timeframe = pull->run->request.timeframe != NULL;
	HsApiSearch search = {
		.filter_property = timeframe ? type->created_property
		: type->modified_property,
		.from = PG_INT64_MAX / 2,
		.to = PG_INT64_MAX / 2,
		.properties = properties
	};

	if (pull->store.mapping->is_owners)
		return false;
	return pull->by_search ? !hs_api_search_fits(&search)
		: !hs_api_list_fits(type->object_type, properties);
}

/* The table of list cursors, to notice one that comes back. */
static HTAB *
create_cursor_table(MemoryContext context)
{
	HASHCTL		ctl = {
		.keysize = sizeof(uint64),
		.entrysize = sizeof(uint64),
		.hcxt = context
	};

	return hash_create("hubspot_sync cursors", 256, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Reads the type's configuration and builds its mapping. */
static void
prepare_store(HsStore *store, HsRun *run)
{
	store->run = run;
	store->type = hs_catalog_sync_type(run->request.sync_type);
	if (store->type == NULL || !store->type->enabled)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("sync type \"%s\" was dropped or disabled meanwhile",
						run->request.sync_type)));
	store->mapping = hs_mapping_build(store->type);
	hs_mapping_check_target(store->mapping);
	hs_mapping_check_roles(store->type, GetUserId());
}

/* Finds out which records failed before and are to be read again. */
static void
prepare_retries(Pull *pull)
{
	const HsRunRequest *request = &pull->run->request;

	pull->store.has_errors =
		hs_catalog_has_open_errors(&request->connection_id,
								   request->sync_type);
	/* A full walk from the beginning meets them all by itself. */
	if (pull->store.has_errors && (pull->by_search || pull->continues) &&
		!pull->store.mapping->is_owners)
		pull->retry_ids = hs_catalog_open_errors(&request->connection_id,
												 request->sync_type,
												 RETRY_ATTEMPTS, RETRY_RECORDS);
}

/*
 * Reads configuration and state, and writes down what the run has resolved
 * to.
 */
static Pull *
prepare(HsRun *run)
{
	Pull	   *pull = MemoryContextAllocZero(run->context, sizeof(Pull));
	const HsRunRequest *request = &run->request;
	HsResume	resume;

	pull->run = run;
	pull->cursors = create_cursor_table(run->context);
	pull->page_context = AllocSetContextCreate(run->context,
											   "hubspot_sync page",
											   ALLOCSET_DEFAULT_SIZES);
	hs_run_begin(run);
	MemoryContextSwitchTo(run->context);
	prepare_store(&pull->store, run);
	hs_catalog_state(&request->connection_id, request->sync_type, &pull->state);
	pull->mode = resolve_mode(pull);
	pull->attempt_start = GetCurrentTimestamp();
	apply_mode(pull);
	pull->wide = is_wide(pull);
	if (hs_catalog_resume(request, pull->mode, pull->store.mapping->fingerprint,
						  &resume))
		restore_checkpoint(pull, resume.checkpoint);
	hs_catalog_start_run(&run->id, pull->mode, pull->store.mapping->fingerprint,
						 pull->continues ? checkpoint_text(pull) : NULL,
						 pull->continues ? &resume.run_id : NULL);
	prepare_retries(pull);
	hs_run_commit(run);
	return pull;
}

/* ------------------------------------------------------------------------
 * Walking
 * ------------------------------------------------------------------------
 */

/* Throws for a remote that sends us in circles. */
pg_noreturn static void
repeated_cursor(Pull *pull, const char *cursor)
{
	pull->run->reason = "repeated_cursor";
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("HubSpot's paging repeats itself"),
			 errdetail("The cursor \"%s\" came up again.",
					   hs_json_clip(cursor, MAX_SHOWN)),
			 errhint("The next run continues where this one stopped.")));
}

/* Starts the next keyset page of a search. */
static HsApiCall *
start_search(Pull *pull)
{
	const HsRunRequest *request = &pull->run->request;
	const HsSyncType *type = pull->store.type;
	bool		timeframe = request->timeframe != NULL;
	HsApiSearch search = {
		.filter_property = timeframe ? type->created_property
		: type->modified_property,
		.from = timeframe ? request->range_from : pull->since,
		.to = timeframe ? request->range_to : 0,
		.after_id = pull->last_id,
		.properties = pull->wide ? NIL : pull->store.mapping->properties
	};

	return hs_api_search(pull->run->api, type->object_type, &search);
}

/*
 * Starts the request for the page that the walk stands before.
 */
static HsApiCall *
start_page(Pull *pull)
{
	bool		archived = pull->phase == PHASE_ARCHIVED;

	if (pull->store.mapping->is_owners)
		return hs_api_owners(pull->run->api, archived, pull->after);
	if (pull->by_search)
		return start_search(pull);
	return hs_api_list(pull->run->api, pull->store.type->object_type,
					   pull->wide ? NIL : pull->store.mapping->properties,
					   archived, pull->after);
}

/*
 * The highest id of a search's results, -1 if there is none.  Throws if they
 * are not in ascending order: the next page begins above the highest, so
 * records that a later page should have brought would be missed.
 */
static int64
highest_id(Pull *pull, const HsJson *results)
{
	int64		highest = -1;

	for (int i = 0; i < hs_json_length(results); i++)
	{
		int64		id;

		if (!hs_json_int64(hs_json_member(hs_json_element(results, i), "id"),
						   &id))
			continue;
		if (id < highest)
		{
			pull->run->reason = "unordered";
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("HubSpot's search results are not in the order of their ids"),
					 errdetail("Record " INT64_FORMAT " comes after " INT64_FORMAT ".",
							   id, highest)));
		}
		highest = id;
	}
	return highest;
}

/*
 * Moves a search past its page.  Returns false at the end.
 */
static bool
advance_search(Pull *pull, const HsJson *root)
{
	const HsJson *results = hs_json_member(root, "results");
	int			n = hs_json_length(results);
	int64		highest = highest_id(pull, results);
	int64		total;

	bool		more = hs_json_type(hs_json_member(root, "paging")) == HS_JSON_OBJECT;

	if (hs_json_int64(hs_json_member(root, "total"), &total))
		more |= total > n;
	else
		more |= n >= HS_API_SEARCH_LIMIT;
	if (n == 0 || (highest < 0 && !more))
		return false;			/* nothing, or nothing but junk */
	if (highest <= pull->last_id)
		repeated_cursor(pull, psprintf(INT64_FORMAT, pull->last_id));
	pull->last_id = highest;
	return more;
}

/*
 * Moves a list past its page.  Returns false at the end.  A cursor that came
 * up before in this phase is refused.
 */
static bool
advance_list(Pull *pull, const HsJson *root)
{
	const char *after =
		hs_json_text(hs_json_member(hs_json_path(root, "paging", "next"),
									"after"));
	uint64		hash;
	bool		found;

	if (after == NULL || after[0] == '\0')
		return false;
	hash = hash_bytes_extended((const unsigned char *) after, strlen(after), 0);
	(void) hash_search(pull->cursors, &hash, HASH_ENTER, &found);
	if (found || (pull->after != NULL && strcmp(after, pull->after) == 0))
		repeated_cursor(pull, after);
	if (pull->after != NULL)
		pfree(pull->after);
	pull->after = MemoryContextStrdup(pull->run->context, after);
	return true;
}

/* Begins the next phase. */
static void
next_phase(Pull *pull)
{
	HASH_SEQ_STATUS scan;
	uint64	   *entry;
	bool		archived_too = !pull->by_search &&
		strcmp(pull->store.type->delete_policy, "ignore") != 0;

	pull->phase = pull->phase == PHASE_LIVE && archived_too
		? PHASE_ARCHIVED : PHASE_DONE;
	if (pull->after != NULL)
		pfree(pull->after);
	pull->after = NULL;
	hash_seq_init(&scan, pull->cursors);
	while ((entry = hash_seq_search(&scan)) != NULL)
		(void) hash_search(pull->cursors, entry, HASH_REMOVE, NULL);
}

/* Moves the walk past a page, into the next phase at a phase's end. */
static void
advance(Pull *pull, const HsJson *root)
{
	bool		more = pull->by_search ? advance_search(pull, root)
		: advance_list(pull, root);

	if (!more)
		next_phase(pull);
}

/* Reads at most HS_API_BATCH_LIMIT records and stores them. */
static void
store_batch(Pull *pull, const char **ids, int n, HsRecordPage *page,
			const char *checkpoint)
{
	HsApi	   *api = pull->run->api;

	if (n > 0)
	{
		HsApiCall  *call = hs_api_batch_read(api, pull->store.type->object_type,
											 pull->store.mapping->properties,
											 page->in_recycle_bin, ids, n);

		page->results = hs_json_member(hs_api_finish(api, call), "results");
	}
	hs_store_read(&pull->store, page);
	hs_store_save(&pull->store, page, checkpoint);
}

/*
 * Reads the records of a page of ids by batch, and stores them.  Only the
 * last batch moves the checkpoint.
 */
static void
store_by_batch(Pull *pull, HsRecordPage *listed)
{
	int			n = hs_json_length(listed->results);
	const char **ids = palloc(sizeof(char *) * Max(n, 1));
	int			usable = hs_store_read_ids(&pull->store, listed, ids);
	int			done = 0;

	/* The dead letters of what has no id. */
	if (listed->letters != NIL)
		hs_store_save(&pull->store, listed, NULL);
	do
	{
		int			part = Min(usable - done, HS_API_BATCH_LIMIT);
		bool		last = done + part == usable;
		HsRecordPage page = {.in_recycle_bin = listed->in_recycle_bin};

		store_batch(pull, ids + done, part, &page,
					last ? checkpoint_text(pull) : NULL);
		done += part;
	} while (done < usable);
}

/*
 * Notes HubSpot's clock at the walk's first answer.  Only that one counts: a
 * later one, or a later attempt's, would leave out what changed in between.
 * A clock far ahead of ours would make later runs look for nothing, and is
 * taken for none.
 */
static void
note_t0(Pull *pull)
{
	TimestampTz latest = GetCurrentTimestamp() + USECS_PER_DAY;

	if (pull->has_t0)
		return;
	pull->has_t0 = true;
	pull->t0 = pull->run->api->first_date;
	if (pull->t0 > latest)
		pull->t0 = 0;
	if (pull->t0 == 0)
		pull->run->remark = no_date_remark;
}

/*
 * Begins the walk anew: HubSpot does not know the checkpoint's cursor any
 * more.  What the earlier run stored stays, and so does its T0.
 */
static HsApiCall *
start_over(Pull *pull)
{
	pull->phase = PHASE_LIVE;
	pull->after = NULL;
	pull->last_id = 0;
	return start_page(pull);
}

/*
 * Ends a search whose index announces records that it does not bring: they
 * may just have been deleted or merged.  What they are shows when the next
 * run looks again, so the watermark stays.
 */
static HsApiCall *
end_early(Pull *pull)
{
	HsRecordPage nothing = {0};

	pull->incomplete = true;
	pull->run->remark = "HubSpot's search announced more records than it brought; the next run looks for them again";
	next_phase(pull);
	hs_store_read(&pull->store, &nothing);
	hs_store_save(&pull->store, &nothing, checkpoint_text(pull));
	return NULL;
}

/* Waits for a page.  NULL: see turn_page(). */
static const HsJson *
finish_page(Pull *pull, HsApiCall *call)
{
	if (pull->by_search && pull->last_id > 0)
		pull->run->api->tolerates = HS_TOLERATE_MISSING_RESULTS;
	return hs_api_finish(pull->run->api, call);
}

/*
 * Fetches and stores one page and starts the request for the next.  Returns
 * that request, NULL at the end of the walk.
 */
static HsApiCall *
turn_page(Pull *pull, HsApiCall *call)
{
	const HsJson *root = finish_page(pull, call);
	HsRecordPage page = {
		.results = hs_json_member(root, "results"),
		.provisional = pull->by_search,
		.in_recycle_bin = pull->phase == PHASE_ARCHIVED
	};
	HsApiCall  *next = NULL;

	if (root == NULL)
		return pull->by_search ? end_early(pull) : start_over(pull);

	note_t0(pull);
	if (!pull->wide)
		hs_store_read(&pull->store, &page);
	advance(pull, root);
	if (pull->phase != PHASE_DONE)
		next = start_page(pull);
	if (pull->wide)
		store_by_batch(pull, &page);
	else
		hs_store_save(&pull->store, &page, checkpoint_text(pull));
	return next;
}

/* Walks from where the run stands to the end. */
static void
walk(Pull *pull)
{
	MemoryContext old = MemoryContextSwitchTo(pull->page_context);
	HsApiCall  *call = pull->phase == PHASE_DONE ? NULL : start_page(pull);

	if (pull->after != NULL)
		pull->run->api->tolerates = HS_TOLERATE_BAD_REQUEST;
	while (call != NULL)
	{
		call = turn_page(pull, call);
		MemoryContextReset(pull->page_context);
	}
	MemoryContextSwitchTo(old);
}

/* ------------------------------------------------------------------------
 * Beginning and end
 * ------------------------------------------------------------------------
 */

/* Whether a record of that id was received with a page, stored or not. */
static bool
page_has(const HsRecordPage *page, const char *id)
{
	for (int i = 0; i < hs_json_length(page->results); i++)
	{
		const HsJson *record = hs_json_element(page->results, i);
		const char *received = hs_json_text(hs_json_member(record, "id"));

		if (received != NULL && strcmp(received, id) == 0)
			return true;
	}
	return false;
}

/* Keeps the ids of retried records that failed again, not to count twice. */
static void
remember_failures(Pull *pull, const HsRecordPage *page)
{
	MemoryContext old = MemoryContextSwitchTo(pull->run->context);
	ListCell   *lc;

	foreach(lc, page->letters)
		pull->store.failed_again =
			lappend(pull->store.failed_again,
					pstrdup(((HsDeadLetter *) lfirst(lc))->record_id));
	MemoryContextSwitchTo(old);
}

/*
 * Reads records again that could not be stored before.  An attempt is counted
 * for those that HubSpot does not return any more, and for all if it refuses
 * the request: an old error must not stop new records.
 */
static void
retry_errors(Pull *pull)
{
	MemoryContext old = MemoryContextSwitchTo(pull->page_context);
	HsApi	   *api = pull->run->api;
	const char *ids[RETRY_RECORDS] = {NULL};
	const char *missing[RETRY_RECORDS];
	int			n = 0;
	int			nmissing = 0;
	HsRecordPage page = {0};
	HsApiCall  *call;
	ListCell   *lc;

	foreach(lc, pull->retry_ids)
		ids[n++] = lfirst(lc);
	call = hs_api_batch_read(api, pull->store.type->object_type,
							 pull->store.mapping->properties, false, ids, n);
	api->tolerates = HS_TOLERATE_BAD_ANSWER;
	page.results = hs_json_member(hs_api_finish(api, call), "results");
	hs_store_read(&pull->store, &page);
	for (int i = 0; i < n; i++)
	{
		if (!page_has(&page, ids[i]))
			missing[nmissing++] = ids[i];
	}
	hs_store_save(&pull->store, &page, NULL);
	remember_failures(pull, &page);

	hs_run_begin(pull->run);
	hs_catalog_count_attempts(&pull->run->request.connection_id,
							  pull->store.type->name, missing, nmissing);
	hs_run_commit(pull->run);
	MemoryContextSwitchTo(old);
	MemoryContextReset(pull->page_context);
}

/*
 * Whether HubSpot's clock stood earlier now than for an earlier run: that one
 * was told a wrong time, and this one looked for changes from it on only.
 */
static bool
clock_went_back(const Pull *pull)
{
	return !pull->completes_full && pull->t0 != 0 &&
		pull->t0 < pull->state.synced_until - CLOCK_TOLERANCE_US;
}

/* Moves the watermark of an unscoped run. */
static void
save_state(Pull *pull)
{
	const HsRunRequest *request = &pull->run->request;

	if (clock_went_back(pull))
	{
		hs_catalog_reset_state(&request->connection_id, request->sync_type);
		pull->run->remark = "HubSpot's clock was ahead in an earlier run, so changes may have been missed; the next run in mode auto will be a full one";
		return;
	}
	hs_catalog_save_state(&request->connection_id, request->sync_type,
						  pull->t0, pull->completes_full, pull->deep,
						  pull->store.mapping->fingerprint);
}

/*
 * Closes the run: it has read everything.
 */
static void
complete(Pull *pull)
{
	HsRun	   *run = pull->run;
	const HsRunRequest *request = &run->request;

	hs_run_begin(run);
	MemoryContextSwitchTo(run->context);
	if (pull->completes_full)
		hs_catalog_resolve_anonymous(&request->connection_id,
									 request->sync_type, pull->attempt_start);
	if (request->scope[0] == '\0' && !pull->incomplete)
		save_state(pull);
	hs_run_complete(run);
	hs_run_commit(run);
}

/*
 * Executes a pull.  Throws whatever stops it; what was committed before stays
 * and the checkpoint lets another run continue.
 */
void
hs_pull_run(HsRun *run)
{
	Pull	   *pull = prepare(run);

	if (pull->retry_ids != NIL)
		retry_errors(pull);
	walk(pull);
	complete(pull);
}
