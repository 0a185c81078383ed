// Command init is the first process of a rig (package rig).
package main

import "github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/rig"

func main() { rig.Init() }
