package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/guestport"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// socketPath is where processes of a VM call the VM fork API.
const socketPath = stateDir + "/sf.sock"

// identityLimit is how long a clone may take to become itself, hooks included.
const identityLimit = 2 * time.Minute

// agent is the guest's init after the boot. Only the goroutine that reads the
// control port touches it. Of all goroutines it is the one that a fork finds
// waiting, in the parent and in each clone; which of them this is, the next
// order tells.
type agent struct {
	control io.ReadWriter
	data    string // device of the port for sessions
	calls   *calls

	identity Identity
	port     *guestport.Shared // the data port, nil before the first session
	turn     *guestport.Turn   // the session's with it
	session  *clone
	frozen   bool
}

// serve says that the guest is up, and carries out orders until the port
// breaks.
func serve(controlPort, data string) (err error) {
	// Blocking, without Go's poller: the read returns in a process whose code
	// has to be translated anew, and every function less shortens the pause.
	control, err := guestport.Use(controlPort)
	if err != nil {
		return fmt.Errorf("open the way to the host: %w", err)
	}
	if group, err = newFreezer(); err != nil {
		return err
	}
	a := &agent{control: control, data: data}
	if a.calls, err = serveCalls(socketPath); err != nil {
		return err
	}
	if _, err := io.WriteString(control, ready); err != nil {
		return fmt.Errorf("tell the host that the guest is up: %w", err)
	}
	// The first checkpoint is taken here, and each later one in the same read.
	for {
		kind, payload, err := readOrder(control)
		if err != nil {
			return fmt.Errorf("wait for orders: %w", err)
		}
		failed := a.obey(kind, payload)
		if err := writeAnswer(control, failed); err != nil {
			return fmt.Errorf("answer the host: %w", err)
		}
		if failed != nil && (kind == orderIdentity || kind == orderBegin) {
			return failed // half a clone is no use to anybody
		}
	}
}

func (a *agent) obey(kind byte, payload []byte) error {
	switch kind {
	case orderFreeze:
		return a.freeze(payload)
	case orderThaw:
		return a.thaw(payload)
	case orderIdentity:
		return a.become(payload)
	case orderBegin:
		return a.begin()
	case orderMembers:
		return a.greetMembers(payload)
	}
	return fmt.Errorf("the agent knows no order %q", kind)
}

// freeze has the session stand still, in which the host has sent so many bytes, and then all processes.
func (a *agent) freeze(sent []byte) error {
	if a.turn != nil && len(sent) == 8 {
		if err := a.turn.Hold(binary.BigEndian.Uint64(sent), freezeLimit); err != nil {
			return err
		}
	}
	if err := group.freeze(context.Background()); err != nil {
		if a.turn != nil {
			a.turn.Release()
		}
		return err
	}
	a.frozen = true
	return nil
}

func (a *agent) thaw(clock []byte) error {
	if len(clock) == 8 {
		// The VM stood still; its processes' timers go by another clock, and
		// do not notice.
		now := unix.NsecToTimespec(int64(binary.BigEndian.Uint64(clock)))
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			return fmt.Errorf("set the clock: %w", err)
		}
	}
	if a.turn != nil {
		a.turn.Release()
	}
	if !a.frozen {
		return nil
	}
	a.frozen = false
	return group.thaw()
}

// become makes this VM the clone that the host says it is.
func (a *agent) become(payload []byte) error {
	id, err := ParseIdentity(payload)
	if err != nil {
		return err
	}
	a.identity = id
	if a.session != nil {
		// The session is the parent's.
		a.calls.pause()
		abandon()
		a.session.mux.Close()
		a.turn = nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), identityLimit)
	defer cancel()
	return assume(ctx, id)
}

// begin is for when the link is up: from here on processes run.
func (a *agent) begin() error {
	if err := shares.again(); err != nil {
		return err
	}
	if a.identity.Clone > 0 { // and not for a VM that is nobody's
		if err := runHooks(context.Background(), a.identity); err != nil {
			return err
		}
	}
	if a.port == nil {
		var err error
		if a.port, err = guestport.Share(a.data); err != nil {
			return fmt.Errorf("open the way to the host: %w", err)
		}
	}
	turn := a.port.Begin()
	if _, err := turn.Write(a.identity.Session); err != nil {
		return fmt.Errorf("begin a session with the host: %w", err)
	}
	session, err := newClone(turn)
	if err != nil {
		return err
	}
	a.turn, a.session = turn, session
	go session.serve()
	a.calls.become(a.identity, session.mux.Open)
	return a.thaw(nil)
}

// greetMembers makes those that have come known here.
func (a *agent) greetMembers(payload []byte) error {
	members, err := decodeMembers(payload)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), identityLimit)
	defer cancel()
	return errors.Join(network.AddNeighbours(ctx, members), addHosts(members))
}
