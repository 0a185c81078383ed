package ssh

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// maxKnown bounds a file of known hosts, in bytes.
const maxKnown = 64 << 20

// knownKey is a line of known_hosts.
type knownKey struct {
	file   string
	line   int
	marker string // cert-authority, revoked or nothing
	names  []string
	key    ssh.PublicKey
}

func (k knownKey) String() string { return fmt.Sprintf("%s:%d", k.file, k.line) }

// knownKeys are those of some files.
type knownKeys []knownKey

// readKnown reads what is there of files. Lines that cannot be read are passed
// over, as ssh does: they may be of a kind of key that came later.
func readKnown(files []string) (all knownKeys) {
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(f, maxKnown))
		f.Close()
		if err == nil {
			all = append(all, parseKnown(file, text)...)
		}
	}
	return all
}

func parseKnown(file string, text []byte) (all knownKeys) {
	for i, line := range bytes.Split(text, []byte("\n")) {
		marker, names, key, _, _, err := ssh.ParseKnownHosts(line)
		if err == nil && (marker == "" || marker == "cert-authority" || marker == "revoked") {
			all = append(all, knownKey{file, i + 1, marker, names, key})
		}
	}
	return all
}

// of are the lines for a name, which has its port if that is not 22.
func (all knownKeys) of(name string) (those knownKeys) {
	for _, k := range all {
		if matchNames(k.names, name) {
			those = append(those, k)
		}
	}
	return those
}

func matchNames(names []string, name string) bool {
	if len(names) == 1 && strings.HasPrefix(names[0], "|1|") {
		salt, hash, _ := strings.Cut(names[0][len("|1|"):], "|")
		key, err1 := base64.StdEncoding.DecodeString(salt)
		want, err2 := base64.StdEncoding.DecodeString(hash)
		if err1 != nil || err2 != nil {
			return false
		}
		mac := hmac.New(sha1.New, key)
		mac.Write([]byte(name))
		return hmac.Equal(mac.Sum(nil), want)
	}
	return matchList(names, name)
}

// known is what the files say about a host, read at each connection: another
// one may have added to them.
type known struct {
	name string // as in the files
	all  knownKeys
	keys knownKeys // of the host
}

func (s *settings) known() *known {
	k := &known{all: readKnown(slices.Concat(s.knownFiles, s.globalOnes))}
	names := []string{knownhosts.Normalize(s.address()), s.host}
	if s.alias != "" {
		names = []string{s.alias}
	}
	k.name = names[0]
	for _, name := range names { // with its port, or else without
		if k.keys = k.all.of(name); len(k.keys) > 0 {
			break
		}
	}
	return k
}

// prefer orders algorithms so that those come first of which the host's key is
// known: a server with several keys shows the one that was asked for first, and
// a good host would be taken for another.
func (k *known) prefer(algorithms []string) []string {
	fits := func(algorithm string) bool {
		for _, one := range k.keys {
			switch plain := certified[algorithm]; {
			case one.marker == "revoked":
			case one.marker == "cert-authority":
				if plain != "" {
					return true
				}
			case plain == "" && keyType(algorithm) == one.key.Type():
				return true
			}
		}
		return false
	}
	var first, then []string
	for _, a := range algorithms {
		if fits(a) {
			first = append(first, a)
		} else {
			then = append(then, a)
		}
	}
	return append(first, then...)
}

// certified are the algorithms that show a certificate of the key.
var certified = func() map[string]string {
	m := map[string]string{}
	for _, a := range slices.Concat(ssh.SupportedAlgorithms().HostKeys, ssh.InsecureAlgorithms().HostKeys) {
		if plain, ok := strings.CutSuffix(a, "-cert-v01@openssh.com"); ok {
			m[a] = plain
		}
	}
	return m
}()

// keyType is what the key of an algorithm is called.
func keyType(algorithm string) string {
	switch algorithm {
	case ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512:
		return ssh.KeyAlgoRSA
	}
	return algorithm
}

// verdict is what the known hosts say of a key that a host showed.
type verdict int

const (
	keyKnown   verdict = iota
	keyUnknown         // nothing is known of the host
	keyChanged         // the host had another
	keyRevoked
)

// judge says where it is known from.
func (k *known) judge(s *settings, key ssh.PublicKey) (verdict, knownKey, error) {
	plain := key
	certificate, isCertificate := key.(*ssh.Certificate)
	if isCertificate {
		plain = certificate.Key
	}
	for _, one := range k.all {
		if one.marker == "revoked" && (same(one.key, plain) || isCertificate && same(one.key, certificate.SignatureKey)) && (matchNames(one.names, k.name) || matchNames(one.names, s.host)) {
			return keyRevoked, one, nil
		}
	}
	if isCertificate {
		for _, one := range k.keys {
			if one.marker != "cert-authority" || !same(one.key, certificate.SignatureKey) {
				continue
			}
			name := s.host
			if s.alias != "" {
				name = s.alias
			}
			check := ssh.CertChecker{IsHostAuthority: func(ssh.PublicKey, string) bool { return true }}
			if err := check.CheckHostKey(net.JoinHostPort(name, s.port), nil, certificate); err != nil {
				return keyChanged, one, fmt.Errorf("its certificate, of the authority in %v, is not valid: %w", one, err)
			}
			return keyKnown, one, nil
		}
	}
	found, of := keyUnknown, knownKey{}
	for _, one := range k.keys {
		switch {
		case one.marker != "":
		case same(one.key, plain):
			return keyKnown, one, nil
		case found == keyUnknown || one.key.Type() == plain.Type():
			found, of = keyChanged, one
		}
	}
	return found, of, nil
}

func same(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// add writes a line for a key to the user's file.
func (k *known) add(s *settings, a account, key ssh.PublicKey) error {
	if certificate, ok := key.(*ssh.Certificate); ok {
		key = certificate.Key
	}
	if len(s.knownFiles) == 0 {
		return nil
	}
	name := k.name
	if s.hash {
		name = knownhosts.HashHostname(name)
	}
	line := name + " " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + "\n"
	path := s.knownFiles[0]
	if err := a.makeFolder(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = a.own(f)
	} else {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	// The last line may have no end.
	last := make([]byte, 1)
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
		if _, err := f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			line = "\n" + line
		}
	}
	_, err = f.WriteString(line)
	return err
}

// makeFolder makes ~/.ssh where it is not there.
func (a account) makeFolder(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		if os.IsExist(err) {
			return nil
		}
		return err
	}
	if os.Geteuid() != a.uid {
		return os.Lchown(path, a.uid, a.gid)
	}
	return nil
}

// own gives a new file to the user.
func (a account) own(f *os.File) error {
	if os.Geteuid() != a.uid {
		return f.Chown(a.uid, a.gid)
	}
	return nil
}
