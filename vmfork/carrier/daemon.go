package carrier

import (
	"context"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
	"github.com/mpirun-sf/mpirun-sf/vmfork/trace"
)

// Begin is what a daemon is told of the job whose machines it is to carry.
type Begin struct {
	Job    string
	Number int    // of the host
	Peers  []Peer // all hosts, by number
	Window int    // memtap's
	Traced bool   // events are wanted
	Connection
}

// Connection is what hosts have to agree upon to exchange blocks and frames.
type Connection struct {
	Key  [32]byte // for multicast packets
	Mode mcdist.Mode
	VNI  uint32 // of the private network's VXLAN
	Port uint16 // its UDP port
	MTU  int    // of the private network, bytes
}

// JoinMesh connects a carrier to the other hosts of a mesh.
func (c *Carrier) JoinMesh(ctx context.Context, m *Mesh, how Connection) error {
	err := c.Join(ctx, Fabric{
		Config: mcdist.Config{
			Self: m.self, Hosts: m.Hosts(), Dial: m.Dial, Key: how.Key, Mode: how.Mode, Notice: c.cfg.Events.Detail,
		},
		VNI: how.VNI, Port: how.Port, MTU: how.MTU,
	})
	if err == nil {
		m.Distribute(c.Node())
	}
	return err
}

// daemon carries machines for a coordinator on another host.
type daemon struct {
	ctx      context.Context
	cfg      Config
	id       *link.Identity
	listener *link.Listener
	head     *link.Link

	begin sync.Mutex // one Begin
	begun chan struct{}
	c     *Carrier // once begun
	mesh  *Mesh
}

// Serve carries machines for the coordinator at the other end of head until that
// link ends, or ctx. Of cfg it needs what is this host's own; the coordinator
// says the rest. listener is where other hosts of the job connect.
func Serve(ctx context.Context, id *link.Identity, listener *link.Listener, head *link.Link, cfg Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { head.Close() })
	d := &daemon{ctx: ctx, cfg: cfg, id: id, listener: listener, head: head, begun: make(chan struct{})}
	d.cfg.Events = d
	// The first stream is the calls', the first of which is Begin. There is no
	// mesh before it.
	conn, err := d.first()
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	server.RegisterName("Host", &remote{d})
	server.ServeConn(conn) // until the link ends
	cancel()
	select {
	case <-d.begun:
	default:
		return nil
	}
	d.mesh.Close()
	return d.c.Close()
}

func (d *daemon) first() (net.Conn, error) {
	kind, conn, err := d.head.Accept()
	if err == nil && kind != kindRPC {
		conn.Close()
		err = fmt.Errorf("the coordinator opened a stream %q first", kind)
	}
	return conn, err
}

// acceptLinks takes the links of other hosts.
func (d *daemon) acceptLinks() {
	for {
		l, err := d.listener.AcceptLink()
		if err != nil {
			return
		}
		host := d.mesh.Adopt(l)
		if host < 0 {
			l.Close()
			continue
		}
		go d.mesh.Serve(l, host, func(_ byte, conn net.Conn) { conn.Close() })
	}
}

// stream takes a stream of the coordinator's.
func (d *daemon) stream(kind byte, conn net.Conn) {
	defer conn.Close()
	if kind != kindAttach {
		return
	}
	conn.SetReadDeadline(time.Now().Add(headerLimit))
	var member [2]byte
	if _, err := io.ReadFull(conn, member[:]); err != nil {
		return
	}
	conn.SetReadDeadline(time.Time{})
	guest, err := d.c.Open(int(binary.BigEndian.Uint16(member[:])))
	if err != nil {
		return
	}
	Splice(conn, guest)
}

// Splice copies both ways until both ends have said all. It closes b.
func Splice(a, b net.Conn) {
	defer b.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(b, a)
		closeWrite(b)
	}()
	io.Copy(a, b)
	closeWrite(a)
	<-done
}

// closeWrite says that no more comes, where that can be said without closing.
func closeWrite(conn net.Conn) {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	} else {
		conn.Close()
	}
}

// Notice implements [Events].
func (d *daemon) Notice(line string) { d.tell(event{Notice: line}) }

// Detail implements [Events].
func (d *daemon) Detail(line string) { d.tell(event{Detail: line}) }

// Progress implements [Events].
func (d *daemon) Progress(step string) { d.tell(event{Progress: step}) }

