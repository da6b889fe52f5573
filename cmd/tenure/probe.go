package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"tenure/proxy/ollama"
	"tenure/residency"
	"tenure/routing"

	"github.com/ollama/ollama/api"
)

const (
	probeContext  = 512 // tokens: small, so that the count and not memory is what ends
	probeParallel = 4   // requests at once that are tried, or one more than the catalog's slots
	probeTokens   = 100 // of an answer: long enough for the others to begin meanwhile
)

// mayProbe refuses to disturb whoever works.
func (r *checkup) mayProbe() error {
	if r.Served {
		return errors.New("--probe loads and unloads models: a tenure serves this Ollama, so ask it instead (tenure status), or stop it first")
	}
	var names []string
	for _, m := range r.Resident {
		names = append(names, m.Name)
	}
	if len(names) > 0 {
		return fmt.Errorf("--probe loads and unloads models, and %s is resident: somebody uses this Ollama. To unload: ollama stop NAME", strings.Join(names, ", "))
	}
	return nil
}

// probe finds out Ollama's settings by trying: as many models as may be
// resident and one more, then several requests of one model. Everything is
// unloaded again, also when it fails.
func (r *checkup) probe(ctx context.Context, client *ollama.Client, catalog *routing.Catalog, cfg *config) (err error) {
	var loaded []residency.Model
	defer func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		for _, m := range loaded {
			err = errors.Join(err, client.Unload(late, m))
		}
	}()
	var blobs []string
	// The smallest first: the less is disturbed, the sooner it is done.
	for _, c := range slices.SortedFunc(slices.Values(r.Models), func(a, b checkedModel) int {
		return int(int64(a.Weights) - int64(b.Weights))
	}) {
		if !c.Pulled || c.remote != "" || !c.facts.Can("completion") || slices.Contains(blobs, c.facts.Blob) || len(loaded) > cfg.MaxModels {
			continue
		}
		blobs = append(blobs, c.facts.Blob)
		m := residency.Model{Name: c.Name, Context: probeContext}
		loaded = append(loaded, m) // also if it fails: who knows how far it came
		if _, err := client.Load(ctx, m); err != nil {
			return err
		}
		running, err := client.Running(ctx)
		if err != nil {
			return err
		}
		if len(loaded) == 1 {
			if r.Parallel, err = parallel(ctx, client, m, catalog); err != nil {
				return err
			}
		}
		if n := len(running); n < len(loaded) {
			r.MaxLoaded = figure{Least: n, Most: n, How: fmt.Sprintf("probed: to load %s Ollama evicted another", m.Name)}
			break
		}
		r.MaxLoaded = figure{Least: len(loaded), How: "probed"}
	}
	return nil
}

// parallel asks for several long answers of m at once and counts how many were
// being written at the same time, by the server's clock: an answer that waited
// for another begins after that one's last piece was made, whenever they reach
// us.
func parallel(ctx context.Context, client *ollama.Client, m residency.Model, catalog *routing.Catalog) (figure, error) {
	n := probeParallel
	for _, c := range catalog.Models {
		n = max(n, c.Slots+1)
	}
	type span struct{ first, last time.Time }
	spans, errs := make([]span, n), make([]error, n)
	var asking sync.WaitGroup
	for i := range n {
		asking.Go(func() {
			errs[i] = client.Chat(ctx, &api.ChatRequest{
				Model:    m.Name,
				Messages: []api.Message{{Role: "user", Content: "Count from one to two hundred, in words."}},
				Options:  map[string]any{"num_ctx": m.Context, "num_predict": probeTokens, "temperature": 1.0},
			}, func(piece *api.ChatResponse) error {
				if spans[i].first.IsZero() {
					spans[i].first = piece.CreatedAt
				}
				spans[i].last = piece.CreatedAt
				return nil
			})
			if errors.Is(errs[i], ollama.ErrAborted) {
				errs[i] = nil // Ollama ends an answer that repeats itself; what came counts
			}
		})
	}
	asking.Wait()
	if err := errors.Join(errs...); err != nil {
		return figure{}, err
	}
	most := 1
	for _, a := range spans {
		together := 0
		for _, b := range spans {
			if !a.first.Before(b.first) && a.first.Before(b.last) {
				together++
			}
		}
		most = max(most, together)
	}
	if most == n {
		return figure{Least: n, How: "probed"}, nil
	}
	return figure{Least: most, Most: most, How: "probed"}, nil
}
