# While HubSpot hangs, whatever stops a run or the server takes effect within a
# second: the run then reads cancelled where somebody cancelled it, and failed,
# interrupted, where its process was ended. Nobody else has to wait for HubSpot.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use constant {
	PROMPT => 1,    # seconds that the extension may take
	SLACK => 2,     # seconds that a busy machine may take besides
	STALL => 12,    # seconds for which it may stand still, but seldom
	STARTUPS => 24,
};

my $sim = HubspotSync::Simulator->start(contacts => 50, deals => 10, owners => 3);
my $server = HubspotSync::Server->new('cancel', simulator => $sim,
	conf => { 'max_worker_processes' => 32 });

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

# Waits for its end.
sub finish
{
	my ($psql) = @_;
	$psql->{run}->finish;
	return $psql;
}

# All requests hang from here on; nothing runs yet.
sub hang
{
	wait_until('no worker is left', sub {
		$server->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync'}) == 0;
	});
	$sim->clear_faults;
	$sim->clear_journal;
	$sim->fault(path => '/crm/', times => 0, action => 'hang');
	return;
}

sub wait_until_hanging
{
	my ($type) = @_;
	wait_until("a request for $type hangs",
		sub { scalar $sim->requests(path => qr{/\Q$type\E$}, fault => 'hang') });
	return;
}

