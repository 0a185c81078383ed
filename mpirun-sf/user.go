package main

import (
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// caller is the user that ranks run as: whoever called sudo, or else oneself.
type caller struct {
	agent.User
	name, home string
}

func findCaller() (caller, error) {
	c := caller{User: agent.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}}
	if os.Geteuid() == 0 && os.Getenv("SUDO_UID") != "" {
		uid, err1 := strconv.ParseUint(os.Getenv("SUDO_UID"), 10, 32)
		gid, err2 := strconv.ParseUint(os.Getenv("SUDO_GID"), 10, 32)
		if err1 != nil || err2 != nil {
			return c, fmt.Errorf("SUDO_UID and SUDO_GID are %q and %q, which are not user and group ids", os.Getenv("SUDO_UID"), os.Getenv("SUDO_GID"))
		}
		c.UID, c.GID = uint32(uid), uint32(gid)
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(c.UID), 10))
	if err != nil {
		return c, nil // a user without an entry, as in a container
	}
	c.name, c.home = u.Username, u.HomeDir
	if ids, err := u.GroupIds(); err == nil {
		for _, id := range ids {
			if g, err := strconv.ParseUint(id, 10, 32); err == nil {
				c.Groups = append(c.Groups, uint32(g))
			}
		}
	}
	return c, nil
}
