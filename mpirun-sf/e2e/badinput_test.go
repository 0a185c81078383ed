package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// oneLine checks that a run failed, with one line on stderr and nothing on stdout.
func (r result) oneLine(t *testing.T, words ...string) {
	t.Helper()
	r.fails(t, -1, words...)
	if r.stdout != "" || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("not one line on stderr alone:\nstdout:\n%s\nstderr:\n%s", r.stdout, r.stderr)
	}
	t.Logf("says: %s", strings.TrimSpace(r.stderr))
}

// TestBadInput: what a user can get wrong with the command line and the
// program. One line says what and what to do, and nothing is left.
func TestBadInput(t *testing.T) {
	nothingIsLeft(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "text"), "not a program\n")
	write(t, filepath.Join(dir, "script"), "#!/no/such/shell\necho hello\n")
	write(t, filepath.Join(dir, "empty"), "")
	copyTo(t, dir, "hello")
	b, err := os.ReadFile(example("hello"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "damaged"), string(b[:len(b)/3]))
	for _, name := range []string{"script", "empty", "damaged"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	strange := programOf(t, dir, "libmpi.so.7")
	for name, c := range map[string]struct {
		args  []string
		words []string
	}{
		"no program":             {nil, []string{"no program was given", "mpirun-sf -np 4 ./hello"}},
		"no such binary":         {[]string{"./no-such"}, []string{"no-such does not exist", "give the path"}},
		"not in PATH":            {[]string{"no-such-program"}, []string{"no-such-program is not on PATH"}},
		"forgotten ./":           {[]string{"hello"}, []string{"did you mean ./hello"}},
		"not executable":         {[]string{"./text"}, []string{"text is not executable", "chmod +x"}},
		"a folder":               {[]string{"./"}, []string{"is a folder"}},
		"an empty file":          {[]string{"./empty"}, []string{"is empty"}},
		"a damaged program":      {[]string{"./damaged"}, []string{"is damaged", "compile it again"}},
		"a script of nobody":     {[]string{"./script"}, []string{"script wants to be run by /no/such/shell", "install it"}},
		"another MPI":            {[]string{strange}, []string{"libmpi.so.7", "neither MPICH's nor Open MPI's", "--mpi mpich"}},
		"an MPI of no name":      {[]string{"--mpi", "lam", "./hello"}, []string{"--mpi lam", "mpich, openmpi or none"}},
		"with nothing":           {[]string{"--with", "no-such", "./hello"}, []string{"--with no-such", "no such file"}},
		"with a disk":            {[]string{"--with", "/bin/ls", "--image", "text", "./hello"}, []string{"--with", "a disk image of your own"}},
		"np 0":                   {[]string{"-np", "0", "./hello"}, []string{"-np 0", "from 1 to"}},
		"np -1":                  {[]string{"-np", "-1", "./hello"}, []string{"-np -1", "from 1 to"}},
		"np x":                   {[]string{"-np", "x", "./hello"}, []string{"np", "--help"}},
		"np 10000":               {[]string{"-np", "10000", "./hello"}, []string{"clones of 0.5 GB fit into the", "GB that are free", "-np 10000", "10000 are needed", "--memory", "--oversubscribe"}},
		"np 1000000":             {[]string{"-np", "1000000", "./hello"}, []string{"-np 1000000", "from 1 to"}},
		"ppn 0":                  {[]string{"-ppn", "0", "./hello"}, []string{"-ppn 0"}},
		"too little memory":      {[]string{"--memory", "1M", "./hello"}, []string{"--memory 1M", "128M"}},
		"memory of no size":      {[]string{"--memory", "much", "./hello"}, []string{"--memory much", "512M"}},
		"more memory than there": {[]string{"--memory", "900G", "./hello"}, []string{"0 clones of 900.0 GB fit", "--memory"}},
		"share without folder":   {[]string{"--share", "no-such", "./hello"}, []string{"--share no-such", "no such folder"}},
		"share of the system":    {[]string{"--share", "/usr", "./hello"}, []string{"--share /usr", "a guest has its own"}},
		"wdir without folder":    {[]string{"-wdir", "no-such", example("hello")}, []string{"no-such does not exist"}},
		"unknown option":         {[]string{"--no-such", "./hello"}, []string{"no-such", "--help"}},
		"window too large":       {[]string{"--window", "1G", "./hello"}, []string{"--window 1G", "128K"}},
		"image without file":     {[]string{"--image", "no-such", "./hello"}, []string{"no-such does not exist"}},
		"image of text":          {[]string{"--image", "text", "./hello"}, []string{"disk image", "text", "cut off"}},
		"kvm that there is not":  {[]string{"--accel", "xen", "./hello"}, []string{"--accel xen", "kvm or tcg"}},
		"log format":             {[]string{"--log-format", "xml", "./hello"}, []string{"--log-format xml", "text or json"}},
	} {
		t.Run(name, func(t *testing.T) {
			command{args: c.args, dir: dir}.run(t).oneLine(t, c.words...)
		})
	}
}

