# A database that was installed with an earlier version and filled, and is
# brought to the newest one by ALTER EXTENSION UPDATE, has the catalog of a
# fresh installation, object by object, and has lost nothing; its dump goes into
# a fresh installation. Before the update the new library works with the old
# objects, and a run that is under way meanwhile notices nothing.
#
# So that there is always something to upgrade to, the newest version is made up
# here: whatever is the newest in sql/, and more of everything. Its upgrade script
# is also tried with one mistake at a time, of which each has to be seen.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Catalog qw(catalog shipped_rows catalog_differences);
use HubspotSync::Dump qw(dump_database restore_dump extension_tables table_text same_table);
use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Stage;
use HubspotSync::Wait qw(wait_until);
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 220,
	DEALS => 60,
	COMPANIES => 20,
};

# Something new of every kind, as an upgrade script has to bring it.
my $more = <<~'SQL';
	ALTER TABLE sync_types ADD COLUMN more_a integer NOT NULL DEFAULT 1;
	ALTER TABLE sync_types ADD COLUMN more_b text;
	COMMENT ON COLUMN sync_types.more_a IS 'first';
	COMMENT ON COLUMN sync_types.more_b IS 'second';
	ALTER TABLE sync_types ADD CONSTRAINT more_check CHECK (more_a OPERATOR(pg_catalog.>) 0);
	ALTER TABLE sync_types ALTER COLUMN more_b SET STORAGE EXTERNAL;
	CREATE INDEX sync_errors_more_idx ON sync_errors (run_id);
	ALTER TYPE deal_status ADD VALUE 'more' BEFORE 'lost';
	CREATE TABLE more (id integer PRIMARY KEY, note text COLLATE "C") WITH (fillfactor = 70);
	COMMENT ON TABLE more IS 'more';
	SELECT pg_catalog.pg_extension_config_dump('more', 'WHERE id > 0');
	CREATE STATISTICS more_statistics ON id, note FROM more;
	CREATE TRIGGER more_trigger BEFORE UPDATE ON more FOR EACH ROW
		EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger();
	ALTER TABLE more ENABLE ALWAYS TRIGGER more_trigger;
	CREATE RULE more_rule AS ON DELETE TO more DO ALSO NOTIFY more;
	ALTER TABLE more ENABLE ROW LEVEL SECURITY;
	CREATE POLICY more_policy ON more FOR SELECT TO pg_monitor USING (id OPERATOR(pg_catalog.>) 1);
	CREATE SEQUENCE more_sequence START 3;
	CREATE VIEW more_view WITH (security_invoker = true) AS SELECT id FROM more;
	GRANT SELECT (id) ON more_view TO pg_monitor;
	CREATE FUNCTION more_of(n integer DEFAULT 1) RETURNS integer LANGUAGE sql STABLE STRICT SECURITY DEFINER
		SET search_path = pg_catalog, pg_temp AS 'SELECT n + 1';
	COMMENT ON FUNCTION more_of(integer) IS 'one more';
	REVOKE ALL ON FUNCTION more_of(integer) FROM PUBLIC;
	GRANT EXECUTE ON FUNCTION more_of(integer) TO pg_monitor;
	ALTER TABLE deals ADD COLUMN more text;
	ALTER TABLE sync_fields DISABLE TRIGGER sync_fields_check;
	INSERT INTO sync_fields (sync_type, column_name, property, shipped)
		SELECT sync_type, 'more', 'dealtype', true FROM sync_types WHERE sync_type OPERATOR(pg_catalog.=) 'deals'
		ON CONFLICT DO NOTHING;
	ALTER TABLE sync_fields ENABLE ALWAYS TRIGGER sync_fields_check;
	SQL

