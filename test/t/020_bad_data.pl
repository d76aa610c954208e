# One bad record harms no other: what cannot be stored becomes a dead letter
# with its payload and cause and is closed when it is mended, what can be
# stored safely is, paging that goes in circles is noticed, and an error that
# is no record's fault stops the run at once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Encode qw(decode encode);
use HubspotSync::Server;
use HubspotSync::Simulator;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 250,
	DEALS => 120,
	COMPANIES => 130,
	WIDE => 800,
};

my $sim = HubspotSync::Simulator->start(
	contacts => CONTACTS,
	deals => DEALS,
	companies => COMPANIES,
	owners => 3);
my $server = HubspotSync::Server->new(
	'bad_data',
	simulator => $sim,
	conf => { 'statement_timeout' => '60s' });
my $json = JSON::PP->new->utf8->canonical->allow_nonref;

my $contacts = '/crm/objects/' . HubspotSync::Simulator->api_version . '/contacts';
my $deals = '/crm/objects/' . HubspotSync::Simulator->api_version . '/deals';

# A type of the user's own: another role, another table, other column names.
$server->sql(<<~SQL);
	CREATE ROLE app LOGIN;
	CREATE SCHEMA app AUTHORIZATION app;
	SET ROLE app;
	CREATE TABLE app.firms (number bigint PRIMARY KEY, label text, web text, archived boolean);
	RESET ROLE;
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, modified_property)
		VALUES ('firms', 'companies', 'app', 'firms', '{number}', 'hs_lastmodifieddate');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES
		('firms', 'label', 'name'), ('firms', 'web', 'domain');
	SQL

# ---------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------

