package main

import (
	"slices"
	"time"

	"tenure/proxy"
	"tenure/proxy/ollama/ollamasim"
	"tenure/routing"
)

// simConfig puts every model of the catalog on the simulated disk: the four
// that the simulator knows as they are, others after their catalog entry.
func simConfig(c *routing.Catalog) ollamasim.Config {
	models := ollamasim.Catalog()
	for _, m := range c.Models {
		if slices.ContainsFunc(models, func(s ollamasim.Model) bool { return proxy.ShortName(s.Name) == m.Name }) {
			continue
		}
		like := models[len(models)-1]
		like.Name, like.Weights = m.Name, uint64(m.Memory*(1<<30))
		like.Blocks, like.Trained = 0, max(m.Trained, m.Context) // its memory is the entry's, whatever the context
		like.Cold, like.Warm = m.Load, max(m.Load/2, 100*time.Millisecond)
		models = append(models, like)
	}
	return ollamasim.Config{Models: models}
}
