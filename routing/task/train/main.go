// Command train learns the router's tables from the texts in testdata and
// writes weights.bin; with -check it only compares. With -eval it measures:
// each author's texts by a router that has not seen them, and a labelled file.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"

	"tenure/routing/task"
	"tenure/routing/task/corpus"
	"tenure/routing/task/eval"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "train:", err)
		os.Exit(1)
	}
}

var errStale = errors.New("weights.bin is not what the corpus gives: run go run ./routing/task/train")

func run(args []string, out io.Writer) error {
	f := flag.NewFlagSet("train", flag.ContinueOnError)
	root := f.String("corpus", "testdata/routing", "folder of the labelled texts")
	file := f.String("o", "routing/task/weights.bin", "where the tables are")
	check := f.Bool("check", false, "compare instead of writing")
	measure := f.String("eval", "", "labelled requests to measure on, one JSON object a line")
	cross := f.Bool("cross", false, "measure every author by a router trained on the others")
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("arguments: %w", err)
	}
	c, err := corpus.Load(os.DirFS("."), *root)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d asks, %d documents, %d system prompts, %d conversations\n", len(c.Asks), len(c.Documents), len(c.Systems), len(c.Conversations))
	var items []eval.Item
	if *measure != "" {
		if items, err = load(*measure); err != nil {
			return err
		}
	}
	if *cross {
		return crossed(out, c, items)
	}
	b, err := task.Train(c.Training())
	if err != nil {
		return err
	}
	if *check {
		old, err := os.ReadFile(*file)
		if err != nil {
			return fmt.Errorf("comparing: %w", err)
		}
		if !bytes.Equal(old, b) {
			return errStale
		}
		fmt.Fprintf(out, "%s is what the corpus gives: %d bytes\n", *file, len(b))
	} else if err := os.WriteFile(*file, b, 0o644); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	if items == nil {
		return nil
	}
	d, err := task.Trained(c.Training())
	if err != nil {
		return err
	}
	r := eval.Evaluate(d.Detect, items)
	return r.WriteText(out)
}

func load(path string) ([]eval.Item, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("measuring: %w", err)
	}
	defer f.Close()
	return eval.Read(f)
}

// crossed measures each author's requests by a router trained on the others.
func crossed(out io.Writer, c *corpus.Corpus, items []eval.Item) error {
	var authors []string
	for _, a := range c.Asks {
		if w := corpus.Author(a.ID); !slices.Contains(authors, w) {
			authors = append(authors, w)
		}
	}
	for _, w := range authors {
		d, err := task.Trained(c.Only(func(id string) bool { return corpus.Author(id) != w }).Training())
		if err != nil {
			return err
		}
		r := eval.Evaluate(d.Detect, requests(c.Only(func(id string) bool { return corpus.Author(id) == w })))
		fmt.Fprintf(out, "== trained without %s, measured on %s\n", w, w)
		if err := r.WriteText(out); err != nil {
			return err
		}
		if items == nil {
			continue
		}
		r = eval.Evaluate(d.Detect, items)
		fmt.Fprintf(out, "== trained without %s, measured on the file: accuracy %.4f macro-F1 %.4f\n", w, r.Accuracy(), r.MacroF1)
	}
	return nil
}

// requests are a corpus's own requests as items to measure on.
func requests(c *corpus.Corpus) []eval.Item {
	var items []eval.Item
	for _, r := range c.Compose() {
		if r.Label == task.Defer || r.Lesson == task.CutOnly {
			continue
		}
		it := eval.Item{ID: r.ID, Label: r.Label, Slice: r.Slice, Lang: r.Lang, Input: r.Input}
		items = append(items, it)
	}
	return items
}
