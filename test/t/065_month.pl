# A month of a school's life, made up by a random generator: contacts and deals
# are created, edited, moved, archived, restored, merged and purged, owners
# change, the search index lags behind, and runs fail, are cancelled or die
# with the server in between. After runs that nothing disturbs the tables are
# what HubSpot has, with every row that is not live marked by its reason, and
# the owners' history is the true one since the first run.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::OwnerHistory qw(history_differences history_overlaps);
use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant {
	DAYS => 30,
	DAY_MS => 86_400_000,
	CONTACTS => 320,
	DEALS => 130,
	OWNERS => 8,
	CRASHES => 3,
};

# Any seed must do; this one is printed to repeat what it found.
my $seed = int($ENV{HUBSPOT_SYNC_TEST_SEED} // (time * 1000) % 1_000_000);
srand $seed;
diag("HUBSPOT_SYNC_TEST_SEED=$seed");

my $sim = HubspotSync::Simulator->start(contacts => 0, deals => 0, owners => 0, companies => 0);
$sim->config(clock_offset_ms => -DAYS * DAY_MS);
$sim->reset(contacts => CONTACTS, deals => DEALS, owners => OWNERS, seed => $seed);
my $server = HubspotSync::Server->new('month', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 1, statement_timeout => '60s', restart_after_crash => 'on' });

# The deals of one pipeline once more, in a table of the user's own without
# bookkeeping.
$server->sql(<<~SQL);
	CREATE TABLE sales (number bigint PRIMARY KEY, title text);
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns,
			modified_property, created_property, delete_policy, filters)
		VALUES ('sales', 'deals', 'public', 'sales', '{number}', 'hs_lastmodifieddate', 'createdate', 'delete',
			'{"pipeline": "default"}');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('sales', 'title', 'dealname');
	SQL

my %object_of = (contacts => 'contacts', deals => 'deals', sales => 'deals');
my $owner_property = 'hubspot_owner_id';
my @owners = map { $_->{id} } $sim->objects('owners');
my @stages = (
	(map { [ 'default', $_ ] } qw(appointmentscheduled qualifiedtobuy contractsent closedwon closedlost)),
	(map { [ '74120953', $_ ] } qw(1087421101 1087421102 1087421103 1087421104)));
my $crashes = CRASHES;
my $serial = 0;
my @story;

# ---------------------------------------------------------------------------
# What people do
# ---------------------------------------------------------------------------

# Ids of live and archived records, kept while the day's work is done.
my (%live, %archived);

# Records that were restored and which no run need have noticed yet.
my %restored;

sub one_of { return $_[ rand @_ ]; }

