-- Jobs of pg_cron: without it in this database schedule_hubspot_sync() says
-- what to run where it is; with it, it creates the jobs, under the schema's
-- name, and unschedule_hubspot_sync() removes them and no others. The second
-- part needs a server whose pg_cron works in this database.
CREATE SCHEMA "My CRM";
CREATE EXTENSION hubspot_sync SCHEMA "My CRM";
CREATE FUNCTION failure(statement text) RETURNS TABLE (state text, message text, hint text)
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	state := 'ok';
	RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		hint = PG_EXCEPTION_HINT;
	RETURN NEXT;
END
$$;
SELECT * FROM failure('SELECT * FROM "My CRM".schedule_hubspot_sync()') \gset
\pset format unaligned
SELECT :'state' AS state, :'message' AS message,
	replace(:'hint', current_database(), 'DATABASE') AS hint;
\pset format aligned
SELECT "My CRM".unschedule_hubspot_sync();
DROP FUNCTION failure;

SELECT NOT (SELECT coalesce(current_setting('cron.database_name', true), '') = current_database()
	AND current_setting('shared_preload_libraries') LIKE '%pg_cron%') AS skip \gset
\if :skip
DROP EXTENSION hubspot_sync;
DROP SCHEMA "My CRM";
\echo not tested: pg_cron does not work in this database
\quit
\endif

SET client_min_messages = warning;
CREATE EXTENSION pg_cron;
RESET client_min_messages;
-- Nothing is committed of this but a job of somebody else's, for no date.
SELECT cron.schedule('other', '0 0 31 2 *', 'SELECT 1') IS NOT NULL AS scheduled;
BEGIN;
SELECT * FROM "My CRM".schedule_hubspot_sync();
SELECT jobname, schedule, command, database = current_database() AS here,
	username = current_user AS mine, active
FROM cron.job ORDER BY jobname;
-- A second time changes nothing.
SELECT count(*) FROM "My CRM".schedule_hubspot_sync();
SELECT count(*) FROM cron.job;
-- The commands work.
SELECT format('SELECT (%s) IS NOT NULL AS requested', command) FROM cron.job
WHERE jobname LIKE 'sync-%' ORDER BY jobname \gexec
SELECT sync_type, mode, status FROM "My CRM".sync_logs ORDER BY sync_type;
SELECT "My CRM".unschedule_hubspot_sync();
SELECT jobname FROM cron.job;
SELECT "My CRM".unschedule_hubspot_sync();
-- So do the lines of the hint: they make the same jobs.
\set ECHO none
SELECT format('SELECT (%s) IS NOT NULL AS scheduled', replace(substr(line, 8), ';', ''))
FROM regexp_split_to_table(:'hint', '\n') line WHERE line LIKE 'SELECT %' \gexec
\set ECHO all
SELECT jobname, schedule, command, database = current_database() AS here FROM cron.job
WHERE jobname LIKE 'sync-%' ORDER BY jobname;
SELECT "My CRM".unschedule_hubspot_sync();
ROLLBACK;
DROP EXTENSION pg_cron, hubspot_sync;
DROP SCHEMA "My CRM";
