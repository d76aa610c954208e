# Where default privileges hand every new object to the roles of a web API, as
# Supabase sets them, these roles and everybody else still get nothing of the
# extension's: no table, view, column, routine, type or sequence, neither by
# the catalog nor by trying. The grants that docs/security.md recommends work,
# are enough, and give no more than they say; a dump carries them over.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Dump qw(dump_database restore_dump);
use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

# As there, "postgres" is an ordinary role, and the superuser another one.
$ENV{PGUSER} = 'supabase_admin';

my $sim = HubspotSync::Simulator->start(contacts => 40, deals => 10, owners => 3);
my $server = HubspotSync::Server->new('supabase', simulator => $sim, extension => 0,
	init => { extra => [ '-E', 'UTF8', '--no-locale', '-U', 'supabase_admin' ] });

my @api_roles = ('postgres', 'anon', 'authenticated', 'service_role');
my @roles = (@api_roles, 'nobody', 'Odd "Role"');
$server->sql(<<~'SQL');
	CREATE ROLE postgres LOGIN CREATEDB CREATEROLE BYPASSRLS;
	CREATE ROLE anon NOINHERIT;
	CREATE ROLE authenticated NOINHERIT;
	CREATE ROLE service_role NOINHERIT BYPASSRLS;
	CREATE ROLE authenticator LOGIN NOINHERIT;
	GRANT anon, authenticated, service_role TO authenticator, postgres;
	CREATE ROLE nobody LOGIN;
	CREATE ROLE "Odd ""Role""";
	CREATE ROLE installer LOGIN SUPERUSER;
	SQL

my $all = 'postgres, anon, authenticated, service_role';
my %databases = (
	'in schema public, as Supabase has them' => {
		privileges => join(";\n", map { ("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON $_ TO $all",
			"ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT ALL ON $_ TO $all") }
			  qw(TABLES FUNCTIONS SEQUENCES)) . '; GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role' },
	'in every schema' => {
		privileges => join ";\n", map { "ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO $all" }
			qw(TABLES FUNCTIONS ROUTINES SEQUENCES TYPES SCHEMAS) },
	'for PUBLIC, with grant options, and for odd names' => {
		privileges => join ";\n", map { ("ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO PUBLIC",
			qq{ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO anon, "Odd ""Role""" WITH GRANT OPTION}) }
			qw(TABLES ROUTINES SEQUENCES TYPES) },
	'of another role that creates the extension, in a schema of its own' => {
		user => 'installer',
		schema => 'My Extensions',
		privileges => qq{CREATE SCHEMA "My Extensions"; GRANT ALL ON SCHEMA "My Extensions" TO $all, PUBLIC;\n}
		  . join ";\n", map { (qq{ALTER DEFAULT PRIVILEGES FOR ROLE installer IN SCHEMA "My Extensions" GRANT ALL ON $_ TO $all},
			"ALTER DEFAULT PRIVILEGES FOR ROLE installer GRANT ALL ON $_ TO $all") }
			qw(TABLES FUNCTIONS SEQUENCES TYPES) });

# Members of the extension. Row types and arrays of tables have no privileges
# that anybody could revoke; only some versions list them as members.
my $member = <<~'SQL';
	SELECT classid, objid FROM pg_depend
	WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hubspot_sync')
		AND NOT (classid = 'pg_type'::regclass AND objid IN (
			SELECT t.oid FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid
			WHERE typelem <> 0 OR relkind <> 'c'))
	SQL

# What the catalog says that others than the owner may do.
my $granted = <<~"SQL";
	WITH member AS ($member), object AS (
		SELECT objid::regclass::text AS name, relowner AS owner,
			coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) AS acl
		FROM member JOIN pg_class c ON c.oid = objid WHERE classid = 'pg_class'::regclass
		UNION ALL
		SELECT objid::regclass || '.' || attname, relowner, attacl
		FROM member JOIN pg_class c ON c.oid = objid JOIN pg_attribute ON attrelid = objid
		WHERE classid = 'pg_class'::regclass AND attacl IS NOT NULL
		UNION ALL
		SELECT objid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner))
		FROM member JOIN pg_proc p ON p.oid = objid WHERE classid = 'pg_proc'::regclass
		UNION ALL
		SELECT objid::regtype::text, typowner, coalesce(typacl, acldefault('T', typowner))
		FROM member JOIN pg_type t ON t.oid = objid WHERE classid = 'pg_type'::regclass
	)
	SELECT coalesce(string_agg(format('%s on %s to %s', privilege_type, name,
		CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END), ', '), '')
	FROM object, aclexplode(acl) WHERE grantee <> owner
	SQL

