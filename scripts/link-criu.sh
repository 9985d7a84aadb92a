#!/bin/sh
# Makes `criu` in a directory a name of the cryonaut beside it, unless another program has the name there.
set -eu
criu=$1/criu
if [ -e "$criu" ] || [ -L "$criu" ]; then
    if [ "$(readlink "$criu" || true)" != cryonaut ]; then
        echo "$criu is not ours and stays: install with another PREFIX, whose sbin comes first in PATH" >&2
        exit 1
    fi
fi
ln -sfn cryonaut "$criu"
