# A push runs as the owner of the students' table and runs nobody else's code
# as that role: not when the table changes hands or is replaced between request
# and run, not through views, casts or domains of others, and not through rows
# of progress_sources that somebody else wrote.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = HubspotSync::Simulator->start(contacts => 20, deals => 0, owners => 1);
my $server = HubspotSync::Server->new('push_takeover', simulator => $sim);

# Whatever runs notes as whom; only what runs as school or postgres is a theft.
$server->sql(<<~'SQL');
	CREATE ROLE school LOGIN;
	CREATE ROLE evil LOGIN;
	GRANT CREATE ON SCHEMA public TO school, evil;
	CREATE TABLE noted (who text);
	GRANT INSERT ON noted TO PUBLIC;
	CREATE FUNCTION note(t anyelement) RETURNS text LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO noted VALUES (current_user); RETURN 'x@example.com'; END $$;
	ALTER FUNCTION note(anyelement) OWNER TO evil;
	GRANT USAGE ON SCHEMA public TO evil;
	GRANT EXECUTE ON FUNCTION push_student_progress(), trigger_hubspot_sync(text) TO evil, school;
	SET ROLE school;
	CREATE TABLE users (id integer PRIMARY KEY, email text);
	CREATE TABLE user_xp (user_id integer, total_xp integer);
	GRANT SELECT ON users, user_xp TO evil;
	SQL
