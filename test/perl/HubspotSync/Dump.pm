package HubspotSync::Dump;

=head1 NAME

HubspotSync::Dump - dump databases, restore them, and compare their tables

=head1 SYNOPSIS

  use HubspotSync::Dump qw(dump_database restore_dump extension_tables table_text same_table);
  my $file = dump_database($server->in('old'), '--format=custom');
  is(restore_dump($server->in('new'), $file, '--jobs=3'), '', 'no error');
  same_table($server->in('new'), $_, table_text($server->in('old'), $_)) foreach extension_tables($server->in('old'));

=head1 DESCRIPTION

The server is a HubspotSync::Server, told by in() which database is meant.

=cut

use strict;
use warnings;

use Carp;
use Encode qw(decode);
use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Utils qw(append_to_file run_command slurp_file);
use Test::More;

our @EXPORT_OK = qw(dump_database restore_dump last_table_first extension_tables table_text same_table);

my $files = 0;

=head1 FUNCTIONS

=over

=item dump_database($server, @options)

Calls pg_dump with the options and returns the file it has written.

=item restore_dump($server, $file, @options)

Restores a dump, a plain one with psql, any other with pg_restore, stopping at
the first error. Returns what was said about it, '' if all went well.

=item last_table_first($server, $file)

The option that lets pg_restore fill the tables in the opposite order. Several
processes fill them in any.

=cut

sub dump_database
{
	my ($server, @options) = @_;
	my $file = $server->node->basedir . '/dump_' . ++$files;
	my $error = _run($server, 'pg_dump', "--file=$file", @options);
	croak "pg_dump: $error" if $error ne '';
	return $file;
}

sub restore_dump
{
	my ($server, $file, @options) = @_;
	return _run($server, 'pg_restore', '--exit-on-error', @options, $file)
	  if slurp_file($file) =~ /\APGDMP/;
	return _run($server, 'psql', '-X', '-q', '-o', '/dev/null', '-v', 'ON_ERROR_STOP=1', '-f', $file, @options);
}

sub last_table_first
{
	my ($server, $file) = @_;
	my ($list, $error) = run_command([ $server->node->installed_command('pg_restore'), '--list', $file ]);
	croak "pg_restore: $error" if $error ne '';
	my @lines = split /\n/, $list;
	my @data = reverse grep { / TABLE DATA / } @lines;
	append_to_file("$file.list", join '', map { (/ TABLE DATA / ? shift @data : $_) . "\n" } @lines);
	return "--use-list=$file.list";
}

# Runs a program on the server's database.
sub _run
{
	my ($server, $program, @arguments) = @_;
	my $node = $server->node;
	my ($out, $err) = ('', '');
	my @command = ($node->installed_command($program), '-d', $node->connstr($server->database), @arguments);
	my $fine = IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$err = decode('UTF-8', $err);
	return $fine ? $err : "$program ended with status $?: $err";
}

=item extension_tables($server)

The names of the extension's tables, qualified and quoted.

=item table_text($server, $table)

All rows of a table or subquery, as sorted text.

=item same_table($server, $what, $text)

Passes if the rows of a table or subquery are this text, and there are any
only if there should be.

=back

=cut

sub extension_tables
{
	my ($server) = @_;
	return split /\n/, $server->sql(<<~'SQL');
		SELECT format('%I.%I', nspname, relname)
		FROM pg_depend d JOIN pg_class c ON c.oid = objid JOIN pg_namespace n ON n.oid = relnamespace
		WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_extension'::regclass
			AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hubspot_sync')
			AND deptype = 'e' AND relkind = 'r'
		ORDER BY relname
		SQL
}

sub table_text
{
	my ($server, $table) = @_;
	return $server->sql(qq{SELECT x::text FROM $table x ORDER BY x::text COLLATE "C"});
}

sub same_table
{
	my ($server, $table, $wanted, $name) = @_;
	my @wanted = split /\n/, $wanted;
	my @got = split /\n/, table_text($server, $table);
	my $same = join("\n", @got) eq join "\n", @wanted;
	ok($same, $name // "$table is the same, " . @wanted . ' lines');
	return 1 if $same;

	my %seen;
	$seen{$_}++ foreach @wanted;
	my @more = grep { !$seen{$_} || $seen{$_}-- < 1 } @got;
	my @less = grep { ($seen{$_} // 0) > 0 } @wanted;
	diag(scalar @got . ' lines instead of ' . @wanted);
	diag('too much: ' . substr $_, 0, 300) foreach splice @more, 0, 5;
	diag('missing: ' . substr $_, 0, 300) foreach splice @less, 0, 5;
	return 0;
}

1;
