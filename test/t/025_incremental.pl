# An incremental run finds every change, whenever it was made, however many
# share one timestamp, and however late HubSpot's search sees it; only a run
# that has read everything moves the watermark, which is HubSpot's time; and
# what is archived stays archived until HubSpot says otherwise.

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
	MANY => 10_450,
	FEW => 650,
	COMPANIES => 30,
	SEARCH_PAGE => 200,
	REQUESTS_BESIDE => 3,
	OVERLAP_MS => 300_000,
	DEEP_OVERLAP_MS => 3_600_000,
	HOUR_MS => 3_600_000,
	LONG_MS => 86_400_000,
};

my $sim = HubspotSync::Simulator->start(
	contacts => MANY,
	deals => 0,
	owners => 3,
	companies => COMPANIES);
my $server = HubspotSync::Server->new(
	'incremental',
	simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 2, 'statement_timeout' => '60s' });

my $contacts = '/crm/objects/' . HubspotSync::Simulator->api_version . '/contacts';
my $search = "$contacts/search";

# A table of the user's own that has no columns for our bookkeeping.
$server->sql(<<~SQL);
	CREATE TABLE firms (number bigint PRIMARY KEY, label text, archived boolean);
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns,
			modified_property, created_property)
		VALUES ('firms', 'companies', 'public', 'firms', '{number}', 'hs_lastmodifieddate', 'createdate');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('firms', 'label', 'name');
	SQL

# ---------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------

