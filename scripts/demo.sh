#!/bin/bash
# usage: demo.sh [CRYONAUT]   Checkpoints a program that counts, shows that it is gone, brings it back and shows it
# counting on, with a client that has been connected with it all the time. Needs root, cc, and some ten seconds.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cryonaut=$(readlink -f "${1:-$here/../target/release/cryonaut}")
[ -x "$cryonaut" ] || { echo "demo: no $cryonaut: run make build first" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "demo: must be root" >&2; exit 1; }

dir=$(mktemp -d /tmp/cryonaut-demo.XXXXXX)
pid=
client=
cleanup() {
    for one in $pid $client; do kill -9 "$one" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap cleanup EXIT

say() { printf '\n\033[1m%b\033[0m\n' "$*"; }
run() { printf '\033[1m$ cryonaut %s\033[0m\n' "$*"; "$cryonaut" "$@"; }
is_alive() { [ -e "/proc/$pid/exe" ]; }

for program in keeper client; do cc -O1 -Wall -pthread -o "$dir/$program" "$here/../demo/$program.c"; done

say "A program counts. It holds a file, a deleted file, a pipe with data in it, a timer, 5 threads and 32 MiB,\nand answers a client over TCP a hundred times a second:"
DEMO_DIR=$dir setsid "$dir/keeper" </dev/null >"$dir/out" 2>&1 &
pid=$!
# How it ends is shown below, and the shell need not say it too.
disown
while [ ! -s "$dir/port" ]; do sleep 0.05; done
"$dir/client" "$(cat "$dir/port")" "$dir/client.out" </dev/null >/dev/null &
client=$!
sleep 2
tail -n 3 "$dir/out"

say "It is frozen and written down:"
run checkpoint "$pid" -o "$dir/image" --tcp-established
is_alive && { echo "demo: process $pid is still there" >&2; exit 1; }
before=$(wc -l <"$dir/out")
du -sh "$dir/image" | awk '{print "the image: " $1}'
ps -p "$pid" >/dev/null || echo "process $pid: gone"

say "Two seconds later it has not counted on, for it does not exist:"
sleep 2
tail -n 1 "$dir/out"
[ "$(wc -l <"$dir/out")" = "$before" ] || { echo "demo: something went on counting" >&2; exit 1; }

say "It is brought back, as process $pid, and counts on from where it was:"
run restore "$dir/image" --detach --tcp-established
sleep 2
is_alive || { echo "demo: process $pid did not come back:" >&2; tail -n 3 "$dir/out" >&2; exit 1; }
tail -n "+$before" "$dir/out" | head -n 5
if grep -q LOST "$dir/out" || [ "$(wc -l <"$dir/out")" -le "$before" ]; then
    echo "demo: it lost something" >&2
    exit 1
fi
say "The client, who was never told:"
kill -TERM "$client"
wait "$client" || { cat "$dir/client.out" >&2; echo "demo: the client has lost its connection" >&2; exit 1; }
client=
cat "$dir/client.out"
say "Nothing was lost."
