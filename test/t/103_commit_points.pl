# Whatever crashes before or after any commit, a run's process or the whole
# server, the next runs bring every table and every contact to the truth, and no
# entry of the log stays open. See HubspotSync::CommitPoints for the crashes.
# scripts/sweep tries all points, or one, with the environment variable
# HUBSPOT_SYNC_SWEEP_COMMITS: all, or names of cases.
#
# build: INJECTION=1

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::CommitPoints;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant {
	SECONDS => 60,
	FEWEST => 5,    # each kind of crash once
};

my $seed = $ENV{HUBSPOT_SYNC_TEST_SEED} // int(time * 1000) % 1_000_000;
my $cases = $ENV{HUBSPOT_SYNC_SWEEP_COMMITS} // '';
my $deadline = time + ($cases ? 86400 : SECONDS);
diag("HUBSPOT_SYNC_TEST_SEED=$seed");

my $points = HubspotSync::CommitPoints->new('commits');
is(join("\n", $points->survey), '', 'without a crash all is well');
cmp_ok($points->points, '>', 100, 'there are many points');

my @cases = $cases =~ /^(?:all)?$/ ? $points->sample($seed) : split ' ', $cases;
my $tried = 0;
foreach my $case (@cases)
{
	last if time > $deadline && $tried >= FEWEST;
	my $found = join "\n", $points->try($case);
	is($found, '', $case) or diag("repeat it with: scripts/sweep --commit $case");
	$tried++;
	diag("$tried of " . @cases . ' cases tried') if $cases && $tried % 25 == 0;
}
note("$tried of " . @cases . ' cases at ' . $points->points . ' points');
cmp_ok($tried, '>=', FEWEST, 'each kind of crash was tried') if $cases =~ /^(?:all)?$/;

like(join("\n", $points->try('99999:kill')), qr/^the point was not met/, 'a point that is never met is noticed');

done_testing();
