package testcluster

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// A key is an SSH key in the two forms that OpenSSH keeps in files.
type key struct {
	private []byte
	public  []byte // one line
}

func newKey(comment string) (key, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return key{}, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return key{}, err
	}
	line, err := ssh.NewPublicKey(public)
	if err != nil {
		return key{}, err
	}
	return key{pem.EncodeToMemory(block), ssh.MarshalAuthorizedKey(line)}, nil
}

// createKeys makes all keys of a cluster: one that is each host's, and one that root has on all of them, who may log in
// from each to each with it.
func (c *Cluster) createKeys() error {
	var err error
	if c.rootKey, err = newKey("root of a test cluster"); err != nil {
		return fmt.Errorf("make SSH keys: %w", err)
	}
	c.hostKeys = make([]key, c.options.Hosts)
	for n := range c.hostKeys {
		if c.hostKeys[n], err = newKey(hostName(n)); err != nil {
			return fmt.Errorf("make SSH keys: %w", err)
		}
	}
	return nil
}

// keys fills the host's ~/.ssh, and a folder for its server. So "ssh host1" works on any host, without a question.
func (h *Host) keys() error {
	c := h.cluster
	var known bytes.Buffer
	for n, k := range c.hostKeys {
		fmt.Fprintf(&known, "%s,%v %s", hostName(n), hostAddress(n), k.public)
	}
	folder := filepath.Join(h.Home, ".ssh")
	config := fmt.Sprintf(`Host *
	User root
	IdentityFile %[1]s/id_ed25519
	IdentitiesOnly yes
	UserKnownHostsFile %[1]s/known_hosts
	GlobalKnownHostsFile none
	StrictHostKeyChecking yes
	BatchMode yes
`, folder)
	server := fmt.Sprintf(`ListenAddress %v
HostKey %s
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
AuthorizedKeysFile .ssh/authorized_keys
Subsystem sftp internal-sftp
`, h.Address, h.serverFile("host_key"))
	for file, content := range map[string][]byte{
		filepath.Join(folder, "id_ed25519"):      c.rootKey.private,
		filepath.Join(folder, "id_ed25519.pub"):  c.rootKey.public,
		filepath.Join(folder, "authorized_keys"): c.rootKey.public,
		filepath.Join(folder, "known_hosts"):     known.Bytes(),
		filepath.Join(folder, "config"):          []byte(config),
		h.serverFile("host_key"):                 c.hostKeys[h.Number].private,
		h.serverFile("config"):                   []byte(server),
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) serverFile(name string) string { return filepath.Join(h.dir, "sshd", name) }

// SSHConfig is the settings file of the host's SSH client, which names all keys that it needs. Programs in the host
// find it by themselves.
func (h *Host) SSHConfig() string { return filepath.Join(h.Home, ".ssh", "config") }

// SSHD starts OpenSSH's server in the host, on port 22 of its eth0, and returns when it listens. It runs as long as the
// host. Lines of more settings may be given, as "SetEnv NAME=VALUE": a session begins without the test's environment.
func (h *Host) SSHD(ctx context.Context, settings ...string) error {
	if err := h.sshd(ctx, settings); err != nil {
		log, _ := os.ReadFile(h.serverFile("log"))
		return fmt.Errorf("start sshd on %s: %w\n%s", h.Name, err, log)
	}
	return nil
}

func (h *Host) sshd(ctx context.Context, settings []string) error {
	// It starts itself again for each connection, and so wants to be called by its whole path.
	program, err := exec.LookPath("sshd")
	if err != nil {
		program = "/usr/sbin/sshd"
	}
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w: apt install openssh-server", err)
	}
	config, err := os.OpenFile(h.serverFile("config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, line := range settings {
		fmt.Fprintln(config, line)
	}
	if err := config.Close(); err != nil {
		return err
	}
	log, err := os.OpenFile(h.serverFile("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	const script = `mkdir -p -m 755 /run/sshd && exec "$1" -D -e -f "$2"`
	cmd := h.Command(context.WithoutCancel(ctx), "sh", "-c", script, "sh", program, h.serverFile("config"))
	cmd.Env, cmd.Stderr, cmd.Dir = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.Home}, log, "/"
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		err := h.Do(func() error {
			conn, err := net.DialTimeout("tcp4", netip.AddrPortFrom(h.Address, 22).String(), time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			return fmt.Errorf("wait for it to listen: %w (%w)", ctx.Err(), err)
		case err := <-ended:
			return fmt.Errorf("it has ended: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// SSHLog is what the host's server has said so far.
func (h *Host) SSHLog() string {
	log, err := os.ReadFile(h.serverFile("log"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(log))
}
