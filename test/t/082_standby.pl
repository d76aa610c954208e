# A streaming standby shows data, log and status as the primary has them, a run
# under way as under way, and refuses with a clear message whatever would write
# or call HubSpot in a run; its launcher does not even start. Promoted, it is at
# home at once: the run that was under way reads as interrupted, the next one
# continues it, and the launcher sets in.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Dump qw(table_text same_table);
use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 2500,
	PAGE => 100,
	LATENCY_MS => 60,
	RECORDS_BEFORE => 700,
};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => 50, owners => 6);
my $primary = HubspotSync::Server->new('primary', simulator => $sim, preload => 1,
	init => { allows_streaming => 1 }, conf => { 'hubspot_sync.launcher_interval' => '1s' });
# Runs come from requests only, until the test says otherwise, and are walks
# along one list.
$primary->sql(q{UPDATE sync_types SET "interval" = NULL, run_at = NULL, full_strategy = 'list'});
is($primary->run_sync($_)->{status}, 'success', "$_ before there is a standby") foreach qw(deals owners);

my $standby = $primary->standby('standby', 'hubspot_sync.databases' => 'postgres');

sub catch_up
{
	$primary->node->wait_for_catchup($standby->node, 'replay', $primary->node->lsn('insert'));
	return;
}

# The launcher is connected to no database, so that pg_stat_activity does not
# show it: the titles of the server's processes do.
sub launchers
{
	my ($server) = @_;
	my ($postmaster) = split /\n/, slurp_file($server->node->data_dir . '/postmaster.pid');
	return scalar grep { /hubspot_sync launcher/ } split /\n/, qx{ps -o args= --ppid $postmaster};
}

my @views = ('sync_logs', 'sync_run_states', 'sync_statistics', 'sync_schedules', 'sync_alerts', 'integration_health',
	'contact_owner_changes', 'sync_errors', 'sync_state', 'contacts', 'deals', 'staff', 'get_latest_sync_status()');

subtest 'what can be read' => sub {
	$primary->sql(q{UPDATE sync_types SET "interval" = '1 day' WHERE sync_type = 'deals'});
	$primary->sql(q{UPDATE sync_connections SET token_expires_at = now() + interval '1 hour'});
	catch_up();
	foreach my $view (@views)
	{
		# what is due at once is due now, which is not the same twice
		my $rows = $view eq 'sync_schedules' ? "(SELECT sync_type, last_run_at FROM $view)" : $view;
		same_table($standby, $rows, table_text($primary, $rows), "$view is the primary's");
	}
	isnt($standby->sql('SELECT count(*) FROM sync_alerts'), 0, 'an alert is seen');
	is($standby->sql('SELECT ok FROM test_hubspot_connection()'), 't', 'the connection can be tried');
	is($standby->sql('SELECT count(*) FROM get_hubspot_rate_limits()'), 2, 'so can the rate limits');
	my $id = $primary->sql(q{SELECT id FROM sync_logs WHERE sync_type = 'deals'});
	is($standby->sql("CALL wait_for_hubspot_sync('$id', NULL)"), 'success', 'waiting for a run that is over returns at once');
};

my $run;
subtest 'a run under way on the primary' => sub {
	$sim->config(latency_ms => LATENCY_MS);
	$sim->fault(path => '/contacts?', nth => RECORDS_BEFORE / PAGE + 1, times => 0, action => 'hang');
	$run = $primary->trigger('contacts', 'full');
	$primary->poll_until("SELECT records_processed >= ${\RECORDS_BEFORE} FROM sync_logs WHERE id = '$run'");
	catch_up();
	my $log = $standby->log($run);
	is($log->{status}, 'running', 'reads as running');
	is($log->{records_processed}, RECORDS_BEFORE, '... with its counters');
	is($standby->sql('SELECT count(*) FROM contacts'), RECORDS_BEFORE, '... and its rows');
	is($standby->sql(q{SELECT status FROM get_latest_sync_status() WHERE sync_type = 'contacts'}), 'running',
		'get_latest_sync_status() says so too');
	is($standby->sql('SELECT under_way FROM integration_health'), 1, 'integration_health too');
	is($standby->sql("CALL wait_for_hubspot_sync('$run', '100 milliseconds')"), 'running', 'it can be waited for');
};

