package e2e

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// applicationLimit is for one run: each application has an image of its own, which
// is booted first.
const applicationLimit = 5 * time.Minute

// mrBayesLimit is for building MrBayes, the first time.
const mrBayesLimit = 20 * time.Minute

// An application is one that no one here wrote. docs/applications.md has the
// command lines.
type application struct {
	name     string
	packages []string // of Debian
	always   bool     // it is small enough for each run of the tests
	openMPI  bool     // its family, else MPICH
	prepare  func(t *testing.T, dir string)
	argv     []string
	output   string         // files that it writes instead of standard output (a pattern)
	numbers  *regexp.Regexp // what has to be the same, in each line that matches
	atLeast  int            // so many lines
	picture  string         // a file that it writes, and that has to be the same to the byte
}

// keep writes an input file of an application.
func keep(name, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { write(t, filepath.Join(dir, name), text) }
}

var applications = []application{
	{
		name: "mpi4py", packages: []string{"python3-mpi4py"}, always: true, openMPI: true,
		prepare: keep("sum.py", "from mpi4py import MPI\nc = MPI.COMM_WORLD\n"+
			"s = c.allreduce(c.rank + 1)\nd = c.gather({'rank': c.rank, 'sum': s})\nif c.rank == 0: print(d, flush=True)\n"),
		argv: []string{"/usr/bin/python3", "sum.py"}, numbers: regexp.MustCompile(`.*sum.*`), atLeast: 1,
	},
	{
		// Times differ; that each size was sent and arrived does not.
		name: "NetPIPE of MPICH", packages: []string{"netpipe-mpich2"},
		argv: []string{"NPmpich2", "-i", "-u", "4096", "-o", "np.out"}, output: "np.out",
		numbers: regexp.MustCompile(`^ *[0-9]+`), atLeast: 10,
	},
	{
		name: "NetPIPE of Open MPI", packages: []string{"netpipe-openmpi"}, openMPI: true,
		argv: []string{"NPopenmpi", "-i", "-u", "4096", "-o", "np.out"}, output: "np.out",
		numbers: regexp.MustCompile(`^ *[0-9]+`), atLeast: 10,
	},
	{
		name: "LAMMPS", packages: []string{"lammps"}, openMPI: true,
		prepare: keep("melt.in", "units lj\natom_style atomic\nlattice fcc 0.8442\nregion box block 0 6 0 6 0 6\ncreate_box 1 box\n"+
			"create_atoms 1 box\nmass 1 1.0\nvelocity all create 3.0 87287 loop geom\npair_style lj/cut 2.5\npair_coeff 1 1 1.0 1.0 2.5\n"+
			"neighbor 0.3 bin\nneigh_modify every 20 delay 0 check no\nfix 1 all nve\nthermo 50\nrun 100\n"),
		argv:    []string{"lmp", "-in", "melt.in"},
		numbers: regexp.MustCompile(`^ +(0|50|100) +[-0-9.]+ +[-0-9.]+.*`), atLeast: 3,
	},
	{
		name: "Quantum ESPRESSO", packages: []string{"quantum-espresso", "quantum-espresso-data"}, openMPI: true,
		prepare: func(t *testing.T, dir string) {
			gunzip(t, "/usr/share/doc/quantum-espresso/examples/CPV/EXX-wf-example/H_HSCV_PBE-1.0.UPF.gz", filepath.Join(dir, "H.UPF"))
			write(t, filepath.Join(dir, "h2.in"), "&control\n calculation='scf', pseudo_dir='./', outdir='./out', prefix='h2'\n/\n"+
				"&system\n ibrav=1, celldm(1)=10.0, nat=2, ntyp=1, ecutwfc=20.0\n/\n&electrons\n conv_thr=1.0d-8\n/\n"+
				"ATOMIC_SPECIES\n H 1.008 H.UPF\nATOMIC_POSITIONS angstrom\n H 0 0 0\n H 0 0 0.74\nK_POINTS gamma\n")
		},
		argv: []string{"pw.x", "-in", "h2.in"}, numbers: regexp.MustCompile(`^! +total energy += +-[0-9]+\.[0-9]{5}`), atLeast: 1,
	},
	{
		// Its ranks share the bootstraps.
		name: "PhyML", packages: []string{"phyml"}, openMPI: true,
		prepare: keep("aln.phy", " 6 60\n"+
			"a         ACGTTGCAACGGTTAACCGATCGATTACGGATCCATTAGCGGATCCTTAGCAACGTTGCA\n"+
			"b         ACGTTGCAACGCTTAACCGATCTATTACGGATGCATTAGCGGATCCTTAGCTACGTTGCA\n"+
			"c         ACCTTGGAACGGTAAACCGTTCGATTACCGATCCTTTAGCGGTTCCATAGCAACCTTGGA\n"+
			"d         ACCTTGGAACGGTAAACGGTTCGAATACCGATCCTTTACCGGTTCCATAGGAACCTTGGA\n"+
			"e         TCCTAGGAACGCTAAATGGTACGAATTCCGTTCCTTGACCGCTTCGATAGGAATCTTGGT\n"+
			"f         TCCTAGCAACGCTTAATGGTACCAATTCCGTTGCTTGACAGCTTCGATTGGAATCTAGGT\n"),
		argv:   []string{"phyml-mpi", "-i", "aln.phy", "-b", "4", "--r_seed", "7", "--no_memory_check", "--quiet"},
		output: "aln.phy_phyml_*.txt", numbers: regexp.MustCompile(`^(\. .*og-likelihood.*| +#[0-9].*|\(.*;)$`), atLeast: 12,
	},
	{
		name: "HPCC", packages: []string{"hpcc"}, openMPI: true,
		prepare: func(t *testing.T, dir string) {
			b, err := os.ReadFile("/usr/share/doc/hpcc/examples/_hpccinf.txt")
			if err != nil {
				t.Fatal(err)
			}
			text := regexp.MustCompile(`(?m)^1000 +Ns`).ReplaceAllString(string(b), "200 Ns")
			text = regexp.MustCompile(`(?m)^2 +Ps`).ReplaceAllString(text, "1 Ps")
			write(t, filepath.Join(dir, "hpccinf.txt"), text)
		},
		argv: []string{"hpcc"}, output: "hpccoutf.txt",
		numbers: regexp.MustCompile(`^(Success|HPL_N|HPL_nprow|HPL_npcol|PTRANS_n|MPIRandomAccess_N|MPIFFT_N|CommWorldProcs)=.*`), atLeast: 6,
	},
	{
		// Of four chains each rank has two, and they are swapped between ranks. Parameters and trees are the same to the last
		// digit; what else is in the files tells when they were made.
		name: "MrBayes of Debian's source",
		prepare: func(t *testing.T, dir string) {
			build := mrBayes(t)
			tool(t, "cp", filepath.Join(build, "build/src/mb"), dir)
			examples, err := filepath.Glob(filepath.Join(build, "mrbayes-*/examples/primates.nex"))
			if err != nil || len(examples) != 1 {
				t.Fatalf("examples of MrBayes in %s: %v, %v", build, examples, err)
			}
			tool(t, "cp", examples[0], dir)
			write(t, filepath.Join(dir, "run.nex"), "#NEXUS\nbegin mrbayes;\n set autoclose=yes nowarn=yes seed=7 swapseed=11;\n execute primates.nex;\n"+
				" lset nst=6 rates=gamma;\n mcmc ngen=1000 nruns=1 nchains=4 samplefreq=50 printfreq=200 diagnfreq=500 file=primates;\nend;\n")
		},
		argv: []string{"./mb", "run.nex"}, output: "primates.[pt]",
		numbers: regexp.MustCompile(`^([0-9]+\t.*|.*tree gen\.[0-9]+ = .*)`), atLeast: 2 * 21,
	},
	{
		name: "Tachyon of MPICH", packages: []string{"libtachyon-mpich-0-dev"},
		prepare: renderer("mpicc.mpich", "-ltachyon-mpich"),
		argv:    []string{"./render", "out.ppm"}, numbers: regexp.MustCompile(`^rank . of 2`), atLeast: 2, picture: "out.ppm",
	},
	{
		name: "Tachyon of Open MPI", packages: []string{"libtachyon-openmpi-0-dev"}, openMPI: true,
		prepare: renderer("mpicc.openmpi", "-ltachyon-openmpi"),
		argv:    []string{"./render", "out.ppm"}, numbers: regexp.MustCompile(`^rank . of 2`), atLeast: 2, picture: "out.ppm",
	},
}

