-- Who may do what: nobody anything, until it is granted; and what is granted
-- needs nothing else.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;
CREATE ROLE regress_hubspot_anna LOGIN;
CREATE VIEW member AS
	SELECT objid, classid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
	WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
		AND e.extname = 'hubspot_sync';
GRANT SELECT ON member TO regress_hubspot_anna;
CREATE FUNCTION refused(statement text) RETURNS boolean LANGUAGE sql
	AS $$ SELECT outcome(statement) LIKE '42501: permission denied for %' $$;

-- An ordinary role: everything is refused before anything is looked at.
SELECT count(*) > 20 AS some FROM member;
SET ROLE regress_hubspot_anna;
SELECT objid::regprocedure::text COLLATE "C" AS allowed FROM member
WHERE classid = 'pg_proc'::regclass AND has_function_privilege(objid, 'EXECUTE');
SELECT objid::regclass::text AS allowed FROM member
WHERE classid = 'pg_class'::regclass AND (
	has_table_privilege(objid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
	OR has_any_column_privilege(objid, 'SELECT, INSERT, UPDATE, REFERENCES'));
SELECT objid::regtype::text AS allowed FROM member
	JOIN pg_type t ON t.oid = objid
WHERE classid = 'pg_type'::regclass AND typrelid = 0 AND typelem = 0
	AND has_type_privilege(objid, 'USAGE');
SELECT statement AS allowed FROM member JOIN pg_class c ON c.oid = objid
CROSS JOIN LATERAL unnest(ARRAY['SELECT FROM ' || relname, 'LOCK TABLE ' || relname
	|| ' IN ACCESS SHARE MODE', CASE relkind WHEN 'r' THEN 'TRUNCATE ' || relname END,
	CASE relkind WHEN 'r' THEN 'DELETE FROM ' || relname END,
	CASE relkind WHEN 'r' THEN format('INSERT INTO %s DEFAULT VALUES', relname) END]) statement
WHERE classid = 'pg_class'::regclass AND statement IS NOT NULL AND NOT refused(statement);
SELECT trigger_hubspot_sync('contacts');
SELECT trigger_hubspot_sync('nonsense', 'full');
CALL run_hubspot_sync('contacts');
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000001');
SELECT cancel_hubspot_sync('00000000-0000-0000-0000-000000000001');
SELECT * FROM get_latest_sync_status();
SELECT * FROM test_hubspot_connection();
SELECT * FROM schedule_hubspot_sync();
SELECT unschedule_hubspot_sync();
SELECT status FROM sync_logs;
SELECT name FROM sync_connections;
UPDATE sync_types SET enabled = false;
-- The check of the configuration cannot be put on a table of one's own.
CREATE TEMP TABLE mine (sync_type text);
CREATE TRIGGER mine BEFORE INSERT ON mine
	FOR EACH ROW EXECUTE FUNCTION hubspot_sync_check_configuration();
DROP TABLE mine;
RESET ROLE;
SELECT count(*) FROM sync_runs;

-- EXECUTE on the status is enough to read it.
SET client_min_messages = warning; -- without NOTICEs of progress
CALL run_hubspot_sync('contacts') \gset
RESET client_min_messages;
GRANT EXECUTE ON FUNCTION get_latest_sync_status() TO regress_hubspot_anna;
SET ROLE regress_hubspot_anna;
SELECT sync_type, status, records_processed, last_sync_time IS NOT NULL AS synced
FROM get_latest_sync_status();
SELECT refused('SELECT status FROM sync_logs') AS logs, refused('SELECT status FROM sync_runs') AS runs,
	refused('SELECT sync_type FROM sync_types') AS types;
RESET ROLE;
REVOKE ALL ON FUNCTION get_latest_sync_status() FROM regress_hubspot_anna;

-- So is SELECT on the log, dead runs included.
INSERT INTO sync_runs (id, connection_id, sync_type, direction, mode, status, requested_by,
		trigger_source, created_at, updated_at, started_at, lock_key)
	SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 'deals', 'pull', 'full',
		'running', 'postgres', 'sql', t, t, t, 1 FROM (SELECT clock_timestamp()) c (t);
GRANT SELECT ON sync_logs TO regress_hubspot_anna;
SET ROLE regress_hubspot_anna;
SELECT sync_type, status, error_details->>'reason' AS reason FROM sync_logs ORDER BY sync_type;
SELECT refused('SELECT status FROM sync_runs') AS runs,
	refused('SELECT holder_pid FROM sync_run_states') AS states,
	refused('SELECT get_latest_sync_status()') AS status;
RESET ROLE;
REVOKE ALL ON sync_logs FROM regress_hubspot_anna;
DELETE FROM sync_runs;

-- So is EXECUTE on the short form to request a run, of any type, as oneself;
-- the worker is the table owner's all the same.
GRANT EXECUTE ON FUNCTION trigger_hubspot_sync(text) TO regress_hubspot_anna;
SET ROLE regress_hubspot_anna;
SELECT trigger_hubspot_sync('contacts') AS id \gset
SELECT refused($$SELECT trigger_hubspot_sync('contacts', 'full')$$) AS long_form,
	refused('CALL run_hubspot_sync(''contacts'')') AS run,
	refused('SELECT cancel_hubspot_sync(gen_random_uuid())') AS cancel,
	refused('SELECT test_hubspot_connection()') AS test,
	refused('SELECT sync_type FROM sync_types') AS types;
SELECT trigger_hubspot_sync('nonsense');
RESET ROLE;
CALL wait_for_hubspot_sync(:'id', '1 minute');
SELECT status, error_details->>'reason' AS reason, requested_by FROM sync_logs;
DELETE FROM sync_runs;

-- The same for the others.
GRANT EXECUTE ON PROCEDURE run_hubspot_sync, wait_for_hubspot_sync TO regress_hubspot_anna;
GRANT EXECUTE ON FUNCTION cancel_hubspot_sync, test_hubspot_connection TO regress_hubspot_anna;
SET ROLE regress_hubspot_anna;
SET client_min_messages = warning; -- without NOTICEs of progress
CALL run_hubspot_sync('deals', 'incremental') \gset
RESET client_min_messages;
CALL wait_for_hubspot_sync(:'run_id');
SELECT cancel_hubspot_sync(:'run_id');
SELECT ok FROM test_hubspot_connection();
-- Messages and settings tell him nothing about the token's file.
\set VERBOSITY sqlstate
SHOW hubspot_sync.access_token_file;
\set VERBOSITY default
RESET ROLE;
SELECT sync_type, mode, status, requested_by FROM sync_logs;
-- None of them leaves him with the owner's rights, whether it succeeds or not.
SET ROLE regress_hubspot_anna;
SELECT outcome('SELECT trigger_hubspot_sync(''nonsense'')') AS failed, current_user;
BEGIN;
SELECT trigger_hubspot_sync('contacts') IS NOT NULL AS requested, current_user;
SELECT status FROM sync_logs;
ROLLBACK;
SHOW search_path;
RESET ROLE;

DROP FUNCTION refused;
DROP VIEW member;
DROP EXTENSION hubspot_sync;
DROP ROLE regress_hubspot_anna;
