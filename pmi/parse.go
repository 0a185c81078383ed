package pmi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// parseMessage parses what follows a frame's length.
func parseMessage(body []byte) (message, error) {
	if len(body) == 0 {
		return message{}, errors.New("empty frame")
	}
	m := message{kind: kind(body[0])}
	layout, ok := layouts[m.kind]
	if !ok {
		return message{}, fmt.Errorf("frame of unknown kind %d", body[0])
	}
	p := parser{rest: body[1:]}
	for _, f := range layout.fields {
		if f == fieldVersion {
			if magic := p.str(len(protocolMagic)); p.err == nil && magic != protocolMagic {
				return message{}, errors.New("the peer is not one of ours: wrong magic")
			}
			m.version = p.number(math.MaxUint64)
			if p.err == nil && m.version != protocolVersion {
				return m, nil // the rest is another version's; the caller refuses it by number
			}
			continue
		}
		p.field(f, &m)
	}
	if p.err == nil && len(p.rest) > 0 {
		p.err = fmt.Errorf("%d bytes too many", len(p.rest))
	}
	if p.err != nil {
		return message{}, fmt.Errorf("parse %s message: %w", m.kind, p.err)
	}
	return m, nil
}

// parser takes fields off the front of rest until one is wrong; err is then set and all further fields are zero.
type parser struct {
	rest []byte
	err  error
}

// field takes one field into m.
func (p *parser) field(f field, m *message) {
	switch f {
	case fieldName:
		m.name = p.str(MaxKVSName)
	case fieldSize:
		m.size = int(p.number(MaxSize))
	case fieldRanks:
		for range p.count(MaxSize, 1) {
			m.ranks = append(m.ranks, int(p.number(MaxSize-1)))
		}
	case fieldRank:
		m.rank = int(p.number(MaxSize - 1))
	case fieldCode:
		m.code = p.code()
	case fieldCodes:
		for range p.count(MaxSize, 1) {
			m.codes = append(m.codes, p.code())
		}
	case fieldText:
		m.text = p.str(maxText)
	case fieldKey:
		if m.key = p.str(maxSpace + MaxKey); p.err == nil {
			p.check(checkKey(m.key))
		}
	case fieldService:
		if m.service = p.str(maxService); p.err == nil {
			p.check(checkService(m.service))
		}
	case fieldBarrier:
		m.barrier = p.str(maxBarrierName)
	case fieldFound:
		m.found = p.number(1) == 1
	case fieldValue:
		m.value = p.str(maxStored)
		p.check(checkValue("an answer", m.value, maxStored))
	case fieldPairs:
		m.pairs = p.pairs(MaxKey+maxSpace, maxStored)
		for _, pair := range m.pairs {
			p.check(checkKey(pair.Key))
			p.check(checkValue(pair.Key, pair.Value, maxStored))
		}
	case fieldApps:
		for range p.count(maxSpawnApps, 3) { // an app takes at least three bytes
			a := SpawnApp{Ranks: int(p.number(MaxSize))}
			for range p.count(maxSpawnBytes, 1) {
				a.Argv = append(a.Argv, p.str(maxSpawnBytes))
			}
			a.Info = p.pairs(maxSpawnBytes, maxSpawnBytes)
			m.apps = append(m.apps, a)
		}
	}
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
	p.rest = nil
}

func (p *parser) check(err error) {
	if err != nil {
		p.fail("%w", err)
	}
}

func (p *parser) number(most uint64) uint64 {
	v, n := binary.Uvarint(p.rest)
	if n <= 0 {
		p.fail("truncated")
		return 0
	}
	if v > most {
		p.fail("number %d is above %d", v, most)
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

// count takes how many things follow that have so many bytes each at least: checked before anything is allocated for them.
func (p *parser) count(most, each int) int {
	n := int(p.number(uint64(most)))
	if n*each > len(p.rest) {
		p.fail("truncated")
		return 0
	}
	return n
}

func (p *parser) code() int {
	v, n := binary.Varint(p.rest)
	if n <= 0 || v < math.MinInt32 || v > math.MaxInt32 {
		p.fail("code is truncated or out of range")
		return 0
	}
	p.rest = p.rest[n:]
	return int(v)
}

func (p *parser) str(most int) string {
	n := int(p.number(uint64(most)))
	if n > len(p.rest) {
		p.fail("truncated")
		return ""
	}
	s := string(p.rest[:n])
	p.rest = p.rest[n:]
	return s
}

func (p *parser) pairs(key, value int) []Pair {
	var pairs []Pair
	for range p.count(maxFrame, 2) { // a pair takes at least two bytes
		pairs = append(pairs, Pair{p.str(key), p.str(value)})
		if p.err != nil {
			return nil
		}
	}
	return pairs
}
