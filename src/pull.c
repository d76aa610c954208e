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
 *	  changes	what changed meanwhile, if searches have helped the list
 *	  archived	the recycle bin, after a full walk and else once a day
 *	  absent	records that were missed, or that others claim, one by one
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
#include "descent.h"
#include "guc.h"
#include "history.h"
#include "pull.h"
#include "reconcile.h"
#include "store.h"
#include "target.h"

/* Errors re-read at the start of a run, and how often each. */
#define RETRY_RECORDS HS_API_BATCH_LIMIT
#define RETRY_ATTEMPTS 10

/* How much of a cursor a message shows. */
#define MAX_SHOWN 100

/*
 * A daily reading of the recycle bin takes this share of the daily limit at
 * most, and where none is stated, of the lowest there is (facts section 3).
 */
#define SWEEP_SHARE 0.05
#define LOWEST_DAILY_LIMIT 250000

/* After a full run that was not believed, auto waits so long for another. */
#define REFUSAL_PAUSE_US (6 * USECS_PER_HOUR)

/* Definitions of properties are read anew when they are this old. */
#define PROPERTIES_AGE_S (1.0 * SECS_PER_HOUR)

/* HubSpot's servers may differ by so much without being wrong. */
#define CLOCK_TOLERANCE_US (5 * USECS_PER_MINUTE)

/* A first load that has listed so many pages asks searches for help. */
#define PAGES_BEFORE_DESCENT 5

typedef enum Phase
{
	PHASE_LIVE,
	PHASE_CHANGES,
	PHASE_ARCHIVED,
	PHASE_ABSENT,
	PHASE_DONE
} Phase;

static const char *const no_date_remark =
	"HubSpot's answer had no usable Date header, so the time from which changes are looked for did not move";

static const char *const phase_names[] = {
	"live", "changes", "archived", "absent", "done"
};

