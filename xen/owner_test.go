package xen

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/xen/store"
	"github.com/mpirun-sf/mpirun-sf/xen/store/storetest"
)

func TestMarks(t *testing.T) {
	o, err := claim(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer o.release()
	if got := markOf(o.domainName("clone-1", 7)); got != o.mark {
		t.Errorf("the mark of %s is %q", o.domainName("clone-1", 7), got)
	}
	for _, name := range []string{"", "Domain-0", "a.b.c", "web." + o.mark, "web." + o.mark + ".", "web." + o.mark[1:] + ".1", "web." + o.mark + ".1x", o.mark + ".1"} {
		if got := markOf(name); got != "" {
			t.Errorf("the mark of %q is %q", name, got)
		}
	}
}

// abandon makes an owner whose process has ended.
func abandon(t *testing.T, folder string) *owner {
	t.Helper()
	o, err := claim(folder)
	if err != nil {
		t.Fatal(err)
	}
	o.lock.Close()
	return o
}

// fakeTools is a driver with a XenStore of its own, and a tool that notes what it is asked.
func fakeTools(t *testing.T, s *storetest.Server) (d *Driver, asked func() string) {
	t.Helper()
	notes := filepath.Join(t.TempDir(), "notes")
	tool := filepath.Join(t.TempDir(), "xl")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho \"$@\" >>"+notes+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	d = &Driver{tool: tool, store: store.New(s.Connect())}
	t.Cleanup(func() { d.store.Close() })
	return d, func() string {
		b, err := os.ReadFile(notes)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
}

// Destroyed are the domains of owners that have ended, and no others.
func TestSweep(t *testing.T) {
	folder := t.TempDir()
	alive, err := claim(folder)
	if err != nil {
		t.Fatal(err)
	}
	dead, other := abandon(t, folder), filepath.Join(folder, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	server := storetest.New()
	d, asked := fakeTools(t, server)
	for n, name := range map[string]string{"0": "Domain-0", "1": "web", "2": alive.domainName("clone-1", 1), "3": dead.domainName("clone-1", 1), "14": dead.domainName("parent", 2)} {
		if err := d.store.Write(t.Context(), "/local/domain/"+n+"/name", name); err != nil {
			t.Fatal(err)
		}
	}
	const backends = "/local/domain/0/backend/"
	for _, path := range []string{"mpirun-sf-vbd/2/0", "mpirun-sf-vbd/3/0", "mpirun-sf-console/3/1", "vbd/3/0"} {
		if err := d.store.Write(t.Context(), backends+path+"/state", "4"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.sweep(t.Context(), folder); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(asked()), "\n")
	if slices.Sort(got); !slices.Equal(got, []string{"destroy 14", "destroy 3"}) {
		t.Errorf("xl was asked to %q", got)
	}
	for path, there := range map[string]bool{"mpirun-sf-vbd/2": true, "mpirun-sf-vbd/3": false, "mpirun-sf-console/3": false, "vbd/3": true} {
		if _, err := d.store.List(t.Context(), backends+path); (err == nil) != there {
			t.Errorf("of %s is left: %v", path, err)
		}
	}
	for path, there := range map[string]bool{alive.lock.Name(): true, dead.lock.Name(): false, other: true} {
		if _, err := os.Stat(path); (err == nil) != there {
			t.Errorf("of %s is left: %v", path, err)
		}
	}
	if err := alive.release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(alive.lock.Name()); err == nil {
		t.Error("a driver that was closed leaves its file")
	}
}

// A command that a killed driver had begun may still make a domain.
func TestSweepAwaitsCommands(t *testing.T) {
	folder := t.TempDir()
	o, err := claim(folder)
	if err != nil {
		t.Fatal(err)
	}
	last := (&Driver{tool: self, owner: o}).command(t.Context(), nil, sleeper)
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	o.lock.Close()
	server := storetest.New()
	d, asked := fakeTools(t, server)
	if err := d.store.Write(t.Context(), "/local/domain/3/name", o.domainName("clone-1", 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.sweep(t.Context(), folder); err != nil || asked() != "" {
		t.Errorf("while a command ran, xl was asked to %q (%v)", asked(), err)
	}
	last.Process.Kill()
	last.Wait()
	if err := d.sweep(t.Context(), folder); err != nil || asked() != "destroy 3\n" {
		t.Errorf("xl was asked to %q (%v)", asked(), err)
	}
}

// The holder of a driver that is closed ends without a look at Xen, of which there is none here.
func TestHolderOfClosedDriver(t *testing.T) {
	o, err := claim(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := startHolder(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.release(); err != nil {
		t.Fatal(err)
	}
	if err := h.await(); err != nil {
		t.Error(err)
	}
	if state := h.cmd.ProcessState; !state.Success() {
		t.Errorf("the holder ended with %v", state)
	}
}
