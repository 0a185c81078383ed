// Package plugin tests the components of Open MPI that are beside it, with Open MPI's own orterun and a mpirun-sf whose
// clones are this machine.
//
//  1. make builds the components into a folder, and installs them below another; orterun is told to look there, too.
//  2. testdata/mpirun-sf writes what it was asked into a file, and does what FAKE says.
//  3. What orterun says is looked at, and what is in that file.
package plugin

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// limit is how long an orterun may take on a busy machine.
const limit = 2 * time.Minute

// installed is where the components and their texts are, as `make install`
// leaves them for one user.
var installed = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "openmpi-plugin")
	if err != nil {
		return "", err
	}
	folders = append(folders, dir)
	out, err := exec.Command("make", "install", "OUT="+dir, "PLUGINDIR="+dir+"/components", "HELPDIR="+dir+"/components").CombinedOutput()
	if err != nil {
		return "", errors.New("build the components: " + err.Error() + "\n" + string(out))
	}
	return dir + "/components", nil
})

var folders []string

func TestMain(m *testing.M) {
	status := m.Run()
	for _, dir := range folders {
		os.RemoveAll(dir)
	}
	os.Exit(status)
}

// launcher is an orterun to be run.
type launcher struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	log    string // what the fake was asked
}

// orterun prepares one: env is for variables, args follow its name.
func orterun(t *testing.T, env []string, args ...string) *launcher {
	t.Helper()
	components, err := installed()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := exec.Command("ompi_info", "--parsable", "--path", "pkglibdir").Output()
	if err != nil {
		t.Fatalf("ask Open MPI for its components: %v", err)
	}
	fields := strings.Split(strings.TrimSpace(string(theirs)), ":")
	here, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := &launcher{log: filepath.Join(dir, "log")}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	t.Cleanup(cancel)
	l.cmd = exec.CommandContext(ctx, "orterun", args...)
	l.cmd.Dir = dir
	l.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "OMPI_") || strings.HasPrefix(v, "PATH=") || strings.HasPrefix(v, "FAKE") || strings.HasPrefix(v, "SLURM_")
	}), "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "TMPDIR="+dir, "PATH="+here+":"+os.Getenv("PATH"),
		"OMPI_MCA_mca_base_component_path="+fields[2]+":"+components, "FAKE_LOG="+l.log,
		// Tests share two cores with whatever else there is.
		"OMPI_MCA_rmaps_base_oversubscribe=1")
	l.cmd.Env = append(l.cmd.Env, env...)
	l.cmd.Stdout, l.cmd.Stderr = &l.output, &l.output
	l.cmd.WaitDelay = 10 * time.Second
	t.Cleanup(func() {
		for end := time.Now().Add(time.Minute); len(l.left()) > 0; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("a minute after orterun, these are left: %q", l.left())
				return
			}
		}
	})
	return l
}

// left are the command lines of processes that came of it.
func (l *launcher) left() (commands []string) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("FAKE_LOG="+l.log+"\x00")) {
			command, _ := os.ReadFile(filepath.Dir(path) + "/cmdline")
			commands = append(commands, string(bytes.ReplaceAll(command, []byte{0}, []byte(" "))))
		}
	}
	return commands
}

// run runs it; the exit status has to be this.
func (l *launcher) run(t *testing.T, status int) string {
	t.Helper()
	err := l.cmd.Run()
	if l.cmd.ProcessState == nil || l.cmd.ProcessState.ExitCode() != status {
		t.Fatalf("orterun: %v, want exit status %d\n%s", err, status, l.output.String())
	}
	return l.output.String()
}

// asked is what the fake was asked, line by line.
func (l *launcher) asked(t *testing.T) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(l.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(string(b), "\n"), func(s string) bool { return s == "" })
}

// await waits until the fake has been asked something that has this in it.
func (l *launcher) await(t *testing.T, what string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if slices.ContainsFunc(l.asked(t), func(s string) bool { return strings.Contains(s, what) }) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q is not in the log after a minute: %q", what, l.asked(t))
		}
	}
}

const yes = "OMPI_MCA_ras_snowflock_enable=yes"

// Ranks run where the clones are, with nothing in their environment of how they
// came there, and the clones join.
func TestAllocates(t *testing.T) {
	l := orterun(t, []string{yes}, "-np", "3", "sh", "-c", `echo "rank $OMPI_COMM_WORLD_RANK at $TMPDIR"; env`)
	out := l.run(t, 0)
	for _, want := range []string{"rank 0 at " + l.log + ".clone-1", "rank 1 at " + l.log + ".clone-1", "rank 2 at " + l.log + ".clone-2"} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	for _, unwanted := range []string{"FAKE_SECRET", "two words", "MPIRUN_SF_ORTERUN", "plm_rsh_agent"} {
		if strings.Contains(out, unwanted) {
			t.Errorf("%q is in\n%s", unwanted, out)
		}
	}
	asked := l.asked(t)
	// Agents end before the clones, whose loss they would bewail otherwise.
	if len(asked) != 6 || !strings.HasPrefix(asked[0], "ompi allocate -np 3 sh -c echo") || asked[5] != "joined" {
		t.Fatalf("asked %q", asked)
	}
	for _, a := range asked {
		if strings.Contains(a, "two words") || strings.Contains(a, "plm_rsh_agent") {
			t.Errorf("in a command line: %q", a)
		}
	}
}

