/*-------------------------------------------------------------------------
 *
 * catalog.c
 *	  The only file that names the extension's tables.
 *
 * Every access is one of the fixed statements below.  In them "@." stands for
 * the extension's schema; everything else is found through pg_catalog, since
 * search_path is set to it around preparing and executing.  The statements
 * run as the extension's owner in a short switch, as referential integrity
 * triggers do: no user's code can run inside, because the tables they touch
 * have no triggers, rules, defaults or indexes but our own.  That takes a
 * schema whose owner is trusted, as for any extension: he could rename it and
 * put another in its place.
 *
 * Plans are kept for the process.  They are thrown away when the extension
 * was dropped and created again, or its schema renamed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "hubspot_sync.h"

typedef enum Statement
{
	SQL_SYNC_TYPE,
	SQL_FIELDS,
	SQL_KNOWN_TYPES,
	SQL_CONNECTION,
	SQL_KNOWN_CONNECTIONS,
	SQL_SAVE_PORTAL,
	SQL_TIMEFRAME,
	SQL_CHANGED_SETTINGS,
	SQL_INSERT_RUN,
	SQL_ACTIVE_RUN,
	SQL_CLOSE_DEAD_RUN,
	SQL_TOUCH_PENDING,
	SQL_RUN_STATUS,
	SQL_CANCEL_PENDING,
	SQL_CLAIM_RUN,
	SQL_RESUME,
	SQL_START_RUN,
	SQL_SAVE_RUN,
	SQL_FINISH_RUN,
	SQL_STATE,
	SQL_SAVE_STATE,
	SQL_RESET_STATE,
	SQL_DEAD_LETTER,
	SQL_OPEN_ERRORS,
	SQL_HAS_OPEN_ERRORS,
	SQL_COUNT_ATTEMPTS,
	SQL_RESOLVE_ERRORS,
	SQL_RESOLVE_ANONYMOUS,
	SQL_KNOWN_ROWS,
	SQL_SAVE_ROWS,
	SQL_FORGET_ROWS,
	SQL_STATEMENTS
} Statement;

static const char *const statements[SQL_STATEMENTS] = {
	[SQL_SYNC_TYPE] =
	"SELECT sync_type, source, object_type, target_schema, target_table,"
	" key_columns::text[], modified_property, created_property, properties,"
	" delete_policy, extract(epoch FROM full_every)::float8, enabled,"
	" configured_by"
	" FROM @.sync_types WHERE sync_type = $1",

	[SQL_FIELDS] =
	"SELECT column_name, property, transform, argument, insert_only,"
	" configured_by"
	" FROM @.sync_fields WHERE sync_type = $1 ORDER BY column_name",

	[SQL_KNOWN_TYPES] =
	"SELECT string_agg(sync_type, ', ' ORDER BY sync_type)"
	" FROM @.sync_types WHERE enabled",

	[SQL_CONNECTION] =
	"SELECT connection_id, name, portal_id"
	" FROM @.sync_connections WHERE name = $1",

	[SQL_KNOWN_CONNECTIONS] =
	"SELECT string_agg(name, ', ' ORDER BY name) FROM @.sync_connections",

	[SQL_SAVE_PORTAL] =
	"UPDATE @.sync_connections SET portal_id = $2"
	" WHERE connection_id = $1 AND portal_id IS DISTINCT FROM $2",

	/* Midnights of the caller's time zone. */
	[SQL_TIMEFRAME] =
	"SELECT range_from, range_to FROM (VALUES"
	" ('today', date_trunc('day', now()),"
	"  date_trunc('day', now()) + interval '1 day'),"
	" ('yesterday', date_trunc('day', now()) - interval '1 day',"
	"  date_trunc('day', now())),"
	" ('this_week', date_trunc('week', now()),"
	"  date_trunc('week', now()) + interval '1 week'),"
	" ('last_week', date_trunc('week', now()) - interval '1 week',"
	"  date_trunc('week', now())),"
	" ('this_month', date_trunc('month', now()),"
	"  date_trunc('month', now()) + interval '1 month'),"
	" ('last_month', date_trunc('month', now()) - interval '1 month',"
	"  date_trunc('month', now())),"
	" ('this_year', date_trunc('year', now()),"
	"  date_trunc('year', now()) + interval '1 year'),"
	" ('last_7_days', date_trunc('day', now()) - interval '7 days', NULL),"
	" ('last_30_days', date_trunc('day', now()) - interval '30 days', NULL),"
	" ('last_90_days', date_trunc('day', now()) - interval '90 days', NULL)"
	") AS t(timeframe, range_from, range_to) WHERE timeframe = $1",

	/*
	 * $1: the worker will be of the role that this session belongs to, so
	 * that settings of the role reach it too.
	 */
	[SQL_CHANGED_SETTINGS] =
	"SELECT string_agg(name, ', ' ORDER BY name) FROM pg_settings"
	" WHERE name LIKE 'hubspot\\_sync.%'"
	" AND (source IN ('session', 'client', 'interactive')"
	"  OR (NOT $1 AND source IN ('user', 'database user')))",

	[SQL_INSERT_RUN] =
	"INSERT INTO @.sync_runs (id, connection_id, sync_type, direction, mode,"
	" timeframe, scope, range_from, range_to, status, requested_by,"
	" trigger_source, created_at, updated_at, lock_key)"
	" VALUES (gen_random_uuid(), $1, $2, $3, $4, $5, $6, $7, $8, 'pending',"
	" $9, $10, clock_timestamp(), clock_timestamp(),"
	" hashtextextended($1::text || '/' || $2, 0))"
	" ON CONFLICT (connection_id, sync_type)"
	" WHERE status IN ('pending', 'running') DO NOTHING"
	" RETURNING id, lock_key",

	[SQL_ACTIVE_RUN] =
	"SELECT id, mode, scope, coalesce(started_at, created_at)::text,"
	" coalesce(holder_pid, 0), dead"
	" FROM @.sync_run_states WHERE connection_id = $1 AND sync_type = $2"
	" AND status IN ('pending', 'running')",

	[SQL_CLOSE_DEAD_RUN] =
	"UPDATE @.sync_runs SET status = 'failed', completed_at = updated_at,"
	" error_details = coalesce(error_details, '{}') ||"
	" '{\"reason\": \"interrupted\","
	" \"message\": \"the run''s process ended before the run did\"}'"
	" WHERE id = $1 AND status IN ('pending', 'running')",

	[SQL_TOUCH_PENDING] =
	"UPDATE @.sync_runs SET updated_at = clock_timestamp()"
	" WHERE id = $1 AND status = 'pending'",

	[SQL_RUN_STATUS] =
	"SELECT l.sync_type, l.status, l.error_details->>'reason',"
	" l.error_details->>'message', a.query, coalesce(s.holder_pid, 0),"
	" l.records_processed, l.records_failed, l.requests,"
	" coalesce(l.duration_ms / 1000.0, 0)::float8"
	" FROM @.sync_logs l JOIN @.sync_run_states s USING (id)"
	" LEFT JOIN pg_stat_activity a ON a.pid = s.holder_pid"
	" WHERE l.id = $1",

	[SQL_CANCEL_PENDING] =
	"UPDATE @.sync_runs SET status = 'cancelled',"
	" completed_at = clock_timestamp(), updated_at = clock_timestamp(),"
	" error_details = '{\"reason\": \"cancelled\","
	" \"message\": \"cancelled before it began\"}'"
	" WHERE id = $1 AND status = 'pending'",

	[SQL_CLAIM_RUN] =
	"UPDATE @.sync_runs r SET status = 'running',"
	" started_at = clock_timestamp(), updated_at = clock_timestamp(),"
	" worker_pid = pg_backend_pid()"
	" FROM @.sync_connections c"
	" WHERE r.id = $1 AND r.status = 'pending'"
	" AND c.connection_id = r.connection_id"
	" RETURNING r.connection_id, c.name, c.portal_id, r.sync_type,"
	" r.direction, r.mode, r.timeframe, r.scope, r.range_from, r.range_to,"
	" r.trigger_source, r.requested_by",

	/* The newest run of this mode and scope that got anywhere. */
	[SQL_RESUME] =
	"SELECT id, checkpoint::text FROM ("
	" SELECT id, checkpoint, mapping, status FROM @.sync_runs"
	" WHERE connection_id = $1 AND sync_type = $2 AND mode = $3"
	" AND scope = $4 AND (checkpoint IS NOT NULL"
	"  OR status IN ('success', 'partial'))"
	" ORDER BY created_at DESC LIMIT 1) r"
	" WHERE status IN ('failed', 'cancelled') AND mapping = $5"
	" AND checkpoint IS NOT NULL",

	[SQL_START_RUN] =
	"UPDATE @.sync_runs SET mode = $2, mapping = $3, checkpoint = $4::jsonb,"
	" continues = $5, updated_at = clock_timestamp() WHERE id = $1",

	[SQL_SAVE_RUN] =
	"UPDATE @.sync_runs SET records_processed = $2, records_failed = $3,"
	" records_changed = $4, records_unchanged = $5, records_archived = $6,"
	" requests = $7, retries = $8, bytes_received = $9,"
	" checkpoint = coalesce($10::jsonb, checkpoint),"
	" updated_at = clock_timestamp()"
	" WHERE id = $1 AND status = 'running'",

	[SQL_FINISH_RUN] =
	"UPDATE @.sync_runs SET records_processed = $2, records_failed = $3,"
	" records_changed = $4, records_unchanged = $5, records_archived = $6,"
	" requests = $7, retries = $8, bytes_received = $9, status = $10,"
	" error_details = $11::jsonb, completed_at = clock_timestamp(),"
	" updated_at = clock_timestamp()"
	" WHERE id = $1 AND status = 'running'",

	[SQL_STATE] =
	"SELECT synced_until, last_full_at, last_full_mapping, last_deep_at,"
	" deep_until"
	" FROM @.sync_state WHERE connection_id = $1 AND sync_type = $2",

	[SQL_SAVE_STATE] =
	"INSERT INTO @.sync_state AS s (connection_id, sync_type, synced_until,"
	" last_full_at, last_full_mapping, last_deep_at, deep_until)"
	" VALUES ($1, $2, $3, CASE WHEN $4 THEN clock_timestamp() END,"
	" CASE WHEN $4 THEN $6 END, CASE WHEN $5 THEN clock_timestamp() END,"
	" CASE WHEN $5 THEN $3 END)"
	" ON CONFLICT (connection_id, sync_type) DO UPDATE SET"
	" synced_until = CASE WHEN $4"
	"  THEN coalesce(excluded.synced_until, s.synced_until)"
	"  ELSE greatest(s.synced_until, excluded.synced_until) END,"
	" deep_until = coalesce(excluded.deep_until, s.deep_until),"
	" last_full_at = coalesce(excluded.last_full_at, s.last_full_at),"
	" last_full_mapping ="
	"  coalesce(excluded.last_full_mapping, s.last_full_mapping),"
	" last_deep_at = coalesce(excluded.last_deep_at, s.last_deep_at)",

	[SQL_RESET_STATE] =
	"UPDATE @.sync_state SET synced_until = NULL, last_full_at = NULL,"
	" last_deep_at = NULL, deep_until = NULL"
	" WHERE connection_id = $1 AND sync_type = $2",

	[SQL_DEAD_LETTER] =
	"INSERT INTO @.sync_errors AS e (run_id, connection_id, sync_type,"
	" record_id, email, property, category, message, payload, first_seen,"
	" last_seen)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb, clock_timestamp(),"
	" clock_timestamp())"
	" ON CONFLICT (connection_id, sync_type, record_id, property, category)"
	" DO UPDATE SET run_id = excluded.run_id, email = excluded.email,"
	" message = excluded.message, payload = excluded.payload,"
	" attempts = CASE WHEN e.resolved_at IS NOT NULL THEN 1"
	"  WHEN e.run_id = excluded.run_id THEN e.attempts"
	"  ELSE e.attempts + 1 END,"
	" last_seen = excluded.last_seen, resolved_at = NULL",

	[SQL_OPEN_ERRORS] =
	"SELECT record_id FROM @.sync_errors"
	" WHERE connection_id = $1 AND sync_type = $2 AND resolved_at IS NULL"
	" AND category NOT IN ('no_id', 'invalid_id')"
	" GROUP BY record_id HAVING max(attempts) < $3"
	" ORDER BY min(attempts), min(last_seen) LIMIT $4",

	[SQL_HAS_OPEN_ERRORS] =
	"SELECT EXISTS (SELECT FROM @.sync_errors"
	" WHERE connection_id = $1 AND sync_type = $2 AND resolved_at IS NULL)",

	[SQL_COUNT_ATTEMPTS] =
	"UPDATE @.sync_errors SET attempts = attempts + 1,"
	" last_seen = clock_timestamp()"
	" WHERE connection_id = $1 AND sync_type = $2 AND resolved_at IS NULL"
	" AND record_id = ANY ($3)",

	[SQL_RESOLVE_ERRORS] =
	"UPDATE @.sync_errors SET resolved_at = clock_timestamp()"
	" WHERE connection_id = $1 AND sync_type = $2 AND resolved_at IS NULL"
	" AND record_id = ANY ($3)",

	[SQL_RESOLVE_ANONYMOUS] =
	"UPDATE @.sync_errors SET resolved_at = clock_timestamp()"
	" WHERE connection_id = $1 AND sync_type = $2 AND resolved_at IS NULL"
	" AND category IN ('no_id', 'invalid_id') AND last_seen < $3",

	[SQL_KNOWN_ROWS] =
	"SELECT i.ord::int4, r.hubspot_updated_at, r.archived"
	" FROM unnest($3::text[]) WITH ORDINALITY AS i(id, ord)"
	" JOIN @.sync_rows r ON r.connection_id = $1 AND r.sync_type = $2"
	" AND r.record_id = i.id",

	/* Joined first: ON CONFLICT alone writes even where nothing changed. */
	[SQL_SAVE_ROWS] =
	"INSERT INTO @.sync_rows (connection_id, sync_type, record_id,"
	" hubspot_updated_at, archived, archived_at, synced_at)"
	" SELECT $1, $2, i.id, i.updated::timestamptz, i.archived::boolean,"
	" i.archived_at::timestamptz, clock_timestamp()"
	" FROM unnest($3::text[], $4::text[], $5::text[], $6::text[])"
	" AS i(id, updated, archived, archived_at)"
	" LEFT JOIN @.sync_rows r ON r.connection_id = $1 AND r.sync_type = $2"
	" AND r.record_id = i.id"
	" WHERE r.record_id IS NULL"
	" OR r.hubspot_updated_at IS DISTINCT FROM i.updated::timestamptz"
	" OR r.archived IS DISTINCT FROM i.archived::boolean"
	" OR r.archived_at IS DISTINCT FROM i.archived_at::timestamptz"
	" ON CONFLICT (connection_id, sync_type, record_id) DO UPDATE SET"
	" hubspot_updated_at = excluded.hubspot_updated_at,"
	" archived = excluded.archived, archived_at = excluded.archived_at,"
	" synced_at = excluded.synced_at",

	[SQL_FORGET_ROWS] =
	"DELETE FROM @.sync_rows WHERE connection_id = $1 AND sync_type = $2"
	" AND record_id = ANY ($3)",
};

