/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The background workers that runs live in.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_WORKER_H
#define HS_WORKER_H

#include "postgres.h"

#include "postmaster/bgworker.h"

#include "run.h"

extern void hs_worker_start_at_commit(const HsRunTicket *ticket, bool follow);
extern bool hs_worker_is_requested(const pg_uuid_t *run_id);
extern BackgroundWorkerHandle *hs_worker_followed(void);
extern void hs_worker_cancel(BackgroundWorkerHandle *handle);
extern void hs_worker_prepare_session(void);
extern PGDLLEXPORT void hs_worker_main(Datum arg);

#endif							/* HS_WORKER_H */
