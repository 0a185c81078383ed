package guest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// A User is whose programs run in the guest. The guest knows nobody else but root
// and nobody.
type User struct {
	Name string // "" or "root" for root
	UID  int
	GID  int
	Home string // an empty folder in the guest; "" for none
}

// check keeps names that would write lines of their own into passwd out of it.
func (u User) check() error {
	switch {
	case u.UID < 0 || u.GID < 0:
		return fmt.Errorf("user %q: ids %d:%d are negative", u.Name, u.UID, u.GID)
	case strings.ContainsAny(u.Name, ":,/ \t\n\x00"):
		return fmt.Errorf("user %q: a user's name cannot hold colons, commas, slashes or blanks", u.Name)
	case strings.ContainsAny(u.Home, ":\n\x00") || u.Home != "" && !filepath.IsAbs(u.Home):
		return fmt.Errorf("user %q: the home folder %q is not an absolute path without colons", u.Name, u.Home)
	}
	return nil
}

// A made file is one that this machine does not provide.
type made struct {
	path    string
	mode    uint32 // unix permission bits, with the sticky bit
	dir     bool
	uid     int
	gid     int
	link    string
	content string
}

// skeleton is what a root needs besides files of the machine: folders, accounts,
// and the handful of files in /etc that C libraries look at. shell is root's.
func skeleton(u User, shell string) []made {
	passwd := "root:x:0:0:root:/root:" + shell + "\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	group := "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
	if u.Name != "" && u.Name != "root" && u.UID != 0 {
		home := u.Home
		if home == "" {
			home = "/"
		}
		passwd += fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", u.Name, u.UID, u.GID, home)
		if u.GID != 0 && u.GID != 5 && u.GID != 65534 {
			group += fmt.Sprintf("%s:x:%d:\n", u.Name, u.GID)
		}
	}
	m := []made{
		{path: "/etc/passwd", mode: 0o644, content: passwd},
		{path: "/etc/group", mode: 0o644, content: group},
		{path: "/etc/nsswitch.conf", mode: 0o644, content: "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"},
		// The agent writes the clones' names into these.
		{path: "/etc/hosts", mode: 0o644, content: "127.0.0.1 localhost\n"},
		{path: "/etc/hostname", mode: 0o644, content: "guest\n"},
		{path: "/etc/resolv.conf", mode: 0o644},
		// Each clone is another machine: no id is better than one that is shared.
		{path: "/etc/machine-id", mode: 0o444},
		{path: "/etc/mtab", link: "../proc/self/mounts"},
		{path: "/var/run", link: "../run"},
		{path: "/var/lock", link: "../run/lock"},
	}
	for _, d := range []string{"/dev", "/proc", "/sys", "/run", "/home", "/mnt", "/usr", "/usr/bin", "/usr/sbin", "/var", hookDir} {
		m = append(m, made{path: d, dir: true, mode: 0o755})
	}
	m = append(m,
		made{path: "/root", dir: true, mode: 0o700},
		made{path: "/tmp", dir: true, mode: 0o1777},
		made{path: "/var/tmp", dir: true, mode: 0o1777})
	if home := filepath.Clean(u.Home); u.Home != "" && u.UID != 0 && !systemFolder(home, m) {
		m = append(m, made{path: home, dir: true, mode: 0o700, uid: u.UID, gid: u.GID})
	}
	return m
}

// systemFolder tells if a home folder is one that is in the root anyway, as those
// of service accounts often are, which the user should not come to own.
func systemFolder(home string, m []made) bool {
	if slices.ContainsFunc(m, func(d made) bool { return d.path == home }) {
		return true
	}
	top := strings.SplitN(home, "/", 3)[1]
	return slices.Contains([]string{"", "bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr"}, top)
}
