// Command launch measures how fast clones come to be, what they fetch, and what
// a job on them costs, beside what it would cost otherwise. All sides are
// measured in turns in one run, for absolute times vary with the machine and
// its load; what is promised are ratios.
//
//	make bench-launch              # benchmarks/results/launch.json and launch.svg
//	go run ./benchmarks/launch -runs 3 -n 1,2,4 -pi 0
//
// The sides:
//
//   - clone: n clones from a checkpoint, hypervisor processes included;
//   - boot: a cold boot of the same guest until its agent answers;
//   - restore: suspend and resume as QEMU does it, all of RAM read from a file;
//   - zero-cost: the job on clones that are already there, warm and idle
//     (paper section 4.5.2).
package main
