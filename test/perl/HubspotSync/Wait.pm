package HubspotSync::Wait;

=head1 NAME

HubspotSync::Wait - wait for a condition instead of sleeping

=head1 SYNOPSIS

  use HubspotSync::Wait qw(wait_until);
  wait_until('all runs have ended', sub { $server->sql('...') == 0 });

=cut

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils ();
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(wait_until);

# Looks again and again until a condition holds; dies at the deadline.
sub wait_until
{
	my ($what, $condition) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	until ($condition->())
	{
		die "timed out waiting until $what\n" if time > $deadline;
		sleep 0.01; # sleep: between two looks
	}
	return;
}

1;
