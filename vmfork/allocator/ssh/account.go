package ssh

import (
	"bytes"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// account is whose configuration and keys are used.
type account struct {
	name, home string
	uid, gid   int
	groups     []uint32
	agent      string // SSH_AUTH_SOCK
}

// findAccount is the user who called sudo, or else oneself.
func findAccount() (account, error) {
	a := account{uid: os.Getuid(), gid: os.Getgid(), home: os.Getenv("HOME"), agent: os.Getenv("SSH_AUTH_SOCK")}
	if sudo := os.Getenv("SUDO_UID"); sudo != "" && os.Geteuid() == 0 {
		uid, err := strconv.ParseUint(sudo, 10, 31)
		if err != nil {
			return a, fmt.Errorf("SUDO_UID is %q, which is no user's number", sudo)
		}
		if int(uid) != a.uid {
			a.uid, a.home = int(uid), ""
			if a.agent == "" {
				a.agent = callersAgent(a.uid)
			}
		}
	}
	u, err := user.LookupId(strconv.Itoa(a.uid))
	if err != nil {
		if a.home == "" {
			return a, fmt.Errorf("find the home of user %d: %w", a.uid, err)
		}
		a.name = os.Getenv("USER")
		return a, nil // a user without an entry, as in a container
	}
	a.name = u.Username
	if a.home == "" {
		a.home = u.HomeDir
	}
	if gid, err := strconv.Atoi(u.Gid); err == nil {
		a.gid = gid
	}
	ids, _ := u.GroupIds()
	for _, id := range ids {
		if gid, err := strconv.ParseUint(id, 10, 32); err == nil {
			a.groups = append(a.groups, uint32(gid))
		}
	}
	return a, nil
}

// callersAgent finds SSH_AUTH_SOCK, which sudo takes out of the environment, in
// the environments of sudo itself and of those that it was called by.
func callersAgent(uid int) string {
	for pid := os.Getppid(); pid > 1; {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil {
			for _, variable := range bytes.Split(environ, []byte{0}) {
				if socket, ok := bytes.CutPrefix(variable, []byte("SSH_AUTH_SOCK=")); ok && ownedBy(string(socket), uid) {
					return string(socket)
				}
			}
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return ""
		}
		// The name, in parentheses, may have any character in it.
		after := stat[bytes.LastIndexByte(stat, ')')+1:]
		if _, err := fmt.Sscanf(string(after), " %c %d", new(rune), &pid); err != nil {
			return ""
		}
	}
	return ""
}

// expandHome makes a path of one that may begin with ~ or ~user.
func (a account) expandHome(path string) (string, error) {
	if !strings.HasPrefix(path, "~") {
		return path, nil
	}
	name, rest, _ := strings.Cut(path[1:], "/")
	if name == "" {
		return filepath.Join(a.home, rest), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return filepath.Join(u.HomeDir, rest), nil
}

// ownedBy says whether a file is a user's.
func ownedBy(path string, uid int) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == uid
}
