# Nobody gets anything that was not granted, whatever the database's default
# privileges say; who may start a run starts it as the target's owner and
# learns nothing; who configured a type must still be a member of that owner.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = HubspotSync::Simulator->start(contacts => 20, deals => 5, owners => 2, companies => 15);
my $server = HubspotSync::Server->new('privileges', simulator => $sim);
$server->sql('CREATE ROLE nobody LOGIN; CREATE ROLE anon LOGIN; CREATE ROLE authenticated LOGIN');

# All that a role may do with members of the extension.
my $granted = <<~'SQL';
	WITH member AS (
		SELECT classid, objid FROM pg_depend
		WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
			AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hubspot_sync'))
	SELECT coalesce(string_agg(what, ', ' ORDER BY what), '') FROM (
		SELECT p || ' on ' || objid::regclass AS what
		FROM member, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
		WHERE classid = 'pg_class'::regclass AND (SELECT relkind IN ('r', 'v') FROM pg_class WHERE oid = objid)
			AND has_table_privilege('ROLE', objid, p)
		UNION ALL
		SELECT 'column of ' || objid::regclass FROM member
		WHERE classid = 'pg_class'::regclass AND (SELECT relkind IN ('r', 'v') FROM pg_class WHERE oid = objid)
			AND has_any_column_privilege('ROLE', objid, 'SELECT, INSERT, UPDATE, REFERENCES')
		UNION ALL
		SELECT objid::regprocedure::text FROM member
		WHERE classid = 'pg_proc'::regclass AND has_function_privilege('ROLE', objid, 'EXECUTE')
		UNION ALL
		SELECT objid::regtype::text FROM member
		WHERE classid = 'pg_type'::regclass AND (SELECT typtype = 'e' FROM pg_type WHERE oid = objid)
			AND has_type_privilege('ROLE', objid, 'USAGE')) g
	SQL

sub nothing_granted
{
	my ($role, %options) = @_;
	is($server->sql($granted =~ s/ROLE/$role/gr, %options), '', "$role has no privilege on anything");
	return;
}

sub refused
{
	my ($role, $sql, $what) = @_;
	like($server->sql_error($sql, user => $role), qr/ERROR:  42501: /, "$role: $what is refused");
	return;
}

subtest 'a role without privileges' => sub {
	nothing_granted('nobody');
	my $before = $server->sql('SELECT count(*) FROM sync_runs');
	refused('nobody', "SELECT * FROM $_", $_) foreach qw(sync_connections sync_types sync_fields sync_runs sync_logs
	  sync_run_states sync_errors sync_state sync_rows contacts deals staff);
	my %calls = (
		trigger_hubspot_sync => q{SELECT trigger_hubspot_sync('contacts')},
		'trigger_hubspot_sync with a mode' => q{SELECT trigger_hubspot_sync('contacts', 'full')},
		run_hubspot_sync => q{CALL run_hubspot_sync('contacts')},
		wait_for_hubspot_sync => q{CALL wait_for_hubspot_sync(gen_random_uuid())},
		cancel_hubspot_sync => q{SELECT cancel_hubspot_sync(gen_random_uuid())},
		get_latest_sync_status => q{SELECT get_latest_sync_status()},
		test_hubspot_connection => q{SELECT test_hubspot_connection()},
		schedule_hubspot_sync => q{SELECT schedule_hubspot_sync()},
		unschedule_hubspot_sync => q{SELECT unschedule_hubspot_sync()});
	refused('nobody', $calls{$_}, $_) foreach sort keys %calls;
	is($server->sql('SELECT count(*) FROM sync_runs'), $before, 'nothing was started');
	is(scalar $sim->requests, 0, '... nor HubSpot asked');

	# Settings of a library that is not loaded are nobody's secret.
	$server->sql("ALTER ROLE nobody SET session_preload_libraries = 'hubspot_sync'");
	foreach my $setting (qw(access_token_file api_url proxy ca_file))
	{
		refused('nobody', "SHOW hubspot_sync.$setting", "SHOW of $setting");
		refused('nobody', "SET hubspot_sync.$setting = 'https://example.com'", "SET of $setting");
	}
	is($server->sql(q{SELECT count(*) FROM pg_settings WHERE name IN ('hubspot_sync.access_token_file',
		'hubspot_sync.api_url', 'hubspot_sync.proxy', 'hubspot_sync.ca_file')}, user => 'nobody'), 0, 'pg_settings does not show them');
};

subtest 'default privileges as on Supabase' => sub {
	$server->sql('CREATE DATABASE supabase');
	$server->sql(<<~'SQL', database => 'supabase');
		ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated;
		ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON ROUTINES TO anon, authenticated;
		ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated;
		ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
		ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO anon WITH GRANT OPTION;
		ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO anon;
		CREATE TABLE before (id int);
		CREATE EXTENSION hubspot_sync;
		SQL
	is($server->sql(q{SELECT has_table_privilege('anon', 'before', 'SELECT')}, database => 'supabase'), 't',
		'an ordinary table goes to anon');
	nothing_granted($_, database => 'supabase') foreach qw(anon authenticated nobody);
};

# A type of an ordinary owner, configured by somebody else.
$server->sql(<<~'SQL');
	CREATE ROLE app_owner LOGIN;
	CREATE ROLE configurator LOGIN IN ROLE app_owner;
	CREATE ROLE starter LOGIN;
	CREATE SCHEMA app AUTHORIZATION app_owner;
	GRANT INSERT ON sync_types, sync_fields TO configurator;
	GRANT EXECUTE ON FUNCTION trigger_hubspot_sync(text) TO starter;
	SET ROLE app_owner;
	CREATE TABLE app.customers (id text PRIMARY KEY, name text);
	CREATE TABLE app.seen_as (session_name name, current_name name);
	CREATE FUNCTION app.note_user() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO app.seen_as VALUES (session_user, current_user); RETURN NULL; END $$;
	CREATE TRIGGER note_user AFTER INSERT ON app.customers FOR EACH ROW EXECUTE FUNCTION app.note_user();
	SQL
$server->sql(<<~'SQL', user => 'configurator');
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, delete_policy)
		VALUES ('customers', 'companies', 'app', 'customers', '{id}', 'ignore');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('customers', 'name', 'name');
	SQL