# What may go wrong: what is written in place of what, and what has to be said.
my @mistakes = (
	[ 'columns in another order', qr/more_a (.*\n.*) more_b text/, 'more_b text; ALTER TABLE sync_types ADD COLUMN more_a integer NOT NULL DEFAULT 1',
		'column public.sync_types.more_a: place is' ],
	[ 'a column of another type', qr/more_a integer/, 'more_a bigint', 'column public.sync_types.more_a: type is "bigint", not "integer"' ],
	[ 'another default', qr/DEFAULT 1;/, 'DEFAULT 2;', 'column public.sync_types.more_a: default is "2"' ],
	[ 'a missing NOT NULL', qr/NOT NULL /, '', 'column public.sync_types.more_a: attnotnull is false' ],
	[ 'a missing column', qr/.* more_b .*\n|.*\.more_b .*\n/, '', 'column public.sync_types.more_b is missing' ],
	[ 'another comment of a column', qr/'second'/, q{'2'}, 'column public.sync_types.more_b: comment is "2", not "second"' ],
	[ 'another collation', qr/ COLLATE "C"/, '', 'column public.more.note: attcollation' ],
	[ 'other storage', qr/EXTERNAL/, 'MAIN', 'column public.sync_types.more_b: attstorage' ],
	[ 'another check', qr/\(pg_catalog.>\) 0/, '(pg_catalog.>=) 0', 'constraint public.sync_types more_check: definition' ],
	[ 'a check that does not look', qr/(?<=\(pg_catalog.>\) 0\))/, ' NOT VALID', 'constraint public.sync_types more_check: convalidated' ],
	[ 'a missing key', qr/ PRIMARY KEY/, ' NOT NULL', 'constraint public.more more_pkey is missing' ],
	[ 'another index', qr/\(run_id\)/, '(run_id, id)', 'index public.sync_errors sync_errors_more_idx: definition' ],
	[ 'a missing index', qr/CREATE INDEX.*\n/, '', 'index public.sync_errors sync_errors_more_idx is missing' ],
	[ 'labels in another order', qr/BEFORE 'lost'/, q{AFTER 'lost'}, 'type public.deal_status: labels' ],
	[ 'other storage parameters', qr/ WITH \(fillfactor = 70\)/, '', 'relation public.more: reloptions' ],
	[ 'a missing comment', qr/COMMENT ON TABLE.*\n/, '', 'member table public.more: comment is null, not "more"' ],
	[ 'rows that are not dumped', qr/SELECT pg_catalog.pg_extension_config_dump.*\n/, '', 'dumped rows public.more is missing' ],
	[ 'other rows dumped', qr/'WHERE id > 0'/, q{''}, 'dumped rows public.more: condition' ],
	[ 'missing statistics', qr/CREATE STATISTICS.*\n/, '', 'statistics public.more more_statistics is missing' ],
	[ 'another trigger', qr/BEFORE UPDATE/, 'BEFORE UPDATE OF note', 'trigger public.more more_trigger: definition' ],
	[ 'a trigger that replicas skip', qr/ALTER.*more_trigger.*\n/, '', 'trigger public.more more_trigger: tgenabled is "O", not "A"' ],
	[ 'another rule', qr/NOTIFY more/, 'NOTIFY less', 'rule public.more more_rule: definition' ],
	[ 'row security that is off', qr/ALTER.*ROW LEVEL.*\n/, '', 'relation public.more: relrowsecurity' ],
	[ 'another policy', qr/\(pg_catalog.>\) 1/, '(pg_catalog.>) 2', 'policy public.more more_policy: using' ],
	[ 'a policy for everybody', qr/SELECT TO pg_monitor/, 'SELECT', 'policy public.more more_policy: polroles' ],
	[ 'another sequence', qr/START 3/, 'START 4', 'sequence public.more_sequence: seqstart' ],
	[ 'another view', qr/SELECT id FROM/, 'SELECT id + 0 AS id FROM', 'view public.more_view: definition' ],
	[ 'a view with other rights', qr/ WITH \(security_invoker = true\)/, '', 'relation public.more_view: reloptions' ],
	[ 'a missing grant on a column', qr/GRANT SELECT.*\n/, '', 'column public.more_view.id: privileges' ],
	[ 'another body', qr/n \+ 1/, 'n + 2', 'routine public.more_of(integer): definition' ],
	[ 'another volatility', qr/STABLE STRICT/, 'VOLATILE STRICT', 'routine public.more_of(integer): definition' ],
	[ 'null as an argument', qr/ STRICT/, '', 'routine public.more_of(integer): definition' ],
	[ 'other rights', qr/ SECURITY DEFINER/, '', 'routine public.more_of(integer): definition' ],
	[ 'no search_path', qr/SET search_path = pg_catalog, pg_temp/, '', 'routine public.more_of(integer): definition' ],
	[ 'another default argument', qr/DEFAULT 1\)/, 'DEFAULT 2)', 'routine public.more_of(integer): definition' ],
	[ 'a missing comment of a function', qr/COMMENT ON FUNCTION.*\n/, '', 'member function public.more_of(integer): comment' ],
	[ 'a missing REVOKE', qr/REVOKE.*\n/, '', 'routine public.more_of(integer): privileges' ],
	[ 'a missing GRANT', qr/GRANT EXECUTE.*\n/, '', 'routine public.more_of(integer): privileges' ],
	[ 'privileges that a dump does not know of', qr/GRANT EXECUTE.*\n/, '', 'initial privileges function public.more_of(integer): privileges' ],
	[ 'a missing view', qr/CREATE VIEW.*\n.*\n/, '', 'relation public.more_view is missing' ],
	[ 'a view that is no member', qr/\z/, "ALTER EXTENSION hubspot_sync DROP VIEW more_view;\n", 'member view public.more_view is missing' ],
	[ 'a table that is too much', qr/\z/, "CREATE TABLE more_still ();\n", 'relation public.more_still is too much' ],
	[ 'another owner', qr/\z/, "ALTER TABLE more OWNER TO somebody;\n", 'relation public.more: relowner' ],
	[ 'a row that is not shipped', qr/ALTER.*DISABLE TRIGGER.*\n/, '', qr/^row of public.sync_fields \{.*"dealtype".* is missing$/ ],
	[ 'a trigger that stays disabled', qr/ALTER.*ENABLE ALWAYS TRIGGER sync_fields_check.*\n/, '',
		'trigger public.sync_fields sync_fields_check: tgenabled is "D", not "A"' ]);

