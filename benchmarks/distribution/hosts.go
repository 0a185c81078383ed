package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// hosts are a cluster with a worker on each host. Host 0 is the origin of all that is distributed.
type hosts struct {
	*testcluster.Cluster
	workers []*client
}

// client calls a worker.
type client struct {
	host *testcluster.Host
	cmd  *exec.Cmd
	in   io.Closer
	rpc  *rpc.Client
}

// startHosts makes a cluster, with workers that keep what comes in dir.
func startHosts(ctx context.Context, options testcluster.Options, dir string) (_ *hosts, err error) {
	c, err := testcluster.New(ctx, options)
	if err != nil {
		return nil, err
	}
	h := &hosts{Cluster: c}
	self, err := os.Executable()
	for _, host := range c.Hosts() {
		if err == nil {
			var w *client
			if w, err = startWorker(ctx, host, self, workerArgument, dir); err == nil {
				h.workers = append(h.workers, w)
			}
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start workers: %w", err), h.Close())
	}
	return h, nil
}

func startWorker(ctx context.Context, host *testcluster.Host, program string, args ...string) (*client, error) {
	w := &client{host: host, cmd: host.Command(ctx, program, args...)}
	w.cmd.Stderr = os.Stderr
	in, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	w.in, w.rpc = in, rpc.NewClient(pipes{out, in})
	return w, nil
}

type pipes struct {
	io.ReadCloser
	in io.WriteCloser
}

func (p pipes) Write(b []byte) (int, error) { return p.in.Write(b) }
func (p pipes) Close() error                { return errors.Join(p.in.Close(), p.ReadCloser.Close()) }

// Close ends the workers and the cluster.
func (h *hosts) Close() error {
	for _, w := range h.workers {
		w.in.Close()
	}
	for _, w := range h.workers {
		w.cmd.Wait() // it has said why it failed, if it did
	}
	return h.Cluster.Close()
}

// call has a worker do something. Nothing takes longer than limit.
func (w *client) call(ctx context.Context, method string, args, reply any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*limit)
	defer cancel()
	select {
	case c := <-w.rpc.Go("Worker."+method, args, reply, make(chan *rpc.Call, 1)).Done:
		if c.Error != nil {
			return fmt.Errorf("%s: %s: %w", w.host.Name, method, c.Error)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %s: %w", w.host.Name, method, ctx.Err())
	}
}

// each has some workers do the same at once, and returns what each replied.
func each[T any](ctx context.Context, workers []*client, method string, args any) ([]T, error) {
	replies, errs := make([]T, len(workers)), make([]error, len(workers))
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() { errs[i] = w.call(ctx, method, args, &replies[i]) })
	}
	wg.Wait()
	return replies, errors.Join(errs...)
}

// begin begins a job on the first n hosts. What was found about the network is the result, where something has to be.
func (h *hosts) begin(ctx context.Context, n int, mode mcdist.Mode) (found string, err error) {
	args := BeginArgs{Mode: mode}
	rand.Read(args.Key[:])
	for _, w := range h.workers[:n] {
		var p carrier.Peer
		if err := w.call(ctx, "Listen", PeerArgs{w.host.Name, w.host.Address}, &p); err != nil {
			return "", err
		}
		args.Peers = append(args.Peers, p)
	}
	for i := n - 1; i >= 0; i-- {
		args.Self = i
		if err := h.workers[i].call(ctx, "Begin", args, new(int)); err != nil {
			return "", err
		}
	}
	err = h.workers[0].call(ctx, "Prepare", mode == mcdist.Auto || mode == mcdist.Multicast, &found)
	return found, err
}

// end ends the job on all hosts.
func (h *hosts) end(ctx context.Context) error {
	_, err := each[int](ctx, h.workers, "End", 0)
	return err
}

// sent are the bytes that a host has sent and received, by the counters of its link.
func (h *hosts) traffic(host int) (bytes float64, err error) {
	t, err := h.Host(host).Traffic()
	return float64(t.SentBytes + t.ReceivedBytes), err
}

// limit is how long any one step may take.
const limit = 2 * time.Minute
