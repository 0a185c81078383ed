package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/crypto/ssh"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// A machine has an SSH server, which is its agent, and no port for it: ssh
// comes through the launcher. Both keys are made for this one machine, and are
// gone with its folder:
//
//	host_key     the server's, handed to the agent with every connection
//	id           the only one that is let in
//	known_hosts  the server's public one, so that nobody has to trust it blindly
//	ssh_config   ssh -F this NAME

func (v vmName) file(name string) string { return filepath.Join(v.folder(), name) }

// writeKeys makes a new machine's keys.
func (v vmName) writeKeys() error {
	hostKey, hostPublic, err := newSSHKey()
	if err != nil {
		return fmt.Errorf("make the machine's keys: %w", err)
	}
	id, public, err := newSSHKey()
	if err != nil {
		return fmt.Errorf("make the machine's keys: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("make the machine's keys: %w", err)
	}
	config := fmt.Sprintf(`Host *
	User root
	HostKeyAlias %s
	IdentityFile %s
	IdentitiesOnly yes
	UserKnownHostsFile %s
	StrictHostKeyChecking yes
	ForwardX11 no
	ProxyCommand "%s" vm connect %s/%%n
`, v.name, v.file("id"), v.file("known_hosts"), self, v.name)
	for name, content := range map[string][]byte{
		"host_key": hostKey, "id": id, "id.pub": public,
		"known_hosts": append([]byte(v.name+" "), hostPublic...),
		"ssh_config":  []byte(config),
	} {
		if err := os.WriteFile(v.file(name), content, 0o600); err != nil {
			return fmt.Errorf("write the machine's keys: %w", err)
		}
	}
	return nil
}

// newSSHKey is a private key in PEM, and its public key as a line.
func newSSHKey() (private, public []byte, err error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "mpirun-sf")
	if err != nil {
		return nil, nil, err
	}
	shown, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(block), ssh.MarshalAuthorizedKey(shown), nil
}

// vmSSH runs ssh, with the machine's own configuration.
func vmSSH(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) == 0 {
		return errors.New("vm ssh: which machine? mpirun-sf vm ls shows them")
	}
	vm, member, err := findMachine(c.Context, args[0])
	if err != nil {
		return err
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		return errors.New("vm ssh: there is no ssh on this machine (apt-get install openssh-client); mpirun-sf vm exec runs a command without it")
	}
	// In its place: signals, terminal and exit status are ssh's own affair.
	err = syscall.Exec(program, append([]string{"ssh", "-F", vm.file("ssh_config"), member.Name}, args[1:]...), os.Environ())
	return fmt.Errorf("start ssh: %w", err)
}

// vmConnect is what ssh reaches a machine through.
func vmConnect(c *cli.Context) error {
	vm, member, err := findMachine(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	hostKey, err := os.ReadFile(vm.file("host_key"))
	if err != nil {
		return fmt.Errorf("read the machine's key: %w", err)
	}
	public, err := os.ReadFile(vm.file("id.pub"))
	if err != nil {
		return fmt.Errorf("read the machine's key: %w", err)
	}
	limit, cancel := context.WithTimeout(c.Context, startCommandLimit)
	defer cancel()
	conn, err := agent.Over(vm.attach(member.Member)).SSH(limit, agent.SSH{HostKey: hostKey, AuthorizedKeys: []string{string(public)}})
	if err != nil {
		return err
	}
	// Either side that leaves ends it for both.
	over := make(chan struct{}, 2)
	for _, way := range []struct {
		to   io.Writer
		from io.Reader
	}{{conn, os.Stdin}, {os.Stdout, conn}} {
		go func() {
			io.Copy(way.to, way.from)
			over <- struct{}{}
		}()
	}
	<-over
	return conn.Close()
}
