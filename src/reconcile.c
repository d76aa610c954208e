/*-------------------------------------------------------------------------
 *
 * reconcile.c
 *	  Settling what a walk has missed.
 *
 * The records noted by absence.c are read by batch, and what is seen decides
 * (facts sections 4 and 7):
 *
 *	  its own id is returned	it is there: it is stored
 *	  another record returned, or met by the walk, says that it was merged
 *	  into it					it is marked as merged into that one
 *	  neither					it is gone for good; an archived one only if the
 *								recycle bin has it no more either
 *
 * Batch read may follow a merged-away id to its survivor or not: HubSpot does
 * not say.  Both lead to the same.
 *
 * First all are read, then all are marked: a token that has lost permissions
 * sees a part of the records and would have the rest marked.  So a full walk
 * that finds more gone than anybody deletes in a week marks none of them
 * until somebody accepts it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "absence.h"
#include "reconcile.h"
#include "target.h"

/* More records gone than both of these are not believed. */
#define MAX_GONE 100
#define MAX_GONE_SHARE 0.10

/* What reading a batch of noted records has said. */
typedef struct Verdicts
{
	const char *ids[HS_API_BATCH_LIMIT];
	const char *verdicts[HS_API_BATCH_LIMIT];
	const char *survivors[HS_API_BATCH_LIMIT];
	int			n;
	const char *settled[HS_API_BATCH_LIMIT];	/* that need no verdict */
	int			nsettled;
} Verdicts;

/* Whether a page brings the record of that id itself. */
static bool
brings(const HsRecordPage *page, const char *id)
{
	for (int i = 0; i < page->nids; i++)
	{
		if (strcmp(page->ids[i], id) == 0)
			return true;
	}
	return false;
}

/* The record that says it has taken in that of this id, NULL for none. */
static const char *
named_survivor(const HsRecordPage *page, const char *id)
{
	for (int i = 0; i < page->nmerged; i++)
	{
		if (strcmp(page->merged_ids[i], id) == 0)
			return page->survivors[i];
	}
	return NULL;
}

/* The record that a noted one was merged into, NULL for none. */
static const char *
survivor_of(const HsRecordPage *page, const HsAbsence *absence)
{
	const char *named = named_survivor(page, absence->record_id);

	return named ? named : absence->merged_into;
}

/* Whether a noted record is one of the recycle bin's. */
static bool
is_archived(const HsAbsence *absence)
{
	return strcmp(absence->kind, "archive") == 0;
}

/*
 * Judges one noted record by what its batch has brought, from the live
 * records and from the recycle bin.
 */
static void
judge(Verdicts *v, const HsRecordPage *page, const HsRecordPage *bin,
	  const HsAbsence *absence)
{
	const char *survivor = survivor_of(page, absence);

	if (brings(page, absence->record_id) ||
		(survivor == NULL && brings(bin, absence->record_id)))
	{
		v->settled[v->nsettled++] = absence->record_id;
		return;
	}
	v->ids[v->n] = absence->record_id;
	v->verdicts[v->n] = survivor ? HS_REASON_MERGED : HS_REASON_GONE;
	v->survivors[v->n++] = survivor;
}

/* Writes a batch's verdicts. */
static void
save_verdicts(HsStore *store, const Verdicts *v)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;

	hs_run_begin(store->run);
	hs_catalog_judge_absences(connection, store->type->name, &store->run->id,
							  v->ids, v->verdicts, v->survivors, v->n);
	hs_catalog_drop_absences(connection, store->type->name, v->settled,
							 v->nsettled);
	hs_run_commit(store->run);
}

/* The next batch of noted records that are still to be read, by their ids. */
static List *
next_unread(HsStore *store, bool full, const char *after)
{
	List	   *batch;

	hs_run_begin(store->run);
	batch = hs_catalog_unread_absences(&store->run->request.connection_id,
									   store->type->name, full, after,
									   HS_API_BATCH_LIMIT);
	hs_run_commit(store->run);
	return batch;
}

