package pmi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// PMI-1: what is asked in lines, and how it is answered. Version 1.2 is 1.1 with barriers of groups of ranks.

// topologyKey is where MPICH 4.2 looks for a file with the node's topology. Without an answer it goes without a topology;
// to this one it finds out for itself.
const (
	topologyKey     = "PMI_hwloc_xmlfile"
	topologyUnknown = "unavailable"
)

func (c *conversation) handleLine(ctx context.Context, q request) error {
	switch q.cmd {
	case "init":
		return c.init(q)
	case "initack":
		return c.initack(q)
	}
	if err := c.mustBe(Initialized, q); err != nil {
		return err
	}
	g, l := c.proxy.group, c.link
	switch q.cmd {
	case "get_maxes":
		l.line("cmd=maxes kvsname_max=%d keylen_max=%d vallen_max=%d", announcedKVSName, MaxKey, MaxValue)
	case "get_appnum":
		l.line("cmd=appnum appnum=%d", g.appNum(c.slot.rank))
	case "get_my_kvsname":
		l.line("cmd=my_kvsname kvsname=%s", g.KVSName)
	case "get_universe_size":
		size := g.UniverseSize
		if size <= 0 {
			size = -1
		}
		l.line("cmd=universe_size size=%d", size)
	case "put":
		return c.linePut(q)
	case "get":
		return c.lineGet(ctx, q)
	case "create_kvs", "destroy_kvs", "getbyidx":
		return c.lineSpaces(q)
	case "barrier_in":
		return c.lineBarrier(q)
	case "publish_name", "unpublish_name", "lookup_name":
		return c.lineNames(ctx, q)
	case "spawn":
		return c.lineSpawn(ctx, q)
	case "finalize":
		if err := c.advance(Finalized, kindFinalize); err != nil {
			return err
		}
		l.line("cmd=finalize_ack")
	default:
		// An answer under an unknown name fails the call; none would hang it.
		l.line("cmd=%s_result rc=-1 msg=not_supported", word(q.cmd))
		return c.fault(fmt.Errorf("%s is not supported", hearsay.Clip(q.cmd)))
	}
	return nil
}

// init begins PMI of either version: a client of PMI-2 goes on with a packet, fullinit.
func (c *conversation) init(q request) error {
	if c.proxy.RankState(c.slot.rank) == Initialized {
		return &badInput{errors.New("init twice: two processes share one rank's PMI connection")}
	}
	version, err := q.number("pmi_version")
	if err != nil {
		return &badInput{err}
	}
	switch version {
	case 1:
		if err := c.advance(Initialized, kindInit); err != nil {
			return err
		}
		c.link.line("cmd=response_to_init pmi_version=1 pmi_subversion=2 rc=0")
	case 2:
		c.link.greetV2()
	default:
		c.link.line("cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=-1")
		return &badInput{fmt.Errorf("init of PMI version %d: versions 1 and 2 are spoken here", version)}
	}
	return nil
}

// initack comes first in port mode. Who the rank is has been settled before: see ServePort.
func (c *conversation) initack(q request) error {
	if err := c.mustBe(NotStarted, q); err != nil {
		return err
	}
	c.link.line("cmd=initack\ncmd=set size=%d\ncmd=set rank=%d\ncmd=set debug=0", c.proxy.group.Size, c.slot.rank)
	return nil
}

// space says which key-value space of this group a request means: it may leave the name out for the group's own.
func (c *conversation) space(q request) (space string, ok bool) {
	name, given := q.get("kvsname")
	own := c.proxy.group.KVSName
	if !given || name == own {
		return "", true
	}
	space, ok = strings.CutPrefix(name, own+"_")
	if !ok || !isSpace(space) {
		return "", false
	}
	_, destroyed := c.proxy.lookup(inSpace(space, ""))
	return space, !destroyed
}

func (c *conversation) linePut(q request) error {
	key, _ := q.get("key")
	value, given := q.get("value")
	space, ours := c.space(q)
	var err error
	switch {
	case !given:
		err = fmt.Errorf("put of %s without value", hearsay.Clip(key))
	case key == "" && value == "": // MPICH 4.0's singleton, which has put nothing before it found a launcher
	case !ours:
		err = fmt.Errorf("put of %s into another group's key-value space", hearsay.Clip(key))
	default:
		err = c.store(space, key, value, MaxValue)
	}
	if err != nil {
		c.link.line("cmd=put_result rc=-1 msg=%s", word(err.Error()))
		return &badInput{err}
	}
	c.link.line("cmd=put_result rc=0 msg=success")
	return nil
}

func (c *conversation) lineGet(ctx context.Context, q request) error {
	key, _ := q.get("key")
	if err := checkPlainKey(key); err != nil {
		return &badInput{fmt.Errorf("get of %w", err)}
	}
	space, ours := c.space(q)
	if !ours {
		c.link.line("cmd=get_result rc=-1 msg=kvsname_not_found value=unknown")
		return nil
	}
	value, found, err := c.fetch(ctx, inSpace(space, key))
	if err != nil {
		return err
	}
	if !found && space == "" && key == topologyKey {
		value, found = topologyUnknown, true
	}
	answer := "cmd=get_result rc=0 msg=success value=" + value
	switch {
	case !found:
		c.link.line("cmd=get_result rc=-1 msg=key_%s_not_found value=unknown", key)
	case len(answer) >= clientLine: // a client of PMI-2 has put it
		c.link.line("cmd=get_result rc=-1 msg=value_too_long value=unknown")
	default:
		c.link.line("%s", answer)
	}
	return nil
}

