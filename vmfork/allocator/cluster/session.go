package cluster

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
)

// session is one caller's link, and the daemon that it has started.
type session struct {
	link    *link.Link
	control net.Conn
	stdio   net.Conn
	in      lines // of control

	sending sync.Mutex // orders events
}

func (s *session) send(e event) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return send(s.control, e)
}

// session serves one link from its beginning to its end.
func (s *Service) session(l *link.Link) {
	defer l.Close()
	one := &session{link: l}
	log := s.Log.With().Stringer("from", l.RemoteAddr()).Logger()
	args, err := one.request()
	if err != nil {
		s.failed.Add(1)
		log.Warn().Err(err).Msg("a launcher did not say what it wants")
		return
	}
	if err := s.admit(one); err != nil {
		s.failed.Add(1)
		log.Warn().Err(err).Msg("refused a job")
		one.refuse(err)
		return
	}
	leave := sync.OnceFunc(func() { s.leave(one) })
	defer leave()
	// The caller first learns that it was started.
	told := make(chan struct{})
	tell := sync.OnceFunc(func() { close(told) })
	defer tell()
	p, pid, err := s.start(args, func(line string) {
		<-told
		log.Info().Str("line", line).Msg("a job's daemon says")
		one.send(event{Stderr: line})
	})
	if err != nil {
		s.failed.Add(1)
		log.Error().Err(err).Msg("a job's daemon could not be started")
		one.refuse(err)
		return
	}
	s.started.Add(1)
	begin := time.Now()
	log.Info().Int("pid", pid).Msg("started a job's daemon")
	how := one.run(p, pid, tell)
	log.Info().Int("pid", pid).Stringer("after", time.Since(begin).Round(time.Millisecond)).Str("how", how).Msg("a job's daemon has ended")
	leave()
	select { // the caller has it all when it closes the link
	case <-l.Done():
	case <-time.After(requestLimit):
	}
}

// refuse tells the caller why, and waits until it has read that and is gone.
func (s *session) refuse(why error) {
	if s.send(event{Refused: why.Error()}) == nil {
		s.control.SetReadDeadline(time.Now().Add(requestLimit))
		io.Copy(io.Discard, s.control)
	}
}

// request takes the two streams and reads the first message.
func (s *session) request() (args []string, err error) {
	limit := time.AfterFunc(requestLimit, func() { s.link.Close() })
	defer limit.Stop()
	for s.control == nil || s.stdio == nil {
		kind, conn, err := s.link.Accept()
		switch {
		case err != nil:
			return nil, err
		case kind == kindControl && s.control == nil:
			s.control = conn
		case kind == kindStdio && s.stdio == nil:
			s.stdio = conn
		default:
			return nil, fmt.Errorf("it opened a stream of kind %d", kind)
		}
	}
	var r request
	s.in = newLines(s.control)
	if err := s.in.receive(&r); err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	return r.Args, nil
}

// run connects the daemon with its caller, and returns when it has ended.
func (s *session) run(p allocator.Process, pid int, told func()) (how string) {
	err := s.send(event{Started: pid})
	told()
	if err != nil {
		p.Close()
		return err.Error()
	}
	go func() {
		// It ends when the link does.
		io.Copy(p, s.stdio)
	}()
	var said sync.WaitGroup
	said.Go(func() {
		io.Copy(s.stdio, p)
		s.stdio.(interface{ CloseWrite() error }).CloseWrite()
	})
	go func() {
		for {
			var o order
			if err := s.in.receive(&o); err != nil || o.Close {
				p.Close()
				return
			}
		}
	}()
	err = p.Wait()
	s.send(event{Ended: verdict(err)})
	// The rest of what it said is on its way until the caller takes it, or is gone.
	said.Wait()
	p.Close()
	if err != nil {
		return err.Error()
	}
	return "status 0"
}

func verdict(err error) *ended {
	var exit *allocator.ExitError
	switch {
	case err == nil:
		return &ended{}
	case errors.As(err, &exit):
		return &ended{Status: exit.Status, Signal: exit.Signal}
	}
	return &ended{Lost: err.Error()}
}
