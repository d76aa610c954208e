# Code on a target table never runs as anybody but the table's owner, sees
# neither the token nor the extension's own tables, and can spoil no more than
# the runs of its own type, whatever it does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	COMPANIES => 250,
	PAGE => 100,
};

my $sim = HubspotSync::Simulator->start(contacts => 20, deals => 5, owners => 2,
	companies => COMPANIES, token => 'pat-secret-of-this-test');
my $server = HubspotSync::Server->new('hostile', simulator => $sim);
my $token_file = $server->token_file;

$server->sql(<<~'SQL');
	CREATE ROLE mallory LOGIN;
	CREATE SCHEMA h AUTHORIZATION mallory;
	GRANT INSERT ON sync_types, sync_fields TO mallory;
	SET ROLE mallory;
	CREATE TABLE h.t (id bigint PRIMARY KEY, name text, city text);
	CREATE TABLE h.log (what text, session_name name DEFAULT session_user, current_name name DEFAULT current_user,
		super text DEFAULT current_setting('is_superuser'), result text);
	INSERT INTO public.sync_types (sync_type, object_type, target_schema, target_table, key_columns, delete_policy)
		VALUES ('hostile', 'companies', 'h', 't', '{id}', 'ignore');
	INSERT INTO public.sync_fields (sync_type, column_name, property)
		VALUES ('hostile', 'name', 'name'), ('hostile', 'city', 'city');

	CREATE FUNCTION h.note(what text) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO h.log (what) VALUES ($1); RETURN what; END $$;
	CREATE FUNCTION h.try(what text, statement text) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE result text;
	BEGIN
		BEGIN
			IF statement ~ '^(SELECT|SHOW)' THEN
				EXECUTE statement INTO result;
			ELSE
				EXECUTE statement;
			END IF;
			result := coalesce('got ' || result, 'got nothing');
		EXCEPTION WHEN OTHERS THEN
			result := SQLSTATE;
		END;
		INSERT INTO h.log (what, result) VALUES (what, result);
	END $$;
	SQL
$server->sql('REVOKE INSERT ON sync_types, sync_fields FROM mallory');

# Puts triggers on the empty table, as their owner.
sub attack
{
	my ($sql) = @_;
	$server->sql('TRUNCATE h.t, h.log', user => 'mallory');
	$server->sql(<<~'SQL', user => 'mallory');
		DO $$ DECLARE t text; BEGIN
			FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'h.t'::regclass AND NOT tgisinternal LOOP
				EXECUTE format('DROP TRIGGER %I ON h.t', t);
			END LOOP;
		END $$
		SQL
	$server->sql($sql, user => 'mallory') if defined $sql;
	return;
}