// Gone implements [Events].
func (d *daemon) Gone(member int, reason error) { d.tell(event{Member: member, Gone: reason.Error()}) }

// Severed implements [Events].
func (d *daemon) Severed(host int, reason error) {
	d.tell(event{Host: host, Severed: reason.Error()})
}

// tell opens a stream for an event: there are few.
func (d *daemon) tell(v event) {
	ctx, cancel := context.WithTimeout(d.ctx, headerLimit)
	defer cancel()
	conn, err := d.head.Open(ctx, kindEvents)
	if err != nil {
		return // nobody is there to be told
	}
	defer conn.Close()
	gob.NewEncoder(conn).Encode(v)
}

// Call implements [Events].
func (d *daemon) Call(member int, call string, conn net.Conn) {
	ctx, cancel := context.WithTimeout(d.ctx, headerLimit)
	defer cancel()
	head := append(binary.BigEndian.AppendUint16(nil, uint16(member)), byte(len(call)))
	to, err := d.head.Open(ctx, kindCall)
	if err == nil {
		_, err = to.Write(append(head, call...))
	}
	if err != nil {
		conn.Close()
		return
	}
	defer to.Close()
	Splice(to, conn)
}

// remote is what the coordinator calls.
type remote struct{ d *daemon }

// ReserveArgs and the types after it are arguments of calls; net/rpc wants them
// to be exported.
type ReserveArgs struct {
	ID     string
	Demand allocator.Demand
}

type PrepareArgs struct {
	Who        ticket.Clone
	Generation string
	Disk       int64
}

type StartArgs struct {
	Member int
	ID     agent.Identity
	Limit  time.Duration
}

type IntroduceArgs struct {
	Member int
	Others []network.Member
	Limit  time.Duration
}

type SucceedArgs struct {
	Member     int
	Generation string
}

type FreezeArgs struct {
	Member int
	Limit  time.Duration
}

type ExportArgs struct {
	Generation string
	To         []int
}

type ImportArgs struct {
	Generation string
	From       Exported
	Limit      time.Duration
}

// Begin tells the daemon what job this is. It is the first call.
func (r *remote) Begin(args Begin, _ *int) error {
	d := r.d
	d.begin.Lock()
	defer d.begin.Unlock()
	if d.c != nil {
		return errors.New("the job has begun already")
	}
	if args.Number < 1 || args.Number >= len(args.Peers) {
		return fmt.Errorf("there is no host %d of %d", args.Number, len(args.Peers))
	}
	cfg := d.cfg
	cfg.Job, cfg.Number, cfg.Window = args.Job, args.Number, args.Window
	cfg.Host, cfg.Plan = args.Peers[args.Number].Name, network.NewPlan(args.Job)
	if args.Traced {
		cfg.Trace = trace.New(cfg.Host, 0)
	}
	mesh := NewMesh(d.ctx, d.id, args.Number, args.Peers)
	mesh.Adopt(d.head)
	for host, p := range args.Peers {
		if host != args.Number {
			d.listener.AllowHost(p.Name, p.Fingerprint)
		}
	}
	c, err := New(d.ctx, cfg)
	if err != nil {
		return err
	}
	d.c, d.mesh = c, mesh
	close(d.begun)
	go d.acceptLinks()
	go mesh.Serve(d.head, 0, d.stream)
	return c.JoinMesh(d.ctx, mesh, args.Connection)
}

// Meet connects to all hosts of a lower number but the coordinator's.
func (r *remote) Meet(limit time.Duration, _ *int) error {
	return r.with(limit, func(ctx context.Context, c *Carrier) error {
		for host := 1; host < c.cfg.Number; host++ {
			l, err := r.d.mesh.Link(ctx, host)
			if err != nil {
				return err
			}
			go func() {
				<-l.Done()
				if r.d.ctx.Err() == nil {
					r.d.Severed(host, l.Err())
				}
			}()
		}
		return nil
	})
}

// carrier is the daemon's, if it knows its job.
func (r *remote) carrier() (*Carrier, error) {
	select {
	case <-r.d.begun:
		return r.d.c, nil
	default:
		return nil, errors.New("the job has not begun here")
	}
}

