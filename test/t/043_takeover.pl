# Whoever owns the schema, the target table or a row of the configuration gets
# no more by it than is his: nothing of his runs as the extension's owner or
# as another target's owner, whatever he replaces, renames or gives away, also
# while a run is under way. And who looks on sees a run as it is.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 3000,
	PAGE => 100,
	LATENCY_MS => 400,
	QUICK_RUNS => 30,
};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => 5, owners => 3, companies => CONTACTS);
my $server = HubspotSync::Server->new('takeover', simulator => $sim, init => { allows_streaming => 1 });
# A list alone takes its time.
$server->sql(q{UPDATE sync_types SET full_strategy = 'list'});

$server->sql(<<~'SQL');
	CREATE ROLE evil LOGIN;
	CREATE ROLE app LOGIN;
	CREATE ROLE chief LOGIN;
	CREATE DATABASE planted;
	CREATE DATABASE renamed;
	SQL

# A table in which functions note as whom they run, and a trigger function.
my $notes = <<~'SQL';
	CREATE TABLE noted (what text, current_name name, session_name name);
	GRANT INSERT ON noted TO PUBLIC;
	CREATE FUNCTION note(what text) RETURNS text LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO noted VALUES ($1, current_user, session_user); RETURN $1; END $$;
	CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO noted VALUES (TG_RELID::regclass, current_user, session_user); RETURN NEW; END $$;
	SQL

