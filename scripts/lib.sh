# shellcheck shell=bash
# Functions shared by the scripts in this folder; to be sourced, not run.
#
# A script calls work_begin first. It gets a folder of its own ($work) and a
# trap that ends everything it started, removes the folder and then calls the
# script's function last_words, if it has one. PostgreSQL is never touched: the extension is installed into a copy of the server made of
# links ($stage), which finds its files relative to its own program.

set -euo pipefail
shopt -s inherit_errexit

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-/usr/bin/python3}"
export PYTHONDONTWRITEBYTECODE=1
export LC_ALL=C.UTF-8
unset PGHOST PGHOSTADDR PGPORT PGUSER PGDATABASE PGPASSWORD PGPASSFILE PGSERVICE \
    PGOPTIONS PGSSLMODE PGTZ PGDATESTYLE PGCLIENTENCODING

work=''
keep=''       # what work_end leaves: nothing, "files" or "everything"
data=''
stage_bin=''
socket_dir=''
server_port=''
simulator_pid=''
simulator_url=''
running='' # the command that limited() or attended() waits for
refreshed='' # whether apt knows what there is now
policy=''  # the file that keeps services from being started, if it is ours

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# The comment at the top of a script.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$1"
}

say() {
    printf '\n== %s\n' "$*"
}

# ---------------------------------------------------------------------------
# The folder of this run, and its end

