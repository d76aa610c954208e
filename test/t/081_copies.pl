# A copy of a database, restored from a dump or made from a template, never
# calls HubSpot by itself: requests are refused and the launcher stays quiet
# until somebody who may says that it takes the original's place. The original
# notices nothing of it, and a database that only got another name is no copy.
# hubspot_sync.enabled = off keeps any database quiet.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Dump qw(dump_database restore_dump table_text same_table);
use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

use constant CONTACTS => 150;

# As many transactions as a launcher's visits to a quiet database surely do.
use constant VISITS => 6;

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => 30, owners => 4);
my $server = HubspotSync::Server->new('copies', simulator => $sim, extension => 0, preload => 1,
	conf => { 'hubspot_sync.launcher_interval' => '1s', autovacuum => 'off' });

# The extension's owner is no superuser any more, and has a member.
$server->sql(<<~'SQL');
	CREATE ROLE chief LOGIN SUPERUSER;
	CREATE ROLE deputy LOGIN IN ROLE chief;
	CREATE ROLE operator LOGIN;
	CREATE DATABASE origin
	SQL
my $origin = $server->in('origin');
$origin->sql('CREATE EXTENSION hubspot_sync', user => 'chief');
$origin->sql(<<~'SQL');
	ALTER ROLE chief NOSUPERUSER;
	GRANT EXECUTE ON FUNCTION trigger_hubspot_sync(text), adopt_hubspot_sync() TO operator, deputy;
	GRANT EXECUTE ON PROCEDURE run_hubspot_sync(text, text, text, text, uuid, text, integer, integer) TO operator, deputy;
	-- so that the launcher has nothing to do with the other types
	UPDATE sync_types SET "interval" = NULL, run_at = NULL WHERE sync_type <> 'contacts';
	UPDATE sync_types SET "interval" = '10 seconds' WHERE sync_type = 'contacts'
	SQL
is($origin->run_sync('contacts', 'full')->{status}, 'success', 'a run in the original');

# Runs that were under way when the copy was made, one of them just requested.
my %open = map { $_->[0] => $origin->sql(<<~"SQL") } ([ 'deals', 'running' ], [ 'owners', 'pending' ]);
	INSERT INTO sync_runs SELECT r.* FROM sync_runs o, jsonb_populate_record(o, jsonb_build_object(
			'id', gen_random_uuid(), 'sync_type', '$_->[0]', 'status', '$_->[1]', 'completed_at', NULL,
			'created_at', clock_timestamp(), 'updated_at', clock_timestamp())) r
	WHERE o.sync_type = 'contacts' RETURNING id
	SQL

$server->sql('CREATE DATABASE templated TEMPLATE origin; CREATE DATABASE restored');
is(restore_dump($server->in('restored'), dump_database($origin)), '', 'a dump is restored');
my $original_home = table_text($origin, 'sync_home');

# What a refused request says.
sub refused
{
	my ($database, $sql, $message, $hint, %options) = @_;
	my $before = $database->sql('SELECT count(*) FROM sync_runs');
	my $error = $database->sql_error($sql, %options);
	like($error, qr/ERROR:  55000: $message/, "$sql is refused");
	like($error, qr/HINT:  .*$hint/, '... with a hint');
	is($database->sql('SELECT count(*) FROM sync_runs'), $before, '... and leaves no run');
	return;
}

my @requests = (q{SELECT trigger_hubspot_sync('contacts')}, q{SELECT trigger_hubspot_sync('contacts', 'full')},
	q{CALL run_hubspot_sync('contacts')});

# The launcher visits a database where a run is due and does nothing there.
sub launcher_is_quiet
{
	my ($database) = @_;
	my $name = $database->database;
	my $runs = table_text($database, 'sync_runs');
	is($database->sql('SELECT next_run_at <= now() FROM sync_schedules'), 't', 'a run is due');
	my $commits = "(SELECT xact_commit FROM pg_stat_database WHERE datname = '$name')";
	my $before = $server->sql("SELECT $commits");
	$sim->clear_journal;
	$server->reload('hubspot_sync.databases' => $name);
	$server->poll_until("SELECT $commits >= $before + ${\VISITS}");
	$server->reload('hubspot_sync.databases' => '');
	same_table($database, 'sync_runs', $runs, 'the launcher has started no run, nor closed one');
	is(scalar $sim->requests, 0, '... and HubSpot was not asked');
	return;
}

sub make_due
{
	my ($database) = @_;
	$database->sql(q{UPDATE sync_runs SET created_at = created_at - interval '1 hour' WHERE status = 'success'});
	return;
}

# The launcher starts the run that is due.
sub launcher_is_busy
{
	my ($database) = @_;
	$server->reload('hubspot_sync.databases' => $database->database);
	$database->poll_until(q{SELECT count(*) > 0 FROM sync_logs
		WHERE trigger_source = 'launcher' AND status = 'success' AND created_at > now() - interval '30 minutes'});
	$server->reload('hubspot_sync.databases' => '');
	pass('the launcher starts a run');
	return;
}

sub adopted_by
{
	my ($database, $user) = @_;
	my ($status, $out, $err) = $database->psql('SELECT adopt_hubspot_sync()', defined $user ? (user => $user) : ());
	return "$status $err";
}

