package launch

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/pmi/pmix"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// pmixWire serves PMIx: the server here, and a helper in each clone.
type pmixWire struct {
	group  *group
	server *pmix.Server
	job    pmix.Job
	send   func(event)
	at     map[string]int // the place of a clone in the job

	mu    sync.Mutex // guards nodes
	nodes map[string]*pmix.Node
}

// newPMIx makes the server of all groups of a job. What happens in a group goes to its wire.
func (r *run) newPMIx() *pmix.Server {
	return pmix.NewServer(pmix.Events{
		Init: func(p pmix.Proc) {
			r.tell(p, func(*pmixWire) event { return event{init: true} })
		},
		Abort: func(p pmix.Proc, code int, text string) {
			if text == "N/A" { // Open MPI's word for none
				text = ""
			}
			r.tell(p, func(w *pmixWire) event {
				return event{abort: &Failure{Rank: p.Rank, Clone: w.clone(p.Rank), Status: abortStatus(code), Cause: aborted(code, text)}}
			})
		},
		Message: func(p pmix.Proc, text string) {
			if r.Stderr == nil {
				r.Notice(text)
				return
			}
			terminal.Lock()
			defer terminal.Unlock()
			io.WriteString(r.Stderr, text)
		},
		Spawn: func(s pmix.Spawn, answer func(string, error)) {
			q, err := spawnRequest(s, answer)
			if err != nil {
				answer("", err)
				return
			}
			r.tell(s.By, func(*pmixWire) event { return event{spawn: q} })
		},
	})
}

// tell sends an event of a rank to its group.
func (r *run) tell(p pmix.Proc, e func(*pmixWire) event) {
	r.wiresMu.Lock()
	w := r.wires[p.Namespace]
	r.wiresMu.Unlock()
	if w != nil {
		w.send(e(w))
	}
}

// spawnRequest puts what Open MPI wants to have started as MPI puts it.
func spawnRequest(s pmix.Spawn, answer func(string, error)) (*pmi.SpawnRequest, error) {
	var apps []pmi.SpawnApp
	for _, a := range s.Apps {
		app := pmi.SpawnApp{Argv: []string{a.Program}, Ranks: a.Ranks, Env: a.Env}
		if len(a.Argv) > 1 {
			app.Argv = append(app.Argv, a.Argv[1:]...)
		}
		if a.Dir != "" {
			app.Info = append(app.Info, pmi.Pair{Key: "wdir", Value: a.Dir})
		}
		for _, info := range []map[string]string{s.Info, a.Info} {
			if hosts := info["pmix.host"]; hosts != "" {
				app.Info = append(app.Info, pmi.Pair{Key: "host", Value: hosts})
			}
		}
		apps = append(apps, app)
	}
	return pmi.NewSpawnRequest(s.By.Rank, apps, func(name string, _ []int, err error) { answer(name, err) })
}

func (g *group) newPMIxWire(send func(event)) (wire, error) {
	r := g.run
	w := &pmixWire{group: g, server: r.pmix(), send: send, at: map[string]int{}, nodes: map[string]*pmix.Node{}}
	w.job = pmix.Job{Namespace: g.kvs(), Universe: len(r.groups[0].procs)}
	for _, p := range g.places {
		if len(p.Ranks) > 0 {
			w.at[p.Name] = len(w.job.Places)
			w.job.Places = append(w.job.Places, pmix.Place{Name: p.Name, Ranks: p.Ranks})
		}
	}
	for _, a := range g.apps {
		if a.Ranks > 0 {
			w.job.Apps = append(w.job.Apps, pmix.App{Program: a.Argv[0], Dir: a.Dir, Ranks: a.Ranks})
		}
	}
	if g.spawned != nil {
		w.job.Parent = pmix.Proc{Namespace: g.spawned.by.kvs(), Rank: g.spawned.request.Rank}
	}
	if err := w.server.Add(w.job); err != nil {
		return nil, err
	}
	r.wiresMu.Lock()
	defer r.wiresMu.Unlock()
	if r.wires == nil {
		r.wires = map[string]*pmixWire{}
	}
	r.wires[w.job.Namespace] = w
	return w, nil
}

// clone names where a rank is.
func (w *pmixWire) clone(rank int) string {
	for _, p := range w.group.places {
		for _, r := range p.Ranks {
			if r == rank {
				return p.Name
			}
		}
	}
	return ""
}

// helperStream is the standard streams of a helper.
type helperStream struct {
	in  io.WriteCloser
	out io.ReadCloser
}

func (s helperStream) Read(b []byte) (int, error)  { return s.out.Read(b) }
func (s helperStream) Write(b []byte) (int, error) { return s.in.Write(b) }

func (s helperStream) Close() error {
	s.in.Close()
	return s.out.Close()
}

func (w *pmixWire) prepare(ctx, limit context.Context, p Place) error {
	id := w.group.ids + len(w.group.procs)
	var streams [3]io.ReadWriteCloser
	for fd := range streams {
		st, err := p.Session.Stdio(limit, id, fd)
		if err != nil {
			return err
		}
		streams[fd] = st
	}
	c := agent.Command{ID: id, Argv: []string{"sfpmix"}, Dir: "/", Env: helperEnv, User: w.group.run.User, PMIx: true}
	if _, err := p.Session.Start(limit, c); err != nil {
		return err
	}
	go w.complain(p, streams[2])
	n, err := w.server.Attach(limit, helperStream{streams[0], streams[1]}, w.job.Namespace, w.at[p.Name])
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.nodes[p.Name] = n
	w.mu.Unlock()
	go func() {
		if err := n.Serve(ctx); err != nil {
			w.send(event{lost: fmt.Sprintf("%v, and the ranks on %s cannot go on without it", err, p.Name)})
		}
	}()
	return nil
}

// helperEnv is a helper's environment: nothing of the user's that is meant for ranks.
var helperEnv = []string{"PATH=/usr/bin:/bin", "HOME=/", "HWLOC_COMPONENTS=-gl,-opencl"}

// maxComplaints is how many lines of a helper's are shown.
const maxComplaints = 20

// complain shows what a helper, or libpmix in it, writes to its standard error.
func (w *pmixWire) complain(p Place, stderr io.ReadCloser) {
	defer stderr.Close()
	lines := bufio.NewScanner(stderr)
	for n := 0; lines.Scan(); n++ {
		if n < maxComplaints {
			w.group.run.Notice(fmt.Sprintf("PMIx on %s: %q", p.Name, lines.Text()))
		}
	}
}

func (w *pmixWire) command(p Place, rank int, c *agent.Command) {
	w.mu.Lock()
	n := w.nodes[p.Name]
	w.mu.Unlock()
	// What a PMIx server around this launcher has said is not for the ranks.
	own := slices.DeleteFunc(slices.Clone(c.Env), func(e string) bool {
		return strings.HasPrefix(e, "PMIX_") && !strings.HasPrefix(e, "PMIX_MCA_")
	})
	c.Env = slices.Concat([]string{pmix.Yield}, own, n.Environ[rank], w.job.Environ(rank, p.IP))
	c.Progress = true
}

func (w *pmixWire) final(rank int) pmi.State {
	limit, cancel := context.WithTimeout(context.Background(), finalLimit)
	defer cancel()
	return w.server.Settle(limit, pmix.Proc{Namespace: w.job.Namespace, Rank: rank})
}
