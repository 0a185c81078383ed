package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// agentLimit is for an agent's answers, which may have to ask its user.
const agentLimit = 60 * time.Second

// maxKeyFile bounds a private key's file, in bytes.
const maxKeyFile = 1 << 20

// keyring opens each file of a key once, for all hosts.
type keyring struct {
	account
	ask Asker

	mu    sync.Mutex
	files map[string]*keyFile
}

// keyFile is a private key in a file.
type keyFile struct {
	path   string
	public ssh.PublicKey
	err    error // why there is none

	mu     sync.Mutex
	text   []byte // with a passphrase, and not asked for yet
	signer ssh.Signer
	ask    Asker
}

func (r *keyring) open(path string) *keyFile {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.files[path]
	if k == nil {
		k = &keyFile{path: path, ask: r.ask}
		k.err = k.load(r.uid)
		r.files[path] = k
	}
	return k
}

func (k *keyFile) load(uid int) error {
	f, err := os.Open(k.path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return errors.New("it is not the file of a key")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == uid && info.Mode()&0o077 != 0 {
		return fmt.Errorf("others can read it, so it is not used, as with ssh: chmod 600 %s", k.path)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err == nil {
		k.signer, k.public = signer, signer.PublicKey()
		return nil
	}
	var locked *ssh.PassphraseMissingError
	if !errors.As(err, &locked) {
		return fmt.Errorf("it is no private key: %w", err)
	}
	k.text, k.public = text, locked.PublicKey
	if k.public == nil { // the old formats tell it in the other file only
		line, err := os.ReadFile(k.path + ".pub")
		if err != nil {
			return fmt.Errorf("it has a passphrase, and the public key is missing: %w", err)
		}
		if k.public, _, _, _, err = ssh.ParseAuthorizedKey(line); err != nil {
			return fmt.Errorf("read %s.pub: %w", k.path, err)
		}
	}
	return nil
}

// algorithms are those that a kind of key signs by, without SHA-1. A
// certificate's are those of its key.
func algorithms(key ssh.PublicKey) []string {
	kind := strings.TrimSuffix(key.Type(), "-cert-v01@openssh.com")
	if kind == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{kind}
}

// fileSigner asks for a key's passphrase when it has to sign, so that nobody is
// asked for that of a key that a host would not have.
type fileSigner struct {
	*keyFile
	ctx context.Context // of the login
}

var _ ssh.AlgorithmSigner = fileSigner{}

func (f fileSigner) PublicKey() ssh.PublicKey { return f.public }

func (f fileSigner) Sign(random io.Reader, data []byte) (*ssh.Signature, error) {
	return f.SignWithAlgorithm(random, data, "")
}

func (f fileSigner) SignWithAlgorithm(random io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	signer, err := f.unlock(f.ctx)
	if err != nil {
		return nil, err
	}
	if as, ok := signer.(ssh.AlgorithmSigner); ok {
		return as.SignWithAlgorithm(random, data, algorithm)
	}
	return signer.Sign(random, data)
}

// passphraseError says which key could not be had.
type passphraseError struct {
	path string
	err  error // nil: there was nobody to ask
}

func (e *passphraseError) Unwrap() error { return e.err }

func (e *passphraseError) Error() string {
	if e.err != nil {
		return fmt.Sprintf("the key %s has a passphrase: %v", e.path, e.err)
	}
	return fmt.Sprintf("the key %s has a passphrase, and there is no terminal to ask for it: give the key to an agent first, with ssh-add %s", e.path, e.path)
}

// passphraseTries is how often a passphrase is asked for.
const passphraseTries = 3

// unlock asks once for all that want it.
func (k *keyFile) unlock(ctx context.Context) (ssh.Signer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.signer != nil {
		return k.signer, nil
	}
	if k.ask == nil {
		return nil, &passphraseError{path: k.path}
	}
	for range passphraseTries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		passphrase, err := k.ask(ctx, fmt.Sprintf("Passphrase of %s: ", k.path), true)
		if err != nil {
			return nil, &passphraseError{k.path, err}
		}
		signer, err := ssh.ParsePrivateKeyWithPassphrase(k.text, []byte(passphrase))
		if err == nil {
			k.signer, k.text = signer, nil
			return signer, nil
		}
	}
	// The next host's connection is not to ask again.
	k.ask = func(context.Context, string, bool) (string, error) { return "", errors.New("it was wrong") }
	return nil, &passphraseError{k.path, fmt.Errorf("what was typed was wrong %d times", passphraseTries)}
}

// login is one try to log in: which keys there are, and what was wrong with
// others.
type login struct {
	*keyring
	s      *settings
	agent  net.Conn
	offer  []string // what was offered, for an error
	failed []error
}

func (l *login) close() {
	if l.agent != nil {
		l.agent.Close()
	}
}

// method is how to log in: by the keys of the agent that the configuration
// names, by the other keys of the agent, and by files, as ssh does. pause is
// called before somebody may be asked, and what it returns afterwards.
func (l *login) method(ctx context.Context, pause func() func()) ssh.AuthMethod {
	return ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
		var signers []ssh.Signer
		if l.s.noKeys {
			l.failed = append(l.failed, errors.New("ssh's configuration says PubkeyAuthentication no, and mpirun-sf knows no other way"))
			return nil, nil
		}
		files := l.openFiles()
		var wanted []ssh.PublicKey // that the configuration names, in its order
		for _, k := range files {
			wanted = append(wanted, k.public)
		}
		for _, path := range l.s.keyFiles { // of keys that only the agent has
			if line, err := os.ReadFile(strings.TrimSuffix(path, ".pub") + ".pub"); err == nil {
				if key, _, _, _, err := ssh.ParseAuthorizedKey(line); err == nil && !contains(wanted, key) {
					wanted = append(wanted, key)
				}
			}
		}
		fromAgent := l.askAgent(pause)
		var others []ssh.Signer
		inAgent := map[string]bool{}
		for _, signer := range fromAgent {
			inAgent[string(signer.PublicKey().Marshal())] = true
		}
		for _, key := range wanted {
			for _, signer := range fromAgent {
				if same(signer.PublicKey(), key) {
					signers = append(signers, signer)
				}
			}
		}
		for _, signer := range fromAgent {
			if !contains(wanted, signer.PublicKey()) {
				others = append(others, signer)
			}
		}
		if !l.s.onlyThose {
			signers = append(signers, others...)
		}
		if n := len(signers); n > 0 {
			l.offer = append(l.offer, fmt.Sprintf("%d of the agent", n))
		}
		for _, k := range files {
			if inAgent[string(k.public.Marshal())] {
				continue
			}
			signers = append(signers, &pausing{fileSigner{k, ctx}, pause})
			l.offer = append(l.offer, k.path)
		}
		return append(l.certificates(signers), signers...), nil
	})
}