foreach my $how (qw(templated restored))
{
	subtest "$how copy" => sub {
		my $copy = $server->in($how);
		$sim->clear_journal;
		foreach my $sql (@requests)
		{
			refused($copy, $sql, 'this database is a copy of the one that hubspot_sync was set up in',
				qr/call adopt_hubspot_sync\(\)/);
		}
		refused($copy, $requests[0], 'this database is a copy', qr/adopt_hubspot_sync/, user => 'operator');
		is(scalar $sim->requests, 0, 'HubSpot was not asked');
		is($copy->log($open{$_})->{status}, 'failed', "the run of $_ that was under way reads as failed")
		  foreach sort keys %open;
		is($copy->sql(q{SELECT count(*) FROM get_latest_sync_status()}), 4, 'the status can be read');
		make_due($copy);
		launcher_is_quiet($copy);

		like(adopted_by($copy, 'operator'), qr/^[^0].*must be superuser or the extension's owner/,
			'EXECUTE is not enough to adopt');
		like($copy->sql_error('SELECT adopt_hubspot_sync()', user => 'operator'), qr/ERROR:  42501/, '... 42501');
		if ($how eq 'restored')
		{
			like($copy->sql_error('SELECT adopt_hubspot_sync()', user => 'deputy'), qr/ERROR:  42501/,
				"the original's owner is not the copy's");
		}
		refused($copy, $requests[0], 'this database is a copy', qr/adopt_hubspot_sync/);

		$copy->sql('BEGIN; SELECT adopt_hubspot_sync(); ROLLBACK');
		refused($copy, $requests[0], 'this database is a copy', qr/adopt_hubspot_sync/);
		is(adopted_by($copy, $how eq 'templated' ? 'deputy' : undef), '0 ',
			$how eq 'templated' ? "a member of the extension's owner may" : 'a superuser may');
		is($copy->sql(q{SELECT count(*) FROM sync_runs WHERE status IN ('pending', 'running')}), 0,
			'what was under way is closed');
		is($copy->sql("SELECT status, error_details ->> 'reason' FROM sync_runs WHERE id = '$open{$_}'"),
			'failed|interrupted', "... the run of $_ as interrupted") foreach sort keys %open;
		my $home = table_text($copy, 'sync_home');
		like(adopted_by($copy), qr/^0 .*NOTICE:  hubspot_sync is at home in this database already/,
			'once more is a notice');
		same_table($copy, 'sync_home', $home, '... and changes nothing');

		is($copy->run_sync('contacts', 'auto')->{status}, 'success', 'a run works');
		is($copy->run_sync($_)->{status}, 'success', "... of $_ too") foreach sort keys %open;
		make_due($copy);
		launcher_is_busy($copy);
	};
}

subtest 'the original' => sub {
	same_table($origin, 'sync_home', $original_home, 'is where it was');
	is($origin->sql('SELECT count(*) FROM sync_runs'), 3, 'no run was made in it');
	is($origin->run_sync('contacts')->{status}, 'success', 'runs work');
	like(adopted_by($origin), qr/NOTICE:  hubspot_sync is at home/, 'it needs no adoption');
};

subtest 'a copy of a copy' => sub {
	$server->sql('CREATE DATABASE second TEMPLATE restored');
	my $copy = $server->in('second');
	refused($copy, $requests[0], 'this database is a copy', qr/adopt_hubspot_sync/);
	is(restore_into_original(), '', 'a dump of an adopted copy is restored under the name of the original');
	refused($server->in('origin_again'), $requests[0], 'this database is a copy', qr/adopt_hubspot_sync/);
};

sub restore_into_original
{
	$server->sql('CREATE DATABASE origin_again');
	return restore_dump($server->in('origin_again'), dump_database($server->in('restored')));
}

subtest 'another name' => sub {
	$server->sql('ALTER DATABASE origin RENAME TO renamed');
	my $renamed = $server->in('renamed');
	is($renamed->run_sync('contacts')->{status}, 'success', 'is no copy');
	make_due($renamed);
	launcher_is_busy($renamed);
	$server->sql('ALTER DATABASE renamed RENAME TO origin');
};

subtest 'hubspot_sync.enabled' => sub {
	make_due($origin);
	$server->reload('hubspot_sync.enabled' => 'off');
	refused($origin, $_, 'synchronisation is switched off', qr/"hubspot_sync\.enabled"/) foreach @requests;
	launcher_is_quiet($origin);
	like($origin->sql_error("SET hubspot_sync.enabled = on; $requests[0]"),
		qr/ERROR:  55000: settings changed in this session .*hubspot_sync\.enabled/, 'a session cannot go its own way');
	like($origin->sql_error('SET hubspot_sync.enabled = on', user => 'operator'), qr/ERROR:  42501/,
		'... and who is no superuser cannot even try');
	$server->reload('hubspot_sync.enabled' => 'on');
	launcher_is_busy($origin);

	make_due($origin);
	$server->sql('ALTER DATABASE origin SET hubspot_sync.enabled = off');
	refused($origin, $requests[0], 'synchronisation is switched off', qr/"hubspot_sync\.enabled"/);
	launcher_is_quiet($origin);
	is($server->in('restored')->run_sync('contacts')->{status}, 'success', 'off for one database, on for others');
	$server->sql('ALTER DATABASE origin RESET hubspot_sync.enabled');
	is($origin->run_sync('contacts')->{status}, 'success', 'on again');
};

done_testing();