# Puts the notes into a schema, as its owner.
sub notes
{
	my ($schema) = @_;
	return $notes =~ s/\b(noted \(|noted TO|noted VALUES|note\(what|spy\(\))/$schema.$1/gr
	  =~ s/(CREATE TABLE .*)/GRANT USAGE ON SCHEMA $schema TO PUBLIC;\n$1/r;
}

sub noted
{
	my ($schema, $database) = @_;
	return $server->sql("SELECT DISTINCT what, current_name FROM $schema.noted ORDER BY 1, 2",
		database => $database // 'postgres');
}

subtest 'operators planted before CREATE EXTENSION' => sub {
	my %at = (database => 'planted');
	$server->sql('CREATE SCHEMA crm AUTHORIZATION evil', %at);
	$server->sql(notes('crm'), %at, user => 'evil');

	# Better fits than those of pg_catalog, which need a cast.
	my $n = 0;
	my %operators = ('=' => [ 'oid', 'boolean', '$1 OPERATOR(pg_catalog.=) $2::oid' ],
		'<>' => [ 'oid', 'boolean', '$1 OPERATOR(pg_catalog.<>) $2::oid' ],
		'||' => [ 'text', 'text', '$1 OPERATOR(pg_catalog.||) $2::text' ]);
	foreach my $operator (sort keys %operators)
	{
		my ($left, $result, $body) = @{ $operators{$operator} };
		foreach my $right (qw(regclass regprocedure regtype regproc))
		{
			$n++;
			$server->sql(<<~"SQL", %at, user => 'evil');
				CREATE FUNCTION crm.f$n($left, $right) RETURNS $result LANGUAGE plpgsql AS
					\$\$ BEGIN PERFORM crm.note('$operator $right'); RETURN $body; END \$\$;
				CREATE OPERATOR crm.$operator (LEFTARG = $left, RIGHTARG = $right, FUNCTION = crm.f$n);
				SQL
		}
	}
	is($server->sql_error('CREATE EXTENSION hubspot_sync SCHEMA crm', %at), '', 'the extension is created');
	is(noted('crm', 'planted'), '', '... and has called none of them');
	is( $server->sql(q{SELECT count(*) FROM pg_class WHERE relnamespace = 'crm'::regnamespace AND relname LIKE 'sync\_%'
		AND relkind IN ('r', 'v') AND relacl::text LIKE '%evil%'}, %at),
		0, '... nor granted anything');
	$server->sql(q{SELECT crm.note('control'); SELECT 1::oid OPERATOR(crm.=) 'pg_class'::regclass}, %at, user => 'evil');
	is(noted('crm', 'planted'), "= regclass|evil\ncontrol|evil", 'a call would have been noted');
};

subtest 'a schema renamed and replaced' => sub {
	my %at = (database => 'renamed');
	$server->sql(<<~'SQL', %at);
		GRANT CREATE ON DATABASE renamed TO evil;
		CREATE SCHEMA crm AUTHORIZATION evil;
		CREATE EXTENSION hubspot_sync SCHEMA crm;
		GRANT EXECUTE ON FUNCTION crm.get_latest_sync_status(), crm.trigger_hubspot_sync(text),
			crm.cancel_hubspot_sync(uuid) TO evil;
		GRANT EXECUTE ON PROCEDURE crm.run_hubspot_sync TO evil;
		SQL
	my $lookalikes = '';
	foreach my $table (qw(sync_connections sync_types sync_fields sync_runs sync_run_states sync_logs sync_errors sync_state sync_rows))
	{
		# The columns of the real one, and a function that notes who reads it.
		my @columns = split /\n/, $server->sql(<<~"SQL", %at);
			SELECT format('%I %s', attname, format_type(atttypid, atttypmod)) FROM pg_attribute
			WHERE attrelid = 'crm.$table'::regclass AND attnum > 0 ORDER BY attnum
			SQL
		my $list = join ', ', map { /^("[^"]*"|\S+) (.*)/ ? "r.$1" : () } @columns;
		my $typed = join ', ', @columns;
		$lookalikes .= <<~"SQL";
			CREATE TABLE crm.of_$table ($typed);
			CREATE FUNCTION crm.read_$table() RETURNS SETOF crm.of_$table LANGUAGE plpgsql AS
				\$\$ BEGIN PERFORM crm.note('$table'); RETURN QUERY SELECT * FROM crm.of_$table; END \$\$;
			CREATE VIEW crm.$table AS SELECT $list FROM crm.read_$table() r;
			CREATE FUNCTION crm.write_$table() RETURNS trigger LANGUAGE plpgsql AS
				\$\$ BEGIN PERFORM crm.note('$table'); RETURN NEW; END \$\$;
			CREATE TRIGGER spy INSTEAD OF INSERT OR UPDATE OR DELETE ON crm.$table
				FOR EACH ROW EXECUTE FUNCTION crm.write_$table();
			GRANT ALL ON crm.$table TO PUBLIC;
			SQL
	}
	my $hostile = notes('crm') . $lookalikes;
	my ($status, $out, $error) = $server->psql(<<~"SQL", %at, user => 'evil');
		CALL crm.run_hubspot_sync('owners');
		SELECT crm.trigger_hubspot_sync('deals') IS NOT NULL;
		SELECT count(*) FROM crm.get_latest_sync_status();
		ALTER SCHEMA crm RENAME TO crm_real;
		CREATE SCHEMA crm;
		SET client_min_messages = error;
		$hostile
		SELECT status FROM crm_real.get_latest_sync_status() WHERE sync_type = 'owners';
		BEGIN; SELECT crm_real.trigger_hubspot_sync('owners') IS NOT NULL; COMMIT;
		CALL crm_real.run_hubspot_sync('owners');
		SELECT status FROM crm_real.get_latest_sync_status() WHERE sync_type = 'owners';
		SELECT count(*) FROM crm.sync_logs;
		SQL
	is($status, 0, 'a session goes on') or diag($error);
	like($out, qr/\|success\|3\|0\nt\n4\nsuccess\nt\n\S+\|success\|\d\|0\nsuccess\n0$/, '... with the real tables')
	  or diag($error);
	($status, $out, $error) = $server->psql(<<~"SQL", %at, user => 'evil');
		SELECT crm_real.trigger_hubspot_sync('contacts') IS NOT NULL;
		SELECT count(*) FROM crm_real.get_latest_sync_status();
		SQL
	is($out, "t\n4", 'so does another') or diag($error);
	is(noted('crm', 'renamed'), 'sync_logs|evil', 'nothing hostile ran but for its own role');
	$server->node->poll_query_until('renamed',
		q{SELECT count(*) = 0 FROM crm_real.sync_logs WHERE status IN ('pending', 'running')});
	is(noted('crm', 'renamed'), 'sync_logs|evil', '... nor in workers');
};

# ---------------------------------------------------------------------------
# Targets that change hands while a run is under way
# ---------------------------------------------------------------------------

# Starts a slow full run and waits until it has stored a page.
sub start_slowly
{
	my ($type) = @_;
	$sim->config(latency_ms => LATENCY_MS);
	my $id = $server->trigger($type, 'full');
	$server->poll_until("SELECT records_processed >= ${\PAGE} FROM sync_logs WHERE id = '$id' AND status = 'running'");
	return $id;
}

# How the run ends that a target was taken from.
sub is_stopped
{
	my ($id, $like) = @_;
	my $log = $server->wait_for($id);
	$sim->config(latency_ms => 0);
	is($log->{status}, 'failed', 'the run fails');
	is($log->{error_details}{reason}, 'configuration', '... with reason configuration');
	like($log->{error_details}{message}, $like, '... and says why');
	cmp_ok($log->{records_processed}, '<', CONTACTS, '... in the middle');
	return;
}

subtest 'a target that changes its owner' => sub {
	$server->sql('CREATE SCHEMA app AUTHORIZATION app');
	$server->sql(notes('app'), user => 'app');
	my $id = start_slowly('contacts');
	$server->sql(<<~'SQL');
		BEGIN;
		ALTER TABLE contacts OWNER TO app;
		SET ROLE app;
		CREATE TRIGGER spy BEFORE INSERT OR UPDATE ON contacts FOR EACH ROW EXECUTE FUNCTION app.spy();
		COMMIT;
		SQL
	is_stopped($id, qr/changed its owner/);
	is(noted('app'), '', 'the trigger has not run');
	is($server->run_sync('contacts', 'full')->{status}, 'success', 'the next run succeeds');
	is(noted('app'), 'public.contacts|app', '... as the new owner');
	is($server->sql('SELECT count(*) FROM contacts'), CONTACTS, '... and stores everything');
	$server->sql('DROP TRIGGER spy ON contacts; ALTER TABLE contacts OWNER TO CURRENT_USER; TRUNCATE app.noted, contacts');
};

# A type with app's table in chief's schema.
$server->sql(<<~'SQL');
	CREATE SCHEMA shared AUTHORIZATION chief;
	GRANT USAGE, CREATE ON SCHEMA shared TO app;
	CREATE TABLE shared.t (id bigint PRIMARY KEY, name text);
	ALTER TABLE shared.t OWNER TO app;
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, modified_property, delete_policy)
		VALUES ('firms', 'companies', 'shared', 't', '{id}', 'hs_lastmodifieddate', 'ignore');
	INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('firms', 'name', 'name');
	SQL
$server->sql(notes('shared'), user => 'chief');

subtest 'a target that is replaced' => sub {
	foreach my $how ('DROP TABLE shared.t', 'ALTER TABLE shared.t RENAME TO old', 'ALTER TABLE shared.t SET SCHEMA app')
	{
		my $id = start_slowly('firms');
		$server->sql("BEGIN; " . ($how =~ /^DROP/ ? 'SET LOCAL ROLE chief; ' : '') . "$how; SET LOCAL ROLE chief;" . <<~'SQL');
			CREATE TABLE shared.t (id bigint PRIMARY KEY, name text);
			GRANT ALL ON shared.t TO PUBLIC;
			CREATE TRIGGER spy BEFORE INSERT OR UPDATE ON shared.t FOR EACH ROW EXECUTE FUNCTION shared.spy();
			COMMIT;
			SQL
		is_stopped($id, qr/replaced|does not exist|was dropped/);
		is(noted('shared'), '', "after $how the trigger has not run");
		is($server->sql('SELECT count(*) FROM shared.t'), 0, '... and nothing was stored there');
		is($server->run_sync('firms', 'full')->{status}, 'success', 'the next run succeeds');
		is(noted('shared'), 'shared.t|chief', '... as the new owner');
		$server->sql(<<~'SQL');
			SET client_min_messages = error;
			TRUNCATE shared.noted;
			DROP TABLE shared.t;
			DROP TABLE IF EXISTS shared.old, app.t;
			CREATE TABLE shared.t (id bigint PRIMARY KEY, name text);
			ALTER TABLE shared.t OWNER TO app;
			SQL
	}
};

subtest "another's partition" => sub {
	$server->sql(<<~'SQL');
		DROP TABLE shared.t;
		CREATE TABLE shared.t (id bigint PRIMARY KEY, name text) PARTITION BY HASH (id);
		CREATE TABLE shared.t0 PARTITION OF shared.t FOR VALUES WITH (MODULUS 2, REMAINDER 0);
		CREATE TABLE shared.t1 PARTITION OF shared.t FOR VALUES WITH (MODULUS 2, REMAINDER 1);
		ALTER TABLE shared.t OWNER TO app;
		ALTER TABLE shared.t0 OWNER TO app;
		ALTER TABLE shared.t1 OWNER TO chief;
		SET ROLE chief;
		CREATE TRIGGER spy BEFORE INSERT OR UPDATE ON shared.t1 FOR EACH ROW EXECUTE FUNCTION shared.spy();
		SQL
	my $run = $server->run_sync('firms', 'full');
	is($run->{status}, 'failed', 'a run fails');
	like($run->{stderr}, qr/another owner/, '... and says why');
	is(noted('shared'), '', '... and the trigger has not run');
	is($server->sql('SELECT count(*) FROM shared.t'), 0, '... nor was anything stored');
	$server->sql('ALTER TABLE shared.t1 OWNER TO app; DROP TRIGGER spy ON shared.t1');

	# Given away while a run is under way.
	my $id = start_slowly('firms');
	$server->sql(<<~'SQL');
		BEGIN;
		ALTER TABLE shared.t1 OWNER TO chief;
		SET LOCAL ROLE chief;
		CREATE TRIGGER spy BEFORE INSERT OR UPDATE ON shared.t1 FOR EACH ROW EXECUTE FUNCTION shared.spy();
		COMMIT;
		SQL
	is_stopped($id, qr/another owner/);
	is(noted('shared'), '', '... and the trigger has not run');
};

subtest "another's child table" => sub {
	$server->sql(<<~'SQL');
		DROP TABLE shared.t;
		CREATE TABLE shared.t (id bigint PRIMARY KEY, name text);
		CREATE TABLE shared.child () INHERITS (shared.t);
		ALTER TABLE shared.t OWNER TO app;
		ALTER TABLE shared.child OWNER TO chief;
		GRANT ALL ON shared.child TO app;
		UPDATE sync_types SET delete_policy = 'delete' WHERE sync_type = 'firms';
		SQL
	my ($id) = $sim->objects_text('companies') =~ /^\{"id":"(\d+)"/;
	$server->sql(<<~"SQL", user => 'chief');
		INSERT INTO shared.child VALUES ($id, 'mine');
		CREATE FUNCTION shared.spy_old() RETURNS trigger LANGUAGE plpgsql AS
			\$\$ BEGIN PERFORM shared.note('child'); RETURN OLD; END \$\$;
		CREATE TRIGGER spy BEFORE UPDATE OR DELETE ON shared.child FOR EACH ROW EXECUTE FUNCTION shared.spy_old();
		SQL
	$server->run_sync('firms', 'full');
	$sim->archive('companies', $id);
	$server->run_sync('firms', 'full');
	is(noted('shared'), '', 'its trigger has not run');
	is($server->sql('SELECT name FROM shared.child'), 'mine', '... and its row is as it was');
	$sim->restore('companies', $id);
};

# ---------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------

subtest 'rows of the configuration' => sub {
	$server->sql('GRANT SELECT, INSERT, UPDATE, DELETE ON sync_types, sync_fields TO evil');
	$server->sql('CREATE SCHEMA evil AUTHORIZATION evil; CREATE TABLE evil.t (hubspot_contact_id text PRIMARY KEY);
		ALTER TABLE evil.t OWNER TO evil');
	my $before = $server->sql('SELECT sync_types::text FROM sync_types ORDER BY 1');
	foreach my $statement (
		q{UPDATE sync_types SET target_schema = 'evil', target_table = 't', key_columns = '{hubspot_contact_id}' WHERE sync_type = 'contacts'},
		q{UPDATE sync_types SET properties = '{a}' WHERE sync_type = 'contacts'},
		q{UPDATE sync_types SET sync_type = 'mine', target_schema = 'evil', target_table = 't' WHERE sync_type = 'contacts'},
		q{DELETE FROM sync_types WHERE sync_type = 'contacts'},
		q{DELETE FROM sync_fields WHERE sync_type = 'contacts'},
		q{INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns)
			VALUES ('contacts', 'contacts', 'evil', 't', '{hubspot_contact_id}')
			ON CONFLICT (sync_type) DO UPDATE SET target_schema = 'evil', target_table = 't'})
	{
		like($server->sql_error($statement, user => 'evil'), qr/ERROR:  42501: must be a member of the role/,
			'refused: ' . $statement =~ s/\s+/ /gr);
	}
	is($server->sql('SELECT sync_types::text FROM sync_types ORDER BY 1'), $before, 'nothing has changed');
	like($server->sql_error(q{UPDATE sync_types SET sync_type = 'kontakte' WHERE sync_type = 'contacts'}),
		qr/ERROR:  0A000: sync type "contacts" cannot be renamed/, 'a type is not renamed');
	is($server->run_sync('contacts', 'full')->{status}, 'success', 'runs go on');
};

# ---------------------------------------------------------------------------
# Looking on
# ---------------------------------------------------------------------------

subtest "the caller's lock_timeout" => sub {
	$sim->fault(path => '/crm/owners/', times => 0, action => 'hang');
	my ($status, $out) = $server->psql(<<~'SQL');
		\set ON_ERROR_STOP 0
		SET lock_timeout = '1234ms';
		BEGIN;
		SET LOCAL lock_timeout = '777ms';
		SELECT trigger_hubspot_sync('owners') IS NOT NULL;
		SHOW lock_timeout;
		COMMIT;
		SHOW lock_timeout;
		BEGIN;
		SELECT trigger_hubspot_sync('owners', 'auto') IS NOT NULL;
		SHOW lock_timeout;
		COMMIT;
		SELECT trigger_hubspot_sync('nothing');
		SHOW lock_timeout;
		SQL
	is($out, "t\n777ms\n1234ms\nt\n1234ms\n1234ms", 'is as it was');

	# A request that has to wait for another's, and gives up.
	my $open = $server->session;
	$open->query_safe(q{BEGIN; SELECT trigger_hubspot_sync('deals')});
	(undef, $out) = $server->psql(<<~'SQL');
		\set ON_ERROR_STOP 0
		SET lock_timeout = '60s';
		BEGIN;
		SAVEPOINT s;
		SELECT trigger_hubspot_sync('deals');
		ROLLBACK TO s;
		SHOW lock_timeout;
		COMMIT;
		SHOW lock_timeout;
		SQL
	is($out, "1min\n1min", 'also after a request that was refused');
	$open->query_safe('ROLLBACK');
	$open->quit;
	$server->sql(q{SELECT cancel_hubspot_sync(id) FROM sync_logs WHERE status IN ('pending', 'running')});
	$server->poll_until(q{SELECT count(*) = 0 FROM sync_logs WHERE status IN ('pending', 'running')});
	$sim->clear_faults;
};

subtest 'a run seen from a standby' => sub {
	$server->node->backup('b');
	my $standby = PostgreSQL::Test::Cluster->new('standby_of_takeover');
	$standby->init_from_backup($server->node, 'b', has_streaming => 1);
	$standby->start;
	$sim->fault(path => '/crm/owners/', times => 0, action => 'hang');
	my $id = $server->trigger('owners');
	$server->poll_until("SELECT status = 'running' FROM sync_logs WHERE id = '$id'");
	$server->node->wait_for_catchup($standby, 'replay', $server->node->lsn('insert'));
	is( $standby->safe_psql('postgres', "SELECT status, completed_at IS NULL, error_details IS NULL FROM sync_logs WHERE id = '$id'"),
		'running|t|t', 'is running');
	is($standby->safe_psql('postgres', q{SELECT status FROM get_latest_sync_status() WHERE sync_type = 'owners'}),
		'running', '... as its status says too');
	$sim->clear_faults;
	$server->sql("SELECT cancel_hubspot_sync('$id')");
	$server->wait_for($id);
	$server->node->wait_for_catchup($standby, 'replay', $server->node->lsn('insert'));
	is($standby->safe_psql('postgres', "SELECT status FROM sync_logs WHERE id = '$id'"), 'cancelled', 'and then cancelled');
	$standby->stop('immediate');
};

subtest 'quick runs, and others who look' => sub {
	$server->sql(<<~'SQL');
		TRUNCATE sync_runs;
		CREATE TABLE stop ();
		CREATE PROCEDURE look(INOUT looks integer, INOUT failed integer) LANGUAGE plpgsql AS $$
		BEGIN
			WHILE NOT EXISTS (SELECT FROM pg_class WHERE relname = 'stopped') LOOP
				looks := looks + 1;
				failed := failed + (SELECT count(*) FROM sync_logs WHERE status = 'failed');
				COMMIT;
			END LOOP;
		END $$;
		SQL
	my @lookers = map {
		my $looker = { out => '' };
		$looker->{run} = IPC::Run::start(
			[ 'psql', '-XAtq', '-d', $server->node->connstr('postgres'), '-c', 'CALL look(0, 0)' ],
			'<', \undef, '>', \$looker->{out});
		$looker;
	} 1, 2;
	$server->poll_until(q{SELECT count(*) = 2 FROM pg_stat_activity WHERE query LIKE 'CALL look%'});
	my %ends;
	$ends{ $server->run_sync('owners')->{status} // 'none' }++ foreach 1 .. QUICK_RUNS;
	is_deeply(\%ends, { success => QUICK_RUNS }, 'all calls return success');
	$server->sql('ALTER TABLE stop RENAME TO stopped');
	foreach my $looker (@lookers)
	{
		$looker->{run}->finish;
		my ($looks, $failed) = split /\|/, $looker->{out};
		cmp_ok($looks, '>', QUICK_RUNS, 'somebody looked on');
		is($failed + 0, 0, "... $looks times, and saw no failed run");
	}
};

ok(!$server->log_contains(qr/PANIC|TRAP|terminated by signal/), 'no process has crashed');

done_testing();
