package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tenure/proxy"
	"tenure/proxy/wire"
	"tenure/routing"
	"tenure/routing/task"
	"tenure/routing/task/eval"
)

func (p *program) routeCmd() *cobra.Command {
	var (
		asJSON   bool
		labelled string
	)
	cmd := &cobra.Command{
		Use:   "route [file]",
		Short: "Tell which task and model a request would go to, and why",
		Long: `Tell which task would be read from a request, which model would do it, and
why. No model is called. The request is read from the file or from standard
input: a JSON object is read as the body of a chat request, anything else as
the one message of a user who asks for recruit-auto.

With --eval, labelled requests are routed instead, and what came of them is
shown in tables: {"id","messages","label","lang","slice"}, one object a line.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			catalog, err := loadCatalog(cfg.Catalog)
			if err != nil {
				return usageError{err}
			}
			if labelled != "" {
				return evaluate(p.stdout, catalog, labelled)
			}
			q, err := readQuestion(cmd.InOrStdin(), args, cfg)
			if err != nil {
				return usageError{err}
			}
			d, err := routing.NewRouter(catalog, proxy.ShortName).Route(q)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(p.stdout).Encode(proxy.Explain(d))
			}
			return printExplanation(p.stdout, proxy.Explain(d))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what POST /v1/route answers")
	cmd.Flags().StringVar(&labelled, "eval", "", "route the labelled requests of this file and show accuracy, confusion and calibration")
	return cmd
}

// evaluate shows how well labelled requests are routed.
func evaluate(w io.Writer, catalog *routing.Catalog, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return usageError{err}
	}
	defer f.Close()
	items, err := eval.Read(f)
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", file, err)}
	}
	report := eval.Evaluate(catalog.Detect, items)
	return report.WriteText(w)
}

func readQuestion(in io.Reader, args []string, cfg *config) (routing.Request, error) {
	if len(args) == 1 && args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return routing.Request{}, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, int64(cfg.BodyLimit)))
	if err != nil {
		return routing.Request{}, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		return proxy.Question(text, wire.Limits{})
	}
	return routing.Request{
		Model: routing.Auto, Input: task.Input{Messages: []task.Message{{Role: "user", Text: string(text)}}},
	}, nil
}

// printExplanation writes an explanation for a person.
func printExplanation(w io.Writer, e proxy.Explanation) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "task\t%s\t%.2f\nbecause\t%s\n", e.Task, e.Confidence, e.Cause)
	fmt.Fprintf(t, "model\t%s\n", strings.Join(append([]string{e.Model}, e.Fallbacks...), ", then "))
	temperature := "the model's own"
	if e.Parameters.Temperature != nil {
		temperature = fmt.Sprint(*e.Parameters.Temperature)
	}
	fmt.Fprintf(t, "unless set\tmax_tokens %d, temperature %s, kept for %s\n", e.Parameters.MaxTokens, temperature, e.Parameters.CacheTTL)
	for _, name := range slices.SortedFunc(maps.Keys(e.Scores), func(a, b string) int {
		return strings.Compare(fmt.Sprintf("%.9f", e.Scores[b])+b, fmt.Sprintf("%.9f", e.Scores[a])+a)
	}) {
		fmt.Fprintf(t, "score\t%s\t%.3f\n", name, e.Scores[name])
	}
	for _, v := range e.Evidence {
		fmt.Fprintf(t, "evidence\t%s\tmessage %d, bytes %d to %d\n", v.Rule, v.Message, v.Start, v.End)
	}
	for _, d := range e.Documents {
		fmt.Fprintf(t, "document\t%s\tmessage %d, bytes %d to %d\n", d.Kind, d.Message, d.Start, d.End)
	}
	if len(e.Flags) > 0 {
		fmt.Fprintf(t, "flags\t%s\n", strings.Join(e.Flags, ", "))
	}
	return t.Flush()
}
