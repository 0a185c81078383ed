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
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
	"github.com/mpirun-sf/mpirun-sf/vmfork/trace"
)

// Remote is a host that another daemon looks after.
type Remote struct {
	name   string
	number int
	link   *link.Link
	rpc    *rpc.Client
	ended  sync.WaitGroup // of calls whose end nobody waits for
}

// Connect makes the daemon at the other end of a link carry machines of this
// job. Its events go to events until the link ends.
func Connect(ctx context.Context, mesh *Mesh, host int, begin Begin, events Events) (*Remote, error) {
	l, err := mesh.Link(ctx, host)
	if err != nil {
		return nil, err
	}
	r := &Remote{name: mesh.peers[host].Name, number: host, link: l}
	go mesh.Serve(l, host, func(kind byte, conn net.Conn) { receive(kind, conn, events) })
	calls, err := l.Open(ctx, kindRPC)
	if err != nil {
		return nil, err
	}
	r.rpc = rpc.NewClient(calls)
	begin.Number = host
	return r, r.call(ctx, "Begin", begin, new(int))
}

// Meet has the host connect to those of a lower number, all of which have begun.
// From then on it tells when it does not reach one of them any more.
func (r *Remote) Meet(ctx context.Context) error {
	return r.call(ctx, "Meet", timeLeft(ctx), new(int))
}

// Done is closed when the host cannot be reached any more.
func (r *Remote) Done() <-chan struct{} { return r.link.Done() }

// Err says why.
func (r *Remote) Err() error { return r.link.Err() }

// event is one of Events.
type event struct {
	Notice, Detail, Progress string
	Member                   int
	Gone                     string
	Host                     int    // the link to which
	Severed                  string // ended, for this reason
}

// receive takes a stream that the other daemon has opened.
func receive(kind byte, conn net.Conn, events Events) {
	switch kind {
	case kindEvents:
		defer conn.Close()
		in := gob.NewDecoder(conn)
		for {
			var v event
			if in.Decode(&v) != nil {
				return
			}
			switch {
			case v.Notice != "":
				events.Notice(v.Notice)
			case v.Detail != "":
				events.Detail(v.Detail)
			case v.Progress != "":
				events.Progress(v.Progress)
			case v.Severed != "":
				go events.Severed(v.Host, errors.New(v.Severed))
			default:
				go events.Gone(v.Member, errors.New(v.Gone))
			}
		}
	case kindCall:
		conn.SetReadDeadline(time.Now().Add(headerLimit))
		var head [3]byte
		name := make([]byte, 255)
		_, err := io.ReadFull(conn, head[:])
		if err == nil {
			name = name[:head[2]]
			_, err = io.ReadFull(conn, name)
		}
		if err != nil {
			conn.Close()
			return
		}
		conn.SetReadDeadline(time.Time{})
		events.Call(int(binary.BigEndian.Uint16(head[:])), string(name), conn)
	default:
		conn.Close()
	}
}

// headerLimit is how long the first bytes of a stream may take to come.
const headerLimit = 10 * time.Second

// call makes one call. The daemon goes on with one that is given up.
func (r *Remote) call(ctx context.Context, method string, args, reply any) error {
	done := r.rpc.Go("Host."+method, args, reply, make(chan *rpc.Call, 1)).Done
	select {
	case call := <-done:
		var said rpc.ServerError
		switch {
		case call.Error == nil:
			return nil
		case errors.As(call.Error, &said):
			return errors.New(string(said))
		case r.link.Err() != nil:
			return r.link.Err()
		default:
			return fmt.Errorf("the daemon of %s ended", r.name)
		}
	case <-r.link.Done():
		return r.link.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", r.name, ctx.Err())
	}
}

// tell makes a call that nobody waits for long.
func (r *Remote) tell(method string, args any) {
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	r.call(ctx, method, args, new(int)) // a host that is gone has ended all it had
}

// endLimit is how long a host may take to end something.
const endLimit = 30 * time.Second

// Name implements [Host].
func (r *Remote) Name() string { return r.name }

// Equip implements [Host].
func (r *Remote) Equip(ctx context.Context, e Equipment) (out Equipped, err error) {
	err = r.call(ctx, "Equip", e, &out)
	return out, err
}

// Room implements [Host].
func (r *Remote) Room(ctx context.Context) (out allocator.Room, err error) {
	err = r.call(ctx, "Room", 0, &out)
	return out, err
}

