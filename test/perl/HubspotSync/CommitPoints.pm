package HubspotSync::CommitPoints;

=pod

=head1 NAME

HubspotSync::CommitPoints - one scenario, with a crash at any commit

=head1 SYNOPSIS

  my $points = HubspotSync::CommitPoints->new('commits');
  my @problems = $points->survey;
  @problems = $points->try('12:kill');

=head1 DESCRIPTION

Needs a library that was built with "make INJECTION=1". A case is named
POINT:CRASH, with the number of an injection point in the scenario, of which
there is one before and after each commit of a run's worker, and one of

  kill         the process is killed, and the server restarts
  exit         it ends without cleaning up; the server restarts
  postmaster   the whole server is killed, and started again
  terminate    FATAL, as by pg_terminate_backend()
  error        ERROR

=cut

use strict;
use warnings;

use HubspotSync::Sweep;
use List::Util qw(shuffle);
use PostgreSQL::Test::Utils qw(slurp_file);

use constant {
	MANY => 100_000,
	KINDS => [qw(kill exit postmaster terminate error)],
};

=pod

=head1 METHODS

=over

=item new($name)

Makes a scenario of that name.

=item survey()

Plays the scenario without a crash, counts its points, and returns what is
wrong with the result.

=item points()

How many points there are.

=item cases($seed)

The names of all cases: a kill at each point, and each of the other crashes at
every fourth one, beginning at one that the seed decides.

=item sample($seed)

The same in an order that the seed decides, in which each crash has had a turn
before any has another.

=item try($case)

Plays a case; returns what is wrong, which may be that it could not be played
to its end.

=back

=cut

sub new
{
	my ($class, $name) = @_;
	my $sweep = HubspotSync::Sweep->new($name);
	my $self = bless { sweep => $sweep, scenario => $sweep->scenario }, $class;
	$self->{file} = $self->{scenario}->server->node->data_dir . '/hubspot_sync.injection';
	return $self;
}

sub points { return $_[0]{points}; }

sub survey
{
	my ($self) = @_;
	$self->_play(MANY, 'kill');
	my ($left) = slurp_file($self->{file}) =~ /^(\d+)/;
	$self->{points} = MANY - $left;
	unlink $self->{file};
	return (map({ "run of $_->{sync_type} ended " . HubspotSync::Sweep::ending($_) } grep { $_->{status} ne 'success' } $self->{sweep}->runs),
		$self->{sweep}->heal_and_compare);
}

# Begins and plays with a crash at a point.
sub _play
{
	my ($self, $point, $kind) = @_;
	my $scenario = $self->{scenario};
	$scenario->begin;
	open my $file, '>', $self->{file} or die "cannot write $self->{file}: $!";
	print $file "$point $kind\n";
	close $file or die "cannot write $self->{file}: $!";
	$scenario->careful(1);
	$self->{sweep}->play(sub { !-e $self->{file} });
	return;
}

sub cases
{
	my ($self, $seed) = @_;
	my @others = @{ +KINDS }[ 1 .. 4 ];
	return map { ("$_:kill", "$_:$others[($_ + $seed) % @others]") } 1 .. $self->{points};
}

sub sample
{
	my ($self, $seed) = @_;
	srand $seed;
	my %of;
	push @{ $of{ (split /:/)[1] } }, $_ foreach shuffle($self->cases($seed));
	return map { my $n = $_; map { $of{$_}[$n] // () } @{ +KINDS } } 0 .. $self->{points};
}

sub try
{
	my ($self, $case) = @_;
	return $self->{scenario}->attempt(sub { $self->_try($case) }, sub { unlink $self->{file} });
}

sub _try
{
	my ($self, $case) = @_;
	$self->_play(split /:/, $case);
	my @problems = -e $self->{file} ? 'the point was not met' : $self->_told;
	unlink $self->{file};
	return (@problems, $self->{sweep}->heal_and_compare);
}

# A crash after a run's last commit leaves no trace.
sub _told
{
	my ($self) = @_;
	return map { "run of $_->{sync_type} ended " . HubspotSync::Sweep::ending($_) }
	  grep { $_->{status} ne 'pending' && !HubspotSync::Sweep::is_documented($_) } $self->{sweep}->runs;
}

1;
