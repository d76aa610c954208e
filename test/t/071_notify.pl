# Whoever listens to channel hubspot_sync hears of every run's end exactly once,
# when the log has it, whatever ended the run; and hears nothing but ids, counts
# and the status, for any role may listen.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my @counts = qw(records_processed records_failed records_changed records_archived);

my $sim = HubspotSync::Simulator->start(contacts => 20, deals => 8, owners => 2);
my $server = HubspotSync::Server->new('notify', simulator => $sim, preload => 1,
	conf => { 'hubspot_sync.launcher_interval' => '1s' });
$server->sql('CREATE ROLE nobody LOGIN');
my $listener = $server->session(extra_params => [ '-U', 'nobody' ]);
$listener->query('LISTEN hubspot_sync');

# Everything that was heard, the oldest first.
my @heard;

sub listen_up
{
	my $out = $listener->query_until(qr/^nothing else$/m, "SELECT;\n\\echo nothing else\n");
	push @heard, $out =~ /Asynchronous notification "hubspot_sync" with payload "(.*)" received/g;
	return;
}

# Waits until the end of a run has been heard and checks what was said. Others
# may have ended before.
sub hears_of
{
	my ($id, $status, $what) = @_;
	my @of;
	wait_until("the end of run $id is heard", sub {
		listen_up();
		@of = grep { /\Q$id\E/ } @heard;
		return @of > 0;
	});
	my $told = decode_json($of[0]);
	my ($row) = $server->sql_json("SELECT * FROM sync_runs WHERE id = '$id'");
	is($told->{status}, $status, "$what is heard as $status");
	is_deeply($told, { run_id => $id, map { $_ => $row->{$_} } qw(connection_id sync_type status), @counts },
		'... as the log has it, without more') or diag($of[0]);
	return;
}

# A run of the type that hangs.
sub hanging_run
{
	my ($type) = @_;
	$sim->clear_journal;
	$sim->fault(path => '/crm/', times => 0, action => 'hang');
	my $id = $server->trigger($type, 'full');
	wait_until('it hangs', sub { scalar $sim->requests(fault => 'hang') });
	$sim->clear_faults;
	return $id;
}

sub terminate
{
	my ($id) = @_;
	$server->sql("SELECT pg_terminate_backend(holder_pid) FROM sync_run_states WHERE id = '$id'");
	$server->poll_until("SELECT status = 'failed' FROM sync_logs WHERE id = '$id'");
	return;
}

subtest 'runs that end by themselves' => sub {
	my $run = $server->run_sync('contacts');
	hears_of($run->{run_id}, 'success', 'a success');

	my ($id) = $sim->create('deals', { dealname => 'Broken', amount => 'a lot' });
	$run = $server->run_sync('deals');
	hears_of($run->{run_id}, 'partial', 'a record that cannot be stored');
	like($heard[-1], qr/"records_processed" : 9, "records_failed" : 1, /, '... is counted');
	$sim->patch('deals', $id, { amount => '1' });

	$sim->fault(path => '/owners', times => 0, action => { kind => 'status', status => 400,
		json => { message => 'no account of jane.doe@example.com' } });
	$run = $server->run_sync('owners');
	hears_of($run->{run_id}, 'failed', 'a failure');
	like($server->log($run->{run_id})->{error_details}{hubspot_message}, qr/jane/, '... whose message is in the log only');
	$sim->clear_faults;
};

subtest 'runs that somebody ends' => sub {
	my $id = hanging_run('contacts');
	$server->sql("SELECT cancel_hubspot_sync('$id')");
	hears_of($id, 'cancelled', 'a cancel');

	$id = $server->sql(q{BEGIN; SELECT trigger_hubspot_sync('contacts') AS id \gset
		SELECT cancel_hubspot_sync(:'id'); COMMIT; SELECT :'id'});
	($id) = $id =~ /^([0-9a-f-]{36})$/m;
	hears_of($id, 'cancelled', 'a cancel before the beginning');
};

