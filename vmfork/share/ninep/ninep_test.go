package ninep

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// join is a message as it is on the wire.
func join(tag uint16, m Message) []byte {
	head, data := Encode(nil, tag, m)
	return append(head, data...)
}

// body is the part of a message after its header.
func body(b []byte) []byte { return b[HeaderSize:] }

// Bytes that were written down by hand from the protocol's description, so that a layout which is wrong in both
// directions is found.
func TestWire(t *testing.T) {
	for _, test := range []struct {
		tag     uint16
		message Message
		hex     string
	}{
		{NoTag, &Tversion{8192, "9P2000.L"}, "15000000 64 ffff 00200000 0800 3950323030302e4c"},
		{1, &Tattach{5, NoFID, "u", "", 1000}, "18000000 68 0100 05000000 ffffffff 0100 75 0000 e8030000"},
		{2, &Twalk{1, 2, []string{"a", "bc"}}, "18000000 6e 0200 01000000 02000000 0200 0100 61 0200 6263"},
		{2, &Rwalk{[]QID{{TypeDir, 3, 4}}}, "16000000 6f 0200 0100 80 03000000 0400000000000000"},
		{3, &Twrite{1, 2, []byte("xyz")}, "1a000000 76 0300 01000000 0200000000000000 03000000 78797a"},
		{3, &Rread{[]byte("xyz")}, "0e000000 75 0300 03000000 78797a"},
		{4, &Rlerror{2}, "0b000000 07 0400 02000000"},
		{5, &Tlock{1, LockWrite, LockBlock, 2, 3, 4, "n"},
			"27000000 34 0500 01000000 01 01000000 0200000000000000 0300000000000000 04000000 0100 6e"},
		{6, &Tunlinkat{1, "d", UnlinkDir}, "12000000 4c 0600 01000000 0100 64 00020000"},
		{7, &Tflush{6}, "09000000 6c 0700 0600"},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(test.hex, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := join(test.tag, test.message); !bytes.Equal(got, want) {
			t.Errorf("%v is %x, want %x", test.message.Type(), got, want)
		}
		header := ParseHeader([HeaderSize]byte(want))
		if header != (Header{uint32(len(want)), test.message.Type(), test.tag}) {
			t.Errorf("%v: header %+v", test.message.Type(), header)
		}
		got, err := Decode(header.Type, body(want))
		if err != nil || !reflect.DeepEqual(got, test.message) {
			t.Errorf("%v: decoded %+v, %v", header.Type, got, err)
		}
	}
}

// fill gives every field of a message a value of its own.
func fill(v reflect.Value, next *byte) {
	*next++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), next)
		}
	case reflect.String:
		v.SetString(strings.Repeat("s", int(*next)))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range v.Len() {
			fill(v.Index(i), next)
		}
	default:
		v.SetUint(uint64(*next) * 0x0101010101010101 >> (64 - v.Type().Bits()))
	}
}

func TestEveryMessageSurvives(t *testing.T) {
	known := 0
	for i := range 256 {
		m := newMessage(Type(i))
		if m == nil {
			continue
		}
		known++
		if m.Type() != Type(i) {
			t.Errorf("type %d makes a %v", i, m.Type())
		}
		if name := m.Type().String(); (name[0] == 'R') != (i%2 == 1) {
			t.Errorf("type %d is %s", i, name)
		}
		var next byte
		fill(reflect.ValueOf(m).Elem(), &next)
		b := join(9, m)
		got, err := Decode(Type(i), body(b))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
		if _, err := Decode(Type(i), append(body(b), 0)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v with a byte too many: %v", m.Type(), err)
		}
		for cut := range body(b) {
			if _, err := Decode(Type(i), body(b)[:cut]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%v cut to %d bytes: %v", m.Type(), cut, err)
			}
		}
	}
	if known != 57 {
		t.Errorf("%d messages are known", known)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		t    Type
		body []byte
	}{
		"unknown type":      {5, nil},
		"too many names":    {(*Twalk)(nil).Type(), append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 17, 0}, make([]byte, 34)...)},
		"more data than is": {(*Twrite)(nil).Type(), append(make([]byte, 12), 255, 255, 255, 255)},
	} {
		if m, err := Decode(test.t, test.body); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

func TestDirents(t *testing.T) {
	want := []Dirent{{QID{TypeDir, 1, 2}, 3, 4, "."}, {QID{TypeRegular, 5, 6}, 7, 8, "a name"}}
	var b []byte
	for i := range want {
		before := len(b)
		b = AppendDirent(b, &want[i])
		if got := len(b) - before; got != DirentOverhead+len(want[i].Name) {
			t.Errorf("an entry of %d bytes", got)
		}
	}
	got, err := ParseDirents(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ParseDirents(b[:len(b)-1]); err == nil {
		t.Error("a cut entry passes")
	}
}

func FuzzDecode(f *testing.F) {
	for i := range 256 {
		if m := newMessage(Type(i)); m != nil {
			var next byte
			fill(reflect.ValueOf(m).Elem(), &next)
			f.Add(uint8(i), body(join(0, m)))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, in []byte) {
		m, err := Decode(Type(kind), in)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		// What can be decoded has one encoding.
		if out := body(join(0, m)); !bytes.Equal(in, out) {
			t.Fatalf("%x decodes to %+v, which is %x", in, m, out)
		}
	})
}
