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
#include "access/sysattr.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
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
	SQL_CONNECTIONS,
	SQL_SAVE_PORTAL,
	SQL_TIMEFRAME,
	SQL_CHANGED_SETTINGS,
	SQL_SAVE_TARGET,
	SQL_DROP_FIELDS,
	SQL_SAVE_FIELD,
	SQL_NOTE_REMOVAL,
	SQL_FORGET_REMOVAL,
	SQL_REMOVE_SHIPPED_TYPE,
	SQL_REMOVE_SHIPPED_FIELD,
	SQL_PROGRESS_SOURCES,
	SQL_LEVEL_TABLES,
	SQL_PROGRESS_STATES,
	SQL_CONTACT_HOLDERS,
	SQL_KEEP_LEFTOVERS,
	SQL_LEFTOVERS,
	SQL_DROP_LEFTOVERS,
	SQL_ANNOUNCE_PROGRESS,
	SQL_SAVE_PROGRESS,
	SQL_DROP_PROGRESS,
	SQL_FORGET_PROGRESS,
	SQL_CONTACTS_BY_EMAIL,
	SQL_PROGRESS_PROPERTIES,
	SQL_DROP_PROGRESS_PROPERTIES,
	SQL_SAVE_PROGRESS_PROPERTIES,
	SQL_DOUBT_PROGRESS_PROPERTIES,
	SQL_EMPTINESS_ACCEPTED,
	SQL_ACCEPT_EMPTINESS,
	SQL_RESOLVE_UNMET,
	SQL_IS_HOME,
	SQL_LEAVE_HOME,
	SQL_SETTLE_HOME,
	SQL_DUE_TYPES,
	SQL_INSERT_RUN,
	SQL_ACTIVE_RUN,
	SQL_CLOSE_DEAD_RUN,
	SQL_DEAD_RUNS,
	SQL_REFUSED_RUN,
	SQL_RUN_END,
	SQL_EXPIRE_RUNS,
	SQL_EXPIRE_ERRORS,
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
	SQL_FORGET_FULL_MAPPING,
	SQL_SAVE_REFUSAL,
	SQL_SAVE_SWEEP,
	SQL_PROPERTIES,
	SQL_SAVE_PROPERTIES,
	SQL_DEAD_LETTER,
	SQL_OPEN_ERRORS,
	SQL_HAS_OPEN_ERRORS,
	SQL_COUNT_ATTEMPTS,
	SQL_RESOLVE_ERRORS,
	SQL_RESOLVE_ANONYMOUS,
	SQL_KNOWN_ROWS,
	SQL_SAVE_ROWS,
	SQL_FORGET_ROWS,
	SQL_ROWS_IN_RANGE,
	SQL_ROWS_IN_WIDE_RANGE,
	SQL_BURIED_ROWS,
	SQL_COUNT_ROWS,
	SQL_NOTE_ABSENCES,
	SQL_HAS_ABSENCES,
	SQL_DROP_ABSENCES,
	SQL_ARRIVED_ABSENCES,
	SQL_CLEAR_ABSENCES,
	SQL_UNREAD_ABSENCES,
	SQL_JUDGE_ABSENCES,
	SQL_COUNT_GONE,
	SQL_JUDGED_ABSENCES,
	SQL_REFUSE_ABSENCES,
	SQL_ACCEPT_ABSENCES,
	SQL_OWNER_CHANGES,
	SQL_CLOSE_OWNERS,
	SQL_OPEN_OWNERS,
	SQL_NOTE_OWNER_READS,
	SQL_OWNER_READS,
	SQL_COUNT_OWNER_READS,
	SQL_GIVE_UP_OWNER_READS,
	SQL_DROP_OWNER_READS,
	SQL_CUT_OWNERS,
	SQL_TRIM_OWNERS,
	SQL_ADD_OWNERS,
	SQL_STATEMENTS,
	SQL_UNKEPT = SQL_STATEMENTS /* one that is made up each time */
} Statement;

/* Of archived records, those that may be restored. */
#define SQL_MAY_COME_BACK \
	" AND (NOT archived OR" \
	"  (coalesce(archived_at, synced_at) > now() - interval '91 days'" \
	"  AND coalesce(archived_reason, '') NOT IN" \
	"   ('merged', 'gone', 'filtered')))"

