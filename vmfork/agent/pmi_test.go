package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi"
)

// speakPMI is what a rank's library says, in shell.
const speakPMI = `test "$PMI_FD" = 3 || exit
echo "cmd=init pmi_version=1 pmi_subversion=1" >&3; read -r answer <&3
echo "rank $PMI_RANK of $PMI_SIZE: $answer"`

// servePMI begins PMI on a session for two ranks there, and returns the
// launcher's server and how its side ended.
func servePMI(t *testing.T, s *Session, ranks ...int) (*pmi.Server, <-chan error) {
	t.Helper()
	g := pmi.Group{Size: len(ranks), KVSName: "kvs_test", UniverseSize: len(ranks)}
	server := pmi.NewServer(g, pmi.NewNames(), pmi.Events{})
	up, err := s.PMI(soon(t), PMI{Group: g, Ranks: ranks})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { served <- server.Serve(ctx, up, ranks) }()
	return server, served
}

func awaitServed(t *testing.T, served <-chan error) {
	t.Helper()
	select {
	case err := <-served:
		if err != nil {
			t.Errorf("PMI ended with %v", err)
		}
	case <-soon(t).Done():
		t.Error("waited 20 s for PMI to end")
	}
}

func TestPMI(t *testing.T) {
	s := dialAgent(t)
	// The second job begins with a proxy of its own.
	for range 2 {
		server, served := servePMI(t, s, 0, 1)
		for rank := range 2 {
			out := open(t, s, rank, 1)
			c := shell(rank, speakPMI)
			c.PMI = &PMIRank{"kvs_test", rank}
			p := start(t, s, c)
			if got := readAll(t, out); !strings.Contains(got, "of 2: cmd=response_to_init") || !strings.Contains(got, "rc=0") {
				t.Errorf("rank %d wrote %q", rank, got)
			}
			exit(t, p)
			state, err := server.WaitClosed(soon(t), rank)
			if err != nil || state != pmi.Initialized {
				t.Errorf("rank %d was left %v (%v), want %v", rank, state, err, pmi.Initialized)
			}
		}
		awaitServed(t, served)
	}
}

// A rank that never ran is one that has ended: its proxy does not wait for it.
func TestPMIOfRankThatDoesNotStart(t *testing.T) {
	s := dialAgent(t)
	server, served := servePMI(t, s, 0, 1)
	for rank := range 2 {
		if _, err := s.Start(soon(t), Command{ID: rank, Argv: []string{"/no/such/program"}, PMI: &PMIRank{"kvs_test", rank}}); err == nil {
			t.Fatal("a program that is not there started")
		}
		if state, err := server.WaitClosed(soon(t), rank); err != nil || state != pmi.NotStarted {
			t.Errorf("rank %d was left %v (%v), want %v", rank, state, err, pmi.NotStarted)
		}
	}
	awaitServed(t, served)
}

func TestPMIErrors(t *testing.T) {
	s := dialAgent(t)
	if _, err := s.PMI(soon(t), PMI{Group: pmi.Group{Size: -1}}); err == nil {
		t.Error("a group of -1 ranks was served")
	}
	servePMI(t, s, 0, 1)
	_, err := s.Start(soon(t), Command{ID: 2, Argv: []string{"/bin/true"}, PMI: &PMIRank{"kvs_test", 2}})
	if err == nil || !strings.Contains(err.Error(), "rank 2 has no PMI proxy") {
		t.Errorf("a rank of nobody's started: %v", err)
	}
}

// Requests have deadlines of the host's, whatever the clone does.
func TestDeadline(t *testing.T) {
	cmd, conn := startAgent(t)
	s, err := Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stopped(t, cmd.Process)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := s.Start(ctx, shell(0, "true")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a clone that stands still answered: %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the deadline of 100 ms took %v", took)
	}
}
