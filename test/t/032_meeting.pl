# Requests for the same records meet: whoever asks, at once, from open
# transactions or while a run is under way, there is one run. What cannot run
# is refused where it is asked for and leaves nothing behind.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use constant {
	WORKERS => 2,      # that are left for runs
	AT_ONCE => 8,
	UUID => '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}',
};

my $sim = HubspotSync::Simulator->start(contacts => 1500, deals => 10, owners => 3);

# One slot is the logical replication launcher's.
my $server = HubspotSync::Server->new('meeting', simulator => $sim,
	init => { allows_streaming => 1 },
	conf => { max_worker_processes => WORKERS + 1, max_prepared_transactions => 2 });
my $uuid = UUID;

# Starts psql in the background with statements to execute one by one.
sub start_psql
{
	my (@statements) = @_;
	my $psql = { out => '', err => '' };
	$psql->{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', '-d',
			$server->node->connstr('postgres'), map { ('-c', $_) } @statements ],
		'<', \undef, '>', \$psql->{out}, '2>', \$psql->{err});
	return $psql;
}

sub finish
{
	my ($psql) = @_;
	$psql->{run}->finish;
	chomp $psql->{out};
	return $psql;
}

sub wait_until_idle
{
	wait_until('no worker is left', sub {
		$server->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync'}) == 0;
	});
	return;
}

# All requests hang from here on; nothing runs yet.
sub hang
{
	wait_until_idle();
	$sim->clear_faults;
	$sim->clear_journal;
	$sim->fault(path => '/crm/', times => 0, action => 'hang');
	return;
}

sub wait_until_hanging
{
	my ($type) = @_;
	wait_until("a request for $type hangs",
		sub { scalar $sim->requests(path => qr{/\Q$type\E}, fault => 'hang') });
	return;
}

sub hanging_run
{
	my ($type, $mode) = @_;
	hang();
	my $id = $server->trigger($type, $mode);
	wait_until_hanging($type);
	return $id;
}

# The process that works on a run.
sub holder
{
	my ($id) = @_;
	return $server->sql("SELECT holder_pid FROM sync_run_states WHERE id = '$id'");
}

# Ends all runs.
sub cancel_all
{
	$server->sql(q{SELECT cancel_hubspot_sync(id) FROM sync_logs WHERE status IN ('pending', 'running')});
	wait_until('all runs have ended', sub {
		$server->sql(q{SELECT count(*) FROM sync_logs WHERE status IN ('pending', 'running')}) == 0;
	});
	return;
}

sub count_runs
{
	return $server->sql('SELECT count(*) FROM sync_runs');
}

