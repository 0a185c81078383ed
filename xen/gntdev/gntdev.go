// Package gntdev uses memory that other domains have granted to this one, through
// /dev/xen/gntdev: it maps it, for rings that both sides write to, or has Xen copy it, for
// data that is looked at once.
//
// A grant is a number that a domain gives another for one of its pages. Data that is
// copied cannot change any more after it was checked; from what is mapped, every field is
// read once.
//
// Locking: a Device may be used by many goroutines at once.
package gntdev

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// Path is where granted memory is had.
const Path = "/dev/xen/gntdev"

const pageSize = 4096

const (
	ioctlMap   = 24<<16 | 'G'<<8 // with one grant
	ioctlUnmap = 16<<16 | 'G'<<8 | 1
	ioctlCopy  = 16<<16 | 'G'<<8 | 8
)

// Device is this process's use of granted memory.
type Device struct{ f *os.File }

// Open opens the device.
func Open() (*Device, error) {
	f, err := os.OpenFile(Path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, hypervisor.Lacksf("there is no granted memory here (%v); load the module xen-gntdev", err)
	}
	if err != nil {
		return nil, err
	}
	return &Device{f}, nil
}

// Close closes the device; mappings stay until they are unmapped.
func (d *Device) Close() error { return d.f.Close() }

// Mapping is one granted page in this process.
type Mapping struct {
	Bytes []byte
	d     *Device
	index uint64
}

// Map maps a page that a domain has granted, for reading and writing.
func (d *Device) Map(domain uint16, ref uint32) (Mapping, error) {
	arg := struct {
		count, _    uint32
		index       uint64
		domain, ref uint32
	}{count: 1, domain: uint32(domain), ref: ref}
	if err := d.ioctl(ioctlMap, unsafe.Pointer(&arg)); err != nil {
		return Mapping{}, fmt.Errorf("map grant %d of domain %d: %w", ref, domain, err)
	}
	m := Mapping{d: d, index: arg.index}
	defer runtime.KeepAlive(d.f)
	var err error
	if m.Bytes, err = unix.Mmap(int(d.f.Fd()), int64(arg.index), pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		m.forget()
		return Mapping{}, fmt.Errorf("map grant %d of domain %d: %w", ref, domain, err)
	}
	return m, nil
}

// Unmap ends a mapping.
func (m Mapping) Unmap() error {
	if m.Bytes == nil {
		return nil
	}
	return errors.Join(unix.Munmap(m.Bytes), m.forget())
}

func (m Mapping) forget() error {
	arg := struct {
		index    uint64
		count, _ uint32
	}{index: m.index, count: 1}
	return m.d.ioctl(ioctlUnmap, unsafe.Pointer(&arg))
}

// Segment is a piece of a granted page, and of this process's memory that is copied
// from or to it.
type Segment struct {
	Domain uint16
	Ref    uint32
	Offset int // in the page; Offset+len(Bytes) is at most 4096
	Bytes  []byte
	Write  bool // to the granted page
}

// segment is struct ioctl_gntdev_grant_copy_segment: two places, each an address or a
// grant with offset and domain, and what Xen made of it.
type segment struct {
	source, dest uint64
	length       uint16
	flags        uint16
	status       int16
	_            [2]byte
}

const (
	sourceIsGrant = 1
	destIsGrant   = 2
)

// encode makes the kernel's form of a segment. What the domain wrote into it has to
// be checked here, for the kernel takes it as it is.
func (s Segment) encode() (segment, error) {
	if s.Offset < 0 || len(s.Bytes) == 0 || s.Offset+len(s.Bytes) > pageSize {
		return segment{}, fmt.Errorf("%d bytes at %d are not in a page", len(s.Bytes), s.Offset)
	}
	grant := uint64(s.Ref) | uint64(s.Offset)<<32 | uint64(s.Domain)<<48
	mine := uint64(uintptr(unsafe.Pointer(&s.Bytes[0])))
	if s.Write {
		return segment{source: mine, dest: grant, length: uint16(len(s.Bytes)), flags: destIsGrant}, nil
	}
	return segment{source: grant, dest: mine, length: uint16(len(s.Bytes)), flags: sourceIsGrant}, nil
}

// Copy has Xen copy segments. Some may be copied when it fails.
func (d *Device) Copy(segments []Segment) error {
	if len(segments) == 0 {
		return nil
	}
	var pins runtime.Pinner // the kernel gets addresses that the runtime does not see
	defer pins.Unpin()
	list := make([]segment, len(segments))
	for i, s := range segments {
		if len(s.Bytes) > 0 {
			pins.Pin(&s.Bytes[0])
		}
		var err error
		if list[i], err = s.encode(); err != nil {
			return fmt.Errorf("copy granted memory: %w", err)
		}
	}
	arg := struct {
		count    uint32
		segments *segment
	}{uint32(len(list)), &list[0]}
	if err := d.ioctl(ioctlCopy, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("copy granted memory: %w", err)
	}
	for i, s := range list {
		if s.status != 0 {
			return fmt.Errorf("copy grant %d of domain %d: Xen's status %d", segments[i].Ref, segments[i].Domain, s.status)
		}
	}
	return nil
}

func (d *Device) ioctl(request uintptr, arg unsafe.Pointer) error {
	defer runtime.KeepAlive(d.f) // or it is closed, if nobody will use the device again
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
