# What docs/monitoring describes works as it stands: with the role of role.sql,
# which may read that and nothing else, and in whichever schema the extension
# lives, the exporter delivers every metric with the value that the log has; and
# Prometheus raises the alerts.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HTTP::Tiny;
use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $exporter = '/usr/bin/prometheus-postgres-exporter';
my $promtool = '/usr/bin/promtool';
my $folder = "$FindBin::RealBin/../../docs/monitoring";

# Series, a time at which the alert is there with these labels, and times at
# which it is not.
my @fires = (
	[ HubspotSyncAlert => 'hubspot_sync_alert_active{connection="default", sync_type="deals", alert="failed_run", severity="critical"}',
		'_x9 1 _x20', '15m', 'connection: default, sync_type: deals, alert: failed_run, severity: critical', '8m', '25m' ],
	[ HubspotSyncStale => 'hubspot_sync_last_success_age_seconds{connection="default", sync_type="contacts"}',
		'0+60x40', '22m', 'connection: default, sync_type: contacts, severity: critical', '20m' ],
	[ HubspotSyncStale => 'hubspot_sync_last_success_age_seconds{connection="default", sync_type="deals"}',
		'0+60x60', '52m', 'connection: default, sync_type: deals, severity: critical', '50m' ],
	[ HubspotSyncStale => 'hubspot_sync_last_success_age_seconds{connection="default", sync_type="owners"}',
		'0+60x2000', '1567m', 'connection: default, sync_type: owners, severity: critical', '1565m' ],
	[ HubspotSyncSlow => 'hubspot_sync_last_run_duration_seconds{connection="default", sync_type="deals"}',
		'3600x5 3601x20', '10m', 'connection: default, sync_type: deals, severity: warning', '5m' ],
	[ HubspotSyncOpenErrors => 'hubspot_sync_connection_open_errors{connection="default"}',
		'1x1500', '24h', 'connection: default, severity: warning', '23h' ],
	[ HubspotSyncBucketEmpty => 'hubspot_sync_bucket_available{connection="default", bucket="burst"}',
		'1x5 0x60', '25m', 'connection: default, bucket: burst, severity: warning', '19m' ],
	[ HubspotSyncTokenExpires => 'hubspot_sync_token_days_left{connection="default"}',
		'7x5 6.9x5 0.9x20', '8m', 'connection: default, severity: warning', '5m' ],
	[ HubspotSyncTokenExpires => 'hubspot_sync_token_days_left{connection="default"}',
		'7x5 0.9x5 -3x20', '20m', 'connection: default, severity: critical', '5m' ],
	[ HubspotSyncUnknown => 'hubspot_sync_connection_open_errors{connection="default"}',
		'0x5 stale', '20m', 'severity: critical', '10m' ]);

# Two series, what one is when the alert is there, and what the other is then and
# when it is not.
my %ratio = (
	HubspotSyncRunsFail => [ 'failed_runs', 'runs', 3, 29, 30 ],
	HubspotSyncRecordsFail => [ 'records_failed', 'records_processed', 11, 100, 110 ],
	HubspotSyncRateLimited => [ 'rate_limited', 'requests', 21, 419, 420 ],
	HubspotSyncRetries => [ 'retries', 'requests', 21, 104, 105 ]);

plan skip_all => "$exporter is not there: install the package prometheus-postgres-exporter" unless -x $exporter;

my $sim = HubspotSync::Simulator->start(contacts => 50, deals => 20, owners => 3);
my $server = HubspotSync::Server->new('exporter', simulator => $sim, extension => 0);
$server->sql('CREATE SCHEMA "the crm"; CREATE EXTENSION hubspot_sync SCHEMA "the crm"');
$server->sql('ALTER ROLE postgres SET search_path = "the crm"');
command_ok([ 'psql', '-X', '-q', '-d', $server->node->connstr('postgres'), '-v', 'schema=the crm', '-f', "$folder/role.sql" ],
	'role.sql creates the role');

subtest 'the role' => sub {
	foreach my $sql ('SELECT * FROM contacts', 'SELECT payload FROM sync_errors', 'SELECT error_details FROM sync_logs',
		'SELECT message FROM sync_alerts', 'SELECT * FROM sync_connections', 'SELECT properties FROM sync_types',
		q{SELECT trigger_hubspot_sync('contacts')}, q{SELECT cancel_hubspot_sync(gen_random_uuid())},
		'SELECT * FROM test_hubspot_connection()')
	{
		like($server->sql_error($sql, user => 'hubspot_monitor'), qr/ERROR:  42501: /, "may not $sql");
	}
	is($server->sql('SHOW search_path', user => 'hubspot_monitor'), '"the crm"', 'finds the schema');
};

