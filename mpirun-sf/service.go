package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/cluster"
	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

// defaultKeyFile is where a host's copy of the cluster's key is.
const defaultKeyFile = "/etc/mpirun-sf/cluster.key"

// serviceFlags are the host daemon's as a service, which starts daemons for
// launchers that have the cluster's key.
func serviceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "listen", Usage: "serve launchers at `ADDRESS`, such as 10.0.0.3 or :17470"},
		&cli.StringFlag{Name: "cluster-key", Value: defaultKeyFile, Usage: "the cluster's key is in `FILE`"},
		&cli.StringFlag{Name: "metrics", Usage: "tell metrics at `ADDRESS`, over HTTPS, or at unix:PATH"},
		&cli.StringFlag{Name: "export-cert", Usage: "write what Prometheus needs to read the metrics to the folder `DIR`, and end"},
		&cli.StringFlag{Name: "make-key", Usage: "make a key, write it to `FILE`, and end"},
		&cli.IntFlag{Name: "max-jobs", Value: cluster.MaxJobs, Usage: "run at most `N` jobs' daemons at once"},
	}
}

// asService does what the service's flags say, if there are any.
func asService(c *cli.Context) (done bool, err error) {
	switch {
	case c.IsSet("make-key"):
		return true, makeKey(c.String("make-key"))
	case c.IsSet("export-cert"):
		return true, exportCert(c.String("cluster-key"), c.String("export-cert"))
	case c.IsSet("listen"):
		return true, serveCluster(c)
	}
	return false, nil
}

func makeKey(path string) error {
	if err := cluster.MakeKey(path); err != nil {
		return err
	}
	tui.Notice("%s is the key of a new cluster; copy it to all of its hosts, as %s, readable only for root", path, defaultKeyFile)
	return nil
}

func exportCert(key, dir string) error {
	k, err := cluster.ReadKey(key)
	if err != nil {
		return err
	}
	if err := cluster.ExportMetrics(k, dir); err != nil {
		return err
	}
	tui.Notice("%s, %s and %s in %s are Prometheus's to read the cluster's metrics, and good for nothing else",
		cluster.MetricsCA, cluster.MetricsCertificate, cluster.MetricsSecret, dir)
	return nil
}

// serveMetrics tells those of the service, and of all jobs that were launched on
// this machine, until close is called.
func serveMetrics(address string, k cluster.Key, s *cluster.Service) (close func(), err error) {
	h := metrics.Handler(jobsFolder, s.Collector())
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return metrics.ServeUnix(path, h)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("tell metrics: %w", err)
	}
	go cluster.ServeMetrics(l, k, h)
	return func() { l.Close() }, nil
}

// serveCluster runs the service until it is told to end, once for when no job
// runs any more, twice for now.
func serveCluster(c *cli.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("the service starts virtual machines, and needs root for it (namespaces, taps, FUSE)")
	}
	if n := c.Int("max-jobs"); n < 1 || n > 1<<16 {
		return fmt.Errorf("--max-jobs %d: it is from 1 to %d", n, 1<<16)
	}
	key, err := cluster.ReadKey(c.String("cluster-key"))
	if err != nil {
		return err
	}
	log := serviceLog()
	s, err := cluster.Listen(c.Context, listenAddress(c.String("listen")), cluster.ServiceConfig{
		// By this name the daemons are of the service's version also after the file
		// has been replaced.
		Key: key, Program: "/proc/self/exe", Args: []string{"sfld", "--host"},
		MaxJobs: c.Int("max-jobs"), Log: log,
	})
	if err != nil {
		return err
	}
	if c.IsSet("metrics") {
		end, err := serveMetrics(c.String("metrics"), key, s)
		if err != nil {
			s.Close()
			return err
		}
		defer end()
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go s.Serve()
	log.Info().Str("version", version).Stringer("at", s.Addr()).Msg("serving launchers")
	tellSystemd("READY=1")

	<-signals
	tellSystemd("STOPPING=1")
	if n := s.State().Jobs; n > 0 {
		log.Info().Int("jobs", n).Msg("taking no more jobs; ending when those that run have, or at once with a second signal")
	}
	draining, now := context.WithCancel(c.Context)
	go func() {
		<-signals
		now()
	}()
	s.Drain(draining)
	s.Close()
	log.Info().Msg("ended")
	return nil
}

// listenAddress adds the usual port where none is given.
func listenAddress(a string) string {
	if _, _, err := net.SplitHostPort(a); err == nil {
		return a
	}
	return net.JoinHostPort(strings.Trim(a, "[]"), strconv.Itoa(cluster.DefaultPort))
}

// serviceLog writes lines for people. The journal has the time itself, and takes
// the level from a prefix (sd-daemon(3)).
func serviceLog() zerolog.Logger {
	w := zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true, TimeFormat: time.DateTime}
	if os.Getenv("JOURNAL_STREAM") != "" {
		w.PartsOrder = []string{zerolog.LevelFieldName, zerolog.MessageFieldName}
		w.FormatLevel = func(level any) string {
			return map[any]string{"warn": "<4>", "error": "<3>"}[level] + "mpirun-sf:"
		}
	}
	return zerolog.New(w).With().Timestamp().Logger()
}

// tellSystemd tells it how the service does, if it was started by it
// (sd_notify(3)).
func tellSystemd(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		return // nobody waits for it, then
	}
	defer conn.Close()
	conn.Write([]byte(state))
}
