package guest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A root as a user's launch makes it, looked at from outside and from inside.
func TestBuildRoot(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	img := filepath.Join(dir, "root.img")
	user := User{Name: "alice", UID: 1234, GID: 1235, Home: "/home/alice"}
	prog := hello(t)
	used, err := BuildRoot(t.Context(), img, Spec{Program: prog, Agent: testAgent(t), User: user, With: []string{prog}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(img)
	if err != nil {
		t.Fatal(err)
	}
	disk := info.Sys().(*syscall.Stat_t).Blocks * 512
	t.Logf("used %d MB, on disk %d MB, size %d MB", used>>20, disk>>20, info.Size()>>20)
	if info.Size()-used < DefaultFree || disk > used+8<<20 || used > 82<<20 || info.Mode().Perm() != 0o600 {
		t.Errorf("used %d, on disk %d, size %d, mode %v", used, disk, info.Size(), info.Mode())
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	head := command(t, need(t, "dumpe2fs", "e2fsprogs"), "-h", img)
	for _, no := range []string{"has_journal", "metadata_csum", "not clean"} {
		if strings.Contains(head, no) {
			t.Errorf("the file system is %s:\n%s", no, head)
		}
	}
	if !strings.Contains(head, "mpirun-sf") {
		t.Errorf("no label:\n%s", head)
	}
	command(t, need(t, "e2fsck", "e2fsprogs"), "-fn", img)

	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, need(t, "mount", "mount"), "-o", "loop,ro", img, mnt)
	t.Cleanup(func() { unix.Unmount(mnt, 0) })
	in := func(p string) string { return filepath.Join(mnt, p) }

	for _, no := range []string{"/etc/shadow", "/etc/gshadow", "/etc/ssh", "/root/.ssh", "/root/.bashrc", "/etc/hostid", "/etc/environment"} {
		if _, err := os.Lstat(in(no)); err == nil {
			t.Errorf("%s of the machine is in the root", no)
		}
	}
	if got := string(readFile(t, in("/etc/passwd"))); strings.Count(got, "\n") != 3 || !strings.Contains(got, "alice:x:1234:1235::/home/alice:/bin/sh\n") {
		t.Errorf("passwd:\n%s", got)
	}
	modes := map[string]uint32{
		"/": 0o755, "/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o700, "/home/alice": 0o700, "/proc": 0o755, "/dev": 0o755,
		"/etc/passwd": 0o644,
	}
	for p, mode := range modes {
		var st unix.Stat_t
		if err := unix.Lstat(in(p), &st); err != nil || st.Mode&0o7777 != mode {
			t.Errorf("%s: mode %o, %v, want %o", p, st.Mode&0o7777, err, mode)
		}
		uid := uint32(0)
		if p == "/home/alice" {
			uid = 1234
		}
		if st.Uid != uid {
			t.Errorf("%s belongs to %d", p, st.Uid)
		}
	}
	if b := readFile(t, in("/etc/machine-id")); len(b) != 0 {
		t.Errorf("machine-id: %q", b)
	}
	// A program runs on nothing but the root.
	for _, args := range [][]string{{"/bin/sh", "-c", "echo hello from 0 of 1"}, {prog}} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: mnt}
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/bin:/bin", "LD_BIND_NOW=1", "LD_TRACE_LOADED_OBJECTS="}
		if args[0] == prog { // MPI_Init would want /dev/shm and more; that is tested in a guest
			cmd.Env = append(cmd.Env, "LD_TRACE_LOADED_OBJECTS=1")
		}
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "not found") {
			t.Errorf("%v in the root: %v\n%s", args, err, out)
		}
	}
}

