package vmfork_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
)

func work(id, of int) int { return id % of }

// A program that divides its work among clones, and waits for them.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	t, err := vmfork.RequestTicket(ctx, 4)
	if err != nil {
		log.Fatal(err)
	}
	id, err := vmfork.Clone(ctx, t)
	if err != nil {
		log.Fatal(err)
	}
	if id > 0 { // in clone id, with everything as it was
		log.Fatal(vmfork.Exit(work(id, len(t.Clones))))
	}
	statuses, err := vmfork.Join(ctx, t)
	var lost *vmfork.LostError
	switch {
	case errors.As(err, &lost):
		fmt.Println("lost", lost.Clones)
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println(statuses)
}

// A load balancer that has another machine cloned, off a checkpoint that was
// made when that one was ready.
func ExampleMachine_CreateClones() {
	ctx := context.Background()
	web := vmfork.VM("clone-1")
	ready, _, err := web.CheckpointParent(ctx)
	if err != nil {
		log.Fatal(err)
	}
	more, err := web.RequestTicket(ctx, 2)
	if err == nil {
		err = web.CreateClones(ctx, ready, more)
	}
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range more.Clones {
		fmt.Println(c.Name, c.IP)
	}
	if err := web.Kill(ctx, more); err != nil { // when the load is over
		log.Fatal(err)
	}
}
