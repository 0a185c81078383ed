package guest

import (
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// The tests run on the machine that they find: a C compiler, MPICH, e2fsprogs,
// QEMU and root are part of what this package is for, so that a test fails,
// naming the package, where one of them is missing.

// need fails the test if a tool is missing.
func need(t testing.TB, tool, pkg string) string {
	t.Helper()
	p, err := lookTool(tool)
	if err != nil {
		t.Fatalf("this test needs %s: apt install %s", tool, pkg)
	}
	return p
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts file systems and needs root")
	}
}

// command runs a tool and fails the test with its output if it fails.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func write(t testing.TB, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// compile makes a program or library from C source.
func compile(t testing.TB, out, source string, args ...string) string {
	t.Helper()
	cc := need(t, "cc", "gcc")
	src := write(t, out+".c", source, 0o644)
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, cc, append([]string{"-o", out, src}, args...)...)
	return out
}

const helloSource = `#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv)
{
	int rank, size;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	printf("hello from %d of %d\n", rank, size);
	MPI_Finalize();
	return 0;
}
`

// The things that take a while to make are made once and shared.
var shared struct {
	once         sync.Once
	dir          string
	hello, agent string
	problem      string
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "build-for-test" {
		buildForTest() // cache_test.go
		return
	}
	os.Setenv("TMPDIR", "/var/tmp") // what is in /tmp is not brought into a guest
	code := m.Run()
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

func makeShared(t testing.TB) {
	t.Helper()
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "guest-test-")
		if err != nil {
			shared.problem = err.Error()
			return
		}
		shared.dir = dir
		mpicc, err := exec.LookPath("mpicc.mpich")
		if err != nil {
			shared.problem = "these tests need mpicc.mpich: apt install libmpich-dev"
			return
		}
		src := filepath.Join(dir, "hello.c")
		if err := os.WriteFile(src, []byte(helloSource), 0o644); err != nil {
			shared.problem = err.Error()
			return
		}
		shared.hello, shared.agent = filepath.Join(dir, "hello"), filepath.Join(dir, "init")
		if out, err := exec.Command(mpicc, "-o", shared.hello, src).CombinedOutput(); err != nil {
			shared.problem = string(out)
			return
		}
		cmd := exec.Command("go", "build", "-o", shared.agent, "./testdata/init")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			shared.problem = string(out)
		}
	})
	if shared.problem != "" {
		t.Fatal(shared.problem)
	}
}

// hello is an MPICH program.
func hello(t testing.TB) string {
	t.Helper()
	makeShared(t)
	return shared.hello
}

// testAgent is a static program: the init of testdata.
func testAgent(t testing.TB) string {
	t.Helper()
	makeShared(t)
	return shared.agent
}

// testKernel is the machine's kernel or, like a user's first run, one that is
// downloaded into the user's cache once.
func testKernel(t testing.TB) *Kernel {
	t.Helper()
	c, err := DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	k, err := FindKernel(t.Context(), c.Dir, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// fakeKernel is a kernel that nothing can boot, for tests that only move files.
func fakeKernel(t testing.TB) *Kernel {
	t.Helper()
	dir := t.TempDir()
	return &Kernel{
		Release: "6.1.0-1-test",
		Path:    write(t, filepath.Join(dir, "vmlinuz"), "kernel", 0o600),
		Modules: []Module{{"virtio", write(t, filepath.Join(dir, "virtio.ko"), elf.ELFMAG+"module", 0o600)}},
	}
}
