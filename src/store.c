/*-------------------------------------------------------------------------
 *
 * store.c
 *	  Pages of records into a target table.
 *
 * A page is read without a transaction: records are told from junk, mapped to
 * text values, and of several versions of one record the newest is kept.  It
 * is saved in one transaction.  Where the data is at fault, the page is
 * halved until the guilty record stands alone; it becomes a dead letter, and
 * the others are stored.  Any other error is not a record's fault and stops
 * the run.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "absence.h"
#include "history.h"
#include "store.h"
#include "subxact.h"
#include "target.h"

/* A payload larger than this is not kept in sync_errors. */
#define MAX_PAYLOAD (4 * 1024 * 1024)

/* Ids and e-mails longer than these are none. */
#define MAX_RECORD_ID 100
#define MAX_EMAIL 1000

/* How much of a refused value its message shows. */
#define MAX_SHOWN 100

/* Stages that no pipeline has: beyond so many, none is asked for any more. */
#define MAX_UNKNOWN_STAGES 1000

/* ------------------------------------------------------------------------
 * The meaning of stages
 * ------------------------------------------------------------------------
 */

/*
 * What a stage's metadata says (facts section 8): closed with probability 1
 * is won, closed otherwise lost.  Where isClosed is missing, the
 * probabilities 1 and 0 stand for closed.
 */
static const char *
status_of_stage(const HsJson *stage)
{
	const HsJson *metadata = hs_json_member(stage, "metadata");
	const char *text = hs_json_text(hs_json_member(metadata, "probability"));
	double		probability = text ? strtod(text, NULL) : 0.5;
	bool		closed;

	if (!hs_json_bool(hs_json_member(metadata, "isClosed"), &closed))
		closed = probability >= 1 || probability <= 0;
	if (!closed)
		return "open";
	return probability >= 1 ? "won" : "lost";
}

/*
 * Adds a stage, or replaces what was known of it.  Allocated in the current
 * memory context.
 */
static void
add_stage(HsStore *store, const char *id, const char *status)
{
	HsStage    *stage;
	ListCell   *lc;

	foreach(lc, store->stages)
	{
		stage = lfirst(lc);
		if (strcmp(stage->id, id) == 0)
		{
			stage->status = status;
			return;
		}
	}
	stage = palloc(sizeof(HsStage));
	stage->id = pstrdup(id);
	stage->status = status;
	store->stages = lappend(store->stages, stage);
}

/*
 * Reads the pipelines.
 */
static void
refresh_stages(HsStore *store)
{
	HsApi	   *api = store->run->api;
	HsApiCall  *call = hs_api_pipelines(api, store->type->object_type);
	const HsJson *pipelines = hs_json_member(hs_api_finish(api, call),
											 "results");
	MemoryContext old = MemoryContextSwitchTo(store->run->context);

	for (int i = 0; i < hs_json_length(pipelines); i++)
	{
		const HsJson *stages = hs_json_member(hs_json_element(pipelines, i),
											  "stages");

		for (int j = 0; j < hs_json_length(stages); j++)
		{
			const HsJson *stage = hs_json_element(stages, j);
			const char *id = hs_json_text(hs_json_member(stage, "id"));

			if (id != NULL)
				add_stage(store, id, status_of_stage(stage));
		}
	}
	MemoryContextSwitchTo(old);
}

/*
 * Fills in a record's values.  The first unknown stage of a page has the
 * pipelines read; what is unknown then has no status, for the rest of the
 * run.
 */
static void
fill_record(HsStore *store, HsRecordPage *page, HsRecord *record)
{
	const char *unknown = hs_mapping_fill(store->mapping, record, store->stages);

	if (unknown == NULL || store->nunknown >= MAX_UNKNOWN_STAGES)
		return;
	if (!page->stages_read)
	{
		page->stages_read = true;
		refresh_stages(store);
		unknown = hs_mapping_fill(store->mapping, record, store->stages);
	}
	if (unknown != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(store->run->context);

		add_stage(store, unknown, NULL);
		store->nunknown++;
		MemoryContextSwitchTo(old);
	}
}

/* ------------------------------------------------------------------------
 * Reading a page
 * ------------------------------------------------------------------------
 */

