package HubspotSync::Parallel;

=head1 NAME

HubspotSync::Parallel - several processes that report to one

=head1 SYNOPSIS

  in_parallel(2,
    sub { my ($number, $report) = @_; $report->({ found => $number }) },
    sub { my ($what) = @_; is($what->{found}, ...) });

=head1 DESCRIPTION

in_parallel($jobs, $work, $take) calls $work in so many processes, with the
process's number from 0 on and a function that hands over a reference to what
is to be reported; $take is called here with each report as it comes, and
returns when all have ended. Returns how many of them ended badly. Servers and
simulators that are started in $work end with its process.

=cut

use strict;
use warnings;

use Exporter 'import';
use HubspotSync::Server;
use HubspotSync::Simulator;
use IO::Select;
use JSON::PP;
use POSIX ();

our @EXPORT_OK = qw(in_parallel);

sub in_parallel
{
	my ($jobs, $work, $take) = @_;
	my %pipes;
	foreach my $number (0 .. $jobs - 1)
	{
		my ($pid, $pipe) = _start($number, $work);
		$pipes{$pipe} = [ $pipe, $pid ];
	}
	my $select = IO::Select->new(map { $_->[0] } values %pipes);
	my $bad = 0;
	while ($select->count)
	{
		foreach my $pipe ($select->can_read)
		{
			my $line = <$pipe>;
			$take->(decode_json($line)) if defined $line;
			next if defined $line;
			$select->remove($pipe);
			waitpid $pipes{$pipe}[1], 0;
			$bad++ if $? != 0;
		}
	}
	return $bad;
}

# A line is written at once and is read as a whole; it must not be buffered
# here, where select() would not see it.
sub _start
{
	my ($number, $work) = @_;
	pipe my $in, my $out or die "no pipe: $!";
	my $pid = fork // die "cannot fork: $!";
	if ($pid > 0)
	{
		close $out;
		binmode $in, ':unix';
		return ($pid, $in);
	}
	close $in;
	$out->autoflush(1);
	my $fine = eval { $work->($number, sub { print $out encode_json($_[0]), "\n" }); 1 };
	warn $@ unless $fine;
	HubspotSync::Server::stop_own();
	HubspotSync::Simulator::stop_own();
	POSIX::_exit($fine ? 0 : 1);    # END blocks would stop everybody's servers
}

1;
