package conformance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// openFiles are this process's descriptors, as what they are open on.
func openFiles(t *testing.T) (files []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && !strings.HasPrefix(to, "/proc/") {
			files = append(files, filepath.Base(l)+" "+to)
		}
	}
	return files
}

// childProcesses are this process's children, as /proc/PID/stat begins.
func childProcesses(t *testing.T) (children []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range stats {
		b, _ := os.ReadFile(f)
		if i := bytes.LastIndexByte(b, ')'); i > 0 {
			if fields := strings.Fields(string(b[i+1:])); len(fields) > 1 && fields[1] == fmt.Sprint(os.Getpid()) {
				children = append(children, string(b[:i+1]))
			}
		}
	}
	return children
}

// minus is what is in a and not in b.
func minus(a, b []string) []string {
	return slices.DeleteFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
