package HubspotSync::Sweep;

=pod

=head1 NAME

HubspotSync::Sweep - one scenario, played with any fault at any request

=head1 SYNOPSIS

  my $sweep = HubspotSync::Sweep->new('sweep');
  my @problems = $sweep->survey;
  @problems = $sweep->try('12:hang');
  foreach my $case ($sweep->sample($seed)) { ... }

=head1 DESCRIPTION

A case is named INDEX:FAULT, with the number of the request in the scenario and
one of the faults below. FAULT/lasting meets the request and its repetitions,
until the run gives up; FAULT/applied is for requests that write, and takes
effect before its answer is lost. In place of a fault's name there may be an
action of the simulator as JSON, such as 12:{"kind":"error","status":418}; then
runs may end for any reason that the README explains. 12:hang+14:reset are two
at once. After each case the runs that a schedule would make next are made, and everything is
compared with the truth. The log has to tell what happened.

Some requests are on the wire at the same time and may arrive in another order
the next time: met() says which ones a case has met.

=cut

use strict;
use warnings;

use FindBin;
use HubspotSync::Scenario;
use HubspotSync::Truth qw(truth_differences row_differences);
use JSON::PP;
use List::Util qw(max shuffle sum0);
use PostgreSQL::Test::Utils qw(slurp_file);

use constant {
	ATTEMPTS => HubspotSync::Scenario::RETRIES + 1,
	BOMB => 64 << 20,
	ANY_BUT_ERROR => '(?!error$)\w+',
};

# What no run may exceed, whatever it meets.
our $longest_ms = 12_000;
our $most_connections = 6;    # as many as are kept open

# What each fault does (action), and the reasons for which a run may end that
# meets it (reasons). What the other keys say:
#
#   silent   it may leave no trace in the log: it can be that what is delivered
#            again is what would have been delivered
#   unseen   the simulator sees only the reset that it begins with: nobody
#            connects then
#   whole    the request takes effect anyhow, so there is no FAULT/applied
#   lasting  what the action of FAULT/lasting has in addition
my @faults = (
	{ name => 'refused', action => { kind => 'refuse', ms => 25 }, lasting => { ms => 1500 }, unseen => 1 },
	{ name => 'reset', action => { kind => 'reset' } },
	{ name => 'reset_mid_body', action => { kind => 'reset_mid_body', after_bytes => 20 }, whole => 1 },
	{ name => 'truncated', action => { kind => 'truncated_json' }, whole => 1 },
	{ name => 'empty', action => { kind => 'empty_body' } },
	{ name => 'html', action => { kind => 'html', status => 502 } },
	{ name => '500', action => { kind => 'error', status => 500 } },
	{ name => '503', action => { kind => 'status', status => 503, headers => { 'Retry-After' => '1' } } },
	{ name => '429_burst', action => { kind => 'rate_limit', policy => 'TEN_SECONDLY_ROLLING' }, whole => 1 },
	{ name => '429_search', action => { kind => 'rate_limit', policy => 'SECONDLY', retry_after => 1 }, whole => 1 },
	{ name => '429_daily', action => { kind => 'rate_limit', policy => 'DAILY' }, whole => 1, reasons => 'daily_limit' },
	{ name => '401', action => { kind => 'error', status => 401, category => 'INVALID_AUTHENTICATION' }, whole => 1, reasons => 'auth' },
	{ name => 'hang', action => { kind => 'hang' } },
	{ name => 'slow', action => { kind => 'slow', bytes_per_second => 1 }, whole => 1 },
	{ name => 'bomb', action => { kind => 'gzip_bomb', bytes => BOMB }, reasons => 'too_large' },
	{ name => 'certificate', action => { kind => 'other_certificate', connections => 1 },
		lasting => { connections => ATTEMPTS }, unseen => 1 },
	{ name => 'previous', action => { kind => 'repeat_previous' }, whole => 1, silent => 1,
		reasons => 'repeated_cursor|unordered' });

my %variants = map { $_->{name} => $_ } map { _variants($_) } @faults;

