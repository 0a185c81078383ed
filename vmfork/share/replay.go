package share

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// replayWindow is how many requests of a replay are under way at one time. Their
// replies, of at most some hundred bytes each, fit into the sockets.
const replayWindow = 64

// A dialer connects to the server, as far as the right to speak 9P.
type dialer func(context.Context) (net.Conn, error)

// reconnect goes on over another connection. ctx bounds it. When it fails, the
// relay has ended.
func (r *relay) reconnect(ctx context.Context, dial dialer) error {
	r.reconnecting.Lock()
	defer r.reconnecting.Unlock()
	old := r.link.Load()
	old.dropped.Store(true)
	old.conn.abandon()
	r.sendMu.Lock() // the writer that had it found its connection closed
	defer r.sendMu.Unlock()
	err := r.switchOver(ctx, old, dial)
	if err != nil {
		r.fail(err)
	}
	return err
}

func (r *relay) switchOver(ctx context.Context, old *link, dial dialer) error {
	select {
	case <-old.left: // and what it had read is with the kernel
	case <-ctx.Done():
		return fmt.Errorf("wait for the kernel to take a reply: %w", ctx.Err())
	}
	select {
	case <-r.ended:
		return r.err
	default:
	}
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	answered := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer answered()
	// Nobody else touches the book: there is no link, and no request enters.
	if err := replay(conn, &r.book); err != nil {
		conn.Close()
		return fmt.Errorf("open the files again: %w", errors.Join(ctx.Err(), err))
	}
	if !answered() {
		conn.Close()
		return fmt.Errorf("open the files again: %w", ctx.Err())
	}
	link, err := streamOf(conn)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = link.Close() })()
	again, answers := r.unanswered()
	defer func() {
		for _, q := range again {
			q.release()
		}
	}()
	// Replies come while requests are still being sent.
	r.use(link)
	for _, answer := range answers {
		if err := r.deliver(answer); err != nil {
			return err
		}
	}
	for _, q := range again {
		if err := r.link.Load().write(*q.message); err != nil {
			return fmt.Errorf("send requests again: %w", errors.Join(ctx.Err(), err))
		}
	}
	return nil
}

// unanswered are the requests to send again, in their order, held until they
// are released; and answers to those that need not be sent: what the client
// gave up, and what is about files that are not there.
func (r *relay) unanswered() (again []*outstanding, answers [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*outstanding, 0, len(r.asked))
	for _, q := range r.asked {
		all = append(all, q)
	}
	slices.SortFunc(all, func(a, b *outstanding) int { return cmp.Compare(a.number, b.number) })
	drop := func(q *outstanding) {
		delete(r.asked, tagOf(*q.message))
		q.release()
	}
	for _, q := range all {
		if r.asked[tagOf(*q.message)] != q {
			continue // dropped
		}
		if answer := r.book.answer(*q.message); answer != nil {
			answers = append(answers, answer)
			drop(q)
		}
	}
	for _, q := range all {
		if r.asked[tagOf(*q.message)] == q && typeOf(*q.message) == (&ninep.Tflush{}).Type() {
			if old := r.flushed(q); old != nil {
				drop(old)
			}
			answers = append(answers, whole(tagOf(*q.message), &ninep.Rflush{}))
			drop(q)
		}
	}
	for _, q := range all {
		if r.asked[tagOf(*q.message)] == q {
			q.users.Add(1)
			again = append(again, q)
		}
	}
	return again, answers
}

// A player is the client of a session that is being brought to where another
// was. Nothing else uses the connection.
type player struct {
	conn net.Conn
	in   *bufio.Reader
	size uint32
	out  []byte
}

// A step is a request of a replay. done gets the reply, also Rlerror.
type step struct {
	request ninep.Message
	done    func(ninep.Message) error
}

// replay makes a session have the fids of a book. Those that it cannot have
// are dead afterwards.
func replay(conn net.Conn, b *book) error {
	if b.hello == nil {
		return nil
	}
	p := &player{conn: conn, in: bufio.NewReader(conn), size: minMessage}
	if err := p.play([]step{{b.hello, func(m ninep.Message) error {
		agreed, ok := m.(*ninep.Rversion)
		if !ok || agreed.Version != b.hello.Version || agreed.MaxSize != b.hello.MaxSize {
			return fmt.Errorf("the server does not agree to %s with messages of %d bytes again", b.hello.Version, b.hello.MaxSize)
		}
		return nil
	}}}); err != nil {
		return err
	}
	p.size = b.hello.MaxSize
	roots, err := p.attach(b)
	if err != nil {
		return err
	}
	if err := p.walk(b, roots); err != nil {
		return err
	}
	if err := p.open(b); err != nil {
		return err
	}
	var steps []step
	for _, root := range roots {
		steps = append(steps, p.clunk(root.fid))
	}
	return p.play(steps)
}