static const char *const statements[SQL_STATEMENTS] = {
	[SQL_SYNC_TYPE] =
	"SELECT t.sync_type, t.source, t.object_type,"
	" CASE WHEN p.source IS NULL THEN t.target_schema ELSE p.table_schema END,"
	" CASE WHEN p.source IS NULL THEN t.target_table ELSE p.table_name END,"
	" t.key_columns::text[], t.modified_property, t.created_property,"
	" t.properties, t.delete_policy,"
	" extract(epoch FROM t.full_every)::float8, t.enabled,"
	" t.configured_by, t.property_set = 'all', t.filters::text,"
	" t.full_strategy"
	" FROM @.sync_types t LEFT JOIN @.progress_sources p"
	" ON t.source = 'progress' AND p.source = 'users'"
	" WHERE t.sync_type = $1",

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

	[SQL_CONNECTIONS] =
	"SELECT connection_id, name, portal_id"
	" FROM @.sync_connections ORDER BY name",

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
	" AND name <> 'hubspot_sync.schedule_time_zone'"
	" AND (source IN ('session', 'client', 'interactive')"
	"  OR (NOT $1 AND source IN ('user', 'database user')))",

	[SQL_SAVE_TARGET] =
	"UPDATE @.sync_types SET target_schema = $2, target_table = $3,"
	" key_columns = $4::name[], delete_policy = $5, configured_by = $6,"
	" shipped = false WHERE sync_type = $1",

	[SQL_DROP_FIELDS] =
	"DELETE FROM @.sync_fields WHERE sync_type = $1"
	" AND column_name <> ALL ($2::name[])",

	[SQL_SAVE_FIELD] =
	"INSERT INTO @.sync_fields (sync_type, column_name, property, transform,"
	" argument, insert_only, configured_by)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7)"
	" ON CONFLICT (sync_type, column_name) DO UPDATE SET"
	" property = excluded.property, transform = excluded.transform,"
	" argument = excluded.argument, insert_only = excluded.insert_only,"
	" configured_by = excluded.configured_by, shipped = false",

	[SQL_NOTE_REMOVAL] =
	"INSERT INTO @.sync_removals (sync_type, column_name) VALUES ($1, $2)",

	[SQL_FORGET_REMOVAL] =
	"DELETE FROM @.sync_removals WHERE sync_type = $1"
	" AND column_name IS NOT DISTINCT FROM $2::name",

	[SQL_REMOVE_SHIPPED_TYPE] =
	"DELETE FROM @.sync_types WHERE sync_type = $1 AND shipped",

	[SQL_REMOVE_SHIPPED_FIELD] =
	"DELETE FROM @.sync_fields WHERE sync_type = $1 AND column_name = $2"
	" AND shipped",

	[SQL_PROGRESS_SOURCES] =
	"SELECT source, level, table_schema, table_name, columns::text,"
	" coalesce(total_units, 0), enabled, configured_by"
	" FROM @.progress_sources ORDER BY source, level",

	/* $1, $2: the schema and the owner of users. */
	[SQL_LEVEL_TABLES] =
	"SELECT c.relname FROM pg_class c"
	" WHERE c.relnamespace = $1 AND c.relowner = $2"
	" AND c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition"
	" AND right(c.relname::text, 9) = '_progress'"
	" AND (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid"
	"  AND a.attname IN ('user_id', 'unit_id') AND a.attnum > 0"
	"  AND NOT a.attisdropped) = 2"
	" AND NOT EXISTS (SELECT FROM pg_depend d"
	"  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid"
	"  AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')"
	" ORDER BY c.relname COLLATE \"C\"",

	[SQL_PROGRESS_STATES] =
	"SELECT user_id, email, contact_id, fingerprint,"
	" CASE WHEN $3 THEN properties::text END FROM @.progress_state"
	" WHERE connection_id = $1 AND user_id = ANY ($2)",

	[SQL_CONTACT_HOLDERS] =
	"SELECT user_id, email, contact_id, fingerprint, properties::text"
	" FROM @.progress_state"
	" WHERE connection_id = $1 AND contact_id = ANY ($2)",

	/* $2, $3: students and the contacts they get. */
	[SQL_KEEP_LEFTOVERS] =
	"INSERT INTO @.progress_leftovers AS l"
	" (connection_id, contact_id, properties)"
	" SELECT DISTINCT ON (s.contact_id)"
	" s.connection_id, s.contact_id, s.properties FROM @.progress_state s"
	" WHERE s.connection_id = $1 AND s.user_id = ANY ($2)"
	" AND s.contact_id <> $3[array_position($2, s.user_id)]"
	" ON CONFLICT (connection_id, contact_id)"
	" DO UPDATE SET properties = l.properties || excluded.properties",

	[SQL_LEFTOVERS] =
	"SELECT NULL::text, NULL::text, contact_id, 0::bigint, properties::text"
	" FROM @.progress_leftovers"
	" WHERE connection_id = $1 AND contact_id = ANY ($2)",

	[SQL_DROP_LEFTOVERS] =
	"DELETE FROM @.progress_leftovers"
	" WHERE connection_id = $1 AND contact_id = ANY ($2)",

	/* Whatever HubSpot may have afterwards: all that is sent, or was kept. */
	[SQL_ANNOUNCE_PROGRESS] =
	"INSERT INTO @.progress_state (connection_id, user_id, email, contact_id,"
	" properties, fingerprint)"
	" SELECT $1, i.id, i.email, i.contact, CASE WHEN i.kept IS NULL"
	" THEN i.sent::jsonb ELSE i.sent::jsonb || i.kept::jsonb END, 0"
	" FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[])"
	" AS i(id, email, contact, sent, kept)"
	" ON CONFLICT (connection_id, user_id) DO UPDATE SET"
	" email = excluded.email, contact_id = excluded.contact_id,"
	" properties = excluded.properties, fingerprint = 0",

	[SQL_SAVE_PROGRESS] =
	"INSERT INTO @.progress_state (connection_id, user_id, email, contact_id,"
	" properties, fingerprint, accepted_at)"
	" SELECT $1, i.id, i.email, i.contact, i.properties::jsonb,"
	" i.fingerprint::bigint, clock_timestamp()"
	" FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[])"
	" AS i(id, email, contact, properties, fingerprint)"
	" ON CONFLICT (connection_id, user_id) DO UPDATE SET"
	" email = excluded.email, contact_id = excluded.contact_id,"
	" properties = excluded.properties, fingerprint = excluded.fingerprint,"
	" accepted_at = excluded.accepted_at",

	[SQL_DROP_PROGRESS] =
	"DELETE FROM @.progress_state"
	" WHERE connection_id = $1 AND user_id = ANY ($2)",

	[SQL_FORGET_PROGRESS] =
	"UPDATE @.progress_state SET properties = properties - $2, fingerprint = 0"
	" WHERE connection_id = $1 AND properties ?| $2",

	/* In the words of the index on contacts' addresses. */
	[SQL_CONTACTS_BY_EMAIL] =
	"SELECT lower(left(email, 320)), min(hubspot_contact_id), count(*)"
	" FROM @.contacts WHERE connection_id = $1 AND NOT archived"
	" AND lower(left(email, 320)) = ANY ($2) GROUP BY 1",

	[SQL_PROGRESS_PROPERTIES] =
	"SELECT name, problem,"
	" checked_at > now() - make_interval(secs => $2) AND checked_at <= now()"
	" FROM @.progress_properties WHERE connection_id = $1",

	[SQL_DROP_PROGRESS_PROPERTIES] =
	"DELETE FROM @.progress_properties"
	" WHERE connection_id = $1 AND name <> ALL ($2)",

	[SQL_SAVE_PROGRESS_PROPERTIES] =
	"INSERT INTO @.progress_properties (connection_id, name, problem,"
	" checked_at) SELECT $1, i.name, i.problem, now()"
	" FROM unnest($2::text[], $3::text[]) AS i(name, problem)"
	" ON CONFLICT (connection_id, name) DO UPDATE SET"
	" problem = excluded.problem, checked_at = excluded.checked_at",

	[SQL_DOUBT_PROGRESS_PROPERTIES] =
	"UPDATE @.progress_properties SET checked_at = '-infinity'"
	" WHERE connection_id = $1",

	/* Accepted, and not carried out by a run since. */
	[SQL_EMPTINESS_ACCEPTED] =
	"SELECT count(*)::float8 FROM @.sync_runs r"
	" WHERE r.connection_id = $1 AND r.sync_type = $2"
	" AND r.error_details->>'reason' = 'mass_empty'"
	" AND r.error_details->>'accepted' = 'true'"
	" AND NOT EXISTS (SELECT FROM @.sync_runs n"
	"  WHERE n.connection_id = r.connection_id AND n.sync_type = r.sync_type"
	"  AND n.scope = '' AND n.status IN ('success', 'partial')"
	"  AND n.created_at > r.created_at)",

	[SQL_ACCEPT_EMPTINESS] =
	"UPDATE @.sync_runs SET error_details = error_details"
	" || '{\"accepted\": true}' WHERE id = $1"
	" AND error_details->>'reason' = 'mass_empty'"
	" RETURNING (error_details->>'emptied')::int",

	[SQL_RESOLVE_UNMET] =
	"UPDATE @.sync_errors SET resolved_at = clock_timestamp()"
	" WHERE connection_id = $1 AND sync_type = $2 AND resolved_at IS NULL"
	" AND run_id <> $3 AND ($4::text IS NULL OR category = $4)",

	/* A copy has the original's row too; see hs_catalog_is_home(). */
	[SQL_IS_HOME] =
	"SELECT count(*) > 0 AND"
	" bool_and(system_identifier = $1 AND database_oid = $2)"
	" FROM @.sync_home",

	[SQL_LEAVE_HOME] =
	"DELETE FROM @.sync_home",

	[SQL_SETTLE_HOME] =
	"INSERT INTO @.sync_home (system_identifier, database_oid)"
	" VALUES ($1, $2)",

	/*
	 * A run that died is followed by another at once, unless the one before
	 * it died as well.
	 */
	[SQL_DUE_TYPES] =
	"SELECT s.sync_type FROM @.sync_schedules s"
	" LEFT JOIN LATERAL ("
	"  SELECT array_agg(l.reason ORDER BY l.created_at DESC) AS reasons FROM ("
	"   SELECT r.created_at, coalesce(r.error_details->>'reason', '') AS reason"
	"   FROM @.sync_runs r WHERE r.connection_id = s.connection_id"
	"   AND r.sync_type = s.sync_type AND r.scope = ''"
	"   ORDER BY r.created_at DESC LIMIT 2) l) d ON true"
	" WHERE (s.next_run_at <= clock_timestamp()"
	"  OR (d.reasons[1] = 'interrupted'"
	"   AND d.reasons[2] IS DISTINCT FROM 'interrupted'))"
	" AND NOT EXISTS (SELECT FROM @.sync_runs r"
	"  WHERE r.connection_id = s.connection_id AND r.sync_type = s.sync_type"
	"  AND r.status IN ('pending', 'running'))"
	" ORDER BY s.sync_type",

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

	[SQL_DEAD_RUNS] =
	"SELECT id FROM @.sync_run_states WHERE dead",

	/* A request of the launcher's that could not even become a run. */
	[SQL_REFUSED_RUN] =
	"INSERT INTO @.sync_runs (id, connection_id, sync_type, direction, mode,"
	" status, requested_by, trigger_source, created_at, updated_at,"
	" completed_at, lock_key, error_details)"
	" SELECT gen_random_uuid(), c.connection_id, $2, 'pull', 'auto', 'failed',"
	" $3, 'launcher', clock_timestamp(), clock_timestamp(),"
	" clock_timestamp(), 0, jsonb_strip_nulls(jsonb_build_object("
	" 'reason', 'configuration', 'message', $4, 'detail', $5, 'hint', $6,"
	" 'sqlstate', $7))"
	" FROM @.sync_connections c WHERE c.name = $1 RETURNING id",

	/*
	 * What listeners are told: ids and counts.  Nothing where a listener that
	 * does not listen has filled the queue: then a commit would fail.
	 */
	[SQL_RUN_END] =
	"SELECT json_build_object('run_id', id, 'connection_id', connection_id,"
	" 'sync_type', sync_type, 'status', status,"
	" 'records_processed', records_processed,"
	" 'records_failed', records_failed, 'records_changed', records_changed,"
	" 'records_archived', records_archived)::text"
	" FROM @.sync_runs WHERE id = $1 AND pg_notification_queue_usage() < 0.9",

	/*
	 * What stays, however old it is: the latest completed run and the latest
	 * checkpoint.
	 */
	[SQL_EXPIRE_RUNS] =
	"DELETE FROM @.sync_runs WHERE id IN (SELECT r.id FROM @.sync_runs r"
	" WHERE r.connection_id = $1 AND r.sync_type = $2"
	" AND r.created_at < clock_timestamp() - make_interval(secs => $3)"
	" AND r.status NOT IN ('pending', 'running')"
	" AND r.completed_at < clock_timestamp() - make_interval(secs => $3)"
	" AND r.id IS DISTINCT FROM (SELECT n.id FROM @.sync_runs n"
	"  WHERE n.connection_id = $1 AND n.sync_type = $2 AND n.scope = ''"
	"  AND n.status IN ('success', 'partial')"
	"  ORDER BY n.created_at DESC LIMIT 1)"
	" AND r.id IS DISTINCT FROM (SELECT n.id FROM @.sync_runs n"
	"  WHERE n.connection_id = $1 AND n.sync_type = $2"
	"  AND n.checkpoint IS NOT NULL ORDER BY n.created_at DESC LIMIT 1)"
	" ORDER BY r.created_at LIMIT 1000)",

	[SQL_EXPIRE_ERRORS] =
	"DELETE FROM @.sync_errors WHERE id IN (SELECT id FROM @.sync_errors"
	" WHERE connection_id = $1 AND sync_type = $2"
	" AND resolved_at < clock_timestamp() - make_interval(secs => $3)"
	" LIMIT 1000)",

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
	" SELECT id, checkpoint, mapping, status, created_at FROM @.sync_runs"
	" WHERE connection_id = $1 AND sync_type = $2 AND mode = $3"
	" AND scope = $4 AND (checkpoint IS NOT NULL"
	"  OR status IN ('success', 'partial'))"
	" ORDER BY created_at DESC LIMIT 1) r"
	" WHERE status IN ('failed', 'cancelled') AND mapping = $5"
	" AND checkpoint IS NOT NULL"
	" AND NOT EXISTS (SELECT FROM @.sync_runs o"
	"  WHERE o.connection_id = $1 AND o.sync_type = $2"
	"  AND o.created_at > r.created_at AND o.mapping <> $5)",

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
	" deep_until, last_refused_at, last_sweep_at, sweep_after, sweep_last_id"
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
	" last_refused_at = CASE WHEN $4 THEN NULL ELSE s.last_refused_at END,"
	" last_full_mapping ="
	"  coalesce(excluded.last_full_mapping, s.last_full_mapping),"
	" last_deep_at = coalesce(excluded.last_deep_at, s.last_deep_at)",

	[SQL_RESET_STATE] =
	"UPDATE @.sync_state SET synced_until = NULL, last_full_at = NULL,"
	" last_deep_at = NULL, deep_until = NULL"
	" WHERE connection_id = $1 AND sync_type = $2",

	[SQL_FORGET_FULL_MAPPING] =
	"UPDATE @.sync_state SET last_full_mapping = NULL"
	" WHERE connection_id = $1 AND sync_type = $2",

	[SQL_SAVE_REFUSAL] =
	"UPDATE @.sync_state SET last_refused_at = clock_timestamp()"
	" WHERE connection_id = $1 AND sync_type = $2",

	[SQL_SAVE_SWEEP] =
	"UPDATE @.sync_state SET last_sweep_at = clock_timestamp(),"
	" sweep_after = $3, sweep_last_id = $4"
	" WHERE connection_id = $1 AND sync_type = $2",

	[SQL_PROPERTIES] =
	"SELECT properties FROM @.sync_properties"
	" WHERE connection_id = $1 AND object_type = $2"
	" AND read_at > clock_timestamp() - make_interval(secs => $3)",

	[SQL_SAVE_PROPERTIES] =
	"INSERT INTO @.sync_properties (connection_id, object_type, properties,"
	" read_at) VALUES ($1, $2, $3, clock_timestamp())"
	" ON CONFLICT (connection_id, object_type) DO UPDATE SET"
	" properties = excluded.properties, read_at = excluded.read_at",

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

	/* The outer join has the ids looked up, not the rows walked. */
	[SQL_KNOWN_ROWS] =
	"SELECT i.ord::int4, r.hubspot_updated_at, r.archived, r.merged_into,"
	" r.record_id IS NOT NULL, r.archived_reason"
	" FROM unnest($3::text[]) WITH ORDINALITY AS i(id, ord)"
	" LEFT JOIN @.sync_rows r ON r.connection_id = $1 AND r.sync_type = $2"
	" AND r.record_id = i.id",

	/*
	 * Joined first: ON CONFLICT alone writes even where nothing changed.  A
	 * record that was only found missing brings no time of change.
	 */
	[SQL_SAVE_ROWS] =
	"INSERT INTO @.sync_rows (connection_id, sync_type, record_id,"
	" hubspot_updated_at, archived, archived_at, archived_reason,"
	" merged_into, synced_at)"
	" SELECT $1, $2, i.id,"
	" coalesce(i.updated::timestamptz, r.hubspot_updated_at),"
	" i.archived::boolean, i.archived_at::timestamptz, i.reason, i.survivor,"
	" clock_timestamp()"
	" FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[],"
	" $8::text[]) AS i(id, updated, archived, archived_at, reason, survivor)"
	" LEFT JOIN @.sync_rows r ON r.connection_id = $1 AND r.sync_type = $2"
	" AND r.record_id = i.id"
	" WHERE r.record_id IS NULL"
	" OR r.hubspot_updated_at IS DISTINCT FROM"
	"  coalesce(i.updated::timestamptz, r.hubspot_updated_at)"
	" OR r.archived IS DISTINCT FROM i.archived::boolean"
	" OR r.archived_at IS DISTINCT FROM i.archived_at::timestamptz"
	" OR r.archived_reason IS DISTINCT FROM i.reason"
	" OR r.merged_into IS DISTINCT FROM i.survivor"
	" ON CONFLICT (connection_id, sync_type, record_id) DO UPDATE SET"
	" hubspot_updated_at = excluded.hubspot_updated_at,"
	" archived = excluded.archived, archived_at = excluded.archived_at,"
	" archived_reason = excluded.archived_reason,"
	" merged_into = excluded.merged_into, synced_at = excluded.synced_at",

	[SQL_FORGET_ROWS] =
	"DELETE FROM @.sync_rows WHERE connection_id = $1 AND sync_type = $2"
	" AND record_id = ANY ($3)",

	/*
	 * Of ids with one number of digits text and numbers have one order, so
	 * that the index serves.  What was archived long ago, merged or left out
	 * by a filter cannot come back.
	 */
	[SQL_ROWS_IN_RANGE] =
	"SELECT record_id FROM @.sync_rows"
	" WHERE connection_id = $1 AND sync_type = $2"
	" AND record_id >= $3 AND record_id <= $4"
	" AND octet_length(record_id) = octet_length($3) AND archived = $5"
	SQL_MAY_COME_BACK,

	/* The same for two ids of any length; reads all of the type. */
	[SQL_ROWS_IN_WIDE_RANGE] =
	"SELECT record_id FROM @.sync_rows"
	" WHERE connection_id = $1 AND sync_type = $2"
	" AND (length(record_id), record_id)"
	"  BETWEEN (length($3), $3) AND (length($4), $4)"
	" AND archived = $5"
	SQL_MAY_COME_BACK,

	[SQL_BURIED_ROWS] =
	"SELECT record_id FROM @.sync_rows"
	" WHERE connection_id = $1 AND sync_type = $2 AND record_id = ANY ($3)"
	" AND archived AND archived_reason IN ('gone', 'merged')",

	[SQL_COUNT_ROWS] =
	"SELECT count(*)::float8 FROM @.sync_rows"
	" WHERE connection_id = $1 AND sync_type = $2 AND NOT archived",

	[SQL_NOTE_ABSENCES] =
	"INSERT INTO @.sync_absences AS a (connection_id, sync_type, record_id,"
	" run_id, origin, merged_into)"
	" SELECT DISTINCT ON (i.id) $1, $2, i.id, $3, $4, i.survivor"
	" FROM unnest($5::text[], $6::text[]) AS i(id, survivor)"
	" ON CONFLICT (connection_id, sync_type, record_id) DO UPDATE SET"
	" run_id = excluded.run_id, verdict = NULL,"
	" origin = CASE WHEN a.origin = 'merge' THEN a.origin"
	"  ELSE excluded.origin END,"
	" merged_into = coalesce(excluded.merged_into, a.merged_into)",

	[SQL_HAS_ABSENCES] =
	"SELECT EXISTS (SELECT FROM @.sync_absences"
	" WHERE connection_id = $1 AND sync_type = $2)",

	[SQL_DROP_ABSENCES] =
	"DELETE FROM @.sync_absences WHERE connection_id = $1"
	" AND sync_type = $2 AND record_id = ANY ($3)",

	[SQL_ARRIVED_ABSENCES] =
	"DELETE FROM @.sync_absences WHERE connection_id = $1"
	" AND sync_type = $2 AND record_id = ANY ($3) AND origin <> 'merge'",

	[SQL_CLEAR_ABSENCES] =
	"DELETE FROM @.sync_absences WHERE connection_id = $1"
	" AND sync_type = $2 AND origin = 'list' AND NOT accepted",

	/* $3: the run is a full walk, whose own findings count too. */
	[SQL_UNREAD_ABSENCES] =
	"SELECT record_id, origin, merged_into FROM @.sync_absences"
	" WHERE connection_id = $1 AND sync_type = $2 AND verdict IS NULL"
	" AND ($3 OR origin <> 'list' OR accepted) AND record_id > $4"
	" ORDER BY record_id LIMIT $5",

	/* Looked up by array: an array joined might be looped over. */
	[SQL_JUDGE_ABSENCES] =
	"UPDATE @.sync_absences SET run_id = $3,"
	" verdict = $5[array_position($4, record_id)],"
	" merged_into = $6[array_position($4, record_id)]"
	" WHERE connection_id = $1 AND sync_type = $2 AND record_id = ANY ($4)",

	[SQL_COUNT_GONE] =
	"SELECT count(*)::float8 FROM @.sync_absences WHERE connection_id = $1"
	" AND sync_type = $2 AND verdict = 'gone' AND NOT accepted"
	" AND origin = CASE WHEN $3 THEN 'list' ELSE 'archive' END",

	/* $4, $5: what was not accepted of lists is too much to be believed. */
	[SQL_JUDGED_ABSENCES] =
	"SELECT record_id, verdict, merged_into FROM @.sync_absences"
	" WHERE connection_id = $1 AND sync_type = $2 AND verdict IS NOT NULL"
	" AND ($3 OR origin <> 'list' OR accepted)"
	" AND (verdict <> 'gone' OR accepted OR CASE origin WHEN 'archive'"
	"  THEN NOT $5 ELSE NOT $4 END)"
	" ORDER BY record_id LIMIT $6",

	[SQL_REFUSE_ABSENCES] =
	"UPDATE @.sync_absences SET run_id = $3 WHERE connection_id = $1"
	" AND sync_type = $2 AND verdict = 'gone' AND NOT accepted"
	" AND origin = 'list' AND run_id <> $3",

	[SQL_ACCEPT_ABSENCES] =
	"UPDATE @.sync_absences SET accepted = true, verdict = NULL"
	" WHERE run_id = $1 AND verdict = 'gone' AND origin = 'list'"
	" AND NOT accepted",

	/*
	 * The contacts whose owner is not the one noted last.  What a search
	 * ($5) brings that is older than that note says nothing new.  The order
	 * is the primary key's, lest another index be walked for it.
	 */
	[SQL_OWNER_CHANGES] =
	"SELECT i.number::int4 - 1, greatest(i.changed, coalesce(h.valid_to,"
	" h.valid_from + interval '1 microsecond')),"
	" h.valid_from IS NOT NULL, h.valid_from IS NOT NULL"
	"  AND h.valid_to IS NULL"
	" FROM (SELECT u.number, u.id, u.owner,"
	"  coalesce(u.changed, clock_timestamp()) AS changed"
	"  FROM unnest($2::text[], $3::text[], $4::timestamptz[])"
	"  WITH ORDINALITY AS u(id, owner, changed, number)) i"
	" LEFT JOIN LATERAL (SELECT o.owner_id, o.valid_from, o.valid_to"
	"  FROM @.contact_owner_history o"
	"  WHERE o.connection_id = $1 AND o.hubspot_contact_id = i.id"
	"  ORDER BY o.hubspot_contact_id DESC, o.valid_from DESC LIMIT 1) h"
	" ON true"
	" WHERE CASE WHEN h.valid_to IS NULL THEN h.owner_id END"
	"  IS DISTINCT FROM i.owner"
	" AND (NOT $5"
	"  OR (i.changed >= coalesce(h.valid_to, h.valid_from)) IS NOT FALSE)",

	[SQL_CLOSE_OWNERS] =
	"UPDATE @.contact_owner_history SET valid_to = greatest("
	" $3[array_position($2, hubspot_contact_id)],"
	" valid_from + interval '1 microsecond')"
	" WHERE connection_id = $1 AND hubspot_contact_id = ANY ($2)"
	" AND valid_to IS NULL",

	[SQL_OPEN_OWNERS] =
	"INSERT INTO @.contact_owner_history (connection_id, hubspot_contact_id,"
	" owner_id, valid_from)"
	" SELECT $1, i.id, i.owner, i.at"
	" FROM unnest($2::text[], $3::timestamptz[], $4::text[]) AS i(id, at, owner)"
	" WHERE i.owner IS NOT NULL",

	[SQL_NOTE_OWNER_READS] =
	"INSERT INTO @.sync_owner_reads AS o (connection_id, hubspot_contact_id,"
	" urgent) SELECT $1, i.id, $3 FROM unnest($2::text[]) AS i(id)"
	" ON CONFLICT (connection_id, hubspot_contact_id)"
	" DO UPDATE SET urgent = o.urgent OR excluded.urgent, attempts = 0",

	[SQL_OWNER_READS] =
	"SELECT hubspot_contact_id FROM @.sync_owner_reads"
	" WHERE connection_id = $1 AND hubspot_contact_id > $2 AND urgent = $3"
	" ORDER BY hubspot_contact_id LIMIT $4",

	[SQL_COUNT_OWNER_READS] =
	"UPDATE @.sync_owner_reads SET attempts = attempts + 1"
	" WHERE connection_id = $1 AND hubspot_contact_id = ANY ($2)",

	[SQL_GIVE_UP_OWNER_READS] =
	"DELETE FROM @.sync_owner_reads WHERE connection_id = $1"
	" AND hubspot_contact_id = ANY ($2) AND attempts >= 5",

	[SQL_DROP_OWNER_READS] =
	"DELETE FROM @.sync_owner_reads WHERE connection_id = $1"
	" AND hubspot_contact_id = ANY ($2)",

	/* $2, $3: contacts and the beginning of what is known of them exactly. */
	[SQL_CUT_OWNERS] =
	"DELETE FROM @.contact_owner_history"
	" WHERE connection_id = $1 AND hubspot_contact_id = ANY ($2)"
	" AND valid_from >= $3[array_position($2, hubspot_contact_id)]",

	[SQL_TRIM_OWNERS] =
	"UPDATE @.contact_owner_history SET valid_to ="
	" $3[array_position($2, hubspot_contact_id)]"
	" WHERE connection_id = $1 AND hubspot_contact_id = ANY ($2)"
	" AND (valid_to IS NULL"
	"  OR valid_to > $3[array_position($2, hubspot_contact_id)])",

	[SQL_ADD_OWNERS] =
	"INSERT INTO @.contact_owner_history (connection_id, hubspot_contact_id,"
	" owner_id, valid_from, valid_to)"
	" SELECT $1, i.id, i.owner, i.since, i.until"
	" FROM unnest($2::text[], $5::text[], $3::timestamptz[], $4::timestamptz[])"
	" AS i(id, owner, since, until)",
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
 * load; the planner would read the whole table for every page.  What it is
 * left with may look expensive enough for compilation, which it never is.
 */
void
hs_catalog_plan_by_index(void)
{
	static const char *const methods[] = {
		"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
		"enable_mergejoin", "enable_material", "jit"
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

/* At least one instant; infinite ones stand for none. */
static void
push_times(Call *call, const TimestampTz *values, int n)
{
	Datum	   *datums = palloc(sizeof(Datum) * n);
	bool	   *nulls = palloc(sizeof(bool) * n);
	int			dims[1] = {n};
	int			lower[1] = {1};

	for (int i = 0; i < n; i++)
	{
		nulls[i] = TIMESTAMP_NOT_FINITE(values[i]);
		datums[i] = TimestampTzGetDatum(values[i]);
	}
	push(call, TIMESTAMPTZARRAYOID,
		 PointerGetDatum(construct_md_array(datums, nulls, 1, dims, lower,
											TIMESTAMPTZOID,
											sizeof(TimestampTz),
											FLOAT8PASSBYVAL, TYPALIGN_DOUBLE)),
		 false);
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

static int64
int64_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
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

/* The first column of all rows as a list of char *; ends the statement. */
static List *
run_for_list(Call *call)
{
	List	   *list = NIL;
	uint64		rows = run_call(call);
	MemoryContext old = MemoryContextSwitchTo(call->caller_context);

	for (uint64 i = 0; i < rows; i++)
		list = lappend(list, text_column(call, i, 1));
	MemoryContextSwitchTo(old);
	end_call(call);
	return list;
}

/* A count that a statement returns as float8; ends the statement. */
static double
run_for_count(Call *call)
{
	double		count;

	run_call(call);
	count = float_column(0, 1);
	end_call(call);
	return count;
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

/* Adds those who said where students' progress is. */
static void
read_source_authors(HsSyncType *type)
{
	Call		call;
	uint64		rows;

	begin_call(&call, SQL_PROGRESS_SOURCES);
	rows = run_call(&call);
	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(call.caller_context);
		char	   *who = text_column(&call, i, 8);

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
		type->all_properties = bool_column(0, 14);
		type->filters = text_column(&call, 0, 15);
		type->full_strategy = text_column(&call, 0, 16);
		MemoryContextSwitchTo(old);
	}
	end_call(&call);
	if (type != NULL)
		read_fields(type);
	if (type != NULL && strcmp(type->source, "progress") == 0)
		read_source_authors(type);
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
	if (run_and_end(&call) > 0)
		hs_catalog_announce_end(id);
}

/*
 * Closes the entries of all runs whose process is gone and returns how many
 * there were.
 */
int
hs_catalog_close_dead_runs(void)
{
	Call		call;
	List	   *ids = NIL;
	uint64		rows;
	ListCell   *lc;

	begin_call(&call, SQL_DEAD_RUNS);
	rows = run_call(&call);
	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(call.caller_context);
		pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

		*id = uuid_column(i, 1);
		ids = lappend(ids, id);
		MemoryContextSwitchTo(old);
	}
	end_call(&call);
	foreach(lc, ids)
		hs_catalog_close_dead_run(lfirst(lc));
	return list_length(ids);
}

/*
 * Adds the entry of a request that could not become a run, so that somebody
 * sees it.
 */
void
hs_catalog_refused_run(const char *connection, const char *sync_type,
					   const char *requested_by, const ErrorData *error)
{
	Call		call;
	pg_uuid_t	id;
	bool		added;

	begin_call(&call, SQL_REFUSED_RUN);
	push_text(&call, connection);
	push_text(&call, sync_type);
	push_text(&call, requested_by);
	push_text(&call, error->message);
	push_text(&call, error->detail);
	push_text(&call, error->hint);
	push_text(&call, unpack_sql_state(error->sqlerrcode));
	added = run_call(&call) > 0;
	if (added)
		id = uuid_column(0, 1);
	end_call(&call);
	if (added)
		hs_catalog_announce_end(&id);
}

/*
 * Tells the listeners of channel hubspot_sync that a run has ended, once the
 * transaction commits.
 */
void
hs_catalog_announce_end(const pg_uuid_t *id)
{
	Call		call;
	char	   *payload;

	begin_call(&call, SQL_RUN_END);
	push_uuid(&call, id);
	payload = run_for_text(&call);
	if (payload != NULL)
		Async_Notify(HS_EXTENSION_NAME, payload);
}

/*
 * Deletes what is older than the log's retention: ended runs of a type and
 * its closed errors, a bounded number of each.
 */
void
hs_catalog_expire(const pg_uuid_t *connection_id, const char *sync_type,
				  double retention_s)
{
	static const Statement expiring[] = {SQL_EXPIRE_RUNS, SQL_EXPIRE_ERRORS};

	for (size_t i = 0; i < lengthof(expiring); i++)
	{
		Call		call;

		begin_call(&call, expiring[i]);
		push_uuid(&call, connection_id);
		push_text(&call, sync_type);
		push(&call, FLOAT8OID, Float8GetDatum(retention_s), false);
		run_and_end(&call);
	}
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
	if (run_and_end(&call) == 0)
		return false;
	hs_catalog_announce_end(id);
	return true;
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
 * left behind.  Returns false if there is nothing to continue, or a run with
 * another mapping came after it, which may have stored some of its rows again.
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
	if (run_and_end(&call) > 0)
		hs_catalog_announce_end(id);
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
		state->is_known = true;
		state->synced_until = time_column(0, 1);
		state->last_full_at = time_column(0, 2);
		state->last_full_mapping = text_column(&call, 0, 3);
		state->last_deep_at = time_column(0, 4);
		state->deep_until = time_column(0, 5);
		state->last_refused_at = time_column(0, 6);
		state->last_sweep_at = time_column(0, 7);
		state->sweep_after = text_column(&call, 0, 8);
		state->sweep_last_id = int64_column(0, 9);
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

	begin_call(&call, SQL_OPEN_ERRORS);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_int(&call, max_attempts);
	push_int(&call, limit);
	return run_for_list(&call);
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

		row->found = bool_column(i, 5);
		row->reason = text_column(&call, i, 6);
		row->updated_at = time_column(i, 2);
		row->archived = bool_column(i, 3);
		row->merged_into = text_column(&call, i, 4);
	}
	end_call(&call);
}

/*
 * Saves what is known of records, writing only rows that differ.
 */
void
hs_catalog_save_rows(const pg_uuid_t *connection_id, const char *sync_type,
					 const HsRowNotes *notes)
{
	Call		call;

	begin_call(&call, SQL_SAVE_ROWS);
	push_uuid(&call, connection_id);
	push_text(&call, sync_type);
	push_texts(&call, notes->ids, notes->n);
	push_texts(&call, notes->updated, notes->n);
	push_texts(&call, notes->archived, notes->n);
	push_texts(&call, notes->archived_at, notes->n);
	push_texts(&call, notes->reason, notes->n);
	push_texts(&call, notes->merged_into, notes->n);
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

/* ------------------------------------------------------------------------
 * Absences: rows whose record was not where it should have been
 * ------------------------------------------------------------------------
 */

/* Begins a statement whose first arguments are a connection and a type. */
static void
begin_type_call(Call *call, Statement statement,
				const pg_uuid_t *connection_id, const char *sync_type)
{
	begin_call(call, statement);
	push_uuid(call, connection_id);
	push_text(call, sync_type);
}

/*
 * The ids (char *) in sync_rows from `low` to `high`: of live records, or of
 * archived ones that may come back.
 */
List *
hs_catalog_rows_in_range(const pg_uuid_t *connection_id,
						 const char *sync_type, const char *low,
						 const char *high, bool archived)
{
	Call		call;

	begin_type_call(&call, strlen(low) == strlen(high) ? SQL_ROWS_IN_RANGE
					: SQL_ROWS_IN_WIDE_RANGE,
					connection_id, sync_type);
	push_text(&call, low);
	push_text(&call, high);
	push_bool(&call, archived);
	return run_for_list(&call);
}

/*
 * Those of the records (char *) that sync_rows says are gone or merged away.
 */
List *
hs_catalog_buried_rows(const pg_uuid_t *connection_id, const char *sync_type,
					   const char *const *ids, int n)
{
	Call		call;

	begin_type_call(&call, SQL_BURIED_ROWS, connection_id, sync_type);
	push_texts(&call, ids, n);
	return run_for_list(&call);
}

/*
 * How many live records sync_rows knows.
 */
double
hs_catalog_count_rows(const pg_uuid_t *connection_id, const char *sync_type)
{
	Call		call;

	begin_type_call(&call, SQL_COUNT_ROWS, connection_id, sync_type);
	return run_for_count(&call);
}

/*
 * Notes records to be read one by one, and, parallel to them, which record
 * says that they were merged into it (NULL: none).
 */
void
hs_catalog_note_absences(const pg_uuid_t *connection_id,
						 const char *sync_type, const pg_uuid_t *run_id,
						 const char *origin, const char *const *ids,
						 const char *const *survivors, int n)
{
	Call		call;

	if (n == 0)
		return;
	begin_type_call(&call, SQL_NOTE_ABSENCES, connection_id, sync_type);
	push_uuid(&call, run_id);
	push_text(&call, origin);
	push_texts(&call, ids, n);
	push_texts(&call, survivors, n);
	run_and_end(&call);
}

/*
 * Whether records of the type are noted.
 */
bool
hs_catalog_has_absences(const pg_uuid_t *connection_id, const char *sync_type)
{
	Call		call;
	bool		result;

	begin_type_call(&call, SQL_HAS_ABSENCES, connection_id, sync_type);
	run_call(&call);
	result = bool_column(0, 1);
	end_call(&call);
	return result;
}

/*
 * Forgets records that were noted: they have turned up, or are settled.
 */
void
hs_catalog_drop_absences(const pg_uuid_t *connection_id,
						 const char *sync_type, const char *const *ids, int n)
{
	run_on_records(SQL_DROP_ABSENCES, connection_id, sync_type, ids, n);
}

/*
 * Forgets noted records that have turned up where they should be; what others
 * say about merges is still to be looked at.
 */
void
hs_catalog_arrived_absences(const pg_uuid_t *connection_id,
							const char *sync_type, const char *const *ids,
							int n)
{
	run_on_records(SQL_ARRIVED_ABSENCES, connection_id, sync_type, ids, n);
}

/*
 * Forgets what earlier walks over the list have missed and nobody accepted.
 */
void
hs_catalog_clear_absences(const pg_uuid_t *connection_id,
						  const char *sync_type)
{
	Call		call;

	begin_type_call(&call, SQL_CLEAR_ABSENCES, connection_id, sync_type);
	run_and_end(&call);
}

/* Reads id, origin or verdict, and survivor; ends the statement. */
static List *
run_for_absences(Call *call)
{
	List	   *list = NIL;
	uint64		rows = run_call(call);
	MemoryContext old = MemoryContextSwitchTo(call->caller_context);

	for (uint64 i = 0; i < rows; i++)
	{
		HsAbsence  *absence = palloc(sizeof(HsAbsence));

		absence->record_id = text_column(call, i, 1);
		absence->kind = text_column(call, i, 2);
		absence->merged_into = text_column(call, i, 3);
		list = lappend(list, absence);
	}
	MemoryContextSwitchTo(old);
	end_call(call);
	return list;
}

/*
 * At most `limit` of the noted records that are still to be read, as
 * HsAbsence * in the order of their ids, which come after `after`; `full`:
 * those that the list did not have, too.
 */
List *
hs_catalog_unread_absences(const pg_uuid_t *connection_id,
						   const char *sync_type, bool full, const char *after,
						   int limit)
{
	Call		call;

	begin_type_call(&call, SQL_UNREAD_ABSENCES, connection_id, sync_type);
	push_bool(&call, full);
	push_text(&call, after);
	push_int(&call, limit);
	return run_for_absences(&call);
}

/*
 * Writes down what reading noted records has said.  The arrays are parallel.
 */
void
hs_catalog_judge_absences(const pg_uuid_t *connection_id,
						  const char *sync_type, const pg_uuid_t *run_id,
						  const char *const *ids, const char *const *verdicts,
						  const char *const *survivors, int n)
{
	Call		call;

	if (n == 0)
		return;
	begin_type_call(&call, SQL_JUDGE_ABSENCES, connection_id, sync_type);
	push_uuid(&call, run_id);
	push_texts(&call, ids, n);
	push_texts(&call, verdicts, n);
	push_texts(&call, survivors, n);
	run_and_end(&call);
}

/*
 * How many records are gone without anybody having accepted it: of those that
 * the list of live ones has missed, or that of archived ones.
 */
double
hs_catalog_count_gone(const pg_uuid_t *connection_id, const char *sync_type,
					  bool live)
{
	Call		call;

	begin_type_call(&call, SQL_COUNT_GONE, connection_id, sync_type);
	push_bool(&call, live);
	return run_for_count(&call);
}

/*
 * At most `limit` of the records that may be marked, as HsAbsence *.
 * `refused`: not those that are gone without anybody having accepted it;
 * `bin_refused`: nor archived ones that are.
 */
List *
hs_catalog_judged_absences(const pg_uuid_t *connection_id,
						   const char *sync_type, bool full, bool refused,
						   bool bin_refused, int limit)
{
	Call		call;

	begin_type_call(&call, SQL_JUDGED_ABSENCES, connection_id, sync_type);
	push_bool(&call, full);
	push_bool(&call, refused);
	push_bool(&call, bin_refused);
	push_int(&call, limit);
	return run_for_absences(&call);
}

/*
 * Leaves what a run refuses to believe under its name.
 */
void
hs_catalog_refuse_absences(const pg_uuid_t *connection_id,
						   const char *sync_type, const pg_uuid_t *run_id)
{
	Call		call;

	begin_type_call(&call, SQL_REFUSE_ABSENCES, connection_id, sync_type);
	push_uuid(&call, run_id);
	run_and_end(&call);
}

/*
 * Accepts what a run refused to believe; returns how many records that are.
 */
int
hs_catalog_accept_absences(const pg_uuid_t *run_id)
{
	Call		call;

	begin_call(&call, SQL_ACCEPT_ABSENCES);
	push_uuid(&call, run_id);
	return (int) run_and_end(&call);
}

/* ------------------------------------------------------------------------
 * Students' progress
 * ------------------------------------------------------------------------
 */

/*
 * All rows of progress_sources, as HsSourceRow *.
 */
List *
hs_catalog_progress_sources(void)
{
	List	   *list = NIL;
	Call		call;
	uint64		rows;

	begin_call(&call, SQL_PROGRESS_SOURCES);
	rows = run_call(&call);
	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(call.caller_context);
		HsSourceRow *row = palloc0(sizeof(HsSourceRow));

		row->source = text_column(&call, i, 1);
		row->level = text_column(&call, i, 2);
		row->schema = text_column(&call, i, 3);
		row->table = text_column(&call, i, 4);
		row->columns = text_column(&call, i, 5);
		row->total_units = int_column(i, 6);
		row->enabled = bool_column(i, 7);
		list = lappend(list, row);
		MemoryContextSwitchTo(old);
	}
	end_call(&call);
	return list;
}

/*
 * The names of a schema's tables that look like those of levels and belong to
 * a role, as char *.
 */
List *
hs_catalog_level_tables(Oid schema, Oid owner)
{
	Call		call;

	begin_call(&call, SQL_LEVEL_TABLES);
	push(&call, OIDOID, ObjectIdGetDatum(schema), false);
	push(&call, OIDOID, ObjectIdGetDatum(owner), false);
	return run_for_list(&call);
}

/* The rows of a statement as HsProgressState *; ends it. */
static List *
run_for_states(Call *call)
{
	List	   *list = NIL;
	uint64		rows = run_call(call);

	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(call->caller_context);
		HsProgressState *state = palloc0(sizeof(HsProgressState));

		state->user_id = text_column(call, i, 1);
		state->email = text_column(call, i, 2);
		state->contact_id = text_column(call, i, 3);
		state->fingerprint = int64_column(i, 4);
		state->properties = text_column(call, i, 5);
		list = lappend(list, state);
		MemoryContextSwitchTo(old);
	}
	end_call(call);
	return list;
}

/*
 * What was accepted of students, as HsProgressState *, in any order.
 */
List *
hs_catalog_progress_states(const pg_uuid_t *connection_id,
						   const char *const *users, int n,
						   bool with_properties)
{
	Call		call;

	begin_call(&call, SQL_PROGRESS_STATES);
	push_uuid(&call, connection_id);
	push_texts(&call, users, n);
	push_bool(&call, with_properties);
	return run_for_states(&call);
}

/*
 * The students whose values these contacts have, as HsProgressState *.
 */
List *
hs_catalog_contact_holders(const pg_uuid_t *connection_id,
						   const char *const *contacts, int n)
{
	Call		call;

	begin_call(&call, SQL_CONTACT_HOLDERS);
	push_uuid(&call, connection_id);
	push_texts(&call, contacts, n);
	return run_for_states(&call);
}

/*
 * Makes room for so many students.
 */
void
hs_acceptances_init(HsAcceptances *accepted, int most)
{
	Size		size = sizeof(char *) * Max(most, 1);

	accepted->users = palloc(size);
	accepted->emails = palloc(size);
	accepted->contacts = palloc(size);
	accepted->properties = palloc(size);
	accepted->fingerprints = palloc(size);
	accepted->n = 0;
}

/*
 * Notes what is about to be sent, before HubSpot may accept it without our
 * learning of it.  `kept` is parallel: what else the contacts have, or NULL.
 * What students' former contacts have is left over for whoever gets these.
 */
void
hs_catalog_announce_progress(const pg_uuid_t *connection_id,
							 const HsAcceptances *sent,
							 const char *const *kept)
{
	Call		call;

	begin_call(&call, SQL_KEEP_LEFTOVERS);
	push_uuid(&call, connection_id);
	push_texts(&call, sent->users, sent->n);
	push_texts(&call, sent->contacts, sent->n);
	run_and_end(&call);
	begin_call(&call, SQL_ANNOUNCE_PROGRESS);
	push_uuid(&call, connection_id);
	push_texts(&call, sent->users, sent->n);
	push_texts(&call, sent->emails, sent->n);
	push_texts(&call, sent->contacts, sent->n);
	push_texts(&call, sent->properties, sent->n);
	push_texts(&call, kept, sent->n);
	run_and_end(&call);
}

/*
 * What these contacts have of students who have others now, as
 * HsProgressState * without a student.
 */
List *
hs_catalog_leftovers(const pg_uuid_t *connection_id,
					 const char *const *contacts, int n)
{
	Call		call;

	begin_call(&call, SQL_LEFTOVERS);
	push_uuid(&call, connection_id);
	push_texts(&call, contacts, n);
	return run_for_states(&call);
}

/*
 * Forgets that, since it is going to be cleared.
 */
void
hs_catalog_drop_leftovers(const pg_uuid_t *connection_id,
						  const char *const *contacts, int n)
{
	Call		call;

	begin_call(&call, SQL_DROP_LEFTOVERS);
	push_uuid(&call, connection_id);
	push_texts(&call, contacts, n);
	run_and_end(&call);
}

/*
 * Notes what was accepted.
 */
void
hs_catalog_save_progress(const pg_uuid_t *connection_id,
						 const HsAcceptances *accepted)
{
	Call		call;

	if (accepted->n == 0)
		return;
	begin_call(&call, SQL_SAVE_PROGRESS);
	push_uuid(&call, connection_id);
	push_texts(&call, accepted->users, accepted->n);
	push_texts(&call, accepted->emails, accepted->n);
	push_texts(&call, accepted->contacts, accepted->n);
	push_texts(&call, accepted->properties, accepted->n);
	push_texts(&call, accepted->fingerprints, accepted->n);
	run_and_end(&call);
}

/*
 * Forgets what was accepted of students.
 */
void
hs_catalog_drop_progress(const pg_uuid_t *connection_id,
						 const char *const *users, int n)
{
	Call		call;

	begin_call(&call, SQL_DROP_PROGRESS);
	push_uuid(&call, connection_id);
	push_texts(&call, users, n);
	run_and_end(&call);
}

/*
 * Forgets that values of these properties were accepted, so that the students
 * are sent again; returns how many that are.
 */
int
hs_catalog_forget_progress(const pg_uuid_t *connection_id,
						   const char *const *properties, int n)
{
	Call		call;

	begin_call(&call, SQL_FORGET_PROGRESS);
	push_uuid(&call, connection_id);
	push_texts(&call, properties, n);
	return (int) run_and_end(&call);
}

/*
 * Looks e-mail addresses, in lower case, up among the synchronised contacts.
 * Fills the array parallel to them; NULL where there is not exactly one.
 */
void
hs_catalog_contacts_by_email(const pg_uuid_t *connection_id,
							 const char *const *emails, int n,
							 const char **contacts)
{
	Call		call;
	uint64		rows;

	memset(contacts, 0, sizeof(char *) * n);
	begin_call(&call, SQL_CONTACTS_BY_EMAIL);
	push_uuid(&call, connection_id);
	push_texts(&call, emails, n);
	rows = run_call(&call);
	for (uint64 i = 0; i < rows; i++)
	{
		char	   *email = text_column(&call, i, 1);

		for (int j = 0; j < n && int64_column(i, 3) == 1; j++)
		{
			if (strcmp(emails[j], email) == 0)
				contacts[j] = text_column(&call, i, 2);
		}
	}
	end_call(&call);
}

/*
 * The properties that were looked at, as HsKnownProperty *; fresh if that was
 * not longer ago.
 */
List *
hs_catalog_progress_properties(const pg_uuid_t *connection_id, double max_age_s)
{
	List	   *list = NIL;
	Call		call;
	uint64		rows;

	begin_call(&call, SQL_PROGRESS_PROPERTIES);
	push_uuid(&call, connection_id);
	push(&call, FLOAT8OID, Float8GetDatum(max_age_s), false);
	rows = run_call(&call);
	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(call.caller_context);
		HsKnownProperty *property = palloc(sizeof(HsKnownProperty));

		property->name = text_column(&call, i, 1);
		property->problem = text_column(&call, i, 2);
		property->fresh = bool_column(i, 3);
		list = lappend(list, property);
		MemoryContextSwitchTo(old);
	}
	end_call(&call);
	return list;
}

