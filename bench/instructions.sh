#!/bin/sh
# Instructions a request, counted by callgrind: the same on a busy machine as on an idle one. Each load runs at two sizes; the difference is
# what a request takes. The engine's rows are exact; those of the whole package differ by a few instructions between runs.
set -eu
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo 'valgrind is not installed (Debian: apt-get install valgrind)' >&2; exit 1; }
python=${PYTHON:-.venv/bin/python}
few=2000 many=6000

count() { # command...: instructions of a run
	valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" 2>&1 >/dev/null | sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

each() { # command with @ for the size...: instructions a request
	low=$(count $(echo "$*" | sed "s/@/$few/"))
	high=$(count $(echo "$*" | sed "s/@/$many/"))
	echo $(((high - low) / (many - few)))
}

cargo build --quiet --release --locked --package tidegate-core --example instructions --example scopes
examples=${CARGO_TARGET_DIR:-target}/release/examples
engine=$examples/instructions

printf '%-44s %s\n' 'engine alone' 'instructions a request'
for load in submit submit-timeout cycle cycle-timeout cycle-held cycle-two-limits cycle-three-backends cycle-dead \
	cycle-adaptive cycle-adaptive-timeout cycle-three-adaptive cycle-three-adaptive-timeout; do
	printf '  %-42s %6d\n' "$load" "$(each "$engine" $load @)"
done

printf '%-44s %s\n' 'a dispatch with limits per host' 'instructions a request'
for load in 'strict 100 1' 'strict 10000 1' 'strict 100000 1' 'strict 10000 50' 'strict 10000 500' 'fair 10000 1'; do
	set -- $load
	printf '  %-42s %6d\n' "$1, $2 hosts, accounts: $3" "$(each "$examples/scopes" dispatch $load @)"
done

printf '%-44s %s\n' 'the state of a host' 'bytes a host'
for load in 'bucket 10000' 'bucket 100000' 'bucket 1000000' 'window 100000'; do
	set -- $load
	printf '  %-42s %6d\n' "$1, $2 hosts" "$("$examples/scopes" memory $load)"
done

printf '%-44s\n' 'in Python, uvloop, a handler that does not suspend'
for load in bare idiom dispatch map fetch; do
	printf '  %-42s %6d\n' "$load" "$(PYTHONHASHSEED=0 each "$python" bench/once.py $load @)"
done