// with calls f with the carrier, and a context with a limit, if there is one.
func (r *remote) with(limit time.Duration, f func(ctx context.Context, c *Carrier) error) error {
	c, err := r.carrier()
	if err != nil {
		return err
	}
	ctx := r.d.ctx
	if limit != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return f(ctx, c)
}

// The methods of [Host], as net/rpc wants them.

func (r *remote) Equip(e Equipment, out *Equipped) error {
	return r.with(0, func(ctx context.Context, c *Carrier) (err error) { *out, err = c.Equip(ctx, e); return err })
}

func (r *remote) Room(_ int, out *allocator.Room) error {
	return r.with(0, func(ctx context.Context, c *Carrier) (err error) { *out, err = c.Room(ctx); return err })
}

func (r *remote) Reserve(args ReserveArgs, out *Reserved) error {
	return r.with(0, func(ctx context.Context, c *Carrier) (err error) {
		*out, err = c.Reserve(ctx, args.ID, args.Demand)
		return err
	})
}

func (r *remote) Unreserve(id string, _ *int) error {
	return r.with(0, func(_ context.Context, c *Carrier) error { c.Unreserve(id); return nil })
}

func (r *remote) Place(hosts map[int]int, _ *int) error {
	return r.with(0, func(ctx context.Context, c *Carrier) error { return c.Place(ctx, hosts) })
}

func (r *remote) Expect(generation string, _ *int) error {
	return r.with(0, func(ctx context.Context, c *Carrier) error { return c.Expect(ctx, generation) })
}

func (r *remote) Prepare(args PrepareArgs, _ *int) error {
	return r.with(0, func(ctx context.Context, c *Carrier) error {
		return c.Prepare(ctx, args.Who, args.Generation, args.Disk)
	})
}

func (r *remote) Start(args StartArgs, out *Started) error {
	return r.with(args.Limit, func(ctx context.Context, c *Carrier) (err error) {
		*out, err = c.Start(ctx, args.Member, args.ID)
		return err
	})
}

func (r *remote) Introduce(args IntroduceArgs, _ *int) error {
	return r.with(args.Limit, func(ctx context.Context, c *Carrier) error {
		return c.Introduce(ctx, args.Member, args.Others)
	})
}

func (r *remote) Succeed(args SucceedArgs, _ *int) error {
	return r.with(0, func(ctx context.Context, c *Carrier) error {
		return c.Succeed(ctx, args.Member, args.Generation)
	})
}

func (r *remote) Freeze(args FreezeArgs, out *Frozen) error {
	return r.with(args.Limit, func(ctx context.Context, c *Carrier) (err error) {
		*out, err = c.Freeze(ctx, args.Member)
		return err
	})
}

func (r *remote) End(member int, _ *int) error {
	return r.with(0, func(_ context.Context, c *Carrier) error { c.End(member); return nil })
}

func (r *remote) Export(args ExportArgs, out *Exported) error {
	return r.with(0, func(ctx context.Context, c *Carrier) (err error) {
		*out, err = c.Export(ctx, args.Generation, args.To)
		return err
	})
}

func (r *remote) Import(args ImportArgs, _ *int) error {
	return r.with(args.Limit, func(ctx context.Context, c *Carrier) error {
		return c.Import(ctx, args.Generation, args.From)
	})
}

func (r *remote) Trace(generation string, out *memtap.Trace) error {
	return r.with(0, func(ctx context.Context, c *Carrier) (err error) { *out, err = c.Trace(ctx, generation); return err })
}

func (r *remote) Release(generation string, _ *int) error {
	return r.with(0, func(_ context.Context, c *Carrier) error { c.Release(generation); return nil })
}

func (r *remote) Withdraw(layers []slice.ID, _ *int) error {
	return r.with(0, func(_ context.Context, c *Carrier) error { c.Withdraw(layers); return nil })
}

func (r *remote) Events(_ int, out *[]trace.Event) error {
	return r.with(0, func(ctx context.Context, c *Carrier) (err error) { *out, _, err = c.Events(ctx); return err })
}

func (r *remote) Usage(_ int, out *map[int]Usage) error {
	return r.with(0, func(ctx context.Context, c *Carrier) (err error) { *out, err = c.Usage(ctx); return err })
}

func (r *remote) Counters(_ int, out *Counters) error {
	return r.with(0, func(ctx context.Context, c *Carrier) (err error) { *out, err = c.Counters(ctx); return err })
}
