#!/usr/bin/env bash
# The whole story on this machine: two Kafka clusters, live clients, cutover, rollback, cutover, and a verdict.
# usage: ./demo.sh [--short]
set -euo pipefail
cd "$(dirname "$0")"
# Go and Python only bring two more client libraries: without them the demo runs with Java alone.
sh tests/tools/prerequisites.sh cargo cc java javac mvn
sh tests/tools/prerequisites.sh go python3 || echo "demo: going on with the clients that can run here" >&2
cargo build --release -p crossover -p crossover-loadtest
exec "${CARGO_TARGET_DIR:-target}/release/crossover" demo "$@"
