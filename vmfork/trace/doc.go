// Package trace records what a job did when, on all of its hosts, and writes it
// so that chrome://tracing and Perfetto (https://ui.perfetto.dev) show it.
//
// # Flow
//
//  1. Each daemon, and the launcher, has a [Collector]. What takes time is between
//     [Collector.Begin] and the end of the [Span] that it returns. A nil Collector records nothing and
//     costs nothing, so nobody has to ask whether a trace is wanted.
//  2. The coordinator takes the other hosts' events ([Collector.Drain], [Collector.Add])
//     and tells how far their clocks are ahead of its own ([Collector.Clock]), as
//     links know it: the middle of a question's round trip.
//  3. [Collector.Write] puts them on one clock, and writes them (write.go).
//
// A collector is bounded: what is too much is counted and not kept.
//
// # Locking
//
// Collector.mu guards all of it. A Span is its caller's.
package trace