func contains(keys []ssh.PublicKey, key ssh.PublicKey) bool {
	return slices.ContainsFunc(keys, func(one ssh.PublicKey) bool { return same(one, key) })
}

// openFiles are the files that have a key.
func (l *login) openFiles() (files []*keyFile) {
	for _, path := range l.s.keyFiles {
		if strings.HasSuffix(path, ".pub") {
			continue // names a key of the agent
		}
		switch k := l.open(path); {
		case k.err == nil && l.ask == nil && k.text != nil:
			// To offer it would end the login, also if the next one is good.
			l.failed = append(l.failed, &passphraseError{path: path})
		case k.err == nil:
			files = append(files, k)
		case errors.Is(k.err, fs.ErrNotExist):
			if _, err := os.Stat(path + ".pub"); l.s.explicitFiles && err != nil {
				l.failed = append(l.failed, fmt.Errorf("%s does not exist", path))
			}
		default:
			l.failed = append(l.failed, fmt.Errorf("%s: %w", path, k.err))
		}
	}
	return files
}

// askAgent gets the agent's keys; one that does not answer is as none.
func (l *login) askAgent(pause func() func()) []ssh.Signer {
	if l.s.agent == "" {
		return nil
	}
	conn, err := net.DialTimeout("unix", l.s.agent, agentLimit)
	if err != nil {
		l.failed = append(l.failed, fmt.Errorf("the agent at %s: %w", l.s.agent, err))
		return nil
	}
	l.agent = conn
	conn.SetDeadline(time.Now().Add(agentLimit))
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		l.failed = append(l.failed, fmt.Errorf("the agent at %s: %w", l.s.agent, err))
		return nil
	}
	for i, signer := range signers {
		signers[i] = &pausing{signer, pause}
	}
	return signers
}

// certificates are those that the configuration names, or that lie beside a
// key's file, of keys that can sign.
func (l *login) certificates(signers []ssh.Signer) (all []ssh.Signer) {
	paths := slices.Clone(l.s.certificates)
	for _, path := range l.s.keyFiles {
		paths = append(paths, strings.TrimSuffix(path, ".pub")+"-cert.pub")
	}
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		key, _, _, _, err := ssh.ParseAuthorizedKey(line)
		certificate, ok := key.(*ssh.Certificate)
		if err != nil || !ok {
			l.failed = append(l.failed, fmt.Errorf("%s is no certificate", path))
			continue
		}
		for _, signer := range signers {
			if same(signer.PublicKey(), certificate.Key) {
				if with, err := ssh.NewCertSigner(certificate, signer); err == nil {
					all = append(all, with)
					l.offer = append(l.offer, path)
				}
			}
		}
	}
	return all
}

// pausing stops the clock of a login while somebody may be asked: for a
// passphrase, or by an agent to confirm or to touch a key.
type pausing struct {
	ssh.Signer
	pause func() func()
}

var _ ssh.MultiAlgorithmSigner = (*pausing)(nil)

func (p *pausing) Algorithms() []string {
	if as, ok := p.Signer.(ssh.MultiAlgorithmSigner); ok {
		return as.Algorithms()
	}
	return algorithms(p.PublicKey())
}

func (p *pausing) Sign(random io.Reader, data []byte) (*ssh.Signature, error) {
	return p.SignWithAlgorithm(random, data, "")
}

func (p *pausing) SignWithAlgorithm(random io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	defer p.pause()()
	if as, ok := p.Signer.(ssh.AlgorithmSigner); ok {
		return as.SignWithAlgorithm(random, data, algorithm)
	}
	return p.Signer.Sign(random, data)
}
