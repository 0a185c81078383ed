package hostlist

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

func host(name string, slots int) Host {
	return Host{Host: allocator.Host{Name: name, Slots: slots}}
}

func as(user string, h Host) Host { h.User = user; return h }

func TestLists(t *testing.T) {
	for _, test := range []struct {
		list string
		want []Host
	}{
		{"h1", []Host{host("h1", 0)}},
		{"h1,h2:4,h3", []Host{host("h1", 0), host("h2", 4), host("h3", 0)}},
		{"h1, h2:4 ", []Host{host("h1", 0), host("h2", 4)}},
		{"root@h1:2,a.b-c_d.example", []Host{as("root", host("h1", 2)), host("a.b-c_d.example", 0)}},
		{"10.0.0.1:3,[2001:db8::1]:2,[fe80::1%eth0]", []Host{host("10.0.0.1", 3), host("2001:db8::1", 2), host("fe80::1%eth0", 0)}},
		{"h1,h1", []Host{host("h1", 2)}},
		{"h2:2,h1,H2,h2:3", []Host{host("h2", 6), host("h1", 0)}},
		{"h1,root@h1", []Host{as("root", host("h1", 2))}},
	} {
		if got, err := Parse(test.list); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, %v", test.list, got, err)
		}
	}
}

func TestListsThatAreNone(t *testing.T) {
	for list, want := range map[string]string{
		"":                  "a host is missing",
		"h1,,h2":            "entry 2: a host is missing",
		"h1:":               "not a number of slots",
		"h1:0":              "not a number of slots",
		"h1:-3":             "not a number of slots",
		"h1:70000":          "from 1 to 65535",
		"h1:4:2":            "not a number of slots",
		"h1:40000,h1:40000": "more than 65535 slots in all",
		"-oProxyCommand":    "not the name or address",
		"h[1-4]":            "not the name or address",
		"h1;reboot":         "not the name or address",
		"@h1":               "not the name of a user",
		"-l@h1":             "not the name of a user",
		"a@h1,b@h1":         "is there before with user a",
		"2001:db8::1":       "in brackets: [2001:db8::1]",
		"[2001:db8::1":      "no closing bracket",
		"[h1]":              "not an IPv6 address",
		"[::1]4":            "is not :slots",
	} {
		if got, err := Parse(list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want %q", list, got, err, want)
		}
	}
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	const text = "# MPICH's\r\n" +
		"h1\n" +
		"\n" +
		"h2:4 user=root ifhn=10.0.0.2 binding=user:0,3  # with options\n" +
		"# Open MPI's\n" +
		"  h3 slots=4 max_slots=8\n" +
		"h4 slots = 2 max-slots = 2\n" +
		"bob@h5 slots=1\n" +
		"[2001:db8::1]:2 user=root\n" +
		"h1\n" +
		"h3 slots=2 max_slots=2" // and no line end
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h2 := as("root", host("h2", 4))
	h2.Interface = "10.0.0.2"
	h3, h4 := host("h3", 6), host("h4", 2)
	h3.MaxSlots, h4.MaxSlots = 10, 2
	want := []Host{host("h1", 2), h2, h3, h4, as("bob", host("h5", 1)), as("root", host("2001:db8::1", 2))}
	if got, err := Read(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if _, err := Read(path + ".missing"); err == nil || !strings.Contains(err.Error(), path+".missing") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestFilesThatAreNone(t *testing.T) {
	many := new(strings.Builder)
	for i := range maxHosts + 1 {
		fmt.Fprintf(many, "h%d\n", i)
	}
	for _, test := range []struct{ text, want string }{
		{"# nothing\n\n", "there is none in hosts"},
		{"h1\nh2 slots\n", `hosts:2: "slots" is no option`},
		{"h1 slots=x\n", `hosts:1: "x" is not a number of slots`},
		{"h1:2 slots=3\n", "hosts:1: h1 has slots twice"},
		{"h1 slots=4 max_slots=2\n", "max_slots=2 is less than the 4 slots"},
		{"h1 port=22\n", "port= is not known"},
		{"a@h1 user=b\n", "two users, a and b"},
		{"h1 user=a\nh1 user=b\n", "hosts:2: h1 is there before with user a"},
		{"h1 ifhn=a\nh1 ifhn=b\n", "hosts:2: h1 is there before with ifhn=a"},
		{"h1 ifhn=-x\n", "not the name or address of an interface"},
		{"^h1\n", "hosts:1:"},
		{"=\n", "hosts:1:"},
		{many.String(), fmt.Sprintf("hosts:%d: more than %d hosts", maxHosts+1, maxHosts)},
		{strings.Repeat("#\n", maxSize), "is larger than"},
		{strings.Repeat("#", 2*maxSize), "too long"},
	} {
		if got, err := ReadFrom("hosts", strings.NewReader(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.40q: %d hosts, %v; want %q", test.text, len(got), err, test.want)
		}
	}
}

// FuzzHosts reads anything as a list and as a file: what comes out is in bounds,
// and written down again it is the same.
func FuzzHosts(f *testing.F) {
	for _, seed := range []string{"h1,h2:4,root@h3", "h1:2 user=a ifhn=b\n# c\nh2 slots = 4 max_slots=8\n", "[2001:db8::1]:2", "[fe80::1%e]", "1.2.3.4:5", "a@[::1]", "h1\nh1\n", "=", "h1 = slots"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<16 {
			return
		}
		fromList, _ := Parse(text)
		fromFile, _ := ReadFrom("fuzz", strings.NewReader(text))
		for _, all := range [][]Host{fromList, fromFile} {
			if len(all) == 0 {
				continue
			}
			var lines strings.Builder
			for _, h := range all {
				if h.Name == "" || strings.HasPrefix(h.Name, "-") || strings.ContainsAny(h.Name, " \n/") || h.Slots < 0 || h.Slots > maxSlots {
					t.Fatalf("%q has a host %+v", text, h)
				}
				name := h.Name
				if strings.Contains(name, ":") {
					name = "[" + name + "]"
				}
				lines.WriteString(name)
				if h.Slots > 0 {
					fmt.Fprintf(&lines, " slots=%d", h.Slots)
				}
				if h.MaxSlots > 0 {
					fmt.Fprintf(&lines, " max_slots=%d", h.MaxSlots)
				}
				if h.User != "" {
					fmt.Fprintf(&lines, " user=%s", h.User)
				}
				if h.Interface != "" {
					fmt.Fprintf(&lines, " ifhn=%s", h.Interface)
				}
				lines.WriteByte('\n')
			}
			again, err := ReadFrom("again", strings.NewReader(lines.String()))
			if err != nil || !reflect.DeepEqual(again, all) {
				t.Fatalf("%q: %+v became %+v, %v", text, all, again, err)
			}
		}
	})
}