/*
 * Notes which properties there are, and what is wrong with them.
 */
void
hs_catalog_save_progress_properties(const pg_uuid_t *connection_id,
									const char *const *names,
									const char *const *problems, int n)
{
	Call		call;

	begin_call(&call, SQL_DROP_PROGRESS_PROPERTIES);
	push_uuid(&call, connection_id);
	push_texts(&call, names, n);
	run_and_end(&call);
	begin_call(&call, SQL_SAVE_PROGRESS_PROPERTIES);
	push_uuid(&call, connection_id);
	push_texts(&call, names, n);
	push_texts(&call, problems, n);
	run_and_end(&call);
}

/*
 * Whether somebody has accepted that many students lose their values, and no
 * run has carried it out since.
 */
bool
hs_catalog_emptiness_accepted(const pg_uuid_t *connection_id,
							  const char *sync_type)
{
	Call		call;

	begin_type_call(&call, SQL_EMPTINESS_ACCEPTED, connection_id, sync_type);
	return run_for_count(&call) > 0;
}

/*
 * Accepts it; returns how many students a run found to lose their values, 0 if
 * it is no such run.
 */
int
hs_catalog_accept_emptiness(const pg_uuid_t *run_id)
{
	Call		call;
	int			emptied = 0;

	begin_call(&call, SQL_ACCEPT_EMPTINESS);
	push_uuid(&call, run_id);
	if (run_call(&call) > 0)
		emptied = int_column(0, 1);
	end_call(&call);
	return emptied;
}

