-- When a request is taken, and what becomes of it with its transaction.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;
-- The shape of the runs there are, without what differs from run to run.
CREATE VIEW run AS
	SELECT sync_type, mode, timeframe, status, trigger_source,
		error_details->>'reason' AS reason
	FROM sync_logs ORDER BY created_at;

-- A committed request gets its worker. Without a token the run fails before
-- it makes a request.
SELECT trigger_hubspot_sync('contacts') AS id \gset
CALL wait_for_hubspot_sync(:'id', '1 minute');
SELECT * FROM run;
SELECT requests, records_processed, requested_by = current_user AS by_me FROM sync_logs;
SELECT trigger_hubspot_sync('deals', 'incremental') AS id \gset
CALL wait_for_hubspot_sync(:'id', '1 minute');
SELECT trigger_hubspot_sync('deals', 'auto', 'last_7_days') AS id \gset
CALL wait_for_hubspot_sync(:'id', '1 minute');
SELECT * FROM run WHERE sync_type = 'deals';
DELETE FROM sync_runs;

-- Nothing happens before the commit, and nothing ever without one.
BEGIN;
SELECT trigger_hubspot_sync('contacts') AS id \gset
SELECT pg_sleep(0.2); -- sleep: to give a worker, if there wrongly were one, its time
SELECT * FROM run;
ROLLBACK;
SELECT * FROM run;
CALL wait_for_hubspot_sync(:'id');
\echo :SQLSTATE

-- A rolled-back savepoint takes its requests with it, and no others.
BEGIN;
SELECT trigger_hubspot_sync('contacts') AS contacts \gset
SAVEPOINT a;
SELECT trigger_hubspot_sync('deals') AS deals \gset
ROLLBACK TO a;
SELECT trigger_hubspot_sync('owners') AS owners \gset
COMMIT;
CALL wait_for_hubspot_sync(:'contacts', '1 minute');
CALL wait_for_hubspot_sync(:'owners', '1 minute');
SELECT sync_type, status FROM run ORDER BY sync_type;
DELETE FROM sync_runs;
-- It may be asked for again afterwards.
BEGIN;
SAVEPOINT a;
SELECT trigger_hubspot_sync('deals') AS first \gset
ROLLBACK TO a;
SELECT trigger_hubspot_sync('deals') AS second \gset
COMMIT;
CALL wait_for_hubspot_sync(:'second', '1 minute');
SELECT :'first' <> :'second' AS another, count(*) FROM sync_logs WHERE id = :'second';
DELETE FROM sync_runs;
-- Released savepoints hand theirs up, to be committed or rolled back there.
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SELECT trigger_hubspot_sync('contacts') AS contacts \gset
RELEASE b;
SAVEPOINT b;
SELECT trigger_hubspot_sync('deals') AS deals \gset
RELEASE a;
SAVEPOINT a;
SAVEPOINT b;
SELECT trigger_hubspot_sync('owners') AS owners \gset
RELEASE b;
ROLLBACK TO a;
COMMIT;
CALL wait_for_hubspot_sync(:'contacts', '1 minute');
CALL wait_for_hubspot_sync(:'deals', '1 minute');
SELECT sync_type, status FROM run ORDER BY sync_type;
DELETE FROM sync_runs;
-- The same in PL/pgSQL, whose exception blocks are savepoints.
DO $$
BEGIN
	BEGIN
		PERFORM trigger_hubspot_sync('contacts');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM trigger_hubspot_sync('owners');
	END;
END
$$;
SELECT id FROM sync_logs \gset
CALL wait_for_hubspot_sync(:'id', '1 minute');
SELECT sync_type, status FROM run;
DELETE FROM sync_runs;

-- Two requests of one transaction meet as any two do: the second joins the
-- first, with a notice, where it asks for the same or for auto.
BEGIN;
SELECT trigger_hubspot_sync('contacts', 'full') AS first \gset
-- so that the notice is the same every time
UPDATE sync_runs SET id = '00000000-0000-0000-0000-000000000001';
SELECT trigger_hubspot_sync('contacts', 'full');
SELECT trigger_hubspot_sync('contacts');
SELECT trigger_hubspot_sync('contacts', NULL, NULL, 'default');
SELECT count(*) FROM sync_logs;
-- The others are not concerned.
SELECT trigger_hubspot_sync('deals') <> '00000000-0000-0000-0000-000000000001' AS another;
ROLLBACK;
-- Another mode or scope is refused.
\set VERBOSITY terse
BEGIN;
SELECT trigger_hubspot_sync('contacts', 'full') IS NOT NULL AS requested;
SAVEPOINT a;
SELECT trigger_hubspot_sync('contacts', 'incremental');
\echo :SQLSTATE
ROLLBACK TO a;
SELECT trigger_hubspot_sync('contacts', 'auto', 'today');
\echo :SQLSTATE
ROLLBACK;
BEGIN;
SELECT trigger_hubspot_sync('contacts', 'auto', 'today') AS first \gset
SET client_min_messages = warning;
SELECT trigger_hubspot_sync('contacts', 'auto', 'today') = :'first' AS joined;
RESET client_min_messages;
SAVEPOINT a;
SELECT trigger_hubspot_sync('contacts');
\echo :SQLSTATE
ROLLBACK TO a;
SELECT trigger_hubspot_sync('contacts', 'auto', 'last_30_days');
\echo :SQLSTATE
ROLLBACK;
\set VERBOSITY default
SELECT * FROM run;

