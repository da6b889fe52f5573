package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tenure/proxy"
	"tenure/residency"

	"github.com/spf13/cobra"
)

func (p *program) whyCmd() *cobra.Command {
	var (
		limit          int
		follow, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "why [MODEL]",
		Short: "Show the last decisions about who sits in memory, and why",
		Long: `Show what a running server decided last: which model was loaded or made room,
for whom, who waited, and what the wait had cost. With a model, only what
concerns it.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			query := url.Values{"limit": {strconv.Itoa(limit)}}
			if len(args) > 0 {
				query.Set("model", args[0])
			}
			if follow {
				return p.followWhy(cmd.Context(), cfg, query, asJSON)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			var found proxy.Decisions
			raw, err := readAdmin(ctx, cfg, "/admin/decisions?"+query.Encode(), &found)
			if err != nil {
				return err
			}
			if asJSON {
				_, err := p.stdout.Write(append(raw, '\n'))
				return err
			}
			if len(found.Decisions) == 0 {
				fmt.Fprintln(p.stdout, "Nothing was decided yet.")
			}
			for i := range found.Decisions {
				printDecision(p.stdout, &found.Decisions[i])
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVarP(&limit, "limit", "n", 20, "how many")
	f.BoolVarP(&follow, "follow", "f", false, "go on with those to come, until interrupted")
	f.BoolVar(&asJSON, "json", false, "print what the admin side answers")
	return cmd
}

// followWhy prints the event stream.
func (p *program) followWhy(ctx context.Context, cfg *config, query url.Values, asJSON bool) error {
	resp, err := askAdmin(ctx, cfg, http.MethodGet, "/admin/decisions/stream?"+query.Encode(), "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if asJSON {
			fmt.Fprintln(p.stdout, data)
			continue
		}
		var e proxy.Entry
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("reading a decision: %w", err)
		}
		printDecision(p.stdout, &e)
	}
	if ctx.Err() != nil {
		return nil // whoever follows ends it by an interrupt
	}
	return lines.Err()
}

func printDecision(w io.Writer, e *proxy.Entry) {
	fmt.Fprintf(w, "%s  %s\n", e.At.Local().Format("15:04:05.000"), sentence(e))
}

// sentence says one decision in words.
func sentence(e *proxy.Entry) string {
	whom := ""
	if e.For != "" {
		whom = " for " + e.For
	}
	took := e.Took.Round(10 * time.Millisecond)
	switch e.Action {
	case residency.ActClose:
		return e.Model + " takes no more requests, to make room" + whom + why(e)
	case residency.ActReopen:
		return e.Model + " takes requests again: the swap was called off"
	case residency.ActUnload:
		return e.Model + " is idle and is unloaded" + whom
	case residency.ActUnloaded:
		return fmt.Sprintf("%s is gone after %v, %v are free%s", e.Model, took, e.Size, whom)
	case residency.ActLoad:
		return fmt.Sprintf("%s is being loaded, %v%s", e.Model, e.Size, why(e))
	case residency.ActLoaded:
		return fmt.Sprintf("%s is ready after %v, it takes %v", e.Model, took, e.Size)
	case residency.ActLoadFail:
		return e.Model + " could not be loaded and is tried again later: " + e.Err
	case residency.ActUnloadFail:
		return e.Model + " could not be unloaded" + whom + ": " + e.Err
	case residency.ActFail:
		return fmt.Sprintf("%s is given up, %d requests are refused: %s", e.Model, e.Waiting+e.WaitingB, e.Err)
	case residency.ActRefuse:
		return fmt.Sprintf("%s: a request is refused while %d wait: %s", e.Model, e.Waiting+e.WaitingB, e.Err)
	case residency.ActLinger:
		return e.Model + " waits a little: a request for a model in its way is likely" + why(e)
	case residency.ActLost:
		return fmt.Sprintf("%s is gone without having been unloaded, %v", e.Model, e.Size)
	}
	return strings.TrimSpace(e.Model+" "+found(e.What)) + whom
}

// found says what was put right.
func found(what string) string {
	switch what {
	case "restart":
		return "Ollama is back and is given its models again"
	case "vanished":
		return "is no longer listed by Ollama"
	case "appeared":
		return "was loaded past tenure and is unloaded"
	case "foreign":
		return "is not tenure's and is counted against the budget"
	case "cpu":
		return "moved partly to main memory and is loaded again"
	case "context":
		return "has another context than it was loaded with and is loaded again"
	case "pin":
		return "would have expired and is pinned again"
	case "runner":
		return "has lost its process and is loaded again"
	case "wedge":
		return "should have been loaded long ago: Ollama completes no load"
	case "rescue":
		return "is unloaded once more, to free Ollama"
	}
	return what
}

// why says the reason and the figures behind it.
func why(e *proxy.Entry) string {
	text := map[residency.Reason]string{
		residency.Room: "it was asked for and there is room", residency.Idle: "what is in its way has nothing to do",
		residency.Rent: "waiting has cost more than a swap", residency.Overdue: "somebody has waited too long",
		residency.Prefetch: "a declared workflow needs it next", residency.Preloaded: "it is to be kept loaded",
		residency.Returned: "it returns to an idle GPU", residency.Operator: "an operator asked for it",
		residency.Overcommit: "memory is over the budget",
	}[e.Reason]
	var figures []string
	if text != "" {
		figures = append(figures, text)
	}
	if n := e.Waiting; n > 0 {
		figures = append(figures, fmt.Sprintf("%d wait", n))
	}
	if n := e.WaitingB; n > 0 {
		figures = append(figures, fmt.Sprintf("%d of a batch wait", n))
	}
	if e.Rent > 0 {
		figures = append(figures, fmt.Sprintf("%.1f s waited together", e.Rent))
	}
	if e.Threshold > 0 {
		figures = append(figures, fmt.Sprintf("%.1f s are worth a swap", e.Threshold))
	}
	if len(figures) == 0 {
		return ""
	}
	return ": " + strings.Join(figures, ", ")
}