/* A stand-in for an id that is missing or too long: the payload's hash. */
static char *
payload_hash(const char *payload)
{
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA256);
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	StringInfoData text;

	if (ctx == NULL || pg_cryptohash_init(ctx) < 0 ||
		pg_cryptohash_update(ctx, (const uint8 *) payload, strlen(payload)) < 0 ||
		pg_cryptohash_final(ctx, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute a SHA-256 hash");
	pg_cryptohash_free(ctx);
	initStringInfo(&text);
	appendStringInfoString(&text, "sha256:");
	for (size_t i = 0; i < sizeof(digest); i++)
		appendStringInfo(&text, "%02x", digest[i]);
	return text.data;
}

/* Adds a dead letter to the page. */
static void
add_letter(HsRecordPage *page, const HsRecord *record, const char *category,
		   const char *property, const char *message)
{
	HsDeadLetter *letter = palloc0(sizeof(HsDeadLetter));
	StringInfoData payload;

	initStringInfo(&payload);
	if (record->json != NULL || record->id == NULL)
		hs_json_append(&payload, record->json);
	else
	{
		appendStringInfoString(&payload, "{\"id\": ");
		hs_json_append_string(&payload, record->id);
		appendStringInfoChar(&payload, '}');
	}
	letter->payload = payload.data;
	letter->record_id = record->id;
	letter->email = hs_json_text(hs_json_member(record->properties, "email"));
	letter->property = property;
	letter->category = category;
	letter->message = message;
	page->letters = lappend(page->letters, letter);
}

/* Makes a dead letter of a record without a usable id. */
static void
reject_record(HsRecordPage *page, const HsRecord *record, const char *problem)
{
	page->has_nameless = true;
	add_letter(page, record, problem, NULL,
			   record->id == NULL || record->id[0] == '\0'
			   ? "the record has no id" : "the record's id is not a number");
}

/* Makes a dead letter of a record with a value that cannot be right. */
static void
refuse_value(HsStore *store, HsRecordPage *page, const HsRecord *record)
{
	int			i = record->refused - store->mapping->columns;

	add_letter(page, record, "invalid_value", record->refused->property,
			   psprintf("invalid value for column \"%s\": \"%s\"",
						record->refused->name,
						hs_json_clip(record->values[i], MAX_SHOWN)));
}

/* By id, of the same id the newest last. */
static int
compare_records(const void *a, const void *b)
{
	const HsRecord *ra = *(HsRecord *const *) a;
	const HsRecord *rb = *(HsRecord *const *) b;

	if (ra->id_number != rb->id_number)
		return ra->id_number < rb->id_number ? -1 : 1;
	if (ra->updated_at != rb->updated_at)
		return ra->updated_at < rb->updated_at ? -1 : 1;
	return 0;
}

/* Keeps of every id the newest record; the others count as unchanged. */
static void
drop_duplicates(HsRecordPage *page)
{
	int			kept = 0;

	qsort(page->records, page->nrecords, sizeof(HsRecord *), compare_records);
	for (int i = 0; i < page->nrecords; i++)
	{
		if (kept > 0 &&
			page->records[kept - 1]->id_number == page->records[i]->id_number)
			kept--;
		page->records[kept++] = page->records[i];
	}
	page->nrecords = kept;
}

/* Makes room for the ids of a page of `n` results. */
static void
allocate_ids(HsRecordPage *page, int n)
{
	page->received = n;
	page->ids = palloc(sizeof(char *) * Max(n, 1));
	page->id_numbers = palloc(sizeof(int64) * Max(n, 1));
}

/*
 * Reads one result's id and dates.  Returns false, with a dead letter, if it
 * has no usable id.
 */
static bool
read_result(HsStore *store, HsRecordPage *page, int i, HsRecord *record)
{
	const char *problem;

	if (!hs_mapping_read_record(store->mapping,
								hs_json_element(page->results, i),
								record, &problem))
	{
		reject_record(page, record, problem);
		return false;
	}
	record->archived |= page->in_recycle_bin;
	page->id_numbers[page->nids] = record->id_number;
	page->ids[page->nids++] = record->id;
	return true;
}

/* What the filters say of a record. */
typedef enum Verdict
{
	VERDICT_KEEP,
	VERDICT_MARK,				/* its row, should there be one */
	VERDICT_LEAVE				/* its row as it is, if there is one */
} Verdict;

/*
 * Asks the type's filters.  A record without the property that decides says
 * nothing against its row: HubSpot leaves out what is not defined, or what
 * the token may not see, for all records at once (facts section 4).
 */
static Verdict
ask_filters(const HsStore *store, HsRecord *record)
{
	const HsFilter *filter = store->mapping->filter;
	bool		known = true;

	if (filter == NULL ||
		hs_filter_keeps(filter, record->properties, &known))
		return VERDICT_KEEP;
	record->reason = record->archived ? HS_REASON_ARCHIVED : HS_REASON_FILTERED;
	return known ? VERDICT_MARK : VERDICT_LEAVE;
}

/*
 * Turns a page's JSON results into records with values, and junk into dead
 * letters.  Makes requests only for the meaning of unknown stages, so no
 * transaction may be open.  Everything belongs to the current memory context.
 */
void
hs_store_read(HsStore *store, HsRecordPage *page)
{
	int			n = hs_json_length(page->results);

	allocate_ids(page, n);
	page->records = palloc(sizeof(HsRecord *) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		HsRecord   *record = palloc(sizeof(HsRecord));
		Verdict		verdict;

		if (!read_result(store, page, i, record))
			continue;
		hs_absence_read_merges(store, page, record);
		verdict = ask_filters(store, record);
		if (verdict == VERDICT_LEAVE)
			continue;
		if (verdict == VERDICT_KEEP)
			fill_record(store, page, record);
		if (record->refused != NULL)
			refuse_value(store, page, record);
		else
			page->records[page->nrecords++] = record;
	}
	drop_duplicates(page);
}

/*
 * Takes the usable ids out of a page that lists nothing but ids, and leaves
 * dead letters for the rest.
 */
void
hs_store_read_ids(HsStore *store, HsRecordPage *page)
{
	int			n = hs_json_length(page->results);
	HsRecord	record;

	allocate_ids(page, n);
	for (int i = 0; i < n; i++)
		(void) read_result(store, page, i, &record);
	page->received = list_length(page->letters);
}

/* ------------------------------------------------------------------------
 * Storing with the data at fault
 * ------------------------------------------------------------------------
 */

/* What is done with a record. */
typedef enum RecordGroup
{
	GROUP_LIVE,					/* stored */
	GROUP_ARCHIVED,				/* stored as archived, or deleted */
	GROUP_ABSENT,				/* its row marked, or deleted */
	GROUPS
} RecordGroup;

static RecordGroup
group_of(const HsRecord *record)
{
	if (record->reason != NULL)
		return GROUP_ABSENT;
	return record->archived ? GROUP_ARCHIVED : GROUP_LIVE;
}

/* Whether the rows of archived and absent records are deleted. */
static bool
policy_deletes(const HsStore *store)
{
	return strcmp(store->type->delete_policy, "delete") == 0;
}

/*
 * Makes deferred constraints and triggers fire where the record at fault can
 * still be found.
 */
static void
set_constraints_immediate(void)
{
	SPI_connect();
	if (SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "SET CONSTRAINTS failed");
	SPI_finish();
}

/* Whether an error is the data's fault, not the database's. */
static bool
is_record_fault(const ErrorData *error, void *arg)
{
	int			class = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	/* The limit exceeded is that of an index entry, by a value too long. */
	return class == ERRCODE_DATA_EXCEPTION ||
		class == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		error->sqlerrcode == ERRCODE_RAISE_EXCEPTION ||
		error->sqlerrcode == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
}

/* Something to try with some records. */
typedef struct Trial
{
	HsStore    *store;
	HsRecordPage *page;
	HsRecord  **records;
	int			n;
	int			column;
	List	   *written;		/* of char *: ids of rows */
} Trial;

/*
 * Whether sync_rows has something to say about this target's records: where
 * the target lacks the columns, and where deleted rows can say nothing.
 */
static bool
remembers_rows(const HsStore *store)
{
	return store->mapping->keeps_rows || policy_deletes(store);
}

/*
 * Marks rows.  A target without the column for it, which is one that keeps
 * no deleted records, is left alone.
 */
static uint64
mark_records(const Trial *t, const pg_uuid_t *connection)
{
	if (t->store->mapping->mark.sql == NULL)
		return 0;
	return hs_target_mark(t->store->mapping, connection, t->records, t->n);
}

/*
 * Deletes rows, but not those that the sync did not write: their records were
 * archived before it came.
 */
static uint64
delete_records(const Trial *t, const pg_uuid_t *connection)
{
	HsRecord  **records = palloc(sizeof(HsRecord *) * t->n);
	int			n = 0;

	for (int i = 0; i < t->n; i++)
	{
		if (!t->records[i]->unknown)
			records[n++] = t->records[i];
	}
	return n == 0 ? 0 : hs_target_delete(t->store->mapping, connection,
										 records, n);
}

/* Stores, marks or deletes records that are all of one group. */
static void
store_records(void *arg)
{
	Trial	   *t = arg;
	HsMapping  *mapping = t->store->mapping;
	const pg_uuid_t *connection = &t->store->run->request.connection_id;
	RecordGroup group = group_of(t->records[0]);
	uint64		written;

	if (group != GROUP_LIVE && policy_deletes(t->store))
		written = delete_records(t, connection);
	else if (group == GROUP_ABSENT)
		written = mark_records(t, connection);
	else
		written = hs_target_store(mapping, connection, t->page->provisional,
								  t->records, t->n, &t->written);
	set_constraints_immediate();
	t->page->changed += written;
	if (group != GROUP_LIVE)
		t->page->archived += written;
}

/* Tries the value of one column of one record. */
static void
try_value(void *arg)
{
	Trial	   *t = arg;

	hs_mapping_try_value(t->store->mapping, t->records[0], t->column);
}

/*
 * The property, or else the column, whose value the column's type refuses;
 * NULL if it is none of them.
 */
static const char *
find_culprit(HsStore *store, HsRecord *record)
{
	for (int i = 0; record->values != NULL && i < store->mapping->ninputs; i++)
	{
		const HsColumn *column = &store->mapping->columns[i];
		Trial		trial = {.store = store, .records = &record, .column = i};

		if ((record->values[i] != NULL || column->kind == HS_COLUMN_PROPERTIES) &&
			hs_subxact_try(try_value, is_record_fault, &trial) != NULL)
			return column->property ? column->property : column->name;
	}
	return NULL;
}

/*
 * Makes a dead letter of the one record that could not be stored, with copies
 * of what the error says.
 */
static void
bury(HsStore *store, HsRecordPage *page, HsRecord *record,
	 const ErrorData *error)
{
	const char *category = "trigger";
	const char *property = NULL;
	int			class = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	if (class == ERRCODE_DATA_EXCEPTION ||
		error->sqlerrcode == ERRCODE_PROGRAM_LIMIT_EXCEEDED)
	{
		category = "invalid_value";
		property = find_culprit(store, record);
	}
	else if (class == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
	{
		category = "constraint";
		property = error->column_name ? pstrdup(error->column_name) : NULL;
	}
	add_letter(page, record, category, property,
			   error->detail ? psprintf("%s: %s", error->message, error->detail)
			   : pstrdup(error->message));
}

/* Adds copies of ids to those of the page's rows that were written. */
static void
note_written(HsStore *store, List *ids)
{
	ListCell   *lc;

	foreach(lc, ids)
		store->written = lappend(store->written, pstrdup(lfirst(lc)));
}

/*
 * Tries to store records all at once.  Returns whether that went well; a
 * single one that is at fault is buried.  What an attempt needs is freed: a
 * page may need hundreds.
 */
static bool
try_range(HsStore *store, HsRecordPage *page, HsRecord **records, int n)
{
	Trial		trial = {.store = store, .page = page, .records = records, .n = n};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller,
												  "hubspot_sync attempt",
												  ALLOCSET_DEFAULT_SIZES);
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = hs_subxact_try(store_records, is_record_fault, &trial);
	MemoryContextSwitchTo(caller);
	if (error == NULL)
		note_written(store, trial.written);
	else if (n == 1)
		bury(store, page, records[0], error);
	MemoryContextDelete(context);
	return error == NULL;
}

/*
 * Stores records, halving them as long as an error is the data's fault, until
 * the guilty one stands alone.  Guilty ones are removed from `records` by
 * setting them to NULL.
 */
static void
store_range(HsStore *store, HsRecordPage *page, HsRecord **records, int n)
{
	if (n == 0 || try_range(store, page, records, n))
		return;
	if (n == 1)
	{
		records[0] = NULL;
		return;
	}
	store_range(store, page, records, n / 2);
	store_range(store, page, records + n / 2, n - n / 2);
}

/* ------------------------------------------------------------------------
 * Saving a page
 * ------------------------------------------------------------------------
 */

/* Whether a record is known to be gone or merged away. */
static bool
is_buried(const HsKnownRow *known)
{
	return hs_mapping_same_text(known->reason, HS_REASON_GONE) ||
		hs_mapping_same_text(known->reason, HS_REASON_MERGED);
}

/* Whether an absent record's reason says more than what is known. */
static bool
says_more(const HsRecord *r, const HsKnownRow *known)
{
	if (r->merged_into != NULL)
		return !hs_mapping_same_text(known->merged_into, r->merged_into);
	return hs_mapping_same_text(r->reason, HS_REASON_GONE) &&
		hs_mapping_same_text(known->reason, HS_REASON_ARCHIVED);
}

/* Whether what is known of a record makes it unnecessary to look at it. */
static bool
is_settled(const HsStore *store, const HsRecordPage *page,
		   const HsRecord *r, const HsKnownRow *known)
{
	if (!known->found)
		return r->reason != NULL && store->mapping->keeps_rows;
	/* What was merged may lie in the bin as well; what was deleted is. */
	if (known->archived && group_of(r) == GROUP_ARCHIVED &&
		(known->merged_into != NULL || policy_deletes(store)))
		return true;
	if (r->updated_at != 0 && r->updated_at < known->updated_at)
		return true;			/* older */
	if (r->reason != NULL)
		return known->archived && !says_more(r, known);
	/* The index of a search may lag behind. */
	return page->provisional && known->archived && !r->archived &&
		(is_buried(known) || known->updated_at == 0 ||
		 r->updated_at <= known->updated_at);
}

/*
 * Leaves out records that are older than what is stored, and rows that the
 * sync did not write, for targets that cannot tell by themselves.  Returns
 * how many are left.
 */
static int
drop_settled(HsStore *store, const HsRecordPage *page, HsRecord **records,
			 int n)
{
	HsKnownRow *known = palloc(sizeof(HsKnownRow) * n);
	const char **ids = palloc(sizeof(char *) * n);
	int			kept = 0;

	for (int i = 0; i < n; i++)
		ids[i] = records[i]->id;
	hs_catalog_known_rows(&store->run->request.connection_id,
						  store->type->name, ids, n, known);
	for (int i = 0; i < n; i++)
	{
		records[i]->unknown = !known[i].found && store->mapping->keeps_rows;
		if (!is_settled(store, page, records[i], &known[i]))
			records[kept++] = records[i];
	}
	return kept;
}

/* Keeps the books on records that were stored, marked or deleted. */
static void
save_rows(HsStore *store, HsRecord **records, const char **ids, int n)
{
	const char **updated = palloc(sizeof(char *) * n);
	const char **archived = palloc(sizeof(char *) * n);
	const char **archived_at = palloc(sizeof(char *) * n);
	const char **reason = palloc(sizeof(char *) * n);
	const char **merged_into = palloc(sizeof(char *) * n);
	HsRowNotes	notes = {ids, updated, archived, archived_at, reason,
						 merged_into, n};

	for (int i = 0; i < n; i++)
	{
		const HsRecord *r = records[i];
		RecordGroup group = group_of(r);

		updated[i] = hs_mapping_time_text(r->updated_at);
		archived[i] = group == GROUP_LIVE ? "false" : "true";
		archived_at[i] = group == GROUP_LIVE ? NULL : hs_mapping_time_text(r->archived_at);
		reason[i] = group == GROUP_ARCHIVED ? HS_REASON_ARCHIVED : r->reason;
		merged_into[i] = r->merged_into;
	}
	hs_catalog_save_rows(&store->run->request.connection_id,
						 store->type->name, &notes);
}

/* Whether the books are kept on records of a group and reason. */
static bool
keeps_books(const HsStore *store, const HsRecord *record)
{
	RecordGroup group = group_of(record);

	if (store->mapping->keeps_rows)
		return true;
	if (!policy_deletes(store) || group == GROUP_LIVE)
		return false;
	/* What filters leave out may be most of the account. */
	return record->reason == NULL ||
		strcmp(record->reason, HS_REASON_FILTERED) != 0;
}

/* What follows for records that were stored: errors closed, books kept. */
static void
settle_records(HsStore *store, HsRecord **records, int n, bool provisional)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;
	const char **ids = palloc(sizeof(char *) * Max(n, 1));
	int			stored = 0;

	for (int i = 0; i < n; i++)
	{
		if (records[i] == NULL)
			continue;
		records[stored] = records[i];
		ids[stored++] = records[i]->id;
	}
	if (stored == 0)
		return;
	if (store->has_errors)
		hs_catalog_resolve_errors(connection, store->type->name, ids, stored);
	if (keeps_books(store, records[0]))
		save_rows(store, records, ids, stored);
	else if (policy_deletes(store))
		hs_catalog_forget_rows(connection, store->type->name, ids, stored);
	if (store->mapping->keeps_owner_history)
		hs_history_note(store, records, stored, provisional);
}