#define MAX_ARGUMENTS 12

/* One statement on its way: arguments are pushed, then it is run and read. */
typedef struct Call
{
	Statement	statement;
	MemoryContext caller_context;
	Oid			save_user;
	int			save_sec_context;
	int			guc_level;
	bool		pushed_snapshot;
	int			nargs;
	Oid			types[MAX_ARGUMENTS];
	Datum		values[MAX_ARGUMENTS];
	char		nulls[MAX_ARGUMENTS];
} Call;

static SPIPlanPtr plans[SQL_STATEMENTS];
static Oid	plans_extension = InvalidOid;
static char plans_schema[NAMEDATALEN];

/* ------------------------------------------------------------------------
 * The extension itself
 * ------------------------------------------------------------------------
 */

/*
 * Finds the extension in this database.  Returns false if there is none.
 */
bool
hs_catalog_find_extension(HsExtension *extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum(HS_EXTENSION_NAME));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_extension form = (Form_pg_extension) GETSTRUCT(tuple);

		extension->oid = form->oid;
		extension->owner = form->extowner;
		extension->schema = form->extnamespace;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return HeapTupleIsValid(tuple);
}

/*
 * Holds DROP EXTENSION off until the transaction ends, and says whether the
 * extension is still the one with this oid.
 */