my $stage = HubspotSync::Stage->new;
my $released = $stage->default_version;
my $newest = "$released.more";
# The script that is there leaves a search_path of its own behind.
$stage->script($newest, $stage->script($released) . 'SET LOCAL search_path = @extschema@, pg_temp;' . "\n$more");
$stage->script("$released--$newest", $more);
$stage->default_version($newest);

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => DEALS, owners => 5, companies => COMPANIES);
my $server = HubspotSync::Server->new('upgrade', simulator => $sim, stage => $stage, extension => 0,
	conf => { 'hubspot_sync.request_timeout' => '2s', 'hubspot_sync.max_retries' => 20 });
$server->sql('CREATE ROLE reader LOGIN; CREATE ROLE somebody SUPERUSER LOGIN');

# A database with a version of the extension.
sub database
{
	my ($name, $version) = @_;
	$server->sql(qq{CREATE DATABASE "$name"});
	my $database = $server->in($name);
	$database->sql("CREATE EXTENSION hubspot_sync VERSION '$version'");
	return $database;
}

my $fresh = database('fresh', $newest);
my %wanted = (catalog => { catalog($fresh) }, rows => { shipped_rows($fresh) });

sub same_catalog
{
	my ($database, $name) = @_;
	my @differences = catalog_differences({ catalog($database) }, $wanted{catalog});
	is(scalar @differences, 0, $name) or diag(join "\n", @differences);
	return;
}

sub ends
{
	my ($database, $status, @arguments) = @_;
	my $run = $database->run_sync(@arguments);
	is($run->{status}, $status, "@arguments: $status") or diag($run->{stderr});
	return;
}

# Configuration of every kind, synchronised rows, a record at fault, and runs
# that ended well, in part and not at all.
sub fill
{
	my ($database) = @_;
	$sim->reset;
	$database->sql(<<~'SQL');
		CREATE TABLE firms (id bigint PRIMARY KEY, revenue numeric);
		INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, modified_property, delete_policy)
			VALUES ('companies', 'companies', 'public', 'firms', '{id}', 'hs_lastmodifieddate', 'delete');
		INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('companies', 'revenue', 'annualrevenue');
		UPDATE sync_types SET full_every = '3 days' WHERE sync_type = 'contacts';
		DELETE FROM sync_fields WHERE sync_type = 'contacts' AND column_name = 'status';
		DELETE FROM sync_types WHERE sync_type = 'owners';
		INSERT INTO sync_connections (name) VALUES ('second');
		GRANT SELECT ON contacts TO reader;
		SQL
	$sim->patch('companies', ($sim->objects('companies'))[3]{id}, { annualrevenue => 'a lot' });
	ends($database, 'success', 'contacts', 'full');
	ends($database, 'success', 'deals', 'full');
	ends($database, 'partial', 'companies', 'full');
	$sim->fault(path => '/contacts', action => { kind => 'status', status => 403 });
	ends($database, 'failed', 'contacts', 'full');
	return;
}

# The rows of all tables but shipped ones, in the columns that there are now.
sub contents
{
	my ($database) = @_;
	my %contents;
	foreach my $table (extension_tables($database))
	{
		my $columns = $database->sql(<<~"SQL");
			SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
			WHERE attrelid = '$table'::regclass AND attnum > 0 AND NOT attisdropped
			SQL
		my $rows = "(SELECT $columns FROM $table" . ($columns =~ /\bshipped\b/ ? ' WHERE NOT shipped)' : ')');
		$contents{$table} = { rows => $rows, text => table_text($database, $rows) };
	}
	return %contents;
}

sub same_contents
{
	my ($database, $contents, @tables) = @_;
	same_table($database, $contents->{$_}{rows}, $contents->{$_}{text}, "$_ has the rows it had") foreach @tables;
	return;
}

# A run that waits for HubSpot until faults are cleared.
sub run_under_way
{
	my ($database) = @_;
	$sim->fault(path => '/companies', times => 0, action => 'hang');
	$sim->clear_journal;
	my $id = $database->trigger('companies', 'full');
	wait_until('the run waits for an answer', sub { scalar $sim->requests(path => qr{/companies}) });
	return $id;
}