# Things to count: 429s, a 502, records and a run that fail, a token at its end.
$sim->fault(path => '/contacts', nth => 1, times => 2, action => { kind => 'rate_limit', policy => 'TEN_SECONDLY_ROLLING' });
$sim->fault(path => '/contacts', nth => 3, times => 1, action => { kind => 'status', status => 502 });
is($server->run_sync('contacts')->{status}, 'success', 'contacts succeed');
is($server->run_sync('contacts')->{status}, 'success', '... twice');
$sim->patch('deals', $_->{id}, { amount => 'a lot' }) foreach ($sim->objects('deals'))[ 0 .. 3 ];
is($server->run_sync('deals')->{status}, 'partial', 'deals do in part');
$sim->fault(path => '/owners', times => 0, action => { kind => 'status', status => 400 });
is($server->run_sync('owners')->{status}, 'failed', 'owners fail');
is($server->run_sync('owners')->{status}, 'failed', '... twice');
$server->sql(q{UPDATE sync_connections SET token_expires_at = now() + interval '60 hours'});
$server->sql(q{UPDATE sync_runs SET completed_at = completed_at - interval '1 hour' WHERE sync_type = 'contacts'});

# The options that leave out the metrics of PostgreSQL itself; the collectors
# differ between versions of the exporter.
sub leave_out_postgresql
{
	my ($help, $err) = run_command([ $exporter, '--help' ]);
	my @collectors = "$help$err" =~ /--collector\.(\w+)\s+[^(-]*\(default:\s+enabled\)/g;
	return ('--disable-default-metrics', '--disable-settings-metrics', map { "--no-collector.$_" } @collectors);
}

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $url = "http://127.0.0.1:$port/metrics";
my $http = HTTP::Tiny->new(timeout => 30, proxy => undef, http_proxy => undef);
my ($node, $log) = ($server->node, '');
my $running;
{
	local %ENV = (%ENV, DATA_SOURCE_NAME => 'host=' . $node->host . ' port=' . $node->port
		  . ' user=hubspot_monitor dbname=postgres sslmode=disable');
	$running = IPC::Run::start([ $exporter, "--web.listen-address=127.0.0.1:$port", "--extend.query-path=$folder/queries.yaml",
			leave_out_postgresql() ],
		'<', \undef, '>', \$log, '2>&1');
}

END
{
	local $?;
	$running->kill_kill if $running;
}

# The metrics, as NAME{LABELS} => value; labels in order of their names, without
# that of the server.
sub fetch
{
	my $answer;
	wait_until('the exporter answers', sub {
		$running->pump_nb;
		$answer = $http->get($url);
		return $answer->{success};
	});
	my (%values, %described);
	foreach my $line (split /\n/, $answer->{content})
	{
		$described{$1} = $2 if $line =~ /^# HELP (hubspot_sync_\w+) (.+)$/;
		next unless $line =~ /^(\w+)\{(.*)\} (\S+)$/;
		my ($name, $labels, $value) = ($1, $2, $3);
		my %labels = $labels =~ /(\w+)="((?:[^"\\]|\\.)*)"/g;
		delete $labels{server};
		$values{ $name . '{' . join(',', map { "$_=$labels{$_}" } sort keys %labels) . '}' } = $value
		  if $name =~ /^hubspot_sync_/;
	}
	my ($errors) = $answer->{content} =~ /^pg_exporter_last_scrape_error (\S+)$/m;
	return (\%values, \%described, $errors);
}