typedef struct Pull
{
	HsRun	   *run;
	HsStore		store;
	HsSyncState state;
	const char *mode;			/* full, incremental or timeframe */
	bool		by_search;		/* in the live phase */
	bool		sweeps;			/* reads the recycle bin though it searches */
	bool		deep;			/* reaches back by the deep overlap */
	bool		completes_full; /* may count as the full run */
	bool		wide_list;		/* ids are listed, records read by batch */
	bool		wide_search;	/* the same of searches */
	bool		continues;
	bool		is_first_load;	/* no row is there that could be missing */
	bool		incomplete;		/* something is left for the next run */
	List	   *retry_ids;		/* of char * */
	TimestampTz attempt_start;	/* our clock, first attempt of this walk */

	/* where the walk is; what the checkpoint holds */
	Phase		phase;
	bool		has_t0;			/* the first attempt's first answer was read */
	bool		cursor_is_old;	/* HubSpot may not know `after` any more */
	TimestampTz since;			/* 0: from the beginning */
	TimestampTz t0;				/* HubSpot's clock then; 0: it told none */
	char	   *after;			/* list cursor of the next page, NULL: first */
	int64		last_id;		/* ids up to here were met in this phase */
	bool		unordered;		/* the live list was: it proves nothing */
	bool		bin_unordered;	/* the recycle bin's list was */
	bool		descended;		/* searches were served last */
	bool		met;			/* they have brought what the list has not */
	int			pages_before_descent;	/* -1: the list gets no help by them */
	HsDescent	descent;

	bool		swept;			/* the recycle bin was read */
	int			requests_before_bin;
	char	   *swept_to;		/* where the sweep was broken off; NULL: at the
								 * end of the bin */
	int64		swept_id;
	int			refused;		/* records gone, too many to be believed */

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

/* Appends what only the end of a run writes down. */
static void
append_sweep(StringInfo json, const Pull *pull)
{
	if (pull->incomplete)
		appendStringInfoString(json, ", \"incomplete\": true");
	if (!pull->swept)
		return;
	appendStringInfo(json, ", \"swept\": true, \"swept_id\": \"" INT64_FORMAT
						   "\", \"swept_to\": ",
					 pull->swept_id);
	hs_json_append_string(json, pull->swept_to);
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
					 "\", \"started_ms\": " INT64_FORMAT "%s",
					 phase_names[pull->phase], to_epoch_ms(pull->since),
					 to_epoch_ms(pull->t0), pull->last_id,
					 to_epoch_ms(pull->attempt_start),
					 pull->unordered ? ", \"unordered\": true" : "");
	append_sweep(&json, pull);
	if (pull->descent.high != 0)
		appendStringInfo(&json, ", \"searched_from\": \"" INT64_FORMAT "\"",
						 pull->descent.high);
	appendStringInfoString(&json, ", \"after\": ");
	if (pull->after != NULL)
		hs_json_append_string(&json, pull->after);
	else
		appendStringInfoString(&json, "null");
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * Reads from a checkpoint whether the recycle bin was read, and what else
 * only the end of a run writes down.
 */
static void
restore_sweep(Pull *pull, const HsJson *checkpoint)
{
	const char *swept_to = hs_json_text(hs_json_member(checkpoint, "swept_to"));

	(void) hs_json_bool(hs_json_member(checkpoint, "incomplete"),
						&pull->incomplete);
	(void) hs_json_bool(hs_json_member(checkpoint, "swept"), &pull->swept);
	pull->swept_to = swept_to ? pstrdup(swept_to) : NULL;
	if (!hs_json_int64(hs_json_member(checkpoint, "swept_id"), &pull->swept_id))
		pull->swept_id = 0;
	if (pull->by_search && pull->phase != PHASE_LIVE)
		pull->sweeps = pull->phase == PHASE_ARCHIVED;
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
	pull->cursor_is_old = after != NULL;
	restore_sweep(pull, parse.root);
	if (!hs_json_int64(hs_json_member(parse.root, "last_id"), &pull->last_id))
		pull->last_id = 0;
	if (!hs_json_int64(hs_json_member(parse.root, "searched_from"),
					   &pull->descent.high))
		pull->descent.high = 0;
	(void) hs_json_bool(hs_json_member(parse.root, "unordered"),
						&pull->unordered);
}

/* ------------------------------------------------------------------------
 * Preparing a run
 * ------------------------------------------------------------------------
 */

/* Whether the mapping is that of all rows. */
static bool
is_of_full_mapping(const Pull *pull)
{
	const char *full = pull->state.last_full_mapping;

	return full != NULL && strcmp(full, pull->store.mapping->fingerprint) == 0;
}

/*
 * Whether a full run is due: there was none with this mapping yet, or the
 * last one is too old.  One that was not believed is not repeated at once,
 * since it costs as much again.
 */
static bool
is_full_due(const Pull *pull)
{
	const HsSyncState *state = &pull->state;
	int64		every = full_every(pull->store.type);
	TimestampTz now = GetCurrentTimestamp();

	if (state->last_refused_at != 0 &&
		state->last_refused_at + Min(every, REFUSAL_PAUSE_US) > now)
		return false;
	return state->last_full_at == 0 || !is_of_full_mapping(pull) ||
		state->last_full_at + every <= now;
}

/*
 * Resolves mode auto.
 */
static const char *
resolve_mode(const Pull *pull)
{
	const HsRunRequest *request = &pull->run->request;

	if (request->timeframe != NULL)
		return "timeframe";
	if (pull->store.mapping->is_owners ||
		pull->store.type->modified_property == NULL)
		return "full";
	if (strcmp(request->mode, "auto") != 0)
		return request->mode;
	return is_full_due(pull) ? "full" : "incremental";
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

/*
 * Whether an incremental run reads the recycle bin as well: once a day, since
 * neither archiving nor restoring is a change that a search finds (facts
 * section 7).
 */
static bool
is_sweep_due(const Pull *pull)
{
	return strcmp(pull->mode, "incremental") == 0 &&
		strcmp(pull->store.type->delete_policy, "ignore") != 0 &&
		pull->state.last_sweep_at + USECS_PER_DAY < GetCurrentTimestamp();
}

/* Sets up what follows from the mode. */
static void
apply_mode(Pull *pull)
{
	bool		scoped = pull->run->request.scope[0] != '\0';

	pull->by_search = strcmp(pull->mode, "full") != 0;
	pull->completes_full = !pull->by_search && !scoped;
	pull->deep = pull->completes_full;
	pull->sweeps = is_sweep_due(pull);
	pull->store.notes_absences = !scoped && !pull->store.mapping->is_owners &&
		strcmp(pull->store.type->delete_policy, "ignore") != 0;
	pull->store.follows_owners = pull->state.last_full_at != 0;
	pull->last_id = pull->by_search ? 0 : -1;
	if (strcmp(pull->mode, "incremental") == 0)
		set_since(pull);
}

/* Whether the search for this run's records fits with all its properties. */
static bool
search_fits(const Pull *pull)
{
	const HsSyncType *type = pull->store.type;
	bool		timeframe = pull->run->request.timeframe != NULL;
	HsApiSearch search = {
		.filter_property = timeframe ? type->created_property
		: type->modified_property,
		.from = PG_INT64_MAX / 2,
		.to = PG_INT64_MAX / 2,
		.properties = pull->store.mapping->properties
	};

	return hs_api_search_fits(&search);
}

/*
 * After how many pages searches begin to help the list, -1 for never.  That
 * proves less about what is missing, so by itself only a first load does so:
 * there is nothing yet that could be missing.
 */
static int
pages_before_descent(const Pull *pull)
{
	const HsSyncType *type = pull->store.type;

	if (!pull->completes_full || type->modified_property == NULL ||
		pull->wide_search || strcmp(type->full_strategy, "list") == 0)
		return -1;
	if (strcmp(type->full_strategy, "list_and_search") == 0)
		return 1;
	return pull->is_first_load ? PAGES_BEFORE_DESCENT : -1;
}

/*
 * Finds out whether pages can carry the properties themselves; if not, they
 * list ids and the records are read by batch.
 */
static void
measure_requests(Pull *pull)
{
	const HsMapping *mapping = pull->store.mapping;

	pull->pages_before_descent = -1;
	if (mapping->is_owners)
		return;
	pull->wide_list = !hs_api_list_fits(pull->store.type->object_type,
										mapping->properties);
	pull->wide_search = pull->store.type->modified_property != NULL &&
		!search_fits(pull);
	pull->pages_before_descent = pages_before_descent(pull);
}

/* Whether the present phase reads a list; if not, a search. */
static bool
is_listing(const Pull *pull)
{
	if (pull->phase == PHASE_LIVE)
		return !pull->by_search;
	return pull->phase == PHASE_ARCHIVED;
}

/* Whether the present phase's pages bring ids only. */
static bool
is_wide(const Pull *pull)
{
	return is_listing(pull) ? pull->wide_list : pull->wide_search;
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
	store->type = hs_run_type(run);
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
 * Prepares what the run notes about records that it misses.  A walk that
 * begins anew forgets what an earlier one has missed.
 */
static void
prepare_absences(Pull *pull)
{
	const HsRunRequest *request = &pull->run->request;

	if (pull->completes_full && !pull->continues)
		hs_catalog_clear_absences(&request->connection_id, request->sync_type);
	pull->store.has_absences =
		hs_catalog_has_absences(&request->connection_id, request->sync_type);
}

/* Reads configuration and state, and resolves the mode. */
static void
read_configuration(Pull *pull)
{
	const HsRunRequest *request = &pull->run->request;

	prepare_store(&pull->store, pull->run);
	pull->descent.store = &pull->store;
	hs_catalog_state(&request->connection_id, request->sync_type, &pull->state);
	pull->mode = resolve_mode(pull);
	pull->attempt_start = GetCurrentTimestamp();
	apply_mode(pull);
}

/* Whether there are live rows of ours. */
static bool
has_rows(const HsStore *store)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;

	if (store->mapping->keeps_rows)
		return hs_catalog_count_rows(connection, store->type->name) > 0;
	return hs_target_count(store->mapping, connection) > 0;
}

/*
 * Begins the run: a first transaction, in which it writes down what it has
 * resolved to.
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
	read_configuration(pull);
	if (hs_catalog_resume(request, pull->mode, pull->store.mapping->fingerprint,
						  &resume))
		restore_checkpoint(pull, resume.checkpoint);
	hs_catalog_start_run(&run->id, pull->mode, pull->store.mapping->fingerprint,
						 pull->continues ? checkpoint_text(pull) : NULL,
						 pull->continues ? &resume.run_id : NULL);
	if (pull->state.last_full_mapping != NULL && !is_of_full_mapping(pull))
		hs_catalog_forget_full_mapping(&request->connection_id,
									   request->sync_type);
	prepare_retries(pull);
	prepare_absences(pull);
	pull->is_first_load = !pull->state.is_known &&
		(pull->continues || !has_rows(&pull->store));
	hs_run_commit(run);
	return pull;
}

/* ------------------------------------------------------------------------
 * All properties
 * ------------------------------------------------------------------------
 */

/* The names of the properties that an answer defines, NIL if none. */
static List *
defined_properties(const HsJson *definitions)
{
	List	   *names = NIL;

	for (int i = 0; i < hs_json_length(definitions); i++)
	{
		const HsJson *definition = hs_json_element(definitions, i);
		const char *name = hs_json_text(hs_json_member(definition, "name"));
		bool		archived = false;

		(void) hs_json_bool(hs_json_member(definition, "archived"), &archived);
		if (name != NULL && name[0] != '\0' && !archived)
			names = lappend(names, pstrdup(name));
	}
	return names;
}

/* Keeps the names for later runs. */
static void
save_properties(Pull *pull, List *names)
{
	const char **array = palloc(sizeof(char *) * Max(list_length(names), 1));
	ListCell   *lc;
	int			n = 0;

	foreach(lc, names)
		array[n++] = lfirst(lc);
	hs_run_begin(pull->run);
	hs_catalog_save_properties(&pull->run->request.connection_id,
							   pull->store.type->object_type, array, n);
	hs_run_commit(pull->run);
}

/* The names that a recent run has found, NIL if there was none. */
static List *
known_properties(Pull *pull)
{
	List	   *names;

	hs_run_begin(pull->run);
	names = hs_catalog_properties(&pull->run->request.connection_id,
								  pull->store.type->object_type,
								  PROPERTIES_AGE_S);
	hs_run_commit(pull->run);
	return names;
}

/*
 * For a type that fetches all properties, finds out which there are: from
 * HubSpot, or, for a search, from what a recent run has found.
 */
static void
find_properties(Pull *pull)
{
	MemoryContext old = MemoryContextSwitchTo(pull->page_context);
	List	   *names = pull->by_search ? known_properties(pull) : NIL;

	if (names == NIL)
	{
		HsApi	   *api = pull->run->api;
		HsApiCall  *call = hs_api_properties(api, pull->store.type->object_type);

		names = defined_properties(hs_json_member(hs_api_finish(api, call),
												  "results"));
		if (names == NIL)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("HubSpot defines no properties for object type \"%s\"",
							pull->store.type->object_type)));
		save_properties(pull, names);
	}
	MemoryContextSwitchTo(pull->run->context);
	hs_mapping_add_properties(pull->store.mapping, names);
	MemoryContextSwitchTo(old);
	MemoryContextReset(pull->page_context);
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
		.properties = pull->wide_search ? NIL : pull->store.mapping->properties
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
	if (!is_listing(pull))
		return start_search(pull);
	return hs_api_list(pull->run->api, pull->store.type->object_type,
					   pull->wide_list ? NIL : pull->store.mapping->properties,
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

/* Which phase follows the present one. */
static Phase
phase_after(const Pull *pull)
{
	bool		bin_too = pull->sweeps || (!pull->by_search &&
										   strcmp(pull->store.type->delete_policy, "ignore") != 0);

	if (pull->phase == PHASE_LIVE && pull->met)
		return PHASE_CHANGES;
	if (pull->phase < PHASE_ARCHIVED && bin_too)
		return PHASE_ARCHIVED;
	return pull->phase == PHASE_ABSENT ? PHASE_DONE : PHASE_ABSENT;
}

/*
 * Sets from when on changes are searched for that the load's own searches may
 * not have shown; see descent.c.
 */
static void
begin_changes(Pull *pull)
{
	pull->last_id = 0;
	pull->since = pull->t0 - Max(hs_overlap, hs_deep_overlap) * USECS_PER_SEC;
}

/* Forgets the cursors followed. */
static void
forget_cursors(Pull *pull)
{
	HASH_SEQ_STATUS scan;
	uint64	   *entry;

	hash_seq_init(&scan, pull->cursors);
	while ((entry = hash_seq_search(&scan)) != NULL)
		(void) hash_search(pull->cursors, entry, HASH_REMOVE, NULL);
}

/*
 * Begins the next phase.  A sweep goes on where the one before had to stop.
 */
static void
next_phase(Pull *pull)
{
	pull->swept |= pull->phase == PHASE_ARCHIVED;
	pull->phase = phase_after(pull);
	pull->requests_before_bin = pull->run->api->stats.requests;
	if (pull->after != NULL)
		pfree(pull->after);
	pull->after = NULL;
	pull->last_id = -1;
	forget_cursors(pull);
	hs_descent_end(&pull->descent);
	if (pull->phase == PHASE_CHANGES)
		begin_changes(pull);
	if (pull->phase != PHASE_ARCHIVED || !pull->sweeps ||
		pull->state.sweep_after == NULL)
		return;
	pull->after = MemoryContextStrdup(pull->run->context,
									  pull->state.sweep_after);
	pull->last_id = pull->state.sweep_last_id;
	pull->cursor_is_old = true;
}

/* Whether a sweep has had its share of the daily limit. */
static bool
is_sweep_exhausted(const Pull *pull)
{
	long		limit = pull->run->api->daily_limit;

	return pull->sweeps && pull->phase == PHASE_ARCHIVED &&
		pull->run->api->stats.requests - pull->requests_before_bin >=
		SWEEP_SHARE * (limit > 0 ? limit : LOWEST_DAILY_LIMIT);
}

/* Ends the phase where there is no more of it, or enough. */
static void
leave_page(Pull *pull, bool more)
{
	if (more && is_sweep_exhausted(pull))
	{
		pull->swept_to = MemoryContextStrdup(pull->run->context, pull->after);
		pull->swept_id = pull->last_id;
		more = false;
	}
	if (!more)
		next_phase(pull);
}

/* Whether a page's ids ascend, from above those of the pages before. */
static bool
is_ascending(const Pull *pull, const HsRecordPage *page)
{
	int64		last = pull->last_id;

	for (int i = 0; i < page->nids; i++)
	{
		if (page->id_numbers[i] <= last)
			return false;
		last = page->id_numbers[i];
	}
	return true;
}

/*
 * Whether a list is in order so far.  One that is not proves nothing any more,
 * and cannot meet searches.
 */
static bool
check_order(Pull *pull, const HsRecordPage *page)
{
	bool		bin = pull->phase == PHASE_ARCHIVED;
	bool	   *unordered = bin ? &pull->bin_unordered : &pull->unordered;

	if (!is_ascending(pull, page))
	{
		*unordered = true;
		hs_descent_abandon(&pull->descent, "the list is not in order");
		if (pull->store.notes_absences)
			pull->run->remark = "HubSpot's list was not in the order of ids, so records that are missing on it were not looked for";
	}
	return !*unordered;
}

/*
 * Whether the list has not reached the records that searches have found above
 * it.  If it ends here, it ends too early.
 */
static bool
is_cut_short(const Pull *pull)
{
	return pull->phase == PHASE_LIVE && pull->descent.high != 0 &&
		pull->last_id < pull->descent.high;
}

/*
 * Moves last_id past a list's page, and notes which part of the list the page
 * covers: the list is in the order of ids, so what is missing there does not
 * exist.
 */
static void
note_range(Pull *pull, HsRecordPage *page, HsRange *range, bool more)
{
	bool		ordered;

	if (!is_listing(pull) || pull->store.mapping->is_owners)
		return;
	ordered = check_order(pull, page);
	range->low = pull->last_id;
	for (int i = 0; i < page->nids; i++)
		pull->last_id = Max(pull->last_id, page->id_numbers[i]);
	range->high = more || is_cut_short(pull) ? pull->last_id : PG_INT64_MAX;
	range->present = page->id_numbers;
	range->n = page->nids;
	if (ordered && pull->store.notes_absences && range->high > range->low)
		page->range = range;
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
 * last batch moves the checkpoint and says what the page proves.
 */
static void
store_by_batch(Pull *pull, HsRecordPage *listed)
{
	const HsRange *range = listed->range;
	int			done = 0;

	/* The dead letters of what has no id. */
	listed->range = NULL;
	if (listed->letters != NIL)
		hs_store_save(&pull->store, listed, NULL);
	do
	{
		int			part = Min(listed->nids - done, HS_API_BATCH_LIMIT);
		bool		last = done + part == listed->nids;
		HsRecordPage page = {
			.in_recycle_bin = listed->in_recycle_bin,
			.range = last ? range : NULL
		};

		store_batch(pull, listed->ids + done, part, &page,
					last ? checkpoint_text(pull) : NULL);
		done += part;
	} while (done < listed->nids);
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
 * more.  What the earlier run stored stays, and so does its T0.  A sweep
 * begins anew by itself.
 */
static HsApiCall *
start_over(Pull *pull)
{
	if (!pull->by_search)
		pull->phase = PHASE_LIVE;
	pull->after = NULL;
	pull->last_id = -1;
	return start_page(pull);
}

/* Starts the request for the next page, NULL at the end of the pages. */
static HsApiCall *
start_next(Pull *pull)
{
	return pull->phase < PHASE_ABSENT ? start_page(pull) : NULL;
}

/*
 * Has the next run look again for what a search did not bring: the watermark
 * stays; after a load, where there is none yet, it moves to where the search
 * began.
 */
static void
keep_watermark(Pull *pull, const char *remark)
{
	if (pull->phase == PHASE_CHANGES)
		pull->t0 = pull->since + hs_overlap * USECS_PER_SEC;
	else
		pull->incomplete = true;
	pull->run->remark = remark;
}

/*
 * Ends a search whose index announces records that it does not bring: they
 * may just have been deleted or merged.  What they are shows when the next
 * run looks again.
 */
static HsApiCall *
end_early(Pull *pull)
{
	HsRecordPage nothing = {0};

	keep_watermark(pull, "HubSpot's search announced more records than it brought; the next run looks for them again");
	next_phase(pull);
	hs_store_read(&pull->store, &nothing);
	hs_store_save(&pull->store, &nothing, checkpoint_text(pull));
	return start_next(pull);
}

/* Waits for a page.  NULL: see turn_page(). */
static const HsJson *
finish_page(Pull *pull, HsApiCall *call)
{
	HsApi	   *api = pull->run->api;

	if (!is_listing(pull) && pull->last_id > 0)
		api->tolerates = HS_TOLERATE_MISSING_RESULTS;
	else if (is_listing(pull) && pull->cursor_is_old)
		api->tolerates = HS_TOLERATE_BAD_REQUEST;
	if (is_listing(pull))
		pull->cursor_is_old = false;
	return hs_api_finish(api, call);
}

/*
 * Whether the list has met the searches, or has ended before.  A record that
 * is out of order does not deceive it: the cursor is the next record's id
 * (facts section 4).
 */
static bool
has_met(const Pull *pull, bool more)
{
	int64		next = 0;

	if (pull->descent.high == 0)
		return false;
	if (!more)
		return is_cut_short(pull);
	if (strspn(pull->after, "0123456789") == strlen(pull->after))
		next = strtoi64(pull->after, NULL, 10);
	return hs_descent_met(&pull->descent, pull->last_id) &&
		(next == 0 || next >= pull->descent.high);
}

/*
 * Lets searches help a list that has more pages, if it may have help, and
 * returns false once they have brought these.  Without HubSpot's clock it
 * could not be said what changed meanwhile.
 */
static bool
help_list(Pull *pull, bool more)
{
	HsDescent  *descent = &pull->descent;

	if (pull->phase != PHASE_LIVE || pull->pages_before_descent < 0)
		return more;
	pull->met = has_met(pull, more);
	if (!more || pull->met)
		return false;
	if (pull->pages_before_descent > 0)
		pull->pages_before_descent--;
	if (pull->t0 != 0 && !pull->unordered && !descent->ended &&
		descent->call == NULL && pull->pages_before_descent == 0)
		hs_descent_search(descent, pull->last_id);
	return true;
}

/*
 * Fetches and stores one page and starts the request for the next.  Returns
 * that request, NULL at the end of the walk.
 */
static HsApiCall *
turn_page(Pull *pull, HsApiCall *call)
{
	const HsJson *root = finish_page(pull, call);
	bool		listing = is_listing(pull);
	bool		wide = is_wide(pull);
	HsRange		range;
	HsRecordPage page = {
		.results = hs_json_member(root, "results"),
		.provisional = !listing,
		.in_recycle_bin = pull->phase == PHASE_ARCHIVED
	};
	HsApiCall  *next;
	bool		more;

	if (root == NULL)
		return listing ? start_over(pull) : end_early(pull);

	note_t0(pull);
	if (wide)
		hs_store_read_ids(&pull->store, &page);
	else
		hs_store_read(&pull->store, &page);
	if (page.has_nameless && !listing)
		keep_watermark(pull, "HubSpot's search brought records without a usable id; the next run looks for them again");
	more = listing ? advance_list(pull, root) : advance_search(pull, root);
	note_range(pull, &page, &range, more);
	more = help_list(pull, more);
	leave_page(pull, more);
	next = start_next(pull);
	if (wide)
		store_by_batch(pull, &page);
	else
		hs_store_save(&pull->store, &page, checkpoint_text(pull));
	return next;
}

/* Has the log say why searches have not helped the list. */
static void
note_problem(Pull *pull)
{
	MemoryContext old = MemoryContextSwitchTo(pull->run->context);

	pull->run->remark =
		psprintf("HubSpot's search did not help to read the list, so the list was read to its end: %s",
				 pull->descent.problem);
	MemoryContextSwitchTo(old);
}

/* Stores the page that searches have brought to help the list, if any. */
static void
turn_descent(Pull *pull)
{
	HsRecordPage page = {0};

	if (hs_descent_turn(&pull->descent, pull->last_id, &page))
		hs_store_save(&pull->store, &page, checkpoint_text(pull));
	else if (pull->descent.problem != NULL)
		note_problem(pull);
}

/*
 * Waits for a page of the list, or of the searches that help it, and returns
 * true if it is one of the latter.  Where both are there, the side that was
 * not served last comes first.
 */
static bool
descent_comes_first(Pull *pull, HsApiCall *list)
{
	bool		prefers = !pull->descended;
	HsApiCall  *calls[2] = {
		prefers ? pull->descent.call : list,
		prefers ? list : pull->descent.call
	};

	pull->descended = pull->descent.call != NULL &&
		calls[hs_api_wait_any(pull->run->api, calls, 2)] != list;
	return pull->descended;
}

/* Walks from where the run stands to the end of the pages. */
static void
walk(Pull *pull)
{
	MemoryContext old = MemoryContextSwitchTo(pull->page_context);
	HsApiCall  *call = start_next(pull);

	while (call != NULL)
	{
		if (descent_comes_first(pull, call))
			turn_descent(pull);
		else
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
						  pull->t0, pull->completes_full && pull->refused == 0,
						  pull->deep, pull->store.mapping->fingerprint);
	if (pull->swept)
		hs_catalog_save_sweep(&request->connection_id, request->sync_type,
							  pull->swept_to, pull->swept_id);
}

/*
 * Notes that the run did not believe what it found absent: it does not count
 * as the full run.
 */
static void
save_refusal(Pull *pull)
{
	const HsRunRequest *request = &pull->run->request;

	hs_catalog_refuse_absences(&request->connection_id, request->sync_type,
							   &pull->run->id);
	hs_catalog_save_refusal(&request->connection_id, request->sync_type);
	pull->run->refused = pull->refused;
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
	if (pull->refused > 0)
		save_refusal(pull);
	else if (pull->completes_full)
		hs_catalog_clear_absences(&request->connection_id, request->sync_type);
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

	if (pull->store.mapping->all_properties && !pull->store.mapping->is_owners)
		find_properties(pull);
	measure_requests(pull);
	if (pull->retry_ids != NIL)
		retry_errors(pull);
	walk(pull);
	pull->refused = hs_reconcile(&pull->store,
								 pull->completes_full && !pull->unordered);
	hs_history_read(&pull->store);
	complete(pull);
}
