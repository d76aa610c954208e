package HubspotSync::Simulator;

=pod

=head1 NAME

HubspotSync::Simulator - a HubSpot of the test's own

=head1 SYNOPSIS

  my $sim = HubspotSync::Simulator->start(contacts => 250, latency_ms => 5);
  $sim->fault(path => '/contacts', nth => 3, action => { kind => 'html' });
  $sim->patch('contacts', $id, { firstname => 'Zoe' });
  is(scalar $sim->requests(path => qr{/contacts$}), 3);

=head1 DESCRIPTION

Starts test/simulator/hubspot_simulator.py as a child and speaks its control
API, which test/simulator/README.md describes. The child ends with the object,
with the test, and when the test is killed. Text is Perl text in both
directions. Only modules that come with Perl are needed.

=cut

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use HTTP::Tiny;
use IPC::Open3;
use JSON::PP;
use MIME::Base64 qw(encode_base64);

my $program = abs_path(dirname(__FILE__) . '/../../simulator')
  . '/hubspot_simulator.py';
my $agent = __PACKAGE__;
my $start_timeout = 60;

# Whatever lives when the test ends is stopped, in any order of destruction.
my %running;

=pod

=head1 LIFE

=over

=item start(%options)

Options are those of the command line with underscores for hyphens: data sizes
(contacts, deals, owners, companies, ..., wide), seed, token, latency_ms,
limits ('on' or 'off'), search_lag_ms, gzip, certificate and key,
other_certificate, port, control_port. One whose value is undef is a switch.
Dies if the simulator does not come up.

=cut

sub start
{
	my ($class, %options) = @_;
	my $self = bless {
		token => $options{token} // 'test-token',
		owner => $$,
		json => JSON::PP->new->utf8->allow_nonref,
	}, $class;

	my @command = ($ENV{PYTHON} || '/usr/bin/python3', $program);
	foreach my $name (sort keys %options)
	{
		push @command, '--' . ($name =~ tr/_/-/r);
		push @command, $options{$name} if defined $options{$name};
	}
	$self->_launch(@command);
	$self->{http} = HTTP::Tiny->new(
		agent => $agent,
		timeout => 120,
		keep_alive => 0,
		proxy => undef,
		http_proxy => undef,
		https_proxy => undef,
		verify_SSL => 0);
	return $self;
}

