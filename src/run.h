/*-------------------------------------------------------------------------
 *
 * run.h
 *	  A run: its transactions, its log entry, its end.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_RUN_H
#define HS_RUN_H

#include "postgres.h"

#include "storage/lock.h"

#include "api.h"
#include "catalog.h"

/* What a worker is told when it is registered. */
typedef struct HsRunTicket
{
	Oid			database;
	Oid			role;
	Oid			extension;
	TransactionId requester;	/* the transaction that requested the run */
	pg_uuid_t	run_id;
	int64		lock_key;
} HsRunTicket;

typedef struct HsRun
{
	MemoryContext context;		/* lives as long as the run */
	pg_uuid_t	id;
	Oid			extension;
	HsRunRequest request;
	LOCKTAG		lock;
	bool		claimed;		/* its log entry is ours to close */
	HsApi	   *api;
	HsRunCounters counters;
	const char *reason;			/* why it failed, if the run itself knows */
	int			refused;		/* records gone, or students without values any
								 * more, too many to be believed */
	const char *remark;			/* what else to tell in error_details */
	TimestampTz store_deadline; /* 0: no transaction with a time limit */
} HsRun;

extern void hs_run_execute(const HsRunTicket *ticket);
extern HsSyncType *hs_run_type(const HsRun *run);
extern void hs_run_begin(HsRun *run);
extern void hs_run_commit(HsRun *run);
extern void hs_run_save(HsRun *run, const HsRunCounters *counters,
						const char *checkpoint);
extern void hs_run_count(HsRun *run, const HsRunCounters *counters);
extern void hs_run_complete(HsRun *run);

#endif							/* HS_RUN_H */
