# When more than a hundred records and more than a tenth of the live rows are
# gone at once, a token that has lost permissions is likelier than a deletion:
# the run marks none of them, ends partial, says so, and does not count as the
# full run, though the watermark moves. What it refused is carried out by the
# next run once somebody has accepted it, and forgotten where the records are
# there again. What is certain, merges for one, is not held up.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 600,
	EVERY => 5,
	HIDDEN => 120,
	FEW => 10,
};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, companies => 0, deals => 0, owners => 3);
my $server = HubspotSync::Server->new('mass_absence', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 0, statement_timeout => '60s' });

# A table of the user's own that has no columns for our bookkeeping.
$server->sql(<<~SQL);
	CREATE TABLE firms (number bigint PRIMARY KEY, label text);
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns,
			modified_property, created_property, delete_policy)
		VALUES ('firms', 'companies', 'public', 'firms', '{number}', 'hs_lastmodifieddate', 'createdate', 'delete');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('firms', 'label', 'name');
	SQL

# ---------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------

# Forgets everything that was stored and begins with a first full run.
sub fresh
{
	my (%sizes) = @_;
	$sim->clear_faults;
	$sim->config(clock_offset_ms => 0);
	$sim->reset(contacts => CONTACTS, %sizes);
	$server->sql(<<~'SQL');
		TRUNCATE contacts, firms, sync_state, sync_runs, sync_errors, sync_rows, sync_absences,
			contact_owner_history, sync_owner_reads
		SQL
	run_ends('success', 'the first run', 'full');
	return;
}

