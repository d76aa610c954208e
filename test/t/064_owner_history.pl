# contact_owner_history says who owned a contact at every moment since the
# first run, as HubSpot's own history does: however often the owner changed
# between two runs, back and forth or to nobody, whichever run found it, and
# for contacts that are new. Where HubSpot tells no history it is right at the
# moments of the runs. Rows of one contact never overlap, and come and go with
# the page that is their reason.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::OwnerHistory qw(history_differences history_overlaps);
use HubspotSync::Server;
use HubspotSync::Simulator;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 240,
	OWNERS => 9,
	HISTORIES => 50,    # that HubSpot tells in one answer
	DAY_MS => 86_400_000,
};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, owners => OWNERS, deals => 0, companies => 0);
my $server = HubspotSync::Server->new('owner_history', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 0, statement_timeout => '60s' });

my $property = 'hubspot_owner_id';
my @owners = sort map { $_->{id} } $sim->objects('owners', archived => 0);
my ($A, $B, $C) = @owners;

# From this instant of HubSpot's on the history has to be exact.
my $since;

# ---------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------

# Forgets everything that was stored and begins with a first full run.
sub fresh
{
	my (%sizes) = @_;
	$sim->clear_faults;
	$sim->config(property_history => JSON::PP::true, search_lag_ms => 0);
	$sim->reset(%sizes);
	$server->sql(<<~'SQL');
		TRUNCATE contacts, sync_state, sync_runs, sync_errors, sync_rows, sync_absences,
			contact_owner_history, sync_owner_reads;
		UPDATE sync_types SET delete_policy = 'mark', filters = NULL
		SQL
	run_ends('success', 'the first run', 'full');
	$since = now_ms();
	return;
}

sub now_ms { return $sim->state->{now_ms}; }

# Runs contacts, which ends so; returns the log entry.
sub run_ends
{
	my ($status, $what, $mode) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync('contacts', $mode);
	is($run->{status}, $status, "$what: the run ends $status") or diag($run->{stderr});
	is(history_overlaps($server), 0, '... no ownerships overlap');
	is(owner_now(), '', '... and the present owner is the contact\'s');
	return defined $run->{run_id} ? $server->log($run->{run_id}) : {};
}

# The live contacts whose open ownership is not of their owner.
sub owner_now
{
	return $server->sql(<<~'SQL');
		SELECT string_agg(c.hubspot_contact_id, ' ')
		FROM contacts c LEFT JOIN contact_owner_history h
			ON (h.connection_id, h.hubspot_contact_id) = (c.connection_id, c.hubspot_contact_id) AND h.valid_to IS NULL
		WHERE NOT c.archived AND nullif(c.owner_id, '') IS DISTINCT FROM h.owner_id
		SQL
}

# Live contacts' ids whose owner fits.
sub ids
{
	my ($owned) = @_;
	return map { $_->{id} }
	  grep { !defined $owned || !!$_->{properties}{$property} == !!$owned } $sim->objects('contacts', archived => 0);
}

# Gives a contact owners in turn; '' for none.
sub give
{
	my ($id, @to) = @_;
	$sim->patch('contacts', $id, { $property => $_ }) foreach @to;
	return;
}

# Owners other than a contact's.
sub others
{
	my ($id) = @_;
	my $owner = $sim->object('contacts', $id)->{properties}{$property} // '';
	return grep { $_ ne $owner } @owners;
}

