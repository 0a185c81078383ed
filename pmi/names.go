package pmi

import (
	"errors"
	"strings"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// Limits of a name service, in bytes.
const (
	maxService   = 512     // a service's name; with its port it has to fit the line of a client
	maxNameBytes = 1 << 20 // all names and ports of a job
)

// Names is a name service: what MPI_Publish_name and MPI_Lookup_name ask. The groups of a job share one, given to each
// NewServer, so that a spawned group finds what its spawner has published. A name stays until it is unpublished, even when
// its publisher has ended, as with other launchers. Make one with NewNames; it may be used by several goroutines.
type Names struct {
	mu    sync.Mutex
	ports map[string]string
	bytes int
}

// NewNames makes a name service in which nothing is published.
func NewNames() *Names { return &Names{ports: map[string]string{}} }

// The reasons for which a name service refuses, in the words of other launchers.
var (
	errPublished    = errors.New("key_already_present")
	errNotPublished = errors.New("service_not_found")
	errNamesFull    = errors.New("too_many_names_published")
)

func (n *Names) publish(service, port string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.ports[service]; ok {
		return errPublished
	}
	cost := len(service) + len(port) + pairOverhead
	if n.bytes+cost > maxNameBytes {
		return errNamesFull
	}
	n.bytes += cost
	n.ports[service] = port
	return nil
}

func (n *Names) unpublish(service string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	port, ok := n.ports[service]
	if !ok {
		return errNotPublished
	}
	n.bytes -= len(service) + len(port) + pairOverhead
	delete(n.ports, service)
	return nil
}

func (n *Names) lookup(service string) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if port, ok := n.ports[service]; ok {
		return port, nil
	}
	return "", errNotPublished
}

// checkService checks the name of a service, which may have spaces in it.
func checkService(service string) error {
	if service == "" || len(service) > maxService || strings.ContainsAny(service, "\n\x00") {
		return errors.New("bad_service_name")
	}
	return nil
}

// checkPort checks a port, which is one word: clients read no further.
func checkPort(port string) error {
	if port == "" || len(port) > maxStored || !hearsay.IsToken(port) {
		return errors.New("bad_port")
	}
	return nil
}
