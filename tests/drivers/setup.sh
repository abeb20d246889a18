#!/usr/bin/env bash
# Fetches the client libraries with their own package managers and builds the drivers into the cache.
# usage: setup.sh [java[-VERSION]|streams[-VERSION]|librdkafka|aiokafka|franz|sarama|kafkajs …]     (no argument: all)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${CROSSOVER_CACHE:-$HOME/.cache/crossover}/drivers
java_versions=(2.8.2 3.4.1 3.9.2 4.3.1)
mkdir -p "$cache"

# Two test processes may set up the same driver: the second waits for the first.
locked() {
  local name=$1
  shift
  (
    flock 9
    "$@"
  ) 9>"$cache/.lock-$name"
}

digest() { cat "$@" | sha256sum | cut -c1-16; }

# up_to_date DIR KEY: true if DIR was finished with the same inputs.
up_to_date() { [ "$(cat "$1/.done" 2>/dev/null || true)" = "$2" ]; }

# KIND is the folder here and in the cache; the sources of Driver.java are part of both.
setup_java() {
  local kind=$1 version=$2 dir="$cache/$1/clients-$2" sources=("$here/java/Driver.java") classes key
  [ "$kind" = java ] || sources+=("$here/$kind"/*.java)
  if [ ! -e "$dir/.done" ]; then
    mvn -q -B -Dstyle.color=never -f "$here/$kind/pom.xml" -Dkafka.version="$version" \
      org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies -DoutputDirectory="$dir"
    touch "$dir/.done"
  fi
  key=$(digest "${sources[@]}")
  classes="$cache/$kind/classes-$version"
  up_to_date "$classes" "$key" && return
  rm -rf "$classes"
  mkdir -p "$classes"
  javac -nowarn -XDignore.symbol.file -proc:none -cp "$dir/*" -d "$classes" "${sources[@]}"
  echo "$key" >"$classes/.done"
}

# Both Python drivers: `name` is the folder here and in the cache.
setup_python() {
  local dir="$cache/$1" key
  key=$(digest "$here/$1/requirements.txt")
  up_to_date "$dir" "$key" && return
  rm -rf "$dir"
  python3 -m venv "$dir"
  "$dir/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$here/$1/requirements.txt"
  echo "$key" >"$dir/.done"
}

setup_go() {
  local dir="$cache/$1" key
  key=$(digest "$here/$1/go.mod" "$here/$1/go.sum" "$here/$1"/*.go)
  up_to_date "$dir" "$key" && return
  mkdir -p "$dir"
  (cd "$here/$1" && GOFLAGS=-mod=readonly go build -trimpath -o "$dir/driver" .)
  echo "$key" >"$dir/.done"
}

setup_kafkajs() {
  local dir="$cache/kafkajs" key
  key=$(digest "$here/kafkajs/package.json" "$here/kafkajs/package-lock.json")
  up_to_date "$dir" "$key" && return
  rm -rf "$dir"
  mkdir -p "$dir"
  cp "$here/kafkajs/package.json" "$here/kafkajs/package-lock.json" "$dir/"
  (cd "$dir" && npm ci --silent --no-audit --no-fund)
  echo "$key" >"$dir/.done"
}

setup() {
  case $1 in
    java) for version in "${java_versions[@]}"; do setup "java-$version"; done ;;
    java-*) locked "$1" setup_java java "${1#java-}" ;;
    streams) for version in 3.9.2 4.3.1; do setup "streams-$version"; done ;;
    streams-*) locked "$1" setup_java streams "${1#streams-}" ;;
    librdkafka | aiokafka) locked "$1" setup_python "$1" ;;
    franz | sarama) locked "$1" setup_go "$1" ;;
    kafkajs) locked "$1" setup_kafkajs ;;
    *)
      echo "setup.sh: unknown driver $1" >&2
      exit 2
      ;;
  esac
}

[ $# -gt 0 ] || set -- java streams librdkafka aiokafka franz sarama kafkajs
for driver in "$@"; do setup "$driver"; done
