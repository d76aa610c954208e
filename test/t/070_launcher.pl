# Where the library is preloaded, the launcher starts what is due in the
# databases it is told to look after, and nothing else; it stands in nobody's
# way, and whatever happens to a run, a database or the server, it goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant {
	TICK => 1,      # launcher_interval in seconds
	PROMPT => 1,    # seconds that the extension may take
	SLACK => 2,     # seconds that a busy machine may take besides
	STALL => 8,     # seconds for which it may stand still, where what else could happen takes longer
	WORKERS => 8,   # where there shall be few
};

my $sharedir = qx{pg_config --sharedir};
chomp $sharedir;
my $has_pg_cron = -f "$sharedir/extension/pg_cron.control";

my $sim = HubspotSync::Simulator->start(contacts => 30, deals => 10, owners => 3, companies => 5);
my $server = HubspotSync::Server->new(
	'launcher',
	simulator => $sim,
	conf => {
		'shared_preload_libraries' => $has_pg_cron ? 'pg_cron,hubspot_sync' : 'hubspot_sync',
		'cron.database_name' => $has_pg_cron ? 'postgres' : undef,
		'cron.use_background_workers' => $has_pg_cron ? 'on' : undef,
		'hubspot_sync.launcher_interval' => TICK . 's',
		'max_worker_processes' => 16,
		'restart_after_crash' => 'on',
		# Says when the launcher sends somebody.
		'log_min_messages' => 'debug1' });
my $second = 'Sales DB';
$server->sql(qq{CREATE DATABASE "$second"});
$server->sql('CREATE EXTENSION hubspot_sync', database => $second);

# The databases in which it has to start runs.
my @looked_after;

sub look_after
{
	my (@databases) = @_;
	@looked_after = @databases;
	$server->reload('hubspot_sync.databases' => join ', ', map { qq{"$_"} } @databases);
	return;
}

# Waits until the launcher has been in every database once more: what it has
# not done by then it does not do.
sub wait_for_visits
{
	my ($position) = @_;
	$position //= $server->log_position;
	wait_until('the launcher has sent visitors', sub {
		my $sent = () = $server->log_text($position) =~ /starting background worker process "hubspot_sync visitor"/g;
		return $sent > 2 * @looked_after;
	});
	return;
}

# When the server's log had a message, in seconds.
sub log_times
{
	my ($position, $message) = @_;
	my @seconds;
	my $log = $server->log_text($position);
	while ($log =~ / (\d\d):(\d\d):(\d\d\.\d+) .*$message/g)
	{
		push @seconds, 60 * (60 * $1 + $2) + $3;
		$seconds[-1] += 24 * 60 * 60 if $seconds[-1] < $seconds[0];
	}
	return @seconds;
}

# The runs of a type that the launcher has started, as they ended.
sub launched
{
	my ($type, %options) = @_;
	return $server->sql(
		"SELECT count(*) FROM sync_logs WHERE sync_type = '$type' AND trigger_source = 'launcher'", %options);
}

