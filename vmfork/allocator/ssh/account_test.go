package ssh

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh/knownhosts"
)

// nobody is a user that every machine has.
const nobody = 65534

func TestAccounts(t *testing.T) {
	t.Setenv("HOME", "/home/of/environment")
	t.Setenv("SSH_AUTH_SOCK", "/run/agent")
	t.Setenv("SUDO_UID", "")
	a, err := findAccount()
	if err != nil || a.name != "root" || a.home != "/home/of/environment" || a.uid != 0 || a.agent != "/run/agent" {
		t.Errorf("oneself: %+v, %v", a, err)
	}
	t.Setenv("SUDO_UID", strconv.Itoa(nobody))
	a, err = findAccount()
	if err != nil || a.name != "nobody" || a.home != "/nonexistent" || a.uid != nobody || a.gid != nobody || a.agent != "/run/agent" {
		t.Errorf("who called sudo: %+v, %v", a, err)
	}
	t.Setenv("SUDO_UID", "0") // sudo called by root
	if a, err = findAccount(); err != nil || a.home != "/home/of/environment" {
		t.Errorf("root who called sudo: %+v, %v", a, err)
	}
	for _, wrong := range []string{"me", "-1", "4294967296", "2147480000"} {
		t.Setenv("SUDO_UID", wrong)
		if a, err := findAccount(); err == nil {
			t.Errorf("SUDO_UID=%s is %+v", wrong, a)
		}
	}
}

// What sudo does not pass on is found with those that called it.
func TestCallersAgent(t *testing.T) {
	if os.Getenv("MPIRUN_SF_TEST_AGENT") != "" {
		fmt.Printf("agent=%s\n", callersAgent(nobody))
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	for owner, want := range map[int]string{nobody: socket, 1: ""} {
		if err := os.WriteFile(socket, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(socket, owner, owner); err != nil {
			t.Fatal(err)
		}
		// The first shell is the user's, the second stands for sudo.
		cmd := exec.Command("sh", "-c", `sh -c 'unset SSH_AUTH_SOCK; env -u SSH_AUTH_SOCK MPIRUN_SF_TEST_AGENT=1 "$0" -test.run=TestCallersAgent; true' "$0"; true`, self)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "agent="+want+"\n") {
			t.Errorf("a socket of user %d: %s, %v", owner, out, err)
		}
	}
}

// Under sudo the user's files are used, and what is added to them is the user's.
func TestUnderSudo(t *testing.T) {
	w := newWorld(t)
	h := w.simple("h1")
	os.Remove(w.path("known_hosts"))
	// Loopback by another way, that says who goes it.
	who := filepath.Join(w.home, "who")
	if err := os.WriteFile(who, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	w.write("config", "StrictHostKeyChecking accept-new\nHost proxied\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", h.port)+
		"ProxyCommand bash -c 'id -u >"+who+"; echo $HOME >>"+who+"; exec 3<>/dev/tcp/%h/%p; cat <&3 & cat >&3; kill $!'\n")
	err := filepath.WalkDir(filepath.Dir(w.home), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, nobody, nobody)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(filepath.Dir(w.home)); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.account.name, w.account.uid, w.account.gid = "root", nobody, nobody
	if err := w.echo(w.open(Config{}, "h1"), "h1"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(w.path("known_hosts"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != nobody || st.Gid != nobody || info.Mode().Perm() != 0o600 {
		t.Errorf("known_hosts is of %d:%d, %v", st.Uid, st.Gid, info.Mode())
	}
	if err := w.echo(w.open(Config{}, "proxied"), "proxied"); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(who); err != nil || string(text) != fmt.Sprintf("%d\n%s\n", nobody, w.home) {
		t.Errorf("the ProxyCommand ran as %q, %v", text, err)
	}
}

// What known_hosts says is read as ssh-keygen writes it.
func TestKnownHostsOfSSHKeygen(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skipf("ssh-keygen is not installed (apt-get install openssh-client): %v", err)
	}
	w := newWorld(t)
	public := signer(t, key(t, "ed25519")).PublicKey()
	w.write("known_hosts", knownhosts.Line([]string{"h1:22", "[h2]:2222"}, public)+"\n")
	if out, err := exec.Command(keygen, "-H", "-f", w.path("known_hosts")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	all := readKnown([]string{w.path("known_hosts")})
	for name, want := range map[string]int{"h1": 1, "[h2]:2222": 1, "h2": 0, "[h1]:2222": 0} {
		if got := all.of(name); len(got) != want {
			t.Errorf("%s: %v, want %d", name, got, want)
		}
	}
	f, err := os.Open(w.path("known_hosts"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil && err != io.EOF || !strings.HasPrefix(line, "|1|") {
		t.Errorf("nothing is hashed in %q", line)
	}
}