/*
 * Makes what was found of the properties count as old.
 */
void
hs_catalog_doubt_progress_properties(const pg_uuid_t *connection_id)
{
	Call		call;

	begin_call(&call, SQL_DOUBT_PROGRESS_PROPERTIES);
	push_uuid(&call, connection_id);
	run_and_end(&call);
}

/*
 * Closes the errors of a type, or with `category` of one category, that a run,
 * which has looked at everything, has not met.
 */
void
hs_catalog_resolve_unmet(const pg_uuid_t *connection_id, const char *sync_type,
						 const char *category, const pg_uuid_t *run_id)
{
	Call		call;

	begin_type_call(&call, SQL_RESOLVE_UNMET, connection_id, sync_type);
	push_uuid(&call, run_id);
	push_text(&call, category);
	run_and_end(&call);
}

/* ------------------------------------------------------------------------
 * The history of contacts' owners
 * ------------------------------------------------------------------------
 */

/*
 * Compares contacts with their history: returns those whose owner is not the
 * one noted last, as HsOwnerChange *.  The arrays are parallel; an owner may
 * be NULL; `changed` is infinite where it is not known.  `provisional`: a search says
 * so, whose index may lag behind.
 */
List *
hs_catalog_owner_changes(const pg_uuid_t *connection_id,
						 const char *const *ids, const char *const *owners,
						 const TimestampTz *changed, int n, bool provisional)
{
	Call		call;
	List	   *changes = NIL;
	uint64		rows;
	MemoryContext old;

	begin_call(&call, SQL_OWNER_CHANGES);
	push_uuid(&call, connection_id);
	push_texts(&call, ids, n);
	push_texts(&call, owners, n);
	push_times(&call, changed, n);
	push_bool(&call, provisional);
	rows = run_call(&call);
	old = MemoryContextSwitchTo(call.caller_context);
	for (uint64 i = 0; i < rows; i++)
	{
		HsOwnerChange *change = palloc(sizeof(HsOwnerChange));

		change->index = int_column(i, 1);
		change->since = time_column(i, 2);
		change->known = bool_column(i, 3);
		change->open = bool_column(i, 4);
		changes = lappend(changes, change);
	}
	MemoryContextSwitchTo(old);
	end_call(&call);
	return changes;
}