/*
 * Saves those of a page's records that are in one group.
 */
static void
save_group(HsStore *store, HsRecordPage *page, RecordGroup group)
{
	HsRecord  **records = palloc(sizeof(HsRecord *) * Max(page->nrecords, 1));
	int			n = 0;

	if (group != GROUP_LIVE && strcmp(store->type->delete_policy, "ignore") == 0)
		return;
	for (int i = 0; i < page->nrecords; i++)
	{
		if (group_of(page->records[i]) == group)
			records[n++] = page->records[i];
	}
	if (n > 0 && remembers_rows(store))
		n = drop_settled(store, page, records, n);
	store_range(store, page, records, n);
	settle_records(store, records, n, page->provisional);
}

/* Writes the page's dead letters. */
static void
save_letters(HsStore *store, HsRecordPage *page)
{
	ListCell   *lc;

	foreach(lc, page->letters)
	{
		HsDeadLetter *letter = lfirst(lc);

		/* Here, in a transaction, since hashing needs a resource owner. */
		if (letter->record_id == NULL || letter->record_id[0] == '\0' ||
			strlen(letter->record_id) > MAX_RECORD_ID)
			letter->record_id = payload_hash(letter->payload);
		if (strlen(letter->payload) > MAX_PAYLOAD)
			letter->payload = NULL;
		if (letter->email != NULL && strlen(letter->email) > MAX_EMAIL)
			letter->email = NULL;
		hs_catalog_dead_letter(&store->run->id,
							   &store->run->request.connection_id,
							   store->type->name, letter);
	}
	if (page->letters != NIL)
		store->has_errors = true;
}

