package link

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"time"
)

// Fingerprint names a public key: the SHA-256 of its SubjectPublicKeyInfo. It is no secret.
type Fingerprint [sha256.Size]byte

// String is the fingerprint as base64url without padding, 43 characters.
func (f Fingerprint) String() string { return base64.RawURLEncoding.EncodeToString(f[:]) }

// MarshalText writes what String returns.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what String returns, and nothing else.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	if len(text) != base64.RawURLEncoding.EncodedLen(len(f)) {
		return fmt.Errorf("%d characters are not the fingerprint of a key", len(text))
	}
	var read Fingerprint
	// Strict, so that two texts are never the same key.
	if n, err := base64.RawURLEncoding.Strict().Decode(read[:], text); err != nil || n != len(read) {
		return fmt.Errorf("%q is not the fingerprint of a key", text)
	}
	*f = read
	return nil
}

// Identity is a key and what proves it in a TLS handshake. The key is in this process's memory and nowhere else.
type Identity struct {
	cert tls.Certificate
	fp   Fingerprint
}

// NewIdentity draws a key.
func NewIdentity() (*Identity, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("draw a key: %w", err)
	}
	return IdentityOf(key)
}

// IdentityOf makes an identity of a key that others have, too.
func IdentityOf(key ed25519.PrivateKey) (*Identity, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("%d bytes are not an Ed25519 key", len(key))
	}
	// The certificate is an envelope for the public key: no name in it and neither date is ever looked at.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "mpirun-sf"},
		DNSNames:     []string{"mpirun-sf"},
		NotBefore:    time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of a key: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of a key: %w", err)
	}
	return &Identity{
		cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		fp:   fingerprintOf(leaf),
	}, nil
}

// Fingerprint is what others know this identity by.
func (i *Identity) Fingerprint() Fingerprint { return i.fp }

func fingerprintOf(c *x509.Certificate) Fingerprint { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
