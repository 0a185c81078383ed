package pmi

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestHistory(t *testing.T) {
	var h history
	for _, k := range []string{"a", "b", "c"} {
		h.put(Pair{k, "1"})
	}
	moment := h.count
	h.put(Pair{"a", "2"})
	h.put(Pair{"3.1 x", "y"})
	h.put(Pair{"d", "1"})
	if got, want := h.since(moment), []Pair{{"a", "2"}, {"3.1 x", "y"}, {"d", "1"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("since: %v, want %v", got, want)
	}
	if got, want := h.since(0), []Pair{{"b", "1"}, {"c", "1"}, {"a", "2"}, {"3.1 x", "y"}, {"d", "1"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("all: %v, want %v", got, want)
	}
	h.put(Pair{"3.1 ", ""})
	if _, found := h.get("3.1 x"); found {
		t.Error("a key outlived its space")
	}
	if got := h.since(h.count); got != nil {
		t.Errorf("since now: %v", got)
	}
	// Putting again and again does not make it grow, nor lose what is not put again.
	for i := range 10000 {
		h.put(Pair{fmt.Sprint("k", i%7), fmt.Sprint(i)})
	}
	if len(h.log) > 300 {
		t.Errorf("%d entries for 12 keys", len(h.log))
	}
	if v, _ := h.get("b"); v != "1" {
		t.Errorf("b = %q", v)
	}
	if v, _ := h.get("k3"); v != "9999" {
		t.Errorf("k3 = %q", v)
	}
	if got := h.since(h.count - 1); len(got) != 1 || got[0].Value != "9999" {
		t.Errorf("the last: %v", got)
	}
}

func TestSpaceNames(t *testing.T) {
	for name, want := range map[string]bool{
		spaceName(0, 0): true, spaceName(MaxSize-1, maxSpaces-1): true,
		"": false, "1": false, "1.": false, ".1": false, "01.1": false, "1.1.1": false, "a.1": false, "-1.1": false, "1. 1": false,
		strings.Repeat("1", 20) + ".1": false,
	} {
		if got := isSpace(name); got != want {
			t.Errorf("isSpace(%q) = %v", name, got)
		}
	}
	if n := len(inSpace(spaceName(MaxSize-1, maxSpaces-1), "")); n > maxSpace {
		t.Errorf("a space takes %d bytes of a key, maxSpace says %d", n, maxSpace)
	}
}

func TestNamesAreBounded(t *testing.T) {
	n := NewNames()
	port := strings.Repeat("p", maxStored)
	published := 0
	for ; published < 10000; published++ {
		if err := n.publish(fmt.Sprint(published), port); err != nil {
			break
		}
	}
	if published < 100 || published == 10000 {
		t.Errorf("%d names published", published)
	}
	if err := n.unpublish("7"); err != nil {
		t.Error(err)
	}
	if err := n.publish("again", port); err != nil {
		t.Error(err)
	}
}

// What a rank has put into a space of its own reaches the others with the next barrier, and so does the space's end.
func TestSpacesReachOtherClones(t *testing.T) {
	j := newJob(t, 2, 1)
	j.each((*client).init)
	a, b := j.ranks[0], j.ranks[1]
	a.expect("cmd=create_kvs", "cmd=newkvs kvsname=kvs_7_0.0")
	a.expect("cmd=put kvsname=kvs_7_0.0 key=k value=v", putDone)
	j.each((*client).barrier)
	b.expect("cmd=get kvsname=kvs_7_0.0 key=k", foundPrefix+"v")
	b.expect("cmd=get kvsname=kvs_7 key=k", missedPrefix+"k_not_found value=unknown")
	b.expect("cmd=destroy_kvs kvsname=kvs_7_0.0", "cmd=kvs_destroyed rc=0 msg=KVS_kvs_7_0.0_successfully_destroyed")
	a.expect("cmd=get kvsname=kvs_7_0.0 key=k", foundPrefix+"v")
	j.each((*client).barrier)
	a.expect("cmd=get kvsname=kvs_7_0.0 key=k", "cmd=get_result rc=-1 msg=kvsname_not_found value=unknown")
	j.each((*client).finalize)
	j.finish()
}
