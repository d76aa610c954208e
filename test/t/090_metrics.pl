# Every metric of every student is what section "Student progress" of the
# design defines, for made-up schools with any types, names, gaps, ties and
# time zones: preview_student_progress(), student_progress,
# level_progress_summary and inactive_students() are compared, value by value,
# with an oracle in Perl that knows only the rows as they can be read and
# computes with whole numbers. Who may see fewer rows gets what those rows
# give. What a school lacks, names differently or gives to others is left out,
# used or refused as documented.

use strict;
use warnings;
use utf8;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use JSON::PP;
use List::Util qw(max min shuffle uniq);
use Math::BigInt;
use POSIX qw(strftime);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant {
	STUDENTS => 45,
	DAY => 86_400,
	MAX_TEXT => 65_536,
};

# Any seed must do; this one is printed to repeat what it found.
my $seed = int($ENV{HUBSPOT_SYNC_TEST_SEED} // (time * 1000) % 1_000_000);
srand $seed;
diag("HUBSPOT_SYNC_TEST_SEED=$seed");

my $begin = time;
my $json = JSON::PP->new->allow_nonref;
my $sim = HubspotSync::Simulator->start(contacts => 0, deals => 0, owners => 0, companies => 0);

# Slices of a few students, so that there are many.
my $server = HubspotSync::Server->new('metrics', simulator => $sim, extension => 0,
	conf => { 'hubspot_sync.progress_slice' => 7 });
$server->sql('CREATE ROLE school LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE stranger LOGIN');

sub one_of { return $_[ rand @_ ]; }
sub chance { return rand() < $_[0]; }

sub literal
{
	my ($value) = @_;
	return defined $value ? "'" . ($value =~ s/'/''/gr) . "'" : 'NULL';
}

sub identifier { return '"' . ($_[0] =~ s/"/""/gr) . '"'; }

sub new_database
{
	my ($name) = @_;
	$server->sql("CREATE DATABASE $name");
	my $db = $server->in($name);
	$db->sql(<<~'SQL');
		CREATE EXTENSION hubspot_sync;
		GRANT EXECUTE ON FUNCTION preview_student_progress(text), read_student_progress(), inactive_students(integer)
			TO reader, school, stranger;
		GRANT SELECT ON student_progress, level_progress_summary TO reader, school, stranger;
		GRANT SELECT, INSERT, UPDATE, DELETE ON progress_sources TO school, stranger;
		SQL
	return $db;
}

# ---------------------------------------------------------------------------
# The oracle: exact numbers
# ---------------------------------------------------------------------------

# A number is [ integer, decimals ].
sub number_of
{
	my ($text) = @_;
	return undef unless defined $text;
	my ($sign, $whole, $part, $power) = $text =~ /^\s*([-+]?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([-+]?[0-9]+))?\s*$/
	  or return undef;
	$part //= '';
	return undef if $whole . $part eq '';
	my $scale = length($part) - ($power // 0);
	my $value = Math::BigInt->new(($sign eq '-' ? '-' : '') . $whole . $part);
	return $scale < 0 ? [ $value * Math::BigInt->new(10)**-$scale, 0 ] : [ $value, $scale ];
}

# The sum of numbers, undef of none.
sub sum_of
{
	my @numbers = grep { defined } @_;
	return undef unless @numbers;
	my $scale = max(map { $_->[1] } @numbers);
	my $sum = Math::BigInt->new(0);
	$sum += $_->[0] * Math::BigInt->new(10)**($scale - $_->[1]) foreach @numbers;
	return [ $sum, $scale ];
}

# The greatest whole number that is no more than a quotient.
sub floor_div
{
	my ($dividend, $divisor) = @_;
	my ($quotient, $rest) = $dividend->copy->bdiv($divisor);
	return $quotient;
}

# A quotient, half up to two decimals.
sub two_decimals
{
	my ($number, $divisor) = @_;
	my $below = Math::BigInt->new(10)**$number->[1] * $divisor;
	my $cents = floor_div($number->[0] * 200 + $below, $below * 2);
	my $digits = sprintf '%03s', $cents->copy->babs->bstr;
	$digits =~ s/ /0/g;
	$digits =~ s/(..)$/.$1/;
	return ($cents < 0 ? '-' : '') . $digits;
}

sub mean
{
	my @numbers = grep { defined } @_;
	return @numbers ? two_decimals(sum_of(@numbers), scalar @numbers) : undef;
}

# Without zeros at the end.
sub plain
{
	my ($number) = @_;
	return undef unless defined $number;
	my ($value, $scale) = @$number;
	my $digits = $value->copy->babs->bstr;
	$digits = '0' x ($scale + 1 - length $digits) . $digits if length $digits <= $scale;
	substr($digits, length($digits) - $scale, 0) = '.' if $scale > 0;
	$digits =~ s/0+$// if $scale > 0;
	$digits =~ s/\.$//;
	return ($value < 0 ? '-' : '') . $digits;
}

# ---------------------------------------------------------------------------
# The oracle: flags and instants
# ---------------------------------------------------------------------------

sub is_true
{
	my ($text, $type) = @_;
	return 0 unless defined $text;
	return $text eq 'true' ? 1 : 0 if $type eq 'boolean';
	return number_of($text)->[0] != 0 ? 1 : 0 if $type =~ /^(?:integer|bigint|smallint|numeric)/;
	return $text =~ /^ *(?:t|true|y|yes|on|1) *$/i ? 1 : 0;
}

# An instant in UTC as text that sorts, undef where it has no date of four
# digits a year.
sub instant
{
	my ($text) = @_;
	return undef if !defined $text || $text =~ /infinity|BC/;
	my ($date, $clock, $part) = $text =~ /^(\d{4,}-\d\d-\d\d)(?: (\d\d:\d\d:\d\d)(?:\.(\d+))?(?:\+00)?)?$/
	  or die "what instant is $text?";
	return undef if $date =~ /^\d{5}/;
	return sprintf '%s %s.%s', $date, $clock // '00:00:00', substr(($part // '') . '000000', 0, 6);
}

# In milliseconds, truncated.
sub iso { return $_[0] =~ s/^(\S+) (\S+?)\d{3}$/$1T$2Z/r; }

sub day_number
{
	my ($year, $month, $day) = @_;
	$year-- if $month <= 2;
	my $century = POSIX::floor($year / 400);
	my $of_century = $year - 400 * $century;
	my $of_year = int((153 * ($month + ($month > 2 ? -3 : 9)) + 2) / 5) + $day - 1;
	return $century * 146_097 + $of_century * 365 + int($of_century / 4) - int($of_century / 100) + $of_year - 719_468;
}

sub epoch
{
	my ($instant) = @_;
	my ($year, $month, $day, $hours, $minutes, $seconds) = $instant =~ /(\d+)-(\d+)-(\d+)[ T](\d+):(\d+):([\d.]+)/;
	return day_number($year, $month, $day) * DAY + $hours * 3600 + $minutes * 60 + $seconds;
}

sub latest { return (sort grep { defined } @_)[-1]; }

# ---------------------------------------------------------------------------
# The oracle: students
# ---------------------------------------------------------------------------

# Rows of a table by user.
sub by_user
{
	my ($table) = @_;
	my %by;
	push @{ $by{ $_->{user_id} } }, $_ foreach grep { defined $_->{user_id} } @{ $table->{rows} };
	return \%by;
}

# Whether a school has a table, with these columns.
sub has
{
	my ($table, @columns) = @_;
	return $table && !grep { !$table->{columns}{$_} } @columns;
}

# Descending, without a value last.
sub newest_first
{
	my ($a, $b) = @_;
	return (defined $b <=> defined $a) || (defined $a ? $b cmp $a : 0);
}

# What course_progress gives.
sub course_metrics
{
	my ($m, $t, $rows) = @_;
	my @rows = map { +{
		lesson => $_->{lesson_id},
		done => has($t, 'completed') ? is_true($_->{completed}, $t->{columns}{completed}{type}) : 0,
		score => number_of($_->{score}),
		seen => instant($_->{last_accessed_at}),
	} } @$rows;
	my %done;
	push @{ $done{ $_->{lesson} } }, $_->{seen} foreach grep { $_->{done} && defined $_->{lesson} } @rows;

	$m->{lessons_completed} = keys %done if has($t, 'completed');
	$m->{average_score} = mean(map { $_->{score} } grep { $_->{done} } @rows) if has($t, 'completed', 'score');
	return unless has($t, 'last_accessed_at');
	my $newest = latest(map { $_->{seen} } @rows);
	$m->{last_activity_date} = substr $newest, 0, 10 if defined $newest;
	my ($current) = sort { newest_first($a->{seen}, $b->{seen}) || $b->{lesson} cmp $a->{lesson} }
	  grep { defined $_->{lesson} } @rows;
	$m->{current_lesson} = $current->{lesson} if $current;
	if (has($t, 'completed') && @rows)
	{
		my %at = map { $_ => latest(@{ $done{$_} }) // '' } keys %done;
		$m->{completed_lessons_list} = [ sort { $at{$a} cmp $at{$b} || $a cmp $b } keys %done ];
	}
	return $newest;
}

# The streak of the row that counts.
sub streak
{
	my ($rows) = @_;
	my ($row) = sort {
		newest_first($a->{updated}, $b->{updated})
		  || newest_first($a->{created}, $b->{created})
		  || compare_numbers($b->{streak}, $a->{streak})
	} map { +{
		updated => instant($_->{updated_at}),
		created => instant($_->{created_at}),
		streak => number_of($_->{current_streak}),
	} } @$rows;
	return $row ? plain($row->{streak}) : undef;
}

sub compare_numbers
{
	my ($x, $y) = @_;
	return (defined $x <=> defined $y) if !defined $x || !defined $y;
	my $scale = max($x->[1], $y->[1]);
	return $x->[0] * Math::BigInt->new(10)**($scale - $x->[1]) <=> $y->[0] * Math::BigInt->new(10)**($scale - $y->[1]);
}

# What a level gives; returns its newest activity.
sub level_metrics
{
	my ($m, $name, $level, $rows, $milestones, $idle, $all_rows) = @_;
	my $t = $level->{units};
	my %done = map { $_->{unit_id} => 1 }
	  grep { defined $_->{unit_id} && (lc($_->{status} // '') eq 'completed' || defined $_->{completed_at}) } @$rows;
	my $total = $level->{total} // uniq(grep { defined } map { $_->{unit_id} } @$all_rows);

	$m->{"level_${name}_accuracy"} = mean(map { number_of($_->{accuracy_percentage}) } @$rows)
	  if has($t, 'accuracy_percentage');
	$m->{"level_${name}_milestones"} = @$milestones if $level->{milestones};
	if (has($t, 'status') || has($t, 'completed_at'))
	{
		$m->{"level_${name}_units_completed"} = keys %done;
		$m->{"level_${name}_status"} =
		    $idle ? undef
		  : !@$rows ? 'not_started'
		  : %done && keys %done >= $total ? 'completed'
		  : 'in_progress';
	}
	return latest(map { instant($_->{last_activity}) } @$rows);
}

# All students by id: { email, metrics, started (levels), activity (by level) }.
sub oracle
{
	my ($school) = @_;
	my %of = map { $_ => by_user($school->{$_}) } grep { $school->{$_} } qw(course_progress user_streaks user_xp);
	my %levels = %{ $school->{levels} };
	my %units = map { $_ => by_user($levels{$_}{units}) } keys %levels;
	my %milestones = map { $_ => by_user($levels{$_}{milestones}) } keys %levels;
	my %lessons;
	$lessons{ $_->{course_id} }{ $_->{lesson_id} } = 1
	  foreach grep { defined $_->{course_id} && defined $_->{lesson_id} } @{ ($school->{course_lessons} || {})->{rows} };

	# Units that any student has.
	my %is_student = map { $_->{id} => 1 } @{ $school->{users}{rows} };
	my %all = map { my $u = $units{$_}; $_ => [ map { @{ $u->{$_} } } grep { $is_student{$_} } keys %$u ] } keys %levels;

	my %students;
	foreach my $user (@{ $school->{users}{rows} })
	{
		my $id = $user->{id};
		my $course = ($of{course_progress} || {})->{$id} || [];
		my $streaks = ($of{user_streaks} || {})->{$id} || [];
		my $xp = ($of{user_xp} || {})->{$id} || [];
		my $idle = !@$course && !@$streaks && !@$xp && !grep { $units{$_}{$id} || $milestones{$_}{$id} } keys %levels;
		my %m;

		my $seen = course_metrics(\%m, $school->{course_progress}, $course);
		$m{study_streak} = $m{current_streak} = streak($streaks);
		$m{total_xp} = plain(sum_of(map { number_of($_->{total_xp}) } @$xp));

		my $seconds = sum_of(map { number_of($_->{time_spent}) } @$course);
		my @minutes = $seconds
		  ? [ floor_div($seconds->[0], Math::BigInt->new(10)**$seconds->[1] * 60), 0 ] : ();
		my (%activity, @started);
		foreach my $name (sort keys %levels)
		{
			my $rows = $units{$name}{$id} || [];
			my $at = level_metrics(\%m, $name, $levels{$name}, $rows, $milestones{$name}{$id} || [], $idle, $all{$name});
			$activity{$name} = $at if defined $at;
			push @started, $name if @$rows;
			push @minutes, map { number_of($_->{time_spent_minutes}) } @$rows;
		}
		$m{total_study_time} = plain(sum_of(@minutes));

		my $newest = latest($seen, values %activity);
		$m{last_activity_date_global} = iso($newest) if defined $newest;
		($m{current_active_level}) = sort { $activity{$b} cmp $activity{$a} || $b cmp $a } keys %activity;

		my $total = defined $user->{course_id} ? keys %{ $lessons{ $user->{course_id} } || {} } : 0;
		$m{progress_percentage} = two_decimals([ Math::BigInt->new(100) * min($m{lessons_completed}, $total), 0 ], $total)
		  if !$idle && $total && defined $m{lessons_completed};
		delete $m{$_} foreach grep { !defined $m{$_} } keys %m;
		$students{$id} = { email => $user->{email}, metrics => \%m, started => \@started, activity => \%activity };
	}
	return \%students;
}

# ---------------------------------------------------------------------------
# Reading and comparing
# ---------------------------------------------------------------------------

# The school as a role sees it: every value as text.
sub read_school
{
	my ($db, $made, $role) = @_;
	my %table = %{ $made->{tables} };
	my @parts = map {
		my $table = $table{$_};
		my @columns = map { literal($_) . ', ' . identifier($table->{columns}{$_}{name}) . '::text' }
		  sort keys %{ $table->{columns} };
		literal($_) . ", (SELECT coalesce(json_agg(json_build_object(" . join(', ', @columns)
		  . ")), '[]') FROM $table->{sql})"
	} sort keys %table;
	my $rows = $json->decode($db->sql("SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SELECT json_build_object("
		  . join(', ', @parts) . ')', user => $role));
	my %school = map { $_ => { %{ $table{$_} }, rows => $rows->{$_} } } keys %table;
	$school{levels} = { map { $_ => +{
		units => $school{"${_}_progress"},
		milestones => $school{"${_}_milestones"},
		total => $made->{totals}{$_},
	} } @{ $made->{levels} } };
	return \%school;
}

# The rows of several queries as hashes, with the instant they were read at.
sub query_all
{
	my ($db, $settings, $role, @queries) = @_;
	my $text = $db->sql("$settings; BEGIN;"
		  . "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US');"
		  . join(';', map { "SELECT coalesce(json_agg(r), '[]') FROM ($_) r" } @queries) . '; COMMIT', user => $role);
	my ($now, @answers) = split /\n(?=\[)/, $text;
	return ($now, map { $json->decode($_) } @answers);
}

# Names of properties of levels.
sub level_values
{
	my ($metrics) = @_;
	return map { $_ => $metrics->{$_} } grep { /^level_/ } keys %$metrics;
}

sub shown
{
	my ($value) = @_;
	return 'no value' unless defined $value;
	my $text = ref $value ? $json->canonical->encode($value) : "\"$value\"";
	return length $text > 300 ? substr($text, 0, 140) . ' ... ' . substr($text, -140) : $text;
}

# What differs between two hashes of values.
sub differences
{
	my ($whose, $found, $expected) = @_;
	$whose = substr($whose, 0, 40) . '...' if length $whose > 50;
	return map { "$whose: $_ is " . shown($found->{$_}) . ', not ' . shown($expected->{$_}) }
	  grep { shown($found->{$_}) ne shown($expected->{$_}) || !same($found->{$_}, $expected->{$_}) }
	  sort(uniq(keys %$found, keys %$expected));
}

sub same
{
	my ($x, $y) = @_;
	return (defined $x && defined $y ? $json->canonical->encode($x) eq $json->canonical->encode($y) : defined $x == defined $y)
	  if ref $x || ref $y;
	return defined $x && defined $y ? $x eq $y : defined $x == defined $y;
}

sub no_differences
{
	my ($what, @differences) = @_;
	my $n = @differences;
	splice @differences, 12;
	return is(join("\n", @differences), '', $what . ($n > 12 ? " ($n differences)" : ''));
}

# The rows of a preview against what must be in it.
sub preview_differences
{
	my ($rows, $expected) = @_;
	my @differences;
	my %found;
	foreach my $row (@$rows)
	{
		my ($id, $values) = @$row{qw(user_id properties)};
		push @differences, "$id: comes twice" if $found{$id}++;
		push @differences, "$id: is no student" and next unless $expected->{$id};
		push @differences, map { "$id: $_ is no text" } grep { ref $values->{$_} || !defined $values->{$_} } keys %$values;
		my %values = %$values;
		if (defined $values{completed_lessons_list})
		{
			$values{completed_lessons_list} = eval { $json->decode($values{completed_lessons_list}) } // 'broken';
		}
		push @differences, differences($id, \%values, $expected->{$id}{metrics});
		push @differences, differences($id, { email => $row->{email} }, { email => $expected->{$id}{email} });
	}
	push @differences, map { "$_: is missing" } grep { !$found{$_} } sort keys %$expected;
	return @differences;
}

my @plain_columns = qw(lessons_completed current_lesson average_score total_study_time progress_percentage study_streak
  current_streak total_xp current_active_level);
my $view_query = 'SELECT user_id, email, ' . join(', ', map { "$_\::text" } @plain_columns) . <<'SQL';
	, to_char(last_activity_date, 'YYYY-MM-DD') AS last_activity_date, completed_lessons_list,
	to_char(last_activity_date_global AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') || 'Z' AS last_activity_date_global,
	(SELECT coalesce(json_object_agg('level_' || l.key || '_' || v.key, v.value #>> '{}'), '{}')
		FROM jsonb_each(levels) l CROSS JOIN jsonb_each(l.value) v) AS values,
	(SELECT string_agg(l.key || ' ' || v.key || ' ' || jsonb_typeof(v.value), ', ')
		FROM jsonb_each(levels) l CROSS JOIN jsonb_each(l.value) v
		WHERE jsonb_typeof(v.value) NOT IN ('null', CASE WHEN v.key = 'status' THEN 'string' ELSE 'number' END)) AS odd
	FROM student_progress
SQL

sub view_differences
{
	my ($rows, $expected) = @_;
	my @differences;
	my %found;
	foreach my $row (@$rows)
	{
		my %row = %$row;
		my ($id, $values, $odd) = delete @row{qw(user_id values odd)};
		push @differences, "$id: comes twice" if $found{$id}++;
		push @differences, "$id: is no student" and next unless $expected->{$id};
		push @differences, "$id: $odd" if defined $odd;
		$row{last_activity_date_global} =~ s/000Z$/Z/ if defined $row{last_activity_date_global};
		my %all = (%row, %$values);
		delete $all{$_} foreach grep { !defined $all{$_} } keys %all;
		push @differences, differences($id, \%all,
			{ %{ $expected->{$id}{metrics} }, defined $expected->{$id}{email} ? (email => $expected->{$id}{email}) : () });
	}
	push @differences, map { "$_: is missing" } grep { !$found{$_} } sort keys %$expected;
	return @differences;
}

my $summary_query =
  'SELECT level, students::text, completed::text, mean_accuracy::text, active_last_7_days::text FROM level_progress_summary';

sub summary_differences
{
	my ($rows, $school, $expected, $now) = @_;
	my @students = values %$expected;
	my %found = map { $_->{level} => $_ } @$rows;
	my %wanted;
	foreach my $level (@students ? keys %{ $school->{levels} } : ())
	{
		my $units = $school->{levels}{$level}{units};
		my $mean = mean(map { number_of($_->{metrics}{"level_${level}_accuracy"}) } @students);
		$wanted{$level} = {
			level => $level,
			students => scalar(grep { grep { $_ eq $level } @{ $_->{started} } } @students),
			completed => scalar(grep { ($_->{metrics}{"level_${level}_status"} // '') eq 'completed' } @students),
			mean_accuracy => $mean,
			active_last_7_days =>
			  scalar(grep { defined $_->{activity}{$level} && epoch($_->{activity}{$level}) > epoch($now) - 7 * DAY } @students),
		};
	}

	# Levels that tell nothing of completion have a check of their own.
	foreach my $level (grep { !has($school->{levels}{$_}{units}, 'status') && !has($school->{levels}{$_}{units}, 'completed_at') } keys %wanted)
	{
		delete $_->{students} foreach $found{$level} || {}, $wanted{$level};
	}
	return map { differences("level $_", $found{$_} || {}, $wanted{$_} || {}) } sort(uniq(keys %found, keys %wanted));
}

my $inactive_query = <<'SQL';
	SELECT user_id, email, days_inactive::text,
		to_char(last_activity AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS last_activity
	FROM inactive_students(7)
SQL

sub inactive_differences
{
	my ($rows, $expected, $now) = @_;
	my %wanted;
	foreach my $id (keys %$expected)
	{
		my $last = $expected->{$id}{metrics}{last_activity_date_global};
		my $seconds = defined $last ? epoch($now) - epoch($last) : undef;
		next if defined $seconds && $seconds < 7 * DAY;
		$wanted{$id} = {
			user_id => $id,
			email => $expected->{$id}{email},
			last_activity => $last,
			days_inactive => defined $seconds ? POSIX::floor($seconds / DAY) : undef,
		};
	}
	my %found = map { $_->{user_id} => $_ } @$rows;
	my @differences = map { differences("inactive $_", $found{$_} || {}, $wanted{$_} || {}) } sort(uniq(keys %found, keys %wanted));
	my @order = sort { ($wanted{$a}{last_activity} // '') cmp($wanted{$b}{last_activity} // '') || $a cmp $b } keys %wanted;
	push @differences, 'inactive students are in another order'
	  if !@differences && join("\n", @order) ne join("\n", map { $_->{user_id} } @$rows);
	return @differences;
}

# Everything that a role sees of a school.
sub check_school
{
	my ($what, $db, $made, $role, $settings) = @_;
	my $school = read_school($db, $made, $role);
	my $expected = oracle($school);
	my ($now, $preview, $view, $summary, $inactive) = query_all($db, $settings, $role,
		'SELECT user_id, email, properties FROM preview_student_progress()', $view_query, $summary_query, $inactive_query);
	no_differences("$what: preview_student_progress()", preview_differences($preview, $expected));
	no_differences("$what: student_progress", view_differences($view, $expected));
	no_differences("$what: level_progress_summary", summary_differences($summary, $school, $expected, $now));
	no_differences("$what: inactive_students(7)", inactive_differences($inactive, $expected, $now));
	return $expected;
}

# ---------------------------------------------------------------------------
# Made-up schools: values
# ---------------------------------------------------------------------------

my $text_types = qr/^(?:text|varchar)/;

my @hostile = ("it's", 'say "hi"', 'back\\slash', '\\', "\\'; DROP TABLE users; --", '$1', '%s%d', '{a,b}', '[1,"2"]', 'a,b',
	'NULL', 'null', '', ' ', 'x', 'x ', 'X', "tab\there", "line\nbreak", "\x{1}", 'Straße', 'ß', 'é', "e\x{301}", '李雷', "\x{1F600}",
	"\x{202E}rtl", "\x{FFFD}", "\x{E000}", "\x{10FFFD}", ':name', "\$\$", '/* ', '9', '10', 'Z', 'a', '_');

sub random_word { return join '', map { one_of('a' .. 'z', 'A' .. 'Z', 0 .. 9, qw(- _ .)) } 1 .. 3 + int rand 6; }

sub random_uuid { return join '-', map { my $n = $_; join '', map { sprintf '%x', rand 16 } 1 .. $n } 8, 4, 4, 4, 12; }

# Distinct ids of a kind, and one more for somebody who is no student.
my %make_ids = (
	uuid => sub { map { random_uuid() } 0 .. $_[0] },
	integer => sub {
		my %ids = map { $_ => 1 } 0, -1, 2_147_483_647, -2_147_483_648;
		$ids{ int(rand 2000) - 500 } = 1 while keys %ids <= $_[0];
		return shuffle(keys %ids);
	},
	text => sub {
		my $long = one_of('é', 'x', "'") x 440;
		my %ids = map { $_ => 1 } @hostile, $long, $long . 'a', $long . 'b', '\\' x 900;
		$ids{ random_word() } = 1 while keys %ids <= $_[0];
		my @ids = shuffle(keys %ids);
		return @ids[ 0 .. $_[0] ];
	},
);

# Values that give ties, values that give none, and what is no number.
sub random_number
{
	my ($type) = @_;
	return undef if chance(0.15);
	return one_of(0, 1, 7, 59, 60, 61, 100, int rand 500, -int rand 20) if $type =~ /int/;
	my @special = ('NaN', 'Infinity', '-Infinity');
	@special = ('abc', '', ' ', 'NaN', 'Infinity', '1,5', '12 %', '--3', '1.2.3', '.', 'e5', '٣', "5'", '1e', '+') if $type =~ $text_types;
	return one_of(@special) if chance($type =~ $text_types ? 0.25 : 0.08);
	my $value = one_of(
		int rand 101, sprintf('%.1f', rand 100), sprintf('%.2f', rand 100), sprintf('%.3f', rand 10),
		int(rand 80) / 8, int(rand 2000) / 200, -int(rand 80) / 8, '0', '85.50', '0.005', '33.333');
	return one_of($value, $value, " $value ", "$value\t", '+5', '.5', '5.', '1e2', '2.5E-1') if $type =~ $text_types;
	return $value;
}

sub random_flag
{
	my ($type) = @_;
	return undef if chance(0.1);
	return one_of('true', 'true', 'false') if $type eq 'boolean';
	return one_of(0, 1, 1, 2, -1) if $type =~ /int/;
	return one_of('0', '0.00', '1', '0.5') if $type eq 'numeric';
	return one_of('t', 'true', 'TRUE', 'True', ' yes ', 'on', 'Y', '1', '1', 'f', 'false', 'no', 'off', '0', '', ' ', 'maybe', '2');
}

# Instants to choose from, so that there are ties; none is near a boundary
# that moves while the test runs.
sub make_instants
{
	my $now = int $begin;
	my @recent = map { strftime('%Y-%m-%d %H:%M:%S', gmtime($now - $_ * DAY + DAY / 2)) . one_of('', '.123456', '.123999', '.9995') }
	  0 .. 12;
	my @random = map { strftime('%Y-%m-%d %H:%M:%S', gmtime(1_500_000_000 + int rand 200_000_000)) . one_of('', '.000001', '.999999') }
	  1 .. 6;
	return (@recent, @random, '2024-02-29 23:59:59.999999', '2024-03-01 00:00:00', '2021-06-15 12:00:00.123456',
		'2021-06-15 12:00:00.123999', '1969-12-31 23:59:59.999999', '0001-01-01 00:00:00', '9998-12-31 23:59:59.9999');
}
my @instants = make_instants();

sub random_instant
{
	my ($type) = @_;
	return undef if chance(0.2);
	return one_of('infinity', '-infinity', '0044-03-15 BC', '12024-05-06') if chance(0.04);
	my $at = one_of(@instants);
	return substr $at, 0, 10 if $type eq 'date';
	return $type eq 'timestamptz' ? "$at+00" : $at;
}

sub random_status
{
	return one_of(undef, 'completed', 'completed', 'COMPLETED', 'Completed', 'in_progress', 'not_started', ' completed', 'complete', '');
}

# ---------------------------------------------------------------------------
# Made-up schools: tables
# ---------------------------------------------------------------------------

my @number_types = qw(numeric integer float8 real text bigint varchar);
my @time_types = qw(timestamptz timestamptz timestamp date);
my @flag_types = qw(boolean boolean integer text numeric);

# The columns of each table with what they hold.
my %columns_of = (
	users => { id => 'id', email => 'email', course_id => 'course' },
	course_progress => { user_id => 'user', lesson_id => 'lesson', completed => 'flag', score => 'number',
		time_spent => 'number', last_accessed_at => 'instant' },
	user_streaks => { user_id => 'user', current_streak => 'number', updated_at => 'instant', created_at => 'instant' },
	user_xp => { user_id => 'user', total_xp => 'number' },
	course_lessons => { course_id => 'course', lesson_id => 'lesson' },
	level => { user_id => 'user', unit_id => 'unit', status => 'status', accuracy_percentage => 'number',
		time_spent_minutes => 'number', completed_at => 'instant', last_activity => 'instant' },
	milestones => { user_id => 'user', unit_id => 'unit', milestone_type => 'word', achieved_at => 'instant' },
);
my %needed = map { $_ => 1 } qw(id email user_id lesson_id unit_id course_id current_streak total_xp);

sub kind_of { return $_[0] =~ /^(?:course|user|users)(?:_|$)/ ? $_[0] : $_[0] =~ /_progress$/ ? 'level' : 'milestones'; }

# What a column's type may be.
sub choose_type
{
	my ($round, $holds) = @_;
	my %types = (
		id => $round->{id_types},
		user => $round->{user_types},
		email => [ 'text', 'varchar' ],
		course => [ $round->{kind} eq 'integer' ? qw(integer text bigint) : 'text' ],
		lesson => $round->{kind} eq 'integer' ? [ 'integer', 'text' ] : [ 'text', 'varchar' ],
		unit => [ 'integer', 'text' ],
		word => ['text'],
		status => [ 'text', 'varchar' ],
		flag => \@flag_types,
		number => \@number_types,
		instant => \@time_types,
	);
	return $round->{types}{$holds} // one_of(@{ $types{$holds} });
}

# A table's columns; some may be missing or have another name.
sub make_columns
{
	my ($round, $table) = @_;
	my %holds = %{ $columns_of{ kind_of($table) } };
	my %columns;
	foreach my $column (sort keys %holds)
	{
		next if ($round->{gaps} && !$needed{$column} || $table eq 'users' && $column eq 'course_id') && chance($round->{gaps} ? 0.2 : 0);
		my $odd = $round->{renames} && chance(0.4);
		$columns{$column} = {
			name => $odd ? one_of("My $column", "$column\"s", "x'$column", "ü\\$column") : $column,
			type => choose_type($round, $holds{$column}),
			holds => $holds{$column},
		};
	}
	return \%columns;
}

sub random_value
{
	my ($round, $column) = @_;
	my ($holds, $type) = @$column{qw(holds type)};
	return random_number($type) if $holds eq 'number';
	return random_flag($type) if $holds eq 'flag';
	return random_instant($type) if $holds eq 'instant';
	return random_status() if $holds eq 'status';
	return random_word() if $holds eq 'word';
	return chance(0.05) ? undef : one_of(1 .. $round->{units}) if $holds eq 'unit';
	return chance(0.07) ? undef : one_of(@{ $round->{lessons} }) if $holds eq 'lesson';
	return chance(0.1) ? undef : one_of(1 .. 5) if $holds eq 'course';
	die "what is $holds?";
}

# A student's rows of a table.
sub make_rows
{
	my ($round, $table, $user, $n) = @_;
	my $item = $table->{columns}{lesson_id} ? 'lesson_id' : $table->{columns}{unit_id} ? 'unit_id' : undef;
	my (@rows, %seen);
	foreach (1 .. $n)
	{
		my %row = map { $_ => random_value($round, $table->{columns}{$_}) } grep { $_ ne 'user_id' } keys %{ $table->{columns} };
		$row{user_id} = $user;

		# Which way a mean of means below 0 is rounded, nobody has said.
		$row{accuracy_percentage} =~ tr/-//d if defined $row{accuracy_percentage};
		next if $table->{unique} && defined $user && (!defined $item || defined $row{$item}) && $seen{ $item ? $row{$item} : '' }++;
		push @rows, \%row;
	}
	return @rows;
}

# How many rows of each kind a student may have.
my @lives = (
	[], [], map({ [$_] } qw(course_progress user_streaks user_xp level milestones)),
	map({ [qw(course_progress user_streaks user_xp level milestones)] } 1 .. 8),
	[qw(course_progress level)], [qw(level milestones)], [qw(course_progress milestones)]);

sub fill_school
{
	my ($round, $tables) = @_;
	my ($nobody, @ids) = $make_ids{ $round->{kind} }->(STUDENTS);
	my $n = 0;
	foreach my $id (@ids)
	{
		$n++;
		my %user = (id => $id, email => one_of(
			"s$n\@example.com", "s$n\@example.com", "s$n\@example.com", " S$n\@Example.COM ", "o'n\\e\"$n\@example.com",
			undef, '', 'nobody', 'twin@example.com'));
		$user{course_id} = random_value($round, $tables->{users}{columns}{course_id}) if $tables->{users}{columns}{course_id};
		push @{ $tables->{users}{rows} }, \%user;
		my %life = map { $_ => 1 } @{ one_of(@lives) };
		foreach my $name (grep { $_ ne 'users' && $_ ne 'course_lessons' } sort keys %$tables)
		{
			next if !$life{ kind_of($name) } || $name =~ /^c_empty/;
			next if kind_of($name) =~ /level|milestones/ && chance(0.3);
			my $most = $name eq 'course_progress' ? 14 : kind_of($name) eq 'level' ? 6 : 4;
			push @{ $tables->{$name}{rows} }, make_rows($round, $tables->{$name}, $id, 1 + int rand $most);
		}
	}

	# Rows of nobody, and of somebody who is no student.
	foreach my $name (grep { $tables->{$_}{columns}{user_id} && !/^c_empty/ } sort keys %$tables)
	{
		my @units = map { $_->{unit_id} } @{ $tables->{$name}{rows} };
		my @odd = (make_rows($round, $tables->{$name}, undef, 1), make_rows($round, $tables->{$name}, $nobody, 2));
		$_->{unit_id} = @units ? one_of(@units) : undef foreach grep { exists $_->{unit_id} } @odd;
		push @{ $tables->{$name}{rows} }, $tables->{$name}{unique} ? @odd[ 0, 1 ] : @odd;
	}
	if (my $lessons = $tables->{course_lessons})
	{
		push @{ $lessons->{rows} }, map { +{ course_id => one_of(undef, 1 .. 4), lesson_id => random_value($round, $lessons->{columns}{lesson_id}) } } 1 .. 30;
		push @{ $lessons->{rows} }, { course_id => 5, lesson_id => undef };
	}
	return;
}

# SQL that creates a table.
sub table_sql
{
	my ($round, $name, $table) = @_;
	my %columns = %{ $table->{columns} };
	my $name_of = sub { identifier($columns{ $_[0] }{name}) };
	my $item = $columns{lesson_id} ? 'lesson_id' : 'unit_id';
	my @definitions = map { $name_of->($_) . ' ' . $columns{$_}{type} . ($_ eq 'id' ? ' PRIMARY KEY' : '') } shuffle(sort keys %columns);
	push @definitions, 'serial serial';
	push @definitions, 'UNIQUE (' . join(', ', map { $name_of->($_) } $name eq 'user_streaks' ? 'user_id' : ('user_id', $item)) . ')'
	  if $table->{unique};
	my $store = $table->{sql};
	my $is_partitioned = $round->{partitions} && $name =~ /^(?:course|a1)_progress$/;
	my $is_view = $round->{views} && $name =~ /^(?:course_progress|user_xp)$/;
	$store =~ s/"$/ rows"/ if $is_view;

	# Indexes that promise nothing: some rows only, more columns.
	my $sql = "CREATE TABLE $store (dropped integer, " . join(', ', @definitions) . ')';
	if ($is_partitioned)
	{
		my $part = identifier("${name}_1_progress") =~ s/progress_1/part_1/r;
		my $rest = identifier("${name}_2") =~ s/progress_2/part_2/r;
		my ($first, $second) = map { "$round->{schema_sql}.$_" } $part, $rest;
		my $key = $name_of->('user_id');
		$sql .= " PARTITION BY HASH ($key);";
		$sql .= "CREATE TABLE $first PARTITION OF $store FOR VALUES WITH (MODULUS 2, REMAINDER 0);";
		$sql .= "CREATE TABLE $second PARTITION OF $store FOR VALUES WITH (MODULUS 2, REMAINDER 1);";
	}
	elsif ($name ne 'users' && $columns{user_id})
	{
		my $keys = join ', ', map { $name_of->($_) } grep { $columns{$_} } 'user_id', $item;
		$sql .= "; CREATE UNIQUE INDEX ON $store ($keys, serial); CREATE UNIQUE INDEX ON $store ($keys) WHERE serial < 0";
	}
	$sql .= "; ALTER TABLE $store DROP COLUMN dropped;";
	my @names = sort keys %columns;
	$sql .= "INSERT INTO $store (" . join(', ', map { $name_of->($_) } @names) . ') VALUES '
	  . join(', ', map { my $row = $_; '(' . join(', ', map { literal($row->{$_}) } @names) . ')' } @{ $table->{rows} }) . ';'
	  if @{ $table->{rows} };
	$sql .= "CREATE VIEW $table->{sql} AS SELECT " . join(', ', map { $name_of->($_) } @names) . " FROM $store;" if $is_view;
	return $sql;
}

# Which names the school uses, for progress_sources.
sub sources_sql
{
	my ($round, $tables) = @_;
	my @rows;
	foreach my $name (sort keys %$tables)
	{
		my ($table, $kind) = ($tables->{$name}, kind_of($name));
		my $level = $kind =~ /level|milestones/ ? $name =~ s/_(?:progress|milestones)$//r : '';
		my %names = map { $_ => $table->{columns}{$_}{name} } grep { $columns_of{$kind}{$_} !~ /word/ } keys %{ $table->{columns} };
		delete $names{$_} foreach grep { $kind eq 'milestones' && $_ ne 'user_id' || $names{$_} eq $_ } keys %names;
		my $total = $kind eq 'level' ? $round->{totals}{$level} : undef;
		next unless $table->{renamed} || %names || defined $total || $name eq 'users';
		my @values = ($kind, $level, $name eq 'users' ? $round->{schema} : undef,
			$level eq '' || $table->{renamed} || $names{user_id} || $names{unit_id} ? $table->{name} : undef, $json->encode(\%names), $total);
		push @rows, '(' . join(', ', map { literal($_) } @values) . ')';
	}
	return 'INSERT INTO progress_sources (source, level, table_schema, table_name, columns, total_units) VALUES '
	  . join(', ', @rows) . <<~'SQL';
		 ON CONFLICT (source, level) DO UPDATE SET table_schema = excluded.table_schema, table_name = excluded.table_name,
			columns = excluded.columns, total_units = excluded.total_units;
		SQL
}

# Lets the reader see some rows only, of students whom he sees; by ids so that
# time zones do not matter.
sub policy_sql
{
	my ($name, $table, $users) = @_;
	return "GRANT SELECT ON $table->{sql} TO reader;" if $table->{is_view};
	my $key = join " || '/' || ", map { "coalesce($_\::text, '')" }
	  map { identifier($table->{columns}{$_}{name}) } grep { $table->{columns}{$_} } qw(id user_id lesson_id unit_id);
	my $visible = $table->{columns}{user_id} ? "EXISTS (SELECT FROM $users->{sql} u WHERE u." . identifier($users->{columns}{id}{name})
	  . "::text = $table->{sql}." . identifier($table->{columns}{user_id}{name}) . '::text) AND ' : '';
	return "GRANT SELECT ON $table->{sql} TO reader; ALTER TABLE $table->{sql} ENABLE ROW LEVEL SECURITY;"
	  . "CREATE POLICY partly ON $table->{sql} FOR SELECT TO reader USING (${visible}left(md5($key), 1) < 'b');";
}

# Creates a school; returns what read_school() needs.
sub make_school
{
	my ($db, $round) = @_;
	my %tables;
	$round->{schema_sql} = identifier($round->{schema});
	my @levels = qw(a1 b2 x_9 c_empty);
	my @names = (qw(users course_progress user_streaks user_xp course_lessons a1_milestones b2_milestones c_empty_milestones),
		map { "${_}_progress" } @levels);
	foreach my $name (@names)
	{
		next if $round->{gaps} && $name !~ /^(?:users|a1_progress|course_progress)$/ && chance(0.2);
		my $renamed = $round->{renames} && chance(0.5);
		my $actual = $renamed ? one_of("My $name", "$name\"s", "x'$name", "ü\\$name") : $name;
		$tables{$name} = {
			name => $actual,
			renamed => $renamed,
			sql => "$round->{schema_sql}." . identifier($actual),
			columns => make_columns($round, $name),
			unique => scalar($round->{unique} && $name =~ /^user_streaks$|_progress$/),
			is_view => scalar($round->{views} && $name =~ /^(?:course_progress|user_xp)$/),
			rows => [],
		};
	}
	@levels = grep { $tables{"${_}_progress"} } @levels;

	# Milestones of no level are nobody's.
	delete $tables{$_} foreach grep { /^(.*)_milestones$/ && !$tables{"${1}_progress"} } keys %tables;
	fill_school($round, \%tables);
	my $types = $round->{kind} eq 'uuid' ? 'CREATE DOMAIN student_id AS uuid;' : '';
	$db->sql("$types CREATE SCHEMA IF NOT EXISTS $round->{schema_sql}; ALTER SCHEMA $round->{schema_sql} OWNER TO school; GRANT USAGE ON SCHEMA $round->{schema_sql} TO reader;"
		  . 'SET ROLE school;' . join('', map { table_sql($round, $_, $tables{$_}) } sort keys %tables)
		  . join('', map { policy_sql($_, $tables{$_}, $tables{users}) } sort keys %tables)
		  . sources_sql($round, \%tables));
	return { tables => \%tables, levels => \@levels, totals => $round->{totals} || {} };
}

# ---------------------------------------------------------------------------
# Random schools
# ---------------------------------------------------------------------------

my @rounds = (
	{
		name => 'uuids',
		kind => 'uuid',
		id_types => [ 'uuid', 'student_id' ],
		user_types => [ 'uuid', 'uuid', 'text', 'varchar' ],
		types => { flag => 'boolean', number => 'numeric', instant => 'timestamptz' },
		schema => 'public school',
		unique => 1,
		settings => q{SET TimeZone = 'America/St_Johns'; SET DateStyle = 'SQL, DMY'},
	},
	{
		name => 'integers',
		kind => 'integer',
		id_types => [ 'integer', 'bigint' ],
		user_types => [ 'integer', 'bigint', 'text', 'numeric' ],
		types => { flag => 'integer', number => 'float8', instant => 'timestamp' },
		schema => 'Schule "2"',
		partitions => 1,
		totals => { b2 => 2 },
		settings => q{SET TimeZone = 'Pacific/Kiritimati'; SET enable_hashagg = off; SET enable_hashjoin = off},
	},
	{
		name => 'texts',
		kind => 'text',
		id_types => [ 'text', 'varchar' ],
		user_types => [ 'text', 'varchar' ],
		types => { flag => 'text', number => 'text', instant => 'date' },
		schema => "l'école\\",
		views => 1,
		settings => q{SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German'; SET extra_float_digits = 0},
	},
	map({ my $kind = one_of(qw(uuid integer text)); {
		name => "anything $_",
		kind => $kind,
		id_types => $kind eq 'uuid' ? ['uuid'] : $kind eq 'integer' ? [ 'integer', 'bigint', 'text' ] : ['text'],
		user_types => $kind eq 'uuid' ? [ 'uuid', 'text' ] : $kind eq 'integer' ? [ 'integer', 'bigint', 'text', 'numeric' ] : [ 'text', 'varchar' ],
		types => {},
		schema => one_of('public', 's"c\'h\\'),
		gaps => 1,
		renames => 1,
		unique => chance(0.3),
		totals => { a1 => 1 + int rand 6, chance(0.5) ? (x_9 => 1 + int rand 3) : () },
		settings => 'SET TimeZone = ' . literal(one_of('America/New_York', 'Asia/Tokyo', 'Pacific/Pago_Pago', 'UTC')),
	} } 1, 2));

my $number = 0;
foreach my $round (@rounds)
{
	my $name = $round->{name};
	$round->{units} = one_of(2, 3, 5);
	my @words = $round->{kind} eq 'integer' ? (1 .. 12) : (shuffle(@hostile))[ 0 .. 11 ];
	$round->{lessons} = \@words;
	my $db = new_database('round_' . ++$number);
	my $made = make_school($db, $round);
	delete $made->{totals}{$_} foreach grep { my $level = $_; !grep { $_ eq $level } @{ $made->{levels} } } keys %{ $made->{totals} };
	my $expected = check_school($name, $db, $made, undef, $round->{settings});
	ok(scalar(grep { keys %{ $_->{metrics} } > 12 } values %$expected) > 3, "$name: some students have done a lot")
	  unless $round->{gaps};
	next if $round->{gaps} && $round->{name} !~ /1/;
	check_school("$name, for their owner", $db, $made, 'school', "SET TimeZone = 'Asia/Kolkata'");
	my $seen = check_school("$name, for a restricted reader", $db, $made, 'reader', $round->{settings});
	cmp_ok(keys %$seen, '<', keys %$expected, "$name: who does not see all students");

	# One student at a time, and several with one address.
	my %by_address;
	foreach my $id (grep { defined $expected->{$_}{email} } sort keys %$expected)
	{
		push @{ $by_address{ lc $expected->{$id}{email} =~ s/^ +| +$//gr } }, $id;
	}
	my @addresses = ('twin@example.com', (shuffle(sort grep { $_ ne '' } keys %by_address))[ 0 .. 4 ]);
	my (undef, @previews) = query_all($db, $round->{settings}, undef,
		map { 'SELECT * FROM preview_student_progress(' . literal(' ' . uc . '  ') . ')' } @addresses);
	no_differences("$name: one student at a time", map {
		preview_differences($previews[$_], { map { $_ => $expected->{$_} } @{ $by_address{ $addresses[$_] } } })
	} 0 .. $#addresses);
	no_differences("$name: no student", preview_differences((query_all($db, $round->{settings}, undef,
		q{SELECT * FROM preview_student_progress('somebody.else@example.com')}))[1], {}));
}

# ---------------------------------------------------------------------------
# Schools made for one question each
# ---------------------------------------------------------------------------

my $fixed = new_database('fixed');
my $schema = 'public';

# A schema of its own with these tables, from now on the school's.
sub school
{
	my ($name, $sql, %options) = @_;
	$schema = $name;
	my $role = $options{owner} // 'school';
	$fixed->sql(<<~"SQL");
		CREATE SCHEMA $name;
		GRANT USAGE, CREATE ON SCHEMA $name TO PUBLIC;
		DELETE FROM progress_sources WHERE level <> '';
		UPDATE progress_sources SET columns = '{}', enabled = true, table_name = source,
			table_schema = CASE WHEN source = 'users' THEN '$name' END;
		SET search_path = $name, public;
		SET ROLE $role;
		$sql
		SQL
	return;
}

# A student's properties.
sub properties
{
	my ($id, %options) = @_;
	my ($now, $rows) = query_all($fixed, $options{settings} // 'SELECT', $options{role},
		'SELECT user_id, properties FROM preview_student_progress()');
	my ($row) = grep { $_->{user_id} eq $id } @$rows;
	return $row->{properties};
}

sub value { return properties(@_[ 0, 2 .. $#_ ])->{ $_[1] }; }

my $users = "CREATE TABLE users (id integer PRIMARY KEY, email text); INSERT INTO users VALUES (1, 'one\@example.com');";

subtest 'half up, with two decimals' => sub {
	my $n = 0;
	foreach my $case (
		[ '2.125', '2.13' ], [ '2.1249999999999999', '2.12' ], [ '-0.125', '-0.12' ], [ '-0.1251', '-0.13' ], [ '-0.126', '-0.13' ],
		[ '-0.005', '0.00' ], [ '0.005', '0.01' ], [ '85.5', '85.50' ], [ '100', '100.00' ], [ '0', '0.00' ], [ '1, 2', '1.50' ],
		[ '1, 1, 2', '1.33' ], [ '2, 2, 1', '1.67' ], [ '0.01, 0', '0.01' ], [ '-0.01, 0', '0.00' ], [ '-0.03, 0', '-0.01' ],
		[ '90071992547409.925', '90071992547409.93' ])
	{
		my ($values, $mean) = @$case;
		school('round' . ++$n, "$users
			CREATE TABLE course_progress (user_id integer, lesson_id text, completed boolean, score numeric);
			CREATE TABLE a1_progress (user_id integer, unit_id integer, accuracy_percentage numeric, status text);
			INSERT INTO course_progress SELECT 1, v::text, true, v FROM unnest(ARRAY[$values]) v;
			INSERT INTO course_progress SELECT 1, 'open', false, 1000;
			INSERT INTO a1_progress SELECT 1, row_number() OVER (), v FROM unnest(ARRAY[$values]) v");
		my $properties = properties(1);
		is($properties->{average_score}, $mean, "the average score of $values");
		is($properties->{level_a1_accuracy}, $mean, '... and accuracy');
		is($fixed->sql('SELECT mean_accuracy FROM level_progress_summary'), $mean, '... of one student is the level\'s');
	}
	school('percent', 'CREATE TABLE users (id integer PRIMARY KEY, email text, course_id text);
		INSERT INTO users SELECT n, n || \'@example.com\', n FROM unnest(ARRAY[1, 3, 6, 8, 16, 800]) n;
		CREATE TABLE course_lessons (course_id integer, lesson_id integer);
		INSERT INTO course_lessons SELECT c.id, n % c.id FROM users c, generate_series(1, c.id * 2) n;
		CREATE TABLE course_progress (user_id integer, lesson_id integer, completed boolean);
		INSERT INTO course_progress SELECT id, n, true FROM users, generate_series(1, CASE WHEN id = 1 THEN 5 ELSE 1 END) n');
	is_deeply({ map { $_ => value($_, 'progress_percentage') } 1, 3, 6, 8, 16, 800 },
		{ 1 => '100.00', 3 => '33.33', 6 => '16.67', 8 => '12.50', 16 => '6.25', 800 => '0.13' }, 'progress in per cent');
};

subtest 'lists that are too long' => sub {
	my $tables = "$users CREATE TABLE course_progress (user_id integer, lesson_id text, completed boolean, last_accessed_at timestamptz);";
	my $insert = sub {
		my ($lesson) = @_;
		return "INSERT INTO course_progress SELECT 1, $lesson, true, timestamptz '2024-01-01 00:00Z' + n * interval '1 second'";
	};

	# 65,536 characters: brackets, ids of 8 characters with quotes, commas.
	my $n = (MAX_TEXT - 1) / 11;
	my $rest = MAX_TEXT - 1 - 11 * int $n;
	school('full_list', $tables . $insert->('to_char(n, \'FM00000000\')') . ' FROM generate_series(1, ' . (int($n) - 1) . ') n;'
		  . $insert->("repeat('é', 8 + $rest)") . ' FROM generate_series(99999, 99999) n');
	my $list = value(1, 'completed_lessons_list');
	is(length $list, MAX_TEXT, 'a list of 65,536 characters, more bytes');
	is(scalar @{ $json->decode($list) }, int $n, '... is whole');
	$fixed->sql("UPDATE $schema.course_progress SET lesson_id = lesson_id || 'é' WHERE lesson_id LIKE 'é%'");
	$list = value(1, 'completed_lessons_list');
	is(length $list, MAX_TEXT + 1 - 11, 'one with a character more loses one lesson');
	is($json->decode($list)->[0], '00000002', '... the first');
	is($fixed->sql('SELECT length(completed_lessons_list ->> 0) FROM student_progress'), 8, '... in the view too');

	my @pieces = map { literal($_) } '"', '\\', "\n", '李', "\x{1F600}", '","', ']', "\x{1}", '\\"', 'abc';
	my $count = int @pieces;
	school('long_list', $tables
		  . $insert->("n || '-' || repeat((ARRAY[" . join(', ', @pieces) . "])[1 + n % $count], 1 + n * 7919 % 40)")
		  . ' FROM generate_series(1, 6000) n');
	$list = value(1, 'completed_lessons_list');
	my @kept = @{ $json->decode($list) };
	my @all = @{ $json->decode($fixed->sql("SELECT json_agg(lesson_id ORDER BY last_accessed_at) FROM $schema.course_progress")) };
	cmp_ok(length $list, '<=', MAX_TEXT, 'a list of odd lessons fits');
	ok(@kept < @all && $kept[0] eq $all[ -@kept ] && join("\0", @kept) eq join("\0", @all[ -@kept .. -1 ]),
		'... has the newest lessons');
	my $next = $fixed->sql('SELECT length(to_json(' . literal($all[ -@kept - 1 ]) . '::text)::text)');
	cmp_ok(length($list) + 1 + $next, '>', MAX_TEXT, '... and no fewer than fit');

	school('long_lesson', $tables . $insert->("repeat('x', 70000)") . ' FROM generate_series(1, 1) n');
	is(value(1, 'completed_lessons_list'), '[]', 'a lesson that is too long alone');
	$fixed->sql("INSERT INTO $schema.course_progress VALUES (1, 'short', true, '2025-01-01')");
	is(value(1, 'completed_lessons_list'), '["short"]', '... and with one after it');
};

subtest 'ties and gaps' => sub {
	school('ties', "$users
		INSERT INTO users VALUES (2, 'two\@example.com'), (3, 'three\@example.com'), (4, 'four\@example.com');
		CREATE TABLE course_progress (user_id integer, lesson_id text, completed boolean, score numeric, time_spent numeric,
			last_accessed_at timestamp);
		INSERT INTO course_progress VALUES (1, 'Z', true, 1, 59.9, '2024-01-01 23:59:59.9999'), (1, 'a', true, NULL, 60.05, '2024-01-01 23:59:59.9999'),
			(1, 'é', false, 5, NULL, NULL), (1, 'b', true, 3, NULL, NULL), (1, 'b', false, 50, NULL, '2024-01-01 10:00'), (2, NULL, true, 2, 30, NULL);
		CREATE TABLE a1_progress (user_id integer, unit_id integer, status text, last_activity date, time_spent_minutes numeric);
		CREATE TABLE a10_progress (LIKE a1_progress);
		CREATE TABLE a2_progress (LIKE a1_progress);
		CREATE TABLE a1_milestones (user_id integer, achieved_at timestamptz);
		INSERT INTO a1_milestones VALUES (3, now());
		INSERT INTO a1_progress VALUES (1, 1, 'x', '2024-01-02', 0.25), (1, 2, 'CompleteD', NULL, NULL);
		INSERT INTO a10_progress VALUES (1, 1, 'completed', '2024-01-02', 10), (1, 1, 'open', NULL, 0.250);
		INSERT INTO a2_progress VALUES (1, NULL, 'completed', '2024-01-01', NULL)");
	is_deeply(properties(1, settings => "SET TimeZone = 'Pacific/Kiritimati'"), {
		lessons_completed => '3',
		current_lesson => 'a',
		average_score => '2.00',
		total_study_time => '11.5',
		last_activity_date => '2024-01-01',
		completed_lessons_list => '["b","Z","a"]',
		current_active_level => 'a10',
		last_activity_date_global => '2024-01-02T00:00:00.000Z',
		level_a1_units_completed => '1',
		level_a1_milestones => '0',
		level_a1_status => 'in_progress',
		level_a10_units_completed => '1',
		level_a10_status => 'completed',
		level_a2_units_completed => '0',
		level_a2_status => 'in_progress',
	}, 'a student with ties');
	my %nothing = (lessons_completed => '0', level_a1_units_completed => '0', level_a1_milestones => '0',
		level_a10_units_completed => '0', level_a2_units_completed => '0');
	my %begun = (%nothing, map { ("level_${_}_status" => 'not_started') } qw(a1 a10 a2));
	is_deeply(properties(2), { %begun, average_score => '2.00', total_study_time => '0', completed_lessons_list => '[]' },
		'one with a row without a lesson');
	is_deeply(properties(3), { %begun, level_a1_milestones => '1' }, 'one with a milestone only: no activity');
	is_deeply(properties(4), \%nothing, 'one without any row');
	is($fixed->sql("SELECT levels FROM student_progress WHERE user_id = '1'"),
		$fixed->sql(q{SELECT jsonb '{"a1": {"units_completed": 1, "accuracy": null, "milestones": 0, "status": "in_progress"},
			"a10": {"units_completed": 1, "accuracy": null, "milestones": null, "status": "completed"},
			"a2": {"units_completed": 0, "accuracy": null, "milestones": null, "status": "in_progress"}}'}),
		'levels in the view');
};

# As in docs/progress.md.
subtest 'the worked example' => sub {
	my $level = '(user_id integer, unit_id text, status text, accuracy_percentage numeric,
		time_spent_minutes numeric, completed_at timestamptz, last_activity timestamptz, PRIMARY KEY (user_id, unit_id))';
	school('example', "CREATE TABLE users (id integer PRIMARY KEY, email text, course_id text);
		CREATE TABLE course_lessons (course_id text, lesson_id text);
		CREATE TABLE course_progress (user_id integer, lesson_id text, completed boolean, score numeric,
			time_spent integer, last_accessed_at timestamptz, PRIMARY KEY (user_id, lesson_id));
		CREATE TABLE user_streaks (user_id integer, current_streak integer, updated_at timestamptz);
		CREATE TABLE user_xp (user_id integer, total_xp integer);
		CREATE TABLE a1_progress $level; CREATE TABLE a2_progress $level;
		CREATE TABLE a1_milestones (user_id integer); CREATE TABLE a2_milestones (user_id integer);
		INSERT INTO users VALUES (1, 'Ana\@school.example', 'spanish'), (2, 'ben\@school.example', 'spanish'), (3, 'cleo\@school.example', NULL);
		INSERT INTO course_lessons SELECT 'spanish', unnest('{intro,nouns,verbs,travel,food,past}'::text[]);
		INSERT INTO course_progress VALUES
			(1, 'intro', true, 90, 600, '2026-11-01 09:00:00+00'), (1, 'nouns', true, 77.75, 89, '2026-11-03 18:30:00+00'),
			(1, 'verbs', true, 85.5, 1250, '2026-11-03 18:30:00+00'), (1, 'travel', true, NULL, 300, NULL),
			(1, 'food', false, 40, 100, '2026-11-05 23:30:00-02');
		INSERT INTO user_streaks VALUES (1, 12, '2026-11-01 08:00:00+00'), (1, 3, '2026-11-05 08:00:00+00');
		INSERT INTO user_xp VALUES (1, 1200), (1, 350);
		INSERT INTO a1_progress VALUES
			(1, 'u1', 'Completed', 90, 30, NULL, '2026-11-04 10:00:00+00'), (1, 'u3', 'in_progress', NULL, 12.5, NULL, NULL),
			(1, 'u2', 'in_progress', 75.5, 20, '2026-11-04 11:00:00+00', '2026-11-04 11:00:00+00'),
			(2, 'u1', 'completed', 100, 10, NULL, '2026-10-01 09:00:00+00'), (2, 'u2', 'completed', 95, 10, NULL, '2026-10-02 09:00:00+00'),
			(2, 'u3', 'completed', 90, 10, NULL, '2026-10-03 09:00:00+00');
		INSERT INTO a1_milestones (user_id) VALUES (1), (1), (2);
		INSERT INTO a2_progress VALUES (1, 'u1', 'completed', 88, 15, NULL, '2026-11-07 08:15:30.123987+00');
		INSERT INTO progress_sources (source, level, total_units) VALUES ('level', 'a2', 10)");
	is_deeply(properties(1), {
		lessons_completed => '4', current_lesson => 'food', average_score => '84.42', total_study_time => '115.5',
		progress_percentage => '66.67', last_activity_date => '2026-11-06', study_streak => '3', current_streak => '3',
		total_xp => '1550', completed_lessons_list => '["travel","intro","nouns","verbs"]', current_active_level => 'a2',
		last_activity_date_global => '2026-11-07T08:15:30.123Z', level_a1_units_completed => '2', level_a1_accuracy => '82.75',
		level_a1_milestones => '2', level_a1_status => 'in_progress', level_a2_units_completed => '1',
		level_a2_accuracy => '88.00', level_a2_milestones => '0', level_a2_status => 'in_progress',
	}, 'Ana');
	is_deeply(properties(2), {
		level_a1_status => 'completed', level_a1_accuracy => '95.00', level_a1_units_completed => '3', level_a1_milestones => '1',
		level_a2_status => 'not_started', level_a2_units_completed => '0', level_a2_milestones => '0', lessons_completed => '0',
		progress_percentage => '0.00', total_study_time => '30', current_active_level => 'a1',
		last_activity_date_global => '2026-10-03T09:00:00.000Z',
	}, 'Ben');
	is_deeply(properties(3), { map { $_ => '0' } qw(lessons_completed level_a1_units_completed level_a1_milestones
		level_a2_units_completed level_a2_milestones) }, 'Cleo');
	is($fixed->sql('SELECT level, students, completed, mean_accuracy FROM level_progress_summary ORDER BY level'),
		"a1|2|1|88.88\na2|1|0|88.00", 'the levels');
};

subtest 'all units of a level' => sub {
	school('totals', "$users
		INSERT INTO users VALUES (2, 'two\@example.com');
		CREATE TABLE a1_progress (user_id integer, unit_id text, completed_at timestamptz);
		INSERT INTO a1_progress VALUES (1, 'u1', now()), (1, 'u2', 'infinity'), (1, NULL, NULL), (2, 'u1', now()), (2, 'u2', NULL)");
	my $statuses = sub { return join ' ', map { value($_, 'level_a1_status') } 1, 2; };
	is($statuses->(), 'completed in_progress', 'those that any student has');
	my $total = sub { $fixed->sql("INSERT INTO progress_sources (source, level, total_units) VALUES ('level', 'a1', $_[0])
		ON CONFLICT (source, level) DO UPDATE SET total_units = excluded.total_units"); return $statuses->(); };
	is($total->(3), 'in_progress in_progress', 'more by configuration');
	is($total->(2), 'completed in_progress', '... as many');
	is($total->(1), 'completed completed', '... fewer');
	is($fixed->sql('SELECT level, students, completed, active_last_7_days FROM level_progress_summary'), 'a1|2|2|0', 'the summary');
	is($total->('NULL'), 'completed in_progress', '... none');

	# Rows with an id that no student has, or none, count nowhere.
	$fixed->sql("INSERT INTO $schema.a1_progress VALUES (99, 'u3', now()), (NULL, 'u4', NULL)");
	is($statuses->(), 'completed in_progress', 'units that only somebody has who is no student');

	school('begun', "$users CREATE TABLE a1_progress (user_id integer, unit_id integer, accuracy_percentage integer, last_activity timestamptz);
		INSERT INTO a1_progress VALUES (1, 1, 50, now())");
	is($fixed->sql('SELECT level, students, completed, mean_accuracy, active_last_7_days FROM level_progress_summary'), 'a1|1|0|50.00|1',
		'a level that tells nothing of completion has students');
};

subtest 'streaks' => sub {
	my $n = 0;
	foreach my $case (
		[ 'updated_at, created_at', '5, 2024-01-01, 2024-01-09', '7, 2024-01-02, NULL', '9, NULL, 2024-01-09', 7 ],
		[ 'updated_at', '5, 2024-01-03', '7, 2024-01-02', '9, NULL', 5 ],
		[ 'created_at', '5, 2024-01-01', '7, 2024-01-02', '9, NULL', 7 ],
		[ 'updated_at', '5, 2024-01-03', '7, 2024-01-03', '6, 2024-01-03', 7 ],
		[ 'created_at', 'NULL, 2024-01-03', '7, 2024-01-02', '6, 2024-01-01', undef ],
		[ '', '5', '10', '9', 10 ])
	{
		my ($columns, @rows) = @$case;
		my $streak = pop @rows;
		school('streaks' . ++$n, "$users CREATE TABLE user_streaks (user_id integer, current_streak integer"
			  . join('', map { ", $_ timestamptz" } split /, /, $columns) . ');'
			  . 'INSERT INTO user_streaks VALUES ' . join ', ', map { '(1, ' . s/(\d{4}-\d\d-\d\d)/'$1'/gr . ')' } @rows);
		is(value(1, 'current_streak'), $streak, 'the streak by ' . ($columns || 'height'));
		is(value(1, 'study_streak'), $streak, '... twice');
	}
};

subtest 'what is missing or left out' => sub {
	school('bare', $users);
	is_deeply(properties(1), {}, 'users alone');
	is($fixed->sql('SELECT user_id, lessons_completed, total_xp, levels FROM student_progress'), '1|||{}', '... in the view');

	school('lacking', "$users CREATE TABLE course_progress (user_id integer, lesson_id text, completed boolean, unit_id integer);
		INSERT INTO course_progress VALUES (1, 'a', true, 1);
		CREATE TABLE user_xp (user_id integer, xp integer);
		INSERT INTO user_xp VALUES (1, 3);
		CREATE TABLE b2_progress (user_id integer, unit integer);
		CREATE TABLE c1_progress (user_id integer, unit_id integer, last_activity text);
		INSERT INTO c1_progress VALUES (1, 1, 'yesterday')");
	is_deeply(properties(1), { lessons_completed => '1' }, 'a school without most columns');
	my $log = $fixed->wait_for($fixed->sql('SELECT push_student_progress(NULL, true)'));
	is($log->{status}, 'success', 'a dry run');
	is($log->{records_processed}, 1, '... finds a student who differs');
	my $remark = $log->{error_details}{remark} // '';
	like($remark, qr/\Q$_\E/, "... and says what is missing: $_")
	  foreach qw(score time_spent last_accessed_at user_streaks total_xp course_lessons last_activity c1_milestones accuracy_percentage);
	is(() = $remark =~ /user_streaks/g, 1, '... once');

	$fixed->sql(<<~"SQL");
		ALTER TABLE $schema.user_xp RENAME xp TO total_xp;
		UPDATE progress_sources SET enabled = false WHERE source = 'course_progress';
		SQL
	is_deeply(properties(1), { total_xp => '3' }, 'a source that is switched off');
	$fixed->sql("UPDATE progress_sources SET enabled = true, columns = '{\"completed\": null}' WHERE source = 'course_progress';
		UPDATE progress_sources SET columns = '{\"total_xp\": \"user_id\"}' WHERE source = 'user_xp'");
	is_deeply(properties(1), { total_xp => '1' }, 'a column that is switched off, one that is another');

	school('nobody', 'CREATE TABLE people (id integer, email text)');
	like($fixed->sql_error('SELECT * FROM preview_student_progress()'), qr/42P01.*HINT:.*progress_sources/s, 'no users');
	like($fixed->sql_error('SELECT * FROM student_progress'), qr/42P01.*HINT:/s, '... in the view');
	like($fixed->sql_error('SELECT push_student_progress()'), qr/42P01.*HINT:/s, '... for a run');
	foreach my $missing ('id', 'email')
	{
		school("no_$missing", 'CREATE TABLE users (' . ($missing eq 'id' ? 'email text' : 'id integer') . ')');
		like($fixed->sql_error('SELECT * FROM preview_student_progress()'), qr/42703.*\b$missing\b.*HINT:.*progress_sources/s, "users without $missing");
		like($fixed->sql_error('SELECT * FROM student_progress'), qr/42703.*HINT:/s, '... in the view');
		my $run = $fixed->run_sync('progress');
		isnt($run->{status}, 'success', '... for a run');
		my $log = defined $run->{run_id} ? $json->canonical->encode($fixed->log($run->{run_id})) : '';
		like("$log $run->{stderr}", qr/\bno column $missing\b/, '... which says why');
	}
	school('no_students', 'CREATE TABLE users (id integer, email text); CREATE TABLE a1_progress (user_id integer, unit_id integer)');
	is($fixed->sql('SELECT * FROM preview_student_progress(); SELECT * FROM student_progress; SELECT * FROM inactive_students(7)'), '',
		'no students');
};

subtest 'which tables are levels' => sub {
	my $columns = '(user_id integer, unit_id integer, status text)';
	school('names', "$users
		CREATE TABLE \"B2_progress\" $columns; CREATE TABLE \"B2_milestones\" (user_id integer);
		INSERT INTO \"B2_milestones\" VALUES (1);
		CREATE TABLE x_9_progress $columns;"
		  . join('', map { "CREATE TABLE \"$_\" $columns; INSERT INTO \"$_\" VALUES (1, 1);" }
			  '9a_progress', '_progress', 'ä1_progress', 'a-1_progress', 'a 1_progress', 'a1progress', 'a1_progress_old', "o'x_progress", 'a\\_progress')
		  . "CREATE TABLE c1_progress (user_id integer); CREATE TABLE c2_progress (unit_id integer);
		CREATE TABLE ${\('z' x 54)}_progress $columns");
	my $levels = sub { return join ' ', sort map { /^level_(.*)_units_completed$/ ? $1 : () } keys %{ properties(1) }; };
	is($levels->(), 'b2 x_9 ' . 'z' x 54, 'those with a fitting name and both columns');
	is(value(1, 'level_b2_milestones'), 1, 'milestones beside a table in upper case');

	school('members', "$users CREATE TABLE a1_progress $columns; CREATE TABLE b1_progress $columns; CREATE TABLE c1_progress $columns");
	$fixed->sql("ALTER EXTENSION plpgsql ADD TABLE $schema.b1_progress; ALTER TABLE $schema.c1_progress OWNER TO stranger");
	is($levels->(), 'a1', 'neither members of an extension nor tables of somebody else');
	$fixed->sql("SET ROLE stranger; CREATE TABLE $schema.\"A1_progress\" $columns");
	is($levels->(), 'a1', '... whatever their names');
	$fixed->sql("ALTER EXTENSION plpgsql DROP TABLE $schema.b1_progress; ALTER TABLE $schema.\"A1_progress\" OWNER TO school");
	foreach my $query ('SELECT * FROM preview_student_progress()', 'SELECT * FROM student_progress', 'SELECT * FROM inactive_students()')
	{
		my $error = $fixed->sql_error($query);
		like($error, qr/"a1_progress"/, 'two tables for one level');
		like($error, qr/"A1_progress"/, '... are both named');
	}
	my $run = $fixed->run_sync('progress');
	isnt($run->{status}, 'success', '... and no run succeeds');
	like($run->{stderr}, qr/A1_progress/, '... which says why');
	$fixed->sql("INSERT INTO progress_sources (source, level, table_name) VALUES ('level', 'a2', 'A1_progress')");
	is($levels->(), 'a1 a2 b1', 'until one is another level');
	$fixed->sql("UPDATE progress_sources SET enabled = false WHERE level = 'a2'");
	is($levels->(), 'a1 b1', '... or is switched off');

	school('elsewhere', "$users
		CREATE SCHEMA elsewhere_2; CREATE TABLE elsewhere_2.units (student integer, part integer, state text);
		CREATE TABLE elsewhere_2.badges (who integer); INSERT INTO elsewhere_2.badges VALUES (1), (1);
		INSERT INTO elsewhere_2.units VALUES (1, 1, 'completed');
		CREATE VIEW a3_lessons AS SELECT 1 AS user_id, 1 AS unit_id, 'completed' AS status;
		RESET ROLE;
		INSERT INTO progress_sources (source, level, table_schema, table_name, columns) VALUES
			('level', 'a1', 'elsewhere_2', 'units', '{\"user_id\": \"student\", \"unit_id\": \"part\", \"status\": \"state\"}'),
			('milestones', 'a1', 'elsewhere_2', 'badges', '{\"user_id\": \"who\"}'),
			('level', 'a3', NULL, 'a3_lessons', '{}')", owner => 'postgres');
	is($levels->(), 'a1 a3', 'a level elsewhere and a view as level');
	is(value(1, 'level_a1_milestones'), 2, '... with milestones');
	is(value(1, 'level_a3_status'), 'completed', '... and the view\'s rows');

	# A row without a table's name is about the usual table.
	school('columns', "$users CREATE TABLE a1_progress (student integer, unit_id integer, status text);
		INSERT INTO a1_progress VALUES (1, 1, 'completed');
		CREATE SCHEMA elsewhere_3; CREATE TABLE elsewhere_3.b1_progress $columns;
		INSERT INTO elsewhere_3.b1_progress VALUES (1, 1, 'completed');
		RESET ROLE;
		INSERT INTO progress_sources (source, level, columns) VALUES ('level', 'a1', '{\"user_id\": \"student\"}');
		INSERT INTO progress_sources (source, level, table_schema) VALUES ('level', 'b1', 'elsewhere_3')", owner => 'postgres');
	is(value(1, 'level_a1_status'), 'completed', 'the usual table with another column for students');
	is(value(1, 'level_b1_status'), 'completed', 'the usual table in another schema');

	school('switched', "$users CREATE TABLE course_progress (user_id integer, unit_id integer, lesson_id integer);
		INSERT INTO course_progress VALUES (1, 1, 1);
		RESET ROLE; UPDATE progress_sources SET enabled = false WHERE source = 'course_progress'");
	is($levels->(), '', 'course_progress is no level even when it is switched off');
};

subtest 'tables of others' => sub {
	school('owners', "$users CREATE TABLE course_progress (user_id integer, lesson_id text, completed boolean);
		CREATE TABLE user_xp (user_id integer, total_xp integer); INSERT INTO user_xp VALUES (1, 5);
		CREATE TABLE a1_progress (user_id integer, unit_id integer, status text);
		CREATE TABLE a1_milestones (user_id integer)");
	$fixed->sql("ALTER TABLE $schema.$_ OWNER TO stranger") foreach qw(course_progress a1_milestones);
	is_deeply(properties(1), { total_xp => '5', level_a1_units_completed => '0', level_a1_status => 'not_started' },
		'are left out');

	# Whoever may write the configuration may name only what is his.
	foreach my $statement (
		"UPDATE progress_sources SET table_schema = 'public' WHERE source = 'users'",
		"UPDATE progress_sources SET enabled = false WHERE source = 'user_xp'",
		"UPDATE progress_sources SET columns = '{\"total_xp\": \"user_id\"}' WHERE source = 'user_xp'",
		"UPDATE progress_sources SET table_name = 'course_progress' WHERE source = 'user_xp'",
		"INSERT INTO progress_sources (source, level, total_units) VALUES ('level', 'a1', 1)",
		"INSERT INTO progress_sources (source, level, table_name) VALUES ('level', 'b1', 'user_xp')",
		"INSERT INTO progress_sources (source, level, table_name) VALUES ('milestones', 'a1', 'user_xp')")
	{
		like($fixed->sql_error($statement, user => 'stranger'), qr/42501/, "refused to a stranger: $statement");
	}
	$fixed->sql("INSERT INTO progress_sources (source, level, total_units) VALUES ('level', 'a1', 3)", user => 'school');
	like($fixed->sql_error("DELETE FROM progress_sources WHERE source = 'level'", user => 'stranger'), qr/42501/, 'refused: DELETE');
	is($fixed->sql("SELECT configured_by, total_units FROM progress_sources WHERE level = 'a1'"), 'school|3', 'the owner may');
	$fixed->sql('GRANT school TO stranger');
	$fixed->sql("UPDATE progress_sources SET total_units = 4 WHERE level = 'a1'", user => 'stranger');
	is($fixed->sql("SELECT total_units FROM progress_sources WHERE level = 'a1'"), 4, '... and a member of the owner');
	$fixed->sql('REVOKE school FROM stranger');

	# The view reads with the caller's rights.
	$fixed->sql("GRANT SELECT ON $schema.users, $schema.a1_progress TO reader");
	foreach my $query ('SELECT * FROM preview_student_progress()', 'SELECT * FROM student_progress',
		'SELECT * FROM level_progress_summary', 'SELECT * FROM inactive_students(7)')
	{
		like($fixed->sql_error($query, user => 'reader'), qr/42501.*user_xp/s, "$query by one who may not read all");
	}
};

# ---------------------------------------------------------------------------
# What sessions and columns can do to the statement
# ---------------------------------------------------------------------------

subtest 'odd sessions' => sub {
	school('sessions', "$users CREATE TABLE course_progress (user_id integer, lesson_id text, completed text, score text, last_accessed_at timestamp);
		INSERT INTO course_progress VALUES (1, 'it''s \\ here', ' TRUE ', ' 85.5 ', '2024-03-31 23:30:00.9999'), (1, '2', 'true', 's5', NULL),
			(1, '3', 'yes', '8x5', NULL);
		CREATE TABLE a1_progress (user_id integer, unit_id integer, status text, last_activity timestamptz);
		INSERT INTO a1_progress VALUES (1, 1, 'completed', '2024-04-01 00:30:00+01');
		CREATE FUNCTION lower(text) RETURNS text LANGUAGE sql AS \$\$SELECT 'completed'\$\$;
		CREATE FUNCTION btrim(text) RETURNS text LANGUAGE sql AS \$\$SELECT 'false'\$\$;
		CREATE FUNCTION floor(numeric) RETURNS numeric LANGUAGE sql AS \$\$SELECT 1.0\$\$");
	my $usual = properties(1);
	is($usual->{average_score}, '85.50', 'the usual session');
	is($usual->{last_activity_date_global}, '2024-03-31T23:30:00.999Z', '... truncates');
	foreach my $settings ("SET TimeZone = 'Pacific/Apia'", "SET DateStyle = 'Postgres, MDY'", 'SET standard_conforming_strings = off',
		'SET quote_all_identifiers = on', 'SET search_path = sessions, public, pg_catalog', 'SET plan_cache_mode = force_generic_plan',
		'SET extra_float_digits = -5', "SET lc_numeric = 'C'", 'SET transform_null_equals = on', 'SET regex_flavor.x = 1',
		'SET hubspot_sync.progress_slice = 1', 'SET default_transaction_read_only = on', "SET IntervalStyle = 'sql_standard'")
	{
		is_deeply(eval { properties(1, settings => $settings) } // $@, $usual, $settings);
	}
};

subtest 'odd columns' => sub {
	school('collations', q{CREATE TABLE users (id text COLLATE "C" PRIMARY KEY, email text, course_id text COLLATE "C");
		INSERT INTO users SELECT v, n || '@example.com', 'c' FROM unnest('{a,B,c,D,e,F,g,H,i,J,k,L,m,N,é,Ö}'::text[]) WITH ORDINALITY x(v, n);
		CREATE TABLE user_xp (user_id text COLLATE "und-x-icu", total_xp integer);
		INSERT INTO user_xp SELECT id, 7 FROM users;
		CREATE TABLE a1_progress (user_id varchar COLLATE "POSIX", unit_id integer, status text);
		INSERT INTO a1_progress SELECT id, 1, 'completed' FROM users;
		CREATE TABLE course_lessons (course_id text COLLATE "und-x-icu", lesson_id text);
		INSERT INTO course_lessons VALUES ('c', '1'), ('c', '2');
		CREATE TABLE course_progress (user_id text, lesson_id text COLLATE "und-x-icu", completed boolean);
		INSERT INTO course_progress SELECT id, '1', true FROM users});
	is(eval { $fixed->sql(q{SELECT count(*) FROM student_progress WHERE progress_percentage = 50}) } // $@, 16, 'courses of other collations');
	is(eval { $fixed->sql(q{SELECT count(*) FROM student_progress WHERE total_xp = 7 AND levels #>> '{a1,status}' = 'completed'}) } // $@,
		16, 'ids of other collations');
	is(eval { $fixed->sql(q{SELECT total_xp FROM student_progress WHERE user_id = 'é'}) } // $@, 7, '... of one student');
	is(eval { $fixed->sql(q{SELECT properties ->> 'total_xp' FROM preview_student_progress('15@example.com')}) } // $@, 7, '... by address');

	school('spaces', qq{$users CREATE TABLE course_progress (user_id integer, lesson_id text, completed text COLLATE "und-x-icu", score text COLLATE "und-x-icu");
		INSERT INTO course_progress VALUES (1, 'a', 'true', '80'), (1, 'b', 'true', e'\\u200385'), (1, 'c', 'true', e'85\\u00a0'), (1, 'd', 'true', '٣')});
	is(eval { value(1, 'average_score') } // $@, '80.00', 'scores with spaces that are no spaces to a number');

	school('numbers', qq{$users CREATE TABLE user_xp (user_id integer, total_xp text);
		INSERT INTO user_xp VALUES (1, '1e400000'), (1, '9e999'), (1, '-1e-99999'), (1, '0x1F'), (1, '1_000'), (1, '7'), (1, repeat('9', 200000))});
	isnt(eval { value(1, 'total_xp') } // "error: $@", undef, 'numbers beyond all measure do not stop anybody');
	unlike(eval { value(1, 'total_xp') } // "error: $@", qr/error|[eE]/, '... nor become what is no number');

	school('bytes', q{CREATE TYPE state AS ENUM ('open', 'Completed'); CREATE DOMAIN points AS numeric(6, 2) CHECK (value >= 0);
		CREATE TABLE users (id bigint PRIMARY KEY, email varchar(50)); INSERT INTO users VALUES (1, 'one@example.com');
		CREATE TABLE user_xp (user_id points, total_xp points); INSERT INTO user_xp VALUES (1, 2.50), (1, 3);
		CREATE TABLE a1_progress (user_id smallint, unit_id uuid, status state);
		INSERT INTO a1_progress VALUES (1, '00000000-0000-0000-0000-000000000001', 'Completed')});
	my $properties = eval { properties(1) } // {};
	is($properties->{level_a1_status}, 'completed', 'an enumeration as status, other integers');
};

diag("HUBSPOT_SYNC_TEST_SEED=$seed") unless Test::More->builder->is_passing;
note(sprintf '%.0f s', time - $begin);

done_testing();
