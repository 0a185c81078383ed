package xen

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/paging"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// pagerOrder is what a pager is told, one after the other as JSON. The first says what the domain is made of; one that says
// nothing asks for the counters.
type pagerOrder struct {
	Frames []byte        `json:",omitempty"` // of the guest, as stream.Frames has them
	VCPUs  []stream.VCPU `json:",omitempty"`
	Finish bool          `json:",omitempty"` // bring what is left, say the counters, and end
}

// pagerAnswer is what it says, once for each order.
type pagerAnswer struct {
	Unable   string `json:",omitempty"` // why the domain's memory cannot come on demand
	Counters paging.Counters
}

// pager is the process that brings a domain's pages as they are touched. It is told what to do through its input and
// ends with it, so that it does not outlive this process.
type pager struct {
	process       *os.Process
	input, output *os.File
	orders        *json.Encoder
	answers       *json.Decoder

	finishing bool // it was told to finish

	done chan struct{} // closed when it has ended
	err  error         // why, to be read then
}

// onDemand gives the machine's domain its frames and starts its pager. An error that matches [hypervisor.ErrNotSupported] says why the
// domain has to be filled.
func (v *vm) onDemand(ctx context.Context, s *state) (err error) {
	frames, err := s.frames.AppendBinary(nil)
	if err != nil {
		return err
	}
	if v.pager, err = v.startPager(); err != nil {
		return err
	}
	answer, err := v.pager.ask(ctx, pagerOrder{Frames: frames, VCPUs: s.vcpus})
	if err != nil {
		return err
	}
	if answer.Unable != "" {
		v.pager.close()
		v.pager = nil
		return hypervisor.Lacks(answer.Unable)
	}
	return nil
}

// startPager starts one, which ends with the machine.
func (v *vm) startPager() (*pager, error) {
	theirInput, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirInput.Close()
	output, theirOutput, err := os.Pipe()
	if err != nil {
		input.Close()
		return nil, err
	}
	defer theirOutput.Close()
	cmd := v.d.process(v.ctx, self, nil)
	cmd.Args = append([]string{pagerName}, v.domainArgs()...)
	cmd.ExtraFiles = nil // not the owner's lock: it makes no domain, and ends with this process
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirInput, theirOutput, &said
	if err := cmd.Start(); err != nil {
		input.Close()
		output.Close()
		return nil, fmt.Errorf("start what brings its memory: %w", err)
	}
	p := &pager{process: cmd.Process, input: input, output: output, orders: json.NewEncoder(input), answers: json.NewDecoder(output), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		if err := cmd.Wait(); err != nil {
			p.err = fmt.Errorf("what brings its memory has ended: %w", err)
			if said.Len() > 0 {
				p.err = errors.New(complaintOf(said.Bytes()))
			}
		}
	}()
	return p, nil
}

// ask gives an order and waits for the answer.
func (p *pager) ask(ctx context.Context, o pagerOrder) (answer pagerAnswer, err error) {
	said := make(chan error, 1)
	go func() { said <- errors.Join(p.orders.Encode(o), p.answers.Decode(&answer)) }()
	select {
	case err = <-said:
	case <-ctx.Done():
		return pagerAnswer{}, fmt.Errorf("wait for its memory: %w", ctx.Err())
	}
	if err != nil {
		<-p.done // or it would have answered
		return pagerAnswer{}, cmp.Or(p.err, err)
	}
	return answer, nil
}

// finish has it bring what is left, for a domain that is to be saved, and end.
func (p *pager) finish(ctx context.Context) error {
	if !p.finishing {
		p.finishing = true
		p.orders.Encode(pagerOrder{Finish: true}) // if it has ended, it says below why
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the rest of its memory: %w", ctx.Err())
	}
}

// close ends it, and waits until it has.
func (p *pager) close() {
	p.input.Close()
	<-p.done
	p.output.Close()
}

// bePager is the pager's life. Its arguments are those of a filler.
func bePager(args []string) error {
	id, size, memory, err := openDomain(args)
	if err != nil {
		return err
	}
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var first pagerOrder
	if err := orders.Decode(&first); err != nil {
		return fmt.Errorf("hear of a domain: %w", err)
	}
	var frames stream.Frames
	if err := frames.UnmarshalBinary(first.Frames); err != nil {
		return err
	}
	handle, err := privcmd.Open()
	if err != nil {
		return err
	}
	pieces := slices.Collect(PVH.memoryMap(size).pieces(&frames))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p, err := paging.Attach(ctx, handle, id, pieces, first.VCPUs, memory)
	if errors.Is(err, hypervisor.ErrNotSupported) {
		return answers.Encode(pagerAnswer{Unable: err.Error()})
	}
	if err != nil {
		return err
	}
	if err := answers.Encode(pagerAnswer{Counters: p.Counters()}); err != nil {
		return err
	}
	served, obeyed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(served)
		err = p.Serve(ctx)
	}()
	stop := func() error {
		cancel()
		<-served
		return err
	}
	go func() { obeyed <- obey(p, orders, answers, stop) }()
	select {
	case err := <-obeyed:
		return err
	case <-served:
		if err != nil {
			return err
		}
		return <-obeyed // it was told to stop
	}
}

// obey does what the pager is told. That its input ends, says that the driver has.
func obey(p *paging.Pager, orders *json.Decoder, answers *json.Encoder, stop func() error) error {
	for {
		var o pagerOrder
		if err := orders.Decode(&o); err != nil {
			return nil
		}
		if o.Finish {
			if err := p.Finish(context.Background(), stop); err != nil {
				return err
			}
		}
		if err := answers.Encode(pagerAnswer{Counters: p.Counters()}); err != nil || o.Finish {
			return err
		}
	}
}
