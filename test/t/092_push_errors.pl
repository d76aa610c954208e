# Whatever HubSpot answers to a push, whoever it has accepted is noted, whoever
# it has not stands in sync_errors with the cause and harms nobody else in the
# batch, the next run sends only those, and the access token is told to nobody.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 250,
	MANY => 230,       # three batches
	BATCH => 100,
	FEW => 6,
	RETRIES => 2,
	HALVINGS => 15,    # requests that find one of 100
};

my $update = qr{/contacts/batch/update$};
my $look_up = qr{/contacts/batch/read$};
my $definitions = qr{/properties/[^/]+/contacts};

# A token that no other text contains.
my $token = 'pat-eu1-7e57ab1e-0b5e-4ed0-9a11-c0ffee0dd1e5';
my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, owners => 2, token => $token);
my $server = HubspotSync::Server->new('push_errors', simulator => $sim,
	conf => {
		'hubspot_sync.max_retries' => RETRIES,
		log_min_messages => 'debug1',
		log_error_verbosity => 'verbose',
	});

# ---------------------------------------------------------------------------
# The school: students s001 and so on, who have all done something
# ---------------------------------------------------------------------------

$server->load_objects('contacts');
$server->sql(<<~'SQL');
	CREATE TABLE pupils AS
		SELECT row_number() OVER (ORDER BY id)::int AS n, record #>> '{properties,email}' AS email
		FROM sim_contacts
		WHERE NOT archived AND record #>> '{properties,email}' <> '';
	CREATE TABLE users (id text PRIMARY KEY, email text);
	CREATE TABLE course_progress (user_id text, lesson_id text, completed boolean, score numeric,
		time_spent int, last_accessed_at timestamptz, PRIMARY KEY (user_id, lesson_id));
	CREATE TABLE user_xp (user_id text PRIMARY KEY, total_xp int);
	CREATE TABLE a1_progress (user_id text, unit_id int, status text, PRIMARY KEY (user_id, unit_id));
	CREATE PROCEDURE school(students int) LANGUAGE plpgsql AS $$
	BEGIN
		TRUNCATE users, course_progress, user_xp, a1_progress;
		INSERT INTO users SELECT 's' || to_char(n, 'FM000'), email FROM pupils WHERE n <= students;
		INSERT INTO course_progress SELECT id, 'l1', true, 80, 90, '2026-01-01 12:00:00+00' FROM users;
		INSERT INTO user_xp SELECT id, substr(id, 2)::int FROM users;
		-- who is done with the level: s001 to s003
		INSERT INTO a1_progress SELECT id, i, CASE WHEN i = 1 OR id < 's004' THEN 'completed' ELSE 'begun' END
			FROM users, generate_series(1, 2) i;
	END $$;
	SQL

# Everything as at the beginning, with so many students.
sub fresh
{
	my ($students) = @_;
	$sim->clear_faults;
	$sim->config(scopes => undef, max_custom_properties => undef);
	$sim->reset;
	$server->sql('TRUNCATE progress_state, progress_properties, sync_errors');
	$server->sql("CALL school($students)");
	return;
}