bool
hs_catalog_lock_extension(Oid expected)
{
	HsExtension extension;

	LockDatabaseObject(ExtensionRelationId, expected, 0, AccessShareLock);
	return hs_catalog_find_extension(&extension) && extension.oid == expected;
}

/* ------------------------------------------------------------------------
 * Running a statement
 * ------------------------------------------------------------------------
 */

/*
 * Throws the kept plans away if the extension is another one, or its schema
 * has another name: their text names the old place, where somebody else's
 * tables may be now.
 */
static void
forget_old_plans(const HsExtension *extension)
{
	const char *schema = get_namespace_name(extension->schema);

	if (extension->oid == plans_extension && strcmp(schema, plans_schema) == 0)
		return;
	for (int i = 0; i < SQL_STATEMENTS; i++)
	{
		if (plans[i] != NULL)
			SPI_freeplan(plans[i]);
		plans[i] = NULL;
	}
	plans_extension = extension->oid;
	strlcpy(plans_schema, schema, sizeof(plans_schema));
}

/*
 * Makes plans look rows up by index, until the GUC nest level ends.  A page
 * meets a table of any size, whose statistics lag far behind during a first
 * load; the planner would read the whole table for every page.
 */
void
hs_catalog_plan_by_index(void)
{
	static const char *const methods[] = {
		"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
		"enable_mergejoin", "enable_material"
	};

	for (size_t i = 0; i < lengthof(methods); i++)
		(void) set_config_option(methods[i], "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
}

/*
 * Finds the extension and holds DROP EXTENSION off until the transaction
 * ends.  Throws if there is none, or none any more.
 */
static void
require_extension(HsExtension *extension)
{
	if (hs_catalog_find_extension(extension) &&
		hs_catalog_lock_extension(extension->oid))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"%s\" is not installed in this database",
					HS_EXTENSION_NAME),
			 errhint("Run CREATE EXTENSION %s.", HS_EXTENSION_NAME)));
}