# Statements that use a member each in every way there is.
my $statements = <<~"SQL";
	WITH member AS ($member), relation AS (
		SELECT objid, objid::regclass::text AS name, relkind FROM member JOIN pg_class c ON c.oid = objid
		WHERE classid = 'pg_class'::regclass AND relkind IN ('r', 'v')
	), routine AS (
		SELECT p.*, format('%I.%I', nspname, proname) AS name,
			-- a strict function of nothing is never called, and CALL takes no subqueries
			(SELECT string_agg(format(CASE prokind WHEN 'p' THEN 'NULL::%s' ELSE '(SELECT NULL::%s)' END,
				format_type(t, NULL)), ', ' ORDER BY n)
				FROM unnest(proargtypes::oid[]) WITH ORDINALITY AS a(t, n)) AS arguments
		FROM member JOIN pg_proc p ON p.oid = objid JOIN pg_namespace n ON n.oid = pronamespace
		WHERE classid = 'pg_proc'::regclass
	)
	SELECT format(s, name) FROM relation, unnest(ARRAY['SELECT FROM %s', 'SELECT count(*) FROM %s', 'SELECT * FROM %s',
		'SELECT * FROM %s FOR UPDATE', 'TABLE %s LIMIT 0']) s
	UNION ALL
	SELECT format('SELECT %I FROM %s', attname, name) FROM relation JOIN pg_attribute ON attrelid = objid
		WHERE attnum > 0 AND NOT attisdropped
	UNION ALL
	SELECT format(s, name) FROM relation, unnest(ARRAY['INSERT INTO %s DEFAULT VALUES', 'DELETE FROM %s', 'TRUNCATE %s',
		'LOCK TABLE %s IN ACCESS SHARE MODE', 'LOCK TABLE %s IN ACCESS EXCLUSIVE MODE',
		'CREATE TRIGGER mine BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
		'ALTER TABLE %s ADD COLUMN mine int', 'CREATE INDEX mine ON %s ((1))', 'ANALYZE %s']) s
	WHERE relkind = 'r' AND s NOT LIKE 'ANALYZE%'
	UNION ALL
	SELECT format('UPDATE %s SET %I = %2\$I', name, attname) FROM relation JOIN pg_attribute ON attrelid = objid
		WHERE attnum > 0 AND NOT attisdropped AND attgenerated = '' AND relkind = 'r'
	UNION ALL
	SELECT CASE WHEN prorettype = 'trigger'::regtype
		THEN format('CREATE TRIGGER x BEFORE UPDATE ON ordinary FOR EACH ROW EXECUTE FUNCTION %s()', name)
		WHEN prokind = 'p' THEN format('CALL %s(%s)', name, arguments)
		ELSE format('SELECT %s(%s)', name, arguments) END FROM routine
	UNION ALL
	SELECT format('CREATE TEMP TABLE typed (c %s)', objid::regtype) FROM member WHERE classid = 'pg_type'::regclass
	UNION ALL
	SELECT format('SELECT nextval(%L)', objid::regclass) FROM member JOIN pg_class c ON c.oid = objid
		WHERE classid = 'pg_class'::regclass AND relkind = 'S'
	SQL

# Tries each of them, without effect, and returns how it ended.
my $attempt = <<~'SQL';
	CREATE TABLE ordinary (id int);
	CREATE FUNCTION attempt(statement text) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE statement;
		RAISE EXCEPTION USING ERRCODE = 'ZZ000';
	EXCEPTION WHEN OTHERS THEN
		RETURN CASE SQLSTATE WHEN 'ZZ000' THEN 'done' ELSE SQLSTATE END;
	END $$;
	GRANT EXECUTE ON FUNCTION attempt TO PUBLIC;
	GRANT ALL ON ordinary TO PUBLIC;
	GRANT ALL ON SCHEMA public TO PUBLIC;
	GRANT TEMP ON DATABASE CURRENT TO PUBLIC
	SQL

# The statements that end otherwise than refused, with their outcomes.
sub what_works
{
	my ($database, $role) = @_;
	my @tried = split /\n/, $database->sql($statements);
	cmp_ok(scalar @tried, '>', 300, "$role: " . @tried . ' statements are tried') if $role eq 'supabase_admin';
	my $list = join ', ', map { "\$s\$$_\$s\$" } @tried;
	# Functions that look for more than their privilege must not be asked first.
	return map { [ split /\t/ ] } split /\n/, $database->sql(<<~"SQL");
		SET client_min_messages = error;
		SET ROLE "${\($role =~ s/"/""/gr)}";
		SELECT outcome || E'\\t' || statement
		FROM unnest(ARRAY[$list]) AS statement CROSS JOIN LATERAL public.attempt(statement) AS outcome
		WHERE outcome <> '42501';
		SQL
}

