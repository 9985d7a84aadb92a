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
here=$(dirname "$(readlink -f "$0")")
. "$here/debian.sh"
root=$cache/forky

peer_version() { CRYONAUT_CACHE=$cache "$here/peer-criu" --version 2>/dev/null | awk '/^Version:/ {print $2}'; }

is_ready() {
    [ -e "$root/usr/sbin/criu" ] && dpkg --compare-versions "$(peer_version)" ge "$minimum_version"
}

[ "$(id -u)" = 0 ] || is_ready || die "must be root to bring the peer in"
lock_cache
is_ready || {
    say "bringing CRIU $minimum_version or newer into $root (once, about 40 seconds)"
    bootstrap "$root" forky criu
}
is_ready || die "the criu in $root is '$(peer_version)', wanted at least $minimum_version"
say "CRIU $(peer_version) is ready in $root"
