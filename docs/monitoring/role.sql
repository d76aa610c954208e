-- A role that may read what queries.yaml asks for, and nothing else: no synchronised record, no record that failed, no
-- message, no token; it can start nothing. As a superuser or the extension's owner, in the database to watch:
--
--   psql -d crm -v schema=public -f role.sql
--
-- schema is the one that hubspot_sync was created in. It is named here and nowhere else: the role's search_path leads
-- the queries to it.

\set ON_ERROR_STOP on
BEGIN;
SELECT current_database() AS database \gset

CREATE ROLE hubspot_monitor LOGIN CONNECTION LIMIT 5;
ALTER ROLE hubspot_monitor IN DATABASE :"database" SET search_path = :"schema";
-- Compiling such queries takes longer than executing them, should the planner
-- have no statistics and choose to.
ALTER ROLE hubspot_monitor IN DATABASE :"database" SET jit = off;
ALTER ROLE hubspot_monitor IN DATABASE :"database" SET statement_timeout = '10s';
ALTER ROLE hubspot_monitor IN DATABASE :"database" SET default_transaction_read_only = on;

GRANT CONNECT ON DATABASE :"database" TO hubspot_monitor;
GRANT USAGE ON SCHEMA :"schema" TO hubspot_monitor;
SET LOCAL search_path = :"schema";
GRANT SELECT (sync_type, enabled) ON sync_types TO hubspot_monitor;
GRANT SELECT (connection_id, name, token_expires_at) ON sync_connections TO hubspot_monitor;
GRANT SELECT (connection_id, sync_type, status, mode, created_at, completed_at, duration_ms) ON sync_logs TO hubspot_monitor;
GRANT SELECT (connection_id, sync_type, alert, severity) ON sync_alerts TO hubspot_monitor;
GRANT SELECT (connection, under_way, open_errors, alerts) ON integration_health TO hubspot_monitor;
GRANT SELECT ON sync_statistics TO hubspot_monitor;
GRANT EXECUTE ON FUNCTION get_hubspot_rate_limits() TO hubspot_monitor;
COMMIT;
