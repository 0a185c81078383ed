package openmpi

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// Secret is what an agent must know to be one of the job's.
type Secret struct {
	Name  string // of the abstract socket
	Token string
}

// SecretVariable is the environment variable with it.
const SecretVariable = "MPIRUN_SF_OMPI_AGENT"

// Value is the variable's value.
func (s Secret) Value() string { return s.Token + "@" + s.Name }

func (s Secret) admits(token string) bool {
	return subtle.ConstantTimeCompare([]byte(s.Token), []byte(token)) == 1
}

// parseSecret reads the variable's value.
func parseSecret(value string) (s Secret, err error) {
	var ok bool
	if s.Token, s.Name, ok = strings.Cut(value, "@"); !ok || s.Token == "" || s.Name == "" || strings.ContainsRune(value, 0) {
		return Secret{}, errors.New("this is started by Open MPI's launcher as its remote shell agent, not by hand: " + SecretVariable + " is missing or wrong")
	}
	return s, nil
}

// checkPeer tells whether the process at the other end may be an agent: it is
// root's, this process's user's, or the job's user's.
func checkPeer(conn *net.UnixConn, uid uint32) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if peer.Uid != 0 && peer.Uid != uint32(os.Geteuid()) && peer.Uid != uid {
		return fmt.Errorf("a process of user %d is none of the job's", peer.Uid)
	}
	return nil
}

// hello is an agent's first line.
type hello struct {
	Token   string      `json:"token"`
	Host    string      `json:"host"`
	Command commandLine `json:"command"`
}

// answer is the line that answers it. SSH follows, if there is no error.
type answer struct {
	Error   string `json:"error,omitempty"`
	Key     []byte `json:"key,omitempty"`      // private, in PEM, to show the clone
	HostKey string `json:"host_key,omitempty"` // public, that the clone will show
	Command string `json:"command,omitempty"`  // for the shell in the clone
}

// readHello reads an agent's first line.
func readHello(r io.Reader) (h hello, err error) {
	// The agent sends no more until it is answered.
	if err = readLine(bufio.NewReader(r), &h); err == nil && (h.Host == "" || len(h.Command) == 0) {
		err = errors.New("it names no host, or no command")
	}
	if err != nil {
		return hello{}, fmt.Errorf("read what an agent wants: %w", err)
	}
	return h, nil
}

// readLine reads one line of JSON; what follows it stays in r.
func readLine(r *bufio.Reader, v any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxCommand {
			return fmt.Errorf("a line is longer than %d bytes", maxCommand)
		}
		if err == nil {
			return json.Unmarshal(line, v)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

func writeLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// keys are those of one job: private ones in PEM, public ones as lines.
type keys struct {
	host, user             []byte
	hostPublic, userPublic string
}

func newKeys() (k keys, err error) {
	if k.host, k.hostPublic, err = newKey(); err != nil {
		return k, err
	}
	k.user, k.userPublic, err = newKey()
	return k, err
}

func newKey() (private []byte, public string, err error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, "mpirun-sf")
	if err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	shown, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	return pem.EncodeToMemory(block), string(ssh.MarshalAuthorizedKey(shown)), nil
}
