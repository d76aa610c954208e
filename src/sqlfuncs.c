/*-------------------------------------------------------------------------
 *
 * sqlfuncs.c
 *	  Functions and procedures that SQL can call.
 *
 * They check arguments and hand over.  Who may call them is decided by their
 * EXECUTE privilege, which nobody has after CREATE EXTENSION.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "api.h"
#include "catalog.h"
#include "compat.h"
#include "ratelimit.h"
#include "request.h"
#include "subxact.h"
#include "wait.h"
#include "worker.h"

/* A connection test takes no longer than this. */
#define TEST_TIMEOUT_MS 10000

/* How often a cancel looks again whether a run has begun or ended. */
#define CANCEL_LOOKS 20

PG_FUNCTION_INFO_V1(hubspot_sync_trigger);
PG_FUNCTION_INFO_V1(hubspot_sync_push);
PG_FUNCTION_INFO_V1(hubspot_sync_ensure_properties);
PG_FUNCTION_INFO_V1(hubspot_sync_run);
PG_FUNCTION_INFO_V1(hubspot_sync_wait);
PG_FUNCTION_INFO_V1(hubspot_sync_cancel);
PG_FUNCTION_INFO_V1(hubspot_sync_test_connection);
PG_FUNCTION_INFO_V1(hubspot_sync_accept_absence);
PG_FUNCTION_INFO_V1(hubspot_sync_adopt);
PG_FUNCTION_INFO_V1(hubspot_sync_rate_limits);

/* A text argument, NULL for null or one that was not given. */
static char *
text_arg(FunctionCallInfo fcinfo, int n)
{
	if (PG_NARGS() <= n || PG_ARGISNULL(n))
		return NULL;
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* The arguments that trigger and run have in common. */
static HsRequestArgs
request_args(FunctionCallInfo fcinfo, const char *source)
{
	HsRequestArgs args = {
		.sync_type = text_arg(fcinfo, 0),
		.mode = text_arg(fcinfo, 1),
		.timeframe = text_arg(fcinfo, 2),
		.connection = text_arg(fcinfo, 3),
		.source = source
	};

	return args;
}

/* ------------------------------------------------------------------------
 * Runs
 * ------------------------------------------------------------------------
 */

/*
 * trigger_hubspot_sync(sync_type [, mode, timeframe, connection]) -> uuid
 */
Datum
hubspot_sync_trigger(PG_FUNCTION_ARGS)
{
	HsRequestArgs args = request_args(fcinfo, "sql");
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	(void) hs_request_run(&args, id);
	PG_RETURN_UUID_P(id);
}

/*
 * push_student_progress([email, dry_run, connection]) -> uuid
 */
Datum
hubspot_sync_push(PG_FUNCTION_ARGS)
{
	bool		dry_run = PG_NARGS() > 1 && !PG_ARGISNULL(1) &&
		PG_GETARG_BOOL(1);
	HsRequestArgs args = {
		.sync_type = "progress",
		.mode = dry_run ? "dry_run" : NULL,
		.connection = text_arg(fcinfo, 2),
		.email = text_arg(fcinfo, 0),
		.source = "sql"
	};
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	(void) hs_request_run(&args, id);
	PG_RETURN_UUID_P(id);
}

/*
 * ensure_hubspot_properties(connection) -> uuid
 */
Datum
hubspot_sync_ensure_properties(PG_FUNCTION_ARGS)
{
	HsRequestArgs args = {
		.sync_type = "progress",
		.mode = "properties",
		.connection = text_arg(fcinfo, 0),
		.source = "sql"
	};
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	(void) hs_request_run(&args, id);
	PG_RETURN_UUID_P(id);
}

/*
 * Refuses a procedure that cannot commit.
 */
static void
require_nonatomic(FunctionCallInfo fcinfo, const char *procedure,
				  const char *hint)
{
	if (fcinfo->context != NULL && IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("CALL %s cannot run inside a transaction block",
					procedure),
			 errhint("%s", hint)));
}

/* The row that a procedure returns in its INOUT arguments. */
static Datum
result_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

/* Warns about a run that did not end well. */
static void
warn_about(const HsRunStatus *status)
{
	if (strcmp(status->status, "success") == 0)
		return;
	ereport(WARNING,
			(errmsg("sync \"%s\" ended %s: %s", status->sync_type,
					status->status,
					status->message ? status->message : "no reason is known"),
			 status->reason ? errdetail("Reason: %s.", status->reason) : 0,
			 errhint("See sync_logs and sync_errors.")));
}

/*
 * run_hubspot_sync(sync_type, mode, timeframe, connection, INOUT run_id,
 * INOUT status, INOUT records_processed, INOUT records_failed)
 */
