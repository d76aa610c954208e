# Records go into a table of the user's own, with other column names and types,
# owned by an ordinary role that configures the type itself; what the table has
# no columns for is kept in sync_rows. The run is that role and nobody else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Server;
use HubspotSync::Simulator;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use constant COMPANIES => 240;

my $sim = HubspotSync::Simulator->start(contacts => 0, deals => 0, owners => 2, companies => COMPANIES);
my $server = HubspotSync::Server->new('own_table', simulator => $sim);

my %properties = (
	name => 'customer name',
	domain => 'web',
	industry => 'branch',
	annualrevenue => 'revenue',
	numberofemployees => 'staff count',
	createdate => 'since');

$server->sql(<<~'SQL');
	CREATE ROLE app_owner LOGIN;
	CREATE SCHEMA app AUTHORIZATION app_owner;
	GRANT SELECT, INSERT, UPDATE, DELETE ON sync_types, sync_fields TO app_owner;
	SET ROLE app_owner;
	CREATE TABLE app."Customers" (
		"Hub Id" bigint UNIQUE,
		"customer name" text,
		web varchar(60),
		branch text,
		revenue numeric(10,2),
		"staff count" integer,
		since timestamptz,
		note text DEFAULT 'ours'
	);
	CREATE TABLE app.seen_as (session_name name, current_name name, path text);
	CREATE FUNCTION app.note_user() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO app.seen_as VALUES (session_user, current_user, current_setting('search_path'));
		RETURN NEW;
	END $$;
	CREATE TRIGGER note_user AFTER INSERT OR UPDATE ON app."Customers"
		FOR EACH ROW EXECUTE FUNCTION app.note_user();
	INSERT INTO public.sync_types (sync_type, object_type, target_schema, target_table, key_columns,
			modified_property, created_property, delete_policy)
		VALUES ('companies', 'companies', 'app', 'Customers', '{Hub Id}',
			'hs_lastmodifieddate', 'createdate', 'delete');
	SQL
