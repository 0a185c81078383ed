package cluster

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
)

// Key is the secret of a cluster. Who has it can start daemons on its hosts.
type Key [32]byte

// String does not tell the key, for it may be printed by mistake.
func (Key) String() string { return "(the cluster's key)" }

// GoString does not tell it either.
func (k Key) GoString() string { return k.String() }

// What follows from the key, each for one purpose: none tells anything of the key or of the others.
const (
	identityService       = "mpirun-sf cluster service 1"
	identityMetrics       = "mpirun-sf cluster metrics 1"
	identityMetricsReader = "mpirun-sf cluster metrics reader 1"
)

// Identity is the one by which the service and those who call it know each
// other.
func (k Key) Identity() (*link.Identity, error) { return k.identity(identityService) }

// Metrics is the identity by which the service tells its metrics.
func (k Key) Metrics() (*link.Identity, error) { return k.identity(identityMetrics) }

// MetricsReader is the identity of who may read the metrics, and do nothing
// else.
func (k Key) MetricsReader() (*link.Identity, error) { return k.identity(identityMetricsReader) }

func (k Key) identity(purpose string) (*link.Identity, error) {
	seed, err := hkdf.Key(sha256.New, k[:], nil, purpose, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive an identity from the cluster's key: %w", err)
	}
	return link.IdentityOf(ed25519.NewKeyFromSeed(seed))
}

// keyPrefix begins the one line of a key's file.
const keyPrefix = "mpirun-sf-cluster-key-1 "

// MakeKey draws a key and writes it to a new file, which only its owner can
// read.
func MakeKey(path string) error {
	var k Key
	rand.Read(k[:]) // never fails: it ends the process instead
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already: a new key would shut out every host that has the old one; remove it first if that is meant", path)
	}
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	_, err = f.WriteString(keyPrefix + base64.RawURLEncoding.EncodeToString(k[:]) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("make a key: %w", err)
	}
	return nil
}

// ReadKey reads a key's file, which must be root's or this user's own, and
// nobody else's to read.
func ReadKey(path string) (k Key, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return k, fmt.Errorf("there is no key %s: make one with mpirun-sf sfld --make-key %s, and copy it to all hosts of the cluster", path, path)
	}
	if err != nil {
		return k, fmt.Errorf("read the cluster's key: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return k, fmt.Errorf("read the cluster's key: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return k, fmt.Errorf("%s is no file", path)
	case st.Mode&0o077 != 0:
		return k, fmt.Errorf("others than its owner can read %s: chmod 600 %s, and if somebody may have read it, make a new one", path, path)
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return k, fmt.Errorf("%s belongs to user %d: it must be root's (chown root %s)", path, st.Uid, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return k, fmt.Errorf("read the cluster's key: %w", err)
	}
	if k, err = parseKey(text); err != nil {
		return Key{}, fmt.Errorf("read the cluster's key: %s %w", path, err)
	}
	return k, nil
}

func parseKey(text []byte) (k Key, err error) {
	rest, ok := strings.CutPrefix(string(bytes.TrimSpace(text)), keyPrefix)
	if !ok {
		return k, errors.New("is no key of mpirun-sf's")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(raw) != len(k) {
		return k, errors.New("is damaged: copy it again")
	}
	return Key(raw), nil
}
