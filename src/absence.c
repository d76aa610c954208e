/*-------------------------------------------------------------------------
 *
 * absence.c
 *	  Noting records that are not where they should be.
 *
 * Nothing tells us of a record that was deleted for good, merged into another
 * or restored from the recycle bin.  What hints at it is noted with the page
 * that brings the hint, in its transaction:
 *
 *	  list		a live row whose id should have been on a page of the list
 *	  merge		a row whose record another one says was merged into it
 *	  archive	an archived row that is not on the list of archived records
 *
 * A hint is no more than that.  reconcile.c reads the noted records one by
 * one and believes what it sees.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "absence.h"
#include "target.h"

/* Digits of the highest id. */
#define MAX_DIGITS 19

/* HubSpot merges fewer records into one (facts section 7). */
#define MAX_MERGES 1000

/* ------------------------------------------------------------------------
 * Merges
 * ------------------------------------------------------------------------
 */

/* Adds a merged-away id to the page. */
static void
add_merge(HsRecordPage *page, const char *id, const char *survivor)
{
	int			n = page->nmerged;

	/* Grown by doubling, whenever the number is a power of two. */
	if (n == 0)
	{
		page->merged_ids = palloc(sizeof(char *));
		page->survivors = palloc(sizeof(char *));
	}
	else if ((n & (n - 1)) == 0)
	{
		page->merged_ids = repalloc(page->merged_ids, sizeof(char *) * n * 2);
		page->survivors = repalloc(page->survivors, sizeof(char *) * n * 2);
	}
	page->merged_ids[n] = id;
	page->survivors[n] = survivor;
	page->nmerged++;
}

/*
 * Reads which other records one says were merged into it: ids separated by
 * semicolons (facts section 7).  What is no id is left out.
 */
void
hs_absence_read_merges(const HsStore *store, HsRecordPage *page,
					   const HsRecord *record)
{
	const HsJson *value = hs_json_member(record->properties,
										 HS_MERGED_IDS_PROPERTY);
	const char *p = hs_json_text(value);

	if (p == NULL || store->mapping->is_owners)
		return;
	for (int n = 0; *p != '\0' && n < MAX_MERGES; n++)
	{
		size_t		len = strcspn(p, ";");

		if (len > 0 && len <= MAX_DIGITS && strspn(p, "0123456789") >= len &&
			p[0] != '0')
		{
			char	   *id = pnstrdup(p, len);

			if (strcmp(id, record->id) != 0)
				add_merge(page, id, record->id);
		}
		p += len + strspn(p + len, ";");
	}
}

/* The same as hs_target_merged(), for targets that sync_rows speaks for. */
static List *
merged_by_books(const HsStore *store, const HsRecordPage *page)
{
	HsKnownRow *known = palloc(sizeof(HsKnownRow) * page->nmerged);
	List	   *merged = NIL;

	hs_catalog_known_rows(&store->run->request.connection_id,
						  store->type->name, page->merged_ids, page->nmerged,
						  known);
	for (int i = 0; i < page->nmerged; i++)
	{
		HsAbsence  *absence;

		if (!known[i].found ||
			(known[i].archived && known[i].merged_into != NULL &&
			 strcmp(known[i].merged_into, page->survivors[i]) == 0))
			continue;
		absence = palloc0(sizeof(HsAbsence));
		absence->record_id = unconstify(char *, page->merged_ids[i]);
		absence->merged_into = unconstify(char *, page->survivors[i]);
		merged = lappend(merged, absence);
	}
	return merged;
}

/* ------------------------------------------------------------------------
 * Ranges
 * ------------------------------------------------------------------------
 */

/* The rows of ours between two ids. */
static List *
rows_between(const HsStore *store, bool archived, const char *low,
			 const char *high)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;
	bool		by_books = store->mapping->keeps_rows ||
		(archived && strcmp(store->type->delete_policy, "delete") == 0);

	return by_books
		? hs_catalog_rows_in_range(connection, store->type->name, low, high,
								   archived)
		: hs_target_rows_in_range(store->mapping, connection, archived, low,
								  high);
}

static int
compare_ids(const void *a, const void *b)
{
	int64		ia = *(const int64 *) a;
	int64		ib = *(const int64 *) b;

	if (ia == ib)
		return 0;
	return ia < ib ? -1 : 1;
}

