// Package ssh starts the daemons of a job on hosts that a user named, over SSH,
// as the user's own ssh would log in there: with the same configuration, keys,
// agent and known hosts. It needs no ssh program.
//
// # Flow
//
//  1. [New] finds out who the user is (under sudo, who called it) and reads
//     ~/.ssh/config and /etc/ssh/ssh_config (config.go).
//  2. [Allocation.Start] works out what they say about the host (settings.go),
//     and makes a connection to it: TCP, a ProxyCommand, or through other hosts
//     (dial.go). Connections to hosts on the way are made once and shared.
//  3. The host shows its key, which has to be a known one (known.go); algorithms
//     that fit the known keys are asked for first. Then the user's keys are tried,
//     the agent's first (keys.go). There are no passwords.
//  4. The far login shell runs a small script for sh (install.go). It looks
//     whether the program is there already, by its name ([allocator.NameOf]); if not,
//     it says so and takes it from its standard input, and checks its hash. Then it becomes the
//     program, as root, in the same session: so starting a program that is there
//     costs one round trip.
//  5. The session is the Process (process.go). Questions without an answer tell
//     of a dead host (alive.go).
//
// # What of ssh's configuration counts
//
// AddressFamily, CertificateFile, ConnectTimeout, GlobalKnownHostsFile,
// HashKnownHosts, HostKeyAlgorithms (a plain list), HostKeyAlias, HostName,
// IdentitiesOnly, IdentityAgent, IdentityFile, Include, Port, ProxyCommand,
// ProxyJump, PubkeyAuthentication, ServerAliveCountMax, ServerAliveInterval,
// StrictHostKeyChecking, User, UserKnownHostsFile. Of Match: all, final, host,
// localuser, originalhost and user; any other criterion is an error for the
// hosts that it would have to be evaluated for. Canonical names are not made.
//
// # Security
//
// What is sent over the session is public: whoever logs in here can be root on
// the host anyway. Programs run from a folder of the user's own. Host keys that
// have changed are refused, and a ProxyCommand runs as the user, not as root.
//
// # Locking
//
// Allocation.mu guards what is started and shared; nothing waits under it. A
// key that needs its passphrase has a mutex of its own, so that it is asked for
// once, and so has the terminal. known_hosts is written under Allocation.known.
package ssh
