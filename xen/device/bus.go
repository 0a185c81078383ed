package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/xen/evtchn"
	"github.com/mpirun-sf/mpirun-sf/xen/gntdev"
	"github.com/mpirun-sf/mpirun-sf/xen/store"
)

// Bus is where devices and drivers find each other.
type Bus struct {
	Store *store.Client
	// Map maps a page that a guest has granted; the second result unmaps it.
	Map func(domain uint16, ref uint32) ([]byte, func() error, error)
	// Copy copies from and to pages that guests have granted.
	Copy func([]gntdev.Segment) error
	// Bind binds an event channel that a guest offers.
	Bind func(domain uint16, port uint32) (*evtchn.Channel, error)
}

// NewBus is this machine's.
func NewBus(s *store.Client, g *gntdev.Device) *Bus {
	return &Bus{
		Store: s, Bind: evtchn.Bind, Copy: g.Copy,
		Map: func(domain uint16, ref uint32) ([]byte, func() error, error) {
			m, err := g.Map(domain, ref)
			return m.Bytes, m.Unmap, err
		},
	}
}

// state is that of one side, as in Xen's public header io/xenbus.h.
type state int

const (
	initialising state = 1
	initWait     state = 2
	initialised  state = 3
	connected    state = 4
	closing      state = 5
	closed       state = 6
)

// Device is the host's side of one device of one domain.
type Device struct {
	bus         *Bus
	name        string // for errors: "console 1 of domain 7"
	domain      uint16
	front, back string // folders in XenStore
	kind        string
	number      int

	connect func(context.Context) error
	ways    []func(context.Context) error
	cancel  context.CancelFunc
	done    chan struct{} // closed when nothing runs for it any more

	// Of what runs for it, or has stopped it.
	channel *evtchn.Channel // nil before the guest has one, and after Close
	unmap   []func() error

	mu  sync.Mutex
	err error // why it does not go on
}

// backends has the folders of the host's sides.
const backends = "/local/domain/0/backend"

// typePrefix begins the types of the host's folders.
const typePrefix = "mpirun-sf-"

// Announce makes a device known to a domain. The entries are what its driver and
// its back end want to know besides where the other is.
func (b *Bus) Announce(ctx context.Context, domain uint16, kind string, number int, front, back map[string]string) (*Device, error) {
	d := &Device{
		bus: b, domain: domain, kind: kind, number: number,
		name:  fmt.Sprintf("%s %d of domain %d", kind, number, domain),
		front: fmt.Sprintf("/local/domain/%d/device/%s/%d", domain, kind, number),
		back:  fmt.Sprintf("%s/%s%s/%d/%d", backends, typePrefix, kind, domain, number),
	}
	// Each side owns its folder, and may read the other's; what is made in a folder
	// has the folder's permissions.
	if err := d.folder(ctx, d.back, 0, domain, back, map[string]string{
		"frontend": d.front, "frontend-id": strconv.Itoa(int(domain)), "online": "1", "state": strconv.Itoa(int(initWait)),
	}); err != nil {
		d.forget(ctx)
		return nil, fmt.Errorf("announce %s: %w", d.name, err)
	}
	if err := d.folder(ctx, d.front, domain, 0, front, map[string]string{
		"backend": d.back, "backend-id": "0", "state": strconv.Itoa(int(initialising)),
	}); err != nil {
		d.forget(ctx)
		return nil, fmt.Errorf("announce %s: %w", d.name, err)
	}
	return d, nil
}

func (d *Device) folder(ctx context.Context, path string, owner, reader uint16, entries ...map[string]string) error {
	s := d.bus.Store
	if err := s.Mkdir(ctx, path); err != nil {
		return err
	}
	if err := s.SetPermissions(ctx, path, store.Permission{Access: store.None, Domain: owner}, store.Permission{Access: store.ReadOnly, Domain: reader}); err != nil {
		return err
	}
	for _, some := range entries {
		for name, value := range some {
			if err := s.Write(ctx, path+"/"+name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// Forget removes the host's folders of all devices of a domain whose process is gone. The guest's go with the domain.
func Forget(ctx context.Context, s *store.Client, domain string) error {
	kinds, err := s.List(ctx, backends)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, k := range kinds {
		if strings.HasPrefix(k, typePrefix) {
			errs = append(errs, s.Remove(ctx, backends+"/"+k+"/"+domain))
		}
	}
	return errors.Join(errs...)
}

// forget removes the device's folders, and those above that are empty without it.
func (d *Device) forget(ctx context.Context) error {
	errs := []error{d.bus.Store.Remove(ctx, d.front), d.bus.Store.Remove(ctx, d.back)}
	above := fmt.Sprintf("%s/%s%s/%d", backends, typePrefix, d.kind, d.domain)
	if names, err := d.bus.Store.List(ctx, above); err == nil && len(names) == 0 {
		errs = append(errs, d.bus.Store.Remove(ctx, above))
	}
	return errors.Join(errs...)
}

// awaitDriver waits until the guest's driver has said where its ring is.
func (d *Device) awaitDriver(ctx context.Context) error {
	bad := state(0)
	_, err := d.bus.Store.Await(ctx, d.front+"/state", "the guest's driver of "+d.name, func(v string) bool {
		n, _ := strconv.Atoi(v)
		switch s := state(n); s {
		case closing, closed:
			bad = s
			return true
		case initialised, connected:
			return true
		}
		return false
	})
	if err == nil && bad != 0 {
		err = fmt.Errorf("the guest has closed %s", d.name)
	}
	return err
}

// entry reads a number of the guest's.
func (d *Device) entry(ctx context.Context, name string) (uint32, error) {
	v, err := d.bus.Store.Read(ctx, d.front+"/"+name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read %s of %s: %.20q is no number", name, d.name, v)
	}
	return uint32(n), nil
}

func (d *Device) setState(ctx context.Context, s state) error {
	return d.bus.Store.Write(ctx, d.back+"/state", strconv.Itoa(int(s)))
}
