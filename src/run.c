/*-------------------------------------------------------------------------
 *
 * run.c
 *	  A run: its transactions, its log entry, its end.
 *
 * A run lives in its worker, which holds the advisory lock of connection and
 * sync type from before it begins until the process ends.  That lock, not the
 * log entry, says whether the run is alive:
 *
 *	  requester commits		the worker, which waited for that, claims the
 *							pending entry and runs
 *	  requester rolls back	there is no entry; the worker leaves silently
 *	  run ends, or fails	the worker closes the entry
 *	  cancelled				an error in the worker, which closes the entry
 *	  terminated, killed	nobody closes the entry; the lock is free, so
 *							readers see it as failed, and the next request
 *							closes it
 *	  extension dropped		the entry is gone with its table; the worker
 *							notices at its next transaction and leaves
 *
 * All writes of a run happen in short transactions that this file begins and
 * commits; between them there is none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "guc.h"
#include "hubspot_sync.h"
#include "injection.h"
#include "pull.h"
#include "push.h"
#include "run.h"

/*
 * The fourth field of our advisory locks.  SQL functions use 1 and 2; the
 * view sync_run_states looks for this one.
 */
#define LOCK_CLASS 18515

/* See linger(). */
#define LINGER_MS 500
#define LINGER_STEP_MS 10

/* ------------------------------------------------------------------------
 * Transactions
 * ------------------------------------------------------------------------
 */

/*
 * Begins a transaction with a snapshot in which the extension cannot be
 * dropped.  The memory context stays as it is.  Throws if the extension is
 * gone.
 */
void
hs_run_begin(HsRun *run)
{
	MemoryContext old = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (hs_store_timeout > 0)
	{
		run->store_deadline = GetCurrentTimestamp() +
			(int64) hs_store_timeout * 1000;
		enable_timeout_after(STATEMENT_TIMEOUT, hs_store_timeout);
	}
	if (!hs_catalog_lock_extension(run->extension))
	{
		run->reason = "dropped";
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"%s\" was dropped while a run was under way",
						HS_EXTENSION_NAME)));
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(old);
}

/*
 * Commits, unless somebody's trigger released our lock meanwhile
 * (pg_advisory_unlock_all() does): then another run may have begun.
 */
void
hs_run_commit(HsRun *run)
{
	MemoryContext old = CurrentMemoryContext;

	if (!hs_lock_held_by_me(&run->lock, ExclusiveLock))
	{
		run->reason = "lock_lost";
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the run's lock was released under it"),
				 errhint("A trigger on the target table may call pg_advisory_unlock_all().")));
	}
	/* Not a moment later: a timeout during the commit would cancel the run. */
	if (run->store_deadline != 0)
		disable_timeout(STATEMENT_TIMEOUT, false);
	run->store_deadline = 0;
	PopActiveSnapshot();
	HS_INJECTION_POINT("before a commit");
	CommitTransactionCommand();
	HS_INJECTION_POINT("after a commit");
	pgstat_report_stat(false);
	MemoryContextSwitchTo(old);
}

/*
 * Reads the run's sync type, in the current memory context and transaction.
 * Throws 42704 if it was dropped or disabled since the request.
 */
HsSyncType *
hs_run_type(const HsRun *run)
{
	HsSyncType *type = hs_catalog_sync_type(run->request.sync_type);

	if (type == NULL || !type->enabled)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("sync type \"%s\" was dropped or disabled meanwhile",
						run->request.sync_type)));
	return type;
}

/* Takes the API's counters over into the run's. */
static void
count_requests(HsRun *run)
{
	if (run->api == NULL)
		return;
	run->counters.requests = run->api->stats.requests;
	run->counters.retries = run->api->stats.retries;
	run->counters.bytes_received = run->api->stats.bytes_received;
}

/*
 * Writes the run's counters as they will be when the current transaction has
 * committed, and, unless NULL, its checkpoint.
 */
