# Everything that needs somebody's attention stands in sync_alerts as long as it
# does, and no longer; integration_health sums it up, sync_statistics counts
# what sync_logs has, and the log forgets what is old and nothing else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 300,
	DEALS => 20,
};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => DEALS, owners => 3);
my $server = HubspotSync::Server->new('alerts', simulator => $sim);

# What sync_alerts has about a type, or all: "contacts stale, deals failed_run".
sub alerts
{
	my ($type) = @_;
	my $where = defined $type ? "sync_type = '$type'" : 'true';
	return $server->sql("SELECT coalesce(string_agg(concat_ws(' ', sync_type, alert), ', ' ORDER BY sync_type, alert), '')
		FROM sync_alerts WHERE $where");
}

sub alert
{
	my ($alert, $type) = @_;
	my ($row) = $server->sql_json("SELECT * FROM sync_alerts WHERE alert = '$alert' AND sync_type = '$type'");
	return $row;
}

sub health
{
	return $server->sql('SELECT status FROM integration_health');
}

# Compiling such queries would take longer than all of this test's other waits.
unlike($server->sql("EXPLAIN SELECT * FROM $_"), qr/JIT/, "$_ is not compiled for a single look")
  foreach qw(sync_alerts integration_health);

sub run_ends
{
	my ($status, $type, $mode, $what) = @_;
	my $run = $server->run_sync($type, $mode);
	is($run->{status}, $status, $what // "a run of $type ends $status") or diag($run->{stderr});
	return $run->{run_id};
}

# Says that all runs of a type ended so long ago.
sub ended_ago
{
	my ($type, $interval) = @_;
	$server->sql("UPDATE sync_runs SET completed_at = now() - interval '$interval',
		updated_at = now() - interval '$interval' WHERE sync_type = '$type'");
	return;
}

sub hanging_run
{
	my ($type) = @_;
	$sim->clear_journal;
	$sim->fault(path => '/crm/', times => 0, action => 'hang');
	my $id = $server->trigger($type);
	wait_until('a request hangs', sub { scalar $sim->requests(fault => 'hang') });
	return $id;
}

sub cancel
{
	my ($id) = @_;
	$server->sql("SELECT cancel_hubspot_sync('$id')");
	$server->wait_for($id);
	$sim->clear_faults;
	return;
}

subtest 'before the first run' => sub {
	is(health(), 'unused', 'the connection is unused');
	is(alerts(), 'contacts stale, deals stale, owners stale', 'types that were never synchronised are stale');
	is(alert('stale', 'contacts')->{message}, 'contacts have never been synchronised', '... as the message says');
	is(alert('stale', 'contacts')->{since}, undef, '... since for ever');
	is($server->sql('SELECT count(*) FROM sync_statistics'), 0, 'there is nothing to count');
	$server->sql(q{UPDATE sync_types SET enabled = false WHERE sync_type = 'deals'});
	is(alerts(), 'contacts stale, owners stale', 'one that is disabled is nobody\'s concern');
	$server->sql(q{UPDATE sync_types SET enabled = true, "interval" = NULL WHERE sync_type = 'deals'});
	is(alerts('deals'), '', '... nor is one without a schedule');
	$server->sql(q{UPDATE sync_types SET "interval" = '15 minutes' WHERE sync_type = 'deals'});
	run_ends('success', $_) foreach qw(contacts deals owners);
	is(alerts(), '', 'after a run of each there is no alert');
	is(health(), 'healthy', '... and the connection is healthy');
};

subtest 'stale' => sub {
	my %allowed = (contacts => 10 * 60, deals => 30 * 60, owners => 26 * 60 * 60);
	foreach my $type (sort keys %allowed)
	{
		ended_ago($type, $allowed{$type} - 60 . ' s');
		is(alerts(), '', "$type: not before the time is up");
		ended_ago($type, $allowed{$type} + 1 . ' s');
		is(alerts(), "$type stale", '... but then');
		is(alert('stale', $type)->{severity}, 'critical', '... and it is critical');
		is(health(), 'failing', '... for the whole connection');

		# A run that moves may take its time, one that does not is no excuse.
		my $id = hanging_run($type);
		is(alerts(), '', '... until a run is under way');
		$server->sql("UPDATE sync_runs SET updated_at = now() - interval '9 minutes' WHERE id = '$id'");
		is(alerts(), '', '... that has moved lately');
		$server->sql("UPDATE sync_runs SET updated_at = now() - interval '11 minutes' WHERE id = '$id'");
		is(alerts(), "$type stale", '... but not one that has not');
		cancel($id);
		is(alerts(), "$type stale", '... nor one that was cancelled');
		run_ends('success', $type);
		is(alerts(), '', '... nor longer than until the next success');
	}

	ended_ago('deals', '1 hour');
	is($server->run_sync('deals', 'auto', 'today')->{status}, 'success', 'a run with a timeframe');
	is(alerts(), 'deals stale', '... does not make up for one of the schedule');
	run_ends('success', 'deals');
};

subtest 'failed_run' => sub {
	$sim->fault(path => '/deals', times => 0, action => { kind => 'status', status => 400, json => { message => 'No.' } });
	my $id = run_ends('failed', 'deals');
	is(alerts(), 'deals failed_run', 'a run that fails is an alert');
	my $alert = alert('failed_run', 'deals');
	is($alert->{run_id}, $id, '... about that run');
	is($alert->{message}, "the latest run of deals failed: " . $server->log($id)->{error_details}{message}, '... with its message');
	is($alert->{since}, $server->log($id)->{completed_at}, '... since its end');
	is(health(), 'failing', '... and critical');
	$sim->clear_faults;

	my $dead = hanging_run('contacts');
	$server->sql("SELECT pg_terminate_backend(holder_pid) FROM sync_run_states WHERE id = '$dead'");
	$server->poll_until(q{SELECT count(*) > 0 FROM sync_alerts WHERE sync_type = 'contacts'});
	is(alerts(), 'contacts failed_run, deals failed_run', 'so is one that died, though nobody has closed it');
	$sim->clear_faults;

	run_ends('success', $_) foreach qw(contacts deals);
	is(alerts(), '', 'the next success ends it');
	cancel(hanging_run('deals'));
	is(alerts(), '', 'a run that somebody cancelled is none');
};

subtest 'failed_records' => sub {
	my @ids = map { $_->{id} } $sim->objects('deals');
	$sim->patch('deals', $_, { amount => 'a lot' }) foreach @ids[ 0, 1 ];
	run_ends('partial', 'deals', 'full');
	is(alerts(), '', 'a tenth of the records that cannot be stored is none');
	is(health(), 'healthy', '... and the connection healthy');
	is($server->sql('SELECT open_errors FROM integration_health'), 2, '... with open errors');
	$sim->patch('deals', $ids[2], { amount => 'a lot' });
	my $id = run_ends('partial', 'deals', 'full');
	is(alerts(), 'deals failed_records', 'more than a tenth is');
	my $alert = alert('failed_records', 'deals');
	is($alert->{message}, '3 of ' . DEALS . ' records of deals could not be stored', '... with the numbers');
	is($alert->{severity}, 'warning', '... as a warning');
	is($alert->{run_id}, $id, '... about that run');
	is(health(), 'degraded', '... and the connection degraded');
	$sim->patch('deals', $_, { amount => '1' }) foreach @ids[ 0 .. 2 ];
	run_ends('success', 'deals', 'full');
	is(alerts(), '', 'with the records it goes');
	is($server->sql('SELECT open_errors FROM integration_health'), 0, '... and so do the open errors');
};

subtest 'mass_absence' => sub {
	my $hidden = $sim->hide_every('contacts', 2);
	cmp_ok($hidden, '>', 100, "$hidden records are hidden");
	my $id = run_ends('partial', 'contacts', 'full');
	is(alerts(), 'contacts mass_absence', 'a full run that misses them raises an alert');
	my $alert = alert('mass_absence', 'contacts');
	like($alert->{message}, qr/^$hidden records of contacts are absent in HubSpot/, '... with their number');
	is($alert->{run_id}, $id, '... about that run');
	is(health(), 'failing', '... and critical');
	run_ends('success', 'contacts', 'incremental');
	is(alerts(), 'contacts mass_absence', 'an incremental run does not end it');
	$sim->unhide('contacts');
	run_ends('success', 'contacts', 'full');
	is(alerts(), '', 'a full run that finds them does');

	$sim->hide_every('contacts', 2);
	$id = run_ends('partial', 'contacts', 'full');
	is(alerts(), 'contacts mass_absence', 'another time');
	$server->sql("SELECT accept_hubspot_absence('$id')");
	is(alerts(), '', '... it ends as soon as somebody accepts it');
	run_ends('success', 'contacts', 'full');
	is(alerts(), '', '... and does not come back');
	$sim->unhide('contacts');
	run_ends('success', 'contacts', 'full');
};

subtest 'token' => sub {
	my @cases = (
		[ 'now() + interval \'7 days 1 minute\'', undef, 'healthy' ],
		[ 'now() + interval \'6 days 23 hours\'', 'warning', 'degraded' ],
		[ 'now() + interval \'23 hours\'', 'critical', 'failing' ],
		[ 'now() - interval \'1 minute\'', 'critical', 'failing' ],
		[ 'NULL', undef, 'healthy' ]);
	foreach my $case (@cases)
	{
		my ($expires, $severity, $health) = @$case;
		$server->sql("UPDATE sync_connections SET token_expires_at = $expires");
		my ($alert, @others) = $server->sql_json('SELECT * FROM sync_alerts');
		is_deeply(\@others, [], "a token that expires $expires:");
		is($alert->{alert}, $severity && 'token', $severity ? '... an alert' : '... no alert');
		is($alert->{severity}, $severity, "... which is $severity") if $severity;
		is($alert->{sync_type}, undef, '... of all types');
		like($alert->{message}, $expires =~ /-/ ? qr/ has expired$/ : qr/ expires \d/, '... and says when') if $severity;
		is(health(), $health, "... $health");
	}
};

subtest 'token_refused' => sub {
	my %spoilt = (
		'that HubSpot does not know' => sub { $server->token('nonsense') },
		'that cannot be read' => sub { $server->token(undef) });
	foreach my $how (sort keys %spoilt)
	{
		$spoilt{$how}->();
		my $id = run_ends('failed', 'owners');
		is(alerts(), 'owners failed_run, owners token_refused', "a token $how is an alert of its own");
		is(alert('token_refused', 'owners')->{run_id}, $id, '... about the run that met it');
		is(health(), 'failing', '... and critical');
		$server->token($sim->token);
		run_ends('success', 'owners');
		is(alerts(), '', '... until a run succeeds');
	}
};

# Counts from sync_logs, without SQL's help.
sub counted
{
	my ($type) = @_;
	my @runs = grep { $_->{sync_type} eq $type } $server->sql_json(
		q{SELECT *, created_at > now() - interval '24 hours' AS counts FROM sync_logs});
	@runs = grep { $_->{counts} } @runs;
	my $sum = sub { my $n = 0; $n += $_->{ $_[0] } // 0 foreach @runs; return $n };
	my $status = sub { my %is = map { $_ => 1 } @_; return scalar grep { $is{ $_->{status} } } @runs };
	my ($last) = sort { $b cmp $a } map { $_->{completed_at} } grep { $_->{status} =~ /^(?:success|partial)$/ } @runs;
	my ($longest) = sort { $b <=> $a } map { $_->{duration_ms} } grep { defined $_->{duration_ms} } @runs;
	my @durations = map { $_->{duration_ms} } grep { defined $_->{duration_ms} } @runs;
	my $total = 0;
	$total += $_ foreach @durations;
	my $limited = 0;
	$limited += $_->{error_details}{rate_limited} // 0 foreach @runs;
	return {
		sync_type => $type,
		connection_id => '00000000-0000-0000-0000-000000000000',
		runs => scalar @runs,
		succeeded => $status->('success'),
		partial => $status->('partial'),
		failed => $status->('failed'),
		cancelled => $status->('cancelled'),
		under_way => $status->('pending', 'running'),
		(map { $_ => $sum->($_) } qw(records_processed records_failed records_changed records_archived
			  requests retries bytes_received)),
		rate_limited => $limited,
		average_duration_ms => int($total / @durations + 0.5),
		longest_duration_ms => $longest,
		last_success_at => $last,
	};
}

subtest 'sync_statistics' => sub {
	$sim->fault(path => '/deals/search', nth => 1, times => 2, action => { kind => 'rate_limit', policy => 'TEN_SECONDLY_ROLLING' });
	$sim->fault(path => '/deals/search', nth => 3, times => 1, action => { kind => 'status', status => 502 });
	$sim->patch('deals', ($sim->objects('deals'))[5]->{id}, { amount => 'a lot' });
	run_ends('partial', 'deals');
	$sim->clear_faults;
	my $old = run_ends('partial', 'deals', 'full');
	$server->sql("UPDATE sync_runs SET created_at = now() - interval '24 hours 1 minute' WHERE id = '$old'");
	foreach my $type (qw(contacts deals owners))
	{
		my ($row) = $server->sql_json("SELECT * FROM sync_statistics WHERE sync_type = '$type'");
		is_deeply($row, counted($type), "the numbers of $type are those of sync_logs") or diag explain $row;
	}
	my ($deals) = $server->sql_json(q{SELECT * FROM sync_statistics WHERE sync_type = 'deals'});
	is($deals->{rate_limited}, 2, 'answers with status 429 are counted');
	is($deals->{retries}, 3, '... and retries');
	cmp_ok($deals->{$_}, '>', 0, "$_ are among them") foreach qw(succeeded partial failed cancelled records_failed);
	is( $deals->{runs} + 1, $server->sql(q{SELECT count(*) FROM sync_logs WHERE sync_type = 'deals'}),
		'a run of more than 24 hours ago is not');

	my $id = hanging_run('contacts');
	is($server->sql(q{SELECT under_way FROM sync_statistics WHERE sync_type = 'contacts'}), 1, 'a run under way is one');
	is($server->sql('SELECT under_way FROM integration_health'), 1, '... in integration_health, too');
	cancel($id);
	is( $server->sql('SELECT last_success_at FROM integration_health'),
		$server->sql(q{SELECT max(completed_at) FROM sync_logs WHERE status IN ('success', 'partial')}),
		'... which has the latest success of all types');
};

# Adds runs of a type that ended so many days ago; returns their ids.
sub old_runs
{
	my ($type, $days, $status, $number) = @_;
	$number //= 1;
	return split /\n/, $server->sql(<<~SQL);
		INSERT INTO sync_runs (id, connection_id, sync_type, direction, mode, status, requested_by, trigger_source,
			created_at, started_at, updated_at, completed_at, lock_key)
		SELECT gen_random_uuid(), connection_id, '$type', 'pull', 'incremental', '$status', 'postgres', 'sql', t, t, t, t, 0
		FROM sync_connections, generate_series(1, $number) n, LATERAL (SELECT now() - interval '$days days' - n * interval '1 second') a(t)
		RETURNING id
		SQL
}

sub old_error
{
	my ($type, $record, $resolved) = @_;
	$server->sql(<<~SQL);
		INSERT INTO sync_errors (run_id, connection_id, sync_type, record_id, category, message, attempts, first_seen, last_seen, resolved_at)
		SELECT gen_random_uuid(), connection_id, '$type', '$record', 'constraint', 'old', 10,
			now() - interval '200 days', now() - interval '200 days', $resolved FROM sync_connections
		SQL
	return;
}

sub kept
{
	my (@ids) = @_;
	return $server->sql("SELECT count(*) FROM sync_runs WHERE id IN ('" . join("','", @ids) . "')");
}

subtest 'retention' => sub {
	is($server->sql(q{SELECT setting FROM pg_settings WHERE name = 'hubspot_sync.log_retention'} =~ s/^/LOAD 'hubspot_sync';/r),
		90 * 24 * 60 * 60, 'it is 90 days');
	my @old = map { old_runs('contacts', 91, $_) } qw(success partial failed cancelled);
	my @young = map { old_runs('contacts', 89, $_) } qw(success failed);
	my @others = old_runs('owners', 400, 'success');
	old_error('contacts', 'open', 'NULL');
	old_error('contacts', 'closed long ago', q{now() - interval '91 days'});
	old_error('contacts', 'closed', q{now() - interval '89 days'});
	old_error('deals', 'of deals', q{now() - interval '91 days'});

	# A run under way of another type and, at last, the run itself.
	my $running = hanging_run('deals');
	$server->sql("UPDATE sync_runs SET created_at = now() - interval '1 year' WHERE id = '$running'");
	$sim->clear_faults;
	$sim->fault(path => '/contacts', times => 1, action => { kind => 'delay', ms => 500 });
	my $mine = $server->trigger('contacts');
	$server->sql("UPDATE sync_runs SET created_at = now() - interval '1 hour' WHERE id = '$mine'");
	is($server->wait_for($mine)->{status}, 'success', 'a run ends');
	is(kept(@old), 0, 'runs older than the retention are gone');
	is(kept(@young), scalar @young, '... younger ones are there');
	is(kept($mine, @others, $running), 3, '... and so are the run itself, one under way and those of other types');
	is( $server->sql(q{SELECT string_agg(record_id, ', ' ORDER BY record_id) FROM sync_errors WHERE message = 'old'}),
		'closed, of deals, open', 'only errors that were closed before it are gone');
	cancel($running);

	# Whatever is old, one success stays.
	$server->sql(q{DELETE FROM sync_runs WHERE sync_type = 'owners'});
	my ($before) = old_runs('owners', 300, 'success');
	my ($last) = old_runs('owners', 200, 'success');
	my ($failed) = old_runs('owners', 100, 'failed');
	$server->token('nonsense');
	run_ends('failed', 'owners');
	is(kept($last), 1, 'the latest success stays where only failures follow');
	$server->token($sim->token);
	run_ends('success', 'owners');
	is(kept($before, $last, $failed), 0, '... until there is another');

	# Much is forgotten little by little.
	@old = old_runs('owners', 100, 'success', 2500);
	my @left = map { run_ends('success', 'owners'); kept(@old) } 1 .. 3;
	is("@left", '1500 500 0', 'what has piled up goes in steps');

	$server->reload('hubspot_sync.log_retention' => 0);
	@old = old_runs('owners', 10_000, 'success');
	run_ends('success', 'owners');
	is(kept(@old), 1, 'with a retention of 0 nothing is forgotten');
	$server->reload('hubspot_sync.log_retention' => '1 h');
	run_ends('success', 'owners');
	is(kept(@old), 0, '... with another it is');
};

done_testing();
