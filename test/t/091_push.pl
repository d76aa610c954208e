# A push brings every contact exactly the values that preview_student_progress()
# shows, with no more requests than the students that differ need; it creates
# what HubSpot lacks but never a contact, says of whom it cannot send why, and
# interrupted anywhere and run again it ends with the truth.

use strict;
use warnings;
use utf8;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 250,
	STUDENTS => 230,
	FEW => 12,
	BATCH => 100,
	COURSE_PROPERTIES => 12,
	LEVEL_PROPERTIES => 4,
	SEEN => "UPDATE course_progress SET last_accessed_at = '2026-06-01 10:00:00+00' WHERE lesson_id = 'l1' AND user_id = ",
};

my $update = qr{/contacts/batch/update$};
my $look_up = qr{/contacts/batch/read$};
my $single = qr{/contacts/[^/]*$};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => 5, owners => 2);
my $server = HubspotSync::Server->new('push', simulator => $sim,
	conf => {
		'hubspot_sync.progress_slice' => 7,
		'hubspot_sync.max_retries' => 2,
		restart_after_crash => 'on',
	});

# ---------------------------------------------------------------------------
# The school
# ---------------------------------------------------------------------------

# Nothing is granted to the owner of the school's tables.
$server->load_objects('contacts');
$server->sql(<<~'SQL');
	CREATE ROLE school LOGIN;
	CREATE TABLE pupils AS
		SELECT row_number() OVER (ORDER BY id)::int AS n, record #>> '{properties,email}' AS email
		FROM sim_contacts
		WHERE NOT archived AND record #>> '{properties,email}' <> '';
	CREATE TABLE users (id text, email text, course_id int);
	CREATE TABLE course_progress (user_id text, lesson_id text, completed boolean, score numeric,
		time_spent int, last_accessed_at timestamptz, PRIMARY KEY (user_id, lesson_id));
	CREATE TABLE user_streaks (user_id text, current_streak int);
	CREATE TABLE user_xp (user_id text, total_xp int);
	CREATE TABLE course_lessons (course_id int, lesson_id text);
	CREATE TABLE a1_progress (user_id text, unit_id int, status text, accuracy_percentage numeric,
		time_spent_minutes int, completed_at timestamptz, last_activity timestamptz, PRIMARY KEY (user_id, unit_id));
	CREATE TABLE a1_milestones (user_id text, unit_id int, milestone_type text, achieved_at timestamptz);
	ALTER TABLE users OWNER TO school;
	ALTER TABLE course_progress OWNER TO school;
	ALTER TABLE user_streaks OWNER TO school;
	ALTER TABLE user_xp OWNER TO school;
	ALTER TABLE course_lessons OWNER TO school;
	ALTER TABLE a1_progress OWNER TO school;
	ALTER TABLE a1_milestones OWNER TO school;

	-- Students s001 to s00n, every tenth one without a row anywhere.
	CREATE PROCEDURE school(students int) LANGUAGE plpgsql AS $$
	BEGIN
		TRUNCATE users, course_progress, user_streaks, user_xp, course_lessons, a1_progress, a1_milestones;
		INSERT INTO users SELECT 's' || to_char(n, 'FM000'), email, 1 FROM pupils WHERE n <= students;
		INSERT INTO course_lessons SELECT 1, 'l' || i FROM generate_series(1, 8) i;
		CREATE TEMP TABLE busy ON COMMIT DROP AS
			SELECT id, substr(id, 2)::int AS n FROM users WHERE substr(id, 2)::int % 10 > 0;
		INSERT INTO course_progress
			SELECT id, 'l' || i, i <= n % 4, n % 7 * 10 + i, n * 10 + i,
				'2026-01-01 12:00:00+00'::timestamptz + n * i * interval '1 h'
			FROM busy, generate_series(1, 1 + n % 5) i;
		INSERT INTO user_streaks SELECT id, n % 9 FROM busy WHERE n % 3 > 0;
		INSERT INTO user_xp SELECT id, n * i FROM busy, generate_series(1, 2) i WHERE n % 2 > 0;
		INSERT INTO a1_progress
			SELECT id, i, CASE WHEN i <= n % 6 THEN 'Completed' ELSE 'in_progress' END, 50 + n % 13 + i * 0.1, n + i, NULL,
				'2026-02-01 12:00:00+00'::timestamptz + n * interval '90 min'
			FROM busy, generate_series(1, 4) i WHERE n % 5 IN (1, 2);
		INSERT INTO a1_milestones SELECT id, 1, 'badge', now() FROM busy WHERE n % 4 > 1;
	END $$;
	SQL

