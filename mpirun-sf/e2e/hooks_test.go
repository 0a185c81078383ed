package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// TestHooks: what is given by --hook runs in each clone, in the order given, before a
// process of the clone goes on; and one that fails is the fork's failure, and named.
func TestHooks(t *testing.T) {
	dir := t.TempDir()
	hook := func(name, script string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	v := startVM(t,
		"--hook", hook("zealous", `echo "first $SF_ID $SF_TICKET $SF_IP $SF_NAME $SF_MEMBER $SF_CLONE_ID" > /root/hooked; sleep 1; hostname >> /root/hooked`),
		"--hook", hook("able", "echo second >> /root/hooked; [ ! -e /root/bad ] || [ $SF_ID != 2 ]"))
	t.Run("before the first process", func(t *testing.T) {
		v.prints(t, `
fork 2
if [ $id -gt 0 ]; then
	set -- $(cat /root/hooked) # at once
	eval "$(sf env)"
	[ "$*" = "first $id $t $SF_IP $SF_NAME $SF_MEMBER $id $SF_NAME second" ] || { echo "$*" > $DIR/hooked$id; sf exit 1; }
	sf exit 0
fi
[ -e /root/hooked ] && echo in the parent
sf join $t; cat $DIR/hooked* 2>/dev/null; true`, "1 0\n2 0\n")
	})
	t.Run("of a checkpoint and of a clone's clone", func(t *testing.T) {
		v.prints(t, `
rm -f /root/hooked
set -- $(sf checkpoint); c=$1; id=$2
if [ $id -gt 0 ]; then
	first=$(head -n 1 /root/hooked); fork 1; second=$(head -n 1 /root/hooked)
	[ $id -gt 0 ] && { [ "$first" != "$second" ]; sf exit $?; }
	sf join $t > /dev/null; sf exit $?
fi
t=$(sf request-ticket 1); sf create-clones $c $t; sf join $t; sf discard $c`, "1 0\n")
	})
	t.Run("one that fails", func(t *testing.T) {
		v.prints(t, `
touch /root/bad
t=$(sf request-ticket 2); why sf clone $t; why sf join $t; alone
t=$(sf request-ticket 2); sf clone $t 2>&1 | grep -o 'able: [a-z ]*status 1'
rm /root/bad
fork 2
[ $id -gt 0 ] && sf exit 0
sf join $t`, "failed\nunknown\n1\nable: it exited with status 1\n1 0\n2 0\n")
	})
}
