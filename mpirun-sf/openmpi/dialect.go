package openmpi

import (
	"fmt"
	"regexp"
	"strconv"
)

// dialect is how one generation of Open MPI says what all of them know.
type dialect struct {
	launchers []string // names of its launcher, most telling first
	install   string   // how a user gets it

	parameter string // option before a parameter of the runtime,
	library   string // and before one of the MPI library
	uri       string // parameter by which daemons find the launcher

	agent    string // parameters: the remote shell agent,
	flat     string // that all daemons are started by the launcher itself,
	attached string // that they stay attached to the agent,
	networks string // the networks that daemons connect over,
	limit    string // seconds that ranks may take to start, "" where there is none,
	literal  string // that host names are not looked up,
	folder   string // and the temporary folder of daemons

	tag []string // options to begin lines of output with their rank
}

// dialects are those that are known, by the major version that they began with,
// the newest first. 4.1 is ORTE; 5.0 is PRRTE, which has the same things under
// other names (Open MPI's documentation, "Migration from 4.1", and PRRTE 3's
// own list of parameters).
var dialects = []struct {
	since int
	dialect
}{
	{5, dialect{
		launchers: []string{"prterun", "mpirun.openmpi", "mpirun"}, install: "apt install openmpi-bin",
		parameter: "--prtemca", library: "--mca", uri: "prte_hnp_uri",
		agent: "plm_ssh_agent", flat: "plm_ssh_no_tree_spawn", attached: "prte_leave_session_attached",
		networks: "prte_if_include", literal: "prte_do_not_resolve", folder: "prte_tmpdir_base",
		tag: []string{"--output", "tag"},
	}},
	{4, dialect{
		launchers: []string{"orterun", "mpirun.openmpi", "mpirun"}, install: "apt install openmpi-bin",
		parameter: "--mca", library: "--mca", uri: "orte_hnp_uri",
		agent: "plm_rsh_agent", flat: "plm_rsh_no_tree_spawn", attached: "orte_leave_session_attached",
		networks: "oob_tcp_if_include", limit: "orte_startup_timeout", literal: "if_base_do_not_resolve", folder: "orte_tmpdir_base",
		tag: []string{"--tag-output"},
	}},
}

// dialectOf is the one of a version, as the launcher's --version says it.
func dialectOf(v Version) (dialect, error) {
	for _, d := range dialects {
		if v.Major >= d.since {
			return d.dialect, nil
		}
	}
	return dialect{}, fmt.Errorf("version %v of Open MPI is too old: 4.0 or later is needed", v)
}

// Version is a version of Open MPI.
type Version struct{ Major, Minor, Release int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Release) }

// versionLine is the first line that launchers print for --version: "orterun
// (OpenRTE) 4.1.4", "mpirun (Open MPI) 5.0.6".
var versionLine = regexp.MustCompile(`(?m)^\S+ \((OpenRTE|Open MPI|PRRTE|PMIx Reference RunTime Environment)\) v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?`)

// parseVersion reads what a launcher prints for --version.
func parseVersion(text string) (v Version, err error) {
	m := versionLine.FindStringSubmatch(text)
	if m == nil {
		return v, fmt.Errorf("it says that it is %.60q, which is no version of Open MPI", text)
	}
	for i, n := range []*int{&v.Major, &v.Minor, &v.Release} {
		*n, _ = strconv.Atoi(m[i+2]) // digits; a release that is not told is 0
	}
	if m[1] != "OpenRTE" && m[1] != "Open MPI" {
		v.Major += 2 // PRRTE 3 is Open MPI 5's
	}
	return v, nil
}
