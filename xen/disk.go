package xen

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/xen/device"
	"github.com/mpirun-sf/mpirun-sf/xen/gntdev"
	"github.com/mpirun-sf/mpirun-sf/xen/store"
)

// diskOrder is what the process of a disk is told, one after the other as JSON. It says one error for each, "" for none, and the
// first of all when the disk is announced.
type diskOrder string

const (
	diskDrain  diskOrder = "drain"
	diskResume diskOrder = "resume"
)

// disk is the process that serves a guest's disk. The file may be memtap's, whose server is this process, which does not open it
// (see vm.fill). It ends with the machine, whatever it waits for, and with its input, so that it does not outlive this process.
type disk struct {
	kill          func() error
	input, output *os.File
	orders        *json.Encoder
	answers       *json.Decoder
	done          chan struct{} // closed when it has ended

	mu  sync.Mutex // guards err
	err error      // why it does not go on
}

var _ part = (*disk)(nil)

// startDisk gives a domain that is paused its disk.
func (v *vm) startDisk(ctx context.Context) (*disk, error) {
	theirInput, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	output, theirOutput, err := os.Pipe()
	if err != nil {
		theirInput.Close()
		input.Close()
		return nil, err
	}
	cmd := v.d.process(v.ctx, self, nil)
	cmd.Args = []string{diskName, strconv.Itoa(int(v.id)), v.cfg.DiskPath}
	cmd.ExtraFiles = nil // not the owner's lock: it makes no domain, and ends with this process
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirInput, theirOutput, &said
	d := &disk{kill: func() error { return cmd.Process.Kill() }, input: input, output: output, orders: json.NewEncoder(input), answers: json.NewDecoder(output), done: make(chan struct{})}
	err = cmd.Start()
	theirInput.Close()
	theirOutput.Close() // or its end would not be seen
	if err != nil {
		input.Close()
		output.Close()
		return nil, fmt.Errorf("start what serves its disk: %w", err)
	}
	go func() {
		defer close(d.done)
		err := cmd.Wait()
		if said.Len() > 0 {
			err = errors.New(complaintOf(said.Bytes()))
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.err = fmt.Errorf("what serves its disk has ended: %w", cmp.Or(err, io.EOF))
	}()
	if err := d.await(ctx); err != nil {
		return nil, errors.Join(err, d.Close(ctx))
	}
	return d, nil
}

// await waits for an answer.
func (d *disk) await(ctx context.Context) error {
	said := make(chan error, 1)
	go func() {
		var complaint string
		err := d.answers.Decode(&complaint)
		if err != nil {
			<-d.done // or it would have answered
			err = cmp.Or(d.Err(), err)
		} else if complaint != "" {
			err = errors.New(complaint)
		}
		said <- err
	}()
	select {
	case err := <-said:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for what serves its disk: %w", ctx.Err())
	}
}

// Drain ends what is under way of a guest that does not run any more.
func (d *disk) Drain(ctx context.Context) error {
	d.orders.Encode(diskDrain) // if it has ended, it says below why
	return d.await(ctx)
}

// Resume goes on after Drain.
func (d *disk) Resume() { d.orders.Encode(diskResume) }

// Err says why it does not go on, nil while it does.
func (d *disk) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close ends it. What it has in XenStore stays.
func (d *disk) Close(context.Context) error {
	d.kill() // also if it waits for a block that does not come
	<-d.done
	return errors.Join(d.input.Close(), d.output.Close())
}

// beDisk is the life of a disk's process. Its arguments are the domain's number and the file's path.
func beDisk(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments instead of a domain and a file", len(args))
	}
	id, err := strconv.ParseUint(args[0], 10, 15)
	if err != nil {
		return err
	}
	s, err := store.Open(context.Background())
	if err != nil {
		return err
	}
	grants, err := gntdev.Open()
	if err != nil {
		return err
	}
	d, err := device.NewBus(s, grants).NewDisk(context.Background(), uint16(id), args[1])
	if err != nil {
		return err
	}
	return serveDisk(d, os.Stdin, os.Stdout)
}

// lookAtDisk is how often a disk is asked whether it goes on.
const lookAtDisk = 500 * time.Millisecond

// serveDisk does what a disk is told, until that ends, or the disk does.
func serveDisk(d part, in io.Reader, out io.Writer) error {
	obeyed := make(chan error, 1)
	go func() { obeyed <- obeyDisk(d, json.NewDecoder(in), json.NewEncoder(out)) }()
	for tick := time.NewTicker(lookAtDisk); ; {
		select {
		case err := <-obeyed:
			return err
		case <-tick.C:
			if err := d.Err(); err != nil {
				return err
			}
		}
	}
}

func obeyDisk(d part, orders *json.Decoder, answers *json.Encoder) error {
	if err := answers.Encode(""); err != nil {
		return err
	}
	for {
		var o diskOrder
		if err := orders.Decode(&o); err != nil {
			return nil // the driver has ended
		}
		switch o {
		case diskResume:
			d.Resume()
		case diskDrain:
			complaint := ""
			if err := d.Drain(context.Background()); err != nil {
				complaint = err.Error()
			}
			if err := answers.Encode(complaint); err != nil {
				return err
			}
		default:
			return fmt.Errorf("a disk is told to %.20q", o)
		}
	}
}
