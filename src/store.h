/*-------------------------------------------------------------------------
 *
 * store.h
 *	  Pages of records into a target table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_STORE_H
#define HS_STORE_H

#include "postgres.h"

#include "mapping.h"
#include "run.h"

/* A target and what is known about the records that go there. */
typedef struct HsStore
{
	HsRun	   *run;
	HsSyncType *type;
	HsMapping  *mapping;
	bool		has_errors;		/* there are errors to close */
	List	   *stages;			/* of HsStage * */
	int			nunknown;		/* of them that no pipeline has */
	List	   *failed_again;	/* of char *: retried in vain, counted */
	bool		notes_absences; /* may miss records, and believe in merges */
	bool		has_absences;	/* some are noted */
	bool		follows_owners; /* contacts are new since the first load */
	List	   *written;		/* of char *: of a page of contacts, the ids of
								 * rows that were written */
} HsStore;

/*
 * A part of a list, which is in the order of ids: what is not on it, from
 * above `low` up to `high`, is not there.
 */
typedef struct HsRange
{
	int64		low;
	int64		high;
	const int64 *present;		/* the ids that are there, ascending */
	int			n;
} HsRange;

/* One page on its way into the table. */
typedef struct HsRecordPage
{
	const HsJson *results;
	bool		provisional;	/* from search, whose index may lag behind */
	bool		in_recycle_bin; /* from the archived list */
	bool		stages_read;	/* the pipelines were asked for this page */
	bool		settles;		/* what was noted about these records */
	const HsRange *range;		/* NULL: it says nothing about others */

	/* filled in by hs_store_read() and hs_store_save() */
	HsRecord  **records;		/* one per id, ascending */
	int			nrecords;
	const char **ids;			/* all usable ones, in the order received */
	int64	   *id_numbers;
	int			nids;
	const char **merged_ids;	/* records that others say were merged */
	const char **survivors;		/* into them */
	int			nmerged;
	List	   *letters;		/* of HsDeadLetter * */
	bool		has_nameless;	/* records without a usable id */
	int			received;
	int			changed;
	int			archived;
} HsRecordPage;

extern void hs_store_read(HsStore *store, HsRecordPage *page);
extern void hs_store_read_ids(HsStore *store, HsRecordPage *page);
extern void hs_store_save(HsStore *store, HsRecordPage *page,
						  const char *checkpoint);

#endif							/* HS_STORE_H */
