#!/usr/bin/env bash
# Runs Ollama and tenure in one container, for hosts that run a single one:
# Ollama with the settings that tenure needs, then the catalog's models with
# progress, then tenure. When either of the two ends, the other is stopped and
# the container ends, for its host to start it anew.
#
# tenure's settings and Ollama's are environment variables, as everywhere; those
# of this script are
#
#   TENURE_PULL          true: models that cannot be had end the start (default)
#                        try: go on without them
#                        false: fetch none
#   OLLAMA_START_WAIT    seconds for Ollama to answer (default 60)
set -euo pipefail

exec 3>&2 # what is said is heard where a command's own words are not
say() { echo "start: $*" >&3; }

# Any other client would load models behind tenure's back: Ollama listens here
# alone, whatever its image says.
port=11434
if [[ ${OLLAMA_HOST:-} =~ :([0-9]+)/?$ ]]; then port=${BASH_REMATCH[1]}; fi
export OLLAMA_HOST=127.0.0.1:$port

# Ollama must never evict by itself: not by its count, not by the clock.
export OLLAMA_MAX_LOADED_MODELS=${OLLAMA_MAX_LOADED_MODELS:-${MAX_CONCURRENT_MODELS:-3}}
export OLLAMA_KEEP_ALIVE=${OLLAMA_KEEP_ALIVE:--1}
# Each slot has a context of its own in GPU memory.
export OLLAMA_NUM_PARALLEL=${OLLAMA_NUM_PARALLEL:-1}
# CVs stay on this machine.
export OLLAMA_NO_CLOUD=${OLLAMA_NO_CLOUD:-1}
export TENURE_LISTEN=${TENURE_LISTEN:-0.0.0.0:11435}

pull=${TENURE_PULL:-true}
case $pull in
true | try | false) ;;
*)
	say "TENURE_PULL: \"$pull\" was read, true, try or false is allowed"
	exit 2
	;;
esac
# A wrong setting is told before gigabytes are pulled.
tenure serve --print-config >/dev/null

ollama='' # process ids, "" when it does not run
tenure=''
stopped=false

stop() {
	stopped=true
	if [[ -n $tenure ]]; then kill -TERM "$tenure" 2>/dev/null || true; fi
}
trap stop TERM INT

# Ollama goes last: tenure lets the answers under way finish, and needs it for that.
# shellcheck disable=SC2317 # the trap reaches it
finish() {
	trap '' TERM INT
	if [[ -n $tenure ]]; then
		kill -TERM "$tenure" 2>/dev/null || true
		wait "$tenure" || true
	fi
	if [[ -n $ollama ]]; then
		kill -TERM "$ollama" 2>/dev/null || true
		# Ollama 0.17.4 can hang in its own shutdown, after a load that was broken off.
		for ((i = 0; i < 50; i++)); do
			kill -0 "$ollama" 2>/dev/null || break
			sleep 0.1
		done
		if kill -KILL "$ollama" 2>/dev/null; then say "ollama did not stop within 5 s and was killed"; fi
		wait "$ollama" || true
		say "ollama stopped"
	fi
}
trap finish EXIT

# beside CMD...: runs a command while Ollama runs, and returns its exit code.
# Without Ollama it ends the script.
beside() {
	"$@" &
	tenure=$!
	local code=0
	if $stopped; then stop; fi # the signal came before there was anything to stop
	while kill -0 "$tenure" 2>/dev/null && kill -0 "$ollama" 2>/dev/null; do
		wait -n "$tenure" "$ollama" || true # one of them, or a signal
	done
	if kill -0 "$tenure" 2>/dev/null; then
		wait "$ollama" || code=$?
		ollama=''
		say "ollama ended by itself, exit code $code"
		exit 1
	fi
	wait "$tenure" || code=$?
	tenure=''
	return "$code"
}

ollama serve &
ollama=$!
say "ollama serve: OLLAMA_HOST=$OLLAMA_HOST OLLAMA_MAX_LOADED_MODELS=$OLLAMA_MAX_LOADED_MODELS OLLAMA_NUM_PARALLEL=$OLLAMA_NUM_PARALLEL OLLAMA_KEEP_ALIVE=$OLLAMA_KEEP_ALIVE"
deadline=$((SECONDS + ${OLLAMA_START_WAIT:-60}))
until beside ollama list >/dev/null 2>&1; do
	if $stopped; then exit 143; fi
	if ((SECONDS >= deadline)); then
		say "ollama does not answer after ${OLLAMA_START_WAIT:-60} s"
		exit 1
	fi
	sleep 0.2
done

if [[ $pull != false ]] && ! beside tenure pull; then
	if $stopped; then exit 143; fi
	if [[ $pull == true ]]; then
		say "not all models could be pulled; TENURE_PULL=try goes on without them"
		exit 1
	fi
	say "not all models could be pulled, going on without them"
fi
if $stopped; then exit 143; fi

code=0
beside tenure serve || code=$?
say "tenure ended, exit code $code"
exit "$code"