work_begin() {
    work="$(mktemp -d "${TMPDIR:-/tmp}/hubspot_sync.XXXXXX")"
    chmod 755 "$work"
    trap work_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

work_end() {
    local status=$?
    trap '' INT TERM HUP
    set +e
    [ "$keep" = everything ] && exit "$status"
    [ -z "$running" ] || { kill "$running" && wait "$running"; } 2>/dev/null
    services_on
    server_stop
    simulator_stop
    end_processes_in "$work"
    if [ "$keep" = files ]; then
        printf 'files kept in %s\n' "$work" >&2
    else
        rm -rf "$work"
    fi
    if declare -F last_words >/dev/null; then
        last_words
    fi
    exit "$status"
}

# Runs a command with a limit of time, shows what it prints and keeps it in a
# file; its status is the function's. In the background, so that a signal to
# the script is not kept waiting.
limited() {
    local seconds=$1 log=$2 status=0 reader
    shift 2
    mkfifo "$work/pipe"
    tee "$log" <"$work/pipe" &
    reader=$!
    timeout -k 10 "$seconds" "$@" >"$work/pipe" 2>&1 </dev/null &
    running=$!
    wait "$running" || status=$?
    running=''
    if [ "$status" -ge 124 ]; then
        echo "killed, at the latest after $seconds seconds" | tee -a "$log"
        kill "$reader" # somebody may still hold the other end
    fi
    wait "$reader" || true
    rm -f "$work/pipe"
    return "$status"
}

# Runs a command so that a signal to the script is not kept waiting for it.
attended() {
    local status=0
    "$@" &
    running=$!
    wait "$running" || status=$?
    running=''
    return "$status"
}

# Ends what still runs from inside a folder: servers and simulators of tests
# that were killed. Its name is random, so that nobody else's command has it.
end_processes_in() {
    local dir=$1 pid pids attempt
    for attempt in 1 2 3 4 5; do
        pids="$(processes_of "$dir")"
        [ -z "$pids" ] && return
        for pid in $pids; do
            kill "-$([ "$attempt" -lt 4 ] && echo TERM || echo KILL)" "$pid" 2>/dev/null
        done
        sleep 1
    done
}

# Processes with the folder in their command line or as working directory.
processes_of() {
    local dir=$1 proc pid
    for proc in /proc/[0-9]*; do
        pid="${proc#/proc/}"
        [ "$pid" = "$$" ] || [ "$pid" = "$BASHPID" ] && continue
        if [[ "$(readlink "$proc/cwd" 2>/dev/null)/" == "$dir"/* ]] ||
            tr '\0' ' ' 2>/dev/null <"$proc/cmdline" | grep -qF "$dir/"; then
            printf '%s\n' "$pid"
        fi
    done
}

# ---------------------------------------------------------------------------
# Users

# The user that servers run as: PostgreSQL refuses to be root.
server_user() {
    if [ "$(id -u)" -ne 0 ]; then
        id -un
    else
        printf '%s\n' "${HUBSPOT_SYNC_USER:-postgres}"
    fi
}

# Sets the array that, put before a command, has it run as that user, in a
# folder that the user can read.
server_user_prefix() {
    as_user=(env -C "$work" "HOME=$work")
    [ "$(id -u)" -ne 0 ] || as_user=(runuser -u "$(server_user)" -- "${as_user[@]}")
}

as_server_user() {
    local -a as_user
    server_user_prefix
    "${as_user[@]}" "$@"
}

# Gives files to that user.
give() {
    [ "$(id -u)" -ne 0 ] || chown -R "$(server_user):" "$@"
}

# ---------------------------------------------------------------------------
# Packages

# The pg_config of the server to build for: the one that PG_CONFIG says and no
# other, or the newest of version 15 or later that has what building takes.
find_pg_config() {
    local candidate
    if [ -n "${PG_CONFIG:-}" ]; then
        usable_pg_config "$PG_CONFIG" && printf '%s\n' "$PG_CONFIG"
        return
    fi
    while read -r candidate; do
        if usable_pg_config "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done < <(
        command -v pg_config || true
        printf '%s\n' /usr/lib/postgresql/*/bin/pg_config /usr/pgsql-*/bin/pg_config | sort -rV
    )
    return 1
}

usable_pg_config() {
    local version
    [ -n "$1" ] && [ -x "$1" ] || return 1
    version="$("$1" --version 2>/dev/null | sed 's/^[^0-9]*\([0-9]*\).*/\1/')"
    [ "${version:-0}" -ge 15 ] && [ -f "$("$1" --pgxs)" ] &&
        [ -f "$("$1" --includedir-server)/postgres.h" ] &&
        [ -x "$("$1" --bindir)/initdb" ]
}

# Names the missing packages of a group.
missing_packages() {
    local compiler="${CC:-gcc}"
    case $1 in
        build)
            find_pg_config >/dev/null || apt_postgresql
            missing_program make make
            missing_program "${compiler%% *}" "${compiler%% *}"
            missing_program pkg-config pkg-config
            missing_header curl/curl.h libcurl libcurl4-openssl-dev
            missing_header json-c/json.h json-c libjson-c-dev
            ;;
        simulator)
            "$python" -c 'import aiohttp' 2>/dev/null || echo python3-aiohttp
            ;;
        test)
            perl -MIPC::Run -e 1 2>/dev/null || echo libipc-run-perl
            missing_program prove perl
            missing_program openssl openssl
            missing_extension pg_cron postgresql-N-cron
            missing_program prometheus-postgres-exporter prometheus-postgres-exporter
            missing_program promtool prometheus
            ;;
        node)
            missing_program node nodejs
            missing_program npm npm
            ;;
        plpython)
            missing_extension plpython3u postgresql-plpython3-N
            ;;
        lint)
            missing_program clang clang
            missing_program clang-format-14 clang-format-14
            missing_program clang-tidy clang-tidy
            missing_program cppcheck cppcheck
            missing_program shellcheck shellcheck
            missing_program node nodejs
            "$python" -c 'import yaml' 2>/dev/null || echo python3-yaml
            ;;
        memory)
            missing_program valgrind valgrind
            ;;
        coverage)
            missing_program gcov gcc
            ;;
        fuzz)
            missing_program clang clang
            missing_program llvm-symbolizer llvm
            missing_fuzzer
            ;;
    esac
}

missing_program() {
    command -v "$1" >/dev/null || echo "$2"
}

missing_header() {
    pkg-config --exists "$2" 2>/dev/null || [ -f "/usr/include/$1" ] || echo "$3"
}

# libFuzzer comes with clang's sanitizers.
missing_fuzzer() {
    compgen -G "$(clang -print-resource-dir 2>/dev/null)/lib/linux/libclang_rt.fuzzer-*.a" \
        >/dev/null || echo libclang-rt-dev
}

# An extension, and its package's name with N for the server's version. One
# that is not out yet has no pg_cron; tests do without.
missing_extension() {
    local pg_config package
    if pg_config="$(find_pg_config)"; then
        [ ! -f "$("$pg_config" --sharedir)/extension/$1.control" ] || return 0
        package="${2/N/$(major_version "$pg_config")}"
        if [ -z "$refreshed" ] || apt-cache show "$package" >/dev/null 2>&1; then
            echo "$package"
        fi
    else
        apt_postgresql | sed -n "s/^postgresql-\([0-9]*\)\$/${2/N/\\1}/p"
    fi
}

major_version() {
    "$1" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/'
}

