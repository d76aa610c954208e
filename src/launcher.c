/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Runs by schedule, where the library is preloaded.
 *
 * The launcher is one process of the server.  It is connected to no database,
 * so that it stands in nobody's way: at every tick it sends a visitor to each
 * database of hubspot_sync.databases, a worker that lives for some
 * milliseconds.  The visitor closes the log entries of dead runs and requests
 * the runs that are due, as anybody would; their workers are those of
 * worker.c.
 *
 *	  preloaded				the launcher starts with the server, after recovery
 *	  reload				takes the new list of databases and forgets failures
 *	  visitor dies at once	the database is visited more and more rarely, until
 *							a visit goes well or the configuration is reloaded
 *	  launcher dies			the postmaster starts another one
 *	  not preloaded			there is none; pg_cron or people request runs
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>
#include <signal.h>

#include "access/xact.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/procsignal.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"
#include "utils/wait_event.h"

#include "catalog.h"
#include "compat.h"
#include "guc.h"
#include "hubspot_sync.h"
#include "launcher.h"
#include "request.h"
#include "schedule.h"
#include "subxact.h"
#include "worker.h"

#define SHMEM_NAME "hubspot_sync_launcher_1"

/* The postmaster waits so long before it starts another launcher. */
#define RESTART_S 10

/* The longest time between visits to a database where they go wrong. */
#define LONGEST_PAUSE_S 3600

/* The connection whose types have a schedule. */
#define SCHEDULED_CONNECTION "default"

/* The number of the last visit that came to its end, for each database. */
typedef struct Visits
{
	uint32		done[HS_MAX_DATABASES];
} Visits;

/* What a visitor is told when it is registered. */
typedef struct Errand
{
	int			slot;
	uint32		visit;
	NameData	database;
} Errand;

/* A database to look after. */
typedef struct Database
{
	BackgroundWorkerHandle *visitor;	/* NULL: nobody is there */
	TimestampTz next_visit;
	uint32		visit;			/* its number */
	int			failures;		/* in a row */
	NameData	name;
} Database;

static Database databases[HS_MAX_DATABASES];
static int	ndatabases = 0;
static uint32 nvisits = 0;		/* sent so far */
static shmem_request_hook_type previous_request_hook = NULL;

/* ------------------------------------------------------------------------
 * Shared memory
 * ------------------------------------------------------------------------
 */

static void
request_shmem(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(Visits)));
}

static Visits *
attach_visits(void)
{
	Visits	   *visits;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	visits = ShmemInitStruct(SHMEM_NAME, sizeof(Visits), &found);
	if (!found)
		memset(visits, 0, sizeof(Visits));
	LWLockRelease(AddinShmemInitLock);
	return visits;
}

/*
 * Called when the library is preloaded: has the postmaster start the
 * launcher, except for pg_upgrade.
 */
