package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What TestMain makes, for all tests.
var (
	launcher string // path of the copy of bin/mpirun-sf that is tested
	examples string // folder of the compiled examples
	cacheDir string // XDG_CACHE_HOME of all runs that do not bring their own
	tempDir  string // TMPDIR of all runs: nothing may be left in it
	marker   string // is in the environment of every process of ours
)

// full says that the long way was asked for.
var full = os.Getenv("MPIRUN_SF_TEST_ALL") == "1"

// slow leaves a test to make test-all.
func slow(t *testing.T) {
	t.Helper()
	if !full {
		t.Skip("MPIRUN_SF_TEST_ALL=1 (make test-all) runs it")
	}
}

// setUpLimit is how long building launcher and examples may take.
const setUpLimit = 5 * time.Minute

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if err := whatIsMissing(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: these tests make virtual machines:", err)
		return 1
	}
	before, err := takeSnapshot()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "mpirun-sf-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := setUp(dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	status := m.Run()
	machine.stop()
	if err := hosts.end(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		status = max(status, 1)
	}
	if left := awaitSnapshot(before); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "e2e: left on the machine after all tests:\n\t%s\n", strings.Join(left, "\n\t"))
		return 1
	}
	return status
}

// whatIsMissing names what the machine lacks for these tests.
func whatIsMissing() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("run them as root (make test does)")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/net/tun"} {
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("%w: load its module, or give the container the device", err)
		}
		f.Close()
	}
	for tool, pkg := range map[string]string{
		"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mpicc.mpich": "libmpich-dev and mpich",
		"gcc": "gcc", "mkfs.ext4": "e2fsprogs", "make": "make", "unshare": "util-linux", "sshd": "openssh-server",
	} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: apt install %s", tool, pkg)
		}
	}
	return nil
}

// setUp fills dir with launcher, examples and an empty cache.
func setUp(dir string) error {
	// Other users' ranks run what is in here.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), setUpLimit)
	defer cancel()
	build := exec.CommandContext(ctx, "make", "-s", "-C", root, "build", "examples")
	asUser(build)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build launcher and examples: %w\n%s", err, out)
	}
	launcher, examples = filepath.Join(dir, "mpirun-sf"), filepath.Join(dir, "examples")
	cacheDir, tempDir = filepath.Join(dir, "cache"), filepath.Join(dir, "tmp")
	for _, d := range []string{filepath.Join(cacheDir, "mpirun-sf"), tempDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	name, value := "MPIRUN_SF_E2E", rand.Text()
	marker = name + "=" + value
	os.Setenv(name, value) // for what tests start without a launcher
	if out, err := exec.CommandContext(ctx, "cp", "-r", root+"/bin/mpirun-sf", root+"/bin/examples", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copy launcher and examples: %w\n%s", err, out)
	}
	// What tests make is found at the same place in the virtual machine that they
	// share. Compilers that run as another user write there too.
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(work, 0o777|os.ModeSticky); err != nil {
		return err
	}
	os.Setenv("TMPDIR", work)
	return keepKernel(filepath.Join(cacheDir, "mpirun-sf"))
}

// keepKernel puts the kernel that the user's own cache has into another cache,
// for on a machine without one each would download it.
func keepKernel(cache string) error {
	own, err := os.UserCacheDir()
	if err != nil {
		return nil // then there is none
	}
	if cacheDir != filepath.Dir(cache) {
		own = cacheDir
	}
	kernels := filepath.Join(own, "mpirun-sf", "kernels")
	if _, err := os.Stat(kernels); err != nil {
		return nil
	}
	if out, err := exec.Command("cp", "-a", kernels, cache).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the kernel that is in the user's cache: %w\n%s", err, out)
	}
	return nil
}

// asUser lets a command under sudo run as the user, for what it makes in the
// source tree is theirs.
func asUser(cmd *exec.Cmd) {
	uid, err1 := strconv.ParseUint(os.Getenv("SUDO_UID"), 10, 32)
	gid, err2 := strconv.ParseUint(os.Getenv("SUDO_GID"), 10, 32)
	if err1 == nil && err2 == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
}
