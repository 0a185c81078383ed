package guest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// guestPath is PATH in a guest with a shell; the agent puts mpirun-sf and sf into
// the first folder.
const guestPath = "/run/mpirun-sf/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// tools are the programs that somebody at a shell expects. Those that the machine
// does not have are not in the guest either.
var tools = strings.Fields(`
	sh bash dash rbash busybox
	[ arch b2sum base32 base64 basename basenc cat chgrp chmod chown chroot cksum comm cp csplit cut date dd df dir
	dircolors dirname du echo env expand expr factor false fmt fold groups head hostid id install join link ln logname
	ls md5sum mkdir mkfifo mknod mktemp mv nice nl nohup nproc numfmt od paste pathchk pinky pr printenv printf ptx pwd
	readlink realpath rm rmdir seq sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep sort split stat
	stdbuf stty sum sync tac tail tee test timeout touch tr true truncate tsort tty uname unexpand uniq unlink users vdir wc
	who whoami yes
	grep egrep fgrep sed awk mawk gawk find xargs cmp diff diff3 patch tar gzip gunzip zcat bzip2 bunzip2 bzcat xz unxz
	xzcat zstd unzstd cpio
	ps top pgrep pkill pidof pidwait pmap pwdx free uptime vmstat w watch slabtop sysctl kill killall fuser pstree lsof
	strace
	mount umount findmnt mountpoint losetup lsblk blkid lscpu lsmem lsns swapon swapoff dmesg
	chrt choom fallocate flock getopt hardlink ionice ipcmk ipcrm ipcs logger mcookie nsenter prlimit renice rev script
	setarch setpriv setsid setterm taskset unshare whereis which hexdump xxd column cal
	more less lessecho pager vi vim nano ed clear reset tput tset tabs infocmp toe
	hostname dnsdomainname ip ss bridge tc ping nc ncat netcat socat telnet
	getent getconf iconv locale ldd ldconfig run-parts tempfile bc dc make tmux screen rsync jq
	mpirun mpiexec mpirun.openmpi mpiexec.openmpi orterun orted ompi_info ompi-clean ompi-server
	mpirun.mpich mpiexec.mpich mpiexec.hydra hydra_pmi_proxy hydra_nameserver
`)

// runtimes are libraries that programs compiled on this machine commonly ask for,
// as patterns of their names: those of the compilers, of a C library that still
// has its parts in files of their own, MPICH's and Open MPI's.
var runtimes = []string{
	"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libresolv.so.2",
	"libgcc_s.so.1", "libstdc++.so.6", "libgomp.so.1", "libgfortran.so.[0-9]", "libquadmath.so.0", "libatomic.so.1",
	"libmpich.so.*", "libmpichcxx.so.*", "libmpichfort.so.*", "libmpicxx.so.*", "libmpifort.so.*", "libmpi.so.12*",
	"libmpi.so.40*", "libmpi_cxx.so.40*", "libmpi_mpifh*.so.40*", "libmpi_usempi*.so.40*", "liboshmem.so.40*",
}

// terminals are the terminals that a guest knows, by their names in terminfo(5).
var terminals = []string{
	"ansi", "dumb", "linux", "screen", "screen-256color", "tmux", "tmux-256color",
	"vt100", "vt102", "vt220", "xterm", "xterm-256color", "xterm-color", "xterm-kitty", "alacritty", "foot", "rxvt-unicode-256color",
}

// helpers are files without which tools work poorly.
var helpers = []string{
	"/usr/libexec/coreutils/libstdbuf.so", // what stdbuf preloads
	"/usr/lib/locale/C.utf8",              // a folder: the locale with which characters beyond ASCII are characters
	"/usr/share/vim/vim*/defaults.vim",    // vim complains without
}

// lookGuest finds a program where a shell in the guest would.
func lookGuest(name string) (string, error) {
	for dir := range strings.SplitSeq(guestPath, ":") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// Tools are the paths of the programs of this machine that a guest with a shell
// has, see Spec.Tools: those of the list that a user expects which are here.
func Tools() []string {
	var out []string
	for _, name := range tools {
		if path, err := lookGuest(name); err == nil {
			out = append(out, path)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// addShell brings all that a user at a shell expects: tools, the libraries of the
// compilers, of MPICH and of Open MPI, terminals.
func (g *gatherer) addShell() {
	for _, path := range Tools() {
		g.try(path)
	}
	seen := map[string]bool{}
	for _, dir := range g.l.system {
		// Several of these folders are commonly the same one.
		real, err := filepath.EvalSymlinks(dir)
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		entries, _ := os.ReadDir(real) // what cannot be read has nothing to offer
		for _, e := range entries {
			if slices.ContainsFunc(runtimes, func(pattern string) bool { ok, _ := filepath.Match(pattern, e.Name()); return ok }) {
				g.try(filepath.Join(dir, e.Name()))
			}
		}
	}
	for _, name := range terminals {
		for _, dir := range []string{"/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo"} {
			if _, err := g.t.add(filepath.Join(dir, name[:1], name)); err == nil {
				break
			}
		}
	}
	for _, pattern := range helpers {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			g.try(path)
		}
	}
}

// try brings what nobody named: what is broken on this machine, or wants a
// display, is left out, and brings nothing of its closure.
func (g *gatherer) try(path string) {
	trial := &gatherer{l: g.l, t: tree{}}
	if err := trial.add(path); err != nil {
		return
	}
	for p := range trial.t {
		if unwanted(filepath.Base(p)) {
			return
		}
	}
	maps.Copy(g.t, trial.t)
}

// shellFiles are what makes a shell in the guest a pleasant one. The prompts ask
// for the host name each time: bash and others read it once when they start, and a
// shell that was cloned is on another host since.
func shellFiles(t tree) []made {
	profile := "# Made by mpirun-sf.\n" +
		"export PATH=" + guestPath + "\n" +
		"export PAGER=less\n"
	if _, ok := t["/usr/lib/locale/C.utf8"]; ok {
		profile += "export LANG=C.UTF-8\n"
	}
	profile += "umask 022\n" +
		"if [ -n \"$BASH_VERSION\" ]; then\n" +
		"\t. /etc/bash.bashrc\n" +
		"else\n" +
		"\tPS1='$(cat /proc/sys/kernel/hostname):$PWD# '\n" +
		"fi\n"
	bashrc := "# Made by mpirun-sf, for shells at a terminal.\n" +
		"case $- in *i*) ;; *) return ;; esac\n" +
		"PS1='$(cat /proc/sys/kernel/hostname):\\w\\$ '\n" +
		"shopt -s checkwinsize\n"
	return []made{
		{path: "/etc/profile", mode: 0o644, content: profile},
		{path: "/etc/bash.bashrc", mode: 0o644, content: bashrc},
		// What is compiled into bash elsewhere than on Debian.
		{path: "/root/.bashrc", mode: 0o644, content: ". /etc/bash.bashrc\n"},
		{path: "/etc/shells", mode: 0o644, content: "/bin/sh\n/bin/bash\n"},
	}
}