/*
 * Runs one of the history's statements with contacts, instants and owners in
 * parallel arrays, as far as they are not NULL.
 */
static void
run_on_owners(Statement statement, const pg_uuid_t *connection_id,
			  const char *const *ids, const TimestampTz *since,
			  const TimestampTz *until, const char *const *owners, int n)
{
	Call		call;

	if (n == 0)
		return;
	begin_call(&call, statement);
	push_uuid(&call, connection_id);
	push_texts(&call, ids, n);
	if (since != NULL)
		push_times(&call, since, n);
	if (until != NULL)
		push_times(&call, until, n);
	if (owners != NULL)
		push_texts(&call, owners, n);
	run_and_end(&call);
}

/*
 * Ends the ownership that is open of each contact, at an instant.
 */
void
hs_catalog_close_owners(const pg_uuid_t *connection_id,
						const char *const *ids, const TimestampTz *instants,
						int n)
{
	run_on_owners(SQL_CLOSE_OWNERS, connection_id, ids, instants, NULL, NULL,
				  n);
}

/*
 * Begins ownerships; contacts with a NULL owner are left out.
 */
void
hs_catalog_open_owners(const pg_uuid_t *connection_id,
					   const char *const *ids, const TimestampTz *instants,
					   const char *const *owners, int n)
{
	run_on_owners(SQL_OPEN_OWNERS, connection_id, ids, instants, NULL, owners,
				  n);
}

