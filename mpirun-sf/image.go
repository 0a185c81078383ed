package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

func imageCommand() *cli.Command {
	return &cli.Command{
		Name:  "image",
		Usage: "the cache of guest images",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list the images, with their checkpoints' size", Action: imageList},
			{Name: "rm", Usage: "remove images by key", ArgsUsage: "KEY ... | --all", Action: imageRemove,
				Flags: []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "every image that is not in use"}}},
			{Name: "build", Usage: "build, boot and checkpoint a program's image ahead of its first run, in the folder of that", ArgsUsage: "PROGRAM [ARGUMENTS]", Action: imageBuild,
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "memory", Value: "512M"}, &cli.IntFlag{Name: "ppn", Value: 1},
					&cli.StringSliceFlag{Name: "with", KeepSpace: true, Usage: "a program, file or folder to have in it"},
					hypervisorFlag(),
				}},
		},
	}
}

func imageList(c *cli.Context) error {
	cache, err := guest.DefaultCache()
	if err != nil {
		return err
	}
	entries, err := cache.List()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tSIZE\tLAST USED\tMADE FOR\tKERNEL")
	for _, e := range entries {
		madeFor, kernel := "unusable: made again when needed", ""
		if e.Manifest != nil {
			madeFor, kernel = e.Manifest.Program, e.Manifest.Kernel
		}
		fmt.Fprintf(w, "%s\t%d MB\t%s\t%s\t%s\n", e.Key, e.Size>>20, e.LastUsed.Format("2006-01-02 15:04"), madeFor, kernel)
	}
	return w.Flush()
}

func imageRemove(c *cli.Context) error {
	cache, err := guest.DefaultCache()
	if err != nil {
		return err
	}
	keys := c.Args().Slice()
	if c.Bool("all") {
		entries, err := cache.List()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.InUse {
				keys = append(keys, e.Key)
			}
		}
	} else if len(keys) == 0 {
		return errors.New("image rm: which? mpirun-sf image ls shows the keys, --all takes every one")
	}
	var errs []error
	for _, k := range keys {
		errs = append(errs, cache.Remove(k))
	}
	return errors.Join(errs...)
}

func imageBuild(c *cli.Context) error {
	if c.NArg() == 0 {
		return errors.New("image build: it takes a program, and arguments if they name others")
	}
	with, err := existing("--with", c.StringSlice("with"))
	if err != nil {
		return err
	}
	if err := checkMachine(c.String("hypervisor")); err != nil {
		return err
	}
	memory, err := parseSize(c.String("memory"))
	if err != nil {
		return fmt.Errorf("--memory %s: it is a size from 128M, such as 512M or 2G", c.String("memory"))
	}
	j := newHost(newJob(options{
		hypervisor: c.String("hypervisor"),
		ppn:        c.Int("ppn"), memory: memory, with: with, argv: c.Args().Slice(), dir: mustGetwd(), hostOptions: hostOptions{allocator: "local"},
	}))
	if err := j.job.check(); err != nil {
		return err
	}
	if !slices.Contains(systemFolders, j.dir) {
		j.shares = []shareOption{{dir: j.dir}} // as in the jobs that will run here
	}
	if err := j.open(c.Context); err != nil {
		return err
	}
	p, err := j.daemon.Prepare(c.Context, j.prepareArgs(0))
	tui.EndStep()
	if err == nil {
		j.reportPrepared(p)
		if !p.Built && !p.Booted {
			tui.Notice("image %.12s is there already, and its checkpoint", p.Image)
		}
	}
	return errors.Join(err, j.close())
}

func mustGetwd() string {
	dir, err := os.Getwd()
	if err != nil {
		return "/"
	}
	return dir
}

// jobsFolder is where jobs reserve memory.
const jobsFolder = "/run/mpirun-sf/jobs"

func cleanCommand() *cli.Command {
	return &cli.Command{
		Name:  "clean",
		Usage: "remove what killed launchers left behind",
		Action: func(c *cli.Context) error {
			n, err := allocator.Local{Dir: jobsFolder}.Clean()
			if err == nil {
				err = metrics.Clean(jobsFolder)
			}
			if err != nil {
				return err
			}
			cache, err := guest.DefaultCache()
			if err != nil {
				return err
			}
			removed, err := cache.Trim()
			if err != nil {
				return err
			}
			vms, err := cleanVMs()
			if err != nil {
				return err
			}
			if err := hypervisor.Sweep(c.Context); err != nil {
				return err
			}
			tui.Notice("%s of dead jobs, %s of dead virtual machines and %s removed",
				plural(n, "reservation"), plural(vms, "folder"), plural(len(removed), "cached image"))
			return nil
		},
	}
}
