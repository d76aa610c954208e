/*-------------------------------------------------------------------------
 *
 * wait.c
 *	  Following a run from a procedure.
 *
 * The procedure has committed what it did and may commit again, so it looks
 * at the run in transactions of a moment and waits on its latch between them:
 * it holds neither a snapshot nor a transaction id while it waits.
 *
 * If a procedure that started its run is stopped, by a cancel, a timeout, the
 * termination of its process or the loss of its client, it cancels the run.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "wait.h"
#include "worker.h"

/* Looks at the run come ever more rarely, between these bounds. */
#define FIRST_LOOK_MS 20
#define LOOK_EVERY_MS 200
#define NOTICE_EVERY_MS 1000

/* What a follower remembers between two looks. */
typedef struct Progress
{
	TimestampTz shown_at;
	int			shown_processed;
	int			pause_ms;		/* until the next look */
} Progress;

/* Whether the run has ended, well or badly. */
static bool
has_ended(const HsRunStatus *status)
{
	return strcmp(status->status, "pending") != 0 &&
		strcmp(status->status, "running") != 0;
}

/*
 * Looks at the run, in a transaction of its own.  The texts belong to the
 * current memory context.  Throws if the run is unknown.
 */
static void
look(const pg_uuid_t *run_id, HsRunStatus *status)
{
	MemoryContext context = CurrentMemoryContext;

	if (!hs_catalog_run_status(run_id, status))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no run with this id"),
				 errhint("See the ids in sync_logs.")));
	SPI_commit();
	MemoryContextSwitchTo(context);
}

/* Shows how far the run is and what it waits for. */
static void
show_progress(const HsRunStatus *status, Progress *progress)
{
	TimestampTz now = GetCurrentTimestamp();
	double		seconds;
	const char *activity = status->activity;

	if (!TimestampDifferenceExceeds(progress->shown_at, now, NOTICE_EVERY_MS))
		return;
	seconds = (now - progress->shown_at) / (double) USECS_PER_SEC;
	if (activity != NULL && strstr(activity, ": ") != NULL)
		activity = strstr(activity, ": ") + 2;
	ereport(NOTICE,
			(errmsg("%s: %d records, %d requests, %.0f records/s, %s",
					status->sync_type, status->processed, status->requests,
					(status->processed - progress->shown_processed) / seconds,
					status->pid == 0 ? "waiting for its worker"
					: activity && activity[0] ? activity : "working")));
	progress->shown_at = now;
	progress->shown_processed = status->processed;
}

/* Waits for the latch, at most until the next look is due. */
static void
wait_for_news(Progress *progress)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 progress->pause_ms, PG_WAIT_EXTENSION);
	progress->pause_ms = Min(progress->pause_ms * 5 / 4, LOOK_EVERY_MS);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (MyProcPort != NULL && !pq_check_connection())
		ereport(FATAL,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("connection to client lost")));
}

/*
 * Closes a run whose worker is gone without having begun it, so that nobody
 * waits for the time after which it would count as dead.
 */
static void
close_stillborn(const HsFollowing *following, HsRunStatus *status)
{
	pid_t		pid;

	if (following->worker == NULL || strcmp(status->status, "pending") != 0 ||
		GetBackgroundWorkerPid(following->worker, &pid) != BGWH_STOPPED)
		return;
	/* It may have begun and ended between our two looks. */
	look(following->run_id, status);
	if (strcmp(status->status, "pending") != 0)
		return;
	hs_catalog_close_dead_run(following->run_id);
	look(following->run_id, status);
}

/* Follows until the run ends or the time is up. */
static void
follow(const HsFollowing *following, HsRunStatus *status)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext turn = AllocSetContextCreate(caller, "hubspot_sync wait",
											   ALLOCSET_SMALL_SIZES);
	Progress	progress = {.shown_at = GetCurrentTimestamp(),
							.pause_ms = FIRST_LOOK_MS};

	for (;;)
	{
		MemoryContextReset(turn);
		MemoryContextSwitchTo(turn);
		look(following->run_id, status);
		if (status->reason != NULL && strcmp(status->reason, "interrupted") == 0)
			look(following->run_id, status);	/* with a newer snapshot */
		close_stillborn(following, status);
		if (has_ended(status) ||
			(following->until != 0 &&
			 GetCurrentTimestamp() >= following->until))
			break;
		if (following->notices)
			show_progress(status, &progress);
		wait_for_news(&progress);
	}
	/* The texts stay in `turn`, which lives as long as the caller's. */
	MemoryContextSwitchTo(caller);
}

static void
cancel_worker(int code, Datum arg)
{
	hs_worker_cancel((BackgroundWorkerHandle *) DatumGetPointer(arg));
}

/*
 * Waits until a run has ended or the time is up, and leaves what is known
 * then in `status`, its texts below the current memory context, which must
 * outlive transactions.  Needs an SPI connection that may commit; commits.
 */
void
hs_wait_follow(const HsFollowing *following, HsRunStatus *status)
{
	if (following->worker == NULL)
	{
		follow(following, status);
		return;
	}
	PG_ENSURE_ERROR_CLEANUP(cancel_worker,
							PointerGetDatum(following->worker));
	{
		follow(following, status);
	}
	PG_END_ENSURE_ERROR_CLEANUP(cancel_worker,
								PointerGetDatum(following->worker));
}
