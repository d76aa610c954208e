package HubspotSync::Stage;

=pod

=head1 NAME

HubspotSync::Stage - PostgreSQL with versions of the extension that a test makes up

=head1 SYNOPSIS

  my $stage = HubspotSync::Stage->new;
  $stage->script('1.0--9.9', 'CREATE TABLE more (id integer);');
  $stage->default_version('9.9');
  my $server = HubspotSync::Server->new('upgrade', stage => $stage);

=head1 DESCRIPTION

A copy of the installation that the tests run with, made of links, whose files
are found beside its programs. It goes with the test.

=cut

use strict;
use warnings;

use Carp;
use PostgreSQL::Test::Utils qw(append_to_file run_command slurp_file);

=pod

=head1 METHODS

=over

=item new()

=item install_path()

For PostgreSQL::Test::Cluster.

=cut

sub new
{
	my ($class) = @_;
	my $self = bless { root => PostgreSQL::Test::Utils::tempdir() }, $class;
	$self->_copy('-r', _pg_config('bindir'));
	$self->_copy('-rs', $_) foreach _pg_config('pkglibdir'), _pg_config('sharedir');
	$self->{extension} = $self->{root} . _pg_config('sharedir') . '/extension';
	return $self;
}

sub install_path
{
	my ($self) = @_;
	return $self->{root} . _pg_config('bindir') =~ s{/bin$}{}r;
}

sub _pg_config
{
	my ($what) = @_;
	my ($path, $error) = run_command([ 'pg_config', "--$what" ]);
	croak "pg_config: $error" if $path eq '';
	return $path;
}

# Programs find their files from where they are themselves, so they are copied.
sub _copy
{
	my ($self, $how, $dir) = @_;
	my $target = $self->{root} . $dir;
	my (undef, $error) = run_command([ 'mkdir', '-p', $target ]);
	(undef, $error) = run_command([ 'cp', $how, "$dir/.", $target ]) if $error eq '';
	croak $error if $error ne '';
	return;
}

=pod

=item script($versions, $text)

With a text, makes the script hubspot_sync--VERSIONS.sql that or changes it to
that. Returns what stands in it.

=item full_scripts()

The versions that can be installed without another one.

=item default_version($version)

With an argument, sets the version that CREATE EXTENSION installs and UPDATE
leads to. Returns which it is.

=back

=cut

sub script
{
	my ($self, $versions, $text) = @_;
	return $self->_file("hubspot_sync--$versions.sql", $text);
}

sub full_scripts
{
	my ($self) = @_;
	return map { m{/hubspot_sync--((?:(?!--).)+)\.sql$} ? $1 : () } glob "$self->{extension}/hubspot_sync--*.sql";
}

sub default_version
{
	my ($self, $version) = @_;
	my $control = $self->_file('hubspot_sync.control');
	$control = $self->_file('hubspot_sync.control', $control =~ s/^(default_version = ').*'/$1$version'/mr)
	  if defined $version;
	return $control =~ /^default_version = '(.*)'/m ? $1 : croak 'no default_version';
}

# Reads a file of the extension, or writes it in place of a link.
sub _file
{
	my ($self, $name, $text) = @_;
	my $file = "$self->{extension}/$name";
	return slurp_file($file) unless defined $text;
	unlink $file;
	append_to_file($file, $text);
	return $text;
}

1;
