# A dump contains what was synchronised, what was configured, the log and how
# far runs had come, and no secret; restored by any usual way, also into a
# schema with an odd name or in place of the dropped extension, every row is
# what it was, and shipped rows that nobody touched are as in a new
# installation. What was under way reads as interrupted at once. Adopted, it
# goes on from the checkpoint.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use HubspotSync::Dump qw(dump_database restore_dump last_table_first extension_tables table_text same_table);
use HubspotSync::Server;
use HubspotSync::Simulator;
use HubspotSync::Wait qw(wait_until);
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	CONTACTS => 520,
	DEALS => 260,
	COMPANIES => 60,
	TOKEN => 'pat-na1-a-secret-of-this-test',
};

my $sim = HubspotSync::Simulator->start(contacts => CONTACTS, deals => DEALS, owners => 6, companies => COMPANIES,
	token => TOKEN);
# A run that hangs must do so until it is cancelled.
my $server = HubspotSync::Server->new('dump', simulator => $sim, extension => 0,
	conf => { 'hubspot_sync.request_timeout' => '1h', 'hubspot_sync.low_speed_timeout' => '1h' });
$server->sql('CREATE ROLE app_owner LOGIN; CREATE ROLE reader LOGIN; CREATE DATABASE fresh');
my $fresh = $server->in('fresh');
$fresh->sql('CREATE EXTENSION hubspot_sync');

# What a dump leaves out: where the extension is at home is its own affair, and
# the definitions of properties are read again.
my %left_out = map { $_ => 1 } qw(sync_home sync_properties progress_properties);

