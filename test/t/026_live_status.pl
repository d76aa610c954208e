# Whoever looks at sync_logs while runs come and go never sees one as
# interrupted that was not.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	RUNS => 40,
	LOOKERS => 2,
};

my $sim = HubspotSync::Simulator->start(contacts => 0, deals => 0, owners => 1, companies => 0);
my $server = HubspotSync::Server->new('live_status', simulator => $sim);

# Looks as often as it can until told to stop; notes what it saw.
$server->sql(<<~SQL);
	CREATE TABLE seen (id uuid, status text, details jsonb);
	CREATE TABLE stop ();
	CREATE PROCEDURE look() LANGUAGE plpgsql AS \$\$
		BEGIN
			WHILE to_regclass('stop') IS NOT NULL LOOP
				INSERT INTO seen SELECT id, status, error_details FROM sync_logs
					WHERE error_details ->> 'reason' = 'interrupted';
				COMMIT;
			END LOOP;
		END \$\$;
	SQL
my @lookers = map { $server->session } 1 .. LOOKERS;
$_->query_until(qr/^looking$/m, "\\echo looking\nCALL look();\n") foreach @lookers;

my @ends;
foreach my $n (1 .. RUNS)
{
	my $run = $server->run_sync('owners');
	push @ends, "$run->{status}: $run->{stderr}" unless ($run->{status} // '') eq 'success';
}
$server->sql('DROP TABLE stop');
$_->quit foreach @lookers;

is($server->sql("SELECT count(*) FROM sync_logs WHERE status = 'success'"), RUNS, 'all runs succeed');
is(scalar @ends, 0, '... as their callers are told') or diag($ends[0]);
is($server->sql('SELECT count(*) FROM seen'), 0, '... and nobody saw one interrupted')
  or diag($server->sql('SELECT * FROM seen LIMIT 1'));

done_testing();
