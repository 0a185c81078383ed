package multicast

import "errors"

// ErrUnicast is what every error is, for errors.Is, after which the same blocks can be had by unicast.
var ErrUnicast = errors.New("get it by unicast")

// remedy is an error that is ErrUnicast too.
type remedy string

func (e remedy) Error() string        { return string(e) }
func (e remedy) Is(target error) bool { return target == ErrUnicast }

// Why a fetch ends, or is not opened.
var (
	// ErrDeaf: the origin answers, but what it sends to the group does not arrive.
	ErrDeaf error = remedy("multicast does not come through from the origin: let the switch forward it (IGMP snooping needs a querier), or choose unicast")
	// ErrSilent: nothing comes from the origin over UDP.
	ErrSilent error = remedy("the origin does not answer over UDP: check that no filter drops it")
	// ErrSlow: this host takes much less than most of the others, who shall not wait for it.
	ErrSlow error = remedy("too slow for the group: taken out of it")
	// ErrTooMany: the origin has as many members or sources as it can keep.
	ErrTooMany error = remedy("the origin keeps no more members")
	// ErrUnreadable: the origin cannot read a block that it should have.
	ErrUnreadable error = remedy("the origin cannot read the block")

	// ErrUnknown: the origin serves nothing of this id.
	ErrUnknown = errors.New("the origin does not serve it")
	// ErrWithdrawn: the origin has stopped serving it.
	ErrWithdrawn = errors.New("the origin has withdrawn it")
	// ErrClosed: the fetch, the receiver or the sender was closed here.
	ErrClosed = errors.New("closed")
	// ErrServed: the id is served, or open, already.
	ErrServed = errors.New("served or open already")
	// ErrSize: the origin serves the id, but with another size.
	ErrSize = errors.New("the origin has another size for it")
)