// renderer links our picture with Tachyon's library of one MPI.
func renderer(compiler, library string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		tool(t, "cp", compile(t, compiler, "testdata/tachyon.c", library), filepath.Join(dir, "render"))
	}
}

// mrBayes is the folder of a build of MrBayes in the user's cache. The first time it is built there, as the user.
func mrBayes(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil { // the user's compiler writes there
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), mrBayesLimit)
	defer cancel()
	builder := filepath.Join(dir, "mrbayes")
	asTheUser := func(argv ...string) string {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		var said strings.Builder
		cmd.Dir, cmd.Stderr = "../..", &said
		asUser(cmd)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, &said)
		}
		return strings.TrimSpace(string(out))
	}
	asTheUser("go", "build", "-o", builder, "./benchmarks/mrbayes")
	return asTheUser(builder)
}

// gunzip unpacks a file.
func gunzip(t *testing.T, from, to string) {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(b))
}

// install brings packages that are not on the machine.
func install(t *testing.T, packages []string) {
	t.Helper()
	for _, p := range packages {
		if exec.Command("dpkg", "-s", p).Run() == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), applicationLimit)
		defer cancel()
		cmd := exec.CommandContext(ctx, "apt-get", "-qq", "install", "-y", "--no-install-recommends", p)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apt-get install %s: %v\n%s", p, err, out)
		}
	}
}

