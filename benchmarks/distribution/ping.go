package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// What a network can do at all is measured beside what we make of it: a ping-pong of small datagrams, and a page over a
// plain TCP connection, without encryption.

// questionSize is that of a request for one block, in bytes.
const questionSize = 64

// Echo answers pings at an address, and says at which ports.
func (c *calls) Echo(address netip.Addr, out *Ports) error {
	datagrams, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	if err != nil {
		return err
	}
	pages, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	if err != nil {
		return errors.Join(err, datagrams.Close())
	}
	out.Datagrams = datagrams.LocalAddr().(*net.UDPAddr).AddrPort()
	out.Pages = pages.Addr().(*net.TCPAddr).AddrPort()
	go func() { // both end with the process
		buf := make([]byte, 2048)
		for {
			n, from, err := datagrams.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			datagrams.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	go func() {
		for {
			conn, err := pages.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				question, page := make([]byte, questionSize), make([]byte, slice.BlockSize)
				for {
					if _, err := io.ReadFull(conn, question); err != nil {
						return
					}
					if _, err := conn.Write(page); err != nil {
						return
					}
				}
			}()
		}
	}()
	return nil
}

// Ports are where pings are answered.
type Ports struct{ Datagrams, Pages netip.AddrPort }

// PingArgs says how often, and with which pause.
type PingArgs struct {
	Ports
	Count int
	Pause time.Duration
}

// Pings are how long the answers took.
type Pings struct{ Datagrams, Pages []time.Duration }

// pingLimit is how long an answer may take.
const pingLimit = time.Second

// Ping measures how long answers take.
func (c *calls) Ping(args PingArgs, out *Pings) error {
	datagrams, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(args.Datagrams))
	if err != nil {
		return err
	}
	defer datagrams.Close()
	pages, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(args.Pages))
	if err != nil {
		return err
	}
	defer pages.Close()
	buf := make([]byte, slice.BlockSize)
	for range args.Count {
		for _, side := range []struct {
			conn   net.Conn
			answer int
			times  *[]time.Duration
		}{{datagrams, questionSize, &out.Datagrams}, {pages, slice.BlockSize, &out.Pages}} {
			side.conn.SetDeadline(time.Now().Add(pingLimit))
			begin := time.Now()
			if _, err := side.conn.Write(buf[:questionSize]); err != nil {
				return err
			}
			if _, err := io.ReadFull(side.conn, buf[:side.answer]); err != nil {
				return fmt.Errorf("wait for an answer: %w", err)
			}
			*side.times = append(*side.times, time.Since(begin))
			time.Sleep(args.Pause)
		}
	}
	return nil
}
