package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// newCache is a cache of its own, with nothing but the kernel.
func newCache(t *testing.T) (env []string, images string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "mpirun-sf"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := keepKernel(filepath.Join(dir, "mpirun-sf")); err != nil {
		t.Fatal(err)
	}
	return []string{"XDG_CACHE_HOME=" + dir}, filepath.Join(dir, "mpirun-sf", "images")
}

// only is the one path that a pattern matches.
func only(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s is %v, want one", pattern, found)
	}
	return found[0]
}

// TestImages: build, list, use, remove; a damaged checkpoint is made again.
func TestImages(t *testing.T) {
	nothingIsLeft(t)
	env, images := newCache(t)
	image := func(args ...string) result {
		t.Helper()
		return command{args: append([]string{"image"}, args...), env: env}.run(t)
	}
	if r := image("ls").succeeds(t); strings.Count(r.stdout, "\n") > 1 {
		t.Errorf("an empty cache holds:\n%s", r.stdout)
	}
	if r := image("build", example("hello")).succeeds(t); !strings.Contains(r.stderr, "built") {
		t.Errorf("image build says %q", r.stderr)
	}
	if r := image("build", example("ring")).succeeds(t); !strings.Contains(r.stderr, "is there already") {
		t.Errorf("image build of a program with the same libraries says %q", r.stderr)
	}
	key := filepath.Base(only(t, filepath.Join(images, "[0-9a-f]*")))
	if r := image("ls").succeeds(t); strings.Count(r.stdout, key) != 1 || !strings.Contains(r.stdout, "hello") {
		t.Errorf("image ls does not show %s, for hello:\n%s", key, r.stdout)
	}
	job := command{args: []string{"-np", "1", example("hello")}, env: env}
	if r := job.run(t).succeeds(t); strings.Contains(r.stderr, "built") || strings.Contains(r.stderr, "booted") {
		t.Errorf("the first run after image build says:\n%s", r.stderr)
	}
	checkpoint := only(t, filepath.Join(images, key, "checkpoints", "*"))
	t.Run("damaged", func(t *testing.T) {
		cases := map[string]func(){
			"descriptor with a wrong byte": func() { damage(t, filepath.Join(checkpoint, "descriptor")) },
			"memory cut off":               func() { cut(t, filepath.Join(checkpoint, "memory")) },
			"map of memory cut off":        func() { cut(t, filepath.Join(checkpoint, "memory.map")) },
			"disk of another checkpoint": func() {
				// The tests' cache has the same image, booted at another time.
				mpirun(t, "-np", "1", example("hello")).succeeds(t)
				for _, name := range []string{"disk", "disk.map"} {
					tool(t, "cp", filepath.Join(cacheDir, "mpirun-sf/images", key, "checkpoints", filepath.Base(checkpoint), name), checkpoint)
				}
			},
			"disk gone": func() {
				if err := os.Remove(filepath.Join(checkpoint, "disk")); err != nil {
					t.Fatal(err)
				}
			},
			"map of the root with a wrong byte": func() { damage(t, filepath.Join(images, key, "root.map")) },
		}
		for name, harm := range cases {
			t.Run(name, func(t *testing.T) {
				if name != "memory cut off" {
					slow(t)
				}
				harm()
				r := job.run(t).succeeds(t)
				if !strings.Contains(r.stderr, "cannot be used and is made again") || !strings.Contains(r.stderr, "booted") {
					t.Errorf("no notice of a checkpoint that is made again:\n%s", r.stderr)
				}
				if r := job.run(t).succeeds(t); strings.Contains(r.stderr, "booted") {
					t.Errorf("the run after that boots too:\n%s", r.stderr)
				}
			})
		}
	})
	t.Run("in use", func(t *testing.T) {
		run := command{args: []string{"-np", "1", example("sleep"), "60"}, env: env}.start(t)
		run.awaitOutput("sleeps", 1)
		command{args: []string{"image", "rm", key}, env: env, beside: true}.run(t).fails(t, 1, "in use")
		run.cmd.Process.Kill()
		run.wait()
	})
	image("rm", "0123456789ab").fails(t, 1, "0123456789ab", "no such guest image")
	image("rm", key).succeeds(t)
	if left, _ := filepath.Glob(filepath.Join(images, "*")); len(left) > 0 {
		t.Errorf("left after image rm: %v", left)
	}
}

func damage(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x10
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, st.Size()/2); err != nil {
		t.Fatal(err)
	}
}

