-- The settings: what there is, what each accepts, and who may see and set them.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;
LOAD 'hubspot_sync';

SELECT substr(name, 14) AS name, boot_val, unit, min_val, max_val, enumvals
FROM pg_settings WHERE name LIKE 'hubspot\_sync.%' ORDER BY 1;
-- All are described, and a superuser's, without a restart; the launcher, which
-- has no session, has its own from the server's configuration.
SELECT name, context FROM pg_settings WHERE name LIKE 'hubspot\_sync.%'
	AND (coalesce(short_desc, '') = '' OR context <> 'superuser' OR pending_restart)
ORDER BY name;

-- Units are understood, ranges enforced.
SET hubspot_sync.overlap = '10min';
SHOW hubspot_sync.overlap;
SET hubspot_sync.max_response_size = '1MB';
SHOW hubspot_sync.max_response_size;
SET hubspot_sync.connect_timeout = '2s';
SHOW hubspot_sync.connect_timeout;
SET hubspot_sync.connect_timeout = '1 kB';
\echo :SQLSTATE
WITH number AS (
	SELECT name, min_val::bigint, max_val::bigint
	FROM pg_settings WHERE name LIKE 'hubspot\_sync.%' AND vartype = 'integer'
		AND context = 'superuser'
), tried AS (
	SELECT name, value, expected,
		outcome(format('SET LOCAL %s = %s', name, value)) AS got
	FROM number CROSS JOIN LATERAL (VALUES
		(min_val - 1, '22023'), (min_val, 'ok'), (max_val, 'ok'), (max_val + 1, '22023')
	) v (value, expected)
)
SELECT count(*) AS tried, count(*) FILTER (WHERE split_part(got, ':', 1) <> expected) AS wrong
FROM tried;
SET hubspot_sync.schedule_time_zone = 'Europe/Madrid';
SET hubspot_sync.schedule_time_zone = 'Mars/Olympus';
\echo :SQLSTATE
RESET hubspot_sync.schedule_time_zone;
ALTER SYSTEM SET hubspot_sync.databases = 'school, "My School"';
ALTER SYSTEM SET hubspot_sync.databases = 'school,,';
\echo :SQLSTATE
SELECT string_agg('school' || n, ', ') AS many FROM generate_series(1, 65) n \gset
ALTER SYSTEM SET hubspot_sync.databases = :'many';
\echo :SQLSTATE
ALTER SYSTEM RESET hubspot_sync.databases;
-- Misspelt ones are errors, not placeholders.
SET hubspot_sync.api_ur = 'https://api.hubapi.com';
\echo :SQLSTATE

-- The API's address decides where the token goes: TLS, or this very machine.
SELECT url FROM unnest(ARRAY[
	'https://api.hubapi.com',
	'https://api.hubapi.com/',
	'https://eu.example.com:8443/base/path',
	'https://[2001:db8::1]:8443',
	'https://10.0.0.1',
	'http://127.0.0.1',
	'http://127.0.0.1:8080',
	'http://127.0.0.1:8080/base',
	'http://127.255.0.7:1',
	'http://localhost',
	'http://localhost:8080/',
	'http://[::1]',
	'http://[::1]:8080'
]) url WHERE outcome(format('SET LOCAL hubspot_sync.api_url = %L', url)) <> 'ok';
SELECT url FROM unnest(ARRAY[
	'', ' ', '/', 'api.hubapi.com', '//api.hubapi.com', 'https', 'https:', 'https:/',
	'https://', 'https:///', 'https:///path', 'https://:443', 'https://:443/path',
	-- other protocols
	'http://api.hubapi.com', 'ftp://127.0.0.1', 'ftp://api.hubapi.com', 'file:///etc/passwd',
	'gopher://127.0.0.1', 'httpshttps://api.hubapi.com', ' https://api.hubapi.com',
	-- a host behind user information
	'https://a@b', 'https://user:word@api.hubapi.com', 'https://api.hubapi.com@evil.example',
	'https://api.hubapi.com:443@evil.example', 'http://127.0.0.1@evil.example',
	'http://127.0.0.1:8080@evil.example', 'http://localhost:80@evil.example',
	'https://api.hubapi.com%40evil.example@x',
	-- more than scheme, host, port and path
	'https://api.hubapi.com?x=y', 'https://api.hubapi.com/?x=y', 'https://api.hubapi.com#x',
	'https://api.hubapi.com/#x', 'https://api.hubapi.com\@evil.example',
	'https://evil.example\.hubapi.com', 'https://api.hubapi.com /', 'https://api.hubapi.com ',
	E'https://api.hubapi.com\n', E'https://api.hubapi.com\r\nHost: evil.example',
	E'https://api\t.hubapi.com',
	-- names and addresses that only look like loopback
	'http://127.0.0.1.evil.example', 'http://127.0.0.1.evil.example:8080',
	'http://localhost.evil', 'http://localhost.evil.example', 'http://localhosts',
	'http://xlocalhost', 'http://evil.example/127.0.0.1', 'http://evil.example/localhost',
	'http://127.0.0.1evil', 'http://[::1].evil.example', 'http://[::1]evil.example',
	'http://[::1', 'http://::1', 'http://[::2]', 'http://[::ffff:10.0.0.1]', 'http://[]',
	'http://128.0.0.1', 'http://0.0.0.0', 'http://10.0.0.1', 'http://192.168.0.1',
	'http://127.0.0.256', 'http://127.0.0.1.', 'http://0127.0.0.1', 'http://1',
	-- ports
	'https://api.hubapi.com:', 'https://api.hubapi.com:x', 'https://api.hubapi.com:443x',
	'https://api.hubapi.com:0', 'https://api.hubapi.com:65536', 'https://api.hubapi.com:99999',
	'https://api.hubapi.com:-1', 'https://api.hubapi.com:443:443', 'http://127.0.0.1:8080.evil.example',
	'http://127.0.0.1:123456', 'http://localhost:', 'http://[::1]:', 'http://[::1]:x'
]) url WHERE split_part(outcome(format('SET LOCAL hubspot_sync.api_url = %L', url)), ':', 1)
	<> '22023';