-- A request leaves the transaction's own settings alone, also when it has met
-- another one or was refused.
BEGIN;
SET LOCAL lock_timeout = '7s';
SET client_min_messages = warning;
SELECT trigger_hubspot_sync('contacts') = trigger_hubspot_sync('contacts') AS joined;
RESET client_min_messages;
SELECT outcome('SELECT trigger_hubspot_sync(''contacts'', ''full'')') AS refused;
SHOW lock_timeout;
ROLLBACK;
-- Owners are read completely in every mode, so all requests ask for the same.
BEGIN;
SELECT trigger_hubspot_sync('owners', 'full') AS first \gset
SET client_min_messages = warning;
SELECT trigger_hubspot_sync('owners', 'incremental') = :'first' AS joined;
RESET client_min_messages;
ROLLBACK;

-- A request needs a transaction that may write.
BEGIN READ ONLY;
SELECT trigger_hubspot_sync('contacts');
\echo :SQLSTATE
ROLLBACK;
SET default_transaction_read_only = on;
SELECT trigger_hubspot_sync('contacts');
CALL run_hubspot_sync('contacts');
RESET default_transaction_read_only;
-- The status does not.
BEGIN READ ONLY;
SELECT count(*) FROM get_latest_sync_status();
SELECT count(*) FROM sync_logs;
COMMIT;

-- The procedures commit, so they cannot run inside a transaction.
BEGIN;
CALL run_hubspot_sync('contacts');
\echo :SQLSTATE
ROLLBACK;
BEGIN;
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000001');
\echo :SQLSTATE
ROLLBACK;
CREATE FUNCTION calls() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	a uuid; b text; c integer; d integer;
BEGIN
	CALL run_hubspot_sync('contacts', 'auto', NULL, NULL, a, b, c, d);
END
$$;
SELECT calls();
\echo :SQLSTATE
DROP FUNCTION calls;
SELECT * FROM run;
-- A DO block, or a procedure, may call them.
SET client_min_messages = warning; -- without NOTICEs of progress
DO $$
DECLARE
	a uuid; b text; c integer; d integer;
BEGIN
	CALL run_hubspot_sync('contacts', 'auto', NULL, NULL, a, b, c, d);
	RAISE INFO 'ended %', b;
	CALL wait_for_hubspot_sync(a, '1 minute', b);
	RAISE INFO 'still %', b;
END
$$;
RESET client_min_messages;
SELECT * FROM run;
DELETE FROM sync_runs;

-- A run takes no setting from the session that asks for it. So whoever has
-- changed one here is told, instead of having another account called.
SET hubspot_sync.overlap = '1h';
SELECT trigger_hubspot_sync('contacts');
\echo :SQLSTATE
\set VERBOSITY terse
SET hubspot_sync.api_version = '2026-03';
CALL run_hubspot_sync('contacts');
\echo :SQLSTATE
RESET hubspot_sync.overlap;
RESET hubspot_sync.api_version;
-- This is so for every setting, however it came to be changed.
CREATE FUNCTION taken_with(name text, value text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config(name, value, true);
	PERFORM trigger_hubspot_sync('contacts');
	RAISE 'taken';
END
$$;
SELECT name AS taken, got FROM pg_settings
CROSS JOIN LATERAL outcome(format('SELECT taken_with(%L, %L)', name, setting)) got
WHERE name LIKE 'hubspot\_sync.%' AND context = 'superuser'
	AND name <> 'hubspot_sync.schedule_time_zone' AND got IS DISTINCT FROM
	'55000: settings changed in this session would not reach the run: ' || name;
SELECT outcome('SELECT taken_with(''work_mem'', ''1MB'')') AS others;
CREATE FUNCTION with_setting() RETURNS uuid LANGUAGE sql
	SET hubspot_sync.max_retries = 1 AS $$ SELECT trigger_hubspot_sync('contacts') $$;
SELECT with_setting();
DROP FUNCTION with_setting, taken_with;
\set plain 'dbname=' :DBNAME
\set with_option :plain ' options=''-c hubspot_sync.max_retries=1'''
\c :with_option
SELECT trigger_hubspot_sync('contacts');
\c :plain
SELECT count(*) FROM sync_runs;
-- A role's own settings reach the runs that its own tables need, and no others.
SELECT session_user AS me \gset
CREATE ROLE regress_hubspot_anna LOGIN;
CREATE TABLE company (id bigint PRIMARY KEY, archived boolean);
INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns)
	VALUES ('companies', 'companies', 'public', 'company', '{id}');
