package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

const (
	suffix      = ".sock" // of a job's socket
	answerLimit = 5 * time.Second
	maxState    = 64 << 20 // bytes of JSON
	maxAtOnce   = 16       // jobs that are asked at once
)

// Publish serves the state of a job on a socket in dir, until ctx ends or close
// is called. The job's name is part of the socket's.
func Publish(ctx context.Context, dir, job string, s Source) (close func(), err error) {
	if job == "" || job != filepath.Base(job) || strings.HasPrefix(job, ".") {
		return nil, fmt.Errorf("publish the job's state: %q cannot be the name of a job", job)
	}
	if err := Clean(dir); err != nil {
		return nil, fmt.Errorf("publish the job's state: %w", err)
	}
	end, err := ServeUnix(filepath.Join(dir, job+suffix), jobHandler(s))
	if err != nil {
		return nil, fmt.Errorf("publish the job's state: %w", err)
	}
	stop := context.AfterFunc(ctx, end)
	return func() { stop(); end() }, nil
}

// Clean removes the sockets in dir that killed jobs have left.
func Clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove what jobs left: %w", err)
	}
	for _, e := range entries {
		if e.Type() != fs.ModeSocket || !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		// One that has not its name yet may be about to be listened on.
		if st, err := e.Info(); err != nil || strings.HasPrefix(e.Name(), ".") && time.Since(st.ModTime()) < time.Minute {
			continue
		}
		path := filepath.Join(dir, e.Name())
		conn, err := net.DialTimeout("unix", path, answerLimit)
		if err == nil {
			conn.Close()
		} else if errors.Is(err, unix.ECONNREFUSED) {
			os.Remove(path)
		}
	}
	return nil
}

// ServeUnix serves HTTP on a socket that only root may connect to, until close
// is called.
func ServeUnix(path string, h http.Handler) (close func(), err error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	server := Server(h)
	go server.Serve(l)
	return sync.OnceFunc(func() {
		os.Remove(path)
		server.Close()
	}), nil
}

// Server is an HTTP server whose clients cannot use up much.
func Server(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: answerLimit, ReadTimeout: answerLimit, WriteTimeout: time.Minute,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

// listen makes a socket that only root may connect to, from its first moment on,
// and that has its name only once it is listened on: who finds one without a
// listener knows that it was left behind.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	hidden := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	os.Remove(hidden)
	l, err := config.Listen(context.Background(), "unix", hidden)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Rename(hidden, path); err != nil {
		l.Close()
		os.Remove(hidden)
		return nil, err
	}
	return l, nil
}

// jobHandler serves one job.
func jobHandler(s Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, r *http.Request) {
		state, err := ask(r.Context(), s)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(state)
	})
	mux.Handle("GET /metrics", tell(func(ctx context.Context) ([]prometheus.Collector, error) {
		state, err := ask(ctx, s)
		return []prometheus.Collector{collector{state}}, err
	}))
	return mux
}

func ask(ctx context.Context, s Source) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit-answerLimit/5)
	defer cancel()
	state, err := s.State(ctx)
	if err != nil {
		return State{}, err
	}
	if state.Taken.IsZero() {
		state.Taken = time.Now()
	}
	return state, nil
}

// Handler serves /metrics of all jobs whose sockets are in dir, and of more,
// which may be nil.
func Handler(dir string, more prometheus.Collector) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", tell(func(ctx context.Context) ([]prometheus.Collector, error) {
		states, _ := Jobs(ctx, dir) // those that do not answer tell nothing
		all := []prometheus.Collector{collector(states)}
		if more != nil {
			all = append(all, more)
		}
		return all, nil
	}))
	return mux
}

// tell collects anew for each request.
func tell(collect func(context.Context) ([]prometheus.Collector, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all, err := collect(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		registry := prometheus.NewRegistry()
		for _, c := range all {
			registry.MustRegister(c)
		}
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(w, r)
	})
}

// Jobs are the states of the jobs whose sockets are in dir, by their beginning,
// and what went wrong with those that did not answer.
func Jobs(ctx context.Context, dir string) ([]State, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look which jobs run: %w", err)
	}
	var (
		mu     sync.Mutex
		states []State
		errs   []error
		all    sync.WaitGroup
	)
	turn := make(chan struct{}, maxAtOnce)
	for _, e := range entries {
		job, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || strings.HasPrefix(e.Name(), ".") || e.Type() != fs.ModeSocket {
			continue
		}
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			state, err := readState(ctx, filepath.Join(dir, e.Name()))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, errGone):
			case err != nil:
				errs = append(errs, fmt.Errorf("ask job %s what it does: %w", job, err))
			default:
				states = append(states, state)
			}
		})
	}
	all.Wait()
	slices.SortFunc(states, func(a, b State) int {
		if c := a.Began.Compare(b.Began); c != 0 {
			return c
		}
		return strings.Compare(a.Job, b.Job)
	})
	return states, errors.Join(errs...)
}

// errGone is that a job has ended meanwhile, or was killed before.
var errGone = errors.New("the job has ended")

func readState(ctx context.Context, path string) (s State, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		os.Remove(path) // nobody will listen on it any more
		return s, errGone
	case errors.Is(err, fs.ErrNotExist):
		return s, errGone
	case err != nil:
		return s, err
	}
	defer conn.Close()
	transport := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://job/state", nil)
	if err != nil {
		return s, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxState+1))
	switch {
	case err != nil:
		return s, err
	case response.StatusCode != http.StatusOK:
		return s, errors.New(strings.TrimSpace(string(body[:min(len(body), 1000)])))
	case len(body) > maxState:
		return s, fmt.Errorf("it answered more than %d bytes", maxState)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return State{}, fmt.Errorf("it answered what cannot be understood: %w", err)
	}
	return s, nil
}
