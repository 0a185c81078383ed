package e2e

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// openMPIPlugin builds the components of Open MPI, and gives the parameters by
// which its launcher finds them. They are below the folder for temporary files,
// which machines share.
func openMPIPlugin(t *testing.T) (env []string) {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("make", "-C", "../../openmpi-plugin", "install", "OUT="+dir, "PLUGINDIR="+dir+"/components", "HELPDIR="+dir+"/components").CombinedOutput()
	if err != nil {
		t.Fatalf("build openmpi-plugin: %v\n%s", err, out)
	}
	theirs, err := exec.Command("ompi_info", "--parsable", "--path", "pkglibdir").Output()
	if err != nil {
		t.Fatalf("ask Open MPI for its components: %v", err)
	}
	path := strings.TrimSpace(string(theirs))
	path = path[strings.LastIndex(path, ":")+1:] + ":" + dir + "/components"
	return []string{"OMPI_MCA_mca_base_component_path=" + path, "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"}
}

// TestOpenMPIPlugin: Open MPI's own launcher makes clones, told nothing of them on
// its command line.
func TestOpenMPIPlugin(t *testing.T) {
	program := openMPI(t)
	env := openMPIPlugin(t)
	nothingIsLeft(t)
	host := append(slices.Clone(env), "OMPI_MCA_ras_snowflock_enable=yes", "OMPI_MCA_ras_snowflock_command="+launcher)
	t.Run("host", func(t *testing.T) {
		dir := t.TempDir()
		r := command{program: "orterun", args: []string{"-np", "4", program}, dir: dir, env: host}.run(t).succeeds(t)
		saysHello(t, onHost, r.stdout, 4, "uid 0, MINE=, in "+dir)
	})
	t.Run("host, refused", func(t *testing.T) {
		slow(t)
		r := command{program: "orterun", args: []string{"-np", "2", "./no-such"}, env: host}.run(t)
		if r.status != 1 || !strings.Contains(r.stderr, "No clones could be made to run your ranks in:\n\n  /") || !strings.Contains(r.stderr, "/no-such does not exist") ||
			strings.Contains(r.stderr, "internal error") {
			t.Errorf("status %d\n%s", r.status, r.stderr)
		}
	})
	t.Run("host, status", func(t *testing.T) {
		slow(t)
		r := command{program: "orterun", args: []string{"-np", "2", program, "exit"}, env: host}.run(t)
		if r.status != 3 {
			t.Errorf("status %d\n%s", r.status, r.stderr)
		}
	})
	t.Run("host, a killed launcher", func(t *testing.T) {
		slow(t)
		// Open MPI's own folder for a session stays, as it does without clones.
		session := "OMPI_MCA_orte_tmpdir_base=" + t.TempDir()
		run := command{program: "orterun", args: []string{"-np", "2", program, "sleep"}, env: append(slices.Clone(host), session)}.start(t)
		run.awaitOutput("sleeps", 2)
		run.cmd.Process.Kill()
		run.wait()
	})
	t.Run("host, not asked to", func(t *testing.T) {
		r := command{program: "orterun", args: []string{"-np", "1", program}, env: env}.run(t).succeeds(t)
		if strings.Contains(r.stdout, "clone-") {
			t.Error(r.stdout)
		}
	})
	t.Run("inside", func(t *testing.T) {
		dir := t.TempDir()
		r := machine.in(t, "cd "+dir+" && env "+strings.Join(env, " ")+" orterun -np 2 "+program).succeeds(t)
		machine.settles(t)
		saysHello(t, inside, r.stdout, 2, "uid 0, MINE=, in "+dir)
	})
}
