package sshd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
)

// Config is who is let in, and what happens then.
type Config struct {
	HostKey        ssh.Signer
	AuthorizedKeys []ssh.PublicKey
	// Start starts a program. On an error, which the client is shown, the
	// program's streams are not touched.
	Start func(Program) (Process, error)
}

// Program is what a client wants to run.
type Program struct {
	User     string   // as whom
	Command  string   // for the user's shell; "" is the shell itself, as at login
	Env      []string // NAME=VALUE, besides what every program gets
	Terminal *Terminal
	Stdin    io.Reader
	// Stdout and Stderr are closed when there is nothing more to come, also if
	// the client has gone. At a terminal Stderr is nil.
	Stdout, Stderr io.WriteCloser
}

// Terminal is what a client has the program in front of.
type Terminal struct {
	Term       string // TERM
	Rows, Cols uint16
}

// Process is a program that runs. Wait is called once, and the others any time.
type Process interface {
	Signal(n int)             // to its process group
	Resize(rows, cols uint16) // its terminal
	HangUp()                  // its terminal, if it has one and still runs: the client is gone
	Wait() Exit
}

// Exit is how a program ended: by Status, or by Signal when that is not 0.
type Exit struct {
	Status int
	Signal int
	Core   bool
}

// loginLimit is how long a client may take to be let in.
const loginLimit = 30 * time.Second

// Serve speaks with one client until it or the context ends, and closes the
// connection. That a client leaves is no error. Programs that do not notice
// that their client has gone run on.
func Serve(ctx context.Context, conn net.Conn, c Config) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	server := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-mpirun-sf",
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			for _, k := range c.AuthorizedKeys {
				if k.Type() == key.Type() && bytes.Equal(k.Marshal(), key.Marshal()) {
					return nil, nil
				}
			}
			return nil, errors.New("the key is not one of those that are let in")
		},
	}
	server.AddHostKey(c.HostKey)
	conn.SetDeadline(time.Now().Add(loginLimit))
	client, channels, requests, err := ssh.NewServerConn(conn, server)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("let an SSH client in: %w", err)
	}
	conn.SetDeadline(time.Time{})
	// Refused are requests to forward ports from here, and keepalives: their
	// sender wants an answer, no matter which.
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		if kind := ch.ChannelType(); kind != "session" {
			reason, text := ssh.UnknownChannelType, "there are no channels of this type"
			if kind == "direct-tcpip" || kind == "direct-streamlocal@openssh.com" {
				reason, text = ssh.Prohibited, "nothing is forwarded out of this virtual machine"
			}
			ch.Reject(reason, text)
			continue
		}
		channel, requests, err := ch.Accept()
		if err != nil {
			break // the connection is gone
		}
		s := &session{config: c, user: client.User(), channel: channel}
		go s.serve(requests)
	}
	client.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("serve an SSH client: %w", ctx.Err())
	}
	return nil
}