/*
 * Notes contacts whose history of owners is to be read from HubSpot; `urgent`
 * ones are read by the same run.
 */
void
hs_catalog_note_owner_reads(const pg_uuid_t *connection_id, bool urgent,
							const char *const *ids, int n)
{
	Call		call;

	if (n == 0)
		return;
	begin_call(&call, SQL_NOTE_OWNER_READS);
	push_uuid(&call, connection_id);
	push_texts(&call, ids, n);
	push_bool(&call, urgent);
	run_and_end(&call);
}

/*
 * At most `limit` of these contacts' ids (char *), those after `after`.
 */
List *
hs_catalog_owner_reads(const pg_uuid_t *connection_id, const char *after,
					   bool urgent, int limit)
{
	Call		call;

	begin_call(&call, SQL_OWNER_READS);
	push_uuid(&call, connection_id);
	push_text(&call, after);
	push_bool(&call, urgent);
	push_int(&call, limit);
	return run_for_list(&call);
}

/*
 * Counts an attempt that HubSpot did not answer; after some the contacts are
 * forgotten.
 */
void
hs_catalog_count_owner_reads(const pg_uuid_t *connection_id,
							 const char *const *ids, int n)
{
	run_on_owners(SQL_COUNT_OWNER_READS, connection_id, ids, NULL, NULL, NULL,
				  n);
	run_on_owners(SQL_GIVE_UP_OWNER_READS, connection_id, ids, NULL, NULL,
				  NULL, n);
}

