# A walk believes nothing that HubSpot's answers contradict: an answer without
# results is no empty page, a clock that cannot be right moves no watermark, a
# cursor that HubSpot has forgotten or that is too old is not followed, and
# what passes through leaves nothing behind in memory.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use JSON::PP;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use constant {
	CONTACTS => 250,
	DEALS => 20,
	COMPANIES => 30,
	MANY => 20_000,
	WIDE => 150,
	WIDER => 800,
	RETRIES => 2,
	HOUR_MS => 3_600_000,
	DAY_MS => 86_400_000,
	OVERLAP_MS => 300_000,
	RSS_GROWTH => 2048,    # kB
};

my $sim = HubspotSync::Simulator->start(
	contacts => CONTACTS, deals => DEALS, companies => COMPANIES, owners => 2, wide => WIDE);
my $server = HubspotSync::Server->new('walk', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => RETRIES, statement_timeout => '60s' });

my $contacts = '/crm/objects/' . HubspotSync::Simulator->api_version . '/contacts';
my $list = "$contacts?";
my $search = "$contacts/search";
my $batch = "$contacts/batch/read";

# A table of the user's own that has no columns for our bookkeeping.
$server->sql(<<~SQL);
	CREATE TABLE firms (number bigint PRIMARY KEY, label text);
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, modified_property)
		VALUES ('firms', 'companies', 'public', 'firms', '{number}', 'hs_lastmodifieddate');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('firms', 'label', 'name');
	SQL

# ---------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------

