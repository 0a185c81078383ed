// Command net is what the tests' machines do on their networks, good and bad.
// Whatever it hears and sees goes to a file, a line each.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const usage = `answer PORT TEXT FILE   to all who come by TCP, and by UDP; who came is in FILE
ask ADDRESS:PORT...      by TCP, at most 3 s each, and print what is said
insist ADDRESS:PORT...   until each answers
tell ADDRESS:PORT...     by UDP, and print what comes back in 2 s
fetch ADDRESS:PORT       count bytes until the end, and the time
lookup NAME...           and print its address
await FILE               until there is one
route GATEWAY            send everything there
watch FILE               all frames of the network, in hexadecimal
attack ME PEER VICTIM GATEWAY UNDERLAY...
                         as IP addresses; attack.go has what it sends`

func main() {
	log.SetFlags(0)
	if len(os.Args) < 3 {
		log.Fatal(usage)
	}
	args := os.Args[2:]
	var err error
	switch os.Args[1] {
	case "answer":
		err = answer(args[0], args[1], args[2])
	case "ask":
		each(args, ask)
	case "insist":
		each(args, func(to string) (text string) {
			for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				if text = ask(to); !strings.Contains(text, "error: ") {
					break
				}
			}
			return text
		})
	case "tell":
		each(args, tell)
	case "fetch":
		err = fetch(args[0])
	case "lookup":
		for _, name := range args {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			found, err := net.DefaultResolver.LookupHost(ctx, name)
			cancel()
			if err != nil {
				found = []string{"error:", err.Error()}
			}
			fmt.Printf("%s: %s\n", name, strings.Join(found, " "))
		}
	case "await":
		fmt.Println("awaiting", args[0])
		for err = os.ErrNotExist; err != nil; time.Sleep(100 * time.Millisecond) {
			_, err = os.Stat(args[0])
		}
	case "route":
		err = netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP(args[0])})
	case "watch":
		err = watch(args[0])
	case "attack":
		err = attack(args[0], args[1], args[2], args[3], args[4:])
	default:
		log.Fatal(usage)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func answer(port, text, file string) error {
	heard, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", ":"+port)
	if err != nil {
		return err
	}
	datagrams, err := net.ListenPacket("udp4", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		p := make([]byte, 2048)
		for {
			n, from, err := datagrams.ReadFrom(p)
			if err != nil {
				return
			}
			fmt.Fprintf(heard, "udp %v %q\n", from, p[:n])
			datagrams.WriteTo([]byte(text), from)
		}
	}()
	fmt.Fprintln(heard, "ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintf(heard, "tcp %v\n", conn.RemoteAddr())
		fmt.Fprintln(conn, text)
		conn.Close()
	}
}

// each does something for all at once, and prints what comes of it in their order.
func each(all []string, do func(string) string) {
	out := make([]string, len(all))
	var group sync.WaitGroup
	for i, one := range all {
		group.Go(func() { out[i] = do(one) })
	}
	group.Wait()
	for i, one := range all {
		fmt.Printf("%s: %s\n", one, out[i])
	}
}

func ask(to string) string {
	conn, err := net.DialTimeout("tcp4", to, 3*time.Second)
	if err != nil {
		return "error: " + err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	text, err := io.ReadAll(conn)
	if err == nil && len(text) == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "connected, error: " + err.Error()
	}
	return strings.TrimSpace(string(text))
}

func tell(to string) string {
	conn, err := net.Dial("udp4", to)
	if err != nil {
		return "error: " + err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte(plain)); err != nil {
		return "error: " + err.Error()
	}
	p := make([]byte, 2048)
	n, err := conn.Read(p)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(p[:n])
}

func fetch(from string) error {
	begin := time.Now()
	conn, err := net.Dial("tcp4", from)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, conn)
	fmt.Printf("%d bytes in %d ms\n", n, time.Since(begin).Milliseconds())
	return err
}

// ethernet is the machine's one network interface but the loopback.
func ethernet() (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 && len(i.HardwareAddr) == 6 {
			return &i, nil
		}
	}
	return nil, fmt.Errorf("there is no Ethernet among %v", all)
}

// raw is a socket for whole frames.
func raw() (socket int, err error) {
	i, err := ethernet()
	if err != nil {
		return 0, err
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
	if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all); err != nil {
		return 0, err
	}
	return socket, unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
}

func watch(file string) error {
	socket, err := raw()
	if err != nil {
		return err
	}
	seen, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	fmt.Fprintln(seen, "ready")
	p := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(socket, p, 0)
		if err != nil {
			return err
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		// The beginning has all that matters.
		fmt.Fprintf(seen, "%x\n", p[:min(n, 256)])
	}
}
