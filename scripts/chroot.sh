# shellcheck shell=bash
# Other releases of Debian in chroots, for the scripts in this folder that need
# one; to be sourced in place of lib.sh, not run.
#
# A chroot is a folder with a Debian of its own. Its processes have namespaces
# of their own and end with those, so nothing on this machine changes but for
# debootstrap, where it is missing. It shares this machine's network, so that a
# server in it reaches a simulator outside.

# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

in_jail=()     # put before a command, runs it in the chroot that was entered
jail_keeper='' # the process whose end is that of everything in the chroot

root_needed() {
    [ "$(id -u)" -eq 0 ] || die "needs root, to make a chroot"
}

need_chroots() {
    root_needed
    if ! command -v debootstrap >/dev/null; then
        apt_refresh debootstrap
        say "installing debootstrap"
        as_root apt-get install -y --no-install-recommends debootstrap >"$work/apt.log" 2>&1 ||
            { tail -n 20 "$work/apt.log" >&2 && die "apt-get could not install debootstrap"; }
    fi
}

# Runs a step that only prepares; its output is shown if it fails.
step() {
    local seconds=$1 log="$work/step.log"
    shift
    timeout -k 10 "$seconds" "$@" >"$log" 2>&1 </dev/null ||
        { tail -n 40 "$log" >&2 && die "failed: $*"; }
}

# The mirrors that this machine uses for Debian itself and for its security
# updates, told apart by the ends of their addresses.
mirror() {
    {
        sed -n 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' /etc/apt/sources.list.d/*.sources
        sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list
    } 2>/dev/null | grep -E "/$1/?\$" | head -n 1
}

# Makes a chroot with a release. The names that follow are releases whose
# packages it may use as well; a name that ends in -security is for the mirror
# of security updates.
make_chroot() {
    local jail=$1 release=$2 script=$2 url security other
    shift 2
    url="$(mirror debian || true)"
    security="$(mirror debian-security || true)"
    if [ -z "$url" ] || [ -z "$security" ]; then
        die "the apt sources of this machine name no mirror of Debian"
    fi
    # Releases that this machine's debootstrap is too old for are made like sid.
    [ -e "/usr/share/debootstrap/scripts/$release" ] || script=sid
    step 900 debootstrap --variant=minbase "$release" "$jail" "$url" "$script"
    printf '#!/bin/sh\nexit 101\n' >"$jail/usr/sbin/policy-rc.d"
    chmod 755 "$jail/usr/sbin/policy-rc.d"
    mkdir -p "$jail/etc/apt/apt.conf.d"
    cp -n /etc/apt/apt.conf.d/* "$jail/etc/apt/apt.conf.d/"
    for other in "$@"; do
        case $other in
            *-security) printf 'deb %s %s main\n' "$security" "$other" ;;
            *) printf 'deb %s %s main\n' "$url" "$other" ;;
        esac
    done >>"$jail/etc/apt/sources.list"
}

# Makes a chroot the one that in_jail is for. One process keeps the namespaces
# of all others; they end with it, and it with this script, which finds it by
# the name of its own folder. It is no plain sleep, since somebody has to take
# leave of servers that have ended.
enter_chroot() {
    local jail=$1 attempt pid
    leave_chroot
    # shellcheck disable=SC2016
    unshare --mount --pid --fork --kill-child sh -c 'mount -t proc proc "$0/proc" &&
        mount -t tmpfs tmpfs "$0/dev/shm" && while :; do sleep 5; done' "$jail" "$work/" </dev/null &
    jail_keeper=$!
    disown
    for attempt in $(seq 100); do
        pid="$(pgrep -P "$jail_keeper" || true)"
        [ -n "$pid" ] && [ -d "/proc/$pid/root$jail/proc/1" ] && break
        [ "$attempt" -lt 100 ] || die "the chroot's namespaces cannot be made"
        sleep 0.1
    done
    in_jail=(nsenter --target "$pid" --mount --pid chroot "$jail" env -i
        PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root DEBIAN_FRONTEND=noninteractive)
}

# Ends everything that runs in the chroot.
leave_chroot() {
    [ -z "$jail_keeper" ] || kill "$jail_keeper" 2>/dev/null || true
    jail_keeper=''
    in_jail=()
}

# Installs a server, what extensions are built with, and more packages, in the
# chroot that was entered.
install_postgresql() {
    local version=$1
    shift
    step 900 "${in_jail[@]}" apt-get install -y --no-install-recommends "postgresql-$version" gcc make \
        pkg-config libc6-dev libcurl4-openssl-dev libjson-c-dev ca-certificates "$@"
    # Only the headers and makefiles: its dependencies are a whole compiler.
    step 300 "${in_jail[@]}" sh -c "cd /tmp && apt-get download postgresql-server-dev-$version &&
        dpkg -x postgresql-server-dev-$version*.deb / && rm postgresql-server-dev-$version*.deb"
}
