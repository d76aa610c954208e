package HubspotSync::Scenario;

=pod

=head1 NAME

HubspotSync::Scenario - something of everything, to be played again and again

=head1 SYNOPSIS

  my $scenario = HubspotSync::Scenario->new('sweep');
  $scenario->begin;
  $scenario->simulator->fault(nth => 12, action => 'reset');
  $scenario->play;
  $scenario->heal;
  my @problems = truth_differences($scenario);    # of HubspotSync::Truth

=head1 DESCRIPTION

A server and a simulator, which are made once, and about 70 requests between
them: full pulls of three types, two of them by list and search, what changes in
a day and an incremental pull, what is merged, archived and deleted until the
next full pull, a push to an account that lacks the properties, a push after a
new level has appeared.

HubSpot's clock moves on by an hour between the stages and runs do not reach
back before their watermark, so that a watermark that is wrong loses a change.
Everything goes over TLS; the simulator's control API does not, and is not met
by faults.

=cut

use strict;
use warnings;

use Encode qw(encode);
use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use IO::Socket::INET;
use IPC::Run;
use PostgreSQL::Test::Utils;

use constant {
	CONTACTS => 210,
	DEALS => 110,
	OWNERS => 8,
	STUDENTS => 110,
	RETRIES => 2,
	TIMEOUT => '700ms',
	HOUR_MS => 3_600_000,
};

# Everything that a run leaves in the database.
my $traces = 'contacts, deals, staff, contact_owner_history, sync_runs, sync_errors, sync_state, sync_rows,
	sync_absences, sync_owner_reads, sync_properties, progress_state, progress_leftovers, progress_properties';

=pod

=head1 METHODS

=over

=item new($name, %conf)

Starts both; settings override those of the scenario.

=item server(), simulator()

=item begin()

Forgets everything: the account and the tables are as they were at first.

=item play($at_half_time)

Plays all stages. Runs may fail; sync_logs tells. Before the full pull that
would find whatever is missing then, $at_half_time is called.

=item heal(@types)

Makes the runs that a schedule would make next, of all types if none is named,
without faults.

=item heal_in_a_week()

What was archived or deleted during the pause of a full run that was continued
is found by the next full one, and only that knows that records without an id
come no more. Makes it, and returns whether there was anything of that.

=item attempt($play, $cleanup)

Calls $play, which returns what is wrong, and returns that. If it dies, calls
$cleanup, if there is one, brings server and simulator to where a play can
begin, and returns that it could not be played to its end.

=item expected_contacts()

How many contacts HubSpot has, archived ones included, if nobody but the
scenario has created any.

=item fates()

What has become of records that are no more, by id: reason, merged_into, and
whether there was a row when it happened.

=item forget()

The extension may have been dropped: what its tables have of records that are
no more, and of former owners, does not count from here on.

=item owners_known_ms()

HubSpot's time from which on it is known who owned a contact.

=item patient($on)

Whether requests may take their time, as they must where nothing goes wrong.
Otherwise each has a moment, for faults that nothing else ends.

=item careful($on)

Whether the server may crash: then statements go to it one by one, and after
each it is waited for and, where it is down, started.

=cut

sub new
{
	my ($class, $name, %conf) = @_;
	my $folder = PostgreSQL::Test::Utils::tempdir();
	my $own = _certificate($folder, 'own');
	my $other = _certificate($folder, 'other');
	my $simulator = HubspotSync::Simulator->start(contacts => CONTACTS, deals => DEALS, owners => OWNERS,
		certificate => $own, key => $own, other_certificate => $other, control_port => 0);
	my $server = HubspotSync::Server->new($name, simulator => $simulator,
		conf => {
			'hubspot_sync.ca_file' => $own,
			'hubspot_sync.max_retries' => RETRIES,
			'hubspot_sync.retry_delay' => '5ms',
			'hubspot_sync.request_timeout' => TIMEOUT,
			'hubspot_sync.max_response_size' => '2MB',
			'hubspot_sync.overlap' => 0,
			'hubspot_sync.deep_overlap' => 0,
			'hubspot_sync.progress_slice' => 40,
			autovacuum => 'off',
			restart_after_crash => 'on',
			%conf
		});
	my $self = bless { server => $server, simulator => $simulator, fates => {} }, $class;
	$self->_set_up;
	return $self;
}

# A certificate that signs itself, with its key in the same file.
sub _certificate
{
	my ($folder, $name) = @_;
	my $file = "$folder/$name.pem";
	run_command([ 'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
		'-days', '2', '-subj', "/CN=$name", '-addext', 'subjectAltName=IP:127.0.0.1', '-out', "$file.crt", '-keyout', $file ]);
	append_to_file($file, slurp_file("$file.crt"));
	return $file;
}

