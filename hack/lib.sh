# Helpers shared by the scripts of this directory; to be sourced by bash.
# shellcheck shell=bash

repository=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
# shellcheck disable=SC2034 # used by the scripts that source this file
cache=${WHARF_CACHE:-${HOME:-/root}/.cache/wharf}
program=$(basename "$0")

# say WORDS...: reports progress on standard error, so that results can be piped.
say() {
    echo "$program: $*" >&2
}

die() {
    say "$*"
    exit 1
}

# usage: prints the comment at the head of the script, and fails.
usage() {
    sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

# quietly COMMAND...: shows what the command prints only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1) && return
    printf '%s\n' "$output" >&2
    return 1
}

# packages NAME...: installs the Debian packages that are missing.
packages() {
    "$repository/tests/images/packages.sh" "$@"
}

# test_images: prints the directory of the test images, and builds them first if they are missing.
test_images() {
    local images=$repository/tests/images/out
    if [[ ! -e $images/images.json ]]; then
        say "building the test images"
        "$repository/tests/images/build.sh" "$images" >&2
    fi
    echo "$images"
}

# wharf_programs: prints the directory of wharfd, wharf and wharf-shim: $WHARF_PROGRAMS, or that of a release build.
wharf_programs() {
    released dist
}

# static_programs ARCH: prints that of static ones.
static_programs() {
    released "dist-$1" --static "$1"
}

# released DIRECTORY BUILD-ARGUMENT...
released() {
    if [[ -n ${WHARF_PROGRAMS-} ]]; then
        echo "$WHARF_PROGRAMS"
        return
    fi
    "$repository/hack/build" "${@:2}" >&2 || die "hack/build failed"
    echo "$repository/target/$1"
}

# static_target [ARCH]: prints the target of static programs, by default for this machine, and installs it first if it
# is missing.
static_target() {
    local target
    target=${1:-$(uname -m)}-unknown-linux-musl
    rustup target list --installed 2>/dev/null | grep -qx "$target" || rustup --quiet target add "$target" >&2
    echo "$target"
}

# static_compiler ARCH: has cargo compile the C of crates, and link, for static programs with that architecture's gcc,
# and installs it first if it is missing. Its headers are glibc's: that C calls only malloc, memcpy and their like.
static_compiler() {
    local compiler=$1-linux-gnu-gcc target=${1}_unknown_linux_musl
    local -A debian=([x86_64]=amd64 [aarch64]=arm64)
    [[ $1 = "$(uname -m)" ]] || packages "gcc-${1/_/-}-linux-gnu" "libc6-dev-${debian[$1]}-cross"
    export "CC_$target=$compiler" "CARGO_TARGET_${target^^}_LINKER=$compiler"
}

# attempt N COMMAND...: runs a command up to N times, 0.1 s apart, until it succeeds.
attempt() {
    local count=$1 i
    shift
    for ((i = 0; i < count; i++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    return 1
}

# footprint: lists everything that wharf could leave on a machine, one item per line.
footprint() {
    ps -e -o comm=,args= | awk '$1 ~ /^wharf/ { $1 = "process"; print }'
    awk '{ print "mount", $5 }' /proc/self/mountinfo
    lsns --noheadings --type net --output NS | awk '{ print "network namespace", $1 }'
    ip -oneline link | awk -F ': ' '{ sub(/@.*/, "", $2); print "link", $2 }'
    nft list tables | sed 's/^/nft /'
    find /sys/fs/cgroup -type d -name 'wharf' -printf 'cgroup %p\n'
    find /run/wharf /var/lib/wharf /var/log/wharf -printf 'directory %p\n' 2>/dev/null || true
}