// What is asked for follows from what Open MPI knows of the job.
func TestAsks(t *testing.T) {
	const options = "OMPI_MCA_ras_snowflock_options=--memory 512M"
	for _, test := range []struct {
		name string
		env  []string
		args []string
		want string
	}{
		{"several programs", nil, []string{"-np", "2", "true", "a", ":", "-np", "3", "true"}, "-np 5 true a"},
		{"room for more", []string{"OMPI_MCA_ras_snowflock_slots=6"}, []string{"-np", "2", "true"}, "-np 6 true"},
		{"room for fewer", []string{"OMPI_MCA_ras_snowflock_slots=1"}, []string{"-np", "2", "true"}, "-np 2 true"},
		{"ranks in each", nil, []string{"-np", "4", "-npernode", "2", "true"}, "-np 4 -ppn 2 true"},
		{"options", []string{options}, []string{"-np", "1", "true"}, "-np 1 --memory 512M true"},
		{"program elsewhere", nil, []string{"-np", "1", "-wdir", "/bin", "./true"}, "-np 1 ./true"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := orterun(t, append(test.env, yes, "FAKE=refuse"), test.args...)
			l.run(t, 1)
			if asked := l.asked(t); len(asked) != 1 || asked[0] != "ompi allocate "+test.want {
				t.Errorf("asked %q, want %q", asked, test.want)
			}
		})
	}
}

// Whatever fails is said by Open MPI's own texts, once, without its guesses.
func TestErrors(t *testing.T) {
	for _, test := range []struct {
		name string
		env  []string
		args []string
		want string
	}{
		{"refused", []string{"FAKE=refuse"}, []string{"-np", "2", "true"}, "No clones could be made to run your ranks in:\n\n  no memory for 2 clones, there is for 1"},
		{"silent", []string{"FAKE=silent"}, []string{"-np", "2", "true"}, "ended and not said why"},
		{"garbage", []string{"FAKE=garbage"}, []string{"-np", "2", "true"}, "hosts clone-1 2 10.77.0.1"},
		{"unknown parameter", []string{"FAKE=parameter"}, []string{"-np", "2", "true"}, "mca plm_rsh_nonesuch 1"},
		{"another agent", []string{"FAKE=agent"}, []string{"-np", "2", "true"}, "mca plm_rsh_agent /bin/true"},
		{"no clones", []string{"FAKE=empty"}, []string{"-np", "2", "true"}, "ready, without a host"},
		{"no command", []string{"OMPI_MCA_ras_snowflock_command=nonesuch"}, []string{"-np", "2", "true"}, `There is no "nonesuch"`},
		{"no folder", nil, []string{"-np", "2", "-wdir", "/nonexistent", "true"}, "/nonexistent\n  Error:            No such file"},
		{"late hosts", nil, []string{"-np", "2", "true", ":", "-np", "1", "-host", "there", "false"}, "  false\n"},
		{"missing -np", nil, []string{"-np", "2", "true", ":", "true"}, "for one of them there is no -np"},
		{"clones lost", []string{"FAKE=lost"}, []string{"-np", "2", "sh", "-c", "touch $FAKE_LOG.runs; exec sleep 300"},
			"  clone-1 was eaten\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			out := orterun(t, append(test.env, yes), test.args...).run(t, 1)
			if strings.Count(out, test.want) != 1 {
				t.Errorf("%q is not once in\n%s", test.want, out)
			}
			for _, unwanted := range []string{"internal error", "help file", "Sorry!", "ORTE_ERROR_LOG", "developers"} {
				if strings.Contains(out, unwanted) {
					t.Errorf("%q is in\n%s", unwanted, out)
				}
			}
			if test.name == "clones lost" && !strings.Contains(out, "has ended, and with it all clones") {
				t.Error(out)
			}
		})
	}
}

// A path that Open MPI would take for two agents is an error, not a strange one.
func TestPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("testdata/mpirun-sf")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/mpirun-sf", script, 0o755); err != nil {
		t.Fatal(err)
	}
	out := orterun(t, []string{yes, "OMPI_MCA_ras_snowflock_command=" + dir + "/mpirun-sf"}, "-np", "1", "true").run(t, 1)
	if !strings.Contains(out, "blank, a colon, a comma or a quote") {
		t.Error(out)
	}
}

