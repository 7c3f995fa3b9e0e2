#!/usr/bin/env bash
# Three Kahawai nodes that confirm with at least one replica (all that are in sync), against three RabbitMQ nodes with quorum
# queues: the same load, in the same run, one after the other and again; prints both. All nodes are on this machine.
#
#   bench/cluster.sh [--rounds 3] [--seconds 5] [--only CASE,CASE] [--json FILE]
#
# Takes some minutes, and some gigabytes below BENCH_DIR (default: the target directory), which should be on the disk that is
# meant. Nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null
interop/setup.sh
if ! dpkg -L rabbitmq-server >/dev/null 2>&1; then
    # Debian would start it: a policy that forbids that, for as long as we install.
    as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends rabbitmq-server
    if [ "$(trap -p EXIT)" ]; then as_root rm -f "$policy"; trap - EXIT; fi
fi
cargo build --release -p kahawai-cli
exec python3 bench/cluster.py "$@"
