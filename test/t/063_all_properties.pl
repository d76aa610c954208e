# A type that fetches all properties keeps every one that has a value, however
# many there are: lists and searches that cannot carry the names are read by
# batch. What properties there are is asked with every full run and kept for
# the others, and a type that fetches what is mapped asks for nothing else.

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
	CONTACTS => 130,
	DEALS => 25,
	WIDE => 3000,
	PAGE => 100,
	LONGEST_URL => 8000,
	LONGEST_SEARCH => 3000,
};

my $sim = HubspotSync::Simulator->start(
	contacts => CONTACTS, deals => DEALS, companies => 12, owners => 3, wide => WIDE);
my $server = HubspotSync::Server->new('all_properties', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 0, statement_timeout => '60s' });

my $json = JSON::PP->new->canonical;
my $definitions = '/crm/properties/2026-09/contacts';

# Tables of the user's own: one that can keep properties, one that cannot.
$server->sql(<<~SQL);
	CREATE TABLE firms (number bigint PRIMARY KEY, label text, properties jsonb);
	CREATE TABLE names (number bigint PRIMARY KEY, label text);
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns,
			modified_property, created_property, delete_policy, property_set)
		VALUES ('firms', 'companies', 'public', 'firms', '{number}', 'hs_lastmodifieddate', 'createdate', 'delete', 'all'),
			('names', 'companies', 'public', 'names', '{number}', 'hs_lastmodifieddate', 'createdate', 'delete', 'all');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('firms', 'label', 'name'), ('names', 'label', 'name');
	UPDATE sync_types SET property_set = 'all' WHERE sync_type = 'contacts';
	SQL

# ---------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------

# Runs a type, which ends so; returns the log entry.
sub run_ends
{
	my ($status, $what, $type, $mode) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync($type, $mode);
	is($run->{status}, $status, "$what: the run ends $status") or diag($run->{stderr});
	no_long_requests();
	return defined $run->{run_id} ? $server->log($run->{run_id}) : {};
}

# HubSpot refuses long URLs and long searches.
sub no_long_requests
{
	my @all = $sim->requests;
	is(scalar(grep { length($_->{path}) + length(join '&', %{ $_->{query} }) > LONGEST_URL } @all), 0, '... without long URLs');
	is(scalar(grep { $_->{path} =~ /search$/ && length($json->encode($_->{body})) > LONGEST_SEARCH } @all), 0,
		'... or long searches');
	return;
}

# Contacts whose properties are not all that have a value.
sub differences
{
	my (%how) = @_;
	my $without = join ', ', map { "'$_'" } '', @{ $how{without} || [] };
	$server->load_objects('contacts');
	return $server->sql(<<~"SQL");
		SELECT string_agg(coalesce(s.id, c.hubspot_contact_id), ' ')
		FROM contacts c FULL JOIN (
			SELECT id, archived, jsonb_strip_nulls(record -> 'properties') - ARRAY[$without]::text[] AS p FROM sim_contacts
		) s ON s.id = c.hubspot_contact_id
		WHERE c.archived IS DISTINCT FROM s.archived OR c.properties IS DISTINCT FROM s.p
			OR c.last_name IS DISTINCT FROM s.p ->> 'lastname'
		SQL
}

