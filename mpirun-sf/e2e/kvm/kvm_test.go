package kvm

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/rig"
)

const (
	buildLimit = 5 * time.Minute // compiling, and fetching a kernel the first time
	bootLimit  = 5 * time.Minute
	runLimit   = 60 * time.Minute // of one command, by this machine's time
)

// modules are what a host needs besides what a guest does: KVM, memtap's FUSE, and
// the private network's devices and filters. The rig has nobody who would load what
// the kernel asks for.
var modules = []string{"kvm_amd", "fuse", "tun", "bridge", "veth", "nf_tables", "nft_meta_bridge"}

// packages have tests that are of interest on KVM. Those of one cover it and the
// ones after it.
var packages = []string{"vmfork/hypervisor/qemu", "vmfork/memtap"}

// tools are what the launcher and QEMU want of a machine, where Debian has it. What
// is not there the product does without, or says so.
var tools = []string{
	"qemu-system-x86_64", "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
	"/usr/share/qemu/bios-microvm.bin", "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/pvh.bin", "/usr/share/qemu/kvmvapic.bin",
	"/usr/share/seabios/bios-microvm.bin",
	"mke2fs", "/etc/mke2fs.conf", "ldconfig",
	"bash", "cat", "ls", "seq", "sleep", "stat", "dmesg", "grep", "dd", "umount", "unshare", // some are the tests' own
}

// bench is what the test has made.
type bench struct {
	dir string // at the same path in the rig
	rig *rig.Rig
	out string // where files from the rig go
}

func TestKVM(t *testing.T) {
	b := setUp(t)
	b.run(t, command{name: "devices", args: []string{"sh", "-c", "ls -l /dev/kvm /dev/fuse /dev/net/tun; grep -m1 'model name' /proc/cpuinfo; cat /proc/meminfo | grep MemAvail"}})
	t.Run("probe", func(t *testing.T) {
		r := b.run(t, command{args: []string{b.launcher(), "doctor"}})
		if !strings.Contains(r.stdout, "ok       KVM\n") || strings.Contains(r.stdout, "missing") {
			t.Error("mpirun-sf doctor does not find a machine with KVM")
		}
	})
	t.Run("hello", b.hello)
	for _, p := range packages {
		t.Run(filepath.Base(p), func(t *testing.T) { b.goTest(t, p) })
	}
	t.Run("fork", b.fork)
}

// setUp compiles, and boots the rig, which ends with the test.
func setUp(t *testing.T) *bench {
	begin := time.Now()
	// Not in /tmp, of which nothing can be brought into a rig.
	dir, err := os.MkdirTemp("/var/tmp", "mpirun-sf-rig-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{dir: dir, out: os.Getenv("MPIRUN_SF_TEST_RESULTS")}
	if b.out == "" {
		b.out = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), buildLimit)
	defer cancel()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	build := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	build("make", "-s", "build", "examples")
	build("cp", "bin/mpirun-sf", "bin/examples/hello", dir)
	for i, p := range packages {
		build("go", "test", "-c", "-cover", "-coverpkg", "./"+strings.Join(packages[i:], ",./"), "-o", b.testOf(p), "./"+p)
	}
	build("go", "build", "-o", b.guestProgram(), conformance.Program)
	t.Logf("compiled in %v", time.Since(begin).Round(time.Millisecond))

	cache, err := guest.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	say := func(s string) { t.Log(s) }
	kernel, err := guest.FindKernel(ctx, filepath.Join(cache.Dir, "rig", "kvm"), say, modules...)
	if err != nil {
		t.Fatal(err)
	}
	compressed, err := os.ReadFile(kernel.Path)
	if err != nil {
		t.Fatal(err)
	}
	elf, err := rig.VMLinux(ctx, compressed)
	if err != nil {
		t.Fatal(err)
	}
	kernel.Path = filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(kernel.Path, elf, 0o600); err != nil {
		t.Fatal(err)
	}
	// In the rig it is a guest's kernel too.
	if err := kernel.Keep(filepath.Join(b.cache(), "mpirun-sf")); err != nil {
		t.Fatal(err)
	}
	machine := rig.Machine{
		Kernel: kernel, With: append(present(tools), b.launcher(), b.example(), b.cache(), b.guestProgram(), b.testOf(packages[0]), b.testOf(packages[1])),
		// The translator lets a guest set its XCR0 without telling kvm_amd, which
		// then does not know what of its registers to keep. With ERMS, Linux copies
		// and clears byte by byte, and each is as much work as any instruction.
		CPU: "max,-xsave,-erms", Free: 2 << 30, Memory: 3 << 30,
		// What is translated twice is so slow, and slower on a busy machine, that no
		// limit of the product's would hold by this machine's time.
		CPUs: 1, OwnTime: 1, Waits: true,
	}
	if err := rig.Mendable(); err != nil {
		t.Logf("with this machine's clocks, for a guest's guest would stand still with others: %v", err)
		machine.CPUs, machine.OwnTime, machine.Waits = 2, 0, false
	}
	image, err := rig.Build(ctx, dir, machine, say)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(image.Release)
	t.Logf("image of %d MB after %v", image.Size()>>20, time.Since(begin).Round(time.Millisecond))
	boot, stop := context.WithTimeout(t.Context(), bootLimit)
	defer stop()
	if b.rig, err = image.Boot(boot, "kvm"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.rig.Close()
		if t.Failed() {
			t.Logf("the rig's console:\n%s", b.rig.Console())
		}
	})
	t.Logf("booted after %v", time.Since(begin).Round(time.Millisecond))
	return b
}