foreach my $property (sort keys %properties)
{
	$server->sql("INSERT INTO sync_fields (sync_type, column_name, property)
		VALUES ('companies', '$properties{$property}', '$property')", user => 'app_owner');
}

sub sync
{
	my ($mode, $status) = @_;
	my $run = $server->run_sync('companies', $mode);
	is($run->{status}, $status // 'success', "$mode run ends " . ($status // 'success')) or diag($run->{stderr});
	return defined $run->{run_id} ? $server->log($run->{run_id}) : {};
}

# The table holds exactly HubSpot's live records, and sync_rows their dates.
sub same_as_hubspot
{
	my ($when, $kept) = @_;
	$server->load_objects('companies');
	is( $server->sql(<<~"SQL"), 0, "the table is HubSpot's $when");
		SELECT count(*) FROM app."Customers" c
		FULL JOIN (SELECT id::bigint, record -> 'properties' AS p FROM sim_companies WHERE $kept) s
			ON s.id = c."Hub Id"
		WHERE (c."Hub Id", c."customer name", c.web, c.branch, c.revenue, c."staff count", c.since)
			IS DISTINCT FROM
			(s.id, p ->> 'name', p ->> 'domain', p ->> 'industry',
				round(nullif(p ->> 'annualrevenue', '')::numeric, 2),
				nullif(p ->> 'numberofemployees', '')::integer, (p ->> 'createdate')::timestamptz)
		SQL
	is( $server->sql(<<~"SQL"), 0, '... and sync_rows keeps its books');
		SELECT count(*) FROM (SELECT * FROM sync_rows WHERE sync_type = 'companies' AND NOT archived) r
		FULL JOIN (SELECT id, (record ->> 'updatedAt')::timestamptz AS updated FROM sim_companies WHERE $kept) s
			ON s.id = r.record_id
		WHERE (s.id, s.updated) IS DISTINCT FROM (r.record_id, r.hubspot_updated_at)
		SQL
	return;
}

my @ids = sort { $a <=> $b } map { $_->{id} } $sim->objects('companies');

subtest 'a full run' => sub {
	$sim->archive('companies', $ids[3]);
	my $log = sync('full');
	is($log->{records_processed}, COMPANIES, 'all records are read');
	same_as_hubspot('with policy delete', 'NOT archived');
	is($server->sql(q{SELECT DISTINCT session_name, current_name FROM app.seen_as}),
		'app_owner|app_owner', "the worker is the table's owner, in session and transaction");
	is($server->sql(q{SELECT DISTINCT path FROM app.seen_as}), 'pg_catalog, pg_temp', '... with a safe search_path');

	$server->sql('TRUNCATE app.seen_as');
	$log = sync('full');
	is($log->{records_changed}, 0, 'a second full run changes nothing');
	is($server->sql('SELECT count(*) FROM app.seen_as'), 0, '... and writes no row');
};

subtest 'an incremental run' => sub {
	$server->sql(qq{UPDATE app."Customers" SET note = 'mine' WHERE "Hub Id" = $ids[10]});
	$server->sql('TRUNCATE app.seen_as');
	$sim->patch('companies', $ids[10], { name => 'Renamed "GmbH" \\ Söhne', annualrevenue => '1234.565' });
	my ($new) = $sim->create('companies', { name => 'New one', numberofemployees => '12' });
	my $log = sync('incremental');
	is($log->{records_changed}, 2, 'what was edited and created is written');
	is($server->sql('SELECT count(*) FROM app.seen_as'), 2, '... and nothing else');
	same_as_hubspot('after the edits', 'NOT archived');
	is($server->sql(qq{SELECT note FROM app."Customers" WHERE "Hub Id" = $ids[10]}), 'mine',
		'a column that is not mapped stays as it was');
	is(sync('incremental')->{records_changed}, 0, 'the rounded amount is not written again');
	is(sync('full')->{records_changed}, 0, '... by a full run neither');
};

subtest 'policy delete' => sub {
	$sim->archive('companies', $_) foreach @ids[ 20, 21 ];
	is(sync('full')->{records_archived}, 2, 'rows of archived records are counted');
	same_as_hubspot('... and deleted', 'NOT archived');
	$sim->restore('companies', $ids[20]);
	sync('full');
	same_as_hubspot('when one of them was restored', 'NOT archived');
};

subtest 'policy ignore' => sub {
	$server->sql(q{UPDATE sync_types SET delete_policy = 'ignore' WHERE sync_type = 'companies'}, user => 'app_owner');
	sync('full');
	$sim->archive('companies', $ids[30]);
	$sim->clear_journal;
	sync('full');
	is($server->sql(qq{SELECT count(*) FROM app."Customers" WHERE "Hub Id" = $ids[30]}), 1,
		'the row of an archived record stays');
	is(scalar $sim->requests('query.archived' => 'true'), 0, 'the recycle bin is not even read');
	$server->sql(q{UPDATE sync_types SET delete_policy = 'mark' WHERE sync_type = 'companies'}, user => 'app_owner');
	my $run = $server->run_sync('companies', 'full');
	is($run->{status}, 'failed', 'policy mark is refused');
	like($run->{stderr}, qr/no column to mark archived records in/, '... naming what is missing');
	like($server->log($run->{run_id})->{error_details}{hint}, qr/'ignore' or 'delete'/, '... and what to choose');
	$server->sql(q{UPDATE sync_types SET delete_policy = 'delete' WHERE sync_type = 'companies'}, user => 'app_owner');
	sync('full');
	same_as_hubspot('with policy delete again', 'NOT archived');
};

subtest 'an answer of the search that is older than what is stored' => sub {
	my $id = $ids[40];
	$sim->patch('companies', $id, { name => 'older' });
	my $older = $sim->object('companies', $id);
	$sim->patch('companies', $id, { name => 'newer' });
	sync('full');
	is($server->sql(qq{SELECT "customer name" FROM app."Customers" WHERE "Hub Id" = $id}), 'newer', 'the newer one is stored');
	my $json = JSON::PP->new->utf8;
	$sim->raw('companies', $id, $json->encode($older));
	sync('incremental');
	is($server->sql(qq{SELECT "customer name" FROM app."Customers" WHERE "Hub Id" = $id}), 'newer',
		'... and not overwritten by the older one');
	$older->{updatedAt} =~ s/^\d+/2100/;
	$sim->raw('companies', $id, $json->encode($older));
	sync('incremental');
	is($server->sql(qq{SELECT "customer name" FROM app."Customers" WHERE "Hub Id" = $id}), 'older',
		'... which would have been, were its date newer');
	$sim->raw('companies', $id, undef);
	$server->sql(q{UPDATE sync_rows SET hubspot_updated_at = '2000-01-01' WHERE record_id = '} . $id . q{'});
	sync('full');
};

subtest 'a value that is too long' => sub {
	my $long = 'x' x 61;
	$sim->patch('companies', $ids[50], { domain => $long });
	$sim->patch('companies', $ids[51], { domain => 'x' x 60 });
	$sim->patch('companies', $ids[52], { numberofemployees => '99999999999' });
	my $log = sync('incremental', 'partial');
	is($log->{records_failed}, 2, 'the records are counted');
	is( $server->sql(qq{SELECT record_id, property, category FROM sync_errors
			WHERE resolved_at IS NULL ORDER BY record_id::bigint}),
		"$ids[50]|domain|invalid_value\n$ids[52]|numberofemployees|invalid_value",
		'... and become dead letters that name the property');
	is($server->sql(q{SELECT payload #>> '{properties,domain}' FROM sync_errors WHERE property = 'domain'}),
		$long, '... with their payload');
	isnt($server->sql(qq{SELECT web FROM app."Customers" WHERE "Hub Id" = $ids[50]}), 'x' x 60, 'nothing is truncated');
	is($server->sql(qq{SELECT web FROM app."Customers" WHERE "Hub Id" = $ids[51]}), 'x' x 60, 'what fits is stored');
	$sim->patch('companies', $ids[50], { domain => 'short.example' });
	$sim->patch('companies', $ids[52], { numberofemployees => '9' });
	sync('incremental');
	is($server->sql('SELECT count(*) FROM sync_errors WHERE resolved_at IS NULL'), 0, 'the next run closes them');
	same_as_hubspot('afterwards', 'NOT archived');
};

subtest 'columns of many types, and text as key' => sub {
	my ($id) = $sim->create('companies',
		{ name => '{"a": [1, 2]}', domain => '2024-02-29', industry => 'true', annualrevenue => '1000000.005',
			numberofemployees => '7', city => '1709164800000', zip => '', phone => "O'Neill" });
	$server->sql(<<~'SQL', user => 'app_owner');
		CREATE TABLE app.typed (
			id text PRIMARY KEY, doc json, doc2 jsonb, day date, open boolean, amount numeric(12,2), small smallint,
			at timestamptz, plain timestamp, nothing integer, short varchar(10), ten char(10));
		INSERT INTO public.sync_types (sync_type, object_type, target_schema, target_table, key_columns,
				modified_property, created_property, delete_policy)
			VALUES ('typed', 'companies', 'app', 'typed', '{id}', 'hs_lastmodifieddate', 'createdate', 'ignore');
		INSERT INTO public.sync_fields (sync_type, column_name, property) VALUES
			('typed', 'doc', 'name'), ('typed', 'doc2', 'name'), ('typed', 'day', 'domain'), ('typed', 'open', 'industry'),
			('typed', 'amount', 'annualrevenue'), ('typed', 'small', 'numberofemployees'), ('typed', 'at', 'city'),
			('typed', 'plain', 'city'), ('typed', 'nothing', 'zip'), ('typed', 'short', 'phone'), ('typed', 'ten', 'phone');
		SQL
	my $run = $server->run_sync('typed', 'full');
	is($run->{status}, 'partial', 'other records do not fit, but the run ends') or diag($run->{stderr});
	is( $server->sql("SELECT * FROM app.typed WHERE id = '$id'"),
		qq{$id|{"a": [1, 2]}|{"a": [1, 2]}|2024-02-29|t|1000000.01|7|2024-02-29 00:00:00+00|2024-02-29 00:00:00||O'Neill|O'Neill   },
		'every value is read as its column wants it');
	my $xmin = $server->sql("SELECT xmin FROM app.typed WHERE id = '$id'");
	is($server->run_sync('typed', 'full')->{status}, 'partial', 'a second run');
	is($server->sql("SELECT xmin FROM app.typed WHERE id = '$id'"), $xmin, '... finds it unchanged');
	$server->sql(q{DELETE FROM sync_types WHERE sync_type = 'typed'}, user => 'app_owner');
};

subtest 'what a mapping cannot be' => sub {
	$server->sql(<<~'SQL', user => 'app_owner');
		CREATE TABLE app.bad (id bigint UNIQUE, name text, up text GENERATED ALWAYS AS (upper(name)) STORED, other bigint);
		INSERT INTO public.sync_types (sync_type, object_type, target_schema, target_table, key_columns, delete_policy)
			VALUES ('bad', 'companies', 'app', 'bad', '{id}', 'ignore');
		SQL
	my %bad = (
		'a generated column' => [ q{INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('bad', 'up', 'name')},
			qr/column "up" of target table "bad" is generated and cannot be written/ ],
		'a column that does not exist' => [ q{INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('bad', 'nope', 'name')},
			qr/has no column "nope"/ ],
		'a key without a unique index' => [ q{UPDATE sync_types SET key_columns = '{other}' WHERE sync_type = 'bad'},
			qr/no unique index on its key columns/ ]);
	foreach my $what (sort keys %bad)
	{
		my ($sql, $message) = @{ $bad{$what} };
		$server->sql(q{DELETE FROM sync_fields WHERE sync_type = 'bad';
			UPDATE sync_types SET key_columns = '{id}' WHERE sync_type = 'bad'}, user => 'app_owner');
		$server->sql($sql, user => 'app_owner');
		$sim->clear_journal;
		my $run = $server->run_sync('bad', 'full');
		is($run->{status}, 'failed', "$what is refused");
		like($run->{stderr}, $message, '... by its name');
		is($server->log($run->{run_id})->{error_details}{reason}, 'configuration', '... as a matter of configuration');
		is(scalar $sim->requests, 0, '... before HubSpot is asked');
	}
};

subtest 'a table of somebody else' => sub {
	$server->sql('CREATE ROLE intruder LOGIN; GRANT SELECT, INSERT, UPDATE ON sync_types, sync_fields TO intruder');
	my %attempts = (
		'a new type' => q{INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, delete_policy)
			VALUES ('mine', 'companies', 'app', 'Customers', '{Hub Id}', 'ignore')},
		'a change of the type' => q{UPDATE sync_types SET object_type = 'contacts' WHERE sync_type = 'companies'},
		'a field of it' => q{INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('companies', 'note', 'name')},
		'a change of a field' => q{UPDATE sync_fields SET property = 'phone' WHERE sync_type = 'companies'},
		'a shipped type turned to it' => q{UPDATE sync_types SET target_schema = 'app', target_table = 'Customers' WHERE sync_type = 'contacts'});
	foreach my $what (sort keys %attempts)
	{
		like($server->sql_error($attempts{$what}, user => 'intruder'),
			qr/ERROR:  42501: must be a member of the role that owns table/, "$what is refused");
	}
};

done_testing();
