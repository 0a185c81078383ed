package ssh

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What counts where the configuration says nothing.
const (
	connectLimit  = 10 * time.Second // for a connection, and for the far side's greeting
	loginLimit    = 60 * time.Second // for the handshake and the login after it
	aliveInterval = 3 * time.Second
	aliveCount    = 3
)

// settings are what counts for the connection to one host.
type settings struct {
	name, user string // the name as the user wrote it
	host, port string
	family     string // of net.Dial: tcp, tcp4 or tcp6

	alias      string   // what the host is called in known_hosts, if it is not host
	knownFiles []string // the first may be added to
	globalOnes []string
	strict     string // yes, no, accept-new or ask
	hash       bool   // names that are added
	algorithms []string

	keyFiles      []string
	certificates  []string
	onlyThose     bool
	explicitFiles bool // keyFiles are of the configuration
	agent         string
	noKeys        bool
	jump          []string // hosts on the way, each as user@host:port
	proxyCommand  string
	connectLimit  time.Duration
	aliveInterval time.Duration // 0: never ask
	aliveCount    int
}

// address is host:port.
func (s *settings) address() string { return net.JoinHostPort(s.host, s.port) }

// String is how an error names the place: who logs in where.
func (s *settings) String() string { return s.user + "@" + s.address() }

// command is what the user can type to get there.
func (s *settings) command() string {
	if s.user == "" {
		return "ssh " + s.name
	}
	return "ssh " + s.user + "@" + s.name
}

// resolve works out what counts for a host, with the user and port that were
// given with it, if any.
func (c configuration) resolve(host, user, port string) (*settings, error) {
	v, err := c.about(host, user)
	if err != nil {
		return nil, err
	}
	s := &settings{name: host, host: strings.ToLower(v.hostName()), user: v.userName(), port: port, family: "tcp"}
	w := words{values: v, s: s}
	if s.port == "" {
		s.port = w.word("port", "22")
	}
	if n, err := strconv.ParseUint(s.port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("%s: %q is not a port", v.where("port"), s.port)
	}
	if s.user == "" {
		return nil, fmt.Errorf("whom to log in as is not known: name a user, as in root@%s", host)
	}
	s.family = w.choice("addressfamily", "any", map[string]string{"any": "tcp", "inet": "tcp4", "inet6": "tcp6"})
	s.strict = w.choice("stricthostkeychecking", "ask", map[string]string{"yes": "yes", "no": "no", "off": "no", "ask": "ask", "accept-new": "accept-new"})
	s.hash = w.yes("hashknownhosts", false)
	s.onlyThose = w.yes("identitiesonly", false)
	s.noKeys = !w.yes("pubkeyauthentication", true)
	s.connectLimit = w.seconds("connecttimeout", connectLimit)
	if s.connectLimit == 0 {
		s.connectLimit = connectLimit
	}
	s.aliveInterval = w.seconds("serveraliveinterval", aliveInterval)
	s.aliveCount = w.number("serveralivecountmax", aliveCount)
	if d, ok := v.set["hostkeyalgorithms"]; ok && !strings.ContainsAny(d.args[0][:1], "+-^") {
		s.algorithms = strings.Split(d.args[0], ",")
	}
	if d, ok := v.set["hostkeyalias"]; ok {
		s.alias = strings.ToLower(d.args[0])
	}
	s.knownFiles = w.paths("userknownhostsfile", "~/.ssh/known_hosts", "~/.ssh/known_hosts2")
	s.globalOnes = w.paths("globalknownhostsfile", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
	s.keyFiles = w.files("identityfile")
	s.explicitFiles = len(v.all["identityfile"]) > 0
	if !s.explicitFiles {
		for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
			s.keyFiles = append(s.keyFiles, filepath.Join(v.home, ".ssh", "id_"+kind))
		}
	}
	s.certificates = w.files("certificatefile")
	s.agent = w.agent()
	w.proxy()
	if w.err != nil {
		return nil, w.err
	}
	return s, nil
}

// where is the line that says something of key.
func (v *values) where(key string) string {
	if d, ok := v.set[key]; ok {
		return fmt.Sprintf("%s:%d", d.file, d.line)
	}
	return "ssh's configuration"
}

// words takes values, and keeps the first error.
type words struct {
	*values
	s   *settings
	err error
}

func (w *words) fail(key, format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("%s: %s", w.where(key), fmt.Sprintf(format, args...))
	}
}

func (w *words) word(key, otherwise string) string {
	if d, ok := w.set[key]; ok {
		return d.args[0]
	}
	return otherwise
}

