# A full pull leaves exactly HubSpot's records in the tables, repeating it
# changes nothing, an incremental pull stores exactly what was edited, and none
# of them makes more requests than it has to.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	LIST_PAGE => 100,
	SEARCH_PAGE => 200,
	REQUESTS_BESIDE => 3,
};

my $sim = HubspotSync::Simulator->start(contacts => 450, deals => 230, owners => 25);
my $server = HubspotSync::Server->new('pull', simulator => $sim);

# What a table should hold of each record: its key and the values compared.
my %expected = (
	contacts => sub {
		my ($record) = @_;
		my $p = $record->{properties};
		return { map { $_->[0] => $p->{ $_->[1] } }
			  [ email => 'email' ], [ first_name => 'firstname' ],
			[ last_name => 'lastname' ], [ phone => 'phone' ],
			[ owner_id => 'hubspot_owner_id' ],
			[ lifecycle_stage => 'lifecyclestage' ],
			[ status => 'hs_lead_status' ] };
	},
	deals => sub {
		my ($record) = @_;
		my $p = $record->{properties};
		my $status =
			$p->{hs_is_closed} ne 'true' ? 'open'
		  : $p->{hs_is_closed_won} eq 'true' ? 'won'
		  : 'lost';
		return {
			deal_name => $p->{dealname},
			deal_value => amount($p->{amount}),
			stage => $p->{dealstage},
			status => $status,
			closer_id => $p->{hubspot_owner_id},
			pipeline => $p->{pipeline},
		};
	},
	owners => sub {
		my ($record) = @_;
		my $name = join ' ', grep { length } @{$record}{qw(firstName lastName)};
		return {
			name => length $name ? $name : $record->{email},
			email => $record->{email},
			role => 'coach',
		};
	});
my %table = (
	contacts => [ 'contacts', 'hubspot_contact_id' ],
	deals => [ 'deals', 'hubspot_deal_id' ],
	owners => [ 'staff', 'id' ]);

# An amount as numeric prints it; HubSpot clears numbers with "".
sub amount
{
	my ($text) = @_;
	return defined $text && length $text ? $text : undef;
}

sub rows_expected
{
	my ($type) = @_;
	my %rows;
	foreach my $record ($sim->objects($type))
	{
		$rows{ $record->{id} } = {
			%{ $expected{$type}->($record) },
			archived => $record->{archived} ? 'true' : 'false',
		};
	}
	return \%rows;
}

sub rows_stored
{
	my ($type) = @_;
	my ($table, $key) = @{ $table{$type} };
	my ($some) = values %{ rows_expected($type) };
	my $columns = join ', ', map { "${_}::text" } sort keys %$some;
	my %rows;
	foreach my $row ($server->sql_json("SELECT $key AS id, $columns FROM $table"))
	{
		$rows{ delete $row->{id} } = $row;
	}
	return \%rows;
}

sub same_rows
{
	my ($type, $when) = @_;
	is_deeply(rows_stored($type), rows_expected($type), "$type are HubSpot's $when");
	return;
}

# Runs one type and checks how it ends and how many requests it makes.
sub sync
{
	my ($type, $mode, $page, $records) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync($type, $mode);
	is($run->{status}, 'success', "$mode run of $type succeeds") or diag($run->{stderr});
	return {} unless defined $run->{run_id};

	my $log = $server->log($run->{run_id});
	my $limit = int(($records + $page - 1) / $page) + REQUESTS_BESIDE;
	my $requests = $sim->requests;
	cmp_ok($requests, '<=', $limit, "... with at most $limit requests");
	is($log->{requests}, $requests, '... all of which it counts');
	is($log->{records_failed}, 0, '... without failed records');
	return $log;
}

# Some records are archived before anything was read.
my @ids = map { $_->{id} } $sim->objects('contacts');
$sim->archive('contacts', $_) foreach @ids[ 3, 217 ];
my %total = (contacts => 450, deals => 230, owners => 25);

foreach my $type (qw(contacts deals owners))
{
	my $log = sync($type, 'full', LIST_PAGE, $total{$type});
	is($log->{records_processed}, $total{$type}, "... reading all $type");
	is($log->{records_changed}, $total{$type}, '... and writing them');
	same_rows($type, 'after the first full run');
}

foreach my $type (qw(contacts deals owners))
{
	my $log = sync($type, 'full', LIST_PAGE, $total{$type});
	is($log->{records_changed}, 0, "an unchanged full run of $type writes nothing");
	is($log->{records_unchanged}, $total{$type}, '... since all rows are the same');
}

# Edits of every kind that a search sees.
my $long_ago = $server->sql('SELECT max(synced_at) FROM contacts');
my @edited = @ids[ 0, 100, 449 ];
$sim->patch('contacts', $edited[0], { firstname => "Zo\x{eb} \x{1f393}" });
$sim->patch('contacts', $edited[1], { email => 'new.address@example.com', phone => '' });
$sim->patch('contacts', $edited[2], { lastname => "O'Neill \"x\" \\" });
push @edited, $sim->create('contacts', { email => 'created@example.com' });
my ($deal) = grep { $_->{properties}{hs_is_closed} ne 'true' } $sim->objects('deals');
$sim->patch('deals', $deal->{id}, { pipeline => 'default', dealstage => 'closedwon', amount => '1234.50' });

my $log = sync('contacts', 'incremental', SEARCH_PAGE, scalar @edited);
is($log->{records_changed}, scalar @edited, 'an incremental run of contacts writes what was edited');
is( $server->sql("SELECT hubspot_contact_id FROM contacts WHERE synced_at > '$long_ago' ORDER BY 1"),
	join("\n", sort @edited),
	'... and nothing else');
same_rows('contacts', 'after the edits');

$log = sync('deals', 'incremental', SEARCH_PAGE, 1);
is($log->{records_changed}, 1, 'an incremental run of deals writes the one that was won');
is($server->sql("SELECT status, deal_value FROM deals WHERE hubspot_deal_id = '$deal->{id}'"),
	'won|1234.50', '... with its new status');
same_rows('deals', 'after the edit');

foreach my $type (qw(contacts deals))
{
	$log = sync($type, 'incremental', SEARCH_PAGE, 0);
	is($log->{records_changed}, 0, "an incremental run of $type with no news writes nothing");
	cmp_ok($log->{requests}, '<=', 2, '... with at most two requests');
}

# The recycle bin is read by full runs.
$sim->archive('contacts', $ids[7]);
$log = sync('contacts', 'full', LIST_PAGE, 451);
is($log->{records_archived}, 1, 'a full run marks what was archived');
same_rows('contacts', 'after one was archived');

done_testing();