subtest 'runs that die' => sub {
	my $id = hanging_run('contacts');
	terminate($id);
	listen_up();
	is(scalar(grep { /$id/ } @heard), 0, 'nothing is heard of a run that dies');
	my $next = $server->run_sync('contacts');
	hears_of($id, 'failed', 'once the next one has closed it, it');
	hears_of($next->{run_id}, 'success', 'the next one');

	# Two that request another at the same time both want to close it.
	foreach my $end (qw(COMMIT ROLLBACK))
	{
		$id = hanging_run('deals');
		terminate($id);
		my @requesting = map { $server->session } 1 .. 2;
		$requesting[0]->query_safe(q{BEGIN; SELECT trigger_hubspot_sync('deals')});
		$requesting[1]->query_until(qr/^requesting$/m, "\\echo requesting\nSELECT trigger_hubspot_sync('deals');\n");
		$server->poll_until(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%trigger%'});
		listen_up();
		is(scalar(grep { /$id/ } @heard), 0, "nothing is heard of one before the $end of whom closes it");
		$requesting[0]->query_safe($end);
		$requesting[1]->query('SELECT');
		hears_of($id, 'failed', 'afterwards it');
		$_->quit foreach @requesting;
		$server->poll_until(q{SELECT count(*) = 0 FROM sync_logs WHERE status IN ('pending', 'running')});
	}
};

subtest 'runs that the launcher starts and closes' => sub {
	my $id = hanging_run('owners');
	$server->sql(q{UPDATE sync_types SET enabled = false WHERE sync_type <> 'owners'});
	$server->reload('hubspot_sync.databases' => 'postgres');
	terminate($id);
	hears_of($id, 'failed', 'one that dies');
	my $next;
	wait_until('the launcher has started another',
		sub { $next = $server->sql(q{SELECT id FROM sync_logs WHERE trigger_source = 'launcher'}) });
	hears_of($next, 'success', 'the next one');

	# The launcher wants to close what somebody else is closing.
	$server->reload('hubspot_sync.databases' => undef);
	$server->poll_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'hubspot_sync visitor'});
	$id = hanging_run('owners');
	terminate($id);
	my $requesting = $server->session;
	$requesting->query_safe(q{BEGIN; SELECT trigger_hubspot_sync('owners')});
	$server->reload('hubspot_sync.databases' => 'postgres');
	$server->poll_until(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'hubspot_sync visitor' AND wait_event_type = 'Lock'});
	$requesting->query_safe('COMMIT');
	hears_of($id, 'failed', 'one that somebody else closes');
	$server->poll_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'hubspot_sync visitor' AND wait_event_type = 'Lock'});
	$requesting->quit;

	$server->sql(q{
		CREATE ROLE app;
		GRANT CREATE ON SCHEMA public TO app;
		CREATE TABLE mine (id text PRIMARY KEY);
		ALTER TABLE mine OWNER TO app;
		REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
		GRANT CONNECT ON DATABASE postgres TO nobody;
		INSERT INTO sync_types (sync_type, object_type, target_table, target_schema, key_columns, delete_policy, "interval")
			VALUES ('mine', 'companies', 'mine', 'public', '{id}', 'ignore', '1 hour')});
	my $refused;
	wait_until('a request is refused',
		sub { $refused = $server->sql(q{SELECT id FROM sync_logs WHERE sync_type = 'mine'}) });
	hears_of($refused, 'failed', 'a request that is refused');
	$server->reload('hubspot_sync.databases' => undef);
};

subtest 'what is no end of a run' => sub {
	$server->sql(q{UPDATE sync_types SET enabled = true});
	my $before = $server->sql('SELECT count(*) FROM sync_runs');
	$server->sql(q{BEGIN; SELECT trigger_hubspot_sync('contacts'); ROLLBACK});
	$server->sql_error(q{SELECT trigger_hubspot_sync('contacts'), 1 / 0});
	$server->sql_error(q{SELECT trigger_hubspot_sync('nothing')});
	is($server->sql('SELECT count(*) FROM sync_runs'), $before, 'requests that come to nothing');
	my $id = hanging_run('contacts');
	is($server->trigger('contacts'), $id, 'one that joins a run');
	$server->sql("SELECT cancel_hubspot_sync('$id')");
	hears_of($id, 'cancelled', 'the run');
	is($server->sql("SELECT cancel_hubspot_sync('$id')"), 'f', 'a cancel that comes too late');
};

# Whatever was to be heard twice has come before this.
my $last = $server->run_sync('contacts');
hears_of($last->{run_id}, 'success', 'the last run');
my %times;
$times{ decode_json($_)->{run_id} }++ foreach @heard;
is_deeply([ grep { $times{$_} > 1 } sort keys %times ], [], 'nothing was heard twice');
is(join(' ', sort keys %times), $server->sql(q{SELECT string_agg(id::text, ' ' ORDER BY id::text COLLATE "C") FROM sync_runs}),
	'... and every run once');
unlike(join("\n", @heard), qr/\@|\Q@{[ $sim->token ]}\E|message|hint/, 'neither e-mail, token nor message was heard');
is(scalar(grep { length > 600 } @heard), 0, 'all is short');

$listener->quit;
done_testing();
