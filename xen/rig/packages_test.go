package rig

import (
	"reflect"
	"slices"
	"testing"
)

const shown = `Package: xen-system-amd64
Source: xen (4.17.5-1)
Version: 4.17.5-1+b1
Depends: xen-hypervisor-4.17-amd64, xen-hypervisor-common, xen-utils-4.17 (>= 4.17), libc6 (>= 2.35) | libc7
Description: Xen System on AMD64 (metapackage)
 Version: no field, but a line of the description

Package: libyajl2
Version: 2.1.0-3+deb12u2

N: a remark of apt's
`

func TestParsePackages(t *testing.T) {
	want := []Package{
		{"xen-system-amd64", "4.17.5-1+b1", "xen (4.17.5-1)", []string{"xen-hypervisor-4.17-amd64", "xen-hypervisor-common", "xen-utils-4.17", "libc6"}},
		{"libyajl2", "2.1.0-3+deb12u2", "", nil},
	}
	if got := parsePackages(shown); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if got := want[0].String(); got != "xen-system-amd64=4.17.5-1+b1" {
		t.Errorf("for apt it is %q", got)
	}
}

func FuzzParsePackages(f *testing.F) {
	f.Add(shown)
	f.Add("")
	f.Add("Package:\nVersion:\n\n")
	f.Fuzz(func(t *testing.T, out string) {
		for _, p := range parsePackages(out) {
			if p.Name == "" || p.Version == "" {
				t.Errorf("a package without a name or version: %+v", p)
			}
		}
	})
}

func TestParseVersions(t *testing.T) {
	const said = `xen-hypervisor-4.17-amd64 | 4.17.7+13-g2445b30a44-0+deb12u1 | http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
xen-hypervisor-4.17-amd64 | 4.17.5+72-g01140da4e8-1 | http://deb.debian.org/debian bookworm/main amd64 Packages
xen-hypervisor-4.17-amd64 | 4.17.5+72-g01140da4e8-1 | http://mirror.example/debian bookworm/main amd64 Packages
N: nothing else
`
	if got := parseVersions(said); !slices.Equal(got, []string{"4.17.7+13-g2445b30a44-0+deb12u1", "4.17.5+72-g01140da4e8-1"}) {
		t.Errorf("the versions are %q", got)
	}
}
