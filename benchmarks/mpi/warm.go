package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
)

// warmArgument makes this program what runs in the virtual machine that the part hydra starts.
const warmArgument = "in-virtual-machine"

// runWarm starts an SSH server, clones the machine with it, and launches onto the clones by both launchers in turns.
func runWarm(ctx context.Context, text string) error {
	var plan launchPlan
	if err := json.Unmarshal([]byte(text), &plan); err != nil {
		return fmt.Errorf("%s is for the part hydra, not for a user: %w", warmArgument, err)
	}
	if err := serveSSH(ctx, plan.SSHD); err != nil {
		return err
	}
	t, err := vmfork.RequestTicket(ctx, plan.Hosts)
	if err != nil {
		return err
	}
	if len(t.Clones) < plan.Hosts {
		return fmt.Errorf("%d of %d machines fit into this machine's memory", len(t.Clones), plan.Hosts)
	}
	id, err := vmfork.Clone(ctx, t)
	if err != nil {
		return err
	}
	if id > 0 {
		<-ctx.Done() // the machine is here to be logged in to, and ends with the parent
		return ctx.Err()
	}
	var names []string
	for _, c := range t.Clones {
		names = append(names, c.Name)
	}
	took, err := plan.launch(ctx, "mpirun-sf", names, func(ctx context.Context, argv ...string) *exec.Cmd {
		return exec.CommandContext(ctx, argv[0], argv[1:]...)
	})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(took); err != nil {
		return err
	}
	return vmfork.Kill(ctx, t)
}

// serveSSH starts OpenSSH's server. This machine's root has a key with which it may log in to this machine, and so to each
// of its clones.
func serveSSH(ctx context.Context, sshd string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "root of the machine that is measured")
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(home, ".ssh")
	line := ssh.MarshalAuthorizedKey(key)
	for path, content := range map[string][]byte{
		filepath.Join(dir, "id_ed25519"):      pem.EncodeToMemory(block),
		filepath.Join(dir, "authorized_keys"): line,
		// The same key is the server's: all machines are copies of one.
		filepath.Join(dir, "known_hosts"): append([]byte("* "), line...),
		filepath.Join(dir, "config"):      []byte("Host *\n\tIdentitiesOnly yes\n\tIdentityFile " + dir + "/id_ed25519\n\tStrictHostKeyChecking yes\n\tBatchMode yes\n"),
		filepath.Join(dir, "sshd_config"): fmt.Appendf(nil, "HostKey %s/id_ed25519\nAuthorizedKeysFile %s/authorized_keys\nPidFile none\nUsePAM no\nUseDNS no\nPrintMotd no\nPasswordAuthentication no\n", dir, dir),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	// As whom OpenSSH does what needs no rights, and where.
	passwd, err := os.OpenFile("/etc/passwd", os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = passwd.WriteString("sshd:x:74:65534::/run/sshd:/usr/sbin/nologin\n")
		passwd.Close()
	}
	if err == nil {
		err = os.MkdirAll("/run/sshd", 0o755)
	}
	if err != nil {
		return fmt.Errorf("prepare the SSH server: %w", err)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the SSH server: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(limit); ; {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:22", time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("start the SSH server: it has ended: %w: %s", err, said.String())
		case <-time.After(50 * time.Millisecond):
			if time.Now().After(end) {
				return fmt.Errorf("start the SSH server: it does not listen after %v: %w", limit, err)
			}
		}
	}
}