Datum
hubspot_sync_run(PG_FUNCTION_ARGS)
{
	HsRequestArgs args = request_args(fcinfo, "call");
	MemoryContext caller = CurrentMemoryContext;
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	HsFollowing following = {.run_id = id, .notices = true};
	HsRunStatus status = {0};
	Datum		values[4];
	bool		nulls[4] = {false};

	require_nonatomic(fcinfo, "run_hubspot_sync",
					  "Use trigger_hubspot_sync(), which returns at once; the run starts when the transaction commits.");
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	MemoryContextSwitchTo(caller);
	args.follow = true;
	if (hs_request_run(&args, id))
	{
		SPI_commit();
		MemoryContextSwitchTo(caller);
		following.worker = hs_worker_followed();
	}
	hs_wait_follow(&following, &status);
	if (following.worker != NULL)
		pfree(following.worker);
	warn_about(&status);
	SPI_finish();
	MemoryContextSwitchTo(caller);

	values[0] = UUIDPGetDatum(id);
	values[1] = CStringGetTextDatum(status.status);
	values[2] = Int32GetDatum(status.processed);
	values[3] = Int32GetDatum(status.failed);
	PG_RETURN_DATUM(result_row(fcinfo, values, nulls));
}

/* The instant at which a wait of this length is over. */
static TimestampTz
instant_after(const Interval *wait)
{
	double		us = wait->time + wait->day * (double) USECS_PER_DAY +
		wait->month * 30.0 * USECS_PER_DAY;
	double		longest = 365.0 * 100 * USECS_PER_DAY;

	return GetCurrentTimestamp() + (int64) Min(Max(us, 0), longest);
}

/*
 * wait_for_hubspot_sync(run_id, timeout, INOUT status)
 */
Datum
hubspot_sync_wait(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	pg_uuid_t	id;
	HsFollowing following = {.run_id = &id};
	HsRunStatus status = {0};
	Datum		values[1];
	bool		nulls[1] = {false};

	require_nonatomic(fcinfo, "wait_for_hubspot_sync",
					  "End the transaction first, or look at sync_logs.");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the run id must not be null")));
	id = *PG_GETARG_UUID_P(0);
	if (!PG_ARGISNULL(1))
		following.until = instant_after(PG_GETARG_INTERVAL_P(1));
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	MemoryContextSwitchTo(caller);
	hs_wait_follow(&following, &status);
	SPI_finish();
	MemoryContextSwitchTo(caller);

	values[0] = CStringGetTextDatum(status.status);
	PG_RETURN_DATUM(result_row(fcinfo, values, nulls));
}

/*
 * cancel_hubspot_sync(run_id) -> boolean
 *
 * A run that has not begun is cancelled in its log entry; one that has, by
 * interrupting its worker, which holds the run's lock.
 */
Datum
hubspot_sync_cancel(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	HsRunStatus status = {0};

	PreventCommandDuringRecovery("cancel_hubspot_sync()");
	if (!hs_catalog_run_status(id, &status))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no run with this id"),
				 errhint("See the ids in sync_logs.")));
	for (int i = 0; i < CANCEL_LOOKS; i++)
	{
		bool		pending = strcmp(status.status, "pending") == 0;

		if (pending && hs_catalog_cancel_pending(id))
			PG_RETURN_BOOL(true);
		if (strcmp(status.status, "running") == 0 && status.pid != 0)
		{
			kill(status.pid, SIGINT);
			PG_RETURN_BOOL(true);
		}
		if (!pending)
			break;
		(void) hs_catalog_run_status(id, &status);	/* it has just begun */
	}
	PG_RETURN_BOOL(false);
}

/* ------------------------------------------------------------------------
 * Trying the connection
 * ------------------------------------------------------------------------
 */

/* A connection test and what it has found out. */
typedef struct Test
{
	HsApi	   *api;
	char	   *portal_id;
} Test;

/* Makes the test's request. */
static void
try_connection(void *arg)
{
	Test	   *test = arg;
	const HsJson *root = hs_api_finish(test->api, hs_api_account(test->api));
	const char *portal = hs_json_text(hs_json_member(root, "portalId"));

	test->portal_id = portal ? pstrdup(portal) : NULL;
}

/* Whether an error is about the connection, and so the test's result. */
static bool
is_about_connection(const ErrorData *error, void *arg)
{
	Test	   *test = arg;

	return test->api->failure.reason != NULL;
}

/* What to tell about an error: it, and what to do unless that is about runs. */
static char *
error_text(const Test *test, const ErrorData *error)
{
	bool		about_runs = strcmp(test->api->failure.reason, "gave_up") == 0;

	return error->hint == NULL || about_runs ? error->message
		: psprintf("%s. %s", error->message, error->hint);
}

