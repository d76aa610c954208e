package HubspotSync::Catalog;

=pod

=head1 NAME

HubspotSync::Catalog - what the extension consists of, object by object

=head1 SYNOPSIS

  use HubspotSync::Catalog qw(catalog catalog_differences);
  my %fresh = catalog($server->in('fresh'));
  is_deeply([ catalog_differences({ catalog($server->in('upgraded')) }, \%fresh) ], []);

=head1 DESCRIPTION

The server is a HubspotSync::Server, told by in() which database is meant. Two
databases compare well if the extension is in schemas of the same name.

Every member of the extension, and everything that belongs to one, is in it
with all that two installations of one version have to agree on: definition,
owner, privileges now and at installation, comment, and whether its rows are
dumped. Columns count by their order, not by the number that a dropped one
leaves a gap in.

=cut

use strict;
use warnings;

use Exporter 'import';
use JSON::PP;

our @EXPORT_OK = qw(catalog shipped_rows catalog_differences);

# What the queries below are made from. A table's row type and array types are
# members on some servers only.
my $members = <<~'SQL';
	WITH extension AS (
		SELECT * FROM pg_extension WHERE extname = 'hubspot_sync'
	), member AS (
		SELECT d.classid, d.objid, i.type AS kind, i.identity AS name
		FROM extension e
		JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
		CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) i
		WHERE NOT EXISTS (
			SELECT FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
			WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid AND (t.typelem <> 0 OR c.relkind <> 'c'))
	), relation AS (
		SELECT m.name AS relation, c.* FROM member m JOIN pg_class c ON c.oid = m.objid
		WHERE m.classid = 'pg_class'::regclass
	)
	SQL

# Privileges as sorted text, from an expression.
sub _privileges
{
	my ($acl) = @_;
	return "array(SELECT format('%s=%s%s', x.grantee::regrole, x.privilege_type,
			CASE WHEN x.is_grantable THEN '*' END) FROM aclexplode($acl) x ORDER BY 1) AS privileges";
}

my ($table_privileges, $column_privileges, $routine_privileges, $type_privileges, $initial_privileges) = map { _privileges($_) }
  q{coalesce(relacl, acldefault('r', relowner))}, 'attacl', q{coalesce(proacl, acldefault('f', proowner))},
  q{coalesce(typacl, acldefault('T', typowner))}, 'initprivs';

