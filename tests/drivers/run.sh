#!/usr/bin/env bash
# Becomes one driver: run.sh DRIVER producer|consumer --name value …   (see loadtest/README.md)
# DRIVER: java-2.8.2 java-3.4.1 java-3.9.2 java-4.3.1 streams-4.3.1 librdkafka aiokafka franz sarama kafkajs; plain `java` is java-3.9.2.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${CROSSOVER_CACHE:-$HOME/.cache/crossover}/drivers
driver=${1:?usage: run.sh DRIVER producer|consumer …}
shift
[ "$driver" != java ] || driver=java-3.9.2
# A driver started with a pipe as standard input ends when that closes, so it cannot outlive its parent.
if [ -p /dev/stdin ] || [ -S /dev/stdin ]; then export CROSSOVER_WATCH_STDIN=1; fi

# Quick when up to date: only a digest is compared.
"$here/setup.sh" "$driver" </dev/null
case $driver in
  java-* | streams-*)
    kind=${driver%%-*} version=${driver#*-} main=Driver
    [ "$kind" = java ] || main=Streams
    jit=1
    [ "${CROSSOVER_JIT:-}" != full ] || jit=4
    exec java -Xms32m -Xmx192m -XX:+UseSerialGC -XX:TieredStopAtLevel=$jit -Xshare:auto \
      -cp "$cache/$kind/classes-$version:$cache/$kind/clients-$version/*" $main "$@"
    ;;
  librdkafka | aiokafka) exec "$cache/$driver/bin/python" -u "$here/$driver/driver.py" "$@" ;;
  franz | sarama) exec "$cache/$driver/driver" "$@" ;;
  kafkajs) exec env NODE_PATH="$cache/kafkajs/node_modules" node "$here/kafkajs/driver.js" "$@" ;;
esac
