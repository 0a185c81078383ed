package link

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// What follows is for protocols other than a link's whose ends know each other by the same identities, such as HTTPS.

// ServerConfig is that of a server with an identity, for clients with the given keys and for nobody else: TLS 1.3, and each
// connection is judged anew.
func ServerConfig(id *Identity, allowed ...Fingerprint) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{id.cert},
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("it showed no key")
			}
			if f := fingerprintOf(s.PeerCertificates[0]); !slices.Contains(allowed, f) {
				return fmt.Errorf("its key %s is not one of those that may connect", f)
			}
			return nil
		},
	}
}

// Certificate is the identity's as PEM: what a client takes for its certificate authority to know this server, by the name
// mpirun-sf. It is no secret.
func (i *Identity) Certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Certificate[0]})
}

// Secret is the identity's key as PEM (PKCS 8).
func (i *Identity) Secret() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(i.cert.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("write a key as PEM: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
