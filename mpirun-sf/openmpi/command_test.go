package openmpi

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// orted is what orterun 4.1.4 hands to its remote shell agent.
var orted = commandLine{
	" orted", "-mca", "orte_leave_session_attached", `"1"`, "-mca", "ess", `"env"`, "-mca", "ess_base_jobid", `"256114688"`,
	"-mca", "ess_base_vpid", "1", "-mca", "ess_base_num_procs", `"3"`, "-mca", "orte_node_regex", `"vm,clone-[1:1-2]@0(3)"`,
	"-mca", "orte_hnp_uri", `"256114688.0;tcp://127.0.0.1:35207"`, "--mca", "plm_rsh_agent", `"/usr/bin/mpirun-sf ompi agent"`,
	"--mca", "oob_tcp_if_include", `"lo"`, "-mca", "plm", `"rsh"`, "-mca", "pmix", `"^s1,s2,cray,isolated"`,
}

// prted is what PRRTE 3 does.
var prted = commandLine{
	"prted", "--prtemca", "ess", "env", "--prtemca", "ess_base_nspace", "prterun-vm-123@0", "--prtemca", "ess_base_vpid", "1",
	"--prtemca", "prte_hnp_uri", `"prterun-vm-123@0.0;tcp://10.0.0.1,192.168.7.1:4711:8,24"`, "--prtemca", "prte_tmpdir_base", "/scratch",
	"--prtemca", "plm", "ssh",
}

func show(u uri) string {
	var addresses []string
	for _, a := range u.addresses {
		addresses = append(addresses, a.String())
	}
	return fmt.Sprint(u.name, addresses, u.port, u.masks)
}

func TestCommandLine(t *testing.T) {
	d, u, err := daemonOf(orted)
	if err != nil || d.uri != "orte_hnp_uri" || show(u) != "256114688.0[127.0.0.1] 35207 false" {
		t.Errorf("orted's launcher is at %v (%v)", u, err)
	}
	at := netip.MustParseAddrPort("10.1.255.254:99")
	network := netip.MustParsePrefix("10.1.0.0/16")
	got := orted.set("-mca", d.uri, u.at(at, network)).set("-mca", d.networks, "10.1.0.0/16").set("-mca", "new", "x").without("plm").without(d.agent).text()
	for _, want := range []string{
		`orted -mca orte_leave`, `-mca orte_hnp_uri "256114688.0;tcp://10.1.255.254:99" `, `--mca oob_tcp_if_include "10.1.0.0/16" `,
		` -mca pmix "^s1,s2,cray,isolated" -mca new "x"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the line for the clone lacks %s: %s", want, got)
		}
	}
	for _, not := range []string{"127.0.0.1", `"lo"`, "plm", "rsh"} {
		if strings.Contains(got, not) {
			t.Errorf("the line for the clone has %s: %s", not, got)
		}
	}
	subshell := append(append(commandLine{"( test ! -r ./.profile || . ./.profile;"}, orted...), ")")
	if got := subshell.set("-mca", "new", "x").text(); !strings.HasSuffix(got, ` -mca new "x" )`) {
		t.Errorf("what is set is not the daemon's, but behind the subshell of a user with sh: %s", got)
	}
	if orted.find("plm") < 0 || orted.gives("tmpdir_base") {
		t.Error("the line that was given has changed")
	}
	d, u, err = daemonOf(prted)
	if err != nil || d.uri != "prte_hnp_uri" || show(u) != "prterun-vm-123@0.0[10.0.0.1 192.168.7.1] 4711 true" || !prted.gives("tmpdir_base") {
		t.Errorf("prted's launcher is at %v (%v)", u, err)
	}
	if got := u.at(at, network); got != "prterun-vm-123@0.0;tcp://10.1.255.254:99:16" {
		t.Error(got)
	}
	for _, c := range []commandLine{{"sh", "-c", "orte_hnp_uri", "1.0;tcp://127.0.0.1:1"}, {"orted"}, {"orted", "-mca", "orte_hnp_uri"}, nil} {
		if _, _, err := daemonOf(c); err == nil || !strings.Contains(err.Error(), "none of Open MPI's daemons") {
			t.Errorf("%q: %v", c, err)
		}
	}
}

func TestParseURI(t *testing.T) {
	for s, want := range map[string]string{
		"1.0;tcp://127.0.0.1:80":                            "1.0[127.0.0.1] 80 false",
		"1.0;usock;tcp://10.0.0.1,10.0.0.2:80;tcp6://::1:9": "1.0[10.0.0.1 10.0.0.2] 80 false",
		"a@1.0;tcp://10.0.0.1:80:24":                        "a@1.0[10.0.0.1] 80 true",
		"":                                                  "there is no name",
		"1.0":                                               "there is no name",
		";tcp://1.2.3.4:5":                                  "there is no name",
		"$(id);tcp://1.2.3.4:5":                             "there is no name",
		"1.0;tcp6://::1:9":                                  "no way by TCP",
		"1.0;tcp://127.0.0.1":                               "no port",
		"1.0;tcp://127.0.0.1:":                              "no port",
		"1.0;tcp://127.0.0.1:0":                             "no port",
		"1.0;tcp://127.0.0.1:70000":                         "no port",
		"1.0;tcp://host:80":                                 "no IPv4 address",
		"1.0;tcp://:80":                                     "no IPv4 address",
	} {
		u, err := parseURI(s)
		got := show(u)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", s, got, want)
		}
	}
}

// What a URI is turned into holds no more than it says, whatever it was.
func FuzzParseURI(f *testing.F) {
	f.Add("1.0;tcp://10.0.0.1,10.0.0.2:80;tcp6://::1:9")
	f.Add(`a@1.0;tcp://10.0.0.1:80:24"; rm -rf /; "`)
	at, network := netip.MustParseAddrPort("10.1.255.254:99"), netip.MustParsePrefix("10.1.0.0/16")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseURI(s)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %v", err)
			}
			return
		}
		if len(u.addresses) == 0 || u.port == 0 {
			t.Errorf("%q leads nowhere", s)
		}
		again, err := parseURI(u.at(at, network))
		if err != nil || again.name != u.name || again.addresses[0] != at.Addr() || again.port != at.Port() {
			t.Errorf("%q became %q: %v", s, u.at(at, network), err)
		}
		if strings.ContainsAny(u.at(at, network), "\"'$`\\ \n") {
			t.Errorf("%q became %q, which a shell reads otherwise", s, u.at(at, network))
		}
	})
}
