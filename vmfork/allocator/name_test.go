package allocator

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

func nameOf(t *testing.T, b []byte) string {
	t.Helper()
	name, err := NameOf(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(name) != nameDigits {
		t.Fatalf("%q, %v", name, err)
	}
	return name
}

// This test is a program that go has built.
func TestProgramsOfGoAreNamedByTheirBuildID(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	id := buildID(bytes.NewReader(self))
	if id == nil {
		t.Fatal("no build ID is found in it")
	}
	name := nameOf(t, self)
	if nameOf(t, self) != name {
		t.Error("its name changes")
	}
	if nameOf(t, append(self, 0)) == name {
		t.Error("with one more byte it keeps its name")
	}
	at := bytes.Index(self, id)
	self[at+len(id)-1] ^= 1
	if nameOf(t, self) == name {
		t.Error("with another content by its build ID it keeps its name")
	}
}

func TestOtherProgramsAreNamedByAllTheirBytes(t *testing.T) {
	a, b := []byte("#!/bin/sh\n"+strings.Repeat("#", 1<<20)+"1"), []byte("#!/bin/sh\n"+strings.Repeat("#", 1<<20)+"2")
	if nameOf(t, a) == nameOf(t, b) {
		t.Error("two scripts have the same name")
	}
}

// note is one as a linker writes it.
func note(name string, kind uint32, content string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(content)))
	b = binary.LittleEndian.AppendUint32(b, kind)
	for _, s := range []string{name, content} {
		b = append(b, s...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

func FuzzNotes(f *testing.F) {
	f.Add(append(note("GNU\x00", 3, "12345"), note("Go\x00\x00", goNote, "a/b/c/d")...))
	f.Add(note("Go\x00\x00", goNote, "a/b/c/d")[:20])
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, notes []byte) {
		if got := noteOf(notes, binary.LittleEndian, "Go\x00\x00", goNote); len(got) > len(notes) {
			t.Errorf("a note of %d bytes in %d", len(got), len(notes))
		}
	})
}

func TestNotes(t *testing.T) {
	all := append(note("GNU\x00", 3, "12345"), note("Go\x00\x00", goNote, "a/b/c/d")...)
	if got := noteOf(all, binary.LittleEndian, "Go\x00\x00", goNote); string(got) != "a/b/c/d" {
		t.Errorf("%q", got)
	}
	for n := range len(all) - 1 {
		if got := noteOf(all[:n], binary.LittleEndian, "Go\x00\x00", goNote); got != nil {
			t.Errorf("of %d bytes: %q", n, got)
		}
	}
}
