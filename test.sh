#!/usr/bin/env bash
# The tests of the gate: format, lints, pure tests, a live slice on real brokers and clients, the demo's short form.
set -euo pipefail
cd "$(dirname "$0")"
step() { printf '\n== %s (%s)\n' "$1" "$(date -u +%H:%M:%S)"; }

step "prerequisites"
sh tests/tools/prerequisites.sh cargo cc java javac mvn go node python3
jar=$HOME/.m2/repository/org/apache/kafka/kafka-clients/4.3.1/kafka-clients-4.3.1.jar
[ -e "$jar" ] || mvn -q -B dependency:get -Dartifact=org.apache.kafka:kafka-clients:4.3.1 -Dtransitive=false

step "format"
cargo fmt --all --check
step "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings
step "pure tests"
cargo test --quiet -p crossover-core -p crossover-config -p crossover-admin-api -p crossover-loadtest -p crossover
cargo test --quiet -p crossover-tests --test architecture
step "build"
cargo build --release --quiet --bin crossover --bin crossover-check
step "client drivers"
tests/drivers/setup.sh java-3.9.2 java-4.3.1 librdkafka franz sarama kafkajs
step "live slice: real brokers 3.9.2 and 4.3.1, real clients"
cargo test --release --quiet -p crossover-tests --test live -- --nocapture
step "demo, short form"
target/release/crossover demo --short