/*
 * Forgets contacts whose history was read.
 */
void
hs_catalog_drop_owner_reads(const pg_uuid_t *connection_id,
							const char *const *ids, int n)
{
	run_on_owners(SQL_DROP_OWNER_READS, connection_id, ids, NULL, NULL, NULL,
				  n);
}

/*
 * Forgets the contacts' history from an instant on.
 */
void
hs_catalog_cut_owners(const pg_uuid_t *connection_id, const char *const *ids,
					  const TimestampTz *instants, int n)
{
	run_on_owners(SQL_CUT_OWNERS, connection_id, ids, instants, NULL, NULL, n);
	run_on_owners(SQL_TRIM_OWNERS, connection_id, ids, instants, NULL, NULL,
				  n);
}

/*
 * Adds ownerships of known length; an open end is infinite.
 */
void
hs_catalog_add_owners(const pg_uuid_t *connection_id, const char *const *ids,
					  const char *const *owners, const TimestampTz *since,
					  const TimestampTz *until, int n)
{
	run_on_owners(SQL_ADD_OWNERS, connection_id, ids, since, until, owners, n);
}

/* ------------------------------------------------------------------------
 * More of what completed runs have reached
 * ------------------------------------------------------------------------
 */

/*
 * Notes that the rows are no longer all of the mapping that the last full run
 * had.
 */