# FAULT, FAULT/lasting and FAULT/applied. Of unseen ones that last some run has
# to fail (ends), and only what writes can be applied (writes).
sub _variants
{
	my ($fault) = @_;
	my %once = (reasons => 'gave_up', %$fault);
	my %lasting = (%once, name => "$fault->{name}/lasting", times => ATTEMPTS, ends => $fault->{unseen},
		action => { %{ $fault->{action} }, %{ $fault->{lasting} || {} } });
	my %applied = (%once, name => "$fault->{name}/applied", writes => 1,
		action => { %{ $fault->{action} }, apply => JSON::PP::true });
	return (\%once, $fault->{silent} ? () : \%lasting, $fault->{whole} ? () : \%applied);
}

=pod

=head1 METHODS

=over

=item new($name, %conf)

Makes a scenario of that name.

=item scenario()

=item survey()

Plays the scenario without a fault, learns its requests, and returns what is
wrong with the result, a list of lines.

=item requests()

The requests of the scenario, as the journal has them.

=item cases()

The names of all cases.

=item kinds()

The names of the faults.

=item sample($seed)

All cases in an order that the seed decides, in which each fault has had a turn
first, and each of their variants before any has another.

=item try($case)

Plays a case; returns what is wrong, which may be that it could not be played
to its end. Several cases joined by + are played together; then runs may end
for any reason that the README explains.

=item all_met()

Whether all faults of the last case were met.

=item met()

Which requests have met the faults of the last case.

=item runs()

All runs in their order, as sync_logs has them; in scalar context their number.

=item play($is_met)

Plays the scenario. If $is_met->() says so, rows are healed and compared at
half-time already; what is wrong then is returned by the next method, too.

=item heal_and_compare()

Makes the next runs, which have to succeed, and compares; returns what is wrong.

=back

Two functions tell of a run, a row of sync_logs: ending($run) how it ended, and
is_documented($run) whether it ended well or for a reason that the README
explains.

=cut

sub new
{
	my ($class, $name, %conf) = @_;
	return bless { scenario => HubspotSync::Scenario->new($name, %conf) }, $class;
}

sub scenario { return $_[0]{scenario}; }
sub requests { return @{ $_[0]{requests} }; }
sub kinds { return map { $_->{name} } @faults; }

sub survey
{
	my ($self) = @_;
	my $scenario = $self->{scenario};
	$scenario->begin;
	$scenario->patient(1);
	$scenario->play;
	$scenario->patient(0);
	$self->{requests} = [ $scenario->simulator->journal ];
	my @runs = $self->runs;
	my @problems = map { "run of $_->{sync_type}: $_->{status}, $_->{retries} retries" }
	  grep { $_->{status} ne 'success' || $_->{retries} > 0 } @runs;
	push @problems, _uncounted(\@runs, $self->{requests});
	return (@problems, $self->heal_and_compare);
}

sub cases
{
	my ($self) = @_;
	my @cases;
	my $before = '';
	foreach my $request ($self->requests)
	{
		my $kind = "$request->{path}?" . $request->{query_string} =~ s/&after=[^&]*//r;
		my $next_page = $kind eq $before || _goes_on($request);
		my @fitting = grep { _fits($_, $request, $next_page) } values %variants;
		push @cases, map { "$request->{n}:$_->{name}" } sort { $a->{name} cmp $b->{name} } @fitting;
		$before = $kind;
	}
	return @cases;
}

# Whether a request is for another page of what it belongs to.
sub _goes_on
{
	my ($request) = @_;
	return 1 if $request->{query_string} =~ /(?:^|&)after=/;
	return 0 if $request->{path} !~ m{/search$};
	return grep { $_->{propertyName} eq 'hs_object_id' && $_->{operator} eq 'LT' } map { @{ $_->{filters} } } @{ $request->{body}{filterGroups} };
}

# Whether a variant can meet a request. The answer of an earlier walk in place
# of a first page is what HubSpot might say: nobody can notice that.
sub _fits
{
	my ($variant, $request, $next_page) = @_;
	return 0 if $variant->{writes} && !_writes($request);
	return $next_page || $variant->{action}{kind} ne 'repeat_previous';
}

sub _writes
{
	my ($request) = @_;
	return $request->{method} ne 'GET' && $request->{path} !~ m{/(?:search|batch/read)$};
}