/* How many of a page's dead letters were counted when they were retried. */
static int
count_repeated(const HsStore *store, const HsRecordPage *page)
{
	int			repeated = 0;
	ListCell   *lc;
	ListCell   *known;

	foreach(lc, page->letters)
	{
		const HsDeadLetter *letter = lfirst(lc);

		foreach(known, store->failed_again)
			repeated += strcmp(lfirst(known), letter->record_id) == 0;
	}
	return repeated;
}

/* Adds the page to the run's counters, each failed record once. */
static void
count_page(const HsStore *store, const HsRecordPage *page,
		   HsRunCounters *counters)
{
	int			repeated = count_repeated(store, page);
	int			received = page->received - repeated;
	int			failed = list_length(page->letters) - repeated;

	counters->processed += received;
	counters->failed += failed;
	counters->changed += page->changed;
	counters->archived += page->archived;
	counters->unchanged += Max(received - failed - page->changed, 0);
}

/*
 * Saves a page with all that belongs to it in one transaction: rows, dead
 * letters, counters and, unless NULL, the run's checkpoint.
 */
void
hs_store_save(HsStore *store, HsRecordPage *page, const char *checkpoint)
{
	HsRunCounters counters = store->run->counters;

	store->written = NIL;
	hs_run_begin(store->run);
	hs_mapping_check_target(store->mapping);
	if (store->notes_absences)
		hs_absence_note_missing(store, page);
	for (RecordGroup group = 0; group < GROUPS; group++)
		save_group(store, page, group);
	save_letters(store, page);
	if (store->notes_absences)
		hs_absence_note(store, page);
	count_page(store, page, &counters);
	hs_run_save(store->run, &counters, checkpoint);
	hs_run_commit(store->run);
	hs_run_count(store->run, &counters);
}