void
hs_run_save(HsRun *run, const HsRunCounters *counters, const char *checkpoint)
{
	HsRunCounters next = *counters;

	count_requests(run);
	next.requests = run->counters.requests;
	next.retries = run->counters.retries;
	next.bytes_received = run->counters.bytes_received;
	hs_catalog_save_run(&run->id, &next, checkpoint);
}

/*
 * Takes over counters whose transaction has committed.
 */
void
hs_run_count(HsRun *run, const HsRunCounters *counters)
{
	run->counters = *counters;
	count_requests(run);
}

/* ------------------------------------------------------------------------
 * The end
 * ------------------------------------------------------------------------
 */

/* Appends a JSON member unless its value is NULL. */
static void
append_member(StringInfo json, const char *name, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfoString(json, json->len > 1 ? ", " : "");
	hs_json_append_string(json, name);
	appendStringInfoString(json, ": ");
	hs_json_append_string(json, value);
}

static void
append_count(StringInfo json, const char *name, int64 count)
{
	if (count == 0)
		return;
	appendStringInfo(json, "%s\"%s\": " INT64_FORMAT,
					 json->len > 1 ? ", " : "", name, count);
}

/* Appends what HubSpot said about the request that failed. */
static void
append_failure(StringInfo json, const HsApiFailure *failure)
{
	append_count(json, "http_status", failure->status);
	append_member(json, "category", failure->category);
	append_member(json, "hubspot_message", failure->message);
	append_member(json, "correlation_id", failure->correlation_id);
	append_member(json, "missing_scopes", failure->scopes);
}

/* Appends what is wrong with a run that has read everything. */
static void
append_shortfall(StringInfo json, const HsRun *run)
{
	bool		push = strcmp(run->request.direction, "push") == 0;
	char	   *failed = psprintf(push
								  ? "%d of %d students or properties could not be sent; see sync_errors"
								  : "%d of %d records could not be stored; see sync_errors",
								  run->counters.failed,
								  run->counters.processed);

	if (run->refused == 0)
	{
		append_member(json, "message", failed);
		return;
	}
	append_member(json, "message",
				  psprintf("%d records are absent in HubSpot, too many to archive them unasked",
						   run->refused));
	append_member(json, "hint",
				  "If they were deleted, call accept_hubspot_absence() with this run's id; else see whether the token has lost permissions.");
	append_count(json, "absent", run->refused);
	if (run->counters.failed > 0)
		append_member(json, "detail", failed);
}

/*
 * The run's error_details: what stopped it, if `error` is given, and what was
 * notable.  NULL if there is nothing to say.
 */
static char *
error_details(const HsRun *run, const char *reason, const ErrorData *error)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	append_member(&json, "reason", reason);
	if (error != NULL)
	{
		append_member(&json, "message", error->message);
		append_member(&json, "detail", error->detail);
		append_member(&json, "hint", error->hint);
		append_member(&json, "sqlstate", unpack_sql_state(error->sqlerrcode));
		if (reason != NULL && strcmp(reason, "mass_empty") == 0)
			append_count(&json, "emptied", run->refused);
	}
	else if (reason != NULL)
		append_shortfall(&json, run);
	if (run->api != NULL)
	{
		if (error != NULL && run->api->failure.reason != NULL)
			append_failure(&json, &run->api->failure);
		append_count(&json, "replaced_characters", run->api->stats.replaced);
		append_count(&json, "rate_limited", run->api->stats.throttled);
	}
	append_member(&json, "remark", run->remark);
	appendStringInfoChar(&json, '}');
	return json.len > 2 ? json.data : NULL;
}

/* Tidies up the log of the run's type. */
static void
expire_log(const HsRun *run)
{
	if (hs_log_retention > 0)
		hs_catalog_expire(&run->request.connection_id, run->request.sync_type,
						  hs_log_retention);
}

/*
 * Closes the log entry of a run that has read everything, in the current
 * transaction, and tidies up the log.
 */
void
hs_run_complete(HsRun *run)
{
	const char *reason = NULL;

	if (run->refused > 0)
		reason = "mass_absence";
	else if (run->counters.failed > 0)
		reason = "records_failed";
	count_requests(run);
	hs_catalog_finish_run(&run->id, reason ? "partial" : "success",
						  &run->counters, error_details(run, reason, NULL));
	expire_log(run);
}

