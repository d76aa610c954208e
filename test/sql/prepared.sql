-- A prepared transaction may commit after this session has ended, when nobody
-- could start a worker: it cannot carry a request.
SELECT current_setting('max_prepared_transactions')::int = 0 AS skip \gset
\if :skip
\echo not tested: max_prepared_transactions is 0
\quit
\endif
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;
BEGIN;
SELECT trigger_hubspot_sync('contacts') IS NOT NULL AS requested;
PREPARE TRANSACTION 'regress_hubspot';
\echo :SQLSTATE
SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'regress_hubspot';
SELECT count(*) FROM sync_runs;
-- Without one, or with one that was rolled back, it can be prepared.
BEGIN;
SAVEPOINT a;
SELECT trigger_hubspot_sync('contacts') IS NOT NULL AS requested;
ROLLBACK TO a;
PREPARE TRANSACTION 'regress_hubspot';
COMMIT PREPARED 'regress_hubspot';
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SELECT trigger_hubspot_sync('contacts') IS NOT NULL AS requested;
RELEASE b;
ROLLBACK TO a;
PREPARE TRANSACTION 'regress_hubspot';
COMMIT PREPARED 'regress_hubspot';
SELECT count(*) FROM sync_runs;
-- The session goes on as if nothing had happened.
SELECT trigger_hubspot_sync('owners') AS id \gset
CALL wait_for_hubspot_sync(:'id', '1 minute');
DROP EXTENSION hubspot_sync;
