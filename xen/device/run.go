package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// connectLimit is how long a guest's driver may take: one that boots has a kernel's
// start before it, and may be emulated.
const connectLimit = 5 * time.Minute

// serve begins to serve the guest: as soon as its driver is there, connect takes
// what it offers, and then the ways run side by side, until ctx ends or one has an error.
func (d *Device) serve(connect func(ctx context.Context) error, ways ...func(ctx context.Context) error) {
	d.connect, d.ways = connect, ways
	d.Resume()
}

// Resume goes on after Drain; with the driver, if that has not come before.
func (d *Device) Resume() {
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel, d.done = cancel, make(chan struct{})
	go func() {
		defer close(d.done)
		defer cancel()
		if d.channel == nil {
			if err := d.meet(ctx); err != nil {
				d.fail(err)
				return
			}
		}
		var all sync.WaitGroup
		for _, way := range d.ways {
			all.Go(func() {
				if err := way(ctx); err != nil {
					d.fail(err)
					cancel()
				}
			})
		}
		all.Wait()
	}()
}

// meet waits for the guest's driver and connects with it.
func (d *Device) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	if err := d.awaitDriver(ctx); err != nil {
		return err
	}
	if err := d.connect(ctx); err != nil {
		return err
	}
	return d.setState(ctx, connected)
}

// mapPage maps the page of the ring whose reference the guest's entry is, until Close.
func (d *Device) mapPage(ctx context.Context, entry string) ([]byte, error) {
	ref, err := d.entry(ctx, entry)
	if err != nil {
		return nil, err
	}
	page, unmap, err := d.bus.Map(d.domain, ref)
	if err != nil {
		return nil, err
	}
	d.unmap = append(d.unmap, unmap)
	return page, nil
}

// bind binds the event channel whose number the guest's entry is, until Close.
func (d *Device) bind(ctx context.Context, entry string) error {
	port, err := d.entry(ctx, entry)
	if err != nil {
		return err
	}
	d.channel, err = d.bus.Bind(d.domain, port)
	return err
}

// Drain ends what is under way of a guest that does not run any more. Until Resume,
// nothing more is begun.
func (d *Device) Drain(ctx context.Context) error {
	if err := d.stop(ctx); err != nil {
		return err
	}
	return d.Err()
}

// stop ends what runs for it.
func (d *Device) stop(ctx context.Context) error {
	d.cancel()
	select {
	case <-d.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until %s stands still: %w", d.name, ctx.Err())
	}
}

// fail keeps the first reason for which it does not go on, unless it was asked to end.
func (d *Device) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && d.err == nil && !errors.Is(err, context.Canceled) {
		d.err = fmt.Errorf("%s: %w", d.name, err)
	}
}

// Err says why it does not go on, nil while it does.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// close ends it, and closes what it stands for. The domain keeps its memory until then.
func (d *Device) close(ctx context.Context, what io.Closer) error {
	if err := d.stop(ctx); err != nil {
		return err
	}
	errs := []error{d.forget(ctx), what.Close()}
	if d.channel != nil {
		errs = append(errs, d.channel.Close())
	}
	for _, unmap := range d.unmap {
		errs = append(errs, unmap())
	}
	d.channel, d.unmap = nil, nil
	return errors.Join(errs...)
}
