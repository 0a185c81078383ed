package link

import (
	"crypto/ed25519"
	"strings"
	"testing"
)

func TestFingerprintText(t *testing.T) {
	id := identity(t)
	text, err := id.fp.MarshalText()
	if err != nil || len(text) != 43 {
		t.Fatalf("%q, %v", text, err)
	}
	var read Fingerprint
	if err := read.UnmarshalText(text); err != nil || read != id.fp {
		t.Errorf("%v, %v", read, err)
	}
	for _, bad := range []string{"", "x", string(text) + "A", strings.Repeat("!", 43), strings.Repeat("_", 43), "\n" + string(text[1:])} {
		if err := read.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was read as %v", bad, read)
		}
	}
	again, err := IdentityOf(id.cert.PrivateKey.(ed25519.PrivateKey))
	if err != nil || again.fp != id.fp {
		t.Errorf("the same key has the fingerprint %v: %v", again.fp, err)
	}
	if _, err := IdentityOf(nil); err == nil {
		t.Error("no key is an identity")
	}
}
