# The acceptance test for those who come from another system: its tables, in
# schema public with columns and types of their own and full of rows, receive
# HubSpot's records in place of the extension's. Everything arrives, is
# corrected and, if that is wanted, deleted; nothing else in these tables
# changes. map_hubspot_sync() says what goes where and refuses what cannot be,
# without a trace.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Dump qw(table_text same_table);
use HubspotSync::Server;
use HubspotSync::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 340,
	DEALS => 130,
	OWNERS => 80,
};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => DEALS, owners => OWNERS);
my $server = HubspotSync::Server->new('old_tables', simulator => $sim, extension => 0);
my %ids = map { my $type = $_; $type => [ map { $_->{id} } $sim->objects($type, archived => 0) ] } qw(contacts deals owners);

$server->sql(<<~'SQL');
	CREATE ROLE school LOGIN;
	CREATE ROLE visitor LOGIN;
	CREATE DATABASE reference;
	CREATE DATABASE old;
	CREATE DATABASE plain;
	ALTER DATABASE old SET search_path = hubspot, public;
	ALTER DATABASE plain SET search_path = hubspot, public
	SQL

# The extension with its own tables, for comparison.
my $reference = $server->in('reference');
$reference->sql('CREATE EXTENSION hubspot_sync');

# What the old system has left behind: rows that know HubSpot's id and are out
# of date, and rows that HubSpot knows nothing of. The latter say "own".
sub make_old_tables
{
	my ($database) = @_;
	$database->sql(<<~'SQL');
		ALTER SCHEMA public OWNER TO school;
		SET ROLE school;
		CREATE TYPE public.deal_status AS ENUM ('lost', 'won', 'open', 'lead');
		CREATE TABLE public.contacts (
			id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
			hubspot_contact_id text UNIQUE,
			email text,
			first_name text,
			last_name text,
			phone text,
			owner_id text,
			lifecycle_stage text,
			status text,
			created_at timestamptz DEFAULT now(),
			updated_at timestamptz DEFAULT now(),
			note text DEFAULT 'new',
			score int NOT NULL DEFAULT 0);
		CREATE TABLE public.deals (
			id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
			hubspot_deal_id text UNIQUE,
			deal_name text,
			deal_value numeric,
			stage text,
			status public.deal_status,
			close_date timestamptz,
			closer_id text,
			pipeline text,
			created_at timestamptz DEFAULT now(),
			updated_at timestamptz DEFAULT now(),
			note text DEFAULT 'new');
		CREATE TABLE public.staff (
			id text PRIMARY KEY,
			name text,
			email text,
			role text,
			created_at timestamptz DEFAULT now(),
			note text DEFAULT 'new');
		CREATE TABLE public.sync_logs (id bigserial PRIMARY KEY, what text, happened_at timestamptz DEFAULT now());
		CREATE TABLE public.bookings (contact_id uuid REFERENCES public.contacts (id), what text);
		CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN NEW.score := OLD.score; RETURN NEW; END $$;
		CREATE TRIGGER touch BEFORE UPDATE ON public.contacts FOR EACH ROW EXECUTE FUNCTION public.touch();
		INSERT INTO public.sync_logs (what) SELECT 'old run ' || n FROM generate_series(1, 20) n;
		INSERT INTO public.contacts (hubspot_contact_id, email, first_name, note, score)
			SELECT NULL, 'walk-in' || n || '@school.example', 'Walk', 'own', n FROM generate_series(1, 30) n;
		INSERT INTO public.contacts (hubspot_contact_id, email, note) VALUES
			('99999999999999', 'deleted-long-ago@school.example', 'own'), ('1', 'one@school.example', 'own'),
			('legacy-7', NULL, 'own'), ('', NULL, 'own');
		INSERT INTO public.deals (hubspot_deal_id, deal_name, deal_value, status, note) VALUES
			(NULL, 'cash', 12.5, 'lead', 'own'), (NULL, 'cash', NULL, NULL, 'own'), ('99999999999999', 'gone', 1, 'won', 'own');
		INSERT INTO public.staff VALUES ('emp-1', 'Head of School', 'head@school.example', 'admin', '2020-01-01', 'own'),
			('emp-2', NULL, NULL, NULL, NULL, 'own');
		SQL
	foreach my $n (0 .. 4)
	{
		$database->sql(<<~"SQL", user => 'school');
			INSERT INTO public.contacts (hubspot_contact_id, email, phone, note, score, created_at)
				VALUES ('$ids{contacts}[$n]', 'stale$n', '0', 'known $n', $n, '2001-01-01');
			INSERT INTO public.deals (hubspot_deal_id, deal_name, status, deal_value, note)
				VALUES ('$ids{deals}[$n]', 'stale $n', 'lead', 1e9, 'known $n');
			INSERT INTO public.staff (id, name, role, note) VALUES ('$ids{owners}[$n]', 'stale', 'director', 'known $n');
			INSERT INTO public.bookings SELECT id, 'lesson' FROM public.contacts WHERE note = 'known $n'
			SQL
	}
	return;
}

