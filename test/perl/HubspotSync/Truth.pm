package HubspotSync::Truth;

=pod

=head1 NAME

HubspotSync::Truth - everything that a scenario has left, beside the truth

=head1 SYNOPSIS

  use HubspotSync::Truth qw(truth_differences);
  is(join("\n", truth_differences($scenario)), '', 'all is as it should be');

=head1 DESCRIPTION

The truth of records is what the simulator knows, with all properties. The truth
of contacts' progress is what preview_student_progress() says, which t/090
compares with an oracle, and for some of the properties what plain SQL computes
from the school's tables; other contacts have no progress, and nobody but the
scenario has created any. A difference is a line that names the record and the
columns.

=cut

use strict;
use warnings;

use Encode qw(encode);
use Exporter 'import';
use HubspotSync::OwnerHistory qw(history_differences history_overlaps);
use HubspotSync::Wait qw(wait_until);
use JSON::PP;

use constant LOCK_CLASS => 18515;    # of src/run.c

our @EXPORT_OK = qw(truth_differences row_differences);

=pod

=head1 FUNCTIONS

=over

=item truth_differences($scenario)

A list of lines, empty if everything is as it should be: rows with all their
columns, who owned a contact when, contacts' progress, what is remembered of
it, that HubSpot was asked to change nothing else, and that nothing is left
open, locked or connected.

=item row_differences($scenario)

The same of the rows alone.

=back

=cut

sub row_differences
{
	my ($scenario) = @_;
	return split /\n/, $scenario->server->sql(_load($scenario) . _rows());
}

sub truth_differences
{
	my ($scenario) = @_;
	my $server = $scenario->server;
	my @found = split /\n/, $server->sql(_load($scenario) . _rows() . _progress() . _surplus($scenario) . _leftovers());
	push @found, map { "history: $_" } split /\n/, history_differences($server, $scenario->owners_known_ms);
	push @found, 'history: rows overlap' if history_overlaps($server);
	push @found, _trespasses($scenario);
	push @found, _still_busy($scenario);
	return @found;
}

# The simulator's records in a temporary table, and what has become of those
# that it does not have any more.
sub _load
{
	my ($scenario) = @_;
	my $simulator = $scenario->simulator;
	my $file = $scenario->server->node->basedir . '/truth.jsonl';
	open my $out, '>', $file or die "cannot write $file: $!";
	foreach my $type (qw(contacts deals owners))
	{
		print $out map { "$type\t$_\n" } split /\n/, $simulator->objects_text($type);
	}
	print $out 'fates', "\t", JSON::PP->new->utf8->encode($scenario->fates), "\n";
	close $out or die "cannot write $file: $!";
	return <<~"SQL";
		SET client_min_messages = warning;
		CREATE TEMP TABLE truth (type text, record jsonb, id text GENERATED ALWAYS AS (record ->> 'id') STORED);
		COPY truth (type, record) FROM PROGRAM 'cat $file' (FORMAT csv, QUOTE e'\\x01', DELIMITER e'\\t');
		CREATE TEMP VIEW fate AS
			SELECT f.key AS id, f.value FROM truth, jsonb_each(record) f WHERE type = 'fates';
		ANALYZE truth;
		SQL
}