# Forgets everything that was stored and starts with few records.
sub fresh
{
	$sim->config(search_lag_ms => 0, clock_offset_ms => 0, date_header => JSON::PP::true);
	$sim->reset(contacts => FEW);
	$server->sql('TRUNCATE contacts, firms, staff, sync_state, sync_runs, sync_errors, sync_rows,
		sync_absences, contact_owner_history, sync_owner_reads');
	return;
}

sub ids
{
	my ($type) = @_;
	return $sim->objects_text($type) =~ /^\{"id":"(\d+)"/mg;
}

sub now_ms { return $sim->state->{now_ms}; }

# Runs a type, which ends so; returns the log entry.
sub run_ends
{
	my ($status, $what, @arguments) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync(@arguments);
	is($run->{status}, $status, "$what: the run ends $status") or diag($run->{stderr});
	never_by_offset();
	return $server->log($run->{run_id});
}

# Searches are keyset pages: no offset and no upper bound.
sub never_by_offset
{
	my @wrong = grep { exists $_->{body}{after} } $sim->requests(path => qr{/search$});
	is(scalar @wrong, 0, '... without paging by offset') if $sim->requests(path => qr{/search$});
	return;
}

# The filters of a search: operator and value by property.
sub filters
{
	my ($request) = @_;
	return map { $_->{propertyName} => { operator => $_->{operator}, value => $_->{value} } }
	  @{ $request->{body}{filterGroups}[0]{filters} };
}

# The instant from which the first search of the journal asked for changes.
sub since_ms
{
	my ($first) = $sim->requests(path => qr{/search$});
	my %filter = filters($first);
	return $filter{lastmodifieddate}{value};
}

# The watermark in milliseconds.
sub watermark_ms
{
	return $server->sql("SELECT (extract(epoch FROM synced_until) * 1000)::bigint FROM sync_state WHERE sync_type = 'contacts'");
}

# Contacts that are not what HubSpot has: missing, left over or different.
sub differences
{
	$server->load_objects('contacts');
	return $server->sql(<<~SQL);
		SELECT count(*)
		FROM contacts c FULL JOIN sim_contacts s ON s.id = c.hubspot_contact_id
		WHERE s.id IS NULL OR c.hubspot_contact_id IS NULL
			OR c.archived <> s.archived
			OR c.last_name IS DISTINCT FROM s.record #>> '{properties,lastname}'
			OR c.email IS DISTINCT FROM s.record #>> '{properties,email}'
			OR c.hubspot_updated_at <> (s.record ->> 'updatedAt')::timestamptz
		SQL
}

sub contact
{
	my ($id, $expression) = @_;
	return $server->sql("SELECT $expression FROM contacts WHERE hubspot_contact_id = '$id'");
}

sub firm
{
	my ($id, $expression) = @_;
	return $server->sql("SELECT $expression FROM firms WHERE number = $id");
}

# ---------------------------------------------------------------------------
# Many changes
# ---------------------------------------------------------------------------

subtest 'more than 10,000 changes with one timestamp' => sub {
	run_ends('success', 'the first run', 'contacts', 'full');
	is(differences(), 0, '... stores all');
	my $touched = $sim->touch('contacts', count => MANY - 30, at_ms => now_ms(), properties => { lastname => 'Bulk' });
	cmp_ok($touched, '>', 10_000, 'many records are changed at one instant');
	my $log = run_ends('success', 'after a bulk edit', 'contacts', 'incremental');
	is($server->sql("SELECT count(*) FROM contacts WHERE last_name = 'Bulk'"), $touched, '... none is missed');
	is(differences(), 0, '... and all are what HubSpot has');
	my $limit = int($touched / SEARCH_PAGE) + REQUESTS_BESIDE;
	cmp_ok($log->{requests}, '<=', $limit, "... with at most $limit requests");
	is(scalar $sim->requests, $log->{requests}, '... all of which it counts');
	is($log->{records_changed}, $touched, '... and each written once');

	my $wrong = 0;
	foreach my $request ($sim->requests(path => $search))
	{
		my %filter = filters($request);
		$wrong++ unless keys %filter == 2
		  && $filter{lastmodifieddate}{operator} eq 'GTE'
		  && $filter{hs_object_id}{operator} eq 'GT'
		  && $request->{body}{limit} == SEARCH_PAGE
		  && $request->{body}{sorts}[0]{propertyName} eq 'hs_object_id';
	}
	is($wrong, 0, 'every search is a keyset page without an upper bound');

	# Now they change again, and the service breaks off in the middle.
	$sim->touch('contacts', count => MANY - 30, at_ms => now_ms(), properties => { lastname => 'Again' });
	$sim->fault(path => $search, nth => 30, times => 0, action => 'reset');
	my $failed = run_ends('failed', 'a break in the middle', 'contacts', 'incremental');
	$sim->clear_faults;
	$log = run_ends('success', 'after the break', 'contacts', 'incremental');
	is($log->{continues}, $failed->{id}, '... it continues');
	cmp_ok($log->{requests}, '<=', $limit - 28, '... where the other stopped');
	is(differences(), 0, '... and none is missed');
};

subtest 'records edited while a run is under way' => sub {
	fresh();
	run_ends('success', 'before', 'contacts', 'full');
	my @ids = ids('contacts');
	foreach my $round (1 .. 3)
	{
		$sim->touch('contacts', ids => [@ids[ 0 .. 599 ]], properties => { lastname => "round $round" });

		# Around each page: some that were passed, some that come, new ones.
		foreach my $page (1 .. 4)
		{
			my @some = map { $ids[ ($_ * 53 + $page * 7 + $round) % @ids ] } 0 .. 9;
			$sim->script(
				path => '/contacts/search',
				nth => $page,
				when => $page % 2 ? 'before' : 'after',
				do => [
					{ op => 'touch', type => 'contacts', ids => \@some,
						properties => { lastname => "round $round, page $page" } },
					{ op => 'create', type => 'contacts', id => $round * 10 + $page,
						properties => { email => "low.$round.$page\@example.com" } },
					{ op => 'create', type => 'contacts',
						properties => { email => "high.$round.$page\@example.com" } },
				]);
		}
		run_ends('success', "round $round", 'contacts', 'incremental');
		$sim->control('DELETE', 'script');
		run_ends('success', 'the run after it', 'contacts', 'incremental');
		is(differences(), 0, '... and none is missed');
	}
	is_deeply($sim->state->{script_errors}, [], 'all edits were made');
	is($server->sql("SELECT count(*) FROM contacts WHERE email LIKE 'low.%' OR email LIKE 'high.%'"),
		24, 'and the new ones are there');
};

subtest 'records created while a full run is under way' => sub {
	fresh();
	$server->sql(q{UPDATE sync_types SET full_strategy = 'list' WHERE sync_type = 'contacts'});
	$sim->script(
		path => "$contacts?",
		nth => 4,
		do => [
			{ op => 'create', type => 'contacts', id => 5, properties => { email => 'behind@example.com' } },
			{ op => 'touch', type => 'contacts', ids => [ (ids('contacts'))[3] ],
				properties => { lastname => 'Behind' } },
		]);
	run_ends('success', 'the full run', 'contacts', 'full');
	is($server->sql("SELECT count(*) FROM contacts WHERE hubspot_contact_id = '5' OR last_name = 'Behind'"),
		0, '... has passed them');
	run_ends('success', 'the run after it', 'contacts', 'auto');
	is(differences(), 0, '... finds them');
	$server->sql(q{UPDATE sync_types SET full_strategy = 'auto' WHERE sync_type = 'contacts'});
};

# ---------------------------------------------------------------------------
# When changes are seen
# ---------------------------------------------------------------------------

subtest 'changes that search does not see at once' => sub {
	fresh();
	run_ends('success', 'before', 'contacts', 'full');
	my @ids = ids('contacts');
	foreach my $attempt (1, 2)
	{
		my $overlap = $attempt == 1;
		$server->reload('hubspot_sync.overlap' => $overlap ? '5min' : 0,
			'hubspot_sync.deep_overlap' => $overlap ? '1h' : 0);
		$sim->config(search_lag_ms => LONG_MS);
		$sim->touch('contacts', ids => [ $ids[$attempt] ], at_ms => now_ms() - OVERLAP_MS + 60_000,
			properties => { lastname => "Late $attempt" });
		run_ends('success', 'while the index lags', 'contacts', 'incremental');
		cmp_ok(differences(), '>', 0, '... the change is not seen');
		$sim->config(search_lag_ms => 0);
		run_ends('success', 'when it has caught up', 'contacts', 'incremental');
		is(differences(), $overlap ? 0 : 1,
			$overlap ? '... the overlap finds it' : '... without overlap it would be missed');
	}
	$server->reload('hubspot_sync.overlap' => '5min', 'hubspot_sync.deep_overlap' => '1h');

	# Once an hour a run reaches back further.
	my $before = watermark_ms();
	$server->sql("UPDATE sync_state SET last_full_at = now() - interval '2 hours',"
		  . " last_deep_at = now() - interval '61 minutes', deep_until = synced_until");
	run_ends('success', 'after an hour', 'contacts', 'incremental');
	is(since_ms(), $before - DEEP_OVERLAP_MS, '... the overlap is the deep one');
	is(differences(), 0, '... which finds what was missed');
	$before = watermark_ms();
	run_ends('success', 'right after', 'contacts', 'incremental');
	is(since_ms(), $before - OVERLAP_MS, '... it is the usual one');
};

subtest "the watermark is HubSpot's time" => sub {
	foreach my $hours (-3, 3)
	{
		fresh();
		$sim->config(clock_offset_ms => $hours * HOUR_MS);
		my $before = now_ms();
		run_ends('success', "HubSpot's clock $hours h off", 'contacts', 'full');
		my $after = now_ms();
		cmp_ok(watermark_ms(), '>=', $before - 1000, '... the watermark is not before its start');
		cmp_ok(watermark_ms(), '<=', $after, '... nor after its end');
		my $watermark = watermark_ms();

		my ($id) = ids('contacts');
		$sim->patch('contacts', $id, { lastname => "Off by $hours" });
		run_ends('success', 'a change', 'contacts', 'incremental');
		is(since_ms(), $watermark - OVERLAP_MS, '... the next run begins at it, less the overlap');
		is(contact($id, 'last_name'), "Off by $hours", '... and finds the change');
		cmp_ok(watermark_ms(), '>=', $watermark, '... and moves it on');
	}

	fresh();
	$sim->config(date_header => JSON::PP::false);
	run_ends('success', 'no Date header', 'contacts', 'full');
	is(watermark_ms(), '', '... there is no watermark');
	my ($id) = ids('contacts');
	$sim->patch('contacts', $id, { lastname => 'Dateless' });
	run_ends('success', 'still none', 'contacts', 'incremental');
	is(differences(), 0, '... and still nothing is missed');
};

subtest 'only a completed run moves the watermark' => sub {
	fresh();
	run_ends('success', 'before', 'contacts', 'full');
	my @ids = ids('contacts');
	my $watermark = watermark_ms();
	my $t0 = now_ms();
	$sim->touch('contacts', count => 500, properties => { lastname => 'Many' });
	$sim->fault(path => $search, nth => 2, times => 0, action => 'html');
	my $failed = run_ends('failed', 'a failure', 'contacts', 'incremental');
	is(watermark_ms(), $watermark, '... leaves the watermark');
	is($failed->{records_processed}, SEARCH_PAGE, '... after the first page');
	ok(defined $failed->{checkpoint}, '... and a checkpoint');

	# An hour later; what was passed has changed once more.
	$sim->clear_faults;
	$sim->config(clock_offset_ms => HOUR_MS);
	$sim->touch('contacts', ids => [ @ids[ 0, 1 ] ], properties => { lastname => 'Meanwhile' });
	my $log = run_ends('success', 'the run after it', 'contacts', 'incremental');
	is($log->{continues}, $failed->{id}, '... continues');
	is(since_ms(), $watermark - OVERLAP_MS, '... with the same beginning');
	cmp_ok(watermark_ms(), '>=', $t0 - 1000, '... the watermark is the time');
	cmp_ok(watermark_ms(), '<', $t0 + HOUR_MS / 2, '... of the first attempt');
	run_ends('success', 'one more', 'contacts', 'incremental');
	is(differences(), 0, '... and nothing is missed');

	my $id = $server->trigger('contacts', 'incremental');
	$server->wait_for($id);
	$watermark = watermark_ms();
	$sim->fault(path => $search, times => 0, action => 'hang');
	$id = $server->trigger('contacts', 'incremental');
	$server->poll_until("SELECT query LIKE '%waiting for HubSpot%' FROM pg_stat_activity a"
		  . " JOIN sync_run_states s ON s.holder_pid = a.pid WHERE s.id = '$id'");
	is($server->sql("SELECT cancel_hubspot_sync('$id')"), 't', 'a run is cancelled');
	is($server->wait_for($id)->{status}, 'cancelled', '... and ends cancelled');
	is(watermark_ms(), $watermark, '... leaving the watermark');
	$sim->clear_faults;
};

# ---------------------------------------------------------------------------
# The recycle bin
# ---------------------------------------------------------------------------

subtest 'archived records' => sub {
	my %after = (
		mark => { archived => 't', restored => 'f' },
		delete => { archived => '', restored => 'f' },
		ignore => { archived => 'f', restored => 'f' },
	);
	foreach my $type ('contacts', 'firms')
	{
		my $kind = $type eq 'firms' ? 'companies' : 'contacts';
		my $look = $type eq 'firms' ? \&firm : \&contact;
		foreach my $policy (sort keys %after)
		{
			fresh();
			$server->sql("UPDATE sync_types SET delete_policy = '$policy' WHERE sync_type = '$type'");
			my $id = (ids($kind))[5];
			run_ends('success', "$type, policy $policy", $type, 'full');
			is($look->($id, 'coalesce(archived, false)'), 'f', '... a record is live');

			$sim->archive($kind, $id);
			my $log = run_ends('success', 'it is archived', $type, 'full');
			is($look->($id, 'coalesce(archived, false)'), $after{$policy}{archived}, '... which the row shows');
			is($log->{records_archived}, $policy eq 'ignore' ? 0 : 1, '... and the log');
			is(scalar $sim->requests('query.archived' => 'true'), $policy eq 'ignore' ? 0 : 1,
				'... after a look into the recycle bin, where needed');
			is(contact($id, 'archived_at IS NOT NULL'), 't', '... with its time')
			  if $type eq 'contacts' && $policy eq 'mark';
			$log = run_ends('success', 'the same again', $type, 'full');
			is($log->{records_archived}, 0, '... changes nothing');
			is($log->{records_changed}, 0, '... at all');

			$sim->restore($kind, $id);
			run_ends('success', 'it is restored', $type, 'full');
			is($look->($id, 'coalesce(archived, false)'), $after{$policy}{restored}, '... and the row is live');
			is(contact($id, 'archived_at IS NULL'), 't', '... without a time') if $type eq 'contacts';
		}
		$server->sql("UPDATE sync_types SET delete_policy = 'mark' WHERE sync_type = '$type'");
	}
};

subtest 'a lagging search does not bring an archived row back' => sub {
	foreach my $type ('contacts', 'firms')
	{
		my $kind = $type eq 'firms' ? 'companies' : 'contacts';
		my $look = $type eq 'firms' ? \&firm : \&contact;
		fresh();
		my ($id, $other) = ids($kind);
		my $text = $type eq 'firms' ? 'name' : 'lastname';
		$sim->patch($kind, $id, { $text => 'Before' });
		run_ends('success', $type, $type, 'full');
		$sim->config(search_lag_ms => LONG_MS);
		$sim->archive($kind, $id);
		run_ends('success', 'one is archived', $type, 'full');
		is($look->($id, 'archived'), 't', '... and marked');

		my $log = run_ends('success', 'search still has it', $type, 'incremental');
		is($log->{records_processed}, 1, '... and delivers it');
		is($look->($id, 'archived'), 't', '... it stays marked');
		is($log->{records_changed}, 0, '... untouched');

		$sim->config(search_lag_ms => 0);
		$sim->restore($kind, $id);
		$sim->patch($kind, $id, { $text => 'After' });
		run_ends('success', 'it is restored and changed', $type, 'incremental');
		is($look->($id, 'archived'), 'f', '... and live again');
	}
};

# ---------------------------------------------------------------------------
# Timeframes
# ---------------------------------------------------------------------------

# The bounds of a timeframe in a time zone, in milliseconds; an open one is ''.
sub bounds
{
	my ($zone, @expressions) = @_;
	return map {
		defined $_
		  ? $server->sql("SET TimeZone = '$zone'; SELECT (extract(epoch FROM $_) * 1000)::bigint")
		  : ''
	} @expressions;
}

subtest 'timeframes are those of the caller' => sub {
	my ($day, $week, $month, $year) = map { "date_trunc('$_', now())" } qw(day week month year);
	my %frame = (
		today => [ $day, "$day + interval '1 day'" ],
		yesterday => [ "$day - interval '1 day'", $day ],
		this_week => [ $week, "$week + interval '7 days'" ],
		last_week => [ "$week - interval '7 days'", $week ],
		this_month => [ $month, "$month + interval '1 month'" ],
		last_month => [ "$month - interval '1 month'", $month ],
		this_year => [ $year, "$year + interval '1 year'" ],
		last_7_days => [ "$day - interval '7 days'", undef ],
		last_30_days => [ "$day - interval '30 days'", undef ],
		last_90_days => [ "$day - interval '90 days'", undef ],
	);
	fresh();
	foreach my $zone ('UTC', 'Pacific/Auckland', 'America/Los_Angeles')
	{
		foreach my $name (sort keys %frame)
		{
			# Midnight may pass between the two.
			my ($run, @expected, @asked);
			foreach my $attempt (1, 2)
			{
				@expected = bounds($zone, @{ $frame{$name} });
				$sim->clear_journal;
				$server->sql("SET TimeZone = '$zone'; CALL run_hubspot_sync('contacts', 'auto', '$name')");
				my ($first) = $sim->requests(path => $search);
				my %of = map { $_->{operator} => $_->{value} }
				  grep { $_->{propertyName} eq 'createdate' } @{ $first->{body}{filterGroups}[0]{filters} };
				@asked = map { $_ // '' } @of{qw(GTE LT)};
				last if "@asked" eq "@expected";
			}
			is("@asked", "@expected", "$name in $zone");
		}
	}
	is($server->sql('SELECT count(*) FROM sync_state'), 0, 'none of them moves the watermark');
	is($server->sql("SELECT string_agg(DISTINCT mode, ' ') FROM sync_logs"), 'timeframe', 'all are logged as timeframe');
	is($server->sql("SELECT string_agg(DISTINCT timeframe, ' ') FROM sync_logs"), join(' ', sort keys %frame), '... by name');
};

subtest 'what a timeframe stores' => sub {
	fresh();
	my $zone = 'Pacific/Auckland';
	my ($from, $to) = bounds($zone, "date_trunc('day', now()) - interval '1 day'", "date_trunc('day', now())");
	my ($before, $first, $last, $after) = $sim->create('contacts',
		map { { properties => { email => "at.$_\@example.com" }, createdate => $_ } } $from - 1, $from, $to - 1, $to);
	my @many = $sim->create('contacts',
		map { { properties => { email => "bulk.$_\@example.com" }, createdate => $from + 1000 } } 1 .. 2 * SEARCH_PAGE);
	$server->sql("SET TimeZone = '$zone'; CALL run_hubspot_sync('contacts', 'auto', 'yesterday')");
	never_by_offset();
	is($server->sql('SELECT count(*) FROM contacts'), 2 + @many, 'those of the day are stored, however many');
	is(contact($_, 'count(*)'), 1, '... with the bounds') foreach $first, $last;
	is(contact($_, 'count(*)'), 0, '... and what is beyond them not') foreach $before, $after;

	my $log = run_ends('success', 'after a timeframe', 'contacts', 'auto');
	is($log->{mode}, 'full', '... the first run is a full one');
	is(differences(), 0, '... and stores the rest');
	my $watermark = watermark_ms();
	run_ends('success', 'a timeframe later', 'contacts', 'auto', 'today');
	is(watermark_ms(), $watermark, '... leaves the watermark');

	my $run = $server->run_sync('owners', 'auto', 'today');
	is($run->{status}, undef, 'owners have no timeframe');
	like($run->{stderr}, qr/ERROR:/, '... which is an error');
	$run = $server->run_sync('contacts', 'full', 'today');
	like($run->{stderr}, qr/ERROR:/, 'so is a timeframe in mode full');
};

# ---------------------------------------------------------------------------
# Mode auto
# ---------------------------------------------------------------------------

subtest 'what auto becomes' => sub {
	my $mode_is = sub {
		my ($mode, $what, $type) = @_;
		my $log = run_ends('success', $what, $type // 'contacts', 'auto');
		is($log->{mode}, $mode, "... in mode $mode");
		my $lists = $sim->requests(path => qr{/(contacts|companies)$});
		is($lists > 0 ? 'full' : 'incremental', $mode, '... and it is') if ($type // '') ne 'owners';
		return;
	};
	fresh();
	run_ends('success', 'an incremental one first', 'contacts', 'incremental');
	is(differences(), 0, '... reads all');
	$mode_is->('full', 'without a full run');
	$mode_is->('incremental', 'after it');
	$server->sql("UPDATE sync_state SET last_full_at = now() - interval '6 days 23 hours'");
	$mode_is->('incremental', 'before full_every');
	$server->sql("UPDATE sync_state SET last_full_at = now() - interval '7 days 1 minute'");
	$mode_is->('full', 'after full_every');
	$server->sql("UPDATE sync_types SET full_every = '1 hour' WHERE sync_type = 'contacts'");
	$server->sql("UPDATE sync_state SET last_full_at = now() - interval '61 minutes'");
	$mode_is->('full', 'after another full_every');
	$mode_is->('incremental', 'after that');

	$server->sql("UPDATE sync_fields SET property = 'mobilephone' WHERE sync_type = 'contacts' AND column_name = 'phone'");
	$mode_is->('full', 'another property');
	$mode_is->('incremental', 'after it');
	$server->sql("UPDATE sync_fields SET property = 'phone' WHERE sync_type = 'contacts' AND column_name = 'phone'");
	$mode_is->('full', 'and back');
	$server->sql("UPDATE sync_types SET properties = '{company}' WHERE sync_type = 'contacts'");
	$mode_is->('full', 'one property more');
	$mode_is->('incremental', 'after it');
	$server->sql("UPDATE sync_types SET properties = '{}' WHERE sync_type = 'contacts'");

	# What a run with another mapping has stored meanwhile is read again.
	$mode_is->('full', 'no property more');
	$server->sql("UPDATE sync_types SET properties = '{company}' WHERE sync_type = 'contacts'");
	$sim->touch('contacts', count => 3);
	run_ends('success', 'with another mapping', 'contacts', 'incremental');
	$server->sql("UPDATE sync_types SET properties = '{}' WHERE sync_type = 'contacts'");
	$mode_is->('full', 'back before a full run');
	$mode_is->('incremental', 'after it');

	# So it is if it is found by a walk that has passed it.
	$sim->fault(path => "$contacts?", nth => 3, times => 0, action => 'reset');
	run_ends('failed', 'a full run breaks off', 'contacts', 'full');
	$sim->clear_faults;
	$server->sql("UPDATE sync_types SET properties = '{company}' WHERE sync_type = 'contacts'");
	run_ends('success', 'with another mapping', 'contacts', 'incremental');
	$server->sql("UPDATE sync_types SET properties = '{}' WHERE sync_type = 'contacts'");
	is(run_ends('success', 'back again', 'contacts', 'full')->{continues}, undef, '... it begins anew');

	# A checkpoint of another mapping is not continued.
	$sim->fault(path => "$contacts?", nth => 3, times => 0, action => 'reset');
	run_ends('failed', 'a full run breaks off', 'contacts', 'full');
	$sim->clear_faults;
	$server->sql("UPDATE sync_types SET properties = '{city}' WHERE sync_type = 'contacts'");
	my $log = run_ends('success', 'with another mapping', 'contacts', 'full');
	is($log->{continues}, undef, '... it begins anew');
	is($log->{records_processed}, FEW, '... and reads all');
	$server->sql("UPDATE sync_types SET properties = '{}' WHERE sync_type = 'contacts'");

	$mode_is->('full', 'owners', 'owners');
	$mode_is->('full', 'owners again', 'owners');

	# A full run that could not store everything counts too.
	fresh();
	my ($id) = ids('contacts');
	$sim->raw('contacts', $id, qq({"id":"$id","properties":{"createdate":"x"}}));
	run_ends('partial', 'a bad record', 'contacts', 'auto');
	$log = run_ends('partial', 'after a partial full run', 'contacts', 'auto');
	is($log->{mode}, 'incremental', '... auto is incremental');
};

done_testing();
