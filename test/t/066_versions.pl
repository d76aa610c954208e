# Every version of HubSpot's API that the setting accepts carries the whole
# synchronisation, by the paths of that version and no other; a version that is
# not known is refused with the list of those that are.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::OwnerHistory qw(history_differences);
use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 250,
	DEALS => 60,
	COMPANIES => 20,
	OWNERS => 6,
	WIDE => 700,
};

my $sim = HubspotSync::Simulator->start(
	contacts => CONTACTS, deals => DEALS, companies => COMPANIES, owners => OWNERS, wide => WIDE);
my $server = HubspotSync::Server->new('versions', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 0, 'hubspot_sync.api_version' => '2026-03', statement_timeout => '60s' });

$server->sql(<<~SQL);
	CREATE TABLE firms (number bigint PRIMARY KEY, label text, properties jsonb);
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns,
			modified_property, created_property, delete_policy, property_set)
		VALUES ('firms', 'companies', 'public', 'firms', '{number}', 'hs_lastmodifieddate', 'createdate', 'delete', 'all');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('firms', 'label', 'name');
	SQL

# Runs a type and looks at its requests; returns the log entry.
sub run_ends
{
	my ($version, $what, $type, $mode, $timeframe) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync($type, $mode, $timeframe);
	is($run->{status}, 'success', "$what: $type") or diag($run->{stderr});
	my @paths = map { $_->{path} } $sim->requests;
	cmp_ok(scalar @paths, '>', 0, '... makes requests');
	is_deeply([ grep { !m{^/crm/(objects|owners|pipelines|properties)/$version(/|$)} } @paths ], [], "... to paths of $version only");
	return defined $run->{run_id} ? $server->log($run->{run_id}) : {};
}

sub differences
{
	$server->load_objects('contacts');
	return $server->sql(<<~'SQL');
		SELECT string_agg(coalesce(s.id, c.hubspot_contact_id), ' ')
		FROM contacts c FULL JOIN sim_contacts s ON s.id = c.hubspot_contact_id
		WHERE (NOT c.archived) IS TRUE <> (NOT s.archived) IS TRUE
			OR (NOT c.archived AND c.last_name IS DISTINCT FROM s.record #>> '{properties,lastname}')
		SQL
}

sub ids
{
	my ($type) = @_;
	return $sim->objects_text($type) =~ /^\{"id":"(\d+)"/mg;
}

sub reason
{
	my ($id) = @_;
	return $server->sql("SELECT concat_ws(' ', archived_reason, merged_into) FROM contacts WHERE hubspot_contact_id = '$id'");
}

foreach my $version ('2026-03', '2026-09')
{
	subtest "version $version" => sub {
		$sim->reset;
		$server->sql(<<~'SQL');
			TRUNCATE contacts, deals, staff, firms, sync_state, sync_runs, sync_errors, sync_rows, sync_absences,
				sync_properties, contact_owner_history, sync_owner_reads
			SQL
		$server->reload('hubspot_sync.api_version' => $version);
		is($server->sql('LOAD \'hubspot_sync\'; SHOW hubspot_sync.api_version'), $version, 'the setting');
		like($server->sql('SELECT ok FROM test_hubspot_connection()'), qr/^t$/, 'the connection works');
		is(scalar $sim->requests(path => "/account-info/$version/details"), 1, '... by a path of that version');

		my @ids = ids('contacts');
		$sim->archive('contacts', $ids[3]);
		run_ends($version, 'the first full run', $_, 'auto') foreach qw(contacts deals owners firms);
		my $since = $sim->state->{now_ms};
		is(differences(), '', 'contacts are what HubSpot has');
		is($server->sql('SELECT count(*) FROM deals WHERE status IS NOT NULL'), DEALS, 'deals have a meaning of their stages');
		is($server->sql('SELECT count(*) FROM staff'), OWNERS, 'all owners are there');
		is($server->sql("SELECT count(*) FROM firms WHERE properties ? 'extra_700' OR properties ? 'extra_699'") > 0, 1,
			'companies have all properties');

		my ($purged, $primary, $other, $archived, $edited) = @ids[ 10 .. 14 ];
		my $present = $sim->object('contacts', $edited)->{properties}{hubspot_owner_id} // '';
		my @others = grep { $_ ne $present } map { $_->{id} } $sim->objects('owners', archived => 0);
		$sim->purge('contacts', $purged);
		$sim->merge('contacts', $primary, $other);
		$sim->archive('contacts', $archived);
		$sim->restore('contacts', $ids[3]);
		$sim->patch('contacts', $edited, { lastname => 'Edited', hubspot_owner_id => $_ }) foreach @others[ 0, 1 ];
		$server->sql("UPDATE sync_state SET last_sweep_at = now() - interval '25 hours'");
		my $log = run_ends($version, 'an incremental run', 'contacts', 'auto');
		is($log->{mode}, 'incremental', '... is one');
		is(reason($other), "merged $primary", '... finds a merge');
		is(reason($archived), 'archived', '... sweeps');
		is(reason($ids[3]), '', '... finds what was restored');
		is(history_differences($server, $since), '', "... and reads owners' history");
		run_ends($version, 'an incremental run', 'firms', 'auto');
		run_ends($version, 'a timeframe', 'contacts', 'auto', 'last_90_days');

		run_ends($version, 'a full run', $_, 'full') foreach qw(contacts firms);
		is(reason($purged), 'gone', '... finds what is gone');
		is(differences(), '', '... and all are what HubSpot has');
	};
}

subtest 'other versions' => sub {
	foreach my $version ('2025-09', '2026-9', 'v3', '', '2026-09/../v3')
	{
		my $error = $server->sql_error("LOAD 'hubspot_sync'; ALTER SYSTEM SET hubspot_sync.api_version = '$version'");
		like($error, qr/ERROR:  22023: invalid value for parameter "hubspot_sync.api_version": "\Q$version\E"/, "'$version' is refused");
		like($error, qr/HINT:  Available values: 2026-09, 2026-03\./, '... with the ones there are');
	}
	my $before = $server->log_position;
	$server->node->append_conf('postgresql.conf', "hubspot_sync.api_version = 'v4'\n");
	$server->node->reload;
	$server->sql("LOAD 'hubspot_sync'; SELECT 1");
	$sim->clear_journal;
	my $run = $server->run_sync('owners', 'full');
	is(scalar(grep { $_->{path} =~ /v4/ } $sim->requests), 0, 'one in the configuration file reaches no path');
	ok($server->log_contains(qr/invalid value for parameter "hubspot_sync.api_version": "v4"/, $before), '... and the log says so')
	  or diag($run->{stderr});
};

done_testing();
