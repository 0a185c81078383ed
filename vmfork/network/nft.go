package network

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableOwner is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h.
const tableOwner = 2

// An nft is a socket for filter rules, and a table that was made through it.
type nft struct {
	*nftables.Conn
	table *nftables.Table
}

// newNFT makes an empty table in a namespace, which nobody else may change, and which the kernel removes when the socket
// is closed, be it by the death of this process.
func newNFT(namespace *os.File, family nftables.TableFamily, name string) (*nft, error) {
	n := &nft{table: &nftables.Table{Family: family, Name: name, Flags: tableOwner}}
	err := inNamespace(namespace, func() (err error) {
		n.Conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(conn *mdlayher.Conn) error {
			// The library knows no tables with an owner; and the owner is a socket, so it must be this one.
			if err := own(conn, n.table); err != nil {
				conn.Close()
				return err
			}
			return nil
		}))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make filter table %s: %w", name, nftError(err))
	}
	return n, nil
}

func (n *nft) close() error { return n.CloseLasting() }

// own makes the table, which must not exist.
func own(conn *mdlayher.Conn, table *nftables.Table) error {
	flags := binary.BigEndian.AppendUint32(nil, table.Flags)
	attributes, err := mdlayher.MarshalAttributes([]mdlayher.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(table.Name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: flags},
	})
	if err != nil {
		return err
	}
	// struct nfgenmsg: a family, a version, and for the marks of a batch the subsystem that it is for.
	mark := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	request := append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, attributes...)
	_, err = conn.SendMessages([]mdlayher.Message{
		{Header: mdlayher.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: mdlayher.Request}, Data: mark},
		{Header: mdlayher.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
			Flags: mdlayher.Request | mdlayher.Acknowledge | mdlayher.Create | mdlayher.Excl,
		}, Data: request},
		{Header: mdlayher.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: mdlayher.Request}, Data: mark},
	})
	if err != nil {
		return err
	}
	_, err = conn.Receive() // the one that asked for it is acknowledged, or the error
	return err
}
