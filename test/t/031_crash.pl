# Whatever is killed while a run is under way, its worker or the whole server,
# no row is lost or doubled: the dead run reads failed, interrupted, at once,
# and the next one closes it, continues from its checkpoint without asking for
# earlier pages again, and ends with HubSpot's records in the table.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use constant {
	CONTACTS => 2500,
	LIST_PAGE => 100,
	SEARCH_PAGE => 200,
	LATENCY_MS => 40,
};

# Any seed must do; this one is printed to repeat what it found.
my $seed = $ENV{TEST_SEED} // (time * 1000) % 1_000_000;
srand $seed;
diag("TEST_SEED=$seed");

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, latency_ms => LATENCY_MS);
my $server = HubspotSync::Server->new('crash', simulator => $sim,
	conf => { restart_after_crash => 'on' });
# A list alone has one place to continue from, and reads nothing twice.
$server->sql(q{UPDATE sync_types SET full_strategy = 'list'});
my @ids = map { $_->{id} } $sim->objects('contacts');
$sim->archive('contacts', $_) foreach @ids[ 5, 1200 ];

my %crash = (
	'kill -9 of the worker' => sub {
		my ($worker) = @_;
		kill 'KILL', $worker or die "cannot kill $worker: $!";
		wait_until('the server has noticed', sub { !kill 0, $worker });
		wait_until('the server accepts connections', sub {
			my ($status, $out) = $server->psql('SELECT 1');
			return $status == 0;
		});
	},
	'an immediate restart' => sub {
		$server->stop('immediate');
		$server->start;
	});

# Starts a run and crashes something once it has stored so many records. The
# last of its pages does not come: it cannot end before. Returns the log of the
# dead run.
sub crash_at
{
	my ($how, $mode, $records, $pages) = @_;
	$sim->fault(path => $mode eq 'full' ? '/contacts?' : '/contacts/search', nth => $pages, times => 0, action => 'hang');
	my $id = $server->trigger('contacts', $mode);
	my $worker;
	wait_until("$records records are stored", sub {
		my $processed;
		($worker, $processed) = split /\|/, $server->sql(
			"SELECT holder_pid, records_processed FROM sync_run_states WHERE id = '$id' AND status = 'running'");
		return $worker && $processed >= $records;
	});
	$crash{$how}->($worker);
	$sim->clear_faults;

	my $log = $server->log($id);
	is($log->{status}, 'failed', "after $how the run reads failed at once")
	  or diag(explain $log);
	is($log->{error_details}{reason}, 'interrupted', '... as interrupted');
	is($server->sql("SELECT status FROM sync_runs WHERE id = '$id'"), 'running',
		'... though nobody has closed it yet');
	return $log;
}

# Crashes a walk several times, then lets it end. $requests returns the places
# of the pages a run asked for, as checkpoints have them under the name $place;
# $rows selects the rows that the walk has stored.
sub crash_walk
{
	my ($mode, $page, $pages, $place, $requests, $rows) = @_;
	my $stored = 0;
	my $last;
	foreach my $how ('kill -9 of the worker', 'an immediate restart', 'kill -9 of the worker')
	{
		my $left = $pages - $stored / $page;
		my $wanted = $page * int(rand($left / 2));
		$sim->clear_journal;
		my $log = crash_at($how, $mode, $wanted, $left);
		note("$how after $log->{records_processed} records, when " . ($pages * $page - $stored) . " were left");
		# One that was killed at once may not have looked yet where to begin.
		my @asked = $requests->();
		continues($log, $last, $place, $requests) if defined $last && @asked;
		$stored += $log->{records_processed};
		is($server->sql("SELECT count(*) FROM contacts WHERE $rows"), $stored,
			'exactly the records it has counted are in the table');
		# A run that has stored nothing leaves no place to continue from.
		$last = $log if defined $log->{checkpoint};
	}
	$sim->clear_journal;
	my $run = $server->run_sync('contacts', $mode);
	is($run->{status}, 'success', 'the next run succeeds') or diag($run->{stderr});
	my $log = $server->log($run->{run_id});
	continues($log, $last, $place, $requests);
	return ($stored, $log);
}