-- The message says why.
SET hubspot_sync.api_url = 'http://api.hubapi.com';
SET hubspot_sync.api_url = 'ftp://127.0.0.1';
SET hubspot_sync.api_url = 'https://user:word@api.hubapi.com';
SET hubspot_sync.api_url = 'https://:443';
-- The same where it is set for others.
ALTER DATABASE :"DBNAME" SET hubspot_sync.api_url = 'http://evil.example';
\echo :SQLSTATE

SET hubspot_sync.api_version = '2026-03';
SHOW hubspot_sync.api_version;
SET hubspot_sync.api_version = '2026-09';
SHOW hubspot_sync.api_version;
SET hubspot_sync.api_version = 'v3';
\echo :SQLSTATE
SET hubspot_sync.api_version = '';
\echo :SQLSTATE
RESET ALL;

-- Who is no superuser cannot set any of them, and does not even see those that
-- name places.
CREATE ROLE regress_hubspot_anna;
CREATE TEMP TABLE setting AS
	SELECT name, setting AS value FROM pg_settings
	WHERE name LIKE 'hubspot\_sync.%' AND context = 'superuser';
GRANT SELECT ON setting TO regress_hubspot_anna;
SET hubspot_sync.proxy = 'http://user:secret@127.0.0.1:3128';
SET ROLE regress_hubspot_anna;
SELECT count(*) AS settings, count(*) FILTER (WHERE
	outcome(format('SET %s = %L', name, value)) LIKE '42501:%') AS refused
FROM setting;
SELECT name AS hidden FROM setting WHERE name NOT IN (SELECT name FROM pg_settings)
ORDER BY name;
\set VERBOSITY sqlstate
SET hubspot_sync.api_url = 'https://evil.example';
SELECT set_config('hubspot_sync.access_token_file', '/etc/passwd', false);
SHOW hubspot_sync.access_token_file;
SELECT current_setting('hubspot_sync.proxy');
\set VERBOSITY default
SELECT current_setting('hubspot_sync.overlap') IS NOT NULL AS seen;
RESET ROLE;

-- Nor by setting them before the library is loaded.
GRANT EXECUTE ON FUNCTION unschedule_hubspot_sync TO regress_hubspot_anna;
\c -
SET client_min_messages = error;
SET ROLE regress_hubspot_anna;
DO $$
BEGIN
	PERFORM set_config('hubspot_sync.api_url', 'https://evil.example', false);
	PERFORM set_config('hubspot_sync.overlap', '1', false);
EXCEPTION WHEN insufficient_privilege THEN
	NULL;		-- the library was preloaded
END
$$;
SELECT unschedule_hubspot_sync() IS NOT NULL AS loaded;
RESET ROLE;
RESET client_min_messages;
SELECT name, setting FROM pg_settings
WHERE name LIKE 'hubspot\_sync.%' AND (source = 'session' OR setting = 'https://evil.example');
SHOW hubspot_sync.api_url;

DROP EXTENSION hubspot_sync;
DROP ROLE regress_hubspot_anna;