void
hs_catalog_forget_full_mapping(const pg_uuid_t *connection_id,
							   const char *sync_type)
{
	Call		call;

	begin_type_call(&call, SQL_FORGET_FULL_MAPPING, connection_id, sync_type);
	run_and_end(&call);
}

/*
 * Notes that a full run did not believe what it found absent.
 */
void
hs_catalog_save_refusal(const pg_uuid_t *connection_id, const char *sync_type)
{
	Call		call;

	begin_type_call(&call, SQL_SAVE_REFUSAL, connection_id, sync_type);
	run_and_end(&call);
}

/*
 * Notes how far the list of archived records was read; `after` is NULL at its
 * end.
 */
void
hs_catalog_save_sweep(const pg_uuid_t *connection_id, const char *sync_type,
					  const char *after, int64 last_id)
{
	Call		call;

	begin_type_call(&call, SQL_SAVE_SWEEP, connection_id, sync_type);
	push_text(&call, after);
	push(&call, INT8OID, Int64GetDatum(last_id), false);
	run_and_end(&call);
}

/*
 * The names (char *) of the properties that an object type had less than
 * `max_age_s` seconds ago; NIL if that is not known.
 */
List *
hs_catalog_properties(const pg_uuid_t *connection_id, const char *object_type,
					  double max_age_s)
{
	Call		call;
	List	   *names = NIL;

	begin_type_call(&call, SQL_PROPERTIES, connection_id, object_type);
	push(&call, FLOAT8OID, Float8GetDatum(max_age_s), false);
	if (run_call(&call) > 0)
		names = list_column(&call, 0, 1);
	end_call(&call);
	return names;
}

/*
 * Notes the names of an object type's properties.
 */
void
hs_catalog_save_properties(const pg_uuid_t *connection_id,
						   const char *object_type, const char *const *names,
						   int n)
{
	Call		call;

	begin_type_call(&call, SQL_SAVE_PROPERTIES, connection_id, object_type);
	push_texts(&call, names, n);
	run_and_end(&call);
}

/* ------------------------------------------------------------------------
 * Changing the configuration
 * ------------------------------------------------------------------------
 */

/*
 * Points a type at another target.  `schema` is its name; `author` is noted
 * as the one who configured it.
 */
void
hs_catalog_save_target(const HsSyncType *type, const char *author)
{
	Call		call;
	int			n = 0;
	const char **keys = palloc(sizeof(char *) *
							   Max(list_length(type->key_columns), 1));
	ListCell   *lc;

	foreach(lc, type->key_columns)
		keys[n++] = lfirst(lc);
	begin_call(&call, SQL_SAVE_TARGET);
	push_text(&call, type->name);
	push_text(&call, type->target_schema);
	push_text(&call, type->target_table);
	push_texts(&call, keys, n);
	push_text(&call, type->delete_policy);
	push_text(&call, author);
	run_and_end(&call);
}

/*
 * Deletes a type's fields but for the `n` whose columns are `kept`.
 */
void
hs_catalog_drop_fields(const char *sync_type, const char *const *kept, int n)
{
	Call		call;

	begin_call(&call, SQL_DROP_FIELDS);
	push_text(&call, sync_type);
	push_texts(&call, kept, n);
	run_and_end(&call);
}

/*
 * Replaces a type's fields by those of `type`.
 */
void
hs_catalog_save_fields(const HsSyncType *type, const char *author)
{
	Call		call;
	int			n = 0;
	const char **kept = palloc(sizeof(char *) *
							   Max(list_length(type->fields), 1));
	ListCell   *lc;

	foreach(lc, type->fields)
		kept[n++] = ((HsField *) lfirst(lc))->column;
	hs_catalog_drop_fields(type->name, kept, n);
	foreach(lc, type->fields)
	{
		const HsField *field = lfirst(lc);

		begin_call(&call, SQL_SAVE_FIELD);
		push_text(&call, type->name);
		push_text(&call, field->column);
		push_text(&call, field->property);
		push_text(&call, field->transform);
		push_text(&call, field->argument);
		push_bool(&call, field->insert_only);
		push_text(&call, author);
		run_and_end(&call);
	}
}

/* Runs a statement on a type, and a field's column unless that is NULL. */
static void
run_on_key(Statement statement, const char *sync_type, const char *column_name,
		   bool with_column)
{
	Call		call;

	begin_call(&call, statement);
	push_text(&call, sync_type);
	if (with_column)
		push_text(&call, column_name);
	run_and_end(&call);
}

/*
 * Notes that a type, or with `column_name` one of its fields, was deleted.
 */
void
hs_catalog_note_removal(const char *sync_type, const char *column_name)
{
	run_on_key(SQL_FORGET_REMOVAL, sync_type, column_name, true);
	run_on_key(SQL_NOTE_REMOVAL, sync_type, column_name, true);
}

/*
 * Notes that it is there again.
 */
void
hs_catalog_forget_removal(const char *sync_type, const char *column_name)
{
	run_on_key(SQL_FORGET_REMOVAL, sync_type, column_name, true);
}

/*
 * Deletes a shipped type, or with `column_name` one of its fields, if it is
 * as it was shipped.
 */
void
hs_catalog_remove_shipped(const char *sync_type, const char *column_name)
{
	if (column_name != NULL)
		run_on_key(SQL_REMOVE_SHIPPED_FIELD, sync_type, column_name, true);
	else
		run_on_key(SQL_REMOVE_SHIPPED_TYPE, sync_type, NULL, false);
}

/* Whether the primary key of a relation has a column. */
static bool
is_key_column(Relation rel, AttrNumber attno)
{
	Bitmapset  *key = RelationGetIndexAttrBitmap(rel,
												 INDEX_ATTR_BITMAP_PRIMARY_KEY);

	return bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, key);
}

/*
 * Makes a shipped row of one of the extension's tables what `row` says, if
 * there is one with its primary key.  Returns whether there was.
 */
bool
hs_catalog_replace_shipped(Relation rel, HeapTuple row)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Oid			types[1] = {desc->tdtypeid};
	Datum		values[1] = {heap_copy_tuple_as_datum(row, desc)};
	StringInfoData set;
	StringInfoData where;
	Call		call;
	uint64		replaced;

	initStringInfo(&set);
	initStringInfo(&where);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const char *name = quote_identifier(NameStr(att->attname));

		if (att->attisdropped)
			continue;
		if (is_key_column(rel, att->attnum))
			appendStringInfo(&where, " AND t.%s = ($1).%s", name, name);
		else
			appendStringInfo(&set, "%s%s = ($1).%s", set.len ? ", " : "", name,
							 name);
	}
	begin_call(&call, SQL_UNKEPT);
	if (SPI_execute_with_args(psprintf("UPDATE %s.%s t SET %s WHERE t.shipped%s",
									   quote_identifier(get_namespace_name(RelationGetNamespace(rel))),
									   quote_identifier(RelationGetRelationName(rel)),
									   set.data, where.data),
							  1, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not change a shipped row");
	replaced = SPI_processed;
	end_call(&call);
	return replaced > 0;
}

/* ------------------------------------------------------------------------
 * Where the extension lives
 * ------------------------------------------------------------------------
 */

/* Pushes what this server and database are known by. */
static void
push_home(Call *call)
{
	push_text(call, psprintf(UINT64_FORMAT, GetSystemIdentifier()));
	push(call, OIDOID, ObjectIdGetDatum(MyDatabaseId), false);
}

/*
 * Whether this database is the one that the extension was created in, or
 * adopted by.  A copy of it, or a dump's restoration, is not.
 */
bool
hs_catalog_is_home(void)
{
	Call		call;
	bool		home;

	begin_call(&call, SQL_IS_HOME);
	push_home(&call);
	run_call(&call);
	home = bool_column(0, 1);
	end_call(&call);
	return home;
}

/*
 * Makes this database the extension's home.
 */
void
hs_catalog_adopt(void)
{
	Call		call;

	begin_call(&call, SQL_LEAVE_HOME);
	run_and_end(&call);
	begin_call(&call, SQL_SETTLE_HOME);
	push_home(&call);
	run_and_end(&call);
}

/* ------------------------------------------------------------------------
 * Schedules
 * ------------------------------------------------------------------------
 */

/*
 * The sync types (char *) of which a run is due by the extension's own
 * schedule.
 */
List *
hs_catalog_due_types(void)
{
	Call		call;

	begin_call(&call, SQL_DUE_TYPES);
	return run_for_list(&call);
}

/*
 * All connections, as HsConnection *.
 */
List *
hs_catalog_connections(void)
{
	Call		call;
	List	   *connections = NIL;
	uint64		rows;
	MemoryContext old;

	begin_call(&call, SQL_CONNECTIONS);
	rows = run_call(&call);
	old = MemoryContextSwitchTo(call.caller_context);
	for (uint64 i = 0; i < rows; i++)
	{
		HsConnection *connection = palloc(sizeof(HsConnection));

		connection->id = uuid_column(i, 1);
		connection->name = text_column(&call, i, 2);
		connection->portal_id = text_column(&call, i, 3);
		connections = lappend(connections, connection);
	}
	MemoryContextSwitchTo(old);
	end_call(&call);
	return connections;
}
