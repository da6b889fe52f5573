package proxy

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"tenure/proxy/ollama"
	"tenure/residency"
	"tenure/routing"
)

const (
	watchEvery = 5 * time.Second // while Ollama answers; it is asked gently
	watchAgain = time.Second     // while it does not
	// foreignContext and foreignSlots are what a model that the catalog does
	// not know is loaded with.
	foreignContext = 4096
	foreignSlots   = 1
)

// ShortName is the one spelling of a model's name that tenure uses: Ollama's,
// without the tag that is the default.
func ShortName(name string) string { return strings.TrimSuffix(ollama.Canonical(name), ":latest") }

// backend is what is known of the server.
type backend struct {
	mu       sync.Mutex
	up       bool
	since    time.Time // of up, or of not up
	version  string
	models   []ollama.Installed
	byDigest map[string]ollama.Facts
	hosts    map[string]routing.Candidate // by digest, see hosts
	resident []ollama.Resident
}

// sight is what was last seen of the server. Its slices are not changed.
type sight struct {
	version  string // empty: it was never reached
	models   []ollama.Installed
	resident []ollama.Resident
}

func (b *backend) snapshot() sight {
	b.mu.Lock()
	defer b.mu.Unlock()
	return sight{b.version, b.models, b.resident}
}

func (b *backend) reachable() (up bool, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up, b.since
}

// facts are those of an installed model; zero when they are not known.
func (b *backend) facts(digest string) ollama.Facts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.byDigest[digest]
}

// blobs are the weights' files of the installed models, by name.
func (b *backend) blobs() map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	files := make(map[string]string, len(b.models))
	for _, m := range b.models {
		files[ShortName(m.Name)] = b.byDigest[m.Digest].Blob
	}
	return files
}