/* Whether an answer has results, but none that was asked for. */
static bool
brings_others(List *batch, const HsRecordPage *page)
{
	ListCell   *lc;

	foreach(lc, batch)
	{
		if (brings(page, ((HsAbsence *) lfirst(lc))->record_id))
			return false;
	}
	return hs_json_length(page->results) > 0;
}

/*
 * Whether an answer has the record that a noted one was merged into: it says
 * so, or it is known to be that one.
 */
static bool
brings_survivor(const HsRecordPage *page, const HsAbsence *absence)
{
	return named_survivor(page, absence->record_id) != NULL ||
		(absence->merged_into != NULL && brings(page, absence->merged_into));
}

/*
 * Whether an answer brings others, and none that a record asked for was merged
 * into: it may answer another question, and then that it leaves out these
 * records says nothing about them.
 */
static bool
is_foreign(List *batch, const HsRecordPage *page)
{
	ListCell   *lc;

	foreach(lc, batch)
	{
		if (brings_survivor(page, lfirst(lc)))
			return false;
	}
	return brings_others(batch, page);
}

/* Reads records by id, live ones or those in the recycle bin. */
static void
read_records(HsStore *store, const char *const *ids, int n, bool archived,
			 HsRecordPage *page)
{
	HsApi	   *api = store->run->api;
	HsApiCall  *call = hs_api_batch_read(api, store->type->object_type,
										 store->mapping->properties, archived,
										 ids, n);

	page->results = hs_json_member(hs_api_finish(api, call), "results");
	hs_store_read(store, page);
}

/* Whether the bin has to say what has become of a record. */
static bool
needs_bin(const HsAbsence *absence, const HsRecordPage *page)
{
	return is_archived(absence) && !brings(page, absence->record_id);
}

/* Looks for archived records of a batch that are not live in the bin. */
static void
look_into_bin(HsStore *store, List *batch, const HsRecordPage *page,
			  HsRecordPage *bin)
{
	const char *ids[HS_API_BATCH_LIMIT] = {NULL};
	int			n = 0;
	ListCell   *lc;

	foreach(lc, batch)
	{
		const HsAbsence *absence = lfirst(lc);

		if (needs_bin(absence, page))
			ids[n++] = absence->record_id;
	}
	if (n > 0)
		read_records(store, ids, n, true, bin);
}

/* Whether two answers have brought the same records, and any at all. */
static bool
is_same(const HsRecordPage *a, const HsRecordPage *b)
{
	if (a->nids != b->nids)
		return false;
	for (int i = 0; i < a->nids; i++)
	{
		if (!brings(b, a->ids[i]))
			return false;
	}
	return a->nids > 0;
}

/* Reads the live records of a batch. */
static void
read_live(HsStore *store, List *batch, HsRecordPage *page)
{
	const char *ids[HS_API_BATCH_LIMIT] = {NULL};
	int			n = 0;
	ListCell   *lc;

	foreach(lc, batch)
		ids[n++] = ((HsAbsence *) lfirst(lc))->record_id;
	*page = (HsRecordPage){.settles = true};
	read_records(store, ids, n, false, page);
}

/*
 * Reads one record once more whose answer was about another.  If that comes
 * again, it counts: the record may have been merged into it.  Returns false if
 * something else comes that is not about it.
 */
static bool
read_again(HsStore *store, List *batch, HsRecordPage *page)
{
	HsRecordPage first = *page;

	read_live(store, batch, page);
	return !is_foreign(batch, page) || is_same(&first, page);
}

static void read_batch(HsStore *store, List *batch);

/* Reads the records of a batch one by one: their answer was about others. */
static void
read_alone(HsStore *store, List *batch)
{
	ListCell   *lc;

	foreach(lc, batch)
		read_batch(store, list_make1(lfirst(lc)));
}

/*
 * Reads a batch of noted records, stores those that are there and judges the
 * others.  One that is answered by what was not asked for is not judged: it
 * stays noted, or the next full walk notes it again.
 */
