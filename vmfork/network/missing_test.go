package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	if err := Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestProbeFabricAndWay(t *testing.T) {
	before := outside(t)
	for _, local := range []string{"192.0.2.1", "2001:db8::1"} {
		if err := ProbeFabric(t.Context(), netip.MustParseAddr(local)); err != nil {
			t.Errorf("%s: %v", local, err)
		}
	}
	if err := ProbeWay(t.Context()); err != nil {
		t.Error(err)
	}
	if after := outside(t); !reflect.DeepEqual(before, after) {
		t.Errorf("outside, %v became %v", before, after)
	}
}

func TestMissingErrorsSayWhatToDo(t *testing.T) {
	for _, err := range []error{
		namespaceError(unix.EPERM), namespaceError(unix.EINVAL), namespaceError(unix.ENOSPC),
		bridgeError(unix.EOPNOTSUPP), bridgeError(unix.EPERM),
		tunError(&os.PathError{Op: "open", Path: "/dev/net/tun", Err: unix.ENOENT}),
		vxlanError(unix.EOPNOTSUPP), vxlanError(unix.EPERM), vxlanUpError(unix.EAFNOSUPPORT),
		nftError(unix.EAFNOSUPPORT), nftError(errors.Join(unix.EOPNOTSUPP, unix.ENOENT)), nftError(unix.EPERM), wayError(unix.ENOENT),
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
