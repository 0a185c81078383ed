package network

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	if err := Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestMissingErrorsSayWhatToDo(t *testing.T) {
	for _, err := range []error{
		namespaceError(unix.EPERM), namespaceError(unix.EINVAL), namespaceError(unix.ENOSPC),
		bridgeError(unix.EOPNOTSUPP), bridgeError(unix.EPERM),
		tunError(&os.PathError{Op: "open", Path: "/dev/net/tun", Err: unix.ENOENT}),
		tunError(unix.ENODEV), tunError(unix.EACCES), tunError(unix.EPERM),
	} {
		var missing *MissingError
		wrapped := fmt.Errorf("create network: %w", err)
		if !errors.Is(wrapped, ErrMissing) || !errors.As(wrapped, &missing) || missing.What == "" || missing.Do == "" {
			t.Errorf("%v", wrapped)
		}
	}
	if err := tunError(unix.EIO); errors.Is(err, ErrMissing) {
		t.Errorf("%v has no remedy", err)
	}
}
