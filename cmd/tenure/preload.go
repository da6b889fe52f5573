package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"text/tabwriter"
	"time"

	"tenure/proxy"

	"github.com/spf13/cobra"
)

func (p *program) preloadCmd() *cobra.Command {
	var (
		all, noWait bool
		unload      []string
	)
	cmd := &cobra.Command{
		Use:   "preload MODEL...",
		Short: "Load models before anybody asks for them, or unload some",
		Long: `Have a running server load models, and unload those given with --unload first.
It tells for each model what was done. Models that are always loaded (T0) are
not unloaded, nor are those that are in use. What has no room now comes in as
soon as there is some. Exit code 1 if anything was refused.`,
		Example: "  tenure preload llama3 --unload mistral\n  tenure preload --all",
		RunE: func(cmd *cobra.Command, models []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			want := map[string]bool{}
			if all {
				catalog, err := loadCatalog(cfg.Catalog)
				if err != nil {
					return usageError{err}
				}
				for _, m := range catalog.Models {
					want[m.Name] = true
				}
			}
			for _, m := range models {
				want[m] = true
			}
			for _, m := range unload {
				want[m] = false
			}
			if len(want) == 0 {
				return usageError{errors.New("name models, or give --all or --unload")}
			}
			body, err := json.Marshal(want)
			if err != nil {
				return err
			}
			path := "/admin/preload?wait=5m"
			if noWait {
				path = "/admin/preload"
			}
			resp, err := askAdmin(cmd.Context(), cfg, http.MethodPost, path, string(body), http.StatusConflict)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var done struct {
				Models map[string]proxy.Preloaded `json:"models"`
			}
			if err := json.NewDecoder(resp.Body).Decode(&done); err != nil {
				return fmt.Errorf("reading the answer: %w", err)
			}
			return p.printPreloaded(done.Models)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "every model of the catalog, as many as there is room for")
	f.StringSliceVar(&unload, "unload", nil, "take this model out of memory; may be given several times")
	f.BoolVar(&noWait, "no-wait", false, "do not wait until the loads are done")
	return cmd
}

func (p *program) printPreloaded(done map[string]proxy.Preloaded) error {
	t := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
	refused := 0
	for _, name := range slices.Sorted(maps.Keys(done)) {
		d := done[name]
		text := d.Reason
		if text == "" && d.Took > 0 {
			text = "in " + d.Took.Round(100*time.Millisecond).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", name, d.Done, text)
		if d.Refused() {
			refused++
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if refused > 0 {
		return fmt.Errorf("%d of %d models were refused", refused, len(done))
	}
	return nil
}
