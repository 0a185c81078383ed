package link

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Bounds of what a line may say.
const (
	maxAllowed   = 4096
	maxAddresses = 32
	maxLacks     = 64
	maxText      = 1024 // bytes, of each text
	maxMemory    = 1 << 50
	maxCPUs      = 1 << 16
)

// Welcome is what the launcher writes to a daemon that was started for it. Nothing in it is a secret: the stream may pass
// through resource managers and shells.
type Welcome struct {
	Version    string           `json:"-"`                    // of the launcher's program
	Job        string           `json:"job"`                  // the job's id
	Host       string           `json:"host"`                 // what the allocator calls the daemon's host
	Hypervisor string           `json:"hypervisor,omitempty"` // the kind that machines are to run on, "" for what is best there
	Allow      []Fingerprint    `json:"allow"`                // who may connect: the head
	Head       []netip.AddrPort `json:"head"`                 // where the head may be reached, best first; tells the daemon which network to use
}

// Hello is what the daemon answers.
type Hello struct {
	Version     string           `json:"-"`         // of the daemon's program
	Host        string           `json:"host"`      // its host's own name
	Addresses   []netip.AddrPort `json:"addresses"` // where it listens, best first; see [Addresses]
	Fingerprint Fingerprint      `json:"fingerprint"`

	CPUs        int   `json:"cpus"`
	MemoryFree  int64 `json:"memory_free"` // bytes
	MemoryTotal int64 `json:"memory_total"`

	Hypervisor        string `json:"hypervisor"`         // "qemu"; "" if there is none
	HypervisorVersion string `json:"hypervisor_version"` // for people: "QEMU 7.2.22"
	Accelerator       string `json:"accelerator"`        // "kvm" or "tcg"
	AcceleratorReason string `json:"accelerator_reason"` // why not KVM; "" if KVM

	// Lacks is everything that the host would need and has not, each with what to do about it. A daemon whose host lacks
	// something says hello, too.
	Lacks []string `json:"lacks"`
}

func (w *Welcome) check() error {
	switch {
	case w.Job == "" || len(w.Allow) == 0:
		return fmt.Errorf("it names no job, or nobody who may connect")
	case len(w.Allow) > maxAllowed:
		return fmt.Errorf("%d keys are too many", len(w.Allow))
	}
	if err := checkAddresses(w.Head); err != nil {
		return err
	}
	return checkTexts(w.Version, w.Job, w.Host, w.Hypervisor)
}

func (h *Hello) check() error {
	switch {
	case h.Host == "":
		return fmt.Errorf("it names no host")
	case len(h.Addresses) == 0 && len(h.Lacks) == 0:
		return fmt.Errorf("it names no address where the daemon listens")
	case h.CPUs < 0 || h.CPUs > maxCPUs:
		return fmt.Errorf("%d CPUs are not a host's", h.CPUs)
	case h.MemoryFree < 0 || h.MemoryTotal < 0 || h.MemoryFree > maxMemory || h.MemoryTotal > maxMemory:
		return fmt.Errorf("%d bytes of memory, %d free, are not a host's", h.MemoryTotal, h.MemoryFree)
	case len(h.Lacks) > maxLacks:
		return fmt.Errorf("it lacks %d things", len(h.Lacks))
	}
	if err := checkAddresses(h.Addresses); err != nil {
		return err
	}
	return checkTexts(append([]string{h.Version, h.Host, h.Hypervisor, h.HypervisorVersion, h.Accelerator, h.AcceleratorReason}, h.Lacks...)...)
}

func checkAddresses(all []netip.AddrPort) error {
	if len(all) > maxAddresses {
		return fmt.Errorf("%d addresses are too many", len(all))
	}
	for _, a := range all {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
			return fmt.Errorf("%q is no address where a daemon could be reached", a)
		}
	}
	return nil
}

// checkTexts refuses what could do something to a terminal.
func checkTexts(all ...string) error {
	for _, s := range all {
		if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
			return fmt.Errorf("%.40q is too long, or not plain text", s)
		}
	}
	return nil
}

// WriteWelcome begins the conversation, on the launcher's side.
func WriteWelcome(w io.Writer, m Welcome) error {
	if err := m.check(); err != nil {
		return fmt.Errorf("welcome the daemon: %w", err)
	}
	if err := writeLine(w, "WELCOME", m.Version, m); err != nil {
		return fmt.Errorf("welcome the daemon: %w", err)
	}
	return nil
}

// ReadWelcome reads it, on the daemon's side.
func ReadWelcome(ctx context.Context, r io.Reader) (m Welcome, err error) {
	m.Version, err = readLine(ctx, r, "WELCOME", "the launcher", &m)
	if err == nil {
		if bad := m.check(); bad != nil {
			err = fmt.Errorf("the launcher's welcome is none: %w", bad)
		}
	}
	if err != nil {
		return Welcome{}, err
	}
	return m, nil
}

// WriteHello answers.
func WriteHello(w io.Writer, m Hello) error {
	if err := m.check(); err != nil {
		return fmt.Errorf("say hello to the launcher: %w", err)
	}
	if err := writeLine(w, "HELLO", m.Version, m); err != nil {
		return fmt.Errorf("say hello to the launcher: %w", err)
	}
	return nil
}

// ReadHello reads the answer from the daemon of a host. Lines before it that are no daemon's, as login scripts print them,
// are skipped, and are in the error when there is no answer. When ctx ends the read is left behind: close the stream.
func ReadHello(ctx context.Context, r io.Reader, host string) (m Hello, err error) {
	m.Version, err = readLine(ctx, r, "HELLO", "the daemon on host "+host, &m)
	if err == nil {
		if bad := m.check(); bad != nil {
			err = fmt.Errorf("the hello of the daemon on host %s is none: %w", host, bad)
		}
	}
	if err != nil {
		return Hello{}, err
	}
	return m, nil
}
