package ssh

import (
	"bufio"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// configured reads files, by name, of a home; "ssh_config" is the system's.
func configured(t *testing.T, files map[string]string) (configuration, error) {
	t.Helper()
	a := account{name: "alice", home: t.TempDir(), uid: 1000, agent: "/run/agent"}
	system := t.TempDir()
	if err := os.Mkdir(filepath.Join(a.home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(a.home, ".ssh", name)
		if name == "ssh_config" {
			path = filepath.Join(system, name)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return readConfiguration(a, system)
}

func TestConfiguration(t *testing.T) {
	c, err := configured(t, map[string]string{
		"config": "# of alice\r\n" +
			"Host h1 h1.* !h1.bad\n" +
			"\tHostName = 10.0.0.1\n" +
			"  Port=2201\n" +
			"User \"the root\"  # why not\n" +
			"Host *.cluster\n" +
			"HostName %h.example.org\n" +
			"IdentityFile ~/.ssh/%n_%r\n" +
			"IdentityFile \"%d/with space\"\n" +
			"IdentityFile ~/.ssh/%n_%r\n" +
			"UserKnownHostsFile none\n" +
			"ProxyJump root@gate:22,[2001:db8::1]:2222\n" +
			"ProxyCommand never\n" +
			"Include more/*.conf\n" +
			"Host jumps-not\n" +
			"ProxyJump none\n" +
			"ProxyCommand never\n" +
			"Host commands\n" +
			"ProxyCommand nc --proxy \"a b\" %h %p # %%\n" +
			"ProxyJump never\n" +
			"Match host 10.0.0.9 user bob\n" +
			"Port 9\n" +
			"Match originalhost m* !user bob localuser alice\n" +
			"Port 10\n" +
			"Match all\n" +
			"ConnectTimeout 7\n" +
			"ServerAliveInterval 1m\n" +
			"StrictHostKeyChecking ACCEPT-NEW\n" +
			"IdentityAgent ${HOME}/agent\n" +
			"HostKeyAlgorithms ssh-ed25519,rsa-sha2-512\n",
		"more/a.conf": "HostKeyAlias cluster\nHost h2\nPort 1\n",
		"more/b.conf": "User carol\nServerAliveCountMax 9\n",
		"ssh_config": "Host *\nConnectTimeout 99\nUser eve\nAddressFamily inet\n" +
			"Match final all\nCompression yes\nIdentitiesOnly yes\n" +
			"Match final host *.example.org\nPort 77\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", "/from/environment")
	home := func(names ...string) (paths []string) {
		for _, name := range names {
			paths = append(paths, filepath.Join(c.home, ".ssh", name))
		}
		return paths
	}
	for _, test := range []struct {
		host, user string
		change     func(*settings)
	}{
		{"h1", "", func(s *settings) { s.host, s.port, s.user = "10.0.0.1", "2201", "the root" }},
		{"H1.good", "", func(s *settings) { s.host, s.port, s.user = "10.0.0.1", "2201", "the root" }},
		{"h1.bad", "", func(*settings) {}},
		{"h1", "me", func(s *settings) { s.host, s.port, s.user = "10.0.0.1", "2201", "me" }},
		{"n1.cluster", "", func(s *settings) {
			s.host, s.port, s.user = "n1.cluster.example.org", "77", "carol"
			s.alias, s.aliveCount = "cluster", 9
			s.keyFiles = append(home("n1.cluster_carol"), filepath.Join(c.home, "with space"))
			s.explicitFiles = true
			s.knownFiles = nil
			s.jump = []string{"root@gate:22", "[2001:db8::1]:2222"}
		}},
		{"h2", "", func(*settings) {}}, // the Include is another host's
		{"jumps-not", "", func(*settings) {}},
		{"commands", "", func(s *settings) { s.proxyCommand = `nc --proxy "a b" commands 22 # %` }},
		{"10.0.0.9", "bob", func(s *settings) { s.user, s.port = "bob", "9" }},
		{"10.0.0.9", "", func(*settings) {}},
		{"m1", "", func(s *settings) { s.port = "10" }},
		{"m1", "bob", func(s *settings) { s.user = "bob" }},
	} {
		want := &settings{
			name: test.host, user: "eve", host: strings.ToLower(test.host), port: "22", family: "tcp4",
			knownFiles: home("known_hosts", "known_hosts2"), globalOnes: []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"},
			strict: "accept-new", algorithms: []string{"ssh-ed25519", "rsa-sha2-512"},
			keyFiles: home("id_ed25519", "id_ecdsa", "id_rsa"), onlyThose: true, agent: "/from/environment/agent",
			connectLimit: 7 * time.Second, aliveInterval: time.Minute, aliveCount: 3,
		}
		test.change(want)
		got, err := c.resolve(test.host, test.user, "")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s@%s: %v\ngot  %+v\nwant %+v", test.user, test.host, err, got, want)
		}
	}
}

func TestNoConfiguration(t *testing.T) {
	c, err := configured(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.resolve("h1", "", "")
	if err != nil || s.user != "alice" || s.port != "22" || s.strict != "ask" || s.agent != "/run/agent" || s.connectLimit != connectLimit || s.aliveInterval != aliveInterval {
		t.Errorf("%+v, %v", s, err)
	}
	if got := s.String(); got != "alice@h1:22" {
		t.Errorf("it is called %s", got)
	}
}

func TestConfigurationThatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"Port\n":                                "config:1: Port has no value",
		"\nUser \"x\n":                          "config:2: a quote has no end",
		"Port 0\n":                              `config:1: "0" is not a port`,
		"Port ssh\n":                            `"ssh" is not a port`,
		"StrictHostKeyChecking maybe\n":         `cannot be "maybe"`,
		"ConnectTimeout soon\n":                 "not a time",
		"ServerAliveCountMax -1\n":              "not a number",
		"IdentitiesOnly perhaps\n":              "config:1: identitiesonly cannot be",
		"IdentityFile ~nobody-of-that-name/x\n": "nobody-of-that-name",
		"IdentityAgent ${NOT_IN_ENVIRONMENT}\n": "${NOT_IN_ENVIRONMENT} is not in the environment",
		"Match exec true\nPort 1\n":             "config:1: Match exec is not supported",
		"Match host\n":                          "Match host has no pattern",
		"Include config\n":                      "include each other",
	} {
		c, err := configured(t, map[string]string{"config": text})
		if err == nil {
			_, err = c.resolve("h1", "", "")
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	// What is not of this host does no harm.
	c, err := configured(t, map[string]string{"config": "Match host h2 exec true\nPort 1\nHost h2\nPort 0\n"})
	if err == nil {
		_, err = c.resolve("h1", "", "")
	}
	if err != nil {
		t.Error(err)
	}
}

func TestPatterns(t *testing.T) {
	for _, test := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"*", "", true}, {"*", "abc", true}, {"?", "", false}, {"?", "a", true}, {"a*c", "abbc", true},
		{"a*c", "abcd", false}, {"*b*c", "abbabc", true}, {"a?c", "ac", false}, {"**a", "bba", true}, {"a", "ab", false}, {"ab", "a", false},
	} {
		if got := matchPattern(test.pattern, test.s); got != test.want {
			t.Errorf("%q, %q: %v", test.pattern, test.s, got)
		}
	}
}

func TestHops(t *testing.T) {
	for hop, want := range map[string][3]string{
		"gate":               {"", "gate", ""},
		"root@gate":          {"root", "gate", ""},
		"root@gate:2222":     {"root", "gate", "2222"},
		"ssh://root@gate:22": {"root", "gate", "22"},
		"[2001:db8::1]:2222": {"", "2001:db8::1", "2222"},
		"root@2001:db8::1":   {"root", "2001:db8::1", ""},
		"a@realm@[::1]:1":    {"a@realm", "::1", "1"},
		"":                   {},
		"root@":              {},
	} {
		user, host, port, err := splitHop(hop)
		if got := [3]string{user, host, port}; got != want || (err != nil) != (want[1] == "") {
			t.Errorf("%q: %q, %v", hop, got, err)
		}
	}
}

// FuzzConfiguration reads anything; what comes out can be worked with.
func FuzzConfiguration(f *testing.F) {
	for _, seed := range []string{"Host *\nPort 22\n", "Match final host a user b\nUser=c\n", "ProxyCommand a \"b c\" %h%%\nIdentityFile ~/x\n", "Host a !b*?\nUser \"\n", "ConnectTimeout 1h2m\nHostKeyAlgorithms +x", "ProxyJump a,b@[::1]:3\n", "HostName \"\"\n", "HostKeyAlias ''"} {
		f.Add(seed)
	}
	a := account{name: "alice", home: "/nonexistent"}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(strings.ToLower(text), "include") {
			return // reads files
		}
		lines, err := reader{a, "/nonexistent"}.parse("config", text, 0)
		if err != nil {
			return
		}
		c := configuration{account: a, lines: [][]directive{lines}}
		s, err := c.resolve("h1", "", "")
		if err != nil {
			return
		}
		if s.user == "" || s.port == "" || s.connectLimit <= 0 || s.connectLimit > 24*time.Hour || s.aliveCount < 0 || s.strict == "" {
			t.Fatalf("%q became %+v", text, s)
		}
		c.wayTo(s, 0)
	})
}

// FuzzKnownHosts reads anything, and judges by it.
func FuzzKnownHosts(f *testing.F) {
	f.Add("h1,h2 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPmMWr0OgLbr5VdJ5jJbZTZfBRBlzKwYPLuf9cnxYwU1\n")
	f.Add("@cert-authority *.x,!y ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPmMWr0OgLbr5VdJ5jJbZTZfBRBlzKwYPLuf9cnxYwU1 c\n")
	f.Add("|1|AAAA|AAAA ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPmMWr0OgLbr5VdJ5jJbZTZfBRBlzKwYPLuf9cnxYwU1\n@revoked")
	f.Fuzz(func(t *testing.T, text string) {
		all := parseKnown("known_hosts", []byte(text))
		for _, one := range all.of("h1") {
			if one.key == nil || one.line < 1 {
				t.Fatalf("%q has %+v", text, one)
			}
			k := &known{name: "h1", all: all, keys: all.of("h1")}
			if found, _, _ := k.judge(&settings{host: "h1", port: "22"}, one.key); one.marker == "" && found != keyKnown && found != keyRevoked {
				t.Fatalf("%q does not know its own key", text)
			}
			if n := len(k.prefer([]string{"rsa-sha2-512", "ssh-ed25519"})); n != 2 {
				t.Fatalf("%d algorithms of 2", n)
			}
		}
	})
}

// FuzzMark reads what a host prints before the script speaks, and what the
// script says: never more than it is to.
func FuzzMark(f *testing.F) {
	f.Add("Welcome\nMARK run 17\n", "MARK")
	f.Add("> MARK want\nMARK full /x\n", "MARK")
	f.Add("", "M")
	f.Fuzz(func(t *testing.T, text, mark string) {
		in := strings.NewReader(text)
		out := bufio.NewReaderSize(in, 16)
		said, err := readMark(out, mark)
		if err == nil && (!strings.Contains(text, mark+" ") || strings.Contains(said, "\n")) {
			t.Fatalf("%q says %q", text, said)
		}
		if taken := len(text) - in.Len() - out.Buffered(); taken > maxNoise {
			t.Fatalf("%d bytes were read", taken)
		}
	})
}