// lineSpaces answers what MPICH has not sent for long: spaces beside the group's own, and keys by number.
func (c *conversation) lineSpaces(q request) error {
	if q.cmd == "create_kvs" {
		if c.spaces >= maxSpaces {
			return &badInput{fmt.Errorf("create_kvs more than %d times", maxSpaces)}
		}
		c.link.line("cmd=newkvs kvsname=%s_%s", c.proxy.group.KVSName, spaceName(c.slot.rank, c.spaces))
		c.spaces++
		return nil
	}
	space, ours := c.space(q)
	name, _ := q.get("kvsname")
	if q.cmd == "destroy_kvs" {
		if !ours || space == "" {
			c.link.line("cmd=kvs_destroyed rc=-1 msg=KVS_%s_not_found", word(name))
			return nil
		}
		if err := c.proxy.put(c.slot, Pair{inSpace(space, ""), ""}); err != nil {
			return &badInput{err}
		}
		c.link.line("cmd=kvs_destroyed rc=0 msg=KVS_%s_successfully_destroyed", name)
		return nil
	}
	if !ours {
		c.link.line("cmd=getbyidx_results rc=-1 reason=kvs_%s_not_found", word(name))
		return nil
	}
	i, err := q.number("idx")
	if err != nil {
		return &badInput{err}
	}
	keys := c.proxy.keys(space)
	if i < 0 || i >= len(keys) {
		c.link.line("cmd=getbyidx_results rc=-1 reason=no_more_keyvals")
		return nil
	}
	value, _ := c.proxy.lookup(inSpace(space, keys[i]))
	c.link.line("cmd=getbyidx_results rc=0 nextidx=%d key=%s val=%s", i+1, keys[i], value)
	return nil
}

// keys lists what the cache has of a space, sorted.
func (p *Proxy) keys(space string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var keys []string
	for key := range p.cache {
		in, rest, found := strings.Cut(key, " ")
		switch {
		case !found && space == "":
			keys = append(keys, key)
		case found && in == space && rest != "":
			keys = append(keys, rest)
		}
	}
	slices.Sort(keys)
	return keys
}

func (c *conversation) lineBarrier(q request) error {
	group, given := q.get("group")
	if !given {
		return c.enter(world, func() { c.link.line("cmd=barrier_out") })
	}
	return c.enter(group, func() { c.link.line("cmd=barrier_out group=%s", group) })
}

// lineNames answers in words that older clients (info) and newer ones (rc) look at.
func (c *conversation) lineNames(ctx context.Context, q request) error {
	service, _ := q.get("service")
	verb, _, _ := strings.Cut(q.cmd, "_")
	var port, refused string
	var err error
	switch verb {
	case "publish":
		given, _ := q.get("port")
		refused, err = c.publish(ctx, service, given)
	case "unpublish":
		refused, err = c.unpublish(ctx, service)
	case "lookup":
		port, refused, err = c.find(ctx, service)
	}
	switch {
	case err != nil:
		return err
	case refused != "" && verb == "lookup":
		c.link.line("cmd=lookup_result rc=1 msg=%s", refused)
	case refused != "":
		c.link.line("cmd=%s_result info=ok rc=1 msg=%s", verb, refused)
	case verb == "lookup":
		c.link.line("cmd=lookup_result port=%s info=ok rc=0 msg=success", port)
	default:
		c.link.line("cmd=%s_result info=ok rc=0 msg=success", verb)
	}
	return nil
}

// lineSpawn takes one block of a spawn. There are totspawns of them, and only the last is answered.
func (c *conversation) lineSpawn(ctx context.Context, q request) error {
	total, err := q.number("totspawns")
	if err != nil || total < 1 || total > maxSpawnApps {
		return &badInput{fmt.Errorf("spawn of %d programs: must be 1 to %d", total, maxSpawnApps)}
	}
	c.blocks = append(c.blocks, q)
	bytes := 0
	for _, block := range c.blocks {
		bytes += block.bytes
	}
	if bytes > maxSpawnBytes {
		return &badInput{fmt.Errorf("spawn of more than %d bytes", maxSpawnBytes)}
	}
	if len(c.blocks) < total {
		return nil
	}
	blocks := c.blocks
	c.blocks = nil
	var apps []SpawnApp
	for _, block := range blocks {
		a, err := lineWords.app(block.values())
		if err != nil {
			return &badInput{err}
		}
		apps = append(apps, a)
	}
	preput, err := lineWords.preput(blocks[0].values()) // the same in all
	if err != nil {
		return &badInput{err}
	}
	_, errcodes, refused, err := c.spawn(ctx, apps, preput)
	if err != nil {
		return err
	}
	answer := "cmd=spawn_result rc=0"
	if codes := joinCodes(errcodes); codes != "" {
		answer += " errcodes=" + codes
	}
	switch {
	case refused != nil:
		c.link.line("cmd=spawn_result rc=-1 msg=%s", word(refused.Error()))
	case len(answer) >= clientLine:
		c.link.line("cmd=spawn_result rc=-1 msg=too_many_error_codes_for_a_line")
	default:
		c.link.line("%s", answer)
	}
	return nil
}