// A full disk is one line, and leaves nothing.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	spec := Spec{Program: hello(t), Agent: testAgent(t), Kernel: testKernel(t)}
	for _, size := range []string{"300k", "20m", "70m"} {
		t.Run(size, func(t *testing.T) {
			dir := smallDisk(t, size)
			cache := &Cache{Dir: filepath.Join(dir, "cache")}
			img, err := Build(t.Context(), cache, spec, nil)
			if err == nil {
				img.Release()
				t.Fatal("an image was made")
			}
			if !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "free some space") {
				t.Errorf("got %v", err)
			}
			t.Log(err)
			left, _ := filepath.Glob(filepath.Join(cache.Dir, "images", "*"))
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// The disk may also fill up while mke2fs writes, or while a kernel is kept.
func TestFullDiskInTheMiddle(t *testing.T) {
	needRoot(t)
	p, err := newPlan(Spec{Program: hello(t), Agent: testAgent(t)})
	if err != nil {
		t.Fatal(err)
	}
	staging := t.TempDir()
	size, inodes, err := p.stage(t.Context(), staging)
	if err != nil {
		t.Fatal(err)
	}
	dir := smallDisk(t, "20m")
	p.free += size
	if _, err := p.mkfs(t.Context(), filepath.Join(dir, "root.img"), staging, 0, inodes); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("mke2fs on a full disk: %v", err)
	}
	k := testKernel(t)
	if err := k.keep(filepath.Join(smallDisk(t, "5m"), "kernel")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("keep a kernel on a full disk: %v", err)
	}
}

// The second launch finds the first one's image; anything that matters makes
// another one.
func TestBuildIsKeyedByContent(t *testing.T) {
	dir := t.TempDir()
	cache := &Cache{Dir: filepath.Join(dir, "cache")}
	lib := filepath.Join(dir, "libx.so.1")
	compile(t, lib, "int x(void){return 1;}", "-shared", "-fPIC", "-Wl,-soname,libx.so.1")
	prog := compile(t, filepath.Join(dir, "prog"), "int x(void);int main(void){return x();}", lib, "-Wl,-rpath,"+dir)
	spec := Spec{Program: prog, Agent: testAgent(t), Kernel: fakeKernel(t)}
	build := func(what string, found bool) string {
		t.Helper()
		img, err := Build(t.Context(), cache, spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Release()
		t.Logf("%s: %v", what, img.Took)
		if img.Found != found {
			t.Errorf("%s: found %v", what, img.Found)
		}
		if img.Program.UCX || img.Program.Kind != KindDynamic {
			t.Errorf("%s: %+v", what, img)
		}
		return img.Key
	}
	first := build("first", false)
	if build("second", true) != first {
		t.Error("another key")
	}
	// The program itself is not part of it.
	compile(t, prog, "int x(void);int main(void){return x()+1;}", lib, "-Wl,-rpath,"+dir)
	build("program compiled again", true)
	compile(t, lib, "int x(void){return 2;}", "-shared", "-fPIC", "-Wl,-soname,libx.so.1")
	build("library compiled again", false)
	spec.User = User{Name: "bob", UID: 7, GID: 7, Home: "/"}
	build("another user", false)
	spec.Agent = write(t, filepath.Join(dir, "agent"), string(readFile(t, spec.Agent))+"x", 0o755)
	build("another agent", false)
	spec.Free = 64 << 20
	build("another size", false)
	spec.Kernel = fakeKernel(t)
	build("another kernel", false)
	build("and again", true)
}

func TestBadSpecs(t *testing.T) {
	agent := testAgent(t)
	dynamic := compile(t, filepath.Join(t.TempDir(), "dynamic"), "int main(void){return 0;}")
	for want, spec := range map[string]Spec{
		"CGO_ENABLED=0":                {Agent: dynamic},
		"read the agent":               {Agent: "/nonexistent"},
		"a user's name cannot hold":    {Agent: agent, User: User{Name: "a:b", UID: 1}},
		"a user's name cannot":         {Agent: agent, User: User{Name: "a\nroot", UID: 1}},
		"not an absolute path":         {Agent: agent, User: User{Name: "a", UID: 1, Home: "x"}},
		"there is no /nonexistent":     {Agent: agent, With: []string{"/nonexistent"}},
		"does not exist: give the pat": {Agent: agent, Program: "/nonexistent"},
	} {
		_, err := newPlan(spec)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
