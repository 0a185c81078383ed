package main

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api/apitest"
)

// sfOutput runs sf in this process.
func sfOutput(t *testing.T, args ...string) (out, errOut string, status int) {
	t.Helper()
	var o, e strings.Builder
	status = sfMain(args, &o, &e)
	return o.String(), e.String(), status
}

func startSF(t *testing.T) *apitest.Server {
	t.Helper()
	s := apitest.Start(t)
	t.Setenv("SF_SOCKET", s.Socket)
	return s
}

func TestSFVerbs(t *testing.T) {
	s := startSF(t)
	s.Exits(2, 9)
	for _, c := range []struct {
		line   string
		out    string
		status int
		err    string // in standard error; "" wants it silent
	}{
		{"whoami", "0 parent 10.7.0.1 1 host 0 -\n", 0, ""},
		{"env", "export SF_ID=0 SF_TICKET= SF_IP=10.7.0.1 SF_NAME=parent SF_MEMBER=0\n", 0, ""},
		{"list", "parent 0 10.7.0.1 - - 0\n", 0, ""},
		{"request-ticket 2", "t1\n", 0, ""},
		{"ticket t1", "1 clone-1 10.7.0.2 1 host\n2 clone-2 10.7.0.3 1 host\n", 0, ""},
		{"clone t1", "0\n", 0, ""},
		{"clone t1", "", 1, "state"},
		{"join -t 5 t1", "1 0\n2 9\n", 9, ""},
		{"join t1", "", 1, "unknown"},
		{"request-ticket --hierarchical 3", "t2\n", 0, ""},
		{"ticket t2", "1 clone-1 10.7.0.2 2 host\n2 clone-2 10.7.0.3 1 host\n", 0, ""},
		{"kill t2 2", "", 0, ""},
		{"kill t2", "", 0, ""},
		{"checkpoint", "c3 0\n", 0, ""},
		{"request-ticket --vcpus 2 1 --vm clone-9", "t4\n", 0, ""},
		{"create-clones --vm clone-9 c3 t4", "", 0, ""},
		{"join t4 -t 0", "1 0\n", 0, ""},
		{"discard c3", "", 0, ""},
		{"discard c3", "", 1, "unknown"},
		{"exit", "", 1, "refused"},
		{"exit --vm clone-9 3", "", 0, ""},
		{"", "", 2, "no verb"},
		{"fork t1", "", 2, "there is no verb fork"},
		{"clone", "", 2, "clone wants 1 more argument(s)"},
		{"clone t1 t2", "", 2, "does not take t2"},
		{"list --vm x", "", 2, "list: flag"},
		{"clone --color t1", "", 2, "flag provided but not defined: -color"},
		{"request-ticket many", "", 2, `"many" is no number`},
		{"request-ticket 0", "", 2, "should be a number from 1"},
		{"exit 256", "", 2, "from 0 to 255"},
		{"join t1 -t soon", "", 2, "seconds"},
		{"clone a:b", "", 2, "letters"},
	} {
		out, errOut, status := sfOutput(t, strings.Fields(c.line)...)
		if out != c.out || status != c.status {
			t.Errorf("sf %s: printed %q with status %d (%s), want %q, %d", c.line, out, status, errOut, c.out, c.status)
		}
		if c.err == "" && errOut != "" || !strings.Contains(errOut, c.err) || errOut != "" && (!strings.HasPrefix(errOut, "sf: ") || strings.Count(errOut, "\n") != 1) {
			t.Errorf("sf %s: error %q, want one line with %q", c.line, errOut, c.err)
		}
	}
	if !slices.Contains(s.Calls(), "request-ticket clones=1 vcpus=2 vm=clone-9") && !slices.Contains(s.Calls(), "request-ticket clones=1 vm=clone-9 vcpus=2") {
		t.Errorf("calls %q", s.Calls())
	}
}

func TestSFInAClone(t *testing.T) {
	s := startSF(t)
	s.Be(api.Identity{ID: 3, Ticket: "t7", Member: 5, Name: "clone-5", IP: netip.MustParseAddr("10.7.0.6"), VCPUs: 2, Host: "host"})
	for line, want := range map[string]string{
		"whoami":     "3 clone-5 10.7.0.6 2 host 5 t7\n",
		"await-fork": "3 t7\n",
		"checkpoint": "c1 3\n",
		"env":        "export SF_ID=3 SF_TICKET=t7 SF_IP=10.7.0.6 SF_NAME=clone-5 SF_MEMBER=5\n",
	} {
		if out, errOut, status := sfOutput(t, line); out != want || status != 0 {
			t.Errorf("sf %s: %q, %d (%s), want %q", line, out, status, errOut, want)
		}
	}
}