# What tables have to say, by another way than that of queries.yaml.
sub expected
{
	my %values;
	my %runs = map { $_ => [] } qw(contacts deals owners progress);
	push @{ $runs{ $_->{sync_type} } }, $_ foreach $server->sql_json(q{
		SELECT *, extract(epoch FROM clock_timestamp() - completed_at) AS age,
			round(extract(epoch FROM completed_at - started_at) * 1000) AS ms FROM sync_runs ORDER BY created_at});
	foreach my $type (sort keys %runs)
	{
		my $labels = "{connection=default,sync_type=$type}";
		my @runs = @{ $runs{$type} };
		my ($success) = reverse grep { $_->{status} =~ /^(?:success|partial)$/ } @runs;
		$values{"hubspot_sync_last_success_age_seconds$labels"} = $success->{age} if $success;
		if (@runs)
		{
			my $ms = $runs[-1]{ms} < 0 ? 0 : $runs[-1]{ms};
			$values{"hubspot_sync_last_run_duration_seconds$labels"} = $ms / 1000;
		}
		$values{"hubspot_sync_day_runs$labels"} = @runs;
		$values{"hubspot_sync_day_failed_runs$labels"} = grep { $_->{status} eq 'failed' } @runs;
		$values{"hubspot_sync_day_rate_limited$labels"} = 0;
		$values{"hubspot_sync_day_$_$labels"} = 0 foreach qw(records_processed records_failed requests retries);
		foreach my $run (@runs)
		{
			$values{"hubspot_sync_day_$_$labels"} += $run->{$_} foreach qw(records_processed records_failed requests retries);
			$values{"hubspot_sync_day_rate_limited$labels"} += $run->{error_details}{rate_limited} // 0;
		}
	}
	foreach my $bucket (qw(burst search))
	{
		$values{"hubspot_sync_bucket_${_}{bucket=$bucket,connection=default}"} = 100_000 foreach qw(capacity available);
		$values{"hubspot_sync_bucket_held_seconds{bucket=$bucket,connection=default}"} = 0;
	}
	$values{'hubspot_sync_token_days_left{connection=default}'} = 2.5;
	$values{'hubspot_sync_connection_open_errors{connection=default}'} = 4;
	$values{'hubspot_sync_connection_runs_under_way{connection=default}'} = 0;
	$values{'hubspot_sync_connection_alerts{connection=default}'} = 5;
	$values{"hubspot_sync_alert_active{alert=$_->[0],connection=default,severity=$_->[1],sync_type=$_->[2]}"} = 1
	  foreach [ 'stale', 'critical', 'contacts' ], [ 'stale', 'critical', 'owners' ], [ 'failed_records', 'warning', 'deals' ],
	  [ 'failed_run', 'critical', 'owners' ], [ 'token', 'warning', '' ];
	return %values;
}

# Time passes while one looks; the buckets fill again.
sub is_near
{
	my ($got, $expected, $name) = @_;
	my $slack = $name =~ /age_seconds/ ? 30 : $name =~ /days_left/ ? 0.01 : $name =~ /available/ ? 5 : 1e-6;
	return defined $got && abs($got - $expected) <= $slack;
}

