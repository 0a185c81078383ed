package xen

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/xen/device"
)

// ownersFolder has a file for each driver that lives, locked by it.
const ownersFolder = "/run/mpirun-sf-xen"

// owner is a driver's claim on its domains: a file that is locked as long as the driver's process, or a command that it has
// started, lives, and that names the domains.
type owner struct {
	mark string
	lock *os.File
}

// markLength is that of an owner's mark, in hexadecimal digits.
const markLength = 16

// claim makes a new owner in a folder.
func claim(folder string) (*owner, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	for {
		var b [markLength / 2]byte
		rand.Read(b[:])
		mark := hex.EncodeToString(b[:])
		f, err := os.OpenFile(filepath.Join(folder, mark), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		err = lock(f, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &owner{mark, f}, nil
		}
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) { // else one that sweeps took it for a dead one's
			return nil, err
		}
	}
}

func lock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// domainName is unique on this machine, and tells whose domain it is.
func (o *owner) domainName(name string, number uint64) string {
	return fmt.Sprintf("%s.%s.%d", name, o.mark, number)
}

// markOf is the mark in a domain's name, "" if it has none.
func markOf(domain string) string {
	parts := strings.Split(domain, ".")
	if len(parts) < 3 {
		return ""
	}
	mark := parts[len(parts)-2]
	if !isMark(mark) {
		return ""
	}
	if _, err := strconv.ParseUint(parts[len(parts)-1], 10, 64); err != nil {
		return ""
	}
	return mark
}

func isMark(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == markLength
}

// release ends the claim of a driver that has no domains any more.
func (o *owner) release() error {
	return errors.Join(os.Remove(o.lock.Name()), o.lock.Close())
}

// Sweep destroys the domains of drivers that have ended without doing so, and what those left in XenStore. [Find] does so
// first of all. It is also for a process that outlives the driver's, where the driver's holder cannot: the end of a PID
// namespace's first process is that of all others in it.
func Sweep(ctx context.Context) error {
	d := &Driver{}
	defer d.Close()
	if err := d.openTools(ctx); err != nil {
		return err
	}
	return d.sweep(ctx, ownersFolder)
}

// sweep is Sweep with a folder of owners.
func (d *Driver) sweep(ctx context.Context, folder string) error {
	files, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, f := range files {
		if !isMark(f.Name()) {
			continue
		}
		lockFile, err := os.OpenFile(filepath.Join(folder, f.Name()), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			if err = lock(lockFile, unix.LOCK_EX|unix.LOCK_NB); err == nil {
				err = d.inherit(ctx, &owner{f.Name(), lockFile})
			}
			lockFile.Close()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// names are those of all domains, by their numbers.
func (d *Driver) names(ctx context.Context) (map[string]string, error) {
	numbers, err := d.store.List(ctx, "/local/domain")
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, n := range numbers {
		if name, err := d.store.Read(ctx, "/local/domain/"+n+"/name"); err == nil { // else it has gone in between
			names[n] = name
		}
	}
	return names, ctx.Err()
}

// inherit destroys what an owner has left whose file this process has locked, and removes the file.
func (d *Driver) inherit(ctx context.Context, o *owner) error {
	names, err := d.names(ctx)
	if err != nil {
		return fmt.Errorf("look for domains that nobody owns: %w", err)
	}
	var errs []error
	for n, name := range names {
		if markOf(name) != o.mark {
			continue
		}
		_, err := d.runTool(ctx, nil, "destroy", n)
		errs = append(errs, err, device.Forget(ctx, d.store, n))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("destroy a domain that nobody owns: %w", err)
	}
	if err := os.Remove(o.lock.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sweepLimit is how long all domains of a driver may take to be destroyed.
const sweepLimit = 5 * time.Minute

// hold is the holder's life. path is that of the owner's file.
func hold(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) { // the driver was quicker
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := lock(f, unix.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) { // it was closed, or another has swept
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), sweepLimit, fmt.Errorf("domains were not destroyed after %v", sweepLimit))
	defer cancel()
	d := &Driver{}
	defer d.Close()
	if err := d.openTools(ctx); err != nil {
		return err
	}
	return d.inherit(ctx, &owner{filepath.Base(path), f})
}

// holder is a driver's.
type holder struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// startHolder starts one for an owner.
func startHolder(o *owner) (*holder, error) {
	cmd := exec.Command(self)
	cmd.Args = []string{holderName, o.lock.Name()}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start what destroys domains when this process is killed: %w", err)
	}
	h := &holder{cmd, make(chan struct{})}
	go func() {
		cmd.Wait()
		close(h.done)
	}()
	return h, nil
}

// holderLimit is how long a holder may take to end when its driver has.
const holderLimit = 10 * time.Second

// await waits for its end, which follows that of the owner.
func (h *holder) await() error {
	select {
	case <-h.done:
		return nil
	case <-time.After(holderLimit):
		h.cmd.Process.Kill()
		<-h.done
		return fmt.Errorf("%s had not ended %v after its driver", holderName, holderLimit)
	}
}
