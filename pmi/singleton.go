package pmi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// Singleton is what a launcher does that a running process has started as "mpiexec -pmi_args PORT INTERFACE KEY PID": a
// program that was started without a launcher has come to a call that needs one, such as MPI_Comm_spawn (MPICH's singleton
// init). It connects to PORT on this machine, where the process waits, agrees with it that the two speak PMI-1, and serves
// it as the only rank of s's group, until it closes the connection. The process keeps its standard streams.
//
// The rank's end is reported by s's Events as any other's; the groups that it spawns may outlive it.
func Singleton(ctx context.Context, port string, s *Server) error {
	var d net.Dialer
	dialing, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	conn, err := d.DialContext(dialing, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return fmt.Errorf("connect to the process that asked for a launcher: %w", err)
	}
	return s.serveSingleton(ctx, conn)
}

// serveSingleton is Singleton on the process's connection.
func (s *Server) serveSingleton(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	if s.group.Size != 1 {
		return fmt.Errorf("serve a singleton as a group of %d ranks: must be 1", s.group.Size)
	}
	l := newLink(conn)
	if err := l.agree(ctx, conn, s.group.KVSName); err != nil {
		return fmt.Errorf("agree with the process that asked for a launcher: %w", err)
	}
	// The same two halves as with a clone, in one process.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	launcher, agent := net.Pipe()
	proxy := NewProxy(s.group, agent, []int{0})
	ended := make(chan error, 2)
	go func() { ended <- s.Serve(ctx, launcher, []int{0}) }()
	go func() { ended <- proxy.Run(ctx) }()
	err := proxy.serve(ctx, 0, l)
	return errors.Join(err, <-ended, <-ended)
}

// agree is the handshake: the launcher's singinit, the process's, and what the launcher makes of it.
func (l *link) agree(ctx context.Context, conn net.Conn, kvsName string) error {
	stop := context.AfterFunc(ctx, func() { interrupt(conn) })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(greetTime))
	l.line("cmd=singinit authtype=none")
	q, err := l.next()
	if err == io.EOF {
		err = errors.New("it closed the connection")
	}
	if err != nil {
		return err
	}
	if q.cmd != "singinit" || q.packet {
		return fmt.Errorf("it sent %s instead of singinit", hearsay.Clip(q.cmd))
	}
	if version, err := q.number("pmi_version"); err != nil || version != 1 {
		l.line("cmd=singinit_info versionok=no stdio=no kvsname=%s", kvsName)
		return fmt.Errorf("it speaks another version of PMI than 1")
	}
	l.line("cmd=singinit_info versionok=yes stdio=no kvsname=%s", kvsName)
	_ = conn.SetDeadline(time.Time{})
	return nil
}
