package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

// reader is a client as Prometheus makes it of tls_config.
func reader(t *testing.T, dir string) *http.Client {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(dir, MetricsCA))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no certificate authority")
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(dir, MetricsCertificate), filepath.Join(dir, MetricsSecret))
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: pool, Certificates: []tls.Certificate{own}, ServerName: "mpirun-sf",
	}}}
}

func TestMetricsAreForTheirReaders(t *testing.T) {
	k := someKey()
	s, _ := serve(t, ServiceConfig{Key: k, MaxJobs: 7})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go ServeMetrics(l, k, metrics.Handler(t.TempDir(), s.Collector()))
	url := "https://" + l.Addr().String() + "/metrics"

	dir := filepath.Join(t.TempDir(), "prometheus")
	for range 2 { // again over what is there
		if err := ExportMetrics(k, dir); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, MetricsSecret)); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	response, err := reader(t, dir).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", response.Status, err)
	}
	for _, want := range []string{"mpirun_sf_service_jobs 0\n", "mpirun_sf_service_max_jobs 7\n", "mpirun_sf_service_draining 0\n", "mpirun_sf_service_refused_total 0\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}

	// Neither strangers, nor the readers of another cluster, nor a service.
	other := filepath.Join(t.TempDir(), "other")
	if err := ExportMetrics(someKey(), other); err != nil {
		t.Fatal(err)
	}
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	theirs := reader(t, other)
	theirs.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
	for name, c := range map[string]*http.Client{"stranger": stranger, "another cluster's": theirs, "another cluster's, who looks": reader(t, other)} {
		if response, err := c.Get(url); err == nil {
			response.Body.Close()
			t.Errorf("%s: %s", name, response.Status)
		}
	}
	// And the reader of metrics starts no daemons.
	id, err := k.MetricsReader()
	if err != nil {
		t.Fatal(err)
	}
	a := allocate(t, k, s)
	a.id = id
	if _, err := start(t, a, h1); err == nil {
		t.Error("a reader of metrics has started a daemon")
	}
}
