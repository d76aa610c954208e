# Whatever HubSpot or the way to it does wrong, a run either repeats the
# request and stores everything, or ends failed, says why and what to do, keeps
# its checkpoint, and the next run continues from it; and the access token goes
# nowhere but to the host it is meant for.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use IO::Socket::INET;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 350,
	LIVE_PAGES => 4,
	RETRIES => 3,
};

# A token that no other text contains.
my $token = 'pat-eu1-5ec4e701-7a11-4e57-8e11-c0ffee0dd1e5';
my $sim = HubspotSync::Simulator->start(
	contacts => CONTACTS,
	deals => 5,
	owners => 3,
	token => $token);
my $server = HubspotSync::Server->new(
	'remote_errors',
	simulator => $sim,
	conf => {
		'hubspot_sync.max_retries' => RETRIES,
		'hubspot_sync.max_response_size' => '1MB',
		'log_min_messages' => 'debug1',
		'log_error_verbosity' => 'verbose',
		'log_statement' => 'all',
		'statement_timeout' => '60s',
	});

my $contacts = '/crm/objects/' . HubspotSync::Simulator->api_version . '/contacts';
my $owners = '/crm/owners/' . HubspotSync::Simulator->api_version;

# What readers of pg_stat_activity saw.
my @activity;

$server->load_objects('contacts');

# ---------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------

# Forgets everything that was stored, and what the simulator was told.
sub fresh
{
	$sim->clear_faults;
	$sim->clear_journal;
	$server->sql('TRUNCATE contacts, staff, sync_state, sync_runs, sync_errors, contact_owner_history');
	return;
}

# Every contact is stored once, with its e-mail.
sub all_stored
{
	my ($when) = @_;
	is($server->sql(<<~SQL), '0|' . CONTACTS, "all contacts are stored $when");
		SELECT count(*) FILTER (WHERE c.email IS DISTINCT FROM s.record #>> '{properties,email}'
				OR s.id IS NULL OR c.hubspot_contact_id IS NULL), count(*)
		FROM contacts c FULL JOIN sim_contacts s ON s.id = c.hubspot_contact_id
		SQL
	return;
}