sub sample
{
	my ($self, $seed) = @_;
	srand $seed;
	my %of;
	push @{ $of{ (split /:/)[1] } }, $_ foreach shuffle($self->cases);
	my @sample;
	while (%of)
	{
		foreach my $name (sort { ($a =~ m{/}) <=> ($b =~ m{/}) } shuffle(sort keys %of))
		{
			push @sample, shift @{ $of{$name} };
			delete $of{$name} unless @{ $of{$name} };
		}
	}
	return @sample;
}

sub try
{
	my ($self, $case) = @_;
	$self->{met} = [];
	return $self->{scenario}->attempt(sub { $self->_try(split /\+(?=\d+:)/, $case) });
}

sub met { return @{ $_[0]{met} }; }
sub all_met { return $_[0]{all_met}; }

sub _try
{
	my ($self, @cases) = @_;
	my $variant = $self->_begin_with(@cases);
	my @problems = !$self->met ? 'the fault was not met' : @cases > 1 ? $self->_ended_well : $self->_told($variant);
	return (@problems, $self->_excesses(@cases), $self->heal_and_compare);
}

# Of several faults it is not decided which of them the log tells of.
sub _ended_well
{
	my ($self) = @_;
	return map { "run of $_->{sync_type} ended " . ending($_) }
	  grep { !is_documented($_) || ($_->{error_details}{reason} // '') eq 'error' } $self->runs;
}

# Plays the scenario with faults; returns the last one's variant.
sub _begin_with
{
	my ($self, @cases) = @_;
	my $scenario = $self->{scenario};
	my $variant;
	$scenario->begin;
	$self->{trusting} = $scenario->simulator->state->{requests_to_other};
	foreach my $case (@cases)
	{
		my ($index, $name) = split /:/, $case, 2;
		$variant = _variant($name // '') or die "no such fault: $case\n";
		$scenario->simulator->fault(nth => $index + 0, times => $variant->{times} // 1, action => $variant->{action});
	}
	$self->{all_met} = 0;
	$self->play(sub { $self->_look_who_is_met });
	$self->_look_who_is_met;
	$self->{met} = [ map { "$_->{n}: $_->{method} $_->{path}" } grep { $_->{fault} } $scenario->simulator->journal ];
	return $variant;
}

# The variant of that name, or one made of an action. A reason of our own code
# is none that a fault may lead to.
sub _variant
{
	my ($name) = @_;
	return $variants{$name} unless $name =~ /^\{/;
	my $action = decode_json($name);
	my $unseen = $action->{kind} =~ /^(?:refuse|other_certificate)$/;
	return { times => delete $action->{times}, action => $action, reasons => ANY_BUT_ERROR, silent => 1, unseen => $unseen };
}

# Whether each of the faults was met; later they are no longer there.
sub _look_who_is_met
{
	my ($self) = @_;
	my @faults = $self->{scenario}->simulator->faults;
	return $self->{all_met} ||= @faults && !grep { !$_->{hits} } @faults;
}

sub play
{
	my ($self, $is_met) = @_;
	my $scenario = $self->{scenario};
	$self->{early} = [];
	$scenario->play(sub {
		return unless $is_met->();
		$scenario->heal(qw(owners contacts deals));
		$self->{early} = [ map { "half-time: $_" } grep { !_is_late($_) } row_differences($scenario) ];
	});
	return;
}

# Whether a difference is but that a row does not say yet that its record is
# archived, or that a record without an id came: a full run sets that right.
sub _is_late
{
	my ($line) = @_;
	return 1 if $line =~ /^sync_errors: \w+ \S+ the record(?: has no id|'s id is not a number)$/;
	my @columns = $line =~ /(?:: |; )(\w+) is /g;
	return $line =~ /^\w+ \d+: archived is false/ && !grep { !/^(?:archived|archived_at|archived_reason|hubspot_updated_at)$/ } @columns;
}

sub heal_and_compare
{
	my ($self) = @_;
	my $before = $self->runs;
	$self->{scenario}->heal;
	my @runs = $self->runs;
	my @problems = map { "next run of $_->{sync_type}: " . ending($_) }
	  grep { $_->{status} ne 'success' } @runs[ $before .. $#runs ];
	my @differences = truth_differences($self->{scenario});
	@differences = truth_differences($self->{scenario})
	  if @differences && !grep({ !_is_late($_) } @differences) && $self->{scenario}->heal_in_a_week;
	return (@problems, @{ delete $self->{early} || [] }, @differences);
}

# ---------------------------------------------------------------------------
# What the log tells
# ---------------------------------------------------------------------------

sub runs
{
	my ($self) = @_;
	my @runs = $self->{scenario}->server->sql_json('SELECT * FROM sync_logs ORDER BY created_at');
	return @runs;
}

sub ending
{
	my ($run) = @_;
	my $details = $run->{error_details} || {};
	return join ' ', $run->{status}, grep { defined } @$details{qw(reason message detail)};
}

# What the log does not tell of a fault that was met.
sub _told
{
	my ($self, $variant) = @_;
	my @runs = $self->runs;
	my @requests = $self->{scenario}->simulator->journal;
	my @failed = grep { $_->{status} ne 'success' } @runs;
	my @problems = map { "run of $_->{sync_type} ended " . ending($_) }
	  grep { !is_documented($_) || $_->{error_details}{reason} !~ /^(?:$variant->{reasons})$/ } @failed;
	push @problems, 'no run has noticed the fault'
	  unless @failed || sum0(map { $_->{retries} } @runs) || $variant->{silent} || !grep { _matters($_) } @requests;
	push @problems, 'no run has failed, though nobody could connect'
	  if $variant->{ends} && !@failed && grep { _matters($_) } @requests;
	my $trusting = $self->{scenario}->simulator->state->{requests_to_other} - $self->{trusting};
	push @problems, "$trusting requests went to a server with a bad certificate" if $trusting;
	push @problems, _uncounted(\@runs, \@requests) unless $variant->{unseen} && !@failed;
	return @problems;
}

# What a fault does not excuse: a run that waits too long, unless the fault may
# have asked for that, or keeps opening connections.
sub _excesses
{
	my ($self, @cases) = @_;
	my @slow = grep { $_->{duration_ms} > $longest_ms } $self->runs;
	my $connections = max(map { $_->{connections} } $self->{scenario}->simulator->journal);
	return ((map { "run of $_->{sync_type} took $_->{duration_ms} ms" } grep { "@cases" !~ /\{/ } @slow),
		$connections > $most_connections ? "$connections connections at once" : ());
}

# Whether a request met a fault that a run must tell of. What HubSpot does not
# say of former owners is asked for by the next run; and the list of a load may
# come to its end before anybody looks at the answer to a search that helps it.
sub _matters
{
	my ($request) = @_;
	my ($sort) = @{ $request->{body}{sorts} || [] };
	return $request->{fault} && !@{ $request->{body}{propertiesWithHistory} || [] }
	  && !($sort && $sort->{direction} eq 'DESCENDING');
}

# Whether the log's counts are those of the simulator's journal. Requests that
# were begun may be dropped before they arrive: by a run that fails, and the
# last search by a list that needs its help no longer.
sub _uncounted
{
	my ($runs, $requests) = @_;
	my $dropped = sum0(map { $_->{requests} } @$runs) - @$requests;
	my $failed = grep { $_->{status} ne 'success' } @$runs;
	my $helped = grep { $_->{mode} eq 'full' && $_->{sync_type} =~ /^(?:contacts|deals)$/ } @$runs;
	return if $dropped >= 0 && ($failed || $dropped <= $helped);
	return "the runs have counted $dropped requests more than the simulator";
}

sub is_documented
{
	my ($run) = @_;
	return 1 if $run->{status} eq 'success';
	my $reason = $run->{error_details}{reason} // '';
	return $run->{status} =~ /^(?:failed|partial|cancelled)$/ && _reasons()->{$reason};
}

my $reasons;

sub _reasons
{
	my ($table) = slurp_file("$FindBin::RealBin/../../README.md") =~ /^\| `error_details ->> 'reason'` \|.*\n((?:\|.*\n)+)/m
	  or die "the README has no table of reasons\n";
	return $reasons //= { map { $_ => 1 } map { /`(\w+)`/g } $table =~ /^\| (`[a-z_]+`[^|]*) \|/mg };
}

1;
