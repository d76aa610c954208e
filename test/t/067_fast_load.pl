# A first load that lists from the lowest id upwards and searches from the
# highest downwards at the same time misses nothing: not what is created,
# edited, archived and merged while it is under way, not what the index hid or
# showed as it was before, and not after it broke off. It asks about half as
# often, ends where the two sides meet, and does without the searches where
# they do not help.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant {
	CONTACTS => 4000,
	LIST_PAGE => 100,
	SEARCH_PAGE => 200,
	PAGES_BEFORE_SEARCH => 5,
	ROUNDS => 5,
	CHANGES => 30,
	LAG_MS => 200,
	DELAY_MS => 60,
	HOUR_MS => 3_600_000,
};

my $seed = int($ENV{HUBSPOT_SYNC_TEST_SEED} // (time * 1000) % 1_000_000);
srand $seed;
diag("HUBSPOT_SYNC_TEST_SEED=$seed");

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => 0, companies => 0, owners => 3);
my $server = HubspotSync::Server->new('fast', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 1, 'hubspot_sync.retry_delay' => '5ms', statement_timeout => '60s' });

my $contacts = '/crm/objects/' . HubspotSync::Simulator->api_version . '/contacts';
my $list = qr{\Q$contacts\E$};
my $search = qr{\Q$contacts\E/search$};

# ---------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------

sub one_of { return $_[ rand @_ ]; }

# Forgets everything that was stored and starts with other data.
sub fresh
{
	my ($strategy, %data) = @_;
	$sim->clear_faults;
	$sim->control('DELETE', 'script');
	$sim->config(search_lag_ms => 0, latency_ms => 0, date_header => JSON::PP::true);
	$sim->reset(contacts => CONTACTS, %data);
	$server->sql('TRUNCATE contacts, sync_state, sync_runs, sync_errors, sync_absences, contact_owner_history, sync_owner_reads');
	$server->sql("UPDATE sync_types SET full_strategy = '$strategy' WHERE sync_type = 'contacts'");
	return;
}

