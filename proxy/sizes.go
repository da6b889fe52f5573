package proxy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tenure/proxy/ollama"
	"tenure/residency"
	"tenure/residency/gpu"
)

// Sizes remembers across restarts what models really took in memory, and how
// long they took to load, so that the first load after a start is judged by
// better figures than the catalog's. A nil Sizes remembers nothing. It is safe
// for concurrent use.
//
// What is kept belongs to a digest: a model that was pulled anew is measured
// anew.
type Sizes struct {
	file  string // "": in memory only
	limit residency.Bytes
	log   *slog.Logger

	mu      sync.Mutex
	known   map[sizeKey]learnt
	digests map[string]string // by ShortName
}

// sizeKey is what a model's memory depends on.
type sizeKey struct {
	digest  string
	context int
	slots   int
}

type learnt struct {
	size residency.Bytes
	load time.Duration
	at   time.Time
}

// The file.
type (
	sizesFile struct {
		Format  string      `json:"format"`
		Version int         `json:"version"`
		Models  []sizesLine `json:"models"`
	}
	sizesLine struct {
		Digest  string          `json:"digest"`
		Context int             `json:"num_ctx"`
		Slots   int             `json:"slots"`
		Size    residency.Bytes `json:"size_bytes"`
		Load    time.Duration   `json:"load_ns"`
		At      time.Time       `json:"measured"`
	}
)

const (
	sizesFormat  = "tenure ledger"
	sizesVersion = 1
	maxSizes     = 1000    // lines; the oldest are dropped
	maxSizesFile = 1 << 20 // bytes that are read
	loadMemory   = 0.3     // weight of the newest time of a load
)

// OpenSizes reads file, which need not exist; "" keeps nothing across restarts.
// A file that cannot be read or is not a ledger is left alone, with a warning,
// and nothing is kept. Sizes above limit are not believed: a server with other
// settings took them, and they would keep a model from being loaded for ever.
func OpenSizes(file string, limit residency.Bytes, log *slog.Logger) *Sizes {
	s := &Sizes{file: file, limit: limit, log: log, known: map[sizeKey]learnt{}, digests: map[string]string{}}
	if file == "" {
		return s
	}
	if err := s.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("ledger not used", "file", file, "err", err.Error(), "mend", "remove the file, or name another as TENURE_LEDGER")
		s.file = ""
	}
	return s
}

func (s *Sizes) load() error {
	f, err := os.Open(s.file)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSizesFile))
	if err != nil {
		return err
	}
	var in sizesFile
	if err := json.Unmarshal(data, &in); err != nil {
		return fmt.Errorf("no ledger: %w", err)
	}
	if in.Format != sizesFormat || in.Version != sizesVersion {
		return fmt.Errorf("no ledger of version %d", sizesVersion)
	}
	for _, l := range in.Models {
		if l.Digest == "" || l.Context <= 0 || l.Slots <= 0 || l.Size == 0 || l.Load < 0 {
			return errors.New("a ledger with a line that cannot be")
		}
		s.known[sizeKey{l.Digest, l.Context, l.Slots}] = learnt{l.Size, l.Load, l.At}
	}
	return nil
}

// save writes the file in one step: whoever reads it sees the old or the new.
func (s *Sizes) save() error {
	s.mu.Lock()
	out := sizesFile{Format: sizesFormat, Version: sizesVersion}
	for k, l := range s.known {
		out.Models = append(out.Models, sizesLine{k.digest, k.context, k.slots, l.size, l.load, l.at})
	}
	s.mu.Unlock()
	slices.SortFunc(out.Models, func(a, b sizesLine) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.Digest, b.Digest), a.Context-b.Context, a.Slots-b.Slots)
	})
	out.Models = out.Models[:min(len(out.Models), maxSizes)]
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", "  ")
	if err := enc.Encode(out); err != nil {
		return err
	}
	dir := filepath.Dir(s.file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".ledger-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text.Bytes())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// installed tells which digest each name stands for.
func (s *Sizes) installed(models []ollama.Installed) {
	if s == nil {
		return
	}
	digests := make(map[string]string, len(models))
	for _, m := range models {
		digests[ShortName(m.Name)] = m.Digest
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digests = digests
}

// estimate gives m the figures that were learnt of it, where there are any.
func (s *Sizes) estimate(m residency.Model, digest string) residency.Model {
	if s == nil || digest == "" {
		return m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.known[sizeKey{digest, m.Context, max(m.Slots, 1)}]; ok {
		if l.size <= s.limit {
			m.Size = l.size
		}
		m.LoadTime = cmp.Or(l.load, m.LoadTime)
	}
	return m
}

// learn records a load.
func (s *Sizes) learn(m residency.Model, size residency.Bytes, took time.Duration) {
	if s == nil || size == 0 {
		return
	}
	s.mu.Lock()
	digest := s.digests[m.Name]
	if digest == "" {
		s.mu.Unlock()
		return // nobody could tell later whose size it was
	}
	k := sizeKey{digest, m.Context, max(m.Slots, 1)}
	if before, ok := s.known[k]; ok {
		took = before.load + time.Duration(loadMemory*float64(took-before.load))
	}
	s.known[k] = learnt{size, took, time.Now().UTC().Truncate(time.Second)}
	s.mu.Unlock()
	if s.file == "" {
		return
	}
	if err := s.save(); err != nil {
		s.log.Warn("ledger not written", "err", err.Error())
	}
}

// measuring is a Loader that measures what it loads.
type measuring struct {
	residency.Loader
	sizes *Sizes
	read  func() (gpu.Reading, error)
}

// Measuring returns l with two more eyes: a load's size is at least what
// Ollama's processes grew by on the cards, if read is not nil, and sizes learns
// it.
func Measuring(l residency.Loader, sizes *Sizes, read func() (gpu.Reading, error)) residency.Loader {
	return &measuring{l, sizes, read}
}

// Load implements residency.Loader.
func (m *measuring) Load(ctx context.Context, model residency.Model) (residency.Bytes, error) {
	before, seen := m.look()
	began := time.Now()
	size, err := m.Loader.Load(ctx, model)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	if after, ok := m.look(); seen && ok {
		size = max(size, grown(before, after, size))
	}
	m.sizes.learn(model, size, took)
	return size, nil
}

func (m *measuring) look() (gpu.Reading, bool) {
	if m.read == nil {
		return gpu.Reading{}, false
	}
	r, err := m.read()
	return r, err == nil
}

// grown is by how much Ollama grew on the cards while a model was loaded that
// it says has the given size. It is 0 when that cannot be told: more than half
// as much again was somebody else's.
func grown(before, after gpu.Reading, size residency.Bytes) residency.Bytes {
	from, to := before.Ollama(), after.Ollama()
	if to == 0 { // no process could be told to be Ollama's
		from, to = before.Used(), after.Used()
	}
	if d := to - min(from, to); d <= size+size/2 {
		return d
	}
	return 0
}
