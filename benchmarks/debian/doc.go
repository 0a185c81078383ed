// Package debian builds programs from Debian's source packages, for tests and benchmarks that need what Debian's own binary
// packages do not have, and keeps the builds in a cache.
//
// # Flow
//
//  1. [Open] looks for a build in the cache. What it was made of has to be in its name.
//  2. [Make] makes it otherwise, in a folder that nobody else makes it in (cache.go).
//  3. In there, [Source.Fetch] has apt fetch the source package, with lists of its own, so that the machine's configuration
//     is neither needed nor touched (source.go).
//  4. [Run] runs one [Step] of the building after the other. The output of each is in a file beside the source.
//
// # Locking
//
// A build is made under a lock of its file (flock), which goes with the process. It is complete when it has a file that says so;
// one that is not is thrown away.
package debian
