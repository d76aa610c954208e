# A record that leaves HubSpot's lists without a word, because it was deleted
# for good, merged, archived or restored, is noticed by the next run that can
# know of it, however the list and the run were cut into pieces, and its row
# follows the type's policy. Nothing else is ever marked: no row that the sync
# did not write, none on the word of a list in disorder or of a part of it, and
# none that a single look does not confirm.

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

use constant {
	CONTACTS => 350,
	COMPANIES => 160,
	DEALS => 40,
	PAGE => 100,
	DAY_MS => 86_400_000,
	HIGHEST_ID => '9223372036854775807',
};

my $sim = HubspotSync::Simulator->start(
	contacts => CONTACTS, companies => COMPANIES, deals => DEALS, owners => 6);
my $server = HubspotSync::Server->new('absence', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 0, statement_timeout => '60s' });

my $contacts = '/crm/objects/2026-09/contacts';
my $nobody = '00000000-0000-0000-0000-000000000000';

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

# Forgets everything that was stored and starts with the first data.
sub fresh
{
	my (%sizes) = @_;
	$sim->clear_faults;
	$sim->control('DELETE', 'script');
	$sim->config(
		batch_read_resolves_merged => JSON::PP::false,
		restore_moves_modified => JSON::PP::false,
		search_lag_ms => 0,
		send_limit_headers => undef,
		daily_max => 625_000);
	$sim->reset(%sizes);
	$server->sql(<<~'SQL');
		TRUNCATE contacts, deals, staff, firms, sync_state, sync_runs, sync_errors, sync_rows, sync_absences,
			contact_owner_history, sync_owner_reads;
		UPDATE sync_types SET delete_policy = CASE sync_type WHEN 'firms' THEN 'delete' ELSE 'mark' END
			WHERE delete_policy <> CASE sync_type WHEN 'firms' THEN 'delete' ELSE 'mark' END;
		SQL
	return;
}

sub policy
{
	my ($type, $policy) = @_;
	$server->sql("UPDATE sync_types SET delete_policy = '$policy' WHERE sync_type = '$type'");
	return;
}

