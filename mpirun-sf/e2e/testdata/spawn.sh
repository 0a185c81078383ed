#!/bin/sh
# Speaks PMI as MPICH's library does. Spawns, one after another, as many ranks as each argument says. "stay" makes all
# that were spawned wait, and what spawned them.
say() { echo "cmd=$*" >&3; }
hear() { read -r answer <&3; }

say init pmi_version=1 pmi_subversion=1; hear
if [ "$PMI_SPAWNED" = 1 ]; then
	echo "child $PMI_RANK of $PMI_SIZE on $(hostname)"
	say barrier_in; hear
	[ "$1" = stay ] && sleep 600
else
	for n; do :; done
	[ "$n" = stay ] && stay=stay
	for n; do
		[ "$n" = stay ] && continue
		printf 'mcmd=spawn\nnprocs=%s\nexecname=%s\ntotspawns=1\nspawnssofar=1\narg1=%s\nargcnt=1\npreput_num=0\ninfo_num=0\nendcmd\n' "$n" "$0" "${stay:--}" >&3
		hear
		echo "spawn $n: $answer"
	done
	[ "$stay" ] && sleep 600
fi
say finalize; hear
