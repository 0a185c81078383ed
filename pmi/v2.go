package pmi

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// PMI-2: what is asked in packets, and how it is answered.

// yes and no are PMI-2's truth.
const (
	yes = "TRUE"
	no  = "FALSE"
)

func (c *conversation) handlePacket(ctx context.Context, q request) error {
	if q.cmd == "fullinit" {
		return c.fullInit(q)
	}
	if err := c.mustBe(Initialized, q); err != nil {
		return err
	}
	switch q.cmd {
	case "job-getid":
		c.done(q, Pair{"jobid", c.proxy.group.KVSName})
	case "kvs-put":
		key, _ := q.get("key")
		value, _ := q.get("value")
		if err := c.store("", key, value, maxStored); err != nil {
			c.refuse(q, err.Error())
			return &badInput{err}
		}
		c.done(q)
	case "kvs-get":
		return c.packetGet(ctx, q)
	case "kvs-fence":
		return c.enter(world, func() { c.done(q) })
	case "ring":
		return c.ring(q)
	case "info-getjobattr":
		return c.jobAttr(ctx, q)
	case "info-putnodeattr":
		key, _ := q.get("key")
		value, _ := q.get("value")
		if err := c.setAttr(key, value); err != nil {
			c.refuse(q, err.Error())
			return &badInput{err}
		}
		c.done(q)
	case "info-getnodeattr":
		return c.nodeAttr(q)
	case "name-publish", "name-unpublish", "name-lookup":
		return c.packetNames(ctx, q)
	case "spawn":
		return c.packetSpawn(ctx, q)
	case "finalize":
		if err := c.advance(Finalized, kindFinalize); err != nil {
			return err
		}
		c.done(q)
	default:
		c.refuse(q, "not supported")
		return c.fault(fmt.Errorf("%s is not supported", hearsay.Clip(q.cmd)))
	}
	return nil
}

// done answers that what was asked for is done.
func (c *conversation) done(q request, fields ...Pair) {
	c.link.packet(q, word(q.cmd)+"-response", append(fields, Pair{"rc", "0"})...)
}

// refuse answers that it is not, and why.
func (c *conversation) refuse(q request, why string) {
	c.link.packet(q, word(q.cmd)+"-response", Pair{"rc", "1"}, Pair{"errmsg", word(why)})
}

// answer tells a value, or that there is none.
func (c *conversation) answer(q request, value string, found bool) {
	if !found {
		c.done(q, Pair{"found", no})
		return
	}
	c.done(q, Pair{"found", yes}, Pair{"value", value})
}

// fullInit begins PMI-2, after an init in PMI-1's syntax.
func (c *conversation) fullInit(q request) error {
	if c.proxy.RankState(c.slot.rank) == Initialized {
		return &badInput{errors.New("fullinit twice: two processes share one rank's PMI connection")}
	}
	if _, given := q.get("pmirank"); given {
		if rank, err := q.number("pmirank"); err != nil || rank != c.slot.rank && rank != c.link.id {
			return &badInput{fmt.Errorf("fullinit as another rank than %d", c.slot.rank)}
		}
	}
	if err := c.advance(Initialized, kindInit); err != nil {
		return err
	}
	g := c.proxy.group
	fields := []Pair{
		{"pmi-version", "2"}, {"pmi-subversion", "0"},
		{"rank", strconv.Itoa(c.slot.rank)}, {"size", strconv.Itoa(g.Size)}, {"appnum", strconv.Itoa(g.appNum(c.slot.rank))},
	}
	if g.Spawner != "" {
		fields = append(fields, Pair{"spawner-jobid", g.Spawner})
	}
	c.done(q, append(fields, Pair{"debugged", no}, Pair{"pmiverbose", no})...)
	return nil
}

// packetGet answers kvs-get. Since the fence is a barrier, there is nothing to wait for.
func (c *conversation) packetGet(ctx context.Context, q request) error {
	key, _ := q.get("key")
	if err := checkPlainKey(key); err != nil {
		return &badInput{fmt.Errorf("kvs-get of %w", err)}
	}
	if job, given := q.get("jobid"); given && job != "" && job != c.proxy.group.KVSName {
		c.answer(q, "", false)
		return nil
	}
	return c.answerKey(ctx, q, key)
}

// answerKey tells the value of a key of the KVS.
func (c *conversation) answerKey(ctx context.Context, q request, key string) error {
	value, found, err := c.fetch(ctx, key)
	if err != nil {
		return err
	}
	c.answer(q, value, found)
	return nil
}