sub nobody_has_anything
{
	my ($database, $when) = @_;
	is($database->sql($granted), '', "$when nobody but the owner has any privilege");
	foreach my $role (@roles)
	{
		is(join("\n", map { "@$_" } what_works($database, $role)), '', "... and $role can do nothing");
	}
	return;
}

my $number = 0;
foreach my $which (sort keys %databases)
{
	subtest "default privileges $which" => sub {
		my %about = (user => 'supabase_admin', schema => 'public', %{ $databases{$which} });
		my $name = 'database_' . ++$number;
		my $database = $server->in($name);
		$server->sql("CREATE DATABASE $name");
		$database->sql($attempt =~ s/DATABASE CURRENT/DATABASE $name/r);
		$database->sql($about{privileges});
		my $create = qq{CREATE EXTENSION hubspot_sync SCHEMA "$about{schema}"};
		$database->sql(qq{CREATE TABLE "$about{schema}".usual (id int)}, user => $about{user});
		is($database->sql(qq{SELECT has_table_privilege('anon', '"$about{schema}".usual', 'INSERT')}), 't',
			'an ordinary table goes to anon');

		$database->sql($create, user => $about{user});
		is($database->sql(qq{SELECT DISTINCT classid::regclass FROM ($member) m ORDER BY 1}), "pg_type\npg_proc\npg_class",
			'the extension has relations, routines and types, and no other kind of object');
		my %outcomes = map { $_->[1] => $_->[0] } what_works($database, 'supabase_admin');
		is($outcomes{qq{SELECT * FROM ${\quoted($about{schema})}contacts}}, 'done', '... which a superuser can use');
		nobody_has_anything($database, 'after CREATE EXTENSION');
		$database->sql("DROP EXTENSION hubspot_sync; $create", user => $about{user});
		nobody_has_anything($database, 'after DROP and CREATE');
	};
}

sub quoted
{
	my ($schema) = @_;
	return $schema eq 'public' ? '' : qq{"$schema".};
}

# The statements of a section's first example.
sub documented
{
	my ($file, $section) = @_;
	my ($sql) = slurp_file("$FindBin::RealBin/../../docs/$file") =~ /^## \Q$section\E\n.*?^```sql\n(.*?)^```/ms;
	return $sql // die "no example in section $section of $file";
}

my $database = $server->in('database_1');

# All that a role may read it can read, and it may do nothing else but these.
sub may_do
{
	my ($role, $where, @others) = @_;
	my %works = map { $_->[1] => $_->[0] } what_works($where, $role);
	my @readable = split /\n/, $where->sql(<<~"SQL");
		SELECT objid::regclass FROM ($member) m JOIN pg_class c ON c.oid = objid
		WHERE classid = 'pg_class'::regclass AND relkind IN ('r', 'v') AND has_table_privilege('$role', objid, 'SELECT')
		SQL
	is($works{"SELECT * FROM $_"}, 'done', "$role reads $_") foreach @readable;
	my $reading = join '|', @readable;
	my $allowed = join '|', @others;
	my @more = grep { !/^(SELECT .*FROM|TABLE|LOCK TABLE) ($reading)\b(?!.*(UPDATE|EXCLUSIVE))/ && !/$allowed/ } keys %works;
	is(join("\n", sort @more), '', '... and can do nothing that it should not');
	return map { $_ => 1 } @readable;
}

