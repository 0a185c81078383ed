package pmi

import (
	"context"
	"errors"
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// What ranks ask for, in either version. Those who call these know the syntax and answer.

// errGone is that the rank has hung up while it waited for an answer.
var errGone = errors.New("hung up")

// deadKey is the key under which MPICH asks which ranks have failed; see Server.MarkDead. It changes without a barrier.
const deadKey = "PMI_dead_processes"

// fetch returns the value of a key of the map: from the cache, or from the server.
func (c *conversation) fetch(ctx context.Context, key string) (value string, found bool, err error) {
	if key != deadKey {
		if value, found := c.proxy.lookup(key); found {
			return value, true, nil
		}
	}
	a, err := c.ask(ctx, message{kind: kindGet, key: key})
	return a.value, a.found, err
}

// store puts a value of at most so many bytes into a space.
func (c *conversation) store(space, key, value string, most int) error {
	if err := checkPlainKey(key); err != nil {
		return fmt.Errorf("put of %w", err)
	}
	if err := checkValue(key, value, most); err != nil {
		return fmt.Errorf("put of %w", err)
	}
	return c.proxy.put(c.slot, Pair{inSpace(space, key), value})
}

// enter puts the rank into the barrier that the name means, and calls answer when all are in.
func (c *conversation) enter(name string, answer func()) error {
	m, err := parseMembers(name, c.proxy.group.Size)
	if err != nil {
		return &badInput{err}
	}
	rank := c.slot.rank
	if len(m.of([]int{rank})) == 0 {
		return &badInput{fmt.Errorf("barrier of group %q, to which it does not belong", hearsay.Clip(name))}
	}
	out, entered, err := c.proxy.enter(rank, m)
	if err != nil {
		return err
	}
	return c.await(func() {
		for {
			select {
			case <-out:
			case <-c.over: // it stays in the barrier: it did enter
				return
			}
			if entered {
				answer()
				return
			}
			if out, entered, err = c.proxy.enter(rank, m); err != nil {
				return // Run has ended, or is about to
			}
		}
	})
}

// publish, unpublish and find are the name service. refused is the reason, in one word, for which it was not done.
func (c *conversation) publish(ctx context.Context, service, port string) (refused string, err error) {
	if err := errors.Join(checkService(service), checkPort(port)); err != nil {
		return word(err.Error()), nil
	}
	return c.askNames(ctx, message{kind: kindPublish, service: service, value: port})
}

func (c *conversation) unpublish(ctx context.Context, service string) (refused string, err error) {
	if err := checkService(service); err != nil {
		return word(err.Error()), nil
	}
	return c.askNames(ctx, message{kind: kindUnpublish, service: service})
}

func (c *conversation) askNames(ctx context.Context, m message) (refused string, err error) {
	a, err := c.ask(ctx, m)
	if err == nil && !a.found {
		refused = word(a.text)
	}
	return refused, err
}

func (c *conversation) find(ctx context.Context, service string) (port, refused string, err error) {
	if err := checkService(service); err != nil {
		return "", word(err.Error()), nil
	}
	a, err := c.ask(ctx, message{kind: kindLookup, service: service})
	if err == nil && !a.found {
		refused = word(a.text)
	}
	return a.value, refused, err
}

// spawn asks for a new group. refused is not nil when there is none.
func (c *conversation) spawn(ctx context.Context, apps []SpawnApp, preput []Pair) (kvsName string, errcodes []int, refused, err error) {
	if err := checkSpawn(apps, preput); err != nil {
		return "", nil, err, c.fault(err)
	}
	a, err := c.ask(ctx, message{kind: kindSpawn, apps: apps, pairs: preput})
	if err != nil {
		return "", nil, nil, err
	}
	if !a.found {
		return "", nil, errors.New(a.text), nil
	}
	return a.name, a.codes, nil, nil
}

// setAttr puts a node attribute, which the ranks of this clone see at once.
func (c *conversation) setAttr(key, value string) error {
	if err := checkPlainKey(key); err != nil {
		return fmt.Errorf("node attribute of %w", err)
	}
	if err := checkValue(key, value, maxStored); err != nil {
		return fmt.Errorf("node attribute %w", err)
	}
	p := c.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := c.slot.quota.take(Pair{"node attribute " + key, value}); err != nil {
		return err
	}
	p.attrs[key] = value
	close(p.attrPut)
	p.attrPut = make(chan struct{})
	return nil
}

// attr returns a node attribute, and what is closed when another is put.
func (p *Proxy) attr(key string) (value string, found bool, put <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	value, found = p.attrs[key]
	return value, found, p.attrPut
}
