#!/bin/sh
# Makes sure that the programs named as arguments are there, and new enough.
# usage: prerequisites.sh cargo cc java mvn go node python3 …
#
# What is missing is installed with apt-get where that is allowed without a question (root, or sudo without a
# password). Otherwise one line says what to type, and the exit status is 1. Safe to run again: what is there stays.
set -u

oldest_java=17
oldest_node=14
oldest_rust=90 # minor version of Rust 1
oldest_go=21   # minor version of Go 1; from here on Go fetches the toolchain a module asks for

say() { printf 'prerequisites: %s\n' "$*" >&2; }

# first_number TEXT: its first run of digits, 0 if there is none.
first_number() {
  number=$(printf '%s\n' "$1" | sed -n 's/^[^0-9]*\([0-9][0-9]*\).*/\1/p' | head -n 1)
  printf '%s\n' "${number:-0}"
}

# present PROGRAM: true if it runs and is new enough.
present() {
  case $1 in
    java)
      text=$("${JAVA_HOME:+$JAVA_HOME/bin/}java" -version 2>&1) || text=$(java -version 2>&1) || return 1
      text=$(printf '%s\n' "$text" | grep 'version "')
      [ "$(first_number "${text#*version}")" -ge "$oldest_java" ]
      ;;
    go)
      text=$(go version 2>/dev/null) || return 1
      minor=${text#*go1.}
      [ "$minor" != "$text" ] && [ "$(first_number "$minor")" -ge "$oldest_go" ]
      ;;
    javac) javac -version >/dev/null 2>&1 ;;
    node)
      text=$(node --version 2>/dev/null) || return 1
      npm --version >/dev/null 2>&1 && [ "$(first_number "$text")" -ge "$oldest_node" ]
      ;;
    python3) python3 -c 'import venv, ensurepip' >/dev/null 2>&1 ;;
    cargo)
      text=$(cargo --version 2>/dev/null) || return 1
      minor=${text#cargo 1.}
      [ "$minor" != "$text" ] && [ "$(first_number "$minor")" -ge "$oldest_rust" ]
      ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
  esac
}

# packages PROGRAM: the Debian and Ubuntu packages that bring it, empty if apt-get has none that is new enough.
packages() {
  case $1 in
    cc) echo build-essential ;;
    java | javac) java_package ;; # of another age too: the one found is too old
    mvn) echo maven ;;
    go) echo golang-go ;;
    node) echo nodejs npm ;;
    python3) echo python3 python3-venv ;;
    curl | make | git | jq) echo "$1" ;;
  esac
}

# The distribution's own JDK, or 17 by name where that is older.
java_package() {
  candidate=$(apt-cache show default-jdk-headless 2>/dev/null | sed -n 's/^Depends:.*openjdk-\([0-9]*\).*/\1/p' | head -n 1)
  if [ "${candidate:-0}" -ge "$oldest_java" ]; then
    echo default-jdk-headless
  else
    echo openjdk-17-jdk-headless
  fi
}

# The command prefix that may install, or failure.
privilege() {
  command -v apt-get >/dev/null 2>&1 || return 1
  if [ "$(id -u)" -eq 0 ]; then
    echo env
  elif sudo -n true 2>/dev/null; then
    echo sudo -n env
  else
    return 1
  fi
}

missing_of() {
  for program in "$@"; do
    present "$program" || printf '%s ' "$program"
  done
}

# Where to get what the package manager has not, or only too old.
download() {
  case $1 in
    cargo) echo "curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\"" ;;
    go) echo "echo get Go 1.$oldest_go or newer from https://go.dev/dl" ;;
    node) echo "echo get Node.js $oldest_node or newer from https://nodejs.org/en/download" ;;
    *) echo "echo install $1" ;;
  esac
}

# What to type for the programs named, as one line.
advice() {
  apt_list=
  line=
  for program in "$@"; do
    # There but too old: the package manager has had its turn.
    if command -v "$program" >/dev/null 2>&1 || [ -z "$(packages "$program")" ]; then
      line="${line:+$line && }$(download "$program")"
    else
      apt_list="$apt_list $(packages "$program")"
    fi
  done
  if [ -n "$apt_list" ]; then
    line="sudo apt-get update && sudo apt-get install -y$apt_list${line:+ && $line}"
  fi
  printf '%s\n' "$line"
}

install_missing() {
  as_root=$(privilege) || return 1
  # The package lists of a fresh machine are empty, and the choice of a JDK reads them.
  say "missing: $*; running apt-get update"
  $as_root apt-get update -q >/dev/null || say "apt-get update failed, going on with the lists there are"
  list=
  for program in "$@"; do
    package=$(packages "$program")
    list="$list${package:+ $package}"
  done
  [ -n "$list" ] || return 1
  say "running apt-get install$list"
  # shellcheck disable=SC2086 # words on purpose
  $as_root DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $list >&2
}

missing=$(missing_of "$@")
if [ -n "$missing" ]; then
  # shellcheck disable=SC2086 # names without spaces
  install_missing $missing
  # shellcheck disable=SC2086
  missing=$(missing_of $missing)
fi
if [ -n "$missing" ]; then
  # shellcheck disable=SC2086
  say "missing or too old: ${missing% }; type: $(advice $missing)"
  exit 1
fi
