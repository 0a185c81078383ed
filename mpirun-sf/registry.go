package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// vmFolder holds a folder for each machine of mpirun-sf vm run on this host. It
// is root's alone: who opens a socket in it commands the machine.
var vmFolder = "/run/mpirun-sf/vm"

// vmName is such a machine, which the launcher that started it answers for.
//
//	lock      held by the launcher for as long as it lives
//	sf.sock   speaks the VM fork protocol with the host's authority
//	attach.sock  begins with a member's number, two bytes, high first; what
//	          follows is a stream to that machine's agent
type vmName struct{ name string }

func (v vmName) folder() string { return filepath.Join(vmFolder, v.name) }
func (v vmName) socket() string { return filepath.Join(v.folder(), "sf.sock") }
func (v vmName) attachSocket() string {
	return filepath.Join(v.folder(), "attach.sock")
}

// attach opens streams to a machine's agent.
func (v vmName) attach(member int) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		conn, err := net.Dial("unix", v.attachSocket())
		if err != nil {
			return nil, fmt.Errorf("attach to %s: %w", v.name, err)
		}
		if _, err := conn.Write(binary.BigEndian.AppendUint16(nil, uint16(member))); err != nil {
			conn.Close()
			return nil, fmt.Errorf("attach to %s: %w", v.name, err)
		}
		return conn, nil
	}
}

func (v vmName) list(ctx context.Context) ([]api.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return vmfork.Machine{Socket: v.socket()}.List(ctx)
}

// lock takes the name until release is called, or the process ends.
func (v vmName) lock() (release func(), err error) {
	if err := os.MkdirAll(vmFolder, 0o700); err != nil {
		return nil, fmt.Errorf("take the name %s: %w", v.name, err)
	}
	for {
		if err := os.Mkdir(v.folder(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("take the name %s: %w", v.name, err)
		}
		f, err := os.OpenFile(filepath.Join(v.folder(), "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed by whoever had it
		}
		if err != nil {
			return nil, fmt.Errorf("take the name %s: %w", v.name, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("a virtual machine named %s runs already: give this one another --name", v.name)
		}
		// It may have been removed between the two.
		held, err1 := f.Stat()
		there, err2 := os.Stat(f.Name())
		if err1 == nil && err2 == nil && os.SameFile(held, there) {
			return func() { os.RemoveAll(v.folder()); f.Close() }, nil
		}
		f.Close()
	}
}

// runs tells whether a launcher holds the name.
func (v vmName) runs() bool {
	f, err := os.Open(filepath.Join(v.folder(), "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// runningVMs are those of this host, by name.
func runningVMs() (running []vmName) {
	entries, _ := os.ReadDir(vmFolder)
	for _, e := range entries {
		if v := (vmName{e.Name()}); v.runs() {
			running = append(running, v)
		}
	}
	return running
}

// cleanVMs removes the folders of machines whose launchers were killed.
func cleanVMs() (removed int, err error) {
	entries, err := os.ReadDir(vmFolder)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	for _, e := range entries {
		// Held, so that no launcher takes the name meanwhile. Whose it is runs.
		release, lockErr := vmName{e.Name()}.lock()
		if lockErr != nil {
			continue
		}
		release()
		removed++
	}
	return removed, err
}

// findMachine finds a machine by the name of its vm run, or a clone by its own
// if no other machine's clone has the same; or either as VM/NAME.
func findMachine(ctx context.Context, name string) (vmName, api.Machine, error) {
	running := runningVMs()
	given := name
	if of, member, ok := strings.Cut(name, "/"); ok {
		running = slices.DeleteFunc(running, func(v vmName) bool { return v.name != of })
		name = member
		if len(running) > 0 && name == (network.Plan{}).Name(0) {
			name = of
		}
	}
	var found []vmName
	var machine api.Machine
	for _, v := range running {
		if v.name == name {
			return v, api.Machine{Name: name}, nil
		}
		members, err := v.list(ctx)
		if err != nil {
			continue
		}
		for _, m := range members {
			if m.Name == name && m.Member != 0 {
				found, machine = append(found, v), m
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], machine, nil
	case len(found) > 1:
		return vmName{}, machine, fmt.Errorf("%s and %s have a clone named %s each: say which, as %s/%s", found[0].name, found[1].name, name, found[0].name, name)
	case os.Geteuid() != 0:
		return vmName{}, machine, fmt.Errorf("%s: only root may call upon virtual machines: use sudo", given)
	}
	var names []string
	for _, v := range runningVMs() {
		names = append(names, v.name)
	}
	if len(names) == 0 {
		return vmName{}, machine, fmt.Errorf("%s: no virtual machine runs here; start one with: mpirun-sf vm run", given)
	}
	return vmName{}, machine, fmt.Errorf("%s: there is no such machine; running: %s", given, strings.Join(names, ", "))
}

// relay listens on a socket of the machine's folder, and connects each who comes
// with what open returns, until the listener is closed.
func relay(path string, open func(net.Conn) (net.Conn, error)) (net.Listener, error) {
	os.Remove(path) // of a launcher that was killed
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for calls: %w", err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				to, err := open(conn)
				if err != nil {
					conn.Close()
					return
				}
				splice(conn, to)
			}()
		}
	}()
	return l, nil
}

// splice copies both ways. The end of one direction goes on as that; who comes
// is gone, and with it what it was sent, when it cannot be written to.
func splice(local, stream net.Conn) {
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(stream, local)
		stream.Close() // of a stream, this end is closed for writing
	})
	both.Go(func() {
		io.Copy(local, stream)
		if c, ok := local.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		}
		io.Copy(io.Discard, stream)
	})
	both.Wait()
	local.Close()
}
