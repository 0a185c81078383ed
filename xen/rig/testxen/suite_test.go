package main

import (
	"reflect"
	"testing"
)

// Tests that run the launcher have a rig of their own, unless there are no others, or all shall be in one.
func TestParts(t *testing.T) {
	driver, store, launcher := suite{name: "xen"}, suite{name: "xen/store"}, suite{name: ofProduct + "xen"}
	for _, c := range []struct {
		suites []suite
		one    bool
		want   []part
	}{
		{[]suite{driver, store, launcher}, false, []part{{"launcher", []suite{launcher}, true}, {"driver", []suite{driver, store}, false}}},
		{[]suite{driver, store, launcher}, true, []part{{"launcher", []suite{driver, store, launcher}, true}}},
		{[]suite{driver}, false, []part{{"driver", []suite{driver}, false}}},
		{[]suite{store}, true, []part{{"launcher", []suite{store}, false}}},
	} {
		if got := (&bundle{suites: c.suites}).parts(c.one); !reflect.DeepEqual(got, c.want) {
			t.Errorf("of %v in one rig (%v): %+v", c.suites, c.one, got)
		}
	}
}