// Reserve implements [Host].
func (r *Remote) Reserve(ctx context.Context, id string, d allocator.Demand) (out Reserved, err error) {
	err = r.call(ctx, "Reserve", ReserveArgs{id, d}, &out)
	return out, err
}

// Unreserve implements [Host].
func (r *Remote) Unreserve(id string) { r.ended.Go(func() { r.tell("Unreserve", id) }) }

// Place implements [Host].
func (r *Remote) Place(ctx context.Context, hosts map[int]int) error {
	return r.call(ctx, "Place", hosts, new(int))
}

// Expect implements [Host].
func (r *Remote) Expect(ctx context.Context, generation string) error {
	return r.call(ctx, "Expect", generation, new(int))
}

// Prepare implements [Host].
func (r *Remote) Prepare(ctx context.Context, who ticket.Clone, generation string, disk int64) error {
	return r.call(ctx, "Prepare", PrepareArgs{who, generation, disk}, new(int))
}

// Start implements [Host].
func (r *Remote) Start(ctx context.Context, member int, id agent.Identity) (out Started, err error) {
	err = r.call(ctx, "Start", StartArgs{member, id, timeLeft(ctx)}, &out)
	return out, err
}

// Open implements [Host].
func (r *Remote) Open(member int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), headerLimit)
	defer cancel()
	conn, err := r.link.Open(ctx, kindAttach)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(binary.BigEndian.AppendUint16(nil, uint16(member))); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Introduce implements [Host].
func (r *Remote) Introduce(ctx context.Context, member int, others []network.Member) error {
	return r.call(ctx, "Introduce", IntroduceArgs{member, others, timeLeft(ctx)}, new(int))
}

// Succeed implements [Host].
func (r *Remote) Succeed(ctx context.Context, member int, generation string) error {
	return r.call(ctx, "Succeed", SucceedArgs{member, generation}, new(int))
}

// Freeze implements [Host].
func (r *Remote) Freeze(ctx context.Context, member int) (out Frozen, err error) {
	// Whoever gives up must know all the same whether the machine goes on from
	// another generation.
	err = r.call(context.WithoutCancel(ctx), "Freeze", FreezeArgs{member, timeLeft(ctx)}, &out)
	return out, err
}

// End implements [Host].
func (r *Remote) End(member int) { r.tell("End", member) }

// Export implements [Host].
func (r *Remote) Export(ctx context.Context, generation string, to []int) (out Exported, err error) {
	err = r.call(ctx, "Export", ExportArgs{generation, to}, &out)
	return out, err
}

// Import implements [Host].
func (r *Remote) Import(ctx context.Context, generation string, from Exported) error {
	return r.call(ctx, "Import", ImportArgs{generation, from, timeLeft(ctx)}, new(int))
}

// Trace implements [Host].
func (r *Remote) Trace(ctx context.Context, generation string) (out memtap.Trace, err error) {
	err = r.call(ctx, "Trace", generation, &out)
	return out, err
}

// Release implements [Host].
func (r *Remote) Release(generation string) { r.ended.Go(func() { r.tell("Release", generation) }) }

// Withdraw implements [Host].
func (r *Remote) Withdraw(layers []slice.ID) { r.ended.Go(func() { r.tell("Withdraw", layers) }) }

// Events implements [Host].
func (r *Remote) Events(ctx context.Context) (events []trace.Event, ahead time.Duration, err error) {
	err = r.call(ctx, "Events", 0, &events)
	ahead, _, _ = r.link.Clock()
	return events, ahead, err
}

// Usage implements [Host].
func (r *Remote) Usage(ctx context.Context) (out map[int]Usage, err error) {
	err = r.call(ctx, "Usage", 0, &out)
	return out, err
}

// Trip is how long a question to the host takes, 0 before one was answered.
func (r *Remote) Trip() time.Duration {
	_, trip, _ := r.link.Clock()
	return trip
}

// Counters implements [Host].
func (r *Remote) Counters(ctx context.Context) (out Counters, err error) {
	err = r.call(ctx, "Counters", 0, &out)
	return out, err
}

// timeLeft is what a context leaves for a call on another host.
func timeLeft(ctx context.Context) time.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return callLimit
	}
	return min(time.Until(end), callLimit)
}

// callLimit bounds a call on a host whose caller has set no limit.
const callLimit = 10 * time.Minute

var _ Host = (*Remote)(nil)
