package sfld

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/yamux"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// connectionFD is the daemon's end of the socket pair to the launcher.
const connectionFD = 3

// What a stream of the connection is for is its first byte.
const (
	streamRPC    = 'r'
	streamNotice = 'n'
	streamAttach = 'a' // a stream to a VM's agent; followed by the VM's number, two bytes, high first
	streamAPI    = 'f' // the VM fork protocol, with the host's authority
	streamAccept = 'l' // one connection of a listener (listen.go); followed by its port, two bytes, high first
)

// Main is the daemon. It returns when the launcher has gone.
func Main(ctx context.Context) error {
	f := os.NewFile(connectionFD, "launcher")
	conn, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("the host daemon is started by mpirun-sf, not by hand: %w", err)
	}
	f.Close()
	// The first process of a PID namespace gets no signal that it does not
	// ask for.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	opts, err := readOptions(conn)
	if err != nil {
		return err
	}
	return serve(ctx, conn, opts)
}

// maxOptions bounds the options' JSON, in bytes.
const maxOptions = 1 << 16

// readOptions reads exactly the options: the session follows them at once.
func readOptions(r io.Reader) (opts Options, err error) {
	if err := json.NewDecoder(io.LimitReader(oneByte{r}, maxOptions)).Decode(&opts); err != nil {
		return opts, fmt.Errorf("read the job's options: %w", err)
	}
	// It is part of file names.
	if opts.Job == "" || strings.ContainsAny(opts.Job, "/\x00") {
		return opts, fmt.Errorf("read the job's options: %q cannot be a job's name", opts.Job)
	}
	return opts, nil
}

// oneByte keeps a decoder from reading ahead.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

func serve(ctx context.Context, conn net.Conn, opts Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mux, err := yamux.Server(conn, agent.MuxConfig())
	if err != nil {
		return fmt.Errorf("speak to the launcher: %w", err)
	}
	defer mux.Close()
	context.AfterFunc(ctx, func() { mux.Close() })

	notices := make(chan Notice, 64)
	notify := func(n Notice) {
		select {
		case notices <- n:
		case <-ctx.Done():
		}
	}
	// The engine begins while the launcher opens its streams; what goes wrong
	// there is the answer to its first call.
	var engine *Engine
	begin := sync.OnceValue(func() error {
		if err := settle(); err != nil {
			return err
		}
		var err error
		engine, err = newEngine(ctx, opts, notify)
		return err
	})
	go begin()
	var calls sync.WaitGroup
	for {
		st, err := mux.AcceptStream()
		if err != nil {
			break // the launcher has gone, or we were told to
		}
		calls.Go(func() {
			defer st.Close()
			var kind [1]byte
			if _, err := io.ReadFull(st, kind[:]); err != nil {
				return
			}
			switch kind[0] {
			case streamRPC:
				server := rpc.NewServer()
				if err := begin(); err != nil {
					server.RegisterName("SFLD", &failed{err})
				} else {
					server.RegisterName("SFLD", &service{e: engine, ctx: ctx})
				}
				server.ServeConn(st)
			case streamNotice:
				enc := json.NewEncoder(st)
				for {
					select {
					case n := <-notices:
						if enc.Encode(n) != nil {
							return
						}
					case <-ctx.Done():
						return
					}
				}
			case streamAttach:
				if begin() == nil {
					engine.attach(st)
				}
			case streamAPI:
				if begin() == nil {
					engine.serveHost(st)
				}
			case streamAccept:
				if begin() == nil {
					engine.accept(st)
				}
			}
		})
	}
	cancel()
	if begin() == nil {
		// Clones end first: calls that wait for one then return.
		err = engine.Close()
	}
	calls.Wait()
	return err
}

// attach relays a stream to the agent of the VM that it names.
func (e *Engine) attach(st *yamux.Stream) {
	var member [2]byte
	if _, err := io.ReadFull(st, member[:]); err != nil {
		return
	}
	guest, err := e.open(int(member[0])<<8 | int(member[1]))
	if err != nil {
		return
	}
	carrier.Splice(st, guest)
}

// failed answers every call of a daemon whose job could not begin.
type failed struct{ err error }

func (f *failed) Key(int, *KeyReply) error                  { return f.err }
func (f *failed) Join(JoinArgs, *int) error                 { return f.err }
func (f *failed) OpenWay(network.Way, *int) error           { return f.err }
func (f *failed) Prepare(PrepareArgs, *Prepared) error      { return f.err }
func (f *failed) RequestTicket(RequestArgs, *Granted) error { return f.err }
func (f *failed) Clone(CloneArgs, *Cloned) error            { return f.err }
func (f *failed) Kill(ticket.Ticket, *int) error            { return f.err }
func (f *failed) StartVM(VMArgs, *VMStarted) error          { return f.err }
func (f *failed) Share(ShareArgs, *Shared) error            { return f.err }
func (f *failed) Stage(StageArgs, *Staged) error            { return f.err }
func (f *failed) Trace(int, *Traced) error                  { return f.err }
func (f *failed) Counters(int, *Counters) error             { return f.err }
func (f *failed) Listen(int, *Listening) error              { return f.err }
func (f *failed) StopListening(uint16, *int) error          { return f.err }