sub update_filled
{
	my ($database) = @_;
	my $session = $server->session(database => $database->database);
	my $request = q{BEGIN; SELECT trigger_hubspot_sync('deals') IS NOT NULL; ROLLBACK};
	is($session->query($request), 't', 'a session uses the old objects');
	my %contents = contents($database);
	my $run = run_under_way($database);
	$database->sql('ALTER EXTENSION hubspot_sync UPDATE');
	$sim->clear_faults;
	is($database->wait_for($run)->{status}, 'partial', 'the run that was under way goes on');
	is($session->query($request), 't', '... and so does the session');
	$session->quit;
	# What that run has written is not what it was.
	my %moves = map { $_ => 1 } qw(public.sync_runs public.sync_errors public.sync_state public.sync_rows public.sync_home);
	same_contents($database, \%contents, grep { !$moves{$_} } sort keys %contents);
	is($database->sql(q{SELECT count(*) FROM sync_errors WHERE resolved_at IS NULL}), 1, 'the record at fault is still known');
	is($database->sql(q{SELECT count(*) FROM contacts}, user => 'reader'), CONTACTS, 'who was granted something has it');
	$database->sql('REVOKE ALL ON contacts FROM reader');
	return;
}

sub works_on
{
	my ($database) = @_;
	$sim->touch('contacts', count => 7, properties => { firstname => 'Touched' });
	ends($database, 'success', 'contacts', 'auto');
	is($database->sql(q{SELECT count(*) FROM contacts WHERE first_name = 'Touched'}), 7, 'changes arrive');
	ends($database, 'success', 'deals', 'auto');
	isnt($database->sql(q{SELECT count(more) FROM deals}), 0, 'a new shipped field is filled');
	return;
}

sub dump_goes_into_fresh
{
	my ($database) = @_;
	$server->sql('CREATE DATABASE "restored ' . $database->database . '"');
	my $restored = $server->in('restored ' . $database->database);
	is(restore_dump($restored, dump_database($database)), '', 'its dump is restored without a word');
	same_catalog($restored, '... into the catalog of a fresh installation');
	my %contents = contents($database);
	my @dumped = map { /^dumped rows (.*)/ } sort keys %{ $wanted{catalog} };
	# The copy has noted that it is one.
	same_contents($restored, \%contents, grep { $_ ne 'public.sync_home' } @dumped);
	return;
}

my %has_path = map { $_ => 1 } split /\n/,
  $server->sql("SELECT source FROM pg_extension_update_paths('hubspot_sync') WHERE target = '$newest' AND path IS NOT NULL");
my @earlier = grep { $has_path{$_} } $stage->full_scripts;
ok((grep { $_ eq $released } @earlier), "there is a way from version $released");

foreach my $version (@earlier)
{
	subtest "version $version, empty" => sub {
		my $database = database("empty $version", $version);
		$database->sql('ALTER EXTENSION hubspot_sync UPDATE');
		same_catalog($database, 'the catalog is that of a fresh installation');
		is_deeply([ catalog_differences({ shipped_rows($database) }, $wanted{rows}) ], [], '... and so are the rows');
	};
	subtest "version $version, filled" => sub {
		my $database = database("filled $version", $version);
		fill($database);
		update_filled($database);
		same_catalog($database, 'the catalog is that of a fresh installation');
		my @rows = catalog_differences({ shipped_rows($database) }, $wanted{rows});
		is_deeply([ grep { !/ is missing$/ } @rows ], [], '... and no shipped row is another');
		works_on($database);
		dump_goes_into_fresh($database);
	};
}

subtest 'mistakes that are seen' => sub {
	my $database = database('mistaken', $released);
	foreach my $number (0 .. $#mistakes)
	{
		my ($what, $pattern, $replacement, $complaint) = @{ $mistakes[$number] };
		my $mistaken = $more;
		$mistaken =~ s/$pattern/$replacement/g or die "there is nothing to replace for $what";
		$stage->script("$released--$newest.$number", $mistaken);
		# Nothing of it is committed.
		my %update = (before => "BEGIN; ALTER EXTENSION hubspot_sync UPDATE TO '$newest.$number'");
		my @differences = $complaint =~ /row of/
		  ? catalog_differences({ shipped_rows($database, %update) }, $wanted{rows})
		  : catalog_differences({ catalog($database, %update) }, $wanted{catalog});
		my @seen = grep { ref $complaint ? $_ =~ $complaint : index($_, $complaint) == 0 } @differences;
		is(scalar @seen, 1, $what) or diag(join "\n", @differences);
		cmp_ok(scalar @differences, '<=', 12, '... and little else') or diag(join "\n", @differences);
	}
};

done_testing();
