-- What people see of runs: get_latest_sync_status(), sync_logs, and the
-- functions that wait for a run or cancel it. Runs that a process left behind
-- are played by rows without a process.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;

-- Before any run there is a row for each enabled type, and no more.
\pset null -
SELECT * FROM get_latest_sync_status();
SELECT count(*) FROM sync_logs;
UPDATE sync_types SET enabled = false WHERE sync_type = 'deals';
SELECT * FROM get_latest_sync_status();
UPDATE sync_types SET enabled = true WHERE sync_type = 'deals';

-- A run without a token fails at once, and says what to do.
SET client_min_messages = warning; -- without NOTICEs of progress
CALL run_hubspot_sync('contacts') \gset
RESET client_min_messages;
SELECT :'status' AS status, :'records_processed' AS processed, :'records_failed' AS failed;
\x on
SELECT platform, sync_type, status, direction, mode, timeframe, connection_id,
	trigger_source, requested_by = current_user AS by_me, requests, retries,
	bytes_received, records_processed, records_failed, checkpoint, continues,
	error_details->>'reason' AS reason, error_details->>'message' AS message,
	error_details->>'hint' AS hint
FROM sync_logs WHERE id = :'run_id';
\x off
SELECT created_at <= started_at AND started_at <= completed_at AND completed_at <= now()
	AS in_order, duration_ms BETWEEN 0 AND 60000 AS short FROM sync_logs WHERE id = :'run_id';
SELECT sync_type, last_sync_time IS NOT NULL AS synced, status, records_processed,
	records_failed, duration_ms IS NOT NULL AS took FROM get_latest_sync_status();
SELECT ok, portal_id, latency_ms < 10000 AS quick, message FROM test_hubspot_connection();
-- Nothing has been remembered of it.
SELECT count(*) FROM sync_state;
SELECT portal_id FROM sync_connections;
DELETE FROM sync_runs;

-- Adds the row of a run that began so long ago and was last heard of so long
-- ago.
CREATE FUNCTION play(id integer, sync_type text, status text, began interval,
	heard interval DEFAULT '0', details jsonb DEFAULT NULL) RETURNS uuid LANGUAGE sql AS $$
	INSERT INTO sync_runs (id, connection_id, sync_type, direction, mode, status,
		requested_by, trigger_source, created_at, started_at, updated_at, completed_at,
		records_processed, records_failed, requests, checkpoint, error_details, lock_key,
		worker_pid)
	SELECT lpad(id::text, 32, '0')::uuid, '00000000-0000-0000-0000-000000000000',
		sync_type, 'pull', 'full', status, current_user, 'sql',
		t - began - interval '1 second',
		CASE WHEN status <> 'pending' THEN t - began END, t - heard,
		CASE WHEN status NOT IN ('pending', 'running') THEN t - heard END,
		10 * id, id, id, '{"phase": "live"}', details, id, 1
	FROM (SELECT clock_timestamp()) clock (t)
	RETURNING id
$$;
CREATE VIEW run AS
	SELECT ltrim(id::text, '-0') AS id, sync_type, status, error_details->>'reason' AS reason
	FROM sync_logs ORDER BY 1;

-- The newest run counts, in whatever state; processed includes failed.
SELECT play(1, 'contacts', 'failed', '1 hour', '50 min', '{"reason": "auth"}'),
	play(2, 'contacts', 'success', '2 hours', '1 hour'),
	play(3, 'deals', 'partial', '3 hours', '175 min', '{"reason": "records_failed"}'),
	play(4, 'owners', 'pending', '0', '0') \gset
SELECT sync_type, clock_timestamp() - last_sync_time BETWEEN expected AND expected + '1 min' AS time,
	status, records_processed, records_failed,
	CASE WHEN status <> 'pending' THEN duration_ms END AS duration_ms
FROM get_latest_sync_status() JOIN (VALUES ('contacts', interval '50 min'),
	('deals', '175 min'), ('owners', '0')) expected (sync_type, expected) USING (sync_type);
SELECT * FROM run;
-- Whoever wrote it last is not whoever ran last.
UPDATE sync_runs SET updated_at = clock_timestamp() WHERE status = 'success';
SELECT status FROM get_latest_sync_status() WHERE sync_type = 'contacts';
DELETE FROM sync_runs;

-- A run whose process is gone reads as failed at once, with all it had
-- reached; one that waits for its process, after 30 seconds.
SELECT play(1, 'contacts', 'running', '1 hour', '10 min', '{"note": "kept", "reason": "x"}'),
	play(2, 'owners', 'pending', '31 s', '31 s'), play(3, 'deals', 'pending', '1 hour', '20 s') \gset
SELECT * FROM run;
SELECT status, clock_timestamp() - completed_at BETWEEN '10 min' AND '11 min' AS last_sign_of_life,
	round(duration_ms / 60000.0) AS minutes, records_processed, records_failed, requests,
	checkpoint, error_details
