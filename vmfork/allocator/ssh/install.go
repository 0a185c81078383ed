package ssh

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

const (
	// scriptLimit is for each thing that the far shell has to say, or to take.
	scriptLimit = 60 * time.Second
	// maxNoise bounds what a login shell may print before the script speaks.
	maxNoise = 64 << 10
)

// script runs on the host, by sh. Its arguments are a mark that begins what it
// says, the name and the size of the program, as whom it runs, and the program's
// arguments. It
// is one line without exclamation marks, so that any login shell, csh and fish
// too, leaves it as it is between single quotes. In the order of its parts:
//
//   - become the program at once, if it is in the user's cache and needs no root:
//     then no other program is started before it, each of which would take longer
//     than all the rest of the script;
//   - how to become root, if it runs as that;
//   - where the program is: in the user's cache, or if it cannot be run from
//     there (not writable, mounted noexec, or root may not read it, as on NFS),
//     in a folder of the user's in /tmp that nobody else could have made;
//   - if it is not there: take it, under a name that no other host or process
//     uses, and its hash after it, check it, rename it, and remove all but the three
//     that came or were used last;
//   - become the program.
const script = `mark=$1; name=$2; size=$3; whom=$4; shift 4; umask 022; cd /; dir=${HOME:-/nonexistent}/.cache/mpirun-sf/bin/$name; ` +
	`if [ "$whom" = user ] && [ -x "$dir/mpirun-sf" ]; then true 2>/dev/null >"$dir/.used"; echo "$mark run $$"; exec "$dir/mpirun-sf" "$@"; fi; ` +
	`me=$(id -u); as=; ` +
	`if [ "$me" -ne 0 ] && [ "$whom" = root ]; then as="sudo -n"; sudo -n true || { echo "$mark sudo $(id -un)"; exit 1; }; fi; ` +
	`runs() { if [ -n "$as" ]; then $as test -x "$1"; else test -x "$1"; fi; }; ` +
	`mine() { if [ -L "$1" ]; then return 1; fi; [ -d "$1" ] && [ -O "$1" ]; }; ` +
	`found=; room=; ` +
	`for base in "${HOME:-/nonexistent}/.cache/mpirun-sf" "/tmp/mpirun-sf-$me"; do ` +
	`case $base in "/tmp/mpirun-sf-$me") mkdir -m 755 "$base" 2>/dev/null; mine "$base" || continue;; *) [ -d "${HOME:-/nonexistent}" ] || continue;; esac; ` +
	`dir=$base/bin/$name; ` +
	`if runs "$dir/mpirun-sf"; then found=$dir/mpirun-sf; touch -c "$dir" 2>/dev/null; break; fi; ` +
	`mkdir -p "$dir" 2>/dev/null || continue; ` +
	`try=$dir/.try.$(uname -n).$$; ` +
	`if true 2>/dev/null >"$try" && chmod 755 "$try" && runs "$try"; then rm -f "$try"; room=$base; break; fi; rm -f "$try"; rmdir "$dir" 2>/dev/null; ` +
	`done; ` +
	`if [ -z "$found" ]; then ` +
	`if [ -z "$room" ]; then echo "$mark room $HOME/.cache/mpirun-sf /tmp/mpirun-sf-$me"; exit 1; fi; ` +
	`dir=$room/bin/$name; found=$dir/mpirun-sf; new=$dir/.new.$(uname -n).$$; trap "rm -f \"$new\"" EXIT HUP INT TERM PIPE; ` +
	`echo "$mark want"; ` +
	`head -c "$size" >"$new" || { echo "$mark full $dir"; exit 1; }; ` +
	`[ "$(wc -c <"$new")" -eq "$size" ] || { echo "$mark short $dir"; exit 1; }; ` +
	`IFS= read -r hash; if command -v sha256sum >/dev/null; then sum=$(sha256sum <"$new"); case $sum in "$hash "*) ;; *) echo "$mark differs $dir"; exit 1;; esac; fi; ` +
	`chmod 755 "$new" && mv -f "$new" "$found" || { echo "$mark full $dir"; exit 1; }; ` +
	`for old in "$room"/bin/*; do if [ "$old/.used" -nt "$old" ]; then touch -c -r "$old/.used" "$old"; fi; done; touch -c "$dir"; ls -1t "$room/bin" | tail -n +4 | while read -r old; do case $old in ????????????????????????????????) rm -rf "$room/bin/$old";; esac; done; ` +
	`trap - EXIT HUP INT TERM PIPE; ` +
	`fi; ` +
	`echo "$mark run $$"; exec $as "$found" "$@"`

// stopper ends the process of a number and those that it started, the youngest
// first: sudo does not take what it started with it.
const stopper = `down() { for c in $(cat /proc/$1/task/$1/children 2>/dev/null); do down $c; done; kill -KILL $1 2>/dev/null; }; down `

// binary is a program as it is sent to hosts.
type binary struct {
	path string
	size int64
	name string // allocator.NameOf it; 32 digits, on which script counts
}

// binaries knows the names of programs that did not change since.
type binaries struct {
	mu  sync.Mutex
	all map[string]binary // by path, size and time
}

