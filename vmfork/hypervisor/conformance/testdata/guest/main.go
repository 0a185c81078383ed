// Command guest is the init of the conformance tests' guest.
package main

import (
	"fmt"
	"os"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance/counter"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Println("to be run as init of a guest")
		return
	}
	counter.Main()
}