sub look_around
{
	foreach my $type ('contacts', 'deals')
	{
		$live{$type} = [ $sim->objects_text($type, archived => 0) =~ /^\{"id":"(\d+)"/mg ];
		$archived{$type} = [ $sim->objects_text($type, archived => 1) =~ /^\{"id":"(\d+)"/mg ];
	}
	return;
}

sub take
{
	my ($list) = @_;
	return @$list ? splice(@$list, rand @$list, 1) : undef;
}

# A live record.
sub some
{
	my ($type) = @_;
	return one_of(@{ $live{$type} });
}

sub text { return one_of('Müller', 'Škoda', '', "O'Neill", '李', 'a;b,c', 'x' x 300) . ' ' . ++$serial; }

my %deed = (
	edit => sub {
		my ($type) = @_;
		my $id = some($type) // return;
		my $name = $type eq 'contacts' ? one_of(qw(lastname firstname phone)) : one_of(qw(dealname description));
		$sim->patch($type, $id, { $name => text() });
		return $id;
	},
	bulk => sub {
		my ($type) = @_;
		my %ids = map { $_ => 1 } grep { defined } map { some($type) } 1 .. 25;
		$sim->touch($type, ids => [ keys %ids ],
			properties => { $type eq 'contacts' ? 'lastname' : 'dealname' => text() });
		return keys %ids;
	},
	create => sub {
		my ($type) = @_;
		my %properties = $type eq 'contacts'
		  ? (lastname => text(), email => 'new' . ++$serial . '@example.com', $owner_property => one_of(undef, @owners))
		  : deal_fields();
		my ($id) = $sim->create($type, \%properties);
		push @{ $live{$type} }, $id;
		return $id;
	},
	archive => sub {
		my ($type) = @_;
		my $id = take($live{$type}) // return;
		$sim->archive($type, $id);
		push @{ $archived{$type} }, $id;
		return $id;
	},
	restore => sub {
		my ($type) = @_;
		my $id = take($archived{$type}) // return;
		$sim->config(restore_moves_modified => one_of(JSON::PP::true, JSON::PP::false));
		$sim->restore($type, $id);
		push @{ $live{$type} }, $id;
		$restored{$_}{$id} = 1 foreach 'contacts', 'deals', 'sales';
		return $id;
	},
	purge => sub {
		my ($type) = @_;
		my $from = one_of($live{$type}, $live{$type}, $archived{$type});
		my $id = take($from) // return;
		$sim->purge($type, $id);
		return $id;
	},
	merge => sub {
		my ($type) = @_;
		my ($primary, $other) = (some($type), take($live{$type}));
		return if !defined $primary || $primary eq $other;
		my $new = rand() < 0.3;
		my $survivor = $sim->merge($type, $primary, $other, $new ? (new_id => JSON::PP::true) : ());
		if ($new)
		{
			$live{$type} = [ grep { $_ ne $primary } @{ $live{$type} } ];
			push @{ $live{$type} }, $survivor->{id};
		}
		return "$primary + $other = $survivor->{id}";
	},
	assign => sub {
		my $id = some('contacts') // return;
		my $before = $sim->object('contacts', $id)->{properties}{$owner_property};

		# Sometimes for a moment, so that no run can notice by itself.
		my @in_turn = rand() < 0.3 ? (one_of('', @owners), $before) : one_of('', @owners);
		$sim->patch('contacts', $id, { $owner_property => $_ }) foreach @in_turn;
		return join ' ', "$id to", map { $_ || 'nobody' } @in_turn;
	},
	move => sub {
		my $id = some('deals') // return;
		my %fields = deal_fields();
		$sim->patch('deals', $id, { map { $_ => $fields{$_} } qw(pipeline dealstage) });
		return $id;
	},
);

sub deal_fields
{
	my ($pipeline, $stage) = @{ one_of(@stages) };
	return (
		dealname => text(),
		amount => one_of('', undef, '12.50', '100', '0'),
		closedate => one_of(undef, '2026-05-17T10:00:00.000Z'),
		$owner_property => one_of('', @owners),
		pipeline => $pipeline,
		dealstage => $stage);
}

my %habits = (
	contacts => [ qw(edit edit edit edit bulk create create archive archive restore purge merge merge assign assign assign assign) ],
	deals => [ qw(edit edit bulk create create archive restore purge merge move move move move) ]);

sub work
{
	my ($type, $times) = @_;
	foreach (1 .. $times)
	{
		my $what = one_of(@{ $habits{$type} });
		my @about = $deed{$what}->($type);
		story("$type: $what @about") if defined $about[0];
	}
	return;
}

# Work that is done while a run is under way, between two of its requests.
sub work_during
{
	my ($type) = @_;
	my ($edited, $purged, $archived) = (some($type), some($type), some($type));
	return if $edited eq $purged || $edited eq $archived || $archived eq $purged;
	my $name = $type eq 'contacts' ? 'lastname' : 'dealname';
	my $low = one_of(5_000_000, 11_000_000_000) + ++$serial;
	$sim->script(path => "/$type", nth => 1 + int rand 5, when => one_of('before', 'after'), do => [
		{ op => 'patch', type => $type, id => $edited, properties => { $name => text() } },
		{ op => 'archive', type => $type, id => $archived },
		{ op => 'purge', type => $type, id => $purged },
		{ op => 'create', type => $type, id => $low, properties => $type eq 'deals' ? { deal_fields() } : { $name => text() } } ]);
	story("$type: while the run is under way: edit $edited, archive $archived, purge $purged, create $low");
	return;
}

# The story is shown if it ends badly.
sub story
{
	my ($line) = @_;
	push @story, $line;
	note($line);
	return;
}

# ---------------------------------------------------------------------------
# What happens to runs
# ---------------------------------------------------------------------------

sub run_type
{
	my ($type, $mode, $timeframe) = @_;
	my $run = $server->run_sync($type, $mode, $timeframe);
	my $log = $server->log($run->{run_id});
	story(join ' ', "run of $type:", map { $_ // '' } $log->{mode}, $log->{status}, $log->{error_details}{reason},
		$log->{continues} ? 'continuing' : '');
	return $log;
}

# A run that must not be disturbed.
sub run_calmly
{
	my ($type, $mode) = @_;
	my $log = run_type($type, $mode);
	is($log->{status}, 'success', "undisturbed $log->{mode} run of $type") or diag(explain $log);
	return $log;
}

# A run that waits for an answer which does not come, if it gets so far.
sub run_hangs
{
	my ($type) = @_;
	$sim->clear_journal;
	$sim->fault(path => "/$object_of{$type}", nth => 1 + int rand 7, times => 0, action => 'hang');
	my $id = $server->trigger($type, one_of('auto', 'full', 'incremental'));
	wait_until('the run hangs or has ended', sub {
		return 1 if $server->sql("SELECT status NOT IN ('pending', 'running') FROM sync_logs WHERE id = '$id'") eq 't';
		return scalar grep { ($_->{fault} // '') =~ /hang/ } $sim->journal;
	});
	return $id;
}

my %mishap = (
	fault => sub {
		my ($type) = @_;
		my $kind = one_of(qw(reset html truncated_json empty_body reset_mid_body));
		$sim->fault(path => one_of("/$object_of{$type}", 'archived=true', '/batch/read', '/search'),
			nth => 1 + int rand 5, times => 1 + int rand 4, action => $kind);
		run_type($type, one_of('auto', 'auto', 'full', 'incremental'));
	},
	cancel => sub {
		my ($type) = @_;
		my $id = run_hangs($type);
		$server->sql("SELECT cancel_hubspot_sync('$id')");
		my $log = $server->wait_for($id);
		story("run of $type: $log->{mode} $log->{status}, cancelled");
	},
	crash => sub {
		my ($type) = @_;
		return run_type($type, 'auto') if $crashes-- <= 0;
		my $id = run_hangs($type);
		$server->stop('immediate');
		$server->start;
		story("run of $type: " . $server->log($id)->{status} . ', the server has crashed');
	},
	timeframe => sub { run_type($_[0], 'auto', one_of(qw(this_year last_30_days last_week))) },
	work => sub {
		my ($type) = @_;
		work_during($object_of{$type});
		run_type($type, one_of('auto', 'full'));
	},
	nothing => sub { run_type($_[0], 'auto') },
);
my @mishaps = qw(nothing nothing nothing nothing fault fault fault work work cancel crash timeframe);

sub run_somehow
{
	my ($type) = @_;
	my $what = one_of(@mishaps);
	$mishap{$what}->($type);
	$sim->clear_faults;
	$sim->control('DELETE', 'script');
	look_around();
	return;
}

# A day passes, for HubSpot and for what the runs remember by our clock.
sub next_day
{
	my ($day) = @_;
	$sim->config(clock_offset_ms => ($day - DAYS) * DAY_MS);
	$server->sql(<<~'SQL');
		UPDATE sync_state SET last_full_at = last_full_at - interval '1 day',
			last_deep_at = last_deep_at - interval '1 day', last_sweep_at = last_sweep_at - interval '1 day'
		SQL
	return;
}

# ---------------------------------------------------------------------------
# What must hold
# ---------------------------------------------------------------------------

my %condition = (
	contacts => <<~'SQL',
		(t.email, t.first_name, t.last_name, t.phone, t.owner_id, t.lifecycle_stage, t.status)
			IS NOT DISTINCT FROM
		(p ->> 'email', p ->> 'firstname', p ->> 'lastname', p ->> 'phone', p ->> 'hubspot_owner_id',
			p ->> 'lifecyclestage', p ->> 'hs_lead_status')
		SQL
	deals => <<~'SQL',
		(t.deal_name, t.deal_value, t.stage, t.pipeline, t.closer_id, t.close_date, t.status::text)
			IS NOT DISTINCT FROM
		(p ->> 'dealname', nullif(p ->> 'amount', '')::numeric, p ->> 'dealstage', p ->> 'pipeline',
			p ->> 'hubspot_owner_id', nullif(p ->> 'closedate', '')::timestamptz,
			CASE WHEN p ->> 'hs_is_closed_won' = 'true' THEN 'won' WHEN p ->> 'hs_is_closed' = 'true' THEN 'lost' ELSE 'open' END)
		SQL
);
my %key = (contacts => 'hubspot_contact_id', deals => 'hubspot_deal_id');

# The rows that are not what HubSpot has. An incremental run knows of live
# records and of merges; only a full one knows of all. `except` are live
# records that were not seen yet.
sub differences
{
	my ($type, %how) = @_;
	my $except = join ', ', map { "'$_'" } '', $how{full} ? () : keys %{ $restored{$type} || {} };
	my $everything = $how{full} ? 'true' : 'false';
	$server->load_objects($type);
	return $server->sql(<<~"SQL");
		WITH truth AS (
			SELECT id, archived, record -> 'properties' AS p, (record ->> 'updatedAt')::timestamptz AS updated FROM sim_$type
		), merged AS (
			SELECT DISTINCT ON (m.id) m.id, truth.id AS survivor FROM truth
			CROSS JOIN unnest(string_to_array(p ->> 'hs_merged_object_ids', ';')) AS m(id)
			WHERE $everything OR NOT truth.archived AND truth.id NOT IN ($except)
		), compared AS (
			SELECT coalesce(s.id, t.$key{$type}) AS id,
				CASE
					WHEN s.id IS NULL AND m.id IS NOT NULL THEN
						CASE WHEN t.archived AND t.archived_reason = 'merged' AND t.merged_into = m.survivor
							THEN '' ELSE 'merged into ' || m.survivor END
					WHEN s.id IS NULL THEN
						CASE WHEN NOT $everything OR t.archived AND t.archived_reason IS NOT NULL THEN '' ELSE 'gone' END
					WHEN t.$key{$type} IS NULL THEN
						CASE WHEN $everything OR NOT s.archived AND s.id NOT IN ($except) THEN 'there' ELSE '' END
					WHEN s.archived THEN
						CASE WHEN NOT $everything OR t.archived AND t.archived_reason = 'archived' AND t.archived_at IS NOT NULL
							THEN '' ELSE 'archived' END
					WHEN s.id IN ($except) THEN ''
					WHEN t.archived OR t.archived_reason IS NOT NULL OR t.merged_into IS NOT NULL OR t.archived_at IS NOT NULL
						THEN 'live'
					WHEN t.hubspot_updated_at <> s.updated OR NOT ($condition{$type}) THEN format(e'equal to\n  %s\nnot\n  %s\n', s.p, t)
					ELSE ''
				END AS should_be,
				t.archived, t.archived_reason, t.merged_into
			FROM $type t FULL JOIN truth s ON s.id = t.$key{$type}
			LEFT JOIN merged m ON m.id = t.$key{$type}
		)
		SELECT string_agg(format('%s should be %s but is %s', id, should_be,
			coalesce(concat_ws(' ', CASE WHEN archived THEN 'archived' ELSE 'live' END, archived_reason, merged_into), 'missing')), e'\\n')
		FROM (SELECT * FROM compared WHERE should_be <> '' LIMIT 10) x
		SQL
}

# The rows of the table without bookkeeping that are not live deals of its
# pipeline.
sub sales_differences
{
	$server->load_objects('deals');
	return $server->sql(<<~'SQL');
		SELECT string_agg(coalesce(s.id, t.number::text), ' ')
		FROM sales t FULL JOIN (
			SELECT * FROM sim_deals WHERE NOT archived AND record #>> '{properties,pipeline}' = 'default'
		) s ON s.id = t.number::text
		WHERE t.number IS NULL OR s.id IS NULL OR t.title IS DISTINCT FROM s.record #>> '{properties,dealname}'
		SQL
}

my $since;

# After undisturbed runs that find what changed.
sub check_changes
{
	my ($day) = @_;
	foreach my $type ('contacts', 'deals')
	{
		run_calmly($type, 'incremental') foreach 1, 2;
		is(differences($type), '', "day $day: $type as far as searches show");
	}
	return;
}

# After undisturbed runs that find everything.
sub check_everything
{
	my ($day) = @_;
	foreach my $type ('contacts', 'deals', 'sales')
	{
		my $log = run_calmly($type, 'full');
		run_calmly($type, 'full') if defined $log->{continues};
		is($type eq 'sales' ? sales_differences() : differences($type, full => 1), '', "day $day: $type");
		$restored{$type} = {};
	}
	is($server->sql('SELECT count(*) FROM sync_errors'), 0, '... without errors');
	is($server->sql('SELECT count(*) FROM sync_absences'), 0, '... and nothing left to be settled');
	is(history_differences($server, $since), '', '... the history of owners is the true one');
	is(history_overlaps($server), 0, '... without overlaps');
	is($server->sql(<<~'SQL'), 0, '... and ends where a contact does');
		SELECT count(*) FROM contact_owner_history h JOIN contacts c USING (connection_id, hubspot_contact_id)
		WHERE c.archived AND c.archived_reason IN ('merged', 'gone') AND h.valid_to IS NULL
		SQL

	return;
}

# ---------------------------------------------------------------------------
# The month
# ---------------------------------------------------------------------------

my $begin = time;
look_around();
run_calmly($_, 'full') foreach qw(contacts deals sales owners);
$since = $sim->state->{now_ms};
is(differences($_, full => 1), '', "at first: $_") foreach 'contacts', 'deals';

my $lags = 0;
foreach my $day (1 .. DAYS)
{
	next_day($day);

	# A run must not be asked to find what two runs before it could not see:
	# the deep overlap is an hour.
	$lags = !$lags && rand() < 0.3;
	$sim->config(search_lag_ms => $lags ? DAY_MS : 0);
	story("day $day" . ($lags ? ', the search lags behind' : ''));
	work('contacts', 6 + int rand 8);
	work('deals', 3 + int rand 5);
	run_somehow('contacts');
	run_somehow(one_of('deals', 'sales'));
	work(one_of('contacts', 'deals'), int rand 4);

	if ($day % 5 == 0)
	{
		$sim->config(search_lag_ms => 0);
		check_changes($day);
		check_everything($day) if $day % 10 == 0;
	}
	last if !Test::More->builder->is_passing;
}
is_deeply($sim->state->{script_errors}, [], 'all work was done');
is($server->sql(q{SELECT count(*) FROM sync_runs WHERE status IN ('pending', 'running')}), 0, 'no run is left open');
diag(join "\n", "HUBSPOT_SYNC_TEST_SEED=$seed", @story) unless Test::More->builder->is_passing;
note(sprintf '%d runs in %.0f s', $server->sql('SELECT count(*) FROM sync_runs'), time - $begin);

done_testing();