subtest 'a role that may start runs' => sub {
	my $id = $server->sql(q{SELECT trigger_hubspot_sync('customers')}, user => 'starter');
	my $log = $server->wait_for($id);
	is($log->{status}, 'success', 'it can');
	is($log->{requested_by}, 'starter', '... and is noted');
	is($server->sql('SELECT DISTINCT session_name, current_name FROM app.seen_as'), 'app_owner|app_owner',
		"the run is the target's owner");
	is($server->sql('SELECT count(*) FROM app.customers'), 15, '... and stores the records');
	refused('starter', 'SELECT * FROM app.customers', 'the table');
	refused('starter', "SELECT * FROM sync_logs WHERE id = '$id'", 'the log');
	refused('starter', q{SELECT trigger_hubspot_sync('customers', 'full')}, 'another mode');
	refused('starter', "SELECT cancel_hubspot_sync('$id')", 'a cancel');
	like($server->sql_error(q{SELECT trigger_hubspot_sync('nonsense')}, user => 'starter'),
		qr/ERROR:  42704: unknown sync type "nonsense"/, 'it learns of unknown types');

	$id = $server->sql(q{SELECT trigger_hubspot_sync('contacts')}, user => 'starter');
	is($server->wait_for($id)->{status}, 'success', "a type of the extension's owner works too");
	refused('starter', 'SELECT * FROM contacts', 'its table');
};

subtest 'settings of a session' => sub {
	foreach my $sql (q{SET hubspot_sync.api_url = 'http://127.0.0.1:9'}, q{SET hubspot_sync.max_retries = 1})
	{
		my ($name) = $sql =~ /(hubspot_sync\.\w+)/;
		like($server->sql_error("$sql; SELECT trigger_hubspot_sync('customers')"),
			qr/ERROR:  55000: settings changed in this session would not reach the run: \Q$name\E/,
			"$name changed in a session: refused");
	}
};

subtest 'whoever configured a type is no longer a member of the owner' => sub {
	my $refusal = qr/role "configurator" may not configure sync type "customers"/;
	my $id = $server->sql(q{BEGIN; SELECT trigger_hubspot_sync('customers'); REVOKE app_owner FROM configurator; COMMIT});
	my $log = $server->wait_for($id);
	is($log->{status}, 'failed', 'a run that was requested before is refused when it starts');
	is($log->{error_details}{reason}, 'privilege', '... for want of privilege');
	like($log->{error_details}{message}, $refusal, '... naming the role');
	$sim->clear_journal;
	my $before = $server->sql('SELECT count(*) FROM sync_runs');
	like($server->sql_error(q{SELECT trigger_hubspot_sync('customers')}), qr/ERROR:  42501: $refusal/,
		'later ones are refused at once');
	is($server->sql('SELECT count(*) FROM sync_runs'), $before, '... and leave nothing');
	is(scalar $sim->requests, 0, '... nor is HubSpot asked');

	$server->sql('GRANT app_owner TO configurator');
	is($server->run_sync('customers')->{status}, 'success', 'a member again, it counts again');
	$server->sql('ALTER ROLE configurator RENAME TO renamed');
	like($server->sql_error(q{SELECT trigger_hubspot_sync('customers')}), qr/ERROR:  42501: $refusal/,
		'a role that is gone does not count');
	$server->sql('ALTER ROLE renamed RENAME TO configurator');
};

subtest 'a target that changes its owner' => sub {
	$server->sql('CREATE ROLE heir LOGIN');
	$server->sql('ALTER TABLE app.customers OWNER TO heir');
	like($server->sql_error(q{SELECT trigger_hubspot_sync('customers')}), qr/ERROR:  42501: /,
		'its configuration does not count any more');
	$server->sql('ALTER TABLE app.customers OWNER TO app_owner');
	my $id = $server->sql(q{BEGIN; SELECT trigger_hubspot_sync('customers');
		ALTER TABLE app.customers OWNER TO heir; GRANT heir TO configurator; COMMIT});
	my $log = $server->wait_for($id);
	is($log->{status}, 'failed', 'a run requested before is no run of the new owner');
	like($log->{error_details}{message}, qr/has changed its owner/, '... and says why');
	$server->sql('ALTER TABLE app.customers OWNER TO app_owner');
};

subtest 'an owner that may not log in' => sub {
	$server->sql('ALTER ROLE app_owner NOLOGIN');
	my $error = $server->sql_error(q{SELECT trigger_hubspot_sync('customers')});
	if ($server->sql('SHOW server_version_num') < 170000)
	{
		like($error, qr/ERROR:  55000: role "app_owner", .* is not permitted to log in/, 'is refused');
		like($error, qr/HINT:  Use ALTER ROLE/, '... with a hint');
	}
	else
	{
		is($error, '', 'is no obstacle');
	}
	$server->sql('ALTER ROLE app_owner LOGIN');
	is($server->run_sync('customers')->{status}, 'success', 'once it may, the run succeeds');
};

done_testing();