# Forgets everything that was stored and gives the simulator its first data.
sub fresh
{
	$sim->reset;
	$server->sql('TRUNCATE contacts, deals, staff, app.firms, sync_state, sync_runs, sync_errors, sync_rows,
		sync_absences, contact_owner_history, sync_owner_reads');
	return;
}

# The nth id of a type, counted from 0; a reset brings the same ones back.
my %ids;
sub id_of
{
	my ($type, $n) = @_;
	$ids{$type} //= [ $sim->objects_text($type) =~ /^\{"id":"(\d+)"/mg ];
	return $ids{$type}[$n];
}

# Has a record delivered with other members than it has.
sub deliver
{
	my ($type, $id, %changes) = @_;
	my $record = $sim->object($type, $id);
	foreach my $name (keys %changes)
	{
		if ($name eq 'properties' && ref $changes{$name})
		{
			$record->{properties} = { %{ $record->{properties} }, %{ $changes{$name} } };
		}
		else
		{
			$record->{$name} = $changes{$name};
		}
	}
	$sim->raw($type, $id, $json->encode($record));
	return;
}

# Runs a type; returns the log entry after checking how it ended.
sub run_ends
{
	my ($status, $type, $mode, $what) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync($type, $mode);
	is($run->{status}, $status, "$what: $mode run of $type ends $status") or diag($run->{stderr});
	return $server->log($run->{run_id});
}

# Dead letters, open ones unless told otherwise, by record id.
sub errors
{
	my ($where) = @_;
	$where //= 'resolved_at IS NULL';
	return $server->sql_json("SELECT *, payload::text AS payload_text FROM sync_errors WHERE $where ORDER BY record_id, property");
}

sub count_of
{
	my ($from) = @_;
	return $server->sql("SELECT count(*) FROM $from");
}

sub value_of
{
	my ($expression, $table, $key, $id) = @_;
	return $server->sql("SELECT $expression FROM $table WHERE $key = '$id'");
}

sub contact { return value_of($_[1], 'contacts', 'hubspot_contact_id', $_[0]); }
sub deal { return value_of($_[1], 'deals', 'hubspot_deal_id', $_[0]); }

# A page's results of the given records, as replace_page takes them.
sub results
{
	return decode('UTF-8', '[' . join(',', map { $json->encode($_) } @_) . ']');
}

# ---------------------------------------------------------------------------
# Paging
# ---------------------------------------------------------------------------

subtest 'cursors that come back' => sub {
	my %fault = (
		'the same cursor' => [ 'repeat_cursor', 3 ],
		'a loop of two' => [ 'stale_cursor_loop', 4 ],
	);
	foreach my $what (sort keys %fault)
	{
		my ($kind, $requests) = @{ $fault{$what} };
		fresh();
		$sim->fault(path => "$contacts?", times => 0, action => $kind);
		my $log = run_ends('failed', 'contacts', 'full', $what);
		is($log->{error_details}{reason}, 'repeated_cursor', '... with reason repeated_cursor');
		like($log->{error_details}{message}, qr/repeats/, '... and says so');
		cmp_ok(scalar $sim->requests, '<=', $requests, '... after few requests');
		is(count_of('sync_state'), 0, '... without moving the watermark');

		$sim->clear_faults;
		$log = run_ends('success', 'contacts', 'full', "after $what");
		is(count_of('contacts'), CONTACTS, '... and all is stored');
	}

	fresh();
	$sim->fault(path => '/crm/owners/', times => 0, action => { kind => 'repeat_cursor', after => encode_base64('7', '') });
	my $log = run_ends('failed', 'owners', 'full', 'a cursor of owners');
	is($log->{error_details}{reason}, 'repeated_cursor', '... with reason repeated_cursor');
};

subtest 'a search that goes in circles' => sub {
	fresh();
	run_ends('success', 'contacts', 'full', 'before');
	$sim->touch('contacts', count => 210);
	my @page = map { { id => $_->{id}, properties => {}, updatedAt => $_->{updatedAt}, archived => JSON::PP::false } }
	  ($sim->objects('contacts'))[ 0 .. 199 ];
	$sim->fault(
		path => '/contacts/search',
		times => 0,
		action => { kind => 'replace_page', results => results(@page) });
	my $log = run_ends('failed', 'contacts', 'incremental', 'the same page again');
	is($log->{error_details}{reason}, 'repeated_cursor', '... with reason repeated_cursor');
	cmp_ok(scalar $sim->requests, '<=', 3, '... after few requests');
};

subtest 'a record that comes twice' => sub {
	fresh();
	$sim->fault(path => "$contacts?", times => 0, action => 'duplicate_record');
	run_ends('success', 'contacts', 'full', 'in one page');
	is(count_of('contacts'), CONTACTS, '... and is stored once');

	my @of_page = map {
		my $when = $_;
		{
			id => '77',
			properties => { firstname => "at $when" },
			createdAt => '2020-01-01T00:00:00.000Z',
			updatedAt => "2026-01-0${when}T00:00:00.000Z",
			archived => JSON::PP::false
		}
	} 1 .. 3;
	foreach my $order ([ 0, 2, 1 ], [ 2, 1, 0 ], [ 0, 1, 2 ])
	{
		fresh();
		$sim->fault(
			path => "$contacts?",
			action => { kind => 'replace_page', results => results(@of_page[@$order]) });
		my $log = run_ends('success', 'contacts', 'full', "versions @$order in one page");
		is(contact(77, 'first_name'), 'at 3', '... keeping the newest');
		is($log->{records_changed}, CONTACTS - 100 + 1, '... writing it once');

		fresh();
		foreach my $page (0 .. 2)
		{
			$sim->fault(
				path => "$contacts?",
				nth => $page + 1,
				action => { kind => 'replace_page', results => results($of_page[ $order->[$page] ]) });
		}
		run_ends('success', 'contacts', 'full', "versions @$order in three pages");
		is(contact(77, 'first_name'), 'at 3', '... keeping the newest');
		is(count_of('contacts'), 1, '... once');
	}
};

# ---------------------------------------------------------------------------
# Dead letters
# ---------------------------------------------------------------------------

subtest 'values that do not fit' => sub {
	fresh();
	my ($amount, $date, $won) = map { id_of('deals', $_) } 5, 60, 119;
	deliver('deals', $amount, properties => { amount => '1;2' });
	deliver('deals', $date, properties => { closedate => 'the day after tomorrow' });
	deliver('deals', $won, properties => { amount => '1,234.50', closedate => '2026-02-30' });

	my $log = run_ends('partial', 'deals', 'full', 'three bad deals');
	is($log->{records_processed}, DEALS, '... having read all');
	is($log->{records_failed}, 3, '... counting those that failed');
	is($log->{records_changed}, DEALS - 3, '... and those that were stored');
	is($log->{error_details}{reason}, 'records_failed', '... with reason records_failed');
	is(count_of('deals'), DEALS - 3, '... all others are stored');

	my %row = map { $_->{record_id} => $_ } errors();
	is_deeply([ sort { $a <=> $b } keys %row ], [ sort { $a <=> $b } $amount, $date, $won ], 'they are dead-lettered');
	is($row{$amount}{property}, 'amount', '... by property');
	is($row{$date}{property}, 'closedate', '... each by its own');
	like($row{$won}{property}, qr/^(amount|closedate)$/, '... or one of several');
	like($row{$amount}{message}, qr/1;2/, '... with what PostgreSQL says');
	foreach my $id ($amount, $date, $won)
	{
		is($row{$id}{category}, 'invalid_value', '... category invalid_value');
		is($row{$id}{attempts}, 1, '... one attempt');
		is($row{$id}{run_id}, $log->{id}, '... the run');
		is($row{$id}{payload}{id}, $id, '... the payload');
	}
	is($row{$amount}{payload}{properties}{amount}, '1;2', '... with the value');

	run_ends('partial', 'deals', 'incremental', 'the same again');
	is($_->{attempts}, 2, '... counts the attempt') foreach errors();
	$log = run_ends('partial', 'deals', 'full', 'the same once more');
	is($_->{attempts}, 3, '... counts the attempt once') foreach errors();
	is($log->{records_failed}, 3, '... and the records once');

	$sim->raw('deals', $_, undef) foreach $amount, $date;
	$sim->patch('deals', $amount, { amount => '12.50' });
	$log = run_ends('partial', 'deals', 'incremental', 'two are mended');
	is(scalar $sim->requests(path => "$deals/batch/read"), 1, '... and were read again');
	is($log->{records_failed}, 1, '... the third still fails');
	is(join(' ', map { $_->{record_id} } errors()), $won, '... and stays open');
	is(count_of('sync_errors WHERE resolved_at IS NOT NULL'), 2, '... the others are closed');
	is(deal($amount, 'deal_value'), '12.50', '... and stored');
	is(count_of('deals'), DEALS - 1, '... both of them');

	deliver('deals', $amount, properties => { amount => '1;2' });
	$sim->touch('deals', ids => [$amount]);
	run_ends('partial', 'deals', 'incremental', 'one breaks again');
	my ($again) = errors("record_id = '$amount'");
	is($again->{resolved_at}, undef, '... and is open again');
	is(count_of("sync_errors WHERE record_id = '$amount'"), 1, '... in the same row');
	is(deal($amount, 'deal_value'), '12.50', '... its row keeps the last good values');

	$sim->raw('deals', $_, undef) foreach $amount, $won;
	run_ends('success', 'deals', 'full', 'all are mended');
	is(scalar errors(), 0, '... and no error is open');
};

subtest 'a contact with a bad date' => sub {
	fresh();
	my $id = id_of('contacts', 149);
	deliver('contacts', $id, properties => { createdate => '2026-13-45', email => 'bad.date@example.com' });
	run_ends('partial', 'contacts', 'full', 'a bad date');
	my ($error) = errors();
	is($error->{record_id}, $id, '... is dead-lettered');
	is($error->{property}, 'createdate', '... by property');
	is($error->{email}, 'bad.date@example.com', '... with its e-mail');
	is(count_of('contacts'), CONTACTS - 1, '... all others are stored');
	is(count_of('sync_state WHERE last_full_at IS NOT NULL AND synced_until IS NOT NULL'),
		1, '... and the run counts as complete');
};

subtest 'the number of attempts is limited' => sub {
	fresh();
	my $id = id_of('deals', 7);
	deliver('deals', $id, properties => { amount => 'x' });
	run_ends('partial', 'deals', 'full', 'first');
	run_ends('partial', 'deals', 'incremental', "attempt $_") foreach 2 .. 10;
	my ($error) = errors();
	is($error->{attempts}, 10, 'ten attempts');
	run_ends('success', 'deals', 'incremental', 'after ten attempts');
	is(scalar $sim->requests(path => "$deals/batch/read"), 0, '... it is not read again');
	$sim->raw('deals', $id, undef);
	$sim->touch('deals', ids => [$id]);
	run_ends('success', 'deals', 'incremental', 'when it comes by itself');
	is(scalar errors(), 0, '... the error is closed');
};

subtest 'records without a usable id' => sub {
	fresh();
	my @ids = map { id_of('contacts', $_) } 0 .. 120;
	my %odd = (
		$ids[3] => '{"properties":{"email":"no.id@example.com"}}',
		$ids[4] => '{"id":null,"properties":{}}',
		$ids[5] => '{"id":"","properties":{"x":"1"}}',
		$ids[6] => '"a text"',
		$ids[7] => '42',
		$ids[8] => 'null',
		$ids[9] => '[]',
		$ids[10] => '{}',
		$ids[110] => '{"id":"abc","properties":{}}',
		$ids[111] => '{"id":"-5","properties":{}}',
		$ids[112] => '{"id":"12 34","properties":{}}',
		$ids[113] => '{"id":{"a":1},"properties":{}}',
		$ids[114] => '{"id":"1.5","properties":{}}',
	);
	$sim->raw('contacts', $_, $odd{$_}) foreach keys %odd;
	my $odd = keys %odd;
	my $log = run_ends('partial', 'contacts', 'full', 'odd records');
	is($log->{records_failed}, $odd, '... count as failed');
	is($log->{records_processed}, CONTACTS, '... and as received');
	is(count_of('contacts'), CONTACTS - $odd, '... all others are stored');

	my @nameless = grep { $_->{record_id} =~ /^sha256:[0-9a-f]{64}$/ } errors();
	my @bad = grep { $_->{record_id} !~ /^sha256:/ } errors();
	is(scalar @nameless, 9, 'those without an id go by their payload');
	is_deeply([ map { $_->{category} } @nameless ], [ ('no_id') x 9 ], '... category no_id');
	is(join(' ', map { $_->{record_id} } @bad), '-5 1.5 12 34 abc', 'the others by what they have');
	is_deeply([ map { $_->{category} } @bad ], [ ('invalid_id') x 4 ], '... category invalid_id');
	my ($mail) = grep { ($_->{email} // '') eq 'no.id@example.com' } @nameless;
	is($mail->{payload_text}, '{"properties": {"email": "no.id@example.com"}}', 'with their payload');
	is(join(' ', sort map { $_->{payload_text} } @nameless),
		join(' ', sort '{"properties": {"email": "no.id@example.com"}}',
			'{"id": null, "properties": {}}', '{"id": "", "properties": {"x": "1"}}',
			'"a text"', '42', 'null', '[]', '{}', '{"id": {"a": 1}, "properties": {}}'),
		'... whatever it is');

	run_ends('partial', 'contacts', 'full', 'the same again');
	is(scalar errors(), $odd, '... adds no rows');
	is($_->{attempts}, 2, '... and counts the attempt') foreach errors();

	$sim->raw('contacts', $_, undef) foreach keys %odd;
	run_ends('success', 'contacts', 'incremental', 'mended');
	cmp_ok(scalar(grep { $_->{record_id} =~ /^sha256:/ } errors()), '==', 9, '... an incremental run cannot know');
	run_ends('success', 'contacts', 'full', 'mended');
	is(count_of('contacts'), CONTACTS, '... stores all');
	is(scalar errors(), 0, '... and closes what it did not meet');
};

# ---------------------------------------------------------------------------
# Odd but harmless
# ---------------------------------------------------------------------------

subtest 'characters that PostgreSQL cannot hold' => sub {
	fresh();
	my ($nul, $surrogate, $bytes, $fine) = map { id_of('contacts', $_) } 0, 10, 20, 30;
	my $record = '{"id":"%s","properties":{"firstname":"%s","email":"x@example.com"},'
	  . '"updatedAt":"2026-01-01T00:00:00.000Z"}';
	$sim->raw('contacts', $nul, sprintf $record, $nul, 'A\u0000B\u0000');
	$sim->raw('contacts', $surrogate, sprintf $record, $surrogate, '\ud800x\udc00 \ud83d\ude00');
	$sim->raw('contacts', $bytes, sprintf $record, $bytes, "Z\xc3\xbc\xff \xc3(");
	$sim->raw('contacts', $fine, sprintf $record, $fine, '\\\\u0000 \\\\ud800 \u00e9');
	my $log = run_ends('success', 'contacts', 'full', 'odd characters');
	is($log->{error_details}{replaced_characters}, 6, '... counting what was replaced');
	is(contact($nul, 'first_name'), "A\x{fffd}B\x{fffd}", 'a NUL');
	is(contact($surrogate, 'first_name'), "\x{fffd}x\x{fffd} \x{1f600}", 'lone surrogates, but not a pair');
	is(contact($bytes, 'first_name'), "Z\x{fc}\x{fffd} \x{fffd}(", 'invalid UTF-8');
	is(contact($fine, 'first_name'), '\u0000 \ud800 ' . "\x{e9}", 'what only looks like it is left alone');
	is(contact($nul, "properties ->> 'firstname'"), "A\x{fffd}B\x{fffd}", 'also in properties');
	$log = run_ends('success', 'contacts', 'full', 'the same again');
	is($log->{records_changed}, 0, '... changes nothing');

	deliver('contacts', $fine, properties => { createdate => 'x' });
	$sim->raw('contacts', $fine,
		sprintf '{"id":"%s","properties":{"createdate":"x\u0000","firstname":"%s"}}', $fine, "\xff");
	run_ends('partial', 'contacts', 'full', 'in a dead letter');
	my ($error) = errors();
	is($error->{payload}{properties}{createdate}, "x\x{fffd}", '... they are replaced too');
};

subtest 'large values' => sub {
	fresh();
	my ($large, $email) = map { id_of('contacts', $_) } 12, 120;
	my $text = join '', map { sprintf '%07d ', $_ } 1 .. 131_072;
	$sim->patch('contacts', $large, { firstname => $text, company => "\x{e4}" x 500_000 });
	run_ends('success', 'contacts', 'full', 'a value of 1 MB');
	is(contact($large, 'length(first_name), md5(first_name)'),
		$server->sql("SELECT 1048576, md5('$text')"), '... is stored whole');

	# Too long for the index on it, and not to be compressed.
	srand(1);
	my $long = join('', map { chr(97 + int rand 26) } 1 .. 20_000) . '@example.com';
	deliver('contacts', $email, properties => { email => $long });
	my $run = $server->run_sync('contacts', 'full');
	like($run->{status}, qr/^(success|partial)$/, 'an e-mail of 20 kB does not stop the run') or diag($run->{stderr});
	is(count_of('contacts'), CONTACTS, '... nor harm a row');
};

subtest 'types other than text' => sub {
	fresh();
	my ($one, $two, $three) = map { id_of('contacts', $_) } 1, 2, 3;
	my $record = '{"id":%s,"properties":{%s},"updatedAt":"2026-01-01T00:00:00.000Z"}';
	$sim->raw('contacts', $one, sprintf $record, qq("$one"),
		'"firstname":12.50,"lastname":true,"phone":4930123456789012345678,"hs_lead_status":false,"email":1e3');
	$sim->raw('contacts', $two, sprintf $record, $two, '"firstname":0,"lastname":-1,"phone":null,"email":["a",{"b":1}]');
	$sim->raw('contacts', $three, sprintf $record, qq("$three"), '"createdate":1577836800000,"firstname":""');
	run_ends('success', 'contacts', 'full', 'numbers and booleans');
	is(contact($one, 'first_name, last_name, phone, status, email'),
		'12.50|true|4930123456789012345678|false|1e3', 'stored as their text');
	is(contact($two, 'first_name, last_name, phone IS NULL'), '0|-1|t', 'the id may be a number too');
	is(contact($two, 'email::jsonb'), '["a", {"b": 1}]', 'structures are stored as JSON');
	is(contact($three, "created_at AT TIME ZONE 'UTC', first_name = ''"),
		'2020-01-01 00:00:00|t', 'milliseconds as a date, an empty text as itself');

	fresh();
	my ($deal, $empty) = map { id_of('deals', $_) } 1, 2;
	deliver('deals', $deal, properties => { amount => 1234.5, closedate => '1577836800000' });
	deliver('deals', $empty, properties => { amount => '', closedate => '' });
	run_ends('success', 'deals', 'full', 'numbers and nothing');
	is(deal($deal, "deal_value, close_date AT TIME ZONE 'UTC'"), '1234.5|2020-01-01 00:00:00', 'a number, milliseconds');
	is(deal($empty, 'deal_value IS NULL, close_date IS NULL'), 't|t', 'empty values are null');
};

subtest 'properties as jsonb' => sub {
	fresh();
	my ($all, $others, $nothing) = map { id_of('contacts', $_) } 1, 2, 3;
	my $record = '{"id":"%s","properties":%s,"updatedAt":"2026-01-01T00:00:00.000Z"}';
	# Not in the order in which jsonb keeps names, nor of one kind.
	my $mixed = '"zz":1,"b":null,"a":"\\u00e4\\"\\\\\\n","ccc":true,"":false,"zz2":-0.50,"aa":12345678901234567890123,'
	  . '"f":1.5e10,"e":[],"o":{},"l":[1,"2",null,[{"y":1,"xx":[],"x":{"z":"","b":2}}]]';
	my $long = '1' x 200;
	$sim->raw('contacts', $all, sprintf $record, $all, "{$mixed}");
	$sim->raw('contacts', $others, sprintf $record, $others, qq({"z":"twice","far":1e5000,"long":$long,"z":"the last"}));
	$sim->raw('contacts', $nothing, sprintf $record, $nothing, '[1]');
	run_ends('success', 'contacts', 'full', 'all kinds of values');
	is(contact($all, "properties = '{$mixed}'::jsonb"), 't', 'what HubSpot sent');
	is(contact($all, "properties -> 'l' -> 3 -> 0 -> 'x' ->> 'b'"), '2', '... and what is inside is found by its name');
	is(contact($others, 'properties'), qq({"z": "the last", "far": "1e5000", "long": "$long"}),
		'of two of one name the last, as text what no number can be');
	is(contact($nothing, 'properties'), '{}', 'nothing where there are none');
	is(count_of('contacts WHERE properties::text::jsonb = properties'), CONTACTS, 'every one is a jsonb like any other');
	is(count_of("contacts WHERE EXISTS (SELECT FROM jsonb_object_keys(properties) k WHERE NOT properties ? k)"),
		0, '... whose members are found');
};

subtest 'nothing where something is expected' => sub {
	fresh();
	$sim->fault(path => "$contacts?", nth => 2, action => { kind => 'replace_page', results => 'null' });
	my $log = run_ends('success', 'contacts', 'full', 'results: null');
	is($log->{records_processed}, CONTACTS - 100, '... is an empty page');
	is(count_of('contacts'), CONTACTS - 100, '... and the walk goes on');

	fresh();
	$sim->fault(path => "$contacts?", nth => 2, action => { kind => 'replace_page', results => '[]' });
	run_ends('success', 'contacts', 'full', 'results: []');
	is(count_of('contacts'), CONTACTS - 100, '... and the walk goes on');

	fresh();
	my ($null, $none, $text) = map { id_of('contacts', $_) } 4, 5, 6;
	$sim->raw('contacts', $null, qq({"id":"$null","properties":null,"createdAt":null,"updatedAt":null,"archived":null}));
	$sim->raw('contacts', $none, qq({"id":"$none"}));
	$sim->raw('contacts', $text, qq({"id":"$text","properties":"none","updatedAt":"never","archived":"maybe"}));
	run_ends('success', 'contacts', 'full', 'properties: null');
	is(contact($_, 'email IS NULL AND first_name IS NULL AND NOT archived'), 't', '... is a record without values')
	  foreach $null, $none, $text;
	is(count_of('contacts'), CONTACTS, '... stored like the others');
	$log = run_ends('success', 'contacts', 'full', 'the same again');
	is($log->{records_changed}, 0, '... changes nothing');
};

subtest 'unknown fields, however deep' => sub {
	fresh();
	my ($first, $second, $third) = map { id_of('contacts', $_) } 0, 1, 2;
	my $nested = sub { return '[' x $_[0] . ']' x $_[0]; };
	my $objects = '{"a":' x 500 . '1' . '}' x 500;
	$sim->raw('contacts', $first,
		sprintf '{"id":"%s","mystery":%s,"properties":{"firstname":"deep"}}', $first, $nested->(200));
	$sim->raw('contacts', $second,
		sprintf '{"mystery":%s,"properties":{"firstname":"deeper"},"id":"%s"}', $nested->(500), $second);
	$sim->raw('contacts', $third,
		sprintf '{"id":"%s","properties":{"firstname":"deepest","mystery":%s}}', $third, $objects);
	run_ends('success', 'contacts', 'full', 'unknown fields');
	is(contact($first, 'first_name'), 'deep', '200 levels');
	is(contact($second, 'first_name'), 'deeper', '500 levels');
	is(contact($third, 'first_name'), 'deepest', '500 levels among the properties');
	is(count_of('contacts'), CONTACTS, '... stored like the others');
	$sim->fault(
		path => '/crm/owners/',
		action => { kind => 'body', raw => '{"future":' . $nested->(500) . ',"results":[{"id":"1","email":"o@example.com","new":[]}]}' });
	run_ends('success', 'owners', 'full', 'unknown fields of a page');
	is($server->sql("SELECT email FROM staff WHERE id = '1'"), 'o@example.com', '... whose records are stored');
};

subtest 'ids of 64 bits' => sub {
	fresh();
	my @ids = qw(9007199254740993 9007199254740992 9223372036854775806 9223372036854775807);
	$sim->create('contacts', map { { id => $_, properties => { firstname => "no. $_" } } } @ids);
	run_ends('success', 'contacts', 'full', 'large ids');
	is(contact($_, 'first_name'), "no. $_", "$_ is stored") foreach @ids;
	is(count_of('contacts'), CONTACTS + @ids, '... and none is lost');
	$sim->patch('contacts', $_, { lastname => "changed $_" }) foreach @ids;
	run_ends('success', 'contacts', 'incremental', 'large ids');
	is(contact($_, 'last_name'), "changed $_", "$_ is found by search") foreach @ids;

	# As a number in JSON; a double would round it.
	$sim->raw('contacts', $ids[0], qq({"id":$ids[0],"properties":{"firstname":"a number"}}));
	run_ends('success', 'contacts', 'full', 'an id as a number');
	is(contact($ids[0], 'first_name'), 'a number', '... is not rounded');

	run_ends('success', 'firms', 'full', 'a bigint key');
	$sim->create('companies', { id => $ids[3], properties => { name => 'Last' } });
	run_ends('success', 'firms', 'incremental', 'a bigint key');
	is($server->sql("SELECT label FROM app.firms WHERE number = $ids[3]"), 'Last', '... holds it');
};

# ---------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------

subtest 'unknown deal stages' => sub {
	my $pipelines = '/crm/pipelines/' . HubspotSync::Simulator->api_version . '/deals';
	fresh();
	run_ends('success', 'deals', 'full', 'known stages');
	is(scalar $sim->requests(path => $pipelines), 1, '... need one look at the pipelines');

	my ($won, $open) = map { id_of('deals', $_) } 1, 3;
	$sim->control('POST', 'stage/deals', { id => 'signed', probability => '1.0', isClosed => JSON::PP::true });
	$sim->patch('deals', $won, { dealstage => 'signed' });
	run_ends('success', 'deals', 'incremental', 'a new stage');
	is(scalar $sim->requests(path => $pipelines), 1, '... needs one look at the pipelines');
	is(deal($won, 'status, stage'), 'won|signed', '... and the deal gets its status');

	# The first page has been read when the second brings another stage.
	$sim->control('POST', 'stage/deals', { id => 'gone', probability => '0.0', isClosed => JSON::PP::true });
	my $late = id_of('deals', DEALS - 1);
	$sim->patch('deals', $late, { dealstage => 'gone' });
	run_ends('success', 'deals', 'full', 'a stage of the last page');
	is(deal($late, 'status'), 'lost', '... and the deal is lost');
	is(deal($won, 'status'), 'won', '... the others keep their status');

	deliver('deals', $open, properties => { dealstage => 'nobody knows' });
	deliver('deals', $late, properties => { dealstage => 'nobody knows' });
	run_ends('success', 'deals', 'full', 'a stage no pipeline has');
	cmp_ok(scalar $sim->requests(path => $pipelines), '<=', 2, '... is asked for once');
	is(deal($open, 'status IS NULL, stage'), 't|nobody knows', '... and has no status');
	is(count_of('deals'), DEALS, '... stored like the others');
};

# ---------------------------------------------------------------------------
# Wide accounts
# ---------------------------------------------------------------------------

subtest 'more properties than a request can name' => sub {
	fresh();
	$sim->reset(wide => WIDE);
	$server->sql("UPDATE sync_types SET properties = ARRAY(SELECT 'extra_' || to_char(n, 'FM000')"
		  . ' FROM generate_series(1, ' . WIDE . ") n) WHERE sync_type = 'contacts'");
	my ($nameless, $gone) = map { id_of('contacts', $_) } 120, 130;
	$sim->archive('contacts', $gone);
	$sim->raw('contacts', $nameless, '{"properties":{}}');
	my $log = run_ends('partial', 'contacts', 'full', '800 properties');
	is(count_of('contacts'), CONTACTS - 1, '... stores all but the one without id');
	is($server->sql('SELECT DISTINCT count(*) FROM contacts, jsonb_object_keys(properties) k'
			  . " WHERE k LIKE 'extra%' AND NOT archived GROUP BY hubspot_contact_id"),
		WIDE, '... with all properties');
	is(contact($gone, 'archived, email IS NOT NULL'), 't|t', '... and the archived one');
	my @lists = $sim->requests(path => $contacts);
	my @reads = $sim->requests(path => "$contacts/batch/read");
	is(scalar(grep { exists $_->{query}{properties} } @lists), 0, 'lists ask for ids only');
	is(scalar @lists, 3 + 1, '... a hundred a page');
	is(scalar @reads, 3 + 1, 'records are read by batch');
	is(scalar(grep { @{ $_->{body}{inputs} } > 100 } @reads), 0, '... at most a hundred');
	is(scalar(grep { ($_->{status} // 0) >= 400 } $sim->requests), 0, 'no request is refused');

	$sim->raw('contacts', $nameless, undef);
	$sim->touch('contacts', count => 230, properties => { extra_001 => 'new', lastname => 'Wide' });
	$log = run_ends('success', 'contacts', 'incremental', '800 properties');
	my @searches = $sim->requests(path => "$contacts/search");
	# Besides, histories of owners are read.
	@reads = grep { !@{ $_->{body}{propertiesWithHistory} || [] } } $sim->requests(path => "$contacts/batch/read");
	is(scalar @searches, 2, 'searches give two hundred a page');
	is(scalar(grep { @{ $_->{body}{properties} } } @searches), 0, '... of ids only');
	is(scalar(grep { @{ $_->{body}{inputs} } > 100 } @reads), 0, 'records are read by batch');
	cmp_ok(scalar @reads, '<=', 4, '... with few requests');
	is(count_of("contacts WHERE last_name = 'Wide' AND properties ->> 'extra_001' = 'new'"), 230, '... and stored');
	is(contact(id_of('contacts', 240), "properties ->> 'extra_800' IS NOT NULL OR properties ? 'extra_800'"),
		't', '... and the others keep their properties');
	$log = run_ends('success', 'contacts', 'full', 'unchanged');
	is($log->{records_changed}, 0, '... writes nothing');
	$server->sql("UPDATE sync_types SET properties = '{}' WHERE sync_type = 'contacts'");
};

# ---------------------------------------------------------------------------
# Constraints and triggers of the user's
# ---------------------------------------------------------------------------

subtest 'constraints and triggers that refuse a record' => sub {
	my %guard = (
		'a CHECK' => [ "ALTER TABLE contacts ADD CONSTRAINT guard CHECK (last_name <> 'Guilty')", 'constraint' ],
		'a unique index' => [ 'CREATE UNIQUE INDEX guard ON contacts (last_name) WHERE last_name LIKE \'Guilty%\'', 'constraint' ],
		'an exclusion' => [ "ALTER TABLE contacts ADD CONSTRAINT guard EXCLUDE (last_name WITH =) WHERE (last_name LIKE 'Guilty%')", 'constraint' ],
		'a deferred exclusion' => [ "ALTER TABLE contacts ADD CONSTRAINT guard EXCLUDE (last_name WITH =) WHERE (last_name LIKE 'Guilty%') DEFERRABLE INITIALLY DEFERRED", 'constraint' ],
		'a deferred foreign key' => [ <<~SQL, 'constraint' ],
			CREATE TABLE families (name text PRIMARY KEY);
			INSERT INTO families SELECT DISTINCT record #>> '{properties,lastname}' FROM sim_contacts
				WHERE record #>> '{properties,lastname}' <> 'Guilty';
			ALTER TABLE contacts ADD CONSTRAINT guard FOREIGN KEY (last_name) REFERENCES families
				DEFERRABLE INITIALLY DEFERRED
			SQL
		'a trigger' => [ 'CREATE TRIGGER guard BEFORE INSERT ON contacts FOR EACH ROW EXECUTE FUNCTION refuse()', 'trigger' ],
		'a late trigger' => [ 'CREATE TRIGGER guard AFTER INSERT ON contacts FOR EACH ROW EXECUTE FUNCTION refuse()', 'trigger' ],
		'a deferred trigger' => [ <<~SQL, 'trigger' ],
			CREATE CONSTRAINT TRIGGER guard AFTER INSERT ON contacts DEFERRABLE INITIALLY DEFERRED
				FOR EACH ROW EXECUTE FUNCTION refuse()
			SQL
	);
	$server->sql(<<~SQL);
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \$\$
			BEGIN
				IF new.last_name = 'Guilty' THEN
					RAISE 'not this one' USING detail = new.hubspot_contact_id;
				END IF;
				RETURN new;
			END \$\$
		SQL
	foreach my $what (sort keys %guard)
	{
		my ($install, $category) = @{ $guard{$what} };
		my $unique = $what =~ /unique|exclusion/;
		fresh();
		my @guilty = map { id_of('contacts', $_) } 33, 66, 249;
		$sim->patch('contacts', $_, { lastname => 'Guilty' }) foreach @guilty;
		$server->load_objects('contacts');
		$server->sql($install);
		my $expected = $unique ? 2 : 3;
		my $log = run_ends('partial', 'contacts', 'full', $what);
		is($log->{records_failed}, $expected, '... with the guilty failed');
		is(count_of('contacts'), CONTACTS - $expected, '... and all others stored');
		my @errors = errors();
		is(scalar @errors, $expected, '... and dead-lettered');
		is_deeply([ map { $_->{category} } @errors ], [ ($category) x $expected ], "... category $category");
		is(scalar(grep { my $e = $_; grep { $e->{record_id} eq $_ } @guilty } @errors), $expected, '... by their ids');
		like($errors[0]{message}, $category eq 'trigger' ? qr/^not this one: \d+/ : qr/guard/, '... saying why');

		$server->sql(<<~SQL);
			DROP TRIGGER IF EXISTS guard ON contacts;
			ALTER TABLE contacts DROP CONSTRAINT IF EXISTS guard;
			DROP INDEX IF EXISTS guard;
			DROP TABLE IF EXISTS families;
			SQL
		run_ends('success', 'contacts', 'incremental', "$what is gone");
		is(scalar errors(), 0, '... closes the errors');
		is(count_of('contacts'), CONTACTS, '... and stores the records');
	}
	$server->sql('DROP FUNCTION refuse()');
};

subtest 'what is not the fault of a record' => sub {
	$server->sql(<<~SQL);
		CREATE TABLE secrets (x text);
		SET ROLE app;
		CREATE FUNCTION app.snoop() RETURNS trigger LANGUAGE plpgsql AS \$\$
			BEGIN
				IF new.label = 'Trap' THEN
					INSERT INTO public.secrets VALUES (new.label);
				END IF;
				RETURN new;
			END \$\$;
		CREATE TRIGGER snoop AFTER INSERT OR UPDATE ON app.firms FOR EACH ROW EXECUTE FUNCTION app.snoop();
		SQL
	fresh();
	my $trap = id_of('companies', 110);
	$sim->patch('companies', $trap, { name => 'Trap' });
	my $log = run_ends('failed', 'firms', 'full', 'a trigger doing what its owner may not');
	is($log->{error_details}{reason}, 'privilege', '... with reason privilege');
	is($log->{error_details}{sqlstate}, '42501', '... and its SQLSTATE');
	like($log->{error_details}{message}, qr/permission denied for table secrets/, '... and message');
	is(count_of('sync_errors'), 0, '... with nothing dead-lettered');
	is(count_of('app.firms'), 100, '... the page before is kept');
	ok(defined $log->{checkpoint}, '... and the checkpoint');
	is($log->{records_failed}, 0, '... with no record failed');
	is(count_of('sync_state'), 0, '... and the watermark unmoved');

	# Nor is a disk without room.
	$server->sql(<<~SQL);
		CREATE OR REPLACE FUNCTION app.snoop() RETURNS trigger LANGUAGE plpgsql AS \$\$
			BEGIN
				IF new.label = 'Trap' THEN
					RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100';
				END IF;
				RETURN new;
			END \$\$;
		SQL
	$log = run_ends('failed', 'firms', 'full', 'a full disk');
	is($log->{error_details}{reason}, 'out_of_resources', '... with reason out_of_resources');
	is(count_of('sync_errors'), 0, '... with nothing dead-lettered');

	$server->sql('DROP TRIGGER snoop ON app.firms');
	$log = run_ends('success', 'firms', 'full', 'once it may');
	is($log->{records_processed}, COMPANIES - 100, '... it continues where the other stopped');
	is(count_of('app.firms'), COMPANIES, '... and stores the rest');

	# So is a type whose target lost a column.
	$server->sql('ALTER TABLE app.firms DROP COLUMN web');
	$log = run_ends('failed', 'firms', 'full', 'a column that is gone');
	is($log->{error_details}{reason}, 'configuration', '... with reason configuration');
	like($log->{error_details}{message}, qr/no column "web"/, '... and names it');
	is(scalar $sim->requests, 0, '... before any request');
};

done_testing();
