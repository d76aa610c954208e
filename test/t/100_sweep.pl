# Whatever goes wrong with any one request, the next runs of a schedule bring
# every table and every contact to the truth, and the log tells what happened.
# A scenario with something of everything is played once for each case, that is
# a request and a fault; see HubspotSync::Sweep for the faults.
#
# There are thousands of cases. Here as many of them are tried as there is time
# for, in an order that a seed decides; scripts/sweep tries them all, or one.
# The environment variables that it sets:
#
#   HUBSPOT_SYNC_TEST_SEED       decides the order
#   HUBSPOT_SYNC_SWEEP_CASES     all, or names of cases, each on a line
#   HUBSPOT_SYNC_SWEEP_SECONDS   after so many no case of a sample is begun, once
#                                each fault has had its turn
#   HUBSPOT_SYNC_SWEEP_JOBS      servers at once
#
# prove: first

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HTTP::Tiny;
use HubspotSync::Parallel qw(in_parallel);
use HubspotSync::Sweep;
use HubspotSync::Truth qw(truth_differences);
use HubspotSync::Wait qw(wait_until);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant {
	SECONDS => 150,
	SHOWN => 12,    # differences
};

my $seed = $ENV{HUBSPOT_SYNC_TEST_SEED} // int(time * 1000) % 1_000_000;
my $jobs = $ENV{HUBSPOT_SYNC_SWEEP_JOBS} // 1;
my $named = $ENV{HUBSPOT_SYNC_SWEEP_CASES} // '';
diag("HUBSPOT_SYNC_TEST_SEED=$seed");

my $sweep = HubspotSync::Sweep->new('first');
is(join("\n", $sweep->survey), '', 'without a fault all is well');
cmp_ok(scalar $sweep->requests, '>', 50, 'the scenario has its requests');