/*
 * Begins a statement: switches to the extension's owner and a safe
 * search_path until end_call().  An error undoes both with the transaction.
 */
static void
begin_call(Call *call, Statement statement)
{
	HsExtension extension;

	memset(call, 0, sizeof(Call));
	call->statement = statement;
	call->caller_context = CurrentMemoryContext;
	require_extension(&extension);
	forget_old_plans(&extension);
	call->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	hs_catalog_plan_by_index();
	GetUserIdAndSecContext(&call->save_user, &call->save_sec_context);
	SetUserIdAndSecContext(extension.owner, call->save_sec_context |
							   SECURITY_LOCAL_USERID_CHANGE);
	if (!ActiveSnapshotSet())
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		call->pushed_snapshot = true;
	}
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

/*
 * Ends a statement.  Everything read must have been copied before.
 */
static void
end_call(Call *call)
{
	SPI_finish();
	if (call->pushed_snapshot)
		PopActiveSnapshot();
	SetUserIdAndSecContext(call->save_user, call->save_sec_context);
	AtEOXact_GUC(false, call->guc_level);
	MemoryContextSwitchTo(call->caller_context);
}

/* Pushes an argument; the order of the pushes is that of $1, $2, ... */
static void
push(Call *call, Oid type, Datum value, bool isnull)
{
	Assert(call->nargs < MAX_ARGUMENTS);
	call->types[call->nargs] = type;
	call->values[call->nargs] = value;
	call->nulls[call->nargs] = isnull ? 'n' : ' ';
	call->nargs++;
}

static void
push_text(Call *call, const char *value)
{
	push(call, TEXTOID,
		 value ? CStringGetTextDatum(value) : (Datum) 0, value == NULL);
}

static void
push_uuid(Call *call, const pg_uuid_t *value)
{
	push(call, UUIDOID, PointerGetDatum(value), value == NULL);
}

static void
push_int(Call *call, int value)
{
	push(call, INT4OID, Int32GetDatum(value), false);
}

static void
push_bool(Call *call, bool value)
{
	push(call, BOOLOID, BoolGetDatum(value), false);
}

/* An instant, where 0 stands for none. */
static void
push_time(Call *call, TimestampTz value)
{
	push(call, TIMESTAMPTZOID, TimestampTzGetDatum(value), value == 0);
}

static void
push_texts(Call *call, const char *const *values, int n)
{
	push(call, TEXTARRAYOID, hs_catalog_text_array(values, n), false);
}

/*
 * The statement's text with "@." replaced by the extension's schema.
 */
static char *
statement_text(const char *pattern)
{
	const char *schema = quote_identifier(plans_schema);
	StringInfoData sql;

	initStringInfo(&sql);
	for (const char *p = pattern; *p != '\0'; p++)
	{
		if (p[0] == '@' && p[1] == '.')
			appendStringInfoString(&sql, schema);
		else
			appendStringInfoChar(&sql, *p);
	}
	return sql.data;
}