sub wait_until_blocked
{
	my ($like) = @_;
	wait_until('a session is blocked', sub {
		$server->sql("SELECT count(*) FROM pg_stat_activity
			WHERE query LIKE '$like' AND wait_event_type = 'Lock'") > 0;
	});
	return;
}

# What requests look like when they are written. No transaction may be open yet.
$server->sql(<<~'SQL');
	CREATE TABLE seen (status text, age interval);
	CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen VALUES (NEW.status, clock_timestamp() - NEW.updated_at);
		RETURN NULL;
	END $$;
	CREATE TRIGGER see AFTER UPDATE ON sync_runs FOR EACH ROW EXECUTE FUNCTION see();
	SQL

# The wait for an undecided request takes 5 s: begun here, looked at in the end.
my $undecided = $server->session;
$undecided->query_safe('BEGIN');
my $undecided_id = $undecided->query_safe(q{SELECT trigger_hubspot_sync('deals')});
my $impatient = start_psql(q{SELECT trigger_hubspot_sync('deals')});

subtest 'many triggers at once' => sub {
	hang();
	my @psql = map { start_psql(q{SELECT trigger_hubspot_sync('contacts')}) } 1 .. AT_ONCE;
	my %ids;
	$ids{ finish($_)->{out} }++ foreach @psql;
	is_deeply([ values %ids ], [AT_ONCE], 'return one id') or diag explain \%ids;
	is( scalar(grep { $_->{err} =~ /^NOTICE: .*joining run \Q$_->{out}\E/m } @psql),
		AT_ONCE - 1, '... all but one with a NOTICE that they join');
	is(count_runs(), 1, 'there is one run');
	wait_until_hanging('contacts');
	is(scalar $sim->requests, 1, '... with one request');
	cancel_all();
};

foreach my $end (qw(COMMIT ROLLBACK))
{
	subtest "two open transactions, the first one ends with $end" => sub {
		hang();
		my $first = $server->session;
		$first->query_safe('BEGIN');
		my $id = $first->query_safe(q{SELECT trigger_hubspot_sync('contacts', 'full')});
		my $second = start_psql('BEGIN', q{SELECT trigger_hubspot_sync('contacts')}, 'COMMIT');
		wait_until_blocked(q{SELECT trigger_hubspot_sync(''contacts'')});
		is(scalar $sim->requests, 0, 'nothing has begun');
		$first->query_safe($end);
		finish($second);
		is($second->{err} =~ /ERROR/ ? $second->{err} : '', '', 'the second one succeeds');
		$first->quit;
		if ($end eq 'COMMIT')
		{
			is($second->{out}, $id, '... with the id of the first');
		}
		else
		{
			like($second->{out}, qr/^$uuid$/, '... with an id');
			isnt($second->{out}, $id, '... of its own');
			is($server->log($id), undef, 'of the first nothing is left');
		}
		wait_until_hanging('contacts');
		is(scalar $sim->requests, 1, 'one run is under way');
		is($server->log($second->{out})->{status}, 'running', '... the one that was returned');
		cancel_all();
	};
}

subtest 'one run under way' => sub {
	my $id = hanging_run('contacts', 'full');
	my $pid = holder($id);
	foreach my $arguments (q{'contacts'}, q{'contacts', 'auto'}, q{'contacts', 'full'})
	{
		my ($status, $out, $err) = $server->psql("SELECT trigger_hubspot_sync($arguments)");
		is($out, $id, "trigger($arguments) returns its id");
		like($err, qr/NOTICE:  sync "contacts" is already under way; joining run $id/, '... and says so');
	}
	my %refused = (
		q{trigger_hubspot_sync('contacts', 'incremental')} => 'SELECT',
		q{trigger_hubspot_sync('contacts', 'auto', 'today')} => 'SELECT',
		q{run_hubspot_sync('contacts', 'incremental')} => 'CALL');
	foreach my $call (sort keys %refused)
	{
		my $error = $server->sql_error("$refused{$call} $call");
		like($error, qr/ERROR:  55006: sync "contacts" is already running in mode full/, "$call is refused");
		like($error, qr/DETAIL:  Run $id, process $pid, since \S+/, '... naming run, process and time');
		like($error, qr/HINT: .*wait_for_hubspot_sync\('$id'\).*cancel_hubspot_sync\('$id'\)/,
			'... and what to do');
	}
	is($server->sql(q{SELECT count(*) FROM sync_logs WHERE status IN ('pending', 'running')}),
		1, 'there still is one run');
	is(scalar $sim->requests, 1, '... with one request');

	my $before = time;
	is($server->sql("CALL wait_for_hubspot_sync('$id', '300 ms')"), 'running',
		'wait_for_hubspot_sync() returns the status so far at its timeout');
	my $took = time - $before;
	cmp_ok($took, '>=', 0.3, '... not before');
	cmp_ok($took, '<', 20, '... and not long after');
	is($server->log($id)->{status}, 'running', '... and has cancelled nothing');
	is(holder($id), $pid, '... the same process works on');

	$server->sql("SELECT pg_terminate_backend($pid)");
	is($server->sql("CALL wait_for_hubspot_sync('$id')"), 'failed', 'for a dead run it returns failed');
	is($server->sql("SELECT status FROM sync_runs WHERE id = '$id'"), 'running',
		'... though nobody has closed it');
	like($server->sql_error(q{CALL wait_for_hubspot_sync('deadbeef-0000-4000-8000-000000000000')}),
		qr/ERROR:  42704: /, 'an unknown run is an error');
};

subtest 'a dead run makes room' => sub {
	hang();
	my $before = count_runs();
	my $id = $server->trigger('contacts', 'incremental');
	wait_until_hanging('contacts/search');
	is(count_runs(), $before + 1, 'another mode begins where the run in the way is dead');
	is($server->sql(q{SELECT count(*) FROM sync_runs WHERE status IN ('pending', 'running')}),
		1, '... which it has closed');
	cancel_all();

	# The last run's worker holds its lock for a moment longer.
	wait_until('the lock is free', sub {
		$server->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18515") == 0;
	});

	# As after a crash between a request's commit and its worker's start.
	$server->sql("UPDATE sync_runs SET status = 'pending', started_at = NULL, completed_at = NULL,
		error_details = NULL, updated_at = clock_timestamp() WHERE id = '$id'");
	is($server->log($id)->{status}, 'pending', 'a request whose worker has not appeared yet is pending');
	is($server->trigger('contacts'), $id, '... and is joined');
	$server->sql("UPDATE sync_runs SET updated_at = clock_timestamp() - interval '31 s' WHERE id = '$id'");
	is($server->log($id)->{status}, 'failed', 'after 30 s it reads failed');
	is($server->log($id)->{error_details}{reason}, 'interrupted', '... as interrupted');
	isnt($server->trigger('contacts'), $id, '... and is not joined any more');
	is($server->sql("SELECT status FROM sync_runs WHERE id = '$id'"), 'failed', '... but closed');
	cancel_all();
};

subtest 'a transaction that rolls back' => sub {
	wait_until_idle();
	$sim->clear_faults;
	$sim->clear_journal;
	my $before = count_runs();
	$server->sql(q{BEGIN; SELECT trigger_hubspot_sync('contacts'); ROLLBACK});
	$server->sql(<<~'SQL');
		BEGIN;
		SAVEPOINT s;
		SELECT trigger_hubspot_sync('contacts');
		ROLLBACK TO s;
		SELECT trigger_hubspot_sync('owners');
		SAVEPOINT t;
		SELECT trigger_hubspot_sync('contacts');
		ROLLBACK TO s;
		COMMIT
		SQL
	my $error = $server->sql_error(q{BEGIN; SELECT trigger_hubspot_sync('contacts'); PREPARE TRANSACTION 'p'});
	like($error, qr/ERROR:  0A000: cannot PREPARE a transaction that has requested/, 'PREPARE is refused');
	is(count_runs(), $before, 'no run is left of any of them');
	wait_until_idle();
	is(scalar $sim->requests, 0, 'HubSpot was asked for nothing');

	my $id = $server->sql(<<~'SQL');
		BEGIN;
		SAVEPOINT s;
		SELECT trigger_hubspot_sync('contacts') IS NULL;
		ROLLBACK TO s;
		SAVEPOINT t;
		SELECT trigger_hubspot_sync('owners');
		RELEASE t;
		COMMIT
		SQL
	$id =~ s/^f\n//;
	is($server->wait_for($id)->{status}, 'success', 'a released savepoint keeps its request');
	is(count_runs(), $before + 1, '... alone');
	is(scalar $sim->requests(path => qr{contacts}), 0, '... nothing else was asked for');
};

subtest 'a transaction that stays open after its request' => sub {
	wait_until_idle();
	$sim->clear_faults;
	$sim->clear_journal;
	$server->sql('TRUNCATE seen');
	my $session = $server->session;
	$session->query_safe('BEGIN');
	my $id = $session->query_safe(q{SELECT trigger_hubspot_sync('owners')});
	is($session->query_safe('SHOW lock_timeout'), '0', 'a request leaves the settings of its transaction alone');
	# It has been open for a minute, as far as its entry is concerned.
	$session->query_safe("UPDATE sync_runs SET created_at = created_at - interval '1 min',
		updated_at = updated_at - interval '1 min' WHERE id = '$id'");
	$session->query_safe('DELETE FROM seen');
	my $since = time;
	wait_until('the request is a second old', sub { time > $since + 1.1 });
	is(scalar $sim->requests, 0, 'nothing begins');
	$session->query_safe('COMMIT');
	$session->quit;
	is($server->wait_for($id)->{status}, 'success', 'the run succeeds after the commit');
	is($server->sql(q{SELECT min(age) < '10 s' FROM seen WHERE status = 'pending'}), 't',
		'... whose entry was as good as new when its worker started');
};

subtest 'a request that is not decided for long' => sub {
	finish($impatient);
	like($impatient->{err},
		qr/ERROR:  55006: sync "deals" is being requested by a transaction that is still open/,
		'others give up');
	like($impatient->{err}, qr/HINT:  /, '... with a hint');
};

subtest 'no worker is left' => sub {
	hang();
	my @types = qw(contacts owners);
	$server->trigger($_, 'full') foreach @types;
	wait_until_hanging($_) foreach @types;
	my $before = count_runs();
	$undecided->query('COMMIT');
	like($undecided->{stderr}, qr/ERROR:  no background worker is free for the run/, 'the request fails at commit');
	like($undecided->{stderr}, qr/HINT:  Raise "max_worker_processes" \(now 3\)/, '... with a hint');
	$undecided->{stderr} = '';
	is($server->log($undecided_id), undef, '... and leaves nothing');
	foreach my $sql (q{SELECT trigger_hubspot_sync('deals')}, q{CALL run_hubspot_sync('deals')})
	{
		my $error = $server->sql_error($sql);
		like($error, qr/ERROR:  53400: no background worker is free for the run/, "so does $sql");
		like($error, qr/HINT:  Raise "max_worker_processes"/, '... with a hint');
	}
	is(count_runs(), $before, 'nothing is pending');
	cancel_all();
	wait_until_idle();
	$sim->clear_faults;
	is($server->run_sync('deals')->{status}, 'success', 'with a free worker it runs');
	$undecided->quit;
};

subtest 'procedures in a transaction block' => sub {
	my $before = count_runs();
	my %calls = (
		q{BEGIN; CALL run_hubspot_sync('contacts')} => 'run_hubspot_sync',
		q{BEGIN; CALL wait_for_hubspot_sync(gen_random_uuid())} => 'wait_for_hubspot_sync',
		q{CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql
			AS $$ DECLARE i uuid; s text; p int; f int;
			BEGIN CALL run_hubspot_sync('contacts', 'auto', NULL, NULL, i, s, p, f); END $$;
		  SELECT f()} => 'run_hubspot_sync');
	foreach my $sql (sort keys %calls)
	{
		my $error = $server->sql_error($sql);
		like($error, qr/ERROR:  25001: CALL $calls{$sql} cannot run inside a transaction block/, "$sql is refused");
		like($error, qr/HINT:  (?:Use trigger_hubspot_sync\(\)|End the transaction)/, '... with a hint');
	}
	is(count_runs(), $before, 'nothing has begun');
	like($server->sql_error(q{SET default_transaction_read_only = on; SELECT trigger_hubspot_sync('contacts')}),
		qr/ERROR:  25006: /, 'a read-only transaction is refused too');
};

# A look at a run must not take its end for its death.
subtest 'a run that ends while somebody looks' => sub {
	wait_until_idle();
	$sim->clear_faults;
	my $looker = start_psql(<<~'SQL');
		DO $$
		DECLARE
			found int := 0;
			once int;
			stop timestamptz := clock_timestamp() + interval '4 s';
		BEGIN
			WHILE clock_timestamp() < stop LOOP
				SELECT count(*) INTO once FROM sync_logs
				WHERE created_at > now() AND status NOT IN ('pending', 'running', 'success');
				found := found + once;
			END LOOP;
			RAISE NOTICE 'seen dead: %', found;
		END $$
		SQL
	my $end = time + 3.5;
	my %ends;
	while (time < $end)
	{
		my $run = $server->run_sync('owners');
		# The worker before may not be gone yet.
		$ends{ $run->{status} }++ if $run->{stderr} !~ /no background worker is free/;
	}
	finish($looker);
	is_deeply([ keys %ends ], ['success'], 'CALLs of runs that succeed say so') or diag explain \%ends;
	like($looker->{err}, qr/seen dead: 0$/m, 'sync_logs never shows one of them as dead');
};

subtest 'a standby' => sub {
	$server->node->backup('b');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($server->node, 'b', has_streaming => 1);
	$standby->start;
	$server->node->wait_for_catchup($standby, 'replay', $server->node->lsn('insert'));
	foreach my $sql (q{SELECT trigger_hubspot_sync('contacts')}, q{CALL run_hubspot_sync('contacts')})
	{
		my ($status, undef, $error) = $standby->psql('postgres', "\\set VERBOSITY verbose\n$sql");
		like($error, qr/ERROR:  25006: cannot synchronise on a standby server/, "$sql is refused");
		like($error, qr/HINT:  .*primary/, '... with a hint');
	}
	is( $standby->safe_psql('postgres', q{SELECT status FROM get_latest_sync_status() WHERE sync_type = 'deals'}),
		'success', 'the status can be read there');
	$standby->stop('immediate');
};

subtest 'DROP EXTENSION during a run' => sub {
	wait_until_idle();
	my $position = $server->log_position;

	# While it waits for HubSpot.
	my $id = hanging_run('contacts', 'full');
	my $pid = holder($id);
	my $psql = start_psql(q{CALL run_hubspot_sync('contacts')});
	wait_until('the CALL has joined', sub { $server->log_contains(qr/joining run $id/, $position)
		  || $server->sql(q{SELECT count(*) FROM pg_stat_activity
			WHERE query LIKE 'CALL run_hubspot_sync%' AND wait_event_type = 'Extension'}) });
	$server->sql('DROP EXTENSION hubspot_sync');
	finish($psql);
	like($psql->{err}, qr/ERROR:  55000: extension "hubspot_sync" is not installed/, 'a CALL that waits ends');
	$server->sql("SELECT pg_cancel_backend($pid)");
	wait_until_idle();
	pass('the worker ends');

	# While it stores pages.
	$sim->clear_faults;
	$sim->config(latency_ms => 50);
	$server->sql('CREATE EXTENSION hubspot_sync');
	$id = $server->trigger('contacts', 'full');
	wait_until('some pages are stored', sub { $server->log($id)->{records_processed} >= 200 });
	$server->sql('DROP EXTENSION hubspot_sync');
	$sim->clear_journal;
	wait_until_idle();
	cmp_ok(scalar $sim->requests, '<=', 2, 'the worker stops at its next page');

	# While it begins.
	$sim->config(latency_ms => 0);
	$server->sql('CREATE EXTENSION hubspot_sync');
	$server->sql(q{SELECT trigger_hubspot_sync('contacts'); DROP EXTENSION hubspot_sync});
	wait_until_idle();

	my $log = $server->log_text($position);
	unlike($log, qr/PANIC|TRAP|terminated by signal/, 'nothing has crashed');
	my @errors = $log =~ /^\S+ \S+ \S+ \[\d+\] (?:ERROR|FATAL): .*$/mg;
	cmp_ok(scalar @errors, '<=', 3, 'no worker complained more than once') or diag explain \@errors;

	$server->sql('CREATE SCHEMA crm; CREATE EXTENSION hubspot_sync SCHEMA crm');
	$server->sql(q{UPDATE crm.sync_types SET full_strategy = 'list'});
	my ($status, $out, $err) = $server->psql(q{CALL crm.run_hubspot_sync('contacts')});
	like($out, qr/\|success\|1500\|0$/, 'after CREATE EXTENSION, in another schema, it works') or diag($err);
	is($server->sql('SELECT count(*) FROM crm.contacts'), 1500, '... completely');
};

ok(!$server->log_contains(qr/PANIC|TRAP|terminated by signal/), 'no process has crashed');

done_testing();
