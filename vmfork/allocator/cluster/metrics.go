package cluster

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

// The files of [ExportMetrics], which are what Prometheus wants for tls_config.
const (
	MetricsCA          = "ca.crt"     // by which the services' /metrics are known, under the name mpirun-sf
	MetricsCertificate = "client.crt" // by which they know who reads them
	MetricsSecret      = "client.key"
)

// ExportMetrics writes to a folder what one needs to read the services'
// metrics, and can do nothing else with.
func ExportMetrics(k Key, dir string) error {
	if err := exportMetrics(k, dir); err != nil {
		return fmt.Errorf("export what reads metrics: %w", err)
	}
	return nil
}

func exportMetrics(k Key, dir string) error {
	server, err := k.Metrics()
	if err != nil {
		return err
	}
	reader, err := k.MetricsReader()
	if err != nil {
		return err
	}
	secret, err := reader.Secret()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		text []byte
		mode os.FileMode
	}{{MetricsCA, server.Certificate(), 0o644}, {MetricsCertificate, reader.Certificate(), 0o644}, {MetricsSecret, secret, 0o600}} {
		path := filepath.Join(dir, f.name)
		// A new file, so that the mode is this one from its beginning.
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
		w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
		if err != nil {
			return err
		}
		_, err = w.Write(f.text)
		if closed := w.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ServeMetrics serves h over HTTPS to those who have what ExportMetrics writes,
// until l is closed.
func ServeMetrics(l net.Listener, k Key, h http.Handler) error {
	id, err := k.Metrics()
	if err != nil {
		return err
	}
	reader, err := k.MetricsReader()
	if err != nil {
		return err
	}
	server := metrics.Server(h)
	server.TLSConfig = link.ServerConfig(id, reader.Fingerprint())
	return server.ServeTLS(l, "", "")
}

// Collector tells the service's state to Prometheus.
func (s *Service) Collector() prometheus.Collector {
	registry := collectors{}
	gauge := func(name, help string, of func(State) float64) {
		registry = append(registry, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "mpirun_sf", Subsystem: "service", Name: name, Help: help},
			func() float64 { return of(s.State()) }))
	}
	count := func(name, help string, of func(State) int64) {
		registry = append(registry, prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "mpirun_sf", Subsystem: "service", Name: name, Help: help},
			func() float64 { return float64(of(s.State())) }))
	}
	gauge("jobs", "Daemons of jobs that run on this host.", func(s State) float64 { return float64(s.Jobs) })
	gauge("max_jobs", "At most so many may.", func(s State) float64 { return float64(s.MaxJobs) })
	gauge("draining", "Whether no more jobs are taken.", func(s State) float64 {
		if s.Draining {
			return 1
		}
		return 0
	})
	count("started_total", "Daemons of jobs that were started.", func(s State) int64 { return s.Started })
	count("failed_total", "Requests that came to nothing.", func(s State) int64 { return s.Failed })
	count("refused_total", "Connections that were refused: without the cluster's key, say.", func(s State) int64 { return s.Refused })
	return registry
}

// collectors are several as one.
type collectors []prometheus.Collector

func (all collectors) Describe(out chan<- *prometheus.Desc) {
	for _, c := range all {
		c.Describe(out)
	}
}

func (all collectors) Collect(out chan<- prometheus.Metric) {
	for _, c := range all {
		c.Collect(out)
	}
}
