#!/bin/bash
# The conformance program for shells; see ../README.md. Run it in a virtual machine that
# may fork, with sf in PATH, and nc or busybox: it prints one line for each step, and the
# last is "conformance: ok". Where something differs it says what and exits with 1.

patience=120 # seconds
trap '' PIPE # an end of a connection is an error like others

fail() {
	echo "conformance: $*"
	exit 1
}

expect() { # STEP GOT WANT
	[[ $2 == "$3" ]] || fail "$1: got $2, want $3"
	echo "$1: $2"
}

# What became of a command: ok, or the kind of its error.
kind() {
	local error
	if error=$("$@" 2>&1 >/dev/null); then
		echo ok
	else
		error=${error#sf: }
		for kind in invalid unknown refused state resources failed lost timeout killed cloned version unavailable; do
			[[ $error != *"$kind: "* ]] || { echo "$kind"; return; }
		done
		echo "$error"
	fi
}

if command -v nc >/dev/null; then
	netcat=(nc)
elif command -v busybox >/dev/null; then
	netcat=(busybox nc)
else
	fail "there is no nc (packages netcat-openbsd, busybox)"
fi

listening() {
	grep -qs "$(printf ':%04X [0-9A-F]*:0000 0A' "$port")" /proc/net/tcp /proc/net/tcp6
}

# Let one child call, and after it the next.
listen() {
	coproc CALL { exec "${netcat[@]}" -l -p "$port"; }
	call=$CALL_PID
	exec {from}<&"${CALL[0]}" {to}>&"${CALL[1]}"
	eval "exec ${CALL[0]}<&- ${CALL[1]}>&-" # or nc would see no end
}

# Before a fork, so that the socket is in the clones as well.
await_listening() {
	local i
	for ((i = 0; i < 100; i++)); do
		! listening || return 0
		sleep 0.1
	done
	fail "nc does not listen"
}

# One child's line, in $heard.
hear() {
	read -r -t "$patience" heard <&"$from" || fail "no child has called within $patience s"
	echo heard >&"$to"
	exec {from}<&- {to}>&-
	wait "$call"
}

# What a clone does: tells the parent what it saw, and ends when that has arrived. Children
# take turns, so it may have to come again.
child() { # ID SAW STATUS
	local i answer
	for ((i = 0; i < patience; i++)); do
		{ echo "child $1 saw $2" >&3 && read -r -t 10 answer <&3; } 3<>"/dev/tcp/$parent/$port"
		[[ $answer != heard ]] || sf exit "$3"
		sleep 1
	done 2>/dev/null
	sf exit 100
	exit 1
}

joined() { # TICKET
	sf join -t "$patience" "$1" | tr ' ' ':' | paste -sd ' '
}

read -r id _ parent _ < <(sf whoami)
expect whoami "id $id" "id 0"

port=$((20000 + RANDOM % 10000))
while listening; do
	port=$((port + 1))
done
listen
await_listening

value=42
ticket=$(sf request-ticket 2) || fail "request-ticket"
granted=$(sf ticket "$ticket" | wc -l)
ids=$(sf ticket "$ticket" | cut -d ' ' -f 1 | paste -sd ' ')
addresses=$(sf ticket "$ticket" | cut -d ' ' -f 3 | sort -u | wc -l)
expect ticket "granted $granted, ids $ids, $addresses addresses" "granted 2, ids 1 2, 2 addresses"

id=$(sf clone "$ticket") || fail "clone"
if ((id > 0)); then
	child "$id" "$value" "$id"
fi
hear
first=$heard
listen
hear
{ read -r first && read -r second; } < <(printf '%s\n' "$first" "$heard" | sort)
expect clone "$first" "child 1 saw 42"
expect clone "$second" "child 2 saw 42"
expect join "$(joined "$ticket")" "1:1 2:2"
expect "join again" "$(kind sf join -t "$patience" "$ticket")" unknown
expect "clone after join" "$(kind sf clone "$ticket")" unknown

expect "exit in the parent" "$(kind sf exit 0)" refused

ticket=$(sf request-ticket 1) || fail "request-ticket"
id=$(sf clone "$ticket") || fail "clone"
while ((id > 0)); do
	sleep 1
done
expect kill "$(kind sf kill "$ticket")" ok
expect "join after kill" "$(kind sf join -t "$patience" "$ticket")" unknown

listen
await_listening
value=7
read -r checkpoint id < <(sf checkpoint) || fail "checkpoint"
if ((id > 0)); then
	child "$id" "$value" 0
fi
value=8
ticket=$(sf request-ticket 1) || fail "request-ticket"
sf create-clones "$checkpoint" "$ticket" || fail "create-clones"
hear
expect create-clones "$heard" "child 1 saw 7"
expect join "$(joined "$ticket")" "1:0"

sf discard "$checkpoint" || fail "discard"
ticket=$(sf request-ticket 1) || fail "request-ticket"
expect "create-clones after discard" "$(kind sf create-clones "$checkpoint" "$ticket")" unknown
sf kill "$ticket" || fail "kill"
echo "conformance: ok"