// TestOwnImage: a disk of the user's own instead of a guest from this machine.
func TestOwnImage(t *testing.T) {
	nothingIsLeft(t)
	dir := t.TempDir()
	// A root that was made elsewhere; here, by us, with a trace of its own.
	_, rest, _ := strings.Cut(mpirun(t, "-v", "-np", "1", example("hello")).succeeds(t).stderr, " s  image ")
	key, _, _ := strings.Cut(rest, ",")
	raw, qcow := filepath.Join(dir, "own.raw"), filepath.Join(dir, "own.qcow2")
	tool(t, "cp", "--sparse=always", filepath.Join(cacheDir, "mpirun-sf", "images", key, "root.img"), raw)
	write(t, filepath.Join(dir, "trace"), "my own disk\n")
	tool(t, "debugfs", "-w", "-R", "write "+filepath.Join(dir, "trace")+" etc/trace", raw)
	addHook(t, raw, "10-mark", "#!/bin/sh\necho hook of clone $SF_CLONE_ID >/etc/hook\n")
	tool(t, "qemu-img", "convert", "-O", "qcow2", raw, qcow)
	probe := compile(t, "gcc", "testdata/probe.c")
	for _, disk := range []string{raw, qcow} {
		t.Run(filepath.Ext(disk)[1:], func(t *testing.T) {
			if disk == raw {
				slow(t)
			}
			r := mpirun(t, "-np", "2", "--image", disk, probe, "file:/etc/trace", "hostname", "file:/etc/hook").succeeds(t)
			has(t, r.stdout, "0 file:/etc/hook = hook of clone 1", "1 file:/etc/hook = hook of clone 2", "0 file:/etc/trace = my own disk", "1 file:/etc/trace = my own disk", "0 hostname = clone-1", "1 hostname = clone-2")
			r = mpirun(t, "-np", "2", "--image", disk, example("hello")).succeeds(t)
			has(t, r.stdout, "hello from rank 0 of 2 on clone-1: sum 1, allreduce …", "hello from rank 1 of 2 on clone-2: sum 1, allreduce …")
			if strings.Contains(r.stderr, "booted") {
				t.Errorf("the second run with an image boots too:\n%s", r.stderr)
			}
		})
	}
	t.Run("whose hook fails", func(t *testing.T) {
		slow(t)
		failing := filepath.Join(dir, "failing.raw")
		tool(t, "cp", "--sparse=always", raw, failing)
		addHook(t, failing, "20-fail", "#!/bin/sh\nexit 3\n")
		mpirun(t, "-np", "1", "--image", failing, probe, "hostname").fails(t, 1, "clone-1", "20-fail", "status 3")
	})
	t.Run("that does not boot", func(t *testing.T) {
		empty := filepath.Join(dir, "empty.raw")
		if err := os.Truncate(touch(t, empty), 64<<20); err != nil {
			t.Fatal(err)
		}
		mpirun(t, "-np", "1", "--image", empty, example("hello")).oneLine(t, "empty.raw", "neither an ext4 file system nor a partition table")
		tool(t, "mkfs.ext4", "-q", "-F", empty)
		r := mpirun(t, "-np", "1", "--image", empty, example("hello"))
		r.fails(t, 1, "does not boot", "empty.raw")
		t.Logf("says: %s", r.stderr)
		damaged := filepath.Join(dir, "damaged.qcow2")
		b, err := os.ReadFile(qcow)
		if err != nil {
			t.Fatal(err)
		}
		write(t, damaged, string(b[:len(b)/2]))
		mpirun(t, "-np", "1", "--image", damaged, example("hello")).oneLine(t, "damaged.qcow2", "cut off")
	})
}

// addHook puts an executable into the post-clone hooks of a disk.
func addHook(t *testing.T, disk, name, script string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	write(t, file, script)
	const dir = "etc/mpirun-sf/post-clone.d"
	for _, request := range []string{"mkdir etc/mpirun-sf", "mkdir " + dir, "write " + file + " " + dir + "/" + name, "sif " + dir + "/" + name + " mode 0100755"} {
		// debugfs answers 0 whatever happens; what a test sees in the clone tells.
		tool(t, "debugfs", "-w", "-R", request, disk)
	}
}

func touch(t *testing.T, path string) string { t.Helper(); write(t, path, ""); return path }

func tool(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// TestDoctor: on a machine where the tests run, all is well.
func TestDoctor(t *testing.T) {
	r := mpirun(t, "doctor")
	if r.status != 0 || strings.Contains(r.stdout, "missing") {
		t.Errorf("exit status %d:\n%s%s", r.status, r.stdout, r.stderr)
	}
	for _, word := range []string{"root", "QEMU", "FUSE", "taps", "kernel", "preload", "KVM"} {
		if !strings.Contains(r.stdout, word) {
			t.Errorf("doctor does not look at %s:\n%s", word, r.stdout)
		}
	}
	r = command{args: []string{"doctor"}, env: []string{"PATH=/nonexistent"}}.run(t)
	if r.status == 0 || !strings.Contains(r.stdout, "missing  QEMU") {
		t.Errorf("without QEMU, exit status %d:\n%s%s", r.status, r.stdout, r.stderr)
	}
}

// TestClean removes reservations that nobody holds.
func TestClean(t *testing.T) {
	if err := os.MkdirAll("/run/mpirun-sf/jobs", 0o755); err != nil {
		t.Fatal(err)
	}
	left := "/run/mpirun-sf/jobs/e2e-left.job"
	write(t, left, `{"pid": 1, "memory": 1048576}`+"\n")
	r := mpirun(t, "clean").succeeds(t)
	if _, err := os.Stat(left); err == nil || !strings.Contains(r.stderr, "removed") {
		t.Errorf("%s is still there after clean: %s", left, r.stderr)
	}
}

// TestSecrets: the checkpoint, of which every clone is made, holds nothing of
// the user's that made it.
func TestSecrets(t *testing.T) {
	mpirun(t, "-np", "1", "-env", "PASSWORD", marker, example("hello"), "an-argument-"+marker).succeeds(t)
	files, _ := filepath.Glob(filepath.Join(cacheDir, "mpirun-sf/images/*/checkpoints/*/*"))
	if len(files) < 5 {
		t.Fatalf("only %d files of checkpoints", len(files))
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		found, err := contains(f, marker)
		f.Close()
		if err != nil || found {
			t.Errorf("%s holds what was in the launcher's environment (%v)", path, err)
		}
	}
	private(t, filepath.Join(cacheDir, "mpirun-sf"))
}

func contains(r io.Reader, text string) (bool, error) {
	buf, have := make([]byte, 4<<20), 0
	for {
		n, err := r.Read(buf[have:])
		have += n
		if bytes.Contains(buf[:have], []byte(text)) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		keep := min(have, len(text))
		copy(buf, buf[have-keep:have])
		have = keep
	}
}
