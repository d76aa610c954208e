# Whatever stands between the server and HubSpot, a proxy that passes requests
# on or refuses to, a peer that says nothing, too little or something else, a
# run waits no longer than it is told to, says which of these it met, and where
# that leads to HubSpot after all, it stores everything.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Compress::Zlib qw(memGzip);
use HubspotSync::Server;
use HubspotSync::Simulator;
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Socket qw(SOMAXCONN);
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 250,
};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => 0, owners => 0);
my $server = HubspotSync::Server->new('network', simulator => $sim,
	conf => { 'hubspot_sync.max_retries' => 1 });

# ---------------------------------------------------------------------------
# Peers
# ---------------------------------------------------------------------------

# Processes that were started here.
my @peers;

# Listens on a port, and has a process of its own deal with each connection.
sub peer
{
	my ($deal) = @_;
	my $listener = IO::Socket::INET->new(Listen => SOMAXCONN, LocalAddr => '127.0.0.1') or die "no port: $!";
	my $pid = fork // die "cannot fork: $!";
	if ($pid == 0)
	{
		$SIG{CHLD} = 'IGNORE';
		$SIG{TERM} = sub { POSIX::_exit(0) };
		while (my $connection = $listener->accept)
		{
			next if fork;
			eval { $deal->($connection) };
			POSIX::_exit(0);
		}
		POSIX::_exit(0);
	}
	push @peers, $pid;
	return '127.0.0.1:' . $listener->sockport;
}

END { local $?; kill 'TERM', @peers; }

# What a client sends before an empty line.
sub head
{
	my ($connection) = @_;
	my $head = '';
	while ($head !~ /\r\n\r\n/)
	{
		sysread($connection, $head, 4096, length $head) or last;
	}
	return $head;
}

# Copies in both directions until one side has ended. A proxy is told the whole
# URL, a server its path.
sub pass_on
{
	my ($client, $server) = @_;
	my $ends = IO::Select->new($client, $server);
	while (1)
	{
		foreach my $from ($ends->can_read)
		{
			sysread($from, my $bytes, 65536) or return;
			$bytes =~ s{^([A-Z]+) http://[^/]+}{$1 } if $from == $client;
			syswrite($from == $client ? $server : $client, $bytes);
		}
	}
}

# An answer to whatever is asked.
sub answering
{
	my ($answer) = @_;
	return peer(sub {
		my ($connection) = @_;
		head($connection);
		syswrite($connection, $answer);
	});
}

# ---------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------

sub all_arrive
{
	my ($what) = @_;
	$server->sql('TRUNCATE contacts, sync_state, sync_runs, contact_owner_history');
	my $run = $server->run_sync('contacts', 'full');
	is($run->{status}, 'success', "$what: the run succeeds") or diag($run->{stderr});
	is($server->sql('SELECT count(*) FROM contacts'), CONTACTS, '... and all contacts are stored');
	return;
}

# A run that gives up, in time, with a message; returns it.
sub gives_up
{
	my ($what, $message) = @_;
	my $run = $server->run_sync('contacts', 'full');
	is($run->{status}, 'failed', "$what: the run fails");
	my $log = $server->log($run->{run_id});
	is($log->{error_details}{reason}, 'gave_up', '... with reason gave_up');
	like($log->{error_details}{message}, $message, '... and says what happened');
	is($log->{requests}, 2, '... after max_retries');
	return $log->{error_details}{message};
}

# ---------------------------------------------------------------------------
# Proxies
# ---------------------------------------------------------------------------

subtest 'a proxy that passes requests on' => sub {
	my $passed = $server->node->basedir . '/passed';
	my $proxy = peer(sub {
		my ($connection) = @_;
		append_to_file($passed, "connection\n");
		pass_on($connection, IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $sim->port));
	});
	$server->reload('hubspot_sync.proxy' => "http://$proxy", 'hubspot_sync.api_url' => $sim->url . '/');
	all_arrive('by a proxy');
	cmp_ok(scalar(split /\n/, slurp_file($passed)), '>=', 1, '... which has passed them on');
	$server->reload('hubspot_sync.proxy' => undef, 'hubspot_sync.api_url' => $sim->url);
};

subtest 'a proxy that refuses' => sub {
	my $proxy = answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
	$server->reload('hubspot_sync.proxy' => "http://$proxy", 'hubspot_sync.api_url' => 'https://hubspot.invalid');
	gives_up('a proxy that refuses', qr/proxy "\Q$proxy\E" refused to connect with status 403/);

	$server->reload('hubspot_sync.proxy' => 'http://proxy.invalid');
	gives_up('a proxy that is not known', qr/could not resolve host name "proxy\.invalid"/);
	$server->reload('hubspot_sync.proxy' => undef, 'hubspot_sync.api_url' => $sim->url);
};

