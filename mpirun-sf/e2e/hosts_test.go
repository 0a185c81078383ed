package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// A farm is some hosts with SSH between them, and mpirun-sf on the first. What a
// host makes for itself is in folders of its own, but for the first, whose cache
// is that of all other tests.
type farm struct {
	*testcluster.Cluster
	before []string // what each host had at first
}

// hosts is the farm that the tests of all jobs on many hosts share. Each leaves it as it was.
var hosts sharedFarm

type sharedFarm struct {
	once sync.Once
	farm *farm
	err  error
}

// farmSize is how many hosts the shared farm has.
const farmSize = 3

func (s *sharedFarm) begin(t *testing.T) *farm {
	t.Helper()
	s.once.Do(func() { s.farm, s.err = newFarm(filepath.Join(filepath.Dir(launcher), "farm"), farmSize) })
	if s.err != nil {
		t.Fatalf("the hosts that jobs run on: %v", s.err)
	}
	return s.farm
}

// end ends the shared farm, if it was begun.
func (s *sharedFarm) end() error {
	if s.farm == nil {
		return nil
	}
	return s.farm.Close()
}

// newFarm makes hosts whose files are in dir.
func newFarm(dir string, n int) (*farm, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c, err := testcluster.New(ctx, testcluster.Options{Hosts: n, Dir: dir})
	if err != nil {
		return nil, err
	}
	f := &farm{Cluster: c}
	for _, h := range c.Hosts() {
		for _, folder := range []string{f.cache(h.Number), f.temp(h.Number)} {
			if err := os.MkdirAll(folder, 0o700); err != nil {
				c.Close()
				return nil, err
			}
		}
		// Sessions have our mark, and their own cache.
		if err := h.SSHD(ctx, "SetEnv "+strings.Join(append(f.folders(h.Number), marker), " ")); err != nil {
			c.Close()
			return nil, err
		}
	}
	if err := f.addUser(ctx); err != nil {
		c.Close()
		return nil, err
	}
	for _, h := range c.Hosts() {
		f.before = append(f.before, f.has(h.Number))
	}
	return f, nil
}

// addUser makes the user that sudo is called by one of the first host's, with the
// keys that root has: with theirs the launcher logs in to the others.
func (f *farm) addUser(ctx context.Context) error {
	const script = `
mkdir -m 755 "$1"
cp -a "$HOME/.ssh" "$1"
chown -R "$2:$3" "$1"
echo "user:x:$2:$3::$1:/bin/sh" >> /etc/passwd`
	home := filepath.Join(f.Dir(), "user")
	cmd := f.Host(0).Command(ctx, "sh", "-e", "-c", script, "sh", home, strconv.Itoa(uid), strconv.Itoa(gid))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("add a user to host0: %w: %s", err, out)
	}
	return nil
}

func (f *farm) cache(host int) string {
	if host == 0 {
		return cacheDir
	}
	return filepath.Join(f.Dir(), fmt.Sprintf("cache%d", host))
}

func (f *farm) temp(host int) string { return filepath.Join(f.Dir(), fmt.Sprintf("tmp%d", host)) }

func (f *farm) folders(host int) []string {
	return []string{"XDG_CACHE_HOME=" + f.cache(host), "TMPDIR=" + f.temp(host)}
}

// start starts mpirun-sf on the first host.
func (f *farm) start(t *testing.T, c command) *running {
	t.Helper()
	h := f.Host(0)
	cmd := h.Command(context.Background(), launcher, c.args...)
	c.enter = cmd
	c.env = slices.Concat(f.folders(0), []string{"HOME=" + h.Home}, c.env)
	r := c.start(t)
	r.settled = func() {
		t.Helper()
		f.settles(t)
	}
	return r
}

// has is what there is on a host that a job could leave there.
func (f *farm) has(host int) string {
	select {
	case <-f.Host(host).Dead():
		return ""
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// The processes of a session of SSH have no mark that they could be known by.
	const script = `
ps -eo args | grep -v -e '^testcluster-' -e '^ps ' -e '^grep ' -e '^sed ' -e '^sort' -e '^sh -c' -e '^setpriv ' | sed 's/[0-9]* of [0-9-]* startups//' | sort
ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/link \1/'
ip -o -d link show type vxlan
awk '{ print "mount", $5 }' /proc/self/mountinfo
find /run ! -type d -printf 'file %p\n'
find "$@" -printf 'file %p\n'
nft list tables
`
	cmd := f.Host(host).Command(ctx, "sh", "-c", script, "sh", f.temp(host))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("look at host%d: %v\n%s", host, err, out)
	}
	all := string(out)
	for _, file := range temporaryFiles(f.cache(host)) {
		all += file + "\n"
	}
	return all
}

// settles waits until no host that lives has anything that it had not at first.
func (f *farm) settles(t *testing.T) {
	t.Helper()
	for n := range f.Hosts() {
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			left := newLines(f.before[n], f.has(n))
			if len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("left on host%d:\n\t%s", n, strings.Join(left, "\n\t"))
				break
			}
		}
	}
}

// newLines are those that were not there before.
func newLines(before, now string) (out []string) {
	old := strings.Split(before, "\n")
	for line := range strings.SplitSeq(strings.TrimSpace(now), "\n") {
		if i := slices.Index(old, line); i >= 0 {
			old = slices.Delete(old, i, i+1)
		} else if line != "" {
			out = append(out, line)
		}
	}
	return out
}

// over are a job's options for the hosts of the farm, so many of the first: each
// takes one clone before the next is asked, the last one all the rest.
func (f *farm) over(n int, args []string) []string {
	ranks := 1
	if i := slices.Index(args, "-ppn"); i >= 0 {
		ranks, _ = strconv.Atoi(args[i+1])
	}
	var names []string
	for _, h := range f.Hosts()[:n] {
		names = append(names, fmt.Sprintf("%s:%d", h.Name, ranks))
	}
	names[n-1] = f.Host(n - 1).Name
	return append([]string{"--hosts", strings.Join(names, ",")}, args...)
}
