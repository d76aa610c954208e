# However runs of all types, cancels, changes of the configuration, DROP and
# CREATE EXTENSION, restarts and crashes meet, the server does nothing but what
# it was told, every entry of the log is closed, and the next runs bring
# everything to the truth. What is done is drawn by a seed for some seconds;
# HUBSPOT_SYNC_TURMOIL_SECONDS has another number of them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Parallel qw(in_parallel);
use HubspotSync::Scenario;
use HubspotSync::Truth qw(row_differences truth_differences);
use HubspotSync::Wait qw(wait_until);
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use constant SECONDS => 25;

my $seed = $ENV{HUBSPOT_SYNC_TEST_SEED} // int(time * 1000) % 1_000_000;
my $seconds = $ENV{HUBSPOT_SYNC_TURMOIL_SECONDS} // SECONDS;
diag("HUBSPOT_SYNC_TEST_SEED=$seed");

my $scenario = HubspotSync::Scenario->new('turmoil',
	max_worker_processes => 12,
	log_line_prefix => '%m [%p] %e ',
	'hubspot_sync.lock_timeout' => '5s',
	'hubspot_sync.store_timeout' => '10s');
my $server = $scenario->server;
my $simulator = $scenario->simulator;
my $node = $server->node;
$scenario->begin;
$scenario->play;
my %ids = map { my $type = $_; $type => [ map { $_->{id} } $simulator->objects($type, archived => 0) ] } qw(contacts deals);
$server->sql('CREATE TABLE met_internal_errors (message text)');
$simulator->config(latency_ms => 10);
my $before = $simulator->state->{requests};

# ---------------------------------------------------------------------------
# Who does what
# ---------------------------------------------------------------------------

sub one_of { return $_[ rand @_ ]; }
sub type { return one_of(qw(contacts contacts deals owners progress progress)); }
sub mode { return one_of(qw(auto auto auto full incremental)); }
sub active { return "FROM sync_run_states WHERE status IN ('pending', 'running') ORDER BY random() LIMIT 1"; }

my @requests = (
	sub { 'SELECT trigger_hubspot_sync(' . join(', ', map { "'$_'" } type(), mode()) . ')' },
	sub { 'CALL run_hubspot_sync(' . join(', ', map { "'$_'" } type(), mode()) . ')' },
	sub { q{SELECT trigger_hubspot_sync('contacts', 'full', 'last_30_days')} },
	sub { 'BEGIN; SELECT trigger_hubspot_sync(' . "'" . type() . "'); ROLLBACK" },
	sub { q{SELECT count(*) FROM preview_student_progress()} },
	sub { q{SELECT * FROM sync_alerts} });