static void
read_batch(HsStore *store, List *batch)
{
	ListCell   *lc;
	HsRecordPage page;
	HsRecordPage bin = {.in_recycle_bin = true};
	Verdicts	verdicts = {.n = 0};

	read_live(store, batch, &page);
	if (is_foreign(batch, &page))
	{
		if (list_length(batch) > 1)
		{
			read_alone(store, batch);
			return;
		}
		if (!read_again(store, batch, &page))
			return;
	}
	look_into_bin(store, batch, &page, &bin);
	if (brings_others(batch, &bin))
	{
		if (list_length(batch) > 1)
			read_alone(store, batch);
		return;
	}
	foreach(lc, batch)
		judge(&verdicts, &page, &bin, lfirst(lc));
	hs_store_save(store, &page, NULL);
	save_verdicts(store, &verdicts);
}

/*
 * How many records that a list has missed, that of live records or that of
 * archived ones, are gone without anybody having accepted it, if that is too
 * much to be believed; else 0.
 */
static int
count_unbelievable(HsStore *store, bool live_list)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;
	double		gone;
	double		live = 0;

	hs_run_begin(store->run);
	hs_mapping_check_target(store->mapping);
	gone = hs_catalog_count_gone(connection, store->type->name, live_list);
	if (gone > MAX_GONE)
		live = store->mapping->keeps_rows
			? hs_catalog_count_rows(connection, store->type->name)
			: hs_target_count(store->mapping, connection);
	hs_run_commit(store->run);
	return gone > MAX_GONE && gone > live * MAX_GONE_SHARE ? (int) gone : 0;
}

/* The next batch of records that may be marked. */
static List *
next_judged(HsStore *store, bool full, bool refused, bool bin_refused)
{
	List	   *batch;

	hs_run_begin(store->run);
	batch = hs_catalog_judged_absences(&store->run->request.connection_id,
									   store->type->name, full, refused,
									   bin_refused, HS_API_BATCH_LIMIT);
	hs_run_commit(store->run);
	return batch;
}

/* Marks, or deletes, the rows of records that are gone or merged. */
static void
mark_batch(HsStore *store, List *batch)
{
	int			n = list_length(batch);
	HsRecordPage page = {
		.settles = true,
		.records = palloc(sizeof(HsRecord *) * n),
		.ids = palloc(sizeof(char *) * n)
	};
	ListCell   *lc;

	foreach(lc, batch)
	{
		const HsAbsence *absence = lfirst(lc);
		HsRecord   *record = palloc0(sizeof(HsRecord));

		record->id = absence->record_id;
		record->archived_at = GetCurrentTimestamp();
		record->reason = strcmp(absence->kind, HS_REASON_MERGED) == 0
			? HS_REASON_MERGED : HS_REASON_GONE;
		record->merged_into = absence->merged_into;
		page.ids[page.nids++] = record->id;
		page.records[page.nrecords++] = record;
	}
	hs_store_save(store, &page, NULL);
}

/* Reads what is noted, then marks what may be believed. */
static int
settle(HsStore *store, bool full, MemoryContext context)
{
	List	   *batch;
	char	   *after = MemoryContextStrdup(store->run->context, "");
	int			refused = 0;
	bool		bin_refused;

	while ((batch = next_unread(store, full, after)) != NIL)
	{
		pfree(after);
		after = MemoryContextStrdup(store->run->context,
									((HsAbsence *) llast(batch))->record_id);
		read_batch(store, batch);
		MemoryContextReset(context);
	}
	pfree(after);
	if (full)
		refused = count_unbelievable(store, true);
	bin_refused = count_unbelievable(store, false) > 0;
	while ((batch = next_judged(store, full, refused > 0, bin_refused)) != NIL)
	{
		mark_batch(store, batch);
		MemoryContextReset(context);
	}
	return refused;
}

/*
 * Settles the records noted: those of other records' claims and of the list
 * of archived records, and, after a `full` walk, those it has missed.
 * Returns how many are gone that are too many to be believed and were left as
 * they are.  No transaction may be open.
 */
int
hs_reconcile(HsStore *store, bool full)
{
	MemoryContext context;
	MemoryContext old;
	int			refused;

	if (!store->notes_absences || !store->has_absences)
		return 0;
	context = AllocSetContextCreate(store->run->context,
									"hubspot_sync reconcile",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	refused = settle(store, full, context);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return refused;
}
