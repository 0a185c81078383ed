package openmpi

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"orterun (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n": "4.1.4",
		"mpirun (Open MPI) 5.0.6\n":      "5.0.6",
		"mpirun (Open MPI) 5.1.0a1\n":    "5.1.0",
		"prterun (PRRTE) 3.0.11rc1\n":    "5.0.11",
		"mpirun (Open MPI) 4.1\n":        "4.1.0",
		"HYDRA build details:\n":         "is no version of Open MPI",
		"":                               "is no version of Open MPI",
		"mpirun (Open MPI) 99999.0.0\n":  "is no version of Open MPI",
		"Intel(R) MPI Library 2021.10\n": "is no version of Open MPI",
	} {
		v, err := parseVersion(text)
		got := v.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if _, err := dialectOf(Version{3, 1, 0}); err == nil || !strings.Contains(err.Error(), "too old") {
		t.Error(err)
	}
}

func TestCommand(t *testing.T) {
	run := Run{
		Agent: "/usr/bin/mpirun-sf ompi agent", Ranks: 3, Network: "10.1.0.0/16", Dir: "/home/ada", Argv: []string{"/home/ada/a.out", "-x", "y z"},
		Clones: []Clone{{Name: "clone-1", IP: netip.MustParseAddr("10.1.0.2"), Slots: 2}, {Name: "clone-2", IP: netip.MustParseAddr("10.1.0.3"), Slots: 1}},
		Limit:  90 * time.Second,
	}
	for _, c := range []struct {
		version     Version
		path        string
		label, root bool
		want        string
	}{
		{Version{4, 1, 4}, "/usr/bin/orterun", false, true, "orterun|--allow-run-as-root|--mca|plm_rsh_agent|/usr/bin/mpirun-sf ompi agent|--mca|plm_rsh_no_tree_spawn|1|" +
			"--mca|orte_leave_session_attached|1|--mca|if_base_do_not_resolve|1|--mca|oob_tcp_if_include|lo|--mca|orte_startup_timeout|90|--mca|btl_tcp_if_include|10.1.0.0/16|" +
			"--host|clone-1:2,clone-2:1|-np|3|--map-by|slot|--bind-to|none|--wdir|/home/ada|/home/ada/a.out|-x|y z"},
		{Version{5, 0, 6}, "/opt/openmpi/bin/mpirun", true, false, "/opt/openmpi/bin/mpirun|--prtemca|plm_ssh_agent|/usr/bin/mpirun-sf ompi agent|--prtemca|plm_ssh_no_tree_spawn|1|" +
			"--prtemca|prte_leave_session_attached|1|--prtemca|prte_do_not_resolve|1|--prtemca|prte_if_include|lo|--mca|btl_tcp_if_include|10.1.0.0/16|" +
			"--host|clone-1:2,clone-2:1|-np|3|--map-by|slot|--bind-to|none|--output|tag|--wdir|/home/ada|/home/ada/a.out|-x|y z"},
	} {
		d, err := dialectOf(c.version)
		if err != nil {
			t.Fatal(err)
		}
		run.Label, run.Root = c.label, c.root
		if got := strings.Join(Launcher{Path: c.path, Version: c.version, dialect: d}.Command(run), "|"); got != c.want {
			t.Errorf("for %v:\n%s\nwant\n%s", c.version, got, c.want)
		}
	}
}

func TestFind(t *testing.T) {
	l, err := Find(t.Context(), []string{"/usr/lib/x86_64-linux-gnu/libmpi.so.40"})
	if err != nil || l.Path != "/usr/bin/orterun" || l.Version.Major != 4 {
		t.Errorf("found %+v (%v): this test needs Open MPI's launcher (Debian: openmpi-bin)", l, err)
	}
	// The one beside the library is meant, and not the one on PATH.
	prefix := t.TempDir()
	for _, dir := range []string{"bin", "lib"} {
		if err := os.Mkdir(filepath.Join(prefix, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own := filepath.Join(prefix, "bin", "mpirun")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(own, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	libraries := []string{filepath.Join(prefix, "lib", "libz.so.1"), filepath.Join(prefix, "lib", "libmpi.so.40")}
	write("echo 'mpirun (Open MPI) 5.0.6'")
	if l, err = Find(t.Context(), libraries); err != nil || l.Path != own || l.Version.Major != 5 {
		t.Errorf("found %+v (%v)", l, err)
	}
	t.Setenv("PATH", "/nowhere")
	for text, want := range map[string]string{
		"echo HYDRA":                       "is no version of Open MPI",
		"echo 'mpirun (Open MPI) 1.10.7'":  "version 1.10.7 of Open MPI is too old",
		"echo broken library >&2; exit 99": "exit status 99: broken library",
	} {
		write(text)
		if _, err = Find(t.Context(), libraries); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err = Find(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "apt install openmpi-bin") {
		t.Error(err)
	}
}

func TestAgentCommand(t *testing.T) {
	if c, err := AgentCommand("/usr/bin/mpirun-sf", "ompi", "agent"); err != nil || c != "/usr/bin/mpirun-sf ompi agent" {
		t.Error(c, err)
	}
	for _, path := range []string{"/my programs/mpirun-sf", "/a:b/mpirun-sf", "/a,b/mpirun-sf"} {
		if _, err := AgentCommand(path); err == nil {
			t.Errorf("%s was taken", path)
		}
	}
}
