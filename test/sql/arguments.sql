-- Arguments that a request refuses: each error says what is known instead,
-- and nothing is written.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;

-- Sync types.
SELECT trigger_hubspot_sync('nonsense');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('nonsense', 'full');
\echo :SQLSTATE
CALL run_hubspot_sync('nonsense');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('Contacts');
\echo :SQLSTATE
SELECT trigger_hubspot_sync(NULL);
\echo :SQLSTATE
CALL run_hubspot_sync(NULL);
\echo :SQLSTATE

-- Modes.
SELECT trigger_hubspot_sync('contacts', 'nonsense');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('contacts', 'timeframe');
\echo :SQLSTATE
CALL run_hubspot_sync('contacts', '');
\echo :SQLSTATE

-- Timeframes, where they make sense.
SELECT trigger_hubspot_sync('contacts', 'auto', 'nonsense');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('contacts', 'auto', '');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('contacts', 'full', 'today');
\echo :SQLSTATE
CALL run_hubspot_sync('deals', 'incremental', 'last_7_days');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('owners', 'auto', 'today');
\echo :SQLSTATE

-- Connections.
SELECT trigger_hubspot_sync('contacts', 'auto', NULL, 'nonsense');
\echo :SQLSTATE
CALL run_hubspot_sync('contacts', connection => '');
\echo :SQLSTATE
SELECT * FROM test_hubspot_connection('nonsense');
\echo :SQLSTATE

-- A type that is switched off; it is not among the known ones either.
UPDATE sync_types SET enabled = false WHERE sync_type = 'deals';
SELECT trigger_hubspot_sync('deals');
\echo :SQLSTATE
CALL run_hubspot_sync('deals');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('nonsense');
UPDATE sync_types SET enabled = true WHERE sync_type = 'deals';

-- Quotes and semicolons are letters like others, wherever they stand.
SELECT trigger_hubspot_sync('''; DROP TABLE contacts; --');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('contacts', '''; DROP TABLE contacts; --');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('contacts', 'auto', '''; DROP TABLE contacts; --');
\echo :SQLSTATE
SELECT trigger_hubspot_sync('contacts', 'auto', NULL, '"; DROP TABLE contacts; --');
\echo :SQLSTATE
CALL run_hubspot_sync('contacts''); DELETE FROM sync_types; --');
\echo :SQLSTATE
SELECT count(*) AS contacts FROM contacts;
SELECT count(*) AS types FROM sync_types;

-- None of the refused requests has left anything.
SELECT count(*) FROM sync_logs;

-- Such names cannot become names of types, connections or properties either.
\set VERBOSITY terse
INSERT INTO sync_types (sync_type, object_type, target_table, key_columns)
	VALUES ('"; DROP TABLE contacts; --', 'x', 'contacts', '{hubspot_contact_id}');
\echo :SQLSTATE
INSERT INTO sync_types (sync_type, object_type, target_table, key_columns)
	VALUES ('x', '../owners?x=', 'contacts', '{hubspot_contact_id}');
\echo :SQLSTATE
INSERT INTO sync_connections (name) VALUES ('a b');
\echo :SQLSTATE
INSERT INTO sync_fields (sync_type, column_name, property)
	VALUES ('contacts', 'merged_into', 'a&properties=b');
\echo :SQLSTATE
\set VERBOSITY default
-- A target of that kind is only a name.
CREATE TABLE "'; DROP TABLE contacts; --" (
	"a""b'c" bigint PRIMARY KEY, "x; --" text, archived boolean);
INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns)
	VALUES ('odd', 'companies', 'public', '''; DROP TABLE contacts; --', '{"a\"b''c"}');
INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('odd', 'x; --', 'name');
SET client_min_messages = warning; -- without NOTICEs of progress
CALL run_hubspot_sync('odd') \gset run_
RESET client_min_messages;
SELECT error_details->>'message' AS message FROM sync_logs WHERE id = :'run_run_id';
SELECT count(*) AS contacts FROM contacts;

-- What is accepted: the modes, and null for what has a default.
BEGIN;
CREATE FUNCTION accepted(mode text, timeframe text, connection text)
RETURNS TABLE (requested text, kept text, scoped boolean) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM trigger_hubspot_sync('deals', mode, timeframe, connection);
	RETURN QUERY DELETE FROM sync_runs r WHERE r.status = 'pending'
		RETURNING format('%s, %s, %s', accepted.mode, accepted.timeframe,
			accepted.connection), r.mode, r.scope <> '';
END
$$;
SELECT a.* FROM (VALUES ('auto', NULL, NULL), ('full', NULL, NULL),
		('incremental', NULL, NULL), (NULL, NULL, 'default'), (NULL, 'today', NULL),
		('auto', 'today', 'default')) v (mode, timeframe, connection)
	CROSS JOIN LATERAL accepted(mode, timeframe, connection) a;
ROLLBACK;

-- A timeframe becomes instants in the caller's time zone when it is requested.
BEGIN;
CREATE FUNCTION range(timeframe text)
RETURNS TABLE (range_from timestamptz, range_to timestamptz) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM trigger_hubspot_sync('contacts', 'auto', timeframe);
	RETURN QUERY DELETE FROM sync_runs r WHERE r.status = 'pending'
		RETURNING r.range_from, r.range_to;
END
$$;
CREATE VIEW wrong AS
	SELECT timeframe, r.*, expected_from, expected_to
	FROM date_trunc('day', now()) AS midnight (t),
	LATERAL (VALUES
		('today', t, t + interval '1 day'),
		('yesterday', t - interval '1 day', t),
		('this_week', date_trunc('week', t), date_trunc('week', t) + interval '7 days'),
		('last_week', date_trunc('week', t) - interval '7 days', date_trunc('week', t)),
		('this_month', date_trunc('month', t), date_trunc('month', t) + interval '1 month'),
		('last_month', date_trunc('month', t) - interval '1 month', date_trunc('month', t)),
		('this_year', date_trunc('year', t), date_trunc('year', t) + interval '1 year'),
		('last_7_days', t - interval '7 days', NULL),
		('last_30_days', t - interval '30 days', NULL),
		('last_90_days', t - interval '90 days', NULL)
	) expected (timeframe, expected_from, expected_to)
	LEFT JOIN LATERAL range(timeframe) r ON true
	WHERE r.range_from IS DISTINCT FROM expected_from
		OR r.range_to IS DISTINCT FROM expected_to;
SET LOCAL timezone = 'Pacific/Kiritimati';
SELECT * FROM wrong;
SELECT range_from AS kiritimati FROM range('today') \gset
SET LOCAL timezone = 'Pacific/Pago_Pago';
SELECT * FROM wrong;
SELECT range_from <> :'kiritimati' AS differs FROM range('today');
ROLLBACK;

DROP EXTENSION hubspot_sync;
DROP TABLE "'; DROP TABLE contacts; --";

-- HubSpot's texts need UTF8.
SELECT :'DBNAME' AS tested \gset
CREATE DATABASE regress_hubspot_latin1 TEMPLATE template0 ENCODING 'LATIN1'
	LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_hubspot_latin1
CREATE EXTENSION hubspot_sync;
SELECT trigger_hubspot_sync('contacts');
\echo :SQLSTATE
\c :tested
DROP DATABASE regress_hubspot_latin1;
