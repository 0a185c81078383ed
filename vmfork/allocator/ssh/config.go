package ssh

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Limits of configuration files.
const (
	maxConfig  = 1 << 20 // bytes of one file
	maxInclude = 16      // files in files
)

// directive is a line of a configuration file.
type directive struct {
	file string
	line int
	key  string      // in small letters
	args []string    // without quotes
	rest string      // the arguments as they were written
	body []directive // of an Include
}

func (d directive) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", d.file, d.line, fmt.Errorf(format, args...))
}

// reader reads configuration files with what they include.
type reader struct {
	account
	folder string // of relative names
}

// read is all of a file, which need not exist.
func (r reader) read(path string, depth int) ([]directive, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ssh's configuration: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfig {
		return nil, nil // /dev/null, or nothing that ssh would read
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read ssh's configuration: %w", err)
	}
	return r.parse(path, string(text), depth)
}

func (r reader) parse(path, text string, depth int) ([]directive, error) {
	var all []directive
	for i, line := range strings.Split(text, "\n") {
		d := directive{file: path, line: i + 1}
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		end := strings.IndexAny(line, " \t=\"")
		if end < 0 {
			end = len(line)
		}
		d.key = strings.ToLower(line[:end])
		d.rest = strings.TrimLeft(line[end:], " \t")
		if after, ok := strings.CutPrefix(d.rest, "="); ok {
			d.rest = strings.TrimLeft(after, " \t")
		}
		var err error
		if d.args, err = split(d.rest); err != nil {
			return nil, d.errorf("%w", err)
		}
		if len(d.args) == 0 || d.args[0] == "" {
			return nil, d.errorf("%s has no value", line[:end])
		}
		if d.key == "include" {
			if d.body, err = r.include(d, depth+1); err != nil {
				return nil, err
			}
		}
		all = append(all, d)
	}
	return all, nil
}

func (r reader) include(d directive, depth int) ([]directive, error) {
	if depth > maxInclude {
		return nil, d.errorf("more than %d files include each other", maxInclude)
	}
	var all []directive
	for _, pattern := range d.args {
		pattern, err := r.expandHome(pattern)
		if err != nil {
			return nil, d.errorf("%w", err)
		}
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(r.folder, pattern)
		}
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, d.errorf("%s: %w", pattern, err)
		}
		for _, path := range paths {
			body, err := r.read(path, depth)
			if err != nil {
				return nil, err
			}
			// What a file says about Host ends with the file.
			all = append(all, directive{file: path, key: "include", body: body})
		}
	}
	return all, nil
}

// split makes arguments of a line: quotes join words, a # that begins a word
// begins a comment.
func split(s string) (args []string, err error) {
	for {
		s = strings.TrimLeft(s, " \t")
		if s == "" || s[0] == '#' {
			return args, nil
		}
		var word strings.Builder
		var quote byte
		i := 0
		for ; i < len(s) && (quote != 0 || s[i] != ' ' && s[i] != '\t'); i++ {
			switch c := s[i]; {
			case c == '\\' && i+1 < len(s) && strings.IndexByte(`"'\`, s[i+1]) >= 0:
				i++
				word.WriteByte(s[i])
			case quote == 0 && (c == '"' || c == '\''):
				quote = c
			case c == quote:
				quote = 0
			default:
				word.WriteByte(c)
			}
		}
		if quote != 0 {
			return nil, errors.New("a quote has no end")
		}
		args = append(args, word.String())
		s = s[i:]
	}
}

// values is what the configuration says about one host: the first that is said
// of anything counts, but all that is said of files of keys.
type values struct {
	account
	original string // as the user named the host
	host     string // what Host is compared with
	user     string // that was given with the host
	final    bool   // the second pass, that Match final asks for

	asksFinal bool
	set       map[string]directive
	all       map[string][]directive
}

// evaluate takes what counts, where active says that the lines before the first
// Host do.
func (v *values) evaluate(lines []directive, active bool) error {
	for _, d := range lines {
		switch d.key {
		case "host":
			active = matchList(d.args, v.host)
		case "match":
			var err error
			if active, err = v.match(d); err != nil {
				return err
			}
		case "include":
			if active {
				if err := v.evaluate(d.body, true); err != nil {
					return err
				}
			}
		case "identityfile", "certificatefile":
			if active {
				v.all[d.key] = append(v.all[d.key], d)
			}
		default:
			if _, ok := v.set[d.key]; active && !ok {
				v.set[d.key] = d
			}
		}
	}
	return nil
}

// match evaluates the criteria of a Match, of which all have to be met.
func (v *values) match(d directive) (bool, error) {
	args := d.args
	for len(args) > 0 {
		criterion, negated := strings.CutPrefix(strings.ToLower(args[0]), "!")
		args = args[1:]
		var met bool
		switch criterion {
		case "all":
			met = true
		case "canonical":
		case "final":
			v.asksFinal = true
			met = v.final
		case "host", "originalhost", "user", "localuser":
			if len(args) == 0 {
				return false, d.errorf("Match %s has no pattern", criterion)
			}
			subject := v.original
			switch criterion {
			case "host":
				subject = v.hostName()
			case "user":
				subject = v.userName()
			case "localuser":
				subject = v.name
			}
			met = matchList(strings.Split(args[0], ","), subject)
			args = args[1:]
		default:
			return false, d.errorf("Match %s is not supported by mpirun-sf; put what it is for under a Host", criterion)
		}
		if met == negated {
			return false, nil
		}
	}
	return true, nil
}

func (v *values) hostName() string {
	if d, ok := v.set["hostname"]; ok {
		return strings.NewReplacer("%h", v.original, "%%", "%").Replace(d.args[0])
	}
	return v.original
}

func (v *values) userName() string {
	if v.user != "" {
		return v.user
	}
	if d, ok := v.set["user"]; ok {
		return d.args[0]
	}
	return v.name
}

// matchList compares with patterns, of which one with a ! excludes.
func matchList(patterns []string, s string) bool {
	found := false
	for _, pattern := range patterns {
		pattern, negated := strings.CutPrefix(pattern, "!")
		if matchPattern(strings.ToLower(pattern), strings.ToLower(s)) {
			if negated {
				return false
			}
			found = true
		}
	}
	return found
}

// matchPattern compares with a pattern, in which * is any text, and ? any
// character.
func matchPattern(pattern, s string) bool {
	// The last * is the only one that has to be tried again.
	p, i, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// variable is ${NAME}, as it may be in paths.
var variable = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*\}`)

// configuration are the files that count for any host.
type configuration struct {
	account
	lines [][]directive // the user's, and the system's
}

func readConfiguration(a account, system string) (configuration, error) {
	c := configuration{account: a}
	home := filepath.Join(a.home, ".ssh")
	for _, r := range []struct{ folder, file string }{{home, "config"}, {system, "ssh_config"}} {
		lines, err := reader{a, r.folder}.read(filepath.Join(r.folder, r.file), 0)
		if err != nil {
			return c, err
		}
		c.lines = append(c.lines, lines)
	}
	return c, nil
}

// about is what the files say about a host.
func (c configuration) about(host, user string) (*values, error) {
	v := &values{
		account: c.account, original: host, host: host, user: user,
		set: map[string]directive{}, all: map[string][]directive{},
	}
	for _, lines := range c.lines {
		if err := v.evaluate(lines, true); err != nil {
			return nil, err
		}
	}
	if v.asksFinal {
		// The second pass sees all lines again. What is set stays, and files of
		// keys that come twice are dropped when they are opened.
		v.final, v.host = true, v.hostName()
		for _, lines := range c.lines {
			if err := v.evaluate(lines, true); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}
