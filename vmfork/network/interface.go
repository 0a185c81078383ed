package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deviceWait is how long Configure waits for an interface to appear when its context has no deadline: the driver may
// still be at it in a guest that has just booted.
const deviceWait = 10 * time.Second

// errNoInterface is what passes when one waits.
var errNoInterface = errors.New("there is no Ethernet interface")

func waitForInterface(ctx context.Context, s control, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	for {
		found, err := findInterface(s, name)
		if !errors.Is(err, errNoInterface) {
			return found, err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for network interface: %w (%w)", err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// guestDriver is what drives a clone's interface, unlike those that the guest's programs have made (bridges, taps).
const guestDriver = "virtio_net"

// findInterface finds the interface by name, or the one that could be meant.
func findInterface(s control, name string) (string, error) {
	// /proc/net would be that of the process's first thread.
	table, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return "", fmt.Errorf("list network interfaces: %w", err)
	}
	var ethernet []string
	for line := range strings.Lines(string(table)) {
		found, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue // the heading
		}
		if found == name {
			return name, nil
		}
		r := newIfreq(found)
		if err := s.do(unix.SIOCGIFHWADDR, unsafe.Pointer(r)); err == nil && binary.NativeEndian.Uint16(r.value[:]) == unix.ARPHRD_ETHER {
			ethernet = append(ethernet, found)
		}
	}
	switch {
	case name != "":
		return "", fmt.Errorf("%w named %s", errNoInterface, name)
	case len(ethernet) == 0:
		return "", errNoInterface
	}
	return choose(ethernet, s.driver)
}

// choose asks for drivers only where there is a choice.
func choose(names []string, driver func(name string) string) (string, error) {
	if len(names) == 1 {
		return names[0], nil
	}
	var own []string
	for _, name := range names {
		if driver(name) == guestDriver {
			own = append(own, name)
		}
	}
	if len(own) != 1 {
		return "", fmt.Errorf("choose network interface: there are %s, and %d of them with driver %s: name one", strings.Join(names, ", "), len(own), guestDriver)
	}
	return own[0], nil
}

// driver is the name of an interface's driver, or "" for one that does not say.
func (s control) driver(name string) string {
	info, err := unix.IoctlGetEthtoolDrvinfo(int(s), name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}
