package agent

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// keyPair makes a key: in PEM, and as a line of authorized_keys.
func keyPair(t *testing.T) (private []byte, public string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block), string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
}

// sshServer serves SSH clients on loopback as a clone does over its session.
// It returns the command line of OpenSSH's client, without a command, and what
// cuts the processes off as in a clone.
func sshServer(t *testing.T) (client []string, lose func()) { return sshServerFor(t, nil) }

// sshServerFor is one whose programs run with a login of the host's.
func sshServerFor(t *testing.T, login *Login) (client []string, lose func()) {
	t.Helper()
	path, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatalf("this test needs OpenSSH's client (Debian: openssh-client): %v", err)
	}
	host, hostPublic := keyPair(t)
	user, userPublic := keyPair(t)
	mine, theirs := channel(t)
	c, err := newClone(theirs)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := c.mux.AcceptStream()
			if err != nil {
				return
			}
			go c.ssh(&stream{conn, bufio.NewReader(conn)}, SSH{HostKey: host, AuthorizedKeys: []string{userPublic}, Login: login})
		}
	}()
	s, err := Dial(mine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go relaySSH(s, conn)
		}
	}()
	dir := t.TempDir()
	port := l.Addr().(*net.TCPAddr).Port
	keyFile, hosts := filepath.Join(dir, "key"), filepath.Join(dir, "hosts")
	if err := os.WriteFile(keyFile, user, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hosts, fmt.Appendf(nil, "[127.0.0.1]:%d %s", port, hostPublic), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		path, "-F", "none", "-p", fmt.Sprint(port), "-i", keyFile, "-o", "UserKnownHostsFile=" + hosts,
		"-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "IdentityAgent=none", "-o", "LogLevel=ERROR", "-o", "SendEnv=-*",
	}, func() { abandon(); c.mux.Close() }
}

func relaySSH(s *Session, conn net.Conn) {
	defer conn.Close()
	st, err := s.open()
	if err != nil {
		return
	}
	defer st.Close()
	in := bufio.NewReader(st)
	var a answer
	if readLine(in, &a) != nil {
		return
	}
	go func() { io.Copy(st, conn); st.Close() }()
	io.Copy(conn, in)
}

// ran is what a program did.
type ran struct {
	out, err string
	Exit
}

