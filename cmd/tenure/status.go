package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"tenure/proxy"
	"tenure/residency"
	"tenure/residency/gpu"

	"github.com/spf13/cobra"
)

func (p *program) statusCmd() *cobra.Command {
	var asJSON, ready bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show which models are resident, who waits, and what is left",
		Long: `Show the state of a running server: its seats, its queue and its budget. The
server is found at TENURE_ADMIN_LISTEN, the key is taken from TENURE_ADMIN_KEY.

--ready asks only whether it can answer requests now, as a container's health
check does, and needs no key. The exit code is 1 when it cannot.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			if ready {
				return p.ready(cmd.Context(), cfg)
			}
			state, raw, err := fetchState(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if asJSON {
				_, err := p.stdout.Write(append(raw, '\n'))
				return err
			}
			return printState(p.stdout, state)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what GET /admin/state answers")
	cmd.Flags().BoolVar(&ready, "ready", false, "tell only whether the server can answer now")
	cmd.MarkFlagsMutuallyExclusive("json", "ready")
	return cmd
}

// ready tells in a word whether the server can answer requests, and fails when
// it cannot.
func (p *program) ready(ctx context.Context, cfg *config) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := askAdmin(ctx, cfg, http.MethodGet, "/readyz", "", http.StatusServiceUnavailable)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var is struct {
		Status string `json:"status"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&is); err != nil {
		return fmt.Errorf("reading /readyz: %w", err)
	}
	fmt.Fprintln(p.stdout, is.Status)
	if resp.StatusCode != http.StatusOK {
		return exitError(1)
	}
	return nil
}

// fetchState asks the server at the admin address. With an error it returns
// what was read if that came from a tenure.
func fetchState(ctx context.Context, cfg *config) (*proxy.State, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var state proxy.State
	raw, err := readAdmin(ctx, cfg, "/admin/state", &state)
	return &state, raw, err
}

// printState writes the state for a person.
func printState(w io.Writer, st *proxy.State) error {
	r := st.Residency
	if st.Simulated {
		fmt.Fprintln(w, "SIMULATED backend: no model answers")
	}
	if !st.Ollama.Reachable {
		fmt.Fprintf(w, "Ollama does not answer since %s\n", st.Ollama.Since.Local().Format(time.TimeOnly))
	} else {
		fmt.Fprintf(w, "Ollama %s, up since %s, %d models installed\n", st.Ollama.Version, st.Ollama.Since.Local().Format(time.TimeOnly), len(st.Ollama.Installed))
	}
	if r.Passthrough {
		fmt.Fprintln(w, "Residency is not managed (A5000_OPTIMIZATION=false)")
	}
	if st.Trouble != "" {
		fmt.Fprintln(w, "TROUBLE:", st.Trouble)
	}
	for _, b := range st.Breakers {
		if b.State != "closed" {
			fmt.Fprintf(w, "%s failed too often and is given a rest (breaker %s, %s)\n", b.Model, b.State, ago(r.Now, b.Since))
		}
	}
	m := st.Memory
	fmt.Fprintf(w, "Memory %.1f GiB of %.1f GiB (%.0f %%), %.1f GiB free, %d of %d models\n", m.Usage, m.Total, 100*m.Utilization, m.Free, m.Loaded, m.MaxModels)
	if r.Available < r.Budget {
		fmt.Fprintf(w, "Others leave %v of the %v configured\n", r.Available, r.Budget)
	}
	sep := "By source:"
	for _, source := range m.Sources {
		fmt.Fprintf(w, "%s %s %.1f GiB", sep, source.Source, source.Usage)
		sep = ","
	}
	fmt.Fprintln(w)
	if m.Warning != "" {
		fmt.Fprintln(w, "WARNING:", m.Warning)
	}
	printCards(w, &st.GPU)
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "MODEL\tTIER\tSTATE\tSIZE\tCONTEXT\tBUSY\tLAST USED")
	for _, m := range r.Residents {
		size := m.Size.String()
		if !m.Measured {
			size += " (estimate)"
		}
		fmt.Fprintf(t, "%s\t%v\t%v\t%s\t%d\t%d of %d\t%s\n", m.Model.Name, m.Model.Tier, m.Phase, size, m.Model.Context,
			m.Leases, max(m.Model.Slots, 1), ago(r.Now, m.LastUsed))
	}
	for name, size := range r.Foreign {
		fmt.Fprintf(t, "%s\t-\tforeign\t%v\t\t\t\n", name, size)
	}
	if len(st.GPU.Processes) > 0 {
		fmt.Fprintln(t, "\nOTHER PROCESS\tPID\tSIZE")
		for _, q := range st.GPU.Processes {
			fmt.Fprintf(t, "%s\t%d\t%s\n", cmp.Or(q.Name, "?"), q.PID, known(q.Used))
		}
	}
	if len(r.Waiting) > 0 {
		fmt.Fprintln(t, "\nQUEUE\tCLASS\tWAITING\tSINCE\tEXPECTED")
		for _, q := range r.Waiting {
			fmt.Fprintf(t, "%s\t%v\t%d\t%s\t%v\n", q.Model, q.Class, q.Count, ago(r.Now, q.Since), q.Expect.Round(100*time.Millisecond))
		}
	}
	n := r.Counters
	fmt.Fprintf(t, "\nloads %d (%.1f s), unloads %d, lost %d, refused %d\n", n.Loads, n.LoadSeconds, n.Unloads, n.Lost, n.Refused)
	return t.Flush()
}

// printCards tells where the figures come from, and what the cards say.
func printCards(w io.Writer, m *proxy.CardState) {
	switch {
	case m.Source == proxy.SourceNVML:
		fmt.Fprintf(w, "Figures by nvml, driver %s: others hold %v, %v is kept free\n", cmp.Or(m.Driver, "?"), m.Taken, m.Reserve)
	case m.Why != "":
		fmt.Fprintf(w, "Figures by %s (%s)\n", m.Source, m.Why)
	default:
		fmt.Fprintf(w, "Figures by %s\n", m.Source)
	}
	for i, c := range m.Cards {
		fmt.Fprintf(w, "GPU %d %s\n", i, cardLine(c))
	}
	if m.OnCPU {
		fmt.Fprintln(w, "Ollama put its models into main memory: answers are slow")
	}
}

// cardLine is a card in one line, without what it does not tell.
func cardLine(c gpu.Card) string {
	line := fmt.Sprintf("%s: %v, %v free", cmp.Or(c.Name, "?"), c.Total, c.Free)
	if c.Utilisation != nil {
		line += fmt.Sprintf(", %d %% busy", *c.Utilisation)
	}
	if c.Temperature != nil {
		line += fmt.Sprintf(", %d °C", *c.Temperature)
	}
	if c.ECC != nil && c.ECC.Enabled {
		line += fmt.Sprintf(", ECC on (%d errors corrected, %d not)", c.ECC.Corrected, c.ECC.Uncorrectable)
	}
	return line
}

// known is an amount that may not be known.
func known(b residency.Bytes) string {
	if b == 0 {
		return "?"
	}
	return b.String()
}

func ago(now, then time.Time) string {
	if then.IsZero() {
		return "never"
	}
	return max(now.Sub(then), 0).Round(time.Second).String() + " ago"
}