/*
 * Runs the statement with the pushed arguments and returns how many rows it
 * returned or changed.  They are in SPI_tuptable until end_call().
 */
static uint64
run_call(Call *call)
{
	SPIPlanPtr	plan = plans[call->statement];
	int			result;

	if (plan == NULL)
	{
		plan = SPI_prepare(statement_text(statements[call->statement]),
						   call->nargs, call->types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare statement %d: %s",
				 call->statement, SPI_result_code_string(SPI_result));
		plans[call->statement] = plan;
	}
	result = SPI_execute_plan(plan, call->values, call->nulls, false, 0);
	if (result < 0)
		elog(ERROR, "could not run statement %d: %s", call->statement,
			 SPI_result_code_string(result));
	return SPI_processed;
}

/* Reading: columns are numbered from 1, rows from 0. */

static Datum
column(uint64 row, int number, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 number, isnull);
}

/* A column's text in the caller's memory context, NULL for null. */
static char *
text_column(const Call *call, uint64 row, int number)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row],
									 SPI_tuptable->tupdesc, number);

	return value ? MemoryContextStrdup(call->caller_context, value) : NULL;
}

static int
int_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

static bool
bool_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return !isnull && DatumGetBool(value);
}

static double
float_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetFloat8(value);
}

static TimestampTz
time_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

static pg_uuid_t
uuid_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	if (isnull)
		elog(ERROR, "unexpected null in column %d", number);
	return *DatumGetUUIDP(value);
}

/* A text array as a list of char * in the caller's memory context. */
static List *
list_column(const Call *call, uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);
	MemoryContext old = MemoryContextSwitchTo(call->caller_context);
	List	   *result = NIL;
	Datum	   *elements;
	bool	   *nulls;
	int			n = 0;

	if (!isnull)
		deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false,
						  TYPALIGN_INT, &elements, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			result = lappend(result, TextDatumGetCString(elements[i]));
	}
	MemoryContextSwitchTo(old);
	return result;
}

/*
 * A one-dimensional text[]; NULL pointers become null elements.
 */