func TestSFJoinThatDoesNotEndWell(t *testing.T) {
	s := startSF(t)
	s.On(api.Join, func(ctx context.Context, r api.Request) api.Reply {
		if limit, ok := r.Timeout(); ok && limit == 0 {
			return api.Fail(api.KindTimeout, "1 clone has not ended")
		}
		if r.Value("ticket") == "t2" {
			return api.LostReply([]int{1}, map[int]int{2: 5}, "clone 1 was killed")
		}
		<-ctx.Done()
		return api.Fail(api.KindTimeout, "")
	})
	for _, c := range []struct {
		line, out string
		status    int
	}{
		{"join -t 0 t1", "", 124},
		{"join -t 0.05 t1", "", 124},
		{"join t2", "1 lost\n2 5\n", 1},
	} {
		out, errOut, status := sfOutput(t, strings.Fields(c.line)...)
		if out != c.out || status != c.status || !strings.HasPrefix(errOut, "sf: join ticket t") {
			t.Errorf("sf %s: %q, %d (%s), want %q, %d", c.line, out, status, errOut, c.out, c.status)
		}
	}
}

func TestSFTeaches(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"help"}, {"join", "--help"}, {"-h"}} {
		if out, errOut, status := sfOutput(t, args...); out != sfUsage || errOut != "" || status != 0 {
			t.Errorf("sf %q: %d, %s", args, status, errOut)
		}
	}
	for verb := range sfVerbs {
		if !strings.Contains(sfUsage, "sf "+verb) {
			t.Errorf("the help has no %s", verb)
		}
	}
	for line := range strings.Lines(sfUsage) {
		if len(line) > 90 || strings.Contains(line, "\t") {
			t.Errorf("a line does not fit a terminal: %q", line)
		}
	}
	t.Setenv("SF_SOCKET", "/nonexistent/sf.sock")
	want := "sf: request a ticket: not inside a virtual machine of mpirun-sf (no /nonexistent/sf.sock); start one with: mpirun-sf vm run\n"
	if out, errOut, status := sfOutput(t, "request-ticket", "4"); out != "" || errOut != want || status != 1 {
		t.Errorf("outside: %q %q %d, want %q", out, errOut, status, want)
	}
}

// The example of the help is run, as the parent and as a clone.
func TestSFExample(t *testing.T) {
	for _, c := range []struct {
		id   int
		call string
		made []string
	}{
		{0, "join ticket=t1", []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}},
		{2, "exit status=0", []string{"2", "6", "10"}},
	} {
		s := startSF(t)
		s.Be(api.Identity{ID: c.id, Ticket: "t1", Name: "n", IP: netip.MustParseAddr("10.7.0.1"), VCPUs: 1, Host: "host"})
		s.On(api.Exit, func(context.Context, api.Request) api.Reply {
			return api.Fail(api.KindKilled, "the test ends here")
		})
		dir := t.TempDir()
		frames := filepath.Join(dir, "frames")
		if err := os.Mkdir(frames, 0o755); err != nil {
			t.Fatal(err)
		}
		if c.id == 0 { // what the clones leave
			for _, n := range c.made {
				if err := os.WriteFile(filepath.Join(frames, n), []byte("frame "+n+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		// TestMain makes the test's program behave as sf by that name. And where
		// nothing ends a machine, exit ends the script.
		self, err := os.Executable()
		if err == nil {
			err = os.Mkdir(filepath.Join(dir, "bin"), 0o755)
		}
		if err == nil {
			err = os.Symlink(self, filepath.Join(dir, "bin", "sf"))
		}
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]string{
			"sf":     "#!/bin/sh\n" + `"${0%/*}/bin/sf" "$@"; s=$?; [ "$1" = exit ] && kill $PPID; exit $s`,
			"render": "#!/bin/sh\necho frame $1\n",
			"script": sfExample,
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "    #!", "#!")), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(t.Context(), "sh", "script")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if (err != nil) != (c.id != 0) {
			t.Errorf("as %d: %v", c.id, err)
		}
		if n := strings.Count(string(out), "frame "); c.id == 0 && n != len(c.made) {
			t.Errorf("the parent printed %q", out)
		}
		if calls := s.Calls(); calls[len(calls)-1] != c.call {
			t.Errorf("as %d: calls %q, want %s last", c.id, calls, c.call)
		}
		for _, n := range c.made {
			if got, err := os.ReadFile(filepath.Join(frames, n)); string(got) != "frame "+n+"\n" {
				t.Errorf("as %d: frame %s: %q, %v", c.id, n, got, err)
			}
		}
	}
}

func TestAsSF(t *testing.T) {
	for _, c := range []struct {
		args string
		want string
		is   bool
	}{
		{"sf clone t1", "clone t1", true},
		{"/usr/bin/sf clone t1", "clone t1", true},
		{"mpirun-sf sf clone t1", "clone t1", true},
		{"mpirun-sf -np 2 sf", "", false},
		{"/bin/mpirun-sf", "", false},
	} {
		got, is := asSF(strings.Fields(c.args))
		if is != c.is || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, %v", c.args, got, is)
		}
	}
}