sub wait_for_launched
{
	my ($type, $number, %options) = @_;
	wait_until("the launcher has started $type for the ${number}th time and it has succeeded", sub {
		$server->sql("SELECT count(*) FROM sync_logs WHERE sync_type = '$type'
			AND trigger_source = 'launcher' AND status = 'success'", %options) >= $number;
	});
	return;
}

# Makes all runs of a type so much older.
sub age
{
	my ($type, $interval, %options) = @_;
	$server->sql("UPDATE sync_runs SET created_at = created_at - interval '$interval' WHERE sync_type = '$type'", %options);
	return;
}

sub hang
{
	my ($path) = @_;
	$sim->clear_journal;
	$sim->fault(path => $path // '/crm/', times => 0, action => 'hang');
	return;
}

sub wait_until_idle
{
	my (%options) = @_;
	wait_until('nothing runs', sub {
		$server->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync'}) == 0;
	});
	return;
}

# The process id of the launcher, undef if there is none.
sub launcher_pid
{
	my $postmaster = (split /\n/, slurp_file($server->node->data_dir . '/postmaster.pid'))[0];
	foreach my $pid (map { m{^/proc/(\d+)$} } glob '/proc/[0-9]*')
	{
		# It may be gone by now.
		my ($stat, $title) = map { eval { slurp_file("/proc/$pid/$_") } // '' } qw(stat cmdline);
		return $pid if $title =~ /hubspot_sync launcher/ && $stat =~ /^\d+ \(.*\) \S+ $postmaster /s;
	}
	return undef;
}

sub prompt
{
	my ($what, $since) = @_;
	my $seconds = time - $since;
	cmp_ok($seconds, '<', PROMPT + SLACK, sprintf '%s is effective promptly (%.2f s)', $what, $seconds);
	return;
}

subtest 'it starts what is due without being asked' => sub {
	ok(defined launcher_pid(), 'the launcher is there');
	is($server->sql('SELECT count(*) FROM sync_runs'), 0, 'nothing runs where it is not told to look after a database');
	my $before = time;
	look_after('postgres');
	wait_until('it has started runs', sub { $server->sql('SELECT count(*) FROM sync_runs') == 3 });
	prompt('the reload', $before + TICK + STALL);
	wait_for_launched($_, 1) foreach qw(contacts deals owners);
	is($server->sql(q{SELECT string_agg(sync_type || ' ' || mode || ' ' || records_processed, ', ' ORDER BY sync_type) FROM sync_logs}),
		'contacts full 30, deals full 10, owners full 3', 'each type has run once, as it has to');
	is($server->sql('SELECT DISTINCT requested_by FROM sync_logs'), 'postgres', '... requested by a superuser');

	my $position = $server->log_position;
	wait_for_visits($position);
	is($server->sql('SELECT count(*) FROM sync_logs'), 3, 'what is not due is left alone');
	unlike($server->log_text($position), qr/\[\d+\] DEBUG:  time to inline/, '... without compiling queries for each look');
	is($server->sql('SELECT count(*) FROM sync_runs', database => $second), 0, '... and so is a database that it is not told to look after');
};

subtest 'types with an interval' => sub {
	is( $server->sql(q{SELECT sync_type, next_run_at - last_run_at FROM sync_schedules WHERE "interval" IS NOT NULL ORDER BY 1}),
		"contacts|00:05:00\ndeals|00:15:00", 'they are due an interval after the last run');
	age('deals', '14 minutes 30 seconds');
	age('contacts', '5 minutes');
	wait_for_launched('contacts', 2);
	is(launched('deals'), 1, 'one that is nearly due is not started beside one that is');
	is($server->sql(q{SELECT mode FROM sync_logs WHERE sync_type = 'contacts' ORDER BY created_at DESC LIMIT 1}),
		'incremental', 'the second run is an incremental one');

	# What others request counts as well.
	my %before = map { $_ => launched($_) } qw(contacts deals);
	my $mine = $server->sql(<<~'SQL');
		BEGIN;
		UPDATE sync_runs SET created_at = created_at - interval '1 day';
		SELECT trigger_hubspot_sync('deals');
		COMMIT;
		SQL
	wait_for_launched('contacts', $before{contacts} + 1);
	wait_for_visits();
	is(launched('deals'), $before{deals}, 'a run that somebody requests makes one of the launcher needless');
	is($server->wait_for($mine)->{status}, 'success', '... which it leaves alone');

	my $timeframe = $server->sql(<<~'SQL');
		BEGIN;
		UPDATE sync_runs SET created_at = created_at - interval '1 day';
		SELECT trigger_hubspot_sync('deals', 'auto', 'today');
		COMMIT;
		SQL
	wait_for_launched('deals', $before{deals} + 1);
	is($server->log($timeframe)->{status}, 'success', 'one with a timeframe does not');
	like($server->sql_error(q{UPDATE sync_types SET "interval" = '9 s' WHERE sync_type = 'contacts'}),
		qr/ERROR:  23514: /, 'less than 10 seconds are refused');
};

# In real time, while another type is refused at the same pace.
subtest 'the shortest interval, and a type whose requests are refused' => sub {
	my $refusal = $server->node->pg_version >= 17
	  ? ['REVOKE CONNECT ON DATABASE postgres FROM PUBLIC', 'GRANT CONNECT ON DATABASE postgres TO PUBLIC']
	  : ['ALTER ROLE app NOLOGIN', 'ALTER ROLE app LOGIN'];
	$server->sql(<<~SQL);
		CREATE ROLE app LOGIN;
		CREATE SCHEMA app AUTHORIZATION app;
		CREATE TABLE app.companies (id bigint PRIMARY KEY, name text);
		ALTER TABLE app.companies OWNER TO app;
		$refusal->[0];
		INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, delete_policy, "interval")
			VALUES ('companies', 'companies', 'app', 'companies', '{id}', 'ignore', '10 s');
		INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('companies', 'name', 'name');
		UPDATE sync_types SET "interval" = '10 s' WHERE sync_type = 'contacts';
		SQL
	my $position = $server->log_position;
	my $before = launched('contacts');
	age('contacts', '5 minutes');
	foreach my $type (qw(contacts companies))
	{
		my $number = ($type eq 'contacts' ? $before : 0) + 2;
		wait_until("$type have been due twice", sub { launched($type) >= $number });
		my $gap = $server->sql("SELECT extract(epoch FROM max(created_at) - min(created_at)) FROM (
			SELECT created_at FROM sync_logs WHERE sync_type = '$type' ORDER BY created_at DESC LIMIT 2) last");
		cmp_ok($gap, '>=', 10, "two runs of $type are an interval apart");
		cmp_ok($gap, '<', 10 + STALL, '... and not twice as much');
	}
	wait_for_visits();
	$server->sql(q{UPDATE sync_types SET enabled = false WHERE sync_type = 'companies'});
	my $entries = launched('companies');
	my $intervals = $server->sql(q{SELECT floor(extract(epoch FROM clock_timestamp() - min(created_at)) / 10)
		FROM sync_logs WHERE sync_type = 'companies'});
	cmp_ok($entries, '<=', 1 + $intervals, 'a request that is refused leaves one entry an interval');
	my ($entry) = $server->sql_json(q{SELECT * FROM sync_logs WHERE sync_type = 'companies' LIMIT 1});
	is($entry->{status}, 'failed', '... which reads failed');
	is($entry->{error_details}{reason}, 'configuration', '... for a reason');
	like($entry->{error_details}{message}, qr/^role "app", which owns the target table/, '... that it explains');
	ok(defined $entry->{completed_at}, '... with the time of its end');
	my $messages = () = $server->log_text($position) =~ /LOG:  .*could not start a run of "companies"/g;
	is($messages, $entries, "the server's log has it as often");

	$server->sql("$refusal->[1]; UPDATE sync_types SET enabled = true; UPDATE sync_types SET \"interval\" = '5 minutes' WHERE sync_type = 'contacts'");
	age('companies', '10 s');
	wait_for_launched('companies', 1);
	is($server->sql('SELECT count(*) FROM app.companies'), 5, 'with its cause the refusal goes');
	$server->sql(q{DELETE FROM sync_types WHERE sync_type = 'companies'; DELETE FROM sync_runs WHERE sync_type = 'companies'});
};

# The expected instants come from all days' times around now.
subtest 'daily types' => sub {
	my $wrong = $server->sql(<<~'SQL');
		BEGIN;
		CREATE TEMP TABLE wrong (what text);
		CREATE TEMP TABLE seen (due boolean);
		DO $$
		DECLARE
			zone text; at time; latest timestamptz; upcoming timestamptz; last timestamptz; next timestamptz;
		BEGIN
			FOREACH zone IN ARRAY '{UTC,Asia/Kolkata,America/New_York,Pacific/Kiritimati,Pacific/Pago_Pago}'::text[] LOOP
				PERFORM set_config('hubspot_sync.schedule_time_zone', zone, true);
				FOREACH at IN ARRAY '{00:00,03:30,06:00,09:00,12:00,15:00,18:00,21:00,23:59:59,24:00}'::time[] LOOP
					UPDATE sync_types SET run_at = at WHERE sync_type = 'owners';
					SELECT max(d) FILTER (WHERE d <= now()), min(d) FILTER (WHERE d > now()) INTO latest, upcoming
					FROM (SELECT ((now() AT TIME ZONE zone)::date + n + at) AT TIME ZONE zone
						FROM generate_series(-3, 3) n) days(d);
					FOREACH last IN ARRAY ARRAY[NULL, latest - interval '2 days', latest - interval '1 s',
							latest, latest + (now() - latest) / 2, now()] LOOP
						DELETE FROM sync_runs WHERE sync_type = 'owners' AND last IS NULL;
						INSERT INTO sync_runs (id, connection_id, sync_type, direction, mode, status, requested_by,
							trigger_source, created_at, updated_at, lock_key)
							SELECT gen_random_uuid(), connection_id, 'owners', 'pull', 'full', 'success', 'postgres',
								'sql', now(), now(), 0 FROM sync_connections
							WHERE last IS NOT NULL AND NOT EXISTS (SELECT FROM sync_runs WHERE sync_type = 'owners');
						UPDATE sync_runs SET created_at = last WHERE sync_type = 'owners';
						SELECT next_run_at INTO next FROM sync_schedules WHERE sync_type = 'owners';
						INSERT INTO seen VALUES (last IS NULL OR last < latest);
						INSERT INTO wrong SELECT format('%s %s after %s: %s', zone, at, last, next)
							WHERE next IS DISTINCT FROM CASE WHEN last IS NULL OR last < latest THEN now() ELSE upcoming END;
					END LOOP;
				END LOOP;
			END LOOP;
		END $$;
		SELECT (SELECT count(*) FROM seen WHERE due), (SELECT count(*) FROM seen WHERE NOT due), what
			FROM (SELECT 1) one LEFT JOIN wrong ON true LIMIT 5;
		ROLLBACK;
		SQL
	is($wrong, '150|150|', 'one is due at its time of day, in its time zone, once a day')
	  or diag($wrong);

	# An hour ago it ran, five minutes ago it was to run: in one time zone only.
	$server->sql(<<~'SQL');
		UPDATE sync_types SET run_at = (now() AT TIME ZONE 'Asia/Kolkata' - interval '5 minutes')::time
			WHERE sync_type = 'owners';
		SQL
	my $before = launched('owners');
	my $contacts = launched('contacts');
	$server->sql(q{UPDATE sync_runs SET created_at = now() - interval '1 hour' WHERE sync_type IN ('owners', 'contacts')});
	wait_for_launched('contacts', $contacts + 1);
	wait_for_visits();
	is(launched('owners'), $before, 'one whose time has not come in UTC is not started');
	$server->reload('hubspot_sync.schedule_time_zone' => 'Asia/Kolkata');
	wait_for_launched('owners', $before + 1);
	wait_for_visits();
	is(launched('owners'), $before + 1, 'in India it has, for one run');
	$server->reload('hubspot_sync.schedule_time_zone' => undef);
	$server->sql(q{UPDATE sync_types SET run_at = '6:00' WHERE sync_type = 'owners'});
};

subtest 'types that pg_cron starts' => sub {
	plan skip_all => 'pg_cron is not installed' unless $has_pg_cron;
	look_after();
	$server->sql('CREATE EXTENSION pg_cron');
	foreach my $command (q{SELECT public.trigger_hubspot_sync(''deals'')}, q{CALL public.run_hubspot_sync(''deals'', ''full'')})
	{
		look_after();
		$server->sql("SELECT cron.schedule('far', '0 0 1 1 *', '$command')");
		my $contacts = launched('contacts');
		my $deals = launched('deals');
		age($_, '1 day') foreach qw(contacts deals);
		look_after('postgres');
		wait_for_launched('contacts', $contacts + 1);
		wait_for_visits();
		is(launched('deals'), $deals, "one that $command starts is left alone");

		$server->sql('UPDATE cron.job SET active = false');
		wait_for_launched('deals', $deals + 1);
		pass('... until the job is inactive');
		$server->sql(q{SELECT cron.unschedule('far')});
	}
	my $deals = launched('deals');
	$server->sql(q{SELECT cron.schedule_in_database('elsewhere', '0 0 1 1 *',
		'SELECT public.trigger_hubspot_sync(''deals'')', 'template1')});
	$server->sql(q{SELECT cron.schedule('other', '0 0 1 1 *', 'SELECT public.trigger_hubspot_sync(''deals_of_mine'')')});
	age('deals', '1 day');
	wait_for_launched('deals', $deals + 1);
	pass('a job of another database or for another type does not count');
	look_after();
	$server->sql('DROP EXTENSION pg_cron');
};

subtest 'several databases, with names of all kinds' => sub {
	look_after('postgres', $second);
	wait_for_launched($_, 1, database => $second) foreach qw(contacts deals owners);
	is($server->sql('SELECT count(*) FROM contacts', database => $second), 30, 'the second one is served');
	my %before = map { $_ => launched('contacts', database => $_) } @looked_after;
	age('contacts', '5 minutes', database => $_) foreach @looked_after;
	wait_for_launched('contacts', $before{$_} + 1, database => $_) foreach @looked_after;
	pass('... beside the first');

	my $position = $server->log_position;
	$server->reload('hubspot_sync.databases' => '"postgres');
	ok($server->log_contains(qr/invalid value for parameter "hubspot_sync.databases"/, $position), 'a list that makes no sense is refused');
	age('contacts', '5 minutes', database => $second);
	wait_for_launched('contacts', $before{$second} + 2, database => $second);
	pass('... and the one before goes on');

	# One visitor at a time, and yet each database at every tick.
	my @more = map { "empty_$_" } 1 .. 8;
	$server->sql("CREATE DATABASE $_") foreach @more;
	look_after('postgres', $second, @more);
	$position = $server->log_position;
	wait_for_visits($position);
	my @starts = log_times($position, qr/starting background worker process "hubspot_sync visitor"/);
	my $rounds = $starts[ 2 * @looked_after ] - $starts[0];
	cmp_ok($rounds, '<', @looked_after * TICK + SLACK, sprintf 'two rounds through %d databases take %.1f s', scalar @looked_after, $rounds);
	look_after('postgres', $second);
	$server->sql("DROP DATABASE $_") foreach @more;
};

subtest 'it is in nobody\'s way' => sub {
	wait_until_idle();
	is( $server->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync launcher' AND datname IS NOT NULL}),
		0, 'the launcher is connected to no database');
	my $launcher = launcher_pid();
	is($server->sql("SELECT count(*) FROM pg_locks WHERE pid = $launcher"), 0, '... and holds no lock');

	my %took = (create => 0, drop => 0);
	foreach my $n (1 .. 3)
	{
		my $before = time;
		$server->sql(qq{CREATE DATABASE copy_$n TEMPLATE "$second"});
		$took{create} = time - $before if time - $before > $took{create};
		look_after('postgres', $second, "copy_$n");
		wait_for_visits() if $n == 1;
		$before = time;
		$server->sql("DROP DATABASE copy_$n");
		$took{drop} = time - $before if time - $before > $took{drop};
	}
	cmp_ok($took{create}, '<', 20, sprintf 'a database it looks after serves as a template at any time (%.2f s)', $took{create});
	cmp_ok($took{drop}, '<', 20, sprintf '... and can be dropped at any time (%.2f s)', $took{drop});
};

subtest 'copies of a database' => sub {
	$server->sql(qq{CREATE DATABASE copy TEMPLATE "$second"});
	$server->sql(q{DELETE FROM sync_runs}, database => 'copy');
	look_after('postgres', 'copy');
	wait_for_visits();
	is($server->sql('SELECT count(*) FROM sync_runs', database => 'copy'), 0, 'nothing is started in a copy');
	$server->sql('SELECT adopt_hubspot_sync()', database => 'copy');
	wait_for_launched('contacts', 1, database => 'copy');
	pass('... until it is adopted');

	wait_until_idle();
	my $position = $server->log_position;
	my $before = time;
	$server->sql('DROP DATABASE copy');
	cmp_ok(time - $before, '<', 20, 'it can be dropped while it is looked after');
	$server->wait_for_log(qr/LOG:  hubspot_sync could not look after database "copy"/, $position);
	pass('... which the log says');
	look_after('postgres');
};

subtest 'databases that are not there or lack the extension' => sub {
	$server->sql('CREATE DATABASE empty');
	my $position = $server->log_position;
	look_after('missing', 'empty', 'postgres');
	my @times;
	wait_until('it has tried to enter the missing one several times',
		sub { (@times = log_times($position, qr/FATAL:  database "missing" does not exist/)) >= 4 });
	my @pauses = map { $times[$_] - $times[ $_ - 1 ] } 1 .. 3;
	# They are drawn from 75 to 125 % of 2, 4 and 8 ticks, and a busy machine adds to each.
	cmp_ok($pauses[0], '>=', 1.4 * TICK, sprintf 'it tries more rarely than it looks after others, after %.1f s', $pauses[0]);
	cmp_ok($pauses[1], '>=', 3 * TICK, sprintf '... and more and more rarely, after %.1f s', $pauses[1]);
	cmp_ok($pauses[2], '>=', 6 * TICK, sprintf '... and %.1f s', $pauses[2]);
	my $log = $server->log_text($position);
	my $messages = () = $log =~ /LOG:  hubspot_sync could not look after database "missing"/g;
	is($messages, 1, 'the log says so once');
	unlike($log, qr/database "empty"/, '... and nothing of the one without the extension');
	unlike($log, qr/\[\d+\] (?:ERROR|WARNING|PANIC):/, '... nor is there any error');

	# Its next attempt would be at least 12 ticks away.
	$server->sql('CREATE DATABASE missing');
	$server->sql('CREATE EXTENSION hubspot_sync', database => 'missing');
	my $since = time;
	$server->reload;
	wait_until('a run is requested there', sub { $server->sql('SELECT count(*) FROM sync_runs', database => 'missing') > 0 });
	prompt('a reload', $since + TICK);

	$server->sql('CREATE EXTENSION hubspot_sync', database => 'empty');
	wait_for_launched('owners', 1, database => 'empty');
	pass('an extension is noticed as soon as it is there');
	wait_until_idle();
	look_after('postgres');
	$server->sql("DROP DATABASE $_") foreach qw(missing empty);
};

# Has a run of contacts killed while it hangs; returns its id.
sub kill_hanging_run
{
	my ($but) = @_;
	my $id;
	wait_until('a run of contacts hangs', sub {
		$id = $server->sql("SELECT id FROM sync_run_states WHERE sync_type = 'contacts' AND status = 'running'
			AND holder_pid IS NOT NULL AND id <> '$but'");
		return $id ne '' && scalar $sim->requests(path => qr{/contacts}, fault => 'hang');
	});
	$sim->clear_journal;
	$server->sql("SELECT pg_terminate_backend(holder_pid) FROM sync_run_states WHERE id = '$id'");
	return $id;
}

sub wait_until_closed
{
	my ($id) = @_;
	wait_until('the entry is closed', sub {
		$server->sql("SELECT status || ' ' || (error_details ->> 'reason') FROM sync_runs WHERE id = '$id'") eq 'failed interrupted';
	});
	return;
}

subtest 'runs that die' => sub {
	my $before = launched('contacts');
	my $none = '00000000-0000-0000-0000-000000000000';
	hang('/contacts');
	$server->trigger('contacts');
	my $since = time;
	my $id = kill_hanging_run($none);
	wait_until_closed($id);
	prompt('the end of a run', $since + TICK + STALL);
	my $next = kill_hanging_run($id);
	is($server->sql("SELECT trigger_source FROM sync_logs WHERE id = '$next'"), 'launcher',
		'the launcher closes its entry and starts another at once');
	wait_until_closed($next);
	$sim->clear_faults;

	my $deals = launched('deals');
	age('deals', '15 minutes');
	wait_for_launched('deals', $deals + 1);
	wait_for_visits();
	is(launched('contacts'), $before + 1, 'one that dies twice waits for its interval');
	age('contacts', '5 minutes');
	wait_for_launched('contacts', 1 + $server->sql(q{SELECT count(*) FROM sync_logs
		WHERE sync_type = 'contacts' AND trigger_source = 'launcher' AND status = 'success'}));
	pass('... and is started then');
};

subtest 'hubspot_sync.enabled' => sub {
	$server->reload('hubspot_sync.enabled' => 'off');
	wait_for_visits();    # the last one may have begun before
	wait_until_idle();
	my $before = $server->sql('SELECT count(*) FROM sync_runs');
	age($_, '1 day') foreach qw(contacts deals owners);
	my $position = $server->log_position;
	wait_for_visits($position);
	is($server->sql('SELECT count(*) FROM sync_runs'), $before, 'where it is off, nothing is started');
	my $messages = () = $server->log_text($position) =~ /hubspot_sync could not/g;
	is($messages, 0, '... nor is the log filled');
	foreach my $sql (q{SELECT trigger_hubspot_sync('contacts')}, q{CALL run_hubspot_sync('contacts')})
	{
		like($server->sql_error($sql), qr/ERROR:  55000: synchronisation is switched off/, "$sql is refused");
	}
	is($server->sql('SELECT count(*) FROM sync_runs'), $before, '... without an entry');

	my %launched = map { $_ => launched($_) } qw(contacts deals owners);
	$server->reload('hubspot_sync.enabled' => undef);
	wait_until('everything has been started', sub { !grep { launched($_) == $launched{$_} } keys %launched });
	pass('where it is on again, everything is');

	wait_until_idle();
	look_after('postgres', $second);
	$server->sql(qq{ALTER DATABASE "$second" SET hubspot_sync.enabled = off});
	wait_for_visits();
	my $there = launched('contacts', database => $second);
	age('contacts', '1 day', database => $_) foreach @looked_after;
	wait_until('the other database is served', sub { launched('contacts') > $launched{contacts} + 1 });
	wait_for_visits();
	is(launched('contacts', database => $second), $there, 'it can be switched off for one database');
	$server->sql(qq{ALTER DATABASE "$second" RESET hubspot_sync.enabled});
	wait_for_launched('contacts', $there + 1, database => $second);
	look_after('postgres');
};

# Only the connection default has a schedule.
subtest 'a second connection' => sub {
	wait_until_idle();
	wait_for_visits();
	my $before = $server->sql('SELECT count(*) FROM sync_runs');
	$server->sql(q{INSERT INTO sync_connections (name) VALUES ('other')});
	wait_for_visits();
	is($server->sql('SELECT count(*) FROM sync_runs'), $before, 'it does not start runs of the first one');
	$server->sql(q{DELETE FROM sync_connections WHERE name = 'other'});
	wait_until_idle();
};

subtest 'a shutdown with everything running' => sub {
	look_after('postgres', $second);
	hang();
	my @types = qw(contacts deals owners);
	foreach my $database (@looked_after)
	{
		age($_, '1 day', database => $database) foreach @types;
	}
	wait_until('all types of both databases hang', sub {
		$server->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync'}) == 2 * @types
		  && scalar($sim->requests(fault => 'hang')) >= 2 * @types;
	});
	my $before = time;
	$server->stop('fast');
	prompt('the shutdown', $before + STALL);
	$sim->clear_faults;
	$server->start;
	foreach my $database (@looked_after)
	{
		wait_until("every type has run to its end in $database", sub {
			$server->sql(q{SELECT count(*) FROM (SELECT DISTINCT ON (sync_type) status FROM sync_runs
				ORDER BY sync_type, created_at DESC) last WHERE status = 'success'}, database => $database) == @types;
		});
		is($server->sql(q{SELECT count(*) FROM sync_runs WHERE status IN ('pending', 'running')}, database => $database),
			0, "after the start the dead runs of $database are closed and repeated");
	}
};

subtest 'no worker is free' => sub {
	look_after();
	$server->node->append_conf('postgresql.conf', 'max_worker_processes = ' . WORKERS);
	$server->restart;
	hang();
	my ($refusal, @hanging);
	foreach my $database ('postgres', $second)
	{
		foreach my $type (qw(contacts deals owners))
		{
			my $sql = "SELECT trigger_hubspot_sync('$type')";
			last if $refusal = $server->sql_error($sql, database => $database);
			push @hanging, [ $type, $database ];
		}
	}
	like($refusal, qr/ERROR:  53400: no background worker is free for the run/, 'all are taken') or diag($refusal);
	wait_until('all runs hang', sub { scalar($sim->requests(fault => 'hang')) >= @hanging });

	my $position = $server->log_position;
	look_after('postgres');
	my $message = qr/LOG:  no background worker is free to look after hubspot_sync in database "postgres"/;
	$server->wait_for_log($message, $position);
	is($server->sql('SELECT 1'), 1, 'the launcher finds none, and the server is well');
	ok(defined launcher_pid(), '... and so is the launcher');

	# One is enough for a look but not for a run.
	my $freed = $hanging[0];
	age($freed->[0], '1 day');
	$server->sql("SELECT cancel_hubspot_sync(id) FROM sync_logs WHERE status = 'running' AND sync_type = '$freed->[0]'");
	$server->wait_for_log(qr/LOG:  hubspot_sync could not start a run of "$freed->[0]" yet: no background worker is free/, $position);
	is($server->sql("SELECT status FROM sync_logs WHERE sync_type = '$freed->[0]' ORDER BY created_at DESC LIMIT 1"),
		'cancelled', 'with one free worker no request is left behind that nobody carries out');
	my $messages = () = $server->log_text($position) =~ /$message/g;
	is($messages, 1, '... and the log has told once that there was none');

	my $before = launched($freed->[0]);
	$sim->clear_faults;
	$server->sql(q{SELECT cancel_hubspot_sync(id) FROM sync_logs WHERE status = 'running'}, database => $_) foreach 'postgres', $second;
	wait_until('a run has been started', sub { launched($freed->[0]) > $before });
	pass('with two everything goes on');
	wait_until_idle();
	$server->node->append_conf('postgresql.conf', 'max_worker_processes = 16');
	$server->restart;
};

# Ends the launcher by a signal and waits for another one.
sub replace_launcher
{
	my ($signal) = @_;
	my $old = launcher_pid();
	kill $signal, $old or die "cannot signal $old: $!";
	wait_until('there is another launcher', sub {
		my $new = eval { launcher_pid() };
		return defined $new && $new != $old;
	});
	return;
}

subtest 'a launcher that is killed' => sub {
	hang('/contacts');
	age('contacts', '1 day');
	my $id;
	wait_until('a run hangs', sub {
		$id = $server->sql(q{SELECT id FROM sync_runs WHERE status = 'running' AND sync_type = 'contacts'});
		return $id ne '' && scalar $sim->requests(fault => 'hang');
	});
	$sim->clear_faults;
	replace_launcher('KILL');
	wait_until('the server is back', sub { ($server->psql('SELECT 1'))[0] == 0 });
	wait_until_closed($id);
	wait_until('another run has succeeded', sub {
		$server->sql(q{SELECT status || ' ' || trigger_source FROM sync_logs WHERE sync_type = 'contacts'
			ORDER BY created_at DESC LIMIT 1}) eq 'success launcher';
	});
	pass('after the recovery the run that died with it is closed and repeated');
};

subtest 'a launcher that is terminated' => sub {
	my $before = launched('contacts');
	replace_launcher('TERM');
	age('contacts', '5 minutes');
	wait_until('the next one starts a run', sub { launched('contacts') > $before });
	pass('is replaced by another');
};

subtest 'a server that does not preload the library' => sub {
	$server->stop('fast');
	$server = HubspotSync::Server->new('unloaded', simulator => $sim,
		conf => { 'hubspot_sync.databases' => 'postgres', 'hubspot_sync.launcher_interval' => '1s' });
	is(launcher_pid(), undef, 'has no launcher');
	is($server->sql('SELECT count(*) FROM sync_schedules WHERE next_run_at <= now()'), 3, 'though all types are due');
	foreach my $type (qw(contacts deals owners))
	{
		is($server->run_sync($type)->{status}, 'success', "a run of $type works");
	}
	is($server->sql('SELECT count(*) FROM sync_schedules WHERE next_run_at <= now()'), 0, 'none is due then');
	is($server->sql('SELECT count(*) FROM sync_logs'), 3, '... and nobody has started another');
	my $id = $server->trigger('contacts');
	is($server->wait_for($id)->{status}, 'success', 'trigger_hubspot_sync() works as well');
};

done_testing();