my @interruptions = (
	sub { 'SELECT cancel_hubspot_sync(id) ' . active() },
	sub { 'SELECT pg_cancel_backend(holder_pid) ' . active() },
	sub { 'SELECT pg_terminate_backend(holder_pid) ' . active() },
	sub { q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%' LIMIT 1} });

my @changes = (
	sub { q{UPDATE sync_types SET enabled = false WHERE sync_type = '} . type() . q{'; UPDATE sync_types SET enabled = true} },
	sub { q{UPDATE sync_types SET property_set = '} . one_of(qw(all mapped)) . q{' WHERE sync_type = 'deals'} },
	sub { q{UPDATE sync_types SET properties = ARRAY['} . one_of(qw(city jobtitle)) . q{'] WHERE sync_type = 'contacts'} },
	sub { q{UPDATE user_xp SET total_xp = total_xp + 1 WHERE user_id LIKE '%} . int(rand 10) . q{'} },
	sub { q{ALTER TABLE contacts ADD COLUMN extra text; ALTER TABLE contacts DROP COLUMN extra} },
	sub { q{ALTER TABLE a1_progress RENAME TO c1_progress; ALTER TABLE c1_progress RENAME TO a1_progress} },
	sub { q{LOCK TABLE contacts; SELECT 1} },
	sub { q{ALTER SYSTEM SET hubspot_sync.max_retries = } . int(rand 3) . q{; SELECT pg_reload_conf()} },
	sub { join '; ', map { ($_, 'SELECT pg_reload_conf()') } map { "ALTER SYSTEM SET hubspot_sync.enabled = $_" } qw(off on) },
	sub { $simulator->patch('contacts', one_of(@{ $ids{contacts} }), { phone => '+' . int rand 1e6 }); 'SELECT 1' },
	sub { $simulator->patch('deals', one_of(@{ $ids{deals} }), { dealname => 'Deal ' . int rand 1e6 }); 'SELECT 1' },
	sub { $simulator->fault(nth => 1 + int rand 10, action => one_of(qw(reset hang html empty_body))); 'SELECT 1' });

# Rare and heavy ones; what is returned is executed, if it is SQL. The log goes
# with the extension, but not what may never be in it.
my $internal = q{SELECT error_details ->> 'message' FROM sync_logs WHERE error_details ->> 'sqlstate' LIKE 'XX%'};
my @blows = (
	sub { "INSERT INTO met_internal_errors $internal; BEGIN; DROP EXTENSION hubspot_sync CASCADE; CREATE EXTENSION hubspot_sync; COMMIT" },
	sub { "INSERT INTO met_internal_errors $internal; DROP EXTENSION hubspot_sync CASCADE; CREATE EXTENSION hubspot_sync" },
	sub { restart('fast') },
	sub { restart('immediate') },
	sub { kill_worker() });

# psql's statements, one by one, however they end. Returns its messages.
sub execute
{
	my ($sql) = @_;
	my $output = '';
	IPC::Run::run([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres'), map { ('-c', $_) } split /; /, $sql ],
		'<', \undef, '>', \$output, '2>', \$output, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $output;
}

sub restart
{
	my ($how) = @_;
	run_command([ 'pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, '-m', $how, 'restart' ]);
	return;
}

sub kill_worker
{
	my ($pid) = execute('SELECT holder_pid ' . active()) =~ /^(\d+)$/m;
	kill 'KILL', $pid if $pid;
	return;
}

# Whoever does something, again and again, with a pause between.
my @actors = ((map { [ \@requests, 0.05 ] } 1 .. 3), [ \@interruptions, 0.2 ], [ \@changes, 0.1 ], [ \@blows, 2 ]);

sub act
{
	my ($number, $report) = @_;
	my ($actions, $pause) = @{ $actors[$number] };
	my $end = time + $seconds;
	my $done = 0;
	srand $seed + $number;
	while (time < $end)
	{
		my $sql = one_of(@$actions)->();
		my $output = defined $sql ? execute($sql) : '';
		$report->({ internal => "$sql: $_" }) foreach grep { !is_expected($_) } $output =~ /^ERROR:\s+XX.*/mg;
		$done++;
		sleep rand 2 * $pause; # sleep: how often it happens
	}
	$report->({ done => $done });
	return;
}

# PostgreSQL's own words about what was dropped or changed under a statement.
sub is_expected
{
	my ($message) = @_;
	return $message =~ /cache lookup failed|could not open relation|tuple concurrently|could not find tuple/;
}

# ---------------------------------------------------------------------------
# Turmoil, and what is left of it
# ---------------------------------------------------------------------------

my $beginning = $server->log_position;
my ($done, @internal) = (0);
my $bad = in_parallel(scalar @actors, \&act, sub {
	my ($it) = @_;
	$done += $it->{done} // 0;
	push @internal, $it->{internal} if defined $it->{internal};
});
is($bad, 0, 'everybody has acted to the end');
note("$done actions");
cmp_ok($done, '>', 2 * $seconds, 'there was turmoil');
cmp_ok($simulator->state->{requests} - $before, '>', $seconds, '... with requests');
is(join("\n", @internal), '', 'nobody met an internal error');

$node->_update_pid(1);
$simulator->clear_faults;
$simulator->config(latency_ms => 0);
$scenario->careful(1);
# The last blow may not be over.
wait_until('the configuration is reset', sub {
	return execute('ALTER SYSTEM RESET ALL; SELECT pg_reload_conf(); CREATE EXTENSION IF NOT EXISTS hubspot_sync') !~ /connection|FATAL/;
});
# A restart may have come between a change and its taking back.
execute('ALTER TABLE IF EXISTS c1_progress RENAME TO a1_progress; ALTER TABLE contacts DROP COLUMN IF EXISTS extra');
wait_until('the configuration is the first one',
	sub { $server->sql(q{LOAD 'hubspot_sync'; SHOW hubspot_sync.enabled}) eq 'on' });
wait_until('no worker is left', sub {
	$server->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync'}) == 0;
});
is($server->sql(q{SELECT count(*) FROM sync_logs WHERE status = 'running'}), 0, 'no run reads as running');
my $dead = $server->sql(q{SELECT count(*) FROM sync_run_states WHERE dead});
note("$dead dead entries");

my $log = $server->log_text($beginning);
my @signals = grep { !/signal 9:/ } $log =~ /.*was terminated by signal.*(?:\n.* DETAIL: .*)?/g;
is(join("\n", @signals), '', 'no process was ended by a signal but those that were killed');
# Who is stopped during the recovery after a crash is told to fear for the data.
my @panics = grep { !/HINT:  This probably means that some data is corrupted/ } $log =~ /.*(?:PANIC|TRAP|stuck|corrupt).*/g;
is(join("\n", @panics), '', 'the server did not panic');
my @failures = $log =~ /hubspot_sync run of .*? failed: (.*)/g;
note($simulator->state->{requests} - $before . ' requests');
my %seen;
$seen{ s/[0-9"].*//r }++ foreach @failures;
note("$seen{$_} runs: $_") foreach sort { $seen{$b} <=> $seen{$a} } keys %seen;

my @errors = grep { !is_expected($_) } split /\n/, $server->sql("$internal UNION ALL SELECT message FROM met_internal_errors");
is(join("\n", @errors), '', 'no run ended with an internal error');
my @logged = grep { !is_expected($_) } $log =~ /\] XX\w{3} (?:ERROR|FATAL|LOG|WARNING): .*/g;
is(join("\n", @logged), '', '... and none is in the log');

$scenario->forget;
$server->sql(q{UPDATE sync_types SET enabled = true, properties = '{}', property_set = CASE sync_type WHEN 'deals' THEN 'all' ELSE 'mapped' END});
$scenario->heal;
is(join("\n", row_differences($scenario)), '', 'the next runs bring every row to the truth');
$server->run_sync('contacts', 'full');
$server->run_sync('progress', 'full');
$server->run_sync('contacts');
is(join("\n", truth_differences($scenario)), '', 'afterwards everything is true and nothing is open');

done_testing();
