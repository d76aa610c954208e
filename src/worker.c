/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The background workers that runs live in.
 *
 * A requested run gets its worker when the requester's transaction commits:
 * registered just before, so that a full worker table can still refuse the
 * request, and told the transaction's id, so that it waits for the outcome.
 * A rolled-back savepoint takes its requests with it; a prepared transaction
 * cannot carry any.
 *
 * A worker is connected as the owner of its run's target table and never
 * switches to anybody else while foreign code may run.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "catalog.h"
#include "compat.h"
#include "guc.h"
#include "hubspot_sync.h"
#include "injection.h"
#include "worker.h"

/* How long a cancelled requester waits for its worker's process to appear. */
#define STARTUP_WAIT_MS 1000

/* A request younger than this need not have its entry's time renewed. */
#define FRESH_REQUEST_MS 1000

typedef struct Request
{
	HsRunTicket ticket;
	SubTransactionId subxact;
	TimestampTz requested_at;
	bool		follow;
} Request;

/* Requests of the current transaction, in its memory. */
static List *requests = NIL;
static bool callbacks_registered = false;

/* The worker whose run the current CALL follows, in TopMemoryContext. */
static BackgroundWorkerHandle *followed = NULL;

/*
 * What a worker's session looks like, whatever the configuration says.  User
 * code on a target table sees these too, as with logical replication.
 */
static const struct
{
	const char *name;
	const char *value;
} session_settings[] = {
	{"role", "none"},
	{"search_path", "pg_catalog, pg_temp"},
	{"row_security", "off"},
	{"session_replication_role", "origin"},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"extra_float_digits", "1"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"statement_timeout", "0"},
	{"transaction_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"plan_cache_mode", "auto"},
	{"transform_null_equals", "off"},
	{"application_name", HS_EXTENSION_NAME},
};

/* ------------------------------------------------------------------------
 * Starting
 * ------------------------------------------------------------------------
 */

/*
 * Registers the worker of one request.  Throws if there is no slot for it.
 */
static void
start_worker(const Request *request)
{
	BackgroundWorker worker = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS |
			BGWORKER_BACKEND_DATABASE_CONNECTION | HS_WORKER_INTERRUPTIBLE,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART
	};
	BackgroundWorkerHandle *handle;
	MemoryContext old;

	StaticAssertStmt(sizeof(HsRunTicket) <= BGW_EXTRALEN,
					 "a ticket must fit into bgw_extra");
	strlcpy(worker.bgw_name, "hubspot_sync run", BGW_MAXLEN);
	strlcpy(worker.bgw_type, HS_EXTENSION_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, HS_EXTENSION_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "hs_worker_main", BGW_MAXLEN);
	worker.bgw_notify_pid = request->follow ? MyProcPid : 0;
	memcpy(worker.bgw_extra, &request->ticket, sizeof(HsRunTicket));

	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is free for the run"),
				 errhint("Raise \"max_worker_processes\" (now %d), or try again when other workers have ended.",
						 max_worker_processes)));
	if (request->follow)
		followed = handle;
	else
		pfree(handle);
	MemoryContextSwitchTo(old);
}

/* Starts the workers of a transaction that is about to commit. */
static void
start_requested(void)
{
	HsExtension extension;
	ListCell   *lc;

	/* The transaction may have dropped the extension and its requests. */
	if (!hs_catalog_find_extension(&extension))
		requests = NIL;
	foreach(lc, requests)
	{
		Request    *request = lfirst(lc);

		/* An entry counts as dead if it stays pending for too long. */
		if (TimestampDifferenceExceeds(request->requested_at,
									   GetCurrentTimestamp(),
									   FRESH_REQUEST_MS))
			hs_catalog_touch_pending(&request->ticket.run_id);
		HS_INJECTION_POINT("before a worker is registered");
		start_worker(request);
		HS_INJECTION_POINT("before the commit of a request");
	}
	requests = NIL;
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (requests != NIL)
				start_requested();
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (requests != NIL)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has requested a synchronisation")));
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			requests = NIL;
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	foreach(lc, requests)
	{
		Request    *request = lfirst(lc);

		if (request->subxact != mine)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			request->subxact = parent;
		else
			requests = foreach_delete_current(requests, lc);
	}
}