sub _launch
{
	my ($self, @command) = @_;
	local $ENV{PYTHONDONTWRITEBYTECODE} = 1;
	open my $null, '<', '/dev/null' or croak "cannot read /dev/null: $!";
	$self->{pid} =
	  open3('<&' . fileno($null), my $out, '>&' . fileno(STDERR), @command);
	$running{ $self->{pid} } = $self->{owner};
	$self->{out} = $out;

	my $line;
	eval {
		local $SIG{ALRM} = sub { die "timeout\n" };
		alarm $start_timeout;
		$line = <$out>;
		alarm 0;
	};
	alarm 0;
	if (($line // '') !~ /^listening on (https?:\S+)(?: control (\S+))?$/)
	{
		$self->stop;
		croak 'the simulator did not start: ' . ($line // ($@ || 'no output'));
	}
	$self->{url} = $1;
	$self->{control_url} = $2 // $1;
	return;
}

=pod

=item stop()

Ends the simulator; clients see their connections closed.

=cut

sub stop
{
	my ($self) = @_;
	_end(delete $self->{pid});
	close delete $self->{out} if $self->{out};
	return;
}

# Ends a child of this process; one that was forked keeps its hands off.
sub _end
{
	my ($pid) = @_;
	return unless defined $pid && ($running{$pid} // 0) == $$;
	delete $running{$pid};
	local ($?, $!, $@);
	kill 'TERM', $pid;
	waitpid $pid, 0;
	return;
}

sub DESTROY
{
	my ($self) = @_;
	_end($self->{pid});
	return;
}

END
{
	stop_own();
}

# Ends the simulators that this process has started.
sub stop_own
{
	_end($_) foreach keys %running;
	return;
}

=pod

=item api_version()

The version of HubSpot's API that tests use: 2026-09, or what the environment
variable HUBSPOT_SYNC_API_VERSION says.

=item url()

Where it listens, for hubspot_sync.api_url.

=item control_url()

Where it listens without TLS if there is a control port; else the same.

=item port()

=item token()

The access token that it accepts.

=item pid()

=cut

sub api_version { return $ENV{HUBSPOT_SYNC_API_VERSION} || '2026-09'; }
sub url { return $_[0]{url}; }
sub control_url { return $_[0]{control_url}; }
sub port { return ($_[0]{url} =~ /:(\d+)$/)[0]; }
sub token { return $_[0]{token}; }
sub pid { return $_[0]{pid}; }

=pod

=back

=head1 CONTROL

=over

=item control($method, $path, $body, %expect)

A request to /_control/$path with $body as its JSON; returns the decoded
answer. Dies on anything but success, unless status => $code announces
another one.

=cut

sub control
{
	my ($self, $method, $path, $body, %expect) = @_;
	my $answer = $self->_send($method, "/_control/$path", $body);
	my $wanted = $expect{status};
	my $fine = defined $wanted ? $answer->{status} == $wanted : $answer->{success};
	croak "$method /_control/$path: $answer->{status} $answer->{content}" unless $fine;
	return $self->_decoded($answer);
}

sub _send
{
	my ($self, $method, $path, $body, %headers) = @_;
	my %request = (headers => \%headers);
	if (defined $body)
	{
		$request{content} = $self->{json}->encode($body);
		$headers{'Content-Type'} = 'application/json';
	}
	return $self->{http}->request($method, $self->{control_url} . $path, \%request);
}

sub _decoded
{
	my ($self, $answer) = @_;
	return length $answer->{content} ? $self->{json}->decode($answer->{content}) : undef;
}

=pod

=item state()

Counts of records, requests and open connections, the clock, the settings,
failed scripts.

=item reset(%sizes)

Fresh data; faults, scripts and journal are forgotten, settings stay.

=item config(%settings)

Changes settings (limits and gzip are booleans: pass \1 or \0) and returns all.

=item fault(%fault)

Installs a fault: method, path, path_regex, body, body_regex, nth, times (0:
always) and action. A string for action stands for { kind => $action }.

=item faults()

Those that are installed, each with the number of requests that it has counted
(seen) and of those that it was meant for (hits).

=item clear_faults()

=item script(%script)

Operations to run before or after a request; see the simulator's README.md.

=cut

sub state { return $_[0]->control('GET', 'state'); }
sub faults { return @{ $_[0]->control('GET', 'faults') }; }
sub clear_faults { return $_[0]->control('DELETE', 'faults'); }

sub reset
{
	my ($self, %sizes) = @_;
	return $self->control('POST', 'reset', \%sizes);
}

sub config
{
	my ($self, %settings) = @_;
	$self->{token} = $settings{token} if defined $settings{token};
	return $self->control('POST', 'config', \%settings);
}

sub fault
{
	my ($self, %fault) = @_;
	$fault{action} = { kind => $fault{action} } unless ref $fault{action};
	return $self->control('POST', 'faults', \%fault);
}

sub script
{
	my ($self, %script) = @_;
	return $self->control('POST', 'script', \%script);
}

=pod

=back

=head1 JOURNAL

=over

=item journal()

All requests as hashes: n, at_ms, method, path, query, body, inputs (of a
batch, their number), connections (open when it came), status (undef: no answer), authorization_ok, user_agent,
fault and more. Requests of this module are left out. The setting
journal_bodies => \0 keeps bodies from being kept.

=item clear_journal()

=item sent(%filter)

How many requests there were and how many inputs their batches had, (requests,
inputs), by method, path (versions and ids stand as {version} and {id}) and
status as in requests(), without looking at bodies: for large runs. Requests
that are still without an answer are not among them.

  my ($requests, $inputs) = $sim->sent(path => qr{/contacts/batch/update$});

=item requests(%filter)

Those whose fields fit: a regular expression has to match, any other value has
to be equal; undef is equal to undef. A field of query or body is named
"query.limit" and the like. In scalar context their number.

=cut

sub journal
{
	my ($self) = @_;
	my $entries = $self->control('GET', 'journal');
	return grep { ($_->{user_agent} // '') ne $agent } @$entries;
}

sub clear_journal
{
	my ($self) = @_;
	return $self->control('DELETE', 'journal');
}

sub requests
{
	my ($self, %filter) = @_;
	my @found = $self->journal;
	foreach my $name (keys %filter)
	{
		@found = grep { _fits(_field($_, $name), $filter{$name}) } @found;
	}
	return @found;
}

sub sent
{
	my ($self, %filter) = @_;
	my ($requests, $inputs) = (0, 0);
	foreach my $row (@{ $self->control('GET', 'journal/summary') })
	{
		next if grep { !_fits($row->{$_}, $filter{$_}) } keys %filter;
		$requests += $row->{count};
		$inputs += $row->{inputs};
	}
	return ($requests, $inputs);
}

sub _field
{
	my ($value, $name) = @_;
	foreach my $part (split /\./, $name)
	{
		return undef unless ref $value eq 'HASH';
		$value = $value->{$part};
	}
	return $value;
}

sub _fits
{
	my ($value, $wanted) = @_;
	return !defined $value if !defined $wanted;
	return 0 unless defined $value;
	return $value =~ $wanted if ref $wanted eq 'Regexp';
	return $value eq $wanted;
}

=pod

=back

=head1 DATA

=over

=item objects($type, archived => 0|1)

All records of a type as they truly are, by id, with every property: id,
properties, createdAt, updatedAt, archived, archivedAt. 'owners' is a type too,
with their own fields.

=item objects_text($type, archived => 0|1)

The same as the text of one JSON document a line, undecoded: Perl's own JSON
module takes seconds for thousands of records.

=item object($type, $id)

=item object_by($type, $property, $value)

The record with this value of a unique property, archived ones too; for email
the additional ones count, in any case of letters.

=item value($type, $id, $property)

=item value_by($type, $property, $value, $wanted)

One value of such a record.

=item history($type, $property)

The true history of a property, one hash a record by id, archived and hidden
ones too: id and history, whose entries have value, timestamp (ms), sourceType
and perhaps sourceId and updatedByUserId, the oldest first.

=item history_text($type, $property)

The same as the text of one JSON document a line, undecoded.

=cut

sub objects
{
	my ($self, $type, %which) = @_;
	return $self->_lines($self->objects_text($type, %which));
}

sub objects_text
{
	my ($self, $type, %which) = @_;
	my $path = "objects/$type";
	$path .= '?archived=' . ($which{archived} ? 'true' : 'false') if defined $which{archived};
	return $self->_text($path);
}

sub _text
{
	my ($self, $path) = @_;
	my $answer = $self->_send('GET', "/_control/$path");
	croak "GET /_control/$path: $answer->{status} $answer->{content}" unless $answer->{success};
	return $answer->{content};
}

sub _lines
{
	my ($self, $text) = @_;
	return map { $self->{json}->decode($_) } split /\n/, $text;
}

sub object
{
	my ($self, $type, $id) = @_;
	return $self->control('GET', "objects/$type/$id");
}

sub object_by
{
	my ($self, $type, $property, $value) = @_;
	my $query = 'idProperty=' . _escape($property);
	return $self->control('GET', "objects/$type/" . _escape($value) . "?$query");
}

sub value
{
	my ($self, $type, $id, $property) = @_;
	return $self->object($type, $id)->{properties}{$property};
}

sub value_by
{
	my ($self, $type, $property, $value, $wanted) = @_;
	return $self->object_by($type, $property, $value)->{properties}{$wanted};
}

sub history
{
	my ($self, $type, $property) = @_;
	return $self->_lines($self->history_text($type, $property));
}

sub history_text
{
	my ($self, $type, $property) = @_;
	return $self->_text("history/$type/" . _escape($property));
}

sub _escape
{
	my ($text) = @_;
	utf8::encode($text);
	return $text =~ s/([^A-Za-z0-9_.~-])/sprintf '%%%02X', ord $1/ger;
}

=pod

=item create($type, \%properties, ...)

Creates a record for each hash and returns their ids; a hash with the keys
id, properties, createdate or lastmodifieddate stands for those. 'owners' is a
type too; its hashes are the owner's own fields.

=item patch($type, $id, \%properties)

=item archive($type, $id), restore($type, $id), purge($type, $id)

=item merge($type, $primary, $other, %options)

=item touch($type, %what)

Gives many records one modified date: count or ids, at_ms, properties. Returns
how many.

=item raw($type, $id, $bytes)

Delivers these bytes in place of the record's JSON; undef ends it.

=item hide($type, @ids)

Keeps records from the token, as narrower permissions do: they exist, but only
objects, history and state show them. Returns how many are hidden now.

=item hide_every($type, $n)

Hides every $n-th record of those that exist, by id; returns how many are
hidden now.

=item hidden($type)

The ids of the hidden records.

=item unhide($type)

Shows all records again.

=item define_properties($type, @definitions)

Defines properties, or changes the definitions of known ones; a definition is
a hash with a name and, unless it is plain text, type, fieldType, label and
more, or just a name. Returns the names.

=item archive_property($type, $name), restore_property($type, $name),
remove_property($type, $name)

As somebody does it in HubSpot; one that was removed has never been there.

=item definitions($type)

All definitions as the API shows them, by name, archived ones too.

=item define_groups($type, @groups), remove_group($type, $name)

Property groups; a group is a hash with name and label, or just a name.

=item groups($type)

The groups by name.

=item require_property($type, %rule)

A rule of the account's admins that writes of version 2026-09 are held to:
require, a list of names, and when, a hash of the values that make them
required; without it they always are.

=item drop_rules($type)

=back

=cut

sub create
{
	my ($self, $type, @records) = @_;
	return @{ $self->control('POST', 'owners', { owners => \@records })->{ids} }
	  if $type eq 'owners';

	my @fields = map { _is_record($_) ? $_ : { properties => $_ } } @records;
	return @{ $self->control('POST', "objects/$type", { records => \@fields })->{ids} };
}

sub _is_record
{
	my ($hash) = @_;
	return ref $hash->{properties} || exists $hash->{id};
}

sub patch
{
	my ($self, $type, $id, $properties) = @_;
	return $self->control('PATCH', "owners/$id", $properties) if $type eq 'owners';
	return $self->control('PATCH', "objects/$type/$id", { properties => $properties });
}

sub archive { return _step('archive', @_); }
sub restore { return _step('restore', @_); }
sub purge { return _step('purge', @_); }

sub _step
{
	my ($operation, $self, $type, $id) = @_;
	my $folder = $type eq 'owners' ? '' : 'objects/';
	return $self->control('POST', "$folder$type/$id/$operation");
}

sub merge
{
	my ($self, $type, $primary, $other, %options) = @_;
	return $self->control('POST', "objects/$type/$primary/merge/$other", \%options);
}

sub touch
{
	my ($self, $type, %what) = @_;
	return $self->control('POST', "touch/$type", \%what)->{touched};
}

sub raw
{
	my ($self, $type, $id, $bytes) = @_;
	return $self->control('DELETE', "raw/$type/$id") unless defined $bytes;
	return $self->control('POST', "raw/$type/$id", { base64 => encode_base64($bytes, '') });
}

sub hide
{
	my ($self, $type, @ids) = @_;
	return $self->control('POST', "hide/$type", { ids => \@ids })->{hidden};
}

sub hide_every
{
	my ($self, $type, $n) = @_;
	return $self->control('POST', "hide/$type", { every => $n + 0 })->{hidden};
}

sub hidden
{
	my ($self, $type) = @_;
	return @{ $self->control('GET', "hide/$type")->{ids} };
}

sub unhide
{
	my ($self, $type) = @_;
	return $self->control('DELETE', "hide/$type");
}

sub define_properties
{
	my ($self, $type, @definitions) = @_;
	my @fields = map { ref $_ ? $_ : { name => $_ } } @definitions;
	return @{ $self->control('POST', "properties/$type", { properties => \@fields })->{names} };
}

sub archive_property { return _property_step('POST', '/archive', @_); }
sub restore_property { return _property_step('POST', '/restore', @_); }
sub remove_property { return _property_step('DELETE', '', @_); }

sub _property_step
{
	my ($method, $step, $self, $type, $name) = @_;
	return $self->control($method, "properties/$type/" . _escape($name) . $step);
}

sub definitions
{
	my ($self, $type) = @_;
	return { map { $_->{name} => $_ } @{ $self->control('GET', "properties/$type") } };
}

sub define_groups
{
	my ($self, $type, @groups) = @_;
	my @fields = map { ref $_ ? $_ : { name => $_ } } @groups;
	return @{ $self->control('POST', "groups/$type", { groups => \@fields })->{names} };
}

sub remove_group
{
	my ($self, $type, $name) = @_;
	return $self->control('DELETE', "groups/$type/" . _escape($name));
}

sub groups
{
	my ($self, $type) = @_;
	return { map { $_->{name} => $_ } @{ $self->control('GET', "groups/$type") } };
}

sub require_property
{
	my ($self, $type, %rule) = @_;
	return $self->control('POST', "rules/$type", \%rule);
}

sub drop_rules
{
	my ($self, $type) = @_;
	return $self->control('DELETE', "rules/$type");
}

1;
