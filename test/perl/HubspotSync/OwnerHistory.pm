package HubspotSync::OwnerHistory;

=pod

=head1 NAME

HubspotSync::OwnerHistory - contact_owner_history beside the truth

=head1 SYNOPSIS

  use HubspotSync::OwnerHistory qw(history_differences history_overlaps);
  is(history_differences($server, $since_ms), '', 'the history is the true one');
  is(history_overlaps($server), 0, '... without overlaps');

=head1 DESCRIPTION

Compares what a server has noted about contacts' owners with what its
simulator knows.

=cut

use strict;
use warnings;

use Carp;
use Exporter 'import';

our @EXPORT_OK = qw(history_differences history_overlaps);

=pod

=head1 FUNCTIONS

=over

=item history_differences($server, $since_ms, @ids)

The contacts, of all or of some, whose ownerships are not the true ones at
every instant from $since_ms on, each with what is noted and what is true; ''
if there is none. Contacts that HubSpot does not show any more, or hides, are
left out.

=cut

sub history_differences
{
	my ($server, $since_ms, @ids) = @_;
	_load($server);
	my $chosen = @ids ? 'id IN (' . join(', ', map { "'$_'" } @ids) . ')' : 'true';
	return $server->sql(<<~"SQL");
		WITH shown AS (
			SELECT h.id FROM sim_owner_history h WHERE NOT h.hidden AND $chosen
		), noted AS (
			SELECT h.hubspot_contact_id AS id, h.owner_id AS owner,
				greatest(h.valid_from, to_timestamp($since_ms / 1000.0)) AS since, h.valid_to AS until
			FROM contact_owner_history h JOIN shown ON shown.id = h.hubspot_contact_id
			WHERE h.valid_to IS NULL OR h.valid_to > to_timestamp($since_ms / 1000.0)
		), entry AS (
			SELECT h.id, e.value ->> 'value' AS owner,
				to_timestamp((e.value ->> 'timestamp')::bigint / 1000.0) AS since,
				lead(to_timestamp((e.value ->> 'timestamp')::bigint / 1000.0)) OVER (PARTITION BY h.id ORDER BY e.ordinality) AS until
			FROM sim_owner_history h JOIN shown USING (id)
			CROSS JOIN jsonb_array_elements(h.record -> 'history') WITH ORDINALITY e
		), truth AS (
			SELECT id, owner, greatest(since, to_timestamp($since_ms / 1000.0)) AS since, until
			FROM entry
			WHERE coalesce(owner, '') <> '' AND (until IS NULL OR until > to_timestamp($since_ms / 1000.0))
		), difference AS (
			SELECT coalesce(n.id, t.id) AS id
			FROM noted n FULL JOIN truth t
				ON (n.id, n.owner, n.since) = (t.id, t.owner, t.since) AND n.until IS NOT DISTINCT FROM t.until
			WHERE n.id IS NULL OR t.id IS NULL
		)
		SELECT string_agg(format(e'%s\\n  noted %s\\n  true  %s', d.id,
			(SELECT string_agg(concat_ws(' ', owner, since, until), ', ' ORDER BY since) FROM noted WHERE noted.id = d.id),
			(SELECT string_agg(concat_ws(' ', owner, since, until), ', ' ORDER BY since) FROM truth WHERE truth.id = d.id)), e'\\n')
		FROM (SELECT DISTINCT id FROM difference LIMIT 10) d
		SQL
}

# The true histories in a table, with whether the contact is hidden.
sub _load
{
	my ($server) = @_;
	my $simulator = $server->simulator;
	my $file = $server->node->basedir . '/sim_owner_history.jsonl';
	open my $out, '>', $file or croak "cannot write $file: $!";
	print $out $simulator->history_text('contacts', 'hubspot_owner_id');
	close $out or croak "cannot write $file: $!";
	my $hidden = join ', ', map { "'$_'" } '', $simulator->hidden('contacts');
	$server->sql(<<~"SQL");
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS sim_owner_history;
		CREATE TABLE sim_owner_history (
			id text GENERATED ALWAYS AS (record ->> 'id') STORED PRIMARY KEY,
			record jsonb,
			hidden boolean NOT NULL DEFAULT false);
		COPY sim_owner_history (record) FROM '$file' (FORMAT csv, QUOTE e'\\x01', DELIMITER e'\\x02');
		UPDATE sim_owner_history SET hidden = true WHERE id IN ($hidden);
		SQL
	unlink $file;
	return;
}

=pod

=item history_overlaps($server)

How many pairs of rows of one contact overlap.

=back

=cut

sub history_overlaps
{
	my ($server) = @_;
	return $server->sql(<<~'SQL');
		SELECT count(*)
		FROM contact_owner_history a JOIN contact_owner_history b USING (connection_id, hubspot_contact_id)
		WHERE a.ctid <> b.ctid AND a.valid_from <= b.valid_from
			AND (a.valid_to IS NULL OR a.valid_to > b.valid_from)
		SQL
}

1;