// A startingPoint is a root with a fid of the replay's own.
type startingPoint struct {
	fid  uint32
	file uint64
}

// attach attaches whatever the book's fids were walked from.
func (p *player) attach(b *book) (map[attachment]*startingPoint, error) {
	roots := map[attachment]*startingPoint{}
	var steps []step
	free := ninep.NoFID
	for _, f := range b.fids {
		f.dead = f.lost
		if f.lost || roots[f.root] != nil {
			continue
		}
		for free--; b.fids[free] != nil; free-- {
		}
		root := &startingPoint{fid: free}
		roots[f.root] = root
		steps = append(steps, step{
			&ninep.Tattach{FID: free, AuthFID: ninep.NoFID, User: f.root.user, Attach: f.root.attach, UID: f.root.uid},
			func(m ninep.Message) error {
				at, ok := m.(*ninep.Rattach)
				if !ok {
					return fmt.Errorf("the server answers Tattach with %v", m.Type())
				}
				root.file = at.QID.Path
				return nil
			},
		})
	}
	return roots, p.play(steps)
}

// walk walks every fid to its file, in turns: there are only so many names in
// one request.
func (p *player) walk(b *book, roots map[attachment]*startingPoint) error {
	type walk struct {
		number, from uint32
		fid          *bookFID
		names        []string
	}
	var walks []*walk
	for number, f := range b.fids {
		if !f.dead {
			names := strings.FieldsFunc(f.path, func(c rune) bool { return c == '/' })
			walks = append(walks, &walk{number, roots[f.root].fid, f, names})
		}
	}
	for len(walks) > 0 {
		var steps, ends []step
		var next []*walk
		for _, w := range walks {
			names := p.fitting(w.names)
			first := w.from != w.number
			steps = append(steps, step{&ninep.Twalk{FID: w.from, NewFID: w.number, Names: names}, func(m ninep.Message) error {
				found, ok := m.(*ninep.Rwalk)
				complete := ok && len(found.QIDs) == len(names)
				w.names, w.from = w.names[len(names):], w.number
				switch {
				case !complete:
					w.fid.dead = true
					if !first {
						ends = append(ends, p.clunk(w.number))
					}
					return nil
				case len(w.names) > 0:
					next = append(next, w)
					return nil
				}
				file := roots[w.fid.root].file
				if len(names) > 0 {
					file = found.QIDs[len(names)-1].Path
				}
				if file != w.fid.file { // another one has its name
					w.fid.dead = true
					ends = append(ends, p.clunk(w.number))
				}
				return nil
			}})
		}
		if err := p.play(steps); err != nil {
			return err
		}
		if err := p.play(ends); err != nil {
			return err
		}
		walks = next
	}
	return nil
}

// open opens what was open.
func (p *player) open(b *book) error {
	var steps, ends []step
	for number, f := range b.fids {
		if f.open && !f.dead {
			steps = append(steps, step{&ninep.Tlopen{FID: number, Flags: f.flags}, func(m ninep.Message) error {
				if _, ok := m.(*ninep.Rlopen); !ok {
					f.dead = true
					ends = append(ends, p.clunk(number))
				}
				return nil
			}})
		}
	}
	if err := p.play(steps); err != nil {
		return err
	}
	return p.play(ends)
}

func (p *player) clunk(fid uint32) step {
	return step{&ninep.Tclunk{FID: fid}, func(ninep.Message) error { return nil }}
}

// play carries steps out, a window at a time, in no order.
func (p *player) play(steps []step) error {
	for window := range slices.Chunk(steps, replayWindow) {
		p.out = p.out[:0]
		for tag, s := range window {
			p.out, _ = ninep.Encode(p.out, uint16(tag), s.request)
		}
		if _, err := p.conn.Write(p.out); err != nil {
			return fmt.Errorf("ask the server: %w", err)
		}
		for left := len(window); left > 0; left-- {
			reply, err := readWhole(p.in, p.size, buffers.get)
			if err != nil {
				return fmt.Errorf("wait for the server's answer: %w", err)
			}
			tag, m := int(tagOf(*reply)), parse(*reply)
			if m == nil || tag >= len(window) || window[tag].done == nil {
				return fmt.Errorf("the server gives an answer that nobody asked for: %v to tag %d", typeOf(*reply), tag)
			}
			done := window[tag].done
			window[tag].done = nil
			if err := done(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// fitting are as many of the names as one request may have.
func (p *player) fitting(names []string) []string {
	room := int(p.size) - ninep.HeaderSize - 10 // two fids and a count
	for i, name := range names {
		if room -= 2 + len(name); room < 0 || i == ninep.MaxWalk {
			return names[:i]
		}
	}
	return names
}