Datum
hs_catalog_text_array(const char *const *values, int n)
{
	Datum	   *datums = palloc(sizeof(Datum) * Max(n, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(n, 1));
	int			dims[1] = {n};
	int			lower[1] = {1};

	if (n == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	for (int i = 0; i < n; i++)
	{
		nulls[i] = values[i] == NULL;
		datums[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(values[i]);
	}
	return PointerGetDatum(construct_md_array(datums, nulls, 1, dims, lower,
											  TEXTOID, -1, false,
											  TYPALIGN_INT));
}

/* The first column of the first row as text, NULL without a row. */
static char *
run_for_text(Call *call)
{
	char	   *result = NULL;

	if (run_call(call) > 0)
		result = text_column(call, 0, 1);
	end_call(call);
	return result;
}

/* Runs a statement whose result nobody needs but the number of rows. */
static uint64
run_and_end(Call *call)
{
	uint64		rows = run_call(call);

	end_call(call);
	return rows;
}

/* ------------------------------------------------------------------------
 * Configuration
 * ------------------------------------------------------------------------
 */

/* Adds the fields of a type, and who configured them. */
static void
read_fields(HsSyncType *type)
{
	Call		call;
	uint64		rows;

	begin_call(&call, SQL_FIELDS);
	push_text(&call, type->name);
	rows = run_call(&call);
	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(call.caller_context);
		HsField    *field = palloc0(sizeof(HsField));
		char	   *who = text_column(&call, i, 6);

		field->column = text_column(&call, i, 1);
		field->property = text_column(&call, i, 2);
		field->transform = text_column(&call, i, 3);
		field->argument = text_column(&call, i, 4);
		field->insert_only = bool_column(i, 5);
		type->fields = lappend(type->fields, field);
		if (who != NULL)
			type->configured_by = lappend(type->configured_by, who);
		MemoryContextSwitchTo(old);
	}
	end_call(&call);
}

/*
 * Reads a sync type with its fields.  Returns NULL if there is none of that
 * name.
 */
HsSyncType *
hs_catalog_sync_type(const char *name)
{
	HsSyncType *type = NULL;
	Call		call;

	begin_call(&call, SQL_SYNC_TYPE);
	push_text(&call, name);
	if (run_call(&call) > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(call.caller_context);
		char	   *who = text_column(&call, 0, 13);

		type = palloc0(sizeof(HsSyncType));
		type->name = text_column(&call, 0, 1);
		type->source = text_column(&call, 0, 2);
		type->object_type = text_column(&call, 0, 3);
		type->target_schema = text_column(&call, 0, 4);
		type->target_table = text_column(&call, 0, 5);
		type->key_columns = list_column(&call, 0, 6);
		type->modified_property = text_column(&call, 0, 7);
		type->created_property = text_column(&call, 0, 8);
		type->properties = list_column(&call, 0, 9);
		type->delete_policy = text_column(&call, 0, 10);
		type->full_every_s = float_column(0, 11);
		type->enabled = bool_column(0, 12);
		if (who != NULL)
			type->configured_by = list_make1(who);
		MemoryContextSwitchTo(old);
	}
	end_call(&call);
	if (type != NULL)
		read_fields(type);
	return type;
}

/*
 * The names of the enabled sync types, for messages.
 */
char *
hs_catalog_known_types(void)
{
	Call		call;

	begin_call(&call, SQL_KNOWN_TYPES);
	return run_for_text(&call);
}

/*
 * Reads a connection.  Returns false if there is none of that name.
 */
bool
hs_catalog_connection(const char *name, HsConnection *connection)
{
	Call		call;
	bool		found;

	begin_call(&call, SQL_CONNECTION);
	push_text(&call, name);
	found = run_call(&call) > 0;
	if (found)
	{
		connection->id = uuid_column(0, 1);
		connection->name = text_column(&call, 0, 2);
		connection->portal_id = text_column(&call, 0, 3);
	}
	end_call(&call);
	return found;
}

/*
 * The names of the connections, for messages.
 */
char *
hs_catalog_known_connections(void)
{
	Call		call;

	begin_call(&call, SQL_KNOWN_CONNECTIONS);
	return run_for_text(&call);
}

/*
 * Notes the account number of a connection.
 */
void
hs_catalog_save_portal(const HsConnection *connection, const char *portal_id)
{
	Call		call;

	begin_call(&call, SQL_SAVE_PORTAL);
	push_uuid(&call, &connection->id);
	push_text(&call, portal_id);
	run_and_end(&call);
}

/*
 * Turns a timeframe into instants, in the session's time zone.  An open end
 * is 0.  Returns false for an unknown timeframe.
 */
bool
hs_catalog_timeframe(const char *timeframe, TimestampTz *from, TimestampTz *to)
{
	Call		call;
	bool		found;

	begin_call(&call, SQL_TIMEFRAME);
	push_text(&call, timeframe);
	found = run_call(&call) > 0;
	if (found)
	{
		*from = time_column(0, 1);
		*to = time_column(0, 2);
	}
	end_call(&call);
	return found;
}

/*
 * The settings of ours that this session has changed for itself, or NULL.  A
 * worker would not see them.  With `role_is_workers` the worker's role is the
 * session's, so that settings of the role do not count as changed.
 */
char *
hs_catalog_changed_settings(bool role_is_workers)
{
	Call		call;

	begin_call(&call, SQL_CHANGED_SETTINGS);
	push_bool(&call, role_is_workers);
	return run_for_text(&call);
}

/*
 * The owner of a table.  Throws if the table is gone.
 */
Oid
hs_catalog_table_owner(Oid relation)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the target table was dropped meanwhile")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* ------------------------------------------------------------------------
 * Runs: requests
 * ------------------------------------------------------------------------
 */

/*
 * Adds a pending run and returns its id and advisory lock key.  Returns false
 * if another one of the same connection and type is pending or running; waits
 * for the end of a transaction that is just requesting one, as long as
 * lock_timeout allows.
 */
bool
hs_catalog_insert_run(const HsRunRequest *request, pg_uuid_t *id,
					  int64 *lock_key)
{
	Call		call;
	bool		inserted;
	bool		isnull;

	begin_call(&call, SQL_INSERT_RUN);
	push_uuid(&call, &request->connection_id);
	push_text(&call, request->sync_type);
	push_text(&call, request->direction);
	push_text(&call, request->mode);
	push_text(&call, request->timeframe);
	push_text(&call, request->scope);
	push_time(&call, request->range_from);
	push_time(&call, request->range_to);
	push_text(&call, request->requested_by);
	push_text(&call, request->trigger_source);
	inserted = run_call(&call) > 0;
	if (inserted)
	{
		*id = uuid_column(0, 1);
		*lock_key = DatumGetInt64(column(0, 2, &isnull));
	}
	end_call(&call);
	return inserted;
}

/*
 * Reads the pending or running run of a type.  Returns false if there is
 * none.
 */
bool
hs_catalog_active_run(const pg_uuid_t *connection_id, const char *sync_type,
					  HsActiveRun *run)
{
	Call		call;
	bool		found;

	begin_call(&call, SQL_ACTIVE_RUN);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	found = run_call(&call) > 0;
	if (found)
	{
		run->id = uuid_column(0, 1);
		run->mode = text_column(&call, 0, 2);
		run->scope = text_column(&call, 0, 3);
		run->started = text_column(&call, 0, 4);
		run->pid = int_column(0, 5);
		run->dead = bool_column(0, 6);
	}
	end_call(&call);
	return found;
}

/*
 * Closes the log entry of a run whose process is gone.
 */
void
hs_catalog_close_dead_run(const pg_uuid_t *id)
{
	Call		call;

	begin_call(&call, SQL_CLOSE_DEAD_RUN);
	push_uuid(&call, id);
	run_and_end(&call);
}

/*
 * Restarts the time after which a pending run without a worker counts as
 * dead.
 */
void
hs_catalog_touch_pending(const pg_uuid_t *id)
{
	Call		call;

	begin_call(&call, SQL_TOUCH_PENDING);
	push_uuid(&call, id);
	run_and_end(&call);
}

/*
 * Reads how a run is doing.  Returns false for an unknown id.
 */
bool
hs_catalog_run_status(const pg_uuid_t *id, HsRunStatus *status)
{
	Call		call;
	bool		found;

	begin_call(&call, SQL_RUN_STATUS);
	push_uuid(&call, id);
	found = run_call(&call) > 0;
	if (found)
	{
		status->sync_type = text_column(&call, 0, 1);
		status->status = text_column(&call, 0, 2);
		status->reason = text_column(&call, 0, 3);
		status->message = text_column(&call, 0, 4);
		status->activity = text_column(&call, 0, 5);
		status->pid = int_column(0, 6);
		status->processed = int_column(0, 7);
		status->failed = int_column(0, 8);
		status->requests = int_column(0, 9);
		status->seconds = float_column(0, 10);
	}
	end_call(&call);
	return found;
}

/*
 * Cancels a run that has not begun.  Returns false if it has.
 */
bool
hs_catalog_cancel_pending(const pg_uuid_t *id)
{
	Call		call;

	begin_call(&call, SQL_CANCEL_PENDING);
	push_uuid(&call, id);
	return run_and_end(&call) > 0;
}

/* ------------------------------------------------------------------------
 * Runs: the worker's side
 * ------------------------------------------------------------------------
 */

/*
 * Turns a pending run into a running one of this process.  Returns false if
 * it is not pending: its transaction rolled back, or it was cancelled.
 */
bool
hs_catalog_claim_run(const pg_uuid_t *id, HsRunRequest *request)
{
	Call		call;
	bool		claimed;

	begin_call(&call, SQL_CLAIM_RUN);
	push_uuid(&call, id);
	claimed = run_call(&call) > 0;
	if (claimed)
	{
		request->connection_id = uuid_column(0, 1);
		request->connection_name = text_column(&call, 0, 2);
		request->portal_id = text_column(&call, 0, 3);
		request->sync_type = text_column(&call, 0, 4);
		request->direction = text_column(&call, 0, 5);
		request->mode = text_column(&call, 0, 6);
		request->timeframe = text_column(&call, 0, 7);
		request->scope = text_column(&call, 0, 8);
		request->range_from = time_column(0, 9);
		request->range_to = time_column(0, 10);
		request->trigger_source = text_column(&call, 0, 11);
		request->requested_by = text_column(&call, 0, 12);
	}
	end_call(&call);
	return claimed;
}

/*
 * Finds the checkpoint an earlier run of the same mode, scope and mapping
 * left behind.  Returns false if there is nothing to continue.
 */
bool
hs_catalog_resume(const HsRunRequest *request, const char *mode,
				  const char *mapping, HsResume *resume)
{
	Call		call;
	bool		found;

	begin_call(&call, SQL_RESUME);
	push_uuid(&call, &request->connection_id);
	push_text(&call, request->sync_type);
	push_text(&call, mode);
	push_text(&call, request->scope);
	push_text(&call, mapping);
	found = run_call(&call) > 0;
	if (found)
	{
		resume->run_id = uuid_column(0, 1);
		resume->checkpoint = text_column(&call, 0, 2);
	}
	end_call(&call);
	return found;
}

/*
 * Notes what a run has resolved to: its mode, mapping, and the checkpoint and
 * run it continues from, which may be NULL.
 */
void
hs_catalog_start_run(const pg_uuid_t *id, const char *mode,
					 const char *mapping, const char *checkpoint,
					 const pg_uuid_t *continues)
{
	Call		call;

	begin_call(&call, SQL_START_RUN);
	push_uuid(&call, id);
	push_text(&call, mode);
	push_text(&call, mapping);
	push_text(&call, checkpoint);
	push_uuid(&call, continues);
	run_and_end(&call);
}

static void
push_counters(Call *call, const HsRunCounters *counters)
{
	push_int(call, counters->processed);
	push_int(call, counters->failed);
	push_int(call, counters->changed);
	push_int(call, counters->unchanged);
	push_int(call, counters->archived);
	push_int(call, counters->requests);
	push_int(call, counters->retries);
	push(call, INT8OID, Int64GetDatum(counters->bytes_received), false);
}

/*
 * Writes a run's counters, and its checkpoint unless that is NULL.
 */
void
hs_catalog_save_run(const pg_uuid_t *id, const HsRunCounters *counters,
					const char *checkpoint)
{
	Call		call;

	begin_call(&call, SQL_SAVE_RUN);
	push_uuid(&call, id);
	push_counters(&call, counters);
	push_text(&call, checkpoint);
	run_and_end(&call);
}

/*
 * Closes a run's log entry.  `error_details` is JSON text or NULL.
 */
void
hs_catalog_finish_run(const pg_uuid_t *id, const char *status,
					  const HsRunCounters *counters, const char *error_details)
{
	Call		call;

	begin_call(&call, SQL_FINISH_RUN);
	push_uuid(&call, id);
	push_counters(&call, counters);
	push_text(&call, status);
	push_text(&call, error_details);
	run_and_end(&call);
}

/*
 * Reads what completed runs have reached; all zero before the first.
 */
void
hs_catalog_state(const pg_uuid_t *connection_id, const char *sync_type,
				 HsSyncState *state)
{
	Call		call;

	memset(state, 0, sizeof(HsSyncState));
	begin_call(&call, SQL_STATE);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	if (run_call(&call) > 0)
	{
		state->synced_until = time_column(0, 1);
		state->last_full_at = time_column(0, 2);
		state->last_full_mapping = text_column(&call, 0, 3);
		state->last_deep_at = time_column(0, 4);
		state->deep_until = time_column(0, 5);
	}
	end_call(&call);
}

/*
 * Moves the watermark after a completed run; 0 leaves it.  A full run
 * (`full`) sets it, so that one wrong clock does no lasting harm; any other
 * moves it forwards only.  `deep` notes a run that reached far back.
 */
void
hs_catalog_save_state(const pg_uuid_t *connection_id, const char *sync_type,
					  TimestampTz synced_until, bool full, bool deep,
					  const char *mapping)
{
	Call		call;

	begin_call(&call, SQL_SAVE_STATE);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_time(&call, synced_until);
	push_bool(&call, full);
	push_bool(&call, deep);
	push_text(&call, mapping);
	run_and_end(&call);
}

/*
 * Forgets what completed runs have reached, so that the next one reads
 * everything.
 */
void
hs_catalog_reset_state(const pg_uuid_t *connection_id, const char *sync_type)
{
	Call		call;

	begin_call(&call, SQL_RESET_STATE);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	run_and_end(&call);
}

/* ------------------------------------------------------------------------
 * Dead letters
 * ------------------------------------------------------------------------
 */

/*
 * Adds a dead letter, counts it up if it is known, reopens it if it was
 * resolved.
 */
void
hs_catalog_dead_letter(const pg_uuid_t *run_id, const pg_uuid_t *connection_id,
					   const char *sync_type, const HsDeadLetter *letter)
{
	Call		call;

	begin_call(&call, SQL_DEAD_LETTER);
	push_uuid(&call, run_id);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_text(&call, letter->record_id);
	push_text(&call, letter->email);
	push_text(&call, letter->property);
	push_text(&call, letter->category);
	push_text(&call, letter->message);
	push_text(&call, letter->payload);
	run_and_end(&call);
}

/*
 * The record ids (char *) of at most `limit` open errors that failed less
 * than `max_attempts` times.
 */
List *
hs_catalog_open_errors(const pg_uuid_t *connection_id, const char *sync_type,
					   int max_attempts, int limit)
{
	Call		call;
	List	   *ids = NIL;
	uint64		rows;

	begin_call(&call, SQL_OPEN_ERRORS);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_int(&call, max_attempts);
	push_int(&call, limit);
	rows = run_call(&call);
	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(call.caller_context);

		ids = lappend(ids, text_column(&call, i, 1));
		MemoryContextSwitchTo(old);
	}
	end_call(&call);
	return ids;
}

/*
 * Whether the type has errors to close when their records arrive.
 */
bool
hs_catalog_has_open_errors(const pg_uuid_t *connection_id,
						   const char *sync_type)
{
	Call		call;
	bool		result;

	begin_call(&call, SQL_HAS_OPEN_ERRORS);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	run_call(&call);
	result = bool_column(0, 1);
	end_call(&call);
	return result;
}

/* Runs one of the statements on the errors or rows of some records. */
static void
run_on_records(Statement statement, const pg_uuid_t *connection_id,
			   const char *sync_type, const char *const *ids, int n)
{
	Call		call;

	if (n == 0)
		return;
	begin_call(&call, statement);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_texts(&call, ids, n);
	run_and_end(&call);
}

/*
 * Counts an attempt for errors whose records could not be read again.
 */
void
hs_catalog_count_attempts(const pg_uuid_t *connection_id,
						  const char *sync_type, const char *const *ids, int n)
{
	run_on_records(SQL_COUNT_ATTEMPTS, connection_id, sync_type, ids, n);
}

/*
 * Closes the errors of records that have been stored.
 */
void
hs_catalog_resolve_errors(const pg_uuid_t *connection_id,
						  const char *sync_type, const char *const *ids, int n)
{
	run_on_records(SQL_RESOLVE_ERRORS, connection_id, sync_type, ids, n);
}

/*
 * Closes errors of records without an id that a full run did not meet again.
 */
void
hs_catalog_resolve_anonymous(const pg_uuid_t *connection_id,
							 const char *sync_type, TimestampTz before)
{
	Call		call;

	begin_call(&call, SQL_RESOLVE_ANONYMOUS);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_time(&call, before);
	run_and_end(&call);
}

/* ------------------------------------------------------------------------
 * Bookkeeping for targets without the columns for it
 * ------------------------------------------------------------------------
 */

/*
 * Fills `rows`, parallel to `ids`, with what is known of these records.
 */
void
hs_catalog_known_rows(const pg_uuid_t *connection_id, const char *sync_type,
					  const char *const *ids, int n, HsKnownRow *rows)
{
	Call		call;
	uint64		found;

	memset(rows, 0, sizeof(HsKnownRow) * n);
	begin_call(&call, SQL_KNOWN_ROWS);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_texts(&call, ids, n);
	found = run_call(&call);
	for (uint64 i = 0; i < found; i++)
	{
		HsKnownRow *row = &rows[int_column(i, 1) - 1];

		row->found = true;
		row->updated_at = time_column(i, 2);
		row->archived = bool_column(i, 3);
	}
	end_call(&call);
}

/*
 * Saves what is known of records, writing only rows that differ.  The arrays
 * are parallel and hold text that PostgreSQL reads as timestamptz or boolean.
 */
void
hs_catalog_save_rows(const pg_uuid_t *connection_id, const char *sync_type,
					 const char *const *ids, const char *const *updated,
					 const char *const *archived,
					 const char *const *archived_at, int n)
{
	Call		call;

	begin_call(&call, SQL_SAVE_ROWS);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_texts(&call, ids, n);
	push_texts(&call, updated, n);
	push_texts(&call, archived, n);
	push_texts(&call, archived_at, n);
	run_and_end(&call);
}

/*
 * Forgets records whose rows were deleted.
 */
void
hs_catalog_forget_rows(const pg_uuid_t *connection_id, const char *sync_type,
					   const char *const *ids, int n)
{
	run_on_records(SQL_FORGET_ROWS, connection_id, sync_type, ids, n);
}
