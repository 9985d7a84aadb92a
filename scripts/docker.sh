#!/bin/bash
# Brings Debian bookworm's docker in, the last one that restores containers with networks of their own: a root file system
# that the tests start as a host of its own (tests/src/containers/newer), where its daemons, its bridge and its rules of
# iptables disturb nobody.
#
#   scripts/docker.sh    makes ready DIR/docker (DIR: CRYONAUT_CACHE, default /var/cache/cryonaut)
#
# Running it again costs nothing. Needs root, some 600 MB and about 60 seconds the first time.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
. "$here/debian.sh"
root=$cache/docker
packages=docker.io,iptables,iproute2,procps,busybox-static,redis-server,redis-tools

is_ready() { [ -e "$root/usr/sbin/dockerd" ] && [ -e "$root/usr/bin/redis-server" ]; }

! is_ready || exit 0
[ "$(id -u)" = 0 ] || die "must be root to bring it in"
lock_cache
is_ready || {
    say "bringing docker into $root (once, about 60 seconds)"
    bootstrap "$root" bookworm "$packages"
}
is_ready || die "docker or redis is missing in $root"
