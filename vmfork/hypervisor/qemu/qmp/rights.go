package qmp

import (
	"os"

	"golang.org/x/sys/unix"
)

// write sends a line, with f's descriptor beside it when f is not nil.
func (c *Client) write(line []byte, f *os.File) error {
	if f == nil {
		_, err := c.conn.Write(line)
		return err
	}
	_, _, err := c.conn.WriteMsgUnix(line, unix.UnixRights(int(f.Fd())), nil)
	return err
}
