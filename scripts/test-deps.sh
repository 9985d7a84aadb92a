#!/bin/bash
# Installs what the tests run and compare with, as far as it is missing. Quiet; needs root only to install.
set -euo pipefail

declare -A package_of=(
    [gcc]=gcc [make]=make [python3]=python3 [crit]=criu [redis-server]=redis-server [nginx]=nginx-light [sshd]=openssh-server [ssh]=openssh-client [node]=nodejs
    [java]=openjdk-17-jdk-headless [javac]=openjdk-17-jdk-headless [sqlite3]=sqlite3 [vim]=vim [less]=less [bash]=bash [script]=bsdutils [setsid]=util-linux
    [catatonit]=catatonit [runc]=runc [podman]=podman [conmon]=conmon [busybox]=busybox-static
    [nft]=nftables [iptables-restore]=iptables [ip]=iproute2
)
missing=()
for program in "${!package_of[@]}"; do
    command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
# Debian's own python runs Debian's crit, whatever python comes first in PATH.
/usr/bin/python3 -c 'import google.protobuf' 2>/dev/null || missing+=(python3-protobuf)
compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null || missing+=(postgresql)
[ -e /usr/lib/podman/netavark ] || missing+=(netavark)
[ -e /usr/include/linux/bpf.h ] || missing+=(linux-libc-dev)
[ ${#missing[@]} -gt 0 ] || exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
[ "$(id -u)" = 0 ] || { echo "not root, and these packages are missing: ${missing[*]}" >&2; exit 1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# A server that a package would start is not wanted: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
    trap 'rm -f "$log" $policy' EXIT
fi
install() { apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1; }
install || { apt-get update -qq >"$log" 2>&1 && install; } || {
    echo "cannot install ${missing[*]}:" >&2
    tail -n 5 "$log" >&2
    exit 1
}