// Watch follows the server until ctx ends: whether it answers, what it has,
// what is resident. Models that the book believes resident and Ollama does not
// list are lost; others that it lists are counted as foreign. The cards are
// followed beside it.
func (s *Server) Watch(ctx context.Context) {
	var cards sync.WaitGroup
	defer cards.Wait()
	cards.Go(func() { s.watchCards(ctx) })
	for {
		err := s.look(ctx)
		pause := watchEvery
		if err != nil {
			pause = watchAgain
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// look asks the server once.
func (s *Server) look(ctx context.Context) error {
	version, err := s.ollama.Version(ctx)
	if err != nil {
		s.unreachable(ctx, err)
		return err
	}
	models, err := s.ollama.Installed(ctx)
	if err != nil {
		s.unreachable(ctx, err)
		return err
	}
	if !s.cfg.AllowRemote {
		models = slices.DeleteFunc(models, func(m ollama.Installed) bool { return m.RemoteHost != "" })
	}
	facts := s.learn(ctx, models)
	routable := s.routable(models, facts)
	s.router.SetInstalled(routable)
	s.sizes.installed(models)

	s.backend.mu.Lock()
	returned := !s.backend.up
	if returned {
		s.backend.up, s.backend.since = true, time.Now()
	}
	s.backend.version, s.backend.models, s.backend.byDigest, s.backend.hosts = version, models, facts, hosts(s.router.Catalog(), routable, facts)
	s.backend.mu.Unlock()

	if returned {
		s.log.Info("ollama answered", "version", version, "models", len(models))
		s.greeted()
	}
	return s.reconcile(ctx, returned)
}

func (s *Server) unreachable(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // it is we who leave
	}
	s.backend.mu.Lock()
	defer s.backend.mu.Unlock()
	if s.backend.up || s.backend.since.IsZero() {
		s.backend.up, s.backend.since = false, time.Now()
		s.log.Warn("ollama did not answer", "err", logText(err))
	}
}

// learn returns the facts of every installed model, asking only for those that
// are new or were pulled again.
func (s *Server) learn(ctx context.Context, models []ollama.Installed) map[string]ollama.Facts {
	s.backend.mu.Lock()
	known := s.backend.byDigest
	s.backend.mu.Unlock()
	facts := make(map[string]ollama.Facts, len(models))
	for _, m := range models {
		f, ok := known[m.Digest]
		if !ok {
			var err error
			if f, err = s.ollama.Show(ctx, m.Name); err != nil {
				s.log.Warn("model facts not read", "model", m.Name, "err", logText(err))
				continue // asked again next time
			}
		}
		facts[m.Digest] = f
	}
	return facts
}

// routable tells the router how each model would be loaded: its weights, and
// the memory of its context.
func (s *Server) routable(models []ollama.Installed, facts map[string]ollama.Facts) []routing.Installed {
	list := make([]routing.Installed, len(models))
	for i, m := range models {
		f := facts[m.Digest]
		context := foreignContext
		if f.Context > 0 {
			context = min(context, f.Context)
		}
		bytes := m.Size + f.KVPerToken()*residency.Bytes(context*foreignSlots)
		name := ShortName(m.Name)
		list[i] = routing.Installed{Name: name, Digest: m.Digest, Model: routing.Model{
			Name: name, Tier: int(residency.T2), Memory: float64(bytes) / float64(residency.GiB),
			Context: context, Slots: foreignSlots, Load: 5 * time.Second,
		}}
	}
	return list
}

// hosts tells, by digest, in whose place a model sits that shares its weights
// with others: Ollama keeps them in memory once, with one context. It is the
// catalog's first of them, or else the first by name.
func hosts(catalog *routing.Catalog, models []routing.Installed, facts map[string]ollama.Facts) map[string]routing.Candidate {
	ofBlob := map[string]routing.Candidate{}
	host := func(m routing.Model, digest string) {
		if blob := facts[digest].Blob; blob != "" && ofBlob[blob].Name == "" {
			ofBlob[blob] = routing.Candidate{Model: m, Digest: digest}
		}
	}
	digests := make(map[string]string, len(models))
	for _, m := range models {
		digests[m.Name] = m.Digest
	}
	for _, m := range catalog.Models {
		host(m, digests[m.Name])
	}
	for _, m := range slices.SortedFunc(slices.Values(models), func(a, b routing.Installed) int { return strings.Compare(a.Name, b.Name) }) {
		host(m.Model, m.Digest)
	}
	all := make(map[string]routing.Candidate, len(models))
	for _, m := range models {
		if h, ok := ofBlob[facts[m.Digest].Blob]; ok {
			all[m.Digest] = h
		}
	}
	return all
}

// seat is the place in memory that a candidate is answered from, as the
// scheduler knows it and with what was learnt of it: its own, or the one of the
// model whose weights it shares.
func (s *Server) seat(c routing.Candidate) residency.Model {
	s.backend.mu.Lock()
	if host, ok := s.backend.hosts[c.Digest]; ok {
		c = host
	}
	facts := s.backend.byDigest[c.Digest]
	s.backend.mu.Unlock()
	return s.sizes.estimate(seat(c, facts), c.Digest)
}

// reconcile compares the book with what Ollama has in memory.
func (s *Server) reconcile(ctx context.Context, returned bool) error {
	before := s.residency.State()
	// What moved while Ollama was asked is nobody's loss: only a model that was
	// ready before and after, and was not listed in between, is gone. Nor is one
	// that the client itself is loading anew, nor one that is in use: after a
	// restart a request makes Ollama load its model, which is not listed until
	// that is done, and whatever were loaded in its place would be one too many.
	ready, used := map[string]bool{}, map[string]bool{}
	for _, r := range before.Residents {
		ready[r.Model.Name] = r.Phase == residency.Ready && !s.ollama.Probing(r.Model.Name)
		used[r.Model.Name] = r.Leases > 0
	}
	running, err := s.ollama.Running(ctx)
	if err != nil {
		s.unreachable(ctx, err)
		return err
	}
	s.backend.mu.Lock()
	s.backend.resident = running
	s.backend.mu.Unlock()
	if before.Passthrough {
		return nil
	}

	// Ollama keeps one runner for all names of the same weights and lists it
	// under the name that came first.
	blobs := s.backend.blobs()
	listed, weights := make(map[string]residency.Bytes, len(running)), map[string]bool{"": false}
	for _, r := range running {
		name := ShortName(r.Name)
		listed[name] = r.Size
		weights[blobs[name]] = blobs[name] != ""
	}
	lost := 0
	foreign := maps.Clone(listed)
	now := s.residency.State()
	for _, r := range now.Residents {
		name := r.Model.Name
		maps.DeleteFunc(foreign, func(other string, _ residency.Bytes) bool {
			return other == name || blobs[name] != "" && blobs[other] == blobs[name]
		})
		if _, there := listed[name]; !there && !weights[blobs[name]] && ready[name] && r.Phase == residency.Ready && !s.ollama.Probing(name) && !used[name] && r.Leases == 0 {
			s.found(whatVanished, name, "", 0)
			s.residency.Lost(name)
			lost++
		}
	}
	for name, wasReady := range ready {
		if !wasReady {
			delete(foreign, name) // it was on its way out
		}
	}
	if returned {
		s.clear(ctx, foreign)
	}
	s.strangers(ctx, foreign)
	s.residency.Foreign(foreign)
	if s.watched.vanished(lost) {
		s.log.Error("models keep vanishing", "cause", evictsWhy)
	}
	if returned || lost > 0 {
		s.preload()
	}
	s.repair(ctx, &before, &now, running)
	now = s.residency.State()
	s.unstick(ctx, &now, running)
	s.observeMemory(&now)
	return nil
}

// clear unloads what an earlier run left behind. What will be preloaded stays:
// loading it again costs nothing.
func (s *Server) clear(ctx context.Context, left map[string]residency.Bytes) {
	for _, m := range s.router.Catalog().Models {
		if _, ok := left[m.Name]; !ok {
			continue
		}
		delete(left, m.Name)
		if s.preloaded(m) {
			continue
		}
		if err := s.ollama.Unload(ctx, residency.Model{Name: m.Name}); err != nil && !errors.Is(err, residency.ErrPermanent) {
			s.log.Warn("model of an earlier run not unloaded", "model", m.Name, "err", logText(err))
		}
	}
}

func (s *Server) preloaded(m routing.Model) bool {
	tier := residency.Tier(m.Tier)
	return tier == residency.T0 || tier == residency.T1 && s.cfg.Preload && !s.watched.isExcused(m.Name)
}

// preload asks for the models that are to be there before anybody needs them.
func (s *Server) preload() {
	installed := map[string]string{}
	s.backend.mu.Lock()
	for _, m := range s.backend.models {
		installed[ShortName(m.Name)] = m.Digest
	}
	s.backend.mu.Unlock()
	for _, m := range slices.SortedStableFunc(slices.Values(s.router.Catalog().Models), func(a, b routing.Model) int { return a.Tier - b.Tier }) {
		digest, ok := installed[m.Name]
		if !s.preloaded(m) {
			continue
		}
		if !ok {
			s.log.Warn("model to be kept loaded is not pulled", "model", m.Name, "mend", "ollama pull "+m.Name)
			continue
		}
		s.residency.Preload(s.seat(routing.Candidate{Model: m, Digest: digest}))
	}
}

// modifiedAt lists the installed models with the time of their last change.
func (b *backend) modifiedAt() map[string]time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	times := make(map[string]time.Time, len(b.models))
	for _, m := range b.models {
		times[ShortName(m.Name)] = m.ModifiedAt
	}
	return times
}
