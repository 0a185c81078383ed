package pmix

import (
	"encoding/binary"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// logMessage is PMIx's key for what Open MPI has shown.
const logMessage = "pmix.log.msg"

// message shows what a rank has its launcher show, each topic once for the job: what one rank complains of, the others
// often do too.
func (s *Server) message(n *Node, d *decoder) error {
	id := d.number()
	by, err := n.own(d.number())
	if err != nil {
		return err
	}
	var texts []string
	for range d.count(8) {
		key, data := d.string(), d.bytes()
		topic, text := key, string(data)
		if key == logMessage {
			topic, text = helpText(data)
		}
		if text = hearsay.Lines(text[:min(len(text), maxText)]); text != "" && s.fresh(by.Namespace, topic) {
			texts = append(texts, strings.TrimSuffix(text, "\n")+"\n")
		}
	}
	if err := d.end(); err != nil {
		return err
	}
	if s.events.Message != nil {
		for _, text := range texts {
			s.events.Message(by, text)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := n.begin(); err != nil {
		return err
	}
	n.done(id, ok)
	return nil
}

// maxTopics bounds what is remembered of what was shown, and so what can be.
const maxTopics = 64

// fresh reports whether a topic has not been shown for the job yet.
func (s *Server) fresh(namespace, topic string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[namespace]
	if j.shown[topic] || len(j.shown) >= maxTopics {
		return false
	}
	j.shown[topic] = true
	return true
}

// helpText reads what Open MPI 4 logs, as its own data type support packs it: the file and the topic of a help text, a flag,
// and the text. Each is behind a count, 1, and strings, which end in NUL, are behind their length.
func helpText(data []byte) (topic, text string) {
	d := &decoder{b: data}
	next := func() string {
		if d.number() != 1 {
			d.err = errShort
		}
		return strings.TrimSuffix(d.string(), "\x00")
	}
	file, name := next(), next()
	if n := 4 + 1; d.err == nil && len(d.b) >= n && binary.BigEndian.Uint32(d.b) == 1 {
		d.b = d.b[n:]
	}
	text = next()
	if d.end() != nil {
		return "", ""
	}
	return file + " " + name, text
}