sub ids { return $sim->objects_text('contacts', archived => 0) =~ /^\{"id":"(\d+)"/mg; }

# Runs the type, which ends so; returns the log entry.
sub run_ends
{
	my ($status, $what, $mode) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync('contacts', $mode // 'auto');
	is($run->{status}, $status, "$what: the run ends $status") or diag($run->{stderr});
	return $server->log($run->{run_id});
}

# The value of a filter on the ids, undef for none.
sub bound
{
	my ($request, $operator) = @_;
	foreach my $filter (@{ $request->{body}{filterGroups}[0]{filters} })
	{
		return $filter->{value} if $filter->{propertyName} eq 'hs_object_id' && $filter->{operator} eq $operator;
	}
	return undef;
}

sub lists { return grep { !$_->{query}{archived} } $sim->requests(path => $list); }
sub descents { return grep { $_->{body}{sorts}[0]{direction} eq 'DESCENDING' } $sim->requests(path => $search); }
sub searches_for_changes { return grep { $_->{body}{sorts}[0]{direction} eq 'ASCENDING' } $sim->requests(path => $search); }

# The contacts whose row is not what HubSpot has, each with a word why.
sub differences
{
	$server->load_objects('contacts');
	return $server->sql(<<~'SQL');
		SELECT coalesce(string_agg(format('%s %s', id, problem), ', '), '') FROM (
			SELECT coalesce(s.id, t.hubspot_contact_id) AS id,
				CASE
					WHEN t.hubspot_contact_id IS NULL THEN 'is missing'
					WHEN s.id IS NULL AND NOT t.archived THEN 'is not there any more'
					WHEN s.archived AND NOT t.archived THEN 'is archived'
					WHEN NOT s.archived AND t.archived THEN 'is live'
					WHEN NOT s.archived AND (t.last_name IS DISTINCT FROM s.record #>> '{properties,lastname}'
						OR t.hubspot_updated_at <> (s.record ->> 'updatedAt')::timestamptz) THEN 'is old'
				END AS problem
			FROM contacts t FULL JOIN sim_contacts s ON s.id = t.hubspot_contact_id
		) x WHERE problem IS NOT NULL
		SQL
}

# ---------------------------------------------------------------------------
# What it asks for
# ---------------------------------------------------------------------------

subtest 'list and search meet' => sub {
	fresh('auto');
	my $log = run_ends('success', 'the first load');
	is($log->{mode}, 'full', '... which is a full run');
	is(differences(), '', '... and brings everything');

	my @lists = lists();
	my @descents = descents();
	cmp_ok(scalar @lists, '>', PAGES_BEFORE_SEARCH, 'some is listed');
	cmp_ok(scalar @descents, '>', 1, '... some is searched');
	my $records = @lists * LIST_PAGE + @descents * SEARCH_PAGE;
	cmp_ok($records, '<=', CONTACTS + 2 * SEARCH_PAGE + LIST_PAGE, '... and hardly anything both ways');
	cmp_ok($log->{records_processed}, '<=', CONTACTS + SEARCH_PAGE + LIST_PAGE, '... which the log counts');

	my @ids = ids();
	is(bound($descents[0], 'GT'), $ids[ PAGES_BEFORE_SEARCH * LIST_PAGE - 1 ],
		'the first search begins when the list has turned some pages, above what it has passed');
	is(bound($descents[0], 'LT'), undef, '... from the highest id');
	is(bound($descents[1], 'LT'), $ids[ -SEARCH_PAGE() ], 'each goes on below the one before');

	my ($changes) = searches_for_changes();
	my ($filter) = grep { $_->{operator} eq 'GTE' } @{ $changes->{body}{filterGroups}[0]{filters} };
	cmp_ok(abs($lists[0]{at_ms} - HOUR_MS - $filter->{value}), '<', 20_000,
		'what changed is asked for from an hour before the load on');
	cmp_ok($changes->{n}, '>', $lists[-1]{n}, '... after the load');

	$log = run_ends('success', 'the next run');
	is($log->{mode}, 'incremental', '... is incremental');
	$log = run_ends('success', 'another full run', 'full');
	is(scalar lists(), CONTACTS / LIST_PAGE, '... lists everything');
	is(scalar $sim->requests(path => $search), 0, '... to notice what is missing');
	is($log->{records_changed}, 0, '... and finds every row as it should be');
};

subtest 'strategies' => sub {
	fresh('list');
	run_ends('success', 'list');
	is(scalar $sim->requests(path => $search), 0, '... does not search');
	is(scalar lists(), CONTACTS / LIST_PAGE, '... but lists everything');

	fresh('list_and_search');
	run_ends('success', 'list_and_search');
	is(bound((descents())[0], 'GT'), (ids())[ LIST_PAGE - 1 ], '... searches from the first page on');
	is(differences(), '', '... and brings everything');
	run_ends('success', 'again', 'full');
	cmp_ok(scalar descents(), '>', 1, '... in every full run');

	fresh('auto', contacts => PAGES_BEFORE_SEARCH * LIST_PAGE);
	run_ends('success', 'a small account');
	is(scalar $sim->requests(path => $search), 0, '... needs no searches');
};

# ---------------------------------------------------------------------------
# What happens meanwhile
# ---------------------------------------------------------------------------

my $serial = 0;
my %taken; # ids, archived ones too
my %deed = (
	create => sub { return { op => 'create', type => 'contacts', properties => { lastname => 'new ' . ++$serial } }; },
	create_low => sub {
		my $id;
		do { $id = one_of(1, 9_000_000, 4_000_000_000) + ++$serial; } while $taken{$id};
		return { op => 'create', type => 'contacts', id => $id, properties => { lastname => 'new ' . $serial } };
	},
	edit => sub { return { op => 'patch', type => 'contacts', id => $_[0], properties => { lastname => 'edited ' . ++$serial } }; },
	archive => sub { return { op => 'archive', type => 'contacts', id => $_[0] }; },
	merge => sub { return { op => 'merge', type => 'contacts', primary => $_[0], other => $_[1] }; },
);

# Some operations on records that no other operation is about.
sub deeds
{
	my ($ids, $times) = @_;
	return map { $deed{ one_of(qw(create create_low edit edit edit archive merge)) }->(splice @$ids, rand(@$ids - 1), 2) } 1 .. $times;
}

# Changes everywhere: before the load, so late that the index does not show
# it, and between requests, so early that the index shows it when the load
# looks for changes.
sub disturb
{
	my ($lag) = @_;
	my @ids = ids();
	%taken = map { $_ => 1 } $sim->objects_text('contacts') =~ /^\{"id":"(\d+)"/mg;
	$sim->config(search_lag_ms => $lag, latency_ms => DELAY_MS);
	$sim->script(path => "$contacts?", nth => 1, when => 'before', do => [ deeds(\@ids, CHANGES) ]);
	foreach my $nth (2 .. ($lag ? 4 : 7))
	{
		$sim->script(path => "$contacts?", nth => $nth, when => one_of('before', 'after'), do => [ deeds(\@ids, 2) ]);
		$sim->script(path => "$contacts/search", nth => $nth - 1, when => one_of('before', 'after'), do => [ deeds(\@ids, 2) ]);
	}
	return;
}

foreach my $round (1 .. ROUNDS)
{
	my $lag = $round % 2 ? LAG_MS : 0;
	subtest "round $round: changes meanwhile, the index " . ($lag ? 'lags' : 'does not lag') => sub {
		fresh('list_and_search', seed => $seed + $round);
		disturb($lag);
		run_ends('success', 'the load');
		is_deeply($sim->state->{script_errors}, [], '... with changes all the way');
		cmp_ok(scalar descents(), '>', 1, '... has searched');
		is(differences(), '', '... and has missed nothing');
		is($server->sql('SELECT count(*) FROM sync_errors'), 0, '... without errors');
	};
	last if !Test::More->builder->is_passing;
}

subtest 'an index that lags for longer than the load takes' => sub {
	fresh('list_and_search');
	disturb(HOUR_MS / 2);
	run_ends('success', 'the load');

	# Half an hour passes.
	$sim->config(search_lag_ms => 0, latency_ms => 0);
	$server->sql(q{UPDATE sync_state SET last_deep_at = last_deep_at - interval '2 hours'});
	run_ends('success', 'the run that reaches back by an hour', 'incremental');
	is(differences(), '', '... finds what the index had hidden');
};

# ---------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------

subtest 'the load breaks off and goes on' => sub {
	my %break = (
		'while it lists' => { path => "$contacts?", nth => 7 },
		'while it searches' => { path => "$contacts/search", body => 'DESCENDING', nth => 4 },
		'while it searches for changes' => { path => "$contacts/search", body => 'GTE' });

	foreach my $when (sort keys %break)
	{
		fresh('list_and_search');
		my @ids = ids();
		$sim->script(path => "$contacts?", nth => 3, do => [ map { $deed{edit}->($_) } @ids[ 10, 2000, 3990 ] ]);
		$sim->fault(%{ $break{$when} }, times => 0, action => { kind => 'status', status => 401 });
		my $failed = run_ends('failed', $when);
		my $before = $failed->{records_processed};
		cmp_ok($before, '>=', LIST_PAGE, '... something is stored');
		$sim->clear_faults;
		my $log = run_ends('success', 'the next one');
		is($log->{continues}, $failed->{id}, '... continues it');
		cmp_ok($before + $log->{records_processed}, '<=', CONTACTS + 3 + SEARCH_PAGE + LIST_PAGE,
			'... and reads nothing again but where the two meet');
		is(differences(), '', '... and misses nothing');
	}
};

subtest 'a first load that is not the first' => sub {
	fresh('auto');
	$server->run_sync('contacts', 'auto', 'last_7_days');
	my ($id) = $sim->create('contacts', { properties => { lastname => 'Short' } });
	is($server->run_sync('contacts', 'auto', 'today')->{status}, 'success', 'a contact that came with a timeframe');
	$sim->purge('contacts', $id);
	run_ends('success', 'and was deleted before the first full run');
	is(scalar descents(), 0, '... which lists all');
	is(differences(), '', '... to notice that');
};

subtest 'a list that ends too early' => sub {
	fresh('list_and_search');
	my @ids = ids();
	$sim->script(path => "$contacts?", nth => 2, do => [ map { $deed{edit}->($_) } @ids[ 10, 3990 ] ]);
	$sim->fault(path => "$contacts?", nth => 4, action => { kind => 'edit', remove => ['paging'] });
	run_ends('success', 'the load');
	cmp_ok(scalar searches_for_changes(), '>', 0, '... looks for changes');
	is($server->sql(q{SELECT count(*) FROM contacts WHERE archived_reason = 'gone'}), 0, '... believes nobody gone');
	is($server->sql(q{SELECT count(*) FROM contacts WHERE last_name LIKE 'edited %'}), 2, '... and misses no edit');
};

subtest 'searches that do not help' => sub {
	my %trouble = (
		'are refused' => { action => { kind => 'error', status => 400, category => 'VALIDATION_ERROR' } },
		'fail' => { action => { kind => 'status', status => 502 } },
		'get no answer' => { action => 'reset' },
		'need another scope' => { action => { kind => 'error', status => 403, category => 'MISSING_SCOPES' } },
		'are to wait for an hour' => { action => { kind => 'status', status => 477, headers => { 'Retry-After' => '3600' } } },
		'are to wait for minutes' => { action => { kind => 'status', status => 503, headers => { 'Retry-After' => '300' } } },
		'bring what was not asked for' => { action => { kind => 'replace_page', results => [ { id => '1', properties => {} } ] } },
		'bring what has no id' => { action => { kind => 'edit', remove => ['results.5.id'] } },
		'are not in order' => { action => { kind => 'replace_page',
				results => [ map { { id => $_, properties => {} } } '700', '900' ] } });

	foreach my $what (sort keys %trouble)
	{
		fresh('list_and_search');
		$sim->fault(path => "$contacts/search", body => 'DESCENDING', nth => 2, times => 0, %{ $trouble{$what} });
		my $log = run_ends('success', "searches $what");
		is(scalar lists(), CONTACTS / LIST_PAGE, '... the list goes on to its end');
		is(scalar searches_for_changes(), 0, '... which leaves nothing to look for');
		like($log->{error_details}{remark} // '', qr/search did not help .*: ./, '... which the log says');
		cmp_ok($log->{duration_ms}, '<', 30_000, '... and does not wait for the searches');
		is(differences(), '', '... and nothing is missing');
	}

	fresh('list_and_search');
	$sim->fault(path => "$contacts/search", nth => 2, action => { kind => 'rate_limit', policy => 'SECONDLY', retry_after => 300 });
	my $log = run_ends('success', 'searches that meet the limit');
	cmp_ok($log->{duration_ms}, '<', 30_000, '... do not stop the list');
	is($log->{error_details}{rate_limited}, 1, '... are counted');
	is($server->sql(q{SELECT held_until > now() + interval '4 min' FROM get_hubspot_rate_limits() WHERE bucket = 'search'}),
		't', '... and bind everybody');
	is(scalar searches_for_changes(), 0, '... as they do what is left to look for');
	is(differences(), '', '... and nothing is missing');
	$server->restart;    # forgets limits

	fresh('list_and_search');
	$sim->script(path => "$contacts?", nth => 3, do => [ map { $deed{edit}->($_) } (ids())[ 10, 3990 ] ]);
	$sim->fault(path => "$contacts/search", body => 'GTE', action => { kind => 'edit', remove => ['results.0.id'] });
	$log = run_ends('partial', 'a change without an id');
	like($log->{error_details}{remark}, qr/without a usable id/, '... is looked for again');
	is($server->sql(qq{SELECT synced_until < timestamptz '$log->{started_at}' - interval '1 minute' FROM sync_state}),
		't', '... from where this search began');
	$sim->clear_faults;
	run_ends('success', 'the next one', 'incremental');
	is(differences(), '', '... finds it');

	fresh('list_and_search');
	$sim->config(date_header => JSON::PP::false);
	run_ends('success', 'without a clock');
	is(scalar descents(), 0, '... nobody could say what changed, so nothing is searched');
	is(differences(), '', '... and nothing is missing');
};

done_testing();