/*
 * test_hubspot_connection(connection) -> (ok, portal_id, latency_ms, message)
 *
 * One request, not repeated, before anything is written.
 */
Datum
hubspot_sync_test_connection(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HsConnection connection;
	Test		test = {0};
	HsApi	   *api;
	ErrorData  *error;
	TimestampTz start;
	long		ms;
	Datum		values[4] = {0};
	bool		nulls[4] = {false};

	InitMaterializedSRF(fcinfo, 0);
	hs_request_connection(text_arg(fcinfo, 0), &connection);
	api = hs_api_open(hs_api_rate_key(connection.portal_id, connection.name),
					  NULL);
	api->max_retries = 0;
	api->total_timeout_ms = Min(api->total_timeout_ms, TEST_TIMEOUT_MS);
	api->longest_wait_ms = TEST_TIMEOUT_MS;
	test.api = api;
	start = GetCurrentTimestamp();
	error = hs_subxact_try(try_connection, is_about_connection, &test);
	ms = TimestampDifferenceMilliseconds(start, GetCurrentTimestamp());
	if (test.portal_id != NULL && !XactReadOnly)
		hs_catalog_save_portal(&connection, test.portal_id);

	values[0] = BoolGetDatum(error == NULL);
	nulls[1] = test.portal_id == NULL;
	if (test.portal_id != NULL)
		values[1] = CStringGetTextDatum(test.portal_id);
	values[2] = Int32GetDatum((int32) ms);
	values[3] = CStringGetTextDatum(error ? error_text(&test, error)
									: "HubSpot accepts the token");
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
}

/* ------------------------------------------------------------------------
 * What runs have left for somebody to decide
 * ------------------------------------------------------------------------
 */

/*
 * accept_hubspot_absence(run_id) -> integer
 */
Datum
hubspot_sync_accept_absence(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	HsRunStatus status = {0};
	int			accepted;

	if (!hs_catalog_run_status(id, &status))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no run with this id"),
				 errhint("See the ids in sync_logs.")));
	if (status.reason != NULL && strcmp(status.reason, "mass_empty") == 0)
		PG_RETURN_INT32(hs_catalog_accept_emptiness(id));
	if (status.reason == NULL || strcmp(status.reason, "mass_absence") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this run has refused no absences"),
				 errdetail("It was a run of sync \"%s\" with status %s.",
						   status.sync_type, status.status)));
	accepted = hs_catalog_accept_absences(id);
	if (accepted == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("nothing is left to accept of this run"),
				 errhint("It was accepted already, or a later run has looked again; see sync_alerts.")));
	PG_RETURN_INT32(accepted);
}

/*
 * adopt_hubspot_sync()
 */
Datum
hubspot_sync_adopt(PG_FUNCTION_ARGS)
{
	HsExtension extension;

	if (!hs_catalog_find_extension(&extension))
		elog(ERROR, "extension is not installed");
	if (!superuser() && !hs_may_act_as(GetUserId(), extension.owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser or the extension's owner to adopt it")));
	if (hs_catalog_is_home())
		ereport(NOTICE,
				(errmsg("hubspot_sync is at home in this database already")));
	else
	{
		/* First: as long as this is a copy, what is pending is dead. */
		(void) hs_catalog_close_dead_runs();
		hs_catalog_adopt();
	}
	PG_RETURN_VOID();
}

/* ------------------------------------------------------------------------
 * Rate limits
 * ------------------------------------------------------------------------
 */

static const char *const bucket_names[] = {
	[HS_BUCKET_BURST] = "burst",
	[HS_BUCKET_SEARCH] = "search"
};

/*
 * get_hubspot_rate_limits() -> (connection, bucket, capacity, available,
 * held_until)
 */
Datum
hubspot_sync_rate_limits(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, hs_catalog_connections())
	{
		const HsConnection *connection = lfirst(lc);
		uint64		key = hs_api_rate_key(connection->portal_id,
										  connection->name);

		for (int i = 0; i < HS_BUCKET_COUNT; i++)
		{
			HsBucketLevel level = hs_ratelimit_level(key, (HsBucket) i);
			Datum		values[5] = {CStringGetTextDatum(connection->name),
									 CStringGetTextDatum(bucket_names[i]),
									 Int32GetDatum(level.capacity),
									 Int32GetDatum(level.available),
									 TimestampTzGetDatum(level.held_until)};
			bool		nulls[5] = {false, false, false, false,
									level.held_until == 0};

			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
								 nulls);
		}
	}
	return (Datum) 0;
}
