// Command tenure is an OpenAI-compatible proxy that makes one GPU behave like
// a well-run team of recruiting models.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// program is what every subcommand is given of the world.
type program struct {
	environ        map[string]string
	stdout, stderr io.Writer
	envFile        string
}

// usageError is an error of whoever called the program: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitError ends the program with a code of the command's own. What there is to
// say has been said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run is main without a process: it returns the exit code. 0 success, 1
// failure, 2 a wrong command line or setting, others are a command's own.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	p := &program{environ: map[string]string{}, stdout: stdout, stderr: stderr}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		p.environ[name] = value
	}
	root := &cobra.Command{
		Use:           "tenure",
		Short:         "An OpenAI-compatible proxy that runs several recruiting models on one GPU",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&p.envFile, "env-file", "", "read settings from this file, too; the environment wins")
	root.AddCommand(p.commands()...)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	fmt.Fprintln(stderr, "tenure:", err)
	if _, ok := errors.AsType[usageError](err); ok || strings.HasPrefix(err.Error(), "unknown command") {
		fmt.Fprintln(stderr, "Run tenure --help for the commands, tenure serve --print-config for the settings.")
		return 2
	}
	return 1
}

// commands lists the subcommands, each in a file of its own.
func (p *program) commands() []*cobra.Command {
	return []*cobra.Command{
		p.serveCmd(),
		p.statusCmd(),
		p.checkCmd(),
		p.pullCmd(),
		p.whyCmd(),
		p.preloadCmd(),
		p.routeCmd(),
		p.planCmd(),
		p.simulateCmd(),
		p.keysCmd(),
	}
}

// built is the version that an image is built as: -ldflags "-X main.built=1.2".
var built string //nolint:gochecknoglobals // the linker can set nothing else

// version is what the build knows of itself.
func version() string {
	if built != "" {
		return built
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "(devel)" {
			v = "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}
