#!/bin/bash
# Brings the container runtimes of Debian forky in, which are newer than those of the host: a root file system that the
# tests start as a host of its own (tests/src/containers/newer).
#
#   scripts/newer-runtimes.sh    makes ready DIR/newer-runtimes (DIR: CRYONAUT_CACHE, default /var/cache/cryonaut)
#
# Running it again costs nothing. Needs root, some 900 MB and about 100 seconds the first time.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
. "$here/debian.sh"
root=$cache/newer-runtimes
# crun opens libcriu2 when it runs, and nothing depends on it.
packages=podman,crun,libcriu2,runc,conmon,netavark,aardvark-dns,catatonit,containerd,lxc,docker.io,docker-cli,iptables,iproute2,procps,busybox-static

is_ready() {
    local program
    for program in bin/podman bin/lxc-checkpoint bin/docker sbin/dockerd; do
        [ -e "$root/usr/$program" ] || return
    done
}

! is_ready || exit 0
[ "$(id -u)" = 0 ] || die "must be root to bring them in"
lock_cache
is_ready || {
    say "bringing container runtimes into $root (once, about 100 seconds)"
    bootstrap "$root" forky "$packages"
}
is_ready || die "podman, lxc or docker is missing in $root"
