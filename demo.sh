#!/usr/bin/env bash
# Runs the demo on a fresh machine: installs what is missing, builds, runs.
set -euo pipefail
cd "$(dirname "$0")"
sh tests/tools/prerequisites.sh cargo cc java javac mvn
sh tests/tools/prerequisites.sh python3 go || echo "demo: librdkafka or franz-go will be left out" >&2
echo "demo: building (a few minutes the first time)"
cargo build --release --quiet --bin crossover --bin crossover-check
exec target/release/crossover demo "$@"