sub server { return $_[0]{server}; }
sub simulator { return $_[0]{simulator}; }
sub fates { return $_[0]{fates}; }

sub forget
{
	my ($self) = @_;
	$_->{known} = 0 foreach values %{ $self->{fates} };
	$self->{owners_known_ms} = undef;
	return;
}

sub owners_known_ms { return $_[0]{owners_known_ms} // $_[0]{simulator}->state->{now_ms}; }

sub expected_contacts { return $_[0]{all_contacts} - keys %{ $_[0]{fates} }; }

sub attempt
{
	my ($self, $play, $cleanup) = @_;
	my @problems;
	return @problems if eval { @problems = $play->(); 1 };
	my $why = $@;
	$cleanup->() if $cleanup;
	$self->_rescue;
	return "could not be played to its end: $why";
}

sub _rescue
{
	my ($self) = @_;
	$self->{simulator}->clear_faults;
	$self->_wait_for_server;
	$self->{server}->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync'});
	wait_until('no worker is left', sub {
		$self->{server}->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync'}) == 0;
	});
	return;
}

sub patient
{
	my ($self, $on) = @_;
	$self->{server}->reload('hubspot_sync.request_timeout' => $on ? '60s' : TIMEOUT);
	return;
}

sub careful
{
	my ($self, $on) = @_;
	$self->{careful} = $on;
	return;
}

# What is the same in every play: the school's tables, and how to fill them.
sub _set_up
{
	my ($self) = @_;
	my $server = $self->{server};
	$server->load_objects('contacts');
	$server->sql(<<~'SQL');
		UPDATE sync_types SET property_set = 'all' WHERE sync_type = 'deals';
		CREATE TABLE pupils AS
			SELECT row_number() OVER (ORDER BY id)::int AS n, id AS contact, record #>> '{properties,email}' AS email
			FROM sim_contacts WHERE NOT archived AND record #>> '{properties,email}' <> '';
		CREATE TABLE users (id text PRIMARY KEY, email text, course_id int);
		CREATE TABLE course_progress (user_id text, lesson_id text, completed boolean, score numeric, time_spent int,
			last_accessed_at timestamptz, PRIMARY KEY (user_id, lesson_id));
		CREATE TABLE user_streaks (user_id text PRIMARY KEY, current_streak int);
		CREATE TABLE user_xp (user_id text PRIMARY KEY, total_xp int);
		CREATE TABLE course_lessons (course_id int, lesson_id text);
		CREATE TABLE a1_progress (user_id text, unit_id int, status text, accuracy_percentage numeric,
			time_spent_minutes int, completed_at timestamptz, last_activity timestamptz, PRIMARY KEY (user_id, unit_id));
		CREATE TABLE a1_milestones (user_id text, unit_id int);
		CREATE PROCEDURE fill_school(students int) LANGUAGE sql AS $$
			DROP TABLE IF EXISTS b2_progress, b2_milestones;
			TRUNCATE users, course_progress, user_streaks, user_xp, course_lessons, a1_progress, a1_milestones;
			INSERT INTO users SELECT 's' || n, email, 1 FROM pupils WHERE n > 20 AND n <= students + 20;
			INSERT INTO course_lessons SELECT 1, 'l' || i FROM generate_series(1, 4) i;
			INSERT INTO course_progress
				SELECT id, 'l' || i, i <= length(email) % 4, 60 + i, 100 * i, timestamptz '2026-01-01 12:00:00+00' + i * interval '1 h'
				FROM users, generate_series(1, 3) i WHERE id NOT LIKE '%3';
			INSERT INTO user_streaks SELECT id, length(email) FROM users WHERE id NOT LIKE '%5';
			INSERT INTO user_xp SELECT id, 10 * length(email) FROM users WHERE id NOT LIKE '%7';
			INSERT INTO a1_progress
				SELECT id, i, CASE WHEN i < 3 THEN 'completed' ELSE 'in_progress' END, 90 + i, i, NULL,
					timestamptz '2026-02-01 12:00:00+00' + i * interval '1 h'
				FROM users, generate_series(1, 3) i WHERE id LIKE '%1';
			INSERT INTO a1_milestones SELECT id, 1 FROM users WHERE id LIKE '%1';
		$$;
		SQL
	return;
}

sub begin
{
	my ($self) = @_;
	my $simulator = $self->{simulator};
	$simulator->clear_faults;
	$simulator->config(clock_offset_ms => 0);
	$simulator->reset;
	$self->{hours} = 0;
	$self->{fates} = {};
	$self->{owners_known_ms} = undef;
	$self->{contacts} = [ _ids($simulator, 'contacts') ];
	$self->{all_contacts} = () = $simulator->objects_text('contacts') =~ /^./mg;
	$self->{deals} = [ _ids($simulator, 'deals') ];
	$self->{owners} = [ sort map { $_->{id} } $simulator->objects('owners', archived => 0) ];
	$simulator->clear_journal;
	$self->{server}->sql('SET client_min_messages = warning; '
		  . "TRUNCATE $traces; CALL fill_school(" . STUDENTS . ')');
	return;
}

# Live ones, by id.
sub _ids
{
	my ($simulator, $type) = @_;
	return $simulator->objects_text($type, archived => 0) =~ /^\{"id":"(\d+)"/mg;
}

sub play
{
	my ($self, $at_half_time) = @_;
	$self->_load_by('list_and_search');
	$self->_sync(qw(owners contacts deals));
	$self->_load_by('list');
	$self->_next_day;
	$self->_sync(qw(contacts deals owners));
	$at_half_time->() if $at_half_time;
	$self->_next_week;
	$self->_sync(qw(contacts));
	$self->_hour_later;
	$self->_sync(qw(progress));
	$self->_new_level;
	$self->_sync(qw(progress contacts));
	return;
}

sub heal
{
	my ($self, @types) = @_;
	my $simulator = $self->{simulator};
	$simulator->clear_faults;
	wait_until('the simulator listens', sub { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $simulator->port) });
	$self->_hour_later;
	$self->_note_time;
	$self->_sync(@types ? @types : qw(progress owners contacts deals));
	# A run that continues another one ends with what there was when that one
	# began. What has changed since is for the next.
	$self->_sync($self->_continued('%'));
	return;
}

# Types that had a run of this mode which has continued another one.
sub _continued
{
	my ($self, $mode) = @_;
	return split /\n/, $self->{server}->sql(
		"SELECT DISTINCT sync_type FROM sync_logs WHERE continues IS NOT NULL AND mode LIKE '$mode'");
}

sub heal_in_a_week
{
	my ($self) = @_;
	my @types = ($self->_continued('full'), $self->_nameless) or return 0;
	$self->_execute("UPDATE sync_state SET last_full_at = last_full_at - interval '8 days'");
	$self->_sync(@types);
	return 1;
}

# Types that were sent records without a usable id: only a full run can know
# that there are none any more.
sub _nameless
{
	my ($self) = @_;
	return split /\n/, $self->{server}->sql(
		q{SELECT DISTINCT sync_type FROM sync_errors WHERE resolved_at IS NULL AND category IN ('no_id', 'invalid_id')});
}

# Sets how full runs of records read.
sub _load_by
{
	my ($self, $strategy) = @_;
	$self->_execute("UPDATE sync_types SET full_strategy = '$strategy' WHERE sync_type IN ('contacts', 'deals')");
	return;
}

# Requests runs in mode auto, one after the other.
sub _sync
{
	my ($self, @types) = @_;
	$self->_execute(map { "CALL run_hubspot_sync('$_')" } @types);
	return;
}

# Executes statements, which may fail. Where the server may crash, each is
# tried once, and those after it meet a server that is up again.
sub _execute
{
	my ($self, @statements) = @_;
	return unless @statements;
	my @scripts = $self->{careful} ? map { [$_] } @statements : [@statements];
	foreach my $script (@scripts)
	{
		my $lost = !$self->_psql(@$script);
		die "the connection is lost\n" if $lost && !$self->{careful};
		$self->_wait_for_server if $self->{careful};
	}
	return;
}

# Whether the connection outlives the statements. They are arguments: a psql
# that ends early would take a script's writer along.
sub _psql
{
	my ($self, @statements) = @_;
	my $connection = $self->{server}->node->connstr('postgres');
	my $output = '';
	IPC::Run::run([ 'psql', '-XAtq', '-d', $connection, map { ('-c', encode('UTF-8', $_)) } @statements ],
		'<', \undef, '>', \$output, '2>', \$output, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return ($? >> 8) < 2;
}

# A server that was killed cannot be started before all of its processes have
# noticed.
sub _wait_for_server
{
	my ($self) = @_;
	my $node = $self->{server}->node;
	wait_until('the server accepts connections', sub {
		return 1 if $self->_psql('SELECT 1');
		return 0 if defined $node->{_pid} && kill 0, $node->{_pid};
		$node->kill9;
		return $node->start(fail_ok => 1);
	});
	return;
}

=pod

=back

=head1 STAGES

Of each type, a record is meant by its place among the live ones at the start.

=cut

sub _hour_later
{
	my ($self) = @_;
	$self->{simulator}->config(clock_offset_ms => ++$self->{hours} * HOUR_MS);
	# For our own clock: a request whose worker died early counts for 30 s.
	$self->_execute("UPDATE sync_runs SET updated_at = updated_at - interval '1 hour' WHERE status = 'pending'")
	  if $self->{careful};
	return;
}

# From when on owners are known: all contacts have been read.
sub _note_time
{
	my ($self) = @_;
	return if defined $self->{owners_known_ms};
	return if $self->{server}->sql('SELECT count(*) FROM contacts') < CONTACTS;
	$self->{owners_known_ms} = $self->{simulator}->state->{now_ms};
	return;
}

# What an incremental pull has to find, and what only a look into the recycle
# bin, which is due.
sub _next_day
{
	my ($self) = @_;
	my $simulator = $self->{simulator};
	my ($contacts, $deals, $owners) = @$self{qw(contacts deals owners)};
	$self->_hour_later;
	$self->_note_time;
	$simulator->patch('contacts', $contacts->[3], { firstname => 'Zoë', phone => '' });
	$simulator->patch('contacts', $contacts->[120], { hubspot_owner_id => $_ }) foreach @$owners[ 0, 1 ];
	$simulator->patch('contacts', $contacts->[130], { hubspot_owner_id => '' });
	$simulator->create('contacts', { firstname => 'New', lastname => '1', email => 'new1@example.com' });
	$self->{all_contacts}++;
	$simulator->archive('contacts', $contacts->[5]);
	$self->_merge($contacts->[7], $contacts->[190]);
	$simulator->patch('deals', $deals->[2], { pipeline => 'default', dealstage => 'closedwon', amount => '12.50' });
	$simulator->patch('deals', $deals->[105], { dealname => 'Änderung', amount => '' });
	$simulator->archive('deals', $deals->[50]);
	$simulator->patch('owners', $owners->[2], { lastName => 'Married' });
	$simulator->archive('owners', $owners->[3]);
	$self->_execute("UPDATE sync_state SET last_sweep_at = last_sweep_at - interval '25 hours', "
		  . "last_full_at = last_full_at - interval '25 hours'");
	return;
}

# What only a full pull finds, which is due.
sub _next_week
{
	my ($self) = @_;
	my $simulator = $self->{simulator};
	my $contacts = $self->{contacts};
	$self->_hour_later;
	$simulator->restore('contacts', $contacts->[5]);
	$simulator->archive('contacts', $contacts->[6]);
	$self->_remember($contacts->[8], 'gone');
	$simulator->purge('contacts', $contacts->[8]);
	$self->_merge($contacts->[9], $contacts->[10]);
	$simulator->patch('contacts', $contacts->[11], { lastname => 'Later' });
	$self->_execute("UPDATE sync_state SET last_full_at = last_full_at - interval '8 days' WHERE sync_type = 'contacts'");
	return;
}

# A level that is there all of a sudden, and values that change, come and go.
sub _new_level
{
	my ($self) = @_;
	$self->_hour_later;
	$self->_execute(split /;\n/, <<~'SQL');
		CREATE TABLE b2_progress (LIKE a1_progress);
		CREATE TABLE b2_milestones (LIKE a1_milestones);
		INSERT INTO b2_progress SELECT id, 1, 'completed', 80.5, 20 FROM users WHERE id LIKE '%2';
		UPDATE user_xp SET total_xp = total_xp + 1 WHERE user_id LIKE '%4';
		DELETE FROM user_streaks WHERE user_id LIKE '%6'
		SQL
	return;
}

sub _merge
{
	my ($self, $survivor, $other) = @_;
	$self->_remember($other, 'merged', $survivor);
	$self->{simulator}->merge('contacts', $survivor, $other);
	return;
}

# Notes what will have become of a contact.
sub _remember
{
	my ($self, $id, $reason, $into) = @_;
	my $known = $self->{server}->sql("SELECT count(*) FROM contacts WHERE hubspot_contact_id = '$id'");
	$self->{fates}{$id} = {
		reason => $reason,
		merged_into => $into,
		known => $known,
		record => $self->{simulator}->object('contacts', $id) };
	return;
}

1;
