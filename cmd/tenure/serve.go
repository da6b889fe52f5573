package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"tenure/cache"
	"tenure/proxy"
	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/residency/gpu"
	"tenure/routing"

	"github.com/gin-gonic/gin"
	"github.com/spf13/cobra"
)

func (p *program) serveCmd() *cobra.Command {
	var (
		printConfig, wait bool
		simulate          string
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the API",
		Long: `Serve the OpenAI API in front of an Ollama. Settings are environment variables;
--print-config lists them with their values, meanings and limits.

Without an Ollama that answers, serve fails, unless it is told to --wait for
one or to --simulate one. A simulated backend is never silent about it: it is
printed, logged, and said by every answer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			if printConfig {
				cfg.print(p)
				return nil
			}
			return p.serve(cmd.Context(), cfg, simulate, wait)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&printConfig, "print-config", false, "print the settings in force and exit")
	f.BoolVar(&wait, "wait", false, "serve even though Ollama does not answer yet")
	f.StringVar(&simulate, "simulate", "never", "always: use a simulated Ollama; auto: only when no Ollama answers; never")
	f.Lookup("simulate").NoOptDefVal = "always"
	return cmd
}

// serve runs the server until ctx ends.
func (p *program) serve(ctx context.Context, cfg *config, simulate string, wait bool) (err error) {
	log := p.logger(cfg)
	catalog, err := loadCatalog(cfg.Catalog)
	if err != nil {
		return usageError{err}
	}
	if cfg.KeysFile != "" {
		// An absent file may come later; until then it keeps everybody out.
		if _, err := proxy.ReadKeys(cfg.KeysFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return usageError{fmt.Errorf("TENURE_KEYS_FILE: %w", err)}
		}
	}
	if cfg.Optimize {
		if err := seatable(log, cfg, catalog); err != nil {
			return usageError{err}
		}
	}
	base, simulated, stopBackend, err := p.backend(ctx, cfg, catalog, simulate, wait)
	if err != nil {
		return err
	}
	defer stopBackend()

	cards, noCards, closeCards, err := openCards(cfg, base, simulated)
	if err != nil {
		return err
	}
	defer closeCards()
	client := ollama.New(base, ollama.Config{
		Log: log, Connect: cfg.Connect, Load: cfg.LoadTimeout, Settle: settle, RequireGPU: ollama.GPU(cfg.RequireGPU),
	})
	defer client.Close()
	policy, err := residency.Preset(cfg.Policy)
	if err != nil {
		return usageError{fmt.Errorf("TENURE_POLICY: %w", err)} // checked when it was read
	}
	journal := proxy.NewJournal()
	budget := residency.Bytes(cfg.Memory * float64(residency.GiB))
	ledger := cfg.Ledger
	if simulated || ledger == noLedger {
		ledger = "" // made-up sizes are not worth keeping either
	}
	sizes := proxy.OpenSizes(ledger, budget, log)
	scheduler := residency.New(residency.Config{
		Budget: budget, MaxModels: cfg.MaxModels,
		QueueLimit: cfg.QueueLimit, MaxWait: cfg.MaxWait, LoadTimeout: cfg.LoadTimeout,
		Passthrough: !cfg.Optimize, OnDecision: decisionLog(log, journal),
	}, policy, proxy.Measuring(client, sizes, cards))
	answers, err := cache.New(cache.Config{Bytes: int64(cfg.CacheSize)})
	if err != nil {
		return err
	}
	// In this order: answers under way end, then nobody holds a seat.
	defer func() {
		answers.Close()
		err = errors.Join(err, scheduler.Close())
	}()

	server := proxy.New(proxy.Config{
		Keys: hashed(cfg.APIKeys), KeysFile: cfg.KeysFile, Origins: cfg.CORSOrigins, AdminKey: adminKey(cfg.AdminKey), Version: version(),
		MaxTokens: cfg.MaxTokens, Loopback: onlyLoopback(cfg), BodyBytes: int64(cfg.BodyLimit),
		Timeouts: routing.Timeouts{Queue: cfg.QueueTimeout, FirstByte: cfg.FirstByte, Idle: cfg.IdleTimeout, Total: cfg.TotalTimeout},
		Breaking: proxy.Breaking{Faults: cfg.BreakerFaults, Pause: cfg.BreakerPause}, WholeTimeout: cfg.WholeTimeout, StallTimeout: cfg.StallTimeout,
		HeldBytes: int64(cfg.QueueBytes), Connections: cfg.Connections, ConnectionsPerAddress: cfg.ConnectionsPerAddress,
		Preload: cfg.Preload, AllowRemote: cfg.AllowRemote, Simulated: simulated,
	}, proxy.Parts{
		Router: routing.NewRouter(catalog, proxy.ShortName), Residency: scheduler, Cache: answers, Ollama: client, Journal: journal, Log: log,
		Sizes: sizes, GPU: cards, NoGPU: noCards,
	})

	gin.SetMode(gin.ReleaseMode)
	api, err := listen(ctx, "TENURE_LISTEN", cfg.Listen)
	if err != nil {
		return err
	}
	admin, err := listen(ctx, "TENURE_ADMIN_LISTEN", cfg.AdminListen)
	if err != nil {
		return errors.Join(err, api.Close())
	}
	p.announce(base, api.Addr(), admin.Addr(), simulated)
	if !cfg.Optimize {
		log.Warn("residency is not managed", "setting", "A5000_OPTIMIZATION=false")
	}

	watched, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	watching.Go(func() { server.Watch(watched) })
	context.AfterFunc(ctx, server.Drain)
	apiServer, adminServer := proxy.HTTPServer(server.API(), log), proxy.HTTPServer(server.Admin(), log)
	err = proxy.Serve(ctx, map[*http.Server]func() error{
		apiServer:   func() error { return apiServer.Serve(server.Limit(api)) },
		adminServer: func() error { return adminServer.Serve(server.Limit(admin)) },
	}, cfg.StopTimeout, answers.Close)
	stopWatch()
	watching.Wait()
	log.Info("server stopped")
	return err
}

// openCards returns how to read this machine's cards, or why not. It fails
// only where the operator insists on it.
func openCards(cfg *config, base *url.URL, simulated bool) (read func() (gpu.Reading, error), why error, stop func(), err error) {
	none := func() {}
	switch loopback, _ := isLoopback(base.Host); {
	case simulated:
		return nil, errors.New("the Ollama is simulated"), none, nil
	case cfg.NVML == "false":
		return nil, errors.New("TENURE_NVML=false"), none, nil
	case cfg.NVML == "auto" && !loopback:
		return nil, errors.New("Ollama runs elsewhere (TENURE_NVML=true if its cards are seen from here)"), none, nil //nolint:staticcheck // a name
	}
	probe, err := gpu.Open()
	switch {
	case err == nil:
		return probe.Read, nil, func() { _ = probe.Close() }, nil // what it fails to give back ends with the process
	case cfg.NVML == "true":
		return nil, nil, none, fmt.Errorf("TENURE_NVML=true: %w", err)
	}
	return nil, err, none, nil
}

// settle is how long an unloaded model's memory is given to come back to the
// driver.
const settle = 500 * time.Millisecond

func (p *program) logger(cfg *config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		level = slog.LevelInfo // checked when it was read
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(p.stderr, options))
	}
	return slog.New(slog.NewTextHandler(p.stderr, options))
}

func loadCatalog(file string) (*routing.Catalog, error) {
	if file == "" {
		return routing.Builtin(), nil
	}
	src, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("TENURE_CATALOG: %w", err)
	}
	c, err := routing.ParseCatalog(src, proxy.ShortName)
	if err != nil {
		return nil, fmt.Errorf("TENURE_CATALOG: %s:\n%w", file, err)
	}
	return c, nil
}

// backend finds the Ollama to serve in front of, or simulates one.
func (p *program) backend(ctx context.Context, cfg *config, catalog *routing.Catalog, simulate string, wait bool) (base *url.URL, simulated bool, stop func(), err error) {
	none := func() {}
	base, err = ollama.ParseHost(cfg.OllamaHost)
	if err != nil {
		return nil, false, none, usageError{fmt.Errorf("OLLAMA_HOST: %w", err)} // checked when it was read
	}
	switch simulate {
	case "always":
		base, stop, err = simulateOllama(ctx, catalog)
		return base, true, stop, err
	case "never", "auto":
	default:
		return nil, false, none, usageError{fmt.Errorf("--simulate: %q was read, always, auto or never is allowed", simulate)}
	}
	if wait {
		return base, false, none, nil
	}
	probe := ollama.New(base, ollama.Config{Connect: 2 * time.Second, Call: 5 * time.Second})
	defer probe.Close()
	if _, err = probe.Version(ctx); err == nil {
		return base, false, none, nil
	}
	if simulate == "auto" {
		base, stop, err = simulateOllama(ctx, catalog)
		return base, true, stop, err
	}
	return nil, false, none, fmt.Errorf("no Ollama answers at %s (OLLAMA_HOST): %w\n"+
		"Start one with: ollama serve. Or give --wait to wait for it, or --simulate to try tenure without one", base.Redacted(), err)
}

// simulateOllama serves the simulator on a port of its own.
func simulateOllama(ctx context.Context, catalog *routing.Catalog) (*url.URL, func(), error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, func() {}, fmt.Errorf("simulated Ollama: %w", err)
	}
	h := &http.Server{Handler: ollamasim.New(simConfig(catalog)), ReadHeaderTimeout: 10 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = h.Serve(l) }) // ends with Close
	return &url.URL{Scheme: "http", Host: l.Addr().String()}, func() {
		_ = h.Close()
		serving.Wait()
	}, nil
}

func listen(ctx context.Context, setting, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	return l, nil
}

// announce tells a person where to go and what answers.
func (p *program) announce(base *url.URL, api, admin net.Addr, simulated bool) {
	if simulated {
		rule := strings.Repeat("*", 72)
		fmt.Fprintf(p.stdout, "%s\n*  SIMULATED: no Ollama is used, no model answers. Texts are made up.    *\n%s\n", rule, rule)
	} else {
		fmt.Fprintf(p.stdout, "Ollama at %s\n", base.Redacted())
	}
	fmt.Fprintf(p.stdout, "API    http://%s/v1\nAdmin  http://%s/admin/state and /metrics\n", api, admin)
}

func hashed(secrets []string) []proxy.Key {
	var keys []proxy.Key
	for _, s := range secrets {
		keys = append(keys, proxy.HashKey(s))
	}
	return keys
}

func adminKey(secret string) proxy.Key {
	if secret == "" {
		return proxy.Key{}
	}
	return proxy.HashKey(secret)
}

// decisionLog logs and journals what the scheduler decides: models and counts.
func decisionLog(log *slog.Logger, journal *proxy.Journal) func(residency.Decision) {
	return func(d residency.Decision) {
		journal.Record(d)
		level := slog.LevelInfo
		if d.Err != "" {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "residency decided", "action", string(d.Action), "model", d.Model,
			"for", d.For, "reason", d.Reason.String(), "waiting", d.Waiting+d.WaitingB, "took", d.Took, "err", d.Err)
	}
}

// onlyLoopback reports whether nobody but this machine is meant to reach the
// API.
func onlyLoopback(cfg *config) bool {
	loopback, err := isLoopback(cfg.Listen)
	return err == nil && loopback && !cfg.AllowAnonymous
}

// seatable refuses settings under which the models that are always loaded could
// not be, and warns of others that would have to be smaller than estimated.
func seatable(log *slog.Logger, cfg *config, catalog *routing.Catalog) error {
	var pinned float64
	count := 0
	for _, m := range catalog.Models {
		if m.Tier == int(residency.T0) {
			pinned += m.Memory
			count++
		}
	}
	if pinned > cfg.Memory {
		return fmt.Errorf("MEMORY_THRESHOLD: %g GiB was read, the models that are always loaded (T0) need %g", cfg.Memory, pinned)
	}
	if count > cfg.MaxModels {
		return fmt.Errorf("MAX_CONCURRENT_MODELS: %d was read, %d models are always loaded (T0)", cfg.MaxModels, count)
	}
	for _, m := range catalog.Models {
		if m.Tier != int(residency.T0) && pinned+m.Memory > cfg.Memory {
			log.Warn("model does not fit beside those that are always loaded", "model", m.Name,
				"needs_gib", m.Memory, "always_loaded_gib", pinned, "setting", fmt.Sprintf("MEMORY_THRESHOLD=%g", cfg.Memory))
		}
	}
	return nil
}
