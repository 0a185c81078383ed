package mcdist

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// query is an exchange of one frame each way.
type query struct {
	send   func(buf []byte, number uint32) []byte
	expect kind
	limit  time.Duration // 0: as long as anybody waits

	once  sync.Once
	done  chan struct{}
	reply []byte // once done is closed
	err   error
}

// query asks a host, and waits for the answer for as long as ctx allows.
func (n *Node) query(ctx context.Context, host int, q *query) ([]byte, error) {
	q.done = make(chan struct{})
	l := n.lane(host, urgent)
	number := l.ask(q)
	select {
	case <-q.done:
		return q.reply, q.err
	case <-ctx.Done():
		l.cancel(number)
		return nil, context.Cause(ctx)
	}
}

func (q *query) request(buf []byte, number uint32) []byte { return q.send(buf, number) }

func (q *query) answer(f *frame, _ []byte) (last bool, err error) {
	if f.kind != q.expect {
		return false, fmt.Errorf("%w: kind %d instead of %d", errFrame, f.kind, q.expect)
	}
	q.finish(append([]byte(nil), f.body...), nil)
	return true, nil
}

func (q *query) end(err error)           { q.finish(nil, err) }
func (q *query) patience() time.Duration { return q.limit }
func (q *query) relayed() bool           { return false }

func (q *query) finish(reply []byte, err error) {
	q.once.Do(func() {
		q.reply, q.err = reply, err
		close(q.done)
	})
}
