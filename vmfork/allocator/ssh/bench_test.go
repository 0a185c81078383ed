package ssh

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// BenchmarkStart starts a program of 16 MB on hosts that are sshd on loopback,
// and ends it: where it is there already, and where it has to be copied.
func BenchmarkStart(b *testing.B) {
	for _, hosts := range []int{1, 8, 32} {
		for _, there := range []bool{true, false} {
			b.Run(fmt.Sprintf("hosts=%d/there=%v", hosts, there), func(b *testing.B) { benchmarkStart(b, hosts, there) })
		}
	}
}

func benchmarkStart(b *testing.B, hosts int, there bool) {
	w := newWorld(b)
	var names []string
	for i := range hosts {
		name := fmt.Sprintf("h%d", i)
		names = append(names, name)
		w.far = filepath.Join(b.TempDir(), name) // each its own
		if err := os.Mkdir(w.far, 0o700); err != nil {
			b.Fatal(err)
		}
		w.simple(name)
	}
	a := w.open(Config{}, names...)
	path := filepath.Join(b.TempDir(), "program")
	round := func(version int) {
		text := append(fmt.Appendf(nil, "#!/bin/sh\n# %d\nexec cat\n", version), bytes.Repeat([]byte("x"), 16<<20)...)
		if err := os.WriteFile(path, text, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	start := func() {
		all, err := allocator.StartAll(context.Background(), a, a.Hosts(), path, func(allocator.Host) []string { return nil }, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		for _, p := range all {
			p.Close()
		}
		b.StartTimer()
	}
	round(0)
	start()
	b.ResetTimer()
	for i := range b.N {
		if !there {
			b.StopTimer()
			round(i + 1)
			b.StartTimer()
		}
		start()
	}
}