# Forgets everything that was stored and starts with the first data.
sub fresh
{
	$sim->clear_faults;
	$sim->config(search_lag_ms => 0, clock_offset_ms => 0, date_header => JSON::PP::true);
	$sim->reset;
	$server->sql('TRUNCATE contacts, deals, firms, sync_state, sync_runs, sync_errors, sync_rows,
		sync_absences, contact_owner_history, sync_owner_reads');
	return;
}

sub ids
{
	my ($type) = @_;
	return $sim->objects_text($type // 'contacts') =~ /^\{"id":"(\d+)"/mg;
}

sub now_ms { return $sim->state->{now_ms}; }

# Runs a type, which ends so; returns the log entry.
sub run_ends
{
	my ($status, $what, $type, $mode) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync($type, $mode);
	is($run->{status}, $status, "$what: $mode run of $type ends $status") or diag($run->{stderr});
	return defined $run->{run_id} ? $server->log($run->{run_id}) : {};
}

sub count_of
{
	my ($from) = @_;
	return $server->sql("SELECT count(*) FROM $from");
}

sub contact
{
	my ($id, $expression) = @_;
	return $server->sql("SELECT $expression FROM contacts WHERE hubspot_contact_id = '$id'");
}

sub watermark
{
	my ($type) = @_;
	$type //= 'contacts';
	return $server->sql("SELECT (extract(epoch FROM synced_until) * 1000)::bigint FROM sync_state WHERE sync_type = '$type'");
}

sub open_errors
{
	return $server->sql_json('SELECT * FROM sync_errors WHERE resolved_at IS NULL ORDER BY record_id');
}

# Has a request answered with this JSON.
sub answer
{
	my ($json, %fault) = @_;
	$sim->fault(%fault, action => { kind => 'body', raw => $json });
	return;
}

# Has a record delivered with other values than it has.
sub deliver
{
	my ($type, $id, %properties) = @_;
	my $record = $sim->object($type, $id);
	$record->{properties} = { %{ $record->{properties} }, %properties };
	$sim->raw($type, $id, JSON::PP->new->utf8->encode($record));
	return;
}

# A full run of contacts that breaks off before its third page.
sub break_off
{
	my ($what) = @_;
	$sim->fault(path => $list, nth => 3, times => 0, action => 'reset');
	my $failed = run_ends('failed', $what, 'contacts', 'full');
	$sim->clear_faults;
	return $failed;
}

# ---------------------------------------------------------------------------
# Answers that make no sense
# ---------------------------------------------------------------------------

subtest 'a list page without results' => sub {
	foreach my $body ('{}', '{"status":"error"}', '{"results":{"id":"1"}}', '{"results":""}')
	{
		fresh();
		answer($body, path => $list, nth => 2, times => RETRIES);
		my $log = run_ends('success', "$body once or twice", 'contacts', 'full');
		is($log->{retries}, RETRIES, '... having been repeated');
		is(count_of('contacts'), CONTACTS, '... and everything is stored');

		fresh();
		answer($body, path => $list, nth => 2, times => 0);
		$log = run_ends('failed', "$body for ever", 'contacts', 'full');
		is($log->{error_details}{reason}, 'gave_up', '... with reason gave_up');
		is($log->{checkpoint}{phase}, 'live', '... keeping its checkpoint');
		is(count_of('contacts'), 100, '... after the first page');
		is(count_of('sync_state'), 0, '... without a watermark');
		$sim->clear_faults;
		is(run_ends('success', 'after it', 'contacts', 'full')->{continues}, $log->{id}, '... the next one continues');
		is(count_of('contacts'), CONTACTS, '... and stores the rest');
	}
	fresh();
	answer('{"results":null}', path => $list, nth => 3);
	run_ends('success', 'results: null', 'contacts', 'full');
	is(count_of('contacts'), 200, '... is an empty page');
};

subtest 'a search with a total and no results' => sub {
	fresh();
	run_ends('success', 'before', 'contacts', 'full');
	my $watermark = watermark();
	$sim->touch('contacts', count => 10, properties => { lastname => 'Changed' });
	answer('{"total":500,"results":[]}', path => $search, times => 0);
	my $log = run_ends('failed', 'for ever', 'contacts', 'incremental');
	is($log->{error_details}{reason}, 'gave_up', '... with reason gave_up');
	is(watermark(), $watermark, '... and the watermark stays');
	$sim->clear_faults;
	answer('{"total":500,"results":[]}', path => $search);
	$log = run_ends('success', 'once', 'contacts', 'incremental');
	is($log->{retries}, 1, '... having been repeated');
	is(count_of("contacts WHERE last_name = 'Changed'"), 10, '... and the changes are stored');
};

subtest 'a search page without a single id' => sub {
	fresh();
	run_ends('success', 'before', 'contacts', 'full');
	answer('{"total":2,"results":[{"properties":{}},{"id":null}]}', path => $search);
	my $log = run_ends('partial', 'junk', 'contacts', 'incremental');
	is($log->{records_failed}, 2, '... which is counted');
	is(join(' ', map { $_->{category} } open_errors()), 'no_id no_id', '... and dead-lettered');
	is(scalar $sim->requests(path => $search), 1, '... after one request');

	# More is announced, but no page is next to one without ids.
	answer('{"total":900,"results":[{"properties":{}}]}', path => $search, times => 0);
	run_ends('failed', 'junk before others', 'contacts', 'incremental');
	cmp_ok(scalar $sim->requests(path => $search), '<=', 2, '... is not asked for for ever');
};

subtest 'a change whose record comes without its id' => sub {
	fresh();
	run_ends('success', 'before', 'contacts', 'full');
	my $watermark = watermark();
	$sim->config(clock_offset_ms => HOUR_MS);
	my ($first, $second) = ids();
	$sim->patch('contacts', $_, { lastname => 'Changed' }) foreach $first, $second;
	$sim->fault(path => $search, action => { kind => 'edit', remove => ['results.0.id'] });
	my $log = run_ends('partial', 'one without an id', 'contacts', 'incremental');
	like($log->{error_details}{remark}, qr/without a usable id/, '... says so');
	is(watermark(), $watermark, '... moves no watermark');
	isnt(contact($first, 'last_name'), 'Changed', '... misses its change');
	is(contact($second, 'last_name'), 'Changed', '... and stores the other');
	$sim->config(clock_offset_ms => 2 * HOUR_MS);
	run_ends('success', 'the next one', 'contacts', 'incremental');
	is(contact($first, 'last_name'), 'Changed', '... finds it');
	cmp_ok(watermark(), '>', $watermark, '... and moves the watermark');
};

subtest 'search results in another order' => sub {
	fresh();
	run_ends('success', 'before', 'contacts', 'full');
	my $watermark = watermark();
	my @changed = (ids())[ 0 .. 2 ];
	$sim->touch('contacts', ids => \@changed);
	my $results = join ',', map { qq({"id":"$_","properties":{"lastname":"Disorder"}}) } @changed[ 1, 0, 2 ];
	$sim->fault(path => $search, action => { kind => 'replace_page', results => "[$results]" });
	my $log = run_ends('failed', 'disorder', 'contacts', 'incremental');
	is($log->{error_details}{reason}, 'unordered', '... with reason unordered');
	is(watermark(), $watermark, '... and the watermark stays');
	is(count_of("contacts WHERE last_name = 'Disorder'"), 0, '... with nothing stored');
};

# ---------------------------------------------------------------------------
# Clocks
# ---------------------------------------------------------------------------

subtest 'the first attempt without a Date, the second with one' => sub {
	fresh();
	run_ends('success', 'before', 'contacts', 'full');
	my $watermark = watermark();
	my ($id) = ids();
	$sim->config(date_header => JSON::PP::false);
	my $failed = break_off('without Date');
	like($failed->{error_details}{remark}, qr/Date/, '... which a remark tells');
	is($failed->{checkpoint}{t0_ms}, 0, '... and the checkpoint');

	# What was passed changes; later HubSpot tells the time again.
	$sim->patch('contacts', $id, { lastname => 'Meanwhile' });
	$sim->config(date_header => JSON::PP::true, clock_offset_ms => HOUR_MS);
	my $log = run_ends('success', 'with Date', 'contacts', 'full');
	is($log->{continues}, $failed->{id}, '... continues');
	is(watermark(), $watermark, '... and moves no watermark');
	like($log->{error_details}{remark}, qr/Date/, '... which a remark tells');
	run_ends('success', 'the run after it', 'contacts', 'incremental');
	is(contact($id, 'last_name'), 'Meanwhile', '... finds what has changed');
};

subtest 'a Date of another age' => sub {
	fresh();
	$sim->config(clock_offset_ms => 30 * 365 * DAY_MS);
	my $log = run_ends('success', '30 years ahead', 'contacts', 'full');
	like($log->{error_details}{remark}, qr/Date/, '... a remark tells');
	is(count_of('sync_state WHERE synced_until > now()'), 0, '... no watermark is in the future');
	run_ends('success', '30 years ahead', 'contacts', 'incremental');
	is(count_of('sync_state WHERE synced_until > now() OR deep_until > now()'), 0, '... nor is it now');

	$sim->config(clock_offset_ms => 0);
	run_ends('success', 'the right time', 'contacts', 'full');
	my $watermark = watermark();
	cmp_ok(abs($watermark - now_ms()), '<', HOUR_MS, '... is the watermark');
	$sim->config(clock_offset_ms => 30 * 365 * DAY_MS);
	run_ends('success', 'once more', 'contacts', 'full');
	is(watermark(), $watermark, '... leaves it');
	$sim->config(clock_offset_ms => 0);
	my ($id) = ids();
	$sim->patch('contacts', $id, { lastname => 'Now' });
	run_ends('success', 'a change', 'contacts', 'incremental');
	is(contact($id, 'last_name'), 'Now', '... is found');
};

subtest 'a Date some hours ahead, once' => sub {
	fresh();
	$sim->config(clock_offset_ms => 12 * HOUR_MS);
	run_ends('success', 'hours ahead', 'contacts', 'full');
	$sim->config(clock_offset_ms => 0);
	my ($id) = ids();
	$sim->patch('contacts', $id, { lastname => 'Between' });
	my $log = run_ends('success', 'the right time again', 'contacts', 'incremental');
	like($log->{error_details}{remark}, qr/clock was ahead/, '... a remark tells');
	my $next = $server->run_sync('contacts', 'auto');
	is($server->log($next->{run_id})->{mode}, 'full', 'the next run reads everything');
	is(contact($id, 'last_name'), 'Between', '... and finds what the other could not');
	cmp_ok(abs(watermark() - now_ms()), '<', HOUR_MS, '... from then on the time is right');
};

# ---------------------------------------------------------------------------
# Deleted rows
# ---------------------------------------------------------------------------

subtest 'a lagging search does not insert a deleted row again' => sub {
	$server->sql("UPDATE sync_types SET delete_policy = 'delete' WHERE sync_type IN ('contacts', 'firms')");
	foreach my $type ('contacts', 'firms')
	{
		fresh();
		my ($kind, $row, $text) = $type eq 'firms' ? ('companies', 'firms WHERE number', 'name')
		  : ('contacts', 'contacts WHERE hubspot_contact_id', 'lastname');
		my ($id) = ids($kind);
		$row .= " = '$id'";
		$sim->patch($kind, $id, { $text => 'Before' });
		run_ends('success', 'before', $type, 'full');
		is(count_of($row), 1, '... it is there');

		$sim->config(search_lag_ms => DAY_MS);
		$sim->archive($kind, $id);
		run_ends('success', 'one is archived', $type, 'full');
		is(count_of($row), 0, '... and its row deleted');
		foreach my $again (1, 2)
		{
			my $log = run_ends('success', 'search still has it', $type, 'incremental');
			is($log->{records_processed}, 1, '... and delivers it');
			is(count_of($row), 0, '... but it does not come back');
		}
		$sim->config(search_lag_ms => 0);
		$sim->restore($kind, $id);
		$sim->patch($kind, $id, { $text => 'After' });
		run_ends('success', 'it is restored and edited', $type, 'incremental');
		is(count_of($row), 1, '... and back');
		$sim->patch($kind, $id, { $text => 'Later' });
		my $log = run_ends('success', 'it is edited', $type, 'incremental');
		is($log->{records_changed}, 1, '... and written');
	}
	$server->sql("UPDATE sync_types SET delete_policy = 'mark' WHERE sync_type IN ('contacts', 'firms')");
};

# ---------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------

my $internal = '{"status":"COMPLETE","results":[],"numErrors":1,"errors":'
  . '[{"status":"error","category":"INTERNAL","message":"try again","context":{"ids":["1"]}}]}';

subtest 'a batch with an error that is no missing record' => sub {
	fresh();
	my $names = join ',', map { "some_property_with_a_name_$_" } 1 .. WIDER;
	$server->sql("UPDATE sync_types SET properties = '{$names}' WHERE sync_type = 'contacts'");
	my %fault = (path => $batch, nth => 2);
	my %action = (kind => 'body', raw => $internal, status => 207);
	$sim->fault(%fault, times => 0, action => \%action);
	my $log = run_ends('failed', 'wide, for ever', 'contacts', 'full');
	is($log->{error_details}{reason}, 'gave_up', '... with reason gave_up');
	is(count_of('contacts'), 100, '... after the first batch');
	fresh();
	$sim->fault(%fault, action => \%action);
	$log = run_ends('success', 'wide, once', 'contacts', 'full');
	is($log->{retries}, 1, '... having been repeated');
	is(count_of('contacts'), CONTACTS, '... and everything is stored');
	$server->sql("UPDATE sync_types SET properties = '{}' WHERE sync_type = 'contacts'");

	fresh();
	my ($id) = ids();
	deliver('contacts', $id, createdate => 'x');
	run_ends('partial', 'a bad date', 'contacts', 'full');
	$sim->raw('contacts', $id, undef);
	$sim->fault(path => $batch, action => \%action);
	$log = run_ends('success', 'it is mended', 'contacts', 'incremental');
	is($log->{retries}, 1, '... and read again twice');
	is(contact($id, 'count(*)'), 1, '... and stored');
	is(scalar open_errors(), 0, '... and its error closed');
};

subtest 'a refused batch of old errors' => sub {
	fresh();
	my ($bad, $good) = ids();
	deliver('contacts', $bad, createdate => 'x');
	run_ends('partial', 'a bad date', 'contacts', 'full');
	foreach my $attempts (2, 3)
	{
		$sim->patch('contacts', $good, { lastname => "Good $attempts" });
		$sim->fault(path => $batch, action => { kind => 'status', status => 400, json => { category => 'VALIDATION_ERROR' } });
		run_ends('success', 'the batch is refused', 'contacts', 'incremental');
		is(contact($good, 'last_name'), "Good $attempts", '... others are stored');
		my ($error) = open_errors();
		is($error->{attempts}, $attempts, '... and the attempt is counted');
	}
};

# ---------------------------------------------------------------------------
# Ids and values
# ---------------------------------------------------------------------------

subtest 'ids that are none' => sub {
	fresh();
	my @ids = ids();
	my %odd = ($ids[1] => '12345678901234567890', $ids[2] => '007', $ids[3] => '9' x 9000, $ids[4] => '-12',
		$ids[5] => '9223372036854775808');
	$sim->raw('contacts', $_, qq({"id":"$odd{$_}","properties":{}})) foreach keys %odd;
	my $log = run_ends('partial', 'odd ids', 'contacts', 'full');
	is($log->{records_failed}, keys %odd, '... all fail');
	is(count_of('contacts'), CONTACTS - keys %odd, '... and no others');
	my @errors = open_errors();
	is(join(' ', map { $_->{category} } @errors), 'invalid_id invalid_id invalid_id invalid_id invalid_id', '... as invalid_id');
	my @long = grep { $_->{record_id} =~ /^sha256:[0-9a-f]{64}$/ } @errors;
	is(scalar @long, 1, 'a long one goes by its hash');
	is($long[0]{payload}{id}, '9' x 9000, '... with its payload');
	is(join(' ', sort map { $_->{record_id} } grep { $_->{record_id} !~ /^sha256/ } @errors),
		'-12 007 12345678901234567890 9223372036854775808', 'the others by themselves');
	$sim->raw('contacts', $_, undef) foreach keys %odd;
	run_ends('success', 'mended', 'contacts', 'full');
	is(scalar open_errors(), 0, '... all errors are closed');
	is(count_of('contacts'), CONTACTS, '... and all is stored');
};

subtest 'words that PostgreSQL would take for values' => sub {
	fresh();
	my @ids = ids('deals');
	my @odd = map { [ closedate => $_ ] } 'today', 'infinity', '-infinity', 'now', 'epoch';
	push @odd, map { [ amount => $_ ] } 'NaN', 'Infinity';
	deliver('deals', $ids[$_], @{ $odd[$_] }) foreach 0 .. $#odd;
	run_ends('partial', 'words', 'deals', 'full');
	is(count_of('deals'), DEALS - @odd, '... others are stored');
	my %by_id = map { $_->{record_id} => $_ } open_errors();
	foreach my $i (0 .. $#odd)
	{
		my $error = $by_id{ $ids[$i] } // {};
		is($error->{category}, 'invalid_value', "$odd[$i][1] is dead-lettered");
		is($error->{property}, $odd[$i][0], '... with its property');
	}
};

# ---------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------

subtest 'a cursor that HubSpot has forgotten' => sub {
	fresh();
	my $failed = break_off('a break');
	$sim->fault(path => $list, action => { kind => 'status', status => 400, json => { category => 'VALIDATION_ERROR' } });
	my $log = run_ends('success', 'the cursor is refused', 'contacts', 'full');
	is($log->{continues}, $failed->{id}, '... by the run that continues');
	is($log->{records_processed}, CONTACTS, '... which starts over');
	is(count_of('contacts'), CONTACTS, '... and stores everything');

	# A first page that is refused is no old cursor.
	$sim->fault(path => $list, action => { kind => 'status', status => 400, json => { category => 'VALIDATION_ERROR' } });
	$log = run_ends('failed', 'the first page is refused', 'contacts', 'full');
	is($log->{error_details}{reason}, 'refused', '... with reason refused');
};

subtest 'a checkpoint that is too old' => sub {
	foreach my $days (6, 8)
	{
		fresh();
		my $failed = break_off('a break');
		$server->sql("UPDATE sync_runs SET checkpoint = jsonb_set(checkpoint, '{started_ms}',"
			  . " to_jsonb((checkpoint ->> 'started_ms')::bigint - $days * 86400000)) WHERE id = '$failed->{id}'");
		my $log = run_ends('success', "$days days later", 'contacts', 'full');
		is($log->{continues}, $days < 7 ? $failed->{id} : undef, $days < 7 ? '... continues' : '... begins anew');
		is($log->{records_processed}, $days < 7 ? CONTACTS - 200 : CONTACTS, '... and reads what it has to');
		is(count_of('contacts'), CONTACTS, '... storing everything');
	}
};

# ---------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------

# Memory of a process's own, in kB; undef when it has ended.
sub rss_anon
{
	my ($pid) = @_;
	open my $status, '<', "/proc/$pid/status" or return undef;
	my ($kb) = map { /^RssAnon:\s+(\d+) kB/ ? $1 : () } <$status>;
	close $status;
	return $kb;
}

subtest 'memory with many properties' => sub {
	fresh();
	$sim->reset(contacts => MANY);
	my $names = join ',', map { sprintf 'extra_%03d', $_ } 1 .. WIDE;
	$server->sql("UPDATE sync_types SET properties = '{$names}' WHERE sync_type = 'contacts'");
	my $id = $server->trigger('contacts', 'full');
	my $pid;
	wait_until('the worker is there', sub {
		$pid = $server->sql("SELECT coalesce(max(holder_pid), 0) FROM sync_run_states WHERE id = '$id' AND status = 'running'");
	});
	my @rss;
	while (defined(my $kb = rss_anon($pid)))
	{
		push @rss, $kb;
		sleep 0.01; # sleep: between two looks
	}
	my $log = $server->wait_for($id);
	is($log->{status}, 'success', 'the run succeeds') or diag explain $log;
	is($log->{records_changed}, MANY, '... storing everything');
	is(contact((ids())[-1], q{properties ? 'extra_150'}), 't', '... with all properties');
	cmp_ok(scalar @rss, '>=', 50, 'the memory of the worker was looked at');
	my $quarter = max(@rss[ 0 .. $#rss / 4 ]);
	my $rest = max(@rss[ $#rss / 4 .. $#rss ]);
	note("RssAnon: $quarter kB in the first quarter, $rest kB afterwards");
	SKIP:
	{
		skip 'the checker takes memory of its own', 1 if $ENV{HUBSPOT_SYNC_WRAPPER};
		cmp_ok($rest - $quarter, '<', RSS_GROWTH, "... which stays at $quarter kB");
	}
};

# ---------------------------------------------------------------------------
# Records and answers that must not stop a run
# ---------------------------------------------------------------------------

sub altered
{
	my ($type, $id, $change) = @_;
	my $record = $sim->object($type, $id);
	$change->($record);
	$sim->raw($type, $id, JSON::PP->new->utf8->encode($record));
	return;
}

subtest 'a message that is cut between characters' => sub {
	fresh();
	my ($id) = ids('deals');
	altered('deals', $id, sub { $_[0]->{properties}{amount} = "\x{91d1}\x{984d}" x 60 });
	run_ends('partial', 'an amount in words', 'deals', 'full');
	is(count_of(q{sync_errors WHERE length(convert_from(message::bytea, 'UTF8')) > 30}), 1, '... says so in valid text');
};

subtest 'a time of the last change that is none' => sub {
	$server->sql("UPDATE sync_types SET delete_policy = 'ignore' WHERE sync_type = 'firms'");
	foreach my $time (9_300_000_000_000_000, 'yesterday', JSON::PP::true)
	{
		fresh();
		my ($id) = ids('companies');
		altered('companies', $id, sub { $_[0]->{updatedAt} = $time });
		run_ends('success', "updatedAt $time", 'firms', 'full');
		is(count_of('firms'), COMPANIES, '... all are stored');
	}
};

subtest 'a timeframe is continued though other runs come between' => sub {
	fresh();
	$sim->create('contacts', map { { properties => { email => "new$_\@example.com" } } } 1 .. 250);
	run_ends('success', 'the first', 'contacts', 'full');
	$sim->fault(path => $search, nth => 2, times => 0, action => { kind => 'reset' });
	my $failed = $server->run_sync('contacts', 'auto', 'this_year');
	is($failed->{status}, 'failed', 'one breaks off');
	$sim->clear_faults;
	$sim->touch('contacts', count => 1);
	run_ends('success', 'in between', 'contacts', 'incremental');
	my $run = $server->run_sync('contacts', 'auto', 'this_year');
	is($server->log($run->{run_id})->{continues}, $failed->{run_id}, 'the next of its kind continues it');
};

subtest 'errors that cannot be read again do not stop the walk' => sub {
	fresh();
	my ($id) = ids('deals');
	altered('deals', $id, sub { $_[0]->{properties}{amount} = 'much' });
	run_ends('partial', 'an error', 'deals', 'full');
	my $deals = '/crm/objects/' . HubspotSync::Simulator->api_version . '/deals/batch/read';
	answer('{"status":"COMPLETE","results":[],"errors":[{"status":"error","category":"VALIDATION_ERROR"}]}',
		path => $deals, times => 0);
	my (undef, $other) = ids('deals');
	$sim->patch('deals', $other, { dealname => 'New name' });
	run_ends($_, 'reading it again fails', 'deals', 'incremental') foreach 'success';
	is($server->sql("SELECT deal_name FROM deals WHERE hubspot_deal_id = '$other'"), 'New name', '... the change is read');
	is($server->sql('SELECT attempts FROM sync_errors'), 2, '... and the attempt is counted');
};

subtest 'a search that announces more than it brings' => sub {
	fresh();
	run_ends('success', 'the first', 'contacts', 'full');
	$server->sql("UPDATE sync_state SET synced_until = synced_until - interval '10 minutes'");
	my $watermark = watermark();
	$sim->touch('contacts', count => 201);
	answer('{"total":1,"results":[]}', path => $search, nth => 2, times => 0);
	my $log = run_ends('success', 'one is missing', 'contacts', 'incremental');
	like($log->{error_details}{remark}, qr/announced more/, '... a remark tells');
	is(watermark(), $watermark, '... and the next run looks again');
	$sim->clear_faults;
	run_ends('success', 'the next', 'contacts', 'incremental');
	isnt(watermark(), $watermark, '... and moves on');
};

done_testing();
