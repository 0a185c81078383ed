package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
)

// version of the protocol between host and agent. The agent in a checkpoint
// is the program that made it, so a mismatch means a stale checkpoint.
const version = 2

// ready is what the agent writes when the guest is up, before it waits to
// become a clone.
var ready = fmt.Sprintf("mpirun-sf agent %d ready\n", version)

// maxLine bounds a line of JSON in either direction: a request with a large
// environment, or an identity with thousands of members.
const maxLine = 4 << 20

// User is whom ranks run as, the user that started the job.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Identity is all that tells one clone from another. It is a secret: Seed is
// the clone's randomness.
type Identity struct {
	Clone     int    // 1…m, its id in the ticket; 0 is a VM that is nobody's clone
	Ticket    string // the ticket's id
	Member    int    // its number on the private network
	Name      string // its host name
	Host      string // the machine that carries it
	VCPUs     int    // to be online; 0 leaves them as they are
	Network   network.GuestConfig
	Seed      []byte    // 64 random bytes for the kernel's generator
	Time      time.Time // the host's clock
	BootID    string
	MachineID string
	// Session is what the agent writes first on the data port: before it lies
	// what the VM that was cloned had still to say.
	Session []byte
	Fork    Fork
}

// Fork says which call made this clone.
type Fork struct {
	Call       string // as forwarded with the call that asked for it; "" when no process of this VM did
	Checkpoint string // the checkpoint that it was made of, "" for a direct clone
}

// answer begins every stream's reply.
type answer struct {
	Error string `json:"error,omitempty"`
}

func (a answer) err() error {
	if a.Error == "" {
		return nil
	}
	return errors.New(a.Error)
}

// request is the first line of a stream. Exactly one field is set.
type request struct {
	Mount *share.Mounting `json:"mount,omitempty"`
	Place *Place          `json:"place,omitempty"`
	PMI   *PMI            `json:"pmi,omitempty"`
	Run   *Command        `json:"run,omitempty"`
	Stdio *Stdio          `json:"stdio,omitempty"`
	SSH   *SSH            `json:"ssh,omitempty"`
}

// Place takes an executable of a mounted folder into the clone's memory and
// makes it appear at a path, the same one or another. Linux reads what it maps
// over 9P page by page; this way it is read in one go.
type Place struct {
	From string `json:"from"`
	At   string `json:"at"`
}

// PMI asks for a proxy for the clone's ranks of a group; the stream then carries
// its upstream.
type PMI struct {
	Group pmi.Group `json:"group"`
	Ranks []int     `json:"ranks"` // the clone's, in order
}

// PMIRank says which rank of which group a process is.
type PMIRank struct {
	Group string `json:"group"` // its KVS name
	Rank  int    `json:"rank"`
}

// Command starts one process. Its standard streams are streams of their own,
// opened before by [Stdio] requests with the same ID. After the answer the
// host may send [control] lines; the agent sends one [Exit].
type Command struct {
	ID   int      `json:"id"` // unique in the clone
	Argv []string `json:"argv"`
	Path string   `json:"path,omitempty"` // of the program, if that is not Argv[0]
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
	User User     `json:"user"`
	PMI  *PMIRank `json:"pmi,omitempty"` // give it a PMI_FD of a proxy of the clone's
	// Progress preloads [guest.Progress].
	Progress bool `json:"progress,omitempty"`
	TTY      *TTY `json:"tty,omitempty"` // give it a terminal
	// Own says that User is not looked at, and the process runs as the agent does.
	Own  bool  `json:"own,omitempty"`
	Bind *Bind `json:"bind,omitempty"` // to processors
	// PMIx says that Argv is not looked at, and what runs is the PMIx helper, which
	// the agent has: see package pmix.
	PMIx bool `json:"pmix,omitempty"`
}

// Stdio is one standard stream (0, 1 or 2) of a process to come. A process
// without a stream 0 reads /dev/null.
type Stdio struct {
	ID int `json:"id"`
	FD int `json:"fd"`
}

// control is a line to a running process's stream.
type control struct {
	Signal int   `json:"signal,omitempty"` // sent to the process group
	Resize *Size `json:"resize,omitempty"` // of its terminal
}

// Exit is how a process ended: by Status, or by Signal when that is not 0.
type Exit struct {
	Status int    `json:"status"`
	Signal int    `json:"signal,omitempty"`
	Core   bool   `json:"core,omitempty"`
	PID    int    `json:"pid,omitempty"`   // what it was, where it ran
	Error  string `json:"error,omitempty"` // it was lost rather than ended
}

// readLine reads one line of JSON into v, byte-exact: what follows the line
// stays in r.
func readLine(r *bufio.Reader, v any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return fmt.Errorf("read a message: longer than %d bytes", maxLine)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("read a message: %w", err)
	}
	return nil
}

func writeLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}