func (b *bench) launcher() string     { return filepath.Join(b.dir, "mpirun-sf") }
func (b *bench) example() string      { return filepath.Join(b.dir, "hello") }
func (b *bench) guestProgram() string { return filepath.Join(b.dir, "guest") }
func (b *bench) cache() string        { return filepath.Join(b.dir, "cache") }
func (b *bench) testOf(pkg string) string {
	return filepath.Join(b.dir, filepath.Base(pkg)+".test")
}

// present are those that this machine has, by their paths.
func present(names []string) (paths []string) {
	for _, n := range names {
		for _, dir := range []string{"", "/usr/bin", "/usr/sbin", "/bin", "/sbin"} {
			if p := filepath.Join("/", dir, n); exists(p) {
				paths = append(paths, p)
				break
			}
		}
	}
	return paths
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// command is what runs in the rig.
type command struct {
	name  string
	args  []string
	bring []string
}

type result struct{ stdout, stderr string }

// run runs a command, shows what it prints, and fails the test if it does.
func (b *bench) run(t *testing.T, c command) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	res, err := b.rig.Run(ctx, rig.Command{
		Args: c.args, Dir: "/tmp", Bring: c.bring,
		Env: []string{"XDG_CACHE_HOME=" + b.cache(), conformance.ProgramVariable + "=" + b.guestProgram()},
	}, io.MultiWriter(&stdout, os.Stderr), io.MultiWriter(&stderr, os.Stderr), b.out)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s ended with status %d after %v", strings.Join(c.args, " "), res.Status, res.Took.Round(time.Millisecond))
	if res.Status != 0 {
		t.Fatal("in the rig it failed; what it said is above")
	}
	return result{stdout.String(), stderr.String()}
}

func (b *bench) goTest(t *testing.T, pkg string) {
	profile := "/tmp/" + filepath.Base(pkg) + ".cover"
	b.run(t, command{
		args:  []string{b.testOf(pkg), "-test.v", "-test.timeout", (runLimit - 10*time.Second).String(), "-test.coverprofile", profile},
		bring: []string{profile},
	})
}

// hello: an MPI program runs on clones that are KVM's, the second time from the
// checkpoint that the first has made.
func (b *bench) hello(t *testing.T) {
	for _, first := range []bool{true, false} {
		r := b.run(t, command{args: []string{b.launcher(), "-np", "2", b.example()}})
		for _, want := range []string{"hello from rank 0 of 2 on clone-1: sum 1,", "hello from rank 1 of 2 on clone-2: sum 1,"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("%q is not in %q", want, r.stdout)
			}
		}
		if strings.Contains(r.stderr, "TCG") || strings.Contains(r.stderr, "booted") != first {
			t.Errorf("on stderr:\n%s", r.stderr)
		}
	}
}

// fork: a machine forks itself, and does it again, and so do its clones.
func (b *bench) fork(t *testing.T) {
	r := b.run(t, command{args: []string{b.launcher(), "vm", "run", "--memory", "256M", "--cpus", "2", "--", "bash", "-c", `
		mark=$RANDOM$RANDOM
		for round in 1 2 3; do
			t=$(sf request-ticket 2) && id=$(sf clone "$t") || exit 77
			if ((id > 0)); then
				# A clone of the clone knows what the machine knew.
				u=$(sf request-ticket 1) && below=$(sf clone "$u") || exit 78
				((below > 0)) && sf exit $((mark % 50 + round))
				[[ $(sf join "$u") == *" $((mark % 50 + round))" ]] || exit 79
				sf exit $((round * 10 + id))
			fi
			echo "round $round:" $(sf join "$t")
		done`}})
	t.Log(r.stdout)
	for _, want := range []string{"round 1: 1 11 2 12", "round 2: 1 21 2 22", "round 3: 1 31 2 32"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("%q is not in what the machine said", want)
		}
	}
}
