package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The user that sudo was called by, in tests of whose the files are. It needs
// no entry in /etc/passwd.
const uid, gid = 4711, 4712

// ownFolder is a folder that belongs to that user, and can be reached by them.
func ownFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// bySudo is the environment of a launcher that the user has called by sudo.
func bySudo() []string {
	return []string{fmt.Sprintf("SUDO_UID=%d", uid), fmt.Sprintf("SUDO_GID=%d", gid)}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// owned checks a file's content and that it is the user's.
func owned(t *testing.T, path, content string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if string(b) != content {
		t.Errorf("%s holds %q, want %q", path, b, content)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Sys().(*syscall.Stat_t); s.Uid != uid || s.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, s.Uid, s.Gid, uid, gid)
	}
}

// TestFiles: what ranks write in the working directory is on the host, the
// user's; what the host has there, ranks read. A clone's own disk is its own.
func TestFiles(t *testing.T) { outside(t, testFiles) }

func testFiles(t *testing.T, p place) {
	dir := ownFolder(t)
	write(t, filepath.Join(dir, "input"), strings.Repeat("read by all ranks\n", 10000))
	r := p.start(t, command{args: []string{"-np", "2", example("files"), "input"}, dir: dir, env: bySudo()}).wait().succeeds(t)
	for rank := range 2 {
		has(t, r.stdout, fmt.Sprintf("rank %d of 2 wrote out.%d in %s", rank, rank, dir), fmt.Sprintf("rank %d of 2 read 180000 bytes of input, checksum …", rank))
		owned(t, filepath.Join(dir, fmt.Sprintf("out.%d", rank)), fmt.Sprintf("written by rank %d of 2\n", rank))
	}
	t.Run("disks", func(t *testing.T) {
		// Exclusive: in a file that both have, the second would fail. As root, for
		// only root can write all over the disk.
		r := p.run(t, "-np", "2", compile(t, "gcc", "testdata/probe.c"), "create:/var/tmp/mine", "create:/etc/mine", "sleep:500", "file:/etc/mine").succeeds(t)
		for rank := range 2 {
			has(t, r.stdout, fmt.Sprintf("%d create:/var/tmp/mine = created", rank), fmt.Sprintf("%d create:/etc/mine = created", rank), fmt.Sprintf("%d file:/etc/mine = probe", rank))
		}
		if _, err := os.Stat("/etc/mine"); err == nil {
			t.Error("a rank wrote on the host's disk")
		}
	})
}

// TestShare: folders that are shared, for writing and not, and what is not.
func TestShare(t *testing.T) { outside(t, testShare) }

func testShare(t *testing.T, p place) {
	dir, shared, readOnly, hidden := ownFolder(t), ownFolder(t), ownFolder(t), ownFolder(t)
	for _, d := range []string{shared, readOnly, hidden} {
		write(t, filepath.Join(d, "there"), "on the host\n")
	}
	// A link that leads out of a share leads nowhere.
	if err := os.Symlink(filepath.Join(hidden, "there"), filepath.Join(shared, "way-out")); err != nil {
		t.Fatal(err)
	}
	// The user cannot read root's files in their own folder.
	write(t, filepath.Join(shared, "root-only"), "secret\n")
	if err := os.Chmod(filepath.Join(shared, "root-only"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := filepath.Join
	run := func(t *testing.T, program string, more ...string) result {
		args := append(append([]string{"-np", "2", "--share", shared, "--share", readOnly + ":ro"}, more...), program,
			"uid", "create:"+in(shared, "by-rank"), "create:by-rank", "file:"+in(shared, "there"), "file:"+in(readOnly, "there"),
			"create:"+in(readOnly, "by-rank"), "file:"+in(hidden, "there"), "file:"+in(shared, "way-out"), "file:"+in(shared, "root-only"),
			"file:"+in(shared, "../../etc/shadow"), "file:/proc/1/environ")
		return p.start(t, command{args: args, dir: dir, env: bySudo()}).wait()
	}
	// The program lies outside of every share.
	probe := compile(t, "gcc", "testdata/probe.c")
	r := run(t, probe).succeeds(t)
	t.Run("written", func(t *testing.T) {
		for _, d := range []string{dir, shared} {
			owned(t, in(d, "by-rank"), "probe\n")
		}
		// Both ranks were asked to; a file is created once, and by one of them.
		for _, q := range []string{"create:" + in(shared, "by-rank"), "create:by-rank"} {
			if strings.Count(r.stdout, q+" = created") != 1 || strings.Count(r.stdout, q+" failed: File exists") != 1 {
				t.Errorf("%s was not done by exactly one rank:\n%s", q, r.stdout)
			}
		}
	})
	t.Run("read", func(t *testing.T) {
		for rank := range 2 {
			has(t, r.stdout, fmt.Sprintf("%d uid = %d:%d", rank, uid, gid),
				fmt.Sprintf("%d file:%s = on the host", rank, in(shared, "there")), fmt.Sprintf("%d file:%s = on the host", rank, in(readOnly, "there")))
		}
	})
	t.Run("read-only", func(t *testing.T) {
		for rank := range 2 {
			has(t, r.stdout, fmt.Sprintf("%d create:%s failed: Read-only file system", rank, in(readOnly, "by-rank")))
		}
		if _, err := os.Stat(in(readOnly, "by-rank")); err == nil {
			t.Error("a rank wrote in a folder that is shared for reading")
		}
	})
	t.Run("not shared", func(t *testing.T) {
		for rank := range 2 {
			for _, path := range []string{in(hidden, "there"), in(shared, "way-out")} {
				has(t, r.stdout, fmt.Sprintf("%d file:%s failed: No such file or directory", rank, path))
			}
			has(t, r.stdout, fmt.Sprintf("%d file:%s failed: Permission denied", rank, in(shared, "root-only")))
			if strings.Contains(r.stdout, "root:") || strings.Contains(r.stdout, marker) {
				t.Errorf("ranks saw what is the host's:\n%s", r.stdout)
			}
		}
	})
	if p == onHosts {
		return // what follows is about one rank, which is on the launcher's host
	}
	t.Run("program in PATH", func(t *testing.T) {
		r := command{args: []string{"-np", "1", "nompi"}, env: []string{"PATH=" + examples + ":" + os.Getenv("PATH")}}.run(t).succeeds(t)
		has(t, r.stdout, "no MPI here: clone-1, PMI_RANK 0 of PMI_SIZE 1")
	})
	t.Run("strict umask", func(t *testing.T) {
		r := command{args: []string{"-np", "1", probe, "uid"}, dir: dir, env: bySudo(), wrap: []string{"sh", "-c", `umask 077; exec "$@"`, "sh"}}.run(t).succeeds(t)
		has(t, r.stdout, fmt.Sprintf("0 uid = %d:%d", uid, gid))
	})
	t.Run("working directory of a system folder", func(t *testing.T) {
		r := command{args: []string{"-np", "1", example("nompi")}, dir: "/usr"}.run(t).succeeds(t)
		if !strings.Contains(r.stderr, "/usr is not shared") {
			t.Errorf("no notice that /usr is not shared:\n%s", r.stderr)
		}
	})
	t.Run("read-only working directory", func(t *testing.T) {
		dir := ownFolder(t)
		r := command{args: []string{"-np", "1", "--share", dir + ":ro", probe, "create:it", "cwd"}, dir: dir}.run(t).succeeds(t)
		has(t, r.stdout, "0 create:it failed: Read-only file system", "0 cwd = "+dir)
	})
}
