#!/bin/bash
# Lints and tests of the whole workspace: silent while things are well, then one summary.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --quiet --workspace --all-targets -- -D warnings
fi
if cargo nextest --version >/dev/null 2>&1; then
    # What cargo says while it builds is news only when the build fails.
    cargo nextest run --workspace --cargo-quiet --status-level fail --final-status-level fail --no-fail-fast \
        --show-progress none "$@"
else
    cargo test --quiet --workspace --no-fail-fast "$@"
fi
