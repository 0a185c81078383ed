#!/bin/bash
#
# sandbox: run a command that is not to be trusted in a clone (figure 2a).
#
#     sandbox.sh COMMAND [ARGUMENT...]
#
# The command finds everything as it is, and may change or remove whatever it
# wants: it does so in a clone, which is gone afterwards with all the damage. What
# it prints, and its exit status, are relayed. One that does not end within $LIMIT
# seconds (60) is killed with its VM, and the status is 124; one that takes its VM
# down, as it may, has the status 125.
#
# A clone is as much of a sandbox as its ways out are closed. The files of the
# machine that runs the VMs are one, so the shared folders are taken away before
# the command begins; the private network of the job is another, and stays.

set -u

# unshare_folders takes every shared folder away. Files that are open in them stay
# open.
unshare_folders() {
	local share
	cd / && findmnt -rn -t 9p -o TARGET | tac | while read -r share; do
		umount -l "$share" || return 1
	done
}

main() {
	local id status ticket
	if (($# == 0)); then
		echo "usage: sandbox.sh COMMAND [ARGUMENT...]" >&2
		exit 2
	fi
	# How the clone's output comes here: it is lost otherwise.
	folder=$(mktemp -d "$PWD/sandbox.XXXXXX") || exit 1
	trap 'rm -rf "$folder"' EXIT

	ticket=$(sf request-ticket 1) && id=$(sf clone "$ticket") || exit 1
	if ((id > 0)); then
		exec </dev/null >"$folder/out" 2>"$folder/err" && unshare_folders || sf exit 125
		"$@"
		sf exit "$?"
	fi

	status=
	read -r _ status < <(sf join -t "${LIMIT:-60}" "$ticket")
	case $status in
	lost) status=125 ;; # it took the clone down with it
	"") # its time is over
		sf kill "$ticket"
		status=124
		;;
	esac
	cat "$folder/out"
	cat "$folder/err" >&2
	exit "$status"
}
main "$@"