subtest 'what is refused' => sub {
	my $before = table_text($primary, 'sync_runs');
	$sim->clear_journal;
	my %refused = (
		q{SELECT trigger_hubspot_sync('deals')} => 'cannot synchronise on a standby server',
		q{SELECT trigger_hubspot_sync('deals', 'full')} => 'cannot synchronise on a standby server',
		q{CALL run_hubspot_sync('deals')} => 'cannot synchronise on a standby server',
		"SELECT cancel_hubspot_sync('$run')" => '',
		q{SELECT map_hubspot_sync('deals', 'deals', '{connection_id,hubspot_deal_id}')} => 'read-only transaction',
		q{UPDATE sync_types SET enabled = false} => 'read-only transaction');
	foreach my $sql (sort keys %refused)
	{
		like($standby->sql_error($sql), qr/ERROR:  25006: .*$refused{$sql}/, "$sql is refused");
	}
	like($standby->sql_error(q{SELECT trigger_hubspot_sync('deals')}), qr/HINT:  .*on the primary/, '... with a hint');
	like(($standby->psql('SELECT adopt_hubspot_sync()'))[2], qr/NOTICE:  hubspot_sync is at home/, 'there is nothing to adopt');
	is(table_text($primary, 'sync_runs'), $before, 'nothing has come of it');
	is(scalar $sim->requests, 0, '... nor was HubSpot asked');
	is(launchers($primary), 1, 'the primary has a launcher');
	is(launchers($standby), 0, 'the standby has none');
};

subtest 'promotion' => sub {
	$primary->stop('immediate');
	$sim->clear_faults;
	my $checkpoint = $standby->log($run)->{checkpoint};
	$standby->node->promote;
	my $log = $standby->log($run);
	is($log->{status}, 'failed', 'the run that was under way reads as failed at once');
	is($log->{error_details}{reason}, 'interrupted', '... as interrupted');
	wait_until('the launcher has started', sub { launchers($standby) == 1 });

	$sim->clear_journal;
	my $next = $standby->run_sync('contacts', 'full');
	is($next->{status}, 'success', 'a run works without any adoption') or diag($next->{stderr});
	is($standby->log($next->{run_id})->{continues}, $run, '... and continues the interrupted one');
	my ($first) = $sim->requests(path => qr{/contacts$}, method => 'GET');
	is($first->{query}{after}, $checkpoint->{after}, '... at its checkpoint');
	is($standby->sql("SELECT status FROM sync_runs WHERE id = '$run'"), 'failed', '... which is closed');
	$standby->load_objects('contacts');
	is( $standby->sql(<<~'SQL'), 0, "the contacts are HubSpot's");
		SELECT count(*) FROM contacts c FULL JOIN sim_contacts s ON s.id = c.hubspot_contact_id
		WHERE (s.archived, s.record #>> '{properties,email}') IS DISTINCT FROM (c.archived, c.email)
		SQL
	is($standby->sql('SELECT count(*) FROM contacts'), CONTACTS, '... and complete');

	$standby->sql(q{UPDATE sync_types SET "interval" = '10 seconds' WHERE sync_type = 'owners'});
	$standby->sql(q{UPDATE sync_runs SET created_at = created_at - interval '1 hour' WHERE sync_type = 'owners'});
	$standby->poll_until(q{SELECT count(*) > 0 FROM sync_logs
		WHERE sync_type = 'owners' AND trigger_source = 'launcher' AND status = 'success'});
	pass('the launcher starts runs');
};

done_testing();
