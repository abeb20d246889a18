#!/usr/bin/env bash
# Every check of a change, quickest first; the first failure ends it.
# usage: ./test.sh
set -euo pipefail
cd "$(dirname "$0")"
# A failed test ends with its error, not with where that was made.
export RUST_LIB_BACKTRACE=0

step() {
  printf '\n=== %s (%s s)\n' "$1" "$SECONDS"
  shift
  "$@"
}

# What the test of the message tables compares with.
official_definitions() {
  [ -e "$HOME/.m2/repository/org/apache/kafka/kafka-clients/4.3.1/kafka-clients-4.3.1.jar" ] ||
    mvn -q -B dependency:get -Dartifact=org.apache.kafka:kafka-clients:4.3.1 -Dtransitive=false
}

pure_tests() {
  cargo test -p crossover-core -p crossover-config -p crossover-admin-api -p crossover-loadtest -p crossover-mutants -p crossover
  cargo test -p crossover-harness --lib
  cargo test -p crossover-tests --test architecture
}

# The core in a model world: as many schedules as the time allows, and every rule broken once.
simulator() {
  CROSSOVER_SIM_SECONDS="${CROSSOVER_SIM_SECONDS:-240}" cargo test --release -p crossover-core --features bug-flags \
    --test sim -- --nocapture --test-threads=1
}

step "prerequisites" sh tests/tools/prerequisites.sh cargo cc java javac mvn go node python3
step "format" cargo fmt --all --check
step "lint" cargo clippy --workspace --all-targets -- -D warnings
step "message definitions" official_definitions
step "pure tests" pure_tests
step "simulator" simulator
step "binaries" cargo build -p crossover -p crossover-loadtest --features crossover/failpoints
step "client libraries" tests/drivers/setup.sh java-3.9.2 java-4.3.1 librdkafka franz sarama kafkajs
step "live: real clusters, real clients" cargo test -p crossover-tests --test live -- --nocapture --test-threads=1
step "live: transactions" cargo test -p crossover-tests --test transactions trap_7_transactions_go_on_over_flips -- --exact --nocapture
step "live: everything together, failures" cargo test -p crossover-tests --test soak -- --nocapture
step "demo, short form" "${CARGO_TARGET_DIR:-target}/debug/crossover" demo --short
printf '\n=== all passed (%s s)\n' "$SECONDS"
