package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"tenure/proxy"
	"tenure/proxy/ollama"
	"tenure/residency"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (p *program) pullCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "pull [model ...]",
		Short: "Have Ollama fetch the catalog's models",
		Long: `Have the Ollama of OLLAMA_HOST fetch models: those that are named, or the
catalog's that are missing. What breaks off is asked for again and goes on where
it was; so does a second pull after one that was stopped.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			return p.pull(cmd.Context(), cfg, names)
		},
	}
}

// pullSilence is how long a pull may show no progress: a file that has come is
// hashed in silence.
const pullSilence = 2 * time.Minute

// pull fetches one model after the other. One that cannot be had does not keep
// the others from being fetched.
func (p *program) pull(ctx context.Context, cfg *config, names []string) error {
	base, err := ollama.ParseHost(cfg.OllamaHost)
	if err != nil {
		return usageError{fmt.Errorf("OLLAMA_HOST: %w", err)} // checked when it was read
	}
	client := ollama.New(base, ollama.Config{Limits: ollama.Limits{First: pullSilence, Idle: pullSilence}})
	defer client.Close()
	if len(names) == 0 {
		if names, err = p.missing(ctx, cfg, client); err != nil {
			return err
		}
	}
	var failed []error
	for _, name := range names {
		show := p.progress(name)
		began := time.Now()
		var last ollama.Progress
		err := client.Pull(ctx, name, func(at ollama.Progress) {
			last = at
			show.at(at)
		})
		show.end()
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("pulling %s: stopped; run it again to go on: %w", name, context.Cause(ctx))
		case errors.Is(err, ollama.ErrUnknownModel):
			failed = append(failed, fmt.Errorf("%s: Ollama's registry has no model of that name", name))
		case err != nil:
			failed = append(failed, fmt.Errorf("pulling %s: %w", name, err))
		default:
			fmt.Fprintf(p.stdout, "%s: pulled, %v in %v\n", name, last.Total, time.Since(began).Round(time.Second))
		}
	}
	return errors.Join(failed...)
}

// missing lists the catalog's models that Ollama does not have, the always
// loaded first.
func (p *program) missing(ctx context.Context, cfg *config, client *ollama.Client) ([]string, error) {
	catalog, err := loadCatalog(cfg.Catalog)
	if err != nil {
		return nil, usageError{err}
	}
	tags, err := client.Installed(ctx)
	if err != nil {
		return nil, fmt.Errorf("no Ollama answers at %s (OLLAMA_HOST): %w", client.URL(), err)
	}
	var names []string
	for _, tier := range []residency.Tier{residency.T0, residency.T1, residency.T2} {
		for _, m := range catalog.Models {
			there := slices.ContainsFunc(tags, func(t ollama.Installed) bool { return proxy.ShortName(t.Name) == m.Name })
			switch {
			case residency.Tier(m.Tier) != tier:
			case there:
				fmt.Fprintf(p.stdout, "%s: there already\n", m.Name)
			default:
				names = append(names, m.Name)
			}
		}
	}
	return names, nil
}

// progress shows how far a pull has come: a bar where somebody watches, lines
// now and then elsewhere.
type progress interface {
	at(ollama.Progress)
	end()
}

func (p *program) progress(name string) progress {
	if f, ok := p.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return newBar(p.stderr, name, 100*time.Millisecond)
	}
	return &lines{w: p.stdout, name: name}
}

// bar is a progress bar, whose length grows as parts become known.
type bar struct {
	bar  *progressbar.ProgressBar
	name string
}

func newBar(w io.Writer, name string, throttle time.Duration) *bar {
	return &bar{name: name, bar: progressbar.NewOptions64(1,
		progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(name), progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true), progressbar.OptionSetWidth(30), progressbar.OptionThrottle(throttle),
		progressbar.OptionSetPredictTime(true), progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(),
	)}
}

func (b *bar) at(p ollama.Progress) {
	b.bar.Describe(b.name + ": " + p.Status)
	if p.Total > 0 {
		b.bar.ChangeMax64(int64(p.Total) + 1) // the last one is for its end: full is finished
		_ = b.bar.Set64(int64(p.Completed))   // it is only shown
	}
}

func (b *bar) end() { _ = b.bar.Finish() }

// lines tells each tenth, and what happens else.
type lines struct {
	w      io.Writer
	name   string
	status string
	tenth  int
}

func (l *lines) at(p ollama.Progress) {
	tenth := 0
	if p.Total > 0 {
		tenth = int(10 * p.Completed / p.Total)
	}
	switch {
	case p.Total > 0 && p.Completed < p.Total && tenth > l.tenth:
		fmt.Fprintf(l.w, "%s: %d %% of %v\n", l.name, 10*tenth, p.Total)
	case p.Status != l.status:
		fmt.Fprintf(l.w, "%s: %s\n", l.name, p.Status)
	}
	l.status, l.tenth = p.Status, max(tenth, l.tenth)
}

func (*lines) end() {}