sub dumped_tables
{
	my ($database) = @_;
	return grep { !$left_out{ s/.*\.//r } } extension_tables($database);
}

# A database with the extension in a schema and something in every table;
# returns it with the ids of runs by what is the matter with them.
sub make_original
{
	my ($name, $schema) = @_;
	$sim->reset;
	$server->sql(qq{CREATE DATABASE "$name"; ALTER DATABASE "$name" SET search_path = "$schema", public});
	my $origin = $server->in($name);
	$origin->sql(<<~"SQL");
		CREATE SCHEMA IF NOT EXISTS "$schema";
		CREATE EXTENSION hubspot_sync SCHEMA "$schema";
		GRANT USAGE ON SCHEMA "$schema" TO app_owner, reader;
		GRANT SELECT, INSERT, UPDATE, DELETE ON sync_types, sync_fields TO app_owner;
		GRANT SELECT ON contacts, sync_logs TO reader;
		CREATE SCHEMA app AUTHORIZATION app_owner;
		SET ROLE app_owner;
		CREATE TABLE app.customers (id bigint PRIMARY KEY, name text, revenue numeric, note text DEFAULT 'ours');
		INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns, modified_property,
				filters, delete_policy)
			VALUES ('companies', 'companies', 'app', 'customers', '{id}', 'hs_lastmodifieddate',
				'{"name": {"not": "nobody \\" \\\\ here"}}', 'delete');
		INSERT INTO sync_fields (sync_type, column_name, property)
			VALUES ('companies', 'name', 'name'), ('companies', 'revenue', 'annualrevenue');
		RESET ROLE;
		CREATE TABLE app.sales (deal_no text UNIQUE, deal_name text, deal_value numeric);
		CREATE TABLE app.students (id integer PRIMARY KEY, email text);
		CREATE TABLE app.user_xp (user_id integer, total_xp integer);
		SQL
	change_configuration($origin);
	return ($origin, synchronise($origin));
}

# Shipped rows changed, deleted, and deleted and made again.
sub change_configuration
{
	my ($origin) = @_;
	$origin->sql(<<~'SQL');
		UPDATE sync_types SET full_every = '3 days', "interval" = '10 minutes', properties = '{city,"jobtitle"}'
			WHERE sync_type = 'contacts';
		UPDATE sync_fields SET insert_only = true WHERE sync_type = 'contacts' AND column_name = 'phone';
		UPDATE sync_fields SET property = 'description' WHERE sync_type = 'deals' AND column_name = 'deal_name';
		UPDATE sync_connections SET token_expires_at = '2031-02-03 04:05:06+00' WHERE name = 'default';
		INSERT INTO sync_connections (name, portal_id) VALUES ('second', '4711');
		DELETE FROM sync_fields WHERE sync_type = 'contacts' AND column_name IN ('status', 'lifecycle_stage');
		INSERT INTO sync_fields (sync_type, column_name, property)
			VALUES ('contacts', 'lifecycle_stage', 'hs_analytics_source');
		UPDATE progress_sources SET table_schema = 'app', table_name = 'students' WHERE source = 'users';
		UPDATE progress_sources SET columns = '{"score": "points"}' WHERE source = 'course_progress';
		INSERT INTO progress_sources (source, level, total_units) VALUES ('level', 'a1', 12);
		SQL
	return;
}

sub ends
{
	my ($origin, $wanted, @arguments) = @_;
	my $run = $origin->run_sync(@arguments);
	is($run->{status}, $wanted, "@arguments: $wanted") or diag($run->{stderr});
	return $run->{run_id};
}

# Runs of every kind; returns those that are not over.
sub synchronise
{
	my ($origin) = @_;
	my %runs;
	is($origin->sql('SELECT ok FROM test_hubspot_connection()'), 't', 'the account is known');
	ends($origin, 'success', 'contacts', 'full');
	ends($origin, 'success', 'deals', 'full');
	ends($origin, 'success', 'owners');
	$origin->sql(q{DELETE FROM sync_types WHERE sync_type = 'owners'});

	# Records at fault, one of which is corrected.
	my @companies = map { $_->{id} } $sim->objects('companies');
	$sim->patch('companies', $companies[$_], { annualrevenue => "a lot\n, \"x\"\t\\N" }) foreach 4, 7;
	ends($origin, 'partial', 'companies', 'full');
	$sim->patch('companies', $companies[4], { annualrevenue => '12.50' });
	ends($origin, 'partial', 'companies', 'incremental');

	# Contacts with another owner, archived, merged, gone; owners to be read.
	my @contacts = map { $_->{id} } $sim->objects('contacts');
	$sim->patch('contacts', $_, { hubspot_owner_id => '77' }) foreach @contacts[ 10 .. 20 ];
	$sim->archive('contacts', $contacts[30]);
	$sim->merge('contacts', $contacts[31], $contacts[32]);
	$sim->purge('contacts', $contacts[33]);
	$sim->patch('contacts', $contacts[40], { firstname => "Zoë\\N\t\"'\n" });
	ends($origin, 'success', 'contacts', 'full');
	$origin->sql(<<~'SQL');
		INSERT INTO app.students SELECT row_number() OVER (), email
			FROM (SELECT email FROM contacts WHERE NOT archived AND email IS NOT NULL ORDER BY email LIMIT 5) c;
		INSERT INTO app.user_xp SELECT id, 10 * id FROM app.students;
		SQL
	ends($origin, 'success', 'progress');
	$origin->sql(<<~'SQL');
		UPDATE app.students SET email = (SELECT max(email) FROM contacts WHERE NOT archived) WHERE id = 5
		SQL
	ends($origin, 'success', 'progress');
	$origin->sql('INSERT INTO sync_owner_reads SELECT connection_id, hubspot_contact_id FROM contacts LIMIT 3');

	# More deals missing than are believed to be gone, in a table of our own.
	$origin->sql(q{SELECT * FROM map_hubspot_sync('deals', 'app.sales', '{deal_no}', NULL, 'delete')});
	ends($origin, 'success', 'deals', 'full');
	$sim->hide_every('deals', 2);
	$runs{absence} = ends($origin, 'partial', 'deals', 'full');

	$sim->fault(path_regex => '/contacts\?.*after=', nth => 3, action => { kind => 'status', status => 403 });
	$runs{failed} = ends($origin, 'failed', 'contacts', 'full');
	$sim->clear_faults;

	$sim->fault(path => '/contacts/search', times => 0, action => 'hang');
	$sim->clear_journal;
	$runs{running} = $origin->trigger('contacts', 'incremental');
	wait_until('the run waits for an answer', sub { scalar $sim->requests(path => qr{/contacts/search$}) });
	$sim->clear_faults;
	# Nothing tells how a request leaves no worker, so this one is made by hand.
	$runs{pending} = $origin->sql(<<~'SQL');
		INSERT INTO sync_runs SELECT r.* FROM sync_runs o, jsonb_populate_record(o, jsonb_build_object(
				'id', gen_random_uuid(), 'sync_type', 'companies', 'status', 'pending', 'mode', 'auto',
				'created_at', clock_timestamp() - interval '1 minute',
				'updated_at', clock_timestamp() - interval '31 seconds',
				'started_at', NULL, 'completed_at', NULL, 'error_details', NULL, 'checkpoint', NULL, 'worker_pid', NULL)) r
		WHERE o.sync_type = 'companies' ORDER BY o.created_at DESC LIMIT 1 RETURNING id
		SQL
	return \%runs;
}

# A new database that a dump was restored into.
sub restored
{
	my ($name, $schema, @dumps) = @_;
	$server->sql(qq{CREATE DATABASE "$name"; ALTER DATABASE "$name" SET search_path = "$schema", public});
	my $copy = $server->in($name);
	foreach my $dump (@dumps)
	{
		my ($file, @options) = @$dump;
		is(restore_dump($copy, $file, @options), '', "$name: restored without a word");
	}
	return $copy;
}

# All rows of the original's tables by their names.
sub contents
{
	my ($origin) = @_;
	return map { $_ => table_text($origin, $_) } dumped_tables($origin);
}

sub same_contents
{
	my ($copy, %wanted) = @_;
	is_deeply([ sort(dumped_tables($copy)) ], [ sort keys %wanted ], 'the tables are the same');
	same_table($copy, $_, $wanted{$_}) foreach sort keys %wanted;
	return;
}

# Untouched shipped rows are those of a new installation, and the changed ones
# are those that somebody changed.
sub shipped_rows
{
	my ($copy) = @_;
	my %changed = (
		sync_connections => q{name <> 'default'},
		sync_types => q{sync_type NOT IN ('contacts', 'deals', 'owners')},
		sync_fields => q{(sync_type, column_name) NOT IN (('contacts', 'phone'), ('contacts', 'status'),
			('contacts', 'lifecycle_stage')) AND sync_type NOT IN ('deals', 'owners')});
	foreach my $table (sort keys %changed)
	{
		same_table($copy, "(SELECT * FROM $table WHERE shipped)",
			table_text($fresh, "(SELECT * FROM $table WHERE $changed{$table})"),
			"shipped rows of $table are those of a new installation");
	}
	is($copy->sql(q{SELECT string_agg(sync_type, ' ' ORDER BY sync_type) FROM sync_types}), 'companies contacts deals progress',
		'the type that was deleted stays away');
	is( $copy->sql(q{SELECT string_agg(column_name, ' ' ORDER BY column_name) FROM sync_fields
			WHERE sync_type = 'contacts' AND NOT shipped}), 'lifecycle_stage phone', 'changed fields are no shipped ones');
	is($copy->sql(q{SELECT count(*) FROM sync_fields WHERE sync_type = 'contacts' AND column_name = 'status'}),
		0, '... and the one that was deleted stays away');
	is($copy->sql(q{SELECT DISTINCT configured_by FROM sync_fields WHERE sync_type = 'companies'}), 'app_owner',
		'who configured a field is still known');
	is($copy->sql(q{SELECT configured_by FROM sync_types WHERE sync_type = 'companies'}), 'app_owner',
		'... and a type');
	return;
}

sub reads_interrupted
{
	my ($copy, $runs, $table) = @_;
	foreach my $which (qw(running pending))
	{
		is( $copy->sql("SELECT status, error_details ->> 'reason' FROM $table WHERE id = '$runs->{$which}'"),
			'failed|interrupted', "the run that was $which reads as interrupted in $table");
	}
	return;
}

# Everything about a copy that nobody has adopted yet.
sub check_copy
{
	my ($copy, $runs, $wanted, $logs) = @_;
	same_contents($copy, %$wanted);
	shipped_rows($copy);
	reads_interrupted($copy, $runs, 'sync_logs');
	same_table($copy, "(SELECT * FROM sync_logs WHERE id NOT IN ('$runs->{running}', '$runs->{pending}'))",
		$logs, 'all other runs read as they did');
	is($copy->sql('SELECT count(*) FROM contacts', user => 'reader') > 0, 1, 'who was granted something has it');
	like($copy->sql_error('SELECT * FROM deals', user => 'reader'), qr/ERROR:  42501/, '... and nothing else');
	like($copy->sql_error(q{SELECT trigger_hubspot_sync('contacts')}), qr/ERROR:  55000: this database is a copy/,
		'no run is accepted');
	return;
}

# The original's log without the runs that are not over.
sub logs
{
	my ($origin, $runs) = @_;
	return table_text($origin,
		"(SELECT * FROM sync_logs WHERE id NOT IN ('$runs->{running}', '$runs->{pending}'))");
}

# Adopts a copy and lets it go on where the original stood.
sub adopt_and_go_on
{
	my ($copy, $runs) = @_;
	$copy->sql('SELECT adopt_hubspot_sync()');
	reads_interrupted($copy, $runs, 'sync_runs');
	is($copy->sql(q{SELECT count(*) FROM sync_runs WHERE status IN ('pending', 'running')}), 0,
		'... and no run is left open');

	my $failed = $copy->log($runs->{failed});
	$sim->clear_journal;
	my $log = $copy->log(ends($copy, 'success', 'contacts', 'full'));
	is($log->{continues}, $runs->{failed}, 'the failed run is continued');
	my ($first) = $sim->requests(path => qr{/contacts$}, method => 'GET');
	is($first->{query}{after}, $failed->{checkpoint}{after}, '... at its checkpoint');
	$log = $copy->log(ends($copy, 'success', 'contacts', 'incremental'));
	is($log->{records_processed} < CONTACTS / 2, 1, 'an incremental run begins where the last one ended');
	$copy->load_objects('contacts');
	is( $copy->sql(<<~'SQL'), 0, "the contacts are HubSpot's");
		SELECT count(*) FROM contacts c FULL JOIN sim_contacts s ON s.id = c.hubspot_contact_id
		WHERE (s.archived, s.record #>> '{properties,email}', s.record #>> '{properties,firstname}')
			IS DISTINCT FROM (c.archived, c.email, c.first_name) AND c.archived_reason IS DISTINCT FROM 'gone'
			AND c.merged_into IS NULL
		SQL
	ends($copy, 'partial', 'companies', 'full');
	$sim->clear_journal;
	is($copy->log(ends($copy, 'success', 'progress'))->{records_unchanged}, 5, 'what was pushed is still known');
	is(scalar $sim->requests, 0, '... and not sent again');
	is(accepted_changes($copy), 1, '... but for one student who has changed');
	is($copy->sql(qq{SELECT accept_hubspot_absence('$runs->{absence}') > 100}), 't', 'refused absences can be accepted');
	ends($copy, 'success', 'deals', 'full');
	is($copy->sql('SELECT count(*) FROM app.sales'), DEALS / 2, '... and are carried out');
	like($copy->sql_error(q{SELECT trigger_hubspot_sync('owners')}), qr/ERROR:  42704/, 'the deleted type is unknown');
	return;
}

# How many students are sent after one has got more points.
sub accepted_changes
{
	my ($copy) = @_;
	$copy->sql('UPDATE app.user_xp SET total_xp = total_xp + 1 WHERE user_id = 3');
	return $copy->log(ends($copy, 'success', 'progress'))->{records_changed};
}

sub let_it_go
{
	my ($origin, $runs) = @_;
	$origin->sql("SELECT cancel_hubspot_sync('$runs->{running}')");
	is($origin->wait_for($runs->{running})->{status}, 'cancelled', 'the run in the original lived all the time');
	return;
}

subtest 'a database' => sub {
	my ($origin, $runs);
	subtest 'what is dumped' => sub {
		($origin, $runs) = make_original('origin', 'public');
		# A table of the extension that is missing here was not thought of.
		foreach my $table (dumped_tables($origin))
		{
			isnt($origin->sql("SELECT count(*) FROM $table"), 0, "there is something in $table");
		}
		my %open = map { $_ => $origin->sql("SELECT count(*) FROM sync_errors WHERE resolved_at IS $_") }
		  ('NULL', 'NOT NULL');
		is($open{$_} > 0, 1, "... with resolved_at $_ in sync_errors") foreach sort keys %open;
		isnt($origin->log($runs->{failed})->{checkpoint}, undef, 'a failed run has a checkpoint');
		is($origin->log($runs->{running})->{status}, 'running', 'a run is under way');
	};
	my %wanted = contents($origin);
	my $logs = logs($origin, $runs);

	subtest 'plain' => sub {
		my $file = dump_database($origin);
		unlike(slurp_file($file), qr/\Q${\TOKEN}\E/, 'the token is not in it');
		unlike(slurp_file($file), qr/access_token_file/, '... nor where it is');
		my $copy = restored('plain', 'public', [$file]);
		check_copy($copy, $runs, \%wanted, $logs);
		adopt_and_go_on($copy, $runs);
	};
	subtest 'custom format, by several processes, and once more from there' => sub {
		my @options = ('--format=custom');
		my $copy = restored('custom', 'public', [ dump_database($origin, @options), '--jobs=3' ]);
		check_copy($copy, $runs, \%wanted, $logs);
		$copy = restored('custom_again', 'public', [ dump_database($copy, @options) ]);
		check_copy($copy, $runs, \%wanted, $logs);
	};
	subtest 'the tables in the opposite order' => sub {
		my $file = dump_database($origin, '--format=custom');
		my $copy = restored('opposite', 'public', [ $file, last_table_first($server, $file) ]);
		check_copy($copy, $runs, \%wanted, $logs);
	};
	subtest 'schema first, data later' => sub {
		my $copy = restored('two_steps', 'public', [ dump_database($origin, '--schema-only') ],
			[ dump_database($origin, '--data-only') ]);
		check_copy($copy, $runs, \%wanted, $logs);
	};
	subtest 'INSERTs, as a replica applies them' => sub {
		my @dump = (dump_database($origin, '--inserts', '--rows-per-insert=100'));
		my $copy = do
		{
			local $ENV{PGOPTIONS} = '-c session_replication_role=replica';
			restored('inserts', 'public', \@dump);
		};
		check_copy($copy, $runs, \%wanted, $logs);
	};
	let_it_go($origin, $runs);
};

subtest 'a schema with an odd name' => sub {
	my ($origin, $runs);
	subtest 'what is dumped' => sub { ($origin, $runs) = make_original('odd', 'My Schema'); };
	my %wanted = contents($origin);
	my $logs = logs($origin, $runs);
	my $copy = restored('odd_copy', 'My Schema', [ dump_database($origin, '--format=custom') ]);
	check_copy($copy, $runs, \%wanted, $logs);
	let_it_go($origin, $runs);
	adopt_and_go_on($copy, $runs);
};

subtest 'the extension dropped, created and filled again' => sub {
	my $database = $server->in('odd_copy');
	my %wanted = contents($database);
	my $file = dump_database($database, '--data-only', '--exclude-schema=app', '--exclude-table=*.sim_*');
	$database->sql('DROP EXTENSION hubspot_sync; CREATE EXTENSION hubspot_sync SCHEMA "My Schema"');
	is(restore_dump($database, $file), '', 'restored without a word');
	same_contents($database, %wanted);
	shipped_rows($database);
	$database->sql('GRANT SELECT, INSERT, UPDATE, DELETE ON sync_types, sync_fields TO app_owner');
	my $log = $database->log(ends($database, 'success', 'contacts', 'auto'));
	is($log->{mode}, 'incremental', 'in the same database runs go on without being adopted');
	ends($database, 'partial', 'companies', 'full');

	%wanted = contents($database);
	is(restore_dump($database, dump_database($database, '--clean', '--if-exists')), '',
		'a dump that drops everything first');
	same_contents($database, %wanted);
	ends($database, 'success', 'contacts', 'auto');
	ends($database, 'partial', 'companies', 'full');
};

# Changes of a configuration that a dump has to carry over, each by itself.
my %changes = (
	'a field that got another column' => <<~'SQL',
		CREATE TABLE people (id text PRIMARY KEY, mail text);
		UPDATE sync_types SET target_schema = 'public', target_table = 'people', key_columns = '{id}',
			delete_policy = 'ignore' WHERE sync_type = 'contacts';
		DELETE FROM sync_fields WHERE sync_type = 'contacts' AND column_name <> 'email';
		UPDATE sync_fields SET column_name = 'mail' WHERE sync_type = 'contacts' AND column_name = 'email'
		SQL
	'a deleted type made again with fewer fields' => <<~'SQL',
		DELETE FROM sync_types WHERE sync_type = 'owners';
		INSERT INTO sync_types (sync_type, source, object_type, target_table, key_columns)
			VALUES ('owners', 'owners', 'owners', 'staff', '{connection_id,id}');
		INSERT INTO sync_fields (sync_type, column_name, transform) VALUES ('owners', 'name', 'owner_name')
		SQL
	'a type and its fields renamed' => <<~'SQL',
		INSERT INTO sync_types (sync_type, source, object_type, target_table, key_columns)
			VALUES ('people', 'owners', 'owners', 'staff', '{connection_id,id}');
		UPDATE sync_fields SET sync_type = 'people' WHERE sync_type = 'owners';
		DELETE FROM sync_types WHERE sync_type = 'owners'
		SQL
	'fields that exchanged their columns' => <<~'SQL',
		UPDATE sync_fields SET column_name = 'x' WHERE sync_type = 'contacts' AND column_name = 'email';
		UPDATE sync_fields SET column_name = 'email' WHERE sync_type = 'contacts' AND column_name = 'phone';
		UPDATE sync_fields SET column_name = 'phone' WHERE sync_type = 'contacts' AND column_name = 'x'
		SQL
	'a deleted type' => q{DELETE FROM sync_types WHERE sync_type = 'deals'},
	'all fields of a type deleted' => q{DELETE FROM sync_fields WHERE sync_type = 'deals'},
	'columns that somebody mapped a shipped type to' => <<~'SQL',
		CREATE TABLE people (id text PRIMARY KEY, mail text, first_name text);
		SELECT * FROM map_hubspot_sync('contacts', 'people', '{id}', '{"email": "mail"}')
		SQL
);
my $number = 0;
foreach my $what (sort keys %changes)
{
	subtest $what => sub {
		$number++;
		$server->sql("CREATE DATABASE change_$number");
		my $origin = $server->in("change_$number");
		$origin->sql('CREATE EXTENSION hubspot_sync');
		$origin->sql($changes{$what});
		my %wanted = contents($origin);
		my $copy = restored("changed_$number", 'public', [ dump_database($origin) ]);
		same_table($copy, $_, $wanted{$_}) foreach grep { /sync_(types|fields|connections|removals)$/ } sort keys %wanted;
	};
}

done_testing();
