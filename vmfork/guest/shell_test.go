package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mounted builds the root of spec and mounts it.
func mounted(t *testing.T, spec Spec) (mnt string, used int64) {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	img := filepath.Join(dir, "root.img")
	start := time.Now()
	used, err := BuildRoot(t.Context(), img, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("root of %d MB made in %v", used>>20, time.Since(start).Round(time.Millisecond))
	mnt = filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, need(t, "mount", "mount"), "-o", "loop,ro", img, mnt)
	t.Cleanup(func() { unix.Unmount(mnt, 0) })
	return mnt, used
}

// inside runs a program in a mounted root.
func inside(t *testing.T, mnt string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: mnt}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + guestPath, "LD_BIND_NOW=1", "HOME=/root", "TERM=xterm"}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v in the root: %v\n%s%s", args, err, out, stderr.String())
	}
	return string(out)
}

// The root of a guest with a shell: small, quickly made, and everything in it works.
func TestShellRoot(t *testing.T) {
	start := time.Now()
	mnt, used := mounted(t, Spec{Agent: testAgent(t), Tools: true})
	if took := time.Since(start); used > 120<<20 || took > 15*time.Second {
		t.Errorf("%d MB in %v", used>>20, took)
	}
	have := Tools()
	for _, name := range []string{"sh", "bash", "ls", "grep", "sed", "awk", "find", "xargs", "tar", "gzip", "ps", "top", "kill", "less", "hostname", "ip", "mount", "umount", "timeout"} {
		if !slices.ContainsFunc(have, func(p string) bool { return filepath.Base(p) == name }) {
			t.Errorf("%s is not among the tools", name)
		}
	}
	// Each of them loads.
	for _, path := range have {
		if _, err := os.Stat(filepath.Join(mnt, path)); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if o, err := readProgram(path); err != nil || o == nil || o.interp == "" {
			continue
		}
		cmd := exec.Command(path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: mnt}
		cmd.Dir, cmd.Env = "/", []string{"LD_TRACE_LOADED_OBJECTS=1"}
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "not found") {
			t.Errorf("%s in the root: %v\n%s", path, err, out)
		}
	}
	if err := unix.Mount("proc", filepath.Join(mnt, "proc"), "proc", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(mnt, "proc"), 0) })
	for script, want := range map[string]string{
		"echo a b | awk '{print $2}' | sed s/b/c/":                                               "c\n",
		"printf 'x\\ny\\n' | xargs -n1 echo | grep -c .":                                         "2\n",
		"cd /etc && tar -cf - passwd | tar -tf -":                                                "passwd\n",
		". /etc/profile; echo $PATH; umask":                                                      guestPath + "\n0022\n",
		"bash -ic 'echo \"${PS1@P}\"'":                                                           hostname(t) + ":/# \n",
		"bash -lic 'echo \"${PS1@P}\"; locale charmap'":                                          hostname(t) + ":/# \nUTF-8\n",
		"ls -d /etc/mpirun-sf/post-clone.d /root/.bashrc":                                        "/etc/mpirun-sf/post-clone.d\n/root/.bashrc\n",
		"for t in xterm xterm-256color screen linux vt100; do TERM=$t tput cols; done | uniq -c": "      5 80\n",
	} {
		if got := inside(t, mnt, "/bin/sh", "-c", script); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
	if got := string(readFile(t, filepath.Join(mnt, "/etc/passwd"))); !strings.HasPrefix(got, "root:x:0:0:root:/root:/usr/bin/bash\n") {
		t.Errorf("passwd: %s", got)
	}
	// A program that was compiled here finds MPICH and its plugins there.
	f, err := Closure(hello(t), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range f.Files {
		if _, err := os.Lstat(filepath.Join(mnt, lib.Path)); err != nil {
			t.Errorf("a compiled program misses %s", lib.Path)
		}
	}
}

func hostname(t *testing.T) string {
	t.Helper()
	h, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return h
}