void
hs_launcher_preload(void)
{
	BackgroundWorker worker = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = RESTART_S
	};

	if (IsBinaryUpgrade)
		return;
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	strlcpy(worker.bgw_name, "hubspot_sync launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "hubspot_sync launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, HS_EXTENSION_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "hs_launcher_main", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* ------------------------------------------------------------------------
 * The launcher
 * ------------------------------------------------------------------------
 */

/* Whether a database is on the list already. */
static bool
is_listed(const char *name)
{
	for (int i = 0; i < ndatabases; i++)
	{
		if (strcmp(NameStr(databases[i].name), name) == 0)
			return true;
	}
	return false;
}

/* Whether a visitor is under way. */
static bool
is_visiting(void)
{
	for (int i = 0; i < ndatabases; i++)
	{
		if (databases[i].visitor != NULL)
			return true;
	}
	return false;
}

/*
 * Takes the list of databases over from the configuration.  Visitors that are
 * under way are forgotten; they end by themselves.
 */
static void
read_databases(void)
{
	char	   *list = pstrdup(hs_databases);
	List	   *names = NIL;
	ListCell   *lc;

	for (int i = 0; i < ndatabases; i++)
	{
		if (databases[i].visitor != NULL)
			pfree(databases[i].visitor);
	}
	memset(databases, 0, sizeof(databases));
	ndatabases = 0;
	if (SplitIdentifierString(list, ',', &names))
	{
		foreach(lc, names)
		{
			if (!is_listed(lfirst(lc)))
				namestrcpy(&databases[ndatabases++].name, lfirst(lc));
		}
	}
	list_free(names);
	pfree(list);
}

/* How long to stay away from a database where visits go wrong. */
static double
pause_s(int failures)
{
	double		pause = hs_launcher_interval * pow(2, Min(failures, 20));

	return Min(pause, LONGEST_PAUSE_S) *
		(0.75 + 0.5 * pg_prng_double(&pg_global_prng_state));
}

/* Puts the next visit off after one that did not go well. */
static void
note_failure(Database *database)
{
	database->failures++;
	database->next_visit = GetCurrentTimestamp() +
		(int64) (pause_s(database->failures) * USECS_PER_SEC);
}

/* Sends a visitor to a database. */
static void
send_visitor(int slot)
{
	Database   *database = &databases[slot];
	Errand		errand = {.slot = slot, .visit = ++nvisits, .database = database->name};
	BackgroundWorker worker = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS |
			BGWORKER_BACKEND_DATABASE_CONNECTION | HS_WORKER_INTERRUPTIBLE,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_notify_pid = MyProcPid
	};

	StaticAssertStmt(sizeof(Errand) <= BGW_EXTRALEN,
					 "an errand must fit into bgw_extra");
	strlcpy(worker.bgw_name, "hubspot_sync visitor", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "hubspot_sync visitor", BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, HS_EXTENSION_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "hs_launcher_visit_main", BGW_MAXLEN);
	memcpy(worker.bgw_extra, &errand, sizeof(Errand));

	database->visit = errand.visit;
	database->next_visit = GetCurrentTimestamp() +
		hs_launcher_interval * USECS_PER_SEC;
	if (RegisterDynamicBackgroundWorker(&worker, &database->visitor))
		return;
	database->visitor = NULL;
	note_failure(database);
	if (database->failures == 1)
		ereport(LOG,
				(errmsg("no background worker is free to look after hubspot_sync in database \"%s\"",
						NameStr(database->name)),
				 errhint("Raise \"max_worker_processes\" (now %d).",
						 max_worker_processes)));
}

/* Takes note of how a visit went. */
static void
note_visit(const Visits *visits, int slot)
{
	Database   *database = &databases[slot];

	pfree(database->visitor);
	database->visitor = NULL;
	if (visits->done[slot] == database->visit)
	{
		database->failures = 0;
		return;
	}
	note_failure(database);
	if (database->failures == 1)
		ereport(LOG,
				(errmsg("hubspot_sync could not look after database \"%s\"",
						NameStr(database->name)),
				 errdetail("It is tried again more and more rarely, at least once an hour."),
				 errhint("See the message of the worker \"hubspot_sync visitor\" before this one.")));
}

/* Takes note of visitors that have left. */
static void
note_departures(const Visits *visits)
{
	pid_t		pid;

	for (int i = 0; i < ndatabases; i++)
	{
		if (databases[i].visitor != NULL &&
			GetBackgroundWorkerPid(databases[i].visitor, &pid) == BGWH_STOPPED)
			note_visit(visits, i);
	}
}

/*
 * Sends a visitor to the database that has waited longest, if one is due.
 * There is one visitor at a time, so that many databases do not take all
 * worker slots from the runs they request.
 */
static void
send_next(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int			next = -1;

	if (is_visiting())
		return;
	for (int i = 0; i < ndatabases; i++)
	{
		/* A visit far ahead was planned before the clock was set back. */
		if (databases[i].next_visit > now + LONGEST_PAUSE_S * 2 * USECS_PER_SEC)
			databases[i].next_visit = now;
		if (databases[i].next_visit <= now &&
			(next < 0 ||
			 databases[i].next_visit < databases[next].next_visit))
			next = i;
	}
	if (next >= 0)
		send_visitor(next);
}

