package link

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Protocol is the number of the protocol between daemons, of all that goes over links and of hello. It changes whenever two
// versions of the program could misunderstand each other.
const Protocol = 1

// alpn is what the ends offer each other. Of two that have both names in common the first is taken, for it is the only
// one that links are made with.
func (o options) alpn() []string {
	return []string{o.purpose + "/" + strconv.Itoa(o.protocol), o.purpose}
}

// secure is what both ends' handshakes have in common: TLS 1.3, a certificate from each, and judge, which is asked whether the
// peer's key will do. Nothing is resumed, so that it is asked each time.
func (o options) secure(id *Identity, judge func(Fingerprint) error) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{id.cert},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             o.alpn(),
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		// The chain and the name are of no meaning here; the key is, and VerifyConnection looks at it.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if !slices.Contains(o.alpn(), s.NegotiatedProtocol) {
				return fmt.Errorf("it does not speak %s", o.purpose)
			}
			if len(s.PeerCertificates) == 0 {
				return errors.New("it showed no key")
			}
			return judge(fingerprintOf(s.PeerCertificates[0]))
		},
	}
}

// otherProtocols are those that a client offers, for the error when ours is not among them.
func (o options) otherProtocols(offered []string) string {
	var numbers []string
	for _, name := range offered {
		if number, ok := strings.CutPrefix(name, o.purpose+"/"); ok {
			if _, err := strconv.ParseUint(number, 10, 32); err == nil {
				numbers = append(numbers, number)
			}
		}
	}
	if len(numbers) == 0 {
		return "an unknown protocol"
	}
	return "protocol " + strings.Join(numbers, " or ")
}

// errVersion says what is to be done about different versions.
func (o options) errVersion(host, theirs string) error {
	return fmt.Errorf("host %s speaks %s of mpirun-sf's daemons, and this one protocol %d: install the same version of mpirun-sf on all hosts", host, theirs, o.protocol)
}