sub ids
{
	my ($type) = @_;
	return $sim->objects_text($type // 'contacts') =~ /^\{"id":"(\d+)"/mg;
}

# Runs a type, which ends so; returns the log entry.
sub run_ends
{
	my ($status, $what, $type, $mode, $timeframe) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync($type, $mode, $timeframe);
	is($run->{status}, $status, "$what: the run ends $status") or diag($run->{stderr});
	return defined $run->{run_id} ? $server->log($run->{run_id}) : {};
}

# A full run that is the first one.
sub first_run
{
	my (@types) = @_;
	run_ends('success', "the first run of $_", $_, 'full') foreach @types ? @types : 'contacts';
	return;
}

# What a contact's row, or a deal's, says of its record.
sub row
{
	my ($id, $type) = @_;
	my ($table, $key) = ($type // 'contacts') eq 'deals' ? qw(deals hubspot_deal_id) : qw(contacts hubspot_contact_id);
	return $server->sql(<<~"SQL") || 'no row';
		SELECT CASE
			WHEN NOT archived AND coalesce(archived_reason, merged_into, archived_at::text) IS NULL THEN 'live'
			WHEN archived AND archived_at IS NOT NULL AND (archived_reason = 'merged') = (merged_into IS NOT NULL)
				THEN concat_ws(' into ', archived_reason, merged_into)
			ELSE 'contradicts itself' END
		FROM $table WHERE $key = '$id' AND connection_id = '$nobody'
		SQL
}

sub is_row
{
	my ($id, $expected, $what, $type) = @_;
	is(row($id, $type), $expected, $what);
	return;
}

sub firm
{
	my ($id) = @_;
	return $server->sql("SELECT 'live' FROM firms WHERE number = $id") || 'no row';
}

# Ids of the contacts that are live here and not in HubSpot, or the other way
# round, or have another name there.
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

# The same of the table without bookkeeping.
sub firm_differences
{
	$server->load_objects('companies');
	return $server->sql(<<~'SQL');
		SELECT string_agg(coalesce(s.id, f.number::text), ' ')
		FROM firms f FULL JOIN (SELECT * FROM sim_companies WHERE NOT archived) s ON s.id = f.number::text
		WHERE f.number IS NULL OR s.id IS NULL OR f.label IS DISTINCT FROM s.record #>> '{properties,name}'
		SQL
}

# Requests of the last run: pages of the list and of the recycle bin, searches,
# and batch reads other than for histories.
sub counts
{
	my @all = $sim->requests;
	my @lists = grep { $_->{method} eq 'GET' } @all;
	my @bin = grep { ($_->{query}{archived} // '') eq 'true' } @lists;
	return {
		list => @lists - @bin,
		bin => scalar @bin,
		search => scalar(grep { $_->{path} =~ m{/search$} } @all),
		batch => scalar(grep { $_->{path} =~ m{/batch/read$} && !@{ $_->{body}{propertiesWithHistory} || [] } } @all),
	};
}

sub make_sweep_due
{
	$server->sql("UPDATE sync_state SET last_sweep_at = now() - interval '25 hours'");
	return;
}

sub absences { return $server->sql('SELECT count(*) FROM sync_absences'); }

# ---------------------------------------------------------------------------
# What becomes of a record
# ---------------------------------------------------------------------------

subtest 'what a full run finds' => sub {
	foreach my $type ('contacts', 'deals')
	{
		fresh();
		first_run($type);
		my @ids = ids($type);
		my ($purged, $archived, $primary, $other, $patched) = @ids[ 3, 8, 12, 21, 30 ];
		$sim->purge($type, $purged);
		$sim->archive($type, $archived);
		$sim->merge($type, $primary, $other);
		$sim->patch($type, $patched, { $type eq 'deals' ? 'dealname' : 'lastname' => 'Changed' });

		run_ends('success', "$type before", $type, 'incremental');
		is_row($purged, 'live', '... an incremental run cannot know what was purged', $type);
		my $log = run_ends('success', $type, $type, 'full');
		is_row($purged, 'gone', '... what was purged is gone', $type);
		is_row($archived, 'archived', '... what was archived is archived', $type);
		is_row($other, "merged into $primary", '... what was merged is merged', $type);
		is_row($_, 'live', '... the others are live', $type) foreach $primary, $patched, @ids[ 0, $#ids ];
		is($server->sql("SELECT count(*) FROM $type WHERE archived"), 3, '... and no other row is marked');
		is($server->sql("SELECT count(*) FROM $type WHERE archived AND synced_at > now() - interval '1 hour'
				AND updated_at > now() - interval '1 hour' AND archived_at > now() - interval '1 hour'"), 3,
			'... the marked rows say when');
		is($log->{records_archived}, 2, '... the log counts what the run before had not found');
		is(absences(), 0, '... nothing is left to be settled');

		my $before = $server->sql("SELECT string_agg(x::text, e'\\n' ORDER BY x::text) FROM $type x");
		$log = run_ends('success', 'the same again', $type, 'full');
		is($log->{records_changed} + $log->{records_archived}, 0, '... changes nothing');
		is($server->sql("SELECT string_agg(x::text, e'\\n' ORDER BY x::text) FROM $type x"), $before, '... at all');
		is(counts()->{batch}, 0, '... and looks nothing up');
	}
};

subtest 'an answer that is about other records' => sub {
	fresh();
	first_run();
	my @ids = ids();
	$sim->purge('contacts', $ids[3]);
	$sim->hide('contacts', $ids[4]);
	$sim->script(path => '/batch/read', do => [ { op => 'unhide', type => 'contacts' } ]);
	$sim->merge('contacts', $ids[7], $ids[6]);
	my $other = JSON::PP->new->utf8->encode({ status => 'COMPLETE', results => [ $sim->object('contacts', $ids[5]) ] });
	$sim->fault(path => '/batch/read', action => { kind => 'body', raw => $other });
	run_ends('success', 'answered with another', 'contacts', 'full');
	is(counts()->{batch}, 4, '... each is asked for by itself');
	is_row($ids[3], 'gone', '... finds who is gone');
	is_row($ids[4], 'live', '... who is not');
	is_row($ids[6], "merged into $ids[7]", '... and who was merged');
};

subtest 'an answer that goes on being about others' => sub {
	fresh();
	first_run();
	my @ids = ids();
	my $about = sub {
		my ($id, $nth, $path) = @_;
		my $raw = JSON::PP->new->utf8->encode({ status => 'COMPLETE', results => [ $sim->object('contacts', $id) ] });
		$sim->fault(path => $path // '/batch/read', nth => $nth, action => { kind => 'body', raw => $raw });
	};
	$sim->purge('contacts', $ids[3]);
	$about->($ids[5], 1);
	$about->($ids[6], 2);
	run_ends('success', 'answered with one and another', 'contacts', 'full');
	is(counts()->{batch}, 2, '... is asked once more');
	is_row($ids[3], 'live', '... and believes neither');
	$about->($ids[5], 1);
	run_ends('success', 'answered with another once', 'contacts', 'full');
	is_row($ids[3], 'gone', '... believes the second answer');
	is(absences(), 0, '... which settles it');

	$sim->archive('contacts', $ids[8]);
	run_ends('success', 'one is archived', 'contacts', 'full');
	is_row($ids[8], 'archived', '... and marked');
	$sim->purge('contacts', $ids[8]);
	$about->($ids[5], 1, '/batch/read?archived=true');
	run_ends('success', 'the bin answers with another', 'contacts', 'full');
	is_row($ids[8], 'archived', '... which proves nothing');
	run_ends('success', 'the next run', 'contacts', 'full');
	is_row($ids[8], 'gone', '... finds that it was deleted');
	is(differences(), '', 'everything is what HubSpot has');
};

subtest 'merges, found by any run' => sub {
	foreach my $case ([ 0, 'full' ], [ 0, 'incremental' ], [ 1, 'full' ], [ 1, 'incremental' ])
	{
		my ($resolves, $mode) = @$case;
		my $how = "$mode, merged ids " . ($resolves ? 'followed' : 'unknown');
		fresh();
		$sim->config(batch_read_resolves_merged => $resolves ? JSON::PP::true : JSON::PP::false);
		my @ids = ids();
		my ($alone) = $sim->create('contacts', { id => 7, properties => { lastname => 'Low' } });
		first_run();

		# The survivor's id is below the other's, and above it; and a third one.
		$sim->merge('contacts', $ids[5], $ids[320]);
		$sim->merge('contacts', $ids[321], $ids[6]);
		my $survivor = $sim->merge('contacts', $ids[50], $ids[230], new_id => JSON::PP::true)->{id};
		run_ends('success', $how, 'contacts', $mode);
		is_row($ids[320], "merged into $ids[5]", '... a survivor with the lower id');
		is_row($ids[6], "merged into $ids[321]", '... one with the higher id');
		is_row($_, "merged into $survivor", '... one with a new id') foreach @ids[ 50, 230 ];
		is(differences(), '', '... and all are what HubSpot has');

		# A chain, one link at a time and both at once.
		$sim->merge('contacts', $ids[10], $ids[5]);
		$sim->merge('contacts', $ids[21], $ids[20]);
		$sim->merge('contacts', $ids[22], $ids[21]);
		$sim->merge('contacts', 7, $survivor);
		run_ends('success', "$how, chains", 'contacts', $mode);
		is_row($_, "merged into $ids[10]", '... one that grew leads to its end') foreach @ids[ 5, 320 ];
		is_row($_, "merged into $ids[22]", '... a new one leads to its end') foreach @ids[ 20, 21 ];
		is_row($_, 'merged into 7', '... over a new id too') foreach $survivor, @ids[ 50, 230 ];
		is(differences(), '', '... and all are what HubSpot has');

		my $log = run_ends('success', "$how, once more", 'contacts', $mode);
		is($log->{records_changed} + $log->{records_archived}, 0, '... changes nothing');
		is(counts()->{batch}, 0, '... and looks nothing up');
		is(absences(), 0, '... nothing is left to be settled');
	}
};

subtest 'a survivor that is archived, or purged' => sub {
	foreach my $resolves (0, 1)
	{
		fresh();
		$sim->config(batch_read_resolves_merged => $resolves ? JSON::PP::true : JSON::PP::false);
		first_run();
		my @ids = ids();
		$sim->merge('contacts', $ids[5], $ids[320]);
		$sim->archive('contacts', $ids[5]);
		$sim->merge('contacts', $ids[6], $ids[321]);
		$sim->purge('contacts', $ids[6]);
		run_ends('success', 'merged and deleted', 'contacts', 'full');
		is_row($ids[5], 'archived', '... the archived survivor is archived');
		is_row($ids[320], "merged into $ids[5]", '... and the other is still known to be in it');
		is_row($_, 'gone', '... of what was purged nobody knows more') foreach @ids[ 6, 321 ];
		is(differences(), '', '... and all are what HubSpot has');
	}
};

subtest 'a merged id that HubSpot still has' => sub {
	fresh();
	first_run();
	my @ids = ids();
	# Half way through a merge: the survivor claims a record that is there.
	$sim->patch('contacts', $ids[5], { hs_merged_object_ids => "$ids[6];;x;0;$ids[5];99999999999999999999" });
	foreach my $mode ('incremental', 'full')
	{
		run_ends('success', "$mode run", 'contacts', $mode);
		is(differences(), '', '... believes the record itself');
		is_row($_, 'live', '... which stays live') foreach @ids[ 5, 6 ];
	}
};

subtest 'restored records' => sub {
	foreach my $type ('contacts', 'firms')
	{
		my $kind = $type eq 'firms' ? 'companies' : 'contacts';
		my $look = $type eq 'firms' ? \&firm : \&row;
		my $marked = $type eq 'firms' ? 'no row' : 'archived';
		fresh();
		my @ids = ids($kind);
		my @some = @ids[ 4, 5, 150 ];
		first_run($type);
		$sim->archive($kind, $_) foreach @ids[ 4, 5, 150, 151 ];
		run_ends('success', 'some are archived', $type, 'full');
		is($look->($_), $marked, "$type: an archived one is not live") foreach @some;

		$sim->restore($kind, $some[0]);
		run_ends('success', 'restored, a full run', $type, 'full');
		is($look->($some[0]), 'live', '... finds it');

		$sim->restore($kind, $some[1]);
		run_ends('success', 'restored, an incremental run', $type, 'incremental');
		is($look->($some[1]), $marked, '... cannot know of it');
		is(counts()->{bin}, 0, '... which has not read the recycle bin');
		$sim->restore($kind, $some[2]);
		$sim->archive($kind, $ids[0]);
		make_sweep_due();
		my $log = run_ends('success', 'restored, the day after', $type, 'incremental');
		is($look->($_), 'live', '... the daily sweep finds it') foreach @some[ 1, 2 ];
		is($look->($ids[0]), $marked, '... and what was archived since');
		is($look->($ids[151]), $marked, '... another one stays archived');
		is(counts()->{bin}, 1, '... it has read the recycle bin');
		is(counts()->{batch}, 1, '... and what was not there any more');
		is($log->{records_archived}, 1, '... the log counts what was archived');
		is($type eq 'firms' ? firm_differences() : differences(), '', '... and all are what HubSpot has');

		$log = run_ends('success', 'right after', $type, 'incremental');
		is(counts()->{bin}, 0, '... it is not read again');

		# What has left the bin as well is looked up once, unless it is too old
		# to be there.
		$sim->purge($kind, $_) foreach @ids[ 0, 151 ];
		$server->sql("UPDATE contacts SET archived_at = now() - interval '92 days' WHERE hubspot_contact_id = '$ids[0]'");
		$server->sql("UPDATE sync_rows SET archived_at = now() - interval '92 days' WHERE record_id = '$ids[0]'");
		make_sweep_due();
		run_ends('success', 'purged from the recycle bin', $type, 'incremental');
		is($look->($ids[151]), $type eq 'firms' ? 'no row' : 'gone', '... it is gone');
		is($look->($ids[0]), $marked, '... one that was archived months ago stays so');
		make_sweep_due();
		run_ends('success', 'the day after', $type, 'incremental');
		is(counts()->{batch}, 0, '... neither is looked up any more');
		is($type eq 'firms' ? firm_differences() : differences(), '', '... and all are what HubSpot has');
	}

	foreach my $type ('contacts', 'firms')
	{
		my $kind = $type eq 'firms' ? 'companies' : 'contacts';
		my $look = $type eq 'firms' ? \&firm : \&row;
		fresh();
		first_run($type);
		my @ids = ids($kind);
		$sim->hide($kind, @ids[ 70, 71 ]);
		run_ends('success', "$type that the token may not see", $type, 'full');
		is($look->($_), $type eq 'firms' ? 'no row' : 'gone', '... are gone') foreach @ids[ 70, 71 ];
		$sim->unhide($kind);
		$sim->patch($kind, $ids[70], { $type eq 'firms' ? 'name' : 'lastname' => 'Seen' });
		run_ends('success', 'when it may, an incremental run', $type, 'incremental');
		is($look->($ids[70]), 'live', '... finds the one that was edited');
		run_ends('success', 'and a full run', $type, 'full');
		is($type eq 'firms' ? firm_differences() : differences(), '', '... finds both');
	}
};

subtest 'records that were archived before the first run' => sub {
	foreach my $case ([qw(contacts mark)], [qw(contacts delete)], [qw(firms delete)])
	{
		my ($type, $policy) = @$case;
		my $kind = $type eq 'firms' ? 'companies' : 'contacts';
		my $look = $type eq 'firms' ? \&firm : \&row;
		fresh();
		policy($type, $policy);
		my @ids = ids($kind);
		$sim->archive($kind, $_) foreach @ids[ 4, 5 ];
		first_run($type);
		$sim->restore($kind, $ids[4]);
		make_sweep_due();
		run_ends('success', "$type, policy $policy: one is restored", $type, 'incremental');
		is($look->($ids[4]), 'live', '... the daily sweep finds it');
		is($look->($ids[5]), $policy eq 'mark' ? 'archived' : 'no row', '... the other stays archived');
	}
};

subtest 'a search that lags behind' => sub {
	foreach my $case ([qw(contacts mark)], [qw(contacts delete)], [qw(firms delete)])
	{
		my ($type, $policy) = @$case;
		my $kind = $type eq 'firms' ? 'companies' : 'contacts';
		my $look = $type eq 'firms' ? \&firm : \&row;
		my $name = $type eq 'firms' ? 'name' : 'lastname';
		fresh();
		policy($type, $policy);
		first_run($type);
		my @ids = ids($kind);

		# Search knows them as they were just before they went, newer than the
		# rows are.
		$sim->patch($kind, $_, { $name => 'Last words' }) foreach @ids[ 10, 20 ];
		$sim->config(search_lag_ms => DAY_MS);
		$sim->purge($kind, $ids[10]);
		$sim->merge($kind, $ids[21], $ids[20]);
		run_ends('success', "$type, policy $policy: two have gone", $type, 'full');
		my @marked = map { $look->($_) } @ids[ 10, 20 ];
		is_deeply(\@marked, $policy eq 'mark' ? [ 'gone', "merged into $ids[21]" ] : [ 'no row', 'no row' ], '... as the list says');
		my $log = run_ends('success', 'the search still has them', $type, 'incremental');
		cmp_ok($log->{records_processed}, '>=', 2, '... and delivers them');
		is_deeply([ map { $look->($_) } @ids[ 10, 20 ] ], \@marked, '... they stay gone');
		$sim->config(search_lag_ms => 0);
		run_ends('success', 'when it has caught up', $type, 'incremental');
		is($type eq 'firms' ? firm_differences() : differences(), '', '... all are what HubSpot has');
	}
};

subtest 'a sweep takes its share of the daily limit' => sub {
	fresh(contacts => 750);
	my @ids = ids();
	$sim->archive('contacts', $_) foreach @ids[ 0 .. 699 ];
	first_run();
	is($server->sql('SELECT count(*) FROM contacts WHERE archived'), 700, 'many are archived');
	$sim->restore('contacts', $_) foreach @ids[ 1, 350, 698 ];

	# A twentieth of 60 are 3 requests, and the bin has 7 pages.
	$sim->config(send_limit_headers => JSON::PP::true, daily_max => 60);
	my @found;
	foreach my $day (1 .. 3)
	{
		make_sweep_due();
		run_ends('success', "day $day", 'contacts', 'incremental');
		is(counts()->{bin}, $day == 3 ? 1 : 3, '... reads its share');
		push @found, join ' ', map { row($_) } @ids[ 1, 350, 698 ];
		run_ends('success', 'right after', 'contacts', 'incremental');
		is(counts()->{bin}, 0, '... reads no more');
	}
	is_deeply(\@found, [ 'live archived archived', 'live live archived', 'live live live' ],
		'what was restored is found a part a day');
	is(differences(), '', 'in the end all are what HubSpot has');
	make_sweep_due();
	$sim->config(send_limit_headers => undef, daily_max => 625_000);
	run_ends('success', 'without a limit', 'contacts', 'incremental');
	is(counts()->{bin}, 7, 'the next sweep begins anew and reads all');
};

# ---------------------------------------------------------------------------
# Policies
# ---------------------------------------------------------------------------

subtest 'policies' => sub {
	my %expected = (
		mark => [ 'gone', 'merged into %s', 'archived' ],
		delete => [ 'no row', 'no row', 'no row' ],
		ignore => [ 'live', 'live', 'live' ],
	);
	foreach my $case ([qw(contacts mark)], [qw(contacts delete)], [qw(contacts ignore)], [qw(firms delete)])
	{
		my ($type, $policy) = @$case;
		my $kind = $type eq 'firms' ? 'companies' : 'contacts';
		my $look = $type eq 'firms' ? \&firm : \&row;
		fresh();
		policy($type, $policy);
		first_run($type);
		my @ids = ids($kind);
		my ($purged, $merged, $archived) = my @lost = @ids[ 10, 20, 30 ];
		my $all = $server->sql('SELECT count(*) FROM ' . ($type eq 'firms' ? 'firms' : 'contacts'));
		$sim->purge($kind, $purged);
		$sim->merge($kind, $ids[21], $merged);
		$sim->archive($kind, $archived);
		my $log = run_ends('success', "$type, policy $policy", $type, 'full');
		my @wanted = map { sprintf $_, $ids[21] } @{ $expected{$policy} };
		is_deeply([ map { $look->($_) } @lost ], \@wanted, '... decides about the rows');
		is($log->{records_archived}, $policy eq 'ignore' ? 0 : 3, '... the log counts them');
		is($server->sql('SELECT count(*) FROM ' . ($type eq 'firms' ? 'firms' : 'contacts')),
			$policy eq 'delete' ? $all - 3 : $all, '... and no other row is touched');
		is(counts()->{bin} + counts()->{batch}, $policy eq 'ignore' ? 0 : 2, '... after the looks that it takes');
		is(absences(), 0, '... nothing is left to be settled');

		make_sweep_due();
		run_ends('success', 'an incremental run', $type, 'incremental');
		is(counts()->{bin}, $policy eq 'ignore' ? 0 : 1, '... sweeps where it has to');
		is_deeply([ map { $look->($_) } @lost ], \@wanted, '... and leaves it so');

		$sim->restore($kind, $archived);
		run_ends('success', 'one is restored', $type, 'full');
		is($look->($archived), 'live', '... its row is live');
		is_deeply([ map { $look->($_) } $purged, $merged ], [ @wanted[ 0, 1 ] ], '... the others stay as they are');
	}
};

subtest 'rows that the sync did not write' => sub {
	my $elsewhere = '11111111-1111-1111-1111-111111111111';
	foreach my $policy ('mark', 'delete')
	{
		fresh();
		policy($_, $policy) foreach qw(contacts owners);
		first_run('contacts', 'firms');
		my @ids = ids();
		my @companies = ids('companies');
		my ($bin) = $sim->create('companies', { name => 'Archived before we came' });
		$sim->archive('companies', $bin);
		$server->sql(<<~"SQL");
			INSERT INTO contacts (hubspot_contact_id, last_name) VALUES
				('1', 'mine'), ('@{[ $ids[200] + 1 ]}', 'mine'), ('mine-1', 'mine'), ('', 'mine');
			INSERT INTO contacts (connection_id, hubspot_contact_id, last_name, synced_at)
				VALUES ('$elsewhere', '$ids[7]', 'mine', now()), ('$elsewhere', '2', 'mine', now());
			INSERT INTO staff (id, name) VALUES ('me', 'mine'), ('1', 'mine');
			INSERT INTO firms VALUES (1, 'mine'), ($companies[100] + 1, 'mine'), ($bin, 'mine');
			SQL
		$sim->merge('contacts', $ids[20], $ids[21]);
		$sim->patch('contacts', $ids[20], { hs_merged_object_ids => "$ids[21];1" });
		$sim->purge('contacts', $ids[7]);
		$sim->merge('companies', $companies[20], $companies[21]);
		$sim->patch('companies', $companies[20], { hs_merged_object_ids => "$companies[21];1" });
		run_ends('success', "policy $policy, $_", $_, 'full') foreach qw(contacts firms owners);
		is_row($ids[7], $policy eq 'mark' ? 'gone' : 'no row', '... one of ours is gone');
		is($server->sql("SELECT count(*) FROM contacts WHERE last_name = 'mine' AND NOT archived"), 6,
			'... contacts of others are left alone');
		is($server->sql("SELECT count(*) FROM staff WHERE name = 'mine' AND NOT archived"), 2, '... and staff');
		is( $server->sql("SELECT count(*) FROM firms WHERE label = 'mine' AND number <> $bin"), 2,
			'... and rows of a table without bookkeeping');
		is(firm($bin), 'live', '... of which one has the id of a record in the recycle bin');
	}
};

# ---------------------------------------------------------------------------
# The order of ids
# ---------------------------------------------------------------------------

subtest 'ids of different lengths' => sub {
	foreach my $type ('contacts', 'firms')
	{
		my $kind = $type eq 'firms' ? 'companies' : 'contacts';
		fresh(contacts => 0, companies => 0);

		# Neighbours in the order of numbers, far apart in that of text.
		my @ids = (
			1 .. 12, 95 .. 112, 995 .. 1012, 9_995 .. 10_012, 99_999, 100_000, 123_456,
			'9007199254740991' .. '9007199254740996', '999999999999999999', '1000000000000000000',
			'9223372036854775806', HIGHEST_ID);
		my @records = map { { id => $_, properties => { $type eq 'firms' ? 'name' : 'lastname' => "No $_" } } } @ids;
		my %record = map { $_->{id} => $_ } @records;
		$sim->create($kind, @records);
		run_ends('success', "$type, before", $type, 'full');
		foreach my $gone (
			[ 7, 12, 123_456, '9007199254740993', HIGHEST_ID ],
			[ 1, 2, 99, 100, 1000, 9_999, 99_999, '999999999999999999' ],
			[ 9, 10, 112, 995, 1012, 10_012, 100_000, '9007199254740991', '9007199254740996', '1000000000000000000' ])
		{
			$sim->purge($kind, $_) foreach @$gone;
			run_ends('success', 'some are purged', $type, 'full');
			is_deeply([ gone_ids($type, @ids) ], [ sort { by_number($a, $b) } @$gone ],
				"... exactly @$gone are gone");
			$sim->create($kind, @record{@$gone});
		}
		# All but one: the one that is left proves nothing about what it is not.
		$sim->purge($kind, $_) foreach grep { $_ ne '9007199254740993' } @ids;
		run_ends('success', 'all but one are purged', $type, 'full');
		is(live_ids($type), '9007199254740993', '... one is left');
		$sim->purge($kind, '9007199254740993');
		run_ends('success', 'and the last', $type, 'full');
		is(live_ids($type), '', '... none is left');
	}
};

# The live rows' ids.
sub live_ids
{
	my ($type) = @_;
	return $server->sql($type eq 'firms' ? 'SELECT number FROM firms'
		: 'SELECT hubspot_contact_id FROM contacts WHERE NOT archived');
}

# Those of the ids, by number, that have no live row; without any, of all rows.
sub gone_ids
{
	my ($type, @of) = @_;
	my %live = map { $_ => 1 } split /\n/, live_ids($type);
	@of = split /\n/, $server->sql('SELECT hubspot_contact_id FROM contacts') unless @of;
	return sort { by_number($a, $b) } grep { !$live{$_} } @of;
}

sub by_number
{
	my ($x, $y) = @_;
	return length $x <=> length $y || $x cmp $y;
}

subtest 'at the edges of pages' => sub {
	fresh();
	first_run();
	my @ids = ids();
	my @gone = @ids[ 0, 98, 99, 100, 199, 210 .. 240, CONTACTS - 1 ];
	$sim->purge('contacts', $_) foreach @gone;
	run_ends('success', 'the full run', 'contacts', 'full');
	is_deeply([ gone_ids('contacts') ], [ sort { by_number($a, $b) } @gone ], 'exactly what was purged is gone');
	is($server->sql('SELECT DISTINCT archived_reason FROM contacts WHERE archived'), 'gone', '... by its reason');

	# Gone from under the walk: it was on no page, or on one that was read.
	@ids = ids();
	$sim->script(path => "$contacts?", nth => 3, when => 'before', do => [
		map { { op => 'purge', type => 'contacts', id => $_ } } @ids[ 10, 205, 299, 310 ] ]);
	$sim->script(path => "$contacts?", nth => 4, when => 'before', do => [
		{ op => 'create', type => 'contacts', id => 5, properties => { lastname => 'Five' } } ]);
	run_ends('success', 'records purged in the middle of the walk', 'contacts', 'full');
	is_row($_, 'gone', '... are gone') foreach @ids[ 205, 299, 310 ];
	is_row($ids[10], 'live', '... unless their page had been read');
	run_ends('success', 'the next full run', 'contacts', 'full');
	is(differences(), '', '... finds the rest');
	is_deeply($sim->state->{script_errors}, [], 'all scripts have run');
};

# ---------------------------------------------------------------------------
# Interruptions
# ---------------------------------------------------------------------------

subtest 'runs that are broken off' => sub {
	my %break = (
		'in the middle of the list' => { fault => { path => "$contacts?", nth => 3, times => 0, action => 'reset' } },
		'in the recycle bin' => { fault => { path => 'archived=true', times => 0, action => 'html' } },
		'before the first look' => { fault => { path => '/batch/read', times => 0, action => 'reset' } },
		'between two looks' => { fault => { path => '/batch/read', nth => 2, times => 0, action => 'truncated_json' } },
		'by a kill before the second look' => { fault => { path => '/batch/read', nth => 2, times => 0, action => 'hang' }, kill => 1 },
	);
	foreach my $where (sort keys %break)
	{
		# More than a batch of candidates, and not too many to be believed.
		fresh();
		first_run();
		my @ids = ids();
		my @gone = map { $ids[ $_ * 3 ] } 0 .. 95;
		$sim->purge('contacts', $_) foreach @gone;
		$sim->merge('contacts', $ids[1], $ids[$_]) foreach 301 .. 305;
		$sim->merge('contacts', $ids[310], $ids[2]);
		$sim->archive('contacts', $ids[4]);
		$sim->fault(%{ $break{$where}{fault} });
		my $failed = $break{$where}{kill} ? killed_run() : run_ends('failed', "broken off $where", 'contacts', 'full');
		cmp_ok(absences(), '>', 0, '... what was missed is remembered');
		is($server->sql("SELECT count(*) FROM contacts WHERE archived AND archived_reason <> 'archived'"), 0,
			'... and not marked before all of it is known');
		$sim->clear_faults;

		# Another run in between sees to what it can know for certain.
		run_ends('success', '... an incremental run', 'contacts', 'incremental');
		is_row($ids[301], "merged into $ids[1]", '... settles a merge');
		is($server->sql("SELECT count(*) FROM contacts WHERE archived_reason = 'gone'"), 0, '... and nothing else');

		my $log = run_ends('success', '... the next full run', 'contacts', 'full');
		is($log->{continues}, $failed->{id}, '... continues');
		my ($first) = $sim->requests(path => $contacts);
		ok(defined $first->{query}{after}, '... and not from the beginning') if $where =~ /list$/;
		is(scalar $sim->requests(path => $contacts), 0, '... and asks for no list any more') if $where =~ /look/;
		is(counts()->{batch}, 1, '... nor for what was looked up') if $where =~ /second look|two looks/;
		is(differences(), '', '... and all are what HubSpot has');
		is($server->sql("SELECT count(*) FROM contacts WHERE archived_reason = 'gone'"), scalar @gone, '... as gone');
		is(absences(), 0, '... nothing is left to be settled');
	}
};

# A full run whose worker is killed while it waits for an answer.
sub killed_run
{
	my $id = $server->trigger('contacts', 'full');
	my $pid;
	wait_until('the run hangs', sub {
		$pid = $server->sql("SELECT a.pid FROM pg_stat_activity a JOIN sync_run_states s ON s.holder_pid = a.pid
			WHERE s.id = '$id' AND a.query LIKE '%waiting for HubSpot%'");
		return $pid && grep { ($_->{fault} // '') =~ /hang/ } $sim->journal;
	});
	$server->sql("SELECT pg_terminate_backend($pid, 30000)");
	my $log = $server->log($id);
	is($log->{status}, 'failed', 'a run that is killed has failed');
	return $log;
}

# ---------------------------------------------------------------------------
# What proves nothing
# ---------------------------------------------------------------------------

subtest 'a list in disorder' => sub {
	foreach my $action (
		{ kind => 'duplicate_record' },
		{ kind => 'replace_page', results => '[]' },
		{ kind => 'replace_page', results => '[{"id": "3", "properties": {}, "updatedAt": "2020-01-01T00:00:00Z"}]' })
	{
		fresh();
		first_run();
		my @ids = ids();
		my @gone = @ids[ 5, 110, 260, 320 ];
		$sim->purge('contacts', $_) foreach @gone;
		$sim->fault(path => "$contacts?", nth => 3, action => $action);
		run_ends('success', 'a list that is spoiled: ' . ($action->{results} // 'a record twice'), 'contacts', 'full');
		if (($action->{results} // '') eq '[]')
		{
			# An empty page proves nothing, the records themselves do.
			is($server->sql('SELECT count(*) FROM contacts WHERE archived'), 4, '... only what is gone is marked');
		}
		else
		{
			is($server->sql('SELECT count(*) FROM contacts WHERE archived'), 0, '... proves nothing');
		}
		is($server->sql('SELECT count(*) FROM contacts WHERE archived AND hubspot_contact_id NOT IN ('
				. join(', ', map { "'$_'" } @gone) . ')'), 0, '... and what is there is live');
		is(absences(), 0, '... nothing is left of it');
		$sim->clear_faults;
		run_ends('success', 'one in order', 'contacts', 'full');
		is_row($_, 'gone', '... proves it') foreach @gone;
	}

	# One that is broken off after the disorder does not forget it.
	fresh();
	first_run();
	my @ids = ids();
	$sim->purge('contacts', $_) foreach @ids[ 5, 320 ];
	$sim->fault(path => "$contacts?", nth => 2, action => 'duplicate_record');
	$sim->fault(path => "$contacts?", nth => 4, action => 'reset');
	run_ends('failed', 'in disorder and broken off', 'contacts', 'full');
	$sim->clear_faults;
	run_ends('success', 'the rest', 'contacts', 'full');
	is($server->sql('SELECT count(*) FROM contacts WHERE archived'), 0, '... proves nothing either');
	is(absences(), 0, '... nothing is left of it');
	run_ends('success', 'one in order', 'contacts', 'full');
	is_row($_, 'gone', '... proves it') foreach @ids[ 5, 320 ];
};

subtest 'a recycle bin in disorder' => sub {
	fresh();
	my @ids = ids();
	$sim->archive('contacts', $_) foreach @ids[ 0 .. 149 ];
	first_run();
	$sim->restore('contacts', $ids[120]);
	$sim->fault(path => 'archived=true', action => 'duplicate_record');
	run_ends('success', 'a full run', 'contacts', 'full');
	is(differences(), '', 'it is no reason to mark or restore anything wrongly');
	is_row($ids[120], 'live', '... the list brings what is live');
};

subtest 'runs that see a part' => sub {
	fresh();
	my ($recent) = $sim->create('contacts', { lastname => 'New' });
	first_run();
	my @ids = ids();
	$sim->purge('contacts', $_) foreach $recent, $ids[5];
	$sim->merge('contacts', $ids[-3], $ids[-4]);
	run_ends('success', 'a timeframe', 'contacts', 'auto', $_) foreach qw(today this_year last_90_days);
	is($server->sql('SELECT count(*) FROM contacts WHERE archived'), 0, '... marks nothing');
	is(absences(), 0, '... and notes nothing');
	run_ends('success', 'a full run', 'contacts', 'full');
	is_row($_, 'gone', '... marks it') foreach $recent, $ids[5];
	is_row($ids[-4], "merged into $ids[-3]", '... and what was merged');
};

subtest 'owners' => sub {
	fresh();
	my ($extra) = $sim->create('owners', { email => 'gone@school.example', firstName => 'G', lastName => 'One' });
	first_run('owners');
	my $before = $server->sql('SELECT count(*) FROM staff WHERE NOT archived');
	$sim->fault(path => '/crm/owners/', times => 0, action => { kind => 'body', raw => '{"results": []}' });
	run_ends('success', 'a list without owners', 'owners', 'full');
	is($server->sql('SELECT count(*) FROM staff WHERE NOT archived'), $before, '... is no reason to mark them');
	$sim->clear_faults;
	$sim->archive('owners', $extra);
	run_ends('success', 'one that is deactivated', 'owners', 'full');
	is($server->sql("SELECT archived || ' ' || archived_reason FROM staff WHERE id = '$extra'"), 'true archived', '... is marked');
	is($server->sql('SELECT count(*) FROM staff WHERE NOT archived'), $before - 1, '... and no other');
};

subtest 'a record that is not looked up as missing' => sub {
	fresh();
	first_run();
	my @ids = ids();
	# On no page of the list, but there: a batch read brings it.
	my $json = JSON::PP->new;
	my @page = grep { $_->{id} ne $ids[42] } map { $sim->object('contacts', $_) } @ids[ 0 .. PAGE - 1 ];
	$sim->fault(path => "$contacts?", action => { kind => 'replace_page', results => $json->encode(\@page) });
	$sim->patch('contacts', $ids[42], { lastname => 'Here I am' });
	run_ends('success', 'a page without one of its records', 'contacts', 'full');
	is(counts()->{batch}, 1, '... which is looked up');
	is(differences(), '', '... found, and stored as it is');
};

# ---------------------------------------------------------------------------
# Triggers
# ---------------------------------------------------------------------------

subtest 'a trigger that refuses one mark' => sub {
	foreach my $policy ('mark', 'delete')
	{
		fresh();
		policy('contacts', $policy);
		first_run();
		my @ids = ids();
		my @gone = map { $ids[ $_ * 5 ] } 0 .. 59;
		my $dear = $gone[33];
		$sim->purge('contacts', $_) foreach @gone;
		$server->sql(<<~"SQL");
			CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS \$\$
			BEGIN
				IF old.hubspot_contact_id = '$dear' THEN RAISE EXCEPTION 'this one stays'; END IF;
				RETURN coalesce(new, old);
			END \$\$;
			CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON contacts FOR EACH ROW EXECUTE FUNCTION keep();
			SQL
		my $log = run_ends('partial', "policy $policy", 'contacts', 'full');
		is($log->{error_details}{reason}, 'records_failed', '... for the one that failed');
		is($log->{records_failed}, 1, '... which is counted');
		is($log->{records_archived}, @gone - 1, '... as the others are');
		my $mark = $policy eq 'mark' ? 'gone' : 'no row';
		is(scalar(grep { row($_) eq $mark } @gone), @gone - 1, '... which are marked');
		is_row($dear, 'live', '... it is not');
		is( $server->sql('SELECT record_id, category, message FROM sync_errors WHERE resolved_at IS NULL'),
			"$dear|trigger|this one stays", '... but stands in sync_errors');
		ok(defined $server->sql("SELECT last_full_at FROM sync_state"), '... and the run counts as a full one');

		run_ends('success', 'an incremental run', 'contacts', 'incremental');
		is_row($dear, 'live', '... leaves it alone');
		$server->sql('DROP FUNCTION keep CASCADE');
		run_ends('success', 'a full run without the trigger', 'contacts', 'full');
		is_row($dear, $mark, '... marks it');
		is($server->sql('SELECT count(*) FROM sync_errors WHERE resolved_at IS NULL'), 0, '... and closes the error');
	}
};

# ---------------------------------------------------------------------------
# Cost
# ---------------------------------------------------------------------------

subtest 'requests' => sub {
	fresh(contacts => 2200);
	$server->sql(q{UPDATE sync_types SET full_strategy = 'list' WHERE sync_type = 'contacts'});
	first_run();
	is_deeply(counts(), { list => 22, bin => 1, search => 0, batch => 0 }, 'nothing missing: the lists');
	my @ids = ids();
	$sim->purge('contacts', $_) foreach map { $ids[ $_ * 10 ] } 0 .. 200;
	my $log = run_ends('success', '201 of 2200 are gone', 'contacts', 'full');
	is_deeply(counts(), { list => 20, bin => 1, search => 0, batch => 3 }, '... the lists and a look for each hundred');
	is($log->{requests}, 24, '... all of which the log counts');
	is($log->{records_archived}, 201, '... and the rows');
	is($log->{records_processed}, 1999, '... and the records that there are');
	run_ends('success', 'afterwards', 'contacts', 'full');
	is_deeply(counts(), { list => 20, bin => 1, search => 0, batch => 0 }, '... the lists');
	run_ends('success', 'afterwards', 'contacts', 'incremental');
	is_deeply(counts(), { list => 0, bin => 0, search => 1, batch => 0 }, '... one search');
};

done_testing();
