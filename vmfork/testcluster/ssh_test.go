package testcluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func startSSHD(t *testing.T, hosts []*Host, settings ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, h := range hosts {
		try(t, h.SSHD(ctx, settings...))
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range hosts {
				t.Logf("sshd of %s:\n%s", h.Name, h.SSHLog())
			}
		}
	})
}

func TestSSHIntoHosts(t *testing.T) {
	c := ForTest(t, Options{Hosts: 3, Links: map[int]Link{2: {Delay: time.Millisecond}}})
	startSSHD(t, c.Hosts(), "SetEnv GIVEN=as-set")
	for _, from := range c.Hosts() {
		for _, to := range c.Hosts() {
			if got := output(t, from, "ssh", to.Name, "hostname"); got != to.Name {
				t.Errorf("from %s to %s: %q", from.Name, to.Name, got)
			}
			if got := output(t, from, "ssh", to.Address.String(), "id -un; echo $GIVEN; pwd; readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/pid"); got !=
				"root\nas-set\n"+to.Home+"\n"+output(t, to, "readlink", "/proc/self/ns/net", "/proc/self/ns/mnt", "/proc/self/ns/pid") {
				t.Errorf("from %s to %s it is in %q", from.Name, to.Name, got)
			}
		}
	}
	// Files go through sftp, too.
	file := filepath.Join(t.TempDir(), "file")
	try(t, os.WriteFile(file, []byte("content"), 0o600))
	output(t, c.Host(0), "scp", "-q", file, "host1:copy")
	if got, err := os.ReadFile(filepath.Join(c.Host(1).Home, "copy")); string(got) != "content" {
		t.Errorf("copied %q, %v", got, err)
	}
	// Standard input comes through, and the status back.
	cmd := c.Host(0).Command(t.Context(), "ssh", "host1", "cat; exit 9")
	cmd.Stdin = strings.NewReader("input")
	if out, err := cmd.Output(); string(out) != "input" || cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("said %q and ended with %v", out, err)
	}
}

func TestSSHLetsNobodyElseIn(t *testing.T) {
	c := ForTest(t, Options{Hosts: 2})
	startSSHD(t, c.Hosts()[1:])
	// On eth0 only.
	if out, err := c.Host(1).Command(t.Context(), "ssh", "127.0.0.1", "true").CombinedOutput(); err == nil || !strings.Contains(string(out), "refused") {
		t.Errorf("by the loopback: %v: %s", err, out)
	}
	// Without the key nobody is let in.
	cmd := c.Host(0).Command(t.Context(), "ssh", "-i", "/dev/null", "-F", "/dev/null", "-o", "BatchMode=yes",
		"-o", "UserKnownHostsFile="+filepath.Join(c.Host(0).Home, ".ssh/known_hosts"), "host1", "true")
	try(t, os.Remove(filepath.Join(c.Host(0).Home, ".ssh/id_ed25519")))
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
		t.Errorf("without a key: %v: %s", err, out)
	}
}

func TestSSHDSaysWhyItDoesNotStart(t *testing.T) {
	h := ForTest(t, Options{Hosts: 1}).Host(0)
	if err := h.SSHD(t.Context(), "NoSuchSetting yes"); err == nil || !strings.Contains(err.Error(), "NoSuchSetting") {
		t.Errorf("with a wrong setting: %v", err)
	}
}

func TestCutStopsSSH(t *testing.T) {
	c := ForTest(t, Options{Hosts: 2})
	startSSHD(t, c.Hosts()[1:])
	// The session ends with the host, though nobody says so to the client but its own patience.
	cmd := c.Host(0).Command(t.Context(), "ssh", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1", "host1", "echo in; sleep 1000")
	pipe, err := cmd.StdoutPipe()
	try(t, err)
	try(t, cmd.Start())
	b := make([]byte, 3)
	if _, err := pipe.Read(b); err != nil || string(b) != "in\n" {
		t.Fatalf("said %q, %v", b, err)
	}
	try(t, c.Kill(1))
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 255 {
		t.Errorf("ended with %v", err)
	}
}