/*
 * Has the run's worker started when the current transaction commits.  With
 * `follow` its handle is kept for hs_worker_followed().
 */
void
hs_worker_start_at_commit(const HsRunTicket *ticket, bool follow)
{
	MemoryContext old;
	Request    *request;

	if (!callbacks_registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(subxact_callback, NULL);
		callbacks_registered = true;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	request = palloc(sizeof(Request));
	request->ticket = *ticket;
	request->subxact = GetCurrentSubTransactionId();
	request->requested_at = GetCurrentTimestamp();
	request->follow = follow;
	requests = lappend(requests, request);
	MemoryContextSwitchTo(old);
}

/*
 * Whether the current transaction has requested this run, so that its worker
 * cannot be there yet.
 */
bool
hs_worker_is_requested(const pg_uuid_t *run_id)
{
	ListCell   *lc;

	foreach(lc, requests)
	{
		const Request *request = lfirst(lc);

		if (memcmp(&request->ticket.run_id, run_id, sizeof(pg_uuid_t)) == 0)
			return true;
	}
	return false;
}

/*
 * The handle of the worker that was last started to be followed; the caller
 * owns it and frees it with pfree.
 */
BackgroundWorkerHandle *
hs_worker_followed(void)
{
	BackgroundWorkerHandle *handle = followed;

	followed = NULL;
	return handle;
}

/*
 * Cancels a worker's run, as pg_cancel_backend() would.  Does not throw and
 * checks no interrupts: it is for cleaning up.  A worker whose process is not
 * there yet is waited for, for a moment.
 */
void
hs_worker_cancel(BackgroundWorkerHandle *handle)
{
	pid_t		pid;

	for (int waited = 0; waited < STARTUP_WAIT_MS; waited += 10)
	{
		switch (GetBackgroundWorkerPid(handle, &pid))
		{
			case BGWH_STARTED:
				kill(pid, SIGINT);
				return;
			case BGWH_NOT_YET_STARTED:
				(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10,
								 PG_WAIT_EXTENSION);
				break;
			default:
				return;
		}
	}
	TerminateBackgroundWorker(handle);
}

/* ------------------------------------------------------------------------
 * The worker itself
 * ------------------------------------------------------------------------
 */

/*
 * Has long values compressed by lz4, which takes a tenth of the time that
 * PostgreSQL's own method does, unless somebody has chosen a method or the
 * server was built without it.
 */
static void
prefer_lz4(void)
{
	(void) set_config_option("default_toast_compression", "lz4", PGC_USERSET,
							 PGC_S_DYNAMIC_DEFAULT, GUC_ACTION_SET, true,
							 DEBUG3, false);
}

/*
 * Sets up a worker's session, overriding the configuration.
 */
void
hs_worker_prepare_session(void)
{
	char		timeout[32];

	for (size_t i = 0; i < lengthof(session_settings); i++)
	{
		/* Some came with later versions. */
		if (GetConfigOption(session_settings[i].name, true, false) != NULL)
			SetConfigOption(session_settings[i].name,
							session_settings[i].value, PGC_SUSET,
							PGC_S_OVERRIDE);
	}
	snprintf(timeout, sizeof(timeout), "%d", hs_lock_timeout);
	SetConfigOption("lock_timeout", timeout, PGC_SUSET, PGC_S_OVERRIDE);
	prefer_lz4();
}

/*
 * Main function of a worker: executes one run and exits.  A cancel that comes
 * before the run can write it down waits until it can.
 */
void
hs_worker_main(Datum arg)
{
	HsRunTicket ticket;

	memcpy(&ticket, MyBgworkerEntry->bgw_extra, sizeof(HsRunTicket));
	pqsignal(SIGTERM, die);
	HOLD_CANCEL_INTERRUPTS();
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(ticket.database, ticket.role,
											  HS_WORKER_FLAGS);
	hs_worker_prepare_session();
	hs_run_execute(&ticket);
	proc_exit(0);
}
