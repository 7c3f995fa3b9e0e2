#!/usr/bin/env bash
# Installs what the interop suites need and is not there: Debian's ActiveMQ, a JDK, Node, Python packages, the npm client.
# Packages are installed as root or with sudo; no service is started by it. Everything else goes below the target directory.
set -euo pipefail
cd "$(dirname "$0")"
work=$(realpath -m "${CARGO_TARGET_DIR:-../target}")/interop
mkdir -p "$work"

say() { printf 'setup: %s\n' "$*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Debian's packages start their services where they can: a policy that forbids it, for as long as we install.
policy=/usr/sbin/policy-rc.d
restore_policy() {
    as_root rm -f "$policy"
    if [ -e "$policy.kahawai-saved" ]; then as_root mv "$policy.kahawai-saved" "$policy"; fi
}
forbid_services() {
    [ ! -e "$policy.kahawai-saved" ] || restore_policy
    [ ! -e "$policy" ] || as_root mv "$policy" "$policy.kahawai-saved"
    trap restore_policy EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
}

packages=()
need() { # PACKAGES... if the command after -- fails
    local wanted=()
    while [ "$1" != -- ]; do wanted+=("$1"); shift; done
    shift
    "$@" >/dev/null 2>&1 || packages+=("${wanted[@]}")
}
need activemq libactivemq-java libslf4j-java -- test -e /usr/share/activemq/lib/activemq-broker.jar -a -e /usr/share/java/slf4j-simple.jar
need default-jdk-headless -- command -v javac
need nodejs -- command -v node
need npm -- command -v npm
need python3 python3-venv -- python3 -c 'import venv, ensurepip'
need openssl -- command -v openssl
need gcc libc6-dev -- command -v cc
need procps -- command -v ps
need strace -- command -v strace
need zookeeper -- test -e /usr/share/java/zookeeper.jar

if [ ${#packages[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        say "install these first, or what your system calls them: ${packages[*]}" >&2
        exit 1
    fi
    say "installing ${packages[*]}"
    forbid_services
    install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}")
    as_root "${install[@]}" || { as_root apt-get update -q && as_root "${install[@]}"; }
fi
if ! command -v cargo >/dev/null; then
    say "cargo is missing: install the Rust toolchain, see https://rustup.rs" >&2
    exit 1
fi

if ! cmp -s requirements.txt "$work/venv/requirements.txt"; then
    say "Python packages"
    rm -rf "$work/venv"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt "$work/venv/"
fi

if ! cmp -s stompit/package-lock.json "$work/stompit/installed.json"; then
    say "npm package stompit"
    mkdir -p "$work/stompit"
    cp stompit/package.json stompit/package-lock.json "$work/stompit/"
    (cd "$work/stompit" && npm ci --no-audit --no-fund --loglevel=error)
    cp stompit/package-lock.json "$work/stompit/installed.json"
fi
say "everything is there"