sub continues
{
	my ($log, $dead, $place, $requests) = @_;
	is($log->{continues}, $dead->{id}, 'the next run continues the dead one');
	is($server->sql("SELECT status FROM sync_runs WHERE id = '$dead->{id}'"), 'failed',
		'... which it has closed');
	my ($first, @others) = $requests->();
	is($first, $dead->{checkpoint}{$place}, '... at its checkpoint');
	is(scalar(grep { $_ <= $first } @others), 0, '... and asks for nothing before it');
	return;
}

# The places of the pages that runs asked for, 0 for the first.
sub listed
{
	return map { $_->{query}{after} // 0 }
	  grep { ($_->{query}{archived} // '') ne 'true' }
	  $sim->requests(method => 'GET', path => qr{/contacts$});
}

sub searched
{
	return map { last_id($_->{body}) } $sim->requests(path => qr{/contacts/search$});
}

sub last_id
{
	my ($body) = @_;
	my ($filter) = grep { $_->{propertyName} eq 'hs_object_id' }
	  map { @{ $_->{filters} } } @{ $body->{filterGroups} };
	return $filter ? $filter->{value} : 0;
}

# Exactly HubSpot's records, with HubSpot's values.
sub same_as_hubspot
{
	$server->load_objects('contacts');
	is($server->sql('SELECT count(*) FROM contacts'), CONTACTS, 'the table has every record once');
	is( $server->sql(<<~'SQL'), 0, '... with its values');
		SELECT count(*) FROM contacts c
		FULL JOIN sim_contacts s ON s.id = c.hubspot_contact_id
		WHERE (c.hubspot_contact_id, c.archived, c.email, c.first_name, c.last_name, c.phone,
				c.owner_id, c.lifecycle_stage, c.status, c.hubspot_updated_at)
			IS DISTINCT FROM
			(s.id, s.archived, s.record #>> '{properties,email}',
				s.record #>> '{properties,firstname}', s.record #>> '{properties,lastname}',
				s.record #>> '{properties,phone}', s.record #>> '{properties,hubspot_owner_id}',
				s.record #>> '{properties,lifecyclestage}', s.record #>> '{properties,hs_lead_status}',
				(s.record ->> 'updatedAt')::timestamptz)
		SQL
	return;
}

subtest 'a full run' => sub {
	my ($stored, $log) = crash_walk('full', LIST_PAGE, CONTACTS / LIST_PAGE, 'after', \&listed, 'true');
	is($stored + $log->{records_processed}, CONTACTS, 'every record was read exactly once');
	is( $server->sql(q{SELECT sum(records_changed) FROM sync_logs WHERE mode = 'full'}),
		CONTACTS, '... and written exactly once');
	same_as_hubspot();
};

subtest 'an incremental run' => sub {
	my $touched = 2000;
	$sim->touch('contacts', count => $touched, properties => { phone => '+49 30 1234567' });
	my ($stored, $log) = crash_walk('incremental', SEARCH_PAGE, $touched / SEARCH_PAGE,
		'last_id', \&searched, q{phone = '+49 30 1234567'});
	is($stored + $log->{records_processed}, $touched, 'every edit was read exactly once');
	is( $server->sql(q{SELECT sum(records_changed) FROM sync_logs WHERE mode = 'incremental'}),
		$touched, '... and written exactly once');
	same_as_hubspot();
};

subtest 'a run that dies before its first page' => sub {
	my $dead = crash_at('kill -9 of the worker', 'full', 0, 1);
	is($dead->{checkpoint}, undef, 'it leaves no checkpoint');
	my $run = $server->run_sync('contacts', 'full');
	is($run->{status}, 'success', 'the next run succeeds');
	my $log = $server->log($run->{run_id});
	is($log->{continues}, undef, '... from the beginning');
	is($log->{records_processed}, CONTACTS, '... reading everything');
	is($log->{records_changed}, 0, '... and writing nothing');
	same_as_hubspot();
};

is( $server->sql(q{SELECT count(*) FROM sync_runs WHERE status IN ('pending', 'running')}),
	0, 'no run is left open');

done_testing();
