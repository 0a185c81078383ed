package network

import (
	"strings"
	"testing"
)

func TestParseAllow(t *testing.T) {
	for _, s := range []string{"10.0.0.0/8", "10.0.0.0/8:443", "192.0.2.1", "192.0.2.1:53/udp", "192.0.2.1:80/tcp", "0.0.0.0/0", "0.0.0.0/0:443"} {
		if d, err := ParseAllow(s); err != nil || d.String() != s {
			t.Errorf("%s is %v (%v)", s, d, err)
		}
	}
	for s, want := range map[string]string{
		"": "names are not", "example.org:443": "names are not", "10.0.0.1/8": "10.0.0.0/8", "10.0.0.0/33": "no address", "10.0.0.0/8:": "no port",
		"10.0.0.0/8:0": "no port", "10.0.0.0/8:65536": "no port", "10.0.0.0/8:+1": "no port", "10.0.0.0/8:80/sctp": "sctp", "10.0.0.0/8:80/": "no protocol",
		"2001:db8::/32": "IPv4", "[2001:db8::1]:80": "IPv4", "::ffff:192.0.2.1": "IPv4", "127.0.0.1": "outside", "224.0.0.1": "outside", "255.255.255.255": "outside",
	} {
		if d, err := ParseAllow(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %v (%v)", s, d, err)
		}
	}
}

func TestParseRate(t *testing.T) {
	for s, want := range map[string]int64{"100mbit": 1e8, "1.5gbit": 15e8, "64kbit": 64000, "9600bit": 9600, "1000000": 1e6, "10Mbit": 1e7, "1000gbit": 1e12} {
		if got, err := ParseRate(s); err != nil || got != want {
			t.Errorf("%s is %d (%v)", s, got, err)
		}
	}
	for _, s := range []string{"", "mbit", "-1mbit", "0", "1e9", "inf", "nan", "0x10mbit", "1bit", "1001gbit", "100 mbit", "100mbps", "100MB", "1..5gbit", "99999999999999999999gbit"} {
		if got, err := ParseRate(s); err == nil {
			t.Errorf("%s is %d", s, got)
		}
	}
}

func TestParseForward(t *testing.T) {
	for s, want := range map[string]string{"8080:80": "127.0.0.1:8080:80", "0.0.0.0:8080:80": "0.0.0.0:8080:80", "[::1]:8080:80": "[::1]:8080:80"} {
		if f, err := ParseForward(s); err != nil || f.String() != want {
			t.Errorf("%s is %v (%v)", s, f, err)
		}
	}
	for _, s := range []string{"", "80", ":80", "80:", "0:80", "80:0", "host:80:80", "::1:80:80", "[fe80::1%lo]:80:80", "1.2.3.4:80"} {
		if f, err := ParseForward(s); err == nil {
			t.Errorf("%s is %v", s, f)
		}
	}
}

func TestResolverOf(t *testing.T) {
	for text, want := range map[string]string{
		"# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n": "192.0.2.53:53",
		"nameserver bad\nnameserver\t2001:db8::53":                                                   "[2001:db8::53]:53",
	} {
		if got, err := resolverOf(text, ""); err != nil || got.String() != want {
			t.Errorf("of %q: %v (%v)", text, got, err)
		}
	}
	if got, err := resolverOf("search example.org\n", ""); err == nil {
		t.Errorf("of nothing: %v", got)
	}
}

func FuzzParseWay(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8:443/tcp", "192.0.2.1", "100mbit", "1.5gbit", "8080:80", "0.0.0.0:8080:80", "[::1]:1:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := ParseAllow(s); err == nil {
			if again, err := ParseAllow(d.String()); err != nil || again != d {
				t.Errorf("%q is %v, which is %v (%v)", s, d, again, err)
			}
		}
		if rate, err := ParseRate(s); err == nil && (rate < minRate || rate > maxRate) {
			t.Errorf("%q is %d", s, rate)
		}
		if fw, err := ParseForward(s); err == nil {
			if again, err := ParseForward(fw.String()); err != nil || again != fw {
				t.Errorf("%q is %v, which is %v (%v)", s, fw, again, err)
			}
		}
	})
}
