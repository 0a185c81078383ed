package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
)

// limit is how long any one step may take.
const limit = 2 * time.Minute

// ahead is how long hypervisor processes have to start before a fork.
const ahead = 500 * time.Millisecond

// vm is a job of its own with one VM.
type vm struct {
	daemon    *sfld.Client
	api       *api.Conn
	agent     *agent.Session
	processes int
	writer    *process
}

// start starts a VM with so many bytes of RAM. Its guest is in the cache but
// for the first VM of a size.
func (b *bench) start(ctx context.Context, memory int64) (*vm, error) {
	d, err := sfld.Start(ctx, b.Binary, sfld.Options{Job: strings.ToLower(rand.Text()[:12]), Cache: b.Cache, Accel: b.accel}, notice)
	if err != nil {
		return nil, err
	}
	guest := sfld.Guest{Tools: true, With: []string{b.inGuest}}
	_, err = d.Prepare(ctx, sfld.PrepareArgs{VCPUs: 1, Memory: memory, Guest: guest})
	if err == nil {
		_, err = d.StartVM(ctx, sfld.VMArgs{VCPUs: 1, Limit: limit})
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("start a VM of %d MB: %w", memory>>20, err)
	}
	conn, err := d.API()
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("call the VM fork API: %w", err)
	}
	return &vm{daemon: d, api: api.NewConn(conn), agent: d.Attach(0)}, nil
}

// notice tells what the host daemon has to say beside the ways of its calls.
func notice(n sfld.Notice) {
	switch {
	case n.Gone != "":
		progress("%s is gone: %s", n.Gone, n.Reason)
	case n.Line != "":
		progress("%s", n.Line)
	}
}

// end ends the job and all that is in it.
func (v *vm) end() error { return v.daemon.Close() }

// process is one in the VM, with its standard input and output.
type process struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// run starts this program in the VM.
func (v *vm) run(ctx context.Context, argv ...string) (*process, error) {
	v.processes++
	var streams [3]io.ReadWriteCloser
	for fd := range streams {
		s, err := v.agent.Stdio(ctx, v.processes, fd)
		if err != nil {
			return nil, err
		}
		streams[fd] = s
	}
	if _, err := v.agent.Start(ctx, agent.Command{ID: v.processes, Argv: argv, Dir: "/"}); err != nil {
		return nil, err
	}
	go io.Copy(os.Stderr, streams[2]) // until the VM ends
	return &process{streams[0], bufio.NewReader(streams[1])}, nil
}

// dirty has the VM's writer write to so many bytes of its memory.
func (b *bench) dirty(ctx context.Context, v *vm, bytes int64) (err error) {
	if v.writer == nil {
		if v.writer, err = v.run(ctx, b.inGuest, writerMark, strconv.FormatInt(bytes, 10)); err != nil {
			return fmt.Errorf("start the writer: %w", err)
		}
	}
	if _, err := io.WriteString(v.writer.in, "write\n"); err != nil {
		return fmt.Errorf("tell the writer: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := v.writer.out.ReadString('\n')
		done <- err
	}()
	select {
	case err = <-done:
	case <-time.After(limit):
		err = fmt.Errorf("it does not answer after %v", limit)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("write %d MB in the VM: %w", bytes>>20, err)
	}
	return nil
}

// forked is what one fork cost.
type forked struct {
	pause   time.Duration // the VM's
	running time.Duration // from the call until the child's virtual CPU ran
	ready   time.Duration // until the child had its identity
	state   int64         // bytes of device state
	dirtied int64         // pages that the VM had written
	copied  int64         // bytes that were copied of them

	began, replied time.Time // of the call
}

// fork forks the VM into one child, which is gone when it returns.
func (v *vm) fork(ctx context.Context) (f forked, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	before, err := v.daemon.Counters(ctx)
	if err != nil {
		return f, err
	}
	reply, err := v.api.Do(ctx, api.NewRequest(api.RequestTicket, "clones", "1"))
	if err != nil {
		return f, fmt.Errorf("request a ticket: %w", err)
	}
	t, err := reply.Ticket()
	if err != nil {
		return f, err
	}
	time.Sleep(ahead)
	f.began = time.Now()
	if reply, err = v.api.Do(ctx, api.NewRequest(api.Clone, "ticket", t.ID)); err != nil {
		return f, fmt.Errorf("clone: %w", err)
	}
	f.replied = time.Now()
	if err := f.read(reply); err != nil {
		return f, err
	}
	// All that was written is counted at once, when it is copied.
	for f.dirtied > 0 && f.copied == 0 {
		time.Sleep(5 * time.Millisecond)
		now, err := v.daemon.Counters(ctx)
		if err != nil {
			return f, fmt.Errorf("wait until %d pages are copied: %w", f.dirtied, err)
		}
		f.copied = now.Total().Copied - before.Total().Copied
	}
	if _, err = v.api.Do(ctx, api.NewRequest(api.Kill, "ticket", t.ID)); err != nil {
		return f, fmt.Errorf("kill the child: %w", err)
	}
	return f, nil
}

// read takes what a clone call's reply says of its costs.
func (f *forked) read(r api.Reply) error {
	for key, take := range map[string]func(int64){
		"pause-us":      func(n int64) { f.pause = time.Duration(n) * time.Microsecond },
		"running-us":    func(n int64) { f.running = time.Duration(n) * time.Microsecond },
		"ready-us":      func(n int64) { f.ready = time.Duration(n) * time.Microsecond },
		"state-bytes":   func(n int64) { f.state = n },
		"dirtied-pages": func(n int64) { f.dirtied = n },
	} {
		value, _ := r.Args.Get(key)
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return fmt.Errorf("the reply to clone: %s=%s is no number", key, value)
		}
		take(n)
	}
	return nil
}