# ---------------------------------------------------------------------------
# Peers that do not do what they should
# ---------------------------------------------------------------------------

subtest 'time that runs out, and where' => sub {
	my $silent = peer(sub { 1 while sysread $_[0], my $bytes, 65536; });
	$server->reload('hubspot_sync.api_url' => "https://$silent", 'hubspot_sync.request_timeout' => '500ms');
	# Before libcurl 8 a handshake cannot be told from connecting.
	gives_up('no handshake', qr/timeout after \d\.\d s while (connecting|negotiating TLS)/);
	$server->reload('hubspot_sync.api_url' => "http://$silent");
	gives_up('no answer', qr/timeout after \d\.\d s while waiting for the answer/);

	my $slow = answering("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{");
	my $stuck = peer(sub {
		my ($connection) = @_;
		head($connection);
		syswrite($connection, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{");
		sysread $connection, my $bytes, 1;
	});
	$server->reload('hubspot_sync.api_url' => "http://$stuck", 'hubspot_sync.request_timeout' => '2s');
	gives_up('no end', qr/timeout after \d\.\d s while receiving the answer/);
	$server->reload('hubspot_sync.api_url' => "http://$slow", 'hubspot_sync.request_timeout' => '20s');
	gives_up('an end too early', qr/closed during the answer|incomplete or damaged/);

	# Nobody accepts: once its queue is full, the kernel answers nobody.
	my $full = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die "no port: $!";
	my @queue = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $full->sockport, Blocking => 0) } 1 .. 4;
	$server->reload('hubspot_sync.api_url' => 'http://127.0.0.1:' . $full->sockport, 'hubspot_sync.request_timeout' => '500ms');
	gives_up('no connection', qr/timeout after \d\.\d s while connecting/);
	$server->reload('hubspot_sync.api_url' => $sim->url, 'hubspot_sync.request_timeout' => undef);
};

subtest 'peers that say something else' => sub {
	my $gone = peer(sub { sysread $_[0], my $bytes, 1; });
	$server->reload('hubspot_sync.api_url' => "https://$gone");
	gives_up('a peer that leaves during the handshake', qr/closed before the answer|TLS/);

	$server->reload('hubspot_sync.api_url' => 'http://' . answering("SSH-2.0-OpenSSH_9.2\r\n"));
	gives_up('another protocol', qr/HTTP request failed: .*HTTP/);

	my $damaged = substr memGzip('{"results":[]}' x 100), 0, -20;
	$server->reload('hubspot_sync.api_url' => 'http://' . answering(
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: "
		  . length($damaged) . "\r\n\r\n$damaged"));
	gives_up('a compressed answer that is cut off', qr/not valid JSON|incomplete or damaged/);

	$server->reload('hubspot_sync.api_url' => 'http://' . answering(
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip."));
	gives_up('an answer that is not compressed', qr/incomplete or damaged/);
	$server->reload('hubspot_sync.api_url' => $sim->url);
	all_arrive('the right address');
};

# ---------------------------------------------------------------------------
# Documents that HubSpot does not send, but may
# ---------------------------------------------------------------------------

subtest 'values in another guise' => sub {
	my @ids = sort { $a <=> $b } map { $_->{id} } $sim->objects('contacts');
	my %said = (
		'12.50' => '12.50', '-1.5E+3' => '-1500', '123456789012345678901234567890' => '123456789012345678901234567890',
		'"\uD800 and \uDBFF"' => "\x{fffd} and \x{fffd}", '"\uD83D\uDE00"' => "\x{1f600}", '"a\u0000b"' => "a\x{fffd}b",
		'true' => 'true', '"\b\f\t"' => "\b\f\t");
	my %id_of;
	foreach my $value (sort keys %said)
	{
		my $id = $id_of{$value} = shift @ids;
		$sim->raw('contacts', $id, qq({"id":$id,"properties":{"city":$value},"createdAt":1767225600000,)
			  . qq("updatedAt":"2026-01-02T03:04:05.678+05:30","archived":"false"}));
	}
	$server->sql(q{UPDATE sync_types SET properties = '{city}' WHERE sync_type = 'contacts'});
	all_arrive('odd values');
	foreach my $value (sort keys %said)
	{
		is($server->sql("SELECT properties ->> 'city' FROM contacts WHERE hubspot_contact_id = '$id_of{$value}'"),
			$said{$value}, "city is $value");
	}
	is($server->sql("SELECT DISTINCT hubspot_updated_at AT TIME ZONE 'UTC' FROM contacts WHERE hubspot_contact_id = '$id_of{true}'"),
		'2026-01-01 21:34:05.678', 'a time with a zone');
};

done_testing();