# Each table's rows as they are and as they should be, both as JSON.
sub _rows
{
	return <<~'SQL';
		CREATE TEMP VIEW got AS
			SELECT 'contacts' AS type, hubspot_contact_id AS id,
				to_jsonb(c) - '{connection_id,hubspot_contact_id,synced_at,updated_at}'::text[] AS columns,
				c.synced_at, c.updated_at
			FROM contacts c
			UNION ALL
			SELECT 'deals', hubspot_deal_id,
				to_jsonb(d) - '{connection_id,hubspot_deal_id,synced_at,updated_at}'::text[], d.synced_at, d.updated_at
			FROM deals d
			UNION ALL
			SELECT 'owners', id, to_jsonb(s) - '{connection_id,id,synced_at}'::text[], s.synced_at, s.synced_at
			FROM staff s;

		-- The same of contacts that are no more: as they were, with the reason.
		CREATE TEMP VIEW wanted AS
			WITH record AS (
				SELECT type, id, record AS r, record -> 'properties' AS p,
					(record ->> 'archived')::boolean AS archived,
					CASE WHEN (record ->> 'archived')::boolean THEN 'archived' END AS reason,
					NULL AS merged_into
				FROM truth WHERE type <> 'fates'
				UNION ALL
				SELECT 'contacts', id, value -> 'record', value #> '{record,properties}', true,
					value ->> 'reason', value ->> 'merged_into'
				FROM fate WHERE (value ->> 'known')::boolean OR id IN (SELECT hubspot_contact_id FROM contacts)
			)
			SELECT type, id, jsonb_build_object(
					'archived', archived, 'archived_reason', reason, 'merged_into', merged_into,
					'archived_at', (r ->> 'archivedAt')::timestamptz, 'hubspot_updated_at', (r ->> 'updatedAt')::timestamptz)
				|| CASE type
				WHEN 'contacts' THEN jsonb_build_object(
					'email', p -> 'email', 'first_name', p -> 'firstname', 'last_name', p -> 'lastname',
					'phone', p -> 'phone', 'owner_id', p -> 'hubspot_owner_id', 'lifecycle_stage', p -> 'lifecyclestage',
					'status', p -> 'hs_lead_status', 'created_at', (p ->> 'createdate')::timestamptz,
					'properties', (SELECT jsonb_object_agg(k, p -> k) FROM unnest('{createdate,email,firstname,hs_lead_status,
						hs_merged_object_ids,hs_object_id,hubspot_owner_id,lastmodifieddate,lastname,lifecyclestage,phone}'::text[]) k))
				WHEN 'deals' THEN jsonb_build_object(
					'deal_name', p -> 'dealname', 'deal_value', nullif(p ->> 'amount', '')::numeric, 'stage', p -> 'dealstage',
					'status', CASE WHEN p ->> 'hs_is_closed' = 'false' THEN 'open'
						WHEN p ->> 'hs_is_closed_won' = 'true' THEN 'won' ELSE 'lost' END,
					'close_date', nullif(p ->> 'closedate', '')::timestamptz, 'closer_id', p -> 'hubspot_owner_id',
					'pipeline', p -> 'pipeline', 'created_at', (p ->> 'createdate')::timestamptz,
					'properties', jsonb_strip_nulls(p))
				ELSE jsonb_build_object(
					'name', coalesce(nullif(concat_ws(' ', nullif(r ->> 'firstName', ''), nullif(r ->> 'lastName', '')), ''),
						r ->> 'email'),
					'email', r -> 'email', 'role', 'coach', 'created_at', (r ->> 'createdAt')::timestamptz, 'properties', r)
				END AS columns
			FROM record;

		-- The first few of each type.
		SELECT line FROM (
			SELECT format('%s %s: %s', type, id, CASE
					WHEN g.id IS NULL THEN 'no row'
					WHEN w.id IS NULL THEN 'a row that should not be there'
					WHEN g.synced_at IS NULL OR g.updated_at IS NULL THEN 'not marked as ours'
					ELSE (SELECT string_agg(format('%s is %s, not %s', k.key, g.columns -> k.key, k.value), '; ')
						FROM jsonb_each(w.columns) k WHERE g.columns -> k.key IS DISTINCT FROM k.value) END) AS line,
				row_number() OVER (PARTITION BY type ORDER BY id) AS n
			FROM got g FULL JOIN (
				SELECT type, id, CASE WHEN columns ->> 'archived_reason' IN ('merged', 'gone')
					THEN columns - 'archived_at' ELSE columns END AS columns
				FROM wanted) w USING (type, id)
			WHERE g.id IS NULL OR w.id IS NULL OR g.synced_at IS NULL OR g.updated_at IS NULL
				OR EXISTS (SELECT FROM jsonb_each(w.columns) k WHERE g.columns -> k.key IS DISTINCT FROM k.value)
				OR (g.columns ->> 'archived')::boolean <> (g.columns ->> 'archived_at' IS NOT NULL) AND type <> 'owners') x
		WHERE n <= 8 ORDER BY line;
		SQL
}

# Contacts beside what SQL says of their students, some of it computed in
# another way than the push does, and what is remembered of them.
sub _progress
{
	return <<~'SQL';
		CREATE TEMP TABLE pupil AS
			SELECT p.*, c.id AS contact, c.record -> 'properties' AS has
			FROM preview_student_progress() p
			LEFT JOIN truth c ON c.type = 'contacts' AND NOT (c.record ->> 'archived')::boolean
				AND lower(p.email) = ANY (string_to_array(lower(concat_ws(';',
					c.record #>> '{properties,email}', c.record #>> '{properties,hs_additional_emails}')), ';'));
		SELECT format('student %s: %s is %s, not %s', user_id, d.name, has ->> d.name, properties ->> d.name)
		FROM pupil CROSS JOIN progress_properties d
		WHERE coalesce(has ->> d.name, '') <> coalesce(properties ->> d.name, '')
		ORDER BY 1 LIMIT 20;
		SELECT format('student %s: %s', user_id, CASE WHEN contact IS NULL THEN 'no contact'
			WHEN changed THEN 'still counts as changed' ELSE problem END)
		FROM pupil WHERE contact IS NULL OR changed OR problem IS NOT NULL;
		SELECT 'students: ' || count(*) || ' of ' || (SELECT count(*) FROM users) FROM pupil
		HAVING count(*) <> (SELECT count(*) FROM users);
		SELECT 'properties: only ' || count(*) FROM progress_properties WHERE problem IS NULL HAVING count(*) <> 20;
		SELECT format('student %s by other means', u.id) FROM users u JOIN pupil p ON p.user_id = u.id
		WHERE (has ->> 'lessons_completed', nullif(has ->> 'total_xp', ''), has ->> 'level_b2_units_completed',
				nullif(has ->> 'study_streak', ''))
			IS DISTINCT FROM (
				(SELECT count(*)::text FROM course_progress WHERE user_id = u.id AND completed),
				(SELECT total_xp::text FROM user_xp WHERE user_id = u.id),
				(SELECT count(*)::text FROM b2_progress WHERE user_id = u.id),
				(SELECT current_streak::text FROM user_streaks WHERE user_id = u.id));
		SELECT format('progress_state of %s: fingerprint %s, contact %s', u.id, s.fingerprint, s.contact_id)
		FROM users u LEFT JOIN progress_state s ON s.user_id = u.id LEFT JOIN pupil p ON p.user_id = u.id
		WHERE s.user_id IS NULL OR s.fingerprint = 0 OR s.contact_id <> p.contact OR s.accepted_at IS NULL
			OR EXISTS (SELECT FROM progress_properties d
				WHERE coalesce(s.properties ->> d.name, '') <> coalesce(p.has ->> d.name, ''));
		SELECT 'progress_state: ' || count(*) || ' rows too many' FROM progress_state
		WHERE user_id NOT IN (SELECT id FROM users) HAVING count(*) > 0;
		SQL
}

# What a push has done to contacts that are none of its business.
sub _surplus
{
	my ($scenario) = @_;
	my $expected = $scenario->expected_contacts;
	return <<~"SQL";
		SELECT format('HubSpot: %s contacts instead of $expected', count(*)) FROM truth WHERE type = 'contacts'
		HAVING count(*) <> $expected;
		SELECT format('contact %s: progress, but no student', id) FROM truth
		WHERE type = 'contacts' AND id NOT IN (SELECT contact FROM pupil WHERE contact IS NOT NULL)
			AND EXISTS (SELECT FROM progress_properties d WHERE record #>> ARRAY['properties', d.name] <> '')
		LIMIT 8;
		SQL
}

# What HubSpot was asked to change other than contacts' progress and the
# definitions for it: the next pull would take that for the truth.
sub _trespasses
{
	my ($scenario) = @_;
	my %own = map { $_ => 1 } 'progresstracking', 'level_progress', split /\n/,
	  $scenario->server->sql('SELECT name FROM progress_properties');
	my %found;
	foreach my $request ($scenario->simulator->journal)
	{
		next if $request->{method} eq 'GET' || $request->{path} =~ m{/(?:search|batch/read)$};
		$found{"HubSpot was asked for $request->{method} $request->{path} of $_"} = 1 foreach grep { !$own{$_} } _names_in($request);
	}
	return sort keys %found;
}

# The properties or the group that a request means to change.
sub _names_in
{
	my ($request) = @_;
	my $body = ref $request->{body} eq 'HASH' ? $request->{body} : {};
	my $what = "$request->{method} $request->{path}" =~ s{/\d{4}-\d\d/contacts}{}r;
	return map { keys %{ $_->{properties} } } @{ $body->{inputs} } if $what eq 'POST /crm/objects/batch/update';
	return $body->{name} if $what =~ m{^POST /crm/properties(?:/groups)?$};
	return $1 if $what =~ m{^PATCH /crm/properties/(\w+)$};
	return 'something else';
}

# What no run may leave.
sub _leftovers
{
	return <<~'SQL';
		SELECT format('sync_errors: %s %s %s', sync_type, record_id, message) FROM sync_errors WHERE resolved_at IS NULL;
		SELECT format('sync_runs: %s is %s', sync_type, status) FROM sync_runs WHERE status IN ('pending', 'running');
		SELECT format('sync_logs: dead run of %s', sync_type) FROM sync_run_states WHERE dead;
		SELECT format('sync_absences: %s of %s', count(*), sync_type) FROM sync_absences GROUP BY sync_type;
		SELECT format('progress_leftovers: contact %s', contact_id) FROM progress_leftovers
		WHERE contact_id IN (SELECT id FROM truth WHERE type = 'contacts');
		SELECT format('sync_owner_reads: %s urgent', count(*)) FROM sync_owner_reads WHERE urgent HAVING count(*) > 0;
		SQL
}

# A worker keeps its lock for a moment after its run has ended. How many
# seconds that may be, if not as many as anything may take.
our $lingering;

sub _still_busy
{
	my ($scenario) = @_;
	my ($workers, $locks, $connections);
	eval {
		wait_until('nothing runs, is locked or connected', sub {
			$workers = $scenario->server->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hubspot_sync'});
			$locks = $scenario->server->sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = " . LOCK_CLASS);
			$connections = $scenario->simulator->state->{connections};
			return $workers + $locks + $connections == 0;
		}, $lingering);
		return 1;
	} or return "$workers workers are there, $locks locks held and $connections connections open";
	return;
}

1;