// programOf links a program with a library of an MPI's name.
func programOf(t *testing.T, dir, library string) string {
	t.Helper()
	write(t, filepath.Join(dir, "mpi.c"), "int MPI_Init(int *c, char ***v) { return 0; }\n")
	write(t, filepath.Join(dir, "main.c"), "int MPI_Init(int *, char ***); int main(int c, char **v) { return MPI_Init(&c, &v); }\n")
	for _, args := range [][]string{
		{"-shared", "-fPIC", "-Wl,-soname," + library, "-o", library, "mpi.c"},
		{"-o", "program-of-" + library, "main.c", "./" + library, "-Wl,-rpath," + dir},
	} {
		cmd := exec.Command("gcc", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("gcc %v: %v\n%s", args, err, out)
		}
	}
	return filepath.Join(dir, "program-of-"+library)
}

// hiding runs the launcher where paths lead to nothing: in a mount namespace
// with /dev/null or an empty folder over them.
func hiding(paths ...string) []string {
	script := ""
	for _, p := range paths {
		script += fmt.Sprintf("mount --bind /dev/null %s && ", p)
	}
	return []string{"unshare", "-m", "--propagation", "private", "sh", "-c", script + `exec "$@"`, "sh"}
}

// TestBadMachine: what a machine can lack.
func TestBadMachine(t *testing.T) {
	// So that no notice about an image comes before the error.
	mpirun(t, "-np", "1", example("hello")).succeeds(t)
	nothingIsLeft(t)
	t.Run("no root", func(t *testing.T) {
		nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		command{args: []string{example("hello")}, attr: nobody, dir: "/"}.run(t).oneLine(t, "needs root", "sudo")
	})
	// A device that is there and cannot be used answers as /dev/null on a file
	// system without devices does: it cannot be opened.
	for _, dev := range []string{"/dev/fuse", "/dev/net/tun"} {
		t.Run("no "+dev, func(t *testing.T) {
			wrap := []string{"unshare", "-m", "--propagation", "private", "sh", "-c",
				"mount -t tmpfs -o nodev none " + filepath.Dir(dev) + " && cd / && exec \"$@\"", "sh"}
			if dev == "/dev/fuse" {
				// All of /dev goes, but for what every program needs.
				wrap[6] = `mkdir -p "$TMPDIR/dev" && mount --rbind /dev "$TMPDIR/dev" && mount -t tmpfs none /dev &&
					touch /dev/null /dev/urandom && mkdir /dev/net && touch /dev/net/tun &&
					mount --bind "$TMPDIR/dev/null" /dev/null && mount --bind "$TMPDIR/dev/urandom" /dev/urandom &&
					mount --bind "$TMPDIR/dev/net/tun" /dev/net/tun && umount -l "$TMPDIR/dev" && rmdir "$TMPDIR/dev" && exec "$@"`
			}
			command{args: []string{example("hello")}, wrap: wrap}.run(t).oneLine(t, dev, "modprobe", "container")
		})
	}
	t.Run("no QEMU", func(t *testing.T) {
		path, err := exec.LookPath("qemu-system-x86_64")
		if err != nil {
			t.Fatal(err)
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			t.Fatal(err)
		}
		command{args: []string{example("hello")}, wrap: hiding(path)}.run(t).oneLine(t, "qemu-system-x86", "apt-get install")
		command{args: []string{example("hello")}, env: []string{"PATH=/nonexistent"}}.run(t).oneLine(t, "qemu-system-x86", "apt-get install")
	})
	t.Run("unwritable working directory", func(t *testing.T) {
		dir := t.TempDir() // root's
		command{args: []string{example("hello")}, dir: dir, env: bySudo()}.run(t).oneLine(t, dir, "not writable", ":ro")
	})
	t.Run("sudo of nobody", func(t *testing.T) {
		command{args: []string{example("hello")}, env: []string{"SUDO_UID=me", "SUDO_GID=us"}}.run(t).oneLine(t, "SUDO_UID")
	})
	t.Run("full disk", func(t *testing.T) {
		for _, size := range []string{"20m", "130m"} {
			// The image does not fit into the first; the guest's memory not into the second.
			wrap := []string{"unshare", "-m", "--propagation", "private", "sh", "-c",
				`mount -t tmpfs -o size=` + size + ` none "$XDG_CACHE_HOME" && mkdir "$XDG_CACHE_HOME/mpirun-sf" && ln -s "$KERNELS" "$XDG_CACHE_HOME/mpirun-sf/kernels" &&
				"$@"; status=$?; find "$XDG_CACHE_HOME" -name '*tmp*' >&2; exit $status`, "sh"}
			r := command{args: []string{"-np", "2", example("hello")}, wrap: wrap,
				env: []string{"XDG_CACHE_HOME=" + t.TempDir(), "KERNELS=" + filepath.Join(cacheDir, "mpirun-sf", "kernels")}}.run(t)
			r.fails(t, 1, "no room on the disk", "free some space", "mpirun-sf image rm", "XDG_CACHE_HOME")
			t.Logf("says: %s", r.stderr)
			if strings.Contains(r.stderr, "-tmp-") || strings.Contains(r.stderr, "/tmp-") {
				t.Errorf("left in the cache: %s", r.stderr)
			}
		}
	})
}
