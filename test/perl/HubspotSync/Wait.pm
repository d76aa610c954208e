package HubspotSync::Wait;

=head1 NAME

HubspotSync::Wait - wait for a condition instead of sleeping

=head1 SYNOPSIS

  use HubspotSync::Wait qw(wait_until);
  wait_until('all runs have ended', sub { $server->sql('...') == 0 });
  wait_until('it is there', sub { -e $file }, 2);

=cut

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils ();
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(wait_until);

# Looks again and again until a condition holds; dies at the deadline, which is
# that of PostgreSQL's tests unless it is given in seconds.
sub wait_until
{
	my ($what, $condition, $seconds) = @_;
	my $deadline = time + ($seconds // $PostgreSQL::Test::Utils::timeout_default);
	until ($condition->())
	{
		die "timed out waiting until $what\n" if time > $deadline;
		sleep 0.01; # sleep: between two looks
	}
	return;
}

1;