# Forgets everything, and has so many students.
sub fresh
{
	my ($students) = @_;
	$sim->clear_faults;
	$sim->reset;
	$server->sql('TRUNCATE progress_state, progress_leftovers, progress_properties, sync_runs, sync_errors, sync_state, contacts,
		contact_owner_history');
	$server->sql("CALL school($students)");
	return;
}

sub student { return sprintf 's%03d', $_[0]; }
sub email_of { return $server->sql("SELECT email FROM users WHERE id = '$_[0]'"); }
sub contact_of { return $sim->object_by('contacts', 'email', email_of($_[0])); }
sub held { return $server->sql("SELECT contact_id FROM progress_state WHERE user_id = '$_[0]'"); }
sub accepted { return $server->sql('SELECT count(*) FROM progress_state WHERE fingerprint <> 0'); }

# A run of all students that ends so; returns its log entry.
sub push_ends
{
	my ($status, $what, $mode) = @_;
	$sim->clear_journal;
	my $run = $server->run_sync('progress', $mode);
	is($run->{status}, $status, "$what: the push ends $status") or diag($run->{stderr});
	return defined $run->{run_id} ? $server->log($run->{run_id}) : {};
}

# The same of a run that SQL requests.
sub call_ends
{
	my ($status, $what, $call) = @_;
	$sim->clear_journal;
	my $log = $server->wait_for($server->sql("SELECT $call"));
	is($log->{status}, $status, "$what: $call ends $status") or diag(explain $log);
	return $log;
}

# How many requests and inputs there were since the journal was cleared.
sub sent_is
{
	my ($what, %wanted) = @_;
	my @updates = $sim->sent(path => $update);
	my @look_ups = $sim->sent(path => $look_up);
	my ($all) = $sim->sent;
	is("@updates", $wanted{updates} // '0 0', "$what: updates and their inputs");
	is("@look_ups", $wanted{look_ups} // '0 0', '... look-ups and their inputs');
	is($all - $updates[0] - $look_ups[0], $wanted{others} // 0, '... and other requests');
	return;
}

# The number of students whose contacts were compared, and what is wrong.
sub truth
{
	$server->load_objects('contacts');
	return $server->sql(<<~'SQL');
		WITH mail AS (
			SELECT c.id, c.record, lower(btrim(m)) AS address
			FROM sim_contacts c CROSS JOIN LATERAL unnest(string_to_array(concat_ws(';',
				c.record #>> '{properties,email}', c.record #>> '{properties,hs_additional_emails}'), ';')) m
			WHERE NOT c.archived
		), compared AS (
			SELECT p.user_id, d.name, c.record #>> ARRAY['properties', d.name] AS got,
				p.properties ->> d.name AS wanted
			FROM preview_student_progress() p CROSS JOIN progress_properties d
			LEFT JOIN mail c ON c.address = lower(btrim(p.email))
			WHERE p.problem IS NULL AND d.problem IS NULL
		)
		SELECT count(DISTINCT user_id) FILTER (WHERE got <> ''),
			string_agg(format('%s %s: %L, not %L', user_id, name, got, wanted), e'\n')
				FILTER (WHERE coalesce(got, '') <> coalesce(wanted, ''))
		FROM compared
		SQL
}

# Some values computed in other ways than the push does.
sub simple_truth
{
	return $server->sql(<<~'SQL');
		SELECT count(*) FROM users u
		JOIN sim_contacts c ON c.record #>> '{properties,email}' = lower(u.email)
		WHERE ROW(c.record #>> '{properties,lessons_completed}',
				nullif(c.record #>> '{properties,total_xp}', ''),
				nullif(c.record #>> '{properties,current_lesson}', ''),
				c.record #>> '{properties,level_a1_units_completed}')
			IS DISTINCT FROM ROW(
				(SELECT count(*)::text FROM course_progress WHERE user_id = u.id AND completed),
				(SELECT sum(total_xp)::text FROM user_xp WHERE user_id = u.id),
				(SELECT lesson_id FROM course_progress WHERE user_id = u.id ORDER BY last_accessed_at DESC LIMIT 1),
				(SELECT count(*)::text FROM a1_progress WHERE user_id = u.id AND lower(status) = 'completed'))
		SQL
}

sub is_true_for
{
	my ($students, $what) = @_;
	is(truth(), "$students|", "$what: the contacts of $students students have exactly their values");
	is(simple_truth(), 0, '... also as other queries see it');
	return;
}

# Open errors: student, category, and what the message must match.
sub errors_are
{
	my ($what, @wanted) = @_;
	my @errors = $server->sql_json(q{SELECT * FROM sync_errors WHERE resolved_at IS NULL ORDER BY record_id COLLATE "C"});
	is(join(' ', map { "$_->{record_id}:$_->{category}" } @errors),
		join(' ', map { "$_->[0]:$_->[1]" } @wanted), "$what: open errors")
	  or diag(explain \@errors);
	foreach my $i (0 .. $#wanted)
	{
		next unless $wanted[$i][2];
		like($errors[$i]{message}, $wanted[$i][2], "... of $wanted[$i][0] with the cause");
	}
	return;
}

sub wait_until_hanging
{
	my ($path) = @_;
	wait_until('a request hangs', sub { scalar $sim->requests(path => $path, fault => 'hang') });
	return;
}

# ---------------------------------------------------------------------------
# The ordinary push
# ---------------------------------------------------------------------------

subtest 'the first push of all' => sub {
	fresh(STUDENTS);
	$server->sql('CREATE TABLE before AS SELECT * FROM sim_contacts');
	my $contacts = () = $sim->objects_text('contacts') =~ /\n/g;
	my $log = push_ends('success', 'first');
	is($log->{mode}, 'incremental', '... in mode incremental');
	is($log->{direction}, 'push', '... with its direction');
	is($log->{records_processed}, STUDENTS, '... with all students');
	is($log->{records_changed}, STUDENTS, '... all of whom were sent');
	is($log->{records_failed}, 0, '... and none failed');
	my $properties = COURSE_PROPERTIES + LEVEL_PROPERTIES;
	# definitions, groups, two groups
	sent_is('first push', updates => '3 ' . STUDENTS, look_ups => '3 ' . STUDENTS, others => $properties + 4);
	is(join(' ', sort { $b <=> $a } map { $_->{inputs} } $sim->requests(path => $update)), '100 100 30',
		'only the last update is short, though slices have 7 students');
	is(join(' ', sort { $b <=> $a } map { $_->{inputs} } $sim->requests(path => $look_up)), '100 100 30',
		'... and the last look-up');
	is($log->{requests}, scalar $sim->requests, 'the run has counted its requests');
	is_true_for(STUDENTS, 'first push');
	is(scalar(() = $sim->objects_text('contacts') =~ /\n/g), $contacts, 'no contact was created');
	is($server->sql(<<~'SQL'), 0, 'other properties of contacts are as before');
		SELECT count(*) FROM sim_contacts a FULL JOIN before b USING (id)
		WHERE (a.record -> 'properties') - 'lastmodifieddate' - 'hs_lastmodifieddate'
				- ARRAY(SELECT name FROM progress_properties)
			IS DISTINCT FROM (b.record -> 'properties') - 'lastmodifieddate' - 'hs_lastmodifieddate'
				- ARRAY(SELECT name FROM progress_properties)
		SQL
	$server->sql('DROP TABLE before');
	my ($latest) = $server->sql_json(q{SELECT * FROM get_latest_sync_status() WHERE sync_type = 'progress'});
	is($latest->{status}, 'success', 'get_latest_sync_status() shows it');
	is($latest->{records_processed}, STUDENTS, '... with its students');
};

subtest 'then what has changed is sent, once, and nothing else' => sub {
	push_ends('success', 'unchanged');
	sent_is('nothing changed');
	is(scalar $sim->journal, 0, '... no request at all');

	$server->sql(SEEN . q{'s007'});
	my $log = push_ends('success', 'one changed');
	sent_is('one changed', updates => '1 1');
	is($log->{records_changed}, 1, '... which the run counts');
	is($log->{records_unchanged}, STUDENTS - 1, '... beside those that have not');
	is_true_for(STUDENTS, 'one changed');

	$server->sql(q{DELETE FROM user_streaks WHERE user_id = 's007'});
	push_ends('success', 'a value that disappears');
	sent_is('a value that disappears', updates => '1 1');
	my ($request) = $sim->requests(path => $update);
	my $values = $request->{body}{inputs}[0]{properties};
	is($values->{study_streak}, '', '... it is sent as ""');
	is($values->{current_streak}, '', '... so is the other property of it');
	is(contact_of('s007')->{properties}{study_streak} // '', '', '... and HubSpot has it no more');
	push_ends('success', 'after it');
	sent_is('it is sent once');
	$server->sql(SEEN =~ s/06-01/06-02/r . q{'s007'});
	push_ends('success', 'after another change');
	($request) = $sim->requests(path => $update);
	ok(!exists $request->{body}{inputs}[0]{properties}{study_streak}, '... also not with the next change');
	is_true_for(STUDENTS, 'a value that disappears');

	$log = push_ends('success', 'full', 'full');
	is($log->{mode}, 'full', '... in that mode');
	sent_is('mode full sends everything again', updates => '3 ' . STUDENTS);
};

subtest '... and a level that appears, until it is gone' => sub {
	$server->sql(<<~'SQL');
		CREATE TABLE b2_progress (user_id text, unit_id int, status text, accuracy_percentage numeric);
		CREATE TABLE b2_milestones (user_id text, unit_id int);
		ALTER TABLE b2_progress OWNER TO school;
		ALTER TABLE b2_milestones OWNER TO school;
		INSERT INTO b2_progress VALUES ('s001', 1, 'completed', 91.234);
		SQL
	push_ends('success', 'a level that appears');
	# definitions, groups
	sent_is('a level that appears', updates => '3 ' . STUDENTS, others => LEVEL_PROPERTIES + 2);
	is_true_for(STUDENTS, 'a level that appears');
	my $contact = contact_of('s001')->{properties};
	is("@$contact{qw(level_b2_units_completed level_b2_accuracy level_b2_milestones level_b2_status)}",
		'1 91.23 0 completed', '... as its tables say');
	is($sim->definitions('contacts')->{level_b2_status}{groupName}, 'level_progress', '... in the group of levels');

	$server->sql('DROP TABLE b2_progress, b2_milestones');
	push_ends('success', 'a level that is gone');
	sent_is('a level that is gone');
	is(contact_of('s001')->{properties}{level_b2_accuracy}, '91.23', '... its values stay');
};

subtest 'groups and properties' => sub {
	fresh(FEW);
	push_ends('success', 'first');
	is($sim->groups('contacts')->{level_progress}{label}, 'Level Progress', 'the group of levels');
	ok($sim->groups('contacts')->{progresstracking}, 'the group of the course');
	my %wanted = (
		(map { $_ => 'number number progresstracking' }
			qw(lessons_completed average_score total_study_time progress_percentage study_streak current_streak total_xp)),
		(map { $_ => 'string text progresstracking' } qw(current_lesson current_active_level)),
		completed_lessons_list => 'string textarea progresstracking',
		last_activity_date => 'date date progresstracking',
		last_activity_date_global => 'datetime date progresstracking',
		(map { $_ => 'number number level_progress' }
			qw(level_a1_units_completed level_a1_accuracy level_a1_milestones)),
		level_a1_status => 'enumeration select level_progress');
	my $definitions = $sim->definitions('contacts');
	foreach my $name (sort keys %wanted)
	{
		my $it = $definitions->{$name};
		is(join(' ', map { $it->{$_} // '' } qw(type fieldType groupName)), $wanted{$name}, $name);
		ok(length($it->{label}) && $it->{label} ne $name, "... has a label: $it->{label}");
	}
	is($server->sql('SELECT count(*) FROM progress_properties'), scalar keys %wanted, 'there are no others');
	is(join(' ', map { "$_->{value}=$_->{label}" } @{ $definitions->{level_a1_status}{options} }),
		'not_started=Not started in_progress=In progress completed=Completed', 'the options of a status');
};

subtest 'a property is answered with another one' => sub {
	fresh(FEW);
	$sim->fault(method => 'POST', path_regex => '/properties/[^/]+/contacts$', body => 'level_a1_status', action => {
			kind => 'body', status => 201, raw => '{"name": "level_a1_accuracy", "type": "number"}', apply => JSON::PP::true });
	push_ends('success', 'answered with another one');
	is($server->sql('SELECT count(*) FROM progress_properties WHERE problem IS NOT NULL'), 0, '... it counts as usable');
	is_true_for(FEW, 'answered with another one');
};

subtest 'ensure_hubspot_properties()' => sub {
	fresh(FEW);
	my $log = call_ends('success', 'nothing there', 'ensure_hubspot_properties()');
	is($log->{mode}, 'properties', '... in that mode');
	my $properties = COURSE_PROPERTIES + LEVEL_PROPERTIES;
	sent_is('nothing there', others => $properties + 4);
	is($log->{records_changed}, $properties, '... all were created');
	is(accepted(), 0, '... no student was sent');
	$log = call_ends('success', 'again', 'ensure_hubspot_properties()');
	sent_is('again', others => 1);
	is($log->{records_changed}, 0, '... nothing is created');
	$sim->archive_property('contacts', 'total_xp');
	call_ends('success', 'one archived', 'ensure_hubspot_properties()');
	ok(!$sim->definitions('contacts')->{total_xp}{archived}, 'an archived one is restored');
	push_ends('success', 'a push after that');
	sent_is('a push after that', updates => '1 ' . FEW, look_ups => '1 ' . FEW);
	is_true_for(FEW, 'a push after that');

	# HubSpot has restored it, without its values, when the request is repeated.
	$sim->archive_property('contacts', 'total_xp');
	$sim->fault(method => 'POST', path => '/properties/', action => { kind => 'reset', apply => JSON::PP::true });
	call_ends('success', 'one archived, the answer lost', 'ensure_hubspot_properties()');
	push_ends('success', 'a push after the lost answer');
	my $with = $server->sql(q{SELECT count(*) FROM preview_student_progress() WHERE properties ->> 'total_xp' <> ''});
	cmp_ok($with, '>', 0, 'some students have a value of it');
	sent_is('a push after the lost answer', updates => "1 $with");
	is_true_for(FEW, 'a push after the lost answer');
};

subtest 'one student' => sub {
	fresh(FEW);
	my ($first, $second) = map { email_of(student($_)) } 1, 2;
	my $log = call_ends('success', 'one', "push_student_progress('\U$first')");
	sent_is('one', updates => '1 1', look_ups => '1 1', others => 4 + COURSE_PROPERTIES + LEVEL_PROPERTIES);
	is($log->{records_processed}, 1, '... is processed');
	is($server->sql('SELECT string_agg(user_id, $$ $$) FROM progress_state'), 's001', '... nobody else was sent');
	call_ends('success', 'unchanged', "push_student_progress(' $first ')");
	sent_is('unchanged');

	$log = call_ends('failed', 'unknown', q{push_student_progress('nobody@example.com')});
	is($log->{error_details}{reason}, 'no_student', '... with that reason');
	like($log->{error_details}{message}, qr/nobody\@example\.com/, '... naming the address');
	sent_is('unknown');

	$server->sql(q{UPDATE users SET email = 'none@example.com' WHERE id = 's003'});
	call_ends('partial', 'one without contact', q{push_student_progress('none@example.com')});
	errors_are('one without contact', [ 's003', 'contact_not_found', qr/none\@example\.com/ ]);
	call_ends('success', 'another one', "push_student_progress('$second')");
	errors_are('another one closes no error', [ 's003', 'contact_not_found' ]);
	push_ends('partial', 'all');
	is(accepted(), FEW - 1, '... sends all others');
	$server->sql(SEEN . q{ANY ('{s001,s002}')});
	call_ends('partial', 'null', 'push_student_progress(NULL)');
	sent_is('NULL stands for all', updates => '1 2', look_ups => '1 1');
	$server->sql(q{UPDATE users SET email = (SELECT email FROM pupils WHERE n = 3) WHERE id = 's003'});
	call_ends('success', 'healed', q{push_student_progress('} . email_of('s003') . q{')});
	errors_are('a push of one student closes his errors');
};

subtest 'some contacts are known, some are not' => sub {
	fresh(STUDENTS);
	push_ends('success', 'first');
	$server->sql(q{DELETE FROM progress_state WHERE substr(user_id, 2)::int % 2 = 0});
	push_ends('success', 'full', 'full');
	sent_is('mixed, all requests but the last are full', updates => '3 ' . STUDENTS, look_ups => '2 ' . STUDENTS / 2);
	is_true_for(STUDENTS, 'mixed');
};

subtest 'dry run' => sub {
	fresh(FEW);
	push_ends('success', 'first');
	my $state = $server->sql('SELECT md5(string_agg(p::text, $$ $$ ORDER BY user_id)) FROM progress_state p');
	my $latest = $server->sql(q{SELECT s::text FROM get_latest_sync_status() s WHERE sync_type = 'progress'});
	isnt($latest, '', 'there is a latest push');
	$server->sql(SEEN . q{ANY ('{s001,s002}')});
	$server->sql(q{UPDATE users SET email = 'none@example.com' WHERE id = 's003'});
	my $log = call_ends('success', 'all', 'push_student_progress(NULL, true)');
	is(scalar $sim->journal, 0, '... without a request');
	is($log->{mode}, 'dry_run', '... in that mode');
	is($log->{records_processed}, 3, '... counting the students that differ');
	is($log->{records_changed}, 0, '... none of whom was sent');
	$log = call_ends('success', 'one', q{push_student_progress('} . email_of('s001') . q{', true)});
	is($log->{records_processed}, 1, '... counting that student');
	is($log->{mode}, 'dry_run', '... in that mode');
	$log = push_ends('success', 'by its mode', 'dry_run');
	is($log->{records_processed}, 3, '... all again');
	is(scalar $sim->journal, 0, '... without a request');
	is($server->sql('SELECT md5(string_agg(p::text, $$ $$ ORDER BY user_id)) FROM progress_state p'),
		$state, 'no state is left');
	is($server->sql('SELECT count(*) FROM sync_errors'), 0, '... nor errors');
	is($server->sql(q{SELECT s::text FROM get_latest_sync_status() s WHERE sync_type = 'progress'}),
		$latest, 'get_latest_sync_status() leaves them out');
	is($server->sql('SELECT count(*) FROM preview_student_progress() WHERE changed'), 3,
		'the preview shows the same students');
	push_ends('partial', 'the real one');
	sent_is('the real one', updates => '1 2', look_ups => '1 1');

	$server->sql(q{UPDATE users SET email = 'no address' WHERE id IN ('s004', 's005')});
	$log = push_ends('success', 'with some who cannot be sent', 'dry_run');
	is($log->{error_details}{remark}, '2 students cannot be sent, see preview_student_progress(); nothing is left out',
		'... which it says');
	$server->sql('ALTER TABLE user_xp RENAME TO hidden_xp');
	$log = push_ends('success', 'and a source that is not there', 'dry_run');
	like($log->{error_details}{remark}, qr/^2 students cannot be sent, .*; left out: .*user_xp/, '... which it says, too');
	$server->sql('ALTER TABLE hidden_xp RENAME TO user_xp');
};

subtest 'other doors, wrong requests' => sub {
	fresh(FEW);
	foreach my $call (q{trigger_hubspot_sync('progress')}, 'push_student_progress()',
		q{trigger_hubspot_sync('progress', 'incremental')})
	{
		$server->sql('TRUNCATE progress_state');
		call_ends('success', 'door', $call);
		is(accepted(), FEW, '... and has sent everybody');
		is($server->sql(q{SELECT status FROM get_latest_sync_status() WHERE sync_type = 'progress'}), 'success',
			'... and stands for the push');
	}
	my %refused = (
		q{trigger_hubspot_sync('progress', 'everything')} => qr/22023: unknown mode "everything"/,
		q{trigger_hubspot_sync('contacts', 'dry_run')} => qr/22023: unknown mode "dry_run"/,
		q{trigger_hubspot_sync('contacts', 'properties')} => qr/22023: unknown mode "properties"/,
		q{trigger_hubspot_sync('progress', 'auto', 'today')} => qr/22023: .*timeframes/,
		q{push_student_progress('a@b.c', false, 'other')} => qr/42704: unknown connection "other"/,
		q{ensure_hubspot_properties('other')} => qr/42704: unknown connection "other"/);
	foreach my $call (sort keys %refused)
	{
		like($server->sql_error("SELECT $call"), qr/ERROR:  $refused{$call}/, "$call is refused");
	}
	like($server->sql_error(q{SELECT trigger_hubspot_sync('progress', 'everything')}),
		qr/HINT:  Known modes: .*properties.*dry_run/, '... with the modes there are');
	$server->sql('ALTER TABLE users RENAME TO people');
	my $error = $server->sql_error('SELECT push_student_progress()');
	like($error, qr/ERROR:  42P01: .*users/, 'without users: refused');
	like($error, qr/HINT:  .*progress_sources/, '... with a hint');
	$server->sql('ALTER TABLE people RENAME TO users');
};

# ---------------------------------------------------------------------------
# Students and contacts
# ---------------------------------------------------------------------------

subtest 'contacts that are synchronised' => sub {
	fresh(STUDENTS);
	is($server->run_sync('contacts')->{status}, 'success', 'contacts are pulled');
	push_ends('success', 'first');
	sent_is('no look-up', updates => '3 ' . STUDENTS, others => 4 + COURSE_PROPERTIES + LEVEL_PROPERTIES);
	is_true_for(STUDENTS, 'no look-up');
};

subtest 'additional addresses, and a second student of a contact' => sub {
	fresh(FEW);
	my $id = contact_of('s001')->{id};
	$sim->patch('contacts', $id, { hs_additional_emails => 'other@example.com;Second@Example.com' });
	$server->sql(q{UPDATE users SET email = ' secOnd@example.com ' WHERE id = 's001'});
	push_ends('success', 'additional address');
	sent_is('additional address', updates => '1 ' . FEW, look_ups => '1 ' . FEW,
		others => 4 + COURSE_PROPERTIES + LEVEL_PROPERTIES);
	is(held('s001'), $id, '... it is the contact with that address');
	is(truth(), FEW . '|', '... which has the values');

	my $value = $sim->value('contacts', $id, 'lessons_completed');
	$server->sql(q{INSERT INTO users VALUES ('s900', 'OTHER@example.com', 1);
		INSERT INTO course_progress VALUES ('s900', 'l1', true, 1, 1, now()), ('s900', 'l2', true, 1, 1, now()),
			('s900', 'l3', true, 1, 1, now()), ('s900', 'l4', true, 1, 1, now()), ('s900', 'l5', true, 1, 1, now())});
	push_ends('partial', 'second student');
	sent_is('second student', look_ups => '1 1');
	errors_are('second student', [ 's900', 'duplicate_contact', qr/contact $id .*s001/ ]);
	is($sim->value('contacts', $id, 'lessons_completed'), $value, 'the contact keeps the values of the first');

	# Both new in one look-up.
	fresh(FEW);
	$sim->patch('contacts', $id, { hs_additional_emails => 'other@example.com' });
	$server->sql(q{INSERT INTO users VALUES ('s900', 'OTHER@example.com', 1)});
	my $log = push_ends('partial', 'both new');
	is($log->{records_failed}, 1, '... one of them fails');
	is($server->sql(q{SELECT string_agg(category, ',') FROM sync_errors WHERE record_id IN ('s001', 's900')}),
		'duplicate_contact', '... for the other');
	is(accepted(), FEW, '... all others are sent');
	is(scalar(grep { $_->{id} eq $id } map { @{ $_->{body}{inputs} } } $sim->requests(path => $update)),
		1, '... the contact once');
};

subtest 'an address that changes' => sub {
	fresh(FEW);
	push_ends('success', 'first');
	my $old = held('s002');
	my $new = $server->sql('SELECT email FROM pupils WHERE n = 100');
	my $id = $sim->object_by('contacts', 'email', $new)->{id};
	$server->sql("UPDATE users SET email = upper('$new') WHERE id = 's002'");
	push_ends('success', 'another address');
	sent_is('another address', updates => '1 1', look_ups => '1 1');
	is(held('s002'), $id, '... another contact');
	is_true_for(FEW, 'another address');
	$server->sql("UPDATE users SET email = lower(email) WHERE id = 's002'");
	push_ends('success', 'the same in other letters');
	sent_is('the same in other letters');
	isnt($old, $id, 'it was another one before');
};

# Whose contact it is, the address says, not who had it before.
subtest 'contacts that students leave' => sub {
	# The contact s001 leaves is found again by somebody who has done nothing, in a later run ...
	fresh(STUDENTS);
	push_ends('success', 'first');
	my ($first, $last) = (email_of('s001'), email_of('s230'));
	my $other = $server->sql('SELECT email FROM pupils WHERE n = ' . (STUDENTS + 5));
	$server->sql("UPDATE users SET email = '$other' WHERE id = 's001'");
	push_ends('success', 'left');
	$server->sql("INSERT INTO users VALUES ('s900', '$first', 1)");
	push_ends('success', 'found');
	is_true_for(STUDENTS + 1, 'found');
	is($server->sql('SELECT count(*) FROM progress_leftovers'), 0, 'nothing is left over');

	# ... or in the same one, many students later.
	foreach my $case ('looked up here', 'looked up there')
	{
		fresh(STUDENTS);
		$server->run_sync('contacts') if $case =~ /here/;
		push_ends('success', "$case: first");
		$server->sql("UPDATE users SET email = CASE id WHEN 's001' THEN '$last' ELSE '$first' END WHERE id IN ('s001', 's230')");
		push_ends('success', "$case: swapped", 'full');
		is_true_for(STUDENTS, "$case, swapped");
	}
};

subtest 'addresses that go to another student' => sub {
	fresh(FEW);
	push_ends('success', 'first');
	my $id = held('s003');
	$server->sql(q{INSERT INTO users SELECT 's900', email, 1 FROM users WHERE id = 's003';
		UPDATE users SET email = NULL WHERE id = 's003';
		INSERT INTO course_progress SELECT 's900', lesson_id, completed, score, time_spent, last_accessed_at
			FROM course_progress WHERE user_id = 's003';
		INSERT INTO user_xp VALUES ('s900', 4711)});
	push_ends('partial', 'given away');
	errors_are('given away', [ 's003', 'no_email' ]);
	is($sim->value('contacts', $id, 'total_xp'), 4711, 'the contact has the values of who has the address now');

	fresh(FEW);
	push_ends('success', 'first');
	my %before = map { $_ => held($_) } qw(s001 s002);
	$server->sql(q{UPDATE users u SET email = o.email FROM users o
		WHERE (u.id, o.id) IN (('s001', 's002'), ('s002', 's001'))});
	$server->run_sync('progress');
	my $run = $server->run_sync('progress');
	is($run->{status}, 'success', 'when two students swap addresses, the second push at the latest ends success')
	  or diag($run->{stderr});
	errors_are('swapped');
	is(held('s001') . held('s002'), $before{s002} . $before{s001}, '... with swapped contacts');
	is_true_for(FEW, 'swapped');
};

subtest 'several students with one address' => sub {
	fresh(FEW);
	$server->sql(q{UPDATE users SET email = (SELECT upper(email) FROM users WHERE id = 's001') WHERE id = 's002'});
	my $log = push_ends('partial', 'shared address');
	is($log->{records_failed}, 2, '... both fail');
	is(accepted(), FEW - 2, '... all others are sent');
	errors_are('shared address', [ 's001', 'duplicate_email', qr/s002/ ], [ 's002', 'duplicate_email', qr/s001/ ]);
	my $address = email_of('s001');
	is($server->sql(q{SELECT string_agg(email, ' ' ORDER BY record_id) FROM sync_errors}), "$address \U$address",
		'... with the addresses as they are');
	is(contact_of('s001')->{properties}{lessons_completed} // '', '', 'the contact gets nobody\'s values');
	$log = push_ends('partial', 'again');
	sent_is('again');
	is($server->sql('SELECT string_agg(attempts::text, $$ $$) FROM sync_errors'), '2 2', '... each error once more');
	$server->sql(q{UPDATE users SET email = (SELECT email FROM pupils WHERE n = 2) WHERE id = 's002'});
	push_ends('success', 'healed');
	sent_is('healed', updates => '1 2', look_ups => '1 2');
	errors_are('healed');
	is_true_for(FEW, 'healed');
};

subtest 'addresses that are none' => sub {
	fresh(FEW);
	my @bad = ('', '  ', 'plain', '@example.com', 'a@', 'a@b', 'a@b.', 'a@b@example.com',
		'a b@example.com', 'a@example.com,b@example.com', 'x' x 250 . '@example.com');
	my $n = 0;
	foreach my $email (@bad)
	{
		$server->sql(sprintf q{UPDATE users SET email = '%s' WHERE id = '%s'}, $email, student(++$n));
	}
	$server->sql(sprintf q{UPDATE users SET email = NULL WHERE id = '%s'}, student(FEW));
	$server->sql(q{INSERT INTO users SELECT 's' || n, email FROM pupils WHERE n = 100});
	my $log = push_ends('partial', 'bad addresses');
	is($log->{records_failed}, FEW, '... every bad one fails');
	is($log->{records_changed}, 1, '... the good one is sent');
	errors_are('bad addresses', (map { [ student($_), 'no_email' ] } 1, 2),
		(map { [ student($_), 'invalid_email', qr/no e-mail address/ ] } 3 .. FEW - 1), [ student(FEW), 'no_email' ]);
	sent_is('only the good one', updates => '1 1', look_ups => '1 1', others => 4 + COURSE_PROPERTIES + LEVEL_PROPERTIES);
	$server->sql(q{UPDATE users SET email = (SELECT email FROM pupils WHERE n = substr(id, 2)::int)});
	push_ends('success', 'healed');
	errors_are('healed');
	is_true_for(FEW + 1, 'healed');
	is($server->sql('SELECT count(*) FROM sync_errors WHERE resolved_at IS NOT NULL'), FEW, 'all of them are resolved');
};

subtest 'hostile ids and addresses' => sub {
	fresh(0);
	my @ids = (q{'; DROP TABLE users; --}, q{"quoted"}, 'back\\slash', "new\nline", '{a,b}', 'NULL', '%s%n', 'schüler 🎓',
		'x' x 1000, 'é' x 500);
	my @emails = (q{o'hara"q@example.com}, 'a+b/c?d=e&f#g%20h@example.com', 'back\\slash@example.com', '{x}@example.com',
		'jürgen@münchen.example', '%s@example.com', 'null@example.com', '-@example.com',
		q{x''y@example.com}, '$1@example.com');
	$sim->create('contacts', map { { email => lc } } @emails);
	foreach my $i (0 .. $#ids)
	{
		my ($id, $email) = ($ids[$i] =~ s/'/''/gr, $emails[$i] =~ s/'/''/gr);
		$server->sql("INSERT INTO users VALUES ('$id', '$email', 1);
			INSERT INTO course_progress VALUES ('$id', 'l1', true, $i, 60, now())");
	}
	push_ends('success', 'hostile');
	is(truth(), scalar(@ids) . '|', 'each has its values');
	is($sim->value_by('contacts', 'email', $emails[3], 'average_score'), '3.00', '... its own');
	push_ends('success', 'unchanged');
	sent_is('unchanged');

	$server->sql(q{INSERT INTO users SELECT repeat(c, 1001), email FROM pupils,
		(VALUES ('y', 1), ('z', 2)) v(c, i) WHERE n = i});
	$server->sql(q{INSERT INTO users SELECT 's003', email FROM pupils WHERE n = 3});
	my $log = push_ends('partial', 'ids too long');
	is($log->{records_failed}, 2, '... both fail');
	is($server->sql(q{SELECT string_agg(left(record_id, 1) || category, ' ' ORDER BY record_id) FROM sync_errors}),
		'yinvalid_id zinvalid_id', '... as such');
	is($log->{records_changed}, 1, '... others are sent');
	$server->sql(q{DELETE FROM users WHERE length(id) > 1000});
	push_ends('success', 'without them');
	errors_are('without them');
};

subtest 'many lose everything' => sub {
	fresh(30);
	push_ends('success', 'first');
	is_true_for(30, 'first');
	my $before = truth();
	$server->sql('TRUNCATE course_progress, user_streaks, user_xp, a1_progress, a1_milestones');
	my $log = push_ends('failed', 'emptied');
	is($log->{error_details}{reason}, 'mass_empty', '... with that reason');
	is($log->{error_details}{emptied}, 27, '... counting those who had something');
	like($log->{error_details}{hint}, qr/accept_hubspot_absence\(\)/, '... and what to do');
	is(scalar $sim->journal, 0, '... nothing was sent');
	like($server->sql(q{SELECT message FROM sync_alerts WHERE alert = 'failed_run' AND sync_type = 'progress'}),
		qr/27 of 30 students/, '... and an alert');
	push_ends('failed', 'again');
	is(scalar $sim->journal, 0, '... nothing is sent');
	my ($id) = map { $_->{id} } $server->sql_json('SELECT id FROM sync_runs ORDER BY created_at DESC LIMIT 1');
	is($server->sql("SELECT accept_hubspot_absence('$id')"), 27, 'somebody accepts it');
	push_ends('success', 'accepted');
	sent_is('accepted', updates => '1 27');
	is(truth(), '30|', '... it is carried out');
	is(simple_truth(), 0, '... as other queries see it');
	$server->sql('CALL school(30)');
	push_ends('success', 'filled again');
	is_true_for(30, 'filled again');
	$server->sql('TRUNCATE course_progress, user_streaks, user_xp, a1_progress, a1_milestones');
	is(push_ends('failed', 'emptied again')->{error_details}{reason}, 'mass_empty', '... was accepted once only');

	fresh(20);
	push_ends('success', 'few');
	$server->sql('TRUNCATE course_progress, user_streaks, user_xp, a1_progress, a1_milestones');
	push_ends('success', 'few emptied');
	sent_is('few emptied', updates => '1 18');
	is(truth(), '20|', '... it is carried out at once');

	fresh(STUDENTS);
	push_ends('success', 'many');
	$server->sql(q{DELETE FROM users WHERE false;
		DELETE FROM course_progress WHERE user_id < 's026'; DELETE FROM user_streaks WHERE user_id < 's026';
		DELETE FROM user_xp WHERE user_id < 's026'; DELETE FROM a1_progress WHERE user_id < 's026';
		DELETE FROM a1_milestones WHERE user_id < 's026'});
	push_ends('success', 'less than a tenth');
	sent_is('less than a tenth', updates => '1 23');
	is_true_for(STUDENTS, 'less than a tenth');
};

subtest 'a source that is dropped' => sub {
	fresh(FEW);
	push_ends('success', 'first');
	$server->sql('ALTER TABLE user_xp RENAME TO hidden_xp; ALTER TABLE a1_milestones RENAME TO hidden_ms');
	my $log = push_ends('success', 'without xp');
	is(scalar $sim->journal, 0, '... nothing is sent');
	like($log->{error_details}{remark}, qr/left out: .*user_xp.*a1_milestones/, '... and it says what is left out');
	is(contact_of('s001')->{properties}{total_xp}, 3, '... the value stays');
	$server->sql(SEEN . q{'s001'});
	push_ends('success', 'another change');
	my ($request) = $sim->requests(path => $update);
	ok(!exists $request->{body}{inputs}[0]{properties}{total_xp}, '... leaves it alone');
	is(contact_of('s001')->{properties}{total_xp}, 3, '... it stays');
	$server->sql('ALTER TABLE hidden_xp RENAME TO user_xp; ALTER TABLE hidden_ms RENAME TO a1_milestones;
		DELETE FROM user_xp WHERE user_id = $$s001$$');
	push_ends('success', 'there again');
	sent_is('there again', updates => '1 1');
	is(contact_of('s001')->{properties}{total_xp} // '', '', '... a value that is gone meanwhile is cleared');
	is_true_for(FEW, 'there again');
};

subtest 'students who get another id' => sub {
	fresh(FEW);
	push_ends('success', 'first');
	my @ids = map { held($_) } qw(s001 s002);
	$server->sql(q{
		UPDATE users SET id = translate(id, 's', 't') WHERE id IN ('s001', 's002');
		UPDATE course_progress SET user_id = translate(user_id, 's', 't') WHERE user_id IN ('s001', 's002');
		UPDATE user_streaks SET user_id = translate(user_id, 's', 't') WHERE user_id IN ('s001', 's002');
		UPDATE user_xp SET user_id = translate(user_id, 's', 't'), total_xp = 77 WHERE user_id IN ('s001', 's002');
		UPDATE a1_progress SET user_id = translate(user_id, 's', 't') WHERE user_id IN ('s001', 's002');
		UPDATE a1_milestones SET user_id = translate(user_id, 's', 't') WHERE user_id IN ('s001', 's002')});
	push_ends('success', 'new ids');
	sent_is('new ids', updates => '1 2', look_ups => '1 2');
	is(join(' ', map { held($_) } qw(t001 t002)), "@ids", 'the new ones have the contacts');
	is(join('', map { held($_) } qw(s001 s002)), '', '... the old ones no more');
	is($sim->value('contacts', $ids[0], 'total_xp'), 154, '... which have their values');
	is_true_for(FEW, 'new ids');
	errors_are('new ids');
};

subtest 'a student who takes a contact over and has done less' => sub {
	fresh(FEW);
	push_ends('success', 'first');
	my $id = held('s001');
	ok($sim->value('contacts', $id, 'current_lesson'), 'the contact has a lesson');
	$server->sql(q{UPDATE users SET id = 't001' WHERE id = 's001'; INSERT INTO user_streaks VALUES ('t001', 77)});
	push_ends('success', 'new id');
	is(held('t001'), $id, 'the new one has the contact');
	is($sim->value('contacts', $id, 'study_streak'), 77, '... which has his values');
	is($sim->value('contacts', $id, 'current_lesson') // '', '', '... and none of the old one');
	is_true_for(FEW, 'new id');
};

# ---------------------------------------------------------------------------
# Other runs, other roles
# ---------------------------------------------------------------------------

subtest 'beside a pull' => sub {
	fresh(FEW);
	$sim->fault(method => 'GET', path => '/contacts?', times => 0, action => 'hang');
	my $pull = $server->trigger('contacts', 'full');
	wait_until_hanging(qr{/contacts$});
	push_ends('success', 'beside a pull');
	is($server->log($pull)->{status}, 'running', 'the pull is still under way');
	is_true_for(FEW, 'beside a pull');
	$server->sql("SELECT cancel_hubspot_sync('$pull')");
	$server->wait_for($pull);
};

subtest 'pushes that meet' => sub {
	fresh(FEW);
	push_ends('success', 'first');
	$server->sql(SEEN . q{'s001'});
	$sim->fault(path => '/batch/update', times => 0, action => 'hang');
	my $id = $server->sql('SELECT push_student_progress()');
	wait_until_hanging($update);
	foreach my $call ('push_student_progress()', 'push_student_progress(NULL)', q{trigger_hubspot_sync('progress')},
		q{trigger_hubspot_sync('progress', 'incremental')})
	{
		my ($status, $out, $err) = $server->psql("SELECT $call");
		is($out, $id, "$call joins");
		like($err, qr/NOTICE:  sync "progress" is already under way; joining run $id/, '... and says so');
	}
	foreach my $call ('push_student_progress(NULL, true)', q{push_student_progress('a@b.c')}, 'ensure_hubspot_properties()',
		q{trigger_hubspot_sync('progress', 'full')}, q{push_student_progress('a@b.c', true)})
	{
		like($server->sql_error("SELECT $call"), qr/ERROR:  55006: sync "progress" is already running in mode incremental/,
			"$call meanwhile is refused");
	}
	is($server->sql('SELECT count(*) FROM sync_runs WHERE status IN ($$pending$$, $$running$$)'), 1, 'there is one run');
	$server->sql("SELECT cancel_hubspot_sync('$id')");
	is($server->wait_for($id)->{status}, 'cancelled', 'which can be cancelled');
};

subtest 'roles' => sub {
	fresh(FEW);
	$server->sql(q{CREATE ROLE pusher LOGIN; CREATE ROLE teacher LOGIN; CREATE ROLE meddler LOGIN});
	foreach my $call ('push_student_progress()', 'push_student_progress(NULL)', 'ensure_hubspot_properties()')
	{
		like($server->sql_error("SELECT $call", user => 'pusher'), qr/ERROR:  42501: /, "$call needs EXECUTE");
	}
	like($server->sql_error('SELECT * FROM preview_student_progress()', user => 'pusher'), qr/ERROR:  42501: /,
		'so does preview_student_progress()');
	$server->sql('GRANT EXECUTE ON FUNCTION push_student_progress() TO pusher;
		GRANT EXECUTE ON FUNCTION preview_student_progress(text) TO pusher, teacher');
	$sim->clear_journal;
	my $id = $server->sql('SELECT push_student_progress()', user => 'pusher');
	is($server->wait_for($id)->{status}, 'success', 'which is enough for a push');
	is($server->log($id)->{requested_by}, 'pusher', '... that names who asked');
	is_true_for(FEW, 'a push by a role without other rights');
	foreach my $table (qw(users progress_state progress_properties sync_errors sync_logs))
	{
		like($server->sql_error("SELECT * FROM $table", user => 'pusher'), qr/ERROR:  42501: /, "... but not to read $table");
	}
	like($server->sql_error('SELECT * FROM preview_student_progress()', user => 'pusher'), qr/ERROR:  42501: /,
		'... nor to see it through the preview');
	like($server->sql_error('SELECT push_student_progress(NULL, true)', user => 'pusher'), qr/ERROR:  42501: /,
		'... nor for the other function');

	$server->sql(q{
		GRANT SELECT ON users, course_progress, user_streaks, user_xp, course_lessons, a1_progress, a1_milestones TO teacher;
		ALTER TABLE users ENABLE ROW LEVEL SECURITY;
		CREATE POLICY mine ON users TO teacher USING (id < 's004')});
	is($server->sql('SELECT count(*) FROM preview_student_progress()', user => 'teacher'), 3,
		'the preview shows what row security lets the caller see');
	$server->sql(SEEN . q{'s007'});
	push_ends('success', 'with row security');
	sent_is('the push is its owner\'s', updates => '1 1');
	$server->sql('DROP POLICY mine ON users; ALTER TABLE users DISABLE ROW LEVEL SECURITY');

	$server->sql('GRANT SELECT, INSERT, UPDATE, DELETE ON progress_sources TO meddler, school');
	$server->sql('CREATE TABLE meddler_xp (user_id text, total_xp int); ALTER TABLE meddler_xp OWNER TO meddler');
	foreach my $sql (q{UPDATE progress_sources SET table_name = 'meddler_xp' WHERE source = 'user_xp'},
		q{DELETE FROM progress_sources WHERE source = 'user_xp'},
		q{UPDATE progress_sources SET enabled = false WHERE source = 'user_xp'},
		q{INSERT INTO progress_sources (source, level, total_units) VALUES ('level', 'a1', 1)})
	{
		like($server->sql_error($sql, user => 'meddler'), qr/ERROR:  42501: /, "refused for others: $sql");
	}
	is($server->sql_error(q{UPDATE progress_sources SET enabled = false WHERE source = 'user_xp'}, user => 'school'), '',
		'the owner of the tables may');
	like($server->sql_error('TRUNCATE progress_sources'), qr/ERROR:  /, 'TRUNCATE is refused for everybody');
	$server->sql(q{UPDATE progress_sources SET enabled = true WHERE source = 'user_xp'});
};

# ---------------------------------------------------------------------------
# Interruptions
# ---------------------------------------------------------------------------

my %interrupt = (
	'kill -9 of the worker' => sub {
		my ($id) = @_;
		my $worker = $server->sql("SELECT holder_pid FROM sync_run_states WHERE id = '$id'");
		kill 'KILL', $worker or die "cannot kill $worker: $!";
		wait_until('the server has noticed', sub { !kill 0, $worker });
		wait_until('the server accepts connections', sub { ($server->psql('SELECT 1'))[0] == 0 });
		return 'failed';
	},
	'an immediate restart' => sub {
		$server->stop('immediate');
		$server->start;
		return 'failed';
	},
	'an orderly restart' => sub {
		$server->restart;
		return 'failed';
	},
	'a cancel' => sub {
		my ($id) = @_;
		$server->sql("SELECT cancel_hubspot_sync('$id')");
		return 'cancelled';
	});

foreach my $how (sort keys %interrupt)
{
	subtest "$how in mid-push" => sub {
		fresh(STUDENTS);
		# HubSpot carries the second update out, and nobody learns of it.
		$sim->fault(path => '/batch/update', nth => 2, times => 0, action => { kind => 'hang', apply => \1 });
		my $id = $server->sql('SELECT push_student_progress()');
		wait_until('the first update is noted and the second one hangs', sub {
			accepted() == BATCH && $sim->requests(path => $update, fault => 'hang');
		});
		my $status = $interrupt{$how}->($id);
		my $log = $server->wait_for($id);
		is($log->{status}, $status, "the run reads $status");
		is($log->{error_details}{reason}, $status eq 'failed' ? 'interrupted' : 'cancelled', '... with its reason');
		is(accepted(), BATCH, 'what was accepted is noted');
		$sim->clear_faults;
		# Meanwhile somebody goes on learning.
		$server->sql(SEEN . q{ANY ('{s001,s009,s229}')});
		$server->sql(q{DELETE FROM user_xp WHERE user_id = 's003'});
		push_ends('success', 'again');
		# Those that hung may be counted late.
		my ($requests, $inputs) = $sim->sent(path => $update, status => 200);
		cmp_ok($inputs, '>=', STUDENTS - BATCH, 'the others are sent');
		cmp_ok($inputs, '<=', STUDENTS - BATCH + 5, '... and those that have changed, nobody else');
		cmp_ok($requests, '<=', 2, '... in full batches');
		is(accepted(), STUDENTS, 'everybody is accepted');
		is_true_for(STUDENTS, "after $how");
		push_ends('success', 'unchanged');
		sent_is('unchanged');
	};
}

# HubSpot has taken values of which nothing was noted; then they disappear.
subtest 'values that are gone when an interrupted push is repeated' => sub {
	fresh(FEW);
	$sim->fault(path => '/batch/update', action => { kind => 'hang', apply => \1 });
	my $id = $server->sql('SELECT push_student_progress()');
	wait_until_hanging($update);
	$server->sql("SELECT cancel_hubspot_sync('$id')");
	is($server->wait_for($id)->{status}, 'cancelled', 'the push is cancelled');
	is(accepted(), 0, 'nothing is noted');
	is(contact_of('s003')->{properties}{total_xp}, 9, '... but HubSpot has the values');
	$server->sql(q{DELETE FROM user_xp WHERE user_id = 's003'});
	push_ends('success', 'again');
	is(contact_of('s003')->{properties}{total_xp} // '', '', 'the value is cleared');
	is_true_for(FEW, 'again');
};

is($server->sql(q{SELECT count(*) FROM sync_runs WHERE status IN ('pending', 'running')}), 0, 'no run is left open');
unlike($server->log_text, qr/PANIC|TRAP|segmentation fault|terminated by signal 11/i, 'nothing crashed by itself');

done_testing();