FROM sync_logs WHERE sync_type = 'contacts';
SELECT sync_type, status, completed_at IS NULL AS open FROM sync_logs
WHERE sync_type <> 'contacts' ORDER BY sync_type;
SELECT sync_type, status, records_processed FROM get_latest_sync_status();
-- Reading has not changed the rows.
SELECT sync_type, status, completed_at FROM sync_runs ORDER BY sync_type;
-- Waiting for a dead run is over at once, with any timeout.
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000001', '1 hour');
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000002');
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000002', NULL);
-- Others' time is limited. The time is up while this one waits for its process.
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000003', '0');
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000003', '-1 day');
SELECT clock_timestamp() AS began \gset
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000003', '0.3 s');
SELECT clock_timestamp() - :'began' BETWEEN '0.3 s' AND '25 s' AS waited;
SELECT * FROM run;

-- The next request closes a dead run and takes its place, with either door and
-- in any mode; a living one is joined, or in the way.
SELECT trigger_hubspot_sync('contacts', 'incremental') AS id \gset
SELECT status, clock_timestamp() - completed_at BETWEEN '10 min' AND '11 min' AS last_sign_of_life,
	error_details, checkpoint, records_processed
FROM sync_runs WHERE id = '00000000-0000-0000-0000-000000000001';
CALL wait_for_hubspot_sync(:'id', '1 minute');
SET client_min_messages = warning; -- without NOTICEs of progress
CALL run_hubspot_sync('owners') \gset
RESET client_min_messages;
SELECT status, error_details->>'reason' AS reason FROM sync_runs
WHERE id = '00000000-0000-0000-0000-000000000002';
SELECT sync_type, mode, status, count(*) FROM sync_logs
WHERE id > '00000000-0000-0000-0000-000000000003' GROUP BY 1, 2, 3 ORDER BY 1;
SELECT trigger_hubspot_sync('deals');
UPDATE sync_runs SET created_at = '2026-01-02 03:04:05+00' WHERE sync_type = 'deals';
SELECT trigger_hubspot_sync('deals', 'incremental');
\echo :SQLSTATE
SELECT sync_type, status FROM sync_runs WHERE sync_type = 'deals';
DELETE FROM sync_runs;
-- If the request is rolled back, the dead run is as dead as before.
SELECT play(1, 'contacts', 'running', '1 hour') \gset
BEGIN;
SELECT trigger_hubspot_sync('contacts') <> '00000000-0000-0000-0000-000000000001' AS another;
ROLLBACK;
SELECT status FROM sync_runs;
SELECT * FROM run;
DELETE FROM sync_runs;

-- Cancelling: what waits for its process is cancelled in its row.
SELECT play(1, 'contacts', 'pending', '0'), play(2, 'deals', 'running', '1 hour'),
	play(3, 'owners', 'success', '1 hour'), play(4, 'owners', 'failed', '2 hours'),
	play(5, 'owners', 'cancelled', '3 hours') \gset
SELECT n, cancel_hubspot_sync(lpad(n::text, 32, '0')::uuid) FROM generate_series(1, 5) n;
SELECT * FROM run;
SELECT error_details, completed_at IS NOT NULL AS completed FROM sync_logs WHERE sync_type = 'contacts';
-- A second time there is nothing to cancel, and the type is free.
SELECT cancel_hubspot_sync('00000000-0000-0000-0000-000000000001');
BEGIN;
SELECT trigger_hubspot_sync('contacts') IS NOT NULL AS requested;
ROLLBACK;
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000001');
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-000000000003');
-- What is dead already cannot be cancelled any more.
SELECT play(6, 'contacts', 'pending', '1 hour') \gset
UPDATE sync_runs SET updated_at = now() - interval '1 hour' WHERE sync_type = 'contacts' AND status = 'pending';
SELECT cancel_hubspot_sync('00000000-0000-0000-0000-000000000006');
SELECT status, duration_ms FROM sync_logs WHERE id = '00000000-0000-0000-0000-000000000006';
DELETE FROM sync_runs WHERE sync_type = 'contacts';
-- A request can be taken back before it is committed; its worker finds
-- nothing to do.
BEGIN;
SELECT trigger_hubspot_sync('contacts') AS id \gset
SELECT cancel_hubspot_sync(:'id');
COMMIT;
CALL workers_gone();
SELECT status, requests, started_at, error_details->>'reason' AS reason
FROM sync_logs WHERE id = :'id';
-- It may be asked for again in the same transaction.
DELETE FROM sync_runs;
BEGIN;
SELECT trigger_hubspot_sync('contacts') AS id \gset
SELECT cancel_hubspot_sync(:'id');
SELECT trigger_hubspot_sync('contacts', 'full') AS id \gset
COMMIT;
CALL wait_for_hubspot_sync(:'id', '1 minute');
SELECT status, error_details->>'reason' AS reason FROM sync_logs ORDER BY created_at;

-- Ids nobody knows.
SELECT cancel_hubspot_sync('00000000-0000-0000-0000-00000000000f');
\echo :SQLSTATE
CALL wait_for_hubspot_sync('00000000-0000-0000-0000-00000000000f');
\echo :SQLSTATE
SELECT cancel_hubspot_sync(NULL);
CALL wait_for_hubspot_sync(NULL);
\echo :SQLSTATE
SELECT cancel_hubspot_sync('''; DROP TABLE sync_runs; --');
\echo :SQLSTATE

DROP VIEW run;
DROP FUNCTION play;
DROP EXTENSION hubspot_sync;