# A run of the type that hangs, its worker and, of a CALL, its session.
sub hanging_run
{
	my ($type, $called) = @_;
	hang();
	my $run = {};
	if ($called)
	{
		$run->{psql} = start_psql("CALL run_hubspot_sync('$type', 'full')");
	}
	else
	{
		$server->trigger($type, 'full');
	}
	wait_until_hanging($type);
	($run->{id}, $run->{worker}) = split /\|/,
	  $server->sql("SELECT id, holder_pid FROM sync_run_states WHERE status = 'running'");
	$run->{session} = $server->sql(
		q{SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL run_hubspot_sync%'})
	  if $called;
	return $run;
}

# Does something to the run and measures until it has ended.
sub measure_end
{
	my ($what, $run, $act) = @_;
	my $before = time;
	$act->();
	wait_until('the run ends', sub {
		$server->sql("SELECT status NOT IN ('pending', 'running') FROM sync_logs WHERE id = '$run->{id}'") eq 't';
	});
	prompt($what, time - $before);
	return;
}

my @taken;

sub prompt
{
	my ($what, $seconds) = @_;
	push @taken, $seconds;
	cmp_ok($seconds, '<', PROMPT + SLACK + STALL, sprintf '%s is effective promptly (%.2f s)', $what, $seconds);
	return;
}

# What the log says of the run's end.
sub ended_as
{
	my ($id, $status, $reason) = @_;
	my $log = $server->log($id);
	is($log->{status}, $status, "the run is shown $status");
	is($log->{error_details}{reason}, $reason, "... as $reason");
	ok(defined $log->{completed_at}, '... with the time of its end');
	return;
}

sub signal_pid
{
	my ($function, $pid) = @_;
	return sub { $server->sql("SELECT $function($pid)") };
}

subtest 'statement_timeout of a CALL, which reports its progress' => sub {
	hang();
	my $before = time;
	my $psql = start_psql("SET statement_timeout = '8s'",
		q{CALL run_hubspot_sync('contacts', 'full')});
	wait_until_hanging('contacts');
	my $id = $server->sql(q{SELECT id FROM sync_runs});
	finish($psql);
	prompt('the timeout', time - $before - 8);
	like($psql->{err}, qr/ERROR:  57014: canceling statement due to statement timeout/,
		'the CALL says so');
	measure_end('the end of the run', { id => $id }, sub { });
	ended_as($id, 'cancelled', 'cancelled');

	my @notices = $psql->{err} =~ /^NOTICE:  \w+: (.*)$/mg;
	cmp_ok(scalar @notices, '>=', 2, 'there were NOTICEs of progress');
	cmp_ok(scalar @notices, '<=', 8, '... at most one a second');
	my $figures = qr{contacts: \d+ records, \d+ requests, \d+ records/s};
	my @odd = grep { !/^$figures, (?:waiting for (?:HubSpot|its worker|the rate limit)|working)/ } @notices;
	is_deeply(\@odd, [], '... each with what it has done');
	like($notices[-1], qr/^$figures, waiting for HubSpot/, '... and what it waits for');
};

subtest 'pg_cancel_backend of the session that CALLs' => sub {
	my $run = hanging_run('contacts', 1);
	measure_end('the cancel', $run, signal_pid('pg_cancel_backend', $run->{session}));
	finish($run->{psql});
	like($run->{psql}{err}, qr/ERROR:  57014: canceling statement due to user request/,
		'the CALL says so');
	ended_as($run->{id}, 'cancelled', 'cancelled');
};

subtest 'pg_cancel_backend of the worker' => sub {
	my $run = hanging_run('contacts', 1);
	my $before = time;
	measure_end('the cancel', $run, signal_pid('pg_cancel_backend', $run->{worker}));
	finish($run->{psql});
	prompt('the return of the CALL', time - $before);
	like($run->{psql}{out}, qr/^\Q$run->{id}\E\|cancelled\|0\|0$/m, 'the CALL returns the run as cancelled');
	like($run->{psql}{err}, qr/^WARNING:  .*cancelled/m, '... with a warning');
	unlike($run->{psql}{err}, qr/^ERROR/m, '... and no error');
	ended_as($run->{id}, 'cancelled', 'cancelled');
};

subtest 'cancel_hubspot_sync()' => sub {
	my $run = hanging_run('contacts');
	my $answer;
	measure_end('the cancel', $run,
		sub { $answer = $server->sql("SELECT cancel_hubspot_sync('$run->{id}')") });
	is($answer, 't', 'it says that it cancelled');
	ended_as($run->{id}, 'cancelled', 'cancelled');
	is($server->sql("SELECT cancel_hubspot_sync('$run->{id}')"), 'f', '... and later that there is nothing to cancel');
	like($server->sql_error("SELECT cancel_hubspot_sync('deadbeef-0000-4000-8000-000000000000')"),
		qr/ERROR:  42704: /, 'an unknown run is an error');
};

subtest 'a cancel while the run does not hang but waits' => sub {
	my %waits = (
		'between two attempts' => { kind => 'status', status => 503, headers => { 'Retry-After' => '50' } },
		'for a rate limit' => { kind => 'rate_limit', retry_after => 50 },
		'for the rest of a slow answer' => { kind => 'slow', bytes_per_second => 100 });
	foreach my $what (sort keys %waits)
	{
		hang();
		$sim->clear_faults;
		$sim->fault(path => '/crm/', times => 0, action => $waits{$what});
		my $id = $server->trigger('contacts', 'full');
		wait_until('the fault is met', sub { scalar $sim->requests(fault => $waits{$what}{kind}) });
		wait_until('the answer begins', sub {
			$server->sql("SELECT requests > 0 OR now() > started_at + '300 ms' FROM sync_logs WHERE id = '$id'") eq 't';
		});
		measure_end("a cancel $what", { id => $id },
			sub { $server->sql("SELECT cancel_hubspot_sync('$id')") });
		ended_as($id, 'cancelled', 'cancelled');
		# HubSpot's wish for silence would bind the next run too.
		$server->restart;
	}
};

subtest 'pg_terminate_backend of the worker' => sub {
	my $run = hanging_run('contacts', 1);
	my $before = time;
	measure_end('the termination', $run, signal_pid('pg_terminate_backend', $run->{worker}));
	finish($run->{psql});
	prompt('the return of the CALL', time - $before);
	like($run->{psql}{out}, qr/^\Q$run->{id}\E\|failed\|0\|0$/m, 'the CALL returns the run as failed');
	like($run->{psql}{err}, qr/^WARNING:  .*\n(?:.*\n)*DETAIL:  Reason: interrupted\./m, '... with the reason');
	ended_as($run->{id}, 'failed', 'interrupted');
};

subtest 'pg_terminate_backend of the session that CALLs' => sub {
	my $run = hanging_run('contacts', 1);
	measure_end('the termination', $run, signal_pid('pg_terminate_backend', $run->{session}));
	finish($run->{psql});
	like($run->{psql}{err}, qr/FATAL:  57P01: /, 'the session is told');
	ended_as($run->{id}, 'cancelled', 'cancelled');
};

subtest 'a client that disappears' => sub {
	my $run = hanging_run('contacts', 1);
	measure_end('the loss of the client', $run, sub { $run->{psql}{run}->signal('KILL') });
	eval { $run->{psql}{run}->finish };
	ended_as($run->{id}, 'cancelled', 'cancelled');
};

subtest 'a CALL that joined a run leaves it alone' => sub {
	my $run = hanging_run('contacts');
	my %ends = (
		'cancelled' => 'pg_cancel_backend',
		'terminated' => 'pg_terminate_backend');
	foreach my $how (sort keys %ends)
	{
		my $psql = start_psql(q{CALL run_hubspot_sync('contacts')});
		my $pid;
		wait_until('the CALL has joined', sub {
			$pid = $server->sql(q{SELECT pid FROM pg_stat_activity
				WHERE query LIKE 'CALL run_hubspot_sync%' AND wait_event_type = 'Extension'});
		});
		my $before = time;
		$server->sql("SELECT $ends{$how}($pid)");
		finish($psql);
		prompt("the end of a CALL that is $how", time - $before);
		like($psql->{err}, qr/joining run \Q$run->{id}\E/, '... which had joined the run');
	}
	my ($status, $worker) = split /\|/,
	  $server->sql("SELECT status, holder_pid FROM sync_run_states WHERE id = '$run->{id}'");
	is($status, 'running', 'the run goes on');
	is($worker, $run->{worker}, '... in the same worker');
	is(scalar $sim->requests(path => qr{/contacts$}), 1, '... at its first request');
	measure_end('a cancel at last', $run, sub { $server->sql("SELECT cancel_hubspot_sync('$run->{id}')") });
};

subtest 'waiting for HubSpot holds nothing' => sub {
	my $run = hanging_run('contacts', 1);
	my %held = map { $_ => 0 } @{$run}{qw(worker session)};
	my %xid = %held;
	my $samples = 15;
	foreach (1 .. $samples)
	{
		sleep 0.1; # sleep: the next sample is to fall into another look
		foreach my $row ($server->sql_json("SELECT pid, backend_xid, backend_xmin
			FROM pg_stat_activity WHERE pid IN ($run->{worker}, $run->{session})"))
		{
			$held{ $row->{pid} }++ if defined $row->{backend_xmin};
			$xid{ $row->{pid} }++ if defined $row->{backend_xid};
		}
	}
	is($xid{ $run->{worker} }, 0, 'the worker has no transaction id');
	is($held{ $run->{worker} }, 0, '... and holds no snapshot');
	is($xid{ $run->{session} }, 0, 'the CALL has no transaction id');
	cmp_ok($held{ $run->{session} }, '<=', $samples / 3, '... and holds no snapshot between its looks');
	is( $server->sql("SELECT count(*) FROM pg_locks
			WHERE pid = $run->{worker} AND locktype NOT IN ('virtualxid', 'advisory')"),
		0, 'the worker holds no lock but its own');
	is( $server->sql("SELECT count(*) FROM pg_stat_activity
			WHERE pid = $run->{worker} AND xact_start IS NOT NULL"),
		0, '... and no transaction is open');

	$server->sql('CREATE DATABASE other');
	my $before = time;
	$server->sql('DROP DATABASE other');
	prompt('DROP DATABASE of another database', time - $before);
	is($server->log($run->{id})->{status}, 'running', 'the run goes on meanwhile');
	measure_end('a cancel at last', $run, sub { $server->sql("SELECT cancel_hubspot_sync('$run->{id}')") });
	finish($run->{psql});
};

# Whenever the cancel comes, also before the worker is there or has begun, it
# cancels the run.
subtest 'a CALL that is cancelled while its run starts' => sub {
	hang();
	my $since = $server->sql('SELECT clock_timestamp()');
	my $unlike = "FROM sync_logs WHERE created_at > '$since' AND status <> 'cancelled'";
	my %unlike;
	foreach my $ms (map { 2 + $_ } 1 .. STARTUPS)
	{
		my $psql = finish(start_psql("SET statement_timeout = '${ms}ms'",
			q{CALL run_hubspot_sync('contacts', 'full')}));
		like($psql->{err}, qr/ERROR:  57014: /, "a timeout of $ms ms ends the CALL");
		my $deadline = time + PROMPT + SLACK + STALL;
		sleep 0.01 while time < $deadline && $server->sql("SELECT count(*) $unlike") > 0; # sleep: between two looks
		push @{ $unlike{$_} }, $ms foreach split /\n/, $server->sql("SELECT status $unlike");
		$server->sql("SELECT cancel_hubspot_sync(id) $unlike");
	}
	is_deeply(\%unlike, {}, 'all their runs are cancelled promptly') or diag explain \%unlike;
};

subtest 'a shutdown of the server' => sub {
	my $triggered = hanging_run('contacts');
	my $psql = start_psql(q{CALL run_hubspot_sync('deals', 'full')});
	wait_until_hanging('deals');
	my $called = $server->sql(q{SELECT id FROM sync_runs WHERE status = 'running' AND sync_type = 'deals'});
	my $before = time;
	$server->stop('fast');
	prompt('the shutdown', time - $before);
	finish($psql);
	like($psql->{err}, qr/FATAL:  57P01: /, 'the session that CALLs is told');
	$server->start;
	ended_as($triggered->{id}, 'failed', 'interrupted');
	# Whichever signal reaches its worker first.
	like($server->log($called)->{status}, qr/^(?:failed|cancelled)$/, 'the run of the CALL has ended too');
};

cmp_ok((sort { $a <=> $b } @taken)[ @taken / 2 ], '<', PROMPT + SLACK, 'half of it all takes no longer than a busy machine may');

subtest 'afterwards a run succeeds' => sub {
	$sim->clear_faults;
	foreach my $type (qw(contacts deals owners))
	{
		my $run = $server->run_sync($type, 'full');
		is($run->{status}, 'success', $type) or diag($run->{stderr});
	}
	is($server->sql('SELECT count(*) FROM contacts'), 50, 'all contacts are there');
	ok(!$server->log_contains(qr/PANIC|TRAP|terminated by signal/), 'no process has crashed');
};

done_testing();
