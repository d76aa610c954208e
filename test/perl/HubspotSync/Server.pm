package HubspotSync::Server;

=pod

=head1 NAME

HubspotSync::Server - a PostgreSQL server with the extension, for one test

=head1 SYNOPSIS

  my $sim = HubspotSync::Simulator->start(contacts => 250);
  my $server = HubspotSync::Server->new('pull', simulator => $sim);
  my $run = $server->run_sync('contacts', 'full');
  is($run->{status}, 'success');
  is($server->sql('SELECT count(*) FROM contacts'), 250);

=head1 DESCRIPTION

A PostgreSQL::Test::Cluster node that knows where the simulator is. It ends
with the test. Text is Perl text in both directions.

=cut

use strict;
use warnings;

use Carp;
use Encode qw(decode encode);
use HubspotSync::Simulator;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# All servers made, to be stopped at the end.
my @nodes;

my %default_conf = (
	'hubspot_sync.retry_delay' => '20ms',
	'hubspot_sync.burst_limit' => 100000,
	'hubspot_sync.search_limit' => 100000,
	'max_worker_processes' => 16,
	'log_min_messages' => 'info');

=pod

=head1 METHODS

=over

=item new($name, %options)

Creates a server, starts it and creates the extension. Options:

  simulator     where requests go; without one there is neither URL nor token
  conf          hash of settings that override the defaults; undef: left out
  preload       true: the library is preloaded
  init          hash of options for PostgreSQL::Test::Cluster->init
  extension     false: CREATE EXTENSION is left to the test
  stage         the HubspotSync::Stage whose programs and scripts are used

=cut

sub new
{
	my ($class, $name, %options) = @_;
	_speak_utf8();
	my $node = PostgreSQL::Test::Cluster->new($name,
		$options{stage} ? (install_path => $options{stage}->install_path) : ());
	push @nodes, [ $$, $node ];
	my $self = bless {
		node => $node,
		simulator => $options{simulator},
		json => JSON::PP->new->allow_nonref,
	}, $class;

	$node->init(extra => [ '-E', 'UTF8', '--no-locale' ], %{ $options{init} || {} });
	$node->append_conf('postgresql.conf', _conf($self->_settings(%options)));
	$node->start;
	$self->sql('CREATE EXTENSION hubspot_sync') if $options{extension} // 1;
	return $self;
}

# A server that has crashed is one failed test, no reason to give up on all
# others, which PostgreSQL's own END block would do.
END
{
	local $?;
	stop_own();
}

# Ends the servers that this process has made.
sub stop_own
{
	foreach my $made (@nodes)
	{
		my ($owner, $node) = @$made;
		$node->stop('immediate', fail_ok => 1) if $owner == $$;
	}
	return;
}

# What is printed goes through PostgreSQL's handles, which know bytes only.
sub _speak_utf8
{
	foreach my $handle (Test::More->builder->output, Test::More->builder->failure_output)
	{
		my $tied = tied *$handle;
		my @real = $tied && UNIVERSAL::isa($tied, 'ARRAY') ? @$tied : ();
		foreach my $fh (@real)
		{
			binmode $fh, ':encoding(UTF-8)' unless grep { /utf-?8/i } PerlIO::get_layers($fh);
		}
	}
	return;
}

sub _settings
{
	my ($self, %options) = @_;
	my %conf = (%default_conf, 'hubspot_sync.api_version' => HubspotSync::Simulator->api_version);
	if (my $simulator = $self->{simulator})
	{
		$self->token($simulator->token);
		$conf{'hubspot_sync.api_url'} = $simulator->url;
		$conf{'hubspot_sync.access_token_file'} = $self->token_file;
	}
	$conf{shared_preload_libraries} = 'hubspot_sync' if $options{preload};
	return (%conf, %{ $options{conf} || {} });
}

