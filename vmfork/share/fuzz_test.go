package share

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// kinds are all types of requests, and two that are none.
var kinds = []ninep.Message{
	&ninep.Tattach{}, &ninep.Twalk{}, &ninep.Tclunk{}, &ninep.Tlopen{}, &ninep.Tlcreate{}, &ninep.Tread{}, &ninep.Twrite{},
	&ninep.Treaddir{}, &ninep.Tgetattr{}, &ninep.Tsetattr{}, &ninep.Tmkdir{}, &ninep.Tsymlink{}, &ninep.Treadlink{},
	&ninep.Tmknod{}, &ninep.Tlink{}, &ninep.Trename{}, &ninep.Trenameat{}, &ninep.Tunlinkat{}, &ninep.Tremove{},
	&ninep.Tlock{}, &ninep.Tgetlock{}, &ninep.Tflush{}, &ninep.Tstatfs{}, &ninep.Tfsync{}, &ninep.Tversion{},
	&ninep.Tauth{}, &ninep.Txattrwalk{}, &ninep.Rclunk{}, &ninep.Rlerror{},
}

// names are good and bad ones; some are in the folder from the start.
var names = []string{"a", "b", "dir", "link", "up", "..", ".", "", "x/y", "../secret", "x\x00", strings.Repeat("n", 255), strings.Repeat("n", 300)}

// script turns fuzz input into requests, each of a type and with fields of which some make sense together.
func script(in []byte) []ninep.Message {
	next := func() uint64 {
		if len(in) == 0 {
			return 0
		}
		b := in[0]
		in = in[1:]
		return uint64(b)
	}
	var all []ninep.Message
	for len(in) > 0 && len(all) < 200 {
		m := reflect.New(reflect.TypeOf(kinds[next()%uint64(len(kinds))]).Elem())
		for i := range m.Elem().NumField() {
			field, name := m.Elem().Field(i), m.Elem().Type().Field(i).Name
			switch {
			case field.Kind() == reflect.String:
				field.SetString(names[next()%uint64(len(names))])
			case field.Type() == reflect.TypeFor[[]string]():
				walk := make([]string, next()%4)
				for i := range walk {
					walk[i] = names[next()%uint64(len(names))]
				}
				field.Set(reflect.ValueOf(walk))
			case field.Type() == reflect.TypeFor[[]byte]():
				field.SetBytes(make([]byte, next()*16))
			case name == "AuthFID":
				field.SetUint(uint64(ninep.NoFID))
			case strings.HasSuffix(name, "FID"):
				field.SetUint(next() % 6)
			case name == "MaxSize":
				field.SetUint(next() << 8)
			case name == "Mode" || name == "Flags" || name == "Valid":
				field.SetUint(next() | next()<<8)
			case field.CanUint():
				value := next()
				if value > 250 { // far out
					value = 1<<(field.Type().Bits()-1) + value
				}
				field.SetUint(value & (1<<field.Type().Bits() - 1))
			}
		}
		all = append(all, m.Interface().(ninep.Message))
	}
	return all
}

// FuzzServer sends a server whatever requests, and after it whatever bytes. The server must neither panic nor hang, must
// give back all that it held, and must not have reached out of the folder.
func FuzzServer(f *testing.F) {
	f.Add([]byte{1, 0, 1, 1, 0, 3, 1, 2, 6, 1, 0, 2, 18, 1}, []byte{})
	f.Add([]byte{4, 0, 0, 66, 2, 255, 1, 0, 19, 0, 1, 1, 0, 0, 0, 0, 0}, []byte{7, 0, 0, 0, 120, 0, 0})
	f.Add([]byte{1, 0, 2, 2, 4, 9, 3, 2, 0, 0, 5, 2, 0, 200}, []byte{255, 255, 255, 255, 1})
	f.Add([]byte{15, 0, 0, 0, 16, 0, 2, 0, 5, 17, 0, 3, 0, 0}, []byte("GET / HTTP/1.0\r\n\r\n"))
	f.Add([]byte{10, 0, 0, 255, 1, 0, 1, 0, 2, 1, 0, 7, 2, 0, 0, 24, 64, 0, 0, 0, 0}, []byte{})
	f.Fuzz(func(t *testing.T, in, tail []byte) {
		parent := t.TempDir()
		folder := filepath.Join(parent, "shared")
		if err := os.MkdirAll(filepath.Join(folder, "dir"), 0o755); err != nil {
			t.Fatal(err)
		}
		secret := filepath.Join(parent, "secret")
		write(t, secret, "secret")
		write(t, filepath.Join(folder, "a"), "text")
		for link, target := range map[string]string{"link": "../secret", "up": ".."} {
			if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.Stat(secret)
		if err != nil {
			t.Fatal(err)
		}
		descriptors, err := openDescriptors()
		if err != nil {
			t.Fatal(err)
		}
		e, err := newExport(folder, descriptors, false)
		if err != nil {
			t.Fatal(err)
		}
		defer e.close()

		near, far := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = e.serve(context.Background(), far)
		}()
		heard := make(chan struct{})
		go func() {
			defer close(heard)
			_, _ = io.Copy(io.Discard, near)
		}()
		_ = near.SetWriteDeadline(time.Now().Add(20 * time.Second))
		requests := append([]ninep.Message{
			&ninep.Tversion{MaxSize: 64 << 10, Version: ninep.Version},
			&ninep.Tattach{FID: 0, AuthFID: ninep.NoFID},
		}, script(in)...)
		for i, m := range requests {
			if _, err := near.Write(encode(uint16(i), m)); err != nil {
				break
			}
		}
		_, _ = near.Write(tail)
		near.Close()
		select {
		case <-served:
		case <-time.After(20 * time.Second):
			t.Fatal("the server hangs")
		}
		<-heard
		if refs := e.root.refs.Load(); refs != 1 {
			t.Errorf("%d references to the root", refs)
		}

		check(t, secret, "secret")
		after, err := os.Stat(secret)
		if err != nil {
			t.Fatal(err)
		}
		if !os.SameFile(before, after) || before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
			t.Errorf("outside, %v became %v", before, after)
		}
		if outside, err := os.ReadDir(parent); err != nil || len(outside) != 2 {
			t.Errorf("outside: %v, %v", outside, err)
		}
	})
}
