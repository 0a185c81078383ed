package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
)

// wayFlags are the options of a command whose machines may have a way out.
func wayFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "nat"},
		&cli.StringSliceFlag{Name: "allow"},
		&cli.StringFlag{Name: "rate"},
		&cli.StringSliceFlag{Name: "forward"},
	}
}

// parseWay reads them. A way that is not asked for is nil.
func parseWay(c *cli.Context) (*network.Way, error) {
	way := &network.Way{}
	for _, s := range c.StringSlice("allow") {
		d, err := network.ParseAllow(s)
		if err != nil {
			return nil, fmt.Errorf("--allow: %w", err)
		}
		way.Allow = append(way.Allow, d)
	}
	for _, s := range c.StringSlice("forward") {
		f, err := network.ParseForward(s)
		if err != nil {
			return nil, fmt.Errorf("--forward: %w", err)
		}
		way.Forward = append(way.Forward, f)
	}
	if s := c.String("rate"); s != "" {
		var err error
		if way.Rate, err = network.ParseRate(s); err != nil {
			return nil, fmt.Errorf("--rate: %w", err)
		}
	}
	if !c.Bool("nat") {
		if len(way.Allow) > 0 || way.Rate != 0 || len(way.Forward) > 0 {
			return nil, errors.New("--allow, --rate and --forward are about a way out of the private network: add --nat")
		}
		return nil, nil
	}
	return way, nil
}

// openWay lets the job's machines reach what the user allows.
func (j *job) openWay(ctx context.Context, daemon *sfld.Client) error {
	if j.way == nil {
		return nil
	}
	way := *j.way
	resolver, err := network.HostResolver()
	if err != nil {
		tui.Notice("%v: names of the outside are not found in clones", err)
	}
	way.Resolver = resolver
	return daemon.OpenWay(ctx, way)
}