subtest 'the documented roles' => sub {
	$database->sql(documented('security.md', 'Roles for a team'));
	$database->sql(<<~'SQL');
		CREATE ROLE rita LOGIN IN ROLE crm_reader;
		CREATE ROLE mona LOGIN IN ROLE crm_monitor;
		CREATE ROLE otto LOGIN IN ROLE crm_operator;
		CREATE ROLE ada LOGIN IN ROLE crm_admin;
		CREATE ROLE tina LOGIN IN ROLE crm_academic;
		SQL
	my %reads = may_do('crm_reader', $database, qr/public\.get_latest_sync_status\(/);
	is($reads{$_}, 1, "the reader reads $_") foreach qw(contacts deals staff contact_owner_history contact_owner_changes);
	is($database->sql('SELECT count(*) FROM get_latest_sync_status()', user => 'rita'), 4, '... and asks for the status');
	like($database->sql_error(q{SELECT trigger_hubspot_sync('contacts')}, user => 'rita'), qr/ERROR:  42501/,
		'... and starts nothing');

	%reads = may_do('crm_monitor', $database, qr/public\.get_/);
	is($reads{$_}, 1, "the monitor reads $_") foreach qw(sync_logs sync_alerts integration_health sync_statistics);
	isnt($reads{$_}, 1, "... and not $_") foreach qw(contacts deals staff sync_errors contact_owner_history);

	$database->sql(q{CREATE TABLE users (id integer, email text); INSERT INTO users VALUES (1, 'a@example.com');
		CREATE TABLE user_xp (user_id integer, total_xp integer); GRANT SELECT ON users, user_xp TO crm_academic});
	%reads = may_do('crm_academic', $database, qr/public\.(read_student_progress|inactive_students|preview_student_progress)\(/);
	is($reads{$_}, 1, "the teacher reads $_") foreach qw(student_progress level_progress_summary);
	is($database->sql('SELECT user_id FROM inactive_students()', user => 'tina'), 1, '... and who is idle');
	$database->sql('DROP TABLE users, user_xp');

	%reads = may_do('crm_operator', $database, qr/public\.get_/, qr/public\.(trigger|run|cancel|wait_for)_hubspot_sync\(/,
		qr/public\.(test_hubspot_connection|accept_hubspot_absence|push_student_progress|ensure_hubspot_properties)\(/);
	is($reads{$_}, 1, "the operator reads $_") foreach qw(contacts sync_errors sync_logs);
	my ($run) = split /\|/, $database->sql(q{CALL run_hubspot_sync('contacts')}, user => 'otto');
	is($database->sql("SELECT status, requested_by FROM sync_logs WHERE id = '$run'", user => 'otto'), 'success|otto',
		'... runs a sync and sees its end');
	$sim->fault(path => '/deals', times => 0, action => 'hang');
	$run = $database->sql(q{SELECT trigger_hubspot_sync('deals', 'full')}, user => 'otto');
	$database->poll_until("SELECT status = 'running' FROM sync_logs WHERE id = '$run'");
	is($database->sql("SELECT cancel_hubspot_sync('$run')", user => 'otto'), 't', '... cancels one');
	is($database->sql("CALL wait_for_hubspot_sync('$run')", user => 'otto'), 'cancelled', '... and waits for its end');
	$sim->clear_faults;
	is($database->sql('SELECT ok FROM test_hubspot_connection()', user => 'otto'), 't', '... and tries the connection');
	is($database->sql('SELECT count(*) FROM contacts', user => 'rita'), 40, 'the reader sees the contacts');
	is($database->sql("SELECT status FROM sync_logs WHERE id = '$run'", user => 'mona'), 'cancelled', 'the monitor sees the run');

	$database->sql(q{UPDATE sync_types SET full_every = '2 days' WHERE sync_type = 'contacts'}, user => 'ada');
	$database->sql(q{DELETE FROM sync_fields WHERE sync_type = 'contacts' AND column_name = 'phone'}, user => 'ada');
	is($database->sql(q{SELECT configured_by FROM sync_types WHERE sync_type = 'contacts'}), 'ada',
		'the administrator changes the configuration');
	($run) = split /\|/, $database->sql(q{CALL run_hubspot_sync('contacts')}, user => 'otto');
	is($database->sql("SELECT status, mode FROM sync_logs WHERE id = '$run'"), 'success|full', '... and runs go on with it');
	is(join("\n", map { "@$_" } what_works($database, $_)), '', "$_ still has nothing") foreach @roles;
};

subtest 'in a dump' => sub {
	$server->sql('CREATE DATABASE restored');
	my $restored = $server->in('restored');
	is(restore_dump($restored, dump_database($database)), '', 'it is restored');
	foreach my $role (@roles, qw(crm_reader crm_monitor crm_operator))
	{
		my ($before, $after) = map { join "\n", sort map { $_->[1] } what_works($_, $role) } $database, $restored;
		is($after, $before, "$role may do what it might before");
	}
	is($restored->sql('SELECT count(*) FROM contacts', user => 'rita'), 40, 'the reader reads');
	like($restored->sql_error(q{SELECT trigger_hubspot_sync('contacts')}, user => 'otto'),
		qr/ERROR:  55000: this database is a copy/, 'the operator may ask');
};

done_testing();
