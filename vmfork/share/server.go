package share

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// A Token is what a clone shows to be let in. It is a secret of the job: it prints as a mark, and only its text form,
// for JSON, is itself.
type Token [32]byte

// NewToken makes a token that nobody can guess.
func NewToken() Token {
	var t Token
	_, _ = rand.Read(t[:]) // never fails
	return t
}

// Format keeps the token out of logs, whatever the verb.
func (Token) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, "(token)") }

// MarshalText is for the JSON that carries the token where it belongs.
func (t Token) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(t[:])), nil }

// UnmarshalText is the inverse of MarshalText.
func (t *Token) UnmarshalText(text []byte) error {
	if len(text) != 2*len(t) {
		return fmt.Errorf("token has %d characters, not %d", len(text), 2*len(t))
	}
	if _, err := hex.Decode(t[:], text); err != nil {
		return errors.New("token is not hexadecimal")
	}
	return nil
}

const (
	// welcome is the server's answer to the right token.
	welcome = 'F'
	// greetingWait is how long a connection may take to show its token.
	greetingWait = 10 * time.Second
	// maxConnections bounds the connections of one server. Each clone has one.
	maxConnections = 4096
)

// A clone that was killed says no goodbye. Its connection, and with it its locks, goes after 45 seconds of silence; not
// earlier, since a living clone on a crowded machine may be slow to answer.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 6}

// accept takes connections until ctx ends or the listener is closed, and returns when all are done.
func (e *export) accept(ctx context.Context, listener net.Listener, token Token, log zerolog.Logger) error {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	places := make(chan struct{}, maxConnections)
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors or memory, as a rule, which passes.
			log.Warn().Err(err).Msg("accept connection to shared folder")
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			log.Warn().Int("limit", maxConnections).Msg("refuse connection to shared folder: too many")
			conn.Close()
			continue
		}
		sessions.Go(func() {
			defer func() { <-places }()
			if err := e.greet(ctx, conn, token); err != nil {
				log.Warn().Err(err).Stringer("from", conn.RemoteAddr()).Msg("refuse connection to shared folder")
				return
			}
			if err := e.serve(ctx, conn); err != nil {
				log.Warn().Err(err).Stringer("from", conn.RemoteAddr()).Msg("end connection to shared folder")
			}
		})
	}
}

// greet lets a client in that has the token, and closes the connection of one that has not.
func (e *export) greet(ctx context.Context, conn net.Conn, token Token) (err error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(keepAlive)
	}
	_ = conn.SetDeadline(time.Now().Add(greetingWait))
	var got Token
	if _, err := io.ReadFull(conn, got[:]); err != nil {
		return fmt.Errorf("wait for token: %w", err)
	}
	if subtle.ConstantTimeCompare(got[:], token[:]) != 1 {
		return errors.New("wrong token")
	}
	if _, err := conn.Write([]byte{welcome}); err != nil {
		return fmt.Errorf("answer token: %w", err)
	}
	return conn.SetDeadline(time.Time{})
}