func (b *binaries) open(path string) (binary, error) {
	f, err := os.Open(path)
	if err != nil {
		return binary{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return binary{}, err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || info.Size() == 0 {
		return binary{}, fmt.Errorf("%s is not an executable file", path)
	}
	key := fmt.Sprint(path, info.Size(), info.ModTime().UnixNano())
	b.mu.Lock()
	defer b.mu.Unlock()
	if one, ok := b.all[key]; ok {
		return one, nil
	}
	name, err := allocator.NameOf(f, info.Size())
	if err != nil {
		return binary{}, err
	}
	one := binary{path, info.Size(), name}
	b.all[key] = one
	return one, nil
}

// quote makes a word of a shell's command line.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// quoteAll makes a command line of words.
func quoteAll(words ...string) string {
	for i, w := range words {
		words[i] = quote(w)
	}
	return strings.Join(words, " ")
}

// begin runs the script in a session, and takes the program there if it has to.
// The session is the program afterwards: pid is its number on the host, and out
// reads what it prints.
func (b binary) begin(ctx context.Context, c *connection, session *ssh.Session, in io.Writer, stdout io.Reader, whom string, args []string) (pid int, out *bufio.Reader, err error) {
	w := watch(ctx, c.Client, scriptLimit, "for its login shell")
	defer w.stop()
	// What was said meanwhile is not the cause.
	explain := func(err error) error {
		if over := w.over(); over != nil {
			return over
		}
		if lost := c.lost.get(); lost != nil {
			return lost
		}
		return err
	}
	mark := rand.Text()
	line := append([]string{"exec", "/bin/sh", "-c", script, "sh", mark, b.name, strconv.FormatInt(b.size, 10), whom}, args...)
	if err := session.Start("exec " + quoteAll(line[1:]...)); err != nil {
		return 0, nil, fmt.Errorf("start a shell: %w", explain(err))
	}
	out = bufio.NewReader(stdout)
	sent := false
	var unsent error // why not all of the program went
	for {
		answer, err := readMark(out, mark)
		if err == io.EOF && unsent != nil {
			return 0, nil, fmt.Errorf("copy %s to the host: %w", b.path, explain(unsent))
		}
		if err == io.EOF && w.over() == nil {
			err = endOf(session)
		}
		if err != nil {
			return 0, nil, fmt.Errorf("prepare the host: %w", explain(err))
		}
		word, rest, _ := strings.Cut(answer, " ")
		switch word {
		case "run":
			if pid, err = strconv.Atoi(rest); err != nil || pid < 2 {
				return 0, nil, fmt.Errorf("prepare the host: %q is not a process", rest)
			}
			if !w.stop() {
				return 0, nil, explain(io.ErrUnexpectedEOF)
			}
			return pid, out, nil
		case "want":
			if sent {
				return 0, nil, errors.New("prepare the host: it wants the program twice")
			}
			sent = true
			// A shell that takes no more says why.
			if unsent = b.send(in, w); unsent != nil && !errors.Is(unsent, io.EOF) {
				return 0, nil, fmt.Errorf("copy %s to the host: %w", b.path, explain(unsent))
			}
			w.next(scriptLimit, "for its shell to take the program")
		case "sudo":
			return 0, nil, &needsRoot{user: rest}
		case "room":
			first, second, _ := strings.Cut(rest, " ")
			return 0, nil, fmt.Errorf("prepare the host: programs can be written and run neither in %s nor in %s; are they mounted noexec, or full?", first, second)
		case "full":
			return 0, nil, fmt.Errorf("copy %s to the host: it could not be written in %s; is the disk full?", b.path, rest)
		default:
			return 0, nil, fmt.Errorf("copy %s to the host: what arrived in %s is not what was sent (%s)", b.path, rest, word)
		}
	}
}

// endOf is how a shell ended that has no more to say; what it said on standard
// error is there then.
func endOf(session *ssh.Session) error {
	ended := make(chan error, 1)
	go func() { ended <- session.Wait() }()
	var exit *ssh.ExitError
	select {
	case err := <-ended:
		if errors.As(err, &exit) {
			return fmt.Errorf("its login shell ended with status %d, and did not do what it was told", exit.ExitStatus())
		}
	case <-time.After(time.Second):
	}
	return errors.New("its login shell ended, and did not do what it was told")
}

// needsRoot is that sudo asks for a password.
type needsRoot struct{ user string }

func (e *needsRoot) Error() string {
	return fmt.Sprintf(`virtual machines need root there: log in as root (root@HOST), or let sudo work without a password, by "%s ALL=(root) NOPASSWD: ALL" in /etc/sudoers.d/mpirun-sf on the host`, e.user)
}

// send writes the program, and then its hash; each part of it has its time.
func (b binary) send(to io.Writer, w *watchdog) error {
	f, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256<<10)
	hash := sha256.New()
	for left := b.size; left > 0; {
		n, err := f.Read(buf[:min(left, int64(len(buf)))])
		if n == 0 && err != nil {
			return fmt.Errorf("read %s: %w", b.path, err)
		}
		hash.Write(buf[:n])
		w.next(scriptLimit, "for it to take the program")
		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	_, err = fmt.Fprintf(to, "%x\n", hash.Sum(nil))
	return err
}

// readMark reads what the script says next, and passes over what a login shell
// says by itself.
func readMark(out *bufio.Reader, mark string) (string, error) {
	var line []byte
	for range maxNoise {
		c, err := out.ReadByte()
		if err != nil {
			return "", err
		}
		if c != '\n' {
			line = append(line, c)
			continue
		}
		// A prompt without a line end may stand before it.
		if _, said, ok := strings.Cut(string(line), mark+" "); ok {
			return strings.TrimSpace(said), nil
		}
		line = line[:0]
	}
	return "", fmt.Errorf("its login shell printed more than %d bytes, and nothing of what it was told to", maxNoise)
}
