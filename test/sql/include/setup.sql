-- Read by every regression test that may start runs.
\set ECHO none
-- Whatever this server is configured for, no run of a test may reach HubSpot:
-- the address is the discard port of this machine, and there is no token.
ALTER DATABASE :"DBNAME" SET hubspot_sync.api_url = 'http://127.0.0.1:9';
ALTER DATABASE :"DBNAME" SET hubspot_sync.access_token_file = '';
\c -
-- What waits for ever is wrong.
SET statement_timeout = '30s';
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_hubspot_anna, regress_hubspot_berta,
	regress_hubspot_clara;

-- Executes a statement and says how it went: "ok" or SQLSTATE and message.
-- What it did stays done only if it went well.
CREATE OR REPLACE FUNCTION outcome(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	message text;
BEGIN
	EXECUTE statement;
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
	RETURN SQLSTATE || ': ' || message;
END
$$;

-- Waits until no worker of the extension has been there for a moment: those of
-- the last transaction may be still to come, and the postmaster takes note of
-- one's end a little later.
CREATE OR REPLACE PROCEDURE workers_gone() LANGUAGE plpgsql AS $$
DECLARE
	quiet integer := 0;
BEGIN
	FOR i IN 1 .. 1000 LOOP
		quiet := CASE WHEN EXISTS (SELECT FROM pg_stat_activity
			WHERE backend_type = 'hubspot_sync' AND datname = current_database())
			THEN 0 ELSE quiet + 1 END;
		EXIT WHEN quiet > 15;
		COMMIT;
		PERFORM pg_sleep(0.02); -- sleep: between two looks
	END LOOP;
END
$$;
RESET client_min_messages;
\set ECHO all
