// Package multicast distributes slices and whole objects from one host to many by IP multicast (section 3.5).
package multicast