/* Whether a row's id is one that its part of the list should have had. */
static bool
is_missing(const HsRange *range, const char *id)
{
	int64		number = strtoi64(id, NULL, 10);

	/* What is no number in the one spelling of ids is nobody's record. */
	if (id[0] == '\0' || strspn(id, "0123456789") != strlen(id))
		return false;
	return bsearch(&number, range->present, range->n, sizeof(int64),
				   compare_ids) == NULL;
}

/* The rows of ours that a part of a list should have had. */
static List *
missing_in_range(const HsStore *store, bool archived, const HsRange *range)
{
	List	   *missing = NIL;
	ListCell   *lc;

	foreach(lc, rows_between(store, archived,
							 psprintf(INT64_FORMAT, range->low + 1),
							 psprintf(INT64_FORMAT, range->high)))
	{
		if (is_missing(range, lfirst(lc)))
			missing = lappend(missing, lfirst(lc));
	}
	return missing;
}

/* ------------------------------------------------------------------------
 * Noting
 * ------------------------------------------------------------------------
 */

/* Writes ids, and who claims them, to sync_absences. */
static void
note(HsStore *store, const char *origin, const char **ids,
	 const char **survivors, int n)
{
	if (n == 0)
		return;
	hs_catalog_note_absences(&store->run->request.connection_id,
							 store->type->name, &store->run->id, origin, ids,
							 survivors, n);
	store->has_absences = true;
}

/* Writes a list of ids (char *) to sync_absences. */
static void
note_list(HsStore *store, const char *origin, List *list)
{
	int			max = Max(list_length(list), 1);
	const char **ids = palloc(sizeof(char *) * max);
	const char **survivors = palloc0(sizeof(char *) * max);
	ListCell   *lc;
	int			n = 0;

	foreach(lc, list)
		ids[n++] = lfirst(lc);
	note(store, origin, ids, survivors, n);
}

/*
 * Notes what the page's part of a list lacks, in the transaction that stores
 * the page; best before it is stored, when the rows of a first load are not
 * there to be looked at.
 */
void
hs_absence_note_missing(HsStore *store, const HsRecordPage *page)
{
	bool		archived = page->in_recycle_bin;

	if (page->range == NULL)
		return;
	note_list(store, archived ? "archive" : "list",
			  missing_in_range(store, archived, page->range));
}

/*
 * Notes records that a search still shows, or shows again, though they are
 * gone or merged away for all we know.  A search's word is not enough.
 */
static void
note_buried(HsStore *store, const HsRecordPage *page)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;
	bool		by_books = store->mapping->keeps_rows ||
		strcmp(store->type->delete_policy, "delete") == 0;

	note_list(store, "archive", by_books
			  ? hs_catalog_buried_rows(connection, store->type->name,
									   page->ids, page->nids)
			  : hs_target_buried(store->mapping, connection, page->ids,
								 page->nids));
}

/* Notes rows whose record was merged into one of the page. */
static void
note_merges(HsStore *store, const HsRecordPage *page)
{
	List	   *merged = store->mapping->keeps_rows
		? merged_by_books(store, page)
		: hs_target_merged(store->mapping, &store->run->request.connection_id,
						   page->merged_ids, page->survivors, page->nmerged);
	const char **ids = palloc(sizeof(char *) * Max(list_length(merged), 1));
	const char **survivors = palloc(sizeof(char *) *
									Max(list_length(merged), 1));
	ListCell   *lc;
	int			n = 0;

	foreach(lc, merged)
	{
		const HsAbsence *absence = lfirst(lc);

		ids[n] = absence->record_id;
		survivors[n++] = absence->merged_into;
	}
	note(store, "merge", ids, survivors, n);
}

/*
 * Notes what the records of a page hint at, in the transaction that stores
 * them and after that, and forgets what they settle.
 */
void
hs_absence_note(HsStore *store, const HsRecordPage *page)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;

	if (store->has_absences && page->settles)
		hs_catalog_drop_absences(connection, store->type->name, page->ids,
								 page->nids);
	else if (store->has_absences && !page->provisional)
		hs_catalog_arrived_absences(connection, store->type->name, page->ids,
									page->nids);
	if (page->provisional && page->nids > 0)
		note_buried(store, page);
	if (page->nmerged > 0 && !page->settles)
		note_merges(store, page);
}
