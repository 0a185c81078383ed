package ssh

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// trust decides whether a host that shows a key is the one that it should be.
func (a *Allocation) trust(ctx context.Context, s *settings, k *known, key ssh.PublicKey, pause func() func()) error {
	found, of, err := k.judge(s, key)
	fingerprint := ssh.FingerprintSHA256(key)
	switch found {
	case keyKnown:
		return nil
	case keyRevoked:
		return fmt.Errorf("its host key %s is revoked by %v: do not use this host before you know why", fingerprint, of)
	case keyChanged:
		if err == nil && of.key.Type() != plainType(key) {
			err = fmt.Errorf("it shows a host key of the kind %s, %s, and is known by one of the kind %s in %v: has it been set up anew? if so: ssh-keygen -R '%s' and then %s once",
				plainType(key), fingerprint, of.key.Type(), of, k.name, s.command())
		} else if err == nil {
			err = fmt.Errorf("its host key has changed: it shows %s, and not the one in %v; either the host has been set up anew, or somebody else answers in its place; if you know that it is the first: ssh-keygen -R '%s' and then %s once",
				fingerprint, of, k.name, s.command())
		}
		if s.strict == "no" {
			a.notice(fmt.Sprintf("%s: %v (StrictHostKeyChecking is no)", s.name, err))
			return nil
		}
		return err
	}
	switch s.strict {
	case "no", "accept-new":
	case "ask":
		if a.ask == nil {
			return unknown(s, k, fingerprint)
		}
		defer pause()()
		a.asking.Lock()
		defer a.asking.Unlock()
		if again, _, _ := s.known().judge(s, key); again == keyKnown {
			return nil // somebody said yes while we waited
		}
		answer, err := a.ask(ctx, fmt.Sprintf("The host %s (%s) is not known. Its key is %s %s. Connect to it? (yes/no) ", s.name, s.address(), plainType(key), fingerprint), false)
		if err != nil {
			return fmt.Errorf("%w (asking for it: %w)", unknown(s, k, fingerprint), err)
		}
		if !strings.EqualFold(strings.TrimSpace(answer), "yes") {
			return errors.New("its host key is not known, and you said no")
		}
	default:
		return unknown(s, k, fingerprint)
	}
	a.known.Lock()
	defer a.known.Unlock()
	if again, _, _ := s.known().judge(s, key); again == keyKnown {
		return nil
	}
	if err := k.add(s, a.account, key); err != nil {
		a.notice(fmt.Sprintf("%s: its host key could not be added to the known ones: %v", s.name, err))
		return nil
	}
	a.notice(fmt.Sprintf("%s: host key %s is known from now on", s.name, fingerprint))
	return nil
}

func unknown(s *settings, k *known, fingerprint string) error {
	return fmt.Errorf("its host key %s is not known (as %s): %s once to accept it, or have StrictHostKeyChecking accept-new for it in ~/.ssh/config", fingerprint, k.name, s.command())
}

// plainType is the kind of a key, also of one in a certificate.
func plainType(key ssh.PublicKey) string {
	if certificate, ok := key.(*ssh.Certificate); ok {
		return certificate.Key.Type()
	}
	return key.Type()
}