# A contact's ownerships as owner and whether they have ended, oldest first.
sub noted
{
	my ($id) = @_;
	return $server->sql("SELECT string_agg(owner_id || CASE WHEN valid_to IS NULL THEN '' ELSE ' ended' END, ', ' ORDER BY valid_from)
		FROM contact_owner_history WHERE hubspot_contact_id = '$id'");
}

sub history_requests
{
	return grep { @{ $_->{body}{propertiesWithHistory} || [] } } $sim->requests(path => qr{/batch/read$});
}

# What may happen to a contact's owner between two runs. Each gets a contact
# that has an owner, or has none, or is new.
my %past = (
	'another owner' => sub { my ($id) = @_; give($id, (others($id))[0]) },
	'another owner, then other edits' => sub {
		my ($id) = @_;
		give($id, (others($id))[0]);
		$sim->patch('contacts', $id, { lastname => $_ }) foreach qw(Edited Again);
	},
	'several owners' => sub { my ($id) = @_; give($id, (others($id))[ 0, 1, 2, 0, 3 ]) },
	'no owner' => sub { my ($id) = @_; give($id, '') },
	'an owner, then none' => sub { my ($id) = @_; give($id, (others($id))[0], '') },
	'none, then another one' => sub { my ($id) = @_; give($id, '', (others($id))[0]) },
);
my %without = (
	'none before, now one' => sub { my ($id) = @_; give($id, $A) },
	'none before, now the third' => sub { my ($id) = @_; give($id, $A, $B, $C) },
	'none before, now one, then other edits' => sub {
		my ($id) = @_;
		give($id, $A);
		$sim->patch('contacts', $id, { lastname => 'Edited' });
	},
);
my %new = (
	'new with an owner' => sub { new_contact($A) },
	'new with an owner and edits' => sub {
		my $id = new_contact($A);
		$sim->patch('contacts', $id, { lastname => 'Edited' });
		return $id;
	},
	'new with several owners' => sub { my $id = new_contact($A); give($id, $B, $C); return $id },
	'new without, then with an owner' => sub { my $id = new_contact(undef); give($id, $B); return $id },
);

sub new_contact
{
	my ($owner) = @_;
	return ($sim->create('contacts', { lastname => 'New', defined $owner ? ($property => $owner) : () }))[0];
}

# Lets all of that happen to some contacts; returns which it is for each.
sub live_through
{
	my @with = ids(1);
	my @none = ids(0);
	my %what;
	foreach my $name (sort keys %past)
	{
		my $id = splice @with, rand @with, 1;
		$past{$name}->($id);
		$what{$id} = $name;
	}
	foreach my $name (sort keys %without)
	{
		my $id = splice @none, rand @none, 1;
		$without{$name}->($id);
		$what{$id} = $name;
	}
	$what{ $new{$_}->() } = $_ foreach sort keys %new;
	return %what;
}

srand 1;

# ---------------------------------------------------------------------------
# What happens between two runs
# ---------------------------------------------------------------------------

subtest 'the first run' => sub {
	fresh();
	is($server->sql('SELECT count(*) FROM contact_owner_history'), scalar ids(1), 'every contact with an owner has one ownership');
	is($server->sql('SELECT count(*) FROM contact_owner_history WHERE valid_to IS NOT NULL'), 0, '... which is open');
	is(history_differences($server, $since), '', '... and the true one');
	is(scalar history_requests(), 0, 'nobody asks HubSpot for what was before');
	run_ends('success', 'another', 'full');
	is(history_differences($server, $since), '', 'another run changes nothing');
	is(scalar history_requests(), 0, '... and asks for nothing');
};

subtest 'between two runs' => sub {
	foreach my $mode ('incremental', 'full')
	{
		fresh();
		foreach my $round (1, 2)
		{
			my %what = live_through();
			run_ends('success', "$mode, round $round", $mode);
			foreach my $id (sort { $what{$a} cmp $what{$b} } keys %what)
			{
				is(history_differences($server, $since, $id), '', "... $what{$id}");
			}
			is($server->sql('SELECT count(*) FROM sync_owner_reads'), 0, '... all histories are read');
		}
		is(history_differences($server, $since), '', "... and those of all others are the true ones ($mode)");
		run_ends('success', 'one more run', $mode);
		is(scalar history_requests(), 0, '... asks for no history') if $mode eq 'full';
	}
};

# What leaves a contact with the owner it had, so that only HubSpot's history
# tells it.
subtest 'away and back between two runs' => sub {
	foreach my $mode ('incremental', 'full')
	{
		fresh();
		my ($back, $interrupted) = ids(1);
		my ($none) = ids(0);
		foreach my $case ([ $back, (others($back))[0] ], [ $interrupted, '' ])
		{
			my ($id, $between) = @$case;
			give($id, $between, $sim->object('contacts', $id)->{properties}{$property});
		}
		give($none, $A, '');
		my $new = new_contact($A);
		give($new, '');
		run_ends('success', $mode, $mode);
		is(history_differences($server, $since, $back), '', '... another owner and the first one again');
		is(history_differences($server, $since, $interrupted), '', '... none and the first one again');
		is(history_differences($server, $since, $none), '', '... an owner and none again');
		is(history_differences($server, $since, $new), '', '... a new contact that has none any more');
	}
};

subtest 'many at once' => sub {
	fresh();
	my @some = (ids(1))[ 0 .. 119 ];
	foreach my $id (@some)
	{
		give($id, (others($id))[ 0, 1 ]);
	}
	run_ends('success', 'the incremental run', 'incremental');
	is(history_differences($server, $since), '', '... has the true history of all');
	my @requests = history_requests();
	is(scalar @requests, 3, '... by the fewest requests');
	is(scalar(grep { @{ $_->{body}{inputs} } > HISTORIES } @requests), 0, '... of a size that HubSpot accepts');

	# More new contacts than are asked about: their first owner may be missed.
	my @new = map { new_contact($A) } 1 .. 130;
	give($_, $B) foreach @new;
	run_ends('success', 'many new contacts', 'incremental');
	is(history_differences($server, now_ms()), '', '... have their present owner');
	is($server->sql("SELECT count(*) FROM contact_owner_history WHERE owner_id = '$B' AND valid_to IS NULL
		AND hubspot_contact_id IN ('" . join("', '", @new) . "')"), scalar @new, '... every one of them');
};

# ---------------------------------------------------------------------------
# Contacts that come and go
# ---------------------------------------------------------------------------

subtest 'archived and restored' => sub {
	fresh();
	my ($idle, $changed, $late) = ids(1);
	my $owner = noted($idle);
	give($late, (others($late))[ 0, 1 ]);
	$sim->archive('contacts', $_) foreach $idle, $changed, $late;
	run_ends('success', 'some are archived', 'full');
	is(noted($idle), $owner, '... and keep their owner');
	is(history_differences($server, $since, $late), '', '... one that changed just before has the true history');
	$sim->restore('contacts', $_) foreach $idle, $changed, $late;
	give($changed, (others($changed))[ 0, 1 ]);
	run_ends('success', 'and restored', 'full');
	is(history_differences($server, $since), '', '... with the true history');
};

subtest 'merged' => sub {
	foreach my $mode ('incremental', 'full')
	{
		fresh();
		my @with = ids(1);
		my ($none) = ids(0);
		my ($primary, $other, $first, $second, $giver) = @with;
		give($primary, (others($primary))[0]);
		$sim->merge('contacts', $primary, $other);
		my $survivor = $sim->merge('contacts', $first, $second, new_id => JSON::PP::true)->{id};
		$sim->merge('contacts', $none, $giver);
		run_ends('success', "merges, $mode", $mode);
		foreach my $id ($other, $first, $second, $giver)
		{
			like(noted($id), qr/ ended$/, '... what was merged away has no owner any more');
		}
		is(history_differences($server, $since, $primary, $none), '', '... the survivors have the true history');
		like(noted($survivor), qr/^(\d+ ended, )*\d+$/, '... one with a new id has its owner');
		is(history_differences($server, $since), '', '... and so have all others');
		my $ends = $server->sql('SELECT max(valid_to) FROM contact_owner_history');
		run_ends('success', 'once more', $mode);
		is($server->sql('SELECT max(valid_to) FROM contact_owner_history'), $ends, '... changes nothing');
	}
};

subtest 'gone, and seen again' => sub {
	foreach my $policy ('mark', 'delete')
	{
		fresh();
		$server->sql("UPDATE sync_types SET delete_policy = '$policy' WHERE sync_type = 'contacts'");
		my ($purged, $hidden, $changed) = ids(1);
		my $owner = noted($hidden);
		$sim->purge('contacts', $purged);
		$sim->hide('contacts', $hidden, $changed);
		run_ends('success', "policy $policy, gone", 'full');
		like(noted($_), qr/^\d+ ended$/, '... has no owner any more') foreach $purged, $hidden, $changed;
		is($server->sql("SELECT bool_and(valid_to > now() - interval '5 minutes' AND valid_to <= now())
			FROM contact_owner_history WHERE valid_to IS NOT NULL"), 't', '... since now');

		$sim->unhide('contacts');
		give($changed, (others($changed))[0]);
		run_ends('success', 'seen again', 'full');
		is(history_differences($server, now_ms()), '', '... has its owner again');
		is(history_differences($server, $since, $changed), '', '... one that has changed since, with the true history');
	}
};

subtest 'filtered' => sub {
	fresh();
	my ($leaves, $stays) = ids(1);
	$sim->patch('contacts', $_, { lifecyclestage => 'lead' }) foreach $leaves, $stays;
	$server->sql(q{UPDATE sync_types SET filters = '{"lifecyclestage": "lead"}' WHERE sync_type = 'contacts'});
	run_ends('success', 'leads only', 'auto');
	give($_, (others($_))[ 0, 1 ]) foreach $leaves, $stays;
	$sim->patch('contacts', $leaves, { lifecyclestage => 'customer' });
	run_ends('success', 'one leaves', 'incremental');
	is(history_differences($server, $since, $leaves, $stays), '', '... and is followed all the same');
	my $new = new_contact($A);
	run_ends('success', 'a new one that is no lead', 'incremental');
	is(noted($new), '', '... is not');
};

# ---------------------------------------------------------------------------
# With less to go by
# ---------------------------------------------------------------------------

subtest 'an account that tells no history' => sub {
	foreach my $mode ('incremental', 'full')
	{
		fresh();
		$sim->config(property_history => JSON::PP::false);
		my ($single, $several, $ended, $back) = ids(1);
		give($single, (others($single))[0]);
		give($several, (others($several))[ 0, 1, 2 ]);
		give($ended, (others($ended))[0], '');
		my $before = noted($back);
		give($back, (others($back))[0], $before);
		my ($new) = new_contact($A);
		run_ends('success', "no history, $mode", $mode);
		is(history_differences($server, now_ms()), '', '... the present owners are right');
		is(history_differences($server, $since, $single, $new), '', '... of one change the time is right, too');
		like(noted($several), qr/^\d+ ended, \d+$/, '... of several the last is noted');
		like(noted($ended), qr/^\d+ ended$/, '... that there is none any more, too');
		is(noted($back), $before, '... the same owner as before goes on');

		give($several, (others($several))[0]);
		run_ends('success', 'the next run', $mode);
		like(noted($several), qr/^\d+ ended, \d+ ended, \d+$/, '... adds to it');
		is($server->sql('SELECT count(*) FROM sync_owner_reads'), 0, '... it does not ask for ever');

		$sim->config(property_history => JSON::PP::true);
		give($_, (others($_))[0]) foreach $single, $several, $ended;
		run_ends('success', 'when there is one again', $mode);
		is(history_differences($server, $since, $single, $several, $ended), '', '... it is made up for');
	}
};

subtest 'an answer that is of no use' => sub {
	my $history = '/batch/read';
	foreach my $answer (
		'{"status": "COMPLETE", "results": []}',
		'{"status": "COMPLETE", "results": [{"id": "%s", "properties": {"hubspot_owner_id": "%s"}, "propertiesWithHistory": {"hubspot_owner_id": [{"value": "x", "timestamp": "no time"}]}}]}',
		'{"status": "COMPLETE", "results": [{"id": "%s", "properties": {"hubspot_owner_id": "%s"}, "propertiesWithHistory": {"hubspot_owner_id": []}}]}',
		'{"status": "COMPLETE", "results": [{"id": "%s", "properties": {"hubspot_owner_id": "%s"}, "propertiesWithHistory": {"hubspot_owner_id": [{"value": "somebody", "timestamp": "2020-01-01T00:00:00Z"}]}}]}',
		'{"status": "COMPLETE", "results": [{"id": "%s", "properties": {"hubspot_owner_id": "%s"}, "propertiesWithHistory": null}, null, 7, {"id": null}]}')
	{
		fresh();
		my ($id) = ids(1);
		my ($to) = others($id);
		give($id, $to);
		$sim->fault(path => $history, action => { kind => 'body', raw => sprintf $answer, $id, $to });
		run_ends('success', substr($answer, 23, 40), 'incremental');
		is(history_differences($server, $since), '', '... and what was noted stays');
	}

	# Neither does a refusal stop the run.
	fresh();
	my ($id) = ids(1);
	give($id, (others($id))[0]);
	$sim->fault(path => $history, action => { kind => 'status', status => 400, json => { status => 'error', message => 'no' } });
	run_ends('success', 'a refusal', 'incremental');
	is(history_differences($server, $since), '', '... and what was noted stays');
};

subtest 'a history in any order, with two values of one instant' => sub {
	fresh();
	my ($id) = ids(1);
	my ($to) = others($id);
	give($id, $to);
	# HubSpot sends the newest first: of one instant the first counts.
	my @values = ([ '901', '2020-01-01' ], [ $to, '2020-04-01' ], [ '903', '2020-03-01' ], [ '904', '2020-03-01' ],
		[ '902', '2020-02-01' ]);
	my $history = join ', ', map { qq({"value": "$_->[0]", "timestamp": "$_->[1]T00:00:00Z"}) } @values;
	$sim->fault(path => '/batch/read', action => { kind => 'body',
			raw => qq({"status": "COMPLETE", "results": [{"id": "$id", "properties": {"$property": "$to"},
				"propertiesWithHistory": {"$property": [$history]}}]}) });
	run_ends('success', 'answered so', 'incremental');
	is($server->sql("SELECT string_agg(owner_id || to_char(valid_from AT TIME ZONE 'UTC', ' MM-')
			|| coalesce(to_char(valid_to AT TIME ZONE 'UTC', 'MM'), 'now'), ', ' ORDER BY valid_from)
		FROM contact_owner_history WHERE hubspot_contact_id = '$id'"),
		"901 01-02, 902 02-03, 903 03-04, $to 04-now", 'it is taken over in the order of time');
};

subtest 'an answer that is about another contact' => sub {
	fresh();
	my ($id, $other) = ids(1);
	give($id, (others($id))[ 0, 1 ]);
	$sim->fault(path => '/batch/read', action => { kind => 'body',
			raw => qq({"status": "COMPLETE", "results": [{"id": "$other", "properties": {}, "propertiesWithHistory": {}}]}) });
	run_ends('success', 'answered with another', 'incremental');
	isnt(history_differences($server, $since), '', '... does not know who was owner meanwhile');
	run_ends('success', 'the next', 'incremental');
	is(history_differences($server, $since), '', '... asks again');
};

subtest 'a run that is broken off before it asks' => sub {
	fresh();
	my @some = (ids(1))[ 0 .. 69 ];
	give($_, (others($_))[ 0, 1 ]) foreach @some;
	$sim->fault(path => '/batch/read', nth => 2, times => 0, action => 'reset');
	run_ends('failed', 'between two requests', 'incremental');
	is($server->sql('SELECT count(*) FROM sync_owner_reads'), @some - HISTORIES, '... it remembers what is left');
	$sim->clear_faults;
	run_ends('success', 'the next run', 'incremental');
	is(history_differences($server, $since), '', '... makes up for it');
};

subtest 'a search that lags behind' => sub {
	foreach my $told (1, 0)
	{
		fresh();
		my ($id, $gone) = ids(1);
		$sim->patch('contacts', $_, { lastname => 'Fresh' }) foreach $id, $gone;
		run_ends('success', 'before', 'incremental');
		$sim->config(search_lag_ms => DAY_MS, property_history => $told ? JSON::PP::true : JSON::PP::false);
		give($id, (others($id))[0]);
		$sim->purge('contacts', $gone);
		run_ends('success', 'the list is ahead', 'full');
		is(history_differences($server, $since), '', '... and the history with it');
		run_ends('success', 'the search is behind' . ($told ? '' : ', and HubSpot tells no history'), 'incremental');
		is(history_differences($server, $since), '', '... and does not turn it back');
		like(noted($gone), qr/ ended$/, '... nor gives what is gone an owner');
	}
};

# ---------------------------------------------------------------------------
# The page and its history are one
# ---------------------------------------------------------------------------

subtest 'a contact that cannot be stored' => sub {
	fresh();
	my ($bad, $good) = ids(1);
	my $before = noted($bad);
	$server->sql(<<~"SQL");
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			IF new.hubspot_contact_id = '$bad' OR new.last_name = 'Refused' THEN RAISE EXCEPTION 'refused'; END IF;
			RETURN new;
		END \$\$;
		CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON contacts FOR EACH ROW EXECUTE FUNCTION refuse();
		SQL
	give($_, (others($_))[0]) foreach $bad, $good;
	my ($new) = $sim->create('contacts', { lastname => 'Refused', $property => $A });
	run_ends('partial', 'two are refused', 'incremental');
	is(noted($bad), $before, '... their history is that of their row');
	is(noted($new), '', '... without a row there is none');
	is(history_differences($server, $since, $good), '', '... the others have theirs');
	$server->sql('DROP FUNCTION refuse CASCADE');
	run_ends('success', 'when they are stored', 'incremental');
	is(history_differences($server, $since, $bad, $good), '', '... they have theirs too');
	is(history_differences($server, now_ms()), '', '... all of them');
};

# ---------------------------------------------------------------------------
# The view
# ---------------------------------------------------------------------------

subtest 'contact_owner_changes' => sub {
	fresh();
	$server->sql(q{UPDATE contact_owner_history SET valid_from = least(valid_from, now() - interval '8 days')});
	is($server->sql('SELECT count(*) FROM contact_owner_changes'), 0, 'what is older than a week does not show');
	my ($changed, $ended, $purged) = ids(1);
	my ($begun) = ids(0);
	my %owner = map { $_ => $sim->object('contacts', $_)->{properties}{$property} } $changed, $ended, $purged;
	my ($next) = others($changed);
	give($changed, $next);
	give($ended, '');
	give($begun, $A);
	$sim->purge('contacts', $purged);
	run_ends('success', 'a run', 'full');

	my @expected = ("$changed $owner{$changed} -> $next", "$ended $owner{$ended} -> nobody",
		"$purged $owner{$purged} -> nobody", "$begun nobody -> $A");

	# What HubSpot tells reaches back further, and is not what is tested.
	is($server->sql(<<~"SQL"), join("\n", sort @expected), 'every change shows once');
		SELECT format('%s %s -> %s', hubspot_contact_id, coalesce(previous_owner_id, 'nobody'), coalesce(owner_id, 'nobody'))
		FROM contact_owner_changes WHERE changed_at > now() - interval '10 minutes' ORDER BY 1
		SQL
	my ($entry) = grep { $_->{id} eq $changed } $sim->history('contacts', $property);
	is($server->sql("SELECT (extract(epoch FROM changed_at) * 1000)::bigint FROM contact_owner_changes
			WHERE hubspot_contact_id = '$changed' ORDER BY changed_at DESC LIMIT 1"),
		$entry->{history}[-1]{timestamp}, '... with its time');
};

done_testing();