sub _conf
{
	my (%settings) = @_;
	my $text = '';
	foreach my $name (sort keys %settings)
	{
		next unless defined $settings{$name};
		$text .= "$name = '" . ($settings{$name} =~ s/'/''/gr) . "'\n";
	}
	return $text;
}

=pod

=item node()

The PostgreSQL::Test::Cluster object.

=item simulator()

=item token_file()

=item token($text)

Writes the access token, readable by the server only; undef removes the file.

=item reload(%settings)

Changes the configuration of the running server and waits until new sessions
see it. A setting with undef goes back to its default.

=item in($database)

The same server, whose statements go to another database than postgres.

=item database()

The name of the database that statements go to.

=item standby($name, %settings)

A streaming standby of this server, which must have been made with
init => { allows_streaming => 1 }; it is started with the same configuration
and these changes.

=cut

sub node { return $_[0]{node}; }
sub simulator { return $_[0]{simulator}; }
sub token_file { return $_[0]{node}->basedir . '/token'; }

sub token
{
	my ($self, $text) = @_;
	my $file = $self->token_file;
	if (!defined $text)
	{
		unlink $file;
		return;
	}
	my $umask = umask 0077;
	open my $out, '>', "$file.new" or croak "cannot write $file.new: $!";
	umask $umask;
	print $out "$text\n";
	close $out or croak "cannot write $file.new: $!";
	rename "$file.new", $file or croak "cannot rename $file.new: $!";
	return;
}

sub reload
{
	my ($self, %settings) = @_;
	my $node = $self->{node};
	my $before = $self->sql('SELECT pg_conf_load_time()');
	foreach my $name (sort keys %settings)
	{
		if (defined $settings{$name})
		{
			$node->append_conf('postgresql.conf', _conf($name => $settings{$name}));
		}
		else
		{
			$node->adjust_conf('postgresql.conf', $name, undef);
		}
	}
	$node->reload;
	$self->poll_until("SELECT pg_conf_load_time() > '$before'");
	return;
}

sub in
{
	my ($self, $database) = @_;
	return bless { %$self, database => $database }, ref $self;
}

sub database { return $_[0]{database} // 'postgres'; }

sub standby
{
	my ($self, $name, %settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	push @nodes, [ $$, $node ];
	$self->{node}->backup("for_$name");
	$node->init_from_backup($self->{node}, "for_$name", has_streaming => 1);
	$node->append_conf('postgresql.conf', _conf(%settings));
	$node->start;
	return bless { %$self, node => $node }, ref $self;
}

=pod

=item sql($statements, %options)

Executes SQL and returns what psql prints, unaligned and without headers; dies
if it fails. Options: database, user.

=item sql_json($query, %options)

The rows of a query as hashes; json and jsonb become Perl data. The option
before is for statements that come first and print nothing.

=item sql_error($statements, %options)

What psql says about statements that fail, with SQLSTATE, hint and detail; ''
if they succeed.

=item psql($statements, %options)

Returns psql's exit status, its output and its messages; dies if it takes too
long.

=cut

sub sql
{
	my ($self, $statements, %options) = @_;
	my ($status, $out, $err) = $self->psql($statements, %options);
	croak "$err\nwhile executing: $statements" if $status != 0;
	return $out;
}

sub sql_json
{
	my ($self, $query, %options) = @_;
	my $before = delete $options{before} // '';
	my $rows = $self->sql("$before; SELECT coalesce(json_agg(r), '[]') FROM ($query) r", %options);
	return @{ $self->{json}->decode($rows) };
}

sub sql_error
{
	my ($self, $statements, %options) = @_;
	my ($status, $out, $err) = $self->psql("\\set VERBOSITY verbose\n$statements", %options);
	return $status == 0 ? '' : $err;
}

sub psql
{
	my ($self, $statements, %options) = @_;
	my @extra = defined $options{user} ? (extra_params => [ '-U', $options{user} ]) : ();
	my ($status, $out, $err) = $self->{node}->psql(
		$options{database} // $self->database,
		encode('UTF-8', $statements),
		on_error_stop => 1,
		timeout => $PostgreSQL::Test::Utils::timeout_default,
		@extra);
	return ($status, map { decode('UTF-8', $_ // '') } $out, $err);
}

=pod

=item run_sync($type, $mode, $timeframe, $connection)

CALLs run_hubspot_sync() with the arguments given and returns a hash: run_id,
status, processed, failed, and stderr with the messages. Where the call is
refused, status is undef and stderr has the reason.

=item trigger($type, $mode, $timeframe, $connection)

SELECTs trigger_hubspot_sync() and returns the run's id.

=item wait_for($run_id)

Waits until the run is neither pending nor running and returns log().

=item log($run_id)

The run's row of sync_logs as a hash.

=cut

sub run_sync
{
	my ($self, @arguments) = @_;
	my $call = 'CALL run_hubspot_sync(' . _arguments(@arguments) . ')';
	my ($status, $out, $err) = $self->psql($call);
	my ($id, $end, $processed, $failed) = $status == 0 ? split /\|/, $out, -1 : ();
	return {
		run_id => $id,
		status => $end,
		processed => $processed,
		failed => $failed,
		stderr => $err,
	};
}

sub trigger
{
	my ($self, @arguments) = @_;
	return $self->sql('SELECT trigger_hubspot_sync(' . _arguments(@arguments) . ')');
}

# SQL for the arguments up to the last one given.
sub _arguments
{
	my (@arguments) = @_;
	return join ', ', map { defined $_ ? "'" . s/'/''/gr . "'" : 'NULL' } @arguments;
}

sub wait_for
{
	my ($self, $run_id) = @_;
	$self->poll_until(
		"SELECT status NOT IN ('pending', 'running') FROM sync_logs WHERE id = '$run_id'");
	return $self->log($run_id);
}

sub log
{
	my ($self, $run_id) = @_;
	my ($row) = $self->sql_json("SELECT * FROM sync_logs WHERE id = '$run_id'");
	return $row;
}

=pod

=item load_objects($type)

Loads the simulator's own records of a type into the table sim_TYPE (id text,
archived boolean, record jsonb), for comparison in SQL.

=cut

sub load_objects
{
	my ($self, $type) = @_;
	my $file = $self->{node}->basedir . "/sim_$type.jsonl";
	open my $out, '>', $file or croak "cannot write $file: $!";
	print $out $self->{simulator}->objects_text($type);
	close $out or croak "cannot write $file: $!";
	$self->sql(<<~SQL);
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS sim_$type;
		CREATE TABLE sim_$type (
			id text GENERATED ALWAYS AS (record ->> 'id') STORED PRIMARY KEY,
			archived boolean GENERATED ALWAYS AS ((record -> 'archived')::boolean) STORED,
			record jsonb);
		COPY sim_$type (record) FROM '$file' (FORMAT csv, QUOTE e'\\x01', DELIMITER e'\\x02');
		SQL
	unlink $file;
	return;
}

=pod

=item session(%options)

A PostgreSQL::Test::BackgroundPsql in the background that does not stop at
errors; options are those of background_psql, and database.

=item poll_until($query, $expected)

Repeats a query until it returns the value (t by default); dies at the
timeout.

=cut

sub session
{
	my ($self, %options) = @_;
	my $database = delete $options{database} // $self->database;
	my $session = $self->{node}->background_psql($database, on_error_stop => 0, %options);
	$session->set_query_timer_restart if $session->can('set_query_timer_restart');
	return $session;
}

sub poll_until
{
	my ($self, $query, $expected) = @_;
	$self->{node}->poll_query_until($self->database, encode('UTF-8', $query), $expected // 't')
	  or croak "timed out waiting for: $query";
	return 1;
}

=pod

=item log_position()

Where the server's log ends now.

=item log_text($position)

The log from there on.

=item log_contains($regex, $position)

=item wait_for_log($regex, $position)

=item stop(@mode), start(), restart()

Of the server.

=back

=cut

sub log_position
{
	my ($self) = @_;
	return -s $self->{node}->logfile;
}

sub log_text
{
	my ($self, $position) = @_;
	return decode('UTF-8', slurp_file($self->{node}->logfile, $position // 0));
}

sub log_contains
{
	my ($self, $regex, $position) = @_;
	return $self->log_text($position) =~ $regex;
}

sub wait_for_log
{
	my ($self, $regex, $position) = @_;
	return $self->{node}->wait_for_log($regex, $position // 0);
}

sub start { return $_[0]{node}->start; }
sub restart { return $_[0]{node}->restart; }

sub stop
{
	my ($self, @mode) = @_;
	return $self->{node}->stop(@mode);
}

1;