/* The documented reason for a failure. */
static const char *
failure_reason(const HsRun *run, const ErrorData *error, bool timed_out)
{
	if (run->reason != NULL)
		return run->reason;
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		return timed_out ? "store_timeout" : "cancelled";
	if (run->api != NULL && run->api->failure.reason != NULL)
		return run->api->failure.reason;
	switch (error->sqlerrcode)
	{
		case ERRCODE_INSUFFICIENT_PRIVILEGE:
			return "privilege";
		case ERRCODE_LOCK_NOT_AVAILABLE:
			return "lock_timeout";
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_INVALID_PARAMETER_VALUE:
			return "configuration";
		default:
			break;
	}
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
			return "out_of_resources";
		case ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION:
			return "configuration";
		default:
			return "error";
	}
}

/*
 * Closes the log entry of a run that an error has stopped; the error has
 * aborted its transaction.  The work it had committed stays, and so does its
 * checkpoint.
 */
static void
fail(HsRun *run, const ErrorData *error, bool timed_out)
{
	const char *reason = failure_reason(run, error, timed_out);
	bool		cancelled = strcmp(reason, "cancelled") == 0;
	MemoryContext old = CurrentMemoryContext;

	StartTransactionCommand();
	if (!hs_catalog_lock_extension(run->extension))
	{
		AbortCurrentTransaction();
		ereport(LOG,
				(errmsg("extension \"%s\" was dropped while a run was under way",
						HS_EXTENSION_NAME)));
		return;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(old);
	count_requests(run);
	hs_catalog_finish_run(&run->id, cancelled ? "cancelled" : "failed",
						  &run->counters, error_details(run, reason, error));
	expire_log(run);
	PopActiveSnapshot();
	HS_INJECTION_POINT("before the commit of a failure");
	CommitTransactionCommand();
	HS_INJECTION_POINT("after the commit of a failure");
	MemoryContextSwitchTo(old);
	ereport(LOG,
			(errmsg("hubspot_sync run of \"%s\" %s: %s",
					run->request.sync_type,
					cancelled ? "was cancelled" : "failed", error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->detail_log ? errdetail_log("%s", error->detail_log) : 0));
}

/* ------------------------------------------------------------------------
 * The beginning
 * ------------------------------------------------------------------------
 */

/*
 * Waits until the requester's transaction has ended, however long that takes:
 * its commit may be waiting for a standby.
 */
static void
wait_for_requester(const HsRunTicket *ticket)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE,
							 GUC_ACTION_SAVE, true, 0, false);
	XactLockTableWait(ticket->requester, NULL, NULL, XLTW_None);
	AtEOXact_GUC(false, guc_level);
}

/*
 * Takes the lock that says the run is alive, then waits for the requester.
 * An earlier run's worker may be about to exit: the lock waits for it as long
 * as lock_timeout allows.
 */
static void
take_lock(HsRun *run, const HsRunTicket *ticket)
{
	StartTransactionCommand();
	SET_LOCKTAG_ADVISORY(run->lock, MyDatabaseId,
						 (uint32) ((uint64) ticket->lock_key >> 32),
						 (uint32) ticket->lock_key, LOCK_CLASS);
	(void) LockAcquire(&run->lock, ExclusiveLock, true, false);
	HS_INJECTION_POINT("with the lock");
	wait_for_requester(ticket);
	HS_INJECTION_POINT("after the request");
	CommitTransactionCommand();
}

/*
 * Claims the log entry.  Returns false if there is nothing to do.
 */