my %declared;
subtest 'the metrics' => sub {
	my ($values, $described, $errors) = fetch();
	is($errors, 0, 'nothing went wrong') or diag($log);
	my %expected = expected();
	is_deeply([ sort keys %$values ], [ sort keys %expected ], 'all are there, and no other');
	foreach my $name (sort keys %expected)
	{
		ok(is_near($values->{$name}, $expected{$name}, $name), $name)
		  or diag('got ' . ($values->{$name} // 'nothing') . ", expected $expected{$name}");
	}
	%declared = %$described;
	is($expected{'hubspot_sync_day_rate_limited{connection=default,sync_type=contacts}'}, 2, 'answers with 429 were among them');
	is($expected{'hubspot_sync_day_retries{connection=default,sync_type=contacts}'}, 3, '... and retries');
	unlike(join("\n", keys %$values, values %$described), qr/\@|\Q@{[ $sim->token ]}\E/, 'neither e-mail nor token is');
	# Newer ones find that they have no configuration file and that queries.yaml is of the old kind.
	unlike($log, qr/level=(?:warn|error)(?!.*(?:Error loading config|is DEPRECATED))/i, 'the exporter has no other complaints');
};

subtest 'they follow what happens' => sub {
	$sim->clear_faults;
	is($server->run_sync($_)->{status}, 'success', "a run of $_") foreach qw(contacts owners);
	$server->sql(q{UPDATE sync_connections SET token_expires_at = NULL;
		UPDATE sync_types SET enabled = false WHERE sync_type = 'deals'});
	my ($values) = fetch();
	is(scalar(grep { /^hubspot_sync_alert/ || /token/ || /sync_type=deals/ } keys %$values), 0,
		'alerts, token and disabled types are gone');
	is($values->{'hubspot_sync_connection_alerts{connection=default}'}, 0, '... and counted no more');
	cmp_ok($values->{'hubspot_sync_last_success_age_seconds{connection=default,sync_type=contacts}'}, '<', 60,
		'... and the latest success is young');

	$sim->fault(path => '/contacts', times => 0, action => { kind => 'rate_limit', policy => 'TEN_SECONDLY_ROLLING', retry_after => 50 });
	my $id = $server->trigger('contacts', 'full');
	wait_until('HubSpot has asked for silence',
		sub { $server->sql('SELECT count(held_until) FROM get_hubspot_rate_limits()') > 0 });
	($values) = fetch();
	is($values->{'hubspot_sync_connection_runs_under_way{connection=default}'}, 1, 'a run is under way');
	is($values->{'hubspot_sync_bucket_available{bucket=burst,connection=default}'}, 0, '... and may send nothing');
	cmp_ok($values->{'hubspot_sync_bucket_held_seconds{bucket=burst,connection=default}'}, '>', 10, '... for a while');
	$server->sql("SELECT cancel_hubspot_sync('$id')");
	$server->wait_for($id);
};

subtest 'the documents agree' => sub {
	my %text = map { $_ => slurp_file("$folder/$_") } qw(README.md alerts.yml);
	foreach my $file (sort keys %text)
	{
		my %named = map { $_ => 1 } $text{$file} =~ /\b(hubspot_sync_(?:last|day|bucket|token|connection|alert)_\w+)/g;
		is_deeply([ grep { !$declared{$_} } sort keys %named ], [], "$file names no metric that is not there");
		is_deeply([ grep { !$named{$_} } sort keys %declared ], [], '... and every one that is') if $file eq 'README.md';
	}
	my @rules = $text{'alerts.yml'} =~ /- alert: (\w+)/g;
	is_deeply([ grep { $text{'README.md'} !~ /`$_`/ } @rules ], [], 'README.md has every alert');
	is_deeply([ sort keys %{ { map { $_ => 1 } @rules } } ], [ sort keys %{ { map { $_ => 1 } (map { $_->[0] } @fires), keys %ratio } } ], '... and so has this test');
};

# One case for promtool: series, and whether an alert is there at a time.
sub rule_test
{
	my ($alert, $series, $at, $labels) = @_;
	my $text = "  - interval: 1m\n    input_series:\n";
	$text .= "      - series: '$_->[0]'\n        values: '$_->[1]'\n" foreach @$series;
	$text .= "    alert_rule_test:\n      - eval_time: $at\n        alertname: $alert\n        exp_alerts:";
	return $text . (defined $labels ? "\n          - exp_labels: {$labels}\n" : " []\n");
}

subtest 'the rules' => sub {
	plan skip_all => "$promtool is not there: install the package prometheus" unless -x $promtool;
	command_ok([ $promtool, 'check', 'rules', "$folder/alerts.yml" ], 'Prometheus accepts them');

	# promtool wants the annotations as well; they are no part of the test.
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $rules = slurp_file("$folder/alerts.yml") =~ s/^ +annotations:\n(?: {10,}.*\n)+//mgr;
	append_to_file("$dir/rules.yml", $rules);
	my $tests = "rule_files: [rules.yml]\ntests:\n";
	foreach my $case (@fires)
	{
		my ($alert, $series, $values, $at, $labels, @calm) = @$case;
		$tests .= rule_test($alert, [ [ $series, $values ] ], $at, $labels);
		$tests .= rule_test($alert, [ [ $series, $values ] ], $_) foreach @calm;
	}
	my $labels = '{connection="default", sync_type="deals"}';
	foreach my $alert (sort keys %ratio)
	{
		my ($part, $whole, $count, $fires, $calm) = @{ $ratio{$alert} };
		my @of = map { [ [ "hubspot_sync_day_$part$labels", $count . 'x10' ], [ "hubspot_sync_day_$whole$labels", $_ . 'x10' ] ] } $fires, $calm;
		$tests .= rule_test($alert, $of[0], '5m', 'connection: default, sync_type: deals, severity: warning');
		$tests .= rule_test($alert, $of[1], '5m');
	}
	append_to_file("$dir/tests.yml", $tests);
	my ($out, $err) = ('', '');
	my $fine = IPC::Run::run([ $promtool, 'test', 'rules', "$dir/tests.yml" ], '>', \$out, '2>', \$err);
	ok($fine, 'each alert fires when it has to, and not before') or diag("$out$err");
};

done_testing();
