package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// languages are the bindings of the VM fork API, each with the command that runs its
// conformance program in a folder that has all of them. JAVA is a runtime's folder. make test has some
// of them fork real machines; against what plays a machine, the tests of vmfork/bindings run all.
var languages = []struct {
	name, command string
	slow          bool
}{
	{"c", "./conformance-c", false},
	{"cpp", "./conformance-cpp", true},
	{"go", "./conformance-go", true},
	{"python", "/usr/bin/python3 -Werror conformance.py", false},
	{"shell", "bash conformance.sh", false},
	{"java", "$JAVA/bin/java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx64m -jar conformance.jar", true},
}

// TestConformance: each binding's conformance program forks the virtual machine that it
// runs in, and all of them print the same.
func TestConformance(t *testing.T) {
	nothingIsLeft(t)
	golden, err := os.ReadFile("../../vmfork/bindings/testdata/conformance.golden")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/usr/bin/nc"); err != nil {
		t.Fatal("the shell's conformance program needs /usr/bin/nc: apt install netcat-openbsd")
	}
	dir, java := conformancePrograms(t), ""
	// One guest for all: an image more is a boot more.
	options := append(python(t), "--with", "/usr/bin/nc")
	if full {
		java = javaRuntime(t)
		options = append(options, "--with", java)
	}
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			if l.slow {
				slow(t)
			}
			// What is read while it forks lies on the machine's own disk.
			script := fmt.Sprintf("cp -r %s /root/programs && cd /root/programs && JAVA=%s && exec %s", dir, java, l.command)
			args := append([]string{"vm", "run", "--name", vmNameOf("conformance"), "--memory", "256M", "--cpus", "2"}, options...)
			r := command{dir: dir, args: append(args, "--", "sh", "-c", script), limit: 3 * time.Minute}.run(t).succeeds(t)
			if r.stdout != string(golden) {
				t.Errorf("it printed\n%s\nand not\n%s", r.stdout, golden)
			}
		})
	}
}

// conformancePrograms is a folder with all of them and what they load.
func conformancePrograms(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	bindings, err := filepath.Abs("../../vmfork/bindings")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), setUpLimit)
	defer cancel()
	build := exec.CommandContext(ctx, "make", "-s", "-C", bindings, "conformance")
	asUser(build)
	program := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "conformance-go"), "./go")
	program.Dir, program.Env = bindings, append(os.Environ(), "CGO_ENABLED=0")
	take := exec.CommandContext(ctx, "cp", "build/conformance-c", "build/conformance-cpp", "build/conformance.jar",
		"python/sf.py", "python/conformance.py", "shell/conformance.sh", dir)
	take.Dir = bindings
	for _, cmd := range []*exec.Cmd{build, program, take} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the conformance programs: %v\n%s", err, out)
		}
	}
	return dir
}

// javaRuntime makes the smallest one: 55 MB, where the machine's own may have 200. It
// does not lie in /tmp, of which guests have their own.
func javaRuntime(t *testing.T) (dir string) {
	t.Helper()
	top, err := os.MkdirTemp("/var/tmp", "mpirun-sf-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dir = filepath.Join(top, "java")
	ctx, cancel := context.WithTimeout(t.Context(), setUpLimit)
	defer cancel()
	// The archive of classes halves the time to start.
	link := exec.CommandContext(ctx, "jlink", "--add-modules", "java.base", "--strip-debug", "--no-header-files", "--no-man-pages",
		"--generate-cds-archive", "--output", dir)
	if out, err := link.CombinedOutput(); err != nil {
		t.Fatalf("make a Java runtime (jlink comes with default-jdk-headless): %v\n%s", err, out)
	}
	os.Remove(filepath.Join(dir, "lib/server/classes_nocoops.jsa")) // for heaps beyond 32 GB
	return dir
}