static bool
claim(HsRun *run)
{
	bool		claimed;

	StartTransactionCommand();
	if (!hs_catalog_lock_extension(run->extension))
	{
		AbortCurrentTransaction();
		return false;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(run->context);
	claimed = hs_catalog_claim_run(&run->id, &run->request);
	PopActiveSnapshot();
	HS_INJECTION_POINT("before the claim");
	CommitTransactionCommand();
	HS_INJECTION_POINT("after the claim");
	MemoryContextSwitchTo(run->context);
	return claimed;
}

/* Throws if synchronisation was switched off since the request. */
static void
check_enabled(void)
{
	if (!hs_enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("synchronisation is switched off"),
				 errhint("Set \"hubspot_sync.enabled\" to on.")));
}

/* Opens the API, labelled with what pg_stat_activity should show. */
static void
open_api(HsRun *run)
{
	uint64		key = hs_api_rate_key(run->request.portal_id,
									  run->request.connection_name);
	char	   *label = psprintf("%s %s", HS_EXTENSION_NAME,
								 run->request.sync_type);

	run->api = hs_api_open(key, label);
}

/*
 * Leaves a run that could not be claimed.  If somebody cancelled it that
 * early, its entry says so once the requester's transaction has ended.
 */
static void
abandon(HsRun *run, const HsRunTicket *ticket, const ErrorData *error)
{
	ereport(LOG,
			(errmsg("hubspot_sync run did not begin: %s", error->message)));
	if (error->sqlerrcode != ERRCODE_QUERY_CANCELED)
		return;
	StartTransactionCommand();
	wait_for_requester(ticket);
	if (hs_catalog_lock_extension(run->extension))
		(void) hs_catalog_cancel_pending(&run->id);
	HS_INJECTION_POINT("before the commit of an early cancel");
	CommitTransactionCommand();
	HS_INJECTION_POINT("after the commit of an early cancel");
}

/* What is left to do after an error, which is taken off the error stack. */
static void
recover(HsRun *run, const HsRunTicket *ticket)
{
	ErrorData  *error;
	bool		timed_out = run->store_deadline != 0 &&
		GetCurrentTimestamp() >= run->store_deadline;

	MemoryContextSwitchTo(run->context);
	error = CopyErrorData();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	disable_all_timeouts(false);
	MemoryContextSwitchTo(run->context);

	/* A second cancel must not keep us from writing down the first. */
	HOLD_CANCEL_INTERRUPTS();
	if (run->claimed)
		fail(run, error, timed_out);
	else
		abandon(run, ticket, error);
	RESUME_CANCEL_INTERRUPTS();
}

/*
 * Keeps the lock for a moment after the log entry was closed.  A reader whose
 * snapshot still has the entry running looks at the locks a little later; he
 * would take the run for dead.  Ends at once if the next run's worker waits
 * for the lock: then it is held all the time.
 */
static void
linger(HsRun *run)
{
	HOLD_CANCEL_INTERRUPTS();
	for (int waited = 0; waited < LINGER_MS; waited += LINGER_STEP_MS)
	{
		if (!hs_lock_held_by_me(&run->lock, ExclusiveLock) ||
			LockHasWaiters(&run->lock, ExclusiveLock, true))
			break;
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LINGER_STEP_MS, PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
	RESUME_CANCEL_INTERRUPTS();
}

/*
 * Executes the run a ticket stands for, in a worker connected to its database
 * as its role; cancel interrupts are held when it is called.  Does not throw
 * for anything the run met; what it throws ends the worker.
 */
void
hs_run_execute(const HsRunTicket *ticket)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "hubspot_sync run",
												  ALLOCSET_DEFAULT_SIZES);
	HsRun	   *run = MemoryContextAllocZero(context, sizeof(HsRun));

	run->context = context;
	run->id = ticket->run_id;
	run->extension = ticket->extension;
	PG_TRY();
	{
		RESUME_CANCEL_INTERRUPTS();
		take_lock(run, ticket);
		run->claimed = claim(run);
		if (run->claimed)
		{
			check_enabled();
			open_api(run);
			if (strcmp(run->request.direction, "push") == 0)
				hs_push_run(run);
			else
				hs_pull_run(run);
		}
	}
	PG_CATCH();
	{
		recover(run, ticket);
	}
	PG_END_TRY();
	HS_INJECTION_POINT("at the end");
	if (run->claimed)
		linger(run);
}