// runProgram runs one whose end the reaper sees.
func runProgram(t *testing.T, in string, argv ...string) ran {
	t.Helper()
	files := make([]*os.File, 3)
	for i := range files {
		f, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	if _, err := files[0].WriteString(in); err != nil {
		t.Fatal(err)
	}
	files[0].Seek(0, io.SeekStart)
	cmd := &exec.Cmd{Path: argv[0], Args: argv, Stdin: files[0], Stdout: files[1], Stderr: files[2]}
	ended, err := children().start(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{ended: ended}
	done := make(chan Exit, 1)
	go func() { done <- p.wait() }()
	select {
	case e := <-done:
		out, _ := os.ReadFile(files[1].Name())
		errs, _ := os.ReadFile(files[2].Name())
		return ran{string(out), string(errs), e}
	case <-soon(t).Done():
		cmd.Process.Kill()
		t.Fatalf("waited 20 s for the end of %s", argv[0])
		return ran{}
	}
}

func TestSSH(t *testing.T) {
	if !asInit(t) {
		return
	}
	client, _ := sshServer(t)
	big := strings.Repeat("0123456789abcde\n", 100_000)
	root, err := lookupAccount("/etc", "root")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		user, in string
		args     []string
		want     ran
	}{
		"a status":        {"root", "", []string{"127.0.0.1", "exit 9"}, ran{Exit: Exit{Status: 9}}},
		"a signal":        {"root", "", []string{"127.0.0.1", "kill -KILL $$"}, ran{Exit: Exit{Status: 255}}},
		"streams apart":   {"root", "in", []string{"127.0.0.1", "cat; echo err >&2"}, ran{out: "in", err: "err\n"}},
		"a lot both ways": {"root", big, []string{"127.0.0.1", "cat"}, ran{out: big}},
		"where and who":   {"root", "", []string{"127.0.0.1", "pwd; id -un; echo $HOME $SHELL $PATH"}, ran{out: fmt.Sprintf("%s\nroot\n%[1]s %s %s\n", root.home, root.shell, loginPath)}},
		"another user":    {"nobody", "", []string{"127.0.0.1", "true"}, ran{Exit: Exit{Status: 1}, out: "This account is currently not available.\n"}},
		"nobody's name":   {"stranger", "", []string{"127.0.0.1", "true"}, ran{Exit: Exit{Status: 126}, err: "mpirun-sf: there is no user \"stranger\" in this virtual machine\n"}},
		"at a terminal":   {"root", "", []string{"-tt", "127.0.0.1", "tty >/dev/null && [ -t 1 ] && [ -t 2 ] && stty size && exit 3"}, ran{Exit: Exit{Status: 3}, out: "0 0\r\n"}},
		"a login shell":   {"root", "stty -echo\nPS1=; echo login-$((1+1))\nexit 4\n", []string{"-tt", "127.0.0.1"}, ran{Exit: Exit{Status: 4}, out: "login-2\r\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := runProgram(t, c.in, slices.Concat(client, []string{"-l", c.user}, c.args)...)
			if name == "a login shell" { // its prompt, and what was echoed, stand around
				if !strings.Contains(got.out, c.want.out) {
					t.Errorf("the shell showed %q", got.out)
				}
				got.out = c.want.out
			}
			if got != c.want {
				t.Errorf("got %.300q %q %+v, want %.300q %q %+v", got.out, got.err, got.Exit, c.want.out, c.want.err, c.want.Exit)
			}
		})
	}
}

// With a login of the host's the user that the client names is nobody, and the
// program's environment is not what is usual here.
func TestSSHLogin(t *testing.T) {
	if !asInit(t) {
		return
	}
	dir := t.TempDir()
	client, _ := sshServerFor(t, &Login{User: User{UID: 1234, GID: 2345, Groups: []uint32{3456}}, Env: []string{"MINE=it's mine", "PATH=/usr/bin"}, Dir: "/usr"})
	got := runProgram(t, "", slices.Concat(client, []string{"-l", "stranger", "127.0.0.1", "id -u; id -g; id -G; pwd; echo $MINE $HOME $USER; echo $PATH"})...)
	want := "1234\n2345\n2345 3456\n/usr\nit's mine\n/usr/bin\n"
	if got.out != want || got.Exit != (Exit{}) {
		t.Errorf("it says\n%s%s(%+v), and should say\n%s", got.out, got.err, got.Exit, want)
	}
	client, _ = sshServerFor(t, &Login{Dir: filepath.Join(dir, "gone")})
	if got := runProgram(t, "", slices.Concat(client, []string{"127.0.0.1", "true"})...); got.Status != 126 || !strings.Contains(got.err, "its working directory") {
		t.Errorf("in a folder that is gone: %+v", got)
	}
}

// A user's terminal and the one in the virtual machine are of one size, always.
func TestSSHTerminalSize(t *testing.T) {
	if !asInit(t) {
		return
	}
	client, _ := sshServer(t)
	mine, theirs := channel(t)
	local, err := spawn(Command{
		Argv: append(client, "-t", "-l", "root", "127.0.0.1", "stty size; trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.01; done"),
		Env:  []string{"TERM=vt100"}, TTY: &TTY{Rows: 33, Cols: 99},
	}, [3]io.ReadWriteCloser{theirs}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"33 99\r\n", "ready\r\n"} {
		if got := readLineOf(t, mine); got != want {
			t.Errorf("the terminal showed %q, want %q", got, want)
		}
	}
	local.resize(Size{Rows: 12, Cols: 34})
	if got := readLineOf(t, mine); got != "12 34\r\n" {
		t.Errorf("after it had another size the terminal showed %q", got)
	}
	if e := local.wait(); e.Status != 6 {
		t.Errorf("ssh ended with %+v", e)
	}
}

// When the client dies, its terminal is hung up; in a clone, it is not.
func TestSSHLost(t *testing.T) {
	if !asInit(t) {
		return
	}
	for _, clone := range []bool{false, true} {
		client, lose := sshServer(t)
		mark := filepath.Join(t.TempDir(), "mark")
		mine, theirs := channel(t)
		local, err := spawn(Command{
			Argv: append(client, "-t", "-l", "root", "127.0.0.1", "trap 'echo hung up >"+mark+"; exit' HUP; echo ready; while :; do echo alive || echo broken >"+mark+"; date +%N >"+mark+".alive; sleep 0.01; done"),
			Env:  []string{"TERM=vt100"}, TTY: &TTY{Rows: 33, Cols: 99},
		}, [3]io.ReadWriteCloser{theirs}, nil)
		if err != nil {
			t.Fatal(err)
		}
		readLineOf(t, mine)
		said := func() string { b, _ := os.ReadFile(mark); return string(b) }
		if !clone {
			local.signal(int(unix.SIGKILL))
			await(t, "the hang-up", func() bool { return said() == "hung up\n" })
			continue
		}
		lose()
		last, _ := os.ReadFile(mark + ".alive")
		for range 20 {
			await(t, "the program in the clone to go on", func() bool {
				now, _ := os.ReadFile(mark + ".alive")
				defer func() { last = now }()
				return string(now) != string(last)
			})
		}
		if got := said(); got != "" {
			t.Errorf("in a clone the program noticed the fork: %q", got)
		}
	}
}

func TestSSHErrors(t *testing.T) {
	host, public := keyPair(t)
	for name, c := range map[string]struct {
		SSH
		want string
	}{
		"no host key":   {SSH{AuthorizedKeys: []string{public}}, "host key"},
		"no keys":       {SSH{HostKey: host}, "no key would be let in"},
		"no key at all": {SSH{HostKey: host, AuthorizedKeys: []string{public, "nonsense"}}, "authorized key 2"},
		"options":       {SSH{HostKey: host, AuthorizedKeys: []string{`command="true" ` + public}}, "options"},
	} {
		_, err := c.parse()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error is %v, and should say %q", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error shows the key", name)
		}
	}
}

func TestLookupAccount(t *testing.T) {
	etc := t.TempDir()
	for name, content := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/bash\nshort:x:1:1\n:x:5:5:::\nada:x:1000:1001:Ada,,,:/home/ada:\nodd:x:-1:0::/:/bin/sh\nlast:x:7:8::/:/bin/dash",
		"group":  "root:x:0:\ntty:x:5:ada\nada:x:1001:ada\nmany:x:9:bob,ada,last\nshort:x\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"root": "{0 0 [0]} /root /bin/bash", "ada": "{1000 1001 [1001 5 9]} /home/ada /bin/sh", "last": "{7 8 [8 9]} / /bin/dash",
	} {
		a, err := lookupAccount(etc, name)
		if got := fmt.Sprint(a.User, " ", a.home, " ", a.shell); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
	for _, name := range []string{"", "short", "odd", "Root", "root:x"} {
		if a, err := lookupAccount(etc, name); err == nil {
			t.Errorf("%q is %+v", name, a)
		}
	}
	if _, err := lookupAccount(t.TempDir(), "root"); err == nil {
		t.Error("without passwd there is a root")
	}
}
