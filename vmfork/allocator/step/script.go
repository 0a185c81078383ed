package step

import (
	"fmt"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// second is what the first script does as root: run the script that it reads.
// head takes no byte more than it is asked for, and read none after the line.
const second = `IFS= read -r n; eval \"\$(head -c \"\$n\")\"`

// first has no single quote, no line end and no exclamation mark, so that every
// login shell, csh too, takes it as it is between single quotes.
const first = `s=; [ "$(id -u)" = 0 ] || s="sudo -n --"; ` +
	`[ -t 1 ] || exec $s /bin/sh -c "` + second + `"; ` +
	`exec 4>&1; exit "$( { { $s /bin/sh -c "` + second + `" 3>&- 4>&-; echo $? >&3; } | cat >&4 3>&- 4>&-; } 3>&1 )"`

// Shell is the command line that the far end has to be, in words.
func Shell() []string { return []string{"/bin/sh", "-c", first} }

// ShellLine is the same for a far end that joins words and gives them to a
// login shell.
func ShellLine() string { return "exec /bin/sh -c '" + first + "'" }

// guard is the second script, after the assignments that order makes.
//
// The pipe is a named one for a moment only. The folder can go once both ends
// are open, and the program once a descriptor has it: the far sh cannot be
// asked to close it before the program starts. A resource manager that ends a job
// may signal all its processes more than once: the second time must not hit who
// tidies up. What the guard starts is killed by KILL, because a shell that has
// just forked loses any other signal. Nothing says anything on a standard error
// that may be gone, for that would be SIGPIPE.
const guard = `
PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
export PATH
umask 022
cd / || exit 125
dir=
trap 'trap "" HUP INT TERM; [ -z "$dir" ] || rm -rf "$dir"' EXIT
trap 'exit 125' HUP INT TERM
dir=$(mktemp -d "${TMPDIR:-/tmp}/mpirun-sf.XXXXXX") || exit 125
mkfifo "$dir/in" || exit 125
if ! [ -x "$program" ] || [ "$(sha256sum <"$program" 2>/dev/null)" != "$hash  -" ]; then
	echo "$mark want"
	head -c "$size" >"$dir/program" || exit 125
	if [ "$(wc -c <"$dir/program")" -ne "$size" ]; then
		echo "only a part of $program arrived in $dir" >&2
		exit 125
	fi
	chmod 700 "$dir/program" || exit 125
	exec 5<"$dir/program"
	program=/proc/self/fd/5
fi
exec 4<&0
echo "$mark run"
"$program" "$@" <"$dir/in" 4<&- &
child=$!
exec 6>"$dir/in" 5<&-
rm -rf "$dir"
trap - EXIT HUP INT TERM
(
	trap 'kill -KILL "$!"; wait "$!"; exit 0' TERM
	cat <&4 >&6 &
	exec 6>&-
	wait "$!" || { cat <&4 >/dev/null & wait "$!"; }
	exec 4<&-
	sleep "$limit" &
	wait "$!"
	kill -KILL "$child"
) >/dev/null 2>&1 &
watch=$!
exec 4<&- 6>&-
wait "$child" 2>/dev/null
status=$?
kill -TERM "$watch" 2>/dev/null
wait "$watch" 2>/dev/null
exit "$status"
`

// order makes the second script.
func order(mark string, b binary, args []string, limit time.Duration) string {
	var s strings.Builder
	fmt.Fprintf(&s, "mark=%s\nprogram=%s\nhash=%s\nsize=%d\nlimit=%d\nset --", mark, quote(b.path), b.hash, b.size, int(limit/time.Second))
	for _, a := range args {
		s.WriteString(" " + quote(a))
	}
	s.WriteString(guard)
	return s.String()
}

// killLimit is when the local command is killed: later than the far guard acts,
// also on a host with much else to do.
const killLimit = allocator.CloseLimit + 20*time.Second

// quote makes a word for sh.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
