#!/bin/bash
# Brings the peer in: a Debian forky root file system with CRIU, the engine that we are compared with.
#
#   scripts/peer.sh          makes ready DIR/forky (DIR: CRYONAUT_CACHE, default /var/cache/cryonaut)
#   scripts/peer-criu ...    runs the criu in there
#
# Running it again costs nothing. The suite moves, so a minimum version is asked for and nothing is pinned; packages
# come from the mirror that apt is already set up with. Needs root, some 300 MB and about 40 seconds the first time.
set -euo pipefail

readonly minimum_version=4.2
cache=${CRYONAUT_CACHE:-/var/cache/cryonaut}
root=$cache/forky
here=$(dirname "$(readlink -f "$0")")

say() { echo "peer: $*" >&2; }
die() { say "$*"; exit 1; }

peer_version() { CRYONAUT_CACHE=$cache "$here/peer-criu" --version 2>/dev/null | awk '/^Version:/ {print $2}'; }

is_ready() {
    [ -e "$root/usr/sbin/criu" ] && dpkg --compare-versions "$(peer_version)" ge "$minimum_version"
}

# The first mirror in apt's own sources, in either of the two forms that they can have.
mirror() {
    local found
    found=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '/^URIs:/ {print $2; exit}')
    [ -n "$found" ] || found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed 's/\[[^]]*\]//' | awk '$1 == "deb" {print $2; exit}')
    [ -n "$found" ] || die "no mirror in /etc/apt/sources.list.d: set one up for apt first"
    echo "$found"
}

bootstrap() {
    local new script log
    command -v debootstrap >/dev/null || {
        say "installing debootstrap"
        apt-get install -y -qq debootstrap >/dev/null || die "cannot install debootstrap: run apt-get update and try again"
    }
    new=$(mktemp -d "$cache/.forky.XXXXXX")
    # An interrupted run must not leave a tree behind that looks complete.
    trap 'rm -rf --one-file-system "$new"' EXIT
    log=$new.log
    # A debootstrap older than the suite has no script of its name; that of sid fits every later suite.
    script=/usr/share/debootstrap/scripts/forky
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    say "bringing CRIU $minimum_version or newer into $root (once, about 40 seconds)"
    debootstrap --variant=minbase --include=ca-certificates,criu forky "$new" "$(mirror)" "$script" >"$log" 2>&1 ||
        die "debootstrap failed, its last words: $(tail -n 3 "$log" | tr '\n' ' ')(all of them: $log)"
    rm -rf --one-file-system "$new/var/cache/apt/archives" "$log"
    rm -rf --one-file-system "$root"
    chmod 755 "$new"
    mv -T "$new" "$root"
    trap - EXIT
}

[ "$(id -u)" = 0 ] || is_ready || die "must be root to bring the peer in"
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
is_ready || bootstrap
is_ready || die "the criu in $root is '$(peer_version)', wanted at least $minimum_version"
say "CRIU $(peer_version) is ready in $root"