// results are the lines that have to be the same, in their order unless ranks print them.
func (a application) results(t *testing.T, dir, stdout string) []string {
	t.Helper()
	if a.output != "" {
		files, err := filepath.Glob(filepath.Join(dir, a.output))
		if err != nil {
			t.Fatal(err)
		}
		said := stdout
		stdout = ""
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			stdout += string(b)
		}
		if stdout == "" {
			t.Fatalf("nothing is in %s:\n%s", a.output, said)
		}
	}
	var out []string
	for line := range strings.Lines(stdout) {
		if m := a.numbers.FindString(strings.TrimRight(line, "\n")); m != "" {
			out = append(out, strings.TrimSpace(m))
		}
	}
	if len(out) < a.atLeast {
		t.Fatalf("%d results, want %d:\n%s", len(out), a.atLeast, stdout)
	}
	if a.picture != "" {
		slices.Sort(out)
		b, err := os.ReadFile(filepath.Join(dir, a.picture))
		if err != nil {
			t.Fatal(err)
		}
		if colours := len(slices.Compact(slices.Sorted(slices.Values(b)))); colours < 100 {
			t.Errorf("%s has only %d different bytes in its %d: it is no picture", a.picture, colours, len(b))
		}
		out = append(out, fmt.Sprintf("%s of %d bytes, SHA-256 %x", a.picture, len(b), sha256.Sum256(b)))
	}
	return out
}

// TestApplications: programs that no one here wrote find out the same on clones as
// under their own MPI's launcher.
func TestApplications(t *testing.T) {
	nothingIsLeft(t)
	for _, a := range applications {
		t.Run(a.name, func(t *testing.T) {
			if !a.always && !full {
				t.Skip("with large packages: MPIRUN_SF_TEST_ALL=1 (make test-all) runs it")
			}
			install(t, a.packages)
			here, there := t.TempDir(), t.TempDir()
			if a.prepare != nil {
				a.prepare(t, here)
				a.prepare(t, there)
			}
			own := []string{"mpiexec.hydra", "-n", "2"}
			if a.openMPI {
				own = []string{"mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-np", "2"}
			}
			ctx, cancel := context.WithTimeout(t.Context(), applicationLimit)
			defer cancel()
			cmd := exec.CommandContext(ctx, own[0], slices.Concat(own[1:], a.argv)...)
			cmd.Dir = here
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v without clones: %v\n%s", a.argv, err, out)
			}
			r := command{args: append([]string{"-np", "2", "--memory", "512M"}, a.argv...), dir: there, limit: applicationLimit}.run(t)
			if r.status != 0 {
				t.Fatalf("exit status %d\nstdout:\n%s\nstderr:\n%s", r.status, r.stdout, r.stderr)
			}
			want, got := a.results(t, here, string(out)), a.results(t, there, r.stdout)
			if !slices.Equal(got, want) {
				t.Errorf("on clones:\n%s\nwithout:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			t.Logf("%d results, such as %q, in %v", len(got), got[len(got)-1], r.took.Round(time.Millisecond))
		})
	}
}

// TestScripts: what runs MPI programs is launched as they are, and has what they
// and it need.
func TestScripts(t *testing.T) {
	nothingIsLeft(t)
	dir := t.TempDir()
	copyTo(t, dir, "hello")
	write(t, filepath.Join(dir, "run.sh"), "#!/bin/bash\nexec ./hello \"$@\"\n")
	if err := os.Chmod(filepath.Join(dir, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"./run.sh"}, {"/bin/bash", "-c", "date +%Y >year; ./hello"}} {
		r := command{args: append([]string{"-np", "2"}, argv...), dir: dir, limit: applicationLimit}.run(t).succeeds(t)
		has(t, r.stdout, "hello from rank 0 of 2 on clone-1: sum 1…", "hello from rank 1 of 2 on clone-2: sum 1…")
	}
	// Without an MPI, two programs by themselves.
	r := command{args: []string{"-np", "2", "--mpi", "none", "./run.sh"}, dir: dir, limit: applicationLimit}.run(t).succeeds(t)
	if n := strings.Count(r.stdout, "hello from rank 0 of 1 "); n != 2 {
		t.Errorf("%d ranks by themselves:\n%s", n, r.stdout)
	}
}
