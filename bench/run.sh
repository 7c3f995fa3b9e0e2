#!/usr/bin/env bash
# Kahawai and Debian's ActiveMQ under the same load, in the same run, one after the other and again; prints both.
# ActiveMQ: KahaDB, journalDiskSyncStrategy=always, as shipped and with concurrentStoreAndDispatchQueues=false.
#
#   bench/run.sh [--rounds 3] [--seconds 5] [--only CASE,CASE] [--backlog 10000000] [--json FILE]
#
# Takes about a quarter of an hour, and some gigabytes below BENCH_DIR (default: the target directory), which should be on the
# disk that is meant. Nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null
interop/setup.sh
command -v strace >/dev/null || { if [ "$(id -u)" = 0 ]; then apt-get install -y -q strace; else sudo -n apt-get install -y -q strace; fi; }
cargo build --release -p kahawai-cli
exec python3 bench/bench.py "$@"
