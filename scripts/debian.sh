# Brings root file systems of Debian releases in; other scripts source this. Packages come from the mirror that apt is
# already set up with.

cache=${CRYONAUT_CACHE:-/var/cache/cryonaut}

say() { echo "$(basename "$0" .sh): $*" >&2; }
die() { say "$*"; exit 1; }

# The first mirror in apt's own sources, in either of the two forms that they can have.
mirror() {
    local found
    found=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '/^URIs:/ {print $2; exit}')
    [ -n "$found" ] || found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed 's/\[[^]]*\]//' | awk '$1 == "deb" {print $2; exit}')
    [ -n "$found" ] || die "no mirror in /etc/apt/sources.list.d: set one up for apt first"
    echo "$found"
}

# bootstrap ROOT SUITE PACKAGES: a Debian release with these, in the place of what is there.
bootstrap() {
    local root=$1 suite=$2 packages=$3 script log
    command -v debootstrap >/dev/null || {
        say "installing debootstrap"
        apt-get install -y -qq debootstrap >/dev/null || die "cannot install debootstrap: run apt-get update and try again"
    }
    new=$(mktemp -d "$cache/.$suite.XXXXXX")
    # An interrupted run must not leave a tree behind that looks complete.
    trap 'rm -rf --one-file-system "$new"' EXIT
    log=$new.log
    # A debootstrap older than the suite has no script of its name; that of sid fits every later suite.
    script=/usr/share/debootstrap/scripts/$suite
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    debootstrap --variant=minbase --include="ca-certificates,$packages" "$suite" "$new" "$(mirror)" "$script" >"$log" 2>&1 ||
        die "debootstrap failed, its last words: $(tail -n 3 "$log" | tr '\n' ' ')(all of them: $log)"
    rm -rf --one-file-system "$new/var/cache/apt/archives" "$log"
    rm -rf --one-file-system "$root"
    chmod 755 "$new"
    mv -T "$new" "$root"
    trap - EXIT
}

# Nobody else brings anything in until this script ends.
lock_cache() {
    mkdir -p "$cache"
    exec 9>"$cache/.lock"
    flock 9
}
