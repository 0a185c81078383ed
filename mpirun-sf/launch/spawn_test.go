package launch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// spawning is what a script says to have ranks spawned, as MPICH's library does: COUNT and info, which is "key=value"
// pairs. The spawned ranks run the script "child".
const spawning = `
spawn() {
	count=$1; shift
	{ printf 'mcmd=spawn\nnprocs=%s\nexecname=/bin/sh\ntotspawns=1\nspawnssofar=1\narg1=-c\narg2=%s\nargcnt=2\n' $count "$child"
	  printf 'preput_num=1\npreput_key_0=PARENT\npreput_val_0=port of %s\ninfo_num=%s\n' "$PMI_RANK" $#
	  n=0; for i; do printf 'info_key_%s=%s\ninfo_val_%s=%s\n' $n "${i%%=*}" $n "${i#*=}"; n=$((n+1)); done
	  echo endcmd; } >&3
	hear
}
`

// child speaks PMI, too.
func child(script string) string {
	return "child='" + strings.ReplaceAll(strings.Trim(mpi, "\n"), "\n", ";") + ";" + script + "'\n"
}

// spawnOn has spawned ranks run on a node of their own with so many slots.
func (tr *trial) spawnOn(t *testing.T, slots int) (released *atomic.Int32) {
	nd := newNode(t)
	released = new(atomic.Int32)
	tr.Spawn = func(_ context.Context, apps []App) ([]Place, func(), error) {
		p := Place{Name: "clone-9", IP: "10.0.0.9", Session: nd.Session}
		for rank := range min(slots, apps[0].Ranks) {
			p.Ranks = append(p.Ranks, rank)
		}
		if len(p.Ranks) == 0 {
			return nil, nil, errors.New("there is no room")
		}
		return []Place{p}, func() { released.Add(1) }, nil
	}
	return released
}

const greeting = `init; say get kvsname=x key=PARENT; hear; echo "child $PMI_RANK of $PMI_SIZE, spawned $PMI_SPAWNED in $PWD: $answer"; finalize`

func TestSpawn(t *testing.T) {
	tr := newTrial(t, spawning+strings.ReplaceAll(child(greeting), "kvsname=x ", "")+`
init
if [ $PMI_RANK = 0 ]; then spawn 2 wdir=/usr; echo "spawned: $answer"; fi
barrier; finalize`, 2)
	released := tr.spawnOn(t, 2)
	if err := tr.run(t, 10*time.Second); err != nil {
		t.Fatalf("%v\n%s\n%s", err, tr.errors.String(), tr.notices.String())
	}
	out := sorted(tr.out.String())
	for rank := range 2 {
		want := fmt.Sprintf("child %d of 2, spawned 1 in /usr: cmd=get_result rc=0 msg=success value=port of 0", rank)
		if !strings.Contains(out, want) {
			t.Errorf("the spawned ranks said %q, want %q", out, want)
		}
	}
	if !strings.Contains(out, "spawned: cmd=spawn_result rc=0") {
		t.Errorf("the spawner was told: %q", out)
	}
	awaitReleased(t, released)
}

// awaitReleased waits until the places of one spawned group were given back.
func awaitReleased(t *testing.T, released *atomic.Int32) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); released.Load() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the places were given back %d times", released.Load())
		}
	}
}

// Where there is no room for all, as many start as the program allows with soft.
func TestSpawnSoft(t *testing.T) {
	tr := newTrial(t, spawning+child(`init; echo "child of $PMI_SIZE"; finalize`)+`init; spawn 5 soft=1:5:2; echo "told $answer"; finalize`, 1)
	tr.spawnOn(t, 4)
	if err := tr.run(t, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if out := tr.out.String(); strings.Count(out, "child of 3\n") != 3 || !strings.Contains(out, "told cmd=spawn_result rc=0") {
		t.Errorf("it said %q", out)
	}
}

// A spawn that fails fails in the rank that called it, and nowhere else.
func TestSpawnFails(t *testing.T) {
	for name, c := range map[string]struct {
		slots  int
		info   string
		notice string
	}{
		"no room":          {0, "", "there is no room"},
		"too little room":  {1, "", "2 ranks to start and room for 1"},
		"no such folder":   {2, "wdir=/no/such", "/no/such"},
		"a host was named": {2, "host=somewhere", "info key host: somewhere"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTrial(t, spawning+child(`echo child`)+`init; spawn 2 `+c.info+`; case $answer in *rc=0*) exit 9;; esac; finalize`, 1)
			tr.spawnOn(t, c.slots)
			if err := tr.run(t, 10*time.Second); err != nil {
				t.Fatal(err)
			}
			if got := tr.notices.String(); !strings.Contains(got, c.notice) {
				t.Errorf("the user was told %q, not of %q", got, c.notice)
			}
			if got := tr.out.String(); got != "" {
				t.Errorf("it wrote %q", got)
			}
		})
	}
}

// What spawned ranks do ends the job as what others do.
func TestSpawnedRankFails(t *testing.T) {
	tr := newTrial(t, spawning+child(`init; exit 5`)+`init; spawn 1; sleep 60`, 1)
	tr.spawnOn(t, 1)
	fails(t, tr.run(t, 10*time.Second), 5, "rank 0 on clone-9 exited with status 5 without calling MPI_Finalize")
}
