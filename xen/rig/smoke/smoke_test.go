package smoke

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/xen/rig"
)

// soon is how long anything may take in a machine that is emulated, on one that is busy.
const soon = 5 * time.Minute

// xl runs the tool, which must succeed.
func xl(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	begin := time.Now()
	out, err := exec.CommandContext(ctx, "xl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("xl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	t.Logf("xl %s: %v", args[0], time.Since(begin).Round(10*time.Millisecond))
	return string(out)
}

// A tick is a line of the rig's guest.
type tick struct {
	who    string
	number int
	state  string
}

// heard are the lines that the guest has printed so far.
func heard(t *testing.T, name string) (ticks []tick) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/var/log/xen/console", "guest-"+name+".log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(b), "\n")
	for _, l := range lines[:len(lines)-1] {
		var k tick
		if n, _ := fmt.Sscanf(l, "rig guest %s %d %s", &k.who, &k.number, &k.state); n == 3 {
			ticks = append(ticks, k)
		}
	}
	return ticks
}

// await waits until the guest has printed so many lines.
func await(t *testing.T, name string, lines int) []tick {
	t.Helper()
	for end := time.Now().Add(soon); ; time.Sleep(50 * time.Millisecond) {
		if h := heard(t, name); len(h) >= lines {
			return h
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(filepath.Join("/var/log/xen/console", "guest-"+name+".log"))
			t.Fatalf("waited %v for %d lines of the guest %s; its console has\n%s", soon, lines, name, b)
		}
	}
}

// TestLifecycle: a guest starts, is saved, goes on from where it stood when restored,
// and leaves nothing. The driver's tests do as much; this one tells whether it is the rig that fails.
func TestLifecycle(t *testing.T) {
	if os.Getenv("MPIRUN_SF_TEST_ALL") == "" {
		t.Skip("the driver's tests have xl do the same: MPIRUN_SF_TEST_ALL=1 takes the time, to tell the rig's faults from the driver's")
	}
	g := rig.Probe(t)
	before := xl(t, "list")
	const name = "smoke"
	kind := "pvh"
	if !strings.Contains(xl(t, "info"), " hvm-") { // of what Xen says that it makes
		kind = "pv"
	}
	config := filepath.Join(t.TempDir(), "smoke.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, "name=%q\ntype=%q\nmemory=128\nvcpus=1\nkernel=%q\nramdisk=%q\ncmdline=\"console=hvc0 loglevel=4 mitigations=off cryptomgr.notests\"\n", name, kind, g.Kernel, g.Initrd), 0o600); err != nil {
		t.Fatal(err)
	}
	xl(t, "create", "--quiet", config)
	alive := true
	t.Cleanup(func() {
		if alive {
			exec.Command("xl", "destroy", name).Run()
		}
	})
	first := await(t, name, 3)[0]
	saved := filepath.Join(t.TempDir(), "saved")
	xl(t, "save", name, saved)
	info, err := os.Stat(saved)
	if err != nil {
		t.Fatal(err)
	}
	// Xen lists all frames up to 4 GB, 8 bytes each, also those that are not there.
	if info.Size() < 100<<20 || info.Size() > 140<<20 {
		t.Errorf("a guest of 128 MB was saved in %d bytes", info.Size())
	}
	said := len(heard(t, name))
	xl(t, "restore", saved)
	all := await(t, name, said+3)
	for i, k := range all {
		if k.who != first.who || k.number != first.number+i || k.state != "whole" {
			t.Fatalf("line %d of the guest is %v; it began with %v, and was restored after %d lines", i, k, first, said)
		}
	}
	xl(t, "destroy", name)
	alive = false
	if after := xl(t, "list"); len(strings.Split(after, "\n")) != len(strings.Split(before, "\n")) {
		t.Errorf("left of what was\n%s\nis\n%s", before, after)
	}
}