# All were pushed, and have changed since.
sub primed
{
	my ($students) = @_;
	fresh($students);
	my $run = $server->run_sync('progress');
	die "the first push ended $run->{status}: $run->{stderr}" unless ($run->{status} // '') eq 'success';
	change();
	return;
}

sub change
{
	$server->sql('UPDATE user_xp SET total_xp = total_xp + 1000');
	return;
}

sub email_of { return $server->sql("SELECT email FROM users WHERE id = '$_[0]'"); }
sub contact_of { return $sim->object_by('contacts', 'email', email_of($_[0])); }
sub held { return $server->sql("SELECT contact_id FROM progress_state WHERE user_id = '$_[0]'"); }

# A push of all that ends so; returns its log entry.
sub push_ends
{
	my ($status, $what, $failed, $mode) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync('progress', $mode);
	is($run->{status}, $status, "$what: the push ends $status") or diag($run->{stderr});
	my $log = defined $run->{run_id} ? $server->log($run->{run_id}) : {};
	is($log->{records_failed}, $failed // 0, '... with ' . ($failed // 0) . ' failures') if $status ne 'failed';
	return $log;
}

sub push_fails
{
	my ($what, $reason, $message) = @_;
	my $log = push_ends('failed', $what);
	is($log->{error_details}{reason}, $reason, "... with reason $reason");
	like($log->{error_details}{message}, $message, '... and says what happened') if $message;
	return $log;
}

sub sent_is
{
	my ($what, %wanted) = @_;
	my @updates = $sim->sent(path => $update);
	my @look_ups = $sim->sent(path => $look_up);
	is("@updates", $wanted{updates} // '0 0', "$what: updates and their inputs");
	is("@look_ups", $wanted{look_ups} // '0 0', '... look-ups and their inputs');
	return;
}

# How many students' contacts have exactly their values, and what others have;
# those with an open error are left out.
sub truth
{
	$server->load_objects('contacts');
	return $server->sql(<<~'SQL');
		WITH mail AS (
			SELECT c.record, lower(btrim(m)) AS address
			FROM sim_contacts c CROSS JOIN LATERAL unnest(string_to_array(concat_ws(';',
				c.record #>> '{properties,email}', c.record #>> '{properties,hs_additional_emails}'), ';')) m
			WHERE NOT c.archived
		), compared AS (
			SELECT p.user_id, d.name, c.record #>> ARRAY['properties', d.name] AS got, p.properties ->> d.name AS wanted
			FROM preview_student_progress() p CROSS JOIN progress_properties d
			LEFT JOIN mail c ON c.address = lower(btrim(p.email))
			WHERE d.problem IS NULL AND p.user_id NOT IN (SELECT record_id FROM sync_errors WHERE resolved_at IS NULL)
		), judged AS (
			SELECT user_id, string_agg(format('%s %s: %L, not %L', user_id, name, got, wanted), e'\n')
				FILTER (WHERE coalesce(got, '') <> coalesce(wanted, '')) AS problem
			FROM compared GROUP BY user_id
		)
		SELECT count(*) FILTER (WHERE problem IS NULL), substr(string_agg(problem, e'\n'), 1, 500) FROM judged
		SQL
}

# So many have their values and are noted, also as a simple query sees it.
sub all_true
{
	my ($students, $what) = @_;
	is(truth(), "$students|", "$what: the contacts of $students students have their values");
	is($server->sql(<<~'SQL'), $students, '... as a simple query sees it');
		SELECT count(*) FROM users u JOIN user_xp x ON x.user_id = u.id JOIN progress_state s ON s.user_id = u.id
		JOIN sim_contacts c ON c.id = s.contact_id
		WHERE c.record #>> '{properties,total_xp}' = x.total_xp::text AND s.properties ->> 'total_xp' = x.total_xp::text
		SQL
	return;
}

# Open errors: record, category, property, and what the message must match.
sub errors_are
{
	my ($what, @wanted) = @_;
	my @errors = $server->sql_json(q{SELECT * FROM sync_errors WHERE resolved_at IS NULL ORDER BY record_id COLLATE "C"});
	is(join(' ', map { join ':', $_->{record_id}, $_->{category}, $_->{property} // '' } @errors),
		join(' ', map { join ':', $_->[0], $_->[1], $_->[2] // '' } @wanted), "$what: open errors")
	  or diag(explain \@errors);
	foreach my $i (0 .. $#wanted)
	{
		like($errors[$i]{message}, $wanted[$i][3], "... of $wanted[$i][0] with the cause") if $wanted[$i][3];
	}
	return @errors;
}

# The next push, without the fault, sends these only and heals everything.
sub heals
{
	my ($what, $students, $sent, %others) = @_;
	$sim->clear_faults;
	push_ends('success', "$what, next push");
	sent_is("$what, next push sends who was not accepted", updates => "1 $sent", %others);
	errors_are("$what, healed");
	all_true($students, "$what, healed");
	return;
}

# A fault that refuses every update with a contact in it.
sub refuse_contact
{
	my ($id, %action) = @_;
	$sim->fault(path => '/batch/update', body_regex => "\"id\": *\"$id\"", times => 0,
		action => { kind => 'error', status => 400, message => 'no such thing', %action });
	return;
}

# The answer to an update is spoiled.
sub spoil_update
{
	my ($times, %edit) = @_;
	$sim->fault(path => '/batch/update', times => $times, action => { kind => 'edit', %edit });
	return;
}

sub refusal
{
	my ($message, %more) = @_;
	return { kind => 'error', status => 400, message => $message, %more };
}

# Somebody removes an option right before the values are sent.
sub remove_option
{
	$sim->script(path => '/batch/update', do => [ {
		op => 'define_properties', type => 'contacts',
		properties => [ {
			name => 'level_a1_status',
			options => [ map { { label => $_, value => $_ } } qw(not_started in_progress) ] } ] } ]);
	return;
}

# ---------------------------------------------------------------------------
# Batches that are refused
# ---------------------------------------------------------------------------

subtest 'a batch refused as a whole, which names the culprit' => sub {
	primed(BATCH);
	my $id = held('s042');
	refuse_contact($id, more => { context => { ids => [$id] } });
	my $log = push_ends('partial', 'named by id', 1);
	sent_is('named by id', updates => '2 ' . (BATCH + BATCH - 1));
	is($log->{records_changed}, BATCH - 1, '... the other 99 are accepted');
	is($log->{error_details}{reason}, 'records_failed', '... with the reason');
	my ($error) = errors_are('named by id', [ 's042', 'refused', undef, qr/no such thing/ ]);
	is($error->{email}, email_of('s042'), '... with the address');
	is($error->{payload}{total_xp}, 1042, '... and what was sent');
	all_true(BATCH - 1, 'named by id');
	push_ends('partial', 'again', 1);
	sent_is('again, alone', updates => '1 1');
	heals('named by id', BATCH, 1);

	primed(BATCH);
	my $named = { message => 'bad one', code => 'STRANGE', context => { ids => [$id], propertyName => ['total_xp'] } };
	refuse_contact($id, more => { errors => [$named] });
	push_ends('partial', 'named in errors', 1);
	sent_is('named in errors', updates => '2 ' . (BATCH + BATCH - 1));
	errors_are('named in errors', [ 's042', 'refused', 'total_xp', qr/bad one.*STRANGE/ ]);
	heals('named in errors', BATCH, 1);

	# Trace ids are the same in the next run of the same students.
	primed(BATCH);
	push_ends('success', 'a look at the trace ids');
	my %trace = map { $_->{id} => $_->{objectWriteTraceId} } map { @{ $_->{body}{inputs} } } $sim->requests(path => $update);
	my %seen = map { $_ => 1 } values %trace;
	is(scalar keys %seen, BATCH, 'every input has a trace id of its own');
	change();
	$named = { message => 'bad one', context => { objectWriteTraceId => [ $trace{$id} ] } };
	refuse_contact($id, more => { errors => [$named] });
	push_ends('partial', 'named by trace id', 1);
	sent_is('named by trace id', updates => '2 ' . (BATCH + BATCH - 1));
	errors_are('named by trace id', [ 's042', 'refused', undef, qr/bad one/ ]);
	heals('named by trace id', BATCH, 1);
};

subtest 'a batch refused as a whole, which names nobody' => sub {
	primed(BATCH);
	my @ids = map { held($_) } qw(s001 s077);
	refuse_contact($ids[0]);
	push_ends('partial', 'one culprit', 1);
	errors_are('one culprit', [ 's001', 'refused', undef, qr/no such thing/ ]);
	my ($requests) = $sim->sent(path => $update);
	cmp_ok($requests, '<=', HALVINGS, "... is found with few requests: $requests");
	all_true(BATCH - 1, 'one culprit');
	refuse_contact($ids[1], status => 409, category => undef);
	change();
	push_ends('partial', 'two culprits, one of them a conflict', 2);
	errors_are('two culprits', map { [ $_, 'refused', undef, qr/no such thing/ ] } qw(s001 s077));
	all_true(BATCH - 2, 'two culprits');
	heals('two culprits', BATCH, 2);

	primed(FEW);
	refuse_contact(held('s001'), more => { context => { ids => [ map { held("s00$_") } 1 .. FEW ] } });
	push_ends('partial', 'everybody named', 1);
	errors_are('everybody named', [ 's001', 'refused' ]);
	all_true(FEW - 1, 'everybody named');
	$sim->clear_faults;
	refuse_contact(held('s001'), more => { context => { ids => ['4711'] }, errors => 'none' });
	change();
	push_ends('partial', 'a stranger named', 1);
	all_true(FEW - 1, 'a stranger named');
	heals('a stranger named', FEW, 1);
};

subtest 'locked, and conflicts' => sub {
	primed(FEW);
	$sim->fault(path => '/batch/update', action => { kind => 'error', status => 423, category => undef });
	my $log = push_ends('success', '423');
	is($log->{retries}, 1, '... after repeating the request');
	sent_is('423', updates => '2 ' . 2 * FEW);
	all_true(FEW, '423');
	change();
	refuse_contact(held('s002'), status => 409, message => 'Contact already exists. Existing ID: 1');
	push_ends('partial', '409', 1);
	errors_are('409', [ 's002', 'refused', undef, qr/already exists/ ]);
	all_true(FEW - 1, '409');
	heals('409', FEW, 1);
};

# ---------------------------------------------------------------------------
# Some inputs that fail
# ---------------------------------------------------------------------------

subtest 'values that HubSpot refuses' => sub {
	primed(BATCH);
	remove_option();
	my @completed = qw(s001 s002 s003);
	push_ends('partial', 'with trace ids', 3);
	sent_is('with trace ids', updates => '1 ' . BATCH);
	my @errors = errors_are('with trace ids', map { [ $_, 'refused', 'level_a1_status', qr/INVALID_OPTION/ ] } @completed);
	is($errors[0]{payload}{level_a1_status}, 'completed', '... with what was sent');
	all_true(BATCH - 3, 'with trace ids');
	spoil_update(0, remove => ['errors.*.context', 'results.*.objectWriteTraceId']);
	change();
	remove_option();
	push_ends('partial', 'without trace ids', 3);
	errors_are('without trace ids', map { [ $_, 'refused', 'level_a1_status', qr/INVALID_OPTION/ ] } @completed);
	all_true(BATCH - 3, 'without trace ids');
	my ($requests) = $sim->sent(path => $update);
	cmp_ok($requests, '<=', 3 * HALVINGS, "... after $requests requests");
	heals('refused values', BATCH, 3);

	# Silence for two reasons.
	change();
	my $email = $server->sql('SELECT email FROM pupils WHERE n = 122');
	$sim->merge('contacts', $sim->object_by('contacts', 'email', $email)->{id}, held('s010'));
	remove_option();
	spoil_update(0, remove => [ 'errors.*.context', 'results.*.objectWriteTraceId' ]);
	push_ends('partial', 'errors without context, and a contact merged away', 3);
	errors_are('errors without context, and a contact merged away',
		map { [ $_, 'refused', 'level_a1_status', qr/INVALID_OPTION/ ] } @completed);
	all_true(BATCH - 3, 'errors without context, and a contact merged away');
};

# A refused value makes what is known of the properties doubtful at once.
subtest 'an option that was deleted' => sub {
	primed(FEW);
	remove_option();
	push_ends('partial', 'without the option', 3);
	push_ends('success', 'next push');
	is(join(' ', sort map { $_->{value} } @{ $sim->definitions('contacts')->{level_a1_status}{options} }),
		'completed in_progress not_started', 'the option is there again');
	errors_are('an option that was deleted');
	all_true(FEW, 'an option that was deleted');
};

subtest 'trace ids that HubSpot leaves out' => sub {
	primed(BATCH);
	spoil_update(0, remove => ['results.*.objectWriteTraceId']);
	push_ends('success', 'no trace ids');
	sent_is('no trace ids', updates => '1 ' . BATCH);
	all_true(BATCH, 'no trace ids');
	change();
	$sim->archive('contacts', held('s009'));
	spoil_update(0, remove => ['errors.*.context.objectWriteTraceId']);
	push_ends('partial', 'an error with ids only', 1);
	sent_is('an error with ids only', updates => '1 ' . BATCH, look_ups => '1 1');
	errors_are('an error with ids only', [ 's009', 'contact_not_found', undef, qr/no contact/ ]);
	all_true(BATCH - 1, 'an error with ids only');
};

subtest 'contacts that are merged away' => sub {
	primed(BATCH);
	my ($one, $two) = map { held($_) } qw(s010 s020);
	my @others = map { $sim->object_by('contacts', 'email', $_)->{id} }
	  split /\n/, $server->sql('SELECT email FROM pupils WHERE n IN (120, 121) ORDER BY n');
	$sim->merge('contacts', $others[0], $one);
	my $survivor = $sim->merge('contacts', $others[1], $two, new_id => \1)->{id};
	push_ends('success', 'merged');
	sent_is('merged', updates => '2 ' . (BATCH + 2), look_ups => '1 2');
	is(held('s010'), $others[0], 'the survivor is remembered');
	is(held('s020'), $survivor, '... also one with an id of its own');
	all_true(BATCH, 'merged');
	change();
	push_ends('success', 'after that');
	sent_is('after that', updates => '1 ' . BATCH);

	$sim->merge('contacts', held('s030'), held('s031'));
	change();
	push_ends('partial', 'two students merged into one contact', 1);
	errors_are('two students merged into one contact', [ 's031', 'duplicate_contact', undef, qr/s030/ ]);
	is($sim->value('contacts', held('s030'), 'total_xp'),
		$server->sql(q{SELECT total_xp FROM user_xp WHERE user_id = 's030'}), 'the contact has the values of the first');
	all_true(BATCH - 1, 'two students merged into one contact');
};

subtest 'inputs of which the answer says nothing' => sub {
	primed(BATCH);
	spoil_update(1, drop_inputs => [ 0, 50 ]);
	push_ends('success', 'left out');
	sent_is('left out: looked up and sent once more', updates => '2 ' . (BATCH + 2), look_ups => '1 2');
	all_true(BATCH, 'left out');

	change();
	spoil_update(1, status => 200, replace => { results => [], errors => [] });
	push_ends('success', 'empty results and errors');
	sent_is('empty results and errors', updates => '2 ' . 2 * BATCH, look_ups => '1 ' . BATCH);
	all_true(BATCH, 'empty results and errors');

	primed(FEW);
	spoil_update(0, status => 200, replace => { results => [], errors => [] });
	push_ends('partial', 'always empty', FEW);
	errors_are('always empty', map { [ "s00$_", 'not_confirmed', undef, qr/says nothing/ ] } 1 .. FEW);
	is($server->sql('SELECT count(*) FROM progress_state WHERE fingerprint <> 0'), 0, 'nobody is believed to be accepted');
	sent_is('always empty', updates => (2 + FEW) . ' ' . 3 * FEW, look_ups => '1 ' . FEW);
	heals('always empty', FEW, FEW);
};

subtest 'contacts that are gone' => sub {
	primed(BATCH);
	my $old = held('s005');
	my $email = email_of('s005');
	$sim->archive('contacts', $old);
	push_ends('partial', 'archived', 1);
	sent_is('archived', updates => '1 ' . BATCH, look_ups => '1 1');
	errors_are('archived', [ 's005', 'contact_not_found', undef, qr/\Q$email\E/ ]);
	all_true(BATCH - 1, 'archived');
	push_ends('partial', 'still archived', 1);
	is($server->sql('SELECT attempts FROM sync_errors'), 2, '... which is noted');
	my ($new) = $sim->create('contacts', { email => $email });
	push_ends('success', 'another contact with that address');
	is(held('s005'), $new, '... is remembered');
	errors_are('another contact');
	all_true(BATCH, 'another contact');
	change();
	$sim->purge('contacts', $new);
	$sim->restore('contacts', $old);
	push_ends('success', 'the first one again');
	is(held('s005'), $old, '... is remembered');
	all_true(BATCH, 'the first one again');
};

subtest 'what admins require' => sub {
	primed(FEW);
	$server->reload('hubspot_sync.api_version' => '2026-09');
	$sim->require_property('contacts', require => ['department_code'], when => { level_a1_status => 'completed' });
	push_ends('partial', 'a required property', 3);
	errors_are('a required property',
		map { [ $_, 'refused', 'department_code', qr/MISSING_CONDITIONAL_REQUIRED_PROPERTY/ ] } qw(s001 s002 s003));
	sent_is('a required property', updates => '1 ' . FEW);
	all_true(FEW - 3, 'a required property');
	$sim->patch('contacts', held('s001'), { department_code => 'x' });
	push_ends('partial', 'one has it', 2);
	sent_is('one has it', updates => '1 3');
	$server->reload('hubspot_sync.api_version' => '2026-03');
	heals('2026-03 does not hold to it', FEW, 2);
	$sim->drop_rules('contacts');
	$server->reload('hubspot_sync.api_version' => HubspotSync::Simulator->api_version);
};

subtest 'ids that are others, and ids that are none' => sub {
	primed(1);
	my ($other) = $sim->create('contacts', { email => 'other@example.com' });
	spoil_update(1, replace => { 'results.0.id' => $other });
	push_ends('success', 'another id');
	is(held('s001'), $other, '... is remembered');
	primed(FEW);
	spoil_update(1, replace => { 'results.*.id' => "1' OR true" });
	push_ends('success', 'in the results of an update');
	is($server->sql(q{SELECT count(*) FROM progress_state WHERE contact_id !~ '^[0-9]+$'}), 0, '... are not remembered');
	all_true(FEW, 'in the results of an update');
	fresh(FEW);
	$sim->fault(path => '/batch/read', action => { kind => 'edit', replace => { 'results.*.id' => '../4711' } });
	push_ends('success', 'in those of a look-up');
	is(scalar $sim->requests(method => 'GET', 'query.idProperty' => 'email'), FEW, '... each is read alone');
	all_true(FEW, 'in those of a look-up');
};

# ---------------------------------------------------------------------------
# Look-ups
# ---------------------------------------------------------------------------

subtest 'look-ups that fail' => sub {
	fresh(FEW);
	my $email = email_of('s003');
	$server->sql(q{UPDATE users SET email = 'nobody+1@example.com' WHERE id = 's006'});
	$sim->fault(path => '/batch/read', action => refusal('bad input'));
	push_ends('partial', 'refused as a whole', 1);
	is(scalar $sim->requests(method => 'GET', 'query.idProperty' => 'email'), FEW, '... each is read alone');
	errors_are('refused as a whole', [ 's006', 'contact_not_found' ]);
	all_true(FEW - 1, 'refused as a whole');

	fresh(FEW);
	$sim->fault(path => '/batch/read', body => "\"$email\"", times => 0, action => refusal('bad input'));
	$sim->fault(path_regex => '/contacts/' . ($email =~ s/@/(?:@|%40)/r =~ s/\./\\./gr), method => 'GET', times => 0,
		action => refusal('that is no address'));
	push_ends('partial', 'one refused', 1);
	errors_are('one refused', [ 's003', 'invalid_email', 'email', qr/that is no address/ ]);
	all_true(FEW - 1, 'one refused');
	heals('one refused', FEW, 1, look_ups => '1 1');

	fresh(FEW);
	$email = email_of('s004');
	my ($one, $two) = $sim->create('contacts', { email => 'one@example.com' }, { email => 'two@example.com' });
	$sim->fault(path => '/batch/read', action => { kind => 'replace_page', results => qq([
		{"id": "$one", "properties": {"email": "one\@example.com", "hs_additional_emails": "x\@example.com;$email"}},
		{"id": "$two", "properties": {"email": "two\@example.com", "hs_additional_emails": "$email"}}]) });
	push_ends('success', 'ambiguous');
	is(scalar(grep { $_->{path} =~ /contacts\// } $sim->requests(method => 'GET', 'query.idProperty' => 'email')), FEW,
		'... those whose answer is not clear are read alone');
	is(held('s004'), contact_of('s004')->{id}, '... which tells the right one');
	is($sim->value('contacts', $one, 'total_xp') // '', '', 'the others get nothing');
	all_true(FEW, 'ambiguous');
};

# ---------------------------------------------------------------------------
# Answers that get lost
# ---------------------------------------------------------------------------

subtest 'answers that get lost' => sub {
	primed(FEW);
	my %fault = (
		'a reset before the write' => { kind => 'reset' },
		'a reset after the write' => { kind => 'reset', apply => \1 },
		'a timeout after the write' => { kind => 'hang', apply => \1 },
		'a reset in mid-answer' => { kind => 'reset_mid_body', after_bytes => 100 },
		'half an answer' => { kind => 'truncated_json' },
		'HTML after the write' => { kind => 'html', status => 502, apply => \1 },
		'HTML with status 200' => { kind => 'html', status => 200 },
		'nothing after the write' => { kind => 'empty_body', apply => \1 });
	foreach my $what (sort keys %fault)
	{
		# Only what has to take that long shall: a busy machine may take longer for others.
		$server->reload('hubspot_sync.request_timeout' => $what =~ /timeout/ ? '3s' : undef);
		$sim->fault(path => '/batch/update', action => $fault{$what});
		my $log = push_ends('success', $what);
		is($log->{retries}, 1, '... after sending it again');
		is($log->{records_changed}, FEW, '... counting everybody once');
		all_true(FEW, $what);
		change();
	}
	$server->reload('hubspot_sync.request_timeout' => undef);
};

subtest 'answers that make no sense' => sub {
	primed(FEW);
	$sim->fault(path => '/batch/update', times => 0, action => { kind => 'html', status => 200 });
	push_fails('HTML for ever', 'gave_up');
	is($server->sql('SELECT count(*) FROM sync_errors'), 0, 'no student is blamed');
	is($server->sql('SELECT count(*) FROM progress_state WHERE fingerprint <> 0'), 0, '... and none accepted');
	heals('HTML for ever', FEW, FEW);
	change();
	$sim->fault(path => '/batch/update', times => 0, action => { kind => 'html', status => 400 });
	push_ends('partial', 'HTML with status 400', FEW);
	errors_are('HTML with status 400', map { [ "s00$_", 'refused' ] } 1 .. FEW);
	heals('HTML with status 400', FEW, FEW);
};

# ---------------------------------------------------------------------------
# What stops a run
# ---------------------------------------------------------------------------

subtest 'what stops a run' => sub {
	my %stop = (
		daily_limit => { kind => 'rate_limit', policy => 'DAILY' },
		gave_up => { kind => 'status', status => 503 },
		auth => { kind => 'error', status => 401 },
		scopes => { kind => 'error', status => 403 });
	foreach my $reason (sort keys %stop)
	{
		primed(MANY);
		$sim->fault(path => '/batch/update', nth => 2, times => 0, action => $stop{$reason});
		my $log = push_fails($reason, $reason);
		ok($log->{error_details}{hint}, '... with a hint');
		is($log->{records_changed}, BATCH, '... what was accepted before is counted');
		is($server->sql('SELECT count(*) FROM sync_errors'), 0, '... and no student blamed');
		$sim->clear_faults;
		push_ends('success', "after $reason");
		sent_is("after $reason, only the others are sent", updates => '2 ' . (MANY - BATCH));
		all_true(MANY, "after $reason");
	}

	fresh(FEW);
	$sim->config(scopes => [qw(crm.objects.contacts.read crm.objects.contacts.write crm.schemas.contacts.read)]);
	my $log = push_fails('no right to create properties', 'scopes', qr/crm\.schemas\.contacts\.write/);
	is($log->{error_details}{missing_scopes}, 'crm.schemas.contacts.write', '... naming the scope');
	sent_is('no right to create properties');
	$sim->config(scopes => undef);
	push_ends('success', 'with it');
	all_true(FEW, 'with it');
	change();
	$sim->config(scopes => [qw(crm.objects.contacts.read crm.objects.contacts.write)]);
	push_ends('success', 'once the properties exist, without it');
	change();
	$sim->config(scopes => [qw(crm.objects.contacts.read)]);
	push_fails('no right to write', 'scopes', qr/crm\.objects\.contacts\.write/);
	$sim->config(scopes => undef, token => 'pat-eu1-another');
	push_fails('another token', 'auth', qr/refuses the access token/);
	$sim->config(token => $token);
	heals('with rights and token', FEW, FEW);
};

subtest 'nothing is accepted' => sub {
	primed(MANY);
	$sim->fault(path => '/batch/update', times => 0, action => refusal('no such thing'));
	my $log = push_fails('every update is refused', 'refused', qr/refused \d+ updates in a row: no such thing/);
	is($log->{records_changed}, 0, '... nobody counts as sent');
	my ($updates) = $sim->sent(path => $update);
	cmp_ok($updates, '<', 2 * MANY, '... and not everybody is tried one by one');
	$sim->clear_faults;
	push_ends('success', 'once they are accepted');
	all_true(MANY, 'once they are accepted');
};

# ---------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------

foreach my $how (qw(remove_property archive_property))
{
	subtest "a property lost in mid-run: $how" => sub {
		primed(MANY);
		$sim->script(path => '/batch/update', nth => 2, do => [ { op => $how, type => 'contacts', name => 'total_xp' } ]);
		my $log = push_ends('success', 'lost');
		ok(!$sim->definitions('contacts')->{total_xp}{archived}, 'it is there again');
		is($sim->definitions('contacts')->{total_xp}{type}, 'number', '... with its type');
		is(scalar $sim->requests(method => 'POST', path => $definitions, status => 201), 1, '... made once');
		my (undef, $inputs) = $sim->sent(path => $update);
		is($inputs, 2 * MANY, 'everybody is sent again');
		errors_are('lost');
		all_true(MANY, 'lost');
		push_ends('success', 'unchanged');
		is(scalar $sim->journal, 0, '... no request');
	};
}

subtest 'a property lost between two runs' => sub {
	primed(FEW);
	push_ends('success', 'second');
	$sim->remove_property('contacts', 'lessons_completed');
	spoil_update(0, remove => ['errors.*.context', 'errors.*.errors']);
	$server->sql(q{UPDATE user_xp SET total_xp = 1 WHERE user_id = 's001'});
	push_ends('success', 'one student changed');
	is($sim->value('contacts', held('s004'), 'lessons_completed'), 1, 'the value of others is there, too');
	all_true(FEW, 'lost');

	# Somebody deletes it whenever it was made.
	change();
	$sim->script(path => '/batch/update', times => 0,
		do => [ { op => 'archive_property', type => 'contacts', name => 'total_xp' } ]);
	push_ends('partial', 'deleted for ever', FEW);
	is($server->sql('SELECT DISTINCT category FROM sync_errors WHERE resolved_at IS NULL'), 'refused', '... ends');
	$sim->reset;
};

subtest 'a property that exists with another type' => sub {
	fresh(FEW);
	$sim->define_properties('contacts', { name => 'total_xp', type => 'string', fieldType => 'text', label => 'Mine' });
	my $log = push_ends('partial', 'another type', 1);
	errors_are('another type', [ 'total_xp', 'definition', 'total_xp', qr/type string, not number/ ]);
	is($log->{records_changed}, FEW, '... all students are sent');
	is(truth(), FEW . '|', '... with all other values');
	is($sim->value('contacts', held('s001'), 'total_xp') // '', '', '... but not this one');
	is(scalar(grep { exists $_->{properties}{total_xp} } map { @{ $_->{body}{inputs} } } $sim->requests(path => $update)), 0,
		'... which was not sent');
	is($sim->definitions('contacts')->{total_xp}{label}, 'Mine', '... whose definition is left alone');
	push_ends('partial', 'next run', 1);
	is(scalar $sim->journal, 0, '... asks for nothing');
	is($server->sql('SELECT attempts FROM sync_errors'), 2, '... and notes it once more');
	$server->sql(q{UPDATE progress_properties SET checked_at = checked_at - interval '61 min'});
	push_ends('partial', 'still so, an hour later', 1);
	is(scalar(grep { $_->{path} =~ m{/properties/} } $sim->requests), 1, '... is looked at again, once');
	is(scalar $sim->requests(path => $update), 0, '... and nobody is sent again');
	$sim->define_properties('contacts', { name => 'total_xp', type => 'number', fieldType => 'number' });
	$server->sql(q{UPDATE progress_properties SET checked_at = checked_at - interval '61 min'});
	push_ends('success', 'corrected, an hour later');
	errors_are('corrected, an hour later');
	sent_is('corrected, an hour later', updates => '1 ' . FEW);
	all_true(FEW, 'corrected, an hour later');

	$sim->define_properties('contacts', { name => 'current_lesson', type => 'number', fieldType => 'number' });
	$log = $server->wait_for($server->sql('SELECT ensure_hubspot_properties()'));
	is($log->{status}, 'partial', 'ensure_hubspot_properties() finds another one');
	errors_are('found', [ 'current_lesson', 'definition', 'current_lesson', qr/type number, not string/ ]);
	push_ends('partial', 'a push after that', 1);
	sent_is('a push after that');
	$sim->define_properties('contacts', { name => 'current_lesson', type => 'string', fieldType => 'text' });
	is($server->wait_for($server->sql('SELECT ensure_hubspot_properties()'))->{status}, 'success',
		'corrected, it finds nothing');
	change();
	push_ends('success', 'a push after that');
	errors_are('corrected');
	all_true(FEW, 'corrected');
};

subtest 'a property that cannot be written' => sub {
	foreach my $why (qw(readOnlyValue calculated))
	{
		fresh(FEW);
		$sim->define_properties('contacts', { name => 'total_xp', type => 'number', fieldType => 'number', $why => JSON::PP::true });
		push_ends('partial', $why, 1);
		errors_are($why, [ 'total_xp', 'definition', 'total_xp', qr/read-only in HubSpot/ ]);
		is(truth(), FEW . '|', '... all students have all other values');
	}
};

subtest 'archived properties' => sub {
	fresh(FEW);
	$sim->define_properties('contacts', { name => 'total_xp', type => 'number', fieldType => 'number', label => 'Old' },
		{ name => 'average_score', type => 'string', fieldType => 'text' });
	$sim->archive_property('contacts', $_) foreach qw(total_xp average_score);
	push_ends('partial', 'archived', 1);
	errors_are('archived with another type', [ 'average_score', 'definition', 'average_score', qr/type string/ ]);
	ok(!$sim->definitions('contacts')->{total_xp}{archived}, 'the other one is restored');
	is($sim->definitions('contacts')->{total_xp}{label}, 'Old', '... as it was');
	all_true(FEW, 'archived');
};

subtest 'options that are missing' => sub {
	fresh(FEW);
	my %mine = (name => 'level_a1_status', type => 'enumeration', fieldType => 'select',
		options => [ { label => 'Taking a break', value => 'paused' }, { label => 'Fertig', value => 'completed' } ]);
	$sim->define_properties('contacts', \%mine);
	push_ends('success', 'missing options');
	my %label = map { $_->{value} => $_->{label} } @{ $sim->definitions('contacts')->{level_a1_status}{options} };
	is(join(' ', sort keys %label), 'completed in_progress not_started paused', 'they are added, others stay');
	is($label{completed}, 'Fertig', '... with their labels');
	all_true(FEW, 'missing options');

	fresh(FEW);
	$sim->define_properties('contacts', \%mine);
	$sim->fault(method => 'PATCH', path => '/properties/', action => refusal('not yours'));
	push_ends('partial', 'options that cannot be added', 1);
	errors_are('options that cannot be added',
		[ 'level_a1_status', 'definition', 'level_a1_status', qr/lacks options.*not yours/ ]);
	all_true(FEW, 'options that cannot be added');
};

subtest 'properties that cannot be created' => sub {
	fresh(FEW);
	$sim->fault(method => 'POST', path => '/properties/', body => '"total_xp"', times => 0,
		action => refusal('a strange refusal'));
	push_ends('partial', '400', 1);
	errors_are('400', [ 'total_xp', 'definition', 'total_xp', qr/does not create.*a strange refusal/ ]);
	is(truth(), FEW . '|', 'the others are sent');
	$sim->clear_faults;
	is($server->wait_for($server->sql('SELECT ensure_hubspot_properties()'))->{status}, 'success', 'later it can');
	push_ends('success', 'later');
	all_true(FEW, 'later');
	errors_are('later');

	fresh(FEW);
	my $room = 5;
	my $custom = grep { !$_->{hubspotDefined} && !$_->{archived} } values %{ $sim->definitions('contacts') };
	$sim->config(max_custom_properties => $custom + $room);
	my $needed = $server->sql(
		'SELECT count(DISTINCT k) FROM preview_student_progress(), jsonb_object_keys(properties) k');
	my $log = push_ends('partial', 'no room', $needed - $room);
	is($server->sql(q{SELECT count(*) FROM sync_errors WHERE category = 'definition' AND message LIKE '%limit%'}),
		$needed - $room, '... one error for each');
	is($log->{records_changed}, FEW, '... and all students are sent');
	is(truth(), FEW . '|', '... with what there is room for');

	# Somebody is quicker.
	fresh(FEW);
	$sim->script(method => 'POST', path => '/properties/', do => [
		{ op => 'define_groups', type => 'contacts', groups => [
			{ name => 'progresstracking' }, { name => 'level_progress' } ] },
		{ op => 'define_properties', type => 'contacts', properties => [
			{ name => 'total_xp', type => 'number', fieldType => 'number' },
			{ name => 'lessons_completed', type => 'string' } ] } ]);
	push_ends('partial', 'somebody was quicker', 1);
	errors_are('somebody was quicker', [ 'lessons_completed', 'definition', 'lessons_completed' ]);
	all_true(FEW, 'somebody was quicker');
};

# ---------------------------------------------------------------------------
# The token
# ---------------------------------------------------------------------------

subtest 'an answer that repeats the token' => sub {
	primed(FEW);
	my $said = "Bearer $token is not welcome";
	my $named = { message => $said, code => $token, context => { propertyName => [$token], ids => [ held('s001') ] } };
	$sim->fault(path => '/batch/update', action => refusal($said, more => { errors => [$named] }));
	push_ends('partial', 'an update', 1);
	like($server->sql(q{SELECT message FROM sync_errors}), qr/is not welcome/, '... whose message is kept');
	unlike($server->sql('SELECT string_agg(e::text, $$ $$) FROM sync_errors e'), qr/\Q$token\E/, '... without the token');
	$sim->fault(path => '/batch/read', action => refusal($said));
	$sim->fault(method => 'GET', path => 'idProperty=email', times => 0, action => refusal($said));
	$server->sql(q{DELETE FROM progress_state WHERE user_id = 's002'});
	push_ends('partial', 'a look-up', 1);
	fresh(FEW);
	$sim->define_properties('contacts', { name => 'total_xp', type => $token });
	$sim->fault(method => 'POST', path => '/properties/', body => '"average_score"', action => refusal($said));
	push_ends('partial', 'properties', 2);
	unlike($server->sql('SELECT string_agg(e::text, $$ $$) FROM sync_errors e'), qr/\Q$token\E/,
		'... are reported without the token');
	$server->sql(q{UPDATE course_progress SET lesson_id = 'l2'});
	$sim->fault(path => '/batch/update', action => { kind => 'error', status => 403, message => $said });
	push_fails('the end of a run', 'scopes');
};

foreach my $table (qw(sync_errors sync_logs sync_runs progress_properties progress_state sync_alerts))
{
	unlike($server->sql("SELECT string_agg(t::text, ' ') FROM $table t"), qr/\Q$token\E/, "the token is not in $table");
}
unlike($server->log_text, qr/\Q$token\E/, '... nor in the log');
unlike($server->log_text, qr/PANIC|TRAP|terminated by signal/, 'nothing has crashed');
is($server->sql(q{SELECT count(*) FROM sync_runs WHERE status IN ('pending', 'running')}), 0, 'no run is left open');

done_testing();
