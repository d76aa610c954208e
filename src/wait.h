/*-------------------------------------------------------------------------
 *
 * wait.h
 *	  Following a run from a procedure.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_WAIT_H
#define HS_WAIT_H

#include "postgres.h"

#include "postmaster/bgworker.h"

#include "catalog.h"

typedef struct HsFollowing
{
	const pg_uuid_t *run_id;
	BackgroundWorkerHandle *worker; /* NULL: not ours to cancel */
	bool		notices;		/* show progress once a second */
	TimestampTz until;			/* 0: as long as it takes */
} HsFollowing;

extern void hs_wait_follow(const HsFollowing *following, HsRunStatus *status);

#endif							/* HS_WAIT_H */
