// Package smoke holds the tests that the rig itself works: that its Xen starts, saves, restores and ends guests with the tools
// of its packages. When they fail, nothing can be said of the others.
package smoke
