package agent

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func TestForeign(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:A5AF 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0 100 0 0 10 0
   1: 0100EF0A:A5AF 0200EF0A:0016 01 00000000:00000000 00:00000000 00000000     0        0 1002 1 0 20 4 30 10 -1
   2: 0100007F:A5AF 0100007F:0016 01 00000000:00000000 00:00000000 00000000     0        0 1003 1 0 20 4 30 10 -1
   3: 0100EF0A:A5AF 0200EF0A:0017 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   4: 0000000000000000FFFF00000100EF0A:A5AF 0000000000000000FFFF00000200EF0A:0016 08 00000000:00000000 00:00000000 00000000     0        0 1005 1 0
   5: 00000000000000000000000001000000:A5AF 00000000000000000000000001000000:0016 01 00000000:00000000 00:00000000 00000000     0        0 1006 1 0
   6: 0100EF0A:A5B0 0200EF0A:0018 02 00000001:00000000 01:00000000 00000000     0        0 1007 2 0
   7: nonsense
`
	if got, want := foreign([]byte(table)), []string{"1002", "1005", "1007"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzForeign(f *testing.F) {
	f.Add([]byte("0: 0100EF0A:A5AF 0200EF0A:0016 01 00000000:00000000 00:00000000 00000000 0 0 1002 1"))
	f.Fuzz(func(t *testing.T, table []byte) { foreign(table) })
}

// TestDisconnect: who reads from a connection that was broken, or writes to it, is told.
func TestDisconnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := disconnect(strconv.Itoa(os.Getpid()), strconv.Itoa(int(file.Fd()))); err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := bufio.NewReader(conn).ReadByte(); err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("write: %v", err)
	}
}