// It stands aside where nobody wants clones, and nothing is started then.
func TestStandsAside(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"hosts": "localhost slots=4\n", "ranks": "rank 0=localhost slot=0\n", "app": "-np 1 echo $HERE\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		env  []string
		args []string
	}{
		{"by default on a host", nil, nil},
		{"no", []string{"OMPI_MCA_ras_snowflock_enable=no"}, nil},
		{"no, on the command line", []string{yes}, []string{"--mca", "ras_snowflock_enable", "no"}},
		{"--host", []string{yes}, []string{"--host", "localhost"}},
		{"-H", []string{yes}, []string{"-H", "localhost"}},
		{"--hostfile", []string{yes}, []string{"--hostfile", dir + "/hosts"}},
		{"--machinefile", []string{yes}, []string{"-machinefile", dir + "/hosts"}},
		{"--default-hostfile", []string{yes}, []string{"--default-hostfile", dir + "/hosts"}},
		{"default hostfile", []string{yes, "OMPI_MCA_orte_default_hostfile=" + dir + "/hosts"}, nil},
		{"--rankfile", []string{yes}, []string{"--rankfile", dir + "/ranks"}},
		{"another agent", []string{yes}, []string{"--mca", "plm_rsh_agent", "true"}},
		{"not this ras", []string{yes, "OMPI_MCA_ras=^snowflock"}, nil},
		{"another plm", []string{yes, "OMPI_MCA_plm=isolated"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := orterun(t, append(test.env, "HERE=here"), append(test.args, "-np", "1", "sh", "-c", "echo $HERE")...)
			if out := l.run(t, 0); out != "here\n" {
				t.Errorf("it says\n%s", out)
			}
			if asked := l.asked(t); len(asked) > 0 {
				t.Errorf("asked %q", asked)
			}
		})
	}
	t.Run("--do-not-launch", func(t *testing.T) {
		t.Parallel()
		l := orterun(t, []string{yes}, "--do-not-launch", "-np", "1", "true")
		l.run(t, 0)
		if asked := l.asked(t); len(asked) > 0 {
			t.Errorf("asked %q", asked)
		}
	})
}

// In a virtual machine, which this looks like to orterun, clones are made unless
// somebody else says where ranks run.
func TestAuto(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("os.Geteuid is not 0: only root can mount another /run")
	}
	const vm = `mount -t tmpfs none /run && mkdir /run/mpirun-sf &&
		python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/run/mpirun-sf/sf.sock")' && exec "$@"`
	run := func(t *testing.T, asked int, env ...string) {
		t.Helper()
		l := orterun(t, env, "-np", "1", "true")
		unshare, err := exec.LookPath("unshare")
		if err != nil {
			t.Fatal(err)
		}
		l.cmd.Path, l.cmd.Args = unshare, append([]string{"unshare", "--mount", "sh", "-c", vm, "sh"}, l.cmd.Args...)
		l.run(t, 0)
		if got := l.asked(t); len(got) != asked {
			t.Errorf("asked %q, want %d lines", got, asked)
		}
	}
	t.Run("in a virtual machine", func(t *testing.T) { run(t, 4) })
	t.Run("in a job of a resource manager", func(t *testing.T) { run(t, 0, "PBS_JOBID=1") })
	t.Run("without mpirun-sf", func(t *testing.T) { run(t, 0, "OMPI_MCA_ras_snowflock_command=nonesuch") })
	t.Run("no", func(t *testing.T) { run(t, 0, "OMPI_MCA_ras_snowflock_enable=no") })
}

// The clones join, however orterun ends.
func TestEnds(t *testing.T) {
	start := func(t *testing.T, fake, ready string) *launcher {
		l := orterun(t, []string{yes, "FAKE=" + fake}, "-np", "2", "sleep", "300")
		if err := l.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		l.await(t, ready)
		return l
	}
	for _, test := range []struct {
		name, fake, ready string
		signal            syscall.Signal
	}{
		{"interrupted while it forks", "pending", "ompi allocate", syscall.SIGINT},
		{"killed while it forks", "pending", "ompi allocate", syscall.SIGKILL},
		{"interrupted", "", "ompi agent", syscall.SIGTERM},
		{"killed", "", "ompi agent", syscall.SIGKILL},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := start(t, test.fake, test.ready)
			l.cmd.Process.Signal(test.signal)
			l.await(t, "joined")
			l.cmd.Wait()
		})
	}
	t.Run("clones that do not join", func(t *testing.T) {
		t.Parallel()
		l := orterun(t, []string{yes, "FAKE=stays", "OMPI_MCA_ras_snowflock_join_limit=1"}, "-np", "2", "true")
		if out := l.run(t, 0); !strings.Contains(out, "not gone 1 seconds after the job") {
			t.Error(out)
		}
	})
}