# Each fault once, however long that takes, then as many cases as there is time
# for. All processes take theirs from one list.
my @cases = $named =~ /^(?:all)?$/ ? $sweep->sample($seed) : split /\n/, $named;
my $fewest = $named ? @cases : $sweep->kinds;
my $deadline = time + ($ENV{HUBSPOT_SYNC_SWEEP_SECONDS} // SECONDS);

sub sweep
{
	my ($number, $report) = @_;
	my $mine = HubspotSync::Sweep->new("sweep_$number");
	foreach my $n (grep { $_ % $jobs == $number } 0 .. $#cases)
	{
		last if $n >= $fewest && time > $deadline;
		$report->({ case => $cases[$n], problems => [ $mine->try($cases[$n]) ], met => [ $mine->met ] });
	}
	return;
}

my %tried;

sub take
{
	my ($it) = @_;
	my @problems = @{ $it->{problems} };
	$tried{ $it->{case} } = 1;
	ok(!@problems, $it->{case});
	diag(map { substr($_, 0, 400) . "\n" } splice @problems, 0, SHOWN);
	diag("repeat it with: scripts/sweep --case '$it->{case}'; met: @{ $it->{met} }") if @{ $it->{problems} };
	diag(keys(%tried) . ' of ' . @cases . ' cases tried') if $named && keys(%tried) % 25 == 0;
	return;
}

is(in_parallel($jobs, \&sweep, \&take), 0, 'all processes have ended well');
my %kinds = map { m{^\d+:(\w+)} ? ($1 => 1) : () } keys %tried;
note(keys(%tried) . ' of ' . @cases . ' cases at ' . $sweep->requests . ' requests');
is(join(' ', grep { !$tried{$_} } @cases[ 0 .. $fewest - 1 ]), '', $named ? 'every case was tried' : 'as many cases as there are faults were tried');
is(join(' ', grep { !$kinds{$_} } $sweep->kinds), '', 'each fault was tried') if $named =~ /^(?:all)?$/;

# ---------------------------------------------------------------------------
# A sweep that cannot fail proves nothing
# ---------------------------------------------------------------------------

my $scenario = $sweep->scenario;
my $server = $scenario->server;

# What is found after something was spoiled has to match.
sub noticed
{
	my ($what, $pattern) = @_;
	local $HubspotSync::Truth::lingering = 2;
	my $found = join "\n", truth_differences($scenario);
	like($found, $pattern, "noticed: $what");
	return;
}

subtest 'what is spoiled in the tables is noticed' => sub {
	is(join("\n", $sweep->survey), '', 'at first all is well');
	my %spoiled = (
		q{UPDATE contacts SET phone = '1' WHERE hubspot_contact_id = ID} => qr/^contacts ID: phone/m,
		q{UPDATE contacts SET properties = properties || '{"phone": "1"}' WHERE hubspot_contact_id = ID} => qr/^contacts ID: properties/m,
		q{UPDATE contacts SET synced_at = NULL WHERE hubspot_contact_id = ID} => qr/^contacts ID: not marked/m,
		q{UPDATE contacts SET archived = true WHERE hubspot_contact_id = ID} => qr/^contacts ID: archived/m,
		q{DELETE FROM contacts WHERE hubspot_contact_id = ID} => qr/^contacts ID: no row/m,
		q{INSERT INTO contacts (hubspot_contact_id) VALUES ('1')} => qr/^contacts 1: a row that should not/m,
		q{UPDATE contacts SET merged_into = '1' WHERE archived_reason = 'merged'} => qr/^contacts \d+: merged_into/m,
		q{DELETE FROM contacts WHERE archived_reason = 'gone'} => qr/^contacts \d+: no row/m,
		q{UPDATE deals SET status = 'won' WHERE status = 'open'} => qr/^deals \d+: status/m,
		q{UPDATE staff SET name = name || '.'} => qr/^owners \d+: name/m,
		q{DELETE FROM contact_owner_history} => qr/^history: /m,
		q{UPDATE progress_state SET fingerprint = 0 WHERE user_id = 's70'} => qr/^progress_state of s70/m,
		q{DELETE FROM progress_state WHERE user_id = 's70'} => qr/^progress_state of s70/m,
		q{UPDATE user_xp SET total_xp = 1 WHERE user_id = 's81'} => qr/^student s81: total_xp.*^student s81: still.*^student s81 by other/ms,
		q{UPDATE sync_runs SET status = 'running' WHERE id = (SELECT id FROM sync_runs LIMIT 1)} => qr/^sync_runs: .*^sync_logs: dead/ms,
		q{INSERT INTO sync_errors (run_id, connection_id, sync_type, record_id, category, message, first_seen, last_seen)
			SELECT id, connection_id, sync_type, '1', 'refused', 'no', now(), now() FROM sync_runs LIMIT 1}
			=> qr/^sync_errors: /m);
	my $id = $scenario->simulator->state && $server->sql('SELECT min(hubspot_contact_id) FROM contacts WHERE NOT archived');
	foreach my $statement (sort keys %spoiled)
	{
		my $pattern = $spoiled{$statement} =~ s/ID/$id/gr;
		$server->sql('CREATE TABLE kept AS SELECT * FROM contacts') if $statement =~ /contacts/;
		$server->sql($statement =~ s/ID/'$id'/gr);
		noticed($statement, qr/$pattern/);
		$server->sql('TRUNCATE contacts; INSERT INTO contacts SELECT * FROM kept; DROP TABLE kept') if $statement =~ /contacts/;
	}
};

subtest 'what is wrong in HubSpot, or still open, is noticed' => sub {
	is(join("\n", $sweep->survey), '', 'at first all is well');
	my $simulator = $scenario->simulator;
	my ($id) = map { $_->{id} } $simulator->objects('contacts', archived => 0);
	my $contact = $server->sql(q{SELECT hubspot_contact_id FROM preview_student_progress() WHERE user_id = 's90'});
	$simulator->patch('contacts', $contact, { lessons_completed => '77' });
	noticed('another value of a contact', qr/^student s90: lessons_completed is 77/m);
	my $other = $server->sql(q{SELECT contact FROM pupils WHERE n NOT IN (SELECT substr(id, 2)::int FROM users) ORDER BY n LIMIT 1});
	$simulator->patch('contacts', $other, { lessons_completed => '1' });
	noticed("progress of somebody who is no student", qr/^contact $other: progress, but no student/m);
	$server->reload('hubspot_sync.request_timeout' => '60s');
	$simulator->fault(times => 0, action => 'hang');
	my $run = $server->trigger('owners');
	wait_until('a connection is counted', sub { $simulator->state->{connections} == 1 });
	noticed('a run that is under way', qr/^sync_runs: owners is running.*^1 workers are there, 1 locks held and 1 connections open/ms);
	$server->sql("SELECT cancel_hubspot_sync('$run')");
	$server->wait_for($run);
	$server->reload('hubspot_sync.request_timeout' => '700ms');
	HTTP::Tiny->new(agent => 'a run')->patch($simulator->control_url . '/crm/objects/' . $simulator->api_version . "/contacts/$contact",
		{ headers => { Authorization => 'Bearer ' . $simulator->token }, content => '{"properties": {"phone": "1"}}' });
	noticed('a change that is none of our business', qr{^HubSpot was asked for PATCH /crm/objects/\S+/contacts/$contact of something else$}m);
	$simulator->create('contacts', { email => 'surplus@example.com' });
	noticed('a contact that has not come yet', qr/^contacts \d+: no row/m);
	$scenario->heal;
	my $expected = $scenario->expected_contacts;
	noticed('one that nobody should have created', qr/^HubSpot: @{[ $expected + 1 ]} contacts instead of $expected$/m);
};

subtest 'a fault that is not met, a log that does not tell, and a play that breaks off are noticed' => sub {
	like(join("\n", $sweep->try('10000:reset')), qr/^the fault was not met/m, 'a request that is never made');
	$server->sql(<<~'SQL');
		CREATE FUNCTION lie() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.retries := 0; NEW.requests := 1; RETURN NEW; END $$;
		CREATE TRIGGER lie BEFORE UPDATE ON sync_runs FOR EACH ROW EXECUTE FUNCTION lie();
		SQL
	my $found = join "\n", $sweep->try('3:reset');
	like($found, qr/^no run has noticed the fault/m, 'a retry that was not counted');
	like($found, qr/^the runs have counted/m, '... and a request');
	$server->sql('DROP FUNCTION lie() CASCADE');
	{
		local $HubspotSync::Sweep::longest_ms = 1;
		local $HubspotSync::Sweep::most_connections = 0;
		$found = join "\n", $sweep->try('3:reset');
	}
	like($found, qr/^run of \w+ took \d+ ms/m, 'a run that takes too long');
	like($found, qr/^\d+ connections at once/m, '... and too many connections');
	is(join("\n", $sweep->try('3:reset')), '', 'without the lie all is well');
	is(join(' ', $sweep->met), '3: GET /crm/objects/' . HubspotSync::Simulator->api_version . '/contacts', 'what was met is named')
	  or diag($sweep->met);
	is(join("\n", $sweep->try('3:{"kind":"error","status":418}')), '', 'a fault that is not in the list');
	is(scalar(grep { $_->{status} eq 'failed' && $_->{error_details}{reason} eq 'refused' } $sweep->runs), 1, '... which ends a run')
	  or diag(map { "$_->{sync_type}: " . HubspotSync::Sweep::ending($_) . "\n" } $sweep->runs);
	is(join("\n", $sweep->try('3:{"kind":"error","status":503,"times":3}')), '', '... more than once, which ends one too');
	is(scalar(grep { $_->{error_details}{reason} eq 'gave_up' } grep { $_->{status} eq 'failed' } $sweep->runs), 1, '... for its own reason');
	like(join("\n", $sweep->try('3:none')), qr/^could not be played to its end: no such fault/m, 'a fault that there is not');
	is(join("\n", $sweep->try('3:reset')), '', '... after which all is well');
};

my $library = slurp_file($server->node->config_data('--pkglibdir') . '/hubspot_sync.so');
ok($library !~ /injection/i, 'the library has no injection points');

done_testing();