func (w *words) choice(key, otherwise string, of map[string]string) string {
	word := strings.ToLower(w.word(key, otherwise))
	value, ok := of[word]
	if !ok {
		w.fail(key, "%s cannot be %q", key, word)
	}
	return value
}

func (w *words) yes(key string, otherwise bool) bool {
	is := map[bool]string{true: "yes", false: "no"}
	return w.choice(key, is[otherwise], map[string]string{"yes": "yes", "true": "yes", "no": "no", "false": "no"}) == "yes"
}

func (w *words) number(key string, otherwise int) int {
	n, err := strconv.ParseUint(w.word(key, strconv.Itoa(otherwise)), 10, 16)
	if err != nil {
		w.fail(key, "%s is %q, which is not a number from 0 to 65535", key, w.word(key, ""))
	}
	return int(n)
}

// seconds takes ssh's way to write a time: 10, 10s, 5m or 1h30m.
func (w *words) seconds(key string, otherwise time.Duration) time.Duration {
	d, ok := w.set[key]
	if !ok || d.args[0] == "none" {
		return otherwise
	}
	text := strings.ToLower(d.args[0])
	if last := text[len(text)-1]; '0' <= last && last <= '9' {
		text += "s"
	}
	n, err := time.ParseDuration(text)
	if err != nil || n < 0 || n > 24*time.Hour {
		w.fail(key, "%s is %q, which is not a time of at most a day", key, d.args[0])
	}
	return n
}

// expand replaces ssh's tokens, and where it is a path also ~ and variables.
func (w *words) expand(key, s string, path bool) string {
	if path {
		s = variable.ReplaceAllStringFunc(s, func(name string) string {
			value, ok := os.LookupEnv(name[2 : len(name)-1])
			if !ok {
				w.fail(key, "%s is not in the environment", name)
			}
			return value
		})
	}
	local, _ := os.Hostname()
	short, _, _ := strings.Cut(local, ".")
	alias := w.original
	if w.s.alias != "" {
		alias = w.s.alias
	}
	s = strings.NewReplacer("%%", "%", "%d", w.home, "%h", w.s.host, "%i", strconv.Itoa(w.uid), "%k", alias,
		"%L", short, "%l", local, "%n", w.original, "%p", w.s.port, "%r", w.s.user, "%u", w.name).Replace(s)
	if path {
		expanded, err := w.expandHome(s)
		if err != nil {
			w.fail(key, "%v", err)
		}
		return expanded
	}
	return s
}

// paths takes a list of files of one line.
func (w *words) paths(key string, otherwise ...string) (paths []string) {
	if d, ok := w.set[key]; ok {
		otherwise = d.args
	}
	for _, path := range otherwise {
		if path != "none" {
			paths = append(paths, w.expand(key, path, true))
		}
	}
	return paths
}

// files takes files of many lines.
func (w *words) files(key string) (paths []string) {
	for _, d := range w.all[key] {
		path := w.expand(key, d.args[0], true)
		if d.args[0] != "none" && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

func (w *words) agent() string {
	switch named := w.word("identityagent", "SSH_AUTH_SOCK"); {
	case named == "SSH_AUTH_SOCK":
		return w.account.agent
	case named == "none":
		return ""
	case strings.HasPrefix(named, "$") && !strings.HasPrefix(named, "${"):
		return os.Getenv(named[1:])
	default:
		return w.expand("identityagent", named, true)
	}
}

// proxy takes ProxyJump or ProxyCommand, whichever the configuration names
// first.
func (w *words) proxy() {
	jump, jumps := w.set["proxyjump"]
	command, commands := w.set["proxycommand"]
	if jumps && commands && command.file == jump.file && command.line < jump.line {
		jumps = false
	}
	switch {
	case jumps && !strings.EqualFold(jump.rest, "none"):
		for _, hop := range strings.Split(jump.args[0], ",") {
			w.s.jump = append(w.s.jump, w.expand("proxyjump", strings.TrimSpace(hop), false))
		}
	case !jumps && commands && !strings.EqualFold(command.rest, "none"):
		w.s.proxyCommand = w.expand("proxycommand", command.rest, false)
	}
}

// splitHop takes user@host:port apart, or ssh://user@host:port.
func splitHop(hop string) (user, host, port string, err error) {
	rest := strings.TrimPrefix(hop, "ssh://")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		user, rest = rest[:i], rest[i+1:]
	}
	if strings.HasPrefix(rest, "[") || strings.Count(rest, ":") == 1 {
		if h, p, err := net.SplitHostPort(rest); err == nil {
			return user, h, p, nil
		}
	}
	host = strings.Trim(rest, "[]")
	if host == "" {
		return "", "", "", fmt.Errorf("%q is not a host to go through", hop)
	}
	return user, host, port, nil
}