# The packages of the server that PG_CONFIG is for, or else of one that is
# there without what building takes, or else of the newest one that apt knows.
apt_postgresql() {
    local version versions
    if [[ ${PG_CONFIG:-} =~ ^/usr/lib/postgresql/([0-9]+)/ ]]; then
        versions=${BASH_REMATCH[1]}
    else
        versions="$(present_servers) 19 18 17 16 15"
    fi
    for version in $versions; do
        if apt-cache show "postgresql-server-dev-$version" >/dev/null 2>&1; then
            printf '%s\n' "postgresql-$version" "postgresql-server-dev-$version"
            return
        fi
    done
    printf '%s\n' postgresql-15 postgresql-server-dev-15
}

# The major versions from 15 on of Debian's servers on this machine, the newest
# first.
present_servers() {
    printf '%s\n' /usr/lib/postgresql/*/bin/initdb |
        sed -n 's|^/usr/lib/postgresql/\([0-9]*\)/.*|\1|p' | awk '$1 >= 15' | sort -rn
}

# Installs what is missing for the given groups; does nothing otherwise.
need() {
    local -a packages
    mapfile -t packages < <(missing "$@")
    [ ${#packages[@]} -eq 0 ] && return
    apt_refresh "${packages[@]}"
    # What apt offers is known only now.
    mapfile -t packages < <(missing "$@")
    [ ${#packages[@]} -eq 0 ] && return
    say "installing ${packages[*]}"
    services_off
    as_root apt-get install -y --no-install-recommends "${packages[@]}" \
        >"$work/apt.log" 2>&1 ||
        { tail -n 20 "$work/apt.log" >&2 && die "apt-get could not install the packages"; }
    services_on
}

# Has Debian not start the services that come with packages, unless the machine
# has a policy of its own.
services_off() {
    [ ! -e /usr/sbin/policy-rc.d ] || return 0
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
}

services_on() {
    [ -z "$policy" ] || as_root rm -f "$policy"
    policy=''
}

missing() {
    local group
    for group in "$@"; do missing_packages "$group"; done | sort -u
}

apt_refresh() {
    local names="$*"
    command -v apt-get >/dev/null ||
        die "please install what these Debian packages contain: $names"
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
        die "please install as root: apt-get install $names"
    as_root apt-get update >"$work/apt.log" 2>&1 ||
        { tail -n 20 "$work/apt.log" >&2 && die "apt-get update failed"; }
    refreshed=yes
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

# ---------------------------------------------------------------------------
# Building and staging

# Copies the source tree, so that building leaves nothing behind in it.
copy_tree() {
    local target=$1
    mkdir -p "$target"
    tar -C "$root" --exclude=./.git --exclude='*.o' --exclude='*.bc' --exclude='*.so' \
        --exclude=./tmp_check --exclude=./results --exclude=__pycache__ --exclude=node_modules -cf - . |
        tar -C "$target" -xf -
}

# Builds a tree and installs it into a copy of the server under $work/stage,
# with the compiler CC, if that is set. Further arguments go to make. Callers test its status, which switches errexit
# off: every step says for itself that it has to succeed.
stage() {
    local tree=$1 pg_config
    shift
    pg_config="$(find_pg_config)" || die "${PG_CONFIG:-this machine} has no PostgreSQL 15 or later to build for"
    [ -z "${CC:-}" ] || set -- "$@" "CC=$CC"
    make -s -C "$tree" -j"$(nproc)" PG_CONFIG="$pg_config" "$@" all &&
        make -s -C "$tree" PG_CONFIG="$pg_config" "$@" DESTDIR="$work/stage" install &&
        link_server "$("$pg_config" --bindir)" "$("$pg_config" --pkglibdir)" \
            "$("$pg_config" --sharedir)" &&
        stage_paths &&
        wrap_server &&
        if [ "$("$stage_bin/pg_config" --pkglibdir)" != "$work/stage$("$pg_config" --pkglibdir)" ]; then
            die "this PostgreSQL cannot be run from another folder"
        fi
}

# What it is built with and for.
built_with() {
    local pg_config
    pg_config="$(find_pg_config)"
    printf 'with %s for %s\n' "$(${CC:-$("$pg_config" --cc)} --version | head -n 1)" "$("$pg_config" --version)"
}

# Sets what others need to know of the stage.
stage_paths() {
    stage_bin="$work/stage$("$(find_pg_config)" --bindir)"
}

# Programs are copied, for they look for their files beside themselves; their
# files are links, except those that the extension has brought.
link_server() {
    local bin=$1 dir
    shift
    mkdir -p "$work/stage$bin" && cp -r "$bin/." "$work/stage$bin/" || return
    for dir in "$@"; do
        mkdir -p "$work/stage$dir" && cp -rsn "$dir/." "$work/stage$dir/" || return
    done
}

# Has the staged server run under another program: the file named by
# HUBSPOT_SYNC_WRAPPER takes the place of postgres, which it calls as "$0.real".
# A server notes what it was started as, and pg_ctl would restart that.
wrap_server() {
    [ -n "${HUBSPOT_SYNC_WRAPPER:-}" ] || return 0
    mv "$stage_bin/postgres" "$stage_bin/postgres.real" &&
        install -m 755 "$HUBSPOT_SYNC_WRAPPER" "$stage_bin/postgres" &&
        mv "$stage_bin/pg_ctl" "$stage_bin/pg_ctl.real" &&
        cat >"$stage_bin/pg_ctl" <<-'SH' && chmod 755 "$stage_bin/pg_ctl"
	#!/bin/sh
	for argument; do
	    if [ "$previous" = -D ] && [ -f "$argument/postmaster.opts" ]; then
	        sed -i 's,/postgres\.real,/postgres,' "$argument/postmaster.opts"
	    fi
	    previous=$argument
	done
	exec "$0.real" "$@"
	SH
}

# ---------------------------------------------------------------------------
# A throw-away server

# Creates and starts a server from the stage. Lines for postgresql.conf are
# read from standard input.
server_start() {
    data="$work/data"
    socket_dir="$work"
    # The path of a socket may have 107 bytes.
    [ ${#socket_dir} -lt 80 ] || socket_dir="$(mktemp -d /tmp/hubspot_sync.XXXXXX)"
    server_port=5432
    mkdir "$data"
    give "$data" "$socket_dir"
    as_server_user "$stage_bin/initdb" -D "$data" -A trust -U postgres --no-sync \
        -E UTF8 --locale=C.UTF-8 >"$work/initdb.log" 2>&1 ||
        { cat "$work/initdb.log" >&2 && die "initdb failed"; }
    {
        printf "listen_addresses = ''\n"
        printf "unix_socket_directories = '%s'\n" "$socket_dir"
        printf 'fsync = off\n'
        cat
    } >>"$data/postgresql.conf"
    as_server_user "$stage_bin/pg_ctl" -w -t 60 -D "$data" -l "$data/server.log" \
        start >"$work/start.log" 2>&1 ||
        { cat "$work/start.log" "$data/server.log" >&2 && die "the server does not start"; }
    export PGHOST="$socket_dir" PGPORT="$server_port" PGUSER=postgres PGDATABASE=postgres
}

server_stop() {
    if [ -n "$data" ] && [ -f "$data/postmaster.pid" ]; then
        as_server_user "$stage_bin/pg_ctl" -w -t 30 -D "$data" -m fast stop >/dev/null 2>&1 ||
            as_server_user "$stage_bin/pg_ctl" -w -D "$data" -m immediate stop >/dev/null 2>&1
    fi
    data=''
    if [ -n "$socket_dir" ] && [ "$socket_dir" != "$work" ]; then
        rm -rf "$socket_dir"
    fi
    socket_dir=''
}

# psql against that server, stopping at the first error.
sql() {
    "$stage_bin/psql" -X -q -v ON_ERROR_STOP=1 "$@"
}

# ---------------------------------------------------------------------------
# The HubSpot simulator

# Starts it with the given options; it ends with this script, unless the
# option --stay is among them.
simulator_start() {
    local out="$work/simulator.out" attempt
    : >"$out" # it is read before the simulator may have opened it
    "$python" "$root/test/simulator/hubspot_simulator.py" "$@" \
        >"$out" 2>"$work/simulator.log" </dev/null &
    simulator_pid=$!
    for attempt in $(seq 3000); do # millions of records take their time
        simulator_url="$(sed -n 's/^listening on //p' "$out")"
        [ -n "$simulator_url" ] && return
        kill -0 "$simulator_pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/simulator.log" >&2
    die "the simulator does not start (attempt $attempt)"
}

simulator_stop() {
    [ -z "$simulator_pid" ] && return
    kill "$simulator_pid" 2>/dev/null
    wait "$simulator_pid" 2>/dev/null
    simulator_pid=''
}

# Calls its control API: method, path below /_control/, body.
control() {
    "$python" -c '
import sys, urllib.request
method, url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode() or None, method=method)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
sys.stdout.write(opener.open(request, timeout=60).read().decode())
' "$1" "$simulator_url/_control/$2" "${3:-}"
}