# Kinds of objects, and what each of them is: its name and its properties.
my %queries = (
	'extension' => q{
		SELECT extname AS name, extversion, extrelocatable, extnamespace::regnamespace, extowner::regrole,
			obj_description(oid, 'pg_extension') AS comment
		FROM extension},

	'member' => q{
		SELECT kind || ' ' || name AS name, obj_description(objid, classid::regclass::name) AS comment
		FROM member},

	'relation' => qq{
		SELECT relation AS name, relkind, relpersistence, relowner::regrole, reloptions, relrowsecurity, relforcerowsecurity,
			relreplident, reltablespace, (SELECT amname FROM pg_am WHERE oid = relam), $table_privileges
		FROM relation},

	# 15 keeps a number of its own among the options.
	'column' => qq{
		SELECT relation || '.' || attname AS name, row_number() OVER (PARTITION BY attrelid ORDER BY attnum) AS place,
			format_type(atttypid, atttypmod) AS type, attnotnull, pg_get_expr(adbin, adrelid) AS "default", attidentity,
			attgenerated, attcollation::regcollation, attstorage, attcompression,
			array(SELECT x FROM unnest(attoptions) x WHERE x !~ '^pg_attver=' ORDER BY 1) AS options, $column_privileges,
			col_description(attrelid, attnum) AS comment
		FROM relation r JOIN pg_attribute ON attrelid = r.oid AND attnum > 0 AND NOT attisdropped
		LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum},

	'constraint' => q{
		SELECT relation || ' ' || conname AS name, pg_get_constraintdef(c.oid) AS definition, convalidated,
			obj_description(c.oid, 'pg_constraint') AS comment
		FROM relation r JOIN pg_constraint c ON conrelid = r.oid},

	'index' => q{
		SELECT relation || ' ' || i.relname AS name, pg_get_indexdef(i.oid) AS definition, indisvalid, indisreplident,
			indisclustered, i.relowner::regrole, obj_description(i.oid, 'pg_class') AS comment
		FROM relation r JOIN pg_index ON indrelid = r.oid JOIN pg_class i ON i.oid = indexrelid},

	'view' => q{
		SELECT relation AS name, pg_get_viewdef(oid) AS definition FROM relation WHERE relkind IN ('v', 'm')},

	'sequence' => q{
		SELECT relation AS name, seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle
		FROM relation r JOIN pg_sequence ON seqrelid = r.oid},

	'trigger' => q{
		SELECT relation || ' ' || tgname AS name, pg_get_triggerdef(t.oid) AS definition, tgenabled,
			obj_description(t.oid, 'pg_trigger') AS comment
		FROM relation r JOIN pg_trigger t ON tgrelid = r.oid WHERE NOT tgisinternal},

	'policy' => q{
		SELECT relation || ' ' || polname AS name, polcmd, polpermissive, polroles::regrole[],
			pg_get_expr(polqual, polrelid) AS using, pg_get_expr(polwithcheck, polrelid) AS "check",
			obj_description(p.oid, 'pg_policy') AS comment
		FROM relation r JOIN pg_policy p ON polrelid = r.oid},

	'rule' => q{
		SELECT relation || ' ' || rulename AS name, pg_get_ruledef(w.oid) AS definition, ev_enabled,
			obj_description(w.oid, 'pg_rewrite') AS comment
		FROM relation r JOIN pg_rewrite w ON ev_class = r.oid WHERE rulename <> '_RETURN'},

	'statistics' => q{
		SELECT relation || ' ' || stxname AS name, pg_get_statisticsobjdef(s.oid) AS definition
		FROM relation r JOIN pg_statistic_ext s ON stxrelid = r.oid},

	# Body, library, arguments, volatility, settings and whose rights are all in the definition.
	'routine' => qq{
		SELECT name, pg_get_functiondef(oid) AS definition, proowner::regrole, $routine_privileges
		FROM member JOIN pg_proc ON oid = objid AND prokind <> 'a' WHERE classid = 'pg_proc'::regclass},

	'type' => qq{
		SELECT name, typtype, typowner::regrole, typnotnull, typdefault, format_type(typbasetype, typtypmod) AS base,
			array(SELECT enumlabel FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder) AS labels,
			array(SELECT pg_get_constraintdef(c.oid) FROM pg_constraint c WHERE contypid = t.oid ORDER BY conname) AS checks,
			$type_privileges
		FROM member JOIN pg_type t ON t.oid = objid WHERE classid = 'pg_type'::regclass},

	'initial privileges' => qq{
		SELECT o.type || ' ' || o.identity AS name, privtype, $initial_privileges
		FROM member m JOIN pg_init_privs ON classoid = m.classid AND objoid = m.objid
		CROSS JOIN LATERAL pg_identify_object(classoid, objoid, objsubid) o},

	'dumped rows' => q{
		SELECT table_oid::regclass AS name, condition
		FROM extension CROSS JOIN LATERAL unnest(extconfig, extcondition) x (table_oid, condition)},
);

my $json = JSON::PP->new->canonical->allow_nonref;

=pod

=head1 FUNCTIONS

=over

=item catalog($server, %options)

A hash: "KIND NAME" of every object => a hash of its properties as text. Options
are those of sql_json().

=item shipped_rows($server, %options)

The same for the rows that came with the extension and that nobody has touched.

=item catalog_differences(\%got, \%wanted)

What is missing, too much or otherwise, sorted; empty if both are the same.

=back

=cut

sub catalog
{
	my ($server, %options) = @_;
	my $sql = join ' UNION ALL ', map {
		"SELECT '$_' AS kind, x.name::text, to_jsonb(x) - 'name' AS properties FROM ($queries{$_}) x"
	} sort keys %queries;
	# so that names are qualified, whatever the database's own setting
	local $ENV{PGOPTIONS} = '-c search_path=pg_catalog';
	return map { ("$_->{kind} $_->{name}" => _texts($_->{properties})) } $server->sql_json($members . $sql, %options);
}

sub shipped_rows
{
	my ($server, %options) = @_;
	my @tables = map { /^column (.*)\.shipped$/ } keys %{ { catalog($server, %options) } };
	my $sql = join ' UNION ALL ', map { "SELECT '$_' AS name, to_jsonb(t) AS row FROM $_ t WHERE shipped" } @tables;
	return map { ("row of $_->{name} " . $json->encode($_->{row}) => {}) } $server->sql_json($sql, %options);
}

sub _texts
{
	my ($properties) = @_;
	return { map { $_ => $json->encode($properties->{$_}) } keys %$properties };
}

sub catalog_differences
{
	my ($got, $wanted) = @_;
	return map {
		my ($is, $should, $object) = ($got->{$_}, $wanted->{$_}, $_);
		!$is ? "$object is missing"
		  : !$should ? "$object is too much"
		  : map { "$object: $_ is $is->{$_}, not $should->{$_}" } grep { $is->{$_} ne $should->{$_} } sort keys %$should;
	} sort keys %{ { %$got, %$wanted } };
}

1;
