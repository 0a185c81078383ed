package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/guestport"
	"github.com/mpirun-sf/mpirun-sf/xen/device"
	"github.com/mpirun-sf/mpirun-sf/xen/gntdev"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/store"
)

// Tool is the command that is looked for on PATH.
const Tool = "xl"

// Driver makes domains. It implements [hypervisor.Driver].
type Driver struct {
	guests Guests
	tool   string // absolute path
	xen    *privcmd.Handle
	store  *store.Client
	grants *gntdev.Device
	bus    *device.Bus
	owner  *owner
	holder *holder
	paging error // why memory does not come on demand, nil if it does

	domains atomic.Uint64 // that were made
}

var _ hypervisor.Driver = (*Driver)(nil)

// Find looks for Xen and its tools, and destroys the domains of drivers that were killed. An
// error that matches [hypervisor.ErrNotSupported] says what there is not.
func Find(ctx context.Context, g Guests) (*Driver, error) {
	handle, err := privcmd.Open()
	if err != nil {
		return nil, err
	}
	d := &Driver{guests: g, xen: handle}
	if err := d.open(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Driver) open(ctx context.Context) (err error) {
	if err := d.guests.lacks(d.xen.Makes()); err != nil {
		return err
	}
	if err = d.openTools(ctx); err != nil {
		return err
	}
	if d.grants, err = gntdev.Open(); err != nil {
		return err
	}
	d.bus = device.NewBus(d.store, d.grants)
	if d.paging = errNoPaging; d.guests == PVH {
		d.paging = d.xen.Paging()
	}
	if err := d.sweep(ctx, ownersFolder); err != nil {
		return err
	}
	if d.owner, err = claim(ownersFolder); err != nil {
		return err
	}
	d.holder, err = startHolder(d.owner)
	return err
}

// openTools opens what destroys domains.
func (d *Driver) openTools(ctx context.Context) (err error) {
	if d.tool, err = exec.LookPath(Tool); err != nil {
		return hypervisor.Lacksf("%s is not on PATH; install it: apt-get install xen-utils", Tool)
	}
	d.store, err = store.Open(ctx)
	return err
}

// Close gives up what the driver has open. Its machines have ended before.
func (d *Driver) Close() error {
	var errs []error
	if d.owner != nil {
		errs = append(errs, d.owner.release())
	}
	if d.holder != nil {
		errs = append(errs, d.holder.await())
	}
	if d.xen != nil {
		errs = append(errs, d.xen.Close())
	}
	if d.grants != nil {
		errs = append(errs, d.grants.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	return errors.Join(errs...)
}

// Name implements [hypervisor.Driver].
func (d *Driver) Name() string { return d.guests.Name() }

// Version implements [hypervisor.Driver]. What the processor must have is in a device
// state itself, and checked by Xen.
func (d *Driver) Version() string { return fmt.Sprintf("Xen %v %v", d.xen.Release(), d.guests) }

// OnDemand is nil where a restored machine gets its memory page by page, as it touches it. Else the error matches
// [hypervisor.ErrNotSupported] and says why all of it has to be there first.
func (d *Driver) OnDemand() error { return d.paging }

const errNoPaging = hypervisor.Lacks("Xen brings memory on demand to PVH guests only: a PV guest's page tables name the machine's frames, so these have to be there")

// Describe implements [hypervisor.Driver].
func (d *Driver) Describe(s hypervisor.Shape) hypervisor.Description { return d.guests.describe(s) }

// Boot implements [hypervisor.Driver].
func (d *Driver) Boot(ctx context.Context, cfg hypervisor.Config, k hypervisor.Kernel) (hypervisor.VM, error) {
	v, err := d.newVM(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := v.boot(ctx, k); err != nil {
		return nil, v.end(fmt.Errorf("boot %s: %w", cfg.Name, err))
	}
	return v, nil
}

// Prepare implements [hypervisor.Driver].
func (d *Driver) Prepare(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	v, err := d.newVM(ctx, cfg)
	if err != nil {
		return nil, err
	}
	v.restored = true
	return v, nil
}

// cmdline is the kernel's, with what tells the guest its ports.
func cmdline(own string, ports []hypervisor.Port) string {
	line := "console=hvc0 quiet panic=-1 " + own
	for i, p := range ports {
		line += " " + guestport.Argument(p.Name, fmt.Sprintf("hvc%d", firstPort+i))
	}
	return line
}

// firstPort is the number of the console that is the first port; 0 is the kernel's.
const firstPort = 1

// config is a domain's configuration, as xl reads it. A restored guest has no kernel to
// load, but xl wants one to be named.
func config(name string, g Guests, s hypervisor.Shape, k hypervisor.Kernel) string {
	var b strings.Builder
	fmt.Fprintf(&b, "name=%s\ntype=%s\nmemory=%d\nvcpus=%d\n", quote(name), quote(g.String()), s.Memory>>20, s.VCPUs)
	if k.Image == "" {
		k.Image = os.DevNull
	}
	for _, e := range [][2]string{{"kernel", k.Image}, {"ramdisk", k.Initrd}, {"cmdline", k.Cmdline}} {
		if e[1] != "" {
			fmt.Fprintf(&b, "%s=%s\n", e[0], quote(e[1]))
		}
	}
	return b.String()
}

// quote makes a string of xl's syntax, which knows no escapes but has two quotes.
func quote(s string) string {
	if strings.Contains(s, `"`) {
		return "'" + s + "'"
	}
	return `"` + s + `"`
}

// checkQuotable refuses what no string of xl's syntax can hold.
func checkQuotable(all ...string) error {
	for _, s := range all {
		if strings.ContainsAny(s, "\n\\") || strings.Contains(s, `"`) && strings.Contains(s, "'") {
			return fmt.Errorf("xl's configuration cannot hold %.60q", s)
		}
	}
	return nil
}