sub run_hostile
{
	my ($status, $reason) = @_;
	my $run = $server->run_sync('hostile', 'full');
	is($run->{status}, $status, "the run ends $status") or diag($run->{stderr});
	my $log = $server->log($run->{run_id});
	is($log->{error_details}{reason}, $reason, '... as ' . ($reason // 'if nothing had happened'));
	return $log;
}

# Whatever was noted, was noted as the owner, who is no superuser.
sub only_as_owner
{
	my (@what) = @_;
	is( $server->sql(q{SELECT string_agg(DISTINCT format('%s/%s/%s', session_name, current_name, super), ' ')
			FROM h.log}),
		'mallory/mallory/off', "all code has run as the table's owner");
	is($server->sql(qq{SELECT count(*) > 0 FROM h.log WHERE what = '$_'}), 't', "... $_ was among it")
	  foreach @what;
	return;
}

sub stored
{
	return $server->sql('SELECT count(*) FROM h.t');
}

subtest 'triggers of every kind' => sub {
	attack(<<~'SQL');
		CREATE OR REPLACE FUNCTION h.spy() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM h.note(TG_NAME);
			IF TG_NAME = 'at_statement' THEN
				SET CONSTRAINTS ALL DEFERRED;
			END IF;
			RETURN CASE TG_LEVEL WHEN 'ROW' THEN NEW END;
		END $$;
		CREATE TRIGGER before_row BEFORE INSERT ON h.t FOR EACH ROW EXECUTE FUNCTION h.spy();
		CREATE TRIGGER after_row AFTER INSERT ON h.t FOR EACH ROW EXECUTE FUNCTION h.spy();
		CREATE TRIGGER at_statement BEFORE INSERT ON h.t FOR EACH STATEMENT EXECUTE FUNCTION h.spy();
		CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON h.t DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION h.spy();
		SQL
	run_hostile('success');
	only_as_owner(qw(before_row after_row at_statement deferred));
	is(stored(), COMPANIES, 'everything is stored');
};

subtest 'a held cursor, executed at commit' => sub {
	attack(<<~'SQL');
		CREATE OR REPLACE FUNCTION h.spy() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			EXECUTE format('DECLARE %I CURSOR WITH HOLD FOR SELECT h.note(''cursor'')', 'c' || txid_current());
			RETURN NULL;
		END $$;
		CREATE TRIGGER spy AFTER INSERT ON h.t FOR EACH STATEMENT EXECUTE FUNCTION h.spy();
		SQL
	run_hostile('success');
	only_as_owner('cursor');
	is(stored(), COMPANIES, 'everything is stored');
};

subtest 'another search_path and lookalikes of what pg_catalog has' => sub {
	attack(<<~'SQL');
		CREATE FUNCTION h.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
			$$ BEGIN PERFORM h.note('clock_timestamp'); RETURN pg_catalog.clock_timestamp(); END $$;
		CREATE FUNCTION h.now() RETURNS timestamptz LANGUAGE plpgsql AS
			$$ BEGIN PERFORM h.note('now'); RETURN pg_catalog.now(); END $$;
		CREATE FUNCTION h.same(text, text) RETURNS boolean LANGUAGE plpgsql AS
			$$ BEGIN PERFORM h.note('text ='); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
		CREATE OPERATOR h.= (LEFTARG = text, RIGHTARG = text, FUNCTION = h.same);
		CREATE FUNCTION h.same(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS
			$$ BEGIN PERFORM h.note('uuid ='); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
		CREATE OPERATOR h.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = h.same);
		CREATE TABLE h.sync_runs (LIKE h.t);
		CREATE OR REPLACE FUNCTION h.spy() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM set_config('search_path', 'h, pg_temp, pg_catalog, public', false);
			CREATE TEMP TABLE IF NOT EXISTS sync_runs (id uuid, status text);
			CREATE TEMP TABLE IF NOT EXISTS unnest (id text);
			PERFORM h.note('spy');
			RETURN NULL;
		END $$;
		CREATE TRIGGER spy AFTER INSERT ON h.t FOR EACH STATEMENT EXECUTE FUNCTION h.spy();
		SQL
	my $log = run_hostile('success');
	only_as_owner('spy');
	is(stored(), COMPANIES, 'everything is stored');
	is($log->{records_changed}, COMPANIES, 'the log is written to as ever');
	$server->sql('DROP OPERATOR h.= (text, text); DROP OPERATOR h.= (uuid, uuid);
		DROP FUNCTION h.clock_timestamp(), h.now(), h.same(text, text), h.same(uuid, uuid); DROP TABLE h.sync_runs');
};

# What is tried, and what comes of it: an SQLSTATE, or a value.
my %denied = map { $_ => '42501' } (
	(map { "SELECT count(*) FROM public.$_" }
		qw(sync_connections sync_types sync_fields sync_runs sync_run_states sync_logs sync_errors sync_state sync_rows contacts)),
	"UPDATE public.sync_runs SET status = 'success'",
	'DELETE FROM public.sync_runs',
	q{INSERT INTO public.sync_types (sync_type, object_type, target_table, key_columns) VALUES ('x', 'x', 'x', '{id}')},
	q{UPDATE public.sync_types SET target_schema = 'h'},
	q{SELECT public.trigger_hubspot_sync('contacts')},
	'SELECT public.cancel_hubspot_sync(gen_random_uuid())',
	'SELECT public.test_hubspot_connection()',
	'SET ROLE postgres',
	'SET SESSION AUTHORIZATION postgres',
	'SET hubspot_sync.api_url = \'http://127.0.0.1:1\'',
	'SET hubspot_sync.access_token_file = \'/etc/passwd\'',
	'SET session_replication_role = replica',
	'SHOW hubspot_sync.access_token_file',
	'SHOW hubspot_sync.api_url',
	q{SELECT current_setting('hubspot_sync.access_token_file')},
	"SELECT pg_read_file('$token_file')",
	"COPY h.log (result) FROM '$token_file'",
	"COPY h.log (result) FROM PROGRAM 'cat $token_file'",
	"SELECT lo_import('$token_file')");
my %fine = (
	q{SELECT count(*) FROM pg_settings WHERE name IN ('hubspot_sync.access_token_file', 'hubspot_sync.api_url')} => 'got 0',
	q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pat-' || 'secret%'} => 'got 0',
	q{SELECT count(*) FROM pg_prepared_statements} => 'got 0',
	'RESET ROLE' => 'got nothing',
	'RESET SESSION AUTHORIZATION' => 'got nothing');

subtest 'what it may not see or do' => sub {
	my %wanted = (%denied, %fine);
	my $tries = join "\n", map { "PERFORM h.try(\$x\$$_\$x\$, \$x\$$_\$x\$);" } sort keys %wanted;
	attack(<<~"SQL");
		CREATE OR REPLACE FUNCTION h.spy() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			IF NOT EXISTS (SELECT FROM h.log) THEN
				$tries
			END IF;
			RETURN NULL;
		END \$\$;
		CREATE CONSTRAINT TRIGGER spy AFTER INSERT ON h.t DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION h.spy();
		SQL
	run_hostile('success');
	only_as_owner();
	my %got = map { $_->{what} => $_->{result} } $server->sql_json('SELECT * FROM h.log');
	foreach my $what (sort keys %wanted)
	{
		is($got{$what}, $wanted{$what}, $what =~ s/\Q$token_file\E/TOKEN_FILE/r);
	}
	is(stored(), COMPANIES, 'everything is stored');
};

subtest 'pg_advisory_unlock_all()' => sub {
	attack(<<~'SQL');
		CREATE OR REPLACE FUNCTION h.spy() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF (SELECT count(*) FROM h.t) > 150 THEN
				PERFORM pg_advisory_unlock_all();
			END IF;
			RETURN NULL;
		END $$;
		CREATE TRIGGER spy AFTER INSERT ON h.t FOR EACH STATEMENT EXECUTE FUNCTION h.spy();
		SQL
	my $log = run_hostile('failed', 'lock_lost');
	is(stored(), PAGE, 'nothing of that page is stored');
	is($log->{records_processed}, PAGE, '... or counted as read');
	is($log->{records_changed}, PAGE, '... or as written');
	$server->sql('DROP TRIGGER spy ON h.t', user => 'mallory');
	my $next = run_hostile('success');
	is($next->{continues}, $log->{id}, 'the next run continues it');
	is(stored(), COMPANIES, '... and stores the rest');
};

subtest 'a trigger deferred again, to commit' => sub {
	attack(<<~'SQL');
		CREATE OR REPLACE FUNCTION h.spy() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF TG_NAME = 'late' THEN
				RAISE EXCEPTION 'too late for this record' USING ERRCODE = 'P0001';
			END IF;
			SET CONSTRAINTS ALL DEFERRED;
			RETURN NULL;
		END $$;
		CREATE TRIGGER early BEFORE INSERT ON h.t FOR EACH STATEMENT EXECUTE FUNCTION h.spy();
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON h.t DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION h.spy();
		SQL
	my $log = run_hostile('partial', 'records_failed');
	is($server->sql(q{SELECT DISTINCT category || ': ' || message FROM sync_errors WHERE resolved_at IS NULL}),
		'trigger: too late for this record', '... each record is a dead letter with its message');
	is(stored(), 0, 'nothing is stored');
	is($log->{records_changed}, 0, '... or counted as written');
};

subtest 'a trigger that ends its own process' => sub {
	attack(<<~'SQL');
		CREATE OR REPLACE FUNCTION h.spy() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
		CREATE TRIGGER spy AFTER INSERT ON h.t FOR EACH STATEMENT EXECUTE FUNCTION h.spy();
		SQL
	run_hostile('failed', 'interrupted');
	is(stored(), 0, 'nothing is stored');
};

subtest 'after all that' => sub {
	attack();
	run_hostile('success');
	is(stored(), COMPANIES, 'the hostile type syncs again');
	is($server->run_sync('contacts', 'full')->{status}, 'success', '... and so do the others');
	ok(!$server->log_contains(qr/pat-secret/), 'the token is nowhere in the log of the server');
	ok(!$server->log_contains(qr/PANIC|TRAP|terminated by signal/), 'no process has crashed');
};

done_testing();