// ring is an addition of Slurm's: all ranks meet, and each hears what its neighbours brought. It is made of puts and a
// barrier. Two sets of keys do: a third ring cannot begin while anybody still reads of the first.
func (c *conversation) ring(q request) error {
	rank, size := c.slot.rank, c.proxy.group.Size
	key := func(rank int, side string) string {
		return fmt.Sprintf("PMIX_Ring-%d-%d-%s", c.rings%2, (rank+size)%size, side)
	}
	left, right := key(rank-1, "right"), key(rank+1, "left")
	for _, side := range []string{"left", "right"} {
		value, _ := q.get("ring-" + side)
		if err := c.store("", key(rank, side), value, maxStored); err != nil {
			c.refuse(q, err.Error())
			return &badInput{err}
		}
	}
	c.rings++
	return c.enter(world+":ring", func() {
		l, _ := c.proxy.lookup(left)
		r, _ := c.proxy.lookup(right)
		c.done(q, Pair{"ring-count", strconv.Itoa(rank)}, Pair{"ring-left", l}, Pair{"ring-right", r})
	})
}

// jobAttr answers what the launcher knows of the job; what it has preput counts as such.
func (c *conversation) jobAttr(ctx context.Context, q request) error {
	key, _ := q.get("key")
	if err := checkPlainKey(key); err != nil {
		return &badInput{fmt.Errorf("info-getjobattr of %w", err)}
	}
	switch key {
	case "universeSize":
		size := c.proxy.group.UniverseSize
		c.answer(q, strconv.Itoa(size), size > 0)
		return nil
	case "hasNameServ":
		c.answer(q, "t", true)
		return nil
	}
	return c.answerKey(ctx, q, key)
}

// nodeAttr answers with a node attribute; with wait it is awaited, while the rank's other threads go on.
func (c *conversation) nodeAttr(q request) error {
	key, _ := q.get("key")
	if err := checkPlainKey(key); err != nil {
		return &badInput{fmt.Errorf("info-getnodeattr of %w", err)}
	}
	value, found, _ := c.proxy.attr(key)
	if wait, _ := q.get("wait"); found || wait != yes {
		c.answer(q, value, found)
		return nil
	}
	return c.await(func() {
		for {
			value, found, put := c.proxy.attr(key)
			if found {
				c.answer(q, value, true)
				return
			}
			select {
			case <-put:
			case <-c.over:
				return
			}
		}
	})
}

func (c *conversation) packetNames(ctx context.Context, q request) error {
	service, _ := q.get("name")
	var refused string
	var err error
	var fields []Pair
	switch q.cmd {
	case "name-publish":
		port, _ := q.get("port")
		refused, err = c.publish(ctx, service, port)
	case "name-unpublish":
		refused, err = c.unpublish(ctx, service)
	case "name-lookup":
		var port string
		port, refused, err = c.find(ctx, service)
		fields = []Pair{{"port", port}, {"value", port}, {"found", yes}} // MPICH's client reads port, Slurm's value
	}
	switch {
	case err != nil:
		return err
	case refused != "":
		c.refuse(q, refused)
	default:
		c.done(q, fields...)
	}
	return nil
}

func (c *conversation) packetSpawn(ctx context.Context, q request) error {
	apps, preput, err := q.spawnPacket()
	if err != nil {
		return &badInput{err}
	}
	kvsName, errcodes, refused, err := c.spawn(ctx, apps, preput)
	if err != nil {
		return err
	}
	if refused != nil {
		c.refuse(q, refused.Error())
		return nil
	}
	fields := []Pair{{"jobid", kvsName}, {"nerrs", "0"}}
	if codes := joinCodes(errcodes); codes != "" {
		fields = []Pair{{"jobid", kvsName}, {"nerrs", strconv.Itoa(len(errcodes))}, {"errcodes", codes}}
	}
	c.done(q, fields...)
	return nil
}

// spawnPacket reads a PMI-2 spawn: what is common, and then a part for each program, which subcmd begins.
func (q request) spawnPacket() (apps []SpawnApp, preput []Pair, err error) {
	parts := [][]Pair{nil}
	for _, f := range q.fields[1:] {
		if f.Key == packetWords.program {
			parts = append(parts, nil)
		}
		last := len(parts) - 1
		parts[last] = append(parts[last], f)
	}
	for _, part := range parts[1:] {
		a, err := packetWords.app(request{fields: part}.values())
		if err != nil {
			return nil, nil, err
		}
		apps = append(apps, a)
	}
	if n, err := q.number("ncmds"); err != nil || n != len(apps) {
		return nil, nil, fmt.Errorf("spawn of %d programs that says otherwise in ncmds", len(apps))
	}
	preput, err = packetWords.preput(request{fields: parts[0]}.values())
	return apps, preput, err
}
