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
} HsStore;

/* One page on its way into the table. */
typedef struct HsRecordPage
{
	const HsJson *results;
	bool		provisional;	/* from search, whose index may lag behind */
	bool		in_recycle_bin; /* from the archived list */
	bool		stages_read;	/* the pipelines were asked for this page */

	/* filled in by hs_store_read() and hs_store_save() */
	HsRecord  **records;		/* one per id, ascending */
	int			nrecords;
	List	   *letters;		/* of HsDeadLetter * */
	int			received;
	int			changed;
	int			archived;
} HsRecordPage;

extern void hs_store_read(HsStore *store, HsRecordPage *page);
extern int	hs_store_read_ids(HsStore *store, HsRecordPage *page,
							  const char **ids);
extern void hs_store_save(HsStore *store, HsRecordPage *page,
						  const char *checkpoint);

#endif							/* HS_STORE_H */