/* Waits until something is due, at most one interval. */
static void
wait_for_next(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = hs_launcher_interval * 1000L;

	for (int i = 0; i < ndatabases && !is_visiting(); i++)
	{
		if (databases[i].visitor == NULL)
			ms = Min(ms, TimestampDifferenceMilliseconds(now,
														 databases[i].next_visit));
	}
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Max(ms, 10), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * Main function of the launcher.
 */
void
hs_launcher_main(Datum arg)
{
	Visits	   *visits;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	/* Without a database it would be ignored, and with it news of visitors. */
	pqsignal(SIGUSR1, procsignal_sigusr1_handler);
	BackgroundWorkerUnblockSignals();
	MemoryContextSwitchTo(TopMemoryContext);
	visits = attach_visits();
	read_databases();
	for (;;)
	{
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			read_databases();
		}
		note_departures(visits);
		send_next();
		wait_for_next();
	}
}

/* ------------------------------------------------------------------------
 * A visit
 * ------------------------------------------------------------------------
 */

/* Whether runs may be started in this database. */
static bool
is_in_service(void)
{
	HsExtension extension;

	return hs_catalog_find_extension(&extension) &&
		hs_catalog_lock_extension(extension.oid) &&
		hs_enabled && hs_catalog_is_home();
}

/*
 * Closes dead runs and returns the types (char *) of which a run is due, in
 * the given memory context.
 */
static List *
inspect(MemoryContext context)
{
	List	   *due = NIL;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	if (is_in_service())
	{
		(void) hs_catalog_close_dead_runs();
		CommandCounterIncrement();
		UpdateActiveSnapshotCommandId();
		due = hs_catalog_due_types();
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return due;
}

/* Requests a run, unless pg_cron does that. */
static void
request_run(void *arg)
{
	HsRequestArgs args = {
		.sync_type = arg,
		.mode = "auto",
		.connection = SCHEDULED_CONNECTION,
		.source = "launcher"
	};
	pg_uuid_t	id;

	if (!hs_schedule_has_job(args.sync_type))
		(void) hs_request_run(&args, &id);
}

/*
 * Whether an error is an answer to the request.  Others say something about
 * this moment, and the next visit tries again.
 */
static bool
is_answer(const ErrorData *error, void *arg)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
			return false;
		default:
			return error->sqlerrcode != ERRCODE_OBJECT_IN_USE &&
				error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE;
	}
}

/*
 * Requests a run of a type.  A request that is refused leaves a failed entry in the log, so that somebody sees it and the
 * next one comes an interval later.
 */
static void
serve(char *sync_type)
{
	ErrorData  *error;

	error = hs_subxact_try(request_run, is_answer, sync_type);
	if (error == NULL)
		return;
	ereport(LOG,
			(errmsg("hubspot_sync could not start a run of \"%s\": %s",
					sync_type, error->message)));
	hs_catalog_refused_run(SCHEDULED_CONNECTION, sync_type,
						   GetUserNameFromId(GetUserId(), false), error);
}

/*
 * The same in a transaction.  Where its commit finds no worker free, the next
 * visit tries again.
 */
static void
serve_in_transaction(char *sync_type, MemoryContext context)
{
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		MemoryContextSwitchTo(context);
		if (is_in_service())
			serve(sync_type);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		ereport(LOG,
				(errmsg("hubspot_sync could not start a run of \"%s\" yet: %s",
						sync_type, error->message)));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/*
 * Main function of a visitor.
 */
void
hs_launcher_visit_main(Datum arg)
{
	MemoryContext context;
	Errand		errand;
	List	   *due;
	ListCell   *lc;

	memcpy(&errand, MyBgworkerEntry->bgw_extra, sizeof(Errand));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NameStr(errand.database), NULL, 0);
	hs_worker_prepare_session();
	context = AllocSetContextCreate(TopMemoryContext, "hubspot_sync visit",
									ALLOCSET_DEFAULT_SIZES);
	due = inspect(context);
	foreach(lc, due)
		serve_in_transaction(lfirst(lc), context);
	attach_visits()->done[errand.slot] = errand.visit;
	proc_exit(0);
}