$server->sql(q{INSERT INTO users SELECT row_number() OVER (), value FROM (VALUES ('} .
	join(q{'), ('}, map { $_->{properties}{email} } grep { defined $_->{properties}{email} } $sim->objects('contacts')) .
	q{')) v(value)});
$server->sql('INSERT INTO user_xp SELECT id, 7 FROM users');

sub noted { return $server->sql('SELECT coalesce(string_agg(DISTINCT who, $$ $$), $$$$) FROM noted WHERE who <> $$evil$$'); }

sub push_ends
{
	my ($status, $what) = @_;
	my $run = $server->run_sync('progress');
	is($run->{status}, $status, "$what: the push ends $status") or diag($run->{stderr});
	is(noted(), '', '... and nothing of others ran as somebody else');
	return $server->log($run->{run_id});
}

push_ends('success', 'an ordinary school');

# ---------------------------------------------------------------------------
# The table that the role comes from
# ---------------------------------------------------------------------------

subtest 'students replaced after the request' => sub {
	my $id = $server->sql(<<~'SQL');
		ALTER TABLE users RENAME TO old_users;
		CREATE TABLE users (id integer PRIMARY KEY, email text);
		ALTER TABLE users OWNER TO postgres;
		BEGIN;
		SELECT push_student_progress();
		ALTER TABLE users RENAME TO postgres_users;
		SET LOCAL ROLE evil;
		CREATE VIEW users AS SELECT 1 AS id, note(1) AS email;
		COMMIT;
		SQL
	my $log = $server->wait_for($id);
	is($log->{status}, 'failed', 'the run fails');
	is($log->{error_details}{reason}, 'privilege', '... for want of privileges');
	is(noted(), '', '... and the view did not run');
	$server->sql('DROP VIEW users; DROP TABLE postgres_users; ALTER TABLE old_users RENAME TO users');
};

subtest 'students given to somebody else after the request' => sub {
	my $id = $server->sql(<<~'SQL');
		BEGIN;
		SELECT push_student_progress();
		ALTER TABLE users OWNER TO evil;
		COMMIT;
		SQL
	is($server->wait_for($id)->{status}, 'failed', 'the run fails');
	$server->sql('ALTER TABLE users OWNER TO school');
};

# ---------------------------------------------------------------------------
# Sources of others
# ---------------------------------------------------------------------------

subtest 'a view of somebody else in the place of a source' => sub {
	$server->sql(<<~'SQL');
		SET ROLE evil;
		CREATE VIEW user_streaks AS SELECT 1 AS user_id, length(note(1)) AS current_streak;
		CREATE VIEW a1_progress AS SELECT 1 AS user_id, note(1) AS unit_id;
		GRANT SELECT ON user_streaks, a1_progress TO PUBLIC;
		SQL
	my $log = push_ends('success', 'views of others');
	like($log->{error_details}{remark}, qr/user_streaks has another owner/, 'the run says what it left out');
	$server->sql('DROP VIEW user_streaks, a1_progress');
};

subtest 'a type of somebody else in a column' => sub {
	$server->sql(<<~'SQL');
		SET ROLE evil;
		CREATE TYPE mood AS ENUM ('completed', 'bad');
		CREATE CAST (mood AS text) WITH FUNCTION note(anyelement);
		RESET ROLE;
		GRANT USAGE ON TYPE mood TO school;
		SET ROLE school;
		CREATE TABLE a1_progress (user_id integer, unit_id integer, status mood);
		INSERT INTO a1_progress VALUES (1, 1, 'completed');
		SQL
	my $log = push_ends('success', 'a cast of others');
	like($log->{error_details}{remark}, qr/status of table public.a1_progress has a type of another role/, 'the run says so');
	is($server->sql('SELECT count(*) FROM progress_state'), $server->sql('SELECT count(*) FROM users'), 'the others are sent');
	$server->sql('DROP TABLE a1_progress');
};

# ---------------------------------------------------------------------------
# Configuration by others
# ---------------------------------------------------------------------------

subtest 'rows of progress_sources' => sub {
	$server->sql('GRANT SELECT, INSERT, UPDATE, DELETE ON progress_sources, sync_types TO evil');
	$server->sql('CREATE SCHEMA evil AUTHORIZATION evil; SET ROLE evil;
		CREATE TABLE evil.users (id integer PRIMARY KEY, email text)');
	my $before = $server->sql('SELECT string_agg(p::text, $$ $$ ORDER BY p::text) FROM progress_sources p');
	foreach my $statement (
		q{UPDATE progress_sources SET table_schema = 'evil' WHERE source = 'users'},
		q{UPDATE progress_sources SET columns = '{"email": "id"}' WHERE source = 'users'},
		q{INSERT INTO progress_sources (source, level, table_schema, table_name) VALUES ('level', 'a1', 'evil', 'nothing')},
		q{UPDATE progress_sources SET enabled = false WHERE source = 'user_xp'},
		q{INSERT INTO progress_sources (source, table_schema, table_name) VALUES ('users', 'evil', 'users')
			ON CONFLICT (source, level) DO UPDATE SET table_schema = 'evil'},
		q{UPDATE sync_types SET enabled = false WHERE sync_type = 'progress'})
	{
		like($server->sql_error($statement, user => 'evil'), qr/ERROR:  42501: must be a member of the role/,
			'refused: ' . $statement =~ s/\s+/ /gr);
	}
	is($server->sql('SELECT string_agg(p::text, $$ $$ ORDER BY p::text) FROM progress_sources p'), $before, 'nothing has changed');
	push_ends('success', 'as configured');

	# One who was a member once.
	$server->sql('GRANT school TO evil');
	$server->sql(q{UPDATE progress_sources SET columns = '{}' WHERE source = 'user_xp'}, user => 'evil');
	push_ends('success', 'configured by a member');
	$server->sql('REVOKE school FROM evil');
	like($server->sql_error('SELECT push_student_progress()'), qr/ERROR:  42501: role "evil" may not configure/,
		'... and by one no longer');
};

subtest 'the type deleted after the request' => sub {
	$server->sql(q{UPDATE progress_sources SET columns = '{}' WHERE source = 'user_xp'});
	my $id = $server->sql(<<~'SQL');
		BEGIN;
		SELECT push_student_progress();
		DELETE FROM sync_types WHERE sync_type = 'progress';
		COMMIT;
		SQL
	my $log = $server->wait_for($id);
	is($log->{status}, 'failed', 'the run fails');
	is($log->{error_details}{reason}, 'configuration', '... for its configuration');
	like($log->{error_details}{message}, qr/sync type "progress" was dropped or disabled meanwhile/, '... and says so');
};

done_testing();
