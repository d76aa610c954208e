/*-------------------------------------------------------------------------
 *
 * schedule.c
 *	  Jobs of pg_cron.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "schedule.h"

PG_FUNCTION_INFO_V1(hubspot_sync_schedule);
PG_FUNCTION_INFO_V1(hubspot_sync_unschedule);

static const struct
{
	const char *job;
	const char *schedule;
	const char *sync_type;
} jobs[] = {
	{"sync-hubspot-contacts", "*/5 * * * *", "contacts"},
	{"sync-hubspot-deals", "*/15 * * * *", "deals"},
	{"sync-hubspot-owners", "0 6 * * *", "owners"},
	{"push-hubspot-progress", "0 * * * *", "progress"},
};

/* The command of a job: schema-qualified, since jobs have no search_path. */
static char *
job_command(const char *sync_type)
{
	HsExtension extension;

	if (!hs_catalog_find_extension(&extension))
		elog(ERROR, "extension is not installed");
	return psprintf("SELECT %s.trigger_hubspot_sync(%s)",
					quote_identifier(get_namespace_name(extension.schema)),
					quote_literal_cstr(sync_type));
}

/*
 * Refuses where pg_cron is not in this database, with the lines to run where
 * it is.
 */
static void
require_pg_cron(void)
{
	StringInfoData lines;

	if (OidIsValid(get_extension_oid("pg_cron", true)))
		return;
	initStringInfo(&lines);
	for (size_t i = 0; i < lengthof(jobs); i++)
		appendStringInfo(&lines,
						 "\nSELECT cron.schedule_in_database(%s, %s, %s, %s);",
						 quote_literal_cstr(jobs[i].job),
						 quote_literal_cstr(jobs[i].schedule),
						 quote_literal_cstr(job_command(jobs[i].sync_type)),
						 quote_literal_cstr(get_database_name(MyDatabaseId)));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"pg_cron\" is not installed in this database"),
			 errhint("Install it here, or run in the database that has it:%s",
					 lines.data)));
}

/* Runs a statement of pg_cron's with text arguments as the caller. */
static uint64
run_cron(const char *sql, int nargs, const char **args)
{
	Oid			types[3] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[3];

	for (int i = 0; i < nargs; i++)
		values[i] = CStringGetTextDatum(args[i]);
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "pg_cron did not answer");
	return SPI_processed;
}

/*
 * schedule_hubspot_sync() -> (job_name, schedule, command)
 *
 * The jobs belong to the caller and run as him.
 */
Datum
hubspot_sync_schedule(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		nulls[3] = {false};

	InitMaterializedSRF(fcinfo, 0);
	require_pg_cron();
	for (size_t i = 0; i < lengthof(jobs); i++)
	{
		const char *args[3] = {jobs[i].job, jobs[i].schedule,
							   job_command(jobs[i].sync_type)};
		Datum		values[3];

		SPI_connect();
		run_cron("SELECT cron.schedule($1, $2, $3)", 3, args);
		SPI_finish();
		for (int c = 0; c < 3; c++)
			values[c] = CStringGetTextDatum(args[c]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * unschedule_hubspot_sync() -> integer
 */
Datum
hubspot_sync_unschedule(PG_FUNCTION_ARGS)
{
	int			removed = 0;

	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		PG_RETURN_INT32(0);
	for (size_t i = 0; i < lengthof(jobs); i++)
	{
		const char *args[1] = {jobs[i].job};

		SPI_connect();
		removed += run_cron("SELECT cron.unschedule(jobid) FROM cron.job"
							" WHERE jobname = $1 AND username = current_user"
							" AND database = current_database()",
							1, args);
		SPI_finish();
	}
	PG_RETURN_INT32(removed);
}

/*
 * Whether pg_cron has an active job in this database that requests runs of a
 * type, by its command.  Jobs of a pg_cron in another database cannot be
 * seen.
 */
bool
hs_schedule_has_job(const char *sync_type)
{
	bool		pushes = strcmp(sync_type, "progress") == 0;
	const char *requests = psprintf("hubspot_sync(%s",
									quote_literal_cstr(sync_type));
	const char *args[2] = {requests,
						   pushes ? "push_student_progress()" : requests};
	uint64		found;

	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		return false;
	SPI_connect();
	found = run_cron("SELECT FROM cron.job WHERE active"
					 " AND database = current_database()"
					 " AND (strpos(command, $1) > 0 OR strpos(command, $2) > 0)",
					 2, args);
	SPI_finish();
	return found > 0;
}