ALTER ROLE :"me" IN DATABASE :"DBNAME" SET hubspot_sync.max_retries = 1;
\c -
BEGIN;
SELECT trigger_hubspot_sync('companies') IS NOT NULL AS requested;
ROLLBACK;
ALTER TABLE company OWNER TO regress_hubspot_anna;
SELECT trigger_hubspot_sync('companies');
\echo :SQLSTATE
ALTER ROLE :"me" IN DATABASE :"DBNAME" RESET hubspot_sync.max_retries;
\c -
BEGIN;
SELECT trigger_hubspot_sync('companies') IS NOT NULL AS requested;
ROLLBACK;

\set VERBOSITY default

-- The worker connects as the target's owner, who needs LOGIN for that before
-- version 17.
ALTER ROLE regress_hubspot_anna NOLOGIN;
BEGIN;
SELECT outcome('SELECT trigger_hubspot_sync(''companies'')') IN (CASE
	WHEN current_setting('server_version_num')::int < 170000
	THEN '55000: role "regress_hubspot_anna", which owns the target table of sync type "companies", is not permitted to log in'
	ELSE 'ok' END) AS as_expected;
ROLLBACK;
ALTER ROLE regress_hubspot_anna LOGIN;
-- He needs CONNECT, which not everybody may have.
REVOKE CONNECT ON DATABASE :"DBNAME" FROM PUBLIC;
SELECT trigger_hubspot_sync('companies');
\echo :SQLSTATE
GRANT CONNECT ON DATABASE :"DBNAME" TO PUBLIC;
-- It connects as him without any password or line in pg_hba.conf.
SET client_min_messages = warning; -- without NOTICEs of progress
CALL run_hubspot_sync('companies') \gset
RESET client_min_messages;
SELECT * FROM run;
DELETE FROM sync_types WHERE sync_type = 'companies';
DROP TABLE company;
DROP ROLE regress_hubspot_anna;
DELETE FROM sync_runs;

-- What stands in the caller's search_path does not matter.
CREATE SCHEMA evil;
CREATE FUNCTION evil.never(text, text) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE 'never'; END $$;
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.never);
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
	$$ BEGIN RAISE 'never'; END $$;
CREATE FUNCTION evil.gen_random_uuid() RETURNS uuid LANGUAGE plpgsql AS
	$$ BEGIN RAISE 'never'; END $$;
CREATE TABLE evil.sync_types (sync_type text, enabled boolean);
CREATE TABLE evil.sync_runs (id uuid);
\c -
SELECT 'a'::text OPERATOR(evil.=) 'a';
SET search_path = evil, pg_catalog, public;
SELECT trigger_hubspot_sync('contacts') AS id \gset
CALL wait_for_hubspot_sync(:'id', '1 minute');
SELECT count(*) FROM get_latest_sync_status();
RESET search_path;
SELECT * FROM run;
SET client_min_messages = warning;
DROP SCHEMA evil CASCADE;
RESET client_min_messages;
DELETE FROM sync_runs;

-- Without a free background worker the request is an error with a hint, and
-- nothing is left of it or of the others in its transaction.
INSERT INTO sync_types (sync_type, object_type, target_table, key_columns)
	SELECT 'type' || i, 'companies', 'contacts', '{connection_id,hubspot_contact_id}'
	FROM generate_series(0, current_setting('max_worker_processes')::int) i;
\set VERBOSITY terse
BEGIN;
SELECT count(trigger_hubspot_sync(sync_type)) = 1 + current_setting('max_worker_processes')::int
	AS requested FROM sync_types WHERE sync_type LIKE 'type%';
COMMIT;
\echo :SQLSTATE
\set VERBOSITY default
CALL workers_gone();
SELECT * FROM run;

-- A request of the transaction itself is not dead, however old.
BEGIN;
SELECT trigger_hubspot_sync('contacts') AS first \gset
UPDATE sync_runs SET updated_at = now() - interval '1 minute';
SET LOCAL client_min_messages = warning;
SELECT trigger_hubspot_sync('contacts') = :'first' AS joins;
SELECT count(*) FROM sync_runs;
ROLLBACK;

DROP VIEW run;
DROP EXTENSION hubspot_sync;