sub ids
{
	my ($kind) = @_;
	return $sim->objects_text($kind // 'contacts') =~ /^\{"id":"(\d+)"/mg;
}

# Runs a type, which ends so; returns the log entry.
sub run_ends
{
	my ($status, $what, $mode, $type) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync($type // 'contacts', $mode);
	is($run->{status}, $status, "$what: the run ends $status") or diag($run->{stderr});
	return defined $run->{run_id} ? { %{ $server->log($run->{run_id}) }, stderr => $run->{stderr} } : {};
}

# A full run that refuses so many.
sub run_refuses
{
	my ($number, $what, $type) = @_;
	my $log = run_ends('partial', $what, 'full', $type);
	is($log->{error_details}{reason}, 'mass_absence', '... because so many are absent');
	is($log->{error_details}{absent}, $number, '... of which it knows the number');
	return $log;
}

# Rows by what they say.
sub marked
{
	my ($reason) = @_;
	return $server->sql("SELECT count(*) FROM contacts WHERE archived AND archived_reason = '$reason'");
}

# A column of the contacts' state, as text.
sub state
{
	my ($column) = @_;
	return $server->sql("SELECT $column FROM sync_state WHERE sync_type = 'contacts'");
}

sub alerts { return $server->sql_json("SELECT * FROM sync_alerts WHERE alert = 'mass_absence'"); }
sub accept_run { return $server->sql("SELECT accept_hubspot_absence('$_[0]')"); }
sub absences { return $server->sql('SELECT count(*) FROM sync_absences'); }

# Ids of the contacts whose row is not what HubSpot has; hidden records count
# as gone if `hidden` says so.
sub differences
{
	my (%how) = @_;
	my $hidden = join ', ', map { "'$_'" } '', $how{hidden} ? $sim->hidden('contacts') : ();
	$server->load_objects('contacts');
	return $server->sql(<<~"SQL");
		SELECT string_agg(coalesce(s.id, c.hubspot_contact_id), ' ')
		FROM contacts c FULL JOIN (SELECT * FROM sim_contacts WHERE id NOT IN ($hidden)) s
			ON s.id = c.hubspot_contact_id
		WHERE (NOT c.archived) IS TRUE <> (NOT s.archived) IS TRUE
			OR (NOT c.archived AND c.last_name IS DISTINCT FROM s.record #>> '{properties,lastname}')
		SQL
}

# ---------------------------------------------------------------------------
# Refusing
# ---------------------------------------------------------------------------

subtest 'a token that has lost permissions' => sub {
	fresh();
	my @ids = ids();
	my ($synced, $full) = (state('synced_until'), state('last_full_at'));
	$sim->config(clock_offset_ms => 120_000);
	is($sim->hide_every('contacts', EVERY), HIDDEN, 'a fifth of the records is hidden');

	# Hidden are those with a place that EVERY divides.
	my ($purged, $primary, $other, $archived, $edited, $new) = @ids[ 0, 10, 11, 20, 30 ];
	$sim->purge('contacts', $purged);
	$sim->merge('contacts', $primary, $other);
	$sim->archive('contacts', $archived);
	$sim->patch('contacts', $edited, { lastname => 'Edited' });
	($new) = $sim->create('contacts', { lastname => 'New' });

	my $log = run_refuses(HIDDEN + 1, 'they are gone');
	is(marked('gone'), 0, '... none is marked, not even the one that is');
	like($log->{error_details}{message}, qr/^121 records are absent in HubSpot/, '... the log says how many');
	like($log->{error_details}{hint}, qr/accept_hubspot_absence\(\)/, '... and what to do');
	like($log->{stderr}, qr/WARNING.*121 records are absent/, '... and so does the caller\'s warning');
	is($log->{records_failed}, 0, '... no record has failed');
	is($log->{records_archived}, 2, '... and two rows are marked all the same');
	is($server->sql("SELECT merged_into FROM contacts WHERE hubspot_contact_id = '$other'"), $primary, '... a merge');
	is($server->sql("SELECT archived_reason FROM contacts WHERE hubspot_contact_id = '$archived'"), 'archived',
		'... and an archived one');
	is($server->sql("SELECT count(*) FROM contacts WHERE last_name IN ('Edited', 'New')"), 2, '... edits are stored');
	is($server->sql("SELECT synced_until >= '$synced'::timestamptz + interval '1 minute' FROM sync_state"), 't', '... the watermark moves');
	is(state('last_full_at'), $full, '... the full run does not count');

	my @alerts = alerts();
	is(scalar @alerts, 1, '... there is one alert');
	is($alerts[0]{run_id}, $log->{id}, '... about the run');
	is($alerts[0]{severity}, 'critical', '... which is critical');
	is($alerts[0]{sync_type}, 'contacts', '... for the type');
	like($alerts[0]{message}, qr/^121 records of contacts .*accept_hubspot_absence/, '... and says what to do');
	is($server->sql('SELECT status FROM integration_health'), 'failing', '... of which integration_health knows');

	foreach my $mode ('auto', 'incremental')
	{
		my $next = run_ends('success', "$mode after it", $mode);
		is($next->{mode}, 'incremental', '... is incremental');
		is(marked('gone'), 0, '... it marks none of them');
		is(scalar $sim->requests(path => qr/batch/), 0, '... and does not look them up');
	}
	is(scalar alerts(), 1, '... the alert stays');

	my $again = run_refuses(HIDDEN + 1, 'the next full run');
	is(marked('gone'), 0, '... marks none either');
	is_deeply([ map { $_->{run_id} } alerts() ], [ $again->{id} ], '... the alert is about that one');
	is(state('last_full_at'), $full, '... which does not count either');
	like($server->sql_error("SELECT accept_hubspot_absence('$log->{id}')"), qr/ERROR:  55000: nothing is left to accept/,
		'... and the one before has nothing left to accept');

	# A full run that is due waits for some hours, then tries again.
	$server->sql("UPDATE sync_state SET last_full_at = now() - interval '8 days'");
	is(run_ends('success', 'soon after it', 'auto')->{mode}, 'incremental', '... auto makes no other full run');
	$server->sql("UPDATE sync_state SET last_refused_at = now() - interval '7 hours'");
	is(run_ends('partial', 'some hours later', 'auto')->{mode}, 'full', '... auto tries again');
};

subtest 'the limits' => sub {
	foreach my $case ([ 500, 101, 0 ], [ 500, 100, 1 ], [ 1009, 101, 0 ], [ 1010, 101, 1 ], [ 1100, 102, 1 ])
	{
		my ($all, $hidden, $believed) = @$case;
		fresh(contacts => $all);
		$sim->hide('contacts', (ids())[ 0 .. $hidden - 1 ]);
		if ($believed)
		{
			my $log = run_ends('success', "$hidden of $all", 'full');
			is($log->{records_archived}, $hidden, '... are believed');
			is(state('last_refused_at'), '', '... and nothing is refused');
		}
		else
		{
			run_refuses($hidden, "$hidden of $all");
		}
		is(marked('gone'), $believed ? $hidden : 0, '... so they are ' . ($believed ? '' : 'not ') . 'marked');
		is(differences(hidden => $believed), '', '... and no other');
	}

	# A tenth of what is live, not of what is there.
	fresh(contacts => 1010);
	my @ids = ids();
	$sim->archive('contacts', $_) foreach @ids[ 200 .. 209 ];
	$sim->hide('contacts', @ids[ 0 .. 100 ]);
	run_refuses(101, '101 of 1000 live ones');
};

subtest 'what was refused together with an earlier attempt' => sub {
	fresh();
	my @ids = ids();
	$sim->hide_every('contacts', EVERY);
	$sim->fault(path => '/batch/read', nth => 2, times => 0, action => 'reset');
	my $failed = run_ends('failed', 'broken off between two looks', 'full');
	$sim->clear_faults;
	my $log = run_refuses(HIDDEN, 'the rest of it');
	is($log->{continues}, $failed->{id}, '... which continues');
	is(scalar $sim->requests(path => qr/batch/), 1, '... with the second look only');
	is(accept_run($log->{id}), HIDDEN, '... all of them can be accepted by its id');
};

subtest 'a table without bookkeeping, and policy delete' => sub {
	fresh(companies => 400);
	run_ends('success', 'companies', 'full', 'firms');
	$sim->hide_every('companies', 3);
	my $log = run_refuses(133, 'a third of the companies is hidden', 'firms');
	is($server->sql('SELECT count(*) FROM firms'), 400, '... no row is deleted');
	is(accept_run($log->{id}), 133, '... they are accepted');
	is(run_ends('success', 'the next run', 'auto', 'firms')->{mode}, 'incremental', '... an incremental one');
	is($server->sql('SELECT count(*) FROM firms'), 267, '... deletes them');
	is($server->sql('SELECT count(*) FROM sync_rows WHERE archived_reason = \'gone\''), 133, '... and remembers it');
	run_ends('success', 'a full run', 'full', 'firms');
	$sim->unhide('companies');
	run_ends('success', 'when they are seen again', 'full', 'firms');
	is($server->sql('SELECT count(*) FROM firms'), 400, '... all are back');
};

# ---------------------------------------------------------------------------
# Accepting
# ---------------------------------------------------------------------------

subtest 'whom and what one cannot accept' => sub {
	fresh();
	my ($fine) = $server->sql("SELECT id FROM sync_logs");
	$sim->hide_every('contacts', EVERY);
	my $log = run_refuses(HIDDEN, 'so many');

	like($server->sql_error('SELECT accept_hubspot_absence(gen_random_uuid())'),
		qr/ERROR:  42704: there is no run with this id/, 'an id that no run has');
	like($server->sql_error("SELECT accept_hubspot_absence('$fine')"),
		qr/ERROR:  55000: this run has refused no absences.*"contacts" with status success/s, 'a run that refused nothing');
	is($server->sql('SELECT accept_hubspot_absence(NULL) IS NULL'), 't', 'no run at all');
	$server->sql('CREATE ROLE passerby LOGIN');
	like($server->sql_error("SELECT accept_hubspot_absence('$log->{id}')", user => 'passerby'),
		qr/ERROR:  42501/, 'a role without the privilege');
	is(scalar alerts(), 1, 'none of that changes anything');

	is($server->sql("BEGIN; SELECT accept_hubspot_absence('$log->{id}'); ROLLBACK"), HIDDEN, 'an acceptance that is rolled back');
	run_ends('success', 'the next run', 'auto');
	is(marked('gone'), 0, '... marks nothing');

	$server->sql('GRANT EXECUTE ON FUNCTION accept_hubspot_absence(uuid) TO passerby');
	is($server->sql("SELECT accept_hubspot_absence('$log->{id}')", user => 'passerby'), HIDDEN, 'a role with the privilege');
	is(scalar alerts(), 0, '... ends the alert');
	like($server->sql_error("SELECT accept_hubspot_absence('$log->{id}')"),
		qr/ERROR:  55000: nothing is left to accept of this run.*HINT:  It was accepted already/s, 'the same twice');
};

subtest 'what was accepted is carried out' => sub {
	foreach my $mode ('auto', 'incremental', 'full')
	{
		fresh();
		my $full = state('last_full_at');
		$sim->hide_every('contacts', EVERY);
		my $refused = run_refuses(HIDDEN, $mode);
		is(accept_run($refused->{id}), HIDDEN, '... all are accepted');
		is(marked('gone'), 0, '... which by itself marks nothing');
		my $log = run_ends('success', 'the next run', $mode);
		is($log->{mode}, $mode eq 'full' ? 'full' : 'incremental', '... in its mode');
		is($log->{records_archived}, HIDDEN, '... marks them');
		is(marked('gone'), HIDDEN, '... as gone');
		is(differences(hidden => 1), '', '... and no other');
		is(absences(), 0, '... nothing is left to be settled');
		is(state('last_full_at') eq $full, $mode ne 'full', '... and a full run counts again');
		is(state('last_refused_at') ne '', $mode ne 'full', '... without waiting any longer');
		run_ends('success', 'a full run', 'full');
		is(differences(hidden => 1), '', '... changes nothing any more');
		is(scalar alerts(), 0, '... and there is no alert');
	}
};

subtest 'a run that fails does not lose it' => sub {
	fresh();
	$sim->hide_every('contacts', EVERY);
	accept_run(run_refuses(HIDDEN, 'so many')->{id});
	$sim->fault(path => '/batch/read', nth => 2, times => 0, action => 'reset');
	run_ends('failed', 'the next run', 'incremental');
	is(marked('gone'), 0, '... has marked nothing yet');
	$sim->clear_faults;
	run_ends('success', 'the run after it', 'auto');
	is(marked('gone'), HIDDEN, '... marks them');
};

subtest 'only what was accepted' => sub {
	fresh();
	my @ids = ids();
	$sim->hide_every('contacts', EVERY);
	my $refused = run_refuses(HIDDEN, 'so many');
	accept_run($refused->{id});
	my @more = grep { my $id = $_; !grep { $_ eq $id } $sim->hidden('contacts') } @ids;
	$sim->hide('contacts', @more[ 0 .. 109 ]);
	my $log = run_refuses(110, 'more of them');
	is(marked('gone'), HIDDEN, '... those that were accepted are marked');
	is($server->sql("SELECT count(*) FROM contacts WHERE archived AND hubspot_contact_id IN ('"
			. join("', '", @more[ 0 .. 109 ]) . "')"), 0, '... the others are not');
	is_deeply([ map { $_->{run_id} } alerts() ], [ $log->{id} ], '... and there is an alert about them');
	is(accept_run($log->{id}), 110, '... they can be accepted in turn');
	run_ends('success', 'the next run', 'auto');
	is(differences(hidden => 1), '', '... marks them too');
};

# ---------------------------------------------------------------------------
# Permissions that come back
# ---------------------------------------------------------------------------

subtest 'records that are seen again' => sub {
	foreach my $accepted (0, 1)
	{
		fresh();
		my $full = state('last_full_at');
		$sim->hide_every('contacts', EVERY);
		my $refused = run_refuses(HIDDEN, 'so many');
		accept_run($refused->{id}) if $accepted;
		$sim->unhide('contacts');
		if ($accepted)
		{
			my $log = run_ends('success', 'accepted, then seen again: the next run', 'auto');
			is($log->{records_archived}, 0, '... looks before it marks');
			is(absences(), 0, '... and has nothing left to settle');
		}
		my $log = run_ends('success', 'a full run', 'full');
		is($log->{records_archived}, 0, '... marks nothing');
		is($server->sql('SELECT count(*) FROM contacts WHERE archived'), 0, '... nobody has');
		is(differences(), '', '... and all are what HubSpot has');
		isnt(state('last_full_at'), $full, '... it counts');
		is(state('last_refused_at'), '', '... and nothing is refused any more');
		is(scalar alerts() + absences(), 0, '... no alert is left');
		like($server->sql_error("SELECT accept_hubspot_absence('$refused->{id}')"), qr/ERROR:  55000: nothing is left/,
			'... nor anything to accept');
	}

	# Some of them only: what is still absent may be believed now.
	fresh();
	$sim->hide_every('contacts', EVERY);
	my @hidden = $sim->hidden('contacts');
	run_refuses(HIDDEN, 'so many');
	$sim->unhide('contacts');
	$sim->purge('contacts', $_) foreach @hidden[ 0 .. FEW - 1 ];
	run_ends('success', 'few of them in the end', 'full');
	is(marked('gone'), FEW, '... are believed');
	is(differences(), '', '... and all are what HubSpot has');
};

done_testing();