# A full run of contacts that succeeds after this many retries.
sub succeeds
{
	my ($what, %expected) = @_;
	my $run = $server->run_sync('contacts', 'full');
	is($run->{status}, 'success', "$what: the run succeeds") or diag($run->{stderr});
	return {} unless defined $run->{run_id};
	my $log = $server->log($run->{run_id});
	is($log->{retries}, $expected{retries} // 1, '... after repeating the request');
	is($log->{requests}, LIVE_PAGES + 1 + $log->{retries}, '... and making no other than needed');
	is(scalar $sim->requests, $log->{requests}, '... all of which it counts');
	all_stored("after $what");
	return $log;
}

# A run that ends failed with a reason; returns its log entry.
sub fails
{
	my ($what, $type, $reason, $message) = @_;
	my $run = $server->run_sync($type, 'full');
	is($run->{status}, 'failed', "$what: the run fails");
	my $log = $server->log($run->{run_id});
	my $details = $log->{error_details};
	is($details->{reason}, $reason, "... with reason $reason") if defined $reason;
	like($details->{message}, $message, '... and says what happened');
	like($run->{stderr}, qr/WARNING:.*\Q$details->{message}\E/s, '... also to the caller')
	  or diag($run->{stderr});
	ok(defined $log->{completed_at}, '... and its end is noted');
	return $log;
}

# A fault for the second page of contacts.
sub second_page_meets
{
	my ($action, %fault) = @_;
	fresh();
	$sim->fault(path => "$contacts?", nth => 2, action => $action, %fault);
	return;
}

sub watch_activity
{
	push @activity, $server->sql('SELECT * FROM pg_stat_activity');
	return;
}

# A port where nobody listens.
sub closed_port
{
	my $socket = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1')
	  or die "no port: $!";
	return $socket->sockport;
}

# ---------------------------------------------------------------------------
# The token
# ---------------------------------------------------------------------------

subtest 'a token file that cannot be used' => sub {
	my $other = $server->node->basedir . '/other_token';
	my %problem = (
		'no file' => [ sub { $server->token(undef) }, qr/token file: .*No such file/ ],
		'a file others can read' => [ sub { chmod 0644, $server->token_file }, qr/others have access/ ],
		'a file the group can read' => [ sub { chmod 0640, $server->token_file }, qr/others have access/ ],
		'an empty file' => [ sub { $server->token('') }, qr/it is empty/ ],
		'a file of blanks' => [ sub { $server->token(" \t\n\r\n") }, qr/it is empty/ ],
		'two words' => [ sub { $server->token("Bearer $token") }, qr/more than one word/ ],
		'two lines' => [ sub { $server->token("$token\nX-Header: 1") }, qr/more than one word/ ],
		'a folder' => [ sub { $server->token(undef); mkdir $server->token_file }, qr/not a regular file/ ],
	);
	foreach my $what (sort keys %problem)
	{
		my ($prepare, $message) = @{ $problem{$what} };
		fresh();
		$prepare->();
		my $log = fails($what, 'contacts', undef, $message);
		is($log->{requests}, 0, '... without a request');
		is(scalar $sim->requests, 0, '... that HubSpot would see');
		like($log->{error_details}{hint}, qr/hubspot_sync\.access_token_file/, '... and what to do');
		rmdir $server->token_file if -d $server->token_file;
		$server->token($token);
	}
	fresh();
	$server->reload('hubspot_sync.access_token_file' => '');
	my $log = fails('no file named', 'owners', undef, qr/no HubSpot access token is configured/);
	like($log->{error_details}{hint}, qr/hubspot_sync\.access_token_file/, '... and what to do');

	rename $server->token_file, $other or die "cannot rename: $!";
	symlink $other, $server->token_file or die "cannot link: $!";
	$server->reload('hubspot_sync.access_token_file' => $server->token_file);
	is($server->run_sync('owners', 'full')->{status}, 'success', 'a link to a file is followed');
	unlink $server->token_file;
	$server->token($token);
};

subtest 'a token that HubSpot rejects, and its rotation' => sub {
	fresh();
	$sim->config(token => 'pat-eu1-rotated-in-hubspot');
	my $log = fails('401', 'contacts', 'auth', qr/refuses the access token/);
	cmp_ok($log->{requests}, '<=', 3, '... after at most 3 requests');
	is(scalar $sim->requests, $log->{requests}, '... all of which it counts');
	like($log->{error_details}{hint}, qr/new token.*hubspot_sync\.access_token_file/, '... with a hint');
	is($log->{error_details}{http_status}, 401, '... and the status');
	is($log->{error_details}{category}, 'INVALID_AUTHENTICATION', '... and the category');

	$server->token('pat-eu1-rotated-in-hubspot');
	$sim->clear_journal;
	succeeds('a new token in the file', retries => 0);
	is(scalar $sim->requests(authorization_ok => 0), 0, '... which every request carries');
	$sim->config(token => $token);
	$server->token($token);

	second_page_meets({ kind => 'status', status => 401, json => { category => 'INVALID_AUTHENTICATION' } });
	succeeds('one 401, as during a rotation');
};

subtest 'a token without the scopes' => sub {
	fresh();
	$sim->config(scopes => ['crm.objects.owners.read']);
	my $log = fails('403', 'contacts', 'scopes', qr/lacks a scope.*crm\.objects\.contacts\.read/);
	is($log->{requests}, 1, '... after one request');
	like($log->{error_details}{missing_scopes}, qr/^crm\.objects\.contacts\.read$/, '... and names it');
	is($log->{error_details}{category}, 'MISSING_SCOPES', '... with the category');
	like($log->{error_details}{hint}, qr/scope/, '... and a hint');
	is($server->run_sync('owners', 'full')->{status}, 'success', 'other types are not affected');

	$sim->config(scopes => undef);
	$sim->fault(
		path => $contacts,
		action => {
			kind => 'status',
			status => 403,
			json => {
				status => 'error',
				category => 'MISSING_SCOPES',
				errors => [
					{ message => 'x', context => { requiredGranularScopes => [ 'scope.a', 'scope.b' ] } },
					{ context => { requiredGranularScopes => ['scope.c'] } },
					{}, 'nonsense'
				]
			}
		});
	$log = fails('several', 'contacts', 'scopes', qr/scope\.a, scope\.b, scope\.c/);
	fresh();
	$sim->fault(path => $contacts, action => { kind => 'html', status => 403 });
	$log = fails('403 for another reason', 'contacts', 'refused', qr/status 403/);
};

# ---------------------------------------------------------------------------
# Limits
# ---------------------------------------------------------------------------

subtest 'rate limits are waited for' => sub {
	foreach my $policy ('TEN_SECONDLY_ROLLING', 'SECONDLY')
	{
		second_page_meets({ kind => 'rate_limit', policy => $policy }, times => 2);
		my $log = succeeds("429 $policy", retries => 2);
		is($log->{error_details}{rate_limited}, 2, '... noting how often');

		second_page_meets({ kind => 'rate_limit', policy => $policy, retry_after => 1 });
		$log = succeeds("429 $policy with Retry-After");
		is($log->{error_details}{rate_limited}, 1, '... noting it');
		my ($limited) = $sim->requests(status => 429);
		my ($again) = $sim->requests('query.after' => $limited->{query}{after}, status => 200);
		cmp_ok($again->{at_ms} - $limited->{at_ms}, '>=', 990, '... after as many seconds as it says');
		cmp_ok($again->{at_ms} - $limited->{at_ms}, '<', 30_000, '... and not much more');
	}

	second_page_meets({ kind => 'status', status => 429, headers => { 'Retry-After' => '1000' }, body => 'slow down' });
	succeeds('429 of plain text, Retry-After in milliseconds');

	second_page_meets(
		{ kind => 'rate_limit', retry_after => 'Wed, 21 Oct 2099 07:28:00 GMT' });
	succeeds('429 with a Retry-After that is no number');

	second_page_meets({ kind => 'rate_limit', retry_after => 0 }, times => 0);
	my $log = fails('429 again and again', 'contacts', 'gave_up', qr/gave up/);
	is($log->{requests}, 1 + RETRIES + 1, '... after max_retries');
	is($log->{error_details}{rate_limited}, RETRIES + 1, '... counting the answers');
};

subtest 'the daily limit ends the run' => sub {
	second_page_meets({ kind => 'rate_limit', policy => 'DAILY' }, times => 0, nth => 3);
	my $log = fails('daily limit', 'contacts', 'daily_limit', qr/daily request limit/);
	is($log->{retries}, 0, '... at once');
	like($log->{error_details}{hint}, qr/continues/, '... with a hint');
	ok(defined $log->{checkpoint}, '... and keeps its checkpoint');
	is($log->{records_processed}, 200, '... and the records before it');
	is($server->sql('SELECT count(*) FROM contacts'), 200, '... which are stored');
	is($server->sql('SELECT count(*) FROM sync_state'), 0, '... without moving the watermark');
	continues_after($log, 'the daily limit');

	fresh();
	$sim->fault(
		path => $contacts,
		action => { kind => 'status', status => 429, json => { message => 'You have reached your daily limit.' } });
	fails('daily limit without a policy', 'contacts', 'daily_limit', qr/daily request limit/);
};

# After a run that stopped before the third page the next one continues there.
sub continues_after
{
	my ($before, $what) = @_;
	my ($asked) = reverse $sim->requests(path => $contacts);
	$sim->clear_faults;
	$sim->clear_journal;
	my $run = $server->run_sync('contacts', 'full');
	is($run->{status}, 'success', "the run after $what succeeds") or diag($run->{stderr});
	my $log = $server->log($run->{run_id});
	is($log->{continues}, $before->{id}, '... and continues it');
	my @live = grep { !exists $_->{query}{archived} } $sim->requests(path => $contacts);
	is($live[0]{query}{after}, $asked->{query}{after}, '... where it stopped');
	is(scalar @live, LIVE_PAGES - 2, '... without reading the pages before');
	is($log->{records_processed}, CONTACTS - 200, '... nor their records');
	all_stored("after $what");

	$sim->clear_journal;
	$log = $server->log($server->run_sync('contacts', 'full')->{run_id});
	is($log->{continues}, undef, 'the one after that begins anew');
	is($log->{records_processed}, CONTACTS, '... and reads everything');
	return;
}

subtest 'HubSpot asks for a pause' => sub {
	second_page_meets({ kind => 'status', status => 423, json => { category => 'LOCKED' } });
	succeeds('423');
	my ($locked) = $sim->requests(status => 423);
	my ($again) = $sim->requests('query.after' => $locked->{query}{after}, status => 200);
	cmp_ok($again->{at_ms} - $locked->{at_ms}, '>=', 75, '... after at least four times the delay');

	foreach my $status (423, 477)
	{
		second_page_meets({ kind => 'status', status => $status, headers => { 'Retry-After' => '1' } });
		succeeds("$status with Retry-After");
		my ($asked) = $sim->requests(status => $status);
		($again) = $sim->requests('query.after' => $asked->{query}{after}, status => 200);
		cmp_ok($again->{at_ms} - $asked->{at_ms}, '>=', 990, '... after as many seconds as it says');
	}

	second_page_meets({ kind => 'status', status => 477 });
	succeeds('477 without Retry-After');

	second_page_meets({ kind => 'status', status => 477, headers => { 'Retry-After' => '86400' } }, nth => 3);
	my $log = fails('477 for a day', 'contacts', 'retry_later', qr/longer pause/);
	is($log->{retries}, 0, '... at once');
	ok(defined $log->{checkpoint}, '... and keeps its checkpoint');
	continues_after($log, '477');

	# 15 minutes, if these are milliseconds.
	second_page_meets({ kind => 'status', status => 503, headers => { 'Retry-After' => '900000' } }, nth => 3);
	$log = fails('503 for a long time', 'contacts', 'retry_later', qr/longer pause/);
	is($log->{retries}, 0, '... at once');
	continues_after($log, '503');
};

# ---------------------------------------------------------------------------
# Bad days
# ---------------------------------------------------------------------------

subtest 'what passes is repeated' => sub {
	my @faults = (
		(map { [ "status $_", { kind => 'status', status => $_, json => { status => 'error', message => 'x' } } ] }
			  500, 502, 503, 504, 521, 522, 523, 524, 525, 526, 599),
		[ 'HTML with status 502', { kind => 'html' } ],
		[ 'HTML with status 200', { kind => 'html', status => 200 } ],
		[ 'status 500 without body', { kind => 'status', status => 500 } ],
		[ 'a reset before the headers', { kind => 'reset' } ],
		[ 'a reset in the body', { kind => 'reset_mid_body' } ],
		[ 'a reset after the headers', { kind => 'reset_mid_body', after_bytes => 0 } ],
		[ 'truncated JSON', { kind => 'truncated_json' } ],
		[ 'an empty body', { kind => 'empty_body' } ],
		[ 'a body of blanks', { kind => 'body', raw => " \n " } ],
		[ 'a body that is no JSON', { kind => 'body', raw => 'upstream connect error' } ],
		[ 'JSON that is no object', { kind => 'body', raw => '[{"id": "1"}]' } ],
		[ 'JSON null', { kind => 'body', raw => 'null' } ],
		[ 'JSON with a tail', { kind => 'body', raw => '{"results": []}garbage' } ],
		[ 'binary', { kind => 'body', raw_base64 => '/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA==' } ],
		[ 'an object without results', { kind => 'body', raw => '{}' } ],
		[ 'an error with status 200', { kind => 'body', raw => '{"status": "error", "message": "internal error"}' } ],
		[ 'a wrong content type', { kind => 'wrong_content_type' } ],
		[ 'content type HTML', { kind => 'wrong_content_type', content_type => 'text/html;charset=utf-8' } ],
	);
	foreach my $fault (@faults)
	{
		my ($what, $action) = @$fault;
		subtest $what => sub {
			second_page_meets($action);
			succeeds($what);
		};
	}
	second_page_meets({ kind => 'reset' }, times => RETRIES);
	succeeds('as many resets as retries', retries => RETRIES);
};

subtest 'a content type is read as HTTP defines it' => sub {
	foreach my $type ('Application/JSON', 'application/json', 'application/problem+json; charset=UTF-8')
	{
		second_page_meets({ kind => 'wrong_content_type', content_type => $type });
		succeeds($type, retries => 0);
	}
};

subtest 'answers that do not come' => sub {
	$server->reload('hubspot_sync.request_timeout' => '1s');
	second_page_meets('hang');
	my $log = succeeds('a hang');
	cmp_ok($log->{duration_ms}, '<', 20_000, '... once request_timeout has passed');

	fresh();
	$sim->fault(path => $contacts, times => 0, action => 'hang');
	my $id = $server->trigger('contacts', 'full');
	$server->poll_until("SELECT query LIKE '%waiting%' FROM pg_stat_activity a JOIN sync_run_states s"
		  . " ON s.holder_pid = a.pid WHERE s.id = '$id'");
	watch_activity();
	$log = $server->wait_for($id);
	is($log->{status}, 'failed', 'nothing but hangs: the run fails');
	is($log->{error_details}{reason}, 'gave_up', '... with reason gave_up');
	like($log->{error_details}{message}, qr/time/i, '... and says that time ran out');

	second_page_meets({ kind => 'slow', bytes_per_second => 100 });
	$log = succeeds('a drip');
	cmp_ok($log->{duration_ms}, '<', 20_000, '... once request_timeout has passed');

	$server->reload('hubspot_sync.request_timeout' => '60s', 'hubspot_sync.low_speed_timeout' => '1s');
	second_page_meets({ kind => 'slow', bytes_per_second => 0.05 });
	$log = succeeds('an answer that stands still');
	cmp_ok($log->{duration_ms}, '<', 15_000, '... once low_speed_timeout has passed');
	$server->reload('hubspot_sync.low_speed_timeout' => '30s');
};

subtest 'what is refused' => sub {
	foreach my $kind ('huge_body', 'gzip_bomb')
	{
		second_page_meets({ kind => $kind, bytes => 3 << 20 }, nth => 3);
		my $log = fails($kind, 'contacts', 'too_large', qr/too large/);
		is($log->{retries}, 0, '... at once');
		like($log->{error_details}{hint}, qr/hubspot_sync\.max_response_size/, '... with a hint');
		ok(defined $log->{checkpoint}, '... and keeps its checkpoint');
		cmp_ok($log->{bytes_received}, '<', 2 << 20, '... without reading it to the end');
		continues_after($log, $kind);
	}

	my $other = HubspotSync::Simulator->start(contacts => 10, deals => 0, owners => 0, token => $token);
	foreach my $status (301, 302, 303, 307, 308)
	{
		second_page_meets({ kind => 'redirect', status => $status, location => $other->url . "$contacts?limit=100" });
		my $log = fails("redirect $status", 'contacts', 'redirect', qr/redirect/);
		is($log->{retries}, 0, '... at once');
		ok(defined $log->{checkpoint}, '... and keeps its checkpoint');
	}
	is(scalar $other->requests, 0, 'the other host got no request, and so no token');

	foreach my $status (400, 404, 405, 409, 410, 414, 415)
	{
		second_page_meets({
			kind => 'status',
			status => $status,
			json => {
				status => 'error',
				message => "Nothing works \x{1f6a7} on $status",
				category => "CATEGORY_$status",
				correlationId => "0a1b2c-$status"
			}
		});
		my $log = fails("status $status", 'contacts', 'refused', qr/refuses the request: Nothing works \x{1f6a7} on $status/);
		my $details = $log->{error_details};
		is($log->{retries}, 0, '... at once');
		is($details->{http_status}, $status, '... with the status');
		is($details->{category}, "CATEGORY_$status", '... the category');
		is($details->{hubspot_message}, "Nothing works \x{1f6a7} on $status", '... the message');
		is($details->{correlation_id}, "0a1b2c-$status", '... and the correlation id');
	}
};

subtest 'giving up' => sub {
	second_page_meets(
		{
			kind => 'status',
			status => 503,
			json => { message => 'The index is being rebuilt', category => 'UNAVAILABLE', correlationId => 'abc-123' }
		},
		nth => 3,
		times => 0);
	$sim->fault(path => "$contacts?", nth => 3, action => 'reset');
	my $log = fails('a service that stays away', 'contacts', 'gave_up', qr/gave up.*The index is being rebuilt/);
	is($log->{retries}, RETRIES, '... after max_retries');
	is($log->{error_details}{http_status}, 503, '... with the last status');
	is($log->{error_details}{category}, 'UNAVAILABLE', '... the category');
	is($log->{error_details}{hubspot_message}, 'The index is being rebuilt', '... the message');
	is($log->{error_details}{correlation_id}, 'abc-123', '... and the correlation id');
	like($log->{error_details}{hint}, qr/continues/, '... and a hint');
	ok(defined $log->{checkpoint}, '... and keeps its checkpoint');
	is($log->{records_processed}, 200, '... and the records before it');
	is($server->sql('SELECT count(*) FROM sync_state'), 0, '... without moving the watermark');
	is($server->sql("SELECT status FROM get_latest_sync_status() WHERE sync_type = 'contacts'"),
		'failed', '... and is shown as failed');
	continues_after($log, 'giving up');

	fresh();
	$sim->fault(path => $contacts, nth => 1, times => RETRIES, action => 'reset');
	$sim->fault(path => $contacts, nth => 1, times => 0, action => { kind => 'html', status => 521 });
	$log = fails('resets, then HTML', 'contacts', 'gave_up', qr/521/);
	is($log->{error_details}{http_status}, 521, '... naming the last cause');

	fresh();
	$sim->fault(path => $contacts, nth => 1, times => 1, action => { kind => 'html', status => 521 });
	$sim->fault(path => $contacts, nth => 1, times => 0, action => 'reset');
	$log = fails('HTML, then resets', 'contacts', 'gave_up', qr/reset|closed|connection/i);
	is($log->{error_details}{http_status}, undef, '... naming the last cause');

	fresh();
	$sim->fault(path => "$owners?", nth => 2, times => 0, action => 'html');
	$log = fails('owners', 'owners', 'gave_up', qr/502/);
	is($server->sql('SELECT count(*) FROM staff'), 3, '... keeping the page before');
	$sim->clear_faults;
	my $next = $server->log($server->run_sync('owners')->{run_id});
	is($next->{status}, 'success', 'the next run of owners succeeds');
	is($next->{continues}, $log->{id}, '... and continues it');
	is($next->{requests}, 1, '... with the one page that was missing');
};

subtest 'nobody answers' => sub {
	fresh();
	$server->reload('hubspot_sync.max_retries' => 1);
	my $log;
	$server->reload('hubspot_sync.api_url' => 'http://127.0.0.1:' . closed_port());
	$log = fails('a closed port', 'contacts', 'gave_up', qr/gave up.*connect/i);
	is($log->{requests}, 2, '... after max_retries');
	is($log->{error_details}{http_status}, undef, '... without a status');

	$server->reload('hubspot_sync.api_url' => 'https://hubspot.invalid');
	$log = fails('an unknown host', 'contacts', 'gave_up', qr/gave up.*(resolve|look)/i);
	like($log->{error_details}{message}, qr/hubspot\.invalid/, '... which it names');
	is($log->{requests}, 2, '... after max_retries');

	$server->reload('hubspot_sync.api_url' => $sim->url, 'hubspot_sync.max_retries' => RETRIES);
	succeeds('the right address', retries => 0);
};

# ---------------------------------------------------------------------------
# TLS
# ---------------------------------------------------------------------------

# Makes a certificate that signs itself; returns its file and its key's.
sub certificate
{
	my ($name, $subject) = @_;
	my $base = $server->node->basedir . "/$name";
	system_or_bail(
		'openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2',
		'-subj', "/CN=$name", '-addext', "subjectAltName=$subject",
		'-out', "$base.crt", '-keyout', "$base.key");
	return (certificate => "$base.crt", key => "$base.key");
}

subtest 'TLS' => sub {
	my %right = certificate('right', 'IP:127.0.0.1');
	my %wrong = certificate('wrong', 'DNS:api.hubapi.com');
	my %size = (contacts => 150, deals => 0, owners => 0, token => $token);
	my $tls = HubspotSync::Simulator->start(%size, %right);
	my $misnamed = HubspotSync::Simulator->start(%size, %wrong);

	fresh();
	$server->reload('hubspot_sync.max_retries' => 1, 'hubspot_sync.api_url' => $tls->url);
	my $log = fails('a certificate of unknown origin', 'contacts', 'gave_up', qr/certificate/i);
	is($log->{records_processed}, 0, '... without a record');

	$server->reload('hubspot_sync.ca_file' => $right{certificate});
	my $run = $server->run_sync('contacts', 'full');
	is($run->{status}, 'success', 'one that ca_file names is trusted') or diag($run->{stderr});
	is($server->sql('SELECT count(*) FROM contacts'), 150, '... and its records are stored');

	$server->reload('hubspot_sync.ca_file' => $wrong{certificate});
	$log = fails('a certificate of another authority', 'contacts', 'gave_up', qr/certificate/i);

	$server->reload('hubspot_sync.api_url' => $misnamed->url);
	$log = fails('a certificate for another host', 'contacts', 'gave_up', qr/certificate/i);

	$server->reload('hubspot_sync.ca_file' => '/nonexistent/ca.pem');
	$log = fails('a ca_file that is not there', 'contacts', undef, qr/certificate|CA/i);

	$server->reload(
		'hubspot_sync.ca_file' => '',
		'hubspot_sync.api_url' => $sim->url,
		'hubspot_sync.max_retries' => RETRIES);
};

# ---------------------------------------------------------------------------
# The token stays where it belongs
# ---------------------------------------------------------------------------

subtest 'a remote that repeats the token' => sub {
	second_page_meets({
		kind => 'status',
		status => 400,
		json => { message => "Invalid token: $token", category => "X $token", correlationId => $token }
	});
	fails('an error with the token in it', 'contacts', 'refused', qr/Invalid token/);
	watch_activity();
};

subtest 'the token is in no message' => sub {
	my @lines = grep { index($_, $token) >= 0 } split /\n/, $server->log_text;
	is(scalar @lines, 0, "none in the server's log") or diag($lines[0]);
	is($server->sql("SELECT count(*) FROM sync_runs r WHERE r::text LIKE '%$token%'"), 0, 'none in sync_runs');
	is($server->sql("SELECT count(*) FROM sync_logs r WHERE r::text LIKE '%$token%'"), 0, 'none in sync_logs');
	is($server->sql("SELECT count(*) FROM sync_errors r WHERE r::text LIKE '%$token%'"), 0, 'none in sync_errors');
	ok(scalar @activity, 'pg_stat_activity was looked at');
	ok(index("@activity", $token) < 0, '... and has none');
};

done_testing();
