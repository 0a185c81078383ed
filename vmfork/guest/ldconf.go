package guest

import (
	"os"
	"path/filepath"
	"strings"
)

// A confLine is one directive of /etc/ld.so.conf.
type confLine struct {
	include bool // value is a pattern of more files, otherwise a folder
	value   string
}

// parseLdConf reads the format of ldconfig(8): one folder or "include PATTERN"
// per line, # begins a comment. "hwcap" lines and an old "=TYPE" behind a folder
// mean nothing any more.
func parseLdConf(text string) []confLine {
	var out []confLine
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		switch fields[0] {
		case "include":
			for _, p := range fields[1:] {
				out = append(out, confLine{include: true, value: p})
			}
		case "hwcap":
		default:
			// A folder's name may hold blanks.
			dir, _, _ := strings.Cut(strings.TrimSpace(line), "=")
			if dir = strings.TrimSpace(dir); strings.HasPrefix(dir, "/") {
				out = append(out, confLine{value: filepath.Clean(dir)})
			}
		}
	}
	return out
}

// ldConf is /etc/ld.so.conf with everything that it includes: the folders in
// order of preference. Files that include each other are read once.
func ldConf(file string) []string {
	var dirs []string
	seen := map[string]bool{}
	var read func(file string)
	read = func(file string) {
		if seen[file] {
			return
		}
		seen[file] = true
		b, err := os.ReadFile(file)
		if err != nil {
			return // as ldconfig does
		}
		for _, l := range parseLdConf(string(b)) {
			if !l.include {
				dirs = append(dirs, l.value)
				continue
			}
			pattern := l.value
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(file), pattern)
			}
			more, _ := filepath.Glob(pattern)
			for _, f := range more {
				read(f)
			}
		}
	}
	read(file)
	return dirs
}

// defaultDirs are where the dynamic linkers of the distributions look last.
var defaultDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu",
	"/lib64", "/usr/lib64", "/lib", "/usr/lib",
}