sub ids
{
	my ($type) = @_;
	return $sim->objects_text($type) =~ /^\{"id":"(\d+)"/mg;
}

# How often HubSpot was asked for definitions.
sub definition_requests { return scalar $sim->requests(path => qr{/crm/properties/}); }

# Batch reads of records, not of histories.
sub batches
{
	return grep { !@{ $_->{body}{propertiesWithHistory} || [] } } $sim->requests(path => qr{/batch/read$});
}

# The names that the last of them asked for.
sub asked_for
{
	my @batches = batches();
	return @{ $batches[-1]{body}{properties} };
}

# ---------------------------------------------------------------------------

subtest 'a full run' => sub {
	my @ids = ids('contacts');
	$sim->archive('contacts', $ids[7]);
	my $log = run_ends('success', 'the first run', 'contacts', 'auto');
	is($log->{mode}, 'full', '... is a full one');
	is(differences(), '', '... and stores all that has a value');
	cmp_ok($server->sql('SELECT min(n) FROM contacts, LATERAL (SELECT count(*) AS n FROM jsonb_object_keys(properties)) x'),
		'>', 1000, '... thousands of them');
	is($server->sql(q{SELECT count(*) FROM contacts WHERE jsonb_path_exists(properties, '$.* ? (@ == null)')}), 0, '... without nulls');
	is(definition_requests(), 1, '... after asking what there is');
	is($server->sql('SELECT count(*) FROM contacts WHERE archived'), 1, '... what is archived, too');

	my @lists = $sim->requests(method => 'GET', path => qr{/crm/objects/.*/contacts$});
	my @batches = batches();
	is(scalar @lists, 3, '... lists of ids');
	is(scalar @batches, 3, '... and batches of records');
	is(scalar(grep { @{ $_->{body}{inputs} } > PAGE } @batches), 0, '... of a size that HubSpot accepts');
	is($log->{requests}, 7, '... are all that it asks for');

	$log = run_ends('success', 'the same again', 'contacts', 'full');
	is($log->{records_changed}, 0, '... changes nothing');
	is(definition_requests(), 1, '... and has asked again');
};

subtest 'an incremental run' => sub {
	my @ids = ids('contacts');
	$sim->patch('contacts', $ids[3], { lastname => 'Edited', extra_0005 => 'mine', extra_2999 => 'mine too' });
	$sim->patch('contacts', $ids[4], { extra_0001 => '', extra_0002 => undef, phone => undef });
	my ($new) = $sim->create('contacts', { lastname => 'New', extra_1234 => '{"a": "b"}' });
	my $log = run_ends('success', 'some edits', 'contacts', 'auto');
	is($log->{mode}, 'incremental', '... found by an incremental run');
	is(differences(), '', '... which stores all that has a value');
	is($server->sql("SELECT properties ->> 'extra_1234' FROM contacts WHERE hubspot_contact_id = '$new'"), '{"a": "b"}', '... as it is');
	is(definition_requests(), 0, '... and knows what there is');
	my ($search) = $sim->requests(path => qr{/search$});
	is_deeply([ grep { /^extra/ } @{ $search->{body}{properties} } ], [], '... it searches for ids');
	cmp_ok(scalar(asked_for()), '>', WIDE, '... and reads the records');

	$sim->purge('contacts', $ids[10]);
	$sim->merge('contacts', $ids[11], $ids[12]);
	run_ends('success', 'a full run', 'contacts', 'full');
	is($server->sql("SELECT string_agg(concat_ws(' ', archived_reason, merged_into), ', ' ORDER BY archived_reason) FROM contacts
			WHERE hubspot_contact_id IN ('$ids[10]', '$ids[12]')"), "gone, merged $ids[11]", '... finds what is absent');
	$server->sql("DELETE FROM contacts WHERE hubspot_contact_id IN ('$ids[10]', '$ids[12]')");
	is(differences(), '', '... and all others are what HubSpot has');
};

subtest 'a property that is new' => sub {
	my @ids = ids('contacts');
	$sim->define_properties('contacts', 'favourite_course', { name => 'old_habit', archived => JSON::PP::true });
	$sim->patch('contacts', $ids[20], { favourite_course => 'B2', lastname => 'Learner' });
	run_ends('success', 'soon after', 'contacts', 'incremental');
	is(definition_requests(), 0, '... an incremental run does not know of it');
	is(differences(without => ['favourite_course']), '', '... and stores the rest');
	run_ends('success', 'a full run', 'contacts', 'full');
	is(differences(), '', '... stores it');
	is(scalar(grep { $_ eq 'old_habit' } asked_for()), 0, '... and asks for none that is archived');
	is(scalar(grep { $_ eq 'favourite_course' } asked_for()), 1, '... but for the new one');

	$sim->patch('contacts', $ids[21], { favourite_course => 'C1' });
	run_ends('success', 'an incremental run', 'contacts', 'incremental');
	is(differences(), '', '... knows it from then on');

	# What is known grows old.
	$sim->define_properties('contacts', 'shoe_size');
	$sim->patch('contacts', $ids[22], { shoe_size => '41' });
	$server->sql("UPDATE sync_properties SET read_at = now() - interval '61 minutes'");
	run_ends('success', 'an hour later', 'contacts', 'incremental');
	is(definition_requests(), 1, '... an incremental run asks again');
	is(differences(), '', '... and stores it');

	$sim->define_properties('contacts', { name => 'shoe_size', archived => JSON::PP::true });
	run_ends('success', 'one that is archived', 'contacts', 'full');
	is($server->sql(q{SELECT count(*) FROM contacts WHERE properties ? 'shoe_size'}), 0, '... is gone with the next full run');
	is(differences(), '', '... and nothing else is');
};

subtest 'definitions that cannot be read' => sub {
	foreach my $fault (
		{ kind => 'status', status => 403, json => { status => 'error', category => 'MISSING_SCOPES', message => 'no' } },
		{ kind => 'status', status => 500 })
	{
		my $before = $server->sql('SELECT max(synced_at) FROM contacts');
		$sim->fault(path => $definitions, action => $fault);
		my $log = run_ends('failed', "status $fault->{status}", 'contacts', 'full');
		is($log->{error_details}{reason}, $fault->{status} == 403 ? 'scopes' : 'gave_up', '... by its reason');
		is($server->sql('SELECT max(synced_at) FROM contacts'), $before, '... and nothing is stored');
		$sim->clear_faults;
	}
	run_ends('success', 'when they can', 'contacts', 'full');
	is(differences(), '', '... all is as it was');
};

subtest "tables of the user's own" => sub {
	run_ends('success', 'with a column for properties', 'firms', 'full');
	$server->load_objects('companies');
	is($server->sql(<<~'SQL'), 0, '... it has all that have a value');
		SELECT count(*) FROM firms f FULL JOIN sim_companies s ON s.id = f.number::text
		WHERE f.properties IS DISTINCT FROM jsonb_strip_nulls(s.record -> 'properties')
			OR f.label IS DISTINCT FROM s.record #>> '{properties,name}'
		SQL
	run_ends('success', 'without one', 'names', 'full');
	is($server->sql('SELECT count(*) FROM names JOIN sim_companies s ON s.id = number::text WHERE label = s.record #>> \'{properties,name}\''), 12,
		'... the mapped ones are stored');
};

subtest 'types that fetch what is mapped' => sub {
	run_ends('success', 'deals', 'deals', 'full');
	is(definition_requests(), 0, '... ask for no definitions');
	is(scalar batches(), 0, '... nor for records one by one');
	my ($list) = $sim->requests(path => qr{/deals$});
	is_deeply([ grep { /extra/ } split /,/, $list->{query}{properties} ], [], '... nor for more than is mapped');
	is($server->sql(q{SELECT count(*) FROM deals WHERE jsonb_path_exists(properties, '$.* ? (@ == null)')}) > 0, 1,
		'... and keep what has no value as null');

	# And back: what is kept shrinks to what is mapped.
	$server->sql(q{UPDATE sync_types SET property_set = 'mapped' WHERE sync_type = 'contacts'});
	my $log = run_ends('success', 'contacts again', 'contacts', 'auto');
	is($log->{mode}, 'full', '... are read by a full run');
	is(definition_requests(), 0, '... without definitions');
	is($server->sql(q{SELECT count(*) FROM contacts WHERE properties::text LIKE '%extra_%'}), 0, '... and shrink to what is mapped');
	$server->sql(q{UPDATE sync_types SET property_set = 'all' WHERE sync_type = 'contacts'});
	is(run_ends('success', 'and all once more', 'contacts', 'auto')->{mode}, 'full', '... by a full run');
	is(differences(), '', '... are all there');

	like($server->sql_error(q{UPDATE sync_types SET property_set = 'some' WHERE sync_type = 'contacts'}),
		qr/ERROR:  23514/, 'another set is refused');
	like($server->sql_error(q{INSERT INTO sync_types (sync_type, source, object_type, target_table, key_columns, property_set)
			VALUES ('other', 'owners', 'owners', 'staff', '{connection_id,id}', 'most')}), qr/ERROR:  23514/, 'for owners too');
};

subtest 'owners' => sub {
	$server->sql(q{UPDATE sync_types SET property_set = 'all' WHERE sync_type = 'owners'});
	run_ends('success', 'owners have no definitions', 'owners', 'full');
	is(definition_requests(), 0, '... and none are asked for');
	is($server->sql('SELECT count(*) FROM staff'), 3, '... they are stored as ever');
};

done_testing();
