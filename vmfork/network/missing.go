package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrMissing is what errors.Is finds in an error that says that this machine, or this user, lacks something that the
// network needs. The error itself is a [*MissingError].
var ErrMissing = errors.New("not available on this machine")

// A MissingError names what is lacking and what to do about it.
type MissingError struct {
	What string // what is lacking, as "the bridge driver"
	Do   string // what brings it, as an imperative
	Err  error  // what the kernel said
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is missing (%v): %s", e.What, e.Err, e.Do)
}

func (e *MissingError) Unwrap() error { return e.Err }

func (e *MissingError) Is(target error) bool { return target == ErrMissing }

// Probe finds out whether Create and AddTap would work here, by doing both and throwing the result away (about 20 ms,
// most of it the kernel's). The error is a *MissingError where something can be done about it.
func Probe(ctx context.Context) error {
	n, err := Create(ctx, NewPlan("probe"))
	if err != nil {
		return err
	}
	defer n.Close()
	_, err = n.AddTap(0)
	return err
}

// ProbeFabric finds out whether Join would work here, for hosts of the address's family, without joining anything.
func ProbeFabric(ctx context.Context, local netip.Addr) error {
	n, err := Create(ctx, NewPlan("probe"))
	if err != nil {
		return err
	}
	defer n.Close()
	// In the network's own namespace, where there is no underlay, nothing can be in the way.
	t := &trunk{fabric: Fabric{VNI: 1, Local: local, Port: 4789, MTU: minMTU}}
	if t.guard, err = newGuard(n.namespace, t.fabric); err != nil {
		return fmt.Errorf("shut the underlay to strangers: %w", err)
	}
	defer n.part(t)
	return n.addTrunk(t, n.handle)
}

// ProbeWay finds out whether OpenWay would work here, by doing it.
func ProbeWay(ctx context.Context) error {
	n, err := Create(ctx, NewPlan("probe"))
	if err != nil {
		return err
	}
	defer n.Close()
	return n.OpenWay(ctx, Way{})
}

func namespaceError(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return missingPrivilege(err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return &MissingError{"support for network namespaces", "use a kernel with CONFIG_NET_NS", err}
	case errors.Is(err, unix.ENOSPC):
		return &MissingError{"room for one more network namespace", "raise /proc/sys/user/max_net_namespaces", err}
	}
	return err
}

func bridgeError(err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return &MissingError{"the bridge driver", "run: modprobe bridge", err}
	case errors.Is(err, unix.EPERM):
		return missingPrivilege(err)
	}
	return err
}

func vxlanError(err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return &MissingError{"the VXLAN driver", "run: modprobe vxlan", err}
	case errors.Is(err, unix.EPERM):
		return missingPrivilege(err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("another VXLAN or interface of this host has the same number: try another VNI: %w", err)
	}
	return err
}

func vxlanUpError(err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("a program of this host has the UDP port: try another port: %w", err)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return &MissingError{"IPv6", "run: sysctl net.ipv6.conf.all.disable_ipv6=0, or name the hosts by IPv4 addresses", err}
	}
	return err
}

// nftError is for what a kernel says that cannot filter, or not in the way that is asked of it.
func nftError(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return missingPrivilege(err)
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL):
		return &MissingError{"nf_tables, which filters frames,", "use Linux 5.12 or later with CONFIG_NF_TABLES_BRIDGE and CONFIG_NF_TABLES_INET, and run: modprobe nf_tables", err}
	}
	return err
}

func wayError(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return &MissingError{"transparent proxying", "run: modprobe -a nft_tproxy nft_reject_ipv4 (CONFIG_NFT_TPROXY, CONFIG_NFT_REJECT_IPV4), or do without a way out", err}
	}
	return nftError(err)
}

func tunError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &MissingError{"/dev/net/tun", "run: modprobe tun; in a container, pass --device /dev/net/tun", err}
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return &MissingError{"the tun driver", "run: modprobe tun", err}
	case errors.Is(err, unix.EACCES):
		return &MissingError{"access to /dev/net/tun", "run as root; in a container, allow the device", err}
	case errors.Is(err, unix.EPERM):
		return missingPrivilege(err)
	}
	return err
}

func missingPrivilege(err error) error {
	return &MissingError{"the right to make networks", "run as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN", err}
}
