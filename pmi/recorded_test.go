package pmi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Conversations of testdata/recorded are replayed line by line. A line is one of
//
//	# a comment
//	group NAME RANKS EACH UNIVERSE MAPPING
//	                                    a group of RANKS, EACH of them on every clone
//	singleton NAME                      a group of one, which has asked for a launcher
//	spawned GROUP NAME EACH MAPPING     the group that a rank of group number GROUP has asked for; it is answered
//	GROUP.RANK > REQUEST                what a rank sends; a request that begins with a digit has no line end, and one in
//	                                    quotes is written as in Go
//	GROUP.RANK < ANSWER                 what it hears next
//
// Groups are numbered as they come.
func TestRecorded(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "recorded", "*.txt"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d recorded conversations, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			file, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			r := &replay{t: t, names: NewNames()}
			scanner := bufio.NewScanner(file)
			for n := 1; scanner.Scan(); n++ {
				if err := r.line(scanner.Text()); err != nil {
					t.Fatalf("line %d: %q: %v", n, scanner.Text(), err)
				}
			}
			for _, j := range r.groups {
				for _, c := range j.ranks {
					c.conn.Close()
				}
				j.finish()
				if got := j.seen("protocol"); got != nil {
					t.Errorf("reported %q", got)
				}
			}
		})
	}
}

type replay struct {
	t      *testing.T
	names  *Names
	groups []*job
}

func (r *replay) line(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	words := strings.Fields(rest)
	number := func(i int) int {
		n, err := strconv.Atoi(words[i])
		if err != nil {
			r.t.Fatal(err)
		}
		return n
	}
	switch verb {
	case "#":
	case "group":
		g := Group{KVSName: words[0], Size: number(1), UniverseSize: number(3), Mapping: words[4]}
		r.groups = append(r.groups, startJob(r.t, r.names, number(2), g))
	case "singleton":
		r.groups = append(r.groups, startSingleton(r.t, r.names, words[0]))
	case "spawned":
		request := r.groups[number(0)].spawned()
		g := request.Group(words[1], nil)
		g.Mapping = words[3]
		r.groups = append(r.groups, startJob(r.t, r.names, number(2), g))
		request.Answer(words[1], nil, nil)
	default:
		return r.say(verb, rest)
	}
	return nil
}

// say sends or hears one line of a rank.
func (r *replay) say(who, what string) error {
	var group, rank int
	if _, err := fmt.Sscanf(who, "%d.%d", &group, &rank); err != nil {
		return err
	}
	c := r.groups[group].ranks[rank]
	direction, text, _ := strings.Cut(what, " ")
	if strings.HasPrefix(text, `"`) {
		var err error
		if text, err = strconv.Unquote(text); err != nil {
			return err
		}
	}
	packet := text != "" && (text[0] == ' ' || text[0] >= '0' && text[0] <= '9')
	switch {
	case direction == ">" && packet:
		_, err := io.WriteString(c.conn, text)
		return err
	case direction == ">":
		_, err := io.WriteString(c.conn, text+"\n")
		return err
	case packet:
		_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		got := make([]byte, len(text))
		if n, err := io.ReadFull(c.r, got); err != nil || string(got) != text {
			return fmt.Errorf("heard %q, %v", got[:n], err)
		}
	default:
		if got := c.hear(); got != text {
			return fmt.Errorf("heard %q", got)
		}
	}
	return nil
}

// startSingleton starts a group of one that has asked for a launcher.
func startSingleton(t testing.TB, names *Names, name string) *job {
	j := &job{t: t, group: Group{Size: 1, KVSName: name}, spawns: make(chan *SpawnRequest, 1)}
	j.server = NewServer(j.group, names, Events{
		Spawn:    func(r *SpawnRequest) { j.spawns <- r },
		Protocol: func(rank int, err error) { j.note("protocol %d %v", rank, err) },
	})
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- j.server.serveSingleton(t.Context(), theirs) }()
	j.ranks, j.ended = []*client{{t: t, conn: ours, r: bufio.NewReader(ours)}}, []chan error{ended}
	return j
}