# How each type maps: its table, key, the columns that are HubSpot's and those
# that are not.
my %types = (
	contacts => { table => 'public.contacts', key => 'hubspot_contact_id',
		columns => 'email, first_name, last_name, phone, owner_id, lifecycle_stage, status, created_at',
		own => 'id, note, score' },
	deals => { table => 'public.deals', key => 'hubspot_deal_id',
		columns => 'deal_name, deal_value, stage, status::text, close_date, closer_id, pipeline, created_at',
		own => 'id, note' },
	owners => { table => 'public.staff', key => 'id', columns => 'name, email, created_at', own => 'role, note' });

sub sync
{
	my ($database, $type, $mode, $status) = @_;
	my $run = $database->run_sync($type, $mode);
	is($run->{status}, $status // 'success', "$type, $mode: " . ($status // 'success')) or diag($run->{stderr});
	return defined $run->{run_id} ? $database->log($run->{run_id}) : {};
}

# HubSpot's live records stand in the old table as in the extension's own.
sub same_as_reference
{
	my ($database, $type, $when) = @_;
	my ($table, $key, $columns) = @{ $types{$type} }{qw(table key columns)};
	my $own = $table =~ s/public\.//r;
	$reference->run_sync($type, 'full');
	my $live = $reference->sql("SELECT quote_literal(array_agg($key)) FROM $own WHERE NOT archived");
	same_table($database, "(SELECT $key, $columns FROM $table WHERE $key = ANY ($live))",
		table_text($reference, "(SELECT $key, $columns FROM $own WHERE NOT archived)"),
		"$type: the table has HubSpot's records $when");
	return;
}

# What must never change, as a list of subqueries with their rows.
sub remember
{
	my ($database) = @_;
	my @queries = ('public.sync_logs', 'public.bookings');
	foreach my $type (sort keys %types)
	{
		my ($table, $key, $own) = @{ $types{$type} }{qw(table key own)};
		push @queries, "(SELECT * FROM $table WHERE note = 'own')", "(SELECT $key, $own FROM $table WHERE note LIKE 'known%')";
	}
	return map { $_ => table_text($database, $_) } @queries;
}

sub nothing_else_changed
{
	my ($database, %remembered) = @_;
	same_table($database, $_, $remembered{$_}, "unchanged: $_") foreach sort keys %remembered;
	is($database->sql('SELECT (SELECT count(*) FROM hubspot.contacts) + (SELECT count(*) FROM hubspot.deals)
			+ (SELECT count(*) FROM hubspot.staff)'), 0, "the extension's own tables are empty");
	return;
}

# Calls map_hubspot_sync() and returns its explanation, as text.
sub map_type
{
	my ($database, $arguments, %options) = @_;
	return $database->sql(<<~"SQL", %options);
		SELECT coalesce(property, '-') || ' > ' || coalesce(column_name, '-') || coalesce(': ' || remark, '')
		FROM map_hubspot_sync($arguments)
		SQL
}

# The explanation has exactly these lines, in any order; those with an end
# that does not matter end in "...".
sub explains
{
	my ($explanation, $name, @wanted) = @_;
	my @left = split /\n/, $explanation;
	my @missing;
	foreach my $line (@wanted)
	{
		my $pattern = $line =~ /^(.*)\.\.\.$/ ? qr/^\Q$1\E/ : qr/^\Q$line\E$/;
		my ($found) = grep { $left[$_] =~ $pattern } 0 .. $#left;
		defined $found ? splice(@left, $found, 1) : push @missing, $line;
	}
	is_deeply({ missing => \@missing, unexpected => \@left }, { missing => [], unexpected => [] }, $name);
	return;
}

sub archive_merge_purge
{
	my ($type, $n) = @_;
	my @id = @{ $ids{$type} }[ $n .. $n + 3 ];
	return $sim->control('POST', "owners/$id[0]/archive") && ($id[0]) if $type eq 'owners';
	$sim->archive($type, $id[0]);
	$sim->merge($type, $id[1], $id[2]);
	$sim->purge($type, $id[3]);
	return @id[ 0, 2, 3 ];
}

sub rows_of
{
	my ($type, @rows) = @_;
	return "(SELECT * FROM $types{$type}{table} WHERE $types{$type}{key} IN (" . join(', ', map { "'$_'" } @rows) . '))';
}

# Everything that may happen to records, with a database whose types point at
# the old tables and ignore deletions; $delete tells them to delete instead.
sub live_through
{
	my ($database, $first, $delete) = @_;
	my %remembered = remember($database);
	my %absent;
	foreach my $type (sort keys %types)
	{
		my ($id) = $ids{$type}[1];
		is(sync($database, $type, 'full')->{records_processed} >= 10, 1, '... with records');
		same_as_reference($database, $type, 'after the first run');
		is(sync($database, $type, 'full')->{records_changed}, 0, '... and the second one changes nothing');

		my ($new) = $sim->create($type, $type eq 'contacts' ? { email => 'new@school.example', firstname => 'New' }
			: $type eq 'deals' ? { dealname => 'new', amount => '12.30', dealstage => 'closedwon', pipeline => 'default' }
			: { email => 'new@school.example', firstName => 'New', lastName => 'Coach' });
		my %change = (contacts => { phone => '+1', email => "changed $first\@school.example" }, deals => { amount => $first },
			owners => { lastName => "Changed$first" });
		$type eq 'owners' ? $sim->control('PATCH', "owners/$id", $change{$type}) : $sim->patch($type, $id, $change{$type});
		is(sync($database, $type, 'incremental')->{records_changed}, 2, '... of two records, one new and one changed');
		same_as_reference($database, $type, 'after an incremental run');
		is($database->sql("SELECT note FROM $types{$type}{table} WHERE $types{$type}{key} = '$new'"), 'new',
			'a new row has its defaults');

		my @absent = archive_merge_purge($type, $first);
		my $rows = rows_of($type, @absent);
		my $before = table_text($database, $rows);
		sync($database, $type, 'full');
		same_table($database, $rows, $before, "policy ignore: the rows of absent $type stay as they are");
		same_as_reference($database, $type, 'when some were deleted');
		$absent{$type} = \@absent;
	}
	nothing_else_changed($database, %remembered);

	foreach my $type (sort keys %types)
	{
		my @absent = @{ $absent{$type} };
		$delete->($type);
		sync($database, $type, 'full');
		same_table($database, rows_of($type, @absent), '', "policy delete: the rows of absent $type go");
		my @more = archive_merge_purge($type, $first + 4);
		sync($database, $type, 'full');
		same_table($database, rows_of($type, @more), '', '... and those of more');
		same_as_reference($database, $type, 'and nothing else');
		next if $type eq 'owners';
		$sim->restore($type, $more[0]);
		sync($database, $type, 'full');
		same_as_reference($database, $type, 'when one of them was restored');
		is($database->sql("SELECT count(*) FROM $types{$type}{table} WHERE $types{$type}{key} = '$more[0]'"), 1, '... is back');
	}
	nothing_else_changed($database, %remembered);
	return;
}

my $old = $server->in('old');

subtest 'CREATE EXTENSION beside the old tables' => sub {
	make_old_tables($old);
	my $definition = <<~'SQL';
		(SELECT relname::text, attname::text, atttypid, atttypmod, attnotnull, relacl::text, relowner
		FROM pg_class c JOIN pg_attribute ON attrelid = c.oid WHERE relnamespace = 'public'::regnamespace)
		SQL
	my %remembered = (remember($old), $definition => table_text($old, $definition));
	$old->sql('CREATE SCHEMA hubspot; CREATE EXTENSION hubspot_sync SCHEMA hubspot');
	nothing_else_changed($old, %remembered);
};

my $kept = '- > -: the table lacks connection_id, archived, hubspot_updated_at or synced_at...';
my $ignore = '- > -: delete_policy is ignore...';
my $no_time = 'values that are no timestamp with time zone go to sync_errors';

subtest 'map_hubspot_sync() explains' => sub {
	explains(map_type($old, q{'contacts', 'public.contacts', '{hubspot_contact_id}'}), 'contacts',
		q{hs_object_id > hubspot_contact_id: key: HubSpot's id of the record}, 'email > email', 'firstname > first_name',
		'lastname > last_name', 'phone > phone', 'hubspot_owner_id > owner_id', 'lifecyclestage > lifecycle_stage',
		'hs_lead_status > status', "createdate > created_at: $no_time",
		'- > updated_at: when the synchronisation last changed the row', $ignore, $kept);
	explains(map_type($old, q{'deals', 'public.deals', '{hubspot_deal_id}'}), 'deals',
		q{hs_object_id > hubspot_deal_id: key: HubSpot's id of the record}, 'dealname > deal_name',
		'amount > deal_value: values that are no numeric go to sync_errors', 'dealstage > stage',
		'dealstage > status: open, won or lost, by the stage', "closedate > close_date: $no_time",
		'hubspot_owner_id > closer_id', 'pipeline > pipeline', "createdate > created_at: $no_time",
		'- > updated_at: when the synchronisation last changed the row', $ignore, $kept);
	explains(map_type($old, q{'owners', 'public.staff', '{id}'}), 'owners',
		q{hs_object_id > id: key: HubSpot's id of the record}, '- > name: first and last name, else the e-mail',
		'email > email', '- > role: always "coach", set when the row is created', "createdAt > created_at: $no_time",
		$ignore, $kept);
	is($old->sql('SELECT DISTINCT delete_policy FROM sync_types WHERE source <> $$progress$$'), 'ignore', 'policy ignore is noted');
	is($old->sql('SELECT DISTINCT shipped FROM sync_types WHERE source <> $$progress$$'), 'f', '... in rows that are no longer as shipped');
};

subtest 'the old tables, by map_hubspot_sync()' => sub {
	live_through($old, 20, sub {
		my ($type) = @_;
		# The owner of the tables may do that alone now.
		$old->sql('GRANT USAGE ON SCHEMA hubspot TO school; GRANT EXECUTE ON FUNCTION
			map_hubspot_sync(text, regclass, text[], jsonb, text) TO school');
		my $explanation = map_type($old, "'$type', '$types{$type}{table}', '{$types{$type}{key}}', NULL, 'delete'", user => 'school');
		unlike($explanation, qr/delete_policy/, "$type: a policy that was asked for needs no explanation");
		is($old->sql("SELECT delete_policy, configured_by FROM sync_types WHERE sync_type = '$type'"), 'delete|school',
			'... and is noted');
	});
	is($old->sql(q{SELECT role FROM public.staff WHERE note = 'known 2'}), 'director', 'a role is set on insert only');
	is($old->sql(q{SELECT DISTINCT role FROM public.staff WHERE note = 'new'}), 'coach', '... for new rows');
};

subtest 'a row that another table needs' => sub {
	$sim->archive('contacts', $ids{contacts}[$_]) foreach 2, 60;
	my %remembered = remember($old);
	my $log = sync($old, 'contacts', 'full', 'partial');
	is( $old->sql('SELECT record_id, category FROM sync_errors WHERE resolved_at IS NULL'),
		"$ids{contacts}[2]|constraint", 'that cannot be deleted is one entry in sync_errors');
	same_table($old, rows_of('contacts', $ids{contacts}[60]), '', '... and others are deleted');
	nothing_else_changed($old, %remembered);
	$old->sql("DELETE FROM public.bookings WHERE contact_id = (SELECT id FROM public.contacts
		WHERE hubspot_contact_id = '$ids{contacts}[2]')");
	sync($old, 'contacts', 'full');
	same_table($old, rows_of('contacts', $ids{contacts}[2]), '', 'once nobody needs it it goes');
	is($old->sql('SELECT count(*) FROM sync_errors WHERE resolved_at IS NULL'), 0, '... and the entry is closed');
};

subtest 'the old tables, by plain statements' => sub {
	my $plain = $server->in('plain');
	make_old_tables($plain);
	$plain->sql('CREATE SCHEMA hubspot; CREATE EXTENSION hubspot_sync SCHEMA hubspot');
	foreach my $type (sort keys %types)
	{
		my ($table, $key) = @{ $types{$type} }{qw(table key)};
		$plain->sql("UPDATE sync_types SET target_schema = 'public', target_table = '${\($table =~ s/.*\.//r)}',
			key_columns = '{$key}', delete_policy = 'ignore' WHERE sync_type = '$type'");
	}
	live_through($plain, 40, sub {
		$plain->sql("UPDATE sync_types SET delete_policy = 'delete' WHERE sync_type = '$_[0]'");
	});
};

subtest 'other names, some columns, bookkeeping in the table' => sub {
	$old->sql(<<~'SQL', user => 'school');
		CREATE TABLE public."Old Contacts" (
			"Contact No" bigint NOT NULL, "Mail Address" text, job varchar(200), last_name text, properties jsonb,
			archived boolean, note text DEFAULT 'new', UNIQUE ("Contact No"));
		INSERT INTO public."Old Contacts" VALUES (1, 'one', NULL, NULL, NULL, NULL, 'own');
		SQL
	explains(map_type($old, q{'contacts', 'public."Old Contacts"', '{Contact No}',
			'{"email": "Mail Address", "jobtitle": "job", "phone": null}', 'mark'}), 'field_map',
		q{hs_object_id > Contact No: key: HubSpot's id of the record}, 'email > Mail Address', 'jobtitle > job',
		'lastname > last_name', 'phone > -: not stored, as field_map says',
		'firstname > -: not stored: the table has no column "first_name"...',
		'hubspot_owner_id > -: not stored: the table has no column "owner_id"...',
		'lifecyclestage > -: not stored: the table has no column "lifecycle_stage"...',
		'hs_lead_status > -: not stored: the table has no column "status"...',
		'createdate > -: not stored: the table has no column "created_at"...',
		'- > -: not stored: the table has no column "updated_at"...',
		'- > properties: kept by the synchronisation', '- > archived: kept by the synchronisation', $kept);
	is($old->sql(q{SELECT string_agg(column_name, ',' ORDER BY column_name) FROM sync_fields WHERE sync_type = 'contacts'}),
		'Mail Address,job,last_name', 'the fields are what it says');
	my ($job) = map { $ids{contacts}[$_] } 100;
	$sim->patch('contacts', $job, { jobtitle => 'Lehrer "§ 5"' });
	sync($old, 'contacts', 'full');
	$old->load_objects('contacts');
	is( $old->sql(<<~'SQL'), 0, "the table is HubSpot's");
		SELECT count(*) FROM (SELECT * FROM public."Old Contacts" WHERE note <> 'own' AND NOT archived) c
		FULL JOIN (SELECT id, record -> 'properties' AS p FROM hubspot.sim_contacts WHERE NOT archived) s
			ON s.id = c."Contact No"::text
		WHERE (s.id, p ->> 'email', p ->> 'jobtitle', p ->> 'lastname')
			IS DISTINCT FROM (c."Contact No"::text, "Mail Address", job, last_name)
		SQL
	is($old->sql(qq{SELECT job, properties ->> 'jobtitle' FROM public."Old Contacts" WHERE "Contact No" = $job}),
		'Lehrer "§ 5"|Lehrer "§ 5"', '... with what was mapped');
	$sim->archive('contacts', $job);
	sync($old, 'contacts', 'full');
	is($old->sql(qq{SELECT archived FROM public."Old Contacts" WHERE "Contact No" = $job}), 't', 'policy mark marks');
	is($old->sql(q{SELECT * FROM public."Old Contacts" WHERE note = 'own'}), '1|one|||||own', 'an own row is left alone');

	my $again = $old->sql(<<~'SQL');
		BEGIN;
		UPDATE sync_types SET delete_policy = 'ignore' WHERE sync_type = 'contacts';
		SELECT concat(property, ' > ', column_name, ': ', remark)
		FROM map_hubspot_sync('contacts', 'public."Old Contacts"', '{Contact No}', '{"jobtitle": "last_name"}');
		ROLLBACK;
		SQL
	like($again, qr/^lastname > : not stored: column "last_name" is for property "jobtitle" now$/m, 'a column taken from another');
	like($again, qr/^ > : delete_policy stays ignore: .* mark is possible$/m, '... and a policy that could be another');
};

subtest 'deals whose status is text, or knows other words, or is missing in part' => sub {
	$old->sql(<<~'SQL', user => 'school');
		CREATE TYPE public.short_status AS ENUM ('open', 'won');
		CREATE TABLE public.more_deals (hubspot_deal_id text PRIMARY KEY, deal_value numeric(12,2), status text,
			branch text NOT NULL);
		CREATE TABLE public.less_deals (hubspot_deal_id text PRIMARY KEY, status public.short_status);
		SQL
	my $explanation = map_type($old, q{'deals', 'public.more_deals', '{hubspot_deal_id}'});
	like($explanation, qr/^- > branch: the column must not be null, has no default, and nothing fills it/m,
		'a column that nothing fills is named');
	sync($old, 'deals', 'full', 'partial');
	is($old->sql('SELECT count(*) FROM public.more_deals'), 0, '... and is in the way of every record');
	$old->sql(q{ALTER TABLE public.more_deals ALTER branch SET DEFAULT 'none'}, user => 'school');
	$explanation = map_type($old, q{'deals', 'public.more_deals', '{hubspot_deal_id}'});
	unlike($explanation, qr/branch/, '... until it has a default');
	sync($old, 'deals', 'full');
	$reference->run_sync('deals', 'full');
	my $deals = '(SELECT hubspot_deal_id, round(deal_value, 2), status::text FROM %s WHERE %s)';
	same_table($old, sprintf($deals, 'public.more_deals', 'true'), table_text($reference, sprintf($deals, 'deals', 'NOT archived')),
		'the deals are there, with their status as text');

	like(map_type($old, q{'deals', 'public.less_deals', '{hubspot_deal_id}'}),
		qr/^dealstage > status: the column's type has no label "lost"; such deals go to sync_errors$/m, 'a missing label is named');
	my $lost = $reference->sql(q{SELECT count(*) FROM deals WHERE NOT archived AND status = 'lost'});
	cmp_ok($lost, '>', 0, 'some deals are lost');
	sync($old, 'deals', 'full', 'partial');
	is($old->sql(q{SELECT count(*), min(property) FROM sync_errors WHERE resolved_at IS NULL AND category = 'invalid_value'}),
		"$lost|dealstage", '... and they are in sync_errors');
};

subtest 'what is refused' => sub {
	$old->sql(<<~'SQL');
		GRANT EXECUTE ON FUNCTION map_hubspot_sync(text, regclass, text[], jsonb, text) TO visitor;
		GRANT USAGE ON SCHEMA hubspot TO visitor;
		GRANT ALL ON ALL TABLES IN SCHEMA public TO visitor;
		CREATE VIEW public.looks AS SELECT * FROM public.contacts;
		CREATE MATERIALIZED VIEW public.copied AS SELECT * FROM public.contacts;
		CREATE SEQUENCE public.counting;
		CREATE TABLE public.awkward (id text UNIQUE, part text, late text UNIQUE DEFERRABLE, two text, first_name text,
			up text GENERATED ALWAYS AS (upper(part)) STORED, other uuid);
		CREATE UNIQUE INDEX ON public.awkward (part) WHERE part <> '';
		CREATE UNIQUE INDEX ON public.awkward (lower(two));
		CREATE UNIQUE INDEX ON public.awkward (first_name, other);
		CREATE TABLE public.theirs (hubspot_contact_id text PRIMARY KEY);
		ALTER TABLE public.theirs OWNER TO visitor;
		SQL
	my $awkward = q{'contacts', 'public.awkward', };
	my @refused = (
		[ q{'nothing', 'public.contacts', '{hubspot_contact_id}'}, 42704, qr/unknown sync type "nothing"/, qr/contacts, deals, owners/ ],
		[ q{NULL, 'public.contacts', '{hubspot_contact_id}'}, 22004, qr/must not be null/ ],
		[ q{'contacts', NULL, '{hubspot_contact_id}'}, 22004, qr/must not be null/ ],
		[ q{'contacts', 'public.contacts', NULL}, 22004, qr/must not be null/ ],
		[ q{'contacts', 'public.contacts', '{NULL}'}, 22004, qr/key_columns must not contain nulls/ ],
		[ q{'contacts', 'public.nowhere', '{id}'}, '42P01', qr/relation "public.nowhere" does not exist/ ],
		[ q{'contacts', 4242424, '{id}'}, '42P01', qr/4242424/ ],
		[ q{'contacts', 'public.looks', '{hubspot_contact_id}'}, 42809, qr/target "looks" .* is not a table/ ],
		[ q{'contacts', 'public.copied', '{hubspot_contact_id}'}, 42809, qr/is not a table/ ],
		[ q{'contacts', 'public.counting', '{hubspot_contact_id}'}, 42809, qr/is not a table/ ],
		[ q{'contacts', 'public.contacts_pkey', '{hubspot_contact_id}'}, 42809, qr/is not a table/ ],
		[ q{'contacts', 'public.contacts', '{email}'}, '42P17', qr/no unique index on its key columns/, qr/Create a unique index/ ],
		[ q{'contacts', 'public.contacts', '{hubspot_contact_id,id}'}, '42P17', qr/no unique index/ ],
		[ q{'contacts', 'public.contacts', '{}'}, '42P17', qr/no unique index/ ],
		[ "$awkward '{part}'", '42P17', qr/no unique index/ ],
		[ "$awkward '{late}'", '42P17', qr/no unique index/ ],
		[ "$awkward '{two}'", '42P17', qr/no unique index/ ],
		[ "$awkward '{first_name,other}'", 22023, qr/must name one column for the record's id/ ],
		[ "$awkward '{nope}'", '42P17|42703', qr/nope|no unique index/ ],
		[ qq{$awkward '{id}', '{"email": "nope"}'}, 42703, qr/has no column "nope"/ ],
		[ qq{$awkward '{id}', '{"email": ""}'}, 42703, qr/has no column ""/ ],
		[ qq{$awkward '{id}', '{"email": "up"}'}, '42P17', qr/column "up" .* is generated/ ],
		[ qq{$awkward '{id}', '{"email": "id"}'}, 22023, qr/is a key column/ ],
		[ qq{$awkward '{id}', '{"email": "two", "phone": "two"}'}, 22023, qr/"two"/ ],
		[ qq{$awkward '{id}', '{"not a property!": "two"}'}, '22023|23514', qr/not a property!|sync_fields/ ],
		[ qq{$awkward '{id}', '["email"]'}, 22023, qr/field_map must be a JSON object/, qr/An example/ ],
		[ qq{$awkward '{id}', '"email"'}, 22023, qr/field_map must be a JSON object/ ],
		[ qq{$awkward '{id}', 'null'}, 22023, qr/field_map must be a JSON object/ ],
		[ qq{$awkward '{id}', '{"email": 5}'}, 22023, qr/field_map must give "email" the name of a column, or null/ ],
		[ qq{$awkward '{id}', '{"email": {"column": "two"}}'}, 22023, qr/field_map must give "email"/ ],
		[ qq{$awkward '{id}', '{"email": true}'}, 22023, qr/field_map must give "email"/ ],
		[ qq{$awkward '{id}', NULL, 'mark'}, 55000, qr/no column to mark archived records in/, qr/'ignore' or 'delete'/ ],
		[ qq{$awkward '{id}', NULL, 'remove'}, 22023, qr/unknown delete policy "remove"/, qr/mark, delete, ignore/ ],
		[ qq{$awkward '{id}', NULL, ''}, 22023, qr/unknown delete policy ""/ ],
		[ q{'contacts', 'public.theirs', '{hubspot_contact_id}'}, 42501, qr/must be a member of the role that owns table/, undef, 'school' ],
		[ q{'contacts', 'public.contacts', '{hubspot_contact_id}'}, 42501, qr/must be a member of the role that owns table/, undef, 'visitor' ],
		[ q{'contacts', 'public.theirs', '{hubspot_contact_id}'}, 42501, qr/must be a member of the role that owns table "Old Contacts"/, undef, 'visitor' ],
		[ q{'contacts', 'hubspot.contacts', '{connection_id,hubspot_contact_id}'}, 42501, qr/must be a member/, undef, 'school' ]);
	my %before = map { $_ => table_text($old, $_) } qw(sync_types sync_fields sync_removals sync_state sync_rows);
	foreach my $case (@refused)
	{
		my ($arguments, $sqlstate, $message, $hint, $user) = @$case;
		my $error = $old->sql_error("BEGIN; SELECT * FROM map_hubspot_sync($arguments); ROLLBACK", defined $user ? (user => $user) : ());
		like($error, qr/ERROR:  (?:$sqlstate): .*$message/, "$sqlstate for $arguments" . ($user ? " by $user" : ''));
		like($error, qr/HINT:  .*$hint/, '... with a hint') if $hint;
	}
	$old->sql('REVOKE EXECUTE ON FUNCTION map_hubspot_sync(text, regclass, text[], jsonb, text) FROM visitor');
	like($old->sql_error(q{SELECT map_hubspot_sync('contacts', 'public.theirs', '{hubspot_contact_id}')}, user => 'visitor'),
		qr/ERROR:  42501: permission denied for function/, 'EXECUTE is needed');
	same_table($old, $_, $before{$_}, "nothing has changed in $_") foreach sort keys %before;
	sync($old, 'contacts', 'full');
};

subtest 'back to the tables of the extension' => sub {
	explains(map_type($old, q{'contacts', 'hubspot.contacts', '{connection_id,hubspot_contact_id}',
			'{"email": "email", "firstname": "first_name", "phone": "phone"}', 'mark'}), 'contacts',
		q{- > connection_id: kept by the synchronisation}, q{hs_object_id > hubspot_contact_id: key: HubSpot's id of the record},
		'email > email', 'firstname > first_name', 'lastname > last_name', 'phone > phone',
		'jobtitle > -: not stored: the table has no column "job"...',
		'- > synced_at: when the synchronisation last changed the row',
		map { "- > $_: kept by the synchronisation" }
		  qw(properties archived archived_at archived_reason merged_into hubspot_updated_at));
	sync($old, 'contacts', 'full');
	$reference->run_sync('contacts', 'full');
	my $contacts = '(SELECT hubspot_contact_id, email, first_name, last_name, phone FROM %s WHERE NOT archived)';
	same_table($old, sprintf($contacts, 'hubspot.contacts'), table_text($reference, sprintf($contacts, 'contacts')),
		"the contacts are HubSpot's");
};

done_testing();
